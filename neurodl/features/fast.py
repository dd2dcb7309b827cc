"""Faster ways to the same numbers, for as long as a pass of stimuli takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from neurodl.runtime import has_fast_convolutions, linear

# By number of dimensions, of images and of clips.
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


@contextmanager
def fast_network(module: nn.Module, device: torch.device, *, amp: bool) -> Iterator[nn.Module]:
    """Lend a network whose convolutions and linear layers take the fastest way to their outputs.

    Filters are laid out with the channels last, which is faster everywhere; see `linear`.
    """
    filters = [values for values in module.parameters() if values.ndim in LAYOUTS]
    for values in filters:
        values.data = values.data.contiguous(memory_format=LAYOUTS[values.ndim])
    layers = list(_linear_layers(module)) if has_fast_convolutions(device) and not amp else []
    for layer in layers:
        layer.forward = partial(linear, weight=layer.weight, bias=layer.bias)  # type: ignore
    try:
        yield module
    finally:
        for layer in layers:
            del layer.forward
        for values in filters:
            values.data = values.data.contiguous()


def _linear_layers(module: nn.Module) -> Iterator[nn.Linear]:
    """Yield linear layers, but no subclass, and none with a forward pass of its own."""
    for layer in module.modules():
        if type(layer) is nn.Linear and "forward" not in vars(layer):
            yield layer
