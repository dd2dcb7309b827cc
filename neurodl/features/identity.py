"""What tells which rows of features belong to the same stimulus, kept with the features."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from neurodl.backbones import Backbone
from neurodl.io.store import atomic_path
from neurodl.stimuli import Stimuli

FORMAT = 1  # of the fingerprints


def identity_coords(
    stimuli: Stimuli, backbone: Backbone, kept: np.ndarray, folder: Path | None
) -> dict[str, tuple[str, np.ndarray]]:
    """Return coords by which `audit` tells copies of stimuli, and stimuli fitted on.

    ``stimulus_sha256``, the first half of the hash of the bytes; ``fingerprint``, see
    `neurodl.io.fingerprints`; and ``fitted_on`` where the network was fitted to some of them.

    Parameters
    ----------
    stimuli : Stimuli
    backbone : Backbone
    kept : numpy.ndarray of bool, shape (n_stimuli,)
    folder : Path or None
        Of the cache, in which fingerprints are kept.
    """
    coords: dict[str, Any] = {
        "stimulus_sha256": np.array([text[:32] for text in stimuli.hashes()])[kept],
        "fingerprint": _fingerprints(stimuli, folder)[kept],
    }
    if backbone.fitted_on:
        coords["fitted_on"] = np.isin(np.array(stimuli.ids)[kept], list(backbone.fitted_on))
    return {name: ("stimulus", values) for name, values in coords.items()}


def _fingerprints(stimuli: Stimuli, folder: Path | None) -> np.ndarray:
    """Return fingerprints from the cache, else those of the pixels, which go there."""
    if folder is None:
        return np.array(stimuli.fingerprints())
    text = "".join(stimuli.hashes())
    name = hashlib.sha256(f"{FORMAT}{text}".encode()).hexdigest()[:32]
    path = folder / "fingerprints" / f"{name}.txt"
    found: list[str] = []
    with contextlib.suppress(OSError, ValueError):  # not there, or damaged: made anew
        found = path.read_text("ascii").split("\n")
    if len(found) == len(stimuli):
        return np.array(found)
    made = stimuli.fingerprints()
    with contextlib.suppress(OSError):  # a cache that cannot be written to
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text("\n".join(made), "ascii")
    return np.array(made)
