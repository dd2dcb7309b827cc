"""NIfTI volumes before they become responses: opening, masked reading, grid, repetition time."""

from __future__ import annotations

import math
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.affines import apply_affine
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

from neurodl.errors import (
    FileFormatError,
    MissingFileError,
    NeurodlWarning,
    SchemaError,
    did_you_mean,
)

CHUNK_BYTES = 4 * 2**20
GRID_TOLERANCE = 0.01  # mm between the corners of two grids that count as the same
LONGEST_TR = 60.0  # s; a larger number in a header is in milliseconds, whatever its unit says
UNITS_OF_TIME = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}
SPACES = ("unknown", "scanner", "aligned", "Talairach", "MNI152", "template")
DAMAGED: tuple[Any, ...] = (EOFError, OSError, zlib.error, isal_zlib.error)
NOT_NIFTI: tuple[Any, ...] = (*DAMAGED, ImageFileError, HeaderDataError)


def open_image(source: Any) -> Any:
    """Return a NIfTI image whose voxels are not read yet, from a path or a nibabel image.

    Raises
    ------
    MissingFileError, FileFormatError
        The file does not exist, is damaged, or is something else than a 3-D or 4-D NIfTI volume.
    """
    image = source
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if not path.is_file():
            near = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
            raise MissingFileError(
                f"The image {path} does not exist. {did_you_mean(path.name, near)}"
            )
        try:
            image = nib.load(path)
        except (*NOT_NIFTI, ValueError, OverflowError) as error:  # the last ones of its numbers
            raise FileFormatError(f"Cannot read {path} as NIfTI: {error}") from error
    if not isinstance(image, nib.Nifti1Pair):
        what = str(source) if isinstance(source, (str, Path)) else "the image that was given"
        raise FileFormatError(
            f"Expected a NIfTI volume (.nii or .nii.gz), but {what} is a {type(image).__name__}."
        )
    if image.ndim not in (3, 4) or min(image.shape) < 1:
        raise FileFormatError(
            f"{image_name(image)} has shape {image.shape}; a volume has 3 dimensions, a run 4."
        )
    if image.get_data_dtype().kind not in "iufb":
        raise FileFormatError(
            f"{image_name(image)} holds {image.get_data_dtype()} values, not real numbers."
        )
    return image


def image_name(image: Any) -> str:
    """Return the path of an image, for messages."""
    return str(image.get_filename() or "the image in memory")


def read_masked(image: Any, mask: np.ndarray, out: np.ndarray) -> None:
    """Read the voxels of a mask, a few volumes at a time, and scale nothing but them.

    A compressed file is read to its end, so that its checksum is verified.

    Parameters
    ----------
    image : nibabel image, 3-D or 4-D
    mask : numpy.ndarray of bool
        Of the image's first three dimensions.
    out : numpy.ndarray of float32, shape (n_volumes, n_voxels)
        Filled with the values, voxels in C order of the mask.
    """
    stored = image.dataobj
    if not nib.is_proxy(stored):
        out[:] = np.asanyarray(stored)[mask].T
        return
    place = np.ravel_multi_index(np.nonzero(mask), mask.shape, order="F")
    with _opened(stored.file_like) as stream:
        try:
            stream.seek(stored.offset)
        except (ValueError, OverflowError) as error:
            raise EOFError("its header leads beyond what a file can have") from error
        start = 0
        for volumes in _read_ahead(stream, math.prod(stored.shape[3:]), mask.size, stored.dtype):
            out[start : start + len(volumes)] = apply_read_scaling(
                volumes.take(place, axis=1), np.float64(stored.slope), np.float64(stored.inter)
            )
            start += len(volumes)
        stream.read(1)


def _opened(file_like: Any) -> Any:
    """Return a file to read from; gzip, the slow part of reading a run, by Intel's ISA-L."""
    if isinstance(file_like, (str, Path)) and str(file_like).lower().endswith(".gz"):
        return igzip.open(file_like, "rb")
    return ImageOpener(file_like)


