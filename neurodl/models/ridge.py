"""RidgeCV: ridge regression of many targets, with the penalty chosen per target inside the data."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.model_selection import GroupKFold, KFold, check_cv
from sklearn.utils.validation import check_is_fitted, validate_data

from neurodl.errors import NeurodlWarning
from neurodl.models._screening import Screen, can_screen
from neurodl.models._solvers import (
    SCORINGS,
    HeldOut,
    Spectrum,
    best_alpha,
    dual_spectrum,
    filtered,
    gram,
    held_out,
    moments,
    primal_spectrum,
    with_primal_weights,
)
from neurodl.runtime import resolve_device

N_TARGETS_BATCH = 2048
# The operators of inner splits are held together up to this size, so that targets are read once.
OPERATOR_BYTES = 2**26
# Up to this many features per sample, weights of features are kept: they are more exact than
# weights of samples, and still no larger than a few times the targets.
MAX_FEATURES_PER_SAMPLE = 4


SpectrumOf = Callable[[torch.Tensor, torch.Tensor | None], Spectrum]
Parts = list[tuple[torch.Tensor, torch.Tensor]]
Scorer = Callable[[Parts, torch.Tensor], list[torch.Tensor]]


class FoldPrediction(NamedTuple):
    """Predictions of some targets in the test rows of one split.

    fold : which split
    columns : which targets
    predicted : (n_test, n_targets)
    alpha : (n_targets,), the chosen penalties
    """

    fold: int
    columns: slice
    predicted: torch.Tensor
    alpha: torch.Tensor


class RidgeCV(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Ridge regression with an intercept and one penalty per target, chosen by inner folds.

    Exact: one eigendecomposition of each inner training set serves all penalties and all
    targets. With fewer samples than features it works on the kernel of the samples.

    Parameters
    ----------
    alphas : "auto" or array-like of float
        The penalties to choose from. "auto" spreads 17 of them over eight decades around the
        mean eigenvalue of the training rows.
    cv : int or scikit-learn splitter
        The inner folds. An int shuffles with `seed`; with `groups` it keeps groups whole.
    scoring : {"r2", "r"}
        What is averaged over the inner folds and maximised, target by target.
    standardize : bool
        Divide each feature by its standard deviation over the training rows. Features that
        hardly vary are divided by `sd_floor` times the root mean square of all standard
        deviations instead, so that no single row can blow up; ``n_floored_`` counts them.
    sd_floor : float
        See `standardize`.
    screening : bool
        Whether half-precision products may tell, where the hardware has them, which penalties are
        worth scoring in full. The result is the same; False is slower.
    device : {"auto", "cpu", "cuda", "mps"}
        See `resolve_device`.
    seed : int
        Shuffles the inner folds.

    Attributes
    ----------
    alpha_ : numpy.ndarray, shape (n_targets,)
        The chosen penalty, in units of the scaled features.
    cv_score_ : numpy.ndarray, shape (n_targets,)
        Mean inner score at the chosen penalty.
    intercept_ : numpy.ndarray, shape (n_targets,)
    n_floored_ : int
        Features whose standard deviation was raised to the floor.

    References
    ----------
    Hoerl & Kennard (1970), Ridge regression, Technometrics 12.
    Dupre la Tour et al. (2022), Feature-space selection with banded ridge regression, NeuroImage.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((60, 5)); Y = X @ rng.standard_normal((5, 3))
    >>> bool((RidgeCV(device="cpu").fit(X, Y).predict(X) - Y).std() < 0.01)
    True
    """

    def __init__(
        self,
        alphas: Any = "auto",
        *,
        cv: Any = 5,
        scoring: str = "r2",
        standardize: bool = True,
        sd_floor: float = 0.1,
        screening: bool = True,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        self.alphas = alphas
        self.cv = cv
        self.scoring = scoring
        self.standardize = standardize
        self.sd_floor = sd_floor
        self.screening = screening
        self.device = device
        self.seed = seed

    def fit(self, X: Any, y: Any, groups: Any = None) -> RidgeCV:
        """Choose the penalties and fit the weights.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
        y : array-like, shape (n_samples,) or (n_samples, n_targets)
        groups : array-like, shape (n_samples,), optional
            Rows of one group (a run, say) stay on one side of every inner split.

        Returns
        -------
        RidgeCV
            self.

        Raises
        ------
        ValueError
            Values are not finite, lengths differ, or a parameter is out of range.
        """
        X, y = validate_data(
            self,
            X,
            y,
            dtype=(np.float64, np.float32),
            multi_output=True,
            y_numeric=True,
            ensure_min_samples=2,
        )
        self._check_parameters()
        device = resolve_device(self.device)
        features = torch.as_tensor(np.require(X, requirements="W"), device=device)
        everyone = torch.arange(len(features), device=device)
        scaling = self._scaling(features, everyone)
        self.X_offset_, self.X_scale_, self.n_floored_ = (
            scaling.offset,
            scaling.scale,
            scaling.n_floored,
        )
        rows = (features - scaling.offset) / scaling.scale
        targets = _Targets(y.reshape(len(X), -1), rows)
        self._single_target = np.ndim(y) == 1
        grid = self._grid(scaling, rows)
        spectrum_of = _spectra(features, scaling, grid)
        chosen, scores = self._choose(spectrum_of, everyone, targets, grid, groups)
        whole = spectrum_of(everyone, None)
        self._is_dual = rows.shape[1] > MAX_FEATURES_PER_SAMPLE * len(rows)
        if len(rows) <= rows.shape[1] and not self._is_dual:
            whole = with_primal_weights(whole, rows)
        weight_basis = whole.weight_basis.to(rows.dtype)
        weights = [
            weight_basis @ filtered(whole, block.values, grid[chosen[block.columns]]).T
            for block in targets.blocks()
        ]
        self._weights = torch.cat(weights, 1)
        self._dual_rows = rows if self._is_dual else None
        self._intercept = targets.mean()
        self.intercept_ = self._intercept.cpu().numpy()
        self.alpha_ = grid[chosen].cpu().numpy()
        self.cv_score_ = scores.cpu().numpy()
        self.n_alphas_at_edge_ = self._warn_of_edges(chosen, grid)
        return self

    def predict_folds(
        self, X: Any, y: Any, splits: Sequence[tuple[Any, Any]], groups: Any = None
    ) -> Iterator[FoldPrediction]:
        """Predict the test rows of each split by a model of its training rows, block by block.

        The same as ``fit`` and ``predict`` for each split, without weights in between: it takes
        less time, and memory that does not grow with the number of targets.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
        y : array-like, shape (n_samples, n_targets)
        splits : sequence of (train, test)
            Row numbers.
        groups : array-like, shape (n_samples,), optional
            See `fit`.

        Yields
        ------
        FoldPrediction
        """
        self._check_parameters()
        device = resolve_device(self.device)
        features = torch.as_tensor(np.require(X, requirements="W"), device=device)
        spectrum_of = None
        for fold, (train, test) in enumerate(splits):
            own, held = _index(train, device), _index(test, device)
            scaling = self._scaling(features, own)
            grid = self._grid(scaling, features)
            # without scaling, one kernel serves all folds: each centres it on its own rows
            if spectrum_of is None or self.standardize:
                spectrum_of = _spectra(features, scaling, grid)
            targets = _Targets(y, features, np.asarray(train))
            chosen, _ = self._choose(spectrum_of, own, targets, grid, _part(groups, train))
            whole = spectrum_of(own, held)
            predict = _predictor(whole, grid, chosen, features.dtype)
            for block in targets.blocks():
                predicted = predict(block) + block.mean[:, None]
                alphas = grid[chosen[block.columns]]
                yield FoldPrediction(fold, block.columns, predicted.T, alphas)
            self._warn_of_edges(chosen, grid)

    def _check_parameters(self) -> None:
        if self.scoring not in SCORINGS:
            raise ValueError(f"`scoring` must be one of {SCORINGS}, but got {self.scoring!r}.")
        if isinstance(self.alphas, str) and self.alphas != "auto":
            raise ValueError(f"`alphas` must be 'auto' or numbers, but got {self.alphas!r}.")
        if not isinstance(self.alphas, str):
            alphas = np.atleast_1d(np.asarray(self.alphas, float))
            if (
                alphas.ndim != 1
                or not len(alphas)
                or not (np.isfinite(alphas) & (alphas > 0)).all()
            ):
                raise ValueError(f"`alphas` must be finite and > 0, but got {self.alphas}.")
        if not 0 < self.sd_floor <= 1:
            raise ValueError(f"`sd_floor` must lie in (0, 1], but got {self.sd_floor}.")

    def _scaling(self, features: torch.Tensor, own: torch.Tensor) -> _Scaling:
        """Return what centres and scales each feature, from the training rows `own`."""
        offset, sd = moments(features, own)
        scale, n_floored = torch.ones_like(sd), 0
        floor = self.sd_floor * sd.square().mean().sqrt()
        if self.standardize and floor > 0:
            n_floored = int((sd < floor).sum())
            scale = sd.clamp_min(floor)
        mean_eigenvalue = float((sd / scale).double().square().sum()) * len(own)
        mean_eigenvalue /= min(len(own), len(sd))
        return _Scaling(offset, scale, n_floored, mean_eigenvalue)

    def _grid(self, scaling: _Scaling, like: torch.Tensor) -> torch.Tensor:
        """Return the penalties, ascending, float64."""
        if isinstance(self.alphas, str):
            alphas = (scaling.mean_eigenvalue or 1.0) * np.logspace(-4, 4, 17)
        else:
            alphas = np.unique(np.asarray(self.alphas, float))
        return torch.as_tensor(alphas, dtype=torch.float64, device=like.device)

    def _splits(self, n_samples: int, groups: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the inner splits."""
        cv = self.cv
        if isinstance(cv, numbers.Integral):
            if groups is not None:
                n_groups = len(np.unique(groups))
                if n_groups < 2:
                    raise ValueError(
                        "Choosing the penalty needs at least 2 groups in the training rows, but "
                        "there is 1. Give one penalty, such as alphas=[1.0], or more groups."
                    )
                cv = GroupKFold(min(int(cv), n_groups))
            else:
                cv = KFold(min(int(cv), n_samples), shuffle=True, random_state=self.seed)
        return list(check_cv(cv).split(np.empty((n_samples, 1)), None, groups))

    def _choose(
        self,
        spectrum_of: SpectrumOf,
        own: torch.Tensor,
        targets: _Targets,
        grid: torch.Tensor,
        groups: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the index of the chosen penalty of each target, and its mean inner score.

        Parameters
        ----------
        own : torch.Tensor, shape (n_train,)
            Where the training rows stand among the rows that `spectrum_of` knows.
        """
        device, n_targets = own.device, targets.n_targets
        if len(grid) == 1:
            index = torch.zeros(n_targets, dtype=torch.long, device=device)
            return index, torch.full((n_targets,), torch.nan, device=device)
        total = torch.zeros(len(grid), n_targets, dtype=targets.dtype, device=device)
        counted = torch.zeros_like(total, dtype=torch.int16)
        splits = self._splits(len(own), groups)
        waiting = [(_index(train, device), _index(test, device)) for train, test in splits]
        while waiting:
            pairs: Parts = []
            operators: list[HeldOut] = []
            while waiting and sum(one.n_bytes for one in operators) < OPERATOR_BYTES:
                pairs.append(waiting.pop(0))
                spectrum = spectrum_of(*(own[rows] for rows in pairs[-1]))
                operators.append(held_out(spectrum, grid, self.scoring, targets.dtype))
            whole = len(operators) == len(splits)
            scores_of = _scorer(operators, screening=self.screening and whole)
            del operators
            for block in targets.blocks():
                parts = [
                    (block.values.index_select(1, train), block.values.index_select(1, test))
                    for train, test in pairs
                ]
                for scores in scores_of(parts, block.floor):
                    total[:, block.columns] += torch.where(scores.isnan(), 0.0, scores)
                    counted[:, block.columns] += ~scores.isnan()
        mean = total / counted
        index = best_alpha(mean)
        return index, mean.gather(0, index[None])[0]

    def _warn_of_edges(self, chosen: torch.Tensor, grid: torch.Tensor) -> int:
        """Count the targets at the edges of the grid, and say so if the grid was given."""
        if len(grid) == 1:
            return 0
        n_at_edge = int(((chosen == 0) | (chosen == len(grid) - 1)).sum())
        if n_at_edge and not isinstance(self.alphas, str):
            warnings.warn(
                f"{n_at_edge} of {len(chosen)} targets chose the smallest or largest "
                f"of `alphas` ({grid[0]:g} to {grid[-1]:g}); widen the grid or use alphas='auto'.",
                NeurodlWarning,
                stacklevel=3,
            )
        return n_at_edge

    @property
    def coef_(self) -> np.ndarray:
        """The weights on the unscaled features, shape ([n_targets,] n_features)."""
        weights = self._weights if self._dual_rows is None else self._dual_rows.T @ self._weights
        coef = (weights / self.X_scale_[:, None]).T.cpu().numpy()
        return coef[0] if self._single_target else coef

    def predict(self, X: Any) -> np.ndarray:
        """Return predictions, shape (n_samples,) or (n_samples, n_targets).

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        rows = torch.as_tensor(np.require(X, requirements="W"))
        rows = rows.to(self._weights.device, self._weights.dtype)
        rows = (rows - self.X_offset_) / self.X_scale_
        if self._dual_rows is not None:
            rows = rows @ self._dual_rows.T
        predicted = (rows @ self._weights + self._intercept).cpu().numpy()
        return predicted[:, 0] if self._single_target else predicted


class _Scaling(NamedTuple):
    """What centres and scales the features.

    offset, scale : (n_features,)
    n_floored : how many features hardly vary
    mean_eigenvalue : of the kernel or covariance of the scaled training rows
    """

    offset: torch.Tensor
    scale: torch.Tensor
    n_floored: int
    mean_eigenvalue: float


class Block(NamedTuple):
    """Some targets of the training rows, centred.

    columns : which targets
    values : (n_targets, n_train)
    mean : (n_targets,), what was subtracted
    floor : (n_targets,), deviations below it are rounding errors
    """

    columns: slice
    values: torch.Tensor
    mean: torch.Tensor
    floor: torch.Tensor


class _Targets:
    """Targets that are read block by block, onto the device and in the dtype of the features."""

    def __init__(self, y: np.ndarray, like: torch.Tensor, rows: np.ndarray | None = None) -> None:
        self.y, self.rows, self.dtype, self.device = y, rows, like.dtype, like.device
        self.n_targets = y.shape[1]

    def blocks(self) -> Iterator[Block]:
        """Yield all targets, some at a time."""
        for start in range(0, self.n_targets, N_TARGETS_BATCH):
            columns = slice(start, min(start + N_TARGETS_BATCH, self.n_targets))
            raw = np.asarray(self.y[:, columns])
            raw = (raw if self.rows is None else raw[self.rows]).T
            values = torch.tensor(raw, dtype=self.dtype, device=self.device)
            floor = 8 * torch.finfo(self.dtype).eps * values.abs().amax(1)
            mean = values.mean(1)
            values -= mean[:, None]
            yield Block(columns, values.contiguous(), mean, floor)

    def mean(self) -> torch.Tensor:
        """Return the mean of each target."""
        return torch.cat([block.mean for block in self.blocks()])


def _spectra(features: torch.Tensor, scaling: _Scaling, grid: torch.Tensor) -> SpectrumOf:
    """Return the function from training and test rows to a spectrum, dual or primal."""
    if features.shape[0] > features.shape[1]:
        rows = (features - scaling.offset) / scaling.scale
        return lambda train, test: primal_spectrum(rows, train, test)
    kernel = gram(features, scaling.offset, scaling.scale, float(grid[0]))
    return lambda train, test: dual_spectrum(kernel, train, test)


def _scorer(operators: list[HeldOut], *, screening: bool) -> Scorer:
    """Return the function from targets to scores: of each split, or their mean if screened."""
    if screening and can_screen(operators):
        screen = Screen(operators)
        return lambda parts, floor: [screen.scores(parts, floor)]
    return lambda parts, floor: [
        operator.scores(*part, floor) for operator, part in zip(operators, parts, strict=True)
    ]


def _predictor(
    spectrum: Spectrum, grid: torch.Tensor, chosen: torch.Tensor, dtype: torch.dtype
) -> Callable[[Block], torch.Tensor]:
    """Return the function from a block to predictions of test rows, without the mean.

    With few test rows, one map per penalty takes fewer operations than the eigenbasis, which is
    as wide as there are training rows.
    """
    assert spectrum.test_basis is not None
    n_train, width = spectrum.train_basis.shape
    n_test, n_targets = len(spectrum.test_basis), len(chosen)
    used = chosen.unique()
    saved = n_targets * (n_train * width + width * n_test - n_train * n_test)
    small = len(used) * n_train * n_test * 4 <= OPERATOR_BYTES
    if not small or saved < 16 * n_train * width * n_test:
        test_basis = spectrum.test_basis.T.to(dtype)
        return lambda block: (
            filtered(spectrum, block.values, grid[chosen[block.columns]]) @ test_basis
        )
    maps = held_out(spectrum, grid[used], "r2", dtype, compose=True).maps()
    place = torch.searchsorted(used, chosen)

    def by_penalty(block: Block) -> torch.Tensor:
        predicted = block.values.new_empty(len(block.values), n_test)
        mine = place[block.columns]
        for alpha in mine.unique().tolist():
            targets = (mine == alpha).nonzero()[:, 0]
            predicted[targets] = block.values.index_select(0, targets) @ maps[alpha]
        return predicted

    return by_penalty


def _index(rows: Any, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(np.asarray(rows), dtype=torch.long, device=device)


def _part(groups: Any, rows: Any) -> Any:
    return None if groups is None else np.asarray(groups)[rows]
