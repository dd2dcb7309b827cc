"""Running a study: what lies in the results folder, and that the script gives the same numbers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.pipeline import make_pipeline

import neurodl as ndl
from neurodl.errors import (
    AuditError,
    DeviceError,
    NeurodlWarning,
    StorageError,
    UnknownNameError,
)
from neurodl.study import run as running

STUDY = """
[study]
name = "small one"
seed = 1
[stimuli]
path = "{bids}/stimuli"
[bids]
root = "{bids}"
subject = "01"
task = "images"
mask = "{bids}/rois.nii.gz"
atlas_labels = "{bids}/rois.tsv"
[betas]
method = "lsa"
[[features]]
backbone = "pixels"
[[features]]
label = "net"
backbone = "torchvision:resnet18"
pretrained = false
layers = ["maxpool", "layer1"]
concatenate = true
[cv]
folds = 3
[run]
cache = "cache"
"""


@pytest.fixture(scope="module")
def file(bids, tmp_path_factory):
    """A study file."""
    path = tmp_path_factory.mktemp("study") / "small.toml"
    path.write_text(STUDY.format(bids=bids))
    return path


@pytest.fixture(scope="module")
def results(file):
    """The results folder of a study."""
    return ndl.run_study(file)


@pytest.mark.slow
def test_the_results_folder_has_everything(file, results):
    assert results == file.parent / "results" / "small-one"
    names = {path.name for path in results.iterdir()}
    assert {"scores.nc", "report.html", "table.tsv", "study.toml", "analysis.py"} <= names
    assert sum(name.endswith("statmap.nii.gz") for name in names) == 2
    assert not [name for name in names if name.startswith(".")]
    assert len(list((results / "slides").glob("*.png"))) >= 8
    scores = ndl.load(results / "scores.nc")
    layers = ["pixels/pixels", "net/maxpool", "net/layer1", "net/all"]
    assert scores["layer"].values.tolist() == layers
    assert scores.attrs["seed"] == 1
    assert scores["n_features"].values[3] == scores["n_features"].values[1:3].sum()
    table = pd.read_csv(results / "table.tsv", sep="\t").set_index(["layer", "roi"])["r"]
    v1 = scores["r"].sel(layer="net/maxpool").isel(voxel=scores["roi"].values == "V1")
    assert table["net/maxpool", "V1"] == pytest.approx(float(v1.mean()), abs=1e-5)


@pytest.mark.slow
def test_provenance_says_what_was_used(bids, results):
    record = json.loads((results / "provenance.json").read_text())
    assert record["packages"]["numpy"] == np.__version__
    assert record["seed"] == 1
    mask = bids / "rois.nii.gz"
    assert record["inputs_sha256"][str(mask)] == sha256(mask.read_bytes()).hexdigest()
    assert record["layers"]["net/layer1"]["weights"] == "untrained, seed 1"
    files = {path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()}
    assert set(record["files"]) == files - {"provenance.json"}
    assert record["cpu_seconds"] > 0
    assert record["energy_wh"] == pytest.approx(record["cpu_seconds"] * 10 / 3600, rel=0.1)
    assert "energy, estimated" in (results / "report.html").read_text()


@pytest.mark.slow
def test_the_script_reproduces_the_numbers_on_its_own(file, results, tmp_path):
    shutil.rmtree(file.parent / "cache" / "scores")  # it is to score everything itself
    script = tmp_path / "analysis.py"
    script.write_text((results / "analysis.py").read_text())
    environment = os.environ | {"PYTHONPATH": str(Path(ndl.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "analysis.html")
    again, scores = ndl.load(tmp_path / "analysis_scores.nc"), ndl.load(results / "scores.nc")
    for name in ("r", "r2", "alpha", "ceiling", "r_normalized"):
        np.testing.assert_allclose(again[name], scores[name], atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_the_resolved_study_gives_the_same_study(file, results):
    assert ndl.load_study(results / "study.toml") == ndl.load_study(file)


@pytest.mark.slow
def test_a_second_run_replaces_the_first_and_takes_features_from_the_cache(
    file, results, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copytree(results, out, dirs_exist_ok=True)
    record = json.loads((out / "provenance.json").read_text())
    (out / "old_statmap.nii.gz").write_text("of an earlier run")
    (out / "notes.txt").write_text("mine")
    record["files"]["old_statmap.nii.gz"] = "0"
    (out / "provenance.json").write_text(json.dumps(record))

    def never(*_):
        pytest.fail("the network ran again")

    monkeypatch.setattr("neurodl.features.forward.ForwardPass._forward", never)
    assert ndl.run_study(file, out) == out
    assert not (out / "old_statmap.nii.gz").exists()
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "provenance.json").exists()


def test_a_folder_with_something_else_is_left_alone(file, tmp_path):
    (tmp_path / "analysis.py").write_text("print('mine')")
    with pytest.raises(StorageError, match="holds no results of a study"):
        ndl.run_study(file, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["analysis.py"]
    with pytest.raises(StorageError, match="is a file"):
        ndl.run_study(file, file)


def test_a_failed_run_never_looks_finished_and_can_be_run_again(file, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ndl, "cross_validate", broken, raising=False)
        with pytest.raises(OSError, match="No space left"):
            ndl.run_study(file, tmp_path / "out")
    assert not (tmp_path / "out" / "provenance.json").exists()
    running._make_ready(tmp_path / "out")  # does not refuse


def test_a_missing_gpu_is_an_error_before_anything_is_written(file, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    text = file.read_text().replace("[run]", '[run]\ndevice = "cuda"')
    (tmp_path / "gpu.toml").write_text(text)
    with pytest.raises(DeviceError, match="sees 0 CUDA GPUs"):
        ndl.run_study(tmp_path / "gpu.toml", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_own_arrays_saved_features_and_warnings(tmp_path):
    """Bring your own: responses with a NaN neuron, features computed elsewhere."""
    rng = np.random.default_rng(0)
    ids = [f"s{number}" for number in range(40)]
    values = rng.standard_normal((40, 5)).astype("float32")
    array = xr.DataArray(values, dims=("stimulus", "feature"), coords={"stimulus": ids})
    ndl.save({"mine": array}, tmp_path / "features.zarr")
    responses = (values @ rng.standard_normal((5, 3))).T
    responses[1, 7] = np.nan
    np.savez(tmp_path / "responses.npz", responses=responses, ids=np.array(ids))
    (tmp_path / "study.toml").write_text("""
