"""Saving and loading: scores as .nc, features as .zarr, models as .safetensors; never half."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr

from neurodl.errors import (
    FileFormatError,
    MissingFileError,
    NeurodlError,
    SchemaError,
    StorageError,
)
from neurodl.schema import SCORE_VARIABLES, check_features, check_scores

MODEL = ".safetensors"
SCHEMA, SCHEMA_VERSION = "neurodl_schema", 1  # how files are marked, and what is written now
NAMELESS = "__xarray_dataarray_variable__"  # xarray's word for an array without a name
NOT_WRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM
)  # fmt: skip


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it there if the block succeeds.

    What stands at `path` is either the old or the whole new file or folder. If the block
    fails, the temporary one is removed.

    Raises
    ------
    StorageError
        The disk is full or the folder cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir() and temporary.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in NOT_WRITABLE:
            raise StorageError(
                f"Cannot write {path}: {os.strerror(error.errno)}. What was finished before is "
                "kept; make room or choose another folder and run again."
            ) from error
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the hash of a file's bytes, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(obj: Any, path: str | Path) -> Path:
    """Save scores or responses, features, or a model, whole or not at all.

    Parameters
    ----------
    obj : xarray.Dataset, xarray.DataArray, mapping of layer to xarray.DataArray, or estimator
        A model of neurodl, fitted or not: its parameters and what it learned, as tensors and text.
    path : str or Path
        Ends in ``.nc`` for a Dataset or DataArray, in ``.zarr`` for features by layer, in
        ``.safetensors`` for a model.

    Returns
    -------
    Path
        Where it was saved.

    Raises
    ------
    ValueError
        The path ends otherwise, or `obj` is nothing of these.
    StorageError
        See `atomic_path`.
    """
    path = Path(path)
    kind = _suffix(obj)
    if path.suffix != kind:
        raise ValueError(f"A {type(obj).__name__} is saved to '*{kind}', but got {path.name!r}.")
    with atomic_path(path) as temporary:
        if kind == MODEL:
            from neurodl.io.models import write_model

            write_model(obj, temporary)
        elif isinstance(obj, (xr.Dataset, xr.DataArray)):
            # Encoded in memory first: HDF5 can crash the process when a disk fills up under it.
            held = obj if isinstance(obj, xr.Dataset) else _held(obj)
            held = held.assign_attrs({SCHEMA: SCHEMA_VERSION})
            content = held.to_netcdf(engine="h5netcdf", encoding=_compression(obj))
            temporary.write_bytes(content)
        else:
            for number, (layer, array) in enumerate(check_features(obj).items()):
                dataset = array.rename("features").to_dataset()
                dataset = dataset.assign_attrs({"layer": layer, SCHEMA: SCHEMA_VERSION})
                dataset.to_zarr(temporary, group=f"layer{number:04d}", zarr_format=2)
    return path


def _held(array: xr.DataArray) -> xr.Dataset:
    """Return a dataset that holds just one array."""
    taken = array.name is None or array.name in {*array.coords, *array.dims}
    return array.to_dataset(name=NAMELESS if taken else array.name)


def _current(dataset: xr.Dataset) -> xr.Dataset:
    """Return what was read as the schema of today has it, without the mark of the version.

    Files without one are of version 1. Where a later version differs, those before are turned here.
    """
    written = dataset.attrs.pop(SCHEMA, SCHEMA_VERSION)
    if written > SCHEMA_VERSION:
        raise FileFormatError(
            f"it was written by a newer neurodl (schema {written}; this one knows "
            f"{SCHEMA_VERSION}). Update it: pip install --upgrade neurodl."
        )
    return dataset


def _suffix(obj: Any) -> str:
    """Return how the name of an object's file ends."""
    if isinstance(obj, (xr.Dataset, xr.DataArray)):
        return ".nc"
    if isinstance(obj, Mapping):
        return ".zarr"
    if hasattr(obj, "get_params") and not isinstance(obj, type):
        return MODEL
    raise ValueError(
        "What can be saved are scores, responses, features by layer and models, but got "
        f"{type(obj).__name__}."
    )


def _compression(obj: xr.DataArray | xr.Dataset) -> dict[Any, dict[str, Any]]:
    if isinstance(obj, xr.DataArray):
        return {}
    big = [name for name, array in obj.data_vars.items() if array.size > 10_000]
    return {name: {"compression": "gzip", "compression_opts": 1} for name in big}


def load(path: str | Path, *, device: str | None = None) -> Any:
    """Load what `save` wrote.

    Parameters
    ----------
    path : str or Path
    device : str, optional
        Where a model predicts, in place of its own parameter; see `resolve_device`.

    Returns
    -------
    xarray.Dataset, xarray.DataArray, dict of str to xarray.DataArray, or estimator

    Raises
    ------
    MissingFileError, FileFormatError
        The file does not exist, is damaged, or was not written by `save`.
    DeviceError
        The device of a model is not there.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"{path} does not exist.")
    if path.suffix == MODEL:
        from neurodl.io.models import read_model

        return read_model(path, device)
    if device is not None:
        raise ValueError(f"`device` is for models, in '*{MODEL}', but got {path.name!r}.")
    try:
        if path.suffix == ".zarr":
            return _load_features(path)
        dataset = _current(xr.load_dataset(path, engine="h5netcdf"))
    except MemoryError:
        raise
    except Exception as error:  # readers of damaged files raise whatever they stumble over
        named = isinstance(error, NeurodlError) and str(path) in str(error)
        if named and not isinstance(error, SchemaError):
            raise
        raise FileFormatError(f"Cannot read {path}: {error}") from error
    if set(SCORE_VARIABLES) <= set(dataset):
        try:
            return check_scores(dataset)
        except SchemaError as error:
            raise FileFormatError(f"{path} holds no scores: {error}") from error
    if len(dataset.data_vars) == 1:
        array = dataset[next(iter(dataset.data_vars))]
        return array.rename(None) if array.name == NAMELESS else array
    return dataset


def read_attrs(path: str | Path) -> list[dict[str, Any]]:
    """Return the attrs of each array that `save` wrote to a file, without reading values.

    Raises
    ------
    FileFormatError
        The file is damaged, or was not written by `save`.
    """
    path = Path(path)
    found = []
    try:
        if path.suffix == ".zarr":
            for group in _layer_groups(path):
                with xr.open_dataset(path, group=group, engine="zarr") as dataset:
                    found.append(dict(dataset["features"].attrs))
        else:
            with xr.open_dataset(path, engine="h5netcdf") as dataset:
                found += [dict(array.attrs) for array in dataset.data_vars.values()]
    except (OSError, ValueError, KeyError) as error:
        raise FileFormatError(f"Cannot read {path}: {error}") from error
    return found


def _layer_groups(path: Path) -> list[str]:
    return sorted(folder.name for folder in path.glob("layer*"))


def _load_features(path: Path) -> dict[str, xr.DataArray]:
    features = {}
    for group in _layer_groups(path):
        dataset = _current(xr.load_dataset(path, group=group, engine="zarr"))
        features[str(dataset.attrs["layer"])] = dataset["features"].rename(None)
    return check_features(features)
