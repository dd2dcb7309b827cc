"""The command line: what it prints, how it ends, and what it says to typing errors."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import neurodl as ndl
from neurodl import doctor


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["dmeo"], 2, "there is no command 'dmeo'. Did you mean 'demo'?"),
        (["run"], 2, "neurodl run: the following arguments are required: study.toml"),
        (["run", "x.toml", "--ot", "y"], 2, "no option '--ot'. Did you mean '--out' or '--on'?"),
        (["run", "x.toml", "y.toml"], 2, "no further argument 'y.toml'"),
        (["--verison"], 2, "no option '--verison'. Did you mean '--version'?"),
        (["run", "nothing.toml"], 1, "The study file nothing.toml does not exist."),
        (["report", "nothing.nc"], 1, "nothing.nc does not exist."),
        (["datasets", "info", "simulatd"], 1, "Did you mean 'simulated'"),
        (["backbones", "--search", "rsenet"], 1, "No backbone's name contains 'rsenet'."),
        (["backbones", "resnet18"], 1, "Use 'torchvision:resnet18'"),
        (["demo", "--seed", "one"], 2, "argument --seed: invalid int value: 'one'"),
        (["demo", "--backbone", "gabor"], 1, "name a network to compare with"),
        (["demo", "--weights", "w.pth"], 1, "The weights w.pth do not exist."),
        (["demo", "--pretrained", "--weights", "w.pth"], 2, "not allowed with argument"),
    ],
)
def test_wrong_use_is_one_clear_message(run, tmp_path, monkeypatch, arguments, status, expected):
    monkeypatch.chdir(tmp_path)
    ended, printed, said = run(*arguments)
    assert ended == status
    assert expected in said
    assert "Traceback" not in said
    assert printed == ""
    assert not list(tmp_path.iterdir())


def test_without_a_command_the_help_is_printed(run):
    status, printed, _ = run()
    assert status == 2
    assert all(f"    {command}" in printed for command in ("demo", "run", "cache", "doctor"))


def test_version(run):
    assert run("--version")[:2] == (0, f"neurodl {ndl.__version__}\n")


def test_help_loads_no_heavy_packages():
    code = (
        "import sys; from neurodl.cli import main; main(['run', '--help']);"
        "print([n for n in ('torch', 'numpy', 'xarray', 'nilearn') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")


def test_threads_wait_passively_unless_told_otherwise(run, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    run("--version")
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    run("--version")
    assert os.environ["OMP_WAIT_POLICY"] == "active"


def test_debug_shows_the_traceback(run):
    with pytest.raises(ndl.NeurodlError):
        run("run", "nothing.toml", "--debug")


def test_ctrl_c_says_that_finished_features_are_kept(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("neurodl.study.load_sweep", interrupted)
    status, _, said = run("run", "study.toml")
    assert status == 130
    assert "run it again to go on" in said


def test_a_defect_is_not_taken_for_wrong_use(run, monkeypatch):
    def defect(*_):
        return int("x")

    monkeypatch.setattr("neurodl.study.load_sweep", defect)
    # int() raises inside this file, which is not part of the package
    with pytest.raises(ValueError, match="invalid literal"):
        run("run", "study.toml")


def test_run_checks_a_study_and_runs_it(run, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 28, 28, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    np.save(tmp_path / "responses.npy", images[:, 10, :4, 0].astype("float32"))
    study = tmp_path / "study.toml"
    study.write_text("""
