"""Scores that hold predictions, of which it is known which network is better."""

from __future__ import annotations

import numpy as np
import xarray as xr
from sklearn.linear_model import Ridge

import neurodl as ndl


def predicted(n=60, n_units=12, samples="stimulus", areas=("V1", "V4"), noise=(0.5, 1.0, 1.0)):
    """Return scores of three networks, the first of which sees the truth with less noise."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((n, n_units))
    features = {}
    for name, sd in zip(("good", "poor", "alike"), noise, strict=True):
        values = (truth + sd * rng.standard_normal(truth.shape)).astype("f4")
        ids = {
            samples: [f"s{i}" for i in range(n)] if samples == "stimulus" else np.arange(n) * 1.0
        }
        if samples == "time":
            ids["run"] = ("time", np.repeat(["a", "b", "c", "d", "e"], n // 5))
        features[name] = xr.DataArray(
            values, dims=(samples, "feature"), coords=ids, attrs={"backbone": name}
        )
    names = np.arange(n_units).astype(str)
    coords = dict(features["good"].coords)
    coords |= {"unit": names, "roi": ("unit", np.resize(areas, n_units))}
    responses = xr.DataArray(
        (truth + 0.3 * rng.standard_normal(truth.shape)).astype("f4"),
        dims=(samples, "unit"),
        coords=coords,
        attrs={"units": "spikes / s"} | ({"tr": 1.0} if samples == "time" else {}),
    )
    groups = "run" if samples == "time" else None
    return ndl.cross_validate(Ridge(), features, responses, groups=groups, keep_predictions="auto")
