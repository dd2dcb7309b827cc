"""What predict_folds does not take, and degenerate input that it does."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from neurodl.models import KernelRidgeCV, RidgeCV

pytestmark = pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
TRAIN, TEST = np.arange(30), np.arange(30, 40)
MODELS = [RidgeCV(device="cpu"), KernelRidgeCV(device="cpu"), RidgeCV(device=["cpu", "cpu"])]


def simulate(n_features=12):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, n_features))
    return X, X @ rng.standard_normal((n_features, 5)) + rng.standard_normal((40, 5)) + 1


def predicted(model, X, Y, splits=((TRAIN, TEST),), **labels):
    parts = list(model.predict_folds(X, Y, list(splits), **labels))
    return np.concatenate([part.predicted.numpy() for part in parts], 1)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([], "no folds"),
        ([(TRAIN, TEST), (TRAIN[:1], TEST)], "Fold 1 of `splits` has 1 training rows"),
        ([(TRAIN, TEST + 1)], r"row numbers from 0 to 39, but holds '31', '32', '33' and 7 more"),
        ([(TRAIN, TEST - 35)], "row numbers from 0 to 39"),
        ([(np.arange(40) < 30, np.arange(40) >= 30)], "Of a mask, take numpy.flatnonzero"),
    ],
)
def test_folds_that_are_no_rows(model, splits, message):
    with pytest.raises(ValueError, match=message):
        predicted(model, *simulate(), splits)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("row", [3, 35])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_named_in_training_and_test_rows(model, row, value):
    X, Y = simulate()
    X[row, 2] = value
    with pytest.raises(ValueError, match=rf"in 1 rows \('{row}'\) and 1 features"):
        predicted(model, X, Y)
    X, Y = simulate()
    Y[3, 4] = value
    with pytest.raises(ValueError, match="to 4, such as target 4 in rows '3'"):
        predicted(model, X, Y)


@pytest.mark.parametrize("model", MODELS)
def test_lengths_and_shapes_that_do_not_fit(model):
    X, Y = simulate()
    for features, targets, message in [
        (X[:39], Y, "X has 39 rows, but y has 40"),
        (X[:, 0], Y, r"X must be a real array with 2 dimensions.*\(40,\)"),
        (X, Y[:, 0], "y must be a real array with 2 dimensions"),
        (X, Y.tolist(), "y must be a real array .* is list"),
        (X + 1j, Y, "complex128"),
    ]:
        with pytest.raises(ValueError, match=message):
            predicted(model, features, targets)
    with pytest.raises(ValueError, match="`groups` has 9 labels, but there are 40 rows"):
        predicted(model, X, Y, groups=np.arange(9))
    with pytest.raises(ValueError, match="`groups` has 9 labels, but there are 40 rows"):
        model.fit(X, Y, groups=np.arange(9))


def test_given_kernels_that_are_none():
    X, Y = simulate()
    kernel = X @ X.T
    model = KernelRidgeCV(kernel="precomputed", device="cpu")
    with pytest.raises(ValueError, match="least 0, but X has -"):
        predicted(model, -kernel, Y)
    kernel[2, 5] = kernel[5, 2] = np.nan
    with pytest.raises(ValueError, match=r"in 2 rows \('2', '5'\)"):
        predicted(model, kernel, Y)


@pytest.mark.parametrize("alpha", [1e-3, 10.0])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_singular_kernels(rank, alpha):
    X, Y = simulate(max(rank, 1))
    X = X * bool(rank)
    X[20:] = X[:20]  # every row twice
    found = predicted(KernelRidgeCV([alpha], kernel="precomputed", device="cpu"), X @ X.T, Y)
    expected = Ridge(alpha=alpha, solver="svd").fit(X[TRAIN], Y[TRAIN]).predict(X[TEST])
    np.testing.assert_allclose(found, expected, atol=1e-7)
    np.testing.assert_allclose(
        predicted(RidgeCV([alpha], standardize=False, device="cpu"), X, Y), expected, atol=1e-7
    )


@pytest.mark.parametrize("n_features", [1, 12, 60])
def test_targets_and_features_that_do_not_vary_in_a_fold(n_features):
    X, Y = simulate(n_features)
    expected = predicted(RidgeCV(device="cpu"), X, Y)
    Y[:30, 2] = 3.0  # in the training rows
    Y[30:, 3] = 2.0  # in the test rows: predicted as any other
    found = predicted(RidgeCV(device="cpu"), X, Y)
    np.testing.assert_allclose(found[:, [0, 1, 3, 4]], expected[:, [0, 1, 3, 4]])
    np.testing.assert_allclose(found[:, 2], 3.0)
    constant = np.concatenate([X, np.full((40, 2), 7.0)], 1)
    alphas = [5.0]
    np.testing.assert_allclose(
        predicted(RidgeCV(alphas, standardize=False, device="cpu"), constant, Y),
        predicted(RidgeCV(alphas, standardize=False, device="cpu"), X, Y),
        atol=1e-9,
    )


def test_half_precision_features_are_those_rounded():
    X, Y = simulate()
    half = X.astype("f2")
    found = predicted(RidgeCV(device="cpu"), half, Y)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, predicted(RidgeCV(device="cpu"), half.astype("f4"), Y))
