"""Experiment: the stimuli and the responses to them, paired by id."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.errors import PairingError, listed
from neurodl.io.arrays import read_responses
from neurodl.schema import check_responses, sample_dim, sample_ids
from neurodl.stimuli import Stimuli

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """Stimuli and responses of one subject, checked and paired by stimulus id.

    Parameters
    ----------
    stimuli : Stimuli or None
        What was shown. None for time series that come with their own design.
    responses : xarray.DataArray or None
        Checked by `check_responses`. Where voxels lie (ijk, xyz, affine) is in their coords and
        attrs, so that scores inherit it.
    spikes : mapping of str to numpy.ndarray, optional
        Spike times [s] per unit.
    events : pandas.DataFrame, optional
        What happened when: columns onset [s], duration [s], trial_type or stimulus, run.
    ceiling : xarray.DataArray, optional
        Published reliability of the responses in variance units, dim target.
    split : mapping, optional
        Published split: ``{"train": ids, "test": ids}``.
    card : mapping, optional
        Who made the data, licence, citation.
    name : str
        What the report calls it.

    Raises
    ------
    PairingError
        A response has no stimulus; the message names the ids.
    """

    stimuli: Stimuli | None = None
    responses: xr.DataArray | None = None
    spikes: Mapping[str, np.ndarray] | None = None
    events: pd.DataFrame | None = None
    ceiling: xr.DataArray | None = None
    split: Mapping[str, Sequence[str]] | None = None
    card: Mapping[str, str] = field(default_factory=dict)
    name: str = "experiment"

    def __post_init__(self) -> None:
        """Check the responses and that each has its stimulus."""
        if self.responses is None:
            return
        check_responses(self.responses)
        if self.stimuli is None or sample_dim(self.responses) == "time":
            return
        ids = sample_ids(self.responses)
        unknown = ids.difference(pd.Index(self.stimuli.ids), sort=False)
        if len(unknown):
            raise PairingError(
                f"{len(unknown)} responses belong to stimuli that are not there "
                f"({listed(unknown)}). The stimuli are called {listed(self.stimuli.ids, 3)}."
            )

    @classmethod
    def from_files(
        cls,
        stimuli: Any = None,
        responses: Any = None,
        ids: Any = None,
        *,
        n_frames: int | None = None,
        value_range: Sequence[float] | None = None,
        unpaired: str = "error",
        name: str | None = None,
        card: Mapping[str, str] | None = None,
        **responses_options: Any,
    ) -> Experiment:
        """Open your own stimuli and responses and pair them by id.

        Parameters
        ----------
        stimuli : path, list of paths or Stimuli
            See `Stimuli.from_files`.
        responses : path, numpy.ndarray or xarray.DataArray
            See `read_responses`: .npy, .npz, .nc, .tsv, .csv, .nii or .nii.gz.
        ids : sequence of str, optional
            The stimulus id of each response row. By default the ids stored with the
            responses; a bare array without ids must have exactly one row per stimulus, in the
            order of ``stimuli.ids``.
        n_frames, value_range
            See `Stimuli.from_files`.
        unpaired : {"error", "drop"}
            What to do with responses to unknown stimuli and stimuli without responses.
        name, card
            See `Experiment`.
        **responses_options
            Passed to `read_responses`: dims, target, units, mask, subject, tr, roi, key ...

        Raises
        ------
        PairingError
            Numbers or ids do not agree; the message names them.
        """
        if unpaired not in ("error", "drop"):
            raise ValueError(f"`unpaired` must be 'error' or 'drop', but got {unpaired!r}.")
        if stimuli is not None and not isinstance(stimuli, Stimuli):
            stimuli = Stimuli.from_files(stimuli, n_frames=n_frames, value_range=value_range)
        if responses is not None:
            known = stimuli.ids if stimuli is not None else None
            responses = read_responses(
                responses, ids=ids, fallback_ids=known, **responses_options
            )
        if stimuli is not None and responses is not None and sample_dim(responses) != "time":
            stimuli, responses = _pair(stimuli, responses, unpaired)
        default = Path(str(name or "experiment")).stem
        return cls(stimuli, responses, card=dict(card or {}), name=default)

    def __repr__(self) -> str:
        """Return a short summary."""
        shown = "no responses" if self.responses is None else dict(self.responses.sizes)
        return f"<Experiment {self.name!r}: {self.stimuli!r}, responses {shown}>"


def _pair(
    stimuli: Stimuli, responses: xr.DataArray, unpaired: str
) -> tuple[Stimuli, xr.DataArray]:
    """Return stimuli and responses that belong to each other."""
    ids = sample_ids(responses)
    unknown = ids.difference(pd.Index(stimuli.ids), sort=False).unique()
    silent = pd.Index(stimuli.ids).difference(ids, sort=False)
    if unpaired == "error" and (len(unknown) or len(silent)):
        problems = []
        if len(unknown):
            problems.append(f"{len(unknown)} responses have unknown stimulus ids ({listed(unknown)})")
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
