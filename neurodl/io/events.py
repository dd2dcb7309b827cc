"""Tables of what happened when: BIDS events files, and the checks before they meet a scan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.errors import (
    FileFormatError,
    MissingFileError,
    PairingError,
    SchemaError,
    did_you_mean,
    listed,
)
from neurodl.io.timeseries import run_rows

TIMES = ("onset", "duration")
ID_COLUMNS = ("stimulus", "stim_file", "trial_type")
EARLIEST_ONSET = -24.0  # s; what came earlier has left no response in the scan


def read_events(path: str | Path) -> pd.DataFrame:
    """Read a BIDS ``events.tsv``: onset [s], duration [s], and whatever else it has.

    Only ``n/a``, ``nan`` and empty cells are missing values: a trial type may be called "null".

    Raises
    ------
    MissingFileError, FileFormatError
        The file does not exist, or is not a tab-separated table with a column ``onset``.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"The events file {path} does not exist.")
    try:
        table = pd.read_csv(
            path,
            sep="\t",
            keep_default_na=False,
            na_values=["n/a", "N/A", "nan", "NaN", ""],
            dtype=dict.fromkeys([*ID_COLUMNS, "run", "session"], str),
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise FileFormatError(f"Cannot read the events file {path}: {error}") from error
    if "onset" not in table:
        raise FileFormatError(
            f"The events file {path} has no column 'onset'; its columns are "
            f"{listed(table.columns, 20)}. Columns must be separated by tabs."
        )
    return table


def check_events(
    events: Any,
    responses: xr.DataArray | None = None,
    *,
    needs: Sequence[str] = ("onset", "duration"),
) -> pd.DataFrame:
    """Return a copy of `events` with numeric times and text labels, if they fit the responses.

    Parameters
    ----------
    events : pandas.DataFrame
        Columns onset [s] from the start of the run and duration [s]; run where the responses
        have several; any others.
    responses : xarray.DataArray, optional
        Dims ``(time, target)``: the scan that the events must lie in.
    needs : sequence of str
        Columns that must be there, without missing values.

    Raises
    ------
    SchemaError
        A column is missing, or a time is missing, infinite or negative.
    PairingError
        Events belong to unknown runs, or lie outside the scan; the message names them.
    """
    if not isinstance(events, pd.DataFrame):
        raise SchemaError(f"`events` must be a pandas.DataFrame, but got {type(events).__name__}.")
    for name in needs:
        if name not in events:
            raise SchemaError(
                f"`events` have no column {name!r}. {did_you_mean(name, map(str, events.columns))}"
            )
    if events.empty:
        raise SchemaError("`events` have no rows.")
    events = events.reset_index(drop=True)
    optional = [name for name in ("modulation",) if name in events]
    for name in [*(name for name in needs if name in TIMES), *optional]:
        events[name] = _numbers(events, name)
    if "duration" in needs:
        _refuse(events, events["duration"] < 0, "a negative duration")
    for name in (name for name in needs if name not in TIMES):
        _refuse(events, events[name].isna(), f"no {name!r} (it is empty or n/a)")
        events[name] = events[name].astype(str)
    return events if responses is None else _in_scan(events, responses)


def event_ids(events: pd.DataFrame) -> pd.Series:
    """Return which stimulus each event showed: `stimulus`, else `stim_file`, else `trial_type`.

    Raises
    ------
    SchemaError
        None of these columns is there, or an event has no value in it.
    """
    column = next((name for name in ID_COLUMNS if name in events), None)
    if column is None:
        raise SchemaError(
            f"`events` need one of the columns {listed(ID_COLUMNS)} to say what was shown; they "
            f"have {listed(events.columns, 20)}."
        )
    _refuse(events, events[column].isna(), f"no {column!r} (it is empty or n/a)")
    return events[column].astype(str)


def scan_times(responses: xr.DataArray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the regular sampling times of one run [s], and which of them are in `responses`.

    Censored volumes leave gaps in ``responses.time``; what is convolved over time must be
    computed on the whole grid first.
    """
    times = responses["time"].values[rows]
    tr = float(responses.attrs["tr"])
    position = np.rint((times - times[0]) / tr).astype(int)
    grid = times[0] + np.arange(position[-1] + 1) * tr
    if np.abs(grid[position] - times).max() > 0.01 * tr:
        raise SchemaError(
            f"coord 'time' is not sampled every {tr:g} s as the attr 'tr' says: it steps by "
            f"{np.diff(times).min():g} to {np.diff(times).max():g} s."
        )
    return grid, position


def _numbers(events: pd.DataFrame, name: str) -> pd.Series:
    numbers = pd.to_numeric(events[name], errors="coerce").astype(float)
    _refuse(events, ~np.isfinite(numbers), f"no {name!r} that is a finite number")
    return numbers


def _refuse(events: pd.DataFrame, wrong: pd.Series, what: str) -> None:
    if wrong.any():
        raise SchemaError(f"{np.sum(wrong)} events have {what}: {_named(events[wrong])}.")


def _named(events: pd.DataFrame) -> str:
    """Return events as text: their row, what they are, when and in which run."""
    column = next((name for name in ID_COLUMNS if name in events), None)
    return listed(
        f"row {row}"
        + (f" {event[column]}" if column else "")
        + f" at {event['onset']} s"
        + (f" in run {event['run']}" if "run" in event else "")
        for row, event in events.iterrows()
    )


def _in_scan(events: pd.DataFrame, responses: xr.DataArray) -> pd.DataFrame:
    """Check that each event belongs to a run of the responses and starts within it."""
    if responses.dims[0] != "time" or "tr" not in responses.attrs:
        raise SchemaError(
            f"Events are placed in a time series: responses need dims ('time', target) and the "
            f"attr 'tr' [s], but have dims {tuple(responses.dims)}."
        )
    runs = run_rows(responses)
    if list(runs) == [""]:
        if "run" in events and events["run"].nunique() > 1:
            raise PairingError(
                f"`events` have {events['run'].nunique()} runs, but the responses have no coord "
                "'run'. Read the runs as a list of images."
            )
        events["run"] = ""
    elif "run" not in events:
        if len(runs) > 1:
            raise PairingError(
                f"The responses have {len(runs)} runs ({listed(runs)}), so `events` need a column "
                "'run' that says to which each event belongs."
            )
        events["run"] = next(iter(runs))
    events["run"] = _run_names(events, runs)
    for run, rows in runs.items():
        times = responses["time"].values[rows]
        end = times[-1] + responses.attrs["tr"]
        mine = events["run"] == run
        outside = mine & ((events["onset"] >= end) | (events["onset"] < times[0] + EARLIEST_ONSET))
        if outside.any():
            raise PairingError(
                f"{outside.sum()} events lie outside the scan{f' of run {run!r}' if run else ''}, "
                f"which lasts from {times[0]:g} to {end:g} s: {_named(events[outside])}. Onsets "
                "are in seconds from the start of their run; is the TR right "
                f"({responses.attrs['tr']:g} s)?"
            )
    return events


def _run_names(events: pd.DataFrame, runs: dict[str, np.ndarray]) -> pd.Series:
    """Return the run of each event by the name that the responses use."""
    names = events["run"].map(lambda run: str(int(run)) if isinstance(run, float) else str(run))
    if "session" in events and not set(names) <= set(runs):
        names = events["session"].astype(str) + "/" + names
    unknown = [run for run in dict.fromkeys(names) if run not in runs]
    if unknown:
        raise PairingError(
            f"`events` name runs that the responses do not have: {listed(unknown)}. "
            f"{did_you_mean(unknown[0], runs)}"
        )
    return names
