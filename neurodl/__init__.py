"""neurodl measures how well deep networks explain the brain.

Recordings and stimuli in, cross-validated predictivity and a report out. The names below are
loaded when they are first used, so that ``import neurodl`` itself is immediate.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from neurodl.backbones import (
        Backbone,
        ImageTransform,
        VideoTransform,
        list_backbones,
        load_backbone,
    )
    from neurodl.datasets import Experiment, fetch_dataset, list_datasets, load_dataset
    from neurodl.errors import NeurodlError, NeurodlWarning
    from neurodl.features import (
        SparseProjection,
        StreamedPCA,
        align,
        calibrate_batchnorm,
        concatenate_features,
        event_design,
        extract_features,
        extract_kernels,
        history_features,
        history_filters,
        list_cache,
        motion_energy,
        population_features,
        prune_cache,
        shown_features,
        verify_cache,
    )
    from neurodl.io.bids import read_bids
    from neurodl.io.events import read_events
    from neurodl.io.nifti import read_nifti, to_image
    from neurodl.io.store import load, save
    from neurodl.models import (
        PLS,
        BandedRidgeCV,
        FractionalRidgeCV,
        Hyperalignment,
        KernelRidgeCV,
        NeuralEncoder,
        PoissonRidgeCV,
        ReducedRankRidgeCV,
        RidgeCV,
        SequenceDecoder,
        SequenceEncoder,
        StackedRidgeCV,
    )
    from neurodl.reports import report, submission
    from neurodl.responses import (
        as_runs,
        average_repeats,
        bin_spikes,
        bin_traces,
        psth,
        select,
        single_trial_betas,
        smooth,
        stabilize_variance,
        stack_repeats,
        tuning_curve,
        zscore_runs,
    )
    from neurodl.schema import check_features, check_responses, check_scores, is_kernel
    from neurodl.scores import (
        Audit,
        ClusterKFold,
        PurgedKFold,
        SimilarityKFold,
        audit,
        bootstrap,
        challenge_score,
        cka,
        compare,
        compare_rdms,
        comparison_table,
        copy_groups,
        cross_validate,
        decode,
        difference_test,
        encoding_rsa,
        feature_weights,
        few_shot_curve,
        forgetting,
        group_level,
        layer_profile,
        noise_ceiling,
        normalize_score,
        permutation_test,
        rdm,
        rsa,
        searchlight_rsa,
        trial_scores,
        variance_partition,
        weight_maps,
    )
    from neurodl.stimuli import Stimuli
    from neurodl.study import load_study, plan, reproduce, run_study, run_sweep

_HOMES = {
    "neurodl.errors": ("NeurodlError", "NeurodlWarning"),
    "neurodl.schema": ("check_features", "check_responses", "check_scores", "is_kernel"),
    "neurodl.io.bids": ("read_bids",),
    "neurodl.io.events": ("read_events",),
    "neurodl.io.nifti": ("read_nifti", "to_image"),
    "neurodl.io.store": ("load", "save"),
    "neurodl.stimuli": ("Stimuli",),
    "neurodl.responses": (
        "as_runs",
        "average_repeats",
        "bin_spikes",
        "bin_traces",
        "psth",
        "select",
        "single_trial_betas",
        "smooth",
        "stabilize_variance",
        "stack_repeats",
        "tuning_curve",
        "zscore_runs",
    ),
    "neurodl.datasets": ("Experiment", "fetch_dataset", "list_datasets", "load_dataset"),
    "neurodl.backbones": (
        "Backbone",
        "ImageTransform",
        "VideoTransform",
        "list_backbones",
        "load_backbone",
    ),
    "neurodl.features": (
        "SparseProjection",
        "StreamedPCA",
        "align",
        "calibrate_batchnorm",
        "concatenate_features",
        "event_design",
        "extract_features",
        "extract_kernels",
        "history_features",
        "history_filters",
        "list_cache",
        "motion_energy",
        "population_features",
        "prune_cache",
        "shown_features",
        "verify_cache",
    ),
    "neurodl.models": (
        "PLS",
        "BandedRidgeCV",
        "FractionalRidgeCV",
        "Hyperalignment",
        "KernelRidgeCV",
        "NeuralEncoder",
        "PoissonRidgeCV",
        "ReducedRankRidgeCV",
        "RidgeCV",
        "SequenceDecoder",
        "SequenceEncoder",
        "StackedRidgeCV",
    ),
    "neurodl.scores": (
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
        "noise_ceiling",
        "normalize_score",
        "permutation_test",
        "rdm",
        "rsa",
        "searchlight_rsa",
        "trial_scores",
        "variance_partition",
        "weight_maps",
    ),
    "neurodl.reports": ("report", "submission"),
    "neurodl.study": ("load_study", "plan", "reproduce", "run_study", "run_sweep"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "__version__"])


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first used."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'neurodl' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return list(__all__)
