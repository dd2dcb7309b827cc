"""A backbone up to some layers with a readout of each, as one torch module to be trained."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from neurodl.backbones import Backbone
from neurodl.backbones.catalogue import first_tensor
from neurodl.errors import SchemaError, UnknownNameError, listed
from neurodl.features.pool import Tokens
from neurodl.models.readouts import RIDGE, Standardized, make_readout


class _StopForward(Exception):
    """Ends a forward pass once every wanted layer has been seen."""


class Network(nn.Module):
    """The core, which is a copy of the backbone, and readouts, whose predictions add up.

    The pass ends at the last of the layers. Batch normalisation and dropout of the core stay as in
    evaluation whatever the mode, but for the layers in ``live_norms``.

    Parameters
    ----------
    backbone : Backbone
    layers : sequence of str
    readout : str
        See `make_readout`.
    n_targets : int
    example : torch.Tensor, shape (1, ...)
        The input of one stimulus, from which the sizes of layers are told.
    dropout : float
        Of channels of the layers' output, while the readout is trained.

    Raises
    ------
    UnknownNameError
        A layer is not called in a forward pass, or gives no tensor.
    SchemaError
        The readout needs places, and a layer has none.
    """

    def __init__(
        self,
        backbone: Backbone,
        layers: Sequence[str],
        readout: str,
        n_targets: int,
        example: torch.Tensor,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.core = copy.deepcopy(backbone.module)
        self.layers = list(layers)
        # What is known of the backbone beside its module, which must not be held twice.
        self._described = dataclasses.replace(backbone, module=nn.Identity())
        self.n_calls: dict[str, int] = {}
        self.live_norms: list[str] = []
        self.dropout = nn.Dropout1d(dropout) if dropout else None
        with torch.no_grad():
            outputs = self.outputs(example)
        self.shapes = [tuple(one.shape[1:]) for one in outputs]
        self.readouts = nn.ModuleList()
        for layer, shape in zip(self.layers, self.shapes, strict=True):
            try:
                one = make_readout(readout, shape, n_targets)
            except SchemaError as error:
                raise SchemaError(f"Layer {layer!r} of {backbone.name}: {error}") from error
            self.readouts.append(one if readout == RIDGE else Standardized(one, shape))

    @property
    def backbone(self) -> Backbone:
        """The backbone as it is now, sharing its module with this."""
        return dataclasses.replace(self._described, module=self.core)

    def train(self, mode: bool = True) -> Network:
        """Set the mode of the readouts; the core stays in evaluation, but for its live norms."""
        self.training = mode
        for module in self.children():
            module.train(mode and module is not self.core)
        for name in self.live_norms:
            self.core.get_submodule(name).train(mode)
        return self

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return predictions (n_stimuli, n_targets) of network inputs."""
        return self.read(self.outputs(inputs))

    def read(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return predictions (n_stimuli, n_targets) of the layers' outputs."""
        parts = [
            readout(self._dropped(one)) for readout, one in zip(self.readouts, outputs, strict=True)
        ]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def _dropped(self, output: torch.Tensor) -> torch.Tensor:
        if self.dropout is None:
            return output
        dropped: torch.Tensor = self.dropout(output.flatten(2) if output.ndim > 2 else output)
        return dropped.view(output.shape)

    def outputs(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        """Return what each layer gives, a row per stimulus.

        Of shape (n, channels, height, width), (n, tokens, channels) or (n, features). Maps are
        averaged over time, and outputs over frames where an image network takes the frames of
        clips, (n, t, 3, height, width).
        """
        frames = inputs.ndim == 5 and self._described.kind == "image"
        batch = inputs.flatten(0, 1) if frames else inputs
        seen = self._seen(batch)
        outputs = [self._laid_out(name, seen[name], batch) for name in self.layers]
        if frames:
            outputs = [one.unflatten(0, inputs.shape[:2]).mean(1) for one in outputs]
        return outputs

    def _laid_out(self, name: str, output: Any, batch: torch.Tensor) -> torch.Tensor:
        """Return a layer's output with the channels first, over time, and without prefix tokens."""
        tensor = first_tensor(output, len(batch))
        if tensor is None or not tensor.ndim or len(tensor) != len(batch):
            raise UnknownNameError(
                f"Layer {name!r} of {self._described.name} gives no tensor with a row per "
                "stimulus; choose the block around it."
            )
        if tensor.ndim >= 4 and self._described.is_channels_last(name):
            tensor = tensor.movedim(-1, 1)
        if tensor.ndim == 5:
            tensor = tensor.mean(2)
        if tensor.ndim == 3:
            n_steps = max(1, batch.shape[2] // self._described.frames_per_token)
            height, width = batch.shape[-2:]
            tokens = Tokens(
                self._described.prefix_tokens,
                n_steps if batch.ndim == 5 else 1,
                height / width,
                self._described.tokens_in_order,
            )
            tensor = tensor[:, tokens.n_prefix(tensor.shape[1]) :]
            if batch.ndim == 5 and tensor.shape[1] % n_steps == 0:
                tensor = tensor.unflatten(1, (n_steps, -1)).mean(1)
        return tensor

    def _seen(self, batch: torch.Tensor) -> dict[str, Any]:
        """Return the last output of each layer in a pass that ends when all are complete."""
        seen: dict[str, Any] = {}
        calls = dict.fromkeys(self.layers, 0)
        with self._hooked(seen, calls):
            try:
                self.core(batch)
            except _StopForward:
                return seen
        silent = [name for name, count in calls.items() if not count]
        if silent:
            raise UnknownNameError(
                f"`layer` {listed(silent)} of {self._described.name} is never called in a forward "
                "pass; choose another."
            )
        self.n_calls = calls
        return seen

    @contextmanager
    def _hooked(self, seen: dict[str, Any], calls: dict[str, int]) -> Iterator[None]:
        def keep(name: str) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                calls[name] += 1
                # Own memory where later operations in place could reach it.
                seen[name] = output.clone() if isinstance(output, torch.Tensor) else output
                if calls == self.n_calls:
                    raise _StopForward

            return hook

        modules = dict(self.core.named_modules())
        handles = [modules[name].register_forward_hook(keep(name)) for name in self.layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
