"""Exact ridge regression by one eigendecomposition per training set: pure functions of tensors.

With rows X (n_samples, n_features) and targets Y (n_samples, n_targets), both centred over the
training rows, the prediction at penalty alpha is ``T diag(1 / (e + alpha)) B' Y``. Where there are
fewer samples than features, e and Q are the eigensystem of the kernel X X' and
``B = Q, T = K_test Q`` (dual); otherwise e and V are that of X' X and
``B = X V, T = X_test V`` (primal). Decompositions run in float64, products with the targets in
the dtype of the data.

All penalties share one product with the targets. As functions of the eigenvalue, the filters
``1 / (e + alpha)`` of any number of penalties are combinations of about a dozen; `held_out` finds
these by a singular value decomposition weighted by what reaches the predictions, and
`HeldOut.scores` mixes their predictions into the score of every penalty.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

N_FEATURES_BLOCK = 4096
SCORINGS = ("r2", "r")
# Filters whose share of any prediction is smaller are left out.
FILTER_TOLERANCE = 1e-6
ROUGH_TOLERANCE = 1e-3


class Spectrum(NamedTuple):
    """The eigensystem of one training set, with the bases that predictions are made of: float64.

    eigenvalues : (rank,)
    train_basis : (n_train, rank), maps targets to the eigenbasis; its columns sum to 0
    test_basis : (n_test, rank), maps the filtered targets to predictions, or None
    weight_basis : (n_train | n_features, rank), maps them to dual or primal coefficients
    """

    eigenvalues: torch.Tensor
    train_basis: torch.Tensor
    test_basis: torch.Tensor | None
    weight_basis: torch.Tensor


def moments(X: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of each feature over some rows, (n_features,) each."""
    means, deviations = [], []
    for block in X.split(N_FEATURES_BLOCK, dim=1):
        own = block.index_select(0, rows)
        means.append(own.mean(0))
        deviations.append((own - means[-1]).square().mean(0).sqrt())
    return torch.cat(means), torch.cat(deviations)


def gram(
    X: torch.Tensor, offset: torch.Tensor, scale: torch.Tensor, smallest_alpha: float = 0.0
) -> torch.Tensor:
    """Return the linear kernel of the rows of (X - offset) / scale, (n_samples, n_samples).

    In float64, summed a block of features at a time. Small penalties divide by the smallest
    eigenvalues, which float32 products would have lost: they are used only where their rounding
    error is far below `smallest_alpha`.

    Parameters
    ----------
    X : torch.Tensor, shape (n_samples, n_features)
    offset, scale : torch.Tensor, shape (n_features,)
        Centres each feature, at least about.
    smallest_alpha : float
        The smallest penalty that will be added to the kernel.
    """
    kernel = torch.zeros(len(X), len(X), dtype=torch.float64, device=X.device)
    parts = (part.split(N_FEATURES_BLOCK, dim=-1) for part in (X, offset, scale))
    for block, middle, unit in zip(*parts, strict=True):
        rows = (block - middle) / unit
        if X.dtype == torch.float32 and _product_error(rows, X.shape[1]) < 1e-3 * smallest_alpha:
            kernel += rows @ rows.T
        else:
            rows = rows.double()
            kernel.addmm_(rows, rows.T)
    return kernel


def _product_error(rows: torch.Tensor, n_features: int) -> float:
    """Return about how far a float32 kernel's eigenvalues are off: a random matrix's norm."""
    rounding = torch.finfo(torch.float32).eps * float(rows.square().mean())
    return 2 * rounding * (n_features * len(rows)) ** 0.5


def dual_spectrum(kernel: torch.Tensor, train: torch.Tensor, test: torch.Tensor | None) -> Spectrum:
    """Return the spectrum of the rows `train` of a kernel, centred on just these rows."""
    inner = kernel[train][:, train]
    column_mean = inner.mean(0)
    grand_mean = column_mean.mean()
    centred = inner - column_mean - column_mean[:, None] + grand_mean
    eigenvalues, vectors = torch.linalg.eigh(centred)
    basis = vectors - vectors.mean(0)
    test_basis = None
    if test is not None:
        outer = kernel[test][:, train]
        outer = outer - outer.mean(1, keepdim=True) - column_mean + grand_mean
        test_basis = outer @ vectors
    return Spectrum(eigenvalues.clamp_min(0), basis, test_basis, basis)


