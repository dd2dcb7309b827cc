"""StackedRidgeCV against loops over scikit-learn's Ridge in float64, with weights by scipy."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from scipy.optimize import nnls
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, KFold, ShuffleSplit
from sklearn.utils.estimator_checks import parametrize_with_checks

from neurodl.errors import NeurodlWarning
from neurodl.models import RidgeCV, StackedRidgeCV, _band_folds, _stacking, _targets

ALPHAS = np.logspace(-1, 4, 6)
SIZES = {"gabor": 3, "layer2": 90, "layer4": 20}
pytestmark = pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")


@parametrize_with_checks(
    [StackedRidgeCV(device="cpu"), StackedRidgeCV([1.0, 10.0], combine="select", device="cpu")]
)
def test_scikit_learn_api(estimator, check):
    check(estimator)


def simulate(n_samples=70, n_targets=12, sizes=SIZES, seed=0):
    """Return bands side by side, and targets that follow mixtures of them."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, sum(sizes.values()))) + 2
    signal, start = 0, 0
    for size in sizes.values():
        weights = rng.standard_normal((size, n_targets)) / np.sqrt(size)
        signal = signal + X[:, start : start + size] @ (weights * rng.uniform(0, 1, n_targets))
        start += size
    return X, signal + np.linspace(0.1, 1.5, n_targets) * rng.standard_normal(signal.shape) + 5


def bands_of(X, sizes=SIZES):
    return np.split(X, np.cumsum(list(sizes.values()))[:-1], axis=1)


def predicted_by(X, Y, train, test, alpha):
    """Return predictions of Ridge at one penalty for each target."""
    return Ridge(alpha=alpha).fit(X[train], Y[train]).predict(X[test]).reshape(len(test), -1)


def brute_force(X, Y, splits, combine, scoring="r2"):
    """Return penalties, scores and weights (n_bands, n_targets), and penalties' indices."""
    bands, n_targets = bands_of(X), Y.shape[1]
    scores = np.zeros((len(bands), len(ALPHAS), n_targets))
    missed = []
    for train, test in splits:
        out = np.zeros((len(bands), len(ALPHAS), len(test), n_targets))
        for band, own in enumerate(bands):
            for row, alpha in enumerate(ALPHAS):
                out[band, row] = predicted_by(own, Y, train, test, alpha)
                if scoring == "r2":
                    one = r2_score(Y[test], out[band, row], multioutput="raw_values")
                else:
                    pairs = zip(out[band, row].T, Y[test].T, strict=True)
                    one = np.array([np.corrcoef(a, b)[0, 1] for a, b in pairs])
                scores[band, row] += one / len(splits)
        missed.append(Y[test] - out)
    best = scores.argmax(1)
    weights = np.zeros((len(bands), n_targets))
    for target in range(n_targets):
        if combine == "select":
            weights[scores.max(1)[:, target].argmax(), target] = 1
            continue
        rows = np.concatenate(
            [out[range(len(bands)), best[:, target], :, target] for out in missed], 1
        )
        unit = np.sqrt((rows**2).sum(1).min())
        system = np.vstack([rows.T / unit, np.ones(len(bands))])
        found, _ = nnls(system, np.r_[np.zeros(rows.shape[1]), 1.0])
        weights[:, target] = found / found.sum()
    return ALPHAS[best], scores.max(1), weights


def combined_by(X, Y, train, test, alphas, weights):
    """Return the weighted predictions of scikit-learn's Ridge."""
    parts = zip(bands_of(X), alphas, weights, strict=True)
    return sum(weight * predicted_by(own, Y, train, test, alpha) for own, alpha, weight in parts)


def model_of(**options):
    return StackedRidgeCV(**{"alphas": ALPHAS, "bands": SIZES, "device": "cpu"} | options)


