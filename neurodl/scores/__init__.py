"""Scores: cross-validated predictivity, its folds and its ceiling, and what models weigh."""

from neurodl.scores.auditing import Audit, audit, copy_groups
from neurodl.scores.ceiling import noise_ceiling, normalize_score
from neurodl.scores.challenges import challenge_score
from neurodl.scores.comparison import compare, comparison_table
from neurodl.scores.crossval import cross_validate
from neurodl.scores.few_shot import few_shot_curve
from neurodl.scores.retention import forgetting
from neurodl.scores.similarity import cka
from neurodl.scores.splits import make_splits, target_splits
from neurodl.scores.splitters import ClusterKFold, PurgedKFold, SimilarityKFold
from neurodl.scores.stats import permutation_test
from neurodl.scores.weights import feature_weights, weight_maps

__all__ = [
    "Audit",
    "ClusterKFold",
    "PurgedKFold",
    "SimilarityKFold",
    "audit",
    "challenge_score",
    "cka",
    "compare",
    "comparison_table",
    "copy_groups",
    "cross_validate",
    "feature_weights",
    "few_shot_curve",
    "forgetting",
    "make_splits",
    "noise_ceiling",
    "normalize_score",
    "permutation_test",
    "target_splits",
    "weight_maps",
]
