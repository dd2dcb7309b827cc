"""Results in an object store: whole or not at all, whatever breaks, and from any machine."""

from __future__ import annotations

import json

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

import neurodl as ndl
from neurodl.errors import ConfigError, FileFormatError, MissingFileError, StorageError
from neurodl.study import load_sweep
from neurodl.study import run as running
from neurodl.study import sweep as sweeping
from neurodl.study.results import PROVENANCE, Place

SWEEP = """
[study]
name = "stored"
[stimuli]
path = "images"
[responses]
path = "responses.npz"
dims = ["stimulus", "unit"]
[[features]]
backbone = ["pixels", "gabor"]
[cv]
folds = 2
[run]
device = "cpu"
cache = "cache"
"""
URL = "memory://lab/stored"


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path):
    """An empty store in memory, and a machine without copies."""
    monkeypatch.setenv("NEURODL_CACHE", str(tmp_path / "machine"))
    made = fsspec.filesystem("memory")
    made.store.clear()
    made.pseudo_dirs[:] = [""]
    return made


@pytest.fixture
def file(tmp_path):
    """A study file of two studies."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    names = [f"{number}.png" for number in range(12)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), "uint8")).save(tmp_path / "images" / name)
    values = rng.standard_normal((12, 2))
    np.savez(tmp_path / "responses.npz", responses=values, ids=np.array(names))
    (tmp_path / "stored.toml").write_text(SWEEP)
    return tmp_path / "stored.toml"


def states(file):
    return ndl.plan(file, URL).set_index("task")["state"].to_dict()


def elsewhere(monkeypatch, tmp_path):
    """Go on as on another machine: it has no copies."""
    monkeypatch.setenv("NEURODL_CACHE", str(tmp_path / "another machine"))


@pytest.mark.slow
def test_a_sweep_in_a_store_is_that_of_a_folder(file, store, tmp_path, monkeypatch, run):
    file.write_text(SWEEP.replace('"stored"', f'"stored"\noutput = "{URL}"'))
    assert set(ndl.plan(file)["state"]) == {"to do"}
    status, printed, said = run("run", str(file))
    assert (status, printed.splitlines()[0]) == (0, f"Results: {URL}"), said
    assert states(file) == {"pixels": "done", "gabor": "done"}
    local = ndl.run_sweep(file, tmp_path / "local")
    assert {path.rpartition("/")[2] for path in store.ls("/lab/stored", detail=False)} == {
        "pixels", "gabor", "index.html", "index.tsv"
    }  # fmt: skip
    for task in ("pixels", "gabor"):
        files = [path for path in (local / task).rglob("*") if path.is_file()]
        assert {f"/lab/stored/{path.relative_to(local).as_posix()}" for path in files} == {
            *store.find(f"/lab/stored/{task}")
        }
        record = json.loads(store.cat_file(f"/lab/stored/{task}/{PROVENANCE}"))
        assert record["key"] == json.loads((local / task / PROVENANCE).read_text())["key"]

    elsewhere(monkeypatch, tmp_path)
    monkeypatch.setattr(sweeping, "run_study", None)  # nothing is left to run
    copy = ndl.run_sweep(file)
    assert copy.is_relative_to(tmp_path / "another machine")
    for task in ("pixels", "gabor"):
        found, expected = (ndl.load(one / task / "scores.nc") for one in (copy, local))
        assert found["r"].identical(expected["r"])
    assert (copy / "index.html").read_text().count("stored (gabor)") >= 1
    assert ndl.reproduce(f"{URL}/gabor").identical
    status, printed, _ = run("report", f"{URL}/gabor")
    assert status == 0 and printed.endswith("/report.html\n")
    assert run("report", f"{URL}/gabro")[2] == (
        f"neurodl report: {URL}/gabro holds no finished results.\n"
    )


class Line:
    """How many files it carries before it is cut."""

    left = 0
    put_file = MemoryFileSystem.put_file


def put_few_files(store, *names, **options):
    if Line.left == 0:
        raise ConnectionError("the line is cut")
    Line.left -= 1
    Line.put_file(store, *names, **options)


@pytest.mark.slow
def test_an_upload_that_breaks_off_is_unfinished_and_goes_on(file, store, monkeypatch, tmp_path):
    (task,) = [one for one in load_sweep(file) if one.name == "gabor"]
    place = Place.of(URL) / "gabor"
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", put_few_files)
        expected = None
        for Line.left in range(20):
            try:
                ndl.run_study(task.study, place)
                break
            except StorageError as error:
                assert "the line is cut" in str(error) and "run it again to upload" in str(error)
            assert place.record() == {}
            assert states(file) == {"pixels": "to do", "gabor": "unfinished"}
            written = json.loads((place.folder / PROVENANCE).read_text())
            expected = expected or written
            assert written == expected  # what is computed is not computed again
        assert Line.left == 0 and len(expected["files"]) >= 5
    assert place.record() == expected
    assert states(file)["gabor"] == "done"

    elsewhere(monkeypatch, tmp_path)
    store.pipe_file("/lab/stored/gabor/table.tsv", b"of another run")
    with pytest.raises(StorageError, match=r"table\.tsv is not the file that provenance\.json was"):
        place.pull()
    assert not (place.folder / PROVENANCE).exists()
    ndl.run_study(task.study, place)  # replaces it
    elsewhere(monkeypatch, tmp_path / "third")
    assert (place.pull() / "table.tsv").read_text().startswith("layer")


@pytest.mark.slow
def test_two_machines_at_one_study_leave_the_results_of_the_first(file, monkeypatch, tmp_path):
    study, place = load_sweep(file)[0].study, Place.of(URL) / "pixels"
    computing, firsts = running._run, []

    def slower(*args):
        computing(*args)
        if not firsts:  # another machine begins later, and is done earlier
            firsts.append(None)
            with monkeypatch.context() as patch:
                patch.setenv("NEURODL_CACHE", str(tmp_path / "another machine"))
                ndl.run_study(study, place)
                firsts[0] = place.record()

    monkeypatch.setattr(running, "_run", slower)
    ndl.run_study(study, place)
    assert place.record() == firsts[0]
    assert json.loads((place.folder / PROVENANCE).read_text()) == firsts[0]


@pytest.mark.slow
def test_what_depends_on_a_changed_input_is_replaced(file, store, tmp_path):
    ndl.run_sweep(file, URL)
    store.pipe_file("/lab/stored/gabor/old_statmap.nii.gz", b"")
    record = json.loads(store.cat_file(f"/lab/stored/gabor/{PROVENANCE}"))
    record["files"]["old_statmap.nii.gz"] = "0"
    store.pipe_file(f"/lab/stored/gabor/{PROVENANCE}", json.dumps(record).encode())
    with np.load(tmp_path / "responses.npz") as kept:
        changed = {name: kept[name] for name in kept}
    changed["responses"] = changed["responses"][::-1]
    np.savez(tmp_path / "responses.npz", **changed)
    assert states(file) == {"pixels": "out of date", "gabor": "out of date"}
    ndl.run_sweep(file, URL)
    assert states(file) == {"pixels": "done", "gabor": "done"}
    assert not store.exists("/lab/stored/gabor/old_statmap.nii.gz")


def test_a_store_with_something_else_is_left_alone(file, store):
    store.pipe_file("/lab/stored/pixels/thesis.pdf", b"mine")
    (task, _) = load_sweep(file)
    with pytest.raises(StorageError, match="is not empty and holds no results"):
        ndl.run_study(task.study, Place.of(URL) / "pixels")
    assert store.find("/lab") == ["/lab/stored/pixels/thesis.pdf"]


def test_a_store_that_cannot_be_written_is_found_before_anything_is_computed(file, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("not yours")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    place = Place.of(URL) / "pixels"
    with pytest.raises(StorageError, match=r"Cannot write memory://.*not yours\.$"):
        ndl.run_study(load_sweep(file)[0].study, place)
    assert not place.folder.exists()


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/evil", "..", "a/../../evil", "a\\evil", "C:evil"]
)
def test_a_record_names_no_files_elsewhere(store, tmp_path, name):
    store.pipe_file(f"/lab/stored/{name.lstrip('/')}", b"")
    record = {"files": {"scores.nc": "0", name: "0"}}
    store.pipe_file(f"/lab/stored/{PROVENANCE}", json.dumps(record).encode())
    with pytest.raises(FileFormatError, match="elsewhere"):
        Place.of(URL).pull()
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"files": ["scores.nc"]}', '{"files": 1}']
)
def test_a_broken_record_is_none(store, text):
    store.pipe_file(f"/lab/stored/{PROVENANCE}", text.encode())
    assert Place.of(URL).record() == {}
    with pytest.raises(MissingFileError, match="memory://lab/stored holds no finished results"):
        Place.of(URL).pull()


def test_wrong_urls_are_errors_that_say_what_to_do(file, run):
    with pytest.raises(ConfigError, match=r"password.*Leave it out") as raised:
        ndl.run_study(load_sweep(file)[0].study, "sftp://me:secret@host/results")
    assert "secret" not in str(raised.value)
    status, _, said = run("run", str(file), "--out", "s3a4://bucket/results")
    assert status == 1 and "no stores at 's3a4://'" in said and "'s3'" in said
    assert Place.of("abfs://container@account.dfs.core.windows.net/results").is_remote
    with pytest.raises(StorageError, match="cannot be reached: .*[Ii]nstall"):
        Place.of("dropbox://results").record()


def test_a_place_says_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(Place.of("results") / "one") == str(tmp_path / "results" / "one")
    assert str(Place.of("results")) == str(tmp_path / "results")
    assert str(Place.of("s3://bucket/results/") / "one") == "s3://bucket/results/one"
    both = [(Place.of(url) / "one").folder for url in ("s3://bucket/a", "s3://bucket/b")]
    assert both[0].parent != both[1].parent and {one.name for one in both} == {"one"}
