"""Voxels must lie where the named areas are, and see the half of the field that they should."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from nilearn.datasets import (
    fetch_coords_seitzman_2018,
    load_mni152_brain_mask,
    load_mni152_gm_template,
)

from neurodl.datasets.simulated.cortex import AREAS, Area, area_voxels, brain
from neurodl.errors import UnknownNameError


@pytest.fixture(scope="module")
def voxels() -> xr.Dataset:
    """Return the voxels of all areas."""
    return area_voxels()


def of_area(voxels: xr.Dataset, roi: str) -> xr.Dataset:
    """Return the voxels of one area."""
    return voxels.isel(voxel=voxels["roi"].values == roi)


def test_voxels_are_grey_matter_of_the_mni_brain(voxels: xr.Dataset) -> None:
    """The grid is nilearn's, all voxels are different, in C order, inside the brain and grey."""
    mask = load_mni152_brain_mask(resolution=3)
    grey = load_mni152_gm_template(resolution=3).get_fdata()
    np.testing.assert_array_equal(np.reshape(voxels.attrs["affine"], (4, 4)), mask.affine)
    assert tuple(voxels.attrs["shape"]) == mask.shape
    ijk = tuple(voxels[name].values for name in "ijk")
    assert mask.get_fdata()[ijk].all()
    assert (grey[ijk] > 0.3 * grey.max()).all()
    flat = np.ravel_multi_index(ijk, mask.shape)
    assert (np.diff(flat) > 0).all()
    xyz = np.stack([voxels[name].values for name in "xyz"], 1)
    np.testing.assert_allclose(nib.affines.apply_affine(mask.affine, np.stack(ijk, 1)), xyz)


def test_areas_are_bilateral(voxels: xr.Dataset) -> None:
    """Each area has half of its voxels in each hemisphere."""
    for roi, patches in AREAS.items():
        x = of_area(voxels, roi)["x"].values
        assert (x < 0).sum() == (x > 0).sum() == sum(area.n_voxels for area in patches) / 2


def test_areas_lie_in_the_visual_network(voxels: xr.Dataset) -> None:
    """By the nearest of 300 published regions (Seitzman et al. 2020), which also knows the side."""
    published = fetch_coords_seitzman_2018()
    places = published["rois"][["x", "y", "z"]].to_numpy(float)
    xyz = np.stack([voxels[name].values for name in "xyz"], 1)
    nearest = np.linalg.norm(xyz[:, None] - places, axis=2).argmin(1)
    visual = (np.asarray(published["networks"], str) == "Visual")[nearest]
    share = {roi: visual[voxels["roi"].values == roi].mean() for roi in AREAS}
    assert share["V1"] == 1
    assert share["V2"] > 0.95
    assert share["V4"] > 0.95
    assert share["LOC"] > 0.5
    assert share["noise"] == 0
    region = np.asarray(published["regions"], str)[nearest]
    v1 = voxels["roi"].values == "V1"
    assert (region[v1] == np.where(xyz[v1, 0] < 0, "cortexL", "cortexR")).all()


def test_ventral_to_dorsal_and_medial_to_lateral_order(voxels: xr.Dataset) -> None:
    """V1 is medial, V4 ventral, LOC lateral of both."""
    lateral = {roi: np.abs(of_area(voxels, roi)["x"].values).mean() for roi in AREAS}
    assert lateral["V1"] < lateral["V4"] < lateral["LOC"]
    height = {roi: of_area(voxels, roi)["z"].values.mean() for roi in AREAS}
    assert height["V4"] < height["V1"]


def test_voxels_see_the_opposite_half_of_the_field(voxels: xr.Dataset) -> None:
    """Left hemisphere, right field; above the calcarine sulcus, lower field."""
    seeing = voxels.isel(voxel=voxels["roi"].values != "noise")
    assert (np.sign(seeing["field_x"]) == -np.sign(seeing["x"])).all()
    v2 = of_area(voxels, "V2")
    assert ((v2["z"].values > 5) == (v2["field_y"].values < 0)).all()
    v1 = of_area(voxels, "V1")
    assert np.corrcoef(v1["z"] - 0.27 * v1["y"], v1["field_y"])[0, 1] < -0.3
    assert np.isnan(of_area(voxels, "noise")["field_size"]).all()


def test_fields_grow_with_eccentricity_and_from_area_to_area(voxels: xr.Dataset) -> None:
    """Posterior V1 sees the fixation point; all centres lie within the image."""
    eccentricity = np.hypot(voxels["field_x"], voxels["field_y"])
    assert eccentricity.max() < 8
    v1 = of_area(voxels, "V1")
    near = np.hypot(v1["field_x"], v1["field_y"])
    assert np.corrcoef(near, v1["y"])[0, 1] > 0.8
    assert np.corrcoef(near, v1["field_size"])[0, 1] > 0.99
    sizes = [float(of_area(voxels, roi)["field_size"].mean()) for roi in ("V1", "V2", "V4", "LOC")]
    assert sizes == sorted(sizes)


def test_own_areas_and_unknown_images() -> None:
    """Areas can be given; a wrong kind of brain is named."""
    area = Area(((30, -80, 0), (34, -74, 0)), 10, "both", (1.0, 0.1))
    assert area_voxels({"mine": (area,)}).sizes["voxel"] == 10
    with pytest.raises(UnknownNameError, match="Did you mean 'template'"):
        brain("templates")
