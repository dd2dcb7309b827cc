"""Conjugate gradients against numpy.linalg.solve, one target at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neurodl.models import _conjugate
from neurodl.models._conjugate import references, solve, solve_exactly, times


def systems(n_bands=3, k=30, n_targets=200, lowest=-6, highest=4, seed=0):
    """Return kernels of mean diagonal 1, targets, and gains over many orders of magnitude."""
    rng = np.random.default_rng(seed)
    kernels = []
    for width in np.linspace(4, 60, n_bands).astype(int):
        rows = rng.standard_normal((k, width)) / np.sqrt(width)
        kernels.append(rows @ rows.T)
    values = rng.standard_normal((n_targets, k))
    gains = 10 ** rng.uniform(lowest, highest, (n_targets, n_bands))
    return tuple(torch.from_numpy(np.asarray(one)) for one in (kernels, values, gains))


def solved(kernels, values, gains):
    """Return the solution of each target by numpy, (n_targets, k)."""
    identity = np.eye(kernels.shape[1])
    mixtures = np.einsum("tb,bij->tij", gains.numpy(), kernels.numpy())
    return np.linalg.solve(mixtures + identity, values.numpy()[:, :, None])[:, :, 0]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("float64", 1e-9)])
def test_solutions_are_within_the_tolerance_or_flagged(dtype, tolerance):
    kernels, values, gains = systems()
    low = getattr(torch, dtype)
    near = references(kernels.to(low), gains.log(), 12)
    found, reached = solve(kernels.to(low), values.to(low), gains.to(low), near, tolerance)
    assert reached.double().mean() > 0.5
    rest = values - times(kernels, found.double(), gains)
    residual = rest.norm(dim=1) / values.norm(dim=1)
    assert (residual[reached] < (2 if dtype == "float64" else 10) * tolerance).all()
    # the inverse has eigenvalues of at most 1: the error is no larger than the residual
    error = np.linalg.norm(found.double().numpy() - solved(kernels, values, gains), axis=1)
    assert (error <= rest.norm(dim=1).numpy() * (1 + 1e-6) + 1e-12).all()


def test_what_does_not_come_to_an_end_is_flagged(monkeypatch):
    kernels, values, gains = systems()
    near = references(kernels, gains.log(), 1)
    monkeypatch.setattr(_conjugate, "N_ITERATIONS", 1)
    found, reached = solve(kernels, values, gains, near, 1e-9)
    residual = (values - times(kernels, found, gains)).norm(dim=1) / values.norm(dim=1)
    np.testing.assert_array_equal(reached, residual <= 1e-9)
    assert not reached.all()


def test_what_is_no_number_any_more_is_flagged():
    kernels, values, gains = systems(n_targets=3, lowest=0, highest=1)
    gains[1] = torch.inf
    found, reached = solve(kernels, values, gains, references(kernels, torch.zeros(3, 3), 1), 1e-6)
    assert reached.tolist() == [True, False, True]
    assert found[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_references", [1, 16])
@pytest.mark.parametrize(("highest", "tolerance"), [(4, 1.01e-10), (6, 1e-8)])
def test_exact_solutions_whatever_the_gains(highest, tolerance, n_references, dtype):
    kernels, values, gains = systems(lowest=-6, highest=highest)
    near = references(kernels.to(getattr(torch, dtype)), gains.log(), n_references)
    found = solve_exactly(kernels, values, gains, near, 1e-10)
    expected = solved(kernels, values, gains)
    scale = np.linalg.norm(values, axis=1)
    assert (np.linalg.norm(found.numpy() - expected, axis=1) <= tolerance * scale).all()


def test_zero_targets_have_zero_solutions():
    kernels, values, gains = systems(n_targets=4)
    values[2] = 0
    near = references(kernels, gains.log(), 4)
    found, reached = solve(kernels, values, gains, near, 1e-6)
    assert reached.all() and not found[2].any()
    assert not solve_exactly(kernels, values, gains, near, 1e-6)[2].any()


def test_each_target_has_its_nearest_reference():
    kernels, _, _ = systems()
    places = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [5, 0, 0], [5, 0.2, 0], [0, -9, 3]]).double()
    near = references(kernels, places, 16)
    assert near.nearest[0] == near.nearest[1] and near.nearest[2] == near.nearest[3]
    assert len({int(near.nearest[target]) for target in (0, 2, 4)}) == 3
    eigenvalues, vectors = near.spectra[int(near.nearest[4])]
    mixture = sum(kernel * gain for kernel, gain in zip(kernels, np.exp([0, -4, 3]), strict=True))
    rebuilt = vectors @ eigenvalues.diag() @ vectors.T
    np.testing.assert_allclose(rebuilt, mixture, atol=1e-10)  # a gain below e^-4 counts as that
    assert len(references(kernels, torch.zeros(7, 3), 16).spectra) == 1
