"""RidgeCV: ridge regression of many targets, with the penalty chosen per target inside the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neurodl.models._linear import TARGET_AXES, LinearCV
from neurodl.models._preflight import Path
from neurodl.models._spaces import covariance_pays


class RidgeCV(LinearCV):
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
    device : {"auto", "cpu", "cuda", "cuda:all", "mps"}, or a list of devices
        See `resolve_devices`. Several share the targets.
    seed : int
        Shuffles the inner folds.

    Attributes
    ----------
    alpha_ : numpy.ndarray, shape (n_targets,)
        The chosen penalty, in units of the scaled features.
    cv_score_ : numpy.ndarray, shape (n_targets,)
        Mean inner score at the chosen penalty.
    intercept_ : numpy.ndarray, shape (n_targets,)
        The prediction where all features are 0.
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
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((60, 5)); Y = X @ rng.standard_normal((5, 3))
    >>> bool((RidgeCV(device="cpu").fit(X, Y).predict(X) - Y).std() < 0.01)
    True
    """

    _target_axes = TARGET_AXES

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
        device: Any = "auto",
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

    def _path(self, n_train: int, n_features: int, n_targets: int) -> Path:
        """Return how training rows will be described."""
        n_features *= 1 if self.delays is None else len(self.delays)
        copies = 3.0 if self.centre == "runs" else 1.5
        copies = copies if self.delays is None else 4.0
        by_kernel = not covariance_pays(n_train, n_features, n_targets)
        return Path(by_kernel, n_features, copies)
