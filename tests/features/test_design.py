"""Design features against nilearn's design matrices and by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from nilearn.glm.first_level import make_first_level_design_matrix

from neurodl.errors import PairingError, SchemaError, UnknownNameError
from neurodl.features.design import event_design

TR = 2.5


def scan(lengths, **coords):
    times = np.concatenate([np.arange(n) * TR for n in lengths])
    runs = np.repeat([str(k + 1) for k in range(len(lengths))], lengths)
    return xr.DataArray(
        np.zeros((len(times), 2), np.float32),
        dims=("time", "voxel"),
        coords={"time": ("time", times), "run": ("time", runs), **coords},
        attrs={"tr": TR, "units": "BOLD"},
    )


@pytest.fixture
def events():
    rng = np.random.default_rng(0)
    return pd.concat(
        pd.DataFrame(
            {"onset": np.sort(rng.uniform(3, 110, 8)), "duration": rng.uniform(1, 9, 8),
             "trial_type": rng.permutation(["face", "house", "cat", "cat"] * 2), "run": run}
        )
        for run in ("1", "2")
    )  # fmt: skip


@pytest.mark.parametrize("hrf", ["glover", "spm"])
def test_hrf_design_is_nilearns_run_by_run(events, hrf):
    responses = scan([50, 47])
    design = event_design(events, responses, hrf=hrf)
    assert design.dims == ("time", "feature")
    assert design.dtype == np.float32
    assert design["feature"].values.tolist() == ["cat", "face", "house"]
    for coord in ("time", "run"):
        xr.testing.assert_equal(design[coord].variable, responses[coord].variable)
    for run in ("1", "2"):
        rows = (responses["run"] == run).values
        expected = make_first_level_design_matrix(
            responses["time"].values[rows],
            events[events["run"] == run].drop(columns="run"),
            hrf_model=hrf,
            drift_model=None,
        )
        np.testing.assert_allclose(
            design.values[rows], expected[["cat", "face", "house"]], atol=1e-6
        )
    assert design.attrs["backbone"] == "design"
    assert design.attrs["layer"] == f"trial_type x {hrf}"


def test_fir_design_is_nilearns_to_its_resolution(events):
    responses = scan([50, 50])
    design = event_design(events, responses, hrf=None, delays=[0, 1, 3])
    assert design.attrs["layer"] == "trial_type FIR 0,1,3"
    for run in ("1", "2"):
        rows = (responses["run"] == run).values
        expected = make_first_level_design_matrix(
            responses["time"].values[rows],
            events[events["run"] == run].drop(columns="run"),
            hrf_model="fir",
            fir_delays=[0, 1, 3],
            drift_model=None,
        )
        # nilearn samples the share that the event was on 50 times per TR
        np.testing.assert_allclose(
            design.values[rows], expected[design["feature"].values], atol=2.5 / 50
        )


def test_fir_by_hand():
    responses = scan([6, 5])
    events = pd.DataFrame(
        {"onset": [5.0, 10.0], "duration": [5.0, 0.0], "trial_type": "x", "run": ["1", "2"]}
    )
    design = event_design(events, responses, hrf=None, delays=range(1, 5))
    assert design.attrs["layer"] == "trial_type FIR 1-4"
    assert design["feature"].values.tolist() == [f"x_delay_{lag}" for lag in range(1, 5)]
    assert design["delay"].values.tolist() == [1, 2, 3, 4]
    assert design["condition"].values.tolist() == ["x"] * 4
    on = np.array([0, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(
        design[:6], np.stack([np.r_[np.zeros(lag), on[: 6 - lag]] for lag in range(1, 5)], 1)
    )
    # an event of no duration fills its sample; its lags stop at the border of the run
    np.testing.assert_array_equal(design[6:], np.eye(5, 4, k=-5))


def test_lags_reach_back_to_events_before_the_scan():
    events = pd.DataFrame({"onset": [-2.5], "duration": [2.5], "trial_type": "x"})
    design = event_design(events, scan([4]), hrf=None, delays=[1])
    assert design.values[:, 0].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("how", [{}, {"hrf": None, "delays": [1, 2, 3]}])
def test_nothing_leaks_over_the_border_of_runs_or_before_the_first_event(events, how):
    responses = scan([50, 50])
    both = event_design(events, responses, **how)
    first = events[events["run"] == "1"]
    alone = event_design(first, responses, **how)
    np.testing.assert_array_equal(alone[50:], 0)
    np.testing.assert_array_equal(alone[:50], both[:50])
    early = responses["time"].values[:50] < first["onset"].min() - TR
    assert early.any()
    assert np.abs(both[:50].values[early]).max() < 1e-6
    last = events.assign(onset=events["onset"].where(events["run"] == "2", 120.0))
    assert np.abs(event_design(last, responses, **how)[50:52]).max() < 1e-3


@pytest.mark.parametrize("how", [{}, {"hrf": None, "delays": [1, 2, 3]}])
def test_censored_volumes_leave_the_rest_unchanged(events, how):
    responses = scan([50, 50])
    whole = event_design(events, responses, **how)
    kept = np.setdiff1d(np.arange(100), [0, 1, 20, 21, 22, 70, 99])
    censored = event_design(events, responses.isel(time=kept), **how)
    np.testing.assert_allclose(censored, whole[kept], atol=0.01)


def test_modulation_and_slice_time(events):
    responses = scan([50, 50])
    plain = event_design(events, responses)
    np.testing.assert_allclose(
        event_design(events.assign(modulation=2), responses), 2 * plain, rtol=1e-5
    )
    centred = event_design(events, responses, slice_time_ref=0.5)
    shifted = events.assign(onset=events["onset"] - TR / 2)
    np.testing.assert_allclose(centred, event_design(shifted, responses), atol=0.02)
    by_attr = event_design(events, responses.assign_attrs(slice_time_ref=0.5))
    np.testing.assert_array_equal(by_attr, centred)
    assert np.abs(centred - plain).max() > 0.1


def test_other_columns_and_a_single_run(events):
    responses = scan([50]).drop_vars("run")
    one = events[events["run"] == "1"].drop(columns="run").rename(columns={"trial_type": "what"})
    design = event_design(one, responses, column="what")
    assert design.attrs["layer"] == "what x glover"
    assert "run" not in design.coords


def test_bad_input(events):
    responses = scan([50, 50])
    with pytest.raises(SchemaError, match="no column 'trial_typ'. Did you mean 'trial_type'"):
        event_design(events, responses, column="trial_typ")
    with pytest.raises(UnknownNameError, match="Did you mean 'glover'"):
        event_design(events, responses, hrf="glove")
    with pytest.raises(ValueError, match=r"hrf=None, delays=\[1, 2\]"):
        event_design(events, responses, delays=[1, 2])
    for delays in (None, [], [1, 1], [-1], [0.5]):
        with pytest.raises(ValueError, match="whole numbers of TRs"):
            event_design(events, responses, hrf=None, delays=delays)
    with pytest.raises(PairingError, match="outside the scan of run '2', .* 0 to 25 s"):
        event_design(events, scan([50, 10]))
    with pytest.raises(SchemaError, match="time series|lack the attr|'tr'"):
        event_design(events, responses.drop_attrs().assign_attrs(units="BOLD"))
