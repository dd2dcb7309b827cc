"""What was predicted, where the scores hold it: examples of targets, and of stimuli."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.reports.svg import INK, Drawing, Look, new_figure
from neurodl.reports.tables import ALL, best_layers, nanmean, roi_members, target_means
from neurodl.schema import sample_dim, target_dim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from neurodl.datasets.experiment import Experiment

MAX_ROIS = 4
MAX_SAMPLES = 150  # of a time series
MAX_POINTS = 1500
N_STIMULI = 6
MIN_TARGETS = 8  # fewer do not make a pattern
THUMBNAIL = 112  # pixels


def example_predictions(
    scores: xr.Dataset, table: pd.DataFrame, looks: Mapping[str, Look]
) -> list[Drawing]:
    """Return predictions against responses, for the best and the median target of some ROIs.

    Of the best layer of each ROI. Presentations are points, time series are lines over one fold.

    Parameters
    ----------
    scores : xarray.Dataset
        With ``predicted`` and ``observed``; without, there is nothing to show.
    table : pandas.DataFrame
        Of `roi_table`.
    looks : mapping
        Look by ROI.
    """
    if "predicted" not in scores or sample_dim(scores["observed"]) is None:
        return []
    best = best_layers(table)
    named = best[(best["roi"] != ALL) & (best["n_valid"] > 0)].nlargest(MAX_ROIS, "r")
    chosen = named if len(named) else best[best["n_valid"] > 0]
    means, members = target_means(scores), roi_members(scores)
    shown = []
    for row in chosen.sort_index().to_dict("records"):
        layer = list(scores["layer"].values).index(row["layer"])
        mine = members[row["roi"]]
        r = means.values[layer][mine]
        order = mine[np.argsort(np.where(np.isnan(r), -np.inf, r))[::-1]][: row["n_valid"]]
        for kind, target in (("best", order[0]), ("median", order[len(order) // 2])):
            name = _target_name(scores, int(target))
            r_text = f"r = {means.values[layer][target]:.2f}".replace("-", "\N{MINUS SIGN}")
            data = _rows(scores, layer, int(target))
            draw = partial(_draw, data, looks[row["roi"]].colour, sample_dim(scores["observed"]))
            where = "" if row["roi"] == ALL else f"{row['roi']}, "
            shown.append(Drawing(f"{where}{kind}", f"{name}, {r_text}", draw, data))
            if len(order) < 3:
                break
    return shown


def _target_name(scores: xr.Dataset, target: int) -> str:
    dim = target_dim(scores["r"])
    name = scores[dim].values[target] if dim in scores.coords else target
    return f"{dim} {name}" if dim not in str(name) else str(name)


def _rows(scores: xr.Dataset, layer: int, target: int) -> pd.DataFrame:
    """Return the tested rows of a target: sample, fold, observed and predicted.

    Of a time series, the first stretch of rows that follow each other in one fold.
    """
    dim = target_dim(scores["r"])
    samples = str(scores["observed"].dims[0])
    fold = scores["tested_in"].values
    kept = np.flatnonzero(fold >= 0)
    if samples == "time" and len(kept):
        kept = kept[fold[kept] == fold[kept[0]]]
        breaks = np.flatnonzero(np.diff(kept) > 1)
        kept = kept[: breaks[0] + 1 if len(breaks) else len(kept)][:MAX_SAMPLES]
    elif len(kept) > MAX_POINTS:
        kept = kept[np.linspace(0, len(kept) - 1, MAX_POINTS).astype(int)]
    key = "stimulus" if "stimulus" in scores.coords else samples
    name = scores[key].values[kept] if key in scores.coords else kept
    return pd.DataFrame(
        {
            key: name,
            "fold": fold[kept],
            "observed": scores["observed"].isel({dim: target}).values[kept],
            "predicted": scores["predicted"].isel({"layer": layer, dim: target}).values[kept],
        }
    )


def _draw(data: pd.DataFrame, colour: str, samples: str) -> Figure:
    figure, axes = new_figure(2.75, 2.3)
    if samples == "time":
        axes.plot(data["observed"].to_numpy(), color=INK, lw=0.9, alpha=0.75)
        axes.plot(data["predicted"].to_numpy(), color=colour, lw=1.6)
        axes.set(xlabel="sample of one fold", ylabel="response")
        return figure
    x, y = data["predicted"].to_numpy(), data["observed"].to_numpy()
    axes.plot(x, y, "o", ms=3, mew=0, color=colour, alpha=0.5)
    low, high = float(np.nanmin(x)), float(np.nanmax(x))
    axes.plot([low, high], [low, high], color=INK, lw=0.8)
    axes.grid(True, axis="x")
    axes.set(xlabel="predicted", ylabel="observed")
    return figure


def stimulus_scores(scores: xr.Dataset, layer: int) -> pd.Series:
    """Return how well the pattern over targets is predicted for each stimulus.

    Correlation over targets of predicted and observed responses, each z-scored per target over
    the tested rows, of the targets that are predicted at all (r > 0). Rows of one stimulus are
    averaged first.

    Parameters
    ----------
    scores : xarray.Dataset
        With predictions and the coord stimulus.
    layer : int

    Returns
    -------
    pandas.Series
        By stimulus, the best first; empty with fewer than 8 such targets.
    """
    if "predicted" not in scores or "stimulus" not in scores.coords:
        return pd.Series(dtype=float)
    dim = target_dim(scores["r"])
    used = np.flatnonzero(target_means(scores).values[layer] > 0)
    rows = np.flatnonzero(scores["tested_in"].values >= 0)
    if len(used) < MIN_TARGETS or not len(rows):
        return pd.Series(dtype=float)
    ids = scores["stimulus"].values[rows].astype(str)
    patterns = []
    for name in ("predicted", "observed"):
        whole = scores[name].isel(layer=layer) if name == "predicted" else scores[name]
        values = whole.isel({dim: used}).values[rows].astype(float)
        mean, sd = nanmean(values, 0), np.nanstd(values, 0)
        patterns.append(pd.DataFrame((values - mean) / np.where(sd > 0, sd, 1)).groupby(ids).mean())
    one, other = (frame.sub(frame.mean(axis=1), axis=0) for frame in patterns)
    size = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    found = (one * other).sum(axis=1) / size.where(size > 0)
    return found.dropna().sort_values(ascending=False, kind="stable")


def shown_stimuli(
    scores: xr.Dataset, layer: int | None, experiment: Experiment | None
) -> dict[str, Any] | None:
    """Return the stimuli whose patterns are predicted best and worst, with thumbnails."""
    found = pd.Series(dtype=float) if layer is None else stimulus_scores(scores, layer)
    if len(found) < 2 * N_STIMULI:
        return None
    stimuli: Any = () if experiment is None else experiment.stimuli or ()
    places = {name: n for n, name in enumerate(stimuli.ids if len(stimuli) else [])}

    def shown(part: pd.Series) -> list[dict[str, Any]]:
        return [
            {
                "id": str(name),
                "r": float(r),
                "uri": _thumbnail(stimuli[places[name]]) if name in places else "",
            }
            for name, r in part.items()
        ]

    return {
        "best": shown(found.head(N_STIMULI)),
        "worst": shown(found.tail(N_STIMULI)[::-1]),
        "median": float(found.median()),
        "n": len(found),
    }


def _thumbnail(pixels: Any) -> str:
    """Return an image, or the middle frame of a video, as a small JPEG."""
    from PIL import Image

    frame = pixels[len(pixels) // 2] if pixels.ndim == 4 else pixels
    image = Image.fromarray(np.ascontiguousarray(frame.permute(1, 2, 0).numpy()))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
