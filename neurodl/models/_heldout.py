"""The scores of held-out rows at all penalties, from few products with the targets.

Two forms give the same numbers. `Composed` maps the targets of training rows straight to a few
basis predictions of the held-out rows; `Factored` goes through the eigenbasis, and needs the
held-out rows only as a quadratic form. Which takes fewer operations depends on the numbers of
rows and features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from neurodl.models._solvers import filter_basis, gains
from neurodl.runtime import linear

PIECE_BYTES = {"cpu": 2**25, "cuda": 2**29}  # basis predictions that are held together
CACHE_BYTES = {"cpu": 2**22, "cuda": 2**29}  # of these that are multiplied with each other
Products = tuple[torch.Tensor, torch.Tensor]


class Part(NamedTuple):
    """Some targets in one split.

    inside : (n_targets, k), the targets of the training rows, or their products with features
    seen : (n_targets, m), the same of the held-out rows, about the mean of the training rows
    total, variance : (n_targets,), sums of squares of the held-out targets about the mean of the
        training rows, and about their own
    scored : (n_targets,), whether the held-out targets vary
    """

    inside: torch.Tensor
    seen: torch.Tensor
    total: torch.Tensor
    variance: torch.Tensor
    scored: torch.Tensor

    def some(self, targets: torch.Tensor | slice) -> Part:
        """Return the part of some targets."""
        if isinstance(targets, slice):
            return Part(*(field[targets] for field in self))
        return Part(*(field.index_select(0, targets) for field in self))


def score(scoring: str, part: Part, cross: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Return scores (..., n_targets) from products of predictions with targets and themselves.

    For "r" the predictions are those that are centred over the held-out rows.
    """
    if scoring == "r":
        scores = cross / (squares * part.variance).sqrt()
        scores = scores.clamp(-1, 1).where(squares > 0, torch.nan)
    else:
        scores = 1 - (part.total - 2 * cross + squares) / part.variance
    return scores.where(part.scored, torch.nan)


class Operator(Protocol):
    """What scores the held-out rows of a split at all settings."""

    @property
    def scoring(self) -> str:
        """Either "r2" or "r"."""

    @property
    def n_bytes(self) -> int:
        """The memory it takes."""

    def enter(self, part: Part) -> Part:
        """Return targets in the coordinates of this operator."""

    def products(self, part: Part) -> Products:
        """Return predictions times held-out targets, and times themselves (n_alphas, n_targets)."""


