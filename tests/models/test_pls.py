"""PLS against scikit-learn's PLSRegression, and an explicit PLS2 by singular vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import PLSRegression
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from neurodl.models import PLS
from neurodl.models._components import leading_vector


@parametrize_with_checks([PLS(device="cpu"), PLS([1, 2], targets="each", device="cpu")])
def test_scikit_learn_api(estimator, check):
    if estimator.n_components != "auto" and check.func.__name__ in NEEDS_FEATURES:
        estimator = PLS(1, targets="each", device="cpu")
    check(estimator)


# These checks have a single feature, or two rows: no room for two components.
NEEDS_FEATURES = ("check_fit2d_1feature", "check_fit2d_1sample", "check_fit2d_predict1d")


def simulate(n_samples=60, n_features=200, n_targets=7, seed=0):
    """Return correlated features with non-zero means, and targets of every reliability."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_features)) * np.geomspace(3, 0.05, n_features) + 2
    Y = X @ rng.standard_normal((n_features, n_targets))
    return X, Y + np.linspace(0.1, 60, n_targets) * rng.standard_normal(Y.shape) + 5


def explicit_pls2(X, Y, X_test, n_components):
    """Return predictions at every number of components, by deflation and singular vectors."""
    offset, mean = X.mean(0), Y.mean(0)
    X, Y = X - offset, Y - mean
    left, weights, loadings, predicted = X.copy(), [], [], []
    for _ in range(n_components):
        weights.append(np.linalg.svd(left.T @ Y, full_matrices=False)[0][:, 0])
        scores = left @ weights[-1]
        loadings.append(left.T @ scores / (scores @ scores))
        left = left - np.outer(scores, loadings[-1])
        W, P = np.array(weights).T, np.array(loadings).T
        rotation = W @ np.linalg.inv(P.T @ W)
        coefficients = np.linalg.lstsq(X @ rotation, Y, rcond=None)[0]
        predicted.append((X_test - offset) @ rotation @ coefficients + mean)
    return np.array(predicted)


def one_by_one(X, Y, X_test, n_components):
    """Return predictions of scikit-learn with one target at a time."""
    columns = [
        PLSRegression(n_components, scale=False).fit(X, y).predict(X_test).ravel() for y in Y.T
    ]
    return np.stack(columns, 1)


SIZES = [(60, 200, 7), (150, 30, 40), (60, 20, 3), (80, 90, 60)]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("targets", ["joint", "each"])
@pytest.mark.parametrize(("n_samples", "n_features", "n_targets"), SIZES)
def test_every_number_of_components_is_that_of_scikit_learn(
    n_samples, n_features, n_targets, targets, dtype
):
    X, Y = (x.astype(dtype).astype("f8") for x in simulate(n_samples, n_features, n_targets))
    train, test = np.arange(n_samples * 3 // 4), np.arange(n_samples * 3 // 4, n_samples)
    exact = explicit_pls2(X[train], Y[train], X[test], 15)
    for n_components in (1, 2, 3, 6, 10, 15):
        model = PLS(n_components, targets=targets, standardize=False, device="cpu")
        model.fit(X[train].astype(dtype), Y[train].astype(dtype))
        given = X.astype(dtype), Y.astype(dtype), [(train, test)]
        (part,) = model.predict_folds(*given)
        if targets == "each":
            expected = one_by_one(X[train], Y[train], X[test], n_components)
        else:
            theirs = PLSRegression(n_components, scale=False, tol=1e-13, max_iter=20_000)
            expected = exact[n_components - 1]
            # their power iteration stops before ours
            found = theirs.fit(X[train], Y[train]).predict(X[test])
            np.testing.assert_allclose(found, expected, atol=1e-5 * Y.std())
        tolerance = (5e-6 if dtype == "f4" else 1e-11) * Y.std()
        np.testing.assert_allclose(part.predicted, expected, atol=tolerance)
        # weights are rounded: the largest are those of features that vary 60 times less
        by_weights = X[test] @ model.coef_.T + model.intercept_
        for predicted in (model.predict(X[test].astype(dtype)), by_weights):
            np.testing.assert_allclose(predicted, expected, atol=10 * tolerance)
        assert (model.n_components_ == n_components).all()
        assert (part.alpha == n_components).all()


@pytest.mark.parametrize("scoring", ["r2", "r"])
@pytest.mark.parametrize("targets", ["joint", "each"])
@pytest.mark.parametrize("n_features", [200, 12])
def test_number_of_components_is_the_best_of_the_inner_folds(n_features, targets, scoring):
    X, Y = simulate(70, n_features, 8)
    cv, counts = KFold(4), [1, 2, 4, 7, 11]
    scores = np.zeros((len(counts), 8))
    for train, test in cv.split(X):
        joint = explicit_pls2(X[train], Y[train], X[test], max(counts))
        for row, n_components in enumerate(counts):
            predicted = joint[n_components - 1]
            if targets == "each":
                predicted = one_by_one(X[train], Y[train], X[test], n_components)
            if scoring == "r2":
                found = r2_score(Y[test], predicted, multioutput="raw_values")
            else:
                pairs = zip(predicted.T, Y[test].T, strict=True)
                found = np.array([np.corrcoef(a, b)[0, 1] for a, b in pairs])
            scores[row] += found / 4
    options = {"targets": targets, "cv": cv, "scoring": scoring, "standardize": False}
    model = PLS(counts, device="cpu", **options).fit(X, Y)
    assert len(np.unique(model.n_components_)) > 1
    np.testing.assert_array_equal(model.n_components_, np.array(counts)[scores.argmax(0)])
    np.testing.assert_allclose(model.cv_score_, scores.max(0), atol=1e-9)


def test_features_are_scaled_as_by_the_ridge():
    X, Y = simulate(60, 20, 5)
    model = PLS(3, sd_floor=1.0, device="cpu").fit(X, Y)
    floor = np.sqrt((X.std(0) ** 2).mean())
    scaled = X / np.maximum(X.std(0), floor)
    expected = explicit_pls2(scaled, Y, scaled, 3)[-1]
    np.testing.assert_allclose(model.predict(X), expected, atol=1e-9)
    assert model.n_floored_ == (X.std(0) < floor).sum()


def test_ladder_is_25_components_or_what_rows_and_features_allow():
    X, Y = simulate(100, 40, 30)
    chosen = PLS(targets="each", cv=2, device="cpu").fit(X, Y).n_components_
    explicit = PLS(np.arange(1, 26), targets="each", cv=2, device="cpu").fit(X, Y)
    np.testing.assert_array_equal(chosen, explicit.n_components_)
    few = PLS(targets="each", device="cpu").fit(X[:, :4], Y)
    explicit = PLS(np.arange(1, 5), targets="each", device="cpu").fit(X[:, :4], Y)
    np.testing.assert_allclose(few.cv_score_, explicit.cv_score_)


@pytest.mark.parametrize("targets", ["joint", "each"])
def test_all_components_are_least_squares(targets):
    X, Y = simulate(60, 9, 12)
    model = PLS(9, targets=targets, standardize=False, device="cpu").fit(X, Y)
    expected = LinearRegression().fit(X, Y)
    np.testing.assert_allclose(model.predict(X), expected.predict(X), atol=1e-8)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-7)


