"""Features in the stimulus's time brought to the samples of responses: TRs or bins.

Each run is one sparse matrix of weights, (n_rows, n_samples), times its features: what a row may
see is what its weights are not zero for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import xarray as xr

from neurodl.errors import PairingError, SchemaError, UnknownNameError, did_you_mean, listed
from neurodl.features.design import HRF_LENGTH, HRFS
from neurodl.io.timeseries import run_rows
from neurodl.schema import check_features, check_responses, is_kernel, sample_dim

METHODS = ("mean", "lanczos")
LOBES = 3
HRF_STEP = 0.02
BLOCK = 1024
ROWS = 256
Hrf = str | Callable[[np.ndarray], np.ndarray]
log = logging.getLogger(__name__)


def align(
    features: xr.DataArray | Mapping[str, xr.DataArray],
    to: xr.DataArray,
    *,
    delays: Sequence[int] | None = None,
    hrf: Hrf | None = None,
    window: float | None = None,
    method: str = "mean",
    runs: Mapping[str, str] | None = None,
    lengths: str = "error",
    max_difference: int = 5,
    trim: tuple[int, int] = (0, 0),
    missing: str = "zero",
    slice_time_ref: float | None = None,
) -> xr.DataArray | dict[str, xr.DataArray]:
    """Bring features from the stimulus's time to the rows of responses, run by run.

    No row sees a stimulus that begins after the row's sample has ended, or another run.

    Parameters
    ----------
    features : xarray.DataArray or mapping of layer name to xarray.DataArray
        Dims ``(time, feature)``, where time [s] is the start of each frame or clip and the next
        one ends it; or dims ``(stimulus, feature)`` with coords onset [s] and duration [s]. A
        coord duration may be given with time, too. Coord run where there are several.
    to : xarray.DataArray
        Responses, dims ``(time, target)``, attr tr or bin_width [s].
    delays : sequence of int, optional
        A finite impulse response: the features so many samples ago, side by side. Without it,
        those of the sample itself; ``RidgeCV(delays=...)`` then delays rows without copies.
    hrf : {"glover", "spm"} or callable, optional
        Convolve with this haemodynamic response, exactly for features constant over each frame.
        A callable takes times [s], shape (n_times,), and returns the response per second of
        stimulus from 0 to 32 s; the named ones have integral 1. In place of the other filters.
    window : float, optional
        Average over so many seconds up to the end of the sample; by default over the sample.
    method : {"mean", "lanczos"}
        Average by overlap in time, or a Lanczos filter of 3 lobes that cuts off at the Nyquist
        frequency of the responses [1]_. The filter looks 3 samples ahead; what would be future
        is cut off, so that it is whole at delays of 3 and more.
    runs : mapping of str to str, optional
        The stimulus run of each run of the responses, where names differ or one was shown twice.
        By default the same name.
    lengths : {"error", "trim", "keep"}
        If a scan and its features in time end one sample or more apart: raise; drop rows after
        the end of the features, up to `max_difference` samples apart; or keep rows as without
        stimulus.
    max_difference : int
        For ``lengths="trim"``.
    trim : (int, int)
        How many first and last rows of each run to drop, once they are computed.
    missing : {"zero", "drop"}
        What a row without stimulus, at any of its delays, gets: zeros there, as the HRF has
        it, or it is dropped. Then say ``cross_validate(..., unpaired="drop")``.
    slice_time_ref : float, optional
        For `hrf`: when within a TR the volumes stand for, from 0 to 1. By default the attr
        slice_time_ref of the responses, else 0.

    Returns
    -------
    xarray.DataArray or dict of str to xarray.DataArray
        float32, dims ``(time, feature)``, with the coords in time of `to` and, with `delays`, the
        coord delay (feature). As `features`, one array or one per layer.

    Raises
    ------
    PairingError
        A run has no features, or their lengths differ.
    SchemaError
        Features or responses lack times.

    References
    ----------
    .. [1] Huth et al. (2016). Natural speech reveals the semantic maps that tile human cerebral
       cortex. Nature 532, 453-458.

    Examples
    --------
    >>> responses = xr.DataArray(
    ...     np.zeros((3, 1), "float32"), dims=("time", "voxel"),
    ...     coords={"time": [0.0, 2.0, 4.0]}, attrs={"tr": 2.0, "units": "BOLD"})
    >>> frames = xr.DataArray(
    ...     np.arange(6, dtype="float32")[:, None], dims=("time", "feature"),
    ...     coords={"time": np.arange(6.0)})
    >>> align(frames, responses, delays=[0, 1]).values
    array([[0.5, 0. ],
           [2.5, 0.5],
           [4.5, 2.5]], dtype=float32)
    """
    check_responses(to)
    if to.dims[0] != "time" or to.ndim != 2:
        raise SchemaError(f"`to` must have dims ('time', target), but got {to.dims}.")
    _check_choices(method=(method, METHODS), missing=(missing, ("zero", "drop")))
    _check_choices(lengths=(lengths, ("error", "trim", "keep")))
    _check_filters(delays, hrf, window, method)
    if len(trim) != 2 or min(trim) < 0:
        raise ValueError(f"`trim` must be two counts of rows, first and last, but got {trim!r}.")
    layers = check_features(features)
    width = float(to.attrs["tr"] if "tr" in to.attrs else to.attrs["bin_width"])
    if slice_time_ref is None:
        slice_time_ref = float(to.attrs.get("slice_time_ref", 0.0))
    response = None if hrf is None else _hrf_integral(hrf)

    def weights(starts: np.ndarray, ends: np.ndarray, times: np.ndarray, lag: int) -> Any:
        if response is not None:
            return _hrf_weights(starts, ends, times + slice_time_ref * width, response)
        if method == "lanczos":
            return _lanczos_weights(starts, ends, times, width, lag)
        return _mean_weights(starts, ends, times - lag * width, width, window or width)

    aligned = {}
    for layer, array in layers.items():
        plan = list(_plan(array, to, runs, width, lengths, max_difference))
        aligned[layer] = _aligned(array, to, plan, weights, delays, trim, missing)
        aligned[layer].attrs["aligned"] = _described(delays, hrf, window, method)
        aligned[layer].attrs["extent"] = _extent(delays, hrf, window, method, width)
    if isinstance(features, xr.DataArray):
        return next(iter(aligned.values()))
    return aligned


def _check_choices(**choices: tuple[str, tuple[str, ...]]) -> None:
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise UnknownNameError(
                f"`{name}` must be one of {allowed}, but got {value!r}. "
                f"{did_you_mean(str(value), allowed)}"
            )


def _check_filters(
    delays: Sequence[int] | None, hrf: Hrf | None, window: float | None, method: str
) -> None:
    """Raise if the filters exclude each other or are impossible."""
    if isinstance(hrf, str):
        _check_choices(hrf=(hrf, HRFS))
    if hrf is not None and (delays is not None or window is not None or method != "mean"):
        raise ValueError(
            "`hrf` takes the place of `delays`, `window` and `method`: leave them out."
        )
    if window is not None and (method != "mean" or not window > 0):
        raise ValueError(
            f"`window` must be a positive time [s], with method='mean', but got {window!r} with "
            f"method={method!r}."
        )
    if delays is not None and (
        not len(delays)
        or len(set(delays)) < len(delays)
        or any(lag != int(lag) or lag < 0 for lag in delays)
    ):
        raise ValueError(
            "`delays` must be different whole numbers of samples, 0 or more (less would be future "
            f"stimuli), such as [3, 4, 5], but got {delays!r}."
        )


def _plan(
    features: xr.DataArray,
    to: xr.DataArray,
    runs: Mapping[str, str] | None,
    width: float,
    lengths: str,
    limit: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Give, for each run, its rows and their features' rows, starts and ends [s]."""
    if is_kernel(features):
        raise SchemaError("Kernels cannot be aligned: give the features themselves.")
    there, scans = run_rows(features), run_rows(to)
    names = {run: (run if runs is None else runs.get(run)) for run in scans}
    absent = [run for run, name in names.items() if name not in there]
    if absent:
        raise PairingError(
            f"{len(absent)} runs of the responses have no features: {listed(absent)}; features "
            f"have the runs {listed(there)}. Say runs={{response run: stimulus run}}, or select "
            "the runs of the responses that have."
        )
    for run, rows in scans.items():
        mine = there[str(names[run])]
        starts, ends = _spans(features, mine)
        times = to["time"].values[rows].astype(float)
        apart = (times[-1] + width - ends.max()) / width
        if sample_dim(features) == "time" and lengths != "keep" and abs(apart) >= 1 - 1e-6:
            if lengths == "error" or abs(apart) > limit + 1e-6:
                raise PairingError(
                    f"Run {run!r} ends {abs(apart):.1f} samples of {width:g} s "
                    f"{'after' if apart > 0 else 'before'} its features end. Check the pairing of "
                    f"runs, or say lengths='trim' (up to max_difference={limit}) or 'keep'."
                )
            rows = rows[times < ends.max() - 1e-6 * width]
        yield rows, mine, starts, ends


