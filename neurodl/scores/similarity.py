"""How alike two descriptions of the same stimuli are: centred kernel alignment."""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr

from neurodl.errors import PairingError, SchemaError, UnknownNameError, listed
from neurodl.models._input import as_tensor
from neurodl.runtime import resolve_device
from neurodl.schema import sample_ids

KERNELS = ("linear", "rbf")


def cka(
    X: Any,
    Y: Any,
    *,
    unbiased: bool = True,
    kernel: str = "linear",
    width: float = 0.5,
    device: Any = "auto",
) -> float:
    """Return the centred kernel alignment [1]_ of two sets of features of the same stimuli.

    Parameters
    ----------
    X : array-like, shape (n_samples, n_features)
    Y : array-like, shape (n_samples, n_other_features)
        Row by row of the same stimuli; arrays with ids are paired by them.
    unbiased : bool
        Estimate the alignment that infinitely many stimuli would have [2]_, which is 0 for
        unrelated features. The plain estimate is near 1 where features outnumber stimuli.
    kernel : {"linear", "rbf"}
        Inner products, or exp(-d^2 / (2 s^2)) of distances d, with s as a share of the median one.
    width : float
        That share, of "rbf".
    device : str
        See `resolve_device`.

    Returns
    -------
    float
        1 for features that are the same but for rotation, scale and shift; NaN for constant ones.

    Raises
    ------
    SchemaError, PairingError
        The rows differ, or are too few.

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
    if kernel not in KERNELS:
        raise UnknownNameError(f"`kernel` must be one of {KERNELS}, but got {kernel!r}.")
    if not width > 0:
        raise ValueError(f"`width` must be above 0, but got {width}.")
    chosen = resolve_device(device)
    kernels = []
    for features in _by_id(X, Y):
        rows = as_tensor(features, chosen).double().flatten(1)
        rows = rows - rows.mean(0)
        kernels.append(rows @ rows.T if kernel == "linear" else _rbf(rows, width))
    if len(kernels[0]) != len(kernels[1]) or len(kernels[0]) < 4:
        raise SchemaError(
            f"Alignment needs the same stimuli on both sides, at least 4, but got "
            f"{len(kernels[0])} and {len(kernels[1])} rows."
        )
    hsic = _unbiased_hsic if unbiased else _hsic
    own = [float(hsic(one, one)) for one in kernels]
    if min(own) <= 0:
        return float("nan")
    return float(hsic(*kernels)) / (own[0] * own[1]) ** 0.5


def _by_id(X: Any, Y: Any) -> tuple[Any, Any]:
    """Return Y in the order of X, where both have ids."""
    if not (isinstance(X, xr.DataArray) and isinstance(Y, xr.DataArray)):
        return X, Y
    if "stimulus" not in X.coords or "stimulus" not in Y.coords:
        return X, Y
    ids, others = sample_ids(X), sample_ids(Y)
    alone = ids.symmetric_difference(others)
    if len(alone) or not ids.is_unique:
        raise PairingError(
            f"The two sides are of other stimuli: {len(alone)} are only with one of them "
            f"({listed(alone, 3)})."
        )
    return X.values, Y.values[others.get_indexer(ids)]


def _rbf(rows: torch.Tensor, width: float) -> torch.Tensor:
    distances = torch.cdist(rows, rows)
    n = len(rows)
    first, second = torch.triu_indices(n, n, 1, device=rows.device)
    scale = width * distances[first, second].median()
    if scale == 0:
        return torch.zeros_like(distances)
    return torch.exp(-(distances**2) / (2 * scale**2))


def _hsic(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    centred = one - one.mean(0) - one.mean(1, keepdim=True) + one.mean()
    return (centred * other).sum()


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
