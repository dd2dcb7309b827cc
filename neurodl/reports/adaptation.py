"""The part of a report that is about adaptation: what tuning gained, and from how many stimuli."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.reports.summary import count, number, plural
from neurodl.reports.svg import INK, MARKERS, PALETTE, Drawing, new_figure
from neurodl.reports.tables import ALL, nanmean
from neurodl.schema import target_dim
from neurodl.scores import comparison_table
from neurodl.scores.paired import over_targets, roi_masks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TUNED = ("last", "lora", "all")
MAX_PANELS = 6
N_RESAMPLES = 1000


def adaptation_context(scores: xr.Dataset) -> dict[str, Any] | None:
    """Return what the template shows of a comparison, or None where the scores are of none."""
    if "gain" not in scores:
        return None
    table = comparison_table(scores)
    return {
        "verdicts": [_unbroken(text) for text in verdicts(scores, table)],
        "rows": _rows(table),
        "several_backbones": table["backbone"].nunique() > 1,
        "several_rois": table["roi"].nunique() > 1,
        "curve": "n_train" in scores.dims,
    }


def verdicts(scores: xr.Dataset, table: pd.DataFrame) -> list[str]:
    """Return, for each backbone, whether tuning won over the best frozen model.

    Averages are left out: they are compared in the table.
    """
    target = target_dim(scores["r"])
    r = scores["r"].mean("fold")
    said = []
    for backbone, own in table[table["roi"] == ALL].groupby("backbone", sort=False):
        single = own[~own["adaptation"].str.contains(" + ", regex=False)]
        tuned = single[single["adaptation"].isin(TUNED)]
        frozen = single[~single["adaptation"].isin(TUNED)]
        if not len(tuned):
            continue
        if not (tuned["r"].notna().any() and frozen["r"].notna().any()):
            said.append(f"{backbone}: tuned or frozen models predict nothing but constants.")
            continue
        best, rival = (rows.loc[rows["r"].idxmax()] for rows in (tuned, frozen))
        pair = [r.sel(layer=f"{backbone}/{one['adaptation']}").values for one in (best, rival)]
        seed = int(scores.attrs.get("seed", 0))
        masks = roi_masks(None, scores.sizes[target])
        gain, low, high, better = (
            float(one[0, 0])
            for one in over_targets(pair[0][None], pair[1][None], masks, N_RESAMPLES, seed)
        )
        wins = "wins" if low > 0 else ("loses" if high < 0 else "neither wins nor loses")
        n = int(np.isfinite(pair[0] - pair[1]).sum())
        told = [
            f"{backbone}: fine-tuning {wins}.",
            f"The best tuned network ({best['adaptation']}) reaches r = {number(best['r'], 3)},",
            f"the best frozen model ({rival['adaptation']}) r = {number(rival['r'], 3)};",
            f"the difference is {signed(gain)} ({signed(low)} to {signed(high)} over",
            f"{plural(target)}), and {round(better * n):,} of {count(n, target)} gain.",
            *_from_when(best),
        ]
        said.append(" ".join(told))
    return said


def _from_when(best: pd.Series) -> list[str]:
    if np.isnan(best["beats_from"]):
        return []
    return [f"It beats ridge regression on its layer from {best['beats_from']:,.0f} stimuli on."]


def signed(value: float) -> str:
    """Return a difference with its sign.

    Examples
    --------
    >>> signed(0.0312)
    '+0.031'
    """
    return ("+" if value > 0 else "") + number(value, 3)


def _unbroken(text: str) -> str:
    return text.replace("r = ", "r\u00a0=\u00a0")


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the table's rows as they are shown."""
    rows = []
    for one in table.to_dict("records"):
        is_reference = one["adaptation"] == "ridge"
        between = {
            over: "–"
            if is_reference
            else f"{signed(one[f'low_over_{over}'])} to {signed(one[f'high_over_{over}'])}"
            for over in ("targets", "stimuli")
        }
        share = "–" if is_reference else f"{number(100 * one['share_better'], 0)} %"
        gain = "–" if is_reference else signed(one["gain"])
        beats = "–" if np.isnan(one["beats_from"]) else f"{one['beats_from']:,.0f}"
        rows.append(one | {"between": between, "share": share, "gain_text": gain, "beats": beats})
    return rows


