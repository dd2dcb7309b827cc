"""Representational similarity in searchlights, and of what encoding models predict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from scipy.spatial import cKDTree

from neurodl.errors import PairingError, SchemaError
from neurodl.schema import target_coords, target_dim
from neurodl.scores.geometry import rdms_of
from neurodl.scores.paired import roi_masks
from neurodl.scores.rdm_pairs import check_method, check_rdms, pairs_of, similarities
from neurodl.scores.rdms import rdm
from neurodl.scores.resampling import Tested

AT_ONCE = 256  # searchlights, of which RDMs are held
MIN_TARGETS = 5  # of a searchlight or region


def searchlight_rsa(
    models: Mapping[str, xr.DataArray] | xr.DataArray,
    responses: xr.DataArray,
    radius: float = 8.0,
    *,
    metric: str = "correlation",
    method: str = "spearman",
    device: Any = "auto",
) -> xr.Dataset:
    """Return how alike the geometry of layers and of the voxels around each voxel is.

    Parameters
    ----------
    models : mapping of layer to xarray.DataArray, or one array
        Features or RDMs.
    responses : xarray.DataArray, dims (stimulus, voxel)
        With the coords x, y and z [mm].
    radius : float
        Of the sphere around each voxel [mm].
    metric, method, device
        See `rsa`.

    Returns
    -------
    xarray.Dataset, dims (layer, voxel)
        ``similarity``, NaN where a sphere has fewer than 5 voxels; ``n_voxels`` (voxel,); with
        the coords of the responses, for `to_image`.

    Raises
    ------
    SchemaError
        It is not known where the voxels lie.

    References
    ----------
    Kriegeskorte, Goebel & Bandettini (2006), Information-based functional brain mapping, PNAS 103.
    """
    target = target_dim(responses)
    if not {"x", "y", "z"} <= set(responses.coords):
        raise SchemaError(
            "searchlight_rsa needs the coords x, y and z [mm] of the responses, as NIfTI files "
            "give them."
        )
    known = rdms_of(models, metric, device)
    example = rdm(responses, metric, device=device)
    for one in known.values():
        check_rdms(one, example)
    ids = np.asarray(example["stimulus"].values).astype(str)
    check_method(method)
    vectors = np.stack([pairs_of(one, ids).values for one in known.values()])
    places = np.stack([responses[axis].values for axis in "xyz"], 1).astype(float)
    spheres = cKDTree(places).query_ball_point(places, radius)
    sizes = np.array([len(sphere) for sphere in spheres])
    found = np.full((len(vectors), len(spheres)), np.nan)
    for start in range(0, len(spheres), AT_ONCE):
        numbers = [
            number
            for number in range(start, min(start + AT_ONCE, len(spheres)))
            if sizes[number] >= MIN_TARGETS
        ]
        if not numbers:
            continue
        own = [
            pairs_of(rdm(responses.isel({target: spheres[number]}), metric, device=device), ids)
            for number in numbers
        ]
        found[:, numbers] = similarities(vectors, np.stack([one.values for one in own]), method)
    coords = target_coords(responses)
    return xr.Dataset(
        {"similarity": (("layer", target), found), "n_voxels": (target, sizes)},
        {"layer": list(known), **coords},
        {
            **{
                k: v
                for k, v in responses.attrs.items()
                if k in ("affine", "shape", "space", "subject")
            },
            "metric": metric,
            "method": method,
            "radius": radius,
        },
    )


def encoding_rsa(
    scores: xr.Dataset, *, metric: str = "correlation", method: str = "spearman"
) -> xr.DataArray:
    """Return how alike the geometry of predicted and of recorded responses is (veRSA).

    The features are first weighed by an encoding model, and RDMs are those of its predictions of
    test stimuli, over the targets of each region, fold by fold.

    Parameters
    ----------
    scores : xarray.Dataset
        Of ``cross_validate(..., keep_predictions=True)``.
    metric, method
        See `rsa`.

    Returns
    -------
    xarray.DataArray, dims (layer, fold, roi_name)
        NaN for regions of fewer than 5 targets.

    Raises
    ------
    SchemaError
        There are no predictions, or a fold tests fewer than 4 stimuli.

    References
    ----------
    Kaniuth & Hebart (2022), Feature-reweighted representational similarity analysis, NeuroImage
    257.
    Conwell et al. (2024), A large-scale examination of inductive biases shaping high-level visual
    representation in brains and machines, Nature Communications 15.
    """
    check_method(method)
    tested = Tested(scores)
    ids = tested.ids
    if ids is None:
        raise SchemaError("encoding_rsa needs scores of stimuli, but these are of a time series.")
    if min(map(len, tested.rows)) < 4:
        raise SchemaError("RDMs of fewer than 4 test stimuli say nothing: use fewer folds.")
    if any(len(set(ids[rows])) < len(rows) for rows in tested.rows):
        raise PairingError(
            "The scores are of single presentations: average repeats first (average_repeats)."
        )
    target = tested.target
    names = scores["roi"].values if "roi" in scores.coords else None
    scored = np.isfinite(scores["r"].values).all((0, 1))
    masks = {roi: mask & scored for roi, mask in roi_masks(names, scores.sizes[target]).items()}
    predicted = scores["predicted"].values
    found = np.full((len(predicted), len(tested.rows), len(masks)), np.nan)
    for fold, rows in enumerate(tested.rows):
        for number, mask in enumerate(masks.values()):
            if mask.sum() < MIN_TARGETS:
                continue
            truth = _pairs(tested.observed[rows][:, mask], ids[rows], metric)
            mine = [_pairs(values[rows][:, mask], ids[rows], metric) for values in predicted]
            found[:, fold, number] = similarities(np.stack(mine), truth[None], method)[:, 0]
    return xr.DataArray(
        found,
        {"layer": scores["layer"].values, "fold": scores["fold"].values, "roi_name": list(masks)},
        ("layer", "fold", "roi_name"),
        attrs={"metric": metric, "method": method},
    )


def _pairs(values: np.ndarray, ids: np.ndarray, metric: str) -> np.ndarray:
    """Return the pairs (n_pairs,) of the RDM of values (n_stimuli, n_targets)."""
    array = xr.DataArray(values, {"stimulus": ids}, ("stimulus", "voxel"))
    return np.asarray(pairs_of(rdm(array, metric, device="cpu"), ids).values)
