"""Weights of training stimuli, turned into weights of features by passing the stimuli again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr

from neurodl.backbones import Backbone
from neurodl.errors import SchemaError, listed
from neurodl.features.forward import ForwardPass, open_pass, readable_ids
from neurodl.runtime import available_memory
from neurodl.schema import is_kernel
from neurodl.stimuli import Stimuli

ROUNDING = 1e-5  # of sums in float32, as a share of what they would be without cancellation
COLUMNS = 2**16  # of features that are taken to float64 at once


class Dual:
    """The weights of the training stimuli, of a model that was fitted to their kernel.

    Parameters
    ----------
    model : fitted model
        With ``dual_coef_``, shape (n_samples, n_targets), whose columns sum to 0: then constants
        that were subtracted from features do not matter.
    kernel : xarray.DataArray, dims (stimulus, feature)
        Of the training stimuli, in their order.

    Raises
    ------
    SchemaError
        They do not belong together.
    """

    def __init__(self, model: Any, kernel: xr.DataArray) -> None:
        name = type(model).__name__
        if not hasattr(model, "dual_coef_"):
            raise ValueError(
                f"Weights of features are told from KernelRidgeCV(kernel='precomputed'), which has "
                f"`dual_coef_`, but got {name}, which has none."
            )
        if not is_kernel(kernel):
            raise SchemaError(
                f"{name} has kernel='precomputed', but `features` are features: give the kernel "
                "that it was fitted to."
            )
        coef = np.asarray(model.dual_coef_, np.float64)
        self.coef = coef.reshape(len(coef), -1)
        self.ids = kernel["stimulus"].values.tolist()
        in_order = self.ids == kernel["feature"].values.tolist()
        if not in_order or len(self.ids) != len(coef):
            raise SchemaError(
                f"{name} was fitted to {len(coef)} stimuli, but the kernel has "
                f"{len(self.ids)} rows{'' if in_order else ' and other columns'}. Give that of its "
                "training stimuli, in their order: kernel.sel(stimulus=ids, feature=ids)."
            )
        sums, sizes = np.abs(self.coef.sum(0)), np.abs(self.coef).sum(0)
        if (sums > 1e-3 * sizes).any():
            raise SchemaError(
                f"The weights of {name} do not sum to 0 over its training stimuli, so that they "
                "depend on the constant that kernels leave out of the features. Use "
                "KernelRidgeCV(kernel='precomputed')."
            )
        self.model, self.kernel = model, kernel
        self.n_targets = self.coef.shape[1]

    def predicted(self, n_stimuli: int, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the model's predictions for the first stimuli, and how exact they can be.

        Returns
        -------
        predicted : numpy.ndarray, shape (n_stimuli, n_chosen)
        rounding : numpy.ndarray, shape (n_chosen,)
            How far they may be off for the rounding of the kernel to float32.
        """
        some = self.kernel.values[:n_stimuli]
        predicted = np.asarray(self.model.predict(some)).reshape(n_stimuli, -1)[:, chosen]
        size = np.abs(some.astype(np.float64)) @ np.abs(self.coef[:, chosen])
        return predicted, ROUNDING * size.max(0)