@pytest.mark.parametrize("scoring", ["r2", "r"])
@pytest.mark.parametrize("combine", ["stack", "select"])
@pytest.mark.parametrize("n_samples", [70, 250])
def test_every_step_equals_brute_force(n_samples, combine, scoring):
    X, Y = simulate(n_samples)
    outer, inner = list(KFold(3).split(X)), KFold(4)
    model = model_of(combine=combine, scoring=scoring, cv=inner, standardize=False)
    for fold, part in enumerate(model.predict_folds(X, Y, outer)):
        train, test = outer[fold]
        splits = list(inner.split(train))
        alphas, scores, weights = brute_force(X[train], Y[train], splits, combine, scoring)
        found = {name: values.numpy() for name, values in part.by_band.items()}
        np.testing.assert_allclose(found["alpha_by_band"], alphas)
        np.testing.assert_allclose(found["cv_score_by_band"], scores, atol=1e-8)
        np.testing.assert_allclose(found["weight"], weights, atol=1e-6)
        np.testing.assert_allclose(part.alpha, alphas[weights.argmax(0), range(12)])
        expected = combined_by(X, Y, train, test, alphas, weights)
        np.testing.assert_allclose(part.predicted.numpy(), expected, atol=1e-6)

        alone = model.fit(X[train], Y[train])
        np.testing.assert_allclose(alone.weight_, weights, atol=1e-6)
        np.testing.assert_allclose(alone.alpha_by_band_, alphas)
        np.testing.assert_allclose(alone.cv_score_by_band_, scores, atol=1e-8)
        np.testing.assert_allclose(alone.predict(X[test]), expected, atol=1e-6)
        np.testing.assert_allclose(X[test] @ alone.coef_.T + alone.intercept_, expected, atol=1e-6)


def scaled_by(X, train):
    """Return features over their sd, at least a tenth of the typical one in the band."""
    sds = [x[train].std(0) for x in bands_of(X)]
    floors = [0.1 * np.sqrt(np.mean(sd**2)) for sd in sds]
    n_floored = sum(int((sd < floor).sum()) for sd, floor in zip(sds, floors, strict=True))
    scale = [np.maximum(sd, floor) for sd, floor in zip(sds, floors, strict=True)]
    return X / np.concatenate(scale), n_floored


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("combine", ["stack", "select"])
def test_each_band_is_scaled_by_the_training_rows(combine, dtype):
    X, Y = simulate()
    X *= np.geomspace(0.01, 10, X.shape[1])
    X, Y = X.astype(dtype), Y.astype(dtype)
    train, test = np.arange(50), np.arange(50, 70)
    model = model_of(combine=combine, cv=KFold(4))
    scaled, n_floored = scaled_by(X.astype("f8"), train)
    splits = list(KFold(4).split(train))
    alphas, _, weights = brute_force(scaled[train], Y[train].astype("f8"), splits, combine)
    (part,) = model.predict_folds(X, Y, [(train, test)])
    model.fit(X[train], Y[train])
    assert model.n_floored_ == n_floored > 0
    expected = combined_by(scaled, Y.astype("f8"), train, test, alphas, weights)
    tolerance = 1e-3 if dtype == "f4" else 1e-7
    np.testing.assert_allclose(part.by_band["weight"], weights, atol=tolerance)
    for predicted in (part.predicted.numpy(), model.predict(X[test])):
        np.testing.assert_allclose(predicted, expected, atol=tolerance)
    by_hand = X[test].astype("f8") @ model.coef_.T + model.intercept_
    np.testing.assert_allclose(by_hand, expected, atol=tolerance)


@pytest.mark.parametrize("alphas", ["auto", [3.0], ALPHAS])
@pytest.mark.parametrize("combine", ["stack", "select"])
def test_one_band_is_ridge(combine, alphas):
    X, Y = simulate()
    splits = list(KFold(3).split(X))
    stacked = StackedRidgeCV(alphas, combine=combine, device="cpu")
    ridge = RidgeCV(alphas, device="cpu")
    for part, other in zip(
        stacked.predict_folds(X, Y, splits), ridge.predict_folds(X, Y, splits), strict=True
    ):
        torch.testing.assert_close(part.predicted, other.predicted, rtol=0, atol=1e-10)
        torch.testing.assert_close(part.alpha, other.alpha)
        assert (part.by_band["weight"] == 1).all()
    np.testing.assert_allclose(stacked.fit(X, Y).predict(X), ridge.fit(X, Y).predict(X), atol=1e-10)
    np.testing.assert_allclose(stacked.coef_, ridge.coef_, atol=1e-10)
    np.testing.assert_allclose(stacked.cv_score_by_band_[0], ridge.cv_score_)


