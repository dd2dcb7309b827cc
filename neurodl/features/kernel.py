"""Kernels of stimuli: the inner products of full feature maps, which are never held together."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from neurodl.backbones import Backbone
from neurodl.features.cache import ROWS_PER_CHUNK, FeatureCache, cache_folder
from neurodl.features.extract import cache_path
from neurodl.features.forward import (
    Batch,
    ForwardPass,
    check_on_unreadable,
    open_pass,
    readable_ids,
)
from neurodl.features.identity import identity_coords
from neurodl.features.spill import Spill, open_spill
from neurodl.schema import check_features
from neurodl.stimuli import Stimuli

logger = logging.getLogger(__name__)

CENTRED = f"on the mean of the first {ROWS_PER_CHUNK} stimuli"
# Products of this many features are summed in float32, and their sums in float64: relative to the
# kernel, the rounding is then below that of storing it in float32.
N_FEATURES_BLOCK = 4096
CPU_GIB = 4.0


def extract_kernels(
    backbone: str | Backbone,
    stimuli: Stimuli,
    layers: str | Sequence[str] | None = None,
    *,
    pool: str = "flatten",
    time: str = "mean",
    device: str = "auto",
    batch_size: int | str = "auto",
    amp: bool | None = None,
    memory: float | str = "auto",
    cache: str | Path | bool | None = None,
    on_unreadable: str = "raise",
) -> dict[str, xr.DataArray]:
    """Return the linear kernel of the stimuli, layer by layer: inner products of their features.

    All that ridge regression needs of features is their kernel. A layer of 800,000 features is so
    used whole, without projecting or storing it. Memory holds a block of stimuli with all their
    features; each later stimulus is multiplied with the block and forgotten. With b blocks each
    stimulus is passed (b + 1) / 2 times on average; on a CPU features go to a nameless file beside
    the cache instead, if there is room and a trial says that this is faster.

    Parameters
    ----------
    backbone, stimuli, layers, time, device, batch_size, amp, cache, on_unreadable
        See `extract_features`.
    pool : str
        See `pool_output`. By default nothing is pooled.
    memory : float or "auto"
        How much a block may take [GiB]; at least 64 stimuli are held. "auto" is half of a GPU's
        free memory, else 4 GiB.

    Returns
    -------
    dict of str to xarray.DataArray, dims (stimulus, feature), shape (n_stimuli, n_stimuli), float32
        Coords stimulus and feature: the ids of rows and columns. Attrs as features have, kind
        "kernel" and n_features. Features have the mean of the first 64 stimuli subtracted, which
        keeps the products small; models of kernels centre on their training rows, which makes
        any such constant cancel.

    Raises
    ------
    UnknownNameError, FileFormatError
        See `extract_features`.

    Notes
    -----
    A kernel is of the features as they are: it gives what ridge regression without scaling gives
    (``standardize=False``).

    References
    ----------
    Saunders, Gammerman & Vovk (1998), Ridge regression learning algorithm in dual variables, ICML.

    Examples
    --------
    >>> stimuli = Stimuli.from_arrays(np.eye(3, dtype=np.uint8).reshape(3, 3, 1, 1) * 255)
    >>> kernel = extract_kernels("pixels", stimuli, cache=False)["pixels"]
    >>> kernel.shape, kernel.attrs["n_features"]
    ((3, 3), 2352)
    """
    check_on_unreadable(on_unreadable)
    if memory != "auto" and not float(memory) > 0:
        raise ValueError(f"`memory` must be 'auto' or a number of GiB > 0, but got {memory!r}.")
    run = open_pass(
        backbone,
        stimuli,
        layers,
        pool=pool,
        device=device,
        batch_size=batch_size,
        amp=amp,
        time=time,
    )
    folder = None if cache is False else cache_folder(cache_path(cache))
    work = _Kernels(run, folder, memory)
    work.complete()
    kept = np.isfinite(work.kernels[run.layers[0]].diagonal())
    ids = readable_ids(stimuli, kept, on_unreadable)
    known = identity_coords(stimuli, run.backbone, kept, folder)
    kernels = {}
    for name in run.layers:
        whole = work.kernels.pop(name)
        kernels[name] = xr.DataArray(
            whole if kept.all() else whole[np.ix_(kept, kept)],
            dims=("stimulus", "feature"),
            coords={"stimulus": ids, "feature": ids, **known},
            attrs={
                **run.attrs(name),
                **run.layouts[name],
                "kind": "kernel",
                "n_features": work.n_features[name],
                "centred": CENTRED,
            },
        )
    return check_features(kernels)


def inner_products(block: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the inner products of the rows of two matrices, float64, (n_block, n_rows).

    Parameters
    ----------
    block : torch.Tensor, shape (n_block, n_features), float32
    rows : torch.Tensor, shape (n_rows, n_features), float32
        Both about centred.
    """
    total = torch.zeros(len(block), len(rows), dtype=torch.float64, device=block.device)
    # Where the process allows products of less than float32 precision, float64 keeps clear of them.
    plain = torch.get_float32_matmul_precision() == "highest"
    parts = (matrix.split(N_FEATURES_BLOCK, dim=1) for matrix in (block, rows))
    for one, other in zip(*parts, strict=True):
        total += one @ other.T if plain else one.double() @ other.double().T
    return total


