"""Scores: cross-validated predictivity, its folds and its ceiling."""

from neurodl.scores.ceiling import noise_ceiling
from neurodl.scores.crossval import cross_validate
from neurodl.scores.splits import make_splits

__all__ = ["cross_validate", "make_splits", "noise_ceiling"]
