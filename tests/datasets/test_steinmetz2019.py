"""steinmetz2019: one session of several parts, its areas, its trials and its exact times."""

from __future__ import annotations

import numpy as np
import pytest

import neurodl as ndl
from neurodl.datasets.cards import Card, card_folder
from neurodl.errors import FileFormatError, MissingFileError, UnknownNameError

AREAS = ["VISp", "VISp", "CA1", " TT", "root", "MOs"]
N, K, P = 6, 8, 3  # neurons, trials, passive presentations


def session(rng, number):
    made = {
        "spks": rng.integers(0, 4, (N, K, 250)).astype(np.int8),
        "spks_passive": rng.integers(0, 4, (N, P, 250)).astype(np.int8),
        "wheel": rng.standard_normal((1, K, 250)),
        "wheel_passive": rng.standard_normal((1, P, 250)),
        "pupil": rng.standard_normal((3, K, 250)),
        "face": rng.standard_normal((1, K, 250)),
        "licks": rng.integers(0, 2, (1, K, 250)).astype(np.int8),
        "contrast_left": rng.choice([0, 0.25, 0.5, 1], K),
        "contrast_right": rng.choice([0, 0.25, 0.5, 1], K),
        "contrast_left_passive": rng.choice([0, 0.5], P),
        "contrast_right_passive": rng.choice([0, 0.5], P),
        "response": rng.integers(-1, 2, K).astype(np.float64),
        "response_time": rng.random((K, 1)),
        "gocue": rng.random((K, 1)),
        "feedback_time": rng.random((K, 1)),
        "feedback_type": rng.choice([-1.0, 1.0], K),
        "reaction_time": np.stack([np.r_[np.inf, rng.random(K - 1)], np.ones(K)], 1),
        "prev_reward": rng.integers(0, 2, K),
        "brain_area": np.array(AREAS),
        "ccf": rng.uniform(0, 9000, (N, 3)),
        "trough_to_peak": np.array([4, 20, 10, 11, 30, 3]),
        "bin_size": 0.01,
        "stim_onset": 0.5,
        "mouse_name": f"mouse{number}",
        "date_exp": "2016-12-14",
    }
    return made


@pytest.fixture
def published(tmp_path, rng):
    sessions = [session(rng, number) for number in range(7)]
    for part, rows in enumerate((slice(0, 3), slice(3, 5), slice(5, 7))):
        dat = np.array(sessions[rows], object)
        np.savez(tmp_path / f"steinmetz_part{part}.npz", dat=dat)
    return tmp_path, sessions


@pytest.mark.parametrize("number", [0, 2, 3, 6])
def test_each_session_is_found_in_its_part(published, number):
    root, sessions = published
    stored = sessions[number]
    experiment = ndl.load_dataset("steinmetz2019", root=root, session=number)
    responses = experiment.responses
    assert responses.dims == ("presentation", "time", "unit") and responses.dtype == np.float32
    np.testing.assert_array_equal(responses, stored["spks"].transpose(1, 2, 0))
    assert responses.attrs["subject"] == f"mouse{number}" and responses.attrs["bin_width"] == 0.01
    assert responses["time"].values[[0, 50]].tolist() == [-0.5, 0.0]
    np.testing.assert_allclose(responses["wheel"], stored["wheel"][0], rtol=1e-6)
    np.testing.assert_allclose(responses["pupil_y"], stored["pupil"][2], rtol=1e-6)
    np.testing.assert_array_equal(responses["response"], stored["response"])
    np.testing.assert_array_equal(responses["gocue"], stored["gocue"].ravel())
    assert np.isnan(responses["reaction_time"].values[0])  # the wheel never moved
    name = f"left-{stored['contrast_left'][4]:.2f}_right-{stored['contrast_right'][4]:.2f}"
    assert responses["stimulus"].values[4] == name
    assert responses["roi"].values.tolist() == [
        "visual cortex", "visual cortex", "hippocampus", "other cortex", "other", "other cortex"
    ]  # fmt: skip
    assert responses["area"].values[3] == "TT"  # published with a blank before it
    assert responses["fast_spiking"].values.tolist() == [True, False, True, False, False, True]
    ndl.check_responses(responses)


