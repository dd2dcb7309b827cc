"""Running a study: its script is executed, and what it computes goes into a results folder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr
from filelock import FileLock, Timeout

from neurodl.errors import NeurodlWarning, StorageError
from neurodl.io.store import atomic_path, sha256_of
from neurodl.reports import Report, report
from neurodl.runtime import describe_device, resolve_device
from neurodl.study.config import load_study, write_study
from neurodl.study.provenance import Meter, input_hashes, provenance_of, study_key
from neurodl.study.results import (
    PROVENANCE,
    SCRIPT,
    STUDY,
    Place,
    is_within,
    record_in,
)
from neurodl.study.script import analysis_script
from neurodl.study.sections import Study, StudySection


class Busy(StorageError):
    """Another run is writing to a folder."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a study computed, before anything of it is written."""

    scores: xr.Dataset
    report: Report
    warnings: tuple[str, ...]


def run_study(study: str | Path | Study, out: str | Path | Place | None = None) -> Path:
    """Run a study and return the folder of its results.

    The study becomes a script of public calls, which is what runs. Features that were extracted
    before an interruption come from the cache the next time.

    Parameters
    ----------
    study : str, Path or Study
        A study file, or what `load_study` returned.
    out : str or Path, optional
        The folder for the results, or a URL that fsspec knows, such as ``"s3://bucket/results"``;
        by default ``output`` of the study, else ``results/<name>`` beside the study file, or in
        the working folder for a `Study`.

    Returns
    -------
    Path
        A folder with report.html and its brain maps, scores.nc, table.tsv (layer x ROI),
        study.toml (the study with every default), analysis.py (the script, which gives the same
        numbers) and provenance.json (versions, seeds, hashes; written last, so that a folder
        that has it is complete). Of results in a store, the copy on this machine; what was
        computed before and could not be uploaded is only uploaded.

    Raises
    ------
    MissingFileError, ConfigError
        The study file is missing or wrong; see `load_study`.
    StorageError
        The place holds something else, cannot be written, or another run is writing there.
    """
    base = Path.cwd() if isinstance(study, Study) else Path(study).expanduser().resolve().parent
    checked = study if isinstance(study, Study) else load_study(study)
    place = Place.of(out) if out else default_place(checked.study, base)
    device = describe_device(resolve_device(checked.run.device))
    text, script = write_study(checked), analysis_script(checked)
    with claimed(place.folder, patience=0):
        place.check_ready()
        before = place.record() if place.is_remote else {}
        left = record_in(place.folder) if place.is_remote and not before else {}
        if not left or left.get("key") != study_key(checked):
            _run(checked, place.folder, device, text, script)
        place.push(before)
    return place.folder


def _run(checked: Study, folder: Path, device: str, text: str, script: str) -> None:
    """Run a study in a folder that is this process's."""
    _make_ready(folder)
    _write_text(folder / SCRIPT, script)  # the first: it tells what the folder is for
    _write_text(folder / STUDY, text)
    meter = Meter(checked.run.device)
    outcome = compute(checked, script, folder / SCRIPT, meter)
    outcome.report.save(folder / "report.html", slides=True)
    _save_table(outcome, folder / "table.tsv")
    record = provenance_of(
        checked, outcome.scores, input_hashes(checked), device, meter, outcome.warnings
    )
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    record["files"] = {name.as_posix(): sha256_of(folder / name) for name in shown}
    _write_text(folder / PROVENANCE, json.dumps(record, indent=2) + "\n")


@contextmanager
def claimed(folder: Path, patience: float = -1) -> Iterator[None]:
    """Hold a results folder for this process: two runs never write there at once.

    Parameters
    ----------
    folder : Path
    patience : float
        How long another run is awaited [s]; by default as long as it takes.

    Raises
    ------
    Busy
        Another run is writing there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # beside the folder, which may be somebody else's; the same one if this process holds it
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), is_singleton=True)
    try:
        held = lock.acquire(timeout=patience)
    except Timeout as error:
        raise Busy(
            f"Another run is writing to {folder}. Wait for it, or choose another folder: "
            "--out FOLDER, or output = '...' in [study]."
        ) from error
    with held:
        yield


def default_place(study: StudySection, base: Path) -> Place:
    """Return where the results of a study go unless it is said, for a study file in `base`."""
    return Place.of(study.output or base / "results" / _file_name(study.name))


def compute(study: Study, script: str, path: Path, meter: Meter) -> Outcome:
    """Execute the script of a study; what it warns of is kept, and warned of again."""
    namespace: dict[str, Any] = {"__name__": "neurodl_study", "__file__": str(path)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NeurodlWarning)
        exec(compile(script, str(path), "exec"), namespace)
        said = [str(one.message) for one in caught if issubclass(one.category, NeurodlWarning)]
        messages = tuple(dict.fromkeys(said))
        made = report(
            namespace["scores"],
            namespace["experiment"],
            title=study.study.title or study.study.name,
            provenance={"study": study.study.name, "script": path.name, **meter.said()},
            notes=messages,
        )
    for one in caught:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return Outcome(namespace["scores"], made, messages)


def _make_ready(folder: Path) -> None:
    """Make a folder ready for results: new, empty, or one of results, whose files are replaced."""
    known = folder / PROVENANCE
    for left in folder.glob(".*.part*"):  # by a run that was killed
        left.unlink()
    others = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file; choose another folder for the results.")
    unfinished = SCRIPT in others and "written by neurodl" in (folder / SCRIPT).read_text()[:500]
    if others and not known.is_file() and not unfinished:
        raise StorageError(
            f"{folder} is not empty and holds no results of a study. Choose another folder: "
            "--out FOLDER, or output = '...' in [study]."
        )
    if known.is_file():
        try:
            stale = json.loads(known.read_text())["files"]
        except (ValueError, KeyError) as error:
            raise StorageError(f"{known} is damaged; remove {folder} and run again.") from error
        known.unlink()
        for name in filter(is_within, stale):
            (folder / name).unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _save_table(outcome: Outcome, path: Path) -> None:
    with atomic_path(path) as temporary:
        outcome.report.table.to_csv(
            temporary, sep="\t", index=False, na_rep="n/a", float_format="%.6g"
        )


def _file_name(name: str) -> str:
    """Return a study's name as the name of a folder."""
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    return kept.strip("-.") or "study"
