"""When each image is shown: runs, repeats in different runs, jittered onsets, pauses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

DURATION = 2.0  # s that an image stays on
INTERVAL = 4.0  # s from one trial to the next
JITTER = 1.0  # s by which an onset may be late
LEAD_IN, LEAD_OUT = 6.0, 14.0  # s of the run before the first trial, and for the last response
PAUSES = 0.1  # empty trials, in parts of the others


def schedule(
    ids: Sequence[str], labels: Sequence[str], n_repeats: int, n_runs: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Return when each image is shown.

    Parameters
    ----------
    ids, labels : sequence of str
        Of each image; the label becomes the trial type.
    n_repeats, n_runs : int
        Each image is shown once in each of `n_repeats` runs out of `n_runs`.
    rng : numpy.random.Generator

    Returns
    -------
    pandas.DataFrame
        Columns onset [s] from the start of the run, duration [s], trial_type, stimulus, stim_file
        and run, ordered by run and onset. All runs have the same number of trials, or one less.
    """
    shown: list[list[int]] = [[] for _ in range(n_runs)]
    for image in rng.permutation(len(ids)):
        load = np.array([len(run) for run in shown]) + rng.random(n_runs)
        for run in np.argsort(load)[:n_repeats]:
            shown[run].append(int(image))
    most = max(len(run) for run in shown)
    n_slots = most + math.ceil(PAUSES * most)
    parts = []
    for number, images in enumerate(shown, 1):
        slot = np.sort(rng.permutation(n_slots)[: len(images)])
        late = np.round(rng.uniform(0, JITTER, len(images)), 1)
        order = rng.permutation(images)
        parts.append(
            pd.DataFrame(
                {
                    "onset": LEAD_IN + INTERVAL * slot + late,
                    "duration": DURATION,
                    "trial_type": [labels[image] for image in order],
                    "stimulus": [ids[image] for image in order],
                    "stim_file": [ids[image] for image in order],
                    "run": str(number),
                }
            )
        )
    return pd.concat(parts, ignore_index=True).round({"onset": 3})


def n_volumes(events: pd.DataFrame, tr: float) -> int:
    """Return how many volumes every run has, so that the last response is recorded.

    Examples
    --------
    >>> n_volumes(pd.DataFrame({"onset": [6.0], "duration": [2.0]}), tr=2.0)
    11
    """
    return math.ceil(float((events["onset"] + events["duration"]).max() + LEAD_OUT) / tr)
