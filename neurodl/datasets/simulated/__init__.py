"""Experiments with known truth: fMRI of natural-statistics images, and spikes of a population."""

from neurodl.datasets.simulated.bids import write_simulated
from neurodl.datasets.simulated.experiment import Simulation, simulate
from neurodl.datasets.simulated.images import dead_leaves
from neurodl.datasets.simulated.population import PopulationSimulation, simulate_population

__all__ = [
    "PopulationSimulation",
    "Simulation",
    "dead_leaves",
    "simulate",
    "simulate_population",
    "write_simulated",
]
