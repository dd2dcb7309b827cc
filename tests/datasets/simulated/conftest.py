"""One simulated experiment that several tests look at."""

from __future__ import annotations

import pytest

from neurodl.datasets.simulated import Simulation, simulate


@pytest.fixture(scope="session")
def simulation() -> Simulation:
    """Return a smaller experiment than the default."""
    return simulate(n_images=150, n_repeats=3, n_runs=5, image_size=96, seed=3)
