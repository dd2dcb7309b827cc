"""Exact ridge regression by one eigendecomposition per training set: pure functions of tensors.

With rows X (n_samples, n_features) and targets Y (n_samples, n_targets), both centred over the
training rows, the prediction at penalty alpha is ``T diag(1 / (e + alpha)) B' Y``. Where there are
fewer samples than features, e and Q are the eigensystem of the kernel X X' and
``B = Q, T = K_test Q`` (dual); otherwise e and V are that of X' X and
``B = X V, T = X_test V`` (primal). Decompositions run in float64, products with the targets in
the dtype of the data.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import scipy.linalg
import torch
from threadpoolctl import ThreadpoolController

from neurodl.runtime import linear

BLOCK_ELEMENTS = 2**20  # of features that are copied at once
SCORINGS = ("r2", "r")
# How far interpolated predictions may be off, as a share of the largest they could be.
FILTER_TOLERANCE = 1e-7
ROUGH_TOLERANCE = 3e-3
# Eigenvalues below this share of the largest are rounding errors of zero.
RANK_TOLERANCE = 1e-12
# How far a float32 kernel may be off, as a share of the smallest penalty: it keeps r to 1e-5.
PRODUCT_ERROR = 1e-4
MOST_ROWS_ALONE = 1200  # that one thread decomposes as fast as two
N_BANDS, MIN_BAND = 4, 128  # of rows, by which half of a symmetric product is made


class Spectrum(NamedTuple):
    """The eigensystem of a centred training kernel: float64.

    eigenvalues : (rank,)
    train_basis : (n_train, rank), maps targets to the eigenbasis; its columns sum to 0
    test_basis : (n_test, rank), maps the filtered targets to predictions, or None
    """

    eigenvalues: torch.Tensor
    train_basis: torch.Tensor
    test_basis: torch.Tensor | None


def moments(X: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of each feature over some rows, (n_features,) each."""
    means, deviations = [], []
    for block in X.split(_n_columns(len(rows)), dim=1):
        own = block.index_select(0, rows)
        means.append(own.mean(0))
        deviations.append((own - means[-1]).square().mean(0).sqrt())
    return torch.cat(means), torch.cat(deviations)