def gains(scores: xr.Dataset) -> list[Drawing]:
    """Return, for each backbone, a plot of what each condition gains over ridge regression."""
    table = comparison_table(scores)
    backbones = list(dict.fromkeys(table["backbone"]))
    found = []
    for name in backbones:
        rows = table[(table["backbone"] == name) & (table["roi"] == ALL)]
        title = str(name) if len(backbones) > 1 else ""
        found.append(Drawing(title, "", partial(draw_gains, rows), rows))
    return found


def draw_gains(rows: pd.DataFrame) -> Figure:
    """Draw what each condition gains over ridge regression, with both intervals.

    Parameters
    ----------
    rows : pandas.DataFrame
        Of `comparison_table`, of one backbone and region.
    """
    rows = rows[rows["adaptation"] != "ridge"]
    figure, axes = new_figure(4.8, 0.8 + 0.34 * max(len(rows), 1))
    for place, one in enumerate(rows.to_dict("records")):
        tuned = str(one["adaptation"]).split(" + ")[0] in TUNED
        colour = PALETTE[1] if tuned else PALETTE[0]
        axes.hlines(
            place, one["low_over_stimuli"], one["high_over_stimuli"], color=colour, lw=1, alpha=0.8
        )
        axes.hlines(
            place, one["low_over_targets"], one["high_over_targets"], color=colour, lw=4, alpha=0.5
        )
        axes.plot(one["gain"], place, "s" if tuned else "o", ms=5.5, color=colour, mew=0)
    axes.axvline(0, color=INK, lw=0.8)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    axes.set_yticks(range(len(rows)), [str(name) for name in rows["adaptation"]])
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="difference in mean r to ridge regression")
    return figure


def curves(scores: xr.Dataset) -> list[Drawing]:
    """Return a plot of r by the number of training stimuli for each backbone and region."""
    if "n_train" not in scores.dims:
        return []
    table = comparison_table(scores)
    target = target_dim(scores["r"])
    labels = scores["roi"].values if "roi" in scores.coords else None
    masks = roi_masks(labels, scores.sizes[target])
    r = scores["r_by_n_train"].mean("fold")
    panels: list[Drawing] = []
    for backbone in dict.fromkeys(table["backbone"]):
        of = scores["backbone"].values == backbone
        single = [" + " not in str(name) for name in scores["adaptation"].values]
        rows = np.flatnonzero(of & np.array(single))
        names = [str(scores["adaptation"].values[row]) for row in rows]
        for roi, mask in list(masks.items())[:MAX_PANELS]:
            values = nanmean(r.transpose("layer", "n_train", target).values[rows][..., mask], -1)
            several = len(dict.fromkeys(table["backbone"])) > 1
            sizes = scores["n_train"].values
            draw = partial(draw_curve, sizes, values, names, legend=not panels)
            data = pd.DataFrame(values.T, columns=names)
            data.insert(0, "n_train", sizes)
            title, note = roi if len(masks) > 1 else "", str(backbone) if several else ""
            panels.append(Drawing(title, note, draw, data))
    return panels


def draw_curve(
    n_train: np.ndarray, r: np.ndarray, names: Sequence[str], *, legend: bool = True
) -> Figure:
    """Draw r by the number of training stimuli, a line for each condition.

    Parameters
    ----------
    n_train : numpy.ndarray, shape (n_sizes,)
    r : numpy.ndarray, shape (n_conditions, n_sizes)
        Mean over folds and targets.
    names : sequence of str
    legend : bool
        Whether the lines are named.
    """
    figure, axes = new_figure(2.9, 2.6)
    for number_of, (name, values) in enumerate(zip(names, r, strict=True)):
        axes.plot(
            n_train,
            values,
            marker=list(MARKERS)[number_of % len(MARKERS)],
            color=PALETTE[number_of % len(PALETTE)],
            ls="-" if name in TUNED else "--",
            mew=0,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_xticks(n_train, [f"{n:,}" for n in n_train])
    axes.minorticks_off()
    axes.set_xlabel("training stimuli")
    axes.set_ylabel("r", style="italic")
    if legend:
        axes.legend(frameon=False, fontsize=7, handlelength=1.6, borderpad=0)
    return figure
