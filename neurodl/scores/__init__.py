"""Scores: predictivity and its folds, audit, ceilings, statistics, and geometry."""

from neurodl.scores.auditing import Audit, audit, copy_groups
from neurodl.scores.ceiling import noise_ceiling, normalize_score
from neurodl.scores.challenges import challenge_score
from neurodl.scores.comparison import compare, comparison_table
from neurodl.scores.crossval import cross_validate
from neurodl.scores.decoding import decode
from neurodl.scores.few_shot import few_shot_curve
from neurodl.scores.geometry import rsa
from neurodl.scores.local_geometry import encoding_rsa, searchlight_rsa
from neurodl.scores.partition import variance_partition
from neurodl.scores.profile import layer_profile
from neurodl.scores.rdm_pairs import compare_rdms
from neurodl.scores.rdms import rdm
from neurodl.scores.resampling import bootstrap, difference_test
from neurodl.scores.retention import forgetting
from neurodl.scores.similarity import cka
from neurodl.scores.splits import make_splits, target_splits
from neurodl.scores.splitters import ClusterKFold, PurgedKFold, SimilarityKFold
from neurodl.scores.stats import permutation_test
from neurodl.scores.subjects import group_level
from neurodl.scores.trials import trial_scores
from neurodl.scores.weights import feature_weights, weight_maps

__all__ = [
    "Audit",
    "ClusterKFold",
    "PurgedKFold",
    "SimilarityKFold",
    "audit",
    "bootstrap",
    "challenge_score",
    "cka",
    "compare",
    "compare_rdms",
    "comparison_table",
    "copy_groups",
    "cross_validate",
    "decode",
    "difference_test",
    "encoding_rsa",
    "feature_weights",
    "few_shot_curve",
    "forgetting",
    "group_level",
    "layer_profile",
    "make_splits",
    "noise_ceiling",
    "normalize_score",
    "permutation_test",
    "rdm",
    "rsa",
    "searchlight_rsa",
    "target_splits",
    "trial_scores",
    "variance_partition",
    "weight_maps",
]
