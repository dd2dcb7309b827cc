"""Fits run in torch's threads, as many as they are told, and wake no others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# A second pool, as that of numpy's matrix products, would fight for the same cores. Each thread's
# processor time, in hundredths of a second, tells which of those that were there have worked.
MEASURE = """
import json, os, warnings
from pathlib import Path
import numpy as np, torch
from neurodl.models import KernelRidgeCV, RidgeCV

def ticks():
    found = {}
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
        found[task.name] = int(fields[11]) + int(fields[12])
    return found

def measured(work):
    before = {name: n for name, n in ticks().items() if name != str(os.getpid())}
    work()
    after = ticks()
    woken = sum(after[name] - n for name, n in before.items() if name in after)
    return woken, len(after) - 1 - len(before), torch.get_num_threads()

def fits():
    for n_features in (900, 40):
        X = rng.standard_normal((500, n_features), np.float32)
        Y = rng.standard_normal((500, 500), np.float32)
        for model in (RidgeCV(device="cpu"), KernelRidgeCV(device="cpu")):
            list(model.predict_folds(X, Y, [(np.arange(100, 500), np.arange(100))]))
            model.fit(X, Y).predict(X)

warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
large = rng.standard_normal((2500, 2500))
found = [measured(fits)]
torch.set_num_threads(2)
found += [measured(fits), measured(lambda: large @ large.T)]
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
@pytest.mark.slow
def test_no_other_threads_are_woken_and_the_number_is_kept():
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    alone, two, numpy = json.loads(done.stdout)
    assert alone == [0, 0, 1]  # no thread beside the one there was
    assert two == [0, 1, 2]  # one more, of torch
    assert numpy[0] > 1  # which a product of numpy's would not have passed
