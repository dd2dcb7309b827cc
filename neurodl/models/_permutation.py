"""Correlations under permuted targets, at fixed penalties: one decomposition for all of them.

A permutation changes nothing in the features. The map from training targets to predictions is
made once for each fold and penalty, and is multiplied with the targets in another order of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from neurodl.errors import TooLargeError
from neurodl.models._base import PenaltyCV
from neurodl.models._input import as_index, as_tensor
from neurodl.models._solvers import gains
from neurodl.runtime import available_memory, resolve_devices

N_COLUMNS = 256  # targets whose rows, in any order, are read from the processor's cache
N_ORDERS = 4  # orders that are multiplied at once
BLOCK_BYTES = 2**26


class _Maps(NamedTuple):
    """The maps of one fold.

    train, test : row numbers
    maps : (n_used, n_test, n_train), to predictions that are centred over the test rows
    place : (n_targets,), the map of each target
    """

    train: torch.Tensor
    test: torch.Tensor
    maps: torch.Tensor
    place: torch.Tensor


def permuted_r(
    model: PenaltyCV,
    X: Any,
    y: np.ndarray,
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
    alpha: np.ndarray,
    orders: np.ndarray,
    runs: Any = None,
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield correlations of predictions with permuted targets, averaged over folds.

    Parameters
    ----------
    model : PenaltyCV
        Whose features and kernel are used; its penalties are not.
    X : array-like, shape (n_samples, n_features)
    y : numpy.ndarray, shape (n_samples, n_targets)
        Or a memory map; read in blocks of targets.
    splits : sequence of (train, test)
    alpha : numpy.ndarray, shape (n_folds, n_targets)
        The penalty of each target in each fold.
    orders : numpy.ndarray, shape (n_orders, n_samples)
        Row i of the targets is replaced by row ``orders[j, i]``.
    runs : array-like, shape (n_samples,), optional
        See `RidgeCV.fit`.

    Yields
    ------
    columns, some_orders : slice
    r : numpy.ndarray, shape (n_some_orders, n_columns)
    """
    device = resolve_devices(model.device)[0]
    features = as_tensor(X, device)
    folds = _fold_maps(model, features, splits, alpha, runs)
    every_order = torch.as_tensor(orders, device=device)
    width = max(N_COLUMNS, BLOCK_BYTES // (4 * len(y)))
    for start in range(0, y.shape[1], width):
        columns = slice(start, min(start + width, y.shape[1]))
        values = torch.as_tensor(np.ascontiguousarray(y[:, columns]), dtype=features.dtype)
        values = values.to(device)
        values -= values.mean(0)
        n_at_once = max(N_ORDERS, BLOCK_BYTES // (4 * values.shape[1]))
        for first in range(0, len(orders), n_at_once):
            some = slice(first, min(first + n_at_once, len(orders)))
            total = values.new_zeros(some.stop - first, values.shape[1])
            for fold in folds:
                total += _block_r(fold, values, columns, every_order[some])
            yield columns, some, (total / len(folds)).cpu().numpy()


def _fold_maps(
    model: PenaltyCV,
    features: torch.Tensor,
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
    alpha: np.ndarray,
    runs: Any,
) -> list[_Maps]:
    """Return the maps of every fold, of the penalties that are used there."""
    device = features.device
    n_bytes = sum(
        len(np.unique(row)) * len(train) * len(test) * features.dtype.itemsize
        for row, (train, test) in zip(alpha, splits, strict=True)
    )
    if n_bytes > available_memory(device) / 2:
        raise TooLargeError(
            f"The maps of all penalties take {n_bytes / 1e9:.1f} GB, more than half of what is "
            "free. Give fewer `alphas`, or fewer folds."
        )
    found, space = [], None
    for row, (train, test) in zip(alpha, splits, strict=True):
        own, held = as_index(train, device), as_index(test, device)
        space = model._space(features, own, runs, space)
        used, place = np.unique(row, return_inverse=True)
        penalties = torch.as_tensor(used, dtype=torch.float64, device=device)
        fold = space.fold(own, held, float(used[0]), alpha.shape[1])
        out = fold.test_basis().double()
        out = out - out.mean(0)
        eigenvalues, inner = fold.train_basis()
        filters = gains(eigenvalues, penalties, torch.float64)
        maps = torch.stack(
            [((out * gain) @ inner.double().T).to(features.dtype) for gain in filters]
        )
        found.append(_Maps(own, held, maps, torch.as_tensor(place.reshape(-1), device=device)))
    return found


def _block_r(
    fold: _Maps, values: torch.Tensor, columns: slice, orders: torch.Tensor
) -> torch.Tensor:
    """Return r of one fold, (n_orders, n_columns)."""
    r = values.new_empty(len(orders), values.shape[1])
    place = fold.place[columns]
    for number in place.unique().tolist():
        mine = (place == number).nonzero()[:, 0]
        for some in mine.split(N_COLUMNS):
            own = values.index_select(1, some)
            parts = [
                _r(fold.maps[number], own, part[:, fold.train], part[:, fold.test])
                for part in orders.split(N_ORDERS)
            ]
            r[:, some] = torch.cat(parts)
    return r


def _r(
    one_map: torch.Tensor, values: torch.Tensor, train: torch.Tensor, test: torch.Tensor
) -> torch.Tensor:
    """Return r (n_orders, n_columns) of one map with targets in some orders of their rows."""
    shape = (len(train), -1, values.shape[1])
    predicted = one_map @ values.index_select(0, train.flatten()).view(shape)
    seen = values.index_select(0, test.flatten()).view(shape)
    cross = (predicted * seen).sum(1)
    variance = seen.square().sum(1) - seen.sum(1).square() / seen.shape[1]
    return cross / (predicted.square_().sum(1) * variance).sqrt()
