"""The bands of a fit: the feature space of each, and the folds that predict by it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from sklearn.base import clone

from neurodl.models._bands import Columns
from neurodl.models._choose import MEMORY_SHARE, choose
from neurodl.models._folds import DualFold, Fold
from neurodl.models._splits import Splits
from neurodl.models._targets import Targets
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


class BandFolds:
    """The folds of each band, on one set of training rows after the other.

    A band may have a kernel of all rows, and decompositions of training rows. As many bands as
    fit into a share of the memory keep theirs; those of the others are made anew each time.

    Parameters
    ----------
    model : RidgeCV or KernelRidgeCV
        Makes the feature space of a band, and its grid of penalties.
    features : torch.Tensor, shape (n_samples, n_features)
    columns : dict of str to slice or torch.Tensor
        See `band_columns`.
    """

    def __init__(
        self, model: RidgeCV | KernelRidgeCV, features: torch.Tensor, columns: dict[str, Columns]
    ) -> None:
        self.model, self.features, self.columns = model, features, list(columns.values())
        self.n_spaces = _how_many([(len(features), 0)], features.device)
        self.spaces: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.columns)

    def start(self, own: torch.Tensor, held: torch.Tensor | None, again: Splits) -> None:
        """Go on to the training rows `own`, which predict the rows `held`.

        `again` are splits of the training rows that `nested` will be asked for after `choose`.
        """
        self.own, self.held, self.again = own, held, again
        self.last, self.spaces = self.spaces, {}
        self.folds: dict[int, Fold] = {}
        sizes = [(len(own), 0 if held is None else len(held))]
        sizes += [(len(train), len(test)) for train, test in again]
        self.n_folds = min(self.n_spaces, _how_many(sizes, own.device))

    def space(self, band: int) -> Any:
        """Return the feature space of a band, scaled by the training rows."""
        if band in self.spaces:
            return self.spaces[band]
        features = self.features[:, self.columns[band]]
        space = self.model._space(features, self.own, None, self.last.pop(band, None))
        if band < self.n_spaces:
            self.spaces[band] = space
        return space

    def fold(self, band: int, smallest_alpha: float, n_targets: int) -> Fold:
        """Return the training rows, ready to be split and to predict others."""
        if band in self.folds:
            return self.folds[band]
        fold: Fold = self.space(band).fold(self.own, self.held, smallest_alpha, n_targets)
        if band < self.n_folds:
            self.folds[band] = fold
            if self.again and isinstance(fold, DualFold):
                fold.keep_nested()
        return fold

    def nested(
        self, band: int, train: torch.Tensor, test: torch.Tensor, penalties: Penalties
    ) -> Fold:
        """Return the own rows `train`, ready to predict the own rows `test`."""
        fold = self.folds.get(band)
        if isinstance(fold, DualFold):
            return fold.nested(train, test)
        smallest, n_targets = float(penalties.grid[0]), len(penalties.place)
        nested: Fold = self.space(band).fold(self.own[train], self.own[test], smallest, n_targets)
        return nested

    def choose(self, band: int, targets: Targets, splits: Splits) -> Penalties:
        """Return the best penalties of a band over inner splits of the training rows."""
        model = self.model
        grid = model._grid(self.space(band), self.own)
        fold = self.fold(band, float(grid[0]), targets.n_targets)
        place, score = choose(fold, targets, splits, grid, model.scoring, screening=model.screening)
        return Penalties(grid, place, score)

    def fitted(self, band: int, targets: Targets, alpha: torch.Tensor) -> RidgeCV | KernelRidgeCV:
        """Return the model of a band at penalties (n_targets,), where all rows are its own."""
        model: RidgeCV | KernelRidgeCV = clone(self.model)
        space, alpha = self.space(band), alpha.nan_to_num(1.0)
        fold = self.folds.get(band)
        if fold is None:
            fold = space.fold(self.own, None, float(alpha.min()), targets.n_targets)
        model._fit_weights(space, fold, targets, alpha)
        return model


def _how_many(sizes: list[tuple[int, int]], device: torch.device) -> int:
    """Return for how many bands maps from n rows to them and m others fit into the memory."""
    n_bytes = sum(8 * n * (n + m) for n, m in sizes)
    return available_memory(device) // MEMORY_SHARE // n_bytes
