"""predict_folds against scikit-learn and himalaya, for drawn shapes, folds and precisions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zarr
from himalaya.kernel_ridge import KernelRidgeCV as HimalayaKernelRidgeCV
from himalaya.ridge import RidgeCV as HimalayaRidgeCV
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut, ShuffleSplit

from neurodl.models import RidgeCV, _targets

pytestmark = pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
bounded = settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# Of predictions, in standard deviations of a target, with penalties down to 1e-3 eigenvalues.
ROUNDING = {"float32": 2e-4, "float64": 1e-8}
QUIET = {"warn": False}
N_TRAIN, N_TEST = 48, 20
RUNS = np.repeat([0, 1, 2, 3], [7, 16, 15, 10])
UNEQUAL = [
    (np.arange(9, N_TRAIN), np.arange(9)),
    (np.r_[:9, 34:N_TRAIN], np.arange(9, 34)),
    (np.arange(34), np.arange(34, N_TRAIN)),
]
SPLITTERS = {
    "folds": KFold(4),
    "unequal": UNEQUAL,
    "groups": GroupKFold(3),
    "runs": LeaveOneGroupOut(),
    "random": ShuffleSplit(3, test_size=0.3, random_state=0),
}
CASES = st.fixed_dictionaries(
    {
        "n_features": st.sampled_from([1, 2, 11, 30, 48, 60, 150]),
        "n_targets": st.sampled_from([1, 3, 60]),
        "splitter": st.sampled_from(sorted(SPLITTERS)),
        "dtype": st.sampled_from(["float32", "float64"]),
        "standardize": st.booleans(),
        "scoring": st.sampled_from(["r", "r2"]),
        "seed": st.integers(0, 2**16),
    }
)


def simulate(n_features, n_targets, dtype, seed):
    """Return features of unequal spread, and targets from almost no noise to noise alone."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N_TRAIN + N_TEST, n_features)) * np.geomspace(2, 0.2, n_features) + 1
    Y = X @ rng.standard_normal((n_features, n_targets)) / n_features**0.5
    Y += np.geomspace(0.1, 20, n_targets) * rng.standard_normal(Y.shape)
    return X.astype(dtype), Y.astype(dtype)


def run(case):
    """Return features as the model scales them, targets, penalties, predictions, and more.

    Returns
    -------
    X, Y : float64
    alphas, chosen, predicted, inner folds
    """
    X, Y = simulate(*(case[name] for name in ("n_features", "n_targets", "dtype", "seed")))
    train = np.arange(N_TRAIN)
    double, sd = X.astype(float), X[train].astype(float).std(0)
    if case["standardize"]:
        double = double / np.maximum(sd, 0.1 * np.sqrt(np.mean(sd**2)))
    eigenvalue = double[train].var(0).sum() * N_TRAIN / min(N_TRAIN, X.shape[1])
    alphas = eigenvalue * np.logspace(-3, 2, 9)
    cv = SPLITTERS[case["splitter"]]
    groups = RUNS if case["splitter"] in ("groups", "runs") else None
    every = None if groups is None else np.r_[groups, np.zeros(N_TEST, int)]
    options = {name: case[name] for name in ("standardize", "scoring")}
    model = RidgeCV(alphas, cv=cv, device="cpu", **options)
    parts = list(model.predict_folds(X, Y, [(train, np.arange(N_TRAIN, len(X)))], every))
    chosen, predicted = (
        torch.cat([getattr(part, name) for part in parts], axis).double().numpy()
        for name, axis in (("alpha", 0), ("predicted", 1))
    )
    inner = cv if isinstance(cv, list) else list(cv.split(double[train], None, groups))
    return double, Y.astype(float), alphas, chosen, predicted, inner


def ridge(X, Y, train, test, alpha):
    """Return predictions of scikit-learn."""
    fitted = Ridge(alpha=alpha, solver="svd").fit(X[train], Y[train])
    return fitted.predict(X[test]).reshape(len(test), -1)


def correlation(a, b):
    """Return Pearson's r of each column."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))


def check_r(ours, expected, observed, dtype):
    """Fail unless r is the same to 1e-5, and to what the type keeps of predictions' variation."""
    kept = np.finfo(dtype).eps * np.abs(expected).max(0) / expected.std(0)
    difference = correlation(ours, observed) - correlation(expected, observed)
    assert (np.abs(difference) < 1e-5 + kept).all()


