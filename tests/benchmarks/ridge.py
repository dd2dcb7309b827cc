"""Nested cross-validated ridge against himalaya and scikit-learn: ratios from paired runs.

    python tests/benchmarks/ridge.py                       # the standard sizes
    python tests/benchmarks/ridge.py 1000 4096 5000 --alphas 100 --repeats 3
    python tests/benchmarks/ridge.py 9000 1000 5000 --targets-of-peer 500 --repeats 1

Every contender gets the same centred input, outer and inner folds, penalties, and threads. Each
run has a process of its own, whose peak memory beyond the input is printed; peers run with each of
several batch sizes, and the fastest counts. scikit-learn chooses by leave-one-out, another rule.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import KFold

N_FOLDS = 5
SIZES = [(1000, 4096, 5000), (1000, 4096, 40_000), (1000, 25_088, 5000), (9000, 1000, 5000)]


def simulate(n_samples: int, n_features: int, n_targets: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features with a power-law spectrum, and targets of every signal-to-noise ratio."""
    rng = np.random.default_rng(0)
    n_latent = min(n_features, 400)
    scale = np.arange(1, n_latent + 1, dtype=np.float32) ** -0.5
    latent = rng.standard_normal((n_samples, n_latent), dtype=np.float32) * scale
    X = latent @ rng.standard_normal((n_latent, n_features), dtype=np.float32)
    X /= X.std()
    X += 0.5 * rng.standard_normal(X.shape, dtype=np.float32)
    share = rng.uniform(0, 1, n_targets).astype(np.float32) ** 2
    share[rng.uniform(size=n_targets) < 0.3] = 0
    Y = rng.standard_normal((n_samples, n_targets), dtype=np.float32) * np.sqrt(1 - share)
    for start in range(0, n_targets, 5000):
        some = slice(start, start + 5000)
        size = len(share[some])
        signal = latent @ rng.standard_normal((n_latent, size), dtype=np.float32)
        Y[:, some] += np.sqrt(share[some]) * signal / signal.std(0)
    return X - X.mean(0), Y - Y.mean(0)


def folds(n_samples: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the outer folds."""
    return list(KFold(N_FOLDS).split(np.empty(n_samples)))


def correlation(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Return Pearson's r of each column."""
    from neurodl.metrics import pearson_r

    return pearson_r(torch.as_tensor(predicted), torch.as_tensor(observed)).numpy()


def ours(X: np.ndarray, Y: np.ndarray, alphas: np.ndarray, *, screening: bool = True) -> np.ndarray:
    """Return r of each fold and target by neurodl."""
    from neurodl.models import RidgeCV

    splits = folds(len(X))
    model = RidgeCV(alphas, cv=KFold(N_FOLDS), standardize=False, screening=screening, device="cpu")
    r = np.empty((N_FOLDS, Y.shape[1]), np.float32)
    for part in model.predict_folds(X, Y, splits):
        observed = Y[:, part.columns][splits[part.fold][1]]
        r[part.fold, part.columns] = correlation(part.predicted, observed)
    return r


def himalaya(kind: str, batch: int | None) -> Callable[..., np.ndarray]:
    """Return the function that gives r by himalaya's estimator `kind`."""

    def run(X: np.ndarray, Y: np.ndarray, alphas: np.ndarray) -> np.ndarray:
        from himalaya.backend import set_backend
        from himalaya.kernel_ridge import KernelRidgeCV
        from himalaya.ridge import RidgeCV
        from himalaya.scoring import l2_neg_loss

        set_backend("torch")
        solver = {"score_func": l2_neg_loss, "n_targets_batch": batch}
        inner = KFold(N_FOLDS)
        r = np.empty((N_FOLDS, Y.shape[1]), np.float32)
        for fold, (train, test) in enumerate(folds(len(X))):
            if kind == "KernelRidgeCV":
                model = KernelRidgeCV(alphas=alphas, cv=inner, solver_params=solver)
            else:
                options = {**solver, "warn": False}
                model = RidgeCV(alphas=alphas, cv=inner, solver_params=options)
            model.fit(torch.from_numpy(X[train]), torch.from_numpy(Y[train]))
            predicted = model.predict(torch.from_numpy(X[test])).numpy()
            r[fold] = correlation(predicted, Y[test])
        return r

    return run


def scikit_learn(X: np.ndarray, Y: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Return r of each fold and target by scikit-learn, which chooses by leave-one-out."""
    from sklearn.linear_model import RidgeCV

    model = RidgeCV(alphas, alpha_per_target=True)
    fitted = [(model.fit(X[a], Y[a]).predict(X[b]), Y[b]) for a, b in folds(len(X))]
    return np.stack([correlation(predicted, observed) for predicted, observed in fitted])


def peak_memory() -> int:
    """Return the peak resident memory of this process since it was last reset [bytes]."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def run_apart(
    job: Callable[[], Any], warm_up: Callable[[], Any], n_threads: int
) -> tuple[float, float, Any]:
    """Return seconds, peak memory beyond the input [MB] and the result of a job in a new process.

    All are NaN where the process died, as it does for want of memory.
    """

    def child(pipe: multiprocessing.connection.Connection) -> None:
        torch.set_num_threads(n_threads)
        warm_up()
        Path("/proc/self/clear_refs").write_text("5")
        before = peak_memory()
        start = time.perf_counter()
        result = job()
        seconds = time.perf_counter() - start
        pipe.send((seconds, (peak_memory() - before) / 1e6, result))

    receive, send = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(send,))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        return float("nan"), float("nan"), float("nan")
    finally:
        process.join()