[study]
name = "tiny"
[stimuli]
path = "images.npz"
[responses]
path = "responses.npy"
[[features]]
backbone = "pixels"
""")
    status, printed, said = run("run", study, "--check")
    assert (status, printed) == (0, f"{study} is fine: 1 feature spaces (pixels).\n")
    assert not (tmp_path / "results").exists()
    status, printed, said = run("run", study, "--out", tmp_path / "out")
    assert status == 0
    assert printed.splitlines()[1] == f"Report: {tmp_path / 'out' / 'report.html'}"
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    study.write_text(study.read_text().replace("[stimuli]", "[stimulus]"))
    status, _, said = run("run", study)
    assert status == 1
    assert "[stimulus]: there is no such section. Did you mean 'stimuli'?" in said


def test_report_of_saved_scores(run, tmp_path):
    r = xr.DataArray([[[0.4, 0.6]]], dims=("layer", "fold", "unit"), coords={"layer": ["a"]})
    ndl.save(xr.Dataset({"r": r, "r2": r**2}), tmp_path / "scores.nc")
    status, printed, _ = run("report", tmp_path, "--title", "Two <units>")
    assert status == 0
    assert printed.startswith("a predicts the units: r = 0.50")
    assert "Two &lt;units&gt;" in (tmp_path / "report.html").read_text()


def test_datasets_and_backbones_are_listed(run):
    assert "simulated" in run("datasets")[1]
    assert "licence" in run("datasets", "info", "simulated")[1]
    found = run("backbones", "--search", "vit_tiny")[1].splitlines()
    assert "timm:vit_tiny_patch16_224" in found
    assert all("vit_tiny" in name for name in found)
    small = run("backbones", "--search", "vit_tiny_patch16_2", "--max-params", "5.75M")[1]
    assert "     5.7 M  timm:vit_tiny_patch16_224" in small.splitlines()
    assert "augreg_in21k\n" not in small  # its 21843 classes make it larger
    status, _, said = run("backbones", "--max-params", "many")
    assert (status, "--max-params" in said) == (2, True)
    limited = run("backbones", "--limit", "3")[1].splitlines()
    assert len(limited) == 4
    assert limited[3].startswith("... and ")
    described = run("backbones", "torchvision:alexnet")[1]
    assert "61,100,840" in described
    assert "features.3" in described


def test_the_cache_is_listed_pruned_and_verified(run, tmp_path):
    images = np.zeros((3, 8, 8), np.uint8)
    ndl.extract_features("pixels", ndl.Stimuli.from_arrays(images), cache=tmp_path)
    place = ("--folder", tmp_path)
    assert "1 layers" in run("cache", "list", *place)[1]
    assert "0 layers (0.0 MB) damaged" in run("cache", "verify", *place)[1]
    assert "1 layers" in run("cache", "prune", *place, "--max-size", "1k", "--dry-run")[1]
    assert "removed" in run("cache", "prune", *place, "--max-size", "1k")[1]
    assert "0 layers" in run("cache", "list", *place)[1]
    assert "Did you mean 'list'" in run("cache", "lst")[2]
    assert "only for `neurodl cache prune`" in run("cache", "list", "--days", "3")[2]


def test_doctor_finds_what_is_there(run, tmp_path, monkeypatch):
    monkeypatch.setenv("NEURODL_CACHE", str(tmp_path))
    status, printed, _ = run("doctor")
    assert status == 0
    assert f"cache          {tmp_path}" in printed
    assert np.__version__ in printed


def test_doctor_says_what_is_missing_and_how_to_get_it(run, tmp_path, monkeypatch):
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "timm" else version(name))
    monkeypatch.setattr(doctor, "_importable", lambda name: "not there")
    monkeypatch.setattr(doctor, "LEAST_SPACE", 2**70)
    status, printed, _ = run("doctor")
    assert status == 1
    lacking = [line for line in printed.splitlines() if line.startswith("LACK")]
    assert [line.split()[1] for line in lacking] == ["packages", "video", "disk"]
    assert "-m pip install timm" in printed
    assert "export NEURODL_CACHE" in printed
    assert printed.rstrip().endswith("3 things to mend.")


@pytest.mark.slow
def test_demo_recovers_most_of_the_known_ceiling(run, tmp_path):
    status, printed, said = run("demo", "--out", tmp_path / "demo")
    assert status == 0
    lines = [line.split() for line in printed.splitlines()]
    means = {line[0]: [float(r) for r in line[1:]] for line in lines if "/" in (line or [""])[0]}
    by_roi = {name: dict(zip(lines[3], values, strict=True)) for name, values in means.items()}
    gabor, pixels = by_roi["gabor/energy"], by_roi["pixels/pixels"]
    assert gabor["V1"] > 0.4 > pixels["V1"] + 0.2
    assert all(abs(scores["noise"]) < 0.05 for scores in by_roi.values())
    shares = {line[0]: int(line[4][:-1]) for line in lines if line and line[-1].startswith("0.7")}
    assert shares["V1"] > 60
    assert "torchvision:resnet18: untrained, seed 0" in printed
    assert printed.rstrip().endswith("report.html")
    status, _, said = run("demo", "--out", tmp_path)
    assert status == 1
