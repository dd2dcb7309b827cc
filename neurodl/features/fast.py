"""Faster ways to the same numbers, for as long as a pass of stimuli takes."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import torch
from torch import nn
from torch.nn import functional

from neurodl.stimuli import N_DECODERS

# By number of dimensions, of images and of clips.
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
MIN_ROWS = 512  # of a product, and
MIN_WIDTH = 32  # columns on either side, from which on a convolution is the faster way


@contextmanager
def fast_network(module: nn.Module, device: torch.device, *, amp: bool) -> Iterator[nn.Module]:
    """Lend a network whose convolutions and linear layers take the fastest way to their outputs.

    Filters are laid out with the channels last, which is faster everywhere. In float32 on x86,
    oneDNN's convolutions by a single pixel outrun the products that linear layers otherwise are.
    """
    filters = [values for values in module.parameters() if values.ndim in LAYOUTS]
    for values in filters:
        values.data = values.data.contiguous(memory_format=LAYOUTS[values.ndim])
    linear = list(_linear_layers(module)) if _has_fast_convolutions(device) and not amp else []
    for layer in linear:
        layer.forward = _convolved(layer)  # type: ignore[assignment,method-assign]
    try:
        yield module
    finally:
        for layer in linear:
            del layer.forward
        for values in filters:
            values.data = values.data.contiguous()


def _has_fast_convolutions(device: torch.device) -> bool:
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return device.type == "cpu" and on_x86 and torch.backends.mkldnn.is_available()


def _linear_layers(module: nn.Module) -> Iterator[nn.Linear]:
    """Yield linear layers that are wide enough, and nobody else's: no subclass, no own forward."""
    for layer in module.modules():
        if (
            type(layer) is nn.Linear
            and "forward" not in vars(layer)
            and layer.weight.dtype == torch.float32
            and min(layer.weight.shape) >= MIN_WIDTH
        ):
            yield layer


def _convolved(layer: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the forward pass of a linear layer, many rows of it as a convolution."""
    product = layer.forward

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        if inputs.numel() < MIN_ROWS * layer.in_features or inputs.dtype != torch.float32:
            return product(inputs)
        rows = inputs.reshape(1, -1, 1, layer.in_features).permute(0, 3, 1, 2)
        outputs = functional.conv2d(rows, layer.weight[:, :, None, None], layer.bias)
        return outputs.permute(0, 2, 3, 1).reshape(*inputs.shape[:-1], layer.out_features)

    return forward


def decoders() -> ThreadPoolExecutor:
    """Return threads that decode, each by itself: none starts threads of torch of its own.

    Torch's number of threads is kept per thread; teams of them would take turns with the network.
    """
    together, for_network = Barrier(N_DECODERS), torch.get_num_threads()
    pool = ThreadPoolExecutor(N_DECODERS, initializer=torch.set_num_threads, initargs=(1,))
    for waiting in [pool.submit(together.wait) for _ in range(N_DECODERS)]:
        waiting.result()
    torch.set_num_threads(for_network)
    return pool
