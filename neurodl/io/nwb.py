"""NWB files: spike times, what is known of the units, and intervals; spikes from npz files too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from neurodl.errors import FileFormatError, MissingFileError, UnknownNameError, did_you_mean
from neurodl.io.hdf5 import open_hdf5, stored
from neurodl.io.plain import open_npz

SHOWN = ("stimulus", "stimulus_name", "image_name", "stim_name", "stimulus_id", "image_id")


def read_spikes(path: str | Path) -> Mapping[str, np.ndarray]:
    """Return the spike times of each unit in an NWB or npz file.

    Parameters
    ----------
    path : str or Path
        An NWB file with a units table, or an npz file that holds one 1-D array of spike times
        per unit, named by the unit's id.

    Returns
    -------
    mapping of str to numpy.ndarray, shape (n_spikes,)
        Spike times [s] by unit id, in the order of the file. Those of an NWB file are read when
        they are asked for, unit by unit.

    Raises
    ------
    FileFormatError
        The file cannot be read or holds no units.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"The spike file {path} does not exist.")
    if path.suffix != ".npz":
        units = NwbSpikes(path)
        if not units:
            raise FileFormatError(f"{path} holds no units.")
        return units
    spikes = _read_npz(path)
    if not spikes:
        raise FileFormatError(f"{path} holds no units.")
    return {unit: _checked(unit, times, path) for unit, times in spikes.items()}


def _checked(unit: str, times: np.ndarray, path: Path) -> np.ndarray:
    if times.ndim != 1 or not np.issubdtype(times.dtype, np.number):
        raise FileFormatError(
            f"Unit {unit!r} in {path} must be a 1-D array of spike times [s], but has shape "
            f"{times.shape} and dtype {times.dtype}."
        )
    if not np.isfinite(times).all():
        raise FileFormatError(f"Unit {unit!r} in {path} has spike times that are not finite.")
    return times.astype(np.float64)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with open_npz(path) as stored:
        if isinstance(stored, np.ndarray):
            raise FileFormatError(f"{path} holds one array; spikes need one array per unit.")
        return {unit: stored[unit] for unit in stored}


