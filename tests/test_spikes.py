"""Spikes and traces around events, against loops; rates, histograms and tuning; bad input."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurodl.errors import (
    NeurodlWarning,
    PairingError,
    SchemaError,
    TooLargeError,
    UnknownNameError,
)
from neurodl.io.nwb import read_spikes
from neurodl.responses import (
    as_runs,
    bin_spikes,
    bin_traces,
    binning,
    psth,
    smooth,
    stabilize_variance,
    tuning_curve,
)
from neurodl.schema import check_responses


@pytest.fixture
def spikes(rng):
    return {"u1": np.sort(rng.uniform(0, 20, 400)), "u2": np.sort(rng.uniform(0, 20, 90)), "u3": []}


@pytest.fixture
def shown():
    return pd.DataFrame(
        {"onset": [0.5, 3.0, 8.25, 12.0], "stimulus": ["x", "y", "x", "z"], "run": [1, 1, 2, 2]}
    )


def count(spikes, onsets, window):
    return np.array(
        [
            [sum(on + window[0] <= t < on + window[1] for t in times) for times in spikes.values()]
            for on in onsets
        ]
    )


def test_bin_spikes_counts_as_a_loop_does(spikes, shown):
    counts = bin_spikes(spikes, shown, window=(0.05, 0.2))
    assert counts.dims == ("presentation", "unit")
    assert counts.dtype == np.float32
    np.testing.assert_array_equal(counts, count(spikes, shown["onset"], (0.05, 0.2)))
    assert counts.attrs["units"] == "spikes" and counts.attrs["n_silent"] == 1
    assert counts["stimulus"].values.tolist() == ["x", "y", "x", "z"]
    assert counts["run"].values.tolist() == ["1", "1", "2", "2"]
    check_responses(counts)


def test_bins_add_up_to_the_window(spikes, shown):
    binned = bin_spikes(spikes, shown, window=(-0.1, 0.2), bin_width=0.01)
    assert binned.dims == ("presentation", "time", "unit")
    np.testing.assert_allclose(binned["time"], np.arange(30) * 0.01 - 0.1, atol=1e-12)
    assert binned.attrs["bin_width"] == 0.01
    whole = bin_spikes(spikes, shown, window=(-0.1, 0.2))
    np.testing.assert_array_equal(binned.sum("time"), whole)
    check_responses(binned)


@pytest.mark.parametrize("cost", [0.0, np.inf])
@given(
    ticks=st.lists(st.integers(0, 400), max_size=60),
    onsets=st.lists(st.integers(0, 350), min_size=1, max_size=12),
    n_bins=st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_both_ways_to_count_agree_with_histograms(cost, ticks, onsets, n_bins):
    # Times on a grid of binary fractions: spikes on borders, which must count once, are common.
    times = np.sort(np.array(ticks)) / 64
    events = pd.DataFrame({"onset": np.array(onsets) / 64, "stimulus": "x"})
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", NeurodlWarning)
        patch.setattr(binning, "CANDIDATE_COST", cost)
        found = bin_spikes(
            {"u": times},
            events,
            window=(0, n_bins / 16),
            bin_width=1 / 16,
            overlap="allow",
            recorded=(-1, 20),
        )
    for row, onset in enumerate(events["onset"]):
        edges = onset + np.arange(n_bins + 1) / 16
        expected = np.histogram(times, edges)[0]
        expected[-1] -= (times == edges[-1]).sum()  # numpy's last bin is closed
        np.testing.assert_array_equal(found[row, :, 0], expected)


def test_bins_of_decimal_widths_are_those_of_their_borders(rng):
    onsets = np.cumsum(rng.uniform(0.5, 0.7, 200))
    borders = (onsets[:, None] + np.arange(51) / 100).ravel()
    times = np.sort(np.concatenate([borders, rng.uniform(0, 120, 500)]))
    events = pd.DataFrame({"onset": onsets, "stimulus": "x"})
    binned = bin_spikes({"u": times}, events, window=(0, 0.5), bin_width=0.01)
    by_search = np.diff(np.searchsorted(times, onsets[:, None] + binned_edges(50, 0.5)), axis=1)
    np.testing.assert_array_equal(binned[..., 0], by_search)


def binned_edges(n_bins, stop):
    return np.arange(n_bins + 1) * stop / n_bins


def test_a_spike_on_a_border_counts_once():
    events = pd.DataFrame({"onset": [1.0], "trial_type": ["x"]})
    binned = bin_spikes(
        {"u": np.array([1.0, 1.25, 1.5, 2.0])}, events, window=(0, 0.5), bin_width=0.25
    )
    assert binned.values.ravel().tolist() == [1, 1]


def test_a_real_recording_is_binned_without_loss(recordings):
    spikes = read_spikes(recordings / "spikes_pynapple" / "A8604-211122.nwb")
    end = max(times[-1] for times in spikes.values())
    events = pd.DataFrame({"onset": np.arange(0, end + 1e-9, 10.0), "stimulus": "ten seconds"})
    events = events[events["onset"] <= end]
    for width in (None, 0.1):
        binned = bin_spikes(spikes, events, window=(0, 10), bin_width=width)
        assert binned.sum() == 21354
        for unit, times in spikes.items():
            assert binned.sel(unit=unit).sum() == len(times)


def test_the_same_spikes_from_any_source(recordings):
    pynwb, nap = pytest.importorskip("pynwb"), pytest.importorskip("pynapple")
    path = recordings / "spikes_pynapple" / "A8604-211122.nwb"
    events = pd.DataFrame({"onset": np.arange(5.0, 1000, 7), "stimulus": "x"})
    mine = read_spikes(path)
    expected = bin_spikes(mine, events, window=(0, 5), bin_width=0.5)
    group = nap.TsGroup({int(unit): nap.Ts(times) for unit, times in mine.items()})
    xr.testing.assert_allclose(bin_spikes(group, events, window=(0, 5), bin_width=0.5), expected)
    with pynwb.NWBHDF5IO(str(path), "r") as io:
        file = io.read()
        for source in (file, file.units):
            found = bin_spikes(source, events, window=(0, 5), bin_width=0.5)
            xr.testing.assert_identical(found, expected)
    support = nap.IntervalSet([0, 500], [300, 800])
    with pytest.warns(NeurodlWarning, match="not inside the recording, 0 to 800 s"):
        part = bin_spikes(group.restrict(support), events, window=(0, 5))
    onsets = events["onset"].to_numpy()
    inside = (onsets + 5 <= 300) | ((onsets >= 500) & (onsets + 5 <= 800))
    assert part.attrs["n_dropped"] == (~inside).sum()
    np.testing.assert_array_equal(part["onset"], onsets[inside])
    np.testing.assert_array_equal(part, expected.sum("time")[inside])


def test_windows_lie_where_they_are_aligned(spikes, shown):
    answered = shown.assign(
        response_time=[1.0, np.nan, 9.5, 12.25], correct=[True, False, True, True]
    )
    found = bin_spikes(spikes, answered, window=(-0.5, 0.5), align="response_time")
    assert found.attrs["n_dropped"] == 1 and found.attrs["align"] == "response_time"
    np.testing.assert_array_equal(found, count(spikes, [1.0, 9.5, 12.25], (-0.5, 0.5)))
    assert found["correct"].values.tolist() == [True, True, True]
    assert found["onset"].values.tolist() == [0.5, 8.25, 12.0]
    with pytest.raises(SchemaError, match="no column 'response'. Did you mean 'response_time'"):
        bin_spikes(spikes, answered, window=(0, 1), align="response")
    with pytest.raises(SchemaError, match="No event has a time in 'x'"):
        bin_spikes(spikes, shown.assign(x=np.nan), window=(0, 1), align="x")


def test_units_are_chosen_by_what_is_known_of_them(spikes, shown):
    units = pd.DataFrame(
        {"area": ["V4", "V1", "V4"], "quality": ["good", "mua", "good"], "depth": [1, 2, np.nan]},
        index=["u3", "u1", "u2"],
    )
    everything = bin_spikes(spikes, shown, window=(0, 2))
    found = bin_spikes(spikes, shown, window=(0, 2), units=units.query("area == 'V4'"))
    assert found["unit"].values.tolist() == ["u3", "u2"]
    assert found["quality"].values.tolist() == ["good", "good"]
    np.testing.assert_array_equal(found, everything.sel(unit=["u3", "u2"]))
    fast = bin_spikes(spikes, shown, window=(0, 2), units=units, min_rate=10)
    assert fast["unit"].values.tolist() == ["u1"] and fast.attrs["n_low_rate"] == 2
    assert fast["depth"].values.tolist() == [2.0]
    with pytest.raises(SchemaError, match="1 rows of `units` have no spike.*mean 'u1'"):
        bin_spikes(spikes, shown, window=(0, 2), units=units.rename(index={"u1": "u11"}))
    with pytest.raises(SchemaError, match="No unit fires at `min_rate` = 1000"):
        bin_spikes(spikes, shown, window=(0, 2), min_rate=1000)


def test_stimuli_with_onsets_are_events(spikes, shown):
    class Shown:
        table = shown.iloc[:2].set_index("stimulus")

    expected = bin_spikes(spikes, shown[:2], window=(0, 1))
    xr.testing.assert_identical(bin_spikes(spikes, Shown(), window=(0, 1)), expected)


def test_bin_spikes_bad_input(spikes, shown):
    with pytest.raises(ValueError, match="`window`"):
        bin_spikes(spikes, shown, window=(0.2, 0.2))
    for width in (0.07, 0, -1, 5):
        with pytest.raises(ValueError, match=r"`bin_width` must divide the window of 0\.2 s"):
            bin_spikes(spikes, shown, window=(0, 0.2), bin_width=width)
    with pytest.raises(SchemaError, match="'stimulus', 'stim_file', 'trial_type'"):
        bin_spikes(spikes, shown.drop(columns="stimulus"), window=(0, 1))
    with pytest.raises(SchemaError, match="no column 'onset'"):
        bin_spikes(spikes, shown.drop(columns="onset"), window=(0, 1))
    with pytest.raises(SchemaError, match="no 'onset' that is a finite number"):
        bin_spikes(spikes, shown.assign(onset=[1, np.nan, 2, 3]), window=(0, 1))
    with pytest.raises(SchemaError, match="unit 'u9' must be a 1-D array of finite seconds"):
        bin_spikes({"u9": np.array([1, np.nan])}, shown, window=(0, 1))
    with pytest.raises(SchemaError, match="unit 'u9' fall 2 times, first from 3 to 1 s.*clock of"):
        bin_spikes({"u9": np.array([3.0, 1.0, 2.0, 0.5])}, shown, window=(0, 1))
    with pytest.raises(SchemaError, match="Unit 'u9' has 2 spikes before 0 s.*not relative to"):
        bin_spikes({"u9": np.array([-3.0, -1.0, 2.0])}, shown, window=(0, 1))
    with pytest.raises(SchemaError, match="no units"):
        bin_spikes({}, shown, window=(0, 1))
    with pytest.raises(SchemaError, match="several units of one name"):
        bin_spikes({1: np.ones(1), "1": np.ones(1)}, shown, window=(0, 1))
    with pytest.raises(SchemaError, match="must be a mapping.*but got list"):
        bin_spikes([np.ones(3)], shown, window=(0, 1))


def test_overlapping_windows_are_an_error_unless_allowed(spikes):
    events = pd.DataFrame({"onset": [1.0, 1.5, 1.75, 9.0], "stimulus": list("abcd")})
    with pytest.raises(SchemaError, match=r"2 of 4 windows reach into the next: it begins 0\.25 s"):
        bin_spikes(spikes, events, window=(0, 1))
    shared = bin_spikes(spikes, events, window=(0, 1), overlap="allow")
    np.testing.assert_array_equal(shared, count(spikes, events["onset"], (0, 1)))
    touching = bin_spikes(spikes, events.assign(onset=[1.0, 2.0, 3.0, 9.0]), window=(0, 1))
    assert touching.sizes["presentation"] == 4
    with pytest.raises(ValueError, match="`overlap`"):
        bin_spikes(spikes, events, window=(0, 1), overlap="yes")


def test_events_outside_the_recording_are_left_out_and_counted(spikes, shown):
    late = shown.assign(onset=[0.5, 3, 900, 1200])
    with pytest.warns(NeurodlWarning, match="2 of 4 events are wholly outside.*clock") as caught:
        counts = bin_spikes(spikes, late, window=(0, 1))
    assert caught[0].filename == __file__
    assert counts.sizes["presentation"] == counts.attrs["n_dropped"] == 2
    with pytest.warns(NeurodlWarning, match="1 of 4 events are not inside the recording"):
        inside = bin_spikes(spikes, shown, window=(0, 1), recorded=(0, 12.5))
    assert inside["onset"].values.tolist() == [0.5, 3.0, 8.25]
    milliseconds = shown.assign(onset=1000 * shown["onset"] + 100_000)
    with pytest.raises(PairingError, match="No window lies in the recording.*both in seconds"):
        bin_spikes(spikes, milliseconds, window=(0, 1))
    with pytest.raises(ValueError, match="`recorded`"):
        bin_spikes(spikes, shown, window=(0, 1), recorded=(3, 2))


def test_counts_that_do_not_fit_into_memory_are_an_error(spikes, shown, monkeypatch):
    monkeypatch.setattr(binning, "available_memory", lambda device: 1000)
    with pytest.raises(TooLargeError, match="4 presentations x 100 bins x 3 units.*wider bins"):
        bin_spikes(spikes, shown, window=(0, 1), bin_width=0.01)


@pytest.fixture
def traces(rng):
    times = np.concatenate([np.arange(200), np.arange(150)]) / 10
    return xr.DataArray(
        rng.standard_normal((350, 3)).astype(np.float32),
        dims=("time", "unit"),
        coords={
            "time": times,
            "run": ("time", np.repeat(["1", "2"], [200, 150])),
            "cell": ("unit", [7, 8, 9]),
        },
        attrs={"units": "dF/F", "bin_width": 0.1, "subject": "m1"},
    )


def test_traces_are_averaged_as_a_loop_does(traces, shown):
    shown = shown.assign(onset=[0.5, 3.0, 8.2, 11.0])
    found = bin_traces(traces, shown, window=(-0.2, 0.8), bin_width=0.25)
    assert found.dims == ("presentation", "time", "unit") and found.attrs["units"] == "dF/F"
    assert found["cell"].values.tolist() == [7, 8, 9]
    for row, (run, onset) in enumerate(zip(shown["run"], shown["onset"], strict=True)):
        own = traces[traces["run"] == str(run)]
        for place, start in enumerate(found["time"].values):
            low = onset + start
            some = (own["time"] >= low - 1e-9) & (own["time"] < low + 0.25 - 1e-9)
            np.testing.assert_allclose(found[row, place], own[some].mean("time"), rtol=1e-5)
    whole = bin_traces(traces, shown, window=(0, 1))
    assert whole.dims == ("presentation", "unit")


def test_missing_samples_of_traces_stay_missing_where_they_are(traces, shown):
    traces[5, 1] = np.nan
    found = bin_traces(traces, shown.assign(onset=[0.5, 3, 8, 11]), window=(0, 0.5))
    assert np.isnan(found.values).sum() == 1 and np.isnan(found.values[0, 1])


def test_traces_bad_input(traces, shown):
    late = shown.assign(onset=[0.5, 19.8, 8, 14.8])
    cut = bin_traces(traces, late, window=(0, 0.5))
    assert cut.attrs["n_dropped"] == 2 and cut["onset"].values.tolist() == [0.5, 8]
    with pytest.raises(PairingError, match="No window lies in the recording"):
        bin_traces(traces, late, window=(50, 60))
    with pytest.raises(SchemaError, match=r"bins hold no sample.*0\.1 s apart: take wider"):
        bin_traces(traces, shown, window=(0, 0.5), bin_width=0.05)
    with pytest.raises(SchemaError, match="need a column 'run'"):
        bin_traces(traces, shown.drop(columns="run"), window=(0, 0.5))
    with pytest.raises(PairingError, match="the run '3', which"):
        bin_traces(traces, shown.assign(run=[1, 1, 3, 3]), window=(0, 0.5))
    with pytest.raises(SchemaError, match="reach into the next"):
        bin_traces(traces, shown.assign(onset=[0.5, 0.6, 8, 11]), window=(0, 0.5))


def test_suite2p_goes_the_same_way(recordings):
    folder = recordings / "spikes_pynapple"
    spks = np.load(folder / "suite2p_spks.npy")
    traces = xr.DataArray(
        spks.T.astype(np.float32),
        dims=("time", "unit"),
        coords={"time": np.arange(spks.shape[1]) / 30},
        attrs={"units": "deconvolved", "bin_width": 1 / 30},
    )
    events = pd.DataFrame({"onset": np.arange(0, 60, 2.0), "stimulus": "x"})
    found = bin_traces(traces, events, window=(0, 2), bin_width=0.5)
    np.testing.assert_allclose(
        found.mean("time")[3], spks[:, 180:240].mean(1), rtol=1e-4, atol=1e-6
    )


@pytest.fixture
def binned(rng):
    return xr.DataArray(
        rng.poisson(2.0, (12, 40, 3)).astype(np.float32),
        dims=("presentation", "time", "unit"),
        coords={
            "stimulus": ("presentation", ["a", "b", "c"] * 4),
            "run": ("presentation", ["1"] * 6 + ["2"] * 6),
            "wheel": (("presentation", "time"), rng.standard_normal((12, 40))),
            "time": np.arange(40) / 50,
            "area": ("unit", ["V1", "V1", "V4"]),
        },
        attrs={"units": "spikes", "bin_width": 0.02},
    )


@pytest.mark.parametrize("causal", [False, True])
def test_smoothing_is_a_normalised_gaussian(binned, causal):
    sd, times = 0.05, binned["time"].values
    lags = times[:, None] - times  # of each bin behind each other
    weights = np.exp(-0.5 * (lags / sd) ** 2)
    if causal:
        weights[lags < -1e-9] = 0
    weights[np.abs(lags) > 4 * sd + 1e-9] = 0
    expected = np.einsum("ts,nsu->ntu", weights / weights.sum(1, keepdims=True), binned)
    smoothed = smooth(binned, sd, causal=causal)
    np.testing.assert_allclose(smoothed, expected, rtol=1e-5)
    assert smoothed.attrs["smoothed"] == sd
    series = as_runs(binned)
    np.testing.assert_allclose(smooth(series, sd, causal=causal), as_runs(smoothed), rtol=1e-5)


def test_causal_smoothing_shows_nothing_before_it_happens(binned):
    impulse = binned.copy(data=np.zeros(binned.shape, np.float32))
    impulse[:, 20] = 1
    assert (smooth(impulse, 0.1, causal=True)[:, :20] == 0).all()
    assert (smooth(impulse, 0.1)[:, :20] > 0).any()


def test_smoothing_bad_input(binned):
    with pytest.raises(SchemaError, match="needs a dim 'time'"):
        smooth(binned.isel(time=0, drop=True), 0.1)
    with pytest.raises(ValueError, match="`sd`"):
        smooth(binned, 0)
    with pytest.raises(SchemaError, match=r"not sampled every 0\.02 s"):
        smooth(binned.isel(time=[0, 1, 5]), 0.1)


def test_histograms_are_means_with_students_interval(binned):
    found = psth(binned)
    some = binned.values[binned["stimulus"].values == "b"] / 0.02
    np.testing.assert_allclose(found["rate"].sel(stimulus="b"), some.mean(0), rtol=1e-5)
    low, high = scipy.stats.t.interval(
        0.95, 3, some.mean(0), np.maximum(scipy.stats.sem(some, 0), 1e-12)
    )
    np.testing.assert_allclose(found["low"].sel(stimulus="b"), low, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["high"].sel(stimulus="b"), high, rtol=1e-4, atol=1e-4)
    assert found.attrs["units"] == "spikes / s"
    assert found["n_presentations"].values.tolist() == [4, 4, 4]
    assert found["area"].values.tolist() == ["V1", "V1", "V4"]
    np.testing.assert_allclose(psth(binned, sd=0.04)["rate"], psth(smooth(binned, 0.04))["rate"])
    with pytest.raises(UnknownNameError, match="no coord 'stimuli'.*Did you mean 'stimulus'"):
        psth(binned, "stimuli")
    with pytest.raises(SchemaError, match="say bin_width"):
        psth(binned.isel(time=0, drop=True))


def test_intervals_of_rates_cover_the_truth():
    rng = np.random.default_rng(5)
    n_units, n_trials = 400, 12
    counts = xr.DataArray(
        rng.poisson(6.0, (2 * n_trials, n_units)).astype(np.float32),
        dims=("presentation", "unit"),
        coords={"stimulus": ("presentation", ["a", "b"] * n_trials)},
        attrs={"units": "spikes", "window": [0.0, 0.5]},
    )
    found = tuning_curve(counts, "stimulus", confidence=0.9)
    covered = ((found["low"] <= 12) & (found["high"] >= 12)).values
    assert 0.87 < covered.mean() < 0.93  # 800 intervals: 3 standard errors
    single = tuning_curve(counts[:2], "stimulus")
    assert np.isnan(single["low"].values).all() and np.isfinite(single["rate"].values).all()


def test_tuning_to_a_circular_variable(rng):
    angles = rng.uniform(0, 2 * np.pi, 4000)
    rate = np.exp(2 * np.cos(angles - 0.3))
    counts = xr.DataArray(
        rng.poisson(rate)[:, None].astype(np.float32),
        dims=("presentation", "unit"),
        coords={
            "stimulus": ("presentation", np.arange(4000).astype(str)),
            "orientation": ("presentation", angles),
        },
        attrs={"units": "calcium events"},
    )
    found = tuning_curve(counts, "orientation", n_bins=16, period=2 * np.pi)
    assert len(found["orientation"]) == 16 and found["orientation"].values[0] == 0
    peak = found["orientation"].values[int(found["rate"].argmax("orientation")[0])]
    assert abs(peak - 0.3) < 2 * np.pi / 16
    first = (angles < np.pi / 16) | (angles >= 2 * np.pi - np.pi / 16)
    np.testing.assert_allclose(found["rate"][0, 0], counts.values[first].mean(), rtol=1e-5)
    equal = tuning_curve(counts, "orientation", n_bins=4)
    np.testing.assert_allclose(equal["n_presentations"].sum(), 4000)
    with pytest.raises(ValueError, match="give n_bins"):
        tuning_curve(counts, "orientation", period=6.28)
    with pytest.raises(SchemaError, match="Bins are of numbers"):
        tuning_curve(counts, "stimulus", n_bins=3)


def test_presentations_become_runs(binned):
    series = as_runs(binned)
    assert series.dims == ("time", "unit") and len(series) == 480
    np.testing.assert_array_equal(series[40:80], binned[1])
    assert series["run"].values[[0, 39, 40, 479]].tolist() == ["0", "0", "1", "11"]
    assert series["block"].values[[0, 479]].tolist() == ["1", "2"]
    np.testing.assert_array_equal(series["wheel"], binned["wheel"].values.ravel())
    np.testing.assert_array_equal(series["time"][40:80], binned["time"])
    assert series["area"].values.tolist() == binned["area"].values.tolist()
    with pytest.raises(SchemaError, match="as_runs needs dims"):
        as_runs(binned.isel(time=0, drop=True))


def test_variance_stabilised_counts(rng):
    for rate in (4.0, 20.0, 100.0):
        counts = xr.DataArray(
            rng.poisson(rate, (20000, 1)).astype(np.float32),
            dims=("presentation", "unit"),
            coords={"stimulus": ("presentation", np.arange(20000).astype(str))},
            attrs={"units": "spikes"},
        )
        at = np.arange(400)
        chances = scipy.stats.poisson.pmf(at, rate)
        variance = chances @ at - (chances @ np.sqrt(at)) ** 2
        assert abs(float(stabilize_variance(counts).var()) / variance - 1) < 0.04
        assert abs(float(stabilize_variance(counts, "anscombe").var()) - 1) < 0.06
    assert stabilize_variance(counts).attrs["units"] == "sqrt spikes"
    with pytest.raises(SchemaError, match="values are below 0"):
        stabilize_variance(counts - 1000)
    with pytest.raises(UnknownNameError, match="Did you mean 'sqrt'"):
        stabilize_variance(counts, "sqr")
