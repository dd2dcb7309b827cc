"""Banded ridge of each target on few directions of each band: where its penalties are searched.

The weights of a target in band b are ``d_b X_b' c``, and c changes slowly with the gains d. From a
few c, of one decomposition that all targets share, come a few directions in each band; banded ridge
on the features along these is nearly that on all features, and costs next to nothing. Hundreds of
gains are so tried for each target, with their derivatives. The best are then solved exactly, and
their c becomes one direction more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

N_STEPS = 30
FIRST_STEP, LARGEST_STEP = 0.5, 2.0  # in the logarithm of a gain
DEPENDENT = 1e-6  # directions with less than this share of the longest's square are left out


class Reduced(NamedTuple):
    """The regressions of some targets on their own few features, in some splits.

    ``k = n_bands * n_directions``; all float64.

    inner : (n_splits, n_targets, k, k), products of the training rows' features
    seen : (n_splits, n_targets, k), their products with the targets
    outer : (n_splits, n_targets, k, k), products of the held-out rows' features
    held : (n_splits, n_targets, k), their products with the targets
    total, variance : (n_splits, n_targets), sums of squares of the held-out targets
    scored : (n_splits, n_targets), whether the held-out targets vary
    """

    inner: torch.Tensor
    seen: torch.Tensor
    outer: torch.Tensor
    held: torch.Tensor
    total: torch.Tensor
    variance: torch.Tensor
    scored: torch.Tensor


def reduce_split(
    kernels: torch.Tensor,
    cross: torch.Tensor,
    inside: torch.Tensor,
    outside: torch.Tensor,
    vectors: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return inner, seen, outer and held of `Reduced` in one split.

    Parameters
    ----------
    kernels : torch.Tensor, shape (n_bands, n_train, n_train)
    cross : torch.Tensor, shape (n_bands, n_held, n_train)
    inside, outside : torch.Tensor, shape (n_targets, n_train) and (n_targets, n_held)
    vectors : torch.Tensor, shape (n_targets, n_directions, n_train)
        Some c of each target.
    """
    n_targets, n_directions, n_train = vectors.shape
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=2, keepdim=True).clamp_min(1e-30)
    flat = vectors.flatten(0, 1)
    features, held_features = [], []
    for kernel, other in zip(kernels, cross, strict=True):
        image = (flat @ kernel).view(n_targets, n_directions, n_train)
        lengths = (image @ vectors.mT).double()
        unit = _orthonormal(0.5 * (lengths + lengths.mT)).to(image.dtype)
        features.append(unit @ image)
        held_features.append(unit @ (flat @ other.T).view(n_targets, n_directions, -1))
    own, held = torch.cat(features, 1), torch.cat(held_features, 1)
    return (
        (own @ own.mT).double(),
        (own @ inside[:, :, None])[:, :, 0].double(),
        (held @ held.mT).double(),
        (held @ outside[:, :, None])[:, :, 0].double(),
    )


def _orthonormal(lengths: torch.Tensor) -> torch.Tensor:
    """Return what makes directions with these inner products (..., m, m) orthonormal."""
    values, vectors = torch.linalg.eigh(lengths)
    largest = values[..., -1:].clamp_min(1e-300)
    scale = torch.where(values > DEPENDENT * largest, values, torch.inf).rsqrt()
    return scale[..., None] * vectors.mT


def reduced_scores(
    model: Reduced, log_gains: torch.Tensor, scoring: str, *, slope: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean scores (n_targets,) over splits, and their derivatives (n_targets, n_bands).

    Parameters
    ----------
    model : Reduced
    log_gains : torch.Tensor, shape (n_targets, n_bands), float64
    scoring : {"r2", "r"}
    slope : bool
        Whether derivatives are wanted; else they are 0.
    """
    n_bands = log_gains.shape[1]
    n_directions = model.seen.shape[2] // n_bands
    root = (log_gains / 2).exp().repeat_interleave(n_directions, 1)
    system = model.inner * root[:, :, None] * root[:, None, :]
    system.diagonal(dim1=-2, dim2=-1).add_(1.0)
    lower = torch.linalg.cholesky(system)
    scaled = _solved(lower, root * model.seen)
    weights = root * scaled
    image = (model.outer @ weights[..., None])[..., 0]
    cross = (model.held * weights).sum(-1)
    squares = (image * weights).sum(-1)
    counted = model.scored.sum(0).clamp_min(1)
    if scoring == "r":
        size = (squares * model.variance).sqrt().clamp_min(1e-300)
        scores = cross / size
        push = (model.held - (cross / squares.clamp_min(1e-300))[..., None] * image) / size[
            ..., None
        ]
    else:
        scores = 1 - (model.total - 2 * cross + squares) / model.variance
        push = 2 * (model.held - image) / model.variance[..., None]
    mean = torch.where(model.scored, scores, 0.0).sum(0) / counted
    if not slope:
        return mean, torch.zeros_like(log_gains)
    moved = _solved(lower, root * push) * scaled
    moved = moved.unflatten(-1, (n_bands, n_directions)).sum(-1)
    return mean, torch.where(model.scored[..., None], moved, 0.0).sum(0) / counted[:, None]


def _solved(lower: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.cholesky_solve(values[..., None], lower)[..., 0]


def search(
    model: Reduced,
    starts: list[torch.Tensor],
    bounds: tuple[torch.Tensor, torch.Tensor],
    scoring: str,
) -> torch.Tensor:
    """Return the gains with the best mean score of each target, as logarithms.

    The best of the starts is improved along the signs of the derivatives, with a step size for
    each band and target that grows while the sign stays and halves when it turns.

    Parameters
    ----------
    model : Reduced
    starts : list of torch.Tensor, shape (n_targets, n_bands), float64
    bounds : (lowest, highest), torch.Tensor, shape (n_targets, 1)
        Of the logarithms.
    scoring : {"r2", "r"}

    References
    ----------
    Riedmiller & Braun (1993), A direct adaptive method for faster backpropagation learning: the
    RPROP algorithm, IEEE ICNN.
    """
    best, place = None, starts[0]
    for start in starts:
        found, _ = reduced_scores(model, start, scoring, slope=False)
        if best is None:
            best = found
            continue
        better = found > best
        best = torch.where(better, found, best)
        place = torch.where(better[:, None], start, place)
    assert best is not None
    kept = place
    step = torch.full_like(place, FIRST_STEP)
    last = torch.zeros_like(place)
    for _ in range(N_STEPS):
        found, slope = reduced_scores(model, place, scoring)
        better = found > best
        best = torch.where(better, found, best)
        kept = torch.where(better[:, None], place, kept)
        turned = slope * last
        step = torch.where(turned > 0, (1.2 * step).clamp_max(LARGEST_STEP), step)
        step = torch.where(turned < 0, 0.5 * step, step)
        last = torch.where(turned < 0, 0.0, slope)
        place = (place + last.sign() * step).clamp(*bounds)
    return kept
