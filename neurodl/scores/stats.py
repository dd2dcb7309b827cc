"""Whether predictivity could be chance: permutation tests, corrected for the number of targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from neurodl.errors import SchemaError, UnknownNameError
from neurodl.models import KernelRidgeCV, RidgeCV
from neurodl.models._permutation import permuted_r
from neurodl.runtime import derive_seed, progress_bar, resolve_device
from neurodl.schema import sample_dim, sample_ids, target_dim
from neurodl.scores._fits import Fits, Rows
from neurodl.scores.crossval import cross_validate, inputs_of, paired_rows
from neurodl.scores.pairing import last_step
from neurodl.scores.splitters import PurgedKFold
from neurodl.stimuli import Stimuli

EXCHANGES = ("rows", "groups")
TIES = 1e-6  # orders that leave a target as it is must not differ by rounding
BLOCK_BYTES = 2**27
Parts = Iterator[tuple[slice, slice, np.ndarray]]


def permutation_test(
    model: Any,
    X: xr.DataArray | Mapping[str, xr.DataArray] | Stimuli,
    responses: xr.DataArray,
    *,
    cv: Any = 5,
    groups: Any = None,
    n_permutations: int = 1000,
    exchange: str = "rows",
    refit: bool | None = None,
    seed: int = 0,
    ceiling: xr.DataArray | None = None,
    unpaired: str = "error",
    allow: Sequence[str] = (),
) -> xr.Dataset:
    """Return cross-validated scores, and how often permuted responses reach them.

    Responses are given to the wrong stimuli: rows in a random order, within `groups` if there are
    any, so that differences between groups are not taken for predictivity. Time series are shifted
    in a circle within each run, by a random number of samples, which keeps their autocorrelation.

    Parameters
    ----------
    model : object with fit and predict
    X, responses, cv, groups, seed, ceiling, unpaired, allow
        See `cross_validate`; `seed` also draws the permutations.
    n_permutations : int
    exchange : {"rows", "groups"}
        What is exchangeable under the null hypothesis: rows within each group, or whole groups of
        the same size, whose rows keep their order: runs, or the presentations of each stimulus.
    refit : bool, optional
        Whether the model is fitted to every order of the responses. `RidgeCV` and `KernelRidgeCV`
        are, at the penalties that the true responses chose in each fold, by one decomposition for
        all orders; other models are fitted anew each time, which takes as long. Without it, only
        the responses to the test rows are exchanged, and the predictions stay: quick for any
        model, but only right for a single training and test set, since the test rows of one fold
        are training rows of the others. By default False for other models on a single split.

    Returns
    -------
    xarray.Dataset
        What `cross_validate` returns and, with dims (layer, target), ``p``: the share of orders,
        the true one among them, whose mean r over folds is at least that of the true one;
        ``p_fwe``: the same of the largest mean r of all targets (family-wise); ``q``: `p` after
        Benjamini and Hochberg (false discovery rate, for targets that depend on each other
        positively, as voxels do); ``q_by``: after Benjamini and Yekutieli, for any dependence.

    Raises
    ------
    SchemaError, ValueError
        Rows cannot be exchanged; the message says why.

    References
    ----------
    Phipson & Smyth (2010), Permutation p-values should never be zero, Stat. Appl. Genet. Mol. Biol.
    Nichols & Holmes (2002), Nonparametric permutation tests for functional neuroimaging, HBM 15.
    Noirhomme et al. (2014), Biased binomial assessment of cross-validated estimation of
    classification accuracies illustrated in diagnosis predictions, NeuroImage: Clinical 4.
    Winkler et al. (2014), Permutation inference for the general linear model, NeuroImage 92.
    Benjamini & Hochberg (1995), Controlling the false discovery rate, J. R. Stat. Soc. B 57.
    Benjamini & Yekutieli (2001), FDR in multiple testing under dependency, Ann. Stat. 29.
    """
    if n_permutations < 1:
        raise ValueError(f"`n_permutations` must be at least 1, but got {n_permutations}.")
    how = {"cv": cv, "groups": groups, "seed": seed, "unpaired": unpaired, "allow": allow}
    layers, rows = paired_rows(
        model,
        inputs_of(model, X),
        responses,
        stimuli=X if isinstance(X, Stimuli) else None,
        enforce=False,
        **how,
    )
    at_once = isinstance(model, RidgeCV | KernelRidgeCV)
    refits = _whether_to_refit(refit, at_once, model, len(rows.splits), n_permutations)
    if isinstance(cv, PurgedKFold):  # whose blocks are for the folds; what is shifted is the run
        whole = np.zeros(len(rows.responses), int) if rows.runs is None else rows.runs
        rows = rows._replace(labels=whole.astype(str))
    draw = seed, exchange
    orders = random_orders(rows.responses, rows.labels, n_permutations, *draw) if refits else None
    scores = cross_validate(
        model, X, responses, ceiling=ceiling, keep_predictions=not refits, **how
    )
    used = np.isfinite(scores["r"].values).all((0, 1))
    columns = np.flatnonzero(used)
    names = ("p", "p_fwe", "q", "q_by")
    found = {name: np.full((len(layers), len(used)), np.nan, np.float32) for name in names}
    for row, features in enumerate(layers.values()):
        if orders is not None and not at_once:
            parts = _refitted_r(model, features.values, X, rows, used, orders)
        elif orders is not None:
            alpha = scores["alpha"].values[row][:, used].astype(float)
            y = rows.observed[:, used]
            parts = permuted_r(model, features.values, y, rows.splits, alpha, orders, rows.runs)
        else:
            predicted = scores["predicted"].values[row][:, used]
            parts = _exchanged_r(model, predicted, rows, used, n_permutations, *draw)
        counted = _compare(parts, n_permutations, len(columns))
        found["p"][row, columns], found["p_fwe"][row, columns] = counted
        found["q"][row] = false_discovery_rate(found["p"][row])
        found["q_by"][row] = false_discovery_rate(found["p"][row], any_dependence=True)
    target = target_dim(scores["r"])
    for name, values in found.items():
        scores[name] = (("layer", target), values)
    permuted = "training and test rows, refitted" if refits else "test rows"
    return scores.drop_vars(["predicted", "observed"], errors="ignore").assign_attrs(
        n_permutations=n_permutations, permuted=permuted, exchange=exchange
    )


def _compare(parts: Parts, n_permutations: int, n_targets: int) -> tuple[np.ndarray, np.ndarray]:
    """Return p and family-wise p of each target, of r under orders of which the first is true.

    NaN where the true r is not known, as where test rows to be exchanged were not recorded.
    """
    true = np.empty(n_targets)
    known = np.ones(n_targets, bool)
    at_least = np.zeros(n_targets, int)
    largest = np.full(n_permutations + 1, -np.inf)
    for columns, some, r in parts:
        if some.start == 0:
            known[columns] = np.isfinite(r[0])
        r = np.nan_to_num(r, nan=-1.0)
        if some.start == 0:
            true[columns] = r[0]
        at_least[columns] += (r >= true[columns] - TIES).sum(0)
        largest[some] = np.maximum(largest[some], r.max(1))
    reached = n_permutations + 1 - np.searchsorted(np.sort(largest), true - TIES)
    p, p_fwe = (
        np.where(known, count / (n_permutations + 1), np.nan) for count in (at_least, reached)
    )
    return p, p_fwe


def _whether_to_refit(
    refit: bool | None, at_once: bool, model: Any, n_folds: int, n_permutations: int
) -> bool:
    if refit is None and not at_once and n_folds > 1:
        raise ValueError(
            f"{type(last_step(model)).__name__} has to be fitted anew to every order of the "
            f"responses, {n_permutations + 1} times {n_folds} folds: say refit=True, with as few "
            "permutations as will do. Or use a single training and test set, on which only the "
            "test rows are exchanged (cv={'train': ids, 'test': ids}); or RidgeCV, which fits all "
            "orders at once."
        )
    if refit is False and n_folds > 1:
        raise ValueError(
            "refit=False exchanges the test rows alone, which are training rows of other folds: p "
            "would be too small. Use a single training and test set, or leave refit out."
        )
    return at_once if refit is None else refit


def _refitted_r(
    model: Any, features: np.ndarray, X: Any, rows: Rows, used: np.ndarray, orders: np.ndarray
) -> Parts:
    """Yield r, averaged over folds, of the model fitted to responses in each order."""
    with progress_bar(label="permutations", total=len(orders)) as advance:
        for number, order in enumerate(orders):
            shuffled = rows._replace(observed=rows.observed[order])
            fits = Fits(model, shuffled, used, False, X)
            r = fits.layer(features, lambda _: None)["r"][:, used].mean(0)
            advance(1)
            yield slice(None), slice(number, number + 1), r[None]


def _exchanged_r(
    model: Any,
    predicted: np.ndarray,
    rows: Rows,
    used: np.ndarray,
    n_permutations: int,
    seed: int,
    exchange: str,
) -> Parts:
    """Yield r, averaged over folds, of predictions with test rows in other orders.

    The first order is the true one.
    """
    name = getattr(last_step(model), "device", "cpu")
    device = resolve_device(name if isinstance(name, str | torch.device) else "auto")
    folds = []
    for number, (_, test) in enumerate(rows.splits):
        own = None if rows.labels is None else rows.labels[test]
        own_seed = derive_seed(seed, "fold", number)
        orders = random_orders(rows.responses[test], own, n_permutations, own_seed, exchange)
        folds.append((test, torch.as_tensor(orders, device=device)))
    n_targets = predicted.shape[1]
    observed = rows.observed[:, used]
    width = max(1, BLOCK_BYTES // (4 * 64 * max(len(test) for test, _ in folds)))
    for start in range(0, n_targets, width):
        columns = slice(start, min(start + width, n_targets))
        for first in range(0, n_permutations + 1, 64):
            some = slice(first, min(first + 64, n_permutations + 1))
            total = torch.zeros(some.stop - first, columns.stop - start, device=device)
            for test, drawn in folds:
                p, y = (
                    _unit(torch.as_tensor(one[test][:, columns], device=device))
                    for one in (predicted, observed)
                )
                total += torch.einsum("st,ost->ot", p, y[drawn[some]])
            yield columns, some, (total / len(folds)).cpu().numpy()


def _unit(values: torch.Tensor) -> torch.Tensor:
    """Return columns about their mean, of length 1."""
    centred = values - values.mean(0)
    return centred / torch.linalg.vector_norm(centred, dim=0)


def random_orders(
    responses: xr.DataArray,
    labels: np.ndarray | None,
    n_permutations: int,
    seed: int,
    exchange: str = "rows",
) -> np.ndarray:
    """Return the true order of rows and random ones, (n_permutations + 1, n_samples).

    See `permutation_test` for which rows are exchanged.

    Raises
    ------
    SchemaError
        Nothing can be exchanged, or presentations of one stimulus would have to stay together.
    UnknownNameError
        There is no such `exchange`.
    """
    if exchange not in EXCHANGES:
        raise UnknownNameError(f"`exchange` must be one of {EXCHANGES}, but got {exchange!r}.")
    n_samples = len(responses)
    rng = np.random.default_rng(seed)
    timed = sample_dim(responses) == "time"
    if labels is None and (timed or exchange == "groups"):
        what = "a time series" if timed else "whole groups"
        raise SchemaError(f"Permuting {what} needs groups, such as groups='run'.")
    if not timed and exchange == "rows" and not sample_ids(responses).is_unique:
        raise SchemaError(
            "Presentations of one stimulus belong together and cannot be permuted one by one: "
            "average repeats first (average_repeats), or exchange whole stimuli "
            "(exchange='groups') where all have as many presentations."
        )
    labels = np.zeros(n_samples, int) if labels is None else np.asarray(labels)
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    orders = np.tile(np.arange(n_samples), (n_permutations + 1, 1))
    if exchange == "groups":
        whole = np.array(_of_one_size(groups))
        for order in orders[1:]:
            order[whole.ravel()] = whole[rng.permutation(len(whole))].ravel()
        return orders
    if all(len(rows) < 2 for rows in groups):
        raise SchemaError(
            "Every group has a single row: there is nothing to permute within it. Exchange whole "
            "groups instead: exchange='groups'."
        )
    for order in orders[1:]:
        for rows in groups:
            order[rows] = (
                np.roll(rows, rng.integers(1, max(len(rows), 2)))
                if timed
                else rng.permutation(rows)
            )
    return orders


def _of_one_size(groups: list[np.ndarray]) -> list[np.ndarray]:
    sizes = sorted({len(rows) for rows in groups})
    if len(sizes) > 1 or len(groups) < 2:
        raise SchemaError(
            f"exchange='groups' needs several groups of one size, but there are {len(groups)} of "
            f"{sizes[0]} to {sizes[-1]} rows. Trim them, or exchange rows within groups."
        )
    return groups


def false_discovery_rate(p: np.ndarray, *, any_dependence: bool = False) -> np.ndarray:
    """Return q-values of p-values (n_targets,); NaN stays NaN.

    Parameters
    ----------
    p : numpy.ndarray, shape (n_targets,)
    any_dependence : bool
        Benjamini and Yekutieli, in place of Benjamini and Hochberg.

    Examples
    --------
    >>> false_discovery_rate(np.array([0.01, 0.04, 0.03, np.nan]))
    array([0.03, 0.04, 0.04,  nan])
    """
    q = np.full(len(p), np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known])]
    ranks = np.arange(1, len(order) + 1)
    factor = (1 / ranks).sum() if any_dependence else 1.0
    ranked = p[order] * factor * len(order) / ranks
    q[order] = np.minimum.accumulate(ranked[::-1])[::-1].clip(max=1)
    return q