[study]
name = "own"
[responses]
path = "responses.npz"
dims = ["unit", "stimulus"]
roi = ["V4", "V4", "IT"]
[[features]]
path = "features.zarr"
[model]
alphas = [1000.0, 10000.0]
""")
    with pytest.warns(NeurodlWarning, match="To widen the grid"):
        folder = ndl.run_study(tmp_path / "study.toml")
    scores = ndl.load(folder / "scores.nc")
    assert scores["layer"].values.tolist() == ["mine"]
    assert np.isnan(scores["r"].isel(unit=1)).all()
    assert float(scores["r"].isel(unit=[0, 2]).min()) > 0.8
    assert scores.attrs["n_missing"] == 1
    assert (
        "To widen the grid" in json.loads((folder / "provenance.json").read_text())["warnings"][0]
    )
    assert "To widen the grid" in (folder / "report.html").read_text()


def test_an_event_design_is_a_feature_space(bids, tmp_path):
    (tmp_path / "study.toml").write_text(f"""
[study]
name = "design"
[bids]
root = "{bids}"
subject = "01"
task = "images"
mask = "{bids}/mask.nii.gz"
zscore = true
[[features]]
design = "fir"
column = "trial_type"
delays = [1, 2, 3]
[[features]]
design = "glover"
[model]
alphas = [1.0]
[cv]
folds = "leave-one-group-out"
groups = "run"
""")
    scores = ndl.load(ndl.run_study(tmp_path / "study.toml") / "scores.nc")
    assert scores["layer"].values.tolist() == ["fir", "glover"]
    assert scores.sizes["fold"] == 2
    assert scores.attrs["units"] == "z-scored BOLD"


def test_a_dataset_by_name_averages_repeats(tmp_path):
    (tmp_path / "study.toml").write_text("""
