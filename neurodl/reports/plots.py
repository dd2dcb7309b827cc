"""The plots of a report: r along the layers, across targets, against the ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.reports.svg import INK, PALETTE, RULE, Drawing, Look, new_figure, roi_looks
from neurodl.reports.tables import ALL, fixed, layer_groups, short_layers, with_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_LINES = 6
MAX_HISTOGRAMS = 12
MAX_POINTS = 2000


def shown_rois(table: pd.DataFrame, limit: int = MAX_LINES) -> list[str]:
    """Return "all" and up to `limit` ROIs that have scores: those with the highest r."""
    best = table.groupby("roi", sort=False)["r"].max().dropna()
    named = [roi for roi in best.index if roi != ALL]
    chosen = set(best[named].nlargest(limit).index)
    return [roi for roi in best.index if roi == ALL or roi in chosen]


def profiles(scores: xr.Dataset, table: pd.DataFrame, folds: xr.DataArray) -> list[Drawing]:
    """Return one plot of r along the layers per network.

    Networks of a single layer share the last plot; if there is only one layer at all, the plot
    is r by ROI.

    Parameters
    ----------
    scores : xarray.Dataset
    table : pandas.DataFrame
        Of `roi_table`.
    folds : xarray.DataArray
        Of `fold_means`, dims ``(layer, fold, roi)``.
    """
    scores = with_layers(scores)
    rois = shown_rois(table)
    if not rois:
        return []
    looks = roi_looks([str(roi) for roi in folds["roi"].values])
    intervals = table[["r_low", "r_high"]].to_numpy().ravel()
    limits = _limits(np.concatenate([folds.values.ravel(), intervals]))
    layers = [str(layer) for layer in scores["layer"].values]
    folds = folds.sel(roi=rois)
    if len(layers) == 1:
        rows = table.set_index("roi").loc[rois]
        draw = partial(draw_rois, rows, folds.values[0], looks, limits)
        return [Drawing(layers[0], "", draw, _numbers(table, folds, layers))]

    def drawing(title: str, rows: Sequence[int], labels: Sequence[str], *, joined: bool) -> Drawing:
        own = [layers[index] for index in rows]
        draw = partial(
            draw_profile,
            labels,
            _columns(table, own, rois),
            folds.values[list(rows)],
            rois,
            looks,
            limits,
            joined=joined,
        )
        named = {roi: looks[roi].colour for roi in rois} if len(rois) > 1 else {}
        return Drawing(title, "", draw, _numbers(table, folds, own), named)

    groups = layer_groups(scores)
    plots = []
    for name, rows in groups.items():
        if len(rows) > 1:
            backbone = str(scores["backbone"].values[rows[0]])
            labels = short_layers([layers[index] for index in rows], backbone)
            plots.append(drawing(name, rows, labels, joined=True))
    single = {name: rows[0] for name, rows in groups.items() if len(rows) == 1}
    if single:
        labels = [name or layers[index] for name, index in single.items()]
        plots.append(drawing("One layer each", list(single.values()), labels, joined=False))
    return plots


def _numbers(table: pd.DataFrame, folds: xr.DataArray, layers: Sequence[str]) -> pd.DataFrame:
    """Return what a profile shows: the rows of the table, with r of each fold beside them."""
    shown = table["layer"].isin(layers) & table["roi"].isin(folds["roi"].values)
    rows = table[shown][["backbone", "layer", "roi", "r", "r_low", "r_high"]].reset_index(drop=True)
    values = [
        folds.sel(layer=layer, roi=roi).values
        for layer, roi in zip(rows["layer"], rows["roi"], strict=True)
    ]
    names = [f"r_fold{number}" for number in range(folds.sizes["fold"])]
    return rows.join(pd.DataFrame(np.array(values), columns=names))


def _columns(
    table: pd.DataFrame, layers: Sequence[str], rois: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return r, r_low and r_high, each of shape (n_layers, n_rois)."""
    wide = table.pivot(index="layer", columns="roi", values=["r", "r_low", "r_high"])
    return {key: wide[key].loc[layers, rois].to_numpy(float) for key in ("r", "r_low", "r_high")}


