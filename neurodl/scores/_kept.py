"""Layers that are scored, kept on disk: a cross-validation that was interrupted goes on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import logging
import os
import pickle
import platform
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurodl.errors import StorageError
from neurodl.io.store import atomic_path
from neurodl.scores._fits import Fits

logger = logging.getLogger(__name__)

DAYS = 30  # for which what nobody asked for is kept
# A file is a hash of this many bytes, and arrays in the format of numpy's .npz.
SUFFIX, N_HASH = ".scores", 32
SAID = "said"  # the name under which the counts of a layer are
# Where models may come from: what else they use could change without a trace.
KNOWN = {"builtins", "copyreg", "himalaya", "neurodl", "numpy", "sklearn", "torch"}


class Kept:
    """The scores of layers, from the disk where they are there.

    What is kept is found again by all that decides the numbers: the model and its parameters,
    features and responses byte by byte, folds, this package's code, versions and threads.

    Parameters
    ----------
    folder : Path or None
        None keeps nothing. Nor are models kept that other packages define, or that are trained.
    fits : Fits
    device : str
    """

    def __init__(self, folder: Path | None, fits: Fits, device: str) -> None:
        self.fits, self.folder = fits, folder
        self.n_found = 0
        self._base = None if folder is None or fits.stimuli is not None else _base(fits, device)
        if self._base is None:
            self.folder = None
        elif folder is not None:
            _forget_old(folder)

    def layer(self, values: np.ndarray, advance: Callable[[int], object]) -> dict[str, np.ndarray]:
        """Return what is known of one layer; see `Fits.layer`."""
        fits = self.fits
        if self.folder is None or self._base is None:
            return fits.layer(values, advance)
        key = self._base.copy()
        _add(key, values)
        path = self.folder / f"{key.hexdigest()}{SUFFIX}"
        found = self._read(path)
        if found is not None:
            advance(len(fits.splits) * int(fits.used.sum()))
            fits.history = {}
            return found
        messages, n_fits, n_raised = fits.messages.copy(), fits.n_fits, fits.n_raised
        result = fits.layer(values, advance)
        said = {
            "messages": fits.messages - messages,
            "n_fits": fits.n_fits - n_fits,
            "n_raised": fits.n_raised - n_raised,
        }
        if not fits.history:  # how training went is not kept
            self._write(path, result, said)
        return result

    def _read(self, path: Path) -> dict[str, np.ndarray] | None:
        """Return what is kept; nothing if it is not there, or damaged."""
        fits = self.fits
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content[N_HASH:]).digest() != content[:N_HASH]:
            return None
        with np.load(io.BytesIO(content[N_HASH:]), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        said = json.loads(str(found.pop(SAID)))
        fits.messages += Counter(said["messages"])
        fits.n_fits += said["n_fits"]
        fits.n_raised += said["n_raised"]
        self.n_found += 1
        with suppress(OSError):
            os.utime(path)
        return found

    def _write(self, path: Path, result: dict[str, np.ndarray], said: dict[str, Any]) -> None:
        """Keep what is known of a layer; if that fails, what was computed is not lost."""
        content = io.BytesIO()
        arrays: dict[str, Any] = {SAID: np.array(json.dumps(said)), **result}
        np.savez(content, **arrays)
        try:
            with atomic_path(path) as temporary:
                hashed = hashlib.sha256(content.getbuffer()).digest()
                temporary.write_bytes(hashed + content.getbuffer())
        except (StorageError, OSError) as error:
            logger.warning("Finished layers are not kept, for an interruption: %s", error)
            self.folder = None


def _base(fits: Fits, device: str) -> Any:
    """Return a hash of what all layers share; None where the model cannot be told for sure."""
    model = _pickled(fits.model)
    if model is None:
        return None
    key = hashlib.sha256(_environment(device).encode())
    key.update(model)
    key.update(json.dumps([fits.metrics, bool(fits.keep_predictions)]).encode())
    rows = [np.asarray(part) for split in fits.splits for part in split]
    for array in (fits.observed, fits.used, fits.groups, fits.runs, fits.bands, *rows):
        _add(key, array)
    for array in fits.ceilings or ():
        _add(key, array)
    return key


def _add(key: Any, array: np.ndarray | None) -> None:
    """Add an array to a hash."""
    if array is None:
        key.update(b"none")
        return
    plain = array.astype(str) if array.dtype == object else array
    key.update(f"{plain.dtype.str}{plain.shape}".encode())
    flat = np.ascontiguousarray(plain).reshape(-1)
    key.update(flat.view(np.uint8) if flat.dtype.kind in "biuf" else flat.tobytes())


class _Noting(pickle.Pickler):
    """A pickler that notes which packages something is made of."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.packages: set[str] = set()

    def reducer_override(self, obj: Any) -> Any:
        """Note where an object, a class or a function is from; pickle it as ever."""
        own = obj if isinstance(obj, type) or callable(obj) else type(obj)
        self.packages.add(str(getattr(own, "__module__", None)).partition(".")[0])
        return NotImplemented


def _pickled(model: Any) -> bytes | None:
    """Return a model as bytes; None if it has parts from elsewhere."""
    content = io.BytesIO()
    pickler = _Noting(content)
    try:
        pickler.dump(model)
    except Exception:  # what cannot be pickled raises whatever it likes
        return None
    return content.getvalue() if pickler.packages <= KNOWN else None


def _environment(device: str) -> str:
    """Return what the last digits of scores depend on."""
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "scipy", "torch")}
    for name in ("scikit-learn", "himalaya"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    processor = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    return json.dumps([_code(), versions, device, torch.get_num_threads(), *processor])


@cache
def _code() -> str:
    """Return a hash of this package's code."""
    key = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        key.update(path.read_bytes())
    return key.hexdigest()


def _forget_old(folder: Path) -> None:
    """Remove what nobody asked for lately."""
    with suppress(OSError):
        for path in folder.glob(f"*{SUFFIX}"):
            if path.stat().st_mtime < time.time() - DAYS * 86_400:
                path.unlink()
