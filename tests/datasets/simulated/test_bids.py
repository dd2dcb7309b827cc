"""The written folder, read back by nibabel and by the library's own loaders."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neurodl.datasets.simulated import Simulation, bids, simulate, write_simulated
from neurodl.datasets.simulated.design import (
    RunDesign,
    expected_reliability,
    run_designs,
    scanner_noise,
)
from neurodl.errors import StorageError
from neurodl.io.bids import read_bids
from neurodl.io.store import load
from neurodl.responses import average_repeats, single_trial_betas
from neurodl.stimuli import Stimuli


@pytest.fixture(scope="module")
def scanned(simulation: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the experiment as a folder."""
    return write_simulated(tmp_path_factory.mktemp("scan") / "simulated", simulation)


@pytest.fixture(scope="module")
def designs(simulation: Simulation) -> dict[str, RunDesign]:
    """Return the regressors of its runs."""
    return run_designs(simulation.events, simulation.truth.indexes["stimulus"], 2.0)


@pytest.fixture(scope="module")
def tiny() -> Simulation:
    """Return an experiment that is quickly written."""
    return simulate(n_images=6, n_repeats=1, n_runs=1, image_size=64)


def bold_files(folder: Path) -> list[Path]:
    """Return the runs, in order."""
    return sorted((folder / "sub-01" / "func").glob("*_bold.nii.gz"))


