"""MATLAB files of version 4 to 7: whether their elements are what they say, before they are read.

scipy takes types, classes and sizes at their word, so that a damaged file could end the process.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from pathlib import Path
from typing import Any

from neurodl.errors import FileFormatError

MATRIX, COMPRESSED = 14, 15
# Bytes of an item, by type of element.
SIZES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8, 16: 1, 17: 2, 18: 4}
CELL, STRUCT, OBJECT, CHAR, SPARSE = 1, 2, 3, 4, 5
NUMERIC = range(6, 16)
FUNCTION, OPAQUE = 16, 17
DEEPEST = 50
MOST_EXPANDED = 1 << 34


def check_mat(path: Path) -> None:
    """Raise if an element of a file, also of version 4, has an impossible type or size.

    Raises
    ------
    FileFormatError
    """
    with path.open("rb") as file:
        if path.stat().st_size < 20:
            raise FileFormatError(f"{path} is too short for a MATLAB file.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            version4 = 0 in content[:4]
            order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
            if order is None and not version4:
                raise FileFormatError(f"{path} is no MATLAB file: it has no byte order.")
            try:
                if version4:
                    _check_version4(content)
                else:
                    _check_top(content, order or "<")
            except (ValueError, struct.error, zlib.error) as error:
                raise FileFormatError(f"{path} is damaged: {error}") from error


def _check_version4(content: Any) -> None:
    """Check that every array of a file of version 4 is as large as it says."""
    at = 0
    while at < len(content):
        if at + 20 > len(content):
            raise ValueError("an array is cut off")
        order = "<" if struct.unpack_from("<I", content, at)[0] < 5000 else ">"
        form, n_rows, n_columns, is_complex, n_letters = struct.unpack_from(
            f"{order}5i", content, at
        )
        size = {0: 8, 1: 4, 2: 4, 3: 2, 4: 2, 5: 1}.get(form // 10 % 10)
        if size is None or not 0 <= form < 5000 or min(n_rows, n_columns, n_letters) < 0:
            raise ValueError(f"an array has type {form} and the shape {n_rows} x {n_columns}")
        at += 20 + n_letters + n_rows * n_columns * size * (2 if is_complex else 1)
        if at > len(content):
            raise ValueError(f"an array of {n_rows} x {n_columns} goes beyond the end")


def _check_top(content: Any, order: str) -> None:
    at = 128
    while at < len(content):
        kind, start, stop, at = _tag(content, at, len(content), order, padded=False)
        if kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            inner = unpacker.decompress(content[start:stop], MOST_EXPANDED)
            if unpacker.unconsumed_tail:
                raise ValueError("a variable grows beyond 16 GiB when it is unpacked")
            kind, start, stop, _ = _tag(inner, 0, len(inner), order)
            if kind != MATRIX:
                raise ValueError(f"a compressed element has type {kind}, not that of an array")
            _check_matrix(inner, start, stop, order, 0)
        elif kind == MATRIX:
            _check_matrix(content, start, stop, order, 0)
        else:
            raise ValueError(f"a variable has type {kind}")


def _tag(
    content: Any, at: int, end: int, order: str, padded: bool = True
) -> tuple[int, int, int, int]:
    """Return type, start and stop of an element, and where the next one begins."""
    if at + 8 > end:
        raise ValueError("an element is cut off")
    kind, size = struct.unpack_from(f"{order}II", content, at)
    start, following = at + 8, at + 8
    if kind >> 16:  # a small element, within its tag
        kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        if size > 4:
            raise ValueError(f"a small element has {size} bytes")
    else:
        following = start + size + (-size % 8 if padded and kind != COMPRESSED else 0)
    if kind not in SIZES and kind not in (MATRIX, COMPRESSED):
        raise ValueError(f"an element has the unknown type {kind}")
    if start + size > end:
        raise ValueError(f"an element of {size} bytes goes beyond its end")
    return kind, start, start + size, following


def _check_matrix(content: Any, at: int, end: int, order: str, depth: int) -> None:
    """Check an array and all that it holds."""
    if depth > DEEPEST:
        raise ValueError(f"arrays lie within each other more than {DEEPEST} deep")
    if at == end:
        return  # an empty one

    def element(expected: tuple[int, ...], what: str) -> tuple[int, int, int]:
        nonlocal at
        kind, start, stop, at = _tag(content, at, end, order)
        if kind not in expected:
            raise ValueError(f"{what} of an array have type {kind}")
        return kind, start, stop

    _, start, stop = element((6,), "flags")
    if stop - start != 8:
        raise ValueError("flags of an array are cut off")
    flags = struct.unpack_from(f"{order}I", content, start)[0]
    kind, is_complex = flags & 0xFF, bool(flags & 0x800)
    if kind == OPAQUE:
        return  # an object of a MATLAB class, which lies differently and is not looked into
    if not CELL <= kind <= FUNCTION:
        raise ValueError(f"an array has the unknown class {kind}")
    _, start, stop = element((5,), "dimensions")
    n_dims = (stop - start) // 4
    shape = struct.unpack_from(f"{order}{n_dims}i", content, start)
    if n_dims < 2 or n_dims > 32 or min(shape) < 0:
        raise ValueError(f"an array has the dimensions {shape[:4]}")
    n = 1
    for length in shape:
        n *= length
    element((1, 2, 16), "names")
    if kind in NUMERIC or kind == CHAR:
        for _ in range(1 + is_complex):
            stored, start, stop = element(tuple(SIZES), "values")
            held = (stop - start) // SIZES[stored]
            if held != n and not (kind == CHAR and stored in (1, 2, 16, 17, 18)):
                raise ValueError(f"an array of {n} values holds {held}")
            if n > max(held, 1) * 4:
                raise ValueError(f"a text of {n} characters holds {held}")
        return
    if kind == SPARSE:
        _check_sparse(content, element, order, n_dims, shape, is_complex)
        return
    if kind == OBJECT:
        element((1,), "the name of the class")
    if kind in (STRUCT, OBJECT):
        _, start, stop = element((5,), "lengths of names")
        length = struct.unpack_from(f"{order}i", content, start)[0] if stop - start == 4 else 0
        _, start, stop = element((1,), "names of fields")
        if length < 1 or (stop - start) % length:
            raise ValueError("names of fields are cut off")
        n *= (stop - start) // length
    if kind == FUNCTION:
        n = 1
    if n * 8 > end - at:
        raise ValueError(f"{n} arrays cannot lie in {end - at} bytes")
    for _ in range(n):
        inner, start, stop, at = _tag(content, at, end, order)
        if inner != MATRIX:
            raise ValueError(f"an array within another has type {inner}")
        _check_matrix(content, start, stop, order, depth + 1)


def _check_sparse(
    content: Any, element: Any, order: str, n_dims: int, shape: Any, is_complex: bool
) -> None:
    """Check that the indices of a sparse array lie within it."""
    import numpy as np

    if n_dims != 2:
        raise ValueError(f"a sparse array has {n_dims} dimensions")
    rows, columns = (
        np.frombuffer(content[start:stop], f"{order}i4")
        for _, start, stop in (element((5,), "indices"), element((5,), "indices"))
    )
    n = int(columns[-1]) if len(columns) == shape[1] + 1 else -1
    if n < 0 or n > len(rows) or (np.diff(columns) < 0).any() or columns[0] != 0:
        raise ValueError("a sparse array has impossible columns")
    if n and not (rows[:n].min() >= 0 and rows[:n].max() < shape[0]):
        raise ValueError("a sparse array has impossible rows")
    for _ in range(1 + is_complex):
        stored, start, stop = element(tuple(SIZES), "values")
        if (stop - start) // SIZES[stored] < n:
            raise ValueError("a sparse array lacks values")
