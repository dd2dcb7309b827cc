"""Scores back in the volume: where the voxels lie, slices through them as pictures."""

from __future__ import annotations

import base64
import io
import math
import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from neurodl.schema import target_dim

CMAP = "viridis"
# The corners of a box around the MNI152 brain [mm], with some room.
MNI_BOX = np.array([[-100.0, -140.0, -95.0], [100.0, 110.0, 120.0]])
N_AXIAL = 6
PICTURE_WIDTH = 420


@dataclass(frozen=True)
class Picture:
    """A PNG for the page, with the words that belong to it."""

    label: str
    uri: str
    width: int
    height: int


def has_volume(scores: xr.Dataset) -> bool:
    """Return whether the targets are voxels of a known grid."""
    return (
        target_dim(scores["r"]) == "voxel"
        and all(key in scores.coords for key in "ijk")
        and {"affine", "shape"} <= set(scores.attrs)
    )


def in_mni(scores: xr.Dataset) -> bool:
    """Return whether the voxels are in MNI space: the attr says so and they lie in the brain.

    An unnamed space is not guessed from the affine: a scanner's often looks alike.
    """
    if not has_volume(scores) or not str(scores.attrs.get("space", "")).upper().startswith("MNI"):
        return False
    places = _millimetres(_ijk(scores), affine_of(scores))
    inside = ((places >= MNI_BOX[0]) & (places <= MNI_BOX[1])).all(1)
    return bool(inside.mean() >= 0.95)


def _ijk(scores: xr.Dataset) -> np.ndarray:
    return np.stack([scores[key].values for key in "ijk"], -1).astype(int)


def affine_of(scores: xr.Dataset) -> np.ndarray:
    """Return the affine from voxel indices to mm, shape (4, 4)."""
    return np.asarray(scores.attrs["affine"], float).reshape(4, 4)


def _millimetres(ijk: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return np.asarray(ijk @ affine[:3, :3].T + affine[:3, 3])


def fill_volume(values: np.ndarray, scores: xr.Dataset, outside: float = np.nan) -> np.ndarray:
    """Return values of the voxels in their grid.

    Parameters
    ----------
    values : numpy.ndarray, shape (n_voxels, ...)
    scores : xarray.Dataset
        With coords i, j, k and attr shape.
    outside : float
        What stands where there is no voxel.

    Returns
    -------
    numpy.ndarray, shape (n_i, n_j, n_k, ...)
    """
    volume = np.full((*map(int, scores.attrs["shape"]), *values.shape[1:]), outside, "float32")
    volume[tuple(_ijk(scores).T)] = values
    return volume


def colour_limit(values: np.ndarray) -> float:
    """Return the r at the top of the colour scale: the 99.5th percentile, rounded up to 0.05.

    Examples
    --------
    >>> colour_limit(np.array([0.0, 0.31, np.nan]))
    0.35
    """
    values = values[~np.isnan(values)]
    top = float(np.quantile(values, 0.995)) if len(values) else 0.0
    return max(0.1, round(math.ceil(top / 0.05 - 1e-6) * 0.05, 2))


def colours(values: np.ndarray, limit: float) -> np.ndarray:
    """Return RGBA in [0, 1] from 0 to `limit`; below 0 the lowest colour, NaN transparent."""
    from matplotlib import colormaps

    rgba = np.asarray(colormaps[CMAP](np.clip(np.nan_to_num(values) / limit, 0, 1)))
    rgba[..., 3] = ~np.isnan(values)
    return rgba


def scale_css() -> str:
    """Return the colour scale as a CSS gradient, for the bar beside the pictures."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return ", ".join(to_hex(colormaps[CMAP](x)) for x in np.linspace(0, 1, 17))


def slices(values: np.ndarray, scores: xr.Dataset, limit: float) -> list[Picture]:
    """Return pictures of slices through the voxels, coloured by `values`.

    In MNI space over the MNI152 template, cut in millimetres; else along the grid's own axes,
    with all scored and excluded voxels of the mask in grey below. Left is left.

    Parameters
    ----------
    values : numpy.ndarray, shape (n_voxels,)
        Mean r over folds; NaN = excluded.
    scores : xarray.Dataset
    limit : float
        r at the top of the colour scale.
    """
    volume = fill_volume(values, scores)
    if in_mni(scores):
        from nilearn.datasets import load_mni152_template

        template = load_mni152_template(resolution=1)
        background = np.asarray(template.dataobj, "float32")
        base = (background / background.max(), template.affine)
        layers = [base, (volume, affine_of(scores))]
        unit = "mm"
    else:
        mask = fill_volume(np.full(len(values), 0.55), scores, outside=0)
        (mask, own), (volume, _) = _along_axes(mask, scores), _along_axes(volume, scores)
        layers = [(mask, own), (volume, own)]
        unit = ""
    corners = _box(*layers[0])
    return [
        _picture(layers, corners, axis, position, limit, unit)
        for axis, position in _cuts(*layers[1], corners)
    ]


def _along_axes(volume: np.ndarray, scores: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return a volume flipped to right-anterior-superior, and an affine along its own axes.

    Without rotation and offset, so that an oblique scan is cut along its slices.
    """
    import nibabel

    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(volume, affine_of(scores)))
    steps = np.linalg.norm(image.affine[:3, :3], axis=0)
    return np.asarray(image.dataobj, "float32"), np.diag([*steps, 1.0])