def test_areas_and_passive_presentations(published):
    root, sessions = published
    options = {"root": root, "session": 1, "passive": True}
    responses = ndl.load_dataset("steinmetz2019", **options, roi=["VISp", "other cortex"]).responses
    expected = sessions[1]["spks_passive"][[0, 1, 3, 5]].transpose(1, 2, 0)
    np.testing.assert_array_equal(responses, expected)
    assert "response" not in responses.coords and "pupil_x" not in responses.coords
    np.testing.assert_allclose(responses["wheel"], sessions[1]["wheel_passive"][0], rtol=1e-6)
    with pytest.raises(UnknownNameError, match="nothing in 'VISpm'. Did you mean 'VISp'"):
        ndl.load_dataset("steinmetz2019", **options, roi="VISpm")


def test_exact_times_have_one_clock_that_agrees_with_the_bins(published, rng):
    root, sessions = published
    extra = []
    for stored in sessions:
        times = np.empty((N, K), object)
        for unit in range(N):
            for trial in range(K):
                counts = stored["spks"][unit, trial]
                starts = np.repeat(np.arange(250) * 0.01, counts)
                exact = starts + rng.uniform(0.001, 0.009, len(starts))
                times[unit, trial] = exact if len(exact) % 2 else exact.tolist()
        extra.append({"ss": times, "ss_passive": times[:, :P]})
    np.savez(root / "steinmetz_st.npz", dat=np.array(extra, object))
    options = {"root": root, "session": 4, "roi": "CA1"}
    experiment = ndl.load_dataset("steinmetz2019", **options, spike_times=True)
    binned = ndl.bin_spikes(
        experiment.spikes, experiment.events, window=(-0.5, 2.0), bin_width=0.01
    )
    np.testing.assert_array_equal(binned.values, experiment.responses.values)


def test_field_potentials(published, rng):
    root, sessions = published
    stored = [
        {
            "lfp": rng.standard_normal((2, K, 250)),
            "lfp_passive": rng.standard_normal((2, P, 250)),
            "brain_area_lfp": ["VISp", "root"],
        }
        for _ in sessions
    ]
    np.savez(root / "steinmetz_lfp.npz", dat=np.array(stored, object))
    responses = ndl.load_dataset("steinmetz2019", root=root, session=5, signal="lfp").responses
    assert responses.dims == ("presentation", "time", "channel")
    np.testing.assert_allclose(responses, stored[5]["lfp"].transpose(1, 2, 0), rtol=1e-6)
    assert responses["roi"].values.tolist() == ["visual cortex", "other"]


def test_what_is_needed_of_the_published_files():
    card = Card.read(card_folder() / "steinmetz2019.toml")
    for chosen, count in (
        ({"session": 11}, 1),
        ({"session": 20}, 2),
        ({"session": 38, "spike_times": True}, 4),
    ):
        chosen = {"signal": "spikes", "spike_times": False} | chosen
        assert len(card.files(chosen)) == count


def test_what_is_missing_or_wrong(published, rng):
    root, _ = published
    options = {"root": root, "session": 0}
    with pytest.raises(UnknownNameError, match="has no session '39'"):
        ndl.load_dataset("steinmetz2019", root=root, session=39)
    with pytest.raises(UnknownNameError, match="from 0 to 6, but got 12"):
        ndl.load_dataset("steinmetz2019", root=root, session=12)
    with pytest.raises(
        MissingFileError, match=r"steinmetz_st\.npz from https://osf\.io/4bjns|st.npz"
    ):
        ndl.load_dataset("steinmetz2019", **options, spike_times=True)
    wrong = session(rng, 0) | {"spks": np.zeros((N, K, 100), np.int8)}
    np.savez(root / "steinmetz_part0.npz", dat=np.array([wrong, wrong], object))
    with pytest.raises(FileFormatError, match=r"spks is a int8 array .*expected .*250\)"):
        ndl.load_dataset("steinmetz2019", **options)
    np.savez(root / "steinmetz_part0.npz", dat=np.array([[1], 2], object))
    with pytest.raises(FileFormatError, match="holds a list in place of a dict"):
        ndl.load_dataset("steinmetz2019", **options)
