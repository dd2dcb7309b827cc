"""ReducedRankRidgeCV: ridge regression whose predictions span few directions of the targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from neurodl.models._counts import check_counts, counts_up_to
from neurodl.models._directions import DirectionsFold, target_kernel
from neurodl.models._folds import DualFold, PrimalFold
from neurodl.models._linear import LinearCV
from neurodl.models._solvers import Spectrum, eigh, nonzero_part
from neurodl.models._splits import Splits, inner_splits
from neurodl.models._targets import Targets

TIE = 1e-10  # squared errors closer than this share of the variance are the same


def reduced_rank_directions(
    eigenvalues: torch.Tensor, factor: torch.Tensor, alpha: float, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the directions of a ridge whose fitted targets are cut to a rank.

    The fit of the ridge, penalty rows included, has the singular values and right vectors of
    ``S D' Y``, with the eigenvectors D of the kernel and ``S^2 = e / (e + alpha)``. The first
    right vectors make the best fit of each rank; the left ones say how to reach it from the
    rows, and a matrix of targets is never formed.

    Parameters
    ----------
    eigenvalues : torch.Tensor, shape (n,), float64
        Of the kernel, none zero.
    factor : torch.Tensor, shape (n, k), float64
        See `target_factor`.
    alpha : float
    rank : int

    Returns
    -------
    directions : torch.Tensor, shape (n, rank)
        See `DirectionsFold`; the first of them are those of smaller ranks.
    sizes : torch.Tensor, shape (rank,)
        The sum over targets of their squared projections.

    References
    ----------
    Mukherjee & Zhu (2011), Reduced rank ridge regression and its kernel extensions, Statistical
    Analysis and Data Mining 4.
    """
    shrink = (eigenvalues / (eigenvalues + alpha)).sqrt()[:, None]
    shrunk = shrink * factor
    if 2 * factor.shape[1] < len(factor):
        vectors, lengths, _ = torch.linalg.svd(shrunk, full_matrices=False)
        sizes = lengths.square()
    else:
        ascending, vectors = eigh(shrunk @ shrunk.T)
        sizes, vectors = ascending.flip(0).clamp_min(0), vectors.flip(1)
    return shrink * vectors[:, :rank], sizes[:rank]


def target_factor(basis: torch.Tensor, products: torch.Tensor, n_targets: int) -> torch.Tensor:
    """Return as few columns as stand for all targets in the eigenbasis, (rank, k).

    Their inner products are those of the targets, which are given as `products`: so are all sums
    over targets.

    Parameters
    ----------
    basis : torch.Tensor, shape (n_train, rank), float64
        The train basis of a `Spectrum`.
    products : torch.Tensor, shape (n_train, n_train), float64
        The inner products of rows over targets; they need not be centred.
    n_targets : int
    """
    values, vectors = eigh(basis.T @ products @ basis)
    first = max(0, len(values) - n_targets)  # there are no more dimensions than targets
    return vectors[:, first:] * values[first:].clamp_min(0).sqrt()


class Choice(NamedTuple):
    """The penalty and the rank of a training set.

    place : of the penalty in the grid
    rank : int
    score : 1 - squared error / variance over held-out rows and all targets, NaN if not compared
    """

    place: int
    rank: int
    score: float


class ReducedRankFold(DirectionsFold):
    """Training rows with the directions of the penalty and rank that were chosen."""

    def __init__(self, spectrum: Spectrum, directions: torch.Tensor, choice: Choice) -> None:
        super().__init__(spectrum, directions)
        self.choice = choice


def choose_rank(
    fold: DualFold | PrimalFold,
    products: torch.Tensor,
    splits: Splits,
    grid: torch.Tensor,
    ranks: list[int],
    n_targets: int,
) -> Choice:
    """Return the penalty and rank with the least squared error over inner splits.

    Of pairs that are as good to rounding, it is the least rank, and then the largest penalty.

    Parameters
    ----------
    fold : DualFold or PrimalFold
    products : torch.Tensor, shape (n_own, n_own), float64
        The inner products of rows over all targets.
    splits : list of (train, test)
        Row numbers among the fold's own rows; none if there is nothing to choose.
    grid : torch.Tensor, shape (n_alphas,), float64
    ranks : list of int
        Ascending.
    n_targets : int
    """
    if not splits:
        return Choice(0, ranks[0], float("nan"))
    columns = torch.as_tensor(ranks, device=grid.device) - 1
    errors, variance = grid.new_zeros(len(grid), len(ranks)), 0.0
    for train, test in splits:
        own, held = (torch.as_tensor(rows, device=grid.device) for rows in (train, test))
        spectrum = nonzero_part(fold.spectrum(own, held))
        factor = target_factor(spectrum.train_basis, products[own][:, own], n_targets)
        found = squared_errors(spectrum, factor, products, own, held, grid, ranks[-1])
        errors += found[:, columns]
        of_held = products[held][:, held]
        variance += float(of_held.diagonal().sum() - of_held.mean() * len(held))
    close = errors <= errors.amin() + TIE * variance
    column = int(close.any(0).nonzero()[0])
    place = int(close[:, column].nonzero()[-1])
    error = float(errors[place, column])
    return Choice(place, ranks[column], 1 - error / variance if variance > 0 else float("nan"))


