"""What the estimators over time share: sequences of rows, their network, its training and state."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from neurodl.errors import NeurodlWarning, UnknownNameError, did_you_mean
from neurodl.models._design import Scaling, fit_scaling
from neurodl.models._input import as_tensor, check_features_input
from neurodl.models._sequences import (
    CELLS,
    N_PIECES,
    SequenceNetwork,
    Training,
    applied,
    pieces,
    stretches,
    train,
)
from neurodl.models._splits import split_validation
from neurodl.runtime import derive_seed, resolve_device

N_AT_ONCE = 64  # sequences, in prediction
CLIP = 1.0
SD_FLOOR = 0.1


class SequenceModel(BaseEstimator):
    """What encoder and decoder share: sequences, a network, its training."""

    not_saved = ("_network",)
    _network: SequenceNetwork | None = None

    def __init__(
        self,
        cell: str = "gru",
        *,
        hidden_size: int = 32,
        n_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        lr: float = 5e-3,
        weight_decay: float = 1e-3,
        batch_size: int = 32,
        max_epochs: int = 300,
        patience: int = 20,
        validation: float = 0.1,
        max_length: int | None = None,
        device: Any = "auto",
        seed: int = 0,
    ) -> None:
        self.cell = cell
        self.hidden_size = hidden_size
        self.n_layers = n_layers
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation = validation
        self.max_length = max_length
        self.device = device
        self.seed = seed

    def transform(self, X: Any, runs: Any = None) -> np.ndarray:
        """Return the states of the network, shape (n_samples, hidden_size).

        What it has found in the sequence so far: latent dynamics, from which also targets that it
        was not trained with can be predicted by a linear or Poisson regression.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
        runs : array-like, shape (n_samples,), optional
        """
        return self._applied(X, runs, self.network().states).float().cpu().numpy()

    def network(self) -> SequenceNetwork:
        """Return the fitted network, a torch module."""
        check_is_fitted(self, "state_")
        if self._network is None:
            network = self._made(self.n_outputs_)
            network.load_state_dict(self.state_)
            self._network = network.eval()
        return self._network

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: all but the network, which its state makes again."""
        state = super().__getstate__()
        return {key: one for key, one in state.items() if key not in self.not_saved}

    def _made(self, n_outputs: int) -> SequenceNetwork:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "network"))
            return SequenceNetwork(
                self.cell,
                len(self._scaling.offset),
                self.hidden_size,
                self.n_layers,
                n_outputs,
                self.bidirectional,
                self.dropout,
            )

    def _trained(
        self,
        features: torch.Tensor,
        runs: Any,
        groups: Any,
        n_outputs: int,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> None:
        """Train on sequences of features by a loss of outputs and their rows."""
        own, held = self._parts(len(features), runs, groups)
        rows = torch.from_numpy(np.concatenate(own)).to(features.device)
        self._scaling = fit_scaling(features, rows, standardize=True, sd_floor=SD_FLOOR)
        network = self._made(n_outputs).to(features.device)
        how = Training(
            loss,
            self.lr,
            self.weight_decay,
            CLIP,
            self.batch_size,
            self.max_epochs,
            self.patience,
            self.seed,
        )
        self.history_ = train(network, self._scaled(features), own, held, how)
        if held and self.history_[-1]["epoch"] == self.max_epochs:
            warnings.warn(
                f"The validation loss still fell in the last of {self.max_epochs} epochs: more "
                "max_epochs, or a higher lr, may predict better.",
                NeurodlWarning,
                stacklevel=4,
            )
        self.n_outputs_ = n_outputs
        self.state_ = {name: one.cpu().clone() for name, one in network.state_dict().items()}
        self._scaling = Scaling(*(_on_cpu(one) for one in self._scaling))
        self._network = None

    def _parts(
        self, n_rows: int, runs: Any, groups: Any
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the rows of the sequences that train and of those that validate."""
        whole = stretches(runs, n_rows)
        longest = self.max_length
        if len(whole) < 2 and self.validation > 0:
            longest = min(longest or n_rows, max(1, n_rows // N_PIECES))
        if self.validation == 0:
            return pieces(whole, longest), []
        if len(whole) < 2:
            whole = pieces(whole, longest)
        labels = None if groups is None else np.array([groups[rows[0]] for rows in whole])
        train_, held = split_validation(self.validation, len(whole), labels, self.seed)
        own, kept = ([whole[one] for one in some] for some in (train_, held))
        return pieces(own, longest), pieces(kept, longest)

    def _scaled(self, features: torch.Tensor) -> torch.Tensor:
        offset, scale = (one.to(features) for one in self._scaling[:2])
        return (features - offset) / scale

    def _applied(self, X: Any, runs: Any, function: Any) -> torch.Tensor:
        network = self.network()
        X = check_features_input(self, X, reset=False)
        device = resolve_device(self.device)
        features = as_tensor(X, device).float()
        network.to(device)
        longest = self.max_length if self.cell == "transformer" else None
        whole = stretches(runs, len(features))
        return applied(function, self._scaled(features), whole, longest, N_AT_ONCE)

    def _check_parameters(self) -> None:
        if self.cell not in CELLS:
            raise UnknownNameError(
                f"`cell` must be one of {CELLS}, but got {self.cell!r}. "
                f"{did_you_mean(str(self.cell), CELLS)}"
            )
        for name in ("hidden_size", "n_layers", "batch_size", "max_epochs", "patience"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"`{name}` must be a whole number from 1, but got {value!r}.")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"`max_length` must be at least 2, but got {self.max_length!r}.")
        if not 0 <= self.validation < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"`validation` and `dropout` must be in [0, 1), but got {self.validation} and "
                f"{self.dropout}."
            )
        if not self.lr > 0 or self.weight_decay < 0:
            raise ValueError("`lr` must be above 0, and `weight_decay` not below it.")


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, torch.Tensor) else value
