"""Time to score: banded ridge against himalaya's random search, scored by one and the same judge.

    python tests/benchmarks/banded.py                      # 1000 x 3 bands of 1000 x 5000
    python tests/benchmarks/banded.py 1000 1000 5000 --bands 5 --n-iter 1000 --repeats 3
    python tests/benchmarks/banded.py 1000 1000 40000 --peak-only

himalaya is given kernels, normalised by their mean diagonal; neurodl starts from the features, and
makes the kernels itself. Both get the same centred input, inner folds and threads, each run in a
process of its own; himalaya runs with each of several batch sizes, and the fastest counts. himalaya
does not centre in each fold, so that its own inner score is not quite comparable: the penalties
that both found are scored once more, by brute force, on some of the targets.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from ridge import correlation, run_apart
from sklearn.model_selection import KFold

N_FOLDS = 5
N_TEST = 200
N_JUDGED = 200
CANDIDATES = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]


class Result(NamedTuple):
    """What a search found.

    gains : (n_bands, n_targets), one over the penalty of each band, in units of the features
    best : mean inner score by its own account, after 1, 2, ... candidates if it counts them
    """

    gains: np.ndarray
    best: np.ndarray


def simulate(
    n_samples: int, n_features: int, n_bands: int, n_targets: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return bands with power-law spectra, and targets that mix their signals.

    The shares of the bands are Dirichlet(0.5), the signal's share of the variance is uniform
    squared, and 30 % of the targets are noise.

    Returns
    -------
    bands : list of numpy.ndarray, shape (n_samples, n_features)
    targets : numpy.ndarray, shape (n_samples, n_targets)
    """
    rng = np.random.default_rng(0)
    n_latent = min(n_features, 400)
    scale = np.arange(1, n_latent + 1, dtype=np.float32) ** -0.5
    share = rng.uniform(0, 1, n_targets).astype(np.float32) ** 2
    share[rng.uniform(size=n_targets) < 0.3] = 0
    mixture = rng.dirichlet([0.5] * n_bands, n_targets).T.astype(np.float32)
    Y = rng.standard_normal((n_samples, n_targets), dtype=np.float32) * np.sqrt(1 - share)
    bands = []
    for part in mixture:
        latent = rng.standard_normal((n_samples, n_latent), dtype=np.float32) * scale
        X = latent @ rng.standard_normal((n_latent, n_features), dtype=np.float32)
        X /= X.std()
        bands.append(X + 0.5 * rng.standard_normal(X.shape, dtype=np.float32))
        for start in range(0, n_targets, 5000):
            some = slice(start, start + 5000)
            signal = latent @ rng.standard_normal((n_latent, len(part[some])), dtype=np.float32)
            Y[:, some] += np.sqrt(share[some] * part[some]) * signal / signal.std(0)
    return bands, Y


def mean_diagonals(bands: list[np.ndarray]) -> np.ndarray:
    """Return the mean diagonal of the kernel of each band, (n_bands,)."""
    return np.array([np.square(X, dtype=np.float64).sum() / len(X) for X in bands])


def random_search(
    kernels: np.ndarray, Y: np.ndarray, unit: np.ndarray, n_iter: int, batch: int
) -> Result:
    """Return what himalaya's random search finds.

    Parameters
    ----------
    kernels : numpy.ndarray, shape (n_bands, n_samples, n_samples)
        Divided by `unit`.
    Y : numpy.ndarray, shape (n_samples, n_targets)
    unit : numpy.ndarray, shape (n_bands,)
    n_iter, batch : int
        Candidates, and targets at a time.
    """
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import solve_multiple_kernel_ridge_random_search
    from himalaya.scoring import r2_score

    set_backend("torch")
    deltas, _, scores = solve_multiple_kernel_ridge_random_search(
        torch.from_numpy(kernels),
        torch.from_numpy(Y),
        n_iter=n_iter,
        alphas=torch.logspace(-4, 4, 20),
        score_func=r2_score,
        cv=KFold(N_FOLDS),
        return_weights="dual",
        n_targets_batch=batch,
        progress_bar=False,
        random_state=0,
    )
    best = np.maximum.accumulate(scores.numpy(), axis=0).mean(1)
    return Result(np.exp(deltas.double().numpy()) / unit[:, None], best)


