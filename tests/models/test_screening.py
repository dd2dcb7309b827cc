"""Screening in half precision: the same penalties and scores as without, from rough scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.model_selection import KFold

from neurodl.models import RidgeCV, _folds, _screening
from neurodl.models._design import Design, fit_scaling
from neurodl.models._folds import DualFold, PrimalFold
from neurodl.models._heldout import Composed, Factored, rough_scores, scores_of_all
from neurodl.models._solvers import FILTER_TOLERANCE, ROUGH_TOLERANCE, filter_basis
from neurodl.models._spaces import LinearSpace
from neurodl.models._targets import Targets

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

    def counted(self, parts):
        seen.append(len(parts[0].total))
        return scores(self, parts)

    monkeypatch.setattr(_screening, "has_fast_half", lambda device: True)
    monkeypatch.setattr(_screening.Screen, "scores", counted)
    return seen


@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
@pytest.mark.parametrize("scoring", ["r2", "r"])
@pytest.mark.parametrize("n_features", [400, 40])
def test_penalties_and_scores_are_those_of_full_precision(screened, scoring, n_features):
    X, Y = simulate(n_features=n_features)
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


def operator(scoring="r2", n_features=400, kind=DualFold):
    """Return the operator of one split, with targets that have entered it."""
    X, Y = (torch.from_numpy(values) for values in simulate(n_features=n_features))
    own, grid = torch.arange(120), torch.as_tensor(ALPHAS)
    space = LinearSpace(Design(X, fit_scaling(X, own, standardize=False, sd_floor=0.1)))
    fold = DualFold(space.design.kernel(0.0), own) if kind is DualFold else kind(space.design, own)
    split = fold.split(torch.arange(90), torch.arange(90, 120), scoring)
    made = split.operator(grid, torch.float32)
    block = Targets(Y.numpy(), X).block(0)
    return made, made.enter(split.part(fold.view(block)))


KINDS = [(DualFold, 400), (PrimalFold, 50), (PrimalFold, 20)]


@pytest.mark.parametrize(("kind", "n_features"), KINDS)
@pytest.mark.parametrize("scoring", ["r2", "r"])
def test_rough_scores_are_off_in_proportion_to_what_they_say(scoring, kind, n_features):
    made, part = operator(scoring, n_features, kind)
    exact = scores_of_all(made, part)
    rough, size = rough_scores(made.rough(), part)
    beyond_rounding = ((rough - exact).abs() - _screening.ROUNDING).clamp_min(0)
    relative = (beyond_rounding / size).numpy()
    assert 1e-5 < relative.max() < 0.02
    if scoring == "r2":  # small predictions have small errors
        assert (rough - exact)[-1].abs().max() < 1e-2 * (rough - exact)[0].abs().max()


@pytest.mark.parametrize("n_alphas", [1, 2, 20, 40])
def test_a_few_filters_make_those_of_all_penalties(n_alphas):
    rng = np.random.default_rng(0)
    values, reach = (torch.as_tensor(10 ** rng.uniform(-2, 4, 100)) for _ in range(2))
    alphas = torch.logspace(-1, 5, n_alphas, dtype=torch.float64)
    few = filter_basis(values, reach, alphas)
    filters = reach / (values + alphas[:, None])
    kept = reach / (values + few.kept[:, None])
    for made, tolerance in (
        (few.mixing @ kept, FILTER_TOLERANCE),
        (few.rough_mixing @ (few.fewer @ kept), ROUGH_TOLERANCE),
    ):
        off = torch.linalg.vector_norm(made - filters, dim=1)
        assert (off <= 1.01 * tolerance * torch.linalg.vector_norm(filters, dim=1)).all()
    # by the theorem of Eckart, Young and Mirsky no fewer directions would do on average
    unit = filters / torch.linalg.vector_norm(filters, dim=1, keepdim=True)
    spread = torch.linalg.svdvals(unit)
    n_needed = int((spread > ROUGH_TOLERANCE * n_alphas**0.5).sum())
    assert n_needed <= len(few.fewer) <= min(n_needed + 2, n_alphas)


@pytest.mark.parametrize(("kind", "n_features"), KINDS)
@pytest.mark.parametrize("scoring", ["r2", "r"])
def test_single_penalties_give_the_same_scores(scoring, kind, n_features):
    made, part = operator(scoring, n_features, kind)
    exact = scores_of_all(made, part)
    screen = _screening.Screen()
    screen.add(made)
    some = torch.rand(exact.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    some[3] = False
    found = screen._exact(some, [part])
    torch.testing.assert_close(found, exact[some], atol=2e-5, rtol=0)


@pytest.mark.parametrize("scoring", ["r2", "r"])
@pytest.mark.parametrize("n_features", [400, 50])
def test_composed_and_factored_operators_agree(scoring, n_features, monkeypatch):
    made, part = operator(scoring, n_features)
    assert isinstance(made, Composed)
    monkeypatch.setattr(_folds, "COMPOSED_BYTES", 0)
    other, other_part = operator(scoring, n_features)
    assert isinstance(other, Factored)
    expected = scores_of_all(made, part)
    torch.testing.assert_close(scores_of_all(other, other_part), expected, atol=2e-5, rtol=0)
    if n_features < 120:
        primal, primal_part = operator(scoring, n_features, PrimalFold)
        found = scores_of_all(primal, primal_part)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


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
    cpu = torch.device("cpu")
    monkeypatch.setattr(_screening, "has_fast_half", lambda device: True)
    assert _screening.can_screen(15, torch.float32, cpu)
    assert not _screening.can_screen(15, torch.float64, cpu)
    assert not _screening.can_screen(60, torch.float32, cpu)
    monkeypatch.setattr(_screening, "has_fast_half", lambda device: False)
    assert not _screening.can_screen(15, torch.float32, cpu)


@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_cross_validation_scores_in_full_only_where_penalties_are_close(screened, monkeypatch):
    X, Y = simulate()
    folds = [(np.arange(90), np.arange(90, 120))]
    plain = RidgeCV(ALPHAS, cv=KFold(4), screening=False, device="cpu")
    wanted = np.concatenate([part.alpha for part in plain.predict_folds(X, Y, folds)])
    n_scored, exact = [0], _screening.Screen._exact

    def counted(self, wanted, parts):
        n_scored[0] += int(wanted.sum())
        return exact(self, wanted, parts)

    monkeypatch.setattr(_screening.Screen, "_exact", counted)
    model = RidgeCV(ALPHAS, cv=KFold(4), device="cpu")
    found = np.concatenate([part.alpha for part in model.predict_folds(X, Y, folds)])
    assert (found == wanted).mean() > 0.995
    in_folds, n_scored[0] = n_scored[0], 0
    model.fit(X[:90], Y[:90])  # the same training rows: here each best score is wanted
    assert len(ALPHAS) * _screening.N_CALIBRATION < in_folds < n_scored[0] - 30
