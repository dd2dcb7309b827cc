"""One fit of a NeuralEncoder: the readout on the network as it is, then both together."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from neurodl.backbones import Backbone
from neurodl.errors import TooLargeError, listed
from neurodl.models import _fitting, _training
from neurodl.models._adaptation import (
    choose_parameters,
    merge_lora,
    prepare_norms,
    tunes_core,
)
from neurodl.models._anchors import Anchor, Penalty, Rehearsal
from neurodl.models._crossfit import (
    CrossFitting,
    LinearBank,
    fit_bank,
    fit_ridge,
    flat,
    set_readouts,
    validation_r,
)
from neurodl.models._losses import Scale, fit_scale, target_weights
from neurodl.models._network import Network
from neurodl.models._shown import MEMORY_SHARE, Shown
from neurodl.models._splits import split_validation
from neurodl.models.readouts import RIDGE, Standardized
from neurodl.runtime import available_memory, derive_seed

logger = logging.getLogger(__name__)
OPTIMIZERS, SCHEDULES, place = _fitting.OPTIMIZERS, _fitting.SCHEDULES, _training.place
N_FOR_NORMS = 256  # training stimuli whose statistics a batch normalisation is given
CORE_LR = {"last": 3e-4, "all": 3e-4, "lora": 1e-3}


@dataclass
class Adapted:
    """What a fit gives: the trained network, in evaluation, and how it came to be.

    changed : the names of tensors of the core that differ from the backbone's
    """

    network: Network
    scale: Scale
    history: list[dict[str, Any]]
    changed: list[str]
    remarks: list[str]
    input_shape: tuple[int, ...]


class Given(NamedTuple):
    """What a fit is given.

    shown : all stimuli
    rows : (n_rows,), which of them the training rows are
    targets : (n_rows, n_targets), float32, NaN where one was not recorded
    groups : (n_rows,), what the validation split keeps whole, or None
    weights : (n_targets,), how much each counts, or None
    """

    shown: Shown
    rows: np.ndarray
    targets: torch.Tensor
    groups: np.ndarray | None
    weights: torch.Tensor | None


class Adaptation:
    """A fit of a readout, and of the core as far as the options say.

    Parameters
    ----------
    options : NeuralEncoder
        Its parameters.
    backbone : Backbone
        Left as it is.
    layers : sequence of str
    given : Given
    where, label : see `_training.run`
    frozen : FrozenOutputs, optional
        What the layers give of the backbone as it is, to be shared with other fits.
    """

    def __init__(
        self,
        options: Any,
        backbone: Backbone,
        layers: Sequence[str],
        given: Given,
        where: _training.Place,
        label: str,
        frozen: FrozenOutputs | None = None,
    ) -> None:
        self.options, self.backbone, self.given = options, backbone, given
        self.where, self.label, self.device = where, label, where.device
        self.train, self.validation = split_validation(
            options.validation, len(given.rows), given.groups, options.seed
        )
        self.scale = fit_scale(given.targets[self.train], options.loss)
        self.weights = target_weights(given.targets[self.train], given.weights)
        self.history: list[dict[str, Any]] = []
        self.tunes = tunes_core(options.finetune)
        with seeded(options.seed, "network"):
            self.network = self._network(layers)
        # The network as it is may be known; one with other statistics is its own.
        self.frozen = frozen if frozen is not None and options.norm != "adapt" else None

    def _network(self, layers: Sequence[str]) -> Network:
        """Return the network, with what is trained of it marked."""
        options, given = self.options, self.given
        example = given.shown.example
        n_targets = given.targets.shape[1]
        network = Network(
            self.backbone, layers, options.readout, n_targets, example, options.dropout
        ).to(self.device)
        some = given.shown.inputs(given.rows[self.train][:N_FOR_NORMS]).to(self.device)
        self.remarks = prepare_norms(network, options.norm, some, options.finetune)
        self.depths = choose_parameters(
            network,
            options.finetune,
            example.to(self.device),
            n_blocks=options.n_blocks,
            lora_rank=options.lora_rank,
            lora_targets=options.lora_targets,
        )
        return network

    def run(self) -> Adapted:
        """Fit the readout on the network as it is, then the core with it."""
        network, rows = self.network, self.given.rows
        with _still(network):
            # Augmented stimuli have outputs of their own in each epoch.
            varies = self.given.shown.augment is not None and not self.tunes
            source = self.frozen or FrozenOutputs(network, self.given.shown)
            outputs = None if varies else source.fetch(network, rows, self.device)
            if self.options.readout == RIDGE:
                self._solve(_needed(outputs, network), "ridge", cv=5)
            else:
                self._take_scale(outputs)
                self._train(self._readout_stage(), outputs or Varied(self.given.shown, rows))
        if self.tunes and self.options.readout == RIDGE:
            self._tune_crossfitted(_needed(outputs, network))
        elif self.tunes:
            self._train(self._core_stage(network.readouts), Varied(self.given.shown, rows))
        if self.options.finetune == "lora":
            merge_lora(network.core)
        return Adapted(
            network.requires_grad_(False).eval(),
            self.scale,
            self.history,
            _changed(network, self.backbone),
            self.remarks,
            tuple(self.given.shown.example.shape[1:]),
        )

    def _take_scale(self, outputs: Kept | None) -> None:
        """Tell the readouts the scale of their channels, of training rows."""
        if outputs is None:
            some = self.given.rows[self.train][:N_FOR_NORMS]
            with torch.no_grad():
                found = self.network.outputs(self.given.shown.inputs(some).to(self.device))
        else:
            found = [one[self.train] for one in outputs.outputs]
        for readout, one in zip(self.network.readouts, found, strict=True):
            if isinstance(readout, Standardized):
                readout.take_scale(one)

    def _train(
        self, stage: _fitting.Stage, fetch: Any, bank: tuple[LinearBank, torch.Tensor] | None = None
    ) -> bool:
        """Train by a stage, add to the history, and return whether the start was improved."""
        kind = _fitting.Fitting if bank is None else CrossFitting
        fitting = kind(
            self.network,
            stage,
            fetch,
            isinstance(fetch, Kept),
            self.given.targets,
            self.scale,
            self.weights,
            self.train,
            self.validation,
        )
        if isinstance(fitting, CrossFitting) and bank is not None:
            fitting.bank, fitting.part = bank
        self.network.train()
        entries = _training.run(fitting, self.where, f"{self.label}-{stage.name}")
        self.network.to(self.device)  # Lightning leaves it on the CPU
        self.history.extend({"stage": stage.name, **one} for one in entries)
        best = min(entries, key=lambda one: one["val_loss"])
        return best is not entries[0]

    def _tune_crossfitted(self, outputs: Kept) -> None:
        """Train the core under readouts of other rows, then solve for the readout anew."""
        features = flat(outputs.outputs)
        targets, seed = self.given.targets, self.options.seed
        groups = self.given.groups
        bank = fit_bank(features, targets, self.scale, self.train, seed, self.device, groups)
        self.network.readouts.requires_grad_(False)
        moved = self._train(self._core_stage(None), Varied(self.given.shown, self.given.rows), bank)
        if moved:
            with _still(self.network):
                tuned = FrozenOutputs(self.network, self.given.shown)
                adapted = _needed(
                    tuned.fetch(self.network, self.given.rows, self.device), self.network
                )
                self._solve(adapted, "ridge again", cv=[(self.train, self.validation)])

    def _solve(self, outputs: Kept, name: str, cv: Any) -> None:
        """Set the readouts to ridge regression of all training rows, penalties chosen by `cv`."""
        features, targets = flat(outputs.outputs), self.given.targets
        seed, device = self.options.seed, self.device
        began = time.perf_counter()
        own, groups = self.train, self.given.groups
        inner = None if groups is None else groups[own]
        found = fit_ridge(features[own], targets[own], self.scale, 5, seed, device, inner)
        set_readouts(self.network, *found)
        held = [one[self.validation].to(device) for one in outputs.outputs]
        self.history.append(self._entry(name, held, began))
        found = fit_ridge(features, targets, self.scale, cv, seed, device, groups)
        set_readouts(self.network, *found)

    def _entry(self, stage: str, held: list[torch.Tensor], began: float) -> dict[str, Any]:
        """Return an entry of the history for a readout that was solved for."""
        loss, r = validation_r(
            self.network,
            held,
            self.given.targets[self.validation].to(self.device),
            self.scale.to(self.device),
        )
        seconds = time.perf_counter() - began
        numbers = {"epoch": 0, "loss": math.nan, "val_loss": loss, "val_r": r, "seconds": seconds}
        return {"stage": stage, **numbers}

    def _readout_stage(self) -> _fitting.Stage:
        options = self.options
        return _fitting.Stage(
            "readout",
            [{"params": _moving(self.network.readouts, options.loss), "lr": options.lr}],
            max_epochs=options.readout_epochs,
            patience=options.readout_patience,
            penalty=Penalty(self.network, options.l1, options.l2),
            **_common(options),
        )

    def _core_stage(self, readouts: nn.Module | None) -> _fitting.Stage:
        """Return the stage that trains the core, together with readouts if there are any."""
        options, shown = self.options, self.given.shown
        rows = self.given.rows[self.train]
        anchor = Anchor.of(self.network, options, shown, rows, self.device)
        groups = _core_groups(self.network, self.depths, options)
        penalised = (options.l1, options.l2)
        if readouts is not None:
            groups.insert(0, {"params": _moving(readouts, options.loss), "lr": options.lr})
        else:
            penalised = (0.0, 0.0)
        return _fitting.Stage(
            options.finetune,
            groups,
            max_epochs=options.max_epochs,
            patience=options.patience,
            penalty=Penalty(self.network, *penalised, anchor),
            extra=Rehearsal.of(self.network, options),
            **_common(options),
        )


@contextmanager
def _still(network: Network) -> Iterator[None]:
    """Train nothing of the core in a block, and keep its batch normalisation as it is."""
    moving = [p for p in network.core.parameters() if p.requires_grad]
    live, network.live_norms = network.live_norms, []
    network.core.requires_grad_(False)
    try:
        yield
    finally:
        network.live_norms = live
        for parameter in moving:
            parameter.requires_grad_(True)


def _needed(outputs: Kept | None, network: Network) -> Kept:
    """Return outputs, which readout='ridge' cannot do without."""
    if outputs is None:
        raise TooLargeError(
            f"The outputs of {listed(network.layers)} do not fit into memory, which "
            "readout='ridge' needs: use extract_kernels with KernelRidgeCV, or another readout."
        )
    return outputs


@contextmanager
def seeded(seed: int, label: str) -> Iterator[None]:
    """Draw random numbers by a seed and a label in a block, and change no others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, label))
        yield


