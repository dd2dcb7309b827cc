"""Experiment: the stimuli and the responses to them, paired by id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import xarray as xr

from neurodl.datasets.own_files import estimate_betas, events_of_runs, one_of, paired
from neurodl.errors import PairingError, SchemaError, listed
from neurodl.io.arrays import read_responses
from neurodl.io.bids import read_bids
from neurodl.io.maps import parcels_to_image, parcels_to_surface, to_surface
from neurodl.io.nifti import to_image
from neurodl.io.nwb import read_intervals, read_spikes, read_units
from neurodl.io.suite2p import read_suite2p
from neurodl.schema import check_responses, sample_dim, sample_ids
from neurodl.stimuli import Stimuli


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
    units : pandas.DataFrame, optional
        What is known of the units, indexed by their ids: area, depth, quality ...
    rdms : mapping of str to xarray.DataArray, optional
        Published representational dissimilarity matrices by name, with dims
        ``([subject, session, time,] stimulus, other)``.
    features : mapping of str to xarray.DataArray, optional
        Published features by name, such as the motion of the animal's face.
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
    units: pd.DataFrame | None = None
    rdms: Mapping[str, xr.DataArray] | None = None
    features: Mapping[str, xr.DataArray] | None = None
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
        events: Any = None,
        betas: Mapping[str, Any] | None = None,
        n_frames: int | None = None,
        fps: float | None = None,
        value_range: Sequence[float] | None = None,
        stimuli_key: str | None = None,
        stimuli_ids: Sequence[str] | None = None,
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
        responses : path, list of paths (runs), numpy.ndarray or xarray.DataArray
            See `read_responses`: .npy, .npz, .nc, .tsv, .csv, .nii or .nii.gz.
        ids : sequence of str, optional
            The stimulus id of each response row. By default the ids stored with the
            responses; a bare array without ids must have exactly one row per stimulus, in the
            order of ``stimuli.ids``.
        events : path, list of paths or pandas.DataFrame, optional
            What happened when, for time series: one ``events.tsv`` per run, in the order of the
            runs, or one table with a column run.
        betas : mapping, optional
            Turn the time series into one response per event; see `estimate_betas`.
        n_frames, fps, value_range, stimuli_key, stimuli_ids
            See `Stimuli.from_files`, where the last two are ``key`` and ``ids``.
        unpaired : {"error", "drop"}
            What to do with responses to unknown stimuli and stimuli without responses.
        name, card
            See `Experiment`.
        **responses_options
            Passed to `read_responses`: dims, units, mask, subject, tr, roi, key ...

        Raises
        ------
        PairingError
            Numbers or ids do not agree; the message names them.
        """
        if unpaired not in ("error", "drop"):
            raise ValueError(f"`unpaired` must be 'error' or 'drop', but got {unpaired!r}.")
        if stimuli is not None and not isinstance(stimuli, Stimuli):
            stimuli = Stimuli.from_files(
                stimuli,
                stimuli_ids,
                n_frames=n_frames,
                fps=fps,
                key=stimuli_key,
                value_range=value_range,
            )
        table = None
        if responses is not None:
            known = stimuli.ids if stimuli is not None else None
            responses = read_responses(responses, ids=ids, fallback_ids=known, **responses_options)
            table = None if events is None else events_of_runs(events, responses)
        return cls._assembled(stimuli, responses, table, betas, unpaired, name, card)

    @classmethod
    def from_bids(
        cls,
        root: str | Path,
        *,
        subject: str,
        task: str,
        stimuli: Any = None,
        betas: Mapping[str, Any] | None = None,
        n_frames: int | None = None,
        fps: float | None = None,
        unpaired: str = "error",
        name: str | None = None,
        card: Mapping[str, str] | None = None,
        **bids_options: Any,
    ) -> Experiment:
        """Open one subject and task of a BIDS folder, and the stimuli that its events name.

        Parameters
        ----------
        root, subject, task
            See `read_bids`.
        stimuli : path, list of paths or Stimuli, optional
            See `Stimuli.from_files`. Events name them in a column stimulus or stim_file.
        betas : mapping, optional
            Turn the time series into one response per event; see `estimate_betas`.
        n_frames, fps, unpaired, name, card
            See `from_files`.
        **bids_options
            Passed to `read_bids`: mask, atlas_labels, session, space, confounds, derivatives ...

        Raises
        ------
        MissingFileError, FileFormatError, PairingError
            The message names what is missing or does not agree.
        """
        if unpaired not in ("error", "drop"):
            raise ValueError(f"`unpaired` must be 'error' or 'drop', but got {unpaired!r}.")
        if stimuli is not None and not isinstance(stimuli, Stimuli):
            stimuli = Stimuli.from_files(stimuli, n_frames=n_frames, fps=fps)
        responses, events = read_bids(root, subject=subject, task=task, **bids_options)
        return cls._assembled(stimuli, responses, events, betas, unpaired, name, card)

    @classmethod
    def _assembled(
        cls,
        stimuli: Stimuli | None,
        responses: xr.DataArray | None,
        events: pd.DataFrame | None,
        betas: Mapping[str, Any] | None,
        unpaired: str,
        name: str | None,
        card: Mapping[str, str] | None,
    ) -> Experiment:
        """Return an experiment from its opened parts."""
        if betas is not None:
            if responses is None or events is None:
                raise ValueError("`betas` are estimated from time series and `events`; give both.")
            responses = estimate_betas(responses, events, **betas)
        if stimuli is not None and responses is not None and sample_dim(responses) != "time":
            stimuli, responses = paired(stimuli, responses, unpaired)
        return cls(
            stimuli, responses, events=events, card=dict(card or {}), name=name or "experiment"
        )

    @classmethod
    def from_nwb(
        cls,
        path: str | Path,
        *,
        session: str | None = None,
        intervals: str | None = None,
        stimuli: Any = None,
        name: str | None = None,
        card: Mapping[str, str] | None = None,
    ) -> Experiment:
        """Open the units and the events of an NWB file, or of one in a folder.

        Parameters
        ----------
        path : str or Path
        session : str, optional
            Which file of a folder that has several: its name or a part of it.
        intervals : str, optional
            Which table of intervals the events are, such as "trials"; see `read_intervals`.
        stimuli : path, list of paths or Stimuli, optional
            See `Stimuli.from_files`. Events name them in a column stimulus.
        name, card
            See `Experiment`.

        Returns
        -------
        Experiment
            Spikes [s] and a table of units by id, and events on the same clock, for `bin_spikes`.

        Raises
        ------
        MissingFileError, FileFormatError, UnknownNameError
            There is no file, session or table, or the file is damaged.
        """
        file = one_of(Path(path).expanduser(), "*.nwb", session)
        if stimuli is not None and not isinstance(stimuli, Stimuli):
            stimuli = Stimuli.from_files(stimuli)
        return cls(
            stimuli,
            spikes=read_spikes(file),
            events=read_intervals(file, intervals),
            units=read_units(file),
            card=dict(card or {}),
            name=name or file.stem,
        )

    @classmethod
    def from_suite2p(
        cls,
        folder: str | Path,
        *,
        signal: str = "spks",
        cells_only: bool = True,
        rate: float | None = None,
        name: str | None = None,
        card: Mapping[str, str] | None = None,
    ) -> Experiment:
        """Open what suite2p found in calcium imaging; see `read_suite2p`.

        Parameters
        ----------
        folder, signal, cells_only, rate
            See `read_suite2p`.
        name, card
            See `Experiment`.
        """
        responses = read_suite2p(folder, signal=signal, cells_only=cells_only, rate=rate)
        return cls(responses=responses, card=dict(card or {}), name=name or "suite2p")

    def to_nifti(self, values: xr.DataArray, *, fill: float = 0.0) -> nib.Nifti1Image:
        """Put one value per voxel or parcel of the responses back into a brain image.

        Parameters
        ----------
        values : xarray.DataArray
            Such as a map of scores, dim ``voxel`` or ``parcel``; see `to_image`.
        fill : float
            What stands outside.

        Raises
        ------
        SchemaError
            It is not known where the targets lie in a volume.
        """
        attrs = {} if self.responses is None else self.responses.attrs
        if "parcel" in values.dims:
            if "atlas" not in attrs:
                raise SchemaError(f"{self.name} has no atlas volume of its parcels.")
            return parcels_to_image(values, attrs["atlas"], fill=fill)
        return to_image(values, like=self.responses, fill=fill)

    def to_surface(
        self, values: xr.DataArray, *, fill: float = float("nan")
    ) -> dict[str, np.ndarray]:
        """Put one value per vertex or parcel of the responses on the meshes of both hemispheres.

        See `neurodl.io.maps.to_surface`.

        Raises
        ------
        SchemaError
            It is not known where the targets lie on a surface.
        """
        attrs = {} if self.responses is None else self.responses.attrs
        if "parcel" in values.dims:
            if "surface_atlas" not in attrs:
                raise SchemaError(f"{self.name} has no surface atlas of its parcels.")
            return parcels_to_surface(values, attrs["surface_atlas"], fill=fill)
        return to_surface(values, like=self.responses, fill=fill)

    def __repr__(self) -> str:
        """Return a short summary."""
        shown = "no responses" if self.responses is None else dict(self.responses.sizes)
        return f"<Experiment {self.name!r}: {self.stimuli!r}, responses {shown}>"
