"""Parts of the training rows: the folds that choose penalties, the rows that stop a training."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold, GroupShuffleSplit, KFold, ShuffleSplit, check_cv

from neurodl.errors import listed
from neurodl.runtime import derive_seed

Splits = list[tuple[np.ndarray, np.ndarray]]


def n_inner(cv: Any, n_samples: int, groups: Any) -> int:
    """Return the number of inner folds; see `inner_splits`. That of an iterator counts as 5."""
    if isinstance(cv, numbers.Integral):
        return min(int(cv), n_samples if groups is None else len(np.unique(groups)))
    if hasattr(cv, "get_n_splits"):
        return int(cv.get_n_splits(np.empty((n_samples, 1)), None, groups))
    return len(cv) if hasattr(cv, "__len__") else 5


def check_rows(splits: Sequence[tuple[Any, Any]], n_samples: int) -> None:
    """Raise unless folds are numbers of rows that are there, at least two of them to train on."""
    if not splits:
        raise ValueError("`splits` has no folds; give (train, test) row numbers of each.")
    for number, (train, test) in enumerate(splits):
        if len(train) < 2:
            raise ValueError(
                f"Fold {number} of `splits` has {len(train)} training rows, but a model needs at "
                "least 2."
            )
        for rows in map(np.asarray, (train, test)):
            if len(rows) and (
                rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= n_samples
            ):
                raise ValueError(
                    f"Fold {number} of `splits` must hold row numbers from 0 to {n_samples - 1}, "
                    f"but holds {listed(rows, 3)}. Of a mask, take numpy.flatnonzero."
                )


def inner_splits(cv: Any, n_samples: int, groups: Any, seed: int) -> Splits:
    """Return row numbers of training and test rows of each inner fold.

    Parameters
    ----------
    cv : int, scikit-learn splitter, or iterable of (train, test)
        An int shuffles rows with `seed`; with `groups` it keeps groups whole.
    n_samples : int
    groups : array-like, shape (n_samples,), or None
    seed : int

    Raises
    ------
    ValueError
        There are fewer than two rows or groups to split, or a fold has no rows.
    """
    if isinstance(cv, numbers.Integral):
        if cv < 2:
            raise ValueError(f"`cv` must be at least 2 folds, but got {cv}.")
        if groups is not None:
            n_groups = len(np.unique(groups))
            if n_groups < 2:
                raise ValueError(
                    "Choosing by inner folds needs at least 2 groups in the training rows, but "
                    "there is 1. Give a single value, such as alphas=[1.0] or n_components=25, or "
                    "more groups."
                )
            cv = GroupKFold(min(int(cv), n_groups))
        else:
            cv = KFold(min(int(cv), n_samples), shuffle=True, random_state=seed)
    splits = [
        (np.asarray(train), np.asarray(test))
        for train, test in check_cv(cv).split(np.empty((n_samples, 1)), None, groups)
    ]
    empty = [fold for fold, pair in enumerate(splits) if not all(map(len, pair))]
    if empty or not splits:
        raise ValueError(f"`cv` gives no training or no test rows in inner folds {empty}.")
    return splits


def split_validation(
    share: float, n_rows: int, groups: np.ndarray | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that train and those that early stopping looks at, of n_rows.

    Raises
    ------
    ValueError
        The share is not between 0 and 1, or there is too little to split.
    """
    if not 0 < share < 1:
        raise ValueError(f"`validation` must be between 0 and 1, but got {share}.")
    n_units = n_rows if groups is None else len(np.unique(groups))
    if n_rows < 4 or n_units < 2:
        raise ValueError(
            f"There are {n_rows} training rows in {n_units} groups, of which a share of {share:g} "
            "must validate: at least 4 rows, in 2 groups, are needed."
        )
    n_held = min(max(round(share * n_units), 1 if groups is not None else 2), n_units - 1)
    random_state = derive_seed(seed, "validation")
    kind = ShuffleSplit if groups is None else GroupShuffleSplit
    splitter = kind(1, test_size=n_held, random_state=random_state)
    train, validation = next(splitter.split(np.empty(n_rows), groups=groups))
    return np.sort(train), np.sort(validation)
