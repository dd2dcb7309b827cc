"""Where the simulated voxels lie: visual areas in the grey matter of the MNI152 brain."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import xarray as xr

from neurodl.errors import UnknownNameError, did_you_mean

RESOLUTION = 3  # mm
SPACE = "MNI152"
FIELD_RADIUS = 8.0  # degrees of visual angle from fixation to the edge of the images


@dataclass(frozen=True)
class Area:
    """A visual area: where it lies in both hemispheres, and what part of the image it sees.

    Parameters
    ----------
    path : tuple of (x, y, z)
        MNI coordinates [mm] that the area follows in the right hemisphere, from the part that
        sees the fixation point outwards.
    n_voxels : int
        In both hemispheres together.
    field : {"both", "upper", "lower"}
        The part of the visual field that is seen.
    size : (float, float)
        Standard deviation of the receptive field at the fixation point [deg], and how much it
        grows per degree of eccentricity.
    """

    path: tuple[tuple[float, float, float], ...]
    n_voxels: int
    field: str
    size: tuple[float, float]


# V1 lies in the calcarine sulcus with the fixation point at the occipital pole; V2 surrounds it,
# the lower field above and the upper below. Field sizes grow from area to area, as measured by
# Dumoulin & Wandell (2008), NeuroImage 39, and Kay et al. (2013), J Neurophysiol 110.
AREAS: dict[str, tuple[Area, ...]] = {
    "V1": (
        Area(((10, -98, -2), (10, -88, 2), (12, -78, 6), (14, -68, 8)), 200, "both", (0.5, 0.1)),
    ),
    "V2": (
        Area(((16, -97, 10), (12, -90, 20), (12, -80, 24)), 76, "lower", (0.7, 0.16)),
        Area(((18, -94, -12), (12, -84, -10), (12, -74, -6)), 76, "upper", (0.7, 0.16)),
    ),
    "V4": (Area(((30, -86, -12), (28, -78, -14), (26, -68, -12)), 130, "both", (1.1, 0.32)),),
    "LOC": (
        Area(((42, -80, -2), (46, -74, -6)), 70, "both", (2.0, 0.5)),
        Area(((42, -64, -16), (40, -52, -18)), 60, "both", (2.0, 0.5)),
    ),
    "noise": (Area(((54, -50, 18), (50, -58, 24)), 80, "both", (0.0, 0.0)),),
}
NOISE = "noise"


def area_voxels(areas: dict[str, tuple[Area, ...]] | None = None) -> xr.Dataset:
    """Place the voxels of each area in the grey matter of the MNI152 brain.

    Voxels are those nearest to the area's path, in the grey matter of the template that nilearn
    ships, at 3 mm. A voxel that sees the left half of the image lies in the right hemisphere, and
    the lower field lies above the upper one.

    Parameters
    ----------
    areas : mapping of str to tuple of Area, optional
        `AREAS` by default.

    Returns
    -------
    xarray.Dataset
        Dim voxel, in C order of the grid. Coords roi, i, j, k, x, y, z [mm]; variables field_x
        (right is positive), field_y (up is positive) and field_size: centre and standard
        deviation of the receptive field [deg], NaN where there is none. Attrs affine, shape, space.
    """
    grey, affine = _grey_matter()
    ijk = np.argwhere(grey)
    xyz = nib.affines.apply_affine(affine, ijk)
    free = np.ones(len(ijk), bool)
    parts = []
    for roi, patches in (AREAS if areas is None else areas).items():
        for area in patches:
            for side in (-1, 1):
                chosen, along, above = _nearest(xyz, free, area, side)
                free[chosen] = False
                field = _receptive_fields(area, side, along, above)
                parts.append(pd.DataFrame({"row": chosen, "roi": roi, **field}))
    table = pd.concat(parts).sort_values("row")
    rows = table["row"].to_numpy()
    coords: dict[str, Any] = {name: ("voxel", ijk[rows, axis]) for axis, name in enumerate("ijk")}
    coords |= {name: ("voxel", xyz[rows, axis]) for axis, name in enumerate("xyz")}
    coords["roi"] = ("voxel", table["roi"].to_numpy(str))
    names = ("field_x", "field_y", "field_size")
    return xr.Dataset(
        {name: ("voxel", table[name].to_numpy()) for name in names},
        coords=coords,
        attrs={
            "affine": [float(number) for number in affine.ravel()],
            "shape": [int(length) for length in grey.shape],
            "space": SPACE,
        },
    )


def brain(kind: str = "mask") -> tuple[np.ndarray, np.ndarray]:
    """Return the MNI152 brain mask, or the T1 template, and its affine.

    Parameters
    ----------
    kind : {"mask", "template"}

    Returns
    -------
    values : numpy.ndarray, shape (67, 79, 64)
    affine : numpy.ndarray, shape (4, 4)
    """
    from nilearn import datasets

    kinds = {"mask": datasets.load_mni152_brain_mask, "template": datasets.load_mni152_template}
    if kind not in kinds:
        raise UnknownNameError(f"There is no {kind!r} of the brain. {did_you_mean(kind, kinds)}")
    image = kinds[kind](resolution=RESOLUTION)
    return np.asarray(image.dataobj), np.asarray(image.affine)


@lru_cache(maxsize=1)
def _grey_matter() -> tuple[np.ndarray, np.ndarray]:
    """Return where the template is mostly grey matter, within the brain, and its affine."""
    from nilearn.datasets import load_mni152_gm_template

    image = load_mni152_gm_template(resolution=RESOLUTION)
    grey = np.asarray(image.dataobj, np.float32)
    inside, affine = brain("mask")
    matter = (grey > 0.45 * grey.max()) & (inside > 0)
    matter.flags.writeable = False
    return matter, affine


def _nearest(
    xyz: np.ndarray, free: np.ndarray, area: Area, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the voxels of one hemisphere nearest to the path, and where along and above it."""
    path = np.array(area.path) * [side, 1, 1]
    start, step = path[:-1], np.diff(path, axis=0)
    length = np.linalg.norm(step, axis=1)
    share = np.einsum("vsa,sa->vs", xyz[:, None] - start, step) / length**2
    foot = start + np.clip(share, 0, 1)[..., None] * step
    distance = np.linalg.norm(xyz[:, None] - foot, axis=2)
    segment = distance.argmin(1)
    voxel = np.arange(len(xyz))
    usable = free & (xyz[:, 0] * side > 1)
    order = np.argsort(np.where(usable, distance.min(1), np.inf), kind="stable")
    chosen = order[: area.n_voxels // 2]
    before = np.concatenate([[0], np.cumsum(length)])[segment]
    along = before + share[voxel, segment] * length[segment]
    above = xyz[:, 2] - foot[voxel, segment, 2]
    return chosen, along[chosen], above[chosen]


def _receptive_fields(
    area: Area, side: int, along: np.ndarray, above: np.ndarray
) -> dict[str, np.ndarray]:
    """Return centres and sizes [deg] of the fields of one hemisphere's voxels.

    Cortical magnification: eccentricity grows exponentially along the area. What lies higher sees
    lower, and the left half of the field is seen by the right hemisphere.
    """
    if not area.size[0]:
        return {name: np.full(len(along), np.nan) for name in ("field_x", "field_y", "field_size")}
    outwards, upwards = (
        (np.argsort(np.argsort(values)) + 0.5) / len(values) for values in (along, above)
    )
    eccentricity = 0.8 * (np.exp(outwards * np.log(1 + 0.9 * FIELD_RADIUS / 0.8)) - 1)
    top, bottom = {"both": (80, -80), "upper": (85, 5), "lower": (-5, -85)}[area.field]
    angle = np.deg2rad(top + upwards * (bottom - top))
    return {
        "field_x": -side * eccentricity * np.cos(angle),
        "field_y": eccentricity * np.sin(angle),
        "field_size": area.size[0] + area.size[1] * eccentricity,
    }
