"""BandedRidgeCV: ridge regression on several bands of features, a penalty per band and target."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from neurodl.models._band_rows import BandRows, Bands
from neurodl.models._band_search import SPREAD, BandSearch, Found
from neurodl.models._bands import Columns, band_columns
from neurodl.models._conjugate import references, solve_exactly
from neurodl.models._design import Design, Scaling, fit_scaling
from neurodl.models._input import as_tensor, check_fit_input, check_lengths
from neurodl.models._linear import TARGET_AXES, LinearCV
from neurodl.models._spaces import MAX_FEATURES_PER_SAMPLE
from neurodl.models._splits import inner_splits, n_inner
from neurodl.models._targets import Block, Targets
from neurodl.models.kernel_ridge import check_kernel
from neurodl.runtime import available_memory, resolve_device

KERNELS = ("linear", "precomputed")
# Of the residual of final solutions, as a share of the target.
TOLERANCE = {torch.float32: 1e-7, torch.float64: 1e-10}
MAX_TARGETS = 8192  # whose penalties are searched together
MEMORY_SHARE = 8
# Up to so many features per row, rows are replaced by as many pseudo-rows as there are features.
FEATURES_PER_ROW = 0.8


class FittedBand(NamedTuple):
    """How one band goes into predictions.

    columns : of X
    scaling : of these, or None for a kernel
    design : the training rows that weights are of; None where weights are of features
    places : of its weights among those of all bands
    """

    columns: Columns
    scaling: Scaling | None
    design: Design | None
    places: slice


class BandedRidgeCV(LinearCV):
    """Ridge regression with a penalty for each band of features and each target.

    Bands are feature spaces such as the layers of a network, or motion energy beside semantics.
    One penalty for all lets large bands outweigh small ones, and useless ones add noise; here the
    inner folds choose, target by target, how much each band is trusted. The search starts from one
    penalty for all bands, as `RidgeCV` chooses it. Then the penalties of all bands are varied
    together, each target on its own: random mixtures and single bands are tried, and the best is
    improved by its derivatives. Scores on the way come from a few directions of each band, those
    that decide from all features. At the penalties that are found the weights are exact.

    Which targets are searched together, and so how much memory is free, can change predictions by
    about 1e-3 of a target's deviation, and by more for the few targets that then find another
    optimum, with nearly the same inner score.

    Parameters
    ----------
    alphas : "auto" or array-like of float
        The penalties that all bands have in common to start with. "auto" is relative to the mean
        eigenvalue of each band, so that no band outweighs the others by its size.
    bands : mapping of str to int, array-like of labels with shape (n_features,), or None
        The number of features of each band, which stand side by side; or the band of each
        feature. None is a single band; `cross_validate` then makes a band of each layer.
    alphas_by_band : array-like, shape (n_bands,) or (n_bands, n_targets), optional
        Penalties to use as they are: nothing is searched.
    kernel : {"linear", "precomputed"}
        With "precomputed", X holds the kernels of all bands side by side, each of all rows with
        the training rows; they cannot be standardized or delayed.
    refine : int
        How many times the search is repeated along the solutions that it found. 0 is the fastest.
    cv, scoring, standardize, sd_floor, delays, centre, nan_targets, screening, device
        See `RidgeCV`. Deviations are floored within each band.
    seed : int
        Shuffles the inner folds, and draws the random mixtures.

    Attributes
    ----------
    bands_ : list of str
        The names of the bands.
    alpha_by_band_ : numpy.ndarray, shape (n_bands, n_targets)
        The penalty of each band, in units of the scaled features.
    alpha_ : numpy.ndarray, shape (n_targets,)
        The penalty of all bands together: one over the sum of one over each.
    cv_score_ : numpy.ndarray, shape (n_targets,)
        Mean inner score, to about 1e-4 (5e-4 at worst); NaN where nothing was searched, and of
        targets without any.
    coef_, intercept_, n_floored_, n_excluded_
        See `RidgeCV`.

    References
    ----------
    Nunez-Elizalde, Huth & Gallant (2019), Voxelwise encoding models with non-spherical
    multivariate normal priors, NeuroImage 197.
    Dupre la Tour et al. (2022), Feature-space selection with banded ridge regression, NeuroImage.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((80, 6)); Y = X[:, 4:] @ rng.standard_normal((2, 3))
    >>> model = BandedRidgeCV(bands={"layer1": 4, "layer2": 2}, device="cpu").fit(X, Y)
    >>> bool((model.alpha_by_band_[0] > 100 * model.alpha_by_band_[1]).all())
    True
    """

    _target_axes = {**TARGET_AXES, "alpha_by_band_": 1}

    def __init__(
        self,
        alphas: Any = "auto",
        *,
        bands: Any = None,
        alphas_by_band: Any = None,
        kernel: str = "linear",
        refine: int = 1,
        cv: Any = 5,
        scoring: str = "r2",
        standardize: bool = True,
        sd_floor: float = 0.1,
        delays: Sequence[int] | None = None,
        centre: str = "all",
        nan_targets: str = "error",
        screening: bool = True,
        device: Any = "auto",
        seed: int = 0,
    ) -> None:
        self.alphas = alphas
        self.bands = bands
        self.alphas_by_band = alphas_by_band
        self.kernel = kernel
        self.refine = refine
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

    def fit(self, X: Any, y: Any, groups: Any = None, runs: Any = None) -> BandedRidgeCV:
        """Choose the penalties and fit the weights; see `RidgeCV.fit`.

        With kernel="precomputed", X has shape (n_samples, n_bands * n_samples).
        """
        X, y = check_fit_input(self, X, y)
        check_lengths(X, y, groups=groups, runs=runs)
        self._check_parameters()
        features = as_tensor(X, resolve_device(self.device))
        own = torch.arange(len(features), device=features.device)
        bands = self._space(features, own, runs, None)
        targets = Targets(
            y, features, None, self.nan_targets, self._centring_runs(runs, own.cpu(), [])
        )
        rows = bands.rows(own, own[:0])
        solved = list(self._solve(bands, rows, targets, self._inner_groups(groups, runs)))
        solution = torch.cat([one for _, _, one in solved])
        if rows.inside is not None:
            solution = solution @ rows.inside.T
        solution[torch.as_tensor(targets.excluded)] = torch.nan
        gains = torch.cat([found.log_gains for _, found, _ in solved]).exp()
        means = torch.cat([block.mean for block, _, _ in solved])
        self._keep(bands, own, solution, gains, means)
        self.bands_ = list(bands.columns)
        self.intercept_ = self._at_zero(features.shape[1])
        penalties = torch.empty_like(gains.T, memory_format=torch.contiguous_format)
        penalties.copy_(bands.unit[:, None] / gains.T)
        penalties[:, torch.as_tensor(targets.excluded)] = torch.nan
        self.alpha_by_band_, self.alpha_ = (
            penalties.cpu().numpy(),
            together(penalties).cpu().numpy(),
        )
        self.cv_score_ = torch.cat([found.scores for _, found, _ in solved]).cpu().numpy()
        self.cv_score_[targets.excluded] = np.nan
        self.n_floored_ = sum(design.scaling.n_floored for design in bands.designs)
        self.n_excluded_ = int(targets.excluded.sum())
        return self

    def _predicted(self, features: torch.Tensor, runs: Any) -> torch.Tensor:
        """Return predictions, shape (n_samples, n_targets)."""
        total = self._intercept.expand(len(features), -1).clone()
        for band in self._bands:
            rows, weights = features[:, band.columns], self._weights[band.places]
            if band.scaling is None:
                total += rows @ weights
                continue
            design = self._design(rows, band.scaling, runs)
            if band.design is not None:
                total += design.kernel_with(band.design).to(total.dtype) @ weights
                continue
            for some, values in design.blocks(torch.arange(len(rows), device=rows.device)):
                total[some] += values.to(total.dtype) @ weights
        return total

    @property
    def coef_(self) -> np.ndarray:
        """The weights on the columns of X, shape ([n_targets,] n_delays * n_columns)."""
        check_is_fitted(self)
        n_delays = len(self.delays or [0])
        coef = self._intercept.new_empty(len(self._intercept), n_delays, self.n_features_in_)
        for band in self._bands:
            weights = self._weights[band.places]
            if band.design is not None:
                weights = band.design.combine(weights)
            if band.scaling is not None:
                weights = weights / band.scaling.scale.repeat(n_delays)[:, None]
            coef[:, :, band.columns] = weights.T.unflatten(1, (n_delays, -1))
        result = coef.flatten(1).cpu().numpy()
        return result[0] if self._single_target else result

    def _predict(
        self, space: Any, own: torch.Tensor, held: torch.Tensor, targets: Targets, groups: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Yield columns, predictions, penalties, penalties by band, and predictions by band."""
        rows = space.rows(own, held)
        for block, found, solution in self._solve(space, rows, targets, groups):
            gains = found.log_gains.exp()
            parts = torch.stack(
                [
                    ((other @ solution.T) * gain).to(targets.dtype)
                    for other, gain in zip(rows.cross, gains.T, strict=True)
                ]
            )
            parts[:, :, torch.as_tensor(targets.excluded[block.columns])] = torch.nan
            penalties = space.unit[:, None] / gains.T
            by_band = {"alpha_by_band": penalties}
            yield block.columns, parts.sum(0) + block.mean, together(penalties), by_band, parts

    def _solve(
        self, bands: Bands, rows: BandRows, targets: Targets, groups: Any
    ) -> Iterator[tuple[Block, Found, torch.Tensor]]:
        """Yield some targets, their penalties, and their solutions (n_targets, k), float64."""
        choice = self._choice(bands, targets, groups)
        targets.n_at_once = self._n_at_once(len(bands.unit), targets, groups)
        kernels, tolerance = rows.kernels.to(targets.dtype), TOLERANCE[targets.dtype]

        def work(block: Block) -> tuple[Found, torch.Tensor]:
            found = choice(block)
            near = references(kernels, found.log_gains)
            inside, gains = rows.turned(block.values).double(), found.log_gains.exp()
            return found, solve_exactly(rows.kernels, inside, gains, near, tolerance)

        for block, (found, solution) in targets.map(work):
            yield block, found, solution

    def _choice(self, bands: Bands, targets: Targets, groups: Any) -> Callable[[Block], Found]:
        """Return the function from a block of targets to their gains."""
        if self.alphas_by_band is not None:
            return self._given(bands, targets)
        n_bands = len(bands.unit)
        automatic = isinstance(self.alphas, str)
        weights = torch.full_like(bands.unit, 1 / n_bands) if automatic else bands.unit
        mixture = bands.mixture(weights)
        grid = self._grid(mixture, bands.own)
        fold = self._fold(mixture, bands.own, None, targets, grid, groups)
        chosen, common = self._choose(fold, targets, grid, groups)
        if n_bands == 1:
            self._warn_of_edges(chosen, grid)
            return lambda block: Found(
                (weights / grid[chosen[block.columns], None]).log(), common[block.columns]
            )
        splits = inner_splits(self.cv, targets.n_samples, groups, self.seed)
        search = BandSearch(bands, splits, weights, self.scoring, self.refine, self.seed)
        return lambda block: search(block, grid[chosen[block.columns]], common[block.columns])

    def _given(self, bands: Bands, targets: Targets) -> Callable[[Block], Found]:
        """Return the choice of penalties that were given."""
        penalties = torch.as_tensor(np.asarray(self.alphas_by_band, float), device=bands.own.device)
        shape = (len(bands.unit), targets.n_targets)
        if penalties.shape not in (shape, shape[:1]) or not (penalties > 0).all():
            raise ValueError(
                f"`alphas_by_band` must be > 0 and have shape {shape} or {shape[:1]}, but has "
                f"shape {tuple(penalties.shape)}."
            )
        log_gains = (bands.unit / penalties.reshape(len(bands.unit), -1).T).log()
        log_gains = log_gains.expand(targets.n_targets, -1)
        unknown = torch.full((targets.n_targets,), torch.nan, device=bands.own.device)
        return lambda block: Found(log_gains[block.columns], unknown[block.columns])

    def _n_at_once(self, n_bands: int, targets: Targets, groups: Any) -> int:
        """Return how many targets are searched together."""
        searched = n_bands > 1 and self.alphas_by_band is None
        n_splits = n_inner(self.cv, targets.n_samples, groups) if searched else 1
        few = n_bands * (len(SPREAD) + self.refine)
        n_bytes = n_splits * (6 * 8 * few**2 + 4 * targets.n_samples * (4 + self.refine))
        room = available_memory(targets.device) // MEMORY_SHARE
        most = max(64, min(MAX_TARGETS, room // n_bytes))
        return -(-targets.n_targets // -(-targets.n_targets // most))  # blocks of equal size

    def _space(self, features: torch.Tensor, own: torch.Tensor, runs: Any, last: Any) -> Any:
        """Return the bands of all rows, scaled by the training rows `own`."""
        columns = band_columns(self.bands, features.shape[1])
        parts = {name: features[:, some] for name, some in columns.items()}
        if self.kernel == "precomputed":
            for name, part in parts.items():
                check_kernel(part, f" of {name!r}")
            return Bands(columns, [part.double() for part in parts.values()], None, own)
        scalings = [
            fit_scaling(part, own, standardize=self.standardize, sd_floor=self.sd_floor)
            for part in parts.values()
        ]
        pairs = zip(parts.values(), scalings, strict=True)
        designs = [self._design(part, scaling, runs) for part, scaling in pairs]
        if sum(design.n_features for design in designs) <= FEATURES_PER_ROW * len(own):
            return Bands(columns, None, designs, own)
        if last is not None and last.kernels is not None and not self.standardize:
            return Bands(columns, last.kernels, designs, own)
        given = [
            float(np.min(penalties))
            for penalties in (self.alphas, self.alphas_by_band)
            if penalties is not None and not isinstance(penalties, str)
        ]
        kernels = [
            design.kernel(min([1e-4 * design.mean_eigenvalue(own), *given])) for design in designs
        ]
        return Bands(columns, kernels, designs, own)

    def _keep(
        self,
        bands: Bands,
        own: torch.Tensor,
        solution: torch.Tensor,
        gains: torch.Tensor,
        means: torch.Tensor,
    ) -> None:
        """Keep the weights of each band, and the intercept."""
        self._bands, self._intercept = [], means
        found: list[torch.Tensor] = []
        for band, columns in enumerate(bands.columns.values()):
            weights = (solution * gains[:, band, None] / bands.unit[band]).T
            design = bands.designs[band] if bands.designs else None
            scaling = None if design is None else design.scaling
            if design is not None and design.n_features <= MAX_FEATURES_PER_SAMPLE * len(own):
                weights, centre = design.combine(weights), design.mean(own)
                design = None
            else:
                assert bands.kernels is not None
                centre = bands.kernels[band].mean(0)
            start = sum(map(len, found))
            places = slice(start, start + len(weights))
            self._bands.append(FittedBand(columns, scaling, design, places))
            self._intercept = self._intercept - (centre @ weights).to(means.dtype)
            found.append(weights.to(means.dtype))
        self._weights = torch.cat(found)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.kernel not in KERNELS:
            raise ValueError(f"`kernel` must be one of {KERNELS}, but got {self.kernel!r}.")
        if self.kernel == "precomputed" and (self.delays is not None or self.centre == "runs"):
            raise ValueError(
                "kernel='precomputed' cannot be delayed or centred by runs: delays and "
                "centre='runs' need features."
            )
        if not isinstance(self.refine, numbers.Integral) or self.refine < 0:
            raise ValueError(f"`refine` must be a whole number >= 0, but got {self.refine!r}.")

    def __sklearn_tags__(self) -> Any:
        """Say that a given kernel is split in rows and columns."""
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.kernel == "precomputed"
        return tags


def together(penalties: torch.Tensor) -> torch.Tensor:
    """Return one over the sum of one over each penalty, (n_targets,), of (n_bands, n_targets)."""
    return 1 / (1 / penalties).sum(0)
