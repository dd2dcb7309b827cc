"""An on-disk cache of features, keyed by what they depend on and written chunk by chunk.

Each layer is one zarr array. A chunk file appears by a rename when it is whole, and holds a
checksum, so a killed run goes on where it stopped and a half-written chunk never counts. Features
are not compressed: that would take longer than to compute them anew on a fast GPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from filelock import FileLock, Timeout
from zarr.codecs import Crc32cCodec

from neurodl.errors import StorageError

logger = logging.getLogger(__name__)
ROWS_PER_CHUNK = 64
FORMAT = 3
CHECKSUM = "description_sha256"
MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


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
            The disk is full or fails, or the folder is read-only; finished chunks stay.
        """
        try:
            array = self._open(values.shape[1])
            start = chunk * ROWS_PER_CHUNK
            array[start : start + len(values)] = values
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                f"Cannot write features to {self.path}: {error.strerror or error}. Finished "
                "chunks are kept: make room, or set NEURODL_CACHE to another disk, and run again "
                "to go on from here."
            ) from error

    def _open(self, n_features: int) -> zarr.Array:
        if self.array() is not None:
            return zarr.open_array(self.path, mode="r+")
        attributes = {**self.key, **self.noted}
        checksum = _digest(attributes, (self.n_rows, n_features), "float32")
        try:
            return zarr.create_array(
                self.path,
                shape=(self.n_rows, n_features),
                chunks=(ROWS_PER_CHUNK, n_features),
                dtype="float32",
                fill_value=float("nan"),
                compressors=Crc32cCodec(),
                attributes={**attributes, CHECKSUM: checksum},
                config={"write_empty_chunks": True},
            )
        except zarr.errors.ContainsArrayError:  # another process was faster
            return zarr.open_array(self.path, mode="r+")

    def array(self) -> zarr.Array | None:
        """Return what is on disk, or None; if its description is damaged, all of it is removed."""
        if not (self.path / "zarr.json").is_file():
            return None
        array = open_whole(self.path)
        if array is None:
            logger.warning("the cached features in %s are damaged; they are made anew", self.path)
            shutil.rmtree(self.path, ignore_errors=True)
        return array

    def n_features(self) -> int:
        """Return how many numbers a row has, of what is on disk."""
        with _reading(self.path):
            return int(zarr.open_array(self.path, mode="r").shape[1])

    def read_noted(self, name: str) -> Any:
        """Return what was noted as `name` when the first chunk was written."""
        with _reading(self.path):
            return zarr.open_array(self.path, mode="r").attrs[name]

    def read_chunk(self, chunk: int) -> np.ndarray | None:
        """Return one chunk, shape (n_rows of the chunk, n_features), or None if it is not there.

        A damaged chunk is removed, so that it is computed again.
        """
        array = self.array() if self.has(chunk) else None
        return None if array is None else read_whole(array, self.path, chunk)

    def read(self) -> np.ndarray | None:
        """Return all rows, shape (n_rows, n_features), or None if a chunk is missing or damaged.

        Damaged chunks are removed, so that they are computed again.
        """
        array = self.array() if all(map(self.has, range(self.n_chunks))) else None
        if array is None:
            return None
        values = np.empty(array.shape, np.float32)
        whole = True
        for chunk in range(self.n_chunks):
            part = read_whole(array, self.path, chunk)
            if part is None:
                whole = False
            else:
                values[chunk * ROWS_PER_CHUNK : (chunk + 1) * ROWS_PER_CHUNK] = part
        if not whole:
            return None
        _touch(self.path / "zarr.json")
        return values


def open_whole(path: Path) -> zarr.Array | None:
    """Return a layer's zarr array for reading; None if its description is damaged.

    Raises
    ------
    StorageError
        The disk fails; what is there may be whole.
    """
    try:
        with _reading(path):
            array = zarr.open_array(path, mode="r")
        attributes = dict(array.attrs)
        is_whole = attributes.pop(CHECKSUM) == _digest(attributes, array.shape, str(array.dtype))
    except (KeyError, TypeError, ValueError, RuntimeError, *MISSING):  # json's are ValueErrors
        return None
    return array if is_whole else None


def read_whole(array: zarr.Array, path: Path, chunk: int) -> np.ndarray | None:
    """Return the rows of a chunk; if they are damaged, None, and the chunk is removed.

    Raises
    ------
    StorageError
        The disk fails; the chunk may be whole, and stays.
    """
    try:
        with _reading(path):
            return np.asarray(array[chunk * ROWS_PER_CHUNK : (chunk + 1) * ROWS_PER_CHUNK])
    except (RuntimeError, ValueError, *MISSING):
        logger.warning("chunk %d of the cached features in %s is damaged", chunk, path)
        (path / "c" / str(chunk) / "0").unlink(missing_ok=True)
        return None


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise a StorageError where the disk fails, which says nothing about what is on it."""
    try:
        yield
    except MISSING:
        raise
    except OSError as error:
        raise StorageError(
            f"Cannot read the cached features in {path}: {error.strerror or error}. They are left "
            "as they are: run again, or set NEURODL_CACHE to another disk."
        ) from error


def _digest(attributes: Mapping[str, Any], shape: tuple[int, ...], dtype: str) -> str:
    text = json.dumps([attributes, list(shape), dtype], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _touch(path: Path) -> None:
    """Note the time of use, which `prune_cache` goes by; not in a folder that is read-only."""
    with contextlib.suppress(OSError):
        os.utime(path)


class Claims:
    """Which chunks this process computes, so that several processes share the work.

    A claim is a locked file, which the system unlocks when its process dies.

    Parameters
    ----------
    caches : iterable of FeatureCache
        Of the layers that are computed together.
    """

    def __init__(self, caches: Iterable[FeatureCache]) -> None:
        self.caches = list(caches)
        names = "".join(sorted(cache.path.name for cache in self.caches))
        self._stem = hashlib.sha256(names.encode()).hexdigest()[:32]
        self._held: dict[int, FileLock | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for chunk in list(self._held):
            self.release(chunk)

    def missing(self) -> list[int]:
        """Return the chunks that some layer lacks."""
        numbers = range(self.caches[0].n_chunks)
        return [chunk for chunk in numbers if not self._is_done(chunk)]

    def take(self, chunks: Iterable[int]) -> Iterator[int]:
        """Claim those of `chunks` that no other process has, one by one, as they are asked for."""
        for chunk in chunks:
            if not self._claim(chunk):
                continue
            if self._is_done(chunk):
                self.release(chunk)
            else:
                yield chunk

    def release(self, chunk: int) -> None:
        """Give a claim back."""
        lock = self._held.pop(chunk)
        if lock is not None:
            lock.release()
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()

    def _is_done(self, chunk: int) -> bool:
        return all(cache.has(chunk) for cache in self.caches)

    def _claim(self, chunk: int) -> bool:
        folder = self.caches[0].path.parent.with_name("claims")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{self._stem}-{chunk}")
            lock.acquire(blocking=False)
        except Timeout:
            return False
        except (OSError, NotImplementedError):  # read-only, or a file system without locks
            self._held[chunk] = None
            return True
        self._held[chunk] = lock
        return True
