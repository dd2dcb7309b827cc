"""Variance partitioning: which part of what is explained each feature space has for itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr
from sklearn.base import clone

from neurodl.errors import SchemaError
from neurodl.features import concatenate_features
from neurodl.models import RidgeCV
from neurodl.schema import check_features, target_coords, target_dim
from neurodl.scores.crossval import cross_validate
from neurodl.scores.pairing import takes_bands

MAX_SPACES = 5  # with each further one, the fits double
JOIN = " & "


def variance_partition(
    features: Mapping[str, xr.DataArray],
    responses: xr.DataArray,
    model: Any = None,
    *,
    cv: Any = 5,
    groups: Any = None,
    seed: int = 0,
    unpaired: str = "error",
    allow: Sequence[str] = (),
) -> xr.Dataset:
    """Return the unique and the shared parts of several feature spaces in r2.

    A model is fitted to every subset of the spaces, on the same folds. What only a fit with a
    space explains is unique to it; what is explained by any of several is shared by them
    (commonality analysis). The parts sum to the r2 of all spaces together, fold by fold. Held-out
    parts can be negative: small ones by chance, larger ones where spaces only help each other.

    Parameters
    ----------
    features : mapping of space to xarray.DataArray
        2 to 5 feature spaces, or kernels.
    responses : xarray.DataArray
    model : object with fit and predict, optional
        By default `RidgeCV` on the spaces side by side. With `BandedRidgeCV`, each space has its
        own penalty, and the scores also have ``r2_by_band``, the product measure of the full fit.
    cv, groups, seed, unpaired, allow
        See `cross_validate`.

    Returns
    -------
    xarray.Dataset
        ``r2`` and ``r`` (subset, fold, target); ``explained`` (part, fold, target), the parts,
        whose names are spaces joined by " & "; ``unique`` (space, fold, target); and
        ``r2_by_band`` (space, fold, target) of models with bands.

    Raises
    ------
    SchemaError
        There are fewer than 2 or more than 5 spaces.

    References
    ----------
    Seibold & McPhee (1979), Commonality analysis, Journal of Experimental Education 46.
    Lescroart, Stansbury & Gallant (2015), Fourier power, subjective distance, and object
    categories all provide plausible models of BOLD responses, Front. Comput. Neurosci. 9.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> ids = [f"s{i}" for i in range(2000)]
    >>> a, b = (xr.DataArray(rng.standard_normal((2000, 3)), {"stimulus": ids},
    ...         ("stimulus", "feature")) for _ in range(2))
    >>> Y = xr.DataArray(a.values[:, :1] + b.values[:, :1], {"stimulus": ids},
    ...                  ("stimulus", "unit"), attrs={"units": "a.u."})
    >>> found = variance_partition({"a": a, "b": b}, Y, RidgeCV(device="cpu"))
    >>> found["explained"].mean(["fold", "unit"]).values.round(1) + 0.0
    array([0.5, 0.5, 0. ])
    """
    spaces = check_features(features)
    if not 2 <= len(spaces) <= MAX_SPACES:
        raise SchemaError(
            f"variance_partition takes 2 to {MAX_SPACES} feature spaces, but got {len(spaces)}: "
            "every subset is fitted. Join those that belong together (concatenate_features)."
        )
    chosen = RidgeCV() if model is None else model
    names = list(spaces)
    subsets = [some for size in range(1, len(names) + 1) for some in combinations(names, size)]
    how = {"cv": cv, "groups": groups, "seed": seed, "unpaired": unpaired, "allow": allow}
    found = {some: _scored(chosen, spaces, some, responses, how) for some in subsets}
    target = target_dim(next(iter(found.values()))["r2"])
    r2 = np.stack([found[some]["r2"].values[0] for some in subsets])
    full = found[tuple(names)]
    labels = [JOIN.join(some) for some in subsets]
    coords = target_coords(full)
    parts = partition_matrix(names, subsets) @ r2.reshape(len(subsets), -1)
    dims = ("fold", target)
    result = xr.Dataset(
        {
            "r2": (("subset", *dims), r2),
            "r": (
                ("subset", *dims),
                np.stack([found[some]["r"].values[0] for some in subsets]),
            ),
            "explained": (("part", *dims), parts.reshape(r2.shape)),
        },
        coords | {"subset": labels, "part": labels, "space": names, "fold": full["fold"].values},
        {**full.attrs, "model": " ".join(repr(chosen).split())},
    )
    result["unique"] = (("space", *dims), result["explained"].sel(part=names).values)
    if "r2_by_band" in full:
        result["r2_by_band"] = (
            ("space", *dims),
            np.swapaxes(full["r2_by_band"].sel(band=names).values[0], 0, 1),
        )
    return result


def _scored(
    model: Any,
    spaces: Mapping[str, xr.DataArray],
    some: Sequence[str],
    responses: xr.DataArray,
    how: Mapping[str, Any],
) -> xr.Dataset:
    """Return the scores of a model of some spaces, each a band or all side by side."""
    own = {name: spaces[name] for name in some}
    if len(own) > 1 and not takes_bands(model):
        own = concatenate_features(own, JOIN.join(some))
    return cross_validate(clone(model), own, responses, **how)


def partition_matrix(names: Sequence[str], subsets: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Return what turns r2 of subsets (n_subsets,) into their parts (n_subsets,).

    The part of a set A is what every subset that meets A explains and no other does: with U all
    spaces, the sum over B within A of (-1)^(|B| + 1) r2((U without A) and B).

    Examples
    --------
    >>> partition_matrix(["a", "b"], [("a",), ("b",), ("a", "b")])
    array([[ 0., -1.,  1.],
           [-1.,  0.,  1.],
           [ 1.,  1., -1.]])
    """
    place = {frozenset(some): column for column, some in enumerate(subsets)}
    matrix = np.zeros((len(subsets), len(subsets)))
    for row, part in enumerate(subsets):
        rest = frozenset(names) - set(part)
        for size in range(len(part) + 1):
            for own in combinations(part, size):
                joined = rest | set(own)
                if joined:  # nothing explains nothing
                    matrix[row, place[joined]] += (-1) ** (size + 1)
    return matrix
