"""The fMRI data of the FSL course: words that are generated, and words at five speeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from neurodl.datasets.assemble import first_file
from neurodl.datasets.experiment import Experiment
from neurodl.datasets.hcp import read_three_columns
from neurodl.errors import FileFormatError, MissingFileError, UnknownNameError, did_you_mean
from neurodl.io.nifti import read_nifti

TASKS = {
    "fluency": (4.2, 106, ("Gen", "Shad")),
    "parametric": (0.933, 1100, ("WPM_0050", "WPM_0350", "WPM_0650", "WPM_0950", "WPM_1250")),
}


def load_fslcourse(root: Path, task: str = "fluency", mask: Any = "auto") -> Experiment:
    """Open one of the two tasks of the FSL course, one subject each.

    Parameters
    ----------
    root : Path
        The folder with ``fslcourse_data``.
    task : {"fluency", "parametric"}
        Generating verbs ("Gen") and reading them ("Shad"); or reading at 50 to 1250 words a minute.
    mask : image, path or masker, optional
        See `read_nifti`; by default the brain, found by its brightness.

    Returns
    -------
    Experiment
        Responses with dims ``(time, voxel)``, attr tr = 4.2 s or 0.933 s, which the files' headers
        do not always say. Events with onset and duration [s], trial_type and amplitude.

    Raises
    ------
    UnknownNameError, MissingFileError, FileFormatError
        There is no such task; a file is missing or holds something else.
    """
    if task not in TASKS:
        raise UnknownNameError(f"There is no task {task!r}. {did_you_mean(task, TASKS)}")
    tr, n_volumes, conditions = TASKS[task]
    image = first_file(root, [f"{top}{task}/fmri_data.nii.gz" for top in ("fslcourse_data/", "")])
    responses = read_nifti(image, mask=mask, tr=tr)
    if len(responses) != n_volumes:
        raise FileFormatError(f"{image} has {len(responses)} volumes; {task} has {n_volumes}.")
    responses.attrs["subject"] = f"fslcourse-{task}"
    tables = []
    for name in conditions:
        path = image.parent / "EVs" / f"{name}.txt"
        if not path.is_file():
            raise MissingFileError(f"The file {path} does not exist.")
        tables.append(read_three_columns(path).assign(trial_type=name))
    events = pd.concat(tables, ignore_index=True).sort_values("onset", kind="stable")
    return Experiment(
        responses=responses, events=events.reset_index(drop=True), name=f"fslcourse {task}"
    )
