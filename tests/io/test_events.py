"""Events files and the checks that events fit their scan."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neurodl.errors import FileFormatError, MissingFileError, PairingError, SchemaError
from neurodl.io.events import check_events, event_ids, read_events, scan_times


@pytest.fixture
def events():
    return pd.DataFrame(
        {"onset": [0.0, 4.0, 2.0], "duration": 1.0, "trial_type": ["a", "b", "c"],
         "run": ["1", "1", "2"]}
    )  # fmt: skip


@pytest.fixture
def responses():
    return xr.DataArray(
        np.zeros((10, 1), np.float32),
        dims=("time", "voxel"),
        coords={
            "time": ("time", np.tile(np.arange(5) * 2.0, 2)),
            "run": ("time", ["1"] * 5 + ["2"] * 5),
        },
        attrs={"tr": 2.0, "units": "BOLD"},
    )


def test_reads_a_bids_table(tmp_path):
    path = tmp_path / "events.tsv"
    path.write_text("onset\tduration\ttrial_type\tstimulus\n0.5\t1\tnull\t007\n2\tn/a\tn/a\t12\n")
    table = read_events(path)
    assert table["onset"].tolist() == [0.5, 2]
    assert table["duration"].isna().tolist() == [False, True]
    assert table["trial_type"].isna().tolist() == [False, True]
    assert table["trial_type"][0] == "null"
    assert table["stimulus"].tolist() == ["007", "12"]


def test_says_why_a_table_cannot_be_read(tmp_path):
    path = tmp_path / "events.tsv"
    with pytest.raises(MissingFileError, match="events.tsv does not exist"):
        read_events(path)
    path.write_text("onset,duration\n1,2\n")
    with pytest.raises(FileFormatError, match="no column 'onset'.*tabs"):
        read_events(path)
    path.write_text("")
    with pytest.raises(FileFormatError, match="Cannot read"):
        read_events(path)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [("onset", np.nan, "1 events have no 'onset'.*row 1 b at nan"),
     ("onset", "soon", "no 'onset' that is a finite number.*at soon s in run 1"),
     ("duration", np.inf, "no 'duration'"),
     ("duration", -1.0, "a negative duration.*row 1 b at 4.0 s in run 1"),
     ("modulation", np.nan, "no 'modulation'"),
     ("trial_type", np.nan, "no 'trial_type'")],
)  # fmt: skip
def test_impossible_events_are_named(events, column, value, words):
    if column not in events:
        events[column] = 1.0
    events[column] = events[column].astype(object)
    events.loc[1, column] = value
    with pytest.raises(SchemaError, match=words):
        check_events(events, needs=("onset", "duration", "trial_type"))


def test_missing_columns_are_named(events):
    with pytest.raises(SchemaError, match="no column 'onset'. Did you mean 'onsets'"):
        check_events(events.rename(columns={"onset": "onsets"}))
    with pytest.raises(SchemaError, match="no rows"):
        check_events(events[:0])
    with pytest.raises(SchemaError, match="must be a pandas.DataFrame, but got dict"):
        check_events({"onset": [1]})


def test_events_outside_the_scan_are_named(events, responses):
    check_events(events, responses)
    events.loc[2, "onset"] = 10.0
    with pytest.raises(
        PairingError, match=r"1 events.*run '2'.*0 to 10 s.*row 2 c at 10.0 s.*TR right \(2 s\)"
    ):
        check_events(events, responses)
    events.loc[2, "onset"] = -20.0
    check_events(events, responses)
    events.loc[2, "onset"] = -25.0
    with pytest.raises(PairingError, match="outside the scan"):
        check_events(events, responses)


def test_runs_must_be_those_of_the_responses(events, responses):
    with pytest.raises(PairingError, match="'02'. Did you mean '2'"):
        check_events(events.replace({"run": {"2": "02"}}), responses)
    with pytest.raises(PairingError, match="2 runs.*a column 'run'"):
        check_events(events.drop(columns="run"), responses)
    with pytest.raises(PairingError, match="no coord 'run'"):
        check_events(events, responses[:5].drop_vars("run"))
    numbers = events.assign(run=[1.0, 1.0, 2.0])
    assert check_events(numbers, responses)["run"].tolist() == ["1", "1", "2"]
    one = check_events(events[:2].drop(columns="run"), responses[:5])
    assert one["run"].tolist() == ["1", "1"]
    with pytest.raises(SchemaError, match="time series"):
        check_events(events, responses.rename(time="presentation"))


def test_runs_that_repeat_in_every_session_are_told_apart(events, responses):
    responses["session"] = ("time", ["A"] * 5 + ["B"] * 5)
    responses["run"] = ("time", ["1"] * 10)
    events = events.assign(run="1", session=["A", "A", "B"])
    assert check_events(events, responses)["run"].tolist() == ["A/1", "A/1", "B/1"]
    with pytest.raises(PairingError, match="'C/1'"):
        check_events(events.assign(session="C"), responses)


def test_events_are_not_changed(events, responses):
    before = events.copy()
    check_events(events, responses)
    pd.testing.assert_frame_equal(events, before)


def test_event_ids_prefer_the_stimulus(events):
    assert event_ids(events).tolist() == ["a", "b", "c"]
    assert event_ids(events.assign(stim_file=[1, 2, 3])).tolist() == ["1", "2", "3"]
    with pytest.raises(SchemaError, match="'stimulus', 'stim_file', 'trial_type'"):
        event_ids(events.drop(columns="trial_type"))


def test_scan_times_bridge_censored_volumes(responses):
    kept = responses.isel(time=[0, 1, 4])
    grid, position = scan_times(kept, np.arange(3))
    assert grid.tolist() == [0, 2, 4, 6, 8]
    assert position.tolist() == [0, 1, 4]
    with pytest.raises(SchemaError, match="not sampled every 3 s"):
        scan_times(responses.assign_attrs(tr=3.0), np.arange(5))
