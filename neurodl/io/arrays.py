"""Responses from arrays and tables (.npy, .npz, .nc, .tsv, .csv), with names put on every row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import xarray as xr

from neurodl.errors import (
    FileFormatError,
    MissingFileError,
    PairingError,
    did_you_mean,
    listed,
)
from neurodl.io.nifti import read_nifti
from neurodl.io.plain import load_array, read_table, text_lines
from neurodl.schema import SAMPLE_DIMS, TARGET_DIMS, check_responses, target_dim

ID_KEYS = ("stimulus", "ids", "stimulus_ids")
BY_ORDER = "the order of the stimuli"  # the attr ids_from of responses that came without ids


def read_responses(
    source: Any,
    *,
    ids: Sequence[str] | str | Path | None = None,
    fallback_ids: Sequence[str] | None = None,
    dims: Sequence[str] | None = None,
    key: str | None = None,
    units: str | None = None,
    subject: str | None = None,
    tr: float | None = None,
    bin_width: float | None = None,
    roi: Sequence[str] | str | Path | None = None,
    mask: Any = None,
    **nifti_options: Any,
) -> xr.DataArray:
    """Return responses as a checked DataArray, whatever they are stored in.

    Parameters
    ----------
    source : path, list of paths, numpy.ndarray, xarray.DataArray or nibabel image
        ``.npy``; ``.npz`` (with `key`, or one numeric array); ``.nc``; ``.tsv`` / ``.csv`` with a
        column ``stimulus`` and one column per target; ``.nii`` / ``.nii.gz`` with `mask`, one
        file or a list of runs.
    ids : sequence of str or path, optional
        The stimulus id of each row, or a text file with one per line. By default the ids
        stored beside the responses (npz key ``stimulus`` or ``ids``, the table's column). A
        DataArray and ``.nc`` carry their own.
    fallback_ids : sequence of str, optional
        The ids in order, used only if there are none anywhere else and their number is the
        number of rows. NIfTI without `ids` is a time series and needs none.
    dims : sequence of str, optional
        The dims in the order of storage, e.g. ``("unit", "stimulus")``; by default
        ``("stimulus", "unit")``, or ``("stimulus", "repeat", "unit")`` in three dimensions.
    key : str, optional
        Which array of an npz file.
    units, subject : str, optional
        Kept as attrs. Units are "BOLD" for NIfTI and "a.u." for bare numbers, unless given.
    tr, bin_width : float, optional
        Sampling interval of a time dim [s]; its times count from 0.
    roi : sequence of str or path, optional
        The ROI of each target, or a text file with one per line.
    mask, **nifti_options
        For NIfTI; see `read_nifti`.

    Returns
    -------
    xarray.DataArray
        See `check_responses`; float32, but a DataArray and ``.nc`` keep their own dtype.

    Raises
    ------
    MissingFileError, FileFormatError, PairingError, SchemaError
        The message names the file, dim or id at fault.
    ValueError
        An argument says nothing for this kind of source.
    """
    if _is_nifti(source):
        _refuse("say nothing for NIfTI responses", dims=dims, key=key, bin_width=bin_width)
        if roi is not None:
            _refuse("and `roi` both name ROIs", atlas_labels=nifti_options.get("atlas_labels"))
        read = read_nifti(
            source,
            mask,
            ids=None if ids is None else text_lines(ids),
            tr=tr,
            subject=subject,
            units=units or "BOLD",
            **nifti_options,
        )
        return read if roi is None else _with_roi(read, roi)
    _refuse(f"are only for NIfTI responses, but got {source!r:.80}", mask=mask, **nifti_options)
    interval = _interval(tr, bin_width)
    if isinstance(source, (str, Path)):
        source = _existing(Path(source).expanduser())
    if isinstance(source, Path) and source.suffix == ".nc":
        source = _read_netcdf(source)
    if isinstance(source, xr.DataArray):
        _refuse("are not for arrays whose dims have names", ids=ids, dims=dims, key=key)
        array = source
    else:
        values, stored_ids, names = _read_values(source, key)
        array = _with_times(_named(values, dims, names), interval)
        row_ids = stored_ids if ids is None else text_lines(ids)
        array = _with_ids(array, row_ids, fallback_ids, explicit=ids is not None)
        units = units or "a.u."
    attrs = {"units": units, "subject": subject, "tr": tr, "bin_width": bin_width}
    given = {name: value for name, value in attrs.items() if value is not None}
    array = array.assign_attrs(given) if given else array
    return check_responses(array if roi is None else _with_roi(array, roi))


def _is_nifti(source: Any) -> bool:
    first = source[0] if isinstance(source, (list, tuple)) and source else source
    return isinstance(first, nib.spatialimages.SpatialImage) or (
        isinstance(first, (str, Path)) and str(first).endswith((".nii", ".nii.gz"))
    )


def _refuse(why: str, **options: Any) -> None:
    """Raise an error that names the options that were given in vain."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{listed(given)} {why}.")


