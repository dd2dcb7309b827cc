"""BandedRidgeCV: ridge regression on several bands of features, a penalty per band and target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from neurodl.models._band_rows import Bands
from neurodl.models._band_search import HIGHEST, LOWEST, BandSearch
from neurodl.models._bands import Columns, band_columns
from neurodl.models._base import (
    FoldPrediction,
    PenaltyCV,
    as_index,
    as_tensor,
    check_features_input,
    check_fit_input,
    part_of,
)
from neurodl.models._conjugate import references, solve_exactly
from neurodl.models._design import Design, Scaling, fit_scaling
from neurodl.models._spaces import MAX_FEATURES_PER_SAMPLE
from neurodl.models._splits import inner_splits
from neurodl.models._targets import Block, Targets
from neurodl.runtime import available_memory, resolve_device

KERNELS = ("linear", "precomputed")
TOLERANCE = 1e-7  # of the residual of final solutions
N_REFERENCES = 16
MAX_TARGETS = 4096  # whose gains are searched together
MEMORY_SHARE = 8
FEATURES_PER_ROW = 0.8  # up to which rows are replaced by as many pseudo-rows as there are features


class _Solved(NamedTuple):
    """Some targets with their penalties.

    block : Block
    gains : (n_targets, n_bands), by which the scaled kernels are multiplied, float64
    solution : (n_targets, k), float64
    scores : (n_targets,), mean inner scores
    """

    block: Block
    gains: torch.Tensor
    solution: torch.Tensor
    scores: torch.Tensor
