"""Scores on the cortex: from the voxels to fsaverage5, as pictures and as a model to turn.

The surfaces ship with nilearn, nothing is downloaded.
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from neurodl.reports.brain import Picture, affine_of, colours, fill_volume, picture

HEMISPHERES = ("left", "right")
# A vertex shows a value if at least this share of what lies around it is voxels with a score.
MIN_SHARE = 0.25
MAPS_AT_ONCE = 8
# Name, hemispheres, and which way is right, up and towards the eye.
VIEWS = (
    ("left, from outside", ("left",), ((0, -1, 0), (0, 0, 1), (-1, 0, 0))),
    ("right, from outside", ("right",), ((0, 1, 0), (0, 0, 1), (1, 0, 0))),
    ("left, from inside", ("left",), ((0, 1, 0), (0, 0, 1), (1, 0, 0))),
    ("right, from inside", ("right",), ((0, -1, 0), (0, 0, 1), (-1, 0, 0))),
    ("both, from behind", HEMISPHERES, ((1, 0, 0), (0, 0, 1), (0, -1, 0))),
    ("both, from below", HEMISPHERES, ((-1, 0, 0), (0, 1, 0), (0, 0, -1))),
)
# Seen from outside, the left hemisphere's front is on the left.
FLAT = tuple((side, (side,), ((1, 0, 0), (0, 1, 0), (0, 0, 1))) for side in HEMISPHERES)
GAP = 6.0
WIDTH, OVERSAMPLED = 560, 2  # pixels of a picture, and how much larger it is painted
OUTLINE = (16, 20, 26, 255)


def project(columns: np.ndarray, scores: xr.Dataset) -> dict[str, np.ndarray]:
    """Return values on the vertices of fsaverage5, averaged between white matter and pia.

    Voxels without a value do not dilute their neighbours: the values' average is divided by
    that of the mask.

    Parameters
    ----------
    columns : numpy.ndarray, shape (n_voxels, n_maps)
        NaN = excluded.
    scores : xarray.Dataset
        With voxels in MNI space.

    Returns
    -------
    dict
        "left", "right": numpy.ndarray, shape (10242, n_maps), NaN away from the voxels.
    """
    import nibabel
    from nilearn.datasets import load_fsaverage
    from nilearn.surface import vol_to_surf

    meshes = load_fsaverage("fsaverage5")
    parts: dict[str, list[np.ndarray]] = {side: [] for side in HEMISPHERES}
    for start in range(0, columns.shape[1], MAPS_AT_ONCE):
        chunk = columns[:, start : start + MAPS_AT_ONCE]
        known = ~np.isnan(chunk)
        weighted = np.concatenate([np.where(known, chunk, 0), known], 1)
        image = nibabel.Nifti1Image(fill_volume(weighted, scores, outside=0), affine_of(scores))
        for side in HEMISPHERES:
            pial, white = (meshes[key].parts[side] for key in ("pial", "white_matter"))
            with warnings.catch_warnings():
                # vertices outside the volume have nothing to average; they become 0 here
                warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
                sampled = np.nan_to_num(vol_to_surf(image, pial, inner_mesh=white))
            total, share = np.split(sampled, 2, axis=1)
            values = np.where(share >= MIN_SHARE, total / np.maximum(share, 1e-6), np.nan)
            parts[side].append(values)
    return {side: np.concatenate(found, 1) for side, found in parts.items()}


def cortex(shape: str = "inflated") -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return per hemisphere: coordinates (n, 3) [mm], faces (m, 3) and how deep a sulcus is (n,).

    Depth runs from 0 (gyrus) to 1 (sulcus).

    Parameters
    ----------
    shape : {"inflated", "flat"}
    """
    from nilearn.datasets import load_fsaverage, load_fsaverage_data

    mesh = load_fsaverage("fsaverage5")[shape]
    depth = load_fsaverage_data("fsaverage5", data_type="sulcal").data.parts
    hemispheres = {}
    for side in HEMISPHERES:
        coordinates = np.array(mesh.parts[side].coordinates, float)
        # Inflated hemispheres overlap in the middle: set them side by side.
        edge = coordinates[:, 0].max() if side == "left" else coordinates[:, 0].min()
        if shape == "inflated":
            coordinates[:, 0] += (-GAP if side == "left" else GAP) / 2 - edge
        faces = np.asarray(mesh.parts[side].faces, int)
        shown = np.clip(np.asarray(depth[side], float) + 0.5, 0, 1)
        hemispheres[side] = (coordinates, faces, shown)
    return hemispheres


