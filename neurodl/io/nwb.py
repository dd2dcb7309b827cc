"""Spike times from NWB files and from npz files of one array per unit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neurodl.errors import FileFormatError, MissingFileError
from neurodl.io.hdf5 import open_hdf5, stored
from neurodl.io.plain import open_npz


def read_spikes(path: str | Path) -> dict[str, np.ndarray]:
    """Return the spike times of each unit in an NWB or npz file.

    Parameters
    ----------
    path : str or Path
        An NWB file with a units table, or an npz file that holds one 1-D array of spike times
        per unit, named by the unit's id.

    Returns
    -------
    dict of str to numpy.ndarray, shape (n_spikes,)
        Spike times [s], sorted, by unit id.

    Raises
    ------
    FileFormatError
        The file cannot be read or holds no units.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"The spike file {path} does not exist.")
    reader = _read_npz if path.suffix == ".npz" else _read_nwb
    spikes = reader(path)
    if not spikes:
        raise FileFormatError(f"{path} holds no units.")
    for unit, times in spikes.items():
        if times.ndim != 1 or not np.issubdtype(times.dtype, np.number):
            raise FileFormatError(
                f"Unit {unit!r} in {path} must be a 1-D array of spike times [s], but has shape "
                f"{times.shape} and dtype {times.dtype}."
            )
        if not np.isfinite(times).all():
            raise FileFormatError(f"Unit {unit!r} in {path} has spike times that are not finite.")
    return {unit: np.sort(times).astype(np.float64) for unit, times in spikes.items()}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with open_npz(path) as stored:
        if isinstance(stored, np.ndarray):
            raise FileFormatError(f"{path} holds one array; spikes need one array per unit.")
        return {unit: stored[unit] for unit in stored}


def _read_nwb(path: Path) -> dict[str, np.ndarray]:
    """Read the units table of the NWB 2 layout, a ragged column, straight from HDF5."""
    with open_hdf5(path) as file:
        columns = {"spike_times", "spike_times_index"}
        if "units" not in file or not columns <= set(file["units"]):
            raise FileFormatError(f"{path} has no units table with spike times.")
        times = stored(file, "units/spike_times")[:]
        ends = stored(file, "units/spike_times_index")[:]
        has_ids = "id" in file["units"]
        ids = stored(file, "units/id")[:] if has_ids else np.arange(len(ends))
    if len(ids) != len(ends) or (len(ends) and ends[-1] != len(times)):
        raise FileFormatError(
            f"The units table of {path} is inconsistent: {len(ids)} ids, {len(ends)} units and "
            f"{len(times)} spike times, of which {ends[-1] if len(ends) else 0} are assigned."
        )
    parts = np.split(times, ends[:-1])
    return {str(unit): part for unit, part in zip(ids, parts, strict=True)}
