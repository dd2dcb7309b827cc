"""Spike files: the units of an NWB file as pynwb reads them, and of an npz file."""

from __future__ import annotations

import datetime

import h5py
import numpy as np
import pytest

import neurodl as ndl
from neurodl.errors import FileFormatError, MissingFileError, UnknownNameError
from neurodl.io.nwb import read_intervals, read_spikes, read_units


def test_a_real_nwb_file_agrees_with_pynwb(recordings):
    pynwb = pytest.importorskip("pynwb")
    path = recordings / "spikes_pynapple" / "A8604-211122.nwb"
    with pynwb.NWBHDF5IO(str(path), "r") as file:
        table = file.read().units.to_dataframe()
    spikes = read_spikes(path)
    assert list(spikes) == [str(unit) for unit in table.index]
    assert sum(map(len, spikes.values())) == 21354
    for unit, times in zip(table.index, table["spike_times"], strict=True):
        np.testing.assert_array_equal(spikes[str(unit)], times)


def test_units_without_spikes_are_kept(tmp_path):
    with h5py.File(tmp_path / "s.nwb", "w") as file:
        units = file.create_group("units")
        units["spike_times"] = [1.0, 3.0, 2.0, 9.0]
        units["spike_times_index"] = np.array([3, 3, 4], np.uint8)
        units["id"] = [7, 5, 6]
    spikes = read_spikes(tmp_path / "s.nwb")
    assert {unit: times.tolist() for unit, times in spikes.items()} == {
        "7": [1.0, 3.0, 2.0],
        "5": [],
        "6": [9.0],
    }


def test_npz_has_one_array_per_unit(tmp_path):
    np.savez(tmp_path / "s.npz", b=np.array([2, 1]), a=np.array([0.5]))
    spikes = read_spikes(tmp_path / "s.npz")
    assert {unit: times.tolist() for unit, times in spikes.items()} == {"b": [2, 1], "a": [0.5]}
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
    with pytest.raises(FileFormatError, match=r"cut\.nwb as HDF5"):
        read_spikes(tmp_path / "cut.nwb")
    with pytest.raises(MissingFileError, match=r"gone\.nwb"):
        read_spikes(tmp_path / "gone.nwb")


@pytest.fixture
def written(tmp_path):
    """Return an NWB file that pynwb wrote: units of two areas, trials and presentations."""
    pynwb = pytest.importorskip("pynwb")
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    file = pynwb.NWBFile(session_description="session", identifier="id", session_start_time=start)
    device = file.create_device(name="probe")
    for name, area in (("a", "VISp"), ("b", "CA1")):
        group = file.create_electrode_group(name=name, description="", location=area, device=device)
        file.add_electrode(group=group, location=area, x=0.0, y=0.0, z=0.0)
    file.add_unit_column(name="quality", description="")
    file.add_unit_column(name="snr", description="")
    for unit, (electrode, quality) in enumerate([(0, "good"), (1, "noise"), (1, "good")]):
        times = np.arange(unit + 1) + 0.5
        file.add_unit(
            spike_times=times,
            electrodes=[electrode],
            quality=quality,
            snr=float(unit),
            id=unit + 10,
        )
    file.add_trial_column(name="image_name", description="")
    for onset, name in ((2.0, "face"), (1.0, "house")):
        file.add_trial(start_time=onset, stop_time=onset + 0.5, image_name=name)
    gratings = pynwb.epoch.TimeIntervals(name="gratings_presentations", description="")
    gratings.add_row(start_time=0.0, stop_time=2.0)
    file.add_time_intervals(gratings)
    path = tmp_path / "session-1.nwb"
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(file)
    return path


def test_units_and_trials_of_pynwb(written):
    experiment = ndl.Experiment.from_nwb(written)
    assert {unit: len(times) for unit, times in experiment.spikes.items()} == {
        "10": 1, "11": 2, "12": 3
    }  # fmt: skip
    units = experiment.units
    assert units.index.tolist() == ["10", "11", "12"]
    assert units["area"].tolist() == ["VISp", "CA1", "CA1"]
    assert units["quality"].tolist() == ["good", "noise", "good"]
    assert units["snr"].tolist() == [0, 1, 2]
    events = experiment.events
    assert events["onset"].tolist() == [1, 2] and events["duration"].tolist() == [0.5, 0.5]
    assert events["stimulus"].tolist() == ["house", "face"]
    counts = ndl.bin_spikes(experiment.spikes, events, window=(0, 1))
    assert counts.values.tolist() == [[0, 1, 1], [0, 0, 1]]
    other = read_intervals(written, "gratings_presentations")
    assert other["duration"].tolist() == [2]
    with pytest.raises(UnknownNameError, match="no intervals 'trial'. Did you mean 'trials'"):
        read_intervals(written, "trial")


def test_a_folder_of_sessions(written):
    folder = written.parent
    assert ndl.Experiment.from_nwb(folder).name == "session-1"
    (folder / "session-2.nwb").symlink_to(written)
    with pytest.raises(UnknownNameError, match="holds 2 files; say which one: session='session-1'"):
        ndl.Experiment.from_nwb(folder)
    assert ndl.Experiment.from_nwb(folder, session="session-2").name == "session-2"
    with pytest.raises(MissingFileError, match="folder without"):
        (folder / "empty").mkdir()
        ndl.Experiment.from_nwb(folder / "empty")


def test_what_a_real_file_says_of_its_units(recordings):
    path = recordings / "spikes_pynapple" / "A8604-211122.nwb"
    units = read_units(path)
    assert len(units) == 3 and {"area", "group", "location"} <= set(units)
    assert units["area"].tolist() == units["location"].tolist()
    assert read_intervals(path) is None
    assert len(read_intervals(path, "epochs")) == 1
