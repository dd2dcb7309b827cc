"""What is this project's own: the recordings, as sequences, and the models."""

from __future__ import annotations

import neurodl as ndl
import xarray as xr

from common import DEVICE, SEED, TWIN


def experiment() -> ndl.Experiment:
    """Return spikes (presentation, time, unit) in two halves, "in" and "out".

    Simulated, small; or the course's whole simulation. For recordings of your own, say which units
    are "in" and "out" by the coord roi.
    """
    if TWIN:
        return ndl.load_dataset(
            "simulated_population", n_presentations=40, n_units=48, n_bins=80, n_latents=4
        )
    return ndl.load_dataset("simulated_population")


def halves(exp: ndl.Experiment) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the neurons that are given, as features, and those that are predicted."""
    series = ndl.as_runs(exp.responses)
    names = list(dict.fromkeys(series["roi"].values))
    given = ndl.population_features(ndl.select(series, roi=names[0]))
    return given, ndl.select(series, roi=names[1])


def models() -> dict:
    """Return what is compared: linear, Poisson, and a network with hidden states."""
    size = 8 if TWIN else 10
    return {
        "ridge": ndl.RidgeCV(delays=range(5), device=DEVICE),
        "poisson": ndl.PoissonRidgeCV(device=DEVICE),
        "rnn": network(size),
    }


def network(size: int) -> ndl.SequenceEncoder:
    """Return a causal recurrent network with so many hidden states."""
    return ndl.SequenceEncoder(
        "rnn",
        hidden_size=size,
        lr=0.01,
        batch_size=16,
        max_epochs=80 if TWIN else 300,
        seed=SEED,
        device=DEVICE,
    )
