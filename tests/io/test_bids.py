"""read_bids on small folders laid out raw and as fMRIPrep leaves them."""

from __future__ import annotations

import json
import logging

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from nilearn.interfaces.fmriprep import load_confounds
from nilearn.signal import clean

from neurodl.errors import (
    FileFormatError,
    MissingFileError,
    PairingError,
    SchemaError,
    UnknownNameError,
)
from neurodl.features.design import event_design
from neurodl.io.bids import read_bids
from neurodl.io.nifti import read_nifti

SHAPE = (4, 5, 3)
N_TIMES = 30
SPACE = "_space-MNI152NLin2009cAsym"


def write_image(path, values, tr=2.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, np.diag([3.0, 3, 3, 1]))
    image.header.set_xyzt_units("mm", "sec")
    if values.ndim == 4:
        image.header["pixdim"][4] = tr
    nib.save(image, path)


def write_events(path, kinds=("face", "house", "face")):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{10 * n + 2.5}\t5\t{kind}\n" for n, kind in enumerate(kinds)]
    path.write_text("onset\tduration\ttrial_type\n" + "".join(rows))


def bold(seed):
    return np.random.default_rng(seed).normal(1000, 30, (*SHAPE, N_TIMES)).astype(np.float32)


@pytest.fixture
def raw(tmp_path):
    """Make a raw dataset: sub-01 with two runs of task-objects, and one of another task."""
    root = tmp_path / "ds[1]"  # brackets mean something to glob
    func = root / "sub-01" / "func"
    for number, run in enumerate(("10", "2")):
        stem = f"sub-01_task-objects_run-{run}"
        write_image(func / f"{stem}_bold.nii.gz", bold(number))
        write_events(func / f"{stem}_events.tsv", ("face", "house", f"only{run}"))
    write_image(func / "sub-01_task-rest_bold.nii.gz", bold(9))
    (root / "task-objects_bold.json").write_text(json.dumps({"RepetitionTime": 2.0}))
    return root


@pytest.fixture
def mask():
    return nib.Nifti1Image(np.ones(SHAPE, np.uint8), np.diag([3.0, 3, 3, 1]))


def add_fmriprep(raw, name="fmriprep", spaces=(SPACE,)):
    """Add derivatives: preprocessed runs, brain masks that differ by run, and confounds."""
    func = raw / "derivatives" / name / "sub-01" / "func"
    rng = np.random.default_rng(7)
    for number, run in enumerate(("10", "2")):
        stem = f"sub-01_task-objects_run-{run}"
        for space in spaces:
            write_image(func / f"{stem}{space}_desc-preproc_bold.nii.gz", bold(number) + 500)
            inside = np.ones(SHAPE, np.uint8)
            inside[number] = 0
            write_image(func / f"{stem}{space}_desc-brain_mask.nii.gz", inside)
            about = {"RepetitionTime": 2.0, "StartTime": 1.0, "SliceTimingCorrected": True}
            (func / f"{stem}{space}_desc-preproc_bold.json").write_text(json.dumps(about))
        names = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
        table = pd.DataFrame(rng.normal(size=(N_TIMES, 8)), columns=[*names, "csf", "white_matter"])
        table["framewise_displacement"] = [np.nan] + [0.1] * 11 + [3.0] + [0.1] * 17
        table["std_dvars"] = [np.nan] + [1.0] * 29
        table.to_csv(
            func / f"{stem}_desc-confounds_timeseries.tsv", sep="\t", na_rep="n/a", index=False
        )
        (func / f"{stem}_desc-confounds_timeseries.json").write_text("{}")
    return func


