"""One fit of a NeuralEncoder: the readout on the network as it is, then both together."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit

from neurodl.backbones import Backbone
from neurodl.errors import listed
from neurodl.models import _fitting, _training
from neurodl.models._adaptation import (
    choose_parameters,
    merge_lora,
    prepare_norms,
    tunes_core,
)
from neurodl.models._anchors import Anchor, Penalty, Rehearsal
from neurodl.models._losses import Scale, fit_scale, target_weights
from neurodl.models._network import Network
from neurodl.models._shown import MEMORY_SHARE, Shown
from neurodl.runtime import available_memory, derive_seed

logger = logging.getLogger(__name__)
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
    validation: np.ndarray
    remarks: list[str]
    input_shape: tuple[int, ...]


def adapt(
    options: Any,
    backbone: Backbone,
    layers: Sequence[str],
    shown: Shown,
    rows: np.ndarray,
    targets: torch.Tensor,
    *,
    groups: np.ndarray | None,
    weights: torch.Tensor | None,
    where: _training.Place,
    label: str,
    frozen: FrozenOutputs | None = None,
) -> Adapted:
    """Fit a readout, and the core as far as `options` say, to the responses of some rows.

    Parameters
    ----------
    options : NeuralEncoder
        Its parameters.
    backbone : Backbone
        Left as it is.
    layers : sequence of str
    shown : Shown
        All stimuli.
    rows : numpy.ndarray, shape (n_rows,)
        The training rows among them.
    targets : torch.Tensor, shape (n_rows, n_targets), float32
    groups : numpy.ndarray, shape (n_rows,), optional
        What the validation split keeps whole.
    weights : torch.Tensor, shape (n_targets,), optional
    where, label : see `_training.run`
    frozen : FrozenOutputs, optional
        What the layers give of the backbone as it is, where that is known.
    """
    device = where.devices[0]
    train, validation = split_validation(options.validation, len(rows), groups, options.seed)
    scale = fit_scale(targets[train], options.loss)
    by_target = target_weights(targets[train], weights)
    example = shown.example.to(device)
    with seeded(options.seed, "network"):
        network = Network(
            backbone, layers, options.readout, targets.shape[1], example.cpu(), options.dropout
        ).to(device)
        some = rows[train][:N_FOR_NORMS]
        remarks = prepare_norms(
            network, options.norm, shown.inputs(some).to(device), options.finetune
        )
        depths = choose_parameters(
            network,
            options.finetune,
            example,
            n_blocks=options.n_blocks,
            lora_rank=options.lora_rank,
            lora_targets=options.lora_targets,
        )
    common = _common(options)
    tunes = tunes_core(options.finetune)
    history: list[dict[str, Any]] = []

    def fitted(stage: _fitting.Stage, fetch: Any, reads: bool) -> None:
        fitting = _fitting.Fitting(
            network, stage, fetch, reads, targets, scale, by_target, train, validation
        )
        network.train()
        entries = _training.run(fitting, where, f"{label}-{stage.name}")
        history.extend({"stage": stage.name, **one} for one in entries)

    trained = [(p, p.requires_grad) for p in network.core.parameters()]
    for parameter, _ in trained:
        parameter.requires_grad_(False)
    live, network.live_norms = network.live_norms, []
    cached = None
    if not (shown.augment and not tunes):
        known = frozen if options.norm != "adapt" else None
        cached = (known or FrozenOutputs(network, shown)).fetch(network, rows, device)
    stage = _fitting.Stage(
        "readout",
        [{"params": list(network.readouts.parameters()), "lr": options.lr}],
        max_epochs=options.readout_epochs,
        patience=options.readout_patience,
        penalty=Penalty(network, options.l1, options.l2),
        **common,
    )
    fitted(stage, cached or Varied(shown, rows), cached is not None)
    if tunes:
        network.live_norms = live
        for parameter, moves in trained:
            parameter.requires_grad_(moves)
        anchor = Anchor.of(network, options, shown, rows[train], device)
        stage = _fitting.Stage(
            options.finetune,
            _groups(network, depths, options),
            max_epochs=options.max_epochs,
            patience=options.patience,
            penalty=Penalty(network, options.l1, options.l2, anchor),
            extra=Rehearsal.of(network, options),
            **common,
        )
        fitted(stage, Varied(shown, rows), False)
    if options.finetune == "lora":
        merge_lora(network.core)
    network.requires_grad_(False).eval()
    return Adapted(
        network,
        scale,
        history,
        _changed(network, backbone),
        validation,
        remarks,
        tuple(example.shape[1:]),
    )


class seeded:
    """A block whose random numbers are those of a seed and a label, and change no others."""

    def __init__(self, seed: int, label: str) -> None:
        self._seed = derive_seed(seed, label)
        self._fork: Any = torch.random.fork_rng(devices=[])

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)


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


def _groups(network: Network, depths: dict[str, int], options: Any) -> list[dict[str, Any]]:
    """Return parameters with their learning rates: the readout, then block by block."""
    core = dict(network.core.named_parameters())
    rate = CORE_LR[options.finetune] if options.core_lr is None else options.core_lr
    gradual = options.unfreeze == "gradual"
    groups = [{"params": list(network.readouts.parameters()), "lr": options.lr}]
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


def split_validation(
    share: float, n_rows: int, groups: np.ndarray | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that train and those that early stopping looks at, of n_rows.

    Raises
    ------
    ValueError
        The share is not between 0 and 1, or there is too little to split.
    """
    if not 0 < share < 1:
        raise ValueError(f"`validation` must be between 0 and 1, but got {share}.")
    n_units = n_rows if groups is None else len(np.unique(groups))
    if n_rows < 4 or n_units < 2:
        raise ValueError(
            f"There are {n_rows} training rows in {n_units} groups, of which a share of {share:g} "
            "must validate: at least 4 rows, in 2 groups, are needed."
        )
    n_held = min(max(round(share * n_units), 1 if groups is not None else 2), n_units - 1)
    random_state = derive_seed(seed, "validation")
    kind = ShuffleSplit if groups is None else GroupShuffleSplit
    splitter = kind(1, test_size=n_held, random_state=random_state)
    train, validation = next(splitter.split(np.empty(n_rows), groups=groups))
    return np.sort(train), np.sort(validation)
