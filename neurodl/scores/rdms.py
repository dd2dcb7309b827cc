"""Representational dissimilarity matrices (RDMs): how different each pair of stimuli is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from sklearn.covariance import ledoit_wolf_shrinkage

from neurodl.errors import SchemaError, UnknownNameError, did_you_mean, listed
from neurodl.models._input import as_tensor
from neurodl.responses import average_repeats, stack_repeats
from neurodl.runtime import resolve_device
from neurodl.schema import is_kernel, sample_dim, sample_ids

METRICS = ("correlation", "cosine", "euclidean", "crossnobis")
NOISE = ("shrinkage", "diagonal", "none")
PAIR = ("stimulus", "other")
BLOCK_VALUES = 1 << 23  # of differences, held at a time
NO_NOISE = (
    "Some targets have no noise between repeats, so it cannot be divided by: leave constant "
    "targets out, or use noise='none'."
)


def rdm(
    X: xr.DataArray | Mapping[str, xr.DataArray],
    metric: str = "correlation",
    *,
    noise: str = "shrinkage",
    device: Any = "auto",
) -> Any:
    """Return how different each pair of stimuli is, in features or in responses.

    Parameters
    ----------
    X : xarray.DataArray, or mapping of layer to xarray.DataArray
        Features (stimulus, feature), kernels, or responses: (stimulus, target); with a dim time,
        which makes an RDM for each time; with repeats, which are averaged, and which "crossnobis"
        needs.
    metric : {"correlation", "cosine", "euclidean", "crossnobis"}
        1 - Pearson's r over features; 1 - cosine; the Euclidean distance; or the squared
        Mahalanobis distance, cross-validated over repeats and divided by the number of targets,
        whose expectation is 0 for stimuli that do not differ (it can be negative).
    noise : {"shrinkage", "diagonal", "none"}
        For "crossnobis": the covariance of the noise of the targets, from differences of repeats
        to their mean, of all stimuli but the two: all of it, shrunk after Ledoit and Wolf; the
        variances; or that they are 1.
    device : str
        See `resolve_device`.

    Returns
    -------
    xarray.DataArray, or dict of them
        Dims ``([time,] stimulus, other)``, float32, symmetric, 0 on the diagonal; attrs metric, and
        those of a layer.

    Raises
    ------
    SchemaError
        There are fewer than 3 stimuli, no repeats for "crossnobis", or a stimulus without
        variation, which has no correlation with any.
    UnknownNameError
        There is no such metric.

    References
    ----------
    Kriegeskorte, Mur & Bandettini (2008), Representational similarity analysis, Front. Syst.
    Neurosci. 2.
    Walther et al. (2016), Reliability of dissimilarity measures for multi-voxel pattern analysis,
    NeuroImage 137.
    Ledoit & Wolf (2004), A well-conditioned estimator for large-dimensional covariance matrices,
    J. Multivar. Anal. 88.

    Examples
    --------
    >>> X = xr.DataArray([[0.0, 1, 2], [0, 2, 4], [2, 1, 0]], dims=("stimulus", "feature"),
    ...                  coords={"stimulus": ["a", "b", "c"]})
    >>> rdm(X).values.round(3) + 0.0
    array([[0., 0., 2.],
           [0., 0., 2.],
           [2., 2., 0.]], dtype=float32)
    """
    if metric not in METRICS:
        raise UnknownNameError(
            f"`metric` must be one of {METRICS}, but got {metric!r}. "
            f"{did_you_mean(str(metric), METRICS)}"
        )
    if noise not in NOISE:
        raise UnknownNameError(f"`noise` must be one of {NOISE}, but got {noise!r}.")
    if isinstance(X, Mapping):
        return {name: rdm(array, metric, noise=noise, device=device) for name, array in X.items()}
    if sample_dim(X) == "time":
        raise SchemaError(
            "An RDM is of stimuli, but the rows are times: estimate responses to events first "
            "(single_trial_betas)."
        )
    chosen = resolve_device(device)
    if metric == "crossnobis":
        arranged = _with_repeats(X)
        ids = arranged["stimulus"].values
        compute: Callable[[torch.Tensor], torch.Tensor] = _crossnobis(noise)
    else:
        repeated = "repeat" in X.dims or not sample_ids(X).is_unique
        arranged = average_repeats(X) if repeated else X
        ids = np.asarray(sample_ids(arranged)).astype(str)
        compute = _of_kernel(metric) if is_kernel(X) else _DISTANCES[metric]
    fewest = 4 if metric == "crossnobis" else 3
    if len(ids) < fewest:
        raise SchemaError(f"An RDM needs at least {fewest} stimuli, but there are {len(ids)}.")
    values = arranged.values
    if is_kernel(X):
        values = arranged.sel(feature=ids).values
    times = arranged["time"] if "time" in arranged.dims else None
    parts = [values] if times is None else np.moveaxis(values, arranged.get_axis_num("time"), 0)
    found = np.stack([_checked(compute(as_tensor(part, chosen).double()), ids) for part in parts])
    coords: dict[str, Any] = {"stimulus": ids, "other": ids}
    attrs = {key: value for key, value in X.attrs.items() if key in KEPT} | {"metric": metric}
    if times is None:
        return xr.DataArray(found[0], coords, PAIR, attrs=attrs)
    return xr.DataArray(found, coords | {"time": times.values}, ("time", *PAIR), attrs=attrs)


KEPT = ("backbone", "layer", "weights", "weights_sha256", "transform", "pool", "subject", "units")


def _checked(distances: torch.Tensor, ids: np.ndarray) -> np.ndarray:
    """Return an RDM, symmetric with 0 on its diagonal, as float32."""
    undefined = torch.isnan(distances).all(1)
    if undefined.any():
        names = ids[undefined.cpu().numpy()]
        raise SchemaError(
            f"{len(names)} stimuli have no variation over features, or missing values, and so no "
            f"distance to others: {listed(names)}. Leave them out, or use metric='euclidean'."
        )
    symmetric = (distances + distances.T) / 2
    symmetric.fill_diagonal_(0)
    return symmetric.float().cpu().numpy()


def _cosine(rows: torch.Tensor) -> torch.Tensor:
    norms = torch.linalg.vector_norm(rows, dim=1)
    unit = rows / torch.where(norms > 0, norms, torch.nan)[:, None]
    return 1 - (unit @ unit.T).clamp(-1, 1)


def _correlation(rows: torch.Tensor) -> torch.Tensor:
    centred = rows - rows.mean(1, keepdim=True)
    # Rounding leaves a constant row with a little variation.
    small = centred.abs().amax(1) <= 8 * torch.finfo(torch.float32).eps * rows.abs().amax(1)
    return _cosine(torch.where(small[:, None], 0, centred))


def _euclidean(rows: torch.Tensor) -> torch.Tensor:
    about_mean = rows - rows.mean(0)
    return torch.cdist(about_mean, about_mean)


_DISTANCES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "correlation": _correlation,
    "cosine": _cosine,
    "euclidean": _euclidean,
}


def _of_kernel(metric: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what makes distances of inner products, of features about their mean."""
    if metric != "euclidean":
        raise SchemaError(
            "Kernels are of features about the mean of all stimuli, from which only Euclidean "
            f"distances follow: use metric='euclidean', or features for {metric!r}."
        )

    def compute(kernel: torch.Tensor) -> torch.Tensor:
        squares = torch.diagonal(kernel)
        return (squares[:, None] + squares - 2 * kernel).clamp(min=0).sqrt()

    return compute


