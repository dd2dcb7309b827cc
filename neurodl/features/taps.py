"""Hooks on the layers of a network: their outputs, pooled, of one forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from neurodl.backbones import Backbone
from neurodl.errors import UnknownNameError, listed
from neurodl.features.pool import pool_to_axes


class _StopForward(Exception):
    """Ends a forward pass once every wanted layer has been seen."""


class Taps:
    """Hooks that pool and keep the outputs of some layers, and end the pass after the last one.

    A module that is called several times in a pass gives its last output; how often each is
    called is counted in a first, whole pass.

    Attributes
    ----------
    layouts : dict of str to dict
        How a row of each layer is laid out, as attrs: feature_axes and feature_shape, the names
        and sizes of its axes, the last one fastest; input_size, the height and width of the
        network's input; n_prefix_tokens, where there are tokens.
    """

    def __init__(self, backbone: Backbone, layers: list[str], pool: str) -> None:
        self.backbone, self.layers, self.pool = backbone, layers, pool
        self.calls: dict[str, int] = {}
        self.expected: dict[str, int] | None = None
        self.pooled: dict[str, torch.Tensor] = {}
        self.layouts: dict[str, dict[str, Any]] = {}
        self._input_size: list[int] = []
        self._handles: list[Any] = []

    def __enter__(self) -> Taps:
        modules = dict(self.backbone.module.named_modules())
        for name in self.layers:
            self._handles.append(modules[name].register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def run(self, module: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the pooled layers of one batch."""
        self.calls, self.pooled = dict.fromkeys(self.layers, 0), {}
        self._input_size = list(batch.shape[-2:])
        try:
            module(batch)
        except _StopForward:
            return self.pooled
        silent = [name for name, count in self.calls.items() if not count]
        if silent:
            raise UnknownNameError(
                f"`layers` {listed(silent)} of {self.backbone.name} are never called in a forward "
                "pass (containers and heads that the network leaves out); choose others."
            )
        self.expected = dict(self.calls)
        return self.pooled

    def _hook(self, name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.calls[name] += 1
            if self.expected is None or self.calls[name] == self.expected[name]:
                axes, values = pool_to_axes(
                    _tensor(output, name),
                    self.pool,
                    n_prefix_tokens=self.backbone.n_prefix_tokens,
                    channels_last=self.backbone.is_channels_last(name),
                )
                self.pooled[name] = values.flatten(1)
                self.layouts[name] = self._layout(axes, values)
            if self.calls == self.expected:
                raise _StopForward

        return keep

    def _layout(self, axes: tuple[str, ...], values: torch.Tensor) -> dict[str, Any]:
        layout = {
            "feature_axes": " ".join(axes),
            "feature_shape": list(values.shape[1:]),
            "input_size": self._input_size,
        }
        tokens = {"n_prefix_tokens": self.backbone.n_prefix_tokens} if "token" in axes else {}
        return layout | tokens


def _tensor(output: Any, name: str) -> torch.Tensor:
    """Return the one tensor in a layer's output."""
    if isinstance(output, torch.Tensor):
        return output
    parts = list(output.values()) if isinstance(output, dict) else list(output)
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    raise UnknownNameError(
        f"Layer {name!r} returns {len(tensors)} tensors; choose a module inside or after it."
    )
