"""How nested cross-validation grows with each size, and what its time goes into.

    python tests/benchmarks/growth.py --figure docs/growth.png
    python tests/benchmarks/growth.py --no-axes --large    # shares only, 5000 and 40,000 targets

One size at a time is varied around 1000 samples x 2000 features x 5000 targets, 20 penalties and 5
inner folds, with 5 outer folds. The line is what the operations counted by `operations` would take
at the rates of bare products, measured in the same run.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import scipy.linalg
import torch
from ridge import N_FOLDS, folds, run_apart, simulate
from sklearn.model_selection import KFold
from torch.utils._python_dispatch import TorchDispatchMode

from neurodl.models import RidgeCV
from neurodl.models._folds import N_BASIS
from neurodl.models._preflight import N_EXACT, N_ROUGH
from neurodl.models._screening import can_screen
from neurodl.models._spaces import EIGH_COST, covariance_pays

PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "mv", "addmv", "convolution"}
DECOMPOSITIONS = {"_linalg_eigh", "_linalg_svd", "linalg_qr", "linalg_cholesky_ex"}
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


class Size(NamedTuple):
    """A size of the task."""

    n_samples: int = 1000
    n_features: int = 2000
    n_targets: int = 5000
    n_alphas: int = 20
    n_folds: int = 5


AXES = {
    "n_samples": (500, 1000, 2000, 4000),
    "n_features": (500, 1000, 2000, 4000, 8000),
    "n_targets": (1250, 5000, 20_000, 80_000),
    "n_alphas": (5, 20, 80, 320),
    "n_folds": (3, 5, 10, 20),
}


def operations(size: Size) -> Counter[torch.dtype]:
    """Return the operations of nested cross-validation, by the precision they are made in.

    Counted are the kernel or the covariances, the eigendecompositions of all training sets as
    `EIGH_COST` n^3, and products with the targets: `N_ROUGH` basis predictions of the held-out
    rows of each inner fold in bfloat16 and `N_EXACT` penalties in float32, or, where nothing is
    screened, `N_BASIS` basis predictions in float32; and the predictions.
    """
    n, p, v, n_alphas, n_folds = size
    own, out = n * (N_FOLDS - 1) / N_FOLDS, n / N_FOLDS
    train, test = own * (n_folds - 1) / n_folds, own / n_folds
    screens = can_screen(n_alphas, torch.float32, torch.device("cpu"))
    passes = (N_BASIS, N_ROUGH, N_EXACT) if screens else (N_BASIS, 0, N_BASIS)
    basis, rough, exact = (min(n_alphas, few) for few in passes)
    count: Counter[Any] = Counter()
    if covariance_pays(int(own), p, v):
        q = min(test, p)
        outer = 4 * own * p**2 + EIGH_COST * p**3
        inner = 2 * test * p**2 + EIGH_COST * p**3 + 2 * q * p**2
        count[torch.float64] = N_FOLDS * (outer + n_folds * inner)
        per_fold = 2 * test * p + 4 * p**2
        count[torch.float32] = 2 * v * p * (own + out) + n_folds * v * per_fold
        across = 2 * v * p * q
    else:
        maps = 2 * train**2 * test * basis
        inner = EIGH_COST * train**3 + 2 * train**2 * test
        count[torch.float64] = 2 * n**2 * p
        count[torch.float64] += N_FOLDS * (EIGH_COST * own**3 + n_folds * inner)
        count[torch.float32] = 2 * v * own * out + n_folds * maps
        across = 2 * v * train * test
    count[torch.float32] += n_folds * across * exact
    count[torch.float32] *= N_FOLDS
    count[torch.bfloat16] = N_FOLDS * n_folds * across * rough
    return count


def product_rates(size: int = 2000) -> dict[torch.dtype, float]:
    """Return the rate of large square products in each precision [operations/s]."""
    rates = {}
    for dtype in DTYPES:
        a, seconds = torch.rand(size, size).to(dtype), []
        for _ in range(5):
            start = time.perf_counter()
            a @ a
            seconds.append(time.perf_counter() - start)
        rates[dtype] = 2 * size**3 / min(seconds)
    return rates


def expected_seconds(size: Size, rates: dict[torch.dtype, float]) -> float:
    """Return the operations of a size over their rates [s]."""
    return sum(count / rates[dtype] for dtype, count in operations(size).items())


class Shares(TorchDispatchMode):
    """Sums the time [s] of products by precision, and of decompositions, and counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run and time an operation."""
        name = func.overloadpacket.__name__
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - start
        if name in PRODUCTS:
            left, right = args[1:3] if name.startswith(("addm", "badd")) else args[:2]
            what = str(left.dtype).removeprefix("torch.")
            width = right.shape[-1] if right.ndim > 1 else 1
            if name == "convolution":  # by which `linear` makes large products
                width = len(right)
            self.seconds[what] += seconds
            self.operations[what] += 2 * left.numel() * width
        elif name in DECOMPOSITIONS:
            self.seconds["decompositions"] += seconds
        return result

    def __enter__(self) -> Shares:
        """Watch SciPy's decompositions, too."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return decompose(*args, **kwargs)
            finally:
                self.seconds["decompositions"] += time.perf_counter() - start

        decompose = scipy.linalg.eigh
        self.patched = patch.object(scipy.linalg, "eigh", watched)
        self.patched.start()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        """Watch no more."""
        super().__exit__(*raised)
        self.patched.stop()


