"""Algonauts 2023: fMRI of eight subjects of the Natural Scenes Dataset, on the cortical surface."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neurodl.datasets.assemble import check_shape
from neurodl.datasets.experiment import Experiment
from neurodl.errors import (
    FileFormatError,
    MissingFileError,
    PairingError,
    UnknownNameError,
    did_you_mean,
    listed,
)
from neurodl.io.pickles import read_object_array
from neurodl.stimuli import Stimuli

logger = logging.getLogger(__name__)
SIDES = {"left": "lh", "right": "rh"}
CLASSES = (
    "prf-visualrois", "floc-bodies", "floc-faces", "floc-places", "floc-words", "streams",
)  # fmt: skip
N_NODES = 163842  # of fsaverage, each hemisphere
ROWS = 256


def load_algonauts2023(
    root: Path,
    subject: int = 1,
    roi: Sequence[str] | None = None,
    hemisphere: str = "both",
) -> Experiment:
    """Open the data of the Algonauts Project 2023.

    Parameters
    ----------
    root : Path
        The folder with ``subj01`` ... ``subj08``.
    subject : int
        1 to 8.
    roi : sequence of str, optional
        Regions of any class, such as V1v, FBA-1 or ventral; "V1" stands for V1v and V1d. Only
        their vertices are read.
    hemisphere : {"both", "left", "right"}

    Returns
    -------
    Experiment
        Responses to the training images with dims ``(stimulus, vertex)``, float32, averaged over
        repeats; those to the test images were not published. Coords hemisphere and node (the
        vertex of fsaverage), so that `Experiment.to_surface` works; one coord for each class of
        regions; and roi: of the visual areas, the category-selective regions and the streams the
        first that the vertex is in, "" for none. The attr ``rois_without_targets`` lists regions
        that the subject lacks. Images are called by their number in the Natural Scenes Dataset,
        "nsd-00013", which is the same in all subjects.

    Raises
    ------
    UnknownNameError
        There is no such region or hemisphere, or the subject has no vertex in it.
    MissingFileError, FileFormatError, PairingError
        A file is missing or holds something else; images and responses differ in number.

    References
    ----------
    Gifford et al. (2023), The Algonauts Project 2023 Challenge: How the human brain makes sense of
    natural scenes, arXiv:2301.03198.
    """
    if hemisphere not in ("both", *SIDES):
        raise UnknownNameError(
            f"`hemisphere` must be 'both', 'left' or 'right', but got {hemisphere!r}."
        )
    folder = root / f"subj{subject:02d}"
    stimuli = _images(folder)
    split = {
        part: stimuli.table.index[stimuli.table["part"] == part].tolist()
        for part in ("train", "test")
    }
    sides = list(SIDES) if hemisphere == "both" else [hemisphere]
    masks = {side: _masks(folder, SIDES[side]) for side in sides}
    chosen = {side: _vertices(masks[side], roi) for side in sides}
    n_chosen = [len(chosen[side]) for side in sides]
    if not sum(n_chosen):
        raise UnknownNameError(
            f"Subject {subject} has no vertex in {listed(roi or [])}; another subject may have."
        )
    values = np.empty((len(split["train"]), sum(n_chosen)), np.float32)
    for side, stop in zip(sides, np.cumsum(n_chosen), strict=True):
        columns = chosen[side]
        _read(folder, SIDES[side], columns, values[:, stop - len(columns) : stop], masks[side])
    coords: dict[str, Any] = {
        "stimulus": split["train"],
        "hemisphere": ("vertex", np.repeat(sides, n_chosen)),
        "node": ("vertex", np.concatenate([_nodes(folder, SIDES[s])[chosen[s]] for s in sides])),
    }
    for name in CLASSES:
        labels = [masks[side][name][chosen[side]] for side in sides]
        coords[name] = ("vertex", np.concatenate(labels))
    coords["roi"] = ("vertex", _first_region([coords[name][1] for name in CLASSES], roi))
    attrs = {
        "units": "beta, z-scored in sessions",
        "subject": f"sub-{subject:02d}",
        "space": "fsaverage",
        "n_nodes": [N_NODES, N_NODES],
    }
    lacking = _lacking(folder, masks, roi)
    if lacking:
        attrs["rois_without_targets"] = ", ".join(lacking)
    responses = xr.DataArray(values, dims=("stimulus", "vertex"), coords=coords, attrs=attrs)
    return Experiment(stimuli=stimuli, responses=responses, split=split, name="algonauts2023")


def _images(folder: Path) -> Stimuli:
    """Return the training and test images by their number in the Natural Scenes Dataset."""
    files, parts = [], []
    for part, inside in (("train", "training"), ("test", "test")):
        found = sorted((folder / f"{inside}_split" / f"{inside}_images").glob("*.png"))
        files += found
        parts += [part] * len(found)
    if "train" not in parts:
        raise MissingFileError(f"There are no training images in {folder}/training_split.")
    numbers = [file.stem.rpartition("_nsd-")[2] for file in files]
    if not all(number.isdigit() for number in numbers):
        wrong = next(file.name for file in files if not file.stem[-5:].isdigit())
        raise FileFormatError(f"{folder}: {wrong!r} is not named like 'train-0001_nsd-00013.png'.")
    stimuli = Stimuli.from_files(files, [f"nsd-{number}" for number in numbers])
    stimuli.table["part"] = parts
    stimuli.table["file"] = [file.name for file in files]
    return stimuli


def _masks(folder: Path, side: str) -> dict[str, np.ndarray]:
    """Return the name of each vertex's region, one array for each class; "" outside."""
    found = {}
    for name in CLASSES:
        path = folder / "roi_masks" / f"{side}.{name}_challenge_space.npy"
        numbers = read_object_array(path)
        check_shape(numbers, (None,), str(path))
        names = {0: "", **{n: "" if n == 0 else one for n, one in _mapping(folder, name).items()}}
        unknown = np.setdiff1d(numbers, list(names))
        if len(unknown):
            raise FileFormatError(f"{path} has regions {unknown.tolist()} that have no name.")
        found[name] = np.array([names[number] for number in numbers.tolist()], dtype="U16")
    if len({len(labels) for labels in found.values()}) > 1:
        raise FileFormatError(
            f"The masks of {side} in {folder} differ in their numbers of vertices."
        )
    return found


