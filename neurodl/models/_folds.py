"""The training rows of one fold, ready to be split further: by their kernel or covariance."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from neurodl.models._design import Design
from neurodl.models._heldout import HeldOut, Operator, Part, composed, factored
from neurodl.models._solvers import (
    Spectrum,
    dual_spectrum,
    eigh,
    gains,
    primal_spectrum,
    quadratic_root,
)
from neurodl.models._targets import Block, columns_of
from neurodl.runtime import linear

COMPOSED_BYTES = 2**26
N_BASIS = 13  # basis predictions from which those of all penalties are made, at most about


class View(NamedTuple):
    """A block of targets, and their products with the features where a fold works on these.

    products : (n_targets, n_features) or None
    """

    block: Block
    products: torch.Tensor | None = None


class InnerSplit(Protocol):
    """An inner split of a fold."""

    def operator(self, alphas: torch.Tensor, dtype: torch.dtype) -> Operator:
        """Return the scorer of its held-out rows at all penalties."""

    def part(self, view: View) -> Part:
        """Return some targets in this split."""


class Fold(Protocol):
    """What choosing penalties and predicting needs of the training rows of a fold."""

    def split(self, train: torch.Tensor, test: torch.Tensor, scoring: str) -> InnerSplit:
        """Return an inner split, given by row numbers among the fold's own rows."""

    def view(self, block: Block) -> View:
        """Return a block with what all inner splits need of it."""

    def filtered(self, view: View, alpha_per_target: torch.Tensor) -> torch.Tensor:
        """Return targets in the eigenbasis over eigenvalue plus penalty (n_targets, rank)."""

    def train_basis(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return eigenvalues (rank,), and what turns targets to the eigenbasis (n_own, rank)."""

    def test_basis(self) -> torch.Tensor:
        """Return what turns these into predictions of the rows `held`, (n_held, rank)."""

    def weight_basis(self) -> torch.Tensor:
        """Return what turns them into weights of samples or features, (., rank), float64."""


class DualFold:
    """A fold seen through the kernel of its rows.

    Parameters
    ----------
    kernel : torch.Tensor, shape (n_samples, n_samples), float64
        Of all rows.
    own, held : torch.Tensor
        The numbers of training rows, and of the rows to predict, if any.
    """

    def __init__(
        self, kernel: torch.Tensor, own: torch.Tensor, held: torch.Tensor | None = None
    ) -> None:
        self.kernel, self.own, self.held = kernel, own, held
        self._whole: Spectrum | None = None
        self._nested: dict[tuple[bytes, ...], DualFold] | None = None

    @property
    def whole(self) -> Spectrum:
        """The spectrum of all training rows."""
        if self._whole is None:
            self._whole = dual_spectrum(self.kernel, self.own, self.held)
        return self._whole

    def keep_nested(self) -> None:
        """Keep folds within this one, with their decompositions, once they have been made."""
        self._nested = {}

    def nested(self, train: torch.Tensor, test: torch.Tensor) -> DualFold:
        """Return a fold of the own rows `train` that predicts the own rows `test`."""
        fold = DualFold(self.kernel, self.own[train], self.own[test])
        if self._nested is None:
            return fold
        key = tuple(rows.cpu().numpy().tobytes() for rows in (train, test))
        return self._nested.setdefault(key, fold)

    def spectrum(self, train: torch.Tensor, test: torch.Tensor) -> Spectrum:
        """Return the spectrum of some training rows, to predict others."""
        return self.nested(train, test).whole

    def split(self, train: torch.Tensor, test: torch.Tensor, scoring: str) -> DualSplit:
        """Return an inner split, given by row numbers among the fold's own rows."""
        return DualSplit(self, train, test, scoring)

    def view(self, block: Block) -> View:
        """Return a block with what all inner splits need of it: nothing more."""
        return View(block)

    def filtered(self, view: View, alpha_per_target: torch.Tensor) -> torch.Tensor:
        """Return targets in the eigenbasis over eigenvalue plus penalty (n_targets, rank)."""
        values = view.block.values
        inside = linear(values, self.whole.train_basis.T.to(values.dtype))
        return inside.mul_(gains(self.whole.eigenvalues, alpha_per_target, values.dtype))

    def train_basis(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return eigenvalues (rank,), and what turns targets to the eigenbasis (n_own, rank)."""
        return self.whole.eigenvalues, self.whole.train_basis

    def test_basis(self) -> torch.Tensor:
        """Return what turns these into predictions of the rows `held`, (n_held, rank)."""
        assert self.whole.test_basis is not None
        return self.whole.test_basis

    def weight_basis(self) -> torch.Tensor:
        """Return what turns them into weights of the training rows, (n_own, rank), float64."""
        return self.whole.train_basis


class DualSplit:
    """An inner split of a `DualFold`."""

    def __init__(
        self, fold: DualFold, train: torch.Tensor, test: torch.Tensor, scoring: str
    ) -> None:
        self.fold, self.train, self.test, self.scoring = fold, train, test, scoring

    def operator(self, alphas: torch.Tensor, dtype: torch.dtype) -> HeldOut:
        """Return the scorer of its held-out rows at all penalties.

        Composed takes fewer operations, but memory for every pair of rows and penalty.
        """
        e, train_basis, test_basis = self.fold.spectrum(self.train, self.test)
        assert test_basis is not None
        n_maps = len(alphas) + min(N_BASIS, len(alphas))
        if n_maps * len(self.train) * len(self.test) * dtype.itemsize <= COMPOSED_BYTES:
            return composed(e, train_basis, test_basis, alphas, self.scoring, dtype)
        if self.scoring == "r":
            test_basis = test_basis - test_basis.mean(0)
        lengths = torch.linalg.vector_norm(train_basis, dim=0)
        root = test_basis.T.contiguous()
        return factored(e, train_basis, test_basis, root, lengths, alphas, self.scoring, dtype)

    def part(self, view: View) -> Part:
        """Return some targets in this split."""
        return part_of_rows(view.block, self.train, self.test)


class PrimalFold:
    """A fold seen through the covariance of its features.

    Rows are turned into the eigenbasis of the fold's own covariance first: there, products with
    the targets that are summed in float32 keep the small components, which small penalties
    magnify. Inner splits need just these products, not the rows.

    Parameters
    ----------
    design : Design
    own, held : torch.Tensor
        The numbers of training rows, and of the rows to predict, if any.
    """

    def __init__(self, design: Design, own: torch.Tensor, held: torch.Tensor | None = None) -> None:
        self.design, self.own, self.held = design, own, held
        self.mean, covariance = _covariance(design, own)
        self.eigenvalues, self.vectors = eigh(covariance)
        self.eigenvalues.clamp_min_(0)
        del covariance
        self.turned = self._turn(own)

    def _turn(self, index: torch.Tensor) -> torch.Tensor:
        """Return rows in the eigenbasis, about the mean of the training rows."""
        shape = (len(index), self.design.n_features)
        turned = torch.empty(shape, dtype=self.design.dtype, device=index.device)
        start = 0
        for some, rows in self.design.blocks(index):
            turned[start : start + len(some)] = ((rows - self.mean) @ self.vectors).to(turned.dtype)
            start += len(some)
        return turned

    @property
    def whole(self) -> Spectrum:
        """The spectrum of all training rows, in terms of their kernel."""
        held = None if self.held is None else self._turn(self.held)
        return primal_spectrum(self.eigenvalues, self.turned, held)

    def spectrum(self, train: torch.Tensor, test: torch.Tensor) -> Spectrum:
        """Return the spectrum of some training rows, in terms of their kernel."""
        inner, outer = self.turned[train].double(), self.turned[test].double()
        mean = inner.mean(0)
        inner -= mean
        eigenvalues, vectors = eigh(inner.T @ inner)
        return primal_spectrum(eigenvalues, inner @ vectors, (outer - mean) @ vectors)

    def split(self, train: torch.Tensor, test: torch.Tensor, scoring: str) -> PrimalSplit:
        """Return an inner split, given by row numbers among the fold's own rows."""
        return PrimalSplit(self, train, test, scoring)

    def view(self, block: Block) -> View:
        """Return a block with its products with the features of all training rows."""
        return View(block, linear(block.values, self.turned.T))

    def filtered(self, view: View, alpha_per_target: torch.Tensor) -> torch.Tensor:
        """Return targets in the eigenbasis over eigenvalue plus penalty (n_targets, rank)."""
        assert view.products is not None
        return view.products * gains(self.eigenvalues, alpha_per_target, view.products.dtype)

    def train_basis(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return eigenvalues (rank,), and what turns targets to the eigenbasis (n_own, rank)."""
        return self.eigenvalues, self.turned

    def test_basis(self) -> torch.Tensor:
        """Return what turns these into predictions of the rows `held`, (n_held, rank)."""
        assert self.held is not None
        return self._turn(self.held)

    def weight_basis(self) -> torch.Tensor:
        """Return what turns them into weights of the features, (n_features, rank), float64."""
        return self.vectors


class PrimalSplit:
    """An inner split of a `PrimalFold`."""

    def __init__(
        self, fold: PrimalFold, train: torch.Tensor, test: torch.Tensor, scoring: str
    ) -> None:
        self.fold, self.train, self.test, self.scoring = fold, train, test, scoring
        n_own = len(fold.own)
        seen = torch.bincount(torch.cat([train, test]), minlength=n_own)
        self.complete = len(train) + len(test) == n_own and bool((seen == 1).all())
        self.rows = fold.turned.index_select(0, test)
        self.held_mean = self.rows.mean(0, dtype=torch.float64)
        if self.complete:
            self.train_mean = self.held_mean * (-len(test) / len(train))
        else:
            self.train_mean = fold.turned[train].mean(0, dtype=torch.float64)

    def operator(self, alphas: torch.Tensor, dtype: torch.dtype) -> HeldOut:
        """Return the scorer of its held-out rows at all penalties."""
        held = _second_moment(self.rows)
        if self.complete:
            inner = self.fold.eigenvalues.diag() - held
        else:
            inner = _second_moment(self.fold.turned[self.train])
        inner.addr_(self.train_mean, self.train_mean, alpha=-len(self.train))
        eigenvalues, vectors = eigh(inner)
        eigenvalues.clamp_min_(0)
        del inner
        # predictions for "r" are centred over the held-out rows
        middle = self.held_mean if self.scoring == "r" else self.train_mean
        if len(self.test) < len(vectors):
            root = ((self.rows.double() - middle) @ vectors).T.contiguous()
        else:
            held.addr_(self.held_mean, middle, alpha=-len(self.test))
            held.addr_(middle, self.held_mean - middle, alpha=-len(self.test))
            root = quadratic_root(vectors.T @ held @ vectors)
        lengths = eigenvalues.sqrt()
        return factored(eigenvalues, vectors, vectors, root, lengths, alphas, self.scoring, dtype)

    def part(self, view: View) -> Part:
        """Return some targets in this split, as their products with the features."""
        block, products = view
        assert products is not None
        values = block.values.index_select(1, self.test)
        seen = linear(values, self.rows.T)
        n_train, n_test = len(self.train), len(self.test)
        train_sum, held_sum = -values.sum(1), values.sum(1)
        if self.complete:
            inside = products - seen
        else:
            inner = block.values.index_select(1, self.train)
            train_sum = inner.sum(1)
            inside = linear(inner, self.fold.turned[self.train].T)
        mean = self.train_mean.to(seen.dtype)
        inside.addr_(train_sum, mean, alpha=-1)
        if self.scoring == "r":
            seen.addr_(held_sum, self.held_mean.to(seen.dtype), alpha=-1)
        else:
            seen.addr_(held_sum, mean, alpha=-1)
            apart = (self.held_mean - self.train_mean).to(seen.dtype)
            seen.addr_(train_sum / n_train, apart, alpha=-n_test)
        rest = held_moments(block, self.test, train_sum / n_train)[1:]
        return Part(inside, seen, *rest)


def part_of_rows(block: Block, train: torch.Tensor, test: torch.Tensor) -> Part:
    """Return some targets in a split, as they are in its rows."""
    inside = columns_of(block.values, train)
    outside, *rest = held_moments(block, test, inside.mean(1))
    return Part(inside, outside, *rest)


def held_moments(
    block: Block, test: torch.Tensor, train_mean: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return held-out targets about `train_mean`, and what `Part` holds of them."""
    outside = columns_of(block.values, test)
    centred = outside - outside.mean(1, keepdim=True)
    scored = centred.abs().amax(1) > block.floor
    variance = centred.square_().sum(1)
    outside -= train_mean[:, None]
    return outside, outside.square().sum(1), variance, scored


def _covariance(design: Design, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean of some rows, and the sum of their centred outer products, float64."""
    size = design.n_features
    total = torch.zeros(size, dtype=torch.float64, device=index.device)
    product = torch.zeros(size, size, dtype=torch.float64, device=index.device)
    for _, rows in design.blocks(index):
        total += rows.sum(0)
        product.addmm_(rows.T, rows)
    mean = total / len(index)
    return mean, product.addr_(mean, mean, alpha=-len(index))


def _second_moment(rows: torch.Tensor) -> torch.Tensor:
    """Return the sum of outer products of rows, (n_features, n_features), float64."""
    product = rows.new_zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for some in rows.split(1024):
        double = some.double()
        product.addmm_(double.T, double)
    return product
