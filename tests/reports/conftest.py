"""Made-up scores that look like real ones: voxels in areas, units, ceilings, excluded targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import xarray as xr

BACKBONES = {
    "timm:resnet50.a1_in1k": ["layer1", "layer2", "layer3", "layer4"],
    "timm:vit_small_patch16_224.augreg_in1k": [f"blocks.{i}" for i in (1, 3, 6, 9, 11)],
    "gabor": ["energy", "energy+phase"],
}
# Peak position along the network (0 = input, 1 = output) and two centres, left and right [mm].
AREAS = {
    "V1": (0.15, [(-9, -92, 0), (11, -90, 2)]),
    "V2": (0.3, [(-14, -90, -12), (16, -88, -10)]),
    "V4": (0.6, [(-28, -78, -12), (29, -76, -12)]),
    "IT": (0.9, [(-42, -55, -16), (42, -53, -16)]),
}
GRID = {"shape": [66, 78, 64], "step": 3.0, "origin": (-98.0, -134.0, -72.0)}


def make_scores(
    n_targets: int = 600,
    *,
    backbones: Mapping[str, Sequence[str]] | None = None,
    areas: Sequence[str] | None = ("V1", "V2", "V4", "IT"),
    target: str = "voxel",
    n_folds: int = 5,
    n_excluded: int = 12,
    ceiling: bool = True,
    space: str | None = "MNI152NLin2009cAsym",
    seed: int = 0,
) -> xr.Dataset:
    """Return scores that follow the schema; every number comes from `seed`."""
    rng = np.random.default_rng(seed)
    backbones = dict(BACKBONES if backbones is None else backbones)
    pairs = [(name, layer) for name, layers in backbones.items() for layer in layers]
    roi = np.array(areas if areas else [""])[np.arange(n_targets) % len(areas or [""])]
    reliability = np.clip(rng.beta(3, 4, n_targets), 0.02, 0.95)
    tuning = np.stack([_tuning(name, layer, backbones, roi) for name, layer in pairs])
    truth = tuning * np.sqrt(reliability) * rng.beta(6, 3, n_targets)
    noise = rng.normal(0, 0.05, (len(pairs), n_folds, n_targets))
    noise += rng.normal(0, 0.015, (len(pairs), n_folds, 1)) + rng.normal(0, 0.015, (n_folds, 1))
    r = np.clip(truth[:, None] + noise, -1, 1).astype("float32")
    excluded = rng.permutation(n_targets)[:n_excluded]
    r[..., excluded] = np.nan
    data: dict[str, Any] = {"r": (("layer", "fold", target), r)}
    data["r2"] = (("layer", "fold", target), np.sign(r) * r**2)
    if ceiling:
        enough = np.where(reliability > 0.05, reliability, np.nan)
        data["ceiling"] = (target, reliability.astype("float32"))
        data["r_normalized"] = (("layer", "fold", target), (r / np.sqrt(enough)).astype("float32"))
    names = [layer if len(backbones) == 1 else f"{name}/{layer}" for name, layer in pairs]
    coords: dict[str, Any] = {
        "layer": names,
        "backbone": ("layer", [name for name, _ in pairs]),
        "weights": ("layer", [_weights(name) for name, _ in pairs]),
        "transform": ("layer", ["resize 256, crop 224, bicubic" for _ in pairs]),
        "pool": ("layer", ["spatial:7" for _ in pairs]),
        "n_test": ("fold", [240] * n_folds),
    }
    if areas:
        coords["roi"] = (target, roi)
    attrs: dict[str, Any] = {
        "neurodl_version": "0.1.0",
        "created": "2026-11-23T18:31:00+00:00",
        "model": "RidgeCV(alphas='auto', cv=5)",
        "cv": f"{n_folds} folds",
        "groups": "run",
        "seed": 0,
        "n_folds": n_folds,
        "n_samples": 1200,
        "n_targets": n_targets,
        "n_excluded": n_excluded,
        "n_constant": n_excluded - n_excluded // 3,
        "n_missing": n_excluded // 3,
        "device": "cpu (2 threads)",
        "experiment": "simulated",
        "units": "z-scored BOLD",
        "subject": "01",
    }
    if target == "voxel":
        ijk = _places(roi, rng)
        xyz = ijk * GRID["step"] + np.array(GRID["origin"])
        coords |= {key: (target, ijk[:, axis]) for axis, key in enumerate("ijk")}
        coords |= {key: (target, xyz[:, axis]) for axis, key in enumerate("xyz")}
        affine = np.diag([GRID["step"]] * 3 + [1.0])
        affine[:3, 3] = GRID["origin"]
        attrs |= {"affine": affine.ravel().tolist(), "shape": GRID["shape"], "tr": 2.0}
        if space is not None:
            attrs["space"] = space
    else:
        coords[target] = [f"{target}{index:02d}" for index in range(n_targets)]
        attrs["units"] = "spikes / 100 ms"
    return xr.Dataset(data, coords, attrs)


def _tuning(name: str, layer: str, backbones: Mapping[str, Sequence[str]], roi: Any) -> Any:
    """Return how well one layer could do in each area: a bump along the network's depth."""
    layers = list(backbones[name])
    depth = (layers.index(layer) + 0.5) / len(layers)
    peak = np.array([AREAS[area][0] if area in AREAS else 0.5 for area in roi])
    quality = 0.55 if name == "gabor" else 1.0
    if name == "gabor":
        depth = 0.1
    return quality * np.exp(-((depth - peak) ** 2) / 0.25)


def _weights(name: str) -> str:
    return "none (fixed filters)" if name == "gabor" else f"{name.partition(':')[2]} (published)"


def _places(roi: Any, rng: np.random.Generator) -> Any:
    """Return distinct voxels (n, 3): each area's are those nearest to its two centres."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in GRID["shape"]], indexing="ij"), -1)
    grid = grid.reshape(-1, 3)
    free = np.ones(len(grid), bool)
    mm = grid * GRID["step"] + np.array(GRID["origin"])
    places = np.zeros((len(roi), 3), int)
    for area in dict.fromkeys(roi):
        centres = AREAS[area][1] if area in AREAS else [(0.0, -70.0, 0.0)]
        distance = np.min([np.linalg.norm(mm - centre, axis=1) for centre in centres], 0)
        members = np.flatnonzero(roi == area)
        nearest = np.argsort(np.where(free, distance, np.inf), kind="stable")[: len(members)]
        free[nearest] = False
        places[members] = grid[rng.permutation(nearest)]
    return places


@pytest.fixture(name="make_scores", scope="session")
def _make_scores() -> Callable[..., xr.Dataset]:
    return make_scores
