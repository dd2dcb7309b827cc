"""What single-trial betas can get back from a simulated scan, worked out from its design."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.datasets.simulated.experiment import Simulation
from neurodl.datasets.simulated.schedule import n_volumes

AUTOCORRELATION = 0.3  # of the noise from one volume to the next
HIGH_PASS = 0.01  # Hz; all drifts are slower
METHODS = ("lsa", "lss")


@dataclass(frozen=True)
class RunDesign:
    """The regressors of one run.

    Parameters
    ----------
    shown : numpy.ndarray of int, shape (n_trials,)
        Which image each trial shows.
    trials : numpy.ndarray, shape (n_volumes, n_trials)
        The BOLD response to each trial (Glover).
    drifts : numpy.ndarray, shape (n_volumes, n_drifts + 1)
        Cosines, the slowest first, and the constant.
    """

    shown: np.ndarray
    trials: np.ndarray
    drifts: np.ndarray

    def estimator(self, method: str) -> np.ndarray:
        """Return the matrix from time series to betas, shape (n_trials, n_volumes).

        "lsa" is ordinary least squares with all trials in one model, "lss" one model per trial,
        with the others summed.
        """
        if method == "lsa":
            fitted = np.linalg.pinv(np.hstack([self.trials, self.drifts]))
            return np.asarray(fitted[: len(self.shown)])
        total = self.trials.sum(1)
        models = (np.column_stack([one, total - one, self.drifts]) for one in self.trials.T)
        return np.stack([np.linalg.pinv(model)[0] for model in models])


def run_designs(events: pd.DataFrame, ids: pd.Index, tr: float) -> dict[str, RunDesign]:
    """Return the design of each run, images numbered as in `ids`."""
    from nilearn.glm.first_level import make_first_level_design_matrix

    times = np.arange(n_volumes(events, tr)) * tr
    designs = {}
    for run, mine in events.groupby("run", sort=False):
        names = [f"trial{number:06d}" for number in range(len(mine))]
        trials = mine[["onset", "duration"]].assign(trial_type=names)
        design = make_first_level_design_matrix(
            times, trials, hrf_model="glover", drift_model="cosine", high_pass=HIGH_PASS
        )
        shown = ids.get_indexer(pd.Index(mine["stimulus"]))
        drifts = design.drop(columns=names).to_numpy()
        designs[str(run)] = RunDesign(shown, design[names].to_numpy(), drifts)
    return designs


def noise_gain(designs: Mapping[str, RunDesign], method: str) -> float:
    """Return the variance that scanner noise of variance 1 gives betas averaged over repeats.

    The variance over images, averaged over draws of the noise: what raises all images alike, as an
    error of a run's constant does if the run has them all, does no harm and is left out.
    """
    n_repeats = np.bincount(np.concatenate([design.shown for design in designs.values()]))
    total = common = 0.0
    for design in designs.values():
        volume = np.arange(len(design.trials))
        scanner = AUTOCORRELATION ** np.abs(volume[:, None] - volume)
        averaged = design.estimator(method) / n_repeats[design.shown][:, None]
        noise = averaged @ scanner @ averaged.T
        total, common = total + noise.trace(), common + noise.sum()
    return float((total - common / len(n_repeats)) / (len(n_repeats) - 1))


def scanner_noise(simulation: Simulation, designs: Mapping[str, RunDesign]) -> np.ndarray:
    """Return how noisy the time series must be for betas to be as noisy as the trials.

    Returns
    -------
    numpy.ndarray, shape (n_voxels,)
        Standard deviation [% of the baseline] with which the noise of least-squares-all betas,
        averaged over repeats, has the variance ``simulation.noise_sd ** 2 / n_repeats``.
    """
    wanted = simulation.noise_sd.values / np.sqrt(simulation.reliability.attrs["n_repeats"])
    return np.asarray(wanted / np.sqrt(noise_gain(designs, "lsa")))


def expected_reliability(
    simulation: Simulation, designs: Mapping[str, RunDesign], noise_sd: np.ndarray, method: str
) -> xr.DataArray:
    """Return the squared correlation to expect of the truth with betas averaged over repeats.

    Betas are linear in the time series, so their mean over repeats without noise, and the variance
    that noise adds to it, follow from the design. Those of "lsa" are unbiased; those of "lss" hold
    less noise, but some of the responses to the trials before and after.

    Parameters
    ----------
    simulation : Simulation
    designs : mapping of str to RunDesign
    noise_sd : numpy.ndarray, shape (n_voxels,)
        Of the time series [% of the baseline].
    method : {"lsa", "lss"}

    Returns
    -------
    xarray.DataArray
        Dim voxel; 0 where there is no signal.
    """
    truth = simulation.truth.values.astype(np.float64)
    mean, n_repeats = np.zeros_like(truth), np.zeros((len(truth), 1))
    for design in designs.values():
        mean[design.shown] += design.estimator(method) @ design.trials @ truth[design.shown]
        n_repeats[design.shown] += 1
    mean /= n_repeats
    truth, mean = truth - truth.mean(0), mean - mean.mean(0)
    signal = (truth**2).sum(0)
    noise = (len(truth) - 1) * noise_gain(designs, method) * noise_sd**2
    shared, total = (truth * mean).sum(0) ** 2, signal * ((mean**2).sum(0) + noise)
    r2 = np.divide(shared, total, out=np.zeros_like(signal), where=signal > 0)
    return simulation.reliability.copy(data=r2).assign_attrs(method=f"expected of {method} betas")
