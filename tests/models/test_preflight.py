"""The estimate of memory against measured peaks, and what follows from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path as File

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut

from neurodl.errors import NeurodlError, TooLargeError
from neurodl.models import KernelRidgeCV, RidgeCV, _base, _preflight
from neurodl.models._preflight import Path, Work, plan
from neurodl.models._splits import inner_splits, n_inner

GB = 10**9
LARGE = Work(1000, 800, 200, 40_000, 20, 5, 4, Path(True, 4096), screening=True)

# Run in a process of its own: predicts one fold, and tells the estimate and the peak it took.
MEASURE = """
import json, sys, warnings
from pathlib import Path
import numpy as np
from neurodl.models import KernelRidgeCV, RidgeCV, _preflight

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

def run(n_samples, n_features, n_targets, dtype, name, options, fit):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_samples, n_features), dtype)
    Y = rng.standard_normal((n_samples, n_targets), dtype)
    Y[:, ::2] += 3 * X[:, :1]
    model = {"ridge": RidgeCV, "rbf": KernelRidgeCV}[name](alphas, device="cpu", **options)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    if fit:
        model.fit(X, Y)
    else:
        test = np.arange(n_samples // 5)
        list(model.predict_folds(X, Y, [(np.arange(n_samples // 5, n_samples), test)]))
    return peak() - before

warnings.simplefilter("ignore")
alphas, plans = np.logspace(-1, 7, 20), []
plan = _preflight.plan
_preflight.plan = lambda *given: plans.append(plan(*given)) or plans[-1]
size = json.loads(sys.argv[1])
run(60, 30, 20, *size[3:])
measured = run(*size)
print(json.dumps([plans[-1].n_bytes, measured, plans[-1].n_at_once]))
"""
SIZES = {
    "rows by the kernel": (1000, 4096, 3000, "float32", "ridge", {}, False),
    "unscreened": (1200, 3000, 1500, "float32", "ridge", {"screening": False}, False),
    "float64": (1200, 2500, 1500, "float64", "ridge", {}, False),
    "rows by the covariance": (5000, 700, 1000, "float32", "ridge", {}, False),
    "delays": (1500, 500, 1500, "float32", "ridge", {"delays": [1, 2, 3, 4], "cv": 3}, False),
    "rbf": (1500, 1000, 1500, "float32", "rbf", {"cv": 3}, False),
    "weights": (1200, 3000, 1500, "float32", "ridge", {"cv": 3}, True),
}
FASTEST = "rows by the kernel"


@pytest.mark.skipif(not File("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != FASTEST)) for name in SIZES]
)
def test_estimate_is_close_to_the_measured_peak(name):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(SIZES[name])], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    estimate, measured, _ = json.loads(done.stdout)
    assert measured > 80e6
    assert 0.6 < estimate / measured < 1.7, (estimate / 1e6, measured / 1e6)


def test_memory_does_not_grow_with_the_targets_nor_exceed_what_is_free():
    few, many = (plan(LARGE._replace(n_targets=n), 8 * GB) for n in (2000, 100_000))
    assert few.n_at_once == many.n_at_once == 2048
    assert many.n_bytes - few.n_bytes < 1.3 * 100_000 * 20 * 12  # the scores of all penalties
    on_gpu = LARGE._replace(device="cuda", input_bytes=16_000_000, screening=False)
    plans = [plan(on_gpu, free) for free in (80 * GB, GB // 2, GB // 4)]
    assert plans[0].n_at_once == 16384 > plans[1].n_at_once > plans[2].n_at_once
    assert plans[1].n_bytes <= GB // 2 < plans[0].n_bytes and plans[2].n_bytes <= GB // 4


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (
            LARGE._replace(n_samples=60_000, n_train=48_000, n_test=12_000),
            r"60,000 samples x 4096 features x 40,000 targets take about 1\d\d.\d GB beyond the "
            r"data, but 16.0 GB are free.*for the decomposition of 48,000 rows.*fewer than rows",
        ),
        (
            LARGE._replace(n_samples=90_000, n_train=80_000, path=Path(False, 30_000)),
            r"take about .* Most of it, .* is for the decomposition of 30,000 features. Take fewer",
        ),
        (LARGE._replace(n_targets=10**9), "is for the scores of all penalties"),
        (LARGE._replace(input_bytes=20 * GB), "20.0 GB, is for the copy of the features"),
    ],
)
def test_what_cannot_fit_is_refused_with_what_takes_the_room(work, message):
    with pytest.raises(TooLargeError, match=message) as caught:
        plan(work, 16 * GB)
    assert isinstance(caught.value, NeurodlError) and isinstance(caught.value, MemoryError)


class Untouched:
    """Features and targets of which only the shape may be asked."""

    def __init__(self, *shape):
        self.shape, self.dtype = shape, np.dtype("float32")

    def __getitem__(self, key):
        raise AssertionError("was read")

    __array__ = __getitem__


@pytest.mark.parametrize("model", [RidgeCV(device="cpu"), KernelRidgeCV(device="cpu")])
def test_nothing_is_read_before_it_is_refused(model):
    splits = [(np.arange(400_000), np.arange(400_000, 500_000))]
    with pytest.raises(TooLargeError, match="500,000 samples"):
        next(model.predict_folds(Untouched(500_000, 600_000), Untouched(500_000, 10), splits))


@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
@pytest.mark.parametrize("model", [RidgeCV, KernelRidgeCV])
def test_little_memory_takes_smaller_blocks_and_gives_the_same(model, monkeypatch, caplog):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((60, 90)), rng.standard_normal((60, 200))
    splits = list(KFold(3).split(X))
    expected = list(model(device="cpu").predict_folds(X, Y, splits))
    whole = model(device="cpu").fit(X, Y).predict(X)
    free = _preflight.BUFFERS + 1_000_000
    monkeypatch.setattr(_base, "available_memory", lambda device: free)
    with caplog.at_level("INFO", "neurodl"):
        found = list(model(device="cpu").predict_folds(X, Y, splits))
    assert "60 samples x 90 features x 200 targets, 3 folds: by the kernel, about" in caplog.text
    sizes = {part.columns.stop - part.columns.start for part in found}
    assert max(sizes) < 200 == expected[0].columns.stop
    for fold in range(3):
        both = [
            np.concatenate([part.predicted.numpy() for part in parts if part.fold == fold], 1)
            for parts in (found, expected)
        ]
        np.testing.assert_allclose(*both, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(model(device="cpu").fit(X, Y).predict(X), whole, atol=1e-9)


@pytest.mark.parametrize(
    "cv", [4, 90, KFold(3), GroupKFold(5), LeaveOneGroupOut(), [(np.arange(9), np.arange(9, 12))]]
)
@pytest.mark.filterwarnings("ignore:The groups parameter is ignored")
@pytest.mark.parametrize("grouped", [True, False])
def test_number_of_inner_folds(cv, grouped):
    groups = np.repeat(np.arange(10), 6) if grouped else None
    if not grouped and isinstance(cv, GroupKFold | LeaveOneGroupOut):
        return
    assert n_inner(cv, 60, groups) == len(inner_splits(cv, 60, groups, 0))
