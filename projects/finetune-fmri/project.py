"""What is this project's own: the data, the network and how it is tuned."""

from __future__ import annotations

import neurodl as ndl
from teacher import SMALL, images, moved, taught

from common import DEVICE, SEED, TWIN

N_IMAGES = 160
NETWORK, LAYER = ("timm:test_resnet", "layer2") if TWIN else ("timm:resnet18.a1_in1k", "layer3")
CONDITIONS = (
    ["ridge", "readout", "all"]
    if TWIN
    else ["ridge", "ridge, all layers", "readout", "last", "lora"]
)
# The one that the hypothesis is about.
TUNED = "all" if TWIN else "last"
# How many training stimuli it takes: the curve of step 4.
N_TRAIN = [40] if TWIN else [500, 1000, 2000, 4000]
TUNING = (
    {"max_epochs": 12, "patience": 8, "readout_epochs": 80, "lr": 0.01, "core_lr": 0.0002}
    if TWIN
    else {}
)


def experiment() -> ndl.Experiment:
    """Return stimuli and responses: simulated, or the Algonauts 2023 challenge (NSD)."""
    if not TWIN:
        return ndl.load_dataset("algonauts2023", subject=1, roi=["hV4", "FFA-1", "EBA", "PPA"])
    # The teacher is the network with weights that moved a little: tuning can find the way.
    return taught(moved(network(), 0.3), LAYER, images(N_IMAGES))


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
