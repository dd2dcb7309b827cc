"""
Why folds keep runs together
============================

Neighbouring samples of a slow signal resemble each other. If folds are cut at random, a model may
read the answer off the samples beside it: a feature that has nothing to do with the responses, but
is slow as well, "predicts" them. neurodl refuses such folds, and the auditor finds them in folds of
one's own; here its advice is overruled to show what would happen.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from scipy.ndimage import gaussian_filter1d
from sklearn.model_selection import KFold

import neurodl as ndl

rng = np.random.default_rng(0)
n_runs, length = 16, 80
slow = [gaussian_filter1d(rng.standard_normal((n_runs, length, 20)), 6, axis=1) for _ in range(2)]
coords = {
    "time": np.arange(n_runs * length) * 1.0,
    "run": ("time", np.repeat(np.arange(n_runs).astype(str), length)),
}
X, Y = (values.reshape(-1, 20).astype("float32") for values in slow)
X = xr.DataArray(X, coords, ("time", "feature"))
Y = xr.DataArray(Y, coords, ("time", "voxel"), attrs={"tr": 1.0, "units": "BOLD"})

model = ndl.KernelRidgeCV(kernel="rbf")
whole = ndl.cross_validate(model, X, Y, groups="run", cv=4)
splits = list(KFold(4, shuffle=True, random_state=0).split(X.values))
torn = ndl.cross_validate(model, X, Y, cv=splits, allow=["time"])

# %%
# X and Y were drawn independently: the truth is r = 0.

figure, axis = plt.subplots(figsize=(5, 3.2))
for scores, label in ((whole, "whole runs held out"), (torn, "samples held out at random")):
    r = scores["r"].mean("fold").values.ravel()
    axis.hist(r, bins=np.linspace(-0.4, 1, 29), alpha=0.7, label=label)
axis.axvline(0, color="0.3", lw=1)
axis.set(xlabel="r of unrelated signals", ylabel="voxels")
axis.legend(frameon=False)
figure.tight_layout()