class NwbSpikes(Mapping[str, np.ndarray]):
    """Spike times [s] by unit of the NWB 2 layout, a ragged column, read straight from HDF5.

    Only where each unit's times lie is read at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_hdf5(path) as file:
            columns = {"spike_times", "spike_times_index"}
            if "units" not in file or not columns <= set(file["units"]):
                raise FileFormatError(f"{path} has no units table with spike times.")
            n_times = len(stored(file, "units/spike_times"))
            ends = stored(file, "units/spike_times_index")[:].astype(np.int64)
            has_ids = "id" in file["units"]
            ids = stored(file, "units/id")[:] if has_ids else np.arange(len(ends))
        fits = len(ids) == len(ends) == len(set(ids.tolist())) and (np.diff(ends) >= 0).all()
        if not fits or (len(ends) and ends[-1] != n_times):
            raise FileFormatError(
                f"The units table of {path} is inconsistent: {len(ids)} ids, {len(ends)} units and "
                f"{n_times} spike times, of which {ends[-1] if len(ends) else 0} are assigned."
            )
        starts = np.r_[0, ends[:-1]]
        self.places = {
            str(unit): (int(start), int(end))
            for unit, start, end in zip(ids, starts, ends, strict=True)
        }

    def __getitem__(self, unit: str) -> np.ndarray:
        start, end = self.places[unit]
        with open_hdf5(self.path) as file:
            return _checked(unit, stored(file, "units/spike_times")[start:end], self.path)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __repr__(self) -> str:
        return f"<{len(self)} units of {self.path.name}>"


def read_units(path: str | Path) -> pd.DataFrame:
    """Return what an NWB file says of each unit.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    pandas.DataFrame
        Indexed by the unit's id (str), with the columns of the units table that have one value per
        unit. Column area: the unit's location, else that of its electrode or electrode group.

    Raises
    ------
    MissingFileError, FileFormatError
        The file does not exist, is damaged, or holds no units.
    """
    with open_hdf5(path) as file:
        if "units" not in file:
            raise FileFormatError(f"{path} has no units table with spike times.")
        count = len(stored(file, "units/spike_times_index"))
        table = pd.DataFrame(_columns(file, "units", count))
        area = table.get("location")
        if area is None:
            area = _electrode_areas(file, count)
        if area is not None:
            table["area"] = area
    ids = table.pop("id") if "id" in table else pd.Series(range(count))
    return table.set_axis(pd.Index([str(one) for one in ids], name="unit"), axis=0)


def read_intervals(path: str | Path, name: str | None = None) -> pd.DataFrame | None:
    """Return a table of intervals of an NWB file as events.

    Parameters
    ----------
    path : str or Path
    name : str, optional
        Of the table: "trials", "epochs" or one for stimuli. By default the trials, else the only
        table whose name ends in "_presentations".

    Returns
    -------
    pandas.DataFrame or None
        In the order of time: onset and duration [s] and the table's other columns. Column stimulus
        (str) where one says what was shown. None where no table is meant.

    Raises
    ------
    MissingFileError, FileFormatError
        The file does not exist or is damaged.
    UnknownNameError
        There is no such table.
    """
    with open_hdf5(path) as file:
        there = list(file["intervals"]) if "intervals" in file else []
        shown = [one for one in there if one.endswith("_presentations")]
        if name is None:
            meant = ["trials"] if "trials" in there else shown
            if len(meant) != 1:
                return None
            name = meant[0]
        if name not in there:
            raise UnknownNameError(f"{path} has no intervals {name!r}. {did_you_mean(name, there)}")
        starts = stored(file, f"intervals/{name}/start_time")[:]
        columns = _columns(file, f"intervals/{name}", len(starts))
    ends = columns.pop("stop_time", np.full(len(starts), np.nan))
    columns.pop("id", None)
    table = pd.DataFrame({"onset": columns.pop("start_time"), "duration": ends - starts, **columns})
    what = next((column for column in SHOWN if column in table), None)
    if what is not None:
        table["stimulus"] = [str(one) for one in table[what]]
    return table.sort_values("onset", kind="stable", ignore_index=True)


def _columns(file: h5py.File, group: str, count: int) -> dict[str, Any]:
    """Return the columns of a table that have one value per row, text decoded."""
    found: dict[str, Any] = {}
    for name in file[group]:
        if isinstance(name, bytes):  # no text: a name that is damaged
            continue
        ragged = name.endswith("_index") or f"{name}_index" in file[group]
        if ragged or not isinstance(file[group].get(name), h5py.Dataset):
            continue
        column = stored(file, f"{group}/{name}")
        if column.shape != (count,) or h5py.check_ref_dtype(column.dtype):
            continue
        values = column[:]
        is_text = h5py.check_string_dtype(column.dtype) is not None
        found[name] = [_text(one) for one in values] if is_text else values
    return found


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _electrode_areas(file: h5py.File, count: int) -> list[str] | None:
    """Return the location of each unit's first electrode, or of its electrode group."""
    units = file["units"]
    electrodes = "general/extracellular_ephys/electrodes/location"
    if {"electrodes", "electrodes_index"} <= set(units) and electrodes in file:
        rows, ends = stored(file, "units/electrodes")[:], stored(file, "units/electrodes_index")[:]
        firsts = np.r_[0, ends[:-1]].astype(int)
        places = stored(file, electrodes)[:]
        return [
            _text(places[rows[first]]) if first < end else ""
            for first, end in zip(firsts, ends, strict=True)
        ]
    if "electrode_group" in units:
        references = stored(file, "units/electrode_group")[:]
        groups = [file[reference] for reference in references]
        if len(groups) == count and all("location" in group for group in groups):
            return [_text(group["location"][()]) for group in groups]
    return None
