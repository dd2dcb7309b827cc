"""FractionalRidgeCV: ridge regression whose penalty is said by how far it shrinks the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from neurodl.models._linear import TARGET_AXES, LinearCV
from neurodl.models._targets import Targets
from neurodl.models._targetwise import TargetwiseFold, chunks

GRID_STEP = 0.05  # of the logarithms of penalties between which norms are interpolated
N_NEWTON = 3


def penalties_of_fractions(
    eigenvalues: torch.Tensor, inside: torch.Tensor, fractions: torch.Tensor
) -> torch.Tensor:
    """Return the penalty at which the norm of each target's weights is a fraction of its largest.

    In the eigenbasis, the squared norm of ridge weights is ``sum(e t^2 / (e + alpha)^2)``. It
    falls with the penalty: a table of logarithms of the norm and of their slopes brackets the
    root, and the cubic through both gives it to about 1e-8 of itself.

    Parameters
    ----------
    eigenvalues : torch.Tensor, shape (rank,), float64
        Of the kernel, none zero.
    inside : torch.Tensor, shape (n_targets, rank), float64
        The targets in the eigenbasis.
    fractions : torch.Tensor, shape (1 or n_targets, n_fractions), float64
        In (0, 1], of the norm without penalty.

    Returns
    -------
    torch.Tensor, shape (n_targets, n_fractions)
        A target without variance has penalty 0.

    References
    ----------
    Rokem & Kay (2020), Fractional ridge regression, GigaScience 9.
    """
    fractions = fractions.expand(len(inside), -1)
    power = inside.square()
    full = (power / eigenvalues).sum(1)
    shrunk = (fractions < 1) & (full > 0)[:, None]
    if not shrunk.any():
        return torch.zeros_like(fractions)
    power = power / full.where(full > 0, 1.0)[:, None]
    table = _log_penalties(eigenvalues, fractions[shrunk])
    level, rise = _log_norms(eigenvalues, power, table)
    wanted = 2 * fractions.log()
    right = torch.searchsorted(-level, -wanted).clamp(1, len(table) - 1)
    ends = [values.gather(1, place) for values in (level, rise) for place in (right - 1, right)]
    root = table[right - 1] + GRID_STEP * _cubic_root(wanted, *ends)
    return torch.where(shrunk, root.exp(), 0.0)


def _log_penalties(eigenvalues: torch.Tensor, fractions: torch.Tensor) -> torch.Tensor:
    """Return log penalties around all roots, (n_table,).

    Each component alone would be shrunk to a fraction f by the penalty ``e (1 / f - 1)``: the
    roots lie between those of the smallest and of the largest eigenvalue.
    """
    odds = 1 / fractions - 1
    low = float((eigenvalues.amin() * odds.amin()).log())
    high = float((eigenvalues.amax() * odds.amax()).log())
    steps = torch.arange(-1, 3 + int((high - low) / GRID_STEP), device=eigenvalues.device)
    return low + GRID_STEP * steps.to(eigenvalues.dtype)


def _log_norms(
    eigenvalues: torch.Tensor, power: torch.Tensor, table: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log squared norms, and their slope times the step, (n_targets, n_table) each."""
    alpha = table.exp()[:, None]
    filters = eigenvalues / (eigenvalues + alpha).square()
    norm = power @ filters.T
    slope = power @ (filters * (-2 * alpha / (eigenvalues + alpha))).T
    return norm.log(), GRID_STEP * slope / norm


def _cubic_root(
    wanted: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
    rise_first: torch.Tensor,
    rise_last: torch.Tensor,
) -> torch.Tensor:
    """Return where in [0, 1] a cubic with given values and slopes at both ends is as wanted."""
    chord = last - first
    square, cube = 3 * chord - 2 * rise_first - rise_last, rise_first + rise_last - 2 * chord
    place = (wanted - first) / chord
    for _ in range(N_NEWTON):  # the cubic is nearly a line
        value = first + place * (rise_first + place * (square + place * cube))
        slope = rise_first + place * (2 * square + 3 * place * cube)
        place = place - (value - wanted) / slope
    return place


def fractional_coefficients(
    eigenvalues: torch.Tensor, inside: torch.Tensor, fractions: torch.Tensor
) -> torch.Tensor:
    """Return coefficients (n_targets, n_fractions, rank); see `penalties_of_fractions`."""
    alpha = penalties_of_fractions(eigenvalues, inside, fractions)
    return inside[:, None] / (eigenvalues + alpha[:, :, None])


