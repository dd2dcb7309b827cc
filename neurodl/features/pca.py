"""PCA that streams its batches: exact, in float64, without a copy of the features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from neurodl.runtime import resolve_device

# What is taken to float64 at a time by "auto".
BLOCK_BYTES = 2**26

Solution = tuple[np.ndarray, np.ndarray, np.ndarray, float]


class StreamedPCA(TransformerMixin, BaseEstimator):
    """Principal components, by batches in float64: memory for one batch, not for a copy of X.

    Sums the covariance of the features over batches of rows, or, with more features than rows,
    the kernel of the rows over batches of columns. It is fitted to data: put it into a pipeline,
    so that each fold fits it on its own training rows.

    Parameters
    ----------
    n_components : int, optional
        How many; by default the smaller of n_samples and n_features.
    whiten : bool
        Divide each component by its standard deviation over the training rows.
    batch_size : int or "auto"
        Rows, or columns, that are taken to float64 at a time; "auto" takes 64 MiB of them.
    device : {"auto", "cpu", "cuda"}
        See `resolve_device`.

    Attributes
    ----------
    components_ : numpy.ndarray, shape (n_components, n_features)
        Orthonormal rows, each with its largest entry positive. Where there are no more rows than
        components, those without variance are 0.
    mean_ : numpy.ndarray, shape (n_features,)
    explained_variance_, explained_variance_ratio_ : numpy.ndarray, shape (n_components,)
    singular_values_ : numpy.ndarray, shape (n_components,)

    References
    ----------
    Jolliffe (2002), Principal Component Analysis, Springer.

    Examples
    --------
    >>> X = np.outer(np.arange(5.0), [3.0, 4.0])
    >>> StreamedPCA(1, device="cpu").fit(X).components_.round(6)
    array([[0.6, 0.8]])
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        whiten: bool = False,
        batch_size: int | str = "auto",
        device: str = "auto",
    ) -> None:
        self.n_components = n_components
        self.whiten = whiten
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Any, y: Any = None) -> Self:
        """Find the components of the rows of `X`.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
            A memory map stays on disk.
        y : ignored

        Raises
        ------
        ValueError
            `n_components` is not between 1 and the smaller side of `X`.
        """
        X = validate_data(
            self, X, dtype=(np.float64, np.float32), ensure_min_samples=2, ensure_min_features=1
        )
        n_samples, n_features = X.shape
        most = min(n_samples, n_features)
        n_components = most if self.n_components is None else self.n_components
        if n_components != int(n_components) or not 1 <= n_components <= most:
            raise ValueError(
                f"`n_components` must be a whole number from 1 to {most}, the smaller side of X "
                f"{X.shape}, but got {self.n_components!r}."
            )
        tall = n_samples >= n_features
        solve = self._from_covariance if tall else self._from_kernel
        mean, components, values, total = solve(X, int(n_components))
        signs = np.sign(components[np.arange(len(components)), np.abs(components).argmax(1)])
        components *= np.where(signs == 0, 1, signs)[:, None]
        self.n_components_ = int(n_components)
        self.mean_, self.components_ = mean.astype(X.dtype), components.astype(X.dtype)
        self.explained_variance_ = (values / (n_samples - 1)).astype(X.dtype)
        self.explained_variance_ratio_ = (values / (total or 1.0)).astype(X.dtype)
        self.singular_values_ = np.sqrt(values).astype(X.dtype)
        return self

    def _from_covariance(self, X: np.ndarray, k: int) -> Solution:
        """Solve by the (n_features, n_features) scatter of the rows."""
        scatter = self._zeros(X.shape[1])
        mean = scatter[0].clone()
        for _, block in self._row_blocks(X):
            mean += block.sum(0) / len(X)
        for _, block in self._row_blocks(X):
            centred = block - mean
            scatter.addmm_(centred.T, centred)
        values, vectors = _largest(scatter, k)
        trace = float(scatter.diagonal().sum())
        return mean.cpu().numpy(), vectors.T.cpu().numpy(), values.cpu().numpy(), trace

    def _from_kernel(self, X: np.ndarray, k: int) -> Solution:
        """Solve by the (n_samples, n_samples) kernel of the centred rows."""
        kernel = torch.zeros(
            len(X), len(X), dtype=torch.float64, device=resolve_device(self.device)
        )
        mean = np.empty(X.shape[1])
        for columns, block in self._column_blocks(X):
            middle = block.mean(0)
            mean[columns] = middle.cpu().numpy()
            centred = block - middle
            kernel.addmm_(centred, centred.T)
        values, vectors = _largest(kernel, k)
        has_variance = values > len(X) * np.finfo(float).eps * values[0]
        weights = torch.where(has_variance, vectors / values.clamp_min(1e-300).sqrt(), 0.0)
        components = np.empty((k, X.shape[1]), X.dtype)
        for columns, block in self._column_blocks(X):
            components[:, columns] = (weights.T @ (block - block.mean(0))).cpu().numpy()
        return mean, components, values.cpu().numpy(), float(kernel.diagonal().sum())

    def transform(self, X: Any) -> np.ndarray:
        """Return the components of each row, shape (n_samples, n_components).

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        device = resolve_device(self.device)
        # In the dtype of the data: a copy of all components in float64 could be as large as they.
        components = torch.as_tensor(self.components_.astype(X.dtype, copy=False), device=device)
        mean = torch.as_tensor(self.mean_.astype(X.dtype, copy=False), device=device)
        found = np.empty((len(X), len(components)), X.dtype)
        step = self._step(X.shape[1])
        for start in range(0, len(X), step):
            rows = torch.as_tensor(np.array(X[start : start + step]), device=device)
            found[start : start + step] = ((rows - mean) @ components.T).cpu().numpy()
        if self.whiten:
            scale = np.sqrt(self.explained_variance_)
            found /= np.maximum(scale, np.finfo(scale.dtype).eps)
        return found

    def _zeros(self, side: int) -> torch.Tensor:
        device = resolve_device(self.device)
        return torch.zeros(side, side, dtype=torch.float64, device=device)

    def _row_blocks(self, X: np.ndarray) -> Iterator[tuple[slice, torch.Tensor]]:
        yield from self._blocks(X, 0)

    def _column_blocks(self, X: np.ndarray) -> Iterator[tuple[slice, torch.Tensor]]:
        yield from self._blocks(X, 1)

    def _blocks(self, X: np.ndarray, axis: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield slices along an axis and what they hold, float64 on the device."""
        device, step = resolve_device(self.device), self._step(X.shape[1 - axis])
        for start in range(0, X.shape[axis], step):
            part = slice(start, min(start + step, X.shape[axis]))
            block = X[part] if axis == 0 else X[:, part]
            yield part, torch.as_tensor(block.astype(np.float64), device=device)

    def _step(self, other_side: int) -> int:
        """Return how many rows, or columns, are taken at a time."""
        if self.batch_size == "auto":
            return max(1, BLOCK_BYTES // (8 * other_side))
        if int(self.batch_size) < 1:
            raise ValueError(f"`batch_size` must be at least 1, but got {self.batch_size}.")
        return int(self.batch_size)


def _largest(matrix: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k largest eigenvalues (k,), none below 0, and their vectors (n, k)."""
    values, vectors = torch.linalg.eigh(matrix)
    return values[-k:].flip(0).clamp_min(0), vectors[:, -k:].flip(1)
