"""BandedRidgeCV against scikit-learn's Ridge and himalaya, and against loops over inner folds."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from himalaya.kernel_ridge import WeightedKernelRidge, solve_multiple_kernel_ridge_random_search
from himalaya.scoring import r2_score as himalaya_r2
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, KFold
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_limits

from neurodl.metrics import r2, r2_by_band
from neurodl.models import BandedRidgeCV, RidgeCV, banded_ridge

SIZES = {"gabor": 3, "layer2": 60, "layer4": 20}
N_TARGETS = 12


@parametrize_with_checks(
    [BandedRidgeCV(device="cpu"), BandedRidgeCV(alphas_by_band=[3.0], device="cpu")]
)
def test_scikit_learn_api(estimator, check):
    check(estimator)


def simulate(n_samples=60, n_targets=N_TARGETS, sizes=SIZES, seed=0, noise=1.0):
    """Return bands side by side, and targets that follow mixtures of them."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, sum(sizes.values()))) + 2
    signal = 0
    for part in bands_of(X, sizes):
        weights = rng.standard_normal((part.shape[1], n_targets)) / np.sqrt(part.shape[1])
        signal = signal + part @ (weights * rng.uniform(0, 1, n_targets))
    return X, signal + noise * rng.standard_normal(signal.shape) + 5


def bands_of(X, sizes=SIZES):
    return np.split(X, np.cumsum(list(sizes.values()))[:-1], axis=1)


def by_band(penalties, n_targets=N_TARGETS):
    penalties = np.asarray(penalties, float)
    return np.broadcast_to(penalties.reshape(len(penalties), -1), (len(penalties), n_targets))


@threadpool_limits.wrap(limits=1)  # small decompositions wait for threads
def ridge(X, Y, train, test, penalties, sizes=SIZES):
    """Return predictions and weights of Ridge on features over the root of their penalty."""
    penalties = by_band(penalties, Y.shape[1])
    predicted, coef = np.empty((len(test), Y.shape[1])), np.empty((Y.shape[1], X.shape[1]))
    for target, own in enumerate(penalties.T):
        root = np.repeat(own**-0.5, list(sizes.values()))
        model = Ridge(alpha=1.0, solver="svd").fit(X[train] * root, Y[train, target])
        predicted[:, target], coef[target] = model.predict(X[test] * root), model.coef_ * root
    return predicted, coef


def inner_score(X, Y, splits, penalties, scoring="r2", sizes=SIZES):
    """Return the mean score over inner folds at given penalties, (n_targets,)."""
    scores = []
    for train, test in splits:
        predicted, _ = ridge(X, Y, train, test, penalties, sizes)
        if scoring == "r2":
            scores.append(r2_score(Y[test], predicted, multioutput="raw_values"))
        else:
            pairs = zip(predicted.T, Y[test].T, strict=True)
            scores.append([np.corrcoef(one, other)[0, 1] for one, other in pairs])
    return np.mean(scores, 0)


def model_of(**options):
    return BandedRidgeCV(**{"bands": SIZES, "device": "cpu", "standardize": False} | options)


def random_penalties(n_targets=N_TARGETS, lowest=-1, highest=3):
    return 10 ** np.random.default_rng(1).uniform(lowest, highest, (len(SIZES), n_targets))


@pytest.mark.parametrize(("dtype", "tolerance"), [("f4", 2e-5), ("f8", 1e-9)])
@pytest.mark.parametrize("n_samples", [24, 60, 200])  # more features: of rows, of columns; fewer
@pytest.mark.parametrize("penalties", [[1.0, 100.0, 10.0], random_penalties()])
def test_given_penalties_are_those_of_scaled_features(n_samples, dtype, tolerance, penalties):
    X, Y = (values.astype(dtype) for values in simulate(n_samples + 20))
    train, test = np.arange(n_samples), np.arange(n_samples, n_samples + 20)
    expected, coef = ridge(X.astype("f8"), Y.astype("f8"), train, test, penalties)
    model = model_of(alphas_by_band=penalties).fit(X[train], Y[train])
    found = model.predict(X[test])
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_allclose(found, expected, atol=tolerance)
    np.testing.assert_allclose(model.coef_, coef, atol=tolerance)
    by_hand = X[test].astype("f8") @ model.coef_.T + model.intercept_
    np.testing.assert_allclose(by_hand, expected, atol=3 * tolerance)
    np.testing.assert_allclose(model.alpha_by_band_, by_band(penalties), rtol=1e-9)
    np.testing.assert_allclose(model.alpha_, 1 / (1 / by_band(penalties)).sum(0))
    assert np.isnan(model.cv_score_).all()
    (part,) = model.predict_folds(X, Y, [(train, test)])
    np.testing.assert_allclose(part.predicted, expected, atol=tolerance)
    np.testing.assert_allclose(part.by_band["alpha_by_band"], by_band(penalties), rtol=1e-9)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("n_samples", [40, 60, 200])
