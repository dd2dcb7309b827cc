"""One subject's runs of a task from a BIDS folder: responses and events, raw or from fMRIPrep."""

from __future__ import annotations

import glob
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import xarray as xr

from neurodl.errors import (
    FileFormatError,
    MissingFileError,
    PairingError,
    SchemaError,
    UnknownNameError,
    did_you_mean,
    listed,
)
from neurodl.io.events import read_events
from neurodl.io.fmriprep import load_confounds, remove_confounds
from neurodl.io.nifti import read_nifti
from neurodl.io.volumes import check_same_grid, header_tr, open_image
from neurodl.schema import check_responses

logger = logging.getLogger(__name__)


def read_bids(
    root: str | Path,
    *,
    subject: str,
    task: str,
    session: str | None = None,
    runs: Sequence[str] | None = None,
    derivatives: str | Path | None = "auto",
    space: str | None = None,
    filters: Mapping[str, str] | None = None,
    mask: Any = "auto",
    confounds: Sequence[str] | None = None,
    confounds_options: Mapping[str, Any] | None = None,
    detrend: bool | int = False,
    zscore: bool = False,
    tr: float | None = None,
    **nifti_options: Any,
) -> tuple[xr.DataArray, pd.DataFrame]:
    """Read the runs and events of one subject and task.

    Parameters
    ----------
    root : str or Path
        The BIDS dataset, with the events.
    subject, task : str
        With or without ``sub-`` and ``task-``.
    session : str, optional
        One session; by default all.
    runs : sequence of str, optional
        Some of the runs, by their label; by default all.
    derivatives : str, Path, "auto" or None
        Where the preprocessed runs (``desc-preproc_bold``) and brain masks are: a folder, relative
        to `root` or not. "auto" takes the one in ``root/derivatives`` if there is one, else the
        raw runs; None the raw runs.
    space : str, optional
        Which of several output spaces to read, such as "MNI152NLin2009cAsym".
    filters : mapping of str to str, optional
        Further entities that file names must have: ``{"echo": "2"}``; "" for none.
    mask : path, image, masker or "auto"
        See `read_nifti`; "auto" takes the voxels in the brain masks of all runs if there are
        any in the derivatives.
    confounds : sequence of str, optional
        Strategies of nilearn's `load_confounds`, such as ``("motion", "wm_csf")``, regressed out
        of each run, together with the trend. Volumes that it censors (scrubbing, non-steady
        state) are left out; the others keep their times.
    confounds_options : mapping, optional
        Passed to `load_confounds`: ``{"motion": "basic"}``.
    detrend, zscore, tr, **nifti_options
        See `read_nifti`. The TR is checked against the JSON files.

    Returns
    -------
    responses : xarray.DataArray
        Dims ``(time, voxel)``, coord run: the label in the file names, "1" if there is none,
        ``ses-A_run-1`` where there are several sessions, which are then a coord too.
    events : pandas.DataFrame
        onset [s], duration [s], run as in `responses`, and all other columns of the files.

    Raises
    ------
    MissingFileError, FileFormatError
        There are no such files, or they cannot be read; the message says where was looked.
    PairingError
        Several files claim to be the same run; the message says how to choose.
    """
    root = Path(root).expanduser()
    subject, task = str(subject).removeprefix("sub-"), str(task).removeprefix("task-")
    folder, is_derivative = _source_folder(root, derivatives, subject, task)
    if confounds is not None and not is_derivative:
        raise MissingFileError(
            f"`confounds` come from fMRIPrep, but there are no preprocessed runs of sub-{subject} "
            f"in {root}. Say where they are: derivatives=..."
        )
    wanted = {"task": task, **(filters or {})}
    wanted |= {"desc": "preproc"} if is_derivative and "desc" not in wanted else {}
    wanted |= {"ses": str(session).removeprefix("ses-")} if session is not None else {}
    wanted |= {"space": space} if space is not None else {}
    bold = _named_runs(_find_bold(folder, subject, wanted), runs)
    sidecars = {run: _sidecar(path, folder, root) for run, path in bold.items()}
    sessions = {run: _entities(path).get("ses", "") for run, path in bold.items()}
    if isinstance(mask, str) and mask == "auto":
        mask = _common_mask(folder, subject, list(bold.values()))
    responses = read_nifti(
        list(bold.values()),
        mask,
        runs=list(bold),
        tr=_agreed_tr(sidecars, next(iter(bold.values()))) if tr is None else tr,
        detrend=detrend if confounds is None else False,
        zscore=zscore if confounds is None else False,
        **{"subject": f"sub-{subject}", "space": space, **nifti_options},
    )
    responses.attrs["task"] = task
    if any(sessions.values()):
        responses["session"] = ("time", [sessions[run] for run in responses["run"].values])
    start = next(iter(sidecars.values())).get("StartTime")
    if start is not None:
        responses.attrs["slice_time_ref"] = float(start) / responses.attrs["tr"]
    if confounds is not None:
        options = confounds_options or {}
        loaded = {run: load_confounds(path, confounds, **options) for run, path in bold.items()}
        responses = remove_confounds(responses, loaded, detrend=detrend, zscore=zscore)
    return check_responses(responses), _events(bold, sessions, root, folder)


