"""A simulated experiment as a BIDS folder: what the loaders get from a scanner."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image

from neurodl.datasets.simulated.design import (
    METHODS,
    RunDesign,
    expected_reliability,
    run_designs,
    scanner_noise,
)
from neurodl.datasets.simulated.experiment import Simulation, simulate
from neurodl.datasets.simulated.scan import Slab, scan_run, slab_around
from neurodl.errors import StorageError, listed
from neurodl.io.store import atomic_path, save
from neurodl.runtime import derive_seed, progress

TASK = "images"
GENERATOR = "neurodl.datasets.write_simulated"
README = """\
An fMRI experiment simulated by neurodl; no one was scanned.

Images are dead leaves: objects of all sizes that hide each other, which share the statistics of
natural scenes. Voxels lie in V1, V2, V4 and LOC of the MNI152 brain, and in a region "noise" that
does not respond. Beside what BIDS asks for there are mask.nii.gz (the voxels of the areas),
rois.nii.gz with the names in rois.tsv, and truth.nc: the responses without noise, and how well
single-trial betas averaged over repeats can match them (squared correlation) for least squares all
(reliability_lsa) and least squares separate (reliability_lss).
"""


def write_simulated(
    folder: str | Path,
    simulation: Simulation | None = None,
    *,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Write a simulated experiment as a BIDS folder: time series, events, images and the truth.

    Each run holds the haemodynamic response (Glover) to its trials in the voxels of the areas,
    slow drifts and autocorrelated noise, and drifts and noise in the rest of a slab of the brain.
    The noise is such that least-squares-all betas of single trials are as noisy as the responses of
    `simulation`, so that its ceiling is theirs.

    Parameters
    ----------
    folder : str or Path
        Appears complete or not at all.
    simulation : Simulation, optional
        By default `simulate` is called with `options`.
    overwrite : bool
        Replace a folder that was written by this function; no other is ever replaced.
    **options
        Passed to `simulate`: n_images, n_repeats, n_runs, seed ...

    Returns
    -------
    Path
        The folder: dataset_description.json, sub-01/func with ``task-images`` runs and events,
        stimuli/, mask.nii.gz, rois.nii.gz, rois.tsv and truth.nc.

    Raises
    ------
    StorageError
        The folder exists, or cannot be written.
    """
    if simulation is None:
        simulation = simulate(**options)
    elif options:
        raise ValueError(f"`simulation` is made already, so {listed(options)} would do nothing.")
    folder = Path(folder).expanduser()
    _check_free(folder, overwrite)
    with atomic_path(folder) as part:
        part.mkdir()
        _write(part, simulation)
    return folder


def _check_free(folder: Path, overwrite: bool) -> None:
    """Refuse to replace anything but an empty folder, or one that `write_simulated` wrote."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        described = json.loads((folder / "dataset_description.json").read_text())
        ours = described["GeneratedBy"][0]["Name"] == GENERATOR
    except (OSError, ValueError, LookupError, TypeError):
        ours = False
    if not ours:
        raise StorageError(
            f"{folder} exists and was not written by write_simulated, so it is left alone. Choose "
            "another folder."
        )
    if not overwrite:
        raise StorageError(
            f"{folder} holds a simulated experiment already. Say overwrite=True to replace it, or "
            "choose another folder."
        )


def _write(folder: Path, simulation: Simulation) -> None:
    """Fill an empty folder."""
    (folder / "stimuli").mkdir()
    for number, name in enumerate(simulation.stimuli.ids):
        pixels = simulation.stimuli[number].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / "stimuli" / name)
    slab = slab_around(simulation.truth)
    tr = float(simulation.truth.attrs["tr"])
    designs = run_designs(simulation.events, simulation.truth.indexes["stimulus"], tr)
    noise_sd = scanner_noise(simulation, designs)
    _write_runs(folder, simulation, slab, designs, noise_sd)
    slab.image((slab.atlas > 0).astype(np.uint8)).to_filename(folder / "mask.nii.gz")
    slab.image(slab.atlas).to_filename(folder / "rois.nii.gz")
    rows = [f"{number}\t{name}\n" for number, name in enumerate(slab.areas, 1)]
    _text(folder / "rois.tsv", "index\tname\n" + "".join(rows))
    save(_truth(simulation, slab, designs, noise_sd), folder / "truth.nc")
    _describe(folder, simulation)


def _write_runs(
    folder: Path,
    simulation: Simulation,
    slab: Slab,
    designs: dict[str, RunDesign],
    noise_sd: np.ndarray,
) -> None:
    """Write time series and events of each run."""
    subject, tr = str(simulation.truth.attrs["subject"]), float(simulation.truth.attrs["tr"])
    events = simulation.events
    func = folder / subject / "func"
    func.mkdir(parents=True)
    for run, design in progress(designs.items(), label="writing runs", total=len(designs)):
        rng = np.random.default_rng(derive_seed(simulation.seed, "scan", subject, run))
        signal = design.trials @ simulation.truth.values[design.shown]
        volumes = scan_run(slab, signal, noise_sd, design.drifts[:, :-1], rng)
        stem = f"{subject}_task-{TASK}_run-{run}"
        slab.image(volumes, tr).to_filename(func / f"{stem}_bold.nii.gz")
        table = events[events["run"] == run].drop(columns="run")
        table.to_csv(func / f"{stem}_events.tsv", sep="\t", index=False, lineterminator="\n")


def _truth(
    simulation: Simulation, slab: Slab, designs: dict[str, RunDesign], noise_sd: np.ndarray
) -> xr.Dataset:
    """Return what is stored as truth.nc, on the slab's grid."""
    arrays = {"truth": simulation.truth, "reliability": simulation.reliability}
    for method in METHODS:
        expected = expected_reliability(simulation, designs, noise_sd, method)
        arrays[f"reliability_{method}"] = expected
    arrays["noise_sd"] = simulation.noise_sd.copy(data=noise_sd).assign_attrs(units="% of baseline")
    truth = xr.Dataset({name: slab.on_grid(array) for name, array in arrays.items()})
    return truth.assign_attrs(
        slab.on_grid(simulation.truth).attrs,
        seed=simulation.seed,
        n_repeats=int(simulation.reliability.attrs["n_repeats"]),
    )


def _describe(folder: Path, simulation: Simulation) -> None:
    """Write the files that say what the folder holds."""
    description = {
        "Name": "Simulated natural-image experiment",
        "BIDSVersion": "1.9.0",
        "DatasetType": "raw",
        "License": "CC0",
        "GeneratedBy": [{"Name": GENERATOR, **_version(), "Seed": simulation.seed}],
    }
    attrs = simulation.truth.attrs
    sidecar = {"TaskName": TASK, "RepetitionTime": attrs["tr"]}
    _text(folder / f"task-{TASK}_bold.json", json.dumps(sidecar, indent=2) + "\n")
    _text(folder / "participants.tsv", f"participant_id\n{attrs['subject']}\n")
    _text(folder / "README", README)
    _text(folder / ".bidsignore", "mask.nii.gz\nrois.nii.gz\nrois.tsv\ntruth.nc\n")
    _text(folder / "dataset_description.json", json.dumps(description, indent=2) + "\n")


def _version() -> dict[str, str]:
    """Return the version of neurodl, if it is installed and not only on the path."""
    try:
        return {"Version": importlib.metadata.version("neurodl")}
    except importlib.metadata.PackageNotFoundError:
        return {}


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
