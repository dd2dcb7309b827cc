"""What is this project's own: the data, the networks and the model."""

from __future__ import annotations

import neurodl as ndl
from teacher import SMALL, images, taught

from common import DEVICE, RESULTS, SEED, TWIN
from networks import train

N_IMAGES = 120
# Name: (network, the layers that are compared).
NETWORKS = (
    {
        "resnet": ("timm:test_resnet", ["layer1", "layer2", "layer3"]),
        "vit": ("timm:test_vit", ["blocks.1", "blocks.3", "blocks.5"]),
    }
    if TWIN
    else {
        "alexnet": ("torchvision:alexnet", None),
        "vgg16": ("torchvision:vgg16", None),
        "resnet50": ("timm:resnet50.a1_in1k", None),
        "vit": ("timm:vit_small_patch16_224.augreg_in1k", None),
        "dino": ("timm:vit_small_patch14_dinov2.lvd142m", None),
    }
)


def experiment() -> ndl.Experiment:
    """Return stimuli and responses: simulated by a trained network, or Kay et al. 2008."""
    return (
        taught(network("resnet"), "layer2", images(N_IMAGES))
        if TWIN
        else ndl.load_dataset("kay2008")
    )


def network(label: str, trained: bool = True, seed: int = SEED) -> ndl.Backbone:
    """Return a network; the twin's are trained here, in seconds, to tell its scenes apart."""
    name, _ = NETWORKS[label]
    options = SMALL if TWIN else {}
    if not trained:
        return ndl.load_backbone(name, pretrained=False, seed=seed, **options)
    if not TWIN:
        return ndl.load_backbone(name)
    start = ndl.load_backbone(name, pretrained=False, seed=seed, **options)
    path = train(
        start,
        images(N_IMAGES),
        RESULTS / "weights" / f"{label}-{seed}.safetensors",
        epochs=8,
        seed=seed,
    )
    return ndl.load_backbone(name, weights=str(path), **options)


def features(exp: ndl.Experiment) -> dict:
    """Return the layers of every network, trained and untrained."""
    found = {}
    for label, (_, layers) in NETWORKS.items():
        for state, trained in (("trained", True), ("untrained", False)):
            one = network(label, trained)
            own = ndl.extract_features(one, exp.stimuli, layers=layers, device=DEVICE)
            named = {"backbone": f"{label}, {state}"}
            found |= {f"{label}-{state}/{k}": v.assign_attrs(named) for k, v in own.items()}
    return found


def model() -> ndl.RidgeCV:
    """Return the encoding model."""
    return ndl.RidgeCV(device=DEVICE)


def control_features(exp: ndl.Experiment) -> tuple:
    """Return the name and the features that the controls are run on."""
    label, (_, layers) = next(iter(NETWORKS.items()))
    own = ndl.extract_features(network(label), exp.stimuli, layers=layers, device=DEVICE)
    layer = list(own)[len(own) // 2]
    return f"{label}-trained/{layer}", own[layer]


def untrained_features(exp: ndl.Experiment, seed: int) -> dict:
    """Return the same layer with random weights."""
    name, _ = control_features(exp)
    label, layer = name.split("-trained/")
    return ndl.extract_features(
        network(label, trained=False, seed=seed), exp.stimuli, layers=[layer]
    )
