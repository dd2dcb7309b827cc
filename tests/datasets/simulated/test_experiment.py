"""The simulated experiment keeps what it promises: its schedule, its noise, its ceiling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neurodl.datasets.simulated import Simulation, simulate
from neurodl.datasets.simulated.experiment import subject_label
from neurodl.responses import average_repeats, stack_repeats
from neurodl.schema import check_responses

SMALL: dict[str, Any] = {"n_images": 12, "n_repeats": 2, "n_runs": 3, "image_size": 64}


def squared_r(truth: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return the squared correlation over stimuli, per voxel."""
    truth, measured = truth - truth.mean(0), measured - measured.mean(0)
    r2 = (truth * measured).sum(0) ** 2 / ((truth**2).sum(0) * (measured**2).sum(0))
    return np.asarray(r2)


def test_same_seed_same_experiment() -> None:
    """Images, schedule, truth and noise come back bit by bit; another seed changes them all."""
    one, same, other = (simulate(**SMALL, seed=seed).experiment for seed in (4, 4, 5))
    assert one.responses is not None and other.responses is not None
    assert same.responses is not None
    assert one.responses.identical(same.responses)
    assert one.events is not None and one.events.equals(same.events)
    assert one.stimuli is not None and same.stimuli is not None and other.stimuli is not None
    assert one.stimuli.hashes() == same.stimuli.hashes()
    assert not set(one.stimuli.hashes()) & set(other.stimuli.hashes())
    assert (one.responses.values != other.responses.values).all()


def test_another_subject_sees_the_same_images() -> None:
    """With cells, noise and an order of its own."""
    one, two = simulate(**SMALL, subject=1), simulate(**SMALL, subject="sub-02")
    assert one.stimuli.hashes() == two.stimuli.hashes()
    assert two.truth.attrs["subject"] == "sub-02"
    assert not one.events["stimulus"].equals(two.events["stimulus"])
    seeing = one.truth["roi"].values != "noise"
    r2 = squared_r(one.truth.values[:, seeing], two.truth.values[:, seeing])
    assert r2.mean() < 0.9


def test_responses_follow_the_schema(simulation: Simulation) -> None:
    """Coords and attrs are there, as read from a file."""
    responses = simulation.experiment.responses
    assert responses is not None
    check_responses(responses)
    assert responses.dims == ("presentation", "voxel") and responses.dtype == np.float32
    assert {"stimulus", "run", "onset", "roi", *"ijkxyz"} <= set(responses.coords)
    assert len(responses.attrs["affine"]) == 16 and len(responses.attrs["shape"]) == 3
    assert responses.attrs["tr"] == 2.0 and responses.attrs["space"] == "MNI152"
    assert list(simulation.stimuli.table["label"]) != [""] * 150


def test_repeats_fall_in_different_runs(simulation: Simulation) -> None:
    """Each image is shown three times, in three runs; runs are as long as each other."""
    events = simulation.events
    assert (events.groupby("stimulus")["run"].nunique() == 3).all()
    assert (events.groupby("stimulus").size() == 3).all()
    assert set(events["stimulus"]) == set(simulation.stimuli.ids)
    assert events.groupby("run").size().tolist() == [90] * 5
    labels = dict(zip(simulation.stimuli.ids, simulation.stimuli.table["label"], strict=True))
    assert events["trial_type"].tolist() == [labels[name] for name in events["stimulus"]]


def test_trials_are_jittered_and_never_overlap(simulation: Simulation) -> None:
    """Two seconds of image, about four from onset to onset, and some pauses."""
    apart = np.concatenate([np.diff(run) for _, run in simulation.events.groupby("run")["onset"]])
    assert (simulation.events["duration"] == 2).all()
    assert apart.min() >= 3
    assert np.median(apart) == pytest.approx(4, abs=0.3)
    assert len(np.unique(apart.round(1))) > 10
    assert 0.04 < (apart > 6).mean() < 0.15