def test_penalties_that_differ_by_many_orders_of_magnitude(n_samples, dtype):
    X, Y = (values.astype(dtype) for values in simulate(n_samples + 20, 40))
    train, test = np.arange(n_samples), np.arange(n_samples, n_samples + 20)
    penalties = random_penalties(40, -5, 6)
    expected, _ = ridge(X.astype("f8"), Y.astype("f8"), train, test, penalties)
    model = model_of(alphas_by_band=penalties).fit(X[train], Y[train])
    (part,) = model.predict_folds(X, Y, [(train, test)])
    for found in (model.predict(X[test]), part.predicted.numpy()):
        error = np.abs(found - expected).max(0) / expected.std(0)
        assert error.max() < (1e-3 if dtype == "f4" else 1e-7)
        assert np.median(error) < (2e-6 if dtype == "f4" else 1e-9)


@pytest.mark.parametrize("options", [{}, {"delays": [0, 2]}, {"standardize": True}])
@pytest.mark.parametrize(("dtype", "tolerance"), [("f4", 2e-5), ("f8", 1e-8)])
def test_bands_much_wider_than_rows_keep_weights_of_rows(dtype, tolerance, options):
    sizes, penalties = {"narrow": 4, "wide": 300}, [2.0, 500.0]
    X, Y = (values.astype(dtype) for values in simulate(60, sizes=sizes))
    train, test = np.arange(40), np.arange(40, 60)
    model = model_of(bands=sizes, alphas_by_band=penalties, **options).fit(X[train], Y[train])
    assert [band.design is None for band in model._bands] == [True, False]
    (part,) = model.predict_folds(X[:40], Y[:40], [(np.arange(40), np.arange(40))])
    np.testing.assert_allclose(model.predict(X[train]), part.predicted, atol=tolerance)
    rows = X[test].astype("f8")
    if "delays" in options:  # before the start a feature has its mean
        late = np.r_[np.full((2, 304), X[train].mean(0)), rows[:-2]]
        rows = np.concatenate([rows, late], 1)
    by_hand = rows @ model.coef_.T + model.intercept_
    np.testing.assert_allclose(model.predict(X[test]), by_hand, atol=10 * tolerance)
    if not options:
        expected, coef = ridge(X.astype("f8"), Y.astype("f8"), train, test, penalties, sizes)
        np.testing.assert_allclose(model.predict(X[test]), expected, atol=tolerance)
        np.testing.assert_allclose(model.coef_, coef, atol=tolerance)


@pytest.mark.parametrize("n_samples", [60, 200])
def test_himalaya_at_the_same_penalties(n_samples):
    X, Y = simulate(n_samples)
    X, Y = X - X.mean(0), Y - Y.mean(0)
    penalties = random_penalties()
    kernels = np.stack([part @ part.T for part in bands_of(X)])
    peer = WeightedKernelRidge(
        alpha=1.0, deltas=-np.log(penalties), kernels="precomputed", solver_params={"tol": 1e-12,
        "max_iter": 1000},
    )  # fmt: skip
    expected = peer.fit(kernels, Y).predict(kernels)
    found = model_of(alphas_by_band=penalties).fit(X, Y).predict(X)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("scoring", ["r2", "r"])
@pytest.mark.parametrize("n_samples", [60, 200])
def test_inner_scores_are_those_of_a_loop_at_the_penalties_found(n_samples, scoring):
    X, Y = simulate(n_samples)
    cv = KFold(3)
    model = model_of(cv=cv, scoring=scoring).fit(X, Y)
    splits = list(cv.split(X))
    expected = inner_score(X, Y, splits, model.alpha_by_band_, scoring)
    np.testing.assert_allclose(model.cv_score_, expected, atol=3e-4)
    predicted, _ = ridge(X, Y, np.arange(n_samples), np.arange(n_samples), model.alpha_by_band_)
    np.testing.assert_allclose(model.predict(X), predicted, atol=1e-7)
    # the mixture that the search starts from: all bands of the same size
    scaled = np.concatenate([x / np.sqrt(x.var(0).sum()) for x in bands_of(X)], 1)
    common = RidgeCV(cv=cv, scoring=scoring, standardize=False, device="cpu").fit(scaled, Y)
    assert (model.cv_score_ >= common.cv_score_ - 3e-4).all()
    assert (model.cv_score_ > common.cv_score_ + 1e-3).mean() > 0.5


