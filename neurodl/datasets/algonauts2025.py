"""Algonauts 2025: fMRI of four subjects who watched 65 hours of movies (Courtois NeuroMod)."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.datasets.assemble import check_shape
from neurodl.datasets.experiment import Experiment
from neurodl.errors import FileFormatError, UnknownNameError, did_you_mean, listed
from neurodl.io.hdf5 import open_hdf5, stored
from neurodl.io.plain import read_table
from neurodl.stimuli import Stimuli

logger = logging.getLogger(__name__)
TR = 1.49
N_PARCELS = 1000
ATLAS = "space-MNI152NLin2009cAsym_atlas-Schaefer18_parcel-1000Par7Net"
FILES = {"friends": "desc-s123456_bold", "movie10": "bold"}
KEY = re.compile(r"ses-(?P<session>\d+)_task-(?P<part>[a-z0-9]+?)(?:_run-(?P<run>\d))?")
FRIENDS = re.compile(r"s0?(?P<season>\d)e\d\d[a-z]")
MOVIES = ("bourne", "figures", "life", "wolf")


class _Run(NamedTuple):
    key: str
    session: str
    part: str
    run: str
    movie: str
    path: Path
    length: int = 0

    @property
    def label(self) -> str:
        return f"{self.part}_run-{self.run}" if self.run else self.part


def load_algonauts2025(
    root: Path,
    subject: int = 1,
    movies: str | Iterable[str] | None = None,
    parts: Iterable[str] | None = None,
) -> Experiment:
    """Open the data of the Algonauts Project 2025.

    Parameters
    ----------
    root : Path
        The folder with ``fmri`` and, if wanted, ``stimuli``.
    subject : {1, 2, 3, 5}
    movies : str or iterable of str, optional
        Of "friends-s1" ... "friends-s6", "friends" (all six), "bourne", "figures", "life", "wolf"
        and "movie10" (these four); all by default. Nothing else is read.
    parts : iterable of str, optional
        Only these parts, such as "s01e02a" or "bourne01".

    Returns
    -------
    Experiment
        Responses with dims ``(time, parcel)``, float32, attr tr = 1.49 s. Coords time (start of
        the sample), run, part, movie and session along time. "figures" and "life" were
        shown twice: their runs are called "life01_run-1" and "life01_run-2", with the part
        "life01", so ``groups="part"`` keeps both in one fold and
        ``align(..., runs={run: part})`` finds the features. Coord label (parcel) is the number in
        the atlas, so that `Experiment.to_nifti` works. Stimuli, if they are there, are the movies'
        parts; events are the words of the transcripts with onset and duration [s].

    Raises
    ------
    UnknownNameError
        There is no such movie, or the subject lacks the part.
    MissingFileError, FileFormatError
        A file is missing or holds something else.

    References
    ----------
    Gifford et al. (2025), The Algonauts Project 2025 Challenge: How the human brain makes sense of
    multimodal movies, arXiv:2501.00504.
    """
    folder = root / "fmri" / f"sub-{subject:02d}"
    wanted = _movies(movies)
    parts = None if parts is None else [parts] if isinstance(parts, str) else list(parts)
    found: list[_Run] = []
    there: list[str] = []
    for task, ending in FILES.items():
        if not any((movie in MOVIES) == (task == "movie10") for movie in wanted):
            continue
        path = folder / "func" / f"sub-{subject:02d}_task-{task}_{ATLAS}_{ending}.h5"
        with open_hdf5(path) as file:
            runs = [_parsed(key, path) for key in file]
            runs.sort(key=lambda run: (run.movie, run.part, run.run))
            there += [run.part for run in runs if run.movie in wanted]
            for run in runs:
                if run.movie in wanted and (parts is None or run.part in parts):
                    dataset = stored(file, run.key)
                    check_shape(dataset, (None, N_PARCELS), f"{path}: {run.key}")
                    found.append(run._replace(length=len(dataset)))
    lacking = [part for part in parts or () if part not in there]
    if lacking or not found:
        near = did_you_mean(str((lacking or [""])[0]), there)
        raise UnknownNameError(
            f"Subject {subject} has no responses to {listed(lacking or wanted)}: some parts were "
            f"not recorded. {near}"
        )
    return Experiment(
        stimuli=_stimuli(root, found),
        responses=_joined(found, subject, folder),
        events=_words(root, found),
        name="algonauts2025",
    )


def _movies(movies: str | Iterable[str] | None) -> list[str]:
    """Return the movies that are meant, each season of Friends by itself."""
    groups = {"friends": [f"friends-s{season}" for season in range(1, 7)], "movie10": list(MOVIES)}
    single = [one for group in groups.values() for one in group]
    given = (
        list(groups) if movies is None else [movies] if isinstance(movies, str) else list(movies)
    )
    unknown = [name for name in given if name not in [*single, *groups]]
    if unknown or not given:
        near = did_you_mean(unknown[0] if unknown else "", [*groups, *single])
        raise UnknownNameError(f"There are no responses to {listed(unknown) or 'nothing'}. {near}")
    wanted = {one for name in given for one in groups.get(name, [name])}
    return [name for name in single if name in wanted]


def _parsed(key: str, path: Path) -> _Run:
    """Return what a key such as ``ses-003_task-s01e01a`` says."""
    match = KEY.fullmatch(key)
    friends = match and FRIENDS.fullmatch(match["part"])
    movie = match and next((name for name in MOVIES if match["part"].startswith(name)), None)
    if not match or not (friends or movie):
        raise FileFormatError(f"There is an unknown run {key!r}; expected 'ses-003_task-s01e01a'.")
    name = f"friends-s{friends['season']}" if friends else str(movie)
    return _Run(key, match["session"], match["part"], match["run"] or "", name, path)


def _joined(runs: list[_Run], subject: int, folder: Path) -> xr.DataArray:
    """Read all runs, one after the other."""
    lengths = [run.length for run in runs]
    joined = np.empty((sum(lengths), N_PARCELS), np.float32)
    stop = 0
    for path in dict.fromkeys(run.path for run in runs):
        with open_hdf5(path) as file:
            for run in (run for run in runs if run.path == path):
                joined[stop : stop + run.length] = stored(file, run.key)[()]
                stop += run.length
    coords: dict[str, Any] = {
        "time": np.concatenate([np.arange(length) * TR for length in lengths]),
        "label": ("parcel", np.arange(1, N_PARCELS + 1)),
        "hemisphere": ("parcel", np.repeat(["left", "right"], N_PARCELS // 2)),
    }
    labels = {
        "run": [run.label for run in runs],
        "part": [run.part for run in runs],
        "movie": [run.movie for run in runs],
        "session": [run.session for run in runs],
    }
    coords |= {name: ("time", np.repeat(values, lengths)) for name, values in labels.items()}
    attrs: dict[str, Any] = {
        "units": "z-scored BOLD",
        "tr": TR,
        "subject": f"sub-{subject:02d}",
        "space": "MNI152NLin2009cAsym",
    }
    atlas = folder / "atlas" / f"sub-{subject:02d}_{ATLAS}_desc-dseg_parcellation.nii.gz"
    if atlas.is_file():
        attrs["atlas"] = str(atlas)
    return xr.DataArray(joined, dims=("time", "parcel"), coords=coords, attrs=attrs)


def _stimuli(root: Path, runs: Sequence[_Run]) -> Stimuli | None:
    """Return the parts of the movies, or None where some are not there."""
    files = {}
    for run in runs:
        season = run.movie.removeprefix("friends-")
        inside = f"friends/{season}/friends_" if season != run.movie else f"movie10/{run.movie}/"
        files[run.part] = root / "stimuli" / "movies" / f"{inside}{run.part}.mkv"
    missing = [file.name for file in files.values() if not file.is_file()]
    if missing:
        logger.info("no stimuli: %d movies are missing (%s)", len(missing), listed(missing))
        return None
    stimuli = Stimuli.from_files(list(files.values()), list(files))
    stimuli.table["run"] = list(files)
    return stimuli


def _words(root: Path, runs: Sequence[_Run]) -> pd.DataFrame | None:
    """Return the words of the transcripts, or None where there are none."""
    tables = []
    for run in runs:
        season = run.movie.removeprefix("friends-")
        inside = (
            f"friends/{season}/friends_{run.part}.tsv"
            if season != run.movie
            else f"movie10/{run.movie}/movie10_{run.part}.tsv"
        )
        path = root / "stimuli" / "transcripts" / inside
        if path.is_file():
            tables.append(_words_of(path).assign(run=run.label))
    return pd.concat(tables, ignore_index=True) if tables else None


def _words_of(path: Path) -> pd.DataFrame:
    """Return the words of one transcript, in which a row is a TR and holds lists as text."""
    table = read_table(path)
    columns = {"word": "words_per_tr", "onset": "onsets_per_tr", "duration": "durations_per_tr"}
    lacking = [column for column in columns.values() if column not in table]
    if lacking:
        raise FileFormatError(f"The transcript {path} lacks the columns {listed(lacking)}.")
    try:
        spoken = table[list(columns.values())].dropna(how="all")
        cells = [map(ast.literal_eval, map(str, row)) for row in spoken.to_numpy()]
        rows = [word for row in cells for word in zip(*row, strict=True)]
        words = pd.DataFrame(rows, columns=list(columns))
        words = words.astype({"onset": float, "duration": float})
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise FileFormatError(f"The transcript {path} holds no lists of words: {error}") from error
    return words.assign(trial_type="word")
