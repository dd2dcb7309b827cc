"""Feature spaces: all rows of features or kernels, from which the folds of a fit are made."""

from __future__ import annotations

from typing import Protocol

import torch

from neurodl.models._design import Design
from neurodl.models._folds import DualFold, Fold, PrimalFold

# An eigendecomposition takes about this many times n^3 operations' time, in products of float64.
EIGH_COST = 20
# Up to this many features per sample, weights of features are kept: they are more exact than
# weights of samples, and still no larger than a few times the targets.
MAX_FEATURES_PER_SAMPLE = 4
N_SHAPES = 8  # of basis predictions that a target takes, about


class Space(Protocol):
    """A feature space: what is known of all rows, with what was fitted to the training rows."""

    def fold(
        self, own: torch.Tensor, held: torch.Tensor | None, smallest_alpha: float, n_targets: int
    ) -> Fold:
        """Return the training rows `own`, ready to be split and to predict the rows `held`."""

    def mean_eigenvalue(self, own: torch.Tensor) -> float:
        """Return the mean nonzero eigenvalue of the training rows, about."""


class LinearSpace:
    """Linear features.

    Parameters
    ----------
    design : Design
    kernel : torch.Tensor, shape (n_samples, n_samples), optional
        The kernel of the features, if it is known.
    """

    def __init__(self, design: Design, kernel: torch.Tensor | None = None) -> None:
        self.design, self.kernel = design, kernel

    def fold(
        self, own: torch.Tensor, held: torch.Tensor | None, smallest_alpha: float, n_targets: int
    ) -> Fold:
        """Return the training rows by their kernel or their covariance, whichever is cheaper."""
        if covariance_pays(len(own), self.design.n_features, n_targets):
            return PrimalFold(self.design, own, held)
        if self.kernel is None:
            self.kernel = self.design.kernel(smallest_alpha)
        return DualFold(self.kernel, own, held)

    def mean_eigenvalue(self, own: torch.Tensor) -> float:
        """Return the mean nonzero eigenvalue of the training rows, about."""
        return self.design.mean_eigenvalue(own)

    def weight_basis(self, fold: Fold, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what turns filtered targets into weights, and where weights predict the mean.

        Returns
        -------
        basis : torch.Tensor, shape (n_features | n_own, rank), float64
        centre : torch.Tensor, shape (n_features | n_own,), float64
            The mean training row, of features or of the kernel.
        """
        if isinstance(fold, PrimalFold):
            return fold.weight_basis(), fold.mean
        basis = fold.weight_basis()
        if self.design.n_features > MAX_FEATURES_PER_SAMPLE * len(own):
            assert self.kernel is not None
            return basis, self.kernel[own][:, own].mean(0)
        # The sum over samples is done once, in float64, before dividing by small eigenvalues;
        # dual weights would divide first and leave the cancellation to every prediction.
        weights = basis.new_zeros(self.design.n_features, basis.shape[1])
        start = 0
        for some, rows in self.design.blocks(own):
            weights.addmm_(rows.T, basis[start : start + len(some)])
            start += len(some)
        return weights, self.design.mean(own)


class KernelSpace:
    """A kernel of all rows.

    Parameters
    ----------
    kernel : torch.Tensor, shape (n_samples, n_samples), float64
    """

    def __init__(self, kernel: torch.Tensor) -> None:
        self.kernel = kernel

    def fold(
        self, own: torch.Tensor, held: torch.Tensor | None, smallest_alpha: float, n_targets: int
    ) -> Fold:
        """Return the training rows, ready to be split and to predict the rows `held`."""
        return DualFold(self.kernel, own, held)

    def mean_eigenvalue(self, own: torch.Tensor) -> float:
        """Return the mean nonzero eigenvalue of the training rows."""
        inner = self.kernel[own][:, own]
        trace = inner.diagonal().sum() - inner.mean() * len(own)
        return float(trace) / len(own)


def covariance_pays(n_samples: int, n_features: int, n_targets: int) -> bool:
    """Return whether fewer operations are needed with the covariance than with the kernel.

    Counted for five inner folds, in operations of float64 on one target set.
    """
    n_train, n_test, k = 0.8 * n_samples, 0.2 * n_samples, min(n_samples, n_features)
    kernel = n_samples**2 * n_features + 5 * EIGH_COST * n_train**3
    kernel += n_targets * 5 * n_train * N_SHAPES * n_test / 2
    covariance = 2 * n_samples * n_features**2 + 5 * EIGH_COST * n_features**3
    small = min(n_test, n_features)
    per_target = n_samples * n_features + 5 * n_features * (2 * n_features + N_SHAPES * small)
    return k == n_features and covariance + n_targets * per_target / 2 < kernel
