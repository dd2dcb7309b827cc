"""What linear models share: blocks, folds, groups, delays, missing targets, degenerate input."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut

from neurodl.models import (
    PLS,
    FractionalRidgeCV,
    ReducedRankRidgeCV,
    _spaces,
    _targets,
    _targetwise,
)
from neurodl.scores import cross_validate, permutation_test

MODELS = {
    "joint": PLS(np.arange(1, 7), device="cpu"),
    "each": PLS(np.arange(1, 7), targets="each", device="cpu"),
    "fractional": FractionalRidgeCV(device="cpu"),
    "reduced": ReducedRankRidgeCV(ranks=[1, 2, 3, 4], device="cpu"),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def simulate(n_samples=60, n_features=40, n_targets=13, seed=0):
    """Return features with non-zero means, and targets of rank 3 and of every reliability."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_features)) * np.geomspace(2, 0.2, n_features) + 3
    Y = X @ rng.standard_normal((n_features, 3)) @ rng.standard_normal((3, n_targets))
    return X, Y + np.linspace(1, 40, n_targets) * rng.standard_normal(Y.shape) + 5


def collected(model, X, Y, splits, groups=None, runs=None):
    """Return predictions (n_samples, n_targets), and what was chosen (n_folds, n_targets)."""
    predicted, chosen = np.full(Y.shape, np.nan), np.full((len(splits), Y.shape[1]), np.nan)
    for part in model.predict_folds(X, Y, splits, groups, runs):
        test = splits[part.fold][1]
        predicted[np.ix_(test, np.arange(Y.shape[1])[part.columns])] = part.predicted.numpy()
        chosen[part.fold, part.columns] = part.alpha.numpy()
    return predicted, chosen


def chosen_by(model):
    """Return what a fitted model chose, as it is reported fold by fold."""
    for name in ("n_components_", "fraction_", "alpha_"):
        if hasattr(model, name):
            return getattr(model, name)
    raise AssertionError


@every_model
@pytest.mark.parametrize("n_features", [200, 40, 9, 1])
def test_folds_are_what_fit_and_predict_give(model, n_features):
    X, Y = simulate(60, n_features)
    if n_features < 6:
        model = clone(model).set_params(**auto(model))
    splits = list(KFold(3).split(X))
    predicted, chosen = collected(model, X, Y, splits)
    for fold, (train, test) in enumerate(splits):
        alone = clone(model).fit(X[train], Y[train])
        np.testing.assert_array_equal(chosen[fold], np.broadcast_to(chosen_by(alone), 13))
        np.testing.assert_allclose(alone.predict(X[test]), predicted[test], atol=1e-8 * Y.std())
        by_weights = X[test] @ alone.coef_.T + alone.intercept_
        np.testing.assert_allclose(by_weights, predicted[test], atol=1e-8 * Y.std())


def auto(model):
    """Return parameters for data that are too small for the ladders of `MODELS`."""
    names = {"n_components", "ranks"} & set(model.get_params())
    return dict.fromkeys(names, "auto")


@every_model
@pytest.mark.parametrize("n_features", [9, 40])
def test_kernel_and_covariance_give_the_same(monkeypatch, model, n_features):
    X, Y = simulate(90, n_features)
    splits = list(KFold(3).split(X))
    found = []
    for pays in (False, True):
        monkeypatch.setattr(_spaces, "covariance_pays", lambda *_, pays=pays: pays)
        found.append(collected(model, X, Y, splits))
    np.testing.assert_array_equal(found[0][1], found[1][1])
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-9 * Y.std())


@every_model
def test_blocks_of_targets_do_not_change_the_result(monkeypatch, model):
    X, Y = simulate()
    splits = list(KFold(3).split(X))
    expected = collected(model, X, Y, splits)
    fitted = clone(model).fit(X, Y)
    monkeypatch.setattr(_targets, "MAX_TARGETS", {"cpu": 5})
    monkeypatch.setattr(_targets, "MIN_TARGETS", 1)
    monkeypatch.setattr(_targetwise, "WORK_BYTES", {"cpu": 2**15})
    found = collected(model, X, Y, splits)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], atol=1e-9 * Y.std())
    again = clone(model).fit(X, Y)
    np.testing.assert_array_equal(chosen_by(again), chosen_by(fitted))
    np.testing.assert_allclose(again.predict(X), fitted.predict(X), atol=1e-9 * Y.std())


@every_model
@pytest.mark.parametrize("n_features", [9, 150])
def test_single_precision_predicts_what_double_does(model, n_features):
    X, Y = (x.astype("f4") for x in simulate(90, n_features))
    splits = list(KFold(3).split(X))
    single, of_single = collected(model, X, Y, splits)
    double, of_double = collected(model, X.astype("f8"), Y.astype("f8"), splits)
    same = of_single == of_double
    assert same.mean() > 0.97  # single precision may tell a tie differently
    for (_, test), agree in zip(splits, same, strict=True):
        apart = single[test][:, agree] - double[test][:, agree]
        assert np.abs(apart).max() < 2e-5 * Y.std()
    predicted = clone(model).fit(X, Y).predict(X)
    assert predicted.dtype == np.float32


