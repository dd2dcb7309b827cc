"""Metrics against scipy and scikit-learn; no number where there is none."""

from __future__ import annotations

import himalaya.scoring
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch

from neurodl.metrics import mse, pearson_r, r2, r2_by_band

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


def bands(rng, offset=0.0):
    """Return the predictions of three bands and what they predict, (., n_samples, n_targets)."""
    parts = rng.standard_normal((3, 40, 5)) * np.array([1.0, 0.5, 0.01])[:, None, None]
    observed = parts.sum(0) + rng.standard_normal((40, 5)) + offset
    return torch.from_numpy(parts), torch.from_numpy(observed)


def test_parts_of_bands_are_the_product_measure(rng):
    parts, observed = bands(rng)
    observed -= observed.mean(0)
    found = r2_by_band(parts, parts.sum(0), observed)
    expected = himalaya.scoring.r2_score_split(observed.numpy(), parts.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    torch.testing.assert_close(found.sum(0), r2(parts.sum(0), observed))


@pytest.mark.parametrize("trained_on", [0.0, 0.3])
def test_parts_of_bands_sum_to_r2_but_for_the_mean(rng, trained_on):
    parts, observed = bands(rng, offset=7.0)
    away = trained_on * torch.ones(5).double()
    predicted = parts.sum(0) + observed.mean(0) + away
    found = r2_by_band(parts, predicted, observed).sum(0)
    centred = observed - observed.mean(0)
    rest = (away * (2 * centred - parts.sum(0) - away)).sum(0) / centred.square().sum(0)
    torch.testing.assert_close(found + rest, r2(predicted, observed))
    assert (rest.abs().max() == 0) == (trained_on == 0)


def test_bands_have_no_part_in_targets_that_are_constant_or_missing(rng):
    parts, observed = bands(rng)
    observed[:, 1], parts[:, :, 3] = 4.0, torch.nan
    found = r2_by_band(parts, parts.sum(0), observed)
    assert found.isnan().any(0).tolist() == [False, True, False, True, False]
    assert found.isnan().all(0).tolist() == [False, True, False, True, False]


def test_a_band_that_runs_against_the_rest_takes_off():
    observed = torch.tensor([[-1.0], [0.0], [1.0]])
    found = r2_by_band(torch.stack([2 * observed, -observed]), observed, observed)
    assert found.ravel().tolist() == [2.0, -1.0]
