"""Several devices: the numbers of one, whatever ends early, and a fit is whole or not there."""

from __future__ import annotations

import threading
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.model_selection import KFold

from neurodl.errors import DeviceError, NeurodlWarning
from neurodl.models import KernelRidgeCV, RidgeCV, _targets
from neurodl.models._base import PenaltyCV
from neurodl.models._devices import shares

BOTH = ["cpu", "cpu"]
ALPHAS = np.logspace(-1, 4, 8)
SPLITS = list(KFold(3).split(np.empty(60)))


def simulate(n_features=90, n_targets=37, dtype="float64"):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, n_features))
    Y = X @ rng.standard_normal((n_features, n_targets))
    Y += np.linspace(0.1, 40, n_targets) * rng.standard_normal(Y.shape) + 2
    return X.astype(dtype), Y.astype(dtype)


@pytest.fixture
def small_blocks(monkeypatch):
    """Read few targets at a time, so that each device goes through several blocks."""
    monkeypatch.setattr(_targets, "MAX_TARGETS", {"cpu": 5})
    monkeypatch.setattr(_targets, "MIN_TARGETS", 1)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def models(**options):
    """Return the models whose targets can be shared, with a path by rows and one by features."""
    return {
        "kernel": (RidgeCV(ALPHAS, **options), 90),
        "covariance": (RidgeCV(ALPHAS, **options), 8),
        "rbf": (KernelRidgeCV(ALPHAS, **options), 8),
    }


@pytest.mark.parametrize("n_devices", [2, 3])
@pytest.mark.parametrize("name", models())
@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_predictions_are_those_of_one_device_in_the_same_order(name, n_devices, small_blocks):
    model, n_features = models(device="cpu")[name]
    X, Y = simulate(n_features)
    single = list(model.predict_folds(X, Y, SPLITS))
    several = list(model.set_params(device=["cpu"] * n_devices).predict_folds(X, Y, SPLITS))
    order = [(part.fold, part.columns.start) for part in several]
    assert order == sorted(order)
    for fold in range(3):
        one, other = ([part for part in x if part.fold == fold] for x in (single, several))
        assert other[0].columns.start == 0 and other[-1].columns.stop == 37
        assert all(a.columns.stop == b.columns.start for a, b in pairwise(other))
        for field, axis in (("alpha", 0), ("predicted", 1)):
            left, right = (
                torch.cat([getattr(part, field) for part in x], axis) for x in (one, other)
            )
            torch.testing.assert_close(right, left, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", models())
@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_a_fit_is_that_of_one_device(name, small_blocks):
    single, n_features = models(device="cpu", nan_targets="exclude")[name]
    several = models(device=BOTH, nan_targets="exclude")[name][0]
    X, Y = simulate(n_features)
    Y[3, [2, 30]] = np.nan
    single.fit(X, Y)
    several.fit(X, Y)
    assert set(vars(several)) == set(vars(single))
    np.testing.assert_allclose(several.predict(X), single.predict(X), rtol=1e-9)
    for attribute in ("alpha_", "cv_score_", "intercept_"):
        np.testing.assert_allclose(getattr(several, attribute), getattr(single, attribute))
    assert several.n_excluded_ == single.n_excluded_ == 2
    assert several.n_alphas_at_edge_ == single.n_alphas_at_edge_ > 0
    assert several.get_params()["device"] == BOTH


@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
@pytest.mark.parametrize("n_targets", [None, 1])
def test_fewer_targets_than_devices(n_targets):
    X, Y = simulate(n_targets=1)
    Y = Y[:, 0] if n_targets is None else Y
    found = RidgeCV(ALPHAS, device=["cpu"] * 3).fit(X, Y.tolist()).predict(X)
    expected = RidgeCV(ALPHAS, device="cpu").fit(X, Y).predict(X)
    assert found.shape == Y.shape
    np.testing.assert_allclose(found, expected)


def test_warnings_count_the_targets_of_all_devices():
    X, Y = simulate()
    model = RidgeCV([1e6, 1e7], device=BOTH)
    with pytest.warns(NeurodlWarning, match="37 of 37 targets chose") as caught:
        model.fit(X, Y)
    assert len(caught) == 1
    with pytest.warns(NeurodlWarning, match="37 of 37 targets chose") as caught:
        list(model.predict_folds(X, Y, SPLITS))
    assert len(caught) == len(SPLITS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(model.set_params(alphas="auto").predict_folds(X, Y, SPLITS))


def failing(monkeypatch, error, n_before=0):
    """Let reading a block from number 25 on fail, which is the second device's work."""
    read, seen = _targets.Targets.block, []

    def broken(self, start):
        first = self.y.columns.start if hasattr(self.y, "columns") else 0
        seen.extend([1] * (first + start >= 25))
        if len(seen) > n_before:
            raise error
        return read(self, start)

    monkeypatch.setattr(_targets.Targets, "block", broken)


@pytest.mark.parametrize("error", [ValueError("device lost"), KeyboardInterrupt("device lost")])
def test_one_failing_device_ends_all(monkeypatch, error, small_blocks):
    X, Y = simulate()
    failing(monkeypatch, error)
    model = RidgeCV(ALPHAS, device=BOTH)
    with pytest.raises(type(error), match="device lost"):
        list(model.predict_folds(X, Y, SPLITS))
    with pytest.raises(type(error), match="device lost"):
        model.fit(X, Y)
    assert set(vars(model)) == set(model.get_params())


@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_predictions_that_are_not_wanted_any_more_are_not_made(small_blocks):
    X, Y = simulate()
    parts = RidgeCV(ALPHAS, device=BOTH).predict_folds(X, Y, SPLITS)
    assert next(parts).columns == slice(0, 5)
    parts.close()  # the fixture sees whether threads are left


@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
@pytest.mark.parametrize("device", ["cpu", BOTH])
@pytest.mark.parametrize("fitted", [False, True])
def test_an_interrupted_fit_leaves_the_model_as_it_was(monkeypatch, fitted, device, small_blocks):
    X, Y = simulate()
    model = RidgeCV(ALPHAS, device=device)
    if fitted:
        model.fit(X[:, :4], Y[:, :3])
    before = dict(vars(model))
    expected = model.predict(X[:, :4]) if fitted else None
    failing(monkeypatch, KeyboardInterrupt, n_before=3)  # the second time it is read
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y)
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is value for name, value in before.items())
    if fitted:
        np.testing.assert_array_equal(model.predict(X[:, :4]), expected)


class Together(PenaltyCV):
    """A model of all targets at once."""

    def __init__(self, device="auto"):
        self.device = device

    def fit(self, X, y):
        return self


def test_models_of_all_targets_take_one_device():
    with pytest.raises(DeviceError, match="Together fits all targets together.*'cpu'"):
        Together(BOTH).fit(np.eye(3), np.eye(3))
    Together(["cpu"]).fit(np.eye(3), np.eye(3))


def test_shares_are_equal():
    assert shares(7, 3) == [slice(0, 3), slice(3, 5), slice(5, 7)]
    assert shares(1, 3) == [slice(0, 1)]