def gram(
    X: torch.Tensor,
    offset: torch.Tensor,
    scale: torch.Tensor,
    smallest_alpha: float = 0.0,
    other: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the linear kernel of the rows of (X - offset) / scale, (n_samples, n_others).

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
    other : torch.Tensor, shape (n_others, n_features), optional
        Rows that make the columns of the kernel; by default those of `X`.
    """
    others = X if other is None else other
    kernel = torch.zeros(len(X), len(others), dtype=torch.float64, device=X.device)
    bands = _bands(len(X)) if other is None else [(slice(None), slice(None))]
    parts = (part.split(_n_columns(len(X)), dim=-1) for part in (X, others, offset, scale))
    for block, other_block, middle, unit in zip(*parts, strict=True):
        rows = (block - middle).div_(unit)
        columns = rows if other is None else (other_block - middle).div_(unit)
        tolerated = PRODUCT_ERROR * smallest_alpha
        if X.dtype == torch.float32 and _product_error(rows, X.shape[1]) < tolerated:
            for band, rest in bands:
                kernel[band, rest] += linear(rows[band], columns[rest])
        else:
            rows = (block.double() - middle).div_(unit)
            columns = rows if other is None else (other_block.double() - middle).div_(unit)
            for band, rest in bands:
                kernel[band, rest].addmm_(rows[band], columns[rest].T)
    if other is None:
        for band, _ in bands:
            kernel[band.stop :, band] = kernel[band, band.stop :].T
    return kernel


def _bands(n_rows: int) -> list[tuple[slice, slice]]:
    """Return rows and columns of the parts of a symmetric matrix that suffice to know it."""
    step = max(MIN_BAND, -(-n_rows // N_BANDS))
    return [(slice(start, start + step), slice(start, None)) for start in range(0, n_rows, step)]


def _n_columns(n_rows: int) -> int:
    return max(64, BLOCK_ELEMENTS // max(n_rows, 1))


def _product_error(rows: torch.Tensor, n_features: int) -> float:
    """Return about how far a float32 kernel's eigenvalues are off: a random matrix's norm."""
    rounding = torch.finfo(torch.float32).eps * float(rows.square().mean())
    return 2 * rounding * (n_features * len(rows)) ** 0.5


def centre_kernel_runs(kernel: torch.Tensor, run: torch.Tensor) -> torch.Tensor:
    """Return a kernel of rows from which the mean of their run is subtracted.

    Parameters
    ----------
    kernel : torch.Tensor, shape (n_samples, n_samples)
    run : torch.Tensor, shape (n_samples,)
        The number of each row's run.
    """
    member = torch.nn.functional.one_hot(run).to(kernel.dtype)
    mean = member / member.sum(0)
    kernel = kernel - member @ (mean.T @ kernel)
    return kernel - (kernel @ mean) @ member.T


def centred_kernels(
    kernel: torch.Tensor, train: torch.Tensor, test: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the kernel of the rows `train`, and of `test` with them, about the mean of `train`."""
    inner = kernel[train][:, train]
    column_mean = inner.mean(0)
    grand_mean = column_mean.mean()
    inner -= column_mean
    inner -= (column_mean - grand_mean)[:, None]
    outer = kernel[test][:, train]
    outer -= outer.mean(1, keepdim=True)
    outer -= column_mean - grand_mean
    return inner, outer


def eigh(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return eigenvalues, ascending, and eigenvectors of a symmetric matrix.

    A few hundred rows are decomposed by SciPy in this thread: torch's threads take as long where
    they spin while they wait, and two to three times as long where they wait passively.
    """
    if matrix.device.type != "cpu" or len(matrix) > MOST_ROWS_ALONE:
        return torch.linalg.eigh(matrix)
    with _blas().limit(limits=1, user_api="blas"):
        values, vectors = scipy.linalg.eigh(matrix.numpy().T, driver="evd", check_finite=False)
    return torch.from_numpy(values), torch.from_numpy(vectors)


@cache
def _blas() -> ThreadpoolController:
    """Return what sets the number of threads of the libraries that are loaded."""
    return ThreadpoolController()


def dual_spectrum(kernel: torch.Tensor, train: torch.Tensor, test: torch.Tensor | None) -> Spectrum:
    """Return the spectrum of the rows `train` of a kernel, centred on just these rows."""
    inner, outer = centred_kernels(kernel, train, train[:0] if test is None else test)
    eigenvalues, vectors = eigh(inner)
    del inner
    test_basis = None if test is None else outer @ vectors
    return Spectrum(eigenvalues.clamp_min(0), vectors - vectors.mean(0), test_basis)


def primal_spectrum(
    eigenvalues: torch.Tensor, train_rows: torch.Tensor, test_rows: torch.Tensor | None
) -> Spectrum:
    """Return the nonzero part of a kernel's spectrum from that of the features' covariance.

    Parameters
    ----------
    eigenvalues : torch.Tensor, shape (n_features,), float64
    train_rows : torch.Tensor, shape (n_train, n_features)
        About their mean, in the eigenbasis of their covariance.
    test_rows : torch.Tensor, shape (n_test, n_features), optional
        About the same mean, in the same basis.
    """
    some = _is_nonzero(eigenvalues)
    lengths = eigenvalues[some].sqrt()
    test_basis = None if test_rows is None else test_rows[:, some].double() * lengths
    return Spectrum(eigenvalues[some], train_rows[:, some].double() / lengths, test_basis)


def nonzero_part(spectrum: Spectrum) -> Spectrum:
    """Return a spectrum without the directions in which the training rows do not vary."""
    some = _is_nonzero(spectrum.eigenvalues)
    test_basis = None if spectrum.test_basis is None else spectrum.test_basis[:, some]
    return Spectrum(spectrum.eigenvalues[some], spectrum.train_basis[:, some], test_basis)


def _is_nonzero(eigenvalues: torch.Tensor) -> torch.Tensor:
    """Return which eigenvalues are more than rounding errors, (rank,)."""
    largest = eigenvalues.amax() if len(eigenvalues) else 0.0
    return eigenvalues > RANK_TOLERANCE * largest


class FilterBasis(NamedTuple):
    """A few of the penalties, and how the predictions of all are made of theirs.

    kept : (n_shapes,), the penalties that are kept
    mixing : (n_alphas, n_shapes), combines their predictions to those of every penalty
    fewer : (n_rough, n_shapes), combines them to even fewer predictions
    rough_mixing : (n_alphas, n_rough), combines these to those of every penalty, to about 1e-3
    """

    kept: torch.Tensor
    mixing: torch.Tensor
    fewer: torch.Tensor
    rough_mixing: torch.Tensor


def filter_basis(
    eigenvalues: torch.Tensor, reach: torch.Tensor, alphas: torch.Tensor
) -> FilterBasis:
    """Return the penalties from which the predictions of all can be interpolated.

    As functions of the eigenvalue e, the filters ``1 / (e + alpha)`` of any number of penalties
    are combinations of about a dozen of them. An interpolative decomposition (a pivoted QR)
    picks these; its coefficients stay small, so that rounding errors do. For rough predictions the
    leading singular vectors do, which are the fewest.

    Parameters
    ----------
    eigenvalues : torch.Tensor, shape (rank,)
    reach : torch.Tensor, shape (rank,)
        By how much each eigenvector can move predictions.
    alphas : torch.Tensor, shape (n_alphas,), float64

    References
    ----------
    Cheng et al. (2005), On the compression of low rank matrices, SIAM J. Sci. Comput. 26.
    """
    filters = reach / (eigenvalues + alphas[:, None])
    size = torch.linalg.vector_norm(filters, dim=1)
    if not float(size.amin()) > 0:  # features that do not vary predict nothing at any penalty
        only = torch.ones(len(alphas), 1, dtype=alphas.dtype, device=alphas.device)
        return FilterBasis(alphas[:1], only, only[:1], only)
    order, triangle = _pivoted(filters / size[:, None], FILTER_TOLERANCE)
    weight = torch.linalg.solve_triangular(triangle[:, order], triangle, upper=True).T
    mixing = weight * size[:, None] / size[order]
    _, values, vectors = torch.linalg.svd(triangle, full_matrices=False)
    left_out = (values[:, None] * vectors).square().flip(0).cumsum(0).flip(0).amax(1).sqrt()
    n_rough = max(1, int((left_out > ROUGH_TOLERANCE).sum()))
    values, vectors = values[:n_rough], vectors[:n_rough]
    fewer = vectors / values[:, None] @ weight / size[order]
    return FilterBasis(alphas[order], mixing, fewer, size[:, None] * (values[:, None] * vectors).T)


def _pivoted(rows: torch.Tensor, tolerance: float) -> tuple[list[int], torch.Tensor]:
    """Return which unit rows (n_rows, k) to combine to all, the most useful first.

    Returns
    -------
    order : list of int
    triangle : torch.Tensor, shape (n_kept, n_rows)
        The rows in an orthonormal basis of those in `order`.
    """
    rest = rows.clone()
    basis = rows.new_zeros(0, rows.shape[1])
    order: list[int] = []
    while len(order) < min(rows.shape):
        length = torch.linalg.vector_norm(rest, dim=1)
        chosen = int(length.argmax())
        if order and float(length[chosen]) <= tolerance:
            break
        order.append(chosen)
        direction = rest[chosen] - (rest[chosen] @ basis.T) @ basis
        basis = torch.cat([basis, (direction / torch.linalg.vector_norm(direction))[None]])
        rest = rest - (rest @ basis[-1])[:, None] * basis[-1]
    return order, basis @ rows.T


def quadratic_root(moment: torch.Tensor) -> torch.Tensor:
    """Return R (k, k) with ``||z R||^2 = z M z'`` for a positive semidefinite M (k, k), float64."""
    size = moment.diagonal().clamp_min(0).sqrt()
    unit = torch.where(size > 0, 1 / size, 0.0)
    correlation = moment * unit * unit[:, None]
    correlation.diagonal().fill_(1.0)
    jitter = 1e-14 * len(moment)
    while True:
        correlation.diagonal().add_(jitter)
        lower, failed = torch.linalg.cholesky_ex(correlation)
        if not int(failed):
            return size[:, None] * lower
        jitter *= 10


def gains(eigenvalues: torch.Tensor, alphas: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return ``1 / (e + alpha)`` for each of some penalties, (n_alphas, rank)."""
    return (1 / (eigenvalues + alphas[:, None])).to(dtype)


def best_alpha(mean_scores: torch.Tensor, simplest: int = -1) -> torch.Tensor:
    """Return the index of the best penalty per target from mean scores (n_alphas, n_targets).

    A target without any score takes the one at `simplest`: the largest penalty, unless the rows
    are something else.
    """
    undefined = mean_scores.isnan().all(0)
    best = mean_scores.nan_to_num(-torch.inf).argmax(0)
    return torch.where(undefined, simplest % len(mean_scores), best)
