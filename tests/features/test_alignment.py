"""Alignment against closed forms, nilearn's regressors and simulated BOLD of known delay."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from nilearn.glm.first_level import compute_regressor
from sklearn.linear_model import Ridge

import neurodl as ndl
from neurodl.errors import PairingError, UnknownNameError

TR, RATE = 1.5, 4.0


def scan(lengths, names="abc", tr=TR, values=None):
    times = np.concatenate([np.arange(n) * tr for n in lengths])
    runs = np.repeat(list(names[: len(lengths)]), lengths)
    values = np.zeros((len(times), 2), np.float32) if values is None else values
    return xr.DataArray(
        values, dims=("time", "voxel"), attrs={"tr": tr, "units": "BOLD"},
        coords={"time": times, "run": ("time", runs)},
    )  # fmt: skip


def frames(seconds, names="abc", n_features=3, seed=0):
    counts = [int(s * RATE) for s in seconds]
    rng = np.random.default_rng(seed)
    return xr.DataArray(
        rng.standard_normal((sum(counts), n_features)).astype(np.float32),
        dims=("time", "feature"), attrs={"layer": "fc", "backbone": "net"},
        coords={
            "time": np.concatenate([np.arange(n) / RATE for n in counts]),
            "run": ("time", np.repeat(list(names[: len(counts)]), counts)),
        },
    )  # fmt: skip


def test_mean_is_that_of_the_frames_within_each_sample():
    movie, responses = frames([30, 15]), scan([20, 10])
    got = ndl.align(movie, responses)
    np.testing.assert_allclose(got.values, movie.values.reshape(30, 6, 3).mean(1), atol=1e-6)
    assert got.dtype == np.float32
    assert got.attrs["backbone"] == "net"
    np.testing.assert_array_equal(got["run"], responses["run"])
    mean = movie.values[:24].reshape(4, 6, 3).mean(1)
    got = ndl.align(movie, responses, window=2 * TR)
    np.testing.assert_allclose(got.values[3], (mean[2] + mean[3]) / 2, atol=1e-6)


def test_delays_are_earlier_rows_of_the_same_run_also_around_censored_volumes():
    movie, responses = frames([30, 15]), scan([20, 10])
    now = ndl.align(movie, responses).values
    got = ndl.align(movie, responses, delays=[0, 3])
    assert got["delay"].values.tolist() == [0, 0, 0, 3, 3, 3]
    expected = np.zeros((30, 3))
    expected[3:20], expected[23:] = now[:17], now[20:27]
    np.testing.assert_allclose(got.values, np.hstack([now, expected]), atol=1e-6)
    keep = np.array([k for k in range(30) if k not in (4, 5, 24)])
    np.testing.assert_array_equal(
        ndl.align(movie, responses[keep], delays=[0, 3]).values, got.values[keep]
    )
    dropped = ndl.align(movie, responses, delays=[0, 3], missing="drop")
    np.testing.assert_array_equal(dropped.values, np.delete(got.values, [0, 1, 2, 20, 21, 22], 0))


@pytest.mark.parametrize("hrf", ["glover", "spm"])
def test_hrf_is_nilearns_regressor(hrf):
    movie, responses = frames([60], n_features=1), scan([40])
    got = ndl.align(movie, responses, hrf=hrf, slice_time_ref=0.5).values[:, 0]
    condition = (movie["time"].values, np.full(240, 1 / RATE), movie.values[:, 0])
    times = responses["time"].values + 0.5 * TR
    wanted = compute_regressor(condition, hrf, times, oversampling=150)[0][:, 0]
    assert np.corrcoef(got, wanted)[0, 1] > 0.999


def test_custom_hrf_is_the_integral_in_closed_form():
    movie, responses = frames([30], n_features=1), scan([20])
    got = ndl.align(movie, responses, hrf=lambda t: np.exp(-t)).values[:, 0]
    t, start = responses["time"].values[:, None], movie["time"].values
    since, until = np.clip(t - start, 0, None), np.clip(t - start - 1 / RATE, 0, None)
    weights = np.exp(-until) - np.exp(-since)
    np.testing.assert_allclose(got, weights @ movie.values[:, 0], atol=1e-3)


def test_lanczos_keeps_what_is_slow_and_removes_what_is_fast():
    responses = scan([80])
    movie = frames([120], n_features=2)
    t = movie["time"].values + 0.5 / RATE
    movie.values[:] = np.stack([np.sin(2 * np.pi * 0.05 * t), np.sin(2 * np.pi * 0.9 * t)], 1)
    got = ndl.align(movie, responses, delays=[3], method="lanczos").values[10:-10]
    then = responses["time"].values[10:-10] + (0.5 - 3) * TR
    np.testing.assert_allclose(got[:, 0], np.sin(2 * np.pi * 0.05 * then), atol=0.02)
    assert np.abs(got[:, 1]).max() < 0.03


@pytest.mark.parametrize(
    "options",
    [{}, {"delays": [0, 2, 5]}, {"window": 4.0}, {"hrf": "glover"},
     {"method": "lanczos"}, {"method": "lanczos", "delays": [0, 1, 4]}],
)  # fmt: skip
def test_an_impulse_changes_no_earlier_row_and_no_other_run(options):
    movie, responses = frames([30, 30, 30]), scan([20, 20, 20])
    before = ndl.align(movie, responses, **options).values
    for frame in (0, 1, 7, 60, 119):
        changed = movie.copy(deep=True)
        changed[120 + frame] += 1000
        moved = np.any(ndl.align(changed, responses, **options).values != before, axis=1)
        ends = responses["time"].values + TR
        allowed = (responses["run"].values == "b") & (ends > frame / RATE)
        assert not (moved & ~allowed).any()
        assert moved.any() or ("hrf" in options and frame == 119)


def test_runs_are_paired_by_name_and_may_be_shown_twice():
    movie, responses = frames([30, 30], "ba"), scan([20, 20], "ab")
    got = ndl.align(movie, responses)
    np.testing.assert_allclose(got.values[0], movie.values[120:126].mean(0), atol=1e-6)
    twice = ndl.align(movie, responses, runs={"a": "b", "b": "b"}).values
    np.testing.assert_array_equal(twice[:20], twice[20:])
    with pytest.raises(PairingError, match="1 runs of the responses have no features: 'b'"):
        ndl.align(movie, responses, runs={"a": "b"})


def test_lengths_that_differ_are_named_or_trimmed():
    movie, responses = frames([30, 30]), scan([20, 22])
    with pytest.raises(PairingError, match=r"Run 'b' ends 2\.0 samples of 1\.5 s after"):
        ndl.align(movie, responses)
    assert len(ndl.align(movie, responses, lengths="trim")) == 40
    assert len(ndl.align(movie, responses, lengths="keep", trim=(5, 3))) == 42 - 16
    with pytest.raises(PairingError, match="max_difference=1"):
        ndl.align(movie, responses, lengths="trim", max_difference=1)


def test_stimuli_are_placed_by_onset_and_duration():
    clips = xr.DataArray(
        np.array([[1.0], [3.0]], np.float32), dims=("stimulus", "feature"),
        coords={"stimulus": ["x", "y"], "onset": ("stimulus", [1.5, 6.0]),
                "duration": ("stimulus", [3.0, 1.5])},
    )  # fmt: skip
    responses = scan([6]).drop_vars("run")
    assert ndl.align(clips, responses).values[:, 0].tolist() == [0, 1, 1, 0, 3, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"delays": [-1]}, "future"), ({"hrf": "glover", "delays": [1]}, "takes the place"),
     ({"method": "lanczos", "window": 2.0}, "`window`"), ({"trim": (-1, 0)}, "`trim`")],
)  # fmt: skip
def test_impossible_filters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ndl.align(frames([30]), scan([20]), **options)
    with pytest.raises(UnknownNameError, match="glover"):
        ndl.align(frames([30]), scan([20]), hrf="glovr")


def test_the_true_delay_of_simulated_responses_scores_best():
    movie = frames([90, 90, 90], n_features=4, seed=1)
    truth = movie.values.reshape(180, 6, 4).mean(1).reshape(3, 60, 4)
    rng = np.random.default_rng(2)
    signal = np.zeros((3, 60, 2))
    signal[:, 4:] = truth[:, :-4] @ rng.standard_normal((4, 2))
    noisy = signal.reshape(180, 2) + 0.2 * rng.standard_normal((180, 2))
    responses = scan([60, 60, 60], values=noisy.astype(np.float32))
    r = [score(movie, responses, delays=[delay]) for delay in (0, 2, 4, 6)]
    assert np.argmax(r) == 2
    assert r[2] > 0.8
    assert max(r[:2] + r[3:]) < 0.4


def test_the_true_hrf_of_simulated_responses_scores_best():
    movie = frames([90, 90, 90], n_features=4, seed=3)
    times, starts = np.arange(60) * TR, np.arange(360) / RATE
    bold = np.concatenate([
        np.stack([
            compute_regressor((starts, np.full(360, 1 / RATE), column), "glover", times)[0][:, 0]
            for column in movie.values[run * 360 : run * 360 + 360].T
        ], axis=1)
        for run in range(3)
    ])  # fmt: skip
    rng = np.random.default_rng(4)
    values = bold @ rng.standard_normal((4, 2))
    values += 0.3 * values.std(0) * rng.standard_normal(values.shape)
    responses = scan([60, 60, 60], values=values.astype(np.float32))
    right, early, late = (
        score(movie, responses, hrf=hrf)
        for hrf in ("glover", lambda t: np.exp(-t), lambda t: np.exp(-((t - 12) ** 2)))
    )
    assert right > 0.9
    assert max(early, late) < 0.6


def score(movie, responses, **options):
    features = ndl.align({"fc": movie}, responses, **options)
    return float(ndl.cross_validate(Ridge(), features, responses, cv=3, groups="run")["r"].mean())
