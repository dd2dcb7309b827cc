"""PoissonRidgeCV against scikit-learn unit by unit, and against what simulated units were."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import PoissonRegressor
from sklearn.model_selection import GroupKFold, KFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from neurodl.errors import NeurodlWarning
from neurodl.models import PoissonRidgeCV, _poisson, poisson_ridge
from neurodl.models._design import fit_scaling
from neurodl.models._poisson import make_basis, solve, start_at_mean


def simulate(n=300, p=12, v=6, scale=0.4, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) * np.arange(1, p + 1) ** -0.5 + 0.3
    W = scale * rng.standard_normal((p, v))
    rate = np.exp((X - 0.3) @ W + rng.normal(-0.7, 0.8, v))
    return X, rng.poisson(rate).astype(float), W


@parametrize_with_checks(
    [PoissonRidgeCV(device="cpu"), PoissonRidgeCV([0.1, 1.0], device="cpu")],
    expected_failed_checks=lambda _: {"check_regressor_multioutput": "its counts are negative"},
)
@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_is_an_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize(("n", "p"), [(300, 12), (60, 80), (40, 40)])
@pytest.mark.parametrize("alpha", [1e-3, 0.1, 5.0])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_coefficients_are_those_of_scikit_learn(n, p, alpha, dtype):
    X, Y, _ = simulate(n, p)
    X = X.astype(dtype)
    model = PoissonRidgeCV([alpha], standardize=False, device="cpu").fit(X, Y)
    for unit in range(Y.shape[1]):
        other = PoissonRegressor(alpha=alpha, solver="newton-cholesky", tol=1e-10, max_iter=1000)
        other.fit(X.astype(float), Y[:, unit])
        np.testing.assert_allclose(model.coef_[unit], other.coef_, atol=1e-4)
        np.testing.assert_allclose(model.intercept_[unit], other.intercept_, atol=1e-4)
        np.testing.assert_allclose(
            model.predict(X)[:, unit], other.predict(X.astype(float)), rtol=1e-3
        )


def test_standardized_features_are_penalised_alike():
    X, Y, _ = simulate()
    X = X * 10.0 ** np.arange(-3, 3).repeat(2)
    model = PoissonRidgeCV([0.1], sd_floor=1e-9, device="cpu").fit(X, Y)
    Z = (X - X.mean(0)) / X.std(0)
    for unit in range(3):
        other = PoissonRegressor(alpha=0.1, solver="newton-cholesky", tol=1e-10).fit(Z, Y[:, unit])
        np.testing.assert_allclose(model.coef_[unit] * X.std(0), other.coef_, atol=1e-5)


def test_the_loss_is_at_its_minimum():
    X, Y, _ = simulate(80, 5, 1)
    model = PoissonRidgeCV([0.05], standardize=False, device="cpu").fit(X, Y[:, 0])

    def loss(weights):
        log_rate = X @ weights[1:] + weights[0]
        fit = (np.exp(log_rate) - Y[:, 0] * log_rate).mean()
        return fit + 0.025 * np.square(weights[1:]).sum()

    found = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(model.coef_, found.x[1:], atol=1e-5)
    assert model.coef_.shape == (5,) and model.predict(X).shape == (80,)


@pytest.mark.parametrize("inner", [KFold(4), 4])
def test_penalties_are_those_of_a_loop(inner):
    X, Y, _ = simulate(240, 30, 8, scale=0.25)
    alphas = np.logspace(-3, 1, 7)
    folds = inner if not isinstance(inner, int) else KFold(4, shuffle=True, random_state=0)
    model = PoissonRidgeCV(alphas, cv=inner, standardize=False, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NeurodlWarning)  # of penalties at the edge
        model.fit(X, Y)
    for unit in range(8):
        scores = _mean_scores(X, Y[:, unit], alphas, folds)
        assert model.alpha_[unit] == pytest.approx(alphas[scores.argmax()])
        assert model.cv_score_[unit] == pytest.approx(scores.max(), abs=1e-4)


def _mean_scores(X, y, alphas, folds):
    found = np.zeros((len(alphas), folds.get_n_splits()))
    for fold, (train, test) in enumerate(folds.split(X)):
        for row, alpha in enumerate(alphas):
            one = PoissonRegressor(alpha=alpha, solver="newton-cholesky", tol=1e-9, max_iter=1000)
            rate = one.fit(X[train], y[train]).predict(X[test])
            found[row, fold] = 1 - _deviance(rate, y[test]) / _deviance(
                np.full(len(test), y[train].mean()), y[test]
            )
    return found.mean(1)


def _deviance(rate, y):
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.where(y > 0, y * np.log(y / rate), 0)
    return 2 * (log - (y - rate)).mean()


def test_groups_stay_on_one_side_of_inner_folds(monkeypatch):
    X, Y, _ = simulate(120, 4, 2)
    groups = np.repeat(np.arange(12), 10)
    seen = []
    inner = poisson_ridge.inner_splits
    monkeypatch.setattr(
        poisson_ridge, "inner_splits", lambda *given: seen.extend(inner(*given)) or inner(*given)
    )
    PoissonRidgeCV(device="cpu", cv=GroupKFold(3)).fit(X, Y, groups=groups)
    assert len(seen) == 3
    assert all(not set(groups[a]) & set(groups[b]) for a, b in seen)


def test_auto_penalties_follow_the_rate_of_each_unit():
    X, Y, _ = simulate(400, 20, 10)
    few = PoissonRidgeCV(device="cpu").fit(X, Y)
    again = PoissonRidgeCV(device="cpu").fit(X, np.tile(Y, 3))
    np.testing.assert_array_equal(np.tile(few.alpha_, 3), again.alpha_)
    grid = few._grid(_basis(X), torch.as_tensor(Y))
    np.testing.assert_allclose(grid[0] / grid[0, 0], Y.mean(0) / Y[:, 0].mean())
    assert np.isfinite(few.cv_score_).all()


def _basis(X):
    features = torch.as_tensor(X)
    own = torch.arange(len(X))
    return make_basis(features, fit_scaling(features, own, standardize=True, sd_floor=0.1))


@pytest.mark.parametrize("shape", [(60, 9), (30, 80)])
def test_the_basis_is_that_of_the_features(shape):
    X = np.random.default_rng(0).standard_normal(shape) + 3
    basis = _basis(X)
    Z = (X - X.mean(0)) / X.std(0)
    rank = min(shape[1], shape[0] - 1)
    assert len(basis.variances) == rank
    np.testing.assert_allclose(
        basis.scores.T @ basis.scores / len(X), np.diag(basis.variances), atol=1e-9
    )
    np.testing.assert_allclose(basis.scores @ basis.turn.T, Z, atol=1e-9)


def test_weights_that_were_there_are_found():
    X, Y, W = simulate(20_000, 8, 20, scale=0.3)
    found = PoissonRidgeCV(device="cpu").fit(X, Y).coef_.T
    assert np.corrcoef(found.ravel(), W.ravel())[0, 1] > 0.99
    assert abs((found * W).sum() / (W * W).sum() - 1) < 0.03


def test_blocks_of_units_change_nothing(monkeypatch):
    X, Y, _ = simulate(100, 20, 23)
    whole = PoissonRidgeCV(device="cpu").fit(X, Y)
    monkeypatch.setattr(poisson_ridge, "BLOCK_BYTES", {"cpu": 5 * 100 * 8})
    parts = PoissonRidgeCV(device="cpu").fit(X, Y)
    np.testing.assert_array_equal(whole.alpha_, parts.alpha_)
    np.testing.assert_allclose(whole.coef_, parts.coef_, atol=1e-8)


def test_units_that_never_fire_have_a_rate_of_0():
    X, Y, _ = simulate(90, 4, 5)
    Y[:, [1, 3]] = 0
    model = PoissonRidgeCV(device="cpu").fit(X, Y)
    rate = model.predict(X)
    assert model.n_silent_ == 2 and (rate[:, [1, 3]] == 0).all() and (rate[:, [0, 2, 4]] > 0).all()
    assert np.isnan(model.alpha_[[1, 3]]).all() and np.isneginf(model.intercept_[[1, 3]]).all()


def test_a_unit_that_fires_once_is_fitted():
    X, Y, _ = simulate(60, 3, 2)
    Y[:, 0] = 0
    Y[7, 0] = 1
    model = PoissonRidgeCV(device="cpu").fit(X, Y)
    assert np.isfinite(model.predict(X)).all() and np.isfinite(model.alpha_).all()


def test_noise_gets_the_largest_penalty():
    rng = np.random.default_rng(4)
    model = PoissonRidgeCV(device="cpu").fit(
        rng.standard_normal((80, 60)), rng.poisson(1.0, (80, 30))
    )
    assert np.abs(model.cv_score_).mean() < 0.1
    assert model.predict(rng.standard_normal((50, 60))).std(0).mean() < 0.3


def test_fits_that_do_not_come_to_their_end_are_counted(monkeypatch):
    X, Y, _ = simulate(90, 10, 4)
    monkeypatch.setattr(_poisson, "MAX_STEPS", 2)
    with pytest.warns(NeurodlWarning, match="fits of 4 of 4 units did not come to their end in 2"):
        PoissonRidgeCV([1e-3], device="cpu").fit(X, Y)


def test_separable_counts_have_an_end():
    X = np.repeat([0.0, 1.0], 20)[:, None]
    model = PoissonRidgeCV([0.0], device="cpu").fit(X, 3 * X[:, 0])  # the best weight is infinite
    rate = model.predict(X)
    assert np.isfinite(model.coef_).all() and (rate[:20] < 1e-3).all()
    np.testing.assert_allclose(rate[20:], 3, rtol=1e-3)


def test_newton_ends_from_a_bad_start():
    X, Y, _ = simulate(100, 6, 3, scale=1.0)
    basis, counts = _basis(X), torch.as_tensor(Y)
    alphas = torch.full((3,), 0.01, dtype=torch.float64)
    near = solve(basis, counts, alphas, start_at_mean(basis, counts), 1e-12)
    start = near._replace(weights=near.weights + 3, intercepts=near.intercepts - 4)
    far = solve(basis, counts, alphas, start, 1e-12)
    assert far.converged.all()
    np.testing.assert_allclose(far.weights, near.weights, atol=1e-6)


def test_bad_input_is_named():
    X, Y, _ = simulate(50, 3, 4)
    for wrong, message in (
        (Y - 5, "negative values in 4 targets, such as target 0; 4 are negative"),
        (np.where(np.arange(4) == 2, np.nan, Y), "in 1 targets, such as target 2; 0 are negative"),
    ):
        with pytest.raises(ValueError, match=message):
            PoissonRidgeCV(device="cpu").fit(X, wrong)
    for options, message in (
        ({"alphas": "automatic"}, "`alphas` must be 'auto' or numbers"),
        ({"alphas": [-1.0]}, "`alphas` must be finite and >= 0"),
        ({"tol": 0}, "`tol`"),
        ({"sd_floor": 0}, "`sd_floor`"),
    ):
        with pytest.raises(ValueError, match=message):
            PoissonRidgeCV(device="cpu", **options).fit(X, Y)
    with pytest.raises(ValueError, match="`groups` has 3 labels"):
        PoissonRidgeCV(device="cpu").fit(X, Y, groups=[1, 2, 3])
    with pytest.warns(NeurodlWarning, match="chose an edge of `alphas`"):
        PoissonRidgeCV([1e3, 1e4], device="cpu").fit(X, Y)


def test_it_is_pickled_and_takes_tensors():
    X, Y, _ = simulate(60, 3, 2)
    model = PoissonRidgeCV([0.1], device="cpu").fit(torch.as_tensor(X), torch.as_tensor(Y))
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_model():
    X, Y, _ = simulate(500, 700, 40)
    one, other = (
        PoissonRidgeCV(device=device).fit(X.astype("f4"), Y) for device in ("cpu", "cuda")
    )
    same = np.isclose(one.alpha_, other.alpha_, rtol=1e-4)
    assert same.mean() > 0.9
    np.testing.assert_allclose(other.coef_[same], one.coef_[same], atol=1e-4)
