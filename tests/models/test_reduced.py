"""Banded ridge on few directions, against Ridge on all features and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from neurodl.models._reduced import Reduced, reduce_split, reduced_scores, search

WIDTHS = (3, 6)
N_TRAIN, N_HELD, N_TARGETS = 9, 7, 5


def simulate(n_splits=2, scoring="r2", n_directions=N_TRAIN, seed=0):
    """Return the regressions, and what they are of: (train, held) features and targets."""
    rng = np.random.default_rng(seed)
    raw, parts = [], []
    for _ in range(n_splits):
        rows = rng.standard_normal((N_TRAIN + N_HELD, sum(WIDTHS)))
        weights = rng.standard_normal((sum(WIDTHS), N_TARGETS))
        targets = rows @ weights + rng.standard_normal((len(rows), N_TARGETS)) + 1
        raw.append((rows, targets))
        parts.append(split_of(rows, targets, scoring, n_directions, rng))
    return Reduced(*(torch.stack(one) for one in zip(*parts, strict=True))), raw


def split_of(rows, targets, scoring, n_directions, rng):
    train, held = rows[:N_TRAIN], rows[N_TRAIN:]
    inside = targets[:N_TRAIN] - targets[:N_TRAIN].mean(0)
    outside = targets[N_TRAIN:] - targets[:N_TRAIN].mean(0)
    middle = train.mean(0)
    own, others = train - middle, held - (held.mean(0) if scoring == "r" else middle)
    bands = [slice(0, 3), slice(3, 9)]
    kernels = torch.from_numpy(np.stack([own[:, some] @ own[:, some].T for some in bands]))
    cross = torch.from_numpy(np.stack([others[:, some] @ own[:, some].T for some in bands]))
    about = outside - outside.mean(0)
    vectors = torch.from_numpy(rng.standard_normal((N_TARGETS, n_directions, N_TRAIN)))
    seen = torch.from_numpy(about.T.copy() if scoring == "r" else outside.T.copy())
    found = reduce_split(kernels, cross, torch.from_numpy(inside.T.copy()), seen, vectors)
    variance = torch.from_numpy((about**2).sum(0))
    total = torch.from_numpy((outside**2).sum(0))
    return *found, total, variance, variance > 1e-9


def brute_force(raw, log_gains, scoring):
    """Return mean scores of Ridge on features times the root of the gain of their band."""
    scores = np.zeros((len(raw), N_TARGETS))
    for row, (rows, targets) in enumerate(raw):
        for target, gains in enumerate(np.exp(log_gains)):
            scaled = rows * np.sqrt(np.repeat(gains, WIDTHS))
            model = Ridge(alpha=1.0, solver="svd").fit(scaled[:N_TRAIN], targets[:N_TRAIN, target])
            predicted, observed = model.predict(scaled[N_TRAIN:]), targets[N_TRAIN:, target]
            r = np.corrcoef(predicted, observed)[0, 1]
            scores[row, target] = r if scoring == "r" else r2_score(observed, predicted)
    return scores.mean(0)


@pytest.mark.parametrize("scoring", ["r2", "r"])
def test_directions_that_span_all_are_the_whole_model(scoring):
    model, raw = simulate(scoring=scoring)
    log_gains = torch.from_numpy(np.random.default_rng(1).uniform(-4, 4, (N_TARGETS, 2)))
    found, _ = reduced_scores(model, log_gains, scoring)
    np.testing.assert_allclose(found, brute_force(raw, log_gains.numpy(), scoring), atol=1e-5)


@pytest.mark.parametrize("n_directions", [2, N_TRAIN])
@pytest.mark.parametrize("scoring", ["r2", "r"])
def test_derivatives_are_finite_differences(scoring, n_directions):
    model, _ = simulate(scoring=scoring, n_directions=n_directions)
    place = torch.from_numpy(np.random.default_rng(2).uniform(-3, 3, (N_TARGETS, 2)))
    _, slope = reduced_scores(model, place, scoring)
    assert slope.abs().min() > 1e-6
    for band in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[band] = 1e-5
        above, _ = reduced_scores(model, place + step, scoring, slope=False)
        below, _ = reduced_scores(model, place - step, scoring, slope=False)
        np.testing.assert_allclose(slope[:, band], (above - below) / 2e-5, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("scoring", ["r2", "r"])
def test_splits_without_variance_do_not_count(scoring):
    model, _ = simulate(scoring=scoring)
    place = torch.zeros(N_TARGETS, 2, dtype=torch.float64)
    scored, variance, total = model.scored.clone(), model.variance.clone(), model.total.clone()
    held = model.held.clone()
    scored[0, 1], scored[:, 3] = False, False
    for values in (variance, total):
        values[0, 1], values[:, 3] = 0.0, 0.0
    held[0, 1], held[:, 3] = 0.0, 0.0
    broken = model._replace(scored=scored, variance=variance, total=total, held=held)
    found, slope = reduced_scores(broken, place, scoring)
    assert found.isfinite().all() and slope.isfinite().all()
    second = Reduced(*(field[1:] for field in model))
    expected, expected_slope = reduced_scores(second, place, scoring)
    np.testing.assert_allclose(found[1], expected[1])
    np.testing.assert_allclose(slope[1], expected_slope[1])
    assert found[3] == 0 and not slope[3].any()
    bounds = (torch.full((N_TARGETS, 1), -9.0).double(), torch.full((N_TARGETS, 1), 9.0).double())
    np.testing.assert_array_equal(search(broken, [place], bounds, scoring)[3], place[3])


@pytest.mark.parametrize("scoring", ["r2", "r"])
def test_the_search_finds_the_best_of_a_dense_grid(scoring):
    model, _ = simulate(scoring=scoring)
    axis = torch.linspace(-8, 8, 41, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    scores = torch.stack(
        [reduced_scores(model, one.expand(N_TARGETS, 2), scoring, slope=False)[0] for one in grid]
    )
    starts = [grid[scores.argmax(0)] + 0.3, torch.zeros(N_TARGETS, 2, dtype=torch.float64)]
    starts = [start.clamp(-8, 8) for start in starts]
    bounds = (torch.full((N_TARGETS, 1), -8.0).double(), torch.full((N_TARGETS, 1), 8.0).double())
    found = search(model, starts, bounds, scoring)
    assert (found >= -8).all() and (found <= 8).all()
    best, _ = reduced_scores(model, found, scoring)
    assert (best >= scores.amax(0) - 1e-3).all()
    for start in starts:
        assert (best >= reduced_scores(model, start, scoring)[0]).all()
