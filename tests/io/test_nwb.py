"""Spike files: the units of an NWB file as pynwb reads them, and of an npz file."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from neurodl.errors import FileFormatError, MissingFileError
from neurodl.io.nwb import read_spikes


def test_a_real_nwb_file_agrees_with_pynwb(recordings):
    pynwb = pytest.importorskip("pynwb")
    path = recordings / "spikes_pynapple" / "A8604-211122.nwb"
    with pynwb.NWBHDF5IO(str(path), "r") as file:
        table = file.read().units.to_dataframe()
    spikes = read_spikes(path)
    assert list(spikes) == [str(unit) for unit in table.index]
    assert sum(map(len, spikes.values())) == 21354
    for unit, times in zip(table.index, table["spike_times"], strict=True):
        np.testing.assert_array_equal(spikes[str(unit)], np.sort(times))


def test_units_without_spikes_are_kept(tmp_path):
    with h5py.File(tmp_path / "s.nwb", "w") as file:
        units = file.create_group("units")
        units["spike_times"] = [1.0, 3.0, 2.0, 9.0]
        units["spike_times_index"] = np.array([3, 3, 4], np.uint8)
        units["id"] = [7, 5, 6]
    spikes = read_spikes(tmp_path / "s.nwb")
    assert {unit: times.tolist() for unit, times in spikes.items()} == {
        "7": [1.0, 2.0, 3.0],
        "5": [],
        "6": [9.0],
    }


def test_npz_has_one_array_per_unit(tmp_path):
    np.savez(tmp_path / "s.npz", b=np.array([2, 1]), a=np.array([0.5]))
    spikes = read_spikes(tmp_path / "s.npz")
    assert {unit: times.tolist() for unit, times in spikes.items()} == {"b": [1, 2], "a": [0.5]}
    assert all(times.dtype == np.float64 for times in spikes.values())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[1.0]]), "Unit 'u' in .* must be a 1-D array"),
        (np.array(["a"]), "must be a 1-D array of spike times"),
        (np.array([np.nan]), "not finite"),
    ],
)
def test_what_are_no_spike_times_is_named(tmp_path, values, message):
    np.savez(tmp_path / "s.npz", u=values)
    with pytest.raises(FileFormatError, match=message):
        read_spikes(tmp_path / "s.npz")


def test_files_without_units_are_errors(tmp_path, recordings):
    np.savez(tmp_path / "none.npz")
    with pytest.raises(FileFormatError, match="holds no units"):
        read_spikes(tmp_path / "none.npz")
    np.savez(tmp_path / "cut.npz", u=np.arange(9.0))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:99])
    with pytest.raises(FileFormatError, match=r"cut\.npz"):
        read_spikes(tmp_path / "cut.npz")
    with h5py.File(tmp_path / "none.nwb", "w") as file:
        with pytest.raises(FileFormatError, match="no units table"):
            read_spikes(tmp_path / "none.nwb")
        file["units/spike_times"] = [1.0, 2.0]
    with pytest.raises(FileFormatError, match="no units table"):
        read_spikes(tmp_path / "none.nwb")
    with h5py.File(tmp_path / "none.nwb", "a") as file:
        file["units/spike_times_index"] = [1]
    with pytest.raises(FileFormatError, match="2 spike times, of which 1 are assigned"):
        read_spikes(tmp_path / "none.nwb")
    whole = (recordings / "spikes_pynapple" / "A8604-211122.nwb").read_bytes()
    (tmp_path / "cut.nwb").write_bytes(whole[:5000])
    with pytest.raises(FileFormatError, match=r"cut\.nwb as NWB"):
        read_spikes(tmp_path / "cut.nwb")
    with pytest.raises(MissingFileError, match=r"gone\.nwb"):
        read_spikes(tmp_path / "gone.nwb")
