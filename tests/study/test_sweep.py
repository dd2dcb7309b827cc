"""Sweeps: which studies a file with lists stands for, what runs again, and what does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import neurodl as ndl
from neurodl.errors import ConfigError, NeurodlError
from neurodl.study import load_study, load_sweep
from neurodl.study import sweep as sweeping

SWEEP = """
[study]
name = "both"
[stimuli]
path = "images"
[responses]
path = "responses.npz"
dims = ["stimulus", "unit"]
[[features]]
backbone = ["pixels", "gabor"]
[[features]]
label = "control"
backbone = "torchvision:resnet18"
pretrained = false
layers = ["maxpool"]
pool = "avg"
[cv]
folds = 2
[run]
device = "cpu"
cache = "cache"
"""
TASKS = ["pixels", "gabor"]
RUN = """
import sys
from neurodl.cli import main
sys.exit(main(["run", sys.argv[1], "--out", sys.argv[2]]))
"""


@pytest.fixture
def file(tmp_path):
    """A study file whose backbone is a list, with its stimuli and responses."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    names = [f"image{number:02d}.png" for number in range(24)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), "uint8")).save(tmp_path / "images" / name)
    write_responses(tmp_path, rng.standard_normal((24, 3)), names)
    (tmp_path / "both.toml").write_text(SWEEP)
    return tmp_path / "both.toml"


def write_responses(folder, values, names):
    np.savez(folder / "responses.npz", responses=values, ids=np.array(names))


def records(folder):
    return {name: json.loads((folder / name / "provenance.json").read_text()) for name in TASKS}


def scores(folder):
    return {name: ndl.load(folder / name / "scores.nc") for name in TASKS}


def states(path, out=None):
    return ndl.plan(path, out).set_index("task")["state"].to_dict()


def test_every_combination_is_a_study(file):
    text = SWEEP.replace('path = "responses.npz"\ndims = ["stimulus", "unit"]\n', "")
    text = text.replace(
        '[stimuli]\npath = "images"\n[responses]\n', "[dataset]\nname = 'simulated'\n"
    )
    file.write_text(text.replace("'simulated'", "'simulated'\nsubject = [1, 'zwei']"))
    tasks = load_sweep(file)
    names = ["1_pixels", "1_gabor", "zwei_pixels", "zwei_gabor"]
    assert [task.name for task in tasks] == names
    assert tasks[3].study.study.title == "both, zwei, gabor"
    assert tasks[3].study.features[0].backbone == "gabor"
    assert tasks[3].study.dataset.subject == "zwei"
    assert {task.study.features[1].label for task in tasks} == {"control"}
    file.write_text(text.replace('backbone = ["pixels", "gabor"]', 'backbone = "pixels"'))
    (one,) = load_sweep(file)
    assert (one.name, one.study) == ("", load_study(file))


def test_a_list_of_one_is_a_sweep(file, run):
    file.write_text(SWEEP.replace('["pixels", "gabor"]', '["pixels"]'))
    status, printed, _ = run("run", str(file), "--check")
    assert (status, printed) == (0, f"{file} is fine: a sweep of 1 (pixels).\n")
    status, printed, _ = run("run", str(file))
    assert status == 0
    assert printed.endswith("index.html\n")
    assert states(file) == {"pixels": "done"}


def test_what_is_wrong_is_said_once(file, run):
    file.write_text(SWEEP.replace("folds = 2", "folds = true"))
    status, printed, said = run("run", str(file))
    assert (status, printed) == (1, "")
    assert said.count("[cv] folds") == 1  # of both studies
    file.write_text(SWEEP.replace('"gabor"]', '"gabro", "resnet"]'))
    said = run("run", str(file))[2]
    assert "'gabro'" in said and "'resnet'" in said
    for listed, expected in (("[]", "empty list"), ('["pixels", "pixels"]', "listed twice")):
        file.write_text(SWEEP.replace('["pixels", "gabor"]', listed))
        with pytest.raises(ConfigError, match=expected):
            load_sweep(file)
    file.write_text(SWEEP)
    with pytest.raises(ConfigError, match="A list makes a sweep of several studies, for run_sweep"):
        ndl.run_study(file)
    assert not (file.parent / "results").exists()


