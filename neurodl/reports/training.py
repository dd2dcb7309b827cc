"""How training went: the losses and the held-back r of models that were trained step by step."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.reports.svg import INK, PALETTE, Drawing, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_PANELS = 12


def training_curves(scores: xr.Dataset) -> list[Drawing]:
    """Return a plot of the losses by epoch for each layer that was trained.

    Parameters
    ----------
    scores : xarray.Dataset
        With ``training_loss`` and ``validation_loss``, dims (layer, fold, step).
    """
    if "training_loss" not in scores:
        return []
    found: list[Drawing] = []
    for row, layer in enumerate(scores["layer"].values):
        losses = [scores[f"{part}_loss"].values[row] for part in ("training", "validation")]
        if not np.isfinite(losses).any() or len(found) == MAX_PANELS:
            continue
        found.append(
            Drawing(str(layer), "", partial(_draw, *losses), _numbers(scores.isel(layer=row)))
        )
    return found


def _numbers(one: xr.Dataset) -> pd.DataFrame:
    names = [name for name in ("training_loss", "validation_loss", "validation_r") if name in one]
    frame = one[names].reset_coords(drop=True).to_dataframe().reset_index()
    return frame.dropna(how="all", subset=names)


def _draw(training: np.ndarray, validation: np.ndarray) -> Figure:
    """Draw losses (n_folds, n_steps): thin lines are folds, the dot is where training was best."""
    figure, axes = new_figure(2.9, 2.4)
    steps = np.arange(training.shape[1])
    for fold, (own, held) in enumerate(zip(training, validation, strict=True)):
        first = fold == 0
        axes.plot(steps, own, color=INK, lw=0.9, alpha=0.5, label="training" if first else None)
        if np.isfinite(held).any():
            label = "held back" if first else None
            axes.plot(steps, held, color=PALETTE[1], lw=1.3, alpha=0.8, label=label)
            best = int(np.nanargmin(held))
            axes.plot(best, held[best], "o", ms=4, mew=0, color=PALETTE[1])
    axes.set(xlabel="epoch", ylabel="loss")
    axes.legend(frameon=False, fontsize=7, handlelength=1.4, borderpad=0)
    return figure
