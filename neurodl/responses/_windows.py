"""Windows around events: which presentations have one, their bins, and what was found in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.errors import PairingError, SchemaError, did_you_mean
from neurodl.io.events import check_events, event_ids
from neurodl.schema import check_responses

OVERLAPS = ("error", "allow")


class Windows(NamedTuple):
    """The windows of presentations.

    table : one row per presentation, in the order given
    starts : (n_presentations,), the time that windows are relative to [s]
    edges : (n_bins + 1,), borders of the bins, relative to it [s]
    bin_width : as given [s]
    align : the column that `starts` are of
    n_dropped : how many presentations have none, or lie outside the recording
    """

    table: pd.DataFrame
    starts: np.ndarray
    edges: np.ndarray
    bin_width: float | None
    align: str
    n_dropped: int = 0

    @property
    def borders(self) -> np.ndarray:
        """Borders of all bins on the clock of the recording [s], (n_presentations, n_bins + 1)."""
        return self.starts[:, None] + self.edges

    def keep(self, kept: np.ndarray) -> Windows:
        """Return the windows of some presentations."""
        n_dropped = self.n_dropped + int((~kept).sum())
        table = self.table[kept].reset_index(drop=True)
        return self._replace(table=table, starts=self.starts[kept], n_dropped=n_dropped)


def windows_of(
    events: Any, window: Sequence[float], bin_width: float | None, align: str
) -> Windows:
    """Return the windows of events that have a time to align to."""
    edges = _edges(window, bin_width)
    table = getattr(events, "table", events)
    if isinstance(table, pd.DataFrame) and table.index.name == "stimulus":
        table = table.reset_index()  # of Stimuli, whose ids are the index
    table = check_events(table, needs=("onset",) if align == "onset" else ())
    if align not in table:
        raise SchemaError(
            f"`events` have no column {align!r}. {did_you_mean(align, map(str, table.columns))}"
        )
    starts = pd.to_numeric(table[align], errors="coerce").to_numpy(np.float64)
    if np.isinf(starts).any():
        raise SchemaError(f"{int(np.isinf(starts).sum())} events have an infinite {align!r}.")
    windows = Windows(table, starts, edges, bin_width, align)
    known = np.isfinite(starts)
    if not known.any():
        raise SchemaError(f"No event has a time in {align!r}.")
    return windows if known.all() else windows.keep(known)


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


def inside_of(windows: Windows, intervals: np.ndarray) -> np.ndarray:
    """Return which windows lie inside one of the intervals."""
    slack = 1e-9
    first, last = windows.starts + windows.edges[0], windows.starts + windows.edges[-1]
    starts, stops = intervals.T
    return ((first[:, None] >= starts - slack) & (last[:, None] <= stops + slack)).any(1)


def check_any(windows: Windows, what: str, span: Any) -> None:
    """Raise unless a window is left."""
    if not len(windows.starts):
        raise PairingError(
            f"No window lies in the recording: {what} last from {span[0]:g} to {span[-1]:g} s. Are "
            "onsets on the same clock, and both in seconds?"
        )


def check_overlap(windows: Windows, overlap: str) -> None:
    """Raise if windows share time, unless that is allowed."""
    if overlap not in OVERLAPS:
        raise ValueError(f"`overlap` must be one of {OVERLAPS}, but got {overlap!r}.")
    gaps = np.diff(np.sort(windows.starts))
    length = windows.edges[-1] - windows.edges[0]
    n_short = int((gaps < length - 1e-9).sum())
    if n_short and overlap == "error":
        raise SchemaError(
            f"{n_short} of {len(windows.starts)} windows reach into the next: it begins "
            f"{gaps.min():g} s later, and a window lasts {length:g} s. What is counted twice may "
            "stand on both sides of a fold. Take a shorter window, or say overlap='allow'."
        )


def assembled(
    values: np.ndarray,
    windows: Windows,
    coords: dict[str, Any],
    attrs: dict[str, Any],
    dim: str,
) -> xr.DataArray:
    """Return what was found in windows as responses."""
    table = windows.table
    coords |= {
        str(name): ("presentation", plain(table[name]))
        for name in table
        if str(name) not in {"stimulus", "time", "presentation", "unit", *coords}
    }
    coords |= {
        "stimulus": ("presentation", event_ids(table).to_numpy(str)),
        "time": np.round(windows.edges[:-1], 9),
    }
    for name in ("run", "session"):
        if name in table:
            coords[name] = ("presentation", table[name].astype(str).to_numpy(str))
    attrs |= {
        "window": [float(windows.edges[0]), float(windows.edges[-1])],
        "align": windows.align,
        "n_dropped": windows.n_dropped,
    }
    binned = xr.DataArray(values, dims=("presentation", "time", dim), coords=coords, attrs=attrs)
    if windows.bin_width is None:
        return check_responses(binned.isel(time=0, drop=True))
    return check_responses(binned.assign_attrs(bin_width=float(windows.bin_width)))


def plain(column: pd.Series) -> np.ndarray:
    """Return a column as numbers or truth values, else as text."""
    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_numeric_dtype(column):
        kind = bool if pd.api.types.is_bool_dtype(column) else np.float64
        if not column.isna().any():
            return column.to_numpy(kind)
        return column.astype(np.float64).to_numpy()
    return np.array(["" if pd.isna(one) else str(one) for one in column])