def _limits(values: np.ndarray) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    low, high = min(0.0, values.min()), max(0.05, values.max())
    pad = 0.04 * (high - low)
    return low - pad * (low < 0), high + pad


def draw_profile(
    labels: Sequence[str],
    columns: Mapping[str, np.ndarray],
    folds: np.ndarray,
    rois: Sequence[str],
    looks: Mapping[str, Look],
    limits: tuple[float, float],
    *,
    joined: bool,
) -> Figure:
    """Draw r (y) by layer (x), one line per ROI.

    Parameters
    ----------
    labels : sequence of str
        The layers.
    columns : mapping
        r, r_low, r_high, each of shape (n_layers, n_rois).
    folds : numpy.ndarray, shape (n_layers, n_folds, n_rois)
    rois, looks, limits
        Names, look by ROI, and the limits of the y axis.
    joined : bool
        Whether the layers follow each other; else they stand side by side without lines.
    """
    long = sum(map(len, labels)) > 42
    figure, axes = new_figure(4.4, 3.4 if long else 3.1)
    step = 0.0 if joined else min(0.12, 0.7 / len(rois))
    places = np.arange(len(labels))
    for index, roi in enumerate(rois):
        x = places + (index - (len(rois) - 1) / 2) * (0.035 if joined else step)
        r, low, high = (columns[key][:, index] for key in ("r", "r_low", "r_high"))
        colour = looks[roi].colour
        axes.plot(
            np.repeat(x, folds.shape[1]),
            folds[..., index].ravel(),
            "o",
            ms=2.4,
            color=colour,
            alpha=0.55,
            mew=0,
        )
        if joined:
            axes.fill_between(x, low, high, color=colour, alpha=0.14, lw=0)
        else:
            axes.vlines(x, low, high, color=colour, lw=1.2)
        line = ("--" if roi == ALL and len(rois) > 1 else "-") if joined else "none"
        axes.plot(
            x,
            r,
            marker=looks[roi].marker,
            ls=line,
            color=colour,
            mew=0,
            lw=1.2 if roi == ALL else 1.6,
        )
    axes.axhline(0, color=INK, lw=0.6)
    axes.set_xticks(
        places,
        labels,
        rotation=38 if long else 0,
        ha="right" if long else "center",
        rotation_mode="anchor",
    )
    axes.set(ylim=limits, xlim=(-0.5, len(labels) - 0.5))
    axes.set_ylabel("r", style="italic")
    return figure


def draw_rois(
    rows: pd.DataFrame, folds: np.ndarray, looks: Mapping[str, Look], limits: tuple[float, float]
) -> Figure:
    """Draw r (x) by ROI (y): folds as dots, the interval over targets as a bar.

    Parameters
    ----------
    rows : pandas.DataFrame
        r, r_low, r_high by ROI.
    folds : numpy.ndarray, shape (n_folds, n_rois)
    looks, limits
        Look by ROI; the limits of the x axis.
    """
    figure, axes = new_figure(4.4, 0.75 + 0.34 * len(rows))
    for place, (roi, row) in enumerate(rows.iterrows()):
        colour = looks[str(roi)].colour
        axes.plot(
            folds[:, place],
            np.full(len(folds), place + 0.26),
            "o",
            ms=2.6,
            color=colour,
            alpha=0.6,
            mew=0,
        )
        axes.hlines(place, row["r_low"], row["r_high"], color=colour, lw=2)
        axes.plot(row["r"], place, looks[str(roi)].marker, ms=6.5, color=colour, mew=0)
    axes.axvline(0, color=INK, lw=0.6)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    axes.set_yticks(range(len(rows)), [str(roi) for roi in rows.index])
    axes.set(xlim=limits, ylim=(len(rows) - 0.5, -0.5))
    axes.set_xlabel("r", style="italic")
    return figure


