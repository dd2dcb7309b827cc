"""Scores of several subjects: means, intervals and tests in which each subject counts once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import xarray as xr

from neurodl.errors import PairingError, SchemaError, listed
from neurodl.runtime import derive_seed
from neurodl.schema import TARGET_DIMS, check_scores, target_coords, target_dim
from neurodl.scores.paired import AT_ONCE, LEVELS, mean_of, roi_masks
from neurodl.scores.stats import false_discovery_rate

PLACES = ("i", "j", "k", "x", "y", "z", "hemisphere", "node", "label", *TARGET_DIMS)
MAX_EXACT = 12  # subjects, whose signs are all tried


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
        coords: dict[str, Any] = {"roi_name": names}
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
        tables.append({roi: [mean_of(row[mask]) for row in means] for roi, mask in masks.items()})
    rois = list(dict.fromkeys(roi for table in tables for roi in table))
    missing = [np.nan] * len(layers)
    values = [[table.get(roi, missing) for roi in rois] for table in tables]
    return np.swapaxes(np.array(values, float), 1, 2), rois


def _by_target(
    scores: Sequence[xr.Dataset], metric: str, layers: list[str], target: str
) -> tuple[np.ndarray, dict[str, Any]]:
    first = scores[0]
    for number, one in enumerate(scores):
        if one.sizes.get(target) != first.sizes[target]:
            raise PairingError(
                f"Subject {number} has {one.sizes.get(target, 0)} {target}s, but subject 0 "
                f"{first.sizes[target]}: by='target' needs a common space; use by='roi'."
            )
    coords: dict[str, Any] = dict(target_coords(first))
    for number, one in enumerate(scores):
        own = target_coords(one)
        other = [k for k in PLACES if k in coords and k in own and not own[k].equals(coords[k])]
        if other:
            raise PairingError(
                f"The {target}s of subject {number} are others than those of subject 0: they "
                f"differ in {listed(other)}. Bring them into a common space; or use by='roi'."
            )
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
        means[:, ~known[:, part].any(0)] = -np.inf
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
