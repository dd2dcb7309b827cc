"""Binning of spikes and Poisson regression against their peers: seconds, memory, ratios.

    python tests/benchmarks/spikes.py
    python tests/benchmarks/spikes.py --spikes 1000000 --events 500 --repeats 1

Spikes of all units are counted in the bins of windows around events. numpy.histogram runs unit by
unit and event by event, on a part of the events where that takes long (said, and scaled up);
pynapple counts in the bins of each window. The counts must be equal. Poisson regression is fitted
at one penalty to all units; scikit-learn fits them one at a time, some of them where that takes
long, with its fastest solver; the coefficients must agree to 1e-4. Every run has a process of its
own; the runs take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
from ridge import run_apart
from sklearn.linear_model import PoissonRegressor

from neurodl import PoissonRidgeCV, bin_spikes

DURATION = 3600.0  # s
WINDOW = (-0.1, 0.4)
BIN = 0.01


def simulate(n_spikes: int, n_units: int, n_events: int) -> tuple[dict, pd.DataFrame]:
    """Return spike times by unit, at rates that differ a hundredfold, and events."""
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.exp(rng.normal(0, 1, n_units)))
    counts = rng.multinomial(n_spikes, share)
    spikes = {str(unit): np.sort(rng.uniform(0, DURATION, n)) for unit, n in enumerate(counts)}
    onsets = 1 + np.arange(n_events) * (DURATION - 3) / n_events
    return spikes, pd.DataFrame({"onset": onsets, "stimulus": "x"})


def ours(spikes: dict, events: pd.DataFrame) -> np.ndarray:
    """Return counts (n_events, n_bins, n_units)."""
    return bin_spikes(spikes, events, window=WINDOW, bin_width=BIN).values


def histograms(spikes: dict, events: pd.DataFrame) -> np.ndarray:
    """Return the same by numpy.histogram, unit by unit and event by event."""
    n_bins = round((WINDOW[1] - WINDOW[0]) / BIN)
    edges = WINDOW[0] + np.arange(n_bins + 1) * (WINDOW[1] - WINDOW[0]) / n_bins
    found = np.empty((len(events), n_bins, len(spikes)), np.float32)
    for row, onset in enumerate(events["onset"]):
        for column, times in enumerate(spikes.values()):
            first, last = np.searchsorted(times, [onset + edges[0], onset + edges[-1]])
            found[row, :, column] = np.histogram(times[first:last], onset + edges)[0]
    return found


def pynapple(spikes: dict, events: pd.DataFrame) -> np.ndarray:
    """Return the same by pynapple's counts in the windows, made an array."""
    import pynapple as nap

    group = nap.TsGroup({int(unit): nap.Ts(times) for unit, times in spikes.items()})
    onsets = events["onset"].to_numpy()
    windows = nap.IntervalSet(onsets + WINDOW[0], onsets + WINDOW[1])
    counts = group.count(BIN, windows).values
    return counts.reshape(len(events), -1, len(spikes)).astype(np.float32)


def show(name: str, runs: list[tuple[float, float]], first: list[tuple[float, float]]) -> None:
    """Print the median time and memory of a contender, and its ratio to the first."""
    seconds, memory = (statistics.median(column) for column in zip(*runs, strict=True))
    pairs = [b[0] / a[0] for a, b in zip(first, runs, strict=True)]
    print(
        f"{name:<44} {seconds:8.2f} s  {statistics.median(pairs):8.1f}x  +{memory:6.0f} MB",
        flush=True,
    )


def compare_binning(n_spikes: int, n_units: int, n_events: int, part: int, n_repeats: int) -> None:
    """Print the comparison of binning."""
    spikes, events = simulate(n_spikes, n_units, n_events)
    few = events.iloc[:: max(1, n_events // part)]
    contenders: dict[str, tuple[Callable, pd.DataFrame]] = {
        "neurodl": (ours, events),
        f"numpy.histogram, {len(few)} events, scaled": (histograms, few),
        "pynapple": (pynapple, events),
    }
    warm = simulate(1000, 5, 10)
    expected = ours(spikes, few)
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(n_repeats):
        for name, (function, shown) in contenders.items():

            def job(function: Callable = function, shown: pd.DataFrame = shown) -> float:
                return float(function(spikes, shown).sum())

            seconds, memory, total = run_apart(job, lambda f=function: f(*warm), 1)
            scale = len(events) / len(shown)
            runs[name].append((seconds * scale, memory))
            assert np.isnan(seconds) or total > 0
    print(f"\n{n_spikes} spikes of {n_units} units, {n_events} events x {expected.shape[1]} bins")
    for name, found in runs.items():
        show(name, found, runs["neurodl"])
    equal = (histograms(spikes, few) == expected).mean()
    print(f"counts equal to numpy.histogram's: {equal:.6%}")


def compare_poisson(n: int, p: int, v: int, part: int, n_repeats: int, n_threads: int) -> None:
    """Print the comparison of Poisson regression."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((n, p)) * np.arange(1, p + 1) ** -0.5
    W = rng.standard_normal((p, v)) * 0.2
    Y = rng.poisson(np.exp(X @ W - 0.5)).astype(float)
    alpha = 0.1

    def mine() -> np.ndarray:
        model = PoissonRidgeCV([alpha], standardize=False, device="cpu")
        return model.fit(X, Y).coef_[:part]

    def peer() -> np.ndarray:
        models = [
            PoissonRegressor(alpha=alpha, solver="newton-cholesky", tol=1e-8, max_iter=1000)
            for _ in range(part)
        ]
        return np.stack([one.fit(X, Y[:, unit]).coef_ for unit, one in enumerate(models)])

    runs: dict[str, list[tuple[float, float]]] = {"neurodl": [], "scikit-learn": []}
    coefficients = {}
    for _ in range(n_repeats):
        for name, job, scale in (("neurodl", mine, 1.0), ("scikit-learn", peer, v / part)):
            seconds, memory, coefficients[name] = run_apart(job, lambda: None, n_threads)
            runs[name].append((seconds * scale, memory))
    print(f"\nPoisson regression, {n} x {p} x {v} units, {n_threads} threads")
    show("neurodl", runs["neurodl"], runs["neurodl"])
    show(f"scikit-learn, {part} units, scaled", runs["scikit-learn"], runs["neurodl"])
    apart = np.abs(coefficients["neurodl"] - coefficients["scikit-learn"]).max()
    print(f"coefficients differ by at most {apart:.1e}")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spikes", type=int, default=10_000_000)
    parser.add_argument("--units", type=int, default=500)
    parser.add_argument("--events", type=int, default=5000)
    parser.add_argument("--part", type=int, default=50, help="events of numpy.histogram")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    start = time.perf_counter()
    compare_binning(chosen.spikes, chosen.units, chosen.events, chosen.part, chosen.repeats)
    for size in ((2000, 100, 300), (1200, 1000, 100)):
        compare_poisson(*size, 10, chosen.repeats, chosen.threads)
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
