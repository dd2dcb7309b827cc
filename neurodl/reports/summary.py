"""The words of a report: the main finding, what was run, how to cite it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.reports.brain import has_volume, in_mni
from neurodl.reports.tables import (
    ALL,
    PER_LAYER,
    best_layers,
    exclusions,
    fixed,
    layer_groups,
    short_layers,
    with_layers,
)
from neurodl.schema import sample_dim, target_dim

if TYPE_CHECKING:
    from neurodl.datasets.experiment import Experiment

# A ROI with fewer scored targets does not make the headline while a larger one is there.
MIN_TARGETS = 10
PLURALS = {"vertex": "vertices"}
SAMPLES = {"stimulus": "stimuli", "presentation": "presentations", "time": "time points"}
# Said elsewhere in the report, or of use to programs only.
NOT_LISTED = {
    "affine",
    "shape",
    "n_targets",
    "n_excluded",
    "n_constant",
    "n_missing",
    "experiment",
    "layer",
    "subject",
    "n_samples",
    "n_repeats",
    "cv",
    "groups",
    "n_folds",
    "seed",
    "model",
    "device",
    "created",
    "neurodl_version",
    "units",
    "space",
    "tr",
    "bin_width",
    "backbone",
}
CITED = ("title", "authors", "citation", "reference", "licence", "terms", "doi", "url", "source")
PACKAGES = ("neurodl", "torch", "timm", "numpy", "scipy", "xarray", "nilearn", "matplotlib")


def number(value: float, digits: int = 2) -> str:
    """Return a number for running text, with a real minus sign; "n/a" for NaN.

    Examples
    --------
    >>> number(0.405), number(float("nan"))
    ('0.41', 'n/a')
    """
    if np.isnan(value):
        return "n/a"
    return fixed(value, digits).replace("-", "\N{MINUS SIGN}")


def plural(noun: str) -> str:
    """Return "voxels" for "voxel", "vertices" for "vertex"."""
    return PLURALS.get(noun, noun + "s")


def count(n: int, noun: str) -> str:
    """Return "1 voxel", "200 voxels" or "2 vertices".

    Examples
    --------
    >>> count(1, "voxel"), count(12000, "vertex")
    ('1 voxel', '12,000 vertices')
    """
    return f"{n:,} {noun if n == 1 else plural(noun)}"


def by_groups(scores: xr.Dataset) -> str:
    """Return "5 folds by run", or "5 folds"."""
    folds = count(scores.sizes["fold"], "fold")
    groups = str(scores.attrs.get("groups", ""))
    return folds if groups.lower() in ("", "none") else f"{folds} by {groups}"


def layer_name(scores: xr.Dataset, layer: str) -> str:
    """Return "layer3 of timm:resnet50", or the layer alone where no backbone is known."""
    scores = with_layers(scores)
    layers = [str(name) for name in scores["layer"].values]
    for group, rows in layer_groups(scores).items():
        names = [layers[index] for index in rows]
        if layer in names:
            backbone = str(scores["backbone"].values[rows[0]])
            short = short_layers(names, backbone)[names.index(layer)]
            return f"{short} of {group}" if group and short != group else short
    return layer


def headline_row(table: pd.DataFrame) -> pd.Series | None:
    """Return the best layer of the best predicted ROI, or None if nothing has a score.

    Parameters
    ----------
    table : pandas.DataFrame
        Of `roi_table`.
    """
    best = best_layers(table)
    scored = best[best["n_valid"] > 0]
    if not len(scored):
        return None
    rois = scored[scored["roi"] != ALL]
    large = rois[rois["n_valid"] >= MIN_TARGETS]
    candidates = large if len(large) else scored[scored["roi"] == ALL]
    return candidates.loc[candidates["r"].idxmax()]


def main_finding(scores: xr.Dataset, table: pd.DataFrame) -> list[str]:
    """Return the main finding in one or two sentences.

    Parameters
    ----------
    scores : xarray.Dataset
    table : pandas.DataFrame
        Of `roi_table`.
    """
    noun = target_dim(scores["r"])
    top = headline_row(table)
    if top is None:
        return [f"Nothing could be scored: {excluded_text(scores)}."]
    n_layers = table["layer"].nunique()
    where = f"the {plural(noun)}" if top["roi"] == ALL else str(top["roi"])
    over = f"(mean over {count(int(top['n_valid']), noun)}, {by_groups(scores)})"
    name = layer_name(scores, top["layer"])
    if not _clearly_positive(top, scores.sizes["fold"]):
        what = "No layer predicts" if n_layers > 1 else f"{name} does not predict"
        source = f" from {name}" if n_layers > 1 else ""
        return [
            f"{what} the responses reliably: the highest mean is r = {number(top['r'])} for "
            f"{where}{source} {over}, not clearly above 0."
        ]
    best = " best" if n_layers > 1 or top["roi"] != ALL else ""
    sentences = [f"{name} predicts {where}{best}: r = {_reached(top)} {over}."]
    overall = best_layers(table).set_index("roi").loc[ALL]
    if top["roi"] != ALL and overall["n_valid"] > top["n_valid"]:
        same = overall["layer"] == top["layer"]
        who = "it" if same else layer_name(scores, overall["layer"])
        reaches = "reaches" if n_layers == 1 or same else "is best and reaches"
        over_all = count(int(overall["n_valid"]), noun)
        sentences.append(f"Over all {over_all}, {who} {reaches} r = {_reached(overall)}.")
    return sentences


def _clearly_positive(row: pd.Series, n_folds: int) -> bool:
    """Return whether r is above 0 beyond what the choice of targets or folds explains."""
    low = row["r_low"] if not np.isnan(row["r_low"]) else row["r"]
    spread = 0.0 if np.isnan(row["fold_sd"]) else 2 * row["fold_sd"] / np.sqrt(n_folds)
    return bool(low > 0 and row["r"] > spread)


def _reached(row: pd.Series) -> str:
    text = number(row["r"])
    if not np.isnan(row.get("r_normalized", np.nan)):
        text += f", {number(100 * row['r_normalized'], 0)} % of the ceiling"
    return text


def excluded_text(scores: xr.Dataset) -> str:
    """Return how many targets were excluded, with the reasons that are known."""
    counts = exclusions(scores)
    n = counts["n_excluded"]
    if n == 0:
        return "none excluded"
    reasons = []
    if counts.get("n_constant"):
        reasons.append(f"{counts['n_constant']:,} constant")
    if counts.get("n_missing"):
        reasons.append(f"{counts['n_missing']:,} with missing values")
    return f"{n:,} excluded ({', '.join(reasons) or 'no score in any fold'})"


def what_was_run(scores: xr.Dataset, experiment: Experiment | None) -> list[tuple[str, str]]:
    """Return terms and texts: the data, the targets, the folds, the model, where it ran.

    Parameters
    ----------
    scores : xarray.Dataset
    experiment : Experiment or None
    """
    attrs, noun = scores.attrs, target_dim(scores["r"])
    counts = exclusions(scores)
    targets = f"{count(counts['n_targets'], noun)}: {counts['n_scored']:,} scored"
    targets += f", {excluded_text(scores)}"
    if counts["n_partial"]:
        targets += f"; {counts['n_partial']:,} with a score in some folds only"
    if counts.get("n_without_ceiling"):
        targets += f"; {counts['n_without_ceiling']:,} scored without a usable ceiling"
    facts = [
        ("Data", str(attrs.get("experiment") or (experiment.name if experiment else ""))),
        ("Subject", str(attrs.get("subject", ""))),
        ("Stimuli", _stimuli(experiment)),
        ("Samples", _samples(scores, experiment)),
        ("Targets", targets),
        ("Responses", _responses(attrs)),
        ("Model", str(attrs.get("model", ""))),
        ("Cross-validation", _folds(scores)),
        ("Seed", str(attrs.get("seed", ""))),
        ("Device", str(attrs.get("device", ""))),
        ("Computed", _made(attrs)),
    ]
    facts += [
        (key.replace("_", " "), _plain(value))
        for key, value in attrs.items()
        if key not in NOT_LISTED
    ]
    return [(term, text) for term, text in facts if text]


def _stimuli(experiment: Experiment | None) -> str:
    if experiment is None or experiment.stimuli is None:
        return ""
    return count(len(experiment.stimuli), experiment.stimuli.kind)


def _samples(scores: xr.Dataset, experiment: Experiment | None) -> str:
    n = scores.attrs.get("n_samples")
    if n is None:
        return ""
    noun = _sample_noun(int(n), experiment)
    repeats = scores.attrs.get("n_repeats")
    return f"{int(n):,}{f' {noun}' if noun else ''}" + (
        f", {_plain(repeats)} repeats" if repeats is not None else ""
    )


def _sample_noun(n: int, experiment: Experiment | None) -> str:
    """Return what the scored samples are, if the experiment has as many of them."""
    if experiment is None or experiment.responses is None:
        return ""
    dim = sample_dim(experiment.responses)
    if experiment.responses.sizes[dim] == n:
        return SAMPLES[dim]
    # Averaging over repeats leaves one sample per stimulus.
    return "stimuli" if experiment.stimuli is not None and len(experiment.stimuli) == n else ""


def _responses(attrs: Mapping[Any, Any]) -> str:
    parts = [str(attrs.get("units", ""))]
    if "tr" in attrs:
        parts.append(f"TR {float(attrs['tr']):g} s")
    if "bin_width" in attrs:
        parts.append(f"bins of {float(attrs['bin_width']):g} s")
    parts.append(str(attrs.get("space", "")))
    return ", ".join(part for part in parts if part)


def _folds(scores: xr.Dataset) -> str:
    cv = str(scores.attrs.get("cv", ""))
    text = by_groups(scores)
    text = text if not cv or cv == count(scores.sizes["fold"], "fold") else f"{text} ({cv})"
    if "n_test" in scores.coords:
        sizes = np.unique(scores["n_test"].values).astype(int)
        shown = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
        text += f"; {shown} test samples each"
    return text


def _made(attrs: Mapping[Any, Any]) -> str:
    version = f"neurodl {attrs['neurodl_version']}" if "neurodl_version" in attrs else ""
    when = str(attrs.get("created", "")).replace("T", " ")[:16]
    return ", ".join(part for part in (when, version) if part)


def _plain(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:g}"
    if isinstance(value, list | tuple | np.ndarray):
        values = np.asarray(value).tolist()
        return ", ".join(_plain(v) for v in values[:8]) + (" ..." if len(values) > 8 else "")
    return str(value)


def backbone_rows(scores: xr.Dataset) -> list[dict[str, str]]:
    """Return what is known of each network: weights, licence, transform, pooling, n layers."""
    scores = with_layers(scores)
    rows = []
    for group, indices in layer_groups(scores).items():
        row = {"name": group or "own features", "layers": str(len(indices))}
        for key in PER_LAYER[1:]:
            if key in scores.coords and scores[key].dims == ("layer",):
                values = dict.fromkeys(str(value) for value in scores[key].values[indices])
                text = ", ".join(value for value in values if value)
                row[key] = (
                    text[:12] + "\N{HORIZONTAL ELLIPSIS}"
                    if key == "weights_sha256" and text
                    else text
                )
        rows.append(row)
    return rows


def provenance_rows(
    provenance: Mapping[str, Any] | None, experiment: Experiment | None = None
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return sections of (term, text): what the caller recorded, the data's card, versions."""
    sections: list[tuple[str, list[tuple[str, str]]]] = []
    flat: list[tuple[str, str]] = []
    for key, value in (provenance or {}).items():
        if isinstance(value, Mapping):
            sections.append((str(key), [(str(k), _plain(v)) for k, v in value.items()]))
        else:
            flat.append((str(key), _plain(value)))
    if experiment is not None and experiment.card:
        sections.append(("data card", [(k, _plain(v)) for k, v in experiment.card.items()]))
    here = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            here.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return ([("run", flat)] if flat else []) + sections + [("versions that made this page", here)]


