"""Voxels land where they belong: in the volume, in the slices, on the surface."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from neurodl.reports import brain, surface
from neurodl.reports.tables import target_means


def pixels(picture: brain.Picture) -> np.ndarray:
    """Return a picture's RGBA."""
    content = base64.b64decode(picture.uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA")).astype(int)


def coloured(picture: brain.Picture) -> np.ndarray:
    """Return (row, column) of the pixels that are neither grey nor transparent."""
    rgba = pixels(picture)
    spread = rgba[..., :3].max(-1) - rgba[..., :3].min(-1)
    return np.argwhere((spread > 20) & (rgba[..., 3] > 0))


def native(make_scores, *, flip=False, n_targets=400):
    """Return scores on a box of voxels; with `flip`, i runs from right to left."""
    scores = make_scores(n_targets, n_excluded=0, space=None)
    side = np.stack(np.unravel_index(np.arange(n_targets), (10, 10, n_targets // 100)))
    scores = scores.assign_coords({key: ("voxel", side[axis]) for axis, key in enumerate("ijk")})
    affine = np.diag([-2.0 if flip else 2.0, 2.0, 3.0, 1.0])
    shape = [10, 10, n_targets // 100]
    return scores.assign_attrs(affine=affine.ravel().tolist(), shape=shape)


def test_a_volume_is_filled_by_ijk(make_scores):
    scores = native(make_scores)
    volume = brain.fill_volume(np.arange(400.0), scores)
    assert volume.shape == (10, 10, 4)
    place = tuple(int(scores[key][123]) for key in "ijk")
    assert volume[place] == 123


@pytest.mark.parametrize(
    ("space", "shift", "expected"),
    [
        ("MNI152NLin2009cAsym", 0, True),
        (None, 0, False),
        ("scanner", 0, False),
        ("MNI152", 400, False),
    ],
)
def test_mni_is_what_says_so_and_lies_in_the_brain(make_scores, space, shift, expected):
    scores = make_scores(40, space=space)
    affine = np.reshape(scores.attrs["affine"], (4, 4)).copy()
    affine[0, 3] += shift
    assert brain.in_mni(scores.assign_attrs(affine=affine.ravel().tolist())) is expected


def test_units_have_no_volume(make_scores):
    scores = make_scores(33, areas=None, target="unit")
    assert not brain.has_volume(scores)
    assert not brain.in_mni(scores)
    assert not brain.has_volume(make_scores(40).drop_vars("k"))


def test_the_colour_scale_ends_above_the_highest_scores():
    assert brain.colour_limit(np.array([0.1, 0.61, np.nan])) == 0.65
    assert brain.colour_limit(np.array([-0.2, -0.1])) == 0.1
    assert brain.colour_limit(np.array([np.nan])) == 0.1
    assert brain.colour_limit(np.full(5, 0.4)) == 0.4


def test_colours_rise_from_zero_and_leave_excluded_voxels_out():
    rgba = brain.colours(np.array([-0.5, 0.0, 0.5, 0.9, np.nan]), 0.5)
    np.testing.assert_array_equal(rgba[0], rgba[1])
    np.testing.assert_array_equal(rgba[2], rgba[3])
    assert rgba[4, 3] == 0
    assert rgba[2, :3].sum() > rgba[1, :3].sum()


@pytest.mark.parametrize("flip", [False, True])
def test_left_is_left_and_front_is_up_in_slices(make_scores, flip):
    scores = native(make_scores, flip=flip)
    x = scores["i"].values * (-1 if flip else 1)
    left, front = x <= x.min() + 2, scores["j"].values >= 7
    values = np.where(left & front, 0.5, np.nan)
    picture = brain.slices(values, scores, 0.5)[0]
    rows, columns = coloured(picture).T
    assert len(rows)
    assert columns.max() < 0.4 * picture.width
    assert rows.max() < 0.4 * picture.height


def test_excluded_voxels_are_grey(make_scores):
    scores = native(make_scores)
    values = np.where(scores["i"].values < 5, 0.4, np.nan)
    rgba = pixels(brain.slices(values, scores, 0.5)[0])
    middle = rgba[rgba.shape[0] // 2]
    right = middle[int(0.7 * len(middle))]
    assert right[3] == 255
    assert right[0] == right[1] == right[2]


def test_a_single_slice_is_drawn_once(make_scores):
    scores = native(make_scores, n_targets=100)
    pictures = brain.slices(np.full(100, 0.2), scores, 0.5)
    assert [picture.label for picture in pictures] == ["z slice 1"]


def test_cuts_avoid_repeats_and_planes_of_a_few_voxels(make_scores):
    labels = [p.label for p in brain.slices(np.full(400, 0.2), native(make_scores), 0.5)]
    assert labels == [f"z slice {n}" for n in (1, 2, 3, 4)]


@pytest.mark.slow
def test_mni_slices_show_voxels_at_their_millimetres(make_scores):
    scores = make_scores(400, n_excluded=0)
    values = np.where(scores["x"].values < 0, 0.5, np.nan)
    pictures = brain.slices(values, scores, 0.5)
    axial = [picture for picture in pictures if picture.label.startswith("z = ")]
    assert len(axial) >= 3
    for picture in axial:
        rows, columns = coloured(picture).T
        assert columns.max() < 0.52 * picture.width  # left hemisphere
        assert rows.min() > 0.5 * picture.height  # back of the head
    assert any(picture.label.startswith("x = \u2212") for picture in pictures)


@pytest.mark.slow
def test_projection_keeps_values_and_their_sides(make_scores):
    scores = make_scores(3000, n_excluded=0)
    x = scores["x"].values
    columns = np.stack([np.full(3000, 0.37), np.where(x < 0, 0.2, np.nan)], 1)
    maps = surface.project(columns, scores)
    both = np.concatenate([maps["left"][:, 0], maps["right"][:, 0]])
    # The mask's edge does not dilute: a constant stays that constant.
    np.testing.assert_allclose(both[~np.isnan(both)], 0.37, atol=1e-5)
    assert (~np.isnan(maps["left"][:, 1])).sum() > 100
    assert (~np.isnan(maps["right"][:, 1])).sum() < 10
    # Missing voxels of the second map cost the first nothing.
    alone = surface.project(columns[:, :1], scores)
    np.testing.assert_array_equal(alone["right"][:, 0], maps["right"][:, 0])


@pytest.mark.slow
def test_rois_reach_the_vertices_above_them(make_scores):
    scores = make_scores(3000, n_excluded=0)
    labels = scores["roi"].values
    members = {roi: np.flatnonzero(labels == roi) for roi in ("V1", "IT")}
    found = surface.project_rois(members, scores)
    coordinates = surface.cortex()["left"][0]
    # Along the inflated cortex, V1 lies behind IT.
    v1, it = (coordinates[found["left"] == code, 1].mean() for code in (1, 2))
    assert v1 < it - 20


def test_the_viewer_packs_maps_as_bytes():
    values = np.full(10242, np.nan)
    values[:4] = [-0.1, 0.0, 0.25, 0.9]
    packed = surface.viewer({"left": values[:, None], "right": values[:, None]}, ["a"], 0.5)
    decode = [np.frombuffer(base64.b64decode(h["maps"][0]), "u1") for h in packed["hemispheres"]]
    assert decode[0][:5].tolist() == [1, 1, 128, 255, 0]
    assert packed["rois"] == []
    points = np.frombuffer(base64.b64decode(packed["hemispheres"][0]["points"]), "<i2") / 100
    other = np.frombuffer(base64.b64decode(packed["hemispheres"][1]["points"]), "<i2") / 100
    assert points.reshape(-1, 3)[:, 0].max() < other.reshape(-1, 3)[:, 0].min()
    faces = np.frombuffer(base64.b64decode(packed["hemispheres"][0]["faces"]), "<u2")
    assert faces.max() == 10241
    assert len(packed["colours"]) == 3 * 255


def test_refining_keeps_the_area_and_the_values():
    coordinates = np.array([[0.0, 0, 0], [2, 0, 0], [0, 2, 0], [2, 2, 0]])
    faces = np.array([[0, 1, 2], [1, 3, 2]])
    finer, triangles, extra = surface._finer(coordinates, faces, coordinates[:, :1])
    a, b, c = (finer[triangles[:, corner]] for corner in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    assert (len(triangles), len(finer)) == (8, 9)
    assert area == pytest.approx(4)
    np.testing.assert_array_equal(extra[:, 0], finer[:, 0])


def test_maps_describe_themselves(make_scores):
    scores = make_scores(20)
    described = brain.map_description(scores, "layer3", "timm:resnet50")
    assert described["Layer"] == "layer3"
    assert described["seed"] == 0
    assert target_means(scores).dims == ("layer", "voxel")
