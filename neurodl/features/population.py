"""Features in time of presentations: what was shown, other neurons, and their past by filters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.errors import PairingError, SchemaError, UnknownNameError, did_you_mean, listed
from neurodl.io.timeseries import run_rows
from neurodl.schema import check_features, check_responses, sample_dim, target_dim

POPULATION = "population"  # in place of a backbone
SPACINGS = ("log", "linear")
NO_NETWORK = ("pool", "reduce", "weights", "weights_sha256", "transform")


def population_features(responses: xr.DataArray) -> xr.DataArray:
    """Return responses of some targets as features, to predict other targets from.

    Parameters
    ----------
    responses : xarray.DataArray
        Dims ``(time, target)``, or ``(stimulus, target)``; of presentations with time bins, take
        `as_runs`. What is to be predicted must not be among the targets: `select` both.

    Returns
    -------
    xarray.DataArray
        The same values, dims ``(time | stimulus, feature)``; coord feature has the targets' names.

    Raises
    ------
    SchemaError
        Responses have other dims, or missing values.

    Examples
    --------
    >>> responses = xr.DataArray(
    ...     np.ones((2, 1), "float32"), dims=("time", "unit"),
    ...     coords={"time": [0.0, 0.1], "unit": ["a"]}, attrs={"units": "spikes", "bin_width": 0.1})
    >>> population_features(responses).feature.values.tolist()
    ['a']
    """
    check_responses(responses)
    if responses.ndim != 2 or sample_dim(responses) == "presentation":
        raise SchemaError(
            f"population_features needs dims (time, target) or (stimulus, target), but got "
            f"{tuple(responses.dims)}: see as_runs for presentations with time bins."
        )
    names = _names(responses)
    attrs = {"layer": f"{len(names)} {target_dim(responses)}s"}
    return _features(responses, responses.values, {"feature": names}, attrs)


def shown_features(
    features: xr.DataArray, to: xr.DataArray, *, duration: float | None = None
) -> xr.DataArray:
    """Return features of stimuli in each time bin of their presentations, while they are shown.

    For models of how responses unfold: a `SequenceEncoder`, or ``RidgeCV(delays=...)``.

    Parameters
    ----------
    features : xarray.DataArray
        Dims ``(stimulus, feature)``, such as a layer of `extract_features`.
    to : xarray.DataArray
        Dims ``(time, target)`` with coords run and stimulus and times from the onset, of `as_runs`.
    duration : float, optional
        How long a stimulus was shown [s]. By default the coord duration of `to`, else until the end
        of the presentation.

    Returns
    -------
    xarray.DataArray
        float32, dims ``(time, feature)``, rows as of `to`. 0 before the onset, which a causal
        model must not know of, and after the end.

    Raises
    ------
    PairingError
        A stimulus has no features; the ids are named.
    SchemaError
        `to` is not of `as_runs`.

    Examples
    --------
    >>> from neurodl.responses import as_runs
    >>> features = xr.DataArray(np.ones((1, 1), "float32"), dims=("stimulus", "feature"),
    ...                         coords={"stimulus": ["a"]})
    >>> binned = xr.DataArray(
    ...     np.zeros((1, 4, 1), "float32"), dims=("presentation", "time", "unit"),
    ...     coords={"stimulus": ("presentation", ["a"]), "time": [-0.1, 0.0, 0.1, 0.2]},
    ...     attrs={"units": "spikes", "bin_width": 0.1})
    >>> shown_features(features, as_runs(binned), duration=0.2).values.ravel().tolist()
    [0.0, 1.0, 1.0, 0.0]
    """
    check_features(features)
    if features.dims != ("stimulus", "feature"):
        raise SchemaError(
            f"shown_features needs dims (stimulus, feature), but got {tuple(features.dims)}: align "
            "is for features in time."
        )
    check_responses(to)
    missing = [name for name in ("stimulus", "run") if name not in to.coords]
    if sample_dim(to) != "time" or missing:
        raise SchemaError(
            f"`to` must be presentations as runs (as_runs), with coords stimulus and run, but has "
            f"dims {tuple(to.dims)}" + (f" and no {missing[0]!r}." if missing else ".")
        )
    ids = to["stimulus"].values.astype(str)
    rows = pd.Index(features["stimulus"].values).get_indexer(ids)
    if (rows < 0).any():
        unknown = np.unique(ids[rows < 0])
        raise PairingError(f"{len(unknown)} stimuli have no features: {listed(unknown)}.")
    times, ends = to["time"].values, np.inf
    if duration is not None:
        ends = duration
    elif "duration" in to.coords:
        ends = np.nan_to_num(to["duration"].values, nan=np.inf)
    shown = (times >= -1e-9) & (times < ends - 1e-9)
    values = np.where(shown[:, None], features.values[rows], 0).astype(np.float32)
    coords = {"feature": features["feature"].variable} if "feature" in features.coords else {}
    return _features(to, values, coords, {"backbone": "features", **features.attrs})


def raised_cosines(
    n_basis: int,
    duration: float,
    bin_width: float,
    *,
    spacing: str = "log",
    offset: float | None = None,
) -> np.ndarray:
    """Return raised-cosine bumps over the past: a smooth basis of temporal filters.

    Parameters
    ----------
    n_basis : int
    duration : float
        How far back they reach [s].
    bin_width : float
        Of the samples [s].
    spacing : {"log", "linear"}
        Bumps spaced by the logarithm of the lag are narrow for the recent past and wide for what
        is long ago [1]_.
    offset : float, optional
        Added to the lag before the logarithm [s]: the larger, the more even. By default the bin
        width.

    Returns
    -------
    numpy.ndarray, shape (n_lags, n_basis)
        At lags of 1 to n_lags bins; each bump has its peak at 1. Inside they add up to a constant.

    Raises
    ------
    ValueError
        There are more bumps than lags, or a number is out of range.

    References
    ----------
    .. [1] Pillow et al. (2008), Spatio-temporal correlations and visual signalling in a complete
       neuronal population, Nature 454.

    Examples
    --------
    >>> raised_cosines(3, 0.05, 0.01, spacing="linear").round(2).tolist()[:3]
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]
    """
    if spacing not in SPACINGS:
        raise UnknownNameError(
            f"`spacing` must be one of {SPACINGS}. {did_you_mean(spacing, SPACINGS)}"
        )
    if not (duration > 0 and bin_width > 0):
        raise ValueError(
            f"`duration` and `bin_width` must be above 0 s, but got {duration} and {bin_width}."
        )
    n_lags = round(duration / bin_width)
    if not 1 <= n_basis <= n_lags:
        raise ValueError(
            f"`n_basis` must be from 1 to {n_lags}, the lags of {bin_width:g} s in {duration:g} s, "
            f"but got {n_basis}."
        )
    offset = bin_width if offset is None else offset
    if offset <= 0:
        raise ValueError(f"`offset` must be above 0 s, but got {offset}.")
    lags = np.arange(1, n_lags + 1) * bin_width
    place = lags if spacing == "linear" else np.log(lags + offset)
    if n_basis == 1:
        return np.ones((n_lags, 1))
    centres = np.linspace(place[0], place[-1], n_basis)
    distance = (place[:, None] - centres) * np.pi / (centres[1] - centres[0])
    return 0.5 * (np.cos(distance.clip(-np.pi, np.pi)) + 1)


def history_features(
    responses: xr.DataArray,
    *,
    duration: float,
    n_basis: int = 6,
    spacing: str = "log",
    offset: float | None = None,
) -> xr.DataArray:
    """Return the past of each target through a basis of filters: history and coupling terms.

    Features of a time bin are of strictly earlier bins of the same run. Predict the same units
    from them, and a unit's own past is its history filter, that of the others are coupling filters.

    Parameters
    ----------
    responses : xarray.DataArray
        Dims ``(time, target)``; of presentations, take `as_runs`.
    duration, n_basis, spacing, offset
        See `raised_cosines`.

    Returns
    -------
    xarray.DataArray
        float32, dims ``(time, feature)``, feature ``target:bump``; coords source and basis. The
        past before the start of a run is 0.

    Raises
    ------
    SchemaError, ValueError
        Responses are no time series, or the basis is impossible.

    References
    ----------
    Pillow et al. (2008), Nature 454; Truccolo et al. (2005), Journal of Neurophysiology 93.

    Examples
    --------
    >>> spikes = xr.DataArray(
    ...     np.array([[1.0], [0.0], [0.0]], "float32"), dims=("time", "unit"),
    ...     coords={"time": [0.0, 0.1, 0.2], "unit": ["a"]},
    ...     attrs={"units": "spikes", "bin_width": 0.1})
    >>> history_features(spikes, duration=0.2, n_basis=2).values.tolist()
    [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """
    if sample_dim(responses) != "time" or responses.ndim != 2:
        raise SchemaError(
            f"history_features needs dims (time, target), but got {tuple(responses.dims)}: see "
            "as_runs for presentations with time bins."
        )
    width = float(responses.attrs["bin_width" if "bin_width" in responses.attrs else "tr"])
    basis = raised_cosines(n_basis, duration, width, spacing=spacing, offset=offset)
    n_sources = responses.shape[1]
    values = np.zeros((len(responses), n_sources, n_basis), np.float32)
    for rows in run_rows(responses).values():
        past = responses.values[rows]
        filtered = np.zeros((len(rows), n_sources, n_basis), np.float32)
        for lag, weights in enumerate(basis.astype(np.float32), 1):
            filtered[lag:] += past[:-lag, :, None] * weights
        values[rows] = filtered
    names = _names(responses)
    coords: dict[str, Any] = {
        "feature": [f"{name}:{bump}" for name in names for bump in range(n_basis)],
        "source": ("feature", np.repeat(names, n_basis)),
        "basis": ("feature", np.tile(np.arange(n_basis), n_sources)),
    }
    attrs: dict[str, Any] = {
        "layer": f"past {duration:g} s of {n_sources}",
        "bin_width": width,
        "duration": float(duration),
        "spacing": spacing,
        "offset": float(width if offset is None else offset),
        "extent": float(duration),
    }
    return _features(responses, values.reshape(len(responses), -1), coords, attrs)


def history_filters(weights: Any, features: xr.DataArray) -> xr.DataArray:
    """Return the filters that weights on `history_features` stand for.

    Parameters
    ----------
    weights : array-like, shape (n_targets, n_features)
        Such as ``coef_`` of a model that was fitted to the features.
    features : xarray.DataArray
        Of `history_features`.

    Returns
    -------
    xarray.DataArray
        Dims ``(target, source, lag)``: what a spike of the source adds, lag [s] later, to the log
        rate of the target (or to its response, of a linear model).

    Examples
    --------
    >>> spikes = xr.DataArray(
    ...     np.ones((3, 1), "float32"), dims=("time", "unit"),
    ...     coords={"time": [0.0, 0.1, 0.2]}, attrs={"units": "spikes", "bin_width": 0.1})
    >>> features = history_features(spikes, duration=0.2, n_basis=2)
    >>> history_filters([[3.0, -1.0]], features).values.tolist()
    [[[3.0, -1.0]]]
    """
    needed = ("duration", "spacing", "offset", "bin_width")
    if "basis" not in features.coords or not set(needed) <= set(features.attrs):
        raise SchemaError("These are no features of history_features, whose basis is known.")
    weights = np.atleast_2d(np.asarray(weights, np.float64))
    if weights.shape[1] != features.shape[1]:
        raise SchemaError(
            f"The weights are of {weights.shape[1]} features, but there are {features.shape[1]}."
        )
    n_basis = int(features["basis"].values.max()) + 1
    duration, spacing, offset, width = (features.attrs[name] for name in needed)
    basis = raised_cosines(n_basis, duration, width, spacing=spacing, offset=offset)
    filters = weights.reshape(len(weights), -1, n_basis) @ basis.T
    return xr.DataArray(
        filters,
        dims=("target", "source", "lag"),
        coords={
            "source": features["source"].values[::n_basis],
            "lag": np.arange(1, len(basis) + 1) * width,
        },
    )


def _names(responses: xr.DataArray) -> np.ndarray:
    """Return the names of targets, or their numbers."""
    target = target_dim(responses)
    if target in responses.coords:
        return responses[target].values.astype(str)
    return np.arange(responses.sizes[target]).astype(str)


def _features(
    responses: xr.DataArray, values: np.ndarray, coords: dict[str, Any], attrs: dict[str, Any]
) -> xr.DataArray:
    samples = str(responses.dims[0])
    rows = {str(name): one for name, one in responses.coords.items() if one.dims == (samples,)}
    attrs = {"backbone": POPULATION, **dict.fromkeys(NO_NETWORK, "none"), **attrs}
    array = xr.DataArray(values, {**rows, **coords}, (samples, "feature"), attrs=attrs)
    check_features(array)
    return array
