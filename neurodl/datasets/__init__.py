"""Datasets: one call from a name to an Experiment."""

from neurodl.datasets.experiment import Experiment
from neurodl.datasets.fetching import data_folder
from neurodl.datasets.registry import (
    LOADERS,
    check_dataset,
    dataset_card,
    fetch_dataset,
    list_datasets,
    load_dataset,
)
from neurodl.datasets.simulated import (
    Simulation,
    dead_leaves,
    simulate,
    simulate_population,
    write_simulated,
)

__all__ = [
    "LOADERS",
    "Experiment",
    "Simulation",
    "check_dataset",
    "data_folder",
    "dataset_card",
    "dead_leaves",
    "fetch_dataset",
    "list_datasets",
    "load_dataset",
    "simulate",
    "simulate_population",
    "write_simulated",
]