def with_primal_weights(spectrum: Spectrum, X: torch.Tensor) -> Spectrum:
    """Return a dual spectrum of all rows `X` whose coefficients are those of the features.

    The sum over samples is done once, in float64, before dividing by small eigenvalues; dual
    coefficients would divide first and leave the cancellation to every prediction.
    """
    centred = X.double() - X.double().mean(0)
    return spectrum._replace(weight_basis=centred.T @ spectrum.weight_basis)


def primal_spectrum(X: torch.Tensor, train: torch.Tensor, test: torch.Tensor | None) -> Spectrum:
    """Return the spectrum of the rows `train` of the feature covariance."""
    rows = X[train].double()
    mean = rows.mean(0)
    rows -= mean
    eigenvalues, vectors = torch.linalg.eigh(rows.T @ rows)
    test_basis = None if test is None else (X[test].double() - mean) @ vectors
    return Spectrum(eigenvalues.clamp_min(0), rows @ vectors, test_basis, vectors)


class HeldOut(NamedTuple):
    """The predictions of held-out rows at all penalties: a few basis predictions, and their mixing.

    project : (n_train, k) or None, maps targets of training rows to k numbers (None: k = n_train)
    basis : (k, rank * q), maps these to `rank` basis predictions of q numbers each
    mixing : (n_alphas, rank), how the predictions of each penalty are made of them
    reduce : (n_test, q) or None, rotates held-out targets to the q numbers (None: q = n_test)
    scoring : "r2" or "r"
    """

    project: torch.Tensor | None
    basis: torch.Tensor
    mixing: torch.Tensor
    reduce: torch.Tensor | None
    scoring: str

    @property
    def n_bytes(self) -> int:
        """The memory that it takes."""
        parts = (self.project, self.basis, self.reduce)
        return sum(part.nbytes for part in parts if part is not None)

    def rough(self) -> HeldOut:
        """Return the same with fewer basis predictions and a basis in bfloat16, to screen with."""
        n_alphas, rank = self.mixing.shape
        strength = torch.linalg.vector_norm(self.mixing, dim=0)
        kept = int((strength > ROUGH_TOLERANCE * strength[0]).sum()) or 1
        basis = self.basis.view(len(self.basis), rank, -1)[:, :kept].flatten(1)
        return self._replace(basis=basis.bfloat16(), mixing=self.mixing[:, :kept].contiguous())

    def maps(self) -> torch.Tensor:
        """Return the map from training to predicted targets of each penalty (n_alphas, k, q)."""
        k, rank = len(self.basis), self.mixing.shape[1]
        return torch.einsum("krq,ar->akq", self.basis.view(k, rank, -1), self.mixing)

    def scores(self, train: torch.Tensor, test: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
        """Return the score of every penalty.

        Parameters
        ----------
        train, test : torch.Tensor, shape (n_targets, n_train | n_test)
            Targets, about centred.
        floor : torch.Tensor, shape (n_targets,)
            Targets that deviate less from their mean over `test` are constant: they have no score.

        Returns
        -------
        torch.Tensor, shape (n_alphas, n_targets)
        """
        return self._score(*self.products(train, test), train, test, floor)

    def products(
        self, train: torch.Tensor, test: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return predictions times held-out targets, and times themselves (n_alphas, n_targets)."""
        rank = self.mixing.shape[1]
        inside = train if self.project is None else train @ self.project
        basis = (inside.to(self.basis.dtype) @ self.basis).to(train.dtype)
        basis = basis.view(len(train), rank, -1)
        seen = self._seen(train, test)
        cross = self.mixing @ (basis @ seen[:, :, None])[:, :, 0].T
        pairs = (self.mixing[:, :, None] * self.mixing[:, None, :]).flatten(1)
        return cross, pairs @ (basis @ basis.mT).flatten(1).T

    def rough_scores(
        self, train: torch.Tensor, test: torch.Tensor, floor: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores, and what their error is in proportion to (n_alphas, n_targets).

        An error of the predictions is in proportion to them. It moves r2 by its products with the
        residuals and with itself, and r independently of their size.
        """
        cross, squares = self.products(train, test)
        scores = self._score(cross, squares, train, test, floor)
        if self.scoring == "r":
            return scores, torch.ones_like(scores)
        variance = (test - test.mean(1, keepdim=True)).square().sum(1)
        size = (squares.clamp_min(0) / variance).sqrt()
        return scores, size * (1 + size)

    def scores_of(
        self,
        predicted: torch.Tensor,
        train: torch.Tensor,
        test: torch.Tensor,
        floor: torch.Tensor,
    ) -> torch.Tensor:
        """Return the score (n_targets,) of predictions (n_targets, q) made by one of `maps`."""
        cross = (predicted * self._seen(train, test)).sum(1)
        return self._score(cross, predicted.square().sum(1), train, test, floor)

    def _seen(self, train: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
        """Return the held-out targets as the predictions stand for them, (n_targets, q)."""
        offset = test - train.mean(1, keepdim=True)
        return offset if self.reduce is None else offset @ self.reduce

    def _score(
        self,
        cross: torch.Tensor,
        squares: torch.Tensor,
        train: torch.Tensor,
        test: torch.Tensor,
        floor: torch.Tensor,
    ) -> torch.Tensor:
        """Return scores from the products of predictions with targets and with themselves."""
        centred = test - test.mean(1, keepdim=True)
        variance = centred.square().sum(1)
        if self.scoring == "r":
            scores = cross / (squares * variance).sqrt()
            scores = scores.clamp(-1, 1).where(squares > 0, torch.nan)
        else:
            total = (test - train.mean(1, keepdim=True)).square().sum(1)
            scores = 1 - (total - 2 * cross + squares) / variance
        return scores.where(centred.abs().amax(1) > floor, torch.nan)


def held_out(
    spectrum: Spectrum,
    alphas: torch.Tensor,
    scoring: str,
    dtype: torch.dtype,
    *,
    compose: bool = False,
) -> HeldOut:
    """Return the predictions of the test rows of a spectrum at all penalties.

    Parameters
    ----------
    spectrum : Spectrum
        With a test basis.
    alphas : torch.Tensor, shape (n_alphas,), float64
    scoring : {"r2", "r"}
        For "r" predictions are centred over the test rows, which it does not depend on.
    dtype : torch.dtype
        Of the targets.
    compose : bool
        Predict the test rows themselves, straight from the training rows' targets.
    """
    if spectrum.test_basis is None:
        raise ValueError("held_out needs a spectrum with a test basis.")
    test_basis, reduce = spectrum.test_basis, None
    if scoring == "r":
        test_basis = test_basis - test_basis.mean(0)
    if len(test_basis) > test_basis.shape[1] and not compose:
        reduce, test_basis = torch.linalg.qr(test_basis)
    reach = torch.linalg.vector_norm(test_basis, dim=0)
    reach = reach * torch.linalg.vector_norm(spectrum.train_basis, dim=0)
    filters = reach / (spectrum.eigenvalues + alphas[:, None])
    size = torch.linalg.vector_norm(filters, dim=1, keepdim=True).clamp_min(1e-300)
    left, strength, right = torch.linalg.svd(filters / size, full_matrices=False)
    kept = int((strength > FILTER_TOLERANCE * strength[0]).sum()) or 1
    mixing = size * left[:, :kept] * strength[:kept]
    shapes = torch.where(reach > 0, right[:kept] / reach, 0.0)
    basis = (shapes[:, None, :] * test_basis).flatten(0, 1)
    n_train, width = spectrum.train_basis.shape
    project: torch.Tensor | None = spectrum.train_basis.to(dtype)
    if compose or n_train * len(basis) <= n_train * width + width * len(basis):
        basis, project = basis.to(dtype) @ spectrum.train_basis.T.to(dtype), None
    return HeldOut(
        project,
        basis.to(dtype).T.contiguous(),
        mixing.to(dtype),
        None if reduce is None else reduce.to(dtype),
        scoring,
    )


def filtered(
    spectrum: Spectrum, train: torch.Tensor, alpha_per_target: torch.Tensor
) -> torch.Tensor:
    """Return targets in the eigenbasis, each divided by eigenvalue plus penalty.

    Parameters
    ----------
    spectrum : Spectrum
    train : torch.Tensor, shape (n_targets, n_train)
        Targets of the training rows, about centred.
    alpha_per_target : torch.Tensor, shape (n_targets,), float64

    Returns
    -------
    torch.Tensor, shape (n_targets, rank)
    """
    inside = train @ spectrum.train_basis.to(train.dtype)
    gain = 1 / (spectrum.eigenvalues + alpha_per_target[:, None])
    return inside * gain.to(train.dtype)


def best_alpha(mean_scores: torch.Tensor) -> torch.Tensor:
    """Return the index of the best penalty per target from mean scores (n_alphas, n_targets).

    A target without any score takes the largest penalty, which predicts its mean.
    """
    undefined = mean_scores.isnan().all(0)
    best = mean_scores.nan_to_num(-torch.inf).argmax(0)
    return torch.where(undefined, len(mean_scores) - 1, best)
