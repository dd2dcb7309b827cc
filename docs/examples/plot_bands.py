"""
Two feature spaces: what is each one's own
==========================================

Features of networks resemble each other, and so do their scores. Which of two spaces explains a voxel,
and what either could explain, is told by fitting every subset of them on the same folds. Here the truth
is known: voxels follow space A, space B, or what the two have in common.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import neurodl as ndl

rng = np.random.default_rng(0)
n = 600
ids = [f"image{i}" for i in range(n)]
common, own_a, own_b = (rng.standard_normal((n, 8)) for _ in range(3))
spaces = {
    name: xr.DataArray(np.hstack([common, own]), {"stimulus": ids}, ("stimulus", "feature"))
    for name, own in (("A", own_a), ("B", own_b))
}
kinds = {"follows A": own_a, "follows both": common, "follows B": own_b}
signal = np.hstack([part @ rng.standard_normal((8, 30)) / 8**0.5 for part in kinds.values()])
responses = xr.DataArray(
    signal + rng.standard_normal(signal.shape),
    {"stimulus": ids, "roi": ("voxel", np.repeat(list(kinds), 30))},
    ("stimulus", "voxel"),
    attrs={"units": "a.u."},
)

parts = ndl.variance_partition(spaces, responses, ndl.BandedRidgeCV(), cv=3)

# %%
# Half of each voxel's variance is signal: 0.5 is all that can be explained.

by_kind = parts["explained"].mean("fold").groupby("roi").mean()
figure, axis = plt.subplots(figsize=(6, 3.2))
base = np.zeros(len(kinds))
for part in by_kind["part"].values:
    height = by_kind.sel(part=part, roi=list(kinds)).values.clip(0)
    label = "A or B" if "&" in part else f"only {part}"
    axis.bar(list(kinds), height, bottom=base, label=label)
    base += height
axis.axhline(0.5, color="0.3", lw=1, ls="--")
axis.set_ylabel("explained variance (r2)")
axis.legend(frameon=False, bbox_to_anchor=(1, 1))
figure.tight_layout()
