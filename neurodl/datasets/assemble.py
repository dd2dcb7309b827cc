"""What loaders share: parts of published files joined to responses, and checks of their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neurodl.errors import FileFormatError, MissingFileError, listed
from neurodl.io.pickles import read_pickle


def side_by_side(
    regions: Mapping[str, np.ndarray],
    dims: Sequence[str],
    coords: Mapping[str, Any],
    attrs: Mapping[str, Any],
) -> xr.DataArray:
    """Return responses of several regions as one array, with the coord roi.

    Parameters
    ----------
    regions : mapping of str to numpy.ndarray
        By name; the last axis are targets, which may differ in number and be none.
    dims : sequence of str
    coords, attrs : mapping
        Of the result.

    Returns
    -------
    xarray.DataArray, float32
        Targets in the order of the regions, and the attr ``rois_without_targets`` where there are
        such regions.
    """
    arrays = list(regions.values())
    n_targets = [array.shape[-1] for array in arrays]
    joined = np.empty((*arrays[0].shape[:-1], sum(n_targets)), np.float32)
    stop = 0
    for array, count in zip(arrays, n_targets, strict=True):
        joined[..., stop : stop + count] = array
        stop += count
    empty = [name for name, count in zip(regions, n_targets, strict=True) if not count]
    noted = {"rois_without_targets": ", ".join(empty)} if empty else {}
    return xr.DataArray(
        joined,
        dims=tuple(dims),
        coords={**coords, "roi": (dims[-1], np.repeat(list(regions), n_targets))},
        attrs={**attrs, **noted},
    )


def read_pickled_arrays(
    path: Path, expected: Mapping[str, tuple[int | None, ...]]
) -> dict[str, np.ndarray]:
    """Return the arrays of a pickled mapping, after a look at their shapes.

    Parameters
    ----------
    path : Path
    expected : mapping of str to tuple
        The shape of each array; None stands for any size.

    Raises
    ------
    FileFormatError
        The file is damaged, or holds something else.
    """
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} holds a {type(content).__name__}; expected a dict.")
    missing = [key for key in expected if key not in content]
    if missing:
        raise FileFormatError(f"{path} lacks {listed(missing)}; it holds {listed(content, 20)}.")
    for key, shape in expected.items():
        check_shape(content[key], shape, f"{path}: {key}")
    return content


def check_shape(array: Any, shape: tuple[int | None, ...], what: str) -> None:
    """Raise if an array is none of numbers of this shape; None stands for any size.

    Examples
    --------
    >>> check_shape(np.zeros((3, 4)), (3, None), "train")
    """
    actual = getattr(array, "shape", None)
    agrees = (
        actual is not None
        and np.dtype(array.dtype).kind in "biuf"
        and len(actual) == len(shape)
        and all(wanted in (None, size) for wanted, size in zip(shape, actual, strict=True))
    )
    if not agrees:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        kind = type(array).__name__ if actual is None else f"{array.dtype} array of shape {actual}"
        raise FileFormatError(f"{what} is a {kind}; expected numbers of shape ({wanted}).")


def first_file(folder: Path, patterns: Sequence[str]) -> Path:
    """Return the first file in `folder` that one of several patterns finds.

    Raises
    ------
    MissingFileError
        There is none.
    """
    for pattern in patterns:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if found:
            return found[0]
    raise MissingFileError(f"There is no {' or '.join(patterns)} in {folder}.")
