"""Retinotopic mapping at 7 T of the Human Connectome Project, on the cortical surface."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import xarray as xr
from nibabel.filebasedimages import ImageFileError

from neurodl.datasets.experiment import Experiment
from neurodl.errors import FileFormatError, MissingFileError, UnknownNameError, did_you_mean, listed
from neurodl.io.images import ArrayImage, image_stack
from neurodl.stimuli import Stimuli

logger = logging.getLogger(__name__)
RUNS = ("BAR1", "BAR2", "CCW", "CW", "EXP", "CON")
DAMAGED = (OSError, EOFError, ValueError, KeyError, AttributeError, ImageFileError)
CORTEX = {
    "left": "CIFTI_STRUCTURE_CORTEX_LEFT",
    "right": "CIFTI_STRUCTURE_CORTEX_RIGHT",
}


def load_hcp_retino(root: Path, runs: str | Iterable[str] | None = None) -> Experiment:
    """Open retinotopic mapping runs: bars, wedges and rings that pass through the visual field.

    Parameters
    ----------
    root : Path
        The folder with ``tfMRI_RETEXP_7T_AP.dtseries.nii`` and the other runs, at any depth.
    runs : str or iterable of str, optional
        Of BAR1, BAR2 (bars), CCW, CW (wedges), EXP, CON (rings); all that are there by default.

    Returns
    -------
    Experiment
        Responses with dims ``(time, vertex)``, float32, attr tr [s]: the vertices of the cortex;
        what lies below it is left out. Coords time (start of the sample), run, hemisphere and
        node (of the fsLR mesh of 32k nodes), so that `Experiment.to_surface` works. Stimuli are
        the frames that were shown, with onset and duration [s] and run, where an array of shape
        (n_frames, height, width, 3) is there whose name has the run's, such as ``RETEXP.npy``.

    Raises
    ------
    UnknownNameError, MissingFileError, FileFormatError
        There is no such run, or its file is missing or damaged.

    References
    ----------
    Benson et al. (2018), The Human Connectome Project 7 Tesla retinotopy dataset, Journal of
    Vision 18.
    """
    wanted = list(RUNS) if runs is None else [runs] if isinstance(runs, str) else list(runs)
    unknown = [run for run in wanted if run not in RUNS]
    if unknown:
        raise UnknownNameError(f"There is no run {unknown[0]!r}. {did_you_mean(unknown[0], RUNS)}")
    files = {run: sorted(root.rglob(f"tfMRI_RET{run}_7T_*.dtseries.nii")) for run in wanted}
    missing = [run for run, found in files.items() if not found]
    if missing and (runs is not None or len(missing) == len(wanted)):
        raise MissingFileError(f"There are no runs {listed(missing)} in {root}.")
    parts = [_read(found[0], run) for run, found in files.items() if found]
    first = parts[0]
    for part in parts[1:]:
        same = all(np.array_equal(part[name], first[name]) for name in ("hemisphere", "node"))
        if not same or part.attrs["tr"] != first.attrs["tr"]:
            raise FileFormatError("The runs differ in vertices or TR; are they of one subject?")
    responses = xr.concat(parts, dim="time", combine_attrs="override")
    return Experiment(stimuli=_frames(root, parts), responses=responses, name="hcp_retino")


def _read(path: Path, run: str) -> xr.DataArray:
    """Return the cortex of one run."""
    try:
        image = nib.load(path)
        series, brain = image.header.get_axis(0), image.header.get_axis(1)
        structures = {name: (columns, model) for name, columns, model in brain.iter_structures()}
        found = {side: structures[name] for side, name in CORTEX.items()}
        values = np.asarray(image.dataobj, dtype=np.float32)
    except DAMAGED as error:
        raise FileFormatError(f"Cannot read {path} as CIFTI time series: {error}") from error
    nodes = {side: np.asarray(model.vertex) for side, (_, model) in found.items()}
    counts = [len(one) for one in nodes.values()]
    n_nodes = [int(found[side][1].nvertices[name]) for side, name in CORTEX.items()]
    coords: dict[str, Any] = {
        "time": np.arange(len(values)) * float(series.step),
        "run": ("time", [run] * len(values)),
        "hemisphere": ("vertex", np.repeat(list(nodes), counts)),
        "node": ("vertex", np.concatenate(list(nodes.values()))),
    }
    attrs = {"units": "BOLD", "tr": float(series.step), "space": "fsLR", "n_nodes": n_nodes}
    cortex = np.hstack([values[:, columns] for columns, _ in found.values()])
    return xr.DataArray(cortex, dims=("time", "vertex"), coords=coords, attrs=attrs)


def _frames(root: Path, parts: list[xr.DataArray]) -> Stimuli | None:
    """Return the frames shown in each run, or None where they are not there."""
    sources: list[ArrayImage] = []
    tables = []
    for part in parts:
        run, seconds = str(part["run"].values[0]), len(part) * part.attrs["tr"]
        found = sorted(path for path in root.rglob("*.npy") if f"RET{run}" in path.stem.upper())
        if not found:
            logger.info("no stimuli: there are no frames of run %s in %s", run, root)
            return None
        try:
            frames = np.load(found[0], mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise FileFormatError(f"Cannot read {found[0]}: {error}") from error
        if frames.ndim != 4 or frames.shape[3] != 3:
            raise FileFormatError(
                f"{found[0]} has shape {frames.shape}; expected (n_frames, height, width, 3)."
            )
        lasts = seconds / len(frames)
        onsets = np.arange(len(frames)) * lasts
        ids = [f"{run}-{number:04d}" for number in range(len(frames))]
        tables.append(pd.DataFrame({"onset": onsets, "duration": lasts, "run": run}, index=ids))
        stack = image_stack(frames, name=found[0].name)
        sources += [ArrayImage(stack, number) for number in range(len(stack))]
    return Stimuli(sources, pd.concat(tables), "image")
