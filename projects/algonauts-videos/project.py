"""What is this project's own: the data, the feature spaces and the model."""

from __future__ import annotations

from pathlib import Path

import neurodl as ndl
import numpy as np
import xarray as xr
from neurodl.datasets import dead_leaves

from common import DEVICE, HERE, SEED, TWIN

# Frames per second that motion is computed from.
FPS = 24 if TWIN else 15
N_VIDEOS, N_FRAMES, SIZE = 72, 16, 64


def experiment() -> ndl.Experiment:
    """Return videos and responses: simulated ones, or the Algonauts 2021 challenge."""
    if TWIN:
        return _twin()
    rois = ["V1", "V4", "LOC", "EBA", "STS"]
    return ndl.load_dataset("algonauts2021", subject=1, roi=rois, fps=FPS)


def features(exp: ndl.Experiment) -> dict:
    """Return what is compared: what single frames show, and how they move."""
    found = {
        "frames/gabor": _first(ndl.extract_features("gabor", exp.stimuli, device=DEVICE)),
        "motion/energy": _first(ndl.extract_features(_motion(), exp.stimuli, device=DEVICE)),
    }
    if not TWIN:
        for label, name, layer in (
            ("frames", "torchvision:resnet18", "layer3"),
            ("motion", "torchvision:r3d_18", "layer3"),
        ):
            layers = ndl.extract_features(name, exp.stimuli, layers=[layer], device=DEVICE)
            found[f"{label}/{name}"] = layers[layer]
    return found


def model() -> ndl.RidgeCV:
    """Return the encoding model."""
    return ndl.RidgeCV(device=DEVICE)


def control_features(exp: ndl.Experiment) -> tuple:
    """Return the name and the features that the controls are run on."""
    return "motion/energy", _first(ndl.extract_features(_motion(), exp.stimuli, device=DEVICE))


def untrained_features(exp: ndl.Experiment, seed: int) -> dict:
    """Return features of a network with random weights, frame by frame."""
    name = "timm:test_resnet" if TWIN else "torchvision:resnet18"
    size = {"transform": {"input_size": (3, SIZE, SIZE)}} if TWIN else {}
    random = ndl.load_backbone(name, pretrained=False, seed=seed, **size)
    return ndl.extract_features(random, exp.stimuli, layers=["layer1"], device=DEVICE)


def _motion() -> ndl.Backbone:
    return ndl.load_backbone("motion_energy", fps=FPS)


def _first(layers: dict) -> xr.DataArray:
    return next(iter(layers.values()))


def _twin() -> ndl.Experiment:
    """Return clips of moving textures, with voxels that see frames (V1) or motion (MT)."""
    stimuli = ndl.Stimuli.from_files(_clips(HERE / "results" / "twin" / "clips"), fps=FPS)
    static = _first(ndl.extract_features("gabor", stimuli))
    moving = _first(ndl.extract_features(_motion(), stimuli))
    rng = np.random.default_rng(SEED)
    signals = []
    for values in (static.values, moving.values):
        parts = np.linalg.svd(values - values.mean(0), full_matrices=False).U[:, :6]
        signal = parts @ rng.standard_normal((parts.shape[1], 60))
        signals.append(signal / signal.std(0))
    truth = np.concatenate(signals, 1)
    repeats = truth[:, None] + 1.2 * rng.standard_normal((len(truth), 3, truth.shape[1]))
    responses = xr.DataArray(
        repeats.astype("float32"),
        dims=("stimulus", "repeat", "voxel"),
        coords={
            "stimulus": stimuli.ids,
            "repeat": [1, 2, 3],
            "roi": ("voxel", np.repeat(["V1", "MT"], 60)),
        },
        attrs={"units": "z-scored BOLD", "subject": "twin"},
    )
    return ndl.Experiment(stimuli, responses, name="simulated videos")


def _clips(folder: Path) -> Path:
    """Write videos of textures that move in one of eight directions, slowly or fast."""
    import av

    if len(list(folder.glob("*.mp4"))) == N_VIDEOS:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    images, _ = dead_leaves(12, 3 * SIZE, SEED)
    for number in range(N_VIDEOS):
        angle, speed = rng.integers(8) * np.pi / 4, rng.choice([0.5, 1.5, 3.0])
        step = speed * np.array([np.sin(angle), np.cos(angle)])
        start = np.array([SIZE, SIZE]) + rng.integers(-12, 12, 2)
        with av.open(str(folder / f"clip{number:02d}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=FPS)
            stream.width = stream.height = SIZE
            stream.pix_fmt, stream.bit_rate = "yuv420p", 800_000
            for frame in range(N_FRAMES):
                y, x = np.round(start + frame * step).astype(int)
                pixels = np.ascontiguousarray(images[number % 12][y : y + SIZE, x : x + SIZE])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
    return folder