@pytest.mark.parametrize("combine", ["stack", "select"])
def test_one_penalty_still_combines_the_bands(combine):
    X, Y = simulate()
    model = model_of(alphas=[10.0], combine=combine, cv=KFold(4), standardize=False).fit(X, Y)
    predicted = [np.zeros_like(Y) for _ in SIZES]
    scores = np.zeros((len(SIZES), Y.shape[1]))
    for train, test in KFold(4).split(X):
        for band, own in enumerate(bands_of(X)):
            predicted[band][test] = predicted_by(own, Y, train, test, 10.0)
            score = r2_score(Y[test], predicted[band][test], multioutput="raw_values")
            scores[band] += score / 4
    np.testing.assert_allclose(model.cv_score_by_band_, scores, atol=1e-8)
    if combine == "select":
        np.testing.assert_array_equal(model.weight_.argmax(0), scores.argmax(0))
    else:
        stacked = sum(weight * own for weight, own in zip(model.weight_, predicted, strict=True))
        single = [((Y - own) ** 2).sum(0) for own in predicted]
        assert (((Y - stacked) ** 2).sum(0) <= np.min(single, 0) * (1 + 1e-9)).all()


def two_sources(n_samples=300, n_targets=40):
    """Return two useful bands and a useless one; half of the targets follow each of the first."""
    rng = np.random.default_rng(5)
    X = rng.standard_normal((n_samples, 45))
    half = n_targets // 2
    Y = 2 * rng.standard_normal((n_samples, n_targets))
    Y[:, :half] += X[:, :15] @ rng.standard_normal((15, half))
    Y[:, half:] += X[:, 15:30] @ rng.standard_normal((15, half))
    return X, Y, {"first": 15, "second": 15, "none": 15}, np.repeat([0, 1], half)


def test_each_target_follows_its_band():
    X, Y, bands, source = two_sources()
    train, test = np.arange(200), np.arange(200, 300)
    r2 = {}
    for combine in ("select", "stack"):
        model = StackedRidgeCV(bands=bands, combine=combine, device="cpu").fit(X[train], Y[train])
        np.testing.assert_array_equal(model.weight_.argmax(0), source)
        r2[combine] = r2_score(Y[test], model.predict(X[test]))
        assert model.weight_[2].mean() < 0.05
        assert model.weight_[source, range(40)].mean() > 0.9
    single = []
    for own in (X[:, :15], X[:, 15:30]):
        one = RidgeCV(device="cpu").fit(own[train], Y[train])
        single.append(r2_score(Y[test], one.predict(own[test]), multioutput="raw_values"))
    assert r2["select"] == pytest.approx(np.where(source == 0, *single).mean(), abs=1e-9)
    assert r2["stack"] > r2["select"] - 0.005


def test_mixtures_are_predicted_better_than_by_any_band():
    rng = np.random.default_rng(3)
    X = rng.standard_normal((300, 30))
    Y = X @ rng.standard_normal((30, 20)) + 2 * rng.standard_normal((300, 20))
    train, test = np.arange(200), np.arange(200, 300)
    options = {"bands": {"first": 15, "second": 15}, "device": "cpu"}
    select, stack = (
        StackedRidgeCV(combine=combine, **options).fit(X[train], Y[train])
        for combine in ("select", "stack")
    )
    apart = r2_score(Y[test], stack.predict(X[test])) - r2_score(Y[test], select.predict(X[test]))
    assert apart > 0.1


@pytest.mark.parametrize("combine", ["stack", "select"])
def test_kernels_side_by_side_are_their_features(combine):
    X, Y = simulate()
    kernels = np.concatenate([x @ x.T for x in bands_of(X)], 1)
    sizes = dict.fromkeys(SIZES, len(X))
    splits = list(KFold(3).split(X))
    linear = model_of(combine=combine, standardize=False)
    given = model_of(combine=combine, kernel="precomputed", bands=sizes)
    for one, other in zip(
        linear.predict_folds(X, Y, splits), given.predict_folds(kernels, Y, splits), strict=True
    ):
        torch.testing.assert_close(one.predicted, other.predicted, rtol=0, atol=1e-7)
        for name, values in one.by_band.items():
            torch.testing.assert_close(values, other.by_band[name], rtol=0, atol=1e-6)
    train, test = splits[0]
    columns = np.concatenate([train + band * len(X) for band in range(len(SIZES))])
    given.bands = dict.fromkeys(SIZES, len(train))
    given.fit(kernels[np.ix_(train, columns)], Y[train])
    rows = kernels[np.ix_(test, columns)]
    expected = linear.fit(X[train], Y[train]).predict(X[test])
    np.testing.assert_allclose(given.predict(rows), expected, atol=1e-7)
    np.testing.assert_allclose(rows @ given.coef_.T + given.intercept_, expected, atol=1e-7)


