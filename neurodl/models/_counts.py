"""Whole numbers to choose from: components, or ranks."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_counts(name: str, counts: Any) -> None:
    """Raise unless a parameter is "auto" or whole numbers from 1 on."""
    if isinstance(counts, str):
        if counts != "auto":
            raise ValueError(f"`{name}` must be 'auto' or whole numbers, but got {counts!r}.")
        return
    values = np.atleast_1d(np.asarray(counts))
    whole = values.dtype.kind in "iu" and (values >= 1).all()
    if values.ndim != 1 or not len(values) or not whole:
        raise ValueError(f"`{name}` must be whole numbers from 1 on, but got {counts}.")


def counts_up_to(name: str, counts: Any, most: int, ladder: int | None = None) -> np.ndarray:
    """Return the counts to choose from, ascending; "auto" is 1 to `ladder`, at most `most`.

    Raises
    ------
    ValueError
        Some given count is larger than `most`.
    """
    if isinstance(counts, str):
        return np.arange(1, max(1, min(most, ladder or most)) + 1)
    values = np.unique(np.atleast_1d(np.asarray(counts)))
    if values[-1] > most:
        raise ValueError(
            f"`{name}` must be at most {most}, which is what these training rows, features and "
            f"targets allow, but got {values[-1]}. Give fewer, or {name}='auto'."
        )
    return values
