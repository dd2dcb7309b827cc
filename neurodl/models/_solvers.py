"""Exact ridge regression by one eigendecomposition per training set: pure functions of tensors.

With rows X (n_samples, n_features) and targets Y (n_samples, n_targets), both centred over the
training rows, the prediction at penalty alpha is ``T diag(1 / (e + alpha)) B' Y``. Where there are
fewer samples than features, e and Q are the eigensystem of the kernel X X' and
``B = Q, T = K_test Q`` (dual); otherwise e and V are that of X' X and
``B = X V, T = X_test V`` (primal). Decompositions run in float64, products with the targets in
the dtype of the data.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from neurodl.metrics import pearson_r, r2

N_FEATURES_BLOCK = 4096
SCORERS = {"r2": r2, "r": pearson_r}


class Spectrum(NamedTuple):
    """The eigensystem of one training set, with the bases that predictions are made of.

    eigenvalues : (rank,), float64
    train_basis : (n_train, rank), maps centred targets to the eigenbasis
    test_basis : (n_test, rank), maps the filtered targets to predictions, or None
    weight_basis : (n_train | n_features, rank), maps them to dual or primal coefficients
    """

    eigenvalues: torch.Tensor
    train_basis: torch.Tensor
    test_basis: torch.Tensor | None
    weight_basis: torch.Tensor


def gram(X: torch.Tensor) -> torch.Tensor:
    """Return the linear kernel of the centred rows of `X` in float64, shape (n_samples, n_samples).

    Summed in float64, a block of features at a time: small penalties divide by the smallest
    eigenvalues, and float32 sums would already have lost those.
    """
    kernel = torch.zeros(len(X), len(X), dtype=torch.float64, device=X.device)
    for block in X.split(N_FEATURES_BLOCK, dim=1):
        centred = block.double()
        centred = centred - centred.mean(0)
        kernel.addmm_(centred, centred.T)
    return kernel


def dual_spectrum(
    kernel: torch.Tensor, train: torch.Tensor, test: torch.Tensor | None, dtype: torch.dtype
) -> Spectrum:
    """Return the spectrum of the rows `train` of a kernel, centred on just these rows."""
    inner = kernel[train][:, train]
    column_mean = inner.mean(0)
    grand_mean = column_mean.mean()
    centred = inner - column_mean - column_mean[:, None] + grand_mean
    eigenvalues, vectors = torch.linalg.eigh(centred)
    basis = (vectors - vectors.mean(0)).to(dtype)
    test_basis = None
    if test is not None:
        outer = kernel[test][:, train]
        outer = outer - outer.mean(1, keepdim=True) - column_mean + grand_mean
        test_basis = (outer @ vectors).to(dtype)
    return Spectrum(eigenvalues.clamp_min(0), basis, test_basis, basis)


def with_primal_weights(spectrum: Spectrum, X: torch.Tensor) -> Spectrum:
    """Return a dual spectrum of all rows `X` whose coefficients are those of the features.

    The sum over samples is done once, in float64, before dividing by small eigenvalues; dual
    coefficients would divide first and leave the cancellation to every prediction.
    """
    centred = X.double() - X.double().mean(0)
    weight_basis = (centred.T @ spectrum.weight_basis.double()).to(X.dtype)
    return spectrum._replace(weight_basis=weight_basis)


def primal_spectrum(
    X: torch.Tensor, train: torch.Tensor, test: torch.Tensor | None, dtype: torch.dtype
) -> Spectrum:
    """Return the spectrum of the rows `train` of the feature covariance."""
    mean = X[train].double().mean(0)
    centred = X[train].double() - mean
    eigenvalues, vectors = torch.linalg.eigh(centred.T @ centred)
    test_basis = None if test is None else ((X[test].double() - mean) @ vectors).to(dtype)
    return Spectrum(
        eigenvalues.clamp_min(0), (centred @ vectors).to(dtype), test_basis, vectors.to(dtype)
    )


def cv_scores(
    spectrum: Spectrum,
    Y_train: torch.Tensor,
    Y_test: torch.Tensor,
    alphas: torch.Tensor,
    scoring: str,
) -> torch.Tensor:
    """Return the score of every alpha on held-out rows.

    Parameters
    ----------
    spectrum : Spectrum
        With a test basis.
    Y_train, Y_test : torch.Tensor, shape (n_train | n_test, n_targets)
        Not centred.
    alphas : torch.Tensor, shape (n_alphas,), float64
    scoring : {"r2", "r"}

    Returns
    -------
    torch.Tensor, shape (n_alphas, n_targets)
    """
    if spectrum.test_basis is None:
        raise ValueError("cv_scores needs a spectrum with a test basis.")
    mean = Y_train.mean(0)
    projected = spectrum.train_basis.T @ (Y_train - mean)
    observed = Y_test - mean
    scores = torch.empty(len(alphas), Y_train.shape[1], dtype=Y_train.dtype, device=Y_train.device)
    for index, alpha in enumerate(alphas):
        gain = (1 / (spectrum.eigenvalues + alpha)).to(projected.dtype)
        predicted = (spectrum.test_basis * gain) @ projected
        scores[index] = SCORERS[scoring](predicted, observed)
    return scores


def coefficients(
    spectrum: Spectrum, Y_centred: torch.Tensor, alpha_per_target: torch.Tensor
) -> torch.Tensor:
    """Return dual (n_train, n_targets) or primal (n_features, n_targets) coefficients."""
    projected = spectrum.train_basis.T @ Y_centred
    gain = 1 / (spectrum.eigenvalues[:, None] + alpha_per_target[None])
    return spectrum.weight_basis @ (projected * gain.to(projected.dtype))


def best_alpha(scores: torch.Tensor) -> torch.Tensor:
    """Return the index of the best alpha per target from scores (n_folds, n_alphas, n_targets).

    Folds in which a target is constant have no score and are left out; a target without any
    takes the largest alpha, which predicts its mean.
    """
    mean = scores.nanmean(0)
    undefined = mean.isnan().all(0)
    best = mean.nan_to_num(-torch.inf).argmax(0)
    return torch.where(undefined, len(mean) - 1, best)
