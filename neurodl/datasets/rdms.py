"""Datasets that were published as representational dissimilarity matrices (RDMs)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import xarray as xr

from neurodl.datasets.assemble import check_shape, first_file
from neurodl.datasets.experiment import Experiment
from neurodl.errors import FileFormatError, PairingError
from neurodl.io.hdf5 import open_hdf5, read_mat, stored
from neurodl.stimuli import Stimuli

logger = logging.getLogger(__name__)
SCENES, IMAGES = 50, 92
MEG = ("MEG_decoding_RDMs.mat", "MEG_decoding_RDMs")
N_MEG, N_SESSIONS, N_TIMES, N_FMRI = 16, 2, 1301, 15
FIRST, STEP = -0.1, 0.001  # s, of the MEG
SEARCHLIGHTS = "sl_rad=1__max_blk_edge=2/all_sub_slrdms.npy"


def load_bonner2017(root: Path) -> Experiment:
    """Open the RDMs of Bonner & Epstein 2017: where one can walk in 50 indoor scenes.

    Parameters
    ----------
    root : Path
        The folder with ``EVC.mat``, ``PPA.mat``, ``OPA.mat``, ``NAM.mat`` and, if wanted, the
        searchlights, ``mask.nii`` and ``stimuli``, at any depth.

    Returns
    -------
    Experiment
        ``rdms``: "EVC", "PPA" and "OPA" (fMRI) and "NAM" (maps of navigational affordances), dims
        ``([subject,] stimulus, other)``; and "searchlights", dims ``(subject, searchlight,
        stimulus, other)``, a memory map, with i, j, k where the mask fits.

    Raises
    ------
    MissingFileError, FileFormatError, PairingError
        A file is missing or holds something else; there are not 50 scenes.

    References
    ----------
    Bonner & Epstein (2017), Coding of navigational affordances in the human visual system, PNAS
    114.
    """
    ids = [f"scene-{number:02d}" for number in range(1, SCENES + 1)]
    rdms = {}
    for name in ("EVC", "PPA", "OPA", "NAM"):
        path = first_file(root, [f"{name}.mat", f"**/{name}.mat"])
        rdms[name] = _rdms(read_mat(path, ["rdm"])["rdm"], ids, str(path))
    found = sorted(root.rglob(SEARCHLIGHTS))
    if found:
        rdms["searchlights"] = _searchlights(found[0], root, ids)
    stimuli = _images(root, "stimuli", ids)
    return Experiment(stimuli=stimuli, rdms=rdms, name="bonner2017")


def load_cichy2014(
    root: Path, subjects: Sequence[int] | None = None, window: Sequence[float] | None = None
) -> Experiment:
    """Open the RDMs of Cichy et al. 2014: 92 images in MEG over time, and in fMRI.

    Parameters
    ----------
    root : Path
        The folder with ``MEG_decoding_RDMs.mat`` and ``92_Image_Set``, at any depth.
    subjects : sequence of int, optional
        Which of the 16 subjects of the MEG, from 1; all by default. All take 1.4 GB.
    window : (start, stop), optional
        Which times of the MEG [s]; -0.1 to 1.2 by default.

    Returns
    -------
    Experiment
        ``rdms``: "MEG", pairwise decoding accuracy, dims ``(subject, session, time, stimulus,
        other)``, with the diagonals as published, NaN; "EVC" and "IT", 1 - correlation, dims
        ``(subject, stimulus, other)``, of 15 subjects.

    Raises
    ------
    MissingFileError, FileFormatError, PairingError
        A file is missing or holds something else; there are not 92 images.

    References
    ----------
    Cichy, Pantazis & Oliva (2014), Resolving human object recognition in space and time, Nature
    Neuroscience 17.
    """
    ids = [f"image-{number:02d}" for number in range(1, IMAGES + 1)]
    path = first_file(root, ["92_Image_Set/target_fmri.mat", "**/target_fmri.mat"])
    fmri = read_mat(path, ["EVC_RDMs", "IT_RDMs"])
    rdms = {"MEG": _meg(first_file(root, [MEG[0], f"**/{MEG[0]}"]), ids, subjects, window)}
    for name in ("EVC", "IT"):
        array = fmri[f"{name}_RDMs"]
        check_shape(array, (N_FMRI, IMAGES, IMAGES), f"{path}: {name}_RDMs")
        rdms[name] = _rdms(array, ids, f"{path}: {name}_RDMs")
    return Experiment(stimuli=_images(root, "92images", ids), rdms=rdms, name="cichy2014")


def _rdms(array: np.ndarray, ids: list[str], what: str) -> xr.DataArray:
    """Return RDMs, of subjects where there is a third dim, after a look at their symmetry."""
    check_shape(array, (*(None,) * (array.ndim - 2), len(ids), len(ids)), what)
    if array.ndim not in (2, 3):
        raise FileFormatError(f"{what} has shape {array.shape}; expected 2 or 3 dims.")
    flipped = np.swapaxes(array, -1, -2)
    if not np.allclose(array, flipped, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise FileFormatError(f"{what} is not symmetric, so it holds no dissimilarities.")
    dims = ("subject", "stimulus", "other")[3 - array.ndim :]
    coords: dict[str, Any] = {"stimulus": ids, "other": ids}
    if array.ndim == 3:
        coords["subject"] = _subjects(len(array))
    return xr.DataArray(array.astype(np.float32), dims=dims, coords=coords)


def _subjects(count: int) -> list[str]:
    return [f"sub-{number:02d}" for number in range(1, count + 1)]


def _searchlights(path: Path, root: Path, ids: list[str]) -> xr.DataArray:
    """Return the RDMs of all searchlights, which stay on disk."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FileFormatError(f"Cannot read {path}: {error}") from error
    check_shape(array, (None, None, len(ids), len(ids)), str(path))
    coords: dict[str, Any] = {"subject": _subjects(len(array)), "stimulus": ids, "other": ids}
    dims = ("subject", "searchlight", "stimulus", "other")
    attrs: dict[str, Any] = {}
    masks = sorted(root.rglob("mask.nii*"))
    if masks:
        image = nib.load(masks[0])
        places = np.nonzero(np.asarray(image.dataobj))
        if len(places[0]) == array.shape[1]:
            coords |= {name: ("searchlight", at) for name, at in zip("ijk", places, strict=True)}
            attrs = {"affine": image.affine.ravel(), "shape": list(image.shape)}
    return xr.DataArray(array, dims=dims, coords=coords, attrs=attrs)


