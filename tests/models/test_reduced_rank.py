"""ReducedRankRidgeCV against least squares on augmented rows, and singular vectors."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from neurodl.errors import NeurodlWarning
from neurodl.models import ReducedRankRidgeCV, RidgeCV

ALPHAS = np.logspace(-1, 4, 4)
pytestmark = pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")


@parametrize_with_checks(
    [ReducedRankRidgeCV(device="cpu"), ReducedRankRidgeCV([1.0, 10.0], ranks=1, device="cpu")]
)
def test_scikit_learn_api(estimator, check):
    check(estimator)


def simulate(n_samples=60, n_features=200, n_targets=7, rank=3, noise=5.0, seed=0):
    """Return correlated features with non-zero means, and targets with signals of a low rank."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_features)) * np.geomspace(3, 0.3, n_features) + 2
    few = X @ rng.standard_normal((n_features, rank)) / np.sqrt(n_features)
    Y = few @ rng.standard_normal((rank, n_targets)) * 4
    return X, Y + noise * rng.standard_normal(Y.shape) + 5


def explicit(X, Y, X_test, alpha, *ranks):
    """Return predictions at each rank by augmented rows and the singular vectors of their fit."""
    offset, mean = X.mean(0), Y.mean(0)
    rows = np.vstack([X - offset, np.sqrt(alpha) * np.eye(X.shape[1])])
    targets = np.vstack([Y - mean, np.zeros((X.shape[1], Y.shape[1]))])
    weights = np.linalg.lstsq(rows, targets, rcond=None)[0]
    leading = np.linalg.svd(rows @ weights, full_matrices=False)[2]
    predicted = (X_test - offset) @ weights
    return [predicted @ leading[:rank].T @ leading[:rank] + mean for rank in ranks]


SIZES = [(60, 200, 7), (150, 30, 50), (60, 20, 3), (80, 100, 120)]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(("n_samples", "n_features", "n_targets"), SIZES)
def test_equals_augmented_least_squares(n_samples, n_features, n_targets, dtype):
    X, Y = (x.astype(dtype).astype("f8") for x in simulate(n_samples, n_features, n_targets))
    train, test = np.arange(n_samples * 3 // 4), np.arange(n_samples * 3 // 4, n_samples)
    cv, ranks = KFold(3), [1, 2, 3]
    errors, variance = np.zeros((len(ALPHAS), len(ranks))), 0.0
    for own, held in cv.split(train):
        variance += ((Y[held] - Y[held].mean(0)) ** 2).sum()
        for row, alpha in enumerate(ALPHAS):
            every = explicit(X[own], Y[own], X[held], alpha, *ranks)
            errors[row] += [((Y[held] - predicted) ** 2).sum() for predicted in every]
    row, column = np.unravel_index(errors.argmin(), errors.shape)
    model = ReducedRankRidgeCV(ALPHAS, ranks=ranks, cv=cv, standardize=False, device="cpu")
    model.fit(X[train].astype(dtype), Y[train].astype(dtype))
    assert (model.alpha_, model.rank_) == (ALPHAS[row], ranks[column])
    assert model.cv_score_ == pytest.approx(1 - errors.min() / variance, abs=1e-6)
    tolerance = (1e-5 if dtype == "f4" else 1e-10) * Y.std()
    (expected,) = explicit(X[train], Y[train], X[test], model.alpha_, model.rank_)
    (part,) = model.predict_folds(X.astype(dtype), Y.astype(dtype), [(train, test)])
    for predicted in (model.predict(X[test].astype(dtype)), part.predicted.numpy()):
        np.testing.assert_allclose(predicted, expected, atol=tolerance)
    assert (part.alpha == model.alpha_).all()


@pytest.mark.parametrize(("n_samples", "n_features"), [(60, 200), (150, 30)])
@pytest.mark.parametrize("rank", [1, 2, 5, 7])
def test_single_rank_and_penalty(n_samples, n_features, rank):
    X, Y = simulate(n_samples, n_features)
    model = ReducedRankRidgeCV([50.0], ranks=rank, standardize=False, device="cpu").fit(X, Y)
    (expected,) = explicit(X, Y, X, 50.0, rank)
    np.testing.assert_allclose(model.predict(X), expected, atol=1e-9)
    assert np.linalg.matrix_rank(model.coef_, tol=1e-8) == rank
    assert model.rank_ == rank and np.isnan(model.cv_score_)


@pytest.mark.parametrize(("n_samples", "n_features", "n_targets"), SIZES)
def test_full_rank_is_the_ridge(n_samples, n_features, n_targets):
    X, Y = simulate(n_samples, n_features, n_targets)
    full = min(n_samples - 1, n_features, n_targets)
    model = ReducedRankRidgeCV([5.0], ranks=full, standardize=False, device="cpu").fit(X, Y)
    expected = Ridge(alpha=5.0).fit(X, Y)
    np.testing.assert_allclose(model.predict(X), expected.predict(X), atol=1e-8)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-8)


@pytest.mark.parametrize("rank", [2, 5])
def test_finds_a_known_rank_and_predicts_better_than_the_ridge(rank):
    X, Y = simulate(400, 40, 80, rank=rank, noise=4.0)
    signal = simulate(400, 40, 80, rank=rank, noise=0.0)[1]
    train, test = np.arange(200), np.arange(200, 400)
    model = ReducedRankRidgeCV(device="cpu").fit(X[train], Y[train])
    assert model.rank_ == rank
    ridge = RidgeCV(device="cpu").fit(X[train], Y[train])
    ours, theirs = (r2_score(signal[test], one.predict(X[test])) for one in (model, ridge))
    assert 1 - ours < 0.6 * (1 - theirs)


def test_automatic_ranks_are_all():
    X, Y = simulate(60, 200, 7)
    auto = ReducedRankRidgeCV(ALPHAS, device="cpu").fit(X, Y)
    given = ReducedRankRidgeCV(ALPHAS, ranks=np.arange(1, 8), device="cpu").fit(X, Y)
    assert (auto.alpha_, auto.rank_) == (given.alpha_, given.rank_)
    assert auto.cv_score_ == given.cv_score_


def test_ranks_that_are_the_same_take_the_least():
    """Targets of two dimensions are fitted by rank 2 as well as by any higher one."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 10))
    Y = X @ rng.standard_normal((10, 2)) @ rng.standard_normal((2, 9))
    assert ReducedRankRidgeCV([1e-3], device="cpu").fit(X, Y).rank_ == 2


def test_grid_at_its_edge_is_warned_about():
    X, Y = simulate()
    with pytest.warns(NeurodlWarning, match="7 of 7 targets chose an edge of"):
        model = ReducedRankRidgeCV([1e7, 1e8], device="cpu").fit(X, Y)
    assert model.n_alphas_at_edge_ == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas": [0.0, 1.0]}, "must be finite and > 0"),
        ({"ranks": "best"}, "'auto' or whole numbers"),
        ({"ranks": [0, 1]}, "from 1 on"),
        ({"ranks": 8}, r"`ranks` must be at most 7.*ranks='auto'"),
    ],
)
def test_wrong_parameters(options, message):
    X, Y = simulate()
    with pytest.raises(ValueError, match=message):
        ReducedRankRidgeCV(device="cpu", **options).fit(X, Y)
