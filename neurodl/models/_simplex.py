"""Convex combinations with the least squared error, for many targets at once."""

from __future__ import annotations

import torch

AT_ONCE = 8192  # targets whose systems are held together
TOLERANCE = 1e-10  # of a slope, in units of the error of the best band
JITTER = 1e-13  # on the diagonal, relative: two bands that are the same cannot be told apart
STEPS_PER_BAND = 10  # at most; about one for each band that is used is what it takes


def simplex_weights(gram: torch.Tensor) -> torch.Tensor:
    """Return the weights that minimise ``w G w'`` with ``w >= 0`` and ``sum(w) = 1``.

    The minimum is that of ``w G w' + (sum(w) - 1)^2`` over ``w >= 0``, scaled to sum 1: an
    ordinary problem of least squares without negative weights. An active set solves it: from the
    best band alone, the band that lowers the error fastest is let in, the weights of those
    inside are solved for, and where some would turn negative they leave on the way.

    Parameters
    ----------
    gram : torch.Tensor, shape (n_targets, n_bands, n_bands)
        Products of the bands' residuals; symmetric and positive semidefinite.

    Returns
    -------
    torch.Tensor, shape (n_targets, n_bands), float64

    References
    ----------
    Lawson & Hanson (1974), Solving least squares problems, chapter 23.

    Examples
    --------
    >>> simplex_weights(torch.tensor([[[1.0, 0.0], [0.0, 3.0]]]))
    tensor([[0.7500, 0.2500]], dtype=torch.float64)
    """
    return torch.cat([_active_set(part.double()) for part in gram.split(AT_ONCE)])


def _active_set(gram: torch.Tensor) -> torch.Tensor:
    """Return the weights of some targets; see `simplex_weights`."""
    system, weights = _start(gram)
    unused = torch.zeros_like(weights, dtype=torch.bool)
    inside, solved = weights > 0, torch.ones_like(unused[:, 0])
    going = torch.arange(len(gram), device=gram.device)
    for _ in range(STEPS_PER_BAND * gram.shape[1]):
        slope = 1 - (system[going] @ weights[going, :, None])[:, :, 0]
        slope.masked_fill_(inside[going] | unused[going], -torch.inf)
        largest, entering = slope.max(1)
        enters = solved[going] & (largest > TOLERANCE)
        inside[going[enters], entering[enters]] = True
        going = going[enters | ~solved[going]]
        if not len(going):
            break
        goal = _solution(system[going], inside[going])
        weights[going], left, stuck = _step(weights[going], goal, inside[going])
        inside[going] &= ~left
        unused[going] |= left & stuck[:, None]
        solved[going] = ~left.any(1)
    return weights / weights.sum(1, keepdim=True)


def _start(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the systems, in units of the best band's error, and the weights of that band alone."""
    errors = gram.diagonal(dim1=1, dim2=2)
    least, best = errors.min(1)
    unit = torch.where(least > 0, least, errors.amax(1))
    system = gram / torch.where(unit > 0, unit, 1.0)[:, None, None] + 1
    system.diagonal(dim1=1, dim2=2).mul_(1 + JITTER)
    weights = torch.zeros_like(errors)
    own = system.diagonal(dim1=1, dim2=2).gather(1, best[:, None])
    return system, weights.scatter_(1, best[:, None], 1 / own)


def _solution(system: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Return where the slope is 0 for the bands inside, 0 for the others."""
    unit = torch.eye(system.shape[1], dtype=system.dtype, device=system.device)
    system = torch.where(inside[:, :, None] & inside[:, None, :], system, unit)
    return torch.linalg.solve_ex(system, inside.to(system.dtype)[:, :, None])[0][:, :, 0]


def _step(
    weights: torch.Tensor, goal: torch.Tensor, inside: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return weights moved towards `goal` as far as none turns negative.

    Returns
    -------
    weights : torch.Tensor, shape (n_targets, n_bands)
    left : torch.Tensor, shape (n_targets, n_bands), bool
        Which reached 0 and stopped the others.
    stuck : torch.Tensor, shape (n_targets,), bool
        Where nothing moved: by rounding, for a band just let in falls no further than 0.
    """
    falls = inside & (goal <= 0)
    reach = torch.where(falls, weights / (weights - goal), torch.inf)
    length = reach.amin(1, keepdim=True).nan_to_num(0.0, posinf=1.0)
    left = falls & ~(reach > length)
    moved = (weights + length * (goal - weights)).clamp_min_(0).masked_fill_(left, 0.0)
    return moved, left, length[:, 0] == 0
