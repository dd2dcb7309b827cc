"""Spike counts in windows around events."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.errors import NeurodlWarning, SchemaError
from neurodl.io.events import check_events, event_ids
from neurodl.schema import check_responses


def bin_spikes(
    spikes: Mapping[str, np.ndarray],
    events: Any,
    *,
    window: Sequence[float],
    bin_width: float | None = None,
) -> xr.DataArray:
    """Count spikes in a window after each event.

    Parameters
    ----------
    spikes : mapping of str to numpy.ndarray
        Spike times [s] by unit, see `read_spikes`.
    events : pandas.DataFrame or Stimuli
        One presentation per row: onset [s] on the clock of the spikes, and what was shown:
        `stimulus`, else `stim_file`, else `trial_type`. Stimuli with a column onset will do.
    window : (start, stop)
        From and until when spikes count, relative to the onset [s].
    bin_width : float, optional
        Width of time bins that divide the window [s].

    Returns
    -------
    xarray.DataArray
        Counts, float32, dims ``(presentation, unit)``, or ``(presentation, time, unit)`` with
        `bin_width`; time is the start of the bin after the onset [s]. Windows and bins are
        half-open, [start, stop): a spike on a border counts once. Coords stimulus, onset, and run
        and session where the events have them.

    Raises
    ------
    SchemaError
        A column is missing, or times are no finite numbers.

    Examples
    --------
    >>> events = pd.DataFrame({"onset": [0.0, 1.0], "stimulus": ["face", "house"]})
    >>> spikes = {"unit 1": np.array([0.1, 0.2, 1.1]), "unit 2": np.array([1.3])}
    >>> bin_spikes(spikes, events, window=(0.1, 0.3)).values
    array([[2., 0.],
           [1., 0.]], dtype=float32)
    """
    edges = _edges(window, bin_width)
    table = check_events(_table(events), needs=("onset",))
    sorted_times = {str(unit): _spike_times(unit, times) for unit, times in spikes.items()}
    if not sorted_times:
        raise SchemaError("`spikes` has no units.")
    onsets = table["onset"].to_numpy()
    _warn_outside(sorted_times, onsets, edges)
    borders = onsets[:, None] + edges
    counts = np.empty((len(onsets), len(edges) - 1, len(sorted_times)), np.float32)
    for column, times in enumerate(sorted_times.values()):
        counts[..., column] = np.diff(np.searchsorted(times, borders, side="left"), axis=1)
    binned = xr.DataArray(
        counts,
        dims=("presentation", "time", "unit"),
        coords={
            "stimulus": ("presentation", event_ids(table).to_numpy(str)),
            "onset": ("presentation", onsets),
            "time": edges[:-1],
            "unit": list(sorted_times),
        },
        attrs={"units": "spikes", "window": [float(edges[0]), float(edges[-1])]},
    )
    for name in ("run", "session"):
        if name in table:
            binned[name] = ("presentation", table[name].astype(str).to_numpy(str))
    if bin_width is None:
        return check_responses(binned.isel(time=0, drop=True))
    return check_responses(binned.assign_attrs(bin_width=float(bin_width)))


def _table(events: Any) -> Any:
    """Return the table of Stimuli with their ids as a column, or the table that was given."""
    table = getattr(events, "table", events)
    if isinstance(table, pd.DataFrame) and table.index.name == "stimulus":
        return table.reset_index()
    return table


def _edges(window: Sequence[float], bin_width: float | None) -> np.ndarray:
    """Return the borders of the bins relative to the onset [s]."""
    start, stop = (float(at) for at in window)
    if not (np.isfinite([start, stop]).all() and start < stop):
        raise ValueError(
            f"`window` must be (start, stop) in seconds after the onset, but got {window}."
        )
    if bin_width is None:
        return np.array([start, stop])
    n_bins = round((stop - start) / bin_width) if bin_width > 0 else 0
    if n_bins < 1 or abs(n_bins * bin_width - (stop - start)) > 1e-6 * (stop - start):
        raise ValueError(
            f"`bin_width` must divide the window of {stop - start:g} s into whole bins, but got "
            f"{bin_width} s."
        )
    return start + np.arange(n_bins + 1) * (stop - start) / n_bins


def _spike_times(unit: str, times: Any) -> np.ndarray:
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or not np.isfinite(times).all():
        raise SchemaError(
            f"The spike times of unit {unit!r} must be a 1-D array of finite seconds, but have "
            f"shape {times.shape}."
        )
    return np.sort(times)


def _warn_outside(spikes: Mapping[str, np.ndarray], onsets: np.ndarray, edges: np.ndarray) -> None:
    """Warn of events that lie before or after all spikes: zeros there may mean no recording."""
    times = [each for each in spikes.values() if len(each)]
    first = min((each[0] for each in times), default=np.inf)
    last = max((each[-1] for each in times), default=-np.inf)
    outside = (onsets + edges[0] > last) | (onsets + edges[-1] <= first)
    if outside.any():
        warnings.warn(
            f"The windows of {outside.sum()} of {len(onsets)} events lie outside the recording: "
            f"the spikes of all units last from {first:g} to {last:g} s. Their counts are 0. Are "
            "onsets and spikes on the same clock, in seconds?",
            NeurodlWarning,
            stacklevel=3,
        )
