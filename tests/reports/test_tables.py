"""The numbers of a report, against means worked out by hand and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from neurodl.reports.tables import (
    ALL,
    BOOTSTRAP_LIMIT,
    best_layers,
    bootstrap_interval,
    exclusions,
    fold_means,
    layer_groups,
    roi_members,
    roi_table,
    short_layers,
    target_means,
    with_layers,
)

NAN = np.nan


def dataset(r, *, layers=("a", "b"), roi=None, ceiling=None, **coords) -> xr.Dataset:
    """Return scores of units from r (layer, fold, unit)."""
    r = np.asarray(r, "float32")
    data = {"r": (("layer", "fold", "unit"), r), "r2": (("layer", "fold", "unit"), r**2)}
    if ceiling is not None:
        ceiling = np.asarray(ceiling, float)
        data["ceiling"] = ("unit", ceiling)
        usable = np.where(ceiling > 0.05, ceiling, NAN)
        data["r_normalized"] = (("layer", "fold", "unit"), r / np.sqrt(usable))
    if roi is not None:
        coords["roi"] = ("unit", list(roi))
    return xr.Dataset(data, {"layer": list(layers), **coords})


# Two layers, two folds, five units: A A B (none) A; the last is excluded, the third has one fold.
R = [
    [[0.1, 0.3, 0.6, 0.2, NAN], [0.3, 0.5, NAN, 0.4, NAN]],
    [[0.5, 0.1, 0.2, 0.0, NAN], [0.5, 0.3, NAN, 0.2, NAN]],
]
ROI = ["A", "A", "B", "", "A"]


@pytest.fixture
def small() -> xr.Dataset:
    """Scores small enough to average by hand."""
    return dataset(R, roi=ROI, ceiling=[0.25, 0.16, 0.25, 0.01, 0.5])


def cell(table, layer, roi):
    """Return the one row of a layer and ROI."""
    rows = table[(table["layer"] == layer) & (table["roi"] == roi)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_means_go_over_folds_first_then_over_targets(small):
    table = roi_table(small)
    # Targets: 0.2, 0.4, 0.6 (one fold), 0.3. Pooling the seven values would give 2.4 / 7 = 0.343.
    assert cell(table, "a", ALL)["r"] == pytest.approx((0.2 + 0.4 + 0.6 + 0.3) / 4)
    assert cell(table, "a", "A")["r"] == pytest.approx(0.3)
    assert cell(table, "a", "B")["r"] == pytest.approx(0.6)
    assert cell(table, "b", ALL)["r"] == pytest.approx((0.5 + 0.2 + 0.2 + 0.1) / 4)
    assert cell(table, "b", "A")["r"] == pytest.approx(0.35)


def test_excluded_targets_are_counted_and_not_averaged(small):
    row = cell(roi_table(small), "a", "A")
    assert (row["n"], row["n_valid"]) == (3, 2)
    assert (cell(roi_table(small), "a", ALL)[["n", "n_valid"]] == [5, 4]).all()
    assert exclusions(small) == {
        "n_targets": 5,
        "n_scored": 4,
        "n_excluded": 1,
        "n_partial": 1,
        "n_without_ceiling": 1,
    }


def test_scores_above_the_ceiling_are_counted_and_not_clipped(small):
    row = cell(roi_table(small), "a", ALL)
    # 0.2 / 0.5, 0.4 / 0.4, 0.6 / 0.5; the fourth has a ceiling too small to divide by.
    assert row["r_normalized"] == pytest.approx((0.4 + 1.0 + 1.2) / 3, abs=1e-6)
    assert row["n_normalized"] == 3
    assert cell(roi_table(small), "a", "B")["n_above_ceiling"] == 1
    assert cell(roi_table(small), "b", "B")["n_above_ceiling"] == 0


def test_without_a_ceiling_there_are_no_columns_for_it():
    assert not {"r_normalized", "n_above_ceiling"} & set(roi_table(dataset(R)).columns)


def test_fold_spread_is_over_the_folds_of_the_roi_mean(small):
    means = fold_means(small).sel(layer="a", roi=ALL).values
    np.testing.assert_allclose(means, [(0.1 + 0.3 + 0.6 + 0.2) / 4, (0.3 + 0.5 + 0.4) / 3])
    expected = np.std(means, ddof=1)
    assert cell(roi_table(small), "a", ALL)["fold_sd"] == pytest.approx(expected)


def test_a_roi_without_scores_keeps_its_rows():
    scores = dataset(R, roi=["A", "A", "B", "", "empty"])
    table = roi_table(scores)
    row = cell(table, "a", "empty")
    assert (row["n"], row["n_valid"]) == (1, 0)
    assert np.isnan(row["r"])
    best = best_layers(table).set_index("roi")
    assert list(best.index) == [ALL, "A", "B", "empty"]
    assert best.loc["A", "layer"] == "b"
    assert best.loc["B", "layer"] == "a"
    assert best.loc["empty", "layer"] == ""


def test_targets_without_a_roi_count_in_all_only(small):
    members = roi_members(small)
    assert {roi: rows.tolist() for roi, rows in members.items()} == {
        ALL: [0, 1, 2, 3, 4],
        "A": [0, 1, 4],
        "B": [2],
    }


def test_visual_areas_come_in_their_order_then_names():
    names = ["PPA", "V10", "hV4", "IT", "V2", "V1d", "FFA-2", "FFA-10", "all"]
    scores = dataset(np.zeros((1, 1, 9)), layers=["a"], roi=names)
    expected = [ALL, "V1d", "V2", "hV4", "V10", "all (ROI)", "FFA-2", "FFA-10", "IT", "PPA"]
    assert list(roi_members(scores)) == expected


def test_area_stands_in_for_roi():
    scores = dataset(R).assign_coords(area=("unit", ["VISp", "VISl", "VISp", "VISl", "VISl"]))
    assert list(roi_members(scores)) == [ALL, "VISl", "VISp"]


def test_scores_without_a_layer_dim_read_as_one_layer(small):
    flat = small.isel(layer=0, drop=True)
    assert with_layers(flat)["r"].dims == ("layer", "fold", "unit")
    table = roi_table(flat)
    assert table["layer"].unique().tolist() == ["features"]
    assert cell(table, "features", "A")["r"] == pytest.approx(0.3)


def test_target_means_match_numpy(make_scores):
    scores = make_scores(80)
    expected = np.nanmean(scores["r"].values[:, :, ~np.isnan(scores["r"].values[0, 0])], axis=1)
    found = target_means(scores).values
    np.testing.assert_allclose(found[:, ~np.isnan(found[0])], expected, rtol=1e-6, atol=1e-7)


def test_rows_follow_the_order_of_the_layers(make_scores):
    scores = make_scores(40)
    assert roi_table(scores)["layer"].unique().tolist() == scores["layer"].values.tolist()


def test_the_interval_agrees_with_scipy_and_repeats():
    values = np.random.default_rng(0).gamma(2.0, 0.1, (2, 150))
    low, high = bootstrap_interval(values, seed=3)
    for row in range(2):
        other = scipy.stats.bootstrap(
            (values[row],), np.mean, method="percentile", n_resamples=4000, rng=1
        ).confidence_interval
        width = other.high - other.low
        assert low[row] == pytest.approx(other.low, abs=0.08 * width)
        assert high[row] == pytest.approx(other.high, abs=0.08 * width)
    np.testing.assert_array_equal(bootstrap_interval(values, seed=3), (low, high))
    assert (bootstrap_interval(values, seed=4)[0] != low).any()


def test_the_interval_leaves_missing_targets_out():
    values = np.random.default_rng(0).normal(0.3, 0.1, (1, 40))
    padded = np.concatenate([values, np.full((1, 60), NAN)], 1)
    np.testing.assert_array_equal(bootstrap_interval(padded), bootstrap_interval(values))
    assert np.isnan(bootstrap_interval(np.array([[0.3, NAN], [NAN, NAN]]))).all()


def test_many_targets_take_the_normal_approximation():
    values = np.random.default_rng(0).normal(0.3, 0.1, (1, BOOTSTRAP_LIMIT + 1))
    low, high = bootstrap_interval(values)
    margin = 1.96 * values.std(ddof=1) / np.sqrt(values.shape[1])
    np.testing.assert_allclose([low[0], high[0]], values.mean() + np.array([-margin, margin]))


def test_reasons_are_given_only_where_they_account_for_what_is_missing(make_scores):
    scores = make_scores(60, n_excluded=6)
    assert exclusions(scores)["n_constant"] == 4
    assert exclusions(scores)["n_missing"] == 2
    part = scores.isel(voxel=~np.isnan(scores["r"].values[0, 0]))
    assert "n_constant" not in exclusions(part)
    assert exclusions(part)["n_excluded"] == 0


def test_one_network_with_other_weights_is_another_group():
    scores = dataset(
        R,
        backbone=("layer", ["timm:net", "timm:net"]),
        weights=("layer", ["/weights/net.pth", "untrained, seed 0"]),
    )
    assert layer_groups(scores) == {
        "timm:net (net.pth)": [0],
        "timm:net (untrained, seed 0)": [1],
    }
    assert layer_groups(dataset(R, backbone=("layer", ["x", "y"]))) == {"x": [0], "y": [1]}


def test_short_layers_never_lose_a_name():
    assert short_layers(["gabor"], "gabor") == ["gabor"]
    assert short_layers(["layer1", "layer2"], "timm:net") == ["layer1", "layer2"]
    assert short_layers(["a/x.1", "a/x.2"], "") == ["x.1", "x.2"]