def _source_folder(
    root: Path, derivatives: str | Path | None, subject: str, task: str
) -> tuple[Path, bool]:
    """Return the folder that the runs are read from, and whether they are preprocessed."""
    if not root.is_dir():
        raise MissingFileError(f"The BIDS folder {root} does not exist.")
    preprocessed = {"task": task, "desc": "preproc"}
    if derivatives is None:
        return root, False
    if derivatives != "auto":
        folder = next((f for f in (root / derivatives, Path(derivatives)) if f.is_dir()), None)
        if folder is None:
            raise MissingFileError(f"The derivatives {derivatives} do not exist in {root}.")
        return folder, True
    candidates = [root, root / "derivatives", *sorted(root.glob("derivatives/*/"))]
    found = [f for f in candidates if _find(f, subject, "bold", preprocessed)]
    if len(found) > 1:
        names = [str(folder.relative_to(root)) for folder in found]
        raise PairingError(
            f"Several folders have preprocessed runs of sub-{subject}, task-{task}: "
            f"{listed(names)}. Say which: derivatives={names[0]!r}."
        )
    logger.info("reading %s", f"preprocessed runs from {found[0]}" if found else "raw runs")
    return (found[0], True) if found else (root, False)


def _find(
    folder: Path, subject: str, suffix: str, wanted: Mapping[str, str], kind: str = "nii*"
) -> list[Path]:
    """Return the subject's functional files with this suffix and these entities, sorted."""
    from nilearn.interfaces.bids import get_bids_files

    files = get_bids_files(
        glob.escape(str(folder)),
        file_tag=suffix,
        file_type=kind,
        sub_label=subject,
        modality_folder="func",
        filters=list(wanted.items()),
    )
    return [Path(file) for file in files]


def _entities(path: Path) -> dict[str, str]:
    parts = path.name.split(".", 1)[0].split("_")[:-1]
    return {key: label for key, _, label in (part.partition("-") for part in parts)}


def _find_bold(folder: Path, subject: str, wanted: Mapping[str, str]) -> list[Path]:
    """Return the runs that were asked for; none is an error that says what there is."""
    files = _find(folder, subject, "bold", wanted)
    if not files:
        people = sorted(path.name for path in folder.glob("sub-*") if path.is_dir())
        name = "_*".join(f"{entity}-{label}" for entity, label in wanted.items() if label)
        raise MissingFileError(
            f"There is no file sub-{subject}_*{name}*_bold.nii.gz in {folder}/sub-{subject}. The "
            f"subjects there are {listed(people) or 'none'}."
        )
    return files


def _named_runs(files: Sequence[Path], runs: Sequence[str] | None) -> dict[str, Path]:
    """Return the bold file of each run by name, in order of session and run."""
    by_run: dict[tuple[str, str], Path] = {}
    for path in files:
        key = _entities(path).get("ses", ""), _entities(path).get("run", "1")
        if key in by_run:
            raise PairingError(_ambiguous(by_run[key], path))
        by_run[key] = path
    chosen = [str(run).removeprefix("run-") for run in runs or []]
    labels = [run for _, run in by_run]
    for run in chosen:
        if run not in labels:
            raise UnknownNameError(f"There is no run {run!r}. {did_you_mean(run, labels)}")
    several = len({session for session, _ in by_run}) > 1
    order = sorted(by_run, key=lambda key: (key[0], int(key[1]) if key[1].isdigit() else key[1]))
    return {
        f"ses-{key[0]}_run-{key[1]}" if several else key[1]: by_run[key]
        for key in order
        if not chosen or key[1] in chosen
    }


def _ambiguous(one: Path, other: Path) -> str:
    """Return an error message that says how to choose between two files of the same run."""
    first, second = _entities(one), _entities(other)
    entity = next(key for key in {**first, **second} if first.get(key) != second.get(key))
    values = first.get(entity, ""), second.get(entity, "")
    choice = f"space={values[0] or values[1]!r}" if entity == "space" else ""
    choice = choice or f"filters={{{entity!r}: {values[0]!r}}}"
    return (
        f"Two files are the same run: {one.name} and {other.name}. They differ in {entity!r} "
        f"({values[0]!r} and {values[1]!r}); say which to read, such as {choice}."
    )