[study]
name = "by name"
[dataset]
name = "simulated"
roi = "V1"
options = { n_images = 24, n_repeats = 2, n_runs = 2, image_size = 64 }
[[features]]
backbone = "gabor"
[cv]
folds = 3
""")
    scores = ndl.load(ndl.run_study(tmp_path / "study.toml") / "scores.nc")
    assert (scores.attrs["n_samples"], scores.attrs["n_repeats"]) == (24, 2)
    assert set(scores["roi"].values) == {"V1"}
    assert "r_normalized" in scores


@pytest.mark.parametrize(
    ("features", "chosen", "model"),
    [
        ("kernel = true", 'name = "kernel_ridge"\nkernel = "precomputed"\nalphas = [5.0]',
         ndl.KernelRidgeCV([5.0], kernel="precomputed", seed=0)),
        ("", "pca = 4\nalphas = [5.0]",
         make_pipeline(ndl.StreamedPCA(4), ndl.RidgeCV([5.0], seed=0))),
        ('reduce = "sparse:30"', 'name = "kernel_ridge"\nkernel = "cosine"\nalphas = [0.5]',
         ndl.KernelRidgeCV([0.5], kernel="cosine", seed=0)),
    ],
    ids=["kernels", "pca", "sparse"],
)  # fmt: skip
def test_kernels_components_and_projections_are_scored_as_in_a_script(
    tmp_path, features, chosen, model
):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    responses = images.reshape(40, -1)[:, ::50] @ rng.standard_normal((16, 3))
    np.save(tmp_path / "responses.npy", responses.astype("f4"))
    (tmp_path / "study.toml").write_text(f"""
[study]
name = "one"
[stimuli]
path = "images.npz"
[responses]
path = "responses.npy"
dims = ["stimulus", "unit"]
[[features]]
backbone = "pixels"
{features}
[model]
{chosen}
[cv]
folds = 4
[run]
cache = false
""")
    scores = ndl.load(ndl.run_study(tmp_path / "study.toml") / "scores.nc")
    stimuli = ndl.Stimuli.from_arrays(images)
    if "kernel" in features:
        X = ndl.extract_kernels("pixels", stimuli, cache=False)
    else:
        reduce = "sparse:30" if "sparse" in features else "none"
        X = ndl.extract_features("pixels", stimuli, reduce=reduce, cache=False)
    observed = xr.DataArray(
        responses.astype("f4"), dims=("stimulus", "unit"), coords={"stimulus": stimuli.ids},
        attrs={"units": "a.u."},
    )  # fmt: skip
    expected = ndl.cross_validate(model, X, observed, cv=4)
    np.testing.assert_allclose(scores["r"], expected["r"], atol=1e-6)
    assert float(scores["r"].std()) > 0


def test_a_study_stops_at_leaks_unless_they_are_allowed(tmp_path):
    """Five of the pictures are one; the report of a study that goes on says so at its top."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 24, 24, 3), np.uint8)
    images[20:24] = images[3]
    np.savez(tmp_path / "stimuli.npz", images=images)
    responses = images.reshape(30, -1)[:, :4] + 30 * rng.standard_normal((30, 4))
    np.save(tmp_path / "responses.npy", responses)
    study = """
[study]
name = "copies"
[stimuli]
path = "stimuli.npz"
[responses]
path = "responses.npy"
[[features]]
backbone = "pixels"
"""
    (tmp_path / "study.toml").write_text(study)
    with pytest.raises(AuditError, match=r"copies of training stimuli.*\n.*allow=\['copies'\]"):
        ndl.run_study(tmp_path / "study.toml")
    (tmp_path / "study.toml").write_text(study + '[cv]\nallow = ["copies"]\n')
    folder = ndl.run_study(tmp_path / "study.toml")
    assert "Scored in spite of the audit" in (folder / "report.html").read_text()
    assert 'allow=["copies"]' in (folder / "analysis.py").read_text()
    (tmp_path / "study.toml").write_text(study + '[cv]\nallow = ["copy"]\n')
    with pytest.raises(UnknownNameError, match="Did you mean 'copies'"):
        ndl.run_study(tmp_path / "study.toml", tmp_path / "other")
