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


def poisson_deviance(rate: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the mean deviance of counts from Poisson rates over samples, shape (..., n_targets).

    Twice the log-likelihood that a model which knows the counts has beyond that of the rates:
    2 (y log(y / rate) - (y - rate)); 0 at best. Infinite where a rate is 0 and there are spikes,
    NaN where one is negative.

    Parameters
    ----------
    rate, counts : torch.Tensor, shape (..., n_samples, n_targets)
        Expected and observed counts in each bin.

    References
    ----------
    McCullagh & Nelder (1989), Generalized Linear Models.

    Examples
    --------
    >>> poisson_deviance(torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [2.0]]))
    tensor([1.3863])
    """
    rate = torch.where(rate < 0, torch.nan, rate)
    excess = torch.xlogy(counts, counts) - torch.xlogy(counts, rate) - (counts - rate)
    return 2 * excess.mean(-2)


def pseudo_r2(
    rate: torch.Tensor, counts: torch.Tensor, null: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the share of the null model's Poisson deviance that the rates explain.

    1 - deviance(rate) / deviance(null); 0 for a model no better than a constant rate, NaN where
    the counts have no deviance from it.

    Parameters
    ----------
    rate, counts : torch.Tensor, shape (..., n_samples, n_targets)
    null : torch.Tensor, shape (n_targets,), optional
        The constant rate; by default the mean of `counts`. In cross-validation that of the
        training rows, which a model could know.

    References
    ----------
    Cameron & Windmeijer (1997), An R-squared measure of goodness of fit for some common nonlinear
    regression models, Journal of Econometrics 77.

    Examples
    --------
    >>> counts = torch.tensor([[0.0], [2.0]])
    >>> pseudo_r2(torch.tensor([[0.5], [1.5]]), counts)
    tensor([0.5850])
    """
    total = poisson_deviance(_null_rate(counts, null), counts)
    explained = 1 - poisson_deviance(rate, counts) / total
    return torch.where(total > 0, explained, torch.nan)


def bits_per_spike(
    rate: torch.Tensor, counts: torch.Tensor, null: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the information that the rates carry beyond a constant one [bits / spike].

    (log-likelihood(rate) - log-likelihood(null)) / (n_spikes log 2), shape (..., n_targets); NaN
    without spikes.

    Parameters
    ----------
    rate, counts, null
        See `pseudo_r2`.

    References
    ----------
    Pillow et al. (2008), Spatio-temporal correlations and visual signalling in a complete neuronal
    population, Nature 454; Pei et al. (2021), Neural Latents Benchmark '21, NeurIPS Datasets.

    Examples
    --------
    >>> counts = torch.tensor([[0.0], [2.0]])
    >>> bits_per_spike(torch.tensor([[1e-9], [2.0]]), counts)
    tensor([1.])
    """
    gained = poisson_deviance(_null_rate(counts, null), counts) - poisson_deviance(rate, counts)
    n_spikes = counts.sum(-2)
    bits = gained * counts.shape[-2] / (2 * torch.log(torch.tensor(2.0)) * n_spikes)
    return torch.where(n_spikes > 0, bits, torch.nan)


def _null_rate(counts: torch.Tensor, null: torch.Tensor | None) -> torch.Tensor:
    """Return the constant rate as (..., n_samples, n_targets)."""
    mean = counts.mean(-2) if null is None else null
    return mean[..., None, :].expand(counts.shape)