@pytest.mark.parametrize("alphas", [[1e-6], [1e-6, 1e-5], [1e9]])
@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_a_grid_far_off_is_where_the_search_starts(alphas):
    X, Y = simulate(200)
    cv = KFold(3)
    model = model_of(alphas=alphas, cv=cv).fit(X, Y)
    splits = list(cv.split(X))
    expected = inner_score(X, Y, splits, model.alpha_by_band_)
    np.testing.assert_allclose(model.cv_score_, expected, atol=3e-4)
    start = inner_score(X, Y, splits, [max(alphas)] * 3)
    assert (model.cv_score_ >= start - 3e-4).all()


def test_inner_scores_are_no_worse_than_of_100_random_mixtures():
    X, Y = simulate(120, 30, noise=1.0)
    cv = KFold(4)
    middle, shifted = X - X.mean(0), Y - Y.mean(0)
    scaled = [x / np.sqrt(x.var(0).sum()) for x in bands_of(middle)]
    deltas, _, _ = solve_multiple_kernel_ridge_random_search(
        np.stack([x @ x.T for x in scaled]), shifted, n_iter=100, alphas=np.logspace(-3, 4, 15),
        score_func=himalaya_r2, cv=cv, random_state=0, progress_bar=False,
    )  # fmt: skip
    unit = np.array([x.var(0).sum() for x in bands_of(X)])
    splits = list(cv.split(X))
    theirs = inner_score(X, Y, splits, unit[:, None] / np.exp(deltas))
    found = model_of(cv=cv).fit(X, Y)
    ours = inner_score(X, Y, splits, found.alpha_by_band_)
    assert ours.mean() >= theirs.mean()
    predicted = theirs > 0.1
    assert predicted.sum() > 10
    assert (ours >= theirs - 0.01)[predicted].all()


def one_of_three(n_samples=300, n_targets=30, seed=5):
    """Return three bands, and targets of which each follows one of them."""
    rng = np.random.default_rng(seed)
    sizes = {"small": 10, "middle": 40, "large": 250}
    X = rng.standard_normal((n_samples, 300))
    source = np.repeat([0, 1], n_targets // 2)
    parts = bands_of(X, sizes)
    Y = np.stack([parts[s] @ rng.standard_normal(parts[s].shape[1]) for s in source], 1)
    Y = Y / Y.std(0) + 1.2 * rng.standard_normal(Y.shape)
    return X, Y, sizes, source


def test_bands_without_a_part_in_a_target_are_switched_off():
    X, Y, sizes, source = one_of_three()
    train, test = np.arange(200), np.arange(200, 300)
    model = BandedRidgeCV(bands=sizes, device="cpu").fit(X[train], Y[train])
    unit = np.array(list(sizes.values()))[:, None]
    relative = model.alpha_by_band_ / unit  # penalties of bands of equal size
    own = relative[source, range(30)]
    others = np.stack([np.delete(relative[:, t], source[t]) for t in range(30)], 1)
    assert (np.median(others, 1) > 30 * np.median(own)).all()
    (part,) = model.predict_folds(X, Y, [(train, test)])
    observed = torch.from_numpy(Y[test])
    share = r2_by_band(part.parts, part.predicted, observed).numpy()
    elsewhere = share.sum(0) - share[source, range(30)]
    assert share[source, range(30)].mean() > 0.2
    assert np.abs(elsewhere).mean() < 0.03
    alone = RidgeCV(device="cpu").fit(X[train], Y[train])
    r = [
        np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(one.T, Y[test].T, strict=True)])
        for one in (part.predicted.numpy(), alone.predict(X[test]))
    ]
    assert r[0] > r[1] + 0.05


