"""RidgeCV: ridge regression of many targets, with the penalty chosen per target inside the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from neurodl.errors import listed
from neurodl.models._base import (
    PenaltyCV,
    as_tensor,
    check_features_input,
    check_fit_input,
    weights_at,
)
from neurodl.models._design import Design, Runs, Scaling, fit_scaling
from neurodl.models._folds import Fold
from neurodl.models._spaces import LinearSpace
from neurodl.models._targets import Targets
from neurodl.runtime import resolve_device

CENTRES = ("all", "runs")


class RidgeCV(PenaltyCV):
    """Ridge regression with an intercept and one penalty per target, chosen by inner folds.

    Exact: one eigendecomposition of each inner training set serves all penalties and all
    targets. It works on the kernel of the samples or on the covariance of the features, whichever
    takes less time.

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
    delays : sequence of int, optional
        For time series, a finite impulse response: every feature enters once for each delay
        [samples], within `runs`; before the start of a run it has its mean. The delayed features
        are never held in memory.
    centre : {"all", "runs"}
        Whether means over all training rows are taken off features and targets, or those of each
        run; then predictions are about the mean of their run, and runs must not be cut by folds.
    nan_targets : {"error", "exclude"}
        Whether targets with missing values are an error, or get no prediction (NaN).
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
    n_excluded_ : int
        Targets that were left out for missing values.

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
        delays: Sequence[int] | None = None,
        centre: str = "all",
        nan_targets: str = "error",
        screening: bool = True,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        self.alphas = alphas
        self.cv = cv
        self.scoring = scoring
        self.standardize = standardize
        self.sd_floor = sd_floor
        self.delays = delays
        self.centre = centre
        self.nan_targets = nan_targets
        self.screening = screening
        self.device = device
        self.seed = seed

    def fit(self, X: Any, y: Any, groups: Any = None, runs: Any = None) -> RidgeCV:
        """Choose the penalties and fit the weights.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
            Of numpy, torch (any device) or xarray.
        y : array-like, shape (n_samples,) or (n_samples, n_targets)
            The same, or a memory map or zarr array; read in blocks of targets.
        groups : array-like, shape (n_samples,), optional
            Rows of one group (a run, say) stay on one side of every inner split.
        runs : array-like, shape (n_samples,), optional
            The run of each row, for `delays` and `centre`; the rows of a run stand together, in
            the order of time.

        Returns
        -------
        RidgeCV
            self.

        Raises
        ------
        ValueError
            Values are not finite, lengths differ, or a parameter is out of range.
        """
        X, y = check_fit_input(self, X, y)
        self._check_parameters()
        device = resolve_device(self.device)
        features = as_tensor(X, device)
        own = torch.arange(len(features), device=device)
        space = self._space(features, own, runs, None)
        centred_by = self._centring_runs(runs, own.cpu(), [])
        targets = Targets(y, features, None, self.nan_targets, centred_by)
        grid = self._grid(space.mean_eigenvalue(own), device)
        fold = space.fold(own, None, float(grid[0]), targets.n_targets)
        chosen, scores = self._choose(fold, targets, grid, self._inner_groups(groups, runs))
        self._fit_weights(space, fold, targets, grid[chosen])
        self.alpha_ = grid[chosen].cpu().numpy()
        self.cv_score_ = scores.cpu().numpy()
        self.alpha_[targets.excluded] = self.cv_score_[targets.excluded] = np.nan
        self.n_excluded_ = int(targets.excluded.sum())
        self.n_alphas_at_edge_ = self._warn_of_edges(chosen, grid)
        return self

    def predict(self, X: Any, runs: Any = None) -> np.ndarray:
        """Return predictions, shape (n_samples,) or (n_samples, n_targets).

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
        runs : array-like, shape (n_samples,), optional
            See `fit`.
        """
        check_is_fitted(self)
        X = check_features_input(self, X, reset=False)
        features = as_tensor(X, self._weights.device).to(self._weights.dtype)
        design = self._design(features, self._scaling, runs)
        if self._train_design is not None:
            kernel = design.kernel_with(self._train_design)
            predicted = kernel.to(features.dtype) @ self._weights
        else:
            everyone = torch.arange(len(features), device=features.device)
            predicted = torch.cat(
                [rows.to(features.dtype) @ self._weights for _, rows in design.blocks(everyone)]
            )
        result = (predicted + self._intercept).cpu().numpy()
        return result[:, 0] if self._single_target else result

    @property
    def coef_(self) -> np.ndarray:
        """The weights on the unscaled features, shape ([n_targets,] n_delays * n_features)."""
        weights = self._weights
        if self._train_design is not None:
            weights = self._train_design.combine(weights)
        n_delays = len(weights) // len(self._scaling.scale)
        coef = (weights / self._scaling.scale.repeat(n_delays)[:, None]).T.cpu().numpy()
        return coef[0] if self._single_target else coef

    def _fit_weights(
        self, space: LinearSpace, fold: Fold, targets: Targets, penalties: torch.Tensor
    ) -> None:
        """Keep the weights of features, or of the training rows where these are fewer."""
        own = torch.arange(targets.n_samples, device=targets.device)
        basis, centre = space.weight_basis(fold, own)
        self._weights, self._intercept = weights_at(fold, targets, penalties, basis, centre)
        self._scaling = space.design.scaling
        self._train_design = None if len(basis) == space.design.n_features else space.design
        self.n_floored_ = self._scaling.n_floored
        self.intercept_ = self._intercept.cpu().numpy()

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if not 0 < self.sd_floor <= 1:
            raise ValueError(f"`sd_floor` must lie in (0, 1], but got {self.sd_floor}.")
        if self.centre not in CENTRES:
            raise ValueError(f"`centre` must be one of {CENTRES}, but got {self.centre!r}.")
        if self.delays is not None:
            whole = [delay == int(delay) >= 0 for delay in self.delays]
            if not whole or not all(whole) or len(set(self.delays)) < len(whole):
                raise ValueError(
                    "`delays` must be different whole numbers of samples, such as [1, 2, 3, 4], "
                    f"but got {self.delays!r}."
                )

    def _space(
        self, features: torch.Tensor, own: torch.Tensor, runs: Any, last: Any
    ) -> LinearSpace:
        """Return the feature space of all rows, scaled by the training rows `own`."""
        scaling = fit_scaling(features, own, standardize=self.standardize, sd_floor=self.sd_floor)
        # without scaling, one kernel serves all folds: each centres it on its own rows
        kernel = None if last is None or self.standardize else last.kernel
        return LinearSpace(self._design(features, scaling, runs), kernel)

    def _design(self, features: torch.Tensor, scaling: Scaling, runs: Any) -> Design:
        """Return the features as the model sees them."""
        by_run = self.centre == "runs"
        if by_run and runs is None:
            raise ValueError("centre='runs' needs `runs`, the run of each row.")
        if not by_run and self.delays is None:
            return Design(features, scaling)
        stretches = Runs(runs, len(features), features.device)
        return Design(features, scaling, self.delays, stretches, centre_runs=by_run)

    def _inner_groups(self, groups: Any, runs: Any) -> Any:
        """Return what inner folds keep whole: the runs, where rows depend on their neighbours."""
        follows = self.delays is not None or self.centre == "runs"
        return runs if groups is None and follows else groups

    def _centring_runs(self, runs: Any, train: Any, test: Any) -> Any:
        """Return the runs of the training rows, if each run has a mean of its own."""
        if self.centre != "runs":
            return None
        runs = np.asarray(runs)
        cut = np.intersect1d(runs[train], runs[test])
        if len(cut):
            raise ValueError(
                f"centre='runs' needs runs that are not cut by folds, but rows of {len(cut)} runs "
                f"({listed(cut)}) are on both sides. Give groups='run'."
            )
        return runs[train]
