"""Scores: cross-validated predictivity, its folds and its ceiling."""

from neurodl.scores.ceiling import noise_ceiling
from neurodl.scores.crossval import cross_validate
from neurodl.scores.splits import make_splits
from neurodl.scores.stats import permutation_test

__all__ = ["cross_validate", "make_splits", "noise_ceiling", "permutation_test"]
