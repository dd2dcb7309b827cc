"""The simulated population: the course's numbers, Poisson spikes of the rates it tells."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import neurodl as ndl
from neurodl.datasets import simulate_population
from neurodl.schema import check_responses


def test_the_counts_are_those_of_the_courses_notebook():
    # drawn once more in the notebook's order, with its matrices
    np.random.seed(42)
    decay = np.diag(0.8 + 0.2 * np.random.rand(10))
    loadings = 0.025 * np.random.randn(10, 400)
    state, rates = 2 * np.random.randn(10), np.empty((250, 100, 400))
    for at in range(250):
        state = state @ decay + np.random.randn(100, 10)
        rates[at] = np.maximum(0, state @ loadings)
    counts = np.random.poisson(rates)
    simulation = simulate_population()
    responses = simulation.experiment.responses
    np.testing.assert_array_equal(responses, counts.transpose(1, 0, 2))
    np.testing.assert_allclose(simulation.rates, rates.transpose(1, 0, 2), rtol=1e-5)
    assert simulation.latents.shape == (100, 250, 10)
    assert (responses["roi"] == "given").sum() == 200
    check_responses(responses)


def test_spikes_are_poisson_of_the_rates():
    simulation = simulate_population(30, 60, 80, 4, seed=1)
    rates, counts = simulation.rates.values, simulation.experiment.responses.values
    z = (counts - rates).sum((0, 1)) / np.sqrt(rates.sum((0, 1)))
    assert stats.kstest(z, "norm").pvalue > 0.01


def test_by_name():
    responses = ndl.load_dataset("simulated_population", n_presentations=6, roi="given").responses
    assert dict(responses.sizes) == {"presentation": 6, "time": 250, "unit": 200}
    with pytest.raises(ValueError, match="`n_units` 2"):
        simulate_population(n_units=1)