def squared_errors(
    spectrum: Spectrum,
    factor: torch.Tensor,
    products: torch.Tensor,
    train: torch.Tensor,
    test: torch.Tensor,
    grid: torch.Tensor,
    most: int,
) -> torch.Tensor:
    """Return the squared error of a split, summed over held-out rows and targets.

    It follows from the inner products of rows over targets: neither targets nor predictions are
    needed.

    Parameters
    ----------
    spectrum : Spectrum
        Of the rows `train`, to predict the rows `test`.
    factor : torch.Tensor, shape (rank, k), float64
        See `target_factor`, of the rows `train`.
    products : torch.Tensor, shape (n_own, n_own), float64
    train, test : torch.Tensor
        Row numbers.
    grid : torch.Tensor, shape (n_alphas,), float64
    most : int
        The largest rank.

    Returns
    -------
    torch.Tensor, shape (n_alphas, most)
        Of all ranks from 1 on.
    """
    eigenvalues, basis, test_basis = spectrum
    assert test_basis is not None
    across, mean = products[test][:, train], products[train][:, train].mean(0)
    seen = (across - mean) @ basis  # held-out targets, about the mean of the training rows
    total = products.diagonal()[test].sum() - 2 * across.mean(1).sum() + len(test) * mean.mean()
    errors = total.expand(len(grid), most).clone()
    outward_basis = test_basis / eigenvalues
    for row, alpha in enumerate(grid.tolist()):
        directions, sizes = reduced_rank_directions(eigenvalues, factor, alpha, most)
        outward = outward_basis @ directions
        cross = (outward * (seen @ directions)).sum(0)
        gain = (2 * cross - sizes * outward.square().sum(0)).cumsum(0)
        errors[row, : len(gain)] -= gain
        if len(gain):
            errors[row, len(gain) :] -= gain[-1]
    return errors


class ReducedRankRidgeCV(LinearCV):
    """Ridge regression of all targets on few common directions, with an intercept.

    The predictions of a ridge are projected on the leading directions of its fit among the
    targets: targets lend each other strength where their signals share few dimensions. One
    penalty and one rank serve all targets. They are chosen together, by the squared error over
    inner folds and targets; so targets with more variance count more. Full rank is the ridge.

    Parameters
    ----------
    alphas : "auto" or array-like of float
        See `RidgeCV`.
    ranks : "auto", int or array-like of int
        The ranks to choose from. "auto" is all from 1 to the number of targets, features, or
        training rows less one, whichever is least.
    cv, standardize, sd_floor, delays, centre, nan_targets, device, seed
        See `RidgeCV`.

    Attributes
    ----------
    alpha_ : float
        The chosen penalty, in units of the scaled features.
    rank_ : int
        The chosen rank.
    cv_score_ : float
        1 - squared error / variance, over the inner folds and all targets.
    intercept_, n_floored_, n_excluded_
        See `RidgeCV`.

    References
    ----------
    Izenman (1975), Reduced-rank regression for the multivariate linear model, J. Multivar. Anal. 5.
    Mukherjee & Zhu (2011), Reduced rank ridge regression and its kernel extensions, Statistical
    Analysis and Data Mining 4.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((60, 8)); two = X @ rng.standard_normal((8, 2))
    >>> Y = two @ rng.standard_normal((2, 20)) + rng.standard_normal((60, 20))
    >>> ReducedRankRidgeCV(device="cpu").fit(X, Y).rank_
    2
    """

    scoring = "r2"
    screening = False

    def __init__(
        self,
        alphas: Any = "auto",
        *,
        ranks: Any = "auto",
        cv: Any = 5,
        standardize: bool = True,
        sd_floor: float = 0.1,
        delays: Sequence[int] | None = None,
        centre: str = "all",
        nan_targets: str = "error",
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        self.alphas = alphas
        self.ranks = ranks
        self.cv = cv
        self.standardize = standardize
        self.sd_floor = sd_floor
        self.delays = delays
        self.centre = centre
        self.nan_targets = nan_targets
        self.device = device
        self.seed = seed

    def _check_grid(self) -> None:
        super()._check_grid()
        check_counts("ranks", self.ranks)

    def _fold(
        self,
        space: Any,
        own: torch.Tensor,
        held: torch.Tensor | None,
        targets: Targets,
        grid: torch.Tensor,
        groups: Any,
    ) -> ReducedRankFold:
        """Return the training rows with the directions of the chosen penalty and rank."""
        fold = space.fold(own, held, 0.0, targets.n_targets)
        most = min(len(own) - 1, space.design.n_features, targets.n_targets)
        ranks = counts_up_to("ranks", self.ranks, most)
        products = target_kernel(targets)
        splits: Splits = []
        if len(grid) * len(ranks) > 1:
            splits = inner_splits(self.cv, targets.n_samples, groups, self.seed)
        choice = choose_rank(fold, products, splits, grid, ranks.tolist(), targets.n_targets)
        spectrum = nonzero_part(fold.whole)
        factor = target_factor(spectrum.train_basis, products, targets.n_targets)
        alpha = float(grid[choice.place])
        directions, _ = reduced_rank_directions(spectrum.eigenvalues, factor, alpha, choice.rank)
        return ReducedRankFold(spectrum, directions, choice)

    def _choose(
        self,
        fold: Any,
        targets: Targets,
        grid: torch.Tensor,
        groups: Any,
        *,
        exact_best: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the index of the penalty of all targets, and their common score."""
        choice = fold.choice
        index = torch.full((targets.n_targets,), choice.place, device=grid.device)
        return index, torch.full((targets.n_targets,), choice.score, device=grid.device)

    def _keep_chosen(
        self, fold: Any, targets: Targets, values: torch.Tensor, n_at_edge: int
    ) -> None:
        """Keep the penalty, the rank and their score."""
        self.alpha_, self.rank_ = float(values[0]), fold.choice.rank
        self.cv_score_ = fold.choice.score
        self.n_alphas_at_edge_ = n_at_edge
