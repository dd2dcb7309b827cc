"""What a fit takes of the memory, told before it starts, and how many targets fit at once.

Memory is counted at each step, of which the largest counts: describing the training rows by their
kernel or covariance, preparing the inner folds, choosing penalties in them, and predicting. At each
some is held whatever the number of targets that are read at once, and some is for each of these.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from neurodl.errors import TooLargeError
from neurodl.models._choose import MAP_BYTES, MAPS_PAY, MEMORY_SHARE
from neurodl.models._folds import COMPOSED_BYTES, N_BASIS
from neurodl.models._heldout import PIECE_BYTES
from neurodl.models._solvers import BLOCK_ELEMENTS
from neurodl.models._spaces import MAX_FEATURES_PER_SAMPLE
from neurodl.models._targets import MIN_TARGETS, targets_at_once

logger = logging.getLogger(__name__)

EIGH = 32  # bytes that the decomposition of a matrix takes for each of its elements, it included
FRAGMENTED = 1.3  # for freed memory that is cut up and cannot be used again
BUFFERS = 2**24  # of threads
N_ROUGH = 7  # basis predictions of rough scores, and
N_EXACT = 1  # penalties per target that are scored in full, about


class Path(NamedTuple):
    """How a model describes its training rows.

    by_kernel : by their kernel, or by the covariance of the features
    n_features : with their delays
    kernel_copies : how many matrices of the kernel's size it takes to make it
    """

    by_kernel: bool
    n_features: int
    kernel_copies: float = 1.0


class Work(NamedTuple):
    """What decides the memory of a fit.

    n_samples, n_train, n_test : all rows, and the most training and test rows of a fold; without
        test rows, weights are wanted
    n_targets : of all blocks
    n_alphas, n_folds : the penalties, and the inner folds in which they are compared
    itemsize : of a number of the features [bytes]
    path : Path
    screening : whether rough scores come first
    input_bytes : of the features, if they are copied
    device : "cpu" or "cuda"
    """

    n_samples: int
    n_train: int
    n_test: int
    n_targets: int
    n_alphas: int
    n_folds: int
    itemsize: int
    path: Path
    screening: bool = False
    input_bytes: int = 0
    device: str = "cpu"


class Step(NamedTuple):
    """The memory of one step [bytes].

    held : by what it is for
    per_target : for each of the targets that are read at once
    basis : for the basis predictions of each, up to `most_basis` in all
    """

    held: dict[str, float]
    per_target: float = 0.0
    basis: float = 0.0
    most_basis: float = 0.0

    def n_bytes(self, n_at_once: int) -> float:
        """Return what it takes in all, with so many targets at once."""
        basis = min(self.basis * n_at_once, self.most_basis)
        return sum(self.held.values()) + self.per_target * n_at_once + basis


class Plan(NamedTuple):
    """How many targets are read at once, and the memory it takes beyond data and results [bytes].

    largest : what the largest part of it is for
    """

    n_at_once: int
    n_bytes: int
    largest: str


def plan(work: Work, free: int) -> Plan:
    """Return how many targets to read at once, so that `free` bytes suffice.

    Raises
    ------
    TooLargeError
        Not even the fewest fit; the message says what takes the room, and what to do.

    Examples
    --------
    >>> work = Work(1000, 800, 200, 40_000, 20, 5, 4, Path(True, 4096), screening=True)
    >>> found = plan(work, free=8 * 10**9)
    >>> found.n_at_once, 100e6 < found.n_bytes < 250e6
    (2048, True)
    """
    steps = steps_of(work, free)
    n_at_once = targets_at_once(work.n_train, work.itemsize, work.device)
    while n_at_once > MIN_TARGETS and total_bytes(steps, n_at_once) > free:
        n_at_once = max(MIN_TARGETS, n_at_once // 2)
    n_bytes = total_bytes(steps, n_at_once)
    held = max(steps, key=lambda step: step.n_bytes(n_at_once)).held
    largest = max(held, key=lambda name: held[name])
    if n_bytes > free:
        advice = (
            "fewer rows, or features reduced to fewer than rows"
            if work.path.by_kernel
            else ("fewer features")
        )
        raise TooLargeError(
            f"{in_words(work)} take about {in_bytes(n_bytes)} beyond the data, but "
            f"{in_bytes(free)} are free. Most of it, {in_bytes(held[largest])}, is for {largest}. "
            f"Take {advice} (SparseProjection, StreamedPCA), or a device with more memory."
        )
    return Plan(n_at_once, n_bytes, largest)


def announced(work: Work, n_folds: int, free: int) -> int:
    """Return how many targets to read at once (see `plan`), and log what that takes."""
    found = plan(work, free)
    logger.info(
        "%s, %d folds: by the %s, about %s beyond the data, %d targets at once",
        in_words(work),
        n_folds,
        "kernel" if work.path.by_kernel else "covariance",
        in_bytes(found.n_bytes),
        found.n_at_once,
    )
    return found.n_at_once


def total_bytes(steps: list[Step], n_at_once: int) -> int:
    """Return the memory of the largest step [bytes]."""
    return int(FRAGMENTED * max(step.n_bytes(n_at_once) for step in steps)) + BUFFERS


def in_words(work: Work) -> str:
    """Return the size of the work: "1000 samples x 4096 features x 40,000 targets"."""
    sizes = {"samples": work.n_samples, "features": work.path.n_features}
    sizes["targets"] = work.n_targets
    return " x ".join(f"{size:{',' * (size > 9999)}} {name}" for name, size in sizes.items())


def in_bytes(n_bytes: float) -> str:
    """Return a number of bytes for people.

    Examples
    --------
    >>> in_bytes(171_300_000), in_bytes(2.345e9)
    ('171 MB', '2.3 GB')
    """
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:,.1f} GB"


def steps_of(work: Work, free: int) -> list[Step]:
    """Return the memory of each step, if `free` bytes are free."""
    own = {"the copy of the features": float(work.input_bytes)}
    steps = (_kernel_steps if work.path.by_kernel else _covariance_steps)(work, free)
    return [step._replace(held=own | step.held) for step in steps]


def _kernel_steps(work: Work, free: int) -> list[Step]:
    """Return the steps where rows are described by their kernel."""
    n, rows, item = work.n_train, work.n_samples, work.itemsize
    kernel = {f"the kernel of {rows:,} rows": 8.0 * rows**2}
    copies = {"what the kernel is made of": 8.0 * (work.path.kernel_copies - 1) * rows**2}
    copies["some of the features"] = 24.0 * min(BLOCK_ELEMENTS, rows * work.path.n_features)
    steps = [Step(kernel | copies), _last_step(work, kernel, min(rows, n))]
    if work.n_folds:
        m, q = n - n // work.n_folds, n // work.n_folds
        n_basis = min(N_BASIS, work.n_alphas)
        composed = (work.n_alphas + n_basis) * m * q * item <= COMPOSED_BYTES
        making = {f"the decomposition of {m:,} rows": EIGH * m**2 + 24.0 * m * q}
        if composed:
            maps = {"the maps to held-out rows": (8.0 + 2 * item) * n_basis * m * q}
            steps += _inner_steps(work, free, [making, maps], kernel, (m, q, 0, n))
        else:
            steps += _inner_steps(work, free, [making], kernel, (m, q, m, 2 * m))
    return steps


def _covariance_steps(work: Work, free: int) -> list[Step]:
    """Return the steps where rows are described by the covariance of the features."""
    n, p, item = work.n_train, work.path.n_features, work.itemsize
    kept = {f"the eigenvectors of {p:,} features": 8.0 * p**2}
    kept[f"the features of {n:,} rows in their basis"] = float(item * n * p)
    first = Step({f"the decomposition of {p:,} features": float(EIGH * p**2)})
    steps = [first, Step(kept | {"some of the features": 2.0**24}), _last_step(work, kept, p)]
    if work.n_folds:
        q = n // work.n_folds
        more = 7 if q >= p else 5
        making = {f"the decomposition of {p:,} features": 8.0 * more * p**2}
        kept = kept | {"the features of held-out rows": float(item * n * p)}
        steps += _inner_steps(work, free, [making], kept, (p, min(q, p), p, 2 * p))
    return steps


def _inner_steps(
    work: Work,
    free: int,
    makings: list[dict[str, float]],
    kept: dict[str, float],
    sizes: tuple[int, int, int, int],
) -> list[Step]:
    """Return the steps of preparing the inner folds, and of choosing penalties in them.

    Parameters
    ----------
    makings : list of dict
        What it takes to prepare one, at different times.
    kept : dict
        What is held all the time.
    sizes : tuple of int
        How many numbers go into a basis and come out of it, how wide the eigenbasis is if targets
        go through it, and how many numbers of a target a split takes.
    """
    into, out, rank, per_split = sizes
    k, item, n_alphas = work.n_folds, work.itemsize, work.n_alphas
    n_basis = min(N_BASIS, n_alphas)
    one = item * ((n_basis + n_alphas) * into * out if not rank else rank * (rank + 2 * out))
    room = free // MEMORY_SHARE
    screening = work.screening and k * one <= room
    if not rank:
        one = into * out * (item * n_alphas + 2 * N_ROUGH if screening else item * n_basis)
    held = kept | {"the inner folds": float(min(k * one, max(one, room)))}
    held["the scores of all penalties"] = (2.0 * item + 2) * n_alphas * work.n_targets
    if screening:
        n_basis, n_entered = N_ROUGH, k
        scoring = N_EXACT * (into + 2 * max(out, rank)) + 4 * n_alphas
    else:
        n_entered, scoring = 1, k * n_alphas
    # a split that goes through the eigenbasis enters it from a copy
    width = work.n_train + rank + (n_entered + bool(rank)) * per_split + scoring
    basis = 2.0 * item * n_basis * max(out, rank)
    scores = Step(held, float(item * width), basis, 2.0 * PIECE_BYTES[work.device])
    return [*(Step(held | making) for making in makings), scores]


def _last_step(work: Work, kept: dict[str, float], rank: int) -> Step:
    """Return the step of predicting test rows, or of the weights."""
    n, p, item, by_kernel = work.n_train, work.path.n_features, work.itemsize, work.path.by_kernel
    per_target = item * (2 * n + work.n_test) + (8.0 + item) * rank
    held = dict(kept)
    if by_kernel:
        held[f"the decomposition of {n:,} rows"] = float(EIGH * n**2)
    if work.n_test:
        maps = float(item * work.n_alphas * n * work.n_test)
        pays = by_kernel and maps <= MAP_BYTES and work.n_targets > MAPS_PAY * work.n_test
        held["the map to test rows"] = 8.0 * work.n_test * rank + pays * maps
    else:
        wide = by_kernel and p > MAX_FEATURES_PER_SAMPLE * n
        size = rank if wide else p
        held["the basis of the weights"] = (8.0 + item) * size * rank
        held["the weights, a second time"] = float(item * size * work.n_targets)
    return Step(held, per_target)
