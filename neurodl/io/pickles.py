"""Pickles that others published, read as plain data: nothing in them is imported or run.

Known are numpy arrays and scalars, dates, and Python's plain containers; paths become text.
Anything else is an error before it is made.
"""

from __future__ import annotations

import datetime
import pickle
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from neurodl.errors import FileFormatError, MissingFileError, NeurodlError, listed

ENCODING = "latin1"  # of strings in pickles of Python 2, in which arrays' bytes are strings
PLAIN_KINDS = "biufcSUOMm"
DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,  # in the header of an array
    zipfile.BadZipFile,
    zlib.error,
)


def read_pickle(path: str | Path) -> Any:
    """Return what a pickle holds: arrays, numbers, text, and containers of them.

    Parameters
    ----------
    path : str or Path
        Of any protocol, of Python 2 too, whose text is taken as Latin-1.

    Raises
    ------
    MissingFileError
        There is no such file.
    FileFormatError
        It is damaged, or asks for anything but plain data. Nothing that it asks for was run.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"The file {path} does not exist.")
    with path.open("rb") as file:
        return _unpickled(file, str(path))


def read_object_array(path: str | Path) -> np.ndarray:
    """Return the array of a ``.npy`` file, also of Python objects.

    Parameters
    ----------
    path : str or Path

    Raises
    ------
    MissingFileError, FileFormatError
        As `read_pickle`.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"The file {path} does not exist.")
    with path.open("rb") as file:
        return _array(file, str(path))


def read_object_arrays(
    path: str | Path, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file, also of Python objects.

    Parameters
    ----------
    path : str or Path
    names : sequence of str, optional
        Which arrays are read; all by default.

    Raises
    ------
    MissingFileError, FileFormatError
        As `read_pickle`; or an array that was asked for is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"The file {path} does not exist.")
    try:
        with zipfile.ZipFile(path) as archive:
            there = {member.removesuffix(".npy"): member for member in archive.namelist()}
            missing = [name for name in names or () if name not in there]
            if missing:
                raise FileFormatError(
                    f"{path} lacks the arrays {listed(missing)}; it holds {listed(there, 20)}."
                )
            found = {}
            for name in there if names is None else names:
                with archive.open(there[name]) as file:
                    found[name] = _array(file, f"{path}!{there[name]}")
            return found
    except NeurodlError:
        raise
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise FileFormatError(f"Cannot read {path}: {error}") from error


def array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order ("F" or not) and type that a file in numpy's format begins with."""
    form = np.lib.format
    version = form.read_magic(file)
    read_header = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}
    if version not in read_header:
        raise ValueError(f"arrays of format {version} are not read")
    return read_header[version](file)


def _array(file: IO[bytes], name: str) -> np.ndarray:
    """Return an array in numpy's format."""
    try:
        shape, fortran, dtype = array_header(file)
        if dtype.hasobject:
            found = np.asarray(_unpickled(file, name), dtype=object)
            if found.size != np.prod(shape):
                raise ValueError(f"it holds {found.size} objects where {shape} are announced")
            return found.reshape(shape, order="F" if fortran else "C")
        content = file.read(int(np.prod(shape)) * dtype.itemsize)
        order: Any = "F" if fortran else "C"
        return np.frombuffer(content, dtype).reshape(shape, order=order).copy(order="K")
    except NeurodlError:
        raise
    except DAMAGED as error:
        raise FileFormatError(f"Cannot read {name}: {error}") from error


def _unpickled(file: IO[bytes], name: str) -> Any:
    try:
        return _Plain(file, name).load()
    except NeurodlError:
        raise
    except DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise FileFormatError(f"Cannot read {name}: it is damaged or no pickle ({reason})") from (
            error
        )


class PlainRules:
    """What an unpickler may make."""

    _name: str

    def find_class(self, module: str, name: str) -> Any:
        """Return what makes plain data of this name."""
        if (module, name) in KNOWN:
            return KNOWN[module, name]
        raise FileFormatError(
            f"{self._name} asks for {module}.{name}, which is not plain data. Nothing of it was "
            "run. Only pickles of numpy arrays, numbers, text and containers of them are read."
        )

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to something outside the file."""
        raise FileFormatError(f"{self._name} refers to something outside the file.")


class _Plain(PlainRules, pickle.Unpickler):
    """An unpickler that makes plain data only."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        super().__init__(file, encoding=ENCODING)
        self._name = name


class _Maker:
    """A function that a pickle may call; it cannot be changed by the pickle."""

    __slots__ = ("_make",)
    _make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any]) -> None:
        object.__setattr__(self, "_make", make)

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("it changes what reads it")

    def __reduce__(self) -> Any:
        raise pickle.UnpicklingError("it cannot be pickled")


def _dtype(spec: str, *_flags: Any) -> np.dtype[Any]:
    """Return a new type of number, text or object; structures may hide what they point to."""
    made = np.dtype(spec if isinstance(spec, str) else "V")
    if made.kind not in PLAIN_KINDS or made.names is not None:
        raise pickle.UnpicklingError(f"arrays of type {spec!r} are not read")
    return np.dtype(made, copy=True)


def _empty(subtype: Any, *_args: Any) -> np.ndarray:
    """Return the array that is then filled by its own, checked, `__setstate__`."""
    if subtype is not NDARRAY:
        raise pickle.UnpicklingError("an array of an unknown class")
    return np.empty(0, np.int8)


def _from_buffer(buffer: Any, dtype: np.dtype[Any], shape: Any, order: Any) -> np.ndarray:
    return np.frombuffer(_bytes(buffer), dtype).reshape(shape, order=order).copy(order="K")


def _scalar(dtype: np.dtype[Any], content: Any = b"") -> Any:
    return np.frombuffer(_bytes(content), dtype, count=1)[0]


def _bytes(content: Any = b"", encoding: str = ENCODING) -> bytes:
    """Return bytes written as such or as Latin-1 text; never so many as a number says."""
    if isinstance(content, str) and encoding in ("latin1", "latin-1"):
        return content.encode(ENCODING)
    if not isinstance(content, (bytes, bytearray)):
        raise pickle.UnpicklingError(f"bytes written as {type(content).__name__}, {encoding}")
    return bytes(content)


NDARRAY = _Maker(lambda *_args: _empty(None))
KNOWN: dict[tuple[str, str], _Maker] = {
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): _Maker(_dtype),
    ("_codecs", "encode"): _Maker(_bytes),
    ("collections", "OrderedDict"): _Maker(lambda *pairs: dict(*pairs)),
}
KNOWN["datetime", "datetime"] = _Maker(lambda *args: datetime.datetime(*args))
for _pathlib in ("pathlib", "pathlib._local"):
    for _path in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
        KNOWN[_pathlib, _path] = _Maker(lambda *parts: "/".join(map(str, parts)))
for _core in ("numpy.core", "numpy._core"):
    KNOWN[f"{_core}.multiarray", "_reconstruct"] = _Maker(_empty)
    KNOWN[f"{_core}.multiarray", "scalar"] = _Maker(_scalar)
    KNOWN[f"{_core}.numeric", "_frombuffer"] = _Maker(_from_buffer)
for _builtins in ("builtins", "__builtin__"):
    KNOWN[_builtins, "bytes"] = _Maker(_bytes)
    KNOWN[_builtins, "bytearray"] = _Maker(lambda *content: bytearray(_bytes(*content)))
    for _plain in (complex, set, frozenset):
        KNOWN[_builtins, _plain.__name__] = _Maker(_plain)