def surface_pictures(
    values: Mapping[str, np.ndarray],
    limit: float,
    rois: Mapping[str, np.ndarray] | None = None,
    shape: str = "inflated",
) -> list[Picture]:
    """Return pictures of the hemispheres, inflated and from several sides, or flat.

    Parameters
    ----------
    values : mapping of hemisphere to numpy.ndarray, shape (n_vertices,)
    limit : float
        r at the top of the colour scale.
    rois : mapping of hemisphere to numpy.ndarray of int, shape (n_vertices,), optional
        Of `project_rois`: outlined.
    shape : {"inflated", "flat"}
    """
    finer, outlines = {}, {}
    for side, (coordinates, faces, depth) in cortex(shape).items():
        finer[side] = _finer(coordinates, faces, np.column_stack([depth, values[side]]))
        labels = np.zeros(len(coordinates), int) if rois is None else rois[side]
        outlines[side] = _outlines(coordinates, faces, labels)
    pictures = []
    for label, sides, axes in VIEWS if shape == "inflated" else FLAT:
        points = np.concatenate([finer[side][0] for side in sides]) @ np.array(axes, float).T
        starts = np.cumsum([0] + [len(finer[side][0]) for side in sides])
        faces = np.concatenate([finer[side][1] + n for side, n in zip(sides, starts, strict=False)])
        extra = np.concatenate([finer[side][2] for side in sides])
        turned = np.array(axes, float).T
        lines, facing = (
            np.concatenate([outlines[side][part] @ turned for side in sides]) for part in (0, 1)
        )
        pictures.append(_render(label, points, faces, extra, limit, lines[facing[:, 2] > 0]))
    return pictures


