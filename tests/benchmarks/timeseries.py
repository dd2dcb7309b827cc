"""Ridge on a time series with delays, cross-validated over runs: seconds and peak memory.

    python tests/benchmarks/timeseries.py                  # one of the outer folds
    python tests/benchmarks/timeseries.py --all-folds
    python tests/benchmarks/timeseries.py 10000 1000 1000 --delays 5 --runs 10

Outer folds leave out a fifth of the runs; inner folds keep runs whole.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from ridge import correlation, run_apart, simulate
from sklearn.model_selection import GroupKFold

from neurodl.models import RidgeCV

N_FOLDS = 5
LAG = 2  # of the targets behind the features [samples]


def mean_r(
    X: np.ndarray, Y: np.ndarray, runs: np.ndarray, n_delays: int, n_folds: int, seed: int = 0
) -> float:
    """Return the mean r of the first few of the outer folds.

    Parameters
    ----------
    X : numpy.ndarray, shape (n_samples, n_features)
    Y : numpy.ndarray, shape (n_samples, n_targets)
    runs : numpy.ndarray, shape (n_samples,)
    n_delays : int
        Delays of 1 to so many samples.
    n_folds : int
        How many of the outer folds are computed.
    """
    splits = list(GroupKFold(N_FOLDS).split(X, groups=runs))[:n_folds]
    delays = list(range(1, n_delays + 1))
    model = RidgeCV(delays=delays, standardize=False, device="cpu", seed=seed)
    found = []
    for part in model.predict_folds(X, Y, splits, groups=runs, runs=runs):
        observed = Y[:, part.columns][splits[part.fold][1]]
        found.append(correlation(part.predicted, observed))
    return float(np.nanmean(np.concatenate(found)))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", nargs="*", type=int, default=[10_000, 1000, 1000])
    parser.add_argument("--delays", type=int, default=5, help="how many")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--all-folds", action="store_true", help="all outer folds, not one")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # in the parent: forked children must not inherit a thread pool
    X, Y = simulate(*chosen.size)
    Y = np.roll(Y, LAG, axis=0)
    n_folds = N_FOLDS if chosen.all_folds else 1
    few = np.arange(chosen.runs).repeat(6)

    def job() -> float:
        runs = np.arange(len(X)) * chosen.runs // len(X)
        return mean_r(X, Y, runs, chosen.delays, n_folds)

    def warm_up() -> float:
        return mean_r(X[: len(few)], Y[: len(few), :20], few, chosen.delays, 1)

    seconds, memory, r = run_apart(job, warm_up, chosen.threads)
    print(
        f"{' x '.join(map(str, chosen.size))}, {chosen.delays} delays, {chosen.runs} runs, "
        f"{n_folds} of {N_FOLDS} outer folds, {chosen.threads} threads\n"
        f"{'neurodl RidgeCV':<40} {seconds:7.2f} s  {seconds / n_folds:7.2f} s/fold  "
        f"+{memory:6.0f} MB  mean r {r:.5f}"
    )


if __name__ == "__main__":
    main()
