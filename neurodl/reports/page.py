"""What the report's template is filled with: tables, figures and pictures, ready to show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.reports import brain, plots, provenance, summary, svg
from neurodl.reports.adaptation import adaptation_context, curves, gains
from neurodl.reports.array import array_maps
from neurodl.reports.auditing import audit_context, overrides
from neurodl.reports.networks import draw_networks, network_rows
from neurodl.reports.predictions import example_predictions, shown_stimuli
from neurodl.reports.tables import (
    ALL,
    BOOTSTRAP_LIMIT,
    N_RESAMPLES,
    best_layers,
    exclusions,
    fixed,
    fold_means,
    layer_groups,
    roi_labels,
    roi_members,
    short_layers,
    target_means,
    with_layers,
)
from neurodl.reports.training import training_curves
from neurodl.schema import target_dim

if TYPE_CHECKING:
    from neurodl.reports.html import Report

MAX_VIEWER_MAPS = 40
MAX_VIEWER_ROIS = 24


def page_context(page: Report) -> dict[str, Any]:
    """Return what the template needs: texts, tables, SVG and pictures."""
    scores, table = with_layers(page.scores), page.table
    return {
        "title": page.title,
        "fixed": fixed,
        "notes": _notes(page),
        "saved": str(scores.attrs.get("created", ""))[:10],
        "facts": provenance.what_was_run(scores, page.experiment),
        "backbones": provenance.backbone_rows(scores),
        "provenance": provenance.provenance_rows(page.provenance, page.experiment),
        "citations": provenance.citations(scores, page.experiment),
        "audit": audit_context(scores),
        "overrides": overrides(scores),
        "adaptation": adaptation_context(page.scores),
        "network_rows": network_rows(page.networks),
        "untested": "" if page.networks is None else page.networks.attrs["untested"],
        "tested": page.networks is not None and page.networks["p"].notna().any(),
        "stimuli": shown_stimuli(scores, best_overall(table), page.experiment),
        "volume": page.volume_name,
        **_numbers(scores, table),
        **_figures(scores, table),
        **{key: [panel(key, one) for one in found] for key, found in page.drawings.items()},
    }


def panel(section: str, drawing: svg.Drawing) -> dict[str, Any]:
    """Return a figure as the template shows it."""
    from markupsafe import Markup

    return {
        "title": drawing.title,
        "note": drawing.note,
        "svg": Markup(drawing.svg),
        "tsv": drawing.tsv,
        "name": file_stem(section, drawing.title),
        "legend": {name: svg.COLOURS[colour] for name, colour in drawing.legend.items()},
    }


def file_stem(section: str, title: str) -> str:
    """Return what a figure's file is called, without suffix.

    Examples
    --------
    >>> file_stem("profiles", "timm:resnet50 (a/b)")
    'profiles-timm-resnet50-a-b'
    """
    words = re.findall(r"[A-Za-z0-9._]+", title)
    return "-".join([section, *words])[:80]


def drawings(
    scores: xr.Dataset, table: pd.DataFrame, networks: pd.DataFrame | None
) -> dict[str, list[svg.Drawing]]:
    """Return the figures of a report by section, in the order of the page.

    Parameters
    ----------
    scores : xarray.Dataset
    table : pandas.DataFrame
        Of `roi_table`.
    networks : pandas.DataFrame or None
        Of `compared_networks`.
    """
    whole, compared = with_layers(scores), "gain" in scores
    looks, index = _looks(whole), best_overall(table)
    return {
        "gains": gains(scores) if compared else [],
        "curves": curves(scores) if compared else [],
        "networks": draw_networks(networks, target_dim(scores["r"])),
        # Conditions of a comparison are no steps from input to output; they have their own plot.
        "profiles": [] if compared else plots.profiles(whole, table, fold_means(whole)),
        "histograms": _histograms(whole, best_layers(table), looks),
        "ceiling": _ceiling(whole, table, looks),
        "predictions": example_predictions(whole, table, looks),
        "training": training_curves(whole),
        "array": array_maps(whole, index),
    }


def _notes(page: Report) -> list[str]:
    """Return what was warned of, once each."""
    own = str(page.scores.attrs.get("warnings", ""))
    return list(dict.fromkeys([*page.notes, *([own] if own else [])]))


def _numbers(scores: xr.Dataset, table: pd.DataFrame) -> dict[str, Any]:
    """Return the finding, the tables, and what their headings and captions depend on."""
    best = best_layers(table)
    return {
        "finding": [_unbroken(text) for text in summary.main_finding(scores, table)],
        "key": _key_numbers(scores, table),
        "best": _best_rows(scores, best),
        "matrix": _matrix(scores, table, best),
        "rois": list(best["roi"]),
        "n_rois_scored": int(best["r"].notna().sum()),
        "noun": summary.plural(target_dim(scores["r"])),
        "normalized": "r_normalized" in table,
        "networks": len(layer_groups(scores)) > 1,
        "joined": any(len(rows) > 1 for rows in layer_groups(scores).values()),
        "several_layers": scores.sizes["layer"] > 1,
        "band": _band(best),
        "ceiling_text": _ceiling_text(table),
    }


def _figures(scores: xr.Dataset, table: pd.DataFrame) -> dict[str, Any]:
    """Return the pictures, and what the captions of the figures depend on."""
    labels = roi_labels(scores)
    shown = plots.shown_rois(table)
    looks = _looks(scores)
    return {
        "legend": [{"name": roi, "look": looks[roi]} for roi in shown],
        "coloured": 1 < len(looks) <= len(svg.PALETTE) + 1,
        "many": int(_with_ceiling(scores, table).sum()) > plots.MAX_POINTS,
        "unassigned": labels is None or bool((labels == "").any()),
        "map": _brain(scores, table, looks) if brain.has_volume(scores) else None,
    }


def _looks(scores: xr.Dataset) -> dict[str, svg.Look]:
    return svg.roi_looks(list(roi_members(scores)))


def _unbroken(text: str) -> str:
    """Return text whose "r = 0.41" and "62 %" stay on one line."""
    return text.replace("r = ", "r\u00a0=\u00a0").replace(" %", "\u00a0%")


def _key_numbers(scores: xr.Dataset, table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the three or four numbers at the top of the page, with their labels."""
    top = summary.headline_row(table)
    counts = exclusions(scores)
    noun = target_dim(scores["r"])
    numbers = []
    if top is not None:
        where = "" if top["roi"] == ALL else f" in {top['roi']}"
        numbers.append((summary.number(top["r"]), f"mean r{where}"))
        if not np.isnan(top.get("r_normalized", np.nan)):
            numbers.append(
                (f"{summary.number(100 * top['r_normalized'], 0)} %", f"of the ceiling{where}")
            )
    of = f" of {counts['n_targets']:,}" if counts["n_excluded"] else ""
    numbers.append((f"{counts['n_scored']:,}", f"{summary.plural(noun)} scored{of}"))
    numbers.append((str(scores.sizes["fold"]), summary.by_groups(scores).split(" ", 1)[1]))
    return numbers


