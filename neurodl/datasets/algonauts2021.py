"""Algonauts 2021: fMRI of ten subjects who saw 1102 silent videos of three seconds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neurodl.datasets.assemble import read_pickled_arrays, side_by_side
from neurodl.datasets.experiment import Experiment
from neurodl.errors import FileFormatError, PairingError, UnknownNameError
from neurodl.stimuli import Stimuli

logger = logging.getLogger(__name__)
ROIS = ("LOC", "FFA", "STS", "EBA", "PPA", "V1", "V2", "V3", "V4")  # in the order of submissions
VIDEOS = "AlgonautsVideos268_All_30fpsmax"
N_TRAIN, N_TEST, N_REPEATS = 1000, 102, 3
GRID = (78, 93, 71)
AFFINE = np.array(
    [[2.5, 0, 0, -96.5], [0, 2.5, 0, -132.5], [0, 0, 2.75, -78.5], [0, 0, 0, 1]]
)  # of the challenge's example.nii, MNI


def load_algonauts2021(
    root: Path,
    subject: int = 1,
    roi: Sequence[str] | None = None,
    track: str = "mini",
    n_frames: int | None = 16,
    fps: float | None = None,
) -> Experiment:
    """Open the data of the Algonauts Project 2021.

    Parameters
    ----------
    root : Path
        The folder with ``participants_data_v2021`` and, if wanted, the folder of the videos.
    subject : int
        1 to 10.
    roi : sequence of str, optional
        Of the mini track: LOC, FFA, STS, EBA, PPA, V1, V2, V3, V4.
    track : {"mini", "full"}
        Regions, or the whole brain.
    n_frames : int, optional
        How many evenly spaced frames of a video are decoded; all if None.
    fps : float, optional
        Frames per second, in place of `n_frames`: what motion energy needs.

    Returns
    -------
    Experiment
        Responses with dims ``(stimulus, repeat, voxel)``: 1000 training videos, 3 repeats, float32.
        Those to the 102 test videos were never published. Coord roi (mini track), or i, j, k with
        the affine of the grid of 78 x 93 x 71 (full track), so that `Experiment.to_nifti` works.
        Videos are called "video-0001" to "video-1102", in the order of their file names.

    Raises
    ------
    UnknownNameError, FileFormatError, PairingError
        There is no such track; a file holds something else; there are not 1102 videos.

    References
    ----------
    Cichy et al. (2021), The Algonauts Project 2021 Challenge: How the human brain makes sense of a
    world in motion, arXiv:2104.13714.
    """
    ids = [f"video-{number:04d}" for number in range(1, N_TRAIN + N_TEST + 1)]
    split = {"train": ids[:N_TRAIN], "test": ids[N_TRAIN:]}
    folder = root / "participants_data_v2021"
    attrs: dict[str, Any] = {
        "units": "beta, z-scored over videos",
        "subject": f"sub-{subject:02d}",
    }
    coords: dict[str, Any] = {"stimulus": split["train"], "repeat": np.arange(1, N_REPEATS + 1)}
    shape = (N_TRAIN, N_REPEATS, None)
    if track == "mini":
        regions = {
            name: read_pickled_arrays(
                folder / "mini_track" / f"sub{subject:02d}" / f"{name}.pkl", {"train": shape}
            )["train"]
            for name in roi or ROIS
        }
        responses = side_by_side(regions, ("stimulus", "repeat", "voxel"), coords, attrs)
    elif track == "full":
        if roi is not None:
            raise UnknownNameError("track='full' is the whole brain, without `roi`; see 'mini'.")
        path = folder / "full_track" / f"sub{subject:02d}" / "WB.pkl"
        content = read_pickled_arrays(path, {"train": shape, "voxel_mask": GRID})
        train, places = content["train"], np.nonzero(content["voxel_mask"] == 1)
        if len(places[0]) != train.shape[2]:
            raise FileFormatError(
                f"{path}: voxel_mask has {len(places[0])} voxels, train has {train.shape[2]}."
            )
        coords |= {name: ("voxel", at) for name, at in zip("ijk", places, strict=True)}
        attrs |= {"affine": AFFINE.ravel(), "shape": list(GRID), "space": "MNI152"}
        regions = {"WB": train}
        responses = side_by_side(regions, ("stimulus", "repeat", "voxel"), coords, attrs)
    else:
        raise UnknownNameError(f"`track` must be 'mini' or 'full', but got {track!r}.")
    stimuli = _videos(root / VIDEOS, ids, None if fps is not None else n_frames, fps)
    return Experiment(stimuli=stimuli, responses=responses, split=split, name="algonauts2021")


def _videos(
    folder: Path, ids: list[str], n_frames: int | None, fps: float | None
) -> Stimuli | None:
    """Return the videos, or None where they are not there."""
    files = sorted(folder.glob("*.mp4"))
    if not files:
        logger.info("no stimuli: the videos are not in %s", folder)
        return None
    if len(files) != len(ids):
        raise PairingError(
            f"{folder} holds {len(files)} videos. Responses belong to the sorted names of all "
            f"{len(ids)}, so that none may be missing."
        )
    stimuli = Stimuli.from_files(files, ids, n_frames=n_frames, fps=fps)
    stimuli.table["file"] = [file.name for file in files]
    return stimuli
