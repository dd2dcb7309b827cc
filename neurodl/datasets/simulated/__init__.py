"""An fMRI experiment with known truth: natural-statistics images, visual areas, a known ceiling."""

from neurodl.datasets.simulated.bids import write_simulated
from neurodl.datasets.simulated.experiment import Simulation, simulate

__all__ = ["Simulation", "simulate", "write_simulated"]
