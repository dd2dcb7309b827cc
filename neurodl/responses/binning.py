"""Responses of neurons around events: counts of spikes, or averages of traces, in windows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from neurodl.errors import NeurodlWarning, PairingError, SchemaError, TooLargeError, did_you_mean
from neurodl.io.spikes import spike_trains
from neurodl.io.timeseries import run_rows
from neurodl.responses._windows import (
    Windows,
    assembled,
    check_any,
    check_overlap,
    inside_of,
    plain,
    windows_of,
)
from neurodl.runtime import available_memory
from neurodl.schema import check_responses, target_coords, target_dim

CANDIDATE_COST = 3.0  # of placing a spike among windows, in searches for a border


def bin_spikes(
    spikes: Any,
    events: Any,
    *,
    window: Sequence[float],
    bin_width: float | None = None,
    align: str = "onset",
    units: pd.DataFrame | None = None,
    min_rate: float = 0.0,
    recorded: Any = None,
    overlap: str = "error",
) -> xr.DataArray:
    """Count spikes in a window around each event.

    Parameters
    ----------
    spikes : mapping of str to array, pynapple.TsGroup, pynwb.NWBFile or its units
        Spike times [s] by unit, in rising order; see `read_spikes`.
    events : pandas.DataFrame or Stimuli
        One presentation per row: onset [s] on the clock of the spikes, and what was shown:
        `stimulus`, else `stim_file`, else `trial_type`. Stimuli with a column onset will do.
    window : (start, stop)
        From and until when spikes count, relative to `align` [s].
    bin_width : float, optional
        Width of time bins that divide the window [s].
    align : str
        The column of `events` with the time [s] that the window is relative to: "onset", or
        another, such as "response_time". Presentations without it are left out and counted.
    units : pandas.DataFrame, optional
        What is known of units, indexed by their ids, as `Experiment.units`: only those in it are
        counted, in its order, and its columns become coords. So units are chosen with pandas:
        ``units=table.query("quality == 'good' and area == 'VISp'")``.
    min_rate : float
        Units that fire less than that over the windows [spikes / s] are left out and counted.
    recorded : (start, stop) or array-like, shape (n_intervals, 2), optional
        When was recorded [s]: presentations whose window is not inside are left out and counted.
        By default the time support of a TsGroup; else from the first to the last spike of all
        units, and only windows wholly outside are left out.
    overlap : {"error", "allow"}
        Whether windows may share spikes, which are then counted in each of them.

    Returns
    -------
    xarray.DataArray
        Counts, float32, dims ``(presentation, unit)``, or ``(presentation, time, unit)`` with
        `bin_width`; time is the start of the bin [s]. Windows and bins are half-open,
        [start, stop): a spike on a border counts once. Coords stimulus, the other columns of the
        events, and those of units. Attrs n_dropped (presentations), n_low_rate and n_silent
        (units left out, and kept without any spike).

    Raises
    ------
    SchemaError
        A column or unit is missing, times are no finite numbers, fall or are negative, or windows
        overlap.
    PairingError
        No window lies in the recording: clocks or units of time differ.
    TooLargeError
        The counts would not fit into memory.

    Examples
    --------
    >>> events = pd.DataFrame({"onset": [0.0, 1.0], "stimulus": ["face", "house"]})
    >>> spikes = {"unit 1": np.array([0.1, 0.2, 1.1]), "unit 2": np.array([1.3])}
    >>> bin_spikes(spikes, events, window=(0.1, 0.35)).values
    array([[2., 0.],
           [1., 1.]], dtype=float32)
    """
    trains = spike_trains(spikes)
    names = _chosen_units(trains.times, units)
    windows = windows_of(events, window, bin_width, align)
    given = trains.recorded if recorded is None else _intervals(recorded)
    times = {name: _rising(name, trains.times[name]) for name in names}
    windows = windows.keep(_recorded(windows, given, times))
    check_overlap(windows, overlap)
    values = _counts(list(times.values()), windows)
    seconds = len(windows.starts) * (windows.edges[-1] - windows.edges[0])
    rates = values.sum((0, 1), dtype=np.float64) / seconds
    kept = rates >= min_rate
    if not kept.any():
        raise SchemaError(f"No unit fires at `min_rate` = {min_rate:g} spikes / s in the windows.")
    if not kept.all():
        values = values[..., kept]
    coords: dict[str, Any] = {"unit": np.array(names)[kept]}
    if units is not None:
        table = units[kept]
        coords |= {str(key): ("unit", plain(table[key])) for key in table if key != "unit"}
    attrs = {
        "units": "spikes",
        "n_low_rate": int((~kept).sum()),
        "n_silent": int((rates[kept] == 0).sum()),
    }
    return assembled(values, windows, coords, attrs, "unit")


def bin_traces(
    traces: xr.DataArray,
    events: Any,
    *,
    window: Sequence[float],
    bin_width: float | None = None,
    align: str = "onset",
    overlap: str = "error",
) -> xr.DataArray:
    """Average traces, such as calcium signals, in a window around each event.

    Parameters
    ----------
    traces : xarray.DataArray
        Dims ``(time, target)``, of `read_suite2p` for instance; with several runs, the events
        need a column run.
    events, window, bin_width, align, overlap
        See `bin_spikes`. A sample belongs to the bin in which it starts.

    Returns
    -------
    xarray.DataArray
        Means, float32, dims ``(presentation, target)``, or ``(presentation, time, target)`` with
        `bin_width`, with coords and attrs as of `bin_spikes`. NaN where a sample is missing.
        Presentations whose window is not wholly recorded are left out and counted.

    Raises
    ------
    SchemaError, PairingError
        See `bin_spikes`; a bin holds no sample.

    Examples
    --------
    >>> traces = xr.DataArray(
    ...     np.arange(6, dtype="float32")[:, None], dims=("time", "unit"),
    ...     coords={"time": np.arange(6) / 2}, attrs={"units": "dF/F", "bin_width": 0.5})
    >>> events = pd.DataFrame({"onset": [0.5, 1.5], "stimulus": ["face", "house"]})
    >>> bin_traces(traces, events, window=(0, 1)).values.ravel().tolist()
    [1.5, 3.5]
    """
    check_responses(traces)
    if traces.dims[0] != "time" or traces.ndim != 2:
        raise SchemaError(
            f"`traces` must have dims ('time', target), but have {tuple(traces.dims)}."
        )
    windows = windows_of(events, window, bin_width, align)
    step = float(traces.attrs["bin_width" if "bin_width" in traces.attrs else "tr"])
    runs = run_rows(traces)
    names = _runs_of_events(windows.table, runs)
    kept = np.zeros(len(windows.starts), bool)
    for run, rows in runs.items():
        times = traces["time"].values[rows]
        inside = inside_of(windows, np.array([[times[0], times[-1] + step]]))
        kept |= (names == run) & inside
    windows, names = windows.keep(kept), names[kept]
    check_any(windows, "the traces", traces["time"].values[[0, -1]])
    shape = (len(windows.starts), len(windows.edges) - 1, traces.shape[1])
    values = np.empty(shape, np.float32)
    for run, rows in runs.items():
        some = np.flatnonzero(names == run)
        if not len(some):
            continue
        part = windows._replace(starts=windows.starts[some])
        check_overlap(part, overlap)
        values[some] = _means(traces.values[rows], traces["time"].values[rows], part.borders)
    attrs = {key: traces.attrs[key] for key in ("units", "subject") if key in traces.attrs}
    return assembled(values, windows, dict(target_coords(traces)), attrs, target_dim(traces))


def _chosen_units(times: Any, units: pd.DataFrame | None) -> list[str]:
    """Return the ids of the units to be counted."""
    if units is None:
        return list(times)
    names = [str(one) for one in units.index]
    unknown = [name for name in names if name not in times]
    if unknown or not names:
        there = list(times)
        hint = did_you_mean(unknown[0], there) if unknown else "It has no rows."
        raise SchemaError(f"{len(unknown)} rows of `units` have no spike times. {hint}")
    return names


def _rising(unit: str, times: Any) -> np.ndarray:
    """Return the spike times of a unit, checked."""
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or not np.isfinite(times).all():
        raise SchemaError(
            f"The spike times of unit {unit!r} must be a 1-D array of finite seconds, but have "
            f"shape {times.shape}."
        )
    falls = np.flatnonzero(np.diff(times) < 0)
    if len(falls):
        at = falls[0]
        raise SchemaError(
            f"The spike times of unit {unit!r} fall {len(falls)} times, first from "
            f"{times[at]:g} to {times[at + 1]:g} s. Where recordings follow each other, each on a "
            "clock of its own, add the start of each; where the order means nothing, use np.sort."
        )
    if len(times) and times[0] < 0:
        raise SchemaError(
            f"Unit {unit!r} has {int((times < 0).sum())} spikes before 0 s. Spike times are on the "
            "clock of the recording, not relative to events; shift a clock that begins below 0, "
            "and the events with it."
        )
    return times


def _intervals(recorded: Any) -> np.ndarray:
    """Return when was recorded, (n_intervals, 2) [s]."""
    intervals = np.atleast_2d(np.asarray(recorded, np.float64))
    if intervals.ndim != 2 or intervals.shape[1] != 2 or not (np.diff(intervals, axis=1) > 0).all():
        raise ValueError(
            f"`recorded` must be (start, stop) [s], or a list of them, but got {recorded}."
        )
    return intervals


def _recorded(
    windows: Windows, intervals: np.ndarray | None, times: dict[str, np.ndarray]
) -> np.ndarray:
    """Return which windows lie in the recording; warn of others, and raise if none does."""
    if intervals is not None:
        kept, span = inside_of(windows, intervals), (intervals.min(), intervals.max())
    else:
        some = [one for one in times.values() if len(one)]
        span = min((one[0] for one in some), default=0), max((one[-1] for one in some), default=0)
        first, last = windows.starts + windows.edges[0], windows.starts + windows.edges[-1]
        kept = ~((first > span[1]) | (last <= span[0]))
    check_any(windows.keep(kept), "the spikes of all units", span)
    if not kept.all():
        where = "wholly outside" if intervals is None else "not inside"
        warnings.warn(
            f"The windows of {(~kept).sum()} of {len(kept)} events are {where} the recording, "
            f"{span[0]:g} to {span[1]:g} s, and were left out. Are onsets and spikes on the same "
            "clock, in seconds?",
            NeurodlWarning,
            stacklevel=3,
        )
    return kept


def _counts(trains: list[np.ndarray], windows: Windows) -> np.ndarray:
    """Return counts (n_presentations, n_bins, n_units), float32, unit by unit."""
    shape = (len(windows.starts), len(windows.edges) - 1, len(trains))
    n_bytes, free = 4 * int(np.prod(shape, dtype=float)), available_memory(torch.device("cpu"))
    if n_bytes > free:
        raise TooLargeError(
            f"Counts of {shape[0]} presentations x {shape[1]} bins x {shape[2]} units need "
            f"{n_bytes / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free. Take wider bins, or fewer "
            "units at a time (units=...)."
        )
    counts = np.zeros(shape, np.float32)
    borders = windows.borders
    lanes = _lanes(borders)
    n_borders = borders.size
    for column, times in enumerate(trains):
        if not len(times):
            continue
        if CANDIDATE_COST * len(times) * len(lanes) < n_borders:
            for rows in lanes:
                _count_by_spike(times, borders, rows, counts, column)
        else:
            counts[..., column] = np.diff(np.searchsorted(times, borders), axis=1)
    return counts


def _lanes(borders: np.ndarray) -> list[np.ndarray]:
    """Return windows sorted by time, in sets in which none reaches into the next."""
    lanes: list[list[int]] = []
    ends: list[float] = []
    for row in np.argsort(borders[:, 0], kind="stable").tolist():
        start, end = borders[row, 0], borders[row, -1]
        free = next((lane for lane, until in enumerate(ends) if until <= start), None)
        if free is None:
            lanes.append([row])
            ends.append(end)
        else:
            lanes[free].append(row)
            ends[free] = end
    return [np.array(lane) for lane in lanes]


def _count_by_spike(
    times: np.ndarray, borders: np.ndarray, rows: np.ndarray, counts: np.ndarray, column: int
) -> None:
    """Add spikes to the windows `rows`, which lie one after the other."""
    n_bins, n_units = counts.shape[1:]
    first, last = borders[rows, 0], borders[rows, -1]
    place = np.searchsorted(first, times, side="right") - 1
    inside = (place >= 0) & (times < last[place])
    times, own = times[inside], rows[place[inside]]
    width = (borders[own, -1] - borders[own, 0]) / n_bins
    bins = ((times - borders[own, 0]) / width).astype(np.int64).clip(0, n_bins - 1)
    # The quotient is rounded; what counts is which borders a spike lies between.
    bins -= times < borders[own, bins]
    bins += times >= borders[own, bins + 1]
    np.add.at(counts.reshape(-1), (own * n_bins + bins) * n_units + column, np.float32(1))


def _means(values: np.ndarray, times: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Return means (n_presentations, n_bins, n_targets) of the samples between borders."""
    places = np.searchsorted(times, borders - 1e-9)
    starts, stops = places[:, :-1].ravel(), places[:, 1:].ravel()
    n_samples = stops - starts
    if (n_samples == 0).any():
        raise SchemaError(
            f"{int((n_samples == 0).sum())} bins hold no sample of the traces, which are "
            f"{np.median(np.diff(times)):g} s apart: take wider bins."
        )
    padded = np.concatenate([values, np.zeros((1, values.shape[1]), values.dtype)])
    sums = np.add.reduceat(padded, np.column_stack([starts, stops]).ravel(), axis=0)[::2]
    means = sums / n_samples[:, None]
    return means.reshape(*places[:, 1:].shape, -1).astype(np.float32)


def _runs_of_events(table: pd.DataFrame, runs: dict[str, np.ndarray]) -> np.ndarray:
    """Return the run of each event, (n_events,) of str."""
    if len(runs) == 1:
        return np.repeat(next(iter(runs)), len(table))
    if "run" not in table:
        raise SchemaError(
            f"The traces have {len(runs)} runs, so `events` need a column 'run' that says to which "
            "each belongs."
        )
    names = table["run"].astype(str).to_numpy(str)
    unknown = [name for name in dict.fromkeys(names.tolist()) if name not in runs]
    if unknown:
        raise PairingError(
            f"`events` name the run {unknown[0]!r}, which the traces do not have. "
            f"{did_you_mean(unknown[0], runs)}"
        )
    return names
