"""What is this project's own: the data, the diets and the model."""

from __future__ import annotations

import neurodl as ndl
from teacher import SMALL, images, taught

from common import DEVICE, RESULTS, SEED, TWIN
from networks import train

N_IMAGES = 120
NETWORK, LAYERS = (
    ("timm:test_resnet", ["layer1", "layer2", "layer3"]) if TWIN else ("torchvision:resnet18", None)
)
# Standard deviation of the blur in training [pixels of the input].
DIETS = (
    {"sharp": 0.0, "blurred": 2.5} if TWIN else {"sharp": 0.0, "blurred": 2.0, "very blurred": 4.0}
)


def experiment() -> ndl.Experiment:
    """Return stimuli and responses: simulated by a blurred network, or Kay et al. 2008."""
    if TWIN:
        return taught(network("blurred", seed=SEED + 50), "layer2", images(N_IMAGES))
    return ndl.load_dataset("kay2008")


def training_images() -> ndl.Stimuli:
    """Return labelled images to train on: the twin's scenes, or CIFAR-10, which is downloaded."""
    if TWIN:
        return images(N_IMAGES)
    from torchvision.datasets import CIFAR10

    cifar = CIFAR10(str(RESULTS.parent / "cifar10"), download=True)
    stimuli = ndl.Stimuli.from_arrays(cifar.data)
    stimuli.table["label"] = [cifar.classes[label] for label in cifar.targets]
    return stimuli


def network(diet: str | None, seed: int = SEED) -> ndl.Backbone:
    """Return the network after a diet; None for the random weights that all diets start from."""
    start = ndl.load_backbone(NETWORK, pretrained=False, seed=seed, **SMALL)
    if diet is None:
        return start
    path = RESULTS / "weights" / f"{diet}-{seed}.safetensors"
    path = train(
        start, training_images(), path, blur=DIETS[diet], epochs=8 if TWIN else 30, seed=seed
    )
    return ndl.load_backbone(NETWORK, weights=str(path), **SMALL)


def features(exp: ndl.Experiment) -> dict:
    """Return the layers of the network after each diet."""
    found = {}
    for diet in DIETS:
        own = ndl.extract_features(network(diet), exp.stimuli, layers=LAYERS, device=DEVICE)
        found |= {f"{diet}/{k}": v.assign_attrs(backbone=diet) for k, v in own.items()}
    return found


def model() -> ndl.RidgeCV:
    """Return the encoding model."""
    return ndl.RidgeCV(device=DEVICE)


def control_features(exp: ndl.Experiment) -> tuple:
    """Return the name and the features that the controls are run on."""
    return "blurred/layer2", ndl.extract_features(
        network("blurred"), exp.stimuli, layers=["layer2"]
    )["layer2"]


def untrained_features(exp: ndl.Experiment, seed: int) -> dict:
    """Return the same layer before any training."""
    return ndl.extract_features(
        network(None, seed=seed), exp.stimuli, layers=["layer2"], device=DEVICE
    )
