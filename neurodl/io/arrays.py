"""Responses from arrays and tables (.npy, .npz, .nc, .tsv, .csv), with names put on every row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from neurodl.schema import SAMPLE_DIMS, TARGET_DIMS, check_responses

ID_KEYS = ("stimulus", "ids", "stimulus_ids")


def read_responses(
    source: str | Path | np.ndarray | xr.DataArray | Sequence[str | Path],
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
    source : path, list of paths, numpy.ndarray or xarray.DataArray
        ``.npy``; ``.npz`` (with `key`, or one numeric array); ``.nc``; ``.tsv`` / ``.csv`` with a
        column ``stimulus`` and one column per target; ``.nii`` / ``.nii.gz`` with `mask`.
    ids : sequence of str or path, optional
        The stimulus id of each row, or a text file with one per line. By default the ids
        stored beside the responses (npz key ``stimulus`` or ``ids``, the table's column).
    fallback_ids : sequence of str, optional
        The ids in order, used only if there are none anywhere else and their number is the
        number of rows. NIfTI without `ids` is a time series and needs none.
    dims : sequence of str, optional
        The dims in the order of storage, e.g. ``("unit", "stimulus")``; by default
        ``("stimulus", "unit")``, or ``("stimulus", "repeat", "unit")`` in three dimensions.
    key : str, optional
        Which array of an npz file.
    units, subject : str, optional
        Kept as attrs. Units are "BOLD" for NIfTI and "a.u." else, unless given.
    tr, bin_width : float, optional
        Sampling interval of a time dim [s].
    roi : sequence of str or path, optional
        The ROI of each target, or a text file with one per line.
    mask, **nifti_options
        For NIfTI; see `read_nifti`.

    Returns
    -------
    xarray.DataArray
        See `check_responses`; float32.

    Raises
    ------
    MissingFileError, FileFormatError, PairingError, SchemaError
        The message names the file, dim or id at fault.
    """
    if isinstance(source, xr.DataArray):
        return check_responses(source)
    if _is_nifti(source):
        unused = {"dims": dims, "key": key, "bin_width": bin_width}
        given = [name for name, value in unused.items() if value is not None]
        if given:
            raise ValueError(f"{listed(given)} say nothing for NIfTI responses; leave them out.")
        read = read_nifti(
            source,
            mask,
            ids=_text_lines(ids),
            tr=tr,
            subject=subject,
            units=units or "BOLD",
            **nifti_options,
        )
        return read if roi is None else _with_roi(read, roi)
    if nifti_options or mask is not None:
        given = [*nifti_options, *(["mask"] if mask is not None else [])]
        raise ValueError(f"{listed(given)} are only for NIfTI responses, but got {source!r:.80}.")
    if isinstance(source, np.ndarray):
        values, stored_ids, names = source, None, None
    else:
        path = Path(source).expanduser()  # type: ignore[arg-type]
        if not path.is_file():
            near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise MissingFileError(
                f"The responses {path} do not exist. {did_you_mean(path.name, near)}"
            )
        if path.suffix == ".nc":
            return check_responses(_read_netcdf(path))
        values, stored_ids, names = _read_array(path, key)
    row_ids = _text_lines(ids) if ids is not None else stored_ids
    array = _named(values, dims)
    array = _with_ids(array, row_ids, fallback_ids, tr or bin_width)
    array.attrs["units"] = units or "a.u."
    for name, value in {"subject": subject, "tr": tr, "bin_width": bin_width}.items():
        if value is not None:
            array.attrs[name] = value
    target = str(array.dims[-1])
    if names is not None:
        array = array.assign_coords({target: names})
    return check_responses(array if roi is None else _with_roi(array, roi))


def _is_nifti(source: Any) -> bool:
    first = source[0] if isinstance(source, (list, tuple)) and source else source
    return isinstance(first, (str, Path)) and str(first).endswith((".nii", ".nii.gz"))


def _read_netcdf(path: Path) -> xr.DataArray:
    try:
        return xr.load_dataarray(path, engine="h5netcdf")
    except (OSError, ValueError) as error:
        raise FileFormatError(f"Cannot read {path} as one netCDF array: {error}") from error


