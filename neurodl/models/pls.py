"""PLS: partial least squares regression, with components of all targets or of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from neurodl.models._components import joint_components, own_components
from neurodl.models._counts import check_counts, counts_up_to
from neurodl.models._directions import DirectionsFold, target_kernel
from neurodl.models._folds import DualFold, PrimalFold, View, part_of_rows
from neurodl.models._heldout import Factored, Part
from neurodl.models._linear import LinearCV
from neurodl.models._solvers import nonzero_part
from neurodl.models._targets import Targets
from neurodl.models._targetwise import TargetwiseFold

MAX_COMPONENTS = 25
TARGETS = ("joint", "each")


class JointFold(DirectionsFold):
    """Training rows with the components that are common to all targets.

    Parameters
    ----------
    fold : DualFold or PrimalFold
    products : torch.Tensor, shape (n_own, n_own), float64
        The inner products of rows over all targets.
    n_components : int
    """

    def __init__(
        self, fold: DualFold | PrimalFold, products: torch.Tensor, n_components: int
    ) -> None:
        self.fold, self.products, self.n_components = fold, products, n_components
        spectrum = nonzero_part(fold.whole)
        super().__init__(spectrum, joint_components(spectrum, products, n_components))

    def filtered(self, view: View, setting_per_target: torch.Tensor) -> torch.Tensor:
        """Return the projections of targets on the first components (n_targets, n_components)."""
        projected = super().filtered(view, setting_per_target)
        return projected * _first(setting_per_target, self.n_components).to(projected.dtype)

    def split(self, train: torch.Tensor, test: torch.Tensor, scoring: str) -> JointSplit:
        """Return an inner split, given by row numbers among the fold's own rows."""
        return JointSplit(self, train, test, scoring)


class JointSplit:
    """An inner split of a `JointFold`."""

    def __init__(
        self, fold: JointFold, train: torch.Tensor, test: torch.Tensor, scoring: str
    ) -> None:
        self.fold, self.train, self.test, self.scoring = fold, train, test, scoring

    def operator(self, counts: torch.Tensor, dtype: torch.dtype) -> Factored:
        """Return the scorer of its held-out rows at all numbers of components."""
        n_components = self.fold.n_components
        spectrum = nonzero_part(self.fold.fold.spectrum(self.train, self.test))
        products = self.fold.products[self.train][:, self.train]
        inner = DirectionsFold(spectrum, joint_components(spectrum, products, n_components))
        back = inner.test_basis()
        if self.scoring == "r":
            back = back - back.mean(0)
        root = torch.linalg.qr(back).R.T.to(dtype)
        first = _first(counts, n_components).to(dtype)
        same = torch.eye(len(counts), dtype=dtype, device=back.device)
        inward = inner.inward.to(dtype)
        return Factored(inward, back.to(dtype), root, first, same, same, same, first, self.scoring)

    def part(self, view: View) -> Part:
        """Return some targets in this split."""
        return part_of_rows(view.block, self.train, self.test)


def _first(counts: torch.Tensor, n_components: int) -> torch.Tensor:
    """Return which components are among the first of each count, (n_counts, n_components)."""
    return torch.arange(n_components, device=counts.device) < counts[:, None]


class PLS(LinearCV):
    """Partial least squares regression; the number of components is chosen per target.

    Components are directions of the features that vary with the targets, one after the other.
    All numbers of components come from a single pass. It works in the eigenbasis of the samples'
    kernel (or of the features' covariance, where that is cheaper): nothing grows with the product
    of features and targets. Given the components, the model is that of scikit-learn's
    ``PLSRegression(scale=False)`` on the scaled features.

    Parameters
    ----------
    n_components : "auto", int or array-like of int
        The numbers of components to choose from. "auto" is 1 to 25, or as many as there are
        features, or training rows less one.
    targets : {"joint", "each"}
        Whether components are common to all targets (PLS2) or made for every target (PLS1).
        "joint" is a model of all targets at once: predictions of one depend on which others
        there are, and those with more variance count more.
    cv, scoring, standardize, sd_floor, delays, centre, nan_targets, device, seed
        See `RidgeCV`; folds choose numbers of components.

    Attributes
    ----------
    n_components_ : numpy.ndarray, shape (n_targets,), int
        The chosen numbers; `cross_validate` reports them as ``alpha``. 0 if a target was left
        out for missing values.
    cv_score_, intercept_, n_floored_, n_excluded_
        See `RidgeCV`.

    References
    ----------
    Wold, Sjostrom & Eriksson (2001), PLS-regression: a basic tool of chemometrics, Chemometr.
    Intell. Lab. Syst. 58.
    Lindgren, Geladi & Wold (1993), The kernel algorithm for PLS, J. Chemometrics 7.
    Rosipal & Trejo (2001), Kernel partial least squares regression in reproducing kernel Hilbert
    space, JMLR 2.
    Yamins et al. (2014), Performance-optimized hierarchical models predict neural responses in
    higher visual cortex, PNAS 111.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((60, 5)); Y = X[:, :2] @ rng.standard_normal((2, 3))
    >>> bool((PLS(device="cpu").fit(X, Y).predict(X) - Y).std() < 0.01)
    True
    """

    screening = False
    _simplest = 0

    def __init__(
        self,
        n_components: Any = "auto",
        *,
        targets: str = "joint",
        cv: Any = 5,
        scoring: str = "r2",
        standardize: bool = True,
        sd_floor: float = 0.1,
        delays: Sequence[int] | None = None,
        centre: str = "all",
        nan_targets: str = "error",
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        self.n_components = n_components
        self.targets = targets
        self.cv = cv
        self.scoring = scoring
        self.standardize = standardize
        self.sd_floor = sd_floor
        self.delays = delays
        self.centre = centre
        self.nan_targets = nan_targets
        self.device = device
        self.seed = seed

    def _check_grid(self) -> None:
        if self.targets not in TARGETS:
            raise ValueError(f"`targets` must be one of {TARGETS}, but got {self.targets!r}.")
        check_counts("n_components", self.n_components)

    def _grid(self, space: Any, own: torch.Tensor) -> torch.Tensor:
        """Return the numbers of components, ascending, float64."""
        most = min(len(own) - 1, space.design.n_features)
        counts = counts_up_to("n_components", self.n_components, most, MAX_COMPONENTS)
        return torch.as_tensor(counts, dtype=torch.float64, device=own.device)

    def _fold(
        self,
        space: Any,
        own: torch.Tensor,
        held: torch.Tensor | None,
        targets: Targets,
        grid: torch.Tensor,
        groups: Any,
    ) -> JointFold | TargetwiseFold:
        """Return the training rows, with the components of all targets or of each."""
        plain = space.fold(own, held, 0.0, targets.n_targets)
        most = int(grid[-1])
        if self.targets == "each":
            return TargetwiseFold(plain, own_components, 3 * most)
        return JointFold(plain, target_kernel(targets), most)

    def _warn_of_edges(self, chosen: torch.Tensor, grid: torch.Tensor) -> int:
        """Count nothing: the ladder of components starts at one, and ends where it was meant to."""
        return 0

    def _keep_chosen(
        self, fold: Any, targets: Targets, values: torch.Tensor, n_at_edge: int
    ) -> None:
        """Keep the numbers of components."""
        self.n_components_ = values.long().cpu().numpy()
        self.n_components_[targets.excluded] = 0
