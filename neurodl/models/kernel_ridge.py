"""KernelRidgeCV: ridge regression in the feature space of a kernel, a penalty per target."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from neurodl.models._base import PenaltyCV, weights_at
from neurodl.models._design import Scaling, fit_scaling
from neurodl.models._folds import Fold
from neurodl.models._input import as_tensor, check_features_input, check_fit_input, check_lengths
from neurodl.models._preflight import Path
from neurodl.models._solvers import gram
from neurodl.models._spaces import KernelSpace
from neurodl.models._targets import Targets
from neurodl.runtime import resolve_device

KERNELS = ("linear", "rbf", "cosine", "precomputed")


class KernelRidgeCV(PenaltyCV):
    """Ridge regression with a kernel and an intercept; one penalty per target, by inner folds.

    Exact: one eigendecomposition of each inner training set serves all penalties and all
    targets. Kernels are centred over the training rows, which is what an intercept does.

    Parameters
    ----------
    alphas, cv, scoring, nan_targets, screening, device, seed
        See `RidgeCV`.
    kernel : {"linear", "rbf", "cosine", "precomputed"}
        The kernel of two rows x and z: their product, ``exp(-gamma ||x - z||^2)``, the cosine of
        their angle, or given: then X is the kernel itself, of all rows with the training rows.
    gamma : "auto" or float
        Of "rbf"; "auto" is one over the mean squared distance of the training rows.
    standardize, sd_floor
        See `RidgeCV`. Rows are about the mean of the training rows in any case, except for
        "precomputed".

    Attributes
    ----------
    alpha_, cv_score_, n_excluded_
        See `RidgeCV`.
    dual_coef_ : numpy.ndarray, shape (n_samples, n_targets)
        The weights of the training rows.
    intercept_ : numpy.ndarray, shape (n_targets,)
    gamma_ : float
        The width that was used, for "rbf".

    References
    ----------
    Saunders, Gammerman & Vovk (1998), Ridge regression learning algorithm in dual variables, ICML.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.uniform(-2, 2, (200, 1)); Y = np.sin(2 * X)
    >>> model = KernelRidgeCV(kernel="rbf", gamma=2.0, device="cpu").fit(X, Y)
    >>> bool(np.abs(model.predict(X) - Y).max() < 0.05)
    True
    """

    _target_axes: ClassVar[dict[str, int]] = {
        "_weights": 1,
        "_intercept": 0,
        "dual_coef_": 1,
        "intercept_": 0,
        "alpha_": 0,
        "cv_score_": 0,
    }

    def __init__(
        self,
        alphas: Any = "auto",
        *,
        kernel: str = "rbf",
        gamma: str | float = "auto",
        cv: Any = 5,
        scoring: str = "r2",
        standardize: bool = True,
        sd_floor: float = 0.1,
        nan_targets: str = "error",
        screening: bool = True,
        device: Any = "auto",
        seed: int = 0,
    ) -> None:
        self.alphas = alphas
        self.kernel = kernel
        self.gamma = gamma
        self.cv = cv
        self.scoring = scoring
        self.standardize = standardize
        self.sd_floor = sd_floor
        self.nan_targets = nan_targets
        self.screening = screening
        self.device = device
        self.seed = seed

    def fit(self, X: Any, y: Any, groups: Any = None) -> KernelRidgeCV:
        """Choose the penalties and fit the weights of the training rows.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features) or (n_samples, n_samples) if precomputed
        y : array-like, shape (n_samples,) or (n_samples, n_targets)
        groups : array-like, shape (n_samples,), optional
            Rows of one group (a run, say) stay on one side of every inner split.

        Returns
        -------
        KernelRidgeCV
            self.

        Raises
        ------
        ValueError
            Values are not finite, lengths differ, a given kernel is not square or symmetric, or a
            parameter is out of range.
        """
        X, y = check_fit_input(self, X, y)
        check_lengths(X, y, groups=groups)
        self._check_parameters()
        device = resolve_device(self.device)
        at_once = self._targets_at_once(X, y, [(range(len(X)), [])], groups, device)
        features = as_tensor(X, device)
        own = torch.arange(len(features), device=device)
        space = self._space(features, own, None, None)
        targets = Targets(y, features, None, self.nan_targets, None, at_once)
        grid = self._grid(space, own)
        fold = self._fold(space, own, None, targets, grid, groups)
        chosen, scores = self._choose(fold, targets, grid, groups)
        self._fit_weights(space, fold, targets, grid[chosen])
        self.alpha_ = grid[chosen].cpu().numpy()
        self.cv_score_ = scores.cpu().numpy()
        self.alpha_[targets.excluded] = self.cv_score_[targets.excluded] = np.nan
        self.n_excluded_ = int(targets.excluded.sum())
        self.n_alphas_at_edge_ = self._warn_of_edges(chosen, grid)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return predictions, shape (n_samples,) or (n_samples, n_targets).

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features) or (n_samples, n_train) if precomputed
            A given kernel has the training rows as its columns.
        """
        check_is_fitted(self)
        X = check_features_input(self, X, reset=False)
        features = as_tensor(X, self._weights.device).to(self._weights.dtype)
        values = features
        if self._rows is not None:
            values = kernel_of(features, self._rows, self._scaling, self.kernel, self.gamma_)
        result = (values.to(features.dtype) @ self._weights + self._intercept).cpu().numpy()
        return result[:, 0] if self._single_target else result

    def __sklearn_tags__(self) -> Any:
        """Say that a given kernel is split in rows and columns."""
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.kernel == "precomputed"
        return tags

    def _fit_weights(
        self, space: _FittedKernel, fold: Fold, targets: Targets, penalties: torch.Tensor
    ) -> None:
        """Keep the weights of the training rows."""
        basis, centre = fold.weight_basis(), space.kernel.mean(0)
        self._weights, self._intercept = weights_at(fold, targets, penalties, basis, centre)
        self._rows, self._scaling, self.gamma_ = space.rows, space.scaling, space.gamma
        self.dual_coef_ = self._weights.cpu().numpy()
        self.intercept_ = self._intercept.cpu().numpy()

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.kernel not in KERNELS:
            raise ValueError(f"`kernel` must be one of {KERNELS}, but got {self.kernel!r}.")
        if self.gamma != "auto" and not (np.isreal(self.gamma) and float(self.gamma) > 0):
            raise ValueError(f"`gamma` must be 'auto' or > 0, but got {self.gamma!r}.")
        if not 0 < self.sd_floor <= 1:
            raise ValueError(f"`sd_floor` must lie in (0, 1], but got {self.sd_floor}.")

    def _path(self, n_train: int, n_features: int, n_targets: int) -> Path:
        """Return how training rows will be described: by the kernel of all rows."""
        return Path(True, n_features, 1.0 if self.kernel == "linear" else 4.0)

    def _space(
        self, features: torch.Tensor, own: torch.Tensor, runs: Any, last: Any
    ) -> _FittedKernel:
        """Return the kernel of all rows, scaled by the training rows `own`."""
        if self.kernel == "precomputed":
            if last is not None:
                return last
            check_kernel(features)
            return _FittedKernel(features.double(), None, None, None)
        scaling = fit_scaling(features, own, standardize=self.standardize, sd_floor=self.sd_floor)
        gamma = None
        if self.kernel == "rbf":
            gamma = 0.5 / (_spread(features, own, scaling) or 1.0)
            gamma = gamma if self.gamma == "auto" else float(self.gamma)
        kernel = kernel_of(features, None, scaling, self.kernel, gamma)
        return _FittedKernel(kernel, features, scaling, gamma)


