"""What extracting features would take, from a few stimuli; nothing is kept."""

from __future__ import annotations

import time as clock
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from neurodl.backbones import Backbone
from neurodl.features.cache import ROWS_PER_CHUNK, FeatureCache, cache_folder
from neurodl.features.extract import cache_path, feature_caches
from neurodl.features.forward import ForwardPass, open_pass
from neurodl.features.kernel import kernel_caches
from neurodl.features.reduce import Projector, SparseProjection, parse_reduction
from neurodl.stimuli import Stimuli

TRIAL_SECONDS = 10.0  # after which no more stimuli are tried


class Forecast(NamedTuple):
    """What extraction would take.

    Attributes
    ----------
    n_stimuli : int
    n_cached : int
        Of how many the cache has all layers.
    seconds_each : float
        For one of the others, from its file to its features; 0 if there are none.
    sizes : dict of str to int
        How many numbers a stimulus has in each layer, before PCA.
    growth : dict of Path to int
        By how much the cache would grow [bytes], chunk by whole chunk, at the place of each layer;
        empty without a cache.
    """

    n_stimuli: int
    n_cached: int
    seconds_each: float
    sizes: dict[str, int]
    growth: dict[Path, int]

    @property
    def seconds(self) -> float:
        """How long the stimuli that are not cached take [s]."""
        return (self.n_stimuli - self.n_cached) * self.seconds_each


def forecast_features(
    backbone: str | Backbone,
    stimuli: Stimuli,
    layers: str | Sequence[str] | None = None,
    *,
    kernel: bool = False,
    pool: str | None = None,
    time: str = "mean",
    reduce: str | SparseProjection = "none",
    device: str = "auto",
    batch_size: int | str = "auto",
    amp: bool | None = None,
    cache: str | Path | bool | None = None,
) -> Forecast:
    """Return what `extract_features` would take, or `extract_kernels` if it is for kernels.

    Some of the stimuli that the cache lacks go through the network, up to 64 of them and about
    ten seconds. Kernels may take several passes, as memory allows; counted is one.

    Parameters
    ----------
    backbone, stimuli, layers, time, reduce, device, batch_size, amp, cache
        See `extract_features`.
    kernel : bool
    pool : str, optional
        By default that of the function.

    Raises
    ------
    UnknownNameError, FileFormatError, ValueError
        See `extract_features`.

    Examples
    --------
    >>> import numpy as np
    >>> stimuli = Stimuli.from_arrays(np.zeros((2, 32, 32), np.uint8), ids=["a", "b"])
    >>> found = forecast_features("pixels", stimuli, cache=False)
    >>> found.n_cached, found.sizes
    (0, {'pixels': 2352})
    """
    reduction = parse_reduction(reduce)
    run = open_pass(
        backbone,
        stimuli,
        layers,
        pool=pool or ("flatten" if kernel else "spatial:7"),
        device=device,
        batch_size=batch_size,
        amp=amp,
        time=time,
    )
    n = len(stimuli)
    projection = reduction if isinstance(reduction, SparseProjection) else None
    projector = projection and Projector(projection, n)
    caches: dict[str, FeatureCache] = {}
    if cache is not False:
        folder = cache_folder(cache_path(cache))
        caches = kernel_caches(run, folder) if kernel else feature_caches(run, folder, projector)
    there = [
        bool(caches) and all(one.has(chunk) for one in caches.values())
        for chunk in range(run.n_chunks)
    ]
    n_cached = sum(len(run.rows(chunk)) for chunk, known in enumerate(there) if known)
    seconds, sizes = 0.0, dict[str, int]()
    if n_cached < n:
        seconds, sizes = _tried(run, there.index(False), projector)
    else:
        sizes = {name: one.n_features() for name, one in caches.items()}
    if kernel:
        sizes = dict.fromkeys(run.layers, n)
    growth = {}
    for name, one in caches.items():
        n_missing = sum(not one.has(chunk) for chunk in range(run.n_chunks))
        growth[one.path] = 4 * ROWS_PER_CHUNK * n_missing * sizes[name]
    return Forecast(n, n_cached, seconds, sizes, growth)


def _tried(
    run: ForwardPass, chunk: int, projector: Projector | None
) -> tuple[float, dict[str, int]]:
    """Pass some stimuli of a chunk; return the time of one [s], and the size of each layer."""
    began = clock.perf_counter()
    sizes: dict[str, int] = {}
    passed: list[tuple[float, int]] = []
    for _, batches in run.batches([chunk]):
        for numbers, features in batches:
            for name, values in features.items():
                reduced = values if projector is None else projector(name, values)
                sizes[name] = reduced.cpu().shape[1]
            passed.append((clock.perf_counter(), len(numbers)))
            if passed[-1][0] - began > TRIAL_SECONDS:
                break
        break
    (first, n_first), (last, _) = passed[0], passed[-1]
    n_later = sum(n for _, n in passed) - n_first
    # the first batch also starts everything
    each = (last - first) / n_later if n_later else (first - began) / max(n_first, 1)
    return each, sizes
