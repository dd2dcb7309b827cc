"""Plain files - numpy arrays, tables, lists of lines - with errors that name the file."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from neurodl.errors import FileFormatError, MissingFileError, NeurodlError, did_you_mean, listed

DAMAGED = (
    ValueError,
    OSError,
    EOFError,
    OverflowError,
    MemoryError,
    NotImplementedError,  # a way of compression
    SyntaxError,
    tokenize.TokenError,  # in the header of an array
    zipfile.BadZipFile,
    zlib.error,
)
MISSING = ("", "n/a", "N/A", "NA", "nan", "NaN")  # in a column of text "NA" is a name


@contextmanager
def open_npz(path: Path) -> Iterator[np.ndarray | Mapping[str, np.ndarray]]:
    """Open a ``.npy`` or ``.npz`` file; arrays of the latter are read when they are asked for.

    Raises
    ------
    FileFormatError
        The file, or an array read inside the block, is damaged or holds Python objects.
    """
    try:
        with path.open("rb") as file:
            yield np.load(file, allow_pickle=False)
    except NeurodlError:
        raise
    except DAMAGED as error:
        reason = str(error)
        if "pickle" in reason:  # what numpy says of every file that it does not know
            reason = "it is damaged or holds Python objects; save plain numbers or text"
        raise FileFormatError(f"Cannot read {path}: {reason}") from error


def load_array(
    path: Path,
    key: str | None = None,
    *,
    what: str,
    names: Sequence[str] = (),
    beside: Sequence[str] = (),
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the array of a ``.npy`` file, or one of an ``.npz`` file and what stands beside it.

    Parameters
    ----------
    path : Path
        The file.
    key : str, optional
        Which array of an npz file. By default one of `names`, or the only one.
    what : str
        What the array is called in an error.
    names : sequence of str
        What the array is usually called in an npz file, first the preferred name.
    beside : sequence of str
        What ids are usually called; they are not taken for the array.

    Returns
    -------
    numpy.ndarray
    numpy.ndarray or None
        The array that is called like one of `beside`.

    Raises
    ------
    FileFormatError
        The file cannot be read, or which array is meant is not clear.
    ValueError
        A key for a file that holds one array.
    """
    if key is not None and path.suffix.lower() != ".npz":
        raise ValueError(f"`key` chooses an array of an .npz file, but got {path}.")
    with open_npz(path) as stored:
        if isinstance(stored, np.ndarray):
            return stored, None
        found = list(stored)
        other = next((name for name in beside if name in found and name != key), None)
        if key is None:
            choices = [name for name in names if name in found] or [
                name for name in found if name != other
            ]
            if len(choices) != 1:
                raise FileFormatError(
                    f"{path} holds the arrays {listed(found, 20)}; say which are the {what}: "
                    "key='...'."
                )
            key = choices[0]
        if key not in found:
            raise FileFormatError(f"{path} has no array {key!r}. {did_you_mean(key, found)}")
        return stored[key], None if other is None else stored[other]


def read_table(path: Path, text: Sequence[str] = ()) -> pd.DataFrame:
    """Return a ``.tsv`` or ``.csv`` table; the columns `text` are kept as written.

    Raises
    ------
    FileFormatError
        The file is no table, or a column of `text` has empty cells.
    """
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        columns = pd.read_csv(path, sep=separator, nrows=0).columns
        table = pd.read_csv(
            path,
            sep=separator,
            dtype=dict.fromkeys(text, str),
            keep_default_na=False,
            na_values={name: MISSING for name in columns if name not in text},
        )
    except (ValueError, OSError) as error:
        raise FileFormatError(f"Cannot read the table {path}: {error}") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise FileFormatError(f"The rows of the table {path} have more cells than its header.")
    for name in text:
        if name in table and (table[name] == "").any():
            empty = np.flatnonzero(table[name] == "")
            raise FileFormatError(
                f"The column {name!r} of the table {path} is empty in {len(empty)} rows, first in "
                f"row {empty[0] + 1}."
            )
    return table


def text_lines(values: Sequence[str] | str | Path) -> list[str]:
    """Return a list of strings; a path stands for a text file with one per line.

    Raises
    ------
    MissingFileError
        There is no such text file.
    """
    if isinstance(values, (str, Path)):
        path = Path(values).expanduser()
        if not path.is_file():
            raise MissingFileError(f"The text file {path} does not exist.")
        return path.read_text(encoding="utf-8").splitlines()
    return [str(value) for value in values]
