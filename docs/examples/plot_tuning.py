"""
From spike times to tuning curves and histograms
================================================

Neurons with a preferred orientation, recorded as spike times. Binned around each presentation, they
become peristimulus time histograms and tuning curves with intervals, and responses for any model.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import neurodl as ndl

rng = np.random.default_rng(0)
orientations = rng.choice(np.arange(0, 180, 22.5), 240)
onsets = 1.0 + np.arange(240) * 1.0
spikes = {}
for unit, preferred in enumerate([0, 45, 90, 135]):
    apart = np.deg2rad(2 * (orientations - preferred))
    rates = 4 + 36 * np.exp(3 * (np.cos(apart) - 1))
    times = [
        # A transient, then half the rate, for half a second.
        onset + 0.05 + np.concatenate([rng.random(n) * 0.1, 0.1 + rng.random(m) * 0.4])
        for onset, n, m in zip(
            onsets, rng.poisson(rates * 0.1 * 2), rng.poisson(rates * 0.4), strict=True
        )
    ]
    spikes[f"unit {unit}"] = np.sort(np.concatenate(times))
events = pd.DataFrame(
    {
        "onset": onsets,
        "duration": 0.5,
        "stimulus": [f"{value:g} deg" for value in orientations],
        "orientation": orientations,
    }
)

binned = ndl.bin_spikes(spikes, events, window=(-0.1, 0.7), bin_width=0.01)
counts = ndl.bin_spikes(spikes, events, window=(0.05, 0.55))

# %%
histograms = ndl.psth(binned, sd=0.015)
tuning = ndl.tuning_curve(counts, "orientation")
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
for name in ("0 deg", "45 deg", "90 deg"):
    one = histograms.sel(stimulus=name, unit="unit 0")
    left.plot(one["time"], one["rate"], label=name)
    left.fill_between(one["time"], one["low"], one["high"], alpha=0.2)
left.set(xlabel="time from onset (s)", ylabel="unit 0 (spikes / s)")
left.legend(frameon=False)
for unit in tuning["unit"].values:
    one = tuning.sel(unit=unit)
    right.errorbar(
        one["orientation"], one["rate"], [one["rate"] - one["low"], one["high"] - one["rate"]]
    )
right.set(xlabel="orientation (deg)", ylabel="spikes / s")
figure.tight_layout()
