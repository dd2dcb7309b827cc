"""permutation_test against refits by scikit-learn, and on simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.stats import false_discovery_control, kstest
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neurodl.errors import SchemaError, UnknownNameError
from neurodl.models import KernelRidgeCV, RidgeCV
from neurodl.models._permutation import permuted_r
from neurodl.runtime import derive_seed
from neurodl.scores import permutation_test
from neurodl.scores.splitters import PurgedKFold
from neurodl.scores.stats import _compare, false_discovery_rate, random_orders

pytestmark = pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")


def simulate(n_samples=60, n_features=100, n_targets=30, n_driven=10, seed=0):
    """Return features and responses, of which the first targets follow the features."""
    rng = np.random.default_rng(seed)
    ids = [f"image{i}" for i in range(n_samples)]
    X = rng.standard_normal((n_samples, n_features)).astype("f4")
    Y = rng.standard_normal((n_samples, n_targets)).astype("f4")
    n_seen = min(5, n_features)
    Y[:, :n_driven] += 2 * X[:, :n_seen] @ rng.standard_normal((n_seen, n_driven)).astype("f4")
    features = xr.DataArray(X, dims=("stimulus", "feature"), coords={"stimulus": ids})
    responses = xr.DataArray(
        Y, dims=("stimulus", "voxel"), coords={"stimulus": ids}, attrs={"units": "a.u."}
    )
    return features, responses


@pytest.mark.parametrize("n_features", [100, 20])
def test_r_of_permuted_targets_is_that_of_refits(n_features):
    features, responses = simulate(n_features=n_features)
    X, Y = features.values.astype("f8"), responses.values.astype("f8")
    splits = list(KFold(3).split(X))
    rng = np.random.default_rng(0)
    alpha = rng.choice([1.0, 10.0, 100.0], (3, Y.shape[1]))
    orders = np.stack([np.arange(len(X)), *(rng.permutation(len(X)) for _ in range(6))])
    model = RidgeCV(standardize=False, device="cpu")
    ((columns, some, found),) = permuted_r(model, X, Y, splits, alpha, orders)
    assert (columns, some) == (slice(0, 30), slice(0, 7))
    expected = np.zeros_like(found)
    for row, order in enumerate(orders):
        for (train, test), penalties in zip(splits, alpha, strict=True):
            shuffled = Y[order]
            refit = Ridge(alpha=penalties).fit(X[train], shuffled[train]).predict(X[test])
            pairs = zip(refit.T, shuffled[test].T, strict=True)
            expected[row] += np.array([np.corrcoef(a, b)[0, 1] for a, b in pairs]) / 3
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_blocks_do_not_change_the_result(monkeypatch):
    features, responses = simulate()
    whole = permutation_test(RidgeCV(device="cpu"), features, responses, n_permutations=30)
    monkeypatch.setattr("neurodl.models._permutation.BLOCK_BYTES", 1)
    monkeypatch.setattr("neurodl.models._permutation.N_COLUMNS", 7)
    parts = permutation_test(RidgeCV(device="cpu"), features, responses, n_permutations=30)
    for name in ("p", "p_fwe", "q"):
        np.testing.assert_array_equal(whole[name], parts[name])


@pytest.mark.parametrize("model", [RidgeCV(device="cpu"), KernelRidgeCV(device="cpu")])
def test_driven_targets_are_found_and_others_are_not(model):
    features, responses = simulate(n_features=20)
    responses.values[:, -1] = 1.0  # constant: no score, no p
    scores = permutation_test(model, features, responses, n_permutations=199)
    p, p_fwe, q = (scores[name].values[0] for name in ("p", "p_fwe", "q"))
    assert (p[:10] == 1 / 200).all() and (p_fwe[:10] <= 0.02).all() and (q[:10] < 0.05).all()
    assert np.isnan([p[-1], p_fwe[-1], q[-1]]).all()
    assert (p_fwe[10:-1] >= p[10:-1]).all() and (q[10:-1] > p[10:-1] - 1e-6).all()
    assert (p_fwe[10:-1] > 0.05).all()
    np.testing.assert_allclose(q[:-1], false_discovery_control(p[:-1]), rtol=1e-6)


SPLIT = {"train": [f"image{i}" for i in range(40)], "test": [f"image{i}" for i in range(40, 60)]}


@pytest.mark.parametrize(
    ("model", "cv"), [(RidgeCV(device="cpu"), 5), (Ridge(), SPLIT), (RidgeCV(device="cpu"), SPLIT)]
)
def test_p_of_2000_voxels_without_signal_is_uniform(model, cv):
    features, responses = simulate(60, 50, 2000, n_driven=0, seed=1)
    scores = permutation_test(model, features, responses, cv=cv, n_permutations=499)
    p, q, q_by, p_fwe = (scores[name].values[0] for name in ("p", "q", "q_by", "p_fwe"))
    # p are multiples of 1 / 500: spread each over its step.
    spread = p - np.random.default_rng(0).uniform(0, 1 / 500, len(p))
    assert kstest(spread, "uniform").pvalue > 0.01
    assert (q <= 0.05).mean() <= 0.05
    assert (q_by >= q).all()
    assert p_fwe.min() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("cv", [5, SPLIT])
def test_discoveries_are_false_as_rarely_as_was_said(cv):
    """30 of 150 targets are driven: of what q <= .05 finds, at most 5 % are others, on average."""
    false, found, family_wise = [], [], []
    model = RidgeCV([30.0], device="cpu") if cv == 5 else Ridge(30.0)
    for seed in range(30):
        features, responses = simulate(60, 10, 150, n_driven=30, seed=seed)
        scores = permutation_test(model, features, responses, cv=cv, n_permutations=999, seed=seed)
        q, p_fwe = scores["q"].values[0], scores["p_fwe"].values[0]
        false.append((q[30:] <= 0.05).sum() / max((q <= 0.05).sum(), 1))
        found.append((q[:30] <= 0.05).mean())
        family_wise.append((p_fwe[30:] <= 0.05).any())
    assert np.mean(false) <= 0.05 + 2 * np.std(false) / 30**0.5
    assert np.mean(found) > 0.8
    assert np.mean(family_wise) <= 0.05 + 2 * (0.05 * 0.95 / 30) ** 0.5


def test_r_of_exchanged_test_rows_is_that_of_a_loop():
    features, responses = simulate(60, 6, 12)
    groups = np.repeat(np.arange(12), 5).astype(str)
    how = {"cv": SPLIT, "groups": groups, "seed": 3}
    scores = permutation_test(Ridge(), features, responses, n_permutations=30, **how)
    predicted = Ridge().fit(features.values[:40], responses.values[:40]).predict(features[40:])
    orders = random_orders(responses[40:], groups[40:], 30, derive_seed(3, "fold", 0))
    r = np.zeros((31, 12))
    for row, order in enumerate(orders):
        pairs = zip(predicted.T, responses.values[40:][order].T, strict=True)
        r[row] = [np.corrcoef(a, b)[0, 1] for a, b in pairs]
    np.testing.assert_allclose(scores["p"][0], (r >= r[0] - 1e-6).mean(0), rtol=1e-6)
    assert scores.attrs["permuted"] == "test rows"
    assert "predicted" not in scores


def test_any_model_can_be_fitted_to_every_order():
    features, responses = simulate(60, 20, 14)
    once = permutation_test(Ridge(30.0), features, responses, n_permutations=60, refit=True)
    fixed = RidgeCV([30.0], standardize=False, device="cpu")
    at_once = permutation_test(fixed, features, responses, n_permutations=60)
    for name in ("p", "p_fwe"):
        np.testing.assert_array_equal(once[name], at_once[name])
    assert once.attrs["permuted"] == "training and test rows, refitted"
    pipeline = make_pipeline(StandardScaler(), RidgeCV(device="cpu"))
    p = permutation_test(pipeline, features, responses, cv=SPLIT, n_permutations=199)["p"].values[0]
    assert (p[:10] <= 0.02).all()


def test_differences_between_groups_are_no_predictivity():
    """Features and responses that differ between runs, and are unrelated within them."""
    p = {"within": [], "across": []}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        level = np.repeat(rng.standard_normal(6), 10)
        features, responses = simulate(60, 3, 2, n_driven=0, seed=seed)
        features.values[:] += 2 * level[:, None]
        responses.values[:] += 2 * level[:, None]
        rows = np.arange(60)
        mixed = rng.permutation(60) % 4
        cv = [(rows[mixed != k], rows[mixed == k]) for k in range(4)]
        for name, groups in (("within", np.repeat(np.arange(6), 10)), ("across", None)):
            model = RidgeCV([10.0], device="cpu")
            test = permutation_test(
                model, features, responses, cv=cv, groups=groups, n_permutations=99, seed=seed
            )
            p[name] += test["p"].values[0].tolist()
    assert np.mean(np.array(p["across"]) <= 0.05) > 0.9
    assert np.mean(np.array(p["within"]) <= 0.05) < 0.2


def test_blocks_with_gaps_are_shifted_as_a_run():
    rng = np.random.default_rng(0)
    coords = {"time": np.arange(120.0)}
    X = xr.DataArray(rng.standard_normal((120, 4)), coords, ("time", "feature"))
    Y = xr.DataArray(
        np.hstack([X.values[:, :1], X.values[:, 1:2]]) + rng.standard_normal((120, 2)),
        coords,
        ("time", "voxel"),
        attrs={"units": "a.u.", "bin_width": 1.0},
    )
    cv = PurgedKFold(3, purge=2)
    found = permutation_test(RidgeCV([1.0], device="cpu"), X, Y, cv=cv, n_permutations=99)
    assert (found["p"] <= 0.02).all()


def test_p_is_unknown_where_r_is():
    parts = [(slice(0, 2), slice(0, 3), np.array([[0.5, np.nan], [0.1, 0.2], [0.2, 0.1]]))]
    p, p_fwe = _compare(iter(parts), 2, 2)
    np.testing.assert_allclose(p, [1 / 3, np.nan])
    assert np.isnan(p_fwe[1])


def test_whole_groups_are_exchanged():
    _, responses = simulate(12)
    labels = np.tile(["c", "a", "b"], 4)
    orders = random_orders(responses, labels, 40, 0, "groups")
    assert (orders[0] == np.arange(12)).all()
    assert len(np.unique(orders, axis=0)) == 6
    for order in orders:
        # Each group takes the place of one other, its rows in their order.
        taken = {label: set(labels[order[labels == label]]) for label in "abc"}
        assert sorted(one for names in taken.values() for one in names) == ["a", "b", "c"]
        assert all((np.diff(order[labels == label]) == 3).all() for label in "abc")


@pytest.mark.slow
def test_p_is_uniform_where_nothing_is_to_be_found():
    p = [
        permutation_test(
            RidgeCV([100.0], device="cpu"),
            *simulate(40, 10, 8, n_driven=0, seed=seed),
            n_permutations=99,
        )["p"].values.ravel()[0]
        for seed in range(60)
    ]
    assert kstest(p, "uniform").pvalue > 0.01
    assert 0.35 < np.mean(p) < 0.65


def test_rows_stay_in_their_groups_and_time_is_shifted():
    _, responses = simulate(12)
    labels = np.repeat(["a", "b", "c"], 4)
    orders = random_orders(responses, labels, 50, seed=0)
    assert (labels[orders] == labels).all() and (orders[0] == np.arange(12)).all()
    assert len(np.unique(orders, axis=0)) > 40
    timed = responses.rename(stimulus="time").assign_coords(time=np.arange(12.0))
    shifted = random_orders(timed, labels, 50, seed=0)
    steps = np.diff(shifted.reshape(51, 3, 4), axis=2) % 4
    assert (steps == 1).all() and (shifted[1:] != np.arange(12)).all()


def test_q_is_that_of_scipy():
    p = np.random.default_rng(0).uniform(0, 1, 50) ** 3
    np.testing.assert_allclose(false_discovery_rate(p), false_discovery_control(p))
    np.testing.assert_allclose(
        false_discovery_rate(p, any_dependence=True), false_discovery_control(p, method="by")
    )


def test_wrong_uses_say_what_to_do():
    features, responses = simulate(12)
    with pytest.raises(ValueError, match=r"Ridge has to be fitted anew.*say refit=True"):
        permutation_test(Ridge(), features, responses)
    with pytest.raises(ValueError, match="p would be too small"):
        permutation_test(Ridge(), features, responses, refit=False)
    with pytest.raises(UnknownNameError, match="'rows', 'groups'"):
        permutation_test(RidgeCV(device="cpu"), features, responses, exchange="runs")
    with pytest.raises(SchemaError, match="groups of one size"):
        random_orders(responses, np.repeat([0, 1], [5, 7]), 5, 0, "groups")
    with pytest.raises(SchemaError, match="whole groups needs groups"):
        random_orders(responses, None, 5, 0, "groups")
    with pytest.raises(ValueError, match="at least 1"):
        permutation_test(RidgeCV(device="cpu"), features, responses, n_permutations=0)
    with pytest.raises(SchemaError, match="a single row"):
        random_orders(responses, np.arange(12), 5, 0)
    timed = responses.rename(stimulus="time").assign_coords(time=np.arange(12.0))
    with pytest.raises(SchemaError, match="needs groups"):
        random_orders(timed, None, 5, 0)
    twice = responses.rename(stimulus="presentation")
    twice = twice.assign_coords(stimulus=("presentation", list("abcdef") * 2))
    with pytest.raises(SchemaError, match="average repeats first"):
        random_orders(twice, None, 5, 0)
