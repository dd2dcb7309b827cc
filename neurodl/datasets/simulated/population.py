"""A simulated population of neurons that is driven by a few latent variables, with known rates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from neurodl.datasets.experiment import Experiment

BIN = 0.01  # s
LEAST_KEPT, SPREAD = 0.8, 0.2  # of a latent variable after a bin, and how far they differ
LOADING = 0.025  # standard deviation of how a latent variable drives a neuron
ROIS = ("predicted", "given")


@dataclass(frozen=True)
class PopulationSimulation:
    """Spikes of a linear dynamical system, and the truth behind them.

    Parameters
    ----------
    experiment : Experiment
        Counts, dims ``(presentation, time, unit)``, every presentation a stimulus of its own; the
        first half of the units has roi "predicted", the second "given".
    rates : xarray.DataArray
        Expected counts in each bin, dims as the counts.
    latents : numpy.ndarray, shape (n_presentations, n_bins, n_latents)
    """

    experiment: Experiment
    rates: xr.DataArray
    latents: np.ndarray


def simulate_population(
    n_presentations: int = 100,
    n_units: int = 400,
    n_bins: int = 250,
    n_latents: int = 10,
    seed: int = 42,
) -> PopulationSimulation:
    """Simulate spikes of a linear dynamical system, that of the course's sequence project.

    Latent variables decay independently, each at a rate of its own, and are driven by noise. A
    unit's rate is a random combination of them, or 0 where that is negative; spikes are Poisson.
    With the default sizes and seed, the counts are those of the Neuromatch project "Focus on what
    matters: inferring low-dimensional dynamics from neural recordings".

    Parameters
    ----------
    n_presentations, n_units, n_bins, n_latents : int
        Bins are of 10 ms.
    seed : int

    Returns
    -------
    PopulationSimulation

    Raises
    ------
    ValueError
        A number is below 1, or there are less than 2 units.

    Examples
    --------
    >>> simulation = simulate_population(n_presentations=5, n_units=20, n_bins=30)
    >>> dict(simulation.experiment.responses.sizes)
    {'presentation': 5, 'time': 30, 'unit': 20}
    """
    if min(n_presentations, n_bins, n_latents) < 1 or n_units < 2:
        raise ValueError(
            "`n_presentations`, `n_bins` and `n_latents` must be at least 1, and `n_units` 2, but "
            f"got {n_presentations}, {n_bins}, {n_latents} and {n_units}."
        )
    # The old generator, in the order of the course's notebook, for the very same numbers.
    rng = np.random.RandomState(seed)
    kept = LEAST_KEPT + SPREAD * rng.rand(n_latents)
    loadings = LOADING * rng.randn(n_latents, n_units)
    state = 2 * rng.randn(n_latents)
    latents = np.empty((n_bins, n_presentations, n_latents))
    for at in range(n_bins):
        state = state * kept + rng.randn(n_presentations, n_latents)
        latents[at] = state
    rates = np.maximum(0, latents @ loadings)
    counts = rng.poisson(rates)
    half = n_units // 2
    ids = [f"trial{number:0{len(str(n_presentations - 1))}d}" for number in range(n_presentations)]
    coords = {
        "stimulus": ("presentation", ids),
        "time": np.round(np.arange(n_bins) * BIN, 6),
        "unit": np.arange(n_units).astype(str),
        "roi": ("unit", np.where(np.arange(n_units) < half, *ROIS)),
    }
    dims = ("presentation", "time", "unit")
    true, observed = (
        xr.DataArray(
            values.transpose(1, 0, 2).astype(np.float32),
            coords,
            dims,
            attrs={"units": "spikes", "bin_width": BIN, "subject": "simulated"},
        )
        for values in (rates, counts)
    )
    experiment = Experiment(responses=observed, name="simulated_population")
    return PopulationSimulation(experiment, true, latents.transpose(1, 0, 2))