def cross_validate(
    X: np.ndarray, Y: np.ndarray, n_alphas: int, n_folds: int, *, screening: bool = True
) -> None:
    """Predict all outer folds; the predictions are not kept."""
    alphas = np.square(X).sum() / min(X.shape) * np.logspace(-4, 4, n_alphas)
    model = RidgeCV(alphas, cv=KFold(n_folds), standardize=False, screening=screening, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of penalties at the edge: noise has no best one
        for _ in model.predict_folds(X, Y, folds(len(X))):
            pass


def measured_seconds(size: Size, n_repeats: int, n_threads: int) -> float:
    """Return the shortest of some runs, each in a process of its own [s]."""
    X, Y = simulate(*size[:3])
    warm = np.random.default_rng(0).standard_normal((100, 30), dtype=np.float32)

    def job() -> None:
        cross_validate(X, Y, *size[3:])

    def warm_up() -> None:
        cross_validate(warm, warm[:, :20].copy(), *size[3:])

    return min(run_apart(job, warm_up, n_threads)[0] for _ in range(n_repeats))


def show_shares(
    n_samples: int, n_features: int, n_targets: int, n_threads: int, *, screening: bool
) -> None:
    """Print what the time of one run goes into, and the rate of its products.

    Watching takes time of its own, so the whole is that of a run that is not watched.
    """
    X, Y = simulate(n_samples, n_features, n_targets)

    def job() -> tuple[float, Counter[str], Counter[str]]:
        shares = Shares()
        with shares:
            cross_validate(X, Y, 20, 5, screening=screening)
        start = time.perf_counter()
        cross_validate(X, Y, 20, 5, screening=screening)
        return time.perf_counter() - start, shares.seconds, shares.operations

    def warm_up() -> None:
        with Shares():  # the first use of a mode imports much
            cross_validate(X[:100], Y[:100, :20].copy(), 20, 5)

    rates = run_apart(product_rates, lambda: None, n_threads)[2]
    _, _, (total, seconds, counted) = run_apart(job, warm_up, n_threads)
    how = "screened" if screening else "all in float32"
    print(f"\n{n_samples} x {n_features} x {n_targets}, 20 penalties, {how}, {total:.2f} s")
    for dtype in DTYPES:
        what = str(dtype).removeprefix("torch.")
        taken = seconds[what]
        rate = counted[what] / taken if taken else math.nan
        print(
            f"products in {what:<12} {taken:8.2f} s  {taken / total:4.0%}  {rate / 1e9:7.0f} of "
            f"{rates[dtype] / 1e9:7.0f} Gop/s = {rate / rates[dtype]:.0%}"
        )
    rest = total - sum(seconds.values())
    for what, taken in (("decompositions", seconds["decompositions"]), ("everything else", rest)):
        print(f"{what:<24} {taken:8.2f} s  {taken / total:4.0%}", flush=True)


def show_axes(
    axes: dict[str, tuple[int, ...]], middle: Size, n_repeats: int, n_threads: int
) -> dict[str, list[tuple[int, float, float]]]:
    """Print and return each value of each axis with the seconds measured and expected."""
    rates = run_apart(product_rates, lambda: None, n_threads)[2]
    known: dict[Size, float] = {}
    found: dict[str, list[tuple[int, float, float]]] = {}
    print(f"{'axis':<12} {'value':>8} {'measured':>10} {'expected':>10}  ratio")
    for axis, values in axes.items():
        found[axis] = []
        for value in values:
            size = middle._replace(**{axis: value})
            if size not in known:
                known[size] = measured_seconds(size, n_repeats, n_threads)
            seconds, expected = known[size], expected_seconds(size, rates)
            found[axis].append((value, seconds, expected))
            ratio = seconds / expected
            print(
                f"{axis:<12} {value:8d} {seconds:8.2f} s {expected:8.2f} s  {ratio:.2f}", flush=True
            )
    return found


def draw(found: dict[str, list[tuple[int, float, float]]], path: Path) -> None:
    """Draw a panel for each axis: points measured, and the line expected."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    from neurodl.reports.svg import INK, PALETTE, RULE

    pyplot.rcParams.update({"font.size": 9, "axes.edgecolor": RULE, "text.color": INK})
    figure, panels = pyplot.subplots(1, len(found), figsize=(9, 2.5), sharey=True)
    for panel, (axis, rows) in zip(panels, found.items(), strict=True):
        values, seconds, expected = zip(*rows, strict=True)
        panel.loglog(values, expected, color=INK, lw=1.2, label="operations / rate")
        panel.loglog(values, seconds, "o", ms=5, color=PALETTE[0], label="measured")
        panel.set_xlabel(axis.replace("n_", "").replace("folds", "inner folds"), color=INK)
        panel.xaxis.set_major_locator(matplotlib.ticker.FixedLocator(values))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.tick_params(colors=INK, length=3, which="major")
        panel.tick_params(color=RULE, length=2, which="minor")
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(0.12)
    panels[0].set_ylabel("seconds", color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="upper center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.92), w_pad=0.6)
    figure.savefig(path, dpi=200)


def short(value: float) -> str:
    """Return a number in few characters, as in 1.2k."""
    return f"{value:g}" if value < 1000 else f"{value / 1000:.3g}k"


def main() -> None:
    """Run, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", nargs="*", type=int, default=[1000, 4096, 5000], help="for shares")
    parser.add_argument("--large", action="store_true", help="shares with 40,000 targets, too")
    parser.add_argument("--no-axes", action="store_true", help="shares only")
    parser.add_argument("--divide", type=int, default=1, help="samples, features, targets by this")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--figure", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # in the parent: forked children must not inherit a thread pool
    if not chosen.no_axes:
        by, middle, axes = chosen.divide, Size(), dict(AXES)
        for axis in ("n_samples", "n_features", "n_targets"):
            axes[axis] = tuple(value // by for value in axes[axis])
            middle = middle._replace(**{axis: getattr(middle, axis) // by})
        found = show_axes(axes, middle, chosen.repeats, chosen.threads)
        if chosen.figure:
            draw(found, chosen.figure)
    n_samples, n_features, n_targets = chosen.size
    for some in [n_targets] + [40_000] * chosen.large:
        for screening in (True, False):
            show_shares(n_samples, n_features, some, chosen.threads, screening=screening)


if __name__ == "__main__":
    main()