def test_features_of_a_band_need_not_stand_together():
    X, Y = simulate()
    order = np.random.default_rng(1).permutation(X.shape[1])
    labels = np.repeat(list(SIZES), list(SIZES.values()))[order]
    together = model_of().fit(X, Y)
    apart = model_of(bands=labels).fit(X[:, order], Y)
    places = [apart.bands_.index(name) for name in together.bands_]
    np.testing.assert_allclose(apart.weight_[places], together.weight_, atol=1e-6)
    np.testing.assert_allclose(apart.predict(X[:, order]), together.predict(X), atol=1e-6)
    np.testing.assert_allclose(apart.coef_, together.coef_[:, order], atol=1e-6)


def collected(model, X, Y, splits, groups=None):
    """Return predictions and weights of all folds, and how many parts they came in."""
    predicted = [np.full((len(test), Y.shape[1]), np.nan) for _, test in splits]
    weights, n_parts = np.full((len(splits), len(SIZES), Y.shape[1]), np.nan), 0
    for part in model.predict_folds(X, Y, splits, groups):
        predicted[part.fold][:, part.columns] = part.predicted
        weights[part.fold][:, part.columns] = part.by_band["weight"]
        n_parts += 1
    return np.concatenate(predicted), weights, n_parts


@pytest.mark.parametrize(("n_bytes", "n_kernels"), [(60_000, 0), (200_000, 1), (600_000, 3)])
@pytest.mark.parametrize("combine", ["stack", "select"])
@pytest.mark.parametrize(
    "options",
    [{}, {"standardize": False}, {"kernel": "precomputed", "bands": dict.fromkeys(SIZES, 70)}],
)
def test_little_memory_does_not_change_the_result(
    monkeypatch, options, combine, n_bytes, n_kernels
):
    X, Y = simulate(n_targets=200)
    if "kernel" in options:
        X = np.concatenate([x @ x.T for x in bands_of(X)], 1)
    splits = list(KFold(3).split(X))
    model = model_of(combine=combine, **options)
    predicted, weights, n_parts = collected(model, X, Y, splits)
    assert n_parts == len(splits)
    fitted = model.fit(X, Y)
    whole, weight, coef = fitted.predict(X), fitted.weight_, fitted.coef_
    for module in (_stacking, _targets):
        monkeypatch.setattr(module, "MIN_TARGETS", 1)
    monkeypatch.setattr(_targets, "MAX_TARGETS", {"cpu": 4})
    for module in (_stacking, _band_folds):
        monkeypatch.setattr(module, "available_memory", lambda _: n_bytes)
    assert _band_folds.BandFolds(model, torch.zeros(70, 1), {}).n_spaces == n_kernels
    again, others, n_parts = collected(model, X, Y, splits)
    assert n_parts >= 2 * len(splits)
    np.testing.assert_allclose(again, predicted, atol=1e-7)
    np.testing.assert_allclose(others, weights, atol=1e-6)
    fitted = model.fit(X, Y)
    np.testing.assert_allclose(fitted.predict(X), whole, atol=1e-7)
    np.testing.assert_allclose(fitted.weight_, weight, atol=1e-6)
    np.testing.assert_allclose(fitted.coef_, coef, atol=1e-6)


def test_groups_stay_whole_where_bands_are_weighted():
    X, Y = simulate(72)
    groups = np.repeat(np.arange(9), 8)
    splits = list(GroupKFold(3).split(X, Y, groups))
    predicted, weights, _ = collected(model_of(cv=3), X, Y, splits, groups)
    for fold, (train, _) in enumerate(splits):
        cv = list(GroupKFold(3).split(train, None, groups[train]))
        explicit = model_of(cv=cv).fit(X[train], Y[train])
        np.testing.assert_allclose(weights[fold], explicit.weight_, atol=1e-6)
        alone = model_of(cv=3).fit(X[train], Y[train], groups=groups[train])
        np.testing.assert_allclose(alone.weight_, explicit.weight_, atol=1e-12)
    without = model_of(cv=3).fit(X, Y)
    assert not np.allclose(without.weight_, model_of(cv=3).fit(X, Y, groups).weight_, atol=1e-3)
    assert np.isfinite(predicted).all()


def test_rows_that_are_left_out_twice_or_never():
    X, Y = simulate()
    cv = ShuffleSplit(3, test_size=0.4, random_state=0)
    model = model_of(cv=cv, standardize=False).fit(X, Y)
    _, scores, weights = brute_force(X, Y, list(cv.split(X)), "stack")
    np.testing.assert_allclose(model.weight_, weights, atol=1e-6)
    np.testing.assert_allclose(model.cv_score_by_band_, scores, atol=1e-8)