def test_reads_raw_runs_and_events_in_order(raw, mask):
    responses, events = read_bids(raw, subject="01", task="objects", mask=mask, detrend=1)
    func = raw / "sub-01" / "func"
    paths = [func / f"sub-01_task-objects_run-{run}_bold.nii.gz" for run in ("2", "10")]
    expected = read_nifti(paths, mask, runs=["2", "10"], detrend=1)
    xr.testing.assert_equal(responses, expected)
    assert responses.attrs == {**expected.attrs, "task": "objects"}
    assert responses.attrs["subject"] == "sub-01"
    assert events["run"].tolist() == ["2"] * 3 + ["10"] * 3
    assert events["onset"].tolist() == [2.5, 12.5, 22.5] * 2
    assert events["trial_type"].tolist() == ["face", "house", "only2", "face", "house", "only10"]
    design = event_design(events, responses)
    assert design.sizes == {"time": 2 * N_TIMES, "feature": 4}


def test_prefixes_and_single_runs(raw, mask):
    responses, events = read_bids(
        raw, subject="sub-01", task="task-objects", runs=["10"], mask=mask, zscore=True
    )
    assert set(responses["run"].values) == set(events["run"]) == {"10"}
    assert responses.attrs["units"] == "z-scored BOLD"
    with pytest.raises(UnknownNameError, match="no run '1'. Did you mean '10'"):
        read_bids(raw, subject="01", task="objects", runs=["1"], mask=mask)


def test_a_run_without_a_number_is_run_1_and_may_have_no_events(raw, mask, caplog):
    with caplog.at_level(logging.WARNING):
        responses, events = read_bids(raw, subject="01", task="rest", mask=mask)
    assert set(responses["run"].values) == {"1"}
    assert events.empty
    assert {"onset", "duration", "trial_type", "run"} <= set(events)
    assert "no run has an events.tsv" in caplog.text


def test_events_are_inherited_from_above(raw, mask):
    for path in (raw / "sub-01" / "func").glob("*events.tsv"):
        path.unlink()
    write_events(raw / "task-objects_events.tsv", ["shared"])
    write_events(raw / "task-rest_events.tsv", ["wrong"])
    write_events(raw / "sub-01" / "sub-01_task-objects_run-2_events.tsv", ["own"])
    _, events = read_bids(raw, subject="01", task="objects", mask=mask)
    assert events["trial_type"].tolist() == ["own", "shared"]


def test_sessions_are_told_apart(tmp_path, mask):
    for number, session in enumerate(("A", "B")):
        func = tmp_path / "sub-01" / f"ses-{session}" / "func"
        stem = func / f"sub-01_ses-{session}_task-objects_run-1"
        write_image(stem.with_name(stem.name + "_bold.nii.gz"), bold(number))
        write_events(stem.with_name(stem.name + "_events.tsv"), [session])
    responses, events = read_bids(tmp_path, subject="01", task="objects", mask=mask)
    assert list(dict.fromkeys(responses["run"].values)) == ["ses-A_run-1", "ses-B_run-1"]
    assert responses["session"].values.tolist() == ["A"] * N_TIMES + ["B"] * N_TIMES
    assert events["run"].tolist() == ["ses-A_run-1", "ses-B_run-1"]
    assert events["session"].tolist() == events["trial_type"].tolist() == ["A", "B"]
    assert event_design(events, responses)[N_TIMES + 4, 1] > 0
    one, events = read_bids(tmp_path, subject="01", task="objects", session="ses-B", mask=mask)
    assert set(one["run"].values) == {"1"}
    np.testing.assert_array_equal(one, responses[N_TIMES:])
    assert events["run"].tolist() == ["1"]