def _outlines(
    coordinates: np.ndarray, faces: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the borders between labels: segments (n, 2, 3), and where each faces (n, 3)."""
    normals = np.cross(
        coordinates[faces[:, 1]] - coordinates[faces[:, 0]],
        coordinates[faces[:, 2]] - coordinates[faces[:, 0]],
    )
    edges = np.stack([faces, np.roll(faces, -1, axis=1)], -1)
    crossed = labels[edges[..., 0]] != labels[edges[..., 1]]
    middles = coordinates[edges].mean(2)
    two = crossed.sum(1) == 2
    ends = middles[two][crossed[two]].reshape(-1, 2, 3)
    three = crossed.sum(1) == 3
    centre = np.repeat(middles[three].mean(1), 3, axis=0)
    spokes = np.stack([middles[three].reshape(-1, 3), centre], 1)
    return (
        np.concatenate([ends, spokes]),
        np.concatenate([normals[two], np.repeat(normals[three], 3, axis=0)]),
    )


def _finer(
    coordinates: np.ndarray, faces: np.ndarray, extra: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mesh with every triangle cut into four, values interpolated."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    unique, inverse = np.unique(edges, axis=0, return_inverse=True)
    ab, bc, ca = len(coordinates) + inverse.ravel().reshape(3, -1)
    a, b, c = faces.T
    faces = np.concatenate(
        [np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
    )
    return (
        np.concatenate([coordinates, coordinates[unique].mean(1)]),
        faces,
        np.concatenate([extra, extra[unique].mean(1)]),
    )


def _render(
    label: str,
    points: np.ndarray,
    faces: np.ndarray,
    extra: np.ndarray,
    limit: float,
    lines: np.ndarray,
) -> Picture:
    """Draw triangles from back to front; points are (right, up, towards the eye)."""
    corners = points[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    # fsaverage's triangles turn counter-clockwise seen from outside: the others face away.
    front = np.flatnonzero(normals[:, 2] > 0)
    front = front[np.argsort(corners[front][:, :, 2].mean(1))]
    light = np.array([0.15, 0.35, 0.92])
    shade = (normals[front] @ light).clip(0, 1)
    depth, value = np.moveaxis(extra[faces[front]].mean(1), -1, 0)
    grey = (0.86 - 0.24 * depth) * (0.5 + 0.5 * shade)
    shown = colours(value, limit)
    rgb = np.where(shown[:, 3:] > 0, shown[:, :3] * (0.72 + 0.28 * shade[:, None]), grey[:, None])
    return picture(_rasterise(corners[front][:, :, :2], rgb, lines[..., :2]), label)


def _rasterise(triangles: np.ndarray, rgb: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Return triangles (n, 3, 2) painted in their order, with lines (m, 2, 2) above them.

    Shape (height, width, 4).
    """
    from PIL import Image, ImageDraw

    low, high = triangles.min((0, 1)) - 1, triangles.max((0, 1)) + 1
    scale = OVERSAMPLED * WIDTH / (high - low)[0]
    size = OVERSAMPLED * WIDTH, OVERSAMPLED * round((high - low)[1] * scale / OVERSAMPLED)
    image = Image.new("RGBA", size)
    draw = ImageDraw.Draw(image)

    def placed(points: np.ndarray) -> np.ndarray:
        """Return a row per shape: x, y of its corners [pixels], down from the upper left."""
        flipped = (points - (low[0], high[1])) * (scale, -scale)
        return flipped.reshape(len(points), 2 * points.shape[1])

    inks = np.pad((rgb.clip(0, 1) * 255).round().astype(int), ((0, 0), (0, 1)), constant_values=255)
    for triangle, ink in zip(placed(triangles), inks, strict=True):
        draw.polygon(triangle.tolist(), tuple(ink.tolist()))
    for line in placed(lines):
        draw.line(line.tolist(), OUTLINE, width=OVERSAMPLED + 1)
    # Painted large, then made small: smooth edges, and no seams between triangles.
    image = image.convert("RGBa").reduce(OVERSAMPLED)
    return np.asarray(image.convert("RGBA")) / 255


def viewer(
    maps: Mapping[str, np.ndarray],
    names: Sequence[str],
    limit: float,
    rois: Mapping[str, np.ndarray] | None = None,
    roi_colours: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what the page needs to draw a brain that can be turned, as plain JSON.

    Parameters
    ----------
    maps : mapping of hemisphere to numpy.ndarray, shape (n_vertices, n_maps)
    names : sequence of str
        What each map is called.
    limit : float
        r at the top of the colour scale.
    rois : mapping of hemisphere to numpy.ndarray of int, shape (n_vertices,), optional
        Index into `roi_colours` + 1; 0 = none.
    roi_colours : mapping, optional
        Colour by ROI name.
    """
    from matplotlib import colormaps

    from neurodl.reports.brain import CMAP

    hemispheres = []
    surfaces = cortex()
    centre = np.concatenate([surface[0] for surface in surfaces.values()])
    centre = (centre.min(0) + centre.max(0)) / 2
    for side, (coordinates, faces, depth) in surfaces.items():
        hemispheres.append(
            {
                "points": _packed(np.round((coordinates - centre) * 100), "<i2"),
                "faces": _packed(faces, "<u2"),
                "depth": _packed(np.round(depth * 255), "u1"),
                # 0 = no value, 1 ... 255 from r = 0 to the limit.
                "maps": [_packed(_bytes(column, limit), "u1") for column in maps[side].T],
                "rois": _packed(rois[side], "u1") if rois else "",
            }
        )
    table = (np.asarray(colormaps[CMAP](np.linspace(0, 1, 255)))[:, :3] * 255).round()
    return {
        "hemispheres": hemispheres,
        "names": list(names),
        "limit": limit,
        "colours": table.astype(int).ravel().tolist(),
        "rois": [{"name": n, "colour": c} for n, c in (roi_colours or {}).items()] if rois else [],
    }


def _bytes(values: np.ndarray, limit: float) -> np.ndarray:
    scaled = 1 + np.round(np.clip(np.nan_to_num(values) / limit, 0, 1) * 254)
    return np.where(np.isnan(values), 0, scaled)


def _packed(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values.astype(dtype)).tobytes()).decode()


def project_rois(members: Mapping[str, np.ndarray], scores: xr.Dataset) -> dict[str, np.ndarray]:
    """Return which ROI each vertex belongs to: index in `members` + 1, 0 = none.

    Parameters
    ----------
    members : mapping of ROI name to voxel indices
    scores : xarray.Dataset
    """
    n_voxels = scores.sizes["voxel"]
    columns = np.zeros((n_voxels, len(members)), "float32")
    for index, rows in enumerate(members.values()):
        columns[rows, index] = 1
    shares = project(columns, scores)
    return {
        side: np.where(np.nan_to_num(share).max(1) >= 0.5, np.nan_to_num(share).argmax(1) + 1, 0)
        for side, share in shares.items()
    }
