"""A linear readout that is ridge regression, and a core tuned under it without fitting noise.

A ridge readout of many features nearly fits its own training rows, so that what is left of them
is noise, and the core would be tuned to that. Each training row is therefore predicted by a
readout that was fitted without it, while the core is trained; once that is done the readout is
fitted anew, with penalties chosen on rows that the core never saw.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from neurodl.models._fitting import Fitting
from neurodl.models._losses import Scale, mean_r
from neurodl.models._network import Network
from neurodl.models._splits import inner_splits
from neurodl.models.ridge import RidgeCV

N_PARTS = 5  # in which training rows are predicted by readouts of the others


def flat(outputs: list[torch.Tensor]) -> torch.Tensor:
    """Return the outputs of layers side by side, (n_rows, n_features)."""
    return torch.cat([one.flatten(1) for one in outputs], 1)


class LinearBank(nn.Module):
    """Linear readouts of all features, one per part of the rows; they are not trained.

    Parameters
    ----------
    weights : torch.Tensor, shape (n_parts, n_targets, n_features)
    biases : torch.Tensor, shape (n_parts, n_targets)
    """

    weights: torch.Tensor
    biases: torch.Tensor

    def __init__(self, weights: torch.Tensor, biases: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.register_buffer("biases", biases)

    def forward(self, features: torch.Tensor, part: torch.Tensor | None) -> torch.Tensor:
        """Return predictions (n_rows, n_targets), each by the readout of its part or by all."""
        if part is None:
            return features @ self.weights.mean(0).T + self.biases.mean(0)
        every = torch.einsum("nf,ktf->nkt", features, self.weights.to(features.dtype)) + self.biases
        return every[torch.arange(len(features), device=features.device), part]


class CrossFitting(Fitting):
    """The training of a core under linear readouts that never saw the row they predict."""

    bank: LinearBank
    part: torch.Tensor  # of each row, -1 for rows that validate

    def _output(self, rows: np.ndarray, seed: int | None) -> torch.Tensor:
        given = self.fetch(rows, seed)
        inputs = self.network.backbone.as_input(given.to(self.device))
        features = flat(self.network.outputs(inputs))
        part = None if seed is None else self.part[rows].to(self.device)
        return self.bank(features, part)


def fit_ridge(
    features: torch.Tensor,
    targets: torch.Tensor,
    scale: Scale,
    cv: Any,
    seed: int,
    device: Any,
    groups: np.ndarray | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights (n_targets, n_features) and biases (n_targets,) of ridge regression.

    Of targets about `scale`, which is what readouts give.
    """
    model = RidgeCV(cv=cv, seed=seed, device=device)
    model.fit(features.numpy(), targets.numpy(), groups=groups)
    coef = torch.as_tensor(np.asarray(model.coef_, np.float32))
    bias = torch.as_tensor(np.asarray(model.intercept_, np.float32))
    return coef / scale.sd[:, None], (bias - scale.mean) / scale.sd


def set_readouts(network: Network, weights: torch.Tensor, biases: torch.Tensor) -> None:
    """Give a network's linear readouts weights of all their features side by side."""
    sizes = [int(np.prod(shape)) for shape in network.shapes]
    with torch.no_grad():
        for number, part in enumerate(weights.split(sizes, 1)):
            linear: Any = network.readouts[number].linear
            linear.weight.copy_(part)
            linear.bias.copy_(biases if number == 0 else torch.zeros_like(biases))


def fit_bank(
    features: torch.Tensor,
    targets: torch.Tensor,
    scale: Scale,
    rows: np.ndarray,
    seed: int,
    device: Any,
    groups: np.ndarray | None = None,
) -> tuple[LinearBank, torch.Tensor]:
    """Return a readout for each part of some rows, fitted on the others, and each row's part.

    Rows of one of the `groups` (n_rows,) are in one part.
    """
    part = torch.full((len(features),), -1)
    fitted = []
    labels = None if groups is None else groups[rows]
    for number, (others, own) in enumerate(inner_splits(N_PARTS, len(rows), labels, seed)):
        part[rows[own]] = number
        some = rows[others]
        inner = None if groups is None else groups[some]
        fitted.append(fit_ridge(features[some], targets[some], scale, 5, seed, device, inner))
    weights, biases = (torch.stack(parts) for parts in zip(*fitted, strict=True))
    return LinearBank(weights, biases), part


def validation_r(
    network: Network, outputs: list[torch.Tensor], targets: torch.Tensor, scale: Scale
) -> tuple[float, float]:
    """Return squared error and mean r of a network's readouts, of outputs of validation rows."""
    with torch.no_grad():
        said = network.read(outputs)
    error = (said - (targets - scale.mean) / scale.sd).square().mean()
    return float(error), mean_r(said, targets)