def _with_repeats(X: xr.DataArray) -> xr.DataArray:
    """Return responses (stimulus, repeat [, time], target) of the stimuli with all repeats."""
    if "feature" in X.dims:
        raise SchemaError("metric='crossnobis' needs repeats of responses; features have none.")
    stacked = X if "repeat" in X.dims else stack_repeats(X)
    if stacked.sizes["repeat"] < 2:
        raise SchemaError(
            "metric='crossnobis' needs responses with repeats, over which it is cross-validated."
        )
    axes = tuple(range(1, stacked.ndim))
    complete = np.isfinite(stacked.values).all(axes)
    return stacked[complete].assign_attrs(X.attrs)


def _crossnobis(noise: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what makes cross-validated distances of (stimulus, repeat, target).

    The noise of a pair of stimuli is told from all others: from its own repeats, it would be
    smallest along what differs between them, which makes distances too large.
    """

    def compute(values: torch.Tensor) -> torch.Tensor:
        n_stimuli, n_repeats, n_targets = values.shape
        residuals = values - values.mean(1, keepdim=True)
        found = torch.zeros(n_stimuli, n_stimuli, dtype=values.dtype, device=values.device)
        pairs = torch.triu_indices(n_stimuli, n_stimuli, 1, device=values.device)
        distances = _PAIRWISE[noise](values, residuals)
        size = max(1, BLOCK_VALUES // (n_repeats * n_targets))
        for part in pairs.split(size, 1):
            products = distances(part[0], part[1])
            between = products.sum((1, 2)) - torch.diagonal(products, dim1=1, dim2=2).sum(1)
            found[part[0], part[1]] = between / (n_repeats * (n_repeats - 1) * n_targets)
        return found + found.T

    return compute


Products = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _plain(values: torch.Tensor, residuals: torch.Tensor) -> Products:
    """Return products (pair, repeat, repeat) of differences of stimuli."""

    def products(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        apart = values[one] - values[other]
        return apart @ apart.mT

    return products


def _by_variances(values: torch.Tensor, residuals: torch.Tensor) -> Products:
    squares = residuals.square().sum(1)
    total = squares.sum(0)
    n_free = (len(values) - 2) * (values.shape[1] - 1)

    def products(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        variances = (total - squares[one] - squares[other]) / n_free
        if variances.min() <= 0:
            raise SchemaError(NO_NOISE)
        apart = values[one] - values[other]
        return (apart / variances[:, None]) @ apart.mT

    return products


def _by_covariance(values: torch.Tensor, residuals: torch.Tensor) -> Products:
    """Return products by the shrunk covariance of the residuals of all other stimuli.

    It differs from that of all by the residuals of two, which Woodbury's identity takes out.
    """
    n_stimuli, n_repeats, n_targets = values.shape
    rows = residuals.reshape(-1, n_targets)
    share = float(ledoit_wolf_shrinkage(rows.cpu().numpy(), assume_centered=True))
    n_free = (n_stimuli - 2) * (n_repeats - 1)
    weight = (1 - share) / n_free
    covariance = weight * (rows.T @ rows)
    mean = rows.square().sum() / ((n_stimuli * (n_repeats - 1)) * n_targets)
    covariance.diagonal().add_(share * mean)
    variances, axes = torch.linalg.eigh(covariance)
    if variances.min() <= 0:
        raise SchemaError(NO_NOISE)
    whitening = axes * variances.rsqrt()
    white, noise = values @ whitening, (residuals @ whitening) * weight**0.5
    unit = torch.eye(2 * n_repeats, dtype=values.dtype, device=values.device)

    def products(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        apart = white[one] - white[other]
        own = torch.cat([noise[one], noise[other]], 1)
        along = apart @ own.mT
        return apart @ apart.mT + along @ torch.linalg.solve(unit - own @ own.mT, along.mT)

    return products


_PAIRWISE: dict[str, Callable[[torch.Tensor, torch.Tensor], Products]] = {
    "none": _plain,
    "diagonal": _by_variances,
    "shrinkage": _by_covariance,
}
