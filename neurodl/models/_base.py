"""What regressions with a penalty per target share: input, inner folds, prediction by folds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin

from neurodl.errors import NeurodlWarning
from neurodl.models._choose import choose, predictor
from neurodl.models._devices import all_or_nothing, predict_on_several
from neurodl.models._folds import Fold
from neurodl.models._input import (
    as_index,
    as_tensor,
    check_finite,
    check_lengths,
    copies,
    dtype_of,
    part_of,
)
from neurodl.models._preflight import Path, Work, announced
from neurodl.models._screening import can_screen
from neurodl.models._solvers import SCORINGS
from neurodl.models._spaces import Space
from neurodl.models._splits import Splits, check_rows, inner_splits, n_inner
from neurodl.models._targets import Targets
from neurodl.runtime import available_memory, names_several, resolve_device

N_AUTO = 17  # penalties of alphas="auto"
MORE_DECADES = 3  # of a grid that was too short


class FoldPrediction(NamedTuple):
    """Predictions of some targets in the test rows of one split.

    fold : which split
    columns : which targets
    predicted : (n_test, n_targets)
    alpha : (n_targets,), the chosen penalties, or what the model chooses in their place
    by_band : (n_bands, n_targets) each, what else was chosen or found for each band of features,
        by the name that it has among the scores
    parts : (n_bands, n_test, n_targets), the part of each band in the predictions
    history : what was measured in each epoch of training
    """

    fold: int
    columns: slice
    predicted: torch.Tensor
    alpha: torch.Tensor
    by_band: Mapping[str, torch.Tensor] | None = None
    parts: torch.Tensor | None = None
    history: Sequence[Mapping[str, Any]] = ()


class PenaltyCV(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Base of regressions that choose one penalty per target inside the training rows.

    A subclass has the parameters alphas, cv, scoring, nan_targets, screening, device and seed, and
    makes a `Space` of features. Its `fit` is for one device; here it learns to use several, and
    to leave the model as it was where it does not come to its end.
    """

    # The axis of targets of all that `fit` learns of each: with these, several devices can share
    # the targets. It stays empty where targets cannot be fitted without the others.
    _target_axes: ClassVar[dict[str, int]] = {}
    _target_counts: ClassVar[tuple[str, ...]] = ("n_excluded_", "n_alphas_at_edge_")

    alphas: Any
    cv: Any
    scoring: str
    nan_targets: str
    screening: bool
    device: Any
    seed: int
    _single_target = False
    _simplest = -1  # the place in the grid of what a target without any score gets
    # How many targets of how many chose each edge of the grid, where that is said later.
    _edges_seen: list[tuple[np.ndarray, int, torch.Tensor]] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "fit" in vars(cls):
            cls.fit = all_or_nothing(cls.fit)

    def _space(self, features: torch.Tensor, own: torch.Tensor, runs: Any, last: Any) -> Space:
        """Return the feature space of all rows, scaled by the training rows `own`.

        `last` is that of the fold before, in case something of it still holds.
        """
        raise NotImplementedError

    def _fit_weights(
        self, space: Any, fold: Fold, targets: Targets, penalties: torch.Tensor
    ) -> None:
        """Keep what predicts the targets from new rows, at penalties (n_targets,).

        All rows of the space are training rows.
        """
        raise NotImplementedError

    def predict_folds(
        self,
        X: Any,
        y: Any,
        splits: Sequence[tuple[Any, Any]],
        groups: Any = None,
        runs: Any = None,
    ) -> Iterator[FoldPrediction]:
        """Predict the test rows of each split by a model of its training rows, block by block.

        The same as ``fit`` and ``predict`` for each split, without weights in between: it takes
        less time, and memory that does not grow with the number of targets.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
        y : array-like, shape (n_samples, n_targets)
            Of numpy, torch, xarray or zarr, or a memory map; read in blocks of targets.
        splits : sequence of (train, test)
            Row numbers.
        groups, runs : array-like, shape (n_samples,), optional
            See `fit`.

        Yields
        ------
        FoldPrediction
        """
        self._check_parameters()
        splits = list(splits)
        check_lengths(X, y, groups=groups, runs=runs)
        check_rows(splits, X.shape[0])
        if names_several(self.device):
            yield from predict_on_several(self, X, y, splits, groups=groups, runs=runs)
            return
        device = resolve_device(self.device)
        groups = self._inner_groups(groups, runs)
        at_once = self._targets_at_once(X, y, splits, groups, device)
        features = as_tensor(X, device)
        check_finite(features)
        space = None
        for fold, (train, test) in enumerate(splits):
            own, held = as_index(train, device), as_index(test, device)
            space = self._space(features, own, runs, space)
            centred_by = self._centring_runs(runs, train, test)
            targets = Targets(y, features, np.asarray(train), self.nan_targets, centred_by, at_once)
            parts = self._predict(space, own, held, targets, part_of(groups, train))
            for part in parts:
                yield FoldPrediction(fold, *part)

    def _predict(
        self, space: Space, own: torch.Tensor, held: torch.Tensor, targets: Targets, groups: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the fields of `FoldPrediction` but for the fold, for the rows `held`."""
        grid = self._grid(space, own)
        fold = self._fold(space, own, held, targets, grid, groups)
        chosen, _ = self._choose(fold, targets, grid, groups, exact_best=False)
        for block, predicted in targets.map(predictor(fold, grid, chosen, targets.dtype)):
            predicted += block.mean[:, None]
            predicted[torch.as_tensor(targets.excluded[block.columns])] = torch.nan
            yield block.columns, predicted.T, grid[chosen[block.columns]]
        self._warn_of_edges(chosen, grid)

    def _path(self, n_train: int, n_features: int, n_targets: int) -> Path | None:
        """Return how training rows will be described, or None if their memory is not known."""
        return None

    def _targets_at_once(
        self, X: Any, y: Any, splits: Sequence[Any], groups: Any, device: torch.device
    ) -> int | None:
        """Return how many targets to read at once, with the memory told before anything starts.

        Raises
        ------
        TooLargeError
            What is free does not suffice.
        """
        train, test = max(splits, key=lambda split: len(split[0]))
        (n_samples, n_features), n_targets = np.shape(X)[:2], int(y.shape[1])
        path = self._path(len(train), n_features, int(getattr(y, "n_together", n_targets)))
        if path is None:
            return None
        dtype = dtype_of(X)
        n_alphas = N_AUTO if isinstance(self.alphas, str) else len(np.unique(self.alphas))
        work = Work(
            n_samples,
            len(train),
            len(test),
            n_targets,
            n_alphas,
            n_inner(self.cv, len(train), part_of(groups, train)) if n_alphas > 1 else 0,
            dtype.itemsize,
            path,
            screening=self.screening and can_screen(n_alphas, dtype, device),
            input_bytes=n_samples * n_features * dtype.itemsize * copies(X, device),
            device="cuda" if device.type == "cuda" else "cpu",
        )
        return announced(work, len(splits), available_memory(device))

    def _inner_groups(self, groups: Any, runs: Any) -> Any:
        """Return what inner folds keep whole."""
        return groups

    def _centring_runs(self, runs: Any, train: Any, test: Any) -> Any:
        """Return the runs of the training rows, if each run has a mean of its own."""
        return None

    def _check_parameters(self) -> None:
        if self.scoring not in SCORINGS:
            raise ValueError(f"`scoring` must be one of {SCORINGS}, but got {self.scoring!r}.")
        if self.nan_targets not in ("error", "exclude"):
            raise ValueError(
                f"`nan_targets` must be 'error' or 'exclude', but got {self.nan_targets!r}."
            )
        self._check_grid()

    def _check_grid(self) -> None:
        if isinstance(self.alphas, str):
            if self.alphas != "auto":
                raise ValueError(f"`alphas` must be 'auto' or numbers, but got {self.alphas!r}.")
            return
        alphas = np.atleast_1d(np.asarray(self.alphas, float))
        if alphas.ndim != 1 or not len(alphas) or not (np.isfinite(alphas) & (alphas > 0)).all():
            raise ValueError(f"`alphas` must be finite and > 0, but got {self.alphas}.")

    def _grid(self, space: Any, own: torch.Tensor) -> torch.Tensor:
        """Return what there is to choose from, the penalties: ascending, float64."""
        if isinstance(self.alphas, str):
            alphas = (space.mean_eigenvalue(own) or 1.0) * np.logspace(-4, 4, N_AUTO)
        else:
            alphas = np.unique(np.asarray(self.alphas, float))
        return torch.as_tensor(alphas, dtype=torch.float64, device=own.device)

    def _fold(
        self,
        space: Any,
        own: torch.Tensor,
        held: torch.Tensor | None,
        targets: Targets,
        grid: torch.Tensor,
        groups: Any,
    ) -> Any:
        """Return the training rows `own` for `_choose`, ready to predict the rows `held`."""
        return space.fold(own, held, float(grid[0]), targets.n_together)

    def _choose(
        self,
        fold: Fold,
        targets: Targets,
        grid: torch.Tensor,
        groups: Any,
        *,
        exact_best: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the index of the chosen penalty of each target, and its mean inner score."""
        splits: Splits = []
        if len(grid) > 1:
            splits = inner_splits(self.cv, targets.n_samples, groups, self.seed)
        return choose(
            fold,
            targets,
            splits,
            grid,
            self.scoring,
            screening=self.screening,
            exact_best=exact_best,
            simplest=self._simplest,
        )

    def _warn_of_edges(self, chosen: torch.Tensor, grid: torch.Tensor) -> int:
        """Count the targets at the edges of the grid, and say so if the grid was given."""
        if len(grid) == 1:
            return 0
        at_edges = np.array([int((chosen == edge).sum()) for edge in (0, len(grid) - 1)])
        if self._edges_seen is None:
            self._say_edges(at_edges, len(chosen), grid)
        else:
            self._edges_seen.append((at_edges, len(chosen), grid))
        return int(at_edges.sum())

    def _say_edges(self, at_edges: np.ndarray, n_targets: int, grid: torch.Tensor) -> None:
        """Warn of targets at the edges of the grid, if it was given, and name the next one."""
        if at_edges.any() and not isinstance(self.alphas, str):
            warnings.warn(
                f"{at_edges.sum()} of {n_targets} targets chose an edge of `alphas`: "
                f"{at_edges[0]} the smallest ({grid[0]:g}), {at_edges[1]} the largest "
                f"({grid[-1]:g}). To widen the grid, use alphas={_next_grid(at_edges, grid)}, or "
                "alphas='auto'.",
                NeurodlWarning,
                stacklevel=4,
            )


def _next_grid(at_edges: np.ndarray, grid: torch.Tensor) -> str:
    """Return the grid, longer on the sides where it was too short, as the text of a call."""
    low, high = (float(torch.log10(grid[edge].clamp(min=1e-30))) for edge in (0, -1))
    step = max((high - low) / (len(grid) - 1), 0.1)
    added = [math.ceil(MORE_DECADES / step) * step if n else 0.0 for n in at_edges]
    low, high = low - added[0], high + added[1]
    return f"np.logspace({low:.4g}, {high:.4g}, {round((high - low) / step) + 1})"


def weights_at(
    fold: Fold,
    targets: Targets,
    penalties: torch.Tensor,
    basis: torch.Tensor,
    centre: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights and intercepts at the penalty of each target.

    Parameters
    ----------
    fold : Fold
    targets : Targets
    penalties : torch.Tensor, shape (n_targets,), float64
    basis : torch.Tensor, shape (n_weights, rank)
        Turns filtered targets into weights.
    centre : torch.Tensor, shape (n_weights,)
        Where weights predict the mean.

    Returns
    -------
    weights : torch.Tensor, shape (n_weights, n_targets)
        NaN for targets that are excluded.
    intercepts : torch.Tensor, shape (n_targets,)
    """
    basis = basis.to(targets.dtype)
    weights, means = [], []
    for block, part in targets.map(
        lambda block: basis @ fold.filtered(fold.view(block), penalties[block.columns]).T
    ):
        part[:, torch.as_tensor(targets.excluded[block.columns])] = torch.nan
        weights.append(part)
        means.append(block.mean)
    joined = torch.cat(weights, 1)
    return joined, torch.cat(means) - centre.to(targets.dtype) @ joined
