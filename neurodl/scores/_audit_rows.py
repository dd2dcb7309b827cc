"""Checks of rows: copies and repeats on both sides of a split, shared time, and their order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from neurodl.errors import listed
from neurodl.features.population import POPULATION
from neurodl.io.arrays import BY_ORDER
from neurodl.io.fingerprints import SAME, near_pairs
from neurodl.schema import is_kernel, sample_dim, sample_ids
from neurodl.scores._audit_case import SEVERE, WARNING, Case, Finding
from neurodl.scores.pairing import last_step

MIN_FEATURES = 32  # below, features may be the same for different stimuli
MAX_PAIRED = 50  # copies of one stimulus, of which all pairs are looked at
FEW = 0.1  # of the test rows, which lie at the edges of long blocks
HAEMODYNAMIC = 12.0  # s, in which BOLD responses to a moment have mostly passed
LABELS = ("label", "category", "condition", "trial_type")


def copies(case: Case) -> list[Finding] | str:
    """Find stimuli of the same or nearly the same pixels on both sides of a fold."""
    if sample_dim(case.responses) == "time":
        return "rows are times, not stimuli"
    codes, ids = pd.factorize(np.asarray(sample_ids(case.responses)).astype(str))
    known = _identities(case, ids)
    sides = _sides(case, codes, len(ids))
    if known is None:
        return _same_features(case, codes, ids, sides)
    sha, prints = known
    found = []
    same = pd.factorize(sha)[0]
    one, other, difference = _near(tuple(prints.tolist()))
    apart = same[one] != same[other]
    one, other, difference = one[apart], other[apart], difference[apart]
    exact = _exact_pairs(same)
    stored = difference <= SAME
    pairs = (
        (np.vstack([exact, np.stack([one[stored], other[stored]], 1)]), SEVERE, "copies of"),
        (np.stack([one[~stored], other[~stored]], 1), WARNING, "nearly the same as"),
    )
    for some, severity, what in pairs:
        crossing = some[_crosses(sides, some)]
        if len(crossing):
            found.append(_copies_found(ids, crossing, severity, what))
    return found


def grouped(ids: Sequence[str], sha: Sequence[str], prints: Sequence[str]) -> pd.Series:
    """Return the first id of the copies of each stimulus; see `copy_groups`."""
    names = np.asarray(ids).astype(str)
    one, other, difference = _near(tuple(prints))
    stored = difference <= SAME
    exact = _exact_pairs(pd.factorize(np.asarray(sha))[0])
    pairs = np.vstack([exact, np.stack([one[stored], other[stored]], 1)])
    links = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(names), len(names)))
    _, members = connected_components(links, directed=False)
    first = pd.Series(np.arange(len(names))).groupby(members).transform("first")
    return pd.Series(names[first.to_numpy()], index=names, name="copies")


def repeats(case: Case) -> list[Finding] | str:
    """Find presentations of one stimulus on both sides of a fold."""
    shown = case.responses.coords.get("stimulus")
    if shown is None or shown.dims != case.responses.dims[:1]:
        return "rows are times, not stimuli"
    if case.first is not None and case.first.attrs.get("backbone") == POPULATION:
        return "features are of a population, not of stimuli"
    ids = shown.values.astype(str)
    if len(np.unique(ids)) == len(ids):
        return []
    shared = [np.intersect1d(ids[train], ids[test]) for train, test in case.splits]
    names = np.unique(np.concatenate(shared))
    if not len(names):
        return []
    n_folds = sum(len(one) > 0 for one in shared)
    return [
        Finding(
            SEVERE,
            f"In {n_folds} of {len(case.splits)} folds, {len(names)} stimuli ({listed(names, 3)}) "
            "are presented both in training and in test rows, so the score would measure memory.",
            "Average the repeats first (average_repeats), or use groups='stimulus'.",
            tuple(names.tolist()),
        )
    ]


def shared_time(case: Case) -> list[Finding] | str:
    """Find training rows so near to test rows that they see the same moments."""
    if sample_dim(case.responses) != "time":
        return _overlapping_clips(case)
    width = float(case.responses.attrs.get("tr", case.responses.attrs.get("bin_width", 1.0)))
    reach = max(_reach(case, width), 1)
    bold = round(HAEMODYNAMIC / width) if "tr" in case.responses.attrs else 0
    runs = _run_codes(case.responses)
    nearest = [_nearest(runs, *split) for split in case.splits]
    close = _within(case, nearest, reach)
    if len(close):
        n_tested = int(case.tested.sum())
        shares = f", whose features see {reach + 1} samples" if reach > 1 else ""
        return [
            Finding(
                SEVERE if len(close) > FEW * n_tested else WARNING,
                f"{len(close)} of {n_tested} test rows have training rows within {reach} samples "
                f"in the same run{shares}.",
                "Keep runs whole (groups='run'), or leave gaps: cv=PurgedKFold(5, purge="
                f"{max(reach, bold)}).",
                _times(case.responses, close),
            )
        ]
    late = _within(case, nearest, bold)
    if not len(late):
        return []
    return [
        Finding(
            WARNING,
            f"{len(late)} test rows have training rows within {HAEMODYNAMIC:g} s in the same run, "
            "in which BOLD responses last.",
            f"Use PurgedKFold(5, purge={bold}), or keep runs whole (groups='run').",
            _times(case.responses, late),
        )
    ]


def _within(case: Case, nearest: Sequence[np.ndarray], n_samples: int) -> np.ndarray:
    """Return the test rows with a training row of their run within so many samples."""
    parts = zip(case.splits, nearest, strict=True)
    return np.unique(np.concatenate([test[away <= n_samples] for (_, test), away in parts]))


def order(case: Case) -> list[Finding] | str:
    """Find labels that contradict the ids, and ids that were given by the order of names."""
    if sample_dim(case.responses) == "time":
        return "rows are times, paired by run and time"
    found = _contradictions(case)
    if case.responses.attrs.get("ids_from") != BY_ORDER:
        return found
    ids = [str(name) for name in sample_ids(case.responses)]
    by_number = sorted(ids, key=_natural)
    if ids == sorted(ids) and ids != by_number:
        at = next(n for n, (a, b) in enumerate(zip(ids, by_number, strict=True)) if a != b)
        found.append(
            Finding(
                WARNING,
                "The responses came without ids and took those of the stimuli in the order of "
                f"their names, in which {ids[at]!r} comes before {by_number[at]!r}. If they were "
                "recorded in the order of the numbers, they belong to other stimuli.",
                "Give the ids of the rows: Experiment.from_files(..., ids=[...]).",
                tuple(ids[at : at + 2]),
            )
        )
    return found


def _identities(case: Case, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return hash and fingerprint of each stimulus (n_ids,), from features or from pixels."""
    for array in case.layers.values():
        if "fingerprint" in array.coords:
            rows = pd.Series(np.asarray(sample_ids(case.responses)).astype(str))
            at = rows.drop_duplicates().index.to_numpy()  # in the order of ids
            return array["stimulus_sha256"].values[at], array["fingerprint"].values[at]
    if case.stimuli is None or not set(ids) <= set(case.stimuli.ids):
        return None
    places = case.stimuli.table.index.get_indexer(pd.Index(ids))
    sha = np.array(case.stimuli.hashes())[places]
    return sha, np.array(case.stimuli.fingerprints(places.tolist()))


