"""Ceilings against simulations whose reliability is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.linear_model import Ridge

from neurodl.errors import PairingError, SchemaError, UnknownNameError
from neurodl.metrics import pearson_r, r2
from neurodl.reports import report
from neurodl.scores import cross_validate, noise_ceiling, normalize_score
from neurodl.scores.ceiling import POWERS


def simulate(reliability_of_one, n_stimuli=400, n_repeats=3, n_targets=200, seed=0):
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((n_stimuli, 1, n_targets)) * np.sqrt(reliability_of_one)
    noise = rng.standard_normal((n_stimuli, n_repeats, n_targets)) * np.sqrt(1 - reliability_of_one)
    return xr.DataArray(
        (signal + noise).astype("f4"),
        dims=("stimulus", "repeat", "unit"),
        coords={"stimulus": [f"s{i}" for i in range(n_stimuli)]},
        attrs={"units": "a.u."},
    )


OF_REPEATS = ["ncsnr", "split_half", "leave_one_out", "signal_power", "fev"]


@pytest.mark.parametrize("method", OF_REPEATS)
@pytest.mark.parametrize("n_repeats", [2, 4, 10])
@pytest.mark.parametrize("single", [0.1, 0.5, 0.9])
def test_is_unbiased(method, n_repeats, single):
    responses = simulate(single, n_repeats=n_repeats)
    truth = single / (single + (1 - single) / n_repeats)
    for n_averaged, expected in (("all", truth), ("one", single)):
        estimates = noise_ceiling(responses, method, n_averaged=n_averaged).values
        error = estimates.std() / np.sqrt(len(estimates))
        # What is left is the curvature of a ratio, 1 / n_stimuli.
        assert abs(estimates.mean() - expected) < 4 * error + 1 / 400, n_averaged


@pytest.mark.parametrize("n_subjects", [2, 5])
@pytest.mark.parametrize("shared", [0.1, 0.5])
def test_what_subjects_share_is_unbiased(n_subjects, shared):
    subjects = simulate(shared, n_repeats=n_subjects)
    rng = np.random.default_rng(0)
    responses = []
    for number in range(n_subjects):
        one = subjects.isel(repeat=number)
        gain = np.exp(rng.standard_normal(one.shape[1]))  # units of each subject's own
        order = rng.permutation(len(one))
        responses.append((one * gain.astype("f4") + 3)[order].assign_attrs(one.attrs))
    truth = shared / (shared + (1 - shared) / n_subjects)
    for n_averaged, expected in (("all", truth), ("one", shared)):
        estimates = noise_ceiling(responses, "inter_subject", n_averaged=n_averaged).values
        error = estimates.std() / np.sqrt(len(estimates))
        assert abs(estimates.mean() - expected) < 4 * error + 1 / 400


def test_few_stimuli_do_not_bias_the_variance():
    """With 8 stimuli the variance over trials is not that over stimuli; averaged over targets."""
    responses = simulate(0.5, n_stimuli=8, n_repeats=6, n_targets=20_000)
    found = {name: noise_ceiling(responses, name).values for name in ("ncsnr", "fev")}
    assert abs(np.mean(found["ncsnr"]) - np.mean(found["fev"])) < 0.01


def test_root_is_the_r_of_the_true_model():
    rng = np.random.default_rng(3)
    signal = rng.standard_normal((500, 300))
    measured = signal[:, None] + 1.5 * rng.standard_normal((500, 3, 300))
    responses = simulate(0.5, 500, 3, 300).copy(data=measured.astype("f4"))
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(signal.T, measured.mean(1).T, strict=True)]
    normalized = np.array(r) / np.sqrt(noise_ceiling(responses).values)
    assert abs(normalized.mean() - 1) < 4 * normalized.std() / np.sqrt(300)


@pytest.mark.parametrize("method", OF_REPEATS)
@pytest.mark.parametrize("noise", [0.5, 1.5, 4.0])
def test_the_true_model_scores_1(method, noise):
    """r and r2, each over what noise leaves of it, and only over that."""
    rng = np.random.default_rng(4)
    signal = rng.standard_normal((600, 1, 300))
    measured = signal + noise * rng.standard_normal((600, 4, 300))
    ceiling = noise_ceiling(simulate(0.5, 600, 4, 300).copy(data=measured.astype("f4")), method)
    truth, mean = (torch.as_tensor(one) for one in (signal[:, 0], measured.mean(1)))
    for score in (pearson_r, r2):
        found = xr.DataArray(
            score(truth, mean).numpy(), dims="unit", name=score.__name__.removeprefix("pearson_")
        )
        normalized = normalize_score(found, ceiling).values
        # Where the ceiling itself scatters by a sixth, a mean of ratios to it is above the ratio.
        low = normalized if noise < 4 else np.array(found / ceiling.mean() ** POWERS[found.name])
        error = low.std() / np.sqrt(len(low))
        # Dividing by a variance of 600 stimuli leaves this much of the ceiling out.
        curvature = (1 / float(ceiling.mean()) - 1) / 600
        assert abs(low.mean() - 1) < 4 * error + curvature, found.name
    wrong = normalize_score(found, ceiling, "r").values  # r2 over the root, as peers had it
    assert noise < 1 or wrong.mean() < 0.9


def test_normalized_scores_are_those_of_the_papers():
    """CC_norm of Schoppe et al. and FEVE of Cadena et al., written out for one test set."""
    rng = np.random.default_rng(5)
    signal = rng.standard_normal((200, 1, 30))
    trials = signal + rng.standard_normal((200, 5, 30))
    predicted = signal[:, 0] + 0.7 * rng.standard_normal((200, 30))
    responses = simulate(0.5, 200, 5, 30).copy(data=trials.astype("f4"))
    mean = trials.mean(1)
    power = (trials.sum(1).var(0, ddof=1) - trials.var(0, ddof=1).sum(0)) / (5 * 4)
    covariance = ((predicted - predicted.mean(0)) * (mean - mean.mean(0))).sum(0) / 199
    cc_norm = covariance / np.sqrt(predicted.var(0, ddof=1) * power)
    r = xr.DataArray(
        pearson_r(torch.as_tensor(predicted), torch.as_tensor(mean)).numpy(), dims="unit", name="r"
    )
    found = normalize_score(r, noise_ceiling(responses, "signal_power"))
    np.testing.assert_allclose(found, cc_norm, rtol=1e-4)
    # FEVE: squared error to single trials, without the noise that no model can predict.
    noise = trials.var(1, ddof=1).mean(0)
    error = ((trials - predicted[:, None]) ** 2).mean((0, 1))
    feve = 1 - (error - noise) / (trials.var((0, 1), ddof=1) - noise)
    explained = xr.DataArray(
        r2(torch.as_tensor(predicted), torch.as_tensor(mean)).numpy(), dims="unit", name="r2"
    )
    found = normalize_score(explained, noise_ceiling(responses, "fev"))
    np.testing.assert_allclose(found, feve, atol=0.02)


def test_the_metric_picks_the_root():
    ceiling = xr.DataArray([0.25, 0.005, np.nan], dims="unit", attrs={"units": "reliability"})
    score = xr.DataArray([[0.4, 0.1, 0.2]], dims=("fold", "unit"), name="r")
    assert normalize_score(score, ceiling).values[0, 0] == pytest.approx(0.8)
    assert normalize_score(score.rename("r2"), ceiling).values[0, 0] == pytest.approx(1.6)
    assert np.isnan(normalize_score(score, ceiling).values[0, 1:]).all()
    with pytest.raises(UnknownNameError, match="must be one of"):
        normalize_score(score.rename("mse"), ceiling)
    with pytest.raises(SchemaError, match="square a ceiling of correlations"):
        normalize_score(score, np.sqrt(ceiling).assign_attrs(units="correlation"))
    with pytest.raises(SchemaError, match=r"must lie in \[0, 1\]"):
        normalize_score(score, ceiling * 10)
    with pytest.raises(SchemaError, match="3 values"):
        normalize_score(score, ceiling[:2])


def test_scores_above_1_and_ceilings_near_0_are_counted():
    rng = np.random.default_rng(6)
    X = rng.standard_normal((80, 4)).astype("f4")
    ids = [f"s{i}" for i in range(80)]
    features = xr.DataArray(X, {"stimulus": ids}, ("stimulus", "feature"))
    Y = xr.DataArray(
        np.column_stack([X[:, :2], X[:, :1] + rng.standard_normal((80, 1))]).astype("f4"),
        {"stimulus": ids},
        ("stimulus", "unit"),
        attrs={"units": "a.u."},
    )
    ceiling = xr.DataArray([1.0, 0.3, 0.001], dims="unit")
    scores = cross_validate(Ridge(), features, Y, ceiling=ceiling)
    assert scores.attrs["n_ceiling_too_small"] == 1
    table = report(scores).table
    assert table["n_above_ceiling"].tolist() == [1]
    assert table["n_normalized"].tolist() == [2]
    assert float(scores["r_normalized"][0, 0, 1]) > 1.5  # shown as it is


def test_subjects_must_correspond():
    subjects = simulate(0.5, n_stimuli=20, n_repeats=3, n_targets=4)
    one, other = (subjects.isel(repeat=k) for k in (0, 1))
    with pytest.raises(SchemaError, match="a list of responses"):
        noise_ceiling(subjects, "inter_subject")
    with pytest.raises(SchemaError, match="one subject"):
        noise_ceiling([one, other], "ncsnr")
    with pytest.raises(PairingError, match="1 are only with one"):
        noise_ceiling([one, other[1:]], "inter_subject")
    with pytest.raises(SchemaError, match="targets must correspond"):
        noise_ceiling([one, other[:, 1:]], "inter_subject")
    with pytest.raises(SchemaError, match="at least 2"):
        noise_ceiling([one], "inter_subject")
    with pytest.raises(UnknownNameError, match="Did you mean 'ncsnr'"):
        noise_ceiling(subjects, "ncsr")


@pytest.mark.parametrize("method", ["ncsnr", "fev"])
def test_stimuli_that_a_target_never_saw_do_not_count(method):
    full = simulate(0.4, n_stimuli=600, n_repeats=4)
    values = full.values.copy()
    values[::3] = np.nan
    estimates = noise_ceiling(full.copy(data=values), method).values
    truth = 0.4 / (0.4 + 0.6 / 4)
    assert abs(estimates.mean() - truth) < 4 * estimates.std() / np.sqrt(len(estimates)) + 0.005


def test_unequal_repeats_are_weighed_as_they_are():
    full = simulate(0.4, n_stimuli=600, n_repeats=4)
    values = full.values.copy()
    values[::2, 2:] = np.nan
    estimates = noise_ceiling(full.copy(data=values)).values
    truth = 0.4 / (0.4 + 0.6 * np.mean([1 / 4, 1 / 2]))
    assert abs(estimates.mean() - truth) < 4 * estimates.std() / np.sqrt(len(estimates)) + 0.005


def test_presentations_equal_stacked_repeats():
    stacked = simulate(0.5, n_stimuli=20, n_targets=4)
    flat = stacked.stack(presentation=("stimulus", "repeat")).transpose("presentation", "unit")
    ids = flat["stimulus"].values
    flat = flat.drop_vars(["presentation", "stimulus", "repeat"]).assign_coords(
        stimulus=("presentation", ids)
    )
    np.testing.assert_allclose(noise_ceiling(flat), noise_ceiling(stacked), rtol=1e-6)


def test_constant_and_missing_targets_have_no_ceiling():
    responses = simulate(0.5, n_stimuli=30, n_targets=3)
    responses.values[..., 0] = 2.0
    responses.values[..., 1] = np.nan
    ceiling = noise_ceiling(responses).values
    assert np.isnan(ceiling[:2]).all()
    assert np.isfinite(ceiling[2])


def test_without_repeats_is_an_error():
    with pytest.raises(SchemaError, match="repeated"):
        noise_ceiling(simulate(0.5, n_repeats=1))
