"""What is this project's own: the data, the network and how it is tuned."""

from __future__ import annotations

import neurodl as ndl
import numpy as np
import xarray as xr
from neurodl.datasets import dead_leaves

from common import DEVICE, RESULTS, SEED, TWIN
from networks import train

SMALL = {"transform": {"input_size": (3, 64, 64)}}
N_IMAGES, N_VOXELS = 200, 40


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


NETWORK, LAYER = ("timm:test_resnet", "layer2") if TWIN else ("torchvision:resnet18", "layer3")
# How hard the network is held where it was.
HOLDS = (
    {"free": {}, "held": {"l2_sp": 100.0}}
    if TWIN
    else {"free": {}, "l2_sp": {"l2_sp": 0.1}, "lora": {"finetune": "lora"}}
)
TUNING = {"max_epochs": 14, "patience": 12, "lr": 0.01, "core_lr": 0.0005} if TWIN else {}


def experiment() -> ndl.Experiment:
    """Return stimuli and responses: simulated, or Kay et al. 2008."""
    if not TWIN:
        return ndl.load_dataset("kay2008")
    # The teacher is the network with weights that moved: there is something to gain, and to lose.
    teacher = network()
    rng = np.random.default_rng(SEED)
    for values in teacher.module.parameters():
        size = 0.3 * float(values.detach().std(correction=0))
        values.data += size * values.new_tensor(rng.standard_normal(values.shape))
    return taught(teacher, LAYER, images())


def source() -> ndl.Stimuli:
    """Return labelled images of the network's own task, to see what it still knows.

    The twin's are its scenes. For a network of ImageNet: a folder per class, named by number
    (0 to 999), of some thousand validation images.
    """
    if not TWIN:
        stimuli = ndl.Stimuli.from_files("imagenet_val")
        stimuli.table["label"] = [name.split("/")[0] for name in stimuli.ids]
        return stimuli
    stimuli = images()
    names = sorted(set(stimuli.table["label"]))
    stimuli.table["label"] = [names.index(label) for label in stimuli.table["label"]]
    return stimuli


def network() -> ndl.Backbone:
    """Return the network before it is tuned; the twin's was trained here on its scenes."""
    if not TWIN:
        return ndl.load_backbone(NETWORK)
    start = ndl.load_backbone(NETWORK, pretrained=False, seed=SEED, **SMALL)
    path = train(
        start, images(), RESULTS / "weights" / f"scenes-{SEED}.safetensors", epochs=6, seed=SEED
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
