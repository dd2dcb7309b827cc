"""What is this project's own: the data, the network and how it is tuned."""

from __future__ import annotations

import neurodl as ndl
import numpy as np
import xarray as xr
from neurodl.datasets import dead_leaves

from common import DEVICE, SEED, TWIN

SMALL = {"transform": {"input_size": (3, 64, 64)}}
N_IMAGES, N_VOXELS = 120, 40


def images() -> ndl.Stimuli:
    """Return the twin's images: simulated scenes of four kinds, which are their labels."""
    pixels, scenes = dead_leaves(N_IMAGES, 64, SEED)
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


NETWORK, LAYER = ("timm:test_resnet", "layer2") if TWIN else ("timm:resnet18.a1_in1k", "layer3")
CONDITIONS = (
    ["ridge", "readout", "last"]
    if TWIN
    else ["ridge", "ridge, all layers", "readout", "last", "lora"]
)
# How many training stimuli it takes: the curve of step 4.
N_TRAIN = [40, 60] if TWIN else [500, 1000, 2000, 4000]
TUNING = {"max_epochs": 8, "patience": 4, "lr": 0.01} if TWIN else {}


def experiment() -> ndl.Experiment:
    """Return stimuli and responses: simulated, or the Algonauts 2023 challenge (NSD)."""
    if not TWIN:
        return ndl.load_dataset("algonauts2023", subject=1, roi=["hV4", "FFA-1", "EBA", "PPA"])
    # The teacher is the network with weights that moved a little: tuning can find the way.
    teacher = network()
    rng = np.random.default_rng(SEED)
    for values in teacher.module.parameters():
        size = 0.3 * float(values.detach().std(correction=0))
        values.data += size * values.new_tensor(rng.standard_normal(values.shape))
    return taught(teacher, LAYER, images())


def network(seed: int = SEED) -> ndl.Backbone:
    """Return the network; the twin's has random weights, so that nothing is downloaded."""
    options = {"pretrained": False, "seed": seed, **SMALL} if TWIN else {}
    return ndl.load_backbone(NETWORK, **options)


def features(exp: ndl.Experiment) -> dict:
    """Return the layers of the network as it is."""
    return ndl.extract_features(network(), exp.stimuli, device=DEVICE)


def model() -> ndl.RidgeCV:
    """Return the baseline: ridge regression on the network as it is."""
    return ndl.RidgeCV(device=DEVICE)


def control_features(exp: ndl.Experiment) -> tuple:
    """Return the name and the features that the controls are run on."""
    return LAYER, features(exp)[LAYER]


def untrained_features(exp: ndl.Experiment, seed: int) -> dict:
    """Return the layer of the network with other, random weights."""
    options = SMALL if TWIN else {}
    random = ndl.load_backbone(NETWORK, pretrained=False, seed=seed + 100, **options)
    return ndl.extract_features(random, exp.stimuli, layers=[LAYER], device=DEVICE)