def _spans(features: xr.DataArray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return when each sample of features starts and ends [s]."""
    timed = sample_dim(features) == "time"
    needs = ("time",) if timed else ("onset", "duration")
    lacking = [name for name in needs if name not in features.coords]
    if lacking:
        raise SchemaError(
            f"Features of stimuli need the coords onset and duration [s], but lack {lacking}. Use "
            "features.assign_coords(onset=('stimulus', [...]))."
        )
    starts = features[needs[0]].values[rows].astype(float)
    if "duration" in features.coords:
        durations = features["duration"].values[rows].astype(float)
    elif len(starts) > 1:
        steps = np.diff(starts)
        durations = np.append(steps, np.median(steps))
    else:
        raise SchemaError("One sample of features in a run needs the coord duration [s].")
    if not (np.isfinite(starts).all() and np.isfinite(durations).all() and durations.min() > 0):
        raise SchemaError("Onsets must be finite and durations positive [s] in all features.")
    return starts, starts + durations


def _aligned(
    features: xr.DataArray,
    to: xr.DataArray,
    plan: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
    weights: Callable[..., Any],
    delays: Sequence[int] | None,
    trim: tuple[int, int],
    missing: str,
) -> xr.DataArray:
    """Return one layer, its blocks of columns multiplied by the weights of each run."""
    lags = [0] if delays is None else [int(lag) for lag in delays]
    jobs = []
    for rows, mine, starts, ends in plan:
        rows = rows[trim[0] : len(rows) - trim[1]]
        times = to["time"].values[rows].astype(float)
        each = [_by_rows(weights, starts, ends, times, lag) for lag in lags]
        seen = np.all([np.diff(matrix.indptr) > 0 for matrix in each], axis=0)
        if not seen.all():
            log.info("%d rows without stimulus: missing=%r", np.sum(~seen), missing)
        if missing == "drop":
            rows, each = rows[seen], [matrix[seen] for matrix in each]
        jobs.append((rows, mine, each))
    kept = np.sort(np.concatenate([rows for rows, _, _ in jobs]))
    if not len(kept):
        raise PairingError("No rows are left: features and responses share no time; check `trim`.")
    n = features.shape[1]
    values = np.zeros((len(kept), n * len(lags)), np.float32)
    for rows, mine, each in jobs:
        place = np.searchsorted(kept, rows)
        for first in range(0, n, BLOCK):
            block = features.values[mine, first : first + BLOCK].astype(np.float32, copy=False)
            for k, matrix in enumerate(each):
                values[place, k * n + first : k * n + first + block.shape[1]] = matrix @ block
    coords = {name: c[kept] for name, c in to.coords.items() if c.dims == ("time",)}
    for name, coord in features.coords.items():
        if coord.dims == ("feature",):
            coords[name] = ("feature", np.tile(coord.values, len(lags)))
    if delays is not None:
        coords["delay"] = ("feature", np.repeat(lags, n))
    attrs = {**features.attrs, **{k: to.attrs[k] for k in ("tr", "bin_width") if k in to.attrs}}
    return xr.DataArray(values, coords, ("time", "feature"), attrs=attrs)


def _by_rows(
    weights: Callable[..., Any], starts: np.ndarray, ends: np.ndarray, times: np.ndarray, lag: int
) -> Any:
    """Return the weights of one run, made by blocks of rows: they are dense at first."""
    blocks = [
        weights(starts, ends, times[first : first + ROWS], lag)
        for first in range(0, max(len(times), 1), ROWS)
    ]
    return scipy.sparse.vstack(blocks, format="csr")


def _sparse(weights: np.ndarray) -> Any:
    return scipy.sparse.csr_array(weights.astype(np.float32))


def _mean_weights(
    starts: np.ndarray, ends: np.ndarray, times: np.ndarray, width: float, window: float
) -> Any:
    """Return each row's share of each sample within its window."""
    upper = times[:, None] + width
    overlap = np.minimum(ends, upper) - np.maximum(starts, upper - window)
    # Times such as 3 * 1.49 are not exact: a sliver of overlap is no overlap.
    overlap[overlap < 1e-6 * width] = 0
    total = overlap.sum(1, keepdims=True)
    return _sparse(overlap / np.where(total > 0, total, 1))


def _lanczos_weights(
    starts: np.ndarray, ends: np.ndarray, times: np.ndarray, width: float, lag: int
) -> Any:
    """Return a Lanczos filter around the middle of each delayed sample, without the future."""
    away = ((starts + ends) / 2 - (times[:, None] + (0.5 - lag) * width)) / width
    kernel = np.sinc(away) * np.sinc(away / LOBES) * (np.abs(away) < LOBES)
    kernel[starts >= times[:, None] + (1 - 1e-6) * width] = 0
    return _sparse(kernel * (ends - starts) / width)


def _hrf_integral(hrf: Hrf) -> tuple[np.ndarray, np.ndarray]:
    """Return times [s] and the integral of the response up to each."""
    times = np.arange(0, HRF_LENGTH + HRF_STEP / 2, HRF_STEP)
    if isinstance(hrf, str):
        from nilearn.glm import first_level

        values = getattr(first_level, f"{hrf}_hrf")(
            HRF_STEP, oversampling=1, time_length=HRF_LENGTH
        )
        times = np.linspace(0, HRF_LENGTH, len(values))
    else:
        values = np.asarray(hrf(times), float)
        if values.shape != times.shape or not np.isfinite(values).all():
            raise ValueError(
                f"`hrf` must return finite values, shape {times.shape}, for as many times, but "
                f"got shape {values.shape}."
            )
    integral = np.append(0, np.cumsum((values[1:] + values[:-1]) / 2 * np.diff(times)))
    return times, integral / integral[-1] if isinstance(hrf, str) else integral


def _hrf_weights(
    starts: np.ndarray, ends: np.ndarray, times: np.ndarray, response: tuple[np.ndarray, np.ndarray]
) -> Any:
    """Return the response at `times` to each sample as a boxcar of height 1."""
    since, until = times[:, None] - starts, times[:, None] - ends
    return _sparse(np.interp(since, *response) - np.interp(until, *response))


def _described(
    delays: Sequence[int] | None, hrf: Hrf | None, window: float | None, method: str
) -> str:
    """Return the filter as text for the attrs."""
    if hrf is not None:
        return f"hrf {hrf if isinstance(hrf, str) else getattr(hrf, '__name__', 'custom')}"
    text = f"{method} over {window:g} s" if window else method
    return text if delays is None else f"{text}, delays {','.join(map(str, delays))}"


def _extent(
    delays: Sequence[int] | None, hrf: Hrf | None, window: float | None, method: str, width: float
) -> float:
    """Return how long the stretch of the stimulus is that one row draws on [s]."""
    if hrf is not None:
        return HRF_LENGTH
    at_once = (LOBES + 1) * width if method == "lanczos" else window or width
    return float(at_once + width * (max(delays) - min(delays) if delays is not None else 0))
