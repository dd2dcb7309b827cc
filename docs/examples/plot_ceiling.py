"""
How much of a low score is noise
================================

Two brain areas answer to the same features equally well, but one is recorded with more noise. Raw
correlations call it badly explained; divided by the ceiling, which repeats of the same stimuli tell,
the two are alike.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import neurodl as ndl

rng = np.random.default_rng(0)
n, n_repeats, n_voxels = 3000, 3, 60
ids = [f"image{i}" for i in range(n)]
X = xr.DataArray(rng.standard_normal((n, 20)), {"stimulus": ids}, ("stimulus", "feature"))
signal = X.values @ rng.standard_normal((20, n_voxels))
# A third of the signal is none of these features': no model of them can have it.
signal += rng.standard_normal(signal.shape) * signal.std(0) * 0.7
noise = np.repeat([0.5, 3.0], n_voxels // 2) * signal.std(0)
trials = signal[:, None] + noise * rng.standard_normal((n, n_repeats, n_voxels))
responses = xr.DataArray(
    trials,
    {
        "stimulus": ids,
        "repeat": range(n_repeats),
        "roi": ("voxel", np.repeat(["quiet area", "noisy area"], n_voxels // 2)),
    },
    ("stimulus", "repeat", "voxel"),
    attrs={"units": "a.u."},
)

scores = ndl.cross_validate(ndl.RidgeCV(), X, responses, cv=5)

# %%
# The ceiling of each voxel is that of the scored average of three repeats.

figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
for axis, name in zip(axes, ("r", "r_normalized"), strict=True):
    values = scores[name].mean("fold").squeeze("layer")
    for roi in ("quiet area", "noisy area"):
        axis.hist(values[values["roi"] == roi], bins=np.linspace(0, 1.1, 34), alpha=0.7, label=roi)
    axis.set_xlabel({"r": "r", "r_normalized": "r / ceiling"}[name])
axes[0].set_ylabel("voxels")
axes[0].legend(frameon=False)
figure.tight_layout()
