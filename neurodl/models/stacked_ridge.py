"""StackedRidgeCV: a ridge regression on each band of features, combined for each target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from neurodl.models._band_folds import BandFolds
from neurodl.models._bands import Columns, band_columns
from neurodl.models._base import FoldPrediction
from neurodl.models._input import (
    as_index,
    as_tensor,
    check_features_input,
    check_fit_input,
    part_of,
)
from neurodl.models._splits import Splits, inner_splits
from neurodl.models._stacking import (
    Combination,
    combinations,
    combined,
    of_leading,
)
from neurodl.models._targets import Targets
from neurodl.models.kernel_ridge import KernelRidgeCV
from neurodl.models.ridge import RidgeCV
from neurodl.runtime import resolve_device

COMBINES = ("stack", "select")
KERNELS = ("linear", "precomputed")


class StackedRidgeCV(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Ridge regressions on several bands of features, combined for each target by inner folds.

    Each band, such as a layer of a network, has a `RidgeCV` of its own, with a penalty for each
    target. The inner folds that choose the penalties also tell how to combine the bands: the
    prediction is a convex combination of theirs, or that of the best of them.

    Parameters
    ----------
    alphas, cv, scoring, standardize, sd_floor, nan_targets, screening, device, seed
        See `RidgeCV`; they hold for each band by itself.
    bands : mapping of str to int, array-like of labels with shape (n_features,), or None
        The number of features of each band, which stand side by side; or the band of each
        feature. None is a single band; `cross_validate` then makes a band of each layer.
    combine : {"stack", "select"}
        "stack": weights >= 0 that sum to 1 and minimise the squared error of the predictions of
        rows left out of inner folds, at the penalties that were chosen. "select": for each
        target the band with the best mean inner score predicts alone.
    regions : str or array-like of labels with shape (n_targets,), optional
        For "select": targets of one region get the same band, that with the best mean inner score
        over them. `cross_validate` takes the name of a coord of the targets, such as "roi".
    kernel : {"linear", "precomputed"}
        With "precomputed", X holds the kernels of all bands side by side, each of all rows with
        the training rows; they cannot be standardized.

    Attributes
    ----------
    bands_ : list of str
        The names of the bands.
    weight_ : numpy.ndarray, shape (n_bands, n_targets)
        The share of each band in the prediction.
    alpha_by_band_, cv_score_by_band_ : numpy.ndarray, shape (n_bands, n_targets)
        The chosen penalties, and the mean inner scores at them.
    alpha_ : numpy.ndarray, shape (n_targets,)
        The penalty of the band with the largest weight.
    coef_ : numpy.ndarray, shape ([n_targets,] n_features)
        The weights on the columns of X, those of the bands among them, so that the prediction is
        ``X @ coef_.T + intercept_``.
    intercept_ : numpy.ndarray, shape (n_targets,)
    n_floored_, n_excluded_ : int
        See `RidgeCV`; features of all bands.

    References
    ----------
    Breiman (1996), Stacked regressions, Machine Learning 24.
    Lin, Naselaris, Kay & Wehbe (2024), Stacked regressions and structured variance partitioning
    for interpretable brain maps, NeuroImage.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((80, 6)); Y = X[:, 4:] @ rng.standard_normal((2, 3))
    >>> model = StackedRidgeCV(bands={"layer1": 4, "layer2": 2}, device="cpu").fit(X, Y)
    >>> bool((model.weight_[1] > 0.99).all())
    True
    """

    def __init__(
        self,
        alphas: Any = "auto",
        *,
        bands: Any = None,
        combine: str = "stack",
        regions: Any = None,
        kernel: str = "linear",
        cv: Any = 5,
        scoring: str = "r2",
        standardize: bool = True,
        sd_floor: float = 0.1,
        nan_targets: str = "error",
        screening: bool = True,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        self.alphas = alphas
        self.bands = bands
        self.combine = combine
        self.regions = regions
        self.kernel = kernel
        self.cv = cv
        self.scoring = scoring
        self.standardize = standardize
        self.sd_floor = sd_floor
        self.nan_targets = nan_targets
        self.screening = screening
        self.device = device
        self.seed = seed

    def fit(self, X: Any, y: Any, groups: Any = None) -> StackedRidgeCV:
        """Choose penalties and weights of the bands, and fit the weights of the features.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
            Of numpy, torch (any device) or xarray; (n_samples, n_bands * n_samples) if
            precomputed.
        y : array-like, shape (n_samples,) or (n_samples, n_targets)
            The same, or a memory map or zarr array; read in blocks of targets.
        groups : array-like, shape (n_samples,), optional
            Rows of one group (a run, say) stay on one side of every inner split.

        Returns
        -------
        StackedRidgeCV
            self.

        Raises
        ------
        ValueError
            Values are not finite, lengths differ, the bands do not account for all features, or
            a parameter is out of range.
        """
        X, y = check_fit_input(self, X, y)
        self._check_parameters()
        features = as_tensor(X, resolve_device(self.device))
        columns = self._columns(features)
        bands = BandFolds(self._band_model(), features, columns)
        own = torch.arange(len(features), device=features.device)
        targets = Targets(y, features, None, self.nan_targets)
        parts = self._combinations(bands, own, None, targets, groups)
        found = [part.by_band() for part in parts]
        weight, alpha, score = (torch.cat([one[name] for one in found], 1) for name in found[0])
        self._models = [bands.fitted(band, targets, own) for band, own in enumerate(alpha)]
        self.bands_, self._places = list(columns), list(columns.values())
        self.weight_ = weight.to(features.dtype).cpu().numpy()
        self.alpha_by_band_, self.cv_score_by_band_ = alpha.cpu().numpy(), score.cpu().numpy()
        self.alpha_ = of_leading(weight, alpha).cpu().numpy()
        self.intercept_ = self._combined(features.new_zeros(1, features.shape[1]))[0]
        self.n_floored_ = sum(getattr(model, "n_floored_", 0) for model in self._models)
        self.n_excluded_ = int(targets.excluded.sum())
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return predictions, shape (n_samples,) or (n_samples, n_targets).

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
            Or (n_samples, n_bands * n_train) if precomputed.
        """
        check_is_fitted(self)
        X = check_features_input(self, X, reset=False)
        result = self._combined(as_tensor(X, resolve_device(self.device)))
        return result[:, 0] if self._single_target else result

    def _combined(self, features: torch.Tensor) -> np.ndarray:
        """Return the weighted predictions of all bands, (n_samples, n_targets)."""
        total = np.zeros((len(features), self.weight_.shape[1]), self.weight_.dtype)
        for weight, model, some in zip(self.weight_, self._models, self._places, strict=True):
            total += weight * model.predict(features[:, some])
        return total

    @property
    def coef_(self) -> np.ndarray:
        """The weights on the columns of X, shape ([n_targets,] n_features)."""
        check_is_fitted(self)
        coef = np.empty((self.weight_.shape[1], self.n_features_in_), self.weight_.dtype)
        for weight, model, some in zip(self.weight_, self._models, self._places, strict=True):
            own = model.dual_coef_.T if isinstance(model, KernelRidgeCV) else model.coef_
            coef[:, some] = weight[:, None] * own
        return coef[0] if self._single_target else coef

    def predict_folds(
        self, X: Any, y: Any, splits: Sequence[tuple[Any, Any]], groups: Any = None
    ) -> Iterator[FoldPrediction]:
        """Predict the test rows of each split by a model of its training rows, block by block.

        See `RidgeCV.predict_folds`. As many targets are predicted at a time as fit into memory.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features) or (n_samples, n_bands * n_samples)
            The latter if precomputed.
        y : array-like, shape (n_samples, n_targets)
        splits : sequence of (train, test)
            Row numbers.
        groups : array-like, shape (n_samples,), optional
            See `fit`.

        Yields
        ------
        FoldPrediction
            Its ``by_band`` has weight, alpha_by_band and cv_score_by_band.
        """
        self._check_parameters()
        features = as_tensor(X, resolve_device(self.device))
        bands = BandFolds(self._band_model(), features, self._columns(features))
        for fold, (train, test) in enumerate(splits):
            own, held = (as_index(rows, features.device) for rows in (train, test))
            targets = Targets(y, features, np.asarray(train), self.nan_targets)
            for part in self._combinations(bands, own, held, targets, part_of(groups, train)):
                by_band = part.by_band()
                alpha = of_leading(by_band["weight"], by_band["alpha_by_band"])
                yield FoldPrediction(fold, part.columns, combined(bands, part), alpha, by_band)

    def _combinations(
        self,
        bands: BandFolds,
        own: torch.Tensor,
        held: torch.Tensor | None,
        targets: Targets,
        groups: Any,
    ) -> Iterator[Combination]:
        """Yield how bands are combined; warn of penalties at the edges of the grid."""
        splits = self._inner_splits(len(own), groups, len(bands))
        stacks = self.combine == "stack" and len(bands) > 1
        bands.start(own, held, splits if stacks else [])
        penalties = [bands.choose(band, targets, splits) for band in range(len(bands))]
        leading = []
        regions = self._checked_regions(targets.n_targets)
        for part in combinations(bands, targets, penalties, regions):
            places = torch.stack([one.place for one in part.penalties])
            leading.append(of_leading(part.weights, places))
            yield part
        bands.model._warn_of_edges(torch.cat(leading), penalties[0].grid)

    def _checked_regions(self, n_targets: int) -> np.ndarray | None:
        """Return the label of each target, or None where each selects for itself.

        Raises
        ------
        ValueError
            They would do nothing, or there is another number of them.
        """
        if self.regions is None:
            return None
        if self.combine != "select":
            raise ValueError("`regions` are only for combine='select'.")
        labels = np.asarray(self.regions).astype(str)
        if labels.shape != (n_targets,):
            raise ValueError(
                f"`regions` must have a label for each of {n_targets} targets, but has shape "
                f"{labels.shape}. A name of a coord is for cross_validate."
            )
        return labels

    def _inner_splits(self, n_samples: int, groups: Any, n_bands: int) -> Splits:
        """Return the inner folds, none where there is nothing to choose."""
        one_penalty = not isinstance(self.alphas, str) and len(np.unique(self.alphas)) == 1
        if n_bands == 1 and one_penalty:
            return []
        return inner_splits(self.cv, n_samples, groups, self.seed)

    def _band_model(self) -> RidgeCV | KernelRidgeCV:
        """Return the model of a single band."""
        shared = ("alphas", "cv", "scoring", "nan_targets", "screening", "device", "seed")
        options = {name: getattr(self, name) for name in shared}
        if self.kernel == "precomputed":
            return KernelRidgeCV(kernel="precomputed", **options)
        return RidgeCV(standardize=self.standardize, sd_floor=self.sd_floor, **options)

    def _columns(self, features: torch.Tensor) -> dict[str, Columns]:
        """Return the columns of each band."""
        columns = band_columns(self.bands, features.shape[1])
        for name, some in columns.items():
            width = features[:1, some].shape[1]
            if self.kernel == "precomputed" and width != len(features):
                raise ValueError(
                    f"kernel='precomputed' needs the kernel of all {len(features)} rows with each "
                    f"other, a square, for each band, but {name!r} has {width} columns. Say in "
                    "`bands` which columns are whose."
                )
        return columns

    def _check_parameters(self) -> None:
        if self.combine not in COMBINES:
            raise ValueError(f"`combine` must be one of {COMBINES}, but got {self.combine!r}.")
        if self.kernel not in KERNELS:
            raise ValueError(f"`kernel` must be one of {KERNELS}, but got {self.kernel!r}.")
        self._band_model()._check_parameters()

    def __sklearn_tags__(self) -> Any:
        """Say that a given kernel is split in rows and columns."""
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.kernel == "precomputed"
        return tags
