"""What the checks of the auditor look at, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from neurodl.stimuli import Stimuli

SEVERE, WARNING, NOTE = "severe", "warning", "note"
MAX_ROWS = 10  # that are kept with scores


@dataclass(frozen=True)
class Finding:
    """One thing that an auditor found.

    Parameters
    ----------
    severity : {"severe", "warning", "note"}
        Severe: the scores would measure something else. Warning: they may be off. Note: to know
        when they are read.
    message, remedy : str
    rows : tuple of str
        The ids of the rows concerned.
    check : str
        Which check found it.
    allowed : bool
        Whether it was said beforehand that it is accepted.
    n_rows : int
        The number of rows concerned, where not all are in `rows`.
    """

    severity: str
    message: str
    remedy: str
    rows: tuple[str, ...] = ()
    check: str = ""
    allowed: bool = False
    n_rows: int = 0

    def shortened(self) -> Finding:
        """Return the same with a few of the rows."""
        return replace(self, rows=self.rows[:MAX_ROWS], n_rows=self.n_rows or len(self.rows))


class Case(NamedTuple):
    """What is audited.

    responses : (sample, target), averaged over repeats and paired with features
    layers : features, row by row as the responses
    given : features as they were given, before pairing
    splits : list of (train, test) row numbers
    model, stimuli : or None
    earlier : scores made before
    """

    responses: xr.DataArray
    layers: Mapping[str, xr.DataArray]
    given: Mapping[str, xr.DataArray]
    splits: Sequence[tuple[np.ndarray, np.ndarray]]
    model: Any = None
    stimuli: Stimuli | None = None
    earlier: Sequence[xr.Dataset] = ()

    @property
    def first(self) -> xr.DataArray | None:
        """The features of the first layer, row by row, or None without any."""
        return next(iter(self.layers.values()), None)

    @property
    def tested(self) -> np.ndarray:
        """Which rows are tested in some fold, shape (n_samples,)."""
        found = np.zeros(len(self.responses), bool)
        for _, test in self.splits:
            found[test] = True
        return found
