"""The Natural Scenes Dataset: fMRI of eight subjects, up to 30,000 presentations each, at 7 T."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import xarray as xr

from neurodl.datasets.assemble import check_shape
from neurodl.datasets.experiment import Experiment
from neurodl.errors import FileFormatError, MissingFileError, UnknownNameError, did_you_mean, listed
from neurodl.io.hdf5 import open_hdf5, read_mat, stored
from neurodl.io.images import StoredImage
from neurodl.stimuli import Stimuli

BETAS = "nsddata_betas/ppdata/subj{:02d}/func1pt8mm/betas_fithrf_GLMdenoise_RR"
REGIONS = "nsddata/ppdata/subj{:02d}/func1pt8mm/roi"
LABELS = "nsddata/freesurfer/subj{:02d}/label"
DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
DESIGN_KEYS = ("masterordering", "subjectim", "sharedix")
IMAGES = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
CLASSES = (
    "prf-visualrois", "floc-bodies", "floc-faces", "floc-places", "floc-words", "streams",
)  # fmt: skip
GENERAL = "nsdgeneral"
N_SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)
N_TRIALS = 750
SCALE = 300  # stored integers per percent
BLOCK = 25  # trials


def load_nsd(
    root: Path,
    subject: int = 1,
    roi: Sequence[str] | None = None,
    sessions: Iterable[int] | None = None,
    images: bool = False,
) -> Experiment:
    """Open betas of one subject of the Natural Scenes Dataset, in the volume of 1.8 mm.

    Parameters
    ----------
    root : Path
        The folder with ``nsddata``, ``nsddata_betas`` and ``nsddata_stimuli``.
    subject : int
        1 to 8.
    roi : sequence of str, optional
        Regions, such as V1v, FFA-1 or ventral; "V1" stands for V1v and V1d. By default nsdgeneral,
        the visual cortex that responds.
    sessions : iterable of int, optional
        Which sessions, from 1; all that are published by default.
    images : bool
        Whether the photographs (37 GB) are fetched and must be there; they are used if they are.

    Returns
    -------
    Experiment
        Responses with dims ``(presentation, voxel)``, percent signal change, float32, version
        b3 of the betas. Coords stimulus, repeat and session (presentation); roi, i, j and k
        (voxel), so that `Experiment.to_nifti` works. Images are called by their number from 0,
        "nsd-00013". The test split are the images that all subjects were meant to see. The
        ceiling is that of means over the presentations that are read. Only voxels of the regions
        are kept, 25 trials at a time.

    Raises
    ------
    UnknownNameError
        There is no such region or session, or the subject has no voxel in it.
    MissingFileError, FileFormatError
        A file is missing or holds something else.

    References
    ----------
    Allen et al. (2022), A massive 7T fMRI dataset to bridge cognitive neuroscience and artificial
    intelligence, Nature Neuroscience 25.
    """
    wanted = _sessions(subject, sessions)
    names, affine = _regions(root, subject, roi)
    places = np.nonzero(names != "")
    trials = _trials(root, subject, wanted)
    values = np.empty((len(trials), len(places[0])), np.float32)
    for number, session in enumerate(wanted):
        path = root / BETAS.format(subject) / f"betas_session{session:02d}.hdf5"
        _read(path, places, names.shape, values[number * N_TRIALS : (number + 1) * N_TRIALS])
    coords: dict[str, Any] = {
        name: ("presentation", np.array(trials[name].tolist()))
        for name in ("stimulus", "repeat", "session")
    }
    coords |= {name: ("voxel", at) for name, at in zip("ijk", places, strict=True)}
    coords["roi"] = ("voxel", names[places])
    attrs = {
        "units": "percent signal change",
        "subject": f"sub-{subject:02d}",
        "space": "func1pt8mm",
        "affine": affine.ravel(),
        "shape": list(names.shape),
    }
    responses = xr.DataArray(values, dims=("presentation", "voxel"), coords=coords, attrs=attrs)
    seen = trials.drop_duplicates("stimulus")
    split = {
        "train": seen.loc[~seen["shared"], "stimulus"].tolist(),
        "test": seen.loc[seen["shared"], "stimulus"].tolist(),
    }
    return Experiment(
        stimuli=_stimuli(root, sorted(seen["stimulus"]), images),
        responses=responses,
        ceiling=_ceiling(root, subject, places, responses),
        split=split,
        name="nsd",
    )


def _sessions(subject: int, sessions: Iterable[int] | None) -> list[int]:
    published = list(range(1, N_SESSIONS[subject - 1] + 1))
    wanted = published if sessions is None else [int(session) for session in sessions]
    unknown = [session for session in wanted if session not in published]
    if unknown or not wanted or len(set(wanted)) < len(wanted):
        raise UnknownNameError(
            f"`sessions` of subject {subject} are different numbers from 1 to {len(published)}, "
            f"but got {wanted}."
        )
    return wanted


def _regions(root: Path, subject: int, roi: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the region of each voxel, "" outside, and the affine."""
    folder = root / REGIONS.format(subject)
    if roi is None or list(roi) == [GENERAL]:
        numbers, affine = _volume(folder / f"{GENERAL}.nii.gz")
        return np.where(numbers > 0, GENERAL, ""), affine
    known: list[str] = []
    names, affine = np.empty(0), np.eye(4)
    for one in CLASSES:
        labels = _labels(root / LABELS.format(subject) / f"{one}.mgz.ctab")
        known += labels.values()
        wanted = {number: name for number, name in labels.items() if name in roi}
        if wanted:
            numbers, affine = _volume(folder / f"{one}.nii.gz")
            names = names if names.size else np.full(numbers.shape, "", "U16")
            for number, name in wanted.items():
                names[(numbers == number) & (names == "")] = name
    unknown = [name for name in roi if name not in known]
    if unknown:
        near = did_you_mean(unknown[0], [*known, GENERAL])
        raise UnknownNameError(f"There is no region {unknown[0]!r}. {near}")
    if not (names != "").any():
        raise UnknownNameError(f"Subject {subject} has no voxel in {listed(roi)}.")
    return names, affine