def _interval(tr: float | None, bin_width: float | None) -> float | None:
    """Return the sampling interval [s], whichever of its names it came by."""
    if tr is not None and bin_width is not None:
        raise ValueError("`tr` and `bin_width` are both the sampling interval; give one of them.")
    interval = bin_width if tr is None else tr
    if interval is not None and not 0 < interval < np.inf:
        raise ValueError(f"`tr` and `bin_width` must be above 0 s, but got {interval}.")
    return interval


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise FileFormatError(
            f"The responses {path} are a folder; name a file, or a list of NIfTI runs."
        )
    if not path.is_file():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise MissingFileError(
            f"The responses {path} do not exist. {did_you_mean(path.name, near)}"
        )
    return path


def _read_netcdf(path: Path) -> xr.DataArray:
    try:
        return xr.load_dataarray(path, engine="h5netcdf")
    except (OSError, ValueError) as error:
        raise FileFormatError(f"Cannot read {path} as one netCDF array: {error}") from error


def _read_values(
    source: Any, key: str | None
) -> tuple[np.ndarray, list[str] | None, list[str] | None]:
    """Return values, the ids stored with them, and target names."""
    if not isinstance(source, (np.ndarray, Path)):
        raise TypeError(
            "Responses are a path, a numpy array, a DataArray or a list of NIfTI runs, but got "
            f"{type(source).__name__}."
        )
    if isinstance(source, Path) and source.suffix in (".npy", ".npz"):
        values, ids = load_array(source, key, what="responses", names=["responses"], beside=ID_KEYS)
        return values, None if ids is None else ids.ravel().astype(str).tolist(), None
    if key is not None:
        raise ValueError(f"`key` chooses an array of an .npz file, but got {source!r:.80}.")
    if isinstance(source, np.ndarray):
        return source, None, None
    if source.suffix in (".tsv", ".csv"):
        return _read_columns(source)
    raise FileFormatError(
        f"Responses are read from .npy, .npz, .nc, .tsv, .csv, .nii or .nii.gz, but got {source}."
    )


def _read_columns(path: Path) -> tuple[np.ndarray, list[str] | None, list[str]]:
    table = read_table(path, text=["stimulus"])
    ids = table.pop("stimulus").tolist() if "stimulus" in table else None
    text = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    if text:
        raise FileFormatError(
            f"The columns {listed(text)} of {path} are not numbers. Responses have one column "
            "per target and the ids in a column 'stimulus'."
        )
    return table.to_numpy(np.float32), ids, [str(name) for name in table]