def primal_weights(
    dual: Dual,
    chosen: np.ndarray,
    backbone: str | Backbone | None,
    stimuli: Stimuli | None,
    device: str,
    batch_size: int | str,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the weights of all features and how they are laid out; see `feature_weights`.

    Returns
    -------
    weights : numpy.ndarray, shape (n_chosen, n_features), float32
    layout : dict
        See `Taps`.
    """
    if backbone is None or stimuli is None:
        raise ValueError(
            "Weights of features from a kernel need the features once more: give `backbone` and "
            "`stimuli`."
        )
    attrs = dual.kernel.attrs
    run = open_pass(
        backbone,
        stimuli.sel(dual.ids),
        _only_layer(attrs),
        pool=str(attrs["pool"]),
        device=device,
        batch_size=batch_size,
        amp=attrs.get("precision", "float32") != "float32",
        time=str(attrs.get("time", "mean")),
    )
    _check_same(attrs, run)
    _check_room(len(chosen) * int(attrs["n_features"]), run.device)
    layer = run.layers[0]
    weights = torch.as_tensor(dual.coef[:, chosen], device=run.device)
    total, first = _summed(run, layer, weights)
    check_predictions(_products(first, total), *dual.predicted(len(first), chosen))
    return total.float().cpu().numpy(), run.layouts[layer]


def _only_layer(attrs: dict[str, Any]) -> str:
    layer = str(attrs["layer"])
    if "+" in layer:
        raise SchemaError(
            f"The kernel is the sum of those of the layers {layer}: give the kernel of one of "
            "them, for its weights."
        )
    return layer


def _check_same(attrs: dict[str, Any], run: ForwardPass) -> None:
    """Raise unless a pass makes the features that a kernel is of."""
    made = run.attrs(run.layers[0])
    other = [key for key in ("weights_sha256", "transform") if attrs.get(key) != made[key]]
    if other:
        raise SchemaError(
            f"The kernel is of {attrs.get('backbone')} with other {listed(other)} than "
            f"{run.backbone.name} has. Give the network that it was extracted with."
        )


def _check_room(n_weights: int, device: torch.device) -> None:
    n_bytes, free = 12 * n_weights, available_memory(device)
    if n_bytes > free:
        raise ValueError(
            f"The weights take {n_bytes / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are free. "
            "Choose fewer `targets` at a time."
        )


def _summed(
    run: ForwardPass, layer: str, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of weight times features, and the features of the first batch.

    Parameters
    ----------
    weights : torch.Tensor, shape (n_stimuli, n_targets), float64

    Returns
    -------
    total : torch.Tensor, shape (n_targets, n_features), float64
    first : torch.Tensor, shape (n_first, n_features), float32
        About their mean, as all features are in the sum: that keeps its terms small.
    """
    total = first = mean = torch.empty(0)
    seen = np.zeros(len(weights), bool)
    for _, batches in run.batches(range(run.n_chunks)):
        for numbers, features in batches:
            rows = features[layer]
            if not seen.any():
                mean = rows.mean(0)
                first = rows - mean
                total = weights.new_zeros(weights.shape[1], rows.shape[1])
            seen[numbers] = True
            own = weights[torch.as_tensor(numbers, device=weights.device)]
            parts = zip(*(x.split(COLUMNS, dim=1) for x in (total, rows - mean)), strict=True)
            for part, values in parts:
                part.addmm_(own.T, values.double())
    readable_ids(run.stimuli, seen, "raise")
    return total, first


def _products(rows: torch.Tensor, weights: torch.Tensor) -> np.ndarray:
    """Return the inner products of rows and weights, (n_rows, n_targets), float64."""
    products = weights.new_zeros(len(rows), len(weights))
    for some, own in zip(*(x.split(COLUMNS, dim=1) for x in (rows, weights)), strict=True):
        products += some.double() @ own.T
    return products.cpu().numpy()


def check_predictions(found: np.ndarray, predicted: np.ndarray, rounding: np.ndarray) -> None:
    """Raise unless weights predict what the model predicts, up to a constant.

    Parameters
    ----------
    found, predicted : numpy.ndarray, shape (n_samples, n_targets)
    rounding : numpy.ndarray, shape (n_targets,)
        How far they may be apart, besides 2 % of their range.
    """
    found, predicted = found - found.mean(0), predicted - predicted.mean(0)
    wrong = np.abs(found - predicted).max(0) > 0.02 * np.abs(predicted).max(0) + rounding
    if wrong.any():
        raise SchemaError(
            f"The weights of {int(wrong.sum())} of {len(wrong)} targets do not predict from the "
            "features what the model predicts. Are these the features, or the kernel and its "
            "images, that it was fitted to?"
        )