class Composed(NamedTuple):
    """Predictions of held-out rows as maps of the training rows' targets.

    basis : (n_shapes * n_test, n_train), gives `n_shapes` basis predictions of the held-out rows
    mixing : (n_alphas, n_shapes), how the predictions of each penalty are made of them
    fewer : (n_rough, n_shapes), how even fewer are, and
    rough_mixing : (n_alphas, n_rough), how those of each penalty are made of these, about
    scoring : "r2" or "r"
    """

    basis: torch.Tensor
    mixing: torch.Tensor
    fewer: torch.Tensor
    rough_mixing: torch.Tensor
    scoring: str

    @property
    def n_bytes(self) -> int:
        """The memory it takes, maps of all penalties included."""
        n_alphas, n_shapes = self.mixing.shape
        return self.basis.nbytes * (n_shapes + n_alphas) // n_shapes

    def enter(self, part: Part) -> Part:
        """Return targets in the coordinates of this operator."""
        return part

    def rough(self) -> Composed:
        """Return the same with fewer basis predictions, in bfloat16."""
        basis = self._mixed(self.fewer).flatten(0, 1)
        return self._replace(basis=basis.bfloat16(), mixing=self.rough_mixing)

    def maps(self) -> torch.Tensor:
        """Return the map of each penalty, (n_alphas, n_test, n_train)."""
        return self._mixed(self.mixing)

    def _mixed(self, mixing: torch.Tensor) -> torch.Tensor:
        """Return combinations (n_some, n_shapes) of the basis, (n_some, n_test, n_train)."""
        n_shapes, n_train = mixing.shape[1], self.basis.shape[1]
        return (mixing @ self.basis.view(n_shapes, -1)).view(len(mixing), -1, n_train)

    def products(self, part: Part) -> Products:
        """Return predictions times held-out targets, and times themselves (n_alphas, n_targets)."""
        return in_pieces(self._products, part, len(self.basis))

    def _products(self, part: Part) -> Products:
        (n_targets, n_test), n_shapes = part.seen.shape, self.mixing.shape[1]
        basis = linear(part.inside.to(self.basis.dtype), self.basis).view(n_targets, n_shapes, -1)
        # small products of 13 to 15 rows take three times as long as those of 16
        n_rows = 16 if 12 < n_shapes + 1 < 16 else n_shapes + 1
        products = part.seen.new_empty(n_targets, n_rows, n_rows)
        step = max(1, _of(CACHE_BYTES, part) // (part.seen.itemsize * n_rows * n_test))
        rows = part.seen.new_zeros(min(step, n_targets), n_rows, n_test)
        for start in range(0, n_targets, step):
            some = slice(start, start + step)
            own = rows[: n_targets - start]
            own[:, :n_shapes] = basis[some]
            own[:, n_shapes] = part.seen[some]
            torch.bmm(own, own.mT, out=products[some])
        cross = self.mixing @ products[:, :n_shapes, n_shapes].T
        return cross, mixed_squares(products[:, :n_shapes, :n_shapes], self.mixing)


class Factored(NamedTuple):
    """Predictions of held-out rows by way of the eigenbasis.

    project : (k, rank), maps the training part of targets to the eigenbasis
    back : (m, rank), maps their held-out part to what predictions are multiplied with
    root : (rank, q), turns filtered targets into q numbers with the squared length of predictions
    shapes : (n_shapes, rank), the filters of some penalties
    mixing, fewer, rough_mixing : see `Composed`
    gains : (n_alphas, rank)
    scoring : "r2" or "r"
    """

    project: torch.Tensor
    back: torch.Tensor
    root: torch.Tensor
    shapes: torch.Tensor
    mixing: torch.Tensor
    fewer: torch.Tensor
    rough_mixing: torch.Tensor
    gains: torch.Tensor
    scoring: str

    @property
    def n_bytes(self) -> int:
        """The memory it takes."""
        own = self.back is not self.project
        return self.project.nbytes + own * self.back.nbytes + 2 * self.root.nbytes

    def enter(self, part: Part) -> Part:
        """Return targets in the coordinates of this operator."""
        inside, seen = linear(part.inside, self.project.T), linear(part.seen, self.back.T)
        return part._replace(inside=inside, seen=seen)

    def rough(self) -> Factored:
        """Return the same with fewer basis predictions, in bfloat16."""
        shapes = self.fewer @ self.shapes
        return self._replace(root=self.root.bfloat16(), shapes=shapes, mixing=self.rough_mixing)

    def products(self, part: Part) -> Products:
        """Return predictions times held-out targets, and times themselves (n_alphas, n_targets)."""
        return in_pieces(self._products, part, len(self.shapes) * max(self.root.shape))

    def _products(self, part: Part) -> Products:
        cross = self.gains @ (part.inside * part.seen).T
        basis = (part.inside[:, None, :] * self.shapes).to(self.root.dtype).flatten(0, 1)
        basis = linear(basis, self.root.T).to(part.inside.dtype)
        basis = basis.view(len(part.inside), len(self.shapes), -1)
        return cross, mixed_squares(basis @ basis.mT, self.mixing)


HeldOut = Composed | Factored


def in_pieces(products: Callable[[Part], Products], part: Part, width: int) -> Products:
    """Return products that are made of as many targets at a time as `PIECE_BYTES` has room for.

    Parameters
    ----------
    products : callable
        Gives products (n_alphas, n_targets) of a part.
    part : Part
    width : int
        How many numbers a target takes on the way.
    """
    n_targets = len(part.total)
    at_once = max(16, _of(PIECE_BYTES, part) // (part.seen.itemsize * width))
    n_pieces = -(-n_targets // at_once)
    step = -(-n_targets // n_pieces)  # of nearly the same size
    starts = range(0, n_targets, step)
    found = [products(part.some(slice(start, start + step))) for start in starts]
    cross, squares = zip(*found, strict=True)
    return torch.cat(cross, 1), torch.cat(squares, 1)


def _of(sizes: dict[str, int], part: Part) -> int:
    """Return the size for the kind of device on which a part is."""
    return sizes["cuda" if part.total.device.type == "cuda" else "cpu"]


def mixed_squares(products: torch.Tensor, mixing: torch.Tensor) -> torch.Tensor:
    """Return the squared lengths (n_alphas, n_targets) of mixed predictions.

    Parameters
    ----------
    products : torch.Tensor, shape (n_targets, n_shapes, n_shapes)
        Of basis predictions with each other.
    mixing : torch.Tensor, shape (n_alphas, n_shapes)
    """
    pairs = (mixing[:, :, None] * mixing[:, None, :]).flatten(1)
    return pairs @ products.flatten(1).T


def scores_of_all(operator: Operator, part: Part) -> torch.Tensor:
    """Return the score of every penalty (n_alphas, n_targets), for a part that has entered."""
    return score(operator.scoring, part, *operator.products(part))


def rough_scores(operator: HeldOut, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores, and what their error is in proportion to (n_alphas, n_targets).

    An error of the predictions is in proportion to them. Through their products with themselves it
    moves r2 by a share of their variance, and r by a share of r. A composed operator is off in
    their products with the targets, too: by a share of their size, and of 1.
    """
    cross, squares = operator.products(part)
    scores = score(operator.scoring, part, cross, squares)
    exact_cross = isinstance(operator, Factored)
    if operator.scoring == "r":
        return scores, scores.abs() if exact_cross else torch.ones_like(scores)
    variance = squares.clamp_min(0) / part.variance
    return scores, variance if exact_cross else variance + variance.sqrt()


def composed(
    eigenvalues: torch.Tensor,
    train_basis: torch.Tensor,
    test_basis: torch.Tensor,
    alphas: torch.Tensor,
    scoring: str,
    dtype: torch.dtype,
) -> Composed:
    """Return the composed operator of a spectrum; see `held_out`."""
    if scoring == "r":
        test_basis = test_basis - test_basis.mean(0)
    reach = torch.linalg.vector_norm(test_basis, dim=0)
    reach = reach * torch.linalg.vector_norm(train_basis, dim=0)
    few = filter_basis(eigenvalues, reach, alphas)
    basis = torch.cat([(test_basis / (eigenvalues + alpha)).to(dtype) for alpha in few.kept])
    basis = linear(basis, train_basis.to(dtype))
    mixing, fewer, rough_mixing = (one.to(dtype) for one in few[1:])
    return Composed(basis, mixing, fewer, rough_mixing, scoring)


def factored(
    eigenvalues: torch.Tensor,
    project: torch.Tensor,
    back: torch.Tensor,
    root: torch.Tensor,
    lengths: torch.Tensor,
    alphas: torch.Tensor,
    scoring: str,
    dtype: torch.dtype,
) -> Factored:
    """Return the factored operator.

    Parameters
    ----------
    eigenvalues, project, back, root
        See `Factored`; float64, and centred over the held-out rows for "r".
    lengths : torch.Tensor, shape (rank,)
        How much each eigenvector can take of a target.
    alphas : torch.Tensor, shape (n_alphas,), float64
    """
    reach = torch.linalg.vector_norm(root, dim=1) * lengths
    few = filter_basis(eigenvalues, reach, alphas)
    mixing, fewer, rough_mixing = (one.to(dtype) for one in few[1:])
    half = project.to(dtype)
    return Factored(
        half,
        half if back is project else back.to(dtype),
        root.to(dtype),
        gains(eigenvalues, few.kept, dtype),
        mixing,
        fewer,
        rough_mixing,
        gains(eigenvalues, alphas, dtype),
        scoring,
    )
