"""Scores: cross-validated predictivity, its folds and its ceiling, and what models weigh."""

from neurodl.scores.ceiling import noise_ceiling
from neurodl.scores.challenges import challenge_score
from neurodl.scores.comparison import compare, comparison_table
from neurodl.scores.crossval import cross_validate
from neurodl.scores.few_shot import few_shot_curve
from neurodl.scores.retention import forgetting
from neurodl.scores.similarity import cka
from neurodl.scores.splits import make_splits
from neurodl.scores.stats import permutation_test
from neurodl.scores.weights import feature_weights, weight_maps

__all__ = [
    "challenge_score",
    "cka",
    "compare",
    "comparison_table",
    "cross_validate",
    "feature_weights",
    "few_shot_curve",
    "forgetting",
    "make_splits",
    "noise_ceiling",
    "permutation_test",
    "weight_maps",
]
