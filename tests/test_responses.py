"""Repeats, runs, selection, spikes and single-trial betas against independent computations."""

from __future__ import annotations

import warnings

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from nilearn.glm.first_level import FirstLevelModel, make_first_level_design_matrix

from neurodl.errors import NeurodlWarning, PairingError, SchemaError, UnknownNameError
from neurodl.io.nifti import to_image
from neurodl.responses import (
    average_repeats,
    select,
    single_trial_betas,
    stack_repeats,
    zscore_runs,
)
from neurodl.schema import check_responses


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def presentations(rng):
    ids = ["b", "a", "b", "c", "b", "a"]
    return xr.DataArray(
        rng.normal(size=(6, 4)).astype(np.float32),
        dims=("presentation", "voxel"),
        coords={
            "stimulus": ("presentation", ids),
            "run": ("presentation", ["1"] * 3 + ["2"] * 3),
            "roi": ("voxel", ["V1", "V1", "V4", ""]),
            "i": ("voxel", range(4)),
        },
        attrs={"units": "beta", "subject": "sub-01", "n_constant": 1},
    )


def test_stack_repeats(presentations):
    stacked = stack_repeats(presentations)
    assert stacked.dims == ("stimulus", "repeat", "voxel")
    assert stacked["stimulus"].values.tolist() == ["b", "a", "c"]
    assert stacked["n_repeats"].values.tolist() == [3, 2, 1]
    np.testing.assert_array_equal(stacked.sel(stimulus="b"), presentations[[0, 2, 4]])
    np.testing.assert_array_equal(stacked.sel(stimulus="a")[:2], presentations[[1, 5]])
    assert np.isnan(stacked.values).any(2).tolist() == [
        [False, False, False], [False, False, True], [False, True, True],
    ]  # fmt: skip
    assert stacked["roi"].values.tolist() == presentations["roi"].values.tolist()
    assert stacked.attrs == {"units": "beta", "subject": "sub-01"}
    check_responses(stacked)


def test_average_repeats_of_either_form(presentations):
    ids = presentations["stimulus"].values
    expected = pd.DataFrame(presentations.values).groupby(ids, sort=False).mean()
    for form in (presentations, stack_repeats(presentations)):
        averaged = average_repeats(form)
        assert averaged.dims == ("stimulus", "voxel")
        assert averaged.dtype == np.float32
        assert averaged["stimulus"].values.tolist() == ["b", "a", "c"]
        np.testing.assert_allclose(averaged, expected, atol=1e-6)
        assert averaged["n_repeats"].values.tolist() == [3, 2, 1]
        assert averaged["i"].values.tolist() == [0, 1, 2, 3]
        assert averaged.attrs["subject"] == "sub-01"


def test_average_repeats_leaves_missing_values_out(presentations):
    presentations[0, 1] = np.nan
    presentations[3] = np.nan
    averaged = average_repeats(presentations)
    np.testing.assert_allclose(averaged[0, 1], presentations[[2, 4], 1].mean(), rtol=1e-6)
    assert np.isnan(averaged.sel(stimulus="c")).all()
    assert averaged["n_repeats"].values.tolist() == [3, 2, 0]


def test_average_repeats_keeps_time(rng):
    responses = xr.DataArray(
        rng.normal(size=(4, 5, 3)),
        dims=("presentation", "time", "unit"),
        coords={"stimulus": ("presentation", list("aabb")), "time": np.arange(5) * 0.01},
        attrs={"units": "spikes", "bin_width": 0.01},
    )
    averaged = average_repeats(responses)
    assert averaged.dims == ("stimulus", "time", "unit")
    np.testing.assert_allclose(averaged[1], responses[2:].mean("presentation"), rtol=1e-6)


def test_unique_stimuli_are_their_own_average(presentations):
    once = presentations.isel(presentation=[0, 1, 3]).swap_dims(presentation="stimulus")
    averaged = average_repeats(once)
    np.testing.assert_array_equal(averaged, once)
    assert averaged["n_repeats"].values.tolist() == [1, 1, 1]


def test_time_series_have_no_repeats(presentations):
    series = presentations.drop_vars("stimulus").rename(presentation="time")
    series = series.assign_coords(time=np.arange(6.0)).drop_vars("run").assign_attrs(tr=1.0)
    for function in (average_repeats, stack_repeats):
        with pytest.raises(SchemaError, match="single_trial_betas"):
            function(series)
    with pytest.raises(SchemaError, match="repeat"):
        stack_repeats(stack_repeats(presentations))