def _named(
    values: np.ndarray, dims: Sequence[str] | None, names: Sequence[str] | None
) -> xr.DataArray:
    """Put dims on a bare array and bring them into the order of the schema."""
    if values.dtype.kind not in "fiub":
        raise FileFormatError(f"Responses must be numbers, but their dtype is {values.dtype}.")
    if dims is None:
        dims = {2: ("stimulus", "unit"), 3: ("stimulus", "repeat", "unit")}.get(values.ndim, ())
    known = (*SAMPLE_DIMS, "repeat", *TARGET_DIMS)
    unknown = [dim for dim in dims if dim not in known]
    if unknown:
        raise FileFormatError(
            f"`dims` has the unknown {unknown[0]!r}. {did_you_mean(unknown[0], known)}"
        )
    if len(dims) != values.ndim or len(set(dims)) != len(dims):
        raise FileFormatError(
            f"The responses have shape {values.shape}; name their {values.ndim} dims in order, "
            f"each once, e.g. dims=('stimulus', 'unit'), but got dims={tuple(dims)}."
        )
    if names is not None and dims[-1] not in TARGET_DIMS:
        raise FileFormatError(
            f"The columns of a table are targets, so `dims` must end in one of {TARGET_DIMS}, "
            f"but got dims={tuple(dims)}."
        )
    coords = {} if names is None else {dims[-1]: list(names)}
    array = xr.DataArray(values.astype(np.float32), coords, tuple(dims))
    samples = next((dim for dim in SAMPLE_DIMS if dim in dims), dims[0])
    rest = [dim for dim in ("repeat", "time", *TARGET_DIMS) if dim in dims and dim != samples]
    return array.transpose(samples, *rest, ...)


def _with_times(array: xr.DataArray, interval: float | None) -> xr.DataArray:
    """Let times count from 0 [s]; a missing interval is left for `check_responses` to refuse."""
    if "time" not in array.dims:
        return array
    return array.assign_coords(time=np.arange(array.sizes["time"]) * (interval or 1.0))


def _with_ids(
    array: xr.DataArray,
    ids: Sequence[str] | None,
    fallback_ids: Sequence[str] | None,
    *,
    explicit: bool,
) -> xr.DataArray:
    samples = str(array.dims[0])
    n_rows = array.sizes[samples]
    if samples == "time":
        if explicit:
            raise PairingError(
                "Time series have no stimulus ids. Leave `ids` out, or call the first dim "
                "'presentation' if each row is the response to one stimulus."
            )
        return array
    by_order = ids is None
    if ids is None:
        ids = fallback_ids
        if ids is None:
            raise PairingError(
                "The responses carry no stimulus ids. Give ids=[...], one per row, or the stimuli."
            )
        if len(ids) != n_rows:
            raise PairingError(
                f"The responses have {n_rows} rows (shape {dict(array.sizes)}) but there are "
                f"{len(ids)} stimuli, and no ids to pair them by.{_transposed(array, len(ids))} "
                "Give ids=[...], one stimulus id per response row."
            )
    if len(ids) != n_rows:
        raise PairingError(
            f"{len(ids)} ids were given for {n_rows} response rows.{_transposed(array, len(ids))}"
        )
    named = array.assign_coords(stimulus=(samples, [str(name) for name in ids]))
    return named.assign_attrs(ids_from=BY_ORDER) if by_order else named


def _transposed(array: xr.DataArray, n: int) -> str:
    """Return a hint where another axis has the right length."""
    samples, *others = array.dims
    for dim in others:
        if array.sizes[dim] == n:
            swap = {samples: dim, dim: samples}
            swapped = tuple(swap.get(each, each) for each in array.dims)
            return f" The {dim} dim has that length: are the dims {swapped}?"
    return ""


def _with_roi(array: xr.DataArray, roi: Sequence[str] | str | Path) -> xr.DataArray:
    """Name the ROI of each target."""
    names, target = text_lines(roi), target_dim(array)
    if len(names) != array.sizes[target]:
        raise PairingError(f"`roi` has {len(names)} entries for {array.sizes[target]} targets.")
    return array.assign_coords(roi=(target, names))
