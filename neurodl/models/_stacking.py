"""Stacking: what the bands of a fold predict of rows left out, and their combined prediction.

Residuals and predictions are held for some targets at a time, as many as fit into a share of the
memory: the more fit, the less often a training set is decomposed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from neurodl.models._band_folds import BandFolds, Penalties
from neurodl.models._choose import MEMORY_SHARE, predictor
from neurodl.models._simplex import simplex_weights
from neurodl.models._targets import MIN_TARGETS, Block, Targets
from neurodl.runtime import available_memory


def target_slices(targets: Targets, n_bands: int, n_left_out: int, n_held: int) -> Iterator[slice]:
    """Yield slices of targets whose residuals and predictions fit into a share of the memory.

    Parameters
    ----------
    targets : Targets
    n_bands : int
    n_left_out : int
        The most rows that are left out at once; each band has residuals of these.
    n_held : int
        Rows to predict.
    """
    # a prediction is copied a few times by whoever scores it
    n_rows = n_bands * n_left_out + 6 * n_held + targets.n_samples
    n_bytes = n_rows * targets.dtype.itemsize + 8 * n_bands**2
    room = available_memory(targets.device) // MEMORY_SHARE
    n_at_once = max(MIN_TARGETS, room // n_bytes)
    for start in range(0, targets.n_targets, n_at_once):
        yield slice(start, min(start + n_at_once, targets.n_targets))


class Combination(NamedTuple):
    """How the bands are combined for some targets.

    columns : which targets
    targets : the same, by themselves
    penalties : those of each band
    weights : (n_bands, n_targets)
    """

    columns: slice
    targets: Targets
    penalties: list[Penalties]
    weights: torch.Tensor

    def by_band(self) -> dict[str, torch.Tensor]:
        """Return weights, penalties and scores (n_bands, n_targets); NaN where left out."""
        values = {
            "weight": self.weights.clone(),
            "alpha_by_band": torch.stack([one.alpha for one in self.penalties]),
            "cv_score_by_band": torch.stack([one.score for one in self.penalties]),
        }
        for one in values.values():
            one[:, torch.as_tensor(self.targets.excluded)] = torch.nan
        return values


def of_leading(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return of values (n_bands, n_targets) those of the band with the largest weight."""
    return values.gather(0, weights.nan_to_num().argmax(0)[None])[0]


def combinations(
    bands: BandFolds, targets: Targets, penalties: list[Penalties], regions: Any = None
) -> Iterator[Combination]:
    """Yield how bands are combined, for as many targets at a time as fit into memory.

    They are stacked by the splits that `bands` was told of; without any, the best one is selected.

    Parameters
    ----------
    bands : BandFolds
    targets : Targets
        Of the training rows.
    penalties : list of Penalties
        Of each band.
    regions : array-like, shape (n_targets,), optional
        Targets that select one band together.
    """
    selected = selection(torch.stack([one.score for one in penalties]), regions)
    n_left_out = max((len(test) for _, test in bands.again), default=0)
    n_held = 0 if bands.held is None else len(bands.held)
    for columns in target_slices(targets, len(bands), n_left_out, n_held):
        some, chosen = targets.some(columns), [one.some(columns) for one in penalties]
        again = bool(bands.again)
        weights = stack_weights(bands, some, chosen) if again else selected[:, columns]
        yield Combination(columns, some, chosen, weights)


def selection(scores: torch.Tensor, regions: Any = None) -> torch.Tensor:
    """Return weights (n_bands, n_targets): 1 for the band with the best score, 0 for others.

    Targets of one region are judged by their mean; those without a score do not count.
    """
    judged = scores
    if regions is not None:
        judged = torch.empty_like(scores)
        for label in np.unique(regions):
            own = torch.as_tensor(np.flatnonzero(regions == label), device=scores.device)
            judged[:, own] = scores[:, own].nanmean(1, keepdim=True)
    best = judged.nan_to_num(-torch.inf).argmax(0)
    return torch.zeros_like(scores).scatter_(0, best[None], 1.0)


def stack_weights(bands: BandFolds, targets: Targets, penalties: list[Penalties]) -> torch.Tensor:
    """Return the convex weights (n_bands, n_targets) that predict left-out rows best.

    Parameters
    ----------
    bands : BandFolds
    targets : Targets
        Of the training rows; their residuals are held all at once.
    penalties : list of Penalties
        Of each band.

    References
    ----------
    Breiman (1996), Stacked regressions, Machine Learning 24.
    Lin, Naselaris, Kay & Wehbe (2024), Stacked regressions and structured variance partitioning
    for interpretable brain maps, NeuroImage.
    """
    shape = (targets.n_targets, len(bands), len(bands))
    gram = torch.zeros(shape, dtype=torch.float64, device=targets.device)
    for pair in bands.again:
        train, test = (torch.as_tensor(rows, device=targets.device) for rows in pair)
        residuals = _left_out(bands, targets, train, test, penalties)
        for some in torch.arange(targets.n_targets).split(targets.n_at_once):
            part = residuals[some[0] : some[-1] + 1]
            gram[some[0] : some[-1] + 1] += part @ part.mT
    return simplex_weights(gram).T.to(targets.dtype)


def _left_out(
    bands: BandFolds,
    targets: Targets,
    train: torch.Tensor,
    test: torch.Tensor,
    penalties: list[Penalties],
) -> torch.Tensor:
    """Return residuals of the left-out rows `test`, (n_targets, n_bands, n_test)."""
    shape = (targets.n_targets, len(bands), len(test))
    residuals = torch.empty(shape, dtype=targets.dtype, device=targets.device)
    for band, chosen in enumerate(penalties):
        fold = bands.nested(band, train, test, chosen)
        predict = predictor(fold, chosen.grid, chosen.place, targets.dtype)

        def missed(block: Block, predict: Any = predict) -> torch.Tensor:
            inside = block.values.index_select(1, train)
            mean = inside.mean(1)
            inside -= mean[:, None]
            outside = block.values.index_select(1, test) - mean[:, None]
            return outside - predict(Block(block.columns, inside, mean, block.floor))

        for block, found in targets.map(missed):
            residuals[block.columns, band] = found
    return residuals


def combined(bands: BandFolds, combination: Combination) -> torch.Tensor:
    """Return the weighted prediction of the rows held out, (n_held, n_targets)."""
    _, targets, penalties, weights = combination
    assert bands.held is not None
    total = torch.zeros(
        len(bands.held), targets.n_targets, dtype=targets.dtype, device=targets.device
    )
    for band, chosen in enumerate(penalties):
        if not weights[band].any():
            continue
        fold = bands.fold(band, float(chosen.grid[0]), targets.n_targets)
        predict = predictor(fold, chosen.grid, chosen.place, targets.dtype)
        for block, predicted in targets.map(predict):
            predicted += block.mean[:, None]
            total[:, block.columns] += (predicted * weights[band, block.columns, None]).T
    total[:, torch.as_tensor(targets.excluded)] = torch.nan
    return total