def ours(X: np.ndarray, Y: np.ndarray, n_bands: int, refine: int) -> Result:
    """Return what neurodl finds with bands of equal size, side by side in X."""
    from neurodl.models import BandedRidgeCV

    sizes = {f"band {place}": X.shape[1] // n_bands for place in range(n_bands)}
    model = BandedRidgeCV(
        bands=sizes, standardize=False, cv=KFold(N_FOLDS), refine=refine, device="cpu"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of penalties at the edge: noise has no best one
        model.fit(X, Y)
    return Result(1 / model.alpha_by_band_, np.array([np.nanmean(model.cv_score_)]))


def predict(kernel: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return predictions (n_test,) of one target, centred over training rows.

    Parameters
    ----------
    kernel : numpy.ndarray, shape (n_samples, n_samples), float64
        The sum of the kernels of all bands, each over its penalty.
    y : numpy.ndarray, shape (n_samples,)
    """
    inner = kernel[np.ix_(train, train)]
    across = kernel[np.ix_(test, train)] - inner.mean(0)
    inner = inner - inner.mean(0)
    inner -= inner.mean(1, keepdims=True)
    across -= across.mean(1, keepdims=True)
    mean = y[train].mean()
    inner[np.diag_indices_from(inner)] += 1
    return across @ np.linalg.solve(inner, y[train] - mean) + mean


def judge(kernels: np.ndarray, Y: np.ndarray, gains: np.ndarray) -> tuple[float, float]:
    """Return mean inner r2 and mean held-out r of given penalties; the last rows are held out.

    Parameters
    ----------
    kernels : numpy.ndarray, shape (n_bands, n_samples + N_TEST, n_samples + N_TEST), float64
    Y : numpy.ndarray, shape (n_samples + N_TEST, n_targets)
    gains : numpy.ndarray, shape (n_bands, n_targets)
    """
    n_samples = len(Y) - N_TEST
    splits = list(KFold(N_FOLDS).split(np.empty(n_samples)))
    final = np.arange(n_samples), np.arange(n_samples, len(Y))
    r2, predicted = [], np.empty((N_TEST, Y.shape[1]))
    for target, (y, gain) in enumerate(zip(Y.T.astype(np.float64), gains.T, strict=True)):
        kernel = np.tensordot(gain, kernels, 1)
        for train, test in splits:
            error = y[test] - predict(kernel, y, train, test)
            r2.append(1 - np.square(error).mean() / y[test].var())
        predicted[:, target] = predict(kernel, y, *final)
    return float(np.mean(r2)), float(np.nanmean(correlation(predicted, Y[n_samples:])))


def show_search(name: str, best: np.ndarray) -> None:
    """Print the mean inner score on the way."""
    counts = [count for count in CANDIDATES if count < len(best)] + [len(best)]
    print(f"{name}: mean inner score by its own account, after so many candidates")
    print("".join(f"{count:9d}" for count in counts))
    print("".join(f"{best[count - 1]:9.5f}" for count in counts), flush=True)


def run_all(
    jobs: dict[str, tuple[Callable[[], Result], Callable[[], Result]]],
    n_repeats: int,
    n_threads: int,
) -> dict[str, list[tuple[float, float, Result]]]:
    """Return seconds, memory and result of each run of each contender, a job and a warm-up."""
    runs: dict[str, list[tuple[float, float, Result]]] = {name: [] for name in jobs}
    for _ in range(n_repeats):
        for name, (job, warm_up) in jobs.items():
            runs[name].append(run_apart(job, warm_up, n_threads))
    return runs


def main() -> None:
    """Run and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "size",
        nargs="*",
        type=int,
        default=[1000, 1000, 5000],
        help="n_samples n_features (of each band) n_targets",
    )
    parser.add_argument("--bands", type=int, default=3)
    parser.add_argument("--n-iter", type=int, default=100, help="candidates of the random search")
    parser.add_argument("--refine", type=int, default=1, help="see BandedRidgeCV")
    parser.add_argument("--batches", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak-only", action="store_true", help="one run each, no scores")
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # in the parent: forked children must not inherit a thread pool
    n_samples, n_features, n_targets = chosen.size
    every_band, every_Y = simulate(n_samples + N_TEST, n_features, chosen.bands, n_targets)
    means = [X[:n_samples].mean(0) for X in every_band]
    every_band = [X - mean for X, mean in zip(every_band, means, strict=True)]
    every_Y -= every_Y[:n_samples].mean(0)
    bands, Y = [X[:n_samples] for X in every_band], every_Y[:n_samples].copy()
    unit = mean_diagonals(bands)
    kernels = np.stack([X @ X.T / np.float32(u) for X, u in zip(bands, unit, strict=True)])
    X = np.concatenate(bands, axis=1)
    jobs = {
        "neurodl": (
            lambda: ours(X, Y, chosen.bands, chosen.refine),
            lambda: ours(X[:60].copy(), Y[:60, :20].copy(), chosen.bands, chosen.refine),
        )
    }
    for batch in chosen.batches:
        jobs[f"himalaya random search, batch {batch}"] = (
            lambda batch=batch: random_search(kernels, Y, unit, chosen.n_iter, batch),
            lambda batch=batch: random_search(
                kernels[:, :60, :60].copy(), Y[:60, :20].copy(), unit, 2, batch
            ),
        )
    print(
        f"{n_samples} x {chosen.bands} bands of {n_features} x {n_targets}, "
        f"{chosen.n_iter} candidates, refine={chosen.refine}, {chosen.threads} threads"
    )
    runs = run_all(jobs, 1 if chosen.peak_only else chosen.repeats, chosen.threads)
    medians = {name: statistics.median(run[0] for run in found) for name, found in runs.items()}
    for name, found in runs.items():
        memory = statistics.median(run[1] for run in found)
        pairs = [b[0] / a[0] for a, b in zip(runs["neurodl"], found, strict=True)]
        ratio = f"{statistics.median(pairs):5.2f}x" if name != "neurodl" else "      "
        print(f"{name:<40} {medians[name]:7.2f} s  {ratio}  +{memory:6.0f} MB", flush=True)
    if chosen.peak_only:
        return
    fastest = min((name for name in medians if name != "neurodl"), key=lambda name: medians[name])
    results = {name: runs[name][-1][2] for name in ("neurodl", fastest)}
    show_search(fastest, results[fastest].best)
    print(f"neurodl: mean inner score by its own account {results['neurodl'].best[-1]:.5f}")
    some = np.random.default_rng(1).permutation(n_targets)[:N_JUDGED]
    wide = np.stack([X @ X.T for X in (X.astype(np.float64) for X in every_band)])
    print(f"brute force on {len(some)} targets, float64, centred in each fold")
    for name, result in results.items():
        inner, held = judge(wide, every_Y[:, some], result.gains[:, some])
        print(f"{name:<40} mean inner r2 {inner:.5f}  r of {N_TEST} held-out rows {held:.5f}")


if __name__ == "__main__":
    main()
