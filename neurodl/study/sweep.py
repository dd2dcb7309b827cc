"""Sweeps: lists in a study file make it several studies, each with a results folder of its own."""

from __future__ import annotations

import copy
import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from neurodl.errors import ConfigError, NeurodlError
from neurodl.reports import report
from neurodl.study.cluster import run_on
from neurodl.study.config import parse_study, read_study
from neurodl.study.estimate import Estimate, Estimator
from neurodl.study.provenance import study_key
from neurodl.study.results import Place, records_of
from neurodl.study.run import Busy, claimed, default_place, run_study
from neurodl.study.sections import SWEPT, ClusterSection, Study

logger = logging.getLogger(__name__)

INDEX = "index.html"


@dataclass(frozen=True)
class Task:
    """One study of a sweep.

    Attributes
    ----------
    name : str
        Of its results folder, within that of the sweep; "" where the file has no lists.
    study : Study
    """

    name: str
    study: Study


def load_sweep(path: str | Path) -> list[Task]:
    """Read and check a study file whose subjects and backbones may be lists.

    Every combination of what is listed is a study: ``subject`` of [dataset] and [bids], and
    ``backbone`` of each [[features]].

    Parameters
    ----------
    path : str or Path
        A study file; see ``docs/study_file.md``.

    Returns
    -------
    list of Task
        In the order of the lists. A file without lists is one task.

    Raises
    ------
    MissingFileError, ConfigError
        See `load_study`; what is wrong with each of the studies is said.
    """
    path = Path(path).expanduser()
    content = read_study(path)
    lists = [
        [(value, True) for value in table[key]]
        if isinstance(table[key], list)
        else [(table[key], False)]
        for table, key in _places(content)
    ]
    empty = [key for (_, key), values in zip(_places(content), lists, strict=True) if not values]
    if empty:
        raise ConfigError(f"{path}: {empty[0]} is an empty list: there is nothing to run.")
    tasks, problems = [], []
    for chosen in itertools.product(*lists):
        one = copy.deepcopy(dict(content))
        for (table, key), (value, _) in zip(_places(one), chosen, strict=True):
            table[key] = value
        said = [str(value) for value, listed in chosen if listed]
        if said and isinstance(one.get("study"), dict):
            named = one["study"].get("title") or one["study"].get("name", "")
            one["study"]["title"] = ", ".join([str(named), *said])
        try:
            study = parse_study(one, folder=path.resolve().parent, source=str(path))
        except ConfigError as error:
            problems += str(error).splitlines()[1:]
            continue
        tasks.append(Task("_".join(map(_file_name, said)), study))
    if problems:
        raise ConfigError("\n".join([f"{path} has problems:", *dict.fromkeys(problems)]))
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{path}: {twice!r} is listed twice.")
    return tasks


def plan(
    path: str | Path, out: str | Path | None = None, *, estimate: bool = False
) -> pd.DataFrame:
    """Return the tasks of a study file, and which of them are done.

    Parameters
    ----------
    path : str or Path
    out : str or Path, optional
        Where the results are to be, as of `run_sweep`.
    estimate : bool
        Whether to open the data of what is not done, and to pass up to 64 stimuli through each
        network, to say what it would take. Else nothing is computed.

    Returns
    -------
    pandas.DataFrame
        task; state: "done", "out of date" (of another study or other inputs), "unfinished" or
        "to do"; seconds and energy_wh, of what is done. With `estimate`, of what is not: stimuli
        (for each network), cached, of how many the features are there; extraction_s, the time that
        the others take here; disk_mb, by how much the cache grows; memory_mb, of features and
        responses, beyond which models take what they find. What several studies share counts for
        the first. If some would fail, also problem: why.

    Raises
    ------
    MissingFileError, ConfigError
        See `load_sweep`.
    """
    tasks = load_sweep(path)
    place = sweep_place(path, out, tasks)
    rows = []
    estimator = Estimator()
    records = records_of(place / task.name for task in tasks)
    for task, record in zip(tasks, records, strict=True):
        state = "to do"
        if record:
            state = "done" if record.get("key") == study_key(task.study) else "out of date"
        elif (place / task.name).folder.is_dir():
            state = "unfinished"
        done = record if state == "done" else {}
        row = {"task": task.name, "state": state}
        row |= {name: done[name] for name in ("seconds", "energy_wh") if name in done}
        if estimate and state != "done":
            try:
                row |= estimator.estimate(task.study)._asdict()
            except (NeurodlError, OSError, ValueError) as error:
                row["problem"] = str(error) or type(error).__name__
        rows.append(row)
    columns = ["task", "state", "seconds", "energy_wh"] + list(Estimate._fields) * estimate
    return pd.DataFrame(rows, columns=columns + ["problem"] * any("problem" in row for row in rows))


