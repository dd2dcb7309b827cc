"""The report: one self-contained HTML page, with scores.nc and maps beside it."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from neurodl.io.store import atomic_path, save
from neurodl.reports import brain, summary
from neurodl.reports.page import best_of_groups, page_context
from neurodl.reports.tables import roi_table, target_means, with_layers
from neurodl.schema import check_scores

if TYPE_CHECKING:
    from neurodl.datasets.experiment import Experiment


def report(
    scores: xr.Dataset,
    experiment: Experiment | None = None,
    *,
    title: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """Return a report on scores: how well which layer predicts which targets.

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
    >>> report(xr.Dataset({"r": r, "r2": r**2})).finding
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
    """Scores with what a page about them needs; made by `report`."""

    scores: xr.Dataset
    experiment: Experiment | None
    title: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

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

    @property
    def finding(self) -> str:
        """The main finding in one or two sentences."""
        return " ".join(summary.main_finding(self.scores, self.table))

    def html(self) -> str:
        """Return the page."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("neurodl.reports"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        template = environment.get_template("report.html")
        return template.render(
            page_context(
                self, _source(environment, "report.js"), _source(environment, "report.css")
            )
        )

    def save(self, path: str | Path) -> Path:
        """Write the page, and beside it the scores and maps of r; each file whole or not at all.

        Parameters
        ----------
        path : str or Path
            Ends in ``.html``. ``report.html`` gets ``scores.nc`` beside it, ``name.html`` gets
            ``name_scores.nc``, so that several reports can share a folder. Where the voxels have
            a grid, the best layer of each network is also written as a NIfTI map with a JSON
            sidecar, named ``sub-..._desc-..._stat-r_statmap.nii.gz``.

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
        page = self.html()
        prefix = "" if path.stem == "report" else f"{path.stem}_"
        save(self.scores, path.with_name(f"{prefix}scores.nc"))
        self._save_maps(path.parent, prefix)
        with atomic_path(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
        return path

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
