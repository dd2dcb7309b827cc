"""Several runs or subjects on one page: which predicts best, and what they have in common."""

from __future__ import annotations

import html
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.errors import MissingFileError, NeurodlError, SchemaError
from neurodl.io.store import atomic_path, load
from neurodl.reports.html import Report, rendered, report_of
from neurodl.reports.networks import compared_networks, draw_networks, network_rows
from neurodl.reports.page import panel
from neurodl.reports.summary import by_groups, count, headline_row, layer_name, number, plural
from neurodl.reports.svg import INK, PALETTE, Drawing, new_figure
from neurodl.reports.tables import ALL, best_layers, fixed, roi_table, with_layers
from neurodl.schema import target_coords, target_dim
from neurodl.scores import group_level

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_ROIS = 12
SCORES, PAGE = "scores.nc", "report.html"


@dataclass(frozen=True, eq=False)
class Run:
    """Scores, what they are called, and where their report is."""

    label: str
    report: Report
    folder: Path | None = None

    @property
    def page(self) -> Path | None:
        """The report of the run, if it was written."""
        path = None if self.folder is None else self.folder / PAGE
        return path if path is not None and path.is_file() else None


@dataclass(frozen=True, eq=False)
class Collection:
    """Several runs with what a page about them needs; made by `report`.

    Attributes
    ----------
    runs : list of Run
    title : str
    """

    runs: Sequence[Run]
    title: str

    def __repr__(self) -> str:
        """Return the title and the main finding."""
        return f"<Collection {self.title!r}: {self.finding}>"

    def _repr_html_(self) -> str:
        """Return the page in a frame, for notebooks."""
        page = html.escape(self.html(), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:80vh;border:0"></iframe>'

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per run and ROI: the row of `roi_table` of its best layer, with a column run."""
        rows = [best_layers(run.report.table).assign(run=run.label) for run in self.runs]
        return pd.concat(rows, ignore_index=True)

    @cached_property
    def paired(self) -> pd.DataFrame | None:
        """The runs against the best of them, where all scored the same targets in as many folds.

        See `neurodl.reports.networks.compared_networks`: network is the run here.
        """
        joint = _joined(self.runs)
        return None if joint is None else compared_networks(joint, roi_table(joint))

    @cached_property
    def over_subjects(self) -> pd.DataFrame | None:
        """The mean over subjects of each layer and ROI, where each run is another subject's.

        Columns layer, roi, mean, low, high, sd, n_subjects, p, p_fwe and q; see `group_level`.
        None where runs share a subject, or have other layers or regions.
        """
        subjects = [str(run.report.scores.attrs.get("subject", "")) for run in self.runs]
        if len(set(subjects)) < len(subjects) or "" in subjects:
            return None
        if not all("roi" in run.report.scores.coords for run in self.runs):
            return None
        try:
            found = group_level([with_layers(run.report.scores) for run in self.runs])
        except NeurodlError:  # they do not correspond
            return None
        frame = found.drop_dims("subject").reset_coords(drop=True).to_dataframe()
        return frame.reset_index().rename(columns={"roi_name": "roi"})

    @property
    def finding(self) -> str:
        """The main finding in one or two sentences."""
        overall = self.table[self.table["roi"] == ALL].reset_index(drop=True)
        if overall["r"].isna().all():
            return f"Nothing could be scored in {count(len(self.runs), 'run')}."
        best = overall.loc[overall["r"].idxmax()]
        scores = next(run.report.scores for run in self.runs if run.label == best["run"])
        said = [
            f"Of {count(len(self.runs), 'run')}, {best['run']} predicts best: "
            f"{layer_name(scores, best['layer'])} reaches r = {number(best['r'])} over "
            f"{count(int(best['n_valid']), target_dim(scores['r']))}."
        ]
        group = self.over_subjects
        if group is not None and group["mean"].notna().any():
            top = group.loc[group["mean"].idxmax()]
            said.append(
                f"Over {int(top['n_subjects'])} subjects, {top['layer']} predicts {top['roi']} "
                f"best: mean r = {number(top['mean'])} ({number(top['low'])} to "
                f"{number(top['high'])})."
            )
        return " ".join(said)

    @cached_property
    def drawings(self) -> dict[str, list[Drawing]]:
        """The figures of the page, each with its numbers."""
        noun = target_dim(self.runs[0].report.scores["r"])
        return {
            "by_roi": _by_roi(self.table),
            "paired": draw_networks(self.paired, noun),
        }

    def html(self, folder: Path | None = None) -> str:
        """Return the page.

        Parameters
        ----------
        folder : Path, optional
            Where it will lie: links to the runs' own reports start there.
        """
        best = self.table
        rois = list(dict.fromkeys(best["roi"]))
        top = max(best["r"].max(), 0.05) if best["r"].notna().any() else 1.0
        wide = best.pivot(index="run", columns="roi", values="r")
        noun = target_dim(self.runs[0].report.scores["r"])
        group = self.over_subjects
        context = {
            "title": self.title,
            "finding": self.finding.replace("r = ", "r\u00a0=\u00a0"),
            "fixed": fixed,
            "rows": [_row(run, folder) for run in self.runs],
            "rois": rois,
            "matrix": [
                {
                    "run": run.label,
                    "cells": [_cell(wide.loc[run.label].get(roi, np.nan), top) for roi in rois],
                }
                for run in self.runs
            ],
            "group": [] if group is None else group.to_dict("records"),
            "paired_rows": network_rows(self.paired),
            "tested": self.paired is not None and bool(self.paired["p"].notna().any()),
            "noun": plural(noun),
            **{key: [panel(key, one) for one in found] for key, found in self.drawings.items()},
        }
        return rendered("collection.html", context)

    def save(self, path: str | Path) -> Path:
        """Write the page, and beside it its table as ``<name>.tsv``.

        Parameters
        ----------
        path : str or Path
            Ends in ``.html``; links to the runs' reports are relative to its folder.

        Raises
        ------
        StorageError
            The disk is full or the folder cannot be written to.
        """
        path = Path(path)
        if path.suffix != ".html":
            raise ValueError(f"A report is saved to '*.html', but got {path.name!r}.")
        with atomic_path(path.with_suffix(".tsv")) as temporary:
            self.table.to_csv(temporary, sep="\t", index=False, na_rep="n/a", float_format="%.6g")
        with atomic_path(path) as temporary:
            temporary.write_text(self.html(path.parent), encoding="utf-8")
        return path


def collect(runs: Sequence[Any], title: str | None = None) -> Collection:
    """Return several runs as one collection; see `report`.

    Parameters
    ----------
    runs : sequence
        Of xarray.Dataset (scores), Report, or paths: of a results folder, of scores saved as .nc,
        or of a folder of results folders.
    title : str, optional
    """
    found = [one for given in runs for one in opened(given)]
    if not found:
        raise SchemaError("There are no runs to compare.")
    named = Counter(run.label for run in found)
    again: Counter[str] = Counter()
    unique: list[Run] = []
    for run in found:
        label = run.label
        if named[label] > 1:
            again[label] += 1
            place = run.folder.name if run.folder is not None else str(again[label])
            label = f"{label} ({place})"
        if any(label == other.label for other in unique):
            label = f"{label} {again[run.label]}"
        unique.append(Run(label, run.report, run.folder))
    return Collection(unique, title or f"{count(len(unique), 'run')} compared")


def opened(given: Any) -> list[Run]:
    """Return the runs that scores, a report or a path stand for; see `collect`."""
    if isinstance(given, Report):
        return [Run(given.title, given)]
    if isinstance(given, xr.Dataset):
        made = report_of(given)
        return [Run(made.title, made)]
    path = Path(given).expanduser()
    if path.is_dir():
        inside = [path / SCORES] if (path / SCORES).is_file() else sorted(path.glob(f"*/{SCORES}"))
        if not inside:
            raise MissingFileError(
                f"{path} holds no results: there is neither {SCORES} in it nor in its folders."
            )
        return [_loaded(one) for one in inside]
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist.")
    return [_loaded(path)]


def _loaded(path: Path) -> Run:
    scores = load(path)
    if not isinstance(scores, xr.Dataset):
        raise SchemaError(f"{path} holds no scores, but {type(scores).__name__}.")
    made = report_of(scores)
    return Run(made.title, made, path.parent if path.name == SCORES else None)


def _joined(runs: Sequence[Run]) -> xr.Dataset | None:
    """Return the scores of all runs as layers of one, each run a network, or None."""
    every = [with_layers(run.report.scores) for run in runs]
    first, dim = every[0], target_dim(every[0]["r"])
    if len(runs) < 2 or any(
        target_dim(one["r"]) != dim
        or one.sizes[dim] != first.sizes[dim]
        or one.sizes["fold"] != first.sizes["fold"]
        or one.attrs.get("subject") != first.attrs.get("subject")
        or "gain" in one
        or not _same_targets(one, first)
        for one in every
    ):
        return None
    kept = [name for name in ("r", "r2", "predicted") if all(name in one for one in every)]
    if "predicted" in kept and not all(_same_rows(one, first) for one in every):
        kept.remove("predicted")
    extra = ["observed"] if "predicted" in kept else []
    parts = []
    for run, one in zip(runs, every, strict=True):
        names = [f"{run.label}/{layer}" for layer in one["layer"].values]
        part = one[[*kept, *extra]].reset_coords(drop=True)
        rows = {key: one[key].variable for key in ("stimulus", "run", "tested_in") if key in one}
        part = part.assign_coords(rows if extra else {}).assign_coords(layer=names)
        parts.append(part.assign_coords(backbone=("layer", [run.label] * len(names))))
    joint = xr.concat(
        parts, "layer", data_vars="minimal", coords="minimal", compat="override", join="override"
    )
    return joint.assign_attrs(seed=first.attrs.get("seed", 0))


def _same_targets(one: xr.Dataset, other: xr.Dataset) -> bool:
    mine, theirs = (dict(target_coords(scores)) for scores in (one, other))
    shared = [key for key in (target_dim(one["r"]), *"ijk") if key in mine and key in theirs]
    # Targets without names are not paired by their order.
    return bool(shared) and all(np.array_equal(mine[key][1], theirs[key][1]) for key in shared)


def _same_rows(one: xr.Dataset, other: xr.Dataset) -> bool:
    if one["observed"].shape != other["observed"].shape:
        return False
    equal = [np.array_equal(one["tested_in"].values, other["tested_in"].values)]
    equal += [
        np.array_equal(one[key].values, other[key].values)
        for key in ("stimulus", "run")
        if key in one and key in other
    ]
    return all(equal) and np.allclose(one["observed"], other["observed"], equal_nan=True)


def _row(run: Run, folder: Path | None) -> dict[str, Any]:
    """Return what the table of runs says of one."""
    scores, table = run.report.scores, run.report.table
    overall = best_layers(table).set_index("roi").loc[ALL]
    top = headline_row(table)
    link = ""
    if run.page is not None and folder is not None:
        link = Path(os.path.relpath(run.page, folder)).as_posix()
    return {
        "label": run.label,
        "link": link,
        "subject": str(scores.attrs.get("subject", "")).removeprefix("sub-"),
        "layer": layer_name(scores, overall["layer"]) if overall["layer"] else "–",
        "r": float(overall["r"]),
        "normalized": float(overall.get("r_normalized", np.nan)),
        "where": "" if top is None or top["roi"] == ALL else str(top["roi"]),
        "scored": int(overall["n_valid"]),
        "folds": by_groups(scores),
        "model": str(scores.attrs.get("model", "")).partition("(")[0],
        "when": str(scores.attrs.get("created", ""))[:10],
    }


def _cell(r: float, top: float) -> dict[str, Any]:
    known = not np.isnan(r)
    return {"r": float(r), "shade": round(100 * min(max(r / top, 0), 1)) if known else 0}


def _by_roi(table: pd.DataFrame) -> list[Drawing]:
    """Return r of the best layer of each run, by ROI."""
    data = table[["run", "roi", "layer", "r", "r_low", "r_high"]]
    rois = list(dict.fromkeys(data["roi"]))[:MAX_ROIS]
    runs = list(dict.fromkeys(data["run"]))
    if len(runs) > len(PALETTE) or data["r"].isna().all():
        return []
    return [Drawing("", "", partial(_draw_by_roi, data, rois, runs), data, runs_of(runs))]


def runs_of(runs: Sequence[str]) -> dict[str, str]:
    """Return a colour for each run."""
    return dict(zip(runs, PALETTE, strict=False))


def _draw_by_roi(data: pd.DataFrame, rois: Sequence[str], runs: Sequence[str]) -> Figure:
    figure, axes = new_figure(min(7.5, 2.2 + 0.9 * len(rois)), 3.0)
    step = min(0.16, 0.7 / len(runs))
    for number_of, (run, colour) in enumerate(runs_of(runs).items()):
        own = data[data["run"] == run].set_index("roi")
        for place, roi in enumerate(rois):
            if roi not in own.index:
                continue
            x, row = place + (number_of - (len(runs) - 1) / 2) * step, own.loc[roi]
            axes.vlines(x, row["r_low"], row["r_high"], color=colour, lw=2, alpha=0.5)
            axes.plot(x, row["r"], "o", ms=5, mew=0, color=colour)
    axes.axhline(0, color=INK, lw=0.6)
    axes.set_xticks(range(len(rois)), rois)
    axes.set(xlim=(-0.5, len(rois) - 0.5))
    axes.set_ylabel("r", style="italic")
    return figure