@lru_cache(maxsize=8)
def _near(prints: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pairs of fingerprints that are alike; models are often audited on one stimulus set."""
    return near_pairs(np.array(prints))


def _exact_pairs(codes: np.ndarray) -> np.ndarray:
    """Return pairs (n, 2) of stimuli of the same code; of many copies, each with the next."""
    groups = pd.Series(codes).groupby(codes).indices.values()
    pairs: list[tuple[int, int]] = []
    for rows in (rows.tolist() for rows in groups if len(rows) > 1):
        pairs += combinations(rows, 2) if len(rows) <= MAX_PAIRED else pairwise(rows)
    return np.array(pairs, int).reshape(-1, 2)


def _sides(case: Case, codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which stimuli are in training and in test rows of each fold, (n_folds, n) each."""
    train, test = (np.zeros((len(case.splits), n), bool) for _ in range(2))
    for fold, rows in enumerate(case.splits):
        for side, own in zip((train, test), rows, strict=True):
            side[fold, codes[own]] = True
    return train, test


def _crosses(sides: tuple[np.ndarray, np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """Return which pairs of stimuli stand on two sides in some fold."""
    train, test = sides
    one, other = pairs.T
    return ((train[:, one] & test[:, other]) | (test[:, one] & train[:, other])).any(0)


def _copies_found(ids: np.ndarray, pairs: np.ndarray, severity: str, what: str) -> Finding:
    names = ids[np.unique(pairs)]
    shown = ", ".join(f"{ids[a]!s} and {ids[b]!s}" for a, b in pairs[:3])
    more = f" and {len(pairs) - 3} more pairs" if len(pairs) > 3 else ""
    n_pairs = "a pair" if len(pairs) == 1 else f"{len(pairs)} pairs"
    return Finding(
        severity,
        f"Test stimuli are {what} training stimuli in {n_pairs}: {shown}{more}.",
        "Keep them on one side (groups=copy_groups(stimuli)), or leave all but one out.",
        tuple(names.tolist()),
    )


def _same_features(
    case: Case, codes: np.ndarray, ids: np.ndarray, sides: tuple[np.ndarray, np.ndarray]
) -> list[Finding] | str:
    """Find stimuli with the same features, where their pixels are not known."""
    first = case.first
    if first is None or is_kernel(first) or first.shape[1] < MIN_FEATURES:
        return "neither pixels of the stimuli nor features that tell them are known"
    rows = np.full(len(ids), -1)
    rows[codes[::-1]] = np.arange(len(codes))[::-1]
    values = np.ascontiguousarray(first.values[rows], np.float32)
    same = pd.factorize(np.array([row.tobytes() for row in values], object))[0]
    pairs = _exact_pairs(same)
    pairs = pairs[_crosses(sides, pairs)]
    if not len(pairs):
        return []
    return [_copies_found(ids, pairs, WARNING, "the same in every feature as")]


def _reach(case: Case, width: float) -> int:
    """Return how many samples apart rows still draw on the same moments."""
    extents = [float(array.attrs.get("extent", width)) for array in case.layers.values()]
    delays = getattr(last_step(case.model), "delays", None) if case.model is not None else None
    own = (max(delays) - min(delays)) if delays else 0
    return int(np.ceil(max([*extents, width]) / width - 1e-6)) - 1 + own


def _run_codes(responses: xr.DataArray) -> np.ndarray:
    """Return the number of the run (of the session) of each row."""
    names = [
        responses[name].values.astype(str)
        for name in ("session", "run")
        if name in responses.coords and responses[name].dims == responses.dims[:1]
    ]
    if not names:
        return np.zeros(len(responses), int)
    return pd.factorize(pd.Index(["\n".join(one) for one in zip(*names, strict=True)]))[0]


def _nearest(runs: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return how many rows away the nearest training row in its run is, of each test row."""
    far = len(runs) + 1
    distance = np.full(len(test), far)
    train = np.sort(train)
    for run in np.unique(runs[test]):
        own, mine = train[runs[train] == run], np.flatnonzero(runs[test] == run)
        if not len(own):
            continue
        after = np.searchsorted(own, test[mine]).clip(0, len(own) - 1)
        before = (after - 1).clip(0)
        gaps = [np.abs(own[side] - test[mine]) for side in (before, after)]
        distance[mine] = np.minimum(*gaps)
    return distance


def _times(responses: xr.DataArray, rows: np.ndarray) -> tuple[str, ...]:
    return tuple(f"{time:g} s" for time in sample_ids(responses)[rows])


def _overlapping_clips(case: Case) -> list[Finding]:
    """Find clips of one film, on both sides of a fold, that share frames."""
    first = case.first
    names = ("run", "onset", "duration")
    if first is None or not set(names) <= set(first.coords):
        return []
    run, onset, duration = (first[name].values for name in names)
    runs = pd.factorize(run.astype(str))[0]
    close: list[int] = []
    for train, test in case.splits:
        for row in test:
            own = train[runs[train] == runs[row]]
            shared = np.minimum(onset[own] + duration[own], onset[row] + duration[row])
            if (shared - np.maximum(onset[own], onset[row]) > 1e-3).any():
                close.append(int(row))
    if not close:
        return []
    ids = np.asarray(sample_ids(case.responses)).astype(str)[np.unique(close)]
    return [
        Finding(
            SEVERE,
            f"{len(ids)} test clips ({listed(ids, 3)}) share frames with training clips.",
            "Keep the clips of a film on one side: groups=stimuli.table['run'].",
            tuple(ids.tolist()),
        )
    ]


def _contradictions(case: Case) -> list[Finding]:
    """Find labels of the responses that are not those of their stimuli."""
    found = []
    samples = case.responses.dims[0]
    ids = np.asarray(sample_ids(case.responses)).astype(str)
    for name in LABELS:
        if name not in case.responses.coords or case.responses[name].dims != (samples,):
            continue
        mine = case.responses[name].values.astype(str)
        theirs = _labels_of_stimuli(case, name, ids)
        if theirs is None:
            continue
        wrong = np.flatnonzero(mine != theirs)
        if len(wrong):
            at = wrong[0]
            found.append(
                Finding(
                    SEVERE,
                    f"{len(wrong)} rows of the responses have another {name} than the stimulus "
                    f"that their id names, first {ids[at]!r}: {mine[at]!r}, but the stimulus is "
                    f"{theirs[at]!r}.",
                    "The ids or the rows are in another order than was thought; correct them.",
                    tuple(ids[wrong].tolist()),
                )
            )
    return found


def _labels_of_stimuli(case: Case, name: str, ids: np.ndarray) -> np.ndarray | None:
    """Return the label of each row's stimulus, from features or from the table of stimuli."""
    first = case.first
    if first is not None and name in first.coords and first[name].dims == first.dims[:1]:
        return first[name].values.astype(str)
    if case.stimuli is None or name not in case.stimuli.table:
        return None
    if not set(ids) <= set(case.stimuli.ids):
        return None
    return case.stimuli.table[name].loc[list(ids)].to_numpy().astype(str)


def _natural(name: str) -> list[Any]:
    """Return a key that sorts image2 before image10."""
    return [
        (1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", name)
    ]
