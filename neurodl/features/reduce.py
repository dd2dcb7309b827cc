"""Named reductions of features: sparse random projection, and PCA of named training rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import scipy.sparse
import torch
import xarray as xr
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.random_projection import SparseRandomProjection, johnson_lindenstrauss_min_dim
from sklearn.utils.validation import check_is_fitted, validate_data

from neurodl.errors import PairingError, UnknownNameError, listed
from neurodl.features.pca import StreamedPCA
from neurodl.features.pool import without_layout
from neurodl.stimuli import Stimuli


class SparseProjection(TransformerMixin, BaseEstimator):
    """Random projection by a sparse matrix, which keeps the distances of samples about as they are.

    The matrix is the one of scikit-learn's ``SparseRandomProjection(random_state=seed)``. It does
    not depend on the values of the features, so projecting before a split leaks nothing.

    Parameters
    ----------
    n_components : int or "auto"
        How many directions. "auto" takes what the Johnson-Lindenstrauss lemma needs for the
        number of samples and `eps`.
    density : float or "auto"
        The share of entries that are not 0; "auto" is ``1 / sqrt(n_features)``.
    seed : int
    eps : float
        With "auto": the share by which squared distances may change.

    Attributes
    ----------
    components_ : scipy.sparse.csr_matrix, shape (n_components, n_features)

    References
    ----------
    Li, Hastie & Church (2006), Very sparse random projections, KDD.
    Johnson & Lindenstrauss (1984), Extensions of Lipschitz mappings into a Hilbert space.

    Examples
    --------
    >>> SparseProjection(50).fit_transform(np.ones((4, 1000))).shape
    (4, 50)
    """

    def __init__(
        self,
        n_components: int | str = "auto",
        *,
        density: float | str = "auto",
        seed: int = 0,
        eps: float = 0.1,
    ) -> None:
        self.n_components = n_components
        self.density = density
        self.seed = seed
        self.eps = eps

    def fit(self, X: Any, y: Any = None) -> Self:
        """Draw the matrix.

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_samples, n_features)
            Only its shape and dtype matter.
        y : ignored

        Raises
        ------
        ValueError
            "auto" asks for more directions than there are features; the message has both.
        """
        X = validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32))
        return self.draw(X.shape[0], X.shape[1], X.dtype)

    def draw(self, n_samples: int, n_features: int, dtype: Any = np.float32) -> Self:
        """Draw the matrix for data of this shape, which need not exist yet.

        Parameters
        ----------
        n_samples, n_features : int
        dtype : numpy dtype
        """
        blank = scipy.sparse.csr_matrix((n_samples, n_features), dtype=dtype)
        drawn = SparseRandomProjection(
            self.n_components, density=self.density, eps=self.eps, random_state=self.seed
        ).fit(blank)
        self.components_, self.n_components_ = drawn.components_, int(drawn.n_components_)
        self.density_, self.n_features_in_ = float(drawn.density_), n_features
        self._on_device: torch.Tensor | None = None
        return self

    def __sklearn_tags__(self) -> Any:
        """Say that sparse matrices are taken."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def size(self, n_samples: int) -> int:
        """Return the number of directions for so many samples."""
        if self.n_components != "auto":
            return int(self.n_components)
        return int(johnson_lindenstrauss_min_dim(n_samples, eps=self.eps))

    def transform(self, X: Any) -> np.ndarray:
        """Return the projections, shape (n_samples, n_components).

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_samples, n_features)
        """
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32), reset=False)
        projected = X @ self.components_.T
        return np.asarray(projected.toarray() if scipy.sparse.issparse(projected) else projected)

    def project(self, values: torch.Tensor) -> torch.Tensor:
        """Return the projections of a batch on its own device, shape (n_samples, n_components).

        Parameters
        ----------
        values : torch.Tensor, shape (n_samples, n_features), float32
        """
        if values.device.type != "cuda":
            return torch.from_numpy(values.cpu().numpy() @ self.components_.T)
        if self._on_device is None or self._on_device.device != values.device:
            entries = self.components_.tocoo()
            self._on_device = torch.sparse_coo_tensor(
                torch.from_numpy(np.stack([entries.row, entries.col])).long(),
                torch.from_numpy(entries.data),
                entries.shape,
                device=values.device,
                check_invariants=True,
            ).coalesce()
        return torch.sparse.mm(self._on_device, values.T).T


