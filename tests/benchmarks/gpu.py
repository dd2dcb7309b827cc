"""Nested cross-validated ridge on a GPU: large responses from host memory, and ratios to himalaya.

    python tests/benchmarks/gpu.py                    # 10,000 x 2048 x 300,000, then the peers
    python tests/benchmarks/gpu.py 10000 2048 50000 --no-peers

The responses lie in the host's memory and are brought to the GPU block by block. The rate of bare
products in float32, and the time that the responses alone would take over the bus, are measured in
the same run. himalaya is given all data on the GPU, and runs with each of several batch sizes; the
fastest counts. Both get the same centred input, folds and penalties.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from ridge import N_FOLDS, folds, peak_memory, simulate
from sklearn.model_selection import KFold

from neurodl.metrics import pearson_r
from neurodl.models import RidgeCV

PEERS = [
    ("KernelRidgeCV", 1000, 4096, 40_000),
    ("KernelRidgeCV", 1000, 25_088, 5000),
    ("RidgeCV", 9000, 1000, 5000),
]


def simulate_large(n: int, p: int, v: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features and responses, drawn on the GPU, in the host's memory."""
    generator = torch.Generator("cuda").manual_seed(0)
    X = torch.randn(n, p, device="cuda", generator=generator)
    X *= torch.arange(1, p + 1, device="cuda") ** -0.25
    Y = np.empty((n, v), np.float32)
    for start in range(0, v, 10_000):
        size = min(10_000, v - start)
        signal = X @ torch.randn(p, size, device="cuda", generator=generator)
        noise = torch.randn(n, size, device="cuda", generator=generator)
        share = torch.rand(size, device="cuda", generator=generator) ** 2
        block = share.sqrt() * signal / signal.std(0) + (1 - share).sqrt() * noise
        Y[:, start : start + size] = (block - block.mean(0)).cpu().numpy()
    return (X - X.mean(0)).cpu().numpy(), Y


def ours(X: np.ndarray, Y: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Return r (n_folds, n_targets)."""
    splits = folds(len(X))
    model = RidgeCV(alphas, cv=KFold(N_FOLDS), standardize=False, device="cuda")
    r = np.empty((N_FOLDS, Y.shape[1]), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of penalties at the edge: noise has no best one
        for part in model.predict_folds(X, Y, splits):
            observed = torch.as_tensor(Y[:, part.columns][splits[part.fold][1]], device="cuda")
            r[part.fold, part.columns] = pearson_r(part.predicted, observed).cpu().numpy()
    return r


def himalaya(kind: str, batch: int | None) -> Callable[..., np.ndarray]:
    """Return the function that gives r by himalaya's estimator `kind` on the GPU."""

    def run(X: np.ndarray, Y: np.ndarray, alphas: np.ndarray) -> np.ndarray:
        from himalaya.backend import set_backend
        from himalaya.kernel_ridge import KernelRidgeCV
        from himalaya.ridge import RidgeCV
        from himalaya.scoring import l2_neg_loss

        set_backend("torch_cuda")
        solver = {"score_func": l2_neg_loss, "n_targets_batch": batch}
        X, Y = torch.from_numpy(X).cuda(), torch.from_numpy(Y).cuda()
        r = np.empty((N_FOLDS, Y.shape[1]), np.float32)
        for fold, (train, test) in enumerate(folds(len(X))):
            if kind == "KernelRidgeCV":
                model = KernelRidgeCV(alphas=alphas, cv=KFold(N_FOLDS), solver_params=solver)
            else:
                options = {**solver, "warn": False}
                model = RidgeCV(alphas=alphas, cv=KFold(N_FOLDS), solver_params=options)
            model.fit(X[train], Y[train])
            r[fold] = pearson_r(model.predict(X[test]).cuda(), Y[test]).cpu().numpy()
        return r

    return run


def timed(function: Callable[..., np.ndarray], *given: np.ndarray) -> tuple[float, float, float]:
    """Return seconds, peak memory on the GPU [MB] and mean r."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    r = function(*given)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated() / 1e6, float(np.nanmean(r))


def rates(Y: np.ndarray) -> tuple[float, float]:
    """Return the rate of products [operations/s] and of copies to the GPU [bytes/s]."""
    a = torch.randn(8192, 8192, device="cuda")
    host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    found = []
    for work, amount in ((lambda: a @ a, 2 * 8192**3), (lambda: host.cuda(), host.numel())):
        seconds = []
        for _ in range(5):
            torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        found.append(amount / min(seconds))
    return found[0], found[1]


def alphas_of(X: np.ndarray) -> np.ndarray:
    """Return 20 penalties around the mean eigenvalue."""
    return np.square(X).sum() / min(X.shape) * np.logspace(-4, 4, 20)


def show_large(n: int, p: int, v: int) -> None:
    """Print the time of the large task."""
    X, Y = simulate_large(n, p, v)
    products, copies = rates(Y)
    ours(X[:200], Y[:200, :50].copy(), alphas_of(X))
    before = peak_memory()
    seconds, memory, r = timed(ours, X, Y, alphas_of(X))
    print(
        f"{n} x {p} x {v}, 20 penalties, 5 x 5 folds: {seconds:.1f} s, mean r {r:.4f}, "
        f"{memory:.0f} MB of the GPU, +{(peak_memory() - before) / 1e6:.0f} MB of the host\n"
        f"bare products: {products / 1e12:.1f} Top/s; the responses alone take "
        f"{N_FOLDS * Y.nbytes / copies:.1f} s over the bus ({copies / 1e9:.1f} GB/s)",
        flush=True,
    )


def show_peers(n_repeats: int, batches: list[int]) -> None:
    """Print ratios to himalaya, medians of pairs."""
    for kind, n, p, v in PEERS:
        X, Y = simulate(n, p, v)
        alphas = alphas_of(X)
        contenders: dict[str, Callable[..., np.ndarray]] = {"neurodl": ours}
        contenders |= {f"himalaya, batch {batch}": himalaya(kind, batch) for batch in batches}
        runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in contenders}
        for function in contenders.values():
            function(X[:200], Y[:200, :50].copy(), alphas)
        for _ in range(n_repeats):
            for name, function in contenders.items():
                runs[name].append(timed(function, X, Y, alphas))
        print(f"\n{n} x {p} x {v}, {kind}")
        for name, found in runs.items():
            seconds, memory, r = (statistics.median(one) for one in zip(*found, strict=True))
            pairs = [b[0] / a[0] for a, b in zip(runs["neurodl"], found, strict=True)]
            print(
                f"{name:<28} {seconds:7.3f} s  {statistics.median(pairs):6.2f}x  {memory:7.0f} MB "
                f" mean r {r:.5f}",
                flush=True,
            )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", nargs="*", type=int, default=[10_000, 2048, 300_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1000, 5000, 20_000])
    parser.add_argument("--no-peers", action="store_true")
    chosen = parser.parse_args()
    print(torch.cuda.get_device_name())
    show_large(*chosen.size)
    if not chosen.no_peers:
        show_peers(chosen.repeats, chosen.batches)


if __name__ == "__main__":
    main()
