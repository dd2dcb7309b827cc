"""Frozen and tuned networks on macaque V4: predictivity, paired intervals, seconds and memory.

    python tests/benchmarks/finetuning.py                 # all conditions, five folds
    python tests/benchmarks/finetuning.py --folds 2 --adaptations readout all

33 neurons and 1200 photographs; MobileNetV2, trained on ImageNet, read at blocks.3 from images of
112 x 112 pixels. The folds are the five parts of one permutation. "crossfit" is the ridge readout
under which the core is tuned; "all, norm" trains the statistics of batch normalisation too.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from pathlib import Path

import numpy as np

import neurodl as ndl

RECORDINGS = Path(
    os.environ.get("NEURODL_RECORDINGS", Path(__file__).parents[3] / "shared" / "data")
)
TUNING = {
    "readout_patience": 15,
    "schedule": "cosine",
    "max_epochs": 6,
    "patience": 6,
}
CROSSFIT = {"readout": "ridge", "finetune": "all", "schedule": "cosine", "max_epochs": 8}


def load() -> tuple[ndl.Experiment, ndl.Backbone, list[tuple[np.ndarray, np.ndarray]]]:
    """Return the experiment, the network and the folds."""
    experiment = ndl.Experiment.from_files(
        RECORDINGS / "v4_cowley" / "images_190923.zip",
        RECORDINGS / "v4_cowley" / "responses_190923.npy",
        dims=("unit", "stimulus"),
        units="spikes / 100 ms",
        name="V4",
    )
    backbone = ndl.load_backbone(
        "timm:mobilenetv2_100",
        weights=RECORDINGS / "weights_mobilenetv2_imagenet" / "mobilenetv2_100_timm_same.pth",
        pad_type="same",
        transform={
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
            "crop_pct": 1.0,
            "input_size": (3, 112, 112),
        },
    )
    parts = np.array_split(np.random.default_rng(0).permutation(1200), 5)
    return experiment, backbone, [(np.setdiff1d(np.arange(1200), test), test) for test in parts]


def models(device: str) -> dict[str, object]:
    """Return what is compared, by name; names alone stand for `compare`'s own."""
    common = {"device": device, "seed": 0}
    return {
        "ridge, all layers": None,
        "readout": None,
        "lora": None,
        "all": None,
        "all, four layers": ndl.NeuralEncoder(
            layer=[f"blocks.{number}" for number in (1, 2, 3, 4)],
            finetune="all",
            **TUNING,
            **common,
        ),
        "all, norm": ndl.NeuralEncoder(finetune="all", norm="train", **TUNING, **common),
        "all, poisson": ndl.NeuralEncoder(finetune="all", loss="poisson", **TUNING, **common),
        "crossfit": ndl.NeuralEncoder(patience=8, **CROSSFIT, **common),
    }


def main() -> None:
    """Print the table, and save the report if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--adaptations", nargs="*", help="some of the conditions")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--report", help="where to save the report")
    given = parser.parse_args()
    experiment, backbone, folds = load()
    known = models(given.device)
    chosen = {name: known[name] for name in given.adaptations or known}
    began = time.perf_counter()
    scores = ndl.compare(
        experiment,
        {"mobilenetv2": backbone},
        chosen,
        layers="blocks.3",
        cv=folds[: given.folds],
        device=given.device,
        **TUNING,
    )
    table = ndl.comparison_table(scores).drop(columns=["roi", "backbone", "beats_from"])
    print(table.round(3).to_string(index=False))
    folds_r = scores["r"].mean("unit").to_pandas()
    print("\nmean r by fold\n" + folds_r.round(3).to_string())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n{time.perf_counter() - began:.0f} s, peak {peak:.0f} MB")
    if given.report:
        ndl.report(scores, experiment).save(given.report)


if __name__ == "__main__":
    main()
