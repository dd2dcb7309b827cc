"""Haxby et al. (2001), subject 1, one slice: what an honest pipeline finds in 12 runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict, cross_val_score
from sklearn.svm import LinearSVC

from neurodl.features.design import event_design
from neurodl.io.events import read_events
from neurodl.io.nifti import read_nifti
from neurodl.responses import select, single_trial_betas, zscore_runs

CATEGORIES = ["face", "house", "shoe", "cat", "scissors", "scrambledpix", "bottle", "chair"]
FIR = {"hrf": None, "delays": [1, 2, 3, 4]}


@pytest.fixture(scope="module")
def folder(recordings):
    return recordings / "haxby2001_slice"


@pytest.fixture(scope="module")
def run_folders(folder):
    return sorted(folder.glob("haxby2001/sub001/BOLD/task001_run*"))


@pytest.fixture(scope="module")
def responses(folder, run_folders):
    paths = [run / "bold_1slice.nii.gz" for run in run_folders]
    return read_nifti(paths, folder / "mask.nii.gz", detrend=2, zscore=True)


@pytest.fixture(scope="module")
def events(run_folders):
    tables = [read_events(run / "bold_events.tsv") for run in run_folders]
    return pd.concat(
        [table.assign(run=str(number + 1)) for number, table in enumerate(tables)],
        ignore_index=True,
    )


def correlation(predicted, observed):
    """Return Pearson's r of each column."""
    predicted, observed = predicted - predicted.mean(0), observed - observed.mean(0)
    norms = np.sqrt(np.square(predicted).sum(0) * np.square(observed).sum(0))
    return (predicted * observed).sum(0) / norms


def out_of_run(design, responses):
    """Return predictions of each run by a ridge fitted to the others: scikit-learn's, alpha 1."""
    return cross_val_predict(
        Ridge(alpha=1.0), design.values.astype(float), responses.values.astype(float),
        groups=responses["run"].values, cv=LeaveOneGroupOut(),
    )  # fmt: skip


def test_the_slice_is_read_as_it_was_published(folder, run_folders, responses):
    paths = [run / "bold_1slice.nii.gz" for run in run_folders]
    runs = read_nifti(paths, folder / "mask.nii.gz")
    assert runs.sizes == {"time": 12 * 121, "voxel": 530}
    assert runs.attrs["tr"] == 2.5
    assert runs.attrs["shape"] == [40, 20, 1]
    assert (runs.attrs["n_constant"], runs.attrs["n_missing"]) == (0, 0)
    whole = read_nifti(
        folder / "bold.nii.gz", folder / "mask.nii.gz", runs=np.repeat(range(1, 13), 121)
    )
    xr.testing.assert_identical(whole, runs)
    for run in ("1", "12"):
        one = select(responses, run=run)
        np.testing.assert_allclose(one.mean("time"), 0, atol=1e-5)
        np.testing.assert_allclose(one.std("time", ddof=1), 1, atol=1e-5)


def test_events_agree_with_the_label_of_each_volume(folder, events, responses):
    labels = np.loadtxt(folder / "attributes.txt", dtype=int)
    names = np.array(["rest", *CATEGORIES])[labels[:, 0]]
    np.testing.assert_array_equal(labels[:, 1] + 1, responses["run"].values.astype(int))
    on = event_design(events, responses, hrf=None, delays=[0])
    expected = names[:, None] == on["condition"].values
    np.testing.assert_array_equal(on, expected)


@pytest.mark.parametrize(("how", "published"), [({}, 0.098), (FIR, 0.180)])
def test_categories_predict_held_out_runs(events, responses, how, published):
    from neurodl.models import RidgeCV
    from neurodl.scores import cross_validate

    design = event_design(events, responses, **how)
    scores = cross_validate(
        RidgeCV(alphas=[1.0], standardize=False),
        design,
        responses,
        cv=LeaveOneGroupOut(),
        groups="run",
        keep_predictions=True,
    )
    assert scores.sizes["fold"] == 12
    predicted, observed = scores["predicted"].squeeze(), scores["observed"]
    np.testing.assert_array_equal(observed, responses)
    expected = out_of_run(design, responses)
    np.testing.assert_allclose(predicted, expected, atol=1e-4)
    pooled = correlation(predicted.values, observed.values)
    assert np.isfinite(pooled).all()
    assert pooled.mean() == pytest.approx(published, abs=0.02)
    in_order = np.sort(pooled)
    assert in_order[-53:].mean() == pytest.approx({0.098: 0.350, 0.180: 0.572}[published], abs=0.02)


def test_categories_say_more_than_permuted_ones(events, responses):
    def pooled(table):
        design = event_design(table, responses)
        return correlation(out_of_run(design, responses), responses.values).mean()

    rng = np.random.default_rng(0)
    by_run = events.groupby("run", sort=False)["trial_type"]
    null = [
        pooled(events.assign(trial_type=by_run.transform(lambda kinds: rng.permutation(kinds))))
        for _ in range(20)
    ]
    assert np.mean(null) == pytest.approx(0.057, abs=0.005)
    assert pooled(events) > max(null) + 0.02
    assert pooled(events) > np.mean(null) + 4 * np.std(null)


def test_on_and_off_alone_explain_most(events, responses):
    on = events.assign(trial_type="on")
    for how, published in (({}, 0.071), (FIR, 0.173)):
        design = event_design(on, responses, **how)
        pooled = correlation(out_of_run(design, responses), responses.values)
        assert pooled.mean() == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize("method", ["lss", "lsa"])
def test_single_trial_betas_tell_the_categories_apart(folder, run_folders, events, method):
    paths = [run / "bold_1slice.nii.gz" for run in run_folders]
    runs = read_nifti(paths, folder / "mask.nii.gz")
    betas = zscore_runs(
        single_trial_betas(runs, events, method=method, drift="polynomial", drift_order=2)
    )
    assert betas.sizes == {"presentation": 96, "voxel": 530}
    right = cross_val_score(
        LinearSVC(C=1e-3), betas.values, betas["stimulus"].values,
        groups=betas["run"].values, cv=LeaveOneGroupOut(),
    )  # fmt: skip
    assert right.mean() > 0.59  # chance is 0.125; 0.594 was measured on averaged blocks


def test_a_study_file_gives_the_same_scores(folder, run_folders, events, responses, tmp_path):
    import neurodl as ndl

    listed = {
        name: [(run / name).as_posix() for run in run_folders]
        for name in ("bold_1slice.nii.gz", "bold_events.tsv")
    }
    (tmp_path / "study.toml").write_text(f"""
[study]
name = "haxby"
[responses]
path = {listed["bold_1slice.nii.gz"]}
mask = "{(folder / "mask.nii.gz").as_posix()}"
events = {listed["bold_events.tsv"]}
detrend = 2
zscore = true
[[features]]
design = "glover"
[model]
alphas = [1.0]
standardize = false
[cv]
folds = "leave-one-group-out"
groups = "run"
""")
    scores = ndl.load(ndl.run_study(tmp_path / "study.toml") / "scores.nc")
    expected = ndl.cross_validate(
        ndl.RidgeCV(alphas=[1.0], standardize=False),
        event_design(events, responses),
        responses,
        cv="leave-one-group-out",
        groups="run",
    )
    np.testing.assert_allclose(scores["r"], expected["r"], atol=1e-6)
    assert scores["layer"].values.tolist() == ["glover"]
