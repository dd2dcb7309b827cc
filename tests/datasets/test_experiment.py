"""Experiments: stimuli and responses meet by id, from files of one's own or a BIDS folder."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import neurodl as ndl
from neurodl.datasets import write_simulated
from neurodl.errors import FileFormatError, MissingFileError, PairingError

IDS = ["0000", "0001", "0002", "0003"]


@pytest.fixture
def stimuli():
    return ndl.Stimuli.from_arrays(np.zeros((4, 8, 8), np.uint8))


@pytest.fixture
def values(rng):
    return rng.standard_normal((4, 2)).astype("float32")


def test_a_bare_array_has_the_order_of_the_stimuli(stimuli, values):
    exp = ndl.Experiment.from_files(stimuli, values, name="mine")
    assert exp.responses["stimulus"].values.tolist() == IDS
    assert repr(exp).startswith("<Experiment 'mine': <Stimuli: 4 images")


def test_rows_with_ids_may_come_in_any_order(stimuli, values):
    exp = ndl.Experiment.from_files(stimuli, values, ids=IDS[::-1])
    np.testing.assert_array_equal(exp.responses.sel(stimulus="0003"), values[0])


def test_what_has_no_partner_is_an_error_or_dropped_on_request(stimuli, values):
    ids = ["0000", "0001", "0002", "x"]
    with pytest.raises(PairingError) as caught:
        ndl.Experiment.from_files(stimuli, values, ids=ids)
    assert "1 responses have unknown stimulus ids ('x')" in str(caught.value)
    assert "1 stimuli have no responses ('0003')" in str(caught.value)
    exp = ndl.Experiment.from_files(stimuli, values, ids=ids, unpaired="drop")
    assert exp.stimuli.ids == exp.responses["stimulus"].values.tolist() == IDS[:3]
    with pytest.raises(PairingError, match="No response belongs to any"):
        ndl.Experiment.from_files(stimuli, values, ids=list("abcd"), unpaired="drop")
    with pytest.raises(ValueError, match="but got 'skip'"):
        ndl.Experiment.from_files(stimuli, values, unpaired="skip")


def test_fewer_rows_than_stimuli_are_never_truncated(stimuli, values):
    with pytest.raises(PairingError, match="3 rows .* but there are 4 stimuli"):
        ndl.Experiment.from_files(stimuli, values[:3])


def test_an_experiment_checks_itself(stimuli, values):
    responses = xr.DataArray(
        values, dims=("stimulus", "unit"), coords={"stimulus": list("abcd")}, attrs={"units": "Hz"}
    )
    with pytest.raises(PairingError, match="4 responses belong to stimuli that are not there"):
        ndl.Experiment(stimuli, responses)


@pytest.fixture
def runs(tmp_path, rng):
    """Two runs of noise, with events, a mask and an atlas; return the folder."""
    atlas = np.zeros((3, 3, 2), np.uint8)
    atlas[1, 1] = 1
    atlas[2, 2] = 2
    nib.Nifti1Image(atlas, np.eye(4)).to_filename(tmp_path / "atlas.nii.gz")
    (tmp_path / "atlas.tsv").write_text("index\tname\n1\tV1\n2\tV4\n")
    for run in (1, 2):
        noise = 100 + rng.standard_normal((3, 3, 2, 60)).astype("float32")
        image = nib.Nifti1Image(noise, np.eye(4))
        image.header.set_zooms((1, 1, 1, 2))
        image.header.set_xyzt_units("mm", "sec")
        image.to_filename(tmp_path / f"run{run}.nii.gz")
        order = IDS if run == 1 else IDS[::-1]
        rows = [f"{10 + 20 * k}\t2\t{name}" for k, name in enumerate(order)]
        (tmp_path / f"run{run}.tsv").write_text("onset\tduration\tstimulus\n" + "\n".join(rows))
    return tmp_path


def from_runs(folder, stimuli, events=("run1.tsv", "run2.tsv"), **options):
    return ndl.Experiment.from_files(
        stimuli,
        [folder / "run1.nii.gz", folder / "run2.nii.gz"],
        mask=folder / "atlas.nii.gz",
        atlas_labels=folder / "atlas.tsv",
        events=[folder / name for name in events] if events else None,
        **options,
    )


def test_runs_events_and_betas_from_files(runs, stimuli):
    series = from_runs(runs, None)
    assert series.responses.sizes == {"time": 120, "voxel": 4}
    assert series.responses["roi"].values.tolist() == ["V1", "V1", "V4", "V4"]
    assert series.events["run"].tolist() == ["1"] * 4 + ["2"] * 4
    exp = from_runs(runs, stimuli, betas={"method": "lsa"})
    assert exp.responses.dims == ("stimulus", "repeat", "voxel")
    betas = ndl.single_trial_betas(series.responses, series.events, method="lsa")
    for name in IDS:
        np.testing.assert_array_equal(
            exp.responses.sel(stimulus=name), betas[betas["stimulus"].values == name]
        )
    apart = from_runs(runs, stimuli, betas={"stack": False, "zscore": True}).responses
    assert apart.dims == ("presentation", "voxel")
    by_run = apart.groupby("run")
    np.testing.assert_allclose(by_run.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(by_run.std(ddof=1), 1, atol=1e-4)


def test_events_must_fit_the_runs(runs, stimuli):
    with pytest.raises(PairingError, match="1 events files for 2 runs"):
        from_runs(runs, None, events=["run1.tsv"])
    with pytest.raises(ValueError, match="`betas` are estimated from time series and `events`"):
        from_runs(runs, stimuli, events=None, betas={})
    table = pd.concat(
        [pd.read_csv(runs / f"run{n}.tsv", sep="\t", dtype=str).assign(run=str(n)) for n in (1, 2)]
    ).astype({"onset": float, "duration": float})
    one = ndl.Experiment.from_files(
        stimuli,
        [runs / "run1.nii.gz", runs / "run2.nii.gz"],
        mask=runs / "atlas.nii.gz",
        atlas_labels={1: "V1", 2: "V4"},
        events=table,
        betas={"method": "lsa"},
    )
    expected = from_runs(runs, stimuli, betas={"method": "lsa"})
    xr.testing.assert_identical(one.responses, expected.responses)


def test_atlas_labels_that_cannot_be_read_are_errors(runs, stimuli):
    (runs / "atlas.tsv").write_text("value\tname\n1\tV1\n")
    with pytest.raises(FileFormatError, match="needs columns 'index' .* and 'name'"):
        from_runs(runs, stimuli)
    (runs / "atlas.tsv").unlink()
    with pytest.raises(MissingFileError, match="atlas labels .* does not exist"):
        from_runs(runs, stimuli)


def test_a_bids_folder_is_one_call(tmp_path):
    folder = write_simulated(tmp_path / "b", n_images=12, n_repeats=2, n_runs=2, image_size=64)
    exp = ndl.Experiment.from_bids(
        folder,
        subject="01",
        task="images",
        stimuli=folder / "stimuli",
        mask=folder / "rois.nii.gz",
        atlas_labels=folder / "rois.tsv",
        betas={"method": "lsa"},
        name="simulated",
    )
    assert exp.responses.sizes == {"stimulus": 12, "repeat": 2, "voxel": 692}
    assert set(exp.responses["stimulus"].values) == set(exp.stimuli.ids)
    assert set(exp.responses["roi"].values) == {"V1", "V2", "V4", "LOC", "noise"}
    truth = ndl.load(folder / "truth.nc")
    areas = {(i, j, k): roi for i, j, k, roi in
             zip(*(truth[c].values for c in ("i", "j", "k", "roi")), strict=True)}  # fmt: skip
    found = zip(*(exp.responses[c].values for c in ("i", "j", "k", "roi")), strict=True)
    assert all(areas[i, j, k] == roi for i, j, k, roi in found)
