"""Hooks on the layers of a network: their outputs, pooled, of one forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from neurodl.backbones import Backbone
from neurodl.backbones.catalogue import first_tensor
from neurodl.errors import UnknownNameError, listed
from neurodl.features.pool import Tokens, pool_to_axes


class _StopForward(Exception):
    """Ends a forward pass once every wanted layer has been seen."""


class Taps:
    """Hooks that pool and keep the outputs of some layers, and end the pass after the last one.

    A module that is called several times in a pass gives its last output; how often each is
    called is counted in a first, whole pass. Of an output with several tensors the first with a
    row per input counts.

    Attributes
    ----------
    layouts : dict of str to dict
        How a row of each layer is laid out, as attrs: feature_axes and feature_shape, the names
        and sizes of its axes, the last one fastest; input_size, the height and width of the
        network's input; n_prefix_tokens, where there are tokens.
    """

    def __init__(self, backbone: Backbone, layers: list[str], pool: str, time: str) -> None:
        self.backbone, self.layers, self.pool, self.time = backbone, layers, pool, time
        self.calls: dict[str, int] = {}
        self.expected: dict[str, int] | None = None
        self.pooled: dict[str, torch.Tensor] = {}
        self.layouts: dict[str, dict[str, Any]] = {}
        self._input_shape = torch.Size()
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
        self._input_shape = batch.shape
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
                tokens = self._tokens()
                axes, values = pool_to_axes(
                    self._rows(output, name),
                    self.pool,
                    tokens=tokens,
                    channels_last=self.backbone.is_channels_last(name),
                    time=self.time,
                )
                self.pooled[name] = values.flatten(1)
                self.layouts[name] = self._layout(axes, values, tokens)
            if self.calls == self.expected:
                raise _StopForward

        return keep

    def _layout(
        self, axes: tuple[str, ...], values: torch.Tensor, tokens: Tokens
    ) -> dict[str, Any]:
        layout: dict[str, Any] = {
            "feature_axes": " ".join(axes),
            "feature_shape": list(values.shape[1:]),
            "input_size": list(self._input_shape[-2:]),
        }
        if "token" in axes:
            layout["n_prefix_tokens"] = tokens.n_prefix(values.shape[1])
        return layout

    def _tokens(self) -> Tokens:
        height, width = self._input_shape[-2:]
        n_frames = self._input_shape[2] if len(self._input_shape) == 5 else 1
        n_steps = max(1, n_frames // self.backbone.frames_per_token)
        return Tokens(
            self.backbone.prefix_tokens, n_steps, height / width, self.backbone.tokens_in_order
        )

    def _rows(self, output: Any, name: str) -> torch.Tensor:
        """Return the first tensor of an output, which must have a row per input."""
        tensor = first_tensor(output, self._input_shape[0])
        if tensor is None:
            raise UnknownNameError(
                f"Layer {name!r} of {self.backbone.name} returns no tensor, but a "
                f"{type(output).__name__}; choose a module inside or after it."
            )
        if not tensor.ndim or len(tensor) != self._input_shape[0]:
            raise UnknownNameError(
                f"Layer {name!r} of {self.backbone.name} gives {tuple(tensor.shape)} for "
                f"{self._input_shape[0]} inputs: its first axis is not the stimulus (windows or "
                "heads are folded into it, or it comes last). Choose the block around it."
            )
        return tensor
