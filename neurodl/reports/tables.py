"""The numbers of a report: scores in, tables out.

One rule for every mean: first over the folds of each target, then over targets. A target without
a score is counted, never averaged in; nothing is clipped at the ceiling.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.backbones.untrained import UNTRAINED
from neurodl.runtime import derive_seed
from neurodl.schema import target_dim

ALL = "all"
PER_LAYER = ("backbone", "weights", "weights_sha256", "licence", "transform", "pool", "reduce")
N_RESAMPLES = 1000
# Beyond this many targets the bootstrap of a mean and its normal approximation agree to three
# digits, and only the second is quick.
BOOTSTRAP_LIMIT = 10_000


def with_layers(scores: xr.Dataset) -> xr.Dataset:
    """Return `scores` with a layer dim and a backbone coord, even where they had none."""
    if "layer" not in scores["r"].dims:
        name = str(scores.coords["layer"].values) if "layer" in scores.coords else "features"
        scores = scores.drop_vars("layer", errors="ignore")
        over_folds = [key for key in scores.data_vars if "fold" in scores[key].dims]
        widened = {key: scores[key].expand_dims(layer=[name], axis=0) for key in over_folds}
        scores = scores.assign(widened)
    if not all(isinstance(name, str) for name in scores["layer"].values):
        scores = scores.assign_coords(layer=[str(name) for name in scores["layer"].values])
    for key in PER_LAYER:
        if key in scores.coords and scores[key].dims != ("layer",):
            values = [str(scores[key].values)] * scores.sizes["layer"]
            scores = scores.drop_vars(key).assign_coords({key: ("layer", values)})
    if "backbone" not in scores.coords:
        name = str(scores.attrs.get("backbone", ""))
        scores = scores.assign_coords(backbone=("layer", [name] * scores.sizes["layer"]))
    return scores


def nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean over what is not NaN, and NaN where nothing is left.

    Parameters
    ----------
    values : numpy.ndarray
    axis : int

    Examples
    --------
    >>> nanmean(np.array([[1.0, np.nan], [3.0, np.nan]]), axis=0)
    array([ 2., nan])
    """
    valid = ~np.isnan(values)
    count = valid.sum(axis)
    total = np.where(valid, values, 0).sum(axis, dtype=float)
    means: np.ndarray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return means


def fixed(value: float, digits: int = 3) -> str:
    """Return a number with this many decimals, never "-0.00"; an en dash for NaN.

    Examples
    --------
    >>> fixed(0.12345), fixed(-0.0001, 2), fixed(float("nan"))
    ('0.123', '0.00', '\u2013')
    """
    return "\N{EN DASH}" if np.isnan(value) else f"{round(float(value), digits) + 0.0:.{digits}f}"


def target_means(scores: xr.Dataset, name: str = "r") -> xr.DataArray:
    """Return each target's mean over its folds.

    Parameters
    ----------
    scores : xarray.Dataset
        With dims ``([layer,] fold, target)``.
    name : {"r", "r2", "r_normalized"}

    Returns
    -------
    xarray.DataArray
        Dims ``(layer, target)``; NaN where a target has no score in any fold.
    """
    array = with_layers(scores)[name]
    array = array.transpose("layer", "fold", target_dim(array))
    means = np.stack([nanmean(layer, 0) for layer in array.values])
    return array.isel(fold=0, drop=True).copy(data=means)


def roi_members(scores: xr.Dataset) -> dict[str, np.ndarray]:
    """Return the target indices of every ROI, and of "all" targets first.

    ROIs come from the coord ``roi``, else ``area``; targets with an empty name belong to "all"
    only. Visual areas that are numbered come first (V1, V2, hV4), the others by name.
    """
    n_targets = scores.sizes[target_dim(scores["r"])]
    members = {ALL: np.arange(n_targets)}
    labels = roi_labels(scores)
    if labels is not None:
        names = sorted({name for name in labels if name}, key=_roi_rank)
        # A ROI that is itself called "all" must not hide the row of all targets.
        members |= {f"{n} (ROI)" if n == ALL else n: np.flatnonzero(labels == n) for n in names}
    return members


def roi_labels(scores: xr.Dataset) -> np.ndarray | None:
    """Return the ROI name of each target ("" = none), or None where there are no ROIs."""
    for key in ("roi", "area"):
        if key in scores.coords and scores[key].dims == (target_dim(scores["r"]),):
            codes, names = pd.factorize(np.asarray(scores[key].values, object))
            return np.array([*map(str, names), ""], object)[codes]  # missing is -1
    return None


