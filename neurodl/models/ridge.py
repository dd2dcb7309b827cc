"""RidgeCV: ridge regression of many targets, with the penalty chosen per target inside the data."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.model_selection import GroupKFold, KFold, check_cv
from sklearn.utils.validation import check_is_fitted, validate_data

from neurodl.errors import NeurodlWarning
from neurodl.models._solvers import (
    SCORERS,
    Spectrum,
    best_alpha,
    coefficients,
    cv_scores,
    dual_spectrum,
    gram,
    primal_spectrum,
    with_primal_weights,
)
from neurodl.runtime import resolve_device

N_TARGETS_BATCH = 2048
# Up to this many features per sample, weights of features are kept: they are more exact than
# weights of samples, and still no larger than a few times the targets.
MAX_FEATURES_PER_SAMPLE = 4


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
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        self.alphas = alphas
        self.cv = cv
        self.scoring = scoring
        self.standardize = standardize
        self.sd_floor = sd_floor
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
        rows = torch.as_tensor(np.require(X, requirements="W"), device=device)
        self.X_offset_, self.X_scale_ = self._scaling(rows)
        rows = (rows - self.X_offset_) / self.X_scale_
        targets = np.require(y, X.dtype, requirements="W").reshape(len(X), -1)
        targets = torch.as_tensor(targets, device=device)
        self._single_target = np.ndim(y) == 1
        grid = self._grid(rows)
        splits = self._splits(X, groups) if len(grid) > 1 else []
        spectrum_of = self._spectra(rows)
        inner = [
            (train, test, spectrum_of(train, test))
            for train, test in ((_index(a, device), _index(b, device)) for a, b in splits)
        ]
        whole = spectrum_of(torch.arange(len(rows), device=device), None)
        self._is_dual = rows.shape[1] > MAX_FEATURES_PER_SAMPLE * len(rows)
        if len(rows) <= rows.shape[1] and not self._is_dual:
            whole = with_primal_weights(whole, rows)
        chosen, scores, weights = [], [], []
        for part in targets.split(N_TARGETS_BATCH, dim=1):
            index, score = self._choose(inner, part, grid)
            chosen.append(index)
            scores.append(score)
            weights.append(coefficients(whole, part - part.mean(0), grid[index]))
        self._keep(rows, targets, torch.cat(weights, 1), grid, torch.cat(chosen), torch.cat(scores))
        return self

    def _check_parameters(self) -> None:
        if self.scoring not in SCORERS:
            raise ValueError(f"`scoring` must be one of {list(SCORERS)}, but got {self.scoring!r}.")
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

    def _scaling(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the offset and scale of each feature over the training rows."""
        offset = rows.mean(0)
        sd = (rows - offset).square().mean(0).sqrt()
        floor = self.sd_floor * sd.square().mean().sqrt()
        self.n_floored_ = int((sd < floor).sum()) if self.standardize else 0
        if not self.standardize or floor == 0:
            return offset, torch.ones_like(sd)
        return offset, sd.clamp_min(floor)

    def _grid(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the penalties, ascending, float64."""
        if isinstance(self.alphas, str):
            mean_eigenvalue = float(rows.double().square().sum()) / min(rows.shape)
            alphas = (mean_eigenvalue or 1.0) * np.logspace(-4, 4, 17)
        else:
            alphas = np.unique(np.asarray(self.alphas, float))
        return torch.as_tensor(alphas, dtype=torch.float64, device=rows.device)

    def _splits(self, X: np.ndarray, groups: Any) -> list[tuple[np.ndarray, np.ndarray]]:
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
                cv = KFold(min(int(cv), len(X)), shuffle=True, random_state=self.seed)
        return list(check_cv(cv).split(X, None, groups))

    def _spectra(
        self, rows: torch.Tensor
    ) -> Callable[[torch.Tensor, torch.Tensor | None], Spectrum]:
        """Return the function from training and test rows to a spectrum, dual or primal."""
        if rows.shape[0] <= rows.shape[1]:
            kernel = gram(rows)
            return lambda train, test: dual_spectrum(kernel, train, test, rows.dtype)
        return lambda train, test: primal_spectrum(rows, train, test, rows.dtype)

    def _choose(
        self,
        inner: list[tuple[torch.Tensor, torch.Tensor, Spectrum]],
        targets: torch.Tensor,
        grid: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the index of the chosen penalty and its inner score for a batch of targets."""
        n_targets = targets.shape[1]
        if not inner:
            index = torch.zeros(n_targets, dtype=torch.long, device=targets.device)
            return index, torch.full((n_targets,), torch.nan, device=targets.device)
        scores = torch.stack(
            [
                cv_scores(spectrum, targets[train], targets[test], grid, self.scoring)
                for train, test, spectrum in inner
            ]
        )
        index = best_alpha(scores)
        return index, scores.nanmean(0).gather(0, index[None])[0]

    def _keep(
        self,
        rows: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        grid: torch.Tensor,
        chosen: torch.Tensor,
        scores: torch.Tensor,
    ) -> None:
        """Store what was learned; keep the training rows only where the solution is dual."""
        self._weights = weights
        self._dual_rows = rows if self._is_dual else None
        self._intercept = targets.mean(0)
        self.intercept_ = self._intercept.cpu().numpy()
        self.alpha_ = grid[chosen].cpu().numpy()
        self.cv_score_ = scores.cpu().numpy()
        at_edge = (chosen == 0) | (chosen == len(grid) - 1)
        self.n_alphas_at_edge_ = int(at_edge.sum()) if len(grid) > 1 else 0
        if self.n_alphas_at_edge_ and not isinstance(self.alphas, str):
            warnings.warn(
                f"{self.n_alphas_at_edge_} of {len(chosen)} targets chose the smallest or largest "
                f"of `alphas` ({grid[0]:g} to {grid[-1]:g}); widen the grid or use alphas='auto'.",
                NeurodlWarning,
                stacklevel=3,
            )

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


def _index(rows: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(rows, dtype=torch.long, device=device)
