"""Where and how a computation runs: the device, the progress bar, the seed of a step."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from neurodl.errors import DeviceError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
Item = TypeVar("Item")


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the torch device that `device` names; a device that is not there is an error.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda", "cuda:N", "mps"} or torch.device
        "auto" takes a CUDA GPU where there is one, else the CPU, and logs its choice once.

    Raises
    ------
    DeviceError
        The device was asked for by name and is not available. Nothing falls back silently.
    """
    import torch

    if str(device) == "auto":
        chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        _announce(describe_device(chosen))
        return chosen
    allowed = f"`device` must be 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps', but got {device!r}."
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(allowed) from error
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(allowed)
    if chosen.type == "cuda":
        n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= n_gpus:
            raise DeviceError(
                f"device={str(device)!r} was asked for, but torch {torch.__version__} sees "
                f"{n_gpus} CUDA GPUs. Use device='auto' to run on what is there, or see "
                "`neurodl doctor` for how to install a CUDA build."
            )
    elif chosen.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device='mps' needs an Apple GPU; use device='auto' or 'cpu'.")
    return chosen


@functools.cache
def _announce(device: str) -> None:
    """Log what "auto" chose, once per process and device."""
    logger.info("device='auto' chose %s", device)


def describe_device(device: torch.device) -> str:
    """Return the device's name for people: "cpu (8 threads)" or "cuda:0 (NVIDIA T4)"."""
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return str(device)


def available_memory(device: torch.device) -> int:
    """Return how much memory is free for use on a device [bytes].

    On the CPU that is what the system says is available, within the limit of its control group.
    """
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        line = next(line for line in meminfo.read_text().splitlines() if "MemAvailable" in line)
        free = 1024 * int(line.split()[1])
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return max(free, 0)


def progress(items: Iterable[Item], *, label: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over `items` with a progress bar on standard error, if that is a terminal."""
    from tqdm import tqdm

    yield from tqdm(
        items, desc=label, total=total, disable=not sys.stderr.isatty(), leave=False, unit=""
    )


def derive_seed(seed: int, *labels: object) -> int:
    """Return a seed for one random step, the same for the same `seed` and `labels`.

    Steps that draw from seeds derived by name stay unchanged when another step is added.

    Examples
    --------
    >>> derive_seed(0, "noise", 1) == derive_seed(0, "noise", 1)
    True
    >>> derive_seed(0, "noise", 1) == derive_seed(0, "noise", 2)
    False
    """
    text = "\x1f".join([str(int(seed)), *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