def _moving(readouts: nn.Module, loss: str) -> list[nn.Parameter]:
    """Return the parameters of readouts that a loss can tell.

    A correlation is the same with any bias, whose gradient is nothing but rounding errors.
    """
    return [
        one
        for name, one in readouts.named_parameters()
        if loss != "correlation" or not name.endswith("bias")
    ]


def _common(options: Any) -> dict[str, Any]:
    return {
        "batch_size": options.batch_size,
        "micro_batch_size": options.micro_batch_size or options.batch_size,
        "optimizer": options.optimizer,
        "weight_decay": options.weight_decay,
        "schedule": options.schedule,
        "warmup": options.warmup,
        "clip": options.clip,
        "seed": options.seed,
    }


def _core_groups(network: Network, depths: dict[str, int], options: Any) -> list[dict[str, Any]]:
    """Return what is trained of the core with its learning rates, block by block."""
    core = dict(network.core.named_parameters())
    rate = CORE_LR[options.finetune] if options.core_lr is None else options.core_lr
    gradual = options.unfreeze == "gradual"
    groups = []
    for depth in sorted(set(depths.values())):
        names = [name for name, one in depths.items() if one == depth]
        groups.append(
            {
                "params": [core[name] for name in names],
                "lr": rate * options.layer_decay**depth,
                "from_epoch": depth if gradual else 0,
            }
        )
    return groups


