"""Features of stimuli: a backbone's layers, read by hooks in one pass, cached on disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neurodl.backbones import Backbone
from neurodl.errors import NeurodlError, SchemaError
from neurodl.features.cache import Claims, FeatureCache, cache_folder
from neurodl.features.forward import (
    ForwardPass,
    check_on_unreadable,
    open_pass,
    readable_ids,
)
from neurodl.features.identity import identity_coords
from neurodl.features.pca import StreamedPCA
from neurodl.features.pool import without_layout
from neurodl.features.reduce import (
    Projector,
    SparseProjection,
    check_reduce_fit,
    parse_reduction,
    to_components,
)
from neurodl.schema import check_features, is_kernel
from neurodl.stimuli import Stimuli

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.5


def extract_features(
    backbone: str | Backbone,
    stimuli: Stimuli,
    layers: str | Sequence[str] | None = None,
    *,
    pool: str = "spatial:7",
    time: str = "mean",
    reduce: str | SparseProjection | StreamedPCA = "none",
    reduce_fit: Sequence[str] | None = None,
    device: str = "auto",
    batch_size: int | str = "auto",
    amp: bool | None = None,
    cache: str | Path | bool | None = None,
    on_unreadable: str = "raise",
) -> dict[str, xr.DataArray]:
    """Return a backbone's features of each stimulus, layer by layer.

    All layers come from one pass, which stops after the last one wanted. Videos shown to an
    image network are taken frame by frame.

    Parameters
    ----------
    backbone : str or Backbone
        A name for `load_backbone`, or what it returned.
    stimuli : Stimuli
    layers : str or sequence of str, optional
        ``"all"``, ``"blocks"``, ``"every:3"``, dotted names and patterns of names, see
        `Backbone.check_layers`; by default up to eight of the blocks.
    pool : str
        See `pool_output`.
    time : {"mean", "keep"}
        Of videos: average over time, or keep the features of each frame (of each step in time of
        a network of videos) side by side, for which all must have the same number of frames.
        For features per TR, cut movies with ``Stimuli.clips(tr=...)`` and `align` them.
    reduce : str, SparseProjection or StreamedPCA
        ``"none"``; ``"sparse:5000"`` or ``"sparse:auto"``, which projects each batch as it comes
        (`SparseProjection`; layers with no more features than that stay as they are); or
        ``"pca:100"``, which needs `reduce_fit` and holds all features until it is done.
    reduce_fit : sequence of str, optional
        For PCA: the ids of the training stimuli, the only ones that it is fitted on.
    device : str
        See `resolve_device`.
    batch_size : int or "auto"
        Images, or frames of videos, per forward pass (a clip for a network of videos stays whole);
        halved by itself when a GPU runs out of memory.
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
        With the coords onset, duration [s], run and session where the stimuli's table has them,
        and with those by which `audit` tells copies of stimuli.

    Raises
    ------
    UnknownNameError
        A layer does not exist; the nearest names are listed.
    FileFormatError
        A stimulus cannot be decoded, and `on_unreadable` is "raise".
    ValueError
        PCA without `reduce_fit`, which would let test stimuli shape the features.

    Examples
    --------
    >>> stimuli = Stimuli.from_arrays(np.zeros((2, 32, 32), np.uint8), ids=["a", "b"])
    >>> extract_features("pixels", stimuli, cache=False)["pixels"].shape
    (2, 2352)
    """
    check_on_unreadable(on_unreadable)
    reduction = parse_reduction(reduce)
    check_reduce_fit(reduction, reduce_fit, stimuli)
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
    projection = reduction if isinstance(reduction, SparseProjection) else None
    work = _Extraction(run, projection)
    folder = None if cache is False else cache_folder(cache_path(cache))
    values = work.memory() if folder is None else work.cached(folder)
    kept = np.isfinite(values[run.layers[0]]).all(1)
    ids = readable_ids(stimuli, kept, on_unreadable)
    known = identity_coords(stimuli, run.backbone, kept, folder)
    features = {
        name: xr.DataArray(
            values[name] if kept.all() else values[name][kept],
            dims=("stimulus", "feature"),
            coords={"stimulus": ids, **_when(stimuli, ids), **known},
            attrs=work.attrs(name, values[name].shape[1]),
        )
        for name in run.layers
    }
    if isinstance(reduction, StreamedPCA):
        features = {
            name: to_components(array, reduction, reduce_fit or ())
            for name, array in features.items()
        }
    return check_features(features)


def _when(stimuli: Stimuli, ids: np.ndarray) -> dict[str, tuple[str, np.ndarray]]:
    """Return when stimuli were shown, for `align`, where their table says it."""
    table = stimuli.table.loc[list(ids)]
    if not {"onset", "duration"} <= set(table):
        return {}
    times = {name: table[name].to_numpy(np.float64) for name in ("onset", "duration")}
    if not all(np.isfinite(values).all() for values in times.values()):
        return {}  # not every stimulus was shown at a time
    labels = {
        name: np.array([str(one) for one in table[name]])
        for name in ("run", "session")
        if name in table
    }
    return {name: ("stimulus", values) for name, values in (times | labels).items()}


def concatenate_features(
    features: dict[str, xr.DataArray], name: str = "all"
) -> dict[str, xr.DataArray]:
    """Return one feature space that holds the features of all layers side by side.

    Kernels are added, which is the kernel of the layers side by side.

    Raises
    ------
    SchemaError
        The layers do not have the same ids in the same order, or only some are kernels.
    """
    layers = check_features(features)
    arrays = list(layers.values())
    kernels = [array for array in arrays if is_kernel(array)]
    if kernels and len(kernels) < len(arrays):
        raise SchemaError(
            f"{len(kernels)} of {len(arrays)} layers are kernels and the others features; make "
            "all of them kernels, or none."
        )
    if kernels:
        joined = _summed(arrays)
    else:
        joined = xr.concat(
            arrays,
            "feature",
            coords="minimal",
            compat="override",
            join="exact",
            combine_attrs="drop_conflicts",
        )
    return {name: without_layout(joined).assign_attrs(layer="+".join(layers))}


def _summed(kernels: list[xr.DataArray]) -> xr.DataArray:
    """Return the sum of kernels, float32, with the attrs that all share."""
    first = kernels[0]
    columns = first["feature"].values
    total = sum(one.sel(feature=columns).values.astype(np.float64) for one in kernels)
    same = {
        key: value
        for key, value in first.attrs.items()
        if all(one.attrs.get(key) == value for one in kernels)
    }
    same["n_features"] = sum(int(one.attrs["n_features"]) for one in kernels)
    return first.copy(data=np.asarray(total, first.dtype)).drop_attrs().assign_attrs(same)


def cache_path(cache: str | Path | bool | None) -> str | Path | None:
    """Return the folder that `cache` names; None, for True and None, is the usual one."""
    if cache is True or cache is None:
        return None
    return cache  # type: ignore[return-value]


def feature_caches(
    run: ForwardPass, folder: Path, projector: Projector | None
) -> dict[str, FeatureCache]:
    """Return where a cache has the features of each layer of a pass."""
    reduced = {} if projector is None else {"reduce": projector.text}
    n = len(run.stimuli)
    return {name: FeatureCache(folder, run.key(name) | reduced, n) for name in run.layers}


class _Extraction:
    """The features of one pass, reduced as they come, from and to the cache."""

    def __init__(self, run: ForwardPass, projection: SparseProjection | None) -> None:
        self.run = run
        self.projector = projection and Projector(projection, len(run.stimuli))

    def attrs(self, layer: str, n_features: int) -> dict[str, Any]:
        """Return what is stored with a layer's features."""
        attrs, layout = self.run.attrs(layer), self.run.layouts[layer]
        if self.projector is None:
            return attrs | layout
        n_unreduced = self.projector.n_unreduced[layer]
        projected = {"reduce": self.projector.text, "n_unreduced": n_unreduced}
        return attrs | projected | (layout if n_features == n_unreduced else {})

    def _note(self, cache: FeatureCache, layer: str) -> None:
        cache.noted = {"layout": self.run.layouts[layer]}
        if self.projector is not None:
            cache.noted["n_unreduced"] = self.projector.n_unreduced[layer]

    def _take_noted(self, cache: FeatureCache, layer: str) -> None:
        self.run.layouts[layer] = cache.read_noted("layout")
        if self.projector is not None:
            self.projector.n_unreduced[layer] = cache.read_noted("n_unreduced")

    def memory(self) -> dict[str, np.ndarray]:
        """Compute all rows without a cache."""
        parts = [rows for _, rows in self.run.chunks(range(self.run.n_chunks), self.projector)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.run.layers}

    def cached(self, folder: Path) -> dict[str, np.ndarray]:
        """Read what the cache has and compute the chunks it lacks."""
        caches = feature_caches(self.run, folder, self.projector)
        for _ in range(2):
            found = {name: cache.read() for name, cache in caches.items()}
            if all(values is not None for values in found.values()):
                for name, cache in caches.items():
                    self._take_noted(cache, name)
                return {name: values for name, values in found.items() if values is not None}
            self._complete(caches)
        raise NeurodlError(f"The feature cache in {folder} cannot be read back; remove it.")

    def _complete(self, caches: Mapping[str, FeatureCache]) -> None:
        """Compute the chunks that are missing, and wait for those that another process computes."""
        with Claims(caches.values()) as claims:
            said = False
            while missing := claims.missing():
                mine = claims.take(missing)
                first = next(mine, None)
                if first is None:
                    if not said:
                        logger.info("waiting for %d chunks of another process", len(missing))
                    said = True
                    time.sleep(POLL_SECONDS)
                    continue
                chunks = chain([first], mine)
                for chunk, rows in self.run.chunks(chunks, self.projector, total=len(missing)):
                    for name, cache in caches.items():
                        self._note(cache, name)
                        cache.write(chunk, rows[name])
                    claims.release(chunk)
