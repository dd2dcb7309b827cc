"""An on-disk cache of features, keyed by what they depend on and written chunk by chunk.

Each layer is one zarr array. A chunk file appears by a rename when it is whole, and holds a
checksum, so a killed run goes on where it stopped and a half-written chunk never counts.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from neurodl.errors import StorageError

ROWS_PER_CHUNK = 64
FORMAT = 2


def cache_folder(cache: str | Path | None = None) -> Path:
    """Return where features are cached: `cache`, ``$NEURODL_CACHE``, or ``~/.cache/neurodl``."""
    if cache is not None:
        return Path(cache).expanduser()
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "neurodl"
    return Path(os.environ.get("NEURODL_CACHE", default)).expanduser()


class FeatureCache:
    """The cached rows of one layer, for one backbone, pooling and list of stimuli.

    Parameters
    ----------
    folder : Path
        The cache's folder; see `cache_folder`.
    key : mapping of str to str
        Everything that the values depend on.
    n_rows : int
        The number of stimuli.

    Attributes
    ----------
    noted : dict of str to numbers, text, lists or dicts of them
        What is learned with the values and kept beside them; set before the first `write`.
    """

    def __init__(self, folder: Path, key: Mapping[str, str], n_rows: int) -> None:
        text = json.dumps({"format": FORMAT, **key}, sort_keys=True)
        self.path = folder / "features" / hashlib.sha256(text.encode()).hexdigest()[:32]
        self.key = dict(key)
        self.n_rows = n_rows
        self.noted: dict[str, Any] = {}

    @property
    def n_chunks(self) -> int:
        """The number of chunks of all rows."""
        return -(-self.n_rows // ROWS_PER_CHUNK)

    def has(self, chunk: int) -> bool:
        """Return whether a chunk is whole on disk."""
        return (self.path / "c" / str(chunk) / "0").is_file()

    def write(self, chunk: int, values: np.ndarray) -> None:
        """Write one chunk, shape (n_rows of the chunk, n_features), whole or not at all.

        Raises
        ------
        StorageError
            The disk is full or the folder is read-only; finished chunks stay.
        """
        try:
            array = self._open(values.shape[1])
            start = chunk * ROWS_PER_CHUNK
            array[start : start + len(values)] = values
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise StorageError(
                    f"Cannot write features to {self.path}: {os.strerror(error.errno)}. Finished "
                    "chunks are kept: make room, or set NEURODL_CACHE to another disk, and run "
                    "again to go on from here."
                ) from error
            raise

    def _open(self, n_features: int) -> zarr.Array:
        if (self.path / "zarr.json").is_file():
            return zarr.open_array(self.path, mode="r+")
        return zarr.create_array(
            self.path,
            shape=(self.n_rows, n_features),
            chunks=(ROWS_PER_CHUNK, n_features),
            dtype="float32",
            fill_value=float("nan"),
            compressors=ZstdCodec(level=1, checksum=True),
            attributes={**self.key, **self.noted},
            config={"write_empty_chunks": True},
        )

    def read_noted(self, name: str) -> Any:
        """Return what was noted as `name` when the first chunk was written."""
        return zarr.open_array(self.path, mode="r").attrs[name]

    def read_chunk(self, chunk: int) -> np.ndarray | None:
        """Return one chunk, shape (n_rows of the chunk, n_features), or None if it is not there.

        A damaged chunk is removed, so that it is computed again.
        """
        if not self.has(chunk):
            return None
        array = zarr.open_array(self.path, mode="r")
        try:
            return np.asarray(array[chunk * ROWS_PER_CHUNK : (chunk + 1) * ROWS_PER_CHUNK])
        except (RuntimeError, ValueError, OSError):
            (self.path / "c" / str(chunk) / "0").unlink(missing_ok=True)
            return None

    def read(self) -> np.ndarray | None:
        """Return all rows, shape (n_rows, n_features), or None if a chunk is missing or damaged.

        Damaged chunks are removed, so that they are computed again.
        """
        if not all(self.has(chunk) for chunk in range(self.n_chunks)):
            return None
        values = np.empty(zarr.open_array(self.path, mode="r").shape, np.float32)
        whole = True
        for chunk in range(self.n_chunks):
            part = self.read_chunk(chunk)
            if part is None:
                whole = False
            else:
                values[chunk * ROWS_PER_CHUNK : (chunk + 1) * ROWS_PER_CHUNK] = part
        return values if whole else None