def _read_array(
    path: Path, key: str | None
) -> tuple[np.ndarray, list[str] | None, list[str] | None]:
    """Return values, the ids stored with them, and target names."""
    if path.suffix in (".tsv", ".csv"):
        return _read_table(path)
    if path.suffix not in (".npy", ".npz"):
        raise FileFormatError(
            f"Responses are read from .npy, .npz, .nc, .tsv, .csv, .nii or .nii.gz, but got {path}."
        )
    try:
        stored = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise FileFormatError(f"Cannot read {path}: {error}") from error
    if isinstance(stored, np.ndarray):
        return stored, None, None
    with stored:
        id_key = next((name for name in ID_KEYS if name in stored.files), None)
        if key is None:
            choices = [name for name in stored.files if name == "responses"] or [
                name for name in stored.files if name != id_key
            ]
            if len(choices) != 1:
                raise FileFormatError(
                    f"{path} holds the arrays {listed(stored.files, 20)}; say which are the "
                    "responses: key='...'."
                )
            key = choices[0]
        if key not in stored.files:
            raise FileFormatError(f"{path} has no array {key!r}. {did_you_mean(key, stored.files)}")
        return stored[key], stored[id_key].astype(str).tolist() if id_key else None, None


def _read_table(path: Path) -> tuple[np.ndarray, list[str] | None, list[str]]:
    table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype={"stimulus": str})
    ids = table.pop("stimulus").tolist() if "stimulus" in table else None
    text = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    if text:
        raise FileFormatError(
            f"The columns {listed(text)} of {path} are not numbers. Responses have one column "
            "per target and the ids in a column 'stimulus'."
        )
    return table.to_numpy(np.float32), ids, [str(name) for name in table]


def _named(values: np.ndarray, dims: Sequence[str] | None) -> xr.DataArray:
    """Put dims on a bare array and bring them into the order of the schema."""
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        raise FileFormatError(f"Responses must be numbers, but their dtype is {values.dtype}.")
    if dims is None:
        dims = {2: ("stimulus", "unit"), 3: ("stimulus", "repeat", "unit")}.get(values.ndim, ())
    known = (*SAMPLE_DIMS, "repeat", *TARGET_DIMS)
    unknown = [dim for dim in dims if dim not in known]
    if unknown:
        raise FileFormatError(
            f"`dims` has the unknown {unknown[0]!r}. {did_you_mean(unknown[0], known)}"
        )
    if len(dims) != values.ndim:
        raise FileFormatError(
            f"The responses have shape {values.shape}; name their {values.ndim} dims in order, "
            f"e.g. dims=('stimulus', 'unit'), but got dims={tuple(dims)}."
        )
    array = xr.DataArray(values.astype(np.float32), dims=tuple(dims))
    order = sorted(dims, key=lambda dim: (known.index(dim), dim))
    return array.transpose(*order)


def _with_ids(
    array: xr.DataArray,
    ids: Sequence[str] | None,
    fallback_ids: Sequence[str] | None,
    interval: float | None,
) -> xr.DataArray:
    samples = str(array.dims[0])
    n_rows = array.sizes[samples]
    if samples == "time":
        return array.assign_coords(time=np.arange(n_rows) * (interval or 1.0))
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
    return array.assign_coords(stimulus=(samples, [str(name) for name in ids]))


def _transposed(array: xr.DataArray, n: int) -> str:
    """Return a hint where another axis has the right length."""
    target = str(array.dims[-1])
    if array.sizes[target] != n:
        return ""
    return f" The {target} dim has that length: are the dims ({target!r}, {str(array.dims[0])!r})?"


def _text_lines(values: Sequence[str] | str | Path | None) -> list[str] | None:
    """Return a list of strings; a path stands for a text file with one per line."""
    if values is None:
        return None
    if isinstance(values, (str, Path)):
        path = Path(values)
        if not path.is_file():
            raise MissingFileError(f"The text file {path} does not exist.")
        return path.read_text().splitlines()
    return [str(value) for value in values]


def _with_roi(array: xr.DataArray, roi: Sequence[str] | str | Path) -> xr.DataArray:
    """Name the ROI of each target."""
    names = _text_lines(roi) or []
    if len(names) != array.shape[-1]:
        raise PairingError(f"`roi` has {len(names)} entries for {array.shape[-1]} targets.")
    return array.assign_coords(roi=(str(array.dims[-1]), names))