def kernel_caches(run: ForwardPass, folder: Path) -> dict[str, FeatureCache]:
    """Return where a cache has the kernels of each layer of a pass."""
    kind = {"kind": "kernel", "centred": CENTRED}
    n = len(run.stimuli)
    return {name: FeatureCache(folder, run.key(name) | kind, n) for name in run.layers}


class _Kernels:
    """The kernels of a pass' layers, block by block, from and to the cache.

    A block is a run of whole chunks. Once all later stimuli were multiplied with it, its rows of
    the kernel are whole (earlier columns are known by symmetry) and go to the cache: a killed
    run goes on at the first block that is not there.
    """

    def __init__(self, run: ForwardPass, folder: Path | None, memory: float | str) -> None:
        self.run, self.memory = run, memory
        n = len(run.stimuli)
        self.kernels = {name: np.full((n, n), np.nan, np.float32) for name in run.layers}
        self.n_features: dict[str, int] = {}
        self.pass_seconds = 0.0
        self.folder = folder
        self.spill: Spill | None = None
        self.caches = {} if folder is None else kernel_caches(run, folder)

    def complete(self) -> None:
        """Fill all kernels."""
        n_chunks = self.run.n_chunks
        done = {name: self._restored(name) for name in self.run.layers}
        todo = [name for name, known in done.items() if known < n_chunks]
        if not todo:
            return
        start = min(done[name] for name in todo)
        reference = self._reference(todo)
        self.n_features |= {name: len(reference[name]) for name in todo}
        size = self._chunks_per_block(todo)
        blocks = [range(a, min(a + size, n_chunks)) for a in range(start, n_chunks, size)]
        self._plan(todo, blocks)
        try:
            for block in blocks:
                self._multiply(block, self._stream(block, reference))
                for name in todo:
                    self._keep(name, block)
        finally:
            if self.spill is not None:
                self.spill.close()

    def _restored(self, name: str) -> int:
        """Take from the cache what it has; return the number of leading chunks that are known."""
        if name not in self.caches:
            return 0
        cache, kernel = self.caches[name], self.kernels[name]
        for chunk in range(self.run.n_chunks):
            rows = cache.read_chunk(chunk)
            if rows is None:
                return chunk
            own = slice(chunk * ROWS_PER_CHUNK, (chunk + 1) * ROWS_PER_CHUNK)
            kernel[own], kernel[:, own] = rows, rows.T
        self.n_features[name] = cache.read_noted("n_features")
        self.run.layouts[name] = cache.read_noted("layout")
        return self.run.n_chunks

    def _keep(self, name: str, block: range) -> None:
        """Write the rows of a finished block to the cache."""
        if name not in self.caches:
            return
        cache = self.caches[name]
        cache.noted = {
            "n_features": self.n_features[name],
            "layout": self.run.layouts[name],
        }
        for chunk in block:
            cache.write(
                chunk,
                self.kernels[name][chunk * ROWS_PER_CHUNK : (chunk + 1) * ROWS_PER_CHUNK],
            )

    def _reference(self, layers: list[str]) -> dict[str, torch.Tensor]:
        """Return the mean features (n_features,) of the first chunk's stimuli."""
        totals: dict[str, torch.Tensor] = {}
        n_rows, start = 0, time.perf_counter()
        for _, batches in self.run.batches([0], layers):
            for numbers, features in batches:
                n_rows += len(numbers)
                for name, values in features.items():
                    mine = values.sum(0)
                    totals[name] = totals[name] + mine if name in totals else mine
        seconds = time.perf_counter() - start
        self.pass_seconds = seconds / n_rows * len(self.run.stimuli)
        return {name: total / n_rows for name, total in totals.items()}

    def _chunks_per_block(self, layers: list[str]) -> int:
        """Return how many chunks, with all features of all layers, fit into the memory."""
        if self.memory != "auto":
            n_bytes = float(self.memory) * 2**30
        elif self.run.device.type == "cuda":
            n_bytes = torch.cuda.mem_get_info(self.run.device)[0] / 2
        else:
            n_bytes = CPU_GIB * 2**30
        per_chunk = 4 * ROWS_PER_CHUNK * sum(self.n_features[name] for name in layers)
        return max(1, int(n_bytes // per_chunk))

    def _plan(self, layers: list[str], blocks: list[range]) -> None:
        """Say how often the stimuli pass, and set features aside if that is faster."""
        n_features = {name: self.n_features[name] for name in layers}
        n_passes = sum(self.run.n_chunks - block.start for block in blocks) / self.run.n_chunks
        logger.info(
            "kernels of %d stimuli and %d layers (%d features) in %d blocks: %.1f passes through "
            "%s; with more `memory` there are fewer",
            len(self.run.stimuli),
            len(layers),
            sum(n_features.values()),
            len(blocks),
            n_passes,
            self.run.backbone.name,
        )
        # a GPU passes stimuli faster than a disk takes their features
        if self.folder is not None and self.run.device.type == "cpu":
            n_rows = len(self.run.stimuli) - blocks[0].stop * ROWS_PER_CHUNK
            self.spill = open_spill(self.folder, n_features, n_rows, n_passes, self.pass_seconds)

    def _stream(self, block: range, reference: dict[str, torch.Tensor]) -> Iterator[Batch]:
        """Yield batches of about centred features, from the block's own stimuli on."""
        if self.spill is not None and self.spill.n_batches:
            yield from self.spill.batches(block.start * ROWS_PER_CHUNK)
            return
        later = range(block.start, self.run.n_chunks)
        for chunk, batches in self.run.batches(later, list(reference)):
            for numbers, features in batches:
                rows = {name: values - reference[name] for name, values in features.items()}
                if self.spill is not None and chunk >= block.stop:
                    self.spill.append(numbers, rows)
                yield numbers, rows

    def _multiply(self, block: range, batches: Iterator[Batch]) -> None:
        """Fill the rows of a block, and by symmetry its columns, from its own stimuli on."""
        end = min(block.stop * ROWS_PER_CHUNK, len(self.run.stimuli))
        n_rows = end - block.start * ROWS_PER_CHUNK
        held: dict[str, torch.Tensor] = {}
        own = np.empty(0, int)
        for numbers, features in batches:
            inside = numbers[0] < end
            own = np.append(own, numbers) if inside else own
            for name, rows in features.items():
                if name not in held:
                    held[name] = torch.empty(n_rows, rows.shape[1], device=rows.device)
                if inside:
                    held[name][len(own) - len(rows) : len(own)] = rows
                products = inner_products(held[name][: len(own)], rows).cpu().numpy()
                kernel = self.kernels[name]
                kernel[np.ix_(numbers, own)] = products.T
                kernel[np.ix_(own, numbers)] = products
                if inside:
                    square = products[-len(rows) :]
                    kernel[np.ix_(numbers, numbers)] = (square + square.T) / 2
