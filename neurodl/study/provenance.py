"""What a run keeps of where its numbers come from: versions, seeds, hashes, times."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xarray as xr

from neurodl import __version__
from neurodl.runtime import progress
from neurodl.study.config import named_files
from neurodl.study.sections import Study

PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "xarray", "pandas",
    "nibabel", "nilearn", "decord", "av", "zarr",
)  # fmt: skip
PER_LAYER = ("backbone", "weights", "weights_sha256", "transform", "pool", "n_features")


def provenance_of(
    study: Study,
    scores: xr.Dataset,
    inputs: dict[str, str],
    device: str,
    started: float,
    messages: Sequence[str],
) -> dict[str, Any]:
    """Return the provenance of a run, ready for JSON.

    Parameters
    ----------
    inputs : dict
        See `input_hashes`.
    started : float
        Seconds since 1970.
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
        "neurodl": __version__,
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        "seed": study.study.seed,
        "device": device,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "n_cores": os.cpu_count(),
        "packages": package_versions(),
        "inputs_sha256": inputs,
        "layers": layers,
        "scores": {
            key: scores.attrs[key]
            for key in ("model", "cv", "groups", "n_samples", "n_targets", "n_excluded")
            if key in scores.attrs
        },
        "warnings": list(messages),
    }


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
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
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