def measure(
    function: Callable[..., np.ndarray],
    X: np.ndarray,
    Y: np.ndarray,
    alphas: np.ndarray,
    n_threads: int,
) -> tuple[float, float, float]:
    """Return seconds, peak memory beyond the input [MB] and mean r of a run in a new process."""
    warm = np.random.default_rng(0).standard_normal((60, 30), dtype=np.float32)
    return run_apart(
        lambda: float(np.nanmean(function(X, Y, alphas))),
        lambda: function(warm, warm[:, :20].copy(), alphas),
        n_threads,
    )


def compare(
    contenders: dict[str, tuple[Callable[..., np.ndarray], np.ndarray]],
    X: np.ndarray,
    alphas: np.ndarray,
    n_repeats: int,
    n_threads: int,
) -> None:
    """Print medians of each contender, a function and its targets, against the first."""
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in contenders}
    for _ in range(n_repeats):
        for name, (function, Y) in contenders.items():
            runs[name].append(measure(function, X, Y, alphas, n_threads))
    first = next(iter(runs.values()))
    for name, found in runs.items():
        seconds, memory, r = (statistics.median(column) for column in zip(*found, strict=True))
        pairs = [b[0] / a[0] for a, b in zip(first, found, strict=True)]
        ratio = f"{statistics.median(pairs):5.2f}x" if found is not first else "      "
        print(
            f"{name:<40} {seconds:7.2f} s  {ratio}  +{memory:6.0f} MB  mean r {r:.5f}",
            flush=True,
        )


def main() -> None:
    """Run and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", nargs="*", type=int, help="n_samples n_features n_targets")
    parser.add_argument("--alphas", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batches", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--peer", default="auto", choices=["auto", "KernelRidgeCV", "RidgeCV"])
    parser.add_argument(
        "--targets-of-peer",
        type=int,
        help="compare on so many targets; neurodl runs on all of them, too",
    )
    parser.add_argument("--scikit-learn", action="store_true")
    parser.add_argument(
        "--unscreened", action="store_true", help="neurodl scores all penalties in float32"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # in the parent: forked children must not inherit a thread pool
    warnings.simplefilter("ignore")  # of the grid's edges, and of peers about the warm-up's shape
    for size in [tuple(chosen.size)] if chosen.size else SIZES:
        X, Y = simulate(*size)
        alphas = np.square(X).sum() / min(X.shape) * np.logspace(-4, 4, chosen.alphas)
        kind = (
            ("KernelRidgeCV" if size[0] <= size[1] else "RidgeCV")
            if chosen.peer == "auto"
            else chosen.peer
        )
        few = Y[:, : chosen.targets_of_peer].copy()
        mine = partial(ours, screening=not chosen.unscreened)
        contenders = {"neurodl": (mine, few)}
        for batch in chosen.batches:
            contenders[f"himalaya {kind}, batch {batch}"] = (himalaya(kind, batch), few)
        if chosen.scikit_learn:
            contenders["scikit-learn RidgeCV (leave-one-out)"] = (scikit_learn, few)
        if few.shape != Y.shape:
            contenders[f"neurodl, all {Y.shape[1]} targets"] = (mine, Y)
        sizes = f"{' x '.join(map(str, size))}, {chosen.alphas} penalties"
        print(f"\n{sizes}, {chosen.threads} threads")
        if few.shape != Y.shape:
            print(f"the first {few.shape[1]} targets only, where not said otherwise; not scaled up")
        compare(contenders, X, alphas, chosen.repeats, chosen.threads)


if __name__ == "__main__":
    main()