class _FittedKernel(KernelSpace):
    """A kernel of all rows, and what it was made with."""

    def __init__(
        self,
        kernel: torch.Tensor,
        rows: torch.Tensor | None,
        scaling: Scaling | None,
        gamma: float | None,
    ) -> None:
        super().__init__(kernel)
        self.rows, self.scaling, self.gamma = rows, scaling, gamma


def kernel_of(
    X: torch.Tensor,
    other: torch.Tensor | None,
    scaling: Scaling | None,
    kernel: str,
    gamma: float | None,
) -> torch.Tensor:
    """Return the kernel of rows with others, or with themselves: (n_rows, n_others), float64."""
    assert scaling is not None
    offset, scale = scaling.offset, scaling.scale
    products = gram(X, offset, scale, other=other)
    if kernel == "linear":
        return products
    own = _squares(X, scaling)
    others = own if other is None else _squares(other, scaling)
    if kernel == "cosine":
        lengths = (own[:, None] * others).sqrt()
        return torch.where(lengths > 0, products / lengths, 0.0)
    assert gamma is not None
    distances = (own[:, None] + others - 2 * products).clamp_min(0)
    return torch.exp(-gamma * distances)


def _squares(X: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    """Return the squared length of each scaled row, (n_rows,), float64."""
    total = torch.zeros(len(X), dtype=torch.float64, device=X.device)
    for part in zip(*(x.split(1024, dim=-1) for x in (X, *scaling[:2])), strict=True):
        values, offset, scale = part
        total += ((values - offset) / scale).double().square().sum(1)
    return total


def _spread(X: torch.Tensor, own: torch.Tensor, scaling: Scaling) -> float:
    """Return half the mean squared distance of the training rows: the sum of their variances."""
    return float(_squares(X[own], scaling).mean())


def check_kernel(kernel: torch.Tensor, of: str = "") -> None:
    """Raise unless a given kernel is square and symmetric; `of` says whose it is."""
    if kernel.shape[0] != kernel.shape[1]:
        raise ValueError(
            f"kernel='precomputed' needs the kernel{of} of all rows with each other, a square, but "
            f"X has shape {tuple(kernel.shape)}."
        )
    lowest = float(kernel.diagonal().amin())
    if lowest < -1e-6 * float(kernel.abs().amax()):
        raise ValueError(
            "kernel='precomputed' needs the kernel of rows with themselves on the diagonal, at "
            f"least 0, but X has {lowest:g} there. Is it a kernel, or "
            "distances with their sign changed?"
        )
    apart = (kernel - kernel.T).abs().max()
    if apart > 1e-4 * kernel.abs().max():
        raise ValueError(
            f"kernel='precomputed' needs a symmetric kernel{of}, but X differs from its transpose "
            f"by up to {float(apart):g}. Are its rows and columns in the same order?"
        )
