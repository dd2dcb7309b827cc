"""Penalised Poisson regression of many targets at once, by Newton's method in a common basis.

Each step is solved by conjugate gradients, so that all targets share matrix products and none
needs a matrix of its own. The basis is the eigenbasis of the features' covariance, where the
curvature of a unit that fires at its mean rate is diagonal: that is the preconditioner.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from neurodl.models._design import Scaling

AT_ONCE = 4096  # rows or columns of features, in float64
MAX_STEPS = 100
MAX_INNER = 60
FIRST_CUT = 0.1  # of the squared residual, while far from the end
LARGEST = 80.0  # log rates beyond it overflow float32
ENOUGH = 1e-4  # of the decrease that a step promises
SMALLEST_STEP = 2.0**-30


class Basis(NamedTuple):
    """Features in the eigenbasis of the covariance of the training rows.

    scores : (n_samples, rank), of mean 0
    variances : (rank,)
    turn : (n_features, rank), from weights in the basis to those of the features
    """

    scores: torch.Tensor
    variances: torch.Tensor
    turn: torch.Tensor


class Solution(NamedTuple):
    """Weights and intercepts of some targets.

    weights : (rank, n_targets)
    intercepts : (n_targets,), the log rate at the mean of the features
    converged : (n_targets,)
    """

    weights: torch.Tensor
    intercepts: torch.Tensor
    converged: torch.Tensor

    def some(self, targets: torch.Tensor) -> Solution:
        """Return the weights and intercepts of some targets."""
        return Solution(self.weights[:, targets], self.intercepts[targets], self.converged[targets])

    def log_rate(self, scores: torch.Tensor) -> torch.Tensor:
        """Return log rates (n_samples, n_targets), none that would overflow."""
        return (scores @ self.weights + self.intercepts).clamp(max=LARGEST)


def make_basis(features: torch.Tensor, scaling: Scaling) -> Basis:
    """Return the eigenbasis of features (n_samples, n_features), once they are scaled.

    In float64, where the device has it: small directions of float32 would be lost in rounding.
    """
    n, p = features.shape
    dtype = features.dtype if features.device.type == "mps" else torch.float64
    offset, scale = scaling.offset.to(dtype), scaling.scale.to(dtype)
    wide, size = p > n, n if p > n else p
    product = features.new_zeros((size, size), dtype=dtype)
    for rows in torch.arange(p if wide else n, device=features.device).split(AT_ONCE):
        if wide:
            part = (features[:, rows].to(dtype) - offset[rows]) / scale[rows]
            product += part @ part.T
        else:
            part = (features[rows].to(dtype) - offset) / scale
            product += part.T @ part
    values, vectors = torch.linalg.eigh(product / n)
    kept = values > values[-1].clamp(min=0) * max(n, p) * torch.finfo(dtype).eps
    variances, vectors = values[kept].flip(0), vectors[:, kept].flip(1)
    if not wide:
        parts = [((part.to(dtype) - offset) / scale) @ vectors for part in features.split(AT_ONCE)]
        return Basis(torch.cat(parts), variances, vectors)
    root = (n * variances).sqrt()
    turned = [
        ((features[:, some].to(dtype) - offset[some]) / scale[some]).T @ (vectors / root)
        for some in torch.arange(p, device=features.device).split(AT_ONCE)
    ]
    return Basis(vectors * root, variances, torch.cat(turned))


def start_at_mean(basis: Basis, counts: torch.Tensor) -> Solution:
    """Return the model of a constant rate, for counts (n_samples, n_targets)."""
    weights = counts.new_zeros(len(basis.variances), counts.shape[1])
    intercepts = counts.mean(0).clamp(min=torch.finfo(counts.dtype).tiny).log()
    return Solution(weights, intercepts, intercepts.new_zeros(len(intercepts), dtype=torch.bool))


def solve(
    basis: Basis, counts: torch.Tensor, alphas: torch.Tensor, start: Solution, tol: float
) -> Solution:
    """Minimise mean(rate - counts * log rate) + alpha / 2 |weights|^2 for each target.

    Parameters
    ----------
    basis : Basis
        Of these rows, or of more.
    counts : torch.Tensor, shape (n_samples, n_targets)
        Each target with a spike.
    alphas : torch.Tensor, shape (n_targets,)
    start : Solution
    tol : float
        Until half the squared Newton decrement, the loss still to be gained, is below it.

    References
    ----------
    Boyd & Vandenberghe (2004), Convex Optimization, chapter 9; Nocedal & Wright (2006), Numerical
    Optimization, chapter 7.
    """
    weights, intercepts = start.weights.clone(), start.intercepts.clone()
    converged = torch.zeros_like(intercepts, dtype=torch.bool)
    active = torch.arange(counts.shape[1], device=counts.device)
    for _ in range(MAX_STEPS):
        state = _State(
            basis, counts[:, active], alphas[active], weights[:, active], intercepts[active]
        )
        step, decrement = state.newton_step()
        done = decrement / 2 <= tol
        length = state.step_length(step, decrement)
        # the last step is taken as well: near the end it squares the error
        weights[:, active] += length * step.weights
        intercepts[active] += length * step.intercepts
        converged[active] = done
        active = active[~done & (length > 0)]
        if not len(active):
            break
    return Solution(weights, intercepts, converged)


class _Direction(NamedTuple):
    weights: torch.Tensor
    intercepts: torch.Tensor

    def dot(self, other: _Direction) -> torch.Tensor:
        """Return the inner product of each target, (n_targets,)."""
        return (self.weights * other.weights).sum(0) + self.intercepts * other.intercepts

    def plus(self, factor: torch.Tensor, other: _Direction) -> _Direction:
        """Return this plus a multiple of another, target by target."""
        return _Direction(
            self.weights + factor * other.weights, self.intercepts + factor * other.intercepts
        )


class _State:
    """Where some targets are: their rates, gradients and curvatures."""

    def __init__(
        self,
        basis: Basis,
        counts: torch.Tensor,
        alphas: torch.Tensor,
        weights: torch.Tensor,
        intercepts: torch.Tensor,
    ) -> None:
        self.basis, self.counts, self.alphas = basis, counts, alphas
        self.weights, self.n = weights, len(counts)
        self.log_rate = basis.scores @ weights + intercepts
        self.rate = self.log_rate.clamp(max=LARGEST).exp()
        missed = self.rate - counts
        self.gradient = _Direction(
            basis.scores.T @ missed / self.n + alphas * weights, missed.mean(0)
        )
        mean = self.rate.mean(0)
        self.scale = _Direction(mean * basis.variances[:, None] + alphas, mean)

    def _precondition(self, given: _Direction) -> _Direction:
        return _Direction(
            given.weights / self.scale.weights, given.intercepts / self.scale.intercepts
        )

    def _curvature(self, step: _Direction) -> _Direction:
        """Return the Hessian's product with a direction."""
        moved = self.rate * (self.basis.scores @ step.weights + step.intercepts)
        return _Direction(
            self.basis.scores.T @ moved / self.n + self.alphas * step.weights, moved.mean(0)
        )

    def newton_step(self) -> tuple[_Direction, torch.Tensor]:
        """Return the step against the gradient, and its squared decrement (n_targets,)."""
        residual = _Direction(-self.gradient.weights, -self.gradient.intercepts)
        direction = preconditioned = self._precondition(residual)
        size = first = residual.dot(preconditioned)
        step = _Direction(torch.zeros_like(residual.weights), torch.zeros_like(residual.intercepts))
        enough = first.clamp(max=FIRST_CUT) * first  # convergence is superlinear
        smallest = torch.finfo(size.dtype).tiny
        for _ in range(MAX_INNER):
            curved = self._curvature(direction)
            along = direction.dot(curved)
            moves = (size > enough) & (along > 0)
            if not moves.any():
                break
            factor = torch.where(moves, size / along.clamp(min=smallest), 0)
            step = step.plus(factor, direction)
            residual = residual.plus(-factor, curved)
            preconditioned = self._precondition(residual)
            following = residual.dot(preconditioned)
            ratio = torch.where(moves, following / size, 0)
            direction = preconditioned.plus(ratio, direction)
            size = torch.where(moves, following, size)
        return step, -step.dot(self.gradient)

    def step_length(self, step: _Direction, decrement: torch.Tensor) -> torch.Tensor:
        """Return how far to go, (n_targets,): halved until the loss falls as promised, or 0."""
        moved = self.basis.scores @ step.weights + step.intercepts
        before = self._loss(self.log_rate, self.weights)
        length = torch.ones_like(decrement)
        rounding = 8 * torch.finfo(before.dtype).eps * before.abs().clamp(min=1)
        while True:
            after = self._loss(self.log_rate + length * moved, self.weights + length * step.weights)
            short = ~(after <= before - ENOUGH * length * decrement + rounding)
            if not short.any():
                return length
            length = torch.where(short, length / 2, length)
            length = torch.where(length < SMALLEST_STEP, 0, length)

    def _loss(self, log_rate: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        fit = (log_rate.exp() - self.counts * log_rate).mean(0)
        return fit + self.alphas / 2 * weights.square().sum(0)
