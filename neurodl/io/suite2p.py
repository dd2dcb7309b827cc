"""Calcium imaging as suite2p leaves it: one folder per plane, one row per region of interest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neurodl.errors import FileFormatError, MissingFileError, UnknownNameError
from neurodl.io.pickles import read_object_array
from neurodl.schema import check_responses

SIGNALS = ("spks", "F", "F_corrected")
NEUROPIL = 0.7  # suite2p's own share of the surroundings in a cell's fluorescence


def read_suite2p(
    folder: str | Path,
    *,
    signal: str = "spks",
    cells_only: bool = True,
    rate: float | None = None,
) -> xr.DataArray:
    """Read the activity that suite2p found.

    Parameters
    ----------
    folder : str or Path
        The folder ``suite2p`` with ``plane0`` ..., the one above it, or one plane.
    signal : {"spks", "F", "F_corrected"}
        Deconvolved, fluorescence, or fluorescence less 0.7 of its surroundings.
    cells_only : bool
        Only what is marked as a cell.
    rate : float, optional
        Frames per second and plane [Hz]; by default from ``ops.npy``.

    Returns
    -------
    xarray.DataArray
        float32, dims ``(time, unit)``, attr bin_width [s]. Coords time (start of the frame [s]);
        unit ("plane0-12"), plane and p_cell (the probability of a cell), and x and y [pixels]
        where ``stat.npy`` is there.

    Raises
    ------
    MissingFileError, FileFormatError, UnknownNameError
        A file is missing or holds something else, there is no cell, or no such signal.
    ValueError
        The rate is not known.
    """
    if signal not in SIGNALS:
        raise UnknownNameError(f"`signal` must be one of {SIGNALS}, but got {signal!r}.")
    planes = _planes(Path(folder).expanduser())
    parts = [_plane(plane, signal, cells_only) for plane in planes]
    n_frames = min(len(part) for part in parts)
    if max(len(part) for part in parts) > n_frames + 1:  # the last round of planes may be cut off
        raise FileFormatError(f"{folder}: the planes differ in their numbers of frames.")
    if rate is None:
        rate = _rate(planes[0])
    if not 0 < rate < np.inf:
        raise ValueError(f"`rate` must be a positive number of frames per second, but got {rate}.")
    joined = xr.concat(
        [part[:n_frames] for part in parts], dim="unit", coords="minimal", compat="override"
    )
    if not joined.sizes["unit"]:
        raise FileFormatError(f"{folder}: nothing is marked as a cell; try cells_only=False.")
    joined = joined.assign_coords(time=np.arange(n_frames) / rate)
    kind = "deconvolved fluorescence" if signal == "spks" else "fluorescence"
    joined.attrs = {"units": kind, "bin_width": 1 / rate}
    return check_responses(joined)


def _planes(folder: Path) -> list[Path]:
    """Return the folders of the planes, in the order of their numbers."""
    if (folder / "iscell.npy").is_file():
        return [folder]
    found = [path.parent for path in folder.glob("**/plane*/iscell.npy")]
    if not found:
        raise MissingFileError(f"There is no plane0/iscell.npy of suite2p in {folder}.")
    return sorted(found, key=lambda path: int("".join(filter(str.isdigit, path.name)) or 0))


def _plane(plane: Path, signal: str, cells_only: bool) -> xr.DataArray:
    """Return the activity of one plane, frames x units."""
    is_cell = _numbers(plane / "iscell.npy")
    if is_cell.ndim != 2 or is_cell.shape[1] < 2:
        raise FileFormatError(f"{plane}/iscell.npy has shape {is_cell.shape}; expected (n, 2).")
    values = _numbers(plane / ("spks.npy" if signal == "spks" else "F.npy"))
    if values.ndim != 2 or len(values) != len(is_cell):
        raise FileFormatError(
            f"{plane}: iscell.npy has {len(is_cell)} regions, the {signal} have shape "
            f"{values.shape}."
        )
    rows = np.flatnonzero(is_cell[:, 0] > 0) if cells_only else np.arange(len(is_cell))
    chosen = np.array(values[rows], dtype=np.float32)
    if signal == "F_corrected":
        chosen -= np.float32(NEUROPIL) * _numbers(plane / "Fneu.npy")[rows]
    coords: dict[str, Any] = {
        "unit": [f"{plane.name}-{row}" for row in rows],
        "plane": ("unit", [plane.name] * len(rows)),
        "p_cell": ("unit", is_cell[rows, 1]),
        **_places(plane / "stat.npy", rows),
    }
    return xr.DataArray(chosen.T, dims=("time", "unit"), coords=coords)


def _places(path: Path, rows: np.ndarray) -> dict[str, Any]:
    """Return where the regions lie, from the medians of their pixels."""
    if not path.is_file():
        return {}
    stat = read_object_array(path)
    try:
        medians = np.array([stat[row]["med"] for row in rows], dtype=float).reshape(-1, 2)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} does not say where the regions lie: {error}") from error
    return {"y": ("unit", medians[:, 0]), "x": ("unit", medians[:, 1])}


def _rate(plane: Path) -> float:
    """Return the frames per second and plane that the settings say."""
    path = plane / "ops.npy"
    if path.is_file():
        settings = read_object_array(path)
        content = settings.item() if settings.ndim == 0 else {}
        if isinstance(content, dict) and "fs" in content:
            return float(content["fs"])
    raise ValueError(f"There is no frame rate in {plane}/ops.npy; say it: rate=30 [Hz].")


def _numbers(path: Path) -> np.ndarray:
    if not path.is_file():
        raise MissingFileError(f"The file {path} does not exist.")
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise FileFormatError(f"Cannot read {path}: {error}") from error
