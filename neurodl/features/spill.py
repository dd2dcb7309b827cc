"""Features set aside on disk, where passing the stimuli again would take longer."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from neurodl.errors import StorageError
from neurodl.features.forward import Batch

logger = logging.getLogger(__name__)
PROBE_BYTES = 2**26


class Spill:
    """Batches of features in files without a name: gone with the process, however it ends.

    Parameters
    ----------
    folder : Path
        The disk to use.
    n_features : mapping of layer to int
    """

    def __init__(self, folder: Path, n_features: Mapping[str, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.n_features = dict(n_features)
        # unbuffered: a batch is larger than any buffer
        self._files = {
            name: tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
            for name in n_features
        }
        self._numbers: list[np.ndarray] = []

    @property
    def n_batches(self) -> int:
        """The number of batches that were written."""
        return len(self._numbers)

    def append(self, numbers: np.ndarray, rows: Mapping[str, torch.Tensor]) -> None:
        """Write a batch after the others.

        Parameters
        ----------
        numbers : numpy.ndarray of int, shape (n_rows,)
        rows : mapping of layer to torch.Tensor, shape (n_rows, n_features), float32

        Raises
        ------
        StorageError
            The disk is full after all.
        """
        try:
            for name, values in rows.items():
                self._write(name, values.contiguous().numpy())
        except OSError as error:
            raise StorageError(
                f"Cannot set features aside on disk: {error}. Make room, give more `memory`, or "
                "say cache=False, which uses no disk."
            ) from error
        self._numbers.append(numbers)

    def batches(self, first: int) -> Iterator[Batch]:
        """Yield the batches from row number `first` on, as they were written."""
        n_before = 0
        for numbers in self._numbers:
            if numbers[0] >= first:
                yield numbers, {name: self._read(name, n_before, len(numbers)) for name in self}
            n_before += len(numbers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def _write(self, name: str, values: np.ndarray) -> None:
        content = memoryview(values).cast("B")
        while len(content):
            content = content[self._files[name].write(content) :]

    def _read(self, name: str, n_before: int, n_rows: int) -> torch.Tensor:
        values = np.empty((n_rows, self.n_features[name]), np.float32)
        content = memoryview(values).cast("B")
        self._files[name].seek(4 * n_before * self.n_features[name])
        while len(content):
            n_read = self._files[name].readinto(content)
            if not n_read:
                raise OSError(f"The temporary file of layer {name!r} ends too early.")
            content = content[n_read:]
        return torch.from_numpy(values)

    def close(self) -> None:
        """Give the disk's space back."""
        for file in self._files.values():
            file.close()


def disk_speed(folder: Path) -> float:
    """Return how fast a folder's disk is written to [bytes / s], by writing 64 MiB."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        start = time.perf_counter()
        file.write(bytes(PROBE_BYTES))
        os.fsync(file.fileno())
        return PROBE_BYTES / (time.perf_counter() - start)


def spill_pays(
    n_passes: float, pass_seconds: float, n_bytes: float, bytes_per_second: float
) -> bool:
    """Return whether disk is faster: one pass and a write, then reads in place of passes.

    Examples
    --------
    >>> spill_pays(3, 100, 10e9, 1e9)
    True
    >>> spill_pays(3, 10, 10e9, 1e9)
    False
    """
    return (n_passes - 1) * pass_seconds > n_passes * n_bytes / bytes_per_second


def open_spill(
    folder: Path, n_features: Mapping[str, int], n_rows: int, n_passes: float, pass_seconds: float
) -> Spill | None:
    """Return a spill if it fits into half of the free disk and pays, else None.

    Parameters
    ----------
    folder : Path
    n_features : mapping of layer to int
    n_rows : int
        How many rows are to be written.
    n_passes : float
        How often the stimuli would pass without it.
    pass_seconds : float
        How long a pass takes [s].
    """
    n_bytes = 4.0 * n_rows * sum(n_features.values())
    if n_passes <= 1:
        return None
    try:
        speed = disk_speed(folder)
        fits = n_bytes < shutil.disk_usage(folder).free / 2
        if not fits or not spill_pays(n_passes, pass_seconds, n_bytes, speed):
            return None
        spill = Spill(folder, n_features)
    except OSError as error:
        logger.warning("%s cannot hold features for a while: %s", folder, error)
        return None
    logger.info(
        "features are set aside on disk (%.1f GB at %.0f MB/s) in place of %.1f more passes",
        n_bytes / 1e9,
        speed / 1e6,
        n_passes - 1,
    )
    return spill
