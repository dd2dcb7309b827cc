"""One stage of training as a Lightning module: batches of rows, exact under any splitting."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn

from neurodl.errors import TooLargeError, TrainingError
from neurodl.models._losses import Scale, loss_of, mean_r
from neurodl.models._network import Network
from neurodl.runtime import derive_seed, seed_generator

logger = logging.getLogger(__name__)

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda groups, **kw: torch.optim.SGD(groups, momentum=0.9, **kw),
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
SCHEDULES = ("constant", "cosine", "linear", "plateau")
LIGHTNING_LOGGERS = (
    "lightning.pytorch",
    "lightning.fabric",
    "lightning.pytorch.utilities.rank_zero",
)
IMPROVED = 1e-5  # what a validation loss must fall by to count as lower
PLATEAU = 2  # epochs without improvement until "plateau" takes a third of the learning rate
EXPLODED = 1e4  # times the loss of the start


@dataclass
class Stage:
    """What a stage of training is told.

    groups : parameters with their learning rate, and the epoch from which they move
    penalty : of the loss, beside the data; a function of no arguments
    extra : what to add to the loss of a batch, from the seed of the step: rehearsal
    """

    name: str
    groups: list[dict[str, Any]]
    max_epochs: int
    patience: int
    batch_size: int
    micro_batch_size: int
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: int = 0
    clip: float | None = None
    seed: int = 0
    penalty: Callable[[], torch.Tensor] | None = None
    extra: Callable[[int], torch.Tensor] | None = None
    history: list[dict[str, float]] = field(default_factory=list)


class Batches(torch.utils.data.Sampler[list[int]]):
    """The rows of each step, in an order drawn anew from the seed and the epoch.

    A remainder smaller than the number of processes joins the batch before it.
    """

    def __init__(self, rows: np.ndarray, batch_size: int, seed: int, n_processes: int = 1) -> None:
        self.rows, self.batch_size, self.seed = np.asarray(rows), batch_size, seed
        self.n_processes, self.epoch = n_processes, 0

    def _starts(self) -> list[int]:
        starts = list(range(0, len(self.rows), self.batch_size))
        if len(starts) > 1 and len(self.rows) - starts[-1] < self.n_processes:
            starts.pop()
        return starts

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        return len(self._starts())

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng(derive_seed(self.seed, "order", self.epoch))
        order = rng.permutation(self.rows)
        starts = self._starts()
        for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
            yield order[start:stop].tolist()


class Fitting(pl.LightningModule):
    """The training of a network's parameters by one stage.

    Parameters
    ----------
    network : Network
    stage : Stage
    inputs : callable
        From rows, and the seed of what varies in them or None, to what `forward` takes: network
        inputs, or the outputs of the layers where only readouts are trained.
    reads : bool
        Whether `inputs` are the outputs of the layers.
    targets : torch.Tensor, shape (n_rows, n_targets)
    scale, weights : see `loss_of`
    train, validation : numpy.ndarray
        Row numbers.
    """

    def __init__(
        self,
        network: Network,
        stage: Stage,
        inputs: Callable[[Any, int | None], Any],
        reads: bool,
        targets: torch.Tensor,
        scale: Scale,
        weights: torch.Tensor,
        train: np.ndarray,
        validation: np.ndarray,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network, self.stage, self.reads, self.fetch = network, stage, reads, inputs
        self.targets, self.scale, self.weights = targets, scale, weights
        self.train_rows, self.validation_rows = train, validation
        self.micro_batch_size = stage.micro_batch_size
        self.best: dict[str, torch.Tensor] = {}
        self.best_loss, self.best_epoch, self.start_loss = math.inf, 0, math.inf
        self.history: list[dict[str, float]] = []
        self._sums: list[torch.Tensor] = []
        self._began = 0.0

    def setup(self, stage: str) -> None:
        """Keep the processes that share batches as quiet as the one that started them."""
        if self.trainer.world_size > 1:
            for name in LIGHTNING_LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)

    def train_dataloader(self) -> Any:
        """Return batches of row numbers."""
        sampler = Batches(
            self.train_rows, self.stage.batch_size, self.stage.seed, self.trainer.world_size
        )
        sampler.epoch = self.current_epoch
        return torch.utils.data.DataLoader(
            range(len(self.targets)),  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=np.asarray,
        )

    def configure_optimizers(self) -> Any:
        """Return the optimizer of the stage, and its schedule by epochs."""
        groups = [
            {key: one[key] for key in ("params", "lr", "weight_decay") if key in one}
            for one in self.stage.groups
        ]
        make = OPTIMIZERS[self.stage.optimizer]
        optimizer = make(groups, lr=1e-3, weight_decay=self.stage.weight_decay)
        return [optimizer], [self._schedule(optimizer)]

    def _schedule(self, optimizer: torch.optim.Optimizer) -> Any:
        if self.stage.schedule == "plateau":
            return torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=1 / 3, patience=PLATEAU
            )
        return torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)

    def _rate(self, epoch: int) -> float:
        """Return what the learning rates are multiplied by in an epoch."""
        warmup, total = self.stage.warmup, self.stage.max_epochs
        if epoch < warmup:
            return (epoch + 1) / (warmup + 1)
        done = (epoch - warmup) / max(total - warmup, 1)
        if self.stage.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(done, 1)))
        return 1 - min(done, 1) if self.stage.schedule == "linear" else 1.0

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return what this stage trains, and no more."""
        return dict(self._trained())

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Take back what `state_dict` returned."""
        own = self._trained()
        with torch.no_grad():
            for name, values in state_dict.items():
                own[name].copy_(values)
        return nn.modules.module._IncompatibleKeys([], [])

    def _trained(self) -> dict[str, torch.Tensor]:
        return {
            **{n: p.data for n, p in self.network.named_parameters() if p.requires_grad},
            **{
                f"core.{name}.{key}": values
                for name in self.network.live_norms
                for key, values in self.network.core.get_submodule(name).named_buffers()
            },
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what early stopping knows."""
        checkpoint["stage"] = {
            "best": self.best,
            "numbers": [self.best_loss, self.best_epoch, self.start_loss, self.micro_batch_size],
            "history": self.history,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        kept = checkpoint["stage"]
        self.best, self.history = kept["best"], kept["history"]
        self.best_loss, self.best_epoch, self.start_loss, self.micro_batch_size = kept["numbers"]

    def on_train_start(self) -> None:
        """Score the start, which is what stays if nothing improves it."""
        if not self.history:
            loss, r = self._validate()
            self.start_loss = loss
            self._keep(loss, 0)
            self.history.append(_entry(0, math.nan, loss, r, 0.0))

    def on_train_epoch_start(self) -> None:
        """Begin to count, with an order of rows of the epoch's own."""
        self._sampler().epoch = self.current_epoch
        self._sums, self._began = [], time.perf_counter()

    def _sampler(self) -> Batches:
        return self.trainer.train_dataloader.batch_sampler  # type: ignore[union-attr]

    def training_step(self, rows: np.ndarray, batch_idx: int) -> None:
        """Take a step by a batch, in parts that the memory can hold."""
        optimizer: Any = self.optimizers()
        own = rows[self.global_rank :: self.trainer.world_size]
        seed = derive_seed(self.stage.seed, "step", self.current_epoch, batch_idx)
        optimizer.step(closure=lambda: self._backward(own, len(rows), seed))

    def _backward(self, own: np.ndarray, n_rows: int, seed: int) -> torch.Tensor:
        """Return the loss of a batch, with gradients; in smaller parts once memory has run out."""
        while True:
            try:
                return self._parts_backward(own, n_rows, seed)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                self._halve(len(own), error)

    def _halve(self, n_rows: int, error: BaseException) -> None:
        """Pass half as many of `n_rows` at once, if memory has run out; else raise."""
        if not _is_out_of_memory(error):
            raise error
        if self.micro_batch_size == 1 or self.trainer.world_size > 1:
            raise TooLargeError(
                f"Not even {self.micro_batch_size} stimuli at once fit into memory. Read an "
                "earlier layer, use finetune='last' or 'lora', or amp=True."
            ) from error
        self.micro_batch_size = min(self.micro_batch_size, n_rows) // 2 or 1
        logger.warning(
            "out of memory: batches of %d pass in parts of %d now, with the same result%s",
            self.stage.batch_size,
            self.micro_batch_size,
            " but that correlations are of parts" * (self.scale.loss == "correlation"),
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _parts_backward(self, own: np.ndarray, n_rows: int, seed: int) -> torch.Tensor:
        seed_generator(self.device, derive_seed(seed, self.global_rank))
        for parameter in self._moved():
            parameter.grad = None
        starts = list(range(0, len(own), self.micro_batch_size))
        total = torch.zeros((), device=self.device)
        for number, start in enumerate(starts):
            rows = own[start : start + self.micro_batch_size]
            output = self._output(rows, seed)
            # Processes average their gradients, but their parts add up.
            loss = self.trainer.world_size * self._loss(output, rows, n_rows)
            total += loss.detach() / self.trainer.world_size
            if number == len(starts) - 1:
                loss = loss + self._beside(seed)
                self._check(total)
                self.manual_backward(loss)
            else:
                with self._unsynchronised():
                    self.manual_backward(loss)
        self._sums.append(total)
        return total

    def _unsynchronised(self) -> Any:
        """Return a block in which processes do not exchange gradients."""
        block = getattr(self.trainer.strategy, "block_backward_sync", contextlib.nullcontext)
        return block()

    def _output(self, rows: np.ndarray, seed: int | None) -> torch.Tensor:
        given = self.fetch(rows, seed)
        if self.reads:
            return self.network.read([one.to(self.device) for one in given])
        return self.network(self.network.backbone.as_input(given.to(self.device)))

    def _loss(self, output: torch.Tensor, rows: np.ndarray, n_rows: int) -> torch.Tensor:
        targets = self.targets[rows].to(self.device)
        scale, weights = self.scale.to(self.device), self.weights.to(self.device)
        return loss_of(output, targets, scale, weights, n_rows)

    def _beside(self, seed: int) -> torch.Tensor:
        """Return what is added to the loss of the data: penalties and rehearsal."""
        added = torch.zeros((), device=self.device)
        if self.stage.penalty is not None:
            added = added + self.stage.penalty()
        if self.stage.extra is not None:
            added = added + self.stage.extra(seed)
        return added

    def _check(self, loss: torch.Tensor) -> None:
        """Raise if the loss is no number, or has grown out of all proportion."""
        value = float(loss)
        if math.isfinite(value) and value <= EXPLODED * max(self.start_loss, 1e-3):
            return
        rates = ", ".join(f"{one['lr']:g}" for one in self.stage.groups[:2])
        raise TrainingError(
            f"The loss became {value:.3g} in epoch {self.current_epoch + 1} of stage "
            f"{self.stage.name!r} (learning rates {rates}). Try a tenth of the learning rate, "
            "clip=1.0, warmup=1, norm='frozen', or amp=False."
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave out what does not move yet, and clip the gradient."""
        for group in self.stage.groups:
            if self.current_epoch < group.get("from_epoch", 0):
                for parameter in group["params"]:
                    parameter.grad = None
        if self.stage.clip is not None:
            nn.utils.clip_grad_norm_(self._moved(), self.stage.clip)

    def _moved(self) -> list[nn.Parameter]:
        return [parameter for group in self.stage.groups for parameter in group["params"]]

    def on_train_epoch_end(self) -> None:
        """Validate, keep the best, and stop once it is long past."""
        loss, r = self._validate()
        epoch = self.current_epoch + 1
        self._check(torch.tensor(loss))
        mean = self._mean_over_processes(torch.stack(self._sums).mean())
        self.history.append(_entry(epoch, mean, loss, r, time.perf_counter() - self._began))
        if self.trainer.loggers or self.trainer.progress_bar_callback:
            shown = {"loss": mean, "val_loss": loss, "val_r": r}
            self.log_dict(shown, prog_bar=True, rank_zero_only=True)
        if loss < self.best_loss - IMPROVED:
            self._keep(loss, epoch)
        schedule: Any = self.lr_schedulers()
        schedule.step(*([loss] if self.stage.schedule == "plateau" else []))
        if epoch - self.best_epoch >= self.stage.patience:
            self.trainer.should_stop = True

    def _mean_over_processes(self, value: torch.Tensor) -> float:
        # Parts of a batch add up over processes.
        gathered: Any = self.all_gather(value) if self.trainer.world_size > 1 else value
        return float(gathered.sum())

    def _keep(self, loss: float, epoch: int) -> None:
        self.best_loss, self.best_epoch = loss, epoch
        self.best = {
            name: values.detach().cpu().clone() for name, values in self._trained().items()
        }

    def _outputs(self, rows: np.ndarray) -> torch.Tensor:
        """Return what the network says of rows, (n_rows, n_targets), at most so many at once."""
        size = self.micro_batch_size
        while True:
            try:
                parts = [self._output(rows[i : i + size], None) for i in range(0, len(rows), size)]
                return torch.cat(parts).float()
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                self._halve(len(rows), error)
                size = self.micro_batch_size

    def _validate(self) -> tuple[float, float]:
        """Return the loss of the validation rows, and the mean over targets of r."""
        n_processes = self.trainer.world_size
        rows = self.validation_rows
        own = np.resize(rows, -(-len(rows) // n_processes) * n_processes)
        own = own[self.global_rank :: n_processes]
        self.network.eval()
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            output = self._outputs(own)
        self.network.train()
        if n_processes > 1:
            gathered: Any = self.all_gather(output)
            output = gathered.transpose(0, 1).flatten(0, 1)[: len(rows)]
        loss = float(self._loss(output, rows, len(rows)))
        targets = self.targets[rows].to(output.device)
        predicted = self.scale.to(output.device).predicted(output)
        return loss, mean_r(predicted, targets)


def _entry(
    epoch: int, loss: float, val_loss: float, val_r: float, seconds: float
) -> dict[str, float]:
    return {"epoch": epoch, "loss": loss, "val_loss": val_loss, "val_r": val_r, "seconds": seconds}


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(
        error, (torch.OutOfMemoryError, MemoryError)
    ) or "can't allocate memory" in str(error)