@pytest.fixture
def series(rng):
    values = rng.normal(100, 3, (50, 6)).astype(np.float32)
    return xr.DataArray(
        values,
        dims=("time", "voxel"),
        coords={
            "time": ("time", np.r_[np.arange(30), np.arange(20)] * 2.0),
            "run": ("time", ["1"] * 30 + ["2"] * 20),
            "roi": ("voxel", list("aabbcc")),
        },
        attrs={"units": "BOLD", "tr": 2.0},
    )


@pytest.mark.parametrize("order", [0, 1, 2])
def test_zscore_runs(series, order):
    scored = zscore_runs(series, detrend=order)
    for rows in (slice(0, 30), slice(30, 50)):
        raw = series.values[rows].astype(float)
        t = np.arange(len(raw))
        fit = np.polynomial.polynomial.polyval(t, np.polynomial.polynomial.polyfit(t, raw, order))
        rest = raw - fit.T
        np.testing.assert_allclose(scored[rows], rest / rest.std(0, ddof=1), atol=1e-5)
    assert scored.attrs == {"units": "z-scored BOLD", "tr": 2.0}
    assert zscore_runs(scored).attrs["units"] == "z-scored BOLD"


def test_zscore_runs_makes_constants_missing_and_counts_them(series):
    series[:30, 2] = 7
    series[30:, 4] = np.arange(20)
    before = series.copy(deep=True)
    with pytest.warns(NeurodlWarning, match="2 of 6 voxels do not vary") as caught:
        scored = zscore_runs(series, detrend=1)
    assert caught[0].filename == __file__
    missing = np.isnan(scored.values)
    assert missing[:30, 2].all()
    assert missing[30:, 4].all()
    assert missing.sum() == 50
    xr.testing.assert_identical(series, before)


def test_zscore_runs_is_for_one_value_per_sample(presentations):
    with pytest.raises(SchemaError, match="sample, target"):
        zscore_runs(stack_repeats(presentations))


def test_select(series, presentations):
    chosen = select(series, roi=["a", "c"], run="2")
    xr.testing.assert_identical(chosen, series.isel(time=slice(30, 50), voxel=[0, 1, 4, 5]))
    assert select(presentations, stimulus="b").sizes["presentation"] == 3
    assert "n_constant" not in select(presentations, roi="V4").attrs


def test_select_names_near_matches(presentations):
    with pytest.raises(UnknownNameError, match="'roi' has no value 'v4'. Did you mean 'V4'"):
        select(presentations, roi=["V1", "v4"])
    with pytest.raises(UnknownNameError, match="no coord 'rois'. Did you mean 'roi'"):
        select(presentations, rois="V1")
    with pytest.raises(UnknownNameError):
        select(presentations, roi="")


TR = 2.0
N_TIMES = (70, 64)


@pytest.fixture
def trials(rng):
    tables = []
    for run, n_times in zip("12", N_TIMES, strict=True):
        n_trials = 10
        onset = np.linspace(4, n_times * TR - 16, n_trials) + rng.uniform(-2, 2, n_trials)
        kinds = rng.permutation(["face", "house"] * 5)
        tables.append(
            pd.DataFrame({"onset": onset, "duration": 1.5, "trial_type": kinds, "run": run})
        )
    return pd.concat(tables, ignore_index=True)


def design_of(run_trials, n_times, hrf="glover"):
    table = run_trials[["onset", "duration"]].assign(
        trial_type=[f"t{n:03d}" for n in range(len(run_trials))]
    )
    return make_first_level_design_matrix(np.arange(n_times) * TR, table, hrf_model=hrf)


@pytest.fixture
def truth(rng, trials):
    return rng.normal(2, 1, (len(trials), 12))


@pytest.fixture
def bold(rng, trials, truth):
    values, times, runs = [], [], []
    for run, n_times in zip("12", N_TIMES, strict=True):
        mine = (trials["run"] == run).values
        regressors = design_of(trials[mine], n_times).iloc[:, : mine.sum()].to_numpy()
        drift = np.linspace(-3, 3, n_times)[:, None] ** 2
        values.append(1000 + drift + regressors @ truth[mine])
        times.append(np.arange(n_times) * TR)
        runs += [run] * n_times
    ijk = np.argwhere(np.ones((3, 2, 2)))
    return xr.DataArray(
        np.concatenate(values).astype(np.float32),
        dims=("time", "voxel"),
        coords={
            "time": ("time", np.concatenate(times)),
            "run": ("time", runs),
            **{name: ("voxel", ijk[:, axis]) for axis, name in enumerate("ijk")},
        },
        attrs={
            "units": "BOLD", "tr": TR, "affine": np.eye(4).ravel().tolist(), "shape": [3, 2, 2],
            "n_constant": 0,
        },
    )  # fmt: skip


