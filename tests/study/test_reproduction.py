"""Running a study again from its results folder: the same numbers, or what differs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import xarray as xr

import neurodl as ndl
from neurodl.errors import FileFormatError, MissingFileError
from neurodl.study.reproduction import _compared

STUDY = """
[study]
name = "own"
[responses]
path = "responses.npy"
dims = ["stimulus", "unit"]
[[features]]
path = "features.zarr"
[cv]
folds = 3
[run]
device = "cpu"
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a study of own arrays, and its results."""
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    ids = [f"s{number}" for number in range(40)]
    values = rng.standard_normal((40, 5)).astype("float32")
    array = xr.DataArray(values, dims=("stimulus", "feature"), coords={"stimulus": ids})
    ndl.save({"mine": array}, folder / "features.zarr")
    np.savez(folder / "responses.npz", responses=values @ rng.standard_normal((5, 3)), ids=ids)
    text = STUDY.replace("responses.npy", "responses.npz")
    (folder / "study.toml").write_text(text)
    return folder, ndl.run_study(folder / "study.toml", folder / "results")


@pytest.fixture
def results(made, tmp_path):
    """A copy of the results, to be damaged."""
    return shutil.copytree(made[1], tmp_path / "results")


def test_the_same_machine_gives_identical_numbers(made, results, run):
    before = {path.name: path.read_bytes() for path in results.iterdir() if path.is_file()}
    found = ndl.reproduce(results)
    assert found.identical and found.same and not found.changes
    assert set(found.table["variable"]) >= {"r", "r2", "alpha", "predicted"}
    assert str(found) == "Reproduced: every number is identical."
    assert {path.name: path.read_bytes() for path in results.iterdir() if path.is_file()} == before
    status, printed, _ = run("reproduce", str(results), "--cached")
    assert (status, printed) == (0, "Reproduced: every number is identical.\n")


def test_other_numbers_are_found_and_what_changed_is_said(results, run):
    scores = ndl.load(results / "scores.nc")
    scores["r"].values[0, 0, 1] -= 0.01
    ndl.save(scores, results / "scores.nc")
    record = json.loads((results / "provenance.json").read_text())
    record["packages"]["torch"] = "1.0"
    record["packages"]["theano"] = "0.1"
    (results / "provenance.json").write_text(json.dumps(record))
    status, printed, said = run("reproduce", str(results))
    assert status == 1, said
    assert printed.startswith("Not reproduced: r differs by up to 0.01.\n")
    assert "torch: 1.0 then, " in printed
    assert "theano: 0.1 then, not there now" in printed
    assert ndl.reproduce(results, tolerance=0.02).same
    assert "Reproduced within the tolerance" in str(ndl.reproduce(results, tolerance=0.02))


def test_a_changed_input_is_named(made, results):
    folder, _ = made
    values = (folder / "responses.npz").read_bytes()
    try:
        with np.load(folder / "responses.npz") as kept:
            np.savez(folder / "responses.npz", responses=kept["responses"] + 1, ids=kept["ids"])
        with pytest.raises(FileFormatError, match=r"changed since:\n  .*responses\.npz"):
            ndl.reproduce(results)
    finally:
        (folder / "responses.npz").write_bytes(values)


def test_what_is_no_results_folder_is_refused(results, tmp_path, run):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="holds no finished results"):
        ndl.reproduce(tmp_path / "empty")
    for text in ("{", "[]", "{}"):
        (results / "provenance.json").write_text(text)
        with pytest.raises(FileFormatError, match="is damaged"):
            ndl.reproduce(results)
    assert run("reproduce", str(tmp_path / "nothing"))[0] == 1


def test_a_script_that_was_changed_is_not_run(results):
    """The folder may come from someone else: only its study, which is data, is used."""
    (results / "analysis.py").write_text("raise SystemExit('run')")
    assert ndl.reproduce(results).identical


def test_every_kind_of_difference_counts():
    one = xr.Dataset({"r": ("unit", [0.1, np.nan]), "name": ("unit", ["a", "b"])})

    def same(**changed):
        return _compared(one, one.assign(changed), 1e-4).set_index("variable")

    assert same()["identical"].all()
    missing = same(r=("unit", [0.1, 0.2])).loc["r"]
    assert (missing["difference"], missing["same"]) == (np.inf, False)
    close = same(r=("unit", [0.10005, np.nan])).loc["r"]
    assert (close["identical"], close["same"]) == (False, True)
    assert not same(name=("unit", ["a", "c"])).loc["name", "same"]
    assert same(name=("unit", ["a", "c"])).loc["name", "difference"] == np.inf
    assert not same(r=("more", [0.1, 0.2, 0.3])).loc["r", "same"]
    assert not same(new=("unit", [1.0, 2.0])).loc["new", "same"]
