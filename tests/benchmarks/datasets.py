"""Opening one subject, session or region of large datasets: seconds, memory, and what is there.

    python tests/benchmarks/datasets.py
    python tests/benchmarks/datasets.py nsd steinmetz2019

Files of the published sizes are made up in a temporary folder, one dataset after the other (up to
3 GB). Every dataset is opened in a process of its own.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import scipy.io
from PIL import Image
from ridge import run_apart

from neurodl import load_dataset

SPACE = "space-MNI152NLin2009cAsym_atlas-Schaefer18_parcel-1000Par7Net"
CLASSES = {
    "prf-visualrois": ["V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"],
    "floc-bodies": ["EBA"],
    "floc-faces": ["OFA"],
    "floc-places": ["PPA"],
    "floc-words": ["OWFA"],
    "streams": ["early", "ventral", "lateral", "parietal"],
}


def algonauts2023(root: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Subject 1: 9841 images, 19,004 + 20,544 vertices."""
    folder = root / "subj01"
    images, fmri = (
        folder / "training_split/training_images",
        folder / "training_split/training_fmri",
    )
    masks = folder / "roi_masks"
    for one in (images, fmri, masks):
        one.mkdir(parents=True)
    for number in range(1, 9842):
        (images / f"train-{number:04d}_nsd-{number:05d}.png").touch()
    for side, count in (("lh", 19004), ("rh", 20544)):
        stored = np.lib.format.open_memmap(
            fmri / f"{side}_training_fmri.npy", "w+", np.float32, (9841, count)
        )
        for start in range(0, 9841, 512):
            stored[start : start + 512] = rng.standard_normal((min(512, 9841 - start), count))
        stored.flush()
        nodes = np.zeros(163842, np.int64)
        nodes[:count] = 1
        np.save(masks / f"{side}.all-vertices_fsaverage_space.npy", nodes)
        for name, regions in CLASSES.items():
            numbers = rng.integers(0, 8 * len(regions) + 1, count)
            np.save(
                masks / f"{side}.{name}_challenge_space.npy",
                np.where(numbers > len(regions), 0, numbers),
            )
    for name, regions in CLASSES.items():
        mapping = {0: "Unknown", **dict(enumerate(regions, 1))}
        np.save(masks / f"mapping_{name}.npy", np.array(mapping, object), allow_pickle=True)
    return [{"subject": 1, "roi": "V1"}, {"subject": 1}]


