"""Saving: whole or not at all, and back the same."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from neurodl.errors import FileFormatError, MissingFileError, StorageError
from neurodl.io import store
from neurodl.io.store import atomic_path, load, save
from neurodl.models import RidgeCV

VERSION_1 = Path(__file__).parent / "version1"


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


@pytest.mark.parametrize("kind", ["dataset", "array", "features"])
def test_a_full_disk_says_so_and_keeps_the_old_file(tmp_path, scores, kind):
    """In a process that may write 20 kB per file, where HDF5 on disk would crash."""
    pytest.importorskip("resource")  # not on Windows
    features = scores["r"][0].rename(fold="stimulus", voxel="feature").drop_vars(["roi", "layer"])
    features = features.fillna(0).assign_coords(stimulus=["a", "b", "c"])
    things = {"dataset": scores, "array": scores["r"], "features": {"x": features}}
    path = tmp_path / ("x.zarr" if kind == "features" else "x.nc")
    (tmp_path / "thing.pickle").write_bytes(pickle.dumps(things[kind]))
    save({"x": features[:, :3]} if kind == "features" else scores.isel(voxel=[0]), path)
    before = sorted(tmp_path.rglob("*"))
    code = """if True:
        import pickle, resource, sys
        from neurodl import errors, save
        thing = pickle.load(open("thing.pickle", "rb"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            save(thing, sys.argv[1])
        except errors.StorageError as error:
            sys.exit(str(error))
    """
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, path.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert f"Cannot write {path.name}: File too large" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    load(path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_what_cannot_be_written_is_a_storage_error(tmp_path, number):
    with (
        pytest.raises(StorageError, match=rf"Cannot write .*file: {os.strerror(number)}\. What"),
        atomic_path(tmp_path / "file") as part,
    ):
        part.write_text("half")
        raise OSError(number, "as the system has it")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(IsADirectoryError), atomic_path(tmp_path / "file"):
        raise IsADirectoryError(errno.EISDIR, "x")


def test_one_variable_of_the_scores_comes_back(tmp_path, scores):
    save(scores["r"], tmp_path / "r.nc")
    xr.testing.assert_identical(load(tmp_path / "r.nc"), scores["r"])


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


def of_version_1():
    """What the files in ``version1`` hold: they were written when version 1 of the schema was."""
    rng = np.random.default_rng(1)
    r = xr.DataArray(
        rng.uniform(-1, 1, (2, 2, 3)).astype("float32"),
        dims=("layer", "fold", "voxel"),
        coords={"layer": ["a", "b"], "roi": ("voxel", ["V1", "V1", "V4"])},
    )
    scores = xr.Dataset({"r": r, "r2": r**2}, attrs={"seed": 1, "model": "m"})
    responses = xr.DataArray(
        rng.standard_normal((8, 2)).astype("float32"),
        dims=("stimulus", "unit"),
        coords={"stimulus": [f"image{number}" for number in range(8)]},
        attrs={"units": "spikes / s"},
    )
    X = rng.standard_normal((8, 3)).astype("float32")
    model = RidgeCV(cv=2, device="cpu").fit(X, responses.values)
    return scores, responses, X, model


def test_files_of_earlier_versions_open():
    """Kept as they were written; a change of the schema must open them, or turn them."""
    scores, responses, X, model = of_version_1()
    xr.testing.assert_identical(load(VERSION_1 / "scores.nc"), scores)
    xr.testing.assert_identical(load(VERSION_1 / "responses.nc"), responses)
    again = load(VERSION_1 / "model.safetensors")
    np.testing.assert_allclose(again.predict(X), model.predict(X), rtol=1e-5)
    (layer,) = load(VERSION_1 / "features.zarr").items()
    assert layer[0] == "layer"
    np.testing.assert_array_equal(layer[1].values, X)


def test_files_of_later_versions_are_an_error_that_says_so(tmp_path, monkeypatch, scores, rng):
    features = {"a": xr.DataArray(np.ones((2, 3), "f4"), dims=("stimulus", "feature"))}
    features["a"] = features["a"].assign_coords(stimulus=["x", "y"])
    monkeypatch.setattr(store, "SCHEMA_VERSION", 2)
    paths = [save(scores, tmp_path / "s.nc"), save(features, tmp_path / "f.zarr")]
    monkeypatch.setattr(store, "SCHEMA_VERSION", 1)
    for path in paths:
        with pytest.raises(
            FileFormatError, match=f"{path.name}: it was written by a newer neurodl"
        ):
            load(path)
