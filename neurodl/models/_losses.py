"""Losses of encoding models: of one scale for all targets, and sums over rows where they can."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional

from neurodl.errors import UnknownNameError, did_you_mean

LOSSES = ("mse", "poisson", "correlation")
SMALL = 1e-6


class Scale(NamedTuple):
    """How targets, as they were recorded, belong to a readout's output, which is about 0.

    mean, sd : (n_targets,), over the training rows
    loss : which one
    """

    mean: torch.Tensor
    sd: torch.Tensor
    loss: str

    def to(self, device: torch.device) -> Scale:
        """Return the scale on a device."""
        return Scale(self.mean.to(device), self.sd.to(device), self.loss)

    def predicted(self, output: torch.Tensor) -> torch.Tensor:
        """Return predictions in the units of the targets.

        Linear but for "poisson", where rates must be above 0: a softplus with slope near the
        standard deviation, and with the mean at 0.
        """
        if self.loss != "poisson":
            return self.mean + self.sd * output
        at_mean = torch.log(torch.expm1((self.mean / self.sd).clamp(min=1e-3)))
        return self.sd * functional.softplus(output + at_mean)


def fit_scale(targets: torch.Tensor, loss: str) -> Scale:
    """Return the scale of targets (n_rows, n_targets), with NaN where a target was not recorded.

    Raises
    ------
    UnknownNameError
        There is no such loss.
    ValueError
        The loss is "poisson", and there are targets below 0, or that are 0 throughout.
    """
    if loss not in LOSSES:
        raise UnknownNameError(f"There is no loss {loss!r}. {did_you_mean(loss, LOSSES)}")
    mean = targets.nanmean(0)
    variance = (targets - mean).square().nanmean(0)
    sd = variance.sqrt()
    sd = torch.where(sd > SMALL * (1 + mean.abs()), sd, torch.ones_like(sd))
    if loss == "poisson":
        n_below = int((targets < 0).any(0).sum())
        n_silent = int((mean <= 0).sum())
        if n_below or n_silent:
            raise ValueError(
                f"loss='poisson' is of counts and rates, but {n_below} targets are below 0 and "
                f"{n_silent} are 0 throughout. Use loss='mse', or leave these targets out."
            )
    return Scale(mean, sd, loss)


def _squared(output: torch.Tensor, targets: torch.Tensor, scale: Scale) -> torch.Tensor:
    return (output - (targets - scale.mean) / scale.sd).square()


def _poisson(output: torch.Tensor, targets: torch.Tensor, scale: Scale) -> torch.Tensor:
    """Return the Poisson deviance, with the curvature that squared error has at the mean."""
    rate = scale.predicted(output).clamp(min=SMALL)
    least = targets - torch.xlogy(targets, targets)  # where the rate is the target itself
    deviance = rate - targets * rate.log() - least
    return 2 * scale.mean / scale.sd.square() * deviance


BY_ROW: dict[str, Callable[[torch.Tensor, torch.Tensor, Scale], torch.Tensor]] = {
    "mse": _squared,
    "poisson": _poisson,
}


def loss_of(
    output: torch.Tensor,
    targets: torch.Tensor,
    scale: Scale,
    weights: torch.Tensor,
    n_rows: int,
) -> torch.Tensor:
    """Return the part of some rows in the loss of a batch.

    The parts of a batch add up to the loss, mean over rows and targets; but "correlation", which
    is no sum over rows, is of the rows at hand, weighted by their number.

    Parameters
    ----------
    output, targets : torch.Tensor, shape (n_some, n_targets)
        NaN in targets is what was not recorded; it counts for nothing.
    scale : Scale
    weights : torch.Tensor, shape (n_targets,)
        Mean 1.
    n_rows : int
        Of the whole batch.
    """
    output = output.float()
    known = targets.isfinite()
    if scale.loss == "correlation":
        r = masked_r(output, torch.where(known, targets, 0), known)
        return ((1 - r) * weights).mean() * (len(output) / n_rows)
    filled = torch.where(known, targets, scale.mean)
    by_row = BY_ROW[scale.loss](output, filled, scale)
    return (by_row * known * weights).sum() / (n_rows * output.shape[1])


def masked_r(output: torch.Tensor, targets: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Return the correlation of each target over its known rows, (n_targets,); 0 if undefined."""
    n_known = known.sum(0).clamp(min=1)
    centred = [
        torch.where(known, values - (values * known).sum(0) / n_known, 0)
        for values in (output, targets)
    ]
    covariance = (centred[0] * centred[1]).sum(0)
    norms = [(one.square().sum(0) + SMALL**2).sqrt() for one in centred]
    return covariance / (norms[0] * norms[1])


def mean_r(predicted: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the mean correlation over the targets whose predictions vary; NaN if none do."""
    known = targets.isfinite()
    r = masked_r(predicted, torch.where(known, targets, 0), known)
    spread = predicted.amax(0) - predicted.amin(0)
    return float(r[spread > SMALL * predicted.abs().amax(0)].mean())


def target_weights(targets: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
    """Return the weight of each target (n_targets,), mean 1: as given, by how much is recorded.

    A target that was recorded for half of the rows has twice the weight in each.
    """
    recorded = targets.isfinite().float().mean(0)
    weights = torch.where(recorded > 0, 1 / recorded.clamp(min=SMALL), 0)
    if given is not None:
        weights = weights * given
    return weights * (len(weights) / weights.sum())
