"""What holds a core to where it came from: L2-SP, EWC, and rehearsal of the source task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from neurodl.backbones.catalogue import first_tensor
from neurodl.errors import SchemaError
from neurodl.models._network import Network
from neurodl.models._shown import Shown
from neurodl.runtime import derive_seed

N_FISHER = 128  # stimuli that the Fisher information is estimated from
BATCH = 32


@dataclass
class Anchor:
    """The start of what is tuned, and how strongly each number is held to it."""

    names: list[str]
    start: list[torch.Tensor]
    strength: list[torch.Tensor | float]

    @classmethod
    def of(
        cls, network: Network, options: Any, shown: Shown, rows: np.ndarray, device: torch.device
    ) -> Anchor | None:
        """Return the anchor that `options` ask for, or None."""
        if not options.l2_sp and not options.ewc:
            return None
        if options.finetune == "lora":
            raise ValueError(
                "`l2_sp` and `ewc` hold weights to their start, which finetune='lora' leaves where "
                "they are; take a smaller lora_rank or core_lr, or finetune='all'."
            )
        named = [(n, p) for n, p in network.core.named_parameters() if p.requires_grad]
        names = [name for name, _ in named]
        strength: list[torch.Tensor | float] = [options.l2_sp] * len(named)
        if options.ewc:
            if options.source is not None:
                shown, rows = (
                    Shown(network.backbone, options.source),
                    np.arange(len(options.source)),
                )
            information = fisher(network, names, shown, rows, options.seed, device)
            strength = [options.l2_sp + options.ewc * one for one in information]
        return cls(names, [p.detach().clone() for _, p in named], strength)


@dataclass
class Penalty:
    """What is added to the loss whatever the batch: of a readout's weights, and of an anchor.

    Mean over targets of the penalties of the weights of features; half the squared distance of
    the core from its start, times its strength.

    References
    ----------
    Li, Grandvalet & Davoine (2018), Explicit inductive bias for transfer learning with
    convolutional networks, ICML (L2-SP).
    Kirkpatrick et al. (2017), Overcoming catastrophic forgetting in neural networks, PNAS 114.
    """

    network: Network
    l1: float
    l2: float
    anchor: Anchor | None = None

    def __call__(self) -> torch.Tensor:
        """Return the penalty."""
        total = torch.zeros((), device=next(self.network.readouts.parameters()).device)
        if self.l1 or self.l2:
            for name, one in self.network.readouts.named_parameters():
                if name.endswith(("channels", "linear.weight")):
                    size = self.l1 * one.abs().sum() + self.l2 * one.square().sum()
                    total = total + size / len(one)
        if self.anchor is not None:
            now = dict(self.network.core.named_parameters())
            held = zip(self.anchor.names, self.anchor.start, self.anchor.strength, strict=True)
            for name, start, strength in held:
                total = total + 0.5 * (strength * (now[name] - start).square()).sum()
        return total


def class_scores(module: torch.nn.Module, inputs: torch.Tensor, name: str) -> torch.Tensor:
    """Return what a whole network says of inputs, (n, n_classes).

    Raises
    ------
    SchemaError
        It does not end in one vector per stimulus.
    """
    output = first_tensor(module(inputs), len(inputs))
    if output is None or output.ndim != 2:
        raise SchemaError(
            f"{name} does not end in classes (its output is "
            f"{None if output is None else tuple(output.shape)}), which the source task needs."
        )
    return output


def fisher(
    network: Network,
    names: list[str],
    shown: Shown,
    rows: np.ndarray,
    seed: int,
    device: torch.device,
) -> list[torch.Tensor]:
    """Return the diagonal of the Fisher information of the source task, as each parameter.

    Classes are drawn from what the network says of each stimulus, so that no labels are needed.
    The mean over all numbers is 1, so that ``ewc`` and ``l2_sp`` are of one scale.
    """
    parameters = [network.core.get_parameter(name) for name in names]
    sums = [torch.zeros_like(one) for one in parameters]
    rng = np.random.default_rng(derive_seed(seed, "fisher"))
    chosen = rng.permutation(rows)[:N_FISHER]
    for row in chosen:
        said = class_scores(
            network.core, shown.inputs([row]).to(device), network.backbone.name
        ).log_softmax(1)
        drawn = rng.choice(said.shape[1], p=_normalised(said))
        grads = torch.autograd.grad(said[0, drawn], parameters, allow_unused=True)
        for total, grad in zip(sums, grads, strict=True):
            if grad is not None:
                total += grad.square() / len(chosen)
    mean = sum(float(one.sum()) for one in sums) / sum(one.numel() for one in sums)
    return [one / (mean or 1.0) for one in sums]


def _normalised(log_probabilities: torch.Tensor) -> np.ndarray:
    p = log_probabilities.detach()[0].double().exp().cpu().numpy()
    return np.asarray(p / p.sum())


def source_labels(source: Any) -> torch.Tensor:
    """Return the class of each stimulus of a source set, (n,), from the column label.

    Raises
    ------
    SchemaError
        There is no such column of whole numbers.
    """
    table = getattr(source, "table", None)
    if table is None or "label" not in table:
        raise SchemaError(
            "`source` must be Stimuli whose table has the column label, the class of each "
            "as the network counts them."
        )
    try:
        return torch.as_tensor(np.array(table["label"].tolist()).astype(np.int64))
    except ValueError as error:
        raise SchemaError(f"`source`: the column label must hold whole numbers: {error}") from error


@dataclass
class Rehearsal:
    """The cross-entropy of a batch of the source task, drawn by the seed of a step."""

    network: Network
    shown: Shown
    labels: torch.Tensor
    strength: float

    @classmethod
    def of(cls, network: Network, options: Any) -> Rehearsal | None:
        """Return the rehearsal that `options` ask for, or None."""
        if not options.rehearsal:
            return None
        if options.source is None:
            raise ValueError(
                "`rehearsal` needs `source`: labelled stimuli of the network's own task."
            )
        shown = Shown(network.backbone, options.source)
        return cls(network, shown, source_labels(options.source), options.rehearsal)

    def __call__(self, seed: int) -> torch.Tensor:
        """Return what is added to the loss of a step."""
        rng = np.random.default_rng(derive_seed(seed, "rehearsal"))
        rows = rng.choice(len(self.shown), min(BATCH, len(self.shown)), replace=False)
        device = next(self.network.core.parameters()).device
        inputs = self.shown.inputs(rows).to(device)
        said = class_scores(self.network.core, inputs, self.network.backbone.name)
        return self.strength * functional.cross_entropy(said, self.labels[rows].to(device))
