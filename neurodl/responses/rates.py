"""Firing rates: smoothing, peristimulus time histograms, tuning curves; presentations as runs."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import scipy.ndimage
import scipy.stats
import xarray as xr

from neurodl.errors import SchemaError, UnknownNameError, did_you_mean
from neurodl.io.timeseries import run_rows
from neurodl.schema import check_responses, sample_dim, target_coords, target_dim

REACH = 4.0  # standard deviations of a Gaussian that are used
COUNTS = "spikes"
ROOTS = ("sqrt", "anscombe")


def smooth(responses: xr.DataArray, sd: float, *, causal: bool = False) -> xr.DataArray:
    """Smooth over time with a Gaussian, within each presentation or run.

    Parameters
    ----------
    responses : xarray.DataArray
        Dims ``(presentation | stimulus, time, target)`` or ``(time, target)``, evenly sampled.
    sd : float
        Standard deviation of the Gaussian [s].
    causal : bool
        Whether only the bin itself and those before it count: half a Gaussian. What happens then
        never shows before it does, but late.

    Returns
    -------
    xarray.DataArray
        Same shape and units, float32. At the ends the weights of what is there add up to 1.

    Raises
    ------
    SchemaError
        There is no time, or it is not evenly sampled.

    Examples
    --------
    >>> binned = xr.DataArray(
    ...     np.array([[[0.0], [1.0], [0.0]]], "float32"), dims=("presentation", "time", "unit"),
    ...     coords={"stimulus": ("presentation", ["a"]), "time": [0.0, 0.1, 0.2]},
    ...     attrs={"units": "spikes", "bin_width": 0.1})
    >>> [round(float(one), 2) for one in smooth(binned, 0.05, causal=True).values.ravel()]
    [0.0, 0.88, 0.12]
    """
    check_responses(responses)
    if "time" not in responses.dims or "repeat" in responses.dims:
        raise SchemaError(f"smooth needs a dim 'time', but got dims {tuple(responses.dims)}.")
    if not (np.isfinite(sd) and sd > 0):
        raise ValueError(f"`sd` must be above 0 s, but got {sd}.")
    width = float(responses.attrs["bin_width" if "bin_width" in responses.attrs else "tr"])
    n_side = int(np.ceil(REACH * sd / width))
    lags = np.arange(-n_side, n_side + 1) * width
    kernel = np.exp(-0.5 * (lags / sd) ** 2)
    if causal:
        kernel[lags < 0] = 0
    timed = sample_dim(responses) == "time"
    parts = run_rows(responses) if timed else {"": slice(None)}
    values = np.empty(responses.shape, np.float32)
    for rows in parts.values():
        times = responses["time"].values[rows] if timed else responses["time"].values
        steps = np.diff(times)
        if len(steps) and np.abs(steps - width).max() > 0.01 * width:
            raise SchemaError(
                f"coord 'time' is not sampled every {width:g} s: it steps by {steps.min():g} to "
                f"{steps.max():g} s."
            )
        axis = 0 if timed else 1
        whole = scipy.ndimage.convolve1d(np.ones(len(times)), kernel, mode="constant")
        smoothed = scipy.ndimage.convolve1d(
            responses.values[rows].astype(np.float64), kernel, axis=axis, mode="constant"
        )
        values[rows] = smoothed / (whole[:, None])
    return responses.copy(data=values).assign_attrs(smoothed=float(sd))


def stabilize_variance(responses: xr.DataArray, method: str = "sqrt") -> xr.DataArray:
    """Return counts on a scale on which Poisson noise is about the same at all rates.

    For models with squared errors, such as ridge regression.

    Parameters
    ----------
    responses : xarray.DataArray
        Counts or rates, not below 0.
    method : {"sqrt", "anscombe"}
        The square root; or 2 sqrt(count + 3/8), whose noise has variance 1 from about 4 spikes on.

    Raises
    ------
    SchemaError
        There are negative values.

    References
    ----------
    Anscombe (1948), The transformation of Poisson, binomial and negative-binomial data, Biometrika
    35.

    Examples
    --------
    >>> counts = xr.DataArray(
    ...     np.array([[4.0], [9.0]], "float32"), dims=("stimulus", "unit"),
    ...     coords={"stimulus": ["a", "b"]}, attrs={"units": "spikes"})
    >>> stabilize_variance(counts).values.ravel().tolist()
    [2.0, 3.0]
    """
    check_responses(responses)
    if method not in ROOTS:
        raise UnknownNameError(f"`method` must be one of {ROOTS}. {did_you_mean(method, ROOTS)}")
    if (responses.values < 0).any():
        raise SchemaError(
            f"{int((responses.values < 0).sum())} values are below 0: only counts and rates have "
            "noise that grows with them."
        )
    root = np.sqrt if method == "sqrt" else lambda values: 2 * np.sqrt(values + 3 / 8)
    units = f"{method} {responses.attrs['units']}"
    return responses.copy(data=root(responses.values)).assign_attrs(units=units)


def psth(
    binned: xr.DataArray, by: str = "stimulus", *, sd: float | None = None, confidence: float = 0.95
) -> xr.Dataset:
    """Average responses over presentations: peristimulus time histograms.

    Parameters
    ----------
    binned : xarray.DataArray
        Dims ``(presentation, time, target)``, of `bin_spikes` with a bin width.
    by : str
        The coord of presentations that tells conditions apart.
    sd : float, optional
        Smooth each presentation with a Gaussian first [s].
    confidence : float
        Of the interval of the mean, by Student's t over presentations.

    Returns
    -------
    xarray.Dataset
        rate, low and high, dims ``(by, time, target)``, counts in spikes / s; coord
        n_presentations of each condition. The interval is NaN where there is one presentation.

    Raises
    ------
    SchemaError, UnknownNameError
        Responses have no time, or no such coord.

    Examples
    --------
    >>> counts = xr.DataArray(
    ...     np.array([[[1.0]], [[3.0]]], "float32"), dims=("presentation", "time", "unit"),
    ...     coords={"stimulus": ("presentation", ["a", "a"]), "time": [0.0]},
    ...     attrs={"units": "spikes", "bin_width": 0.1})
    >>> psth(counts)["rate"].values.ravel().tolist()
    [20.0]
    """
    if binned.ndim != 3 or "time" not in binned.dims:
        raise SchemaError(
            f"psth needs dims (presentation, time, target), but got {tuple(binned.dims)}: say "
            "bin_width in bin_spikes. tuning_curve is for one value per presentation."
        )
    check_responses(binned)
    return _averages(smooth(binned, sd) if sd else binned, by, _labels(binned, by), confidence)


def tuning_curve(
    responses: xr.DataArray,
    by: str,
    *,
    n_bins: int | None = None,
    period: float | None = None,
    confidence: float = 0.95,
) -> xr.Dataset:
    """Average responses over presentations of the same value of a variable.

    Parameters
    ----------
    responses : xarray.DataArray
        Dims ``(presentation | stimulus, target)``.
    by : str
        The coord of the variable, such as "orientation".
    n_bins : int, optional
        Pool a continuous variable in so many bins of equal width; by default each value is kept.
    period : float, optional
        Of a circular variable: with `n_bins`, bins divide it, the first around 0.
    confidence : float
        See `psth`.

    Returns
    -------
    xarray.Dataset
        rate, low and high, dims ``(by, target)``, counts in spikes / s; the coord `by` has the
        values, or the centres of bins that hold any. Coord n_presentations.

    Raises
    ------
    SchemaError, UnknownNameError
        There is no such coord, or it is no number where it should be.

    Examples
    --------
    >>> counts = xr.DataArray(
    ...     np.array([[2.0], [4.0], [9.0]], "float32"), dims=("presentation", "unit"),
    ...     coords={"stimulus": ("presentation", ["a", "a", "b"]),
    ...             "contrast": ("presentation", [0.5, 0.5, 1.0])},
    ...     attrs={"units": "spikes", "window": [0.0, 0.5]})
    >>> tuning_curve(counts, "contrast")["rate"].values.ravel().tolist()
    [6.0, 18.0]
    """
    check_responses(responses)
    if responses.ndim != 2 or sample_dim(responses) == "time":
        raise SchemaError(
            f"tuning_curve needs dims (presentation, target), but got {tuple(responses.dims)}."
        )
    labels = _labels(responses, by)
    if n_bins is None and period is not None:
        raise ValueError("`period` tells how to bin: give n_bins as well.")
    if n_bins is not None:
        labels = _binned(labels, by, n_bins, period)
    return _averages(responses, by, labels, confidence)


def as_runs(binned: xr.DataArray) -> xr.DataArray:
    """Return presentations one after the other as a time series, each of them a run.

    So models of time series, with delays or sequences, take them, and folds keep them whole.

    Parameters
    ----------
    binned : xarray.DataArray
        Dims ``(presentation | stimulus, time, target)``.

    Returns
    -------
    xarray.DataArray
        Dims ``(time, target)``, without a copy where that can be. Coord run (the number of the
        presentation), stimulus and the others of presentations for each row; time begins anew in
        each run [s]. A run that presentations had is called block.

    Examples
    --------
    >>> binned = xr.DataArray(
    ...     np.arange(4, dtype="float32").reshape(2, 2, 1), dims=("presentation", "time", "unit"),
    ...     coords={"stimulus": ("presentation", ["a", "b"]), "time": [0.0, 0.1]},
    ...     attrs={"units": "spikes", "bin_width": 0.1})
    >>> series = as_runs(binned)
    >>> series["run"].values.tolist(), series["stimulus"].values.tolist()
    (['0', '0', '1', '1'], ['a', 'a', 'b', 'b'])
    """
    check_responses(binned)
    if binned.ndim != 3 or binned.dims[1] != "time":
        raise SchemaError(
            f"as_runs needs dims (presentation, time, target), but got {tuple(binned.dims)}."
        )
    samples, _, target = map(str, binned.dims)
    n, n_times, n_targets = binned.shape
    coords: dict[Hashable, Any] = {}
    for name, coord in binned.coords.items():
        new = "block" if name == "run" else name
        if coord.dims == (samples,):
            coords[new] = ("time", np.repeat(coord.values, n_times))
        elif coord.dims == (samples, "time"):
            coords[new] = ("time", coord.values.ravel())
        elif coord.dims == ("time",):
            coords[new] = ("time", np.tile(coord.values, n))
        elif coord.dims == (target,):
            coords[new] = coord.variable
    coords["run"] = ("time", np.repeat(np.arange(n).astype(str), n_times))
    values = binned.values.reshape(n * n_times, n_targets)
    return check_responses(xr.DataArray(values, coords, ("time", target), attrs=binned.attrs))


def _labels(responses: xr.DataArray, by: str) -> np.ndarray:
    """Return the condition of each presentation."""
    samples = responses.dims[0]
    there = [str(name) for name, one in responses.coords.items() if one.dims == (samples,)]
    if by not in there:
        raise UnknownNameError(
            f"The responses have no coord {by!r} of presentations. {did_you_mean(by, there)}"
        )
    return responses[by].values


def _binned(labels: np.ndarray, by: str, n_bins: int, period: float | None) -> np.ndarray:
    """Return the centre of the bin that each value is in."""
    if not np.issubdtype(labels.dtype, np.number):
        raise SchemaError(f"Bins are of numbers, but {by!r} has dtype {labels.dtype}.")
    if n_bins < 1:
        raise ValueError(f"`n_bins` must be at least 1, but got {n_bins}.")
    if period is not None:
        width = period / n_bins
        return np.rint(labels % period / width) % n_bins * width
    low, high = np.nanmin(labels), np.nanmax(labels)
    width = (high - low) / n_bins or 1.0
    place = np.clip(np.floor((labels - low) / width), 0, n_bins - 1)
    return low + (place + 0.5) * width


def _averages(
    responses: xr.DataArray, by: str, labels: np.ndarray, confidence: float
) -> xr.Dataset:
    """Return means over presentations by label, with intervals."""
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, but got {confidence}.")
    codes, values = pd.factorize(labels, sort=True)
    counts = np.bincount(codes[codes >= 0], minlength=len(values))
    shape = (len(values), *responses.shape[1:])
    mean, half = np.empty(shape), np.empty(shape)
    for code, n in enumerate(counts):
        some = responses.values[codes == code].astype(np.float64)
        mean[code] = some.mean(0)
        spread = some.std(0, ddof=1) if n > 1 else np.full(shape[1:], np.nan)
        quantile = scipy.stats.t.ppf((1 + confidence) / 2, n - 1) if n > 1 else np.nan
        half[code] = quantile * spread / np.sqrt(n)
    seconds, units = _seconds(responses)
    dims = (by, *map(str, responses.dims[1:]))
    coords: dict[str, Any] = {**target_coords(responses), by: values}
    coords["n_presentations"] = (by, counts)
    if "time" in responses.dims:
        coords["time"] = responses["time"].values
    found = {"rate": mean, "low": mean - half, "high": mean + half}
    kept = ("bin_width", "subject", "window", "align")
    attrs = {key: responses.attrs[key] for key in kept if key in responses.attrs}
    attrs |= {"units": units, "confidence": float(confidence), "target": target_dim(responses)}
    return xr.Dataset(
        {name: (dims, (one / seconds).astype(np.float32)) for name, one in found.items()},
        coords,
        attrs,
    )


def _seconds(responses: xr.DataArray) -> tuple[float, str]:
    """Return what counts are divided by to be rates [s], and the units of the rates."""
    units = str(responses.attrs["units"])
    if units != COUNTS:
        return 1.0, units
    if "time" in responses.dims:
        return float(responses.attrs["bin_width"]), "spikes / s"
    if "window" in responses.attrs:
        start, stop = responses.attrs["window"]
        return float(stop - start), "spikes / s"
    return 1.0, units
