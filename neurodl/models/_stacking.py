"""Stacking: what the bands of a fold predict of rows left out, and their combined prediction.

Residuals and predictions are held for some targets at a time, as many as fit into a share of the
memory: the more fit, the less often a training set is decomposed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from sklearn.base import clone

from neurodl.models._bands import Columns
from neurodl.models._choose import MEMORY_SHARE, choose, predictor
from neurodl.models._folds import Fold
from neurodl.models._simplex import simplex_weights
from neurodl.models._splits import Splits
from neurodl.models._targets import MIN_TARGETS, Block, Targets
from neurodl.models.kernel_ridge import KernelRidgeCV
from neurodl.models.ridge import RidgeCV
from neurodl.runtime import available_memory


class Penalties(NamedTuple):
    """The chosen penalties of one band.

    grid : (n_alphas,), ascending, float64
    place : (n_targets,), where in the grid each target's penalty is
    score : (n_targets,), the mean inner score at it
    """

    grid: torch.Tensor
    place: torch.Tensor
    score: torch.Tensor

    @property
    def alpha(self) -> torch.Tensor:
        """The penalty of each target, (n_targets,)."""
        return self.grid[self.place]

    def some(self, columns: slice) -> Penalties:
        """Return the penalties of some targets."""
        return Penalties(self.grid, self.place[columns], self.score[columns])


class BandSpaces:
    """The feature space of each band, scaled by the training rows of a fold.

    A space may hold a kernel of all rows. As many bands as fit into a share of the memory keep
    theirs; the others are made anew each time.

    Parameters
    ----------
    model : RidgeCV or KernelRidgeCV
        Makes the space of a band, and its grid of penalties.
    features : torch.Tensor, shape (n_samples, n_features)
    columns : dict of str to slice or torch.Tensor
        See `band_columns`.
    """

    def __init__(
        self, model: RidgeCV | KernelRidgeCV, features: torch.Tensor, columns: dict[str, Columns]
    ) -> None:
        self.model, self.features, self.columns = model, features, list(columns.values())
        room = available_memory(features.device) // MEMORY_SHARE
        self.n_kept = room // (8 * len(features) ** 2)
        self.kept: dict[int, Any] = {}
        self.last: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.columns)

    def scale_by(self, own: torch.Tensor) -> None:
        """Go on to a fold with the training rows `own`."""
        self.own, self.last, self.kept = own, self.kept, {}

    def space(self, band: int) -> Any:
        """Return the feature space of a band."""
        if band in self.kept:
            return self.kept[band]
        features = self.features[:, self.columns[band]]
        space = self.model._space(features, self.own, None, self.last.pop(band, None))
        if band < self.n_kept:
            self.kept[band] = space
        return space

    def choose(self, band: int, targets: Targets, splits: Splits) -> Penalties:
        """Return the best penalties of a band over inner splits of the training rows."""
        model, space = self.model, self.space(band)
        grid = model._grid(space.mean_eigenvalue(self.own), self.features.device)
        fold = space.fold(self.own, None, float(grid[0]), targets.n_targets)
        index, score = choose(fold, targets, splits, grid, model.scoring, screening=model.screening)
        return Penalties(grid, index, score)

    def fitted(self, band: int, targets: Targets, alpha: torch.Tensor) -> RidgeCV | KernelRidgeCV:
        """Return the model of a band at penalties (n_targets,), where all rows are its own."""
        model: RidgeCV | KernelRidgeCV = clone(self.model)
        space, alpha = self.space(band), alpha.nan_to_num(1.0)
        fold = space.fold(self.own, None, float(alpha.min()), targets.n_targets)
        model._fit_weights(space, fold, targets, alpha)
        return model

    def fold(self, band: int, own: torch.Tensor, held: torch.Tensor, penalties: Penalties) -> Fold:
        """Return some of the training rows, ready to predict others by a band."""
        smallest = float(penalties.grid[0])
        return self.space(band).fold(own, held, smallest, len(penalties.place))


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
    n_rows = n_bands * n_left_out + 2 * n_held + targets.n_samples
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
    spaces: BandSpaces,
    targets: Targets,
    splits: Splits,
    penalties: list[Penalties],
    combine: str,
    n_held: int = 0,
) -> Iterator[Combination]:
    """Yield how bands are combined, for as many targets at a time as fit into memory.

    Parameters
    ----------
    spaces : BandSpaces
    targets : Targets
        Of the training rows.
    splits : list of (train, test)
        Row numbers among the training rows.
    penalties : list of Penalties
        Of each band.
    combine : {"stack", "select"}
        See `StackedRidgeCV`.
    n_held : int
        Rows that will be predicted.
    """
    n_left_out = max((len(test) for _, test in splits), default=0) if combine == "stack" else 0
    for columns in target_slices(targets, len(spaces), n_left_out, n_held):
        some, chosen = targets.some(columns), [one.some(columns) for one in penalties]
        if combine == "stack" and len(spaces) > 1:
            weights = stack_weights(spaces, some, splits, chosen)
        else:
            weights = selection(torch.stack([one.score for one in chosen]))
        yield Combination(columns, some, chosen, weights)


def selection(scores: torch.Tensor) -> torch.Tensor:
    """Return weights (n_bands, n_targets): 1 for the band with the best score, 0 for others."""
    best = scores.nan_to_num(-torch.inf).argmax(0)
    return torch.zeros_like(scores).scatter_(0, best[None], 1.0)


def stack_weights(
    spaces: BandSpaces, targets: Targets, splits: Splits, penalties: list[Penalties]
) -> torch.Tensor:
    """Return the convex weights (n_bands, n_targets) that predict left-out rows best.

    Parameters
    ----------
    spaces : BandSpaces
    targets : Targets
        Of the training rows; their residuals are held all at once.
    splits : list of (train, test)
        Row numbers among the training rows.
    penalties : list of Penalties
        Of each band.

    References
    ----------
    Breiman (1996), Stacked regressions, Machine Learning 24.
    Lin, Naselaris, Kay & Wehbe (2024), Stacked regressions and structured variance partitioning
    for interpretable brain maps, NeuroImage.
    """
    shape = (targets.n_targets, len(spaces), len(spaces))
    gram = torch.zeros(shape, dtype=torch.float64, device=targets.device)
    for pair in splits:
        train, test = (torch.as_tensor(rows, device=targets.device) for rows in pair)
        residuals = _left_out(spaces, targets, train, test, penalties)
        for some in torch.arange(targets.n_targets).split(targets.n_at_once):
            part = residuals[some[0] : some[-1] + 1]
            gram[some[0] : some[-1] + 1] += part @ part.mT
    return simplex_weights(gram).T.to(targets.dtype)


def _left_out(
    spaces: BandSpaces,
    targets: Targets,
    train: torch.Tensor,
    test: torch.Tensor,
    penalties: list[Penalties],
) -> torch.Tensor:
    """Return residuals of the left-out rows `test`, (n_targets, n_bands, n_test)."""
    shape = (targets.n_targets, len(spaces), len(test))
    residuals = torch.empty(shape, dtype=targets.dtype, device=targets.device)
    for band, chosen in enumerate(penalties):
        fold = spaces.fold(band, spaces.own[train], spaces.own[test], chosen)
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


def combined(spaces: BandSpaces, combination: Combination, held: torch.Tensor) -> torch.Tensor:
    """Return the weighted prediction of the rows `held`, (n_held, n_targets)."""
    _, targets, penalties, weights = combination
    total = torch.zeros(len(held), targets.n_targets, dtype=targets.dtype, device=targets.device)
    for band, chosen in enumerate(penalties):
        if not weights[band].any():
            continue
        fold = spaces.fold(band, spaces.own, held, chosen)
        predict = predictor(fold, chosen.grid, chosen.place, targets.dtype)
        for block, predicted in targets.map(predict):
            predicted += block.mean[:, None]
            total[:, block.columns] += (predicted * weights[band, block.columns, None]).T
    total[:, torch.as_tensor(targets.excluded)] = torch.nan
    return total
