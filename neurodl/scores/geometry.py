"""Representational similarity analysis: models against brains, with ceilings and tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from neurodl.errors import SchemaError
from neurodl.runtime import derive_seed
from neurodl.scores.paired import LEVELS
from neurodl.scores.rdm_pairs import check_method, check_rdms, pairs_of, prepared, similarities
from neurodl.scores.rdms import PAIR, rdm
from neurodl.scores.stats import TIES, false_discovery_rate

AT_ONCE = 256  # RDMs of a brain, such as times or searchlights
MIN_TARGETS = 5  # in a searchlight


def rsa(
    models: Mapping[str, xr.DataArray] | xr.DataArray,
    brain: xr.DataArray,
    *,
    metric: str = "correlation",
    method: str = "spearman",
    n_permutations: int = 1000,
    n_resamples: int = 1000,
    seed: int = 0,
    device: Any = "auto",
) -> xr.Dataset:
    """Return how alike the geometry of layers and of a brain is.

    Parameters
    ----------
    models : mapping of layer to xarray.DataArray, or one array
        Features, of which RDMs are made by `metric`; or RDMs.
    brain : xarray.DataArray
        RDMs, dims ``([subject,] [time or searchlight or another,] stimulus, other)``; or the
        responses of one subject, of which RDMs are made by the same metric, in which case
        "crossnobis" is not possible.
    metric : str
        See `rdm`; one for both sides.
    method : {"spearman", "pearson", "kendall", "rho_a"}
        See `compare_rdms`.
    n_permutations : int
        Random orders of the stimuli of the models, for ``p``; 0 for none. p and intervals of
        "kendall", which takes long, are those of "rho_a".
    n_resamples : int
        Bootstrap samples of stimuli, and of subjects where there are several, for ``low`` and
        ``high``; 0 for none.
    seed : int
    device : str
        Where RDMs are computed.

    Returns
    -------
    xarray.Dataset
        With dims (layer [, place]): ``similarity``, the mean over subjects of the similarity with
        each; ``group_similarity``, with the mean RDM; ``subject_similarity`` (subject, layer
        [, place]); ``p`` of orders, the true one among them, whose mean similarity is at least the
        true one; ``p_fwe`` against the largest over layers and places; ``q``; ``low`` and ``high``
        (95 %, where there is one place). With several subjects also ``ceiling_low`` and
        ``ceiling_high`` ([place]): what the mean RDM of the others, and of all, has in common with
        each subject's, between which the true model is expected; and ``ceiling_low_interval`` and
        ``ceiling_high_interval`` (bound,), as `low` and `high`.

    Raises
    ------
    PairingError, SchemaError
        See `compare_rdms`.

    Notes
    -----
    In a bootstrap sample, the distance of a stimulus from its own copy is left out; and a subject
    that was drawn twice is never on both sides of the lower ceiling: all its copies are left out
    of the mean RDM that it is compared with.

    References
    ----------
    Kriegeskorte, Mur & Bandettini (2008), Representational similarity analysis, Front. Syst.
    Neurosci. 2.
    Nili et al. (2014), A toolbox for representational similarity analysis, PLoS Comput. Biol. 10.
    Schutt et al. (2023), Statistical inference on representational geometries, eLife 12.
    """
    check_method(method)
    model_rdms = rdms_of(models, metric, device)
    whole = brain if is_rdm(brain) else rdm(brain, metric, device=device)
    for array in model_rdms.values():
        check_rdms(array, whole)
        if array.ndim != 2:
            raise SchemaError(f"The RDM of a layer has dims (stimulus, other), not {array.dims}.")
    whole, place = _arranged(whole)
    ids = np.asarray(whole["stimulus"].values).astype(str)
    vectors = np.stack([pairs_of(one, ids).values for one in model_rdms.values()])
    _check_known(vectors)
    shape = whole.shape[:2]
    subject = np.empty((shape[0], len(vectors), shape[1]))
    group = np.empty((len(vectors), shape[1]))
    ceilings = np.full((2, shape[1]), np.nan)
    for start in range(0, shape[1], AT_ONCE):
        part = slice(start, start + AT_ONCE)
        own = pairs_of(whole.isel({whole.dims[1]: part}), ids).values
        _check_known(own)
        n = own.shape[1]
        found = similarities(vectors, own.reshape(-1, own.shape[-1]), method)
        subject[:, :, part] = np.moveaxis(found.reshape(len(vectors), shape[0], n), 1, 0)
        group[:, part] = similarities(vectors, _group(own, method), method)
        if shape[0] > 1:
            ceilings[:, part] = _ceilings(own, method)
    dims = ("layer", place)
    mean = subject.mean(0)
    result = xr.Dataset(
        {
            "similarity": (dims, mean),
            "group_similarity": (dims, group),
            "subject_similarity": (("subject", *dims), subject),
        },
        {"layer": list(model_rdms), **_coords(whole, place)},
        {
            "metric": str(whole.attrs.get("metric", "as published")),
            "method": method,
            "n_stimuli": len(ids),
            "n_permutations": n_permutations,
            "n_resamples": n_resamples,
            "seed": seed,
        },
    )
    if shape[0] > 1:
        low, high = ceilings
        result = result.assign(ceiling_low=(place, low), ceiling_high=(place, high))
    if n_permutations:
        p, p_fwe = (
            np.where(np.isfinite(mean), one, np.nan)
            for one in _permuted(model_rdms, whole, ids, mean, method, n_permutations, seed)
        )
        q = false_discovery_rate(p.ravel()).reshape(p.shape)
        result = result.assign(p=(dims, p), p_fwe=(dims, p_fwe), q=(dims, q))
    if n_resamples and shape[1] == 1:
        (low, high), bounds = _resampled(vectors, whole, ids, method, n_resamples, seed)
        result = result.assign(low=(dims, low[:, None]), high=(dims, high[:, None]))
        if shape[0] > 1:
            named = zip(("ceiling_low", "ceiling_high"), bounds.T, strict=True)
            result = result.assign({f"{name}_interval": ("bound", one) for name, one in named})
    return result.squeeze(place, drop=True) if place == ONE_PLACE else result


ONE_PLACE = "place"


def rdms_of(
    models: Mapping[str, xr.DataArray] | xr.DataArray, metric: str, device: Any
) -> dict[str, xr.DataArray]:
    """Return the RDM of each layer, of features by this metric."""
    layers = {"model": models} if isinstance(models, xr.DataArray) else dict(models)
    return {
        name: array if is_rdm(array) else rdm(array, metric, device=device)
        for name, array in layers.items()
    }


def _check_known(pairs: np.ndarray) -> None:
    """Raise if pairs of stimuli are missing, for which nothing can be tested."""
    missing = ~np.isfinite(pairs).reshape(-1, pairs.shape[-1]).all(0)
    if missing.any():
        raise SchemaError(
            f"The RDMs lack {missing.sum()} of {len(missing)} pairs of stimuli. Leave out the "
            "stimuli concerned: rdm.sel(stimulus=ids, other=ids)."
        )


def is_rdm(array: xr.DataArray) -> bool:
    """Return whether an array is an RDM, or several."""
    return tuple(array.dims[-2:]) == PAIR


def _arranged(brain: xr.DataArray) -> tuple[xr.DataArray, str]:
    """Return RDMs as (subject, place, stimulus, other), and what their places are called."""
    others = [str(dim) for dim in brain.dims[:-2] if dim != "subject"]
    if len(others) > 1:
        raise SchemaError(
            f"RDMs can have one dim besides subject, but have {others}: average over or select "
            "from the others, such as brain.mean('session')."
        )
    place = others[0] if others else ONE_PLACE
    for dim in ("subject", place):
        if dim not in brain.dims:
            brain = brain.expand_dims(dim)
    return brain.transpose("subject", place, *PAIR), place


def _coords(whole: xr.DataArray, place: str) -> dict[str, Any]:
    kept = {str(name): one for name, one in whole.coords.items() if one.dims == (place,)}
    if "subject" in whole.coords:
        kept["subject"] = whole["subject"].values
    return kept


def _group(pairs: np.ndarray, method: str) -> np.ndarray:
    """Return the mean RDM of subjects (place, pair) of (subject, place, pair)."""
    n_subjects, n_places, n_pairs = pairs.shape
    return _comparable(pairs.reshape(-1, n_pairs), method).reshape(pairs.shape).mean(0)


def _comparable(vectors: np.ndarray, method: str) -> np.ndarray:
    """Return vectors that can be averaged over subjects: ranks, or in units of their spread."""
    if method == "pearson":
        return prepared(vectors, method)
    return np.asarray(rankdata(vectors, axis=1, nan_policy="propagate"))


def _ceilings(pairs: np.ndarray, method: str) -> np.ndarray:
    """Return lower and upper ceiling (2, place) of RDMs (subject, place, pair)."""
    n_subjects, n_places, n_pairs = pairs.shape
    own = _comparable(pairs.reshape(-1, n_pairs), method).reshape(pairs.shape)
    total = own.sum(0)
    found = np.zeros((2, n_places))
    for place in range(n_places):
        rest = total[place] - own[:, place]
        for subject in range(n_subjects):
            mine = pairs[subject, place][None]
            found[0, place] += similarities(mine, rest[subject][None], method)[0, 0]
            found[1, place] += similarities(mine, total[place][None], method)[0, 0]
    return found / n_subjects


def _permuted(
    model_rdms: Mapping[str, xr.DataArray],
    whole: xr.DataArray,
    ids: np.ndarray,
    true: np.ndarray,
    method: str,
    n: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return p and family-wise p (layer, place) under random orders of the models' stimuli."""
    rng = np.random.default_rng(derive_seed(seed, "orders"))
    orders = [rng.permutation(len(ids)) for _ in range(n)]
    first, second = np.triu_indices(len(ids), 1)
    at_least, largest = np.ones(true.shape), np.full(n, -np.inf)
    squares = [pairs_square(one, ids) for one in model_rdms.values()]
    if method == "kendall":
        # The two hardly differ in what they order, and one is a thousand times quicker.
        method = "rho_a"
        true = _mean_similarity(squares, whole, ids, method)
    for layer, square in enumerate(squares):
        shuffled = np.stack([square[order][:, order][first, second] for order in orders])
        left = prepared(shuffled, method)
        for start in range(0, whole.shape[1], AT_ONCE):
            part = slice(start, start + AT_ONCE)
            pairs = pairs_of(whole.isel({whole.dims[1]: part}), ids).values
            right = prepared(pairs.reshape(-1, pairs.shape[-1]), method)
            drawn = (left @ right.T).reshape(n, pairs.shape[0], -1).mean(1)
            at_least[layer, part] += (drawn >= true[layer, part] - TIES).sum(0)
            largest = np.fmax(largest, np.fmax.reduce(drawn, 1))
    above = n - np.searchsorted(np.sort(largest), true - TIES)
    return at_least / (n + 1), (above + 1) / (n + 1)


