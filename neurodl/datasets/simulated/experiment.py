"""A simulated fMRI experiment whose true responses and ceiling are known."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.datasets.experiment import Experiment
from neurodl.datasets.simulated.areas import noiseless_responses
from neurodl.datasets.simulated.cortex import NOISE, area_voxels
from neurodl.datasets.simulated.images import dead_leaves
from neurodl.datasets.simulated.schedule import schedule
from neurodl.runtime import derive_seed
from neurodl.schema import check_responses
from neurodl.stimuli import Stimuli

TR = 2.0  # s
UNITS = "% signal change"
# % signal change that an image would cause if it stayed, of a voxel of gain 1: the mean over images
# and its standard deviation. The 2 s that it is shown give a peak of about a third.
AMPLITUDE, TUNING = 3.5, 1.4
SMALLEST_IMAGE = 64  # pixels


@dataclass(frozen=True)
class Simulation:
    """A simulated experiment, and the truth behind it.

    Parameters
    ----------
    experiment : Experiment
        Stimuli, single-trial responses ``(presentation, voxel)``, events, and as its ceiling the
        true reliability of the responses averaged over repeats.
    truth : xarray.DataArray
        Noiseless responses ``(stimulus, voxel)`` [% signal change of a sustained response, the
        scale of betas], with the receptive fields field_x, field_y and field_size [deg] as coords
        along voxel.
    noise_sd : xarray.DataArray
        Standard deviation of the noise of a single trial, dim voxel [% signal change].
    seed : int
        What it was made from.
    """

    experiment: Experiment
    truth: xr.DataArray
    noise_sd: xr.DataArray
    seed: int

    @property
    def reliability(self) -> xr.DataArray:
        """Reliability of the averaged responses in variance units, dim voxel."""
        return cast(xr.DataArray, self.experiment.ceiling)

    @property
    def events(self) -> pd.DataFrame:
        """When each image was shown: onset [s], duration [s], trial_type, stimulus and run."""
        return cast(pd.DataFrame, self.experiment.events)

    @property
    def stimuli(self) -> Stimuli:
        """The images."""
        return cast(Stimuli, self.experiment.stimuli)


def simulate(
    *,
    n_images: int = 240,
    n_repeats: int = 3,
    n_runs: int = 8,
    image_size: int = 128,
    reliability: tuple[float, float] = (0.1, 0.5),
    tr: float = TR,
    subject: int | str = 1,
    seed: int = 0,
) -> Simulation:
    """Simulate an fMRI experiment: natural-statistics images, visual areas, a known ceiling.

    Images are dead leaves (`dead_leaves`). About 700 voxels lie in V1, V2, V4 and LOC, and in a
    region "noise" that does not respond, in the grey matter of the MNI152 brain (`area_voxels`).
    V1 sees oriented energy; each later area combines the one before (`noiseless_responses`).

    Each single-trial response is the truth plus white Gaussian noise of variance s2 = v / rho - v,
    where v is the variance of the voxel's truth over images and rho its single-trial reliability,
    drawn evenly out of `reliability`. The squared correlation of the truth with the average of n
    repeats is therefore v / (v + s2 / n) on average, which is the ceiling; it is 0 in the region
    "noise".

    Parameters
    ----------
    n_images, n_repeats, n_runs : int
        Each image is shown in `n_repeats` of the runs, once in each.
    image_size : int
        Side of the images [pixels], which stand for 16 degrees of visual angle.
    reliability : (low, high)
        Range of the single-trial reliability of the responding voxels, in variance units.
    tr : float
        Repetition time [s] of the scan.
    subject : int or str
        Another subject sees the same images in another order, with cells and noise of its own.
    seed : int
        The same seed gives the same experiment; another one gives other images too.

    Returns
    -------
    Simulation

    Raises
    ------
    ValueError
        A number makes no sense; the message names it.

    Examples
    --------
    >>> simulation = simulate(n_images=8, n_repeats=2, n_runs=2, image_size=64)
    >>> dict(simulation.experiment.responses.sizes)
    {'presentation': 16, 'voxel': 692}
    """
    _check_numbers(n_images, n_repeats, n_runs, image_size, tr, reliability)
    label = subject_label(subject)
    images, scenes = dead_leaves(n_images, image_size, seed)
    width = max(4, len(str(n_images)))
    ids = [f"image{number:0{width}d}.png" for number in range(1, n_images + 1)]
    stimuli = Stimuli.from_arrays(images, ids)
    stimuli.table["label"] = scenes
    rng = np.random.default_rng(derive_seed(seed, "schedule", label))
    events = schedule(ids, scenes, n_repeats, n_runs, rng)
    voxels = area_voxels()
    truth, noise_sd = _truth(images, ids, voxels, reliability, derive_seed(seed, "brain", label))
    truth.attrs |= {"units": UNITS, "subject": f"sub-{label}", **voxels.attrs, "tr": float(tr)}
    shown = [ids.index(name) for name in events["stimulus"]]
    rng = np.random.default_rng(derive_seed(seed, "noise", label))
    noise = rng.standard_normal((len(shown), truth.sizes["voxel"])) * noise_sd.values
    responses = xr.DataArray(
        (truth.values[shown] + noise).astype(np.float32),
        dims=("presentation", "voxel"),
        coords={
            **{name: ("presentation", events[name].to_numpy(str)) for name in ("stimulus", "run")},
            "onset": ("presentation", events["onset"].to_numpy()),
            **_anatomy(voxels),
        },
        attrs=truth.attrs,
    )
    variance = truth.astype(np.float64).var("stimulus")
    ceiling = variance / (variance + noise_sd**2 / n_repeats)
    experiment = Experiment(
        stimuli,
        check_responses(responses),
        events=events,
        ceiling=ceiling.drop_vars(["field_x", "field_y", "field_size"]).assign_attrs(
            method="truth", n_repeats=n_repeats
        ),
        name="simulated",
    )
    return Simulation(experiment, truth, noise_sd, seed)


def subject_label(subject: int | str) -> str:
    """Return the label of a subject, given as a number or with or without ``sub-``.

    Examples
    --------
    >>> subject_label(1), subject_label("sub-02")
    ('01', '02')
    """
    label = str(subject).removeprefix("sub-")
    if not label.isalnum():
        raise ValueError(
            f"`subject` must be a number or letters and digits, such as 1 or 'sub-01', but got "
            f"{subject!r}."
        )
    return label.zfill(2) if label.isdigit() else label


def _check_numbers(
    n_images: int,
    n_repeats: int,
    n_runs: int,
    image_size: int,
    tr: float,
    reliability: tuple[float, float],
) -> None:
    whole = {"n_images": n_images, "n_repeats": n_repeats, "n_runs": n_runs}
    least = {"n_images": 4, "n_repeats": 1, "n_runs": 1, "image_size": SMALLEST_IMAGE}
    for name, number in {**whole, "image_size": image_size}.items():
        if isinstance(number, bool) or number != int(number) or number < least[name]:
            raise ValueError(f"`{name}` must be a whole number >= {least[name]}, got {number!r}.")
    if n_repeats > n_runs:
        raise ValueError(
            f"`n_repeats` must not exceed `n_runs`, since the repeats of an image fall in "
            f"different runs, but got {n_repeats} repeats and {n_runs} runs."
        )
    if n_images * n_repeats < n_runs:
        raise ValueError(f"{n_runs} runs are more than the {n_images * n_repeats} presentations.")
    if not 0.1 <= tr <= 10:
        raise ValueError(f"`tr` must be between 0.1 and 10 s, but got {tr!r}.")
    low, high = reliability
    if not 0 < low <= high < 1:
        raise ValueError(f"`reliability` must be (low, high) within (0, 1), got {reliability!r}.")


def _truth(
    images: np.ndarray,
    ids: list[str],
    voxels: xr.Dataset,
    reliability: tuple[float, float],
    seed: int,
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the noiseless responses and the standard deviation of the noise of one trial."""
    rng = np.random.default_rng(derive_seed(seed, "signal"))
    n_voxels = voxels.sizes["voxel"]
    gain = rng.lognormal(0, 0.3, n_voxels)
    share = rng.uniform(*reliability, n_voxels)
    responding = voxels["roi"].values != NOISE
    tuned = noiseless_responses(images, voxels, seed)
    signal = np.where(responding, gain * (AMPLITUDE + TUNING * tuned), 0)
    fields = {name: ("voxel", array.values) for name, array in voxels.data_vars.items()}
    truth = xr.DataArray(
        signal.astype(np.float32),
        dims=("stimulus", "voxel"),
        coords={"stimulus": ids, **_anatomy(voxels), **fields},
    )
    # a voxel without signal is as noisy as one that has some
    spread = gain * TUNING * np.sqrt(1 / share - 1)
    return truth, truth.isel(stimulus=0, drop=True).copy(data=spread).assign_attrs(units=UNITS)


def _anatomy(voxels: xr.Dataset) -> dict[Hashable, Any]:
    """Return the coords that say where voxels are."""
    return {name: ("voxel", array.values) for name, array in voxels.coords.items()}
