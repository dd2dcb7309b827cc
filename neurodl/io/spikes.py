"""Spike times of any source as one mapping: units by id, each an array of seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from neurodl.errors import SchemaError


class SpikeTrains(NamedTuple):
    """Spike times of units, and when they were recorded.

    times : mapping of unit id to spike times [s]; read from a file when they are asked for
    recorded : (n_intervals, 2), start and stop of what was recorded [s]; None if that is not known
    """

    times: Mapping[str, Any]
    recorded: np.ndarray | None


def spike_trains(source: Any) -> SpikeTrains:
    """Return the spike times of a mapping, a pynapple TsGroup, or the units of pynwb.

    Parameters
    ----------
    source : mapping, pynapple.TsGroup, pynwb.NWBFile or pynwb.misc.Units
        Of pynapple, the time support is when was recorded.

    Raises
    ------
    SchemaError
        It is something else, holds no units, or has two of one name.
    """
    units = getattr(source, "units", source)
    recorded = None
    if hasattr(units, "spike_times_index"):
        times: Mapping[str, Any] = _PynwbUnits(units)
    elif hasattr(units, "time_support") and hasattr(units, "items"):
        support = units.time_support
        recorded = np.column_stack([support.start, support.end]).astype(np.float64)
        times = _named((unit, series.t) for unit, series in units.items())
    elif isinstance(units, Mapping):
        times = units if all(isinstance(unit, str) for unit in units) else _named(units.items())
    else:
        raise SchemaError(
            "`spikes` must be a mapping from unit to spike times [s], a pynapple TsGroup or the "
            f"units of an NWB file, but got {type(source).__name__}."
        )
    if not len(times):
        raise SchemaError("`spikes` has no units.")
    return SpikeTrains(times, recorded)


def _named(items: Any) -> dict[str, Any]:
    """Return units by their ids as text."""
    pairs = [(str(unit), times) for unit, times in items]
    found = dict(pairs)
    if len(found) < len(pairs):
        raise SchemaError("`spikes` has several units of one name, such as 1 and '1'.")
    return found


class _PynwbUnits(Mapping[str, np.ndarray]):
    """The spike times of a units table of pynwb, read from its file unit by unit."""

    def __init__(self, table: Any) -> None:
        self.table = table
        self.rows = {str(unit): row for row, unit in enumerate(table.id[:])}

    def __getitem__(self, unit: str) -> np.ndarray:
        return np.asarray(self.table.get_unit_spike_times(self.rows[unit]), np.float64)

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)
