"""Noise ceilings: how reliable responses are, in variance units, and scores in units of them.

All estimators give the same quantity, signal / total variance, so that any of them can stand
under any score: the score says which root is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr

from neurodl.errors import PairingError, SchemaError, UnknownNameError, did_you_mean, listed
from neurodl.responses import average_repeats, stack_repeats
from neurodl.schema import check_responses, sample_ids, target_coords, target_dim

MIN_RELIABILITY = 0.01
POWERS = {"r": 0.5, "r2": 1.0}  # of the reliability, that a perfect model reaches in each metric
UNITS = "reliability (variance)"
N_HALVES = 20
Estimator = Callable[[np.ndarray, str, int], np.ndarray]


def noise_ceiling(
    responses: xr.DataArray | Sequence[xr.DataArray],
    method: str = "ncsnr",
    *,
    n_averaged: str = "all",
    seed: int = 0,
) -> xr.DataArray:
    """Return the reliability of responses averaged over repeats: signal / total variance.

    The largest correlation that any model can reach is the root of it; see `normalize_score`.

    Parameters
    ----------
    responses : xarray.DataArray, or sequence of them
        Dims ``(stimulus, repeat, target)``, padded with NaN where a stimulus has fewer repeats,
        or ``(presentation, target)`` with repeated stimuli. For "inter_subject", the responses of
        several subjects to the same stimuli, whose targets correspond (parcels, vertices).
    method : str
        "ncsnr": noise variance within stimuli, signal variance what is left of the variance of
        their means (analysis of variance; the Natural Scenes Dataset's noise ceiling) [1]_.
        "split_half": correlation of the means of random halves, stepped up by Spearman-Brown [2]_.
        "leave_one_out": correlation of each repeat with the mean of the others (the oracle of
        neural predictivity [3]_), turned into the signal-to-noise ratio that it implies.
        "signal_power": signal power over the variance of the mean response; scores over its root
        are CC_norm [4]_.
        "fev": the fraction of explainable variance, from the variance of single trials [5]_;
        r2 over it is FEVE.
        "inter_subject": mean correlation of pairs of subjects, stepped up by Spearman-Brown [6]_:
        what subjects share, which a model of one of them can exceed.
    n_averaged : {"all", "one"}
        Reliability of the mean over all repeats (or subjects), or of one.
    seed : int
        For the random halves.

    Returns
    -------
    xarray.DataArray, dims (target,)
        In [0, 1]; NaN where a target has missing or constant responses.

    Raises
    ------
    SchemaError
        There are no repeats, or too few stimuli have all of them.
    PairingError
        Subjects saw other stimuli.

    References
    ----------
    .. [1] Allen et al. (2022), A massive 7T fMRI dataset, Nature Neuroscience 25.
    .. [2] Spearman (1910) and Brown (1910), British Journal of Psychology 3.
    .. [3] Walker et al. (2019), Inception loops, Nature Neuroscience 22.
    .. [4] Sahani & Linden (2003), NeurIPS 15; Schoppe et al. (2016), Measuring the performance of
       neural models, Frontiers in Computational Neuroscience 10.
    .. [5] Cadena et al. (2019), PLoS Computational Biology 15.
    .. [6] Hasson et al. (2004), Science 303; Nastase et al. (2019), SCAN 14.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> signal = rng.standard_normal((2000, 1, 40))  # one third of the variance of a repeat
    >>> responses = xr.DataArray(
    ...     signal + 2**0.5 * rng.standard_normal((2000, 4, 40)),
    ...     dims=("stimulus", "repeat", "unit"),
    ...     coords={"stimulus": [f"s{i}" for i in range(2000)]}, attrs={"units": "a.u."})
    >>> [round(float(noise_ceiling(responses, name).mean()), 2) for name in ("ncsnr", "fev")]
    [0.67, 0.67]
    """
    if method not in METHODS:
        raise UnknownNameError(
            f"`method` must be one of {list(METHODS)}, but got {method!r}. "
            f"{did_you_mean(str(method), METHODS)}"
        )
    if n_averaged not in ("all", "one"):
        raise UnknownNameError(f"`n_averaged` must be 'all' or 'one', but got {n_averaged!r}.")
    if isinstance(responses, xr.DataArray) == (method == "inter_subject"):
        raise SchemaError(
            "method='inter_subject' needs a list of responses, one per subject; the other methods "
            "need the responses of one subject."
        )
    if isinstance(responses, xr.DataArray):
        stacked = _stacked(responses)
    else:
        stacked = _subjects(list(responses))
    values = stacked.values.astype(np.float64)
    there = np.isfinite(values).any((0, 1))
    low, high = (
        reduce(np.where(np.isfinite(values), values, fill), (0, 1))
        for reduce, fill in ((np.min, np.inf), (np.max, -np.inf))
    )
    used = there & (high > low)
    reliability = np.full(values.shape[2], np.nan)
    if used.any():
        found = METHODS[method](values[..., used], n_averaged, seed)
        reliability[used] = np.clip(found, 0, 1)
    target = target_dim(stacked)
    coords = target_coords(stacked)
    return xr.DataArray(
        reliability.astype(np.float32),
        dims=(target,),
        coords=coords,
        attrs={"units": UNITS, "method": method, "n_averaged": n_averaged},
    )


def normalize_score(
    score: xr.DataArray, ceiling: xr.DataArray, metric: str | None = None
) -> xr.DataArray:
    """Return a score in units of what the noise of the responses allows.

    r is divided by the root of the ceiling, r2 by the ceiling itself. 1 is a model that explains
    all that repeats; estimates scatter, and nothing is clipped. r2 over the ceiling is the
    fraction of explainable variance explained (FEVE), r over the root of the signal power CC_norm.

    Parameters
    ----------
    score : xarray.DataArray
        With the dim of the targets, such as ``scores["r"]``.
    ceiling : xarray.DataArray, dims (target,)
        Of `noise_ceiling`: reliability, in units of variance.
    metric : {"r", "r2"}, optional
        By default the name of the score.

    Returns
    -------
    xarray.DataArray
        As `score`; NaN where the ceiling is below 0.01.

    Raises
    ------
    SchemaError
        The ceiling is no reliability in [0, 1], or has other targets.
    UnknownNameError
        It is not known how the metric depends on noise.

    Examples
    --------
    >>> score = xr.DataArray([0.4, 0.3], dims="voxel", name="r")
    >>> ceiling = xr.DataArray([0.64, 0.0], dims="voxel")
    >>> normalize_score(score, ceiling).values.round(2).tolist()
    [0.5, nan]
    """
    name = str(score.name) if metric is None else metric
    if name not in POWERS:
        raise UnknownNameError(
            f"`metric` must be one of {list(POWERS)}, since a ceiling bounds no other, but got "
            f"{name!r}."
        )
    reliability = checked_ceiling(ceiling, score)
    usable = np.where(reliability >= MIN_RELIABILITY, reliability, np.nan)
    target = target_dim(score)
    ratio = score / xr.DataArray(usable ** POWERS[name], dims=(target,)).astype(score.dtype)
    return ratio.rename(f"{name}_normalized")


def checked_ceiling(ceiling: xr.DataArray, score: xr.DataArray) -> np.ndarray:
    """Return the values (n_targets,) of a ceiling that fits a score.

    Raises
    ------
    SchemaError
        See `normalize_score`.
    """
    target = target_dim(score)
    if ceiling.dims != (target,) or ceiling.sizes[target] != score.sizes[target]:
        raise SchemaError(
            f"`ceiling` must have dims ({target!r},) and {score.sizes[target]} values, but has "
            f"{dict(ceiling.sizes)}."
        )
    units = str(ceiling.attrs.get("units", UNITS))
    if not units.startswith("reliability"):
        raise SchemaError(
            f"`ceiling` is in units of {units!r}, but must be a reliability in variance units: "
            "square a ceiling of correlations."
        )
    reliability = np.asarray(ceiling.values, np.float32)
    if np.nanmin(reliability) < 0 or np.nanmax(reliability) > 1:
        raise SchemaError("`ceiling` is a reliability in variance units and must lie in [0, 1].")
    return reliability


def _stacked(responses: xr.DataArray) -> xr.DataArray:
    """Return repeats in a dim of their own, (stimulus, repeat, target)."""
    check_responses(responses)
    stacked = responses if "repeat" in responses.dims else stack_repeats(responses)
    if stacked.ndim != 3:
        raise SchemaError(
            f"noise_ceiling needs one value per presentation, got dims {stacked.dims}."
        )
    if stacked.sizes["repeat"] < 2:
        raise SchemaError("A noise ceiling needs stimuli that were repeated; each was shown once.")
    return stacked


def _subjects(responses: list[xr.DataArray]) -> xr.DataArray:
    """Return z-scored responses of subjects, who stand in the place of repeats."""
    if len(responses) < 2:
        raise SchemaError("method='inter_subject' needs the responses of at least 2 subjects.")
    means = []
    for array in responses:
        check_responses(array)
        means.append(average_repeats(array) if "repeat" in array.dims else array)
    ids, target = sample_ids(means[0]), target_dim(means[0])
    values = []
    for number, array in enumerate(means):
        own = sample_ids(array)
        missing = ids.symmetric_difference(own)
        if len(missing) or len(own) != len(ids):
            raise PairingError(
                f"Subject {number} has other stimuli than subject 0: {len(missing)} are only with "
                f"one of them ({listed(missing, 3)}). Select those that all saw."
            )
        if target_dim(array) != target or array.sizes[target] != means[0].sizes[target]:
            raise SchemaError(
                f"Subject {number} has {array.sizes[target_dim(array)]} {target_dim(array)}s, but "
                f"subject 0 {means[0].sizes[target]} {target}s: the targets must correspond."
            )
        rows = array.values[own.get_indexer(ids)].astype(np.float64)
        spread = rows.std(0)
        values.append((rows - rows.mean(0)) / np.where(spread > 0, spread, np.nan))
    return xr.DataArray(
        np.stack(values, 1),
        dims=(str(means[0].dims[0]), "repeat", target),
        coords=target_coords(means[0]),
    )


def _of(ratio: np.ndarray, n_averaged: str, n_repeats: int) -> np.ndarray:
    """Return the reliability of one or all repeats, from signal / noise of one."""
    return ratio / (ratio + (1.0 if n_averaged == "one" else 1 / n_repeats))


def _complete(values: np.ndarray) -> np.ndarray:
    """Return the stimuli with all repeats, for estimators that need them."""
    complete = np.isfinite(values).all((1, 2))
    if complete.sum() < 3:
        raise SchemaError(
            "This method needs stimuli with all repeats, and there are fewer than 3; use 'ncsnr'."
        )
    return values[complete]


def _correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return r of each target over stimuli, of two (stimulus, target)."""
    one, other = one - one.mean(0), other - other.mean(0)
    norms = np.sqrt((one**2).sum(0) * (other**2).sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (one * other).sum(0) / norms


def _ncsnr(values: np.ndarray, n_averaged: str, seed: int) -> np.ndarray:
    """Return signal / (signal + noise / n), unequal numbers of repeats weighed as they are."""
    count = np.isfinite(values).sum(1)
    mean = np.nansum(values, 1) / np.where(count, count, np.nan)
    squares = np.nansum((values - mean[:, None]) ** 2, 1)
    noise = squares.sum(0) / np.maximum(count - 1, 0).sum(0)
    noise_of_mean = noise * np.nanmean(np.where(count, 1 / np.maximum(count, 1), np.nan), 0)
    signal = np.maximum(np.nanvar(mean, 0, ddof=1) - noise_of_mean, 0)
    remaining = noise if n_averaged == "one" else noise_of_mean
    return signal / (signal + remaining)


def _split_half(values: np.ndarray, n_averaged: str, seed: int) -> np.ndarray:
    """Return the mean over random halves, stepped up to all repeats or down to one."""
    rng = np.random.default_rng(seed)
    values = _complete(values)
    n_repeats = values.shape[1]
    half = n_repeats // 2
    found = []
    for _ in range(N_HALVES):
        order = rng.permutation(n_repeats)
        halves = values[:, order[:half]].mean(1), values[:, order[half : 2 * half]].mean(1)
        found.append(_correlations(*halves))
    r = np.clip(np.mean(found, 0), 0, 1)
    factor = (1 if n_averaged == "one" else n_repeats) / half
    return factor * r / (1 + (factor - 1) * r)


def _leave_one_out(values: np.ndarray, n_averaged: str, seed: int) -> np.ndarray:
    """Return what the correlation of repeats with the mean of the others implies.

    With the signal-to-noise ratio x of one repeat and m others it is expected to be
    x / sqrt((x + 1) (x + 1 / m)), which is solved for x.
    """
    values = _complete(values)
    n_repeats = values.shape[1]
    total, m = values.sum(1), n_repeats - 1
    found = [_correlations(values[:, k], (total - values[:, k]) / m) for k in range(n_repeats)]
    squared = np.clip(np.mean(found, 0), 0, 1 - 1e-9) ** 2
    linear, constant = squared * (1 + 1 / m), squared / m
    ratio = (linear + np.sqrt(linear**2 + 4 * (1 - squared) * constant)) / (2 * (1 - squared))
    return _of(ratio, n_averaged, n_repeats)


def _signal_power(values: np.ndarray, n_averaged: str, seed: int) -> np.ndarray:
    """Return signal power over the variance of the mean response, or of single trials."""
    values = _complete(values)
    n_repeats = values.shape[1]
    of_mean = values.mean(1).var(0, ddof=1)
    of_trials = values.var(0, ddof=1).mean(0)
    power = np.maximum((n_repeats * of_mean - of_trials) / (n_repeats - 1), 0)
    return power / (of_trials if n_averaged == "one" else of_mean)


def _fev(values: np.ndarray, n_averaged: str, seed: int) -> np.ndarray:
    """Return the share of the variance of single trials that is not noise, stepped up."""
    count = np.isfinite(values).sum(1)
    mean = np.nansum(values, 1) / np.where(count, count, np.nan)
    noise = np.nansum((values - mean[:, None]) ** 2, (0, 1)) / np.maximum(count - 1, 0).sum(0)
    total = np.nanvar(values, (0, 1), ddof=1)
    # Repeats of a stimulus share its signal, so that over few stimuli the variance is too small.
    n_trials = count.sum(0)
    shared = ((count**2).sum(0) / n_trials - 1) / (n_trials - 1)
    signal = np.maximum((total - noise) / (1 - shared), 0)
    one = signal / (signal + noise)
    if n_averaged == "one":
        return one
    n_repeats = 1 / np.nanmean(np.where(count, 1 / np.maximum(count, 1), np.nan), 0)
    return n_repeats * one / (1 + (n_repeats - 1) * one)


def _inter_subject(values: np.ndarray, n_averaged: str, seed: int) -> np.ndarray:
    """Return the mean correlation of pairs of subjects, stepped up to all of them."""
    values = _complete(values)
    n_subjects = values.shape[1]
    # The mean over pairs of z-scored subjects, from the variance of their mean.
    of_mean = values.mean(1).var(0) / values.var(0).mean(0)
    r = np.clip((n_subjects * of_mean - 1) / (n_subjects - 1), 0, 1)
    factor = 1 if n_averaged == "one" else n_subjects
    return factor * r / (1 + (factor - 1) * r)


METHODS: dict[str, Estimator] = {
    "ncsnr": _ncsnr,
    "split_half": _split_half,
    "leave_one_out": _leave_one_out,
    "signal_power": _signal_power,
    "fev": _fev,
    "inter_subject": _inter_subject,
}
