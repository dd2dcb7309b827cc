"""What linear regressions share: fit to weights of features, predict, delays and runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from neurodl.errors import listed
from neurodl.models._base import PenaltyCV, weights_at
from neurodl.models._design import Design, Runs, Scaling, fit_scaling
from neurodl.models._input import as_tensor, check_features_input, check_fit_input, check_lengths
from neurodl.models._spaces import LinearSpace
from neurodl.models._targets import Targets
from neurodl.runtime import resolve_device

CENTRES = ("all", "runs")
# The axis of targets of what a fit keeps, where targets do not depend on each other.
TARGET_AXES = {"_weights": 1, "_intercept": 0, "intercept_": 0, "alpha_": 0, "cv_score_": 0}


class LinearCV(PenaltyCV):
    """Base of regressions that are linear in their features.

    A subclass also has the parameters standardize, sd_floor, delays and centre of `RidgeCV`, and
    says in `_keep_chosen` what is kept of its choice.
    """

    standardize: bool
    sd_floor: float
    delays: Sequence[int] | None
    centre: str
    alpha_: Any
    cv_score_: Any

    def fit(self, X: Any, y: Any, groups: Any = None, runs: Any = None) -> Self:
        """Choose by inner folds, and fit the weights.

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
        self

        Raises
        ------
        ValueError
            Values are not finite, lengths differ, or a parameter is out of range.
        """
        X, y = check_fit_input(self, X, y)
        check_lengths(X, y, groups=groups, runs=runs)
        self._check_parameters()
        device = resolve_device(self.device)
        groups = self._inner_groups(groups, runs)
        at_once = self._targets_at_once(X, y, [(range(len(X)), [])], groups, device)
        features = as_tensor(X, device)
        own = torch.arange(len(features), device=device)
        space = self._space(features, own, runs, None)
        centred_by = self._centring_runs(runs, own.cpu(), [])
        targets = Targets(y, features, None, self.nan_targets, centred_by, at_once)
        grid = self._grid(space, own)
        fold = self._fold(space, own, None, targets, grid, groups)
        chosen, scores = self._choose(fold, targets, grid, groups)
        self._fit_weights(space, fold, targets, grid[chosen])
        self.cv_score_ = scores.cpu().numpy()
        self.cv_score_[targets.excluded] = np.nan
        self.n_excluded_ = int(targets.excluded.sum())
        n_at_edge = self._warn_of_edges(chosen, grid)
        self._keep_chosen(fold, targets, grid[chosen], n_at_edge)
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
        features = as_tensor(X, self._intercept.device).to(self._intercept.dtype)
        result = self._predicted(features, runs).cpu().numpy()
        return result[:, 0] if self._single_target else result

    def _predicted(self, features: torch.Tensor, runs: Any) -> torch.Tensor:
        """Return predictions, shape (n_samples, n_targets)."""
        design = self._design(features, self._scaling, runs)
        if self._train_design is not None:
            kernel = design.kernel_with(self._train_design)
            return kernel.to(features.dtype) @ self._weights + self._intercept
        everyone = torch.arange(len(features), device=features.device)
        parts = [rows.to(features.dtype) @ self._weights for _, rows in design.blocks(everyone)]
        return torch.cat(parts) + self._intercept

    def _at_zero(self, n_features: int) -> np.ndarray:
        """Return the prediction, (n_targets,), where all features are and have been 0."""
        n_rows = 1 + max(self.delays or [0])
        zeros = self._intercept.new_zeros(n_rows, n_features)
        return self._predicted(zeros, np.zeros(n_rows))[-1].cpu().numpy()

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
        self, space: LinearSpace, fold: Any, targets: Targets, settings: torch.Tensor
    ) -> None:
        """Keep the weights of features, or of the training rows where these are fewer."""
        own = torch.arange(targets.n_samples, device=targets.device)
        basis, centre = space.weight_basis(fold, own)
        self._weights, self._intercept = weights_at(fold, targets, settings, basis, centre)
        self._scaling = space.design.scaling
        self._train_design = None if len(basis) == space.design.n_features else space.design
        self.n_floored_ = self._scaling.n_floored
        self.intercept_ = self._at_zero(space.design.features.shape[1])

    def _keep_chosen(
        self, fold: Any, targets: Targets, values: torch.Tensor, n_at_edge: int
    ) -> None:
        """Keep what each target chose (n_targets,), and how many chose an edge of the grid."""
        self.alpha_ = values.cpu().numpy()
        self.alpha_[targets.excluded] = np.nan
        self.n_alphas_at_edge_ = n_at_edge

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
