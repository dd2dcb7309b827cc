"""Batch normalisation of untrained networks, set to the statistics of the training stimuli."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from neurodl.backbones import Backbone
from neurodl.errors import PairingError, did_you_mean
from neurodl.runtime import resolve_device
from neurodl.stimuli import Stimuli

MAX_STIMULI = 256
BatchNorm = nn.modules.batchnorm._BatchNorm


def calibrate_batchnorm(
    backbone: Backbone, stimuli: Stimuli, ids: Sequence[str], *, device: str = "auto"
) -> Backbone:
    """Return a backbone whose batch normalisation has the statistics of the training stimuli.

    An untrained network normalises with mean 0 and variance 1 of no data, so that its activations
    shrink or grow from layer to layer; with the statistics of stimuli it is a fairer control. All
    stimuli pass as one batch, so that the statistics of every layer are exactly those of this set;
    about 100 are enough, since every place of a map counts.

    Parameters
    ----------
    backbone : Backbone
        Left as it is.
    stimuli : Stimuli
    ids : sequence of str
        The training stimuli, at most 256, so that test stimuli shape no feature.
    device : str
        See `resolve_device`.

    Returns
    -------
    Backbone
        A copy, named so in `weights` and hence in all results.

    Raises
    ------
    PairingError
        An id is not among the stimuli, or repeats.
    ValueError
        The network has no batch normalisation with running statistics, or there are fewer than 2
        or too many stimuli.

    Examples
    --------
    >>> from neurodl.backbones import load_backbone
    >>> backbone = load_backbone("torchvision:resnet18", pretrained=False)
    >>> images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8).numpy()
    >>> stimuli = Stimuli.from_arrays(images, ids=["a", "b", "c", "d"])
    >>> calibrate_batchnorm(backbone, stimuli, ids=["a", "b"], device="cpu").weights
    'untrained, seed 0, batch norm calibrated on 2 stimuli'
    """
    rows = _rows(stimuli, list(ids))
    module = copy.deepcopy(backbone.module)
    norms = [part for part in module.modules() if has_statistics(part)]
    if not norms:
        raise ValueError(
            f"{backbone.name} has no batch normalisation with running statistics: there is "
            "nothing to calibrate; use it as it is."
        )
    chosen = resolve_device(device)
    inputs = [backbone.transform(stimuli[row]) for row in rows]
    framewise = backbone.kind == "image" and inputs[0].ndim == 4
    batch = torch.cat(inputs) if framewise else torch.stack(inputs)
    module.to(chosen)
    handles = [norm.register_forward_pre_hook(take_statistics) for norm in norms]
    with torch.no_grad():
        module(batch.to(chosen))
    for handle in handles:
        handle.remove()
    origin = f"{backbone.weights}, batch norm calibrated on {len(rows)} stimuli"
    fitted_on = (*backbone.fitted_on, *ids)
    return dataclasses.replace(backbone, module=module.cpu(), weights=origin, fitted_on=fitted_on)


def has_statistics(part: nn.Module) -> bool:
    """Return whether a module is batch normalisation with running statistics."""
    return isinstance(part, BatchNorm) and part.running_mean is not None


def take_statistics(norm: Any, inputs: tuple[torch.Tensor, ...]) -> None:
    """Set a layer's statistics to those of its input, before it normalises by them."""
    places = [axis for axis in range(inputs[0].ndim) if axis != 1]
    # Biased, as in training: the output has variance 1 over this set.
    variance, mean = torch.var_mean(inputs[0], places, correction=0)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def _rows(stimuli: Stimuli, ids: list[str]) -> list[int]:
    """Return where the ids are in the stimuli."""
    if not 2 <= len(ids) <= MAX_STIMULI:
        raise ValueError(
            f"`ids` must name 2 to {MAX_STIMULI} training stimuli, which pass as one batch, but "
            f"got {len(ids)}. Give a random sample of the training ids."
        )
    if len(set(ids)) < len(ids):
        raise PairingError("`ids` names a stimulus more than once; give each id once.")
    row_of = {name: row for row, name in enumerate(stimuli.ids)}
    for name in ids:
        if name not in row_of:
            raise PairingError(f"`ids` has no stimulus {name!r}. {did_you_mean(name, row_of)}")
    return [row_of[name] for name in ids]