def _roi_rank(name: str) -> tuple[Any, ...]:
    early = re.match(r"(?i)h?v(\d+)", name)
    chunks = re.split(r"(\d+)", name.lower())
    natural = tuple((int(c), "") if c.isdigit() else (0, c) for c in chunks)
    return (0, int(early[1]), natural) if early else (1, 0, natural)


def fold_means(scores: xr.Dataset) -> xr.DataArray:
    """Return the mean r over the valid targets of each ROI in each fold.

    Returns
    -------
    xarray.DataArray
        Dims ``(layer, fold, roi)``: how much the result depends on the split.
    """
    array = with_layers(scores)["r"]
    array = array.transpose("layer", "fold", target_dim(array))
    members = roi_members(scores)
    means = np.stack([nanmean(array.values[..., rows], -1) for rows in members.values()], -1)
    keep = {key: array[key] for key in ("layer", "backbone") if key in array.coords}
    return xr.DataArray(means, dims=("layer", "fold", "roi"), coords={**keep, "roi": list(members)})


def bootstrap_interval(
    values: np.ndarray, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval of the mean over targets: what other targets would have given.

    Targets are drawn with replacement, the same ones for every layer. Beyond `BOOTSTRAP_LIMIT`
    targets: mean +- 1.96 standard errors.

    Parameters
    ----------
    values : numpy.ndarray, shape (n_layers, n_targets)
        NaN = no score.
    seed, n_resamples : int

    Returns
    -------
    low, high : numpy.ndarray, shape (n_layers,)
        NaN with fewer than two valid targets.

    References
    ----------
    Efron, B. (1979). Bootstrap methods: another look at the jackknife. Annals of Statistics, 7.
    """
    values = np.asarray(values, float)
    values = values[:, ~np.isnan(values).all(0)]
    valid = ~np.isnan(values)
    count = valid.sum(1)
    low, high = np.full((2, len(values)), np.nan)
    enough = count >= 2
    if not enough.any():
        return low, high
    n_targets = values.shape[1]
    filled = np.where(valid, values, 0)
    if n_targets > BOOTSTRAP_LIMIT:
        mean = filled.sum(1) / np.maximum(count, 1)
        variance = (np.where(valid, values - mean[:, None], 0) ** 2).sum(1)
        margin = 1.96 * np.sqrt(variance / np.maximum(count - 1, 1) / np.maximum(count, 1))
        return np.where(enough, mean - margin, np.nan), np.where(enough, mean + margin, np.nan)
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, n_resamples, 100):
        drawn = rng.integers(0, n_targets, (min(100, n_resamples - start), n_targets))
        times = np.stack([np.bincount(row, minlength=n_targets) for row in drawn]).astype(float)
        n_drawn = times @ valid.T
        means.append(
            np.divide(
                times @ filled.T, n_drawn, where=n_drawn > 0, out=np.full(n_drawn.shape, np.nan)
            )
        )
    quantiles = np.nanquantile(np.concatenate(means)[:, enough], [0.025, 0.975], axis=0)
    low[enough], high[enough] = quantiles
    return low, high


def roi_table(scores: xr.Dataset, seed: int = 0) -> pd.DataFrame:
    """Return one row per layer and ROI: means over valid targets, counts, spread.

    Parameters
    ----------
    scores : xarray.Dataset
        See `check_scores`.
    seed : int
        Of the bootstrap over targets.

    Returns
    -------
    pandas.DataFrame
        Columns layer, backbone, roi; n, n_valid (targets, and those with a score); r (mean over
        valid targets of the mean over folds), r_low, r_high (`bootstrap_interval`), fold_sd (SD
        over folds of the ROI's mean); and with a ceiling r_normalized (mean over the
        n_normalized targets that have one) and n_above_ceiling (those whose r_normalized
        exceeds 1). A ROI without valid targets keeps its rows, with n_valid = 0 and r = NaN.

    Examples
    --------
    >>> r = xr.DataArray([[[0.1, 0.3, np.nan]], [[0.5, 0.7, np.nan]]],
    ...                  dims=("layer", "fold", "unit"), coords={"layer": ["a", "b"]})
    >>> roi_table(xr.Dataset({"r": r, "r2": r**2}))[["layer", "roi", "n", "n_valid", "r"]]
      layer  roi  n  n_valid    r
    0     a  all  3        2  0.2
    1     b  all  3        2  0.6
    """
    scores = with_layers(scores)
    means = target_means(scores).values
    spread = fold_means(scores)
    normalized = target_means(scores, "r_normalized").values if "r_normalized" in scores else None
    rows = []
    for roi, members in roi_members(scores).items():
        values = means[:, members]
        low, high = bootstrap_interval(values, derive_seed(seed, "bootstrap", roi))
        folds = spread.sel(roi=roi).values
        for index, layer in enumerate(scores["layer"].values):
            row: dict[str, Any] = {
                "layer": str(layer),
                "backbone": str(scores["backbone"].values[index]),
                "roi": roi,
                "n": len(members),
                "n_valid": int((~np.isnan(values[index])).sum()),
                "r": nanmean(values[index], 0).item(),
                "r_low": low[index],
                "r_high": high[index],
                "fold_sd": _sd(folds[index]),
            }
            if normalized is not None:
                ratio = normalized[index, members]
                row["r_normalized"] = nanmean(ratio, 0).item()
                row["n_normalized"] = int((~np.isnan(ratio)).sum())
                row["n_above_ceiling"] = int((ratio > 1).sum())
            rows.append(row)
    table = pd.DataFrame(rows)
    return table.sort_values(
        "layer", key=lambda c: c.map(_order(scores)), kind="stable", ignore_index=True
    )


def layer_groups(scores: xr.Dataset) -> dict[str, list[int]]:
    """Return the layer indices of each network, in order.

    The same network trained and untrained counts as two, told apart by their weights; that a
    network is untrained is always said.
    """
    scores = with_layers(scores)
    names = [str(name) for name in scores["backbone"].values]
    weights = [""] * len(names)
    if "weights" in scores.coords:
        weights = [str(value) for value in scores["weights"].values]
    variants: dict[str, set[str]] = {}
    for name, kind in zip(names, weights, strict=True):
        variants.setdefault(name, set()).add(kind)
    groups: dict[str, list[int]] = {}
    for index, (name, kind) in enumerate(zip(names, weights, strict=True)):
        # Of a weights file, the name says enough here; the table of networks has the path.
        told = len(variants[name]) > 1 or kind.startswith(UNTRAINED)
        label = f"{name} ({kind.rsplit('/', 1)[-1]})" if told else name
        groups.setdefault(label, []).append(index)
    return groups


def short_layers(layers: Sequence[str], backbone: str) -> list[str]:
    """Return layer names without the network's name in front.

    Examples
    --------
    >>> short_layers(["timm:vit/blocks.1", "timm:vit/blocks.2"], "timm:vit")
    ['blocks.1', 'blocks.2']
    >>> short_layers(["untrained/blocks.1", "untrained/blocks.2"], "timm:vit")
    ['blocks.1', 'blocks.2']
    """
    layers = [str(layer) for layer in layers]
    common = backbone if all(layer.startswith(backbone) for layer in layers) else ""
    if not common and len(layers) > 1:
        common = re.sub(r"[^/:|]*$", "", os.path.commonprefix(layers))
    shortened = [layer[len(common) :].lstrip("/:| ") for layer in layers]
    return shortened if all(shortened) else layers


def _order(scores: xr.Dataset) -> dict[str, int]:
    return {str(layer): index for index, layer in enumerate(scores["layer"].values)}


def _sd(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def best_layers(table: pd.DataFrame) -> pd.DataFrame:
    """Return the row of `roi_table` with the highest r for each ROI, ROIs in their order.

    A ROI without valid targets keeps one row; its layer is "".
    """
    rows = []
    for _, group in table.groupby("roi", sort=False):
        if group["r"].notna().any():
            rows.append(group.loc[group["r"].idxmax()])
        else:
            rows.append(group.iloc[0].copy())
            rows[-1][["layer", "backbone"]] = ""
    return pd.DataFrame(rows).reset_index(drop=True)


def exclusions(scores: xr.Dataset) -> dict[str, int]:
    """Return how many targets have no score, and why as far as the scores say.

    Returns
    -------
    dict
        n_targets, n_scored, n_excluded (no score in any layer and fold), n_partial (a score in
        some folds only), n_without_ceiling (scored, but without r_normalized); n_constant and
        n_missing, which may overlap, where the scores' attrs speak of as many excluded targets.
    """
    scores = with_layers(scores)
    dim = target_dim(scores["r"])
    missing = np.isnan(scores["r"].transpose("layer", "fold", dim).values)
    excluded = missing.all((0, 1))
    counts = {
        "n_targets": len(excluded),
        "n_scored": int((~excluded).sum()),
        "n_excluded": int(excluded.sum()),
        "n_partial": int((missing.any((0, 1)) & ~excluded).sum()),
    }
    if "r_normalized" in scores:
        without = np.isnan(scores["r_normalized"].transpose("layer", "fold", dim).values)
        counts["n_without_ceiling"] = int((without.all((0, 1)) & ~excluded).sum())
    # Reasons belong to these targets only while none were selected or masked since.
    if scores.attrs.get("n_excluded") == counts["n_excluded"]:
        known = [key for key in ("n_constant", "n_missing") if key in scores.attrs]
        counts |= {key: int(scores.attrs[key]) for key in known}
    return counts
