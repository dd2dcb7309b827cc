"""What is this project's own: the data, the networks and the model."""

from __future__ import annotations

import neurodl as ndl

from common import DEVICE, SEED, TWIN

NETWORK = "timm:test_resnet" if TWIN else "torchvision:alexnet"


def experiment() -> ndl.Experiment:
    """Return stimuli and responses: 60 simulated images, or Kay et al. 2008."""
    if TWIN:
        return ndl.load_dataset("simulated", n_images=60, n_repeats=2, n_runs=4, image_size=64)
    return ndl.load_dataset("kay2008")


def network() -> ndl.Backbone:
    """Return the network; the twin's is untrained, so that nothing is downloaded."""
    options = {"pretrained": False, "seed": SEED} if TWIN else {}
    return ndl.load_backbone(NETWORK, **options)


def features(exp: ndl.Experiment) -> dict:
    """Return the layers to compare: pixels, a model of V1, and those of the network."""
    found = {}
    for name in ("pixels", "gabor", network()):
        layers = ndl.extract_features(name, exp.stimuli, device=DEVICE)
        label = name if isinstance(name, str) else NETWORK
        found |= {f"{label}/{layer}": values for layer, values in layers.items()}
    return found


def model() -> ndl.RidgeCV:
    """Return the encoding model: a penalty for each voxel, chosen inside the training rows."""
    return ndl.RidgeCV(device=DEVICE)


def control_features(exp: ndl.Experiment) -> tuple:
    """Return the name and the features of the layer that the controls are run on."""
    if TWIN:
        return "gabor", next(iter(ndl.extract_features("gabor", exp.stimuli).values()))
    layer = "features.8"
    return layer, ndl.extract_features(network(), exp.stimuli, layers=[layer])[layer]


def untrained_features(exp: ndl.Experiment, seed: int) -> dict:
    """Return a layer of the network with random weights."""
    layer = "layer2" if TWIN else "features.8"
    random = ndl.load_backbone(NETWORK, pretrained=False, seed=seed)
    return ndl.extract_features(random, exp.stimuli, layers=[layer], device=DEVICE)
