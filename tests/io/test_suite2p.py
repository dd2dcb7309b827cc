"""suite2p: a real plane read in place, several planes, and what is missing."""

from __future__ import annotations

import datetime
import pathlib

import numpy as np
import pytest

import neurodl as ndl
from neurodl.errors import FileFormatError, MissingFileError, UnknownNameError
from neurodl.io.suite2p import read_suite2p


def test_a_real_plane(tmp_path, recordings):
    plane = tmp_path / "suite2p" / "plane0"
    plane.mkdir(parents=True)
    for name in ("F", "spks", "iscell"):
        source = recordings / "spikes_pynapple" / f"suite2p_{name}.npy"
        (plane / f"{name}.npy").symlink_to(source)
    is_cell = np.load(plane / "iscell.npy")
    for signal in ("spks", "F"):
        responses = ndl.Experiment.from_suite2p(tmp_path, signal=signal, rate=30).responses
        stored = np.load(plane / f"{signal}.npy")
        np.testing.assert_array_equal(responses, stored[is_cell[:, 0] == 1].T)
        assert responses.attrs["bin_width"] == pytest.approx(1 / 30)
    everything = read_suite2p(plane, rate=30, cells_only=False)
    assert everything.shape == (2000, 219)
    np.testing.assert_array_equal(everything["p_cell"], is_cell[:, 1])
    with pytest.raises(MissingFileError, match=r"Fneu\.npy does not exist"):
        read_suite2p(tmp_path, signal="F_corrected", rate=30)
    with pytest.raises(ValueError, match=r"no frame rate in .*ops\.npy; say it: rate=30"):
        read_suite2p(tmp_path)


@pytest.fixture
def planes(tmp_path, rng):
    arrays = {}
    for number in (0, 1, 10, 2):
        plane = tmp_path / "suite2p" / f"plane{number}"
        plane.mkdir(parents=True)
        n_frames = 20 if number < 10 else 19  # stopped in the middle of a round
        arrays[number] = {
            "F": rng.random((3, n_frames)).astype(np.float32),
            "Fneu": rng.random((3, n_frames)).astype(np.float32),
            "spks": rng.random((3, n_frames)).astype(np.float32),
            "iscell": np.array([[1, 0.9], [0, 0.1], [1, 0.6]]),
        }
        for name, array in arrays[number].items():
            np.save(plane / f"{name}.npy", array)
        stat = np.array([{"med": [row, number], "npix": 5} for row in range(3)], object)
        np.save(plane / "stat.npy", stat, allow_pickle=True)
        settings = {
            "fs": 7.5, "date_proc": datetime.datetime(2020, 1, 1), "save_path": pathlib.Path("/a")
        }  # fmt: skip
        np.save(plane / "ops.npy", np.array(settings, object), allow_pickle=True)
    return tmp_path, arrays


def test_planes_side_by_side(planes):
    folder, arrays = planes
    responses = read_suite2p(folder, signal="F_corrected")
    expected = [
        (arrays[n]["F"] - np.float32(0.7) * arrays[n]["Fneu"])[[0, 2], :19].T for n in (0, 1, 2, 10)
    ]
    np.testing.assert_array_equal(responses, np.hstack(expected))
    assert responses["unit"].values.tolist()[:3] == ["plane0-0", "plane0-2", "plane1-0"]
    assert responses["x"].values.tolist() == [0, 0, 1, 1, 2, 2, 10, 10]
    assert responses["y"].values.tolist() == [0, 2] * 4
    np.testing.assert_allclose(responses["time"], np.arange(19) / 7.5)


def test_what_is_missing_or_wrong(planes, tmp_path):
    folder, _ = planes
    with pytest.raises(UnknownNameError, match="`signal` must be one of"):
        read_suite2p(folder, signal="dff")
    with pytest.raises(MissingFileError, match="no plane0/iscell.npy of suite2p"):
        read_suite2p(tmp_path / "none")
    with pytest.raises(ValueError, match="positive number of frames"):
        read_suite2p(folder, rate=0)
    plane = folder / "suite2p" / "plane1"
    np.save(plane / "spks.npy", np.zeros((3, 15)))
    with pytest.raises(FileFormatError, match="differ in their numbers of frames"):
        read_suite2p(folder)
    np.save(plane / "spks.npy", np.zeros((4, 20)))
    with pytest.raises(FileFormatError, match=r"has 3 regions, the spks have shape \(4, 20\)"):
        read_suite2p(folder)
    np.save(plane / "iscell.npy", np.zeros((4, 2)))
    with pytest.raises(FileFormatError, match="nothing is marked as a cell"):
        read_suite2p(plane, rate=1)