def squared_r(truth: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return the squared correlation over stimuli, per voxel."""
    truth, measured = truth - truth.mean(0), measured - measured.mean(0)
    r2 = (truth * measured).sum(0) ** 2 / ((truth**2).sum(0) * (measured**2).sum(0))
    return np.asarray(r2)


def test_files_share_a_grid_that_is_part_of_the_mni_grid(
    simulation: Simulation, scanned: Path
) -> None:
    """Runs, mask and atlas agree, and whole voxels lie between their corner and the template's."""
    images = [nib.load(path) for path in bold_files(scanned)]
    mask, rois = nib.load(scanned / "mask.nii.gz"), nib.load(scanned / "rois.nii.gz")
    assert len(images) == 5
    for image in [*images, mask, rois]:
        assert image.shape[:3] == mask.shape
        np.testing.assert_array_equal(image.affine, mask.affine)
        assert int(image.header["sform_code"]) == 4
    full = np.reshape(simulation.truth.attrs["affine"], (4, 4))
    offset = np.linalg.inv(full) @ mask.affine
    np.testing.assert_allclose(offset[:3, :3], np.eye(3), atol=1e-6)
    np.testing.assert_allclose(offset[:3, 3], np.rint(offset[:3, 3]), atol=1e-5)
    ijk = np.argwhere(mask.get_fdata() > 0)
    xyz = np.stack([simulation.truth[name].values for name in "xyz"], 1)
    np.testing.assert_allclose(nib.affines.apply_affine(mask.affine, ijk), xyz, atol=1e-4)


def test_atlas_names_the_areas(simulation: Simulation, scanned: Path) -> None:
    """rois.tsv gives the name of each value of rois.nii.gz; mask.nii.gz is where it is not 0."""
    atlas = np.asarray(nib.load(scanned / "rois.nii.gz").dataobj)
    mask = np.asarray(nib.load(scanned / "mask.nii.gz").dataobj)
    names = pd.read_csv(scanned / "rois.tsv", sep="\t").set_index("index")["name"]
    np.testing.assert_array_equal(atlas > 0, mask == 1)
    assert names[atlas[atlas > 0]].tolist() == simulation.truth["roi"].values.tolist()


def test_runs_hold_a_brain_and_a_repetition_time(scanned: Path) -> None:
    """int16 around 1000 in the brain, 0 outside, 2 s per volume; the last response is recorded."""
    image = nib.load(bold_files(scanned)[0])
    assert image.get_data_dtype() == np.int16
    assert image.header.get_zooms()[3] == 2 and image.header.get_xyzt_units() == ("mm", "sec")
    values = np.asarray(image.dataobj)
    inside = (values > 0).all(-1)
    assert (values[~inside] == 0).all()
    assert values[inside].mean() == pytest.approx(1000, rel=0.1)
    assert 0.005 < np.median(values[inside].std(1) / values[inside].mean(1)) < 0.03
    assert 0.3 < inside.mean() < 0.9
    sidecar = json.loads((scanned / "task-images_bold.json").read_text())
    assert sidecar == {"TaskName": "images", "RepetitionTime": 2.0}
    events = pd.read_csv(next((scanned / "sub-01" / "func").glob("*run-1_events.tsv")), sep="\t")
    assert events["onset"].max() + 2 + 14 <= 2 * values.shape[-1]


def test_events_and_images_are_those_of_the_experiment(
    simulation: Simulation, scanned: Path
) -> None:
    """Events cover all presentations, and the image files hold the pixels."""
    responses, events = read_bids(
        scanned, subject="01", task="images", mask=scanned / "mask.nii.gz"
    )
    expected = simulation.events
    assert events["stimulus"].tolist() == expected["stimulus"].tolist()
    assert events["run"].astype(str).tolist() == expected["run"].tolist()
    np.testing.assert_allclose(events["onset"], expected["onset"])
    assert responses.attrs["subject"] == "sub-01" and responses.attrs["space"] == "MNI152"
    stimuli = Stimuli.from_files(scanned / "stimuli")
    assert stimuli.ids == simulation.stimuli.ids
    assert (stimuli[7] == simulation.stimuli[7]).all()
    assert all((scanned / "stimuli" / name).is_file() for name in events["stim_file"])


def test_truth_fits_what_is_read(simulation: Simulation, scanned: Path) -> None:
    """Same voxels in the same order, on the slab's grid; reliabilities between 0 and 1."""
    truth = load(scanned / "truth.nc")
    responses, _ = read_bids(scanned, subject="01", task="images", mask=scanned / "mask.nii.gz")
    for name in "ijkxyz":
        np.testing.assert_allclose(truth[name], responses[name], atol=1e-4)
    np.testing.assert_allclose(truth.attrs["affine"], responses.attrs["affine"])
    assert list(truth.attrs["shape"]) == list(responses.attrs["shape"])
    xr.testing.assert_allclose(
        truth["truth"].drop_vars(list("ijk")), simulation.truth.drop_vars(list("ijk"))
    )
    np.testing.assert_array_equal(truth["reliability"], simulation.reliability)
    np.testing.assert_allclose(truth["reliability_lsa"], truth["reliability"], atol=0.01)
    silent = truth["roi"].values == "noise"
    assert (truth["reliability_lss"].values[silent] == 0).all()
    assert (truth["reliability_lss"] > truth["reliability_lsa"]).values[~silent].mean() > 0.9


@pytest.mark.parametrize("method", ["lsa", "lss"])
def test_betas_recover_the_truth_as_well_as_was_worked_out(scanned: Path, method: str) -> None:
    """The squared correlation of averaged betas with the truth is the expected one."""
    responses, events = read_bids(
        scanned, subject="01", task="images", mask=scanned / "mask.nii.gz"
    )
    truth = load(scanned / "truth.nc")
    betas = average_repeats(single_trial_betas(responses, events, method=method))
    measured = betas.sel(stimulus=truth["stimulus"]).values.astype(float)
    seeing = truth["roi"].values != "noise"
    empirical = squared_r(truth["truth"].values[:, seeing].astype(float), measured[:, seeing])
    expected = truth[f"reliability_{method}"].values[seeing]
    off = empirical - expected
    assert abs(off.mean()) < 3 * off.std() / np.sqrt(len(off)) + 1 / len(measured)
    assert np.corrcoef(empirical, expected)[0, 1] > 0.8
    assert 0.6 < np.sqrt(empirical).mean() < 0.9


@pytest.mark.parametrize("method", ["lsa", "lss"])
def test_estimator_is_the_library_s(
    simulation: Simulation, designs: dict[str, RunDesign], method: str
) -> None:
    """The matrix from which reliabilities are worked out gives the betas that users get."""
    design = designs["1"]
    series = np.random.default_rng(0).normal(size=(len(design.trials), 4)).astype(np.float32)
    responses = xr.DataArray(
        series,
        dims=("time", "voxel"),
        coords={"time": 2.0 * np.arange(len(series))},
        attrs={"tr": 2.0, "units": "BOLD"},
    )
    events = simulation.events[simulation.events["run"] == "1"].drop(columns="run")
    betas = single_trial_betas(responses, events, method=method)
    np.testing.assert_allclose(design.estimator(method) @ series, betas.values, atol=1e-3)


def test_noise_of_the_scan_is_worked_out_exactly(
    simulation: Simulation, designs: dict[str, RunDesign]
) -> None:
    """With it, least squares all is as reliable as the trials; with twice the noise, it is less."""
    noise_sd = scanner_noise(simulation, designs)
    same = expected_reliability(simulation, designs, noise_sd, "lsa")
    np.testing.assert_allclose(same, simulation.reliability, atol=0.01)
    worse = expected_reliability(simulation, designs, 2 * noise_sd, "lsa").values
    ceiling = simulation.reliability.values
    np.testing.assert_allclose(worse, ceiling / (4 - 3 * ceiling), atol=0.01)


def test_a_folder_is_whole_or_not_there(
    tiny: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk is full at the last file, nothing is left, and what was there before stays."""
    folder = tmp_path / "simulated"

    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(bids, "_describe", full_disk)
        with pytest.raises(StorageError, match="No space left"):
            write_simulated(folder, tiny)
        assert list(tmp_path.iterdir()) == []
    write_simulated(folder, tiny)
    before = (folder / "truth.nc").read_bytes()
    monkeypatch.setattr(bids, "_describe", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        write_simulated(folder, tiny, overwrite=True)
    assert list(tmp_path.iterdir()) == [folder]
    assert (folder / "truth.nc").read_bytes() == before


def test_only_a_simulated_folder_is_replaced(tiny: Simulation, tmp_path: Path) -> None:
    """And only when that is asked for."""
    folder = tmp_path / "simulated"
    folder.mkdir()
    write_simulated(folder, tiny)
    with pytest.raises(StorageError, match="overwrite=True"):
        write_simulated(folder, tiny)
    write_simulated(folder, tiny, overwrite=True)
    (folder / "dataset_description.json").write_text('{"Name": "mine"}')
    with pytest.raises(StorageError, match="was not written by"):
        write_simulated(folder, tiny, overwrite=True)
    assert (folder / "truth.nc").is_file()


def test_options_and_a_simulation_exclude_each_other(tiny: Simulation, tmp_path: Path) -> None:
    """An option that would do nothing is an error."""
    with pytest.raises(ValueError, match="'seed' would do nothing"):
        write_simulated(tmp_path / "simulated", tiny, seed=2)


def test_same_seed_same_scan(tiny: Simulation, tmp_path: Path) -> None:
    """Volumes come back number by number; another subject's files are named after it."""
    options: dict[str, Any] = {"n_images": 6, "n_repeats": 1, "n_runs": 1, "image_size": 64}
    one = write_simulated(tmp_path / "one", tiny)
    two = write_simulated(tmp_path / "two", **options)
    first, second = (nib.load(bold_files(folder)[0]) for folder in (one, two))
    np.testing.assert_array_equal(first.dataobj, second.dataobj)
    three = write_simulated(tmp_path / "three", **options, subject=3)
    assert (three / "sub-03" / "func" / "sub-03_task-images_run-1_bold.nii.gz").is_file()
