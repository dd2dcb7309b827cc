"""Running a stage of training with Lightning: devices, precision, logs, going on after a stop."""

from __future__ import annotations

import logging
import pickle
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from neurodl.errors import FileFormatError, NeurodlWarning
from neurodl.models._fitting import LIGHTNING_LOGGERS, Fitting
from neurodl.runtime import has_fast_half, resolve_devices

LAST = "last.ckpt"


class Place(NamedTuple):
    """Where and how training runs.

    devices : torch devices, several of which share each batch
    amp : whether in mixed precision
    logs : folder of CSV and TensorBoard logs
    checkpoints : folder in which an interrupted stage goes on
    """

    devices: list[torch.device]
    amp: bool
    logs: Path | None
    checkpoints: Path | None

    @property
    def device(self) -> torch.device:
        """The first device."""
        return self.devices[0]


def place(device: Any, amp: bool | None, logs: Any, checkpoints: Any) -> Place:
    """Return where and how to train; see `NeuralEncoder`."""
    devices = resolve_devices(device)
    use_amp = devices[0].type == "cuda" if amp is None else amp
    return Place(
        devices,
        use_amp,
        None if logs is None else Path(logs),
        None if checkpoints is None else Path(checkpoints),
    )


def run(fitting: Fitting, where: Place, label: str) -> list[dict[str, float]]:
    """Train a network by a stage and leave it at its best; return the history by epochs.

    Parameters
    ----------
    fitting : Fitting
    where : Place
        With checkpoints, an interrupted run of the same `label` goes on after its last epoch, to
        the same end.
    label : str
        Of the fit and the stage, for logs and checkpoints.

    Raises
    ------
    TrainingError, TooLargeError
        The loss ran away, or not even one stimulus fits into memory.
    FileFormatError
        A checkpoint is damaged.
    """
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        folder = where.checkpoints / label if where.checkpoints is not None else Path(scratch)
        last = folder / LAST
        # Processes that share batches hand their end over as a file.
        saves = where.checkpoints is not None or len(where.devices) > 1
        with torch.random.fork_rng(devices=_cuda(where.devices)):
            trainer = _trainer(fitting, where, label, _End(folder) if saves else None)
            if last.exists():
                _read(last)
            trainer.fit(fitting, ckpt_path=str(last) if last.exists() else None, weights_only=True)
        if saves:
            fitting.on_load_checkpoint(_read(last))
    fitting.load_state_dict(fitting.best)
    _alarm(fitting.history, fitting.stage.name)
    return fitting.history


def _read(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds: tensors, numbers and text only.

    Raises
    ------
    FileFormatError
        It is damaged.
    """
    try:
        kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        why = (str(error) or "it is empty").splitlines()[0]
        raise FileFormatError(
            f"The checkpoint {path} is damaged ({why:.80}). Remove its folder to train that fit "
            "anew."
        ) from error
    return kept


class _End(Checkpoint):
    """Keeps the state of a stage after each epoch, whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Save the state."""
        trainer.save_checkpoint(self.folder / LAST)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Stop at once where the stage had come to its end before."""
        if trainer.current_epoch - pl_module.best_epoch >= pl_module.stage.patience:
            trainer.should_stop = True


class _Bar(TQDMProgressBar):
    """Lightning's progress bar, without the number of the run."""

    def get_metrics(self, trainer: Any, pl_module: Any) -> Any:
        """Return what stands behind the bar."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        return items


def _trainer(fitting: Fitting, where: Place, label: str, end: _End | None) -> Any:
    first = where.device
    indices = [device.index or 0 for device in where.devices]
    loggers: Any = False
    if where.logs is not None:
        loggers = [CSVLogger(where.logs, name=label, version=""), *_tensorboard(where.logs, label)]
    strategy: Any = "auto"
    if len(where.devices) > 1:
        backend = "nccl" if first.type == "cuda" else "gloo"
        strategy = DDPStrategy(process_group_backend=backend, start_method="spawn")
    on_terminal = sys.stderr.isatty()
    return pl.Trainer(
        accelerator={"cuda": "gpu"}.get(first.type, first.type),
        devices=indices if first.type == "cuda" else len(where.devices),
        strategy=strategy,
        precision=_precision(first, where.amp),
        max_epochs=fitting.stage.max_epochs,
        callbacks=[*([end] if end else []), *([_Bar(leave=False)] if on_terminal else [])],
        logger=loggers,
        enable_progress_bar=on_terminal,
        enable_model_summary=False,
        enable_checkpointing=end is not None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )


def _precision(device: torch.device, amp: bool) -> Any:
    """Return Lightning's name of the precision: bfloat16 where the hardware has it."""
    if not amp:
        return "32-true"
    if device.type == "cuda" and not has_fast_half(device):
        return "16-mixed"
    if device.type == "cpu" and not has_fast_half(device):
        logging.getLogger("neurodl").warning(
            "amp=True is slower here: this processor does not compute in bfloat16"
        )
    return "bf16-mixed"


def _tensorboard(folder: Path, label: str) -> list[Any]:
    """Return a logger for TensorBoard, if that is installed."""
    try:
        return [TensorBoardLogger(folder, name=label, version="")]
    except ModuleNotFoundError:
        return []


def _cuda(devices: list[torch.device]) -> list[torch.device]:
    return [device for device in devices if device.type == "cuda"]


def _alarm(history: list[dict[str, float]], stage: str) -> None:
    """Warn where no epoch was better than the start."""
    start, later = history[0], history[1:]
    if later and min(one["val_loss"] for one in later) >= start["val_loss"]:
        warnings.warn(
            f"Stage {stage!r} did not lower the validation loss ({start['val_loss']:.4g} at its "
            f"start, {later[0]['val_loss']:.4g} after an epoch), so its start was kept. Try a "
            "tenth of the learning rate, more epochs, or more regularisation.",
            NeurodlWarning,
            stacklevel=4,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning says of itself; neurodl says what matters."""
    loggers = [logging.getLogger(name) for name in LIGHTNING_LOGGERS]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(lightning|torch)(\..*)?")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