def pairs_square(one: xr.DataArray, ids: np.ndarray) -> np.ndarray:
    """Return an RDM (n, n) for stimuli in this order."""
    return np.asarray(one.sel(stimulus=ids, other=ids).values, np.float64)


def _mean_similarity(
    squares: list[np.ndarray], whole: xr.DataArray, ids: np.ndarray, method: str
) -> np.ndarray:
    first, second = np.triu_indices(len(ids), 1)
    vectors = np.stack([square[first, second] for square in squares])
    pairs = pairs_of(whole, ids).values
    found = similarities(vectors, pairs.reshape(-1, pairs.shape[-1]), method)
    return found.reshape(len(vectors), *pairs.shape[:2]).mean(1)


def _resampled(
    vectors: np.ndarray, whole: xr.DataArray, ids: np.ndarray, method: str, n: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return 95 % intervals of similarities (2, layer) and of ceilings (2, 2).

    Over stimuli and subjects.
    """
    rng = np.random.default_rng(derive_seed(seed, "resampled"))
    square = np.zeros((len(ids), len(ids)), int)
    first, second = np.triu_indices(len(ids), 1)
    square[first, second] = square[second, first] = np.arange(len(first))
    own = pairs_of(whole, ids).values[:, 0]
    drawn = np.full((n, len(vectors)), np.nan)
    ceilings = np.full((n, 2), np.nan)
    quick = "rho_a" if method == "kendall" else method
    for number in range(n):
        chosen = rng.integers(0, len(ids), len(ids))
        subjects = rng.integers(0, len(own), len(own))
        apart = chosen[first] != chosen[second]
        pairs = square[chosen[first[apart]], chosen[second[apart]]]
        each = similarities(vectors[:, pairs], own[:, pairs], quick)
        drawn[number] = each[:, subjects].mean(1)
        if len(own) > 1:
            ceilings[number] = _drawn_ceilings(own[:, pairs], subjects, quick)
    bounds = np.nanpercentile(drawn, LEVELS, 0)
    limits = np.nanpercentile(ceilings, LEVELS, 0) if len(own) > 1 else ceilings[:2]
    if quick != method:
        bounds += similarities(vectors, own, method).mean(1)
        bounds -= similarities(vectors, own, quick).mean(1)
        if len(own) > 1:
            limits += (_ceilings(own[:, None], method) - _ceilings(own[:, None], quick))[:, 0]
    return bounds, limits


def _drawn_ceilings(own: np.ndarray, subjects: np.ndarray, method: str) -> np.ndarray:
    """Return lower and upper ceiling (2,) of drawn subjects, of RDMs (subject, pair).

    The lower one is NaN where a single subject was drawn.
    """
    counts = np.bincount(subjects, minlength=len(own)).astype(float)
    ranked = _comparable(own, method)
    total = counts @ ranked
    low = np.full(len(own), np.nan)
    for subject in np.flatnonzero((counts > 0) & (counts < counts.sum())):
        rest = total - counts[subject] * ranked[subject]
        low[subject] = similarities(own[[subject]], rest[None], method)[0, 0]
    high = similarities(own, total[None], method)[:, 0]
    known = np.isfinite(low)
    lower = counts[known] @ low[known] / counts[known].sum() if known.any() else np.nan
    return np.array([lower, counts @ high / counts.sum()])
