"""The data format: plain xarray, checked by functions. docs/schema.md says the same in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.errors import SchemaError, listed

SAMPLE_DIMS = ("stimulus", "presentation", "time")
TARGET_DIMS = ("voxel", "vertex", "parcel", "unit", "channel")
SCORE_VARIABLES = ("r", "r2")
# Names in scores, which a coord of the targets cannot have there.
OF_SCORES = {
    "r", "r2", "alpha", "ceiling", "r_normalized", "p", "p_fwe", "q", "q_by", "r_low", "r_high",
    "weight", "alpha_by_band", "cv_score_by_band", "r2_by_band", "predicted", "observed",
    "difference", "explained", "deviance", "pseudo_r2", "bits_per_spike", "unique", "similarity",
    "target_centre", "mean", "low", "high", "sd", "n_subjects", "gain", "layer", "fold", "band",
    "backbone", "weights", "n_features",
}  # fmt: skip
LOOKED_AT = 1 << 22  # values at a time, in a search for infinite ones


def target_dim(array: xr.DataArray | xr.Dataset) -> str:
    """Return the name of the one target dim of responses or scores.

    Raises
    ------
    SchemaError
        There is none, or more than one.

    Examples
    --------
    >>> target_dim(xr.DataArray(np.zeros((2, 3)), dims=("stimulus", "voxel")))
    'voxel'
    """
    found = [str(dim) for dim in array.dims if dim in TARGET_DIMS]
    if len(found) != 1:
        raise SchemaError(
            f"Expected exactly one target dim out of {TARGET_DIMS}, but the dims are "
            f"{tuple(array.dims)}."
        )
    return found[0]


def target_coords(array: xr.DataArray | xr.Dataset) -> dict[str, xr.Variable]:
    """Return the coords of the targets, for an array or scores of the same targets.

    One that has the name of something in scores, such as the r2 of receptive fields, is called
    ``given_r2``.

    Examples
    --------
    >>> array = xr.DataArray(np.zeros((1, 2)), dims=("stimulus", "voxel"),
    ...                      coords={"roi": ("voxel", ["V1", "V2"]), "r2": ("voxel", [0.1, 0.2])})
    >>> list(target_coords(array))
    ['roi', 'given_r2']
    """
    target = target_dim(array)
    found = {str(name): one.variable for name, one in array.coords.items() if one.dims == (target,)}
    return {f"given_{name}" if name in OF_SCORES else name: one for name, one in found.items()}


def sample_dim(array: xr.DataArray) -> str:
    """Return the name of the first dim, which must be one of `SAMPLE_DIMS`.

    Raises
    ------
    SchemaError
        The first dim is something else.
    """
    first = str(array.dims[0]) if array.dims else "(none)"
    if first not in SAMPLE_DIMS:
        raise SchemaError(
            f"The first dim must be one of {SAMPLE_DIMS}, but it is {first!r} "
            f"(dims {tuple(array.dims)})."
        )
    return first


def sample_ids(array: xr.DataArray) -> pd.Index:
    """Return what identifies each row: stimulus ids, or times [s] of a time series."""
    name = "time" if sample_dim(array) == "time" else "stimulus"
    return pd.Index(array[name].values)


def check_responses(responses: xr.DataArray) -> xr.DataArray:
    """Return `responses` unchanged if they follow the schema.

    Parameters
    ----------
    responses : xarray.DataArray
        Dims ``(stimulus | presentation | time [, repeat] [, time], target)``, floating point.
        NaN marks a missing value; what has NaN is counted and excluded later, never averaged in.

    Raises
    ------
    SchemaError
        The message names the dim, coord, id or attr at fault.

    Examples
    --------
    >>> responses = xr.DataArray(
    ...     np.zeros((2, 3), "float32"), dims=("stimulus", "unit"),
    ...     coords={"stimulus": ["a", "b"]}, attrs={"units": "spikes"})
    >>> check_responses(responses).shape
    (2, 3)
    """
    what = "responses"
    _check_array(responses, what)
    samples = sample_dim(responses)
    target = target_dim(responses)
    allowed = [samples, "repeat", "time", target]
    unknown = [dim for dim in responses.dims if dim not in allowed]
    if unknown:
        raise SchemaError(f"{what} have the unknown dims {unknown}; allowed are {allowed}.")
    expected = [dim for dim in dict.fromkeys(allowed) if dim in responses.dims]
    if list(responses.dims) != expected:
        raise SchemaError(
            f"{what} have dims {tuple(responses.dims)}; the order must be {tuple(expected)}. "
            f"Use responses.transpose{tuple(expected)}."
        )
    if responses.sizes[samples] == 0 or responses.sizes[target] == 0:
        raise SchemaError(f"{what} are empty: their sizes are {dict(responses.sizes)}.")
    _check_sample_ids(responses, what, unique=samples == "stimulus")
    if not isinstance(responses.attrs.get("units"), str):
        raise SchemaError(
            f"{what} lack the attr 'units' (a string such as 'z-scored BOLD' or 'spikes / s')."
        )
    if "time" in responses.dims and not {"tr", "bin_width"} & set(responses.attrs):
        raise SchemaError(f"{what} have a time dim, so they need the attr 'tr' or 'bin_width' [s].")
    infinite = _rows_with_infinity(responses.values)
    if infinite.any():
        rows = np.flatnonzero(infinite)
        raise SchemaError(
            f"{what} hold infinite values in {len(rows)} rows "
            f"({listed(sample_ids(responses)[rows])}). Replace them by NaN or correct them."
        )
    return responses


def check_features(
    features: xr.DataArray | Mapping[str, xr.DataArray],
) -> dict[str, xr.DataArray]:
    """Return `features` as a dict from layer to array if they follow the schema.

    Parameters
    ----------
    features : xarray.DataArray or mapping of layer name to xarray.DataArray
        Each with dims ``(stimulus | time, feature)``, finite, the same ids in every layer. A
        single array is filed under its attr ``layer``.
        A kernel (`is_kernel`) is square: the ids of its columns, coord ``feature``, are those of
        its rows, in any order.

    Raises
    ------
    SchemaError
        The message names the layer and the dim, coord, id or attr at fault.
    """
    if isinstance(features, xr.DataArray):
        features = {str(features.attrs.get("layer", "features")): features}
    if not isinstance(features, Mapping) or not features:
        raise SchemaError(
            "features must be a DataArray or a non-empty mapping from layer name to DataArray, "
            f"but got {type(features).__name__}."
        )
    first: pd.Index | None = None
    for layer, array in features.items():
        what = f"features[{layer!r}]"
        _check_array(array, what)
        if array.dims not in [("stimulus", "feature"), ("time", "feature")]:
            raise SchemaError(
                f"{what} have dims {tuple(array.dims)}; they must be ('stimulus', 'feature') or "
                "('time', 'feature')."
            )
        _check_sample_ids(array, what, unique=array.dims[0] == "stimulus")
        if is_kernel(array):
            _check_kernel(array, what)
        finite = np.isfinite(array.values).all(1)
        if not finite.all():
            rows = sample_ids(array)[~finite]
            raise SchemaError(
                f"{what} hold NaN or infinite values in {len(rows)} rows ({listed(rows)}). "
                "Drop these stimuli, or look for a backbone that overflows (try amp=False)."
            )
        ids = sample_ids(array)
        if first is not None and not first.equals(ids):
            raise SchemaError(f"{what} have other ids, or another order, than the first layer.")
        first = ids
    return dict(features)


def is_kernel(array: xr.DataArray) -> bool:
    """Return whether features are a kernel: inner products of stimuli, square.

    Examples
    --------
    >>> is_kernel(xr.DataArray(np.eye(2), dims=("stimulus", "feature"), attrs={"kind": "kernel"}))
    True
    """
    return array.attrs.get("kind") == "kernel"


def check_scores(scores: xr.Dataset) -> xr.Dataset:
    """Return `scores` unchanged if they follow the schema.

    Parameters
    ----------
    scores : xarray.Dataset
        ``r`` and ``r2`` with dims ``([layer,] fold, target)``, both over the same dims, and
        optionally ``alpha``, ``ceiling``, ``r_normalized``, ``p``, ``q``. NaN marks a target
        that was excluded or has no score in a fold.

    Raises
    ------
    SchemaError
        The message names the variable, dim or attr at fault.
    """
    if not isinstance(scores, xr.Dataset):
        raise SchemaError(f"scores must be an xarray.Dataset, but got {type(scores).__name__}.")
    missing = [name for name in SCORE_VARIABLES if name not in scores]
    if missing:
        raise SchemaError(f"scores lack the variables {missing}; they hold {list(scores)}.")
    target = target_dim(scores["r"])
    expected = ("layer", "fold", target) if "layer" in scores["r"].dims else ("fold", target)
    for name in SCORE_VARIABLES:
        if scores[name].dims != expected:
            raise SchemaError(
                f"scores[{name!r}] has dims {scores[name].dims}; they must be {expected}."
            )
    for name in ("r", "ceiling"):
        if name in scores and (np.abs(scores[name].values) > 1 + 1e-6).any():
            raise SchemaError(f"scores[{name!r}] holds values outside [-1, 1].")
    if "layer" in scores.dims:
        layers = pd.Index(scores["layer"].values)
        if not layers.is_unique:
            raise SchemaError(f"layer names repeat: {listed(layers[layers.duplicated()])}.")
    _check_attrs(scores.attrs, "scores")
    return scores


def _rows_with_infinity(values: np.ndarray) -> np.ndarray:
    """Return which rows have infinite values, looking at a few rows at a time."""
    found = np.zeros(len(values), bool)
    n_rows = max(1, LOOKED_AT // max(1, values[:1].size))
    for start in range(0, len(values), n_rows):
        block = values[start : start + n_rows]
        found[start : start + n_rows] = np.isinf(block).reshape(len(block), -1).any(1)
    return found


def _check_array(array: Any, what: str) -> None:
    """Check type, dtype, index kind and attrs, which every array shares."""
    if not isinstance(array, xr.DataArray):
        raise SchemaError(
            f"{what} must be an xarray.DataArray, but got {type(array).__name__}. "
            "Experiment.from_files pairs plain arrays with ids."
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise SchemaError(
            f"{what} have dtype {array.dtype}; they must be floating point. Use .astype('float32')."
        )
    for name, index in array.indexes.items():
        if isinstance(index, pd.MultiIndex):
            raise SchemaError(f"{what}: coord {name!r} is a MultiIndex; use one coord per level.")
    _check_attrs(array.attrs, what)


def _check_kernel(kernel: xr.DataArray, what: str) -> None:
    """Check that a kernel has the ids of its rows, once each, as its columns."""
    if kernel.dims != ("stimulus", "feature"):
        raise SchemaError(f"{what} are a kernel, so their dims must be ('stimulus', 'feature').")
    if "feature" not in kernel.coords:
        raise SchemaError(f"{what} are a kernel, so they need ids of columns as coord 'feature'.")
    rows, columns = sample_ids(kernel), pd.Index(kernel["feature"].values)
    alone = rows.symmetric_difference(columns)
    if len(alone) or len(rows) != len(columns):
        raise SchemaError(
            f"{what} are a kernel of {len(rows)} rows and {len(columns)} columns, and "
            f"{len(alone)} ids are only in one of them ({listed(alone)}). Select both: "
            "kernel.sel(stimulus=ids, feature=ids)."
        )


def _check_sample_ids(array: xr.DataArray, what: str, *, unique: bool) -> None:
    """Check the ids along the first dim: string stimulus ids, or increasing times."""
    samples = str(array.dims[0])
    name = "time" if samples == "time" else "stimulus"
    if name not in array.coords or array[name].dims != (samples,):
        raise SchemaError(f"{what} lack the coord {name!r} along their dim {samples!r}.")
    if samples == "time":
        _check_times(array, what)
        return
    ids = pd.Index(array[name].values)
    not_text = [value for value in ids if not isinstance(value, str)]
    if not_text:
        raise SchemaError(
            f"{what}: stimulus ids must be strings, but {len(not_text)} are not, e.g. "
            f"{not_text[0]!r} ({type(not_text[0]).__name__})."
        )
    if unique and not ids.is_unique:
        repeated = ids[ids.duplicated()].unique()
        raise SchemaError(
            f"{what}: {len(repeated)} stimulus ids repeat along dim 'stimulus' "
            f"({listed(repeated)}). Repeated presentations use dim 'presentation', or a "
            "'repeat' dim."
        )


def _check_times(array: xr.DataArray, what: str) -> None:
    """Check that times rise within each run of each session."""
    times = array["time"].values
    if not np.issubdtype(times.dtype, np.number):
        raise SchemaError(
            f"{what}: coord 'time' must be in seconds, but its dtype is {times.dtype}."
        )
    if not np.isfinite(times).all():
        rows = np.flatnonzero(~np.isfinite(times))
        raise SchemaError(
            f"{what}: coord 'time' is not finite in {len(rows)} rows, first {rows[0]}."
        )
    inside = np.ones(max(len(times) - 1, 0), bool)
    for name in ("run", "session") if "run" in array.coords else ():
        if name in array.coords:
            labels = array[name].values
            inside &= labels[1:] == labels[:-1]
    falls = np.flatnonzero((np.diff(times) <= 0) & inside)
    if len(falls):
        raise SchemaError(
            f"{what}: coord 'time' does not rise at row {falls[0] + 1} "
            f"({times[falls[0]]:g} s, then {times[falls[0] + 1]:g} s). Several runs need a coord "
            "'run'."
        )


def _check_attrs(attrs: Mapping[Any, Any], what: str) -> None:
    """Check that attrs survive netCDF: strings, numbers, and flat lists of numbers."""
    for name, value in attrs.items():
        if isinstance(value, (str, int, float, np.integer, np.floating)) and not isinstance(
            value, bool
        ):
            continue
        if isinstance(value, (list, tuple, np.ndarray)) and _is_numeric_list(value):
            continue
        raise SchemaError(
            f"{what}: attr {name!r} is {value!r} ({type(value).__name__}); attrs hold strings, "
            "numbers and flat lists of numbers only (netCDF rejects None, bool and dict)."
        )


def _is_numeric_list(values: Any) -> bool:
    array = np.asarray(values)
    return array.ndim == 1 and (array.size == 0 or np.issubdtype(array.dtype, np.number))
