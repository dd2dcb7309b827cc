"""Which voxels of a run are read: a mask image, an atlas, a nilearn masker, or found in the run."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nibabel.affines import apply_affine

from neurodl.errors import (
    FileFormatError,
    MissingFileError,
    NeurodlWarning,
    SchemaError,
    listed,
)
from neurodl.io.volumes import DAMAGED, check_same_grid, image_name, open_image, read_masked

logger = logging.getLogger(__name__)

MASKER_WORK = (
    "smoothing_fwhm",
    "standardize",
    "detrend",
    "high_variance_confounds",
    "low_pass",
    "high_pass",
    "target_affine",
    "target_shape",
    "runs",
    "clean_args",
)


@dataclass(frozen=True)
class Voxels:
    """The voxels that are read, and how: straight from the file, or through a nilearn masker.

    Parameters
    ----------
    mask : numpy.ndarray of bool, shape (x, y, z)
    affine : numpy.ndarray, shape (4, 4)
    roi : numpy.ndarray of str, optional
        Shape (n_voxels,), in C order of the mask.
    masker : nilearn.maskers.NiftiMasker, optional
        Fitted; given only if it does more than masking.
    """

    mask: np.ndarray
    affine: np.ndarray
    roi: np.ndarray | None = None
    masker: Any = None

    def __len__(self) -> int:
        """Return the number of voxels."""
        return int(self.mask.sum())

    def coords(self) -> dict[str, tuple[str, np.ndarray]]:
        """Return the coords along dim voxel: i, j, k, x, y, z [mm] and, from an atlas, roi."""
        ijk = np.argwhere(self.mask)
        xyz = apply_affine(self.affine, ijk)
        coords = {name: ("voxel", ijk[:, axis]) for axis, name in enumerate("ijk")}
        coords |= {name: ("voxel", xyz[:, axis]) for axis, name in enumerate("xyz")}
        return coords if self.roi is None else {**coords, "roi": ("voxel", self.roi)}

    def read(self, image: Any, out: np.ndarray) -> None:
        """Fill `out`, float32, shape (n_volumes, n_voxels), with the values of one image.

        What is not finite becomes NaN; a masker puts 0 in its place.
        """
        try:
            if self.masker is None:
                read_masked(image, self.mask, out)
            else:
                out[:] = self.masker.transform(image)
        except DAMAGED as error:
            raise FileFormatError(
                f"{image_name(image)} is truncated or damaged: {error}. Copy or download it again."
            ) from error
        out[~np.isfinite(out)] = np.nan


def select_voxels(
    mask: Any,
    image: Any,
    atlas_labels: Mapping[int, str] | Sequence[str] | str | Path | None = None,
) -> Voxels:
    """Return the voxels that `mask` names, checked against the grid of the run `image`.

    See `read_nifti` for what `mask` and `atlas_labels` may be.

    Raises
    ------
    SchemaError
        The mask is empty, lies on another grid, or is no mask.
    """
    if mask is None:
        raise ValueError(
            f"`mask` must say which of the {math.prod(image.shape[:3])} voxels are read: a mask "
            "image, a nilearn masker, an atlas with atlas_labels={1: 'V1', ...}, or mask='auto'."
        )
    automatic = isinstance(mask, str) and mask == "auto"
    is_masker = hasattr(mask, "transform") and hasattr(mask, "get_params")
    if atlas_labels is not None and (automatic or is_masker):
        raise ValueError("`atlas_labels` needs `mask` to be an integer atlas image.")
    if automatic:
        voxels = _found_in(image)
    elif is_masker:
        voxels = _of_masker(mask, image)
    else:
        if isinstance(atlas_labels, (str, Path)):
            atlas_labels = read_atlas_labels(atlas_labels)
        voxels = _of_image(open_image(mask), atlas_labels)
    if voxels.masker is None or voxels.masker.target_affine is None:
        check_same_grid(voxels.mask.shape, voxels.affine, "the mask", image)
    if not len(voxels):
        raise SchemaError("The mask is empty: it is 0 in every voxel.")
    return voxels


def read_atlas_labels(path: str | Path) -> dict[int, str]:
    """Return the ROI name by atlas value from a ``.tsv`` with columns index and name.

    Raises
    ------
    MissingFileError, FileFormatError
        There is no such file, or it has other columns.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"The table of atlas labels {path} does not exist.")
    table = pd.read_csv(path, sep="\t")
    if not {"index", "name"} <= set(table.columns) or not pd.api.types.is_integer_dtype(
        table["index"]
    ):
        raise FileFormatError(
            f"The table of atlas labels {path} needs columns 'index' (whole numbers) and 'name', "
            f"separated by tabs; it has {listed(table.columns, 20)}."
        )
    return dict(zip(table["index"].tolist(), table["name"].astype(str), strict=True))


