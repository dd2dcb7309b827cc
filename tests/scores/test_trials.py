"""Scores of trials: each by its formula written out, and by what simulated neurons should give."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr
from sklearn.linear_model import LinearRegression
from sklearn.metrics import d2_tweedie_score, mean_poisson_deviance

import neurodl as ndl
from neurodl.errors import PairingError, SchemaError, UnknownNameError
from neurodl.metrics import bits_per_spike, poisson_deviance, pseudo_r2
from neurodl.models import PoissonRidgeCV, RidgeCV
from neurodl.scores import trial_scores

IDS = [f"image{number:04d}" for number in range(2000)]


def simulate(n_stimuli=600, n_repeats=8, n_units=60, seed=0, rate=2.0):
    """Return true rates (stimulus, unit) and Poisson trials (stimulus, repeat, unit)."""
    rng = np.random.default_rng(seed)
    true = rng.gamma(2.0, rate / 2.0, (n_stimuli, n_units))
    trials = rng.poisson(true[:, None], (n_stimuli, n_repeats, n_units))
    coords = {"stimulus": IDS[:n_stimuli], "area": ("unit", ["V4"] * n_units)}
    truth = xr.DataArray(true.astype("f4"), coords, ("stimulus", "unit"), attrs={"units": "spikes"})
    observed = xr.DataArray(
        trials.astype("f4"), coords, ("stimulus", "repeat", "unit"), attrs={"units": "spikes"}
    )
    return truth, observed


# --- the three metrics of counts


def test_the_metrics_are_those_of_scikit_learn_and_scipy(rng):
    rate, counts = rng.gamma(2, 1, (80, 5)), rng.poisson(2, (80, 5)).astype(float)
    given = torch.from_numpy(rate), torch.from_numpy(counts)
    ours = {
        "deviance": poisson_deviance(*given),
        "pseudo_r2": pseudo_r2(*given),
        "bits": bits_per_spike(*given),
    }
    for unit in range(5):
        y, p = counts[:, unit], rate[:, unit]
        assert ours["deviance"][unit] == pytest.approx(mean_poisson_deviance(y, p))
        assert ours["pseudo_r2"][unit] == pytest.approx(d2_tweedie_score(y, p, power=1))
        gained = scipy.stats.poisson.logpmf(y, p) - scipy.stats.poisson.logpmf(y, y.mean())
        assert ours["bits"][unit] == pytest.approx(gained.sum() / np.log(2) / y.sum())
    null = torch.full((5,), 1.3, dtype=torch.float64)
    gained = scipy.stats.poisson.logpmf(counts, rate) - scipy.stats.poisson.logpmf(counts, 1.3)
    np.testing.assert_allclose(
        bits_per_spike(*given, null), gained.sum(0) / np.log(2) / counts.sum(0)
    )


def test_metrics_at_their_edges():
    counts = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    assert poisson_deviance(counts, counts).tolist() == [0, 0]
    assert pseudo_r2(counts, counts)[0] == 1 and pseudo_r2(counts, counts)[1].isnan()
    assert bits_per_spike(counts, counts)[1].isnan()
    zero = torch.zeros_like(counts)
    assert poisson_deviance(zero, counts).tolist() == [np.inf, 0]
    assert poisson_deviance(zero - 1, counts).isnan().all()
    mean = counts.mean(0).expand(2, 2)
    assert pseudo_r2(mean, counts)[0] == 0 == bits_per_spike(mean, counts)[0]
    stacked = poisson_deviance(torch.stack([mean, counts]), counts)
    assert stacked.shape == (2, 2)


def test_expected_bits_per_spike_of_the_true_rate():
    """The true rate r of Poisson counts is expected to gain E[r log2(r / E[r])] / E[r]."""
    truth, trials = simulate(2000, 20, 20)
    found = trial_scores(truth, trials)["bits_per_spike"].values
    r = truth.values.astype(float)
    expected = (r * np.log2(r / r.mean(0))).mean(0) / r.mean(0)
    np.testing.assert_allclose(found, expected, rtol=0.03)


# --- trial_scores


def test_every_score_is_its_formula():
    truth, trials = simulate(40, 5, 3)
    rng = np.random.default_rng(1)
    predicted = truth * 0.5 + rng.gamma(1, 1, truth.shape)
    found = trial_scores(predicted, trials)
    for unit in range(3):
        p, y = predicted.values[:, unit].astype(float), trials.values[..., unit].astype(float)
        m, s2 = y.mean(1), y.var(1, ddof=1)
        each = np.repeat(p[:, None], 5, 1)
        assert found["r_single"][unit] == pytest.approx(
            scipy.stats.pearsonr(each.ravel(), y.ravel()).statistic
        )
        assert found["r_mean"][unit] == pytest.approx(scipy.stats.pearsonr(p, m).statistic)
        noise = s2.mean()
        feve = 1 - (np.square(y - each).mean() - noise) / (y.var(ddof=1) - noise)
        assert found["feve"][unit] == pytest.approx(feve, rel=1e-4)
        power = m.var(ddof=1) - noise / 5
        cc_norm = np.cov(p, m)[0, 1] / np.sqrt(p.var(ddof=1) * power)
        assert found["cc_norm"][unit] == pytest.approx(cc_norm, rel=1e-4)
        others = (y.sum(1, keepdims=True) - y) / 4
        oracle = scipy.stats.pearsonr(others.ravel(), y.ravel()).statistic
        assert found["oracle"][unit] == pytest.approx(oracle, rel=1e-4)
        assert found["deviance"][unit] == pytest.approx(
            mean_poisson_deviance(y.ravel(), np.maximum(each.ravel(), 0.01 * y.mean())), rel=1e-4
        )
    assert found["area"].values.tolist() == ["V4"] * 3 and found.attrs["n_trials"] == 200


def test_signal_power_is_that_of_its_paper():
    _, trials = simulate(300, 6, 4)
    y = trials.values.astype(float)
    n = y.shape[1]
    total = y.var(0, ddof=1).mean(0)  # over stimuli, mean of the trials
    sahani = (n * y.mean(1).var(0, ddof=1) - total) / (n - 1)
    ours = y.mean(1).var(0, ddof=1) - y.var(1, ddof=1).mean(0) / n
    np.testing.assert_allclose(ours, sahani, rtol=0.02)


def test_a_model_that_knows_the_rates_scores_1():
    truth, trials = simulate(800, 6, 200)
    found = trial_scores(truth, trials)
    for name in ("feve", "cc_norm"):
        values = found[name].values
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - 1) < 4 * error < 0.02
    assert (found["r_single"] > found["oracle"]).mean() > 0.99
    signal, noise = 2.0, 2.0  # variance of the rates, and of a trial about them
    expected = np.sqrt(signal / (signal + noise))
    assert float(found["r_single"].mean()) == pytest.approx(expected, abs=0.01)
    oracle = signal / np.sqrt((signal + noise) * (signal + noise / 5))
    assert float(found["oracle"].mean()) == pytest.approx(oracle, abs=0.01)


def test_half_of_the_signal_is_half_of_it():
    truth, trials = simulate(1500, 8, 100)
    rng = np.random.default_rng(3)
    other = rng.permuted(truth.values, axis=0)
    half = truth.copy(
        data=2.0 + ((truth.values - 2) + (other - 2)) / 2
    )  # r^2 of 1/2 with the truth
    found = trial_scores(half, trials)
    assert float((found["cc_norm"] ** 2).mean()) == pytest.approx(0.5, abs=0.02)
    assert float(found["feve"].mean()) == pytest.approx(0.5, abs=0.02)
    constant = trial_scores(truth.copy(data=np.full(truth.shape, 2.0, "f4")), trials)
    assert abs(float(constant["feve"].mean())) < 0.02 and constant["r_mean"].isnull().all()


def test_unequal_repeats_and_missing_trials():
    truth, trials = simulate(1000, 8, 60)
    rng = np.random.default_rng(4)
    n = rng.integers(1, 9, 1000)
    trials = trials.where(xr.DataArray(np.arange(8) < n[:, None], dims=("stimulus", "repeat")))
    found = trial_scores(truth, trials.astype("f4").assign_attrs(units="spikes"))
    for name in ("feve", "cc_norm"):
        assert float(found[name].mean()) == pytest.approx(1, abs=0.03)
    assert found.attrs["n_trials"] == n.sum()


def test_presentations_and_predictions_are_paired_by_id():
    truth, trials = simulate(30, 4, 5)
    flat = trials.stack(presentation=("stimulus", "repeat")).transpose("presentation", "unit")
    order = np.random.default_rng(0).permutation(120)
    single = xr.DataArray(
        flat.values[order],
        {"stimulus": ("presentation", flat["stimulus"].values[order].astype(str))},
        ("presentation", "unit"),
        attrs={"units": "spikes"},
    )
    expected = trial_scores(truth, trials)
    found = trial_scores(truth[::-1], single)
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4)
    with pytest.raises(PairingError, match="No stimulus has both"):
        trial_scores(truth.assign_coords(stimulus=[f"x{i}" for i in range(30)]), trials)
    named = [trials.assign_coords(unit=list(names)) for names in ("abcde", "abced")]
    predicted = truth.assign_coords(unit=list("abcde"))
    assert trial_scores(predicted, named[0])["feve"].size == 5
    with pytest.raises(PairingError, match="name 2 units differently, first 'd' and 'e'"):
        trial_scores(predicted, named[1])
    with pytest.raises(SchemaError, match="predictions of 4 units, but trials of 5"):
        trial_scores(truth[:, :4], trials)


def test_after_cross_validation_of_single_trials():
    rng = np.random.default_rng(6)
    X = rng.standard_normal((200, 10))
    rate = np.exp(X @ rng.standard_normal((10, 12)) * 0.2)
    trials = rng.poisson(rate[:, None], (200, 5, 12)).astype("f4")
    features = xr.DataArray(
        X.astype("f4"), {"stimulus": IDS[:200]}, ("stimulus", "feature"), attrs={"layer": "x"}
    )
    single = xr.DataArray(
        trials.reshape(1000, 12),
        {"stimulus": ("presentation", np.repeat(IDS[:200], 5))},
        ("presentation", "unit"),
        attrs={"units": "spikes"},
    )
    scores = ndl.cross_validate(
        PoissonRidgeCV(device="cpu"),
        features,
        single,
        keep_predictions=True,
        metrics=["deviance", "pseudo_r2", "bits_per_spike"],
    )
    assert scores.attrs["groups"] == "stimulus" and "ceiling" in scores
    found = trial_scores(scores, single)
    assert found["feve"].dims == ("layer", "unit")
    assert 0.75 < float(found["feve"].mean()) < 1.02
    np.testing.assert_allclose(
        found["pseudo_r2"][0], scores["pseudo_r2"].mean("fold")[0], atol=0.03
    )
    with pytest.raises(SchemaError, match="keep_predictions=True"):
        trial_scores(scores.drop_vars("predicted"), single)


def test_predictions_that_differ_within_a_stimulus_are_an_error():
    truth, trials = simulate(10, 2, 3)
    doubled = xr.concat([truth, truth + 1], "stimulus").rename(stimulus="presentation")
    doubled = xr.DataArray(
        doubled.values, {"stimulus": ("presentation", IDS[:10] * 2)}, ("presentation", "unit")
    )
    with pytest.raises(SchemaError, match="different predictions.*groups='stimulus'"):
        trial_scores(doubled, trials)


# --- metrics of cross_validate


def experiment(seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((150, 6)).astype("f4")
    counts = rng.poisson(np.exp(X @ rng.standard_normal((6, 8)) * 0.3)).astype("f4")
    coords = {"stimulus": IDS[:150]}
    features = xr.DataArray(X, coords, ("stimulus", "feature"), attrs={"layer": "x"})
    return features, xr.DataArray(counts, coords, ("stimulus", "unit"), attrs={"units": "spikes"})


def test_metrics_of_folds_are_against_the_training_rows_mean():
    features, counts = experiment()
    splits = [(np.arange(50, 150), np.arange(50)), (np.arange(100), np.arange(100, 150))]
    scores = ndl.cross_validate(
        PoissonRidgeCV([0.1], device="cpu"),
        features,
        counts,
        cv=splits,
        metrics=["bits_per_spike", "deviance"],
    )
    for fold, (train, test) in enumerate(splits):
        model = PoissonRidgeCV([0.1], device="cpu").fit(
            features.values[train], counts.values[train]
        )
        rate, null = model.predict(features.values[test]), counts.values[train].mean(0)
        given = torch.from_numpy(rate), torch.from_numpy(counts.values[test])
        np.testing.assert_allclose(
            scores["bits_per_spike"][0, fold],
            bits_per_spike(*given, torch.from_numpy(null)),
            rtol=1e-3,
            atol=1e-5,
        )
        np.testing.assert_allclose(scores["deviance"][0, fold], poisson_deviance(*given), rtol=1e-4)
    assert scores.attrs["n_rates_raised"] == 0 and "pseudo_r2" not in scores


def test_rates_of_linear_models_are_raised_and_counted():
    features, counts = experiment()
    scores = ndl.cross_validate(RidgeCV(device="cpu"), features * 5, counts, metrics=["pseudo_r2"])
    assert scores.attrs["n_rates_raised"] > 0 and np.isfinite(scores["pseudo_r2"]).all()
    with pytest.raises(UnknownNameError, match="Did you mean 'deviance'"):
        ndl.cross_validate(LinearRegression(), features, counts, metrics=["deviances"])
    with pytest.raises(SchemaError, match="some responses are below 0"):
        ndl.cross_validate(LinearRegression(), features, counts - 1, metrics=["deviance"])


def test_the_study_of_time_series_keeps_stimuli_together():
    rng = np.random.default_rng(0)
    binned = xr.DataArray(
        rng.poisson(1.0, (12, 10, 3)).astype("f4"),
        dims=("presentation", "time", "unit"),
        coords={"stimulus": ("presentation", list("abcd") * 3), "time": np.arange(10) / 100},
        attrs={"units": "spikes", "bin_width": 0.01},
    )
    series = ndl.as_runs(binned)
    X = ndl.population_features(series[:, :2])
    scores = ndl.cross_validate(RidgeCV([1.0], device="cpu"), X, series[:, 2:], cv=4)
    assert scores.attrs["groups"] == "stimulus" and scores["n_test"].values.tolist() == [30] * 4
