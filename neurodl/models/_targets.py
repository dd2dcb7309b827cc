"""Targets, read some at a time: responses need not fit into memory."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from neurodl.errors import listed
from neurodl.models._input import from_numpy

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

MAX_TARGETS = {"cpu": 2048, "cuda": 16384}
BLOCK_BYTES = {"cpu": 2**23, "cuda": 2**29}
MIN_TARGETS = 16
MAX_RUNS = 8  # of neighbouring rows, which are copied several times faster than single ones


class Block(NamedTuple):
    """Some targets of the training rows, centred.

    columns : which targets
    values : (n_targets, n_train)
    mean : (n_targets,), what was subtracted
    floor : (n_targets,), deviations below it are rounding errors
    """

    columns: slice
    values: torch.Tensor
    mean: torch.Tensor
    floor: torch.Tensor


class Targets:
    """The targets of some rows, read block by block, onto the device and in the dtype of `like`.

    Parameters
    ----------
    y : array, shape (n_samples, n_targets)
        Of numpy, torch, xarray or zarr, or a memory map: only blocks of columns are read.
    like : torch.Tensor
    rows : numpy.ndarray, optional
        The training rows; by default all.
    nan_targets : {"error", "exclude"}
        Whether targets with missing values are an error, or are read as 0 and kept in
        `excluded`.
    runs : array-like, shape (n_rows,), optional
        The run of each row: the mean of each run is taken off.
    at_once : int, optional
        How many are read at once; by default `targets_at_once`.
    """

    def __init__(
        self,
        y: Any,
        like: torch.Tensor,
        rows: np.ndarray | None = None,
        nan_targets: str = "error",
        runs: Any = None,
        at_once: int | None = None,
    ) -> None:
        self.y, self.rows, self.dtype, self.device = y, rows, like.dtype, like.device
        self.n_samples = int(y.shape[0]) if rows is None else len(rows)
        self.n_targets = int(y.shape[1])
        # with those on other devices, before these and in all: it decides how all are computed
        self.n_before = int(getattr(y, "n_before", 0))
        self.n_together = int(getattr(y, "n_together", self.n_targets))
        self.excluded = np.zeros(self.n_targets, bool)
        self.nan_targets = nan_targets
        self.run: torch.Tensor | None = None
        if runs is not None:
            number = np.unique(np.asarray(runs), return_inverse=True)[1]
            self.run = torch.as_tensor(number, device=self.device)
        self.ahead: _Ahead | None = None
        most = targets_at_once(self.n_samples, self.dtype.itemsize, self.device.type)
        self.n_at_once = most if at_once is None else at_once

    def some(self, columns: slice) -> Targets:
        """Return the targets of some columns, which are numbered anew."""
        part = copy.copy(self)
        part.y, part.excluded = self.y[:, columns], self.excluded[columns]
        part.n_targets = len(part.excluded)
        return part

    def block(self, start: int) -> Block:
        """Return the targets from `start` on, as many as are read at once."""
        columns = slice(start, min(start + self.n_at_once, self.n_targets))
        values = self._read(columns)
        if not values.sum(1).isfinite().all():  # which large values make infinite, too
            finite = values.isfinite().all(1)
            if not finite.all():
                self._exclude(columns, values, finite)
        if self.run is not None:
            values -= means_of_runs(values, self.run)[:, self.run]
        floor = 8 * torch.finfo(self.dtype).eps * values.abs().amax(1)
        mean = values.mean(1)
        values -= mean[:, None]
        return Block(columns, values, mean, floor)

    def map(self, work: Callable[[Block], Result]) -> Iterator[tuple[Block, Result]]:
        """Yield each block, and what `work` makes of it.

        Where memory does not suffice for a block, it goes on with blocks half the size: `work`
        must not change anything outside before it has succeeded.
        """
        on_host = self.device.type == "cuda" and not isinstance(self.y, torch.Tensor)
        self.ahead = _Ahead(self.y, self.device) if on_host else None
        try:
            yield from self._mapped(work)
        finally:
            if self.ahead is not None:
                self.ahead.close()
                self.ahead = None

    def _mapped(self, work: Callable[[Block], Result]) -> Iterator[tuple[Block, Result]]:
        start = 0
        while start < self.n_targets:
            try:
                block = self.block(start)
                result = work(block)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self.n_at_once <= MIN_TARGETS:
                    raise
                self.n_at_once //= 2
            else:
                start = block.columns.stop
                yield block, result
                continue
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            logger.warning("out of memory: going on with %d targets at once", self.n_at_once)

    def mean(self) -> torch.Tensor:
        """Return the mean of each target, (n_targets,)."""
        return torch.cat([mean for _, mean in self.map(lambda block: block.mean)])

    def _read(self, columns: slice) -> torch.Tensor:
        """Return a fresh (n_targets, n_train) tensor."""
        if self.ahead is not None:
            stop = min(columns.stop + self.n_at_once, self.n_targets)
            moved = self.ahead.read(columns, slice(columns.stop, stop))
            if self.rows is not None:
                moved = moved[torch.as_tensor(self.rows, device=self.device)]
            return moved.T.to(self.dtype, copy=True).contiguous()
        raw = self.y[:, columns]
        rows = np.arange(len(raw)) if self.rows is None else self.rows
        if not isinstance(raw, torch.Tensor):
            raw, name = np.asarray(raw), str(self.dtype).removeprefix("torch.")
            if raw.dtype.str != np.dtype(name).str or not raw.flags.writeable:
                raw, rows = raw[rows].astype(name, copy=False), np.arange(len(rows))  # a copy
            raw = from_numpy(raw)
        raw = raw.detach()
        # torch transposes block by block; numpy meets conflicts in the cache, 5 times slower
        values = columns_of(raw.T, torch.as_tensor(rows, device=raw.device))
        return values.to(self.device, self.dtype)

    def _exclude(self, columns: slice, values: torch.Tensor, finite: torch.Tensor) -> None:
        """Note targets with missing values and set them to 0, or raise."""
        bad = (~finite).nonzero()[:, 0].cpu().numpy()
        if self.nan_targets == "exclude":
            self.excluded[columns.start + bad] = True
            values[torch.as_tensor(bad, device=values.device)] = 0.0
            return
        where = (~values[int(bad[0])].isfinite()).nonzero()[:, 0].cpu().numpy()
        rows = where if self.rows is None else self.rows[where]
        first, last = self.n_before + columns.start, self.n_before + columns.stop - 1
        raise ValueError(
            f"Input y contains NaN or infinity: {len(bad)} of the targets {first} to {last}, "
            f"such as target {first + bad[0]} in rows {listed(rows)}. "
            "Leave these rows or targets out, or say nan_targets='exclude'."
        )


class _Ahead:
    """Brings columns of an array on the host to a CUDA device, the next ones while it computes."""

    def __init__(self, y: Any, device: torch.device) -> None:
        self.y, self.device = y, device
        self.thread = ThreadPoolExecutor(1)
        self.stream = torch.cuda.Stream(device)
        self.waiting: tuple[slice, Future[torch.Tensor]] | None = None

    def read(self, columns: slice, following: slice) -> torch.Tensor:
        """Return columns (n_samples, n_columns) on the device, and begin with those that follow."""
        if self.waiting is not None and self.waiting[0] == columns:
            future = self.waiting[1]
        else:
            future = self.thread.submit(self._move, columns)
        self.waiting = None
        moved = future.result()
        if following.stop > following.start:
            self.waiting = following, self.thread.submit(self._move, following)
        moved.record_stream(torch.cuda.current_stream(self.device))
        return moved

    def close(self) -> None:
        """Forget what was read ahead."""
        self.thread.shutdown(cancel_futures=True)
        self.waiting = None

    def _move(self, columns: slice) -> torch.Tensor:
        raw = np.asarray(self.y[:, columns])
        host = torch.empty(raw.shape, dtype=_torch_dtype(raw), pin_memory=True)
        if raw.flags.writeable:
            host.copy_(torch.from_numpy(raw))  # on all cores, unlike numpy's copy
        else:
            np.copyto(host.numpy(), raw)
        with torch.cuda.stream(self.stream):
            moved = host.to(self.device, non_blocking=True)
        self.stream.synchronize()
        return moved


def _torch_dtype(array: np.ndarray) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype.newbyteorder("="))).dtype


def columns_of(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return a copy of some columns: on a processor, run by run where they lie in few runs."""
    starts = (index.diff() != 1).nonzero()[:, 0] + 1 if values.device.type == "cpu" else None
    if starts is None or len(starts) >= MAX_RUNS:
        if values.stride(0) == 1:  # columns lie whole in memory
            return values.T.index_select(0, index).T.contiguous()
        return values.index_select(1, index)
    edges = [0, *starts.tolist(), len(index)]
    first = index[edges[:-1]].tolist()
    lengths = [stop - start for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    return torch.cat([values[:, i : i + n] for i, n in zip(first, lengths, strict=True)], 1)


def targets_at_once(n_samples: int, itemsize: int, device: str) -> int:
    """Return how many targets are best read at once, if there is room."""
    kind = "cuda" if device == "cuda" else "cpu"
    fitting = BLOCK_BYTES[kind] // (n_samples * itemsize or 1)
    return max(MIN_TARGETS, min(MAX_TARGETS[kind], fitting))


def means_of_runs(values: torch.Tensor, run: torch.Tensor) -> torch.Tensor:
    """Return the mean over the columns of each run, (n_targets, n_runs)."""
    member = torch.nn.functional.one_hot(run).to(values.dtype)
    return values @ (member / member.sum(0))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
