"""Pickles that others published, read as plain data: nothing in them is imported or run.

Known are numpy arrays and scalars, dates, and Python's plain containers; paths become text.
Anything else is an error before it is made.
"""

from __future__ import annotations

import datetime
import math
import pickle
import struct
import sys
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
# How much may be made of each byte that was read, beyond a number of bytes: files refer to what
# they hold, and could have it copied, or joined to itself, over and over.
GROWTH, ROOM = 16, 2**24
UNITS = (  # of time
    b"Y", b"M", b"W", b"D", b"h", b"m", b"s", b"ms", b"us", b"ns", b"ps", b"fs", b"as",
    b"generic",
)  # fmt: skip
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
    AssertionError,
    struct.error,
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
            found = _unpickled(file, name)
            if not isinstance(found, np.ndarray) or found.dtype != object:
                raise ValueError(f"it holds a {type(found).__name__} in place of an array")
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
        return PlainUnpickler(file, name).load()
    except NeurodlError:
        raise
    except DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise FileFormatError(f"Cannot read {name}: it is damaged or no pickle ({reason})") from (
            error
        )


class PlainUnpickler(pickle._Unpickler):  # type: ignore[misc]
    """An unpickler, in Python, that makes plain data only.

    In C it would take whatever place in its memo a file names, and numpy whatever state.
    """

    dispatch = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def __init__(self, file: IO[bytes], name: str) -> None:
        super().__init__(file, encoding=ENCODING)
        self._source, self._name, self._made = file, name, 0

    def load_build(self) -> None:
        """Give an object its state, after a look at it."""
        made, state = self.stack[-2:]
        if isinstance(made, np.dtype):
            _check_type(made, state)
        elif isinstance(made, np.ndarray):
            _check_array(state)
        else:
            raise pickle.UnpicklingError(f"a state for {type(made).__name__}")
        build: Any = pickle._Unpickler.dispatch[pickle.BUILD[0]]
        build(self)
        self._count()

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]

    def _count(self) -> None:
        """Raise if what was made, the last thing included, is far more than what was read."""
        self._made += sys.getsizeof(self.stack[-1])
        if self._made > GROWTH * self._source.tell() + ROOM:
            raise pickle.UnpicklingError("it would take much more memory than it has bytes")

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


def _counted(opcode: bytes) -> Callable[[PlainUnpickler], None]:
    """Return what an opcode does that makes objects, with a look at how large they are."""
    make: Any = pickle._Unpickler.dispatch[opcode[0]]

    def load(reader: PlainUnpickler) -> None:
        make(reader)
        reader._count()

    return load


for _opcode in (pickle.REDUCE, pickle.INST, pickle.OBJ):
    PlainUnpickler.dispatch[_opcode[0]] = _counted(_opcode)  # type: ignore[assignment]


def _check_type(made: np.dtype[Any], state: Any) -> None:
    """Raise if the state of a type of number, text or object says more than its order of bytes."""
    _version, order, *inside = state[:5]
    sizes = (made.itemsize, made.alignment) if made.kind in "US" else (-1, -1)
    unit = state[8] if made.kind in "mM" else (None, (b"generic", 1, 1, 1))
    name, *numbers = unit[1]
    if (
        order not in ("<", ">", "|", "=")
        or any(one is not None and one != () for one in inside)
        or tuple(state[5:8]) != (*sizes, made.flags)
        or unit[0] not in (None, {})
        or name not in UNITS
        or len(numbers) != 3
        or not all(type(one) is int and 0 < one < 10**6 for one in numbers)
    ):
        raise pickle.UnpicklingError(f"a type of array with the state {state!r:.80}")


def _check_array(state: Any) -> None:
    """Raise if the state of an array does not fit together."""
    _version, shape, dtype, fortran, content = state
    plain = isinstance(dtype, np.dtype) and type(shape) is tuple and type(fortran) in (bool, int)
    if not plain or not all(type(size) is int and 0 <= size < 2**62 for size in shape):
        raise pickle.UnpicklingError("an array with a shape or type that is none")
    if dtype.hasobject:
        fits = type(content) is list and len(content) == math.prod(shape)
    else:
        fits = len(_bytes(content)) == math.prod(shape) * dtype.itemsize
    if not fits:
        raise pickle.UnpicklingError(f"an array of shape {shape} with other content")


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
