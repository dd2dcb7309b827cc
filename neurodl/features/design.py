"""Features of an experiment's design: which condition was on, seen through an HRF or by lags."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.errors import UnknownNameError, did_you_mean
from neurodl.io.events import check_events, scan_times
from neurodl.io.timeseries import run_rows
from neurodl.schema import check_features, check_responses

HRFS = ("glover", "spm")
HRF_LENGTH = 32.0  # s, of the response to a moment


def event_design(
    events: pd.DataFrame,
    responses: xr.DataArray,
    *,
    column: str = "trial_type",
    hrf: str | None = "glover",
    delays: Sequence[int] | None = None,
    slice_time_ref: float | None = None,
) -> xr.DataArray:
    """Turn events into one feature per condition, or per condition and lag.

    Parameters
    ----------
    events : pandas.DataFrame
        Columns onset [s], duration [s], `column`, and run where the responses have several. A
        column modulation, if there, scales each event.
    responses : xarray.DataArray
        Dims ``(time, target)``, attr tr [s]: the samples that the features are for.
    column : str
        What tells the conditions apart.
    hrf : {"glover", "spm"} or None
        Convolve each condition with this haemodynamic response function, computed 50 times finer
        than the TR. None with `delays`.
    delays : sequence of int, optional
        With ``hrf=None``, a finite impulse response: the share of each sample that the condition
        was on, `delays` samples [TR] ago; an event of duration 0 fills its sample.
    slice_time_ref : float, optional
        When within a TR the volumes stand for, from 0 (its start) to 1: 0.5 after fMRIPrep's
        slice timing correction. By default the attr slice_time_ref of the responses, else 0.

    Returns
    -------
    xarray.DataArray
        float32, dims ``(time, feature)``, rows and coords time and run as in `responses`. Coords
        condition and delay [TR] (feature). Computed run by run: nothing leaks into the next run.

    Raises
    ------
    SchemaError, PairingError
        Events lack columns, have impossible times or lie outside the scan; the message names them.

    Examples
    --------
    >>> responses = xr.DataArray(
    ...     np.zeros((4, 1), "float32"), dims=("time", "voxel"),
    ...     coords={"time": [0.0, 2.0, 4.0, 6.0]}, attrs={"tr": 2.0, "units": "BOLD"})
    >>> events = pd.DataFrame({"onset": [2.0], "duration": [3.0], "trial_type": ["face"]})
    >>> event_design(events, responses, hrf=None, delays=[0, 1]).values
    array([[0. , 0. ],
           [1. , 0. ],
           [0.5, 1. ],
           [0. , 0.5]], dtype=float32)
    """
    lags = _checked_delays(hrf, delays)
    check_responses(responses)
    table = check_events(events, responses, needs=("onset", "duration", column))
    if slice_time_ref is None:
        slice_time_ref = float(responses.attrs.get("slice_time_ref", 0.0))
    conditions = sorted(table[column].unique())
    names = conditions if hrf else [f"{c}_delay_{lag}" for c in conditions for lag in lags]
    values = np.zeros((len(responses), len(names)), np.float32)
    tr = float(responses.attrs["tr"])
    for run, rows in run_rows(responses).items():
        mine = table[table["run"] == run]
        grid, position = scan_times(responses, rows)
        columns = []
        for condition in conditions:
            some = mine[mine[column] == condition]
            if hrf:
                columns.append(_convolved(some, grid + slice_time_ref * tr, hrf)[:, None])
            else:
                columns.append(_lagged(some, grid, tr, lags))
        values[rows] = np.hstack(columns)[position]
    design = xr.DataArray(
        values,
        dims=("time", "feature"),
        coords={
            **{name: c for name, c in responses.coords.items() if c.dims == ("time",)},
            "feature": names,
            "condition": ("feature", np.repeat(conditions, len(lags))),
            "delay": ("feature", np.tile(lags, len(conditions))),
        },
        attrs={
            "backbone": "design",
            "layer": f"{column} x {hrf}" if hrf else f"{column} FIR {_span(lags)}",
            **dict.fromkeys(("pool", "reduce", "weights", "weights_sha256", "transform"), "none"),
            "tr": tr,
            "extent": HRF_LENGTH if hrf else tr * (max(lags) - min(lags) + 1),
        },
    )
    check_features(design)
    return design


def _checked_delays(hrf: str | None, delays: Sequence[int] | None) -> list[int]:
    """Return the lags; one of 0 stands for the HRF, which has none."""
    if hrf is not None:
        if hrf not in HRFS:
            raise UnknownNameError(
                f"`hrf` must be one of {HRFS} or None, but got {hrf!r}. "
                f"{did_you_mean(str(hrf), HRFS)}"
            )
        if delays is not None:
            raise ValueError(
                f"`delays` make a finite impulse response, which takes the place of an HRF: say "
                f"hrf=None, delays={list(delays)}."
            )
        return [0]
    whole = delays is not None and all(lag == int(lag) and lag >= 0 for lag in delays)
    if not whole or not len(delays or []) or len(set(delays or [])) < len(delays or []):
        raise ValueError(
            f"hrf=None needs `delays`, different whole numbers of TRs such as [1, 2, 3, 4], but "
            f"got {delays!r}."
        )
    return [int(lag) for lag in delays or []]


def _convolved(events: pd.DataFrame, times: np.ndarray, hrf: str) -> np.ndarray:
    """Return the condition's regressor at `times`, shape (n_times,)."""
    from nilearn.glm.first_level import compute_regressor

    if events.empty or len(times) < 2:
        return np.zeros(len(times))
    condition = (events["onset"], events["duration"], _amplitudes(events))
    regressor, _ = compute_regressor(tuple(map(np.asarray, condition)), hrf, times)
    return np.asarray(regressor)[:, 0]


def _lagged(events: pd.DataFrame, times: np.ndarray, tr: float, lags: Sequence[int]) -> np.ndarray:
    """Return which share of the sample was on, each lag [TR] ago, shape (n_times, n_lags)."""
    longest = max(lags)
    starts = np.concatenate([times[0] - tr * np.arange(longest, 0, -1), times])
    onset, duration = (events[name].to_numpy(float)[:, None] for name in ("onset", "duration"))
    overlap = np.minimum(onset + duration, starts + tr) - np.maximum(onset, starts)
    instant = (duration == 0) & (onset >= starts) & (onset < starts + tr)
    share = np.where(instant, 1.0, np.clip(overlap / tr, 0, None)).T @ _amplitudes(events)
    return np.stack([share[longest - lag : len(share) - lag] for lag in lags], axis=1)


def _amplitudes(events: pd.DataFrame) -> np.ndarray:
    return events["modulation"].to_numpy() if "modulation" in events else np.ones(len(events))


def _span(lags: Sequence[int]) -> str:
    """Return lags as text: "1-4" if they follow each other, else "1,3"."""
    if len(lags) > 1 and list(lags) == list(range(lags[0], lags[-1] + 1)):
        return f"{lags[0]}-{lags[-1]}"
    return ",".join(map(str, lags))
