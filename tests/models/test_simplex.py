"""Convex combinations against scipy, target by target."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, nnls

from neurodl.models._simplex import simplex_weights


def residuals(kind, n_bands, n_targets=40, n_rows=50):
    """Return residuals (n_targets, n_bands, n_rows) that are more or less alike."""
    rng = np.random.default_rng(n_bands)
    own = rng.standard_normal((n_targets, n_bands, n_rows))
    if kind == "own noise":
        return own * rng.uniform(0.1, 3, (n_targets, n_bands, 1))
    alike = rng.standard_normal((n_targets, 1, n_rows)) + 0.1 * own
    if kind == "twice the same":
        alike[:, 1::2] = alike[:, : 2 * (n_bands // 2) : 2]
    if kind == "twice almost the same":
        alike[:, 1::2] = alike[:, : 2 * (n_bands // 2) : 2] * (1 + 1e-7 * own[:, 1::2])
    return alike


KINDS = ["own noise", "alike", "twice the same", "twice almost the same"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_bands", [1, 2, 5, 13, 30])
def test_error_is_the_least_that_nnls_finds(kind, n_bands):
    rows = residuals(kind, n_bands)
    gram = rows @ rows.transpose(0, 2, 1)
    weights = simplex_weights(torch.from_numpy(gram)).numpy()
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
    for own, weight in zip(rows, weights, strict=True):
        unit = np.sqrt((own**2).sum(1).min())  # sum(w) = 1 as a row, in units of the error
        system = np.vstack([own.T / unit, np.ones(n_bands)])
        best, _ = nnls(system, np.r_[np.zeros(own.shape[1]), 1.0], maxiter=1000)
        least = np.square(best / best.sum() @ own).sum()
        assert np.square(weight @ own).sum() <= least * (1 + 1e-9)


def test_weights_are_those_of_a_general_solver():
    rows = residuals("alike", 4)
    gram = rows @ rows.transpose(0, 2, 1)
    weights = simplex_weights(torch.from_numpy(gram)).numpy()
    for one, weight in zip(gram, weights, strict=True):
        found = minimize(
            lambda w, g=one: w @ g @ w / g[0, 0],
            np.full(4, 0.25),
            jac=lambda w, g=one: 2 * g @ w / g[0, 0],
            bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(weight, found.x, atol=1e-5)


def test_targets_at_once_do_not_change_the_weights(monkeypatch):
    rows = torch.from_numpy(residuals("alike", 5))
    whole = simplex_weights(rows @ rows.mT)
    monkeypatch.setattr("neurodl.models._simplex.AT_ONCE", 7)
    torch.testing.assert_close(simplex_weights(rows @ rows.mT), whole, rtol=0, atol=1e-12)


def test_no_error_at_all_and_no_error_of_one_band():
    nothing, one = torch.zeros(1, 3, 3), torch.diag(torch.tensor([2.0, 0.0, 1.0]))[None]
    torch.testing.assert_close(simplex_weights(nothing), torch.tensor([[1.0, 0, 0]]).double())
    torch.testing.assert_close(simplex_weights(one), torch.tensor([[0.0, 1, 0]]).double())
