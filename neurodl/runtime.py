"""Where and how a computation runs: the device, the progress bar, the seed of a step."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from neurodl.errors import DeviceError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
Item = TypeVar("Item")

ALL_GPUS = "cuda:all"
MEMORY = "NEURODL_MEMORY"  # the environment variable that limits `available_memory` [bytes]
# Rows of a product, and columns on either side, from which on `linear` takes oneDNN.
MIN_ROWS, MIN_WIDTH = 512, 32


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


def has_fast_half(device: torch.device) -> bool:
    """Return whether products of bfloat16 are computed by the hardware."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    return any(
        getattr(torch.cpu, name, bool)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def has_fast_convolutions(device: torch.device) -> bool:
    """Return whether convolutions by single pixels outrun products of float32, as oneDNN's do."""
    import torch

    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return device.type == "cpu" and on_x86 and torch.backends.mkldnn.is_available()


def linear(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return ``rows @ weight.T + bias`` by the fastest way.

    Large products of float32 on x86 are made by oneDNN, 1.1 to 1.5 times faster than by the
    library that torch otherwise takes.

    Parameters
    ----------
    rows : torch.Tensor, shape (..., n_in)
    weight : torch.Tensor, shape (n_out, n_in)
    bias : torch.Tensor, shape (n_out,), optional

    Returns
    -------
    torch.Tensor, shape (..., n_out)
    """
    import torch
    from torch.nn import functional

    n_out, n_in = weight.shape
    large = min(n_out, n_in) >= MIN_WIDTH and rows.numel() >= MIN_ROWS * n_in
    single = rows.dtype == weight.dtype == torch.float32
    if not (large and single and has_fast_convolutions(rows.device)):
        return functional.linear(rows, weight, bias)
    pixels = rows.reshape(1, -1, 1, n_in).permute(0, 3, 1, 2)
    outputs = functional.conv2d(pixels, weight[:, :, None, None], bias)
    return outputs.permute(0, 2, 3, 1).reshape(*rows.shape[:-1], n_out)


def lone_threads(n_threads: int) -> ThreadPoolExecutor:
    """Return threads that work each by itself: none starts threads of torch of its own.

    Torch's number of threads is kept per thread; teams of them would take turns with each other.
    """
    import torch

    def alone() -> None:
        torch.get_num_threads()  # a thread's first question sets it to the number of all others
        torch.set_num_threads(1)

    together, others = threading.Barrier(n_threads), torch.get_num_threads()
    pool = ThreadPoolExecutor(n_threads, initializer=alone)
    for waiting in [pool.submit(together.wait) for _ in range(n_threads)]:
        waiting.result()
    torch.set_num_threads(others)
    return pool


@contextlib.contextmanager
def lent(module: torch.nn.Module, device: torch.device) -> Iterator[torch.nn.Module]:
    """Move a network to a device in a block, and back to where it was."""
    home = next((one.device for one in (*module.parameters(), *module.buffers())), device)
    try:
        yield module.to(device)
    finally:
        module.to(home)


def precision_of(device: torch.device, amp: bool) -> Any:
    """Return a block in which convolutions are in float32 proper unless `amp` asks for speed.

    By default GPUs round their factors to 10 bits (TF32).
    """
    import torch

    if amp or device.type != "cuda":
        return contextlib.nullcontext()
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    )


def names_several(device: Any) -> bool:
    """Return whether `device` is a list, or all GPUs, in place of one device."""
    return isinstance(device, list | tuple) or str(device) == ALL_GPUS


def resolve_devices(device: Any = "auto") -> list[torch.device]:
    """Return the torch devices that `device` names.

    Parameters
    ----------
    device : str, torch.device, "cuda:all", or list of str or torch.device
        One device (see `resolve_device`), every CUDA GPU, or several by name.

    Raises
    ------
    DeviceError
        One of them is not there, or the list is empty.

    Examples
    --------
    >>> resolve_devices(["cpu", "cpu"])
    [device(type='cpu'), device(type='cpu')]
    """
    import torch

    if str(device) == ALL_GPUS:
        n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = [f"cuda:{number}" for number in range(n_gpus)] or "cuda"
    if not names_several(device):
        return [resolve_device(device)]
    if not device:
        raise DeviceError(
            "`device` is an empty list. Name at least one device, such as ['cuda:0', 'cuda:1'], "
            "or use device='auto'."
        )
    return [resolve_device(one) for one in device]


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

    On the CPU that is what the system says is available, within the limit of its control group;
    files that are kept in memory only for speed count as free. $NEURODL_MEMORY, in bytes, allows
    less.
    """
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        line = next(line for line in meminfo.read_text().splitlines() if "MemAvailable" in line)
        free = 1024 * int(line.split()[1])
    allowed = int(os.environ.get(MEMORY) or sys.maxsize)
    return max(min(free, allowed, _free_in_group(Path("/sys/fs/cgroup"))), 0)


def _free_in_group(group: Path) -> int:
    """Return how much memory a control group has left [bytes], sys.maxsize without a limit."""
    with contextlib.suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text())
        lines = (group / "memory.stat").read_text().split("\n")
        kept = dict(line.split() for line in lines if line)
        files = int(kept["inactive_file"]) + int(kept["active_file"])
        return limit - int((group / "memory.current").read_text()) + files
    return sys.maxsize


def progress(items: Iterable[Item], *, label: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over `items` with a progress bar on standard error, if that is a terminal."""
    yield from _bar(items, label=label, total=total)


@contextlib.contextmanager
def progress_bar(*, label: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a progress bar, as `progress` does, that the block moves on by calling what it gets.

    Examples
    --------
    >>> with progress_bar(label="fit", total=3) as advance:
    ...     for n_done in (2, 1):
    ...         _ = advance(n_done)
    """
    with _bar(None, label=label, total=total) as bar:
        yield bar.update


def _bar(items: Iterable[Any] | None, *, label: str, total: int | None) -> Any:
    """Return the one kind of progress bar there is."""
    from tqdm import tqdm

    silent = not sys.stderr.isatty()
    return tqdm(items, desc=label, total=total, disable=silent, leave=False, unit="")


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


def seed_generator(device: torch.device, seed: int) -> None:
    """Seed the generators that draw for a device, and no other.

    `torch.manual_seed` also writes down the call for each kind of device that is not there, which
    takes milliseconds: too long within a step of training.
    """
    import torch

    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        own = getattr(torch, device.type)
        getattr(own, "manual_seed_all", own.manual_seed)(seed)
