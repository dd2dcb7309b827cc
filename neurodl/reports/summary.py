"""The words of a report: the main finding, and how numbers and names are said."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.reports.tables import (
    ALL,
    best_layers,
    exclusions,
    fixed,
    layer_groups,
    short_layers,
    with_layers,
)
from neurodl.schema import target_dim

# A ROI with fewer scored targets does not make the headline while a larger one is there.
MIN_TARGETS = 10
PLURALS = {"vertex": "vertices"}


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
    if groups.lower() in ("", "none"):
        return folds
    return f"{folds} by {'given groups' if groups == 'given' else groups}"


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