def test_preprocessed_runs_come_first_with_the_masks_of_all_runs(raw, mask):
    func = add_fmriprep(raw)
    responses, events = read_bids(raw, subject="01", task="objects")
    assert responses.sizes == {"time": 2 * N_TIMES, "voxel": np.prod(SHAPE) // 4 * 2}
    assert set(responses["i"].values) == {2, 3}
    first = nib.load(func / f"sub-01_task-objects_run-2{SPACE}_desc-preproc_bold.nii.gz")
    expected = np.moveaxis(first.get_fdata()[2:].reshape(-1, N_TIMES), -1, 0)
    np.testing.assert_allclose(responses[:N_TIMES], expected, rtol=1e-6)
    assert responses.attrs["space"] == "MNI152NLin2009cAsym"
    assert responses.attrs["slice_time_ref"] == 0.5
    assert events["run"].tolist() == ["2"] * 3 + ["10"] * 3
    only_raw, _ = read_bids(raw, subject="01", task="objects", derivatives=None, mask=mask)
    assert only_raw.mean() < responses.mean() - 400


@pytest.mark.parametrize("inside", [True, False])
def test_derivatives_may_lie_anywhere(raw, tmp_path, inside):
    add_fmriprep(raw)
    by_default, _ = read_bids(raw, subject="01", task="objects")
    folder = "derivatives/fmriprep"
    if not inside:
        folder = (raw / folder).rename(tmp_path / "elsewhere")
    responses, events = read_bids(raw, subject="01", task="objects", derivatives=folder)
    xr.testing.assert_identical(responses, by_default)
    assert len(events) == 6


def test_spaces_must_be_chosen(raw):
    add_fmriprep(raw, spaces=(SPACE, "_space-T1w", ""))
    with pytest.raises(PairingError, match="They differ in 'space'.*such as space="):
        read_bids(raw, subject="01", task="objects")
    responses, _ = read_bids(raw, subject="01", task="objects", space="T1w")
    assert responses.attrs["space"] == "T1w"
    assert set(responses["i"].values) == {2, 3}
    native, _ = read_bids(raw, subject="01", task="objects", filters={"space": ""})
    np.testing.assert_array_equal(native, responses)


def test_pipelines_must_be_chosen(raw):
    add_fmriprep(raw)
    add_fmriprep(raw, "other")
    with pytest.raises(PairingError, match="'derivatives/fmriprep', 'derivatives/other'"):
        read_bids(raw, subject="01", task="objects")


def test_echoes_must_be_chosen(raw, mask):
    func = raw / "sub-01" / "func"
    for echo in "12":
        name = f"sub-01_task-echo_run-1_echo-{echo}_bold.nii.gz"
        write_image(func / name, bold(int(echo)))
    with pytest.raises(PairingError, match="differ in 'echo'.*filters={'echo': '1'}"):
        read_bids(raw, subject="01", task="echo", mask=mask)
    second, _ = read_bids(raw, subject="01", task="echo", mask=mask, filters={"echo": "2"})
    np.testing.assert_allclose(second[0], bold(2)[..., 0].ravel(), rtol=1e-6)


def test_confounds_are_regressed_out_of_each_run_as_by_nilearn(raw):
    func = add_fmriprep(raw)
    raw_values, _ = read_bids(raw, subject="01", task="objects")
    responses, _ = read_bids(
        raw, subject="01", task="objects", confounds=("motion", "wm_csf"),
        confounds_options={"motion": "basic"}, detrend=True, zscore=True,
    )  # fmt: skip
    assert responses.attrs["units"] == "z-scored BOLD"
    assert responses.attrs["n_censored"] == 0
    for run in ("2", "10"):
        path = func / f"sub-01_task-objects_run-{run}{SPACE}_desc-preproc_bold.nii.gz"
        confounds, _ = load_confounds(str(path), strategy=("motion", "wm_csf"), motion="basic")
        rows = raw_values["run"].values == run
        expected = clean(
            raw_values.values[rows].astype(float), confounds=confounds, standardize="zscore_sample"
        )
        np.testing.assert_allclose(responses[rows], expected, atol=1e-4)


def test_scrubbed_volumes_are_left_out_at_their_times(raw, caplog):
    func = add_fmriprep(raw)
    with caplog.at_level(logging.WARNING):
        responses, events = read_bids(
            raw, subject="01", task="objects", confounds=("motion", "scrub"),
            confounds_options={"motion": "basic", "scrub": 0}, zscore=True,
        )  # fmt: skip
    path = func / f"sub-01_task-objects_run-2{SPACE}_desc-preproc_bold.nii.gz"
    confounds, kept = load_confounds(
        str(path), strategy=("motion", "scrub"), motion="basic", scrub=0
    )
    assert 0 < len(kept) < N_TIMES
    first = responses[: len(kept)]
    np.testing.assert_array_equal(first["time"], kept * 2.0)
    assert responses.sizes["time"] == 2 * len(kept)
    assert responses.attrs["n_censored"] == 2 * (N_TIMES - len(kept))
    assert "censored" in caplog.text
    whole, _ = read_bids(raw, subject="01", task="objects")
    expected = clean(
        whole.values[:N_TIMES].astype(float), confounds=confounds, sample_mask=kept,
        detrend=False, standardize="zscore_sample",
    )  # fmt: skip
    np.testing.assert_allclose(first, expected, atol=1e-4)
    assert event_design(events, responses).sizes["time"] == 2 * len(kept)


def test_confounds_that_cannot_be_had(raw, mask):
    ask = {"subject": "01", "task": "objects", "mask": mask}
    with pytest.raises(MissingFileError, match="come from fMRIPrep.*derivatives="):
        read_bids(raw, confounds=["motion"], **ask)
    func = add_fmriprep(raw)
    with pytest.raises(UnknownNameError, match="'motoin'. Did you mean 'motion'"):
        read_bids(raw, confounds=["motoin"], **ask)
    with pytest.raises(FileFormatError, match="Cannot load the confounds of .*run-2.*global"):
        read_bids(raw, confounds=["global_signal"], **ask)
    table = func / "sub-01_task-objects_run-2_desc-confounds_timeseries.tsv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-4]))
    with pytest.raises(PairingError, match="Run '2' has 30 volumes, but 26 rows of confounds"):
        read_bids(raw, confounds=["wm_csf"], **ask)


def test_the_tr_of_json_and_header_must_agree(raw, mask):
    ask = {"subject": "01", "task": "objects", "mask": mask}
    about = raw / "sub-01" / "func" / "sub-01_task-objects_run-2_bold.json"
    about.write_text(json.dumps({"RepetitionTime": 1.0}))
    with pytest.raises(SchemaError, match="different TRs .run 2: 1.0 s, run 10: 2.0 s"):
        read_bids(raw, **ask)
    with pytest.raises(SchemaError, match="1 s by the JSON file, but 2 s by the header"):
        read_bids(raw, runs=["2"], **ask)
    assert read_bids(raw, tr=1.0, **ask)[0].attrs["tr"] == 1
    about.write_text("{")
    with pytest.raises(FileFormatError, match="run-2_bold.json"):
        read_bids(raw, **ask)


def test_the_json_gives_the_tr_that_a_header_lacks(raw, mask):
    write_image(raw / "sub-01" / "func" / "sub-01_task-rest_bold.nii.gz", bold(9), tr=0)
    (raw / "task-rest_bold.json").write_text(json.dumps({"RepetitionTime": 1.5}))
    responses, _ = read_bids(raw, subject="01", task="rest", mask=mask)
    assert responses.attrs["tr"] == 1.5
    assert responses["time"].values[1] == 1.5


def test_what_is_not_there_is_named(raw, tmp_path, mask):
    with pytest.raises(MissingFileError, match="nowhere does not exist"):
        read_bids(tmp_path / "nowhere", subject="01", task="objects")
    with pytest.raises(
        MissingFileError, match="sub-01_[*]task-object[*]_bold.*subjects there are 'sub-01'"
    ):
        read_bids(raw, subject="01", task="object")
    with pytest.raises(MissingFileError, match="subjects there are 'sub-01'"):
        read_bids(raw, subject="02", task="objects")
    with pytest.raises(MissingFileError, match="derivatives prep do not exist"):
        read_bids(raw, subject="01", task="objects", derivatives="prep")
    (raw / "sub-01" / "func" / "sub-01_task-objects_run-2_events.tsv").unlink()
    with pytest.raises(MissingFileError, match="runs '2' have no events.tsv.*runs="):
        read_bids(raw, subject="01", task="objects", mask=mask)
