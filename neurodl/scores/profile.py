"""Where along a network a region is predicted best: layer profiles and their centre of mass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from neurodl.errors import PairingError, SchemaError
from neurodl.runtime import derive_seed
from neurodl.schema import check_scores, target_coords, target_dim
from neurodl.scores.paired import LEVELS, roi_masks

MIN_LAYERS = 3


def layer_profile(
    scores: xr.Dataset | Sequence[xr.Dataset],
    *,
    layers: Sequence[str] | None = None,
    metric: str = "r",
    n_resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Return the score of each layer by region, and its centre of mass, with intervals.

    The centre of mass is the mean position of the layers, weighted by their scores above 0: it
    uses all layers, where the best one jumps between neighbours. Position 0 is the first layer, 1
    the last.

    Parameters
    ----------
    scores : xarray.Dataset, or sequence of them
        Of layers from input to output. Of one subject, targets are resampled; of several, subjects
        are, each with its mean over the targets of a region.
    layers : sequence of str, optional
        The layers of one network, in its order; all by default.
    metric : str
        Such as "r" or "r_normalized".
    n_resamples : int
    seed : int

    Returns
    -------
    xarray.Dataset
        ``profile``, ``profile_low`` and ``profile_high`` (roi_name, layer); ``centre``,
        ``centre_low`` and ``centre_high`` (roi_name,), in [0, 1]; ``best_share`` (roi_name,
        layer), how often each layer was the best one; and of one subject ``target_centre``
        (target,). NaN where nothing is predicted above 0.

    Raises
    ------
    SchemaError, PairingError
        There are fewer than 3 layers, or subjects have others.

    References
    ----------
    Guclu & van Gerven (2015), Deep neural networks reveal a gradient in the complexity of neural
    representations across the ventral stream, J. Neurosci. 35.
    """
    alone = isinstance(scores, xr.Dataset)
    several = [scores] if isinstance(scores, xr.Dataset) else list(scores)
    if not several:
        raise SchemaError("layer_profile needs scores.")
    for one in several:
        check_scores(one)
        if metric not in one:
            raise SchemaError(f"The scores have no {metric!r}.")
    chosen = several[0]["layer"].values.tolist() if layers is None else list(layers)
    if len(chosen) < MIN_LAYERS:
        raise SchemaError(
            f"A profile needs at least {MIN_LAYERS} layers, from input to output, but got "
            f"{len(chosen)}."
        )
    for number, one in enumerate(several):
        lacking = set(chosen) - set(one["layer"].values.tolist())
        if lacking:
            raise PairingError(f"Subject {number} has no scores of the layers {sorted(lacking)}.")
    means = [one[metric].sel(layer=chosen).mean("fold").values for one in several]
    masks = [
        roi_masks(one["roi"].values if "roi" in one.coords else None, mean.shape[1])
        for one, mean in zip(several, means, strict=True)
    ]
    rois = list(dict.fromkeys(roi for own in masks for roi in own))
    found = {name: np.full((len(rois), len(chosen)), np.nan) for name in PROFILE}
    centres = np.full((3, len(rois)), np.nan)
    for row, roi in enumerate(rois):
        # What is resampled: (n_units, n_layers), targets or subjects.
        units = (
            means[0][:, masks[0][roi]].T
            if alone
            else np.stack(
                [
                    _mean(mean[:, own[roi]])
                    for mean, own in zip(means, masks, strict=True)
                    if roi in own
                ]
            )
        )
        units = units[np.isfinite(units).all(1)]
        if not len(units):
            continue
        drawn = _drawn_means(units, n_resamples, derive_seed(seed, "profile", roi))
        found["profile"][row] = units.mean(0)
        found["profile_low"][row], found["profile_high"][row] = np.percentile(drawn, LEVELS, 0)
        best = np.bincount(drawn.argmax(1), minlength=len(chosen))
        found["best_share"][row] = best / n_resamples
        centres[0, row] = centre_of_mass(units.mean(0)[None])[0]
        of_drawn = centre_of_mass(drawn)
        if np.isfinite(of_drawn).any():
            centres[1:, row] = np.nanpercentile(of_drawn, LEVELS)
    data: dict[str, Any] = {name: (("roi_name", "layer"), values) for name, values in found.items()}
    names = ("centre", "centre_low", "centre_high")
    data |= {name: ("roi_name", values) for name, values in zip(names, centres, strict=True)}
    coords: dict[str, Any] = {"roi_name": rois, "layer": chosen}
    if alone:
        target = target_dim(several[0]["r"])
        data["target_centre"] = (target, centre_of_mass(means[0].T))
        coords |= target_coords(several[0])
    over = "targets" if alone else "subjects"
    return xr.Dataset(
        data, coords, {"metric": metric, "over": over, "n_resamples": n_resamples, "seed": seed}
    )


PROFILE = ("profile", "profile_low", "profile_high", "best_share")


def centre_of_mass(profiles: np.ndarray) -> np.ndarray:
    """Return the mean position of layers (n,), weighted by scores (n, n_layers) above 0.

    Examples
    --------
    >>> centre_of_mass(np.array([[0.0, 0.5, 0.0], [0.0, 0.1, 0.1], [-1.0, -1.0, -1.0]]))
    array([0.5 , 0.75,  nan])
    """
    weights = np.clip(profiles, 0, None)
    position = np.linspace(0, 1, profiles.shape[1])
    total = weights.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, weights @ position / total, np.nan)


def _drawn_means(units: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return means (n, n_layers) of units (n_units, n_layers), drawn with replacement."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(units), np.full(len(units), 1 / len(units)), size=n)
    return counts @ units / len(units)


def _mean(values: np.ndarray) -> np.ndarray:
    """Return means (n_layers,) of targets that every layer has a score of."""
    known = np.isfinite(values).all(0)
    return values[:, known].mean(1) if known.any() else np.full(len(values), np.nan)
