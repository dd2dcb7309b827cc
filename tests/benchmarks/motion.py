"""Motion energy against pymoten: seconds, memory, ratio, and how far the energies agree.

    python tests/benchmarks/motion.py
    python tests/benchmarks/motion.py --frames 200 --size 128 --batched

Both compute in float32 from the same luminance. With --batched the peer is pymoten's
`project_stimulus_batched`, which takes more memory. Every run has a process of its own; the runs
take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from moten.core import project_stimulus_batched
from moten.pyramids import MotionEnergyPyramid
from ridge import run_apart

from neurodl.backbones.motion_energy import MotionEnergy, stream

FPS = 15


def ours(frames: np.ndarray) -> np.ndarray:
    """Return energies in blocks of 64 frames, as a long movie is read."""

    def blocks() -> Iterator[torch.Tensor]:
        yield from torch.from_numpy(frames).split(64)

    return np.concatenate(
        [part.numpy() for part in stream(MotionEnergy(frames[0].shape, FPS), blocks())]
    )


def theirs(frames: np.ndarray, batched: bool) -> np.ndarray:
    pyramid = MotionEnergyPyramid(stimulus_vhsize=frames[0].shape, stimulus_fps=FPS)
    if batched:
        return project_stimulus_batched(frames, pyramid.filters)
    return pyramid.project_stimulus(frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batched", action="store_true")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    frames = rng.uniform(0, 100, (args.frames, args.size, args.size)).astype(np.float32)
    small = frames[:12, :24, :24]
    ratios = []
    for _ in range(args.repeats):
        took, grew, found = run_apart(lambda: ours(frames), lambda: ours(small), args.threads)
        peer, peer_grew, expected = run_apart(
            lambda: theirs(frames, args.batched), lambda: theirs(small, args.batched), args.threads
        )
        ratios.append(peer / took)
        apart = np.abs(np.exp(found) - np.exp(expected)).max() / np.exp(expected).max()
        print(
            f"neurodl {took:.2f} s, +{grew:.0f} MB; pymoten {peer:.2f} s, +{peer_grew:.0f} MB; "
            f"ratio {ratios[-1]:.1f}; largest difference {apart:.1e} of the largest energy"
        )
    n_filters = found.shape[1]
    print(
        f"{args.frames} frames of {args.size} x {args.size}, {n_filters} filters: median ratio "
        f"{np.median(ratios):.1f}"
    )


if __name__ == "__main__":
    main()
