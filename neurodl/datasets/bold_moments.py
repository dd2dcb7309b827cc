"""BOLD Moments: fMRI of ten subjects who saw 1102 videos, with ten repeats of the test videos."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neurodl.datasets.assemble import first_file, read_pickled_arrays, side_by_side
from neurodl.datasets.experiment import Experiment
from neurodl.errors import MissingFileError, PairingError, UnknownNameError, listed
from neurodl.stimuli import Stimuli

logger = logging.getLogger(__name__)
PARTS = {"train": (1000, 3), "test": (102, 10)}
CEILING = "test_noiseceiling_allvoxel"
FOLDERS = {
    "A": "derivatives/versionA/MNI152/prepared_data/prepared_allvoxel_pkl/TRavg56789",
    "B": "derivatives/versionB/MNI152/prepared_allvoxel_pkl",
}
ROIS = (
    "V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4", "V3ab", "LOC", "EBA", "FFA", "OFA", "PPA",
    "RSC", "TOS", "STS", "IPS0", "IPS1-2-3", "7AL", "BA2", "PFt", "PFop", "MT",
)  # fmt: skip
ONLY_IN_B = ("MT",)


def load_bold_moments(
    root: Path,
    subject: int = 1,
    roi: Sequence[str] | None = None,
    version: str = "B",
    n_frames: int | None = 16,
) -> Experiment:
    """Open the BOLD Moments Dataset (OpenNeuro ds005165).

    Parameters
    ----------
    root : Path
        The folder with ``derivatives`` and, if wanted, the videos ``0001.mp4`` to ``1102.mp4`` in
        ``stimuli``.
    subject : int
        1 to 10.
    roi : sequence of str, optional
        Regions, both hemispheres; all by default. "V1" stands for V1v and V1d, and so on.
    version : {"B", "A"}
        B: fMRIPrep and GLMsingle, which the authors recommend. A: betas of a FIR model, averaged
        over 5 to 9 s after onset, as in Algonauts 2021; both hemispheres are one region, without
        MT.
    n_frames : int, optional
        How many evenly spaced frames of a video are decoded; all if None.

    Returns
    -------
    Experiment
        Responses with dims ``(presentation, voxel)``, float32: 1000 training videos three times,
        102 test videos ten times. Coords stimulus and repeat (presentation), roi and, in version B,
        hemisphere (voxel). The split is the published one. The ceiling, where the files hold it,
        is that of the test videos' means over ten repeats, and of no other responses.

    Raises
    ------
    UnknownNameError, MissingFileError, FileFormatError, PairingError
        There is no such version; a file is missing or holds something else; videos are missing.

    References
    ----------
    Lahner et al. (2024), Modeling short visual events through the BOLD moments video fMRI dataset
    and metadata, Nature Communications 15.
    """
    if version not in FOLDERS:
        raise UnknownNameError(f"`version` must be 'A' or 'B', but got {version!r}.")
    ids = [f"{number:04d}" for number in range(1, 1103)]
    split = {"train": ids[:1000], "test": ids[1000:]}
    regions: dict[str, np.ndarray] = {}
    sides: list[str] = []
    ceilings: list[np.ndarray] = []
    for name in roi or [name for name in ROIS if version == "B" or name not in ONLY_IN_B]:
        found = _region(root / FOLDERS[version], subject, name, version)
        regions[name] = np.concatenate([rows for _, rows, _ in found], axis=1)
        for side, rows, ceiling in found:
            sides += [side] * rows.shape[1]
            ceilings += [] if ceiling is None else [ceiling]
    coords = _presentations(split)
    if version == "B":
        coords["hemisphere"] = ("voxel", sides)
    attrs = {"units": "z-scored beta", "subject": f"sub-{subject:02d}", "space": "MNI152"}
    responses = side_by_side(regions, ("presentation", "voxel"), coords, attrs)
    return Experiment(
        stimuli=_videos(root / "stimuli", ids, n_frames),
        responses=responses,
        ceiling=_ceiling(ceilings, responses),
        split=split,
        name="bold_moments",
    )


def _region(
    folder: Path, subject: int, name: str, version: str
) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
    """Return of each hemisphere its name, the presentations x voxels, and the ceiling."""
    found = []
    if version == "B":
        paths = {side: _file_of_b(folder, subject, side[0] + name) for side in ("left", "right")}
    else:
        paths = {"": _file_of_a(folder, subject, name)}
    for side, path in paths.items():
        shapes = {f"{part}_data_allvoxel": (*size, None) for part, size in PARTS.items()}
        content = read_pickled_arrays(path, shapes)
        rows = [content[key].reshape(-1, content[key].shape[-1]) for key in shapes]
        ceiling = content.get(CEILING)
        found.append((side, np.concatenate(rows), None if ceiling is None else np.ravel(ceiling)))
    return found


def _file_of_b(folder: Path, subject: int, region: str) -> Path:
    """Return the file of a region, whose name begins with l or r."""
    start = f"sub-{subject:02d}/sub-{subject:02d}_roi-{region}_betas"
    names = [f"{start}_normalized.pkl", f"{start}-GLMsingle_type-typed_z=1.pkl"]
    return first_file(folder, names)


def _file_of_a(folder: Path, subject: int, region: str) -> Path:
    """Return the one file in whose path the subject stands, and in whose name the region."""
    alone = re.compile(rf"(?<![A-Za-z0-9]){re.escape(region)}(?![A-Za-z0-9])")
    whose = re.compile(rf"sub-?{subject:02d}(?!\d)")
    files = [
        path
        for path in sorted(folder.rglob("*.pkl"))
        if alone.search(path.name) and whose.search(path.relative_to(folder).as_posix())
    ]
    if len(files) != 1:
        raise MissingFileError(
            f"{folder} has {len(files)} files of {region} of subject {subject} in place of one "
            f"({listed([path.name for path in files])})."
        )
    return files[0]


def _presentations(split: dict[str, list[str]]) -> dict[str, Any]:
    """Return the coords of the presentations: of each video all repeats, one after the other."""
    stimulus: list[str] = []
    repeat: list[int] = []
    for part, (n_videos, n_repeats) in PARTS.items():
        stimulus += np.repeat(split[part], n_repeats).tolist()
        repeat += list(range(1, n_repeats + 1)) * n_videos
    return {"stimulus": ("presentation", stimulus), "repeat": ("presentation", repeat)}


def _ceiling(percent: list[np.ndarray], responses: xr.DataArray) -> xr.DataArray | None:
    """Return the published ceilings as reliabilities, where all regions have one."""
    joined = np.concatenate(percent) if percent else np.empty(0)
    if len(joined) != responses.sizes["voxel"]:
        return None
    coords = {key: one for key, one in responses.coords.items() if one.dims == ("voxel",)}
    attrs = {"units": "reliability (variance)", "method": "published", "n_averaged": "all"}
    return xr.DataArray((joined / 100).astype(np.float32), dims="voxel", coords=coords, attrs=attrs)


def _videos(folder: Path, ids: list[str], n_frames: int | None) -> Stimuli | None:
    """Return the videos, or None where they are not there."""
    files = [folder / f"{name}.mp4" for name in ids]
    missing = [file.name for file in files if not file.is_file()]
    if len(missing) == len(files):
        logger.info("no stimuli: the videos are not in %s", folder)
        return None
    if missing:
        raise PairingError(f"{len(missing)} videos are not in {folder}: {listed(missing)}.")
    return Stimuli.from_files(files, ids, n_frames=n_frames)
