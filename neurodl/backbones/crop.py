"""Where in an image a network looks: the part that its transform keeps."""

from __future__ import annotations

from typing import NamedTuple

import torch

from neurodl.backbones.base import ImageTransform, VideoTransform

# How far positions may be off a straight line, as a share of the image: rounding to 8 bits and to
# whole pixels stays well below.
MAX_BENT = 0.02


class Box(NamedTuple):
    """A rectangle in an image [pixels]; its edges lie between pixels, or outside of the image."""

    top: float
    left: float
    height: float
    width: float


def crop_box(transform: ImageTransform | VideoTransform, height: int, width: int) -> Box:
    """Return the part of an image that a transform makes the network's input of.

    Found by showing it an image whose red rises from top to bottom and whose green rises from left
    to right, and what black and white become.

    Parameters
    ----------
    transform : ImageTransform or VideoTransform
    height, width : int
        Of the image [pixels].

    Raises
    ------
    ValueError
        The transform does something else than to resize and crop, and to scale each colour.

    Examples
    --------
    >>> from neurodl.backbones import load_backbone
    >>> box = crop_box(load_backbone("pixels").transform, 100, 200)
    >>> [round(edge) for edge in box]
    [0, 0, 100, 200]
    """
    ramp = torch.zeros(3, height, width)
    ramp[0] = (torch.arange(height)[:, None] + 0.5) / height
    ramp[1] = (torch.arange(width) + 0.5) / width
    black, white, shown = (
        _shown(transform, (255 * image).round().to(torch.uint8))
        for image in (torch.zeros_like(ramp), torch.ones_like(ramp), ramp)
    )
    place = (shown - black) / (white - black)
    top, tall = _line(place[0], 1 / height, transform)
    left, wide = _line(place[1].T, 1 / width, transform)
    return Box(top * height, left * width, tall * height, wide * width)


def _shown(transform: ImageTransform | VideoTransform, image: torch.Tensor) -> torch.Tensor:
    """Return red and green of the input for an image, (2, height, width), float64."""
    if isinstance(transform, VideoTransform):
        return transform(image[None])[:2, 0].double()
    return transform(image)[:2].double()


def _line(
    place: torch.Tensor, pixel: float, transform: ImageTransform | VideoTransform
) -> tuple[float, float]:
    """Return where the first edge lies and how far the last is from it, as shares of the image.

    Parameters
    ----------
    place : torch.Tensor, shape (n, n_across)
        Where in the image each place of the input is, along its first axis.
    pixel : float
        The size of a pixel of the image; within one of its edges nothing rises.
    """
    middle = place.mean(1)
    inside = (middle > pixel) & (middle < 1 - pixel)
    unclear = (
        f"Where in an image the network looks cannot be told: its transform ({transform.text}) "
        "does more than resize, crop and scale each colour. Leave `image_size` out, for maps on "
        "the network's input."
    )
    if inside.sum() < 2:
        raise ValueError(unclear)
    steps = ((torch.arange(len(place), dtype=torch.float64) + 0.5) / len(place))[inside]
    design = torch.stack([torch.ones_like(steps), steps], 1)
    start, extent = torch.linalg.lstsq(design, middle[inside]).solution.tolist()
    bent = (place[inside] - (start + extent * steps)[:, None]).abs().max()
    if float(bent) > MAX_BENT or extent <= 0:
        raise ValueError(unclear)
    return start, extent
