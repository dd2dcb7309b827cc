"""Features of stimuli: a backbone's layers, read by hooks in one pass, cached on disk."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from neurodl.backbones import Backbone, load_backbone
from neurodl.errors import FileFormatError, NeurodlError, NeurodlWarning, UnknownNameError, listed
from neurodl.features.cache import ROWS_PER_CHUNK, FeatureCache, cache_folder
from neurodl.features.pool import check_pool, pool_output
from neurodl.runtime import progress, resolve_device
from neurodl.schema import check_features
from neurodl.stimuli import Stimuli

logger = logging.getLogger(__name__)
N_DECODERS = 2


def extract_features(
    backbone: str | Backbone,
    stimuli: Stimuli,
    layers: str | Sequence[str] | None = None,
    *,
    pool: str = "spatial:7",
    device: str = "auto",
    batch_size: int | str = "auto",
    amp: bool | None = None,
    cache: str | Path | bool | None = None,
    on_unreadable: str = "raise",
) -> dict[str, xr.DataArray]:
    """Return a backbone's features of each stimulus, layer by layer.

    All layers come from one pass, which stops after the last one wanted. Videos shown to an
    image network are taken frame by frame and averaged over time.

    Parameters
    ----------
    backbone : str or Backbone
        A name for `load_backbone`, or what it returned.
    stimuli : Stimuli
    layers : str or sequence of str, optional
        Dotted module names; by default the backbone's own suggestion.
    pool : str
        See `pool_output`.
    device : str
        See `resolve_device`.
    batch_size : int or "auto"
        Stimuli per forward pass; halved by itself when a GPU runs out of memory.
    amp : bool, optional
        Mixed precision; by default on a GPU only.
    cache : path or False, optional
        The folder of the cache; by default `cache_folder`. False reads and writes none.
    on_unreadable : {"raise", "skip"}
        What to do with a stimulus that cannot be decoded: stop, naming it, or leave it out,
        with a warning.

    Returns
    -------
    dict of str to xarray.DataArray, dims (stimulus, feature), float32

    Raises
    ------
    UnknownNameError
        A layer does not exist; the nearest names are listed.
    FileFormatError
        A stimulus cannot be decoded, and `on_unreadable` is "raise".

    Examples
    --------
    >>> stimuli = Stimuli.from_arrays(np.zeros((2, 32, 32), np.uint8), ids=["a", "b"])
    >>> extract_features("pixels", stimuli, cache=False)["pixels"].shape
    (2, 2352)
    """
    if on_unreadable not in ("raise", "skip"):
        raise UnknownNameError(
            f"`on_unreadable` must be 'raise' or 'skip', but got {on_unreadable!r}."
        )
    if isinstance(backbone, str):
        backbone = load_backbone(backbone)
    names = backbone.check_layers(layers)
    check_pool(pool)
    if backbone.kind == "video" and stimuli.kind != "video":
        raise ValueError(f"{backbone.name} takes videos, but the stimuli are {stimuli.kind}s.")
    chosen = resolve_device(device)
    use_amp = chosen.type == "cuda" if amp is None else amp
    run = _Extraction(backbone, stimuli, names, pool, chosen, use_amp, batch_size)
    values = run.memory() if cache is False else run.cached(cache_folder(_path(cache)))
    kept = np.isfinite(values[names[0]]).all(1)
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
            stacklevel=2,
        )
    ids = np.array(stimuli.ids)[kept]
    return check_features(
        {
            name: xr.DataArray(
                values[name][kept],
                dims=("stimulus", "feature"),
                coords={"stimulus": ids},
                attrs=run.attrs(name),
            )
            for name in names
        }
    )


def concatenate_features(
    features: dict[str, xr.DataArray], name: str = "all"
) -> dict[str, xr.DataArray]:
    """Return one feature space that holds the features of all layers side by side.

    Raises
    ------
    SchemaError
        The layers do not have the same ids in the same order.
    """
    layers = check_features(features)
    arrays = list(layers.values())
    joined = xr.concat(
        arrays,
        "feature",
        coords="minimal",
        compat="override",
        join="exact",
        combine_attrs="drop_conflicts",
    )
    return {name: joined.assign_attrs(layer="+".join(layers))}


def _path(cache: str | Path | bool | None) -> str | Path | None:
    if cache is True or cache is None:
        return None
    return cache  # type: ignore[return-value]


class _Extraction:
    """One pass of stimuli through a backbone."""

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
        auto = ROWS_PER_CHUNK if device.type == "cuda" else 16
        self.batch_size = auto if batch_size == "auto" else int(batch_size)
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, but got {batch_size}.")
        self.unreadable: dict[int, str] = {}

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

    def memory(self) -> dict[str, np.ndarray]:
        """Compute all rows without a cache."""
        n_chunks = -(-len(self.stimuli) // ROWS_PER_CHUNK)
        parts = [rows for _, rows in self._chunks(list(range(n_chunks)))]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.layers}

    def cached(self, folder: Path) -> dict[str, np.ndarray]:
        """Read what the cache has and compute the chunks it lacks."""
        stimuli_hash = "".join(self._stimulus_hashes())
        caches = {
            name: FeatureCache(folder, self._key(name, stimuli_hash), len(self.stimuli))
            for name in self.layers
        }
        for _ in range(2):
            found = {name: cache.read() for name, cache in caches.items()}
            if all(values is not None for values in found.values()):
                return {name: values for name, values in found.items() if values is not None}
            n_chunks = caches[self.layers[0]].n_chunks
            missing = [
                chunk
                for chunk in range(n_chunks)
                if not all(cache.has(chunk) for cache in caches.values())
            ]
            for chunk, rows in self._chunks(missing):
                for name, cache in caches.items():
                    cache.write(chunk, rows[name])
        raise NeurodlError(f"The feature cache in {folder} cannot be read back; remove it.")

    def _stimulus_hashes(self) -> list[str]:
        """Return the stimuli's hashes; one that cannot even be read hashes as its name."""
        return self.stimuli.hashes()

    def _key(self, layer: str, stimuli_hash: str) -> dict[str, str]:
        attrs = {key: str(value) for key, value in self.attrs(layer).items() if key != "weights"}
        return {
            **attrs,
            "architecture_sha256": self.backbone.architecture_sha256,
            "stimuli": stimuli_hash,
            "torch": torch.__version__,
        }

    def _chunks(self, chunks: list[int]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Compute chunks of rows; the next one is decoded while this one runs."""
        if not chunks:
            return
        module = self.backbone.module.to(self.device)
        with (
            ThreadPoolExecutor(N_DECODERS) as pool,
            _Taps(self.backbone, self.layers, self.pool) as taps,
        ):
            decode = [pool.submit(self._inputs, chunk) for chunk in chunks[:1]]
            for position, chunk in enumerate(progress(chunks, label=self.backbone.name)):
                inputs = decode[position].result()
                decode += [
                    pool.submit(self._inputs, later)
                    for later in chunks[position + 1 : position + 2]
                ]
                yield chunk, self._rows(module, taps, inputs)

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

    def _rows(
        self, module: nn.Module, taps: _Taps, inputs: list[torch.Tensor | None]
    ) -> dict[str, np.ndarray]:
        """Return the features of a chunk; unreadable stimuli are rows of NaN."""
        readable = [row for row, one in enumerate(inputs) if one is not None]
        rows: dict[str, np.ndarray] = {}
        start = 0
        while start < len(readable):
            batch = readable[start : start + self.batch_size]
            try:
                pooled = self._forward(module, taps, [inputs[row] for row in batch])  # type: ignore[misc]
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                logger.warning("out of GPU memory: the batch size is now %d", self.batch_size)
                torch.cuda.empty_cache()
                continue
            for name, values in pooled.items():
                if not np.isfinite(values).all():
                    raise FileFormatError(
                        f"{self.backbone.name} returns NaN or infinite values in layer {name!r}."
                        + (" Try amp=False." if self.amp else "")
                    )
                shape = (len(inputs), values.shape[1])
                rows.setdefault(name, np.full(shape, np.nan, np.float32))[batch] = values
            start += len(batch)
        if not readable:
            raise FileFormatError(
                f"None of the {len(inputs)} stimuli from {self.stimuli.where(0)} on can be decoded."
            )
        return rows

    def _forward(
        self, module: nn.Module, taps: _Taps, inputs: list[torch.Tensor]
    ) -> dict[str, np.ndarray]:
        """Run one batch; frames of videos are averaged for an image network."""
        framewise = self.backbone.kind == "image" and inputs[0].ndim == 4
        batch = torch.cat(inputs) if framewise else torch.stack(inputs)
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=self.amp):
            pooled = taps.run(module, batch.to(self.device))
        if framewise:
            lengths = [len(one) for one in inputs]
            pooled = {
                name: torch.stack([part.mean(0) for part in values.split(lengths)])
                for name, values in pooled.items()
            }
        return {name: values.cpu().numpy() for name, values in pooled.items()}


class _StopForward(Exception):
    """Ends a forward pass once every wanted layer has been seen."""


class _Taps:
    """Hooks that pool and keep the outputs of some layers, and end the pass after the last one.

    A module that is called several times in a pass gives its last output; how often each is
    called is counted in a first, whole pass.
    """

    def __init__(self, backbone: Backbone, layers: list[str], pool: str) -> None:
        self.backbone, self.layers, self.pool = backbone, layers, pool
        self.calls: dict[str, int] = {}
        self.expected: dict[str, int] | None = None
        self.pooled: dict[str, torch.Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> _Taps:
        modules = dict(self.backbone.module.named_modules())
        for name in self.layers:
            self._handles.append(modules[name].register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def run(self, module: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the pooled layers of one batch."""
        self.calls, self.pooled = dict.fromkeys(self.layers, 0), {}
        try:
            module(batch)
        except _StopForward:
            return self.pooled
        silent = [name for name, count in self.calls.items() if not count]
        if silent:
            raise UnknownNameError(
                f"`layers` {listed(silent)} of {self.backbone.name} are never called in a forward "
                "pass (containers and heads that the network leaves out); choose others."
            )
        self.expected = dict(self.calls)
        return self.pooled

    def _hook(self, name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.calls[name] += 1
            if self.expected is None or self.calls[name] == self.expected[name]:
                self.pooled[name] = pool_output(
                    _tensor(output, name),
                    self.pool,
                    n_prefix_tokens=self.backbone.n_prefix_tokens,
                    channels_last=self.backbone.is_channels_last(name),
                )
            if self.calls == self.expected:
                raise _StopForward

        return keep


def _tensor(output: Any, name: str) -> torch.Tensor:
    """Return the one tensor in a layer's output."""
    if isinstance(output, torch.Tensor):
        return output
    parts = list(output.values()) if isinstance(output, dict) else list(output)
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    raise UnknownNameError(
        f"Layer {name!r} returns {len(tensors)} tensors; choose a module inside or after it."
    )
