"""What `Experiment.from_files` does with your own files: pair by id, estimate, join the runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from neurodl.errors import MissingFileError, PairingError, UnknownNameError, listed
from neurodl.io.events import read_events
from neurodl.responses import single_trial_betas, stack_repeats, zscore_runs
from neurodl.schema import sample_dim, sample_ids
from neurodl.stimuli import Stimuli

logger = logging.getLogger(__name__)


def paired(
    stimuli: Stimuli, responses: xr.DataArray, unpaired: str
) -> tuple[Stimuli, xr.DataArray]:
    """Return stimuli and responses that belong to each other."""
    ids = sample_ids(responses)
    unknown = ids.difference(pd.Index(stimuli.ids), sort=False).unique()
    silent = pd.Index(stimuli.ids).difference(ids, sort=False)
    if unpaired == "error" and (len(unknown) or len(silent)):
        problems = []
        if len(unknown):
            unnamed = f"{len(unknown)} responses have unknown stimulus ids"
            problems.append(f"{unnamed} ({listed(unknown)})")
        if len(silent):
            problems.append(f"{len(silent)} stimuli have no responses ({listed(silent)})")
        raise PairingError(
            f"{' and '.join(problems)}. The stimuli are called {listed(stimuli.ids, 3)}. "
            "Correct the ids, or say unpaired='drop' to use only what has both."
        )
    if len(unknown) or len(silent):
        logger.warning(
            "unpaired='drop' left out %d responses and %d stimuli", len(unknown), len(silent)
        )
        known = ids.isin(stimuli.ids)
        if not known.any():
            raise PairingError("No response belongs to any of the stimuli.")
        responses = responses.isel({sample_dim(responses): known})
        stimuli = stimuli.sel([name for name in stimuli.ids if name in set(ids)])
    return stimuli, responses


def estimate_betas(
    responses: xr.DataArray,
    events: pd.DataFrame,
    *,
    zscore: bool = False,
    stack: bool = True,
    **options: Any,
) -> xr.DataArray:
    """Return one response per event, z-scored within runs if asked, with repeats side by side.

    Parameters
    ----------
    responses, events, **options
        See `single_trial_betas`.
    zscore : bool
        Z-score the betas of each run and target.
    stack : bool
        Give repeats a dim of their own, so that they are averaged and tell the ceiling; False
        keeps each presentation as a sample.

    Returns
    -------
    xarray.DataArray
        Dims ``(stimulus, repeat, target)``, or ``(presentation, target)`` without `stack` or where
        nothing is repeated.
    """
    betas = single_trial_betas(responses, events, **options)
    if zscore:
        betas = zscore_runs(betas)
    repeated = not pd.Index(betas["stimulus"].values).is_unique
    return stack_repeats(betas) if stack and repeated else betas


def events_of_runs(events: Any, responses: xr.DataArray) -> pd.DataFrame:
    """Return the events of all runs in one table, with the runs' own labels."""
    if isinstance(events, pd.DataFrame):
        return events
    if isinstance(events, (str, Path)):
        return read_events(events)
    runs = pd.unique(responses["run"].values) if "run" in responses.coords else [""]
    if len(events) != len(runs):
        raise PairingError(
            f"There are {len(events)} events files for {len(runs)} runs; give one per run, in "
            "order."
        )
    tables = [read_events(path) for path in events]
    if len(runs) == 1:
        return tables[0]
    return pd.concat(
        [table.assign(run=str(run)) for table, run in zip(tables, runs, strict=True)],
        ignore_index=True,
    )


def one_of(path: Path, pattern: str, chosen: str | None) -> Path:
    """Return a file, or the one in a folder that is meant.

    Raises
    ------
    MissingFileError
        There is none.
    UnknownNameError
        There are several, and which is meant is not clear.
    """
    if path.is_file():
        return path
    files = sorted(path.rglob(pattern)) if path.is_dir() else []
    if not files:
        raise MissingFileError(f"There is no {path}, or it is a folder without {pattern}.")
    meant = [file for file in files if chosen is None or chosen in (file.name, file.stem)]
    meant = meant or [file for file in files if str(chosen) in file.name]
    if len(meant) != 1:
        raise UnknownNameError(
            f"{path} holds {len(files)} files; say which one: session={files[0].stem!r}. There are "
            f"{listed([file.stem for file in files], 20)}."
        )
    return meant[0]
