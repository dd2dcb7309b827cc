"""Readouts: from a layer's output to the responses of targets, as torch modules to be trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from neurodl.errors import SchemaError, UnknownNameError, did_you_mean

RIDGE = "ridge"  # a linear readout that is solved for
START_WIDTH = 0.5  # of a receptive field, in halves of the map
NARROWEST = 0.02
SMALLEST_SCALE = 1e-6


class Places(NamedTuple):
    """A layer's output as channels at places.

    values : (n_samples, n_channels, n_places)
    height, width : of the map; 1 and n_places for tokens that form no square
    """

    values: torch.Tensor
    height: int
    width: int


def at_places(output: torch.Tensor, n_prefix: int = 0) -> Places:
    """Return a layer's output as channels at places.

    Parameters
    ----------
    output : torch.Tensor
        Of a convolution (n_samples, n_channels, height, width), or of a transformer
        (n_samples, n_tokens, n_channels).
    n_prefix : int
        Tokens before those of patches, which have no place and are left out.

    Raises
    ------
    SchemaError
        The output has no places: it is one vector per sample.
    """
    if output.ndim == 4:
        return Places(output.flatten(2), output.shape[2], output.shape[3])
    if output.ndim == 3:
        patches = output[:, n_prefix:].transpose(1, 2)
        side = math.isqrt(patches.shape[2])
        square = side * side == patches.shape[2]
        height, width = (side, side) if square else (1, patches.shape[2])
        return Places(patches, height, width)
    raise SchemaError(
        f"The layer's output has shape {tuple(output.shape)}, without places; use "
        "readout='linear', or a layer before the pooling."
    )


class LinearReadout(nn.Module):
    """Every feature has a weight for every target.

    Parameters
    ----------
    shape : sequence of int
        Of one sample's output.
    n_targets : int
    n_prefix : int
        Unused: tokens without a place count as features, too.
    """

    def __init__(self, shape: Sequence[int], n_targets: int, n_prefix: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(math.prod(shape), n_targets)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        """Return predictions (n_samples, n_targets)."""
        return self.linear(output.flatten(1))


class _AtPlaces(nn.Module):
    """A target sees some places, the same for all channels, and weighs the channels."""

    def __init__(self, shape: Sequence[int], n_targets: int, n_prefix: int = 0) -> None:
        super().__init__()
        example = at_places(torch.zeros(1, *shape), n_prefix)
        self.height, self.width, self.n_prefix = example.height, example.width, n_prefix
        self.channels = nn.Parameter(torch.zeros(n_targets, example.values.shape[1]))
        self.bias = nn.Parameter(torch.zeros(n_targets))

    def through(self, output: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return predictions (n_samples, n_targets) from channels added up by a mask.

        mask : (n_targets, n_places)
        """
        values = at_places(output, self.n_prefix).values
        seen = torch.einsum("ncp,tp->ntc", values, mask.to(values.dtype))
        return torch.einsum("ntc,tc->nt", seen, self.channels.to(values.dtype)) + self.bias


class FactorisedReadout(_AtPlaces):
    """The mask is free: one number per target and place, of either sign.

    References
    ----------
    Klindt, Ecker, Euler & Bethge (2017), Neural system identification for large populations
    separating "what" and "where", NeurIPS.
    """

    def __init__(self, shape: Sequence[int], n_targets: int, n_prefix: int = 0) -> None:
        super().__init__(shape, n_targets, n_prefix)
        n_places = self.height * self.width
        self.places = nn.Parameter(torch.full((n_targets, n_places), 1 / n_places))

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        """Return predictions (n_samples, n_targets)."""
        return self.through(output, self.places)


class GaussianReadout(_AtPlaces):
    """The mask is a Gaussian over the map, with sum 1.

    ``centre`` (y, x) is -1 and 1 at the first and last row and column, ``log_width`` the logarithm
    of its standard deviation in the same units.
    """

    def __init__(self, shape: Sequence[int], n_targets: int, n_prefix: int = 0) -> None:
        super().__init__(shape, n_targets, n_prefix)
        self.centre = nn.Parameter(torch.zeros(n_targets, 2))
        self.log_width = nn.Parameter(torch.full((n_targets, 2), math.log(START_WIDTH)))

    def mask(self) -> torch.Tensor:
        """Return how much each target sees of each place, (n_targets, n_places)."""
        width = self.log_width.exp() + NARROWEST
        profiles = []
        for axis, size in enumerate((self.height, self.width)):
            place = (
                torch.linspace(-1, 1, size, device=width.device) if size > 1 else width.new_zeros(1)
            )
            distance = (place - self.centre[:, axis, None]) / width[:, axis, None]
            profiles.append(torch.softmax(-0.5 * distance.square(), dim=1))
        return (profiles[0][:, :, None] * profiles[1][:, None, :]).flatten(1)

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        """Return predictions (n_samples, n_targets)."""
        return self.through(output, self.mask())