@pytest.mark.slow
def test_only_what_changed_runs_again(file, run, monkeypatch):
    assert states(file) == dict.fromkeys(TASKS, "to do")
    status, printed, _ = run("run", str(file))
    folder = file.parent / "results" / "both"
    assert status == 0
    assert printed.splitlines()[-1] == f"Report: {folder / 'index.html'}"
    page = (folder / "index.html").read_text()
    assert all(f"both ({name})" in page for name in TASKS)
    first = records(folder)

    assert ndl.run_sweep(file) == folder  # nothing to do
    assert records(folder) == first
    assert states(file) == dict.fromkeys(TASKS, "done")

    file.write_text(SWEEP.replace('"gabor"', '"gabor", "pixels_of_tomorrow"'))
    with pytest.raises(ConfigError, match="pixels_of_tomorrow"):
        ndl.run_sweep(file)

    file.write_text(SWEEP.replace('name = "both"', 'name = "both"\ntitle = "Renamed"'))
    assert states(file, folder) == dict.fromkeys(TASKS, "done")  # a title decides no number

    (folder / "gabor" / "provenance.json").unlink()
    assert states(file, folder) == {"pixels": "done", "gabor": "unfinished"}
    ndl.run_sweep(file, folder)
    assert records(folder)["pixels"] == first["pixels"]
    assert records(folder)["gabor"]["key"] == first["gabor"]["key"]

    with np.load(file.parent / "responses.npz") as kept:
        write_responses(file.parent, kept["responses"] + 1, kept["ids"])
    assert states(file, folder) == dict.fromkeys(TASKS, "out of date")
    status, printed, _ = run("plan", str(file), "--out", str(folder))
    assert status == 0
    assert printed.splitlines()[-1] == "2 out of date"


@pytest.mark.slow
def test_one_that_fails_does_not_stop_the_others(file, monkeypatch):
    real = sweeping.run_study

    def broken(study, out):
        if study.features[0].backbone == "pixels":
            raise OSError(28, "No space left on device")
        return real(study, out)

    with monkeypatch.context() as patch:
        patch.setattr(sweeping, "run_study", broken)
        with pytest.raises(NeurodlError, match=r"1 of 2 studies failed.*\n  pixels: .*No space"):
            ndl.run_sweep(file)
    assert states(file) == {"pixels": "to do", "gabor": "done"}
    folder = ndl.run_sweep(file)
    assert states(file) == dict.fromkeys(TASKS, "done")
    assert "both (pixels)" in (folder / "index.html").read_text()


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_to_the_same_results(file):
    """Killed at random moments; two processes then finish it together."""
    whole = scores(ndl.run_sweep(file, file.parent / "whole"))
    (file.parent / "both.toml").write_text(SWEEP.replace('"cache"', '"other cache"'))
    out = file.parent / "killed"
    command = [sys.executable, "-c", RUN, str(file), str(out)]
    environment = os.environ | {"PYTHONPATH": str(Path(ndl.__file__).parents[1])}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    rng = np.random.default_rng(0)
    for wait in rng.uniform(4, 12, 4):
        with subprocess.Popen(command, **quiet) as process:
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                process.kill()
        for name in TASKS:  # what looks whole is whole
            if (out / name / "provenance.json").exists():
                assert ndl.load(out / name / "scores.nc")["r"].identical(whole[name]["r"])
    together = [subprocess.Popen(command, **quiet) for _ in range(2)]
    assert [process.wait(300) for process in together] == [0, 0]
    assert states(file, out) == dict.fromkeys(TASKS, "done")
    for name, found in scores(out).items():
        for variable in found.data_vars:
            assert found[variable].identical(whole[name][variable]), variable
