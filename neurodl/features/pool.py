"""Pooling: from a layer's output to one row of features per stimulus."""

from __future__ import annotations

import math

import torch
import xarray as xr
from torch.nn import functional

from neurodl.errors import UnknownNameError, did_you_mean

LAYOUT = ("feature_axes", "feature_shape", "n_prefix_tokens", "input_size")  # attrs; see `Taps`
POOLS = ("flatten", "avg", "max", "cls", "mean_patch", "spatial:7")


def check_pool(pool: str) -> str:
    """Return `pool` if it names a pooling.

    Raises
    ------
    UnknownNameError
        It does not; near matches are listed.
    """
    name, _, size = pool.partition(":")
    if pool in POOLS or (name == "spatial" and size.isdigit() and int(size) > 0):
        return pool
    raise UnknownNameError(
        f"`pool` must be one of {POOLS} (with any grid size after 'spatial:'), but got {pool!r}. "
        f"{did_you_mean(pool, POOLS)}"
    )


def without_layout(features: xr.DataArray) -> xr.DataArray:
    """Return features without the attrs that say how a row is laid out, which no longer holds."""
    features = features.copy(deep=False)
    features.attrs = {key: value for key, value in features.attrs.items() if key not in LAYOUT}
    return features


def pool_output(
    output: torch.Tensor, pool: str, *, n_prefix_tokens: int = 0, channels_last: bool = False
) -> torch.Tensor:
    """Return a layer's output as rows of features.

    Parameters
    ----------
    output : torch.Tensor
        Shape (n, features); (n, tokens, features) of a transformer; (n, channels, height,
        width) of a map; or (n, channels, time, height, width) of a video map, which is
        averaged over time first.
    pool : str
        ``"spatial:k"`` averages maps, and patch tokens laid out as a map, over at most k x k
        places; ``"avg"`` and ``"mean_patch"`` average and ``"max"`` takes the maximum over all
        places; ``"cls"`` takes the first token; ``"flatten"`` keeps everything. Vectors stay
        as they are.
    n_prefix_tokens : int
        How many tokens before the patches; only ``"flatten"`` and ``"cls"`` see them.
    channels_last : bool
        Whether maps are (n, height, width, channels).

    Returns
    -------
    torch.Tensor, shape (n, n_features), float32
        Own memory: later in-place operations of the network do not reach it.

    Examples
    --------
    >>> pool_output(torch.ones(2, 8, 14, 14), "spatial:7").shape
    torch.Size([2, 392])
    """
    _, values = pool_to_axes(
        output, pool, n_prefix_tokens=n_prefix_tokens, channels_last=channels_last
    )
    return values.flatten(1)


def pool_to_axes(
    output: torch.Tensor, pool: str, *, n_prefix_tokens: int, channels_last: bool
) -> tuple[tuple[str, ...], torch.Tensor]:
    """Return what `pool_output` returns before its axes are joined to one row, and their names.

    Returns
    -------
    names : tuple of str
        ``("channel", "y", "x")`` of maps, ``("token", "channel")`` of tokens, or ``("feature",)``.
    values : torch.Tensor, shape (n, *sizes), float32
        One axis per name; own memory.
    """
    output = output.detach()
    if pool == "cls":
        return ("feature",), _class_token(output, n_prefix_tokens)
    if output.ndim <= 2 or pool == "flatten":
        names = _names(output.ndim, channels_last)
        values = output.float().clone()
        return names, values if len(names) == output.ndim - 1 else values.flatten(1)
    maps = _as_map(output, n_prefix_tokens, channels_last).float()
    if pool == "max":
        maps = maps.flatten(2).amax(-1)[..., None, None]
    elif pool in ("avg", "mean_patch"):
        maps = maps.flatten(2).mean(-1)[..., None, None]
    else:
        side = int(pool.partition(":")[2])
        height, width = (min(side, extent) for extent in maps.shape[2:])
        maps = functional.adaptive_avg_pool2d(maps, (height, width)).clone()
    return ("channel", "y", "x"), maps


def _names(n_axes: int, channels_last: bool) -> tuple[str, ...]:
    """Return what the axes of a layer's output are, after the first."""
    if n_axes == 4:
        return ("y", "x", "channel") if channels_last else ("channel", "y", "x")
    return {3: ("token", "channel"), 5: ("channel", "time", "y", "x")}.get(n_axes, ("feature",))


def _class_token(output: torch.Tensor, n_prefix_tokens: int) -> torch.Tensor:
    if output.ndim != 3 or n_prefix_tokens == 0:
        raise ValueError(
            f"pool='cls' needs a transformer layer with a class token, but the output has shape "
            f"{tuple(output.shape)} with {n_prefix_tokens} prefix tokens. Use 'mean_patch' or "
            "'avg'."
        )
    return output[:, 0].float().clone()


def _as_map(output: torch.Tensor, n_prefix_tokens: int, channels_last: bool) -> torch.Tensor:
    """Return (n, channels, height, width) of a map, a video map, or patch tokens."""
    if output.ndim == 5:
        return output.mean(2)
    if output.ndim == 4:
        return output.movedim(-1, 1) if channels_last else output
    if output.ndim == 3:
        patches = output[:, n_prefix_tokens:].transpose(1, 2)
        side = math.isqrt(patches.shape[-1])
        shape = (side, side) if side * side == patches.shape[-1] else (patches.shape[-1], 1)
        return patches.unflatten(-1, shape)
    raise ValueError(f"Cannot pool an output of shape {tuple(output.shape)}; use pool='flatten'.")
