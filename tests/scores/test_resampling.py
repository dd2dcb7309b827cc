"""Intervals and tests over stimuli and subjects, against loops and known truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats
from sklearn.base import BaseEstimator
from sklearn.linear_model import Ridge

import neurodl as ndl
from neurodl.errors import PairingError, SchemaError
from neurodl.scores import bootstrap, cross_validate, difference_test, group_level
from neurodl.scores.paired import random_swaps, swapped_difference


def simulate(n=80, n_units=12, quality=(1.0, 1.0), seed=0, shared=None):
    """Two feature spaces that see the same signal through noise of their own."""
    rng = np.random.default_rng(seed)
    ids = [f"s{row}" for row in range(n)]
    signal = rng.standard_normal((n, 4))
    spaces = {
        name: xr.DataArray(
            np.asarray(signal * good + rng.standard_normal((n, 4)), np.float32),
            {"stimulus": ids},
            ("stimulus", "feature"),
        )
        for name, good in zip("ab", quality, strict=True)
    }
    weights = rng.standard_normal((4, n_units))
    responses = xr.DataArray(
        np.asarray(signal @ weights + rng.standard_normal((n, n_units)), np.float32),
        {
            "stimulus": ids,
            "unit": [f"u{k}" for k in range(n_units)],
            "roi": ("unit", np.repeat(["V1", "IT"], n_units // 2)),
        },
        ("stimulus", "unit"),
        attrs={"units": "a.u."},
    )
    return spaces, responses


def scored(spaces, responses, **options):
    return cross_validate(Ridge(), spaces, responses, keep_predictions=True, **options)


def r_of(predicted, observed):
    pairs = zip(predicted.T, observed.T, strict=True)
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in pairs])


def test_intervals_are_those_of_refitted_correlations():
    spaces, responses = simulate()
    scores = bootstrap(scored(spaces, responses, cv=2), n_resamples=300, seed=3)
    assert (scores["r_low"] < scores["r"].mean("fold")).all()
    assert (scores["r_high"] > scores["r"].mean("fold")).all()
    # Fisher's interval of one correlation, of folds that are averaged.
    z = np.arctanh(scores["r"].mean("fold"))
    width = np.tanh(z + 1.96 / np.sqrt(80 - 6)) - np.tanh(z - 1.96 / np.sqrt(80 - 6))
    found = (scores["r_high"] - scores["r_low"]) / width
    assert 0.8 < found.mean() < 1.2
    assert scores["roi_name"].values.tolist() == ["all", "IT", "V1"]
    means = scores["r"].mean("fold")
    np.testing.assert_allclose(scores["roi_r"].sel(roi_name="V1"), means[:, :6].mean("unit"))


@pytest.mark.slow
def test_intervals_cover_what_other_stimuli_give():
    """The truth is r over infinitely many test stimuli, of the model that was fitted."""
    inside = []
    for seed in range(60):
        spaces, responses = simulate(n=1060, n_units=6, seed=seed)
        few = [(np.arange(0, 40), np.arange(40, 100))]
        many = [(np.arange(0, 40), np.arange(100, 1060))]
        space = {"a": spaces["a"]}
        truth = scored(space, responses, cv=many)["r"].values[0, 0]
        found = bootstrap(scored(space, responses, cv=few), n_resamples=300, seed=seed)
        inside += ((found["r_low"][0] < truth) & (truth < found["r_high"][0])).values.tolist()
    assert 0.88 < np.mean(inside) < 0.99


def test_presentations_and_runs_are_drawn_together():
    spaces, responses = simulate(40)
    twice = xr.concat([responses, responses], "stimulus").rename(stimulus="presentation")
    ids = np.tile(responses["stimulus"].values, 2)
    twice = twice.drop_vars("presentation").assign_coords(stimulus=("presentation", ids))
    once = bootstrap(scored(spaces, responses, cv=2, groups=ids[:40]), seed=1)
    both = bootstrap(scored(spaces, twice, cv=2), seed=1)
    ratio = (both["r_high"] - both["r_low"]) / (once["r_high"] - once["r_low"])
    # Repeating every row teaches nothing: the interval stays as wide.
    assert 0.85 < ratio.mean() < 1.15
    alone = bootstrap(scored(spaces, twice, cv=2), seed=1, blocks=np.arange(80))
    assert (alone["r_high"] - alone["r_low"]).mean() < 0.8 * (both["r_high"] - both["r_low"]).mean()


def test_time_series_need_runs():
    rng = np.random.default_rng(0)
    coords = {"time": np.arange(60.0)}
    X = xr.DataArray(rng.standard_normal((60, 3)), coords, ("time", "feature"))
    Y = xr.DataArray(
        X.values + rng.standard_normal((60, 3)),
        coords,
        ("time", "voxel"),
        attrs={"units": "BOLD", "tr": 1.0},
    )
    blocks = np.repeat(np.arange(12), 5)
    whole = scored({"x": X}, Y, cv=ndl.PurgedKFold(3, purge=12))
    with pytest.raises(SchemaError, match="which belong together"):
        bootstrap(whole)
    assert np.isfinite(bootstrap(whole, blocks=blocks, n_resamples=50)["r_low"]).all()


def test_exchanged_predictions_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    one, other, observed = (rng.standard_normal((30, 5)) for _ in range(3))
    swaps = random_swaps(np.arange(30), 20, 0)
    found = swapped_difference([one], [3 * other + 1], [observed], [swaps])
    a, b = (stats.zscore(values) for values in (one, other))
    for row, exchanged in zip(found, swaps[:, :, None] > 0, strict=True):
        expected = r_of(np.where(exchanged, b, a), observed)
        expected -= r_of(np.where(exchanged, a, b), observed)
        np.testing.assert_allclose(row, expected, atol=1e-12)
    assert not swaps[0].any()


def test_the_better_space_is_found_and_equal_ones_are_not():
    better = scored(*simulate(200, quality=(1.5, 0.6)))
    test = difference_test(better.isel(layer=[0]), better.isel(layer=[1]), n_permutations=400)
    assert float(test["roi_p"][0]) == 1 / 401
    assert float(test["roi_low"][0]) > 0
    assert (test["q_by"] >= test["q"]).all()
    difference = (better["r"][0] - better["r"][1]).mean("fold")
    np.testing.assert_allclose(test["difference"], difference, atol=1e-5)
    reverse = difference_test(better.isel(layer=[1]), better.isel(layer=[0]), n_permutations=400)
    np.testing.assert_allclose(reverse["difference"], -test["difference"], atol=1e-12)
    np.testing.assert_allclose(reverse["p"], test["p"], atol=0.03)


class AsItIs(BaseEstimator):
    """Predicts its features, so that what two spaces predict is alike."""

    def fit(self, X, y):
        return self

    def predict(self, X):
        return X


def test_p_of_equal_models_is_uniform():
    p = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        ids = [f"s{row}" for row in range(40)]
        signal, *noise = rng.standard_normal((4, 40, 1)).astype(np.float32)
        arrays = [
            xr.DataArray(signal + one, {"stimulus": ids}, ("stimulus", dim))
            for one, dim in zip(noise, ("feature", "feature", "unit"), strict=True)
        ]
        responses = arrays[2].assign_attrs(units="a.u.")
        one, other = (
            cross_validate(AsItIs(), space, responses, cv=2, keep_predictions=True)
            for space in arrays[:2]
        )
        p.append(float(difference_test(one, other, n_permutations=199, seed=seed)["p"][0]))
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) <= 0.05) < 0.1


def test_scores_of_other_rows_cannot_be_compared():
    spaces, responses = simulate()
    one = scored({"a": spaces["a"]}, responses)
    with pytest.raises(PairingError, match="same responses in the same folds"):
        difference_test(one, scored({"b": spaces["b"]}, responses, seed=1))
    with pytest.raises(SchemaError, match=r"scores.sel\(layer=\[name\]\)"):
        difference_test(scored(spaces, responses), one)
    with pytest.raises(SchemaError, match="keep_predictions=True"):
        bootstrap(cross_validate(Ridge(), spaces, responses))
    rows = np.arange(80)
    twice = [(rows[40:], rows[:40]), (rows[:20], rows[20:]), (rows[20:], rows[:20])]
    with pytest.raises(SchemaError, match="tested in several folds"):
        bootstrap(scored(spaces, responses, cv=twice))


def of_subjects(effect, n_subjects=8, n_units=20, seed=0, **coords):
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n_subjects):
        own = 0.05 * rng.standard_normal((2, 1, 1))  # what all targets of a subject share
        r = effect + own + 0.1 * rng.standard_normal((2, 3, n_units))
        found.append(
            xr.Dataset(
                {name: (("layer", "fold", "parcel"), r) for name in ("r", "r2")},
                {"layer": ["a", "b"], "roi": ("parcel", np.repeat(["V1", "IT"], n_units // 2))},
                {"subject": f"{number + 1:02d}"},
            )
        )
    return found


def test_subjects_are_the_units_of_the_group():
    scores = of_subjects(0.1)
    group = group_level(scores, n_resamples=2000)
    table = np.stack([one["r"].mean(["fold", "parcel"]) for one in scores])
    np.testing.assert_allclose(group["mean"].sel(roi_name="all"), table.mean(0))
    np.testing.assert_allclose(group["sd"].sel(roi_name="all"), table.std(0, ddof=1))
    # Signs of 8 subjects: 256, of which the true one is the best where all are positive.
    expected = [
        np.mean([(np.array(s) @ column) >= column.sum() - 1e-12 for s in _signs(8)])
        for column in table.T
    ]
    np.testing.assert_allclose(group["p"].sel(roi_name="all"), expected)
    t = stats.ttest_1samp(table, 0, alternative="greater").pvalue
    np.testing.assert_allclose(group["p"].sel(roi_name="all"), t, atol=0.02)
    low, high = (group[name].sel(roi_name="all").values for name in ("low", "high"))
    error = table.std(0, ddof=1) / np.sqrt(8)
    np.testing.assert_allclose((high - low) / (2 * 1.96 * error), 1, atol=0.15)
    assert (group["p_fwe"] >= group["p"]).all()


def _signs(n):
    from itertools import product

    return product([1, -1], repeat=n)


def test_targets_of_a_common_space_and_missing_regions():
    scores = of_subjects(0.0)
    for one in scores:
        one["r"][..., 0] += 0.5
    group = group_level(scores, by="target")
    assert group["p_fwe"].values[:, 0].max() < 0.05
    assert group["p_fwe"].values[:, 1:].min() > 0.05
    places = [one.assign_coords(parcel=np.arange(20)) for one in scores]
    places[2] = places[2].assign_coords(parcel=np.arange(20)[::-1])
    with pytest.raises(PairingError, match="parcels of subject 2 are others.*'parcel'"):
        group_level(places, by="target")
    without = [one if n else one.isel(parcel=slice(0, 10)) for n, one in enumerate(scores)]
    assert group_level(without)["n_subjects"].sel(roi_name="IT").values.tolist() == [7, 7]
    with pytest.raises(PairingError, match="common space"):
        group_level(without, by="target")
    with pytest.raises(SchemaError, match="at least 2"):
        group_level(scores[:1])
    with pytest.raises(PairingError, match="Subject 1 has the layers 'b', 'a'"):
        group_level([scores[0], scores[1].isel(layer=[1, 0])])


@pytest.mark.slow
def test_the_group_test_holds_its_level_for_many_subjects():
    """20 subjects, whose signs are drawn; nothing there."""
    found = [
        group_level(of_subjects(0.0, 20, seed=seed), n_resamples=400, seed=seed)
        for seed in range(100)
    ]
    p = [float(one["p"].sel(roi_name="all", layer="a")) for one in found]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    fwe = [float(one["p_fwe"].min()) for one in found]
    assert np.mean(np.array(fwe) <= 0.05) <= 0.11


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same():
    scores = scored(*simulate())
    one, other = (
        bootstrap(scores, n_resamples=100, device=device)["r_low"] for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(one, other, atol=1e-5)
    tests = [
        difference_test(
            scores.isel(layer=[0]), scores.isel(layer=[1]), n_permutations=100, device=device
        )
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(tests[0]["p"], tests[1]["p"])