def _inherited(path: Path, folder: Path, suffix: str, kind: str) -> list[Path]:
    """Return the files that describe a run by BIDS' inheritance principle, nearest first.

    They lie in the run's folder or above it, and have no entity that contradicts the run's.
    """
    mine = _entities(path)
    found = []
    inside = path.parent
    for level in (inside, *inside.parents):
        beside = [*level.glob(f"*_{suffix}.{kind}"), *level.glob(f"{suffix}.{kind}")]
        fitting = [
            file
            for file in beside
            if all(mine.get(key) == label for key, label in _entities(file).items())
        ]
        found += sorted(fitting, key=lambda file: -len(_entities(file)))
        if level == folder:
            break
    return found


def _raw_folder(path: Path, folder: Path, root: Path) -> Path:
    """Return where a run would lie in the raw dataset: its place in `folder`, under `root`."""
    return root / path.relative_to(folder)


def _sidecar(path: Path, folder: Path, root: Path) -> dict[str, Any]:
    """Return what the JSON files say about a run; those of the run itself come first."""
    files = _inherited(path, folder, "bold", "json")
    if folder != root:
        files += _inherited(_raw_folder(path, folder, root), root, "bold", "json")
    known: dict[str, Any] = {}
    for file in files:
        try:
            known = json.loads(file.read_text(encoding="utf-8")) | known
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise FileFormatError(f"Cannot read {file}: {error}") from error
    return known


def _agreed_tr(sidecars: Mapping[str, Mapping[str, Any]], first: Path) -> float | None:
    """Return the TR of the JSON files [s], None if only the headers have it."""
    stated = {run: known.get("RepetitionTime") for run, known in sidecars.items()}
    known_trs = {tr for tr in stated.values() if tr is not None}
    if not known_trs:
        return None
    if len(known_trs) > 1:
        each = ", ".join(f"run {run}: {tr} s" for run, tr in stated.items())
        raise SchemaError(f"The JSON files give different TRs ({each}). Read the runs apart.")
    tr = float(known_trs.pop())
    image = open_image(first)
    if float(image.header["pixdim"][4]) > 0 and image.header.get_xyzt_units()[1] != "unknown":
        in_header = header_tr(image)
        if abs(in_header - tr) > 0.01 * tr:
            raise SchemaError(
                f"The TR is {tr:g} s by the JSON file, but {in_header:g} s by the header of "
                f"{first}. Say which is right: tr=..."
            )
    return tr


def _common_mask(folder: Path, subject: str, bold: Sequence[Path]) -> Any:
    """Return the voxels inside the brain masks of all runs, or "auto" if there are no masks."""
    masks: list[Path] = []
    for path in bold:
        entities = _entities(path)
        wanted = {key: entities.get(key, "") for key in ("task", "ses", "run", "space", "res")}
        masks += _find(folder, subject, "mask", {**wanted, "desc": "brain"})
    if not masks:
        return "auto"
    if len(masks) != len(bold):
        logger.warning("%d runs have %d brain masks; using all of these", len(bold), len(masks))
    opened = [open_image(mask) for mask in masks]
    inside = np.asanyarray(opened[0].dataobj) > 0
    for mask in opened[1:]:
        check_same_grid(opened[0].shape, opened[0].affine, "the first brain mask", mask)
        inside &= np.asanyarray(mask.dataobj) > 0
    logger.info("mask='auto' chose the %d voxels in %d brain masks", inside.sum(), len(masks))
    return nib.Nifti1Image(inside.astype(np.uint8), opened[0].affine)


def _events(
    bold: Mapping[str, Path], sessions: Mapping[str, str], root: Path, folder: Path
) -> pd.DataFrame:
    """Return the events of all runs in one table; an empty one if no run has any."""
    tables, missing = [], []
    for run, path in bold.items():
        raw = _raw_folder(path, folder, root)
        files = [
            *_inherited(raw, root, "events", "tsv"),
            *_inherited(path, folder, "events", "tsv"),
        ]
        if not files:
            missing.append(run)
            continue
        table = read_events(files[0]).assign(run=run)
        tables.append(table.assign(session=sessions[run]) if sessions[run] else table)
    if tables and missing:
        raise MissingFileError(
            f"The runs {listed(missing)} have no events.tsv in {root}, but others have. Leave them "
            "out with runs=[...], or add the file (a header alone, if nothing happened)."
        )
    if not tables:
        logger.warning("no run has an events.tsv: the table of events is empty")
        return pd.DataFrame(columns=["onset", "duration", "trial_type", "run"])
    return pd.concat(tables, ignore_index=True)
