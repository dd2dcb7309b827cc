"""Whether predictivity could be chance: permutation tests, corrected for the number of targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from neurodl.errors import SchemaError
from neurodl.models import KernelRidgeCV, RidgeCV
from neurodl.models._permutation import permuted_r
from neurodl.schema import check_features, sample_dim, sample_ids, target_dim
from neurodl.scores.crossval import cross_validate, paired_rows


def permutation_test(
    model: Any,
    X: xr.DataArray | Mapping[str, xr.DataArray],
    responses: xr.DataArray,
    *,
    cv: Any = 5,
    groups: Any = None,
    n_permutations: int = 1000,
    seed: int = 0,
    ceiling: xr.DataArray | None = None,
    unpaired: str = "error",
) -> xr.Dataset:
    """Return cross-validated scores, and how often permuted responses reach them.

    Responses are given to the wrong stimuli: rows in a random order, within `groups` if there are
    any, so that differences between groups are not taken for predictivity. Time series are shifted
    in a circle within each run, by a random number of samples, which keeps their autocorrelation.
    Penalties are those that the true responses chose, in each fold.

    Parameters
    ----------
    model : RidgeCV or KernelRidgeCV
    X, responses, cv, groups, seed, ceiling, unpaired
        See `cross_validate`; `seed` also draws the permutations.
    n_permutations : int

    Returns
    -------
    xarray.Dataset
        What `cross_validate` returns and, with dims (layer, target), ``p``: the share of orders,
        the true one among them, whose mean r over folds is at least that of the true one;
        ``p_fwe``: the same of the largest mean r of all targets (family-wise); ``q``: `p` after
        Benjamini and Hochberg (false discovery rate).

    Raises
    ------
    SchemaError, ValueError
        Rows cannot be exchanged; the message says why.

    References
    ----------
    Phipson & Smyth (2010), Permutation p-values should never be zero, Stat. Appl. Genet. Mol. Biol.
    Nichols & Holmes (2002), Nonparametric permutation tests for functional neuroimaging, HBM 15.
    Benjamini & Hochberg (1995), Controlling the false discovery rate, J. R. Stat. Soc. B 57.
    """
    if not isinstance(model, RidgeCV | KernelRidgeCV):
        raise ValueError(
            "permutation_test refits at fixed penalties, which needs RidgeCV or KernelRidgeCV, but "
            f"got {type(model).__name__}."
        )
    if n_permutations < 1:
        raise ValueError(f"`n_permutations` must be at least 1, but got {n_permutations}.")
    layers, rows = paired_rows(
        model, check_features(X), responses, cv, groups, seed, unpaired=unpaired
    )
    orders = random_orders(rows.responses, rows.labels, n_permutations, seed)
    scores = cross_validate(
        model,
        X,
        responses,
        cv=cv,
        groups=groups,
        seed=seed,
        ceiling=ceiling,
        unpaired=unpaired,
    )
    used = np.isfinite(scores["r"].values).all((0, 1))
    columns = np.flatnonzero(used)
    found = {name: np.full((len(layers), len(used)), np.nan, np.float32) for name in ("p", "p_fwe")}
    for row, features in enumerate(layers.values()):
        alpha = scores["alpha"].values[row][:, used].astype(float)
        y = rows.observed[:, used]
        at_least, largest, true = _compare(
            permuted_r(model, features.values, y, rows.splits, alpha, orders, rows.runs),
            n_permutations,
            len(columns),
        )
        found["p"][row, columns] = at_least / (n_permutations + 1)
        reached = n_permutations + 1 - np.searchsorted(np.sort(largest), true)
        found["p_fwe"][row, columns] = reached / (n_permutations + 1)
    found["q"] = np.stack([false_discovery_rate(p) for p in found["p"]])
    target = target_dim(scores["r"])
    for name, values in found.items():
        scores[name] = (("layer", target), values)
    return scores.assign_attrs(n_permutations=n_permutations)


def _compare(parts: Any, n_permutations: int, n_targets: int) -> tuple[np.ndarray, ...]:
    """Return how many orders reach the true one, the largest r of each order, and the true r.

    The first order is the true one; it counts as one of them.
    """
    true = np.empty(n_targets)
    at_least = np.zeros(n_targets, int)
    largest = np.full(n_permutations + 1, -np.inf)
    for columns, some, r in parts:
        r = np.nan_to_num(r, nan=-1.0)
        if some.start == 0:
            true[columns] = r[0]
        # orders that leave a target as it is must not differ by rounding
        at_least[columns] += (r >= true[columns] - 1e-6).sum(0)
        largest[some] = np.maximum(largest[some], r.max(1))
    return at_least, largest, true - 1e-6


def random_orders(
    responses: xr.DataArray, labels: np.ndarray | None, n_permutations: int, seed: int
) -> np.ndarray:
    """Return the true order of rows and random ones, (n_permutations + 1, n_samples).

    See `permutation_test` for which rows are exchanged.

    Raises
    ------
    SchemaError
        Nothing can be exchanged, or presentations of one stimulus would have to stay together.
    """
    n_samples = len(responses)
    rng = np.random.default_rng(seed)
    timed = sample_dim(responses) == "time"
    if timed and labels is None:
        raise SchemaError("Permuting a time series needs groups, such as groups='run'.")
    if not timed and not sample_ids(responses).is_unique:
        raise SchemaError(
            "Presentations of one stimulus belong together and cannot be permuted one by one: "
            "average repeats first (average_repeats)."
        )
    labels = np.zeros(n_samples, int) if labels is None else np.asarray(labels)
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if all(len(rows) < 2 for rows in groups):
        raise SchemaError("Every group has a single row: there is nothing to permute within it.")
    orders = np.tile(np.arange(n_samples), (n_permutations + 1, 1))
    for order in orders[1:]:
        for rows in groups:
            order[rows] = (
                np.roll(rows, rng.integers(1, max(len(rows), 2)))
                if timed
                else rng.permutation(rows)
            )
    return orders


def false_discovery_rate(p: np.ndarray) -> np.ndarray:
    """Return q-values of p-values (n_targets,) by Benjamini and Hochberg; NaN stays NaN.

    Examples
    --------
    >>> false_discovery_rate(np.array([0.01, 0.04, 0.03, np.nan]))
    array([0.03, 0.04, 0.04,  nan])
    """
    q = np.full(len(p), np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known])]
    ranked = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum.accumulate(ranked[::-1])[::-1].clip(max=1)
    return q