def _mapping(folder: Path, name: str) -> dict[int, str]:
    """Return the names of a class's regions by number."""
    path = folder / "roi_masks" / f"mapping_{name}.npy"
    content = read_object_array(path)
    mapping = content.item() if content.ndim == 0 else None
    if not isinstance(mapping, dict):
        raise FileFormatError(f"{path} holds no mapping of numbers to names.")
    return {int(number): str(one) for number, one in mapping.items()}


def _vertices(masks: Mapping[str, np.ndarray], roi: Sequence[str] | None) -> np.ndarray:
    """Return the numbers of the vertices that are in any of the regions; all without `roi`."""
    if roi is None:
        return np.arange(len(masks[CLASSES[0]]))
    return np.flatnonzero(np.any([np.isin(masks[name], list(roi)) for name in CLASSES], axis=0))


def _read(
    folder: Path, side: str, columns: np.ndarray, out: np.ndarray, masks: Mapping[str, np.ndarray]
) -> None:
    """Read the responses of some vertices, a few rows at a time."""
    path = folder / "training_split" / "training_fmri" / f"{side}_training_fmri.npy"
    stored = _mapped(path)
    check_shape(stored, (None, len(masks[CLASSES[0]])), str(path))
    if len(stored) != len(out):
        raise PairingError(
            f"{path} has responses to {len(stored)} images, but there are {len(out)} training "
            f"images in {folder}."
        )
    for start in range(0, len(out), ROWS):
        rows = _mapped(path)[start : start + ROWS]  # mapped anew, to let go of the last rows
        out[start : start + ROWS] = rows[:, columns]


def _mapped(path: Path) -> np.ndarray:
    """Return an array that stays on disk."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise MissingFileError(f"The file {path} does not exist.") from error
    except (ValueError, OSError, EOFError) as error:
        raise FileFormatError(f"Cannot read {path}: {error}") from error


def _nodes(folder: Path, side: str) -> np.ndarray:
    """Return the node of fsaverage of each vertex of this subject."""
    path = folder / "roi_masks" / f"{side}.all-vertices_fsaverage_space.npy"
    mask = read_object_array(path)
    check_shape(mask, (N_NODES,), str(path))
    return np.flatnonzero(mask)


def _first_region(classes: Sequence[np.ndarray], roi: Sequence[str] | None) -> np.ndarray:
    """Return of each vertex the first class's region that it is in, of those asked for."""
    found = np.full(len(classes[0]), "", dtype="U16")
    for labels in reversed(classes):
        there = (labels != "") if roi is None else np.isin(labels, list(roi))
        found[there] = labels[there]
    return found


def _lacking(
    folder: Path, masks: Mapping[str, Mapping[str, np.ndarray]], roi: Sequence[str] | None
) -> list[str]:
    """Return the regions, of those asked for, in which the subject has no vertex."""
    names = [one for name in CLASSES for n, one in _mapping(folder, name).items() if n]
    for name in roi or ():
        if name not in names:
            raise UnknownNameError(f"There is no region {name!r}. {did_you_mean(name, names)}")
    there = {str(one) for side in masks.values() for of in side.values() for one in np.unique(of)}
    return [name for name in names if name not in there and (roi is None or name in roi)]