def _box(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return two corners [mm] around what is not 0, with a voxel of room, shape (2, 3)."""
    filled = np.argwhere(volume > 0.05)
    ends = np.stack([filled.min(0) - 1.5, filled.max(0) + 1.5])
    ends = np.sort(_millimetres(ends, affine), axis=0)
    return np.asarray(ends)


def _cuts(volume: np.ndarray, affine: np.ndarray, corners: np.ndarray) -> list[tuple[int, float]]:
    """Return (axis, position [mm]): axial cuts through the voxels, then one sagittal, one coronal.

    The sagittal and the coronal cut go where the sum of r is highest; planes of a few voxels
    (as in a single-slice scan) are left out.
    """
    ijk = np.argwhere(~np.isnan(volume))
    if not len(ijk):
        return []
    places = np.round(_millimetres(ijk, affine), 2)
    r = volume[tuple(ijk.T)].clip(0)
    cuts = []
    for axis in (2, 0, 1):
        others = [other for other in range(3) if other != axis]
        size = (corners[1] - corners[0])[others] / np.linalg.norm(affine[:3, :3], axis=0)[others]
        if size.min() < 8:
            continue
        positions, member = np.unique(places[:, axis], return_inverse=True)
        if axis == 2:
            spread = np.quantile(places[:, 2], np.linspace(0.04, 0.96, N_AXIAL), method="nearest")
            cuts += [(2, float(position)) for position in np.unique(spread)]
        else:
            cuts.append((axis, float(positions[np.bincount(member, r).argmax()])))
    return cuts


def _picture(
    layers: list[tuple[np.ndarray, np.ndarray]],
    corners: np.ndarray,
    axis: int,
    position: float,
    limit: float,
    unit: str,
) -> Picture:
    """Return one slice: the first layer in grey, the second coloured above it."""
    across, up = (other for other in range(3) if other != axis)
    extent = corners[1] - corners[0]
    # All pictures have the same millimetres per pixel, the longest edge the full width.
    step = extent.max() / PICTURE_WIDTH
    columns = np.arange(corners[0][across], corners[1][across], step)
    rows = np.arange(corners[1][up], corners[0][up], -step)
    points = np.empty((len(rows), len(columns), 3))
    points[..., axis] = position
    points[..., across] = columns
    points[..., up] = rows[:, None]
    # A template is smooth; a mask has the voxels' edges.
    grey = _sample(*layers[0], points, order=1 if unit else 0, outside=0.0)
    shade = 0.28 + 0.5 * grey.clip(0, 1)
    shown = colours(_sample(*layers[1], points, order=0, outside=np.nan), limit)
    rgba = np.stack([shade] * 3 + [np.clip(grey / 0.12, 0, 1)], -1)
    rgba = np.where(shown[..., 3:] > 0, shown, rgba)
    name = "xyz"[axis]
    number = round(position) if unit else round(position / layers[1][1][axis, axis]) + 1
    label = f"{name} = {number} mm" if unit else f"{name} slice {number}"
    return picture(rgba, label.replace("-", "\N{MINUS SIGN}"))


def _sample(
    volume: np.ndarray, affine: np.ndarray, points: np.ndarray, *, order: int, outside: float
) -> np.ndarray:
    """Return a volume's values at points [mm], shape (..., 3)."""
    from scipy.ndimage import map_coordinates

    inverse = np.linalg.inv(affine)
    ijk = points @ inverse[:3, :3].T + inverse[:3, 3]
    values = map_coordinates(
        volume, np.moveaxis(ijk, -1, 0), order=order, mode="constant", cval=outside
    )
    return np.asarray(values)


def picture(rgba: np.ndarray, label: str) -> Picture:
    """Return an RGBA array in [0, 1], shape (height, width, 4), as a picture."""
    from PIL import Image

    buffer = io.BytesIO()
    pixels = (rgba.clip(0, 1) * 255).round().astype("uint8")
    pixels[pixels[..., 3] == 0] = 0
    Image.fromarray(pixels, "RGBA").save(buffer, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(label, uri, rgba.shape[1], rgba.shape[0])


def glass_brain(values: np.ndarray, scores: xr.Dataset, limit: float) -> Picture:
    """Return the highest r along each line of sight, drawn on nilearn's glass brain.

    Parameters
    ----------
    values : numpy.ndarray, shape (n_voxels,)
        NaN = excluded.
    scores : xarray.Dataset
        With voxels in MNI space.
    limit : float
        r at the top of the colour scale.
    """
    import nibabel
    from matplotlib.figure import Figure
    from nilearn.plotting import plot_glass_brain

    volume = np.nan_to_num(fill_volume(values, scores, outside=0)).clip(0)
    figure = Figure((8, 2.6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nilearn, about resampling
        plot_glass_brain(
            nibabel.Nifti1Image(volume, affine_of(scores)),
            display_mode="lyrz",
            figure=figure,
            cmap=CMAP,
            vmin=0,
            vmax=limit,
            symmetric_cbar=False,
            colorbar=False,
            threshold=1e-6,
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, transparent=True)
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture("left, back, right, above", uri, 1200, 390)


def volume_page(values: np.ndarray, scores: xr.Dataset, title: str) -> str:
    """Return a page to click through the volume: nilearn's viewer, which needs no network.

    Parameters
    ----------
    values : numpy.ndarray, shape (n_voxels,)
        Mean r over folds; NaN = excluded, which is shown as 0.
    scores : xarray.Dataset
    title : str
    """
    import html

    import nibabel
    from nilearn.plotting import view_img

    volume = np.nan_to_num(fill_volume(values, scores, outside=0))
    background: Any = "MNI152"
    if not in_mni(scores):
        mask = fill_volume(np.ones(len(values)), scores, outside=0)
        background = nibabel.Nifti1Image(mask, affine_of(scores))
    limit = colour_limit(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nilearn, about resampling
        view = view_img(
            nibabel.Nifti1Image(volume, affine_of(scores)),
            bg_img=background,
            cmap=CMAP,
            vmax=limit,
            symmetric_cmap=False,
            threshold=1e-6,
            title=html.escape(title),
        )
        # nilearn's page asks its site for an icon.
        return re.sub(r"<link[^>]*https?:[^>]*>", "", str(view.get_standalone()))


def map_description(scores: xr.Dataset, layer: str, backbone: str) -> dict[str, Any]:
    """Return what a statistical map's JSON sidecar says."""
    names = ("model", "cv", "groups", "seed", "n_folds", "neurodl_version", "units", "subject")
    recorded = {key: scores.attrs[key] for key in names if key in scores.attrs}
    return {
        "Description": "Cross-validated predictivity: Pearson's r between predicted and observed "
        "responses, mean over folds; NaN = excluded voxel.",
        "StatisticType": "r",
        "Layer": layer,
        "Backbone": backbone,
        **recorded,
    }
