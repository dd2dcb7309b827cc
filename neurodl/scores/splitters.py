"""Splitters that keep time, clusters of stimuli and near neighbours apart, as scikit-learn's do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.model_selection import BaseCrossValidator, GroupKFold, KFold

N_COMPONENTS = 50  # of features, in which clusters are looked for
AT_ONCE = 2048  # rows, of which similarities are held


class PurgedKFold(BaseCrossValidator):
    """Folds of contiguous samples, without the training samples beside each test block.

    For a time series of one long run. Where a model reads features up to `purge` samples back, or
    the haemodynamic response lasts that long, samples on the two sides of a cut share what they
    are predicted from; those within `purge` samples of a test block are therefore not trained on.

    Parameters
    ----------
    n_splits : int
        Test blocks, which follow each other and cover all samples.
    purge : int
        Samples left out on both sides of a test block: the span of the delays, and for BOLD some
        15 s on top, in samples.

    References
    ----------
    Lopez de Prado (2018), Advances in Financial Machine Learning, chapter 7 (purging).
    Burman, Chow & Nolan (1994), A cross-validatory method for dependent data, Biometrika 81.

    Examples
    --------
    >>> [(train.tolist(), test.tolist()) for train, test in PurgedKFold(2, purge=1).split(range(6))]
    [([4, 5], [0, 1, 2]), ([0, 1], [3, 4, 5])]
    """

    def __init__(self, n_splits: int = 5, *, purge: int) -> None:
        self.n_splits = n_splits
        self.purge = purge

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds."""
        return self.n_splits

    def blocks(self, n_samples: int) -> np.ndarray:
        """Return the test block of each sample, shape (n_samples,).

        Raises
        ------
        ValueError
            There are fewer samples than blocks, or `purge` is no count.
        """
        if not 2 <= self.n_splits <= n_samples:
            raise ValueError(
                f"`n_splits` must lie between 2 and the {n_samples} samples, but got "
                f"{self.n_splits}."
            )
        if self.purge != int(self.purge) or self.purge < 0:
            raise ValueError(f"`purge` must be a number of samples, but got {self.purge!r}.")
        sizes = [len(part) for part in np.array_split(np.arange(n_samples), self.n_splits)]
        return np.repeat(np.arange(self.n_splits), sizes)

    def split(
        self, X: Any, y: Any = None, groups: Any = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the (train, test) row numbers of each fold.

        Parameters
        ----------
        X : array-like, shape (n_samples, ...)
            In the order of time.
        y : ignored
        groups : array-like, shape (n_samples,), optional
            The run of each sample: what another run has is not beside a block.

        Raises
        ------
        ValueError
            Nothing is left to train on.
        """
        n_samples = len(X)
        blocks, rows = self.blocks(n_samples), np.arange(n_samples)
        runs = np.zeros(n_samples, int) if groups is None else np.asarray(groups)
        for number in range(self.n_splits):
            test = rows[blocks == number]
            near = (rows >= test[0] - self.purge) & (rows <= test[-1] + self.purge)
            train = rows[~(near & np.isin(runs, runs[test])) & (blocks != number)]
            if not len(train):
                raise ValueError(
                    f"purge={self.purge} leaves nothing to train on beside block {number} of "
                    f"{self.n_splits}. Use more blocks, or a smaller purge."
                )
            yield train, test


class _FeatureSplitter(BaseCrossValidator):
    """Splitters that look at features: at those they were given, else at X.

    `cross_validate` looks the given features up by the ids of the responses, so that all layers
    have the same folds.
    """

    n_splits: int
    features: Any

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds."""
        return self.n_splits

    def _check(self, X: Any) -> np.ndarray:
        values = np.asarray(X.values if isinstance(X, xr.DataArray) else X, np.float32)
        if values.ndim != 2 or not 2 <= self.n_splits <= len(values):
            raise ValueError(
                f"{type(self).__name__} needs features (n_samples, n_features) of more samples "
                f"than its {self.n_splits} folds, but got shape {values.shape}."
            )
        if np.ptp(values) == 0:
            raise ValueError(
                f"{type(self).__name__} looks at features, and these are all the same: give it "
                f"those to look at, {type(self).__name__}(features=features['layer'])."
            )
        return values

    def __repr__(self) -> str:
        """Return the parameters; of features, their layer and shape."""
        said = []
        for name, value in vars(self).items():
            if isinstance(value, xr.DataArray):
                value = f"{value.attrs.get('layer', 'features')} {value.shape}"
            if value is not None:
                said.append(f"{name}={value}")
        return f"{type(self).__name__}({', '.join(said)})"


class ClusterKFold(_FeatureSplitter):
    """Folds of stimuli that lie together in a feature space: each cluster is tested once.

    A model is then scored on kinds of stimuli that it was not fitted to (out of distribution).
    Clusters differ in size.

    Parameters
    ----------
    n_splits : int
        The number of clusters.
    features : xarray.DataArray, optional
        The feature space, with ids; without it, the X that is split.
    seed : int
        Of k-means, on up to 50 principal components.

    Examples
    --------
    >>> X = np.array([[0.0], [9.0], [0.1], [9.1]])
    >>> [test.tolist() for _, test in ClusterKFold(2).split(X)]
    [[0, 2], [1, 3]]
    """

    def __init__(self, n_splits: int = 5, *, features: Any = None, seed: int = 0) -> None:
        self.n_splits = n_splits
        self.features = features
        self.seed = seed

    def split(
        self, X: Any, y: Any = None, groups: Any = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the (train, test) row numbers of each fold, in the order of first appearance.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
        y : ignored
        groups : array-like, shape (n_samples,), optional
            Rows of one group follow the first of them, so that groups stay whole.
        """
        values = self._check(X)
        size = min(N_COMPONENTS, *values.shape)
        if values.shape[1] > size:
            values = PCA(size, svd_solver="randomized", random_state=self.seed).fit_transform(
                values
            )
        found = KMeans(self.n_splits, n_init=10, random_state=self.seed).fit_predict(values)
        if groups is not None:
            _, first, of = np.unique(
                np.asarray(groups).astype(str), return_index=True, return_inverse=True
            )
            found = found[first][of]
        rows = np.arange(len(values))
        for number in dict.fromkeys(found.tolist()):
            yield rows[found != number], rows[found == number]


class SimilarityKFold(_FeatureSplitter):
    """Shuffled folds, without the training stimuli that are too like a test stimulus.

    Near neighbours of the test stimuli let a model score by memory. Test rows are those of plain
    folds, so that scores at several thresholds are of the same rows.

    Parameters
    ----------
    n_splits : int
    threshold : float
        Training rows whose correlation over features with any test row exceeds it are left out.
    features : xarray.DataArray, optional
        The feature space, with ids; without it, the X that is split.
    seed : int
        Shuffles the folds.

    Examples
    --------
    >>> X = np.array([[0, 1, 2], [0, 1, 2.1], [2, 1, 0], [1, 2, 1]])
    >>> for train, test in SimilarityKFold(2, threshold=0.9).split(X):
    ...     print(train, test)
    [0 1] [2 3]
    [2 3] [0 1]
    """

    def __init__(
        self, n_splits: int = 5, *, threshold: float = 0.9, features: Any = None, seed: int = 0
    ) -> None:
        self.n_splits = n_splits
        self.threshold = threshold
        self.features = features
        self.seed = seed

    def split(
        self, X: Any, y: Any = None, groups: Any = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the (train, test) row numbers of each fold.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
        y : ignored
        groups : array-like, shape (n_samples,), optional
            Stay whole in the test rows, and so on one side.

        Raises
        ------
        ValueError
            Hardly anything is left to train on.
        """
        values = self._check(X)
        values = values - values.mean(1, keepdims=True)
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        values /= np.where(norms > 0, norms, 1)
        how = {"n_splits": self.n_splits, "shuffle": True, "random_state": self.seed}
        plain = KFold(**how) if groups is None else GroupKFold(**how)
        for train, test in plain.split(values, None, groups):
            kept = [
                part[(values[part] @ values[test].T).max(1) <= self.threshold]
                for part in np.split(train, range(AT_ONCE, len(train), AT_ONCE))
            ]
            kept_rows = np.concatenate(kept)
            if len(kept_rows) < 2:
                raise ValueError(
                    f"threshold={self.threshold} leaves {len(kept_rows)} of {len(train)} training "
                    "rows. Use a higher threshold."
                )
            yield kept_rows, test