def collected(model, X, Y, splits, **labels):
    """Return predictions, penalties and parts of each fold, and how many pieces they came in."""
    folds = [{} for _ in splits]
    n_pieces = 0
    for piece in model.predict_folds(X, Y, splits, **labels):
        values = {
            "predicted": piece.predicted, "alpha": piece.alpha[None], "parts": piece.parts,
            "penalties": piece.by_band["alpha_by_band"],
        }  # fmt: skip
        for name, one in values.items():
            folds[piece.fold].setdefault(name, []).append(one.numpy())
        n_pieces += 1
    return [{name: np.concatenate(x, -1) for name, x in one.items()} for one in folds], n_pieces


@pytest.mark.parametrize("n_samples", [60, 200])
@pytest.mark.parametrize("standardize", [True, False])
def test_predict_folds_is_fit_and_predict(n_samples, standardize):
    X, Y = simulate(n_samples)
    X *= np.geomspace(0.1, 10, X.shape[1])
    splits = list(KFold(3).split(X))
    model = model_of(standardize=standardize, cv=3)
    folds, _ = collected(model, X, Y, splits)
    for fold, (train, test) in zip(folds, splits, strict=True):
        alone = clone(model).fit(X[train], Y[train])
        np.testing.assert_allclose(fold["penalties"], alone.alpha_by_band_, rtol=1e-4)
        np.testing.assert_allclose(fold["alpha"][0], alone.alpha_, rtol=1e-4)
        np.testing.assert_allclose(fold["predicted"], alone.predict(X[test]), atol=1e-5)
        parts = fold["parts"].sum(0) + Y[train].mean(0)
        np.testing.assert_allclose(parts, fold["predicted"], atol=1e-9)
        by_hand = X[test] @ alone.coef_.T + alone.intercept_
        np.testing.assert_allclose(by_hand, alone.predict(X[test]), atol=1e-9)


@pytest.mark.parametrize("n_features", [20, 90])
@pytest.mark.parametrize("options", [{}, {"scoring": "r"}, {"alphas": np.logspace(-2, 4, 9)}])
@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_a_single_band_is_ridge(n_features, options):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, n_features))
    Y = X @ rng.standard_normal((n_features, 5)) + 3 * rng.standard_normal((60, 5))
    found = BandedRidgeCV(device="cpu", **options).fit(X, Y)
    expected = RidgeCV(device="cpu", **options).fit(X, Y)
    np.testing.assert_allclose(found.alpha_, expected.alpha_, rtol=1e-5)
    np.testing.assert_allclose(found.alpha_by_band_[0], expected.alpha_, rtol=1e-5)
    np.testing.assert_allclose(found.cv_score_, expected.cv_score_, atol=1e-6)
    np.testing.assert_allclose(found.predict(X), expected.predict(X), atol=1e-5)
    np.testing.assert_allclose(found.coef_, expected.coef_, atol=1e-5)


def test_kernels_side_by_side_are_their_features():
    X, Y = simulate()
    kernels = np.concatenate([x @ x.T for x in bands_of(X)], 1)
    splits = list(KFold(3).split(X))
    given = model_of(kernel="precomputed", bands=dict.fromkeys(SIZES, 60), cv=3)
    linear = model_of(cv=3)
    one, other = (collected(m, x, Y, splits)[0] for m, x in ((given, kernels), (linear, X)))
    for found, expected in zip(one, other, strict=True):
        np.testing.assert_allclose(found["penalties"], expected["penalties"], rtol=1e-4)
        np.testing.assert_allclose(found["predicted"], expected["predicted"], atol=1e-6)
    train, test = splits[0]
    columns = np.concatenate([train + band * 60 for band in range(3)])
    given.bands = dict.fromkeys(SIZES, len(train))
    rows = kernels[np.ix_(test, columns)]
    given.fit(kernels[np.ix_(train, columns)], Y[train])
    expected = linear.fit(X[train], Y[train]).predict(X[test])
    np.testing.assert_allclose(given.predict(rows), expected, atol=1e-6)
    np.testing.assert_allclose(rows @ given.coef_.T + given.intercept_, expected, atol=1e-6)


