"""How alike two descriptions of the same stimuli are: centred kernel alignment."""

from __future__ import annotations

from typing import Any

import torch

from neurodl.errors import SchemaError
from neurodl.models._input import as_tensor


def cka(X: Any, Y: Any, *, unbiased: bool = True) -> float:
    """Return the linear centred kernel alignment of two sets of features of the same stimuli.

    Parameters
    ----------
    X : array-like, shape (n_samples, n_features)
    Y : array-like, shape (n_samples, n_other_features)
        Row by row of the same stimuli.
    unbiased : bool
        Estimate the alignment that infinitely many stimuli would have [2]_, which is 0 for
        unrelated features. The plain estimate is near 1 where features outnumber stimuli.

    Returns
    -------
    float
        1 for features that are the same but for rotation, scale and shift.

    Raises
    ------
    SchemaError
        The numbers of rows differ, or are too few.

    References
    ----------
    .. [1] Kornblith, Norouzi, Lee & Hinton (2019), Similarity of neural network representations
       revisited, ICML.
    .. [2] Song et al. (2012), Feature selection via dependence maximization, JMLR 13 (unbiased
       HSIC).

    Examples
    --------
    >>> X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    >>> round(cka(X, 2 * X.flip(1) + 1), 6)
    1.0
    """
    kernels = []
    for features in (X, Y):
        rows = as_tensor(features, torch.device("cpu")).double().flatten(1)
        rows = rows - rows.mean(0)
        kernels.append(rows @ rows.T)
    if len(kernels[0]) != len(kernels[1]) or len(kernels[0]) < 4:
        raise SchemaError(
            f"Alignment needs the same stimuli on both sides, at least 4, but got "
            f"{len(kernels[0])} and {len(kernels[1])} rows."
        )
    hsic = _unbiased_hsic if unbiased else _hsic
    own = [float(hsic(kernel, kernel)) for kernel in kernels]
    if min(own) <= 0:
        return float("nan")
    return float(hsic(*kernels)) / (own[0] * own[1]) ** 0.5


def _hsic(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one * other).sum()  # both are centred


def _unbiased_hsic(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the unbiased estimate, up to a factor that is the same for all kernels of n rows."""
    n = len(one)
    one, other = (kernel - torch.diag(torch.diag(kernel)) for kernel in (one, other))
    sums = one.sum(0), other.sum(0)
    return (
        (one * other).sum()
        + sums[0].sum() * sums[1].sum() / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (sums[0] @ sums[1])
    )
