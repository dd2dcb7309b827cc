"""RidgeCV against scikit-learn's Ridge in float64, fold by fold."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut
from sklearn.utils.estimator_checks import parametrize_with_checks

from neurodl.errors import DeviceError, NeurodlWarning
from neurodl.models import RidgeCV

ALPHAS = np.logspace(-2, 5, 9)


@parametrize_with_checks([RidgeCV(device="cpu"), RidgeCV([1.0, 10.0], scoring="r", device="cpu")])
@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_scikit_learn_api(estimator, check):
    check(estimator)


def simulate(n_samples, n_features, n_targets=40, seed=0):
    """Return correlated features with non-zero means, and targets of every reliability."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_features)) @ np.diag(np.linspace(2, 0.1, n_features)) + 3
    noise = np.linspace(0.1, 8, n_targets) * np.sqrt(n_features)
    Y = X @ rng.standard_normal((n_features, n_targets)) + 5
    return X, Y + noise * rng.standard_normal(Y.shape)


def brute_force(X, Y, splits, scoring):
    """Return mean inner scores (n_alphas, n_targets) of scikit-learn's Ridge in float64."""
    scores = np.zeros((len(splits), len(ALPHAS), Y.shape[1]))
    for fold, (train, test) in enumerate(splits):
        for row, alpha in enumerate(ALPHAS):
            predicted = Ridge(alpha=alpha).fit(X[train], Y[train]).predict(X[test])
            if scoring == "r2":
                scores[fold, row] = r2_score(Y[test], predicted, multioutput="raw_values")
            else:
                pairs = zip(predicted.T, Y[test].T, strict=True)
                scores[fold, row] = [np.corrcoef(a, b)[0, 1] for a, b in pairs]
    return scores.mean(0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scoring", ["r2", "r"])
@pytest.mark.parametrize(("n_samples", "n_features"), [(120, 30), (80, 300), (40, 300), (60, 60)])
@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_equals_brute_force(n_samples, n_features, scoring, dtype):
    X, Y = (values.astype(dtype).astype("f8") for values in simulate(n_samples, n_features))
    cv = KFold(4)
    model = RidgeCV(ALPHAS, cv=cv, scoring=scoring, standardize=False, device="cpu")
    model.fit(X.astype(dtype), Y.astype(dtype))

    scores = brute_force(X, Y, list(cv.split(X)), scoring)
    ours = np.searchsorted(ALPHAS, model.alpha_ * 0.999)
    best = scores.max(0)
    # A flip is allowed only where the two penalties score the same to rounding.
    assert (best - scores[ours, np.arange(Y.shape[1])] < 1e-6).all()
    np.testing.assert_allclose(model.cv_score_, best, atol=1e-5)

    tolerance = 2e-4 if dtype == np.float32 else 1e-8
    predicted = model.predict(X.astype(dtype))
    for alpha in np.unique(model.alpha_):
        chose = model.alpha_ == alpha
        oracle = Ridge(alpha=alpha).fit(X, Y[:, chose])
        scale = Y[:, chose].std(0)
        np.testing.assert_allclose(
            predicted[:, chose] / scale,
            oracle.predict(X).reshape(len(X), -1) / scale,
            atol=tolerance,
        )
        coef = oracle.coef_.reshape(-1, n_features)
        np.testing.assert_allclose(model.coef_[chose], coef, atol=20 * tolerance)


@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_held_out_r_in_float32_is_exact_to_1e5():
    X, Y = simulate(300, 1000, n_targets=200)
    train, test = np.arange(240), np.arange(240, 300)
    model = RidgeCV(ALPHAS, standardize=False, device="cpu")
    predicted = model.fit(X[train].astype("f4"), Y[train].astype("f4")).predict(
        X[test].astype("f4")
    )
    for alpha in np.unique(model.alpha_):
        targets = np.flatnonzero(model.alpha_ == alpha)
        oracle = Ridge(alpha=alpha).fit(X[train], Y[train][:, targets]).predict(X[test])
        for column, target in enumerate(targets):
            r = np.corrcoef(oracle.reshape(len(test), -1)[:, column], Y[test, target])[0, 1]
            assert abs(np.corrcoef(predicted[:, target], Y[test, target])[0, 1] - r) < 1e-5


def test_groups_stay_whole_in_inner_folds():
    X, Y = simulate(90, 20, n_targets=5)
    groups = np.repeat(np.arange(9), 10)
    by_groups = RidgeCV(cv=3, device="cpu").fit(X, Y, groups=groups)
    explicit = RidgeCV(cv=list(GroupKFold(3).split(X, Y, groups)), device="cpu").fit(X, Y)
    np.testing.assert_array_equal(by_groups.alpha_, explicit.alpha_)
    np.testing.assert_allclose(by_groups.cv_score_, explicit.cv_score_)
    left_out = RidgeCV(cv=LeaveOneGroupOut(), device="cpu").fit(X, Y, groups=groups)
    assert not np.allclose(left_out.cv_score_, by_groups.cv_score_)


def test_nearly_constant_features_cannot_blow_up_a_test_row():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 30)).astype("f4")
    Y = (X @ rng.standard_normal((30, 4)) + rng.standard_normal((200, 4))).astype("f4")
    X = np.column_stack([X, np.zeros(200, "f4")])
    X[3, -1] = 1e-4  # a unit that almost never answers, in training ...
    X[-1, -1] = 3.0  # ... and answers once, in a test row
    train, test = np.arange(150), np.arange(150, 200)
    model = RidgeCV(device="cpu").fit(X[train], Y[train])
    assert model.n_floored_ == 1
    r = np.corrcoef(model.predict(X[test])[:, 0], Y[test][:, 0])[0, 1]
    assert r > 0.95
    z = (X - X[train].mean(0)) / (X[train].std(0) + 1e-8)
    naive = Ridge(alpha=1.0).fit(z[train], Y[train]).predict(z[test])
    assert np.corrcoef(naive[:, 0], Y[test][:, 0])[0, 1] < 0.9


