"""Intervals and tests across stimuli and across subjects, of scores that were already made."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import product
from typing import Any

import numpy as np
import xarray as xr

from neurodl.errors import PairingError, SchemaError, listed
from neurodl.runtime import derive_seed
from neurodl.schema import check_scores, sample_dim, target_dim
from neurodl.scores.crossval import SEVERAL
from neurodl.scores.paired import (
    AT_ONCE,
    LEVELS,
    random_swaps,
    resampled_r,
    roi_masks,
    swapped_difference,
)
from neurodl.scores.stats import TIES, false_discovery_rate

MAX_EXACT = 12  # subjects, whose signs are all tried


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
    scores: xr.Dataset, *, n_resamples: int = 1000, blocks: Any = None, seed: int = 0
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
        by_roi[0, layer] = [_mean(means[mask]) for mask in masks.values()]
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
        found = swapped_difference(parts[0], parts[1], observed, swaps)
        true[columns], drawn = found[0], found[1:]
        known = np.isfinite(found).all(0)
        size = np.abs(drawn) >= np.abs(found[0]) - TIES
        at_least[columns] = size.sum(0)
        if known.any():
            largest = np.maximum(largest, np.abs(drawn[:, known]).max(1))
        for number, mask in enumerate(masks.values()):
            sums[:, number] += drawn[:, mask[columns] & known].sum(1)
    known = np.isfinite(true)
    counted = np.array([(mask & known).sum() for mask in masks.values()])
    means = np.array([_mean(true[mask]) for mask in masks.values()])
    with np.errstate(invalid="ignore", divide="ignore"):
        reached = (np.abs(sums / counted) >= np.abs(means) - TIES).sum(0)
    p = np.where(known, (at_least + 1) / (n_permutations + 1), np.nan)
    above = n_permutations - np.searchsorted(np.sort(largest), np.abs(true) - TIES)
    low, high = _difference_interval(first, second, units, masks, n_permutations, seed)
    coords = {k: v for k, v in one.coords.items() if v.dims == (target,)}
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
    first: Tested, second: Tested, units: np.ndarray, masks: Any, n: int, seed: int
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


def group_level(
    scores: Sequence[xr.Dataset],
    *,
    by: str = "roi",
    metric: str = "r",
    n_resamples: int = 10_000,
    seed: int = 0,
) -> xr.Dataset:
    """Return means over subjects, with what other subjects would have given.

    Each subject counts once, with its mean over folds. The interval resamples subjects; the test
    gives random signs to whole subjects (all of them up to 12 subjects), one-sided, so that what
    predicts one subject's brain by chance does not count for the others.

    Parameters
    ----------
    scores : sequence of xarray.Dataset
        One per subject, of the same layers.
    by : {"roi", "target"}
        Means over the targets of each region, which subjects share by name; or target by target,
        in a common space.
    metric : str
        The variable, such as "r" or "r_normalized".
    n_resamples : int
    seed : int

    Returns
    -------
    xarray.Dataset, dims (layer, roi_name) or (layer, target)
        ``mean``, ``low`` and ``high`` (95 %, bootstrap over subjects), ``sd``, ``n_subjects``,
        ``p`` and ``p_fwe`` (the largest mean over all regions or targets and layers, family-wise),
        ``q``; and ``subject_mean`` (subject, layer, ...).

    Raises
    ------
    SchemaError, PairingError
        There are fewer than 2 subjects, or they do not correspond.

    References
    ----------
    Nichols & Holmes (2002), Nonparametric permutation tests for functional neuroimaging, HBM 15.
    """
    if len(scores) < 2:
        raise SchemaError("group_level needs the scores of at least 2 subjects.")
    for one in scores:
        check_scores(one)
        if metric not in one:
            raise SchemaError(f"The scores have no {metric!r}; they hold {listed(one.data_vars)}.")
    layers = _shared_layers(scores)
    if by == "roi":
        values, names = _by_roi(scores, metric, layers)
        dim = "roi_name"
        coords: dict[Hashable, Any] = {"roi_name": names}
    elif by == "target":
        dim = target_dim(scores[0][metric])
        values, coords = _by_target(scores, metric, layers, dim)
    else:
        raise SchemaError(f"`by` must be 'roi' or 'target', but got {by!r}.")
    mean, low, high = _over_subjects(values, n_resamples, derive_seed(seed, "subjects"))
    p, p_fwe = _sign_test(values, n_resamples, derive_seed(seed, "signs"))
    dims = ("layer", dim)
    known = np.isfinite(values)
    found = {
        "mean": mean,
        "low": low,
        "high": high,
        "sd": _spread(values),
        "n_subjects": known.sum(0),
        "p": p,
        "p_fwe": p_fwe,
        "q": np.stack([false_discovery_rate(row) for row in p]),
    }
    subjects = [str(one.attrs.get("subject", n + 1)) for n, one in enumerate(scores)]
    return xr.Dataset(
        {name: (dims, array) for name, array in found.items()}
        | {"subject_mean": (("subject", *dims), values)},
        {"layer": layers, "subject": subjects, **coords},
        {"metric": metric, "n_resamples": n_resamples, "seed": seed},
    )


def _shared_layers(scores: Sequence[xr.Dataset]) -> list[str]:
    layers = scores[0]["layer"].values.tolist()
    for number, one in enumerate(scores):
        if one["layer"].values.tolist() != layers:
            raise PairingError(
                f"Subject {number} has the layers {listed(one['layer'].values)}, but subject 0 "
                f"{listed(layers)}: score all subjects with the same."
            )
    return layers


def _by_roi(
    scores: Sequence[xr.Dataset], metric: str, layers: list[str]
) -> tuple[np.ndarray, list[str]]:
    """Return means over targets (subject, layer, roi), NaN where a subject lacks the region."""
    tables = []
    for one in scores:
        means = one[metric].mean("fold").values
        names = one["roi"].values if "roi" in one.coords else None
        masks = roi_masks(names, means.shape[1])
        tables.append({roi: [_mean(row[mask]) for row in means] for roi, mask in masks.items()})
    rois = list(dict.fromkeys(roi for table in tables for roi in table))
    missing = [np.nan] * len(layers)
    values = [[table.get(roi, missing) for roi in rois] for table in tables]
    return np.swapaxes(np.array(values, float), 1, 2), rois


def _by_target(
    scores: Sequence[xr.Dataset], metric: str, layers: list[str], target: str
) -> tuple[np.ndarray, dict[Hashable, Any]]:
    first = scores[0]
    for number, one in enumerate(scores):
        if one.sizes.get(target) != first.sizes[target]:
            raise PairingError(
                f"Subject {number} has {one.sizes.get(target, 0)} {target}s, but subject 0 "
                f"{first.sizes[target]}: by='target' needs a common space; use by='roi'."
            )
    coords = {k: v for k, v in first.coords.items() if v.dims == (target,)}
    return np.stack([one[metric].mean("fold").values for one in scores]), coords


def _over_subjects(values: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, ...]:
    """Return mean, low and high over subjects, who are drawn with replacement."""
    rng = np.random.default_rng(seed)
    shape = values.shape[1:]
    flat = values.reshape(len(values), -1)
    known = np.isfinite(flat)
    filled = np.where(known, flat, 0)
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=n)
    found = np.full((3, flat.shape[1]), np.nan)
    for start in range(0, flat.shape[1], AT_ONCE):
        part = slice(start, start + AT_ONCE)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (counts @ filled[:, part]) / (counts @ known[:, part])
            found[0, part] = filled[:, part].sum(0) / known[:, part].sum(0)
        found[1:, part] = np.nanpercentile(means, LEVELS, 0)
    return tuple(one.reshape(shape) for one in found)


def _sign_test(values: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return p and family-wise p of means over subjects, under random signs of subjects."""
    shape, n_subjects = values.shape[1:], len(values)
    flat = values.reshape(n_subjects, -1)
    known = np.isfinite(flat)
    filled = np.where(known, flat, 0)
    size = np.maximum(known.sum(0), 1)
    if n_subjects <= MAX_EXACT:
        signs = np.array(list(product([1.0, -1.0], repeat=n_subjects)))
    else:
        rng = np.random.default_rng(seed)
        drawn = rng.choice([1.0, -1.0], (n, n_subjects))
        signs = np.vstack([np.ones(n_subjects), drawn])
    true = filled.sum(0) / size
    at_least, largest = np.zeros(flat.shape[1]), np.full(len(signs), -np.inf)
    for start in range(0, flat.shape[1], AT_ONCE):
        part = slice(start, start + AT_ONCE)
        means = signs @ filled[:, part] / size[part]
        at_least[part] = (means >= true[part] - 1e-12).sum(0)
        largest = np.maximum(largest, means.max(1))
    above = len(signs) - np.searchsorted(np.sort(largest), true - 1e-12)
    there = known.any(0)
    p, p_fwe = (
        np.where(there, one / len(signs), np.nan).reshape(shape) for one in (at_least, above)
    )
    return p, p_fwe


def _spread(values: np.ndarray) -> np.ndarray:
    """Return the standard deviation over subjects, NaN where fewer than 2 are known."""
    known = np.isfinite(values)
    count = known.sum(0)
    mean = np.where(known, values, 0).sum(0) / np.maximum(count, 1)
    squares = np.where(known, (values - mean) ** 2, 0).sum(0)
    return np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