def noisy(bold, rng, scale=1.0):
    noise = rng.normal(0, scale, bold.shape)
    noise[1:] += 0.5 * noise[:-1]
    return (bold + noise).astype(np.float32)


def by_first_level_model(bold, trials, method, **options):
    """Fit nilearn's models to images; least squares separate by one model per trial."""
    model = FirstLevelModel(
        t_r=TR, mask_img=nib.Nifti1Image(np.ones((3, 2, 2), np.uint8), np.eye(4)),
        standardize=None, signal_scaling=False,
        **{"noise_model": "ols", "hrf_model": "glover", **options},
    )  # fmt: skip
    betas = []
    for run in "12":
        image = to_image(bold.isel(time=bold["run"].values == run))
        table = trials.loc[trials["run"] == run, ["onset", "duration"]]
        names = [f"t{n:03d}" for n in range(len(table))]
        for n, name in enumerate(names):
            kinds = names if method == "lsa" else ["own" if m == n else "rest" for m in range(10)]
            if n == 0 or method == "lss":
                model.fit(image, events=table.assign(trial_type=kinds))
            own = name if method == "lsa" else "own"
            betas.append(model.compute_contrast(own, output_type="effect_size").get_fdata().ravel())
    return np.array(betas)


@pytest.mark.parametrize("method", ["lss", "lsa"])
@pytest.mark.parametrize("noise_model", ["ols", "ar1"])
@pytest.mark.parametrize("options", [{}, {"hrf": "spm", "drift": "polynomial", "drift_order": 2}])
def test_betas_are_those_of_nilearns_first_level_model(
    bold, trials, rng, method, noise_model, options
):
    responses = noisy(bold, rng)
    betas = single_trial_betas(responses, trials, method=method, noise_model=noise_model, **options)
    renamed = {"hrf": "hrf_model", "drift": "drift_model"}
    same = {renamed.get(name, name): value for name, value in options.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = by_first_level_model(responses, trials, method, noise_model=noise_model, **same)
    np.testing.assert_allclose(betas, expected, atol=1e-4)


def test_betas_recover_the_truth(bold, trials, truth, rng):
    exact = single_trial_betas(bold, trials, method="lsa", drift="polynomial", drift_order=2)
    np.testing.assert_allclose(exact, truth, atol=1e-2)
    responses = noisy(bold, rng, 0.1)
    for method, at_least in (("lss", 0.95), ("lsa", 0.97)):
        betas = single_trial_betas(
            responses, trials, method=method, drift="polynomial", drift_order=2
        )
        assert np.corrcoef(betas.values.ravel(), truth.ravel())[0, 1] > at_least


def test_betas_carry_their_names(bold, trials):
    shuffled = trials.sample(frac=1, random_state=0)
    betas = single_trial_betas(bold, shuffled)
    by_run = shuffled.sort_values("run", kind="stable")
    assert betas.dims == ("presentation", "voxel")
    assert betas.dtype == np.float32
    assert betas["stimulus"].values.tolist() == by_run["trial_type"].tolist()
    assert betas["run"].values.tolist() == by_run["run"].tolist()
    np.testing.assert_array_equal(betas["onset"], by_run["onset"])
    xr.testing.assert_equal(betas["k"], bold["k"])
    assert betas.attrs["units"] == "beta (BOLD)"
    assert betas.attrs["glm"] == "lss, glover, cosine drift below 0.01 Hz, ols"
    assert "n_constant" not in betas.attrs
    check_responses(betas)
    in_order = single_trial_betas(bold, trials)
    np.testing.assert_allclose(betas[:10], in_order[shuffled.query("run == '1'").index], rtol=1e-5)
    named = single_trial_betas(bold, trials.assign(stim_file=[f"{n}.png" for n in range(20)]))
    assert named["stimulus"].values[[0, -1]].tolist() == ["0.png", "19.png"]
    assert named["trial_type"].values.tolist() == trials["trial_type"].tolist()


def test_betas_of_a_single_trial_agree(bold, trials):
    one = trials.groupby("run").head(1)
    lss, lsa = (single_trial_betas(bold, one, method=method) for method in ("lss", "lsa"))
    np.testing.assert_allclose(lss, lsa, rtol=1e-4)


def test_instantaneous_events_are_impulses(bold, trials):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        betas = single_trial_betas(bold, trials.assign(duration=0.0))
    assert np.isfinite(betas).all()


def test_betas_in_per_cent(bold, trials):
    betas = single_trial_betas(bold, trials)
    doubled = bold.copy(data=np.where((bold["run"] == "1").values[:, None], bold * 2, bold))
    percent = single_trial_betas(doubled, trials, percent=True)
    mean = bold.groupby("run").mean().values.repeat(10, 0)
    np.testing.assert_allclose(percent, betas / mean * 100, rtol=1e-3, atol=1e-4)
    assert percent.attrs["units"] == "beta (% signal change)"
    with pytest.raises(SchemaError, match="without detrend and zscore"):
        single_trial_betas(zscore_runs(bold), trials, percent=True)


def test_confounds_enter_the_model(bold, trials, rng):
    motion = {run: rng.normal(size=(n, 2)) for run, n in zip("12", N_TIMES, strict=True)}
    moved = bold + np.concatenate([motion[run] @ [[3.0], [-2.0]] for run in "12"])
    clean, dirty, kept = (
        single_trial_betas(each.astype(np.float32), trials, confounds=confounds)
        for each, confounds in ((bold, motion), (moved, None), (moved, motion))
    )
    np.testing.assert_allclose(kept, clean, atol=1e-3)
    assert np.abs(dirty - clean).max() > 0.1


@pytest.mark.parametrize("method", ["lss", "lsa"])
@pytest.mark.parametrize("noise_model", ["ols", "ar1"])
def test_constant_and_missing_voxels_are_missing_betas(bold, trials, rng, method, noise_model):
    responses = noisy(bold, rng)
    whole = single_trial_betas(responses, trials, method=method, noise_model=noise_model)
    responses[:70, 3] = 9
    responses[5, 7] = np.nan
    with pytest.warns(NeurodlWarning, match="2 of 12 voxels") as caught:
        betas = single_trial_betas(responses, trials, method=method, noise_model=noise_model)
    assert caught[0].filename == __file__
    missing = np.isnan(betas.values)
    assert missing[:10, [3, 7]].all()
    assert missing.sum() == 20
    np.testing.assert_allclose(betas.values[~missing], whole.values[~missing], rtol=1e-4)


def test_censored_volumes_and_slice_time(bold, trials, truth):
    kept = np.setdiff1d(np.arange(134), [0, 1, 2, 30, 31, 90])
    options = {"method": "lsa", "drift": "polynomial", "drift_order": 2}
    betas = single_trial_betas(bold.isel(time=kept), trials, **options)
    assert np.corrcoef(betas.values.ravel(), truth.ravel())[0, 1] > 0.99
    late = trials.assign(onset=trials["onset"] + TR / 2)
    shifted = single_trial_betas(bold.assign_attrs(slice_time_ref=0.5), late, **options)
    np.testing.assert_allclose(shifted, truth, atol=0.15)


def test_events_beyond_the_scan_are_named(bold, trials):
    trials.loc[[4, 15], "onset"] = 500.0
    with pytest.raises(PairingError, match=r"1 events.*run '1'.*0 to 140 s.*row 4 .* at 500.0 s"):
        single_trial_betas(bold, trials)
    trials.loc[[4, 15], "onset"] = 4.0, 127.9
    with pytest.raises(SchemaError, match="1 events of run '2'.*no response.*'127.9'"):
        single_trial_betas(bold, trials)


def test_impossible_trials_are_named(bold, trials):
    with pytest.raises(SchemaError, match="negative duration"):
        single_trial_betas(bold, trials.assign(duration=-1))
    with pytest.raises(SchemaError, match="no 'onset'"):
        single_trial_betas(bold, trials.assign(onset=np.nan))
    twins = trials.assign(onset=trials["onset"].where(trials.index != 3, trials["onset"][2]))
    with pytest.raises(SchemaError, match="1 events of run '1' happen at the same time"):
        single_trial_betas(bold, twins)
    many = pd.DataFrame({"onset": np.arange(0, 100, 1.5), "duration": 1, "trial_type": "x"})
    with pytest.raises(SchemaError, match="method='lsa' has .* for the 70 volumes"):
        single_trial_betas(bold[:70], many.assign(run="1"), method="lsa")
    with pytest.raises(UnknownNameError, match="`method` must be one of"):
        single_trial_betas(bold, trials, method="glm")
    with pytest.raises(SchemaError, match="placed in a time series"):
        single_trial_betas(single_trial_betas(bold, trials), trials)
