"""What is this project's own: the data, the network and how it is tuned."""

from __future__ import annotations

import neurodl as ndl
from teacher import SMALL, images, moved, taught

from common import DEVICE, RESULTS, SEED, TWIN
from networks import train

N_IMAGES = 200
NETWORK, LAYER = ("timm:test_resnet", "layer2") if TWIN else ("torchvision:resnet18", "layer3")
# How hard the network is held where it was.
HOLDS = (
    {"free": {}, "held": {"l2_sp": 10.0}}
    if TWIN
    else {"free": {}, "l2_sp": {"l2_sp": 0.1}, "lora": {"finetune": "lora"}}
)
TUNING = (
    {"max_epochs": 16, "patience": 8, "readout_epochs": 80, "lr": 0.01, "core_lr": 0.0005}
    if TWIN
    else {}
)


def experiment() -> ndl.Experiment:
    """Return stimuli and responses: simulated, or Kay et al. 2008."""
    if not TWIN:
        return ndl.load_dataset("kay2008")
    # The teacher is the network with weights that moved: there is something to gain, and to lose.
    return taught(moved(network(), 1.0), LAYER, images(N_IMAGES))


def source() -> ndl.Stimuli:
    """Return labelled images of the network's own task, to see what it still knows.

    The twin's are its scenes. For a network of ImageNet: a folder per class, named by number
    (0 to 999), of some thousand validation images.
    """
    if not TWIN:
        stimuli = ndl.Stimuli.from_files("imagenet_val")
        stimuli.table["label"] = [int(name.split("/")[0]) for name in stimuli.ids]
        return stimuli
    stimuli = images(N_IMAGES)
    names = sorted(set(stimuli.table["label"]))
    stimuli.table["label"] = [names.index(label) for label in stimuli.table["label"]]
    return stimuli


def network() -> ndl.Backbone:
    """Return the network before it is tuned; the twin's was trained here on its scenes."""
    if not TWIN:
        return ndl.load_backbone(NETWORK)
    start = ndl.load_backbone(NETWORK, pretrained=False, seed=SEED, **SMALL)
    path = train(
        start,
        images(N_IMAGES),
        RESULTS / "weights" / f"scenes-{SEED}.safetensors",
        epochs=6,
        seed=SEED,
    )
    return ndl.load_backbone(NETWORK, weights=str(path), **SMALL)


def tuned(hold: str) -> ndl.NeuralEncoder:
    """Return a model that tunes the network on responses, held as `HOLDS` says."""
    options = {"finetune": "all"} | TUNING | HOLDS[hold]
    return ndl.NeuralEncoder(network(), LAYER, seed=SEED, device=DEVICE, **options)


def features(exp: ndl.Experiment) -> dict:
    """Return the layers of the network before it is tuned."""
    return ndl.extract_features(network(), exp.stimuli, device=DEVICE)


def model() -> ndl.RidgeCV:
    """Return the baseline: ridge regression on the network as it is."""
    return ndl.RidgeCV(device=DEVICE)


def control_features(exp: ndl.Experiment) -> tuple:
    """Return the name and the features that the controls are run on."""
    return LAYER, features(exp)[LAYER]


def untrained_features(exp: ndl.Experiment, seed: int) -> dict:
    """Return the layer of the network with random weights."""
    random = ndl.load_backbone(NETWORK, pretrained=False, seed=seed, **(SMALL if TWIN else {}))
    return ndl.extract_features(random, exp.stimuli, layers=[LAYER], device=DEVICE)
