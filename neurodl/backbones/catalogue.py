"""The layers of a network, as one traced forward pass shows them, and their choice by pattern."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import nn

from neurodl.errors import UnknownNameError, did_you_mean, listed

if TYPE_CHECKING:
    from neurodl.backbones.base import Backbone

logger = logging.getLogger(__name__)
N_TRACED = 2  # inputs: with one, an axis of size 1 could be taken for that of the inputs
KEYWORDS = ("all", "blocks", "every:3")


def first_tensor(output: Any, n_rows: int | None = None) -> torch.Tensor | None:
    """Return the first tensor in a layer's output: in a tuple, a dictionary, or in one of these.

    Of several, the first that has `n_rows` rows, if there is one.

    Examples
    --------
    >>> first_tensor({"attention": None, "states": (torch.ones(2), torch.ones(3))})
    tensor([1., 1.])
    >>> first_tensor((torch.ones(2), torch.ones(3)), n_rows=3)
    tensor([1., 1., 1.])
    """
    found = list(_tensors(output))
    fitting = [tensor for tensor in found if tensor.ndim and len(tensor) == n_rows]
    return next(iter(fitting or found), None)


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, (dict, tuple, list)):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)


def trace(module: nn.Module, inputs: torch.Tensor) -> pd.DataFrame:
    """Return the layers that a forward pass calls, in the order in which they are complete.

    Parameters
    ----------
    module : torch.nn.Module
    inputs : torch.Tensor, shape (n, ...)

    Returns
    -------
    pandas.DataFrame
        Indexed by the dotted name; see `Backbone.catalogue`.
    """
    rows: dict[str, dict[str, Any]] = {}
    n_weighted = 0

    def hook(name: str) -> Any:
        def note(part: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal n_weighted
            n_weighted += any(values.ndim > 1 for values in part.parameters(recurse=False))
            tensor = first_tensor(output, len(inputs))
            sizes = () if tensor is None else tuple(tensor.shape)
            own = bool(sizes) and sizes[0] == len(inputs)
            n_calls = rows.pop(name, {}).get("n_calls", 0) + 1
            rows[name] = {
                "kind": type(part).__name__,
                "shape": " x ".join(map(str, sizes[1:] if own else sizes)),
                "depth": n_weighted,
                "n_parameters": sum(values.numel() for values in part.parameters()),
                "n_calls": n_calls,
                "per_stimulus": own,
            }

        return note

    handles = [
        part.register_forward_hook(hook(name)) for name, part in module.named_modules() if name
    ]
    try:
        with torch.inference_mode():
            module(inputs)
    finally:
        for handle in handles:
            handle.remove()
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(index="layer")


def select(backbone: Backbone, layers: str | Sequence[str]) -> list[str]:
    """Return the names that `layers` stands for; see `Backbone.check_layers`."""
    if isinstance(layers, str):
        name, _, step = layers.partition(":")
        if layers == "all":
            return _usable(backbone.catalogue)
        if layers == "blocks":
            return backbone.blocks
        if name == "every":
            return _every(step, backbone.blocks)
        layers = [layers]
    known, found = backbone.layers, list[str]()
    for one in layers:
        if one in known:
            found.append(one)
        elif any(sign in one for sign in "*?["):
            found += _matches(one, backbone)
        else:
            raise UnknownNameError(
                f"`layers` has no module {one!r} in {backbone.name}. "
                f"{did_you_mean(one, [*known, *KEYWORDS])}"
            )
    return list(dict.fromkeys(found))


def _usable(catalogue: pd.DataFrame) -> list[str]:
    """Return the layers whose output has a row per stimulus."""
    others = catalogue.index[~catalogue["per_stimulus"]].tolist()
    if others:
        logger.info("left out, as their first axis is not the stimulus: %s", listed(others))
    return catalogue.index[catalogue["per_stimulus"]].tolist()


def _every(step: str, blocks: Sequence[str]) -> list[str]:
    if not step.isdigit() or not 0 < int(step) <= len(blocks):
        raise UnknownNameError(
            f"`layers` must be 'every:K' with K from 1 to {len(blocks)}, the number of blocks, but "
            f"got 'every:{step}'."
        )
    return list(blocks[int(step) - 1 :: int(step)])


def _matches(pattern: str, backbone: Backbone) -> list[str]:
    """Return the called layers that a pattern matches; a star stays between two dots."""
    usable = [name for name in _usable(backbone.catalogue) if _fits(name, pattern)]
    if usable:
        return usable
    idle = [name for name in backbone.layers if _fits(name, pattern)]
    said = f"It matches {listed(idle)}, which give no row per stimulus. " if idle else ""
    raise UnknownNameError(
        f"`layers` has a pattern {pattern!r} that matches no layer of {backbone.name}. {said}"
        f"{did_you_mean(pattern, backbone.layers)}"
    )


def _fits(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))
