"""What a report shows of predictions, training, arrays and networks, against known numbers."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from report_cases import predicted
from scipy import stats

import neurodl as ndl
from neurodl.reports.array import array_maps
from neurodl.reports.html import HEADINGS
from neurodl.reports.networks import compared_networks
from neurodl.reports.predictions import example_predictions, stimulus_scores
from neurodl.reports.svg import roi_looks
from neurodl.reports.tables import roi_table
from neurodl.reports.training import training_curves


def test_small_predictions_are_kept_unasked_and_large_ones_are_not(monkeypatch):
    assert "predicted" in predicted()
    monkeypatch.setattr("neurodl.scores.crossval.MOST_KEPT", 3 * 60 * 12 * 4 - 1)
    assert "predicted" not in predicted()
    monkeypatch.setattr("neurodl.scores.crossval.MOST_KEPT", 3 * 60 * 12 * 4)
    assert "predicted" in predicted()


def test_examples_are_the_best_and_the_median_target_of_each_roi():
    scores = predicted()
    table = roi_table(scores)
    found = example_predictions(scores, table, roi_looks(["all", "V1", "V4"]))
    assert {one.title for one in found} == {"V1, best", "V1, median", "V4, best", "V4, median"}
    r = scores["r"].mean("fold").sel(layer="good").values
    v1 = np.flatnonzero(scores["roi"].values == "V1")
    best = v1[r[v1].argmax()]
    (drawing,) = [one for one in found if one.title == "V1, best"]
    assert drawing.note == f"unit {best}, r = {r[best]:.2f}"
    assert len(drawing.data) == 60
    expected = scores["predicted"].sel(layer="good").values[:, best]
    np.testing.assert_array_equal(drawing.data["predicted"], expected)
    np.testing.assert_array_equal(drawing.data["observed"], scores["observed"].values[:, best])
    assert "<svg" in drawing.svg


def test_examples_of_time_series_are_one_stretch_of_one_fold():
    scores = predicted(samples="time")
    drawing, *_ = example_predictions(scores, roi_table(scores), roi_looks(["all", "V1", "V4"]))
    assert drawing.data["fold"].nunique() == 1
    assert (np.diff(drawing.data["time"]) == 1).all()
    assert len(drawing.data) == 12
    assert "<svg" in drawing.svg


def test_stimulus_scores_are_pattern_correlations():
    scores = predicted()
    found = stimulus_scores(scores, 0)
    one = stats.zscore(scores["predicted"].values[0].astype(float))
    other = stats.zscore(scores["observed"].values.astype(float))
    expected = [stats.pearsonr(a, b).statistic for a, b in zip(one, other, strict=True)]
    by_id = found[scores["stimulus"].values.astype(str)]
    np.testing.assert_allclose(by_id, expected, atol=1e-6)
    assert found.is_monotonic_decreasing
    assert not len(stimulus_scores(scores.isel(unit=slice(5)), 0))


def test_stimuli_stand_in_the_page_with_thumbnails():
    scores = predicted()
    images = np.random.default_rng(0).integers(0, 255, (60, 16, 16, 3), dtype=np.uint8)
    stimuli = ndl.Stimuli.from_arrays(images, [f"s{i}" for i in range(60)])
    experiment = ndl.Experiment(stimuli, None, name="own")
    page = ndl.report(scores, experiment).html()
    assert page.count("data:image/jpeg;base64,") == 12
    best = stimulus_scores(scores, 0)
    assert f"<span>{best.index[0]}</span>" in page
    assert f"<span>{best.index[-1]}</span>" in page
    assert "data:image/jpeg" not in ndl.report(scores).html()


def test_networks_are_tested_against_the_best():
    scores = predicted()
    found = compared_networks(scores, roi_table(scores))
    assert found["network"].tolist()[0] == "good"
    r = scores["r"].mean("fold")
    for row in found.to_dict("records")[1:]:
        gain = r.sel(layer=row["layer"]).values - r.sel(layer="good").values
        assert row["difference"] == pytest.approx(gain.mean(), abs=1e-6)
        assert row["share"] == (gain > 0).mean()
        tested = ndl.difference_test(scores.sel(layer=["good"]), scores.sel(layer=[row["layer"]]))
        assert row["difference"] == pytest.approx(-tested["roi_difference"].values[0], abs=1e-6)
        assert row["p"] == pytest.approx(tested["roi_p"].values[0], abs=0.02)
        assert row["q"] >= row["p"]
    assert (found["p"][1:] < 0.01).all()
    assert compared_networks(scores.isel(layer=[0]), roi_table(scores.isel(layer=[0]))) is None


def test_long_names_of_networks_leave_room_for_the_figure(tmp_path):
    scores = predicted()
    long = ["timm:net (file " + name * 40 + ".pth (sha256 fac4b5118a1d))" for name in "abc"]
    made = ndl.report(scores.assign_coords(backbone=("layer", long)))
    (drawing,) = made.drawings["networks"]
    width, height = drawing.draw().axes[0].get_position().size
    assert "aaaa" in drawing.svg  # a figure without room is an error here
    drawing.save_slide(tmp_path / "a.png")
    assert min(width, height) > 0.1


def test_networks_that_are_alike_are_not_told_apart():
    scores = predicted(n=100, noise=(1.0, 1.0, 1.0))
    found = compared_networks(scores, roi_table(scores))
    assert (found["p"][1:] > 0.01).all()


def test_without_predictions_networks_are_compared_over_targets_alone():
    scores = predicted().drop_vars(["predicted", "observed"])
    found = compared_networks(scores, roi_table(scores))
    assert found["p"].isna().all()
    assert (found["high"][1:] < 0).all()
    page = ndl.report(scores).html()
    assert "Networks compared" in page
    assert "corrected for the number of networks" not in page
    assert "Not tested: the scores hold no predictions (keep_predictions=True keeps them)." in page


def test_a_test_that_cannot_be_made_says_why():
    scores = predicted(samples="time").drop_vars("run")  # neighbours in time depend on each other
    page = ndl.report(scores).html()
    assert "Not tested: " in page
    assert "<i>q</i>: from exchanging" not in page


def test_electrodes_are_drawn_where_they_lie():
    scores = predicted()
    assert array_maps(scores, 0) == []
    place = np.arange(12.0)
    scores = scores.assign_coords(
        x=("unit", place % 4), y=("unit", place // 4), z=("unit", np.zeros(12))
    )
    (drawing,) = array_maps(scores, 0)
    assert list(drawing.data.columns) == ["unit", "x", "y", "r"]
    expected = scores["r"].mean("fold").values[0]
    np.testing.assert_allclose(drawing.data["r"], expected, atol=1e-6)
    points = drawing.draw().axes[0].collections[0].get_offsets()
    np.testing.assert_array_equal(points, np.stack([place % 4, place // 4], -1))
    assert "Across the array" in ndl.report(scores).html()


class Trained:
    """A model that says how its training went, as networks do."""

    history_ = ()

    def fit(self, X, y):
        self.coef = np.linalg.lstsq(X, y, rcond=None)[0]
        losses = [1.0, 0.5, 0.25, 0.3]
        self.history_ = [
            {"epoch": n, "loss": loss, "val_loss": 2 * loss} for n, loss in enumerate(losses)
        ]
        return self

    def predict(self, X):
        return X @ self.coef


def test_training_is_kept_and_drawn():
    rng = np.random.default_rng(0)
    ids = {"stimulus": [f"s{i}" for i in range(40)]}
    X = xr.DataArray(
        rng.standard_normal((40, 3)).astype("f4"), dims=("stimulus", "feature"), coords=ids
    )
    Y = xr.DataArray(
        X.values.copy(), dims=("stimulus", "unit"), coords=ids, attrs={"units": "a.u."}
    )
    scores = ndl.cross_validate(Trained(), X, Y, cv=3)
    np.testing.assert_allclose(scores["training_loss"].values[0, 2], [1.0, 0.5, 0.25, 0.3])
    np.testing.assert_allclose(scores["validation_loss"].values[0, 1], [2.0, 1.0, 0.5, 0.6])
    assert scores["validation_r"].isnull().all()
    (drawing,) = training_curves(scores)
    lines = drawing.draw().axes[0].lines
    assert [line.get_xdata() for line in lines if len(np.atleast_1d(line.get_xdata())) == 1]
    assert len(drawing.data) == 12
    assert training_curves(predicted()) == []


def test_every_section_of_figures_has_a_heading(tmp_path):
    made = ndl.report(predicted())
    assert list(made.drawings) == list(HEADINGS)
    paths = made.save_slides(tmp_path / "slides")
    assert len(paths) == sum(len(found) for found in made.drawings.values())
    assert all(path.with_suffix(".tsv").is_file() for path in paths)
    (tmp_path / "slides" / "99-old.png").write_bytes(b"")
    (tmp_path / "slides" / "mine.png").write_bytes(b"")
    made.save_slides(tmp_path / "slides")
    names = {path.name for path in (tmp_path / "slides").glob("*.png")}
    assert names == {path.name for path in paths} | {"mine.png"}
