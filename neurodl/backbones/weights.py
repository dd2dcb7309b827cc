"""Weights into a network: from a local file, from a download, or untrained with a seed."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neurodl.errors import DownloadError, FileFormatError, MissingFileError, did_you_mean, listed

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.")


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Run a block under a seed (0 if None) and leave the global generator as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0 if seed is None else seed)
        yield


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint; nothing in the file is executed.

    Accepts ``.safetensors`` and torch files, bare or inside the usual wrapping
    (``{"state_dict": ...}``), and takes off a common prefix such as ``module.``.

    Raises
    ------
    MissingFileError, FileFormatError
        The file is not there, is damaged, or holds more than tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise MissingFileError(f"The weights {path} do not exist. {did_you_mean(path.name, near)}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            stored: Any = load_file(path)
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FileFormatError(
            f"{path} holds more than tensors, or is damaged, and is not opened: loading it "
            "would run code from the file. Ask for a .safetensors file or a plain state dict."
        ) from error
    except Exception as error:  # safetensors and torch raise many types on damaged files
        raise FileFormatError(f"Cannot read the weights {path}: {error}") from error
    for key in WRAPPERS:
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
            break
    if not isinstance(stored, dict) or not any(torch.is_tensor(v) for v in stored.values()):
        raise FileFormatError(f"{path} holds no state dict (tensors by name).")
    return _without_prefix({k: v for k, v in stored.items() if torch.is_tensor(v)})


def _without_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def load_weights(module: nn.Module, path: str | Path, name: str) -> str:
    """Load a checkpoint file into `module`, every tensor or none; return its description.

    Raises
    ------
    FileFormatError
        The weights do not fit the network; missing, unknown and misshapen names are listed.
    """
    state = read_state_dict(path)
    expected = module.state_dict()
    # A counter that old checkpoints lack, and that a network in evaluation mode does not read.
    counters = {
        key: value for key, value in expected.items() if key.endswith("num_batches_tracked")
    }
    state = {**counters, **state}
    missing = [key for key in expected if key not in state]
    unknown = [key for key in state if key not in expected]
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    problems = [
        f"{len(found)} {what} ({listed(found, 4)})"
        for what, found in (
            ("missing", missing),
            ("unknown", unknown),
            ("of another shape", misshapen),
        )
        if found
    ]
    if problems:
        raise FileFormatError(
            f"The weights {path} do not fit {name}: {'; '.join(problems)} of "
            f"{len(expected)} tensors. Check the architecture's name and its options "
            "(num_classes, for example)."
        )
    module.load_state_dict(state, strict=True)
    digest = hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    return f"file {Path(path).name} (sha256 {digest[:12]})"


@contextmanager
def explain_download(name: str, source: str) -> Iterator[None]:
    """Turn a failed download into an error that names the ways on; never into random weights."""
    try:
        yield
    except (OSError, RuntimeError, ConnectionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise DownloadError(
            f"The pretrained weights of {name} could not be fetched from {source}: {reason}\n"
            "Go on in one of these ways:\n"
            "  - connect to the internet and run again (what arrived is kept);\n"
            "  - fetch the file elsewhere and give it as weights='path/to/file';\n"
            "  - pretrained=False, seed=0 for an untrained control, named so in every result."
        ) from error
