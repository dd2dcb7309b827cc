"""The components of partial least squares, in the eigenbasis of a kernel: pure functions.

With the kernel K = U diag(e) U' of centred rows, a component is a unit vector t of the rows, and
it lies in the span of U. Partial least squares takes ``t ~ P K M P t`` (the leading eigenvector),
where P projects off the components before and M = Y Y' holds the inner products of rows over
targets; for a single target y that is ``t ~ P K P y``. The fit is the projection of targets on
the components.
"""

from __future__ import annotations

import torch

from neurodl.models._solvers import Spectrum

# A component shorter than this share of what it was made from is a rounding error.
EXHAUSTED = 1e-10
MAX_STEPS = 200  # of a Krylov space, before it starts anew
MAX_STARTS = 20
CONVERGED = 1e-12
CHECK_EVERY = 4


def joint_components(spectrum: Spectrum, products: torch.Tensor, n_components: int) -> torch.Tensor:
    """Return the components that are common to all targets, in the eigenbasis.

    Parameters
    ----------
    spectrum : Spectrum
        Of the training rows, without zero eigenvalues.
    products : torch.Tensor, shape (n_train, n_train), float64
        The inner products of rows over targets; they need not be centred.
    n_components : int

    Returns
    -------
    torch.Tensor, shape (rank, n_components), float64
        Orthonormal; 0 from where on nothing is left to explain.

    References
    ----------
    Lindgren, Geladi & Wold (1993), The kernel algorithm for PLS, J. Chemometrics 7.
    """
    eigenvalues, basis, _ = spectrum
    root = eigenvalues.sqrt()
    left = basis.T @ products @ basis
    found = left.new_zeros(n_components, len(eigenvalues))
    first = 0.0
    for row in range(min(n_components, len(eigenvalues))):
        size, weights = leading_vector(root[:, None] * left * root)
        first = first or size
        if size <= EXHAUSTED**2 * first:
            break
        score = root * weights
        length = torch.linalg.vector_norm(score)
        for _ in range(2):  # once leaves rounding errors along earlier components
            score = score - (found @ score) @ found
        if torch.linalg.vector_norm(score) <= EXHAUSTED * length:
            break
        found[row] = score / torch.linalg.vector_norm(score)
        left = _projected_off(left, found[row])
    return found.T


def _projected_off(matrix: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Return a symmetric matrix without its part along a unit vector, on both sides."""
    along = matrix @ unit
    half = along - 0.5 * (unit @ along) * unit
    return matrix - torch.outer(half, unit) - torch.outer(unit, half)


def leading_vector(matrix: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Return the largest eigenvalue of a positive semidefinite matrix (k, k) and its vector.

    A Krylov space grows from a fixed random start until the vector is exact to about 1e-12 over
    the gap to the next eigenvalue.

    References
    ----------
    Saad (2011), Numerical methods for large eigenvalue problems, SIAM, chapter 6.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(matrix), dtype=torch.float64, generator=generator)
    vector, value = start.to(matrix.device), 0.0
    for _ in range(MAX_STARTS):
        value, vector, residual = _krylov_step(matrix, vector / torch.linalg.vector_norm(vector))
        if residual <= CONVERGED * value:
            break
    return value, vector


def _krylov_step(matrix: torch.Tensor, start: torch.Tensor) -> tuple[float, torch.Tensor, float]:
    """Return value, vector and residual of the best approximation in a Krylov space."""
    n_steps = min(len(matrix), MAX_STEPS)
    basis = matrix.new_zeros(n_steps + 1, len(matrix))
    small = torch.zeros(n_steps, n_steps, dtype=matrix.dtype)
    basis[0] = start
    for step in range(n_steps):
        image = matrix @ basis[step]
        known = basis[: step + 1]
        along = known @ image
        image = image - along @ known
        image = image - (known @ image) @ known
        small[: step + 1, step] = along.cpu()
        length = float(torch.linalg.vector_norm(image))
        ended = step == n_steps - 1 or length <= CONVERGED * float(small.diagonal().amax())
        if ended or step % CHECK_EVERY == CHECK_EVERY - 1:
            values, vectors = torch.linalg.eigh(small[: step + 1, : step + 1], UPLO="U")
            value, weights = float(values[-1]), vectors[:, -1]
            residual = 0.0 if length == 0 else length * abs(float(weights[-1]))
            if ended or residual <= CONVERGED * value:
                break
        basis[step + 1] = image / length
    return value, weights.to(matrix.device) @ known, residual


def own_components(
    eigenvalues: torch.Tensor, inside: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """Return the coefficients of targets with components of their own, for some counts of these.

    All targets at once: their Krylov spaces of the kernel, made orthonormal step by step.

    Parameters
    ----------
    eigenvalues : torch.Tensor, shape (rank,), float64
        Of the kernel, none zero.
    inside : torch.Tensor, shape (n_targets, rank), float64
        The targets in the eigenbasis.
    counts : torch.Tensor, shape (1 or n_targets, n_counts)
        Numbers of components.

    Returns
    -------
    torch.Tensor, shape (n_targets, n_counts, rank), float64
        See `Coefficients`.

    References
    ----------
    Rosipal & Trejo (2001), Kernel partial least squares regression in reproducing kernel Hilbert
    space, JMLR 2.
    """
    n_components = int(counts.max())
    found = inside.new_zeros(len(inside), n_components, len(eigenvalues))
    fits = torch.zeros_like(found)
    rest = inside.clone()
    fitted = torch.zeros_like(inside)
    size = torch.linalg.vector_norm(inside, dim=1)
    for row in range(n_components):
        score = eigenvalues * rest
        length = torch.linalg.vector_norm(score, dim=1)
        # all that it has along components before the last are rounding errors
        for known in (found[:, max(row - 1, 0) : row], found[:, :row]):
            score = score - ((known @ score[:, :, None]).mT @ known)[:, 0]
        own_length = torch.linalg.vector_norm(score, dim=1)
        left = torch.linalg.vector_norm(rest, dim=1) > EXHAUSTED * size
        goes_on = left & (own_length > EXHAUSTED * length)
        found[:, row] = score * torch.where(goes_on, 1 / own_length, 0.0)[:, None]
        step = torch.linalg.vecdot(found[:, row], rest)[:, None] * found[:, row]
        rest -= step
        fitted += step
        fits[:, row] = fitted
    place = (counts.long() - 1).expand(len(inside), -1)
    chosen = fits.gather(1, place[:, :, None].expand(-1, -1, len(eigenvalues)))
    return chosen / eigenvalues
