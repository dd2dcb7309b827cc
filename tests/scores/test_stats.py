"""permutation_test against refits by scikit-learn, and on simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.stats import false_discovery_control, kstest
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold

from neurodl.errors import SchemaError
from neurodl.models import KernelRidgeCV, RidgeCV
from neurodl.models._permutation import permuted_r
from neurodl.scores import permutation_test
from neurodl.scores.stats import false_discovery_rate, random_orders

pytestmark = pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")


def simulate(n_samples=60, n_features=100, n_targets=30, n_driven=10, seed=0):
    """Return features and responses, of which the first targets follow the features."""
    rng = np.random.default_rng(seed)
    ids = [f"image{i}" for i in range(n_samples)]
    X = rng.standard_normal((n_samples, n_features)).astype("f4")
    Y = rng.standard_normal((n_samples, n_targets)).astype("f4")
    Y[:, :n_driven] += 2 * X[:, :5] @ rng.standard_normal((5, n_driven)).astype("f4")
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


def test_wrong_uses_say_what_to_do():
    features, responses = simulate(12)
    with pytest.raises(ValueError, match="needs RidgeCV or KernelRidgeCV"):
        permutation_test(Ridge(), features, responses)
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
