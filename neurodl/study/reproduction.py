"""Running a study again from what its results folder keeps, and comparing the numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.errors import FileFormatError, MissingFileError
from neurodl.io.store import load
from neurodl.runtime import describe_device, resolve_device
from neurodl.study.config import load_study
from neurodl.study.provenance import Meter, environment, input_hashes
from neurodl.study.results import PROVENANCE, SCORES, STUDY, Place, is_url
from neurodl.study.run import compute
from neurodl.study.script import analysis_script

TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Reproduction:
    """What came of running a study again; made by `reproduce`.

    Attributes
    ----------
    table : pandas.DataFrame
        A row per variable of the scores: identical, to the last bit; difference, the largest one
        (infinite where texts differ, or a value is missing in one of the two);
        and same, within the tolerance.
    changes : dict
        What differs between the two environments: what it is, by what it was then and is now.
    scores : xarray.Dataset
        Those computed now.
    """

    table: pd.DataFrame
    changes: Mapping[str, tuple[str, str]]
    scores: xr.Dataset

    @property
    def identical(self) -> bool:
        """Whether every number is the same to the last bit."""
        return bool(self.table["identical"].all())

    @property
    def same(self) -> bool:
        """Whether every number is the same within the tolerance."""
        return bool(self.table["same"].all())

    def __str__(self) -> str:
        """Return the finding, and what changed where that matters."""
        changed = "".join(f"\n  {what}: {a} then, {b} now" for what, (a, b) in self.changes.items())
        if self.identical:
            return "Reproduced: every number is identical."
        worst = self.table.loc[~self.table["identical"]].sort_values("difference").iloc[-1]
        said = f"{worst['variable']} differs by up to {worst['difference']:.2g}"
        because = f"\nWhat changed since:{changed}" if changed else "\nThe environment is the same."
        if self.same:
            return f"Reproduced within the tolerance: {said}.{because}"
        others = int((~self.table["same"]).sum()) - 1
        return f"Not reproduced: {said}{f', and {others} more' if others else ''}.{because}"


def reproduce(
    results: str | Path, *, cached: bool = False, tolerance: float = TOLERANCE
) -> Reproduction:
    """Run the study of a results folder again and compare its scores with those kept there.

    The study file in the folder is what runs, by this version of neurodl; the folder is left as
    it is. On the same machine, packages and number of threads the numbers are identical; on others
    features differ in their last digits, and scores with them.

    Parameters
    ----------
    results : str or Path
        Of `run_study`; a folder or a URL.
    cached : bool
        Take features from the cache instead of extracting them again: only what follows them is
        put to the test.
    tolerance : float
        The largest difference of a number that counts as the same, relative to the largest value
        of its variable where that is above 1.

    Returns
    -------
    Reproduction

    Raises
    ------
    MissingFileError, FileFormatError
        The folder holds no finished results, or damaged ones; an input is not what it was, by its
        hash.
    ConfigError
        An input is missing, or the study is not valid for this version.
    """
    folder = Place.of(results).pull() if is_url(results) else Path(results).expanduser()
    record = _record(folder)
    study = load_study(folder / STUDY)
    before = load(folder / SCORES)
    _check_inputs(record["inputs_sha256"], input_hashes(study))
    with TemporaryDirectory(prefix="neurodl-") as scratch:
        if not cached:
            again = study.run.model_copy(update={"cache": str(Path(scratch) / "cache")})
            study = study.model_copy(update={"run": again})
        script = analysis_script(study, keep_scores=False)
        found = compute(study, script, folder / "analysis.py", Meter(study.run.device))
    device = describe_device(resolve_device(study.run.device))
    return Reproduction(
        _compared(before, found.scores, tolerance),
        _changes(record, environment(device)),
        found.scores,
    )


def _record(folder: Path) -> dict[str, Any]:
    path = folder / PROVENANCE
    if not path.is_file():
        raise MissingFileError(
            f"{folder} holds no finished results: {PROVENANCE} is not there. `neurodl run` writes "
            "it last."
        )
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record["inputs_sha256"], dict):
            raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path} is damaged: it does not say what was run.") from error
    return record


def _check_inputs(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise if an input is another than it was."""
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        listed = "\n  ".join(changed)
        raise FileFormatError(
            f"The results were made of other inputs; changed since:\n  {listed}\n"
            "`neurodl run` computes results of what they are now."
        )


def _compared(before: xr.Dataset, now: xr.Dataset, tolerance: float) -> pd.DataFrame:
    """Return how each variable differs; see `Reproduction`."""
    rows = []
    for name in dict.fromkeys([*before.data_vars, *now.data_vars]):
        alike = name in before and name in now and before[name].shape == now[name].shape
        old, new = (one[name].values if alike else np.array(np.nan) for one in (before, now))
        if alike and old.dtype.kind in "fiub" and new.dtype.kind in "fiub":
            old, new = old.astype(float), new.astype(float)
            identical = bool(np.array_equal(old, new, equal_nan=True))
            apart = np.abs(old - new)
            apart[(old == new) | (np.isnan(old) & np.isnan(new))] = 0
            difference = float(np.nan_to_num(apart, nan=np.inf).max(initial=0))
            size = float(np.nan_to_num(np.abs(old), posinf=0).max(initial=0))
            same = difference <= tolerance * max(size, 1)
        else:
            identical = same = alike and bool((old.astype(str) == new.astype(str)).all())
            difference = 0.0 if same else np.inf
        rows.append((str(name), identical, difference, same))
    return pd.DataFrame(rows, columns=["variable", "identical", "difference", "same"])


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return what differs between two environments."""
    old, new = ({**one, **one.get("packages", {})} for one in (before, now))
    return {
        key: (str(old.get(key, "not known")), str(new.get(key, "not there")))
        for key in dict.fromkeys([*now, *before.get("packages", {}), *now["packages"]])
        if key != "packages" and old.get(key) != new.get(key)
    }
