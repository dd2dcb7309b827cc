"""Delays and run-wise means inside the solver: what an explicit design gives to scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneGroupOut

from neurodl.errors import SchemaError
from neurodl.models import RidgeCV
from neurodl.scores import cross_validate

DELAYS = [1, 2, 4]
RUNS = np.repeat(["a", "b", "c", "d"], [30, 25, 35, 28])


def simulate(n_features=7, n_targets=12, seed=0):
    """Return features, and targets that follow them 1, 2 and 4 samples later, run by run."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((len(RUNS), n_features)) + 2
    weights = rng.standard_normal((len(DELAYS) * n_features, n_targets))
    Y = explicit(X, X.mean(0), np.ones(n_features)) @ weights
    Y += rng.standard_normal(Y.shape) * np.linspace(0.1, 10, n_targets)
    return X, Y + 3 * rng.standard_normal((4, 1))[np.unique(RUNS, return_inverse=True)[1]]


def explicit(X, offset, scale):
    """Return all delayed copies of scaled features, each run on its own."""
    scaled = (X - offset) / scale
    copies = []
    for delay in DELAYS:
        copy = np.zeros_like(scaled)
        for run in np.unique(RUNS):
            rows = np.flatnonzero(run == RUNS)
            copy[rows[delay:]] = scaled[rows[:-delay]]
        copies.append(copy)
    return np.hstack(copies)


def centred(values):
    """Return values about the mean of their run."""
    values = values.copy()
    for run in np.unique(RUNS):
        values[run == RUNS] -= values[run == RUNS].mean(0)
    return values


@pytest.mark.parametrize("centre", ["all", "runs"])
@pytest.mark.parametrize("n_features", [7, 150])
def test_predictions_are_those_of_an_explicit_design(n_features, centre):
    X, Y = simulate(n_features)
    splits = list(LeaveOneGroupOut().split(X, None, RUNS))
    model = RidgeCV(np.logspace(-1, 4, 6), delays=DELAYS, centre=centre, device="cpu")
    with pytest.warns(UserWarning, match="targets chose"):
        parts = list(model.predict_folds(X, Y, splits, runs=RUNS))
    for part in parts:
        train, test = splits[part.fold]
        design = explicit(X, X[train].mean(0), X[train].std(0))
        targets = Y
        if centre == "runs":
            design, targets = centred(design), centred(Y)
        oracle = Ridge(alpha=part.alpha.numpy()).fit(design[train], targets[train][:, part.columns])
        np.testing.assert_allclose(part.predicted.numpy(), oracle.predict(design[test]), atol=1e-8)


@pytest.mark.parametrize("centre", ["all", "runs"])
@pytest.mark.parametrize("n_features", [7, 150, 400])
@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_fit_and_predict_are_the_folds_on_their_own(n_features, centre):
    X, Y = simulate(n_features)
    splits = [(np.flatnonzero(RUNS != "c"), np.flatnonzero(RUNS == "c"))]
    model = RidgeCV(np.logspace(-1, 4, 6), delays=DELAYS, centre=centre, device="cpu")
    (part,) = model.predict_folds(X, Y, splits, runs=RUNS)
    train, test = splits[0]
    model.fit(X[train], Y[train], runs=RUNS[train])
    np.testing.assert_allclose(
        model.predict(X[test], runs=RUNS[test]), part.predicted.numpy(), atol=1e-7
    )
    np.testing.assert_array_equal(model.alpha_, part.alpha.numpy())
    design = explicit(X, np.zeros(n_features), np.ones(n_features))
    if centre == "all":
        differences = (design @ model.coef_.T)[train] - model.predict(X[train], RUNS[train])
        inside = [run_start >= max(DELAYS) for run_start in since_start()[train]]
        np.testing.assert_allclose(np.ptp(differences[inside], 0), 0, atol=1e-7)


def since_start():
    """Return how many rows each row comes after the first of its run."""
    return np.concatenate([np.arange((run == RUNS).sum()) for run in "abcd"])


def test_inner_folds_keep_runs_whole():
    X, Y = simulate()
    by_run = RidgeCV(cv=3, delays=DELAYS, device="cpu").fit(X, Y, runs=RUNS)
    explicitly = RidgeCV(cv=3, delays=DELAYS, device="cpu").fit(X, Y, groups=RUNS, runs=RUNS)
    np.testing.assert_array_equal(by_run.cv_score_, explicitly.cv_score_)


@pytest.mark.parametrize("centre", ["all", "runs"])
@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_cross_validate_hands_the_runs_on(centre):
    X, Y = simulate()
    coords = {"time": ("time", since_start() * 2.0), "run": ("time", RUNS)}
    features = xr.DataArray(X.astype("f4"), dims=("time", "feature"), coords=coords)
    responses = xr.DataArray(
        Y.astype("f4"), dims=("time", "voxel"), coords=coords, attrs={"units": "BOLD", "tr": 2.0}
    )
    model = RidgeCV(delays=DELAYS, centre=centre, device="cpu")
    scores = cross_validate(model, features, responses, groups="run", cv=4)
    targets = centred(Y) if centre == "runs" else Y
    for fold in range(4):
        test = "abcd"[fold] == RUNS
        model.fit(X[~test], Y[~test], groups=RUNS[~test], runs=RUNS[~test])
        predicted = model.predict(X[test], runs=RUNS[test])
        r = [np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, targets[test].T, strict=True)]
        np.testing.assert_allclose(scores["r"][0, scores["n_test"] == test.sum()][0], r, atol=1e-3)


def test_centring_runs_needs_to_know_them():
    responses = xr.DataArray(
        np.zeros((6, 2), "f4"),
        dims=("stimulus", "voxel"),
        coords={"stimulus": list("abcdef")},
        attrs={"units": "BOLD"},
    )
    features = responses.rename(voxel="feature")
    with pytest.raises(SchemaError, match="centre='runs' needs the coord run"):
        cross_validate(RidgeCV(centre="runs"), features, responses, cv=2)


def test_wrong_uses_say_what_to_do():
    X, Y = simulate()
    with pytest.raises(ValueError, match="centre='runs' needs `runs`"):
        RidgeCV(centre="runs", device="cpu").fit(X, Y)
    with pytest.raises(ValueError, match="must stand together"):
        RidgeCV(delays=[1], device="cpu").fit(X, Y, runs=np.tile(["a", "b"], len(X) // 2))
    with pytest.raises(ValueError, match="5 labels, but there are 118 rows"):
        RidgeCV(delays=[1], device="cpu").fit(X, Y, runs=["a"] * 5)
    with pytest.raises(ValueError, match="`delays` must be different whole numbers"):
        RidgeCV(delays=[1, 1], device="cpu").fit(X, Y)
    with pytest.raises(ValueError, match="`centre` must be one of"):
        RidgeCV(centre="run", device="cpu").fit(X, Y)
    cut = [(np.arange(40), np.arange(40, 118))]
    with pytest.raises(ValueError, match=r"rows of 1 runs \('b'\) are on both sides"):
        list(RidgeCV(centre="runs", device="cpu").predict_folds(X, Y, cut, runs=RUNS))