@pytest.mark.parametrize("targets", ["joint", "each"])
def test_components_beyond_what_can_be_explained_change_nothing(targets):
    """Rank-deficient features run out of components; what is left are rounding errors."""
    X, Y = simulate(50, 6, 3)
    wide = np.hstack([X, X @ np.random.default_rng(0).standard_normal((6, 20))])
    options = {"targets": targets, "standardize": False, "device": "cpu"}
    exhausted = PLS(6, **options).fit(wide, Y).predict(wide)
    np.testing.assert_allclose(PLS(20, **options).fit(wide, Y).predict(wide), exhausted, atol=1e-7)
    np.testing.assert_allclose(exhausted, LinearRegression().fit(X, Y).predict(X), atol=1e-7)
    exact = X @ np.random.default_rng(1).standard_normal((6, 1))  # one target, fitted early
    predicted = PLS(20, **options).fit(wide, exact).predict(wide)
    np.testing.assert_allclose(predicted, exact, atol=1e-7 * exact.std())


def test_joint_components_find_the_latent_space_of_many_noisy_targets():
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((300, 3))
    X = latent @ rng.standard_normal((3, 80)) + 0.5 * rng.standard_normal((300, 80))
    signal = latent @ rng.standard_normal((3, 60))
    Y = signal + 3 * rng.standard_normal((300, 60))
    train, test = np.arange(150), np.arange(150, 300)
    scores = {}
    for n_components in (1, 2, 3, 8):
        model = PLS(n_components, device="cpu").fit(X[train], Y[train])
        scores[n_components] = r2_score(signal[test], model.predict(X[test]))
    assert scores[1] < scores[2] < scores[3] and scores[8] < scores[3]


@pytest.mark.parametrize("size", [1, 2, 40, 500])
def test_leading_vector_is_that_of_a_full_decomposition(size):
    rng = np.random.default_rng(size)
    vectors = np.linalg.qr(rng.standard_normal((size, size)))[0]
    values = np.linspace(1, 2, size) ** 3  # no gap: the Krylov space starts anew
    matrix = vectors * values @ vectors.T
    value, vector = leading_vector(torch.as_tensor(matrix))
    assert value == pytest.approx(values[-1], rel=1e-12)
    np.testing.assert_allclose(abs(vector.numpy() @ vectors[:, -1]), 1, atol=1e-12)


def test_leading_vector_of_equal_eigenvalues_is_one_of_theirs():
    matrix = torch.diag(torch.tensor([1.0, 3.0, 3.0, 2.0], dtype=torch.float64))
    value, vector = leading_vector(matrix)
    assert value == pytest.approx(3)
    np.testing.assert_allclose(matrix @ vector, 3 * vector, atol=1e-12)
    assert leading_vector(torch.zeros(3, 3, dtype=torch.float64))[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": "best"}, "'auto' or whole numbers"),
        ({"n_components": 0}, "from 1 on"),
        ({"n_components": [1.5]}, "from 1 on"),
        ({"n_components": []}, "from 1 on"),
        ({"n_components": 60}, r"`n_components` must be at most 59.*n_components='auto'"),
        ({"targets": "all"}, "`targets` must be one of"),
        ({"scoring": "mse"}, "`scoring` must be one of"),
    ],
)
def test_wrong_parameters(options, message):
    X, Y = simulate()
    with pytest.raises(ValueError, match=message):
        PLS(device="cpu", **options).fit(X, Y)
