"""Values back on surfaces and in atlases; what says where they lie must fit."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import xarray as xr

import neurodl as ndl
from neurodl.errors import MissingFileError, SchemaError
from neurodl.io.maps import parcels_to_image, parcels_to_surface, to_surface


def vertices(values, sides, nodes, **attrs):
    coords = {"hemisphere": ("vertex", sides), "node": ("vertex", nodes)}
    return xr.DataArray(
        np.asarray(values, np.float32), dims=(*["layer"] * (np.ndim(values) - 1), "vertex"),
        coords=coords, attrs=attrs,
    )  # fmt: skip


def test_each_value_stands_at_its_node():
    values = vertices([[1, 2, 3], [4, 5, 6]], ["right", "left", "right"], [3, 0, 1], n_nodes=[2, 4])
    meshes = to_surface(values, fill=-1)
    assert meshes["left"].tolist() == [[2, -1], [5, -1]]
    assert meshes["right"].tolist() == [[-1, 3, -1, 1], [-1, 6, -1, 4]]
    lost = values.mean("layer")  # keeps coords, loses attrs
    lost.attrs = {}
    assert to_surface(lost, like=values)["left"][0] == 3.5


def test_what_does_not_fit_a_mesh_is_named():
    good = (["left", "left"], [0, 1])
    for values, message in (
        (vertices([1, 2], *good), r"lacks \['n_nodes'\]"),
        (vertices([1, 2], *good, n_nodes=[2, 2]).drop_vars("node"), r"lacks \['node'\]"),
        (vertices([1, 2], *good, n_nodes=[2, 2]).rename(vertex="voxel"), "last dim is 'vertex'"),
        (vertices([1, 2], ["left", "left"], [0, 2], n_nodes=[2, 2]), "outside the mesh of 2 nodes"),
        (vertices([1, 2], ["left", "left"], [1, 1], n_nodes=[2, 2]), "left .* are the same node"),
    ):
        with pytest.raises(SchemaError, match=message):
            to_surface(values)


def parcels(values, labels):
    coords = {"label": ("parcel", labels)}
    return xr.DataArray(np.asarray(values, np.float32), dims="parcel", coords=coords)


def test_parcels_in_a_volume(tmp_path):
    atlas = nib.Nifti1Image(np.array([[[0, 7], [3, 7]]], np.int16), np.diag([2, 2, 2, 1]))
    nib.save(atlas, tmp_path / "atlas.nii.gz")
    for given in (atlas, tmp_path / "atlas.nii.gz"):
        image = parcels_to_image(parcels([5, 6], [7, 3]), given)
        assert image.get_fdata().tolist() == [[[0, 5], [6, 5]]]
    part = parcels_to_image(parcels([5], [7]), atlas, fill=np.nan).get_fdata()
    assert np.isnan(part[0, 1, 0]) and part[0, 0, 1] == 5
    with pytest.raises(SchemaError, match=r"no parcels \[4\]"):
        parcels_to_image(parcels([1, 2], [4, 7]), atlas)
    with pytest.raises(SchemaError, match="the coord label"):
        parcels_to_image(parcels([1], [7]).drop_vars("label"), atlas)
    with pytest.raises(MissingFileError, match=r"none\.nii does not exist"):
        parcels_to_image(parcels([1], [7]), tmp_path / "none.nii")


def test_parcels_on_a_surface(tmp_path):
    path = tmp_path / "atlas.npz"
    np.savez(path, labels_L=np.array([2, -1, 3]), labels_R=np.array([0, 1]))
    meshes = parcels_to_surface(parcels([10, 40], [1, 4]), path)
    np.testing.assert_array_equal(meshes["left"], [np.nan, np.nan, 40])
    np.testing.assert_array_equal(meshes["right"], [10, np.nan])
    with pytest.raises(SchemaError, match="the coord label"):
        parcels_to_surface(parcels([1], [7]).drop_vars("label"), path)


def test_an_experiment_without_a_place_says_so():
    experiment = ndl.Experiment(name="mine")
    for convert, what in ((experiment.to_nifti, "atlas volume"), (experiment.to_surface, "atlas")):
        with pytest.raises(SchemaError, match=f"mine has no .*{what}"):
            convert(parcels([1], [7]))
    with pytest.raises(SchemaError, match="An image is made from"):
        experiment.to_nifti(xr.DataArray([1.0], dims="voxel"))
