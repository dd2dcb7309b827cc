"""Hyperalignment: responses of several subjects to the same stimuli, brought into one space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from neurodl.errors import PairingError, SchemaError, UnknownNameError
from neurodl.models._input import as_tensor
from neurodl.models.ridge import RidgeCV

METHODS = ("procrustes", "ridge")


class Hyperalignment(BaseEstimator):
    """Maps between the responses of subjects, and a space that they share.

    The common space is that of the first subject's principal components, then the mean of all
    subjects as they are mapped into it, again and again.

    Parameters
    ----------
    method : {"procrustes", "ridge"}
        Rotations, which keep distances within a subject; or ridge regression, with the penalty
        chosen by inner folds.
    n_components : int, optional
        Of the common space; by default as many as the subject with the fewest targets has, and
        at most the number of stimuli.
    n_iterations : int
        How often the common space is averaged anew.
    seed : int
        Of the inner folds of "ridge".

    Attributes
    ----------
    common_ : numpy.ndarray, shape (n_stimuli, n_components)
        The stimuli in the common space.
    maps_ : list of numpy.ndarray, shape (n_targets, n_components)
        From each subject's responses, about their mean, into the common space.
    back_ : list of numpy.ndarray, shape (n_components, n_targets)
        And from there to each subject's responses.
    means_ : list of numpy.ndarray, shape (n_targets,)

    References
    ----------
    Haxby et al. (2011), A common, high-dimensional model of the representational space in human
    ventral temporal cortex, Neuron 72.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> one = rng.standard_normal((50, 6))
    >>> turned = one @ np.linalg.qr(rng.standard_normal((6, 6)))[0]
    >>> aligned = Hyperalignment().fit([one, turned])
    >>> bool(np.allclose(aligned.predict(turned, source=1, target=0), one, atol=1e-3))
    True
    """

    def __init__(
        self,
        method: str = "procrustes",
        *,
        n_components: int | None = None,
        n_iterations: int = 3,
        seed: int = 0,
    ) -> None:
        self.method = method
        self.n_components = n_components
        self.n_iterations = n_iterations
        self.seed = seed

    def fit(self, responses: Sequence[Any], y: Any = None) -> Hyperalignment:
        """Find the common space.

        Parameters
        ----------
        responses : sequence of array-like, shape (n_stimuli, n_targets)
            Of each subject, row by row to the same stimuli.
        y : ignored

        Raises
        ------
        PairingError
            The numbers of stimuli differ.
        SchemaError
            There are fewer than two subjects, or values are missing.
        UnknownNameError
            There is no such method.
        """
        if self.method not in METHODS:
            raise UnknownNameError(f"`method` must be one of {METHODS}, but got {self.method!r}.")
        own = [_rows(one) for one in responses]
        if len(own) < 2:
            raise SchemaError("Alignment needs the responses of at least two subjects.")
        if len({len(one) for one in own}) > 1:
            raise PairingError(
                f"The subjects have {[len(one) for one in own]} stimuli; alignment needs responses "
                "to the same stimuli, row by row."
            )
        self.means_ = [one.mean(0) for one in own]
        centred = [one - mean for one, mean in zip(own, self.means_, strict=True)]
        most = min(len(own[0]) - 1, *(one.shape[1] for one in own))
        size = most if self.n_components is None else self.n_components
        if not 1 <= size <= most:
            raise SchemaError(f"`n_components` must be from 1 to {most}, but got {size}.")
        left, values, _ = np.linalg.svd(centred[0], full_matrices=False)
        common = left[:, :size] * values[:size]
        for _ in range(self.n_iterations):
            self.maps_ = [self._map(one, common) for one in centred]
            mapped = [one @ into for one, into in zip(centred, self.maps_, strict=True)]
            common = np.mean(mapped, 0)
        self.common_ = common
        self.back_ = [self._map(common, one) for one in centred]
        return self

    def transform(self, responses: Any, subject: int) -> np.ndarray:
        """Return responses of a subject in the common space, (n_stimuli, n_components)."""
        check_is_fitted(self, "common_")
        return (_rows(responses) - self.means_[subject]) @ self.maps_[subject]

    def predict(self, responses: Any, source: int, target: int) -> np.ndarray:
        """Return what one subject's responses tell of another's, (n_stimuli, n_targets).

        Parameters
        ----------
        responses : array-like, shape (n_stimuli, n_source_targets)
        source, target : int
            The subjects' places in what was fitted.
        """
        common = self.transform(responses, source)
        return common @ self.back_[target] + self.means_[target]

    def _map(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return the map (n_source, n_target) that takes one side, about its mean, to the other."""
        if self.method == "ridge":
            fitted = RidgeCV(seed=self.seed, device="cpu", standardize=False).fit(source, target)
            return np.asarray(fitted.coef_).T
        left, _, right = np.linalg.svd(source.T @ target, full_matrices=False)
        return left @ right


def _rows(responses: Any) -> np.ndarray:
    rows = as_tensor(getattr(responses, "values", responses), torch.device("cpu")).double().numpy()
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise SchemaError(
            "Alignment needs responses of shape (n_stimuli, n_targets) without missing values, "
            f"but got {rows.shape}."
        )
    return rows
