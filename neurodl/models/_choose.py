"""The penalty of each target, by its mean score over inner splits, and predictions at it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from neurodl.models._folds import DualFold, Fold, InnerSplit
from neurodl.models._heldout import HeldOut, Operator, scores_of_all
from neurodl.models._screening import Screen, can_screen
from neurodl.models._solvers import best_alpha
from neurodl.models._splits import Splits
from neurodl.models._targets import Block, Targets
from neurodl.runtime import available_memory, linear

# The operators of inner splits are held together, so that targets are read once, up to this share
# of the memory that is free.
MEMORY_SHARE = 4
MAP_BYTES = 2**26
MAPS_PAY = 16  # products of the eigenbasis that a map of each penalty must save


def choose(
    fold: Fold,
    targets: Targets,
    splits: Splits,
    grid: torch.Tensor,
    scoring: str,
    *,
    screening: bool = True,
    exact_best: bool = True,
    simplest: int = -1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the index of the best penalty of each target, and its mean inner score.

    Parameters
    ----------
    fold : Fold
    targets : Targets
        Of the fold's own rows.
    splits : list of (train, test)
        Row numbers among the fold's own rows; none for the first penalty, without a score.
    grid : torch.Tensor, shape (n_alphas,), float64
    scoring : {"r2", "r"}
    screening : bool
        Whether half precision may rule out penalties first.
    exact_best : bool
        False where only the index is wanted: screening then need not score a penalty in full that
        no other comes near, and the scores are rough.
    simplest : int
        The place in the grid of what a target without any score gets.

    Returns
    -------
    index, scores : torch.Tensor, shape (n_targets,)
    """
    if not splits:
        index = torch.zeros(targets.n_targets, dtype=torch.long, device=grid.device)
        return index, torch.full((targets.n_targets,), torch.nan, device=grid.device)
    total = torch.zeros(len(grid), targets.n_targets, dtype=targets.dtype, device=grid.device)
    counted = torch.zeros_like(total, dtype=torch.uint8)
    waiting = [[torch.as_tensor(rows, device=grid.device) for rows in pair] for pair in splits]
    while waiting:
        scorer = _Scorer(fold, len(splits) if screening else 0, exact_best)
        while waiting and not scorer.full:
            train, test = waiting.pop(0)
            scorer.add(fold.split(train, test, scoring), grid, targets.dtype)
        for block, found in targets.map(scorer.scores):
            for scores in found:
                total[:, block.columns] += torch.where(scores.isnan(), 0.0, scores)
                counted[:, block.columns] += ~scores.isnan()
    mean = total.div_(counted)
    index = best_alpha(mean, simplest)
    return index, mean.gather(0, index[None])[0]


class _Scorer:
    """The scores of targets at all penalties, in some inner splits of a fold.

    Parameters
    ----------
    fold : Fold
    n_to_screen : int
        The number of all splits, or 0 for no screening, which compares means over all of them.
    exact_best : bool
        See `Screen`.
    """

    def __init__(self, fold: Fold, n_to_screen: int, exact_best: bool) -> None:
        self.fold, self.n_to_screen, self.exact_best = fold, n_to_screen, exact_best
        self.inner: list[InnerSplit] = []
        self.operators: list[Operator] = []
        self.screen: Screen | None = None
        self.n_bytes = 0
        self.full = False

    def add(self, split: InnerSplit, grid: torch.Tensor, dtype: torch.dtype) -> None:
        """Take one more split."""
        operator = split.operator(grid, dtype)
        self.n_bytes += operator.n_bytes
        room = available_memory(grid.device) // MEMORY_SHARE
        if not self.inner and self.n_to_screen * operator.n_bytes <= room:
            screens = isinstance(operator, HeldOut) and can_screen(len(grid), dtype, grid.device)
            self.screen = Screen(self.exact_best) if self.n_to_screen and screens else None
        self.full = self.screen is None and self.n_bytes + operator.n_bytes > room
        self.inner.append(split)
        if self.screen is not None and isinstance(operator, HeldOut):
            self.screen.add(operator)
            operator = self.screen.rough[-1]  # takes in targets alike, and is smaller
        self.operators.append(operator)

    def scores(self, block: Block) -> list[torch.Tensor]:
        """Return scores (n_alphas, n_targets) of each split, or their mean if screened."""
        view = self.fold.view(block)
        pairs = zip(self.operators, self.inner, strict=True)
        parts = (operator.enter(split.part(view)) for operator, split in pairs)
        if self.screen is not None:
            return [self.screen.scores(list(parts))]
        return [scores_of_all(*pair) for pair in zip(self.operators, parts, strict=True)]


def predictor(
    fold: Fold, grid: torch.Tensor, chosen: torch.Tensor, dtype: torch.dtype
) -> Callable[[Block], torch.Tensor]:
    """Return the function from a block to predictions (n_targets, n_held), without the mean.

    Parameters
    ----------
    fold : Fold
        With rows to predict.
    grid : torch.Tensor, shape (n_alphas,), float64
    chosen : torch.Tensor, shape (n_targets,)
        The index of the penalty of each target.
    """
    if isinstance(fold, DualFold) and _maps_pay(fold, len(chosen), chosen.unique()):
        return _by_maps(fold, grid, chosen, dtype)
    basis = fold.test_basis().to(dtype)
    return lambda block: linear(fold.filtered(fold.view(block), grid[chosen[block.columns]]), basis)


def _maps_pay(fold: DualFold, n_targets: int, used: torch.Tensor) -> bool:
    """Return whether one map per penalty takes fewer operations than the eigenbasis.

    With few rows to predict it does: the eigenbasis is as wide as there are training rows.
    """
    n_train, width = fold.whole.train_basis.shape
    n_test = len(fold.test_basis())
    saved = n_targets * (n_train * width + width * n_test - n_train * n_test)
    small = len(used) * n_train * n_test * 4 <= MAP_BYTES
    return small and saved > MAPS_PAY * n_train * width * n_test


def _by_maps(
    fold: DualFold, grid: torch.Tensor, chosen: torch.Tensor, dtype: torch.dtype
) -> Callable[[Block], torch.Tensor]:
    """Return the predictor that has a map from training rows to held rows for each penalty."""
    used = chosen.unique()
    e, train_basis, test_basis = fold.whole
    assert test_basis is not None
    wide = train_basis.to(dtype)
    maps = [linear((test_basis / (e + alpha)).to(dtype), wide) for alpha in grid[used]]
    place = torch.searchsorted(used, chosen)

    def by_penalty(block: Block) -> torch.Tensor:
        predicted = block.values.new_empty(len(block.values), len(test_basis))
        mine = place[block.columns]
        for alpha in mine.unique().tolist():
            targets = (mine == alpha).nonzero()[:, 0]
            predicted[targets] = linear(block.values.index_select(0, targets), maps[alpha])
        return predicted

    return by_penalty
