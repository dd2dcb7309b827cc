"""Averaging and stacking repeats, z-scoring runs, and selecting by name."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.errors import NeurodlWarning, SchemaError, UnknownNameError, did_you_mean
from neurodl.io.timeseries import clean, constant, run_rows, trend_order
from neurodl.schema import check_responses, sample_dim, target_dim

COUNTED = ("n_constant", "n_missing")  # attrs that no longer hold once the array has changed


def average_repeats(responses: xr.DataArray) -> xr.DataArray:
    """Average the repeats of each stimulus.

    Parameters
    ----------
    responses : xarray.DataArray
        Dims ``(stimulus, repeat [, time], target)``, padded by NaN where a stimulus has fewer
        repeats, or ``(presentation [, time], target)`` with repeated stimulus ids.

    Returns
    -------
    xarray.DataArray
        Dims ``(stimulus [, time], target)``, float32, stimuli in order of first appearance. A
        missing value is left out of the mean; what is missing in every repeat is NaN. Coord
        n_repeats (stimulus): repeats with any value.

    Raises
    ------
    SchemaError
        The responses are a time series, which has no repeats.

    Examples
    --------
    >>> responses = xr.DataArray(
    ...     np.array([[1.0], [5.0], [3.0]]), dims=("presentation", "unit"),
    ...     coords={"stimulus": ("presentation", ["a", "b", "a"])}, attrs={"units": "spikes"})
    >>> average_repeats(responses).values.ravel()
    array([2., 5.], dtype=float32)
    """
    stacked = responses if "repeat" in responses.dims else stack_repeats(responses)
    check_responses(stacked)
    axis = stacked.get_axis_num("repeat")
    there = ~np.isnan(stacked.values)
    total = np.where(there, stacked.values, 0).sum(axis, dtype=np.float64)
    count = there.sum(axis)
    with np.errstate(invalid="ignore"):
        mean = (total / np.where(count, count, np.nan)).astype(np.float32)
    n_repeats = there.any(axis=tuple(range(2, there.ndim))).sum(1)
    template = stacked.isel(repeat=0, drop=True)
    averaged = template.copy(data=mean).assign_coords(n_repeats=("stimulus", n_repeats))
    averaged.attrs = _kept_attrs(responses)
    return check_responses(averaged)


def stack_repeats(responses: xr.DataArray) -> xr.DataArray:
    """Give the repeats of each stimulus a dim of their own.

    Parameters
    ----------
    responses : xarray.DataArray
        Dims ``(presentation [, time], target)``, or ``stimulus`` in place of ``presentation``.

    Returns
    -------
    xarray.DataArray
        Dims ``(stimulus, repeat [, time], target)``, float32, stimuli in order of first appearance
        and repeats in order of presentation, padded by NaN. Coord n_repeats (stimulus).

    Raises
    ------
    SchemaError
        The responses are a time series, or have a dim ``repeat`` already.
    """
    check_responses(responses)
    samples = sample_dim(responses)
    if samples == "time" or "repeat" in responses.dims:
        raise SchemaError(
            "Repeats are stacked from dims ('presentation', ..., target), but the responses have "
            f"dims {tuple(responses.dims)}. single_trial_betas turns a time series into "
            "presentations."
        )
    codes, ids = pd.factorize(responses["stimulus"].values.astype(object))
    repeat = pd.Series(codes).groupby(codes).cumcount().to_numpy()
    n_repeats = np.bincount(codes)
    shape = (len(ids), n_repeats.max(), *responses.shape[1:])
    values = np.full(shape, np.nan, np.float32)
    values[codes, repeat] = responses.values
    dims = ("stimulus", "repeat", *responses.dims[1:])
    coords: dict[Hashable, Any] = {"stimulus": ids.astype(str)}
    coords |= _coords_without(responses, samples)
    coords |= {"n_repeats": ("stimulus", n_repeats)}
    return xr.DataArray(values, dims=dims, coords=coords, attrs=_kept_attrs(responses))


def zscore_runs(responses: xr.DataArray, detrend: bool | int = 0) -> xr.DataArray:
    """Z-score each target in each run (standard deviation with n - 1 degrees of freedom).

    Parameters
    ----------
    responses : xarray.DataArray
        Dims ``(time | presentation | stimulus, target)``; coord run, else all are one run.
    detrend : int
        Order of the polynomial that is regressed out of each run first: 0 the mean, 1 a line, 2 a
        parabola.

    Returns
    -------
    xarray.DataArray
        Same shape, float32. A target that is constant in a run is NaN there, never 0 or infinite,
        and a `NeurodlWarning` says how many there are.
    """
    check_responses(responses)
    order = trend_order(detrend)
    if responses.ndim != 2:
        raise SchemaError(
            f"zscore_runs needs dims (sample, target), but got {tuple(responses.dims)}."
        )
    timed = sample_dim(responses) == "time"
    scored = responses.astype(np.float32)
    flat = np.zeros(responses.shape[1], bool)
    for rows in run_rows(responses).values():
        before = responses.values[rows]
        times = responses["time"].values[rows] if timed else None
        after = clean(before, trend=order, zscore=True, times=times)
        flat |= constant(before) | (np.isnan(after).all(0) & ~np.isnan(before).any(0))
        scored.values[rows] = after
    if flat.any():
        warnings.warn(
            f"{flat.sum()} of {len(flat)} {target_dim(responses)}s do not vary in some run; they "
            "are NaN there and will be excluded from scores.",
            NeurodlWarning,
            stacklevel=2,
        )
    units = str(responses.attrs["units"])
    scored.attrs = _kept_attrs(responses)
    scored.attrs["units"] = units if units.startswith("z-scored") else f"z-scored {units}"
    return scored


def select(responses: xr.DataArray, **names: str | Iterable[str]) -> xr.DataArray:
    """Return the part of the responses with these names, in its own order.

    Parameters
    ----------
    responses : xarray.DataArray
    **names
        One or several values of a coord: ``roi="V4"``, ``run=["1", "2"]``, ``stimulus=[...]``.

    Raises
    ------
    UnknownNameError
        There is no such coord, or no such value; near matches are named.

    Examples
    --------
    >>> responses = xr.DataArray(
    ...     np.zeros((1, 3), "float32"), dims=("stimulus", "unit"),
    ...     coords={"stimulus": ["a"], "roi": ("unit", ["V1", "V4", "V4"])})
    >>> select(responses, roi="V4").shape
    (1, 2)
    """
    for coord, wanted in names.items():
        labels = [wanted] if isinstance(wanted, str) else [str(label) for label in wanted]
        there = [str(name) for name, array in responses.coords.items() if array.ndim == 1]
        if coord not in there:
            raise UnknownNameError(
                f"The responses have no coord {coord!r}. {did_you_mean(coord, there)}"
            )
        values = responses[coord].values.astype(str)
        known = [value for value in dict.fromkeys(values.tolist()) if value]
        unknown = [label for label in labels if label not in known]
        if unknown:
            raise UnknownNameError(
                f"The coord {coord!r} has no value {unknown[0]!r}. "
                f"{did_you_mean(unknown[0], known)}"
            )
        rows = np.isin(values, labels)
        responses = responses.isel({responses[coord].dims[0]: rows})
    responses.attrs = _kept_attrs(responses)  # isel made a new array, with attrs of its own
    return responses


def _coords_without(responses: xr.DataArray, dim: str) -> dict[Hashable, xr.DataArray]:
    """Return the coords that do not lie along `dim`."""
    return {name: array for name, array in responses.coords.items() if dim not in array.dims}


def _kept_attrs(responses: xr.DataArray) -> dict[Hashable, Any]:
    return {name: value for name, value in responses.attrs.items() if name not in COUNTED}