def test_features_of_a_band_need_not_stand_together():
    X, Y = simulate()
    order = np.random.default_rng(1).permutation(X.shape[1])
    labels = np.repeat(list(SIZES), list(SIZES.values()))[order]
    penalties = dict(zip(SIZES, [1.0, 100.0, 10.0], strict=True))
    together = model_of(alphas_by_band=list(penalties.values())).fit(X, Y)
    own = [penalties[name] for name in dict.fromkeys(labels.tolist())]
    apart = model_of(bands=labels, alphas_by_band=own).fit(X[:, order], Y)
    assert apart.bands_ == list(dict.fromkeys(labels.tolist()))
    np.testing.assert_allclose(apart.predict(X[:, order]), together.predict(X), atol=1e-8)
    np.testing.assert_allclose(apart.coef_, together.coef_[:, order], atol=1e-8)


@pytest.mark.parametrize("n_samples", [60, 200])
def test_blocks_of_targets_do_not_change_the_result(monkeypatch, n_samples):
    X, Y = simulate(n_samples, 150)
    splits = list(KFold(2).split(X))
    given = model_of(alphas_by_band=random_penalties(150))
    whole, n_pieces = collected(given, X, Y, splits)
    assert n_pieces == 2
    fitted, searched = clone(given).fit(X, Y), model_of(cv=3).fit(X, Y)
    monkeypatch.setattr(banded_ridge, "MAX_TARGETS", 64)
    apart, n_pieces = collected(given, X, Y, splits)
    assert n_pieces == 6
    for one, other in zip(apart, whole, strict=True):
        for name, values in one.items():
            np.testing.assert_allclose(values, other[name], atol=1e-8)
    again = clone(given).fit(X, Y)
    np.testing.assert_allclose(again.coef_, fitted.coef_, atol=1e-8)
    # of penalties that score the same to the accuracy of the search, either may be found
    again = model_of(cv=3).fit(X, Y)
    np.testing.assert_allclose(again.cv_score_, searched.cv_score_, atol=1e-3)
    apart = np.abs(again.predict(X) - searched.predict(X)).max(0)
    assert np.median(apart) < 1e-4


def test_groups_stay_whole_in_inner_folds():
    X, Y = simulate(72)
    groups = np.repeat(np.arange(9), 8)
    cv = list(GroupKFold(3).split(X, None, groups))
    explicit = model_of(cv=cv).fit(X, Y)
    found = model_of(cv=3).fit(X, Y, groups=groups)
    np.testing.assert_allclose(found.alpha_by_band_, explicit.alpha_by_band_)
    assert not np.allclose(found.alpha_by_band_, model_of(cv=3).fit(X, Y).alpha_by_band_, rtol=0.1)
    with pytest.raises(ValueError, match="`groups` has 71 labels"):
        model_of().fit(X, Y, groups=groups[1:])
    with pytest.raises(ValueError, match="`runs` has 71 labels"):
        model_of().fit(X, Y, runs=groups[1:])


def delayed(X, delays, runs):
    """Return one band with its delays side by side, about its mean and 0 before each run."""
    middle, parts = X - X.mean(0), []
    for delay in delays:
        moved = np.zeros_like(middle)
        for run in np.unique(runs):
            rows = np.flatnonzero(runs == run)
            moved[rows[delay:]] = middle[rows[: len(rows) - delay]]
        parts.append(moved)
    return np.concatenate(parts, 1)


def about_runs(values, runs):
    return np.concatenate([values[runs == run] - values[runs == run].mean(0) for run in
                           dict.fromkeys(runs)])  # fmt: skip