@every_model
def test_groups_reach_the_inner_folds_through_cross_validate(model):
    X, Y = simulate(n_targets=5)
    groups = np.repeat(["a", "b", "c", "d", "e"], 12)
    model = clone(model).set_params(cv=3)
    ids = {"stimulus": [f"s{i:02d}" for i in range(60)], "run": ("stimulus", groups)}
    features = xr.DataArray(X.astype("f4"), dims=("stimulus", "feature"), coords=ids)
    responses = xr.DataArray(
        Y.astype("f4"), dims=("stimulus", "voxel"), coords=ids, attrs={"units": "a.u."}
    )
    scores = cross_validate(
        model, features, responses, cv="leave-one-group-out", groups="run", keep_predictions=True
    )
    for fold, (train, test) in enumerate(LeaveOneGroupOut().split(X, None, groups)):
        inner = list(GroupKFold(3).split(X[train], None, groups[train]))
        alone = clone(model).set_params(cv=inner).fit(X[train], Y[train])
        np.testing.assert_allclose(
            scores["alpha"][0, fold], np.broadcast_to(chosen_by(alone), 5), rtol=1e-5
        )
        found = scores["predicted"][0][test]
        np.testing.assert_allclose(found, alone.predict(X[test]), atol=1e-4 * Y.std())
    with pytest.raises(ValueError, match="at least 2 groups"):
        clone(model).fit(X, Y, groups=np.zeros(60))
    with pytest.raises(ValueError, match="has to be fitted anew"):
        permutation_test(model, features, responses)


@every_model
@pytest.mark.parametrize("centre", ["all", "runs"])
def test_delays_are_those_of_an_explicit_design(model, centre):
    X, Y = simulate(n_features=6)
    Y = np.roll(Y, 1, axis=0)  # follows the features one sample later
    runs = np.repeat(["a", "b", "c"], 20)
    options = {"standardize": False, "cv": list(KFold(3).split(X))}
    if "alphas" in model.get_params():  # automatic ones know only about how large delayed rows are
        options["alphas"] = np.logspace(-2, 8, 11)
    delayed = clone(model).set_params(delays=[1, 2], centre=centre, **options)
    found = delayed.fit(X, Y, runs=runs)
    design, targets = np.zeros((60, 12)), Y.copy()
    for run in np.unique(runs):
        rows = np.flatnonzero(runs == run)
        for place, delay in enumerate((1, 2)):
            part = X[rows[:-delay]] - X.mean(0)
            design[rows[delay:], 6 * place : 6 * place + 6] = part
        if centre == "runs":
            design[rows] -= design[rows].mean(0)
            targets[rows] -= targets[rows].mean(0)
    explicit = clone(model).set_params(**options).fit(design, targets)
    np.testing.assert_array_equal(chosen_by(found), chosen_by(explicit))
    expected = explicit.predict(design)
    np.testing.assert_allclose(found.predict(X, runs=runs), expected, atol=1e-8 * Y.std())


@every_model
def test_single_target_is_a_column(model):
    X, Y = simulate(n_targets=1)
    model = clone(model).set_params(**auto(model))
    column = clone(model).fit(X, Y)
    flat = clone(model).fit(X, Y[:, 0])
    assert flat.predict(X).shape == (60,) and flat.coef_.shape == (40,)
    np.testing.assert_array_equal(flat.predict(X), column.predict(X)[:, 0])


@every_model
@pytest.mark.parametrize("n_features", [1, 40, 150])
def test_constant_targets_and_features_predict_means(model, n_features):
    X, Y = simulate(60, n_features)
    model = clone(model).set_params(**auto(model))
    Y[:, 4] = 7.0
    X[:, n_features // 2 + 1 :] = 1.0
    fitted = clone(model).fit(X, Y)
    np.testing.assert_allclose(fitted.predict(X)[:, 4], 7.0, rtol=1e-9)
    assert np.isfinite(fitted.predict(X)).all()
    if np.ndim(fitted.cv_score_):
        assert np.isnan(fitted.cv_score_[4])
        least = {"n_components_": 1, "fraction_": 0.1}
        assert all(getattr(fitted, name, [v] * 5)[4] == v for name, v in least.items())
    others = np.arange(13) != 4
    expected = clone(model).fit(X, Y[:, others]).predict(X)
    np.testing.assert_allclose(fitted.predict(X)[:, others], expected, atol=1e-9 * Y.std())
    nothing = clone(model).fit(np.ones_like(X), Y)
    np.testing.assert_allclose(nothing.predict(X), np.tile(Y.mean(0), (60, 1)), atol=1e-9)


@every_model
def test_targets_with_missing_values_can_be_excluded(model):
    X, Y = simulate()
    others = np.arange(13) != 2
    expected = clone(model).fit(X, Y[:, others])
    Y[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"target 2 in rows '7'"):
        clone(model).fit(X, Y)
    found = clone(model).set_params(nan_targets="exclude").fit(X, Y)
    assert found.n_excluded_ == 1 and np.isnan(found.predict(X)[:, 2]).all()
    np.testing.assert_allclose(found.predict(X)[:, others], expected.predict(X), atol=1e-9)
    (part,) = found.predict_folds(X, Y, [(np.arange(40), np.arange(40, 60))])
    np.testing.assert_array_equal(part.predicted.isnan().any(0).numpy(), ~others)


@every_model
def test_pickle_and_clone_keep_what_they_should(model):
    X, Y = simulate()
    fitted = clone(model).fit(X, Y)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(X), fitted.predict(X))
    fresh = clone(fitted)
    assert fresh.get_params().keys() == fitted.get_params().keys()
    assert not hasattr(fresh, "cv_score_")


@every_model
def test_seed_shuffles_the_inner_folds(model):
    X, Y = simulate()
    scores = [clone(model).set_params(seed=seed).fit(X, Y).cv_score_ for seed in (0, 0, 1)]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.allclose(scores[0], scores[2])
