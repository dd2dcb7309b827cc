"""One fit on several devices: each takes some of the targets, in a thread of its own."""

from __future__ import annotations

import functools
import heapq
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from sklearn.base import clone

from neurodl.errors import DeviceError
from neurodl.runtime import names_several, resolve_devices

if TYPE_CHECKING:
    from neurodl.models._base import FoldPrediction, PenaltyCV

N_WAITING = 2  # blocks of predictions that a device may be ahead
SECONDS_BETWEEN_LOOKS = 0.05


class _Stopped(Exception):
    """The others have ended: what is not finished is not wanted."""


def all_or_nothing(fit: Callable[..., Any]) -> Callable[..., Any]:
    """Return a `fit` that uses all devices, and leaves a model as it was unless it succeeds."""

    @functools.wraps(fit)
    def fit_whole(model: PenaltyCV, X: Any, y: Any = None, *args: Any, **labels: Any) -> Any:
        before = dict(model.__dict__)
        try:
            if not names_several(model.device):
                return fit(model, X, y, *args, **labels)
            fit_on_several(lambda one, some: fit(one, X, some, *args, **labels), model, y)
            return model
        except BaseException:
            model.__dict__ = before
            raise

    return fit_whole


class SomeTargets:
    """Some columns of the targets, which are read only when they are asked for.

    Parameters
    ----------
    y : array, shape (n_samples, n_all)
    columns : slice
    stop : threading.Event, optional
        Once it is set, reading raises, and so ends the fit that reads.
    """

    def __init__(self, y: Any, columns: slice, stop: threading.Event | None = None) -> None:
        self.y, self.columns, self.stop = y, columns, stop
        self.shape = (y.shape[0], columns.stop - columns.start)
        self.dtype, self.n_before, self.n_together = y.dtype, columns.start, int(y.shape[1])

    def __getitem__(self, key: tuple[slice, slice]) -> Any:
        """Return ``y[:, columns]``, of some of the columns."""
        if self.stop is not None and self.stop.is_set():
            raise _Stopped
        rows, some = key
        start, stop, _ = some.indices(self.shape[1])
        return self.y[rows, self.columns.start + start : self.columns.start + stop]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return all of them."""
        return np.asarray(self[:, :], dtype)


class _Worker(NamedTuple):
    """A copy of a model for one device, and its targets."""

    model: PenaltyCV
    columns: slice


def shares(n_targets: int, n_devices: int) -> list[slice]:
    """Return which targets each device takes: as many as the others, none without any.

    Examples
    --------
    >>> shares(5, 2)
    [slice(0, 3, None), slice(3, 5, None)]
    """
    edges = [-(-n_targets * number // n_devices) for number in range(n_devices + 1)]
    return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if b > a]


def predict_on_several(
    model: PenaltyCV, X: Any, y: Any, splits: Sequence[Any], **labels: Any
) -> Iterator[FoldPrediction]:
    """Yield what ``predict_folds`` does on one device, in the same order of folds and targets.

    Raises
    ------
    DeviceError
        A device is not there, or the model cannot fit some targets without the others.
    Exception
        Whatever is raised on one of the devices; the others are stopped.
    """
    stop, failed = threading.Event(), list[BaseException]()
    workers = _workers(model, int(y.shape[1]))
    queues: list[queue.Queue[FoldPrediction | None]] = [queue.Queue(N_WAITING) for _ in workers]

    def work(worker: _Worker, out: queue.Queue[FoldPrediction | None]) -> None:
        first = worker.columns.start
        try:
            some = SomeTargets(y, worker.columns, stop)
            for part in worker.model.predict_folds(X, some, splits, **labels):
                columns = slice(part.columns.start + first, part.columns.stop + first)
                _hand_over(part._replace(columns=columns), out, stop)
            _hand_over(None, out, stop)
        except BaseException as error:
            failed.append(error)
            stop.set()

    with ThreadPoolExecutor(len(workers)) as pool:
        try:
            for pair in zip(workers, queues, strict=True):
                pool.submit(work, *pair)
            streams = [_taken(out, stop, failed) for out in queues]
            # of equal folds, those of the first device come first
            yield from heapq.merge(*streams, key=lambda part: part.fold)
        finally:
            stop.set()
    _warn_once_for_all(model, workers)


def fit_on_several(fit_one: Callable[[Any, Any], Any], model: PenaltyCV, y: Any) -> None:
    """Fit a model with each device taking some of the targets, and join what they found.

    Parameters
    ----------
    fit_one : callable
        Fits a copy of the model to some targets, on one device.
    model : PenaltyCV
    y : array-like, shape (n_samples,) or (n_samples, n_targets)

    Raises
    ------
    DeviceError, Exception
        See `predict_on_several`.
    """
    stop = threading.Event()
    y = y if y is None or hasattr(y, "shape") else np.asarray(y)
    single = y is None or len(y.shape) != 2
    workers = _workers(model, 1 if single else int(y.shape[1]))
    with ThreadPoolExecutor(len(workers)) as pool:
        try:
            runs = [
                pool.submit(fit_one, one, y if single else SomeTargets(y, columns, stop))
                for one, columns in workers
            ]
            done = wait(runs, return_when=FIRST_EXCEPTION).done
        finally:
            stop.set()
    for run in done:
        run.result()
    _join(model, [worker.model for worker in workers])
    _warn_once_for_all(model, workers)


def _workers(model: PenaltyCV, n_targets: int) -> list[_Worker]:
    """Return a copy of the model for each device that has targets to take."""
    devices = resolve_devices(model.device)
    if not model._target_axes and len(devices) > 1:
        raise DeviceError(
            f"{type(model).__name__} fits all targets together, on one device, but `device` names "
            f"{len(devices)}: {model.device!r}. Give one, such as {str(devices[0])!r}."
        )
    workers = []
    for device, columns in zip(devices, shares(n_targets, len(devices)), strict=False):
        one = clone(model).set_params(device=str(device))
        one._edges_seen = []
        workers.append(_Worker(one, columns))
    return workers


def _hand_over(part: Any, out: queue.Queue[Any], stop: threading.Event) -> None:
    """Put a part into a queue, as soon as there is room, unless it is not wanted any more."""
    while not stop.is_set():
        try:
            return out.put(part, timeout=SECONDS_BETWEEN_LOOKS)
        except queue.Full:
            continue
    raise _Stopped


def _taken(
    out: queue.Queue[FoldPrediction | None], stop: threading.Event, failed: list[BaseException]
) -> Iterator[FoldPrediction]:
    """Yield the parts that one device makes, or raise what ended any of them."""
    while not stop.is_set():
        try:
            part = out.get(timeout=SECONDS_BETWEEN_LOOKS)
        except queue.Empty:
            continue
        if part is None:
            return
        yield part
    raise failed[0]


def _join(model: PenaltyCV, fitted: list[PenaltyCV]) -> None:
    """Take over what was fitted to some of the targets, one after the other."""
    first, axes = fitted[0], model._target_axes
    for name in set(vars(first)) - set(model.get_params(deep=False)) - {"_edges_seen"}:
        values = [getattr(one, name) for one in fitted]
        if name in axes:
            setattr(model, name, _concatenated(values, axes[name]))
        else:
            setattr(model, name, sum(values) if name in model._target_counts else values[0])


def _concatenated(values: list[Any], axis: int) -> Any:
    """Return tensors of any devices, or arrays, one after the other along an axis."""
    if isinstance(values[0], torch.Tensor):
        return torch.cat([value.to(values[0].device) for value in values], axis)
    return np.concatenate(values, axis)


def _warn_once_for_all(model: PenaltyCV, workers: list[_Worker]) -> None:
    """Say for each fold how many targets of all devices are at the edges of the grid."""
    for seen in zip(*(worker.model._edges_seen or [] for worker in workers), strict=True):
        n_at_edge, n_targets, grids = zip(*seen, strict=True)
        model._say_edges(np.sum(n_at_edge, 0), sum(n_targets), grids[0])
