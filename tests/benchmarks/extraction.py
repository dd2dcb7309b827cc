"""Feature extraction against the bare forward pass and a plain loop of hooks: seconds and memory.

    python tests/benchmarks/extraction.py
    python tests/benchmarks/extraction.py timm:vit_small_patch16_224 --images 500 --repeats 3

The bare pass runs the whole network on inputs that lie ready in memory, in batches of the same
size; "extraction" is `extract_features`, from JPEG files to features on disk, and "cached" its
second call. The loop is what packages with hooks do: a DataLoader that decodes in the main process
in batches of 32, whole outputs of the layers copied by hooks, pooled and joined at the end. Every
run has a process of its own; the runs take turns.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from ridge import run_apart
from torch.nn import functional

from neurodl import Backbone, Stimuli, extract_features, load_backbone
from neurodl.runtime import has_fast_half

LAYERS = {
    "torchvision:resnet50": ["layer1", "layer2", "layer3", "layer4"],
    "timm:vit_small_patch16_224": ["blocks.2", "blocks.5", "blocks.8", "blocks.11"],
}
BATCH = 16


def write_images(folder: Path, n_images: int) -> None:
    """Write JPEG files of 500 x 375 pixels, smooth and noisy as photographs are."""
    rng = np.random.default_rng(0)
    for number in range(n_images):
        noise = rng.uniform(0, 255, (1, 3, 24, 32)).astype(np.float32)
        smooth = functional.interpolate(torch.from_numpy(noise), (375, 500), mode="bicubic")
        pixels = smooth[0].permute(1, 2, 0).numpy() + rng.normal(0, 8, (375, 500, 3))
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        image.save(folder / f"{number:05d}.jpg", quality=90)


def bare(backbone: Backbone, inputs: torch.Tensor) -> float:
    """Run the network on inputs that lie ready; return the mean of its output."""
    with torch.inference_mode():
        return float(np.mean([float(backbone.module(part).mean()) for part in inputs.split(BATCH)]))


def plain_loop(backbone: Backbone, stimuli: Stimuli, layers: list[str]) -> float:
    """Extract as packages with hooks do; return the mean feature."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in layers}

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(stimuli)

        def __getitem__(self, index: int) -> torch.Tensor:
            with Image.open(stimuli.where(index)) as image:
                return backbone.transform.function(image.convert("RGB"))

    def hook(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: found[name].append(output.detach().clone().cpu())

    handles = [
        backbone.module.get_submodule(name).register_forward_hook(hook(name)) for name in layers
    ]
    with torch.no_grad():
        for batch in torch.utils.data.DataLoader(Files(), batch_size=32):
            backbone.module(batch)
    for handle in handles:
        handle.remove()
    return float(np.mean([pooled(torch.cat(found.pop(name)), backbone).mean() for name in layers]))


def pooled(output: torch.Tensor, backbone: Backbone) -> torch.Tensor:
    """Return maps, or patch tokens, averaged over 7 x 7 places."""
    if output.ndim == 3:
        patches = output[:, backbone.n_prefix_tokens :].transpose(1, 2)
        output = patches.unflatten(-1, (14, 14))
    return functional.adaptive_avg_pool2d(output, 7).flatten(1)


def compare(name: str, images: Path, folder: Path, n_repeats: int, n_threads: int) -> None:
    """Print a table for one network."""
    stimuli = Stimuli.from_files(images)
    backbone, layers = load_backbone(name, pretrained=False), LAYERS[name]
    few = stimuli.sel(stimuli.ids[:BATCH])
    inputs = torch.stack([backbone.transform(stimuli[index]) for index in range(len(stimuli))])

    def extract(chosen: Stimuli | Path, cache: Path | bool, amp: bool = False) -> float:
        opened = chosen if isinstance(chosen, Stimuli) else Stimuli.from_files(chosen)
        features = extract_features(backbone, opened, layers, cache=cache, amp=amp)
        return float(np.mean([array.values.mean() for array in features.values()]))

    jobs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "bare forward pass": (
            lambda: bare(backbone, inputs),
            lambda: bare(backbone, inputs[:BATCH]),
        ),
        "loop of hooks": (
            lambda: plain_loop(backbone, stimuli, layers),
            lambda: plain_loop(backbone, few, layers),
        ),
        "extraction": (
            lambda: extract(images, fresh),
            lambda: extract(few, False),
        ),
        "cached": (
            lambda: extract(images, fresh),
            lambda: extract(few, False),
        ),
    }
    if has_fast_half(torch.device("cpu")):
        jobs["extraction, bfloat16"] = (
            lambda: extract(images, fresh, amp=True),
            lambda: extract(few, False, amp=True),
        )
    runs: dict[str, list[tuple[float, float, float]]] = {job: [] for job in jobs}
    for number in range(n_repeats):
        fresh = folder / f"{name.partition(':')[2]}-{number}"
        for job, (work, warm_up) in jobs.items():
            runs[job].append(run_apart(work, warm_up, n_threads))
    best = {job: min(seconds for seconds, _, _ in found) for job, found in runs.items()}
    print(f"\n{name}, {len(stimuli)} images, {n_threads} threads, best of {n_repeats}")
    for job, found in runs.items():
        memory = max(memory for _, memory, _ in found)
        print(
            f"{job:<20} {best[job]:8.2f} s  {best['bare forward pass'] / best[job]:8.2f} of the "
            f"bare rate  {best['loop of hooks'] / best[job]:8.2f}x the loop  +{memory:6.0f} MB  "
            f"mean {found[0][2]:.6f}"
        )
    features = [
        extract_features(backbone, few, layers, cache=False, amp=amp) for amp in (False, True)
    ]
    r = [
        np.corrcoef(features[0][one].values.ravel(), features[1][one].values.ravel())[0, 1]
        for one in layers
    ]
    print(f"correlation of the features in bfloat16 with those in float32: at least {min(r):.6f}")
    print(f"cached is {best['extraction'] / best['cached']:.0f}x faster than extraction")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(LAYERS), metavar="NAME")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # in the parent: forked children must not inherit a thread pool
    with tempfile.TemporaryDirectory() as place:
        images = Path(place) / "images"
        images.mkdir()
        write_images(images, chosen.images)
        for name in chosen.names:
            compare(name, images, Path(place), chosen.repeats, chosen.threads)


if __name__ == "__main__":
    main()