class FractionalRidgeCV(LinearCV):
    """Ridge regression with an intercept and one fraction per target, chosen by inner folds.

    A fraction says how long the weights of a target are, as a share of those of the least squares
    solution (with more features than rows, the shortest one). Unlike a penalty, it means the same
    for every target and set of features, so no grid needs widening. In every training set, each
    target gets the penalty that gives it each fraction.

    Parameters
    ----------
    fractions : "auto" or array-like of float
        The fractions to choose from, in (0, 1]. "auto" is 0.1 to 1 in steps of 0.05.
    cv, scoring, standardize, sd_floor, delays, centre, nan_targets, device, seed
        See `RidgeCV`. Norms are those of the weights of scaled features. Directions in which the
        features' variance is less than 1e-12 of the largest have no weights.

    Attributes
    ----------
    fraction_ : numpy.ndarray, shape (n_targets,)
        The chosen fraction; `cross_validate` reports it as ``alpha``.
    alpha_ : numpy.ndarray, shape (n_targets,)
        The penalty that goes with it, in units of the scaled features.
    cv_score_, intercept_, n_floored_, n_excluded_
        See `RidgeCV`.

    References
    ----------
    Rokem & Kay (2020), Fractional ridge regression: a fast, interpretable reparameterization of
    ridge regression, GigaScience 9.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((60, 5)); Y = X @ rng.standard_normal((5, 3))
    >>> FractionalRidgeCV(device="cpu").fit(X, Y).fraction_
    array([1., 1., 1.])
    """

    screening = False
    _simplest = 0
    _target_axes = {**TARGET_AXES, "fraction_": 0}

    def __init__(
        self,
        fractions: Any = "auto",
        *,
        cv: Any = 5,
        scoring: str = "r2",
        standardize: bool = True,
        sd_floor: float = 0.1,
        delays: Sequence[int] | None = None,
        centre: str = "all",
        nan_targets: str = "error",
        device: Any = "auto",
        seed: int = 0,
    ) -> None:
        self.fractions = fractions
        self.cv = cv
        self.scoring = scoring
        self.standardize = standardize
        self.sd_floor = sd_floor
        self.delays = delays
        self.centre = centre
        self.nan_targets = nan_targets
        self.device = device
        self.seed = seed

    def _check_grid(self) -> None:
        if isinstance(self.fractions, str):
            if self.fractions != "auto":
                raise ValueError(
                    f"`fractions` must be 'auto' or numbers, but got {self.fractions!r}."
                )
            return
        values = np.atleast_1d(np.asarray(self.fractions, float))
        if values.ndim != 1 or not len(values) or not ((values > 0) & (values <= 1)).all():
            raise ValueError(f"`fractions` must lie in (0, 1], but got {self.fractions}.")

    def _grid(self, space: Any, own: torch.Tensor) -> torch.Tensor:
        """Return the fractions, ascending, float64."""
        auto = isinstance(self.fractions, str)
        values = np.arange(2, 21) / 20 if auto else np.unique(np.asarray(self.fractions, float))
        return torch.as_tensor(values, dtype=torch.float64, device=own.device)

    def _fold(
        self,
        space: Any,
        own: torch.Tensor,
        held: torch.Tensor | None,
        targets: Targets,
        grid: torch.Tensor,
        groups: Any,
    ) -> TargetwiseFold:
        """Return the training rows, with coefficients for each fraction."""
        plain = space.fold(own, held, 0.0, targets.n_targets)
        return TargetwiseFold(plain, fractional_coefficients, len(grid))

    def _warn_of_edges(self, chosen: torch.Tensor, grid: torch.Tensor) -> int:
        """Count nothing: a fraction has no other side of its edges."""
        return 0

    def _keep_chosen(
        self, fold: TargetwiseFold, targets: Targets, values: torch.Tensor, n_at_edge: int
    ) -> None:
        """Keep the fractions, and the penalties that give them."""
        eigenvalues = fold.spectrum.eigenvalues
        alpha = torch.empty_like(values)
        for block, inside in targets.map(lambda block: fold.inside(fold.view(block))):
            own, wanted = alpha[block.columns], values[block.columns, None]
            for some in chunks(inside, 1):
                own[some] = penalties_of_fractions(eigenvalues, inside[some], wanted[some])[:, 0]
        self.fraction_, self.alpha_ = values.cpu().numpy(), alpha.cpu().numpy()
        self.fraction_[targets.excluded] = self.alpha_[targets.excluded] = np.nan
