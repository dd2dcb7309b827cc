"""Scores of electrodes and cells where they lie on an array or in a field of view."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.reports.brain import CMAP, colour_limit, has_volume
from neurodl.reports.summary import layer_name
from neurodl.reports.svg import INK, RULE, Drawing, new_figure
from neurodl.reports.tables import target_means
from neurodl.schema import target_dim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_PLACES = 5000


def array_maps(scores: xr.Dataset, index: int | None) -> list[Drawing]:
    """Return a map of r of one layer over the places of the targets, if these are known.

    Parameters
    ----------
    scores : xarray.Dataset
        Of units, channels or other targets with coords x and y [any unit] (or two of x, y, z,
        whichever spread most); voxels of a grid are drawn as a brain instead.
    index : int or None
        Which layer.
    """
    dim = target_dim(scores["r"])
    axes = [
        key
        for key in "xyz"
        if key in scores.coords
        and scores[key].dims == (dim,)
        and np.issubdtype(scores[key].dtype, np.number)
        and float(np.ptp(np.nan_to_num(scores[key].values))) > 0
    ]
    if index is None or len(axes) < 2 or has_volume(scores) or scores.sizes[dim] > MAX_PLACES:
        return []
    spread = {key: float(np.nanstd(scores[key].values)) for key in axes}
    across, up = sorted(sorted(axes, key=lambda key: -spread[key])[:2])
    data = pd.DataFrame(
        {
            dim: scores[dim].values if dim in scores.coords else np.arange(scores.sizes[dim]),
            across: scores[across].values.astype(float),
            up: scores[up].values.astype(float),
            "r": target_means(scores).values[index],
        }
    )
    units = [str(scores[key].attrs.get("units", "")) for key in (across, up)]
    labels = [
        f"{key} [{unit}]" if unit else key for key, unit in zip((across, up), units, strict=True)
    ]
    title = layer_name(scores, str(scores["layer"].values[index]))
    return [Drawing(title, "", partial(_draw, data, across, up, labels), data)]


def _draw(data: pd.DataFrame, across: str, up: str, labels: list[str]) -> Figure:
    figure, axes = new_figure(4.4, 3.9)
    known = data["r"].notna().to_numpy()
    x, y, r = (data[key].to_numpy() for key in (across, up, "r"))
    axes.plot(x[~known], y[~known], "o", ms=4, color="none", mec=RULE, mew=0.8)
    drawn = axes.scatter(
        x[known], y[known], c=r[known], cmap=CMAP, vmin=0, vmax=colour_limit(r), s=26, linewidths=0
    )
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label("r", style="italic", color=INK)
    axes.grid(True, axis="both")
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xlabel=labels[0], ylabel=labels[1])
    return figure