def histogram(values: np.ndarray, limits: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return how many values lie in each bin, and the bins' edges; more bins for more values."""
    n_bins = int(np.clip(1.5 * np.sqrt(len(values)), 10, 60))
    return np.histogram(values, bins=np.linspace(*limits, n_bins + 1))


def draw_histogram(
    values: np.ndarray, colour: str, limits: tuple[float, float], noun: str, *, wide: bool = False
) -> Figure:
    """Draw how many targets reach which r, with the mean as a line.

    Parameters
    ----------
    values : numpy.ndarray, shape (n_targets,)
        Mean r over folds, without NaN.
    colour : str
    limits : (low, high)
        Of the x axis, the same for all ROIs.
    noun : str
        What is counted, for the y axis.
    wide : bool
        Whether the plot stands alone.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(4.4 if wide else 2.75, 2.4 if wide else 1.9)
    counts, edges = histogram(values, limits)
    axes.stairs(counts, edges, fill=True, color=colour, alpha=0.35, lw=0)
    axes.stairs(counts, edges, color=colour, lw=1.2)
    mean = float(values.mean())
    axes.axvline(mean, color=INK, lw=1.2)
    side = "left" if mean < np.mean(limits) else "right"
    axes.annotate(
        f"mean {fixed(mean, 2)}".replace("-", "\N{MINUS SIGN}"),
        (mean, 1),
        (4 if side == "left" else -4, -1),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha=side,
        va="top",
    )
    axes.axvline(0, color=RULE, lw=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set(ylabel=noun, xlim=limits, ylim=(0, counts.max() * 1.2))
    axes.set_xlabel("r", style="italic")
    return figure


def draw_ceiling(
    ceiling: np.ndarray, r: np.ndarray, labels: np.ndarray | None, looks: Mapping[str, Look]
) -> Figure:
    """Draw each target's r (y) against the best it allows, sqrt(ceiling) (x).

    Parameters
    ----------
    ceiling, r : numpy.ndarray, shape (n_targets,)
        Reliability in variance units, and mean r over folds; both without NaN.
    labels : numpy.ndarray of str, shape (n_targets,), or None
        ROI of each target, "" = none.
    looks : mapping
        Look by ROI.
    """
    figure, axes = new_figure(4.4, 3.9)
    x = np.sqrt(np.clip(ceiling, 0, None))
    low = min(0.0, float(r.min())) - 0.03
    axes.plot([0, 1], [0, 1], color=INK, lw=1)
    axes.annotate(
        "the ceiling",
        (0.42, 0.42),
        (-4, 3),
        textcoords="offset points",
        rotation=45,
        rotation_mode="anchor",
        ha="center",
        transform_rotates_text=True,
    )
    axes.axhline(0, color=RULE, lw=0.8)
    if len(r) > MAX_POINTS:
        drawn = axes.hexbin(x, r, gridsize=40, mincnt=1, extent=(0, 1, low, 1), linewidths=0)
        number = np.log1p(np.asarray(drawn.get_array(), float))
        # The ink's opacity says how many: that reads on a light and on a dark page.
        drawn.set(
            array=None,
            facecolor=[(*_rgb(INK), 0.08 + 0.87 * share) for share in number / number.max()],
        )
    else:
        size = 5.0 if len(r) < 100 else 3.4
        if labels is None or len(looks) > len(PALETTE) + 1:
            labels = np.full(len(r), "")
        for roi, look in looks.items():
            chosen = labels == ("" if roi == ALL else roi)
            axes.plot(
                x[chosen], r[chosen], look.marker, ms=size, mew=0, color=look.colour, alpha=0.6
            )
    axes.grid(True, axis="x")
    axes.set(xlabel="square root of the ceiling", xlim=(0, 1.01), ylim=(low, 1.01))
    axes.set_ylabel("r", style="italic")
    axes.set_aspect("equal")
    return figure


def ceiling_data(ceiling: np.ndarray, r: np.ndarray, labels: np.ndarray | None) -> pd.DataFrame:
    """Return what `draw_ceiling` shows: a row per target, or counts where there are many."""
    x = np.sqrt(np.clip(ceiling, 0, None))
    if len(r) <= MAX_POINTS:
        data = pd.DataFrame({"sqrt_ceiling": x, "r": r})
        return data if labels is None else data.assign(roi=labels.astype(str))
    counts, one, other = np.histogram2d(x, r, bins=40, range=((0, 1), (min(0.0, r.min()), 1)))
    rows, columns = np.nonzero(counts)
    return pd.DataFrame(
        {
            "sqrt_ceiling_from": one[rows],
            "r_from": other[columns],
            "n": counts[rows, columns].astype(int),
        }
    )


def _rgb(colour: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(colour)
