"""Pooling: from a layer's output to one row of features per stimulus."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xarray as xr
from torch.nn import functional

from neurodl.errors import UnknownNameError, did_you_mean, listed

LAYOUT = ("feature_axes", "feature_shape", "n_prefix_tokens", "input_size")  # attrs; see `Taps`
POOLS = ("flatten", "avg", "max", "gem", "cls", "mean_patch", "spatial:7")
TIMES = ("mean", "keep")
GEM_POWER, GEM_LEAST = 3.0, 1e-6


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


def check_time(time: str) -> str:
    """Return `time` if it says what becomes of the frames of a clip.

    Raises
    ------
    UnknownNameError
        It does not.
    """
    if time not in TIMES:
        raise UnknownNameError(
            f"`time` must be 'mean' or 'keep', but got {time!r}. {did_you_mean(time, TIMES)}"
        )
    return time


def without_layout(features: xr.DataArray) -> xr.DataArray:
    """Return features without the attrs that say how a row is laid out, which no longer holds."""
    features = features.copy(deep=False)
    features.attrs = {key: value for key, value in features.attrs.items() if key not in LAYOUT}
    return features


def pool_output(
    output: torch.Tensor,
    pool: str,
    *,
    prefix_tokens: Sequence[str] = (),
    n_steps: int = 1,
    aspect: float = 1.0,
    channels_last: bool = False,
    time: str = "mean",
) -> torch.Tensor:
    """Return a layer's output as rows of features.

    Parameters
    ----------
    output : torch.Tensor
        Shape (n, features); (n, tokens, features) of a transformer; (n, channels, height,
        width) of a map; or (n, channels, time, height, width) of a video map.
    pool : str
        ``"spatial:k"`` averages maps, and patch tokens laid out as a map, over at most k x k
        places; ``"avg"`` and ``"mean_patch"`` average, ``"max"`` takes the maximum and ``"gem"``
        the generalised mean [1]_ (power 3, of values above 0) over all places; ``"cls"`` takes
        the class token; ``"flatten"`` keeps everything. Vectors stay as they are.
    prefix_tokens : sequence of str
        What stands before the patches, of which "class" is one; only ``"flatten"`` and ``"cls"``
        see them.
    n_steps : int
        How many steps in time the patch tokens of a clip are of, one step after the other.
    aspect : float
        Height by width of the image that the tokens are of.
    channels_last : bool
        Whether maps are (n, [time,] height, width, channels).
    time : {"mean", "keep"}
        Whether maps and patches of clips are averaged over time, before they are pooled, or
        pooled at each step. ``"flatten"`` keeps all.

    Returns
    -------
    torch.Tensor, shape (n, n_features), float32
        Own memory: later in-place operations of the network do not reach it.

    Raises
    ------
    ValueError
        The output has no class token, or its tokens do not fill a grid of places.

    References
    ----------
    .. [1] Radenović, Tolias & Chum (2019), Fine-tuning CNN image retrieval with no human
       annotation, IEEE TPAMI 41.

    Examples
    --------
    >>> pool_output(torch.ones(2, 8, 14, 14), "spatial:7").shape
    torch.Size([2, 392])
    """
    tokens = Tokens(prefix_tokens, n_steps, aspect)
    _, values = pool_to_axes(output, pool, tokens=tokens, channels_last=channels_last, time=time)
    return values.flatten(1)


@dataclass(frozen=True)
class Tokens:
    """How the tokens of a transformer are laid out; see `pool_output`."""

    prefix: Sequence[str] = ()
    n_steps: int = 1
    aspect: float = 1.0
    in_order: bool = True

    def grid(self, n_patches: int) -> tuple[int, int] | None:
        """Return the height and width of the patches of one step, or None if there is no such."""
        height = round(math.sqrt(max(n_patches, 0) / self.n_steps * self.aspect))
        width = round(height / self.aspect)
        fits = height * width * self.n_steps == n_patches > 0
        return (height, width) if fits and math.isclose(height, width * self.aspect) else None

    def n_prefix(self, n_tokens: int) -> int:
        """Return how many tokens of a layer stand before its patches.

        None where its tokens fill the grid alone: some networks add a class token late.
        """
        n_patches = n_tokens - len(self.prefix)
        return 0 if self.grid(n_patches) is None and self.grid(n_tokens) else len(self.prefix)


def pool_to_axes(
    output: torch.Tensor, pool: str, *, tokens: Tokens, channels_last: bool, time: str
) -> tuple[tuple[str, ...], torch.Tensor]:
    """Return what `pool_output` returns before its axes are joined to one row, and their names.

    Returns
    -------
    names : tuple of str
        ``("channel", "y", "x")`` of maps, after ``"time"`` if that is kept; ``("token",
        "channel")`` of tokens, or ``("feature",)``.
    values : torch.Tensor, shape (n, *sizes), float32
        One axis per name; own memory.
    """
    output = output.detach()
    if pool == "cls":
        return ("feature",), _class_token(output, tokens)
    if output.ndim <= 2 or pool == "flatten":
        names = _names(output.ndim, channels_last)
        values = output.float().clone()
        return names, values if len(names) == output.ndim - 1 else values.flatten(1)
    maps = _as_maps(output, pool, tokens, channels_last).float()  # (n, time, channel, y, x)
    n_steps = maps.shape[1]
    maps = maps.mean(1, keepdim=True) if time == "mean" else maps
    values = _over_places(maps.flatten(0, 1), pool).unflatten(0, maps.shape[:2])
    if time == "mean" or n_steps == 1:
        return ("channel", "y", "x"), values[:, 0]
    return ("time", "channel", "y", "x"), values


def _over_places(maps: torch.Tensor, pool: str) -> torch.Tensor:
    """Return pooled maps (n, channels, y, x) of maps (n, channels, height, width)."""
    if pool == "max":
        return maps.flatten(2).amax(-1)[..., None, None]
    if pool in ("avg", "mean_patch"):
        return maps.flatten(2).mean(-1)[..., None, None]
    if pool == "gem":
        cubes = maps.flatten(2).clamp(min=GEM_LEAST) ** GEM_POWER
        return (cubes.mean(-1) ** (1 / GEM_POWER))[..., None, None]
    side = int(pool.partition(":")[2])
    height, width = (min(side, extent) for extent in maps.shape[2:])
    return functional.adaptive_avg_pool2d(maps, (height, width)).clone()


def _names(n_axes: int, channels_last: bool) -> tuple[str, ...]:
    """Return what the axes of a layer's output are, after the first."""
    if n_axes in (4, 5):
        places = ("y", "x") if n_axes == 4 else ("time", "y", "x")
        return (*places, "channel") if channels_last else ("channel", *places)
    return ("token", "channel") if n_axes == 3 else ("feature",)


