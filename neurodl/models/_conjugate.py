"""Ridge solutions with a penalty per band and target, by conjugate gradients for all at once.

Every target has a system of its own, ``(sum_b d_b K_b + I) c = y``. Its product with c is a matrix
product per band for all targets together, and the eigensystem of a similar mixture of the
kernels, shared by many targets, makes the steps few.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from neurodl.models._solvers import eigh

N_ITERATIONS = 25
N_REFINEMENTS = 8
MIN_REFERENCES, MAX_REFERENCES = 4, 40
NEGLIGIBLE = -4.0  # logarithm of a gain that hardly changes anything, kernels being of mean 1
LOCAL_TOLERANCE = 1e-3  # of the correction in each refinement


class References(NamedTuple):
    """A few mixtures of kernels, decomposed, and the one that is next to each target.

    spectra : list of (eigenvalues (k,), vectors (k, k))
    nearest : (n_targets,)
    """

    spectra: list[tuple[torch.Tensor, torch.Tensor]]
    nearest: torch.Tensor


def references(
    kernels: torch.Tensor, log_gains: torch.Tensor, n_most: int | None = None
) -> References:
    """Return mixtures of which each target is close to one: the farthest target is the next.

    Parameters
    ----------
    kernels : torch.Tensor, shape (n_bands, k, k)
    log_gains : torch.Tensor, shape (n_targets, n_bands)
        Logarithms of the gains d.
    n_most : int, optional
        How many there may be; by default the more, the more targets share the work of each.

    References
    ----------
    Gonzalez (1985), Clustering to minimize the maximum intercluster distance, Theor. Comput. Sci.
    """
    if n_most is None:
        n_most = min(MAX_REFERENCES, MIN_REFERENCES + 4 * len(log_gains) // max(len(kernels[0]), 1))
    places = log_gains.clamp_min(NEGLIGIBLE)
    centre = places.median(0).values
    distance = (places - centre).abs().amax(1)
    nearest = torch.zeros(len(places), dtype=torch.long, device=places.device)
    centres = [centre]
    while len(centres) < n_most and float(distance.max()) > 0.5:
        centres.append(places[distance.argmax()])
        other = (places - centres[-1]).abs().amax(1)
        closer = other < distance
        nearest[closer] = len(centres) - 1
        distance = torch.where(closer, other, distance)
    spectra = []
    for one in centres:
        mixture = torch.einsum("b,bij->ij", one.exp().to(kernels.dtype), kernels)
        eigenvalues, vectors = eigh(mixture)
        spectra.append((eigenvalues.clamp_min(0), vectors))
    return References(spectra, nearest)


def solve(
    kernels: torch.Tensor,
    values: torch.Tensor,
    gains: torch.Tensor,
    near: References,
    tolerance: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return c (n_targets, k), and whether its residual is below `tolerance` of the target.

    Parameters
    ----------
    kernels : torch.Tensor, shape (n_bands, k, k)
    values : torch.Tensor, shape (n_targets, k)
    gains : torch.Tensor, shape (n_targets, n_bands)
    near : References
    tolerance : float

    References
    ----------
    Hestenes & Stiefel (1952), Methods of conjugate gradients for solving linear systems, J. Res.
    Natl. Bur. Stand. 49.
    """
    goal = tolerance * torch.linalg.vector_norm(values, dim=1)
    solution = _precondition(values, near.nearest, near)
    rest = values - times(kernels, solution, gains)
    active = (~(torch.linalg.vector_norm(rest, dim=1) <= goal)).nonzero()[:, 0]
    rest, nearest = rest[active], near.nearest[active]
    direction = ahead = _precondition(rest, nearest, near)
    product = torch.linalg.vecdot(rest, ahead)
    for _ in range(N_ITERATIONS):
        if not len(active):
            break
        image = times(kernels, direction, gains[active])
        step = (product / torch.linalg.vecdot(direction, image))[:, None]
        solution.index_add_(0, active, step * direction)
        rest = rest - step * image
        going = ~(torch.linalg.vector_norm(rest, dim=1) <= goal[active])  # NaN goes on, flagged
        if not going.all():
            kept = going.nonzero()[:, 0]
            active, nearest = active[kept], nearest[kept]
            rest, direction, product = rest[kept], direction[kept], product[kept]
        ahead = _precondition(rest, nearest, near)
        before, product = product, torch.linalg.vecdot(rest, ahead)
        direction = ahead + (product / before)[:, None] * direction
    reached = torch.ones(len(values), dtype=torch.bool, device=values.device)
    reached[active] = False
    return solution, reached


def solve_exactly(
    kernels: torch.Tensor,
    values: torch.Tensor,
    gains: torch.Tensor,
    near: References,
    tolerance: float,
) -> torch.Tensor:
    """Return what `solve` does, in float64, from corrections in the precision of `near`.

    Targets whose corrections do not come to an end, as with gains too large for float32, are solved
    one by one.

    References
    ----------
    Moler (1967), Iterative refinement in floating point, J. ACM 14.
    """
    dtype = near.spectra[0][0].dtype
    low, low_gains = kernels.to(dtype), gains.to(dtype)
    goal = tolerance * torch.linalg.vector_norm(values, dim=1)
    solution = torch.zeros_like(values)
    rest, active = values, torch.arange(len(values), device=values.device)
    for _ in range(N_REFINEMENTS):
        some = References(near.spectra, near.nearest[active])
        step, _ = solve(low, rest.to(dtype), low_gains[active], some, LOCAL_TOLERANCE)
        solution.index_add_(0, active, step.to(values.dtype))
        rest = values[active] - times(kernels, solution[active], gains[active])
        going = ~(torch.linalg.vector_norm(rest, dim=1) <= goal[active])
        active, rest = active[going], rest[going]
        if not len(active):
            break
    for target in active.tolist():
        solution[target] = _directly(kernels, values[target], gains[target])
    return solution


def _directly(kernels: torch.Tensor, values: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """Return the solution of one target, (k,), by a decomposition of its own."""
    system = torch.einsum("b,bij->ij", gains, kernels)
    system.diagonal().add_(1.0)
    return torch.cholesky_solve(values[:, None], torch.linalg.cholesky(system))[:, 0]


def times(kernels: torch.Tensor, vectors: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """Return ``(sum_b d_b K_b + I)`` times the vector of each target, (n_targets, k)."""
    total = vectors.clone()
    for kernel, gain in zip(kernels, gains.T, strict=True):
        total.addcmul_(vectors @ kernel, gain[:, None])
    return total


def _precondition(vectors: torch.Tensor, nearest: torch.Tensor, near: References) -> torch.Tensor:
    """Return the solution that each target would have with its nearest mixture."""
    found = torch.empty_like(vectors)
    for number in nearest.unique().tolist():
        eigenvalues, basis = near.spectra[number]
        targets = (nearest == number).nonzero()[:, 0]
        inside = vectors.index_select(0, targets) @ basis
        found[targets] = (inside / (eigenvalues + 1)) @ basis.T
    return found
