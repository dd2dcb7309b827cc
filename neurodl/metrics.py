"""Pure functions from predictions and observations to one number per target.

All take tensors of shape (..., n_samples, n_targets) that broadcast against each other
and return (..., n_targets), so one call scores every alpha. A target without variance has no
correlation: its score is NaN, never 0.
"""

from __future__ import annotations

import torch


def pearson_r(predicted: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Return Pearson's correlation over samples.

    Parameters
    ----------
    predicted, observed : torch.Tensor, shape (..., n_samples, n_targets)

    Returns
    -------
    torch.Tensor, shape (..., n_targets)
        NaN where either side is constant.

    Examples
    --------
    >>> observed = torch.tensor([[0.0], [1.0], [2.0]])
    >>> pearson_r(2 * observed + 1, observed)
    tensor([1.])
    """
    predicted, scale_p = _centred(predicted)
    observed, scale_o = _centred(observed)
    covariance = (predicted * observed).sum(-2)
    norms = torch.linalg.vector_norm(predicted, dim=-2) * torch.linalg.vector_norm(observed, dim=-2)
    r = (covariance / norms).clamp(-1, 1)
    return torch.where(scale_p & scale_o, r, torch.nan)


def _centred(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values minus their mean, and which targets vary beyond rounding error."""
    centred = values - values.mean(-2, keepdim=True)
    magnitude = values.abs().amax(-2)
    spread = centred.abs().amax(-2)
    return centred, spread > 8 * torch.finfo(values.dtype).eps * magnitude


def mse(predicted: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error over samples, shape (..., n_targets).

    Examples
    --------
    >>> mse(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [0.0]]))
    tensor([2.])
    """
    return (predicted - observed).square().mean(-2)


def r2(predicted: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Return the coefficient of determination, shape (..., n_targets).

    1 - squared error / variance around the mean of `observed`; negative where the mean
    predicts better, NaN where `observed` is constant.

    Examples
    --------
    >>> observed = torch.tensor([[0.0], [1.0], [2.0]])
    >>> r2(observed, observed)
    tensor([1.])
    """
    centred, varies = _centred(observed)
    explained = 1 - mse(predicted, observed) / centred.square().mean(-2)
    return torch.where(varies, explained, torch.nan)


def r2_by_band(
    parts: torch.Tensor, predicted: torch.Tensor, observed: torch.Tensor
) -> torch.Tensor:
    """Return the part of each band of features in r2, by the product measure.

    The parts sum to r2 where the observations have the mean of the training rows, else but for a
    multiple of the difference. A band whose predictions run against the observations has a
    negative part.

    Parameters
    ----------
    parts : torch.Tensor, shape (n_bands, n_samples, n_targets)
        The predictions that each band contributes, without the mean.
    predicted, observed : torch.Tensor, shape (n_samples, n_targets)

    Returns
    -------
    torch.Tensor, shape (n_bands, n_targets)

    References
    ----------
    Hoffman (1960), The paramorphic representation of clinical judgment, Psychological Bulletin 57.
    Dupre la Tour et al. (2022), Feature-space selection with banded ridge regression, NeuroImage.

    Examples
    --------
    >>> observed = torch.tensor([[-1.0], [0.0], [1.0]])
    >>> r2_by_band(torch.stack([observed, 0 * observed]), observed, observed)
    tensor([[1.],
            [0.]])
    """
    mean = observed.mean(0)
    centred, varies = _centred(observed)
    share = (parts * (2 * centred - (predicted - mean))).sum(1) / centred.square().sum(0)
    return torch.where(varies, share, torch.nan)