def test_any_array_gives_the_same(tmp_path):
    X, Y = (values.astype("f4") for values in simulate())
    expected = model_of().fit(X, Y).predict(X)
    np.save(tmp_path / "y.npy", Y)
    mapped = np.load(tmp_path / "y.npy", mmap_mode="r")
    pairs = [
        (torch.from_numpy(X), torch.from_numpy(Y)),
        (xr.DataArray(X), xr.DataArray(Y)),
        (np.asfortranarray(X), mapped),
        (X, zarr.array(Y)),
    ]
    for features, targets in pairs:
        found = model_of().fit(features, targets).predict(features)
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("combine", ["stack", "select"])
def test_targets_with_missing_values_can_be_excluded(combine):
    X, Y = simulate()
    whole = model_of(combine=combine).fit(X, Y).predict(X)
    Y[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"target 2 in rows '7'.*nan_targets='exclude'"):
        model_of(combine=combine).fit(X, Y)
    model = model_of(combine=combine, nan_targets="exclude").fit(X, Y)
    others = np.arange(Y.shape[1]) != 2
    assert model.n_excluded_ == 1
    np.testing.assert_allclose(model.predict(X)[:, others], whole[:, others], atol=1e-9)
    for values in (model.predict(X), model.weight_, model.alpha_by_band_, model.alpha_[None]):
        np.testing.assert_array_equal(np.isnan(values).any(0), ~others)
    (part,) = model.predict_folds(X, Y, [(np.arange(40), np.arange(40, 70))])
    for values in (part.predicted, part.alpha[None], *part.by_band.values()):
        np.testing.assert_array_equal(values.isnan().any(0).numpy(), ~others)


def test_targets_and_features_that_do_not_vary():
    X, Y = simulate()
    Y[:, 1], X[:, :3] = 4.0, 1.0
    for combine in ("stack", "select"):
        model = model_of(combine=combine).fit(X, Y)
        np.testing.assert_allclose(model.predict(X)[:, 1], 4.0)
        assert np.isnan(model.cv_score_by_band_[:, 1]).all()
        assert np.isfinite(model.weight_).all()
        single = model_of(combine=combine).fit(X, Y[:, 2])
        np.testing.assert_allclose(single.predict(X), model.predict(X)[:, 2], atol=1e-9)
        assert single.coef_.shape == (X.shape[1],)


def test_edges_of_a_given_grid_count_for_the_band_that_leads():
    X, Y, bands, _ = two_sources()
    model = StackedRidgeCV(np.logspace(-2, 4, 7), bands=bands, combine="select", device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the useless band is at the edge, but leads no target
        model.fit(X, Y)
    assert (model.alpha_by_band_[2] == 1e4).any()
    with pytest.warns(NeurodlWarning, match="40 of 40 targets chose an edge of"):
        StackedRidgeCV([1e5, 1e6], bands=bands, device="cpu").fit(X, Y)


def test_pickle_keeps_the_fit():
    X, Y = simulate()
    model = model_of().fit(X, Y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine": "mean"}, "`combine` must be one of"),
        ({"kernel": "rbf"}, "`kernel` must be one of"),
        ({"alphas": [0.0]}, "must be finite and > 0"),
        ({"scoring": "mse"}, "`scoring` must be one of"),
        ({"sd_floor": 0.0}, "`sd_floor`"),
        ({"bands": {"gabor": 3}}, "`bands` must have a positive number of features"),
        ({"bands": ["gabor", "layer2"]}, r"one label for each of the 113 features.*\(2,\)"),
        ({"kernel": "precomputed"}, "'gabor' has 3 columns"),
        ({"kernel": "precomputed", "bands": None}, "'all' has 113 columns"),
    ],
)
def test_wrong_uses(options, message):
    X, Y = simulate()
    with pytest.raises(ValueError, match=message):
        model_of(**options).fit(X, Y)
    with pytest.raises(ValueError, match=message):
        next(model_of(**options).predict_folds(X, Y, [(np.arange(40), np.arange(40, 70))]))


def test_a_kernel_in_the_wrong_order_is_noticed():
    X, Y = simulate()
    kernels = np.concatenate([X @ X.T, (X @ X.T)[::-1]], 1)
    model = StackedRidgeCV(kernel="precomputed", bands={"a": 70, "b": 70}, device="cpu")
    with pytest.raises(ValueError, match="differs from its transpose"):
        model.fit(kernels, Y)
