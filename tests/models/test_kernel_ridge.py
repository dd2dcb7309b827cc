"""KernelRidgeCV against scikit-learn's KernelRidge on kernels that are centred explicitly."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics import r2_score
from sklearn.metrics.pairwise import cosine_similarity, rbf_kernel
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.preprocessing import KernelCenterer
from sklearn.utils.estimator_checks import parametrize_with_checks

from neurodl.models import KernelRidgeCV, RidgeCV

ALPHAS = np.logspace(-3, 2, 6)
pytestmark = pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")


@parametrize_with_checks([KernelRidgeCV(device="cpu")])
def test_scikit_learn_api(estimator, check):
    check(estimator)


def simulate(n_samples=90, n_features=6, n_targets=15, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_features)) + 1
    Y = np.sin(X @ rng.standard_normal((n_features, n_targets)))
    return X, Y + np.linspace(0.05, 2, n_targets) * rng.standard_normal(Y.shape) + 3


def oracle(kernel, train, test, Y, alpha):
    """Return predictions by scikit-learn, with the kernel and targets centred over `train`."""
    centre = KernelCenterer()
    inner = centre.fit_transform(kernel[np.ix_(train, train)])
    outer = centre.transform(kernel[np.ix_(test, train)])
    mean = Y[train].mean(0)
    model = KernelRidge(alpha=alpha, kernel="precomputed").fit(inner, Y[train] - mean)
    return model.predict(outer) + mean


KERNELS = {
    "rbf": lambda X: rbf_kernel(X, gamma=0.1),
    "cosine": cosine_similarity,
    "linear": lambda X: X @ X.T,
}


@pytest.mark.parametrize("name", KERNELS)
def test_equals_scikit_learn(name):
    X, Y = simulate()
    train, test = np.arange(70), np.arange(70, 90)
    cv = KFold(4)
    options = {"cv": cv, "standardize": False, "device": "cpu"}
    model = KernelRidgeCV(ALPHAS, kernel=name, gamma=0.1, **options).fit(X[train], Y[train])
    kernel = KERNELS[name](X - X[train].mean(0))
    scores = np.zeros((len(ALPHAS), Y.shape[1]))
    for inner in cv.split(train):
        for row, alpha in enumerate(ALPHAS):
            predicted = oracle(kernel, *inner, Y, alpha)
            scores[row] += r2_score(Y[inner[1]], predicted, multioutput="raw_values") / 4
    np.testing.assert_array_equal(model.alpha_, ALPHAS[scores.argmax(0)])
    np.testing.assert_allclose(model.cv_score_, scores.max(0), atol=1e-9)
    expected = np.stack(
        [oracle(kernel, train, test, Y, a)[:, target] for target, a in enumerate(model.alpha_)], 1
    )
    np.testing.assert_allclose(model.predict(X[test]), expected, atol=1e-7)
    (part,) = KernelRidgeCV(ALPHAS, kernel=name, gamma=0.1, **options).predict_folds(
        X, Y, [(train, test)]
    )
    np.testing.assert_allclose(part.predicted.numpy(), expected, atol=1e-7)


def test_given_kernel_is_that_of_the_features():
    X, Y = simulate()
    kernel = (X - X.mean(0)) @ (X - X.mean(0)).T
    splits = list(KFold(3).split(X))
    linear = RidgeCV(ALPHAS, standardize=False, device="cpu")
    given = KernelRidgeCV(ALPHAS, kernel="precomputed", device="cpu")
    for one, other in zip(
        linear.predict_folds(X, Y, splits), given.predict_folds(kernel, Y, splits), strict=True
    ):
        np.testing.assert_allclose(one.predicted.numpy(), other.predicted.numpy(), atol=1e-8)
    train, test = splits[0]
    alone = given.fit(kernel[np.ix_(train, train)], Y[train])
    expected = linear.fit(X[train], Y[train]).predict(X[test])
    np.testing.assert_allclose(alone.predict(kernel[np.ix_(test, train)]), expected, atol=1e-8)


def test_given_kernels_are_cut_both_ways_by_scikit_learn():
    X, Y = simulate()
    kernel = rbf_kernel(X, gamma=0.1)
    search = GridSearchCV(
        KernelRidgeCV(kernel="precomputed", device="cpu"), {"alphas": [[0.1], [1.0]]}, cv=3
    ).fit(kernel, Y)
    scores = []
    for train, test in KFold(3).split(X):
        predicted = oracle(kernel, train, test, Y, 0.1)
        scores.append(r2_score(Y[test], predicted))
    assert search.cv_results_["mean_test_score"][0] == pytest.approx(np.mean(scores), abs=1e-9)


def test_automatic_width_is_the_mean_squared_distance():
    X, Y = simulate()
    model = KernelRidgeCV(standardize=False, device="cpu").fit(X, Y)
    squared = ((X[:, None] - X) ** 2).sum(-1)
    assert model.gamma_ == pytest.approx(1 / squared.mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "poly"}, "`kernel` must be one of"),
        ({"gamma": 0.0}, "`gamma` must be 'auto' or > 0"),
        ({"kernel": "precomputed"}, "a square"),
    ],
)
def test_wrong_uses(options, message):
    X, Y = simulate()
    with pytest.raises(ValueError, match=message):
        KernelRidgeCV(device="cpu", **options).fit(X, Y)


def test_a_kernel_in_the_wrong_order_is_noticed():
    X, Y = simulate()
    kernel = rbf_kernel(X)[::-1]
    with pytest.raises(ValueError, match="differs from its transpose"):
        KernelRidgeCV(kernel="precomputed", device="cpu").fit(kernel, Y)