def citations(scores: xr.Dataset, experiment: Experiment | None) -> list[tuple[str, str]]:
    """Return (what, how to cite it) for neurodl, the data, the networks and the brain's drawing."""
    version = str(scores.attrs.get("neurodl_version", "")).strip()
    cited = [
        (
            "neurodl",
            f"neurodl{f' {version}' if version else ''}: encoding models from stimuli to "
            "brain responses. BSD-3-Clause.",
        )
    ]
    card = dict(experiment.card) if experiment is not None else {}
    cited += [(f"data: {key}", _plain(card[key])) for key in CITED if card.get(key)]
    for row in backbone_rows(scores):
        known = [row[key] for key in ("weights", "licence") if row.get(key)]
        if known:
            cited.append(
                (
                    row["name"],
                    "weights: " + "; licence: ".join(known)
                    if row.get("weights")
                    else f"licence: {known[0]}",
                )
            )
    if has_volume(scores) and in_mni(scores):
        cited += [
            (
                "template",
                "MNI152 template: Fonov et al. (2011), NeuroImage 54, 313\N{EN DASH}327; drawn "
                "through nilearn.",
            ),
            (
                "surface",
                "fsaverage5: Fischl, Sereno, Tootell and Dale (1999), Human Brain Mapping 8, "
                "272\N{EN DASH}284; projected with nilearn.",
            ),
        ]
    return cited