def nsd(root: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Subject 1, two sessions of 750 volumes of 81 x 104 x 83."""
    shape = (81, 104, 83)
    betas = root / "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
    regions = root / "nsddata/ppdata/subj01/func1pt8mm/roi"
    labels = root / "nsddata/freesurfer/subj01/label"
    design = root / "nsddata/experiments/nsd"
    for folder in (betas, regions, labels, design):
        folder.mkdir(parents=True)
    for session in (1, 2):
        with h5py.File(betas / f"betas_session{session:02d}.hdf5", "w") as file:
            stored = file.create_dataset(
                "betas", (750, *shape[::-1]), "i2", chunks=(1, *shape[::-1])
            )
            for trial in range(750):
                stored[trial] = rng.integers(-3000, 3000, shape[::-1], np.int16)
    place = np.zeros(shape, np.int16)
    place[20:50, 5:30, 20:41] = 1  # 15,750 voxels
    nib.save(nib.Nifti1Image(place, np.eye(4)), regions / "nsdgeneral.nii.gz")
    for name, names in CLASSES.items():
        nib.save(nib.Nifti1Image(place, np.eye(4)), regions / f"{name}.nii.gz")
        lines = [f"{number} {one}" for number, one in enumerate(names, 1)]
        (labels / f"{name}.mgz.ctab").write_text("\n".join(lines))
    order = rng.integers(1, 10001, (1, 30000))
    images = np.stack([rng.permutation(73000)[:10000] + 1 for _ in range(8)])
    content = {"masterordering": order, "subjectim": images, "sharedix": images[:1, :1000]}
    scipy.io.savemat(design / "nsd_expdesign.mat", content)
    return [{"subject": 1, "sessions": [1, 2]}]


def steinmetz2019(root: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    """One part of 13 sessions of 800 neurons and 250 trials, and the exact times."""
    neurons, trials = 800, 250
    areas = rng.choice(["VISp", "CA1", "MOs", "root"], neurons)
    sessions = []
    for number in range(13):
        session = {
            "spks": rng.binomial(1, 0.05, (neurons, trials, 250)).astype(np.int8),
            "spks_passive": rng.binomial(1, 0.05, (neurons, 100, 250)).astype(np.int8),
            "wheel": rng.standard_normal((1, trials, 250)),
            "pupil": rng.standard_normal((3, trials, 250)),
            "contrast_left": rng.choice([0, 0.5], trials),
            "contrast_right": rng.choice([0, 0.5], trials),
            "brain_area": areas,
            "mouse_name": f"mouse{number}",
        }
        sessions.append(session)
    np.savez(root / "steinmetz_part0.npz", dat=np.array(sessions, object))
    del sessions
    times = []
    for _ in range(4):  # of 39; each takes as long
        one = np.empty((neurons, trials), object)
        for unit in range(neurons):
            for trial in range(trials):
                one[unit, trial] = rng.random(rng.poisson(8)) * 2.5
        times.append({"ss": one})
    np.savez(root / "steinmetz_st.npz", dat=np.array(times, object))
    return [{"session": 11}, {"session": 11, "roi": "VISp"}, {"session": 2, "spike_times": True}]


def algonauts2025(root: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Subject 1: 128,700 samples of Friends in 292 parts."""
    func = root / "fmri/sub-01/func"
    func.mkdir(parents=True)
    with h5py.File(func / f"sub-01_task-friends_{SPACE}_desc-s123456_bold.h5", "w") as file:
        for season in range(1, 7):
            for episode in range(1, 25):
                for half in "ab":
                    values = rng.standard_normal((447, 1000)).astype(np.float32)
                    file[f"ses-001_task-s{season:02d}e{episode:02d}{half}"] = values
    with h5py.File(func / f"sub-01_task-movie10_{SPACE}_bold.h5", "w") as file:
        file["ses-001_task-bourne01"] = rng.standard_normal((400, 1000)).astype(np.float32)
    return [{"subject": 1, "movies": "friends-s1"}, {"subject": 1}]


MAKERS: dict[str, Callable[[Path, np.random.Generator], list[dict[str, Any]]]] = {
    "algonauts2023": algonauts2023,
    "nsd": nsd,
    "steinmetz2019": steinmetz2019,
    "algonauts2025": algonauts2025,
}


def opened(name: str, root: Path, options: dict[str, Any]) -> tuple[dict[str, int], float]:
    """Return the sizes of the responses, and what they take in memory [MB]."""
    responses = load_dataset(name, root=root, **options).responses
    assert responses is not None
    return {str(dim): size for dim, size in responses.sizes.items()}, responses.nbytes / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(MAKERS), choices=list(MAKERS))
    args = parser.parse_args()
    logging.disable()
    Image.init()
    for name in args.names:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["NEURODL_DATA"] = folder
            root = Path(folder)
            made = run_apart(partial(MAKERS[name], root, np.random.default_rng(0)), lambda: None, 1)
            size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
            print(f"\n{name}, {size / 1e6:.0f} MB of files")
            for options in made[2]:
                seconds, memory, found = run_apart(
                    partial(opened, name, root, options), lambda: None, 2
                )
                given = ", ".join(f"{key}={value!r}" for key, value in options.items())
                print(
                    f"{given:42s} {seconds:6.1f} s  +{memory:5.0f} MB, of which responses "
                    f"{found[1]:5.0f} MB  {found[0]}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
