"""Whether weights look as if a network had never been trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

UNTRAINED = "untrained"  # how the text of weights begins that are meant to be so
MIN_WEIGHTS = 500  # of a layer whose distribution is looked at
MIN_LAYERS = 3
MAX_LAYERS = 20
MOST = 0.9  # of the layers
Norm = nn.modules.batchnorm._BatchNorm


def signs_untrained(module: nn.Module) -> str:
    """Return why weights look untrained, in words; empty where nothing does.

    Batch normalisation that has seen no data; layers whose weights have the law that PyTorch draws
    them from, which training leaves; normalisation and biases that are all at their start.

    Parameters
    ----------
    module : torch.nn.Module

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> signs_untrained(net)
    'batch normalisation has seen no data (1 of 1 layers)'
    """
    norms = [part for part in module.modules() if isinstance(part, Norm)]
    tracked = [part for part in norms if part.running_mean is not None]
    if unseen := sum(map(_saw_nothing, tracked)):
        return f"batch normalisation has seen no data ({unseen} of {len(tracked)} layers)"
    scaled = [part for part in module.modules() if _has_scale(part)]
    if len(scaled) >= MIN_LAYERS and all(map(_is_identity, scaled)):
        return "all normalisations are at their start"
    layers = [
        part
        for part in module.modules()
        if isinstance(part, (nn.modules.conv._ConvNd, nn.Linear))
        and part.weight.numel() >= MIN_WEIGHTS
        and part.weight.is_floating_point()
    ]
    biased = [part for part in layers if part.bias is not None]
    if not scaled and len(biased) >= MIN_LAYERS and all(map(_has_no_bias, biased)):
        return "all biases are 0"
    some = layers[:MAX_LAYERS]
    if len(some) >= MIN_LAYERS and sum(map(_is_uniform, some)) >= MOST * len(some):
        return "weights follow PyTorch's initial distribution"
    return ""


def _saw_nothing(norm: Any) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    return bool((mean == 0).all() and (variance == 1).all())


def _has_scale(part: Any) -> bool:
    affine = isinstance(part, (Norm, nn.LayerNorm, nn.GroupNorm)) and part.weight is not None
    return affine and part.bias is not None


def _is_uniform(layer: Any) -> bool:
    """Return whether weights are uniform within 1 / sqrt(fan in), as PyTorch draws them."""
    weight = layer.weight.detach().float()
    bound = weight[0].numel() ** -0.5
    most, spread = float(weight.abs().max()) / bound, float(weight.std()) / bound
    return 0.97 < most < 1.0001 and abs(spread * 3**0.5 - 1) < 0.06


def _is_identity(norm: Any) -> bool:
    return bool((norm.weight == 1).all()) and not bool(torch.count_nonzero(norm.bias))


def _has_no_bias(layer: Any) -> bool:
    return not bool(torch.count_nonzero(layer.bias))
