"""Networks over time: sequences of rows, the states of a recurrent net or transformer, training."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from neurodl.errors import TrainingError, listed
from neurodl.runtime import derive_seed, progress_bar

RECURRENT: dict[str, Any] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
CELLS = (*RECURRENT, "transformer")
N_HEADS = 4
LONGEST_WAVE = 10_000.0
N_PIECES = 10  # of a single run, some of which validate


class Sequences(NamedTuple):
    """Rows that follow each other, padded to one length.

    inputs : (n_sequences, n_times, n_features)
    rows : (n_sequences, n_times), the row of each; -1 where padded
    """

    inputs: torch.Tensor
    rows: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:
        """The number of rows of each sequence."""
        return (self.rows >= 0).sum(1)


def stretches(runs: Any, n_rows: int) -> list[np.ndarray]:
    """Return the rows of each run, in order of appearance; without runs all are one.

    Raises
    ------
    ValueError
        The rows of a run do not stand together.
    """
    if runs is None:
        return [np.arange(n_rows)]
    labels = np.asarray(runs)
    if len(labels) != n_rows:
        raise ValueError(f"`runs` has {len(labels)} labels, but there are {n_rows} rows.")
    starts = np.r_[0, np.flatnonzero(labels[1:] != labels[:-1]) + 1]
    names = labels[starts]
    if len(np.unique(names)) < len(names):
        again = [name for name in np.unique(names) if (names == name).sum() > 1]
        raise ValueError(
            f"The rows of {len(again)} runs ({listed(again)}) do not stand together: sort rows by "
            "run and time."
        )
    return np.split(np.arange(n_rows), starts[1:])


def pieces(runs: list[np.ndarray], longest: int | None) -> list[np.ndarray]:
    """Return runs cut into pieces of about equal length, none longer than `longest`."""
    if longest is None:
        return runs
    return [
        part for run in runs for part in np.array_split(run, max(1, math.ceil(len(run) / longest)))
    ]


def padded(features: torch.Tensor, parts: list[np.ndarray]) -> Sequences:
    """Return some stretches of rows of features (n_rows, n_features) side by side."""
    longest = max(map(len, parts))
    rows = torch.full((len(parts), longest), -1, dtype=torch.long)
    for place, part in enumerate(parts):
        rows[place, : len(part)] = torch.from_numpy(part)
    rows = rows.to(features.device)
    inputs = features[rows.clamp(min=0)] * (rows >= 0)[..., None]
    return Sequences(inputs, rows)


class SequenceNetwork(nn.Module):
    """States over time, and a linear readout of them.

    Parameters
    ----------
    cell : {"rnn", "gru", "lstm", "transformer"}
    n_inputs, hidden_size, n_layers, n_outputs : int
    bidirectional : bool
        Whether a state knows what comes later. The states of both directions are averaged, so
        that they have to agree.
    dropout : float
    """

    def __init__(
        self,
        cell: str,
        n_inputs: int,
        hidden_size: int,
        n_layers: int,
        n_outputs: int,
        bidirectional: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.bidirectional, self.hidden_size = bidirectional, hidden_size
        if cell in RECURRENT:
            between = dropout if n_layers > 1 else 0.0
            self.core: nn.Module = RECURRENT[cell](
                n_inputs,
                hidden_size,
                n_layers,
                batch_first=True,
                dropout=between,
                bidirectional=bidirectional,
            )
        else:
            self.core = Transformer(n_inputs, hidden_size, n_layers, bidirectional, dropout)
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(hidden_size, n_outputs)
        nn.init.zeros_(self.readout.bias)

    def states(self, given: Sequences) -> torch.Tensor:
        """Return states (n_sequences, n_times, hidden_size)."""
        if isinstance(self.core, Transformer):
            return self.core(given)
        if not self.bidirectional:
            return self.core(given.inputs)[0]  # what is padded comes last, and changes nothing
        if (given.rows >= 0).all():
            both = self.core(given.inputs)[0]
        else:
            packed = pack_padded_sequence(
                given.inputs, given.lengths.cpu(), batch_first=True, enforce_sorted=False
            )
            both, _ = pad_packed_sequence(
                self.core(packed)[0], batch_first=True, total_length=given.inputs.shape[1]
            )
        return both.unflatten(-1, (2, self.hidden_size)).mean(-2)

    def forward(self, given: Sequences) -> torch.Tensor:
        """Return outputs (n_sequences, n_times, n_outputs)."""
        return self.readout(self.dropout(self.states(given)))


class Transformer(nn.Module):
    """Attention over the sequence, to the present and past only unless it is bidirectional."""

    def __init__(
        self, n_inputs: int, width: int, n_layers: int, bidirectional: bool, dropout: float
    ) -> None:
        super().__init__()
        self.bidirectional, self.width = bidirectional, width
        self.enter = nn.Linear(n_inputs, width)
        n_heads = next(n for n in range(min(N_HEADS, width), 0, -1) if width % n == 0)
        layer = nn.TransformerEncoderLayer(
            width,
            n_heads,
            4 * width,
            dropout,
            nn.functional.gelu,
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer, n_layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )

    def forward(self, given: Sequences) -> torch.Tensor:
        """Return states (n_sequences, n_times, width)."""
        n_times = given.inputs.shape[1]
        device = given.inputs.device
        future = None
        if not self.bidirectional:
            future = torch.ones(n_times, n_times, dtype=torch.bool, device=device).triu(1)
        values = self.enter(given.inputs) + positions(n_times, self.width, device)
        return self.layers(
            values, mask=future, src_key_padding_mask=given.rows < 0, is_causal=future is not None
        )


def positions(n_times: int, width: int, device: torch.device) -> torch.Tensor:
    """Return sines and cosines of each time, (n_times, width), after Vaswani et al. (2017)."""
    time = torch.arange(n_times, device=device)[:, None]
    rates = LONGEST_WAVE ** -(torch.arange(0, width, 2, device=device) / width)
    waves = torch.stack([(time * rates).sin(), (time * rates).cos()], -1).flatten(1)
    return waves[:, :width]


class Training(NamedTuple):
    """How a sequence network is trained.

    loss : of outputs (n_rows, n_outputs) and row numbers (n_rows,), a mean over rows
    lr, weight_decay, clip : of AdamW, and the largest norm of a gradient
    batch_size : sequences in a step
    max_epochs, patience : epochs at most, and without improvement
    seed : of the order and of dropout
    """

    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    lr: float
    weight_decay: float
    clip: float
    batch_size: int
    max_epochs: int
    patience: int
    seed: int


def train(
    network: SequenceNetwork,
    features: torch.Tensor,
    own: list[np.ndarray],
    held: list[np.ndarray],
    how: Training,
) -> list[dict[str, float]]:
    """Train a network on stretches of rows, leave it at its best, and return the history.

    Parameters
    ----------
    network : SequenceNetwork
    features : torch.Tensor, shape (n_rows, n_features)
    own, held : list of numpy.ndarray
        The rows of the sequences that train, and of those that tell when to stop; without any of
        the latter, it trains all epochs.
    how : Training

    Raises
    ------
    TrainingError
        The loss ran away.
    """
    decayed = [one for one in network.parameters() if one.ndim > 1]
    others = [one for one in network.parameters() if one.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=how.lr, weight_decay=how.weight_decay)
    rng = np.random.default_rng(derive_seed(how.seed, "order"))
    checked = padded(features, held) if held else None
    best, best_epoch, kept = math.inf, 0, copy.deepcopy(network.state_dict())
    history: list[dict[str, float]] = []
    devices = [features.device] if features.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        progress_bar(label="train", total=how.max_epochs) as advance,
    ):
        torch.manual_seed(derive_seed(how.seed, "dropout"))
        for epoch in range(1, how.max_epochs + 1):
            began = time.perf_counter()
            loss = _epoch(network, optimizer, features, own, rng.permutation(len(own)), how)
            held_loss = math.nan if checked is None else _held_loss(network, checked, how)
            history.append(
                {
                    "epoch": epoch,
                    "loss": loss,
                    "val_loss": held_loss,
                    "seconds": time.perf_counter() - began,
                }
            )
            if not math.isfinite(loss) or (checked is not None and not math.isfinite(held_loss)):
                raise TrainingError(
                    f"The loss ran away in epoch {epoch} ({loss}, of held-back runs {held_loss}). "
                    f"Try a tenth of lr={how.lr:g}."
                )
            advance(1)
            if checked is None:
                continue
            if held_loss < best:
                best, best_epoch, kept = held_loss, epoch, copy.deepcopy(network.state_dict())
            elif epoch - best_epoch >= how.patience:
                break
    if checked is not None:
        network.load_state_dict(kept)
    network.eval()
    return history


def _epoch(
    network: SequenceNetwork,
    optimizer: torch.optim.Optimizer,
    features: torch.Tensor,
    own: list[np.ndarray],
    order: np.ndarray,
    how: Training,
) -> float:
    """Take a step by each batch of sequences; return the mean loss."""
    network.train()
    total, n_rows = 0.0, 0
    for start in range(0, len(order), how.batch_size):
        batch = padded(features, [own[place] for place in order[start : start + how.batch_size]])
        real = batch.rows >= 0
        loss = how.loss(network(batch)[real], batch.rows[real])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), how.clip)
        optimizer.step()
        count = int(real.sum())
        total, n_rows = total + float(loss.detach()) * count, n_rows + count
    return total / n_rows


@torch.no_grad()
def _held_loss(network: SequenceNetwork, held: Sequences, how: Training) -> float:
    network.eval()
    real = held.rows >= 0
    return float(how.loss(network(held)[real], held.rows[real]))


@torch.inference_mode()
def applied(
    function: Callable[[Sequences], torch.Tensor],
    features: torch.Tensor,
    runs: list[np.ndarray],
    longest: int | None,
    batch_size: int,
) -> torch.Tensor:
    """Return what a network gives for each row, (n_rows, ...), run by run.

    With `longest`, each run is seen in pieces of that length, which overlap by half, so that each
    row but the first of a run has at least half a piece of its past.
    """
    found: torch.Tensor | None = None
    views = [view for run in runs for view in _views(run, longest)]
    for start in range(0, len(views), batch_size):
        some = views[start : start + batch_size]
        batch = padded(features, [rows for rows, _ in some])
        output = function(batch)
        if found is None:
            found = output.new_empty(len(features), *output.shape[2:])
        for place, (rows, skipped) in enumerate(some):
            found[torch.from_numpy(rows[skipped:]).to(output.device)] = output[
                place, skipped : len(rows)
            ]
    assert found is not None
    return found


def _views(run: np.ndarray, longest: int | None) -> list[tuple[np.ndarray, int]]:
    """Return the rows of each piece of a run, and how many of them only give context."""
    if longest is None or len(run) <= longest:
        return [(run, 0)]
    step = max(1, longest // 2)
    found = [(run[:longest], 0)]
    for start in range(longest, len(run), step):
        first = start + step - longest
        rows = run[first : start + step]
        found.append((rows, start - first))
    return found
