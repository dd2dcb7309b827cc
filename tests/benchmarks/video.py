"""Features of videos against decoding and the bare forward pass; memory for a long movie.

    python tests/benchmarks/video.py
    python tests/benchmarks/video.py --clips 50 --minutes 2 --repeats 1

Clips last 3 s, at 30 frames per second, 268 x 268 pixels, in H.264; 16 frames of each pass through
the network. "Apart" is the time to decode all of them, to transform them and to pass them, one
after the other, nothing kept. The movie (30 frames per second, 640 x 360) is cut into clips of one
second, 4 frames each. Every run has a process of its own; the runs take turns.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import av
import numpy as np
import torch
from ridge import run_apart
from torch.nn import functional

from neurodl import Stimuli, extract_features, load_backbone
from neurodl.io.video import read_frames

LAYERS = ["layer1", "layer2", "layer3", "layer4"]
N_FRAMES = 16


def write_video(path: Path, n_frames: int, size: tuple[int, int], seed: int) -> None:
    """Write smooth patterns that drift, with grain, as H.264."""
    width, height = size
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 235, (1, 3, 12, 16)))
    big = functional.interpolate(coarse, (2 * height, 2 * width), mode="bilinear")
    smooth = np.ascontiguousarray(big[0].permute(1, 2, 0).numpy().astype(np.uint8))
    grain = rng.integers(0, 20, (2 * height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(n_frames):
            down, across = number % height, (2 * number) % width
            pixels = smooth[down : down + height, across : across + width]
            frame = pixels + grain[down : down + height]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_clips(folder: Path, n_clips: int) -> None:
    for number in range(n_clips):
        write_video(folder / f"{number:04d}.mp4", 90, (268, 268), number)


def apart(name: str, files: list[Path]) -> float:
    """Decode, transform and pass clips one by one; return the mean of the output."""
    backbone = load_backbone(name, pretrained=False, seed=0)
    backbone.module.eval().to(memory_format=torch.channels_last)
    total = 0.0
    with torch.inference_mode():
        for file in files:
            pixels = torch.from_numpy(read_frames(file, N_FRAMES)).permute(0, 3, 1, 2)
            inputs = backbone.transform(pixels).contiguous(memory_format=torch.channels_last)
            total += float(backbone.module(inputs).mean())
    return total / len(files)


def together(name: str, stimuli: Stimuli, cache: Path) -> float:
    """Extract features to disk; return their mean."""
    backbone = load_backbone(name, pretrained=False, seed=0)
    features = extract_features(backbone, stimuli, LAYERS, device="cpu", cache=cache)
    return float(np.mean([array.values.mean() for array in features.values()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbone", nargs="?", default="torchvision:resnet18")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    name = args.backbone
    with tempfile.TemporaryDirectory() as folder:
        clips, cache = Path(folder, "clips"), Path(folder, "cache")
        clips.mkdir()
        run_apart(lambda: write_clips(clips, args.clips), lambda: None, args.threads)
        files = sorted(clips.iterdir())
        few = Stimuli.from_files(files[:2], n_frames=N_FRAMES)
        every = Stimuli.from_files(files, n_frames=N_FRAMES)
        ratios = []
        for repeat in range(args.repeats):
            seconds, grew, _ = run_apart(
                lambda repeat=repeat: together(name, every, cache / f"{repeat}"),
                lambda repeat=repeat: together(name, few, cache / f"warm{repeat}"),
                args.threads,
            )
            bare, bare_grew, _ = run_apart(
                lambda: apart(name, files), lambda: apart(name, files[:2]), args.threads
            )
            ratios.append(seconds / bare)
            print(
                f"{args.clips} clips x {N_FRAMES} frames, {name}: extraction {seconds:.1f} s, "
                f"+{grew:.0f} MB; apart {bare:.1f} s, +{bare_grew:.0f} MB; ratio {ratios[-1]:.2f}"
            )
        print(f"median ratio {np.median(ratios):.2f} (less than 1 is faster)")
        for minutes in (args.minutes / 4, args.minutes):
            movie = Path(folder, f"{minutes}.mp4")
            n_frames = round(minutes * 1800)
            run_apart(
                lambda movie=movie, n=n_frames: write_video(movie, n, (640, 360), 0),
                lambda: None,
                args.threads,
            )
            cut = Stimuli.from_files([movie]).clips(tr=1, n_frames=4)
            seconds, grew, _ = run_apart(
                lambda cut=cut, minutes=minutes: together(name, cut, cache / f"movie{minutes}"),
                lambda: together(name, few, cache / "warm"),
                args.threads,
            )
            size = len(cut) * 49 * 960 * 4 / 1e6
            print(
                f"a movie of {minutes:g} min, {len(cut)} clips: {seconds:.1f} s, +{grew:.0f} MB, "
                f"of which {size:.0f} MB are the features that are returned"
            )


if __name__ == "__main__":
    main()
