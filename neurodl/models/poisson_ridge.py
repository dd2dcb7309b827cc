"""PoissonRidgeCV: log-linear Poisson regression of many units, penalties chosen unit by unit."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from neurodl.errors import NeurodlWarning
from neurodl.metrics import poisson_deviance
from neurodl.models import _poisson
from neurodl.models._design import Scaling, fit_scaling
from neurodl.models._input import (
    as_index,
    as_tensor,
    check_features_input,
    check_fit_input,
    check_lengths,
)
from neurodl.models._poisson import LARGEST, Basis, Solution, make_basis, solve, start_at_mean
from neurodl.models._splits import inner_splits
from neurodl.runtime import available_memory, resolve_device

N_AUTO = 13  # penalties of alphas="auto"
DECADES = (-4, 2)  # around the curvature of the loss
TOL_OF_CHOICE = 1e-6
HOPELESS = -1.0  # explained share of the deviance: twice as far off as a constant rate
COPIES = 8  # of a block of targets, that a step holds
BLOCK_BYTES = {"cpu": 2**25, "cuda": 2**30}


class PoissonRidgeCV(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Poisson regression with a log link, an L2 penalty per unit, and an intercept.

    The rate of a unit is exp(intercept + X @ coef). It minimises the mean of rate - counts * log
    rate, plus alpha / 2 times the squared norm of the weights: the objective, and the meaning of
    alpha, of scikit-learn's ``PoissonRegressor``; but all units are solved for together, and each
    has the penalty that predicts its held-out counts best.

    Parameters
    ----------
    alphas : "auto" or array-like of float
        The penalties to choose from. "auto" spreads 13 of them over six decades around the
        curvature of each unit's loss: its mean count times the mean eigenvalue of the features'
        covariance.
    cv : int or scikit-learn splitter
        The inner folds. An int shuffles with `seed`; with `groups` it keeps groups whole.
    standardize : bool
    sd_floor : float
        See `RidgeCV`.
    tol : float
        How much of the loss a unit may still have to gain when its fit ends.
    device : {"auto", "cpu", "cuda", "mps"}
    seed : int
        Shuffles the inner folds.

    Attributes
    ----------
    coef_ : numpy.ndarray, shape ([n_targets,] n_features)
        On the unscaled features.
    intercept_ : numpy.ndarray, shape (n_targets,)
        The log rate where all features are 0; minus infinity for units without spikes.
    alpha_ : numpy.ndarray, shape (n_targets,)
    cv_score_ : numpy.ndarray, shape (n_targets,)
        The share of the deviance from a constant rate that is explained in the inner folds; NaN
        with one penalty only.
    n_silent_ : int
        Units without spikes, whose rate is 0.

    References
    ----------
    McCullagh & Nelder (1989), Generalized Linear Models.
    Paninski (2004), Maximum likelihood estimation of cascade point-process neural encoding models,
    Network 15; Pillow et al. (2008), Nature 454.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((400, 3))
    >>> counts = rng.poisson(np.exp(X @ [[0.5], [-0.5], [0.0]] - 0.5))
    >>> PoissonRidgeCV(device="cpu").fit(X, counts).coef_[0, :2].round(1)
    array([ 0.5, -0.5])
    """

    predicts = "rate"

    def __init__(
        self,
        alphas: Any = "auto",
        *,
        cv: Any = 5,
        standardize: bool = True,
        sd_floor: float = 0.1,
        tol: float = 1e-10,
        device: Any = "auto",
        seed: int = 0,
    ) -> None:
        self.alphas = alphas
        self.cv = cv
        self.standardize = standardize
        self.sd_floor = sd_floor
        self.tol = tol
        self.device = device
        self.seed = seed

    def fit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Choose by inner folds, and fit the weights.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
        y : array-like, shape (n_samples,) or (n_samples, n_targets)
            Counts, or rates: not below 0.
        groups : array-like, shape (n_samples,), optional
            Rows of one group (a run, say) stay on one side of every inner split.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            Counts are negative or not finite, lengths differ, or a parameter is out of range.
        """
        X, y = check_fit_input(self, X, y)
        check_lengths(X, y, groups=groups)
        self._check_parameters()
        device = resolve_device(self.device)
        features = as_tensor(X, device)
        counts = as_tensor(y, device).to(features.dtype)
        _check_counts(counts)
        own = torch.arange(len(features), device=device)
        scaling = fit_scaling(features, own, standardize=self.standardize, sd_floor=self.sd_floor)
        basis = make_basis(features, scaling)
        rough = Basis(*(one.to(features.dtype) for one in basis))  # good enough to choose with
        fires = counts.sum(0) > 0
        self.n_silent_ = int((~fires).sum())
        alphas = self._grid(rough, counts)
        n_targets = counts.shape[1]
        chosen = torch.zeros(n_targets, dtype=torch.long, device=device)
        score = torch.full((n_targets,), torch.nan, dtype=features.dtype, device=device)
        weights = basis.scores.new_zeros(len(basis.variances), n_targets)
        intercepts = weights.new_full((n_targets,), -torch.inf)
        splits = []
        if len(alphas) > 1:
            splits = inner_splits(self.cv, len(features), groups, self.seed)
        n_unfinished = 0
        for some in self._blocks(fires, len(features), features.element_size()):
            mine = alphas[:, some]
            if splits:
                chosen[some], score[some] = _choose(rough, counts[:, some], mine, splits)
            solution = self._solve(basis, counts[:, some], mine.gather(0, chosen[None, some])[0])
            weights[:, some], intercepts[some] = solution.weights, solution.intercepts
            n_unfinished += int((~solution.converged).sum())
        self._learn(scaling, (basis.turn @ weights).to(features), intercepts.to(features))
        self.alpha_ = alphas.gather(0, chosen[None])[0].cpu().numpy()
        self.alpha_[~fires.cpu().numpy()] = np.nan
        self.cv_score_ = score.cpu().numpy()
        self._warn(chosen[fires], alphas, n_unfinished)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return rates, the expected counts, shape (n_samples,) or (n_samples, n_targets).

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
        """
        check_is_fitted(self)
        X = check_features_input(self, X, reset=False)
        features = as_tensor(X, self._intercept.device).to(self._intercept.dtype)
        log_rate = ((features - self._scaling.offset) / self._scaling.scale) @ self._weights
        rate = (log_rate + self._intercept).clamp(max=LARGEST).exp().cpu().numpy()
        return rate[:, 0] if self._single_target else rate

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn is told of the model."""
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        return tags

    @property
    def coef_(self) -> np.ndarray:
        """The weights on the unscaled features, shape ([n_targets,] n_features)."""
        coef = (self._weights / self._scaling.scale[:, None]).T.cpu().numpy()
        return coef[0] if self._single_target else coef

    def _learn(self, scaling: Scaling, weights: torch.Tensor, intercepts: torch.Tensor) -> None:
        self._scaling, self._weights, self._intercept = scaling, weights, intercepts
        self.n_floored_ = scaling.n_floored
        at_zero = intercepts - (scaling.offset / scaling.scale) @ weights
        self.intercept_ = at_zero.cpu().numpy()

    def _check_parameters(self) -> None:
        if isinstance(self.alphas, str):
            if self.alphas != "auto":
                raise ValueError(f"`alphas` must be 'auto' or numbers, but got {self.alphas!r}.")
        else:
            alphas = np.atleast_1d(np.asarray(self.alphas, float))
            fine = alphas.ndim == 1 and len(alphas) and (np.isfinite(alphas) & (alphas >= 0)).all()
            if not fine:
                raise ValueError(f"`alphas` must be finite and >= 0, but got {self.alphas}.")
        if not 0 < self.sd_floor <= 1:
            raise ValueError(f"`sd_floor` must lie in (0, 1], but got {self.sd_floor}.")
        if not self.tol > 0:
            raise ValueError(f"`tol` must be > 0, but got {self.tol}.")

    def _grid(self, basis: Basis, counts: torch.Tensor) -> torch.Tensor:
        """Return the penalties of each target, ascending, (n_alphas, n_targets)."""
        n_targets = counts.shape[1]
        if isinstance(self.alphas, str):
            factors = torch.logspace(*DECADES, N_AUTO, dtype=counts.dtype, device=counts.device)
            spread = basis.variances.mean() if len(basis.variances) else 1.0
            return factors[:, None] * (counts.mean(0) * spread)
        alphas = np.unique(np.asarray(self.alphas, float))
        grid = torch.as_tensor(alphas, dtype=counts.dtype, device=counts.device)
        return grid[:, None].expand(-1, n_targets)

    def _blocks(self, fires: torch.Tensor, n_samples: int, itemsize: int) -> list[torch.Tensor]:
        """Return the targets that fire, as many at once as memory and caches hold."""
        kind = "cuda" if fires.device.type == "cuda" else "cpu"
        most = min(BLOCK_BYTES[kind], available_memory(fires.device) // (2 * COPIES))
        return list(fires.nonzero()[:, 0].split(max(1, int(most // (n_samples * itemsize)))))

    def _solve(self, basis: Basis, counts: torch.Tensor, alphas: torch.Tensor) -> Solution:
        """Return the fit to all rows."""
        counts, alphas = counts.to(basis.scores), alphas.to(basis.scores)
        return solve(basis, counts, alphas, start_at_mean(basis, counts), self.tol)

    def _warn(self, chosen: torch.Tensor, alphas: torch.Tensor, n_unfinished: int) -> None:
        """Say which fits have no end, and where a given grid was too short."""
        if n_unfinished:
            warnings.warn(
                f"The fits of {n_unfinished} of {len(chosen)} units did not come to their end in "
                f"{_poisson.MAX_STEPS} steps. Use larger `alphas`, or a larger `tol`.",
                NeurodlWarning,
                stacklevel=3,
            )
        if isinstance(self.alphas, str) or len(alphas) == 1:
            return
        n_low, n_high = (int((chosen == edge).sum()) for edge in (0, len(alphas) - 1))
        if n_low + n_high:
            low, high = float(alphas[0, 0]), float(alphas[-1, 0])
            warnings.warn(
                f"{n_low + n_high} of {len(chosen)} targets chose an edge of `alphas`: {n_low} the "
                f"smallest ({low:g}), {n_high} the largest ({high:g}). Widen the grid, or use "
                "alphas='auto'.",
                NeurodlWarning,
                stacklevel=3,
            )


def _check_counts(counts: torch.Tensor) -> None:
    """Raise unless all counts are finite and not negative."""
    bad = ~(counts.isfinite() & (counts >= 0)).all(0)
    if bad.any():
        first = int(bad.nonzero()[0, 0])
        negative = int((counts < 0).any(0).sum())
        raise ValueError(
            f"Input y contains NaN, infinity or negative values in {int(bad.sum())} targets, such "
            f"as target {first}; {negative} are negative. Poisson regression is of counts or "
            "rates: leave these targets out, or use RidgeCV."
        )


def _choose(
    basis: Basis,
    counts: torch.Tensor,
    alphas: torch.Tensor,
    splits: list[tuple[np.ndarray, np.ndarray]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the index of the best penalty of each target, and its mean inner score.

    The score is the explained share of the deviance from the training rows' mean rate. Where a
    penalty makes it less than `HOPELESS`, smaller ones are not tried.
    """
    scores = counts.new_zeros(alphas.shape)
    known = counts.new_zeros(counts.shape[1])
    for train, test in splits:
        own, held = (as_index(rows, counts.device) for rows in (train, test))
        part = Basis(basis.scores[own], basis.variances, basis.turn)
        seen, unseen = counts[own], counts[held]
        null = seen.mean(0)
        total = poisson_deviance(null.expand_as(unseen), unseen)
        usable = (null > 0) & (total > 0)
        known += usable
        solution = start_at_mean(basis, seen)
        alive = usable.nonzero()[:, 0]
        solution = solution.some(alive)
        for index in reversed(range(len(alphas))):  # from stiff to free, each from the last
            solution = solve(part, seen[:, alive], alphas[index, alive], solution, TOL_OF_CHOICE)
            rate = solution.log_rate(basis.scores[held]).exp()
            explained = 1 - poisson_deviance(rate, unseen[:, alive]) / total[alive]
            scores[index, alive] += explained
            bearable = explained > HOPELESS
            scores[:index, alive[~bearable]] = -torch.inf
            alive, solution = alive[bearable], solution.some(bearable)
            if not len(alive):
                break
    mean = scores / known.clamp(min=1)
    best = mean.max(0)
    # Of equal scores the largest penalty, so that a target without any is a constant rate.
    chosen = len(alphas) - 1 - (mean == best.values).flip(0).to(torch.uint8).argmax(0)
    return chosen, torch.where(known > 0, best.values, torch.nan)
