"""fMRI from NIfTI files to (time | presentation, voxel) responses, and maps back to images."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import xarray as xr

from neurodl.errors import PairingError, SchemaError, listed
from neurodl.io.masks import select_voxels
from neurodl.io.store import atomic_path
from neurodl.io.timeseries import as_slice, clean, no_range, run_rows, trend_order
from neurodl.io.volumes import (
    bids_entity,
    check_same_grid,
    checked_tr,
    header_space,
    header_tr,
    image_name,
    open_image,
)
from neurodl.schema import check_responses

logger = logging.getLogger(__name__)


def read_nifti(
    images: Any,
    mask: Any = None,
    *,
    ids: Sequence[str] | None = None,
    runs: Sequence[str] | None = None,
    tr: float | None = None,
    detrend: bool | int = False,
    zscore: bool = False,
    atlas_labels: Mapping[int, str] | Sequence[str] | str | Path | None = None,
    subject: str | None = None,
    space: str | None = None,
    units: str = "BOLD",
) -> xr.DataArray:
    """Read the voxels inside a mask from one or several runs of fMRI, or from beta images.

    Parameters
    ----------
    images : path, nibabel image, or list of them
        3-D or 4-D, ``.nii`` or ``.nii.gz``. A list of 4-D images are runs, in order; a list of
        3-D images are the volumes of one series.
    mask : path, nibabel image, nilearn masker or "auto"
        An image that is not 0 inside, on the grid of `images`; an integer atlas with
        `atlas_labels`; a `NiftiMasker` (what it smooths or filters is done by its ``transform``);
        or "auto" for nilearn's `compute_epi_mask` of the first run.
    ids : sequence of str, optional
        The stimulus id of each volume: the volumes are presentations, not a time series.
    runs : sequence of str, optional
        One name per image, or one per volume; by default "1", "2" ... for a list of 4-D images.
    tr : float, optional
        Repetition time [s]; by default from the headers, whose unit is respected.
    detrend : bool or int
        Regress a polynomial out of each run: True is linear, 2 quadratic, 0 only the mean.
    zscore : bool
        Divide each voxel by its standard deviation, run by run (n - 1 degrees of freedom). A
        voxel that is constant in a run becomes NaN there.
    atlas_labels : mapping of int to str, sequence of str, or path, optional
        ROI name by value of the atlas, or a ``.tsv`` with columns index and name, as BIDS has it;
        0 is background. Voxels with other values are left out.
    subject, space, units : str, optional
        Kept as attrs. By default subject and space come from BIDS file names, or the space from
        the NIfTI header.

    Returns
    -------
    xarray.DataArray
        float32, dims ``(time, voxel)``, or ``(stimulus | presentation, voxel)`` with `ids`. Coords
        time (start of the volume [s], from 0 in each run), run; along voxel i, j, k, x, y, z [mm]
        and roi. Voxels come in the order of nilearn's maskers. Attrs affine (16 numbers, row by
        row), shape, tr, space, subject, units, n_constant (voxels that do not vary in some run) and
        n_missing (voxels with NaN or infinite values, which are kept as NaN).

    Raises
    ------
    MissingFileError, FileFormatError
        A file does not exist, is truncated, or is no NIfTI volume.
    SchemaError
        Mask and runs are not on the same grid, there is nothing in the mask, or no TR.
    PairingError
        The number of `ids` or `runs` is not that of the volumes.
    """
    in_list = isinstance(images, (list, tuple))
    opened = [open_image(image) for image in (images if in_list else [images])]
    if not opened:
        raise ValueError("`images` is an empty list; give at least one run.")
    for other in opened[1:]:
        check_same_grid(opened[0].shape[:3], opened[0].affine, image_name(opened[0]), other)
    order = trend_order(detrend)
    lengths = [image.shape[3] if image.ndim == 4 else 1 for image in opened]
    labels = _run_labels(runs, lengths, in_list and max(image.ndim for image in opened) == 4)
    if ids is None:
        tr = _common_tr(opened) if tr is None else checked_tr(tr)
        dim, coords = "time", _times(sum(lengths), labels, tr)
    else:
        tr, (dim, coords) = None, _presentations(ids, sum(lengths), labels)
    voxels = select_voxels(mask, opened[0], atlas_labels)
    attrs = {
        "units": f"z-scored {units}" if zscore else units,
        "subject": subject or _subject(opened[0]),
        "space": space or bids_entity(opened[0], "space") or header_space(opened[0]),
        "tr": tr,
        "affine": [float(number) for number in voxels.affine.ravel()],
        "shape": [int(size) for size in voxels.mask.shape],
    }
    values = np.empty((sum(lengths), len(voxels)), np.float32)
    for image, end, length in zip(opened, np.cumsum(lengths), lengths, strict=True):
        voxels.read(image, out=values[end - length : end])
    responses = xr.DataArray(
        values,
        dims=(dim, "voxel"),
        coords={**coords, **voxels.coords()},
        attrs={name: value for name, value in attrs.items() if value is not None},
    )
    rows = run_rows(responses)
    responses.attrs |= _count_excluded(values, rows, dict.fromkeys(map(image_name, opened)))
    if order is not None or zscore:
        for run in map(as_slice, rows.values()):
            part = values[run]
            clean(part, trend=order, zscore=zscore, out=part)
            if not isinstance(run, slice):
                values[run] = part
    return check_responses(responses)


def to_image(
    values: xr.DataArray, *, like: xr.DataArray | xr.Dataset | None = None, fill: float = 0.0
) -> nib.Nifti1Image:
    """Put one value per voxel back into a brain image: the inverse of `read_nifti`.

    Parameters
    ----------
    values : xarray.DataArray
        Dim ``voxel``, or ``(time | presentation | stimulus, voxel)`` for a 4-D image.
    like : xarray.DataArray or xarray.Dataset, optional
        Where the attrs affine, shape, space and tr come from if `values` lost them, such as the
        scores that a map was computed from.
    fill : float
        What stands outside the mask. NaN among the values stays NaN.

    Returns
    -------
    nibabel.Nifti1Image
        float32.

    Raises
    ------
    SchemaError
        Coords or attrs that say where the voxels lie are missing or do not fit.

    Examples
    --------
    >>> values = xr.DataArray(
    ...     np.array([7.0], "float32"), dims="voxel",
    ...     coords={name: ("voxel", [1]) for name in "ijk"},
    ...     attrs={"affine": np.eye(4).ravel(), "shape": [2, 2, 2]})
    >>> to_image(values).get_fdata()[1, 1]
    array([0., 7.])
    """
    attrs = {**(like.attrs if like is not None else {}), **values.attrs}
    missing = [name for name in ("affine", "shape") if name not in attrs]
    missing += [name for name in "ijk" if name not in values.coords]
    if missing or values.ndim not in (1, 2) or values.dims[-1] != "voxel":
        raise SchemaError(
            "An image is made from an array with dims ('voxel',) or (sample, 'voxel'), the coords "
            f"i, j, k and the attrs affine and shape; this one has dims {tuple(values.dims)} and "
            f"lacks {listed(missing) or 'nothing else'}. Attrs that were lost on the way are taken "
            "from like=."
        )
    shape = tuple(int(size) for size in attrs["shape"])
    place = tuple(values[name].values.astype(int) for name in "ijk")
    if any((at < 0).any() or (at >= size).any() for at, size in zip(place, shape, strict=True)):
        raise SchemaError(f"The coords i, j, k lie outside the grid of shape {shape}.")
    if len(set(zip(*place, strict=True))) < values.sizes["voxel"]:
        raise SchemaError("Two voxels have the same coords i, j, k.")
    volume = np.full(shape + values.shape[:-1], fill, np.float32)
    volume[place] = values.values.T
    image = nib.Nifti1Image(volume, np.reshape(attrs["affine"], (4, 4)))
    if str(attrs.get("space", "")).startswith("MNI"):
        image.set_sform(image.affine, code="mni")
    image.header.set_xyzt_units("mm", "sec")
    if volume.ndim == 4:
        image.header["pixdim"][4] = attrs.get("tr", 0.0) if values.dims[0] == "time" else 0.0
    return image


def write_statmap(
    values: xr.DataArray,
    path: str | Path,
    description: Mapping[str, Any] | None = None,
    *,
    like: xr.DataArray | xr.Dataset | None = None,
) -> Path:
    """Write a map as ``.nii.gz`` with a JSON file beside it, each whole or not at all.

    Parameters
    ----------
    values : xarray.DataArray, dim ``voxel``
    path : str or Path
        Ends in ``.nii.gz``; a BIDS name is ``sub-01_desc-RidgeCV_stat-r_statmap.nii.gz``.
    description : mapping, optional
        What the JSON file says about the map: strings, numbers, lists, mappings.
    like
        See `to_image`.

    Returns
    -------
    Path
        The image that was written. The same values give the same bytes.

    Raises
    ------
    StorageError
        The disk is full or the folder cannot be written to.
    """
    path = Path(path)
    if not path.name.endswith(".nii.gz"):
        raise ValueError(f"A map is written to '*.nii.gz', but got {path.name!r}.")
    packed = gzip.compress(to_image(values, like=like).to_bytes(), compresslevel=6, mtime=0)
    text = json.dumps(dict(description or {}), indent=2, ensure_ascii=False, default=_plain)
    with atomic_path(path) as temporary:
        temporary.write_bytes(packed)
    with atomic_path(path.with_name(path.name.removesuffix(".nii.gz") + ".json")) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def _run_labels(
    runs: Sequence[str] | None, lengths: Sequence[int], in_runs: bool
) -> np.ndarray | None:
    """Return the run of each volume by name, or None for a single unnamed run."""
    if runs is None:
        numbers = [str(number + 1) for number in range(len(lengths))]
        return np.repeat(numbers, lengths) if in_runs else None
    names = np.array([str(run) for run in runs])
    if len(names) == sum(lengths):
        return names
    if len(names) != len(lengths):
        raise PairingError(
            f"`runs` has {len(names)} names; give one per image ({len(lengths)}) or one per volume "
            f"({sum(lengths)})."
        )
    if len(set(names)) < len(names):
        raise PairingError(f"`runs` repeats a name ({listed(names, 20)}); each run needs its own.")
    return np.repeat(names, lengths)


def _times(
    n_volumes: int, labels: np.ndarray | None, tr: float
) -> dict[str, tuple[str, np.ndarray]]:
    """Return the coords time and run of a time series; time starts anew with each run."""
    index = np.arange(n_volumes)
    if labels is None:
        return {"time": ("time", index * tr)}
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    if len(set(labels[starts])) < len(starts):
        raise PairingError("`runs` must keep the volumes of a run together, one run after another.")
    first = starts[np.searchsorted(starts, index, side="right") - 1]
    return {"time": ("time", (index - first) * tr), "run": ("time", labels)}


def _presentations(
    ids: Sequence[str], n_volumes: int, labels: np.ndarray | None
) -> tuple[str, dict[str, tuple[str, Any]]]:
    """Return the sample dim and the coords stimulus and run of one volume per presentation."""
    ids = [str(name) for name in ids]
    if len(ids) != n_volumes:
        raise PairingError(
            f"{len(ids)} ids were given for {n_volumes} volumes; give one stimulus id per volume."
        )
    dim = "stimulus" if len(set(ids)) == len(ids) else "presentation"
    coords: dict[str, tuple[str, Any]] = {"stimulus": (dim, ids)}
    return dim, coords if labels is None else {**coords, "run": (dim, labels)}


def _common_tr(images: Sequence[Any]) -> float:
    """Return the TR that the headers of all runs agree on [s]."""
    found = []
    for image in images:
        found.append(header_tr(image))
    if len(set(found)) > 1:
        pairs = zip(images, found, strict=True)
        raise SchemaError(
            "The runs have different TRs "
            f"({', '.join(f'{image_name(image)}: {tr:g} s' for image, tr in pairs)}). Read them "
            "apart, or say tr=... if a header is wrong."
        )
    return found[0]


def _subject(image: Any) -> str | None:
    label = bids_entity(image, "sub")
    return f"sub-{label}" if label else None


def _count_excluded(
    values: np.ndarray, rows: Mapping[str, np.ndarray], images: Iterable[str]
) -> dict[str, int]:
    """Return how many voxels are constant in some run and how many have missing values."""
    flat, missing = np.zeros((2, values.shape[1]), bool)
    for name, run in rows.items():
        part = values[as_slice(run)]
        low, high = part.min(0), part.max(0)
        missing |= np.isnan(low)
        still = no_range(low, high) & (len(run) > 1)
        if still.all():
            raise SchemaError(
                f"All {len(still)} voxels of {listed(images)} are constant"
                f"{f' in run {name!r}' if name else ''}: there is no signal inside the mask. Are "
                "these the right mask and image?"
            )
        flat |= still
    n_constant, n_missing = int(flat.sum()), int(missing.sum())
    if n_constant or n_missing:
        logger.warning(
            "of %d voxels, %d are constant in a run and %d have missing values; they are kept, "
            "and excluded from scores",
            values.shape[1],
            n_constant,
            n_missing,
        )
    return {"n_constant": n_constant, "n_missing": n_missing}


def _plain(value: Any) -> Any:
    """Return numpy numbers and arrays, and paths, as JSON can hold them."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)
