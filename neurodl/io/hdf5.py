"""HDF5 files and MATLAB files of others: what they hold themselves, and in one orientation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from neurodl.errors import FileFormatError, MissingFileError, NeurodlError, listed
from neurodl.io.matlab import check_mat

MOST_LINKS = 8  # one after the other; more are a circle
DAMAGED = (OSError, ValueError, TypeError, KeyError, IndexError, NotImplementedError, EOFError)


@contextmanager
def open_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """Open an HDF5 file to read.

    Raises
    ------
    MissingFileError, FileFormatError
        It does not exist; it is damaged or none, also where that shows later in the block.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"The file {path} does not exist.")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, NeurodlError) or not _of_hdf5(error):
            raise
        raise FileFormatError(f"Cannot read {path} as HDF5: {error}") from error


def _of_hdf5(error: Exception) -> bool:
    """Return whether the HDF5 library raised an error, which it does in many types."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = "" if trace is None else trace.tb_frame.f_code.co_filename.replace("\\", "/")
    return isinstance(error, OSError) or "h5py/" in raised_in


def stored(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset that lies in the file itself.

    Raises
    ------
    FileFormatError
        There is none of this name; or it, or a group above it, lies in another file.
    """
    where = f"{file.filename}: {name!r}"
    found = _followed(file, name, where)
    if not isinstance(found, h5py.Dataset):
        raise FileFormatError(f"{where} is a group, not an array.")
    elsewhere = found.is_virtual and any(s.file_name != "." for s in found.virtual_sources())
    if found.external or elsewhere:
        raise FileFormatError(f"{where} has its values in another file, which is not read.")
    return found


def _followed(file: h5py.File, path: str, where: str, n_links: int = 0) -> Any:
    """Return what a path leads to, through soft links but never out of the file."""
    found: Any = file
    for part in path.strip("/").split("/"):
        link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
        if link is None:
            raise FileFormatError(f"{where} is not there; there are {listed(file, 20)}.")
        if isinstance(link, h5py.ExternalLink) or n_links > MOST_LINKS:
            raise FileFormatError(f"{where} is a link out of the file, which is not followed.")
        if isinstance(link, h5py.SoftLink):
            target = link.path if link.path.startswith("/") else f"{found.name}/{link.path}"
            found = _followed(file, target, where, n_links + 1)
        else:
            found = found[part]
    return found


def read_mat(path: str | Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return arrays of a MATLAB file, of the same shape whichever version wrote it.

    Parameters
    ----------
    path : str or Path
        Version 4 to 7, or 7.3, which is HDF5.
    names : sequence of str
        The variables; "stim.resp" is the field resp of the struct stim.

    Returns
    -------
    dict of str to numpy.ndarray
        Of the shape that MATLAB shows: files of version 7.3 hold it reversed, which is undone.

    Raises
    ------
    MissingFileError, FileFormatError
        The file or a variable is not there; or it is damaged or no array of numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"The file {path} does not exist.")
    if h5py.is_hdf5(path):
        with open_hdf5(path) as file:
            arrays = {
                name: np.transpose(stored(file, name.replace(".", "/"))[()]) for name in names
            }
    else:
        import scipy.io
        from scipy.io.matlab import MatReadError

        check_mat(path)
        try:
            top = list(dict.fromkeys(name.split(".")[0] for name in names))
            found = scipy.io.loadmat(path, variable_names=top)
            there = [name for name, _, _ in scipy.io.whosmat(path)]
        except (*DAMAGED, MatReadError) as error:
            raise FileFormatError(f"Cannot read {path} as a MATLAB file: {error}") from error
        arrays = {}
        for name in names:
            value = _field(found, name.split("."))
            if value is None:
                raise FileFormatError(f"{path} lacks {name!r}; it holds {listed(there, 20)}.")
            arrays[name] = np.asarray(value)
    for name, array in arrays.items():
        if array.dtype.kind not in "biufc":
            raise FileFormatError(f"{path}: {name!r} is no array of numbers ({array.dtype}).")
    return arrays


def _field(content: dict[str, Any], parts: Sequence[str]) -> Any:
    """Return a variable, or a field of a struct of one element; None where there is none."""
    value: Any = content.get(parts[0])
    for part in parts[1:]:
        names = getattr(getattr(value, "dtype", None), "names", None) or ()
        if part not in names or np.size(value) != 1:
            return None
        value = np.ravel(value)[0][part]
    return value
