"""predict_folds: what fit and predict give fold by fold, in blocks and with bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold, LeaveOneGroupOut, cross_val_score

from neurodl.models import RidgeCV, _choose, _targets
from neurodl.models._folds import DualFold, columns_of
from neurodl.models._solvers import gram
from neurodl.models._targets import Targets


def simulate(n_samples, n_features, n_targets=70, dtype="float32"):
    rng = np.random.default_rng(n_samples)
    X = rng.standard_normal((n_samples, n_features)) * np.geomspace(3, 0.05, n_features) + 2
    Y = X @ rng.standard_normal((n_features, n_targets))
    Y += np.linspace(0.1, 30, n_targets) * rng.standard_normal(Y.shape) + 5
    return X.astype(dtype), Y.astype(dtype)


def collected(model, X, Y, splits, groups=None):
    """Return predictions by fold and the penalties (n_folds, n_targets)."""
    predicted = [np.full((len(test), Y.shape[1]), np.nan) for _, test in splits]
    alpha = np.full((len(splits), Y.shape[1]), np.nan)
    for part in model.predict_folds(X, Y, splits, groups):
        predicted[part.fold][:, part.columns] = part.predicted.numpy()
        alpha[part.fold, part.columns] = part.alpha.numpy()
    return predicted, alpha


def inner_score(X, y, alpha):
    """Return the mean r2 of one target over the inner folds, by scikit-learn in float64."""
    cv = KFold(5, shuffle=True, random_state=0)
    return cross_val_score(Ridge(alpha=alpha), X, y.astype("f8"), cv=cv, scoring="r2").mean()


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("alphas", ["auto", [3.0], np.logspace(-3, 6, 12)])
@pytest.mark.parametrize(("n_samples", "n_features"), [(60, 200), (150, 40), (60, 55)])
@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_equals_fit_and_predict(n_samples, n_features, alphas, standardize):
    X, Y = simulate(n_samples, n_features)
    splits = list(KFold(4, shuffle=True, random_state=0).split(X))
    model = RidgeCV(alphas, standardize=standardize, device="cpu")
    predicted, alpha = collected(model, X, Y, splits)
    for fold, (train, test) in enumerate(splits):
        alone = RidgeCV(alphas, standardize=standardize, device="cpu").fit(X[train], Y[train])
        for target in np.flatnonzero(~np.isclose(alpha[fold], alone.alpha_, rtol=1e-4)):
            # float32 may tell a tie differently: one to rounding only
            penalties = alpha[fold, target], alone.alpha_[target]
            scaled = X[train].astype("f8") / alone._scaling.scale.numpy()
            scores = [inner_score(scaled, Y[train, target], one) for one in penalties]
            assert abs(scores[0] - scores[1]) < 1e-6
        np.testing.assert_allclose(
            predicted[fold], alone.predict(X[test]), atol=2e-3 * Y.std(), rtol=1e-3
        )


@pytest.mark.parametrize(("n_samples", "n_features"), [(60, 200), (150, 40)])
@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_predictions_are_those_of_scikit_learn_at_the_same_penalty(n_samples, n_features):
    X, Y = simulate(n_samples, n_features, dtype="float64")
    splits = list(KFold(3).split(X))
    model = RidgeCV(np.logspace(-2, 5, 8), standardize=False, device="cpu")
    predicted, alpha = collected(model, X, Y, splits)
    for (train, test), ours, chosen in zip(splits, predicted, alpha, strict=True):
        theirs = Ridge(alpha=chosen).fit(X[train], Y[train]).predict(X[test])
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * Y.std())


@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_groups_reach_the_inner_folds():
    X, Y = simulate(80, 30)
    groups = np.repeat(["a", "b", "c", "d"], 20)
    splits = list(LeaveOneGroupOut().split(X, None, groups))
    model = RidgeCV(np.logspace(0, 4, 6), cv=3, device="cpu")
    _, alpha = collected(model, X, Y, splits, groups)
    for fold, (train, _) in enumerate(splits):
        alone = RidgeCV(np.logspace(0, 4, 6), cv=3, device="cpu")
        alone.fit(X[train], Y[train], groups[train])
        np.testing.assert_array_equal(alpha[fold], alone.alpha_)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("batch", [2048, 19, 1])
@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
@pytest.mark.parametrize("n_features", [200, 20])
def test_blocks_and_threads_do_not_change_the_result(monkeypatch, batch, n_threads, n_features):
    X, Y = simulate(60, n_features, n_targets=37)
    splits = list(KFold(3).split(X))
    expected, alpha = collected(RidgeCV(screening=False, device="cpu"), X, Y, splits)
    monkeypatch.setattr(_targets, "MAX_TARGETS", {"cpu": batch})
    monkeypatch.setattr(_targets, "MIN_TARGETS", 1)
    monkeypatch.setattr(_choose, "available_memory", lambda _: 4)  # one operator at a time
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        found, again = collected(RidgeCV(device="cpu"), X, Y, splits)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(alpha, again)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * Y.std())


@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_many_targets_take_one_map_per_penalty():
    """With more targets than make maps pay, the predictions are the same."""
    X, Y = simulate(40, 100, n_targets=30)
    many = np.tile(Y, (1, 100))
    splits = list(KFold(4).split(X))
    few, alpha = collected(RidgeCV(screening=False, device="cpu"), X, Y, splits)
    lots, again = collected(RidgeCV(screening=False, device="cpu"), X, many, splits)
    np.testing.assert_allclose(again, np.tile(alpha, (1, 100)))
    for one, other in zip(few, lots, strict=True):
        np.testing.assert_allclose(np.tile(one, (1, 100)), other, atol=1e-4 * Y.std())


def test_responses_may_be_a_memory_map(tmp_path):
    X, Y = simulate(60, 30)
    np.save(tmp_path / "y.npy", Y)
    splits = list(KFold(3).split(X))
    expected, _ = collected(RidgeCV(device="cpu"), X, Y, splits)
    mapped = np.load(tmp_path / "y.npy", mmap_mode="r")
    found, _ = collected(RidgeCV(device="cpu"), X, mapped, splits)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_nested_fold_predicts_rows_left_out():
    X, Y = simulate(60, 200, dtype="float64")
    grid, place = torch.tensor([0.5, 20.0, 900.0]).double(), torch.arange(70) % 3
    own, train, test = np.arange(60)[::-1][:50].copy(), np.arange(5, 50), np.arange(5)
    fold = DualFold(torch.from_numpy(X @ X.T), torch.from_numpy(own))
    rows = torch.from_numpy(train), torch.from_numpy(test)
    nested = fold.nested(*rows)
    predict = _choose.predictor(nested, grid, place, torch.float64)
    targets = Targets(Y, torch.from_numpy(X), own[train])
    (predicted,) = [found + block.mean[:, None] for block, found in targets.map(predict)]
    oracle = Ridge(alpha=grid[place].numpy()).fit(X[own[train]], Y[own[train]])
    np.testing.assert_allclose(predicted.T, oracle.predict(X[own[test]]), atol=1e-6 * Y.std())


def test_nested_folds_are_kept_where_that_is_asked_for():
    fold = DualFold(torch.eye(6).double(), torch.arange(5))
    rows, others = (torch.arange(3), torch.arange(3, 5)), (torch.arange(2), torch.arange(2, 5))
    assert fold.nested(*rows) is not fold.nested(*rows)
    fold.keep_nested()
    assert fold.nested(*rows) is fold.nested(*rows)
    assert fold.nested(*rows) is not fold.nested(*others)
    assert len(fold.nested(*others).whole.eigenvalues) == 2


@pytest.mark.parametrize("rows", [[3], [0, 1, 2, 7, 8], [9, 8, 0, 4, 4], list(range(0, 20, 2))])
def test_columns_are_copied_run_by_run_in_their_order(rows):
    values = torch.randn(5, 20)
    found = columns_of(values, torch.tensor(rows))
    assert torch.equal(found, values[:, rows])
    assert found.data_ptr() != values.data_ptr()


@pytest.mark.parametrize("smallest_alpha", [0.0, 1e12])  # products of float64, and of float32
@pytest.mark.parametrize("n_samples", [1, 127, 128, 129, 500, 1003])
def test_a_kernel_made_by_half_is_whole(n_samples, smallest_alpha):
    X, _ = simulate(n_samples, 1500, 1)
    offset, scale = X.mean(0), X.std(0) + 1
    found = gram(*map(torch.from_numpy, (X, offset, scale)), smallest_alpha)
    rows = (X.astype(float) - offset) / scale
    expected = rows @ rows.T
    size = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=(1e-5 if smallest_alpha else 1e-12) * size)