def run_sweep(path: str | Path, out: str | Path | None = None, *, on: str | None = None) -> Path:
    """Run every study of a file that is not done yet, and write an index of all results.

    What is done, of the same study and the same inputs, is left as it is: an interrupted sweep
    goes on, and a changed input runs only what depends on it again. Inputs are the files that the
    study names; a newer neurodl, or other files of a dataset by name, change nothing by
    themselves. Several processes may run the same sweep at once: each takes what no other is at.

    Parameters
    ----------
    path : str or Path
        A study file; see `load_sweep`.
    out : str or Path, optional
        The folder for the results, or a URL; by default as of `run_study`.
    on : str, optional
        ``"dask"`` runs the studies on workers, several at once: processes on this machine, or
        jobs of SLURM, as the file's [cluster] says. The address of a Dask scheduler runs them on
        its workers, which must see the same inputs, and the same results unless these are at a
        URL.

    Returns
    -------
    Path
        A folder with a results folder for each task, and index.html, which compares them. Of
        results in a store, the copy on this machine.

    Raises
    ------
    MissingFileError, ConfigError
        See `load_sweep`.
    NeurodlError
        Some of the studies failed. The others are complete; the message says which failed, why.
    StorageError
        A store cannot be read or written.
    """
    tasks = load_sweep(path)
    place = sweep_place(path, out, tasks)
    place.folder.mkdir(parents=True, exist_ok=True)
    records = records_of(place / task.name for task in tasks)
    waiting = [
        task
        for task, record in zip(tasks, records, strict=True)
        if not record or record.get("key") != study_key(task.study)
    ]
    if on is None:
        failed = _run_here(waiting, place)
    else:
        section = tasks[0].study.cluster or ClusterSection.model_validate({})
        failed = run_on(on, waiting, place, section) if waiting else {}
    whole = []
    for task in tasks:
        if task.name not in failed:
            try:
                whole.append((place / task.name).pull())
            except NeurodlError as error:
                failed[task.name] = str(error)
    if whole and tasks[0].name:
        index = report(whole, title=tasks[0].study.study.name).save(place.folder / INDEX)
        place.upload([index.with_suffix(".tsv").name, index.name])
    if failed:
        said = "\n".join(f"  {name}: {error}" for name, error in failed.items())
        others = f"; the others are complete in {place}" if whole else ""
        raise NeurodlError(
            f"{len(failed)} of {len(tasks)} studies failed{others}. Run it again to go on.\n{said}"
        )
    return place.folder


def run_task(task: Task, place: Place) -> str:
    """Run one study, unless it is done, and return what went wrong, if anything.

    Another process that is at the same study is awaited.
    """
    with claimed((place / task.name).folder):
        return "" if _is_done(task, place) else _run(task, place)


def _run(task: Task, place: Place) -> str:
    try:
        run_study(task.study, place / task.name)
    except (NeurodlError, OSError, ValueError) as error:
        logger.error("%s failed: %s", task.name, error)
        return str(error) or type(error).__name__
    return ""


def _run_here(tasks: Sequence[Task], place: Place) -> dict[str, str]:
    """Run studies one after another, and return what went wrong, by the name of the task."""
    failed: dict[str, str] = {}
    busy = []
    for number, task in enumerate(tasks, start=1):
        try:
            with claimed((place / task.name).folder, patience=0):
                if _is_done(task, place):
                    logger.info("%s: done meanwhile", task.name)
                    continue
                logger.info("%s: %d of %d", task.name, number, len(tasks))
                failed[task.name] = _run(task, place)
        except Busy:
            busy.append(task)
    for task in busy:  # what others are at is left for later: there is nothing else to do
        failed[task.name] = run_task(task, place)
    return {name: said for name, said in failed.items() if said}


def _places(content: Mapping[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return the tables and keys that are given, of those that may be lists."""
    found = []
    for section, key in SWEPT:
        tables = content.get(section, [])
        for table in tables if isinstance(tables, list) else [tables]:
            if isinstance(table, dict) and key in table:
                found.append((table, key))
    return found


def sweep_place(path: str | Path, out: str | Path | None, tasks: Sequence[Task]) -> Place:
    """Return where the results of a sweep go."""
    if out:
        return Place.of(out)
    return default_place(tasks[0].study.study, Path(path).expanduser().resolve().parent)


def _is_done(task: Task, place: Place) -> bool:
    record = (place / task.name).record()
    return bool(record) and record.get("key") == study_key(task.study)


def _file_name(value: str) -> str:
    return re.sub(r"[^\w.-]+", "-", value).strip("-.") or "none"
