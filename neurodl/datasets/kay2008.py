"""Kay et al. 2008: fMRI of one subject who saw 1870 natural photographs in grey."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import xarray as xr

from neurodl.datasets.experiment import Experiment
from neurodl.errors import FileFormatError, SchemaError, listed
from neurodl.io.images import image_stack
from neurodl.io.pickles import read_object_array, read_object_arrays
from neurodl.stimuli import Stimuli

logger = logging.getLogger(__name__)
IMAGES = "kay_images.npz"
LABELS = ("kay_labels.npy", "kay_labels_val.npy")
N_LEVELS = 3


def load_kay2008(root: Path) -> Experiment:
    """Open the data of Kay et al. 2008 as published for the Neuromatch Academy.

    Parameters
    ----------
    root : Path
        The folder with ``kay_images.npz`` and, if wanted, ``kay_labels.npy`` and
        ``kay_labels_val.npy``.

    Returns
    -------
    Experiment
        Responses with dims ``(stimulus, voxel)``, z-scored amplitudes, float32; those to the test
        images are averages over repeats. Coord roi (voxel). Stimuli "train-0000" ... and
        "test-000" ..., with the columns category_1 to category_3, coarse to fine, and label where
        the labels are there. The split is the published one. There are no voxel coordinates and no
        noise ceiling. Of the images' values, the range of the training images becomes black to
        white.

    Raises
    ------
    FileFormatError, SchemaError
        A file is damaged or holds something else.

    References
    ----------
    Kay, Naselaris, Prenger & Gallant (2008), Identifying natural images from human brain activity,
    Nature 452.
    """
    found = read_object_arrays(
        root / IMAGES,
        ["responses", "responses_test", "roi", "roi_names", "stimuli", "stimuli_test"],
    )
    pixels = found.pop("stimuli"), found.pop("stimuli_test")
    responses = found["responses"], found["responses_test"]
    for name, images, rows in zip(("", "_test"), pixels, responses, strict=True):
        if images.ndim != 3 or rows.ndim != 2 or len(images) != len(rows):
            raise SchemaError(
                f"{root / IMAGES}: stimuli{name} of shape {images.shape} and responses{name} of "
                f"shape {rows.shape} are not of the same images."
            )
    ids = [f"train-{number:04d}" for number in range(len(pixels[0]))]
    split = {"train": ids, "test": [f"test-{number:03d}" for number in range(len(pixels[1]))]}
    names = split["train"] + split["test"]
    # The test images must not say how the training images look.
    black_to_white = float(pixels[0].min()), float(pixels[0].max())
    stacks = [image_stack(one, value_range=black_to_white, name=IMAGES) for one in pixels]
    stimuli = Stimuli.from_arrays(np.concatenate(stacks), names)
    for name, values in _labels(root, [len(one) for one in pixels]).items():
        stimuli.table[name] = values
    joined = xr.DataArray(
        np.concatenate(responses).astype(np.float32),
        dims=("stimulus", "voxel"),
        coords={"stimulus": names, "roi": ("voxel", _rois(found, responses[0].shape[1]))},
        attrs={"units": "z-scored BOLD amplitude", "subject": "sub-01"},
    )
    return Experiment(stimuli=stimuli, responses=joined, split=split, name="kay2008")


def _rois(found: dict[str, np.ndarray], n_voxels: int) -> np.ndarray:
    """Return the name of each voxel's region."""
    numbers, names = found["roi"], [str(name) for name in found["roi_names"].ravel()]
    if numbers.shape != (n_voxels,) or not np.isin(numbers, range(len(names))).all():
        raise SchemaError(
            f"{IMAGES}: roi must number the {n_voxels} voxels by {listed(names, 20)}, but has "
            f"shape {numbers.shape} and values from {numbers.min()} to {numbers.max()}."
        )
    return np.array(names)[numbers.astype(int)]


def _labels(folder: Path, lengths: list[int]) -> dict[str, np.ndarray]:
    """Return the columns of labels, training images first; none where the files are not there."""
    missing = [name for name in LABELS if not (folder / name).is_file()]
    if missing:
        logger.info("no labels: %s is not in %s", listed(missing), folder)
        return {}
    tables = []
    for name, length in zip(LABELS, lengths, strict=True):
        table = read_object_array(folder / name)
        if table.shape != (N_LEVELS + 1, length):
            raise FileFormatError(
                f"{folder / name} has shape {table.shape}; expected ({N_LEVELS + 1}, {length}): "
                "three levels of categories and a label of each image."
            )
        tables.append(table.astype(str))
    columns = [f"category_{level + 1}" for level in range(N_LEVELS)] + ["label"]
    return dict(zip(columns, np.hstack(tables), strict=True))
