"""Cleaning against numpy least squares and nilearn, and its edge cases."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from nilearn.signal import clean as clean_by_nilearn

from neurodl.io.timeseries import clean, constant, run_rows, trend_order


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(500, 20, (60, 7))


@pytest.mark.parametrize("trend", [None, 0, 3])
def test_regresses_trend_and_confounds_out_together(values, trend):
    rng = np.random.default_rng(1)
    confounds = rng.normal(5, 1, (60, 3)) * [1, 1e-6, 1e6]
    times = np.sort(rng.uniform(0, 200, 60))
    polynomials = np.vander((times - 100) / 100, (trend or 0) + 1)
    model = np.hstack([polynomials, confounds - confounds.mean(0)])
    expected = values - model @ np.linalg.lstsq(model, values, rcond=None)[0]
    expected += values.mean(0) if trend is None else 0
    found = clean(values, trend=trend, confounds=confounds, times=times)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_confounds_are_removed_as_by_nilearn(values):
    confounds = np.random.default_rng(2).normal(size=(60, 4))
    found = clean(values, trend=1, zscore=True, confounds=confounds)
    expected = clean_by_nilearn(values, confounds=confounds, standardize="zscore_sample")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_useless_confounds_do_no_harm(values):
    repeated = np.random.default_rng(3).normal(size=(60, 1)) @ [[1.0, 2.0, 0.0]]
    found = clean(values, confounds=repeated)
    np.testing.assert_allclose(found, clean(values, confounds=repeated[:, :1]), atol=1e-3)


def test_what_is_constant_once_cleaned_is_no_signal(values):
    values[:, 0] = 3 * np.arange(60) + 1e4
    values[:, 1] = 7
    assert constant(values).tolist() == [False, True] + [False] * 5
    scored = clean(values, trend=1, zscore=True)
    assert np.isnan(scored[:, :2]).all()
    assert np.isfinite(scored[:, 2:]).all()
    assert (np.ptp(clean(values, trend=1)[:, :2], axis=0) == 0).all()


def test_a_missing_value_stays_within_its_target(values):
    values[5, 2] = np.nan
    scored = clean(values, trend=1, zscore=True)
    assert np.isnan(scored[:, 2]).all()
    assert np.isfinite(np.delete(scored, 2, 1)).all()
    assert np.isnan(clean(values)).sum() == 1


def test_many_targets_are_cleaned_in_blocks(values, monkeypatch):
    whole = clean(values, trend=2, zscore=True)
    monkeypatch.setattr("neurodl.io.timeseries.BLOCK", 3)
    np.testing.assert_allclose(clean(values, trend=2, zscore=True), whole, atol=1e-6)
    in_place = values.astype(np.float32)
    assert clean(in_place, trend=2, zscore=True, out=in_place) is in_place
    np.testing.assert_allclose(in_place, whole, atol=1e-5)


def test_a_trend_needs_enough_volumes(values):
    with pytest.raises(ValueError, match="detrend=2.*a run has 2"):
        clean(values[:2], trend=2)
    assert np.isnan(clean(values[:1], zscore=True)).all()


def test_trend_order():
    assert [trend_order(d) for d in (False, True, 0, 2)] == [None, 1, 0, 2]


def test_runs_are_told_apart_by_session_where_names_repeat():
    responses = xr.DataArray(
        np.zeros((4, 1)),
        dims=("time", "voxel"),
        coords={"run": ("time", ["1", "2", "1", "2"]), "session": ("time", ["a", "a", "b", "b"])},
    )
    assert list(run_rows(responses)) == ["a/1", "a/2", "b/1", "b/2"]
    responses["run"] = ("time", ["1", "2", "3", "4"])
    assert list(run_rows(responses)) == ["1", "2", "3", "4"]
    assert list(run_rows(responses.drop_vars("run"))) == [""]