class Projector:
    """Projects the batches of several layers, each by a matrix drawn for its first batch.

    Layers that have no more features than the projection has directions stay as they are.

    Parameters
    ----------
    projection : SparseProjection
        Not fitted.
    n_samples : int
        How many samples there are in all, which "auto" depends on.
    """

    def __init__(self, projection: SparseProjection, n_samples: int) -> None:
        self.size, self.n_samples = projection.size(n_samples), n_samples
        self.projection = SparseProjection(
            self.size, density=projection.density, seed=projection.seed
        )
        self.n_unreduced: dict[str, int] = {}
        self._drawn: dict[str, SparseProjection | None] = {}

    @property
    def text(self) -> str:
        """What the matrices depend on besides the size of a layer."""
        return f"sparse:{self.size}, density {self.projection.density}, seed {self.projection.seed}"

    def __call__(self, layer: str, values: torch.Tensor) -> torch.Tensor:
        """Return a batch (n, n_features) of a layer as (n, size), or unchanged if that is small."""
        n_features = values.shape[1]
        if layer not in self._drawn:
            self.n_unreduced[layer] = n_features
            fresh = SparseProjection(**self.projection.get_params())
            small = n_features <= self.size
            self._drawn[layer] = None if small else fresh.draw(self.n_samples, n_features)
        matrix = self._drawn[layer]
        return values if matrix is None else matrix.project(values)


Reduction = SparseProjection | StreamedPCA | None


def parse_reduction(reduce: str | SparseProjection | StreamedPCA) -> Reduction:
    """Return the reduction that `reduce` names, not fitted, or None for "none".

    Raises
    ------
    UnknownNameError
        It names none.

    Examples
    --------
    >>> parse_reduction("sparse:5000")
    SparseProjection(n_components=5000)
    """
    if isinstance(reduce, (SparseProjection, StreamedPCA)):
        return reduce
    name, _, size = str(reduce).partition(":")
    if reduce == "none":
        return None
    if name == "sparse" and (size == "auto" or (size.isdigit() and int(size) > 0)):
        return SparseProjection("auto" if size == "auto" else int(size))
    if name == "pca" and size.isdigit() and int(size) > 0:
        return StreamedPCA(int(size))
    raise UnknownNameError(
        "`reduce` must be 'none', 'sparse:5000' or 'pca:100' (with any number), 'sparse:auto', a "
        f"SparseProjection or a StreamedPCA, but got {reduce!r}."
    )


def check_reduce_fit(
    reduction: Reduction, reduce_fit: Sequence[str] | None, stimuli: Stimuli
) -> None:
    """Raise unless PCA, and nothing else, is told which stimuli to be fitted on."""
    if not isinstance(reduction, StreamedPCA):
        if reduce_fit is not None:
            raise ValueError("`reduce_fit` is only for PCA: nothing else is fitted to stimuli.")
        return
    if reduce_fit is None:
        raise ValueError(
            "PCA of all stimuli would let the test stimuli shape the features that predict them. "
            "Put StreamedPCA into the model, cross_validate(make_pipeline(StreamedPCA(100), "
            "RidgeCV()), ...), which fits it on the training rows of each fold; or name the "
            "training stimuli, reduce_fit=ids; or use reduce='sparse:5000', which is not fitted."
        )
    unknown = [one for one in reduce_fit if one not in set(stimuli.ids)]
    if unknown or isinstance(reduce_fit, str):
        raise PairingError(
            f"`reduce_fit` must list ids of the stimuli, but {listed(unknown)} are not among them."
        )


def to_components(
    features: xr.DataArray, pca: StreamedPCA, training: Sequence[str]
) -> xr.DataArray:
    """Return components fitted on the `training` ids, of all rows."""
    rows = features.indexes["stimulus"].isin(list(training))
    fitted = StreamedPCA(**pca.get_params()).fit(features.values[rows])
    size = fitted.n_components_
    text = f"pca:{size}{' whitened' if pca.whiten else ''}, fitted on {rows.sum()} stimuli"
    return xr.DataArray(
        fitted.transform(features.values),
        dims=features.dims,
        coords={
            **{name: one for name, one in features.coords.items() if one.dims == ("stimulus",)},
            "fitted_on": ("stimulus", rows | _fitted_before(features)),
        },
        attrs={**without_layout(features).attrs, "reduce": text, "n_unreduced": features.shape[1]},
    )


def _fitted_before(features: xr.DataArray) -> np.ndarray:
    """Return which rows (n_stimuli,) something was fitted to already."""
    known = "fitted_on" in features.coords
    return features["fitted_on"].values if known else np.zeros(len(features), bool)