def inner_scores(X, Y, alphas, inner, scoring):
    """Return the mean inner score of every penalty, (n_alphas, n_targets)."""
    scores = np.zeros((len(alphas), Y.shape[1]))
    for train, test in inner:
        for row, alpha in enumerate(alphas):
            predicted = ridge(X, Y, train, test, alpha)
            if scoring == "r":
                scores[row] += correlation(predicted, Y[test])
            else:
                scores[row] += r2_score(Y[test], predicted, multioutput="raw_values")
    return scores / len(inner)


def test_equals_a_loop_over_scikit_learn():
    same = []

    @bounded
    @given(CASES)
    def check(case):
        X, Y, alphas, chosen, predicted, inner = run(case)
        train, test = np.arange(N_TRAIN), np.arange(N_TRAIN, len(X))
        place = np.abs(np.log(alphas[:, None] / chosen)).argmin(0)
        np.testing.assert_allclose(alphas[place], chosen, rtol=1e-12)
        scores = inner_scores(X, Y, alphas, inner, case["scoring"])
        assert (scores.max(0) - scores[place, np.arange(len(place))]).max() < 1e-6
        if case["n_features"] > 1 or case["scoring"] == "r2":
            # else predictions of all penalties are multiples of each other, and equal in r
            same.extend(scores.argmax(0) == place)
        expected = ridge(X, Y, train, test, chosen)
        assert (np.abs(predicted - expected) / Y.std(0)).max() < ROUNDING[case["dtype"]]
        check_r(predicted, expected, Y[test], case["dtype"])

    check()
    assert len(same) > 3000
    assert np.mean(same) >= 0.999


@settings(bounded, max_examples=80)
@given(CASES)
def test_equals_himalaya_at_the_same_penalties(case):
    X, Y, _, chosen, predicted, _ = run(case)
    train, test = np.arange(N_TRAIN), np.arange(N_TRAIN, len(X))
    X, mean = X - X[train].mean(0), Y[train].mean(0)
    for alpha in np.unique(chosen):
        mine = chosen == alpha
        if case["n_features"] < N_TRAIN:
            model = HimalayaRidgeCV([alpha], fit_intercept=False, cv=2, solver_params=QUIET)
        else:
            model = HimalayaKernelRidgeCV([alpha], cv=2)
        model.fit(X[train], (Y - mean)[train][:, mine])
        expected = model.predict(X[test]) + mean[mine]
        ours = predicted[:, mine]
        assert (np.abs(ours - expected) / Y.std(0)[mine]).max() < ROUNDING[case["dtype"]]
        check_r(ours, expected, Y[test][:, mine], case["dtype"])


@pytest.mark.parametrize("n_features", [11, 150])
@pytest.mark.parametrize("kind", ["map", "zarr"])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_stored_targets_larger_than_a_block(tmp_path, monkeypatch, kind, n_features, n_threads):
    X, Y = simulate(n_features, 74, "float64", 0)
    splits = list(KFold(3, shuffle=True, random_state=0).split(X))
    expected = list(RidgeCV(device="cpu").predict_folds(X, Y, splits))
    if kind == "map":
        np.save(tmp_path / "y.npy", Y)
        stored = np.load(tmp_path / "y.npy", mmap_mode="r")
    else:
        stored = zarr.create_array(tmp_path / "y.zarr", shape=Y.shape, chunks=(20, 5), dtype="f8")
        stored[:] = Y
    monkeypatch.setattr(_targets, "MAX_TARGETS", {"cpu": 2})
    monkeypatch.setattr(_targets, "MIN_TARGETS", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        found = list(RidgeCV(device="cpu").predict_folds(X, stored, splits))
    finally:
        torch.set_num_threads(before)
    assert len(expected) == 3 and len(found) == 3 * 37
    for part in found:
        whole = expected[part.fold]
        torch.testing.assert_close(part.alpha, whole.alpha[part.columns])
        torch.testing.assert_close(
            part.predicted, whole.predicted[:, part.columns], rtol=1e-9, atol=1e-9
        )
