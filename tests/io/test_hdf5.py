"""HDF5 and MATLAB files: one orientation, and nothing from other files."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import scipy.io

from neurodl.errors import FileFormatError, MissingFileError
from neurodl.io.hdf5 import open_hdf5, read_mat, stored
from neurodl.io.nwb import read_spikes

SECRET = np.arange(6.0)


@pytest.fixture
def files(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["inside/values"] = SECRET
    (tmp_path / "raw.bin").write_bytes(SECRET.tobytes())
    return tmp_path


def test_links_inside_a_file_are_followed(files):
    with h5py.File(files / "a.h5", "w") as file:
        file["group/values"] = SECRET
        file["short"] = h5py.SoftLink("/group/values")
        file["group/relative"] = h5py.SoftLink("values")
        file["groups"] = h5py.SoftLink("/group")
        file["hard"] = file["group/values"]
    with open_hdf5(files / "a.h5") as file:
        for name in ("group/values", "short", "group/relative", "groups/relative", "hard"):
            np.testing.assert_array_equal(stored(file, name), SECRET)
        with pytest.raises(FileFormatError, match="'group' is a group, not an array"):
            stored(file, "group")
        with pytest.raises(FileFormatError, match="'missing' is not there; there are 'group'"):
            stored(file, "missing")


def test_nothing_is_read_from_other_files(files):
    layout = h5py.VirtualLayout(shape=(6,), dtype=float)
    layout[:] = h5py.VirtualSource(str(files / "secret.h5"), "inside/values", shape=(6,))
    with h5py.File(files / "a.h5", "w") as file:
        file["external"] = h5py.ExternalLink("secret.h5", "/inside/values")
        file["folder"] = h5py.ExternalLink("secret.h5", "/inside")
        file["soft"] = h5py.SoftLink("/external")
        file["deep"] = h5py.SoftLink("/folder/values")
        file.create_virtual_dataset("virtual", layout)
        raw = [(str(files / "raw.bin"), 0, 48)]
        file.create_dataset("raw", (6,), float, external=raw)
        file["circle"] = h5py.SoftLink("/circle")
        file["one"], file["two"] = h5py.SoftLink("/two"), h5py.SoftLink("/one")
        np.testing.assert_array_equal(file["external"], SECRET)  # h5py itself would follow
        np.testing.assert_array_equal(file["virtual"], SECRET)
        np.testing.assert_array_equal(file["raw"], SECRET)
    with open_hdf5(files / "a.h5") as file:
        for name in ("external", "folder/values", "soft", "deep", "circle", "one"):
            with pytest.raises(FileFormatError, match="link out of the file, which is not"):
                stored(file, name)
        for name in ("virtual", "raw"):
            with pytest.raises(FileFormatError, match="values in another file, which is not read"):
                stored(file, name)


def test_spikes_are_not_read_through_links(files):
    with h5py.File(files / "a.nwb", "w") as file:
        file["units/spike_times"] = h5py.ExternalLink("secret.h5", "/inside/values")
        file["units/spike_times_index"] = [6]
    with pytest.raises(FileFormatError, match="not followed"):
        read_spikes(files / "a.nwb")


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (1, 5), (5, 1), (2, 3, 4, 5)])
def test_both_versions_of_matlab_have_one_orientation(tmp_path, rng, shape):
    array = rng.standard_normal(shape)
    scipy.io.savemat(tmp_path / "five.mat", {"rdm": array, "name": "text"})
    with h5py.File(tmp_path / "seven.mat", "w", userblock_size=512) as file:
        file["rdm"] = array.T
    for name in ("five.mat", "seven.mat"):
        np.testing.assert_array_equal(read_mat(tmp_path / name, ["rdm"])["rdm"], array)


def test_what_is_missing_or_no_numbers(tmp_path):
    scipy.io.savemat(tmp_path / "five.mat", {"rdm": np.eye(2), "name": "text"})
    with pytest.raises(FileFormatError, match="lacks 'rdms'; it holds 'rdm', 'name'"):
        read_mat(tmp_path / "five.mat", ["rdms"])
    with pytest.raises(FileFormatError, match="'name' is no array of numbers"):
        read_mat(tmp_path / "five.mat", ["name"])
    with pytest.raises(MissingFileError, match="does not exist"):
        read_mat(tmp_path / "six.mat", ["rdm"])
    for content in (b"", b"MATLAB 5.0 MAT-file" + bytes(300), b"\x89HDF\r\n\x1a\n" + bytes(90)):
        (tmp_path / "bad.mat").write_bytes(content)
        with pytest.raises(FileFormatError, match=r"bad\.mat"):
            read_mat(tmp_path / "bad.mat", ["rdm"])
    with pytest.raises(MissingFileError), open_hdf5(tmp_path / "none.h5"):
        pass
