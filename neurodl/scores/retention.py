"""What adaptation did to a network: how far its layers moved, and what it can no longer do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from neurodl.backbones import Backbone
from neurodl.features import extract_features
from neurodl.models import NeuralEncoder
from neurodl.models._anchors import class_scores, source_labels
from neurodl.models._shown import Shown
from neurodl.runtime import lent, resolve_device
from neurodl.scores.similarity import cka
from neurodl.stimuli import Stimuli

N_AT_ONCE = 64


def forgetting(
    model: NeuralEncoder,
    stimuli: Stimuli,
    *,
    layers: str | Sequence[str] | None = None,
    source: Stimuli | None = None,
    pool: str = "spatial:7",
    device: str = "auto",
) -> xr.Dataset:
    """Return how far a fitted `NeuralEncoder` took its network from where it came from.

    Parameters
    ----------
    model : NeuralEncoder
        Fitted.
    stimuli : Stimuli
        At which the layers are compared.
    layers : str or sequence of str, optional
        See `Backbone.check_layers`; by default its coarse steps.
    source : Stimuli, optional
        Of the network's own task, with the class of each in the column label of its table.
    pool, device
        See `extract_features`.

    Returns
    -------
    xarray.Dataset
        ``cka`` (layer), the alignment of each layer with itself before, 1 where nothing moved;
        ``weight_change`` (layer), the norm of the change of the layer's weights by the norm of
        the weights; and with `source` ``accuracy`` (state) "before" and "after".

    Raises
    ------
    NotFittedError, SchemaError
        The model is not fitted; the source has no labels, or the network no classes.

    References
    ----------
    Kornblith, Norouzi, Lee & Hinton (2019), Similarity of neural network representations
    revisited, ICML.
    """
    after = model.network().backbone
    before, _ = model.opened()
    chosen = before.check_layers(layers)
    described = [
        extract_features(one, stimuli, chosen, pool=pool, device=device, cache=False)
        for one in (before, after)
    ]
    scores = xr.Dataset(
        {
            "cka": ("layer", [cka(*(one[name].values for one in described)) for name in chosen]),
            "weight_change": ("layer", [_change(before, after, name) for name in chosen]),
        },
        {"layer": chosen},
        {"backbone": before.name, "finetune": str(model.finetune), "n_stimuli": len(stimuli)},
    )
    if source is None:
        return scores
    labels = source_labels(source).numpy()
    found = [_accuracy(one, source, labels, resolve_device(device)) for one in (before, after)]
    scores["accuracy"] = ("state", found)
    return scores.assign_coords(state=["before", "after"]).assign_attrs(n_source=len(source))


def _change(before: Backbone, after: Backbone, layer: str) -> float:
    """Return the norm of the change of a layer's weights relative to them; NaN without any."""
    old = dict(before.module.get_submodule(layer).named_parameters())
    new = dict(after.module.get_submodule(layer).named_parameters())
    squares = [
        (float((new[name] - one).detach().square().sum()), float(one.detach().square().sum()))
        for name, one in old.items()
    ]
    moved, size = np.sum(squares, 0) if squares else (0.0, 0.0)
    return float(np.sqrt(moved / size)) if size else float("nan")


@torch.inference_mode()
def _accuracy(
    backbone: Backbone, source: Stimuli, labels: np.ndarray, device: torch.device
) -> float:
    """Return the share of the source set whose class the network names."""
    shown = Shown(backbone, source)
    n_right = 0
    with lent(backbone.module, device) as module:
        for start in range(0, len(source), N_AT_ONCE):
            rows = np.arange(start, min(start + N_AT_ONCE, len(source)))
            inputs = backbone.as_input(shown.inputs(rows).to(device))
            said = class_scores(module, inputs, backbone.name).argmax(1)
            n_right += int((said.cpu().numpy() == labels[rows]).sum())
    return n_right / len(source)
