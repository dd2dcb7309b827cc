"""Features and responses, paired by id; kernels and the models that take them."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.errors import PairingError, SchemaError, listed
from neurodl.features.population import POPULATION
from neurodl.schema import is_kernel, sample_dim, sample_ids
from neurodl.stimuli import Stimuli


def paired(
    layers: dict[str, xr.DataArray], responses: xr.DataArray, unpaired: str
) -> tuple[dict[str, xr.DataArray], xr.DataArray]:
    """Return features row by row as the responses are, looked up by id.

    Kernels have their columns taken along: both sides are as the rows of the responses, also
    where a stimulus was presented several times.
    """
    if unpaired not in ("error", "drop"):
        raise ValueError(f"`unpaired` must be 'error' or 'drop', but got {unpaired!r}.")
    first = next(iter(layers.values()))
    timed = sample_dim(first) == "time", sample_dim(responses) == "time"
    if timed[0] != timed[1]:
        raise PairingError(
            f"Features have dim {first.dims[0]!r} but responses {responses.dims[0]!r}: bring the "
            "features to the responses' samples first, or the responses to presentations "
            "(single_trial_betas)."
        )
    by_session = "session" in first.coords and "session" in responses.coords
    wanted, there = _keys(responses, by_session), _keys(first, by_session)
    for what, keys in (("Features", there), ("Responses", wanted if timed[1] else there)):
        if not keys.is_unique:
            raise PairingError(
                f"{what} have several rows for {listed(keys[keys.duplicated()].unique())}: give "
                "features and responses the coords run, and session where runs of several have "
                "one name."
            )
    rows = there.get_indexer(wanted)
    missing = wanted[rows < 0].unique()
    if len(missing) and (unpaired == "error" or (rows < 0).all()):
        raise PairingError(
            f"{len(missing)} ids of the responses have no features: {listed(missing)}. The "
            f"features are called {listed(there, 3)}. Extract them, correct the ids, or say "
            "unpaired='drop'."
        )
    responses = responses.isel({str(responses.dims[0]): rows >= 0})
    rows = rows[rows >= 0]
    taken = {name: _taken(array, rows) for name, array in layers.items()}
    for name, array in taken.items():
        _check_not_itself(name, array, responses)
    return taken, responses


def _check_not_itself(name: str, features: xr.DataArray, responses: xr.DataArray) -> None:
    """Raise if targets are predicted from themselves, by the activity of a population."""
    target = str(responses.dims[-1])
    if features.attrs.get("backbone") != POPULATION or target not in responses.coords:
        return
    if "feature" not in features.coords or responses.ndim != 2:
        return
    names = pd.Index(responses[target].values.astype(str))
    places = names.get_indexer(features["feature"].values.astype(str)) if names.is_unique else []
    same = [
        names[place]
        for column, place in enumerate(places)
        if place >= 0 and np.array_equal(features.values[:, column], responses.values[:, place])
    ]
    if same:
        raise PairingError(
            f"{len(same)} {target}s ({listed(same, 3)}) are among the features {name!r} they are "
            "predicted from: select other targets for one side."
        )


def stimulus_rows(model: Any, stimuli: Stimuli) -> dict[str, xr.DataArray]:
    """Return stimuli in the place of features, for a model that takes them: their row numbers.

    Raises
    ------
    SchemaError
        The model takes features.
    """
    if not takes_stimuli(model):
        raise SchemaError(
            f"{type(last_step(model)).__name__} takes features, but got stimuli: give it "
            "extract_features(backbone, stimuli, layers), or take a NeuralEncoder."
        )
    attrs = last_step(model).describe()
    return {attrs["layer"]: row_numbers(stimuli).assign_attrs(attrs)}


def row_numbers(stimuli: Stimuli) -> xr.DataArray:
    """Return the row number of each stimulus in the place of features, (n_stimuli, 1)."""
    rows = np.arange(len(stimuli), dtype=np.float64)[:, None]
    return xr.DataArray(rows, {"stimulus": stimuli.ids}, ("stimulus", "feature"))


def takes_stimuli(model: Any) -> bool:
    """Return whether a model is fitted to stimuli, not to features of them."""
    return bool(getattr(last_step(model), "takes_stimuli", False))


def _keys(array: xr.DataArray, by_session: bool) -> pd.Index:
    """Return one key per row: the stimulus; or session, if asked, run and time in milliseconds."""
    ids = sample_ids(array)
    if sample_dim(array) != "time":
        return ids
    runs = array["run"].values.astype(str) if "run" in array.coords else [""] * len(ids)
    keys = [f"run {run!s} at {time:.3f} s" for run, time in zip(runs, ids, strict=True)]
    if by_session:
        sessions = array["session"].values.astype(str)
        keys = [f"session {name}, {key}" for name, key in zip(sessions, keys, strict=True)]
    return pd.Index(keys)


def _taken(array: xr.DataArray, rows: np.ndarray) -> xr.DataArray:
    """Return some rows of features, or those rows and their columns of a kernel."""
    if not is_kernel(array):
        return array[rows]
    place = pd.Index(array["feature"].values).get_indexer(sample_ids(array)[rows])
    return array[rows, place]


def last_step(model: Any) -> Any:
    """Return the last step of a pipeline, or the model itself."""
    return model.steps[-1][1] if hasattr(model, "steps") else model


def takes_kernel(model: Any) -> bool:
    """Return whether a model, or the last step of a pipeline, is fitted to kernels."""
    return bool(getattr(last_step(model), "kernel", None) == "precomputed")


def takes_bands(model: Any) -> bool:
    """Return whether a model, or the last step of a pipeline, takes layers side by side as bands.

    One that was told its ``bands`` takes each layer for itself.
    """
    return getattr(last_step(model), "bands", ()) is None


def side_by_side(layers: dict[str, xr.DataArray]) -> tuple[xr.DataArray, np.ndarray]:
    """Return the features or kernels of all layers side by side, and the layer of each column."""
    arrays = list(layers.values())
    common = dict(arrays[0].attrs)
    for array in arrays[1:]:
        common = {key: value for key, value in common.items() if array.attrs.get(key) == value}
    common |= {"layer": "+".join(layers), "n_features": sum(map(n_features, arrays))}
    values = np.concatenate([array.values for array in arrays], 1)
    samples = str(arrays[0].dims[0])
    coords = {key: value for key, value in arrays[0].coords.items() if value.dims == (samples,)}
    joined = xr.DataArray(values, coords, (samples, "feature"), attrs=common)
    return joined, np.repeat(list(layers), [array.shape[1] for array in arrays])


def check_kernel_model(model: Any, layers: dict[str, xr.DataArray]) -> None:
    """Raise if kernels meet a model of features, or features a model of kernels.

    Raises
    ------
    SchemaError
        The message names the layers and says what to do.
    """
    wanted = takes_kernel(model)
    other = [name for name, array in layers.items() if is_kernel(array) != wanted]
    name = type(model).__name__
    if other and wanted:
        raise SchemaError(
            f"{name} has kernel='precomputed', but {listed(other)} are features: give it kernels "
            "of extract_kernels, or take a model of features, such as RidgeCV()."
        )
    if other:
        raise SchemaError(
            f"{listed(other)} are kernels, which {name} would take for features: use "
            "KernelRidgeCV(kernel='precomputed'), or extract_features for this model."
        )


def fit_parameter(model: Any, name: str) -> str | None:
    """Return what `fit` calls the parameter `name`, or None if it does not take it.

    A pipeline passes ``step__name`` on to its last step.
    """
    if name in inspect.signature(model.fit).parameters:
        return name
    if last_step(model) is model or not hasattr(last_step(model), "fit"):
        return None
    inner = fit_parameter(last_step(model), name)
    return f"{model.steps[-1][0]}__{inner}" if inner else None


def n_features(array: xr.DataArray) -> int:
    """Return the number of features, of a kernel those behind it."""
    return (
        int(array.attrs.get("n_features", array.shape[1])) if is_kernel(array) else array.shape[1]
    )
