"""Kernels of each band, and pseudo-rows, against products of centred features by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neurodl.models._band_rows import Bands
from neurodl.models._bands import band_columns
from neurodl.models._design import Design, fit_scaling
from neurodl.models._folds import part_of_rows
from neurodl.models._targets import Targets

SIZES = {"a": 3, "b": 8}


def bands_of(X, own, kind, standardize=False):
    """Return the bands of features, as kernels or by their designs."""
    features, own = torch.from_numpy(X), torch.as_tensor(own)
    columns = band_columns(SIZES, X.shape[1])
    parts = [features[:, some] for some in columns.values()]
    scalings = [fit_scaling(x, own, standardize=standardize, sd_floor=0.1) for x in parts]
    designs = [Design(x, scaling) for x, scaling in zip(parts, scalings, strict=True)]
    kernels = [design.kernel(0.0) for design in designs] if kind == "kernels" else None
    return Bands(columns, kernels, designs, own)


def simulate(n_samples=60, n_targets=4):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_samples, 11)) * np.repeat([2.0, 0.3], [3, 8]) + 5
    return X, rng.standard_normal((n_samples, n_targets)) + 3


def by_hand(X, own):
    """Return the bands over the root of their mean square about the mean of the rows `own`."""
    parts = np.split(X, [3], axis=1)
    return [x / np.sqrt(x[own].var(0).sum()) for x in parts]


@pytest.mark.parametrize("kind", ["kernels", "pseudo-rows"])
@pytest.mark.parametrize("centre_test", [False, True])
def test_solutions_are_those_of_the_features(kind, centre_test):
    X, Y = simulate()
    own, train, test = np.arange(50), np.arange(40), np.arange(40, 60)
    bands = bands_of(X, own, kind)
    rows = bands.rows(torch.as_tensor(train), torch.as_tensor(test), centre_test=centre_test)
    parts = by_hand(X, own)
    np.testing.assert_allclose(bands.unit, [x[own].var(0).sum() for x in np.split(X, [3], 1)])
    gains = np.array([2.0, 0.1])
    inner = [x[train] - x[train].mean(0) for x in parts]
    outer = [x[test] - x[test if centre_test else train].mean(0) for x in parts]
    values = (Y[train] - Y[train].mean(0)).T
    system = sum(gain * x @ x.T for gain, x in zip(gains, inner, strict=True)) + np.eye(40)
    c = np.linalg.solve(system, values.T)
    turned = rows.turned(torch.from_numpy(values)).numpy()
    assert turned.shape == (4, 40 if kind == "kernels" else 11)
    mixture = np.einsum("b,bij->ij", gains, rows.kernels)
    inside = np.linalg.solve(mixture + np.eye(len(mixture)), turned.T)
    for cross, x, y in zip(rows.cross, inner, outer, strict=True):
        np.testing.assert_allclose(cross.numpy() @ inside, y @ (x.T @ c), atol=1e-9)


@pytest.mark.parametrize("scoring", ["r2", "r"])
@pytest.mark.parametrize("n_test", [8, 30])
def test_pseudo_rows_keep_products_with_predictions(scoring, n_test):
    X, Y = simulate(80)
    own = np.arange(80)
    train, test = torch.arange(80 - n_test), torch.arange(80 - n_test, 80)
    block = Targets(Y, torch.from_numpy(X)).block(0)
    found = {}
    for kind in ("kernels", "pseudo-rows"):
        rows = bands_of(X, own, kind).rows(
            train, test, centre_test=scoring == "r", compress_test=True
        )
        part = rows.part(block, train, test, scoring)
        mixture = rows.kernels.sum(0) + torch.eye(rows.kernels.shape[1])
        predicted = torch.linalg.solve(mixture, part.inside.T).T @ rows.cross.sum(0).T
        products = [(predicted * part.seen).sum(1), predicted.square().sum(1)]
        found[kind] = [*products, part.total, part.variance]
        if kind == "pseudo-rows":
            assert part.seen.shape == (4, min(n_test, 11))
            assert part.inside.shape == (4, 11)
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
    expected = part_of_rows(block, train, test)
    torch.testing.assert_close(found["kernels"][2:], [expected.total, expected.variance])


@pytest.mark.parametrize("kind", ["kernels", "pseudo-rows"])
@pytest.mark.parametrize("level", [0.0, 0.1, 7.3, 1e4])
def test_a_band_that_does_not_vary_is_not_blown_up(kind, level):
    X, _ = simulate()
    X[:, :3] = level
    bands = bands_of(X, np.arange(60), kind)
    assert bands.unit[0] == 1.0
    rows = bands.rows(torch.arange(60), torch.arange(0))
    np.testing.assert_allclose(rows.kernels[0], 0, atol=1e-12)


def test_kernels_far_from_zero_that_do_not_vary_are_not_blown_up():
    given = [torch.full((20, 20), 7.3e3, dtype=torch.float64)]
    bands = Bands({"a": slice(0, 20)}, given, None, torch.arange(20))
    assert bands.unit.tolist() == [1.0]


@pytest.mark.parametrize("kind", ["kernels", "pseudo-rows"])
def test_the_mixture_is_the_weighted_sum_of_scaled_kernels(kind):
    X, _ = simulate()
    own = torch.arange(60)
    weights = torch.tensor([0.7, 0.2], dtype=torch.float64)
    space = bands_of(X, own, kind).mixture(weights)
    kernel = space.kernel if kind == "kernels" else space.design.kernel(0.0)
    parts = [x - x.mean(0) for x in by_hand(X, own)]
    expected = sum(float(weight) * x @ x.T for weight, x in zip(weights, parts, strict=True))
    np.testing.assert_allclose(kernel, expected, atol=1e-9)
    mean = np.trace(expected) / (60 if kind == "kernels" else 11)
    assert space.mean_eigenvalue(own) == pytest.approx(mean, rel=1e-6)