def _read_ahead(
    stream: Any, n_volumes: int, n_voxels: int, dtype: np.dtype[Any]
) -> Iterator[np.ndarray]:
    """Yield some volumes, shape (n, n_voxels), while a thread reads the next ones.

    What was yielded is overwritten when the next ones are asked for.
    """
    step = max(1, CHUNK_BYTES // (n_voxels * dtype.itemsize))
    buffers = [np.empty((min(step, n_volumes), n_voxels), dtype) for _ in range(2)]

    def fill(start: int) -> np.ndarray:
        volumes = buffers[start // step % 2][: n_volumes - start]
        room = memoryview(volumes.reshape(-1).view(np.uint8))
        n_bytes = 0
        while n_bytes < len(room):
            n_read = stream.readinto(room[n_bytes:])
            if not n_read:
                whole = start + n_bytes // volumes[0].nbytes
                raise EOFError(f"it ends after {whole} of {n_volumes} volumes")
            n_bytes += n_read
        return volumes

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(fill, 0)
        for start in range(step, n_volumes, step):
            volumes, ahead = ahead.result(), reader.submit(fill, start)
            yield volumes
        yield ahead.result()


def check_same_grid(shape: Sequence[int], affine: np.ndarray, what: str, image: Any) -> None:
    """Check that the voxels of `image` are those of another grid: same shape, same places.

    Raises
    ------
    SchemaError
        Says both shapes, or both affines and how far apart they put the corners.
    """
    name = image_name(image)
    advice = (
        "Bring one to the grid of the other first: nilearn.image.resample_to_img(mask, run, "
        "interpolation='nearest')."
    )
    if tuple(shape) != tuple(image.shape[:3]):
        raise SchemaError(
            f"{what} has shape {tuple(shape)}, but {name} has {tuple(image.shape[:3])}. {advice}"
        )
    corners = np.argwhere(np.ones((2, 2, 2))) * (np.array(shape) - 1)
    places = [apply_affine(each, corners) for each in (affine, image.affine)]
    apart = np.linalg.norm(places[0] - places[1], axis=1).max()
    if not apart <= GRID_TOLERANCE:
        raise SchemaError(
            f"{what} and {name} have the same shape but lie up to {apart:.3g} mm apart. The "
            f"affine of {what} is\n{affine}\nthat of {name} is\n{image.affine}\n{advice}"
        )


def header_tr(image: Any) -> float:
    """Return the repetition time of a run [s], from its header, whose unit is respected.

    Raises
    ------
    SchemaError
        The header has none, or one that cannot be meant.
    """
    number = float(image.header["pixdim"][4]) if image.ndim == 4 else 0.0
    try:
        unit = image.header.get_xyzt_units()[1]
    except KeyError as error:
        raise SchemaError(
            f"The header of {image_name(image)} names no unit that NIfTI has ({error}); say "
            "tr=..., in seconds."
        ) from error
    if unit not in UNITS_OF_TIME:
        raise SchemaError(
            f"The fourth axis of {image_name(image)} is in {unit}, not in time; say tr=..., in "
            "seconds."
        )
    tr = checked_tr(number * UNITS_OF_TIME[unit], f"The TR in the header of {image_name(image)}")
    if unit == "unknown":
        warnings.warn(
            f"The header of {image_name(image)} gives a TR of {number:g} without a unit; it is "
            "taken as seconds. Say tr=... to be sure.",
            NeurodlWarning,
            stacklevel=4,
        )
    return tr


def checked_tr(tr: float, what: str = "`tr`") -> float:
    """Return a repetition time [s] if it can be one; `what` begins the error otherwise."""
    tr = round(float(tr), 6)  # headers hold float32: 0.72 reads 0.7200000286
    if not math.isfinite(tr) or tr <= 0:
        raise SchemaError(f"{what} is {tr:g}. Say tr=..., the repetition time in seconds.")
    if tr > LONGEST_TR:
        raise SchemaError(
            f"{what} is {tr:g} s, which cannot be meant. If it is in milliseconds, say "
            f"tr={tr / 1000:g}."
        )
    return tr


def bids_entity(image: Any, entity: str) -> str | None:
    """Return the value of an entity in the image's BIDS file name, such as "01" for "sub"."""
    name = Path(image.get_filename() or "").name
    found = re.search(rf"(?:^|_){entity}-([^_.]+)", name)
    return found[1] if found else None


def header_space(image: Any) -> str:
    """Return the space that the NIfTI header names, such as "scanner" or "MNI152"."""
    code = int(image.header["sform_code"]) or int(image.header["qform_code"])
    return SPACES[code] if code < len(SPACES) else "unknown"
