"""report: one verb, for the scores of one run and for several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import xarray as xr

from neurodl.errors import SchemaError
from neurodl.reports.collection import Collection, collect, opened
from neurodl.reports.html import Report, report_of

if TYPE_CHECKING:
    from neurodl.datasets.experiment import Experiment


@overload
def report(  # type: ignore[overload-overlap]  # a str is a sequence
    scores: xr.Dataset | str | Path,
    experiment: Experiment | None = None,
    *,
    title: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Report: ...
@overload
def report(
    scores: Sequence[xr.Dataset | Report | str | Path], *, title: str | None = None
) -> Collection: ...
def report(
    scores: Any,
    experiment: Any = None,
    *,
    title: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Report | Collection:
    """Return a report on scores: how well which layer predicts which targets.

    Parameters
    ----------
    scores : xarray.Dataset, path, or sequence
        Of `cross_validate`: ``r`` and ``r2`` with dims ``([layer,] fold, target)``, optionally
        ``ceiling`` and ``r_normalized``; coord roi; for brain maps i, j, k and the attrs affine,
        shape, space; for maps of an array x and y of its targets. With ``predicted``
        (``keep_predictions=True``) examples and stimuli are shown, and networks are tested
        against each other.
        A path is that of saved scores or of the results folder they are in.
        A sequence of such scores, of reports or of paths (results folders, saved scores, or a
        folder of results folders) makes a comparison of runs or subjects.
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
    Report or Collection
        ``.save(path)`` writes it, ``.html()`` returns the page.

    Raises
    ------
    SchemaError, MissingFileError
        The scores do not follow the schema; there are none, or several where one is expected.

    Examples
    --------
    >>> r = xr.DataArray([[[0.4, 0.6]]], dims=("layer", "fold", "unit"), coords={"layer": ["a"]})
    >>> one = xr.Dataset({"r": r, "r2": r**2})
    >>> report(one).finding
    'a predicts the units: r = 0.50 (mean over 2 units, 1 fold).'
    >>> report([one, one / 2], title="Halves").finding
    'Of 2 runs, Predictivity (1) predicts best: a reaches r = 0.50 over 2 units.'
    """
    several: bool = isinstance(scores, Sequence) and not isinstance(scores, str)
    if isinstance(scores, str | Path):
        runs = opened(scores)
        if len(runs) > 1:
            raise SchemaError(
                f"{scores} holds {len(runs)} runs: report([{str(scores)!r}]) compares them."
            )
        scores = runs[0].report.scores
    if not several:
        return report_of(scores, experiment, title=title, provenance=provenance, notes=notes)
    if experiment is not None or provenance is not None or notes:
        raise ValueError(
            "`experiment`, `provenance` and `notes` belong to one run: give each its own report, "
            "report([report(one, experiment), report(other, experiment)])."
        )
    return collect(scores, title)
