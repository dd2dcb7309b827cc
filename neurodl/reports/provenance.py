"""What a report says about its run: the data, the folds, the networks, versions, citations."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from neurodl.reports.brain import in_mni
from neurodl.reports.summary import by_groups, count, excluded_text
from neurodl.reports.tables import PER_LAYER, exclusions, layer_groups, with_layers
from neurodl.schema import sample_dim, target_dim

if TYPE_CHECKING:
    from neurodl.datasets.experiment import Experiment

SAMPLES = {"stimulus": "stimuli", "presentation": "presentations", "time": "time points"}
# Said in the report's own words, or of use to programs only.
NOT_LISTED = {
    "affine",
    "shape",
    "n_targets",
    "n_excluded",
    "n_constant",
    "n_missing",
    "n_ceiling_too_small",
    "experiment",
    "layer",
    "subject",
    "n_samples",
    "n_repeats",
    "cv",
    "audit",
    "warnings",
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
    text = f"{int(n):,} {noun}".strip()
    return text if repeats in (None, 1) else f"{text}, {_plain(repeats)} repeats"


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
    if cv and not text.startswith(cv):
        # A text that speaks of folds says it all; a splitter's name needs their number.
        text = cv if "fold" in cv else f"{text} ({cv})"
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
    """Return an attr as text: numbers without trailing zeros, lists up to eight values."""
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
                short = key == "weights_sha256" and len(text) > 12
                row[key] = f"{text[:12]}\N{HORIZONTAL ELLIPSIS}" if short else text
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
    if in_mni(scores):
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
