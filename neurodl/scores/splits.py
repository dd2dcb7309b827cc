"""Folds: which rows train and which test, with related rows kept on one side."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut

from neurodl.errors import PairingError, UnknownNameError, did_you_mean, listed
from neurodl.schema import sample_dim, sample_ids, target_dim
from neurodl.scores.splitters import PurgedKFold

LEAVE_ONE_GROUP_OUT = "leave-one-group-out"
Split = tuple[np.ndarray, np.ndarray]


def make_splits(
    responses: xr.DataArray,
    cv: Any = 5,
    groups: Any = None,
    seed: int = 0,
) -> tuple[list[Split], np.ndarray | None, str]:
    """Return the folds for responses, the group of each row, and both in words.

    The default follows from the data: stimuli are shuffled into folds, presentations of one
    stimulus stay together, and the samples of a time series stay with their run. Without runs,
    they need groups, or a `PurgedKFold`, since samples depend on their neighbours.

    Parameters
    ----------
    responses : xarray.DataArray
        Averaged over repeats; see `check_responses`.
    cv : int, "leave-one-group-out", scikit-learn splitter, mapping, or list of (train, test) rows
        A splitter of `neurodl` that looks at features, as `ClusterKFold`, has them looked up by
        the ids of the responses. A published split is a mapping of "train" and "test" to ids,
        such as ``experiment.split``.
    groups : str, array-like, mapping or pandas.Series, optional
        What stays on one side: a coord of the responses, such as ``"run"``, "session", "episode"
        or "subject"; one label per row; or a label per stimulus id, such as
        ``experiment.stimuli.table["label"]``, with which a fold is a held-out category.
    seed : int
        Shuffles the folds of independent stimuli.

    Returns
    -------
    splits : list of (train, test)
    groups : numpy.ndarray of str or None
    text : str

    Raises
    ------
    ValueError
        The folds are impossible or overlap.
    """
    samples = sample_dim(responses)
    if groups is None:
        groups = default_groups(responses, cv)
    labels, name = _group_labels(responses, groups)
    if isinstance(cv, Mapping):
        cv = [_published(responses, cv)]
    if isinstance(cv, PurgedKFold):
        return _purged(responses, cv, labels, name)
    if labels is None and samples == "time" and not _is_explicit(cv):
        raise ValueError(
            "Neighbouring samples of a time series are not independent: folds that cut them apart "
            "inflate scores. Say what to keep together: groups='run' (or another coord); cut one "
            "long run into blocks with gaps, cv=PurgedKFold(5, purge=10); or pass your own list of "
            "(train, test) rows as cv."
        )
    n_rows = responses.shape[0]
    splitter, text = _splitter(cv, labels, name, n_rows, seed)
    looked_at = _looked_at(splitter, responses)
    raw = splitter if isinstance(splitter, list) else splitter.split(looked_at, None, labels)
    splits = [(_rows(train, n_rows), _rows(test, n_rows)) for train, test in raw]
    _check(splits, n_rows)
    return splits, labels, text + (f" by {name}" if labels is not None else "")


def default_groups(responses: xr.DataArray, cv: Any) -> str | None:
    """Return the coord that rows are grouped by where nothing was said; None where by none."""
    samples = sample_dim(responses)
    if samples == "presentation":
        return "stimulus"
    shown = responses.coords.get("stimulus")
    if samples == "time" and shown is not None and shown.dims == (samples,):
        return "stimulus" if isinstance(cv, numbers.Integral | str) else None
    runs = responses.coords.get("run")
    if samples != "time" or runs is None or runs.dims != (samples,):
        return None
    counted = isinstance(cv, numbers.Integral | str)  # others have folds of their own
    return "run" if counted and len(np.unique(runs.values)) > 1 else None


def target_splits(
    responses: xr.DataArray, cv: Any = 5, groups: Any = None, seed: int = 0
) -> list[Split]:
    """Return folds of targets, for models that are judged on neurons they were not made with.

    Parameters
    ----------
    responses : xarray.DataArray
    cv, seed
        See `make_splits`.
    groups : str or array-like, optional
        What stays on one side: a coord of the targets, such as "area", or one label per target.

    Returns
    -------
    list of (train, test)
        Numbers of targets.

    Examples
    --------
    >>> responses = xr.DataArray(np.zeros((2, 4)), dims=("stimulus", "unit"))
    >>> [test.tolist() for _, test in target_splits(responses, cv=2)]
    [[2, 3], [0, 1]]
    """
    target = target_dim(responses)
    kept = {name: array for name, array in responses.coords.items() if array.dims == (target,)}
    rows = xr.DataArray(np.zeros((responses.sizes[target], 1)), dims=("stimulus", target))
    named = {name: ("stimulus", array.values) for name, array in kept.items() if name != target}
    return make_splits(rows.assign_coords(named), cv, groups, seed)[0]


def _published(responses: xr.DataArray, split: Mapping[str, Any]) -> Split:
    """Return the rows of a published split, by id."""
    if set(split) != {"train", "test"}:
        raise ValueError(
            f"`cv` as a mapping has the ids of 'train' and 'test', but got {listed(split)}."
        )
    ids = sample_ids(responses)
    rows = []
    for name in ("train", "test"):
        wanted = pd.Index(list(split[name])).unique()
        there = np.flatnonzero(ids.isin(wanted))
        if not len(there):
            raise PairingError(
                f"None of the {len(wanted)} ids of cv[{name!r}] is among the responses: "
                f"{listed(wanted, 3)}. The responses are called {listed(ids, 3)}."
            )
        rows.append(there)
    return rows[0], rows[1]


def _purged(
    responses: xr.DataArray, cv: PurgedKFold, labels: np.ndarray | None, name: str
) -> tuple[list[Split], np.ndarray, str]:
    """Return blocks with gaps, and the block of each row, which stays whole in inner folds too."""
    if labels is not None:
        raise ValueError(
            f"PurgedKFold cuts runs into blocks, and groups={name!r} keeps them whole: leave out "
            "one of them."
        )
    runs = responses["run"].values.astype(str) if "run" in responses.coords else None
    splits = list(cv.split(responses.values, None, runs))
    _check(splits, len(responses))
    # Four blocks of each fold, so that inner folds of few outer ones have enough of them.
    finer = PurgedKFold(min(4 * cv.n_splits, len(responses)), purge=0).blocks(len(responses))
    return splits, finer.astype(str), f"{cv.n_splits} blocks, {cv.purge} samples purged around each"


def _looked_at(splitter: Any, responses: xr.DataArray) -> np.ndarray:
    """Return what a splitter looks at, row by row of the responses: features, or nothing."""
    features = getattr(splitter, "features", None)
    if not isinstance(features, xr.DataArray):
        return np.zeros((len(responses), 1))
    wanted = sample_ids(responses)
    rows = sample_ids(features).get_indexer(wanted)
    if (rows < 0).any():
        raise PairingError(
            f"{splitter} has no features of {listed(wanted[rows < 0].unique(), 3)}, which the "
            "responses are to. Give it those of all stimuli."
        )
    return np.asarray(features.values[rows])


def _group_labels(responses: xr.DataArray, groups: Any) -> tuple[np.ndarray | None, str]:
    if groups is None:
        return None, ""
    samples = sample_dim(responses)
    if isinstance(groups, Mapping | pd.Series):
        return _labels_by_id(responses, groups)
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


def _labels_by_id(responses: xr.DataArray, groups: Any) -> tuple[np.ndarray, str]:
    """Return the label of each row, given by stimulus id."""
    labels = pd.Series(groups)
    name = str(labels.name) if labels.name is not None else "the given groups"
    ids = sample_ids(responses)
    missing = ids[~ids.isin(labels.index)].unique()
    if len(missing) or not labels.index.is_unique:
        raise PairingError(
            f"`groups` must have one label for each stimulus id, but has none for "
            f"{listed(missing)}."
            if len(missing)
            else "`groups` has several labels for one stimulus id."
        )
    return labels.loc[ids].to_numpy().astype(str), name


def _is_explicit(cv: Any) -> bool:
    return not isinstance(cv, (numbers.Integral, str)) and not hasattr(cv, "split")


def _splitter(
    cv: Any, labels: np.ndarray | None, name: str, n_rows: int, seed: int
) -> tuple[Any, str]:
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
            what = "rows" if labels is None else f"groups of {name!r}"
            each = "" if labels is None else f" Each can be a fold: cv={LEAVE_ONE_GROUP_OUT!r}."
            raise ValueError(
                f"`cv` must lie between 2 and the {available} {what}, but got {cv}.{each}"
            )
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
