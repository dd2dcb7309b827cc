"""The part of a report that compares networks: the best layer of each, tested against the best."""

from __future__ import annotations

from functools import partial
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.errors import SchemaError
from neurodl.reports.adaptation import signed
from neurodl.reports.summary import plural
from neurodl.reports.svg import INK, PALETTE, Drawing, new_figure
from neurodl.reports.tables import ALL, fixed, layer_groups, target_means, with_layers
from neurodl.runtime import derive_seed
from neurodl.scores import difference_test
from neurodl.scores.paired import over_targets, roi_masks
from neurodl.scores.stats import false_discovery_rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_RESAMPLES = 1000
N_PERMUTATIONS = 1000
MOST_TESTED = 2_000_000  # predictions of a layer: more are not tested unasked


def compared_networks(scores: xr.Dataset, table: pd.DataFrame) -> pd.DataFrame | None:
    """Return the best layer of each network, compared with that of the best network.

    Parameters
    ----------
    scores : xarray.Dataset
    table : pandas.DataFrame
        Of `roi_table`.

    Returns
    -------
    pandas.DataFrame or None
        One row per network, the best first: network, layer, r, r_low, r_high (over all targets);
        difference to the best network with low and high, the 95 % interval over targets, and
        share, of targets that are predicted better than by the best network; and where the
        scores hold predictions p, of exchanging the predictions of the two (`difference_test`),
        and q, corrected for the number of networks. Why some were not tested is in the attrs,
        "untested". None for fewer than two networks that have a
        score, and for comparisons of adaptations.
    """
    if "gain" in scores:
        return None
    whole = with_layers(scores)
    overall = table[table["roi"] == ALL].reset_index(drop=True)
    r = overall["r"].fillna(-np.inf)
    best = {name: max(rows, key=lambda row: r[row]) for name, rows in layer_groups(whole).items()}
    best = {name: row for name, row in best.items() if np.isfinite(r[row])}
    if len(best) < 2:
        return None
    order = sorted(best, key=lambda name: -r[best[name]])
    rows = [best[name] for name in order]
    means = target_means(whole).values[rows]
    masks = roi_masks(None, means.shape[1])
    seed = _seed(scores)
    gain, low, high, share = over_targets(means, means[[0] * len(rows)], masks, N_RESAMPLES, seed)
    found = pd.DataFrame(
        {
            "network": [name or "own features" for name in order],
            "layer": [str(whole["layer"].values[row]) for row in rows],
            **{key: overall.loc[rows, key].to_numpy() for key in ("r", "r_low", "r_high")},
            "difference": gain[0],
            "low": low[0],
            "high": high[0],
            "share": share[0],
        }
    )
    found.loc[0, ["difference", "low", "high", "share"]] = np.nan
    tested = [_tested(whole, rows[0], row, seed) for row in rows[1:]]
    p = np.array([np.nan, *(value for value, _ in tested)])
    found = found.assign(p=p, q=false_discovery_rate(p))
    found.attrs["untested"] = next((why for _, why in tested if why), "")
    return found


def _seed(scores: xr.Dataset) -> int:
    given = str(scores.attrs.get("seed", 0))
    return derive_seed(int(given) if given.lstrip("-").isdigit() else 0, "networks")


def _tested(scores: xr.Dataset, best: int, other: int, seed: int) -> tuple[float, str]:
    """Return p of the difference of two layers in mean r, or NaN and why it is not tested."""
    if "predicted" not in scores:
        return np.nan, "the scores hold no predictions (keep_predictions=True keeps them)"
    if scores["predicted"][0].size > MOST_TESTED:
        return np.nan, "there are many predictions (difference_test takes a while)"
    pair = [scores.isel(layer=[row]) for row in (best, other)]
    try:
        tested = difference_test(*pair, n_permutations=N_PERMUTATIONS, seed=seed)
    except SchemaError as error:  # rows that depend on each other, or were tested more than once
        return np.nan, str(error).split(". ")[0].rstrip(".")
    return float(tested["roi_p"].values[0]), ""


def network_rows(networks: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Return the rows of `compared_networks` as they are shown."""
    rows = []
    for place, row in enumerate([] if networks is None else networks.to_dict("records")):
        first = place == 0
        texts = {
            "gain": "–" if first else signed(row["difference"]),
            "between": "–" if first else f"{signed(row['low'])} to {signed(row['high'])}",
            "better": "–" if first else f"{100 * row['share']:.0f} %",
            "q_text": "–" if np.isnan(row["q"]) else fixed(row["q"]),
        }
        rows.append(row | texts)
    return rows


def draw_networks(networks: pd.DataFrame | None, noun: str) -> list[Drawing]:
    """Return a plot of the best layer of each network, if there are several."""
    if networks is None:
        return []
    return [Drawing("", "", partial(_draw, networks, plural(noun)), networks)]


def _draw(networks: pd.DataFrame, noun: str) -> Figure:
    # Names of weights files may be long: three lines of them are shown.
    names = [wrap(str(name), 34, max_lines=3, placeholder=" ...") for name in networks["network"]]
    figure, axes = new_figure(5.6, 0.75 + sum(0.18 + 0.14 * len(lines) for lines in names))
    for place, row in enumerate(networks.to_dict("records")):
        colour = PALETTE[0] if place else PALETTE[1]
        axes.hlines(place, row["r_low"], row["r_high"], color=colour, lw=3, alpha=0.5)
        axes.plot(row["r"], place, "s" if place == 0 else "o", ms=5.5, color=colour, mew=0)
    axes.axvline(0, color=INK, lw=0.8)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    axes.set_yticks(range(len(networks)), ["\n".join(lines) for lines in names])
    axes.set(ylim=(len(networks) - 0.5, -0.5), xlabel=f"mean r over {noun}, best layer")
    return figure
