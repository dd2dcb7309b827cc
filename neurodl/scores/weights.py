"""What a fitted encoding model weighs: a layer's features on their own axes, places in an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from sklearn.utils.validation import check_is_fitted
from torch.nn import functional

from neurodl.backbones import Backbone
from neurodl.backbones.crop import Box, crop_box
from neurodl.errors import SchemaError
from neurodl.features.pool import LAYOUT
from neurodl.schema import check_features, check_responses, is_kernel, target_dim
from neurodl.scores.dual import ROUNDING, Dual, check_predictions, primal_weights
from neurodl.scores.pairing import takes_kernel
from neurodl.stimuli import Stimuli

N_CHECKED = 16  # rows whose predictions tell whether weights are what they seem
KEPT_ATTRS = ("backbone", "layer", "pool", "reduce", "weights", "weights_sha256", "transform")


def feature_weights(
    model: Any,
    features: xr.DataArray,
    *,
    targets: Sequence[int] | None = None,
    responses: xr.DataArray | None = None,
    backbone: str | Backbone | None = None,
    stimuli: Stimuli | None = None,
    device: str = "auto",
    batch_size: int | str = "auto",
) -> xr.DataArray:
    """Return the weights of a fitted linear model on the axes of the layer that it was fitted to.

    A model of features has them. A model of a kernel has weights of its training stimuli: the
    weights of the features are the sum over these stimuli of weight times features, for which
    they pass through the network once more, batch by batch; no features are held. Of a model of
    layers side by side (`concatenate_features` of kernels), give the kernel of the one layer.

    Parameters
    ----------
    model : fitted model
        `RidgeCV` or another with ``coef_``; or ``KernelRidgeCV(kernel="precomputed")``.
    features : xarray.DataArray
        What it was fitted to, from `extract_features` or `extract_kernels`; a kernel with the
        training stimuli in their order.
    targets : sequence of int, optional
        Which targets; by default all.
    responses : xarray.DataArray, optional
        What it was fitted to; its coords of targets are taken over.
    backbone, stimuli : optional
        For kernels: the network, and stimuli among which are those of the kernel.
    device, batch_size
        For kernels: see `extract_features`.

    Returns
    -------
    xarray.DataArray, float32
        On the features as they are, not scaled, whatever the model did. Dims ``(target, [delay,]
        channel, y, x)`` where the layer has maps, also averaged ones; ``(target, token,
        channel)`` of all tokens; else ``(target, feature)``. NaN where the model left a target
        out.

    Raises
    ------
    SchemaError
        Model, features, network and stimuli do not belong together.
    ValueError
        The model has no such weights, or those of all targets do not fit into memory.

    Examples
    --------
    >>> from neurodl.features import extract_features
    >>> from neurodl.models import RidgeCV
    >>> rng = np.random.default_rng(0)
    >>> stimuli = Stimuli.from_arrays(rng.integers(0, 256, (20, 32, 32), dtype=np.uint8))
    >>> energy = extract_features("gabor", stimuli, ["octave.4"], cache=False)["octave.4"]
    >>> model = RidgeCV([1.0], device="cpu").fit(energy.values, rng.standard_normal((20, 3)))
    >>> feature_weights(model, energy).sizes
    Frozen({'target': 3, 'channel': 8, 'y': 2, 'x': 2})
    """
    check_is_fitted(model)
    check_features(features)
    if takes_kernel(model):
        dual = Dual(model, features)
        chosen = _chosen(targets, dual.n_targets)
        values, layout = primal_weights(dual, chosen, backbone, stimuli, device, batch_size)
    else:
        coef = _coef(model, features)
        chosen = _chosen(targets, len(coef))
        values, layout = coef[chosen], features.attrs
        _check_coef(model, features, values, chosen)
    return _labelled(values, chosen, features, layout, model, responses)


def weight_maps(
    weights: xr.DataArray,
    *,
    image_size: tuple[int, int] | None = None,
    backbone: Backbone | None = None,
) -> xr.DataArray:
    """Return where in the image each target looks: the size of its weights at each place.

    The root mean square of the weights over channels at each place of the layer, interpolated to
    the image. It takes the places of a layer to tile the network's input evenly, and knows nothing
    of how far each of them sees: a crude receptive field.

    Parameters
    ----------
    weights : xarray.DataArray
        See `feature_weights`; of a layer with places.
    image_size : (height, width), optional
        Maps on an image of this size [pixels] instead of the network's input.
    backbone : Backbone, optional
        With `image_size`: the network, whose transform says which part of an image it sees.

    Returns
    -------
    xarray.DataArray, dims (target, y, x), float32
        Coords y and x: the centres of pixels, from the top left corner [pixels]. NaN where the
        network sees nothing of the image.

    Raises
    ------
    SchemaError
        The weights have no places, or are those of another transform.
    ValueError
        What part of the image the network sees cannot be told; see `crop_box`.

    Examples
    --------
    >>> weights = xr.DataArray(
    ...     np.array([[[[0.0, 3.0]], [[0.0, 4.0]]]]), dims=("target", "channel", "y", "x"),
    ...     attrs={"input_size": [1, 4]})
    >>> weight_maps(weights).values.round(2)
    array([[[0.  , 0.88, 2.65, 3.54]]], dtype=float32)
    """
    places = torch.as_tensor(_sizes_at_places(weights))
    if (image_size is None) != (backbone is None):
        raise ValueError("`image_size` and `backbone` go together: give both, or neither.")
    if image_size is None or backbone is None:
        height, width = (int(side) for side in weights.attrs["input_size"])
        box = Box(0, 0, height, width)
    else:
        if backbone.transform.text != weights.attrs.get("transform"):
            raise SchemaError(
                f"The weights are of images that were transformed by "
                f"{weights.attrs.get('transform')!r}, but {backbone.name} does "
                f"{backbone.transform.text!r}. Give the network that the features are of."
            )
        height, width = (int(side) for side in image_size)
        box = crop_box(backbone.transform, height, width)
    y, x = np.arange(height) + 0.5, np.arange(width) + 0.5
    maps = xr.DataArray(
        _interpolated(places, (y - box.top) / box.height, (x - box.left) / box.width),
        dims=("target", "y", "x"),
        coords={"y": y, "x": x},
        attrs={key: value for key, value in weights.attrs.items() if key in KEPT_ATTRS},
    )
    return maps.assign_coords({k: v for k, v in weights.coords.items() if v.dims == ("target",)})


def _chosen(targets: Sequence[int] | None, n_targets: int) -> np.ndarray:
    """Return which targets are wanted, (n_chosen,)."""
    chosen = np.arange(n_targets) if targets is None else np.asarray(targets)
    whole = chosen.ndim == 1 and len(chosen) and chosen.dtype.kind in "iu"
    if not whole or chosen.min() < 0 or chosen.max() >= n_targets:
        raise ValueError(
            f"`targets` must be a list of whole numbers from 0 to {n_targets - 1}, but got "
            f"{targets!r:.60}."
        )
    return chosen


def _coef(model: Any, features: xr.DataArray) -> np.ndarray:
    """Return the weights of a model of features, (n_targets, [n_delays *] n_features)."""
    if is_kernel(features) or not hasattr(model, "coef_"):
        raise ValueError(
            f"Weights of features are those of a linear model: one with `coef_`, as RidgeCV, and "
            "features; or KernelRidgeCV(kernel='precomputed') and a kernel. But got "
            f"{type(model).__name__} and {'a kernel' if is_kernel(features) else 'features'}."
        )
    coef = np.atleast_2d(np.asarray(model.coef_))
    expected = features.shape[1] * len(_delays(model) or [0])
    if coef.shape[1] != expected:
        raise SchemaError(
            f"The model has weights of {coef.shape[1]} features, but `features` has {expected}. "
            "Give those that it was fitted to."
        )
    return coef


def _check_coef(model: Any, features: xr.DataArray, coef: np.ndarray, chosen: np.ndarray) -> None:
    """Raise unless weights (n_chosen, n_features) predict as the model does, row by row."""
    if _delays(model) is not None or getattr(model, "centre", "all") == "runs":
        return  # rows are not predicted by themselves
    rows = features.values[:N_CHECKED]
    predicted = np.asarray(model.predict(rows)).reshape(len(rows), -1)[:, chosen]
    size = np.abs(rows).astype(np.float64) @ np.abs(coef.T)
    check_predictions(rows @ coef.T, predicted, ROUNDING * size.max(0))


def _delays(model: Any) -> list[int] | None:
    delays = getattr(model, "delays", None)
    return None if delays is None else [int(delay) for delay in delays]


def _labelled(
    values: np.ndarray,
    chosen: np.ndarray,
    features: xr.DataArray,
    layout: dict[str, Any],
    model: Any,
    responses: xr.DataArray | None,
) -> xr.DataArray:
    """Return weights (n_chosen, [n_delays *] n_features) with names and sizes of their axes."""
    axes = str(layout.get("feature_axes", "feature")).split()
    sizes = [int(size) for size in layout.get("feature_shape", [-1])]
    delays = _delays(model)
    n_features = values.shape[1] // len(delays or [0])
    if "feature_axes" in layout and math.prod(sizes) != n_features:
        raise SchemaError(
            f"`features` says that its rows are {' x '.join(map(str, sizes))} ({', '.join(axes)}), "
            f"but they have {n_features} features. Of features that were selected, take off the "
            f"attrs {LAYOUT[:2]} first."
        )
    coords: dict[str, Any] = {"target": chosen, **_target_coords(responses, chosen)}
    if axes == ["feature"] and not is_kernel(features):
        own = features.coords.items()
        coords |= {str(name): one for name, one in own if one.dims == ("feature",)}
    if delays is not None:
        axes, sizes, coords["delay"] = ["delay", *axes], [len(delays), *sizes], delays
    attrs = {**features.attrs, **layout}
    weights = xr.DataArray(
        values.reshape(len(values), *sizes).astype(np.float32, copy=False),
        dims=("target", *axes),
        coords=coords,
        attrs={key: attrs[key] for key in (*KEPT_ATTRS, *LAYOUT[2:]) if key in attrs},
    )
    return weights.transpose(..., "channel", "y", "x") if "y" in axes else weights


def _target_coords(responses: xr.DataArray | None, chosen: np.ndarray) -> dict[str, Any]:
    """Return what the responses say of the chosen targets."""
    if responses is None:
        return {}
    dim = target_dim(check_responses(responses))
    if chosen.max() >= responses.sizes[dim]:
        raise SchemaError(
            f"`responses` has {responses.sizes[dim]} targets, but weights of target "
            f"{chosen.max()} were asked for. Give the responses that the model was fitted to."
        )
    found = responses.coords.items()
    return {str(name): ("target", one.values[chosen]) for name, one in found if one.dims == (dim,)}


def _sizes_at_places(weights: xr.DataArray) -> np.ndarray:
    """Return the root mean square of the weights at each place, (n_targets, n_y, n_x), float32."""
    if "token" in weights.dims:
        weights = weights.isel(token=slice(int(weights.attrs.get("n_prefix_tokens", 0)), None))
        side = math.isqrt(weights.sizes["token"])
        if side * side == weights.sizes["token"]:
            patches = weights.transpose("token", ...)
            values = patches.values.reshape(side, side, *patches.shape[1:])
            weights = xr.DataArray(values, dims=("y", "x", *patches.dims[1:]))
    if not {"target", "y", "x"} <= set(weights.dims) or weights.sizes["y"] * weights.sizes["x"] < 2:
        raise SchemaError(
            "Maps need weights at several places, dims y and x, or patch tokens that make a "
            f"square, but the weights have {dict(weights.sizes)}. Extract the layer with "
            "pool='spatial:7' or 'flatten', not reduced, or its kernel."
        )
    others = [dim for dim in weights.dims if dim not in ("target", "y", "x")]
    squares = weights.astype(np.float64) ** 2
    mean = squares.mean(others)
    return np.sqrt(mean.transpose("target", "y", "x").values).astype(np.float32)


def _interpolated(places: torch.Tensor, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return maps at `y` and `x`, as shares of the input's sides; NaN outside of 0 to 1.

    Parameters
    ----------
    places : torch.Tensor, shape (n_targets, n_y, n_x)
    y, x : numpy.ndarray, shape (height,) and (width,)
    """
    rows, columns = (torch.as_tensor(2 * axis - 1, dtype=places.dtype) for axis in (y, x))
    grid = torch.stack(torch.broadcast_tensors(columns[None], rows[:, None]), -1)
    found = functional.grid_sample(
        places[None], grid[None], padding_mode="border", align_corners=False
    )[0].numpy()
    seen = np.logical_and.outer((y >= 0) & (y <= 1), (x >= 0) & (x <= 1))
    return np.where(seen, found, np.float32(np.nan))
