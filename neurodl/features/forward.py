"""The forward pass that every kind of feature comes from: stimuli in, batches of layers out."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, tee
from operator import length_hint
from typing import Any

import numpy as np
import torch
from torch import nn

from neurodl.backbones import Backbone, load_backbone
from neurodl.errors import FileFormatError, NeurodlWarning, UnknownNameError, listed
from neurodl.features.cache import ROWS_PER_CHUNK
from neurodl.features.fast import LAYOUTS, fast_network
from neurodl.features.pool import check_pool, check_time
from neurodl.features.taps import Taps
from neurodl.runtime import (
    has_fast_half,
    lent,
    lone_threads,
    precision_of,
    progress,
    resolve_device,
)
from neurodl.stimuli import N_DECODERS, Stimuli

logger = logging.getLogger(__name__)

# Labels that say something of the weights or the transform, on which values depend otherwise.
ONLY_SAID = ("weights", "own_transform", "signs_untrained")

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
    time: str = "mean",
) -> ForwardPass:
    """Return a checked `ForwardPass`; the parameters are those of `extract_features`."""
    if isinstance(backbone, str):
        backbone = load_backbone(backbone)
    names = backbone.check_layers(layers)
    check_pool(pool)
    check_time(time)
    if time != "mean" and stimuli.kind != "video":
        raise ValueError(f"`time` is only for videos, but the stimuli are {stimuli.kind}s.")
    if backbone.kind == "video" and stimuli.kind != "video":
        raise ValueError(f"{backbone.name} takes videos, but the stimuli are {stimuli.kind}s.")
    fps = getattr(backbone.transform, "fps", None)
    if fps is not None and fps != stimuli.fps:
        raise ValueError(
            f"{backbone.name} is made for {fps:g} frames per second, but the videos were opened "
            f"with fps={stimuli.fps}. Say fps={fps:g} when you open or cut them."
        )
    chosen = resolve_device(device)
    use_amp = chosen.type == "cuda" if amp is None else amp
    if use_amp and chosen.type == "cpu" and not has_fast_half(chosen):
        logger.warning("amp=True is slower here: this processor does not compute in bfloat16")
    return ForwardPass(backbone, stimuli, names, pool, chosen, use_amp, batch_size, time)


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
        time: str = "mean",
    ) -> None:
        self.backbone, self.stimuli, self.layers = backbone, stimuli, layers
        self.pool, self.device, self.amp, self.time = pool, device, amp, time
        self.labels = backbone.describe()
        self.layouts: dict[str, dict[str, Any]] = {}
        self._lengths: set[int] = set()
        auto = ROWS_PER_CHUNK if device.type == "cuda" else 16
        self.batch_size = auto if batch_size == "auto" else int(batch_size)
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, but got {batch_size}.")

    @property
    def n_chunks(self) -> int:
        """The number of chunks of all stimuli."""
        return -(-len(self.stimuli) // ROWS_PER_CHUNK)

    @property
    def precision(self) -> str:
        """The type of number that the network computes with, as text."""
        if not self.amp:
            return "float32"
        return f"mixed {str(torch.get_autocast_dtype(self.device.type)).removeprefix('torch.')}"

    def attrs(self, layer: str) -> dict[str, Any]:
        """Return what is stored with a layer's features."""
        time = {"time": self.time} if self.stimuli.kind == "video" else {}
        return {
            **self.labels,
            "layer": layer,
            "pool": self.pool,
            "reduce": "none",
            "precision": self.precision,
            **time,
        }

    def key(self, layer: str) -> dict[str, str]:
        """Return everything that a layer's values depend on: the key of a cache."""
        attrs = {k: str(value) for k, value in self.attrs(layer).items() if k not in ONLY_SAID}
        return {
            **attrs,
            "architecture_sha256": self.backbone.architecture_sha256,
            "stimuli": hashlib.sha256("".join(self.stimuli.hashes()).encode()).hexdigest(),
            "torch": torch.__version__,
        }

    def batches(
        self,
        chunks: Iterable[int],
        layers: Sequence[str] | None = None,
        total: int | None = None,
    ) -> Iterator[tuple[int, Iterator[Batch]]]:
        """Yield each chunk's number and its batches; the next one is decoded while this one runs.

        A batch is the row numbers of its readable stimuli, and of each of `layers` their features
        (n_rows, n_features), float32, on the device. All batches of a chunk must be taken before
        the next chunk. `chunks` are asked for as they come; `total` is how many, if known.

        Raises
        ------
        FileFormatError
            No stimulus of a chunk can be decoded, or the network returns NaN.
        """
        names = self.layers if layers is None else list(layers)
        total = total or length_hint(chunks) or None
        chunks, coming = tee(chunks)
        rows = (row for chunk in coming for row in self.rows(chunk))
        with (
            lent(self.backbone.module, self.device) as network,
            fast_network(network, self.device, amp=self.amp) as module,
            Taps(self.backbone, names, self.pool, self.time) as taps,
            lone_threads(N_DECODERS) as pool,
        ):
            inputs = self._decoded(rows, pool)
            for chunk in progress(chunks, label=self.backbone.name, total=total):
                yield chunk, self._batches_of(chunk, module, taps, inputs)

    def rows(self, chunk: int) -> range:
        """Return the rows of a chunk."""
        start = chunk * ROWS_PER_CHUNK
        return range(start, min(start + ROWS_PER_CHUNK, len(self.stimuli)))

    def chunks(
        self,
        chunks: Iterable[int],
        reduce: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
        total: int | None = None,
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield each chunk's number and its rows by layer; unreadable stimuli are rows of NaN.

        Parameters
        ----------
        chunks : iterable of int
        reduce : callable, optional
            From a layer's name and features (n, n_features) to (n, n_reduced), batch by batch.
        total : int, optional
            How many chunks there are at most, for the progress bar.
        """
        for chunk, batches in self.batches(chunks, total=total):
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

    def _decoded(
        self, rows: Iterable[int], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[int, torch.Tensor | None]]:
        """Yield the network's input for each row, None if unreadable; decode some ahead."""
        coming = iter(rows)
        n_ahead = self.batch_size if self.stimuli.kind == "image" else 2 * N_DECODERS
        ahead = [(row, pool.submit(self._input, row)) for row in islice(coming, n_ahead)]
        waiting = deque(ahead)
        while waiting:
            row, decoded = waiting.popleft()
            waiting.extend((row, pool.submit(self._input, row)) for row in islice(coming, 1))
            yield row, decoded.result()

    def _input(self, row: int) -> torch.Tensor | None:
        try:
            pixels = self.stimuli[row]
            self.stimuli.note_pixels(row, pixels)
            return self.backbone.transform(pixels)
        except FileFormatError as error:
            logger.warning("%s", error)
            return None

    def _batches_of(
        self,
        chunk: int,
        module: nn.Module,
        taps: Taps,
        inputs: Iterator[tuple[int, torch.Tensor | None]],
    ) -> Iterator[Batch]:
        rows = self.rows(chunk)
        readable = ((row, one) for row, one in islice(inputs, len(rows)) if one is not None)
        batch: list[tuple[int, torch.Tensor]] = []
        n_readable = 0
        for row, one in readable:
            n_readable += 1
            batch.append((row, one))
            if self._n_images(batch) >= self.batch_size:
                yield from self._halved(batch, module, taps)
                batch = []
        yield from self._halved(batch, module, taps)
        if not n_readable:
            raise FileFormatError(
                f"None of the {len(rows)} stimuli from {self.stimuli.where(rows.start)} on can be "
                "decoded."
            )

    def _n_images(self, batch: list[tuple[int, torch.Tensor]]) -> int:
        """Return how many images, or frames of videos, are in a batch."""
        if self.stimuli.kind == "image":
            return len(batch)
        return sum(len(one) if self._framewise else one.shape[1] for _, one in batch)

    def _halved(
        self, batch: list[tuple[int, torch.Tensor]], module: nn.Module, taps: Taps
    ) -> Iterator[Batch]:
        """Yield the features of a batch, in smaller ones where the GPU's memory is too small."""
        while batch:
            part = batch[:1]
            while len(part) < len(batch) and self._n_images(part) < self.batch_size:
                part = batch[: len(part) + 1]
            try:
                features = self._forward(module, taps, [one for _, one in part])
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
            yield np.array([row for row, _ in part]), features
            batch = batch[len(part) :]

    @property
    def _framewise(self) -> bool:
        """Whether the frames of a video are so many images for an image network."""
        return self.stimuli.kind == "video" and self.backbone.kind == "image"

    def _forward(
        self, module: nn.Module, taps: Taps, inputs: list[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Run one batch; frames of videos that are images for the network are split as such."""
        self._check_lengths(inputs)
        batch = torch.cat(inputs) if self._framewise else torch.stack(inputs)
        if self.device.type == "cuda":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        layout = LAYOUTS.get(batch.ndim, torch.contiguous_format)
        batch = self.backbone.as_input(batch.to(self.device)).contiguous(memory_format=layout)
        parts = batch.split(self.batch_size) if self._framewise else [batch]
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, enabled=self.amp),
            precision_of(self.device, self.amp),
        ):
            passed = [taps.run(module, part) for part in parts]
        pooled = passed[0]
        if len(passed) > 1:
            pooled = {name: torch.cat([part[name] for part in passed]) for name in pooled}
        self.layouts |= taps.layouts
        if not self._framewise:
            return pooled
        lengths = [len(one) for one in inputs]
        if self.time == "keep":
            self._keep_frames(lengths[0])
        return {
            name: torch.stack([self._over_frames(part) for part in values.split(lengths)])
            for name, values in pooled.items()
        }

    def _check_lengths(self, inputs: list[torch.Tensor]) -> None:
        """Raise if clips differ in length that are passed, or kept, as a whole."""
        if inputs[0].ndim != 4 or (self._framewise and self.time == "mean"):
            return
        self._lengths |= {len(one) if self._framewise else one.shape[1] for one in inputs}
        if len(self._lengths) > 1:
            raise ValueError(
                f"The clips have {listed(sorted(self._lengths))} frames, but need the same number "
                f"for {self.backbone.name} with time={self.time!r}. Open them with n_frames=..."
            )

    def _over_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the features of a video, shape (n_features,), of those of its frames."""
        return frames.mean(0) if self.time == "mean" else frames.flatten()

    def _keep_frames(self, n_frames: int) -> None:
        for name, layout in self.layouts.items():
            if not layout["feature_axes"].startswith("time "):
                self.layouts[name] = layout | {
                    "feature_axes": f"time {layout['feature_axes']}",
                    "feature_shape": [n_frames, *layout["feature_shape"]],
                }
