"""The Human Connectome Project as the Neuromatch Academy hands it out: 360 parcels over time.

Three collections look alike and are not: "hcp_task" and "hcp_rest" number the same 339 people from
0, with the runs RL and LR; "hcp_behavior" holds 100 others under their real ids, with LR and RL.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.datasets.assemble import check_shape, first_file
from neurodl.datasets.experiment import Experiment
from neurodl.errors import FileFormatError, MissingFileError, UnknownNameError, did_you_mean, listed
from neurodl.io.plain import load_array, text_lines

TR = 0.72
N_PARCELS = 360
CONDITIONS = {
    "MOTOR": ("lf", "rf", "lh", "rh", "t", "cue"),
    "WM": (
        "0bk_body", "0bk_faces", "0bk_places", "0bk_tools",
        "2bk_body", "2bk_faces", "2bk_places", "2bk_tools",
    ),
    "EMOTION": ("fear", "neut"),
    "GAMBLING": ("loss", "win"),
    "LANGUAGE": ("math", "story"),
    "RELATIONAL": ("match", "relation"),
    "SOCIAL": ("mental", "rnd"),
}  # fmt: skip
FIRST_TASK_RUN = 5  # runs 1 to 4 are at rest
REST_RUNS = ("REST1_LR", "REST1_RL", "REST2_LR", "REST2_RL")
SERIES = "bold{}_Atlas_MSMAll_Glasser360Cortical.npy"


def load_hcp_task(root: Path, subject: int = 0, task: str = "MOTOR") -> Experiment:
    """Open one task of one of the 339 subjects that are numbered from 0.

    Parameters
    ----------
    root : Path
        The folder with ``hcp_task``.
    subject : int
        0 to 338.
    task : str
        MOTOR, WM, EMOTION, GAMBLING, LANGUAGE, RELATIONAL or SOCIAL.

    Returns
    -------
    Experiment
        Responses with dims ``(time, parcel)``, float32, attr tr = 0.72 s. Coords time (start of
        the sample) and run ("RL", "LR"); roi (such as "R_V1"), network, hemisphere and label (its
        place, from 1) of each parcel; the first 180 are of the right hemisphere. Events have
        onset and duration [s], trial_type, amplitude and run.

    Raises
    ------
    UnknownNameError, MissingFileError, FileFormatError
        There is no such task; a file is missing or holds something else.

    References
    ----------
    Van Essen et al. (2013), The WU-Minn Human Connectome Project, NeuroImage 80. Glasser et al.
    (2016), A multi-modal parcellation of human cerebral cortex, Nature 536.
    """
    conditions = _conditions(task)
    base = root / "hcp_task"
    folder = base / "subjects" / str(subject)
    first = FIRST_TASK_RUN + 2 * list(CONDITIONS).index(task)
    series, events = {}, []
    for number, run in ((first, "RL"), (first + 1, "LR")):
        series[run] = folder / "timeseries" / SERIES.format(number)
        events.append(_events(folder / "EVs" / f"tfMRI_{task}_{run}", conditions, run))
    return Experiment(
        responses=_joined(series, base, f"hcp-task-{subject}"),
        events=pd.concat(events, ignore_index=True),
        name="hcp_task",
    )


def load_hcp_behavior(root: Path, subject: str | None = None, task: str = "MOTOR") -> Experiment:
    """Open one task of one of the 100 subjects with behaviour, named by their real ids.

    Parameters
    ----------
    root : Path
        The folder with ``regions.npy``, ``subjects_list.txt`` and ``subjects``, or the one above.
    subject : str, optional
        One of the ids in ``subjects_list.txt``, such as "100307"; the first by default.
    task : str
        See `load_hcp_task`.

    Returns
    -------
    Experiment
        As `load_hcp_task`; the runs are "LR", then "RL". Where they are there, the numbers of
        ``Stats.txt`` (accuracies, reaction times [ms]) are in the events' attrs.

    Raises
    ------
    UnknownNameError, MissingFileError, FileFormatError
        There is no such subject or task; a file is missing or holds something else.
    """
    conditions = tuple("ment" if one == "mental" else one for one in _conditions(task))
    base = first_file(root, ["regions.npy", "*/regions.npy"]).parent
    known = [line.strip() for line in text_lines(base / "subjects_list.txt") if line.strip()]
    subject = known[0] if subject is None else str(subject)
    if subject not in known:
        hint = (
            "0 to 338 number the subjects of hcp_task, who are other people."
            if subject.isdigit() and int(subject) < 1000
            else did_you_mean(subject, known)
        )
        raise UnknownNameError(f"hcp_behavior has no subject {subject!r}. {hint}")
    series, events = {}, []
    stats: dict[str, float] = {}
    for run in ("LR", "RL"):
        folder = base / "subjects" / subject / task / f"tfMRI_{task}_{run}"
        series[run] = folder / "data.npy"
        events.append(_events(folder / "EVs", conditions, run))
        stats |= _stats(folder / "EVs" / "Stats.txt", run)
    table = pd.concat(events, ignore_index=True)
    table.attrs = stats
    responses = _joined(series, base, f"hcp-{subject}")
    return Experiment(responses=responses, events=table, name="hcp_behavior")


def load_hcp_rest(
    root: Path, subject: int = 0, runs: str | Iterable[str] | None = None
) -> Experiment:
    """Open the resting state of one of the 339 subjects that are numbered from 0.

    Parameters
    ----------
    root : Path
        The folder with ``hcp_rest``.
    subject : int
        0 to 338, the same people as in `load_hcp_task`.
    runs : str or iterable of str, optional
        Of "REST1_LR", "REST1_RL", "REST2_LR" and "REST2_RL"; all by default.

    Returns
    -------
    Experiment
        As `load_hcp_task`, without events.

    Raises
    ------
    UnknownNameError, MissingFileError, FileFormatError
        There is no such run; a file is missing or holds something else.
    """
    wanted = list(REST_RUNS) if runs is None else [runs] if isinstance(runs, str) else list(runs)
    unknown = [run for run in wanted if run not in REST_RUNS]
    if unknown or not wanted:
        raise UnknownNameError(f"There are no runs {listed(unknown)}; there are {REST_RUNS}.")
    base = root / "hcp_rest"
    folder = base / "subjects" / str(subject) / "timeseries"
    series = {run: folder / SERIES.format(1 + REST_RUNS.index(run)) for run in wanted}
    responses = _joined(series, base, f"hcp-task-{subject}")
    return Experiment(responses=responses, name="hcp_rest")


def _conditions(task: str) -> tuple[str, ...]:
    if task not in CONDITIONS:
        raise UnknownNameError(f"There is no task {task!r}. {did_you_mean(task, CONDITIONS)}")
    return CONDITIONS[task]


def _joined(series: dict[str, Path], base: Path, subject: str) -> xr.DataArray:
    """Return the runs one after the other, with what is known of the parcels."""
    runs = []
    for path in series.values():
        if not path.is_file():
            raise MissingFileError(f"The file {path} does not exist.")
        array, _ = load_array(path, what="time series")
        check_shape(array, (N_PARCELS, None), str(path))
        runs.append(array.T.astype(np.float32))
    lengths = [len(run) for run in runs]
    coords = {
        "time": np.concatenate([np.arange(length) * TR for length in lengths]),
        "run": ("time", np.repeat(list(series), lengths)),
        **parcel_coords(base / "regions.npy"),
    }
    attrs: dict[str, Any] = {"units": "BOLD", "tr": TR, "subject": subject, "space": "Glasser360"}
    atlas = first_existing([base / "atlas.npz", base.parent / "atlas.npz"])
    if atlas is not None:
        attrs["surface_atlas"] = str(atlas)
    return xr.DataArray(np.concatenate(runs), dims=("time", "parcel"), coords=coords, attrs=attrs)


def parcel_coords(path: Path) -> dict[str, Any]:
    """Return the coords of the 360 parcels from ``regions.npy``: name and network in its columns.

    Raises
    ------
    MissingFileError, FileFormatError
        There is no such file; or the names do not begin with the right hemisphere.
    """
    if not path.is_file():
        raise MissingFileError(f"The file {path} does not exist.")
    regions, _ = load_array(path, what="regions")
    if regions.ndim != 2 or len(regions) != N_PARCELS or regions.shape[1] < 2:
        raise FileFormatError(
            f"{path} has shape {regions.shape}; expected ({N_PARCELS}, 2 or more)."
        )
    names = regions[:, 0].astype(str)
    sides = np.repeat(["right", "left"], N_PARCELS // 2)
    for prefix, side in (("R_", "right"), ("L_", "left")):
        wrong = np.char.startswith(names, prefix) & (sides != side)
        if wrong.any():
            raise FileFormatError(
                f"{path}: {str(names[wrong][0])!r} is among the parcels of the other hemisphere; "
                "the first 180 must be of the right one. Is it the file of another collection?"
            )
    return {
        "roi": ("parcel", names),
        "network": ("parcel", regions[:, 1].astype(str)),
        "hemisphere": ("parcel", sides),
        "label": ("parcel", np.arange(1, N_PARCELS + 1)),
    }


def _events(folder: Path, conditions: Sequence[str], run: str) -> pd.DataFrame:
    """Return the events of one run: a file for each condition, with onset, duration, amplitude."""
    if not folder.is_dir():
        raise MissingFileError(f"The folder {folder} does not exist.")
    tables = [
        read_three_columns(folder / f"{name}.txt").assign(trial_type=name)
        for name in conditions
        if (folder / f"{name}.txt").is_file()
    ]
    if not tables:
        there = sorted(path.name for path in folder.glob("*.txt"))
        raise MissingFileError(
            f"{folder} has none of the conditions {listed(conditions, 8)}; it has {listed(there)}."
        )
    return pd.concat(tables, ignore_index=True).sort_values("onset", kind="stable").assign(run=run)


def read_three_columns(path: Path) -> pd.DataFrame:
    """Return the events of a text file with the columns onset [s], duration [s] and amplitude.

    Raises
    ------
    FileFormatError
        It is no such file.
    """
    try:
        rows = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise FileFormatError(f"{path} is no table of numbers: {error}") from error
    if rows.size and rows.shape[1] != 3:
        raise FileFormatError(
            f"{path} has {rows.shape[1]} columns; expected onset, duration and amplitude."
        )
    return pd.DataFrame(rows.reshape(-1, 3), columns=["onset", "duration", "amplitude"])


def _stats(path: Path, run: str) -> dict[str, float]:
    """Return the numbers of lines such as ``Median RT: 650``; none where there is no file."""
    if not path.is_file():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.rpartition(":")
        try:
            found[f"{run} {name.strip()}"] = float(value)
        except ValueError:
            continue
    return found


def first_existing(paths: Sequence[Path]) -> Path | None:
    """Return the first path that is a file."""
    return next((path for path in paths if path.is_file()), None)
