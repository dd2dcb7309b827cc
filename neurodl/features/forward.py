"""The forward pass that every kind of feature comes from: stimuli in, batches of layers out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import nn

from neurodl.backbones import Backbone, load_backbone
from neurodl.errors import FileFormatError, NeurodlWarning, UnknownNameError, listed
from neurodl.features.cache import ROWS_PER_CHUNK
from neurodl.features.pool import check_pool
from neurodl.features.taps import Taps
from neurodl.runtime import progress, resolve_device
from neurodl.stimuli import Stimuli

logger = logging.getLogger(__name__)
N_DECODERS = 2

Batch = tuple[np.ndarray, dict[str, torch.Tensor]]


def open_pass(
    backbone: str | Backbone,
    stimuli: Stimuli,
    layers: str | Sequence[str] | None,
    *,
    pool: str,
    device: str,
    batch_size: int | str,
    amp: bool | None,
) -> ForwardPass:
    """Return a checked `ForwardPass`; the parameters are those of `extract_features`."""
    if isinstance(backbone, str):
        backbone = load_backbone(backbone)
    names = backbone.check_layers(layers)
    check_pool(pool)
    if backbone.kind == "video" and stimuli.kind != "video":
        raise ValueError(f"{backbone.name} takes videos, but the stimuli are {stimuli.kind}s.")
    chosen = resolve_device(device)
    use_amp = chosen.type == "cuda" if amp is None else amp
    return ForwardPass(backbone, stimuli, names, pool, chosen, use_amp, batch_size)


def check_on_unreadable(on_unreadable: str) -> None:
    """Raise if `on_unreadable` is neither "raise" nor "skip"."""
    if on_unreadable not in ("raise", "skip"):
        raise UnknownNameError(
            f"`on_unreadable` must be 'raise' or 'skip', but got {on_unreadable!r}."
        )


def readable_ids(stimuli: Stimuli, kept: np.ndarray, on_unreadable: str) -> np.ndarray:
    """Return the ids of the stimuli that were decoded, shape (n_kept,); warn of the others.

    Parameters
    ----------
    stimuli : Stimuli
    kept : numpy.ndarray of bool, shape (n_stimuli,)
    on_unreadable : {"raise", "skip"}

    Raises
    ------
    FileFormatError
        Some were not, and `on_unreadable` is "raise".
    """
    unreadable = [stimuli.where(int(row)) for row in np.flatnonzero(~kept)]
    if unreadable and on_unreadable == "raise":
        raise FileFormatError(
            f"{len(unreadable)} of {len(stimuli)} stimuli cannot be decoded: {listed(unreadable)}. "
            "Replace them, or leave them out with on_unreadable='skip'."
        )
    if unreadable:
        warnings.warn(
            f"{len(unreadable)} of {len(stimuli)} stimuli cannot be decoded and were left out: "
            f"{listed(unreadable, 20)}.",
            NeurodlWarning,
            stacklevel=3,
        )
    return np.array(stimuli.ids)[kept]


class ForwardPass:
    """Passes of stimuli through a backbone, chunk by chunk, each chunk in batches.

    The same chunk makes the same batches in every pass, so that a stimulus has the same features
    each time it is passed.

    Attributes
    ----------
    layouts : dict of str to dict
        See `Taps`; known once a batch was passed, or taken from a cache.
    """

    def __init__(
        self,
        backbone: Backbone,
        stimuli: Stimuli,
        layers: list[str],
        pool: str,
        device: torch.device,
        amp: bool,
        batch_size: int | str,
    ) -> None:
        self.backbone, self.stimuli, self.layers = backbone, stimuli, layers
        self.pool, self.device, self.amp = pool, device, amp
        self.layouts: dict[str, dict[str, Any]] = {}
        auto = ROWS_PER_CHUNK if device.type == "cuda" else 16
        self.batch_size = auto if batch_size == "auto" else int(batch_size)
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, but got {batch_size}.")

    @property
    def n_chunks(self) -> int:
        """The number of chunks of all stimuli."""
        return -(-len(self.stimuli) // ROWS_PER_CHUNK)

    def attrs(self, layer: str) -> dict[str, Any]:
        """Return what is stored with a layer's features."""
        return {
            "backbone": self.backbone.name,
            "layer": layer,
            "pool": self.pool,
            "reduce": "none",
            "weights": self.backbone.weights,
            "weights_sha256": self.backbone.weights_sha256,
            "transform": self.backbone.transform.text,
            "licence": self.backbone.licence,
            "precision": "amp" if self.amp else "float32",
        }

    def key(self, layer: str) -> dict[str, str]:
        """Return everything that a layer's values depend on: the key of a cache."""
        attrs = {key: str(value) for key, value in self.attrs(layer).items() if key != "weights"}
        return {
            **attrs,
            "architecture_sha256": self.backbone.architecture_sha256,
            "stimuli": "".join(self.stimuli.hashes()),
            "torch": torch.__version__,
        }

    def batches(
        self, chunks: Sequence[int], layers: Sequence[str] | None = None
    ) -> Iterator[tuple[int, Iterator[Batch]]]:
        """Yield each chunk's number and its batches; the next one is decoded while this one runs.

        A batch is the row numbers of its readable stimuli, and of each of `layers` their features
        (n_rows, n_features), float32, on the device. All batches of a chunk must be taken before
        the next chunk.

        Raises
        ------
        FileFormatError
            No stimulus of a chunk can be decoded, or the network returns NaN.
        """
        if not chunks:
            return
        module = self.backbone.module.to(self.device)
        names = self.layers if layers is None else list(layers)
        with (
            ThreadPoolExecutor(N_DECODERS) as pool,
            Taps(self.backbone, names, self.pool) as taps,
        ):
            decode = [pool.submit(self._inputs, chunk) for chunk in chunks[:1]]
            for position, chunk in enumerate(progress(chunks, label=self.backbone.name)):
                inputs = decode.pop().result()
                decode += [
                    pool.submit(self._inputs, later)
                    for later in chunks[position + 1 : position + 2]
                ]
                yield chunk, self._batches_of(chunk, module, taps, inputs)

    def chunks(
        self,
        chunks: Sequence[int],
        reduce: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield each chunk's number and its rows by layer; unreadable stimuli are rows of NaN.

        Parameters
        ----------
        chunks : sequence of int
        reduce : callable, optional
            From a layer's name and features (n, n_features) to (n, n_reduced), batch by batch.
        """
        for chunk, batches in self.batches(chunks):
            start = chunk * ROWS_PER_CHUNK
            n_rows = min(ROWS_PER_CHUNK, len(self.stimuli) - start)
            rows: dict[str, np.ndarray] = {}
            for numbers, features in batches:
                for name, found in features.items():
                    values = (found if reduce is None else reduce(name, found)).cpu().numpy()
                    if name not in rows:
                        rows[name] = np.full((n_rows, values.shape[1]), np.nan, np.float32)
                    rows[name][numbers - start] = values
            yield chunk, rows

    def _inputs(self, chunk: int) -> list[torch.Tensor | None]:
        """Decode and transform the stimuli of a chunk; None where one is unreadable."""
        start = chunk * ROWS_PER_CHUNK
        inputs: list[torch.Tensor | None] = []
        for row in range(start, min(start + ROWS_PER_CHUNK, len(self.stimuli))):
            try:
                inputs.append(self.backbone.transform(self.stimuli[row]))
            except FileFormatError as error:
                logger.warning("%s", error)
                inputs.append(None)
        return inputs

    def _batches_of(
        self, chunk: int, module: nn.Module, taps: Taps, inputs: list[torch.Tensor | None]
    ) -> Iterator[Batch]:
        first = chunk * ROWS_PER_CHUNK
        readable = [(row, one) for row, one in enumerate(inputs, first) if one is not None]
        if not readable:
            raise FileFormatError(
                f"None of the {len(inputs)} stimuli from {self.stimuli.where(first)} on can be "
                "decoded."
            )
        start = 0
        while start < len(readable):
            batch = readable[start : start + self.batch_size]
            try:
                features = self._forward(module, taps, [one for _, one in batch])
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                logger.warning("out of GPU memory: the batch size is now %d", self.batch_size)
                torch.cuda.empty_cache()
                continue
            for name, values in features.items():
                if not bool(values.isfinite().all()):
                    raise FileFormatError(
                        f"{self.backbone.name} returns NaN or infinite values in layer {name!r}."
                        + (" Try amp=False." if self.amp else "")
                    )
            yield np.array([row for row, _ in batch]), features
            start += len(batch)

    def _forward(
        self, module: nn.Module, taps: Taps, inputs: list[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Run one batch; frames of videos are averaged for an image network."""
        framewise = self.backbone.kind == "image" and inputs[0].ndim == 4
        batch = torch.cat(inputs) if framewise else torch.stack(inputs)
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=self.amp):
            pooled = taps.run(module, batch.to(self.device))
        self.layouts |= taps.layouts
        if framewise:
            lengths = [len(one) for one in inputs]
            pooled = {
                name: torch.stack([part.mean(0) for part in values.split(lengths)])
                for name, values in pooled.items()
            }
        return pooled
