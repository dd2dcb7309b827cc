"""Neurons as features: their values, raised cosines, histories and the filters behind weights."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from neurodl.errors import AuditError, PairingError, SchemaError, UnknownNameError
from neurodl.features import (
    history_features,
    history_filters,
    population_features,
    shown_features,
)
from neurodl.features.population import raised_cosines
from neurodl.models import PoissonRidgeCV, RidgeCV
from neurodl.responses import as_runs
from neurodl.schema import check_features
from neurodl.scores import cross_validate


@pytest.fixture
def series(rng):
    return xr.DataArray(
        rng.poisson(1.0, (60, 3)).astype(np.float32),
        dims=("time", "unit"),
        coords={
            "time": np.tile(np.arange(30) / 100, 2),
            "run": ("time", np.repeat(["a", "b"], 30)),
            "unit": ["x", "y", "z"],
        },
        attrs={"units": "spikes", "bin_width": 0.01},
    )


def test_population_features_are_the_responses(series):
    features = population_features(series)
    np.testing.assert_array_equal(features, series)
    assert features["feature"].values.tolist() == ["x", "y", "z"]
    assert features["run"].values.tolist() == series["run"].values.tolist()
    check_features(features)
    with pytest.raises(SchemaError, match="see as_runs"):
        population_features(
            xr.DataArray(
                np.zeros((2, 3), np.float32),
                dims=("presentation", "unit"),
                coords={"stimulus": ("presentation", ["a", "b"])},
                attrs={"units": "spikes"},
            )
        )


@pytest.mark.parametrize("spacing", ["log", "linear"])
def test_raised_cosines_are_their_formula(spacing):
    basis = raised_cosines(6, 0.1, 0.002, spacing=spacing, offset=0.01)
    lags = np.arange(1, 51) * 0.002
    place = lags if spacing == "linear" else np.log(lags + 0.01)
    centres = np.linspace(place[0], place[-1], 6)
    step = centres[1] - centres[0]
    expected = np.zeros((50, 6))
    for column, centre in enumerate(centres):
        near = np.abs(place - centre) < step
        expected[near, column] = 0.5 + 0.5 * np.cos(np.pi * (place[near] - centre) / step)
    np.testing.assert_allclose(basis, expected, atol=1e-12)
    np.testing.assert_allclose(basis.sum(1), 1)
    assert np.linalg.matrix_rank(basis) == 6
    peaks = basis.argmax(0)
    assert (np.diff(peaks) > 0).all()
    if spacing == "log":
        assert np.diff(peaks)[-1] > np.diff(peaks)[0]


def test_history_is_of_the_past_of_the_run_only(series):
    basis = raised_cosines(4, 0.08, 0.01)
    features = history_features(series, duration=0.08, n_basis=4)
    values = features.values.reshape(60, 3, 4)
    for row in range(60):
        first = 30 * (row // 30)
        expected = np.zeros((3, 4))
        for lag in range(1, 9):
            if row - lag >= first:
                expected += series.values[row - lag][:, None] * basis[lag - 1]
        np.testing.assert_allclose(values[row], expected, rtol=1e-5, atol=1e-6)
    assert features["source"].values[:5].tolist() == ["x"] * 4 + ["y"]
    assert features["feature"].values[5] == "y:1"
    assert features.attrs["extent"] == 0.08


def test_filters_are_weights_through_the_basis(series, rng):
    features = history_features(series, duration=0.08, n_basis=4, spacing="linear")
    weights = rng.standard_normal((2, 12))
    filters = history_filters(weights, features)
    assert filters.dims == ("target", "source", "lag")
    # the filters, applied lag by lag, are the features times the weights
    direct = np.zeros((30, 2))
    for row in range(30):
        for place, lag in enumerate(range(1, 9)):
            if row >= lag:
                direct[row] += filters.values[:, :, place] @ series.values[row - lag]
    np.testing.assert_allclose(features.values[:30] @ weights.T, direct, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(filters["lag"], np.arange(1, 9) / 100)
    with pytest.raises(SchemaError, match="of 11 features, but there are 12"):
        history_filters(weights[:, :11], features)
    with pytest.raises(SchemaError, match="no features of history_features"):
        history_filters(weights, population_features(series))


def test_impossible_bases_are_errors(series):
    for options, message in (
        ({"n_basis": 9}, "from 1 to 8, the lags"),
        ({"n_basis": 0}, "from 1 to 8"),
        ({"duration": -1}, "must be above 0 s"),
        ({"offset": 0.0}, "`offset`"),
    ):
        with pytest.raises(ValueError, match=message):
            history_features(series, **{"duration": 0.08, **options})
    with pytest.raises(UnknownNameError, match="Did you mean 'linear'"):
        history_features(series, duration=0.08, spacing="liner")
    with pytest.raises(SchemaError, match="needs dims"):
        history_features(series.rename(time="stimulus"), duration=0.08)


@pytest.mark.slow
def test_history_and_coupling_filters_are_recovered():
    """Three coupled neurons: each quiet after its own spikes, the first drives the second."""
    rng = np.random.default_rng(3)
    width, n_runs, n_bins, duration = 0.005, 40, 2000, 0.05
    basis = raised_cosines(4, duration, width)
    true = np.zeros((3, 3, 4))  # target, source, bump
    for unit in range(3):
        true[unit, unit] = [-3.0, -1.5, -0.5, 0.0]
    true[1, 0] = [0.0, 1.2, 0.6, 0.0]
    true[0, 2] = [-0.8, -0.8, 0.0, 0.0]
    filters = true @ basis.T
    counts = np.zeros((n_runs, n_bins, 3))
    for run in range(n_runs):
        drive = np.full((n_bins + len(basis), 3), np.log(0.15))
        for at in range(n_bins):
            spikes = rng.poisson(np.exp(drive[at]))
            counts[run, at] = spikes
            drive[at + 1 : at + 1 + len(basis)] += np.einsum("tsl,s->lt", filters, spikes)
    series = xr.DataArray(
        counts.reshape(-1, 3).astype(np.float32),
        dims=("time", "unit"),
        coords={
            "time": np.tile(np.arange(n_bins) * width, n_runs),
            "run": ("time", np.repeat(np.arange(n_runs).astype(str), n_bins)),
            "unit": ["a", "b", "c"],
        },
        attrs={"units": "spikes", "bin_width": width},
    )
    features = history_features(series, duration=duration, n_basis=4)
    model = PoissonRidgeCV([1e-4], device="cpu").fit(features.values, series.values)
    found = history_filters(model.coef_, features).values
    present = np.abs(true).max(2) > 0
    r = [np.corrcoef(found[i, j], filters[i, j])[0, 1] for i, j in np.argwhere(present)]
    assert min(r) > 0.95
    # what is there is recovered to scale, and what is not is about 0
    assert np.abs(found - filters)[present].mean() < 0.15 * np.abs(filters[present]).mean()
    assert np.abs(found[~present]).mean() < 0.1 * np.abs(filters[present]).mean()


def test_stimuli_are_features_while_they_are_shown(rng):
    binned = xr.DataArray(
        rng.poisson(1.0, (3, 6, 2)).astype(np.float32),
        dims=("presentation", "time", "unit"),
        coords={
            "stimulus": ("presentation", ["b", "a", "b"]),
            "duration": ("presentation", [0.02, np.nan, 0.01]),
            "time": np.arange(-2, 4) / 100,
        },
        attrs={"units": "spikes", "bin_width": 0.01},
    )
    features = xr.DataArray(
        np.array([[1, 2], [3, 4]], np.float32),
        {"stimulus": ["a", "b"]},
        ("stimulus", "feature"),
        attrs={"backbone": "net", "layer": "conv"},
    )
    series = as_runs(binned)
    found = shown_features(features, series)
    by_trial = found.values.reshape(3, 6, 2)[..., 0]
    assert by_trial.tolist() == [[0, 0, 3, 3, 0, 0], [0, 0, 1, 1, 1, 1], [0, 0, 3, 0, 0, 0]]
    assert found.attrs["backbone"] == "net" and found.attrs["layer"] == "conv"
    assert found["run"].values.tolist() == series["run"].values.tolist()
    assert shown_features(features, series, duration=0.03).values[2:6, 1].tolist() == [4, 4, 4, 0]
    with pytest.raises(PairingError, match="1 stimuli have no features: 'b'"):
        shown_features(features[:1], series)
    with pytest.raises(SchemaError, match="presentations as runs"):
        shown_features(features, binned)
    with pytest.raises(SchemaError, match="align is for features in time"):
        shown_features(found, series)


def test_stimulus_to_population_in_time(rng):
    """A unit follows its stimulus two bins late: delays find it, the bin itself does not."""
    values = rng.standard_normal((40, 5)).astype(np.float32)
    ids = [f"image{number}" for number in range(40)]
    features = xr.DataArray(
        values, {"stimulus": ids}, ("stimulus", "feature"), attrs={"layer": "x"}
    )
    response = np.zeros((40, 12, 3), np.float32)
    response[:, 5:9] = (values @ rng.standard_normal((5, 3)))[:, None]
    binned = xr.DataArray(
        response + 0.3 * rng.standard_normal(response.shape).astype(np.float32),
        dims=("presentation", "time", "unit"),
        coords={"stimulus": ("presentation", ids), "time": np.arange(-3, 9) / 50},
        attrs={"units": "z", "bin_width": 0.02},
    )
    series = as_runs(binned)
    X = shown_features(features, series, duration=0.08)
    late = cross_validate(RidgeCV(delays=[0, 1, 2, 3], device="cpu"), X, series)
    now = cross_validate(RidgeCV(device="cpu"), X, series)
    assert late.attrs["groups"] == "stimulus"
    twice = as_runs(xr.concat([binned, binned], "presentation"))
    again = shown_features(features, twice, duration=0.08)
    with pytest.raises(AuditError, match="presented both in training and in test rows"):
        cross_validate(RidgeCV(device="cpu"), again, twice, groups="run")
    # what neurons say of neurons is no memory of a stimulus
    cross_validate(
        RidgeCV(device="cpu"), population_features(twice[:, :1]), twice[:, 1:], groups="run"
    )
    assert float(late["r"].mean()) > 0.9 > 0.6 > float(now["r"].mean())


def test_neurons_do_not_predict_themselves(series):
    with pytest.raises(PairingError, match="1 units .'y'. are among the features"):
        cross_validate(
            RidgeCV(device="cpu"), population_features(series[:, :2]), series[:, 1:], cv=2
        )
