"""Values back on the brain: one per vertex on a surface, one per parcel in its volume."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import xarray as xr

from neurodl.errors import MissingFileError, SchemaError
from neurodl.io.plain import load_array
from neurodl.io.volumes import open_image

HEMISPHERES = ("left", "right")


def to_surface(
    values: xr.DataArray,
    *,
    like: xr.DataArray | xr.Dataset | None = None,
    fill: float = float("nan"),
) -> dict[str, np.ndarray]:
    """Put one value per vertex on the whole mesh of each hemisphere.

    Parameters
    ----------
    values : xarray.DataArray
        Last dim ``vertex``, with the coords hemisphere ("left" or "right") and node (the number of
        the vertex on its hemisphere's mesh).
    like : xarray.DataArray or xarray.Dataset, optional
        Where the attr n_nodes comes from if `values` lost it.
    fill : float
        What stands at nodes without a value.

    Returns
    -------
    dict of str to numpy.ndarray
        "left" and "right", shape (..., n_nodes), float32, as plotting functions and
        ``nilearn.surface.SurfaceImage`` take them.

    Raises
    ------
    SchemaError
        Coords or attrs that say where the vertices lie are missing or do not fit.

    Examples
    --------
    >>> values = xr.DataArray(
    ...     np.array([5.0, 6.0], "float32"), dims="vertex",
    ...     coords={"hemisphere": ("vertex", ["left", "right"]), "node": ("vertex", [2, 0])},
    ...     attrs={"n_nodes": [3, 2]})
    >>> to_surface(values)["left"]
    array([nan, nan,  5.], dtype=float32)
    """
    attrs = {**(like.attrs if like is not None else {}), **values.attrs}
    missing = [name for name in ("hemisphere", "node") if name not in values.coords]
    missing += [name for name in ("n_nodes",) if name not in attrs]
    if missing or not values.ndim or values.dims[-1] != "vertex":
        raise SchemaError(
            "A surface map is made from an array whose last dim is 'vertex', with the coords "
            f"hemisphere and node and the attr n_nodes; this one has dims {tuple(values.dims)} and "
            f"lacks {missing}. Attrs that were lost on the way are taken from like=."
        )
    sides = values["hemisphere"].values
    found = {}
    for hemisphere, n_nodes in zip(HEMISPHERES, np.asarray(attrs["n_nodes"]).tolist(), strict=True):
        chosen = sides == hemisphere
        nodes = values["node"].values[chosen].astype(int)
        if len(nodes) and (nodes.min() < 0 or nodes.max() >= n_nodes):
            raise SchemaError(f"The coord node lies outside the mesh of {n_nodes} nodes.")
        if len(np.unique(nodes)) < len(nodes):
            raise SchemaError(f"Two vertices of the {hemisphere} hemisphere are the same node.")
        mesh = np.full((*values.shape[:-1], n_nodes), fill, np.float32)
        mesh[..., nodes] = values.values[..., chosen]
        found[hemisphere] = mesh
    return found


def parcels_to_image(
    values: xr.DataArray, atlas: str | Path | nib.Nifti1Image, *, fill: float = 0.0
) -> nib.Nifti1Image:
    """Fill each parcel of an atlas with its value.

    Parameters
    ----------
    values : xarray.DataArray, dim ``parcel``
        With the coord label, the number of the parcel in the atlas.
    atlas : path or nibabel.Nifti1Image
        Volume of numbers of parcels, 0 outside.
    fill : float
        What stands outside all parcels.

    Raises
    ------
    SchemaError
        There is no coord label, or the atlas lacks a parcel.
    MissingFileError
        There is no such atlas.
    """
    if values.dims != ("parcel",) or "label" not in values.coords:
        raise SchemaError(
            "An image of parcels is made from an array with the dim ('parcel',) and the coord "
            f"label; this one has dims {tuple(values.dims)}."
        )
    if isinstance(atlas, (str, Path)) and not Path(atlas).is_file():
        raise MissingFileError(f"The atlas {atlas} does not exist.")
    image = open_image(atlas)
    numbers = np.asarray(image.dataobj).astype(int)
    labels = values["label"].values.astype(int)
    absent = np.setdiff1d(labels, numbers)
    if len(absent):
        raise SchemaError(f"The atlas has no parcels {absent[:5].tolist()}, of {len(absent)}.")
    by_number = np.full(max(int(numbers.max()), int(labels.max())) + 1, fill, np.float32)
    by_number[labels] = values.values
    painted = np.where(numbers > 0, by_number[np.maximum(numbers, 0)], np.float32(fill))
    return nib.Nifti1Image(painted.astype(np.float32), image.affine)


def parcels_to_surface(
    values: xr.DataArray, atlas: str | Path, *, fill: float = float("nan")
) -> dict[str, np.ndarray]:
    """Give each node of a surface the value of its parcel.

    Parameters
    ----------
    values : xarray.DataArray, dim ``parcel``
        With the coord label, the place of the parcel among all, from 1.
    atlas : path
        An npz file with the places, from 0, of the parcels of the nodes of the left and the right
        hemisphere: ``labels_L`` and ``labels_R``.
    fill : float
        What stands at nodes of other parcels.

    Returns
    -------
    dict of str to numpy.ndarray
        As `to_surface`.

    Raises
    ------
    SchemaError, FileFormatError
        There is no coord label; the atlas cannot be read or lacks an array.
    """
    if values.dims != ("parcel",) or "label" not in values.coords:
        raise SchemaError(
            "A surface of parcels is made from an array with the dim ('parcel',) and the coord "
            f"label; this one has dims {tuple(values.dims)}."
        )
    path = Path(atlas)
    nodes = {
        side: load_array(path, key, what="labels")[0].astype(int).ravel()
        for side, key in zip(HEMISPHERES, ("labels_L", "labels_R"), strict=True)
    }
    labels = values["label"].values.astype(int) - 1
    size = max([int(labels.max()), *(int(one.max()) for one in nodes.values())]) + 1
    by_place = np.full(size, fill, np.float32)
    by_place[labels] = values.values
    return {
        side: np.where(places >= 0, by_place[places], np.float32(fill))
        for side, places in nodes.items()
    }
