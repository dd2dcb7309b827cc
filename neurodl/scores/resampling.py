"""Intervals and tests across stimuli and across subjects, of scores that were already made."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from neurodl.errors import PairingError, SchemaError, listed
from neurodl.runtime import derive_seed, resolve_device
from neurodl.schema import sample_dim, target_coords, target_dim
from neurodl.scores.crossval import SEVERAL
from neurodl.scores.paired import (
    AT_ONCE,
    LEVELS,
    mean_of,
    random_swaps,
    resampled_r,
    roi_masks,
    swapped_difference,
)
from neurodl.scores.stats import TIES, false_discovery_rate


class Tested:
    """The test rows of kept predictions, fold by fold."""

    def __init__(self, scores: xr.Dataset) -> None:
        if "predicted" not in scores:
            raise SchemaError(
                "The scores hold no predictions: make them with cross_validate(..., "
                "keep_predictions=True)."
            )
        self.scores = scores
        self.target = target_dim(scores["r"])
        self.observed = np.asarray(scores["observed"].values)
        fold = scores["tested_in"].values
        self.rows = [np.flatnonzero(fold == number) for number in range(scores.sizes["fold"])]
        if (fold == SEVERAL).any():
            raise SchemaError(
                "Some rows were tested in several folds, and only the last of their predictions "
                "are kept: use folds that test each row at most once."
            )
        samples = str(scores["observed"].dims[0])
        self.timed = sample_dim(scores["observed"]) == "time"
        self.ids = scores["stimulus"].values.astype(str) if "stimulus" in scores.coords else None
        self.runs = scores["run"].values.astype(str) if "run" in scores.coords else None
        self.n_rows = scores.sizes[samples]

    def units(self, blocks: Any = None) -> np.ndarray:
        """Return what is drawn or exchanged as a whole: the stimulus, run or block of each row.

        Raises
        ------
        SchemaError
            The rows are a time series without runs, and no blocks were given.
        """
        if isinstance(blocks, str):
            if blocks not in self.scores.coords:
                raise SchemaError(
                    f"The scores have no coord {blocks!r} of their rows to take as blocks."
                )
            return np.asarray(self.scores[blocks].values.astype(str))
        if blocks is not None:
            given = np.asarray(blocks).astype(str)
            if given.shape != (self.n_rows,):
                raise SchemaError(
                    f"`blocks` must have a label for each of {self.n_rows} rows, but has shape "
                    f"{given.shape}."
                )
            return given
        if self.timed:
            if self.runs is None:
                raise SchemaError(
                    "The samples of a time series depend on each other: say which belong "
                    "together, blocks='run' or one label per row."
                )
            return self.runs
        return self.ids if self.ids is not None else np.arange(self.n_rows).astype(str)


def bootstrap(
    scores: xr.Dataset,
    *,
    n_resamples: int = 1000,
    blocks: Any = None,
    seed: int = 0,
    device: Any = "auto",
) -> xr.Dataset:
    """Add intervals of r that other stimuli would have given.

    The stimuli of each test fold are drawn with replacement, as often as there are; the
    presentations of one stimulus together. The models stay as they were fitted.

    Parameters
    ----------
    scores : xarray.Dataset
        Of ``cross_validate(..., keep_predictions=True)``.
    n_resamples : int
    blocks : str or array-like, optional
        What is drawn as a whole: a coord of the rows, or a label for each. By default stimuli,
        and runs of time series.
    seed : int
    device : str
        See `resolve_device`.

    Returns
    -------
    xarray.Dataset
        `scores` with ``r_low`` and ``r_high`` (layer, target), the 95 % interval of r averaged
        over folds, and ``roi_r``, ``roi_low`` and ``roi_high`` (layer, roi_name), of its mean over
        targets.

    Raises
    ------
    SchemaError
        There are no predictions, or it is not known what belongs together.

    References
    ----------
    Efron & Tibshirani (1993), An Introduction to the Bootstrap.
    """
    chosen = resolve_device(device)
    tested = Tested(scores)
    units = tested.units(blocks)
    names = scores["roi"].values if "roi" in scores.coords else None
    masks = roi_masks(names, scores.sizes[tested.target])
    n_layers, n_targets = scores.sizes["layer"], scores.sizes[tested.target]
    bounds = np.full((2, n_layers, n_targets), np.nan)
    by_roi = np.full((3, n_layers, len(masks)), np.nan)
    for layer in range(n_layers):
        predicted = scores["predicted"].values[layer]
        sums = np.zeros((n_resamples, len(masks)))
        counted = np.zeros(len(masks))
        for start in range(0, n_targets, AT_ONCE):
            columns = slice(start, start + AT_ONCE)
            r = resampled_r(
                [predicted[rows][:, columns] for rows in tested.rows],
                [tested.observed[rows][:, columns] for rows in tested.rows],
                [units[rows] for rows in tested.rows],
                n_resamples,
                seed,
                chosen,
            )
            known = np.isfinite(r).all(0)
            bounds[:, layer, np.flatnonzero(known) + start] = np.percentile(r[:, known], LEVELS, 0)
            for number, mask in enumerate(masks.values()):
                own = mask[columns] & known
                sums[:, number] += r[:, own].sum(1)
                counted[number] += own.sum()
        with np.errstate(invalid="ignore", divide="ignore"):
            by_roi[1:, layer] = np.percentile(sums / counted, LEVELS, 0)
        means = scores["r"].values[layer].mean(0)
        by_roi[0, layer] = [mean_of(means[mask]) for mask in masks.values()]
    low, high = bounds
    return scores.assign_coords(roi_name=list(masks)).assign(
        r_low=(("layer", tested.target), low),
        r_high=(("layer", tested.target), high),
        roi_r=(("layer", "roi_name"), by_roi[0]),
        roi_low=(("layer", "roi_name"), by_roi[1]),
        roi_high=(("layer", "roi_name"), by_roi[2]),
    )


def difference_test(
    one: xr.Dataset,
    other: xr.Dataset,
    *,
    n_permutations: int = 1000,
    blocks: Any = None,
    seed: int = 0,
    device: Any = "auto",
) -> xr.Dataset:
    """Return whether one model predicts the same test rows better than another.

    If the models were alike, it would not matter which of them made a prediction: for a random
    half of the stimuli, the predictions of the two are exchanged, and the difference of r is
    taken again. Two-sided. It is a test of the models as they were fitted; other training rows
    would have made others.

    Parameters
    ----------
    one, other : xarray.Dataset
        Of ``cross_validate(..., keep_predictions=True)`` on the same responses and folds, of one
        layer each: ``scores.sel(layer=["layer3"])``.
    n_permutations : int
    blocks : str or array-like, optional
        What is exchanged as a whole; see `bootstrap`.
    seed : int
    device : str
        See `resolve_device`.

    Returns
    -------
    xarray.Dataset, dims (target,)
        ``difference`` of r, averaged over folds; ``p``, ``p_fwe`` (against the largest absolute
        difference of all targets), ``q`` and ``q_by``, see `permutation_test`; and with dims
        (roi_name,) ``roi_difference``, ``roi_p``, ``roi_low`` and ``roi_high``, of the mean over
        targets, with its 95 % interval from resampled stimuli.

    Raises
    ------
    SchemaError, PairingError
        The scores are not of the same rows, folds and targets, or hold no predictions.

    References
    ----------
    Good (2005), Permutation, Parametric and Bootstrap Tests of Hypotheses.
    """
    chosen = resolve_device(device)
    first, second = Tested(one), Tested(other)
    _check_same(first, second)
    units = first.units(blocks)
    target, n_targets = first.target, one.sizes[first.target]
    masks = roi_masks(one["roi"].values if "roi" in one.coords else None, n_targets)
    swaps = [
        random_swaps(units[rows], n_permutations, derive_seed(seed, "swaps", number))
        for number, rows in enumerate(first.rows)
    ]
    true = np.full(n_targets, np.nan)
    at_least = np.zeros(n_targets, int)
    largest = np.zeros(n_permutations)
    sums = np.zeros((n_permutations, len(masks)))
    for start in range(0, n_targets, AT_ONCE):
        columns = slice(start, min(start + AT_ONCE, n_targets))
        parts = [
            [tested.scores["predicted"].values[0][rows][:, columns] for rows in first.rows]
            for tested in (first, second)
        ]
        observed = [first.observed[rows][:, columns] for rows in first.rows]
        found = swapped_difference(parts[0], parts[1], observed, swaps, chosen)
        known = np.isfinite(found).all(0)
        true[columns], drawn = np.where(known, found[0], np.nan), found[1:]
        size = np.abs(drawn) >= np.abs(found[0]) - TIES
        at_least[columns] = size.sum(0)
        if known.any():
            largest = np.maximum(largest, np.abs(drawn[:, known]).max(1))
        for number, mask in enumerate(masks.values()):
            sums[:, number] += drawn[:, mask[columns] & known].sum(1)
    known = np.isfinite(true)
    counted = np.array([(mask & known).sum() for mask in masks.values()])
    means = np.array([mean_of(true[mask]) for mask in masks.values()])
    with np.errstate(invalid="ignore", divide="ignore"):
        reached = (np.abs(sums / counted) >= np.abs(means) - TIES).sum(0)
    p = np.where(known, (at_least + 1) / (n_permutations + 1), np.nan)
    above = n_permutations - np.searchsorted(np.sort(largest), np.abs(true) - TIES)
    low, high = _difference_interval(first, second, units, masks, n_permutations, seed, chosen)
    coords = target_coords(one)
    return xr.Dataset(
        {
            "difference": (target, true),
            "p": (target, p),
            "p_fwe": (target, np.where(known, (above + 1) / (n_permutations + 1), np.nan)),
            "q": (target, false_discovery_rate(p)),
            "q_by": (target, false_discovery_rate(p, any_dependence=True)),
            "roi_difference": ("roi_name", means),
            "roi_p": (
                "roi_name",
                np.where(counted > 0, (reached + 1) / (n_permutations + 1), np.nan),
            ),
            "roi_low": ("roi_name", low),
            "roi_high": ("roi_name", high),
        },
        coords | {"roi_name": list(masks)},
        {"n_permutations": n_permutations, "seed": seed},
    )


def _check_same(first: Tested, second: Tested) -> None:
    for tested in (first, second):
        if tested.scores.sizes["layer"] != 1:
            raise SchemaError(
                f"difference_test compares one layer with one, but got "
                f"{listed(tested.scores['layer'].values)}. Select: scores.sel(layer=[name])."
            )
    same = first.observed.shape == second.observed.shape and np.array_equal(
        first.observed, second.observed, equal_nan=True
    )
    folds = len(first.rows) == len(second.rows) and all(
        np.array_equal(a, b) for a, b in zip(first.rows, second.rows, strict=True)
    )
    if not (same and folds):
        raise PairingError(
            "The two scores are not of the same responses in the same folds: use the same "
            "responses, cv, groups and seed."
        )


def _difference_interval(
    first: Tested,
    second: Tested,
    units: np.ndarray,
    masks: Any,
    n: int,
    seed: int,
    device: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval (n_rois,) of mean differences, from resampled stimuli."""
    n_targets = first.scores.sizes[first.target]
    sums, counted = np.zeros((n, len(masks))), np.zeros((n, len(masks)))
    for start in range(0, n_targets, AT_ONCE):
        columns = slice(start, start + AT_ONCE)
        r = [
            resampled_r(
                [tested.scores["predicted"].values[0][rows][:, columns] for rows in first.rows],
                [first.observed[rows][:, columns] for rows in first.rows],
                [units[rows] for rows in first.rows],
                n,
                seed,
                device,
            )
            for tested in (first, second)
        ]
        difference = r[0] - r[1]
        known = np.isfinite(difference)
        difference = np.where(known, difference, 0)
        for number, mask in enumerate(masks.values()):
            sums[:, number] += difference[:, mask[columns]].sum(1)
            counted[:, number] += known[:, mask[columns]].sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = np.percentile(sums / counted, LEVELS, 0)
    return low, high