def test_noise_has_the_stated_variance(simulation: Simulation) -> None:
    """White: its variance is noise_sd squared, its trials and voxels are independent."""
    responses, truth = simulation.experiment.responses, simulation.truth
    assert responses is not None
    shown = truth.sel(stimulus=responses["stimulus"].values).values
    noise = (responses.values - shown) / simulation.noise_sd.values
    n = noise.size
    assert noise.mean() == pytest.approx(0, abs=4 / np.sqrt(n))
    assert noise.var() == pytest.approx(1, abs=4 * np.sqrt(2 / n))
    assert (noise[1:] * noise[:-1]).mean() == pytest.approx(0, abs=4 / np.sqrt(n))
    assert (noise[:, 1:] * noise[:, :-1]).mean() == pytest.approx(0, abs=4 / np.sqrt(n))


@pytest.mark.parametrize("n_repeats", [1, 3])
def test_ceiling_is_the_squared_correlation_with_the_truth(
    simulation: Simulation, n_repeats: int
) -> None:
    """Of averages over repeats with the stored ceiling, of single trials by Spearman-Brown."""
    responses, truth = simulation.experiment.responses, simulation.truth
    assert responses is not None
    stacked = stack_repeats(responses).isel(repeat=slice(n_repeats))
    measured = average_repeats(stacked).sel(stimulus=truth["stimulus"])
    ceiling = simulation.reliability.values
    expected = ceiling if n_repeats == 3 else ceiling / (3 - 2 * ceiling)
    seeing = truth["roi"].values != "noise"
    empirical = squared_r(truth.values[:, seeing], measured.values[:, seeing])
    off = empirical - expected[seeing]
    error = off.std() / np.sqrt(len(off))
    assert abs(off.mean()) < 3 * error + 1 / len(truth)
    assert np.corrcoef(empirical, expected[seeing])[0, 1] > 0.8
    single = ceiling[seeing] / (3 - 2 * ceiling[seeing])
    assert single.min() >= 0.1 and single.max() <= 0.5


def test_noise_region_has_no_signal(simulation: Simulation) -> None:
    """Its truth does not vary, its ceiling is 0, its repeats do not correlate; it is noisy."""
    silent = simulation.truth["roi"].values == "noise"
    assert silent.sum() == 80
    assert (simulation.truth.values[:, silent] == 0).all()
    assert (simulation.reliability.values[silent] == 0).all()
    responses = simulation.experiment.responses
    assert responses is not None
    repeats = stack_repeats(responses).values[:, :, silent]
    first, second = (repeats[:, n] - repeats[:, n].mean(0) for n in (0, 1))
    r = (first * second).sum(0) / np.sqrt((first**2).sum(0) * (second**2).sum(0))
    assert abs(r.mean()) < 3 / np.sqrt(150 * 80)
    spread = simulation.noise_sd.values
    assert spread[silent].mean() == pytest.approx(spread[~silent].mean(), rel=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_images": 3}, "`n_images` must be a whole number >= 4"),
        ({"n_images": 10.5}, "`n_images` must be a whole number"),
        ({"n_repeats": 0}, "`n_repeats` must be a whole number >= 1"),
        ({"n_repeats": 9}, "9 repeats and 8 runs"),
        ({"n_images": 4, "n_repeats": 1, "n_runs": 5}, "5 runs are more than the 4 presentations"),
        ({"image_size": 32}, "`image_size` must be a whole number >= 64"),
        ({"reliability": (0.5, 0.2)}, "`reliability` must be"),
        ({"tr": 2000}, "`tr` must be between"),
        ({"subject": "a_b"}, "`subject` must be"),
    ],
)
def test_impossible_numbers_are_named(options: dict[str, Any], message: str) -> None:
    """Before anything is computed."""
    with pytest.raises(ValueError, match=message):
        simulate(**options)


def test_subject_labels() -> None:
    """As in BIDS file names."""
    assert [subject_label(name) for name in (3, "03", "sub-anna")] == ["03", "03", "anna"]
