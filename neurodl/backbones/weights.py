"""Weights into a network: from a local file, from a download, or untrained with a seed."""

from __future__ import annotations

import argparse
import hashlib
import logging
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import torch
from torch import nn

from neurodl.backbones.selfsupervised import last_linear, take_network
from neurodl.errors import (
    DownloadError,
    FileFormatError,
    MissingFileError,
    NeurodlError,
    did_you_mean,
    listed,
)

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PAIR = ("teacher", "student")
WAYS_ON = (
    "  - fetch the file elsewhere and give it as weights='path/to/file';\n"
    "  - pretrained=False, seed=0 for an untrained control, named so in every result."
)

logger = logging.getLogger(__name__)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Run a block under a seed (0 if None) and leave the global generator as it was.

    Networks are made on the CPU, so the generators of GPUs are neither seeded nor saved.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0 if seed is None else seed)
        yield


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint; nothing in the file is executed.

    Accepts ``.safetensors`` and torch files, bare or inside the usual wrapping
    (``{"state_dict": ...}``).

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
            # Namespaces of options, which many training scripts store, run no code.
            with torch.serialization.safe_globals([argparse.Namespace]):
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
    found = [key for key in PAIR if isinstance(stored, dict) and isinstance(stored.get(key), dict)]
    if len(found) == 1:
        stored = stored[found[0]]
    elif found:  # both, under their names: which one is taken is chosen, and said, with the network
        stored = {f"{key}.{name}": value for key in found for name, value in stored[key].items()}
    if not isinstance(stored, dict) or not any(torch.is_tensor(v) for v in stored.values()):
        raise FileFormatError(f"{path} holds no state dict (tensors by name).")
    return {name: value for name, value in stored.items() if torch.is_tensor(value)}


def load_weights(
    module: nn.Module,
    path: str | Path,
    name: str,
    rename: Callable[[str], str] | None = None,
) -> str:
    """Load a checkpoint file into `module`, every tensor or none; return its description.

    Parameters
    ----------
    module : torch.nn.Module
    path : str or Path
        What `read_state_dict` takes. A prefix before the network's names is taken off; other
        networks and heads in the file are left out, and a classifier that it lacks is replaced
        by an identity. Both are said.
    name : str
        Of the network, for errors.
    rename : callable, optional
        From the names in old files to those of the network.

    Raises
    ------
    FileFormatError
        The weights do not fit the network; missing, unknown and misshapen names are listed.
    """
    said = fit_weights(module, read_state_dict(path), str(path), name, rename)
    digest = hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    origin = f"file {Path(path).name} (sha256 {digest[:12]})" + (said and f", {said}")
    if said:
        logger.info("%s: weights of %s", name, origin)
    return origin


def fit_weights(
    module: nn.Module,
    state: Mapping[str, torch.Tensor],
    source: str,
    name: str,
    rename: Callable[[str], str] | None = None,
) -> str:
    """Copy tensors by name into `module`, every one or none; see `load_weights`.

    Returns
    -------
    str
        What the file lacks, or has beside the network; empty if nothing.
    """
    expected = module.state_dict()
    if rename is not None:
        state = {rename(key): value for key, value in state.items()}
    classifier = last_linear(module)
    state, said = take_network(state, expected, classifier, source)
    head = {key: value for key, value in expected.items() if key.startswith(f"{classifier}.")}
    lacks_head = bool(head) and not head.keys() & state.keys()
    if lacks_head:
        state = {**head, **state}  # taken away below, if all else fits
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
            f"The weights {source} do not fit {name}: {'; '.join(problems)} of "
            f"{len(expected)} tensors. Check the architecture's name and its options "
            "(num_classes, for example)."
        )
    ready = OrderedDict(state)
    # The names are the present ones, so the version of the layout, which some modules ask for
    # and safetensors files lack, is the present one too.
    ready._metadata = expected._metadata  # type: ignore[attr-defined]
    module.load_state_dict(ready, strict=True)
    if not lacks_head:
        return said
    # It would be random: its place passes on what comes in.
    module.set_submodule(classifier, nn.Identity())
    return "without its classifier, which the file lacks" + (said and f", {said}")


def fetch(url: str, name: str) -> dict[str, Any]:
    """Return the checkpoint at an address, from torch's cache if it was fetched before.

    Raises
    ------
    DownloadError
        It cannot be fetched, is damaged, or is not what its name's hash says.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    with explain_download(name, url, folder):
        return torch.hub.load_state_dict_from_url(
            url,
            model_dir=str(folder),
            map_location="cpu",
            progress=False,
            check_hash=True,
            weights_only=True,
        )


@contextmanager
def explain_download(
    name: str,
    source: str,
    folder: str | Path,
    ways_on: str = WAYS_ON,
) -> Iterator[None]:
    """Turn a failed download into an error that names the ways on; never into random weights."""
    try:
        yield
    except (NeurodlError, TypeError, AttributeError, AssertionError):
        raise  # a mistake in the network's options, not in its weights
    except Exception as error:  # damaged files and broken connections raise types of many libraries
        if isinstance(error, HTTPError):
            error.close()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise DownloadError(
            f"The pretrained weights of {name} could not be loaded from {source}: {reason}\n"
            "Go on in one of these ways:\n"
            "  - connect to the internet and run again;\n"
            f"  - if a damaged file was left in {folder}, delete it and run again;\n"
            f"{ways_on}"
        ) from error
