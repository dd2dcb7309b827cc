"""Features: what a backbone, or a design of events, says of each stimulus or sample."""

from neurodl.features.alignment import align
from neurodl.features.cache import cache_folder
from neurodl.features.calibrate import calibrate_batchnorm
from neurodl.features.design import event_design
from neurodl.features.extract import concatenate_features, extract_features
from neurodl.features.kernel import extract_kernels
from neurodl.features.motion import motion_energy
from neurodl.features.pca import StreamedPCA
from neurodl.features.pool import pool_output
from neurodl.features.population import (
    history_features,
    history_filters,
    population_features,
    shown_features,
)
from neurodl.features.reduce import SparseProjection
from neurodl.features.upkeep import list_cache, prune_cache, verify_cache

__all__ = [
    "SparseProjection",
    "StreamedPCA",
    "align",
    "cache_folder",
    "calibrate_batchnorm",
    "concatenate_features",
    "event_design",
    "extract_features",
    "extract_kernels",
    "history_features",
    "history_filters",
    "list_cache",
    "motion_energy",
    "pool_output",
    "population_features",
    "prune_cache",
    "shown_features",
    "verify_cache",
]
