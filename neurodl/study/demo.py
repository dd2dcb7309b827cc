"""The demo: simulate an experiment, analyse it as a study, and compare with the known truth."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tomli_w
import xarray as xr

from neurodl.backbones import load_backbone
from neurodl.datasets import write_simulated
from neurodl.errors import MissingFileError, StorageError, UnknownNameError
from neurodl.io.store import atomic_path, load
from neurodl.reports.tables import ALL, roi_members, roi_table
from neurodl.study.run import run_study

logger = logging.getLogger(__name__)
BACKBONE = "torchvision:resnet18"
BETAS = "lsa"
VOXEL = ["i", "j", "k"]


@dataclass(frozen=True, eq=False)
class Demo:
    """What the demo found.

    Parameters
    ----------
    results : Path
        The results folder; see `run_study`.
    table : pandas.DataFrame
        Mean r of each layer (rows) in each ROI (columns).
    recovered : pandas.DataFrame
        One row per ROI that responds: best (layer), r, known (the mean correlation that the true
        responses would reach), share (mean of r over known) and estimated (the ceiling as
        told from repeats).
    weights : dict
        Which weights each network had.
    """

    results: Path
    table: pd.DataFrame
    recovered: pd.DataFrame
    weights: dict[str, str]


def run_demo(
    folder: str | Path,
    *,
    backbone: str = BACKBONE,
    weights: str | Path | None = None,
    pretrained: bool = False,
    seed: int = 0,
    n_images: int = 240,
    n_runs: int = 8,
) -> Demo:
    """Simulate an fMRI experiment, write it as a BIDS folder, and run a study on it.

    Parameters
    ----------
    folder : str or Path
        Gets ``experiment/`` (the BIDS folder), ``study.toml`` and ``results/``. One that a demo
        wrote before is replaced; any other has to be empty.
    backbone : str
        The network to compare with pixels and Gabor filters.
    weights : str or Path, optional
        A file of weights for it.
    pretrained : bool
        Whether to download its published weights; by default it is an untrained control, so that
        nothing is downloaded.
    seed, n_images, n_runs : int
        See `simulate`.
    """
    folder = Path(folder).expanduser().absolute()
    _check_free(folder)
    _check_network(backbone, weights)
    logger.info("simulating %d images in %d runs", n_images, n_runs)
    write_simulated(
        folder / "experiment", overwrite=True, n_images=n_images, n_runs=n_runs, seed=seed
    )
    study = folder / "study.toml"
    with atomic_path(study) as temporary:
        temporary.write_text(_study_file(backbone, weights, pretrained, seed), encoding="utf-8")
    logger.info("analysing it as %s says", study)
    results = run_study(study, out=folder / "results")
    scores = load(results / "scores.nc")
    truth = _aligned(load(folder / "experiment" / "truth.nc"), scores)
    means = roi_table(scores, seed)
    table = means.pivot(index="layer", columns="roi", values="r").loc[
        means["layer"].unique(), means["roi"].unique()
    ]
    used = dict(zip(scores["backbone"].values, scores["weights"].values, strict=True))
    recovered = recovered_ceiling(scores, truth[f"reliability_{BETAS}"])
    return Demo(results, table, recovered, {str(k): str(v) for k, v in used.items()})


def recovered_ceiling(scores: xr.Dataset, reliability: xr.DataArray) -> pd.DataFrame:
    """Return how much of a known ceiling the best layer of each responding ROI reaches.

    Parameters
    ----------
    scores : xarray.Dataset
        With coord roi and a ceiling.
    reliability : xarray.DataArray, dims (voxel,)
        True reliability in variance units, 0 where nothing responds.
    """
    means = scores["r"].mean("fold")
    rows = {}
    for roi, members in roi_members(scores).items():
        mine = members[reliability.values[members] > 0]
        if roi == ALL or not len(mine):
            continue
        of_layers = means.isel(voxel=mine).mean("voxel")
        best = int(of_layers.values.argmax())
        known = np.sqrt(reliability.values[mine])
        r = means.values[best, mine]
        rows[str(roi)] = {
            "best": str(scores["layer"].values[best]),
            "r": float(r.mean()),
            "known": float(known.mean()),
            "share": float((r / known).mean()),
            "estimated": float(np.sqrt(scores["ceiling"].values[mine]).mean()),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _study_file(backbone: str, weights: str | Path | None, pretrained: bool, seed: int) -> str:
    network: dict[str, object] = {"backbone": backbone}
    if weights is not None:
        network["weights"] = str(Path(weights).expanduser().absolute())
    elif not pretrained:
        network |= {"pretrained": False, "seed": seed}
    experiment = "experiment"
    return tomli_w.dumps(
        {
            "study": {"name": "demo", "title": "Simulated natural images", "seed": seed},
            "stimuli": {"path": f"{experiment}/stimuli"},
            "bids": {
                "root": experiment,
                "subject": "01",
                "task": "images",
                "mask": f"{experiment}/rois.nii.gz",
                "atlas_labels": f"{experiment}/rois.tsv",
            },
            "betas": {"method": BETAS},
            "features": [{"backbone": "pixels"}, {"backbone": "gabor"}, network],
        }
    )


def _check_network(backbone: str, weights: str | Path | None) -> None:
    """Refuse early what would be refused after the simulation."""
    if backbone in ("pixels", "gabor"):
        raise UnknownNameError(f"The demo shows {backbone} anyway; name a network to compare with.")
    if weights is not None and not Path(weights).expanduser().is_file():
        raise MissingFileError(f"The weights {weights} do not exist.")
    load_backbone(backbone, pretrained=False)


def _check_free(folder: Path) -> None:
    """Refuse a folder with anything but an earlier demo in it."""
    ours = {"experiment", "study.toml", "results"}
    others = {path.name for path in folder.iterdir()} - ours if folder.is_dir() else set()
    if others:
        raise StorageError(f"{folder} holds other files ({sorted(others)[0]} ...); choose another.")


def _aligned(truth: xr.Dataset, scores: xr.Dataset) -> xr.Dataset:
    """Return the truth voxel by voxel as the scores are, looked up by grid position."""
    there = pd.MultiIndex.from_arrays([truth[axis].values for axis in VOXEL])
    wanted = pd.MultiIndex.from_arrays([scores[axis].values for axis in VOXEL])
    rows = there.get_indexer(wanted)
    if (rows < 0).any():
        raise ValueError(f"{(rows < 0).sum()} scored voxels are not in truth.nc.")
    return truth.isel(voxel=rows)
