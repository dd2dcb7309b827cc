"""Comparison of representational dissimilarity matrices, over the pairs of their stimuli."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import kendalltau, rankdata

from neurodl.errors import PairingError, SchemaError, UnknownNameError, did_you_mean, listed
from neurodl.scores.rdms import PAIR

METHODS = ("spearman", "pearson", "kendall", "rho_a")


def compare_rdms(one: xr.DataArray, other: xr.DataArray, method: str = "spearman") -> Any:
    """Return how alike RDMs are, over the pairs of their stimuli.

    Parameters
    ----------
    one : xarray.DataArray, dims (..., stimulus, other)
    other : xarray.DataArray, dims (..., stimulus, other)
        Of the same stimuli, in any order. Dims before the last two, such as subject, layer, time
        or searchlight, stay, and are combined.
    method : {"spearman", "pearson", "kendall", "rho_a"}
        "kendall" is tau-a; "rho_a" Spearman's with ties broken at random, in expectation: both do
        not favour models that predict ties.

    Returns
    -------
    xarray.DataArray with the dims before stimulus of both; a float without any

    Raises
    ------
    PairingError
        They are of other stimuli.
    SchemaError
        They are not symmetric, or measure dissimilarity by different metrics.

    References
    ----------
    Nili et al. (2014), A toolbox for representational similarity analysis, PLoS Comput. Biol. 10.
    Schutt et al. (2023), Statistical inference on representational geometries, eLife 12.

    Examples
    --------
    >>> from neurodl.scores import rdm
    >>> X = xr.DataArray(np.random.default_rng(0).standard_normal((20, 5)),
    ...                  {"stimulus": [f"s{i}" for i in range(20)]}, ("stimulus", "feature"))
    >>> compare_rdms(rdm(X), rdm(2 * X[::-1] + 1))
    1.0
    """
    check_method(method)
    check_rdms(one, other)
    ids = one["stimulus"].values
    mine, theirs = (pairs_of(array, ids) for array in (one, other))
    found = similarities(flat(mine), flat(theirs), method)
    dims = [str(dim) for dim in (*mine.dims[:-1], *theirs.dims[:-1])]
    if not dims:
        return float(found[0, 0])
    if len(set(dims)) < len(dims):
        raise SchemaError(
            f"Both RDMs have the dims {sorted({dim for dim in dims if dims.count(dim) > 1})}: "
            "rename one of them, or compare one by one."
        )
    coords = {
        dim: array[dim].values
        for array in (mine, theirs)
        for dim in array.dims[:-1]
        if dim in array.coords
    }
    shape = (*mine.shape[:-1], *theirs.shape[:-1])
    return xr.DataArray(found.reshape(shape), coords, dims, attrs={"method": method})


def check_method(method: str) -> None:
    """Raise unless there is such a method."""
    if method not in METHODS:
        raise UnknownNameError(
            f"`method` must be one of {METHODS}, but got {method!r}. "
            f"{did_you_mean(str(method), METHODS)}"
        )


def check_rdms(one: xr.DataArray, other: xr.DataArray) -> None:
    """Raise unless RDMs are of the same stimuli and the same metric.

    Raises
    ------
    SchemaError, PairingError
        See `compare_rdms`.
    """
    for array in (one, other):
        if tuple(array.dims[-2:]) != PAIR or not set(PAIR) <= set(array.coords):
            raise SchemaError(
                f"An RDM has the dims (..., 'stimulus', 'other') and their ids, but got "
                f"{tuple(array.dims)}. Make it with rdm(...)."
            )
    ids = [np.asarray(array["stimulus"].values).astype(str) for array in (one, other)]
    alone = sorted(set(ids[0]) ^ set(ids[1]))
    if alone:
        raise PairingError(
            f"The RDMs are of other stimuli: {len(alone)} are only in one of them "
            f"({listed(alone, 3)}). Select those of both: rdm.sel(stimulus=ids, other=ids)."
        )
    metrics = [array.attrs.get("metric") for array in (one, other)]
    if None not in metrics and metrics[0] != metrics[1]:
        raise SchemaError(
            f"One RDM has the metric {metrics[0]!r}, the other {metrics[1]!r}: measure both sides "
            "alike."
        )


def pairs_of(array: xr.DataArray, ids: np.ndarray) -> xr.DataArray:
    """Return the pairs above the diagonal of RDMs, (..., n_pairs), for stimuli in this order."""
    rows, columns = (
        _places(np.asarray(array[dim].values).astype(str), np.asarray(ids).astype(str))
        for dim in PAIR
    )
    first, second = np.triu_indices(len(ids), 1)
    values = np.asarray(array.values[..., rows[first], columns[second]], np.float64)
    dims = (*array.dims[:-2], "pair")
    coords = {dim: array[dim].values for dim in array.dims[:-2] if dim in array.coords}
    return xr.DataArray(values, coords, dims, attrs=array.attrs)


def _places(there: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    order = {name: number for number, name in enumerate(there.tolist())}
    return np.array([order[name] for name in wanted.tolist()])


def flat(pairs: xr.DataArray) -> np.ndarray:
    """Return pairs as (n_rdms, n_pairs)."""
    return np.asarray(pairs.values).reshape(-1, pairs.shape[-1])


def prepared(vectors: np.ndarray, method: str) -> np.ndarray:
    """Return vectors (n, n_pairs) whose inner products are the correlations of a method.

    Pairs that are NaN in a vector make it NaN. Kendall's has no such form.
    """
    values = vectors
    if method in ("spearman", "rho_a"):
        values = rankdata(vectors, axis=1, nan_policy="propagate")
    centred = values - values.mean(1, keepdims=True)
    if method == "rho_a":
        n = vectors.shape[1]
        return centred / np.sqrt((n**3 - n) / 12)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(norms > 0, norms, np.nan)


def similarities(one: np.ndarray, other: np.ndarray, method: str) -> np.ndarray:
    """Return how alike vectors of pairs are, (n, m) for (n, n_pairs) and (m, n_pairs).

    Pairs that are missing in either are left out.
    """
    known = np.isfinite(one).all(0) & np.isfinite(other).all(0)
    if known.sum() < 3:
        raise SchemaError("Fewer than 3 pairs of stimuli are known in both RDMs.")
    one, other = one[:, known], other[:, known]
    if method == "kendall":
        return np.array([[_tau_a(a, b) for b in other] for a in one])
    return prepared(one, method) @ prepared(other, method).T


def _tau_a(one: np.ndarray, other: np.ndarray) -> float:
    """Return Kendall's tau-a: of all pairs, those in the same order less those in the other."""
    n_all = len(one) * (len(one) - 1) / 2
    untied = [n_all - _n_ties(values) for values in (one, other)]
    if not all(untied):
        return float("nan")
    return float(kendalltau(one, other).statistic) * float(np.sqrt(untied[0] * untied[1])) / n_all


def _n_ties(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1].astype(float)
    return float((counts * (counts - 1) / 2).sum())
