"""What this machine has, what it lacks, and how to get it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
LEAST_SPACE = 5 * GIB
PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "scipy", "pandas", "scikit-learn", "xarray", "nibabel",
    "nilearn", "zarr", "h5netcdf", "pydantic", "matplotlib", "jinja2",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Parameters
    ----------
    what : str
    found : str
        What there is.
    ok : bool
        Whether nothing is to be mended.
    remedy : str
        How to get what is missing or could be better.
    needed : bool
        Whether neurodl does not work without it.
    """

    what: str
    found: str
    ok: bool = True
    remedy: str = ""
    needed: bool = False


def examine() -> list[Finding]:
    """Look at Python, the packages, the GPU, video reading, optional parts, disk and cache."""
    return [
        _python(),
        *_packages(),
        _torch_pair(),
        _gpu(),
        *_video(),
        _optional("pynwb", "spikes", "NWB files"),
        _optional("lightning", "finetune", "fine-tuned encoding models"),
        _optional("peft", "finetune", "low-rank fine-tuning"),
        _memory(),
        *_folders(),
    ]


def _python() -> Finding:
    version = f"{platform.python_version()} ({platform.platform(terse=True)})"
    old = sys.version_info < (3, 11)
    remedy = "neurodl needs Python 3.11 or newer." if old else ""
    return Finding("Python", version, not old, remedy, needed=True)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> list[Finding]:
    versions = {name: _version(name) for name in PACKAGES}
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    missing = [name for name, version in versions.items() if version is None]
    findings = [Finding("packages", found)]
    if missing:
        how = f"{Path(sys.executable).name} -m pip install {' '.join(missing)}"
        findings.append(Finding("packages", f"missing: {', '.join(missing)}", False, how, True))
    return findings


def _torch_pair() -> Finding:
    """Import torchvision: its operators load only beside the torch they were built for."""
    try:
        import torch
        import torchvision
    except (ImportError, RuntimeError) as error:
        how = "Reinstall both together: pip install --force-reinstall torch torchvision"
        return Finding("torch", f"torch and torchvision do not fit: {error}", False, how, True)
    pair = f"torch {torch.__version__} with torchvision {torchvision.__version__}"
    return Finding("torch", f"{pair}, {torch.get_num_threads()} threads")


def _gpu() -> Finding:
    try:
        import torch
    except ImportError:
        return Finding("GPU", "unknown without torch", False)
    if torch.cuda.is_available():
        cards = []
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            cards.append(f"{name} ({free / GIB:.0f} of {total / GIB:.0f} GiB free)")
        return Finding("GPU", ", ".join(cards))
    if torch.backends.mps.is_available():
        return Finding("GPU", "Apple GPU: device='mps'")
    built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    if shutil.which("nvidia-smi") is None:
        how = "Not needed. On Colab: Runtime, Change runtime type, T4 GPU."
        return Finding("GPU", f"none ({built})", True, how)
    how = "There is an NVIDIA driver: update it, or install a CUDA build from pytorch.org."
    return Finding("GPU", f"none that torch can use ({built})", False, how)


def _video() -> list[Finding]:
    findings = []
    readers = {name: _importable(name) for name in ("decord", "av")}
    there = [f"{name} {_version(name)}" for name, error in readers.items() if not error]
    if there:
        findings.append(Finding("video", " and ".join(there)))
    else:
        found = "; ".join(f"{name}: {error}" for name, error in readers.items())
        findings.append(Finding("video", f"none ({found})", False, "pip install av", True))
    ffmpeg = shutil.which("ffmpeg")
    remedy = "" if ffmpeg else "Not needed: PyAV and decord bring their own."
    findings.append(Finding("ffmpeg", ffmpeg or "no program of that name", True, remedy))
    return findings


def _importable(name: str) -> str:
    """Return why a module cannot be imported, or nothing."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError) as error:
        return str(error)
    return ""


def _optional(module: str, extra: str, purpose: str) -> Finding:
    version = _version(module)
    remedy = "" if version else f"Only for {purpose}: pip install 'neurodl[{extra}]'"
    return Finding(module, version or "not installed", True, remedy)


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return Finding("memory", "unknown")
    return Finding("memory", f"{total / GIB:.0f} GiB, {os.cpu_count()} cores")


def _folders() -> list[Finding]:
    """Return where features and datasets are kept, and how much room there is."""
    from neurodl.datasets import data_folder
    from neurodl.features import cache_folder

    folder, datasets = cache_folder(), data_folder()
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(parent).free
    how = "Choose another folder: export NEURODL_CACHE=/path/with/room"
    writable = os.access(parent, os.W_OK)
    used = _size(folder)
    state = f"{folder} ({used / GIB:.1f} GiB used)" if writable else f"{folder} cannot be written"
    return [
        Finding("cache", state, writable, "" if writable else how, needed=True),
        Finding("disk", f"{free / GIB:.0f} GiB free there", free > LEAST_SPACE,
                "" if free > LEAST_SPACE else how),
        Finding("datasets", f"{datasets} ({_size(datasets) / GIB:.1f} GiB used)"),
    ]  # fmt: skip


def _size(folder: Path) -> int:
    """Return the bytes in a folder; files that go while it looks count as nothing."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total
