"""What is this project's own: the recordings, the events as features, and the models."""

from __future__ import annotations

import neurodl as ndl
import numpy as np
import pandas as pd
import xarray as xr

from common import DEVICE, SEED, TWIN

SESSION = 11
# After the gratings come on [s]: where stimulus and choice both show.
WINDOW = (0.05, 0.35)


def experiment() -> ndl.Experiment:
    """Return responses (presentation, time, unit): simulated, or Steinmetz et al. 2019."""
    if TWIN:
        return _twin()
    return ndl.load_dataset("steinmetz2019", session=SESSION)


def counts(exp: ndl.Experiment) -> xr.DataArray:
    """Return spikes in the window, (presentation, unit), of units that fire at all."""
    binned = exp.responses
    inside = (binned["time"] >= WINDOW[0]) & (binned["time"] < WINDOW[1])
    found = binned.isel(time=np.flatnonzero(inside)).sum("time", keep_attrs=True)
    # Each presentation stands for itself: what was seen and done differs from one to the next.
    ids = [f"trial{number:04d}" for number in range(found.sizes["presentation"])]
    found = found.drop_vars("stimulus").rename(presentation="stimulus").assign_coords(stimulus=ids)
    active = found.mean("stimulus").values > 0.2
    return (
        found.isel(unit=np.flatnonzero(active))
        .drop_attrs()
        .assign_attrs(units="spikes", subject=str(SESSION))
    )


def features(responses: xr.DataArray) -> dict:
    """Return what was seen (contrasts), and what was done (choice), of each presentation."""
    left, right, choice = (
        responses[name].values.astype(float)
        for name in ("contrast_left", "contrast_right", "response")
    )
    spaces = {
        "seen": [left, right, left > 0, right > 0, left - right],
        "done": [choice > 0, choice < 0, choice == 0],
    }
    return {
        name: xr.DataArray(
            np.stack(columns, 1).astype("float32"),
            dims=("stimulus", "feature"),
            coords={"stimulus": responses["stimulus"].values},
            attrs={"backbone": name},
        )
        for name, columns in spaces.items()
    }


def model() -> ndl.PoissonRidgeCV:
    """Return the encoding model: Poisson regression, for counts."""
    return ndl.PoissonRidgeCV(device=DEVICE)


def _twin() -> ndl.Experiment:
    """Return spikes of neurons that see contrast (VISp) or follow the choice (MOs)."""
    rng = np.random.default_rng(SEED)
    n_trials, n_units, width = 160, 40, 0.01
    contrasts = np.array([0.0, 0.25, 0.5, 1.0])
    left, right = rng.choice(contrasts, n_trials), rng.choice(contrasts, n_trials)
    evidence = left - right + 0.35 * rng.standard_normal(n_trials)
    choice = np.where(np.abs(evidence) < 0.15, 0.0, np.sign(evidence))
    events = pd.DataFrame(
        {
            "onset": 1.0 + 2.0 * np.arange(n_trials),
            "duration": 0.5,
            "stimulus": [f"{a:g}/{b:g}" for a, b in zip(left, right, strict=True)],
            "contrast_left": left,
            "contrast_right": right,
            "response": choice,
        }
    )
    seen, done = np.stack([left, right], 1), np.stack([choice > 0, choice < 0], 1).astype(float)
    weights = rng.uniform(0.3, 1.6, (2, n_units)) * rng.choice([0, 1], (2, n_units), p=[0.3, 0.7])
    area = np.repeat(["VISp", "MOs"], n_units // 2)
    drive = np.where(area == "VISp", seen @ weights, done @ weights)
    times = np.arange(-0.2, 0.5, width)
    spikes = {}
    for unit in range(n_units):
        own = []
        delay = 0.05 if area[unit] == "VISp" else 0.15
        for onset, strength in zip(events["onset"], drive[:, unit], strict=True):
            shape = np.where(times > delay, np.exp(-(times - delay) / 0.15), 0)
            n = rng.poisson(width * 6 * np.exp(strength * shape))
            own.append(np.repeat(onset + times, n) + width * rng.random(n.sum()))
        spikes[f"unit{unit:02d}"] = np.sort(np.concatenate(own))
    units = pd.DataFrame({"area": area, "roi": area}, index=list(spikes))
    binned = ndl.bin_spikes(spikes, events, window=(-0.2, 0.5), bin_width=width, units=units)
    return ndl.Experiment(responses=binned, spikes=spikes, events=events, name="simulated task")