@pytest.mark.parametrize("centre", ["all", "runs"])
@pytest.mark.parametrize("n_samples", [48, 240])
@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_delays_and_runs_are_those_of_explicit_designs(n_samples, centre):
    sizes, delays = {"motion": 4, "semantics": 12}, [1, 2, 4]
    X, Y = simulate(n_samples, sizes=sizes)
    runs = np.repeat(np.arange(6), n_samples // 6)
    penalties = [3.0, 40.0]
    options = {"bands": sizes, "delays": delays, "centre": centre}
    model = model_of(alphas_by_band=penalties, **options).fit(X, Y, runs=runs)
    design = np.concatenate([delayed(x, delays, runs) for x in bands_of(X, sizes)], 1)
    targets = Y
    if centre == "runs":
        design, targets = about_runs(design, runs), about_runs(Y, runs)
    everyone = np.arange(n_samples)
    wide = {"motion": 12, "semantics": 36}
    expected, coef = ridge(design, targets, everyone, everyone, penalties, wide)
    np.testing.assert_allclose(model.predict(X, runs=runs), expected, atol=1e-8)
    moved = [x.reshape(N_TARGETS, 3, -1) for x in np.split(coef, [12], 1)]
    np.testing.assert_allclose(model.coef_, np.concatenate(moved, 2).reshape(N_TARGETS, -1),
                               atol=1e-8)  # fmt: skip
    searched = model_of(**options, cv=3).fit(X, Y, runs=runs)
    grouped = list(GroupKFold(3).split(X, None, runs))
    if centre == "all":
        own = inner_score(design, targets, grouped, searched.alpha_by_band_, sizes=wide)
        np.testing.assert_allclose(searched.cv_score_, own, atol=3e-4)
    options = {"alphas": np.logspace(-1, 4, 9), "delays": delays, "centre": centre, "device": "cpu"}
    single = BandedRidgeCV(**options).fit(X, Y, runs=runs)
    same = RidgeCV(**options).fit(X, Y, runs=runs)
    np.testing.assert_allclose(single.alpha_, same.alpha_, rtol=1e-6)
    np.testing.assert_allclose(single.cv_score_, same.cv_score_, atol=1e-6)
    np.testing.assert_allclose(single.predict(X, runs=runs), same.predict(X, runs=runs), atol=1e-6)


def test_targets_with_missing_values_can_be_excluded():
    X, Y = simulate()
    whole = model_of(cv=3).fit(X, Y).predict(X)
    Y[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"target 2 in rows '7'.*nan_targets='exclude'"):
        model_of().fit(X, Y)
    model = model_of(cv=3, nan_targets="exclude").fit(X, Y)
    others = np.arange(N_TARGETS) != 2
    assert model.n_excluded_ == 1
    np.testing.assert_allclose(model.predict(X)[:, others], whole[:, others], atol=2e-3)
    values = (model.predict(X), model.alpha_by_band_, model.alpha_[None], model.cv_score_[None])
    for one in values:
        np.testing.assert_array_equal(np.isnan(one).any(0), ~others)
    (part,) = model.predict_folds(X, Y, [(np.arange(40), np.arange(40, 60))])
    for one in (part.predicted, part.parts.sum(0)):
        np.testing.assert_array_equal(one.isnan().any(0).numpy(), ~others)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("n_samples", [60, 200])
@pytest.mark.parametrize("scoring", ["r2", "r"])
def test_targets_and_bands_that_do_not_vary(n_samples, standardize, scoring):
    X, Y = simulate(n_samples)
    Y[:, 1], X[:, :3] = 4.0, 0.1
    model = model_of(standardize=standardize, scoring=scoring, cv=3).fit(X, Y)
    np.testing.assert_allclose(model.predict(X)[:, 1], 4.0)
    assert np.isnan(model.cv_score_[1]) and np.isfinite(np.delete(model.cv_score_, 1)).all()
    assert np.isfinite(model.alpha_by_band_).all()
    others = BandedRidgeCV(bands={"layer2": 60, "layer4": 20}, device="cpu", cv=3, scoring=scoring,
                           standardize=standardize).fit(X[:, 3:], Y)  # fmt: skip
    np.testing.assert_allclose(model.cv_score_, others.cv_score_, atol=0.02)
    single = model_of(standardize=standardize, scoring=scoring, cv=3).fit(X, Y[:, 2])
    assert single.coef_.shape == (83,) and single.predict(X).shape == (n_samples,)


@pytest.mark.parametrize("n_samples", [8, 60])
def test_no_feature_varies(n_samples):
    X, Y = np.full((n_samples, 10), 0.3), simulate(n_samples)[1]
    model = BandedRidgeCV(bands={"a": 4, "b": 6}, device="cpu").fit(X, Y)
    np.testing.assert_allclose(model.predict(X), Y.mean(0) + 0 * Y)


def test_a_band_of_one_feature_and_a_single_target():
    X, Y = simulate(sizes={"one": 1, "two": 20})
    sizes = {"one": 1, "two": 20}
    model = model_of(bands=sizes, alphas_by_band=[[2.0], [30.0]]).fit(X, Y[:, 0])
    everyone = np.arange(60)
    expected, coef = ridge(X, Y[:, :1], everyone, everyone, [2.0, 30.0], sizes)
    np.testing.assert_allclose(model.predict(X), expected[:, 0], atol=1e-9)
    np.testing.assert_allclose(model.coef_, coef[0], atol=1e-9)
    assert np.isfinite(model_of(bands=sizes).fit(X, Y[:, 0]).cv_score_).all()


def test_a_penalty_without_bound_switches_a_band_off():
    X, Y = simulate()
    model = model_of(alphas_by_band=[2.0, np.inf, 30.0]).fit(X, Y)
    assert not model.coef_[:, 3:63].any()
    everyone, others = np.arange(60), np.delete(X, np.s_[3:63], 1)
    expected, _ = ridge(others, Y, everyone, everyone, [2.0, 30.0], {"a": 3, "b": 20})
    np.testing.assert_allclose(model.predict(X), expected, atol=1e-9)


def test_parts_add_up_to_the_score():
    X, Y = simulate(200)
    train, test = np.arange(120), np.arange(120, 200)
    (part,) = model_of(cv=3).predict_folds(X, Y, [(train, test)])
    observed = torch.from_numpy(Y[test])
    share = r2_by_band(part.parts, part.predicted, observed)
    varying = part.parts.sum(0)
    off = torch.from_numpy(Y[train].mean(0) - Y[test].mean(0))
    total = r2(part.predicted, observed)
    rest = (off * (2 * (observed - observed.mean(0)) - varying - off)).sum(0)
    rest = rest / (observed - observed.mean(0)).square().sum(0)
    torch.testing.assert_close(share.sum(0) + rest, total)


def test_the_same_seed_gives_the_same_and_pickle_keeps_it():
    X, Y = simulate()
    model = model_of(cv=3).fit(X, Y)
    np.testing.assert_array_equal(model.alpha_by_band_, model_of(cv=3).fit(X, Y).alpha_by_band_)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clone(model).get_params()["bands"] == SIZES


def test_several_devices_share_the_targets():
    X, Y = simulate()
    options = {"alphas_by_band": [1.0, 20.0, 300.0]}
    one, two = (model_of(device=device, **options) for device in ("cpu", ["cpu", "cpu"]))
    np.testing.assert_allclose(two.fit(X, Y).predict(X), one.fit(X, Y).predict(X), atol=1e-9)
    np.testing.assert_allclose(two.coef_, one.coef_, atol=1e-9)
    np.testing.assert_array_equal(two.alpha_by_band_, one.alpha_by_band_)
    splits = [(np.arange(40), np.arange(40, 60))]
    apart = [part for part in two.predict_folds(X, Y, splits)]
    (whole,) = one.predict_folds(X, Y, splits)
    assert [part.columns for part in apart] == [
        slice(0, len(Y.T) // 2),
        slice(len(Y.T) // 2, len(Y.T)),
    ]
    for name in ("predicted", "parts"):
        joined = torch.cat([getattr(part, name) for part in apart], -1)
        torch.testing.assert_close(joined, getattr(whole, name), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "rbf"}, "`kernel` must be one of"),
        ({"alphas": [0.0]}, "must be finite and > 0"),
        ({"scoring": "mse"}, "`scoring` must be one of"),
        ({"sd_floor": 0.0}, "`sd_floor`"),
        ({"refine": -1}, "`refine` must be a whole number"),
        ({"refine": 1.5}, "`refine` must be a whole number"),
        ({"bands": {"gabor": 3}}, "`bands` must have a positive number of features"),
        ({"bands": ["gabor", "layer2"]}, r"one label for each of the 83 features.*\(2,\)"),
        ({"alphas_by_band": [1.0, 2.0]}, r"shape \(3, 12\) or \(3,\), but.*shape \(2,\)"),
        ({"alphas_by_band": np.ones((3, 5))}, r"\(3, 12\) or \(3,\), but.*shape \(3, 5\)"),
        ({"alphas_by_band": [1.0, 2.0, 0.0]}, "`alphas_by_band` must be > 0"),
        ({"alphas_by_band": [1.0, 2.0, np.nan]}, "`alphas_by_band` must be > 0"),
        ({"kernel": "precomputed"}, "'gabor'"),
        ({"kernel": "precomputed", "delays": [1]}, "cannot be delayed"),
        ({"kernel": "precomputed", "centre": "runs"}, "cannot be delayed or centred"),
        ({"centre": "runs"}, "needs `runs`"),
    ],
)
def test_wrong_uses(options, message):
    X, Y = simulate()
    with pytest.raises(ValueError, match=message):
        model_of(**options).fit(X, Y)
    with pytest.raises(ValueError, match=message):
        next(model_of(**options).predict_folds(X, Y, [(np.arange(40), np.arange(40, 60))]))
