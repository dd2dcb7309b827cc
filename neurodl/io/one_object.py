"""One element of an array of dicts in a published npz file, read without keeping the others."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from neurodl.errors import FileFormatError, MissingFileError, NeurodlError
from neurodl.io.pickles import DAMAGED, PlainUnpickler, array_header, read_object_arrays

DEPTH_OF_ELEMENTS = 2  # marks that are open where an array's list of elements is read
ITEMS_AT_ONCE = 1000  # of a dict, which pickles write in batches
SHARED = 64  # bytes; Python keeps one of some short ones, which pickles then refer to


def read_one_object(path: str | Path, name: str, index: int) -> Any:
    """Return one element of an array of dicts in an npz file, without keeping the others.

    Memory for the largest two elements is needed, not for all. Nothing after the element is read.

    Parameters
    ----------
    path : str or Path
    name : str
        Of the array.
    index : int
        Of the element.

    Raises
    ------
    MissingFileError, FileFormatError
        As `read_object_arrays`; or there is no such element.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"The file {path} does not exist.")
    where = f"{path}!{name}"
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            shape, _, dtype = array_header(file)
            if not dtype.hasobject or len(shape) != 1 or not 0 <= index < shape[0]:
                raise FileFormatError(f"{where} of shape {shape} has no object {index}.")
            return _OnlyOne(file, where, index).load()
    except _Dropped:  # elements share arrays
        return read_object_arrays(path, [name])[name][index]
    except NeurodlError:
        raise
    except DAMAGED as error:
        raise FileFormatError(f"Cannot read {where}: {error}") from error


def n_objects(path: str | Path, name: str) -> int:
    """Return the length of an array in an npz file from its header; see `read_one_object`."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            return int(array_header(file)[0][0])
    except DAMAGED as error:
        raise FileFormatError(f"Cannot read {path}!{name}: {error}") from error


class _Found(Exception):
    """What was looked for is read."""


class _Dropped(Exception):
    """Something that was thrown away is referred to again."""


class _Memo(dict[int, Any]):
    """What a pickle may refer to again; its length counts also what was thrown away."""

    _n_stored = 0

    def __setitem__(self, key: int, value: Any) -> None:
        self._n_stored = max(self._n_stored, key + 1)
        super().__setitem__(key, value)

    def __len__(self) -> int:
        return self._n_stored

    def __missing__(self, key: int) -> Any:
        raise _Dropped


class _OnlyOne(PlainUnpickler):
    """An unpickler, in Python, of one element of an array of dicts; others are thrown away."""

    dispatch = dict(PlainUnpickler.dispatch)
    stack: list[Any]
    metastack: list[Any]

    def __init__(self, file: IO[bytes], name: str, index: int) -> None:
        super().__init__(file, name)
        self._index = index
        self._n_read, self._n_known = 0, 0
        self._current: dict[Any, Any] | None = None

    def load(self) -> Any:
        """Return the element; nothing after it is read."""
        self.memo = _Memo()
        try:
            found = super().load()
            if not isinstance(found, np.ndarray):
                raise ValueError(f"it holds a {type(found).__name__} in place of an array")
            return found[self._index]
        except _Found:
            return self._current

    def load_setitems(self) -> None:
        """Fill a dict with many items."""
        fill: Any = pickle._Unpickler.dispatch[pickle.SETITEMS[0]]
        fill(self)
        self._filled()

    def load_setitem(self) -> None:
        """Fill a dict with one item, all it has in pickles of protocol 2 and later."""
        fill: Any = pickle._Unpickler.dispatch[pickle.SETITEM[0]]
        fill(self)
        if getattr(self, "proto", 0) >= 2:
            self._filled()

    def _filled(self) -> None:
        """If a whole element was filled, stop there or throw it away."""
        filled = self.stack[-1]
        if len(self.metastack) != DEPTH_OF_ELEMENTS or type(filled) is not dict:
            return
        if filled is not self._current:
            self._current, self._n_read = filled, self._n_read + 1
        if self._n_read - 1 < self._index:
            filled.clear()
            for key in range(self._n_known, len(self.memo)):
                if self._may_be_large(self.memo.get(key)):
                    del self.memo[key]
            self._n_known = len(self.memo)
        elif len(filled) % ITEMS_AT_ONCE:
            raise _Found

    @staticmethod
    def _may_be_large(value: Any) -> bool:
        """Return whether something holds what was read, alone or by being one of many."""
        if isinstance(value, np.ndarray):  # names may be shared by elements, numbers hardly
            return value.dtype.kind not in "US"
        small = isinstance(value, bytes) and len(value) <= SHARED
        return isinstance(value, (tuple, list, bytes)) and not small

    dispatch[pickle.SETITEMS[0]] = load_setitems  # type: ignore[assignment]
    dispatch[pickle.SETITEM[0]] = load_setitem  # type: ignore[assignment]