def _best_rows(scores: xr.Dataset, best: pd.DataFrame) -> list[dict[str, Any]]:
    names, looks = _layer_names(scores), _looks(scores)
    return [
        row | {"name": names.get(row["layer"], ("", "")), "look": looks[row["roi"]]}
        for row in best.to_dict("records")
    ]


def _layer_names(scores: xr.Dataset) -> dict[str, tuple[str, str]]:
    """Return (short name, network) by layer; a single network goes without saying."""
    layers = [str(layer) for layer in scores["layer"].values]
    names: dict[str, tuple[str, str]] = {}
    groups = layer_groups(scores)
    for group, rows in groups.items():
        whole = [layers[index] for index in rows]
        backbone = str(scores["backbone"].values[rows[0]])
        short = short_layers(whole, backbone)
        shown = group if len(groups) > 1 else ""
        names |= {
            layer: (s, shown if shown != s else "") for layer, s in zip(whole, short, strict=True)
        }
    return names


def _matrix(scores: xr.Dataset, table: pd.DataFrame, best: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one row per layer with a cell per ROI: values, shade in percent, whether best."""
    names = _layer_names(scores)
    top = max(table["r"].max(), 0.05) if table["r"].notna().any() else 1.0
    winners = set(zip(best["roi"], best["layer"], strict=True))
    full = dict(zip(best["roi"], table.groupby("roi", sort=False)["n_valid"].max(), strict=True))
    rows = []
    for layer, group in table.groupby("layer", sort=False):
        cells = group.to_dict("records")
        for cell in cells:
            known = not np.isnan(cell["r"])
            cell["shade"] = round(100 * min(max(cell["r"] / top, 0), 1)) if known else 0
            cell["best"] = known and cell["r"] > 0 and (cell["roi"], layer) in winners
            cell["fewer"] = cell["n_valid"] < full[cell["roi"]]
        rows.append({"name": names[str(layer)], "layer": layer, "cells": cells})
    return rows


def _histograms(
    scores: xr.Dataset, best: pd.DataFrame, looks: Mapping[str, svg.Look]
) -> list[svg.Drawing]:
    """Return one histogram of r per ROI, of its best layer."""
    means, members = target_means(scores), roi_members(scores)
    scored = best[best["n_valid"] > 0]
    if not len(scored):
        return []
    largest = scored[scored["roi"] != ALL].nlargest(plots.MAX_HISTOGRAMS, "n_valid")["roi"]
    chosen = {}
    for roi, layer in zip(scored["roi"], scored["layer"], strict=True):
        if roi == ALL or roi in set(largest):
            values = means.sel(layer=layer).values[members[roi]]
            chosen[roi] = (summary.layer_name(scores, layer), values[~np.isnan(values)])
    every = np.concatenate([values for _, values in chosen.values()])
    limits = (min(0.0, float(every.min())) - 0.02, max(0.1, float(every.max())) + 0.02)
    noun = summary.plural(target_dim(scores["r"]))
    found = []
    for roi, (name, x) in chosen.items():
        draw = partial(
            plots.draw_histogram, x, looks[roi].colour, limits, noun, wide=len(chosen) == 1
        )
        counts, edges = plots.histogram(x, limits)
        data = pd.DataFrame({"r_from": edges[:-1], "r_to": edges[1:], noun: counts})
        found.append(svg.Drawing(roi, name, draw, data))
    return found


def _ceiling(
    scores: xr.Dataset, table: pd.DataFrame, looks: Mapping[str, svg.Look]
) -> list[svg.Drawing]:
    """Return r of the best layer against the ceiling, if there are both."""
    index, known = best_overall(table), _with_ceiling(scores, table)
    if index is None or not known.any():
        return []
    r, ceiling = target_means(scores).values[index][known], scores["ceiling"].values[known]
    labels = roi_labels(scores)
    labels = labels[known] if labels is not None else None
    name = summary.layer_name(scores, str(scores["layer"].values[index]))
    note = summary.count(int(known.sum()), target_dim(scores["r"]))
    draw = partial(plots.draw_ceiling, ceiling, r, labels, looks)
    coloured = labels is not None and len(r) <= plots.MAX_POINTS
    named = {roi: look.colour for roi, look in looks.items() if roi != ALL} if coloured else {}
    named = named if len(named) <= len(svg.PALETTE) else {}
    return [svg.Drawing(name, note, draw, plots.ceiling_data(ceiling, r, labels), named)]


def _with_ceiling(scores: xr.Dataset, table: pd.DataFrame) -> np.ndarray:
    """Return which targets have a ceiling and a score in the best layer, shape (n_targets,)."""
    index = best_overall(table)
    if "ceiling" not in scores or index is None:
        return np.zeros(scores.sizes[target_dim(scores["r"])], bool)
    unknown = np.isnan(target_means(scores).values[index]) | np.isnan(scores["ceiling"].values)
    return np.asarray(~unknown)


def _ceiling_text(table: pd.DataFrame) -> str:
    """Return how many targets exceed the ceiling for the best layer, or "" without one."""
    index = best_overall(table)
    if "r_normalized" not in table or index is None:
        return ""
    row = table[table["roi"] == ALL].iloc[index]
    n = int(row["n_above_ceiling"])
    return f"{n:,} of {int(row['n_normalized']):,} {'does' if n == 1 else 'do'}"


def _band(best: pd.DataFrame) -> str:
    if best["n_valid"].max() > BOOTSTRAP_LIMIT:
        beyond = f"normal approximation beyond {BOOTSTRAP_LIMIT:,} targets"
        return f"{N_RESAMPLES:,} bootstrap samples; {beyond}"
    return f"{N_RESAMPLES:,} bootstrap samples"


def _brain(
    scores: xr.Dataset, table: pd.DataFrame, looks: Mapping[str, svg.Look]
) -> dict[str, Any] | None:
    """Return the pictures of the best layer, and in MNI space those on the surface."""
    index = best_overall(table)
    if index is None:
        return None
    means = target_means(scores).values
    limit = brain.colour_limit(means[index])
    shown: dict[str, Any] = {
        "layer": summary.layer_name(scores, str(scores["layer"].values[index])),
        "limit": limit,
        "scale": brain.scale_css(),
        "mni": brain.in_mni(scores),
        "slices": brain.slices(means[index], scores, limit),
        "space": str(scores.attrs.get("space", "")) or "not named",
        "surface": [],
        "flat": [],
        "glass": [],
        "viewer": None,
    }
    return shown | _cortex(scores, table, looks, limit) if shown["mni"] else shown


def _cortex(
    scores: xr.Dataset, table: pd.DataFrame, looks: Mapping[str, svg.Look], limit: float
) -> dict[str, Any]:
    """Return the best layer on the surface, and the best layers and ROIs for the viewer."""
    from neurodl.reports import surface

    overall = table[table["roi"] == ALL]["r"].reset_index(drop=True).dropna()
    kept = sorted(int(index) for index in overall.nlargest(MAX_VIEWER_MAPS).index)
    chosen = kept.index(int(overall.idxmax()))
    maps = surface.project(target_means(scores).values[kept].T, scores)
    members = {roi: rows for roi, rows in roi_members(scores).items() if roi != ALL}
    regions = None
    if 0 < len(members) <= MAX_VIEWER_ROIS:
        regions = surface.project_rois(members, scores)
    names = [summary.layer_name(scores, str(scores["layer"].values[index])) for index in kept]
    colours = {roi: looks[roi].colour for roi in members}
    viewer = surface.viewer(maps, names, limit, regions, colours) | {"chosen": chosen}
    best = {side: values[:, chosen] for side, values in maps.items()}
    return {
        "surface": surface.surface_pictures(best, limit, regions),
        "flat": surface.surface_pictures(best, limit, regions, "flat"),
        "glass": [brain.glass_brain(target_means(scores).values[kept[chosen]], scores, limit)],
        "viewer": viewer,
    }


def best_overall(table: pd.DataFrame) -> int | None:
    """Return the index of the layer with the highest mean over all targets, None without any."""
    overall = table[table["roi"] == ALL]["r"].to_numpy()
    return None if np.isnan(overall).all() else int(np.nanargmax(overall))


def best_of_groups(scores: xr.Dataset, table: pd.DataFrame) -> dict[str, int]:
    """Return the index of each network's best layer over all targets."""
    overall = table[table["roi"] == ALL]["r"].fillna(-np.inf).to_numpy()
    return {
        group: max(rows, key=lambda i: overall[i]) for group, rows in layer_groups(scores).items()
    }
