"""A sweep here, and on one and two workers: seconds, overhead of a study, fraction of the ideal.

    python tests/benchmarks/workers.py --images 150 --figure docs/workers.png

Every study extracts an untrained ResNet; a worker has one thread. The ideal of two
workers is half the time of one. Beside the studies, Python and the workers are started, torch is
imported, and the index is written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

STUDY = """
[study]
name = "{name}"
[stimuli]
path = "images"
[responses]
path = "responses.npz"
dims = ["stimulus", "unit"]
[[features]]
backbone = {backbones}
pretrained = false
seed = 0
layers = ["layer1", "layer2"]
[run]
device = "cpu"
cache = "{name}"
[cluster]
workers = {workers}
cores = 1
"""
RUNS = {"one process": 0, "1 worker": 1, "2 workers": 2}
NETWORKS = ("resnet18", "resnet34", "wide_resnet50_2", "resnet50", "resnext50_32x4d", "resnet101")


def write_inputs(folder: Path, n_images: int) -> None:
    """Write photographs of noise and responses to them."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    names = [f"{number:04d}.png" for number in range(n_images)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (224, 224, 3), "uint8")).save(folder / "images" / name)
    np.savez(folder / "responses.npz", responses=rng.standard_normal((n_images, 50)), ids=names)


def seconds(folder: Path, name: str, workers: int, backbones: list[str]) -> tuple[float, float]:
    """Return how long a sweep takes [s], by the command line, and its studies alone."""
    text = STUDY.format(name=name, workers=max(workers, 1), backbones=backbones)
    (folder / f"{name}.toml").write_text(text.replace("'", '"'))
    command = [sys.executable, "-c", "from neurodl.cli import main; raise SystemExit(main())"]
    command += ["run", str(folder / f"{name}.toml")] + ["--on", "dask"] * bool(workers)
    start = time.perf_counter()
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    took = time.perf_counter() - start
    records = (folder / "results" / name).glob("*/provenance.json")
    return took, sum(json.loads(one.read_text())["seconds"] for one in records)


def draw(took: dict[str, tuple[float, float]], path: Path) -> None:
    """Draw a bar for each run: what the studies took on each worker, and the rest of the time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from neurodl.reports.svg import INK, PALETTE, RULE

    pyplot.rcParams.update({"font.size": 9, "axes.edgecolor": RULE, "text.color": INK})
    figure, panel = pyplot.subplots(figsize=(5.2, 1.9))
    whole = [seconds for seconds, _ in took.values()]
    studies = [alone / n for (_, alone), n in zip(took.values(), (1, 1, 2), strict=True)]
    rows = range(len(took))
    beside = [a - b for a, b in zip(whole, studies, strict=True)]
    panel.barh(rows, studies, color=PALETTE[0], height=0.55, label="studies")
    panel.barh(rows, beside, left=studies, color=RULE, height=0.55, label="beside them")
    panel.plot([whole[1] / 2] * 2, [1.6, 2.4], color=INK, lw=1.4, label="half of 1 worker")
    panel.set_yticks(rows, took, color=INK)
    panel.invert_yaxis()
    panel.set_xlabel("seconds", color=INK)
    panel.tick_params(colors=INK, length=3)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="upper center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.9))
    figure.savefig(path, dpi=200)


def main() -> None:
    """Run, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=len(NETWORKS))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--figure", type=Path)
    chosen = parser.parse_args()
    networks = [f"torchvision:{name}" for name in NETWORKS[: chosen.studies]]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_inputs(folder, chosen.images)
        took = {
            label: seconds(folder, label.replace(" ", "-"), workers, networks)
            for label, workers in RUNS.items()
        }
    print(f"\n{len(networks)} studies of {chosen.images} images, one thread each")
    for label, (whole, studies) in took.items():
        print(f"{label:<12}{whole:8.1f} s, the studies themselves {studies:8.1f} s")
    here, one = (took[label][0] - took[label][1] for label in ("one process", "1 worker"))
    print(f"beside the studies: {here:.1f} s in one process, {one:.1f} s with a worker")
    print(f"two workers reach {took['1 worker'][0] / 2 / took['2 workers'][0]:.0%} of the ideal")
    if chosen.figure:
        draw(took, chosen.figure)


if __name__ == "__main__":
    main()
