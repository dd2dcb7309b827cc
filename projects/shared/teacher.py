"""The twin of projects about networks: responses that a known network gives to simulated scenes."""

from __future__ import annotations

import functools

import neurodl as ndl
import numpy as np
import xarray as xr
from neurodl.datasets import dead_leaves

from common import SEED

SMALL = {"transform": {"input_size": (3, 64, 64)}}
N_VOXELS = 40


_scenes = functools.cache(lambda n: dead_leaves(n, 64, SEED))


def images(n: int) -> ndl.Stimuli:
    """Return the twin's images: simulated scenes of four kinds, which are their labels."""
    pixels, scenes = _scenes(n)
    stimuli = ndl.Stimuli.from_arrays(pixels)
    stimuli.table["label"] = scenes
    return stimuli


def taught(teacher: ndl.Backbone, layer: str, stimuli: ndl.Stimuli) -> ndl.Experiment:
    """Return responses that are linear in a layer of a network, with noise: the truth is known."""
    values = ndl.extract_features(teacher, stimuli, layers=[layer], pool="avg", cache=False)[
        layer
    ].values
    rng = np.random.default_rng(SEED)
    parts = np.linalg.svd(values - values.mean(0), full_matrices=False).U[:, :8]
    truth = parts @ rng.standard_normal((parts.shape[1], N_VOXELS))
    truth /= truth.std(0)
    repeats = truth[:, None] + 0.9 * rng.standard_normal((len(truth), 3, N_VOXELS))
    responses = xr.DataArray(
        repeats.astype("float32"),
        dims=("stimulus", "repeat", "voxel"),
        coords={
            "stimulus": stimuli.ids,
            "repeat": [1, 2, 3],
            "roi": ("voxel", np.repeat(["V4", "IT"], N_VOXELS // 2)),
        },
        attrs={"units": "z-scored BOLD", "subject": "twin"},
    )
    return ndl.Experiment(stimuli, responses, name="simulated, of a known network")


def moved(network: ndl.Backbone, share: float) -> ndl.Backbone:
    """Return a network whose weights were moved at random, by a share of their spread."""
    rng = np.random.default_rng(SEED)
    for values in network.module.parameters():
        size = share * float(values.detach().std(correction=0))
        values.data += size * values.new_tensor(rng.standard_normal(values.shape))
    return network
