"""What a run keeps of where its numbers come from: versions, seeds, hashes, times."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xarray as xr

from neurodl import __version__
from neurodl.io.store import sha256_of
from neurodl.runtime import progress, resolve_device
from neurodl.study.config import named_files, write_study
from neurodl.study.sections import Study

PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "xarray", "pandas",
    "nibabel", "nilearn", "decord", "av", "zarr",
)  # fmt: skip
CORE_WATTS, GPU_WATTS = 10.0, 300.0
PER_LAYER = ("backbone", "weights", "weights_sha256", "transform", "pool", "n_features")


class Meter:
    """What a run takes from its beginning on: time, and an estimate of energy.

    A busy core counts `CORE_WATTS`; a GPU counts its power limit for as long as the run takes,
    which is an upper bound. Screens, cooling and the rest of the machine are left out.

    Parameters
    ----------
    device : str
        See `resolve_device`.
    """

    def __init__(self, device: str) -> None:
        self.started = time.time()  # of the day; how long it takes is told by a steady clock
        self._begun = time.monotonic()
        self._cpu = self._cpu_time()
        self.gpu_watts = _gpu_watts() if resolve_device(device).type == "cuda" else 0.0

    @staticmethod
    def _cpu_time() -> float:
        used = os.times()
        return used.user + used.system + used.children_user + used.children_system

    def seconds(self) -> float:
        """Return how long it has taken [s]."""
        return time.monotonic() - self._begun

    def cpu_seconds(self) -> float:
        """Return how long cores were busy, added up [s]."""
        return self._cpu_time() - self._cpu

    def energy_wh(self) -> float:
        """Return the estimate of energy [Wh]."""
        joules = CORE_WATTS * self.cpu_seconds() + self.gpu_watts * self.seconds()
        return joules / 3600

    def said(self) -> dict[str, str]:
        """Return time and energy as a report says them."""
        assumed = f"{CORE_WATTS:g} W for a busy core"
        if self.gpu_watts:
            assumed += f", {self.gpu_watts:g} W for the GPU"
        return {
            "time": f"{self.seconds():.0f} s",
            "energy, estimated": f"{self.energy_wh():.2g} Wh ({assumed})",
        }


def _gpu_watts() -> float:
    """Return the power limit of the GPU [W], or a common one where it is not told."""
    try:
        asked = ["nvidia-smi", "--query-gpu=power.limit", "--format=csv,noheader,nounits"]
        told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10)
        return float(told.stdout.split()[0])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return GPU_WATTS


def provenance_of(
    study: Study,
    scores: xr.Dataset,
    inputs: dict[str, str],
    device: str,
    meter: Meter,
    messages: Sequence[str],
) -> dict[str, Any]:
    """Return the provenance of a run, ready for JSON.

    Parameters
    ----------
    inputs : dict
        See `input_hashes`.
    meter : Meter
        Begun with the run.
    messages : sequence of str
        What the run warned of.
    """
    layers = {
        str(layer): {
            key: scores[key].values[row].item()
            for key in PER_LAYER
            if key in scores.coords and scores[key].dims == ("layer",)
        }
        for row, layer in enumerate(scores["layer"].values)
    }
    return {
        "study": study.study.name,
        "key": study_key(study, inputs),
        "started": datetime.fromtimestamp(meter.started, UTC).isoformat(timespec="seconds"),
        "seconds": round(meter.seconds(), 1),
        "cpu_seconds": round(meter.cpu_seconds(), 1),
        "energy_wh": float(f"{meter.energy_wh():.2g}"),
        "seed": study.study.seed,
        **environment(device),
        "inputs_sha256": inputs,
        "layers": layers,
        "scores": {
            key: scores.attrs[key]
            for key in ("model", "cv", "groups", "n_samples", "n_targets", "n_excluded")
            if key in scores.attrs
        },
        "warnings": list(messages),
    }


def environment(device: str) -> dict[str, Any]:
    """Return what numbers may depend on besides the study: machine, threads, versions."""
    import torch

    return {
        "neurodl": __version__,
        "device": device,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "n_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": package_versions(),
    }


def study_key(study: Study, inputs: Mapping[str, str] | None = None) -> str:
    """Return a hash of what decides the numbers of a study: itself, and its inputs' bytes.

    Parameters
    ----------
    study : Study
    inputs : mapping, optional
        Of `input_hashes`, where they are known.
    """
    named = study.study.model_copy(update={"title": None, "output": None})
    where = study.run.model_copy(update={"cache": None})
    text = write_study(study.model_copy(update={"study": named, "run": where, "cluster": None}))
    known = input_hashes(study) if inputs is None else inputs
    return hashlib.sha256(json.dumps([text, sorted(known.items())]).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that numbers depend on, where they are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def input_hashes(study: Study) -> dict[str, str]:
    """Return the sha256 of each input: of a file its bytes, of a folder its files' names and bytes.

    Of a BIDS folder, the subject's files count, and those that are not a subject's.
    """
    content = study.model_dump(exclude_none=True)
    named = [
        (section, name)
        for section, _, _, value in named_files(content)
        for name in (value if isinstance(value, list) else [value])
    ]
    hashes = {}
    for section, name in progress(dict.fromkeys(named), label="hashing inputs", total=len(named)):
        subject = study.bids.subject if section == "bids" and study.bids else None
        hashes[name] = _hash(Path(name), subject)
    return hashes


def _hash(path: Path, subject: str | None) -> str:
    if path.is_file():
        return sha256_of(path)
    digest = hashlib.sha256()
    for member in _members(path, subject):
        digest.update(f"{member.relative_to(path).as_posix()}\0{_hash(member, None)}\n".encode())
    return digest.hexdigest()


def _members(folder: Path, subject: str | None) -> Iterator[Path]:
    """Yield the files of a folder in order; of a BIDS folder those that concern a subject."""
    own = f"sub-{str(subject).removeprefix('sub-')}"
    for path in sorted(folder.rglob("*")):
        subjects = [part for part in path.relative_to(folder).parts if part.startswith("sub-")]
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        others = subject is not None and subjects and subjects[0].split("_")[0] != own
        if path.is_file() and not hidden and not others:
            yield path