def _changed(network: Network, backbone: Backbone) -> list[str]:
    """Return the names of the core's tensors that are no more those of the backbone."""
    before = backbone.module.state_dict()
    return [
        name
        for name, values in network.core.state_dict().items()
        if not torch.equal(values.cpu(), before[name].cpu())
    ]


@dataclass
class Varied:
    """Network inputs of training rows: varied where a step asks with a seed."""

    shown: Shown
    rows: np.ndarray

    def __call__(self, rows: Any, seed: int | None) -> torch.Tensor:
        """Return inputs of rows counted among the training rows."""
        own = self.rows[np.asarray(rows)]
        return self.shown.inputs(own) if seed is None else self.shown.varied(own, seed)


class FrozenOutputs:
    """What the layers of a network that stays as it is give for stimuli, computed once."""

    def __init__(self, network: Network, shown: Shown) -> None:
        self.shown = shown
        self.known = np.zeros(len(shown), bool)
        n_numbers = sum(math.prod(shape) for shape in network.shapes)
        size = 4 * n_numbers * len(shown)
        self.kept: list[torch.Tensor] | None = None
        if size <= MEMORY_SHARE * available_memory(torch.device("cpu")):
            self.kept = [torch.empty(len(shown), *shape) for shape in network.shapes]

    def fetch(self, network: Network, rows: np.ndarray, device: torch.device) -> Any:
        """Return a source of outputs for training rows, or None if they do not fit into memory."""
        if self.kept is None:
            logger.info("outputs of %s do not fit into memory", listed(network.layers))
            return None
        new = np.unique(rows[~self.known[rows]])
        network.eval()
        with torch.inference_mode():
            for start in range(0, len(new), 64):
                some = new[start : start + 64]
                outputs = network.outputs(self.shown.inputs(some).to(device))
                for kept, output in zip(self.kept, outputs, strict=True):
                    kept[some] = output.float().cpu()
        self.known[new] = True
        return Kept([kept[rows] for kept in self.kept])


@dataclass
class Kept:
    """Outputs of training rows, (n_rows, ...) by layer."""

    outputs: list[torch.Tensor]

    def __call__(self, rows: Any, seed: int | None) -> list[torch.Tensor]:
        """Return the outputs of some rows."""
        return [one[rows] for one in self.outputs]
