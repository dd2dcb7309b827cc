"""Saving: whole or not at all, and back the same."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import xarray as xr

from neurodl.errors import FileFormatError, MissingFileError, StorageError
from neurodl.io.store import atomic_path, load, save


@pytest.fixture
def scores(rng):
    r = xr.DataArray(
        rng.uniform(-1, 1, (2, 3, 6000)).astype("float32"),
        dims=("layer", "fold", "voxel"),
        coords={"layer": ["a", "b"], "roi": ("voxel", ["V1", "V4"] * 3000)},
    )
    r[:, :, 5] = np.nan
    return xr.Dataset({"r": r, "r2": r**2}, attrs={"seed": 1, "affine": [1.0, 2.0], "model": "m"})


def test_scores_come_back(tmp_path, scores):
    assert save(scores, tmp_path / "new" / "scores.nc") == tmp_path / "new" / "scores.nc"
    again = load(tmp_path / "new" / "scores.nc")
    xr.testing.assert_identical(again, scores)


def test_responses_come_back_without_a_name(tmp_path, rng):
    responses = xr.DataArray(
        rng.standard_normal((2, 3)).astype("float32"),
        dims=("stimulus", "unit"),
        coords={"stimulus": ["a", "ü"]},
        attrs={"units": "spikes / s"},
    )
    save(responses, tmp_path / "r.nc")
    xr.testing.assert_identical(load(tmp_path / "r.nc"), responses)


def test_features_come_back_in_their_order(tmp_path, rng):
    features = {
        layer: xr.DataArray(
            rng.standard_normal((3, width)).astype("float32"),
            dims=("stimulus", "feature"),
            coords={"stimulus": ["a", "b", "c"]},
            attrs={"backbone": "net", "layer": layer},
        )
        for layer, width in (("z.1", 4), ("a/b c", 2))
    }
    save(features, tmp_path / "f.zarr")
    again = load(tmp_path / "f.zarr")
    assert list(again) == ["z.1", "a/b c"]
    for layer, array in features.items():
        xr.testing.assert_identical(again[layer], array)
    save({"only": features["z.1"]}, tmp_path / "f.zarr")
    assert list(load(tmp_path / "f.zarr")) == ["only"]


@pytest.mark.parametrize("kind", ["scores", "features"])
def test_the_suffix_says_what_it_is(tmp_path, scores, kind):
    thing = scores if kind == "scores" else {"a": scores["r"]}
    with pytest.raises(ValueError, match="is saved to"):
        save(thing, tmp_path / ("x.zarr" if kind == "scores" else "x.nc"))


def test_a_failure_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_no_rest(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "folder") as part:
        part.mkdir()
        (part / "file").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_says_so_and_keeps_the_old_file(tmp_path, scores, monkeypatch):
    save(scores, tmp_path / "scores.nc")
    before = (tmp_path / "scores.nc").read_bytes()

    def full(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", full)
    with pytest.raises(StorageError, match=r"Cannot write .*scores\.nc: No space left"):
        save(scores, tmp_path / "scores.nc")
    assert (tmp_path / "scores.nc").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_damaged_and_missing_files_are_errors(tmp_path, scores):
    save(scores, tmp_path / "scores.nc")
    whole = (tmp_path / "scores.nc").read_bytes()
    (tmp_path / "scores.nc").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError, match=r"Cannot read .*scores\.nc"):
        load(tmp_path / "scores.nc")
    with pytest.raises(MissingFileError, match="does not exist"):
        load(tmp_path / "gone.nc")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(FileFormatError, match="empty.zarr"):
        load(tmp_path / "empty.zarr")