def _volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise MissingFileError(f"The file {path} does not exist.")
    image = nib.load(path)
    return np.asarray(image.dataobj).astype(np.int32), image.affine


def _labels(path: Path) -> dict[int, str]:
    """Return the names of regions by number, from lines such as ``1 V1v``."""
    if not path.is_file():
        raise MissingFileError(f"The file {path} does not exist.")
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    try:
        return {int(line[0]): line[1] for line in lines if line and int(line[0]) > 0}
    except (ValueError, IndexError) as error:
        raise FileFormatError(f"{path} is no list of numbers and names.") from error


def _trials(root: Path, subject: int, sessions: list[int]) -> pd.DataFrame:
    """Return stimulus, repeat, session and whether it is shared, one row per presentation."""
    path = root / DESIGN
    design = read_mat(path, DESIGN_KEYS)
    order, images, shared = (design[key].astype(np.int64) for key in DESIGN_KEYS)
    order, shared = order.ravel(), shared.ravel()
    check_shape(order, (40 * N_TRIALS,), f"{path}: masterordering")
    check_shape(images, (8, None), f"{path}: subjectim")
    numbers = images[subject - 1][order - 1] - 1  # of images, from 0
    repeat = pd.Series(numbers).groupby(numbers).cumcount().to_numpy() + 1
    table = pd.DataFrame(
        {
            "stimulus": [f"nsd-{number:05d}" for number in numbers],
            "repeat": repeat,
            "session": [str(session) for session in np.repeat(np.arange(1, 41), N_TRIALS)],
            "shared": np.isin(numbers, shared - 1),
        }
    )
    rows = [np.arange((session - 1) * N_TRIALS, session * N_TRIALS) for session in sessions]
    return table.iloc[np.concatenate(rows)].reset_index(drop=True)


def _read(
    path: Path, places: tuple[np.ndarray, ...], shape: Sequence[int], out: np.ndarray
) -> None:
    """Read the betas of some voxels in a session; in the file the axes are reversed."""
    with open_hdf5(path) as file:
        betas = stored(file, "betas")
        check_shape(betas, (N_TRIALS, *reversed(shape)), f"{path}: betas")
        for start in range(0, N_TRIALS, BLOCK):
            block = betas[start : start + BLOCK]
            out[start : start + BLOCK] = block[:, places[2], places[1], places[0]]
    out /= SCALE


def _ceiling(
    root: Path, subject: int, places: tuple[np.ndarray, ...], responses: xr.DataArray
) -> xr.DataArray | None:
    """Return the reliability of means over the presentations, from the published ncsnr."""
    path = root / BETAS.format(subject) / "ncsnr.nii.gz"
    if not path.is_file():
        return None
    squared = np.asarray(nib.load(path).dataobj)[places].astype(np.float64) ** 2
    shown = np.unique(responses["stimulus"].values, return_counts=True)[1]
    coords = {key: one for key, one in responses.coords.items() if one.dims == ("voxel",)}
    return xr.DataArray(
        (squared / (squared + (1 / shown).mean())).astype(np.float32),
        dims="voxel",
        coords=coords,
        attrs={"units": "reliability (variance)", "method": "ncsnr", "n_averaged": "all"},
    )


def _stimuli(root: Path, ids: list[str], needed: bool) -> Stimuli | None:
    """Return the images, decoded when asked for, or None where they are not there."""
    path = root / IMAGES
    if not path.is_file() and not needed:
        return None
    sources = [StoredImage(path, "imgBrick", int(name.removeprefix("nsd-"))) for name in ids]
    return Stimuli(sources, pd.DataFrame(index=ids), "image")
