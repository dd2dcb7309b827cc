"""Screening in half precision: the same penalties and scores as without, from rough scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.model_selection import KFold

from neurodl.models import RidgeCV, _screening
from neurodl.models._solvers import dual_spectrum, gram, held_out

ALPHAS = np.logspace(0, 6, 15)


def simulate(n_samples=120, n_features=400, n_targets=300, seed=0):
    """Return features, and targets from pure noise to almost none, with flat maxima."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_features)).astype("float32")
    signal = X @ rng.standard_normal((n_features, n_targets)).astype("float32")
    share = np.linspace(0, 1, n_targets, dtype="float32")
    noise = rng.standard_normal(signal.shape).astype("float32") * signal.std()
    return X, share * signal + (1 - share) * noise + 3


@pytest.fixture
def screened(monkeypatch):
    """Count the targets that went through screening, on any processor."""
    seen = []
    scores = _screening.Screen.scores

    def counted(self, parts, floor):
        seen.append(len(floor))
        return scores(self, parts, floor)

    monkeypatch.setattr(_screening, "has_fast_half", lambda device: True)
    monkeypatch.setattr(_screening.Screen, "scores", counted)
    return seen


@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
@pytest.mark.parametrize("scoring", ["r2", "r"])
def test_penalties_and_scores_are_those_of_full_precision(screened, scoring):
    X, Y = simulate()
    models = [
        RidgeCV(ALPHAS, cv=KFold(4), scoring=scoring, screening=one, device="cpu").fit(X, Y)
        for one in (False, True)
    ]
    assert sum(screened) == 300
    same = models[0].alpha_ == models[1].alpha_
    # two ways to sum in float32 may tell a tie differently
    assert same.mean() > 0.995
    np.testing.assert_allclose(models[0].cv_score_, models[1].cv_score_, atol=2e-6)
    np.testing.assert_allclose(
        models[0].predict(X)[:, same], models[1].predict(X)[:, same], atol=1e-4
    )


@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_a_margin_that_starts_too_small_is_widened(screened, monkeypatch):
    X, Y = simulate()
    monkeypatch.setattr(_screening, "N_CALIBRATION", 1)
    plain = RidgeCV(ALPHAS, cv=KFold(4), screening=False, device="cpu").fit(X, Y)
    model = RidgeCV(ALPHAS, cv=KFold(4), device="cpu").fit(X, Y)
    assert (plain.alpha_ == model.alpha_).mean() > 0.995
    np.testing.assert_allclose(plain.cv_score_, model.cv_score_, atol=2e-6)


def operator(scoring="r2"):
    """Return the operator of one split, with its targets."""
    X, Y = (torch.from_numpy(values) for values in simulate())
    kernel = gram(X, X.mean(0), torch.ones(X.shape[1]))
    train, test = torch.arange(90), torch.arange(90, 120)
    alphas = torch.as_tensor(ALPHAS)
    made = held_out(dual_spectrum(kernel, train, test), alphas, scoring, torch.float32)
    return made, Y[train].T.contiguous(), Y[test].T.contiguous()


@pytest.mark.parametrize("scoring", ["r2", "r"])
def test_rough_scores_are_off_in_proportion_to_what_they_say(scoring):
    made, train, test = operator(scoring)
    floor = torch.zeros(len(train))
    exact = made.scores(train, test, floor)
    rough, size = made.rough().rough_scores(train, test, floor)
    relative = ((rough - exact).abs() / size).numpy()
    assert 1e-5 < relative.max() < 0.02
    if scoring == "r2":  # small predictions have small errors
        assert (rough - exact)[-1].abs().max() < 1e-3 * (rough - exact)[0].abs().max()


@pytest.mark.parametrize("scoring", ["r2", "r"])
def test_maps_of_single_penalties_give_the_same_scores(scoring):
    made, train, test = operator(scoring)
    floor = torch.zeros(len(train))
    exact = made.scores(train, test, floor)
    for row, one in enumerate(made.maps()):
        found = made.scores_of(train @ one, train, test, floor)
        torch.testing.assert_close(found, exact[row], atol=2e-5, rtol=0)


@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_targets_without_a_score_stay_without(screened):
    X, Y = simulate()
    Y[:, 7] = 1.5
    Y[:30, 8] = 2.0
    plain = RidgeCV(ALPHAS, cv=KFold(4), screening=False, device="cpu").fit(X, Y)
    model = RidgeCV(ALPHAS, cv=KFold(4), device="cpu").fit(X, Y)
    assert np.isnan(model.cv_score_[7])
    assert model.alpha_[7] == ALPHAS[-1]
    np.testing.assert_allclose(model.cv_score_, plain.cv_score_, atol=2e-6)


def test_screening_is_only_for_few_penalties_in_single_precision(monkeypatch):
    made, _, _ = operator()
    monkeypatch.setattr(_screening, "has_fast_half", lambda device: True)
    assert _screening.can_screen([made])
    assert not _screening.can_screen([made._replace(basis=made.basis.double())])
    assert not _screening.can_screen([made._replace(mixing=made.mixing.repeat(4, 1))])
    monkeypatch.setattr(_screening, "has_fast_half", lambda device: False)
    assert not _screening.can_screen([made])
