"""Noise ceilings: how reliable responses are, in variance units, from their repeats."""

from __future__ import annotations

import numpy as np
import xarray as xr

from neurodl.errors import SchemaError, UnknownNameError
from neurodl.responses import stack_repeats
from neurodl.schema import check_responses, target_dim

MIN_RELIABILITY = 0.01


def noise_ceiling(
    responses: xr.DataArray, method: str = "ncsnr", *, n_averaged: str = "all", seed: int = 0
) -> xr.DataArray:
    """Return the reliability of responses averaged over repeats: signal / total variance.

    The largest correlation that any model can reach is the root of it; a score in r is
    therefore divided by the root, a score in r2 by the reliability itself.

    Parameters
    ----------
    responses : xarray.DataArray
        Dims ``(stimulus, repeat, target)``, padded with NaN where a stimulus has fewer repeats,
        or ``(presentation, target)`` with repeated stimuli.
    method : {"ncsnr", "split_half"}
        "ncsnr" is the analysis of variance of the Natural Scenes Dataset: noise variance within
        stimuli, signal variance what is left of the variance of their means. "split_half"
        correlates the means of random halves and steps up by Spearman-Brown.
    n_averaged : {"all", "one"}
        Reliability of the mean over all repeats, or of one presentation.
    seed : int
        For the random halves.

    Returns
    -------
    xarray.DataArray, dims (target,)
        In [0, 1]; NaN where a target has missing or constant responses.

    Raises
    ------
    SchemaError
        There are no repeats.

    References
    ----------
    Allen et al. (2022), A massive 7T fMRI dataset, Nature Neuroscience 25.
    Spearman (1910) and Brown (1910), British Journal of Psychology 3.
    """
    check_responses(responses)
    stacked = responses if "repeat" in responses.dims else stack_repeats(responses)
    if stacked.ndim != 3:
        raise SchemaError(
            f"noise_ceiling needs one value per presentation, got dims {stacked.dims}."
        )
    if stacked.sizes["repeat"] < 2:
        raise SchemaError("A noise ceiling needs stimuli that were repeated; each was shown once.")
    values = stacked.values.astype(np.float64)
    methods = {"ncsnr": _ncsnr, "split_half": _split_half}
    if method not in methods:
        raise UnknownNameError(f"`method` must be one of {list(methods)}, but got {method!r}.")
    if n_averaged not in ("all", "one"):
        raise UnknownNameError(f"`n_averaged` must be 'all' or 'one', but got {n_averaged!r}.")
    there = np.isfinite(values).any((0, 1))
    flat = np.where(there, np.nanmax(np.where(there, values, 0), (0, 1)), 0) == np.where(
        there, np.nanmin(np.where(there, values, 0), (0, 1)), 0
    )
    reliability = np.full(values.shape[2], np.nan)
    used = there & ~flat
    reliability[used] = methods[method](values[..., used], n_averaged, seed)
    target = target_dim(stacked)
    coords = {k: v for k, v in stacked.coords.items() if v.dims == (target,)}
    return xr.DataArray(
        reliability.astype(np.float32),
        dims=(target,),
        coords=coords,
        attrs={"units": "reliability (variance)", "method": method, "n_averaged": n_averaged},
    )


def _ncsnr(values: np.ndarray, n_averaged: str, seed: int) -> np.ndarray:
    """Return signal / (signal + noise / n), unequal numbers of repeats weighed as they are."""
    count = np.isfinite(values).sum(1)
    mean = np.nansum(values, 1) / np.where(count, count, np.nan)
    squares = np.nansum((values - mean[:, None]) ** 2, 1)
    noise = squares.sum(0) / np.maximum(count - 1, 0).sum(0)
    noise_of_mean = noise * np.where(count, 1 / np.maximum(count, 1), np.nan).mean(0)
    signal = np.maximum(np.nanvar(mean, 0, ddof=1) - noise_of_mean, 0)
    remaining = noise if n_averaged == "one" else noise_of_mean
    return signal / (signal + remaining)


def _split_half(values: np.ndarray, n_averaged: str, seed: int, n_splits: int = 20) -> np.ndarray:
    """Return the mean over random halves, stepped up to all repeats or down to one."""
    rng = np.random.default_rng(seed)
    n_repeats = values.shape[1]
    complete = np.isfinite(values).all((1, 2))
    if complete.sum() < 3:
        raise SchemaError("method='split_half' needs stimuli with all repeats; use 'ncsnr'.")
    values = values[complete]
    half = n_repeats // 2
    correlations = []
    for _ in range(n_splits):
        order = rng.permutation(n_repeats)
        first = values[:, order[:half]].mean(1)
        second = values[:, order[half : 2 * half]].mean(1)
        first, second = first - first.mean(0), second - second.mean(0)
        norms = np.sqrt((first**2).sum(0) * (second**2).sum(0))
        correlations.append((first * second).sum(0) / norms)
    r = np.clip(np.mean(correlations, 0), 0, 1)
    factor = (1 if n_averaged == "one" else n_repeats) / half
    return factor * r / (1 + (factor - 1) * r)