class PointReadout(_AtPlaces):
    """A target sees one point of the map, drawn from a Gaussian while it is trained.

    Between places it is interpolated. In evaluation the point is the Gaussian's centre.

    References
    ----------
    Lurz et al. (2021), Generalization in data-driven models of primary visual cortex, ICLR.
    """

    def __init__(self, shape: Sequence[int], n_targets: int, n_prefix: int = 0) -> None:
        super().__init__(shape, n_targets, n_prefix)
        self.centre = nn.Parameter(torch.zeros(n_targets, 2))
        self.log_width = nn.Parameter(torch.full((n_targets, 2), math.log(START_WIDTH)))

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        """Return predictions (n_samples, n_targets)."""
        places = at_places(output, self.n_prefix)
        maps = places.values.unflatten(2, (places.height, places.width))
        centre = self.centre.to(maps.dtype).expand(len(maps), -1, -1)
        if self.training:
            centre = centre + torch.randn_like(centre) * self.log_width.exp().to(maps.dtype)
        points = centre.clamp(-1, 1).flip(-1)[:, :, None]  # x before y, as grid_sample has it
        seen = nn.functional.grid_sample(maps, points, align_corners=True)[..., 0]
        return torch.einsum("nct,tc->nt", seen, self.channels.to(maps.dtype)) + self.bias


class AttentionReadout(_AtPlaces):
    """The mask depends on the sample: where its channels agree most with the target's query."""

    def __init__(self, shape: Sequence[int], n_targets: int, n_prefix: int = 0) -> None:
        super().__init__(shape, n_targets, n_prefix)
        self.query = nn.Parameter(torch.zeros_like(self.channels))
        self.place = nn.Parameter(torch.zeros(n_targets, self.height * self.width))

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        """Return predictions (n_samples, n_targets)."""
        values = at_places(output, self.n_prefix).values
        scaled = self.query.to(values.dtype) / math.sqrt(values.shape[1])
        agreement = torch.einsum("ncp,tc->ntp", values, scaled) + self.place.to(values.dtype)
        seen = torch.einsum("ncp,ntp->ntc", values, agreement.softmax(-1))
        return torch.einsum("ntc,tc->nt", seen, self.channels.to(values.dtype)) + self.bias


def field_of(readout: nn.Module, input_size: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return where on the input each target looks, by a readout with a Gaussian.

    Parameters
    ----------
    readout : GaussianReadout or PointReadout
    input_size : (height, width)
        Of the network's input [pixels], over which the layer's places lie evenly.

    Returns
    -------
    dict of str to torch.Tensor, shape (n_targets,)
        x and y of the centre, 0 at the centre of the first pixel, and the standard deviations
        width_x and width_y [pixels].

    Raises
    ------
    SchemaError
        The readout has no place of its own for each target.
    """
    if not isinstance(readout, GaussianReadout | PointReadout):
        raise SchemaError(
            f"A {type(readout).__name__} has no Gaussian whose place could be told; fit with "
            "readout='gaussian2d' or 'point2d'."
        )
    found = {}
    narrowest = NARROWEST if isinstance(readout, GaussianReadout) else 0.0
    sizes = (readout.height, readout.width)
    for axis, name in enumerate("yx"):
        step = input_size[axis] / sizes[axis]  # pixels from place to place
        half = (sizes[axis] - 1) / 2 * step
        centre = readout.centre[:, axis].detach()
        found[name] = (input_size[axis] - 1) / 2 + centre * half
        found[f"width_{name}"] = (readout.log_width[:, axis].detach().exp() + narrowest) * half
    return found


class Standardized(nn.Module):
    """A readout of channels about their mean, in units of what all of them vary by.

    So that a learning rate and a penalty mean the same for all layers, and channels that vary
    little stay as quiet as they are. The numbers are told once, by `take_scale`, and stay while
    the core is trained.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, readout: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.readout = readout
        # Channels stand first in maps and last in tokens.
        self.axis = 1 if len(shape) == 3 else -1
        sizes = (shape[0], 1, 1) if len(shape) == 3 else (shape[-1],)
        self.register_buffer("mean", torch.zeros(sizes))
        self.register_buffer("scale", torch.ones(()))

    def take_scale(self, outputs: torch.Tensor) -> None:
        """Take the scale of training rows (n_rows, ...): over rows and places."""
        channels = outputs.movedim(self.axis, 0).flatten(1)
        self.mean.copy_(channels.mean(1).view_as(self.mean))
        self.scale.copy_(channels.var(1).mean().sqrt().clamp(min=SMALLEST_SCALE))

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        """Return predictions (n_samples, n_targets)."""
        predicted: torch.Tensor = self.readout((output - self.mean) / self.scale)
        return predicted


READOUTS: dict[str, Callable[[Sequence[int], int, int], nn.Module]] = {
    RIDGE: LinearReadout,
    "linear": LinearReadout,
    "factorised": FactorisedReadout,
    "gaussian2d": GaussianReadout,
    "point2d": PointReadout,
    "attention": AttentionReadout,
}


def make_readout(name: str, shape: Sequence[int], n_targets: int, n_prefix: int = 0) -> nn.Module:
    """Return a readout that predicts 0 until it is trained.

    Parameters
    ----------
    name : {"ridge", "linear", "factorised", "gaussian2d", "point2d", "attention"}
    shape : sequence of int
        Of one sample's output: (n_channels, height, width), (n_tokens, n_channels) or
        (n_features,).
    n_targets : int
    n_prefix : int
        Tokens before those of patches.

    Raises
    ------
    UnknownNameError
        There is no such readout.
    SchemaError
        It needs places, and the layer's output has none.
    """
    if name not in READOUTS:
        raise UnknownNameError(f"There is no readout {name!r}. {did_you_mean(name, READOUTS)}")
    return READOUTS[name](shape, n_targets, n_prefix)
