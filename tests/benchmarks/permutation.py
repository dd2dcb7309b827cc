"""A permutation test's products with the targets, against the bare matrix product.

    python tests/benchmarks/permutation.py                 # 1000 x 4096 x 20,000
    python tests/benchmarks/permutation.py 1000 4096 5000 --permutations 50 200

The operations counted are those of the maps from training to test rows, nothing else.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from ridge import folds, peak_memory, simulate

from neurodl.models import RidgeCV
from neurodl.models._permutation import permuted_r


def product_rate() -> float:
    """Return the rate of large products in float32 [operations/s]."""
    a, b = torch.rand(2000, 2000), torch.rand(2000, 2000)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * 2000**3 / min(seconds)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", nargs="*", type=int, default=[1000, 4096, 20_000])
    parser.add_argument("--permutations", nargs="+", type=int, default=[20, 60])
    chosen = parser.parse_args()
    X, Y = simulate(*chosen.size)
    splits = folds(len(X))
    scale = np.square(X).sum() / len(X)
    alpha = scale * np.random.default_rng(0).choice(np.logspace(-3, 2, 8), (5, Y.shape[1]))
    operations = sum(2 * len(train) * len(test) for train, test in splits) * Y.shape[1]
    model = RidgeCV(standardize=False, device="cpu")
    for n_permutations in chosen.permutations:
        rng = np.random.default_rng(0)
        orders = np.stack([rng.permutation(len(X)) for _ in range(n_permutations)])
        for _ in permuted_r(model, X[:100], Y[:100, :50], folds(100), alpha[:, :50], orders % 100):
            pass
        Path("/proc/self/clear_refs").write_text("5")
        before, start = peak_memory(), time.perf_counter()
        for _ in permuted_r(model, X, Y, splits, alpha, orders):
            pass
        seconds = time.perf_counter() - start
        rate, bare = operations * n_permutations / seconds, product_rate()
        memory = (peak_memory() - before) / 1e6
        print(
            f"{n_permutations} permutations: {seconds:.1f} s, {rate / 1e9:.0f} of {bare / 1e9:.0f} "
            f"Gop/s = {rate / bare:.0%}, +{memory:.0f} MB"
        )


if __name__ == "__main__":
    main()
