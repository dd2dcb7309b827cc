"""Datasets: one call from a name to an Experiment."""
