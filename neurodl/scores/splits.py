"""Folds: which rows train and which test, with related rows kept on one side."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut

from neurodl.errors import UnknownNameError, did_you_mean, listed
from neurodl.schema import sample_dim

LEAVE_ONE_GROUP_OUT = "leave-one-group-out"
Split = tuple[np.ndarray, np.ndarray]


def make_splits(
    responses: xr.DataArray,
    cv: Any = 5,
    groups: Any = None,
    seed: int = 0,
    *,
    repeats_across_folds: bool = False,
) -> tuple[list[Split], np.ndarray | None, str]:
    """Return the folds for responses, the group of each row, and both in words.

    Without groups, stimuli are shuffled into folds, and presentations of one stimulus stay
    together. The samples of a time series depend on their neighbours, so they need groups.

    Parameters
    ----------
    responses : xarray.DataArray
        Averaged over repeats; see `check_responses`.
    cv : int, "leave-one-group-out", scikit-learn splitter, or list of (train, test) row numbers
    groups : str or array-like, optional
        A coord of the responses, such as ``"run"``, or one label per row.
    seed : int
        Shuffles the folds of independent stimuli.
    repeats_across_folds : bool
        Whether presentations of one stimulus may stand on both sides. It inflates scores.

    Returns
    -------
    splits : list of (train, test)
    groups : numpy.ndarray of str or None
    text : str

    Raises
    ------
    ValueError
        The folds are impossible, overlap, or would separate what belongs together.
    """
    samples = sample_dim(responses)
    if groups is None and samples == "presentation":
        groups = "stimulus"
    labels, name = _group_labels(responses, groups)
    if labels is None and samples == "time" and not _is_explicit(cv):
        raise ValueError(
            "Neighbouring samples of a time series are not independent: folds that cut them apart "
            "inflate scores. Say what to keep together: groups='run' (or another coord), or pass "
            "your own list of (train, test) rows as cv."
        )
    n_rows = responses.shape[0]
    splitter, text = _splitter(cv, labels, n_rows, seed)
    rows = np.zeros((n_rows, 1))
    raw = splitter if isinstance(splitter, list) else splitter.split(rows, None, labels)
    splits = [(_rows(train, n_rows), _rows(test, n_rows)) for train, test in raw]
    _check(splits, n_rows)
    if samples == "presentation" and not repeats_across_folds:
        _check_repeats(splits, responses["stimulus"].values)
    return splits, labels, text + (f" by {name}" if labels is not None else "")


def _group_labels(responses: xr.DataArray, groups: Any) -> tuple[np.ndarray | None, str]:
    if groups is None:
        return None, ""
    samples = sample_dim(responses)
    if isinstance(groups, str):
        there = [str(key) for key, value in responses.coords.items() if value.dims == (samples,)]
        if groups not in there:
            raise UnknownNameError(
                f"`groups` names the coord {groups!r}, which the responses do not have along "
                f"{samples!r}. {did_you_mean(groups, there)}"
            )
        return responses[groups].values.astype(str), groups
    labels = np.asarray(groups)
    if labels.shape != (responses.shape[0],):
        raise ValueError(
            f"`groups` must have one label per row ({responses.shape[0]}), but has shape "
            f"{labels.shape}."
        )
    return labels.astype(str), "the given groups"


def _is_explicit(cv: Any) -> bool:
    return not isinstance(cv, (numbers.Integral, str)) and not hasattr(cv, "split")


def _splitter(cv: Any, labels: np.ndarray | None, n_rows: int, seed: int) -> tuple[Any, str]:
    if isinstance(cv, str):
        if cv != LEAVE_ONE_GROUP_OUT:
            raise UnknownNameError(
                f"`cv` must be an int, {LEAVE_ONE_GROUP_OUT!r}, a splitter or a list of rows, "
                f"but got {cv!r}."
            )
        if labels is None:
            raise ValueError(f"cv={LEAVE_ONE_GROUP_OUT!r} needs `groups`, for instance 'run'.")
        return LeaveOneGroupOut(), f"{len(set(labels))} folds, one group each,"
    if isinstance(cv, numbers.Integral):
        cv = int(cv)
        available = n_rows if labels is None else len(set(labels))
        if not 2 <= cv <= available:
            what = "rows" if labels is None else "groups"
            raise ValueError(f"`cv` must lie between 2 and the {available} {what}, but got {cv}.")
        if labels is not None:
            return GroupKFold(cv, shuffle=True, random_state=seed), f"{cv} folds"
        return KFold(cv, shuffle=True, random_state=seed), f"{cv} shuffled folds"
    if hasattr(cv, "split"):
        return cv, f"{cv}"
    splits = list(cv) if isinstance(cv, Iterable) else []
    return splits, f"{len(splits)} given folds"


def _rows(rows: Any, n_rows: int) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.dtype == bool and rows.shape == (n_rows,):
        return np.flatnonzero(rows)
    if not np.issubdtype(rows.dtype, np.integer) or rows.ndim != 1:
        raise ValueError("`cv` must give row numbers or boolean masks of the rows.")
    return rows


def _check(splits: list[Split], n_rows: int) -> None:
    if not splits:
        raise ValueError("`cv` gives no folds.")
    for number, (train, test) in enumerate(splits):
        if len(train) < 2 or len(test) < 2:
            raise ValueError(
                f"Fold {number} has {len(train)} training and {len(test)} test rows; a "
                "correlation needs at least 2 of each. Use fewer folds."
            )
        if max(train.max(), test.max()) >= n_rows:
            raise ValueError(f"Fold {number} names rows beyond the {n_rows} there are.")
        shared = np.intersect1d(train, test)
        if len(shared):
            raise ValueError(f"Fold {number} trains and tests on the same rows: {listed(shared)}.")


def _check_repeats(splits: list[Split], stimuli: np.ndarray) -> None:
    for number, (train, test) in enumerate(splits):
        shared = pd.Index(stimuli[test]).unique().intersection(stimuli[train])
        if len(shared):
            raise ValueError(
                f"In fold {number}, {len(shared)} stimuli ({listed(shared, 3)}) are presented both "
                "in training and in test rows, so the score would measure memory. Average the "
                "repeats first (average_repeats), use groups='stimulus', or say "
                "repeats_across_folds=True."
            )
