"""FractionalRidgeCV against brute force: a root finder over scikit-learn's Ridge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from neurodl.models import FractionalRidgeCV
from neurodl.models.fractional import penalties_of_fractions

FRACTIONS = [0.1, 0.35, 0.7, 1.0]


@parametrize_with_checks(
    [FractionalRidgeCV(device="cpu"), FractionalRidgeCV([0.5, 1.0], scoring="r", device="cpu")]
)
def test_scikit_learn_api(estimator, check):
    check(estimator)


def simulate(n_samples=60, n_features=20, n_targets=6, seed=0):
    """Return correlated features with non-zero means, and targets of every reliability."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_features)) * np.geomspace(3, 0.05, n_features) + 2
    Y = X @ rng.standard_normal((n_features, n_targets))
    return X, Y + np.linspace(0.1, 9, n_targets) * rng.standard_normal(Y.shape) + 5


def brute_force(X, y, fraction):
    """Return scikit-learn's ridge of one target whose weights have a fraction of their norm."""
    largest = LinearRegression().fit(X, y)
    if fraction == 1:
        return largest, 0.0

    def excess(log_alpha):
        weights = Ridge(alpha=np.exp(log_alpha), solver="svd").fit(X, y).coef_
        return np.linalg.norm(weights) / np.linalg.norm(largest.coef_) - fraction

    alpha = np.exp(brentq(excess, -25, 25, xtol=1e-12))
    return Ridge(alpha=alpha, solver="svd").fit(X, y), alpha


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("n_features", [20, 150])
def test_equals_brute_force(n_features, dtype):
    X, Y = (x.astype(dtype).astype("f8") for x in simulate(60, n_features))
    train, test = np.arange(48), np.arange(48, 60)
    cv = KFold(3)
    scores = np.zeros((len(FRACTIONS), Y.shape[1]))
    for inner in cv.split(train):
        own, held = (train[rows] for rows in inner)
        for row, fraction in enumerate(FRACTIONS):
            for target, y in enumerate(Y.T):
                predicted = brute_force(X[own], y[own], fraction)[0].predict(X[held])
                scores[row, target] += r2_score(y[held], predicted) / 3
    model = FractionalRidgeCV(FRACTIONS, cv=cv, standardize=False, device="cpu")
    model.fit(X[train].astype(dtype), Y[train].astype(dtype))
    tolerance = 1e-3 if dtype == "f4" else 1e-6
    assert len(np.unique(model.fraction_)) > 1
    np.testing.assert_array_equal(model.fraction_, np.array(FRACTIONS)[scores.argmax(0)])
    np.testing.assert_allclose(model.cv_score_, scores.max(0), atol=tolerance)
    (part,) = model.predict_folds(X.astype(dtype), Y.astype(dtype), [(train, test)])
    np.testing.assert_array_equal(part.alpha, model.fraction_)
    predicted = model.predict(X[test].astype(dtype))
    np.testing.assert_allclose(part.predicted, predicted, atol=tolerance * Y.std())
    for target, fraction in enumerate(model.fraction_):
        oracle, alpha = brute_force(X[train], Y[train, target], fraction)
        assert model.alpha_[target] == pytest.approx(alpha, rel=tolerance)
        expected = oracle.predict(X[test])
        np.testing.assert_allclose(predicted[:, target], expected, atol=tolerance * Y.std())


@pytest.mark.parametrize("fraction", [1e-3, 0.1, 0.5, 0.95, 0.999])
def test_penalties_are_exact_over_many_decades(fraction):
    """Eigenvalues over 12 decades, and targets that weigh them in every way."""
    rng = np.random.default_rng(0)
    eigenvalues = np.geomspace(1e-9, 1e3, 100)
    inside = rng.standard_normal((30, 100)) * eigenvalues ** np.linspace(0, 1, 30)[:, None]
    inside[0], inside[1] = np.eye(100)[0], np.eye(100)[-1]  # a single eigenvalue counts
    inside[2] = np.eye(100)[0] * 3e-5 + np.eye(100)[-1] * 30  # two far apart do, equally
    tensors = torch.as_tensor(eigenvalues), torch.as_tensor(inside)
    wanted = torch.tensor([[fraction]], dtype=torch.float64)
    found = penalties_of_fractions(*tensors, wanted)[:, 0].numpy()
    for row, alpha in zip(inside, found, strict=True):
        full = (row**2 / eigenvalues).sum()

        def excess(x, row=row, full=full):
            norm = (eigenvalues * row**2 / (eigenvalues + np.exp(x)) ** 2).sum()
            return 0.5 * np.log(norm / full) - np.log(fraction)

        assert alpha == pytest.approx(np.exp(brentq(excess, -60, 40, xtol=1e-13)), rel=1e-6)
    alone = eigenvalues[[0, -1]] * (1 / fraction - 1)
    np.testing.assert_allclose(found[:2], alone, rtol=1e-6)


@pytest.mark.parametrize("n_features", [20, 150])
@pytest.mark.parametrize("standardize", [True, False])
def test_weights_have_the_fraction_of_the_longest(n_features, standardize):
    X, Y = simulate(60, n_features)
    options = {"standardize": standardize, "sd_floor": 1e-3, "device": "cpu"}
    scale = X.std(0) if standardize else 1.0
    norms = {}
    for fraction in (0.2, 0.6, 1.0):
        coef = FractionalRidgeCV([fraction], **options).fit(X, Y).coef_
        norms[fraction] = np.linalg.norm(coef * scale, axis=1)
    for fraction in (0.2, 0.6):
        np.testing.assert_allclose(norms[fraction] / norms[1.0], fraction, rtol=1e-6)


@pytest.mark.parametrize(("n_samples", "n_features"), [(60, 20), (40, 150), (40, 40)])
def test_whole_norm_is_least_squares(n_samples, n_features):
    X, Y = simulate(n_samples, n_features)
    X[:, n_features // 2 :] = X[:, :1]  # rank-deficient: the shortest solution
    model = FractionalRidgeCV([1.0], standardize=False, device="cpu").fit(X, Y)
    expected = LinearRegression().fit(X, Y)
    np.testing.assert_allclose(model.predict(X), expected.predict(X), atol=1e-7)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-7)
    assert (model.alpha_ == 0).all()


def test_automatic_fractions_are_a_tenth_to_one():
    X, Y = simulate(60, 20, 40)
    auto = FractionalRidgeCV(device="cpu").fit(X, Y)
    given = FractionalRidgeCV(np.linspace(0.1, 1, 19), device="cpu").fit(X, Y)
    np.testing.assert_allclose(auto.fraction_, given.fraction_)
    assert len(np.unique(auto.fraction_)) > 3


def test_noisier_targets_are_shrunk_more():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((100, 60))
    noise = np.repeat([0.1, 100.0], 30)
    Y = X @ rng.standard_normal((60, 60)) + noise * rng.standard_normal((100, 60))
    fraction = FractionalRidgeCV(device="cpu").fit(X, Y).fraction_
    assert fraction[:30].min() >= 0.95 and fraction[30:].mean() < 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fractions": "best"}, "'auto' or numbers"),
        ({"fractions": [0.0, 0.5]}, r"must lie in \(0, 1\]"),
        ({"fractions": [1.2]}, r"must lie in \(0, 1\]"),
        ({"fractions": []}, r"must lie in \(0, 1\]"),
        ({"fractions": [np.nan]}, r"must lie in \(0, 1\]"),
    ],
)
def test_wrong_parameters(options, message):
    X, Y = simulate()
    with pytest.raises(ValueError, match=message):
        FractionalRidgeCV(device="cpu", **options).fit(X, Y)