def _class_token(output: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    has_class = output.ndim == 3 and tokens.n_prefix(output.shape[1]) > 0
    if not has_class or "class" not in tokens.prefix:
        raise ValueError(
            f"pool='cls' needs a transformer layer with a class token, but the output has shape "
            f"{tuple(output.shape)} and the network {listed(tokens.prefix) or 'no such'} tokens "
            "before the patches. Use 'mean_patch' or 'avg'."
        )
    return output[:, list(tokens.prefix).index("class")].float().clone()


def _as_maps(output: torch.Tensor, pool: str, tokens: Tokens, channels_last: bool) -> torch.Tensor:
    """Return maps, or patch tokens, as (n, time, channels, height, width)."""
    if output.ndim in (4, 5):
        maps = output.movedim(-1, 1) if channels_last else output
        return maps[:, None] if output.ndim == 4 else maps.movedim(2, 1)
    if output.ndim != 3:
        raise ValueError(
            f"Cannot pool an output of shape {tuple(output.shape)}; use pool='flatten'."
        )
    patches = output[:, tokens.n_prefix(output.shape[1]) :].transpose(1, 2)
    n_patches = patches.shape[-1]
    if pool.startswith("spatial") and not tokens.in_order:
        raise ValueError(
            f"pool={pool!r} needs tokens in the order of the image's places, which those of this "
            "network are not. Use 'avg', 'max', 'gem' or 'flatten'."
        )
    grid = tokens.grid(n_patches)
    if grid is None and (pool.startswith("spatial") or tokens.grid(n_patches - 1) is not None):
        raise ValueError(
            f"The {n_patches} tokens of an output of shape {tuple(output.shape)} fill no grid of "
            f"places (prefix tokens: {listed(tokens.prefix) or 'none'}). Use pool='flatten', or "
            "say what stands before the patches: Backbone(prefix_tokens=...)."
        )
    if grid is None:
        return patches[:, None, :, :, None]
    return patches.unflatten(-1, (tokens.n_steps, *grid)).movedim(2, 1)
