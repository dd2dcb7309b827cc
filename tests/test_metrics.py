"""Metrics against scipy and scikit-learn; no number where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch

from neurodl.metrics import mse, pearson_r, r2

ORACLES = {
    pearson_r: lambda predicted, observed: scipy.stats.pearsonr(predicted, observed)[0],
    r2: lambda predicted, observed: sklearn.metrics.r2_score(observed, predicted),
    mse: lambda predicted, observed: sklearn.metrics.mean_squared_error(observed, predicted),
}


@pytest.fixture
def pair(rng):
    """Predictions of three models and observations of five targets."""
    observed = rng.standard_normal((40, 5))
    return 0.4 * observed + rng.standard_normal((3, 40, 5)), observed


@pytest.mark.parametrize("metric", ORACLES)
def test_values_and_leading_axes(pair, metric):
    predicted, observed = pair
    found = metric(torch.from_numpy(predicted), torch.from_numpy(observed))
    assert found.shape == (3, 5)
    expected = [[ORACLES[metric](one[:, t], observed[:, t]) for t in range(5)] for one in predicted]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_single_precision_survives_a_large_mean(pair, offset):
    predicted, observed = (torch.from_numpy(array + offset).float() for array in pair)
    expected = scipy.stats.pearsonr(predicted[0, :, 0].double(), observed[:, 0].double())[0]
    assert float(pearson_r(predicted, observed)[0, 0]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("level", [0.0, 0.1, 1e6])
def test_constant_targets_have_no_score(level):
    varying = torch.arange(6.0)[:, None]
    constant = torch.full((6, 1), level)
    assert torch.isnan(pearson_r(varying, constant))
    assert torch.isnan(pearson_r(constant, varying))
    assert torch.isnan(r2(varying, constant))
    assert float(r2(constant, varying)) <= 0


def test_r_never_leaves_its_range(rng):
    column = torch.from_numpy(rng.standard_normal((7, 1000)).astype("float32"))
    assert float(pearson_r(column, 3 * column).max()) <= 1