def test_leave_one_out_keeps_the_leverage_of_the_intercept():
    """The shortcut without 1/n sends the error to 0 for small alphas; explicit folds do not."""
    rng = np.random.default_rng(1)
    X, Y = rng.standard_normal((30, 200)), rng.standard_normal((30, 1))
    splits = list(KFold(30).split(X))
    inner = RidgeCV([0.1], cv=2, standardize=False, device="cpu").fit(X, Y)
    errors = [
        (Y[test] - Ridge(alpha=0.1).fit(X[train], Y[train]).predict(X[test])) ** 2
        for train, test in splits
    ]
    centred = X - X.mean(0)
    inverse = np.linalg.inv(centred @ centred.T + 0.1 * np.eye(30))
    dual, diagonal = inverse @ (Y - Y.mean()), np.diag(inverse)[:, None]
    right = 0.1 * dual / (0.1 * diagonal - 1 / 30)
    np.testing.assert_allclose(right**2, np.array(errors)[:, 0], rtol=1e-6)
    assert np.mean((dual / diagonal) ** 2) < 0.5 * np.mean(errors)
    assert inner.predict(X).shape == (30, 1)


def test_user_grid_at_its_edge_is_warned_about_with_the_count():
    X, Y = simulate(60, 10, n_targets=6)
    with pytest.warns(NeurodlWarning, match=r"6 of 6 targets chose the smallest or largest"):
        model = RidgeCV([1e6, 1e7], device="cpu").fit(X, Y)
    assert model.n_alphas_at_edge_ == 6


def test_batches_of_targets_do_not_change_the_result(monkeypatch):
    X, Y = simulate(50, 80, n_targets=37)
    whole = RidgeCV(device="cpu").fit(X, Y).predict(X)
    monkeypatch.setattr("neurodl.models._targets.MAX_TARGETS", {"cpu": 5})
    monkeypatch.setattr("neurodl.models._targets.MIN_TARGETS", 1)
    np.testing.assert_allclose(RidgeCV(device="cpu").fit(X, Y).predict(X), whole, rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas": [0.0, 1.0]}, "must be finite and > 0"),
        ({"alphas": "best"}, "'auto' or numbers"),
        ({"scoring": "mse"}, "`scoring` must be one of"),
        ({"sd_floor": 0.0}, "`sd_floor`"),
    ],
)
def test_wrong_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        RidgeCV(device="cpu", **options).fit(np.eye(4), np.arange(4.0))


def test_cuda_without_a_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(DeviceError, match="device='auto'"):
        RidgeCV(device="cuda").fit(np.eye(4), np.arange(4.0))
