"""A sweep here, and on one and two workers: seconds, overhead of a study, fraction of the ideal.

    python tests/benchmarks/workers.py --studies 6

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


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=len(NETWORKS))
    parser.add_argument("--images", type=int, default=200)
    chosen = parser.parse_args()
    networks = [f"torchvision:{name}" for name in NETWORKS[: chosen.studies]]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_inputs(folder, chosen.images)
        took = {
            name: seconds(folder, name, workers, networks)
            for name, workers in (("here", 0), ("one", 1), ("two", 2))
        }
    print(f"\n{len(networks)} studies of {chosen.images} images, one thread each")
    for name, label in (("here", "one process"), ("one", "1 worker"), ("two", "2 workers")):
        whole, studies = took[name]
        print(f"{label:<12}{whole:8.1f} s, the studies themselves {studies:8.1f} s")
    here, one = (took[name][0] - took[name][1] for name in ("here", "one"))
    print(f"beside the studies: {here:.1f} s in one process, {one:.1f} s with a worker")
    print(f"two workers reach {took['one'][0] / 2 / took['two'][0]:.0%} of the ideal")


if __name__ == "__main__":
    main()
