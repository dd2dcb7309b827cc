"""The words of a report: each sentence says what the numbers say."""

from __future__ import annotations

import numpy as np
import xarray as xr

from neurodl.reports import summary
from neurodl.reports.tables import roi_table


def say(scores: xr.Dataset) -> str:
    """Return the main finding."""
    return " ".join(summary.main_finding(scores, roi_table(scores)))


def exact(r, rois, *, layers=("conv1", "conv2"), backbone="timm:net", ceiling=None) -> xr.Dataset:
    """Return scores of voxels whose r is the same in both folds."""
    r = np.repeat(np.asarray(r, "float32")[:, None], 2, axis=1)
    data = {"r": (("layer", "fold", "voxel"), r), "r2": (("layer", "fold", "voxel"), r**2)}
    if ceiling is not None:
        data["ceiling"] = ("voxel", np.full(r.shape[-1], ceiling))
        data["r_normalized"] = (("layer", "fold", "voxel"), r / np.sqrt(ceiling))
    coords = {"layer": list(layers), "backbone": ("layer", [backbone] * len(layers))}
    return xr.Dataset(data, coords | {"roi": ("voxel", list(rois))}, {"groups": "run"})


def test_the_finding_names_layer_roi_ceiling_and_counts():
    rois = ["V1"] * 10 + ["V4"] * 20
    scores = exact([[0.1] * 10 + [0.2] * 20, [0.15] * 10 + [0.4] * 20], rois, ceiling=0.25)
    assert say(scores) == (
        "conv2 of timm:net predicts V4 best: r = 0.40, 80 % of the ceiling "
        "(mean over 20 voxels, 2 folds by run). "
        "Over all 30 voxels, it reaches r = 0.32, 63 % of the ceiling."
    )


def test_another_layer_may_be_best_over_all():
    rois = ["V1"] * 20 + ["V4"] * 10
    scores = exact([[0.4] * 20 + [0.1] * 10, [0.1] * 20 + [0.5] * 10], rois)
    assert say(scores) == (
        "conv2 of timm:net predicts V4 best: r = 0.50 (mean over 10 voxels, 2 folds by run). "
        "Over all 30 voxels, conv1 of timm:net is best and reaches r = 0.30."
    )


def test_a_tiny_roi_does_not_make_the_headline():
    rois = ["V1"] * 20 + ["tiny"] * 3
    scores = exact([[0.3] * 20 + [0.9] * 3], rois, layers=["conv1"])
    assert say(scores).startswith("conv1 of timm:net predicts V1 best: r = 0.30")


def test_no_prediction_is_not_dressed_up(make_scores):
    scores = make_scores(60, n_excluded=0, ceiling=False)
    noise = np.random.default_rng(0).normal(0, 0.05, scores["r"].shape)
    text = say(scores.assign(r=(scores["r"].dims, noise)))
    assert text.startswith("No layer predicts the responses reliably: the highest mean is r = 0.0")
    assert "not clearly above 0" in text


def test_nothing_scored_says_why(make_scores):
    scores = make_scores(12, n_excluded=12)
    expected = "Nothing could be scored: 12 excluded (8 constant, 4 with missing values)."
    assert say(scores) == expected


def test_units_without_a_roi(make_scores):
    scores = make_scores(
        33,
        areas=None,
        target="unit",
        n_excluded=0,
        ceiling=False,
        backbones={"timm:net": ["a", "b"]},
    )
    r = roi_table(scores).set_index("layer")["r"]
    assert say(scores) == (
        f"{r.idxmax()} of timm:net predicts the units best: r = {r.max():.2f} "
        "(mean over 33 units, 5 folds by run)."
    )


def test_numbers_have_a_real_minus_and_no_negative_zero_digits():
    assert summary.number(-0.123) == "\u22120.12"
    assert summary.number(-0.001) == "0.00"
    assert summary.number(float("nan")) == "n/a"
    assert summary.number(61.6, 0) == "62"
    assert summary.count(2, "vertex") == "2 vertices"
