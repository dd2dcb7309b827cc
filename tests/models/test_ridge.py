"""RidgeCV against scikit-learn's Ridge in float64, fold by fold."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut, ShuffleSplit
from sklearn.utils.estimator_checks import parametrize_with_checks

from neurodl.errors import DeviceError, NeurodlWarning
from neurodl.models import RidgeCV, _targets

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
    with pytest.warns(NeurodlWarning, match=r"6 of 6 targets chose an edge of"):
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


@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_any_array_gives_the_same(tmp_path):
    X, Y = simulate(50, 20, n_targets=7)
    X, Y = X.astype("f4"), Y.astype("f4")
    expected = RidgeCV(device="cpu").fit(X, Y).predict(X)
    np.save(tmp_path / "y.npy", Y)
    stored = zarr.array(Y)
    mapped = np.load(tmp_path / "y.npy", mmap_mode="r")
    frozen = X.copy()
    frozen.flags.writeable = False
    pairs = [
        (torch.from_numpy(X), torch.from_numpy(Y)),
        (xr.DataArray(X), xr.DataArray(Y)),
        (frozen, mapped),
        (X, stored),
        (np.asfortranarray(X), np.asfortranarray(Y)),
        (X[::-1].copy()[::-1], Y[::-1].copy()[::-1]),
    ]
    for features, targets in pairs:
        found = RidgeCV(device="cpu").fit(features, targets).predict(features)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_half_precision_features_are_computed_in_single():
    X, Y = simulate(50, 20, n_targets=7)
    half = RidgeCV(device="cpu").fit(X.astype("f2"), Y)
    assert half.predict(X.astype("f2")).dtype == np.float32


def test_missing_values_name_rows_and_targets():
    X, Y = simulate(50, 20, n_targets=7)
    X[[4, 9], 3] = np.nan
    with pytest.raises(ValueError, match=r"in 2 rows \('4', '9'\) and 1 features"):
        RidgeCV(device="cpu").fit(X, Y)
    with pytest.raises(ValueError, match=r"in 2 rows \('4', '9'\) and 1 features"):
        RidgeCV(device="cpu").fit(torch.from_numpy(X), Y)
    X, Y = simulate(50, 20, n_targets=7)
    Y[7, 2] = np.inf
    with pytest.raises(ValueError, match=r"target 2 in rows '7'.*nan_targets='exclude'"):
        RidgeCV(device="cpu").fit(X, Y)


@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_targets_with_missing_values_can_be_excluded():
    X, Y = simulate(50, 20, n_targets=7)
    whole = RidgeCV(device="cpu").fit(X, Y)
    Y[7, 2] = np.nan
    model = RidgeCV(nan_targets="exclude", device="cpu").fit(X, Y)
    assert model.n_excluded_ == 1
    others = np.arange(7) != 2
    np.testing.assert_allclose(model.predict(X)[:, others], whole.predict(X)[:, others])
    assert np.isnan(model.predict(X)[:, 2]).all() and np.isnan(model.alpha_[2])
    (part,) = RidgeCV(nan_targets="exclude", device="cpu").predict_folds(
        X, Y, [(np.arange(40), np.arange(40, 50))]
    )
    np.testing.assert_array_equal(part.predicted.isnan().any(0).numpy(), ~others)


@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_out_of_memory_goes_on_with_smaller_blocks(monkeypatch, caplog):
    X, Y = simulate(60, 20, n_targets=90)
    expected = RidgeCV(device="cpu").fit(X, Y)
    read = _targets.Targets._read

    def small(self, columns):
        if columns.stop - columns.start > 30:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
        return read(self, columns)

    monkeypatch.setattr(_targets.Targets, "_read", small)
    with caplog.at_level("WARNING"):
        found = RidgeCV(device="cpu").fit(X, Y)
    assert "going on with" in caplog.text
    np.testing.assert_allclose(found.predict(X), expected.predict(X), rtol=1e-9)
    monkeypatch.setattr(_targets, "MIN_TARGETS", 90)
    with pytest.raises(RuntimeError, match="can't allocate"):
        RidgeCV(device="cpu").fit(X, Y)


@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
@pytest.mark.parametrize("n_features", [1, 30, 300])
def test_degenerate_input(n_features):
    X, Y = simulate(40, n_features, n_targets=5)
    X[:, n_features // 2 :] = X[:, :1]  # rank-deficient
    X[20:] = X[:20]  # duplicate rows
    Y[:, 1] = 4.0
    model = RidgeCV(ALPHAS, standardize=False, device="cpu").fit(X, Y[:, :])
    assert np.isnan(model.cv_score_[1]) and model.alpha_[1] == ALPHAS[-1]
    np.testing.assert_allclose(model.predict(X)[:, 1], 4.0)
    oracle = Ridge(alpha=model.alpha_).fit(X, Y).predict(X)
    np.testing.assert_allclose(model.predict(X), oracle, atol=1e-6 * Y.std())
    single = RidgeCV(ALPHAS, standardize=False, device="cpu").fit(X, Y[:, :1])
    np.testing.assert_allclose(single.predict(X)[:, 0], model.predict(X)[:, 0], atol=1e-9)
    constant = RidgeCV(device="cpu").fit(np.ones_like(X), Y).predict(np.ones_like(X))
    np.testing.assert_allclose(constant, np.tile(Y.mean(0), (40, 1)), atol=1e-9)


def test_pickle_keeps_the_fit():
    X, Y = simulate(50, 20, n_targets=7)
    model = RidgeCV(device="cpu").fit(X, Y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


def test_fewer_rows_than_folds_leave_one_out():
    X, Y = simulate(4, 20, n_targets=3)
    model = RidgeCV([10.0, 100.0], cv=5, scoring="r2", device="cpu")
    with pytest.warns(NeurodlWarning, match="targets chose"):
        model.fit(X, Y)  # single held-out rows do not vary: no target has a score
    assert np.isnan(model.cv_score_).all()


@pytest.mark.parametrize("cv", [1, ShuffleSplit(3, test_size=0.3, random_state=0)])
def test_any_splitter(cv):
    X, Y = simulate(90, 20, n_targets=6)
    if cv == 1:
        with pytest.raises(ValueError, match="`cv` must be at least 2"):
            RidgeCV(cv=cv, device="cpu").fit(X, Y)
        return
    model = RidgeCV(ALPHAS, cv=cv, standardize=False, device="cpu").fit(X, Y)
    scores = brute_force(X, Y, list(cv.split(X)), "r2")
    np.testing.assert_allclose(model.cv_score_, scores.max(0), atol=1e-8)


def test_a_grid_that_is_too_short_is_counted_and_the_next_one_named(rng):
    X = rng.standard_normal((60, 30))
    Y = np.hstack([X @ rng.standard_normal((30, 2)), rng.standard_normal((60, 3))])
    with pytest.warns(NeurodlWarning) as caught:
        model = RidgeCV(np.logspace(-1, 1, 5), device="cpu").fit(X, Y)
    said = str(caught[0].message)
    low, high = ((model.alpha_ == edge).sum() for edge in (0.1, 10.0))
    assert model.n_alphas_at_edge_ == low + high == 5
    assert f"{low} the smallest (0.1), {high} the largest (10)" in said
    assert "alphas=np.logspace(-4, 4, 17)" in said
    with pytest.warns(NeurodlWarning, match=r"np.logspace\(-1, 4, 11\)"):
        RidgeCV(np.logspace(-1, 1, 5), device="cpu").fit(X, Y[:, 2:])


def test_scores_keep_what_was_warned_of(rng):
    import neurodl as ndl

    ids = [f"s{n}" for n in range(40)]
    features = xr.DataArray(
        rng.standard_normal((40, 5)), {"stimulus": ids}, ("stimulus", "feature")
    )
    responses = xr.DataArray(
        rng.standard_normal((40, 2)), {"stimulus": ids}, ("stimulus", "unit")
    ).assign_attrs(units="a.u.")
    with pytest.warns(NeurodlWarning, match="To widen the grid"):
        scores = ndl.cross_validate(RidgeCV([1.0, 2.0], device="cpu"), features, responses)
    assert "To widen the grid" in scores.attrs["warnings"]
    assert "To widen the grid" in ndl.report(scores).html()