def _found_in(image: Any) -> Voxels:
    """Find the brain in the mean of a run by nilearn's histogram heuristic."""
    from nilearn.masking import compute_epi_mask

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty mask is an error below, not a warning
        try:
            found = compute_epi_mask(image)
        except DAMAGED as error:
            raise FileFormatError(
                f"{image_name(image)} is truncated or damaged: {error}. Copy or download it again."
            ) from error
        except ValueError as error:
            raise SchemaError(
                f"mask='auto' found no brain in {image_name(image)} ({error}). Give a mask image."
            ) from error
    mask = np.asanyarray(found.dataobj).astype(bool)
    if not mask.any():
        raise SchemaError(f"mask='auto' found no brain in {image_name(image)}. Give a mask image.")
    logger.info("mask='auto' chose %d of %d voxels", mask.sum(), mask.size)
    return Voxels(mask, found.affine)


def _of_masker(masker: Any, image: Any) -> Voxels:
    """Take a NiftiMasker's mask, and the masker itself only for what it does beyond masking."""
    from nilearn.maskers import NiftiMasker
    from sklearn.base import clone

    if type(masker) is not NiftiMasker:
        raise TypeError(
            f"`mask` may be a nilearn NiftiMasker, but got a {type(masker).__name__}. For an atlas "
            "give the image itself: mask=masker.labels_img, atlas_labels={1: 'V1', ...}."
        )
    if not hasattr(masker, "mask_img_"):
        masker = clone(masker).set_params(reports=False)
        masker = masker.fit(None if masker.mask_img is not None else image)
    settings = masker.get_params()
    works = any(settings[name] is not None and settings[name] is not False for name in MASKER_WORK)
    mask = np.asanyarray(masker.mask_img_.dataobj).astype(bool)
    return Voxels(mask, masker.mask_img_.affine, masker=masker if works else None)


def _of_image(image: Any, labels: Mapping[int, str] | Sequence[str] | None) -> Voxels:
    """Take what is not 0 in a mask, or what `labels` names in an atlas."""
    name = image_name(image)
    try:
        numbers = np.asanyarray(image.dataobj)
    except DAMAGED as error:
        raise FileFormatError(f"The mask {name} is truncated or damaged: {error}") from error
    if numbers.ndim == 4:
        if numbers.shape[3] != 1:
            raise SchemaError(f"The mask {name} has {numbers.shape[3]} volumes, not one.")
        numbers = numbers[..., 0]
    numbers = np.where(np.isfinite(numbers), numbers, 0)
    if labels is not None:
        return _of_atlas(numbers, image.affine, labels, name)
    found = np.unique(numbers[numbers != 0])
    if len(found) > 1:
        raise SchemaError(
            f"The mask {name} holds {len(found)} values besides 0 ({listed(found)}). An atlas "
            "needs atlas_labels={1: 'V1', ...}; a probability map must be cut first, with "
            "nilearn.image.binarize_img(mask, threshold=0.5)."
        )
    return Voxels(numbers != 0, image.affine)


def _of_atlas(
    numbers: np.ndarray, affine: np.ndarray, labels: Mapping[int, str] | Sequence[str], name: str
) -> Voxels:
    pairs = labels.items() if isinstance(labels, Mapping) else enumerate(labels)
    rois = {int(number): str(roi) for number, roi in pairs if int(number) != 0}
    found = np.unique(numbers[numbers != 0])
    absent = [roi for number, roi in rois.items() if number not in found]
    if len(absent) == len(rois):
        raise SchemaError(
            f"None of `atlas_labels` ({listed(rois)}) is in the atlas {name}, which holds the "
            f"values {listed(found, 20)}."
        )
    if absent:
        warnings.warn(
            f"{len(absent)} ROIs have no voxels in the atlas {name}: {listed(absent, 20)}.",
            NeurodlWarning,
            stacklevel=5,
        )
    mask = np.isin(numbers, list(rois))
    return Voxels(mask, affine, roi=np.array([rois[int(number)] for number in numbers[mask]]))
