"""Weight-free models of early vision: a Gabor energy pyramid, and plain pixels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchvision.transforms import v2

from neurodl.backbones.base import Backbone, ImageTransform
from neurodl.errors import UnknownNameError, did_you_mean


class GaborEnergy(nn.Module):
    """Energy of quadrature pairs of Gabor filters over octaves, orientations and places.

    The image is made grey and halved from octave to octave, so the same small filters see
    lower and lower frequencies; the energy of each pair, the root of the summed squares, is
    averaged over a grid that grows coarser with the wavelength: complex cells of V1.

    Parameters
    ----------
    n_octaves : int
        How many spatial frequencies, an octave apart.
    n_orientations : int
        How many orientations, evenly spread over 180 degrees.
    wavelength : float
        Of the highest frequency [pixels of the input].
    grid : int
        The energy maps are averaged to at most `grid` x `grid` places.

    References
    ----------
    Adelson & Bergen (1985), Spatiotemporal energy models for the perception of motion, JOSA A 2.
    Kay et al. (2008), Identifying natural images from human brain activity, Nature 452.
    """

    kernels: torch.Tensor

    def __init__(
        self, n_octaves: int = 5, n_orientations: int = 8, wavelength: float = 4.0, grid: int = 16
    ) -> None:
        super().__init__()
        self.n_octaves = n_octaves
        self.grid = grid
        self.register_buffer("kernels", gabor_kernels(n_orientations, wavelength))
        self.octave = nn.ModuleList([nn.Identity() for _ in range(n_octaves)])
        self.energy = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return all energies, shape (n_images, n_energies), of images (n_images, 3, h, w)."""
        grey = images.mean(1, keepdim=True)
        maps = []
        for number in range(self.n_octaves):
            energy = self._energy(grey)
            side = min(max(self.grid >> number, 2), *energy.shape[-2:])
            maps.append(self.octave[number](functional.adaptive_avg_pool2d(energy, side)))
            if number + 1 < self.n_octaves:
                grey = functional.avg_pool2d(grey, 2)
        return self.energy(torch.cat([one.flatten(1) for one in maps], 1))

    def _energy(self, grey: torch.Tensor) -> torch.Tensor:
        half = self.kernels.shape[-1] // 2
        padded = functional.pad(grey, (half,) * 4, mode="replicate")
        even, odd = functional.conv2d(padded, self.kernels).chunk(2, 1)
        return torch.sqrt(even.square() + odd.square())


def gabor_kernels(n_orientations: int, wavelength: float) -> torch.Tensor:
    """Return even, then odd Gabor filters without response to uniform light.

    Parameters
    ----------
    n_orientations : int
    wavelength : float
        [pixels]; the Gaussian's standard deviation is 0.56 wavelengths, one octave of bandwidth.

    Returns
    -------
    torch.Tensor, shape (2 * n_orientations, 1, size, size)
        Each filter has unit norm.
    """
    sigma = 0.56 * wavelength
    half = math.ceil(3 * sigma)
    axis = torch.arange(-half, half + 1, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    envelope = torch.exp(-(x.square() + y.square()) / (2 * sigma**2))
    angles = torch.arange(n_orientations, dtype=torch.float64) * math.pi / n_orientations
    phase = (
        2
        * math.pi
        / wavelength
        * (x * angles.cos()[:, None, None] + y * angles.sin()[:, None, None])
    )
    kernels = torch.cat([envelope * phase.cos(), envelope * phase.sin()])
    offset = kernels.sum((-2, -1), keepdim=True) / envelope.sum()
    kernels = kernels - offset * envelope
    kernels = kernels / kernels.flatten(1).norm(dim=1)[:, None, None]
    return kernels[:, None].float()


class Pixels(nn.Module):
    """The image itself, as the features of a control model."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the pixel values, shape (n_images, 3 * height * width)."""
        return self.pixels(images.flatten(1))


def load_gabor(
    *, size: int = 128, transform: dict[str, Any] | None = None, **options: Any
) -> Backbone:
    """Return the Gabor energy pyramid over images of `size` x `size` pixels."""
    size = _only_size(transform, size)
    return Backbone(
        name="gabor",
        module=GaborEnergy(**options),
        transform=_squash(size),
        weights="none (fixed Gabor filters)",
        licence="BSD-3-Clause",
        suggested_layers=["energy"],
    )


def load_pixels(*, size: int = 28, transform: dict[str, Any] | None = None) -> Backbone:
    """Return the pixels of images shrunk to `size` x `size`."""
    size = _only_size(transform, size)
    return Backbone(
        name="pixels",
        module=Pixels(),
        transform=_squash(size),
        weights="none (pixel values)",
        licence="BSD-3-Clause",
        suggested_layers=["pixels"],
    )


def _only_size(transform: dict[str, Any] | None, size: int) -> int:
    transform = dict(transform or {})
    size = transform.pop("size", size)
    if transform:
        raise UnknownNameError(
            f"`transform` has no option {next(iter(transform))!r} here. "
            f"{did_you_mean(next(iter(transform)), ['size'])}"
        )
    return int(size)


def _squash(size: int) -> ImageTransform:
    """Resize to a square, values in [0, 1]."""
    function = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize((size, size), v2.InterpolationMode.BILINEAR, antialias=True),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    return ImageTransform(
        function, f"resize to {size} x {size} (bilinear, antialiased), RGB in [0, 1]"
    )