def _meg(
    path: Path, ids: list[str], subjects: Sequence[int] | None, window: Sequence[float] | None
) -> xr.DataArray:
    """Read some subjects and times; the file's axes are those of MATLAB reversed."""
    numbers = list(range(1, N_MEG + 1)) if subjects is None else [int(one) for one in subjects]
    if not numbers or not set(numbers) <= set(range(1, N_MEG + 1)):
        raise ValueError(f"`subjects` are numbers from 1 to {N_MEG}, but got {subjects}.")
    times = np.round(FIRST + np.arange(N_TIMES) * STEP, 3)
    start, stop = (times[0], times[-1]) if window is None else window
    rows = np.flatnonzero((times >= start - STEP / 2) & (times <= stop + STEP / 2))
    if not len(rows):
        raise ValueError(f"`window` must lie in {times[0]} to {times[-1]} s, but got {window}.")
    first, last = int(rows[0]), int(rows[-1]) + 1
    shape = (N_MEG, N_SESSIONS, N_TIMES, IMAGES, IMAGES)
    found = np.empty((len(numbers), N_SESSIONS, last - first, IMAGES, IMAGES), np.float32)
    if h5py.is_hdf5(path):
        with open_hdf5(path) as file:
            array = stored(file, MEG[1])
            check_shape(array, shape[::-1], f"{path}: {MEG[1]}")
            for row, number in enumerate(numbers):
                found[row] = array[:, :, first:last, :, number - 1].T
    else:
        array = read_mat(path, [MEG[1]])[MEG[1]]
        check_shape(array, shape, f"{path}: {MEG[1]}")
        found[:] = array[[number - 1 for number in numbers], :, first:last]
    names = _subjects(N_MEG)
    coords = {
        "subject": [names[number - 1] for number in numbers],
        "session": ["1", "2"],
        "time": times[first:last],
        "stimulus": ids,
        "other": ids,
    }
    dims = ("subject", "session", "time", "stimulus", "other")
    attrs = {"units": "decoding accuracy [%]"}
    return xr.DataArray(found, dims=dims, coords=coords, attrs=attrs)


def _images(root: Path, name: str, ids: list[str]) -> Stimuli | None:
    """Return the images, whose sorted names are the order of the RDMs; None without them."""
    folders = sorted(path for path in root.rglob(name) if path.is_dir())
    suffixes = (".jpg", ".jpeg", ".png")
    files = sorted(
        path for path in (folders[0].iterdir() if folders else ()) if path.suffix in suffixes
    )
    if not files:
        logger.info("no stimuli: there are no images in a folder %s of %s", name, root)
        return None
    if len(files) != len(ids):
        raise PairingError(f"{folders[0]} holds {len(files)} images; the RDMs are of {len(ids)}.")
    stimuli = Stimuli.from_files(files, ids)
    stimuli.table["file"] = [file.name for file in files]
    return stimuli
