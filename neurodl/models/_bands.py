"""Bands: which features belong together, as one layer, model or kind of stimulus description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

Columns = slice | torch.Tensor


def band_columns(bands: Any, n_features: int) -> dict[str, Columns]:
    """Return the columns of each band, in the order in which bands first appear.

    Parameters
    ----------
    bands : mapping of str to int, array-like of labels with shape (n_features,), or None
        The number of features of each band, which stand side by side; or the band of each
        feature; None is a single band.
    n_features : int

    Raises
    ------
    ValueError
        The bands do not account for all features.

    Examples
    --------
    >>> band_columns({"gabor": 3, "layer4": 2}, 5)
    {'gabor': slice(0, 3, None), 'layer4': slice(3, 5, None)}
    """
    if bands is None:
        return {"all": slice(0, n_features)}
    if isinstance(bands, Mapping):
        return _by_size({str(name): int(size) for name, size in bands.items()}, n_features)
    labels = np.asarray(bands)
    if labels.shape != (n_features,):
        raise ValueError(
            f"`bands` must map names to numbers of features, or have one label for each of the "
            f"{n_features} features, but got shape {labels.shape}."
        )
    found: dict[str, Columns] = {}
    for label in dict.fromkeys(labels.tolist()):
        places = np.flatnonzero(labels == label)
        together = places[-1] - places[0] + 1 == len(places)
        found[str(label)] = (
            slice(int(places[0]), int(places[-1]) + 1) if together else torch.from_numpy(places)
        )
    return found


def _by_size(sizes: dict[str, int], n_features: int) -> dict[str, Columns]:
    if not sizes or min(sizes.values()) < 1 or sum(sizes.values()) != n_features:
        raise ValueError(
            f"`bands` must have a positive number of features for each band, {n_features} in all, "
            f"but got {sizes}."
        )
    ends = np.cumsum(list(sizes.values())).tolist()
    return {
        name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)
    }
