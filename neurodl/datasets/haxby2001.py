"""Haxby et al. 2001: fMRI of six subjects who saw blocks of photographs of eight categories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from neurodl.datasets.assemble import first_file
from neurodl.datasets.experiment import Experiment
from neurodl.errors import FileFormatError, MissingFileError, UnknownNameError, did_you_mean
from neurodl.io.nifti import read_nifti
from neurodl.io.volumes import open_image

TR = 2.5
REST = "rest"
MASKS = {
    "vt": "mask4_vt",
    "face": "mask8_face_vt",
    "house": "mask8_house_vt",
    "face_little": "mask8b_face_vt",
    "house_little": "mask8b_house_vt",
}


def load_haxby2001(root: Path, subject: int = 2, roi: Sequence[str] | None = None) -> Experiment:
    """Open one subject of Haxby et al. 2001, as nilearn lays it out.

    Parameters
    ----------
    root : Path
        The folder with ``subj1`` ..., or with nilearn's ``haxby2001``.
    subject : int
        1 to 6; by default 2, nilearn's own.
    roi : sequence of str, optional
        Of "vt" (ventral temporal cortex, the default), "face", "house", "face_little" and
        "house_little"; or "brain", found by its brightness. Subject 6 has fewer masks.

    Returns
    -------
    Experiment
        Responses with dims ``(time, voxel)``, attr tr = 2.5 s, not scaled. Coords time (start of
        the volume in its run [s]) and run ("0" to "11"); roi, i, j and k (voxel). Events are the
        blocks: onset and duration [s], trial_type (the category) and run. Rest is no event.

    Raises
    ------
    UnknownNameError, MissingFileError, FileFormatError
        There is no such region; a file is missing or holds something else.

    References
    ----------
    Haxby et al. (2001), Distributed and overlapping representations of faces and objects in ventral
    temporal cortex, Science 293.
    """
    image = first_file(root, [f"{top}subj{subject}/bold.nii.gz" for top in ("", "haxby2001/")])
    folder = image.parent
    labels = _labels(folder / "labels.txt")
    runs = labels["chunks"].tolist()
    if open_image(image).shape[3:] != (len(runs),):
        raise FileFormatError(
            f"{image} has the shape {open_image(image).shape}, but labels.txt {len(runs)} volumes."
        )
    names = list(roi or ["vt"])
    if names == ["brain"]:
        responses = read_nifti(image, mask="auto", runs=runs, tr=TR)
    else:
        atlas = _atlas(folder, names, subject)
        regions = dict(enumerate(names, 1))
        responses = read_nifti(image, mask=atlas, atlas_labels=regions, runs=runs, tr=TR)
    responses.attrs["subject"] = f"sub-{subject:02d}"
    return Experiment(responses=responses, events=_blocks(labels), name="haxby2001")


def _labels(path: Path) -> pd.DataFrame:
    """Return the category (labels) and the run (chunks) of each volume, as text."""
    if not path.is_file():
        raise MissingFileError(f"The file {path} does not exist.")
    table = pd.read_csv(path, sep=" ", dtype=str)
    if list(table.columns) != ["labels", "chunks"] or table.isna().any(axis=None):
        raise FileFormatError(f"{path} must have the columns labels and chunks, without gaps.")
    return table


def _atlas(folder: Path, names: Sequence[str], subject: int) -> nib.Nifti1Image:
    """Return the regions' masks in one volume, numbered from 1; the first one counts."""
    atlas, affine = np.empty(0), np.eye(4)
    for number, name in reversed(list(enumerate(names, 1))):
        if name not in MASKS:
            raise UnknownNameError(
                f"There is no region {name!r}. {did_you_mean(name, [*MASKS, 'brain'])}"
            )
        path = folder / f"{MASKS[name]}.nii.gz"
        if not path.is_file():
            raise MissingFileError(f"Subject {subject} has no mask {name!r}: {path} is missing.")
        image = open_image(path)
        inside = np.asarray(image.dataobj) != 0
        atlas = atlas if atlas.size else np.zeros(inside.shape, np.int16)
        atlas[inside.reshape(atlas.shape)] = number
        affine = image.affine
    return nib.Nifti1Image(atlas, affine)


def _blocks(labels: pd.DataFrame) -> pd.DataFrame:
    """Return the blocks of the same category in a row, without rest."""
    new = (labels != labels.shift()).any(axis=1).cumsum()
    place = labels.groupby("chunks", sort=False).cumcount() * TR
    blocks = labels.assign(onset=place).groupby(new)
    table = pd.DataFrame(
        {
            "onset": blocks["onset"].first(),
            "duration": blocks.size() * TR,
            "trial_type": blocks["labels"].first(),
            "run": blocks["chunks"].first(),
        }
    )
    return table[table["trial_type"] != REST].reset_index(drop=True)
