"""The report: one self-contained HTML page, with scores.nc and maps beside it."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from neurodl.io.store import atomic_path, save
from neurodl.reports import brain, summary
from neurodl.reports.networks import compared_networks
from neurodl.reports.page import best_of_groups, best_overall, drawings, file_stem, page_context
from neurodl.reports.svg import Drawing
from neurodl.reports.tables import roi_table, target_means, with_layers
from neurodl.schema import check_scores

if TYPE_CHECKING:
    from neurodl.datasets.experiment import Experiment

# What the figures of each section show, as slides say it.
HEADINGS = {
    "gains": "What adaptation gains",
    "curves": "By the number of training stimuli",
    "networks": "Networks compared",
    "profiles": "Along the layers",
    "histograms": "Across targets",
    "ceiling": "Against the ceiling",
    "predictions": "Predicted and observed",
    "training": "Training",
    "array": "Across the array",
}


def report_of(
    scores: xr.Dataset,
    experiment: Experiment | None = None,
    *,
    title: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """Return a report on the scores of one run; see `report`.

    Parameters
    ----------
    scores : xarray.Dataset
        Of `cross_validate`: ``r`` and ``r2`` with dims ``([layer,] fold, target)``, optionally
        ``ceiling`` and ``r_normalized``; coord roi; for brain maps i, j, k and the attrs affine,
        shape, space.
    experiment : Experiment, optional
        Adds the stimuli and the data's card (who made it, licence, citation).
    title : str, optional
        By default the experiment's name and the subject.
    provenance : mapping, optional
        What the page should keep of the run: values, or mappings of them (versions, hashes).
    notes : sequence of str
        Remarks to stand below the main finding, such as warnings of the run.

    Returns
    -------
    Report
        ``.save(path)`` writes it, ``.html()`` returns the page.

    Raises
    ------
    SchemaError
        The scores do not follow the schema.

    Examples
    --------
    >>> r = xr.DataArray([[[0.4, 0.6]]], dims=("layer", "fold", "unit"), coords={"layer": ["a"]})
    >>> report_of(xr.Dataset({"r": r, "r2": r**2})).finding
    'a predicts the units: r = 0.50 (mean over 2 units, 1 fold).'
    """
    scores = check_scores(scores)
    if title is None:
        name = scores.attrs.get("experiment") or (experiment.name if experiment else "Predictivity")
        subject = str(scores.attrs.get("subject", "")).removeprefix("sub-")
        title = f"{name}, subject {subject}" if subject else str(name)
    return Report(scores, experiment, title, dict(provenance or {}), tuple(notes))


@dataclass(frozen=True, eq=False)
class Report:
    """Scores with what a page about them needs; made by `neurodl.report`."""

    scores: xr.Dataset
    experiment: Experiment | None
    title: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    volume_name: str = ""

    def __repr__(self) -> str:
        """Return the title and the main finding."""
        return f"<Report {self.title!r}: {self.finding}>"

    def _repr_html_(self) -> str:
        """Return the page in a frame, for notebooks."""
        page = html.escape(self.html(), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:80vh;border:0"></iframe>'

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per layer and ROI; see `roi_table`."""
        seed = self.scores.attrs.get("seed", 0)
        return roi_table(self.scores, int(seed) if str(seed).lstrip("-").isdigit() else 0)

    @cached_property
    def networks(self) -> pd.DataFrame | None:
        """One row per network, tested against the best one; None for a single network."""
        return compared_networks(self.scores, self.table)

    @cached_property
    def drawings(self) -> dict[str, list[Drawing]]:
        """The figures by section, each with its numbers: ``.svg``, ``.data``, ``.save_slide``."""
        return drawings(self.scores, self.table, self.networks)

    @property
    def finding(self) -> str:
        """The main finding in one or two sentences."""
        return " ".join(summary.main_finding(self.scores, self.table))

    def html(self) -> str:
        """Return the page."""
        return rendered("report.html", page_context(self))

    def save(self, path: str | Path, *, slides: bool = False) -> Path:
        """Write the page, and beside it the scores and maps of r; each file whole or not at all.

        Parameters
        ----------
        path : str or Path
            Ends in ``.html``. ``report.html`` gets ``scores.nc`` beside it, ``name.html`` gets
            ``name_scores.nc``, so that several reports can share a folder. Where the voxels have
            a grid, the best layer of each network is also written as a NIfTI map with a JSON
            sidecar, named ``sub-..._desc-..._stat-r_statmap.nii.gz``, and that of all layers as
            a page to click through the volume, ``volume.html``.
        slides : bool
            Whether to write the figures also as pictures of 1920 x 1080 pixels, into ``slides/``
            (``name_slides/``).

        Returns
        -------
        Path
            Where the page is.

        Raises
        ------
        StorageError
            The disk is full or the folder cannot be written to.
        """
        path = Path(path)
        if path.suffix != ".html":
            raise ValueError(f"A report is saved to '*.html', but got {path.name!r}.")
        prefix = "" if path.stem == "report" else f"{path.stem}_"
        save(self.scores, path.with_name(f"{prefix}scores.nc"))
        self._save_maps(path.parent, prefix)
        volume = self._save_volume(path.parent, f"{prefix}volume.html")
        page = replace(self, volume_name=volume).html()
        if slides:
            self.save_slides(path.with_name(f"{prefix}slides"))
        with atomic_path(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
        return path

    def save_slides(self, folder: str | Path) -> list[Path]:
        """Write every figure as a picture of 1920 x 1080 pixels, with its numbers beside it.

        Parameters
        ----------
        folder : str or Path
            Pictures and tables of earlier runs in it are replaced.

        Returns
        -------
        list of Path
            The pictures; each has a ``.tsv`` of the same name.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for old in [*folder.glob("[0-9][0-9]-*.png"), *folder.glob("[0-9][0-9]-*.tsv")]:
            old.unlink()
        paths = []
        flat = [(section, one) for section, found in self.drawings.items() for one in found]
        for number, (section, drawing) in enumerate(flat, start=1):
            path = folder / f"{number:02d}-{file_stem(section, drawing.title)}.png"
            drawing.save_slide(path, HEADINGS[section])
            with atomic_path(path.with_suffix(".tsv")) as temporary:
                temporary.write_text(drawing.tsv, encoding="utf-8")
            paths.append(path)
        return paths

    def _save_volume(self, folder: Path, name: str) -> str:
        """Write a page to click through the volume; return its name, or "" where there is none."""
        index = best_overall(self.table)
        if index is None or not brain.has_volume(self.scores):
            return ""
        values = target_means(self.scores).values[index]
        with atomic_path(folder / name) as temporary:
            temporary.write_text(brain.volume_page(values, self.scores, self.title), "utf-8")
        return name

    def _save_maps(self, folder: Path, prefix: str) -> list[Path]:
        if not brain.has_volume(self.scores):
            return []
        from neurodl.io.nifti import write_statmap

        scores, means = with_layers(self.scores), target_means(self.scores)
        written = []
        for group, index in best_of_groups(self.scores, self.table).items():
            if means[index].isnull().all():
                continue
            layer = str(scores["layer"].values[index])
            described = brain.map_description(scores, layer, group)
            name = map_name(scores.attrs, layer, group, prefix)
            values = means.isel(layer=index, drop=True)
            written.append(write_statmap(values, folder / name, described, like=scores))
        return written


def rendered(template: str, context: Mapping[str, Any]) -> str:
    """Return a page, with the reports' script, which may run by its hash alone, and style."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("neurodl.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = (_source(environment, name) for name in ("report.js", "report.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {"script": Markup(script), "style": Markup(style), "script_hash": digest}
    return environment.get_template(template).render({**context, **own})


def _source(environment: Any, name: str) -> str:
    return str(environment.loader.get_source(environment, name)[0])


def map_name(attrs: Mapping[Any, Any], layer: str, group: str, prefix: str = "") -> str:
    """Return a map's file name in the style of BIDS derivatives.

    Examples
    --------
    >>> map_name({"subject": "01", "space": "MNI152"}, "layer3", "timm:resnet50")
    'sub-01_space-MNI152_desc-TimmResnet50Layer3_stat-r_statmap.nii.gz'
    """

    def label(*texts: str) -> str:
        words = re.findall(r"[A-Za-z0-9]+", " ".join(texts))
        return "".join(word[0].upper() + word[1:] for word in words)

    subject = re.sub(r"[^A-Za-z0-9]", "", str(attrs.get("subject", "")).removeprefix("sub-"))
    space = re.sub(r"[^A-Za-z0-9]", "", str(attrs.get("space", "")))
    start = f"sub-{subject}_" if subject else ""
    if prefix and prefix != start:
        start = prefix if prefix.startswith("sub-") else prefix + start
    # File systems allow 255 characters.
    desc = (label(layer) if layer.startswith(group) else label(group, layer))[-120:]
    return f"{start}{f'space-{space}_' if space else ''}desc-{desc}_stat-r_statmap.nii.gz"
