"""
Which layer predicts which area?
================================

A simulated experiment in which V1 sees oriented energy. Pixels and a Gabor model are mapped onto
every voxel; the best model of V1 should be the Gabor model, and it should come near the ceiling.
"""

import matplotlib.pyplot as plt
import numpy as np

import neurodl as ndl

exp = ndl.load_dataset("simulated", n_images=80, n_repeats=2, n_runs=4, image_size=64)
features = {
    name: layer
    for name in ("pixels", "gabor")
    for layer in ndl.extract_features(name, exp.stimuli, cache=False).values()
}
scores = ndl.cross_validate(ndl.RidgeCV(), features, exp.responses, cv=5)
print(ndl.report(scores, exp).finding)

# %%
# The same as a plot: mean r over the voxels of each area, and the highest that noise allows.

areas = ["V1", "V2", "V4", "LOC", "noise"]
roi = scores["roi"].values
r = scores["r"].mean("fold")
figure, axis = plt.subplots(figsize=(6, 3.5))
for place, name in enumerate(features):
    means = [float(r.sel(layer=name).values[roi == area].mean()) for area in areas]
    axis.bar(np.arange(len(areas)) + 0.4 * place, means, 0.4, label=name)
ceiling = np.sqrt(scores["ceiling"].values.clip(0))
for place, area in enumerate(areas):
    axis.hlines(np.nanmean(ceiling[roi == area]), place - 0.2, place + 0.6, color="0.4")
axis.set_xticks(np.arange(len(areas)) + 0.2, areas)
axis.set_ylabel("mean r (line: ceiling)")
axis.legend(frameon=False)
figure.tight_layout()
