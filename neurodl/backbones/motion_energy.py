"""Motion energy: a pyramid of spatio-temporal Gabor filters over the luminance of a movie."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as image_ops

from neurodl.backbones.base import Backbone, VideoTransform
from neurodl.backbones.motion_filters import (
    N_DIRECTIONS,
    SPATIAL_FREQUENCIES,
    TEMPORAL_FREQUENCIES,
    WINDOW_SECONDS,
    check_options,
    pyramid,
    spatial_filters,
    temporal_filters,
)
from neurodl.errors import UnknownNameError, did_you_mean

OFFSET = 1e-5  # added before the logarithm
BLOCK = 64  # frames whose responses are combined over time at once
TO_LUMINANCE = (0.212671, 0.715160, 0.072169)  # of linear red, green and blue


class MotionEnergy(nn.Module):
    """Energies of quadrature pairs of spatio-temporal Gabor filters, frame by frame.

    A frame's energy is the root of the summed squares of a pair's responses, in a window of 2/3 s
    around it, and its logarithm is taken. What is before and after the clip counts as no response.
    Opposite directions and all temporal frequencies share their spatial filters, and a filter
    reads only the part of the image where it is not nearly 0.

    Parameters
    ----------
    size : (height, width)
        Of the frames [pixels].
    fps : float
        Their rate [frames per second].
    temporal_frequencies, spatial_frequencies, n_directions
        See `pyramid`.
    log : bool
        Whether to take the logarithm, of the energy plus 0.00001.
    dtype : torch.dtype
        Of the filters, and so of the frames and energies.

    Attributes
    ----------
    filters : pandas.DataFrame
        The filters in the order of the features; see `pyramid`.

    References
    ----------
    See `pyramid`.
    """

    temporal: torch.Tensor
    picked: torch.Tensor

    def __init__(
        self,
        size: tuple[int, int],
        fps: float,
        temporal_frequencies: Sequence[float] = TEMPORAL_FREQUENCIES,
        spatial_frequencies: Sequence[float] = SPATIAL_FREQUENCIES,
        n_directions: int = N_DIRECTIONS,
        *,
        log: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        check_options(size, fps, temporal_frequencies, spatial_frequencies, n_directions)
        self.size, self.fps, self.log = (int(size[0]), int(size[1])), float(fps), log
        aspect = self.size[1] / self.size[0]
        self.filters = pyramid(aspect, temporal_frequencies, spatial_frequencies, n_directions)
        self.n_window = int(fps * WINDOW_SECONDS)
        self.hertz = sorted(set(map(float, temporal_frequencies)))
        temporal = temporal_filters(self.hertz, self.n_window, self.fps)
        self.register_buffer("temporal", temporal.to(dtype))
        self.boxes: list[tuple[slice, slice]] = []
        self._lay_out(aspect, dtype)
        self.energy = nn.Identity()

    def _lay_out(self, aspect: float, dtype: torch.dtype) -> None:
        """Make the spatial filters, place by place, and find each feature's among them."""
        table = self.filters.assign(line=self.filters["direction"] % 180)
        places = table.groupby(["x", "y", "spatial_sd"], sort=False)
        names: dict[tuple[float, ...], int] = {}
        for number, ((x, y, sd), rows) in enumerate(places):
            lines = rows[["line", "spatial_frequency"]].drop_duplicates().to_numpy()
            box, pairs = spatial_filters(self.size, aspect, (x, y, sd), lines)
            self.boxes.append(box)
            self.register_buffer(f"spatial{number}", pairs.to(dtype))
            for line, frequency in lines.tolist():
                names[x, y, sd, line, frequency] = len(names)
        keys = table[["x", "y", "spatial_sd", "line", "spatial_frequency"]]
        spatial = np.array([names[key] for key in keys.itertuples(index=False, name=None)])
        backwards = (table["direction"] >= 180).to_numpy()
        hertz = np.searchsorted(self.hertz, table["temporal_frequency"])
        self.register_buffer(
            "picked", torch.from_numpy((hertz * 2 + backwards) * len(names) + spatial)
        )

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Return energies (n, n_filters, n_frames, 1, 1) of luminance (n, 1, n_frames, h, w)."""
        responses = self.in_space(clips.flatten(0, 2)).unflatten(0, (len(clips), -1))
        energies = self.in_time(functional.pad(responses, (0, 0, *self.margins)))
        return self.energy(energies.transpose(1, 2)[..., None, None])

    @property
    def margins(self) -> tuple[int, int]:
        """How many frames before and after a frame its energy depends on."""
        after = math.ceil(self.n_window / 2) - 1
        return self.n_window - 1 - after, after

    def in_space(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the responses of even, then odd spatial filters, shape (n_frames, n_responses).

        Parameters
        ----------
        frames : torch.Tensor, shape (n_frames, height, width)
        """
        found = []
        for number, (rows, columns) in enumerate(self.boxes):
            pairs = getattr(self, f"spatial{number}")
            found.append(frames[:, rows, columns].flatten(1) @ pairs)
        even, odd = zip(*(one.chunk(2, 1) for one in found), strict=True)
        return torch.cat([*even, *odd], 1)

    def in_time(self, responses: torch.Tensor) -> torch.Tensor:
        """Return the energies, shape (n, n_frames, n_filters), of responses with their margins.

        Parameters
        ----------
        responses : torch.Tensor, shape (n, n_frames + n_window - 1, n_responses)
        """
        n_frames = responses.shape[1] - self.n_window + 1
        blocks = []
        for start in range(0, n_frames, BLOCK):
            n_rows = min(BLOCK, n_frames - start)
            part = responses[:, start : start + n_rows + self.n_window - 1]
            blocks.append(self._energies(part, n_rows))
        return torch.cat(blocks, 1)

    def _energies(self, responses: torch.Tensor, n_rows: int) -> torch.Tensor:
        window = self.temporal.flip(-1)  # (hertz, cosine and sine, window)
        bands = responses.new_zeros(*window.shape[:2], n_rows, responses.shape[1])
        for row in range(n_rows):
            bands[:, :, row, row : row + self.n_window] = window
        # (n, hertz, cosine and sine, rows, even and odd, spatial filters)
        moved = (bands.flatten(0, 2) @ responses).unflatten(1, (*window.shape[:2], n_rows))
        cosine, sine = moved.unflatten(-1, (2, -1)).unbind(2)
        even_sine, odd_sine = sine.unbind(-2)
        even_cosine, odd_cosine = cosine.unbind(-2)
        forwards = (even_cosine + odd_sine).square() + (even_sine - odd_cosine).square()
        backwards = (even_cosine - odd_sine).square() + (odd_cosine + even_sine).square()
        both = torch.stack([forwards, backwards], 2).transpose(1, 3)  # (n, rows, 2, hertz, ...)
        energies = both.transpose(2, 3).flatten(2)[..., self.picked].sqrt()
        return (energies + OFFSET).log() if self.log else energies


def stream(network: MotionEnergy, blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the energies of a long movie, shape (n_frames, n_filters), from blocks of its frames.

    They are those of the movie as a whole, a little later than the frames they are of.

    Parameters
    ----------
    network : MotionEnergy
    blocks : iterable of torch.Tensor, shape (n_frames, height, width)
        Luminance.
    """
    before, after = network.margins
    held: torch.Tensor | None = None
    with torch.inference_mode():
        for frames in blocks:
            responses = network.in_space(frames)
            if held is None:
                held = responses.new_zeros(before, responses.shape[1])
            held = torch.cat([held, responses])
            if len(held) >= network.n_window:
                yield network.in_time(held[None])[0]
                held = held[len(held) - network.n_window + 1 :]
        if held is not None and after:
            held = functional.pad(held, (0, 0, 0, after))
            if len(held) >= network.n_window:
                yield network.in_time(held[None])[0]


def luminance(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return CIE L* between 0 and 100, shape (n_frames, height, width), of resized frames.

    Parameters
    ----------
    frames : torch.Tensor, shape (n_frames, 3, height, width), uint8 sRGB
    size : (height, width)
        Bicubic, antialiased, to whole numbers again.
    """
    if tuple(frames.shape[-2:]) != tuple(size):
        frames = image_ops.resize(frames, list(size), InterpolationMode.BICUBIC, antialias=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    linear = torch.where(levels < 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    tables = (linear[:, None] * torch.tensor(TO_LUMINANCE, dtype=torch.float64)).float()
    red, green, blue = (
        tables[:, number][part.int()] for number, part in enumerate(frames.unbind(1))
    )
    y = red + green + blue
    return 116 * torch.where(y < 0.008856, 7.787 * y + 4 / 29, y ** (1 / 3)) - 16


def load_motion_energy(
    *,
    fps: float | None = None,
    size: int | Sequence[int] = 96,
    transform: Mapping[str, Any] | None = None,
    **options: Any,
) -> Backbone:
    """Return the motion energy of clips at `fps` frames per second, resized to `size`."""
    options_of_transform = dict(transform or {})
    size = options_of_transform.pop("size", size)
    if options_of_transform:
        wrong = next(iter(options_of_transform))
        raise UnknownNameError(
            f"`transform` has no option {wrong!r} here. {did_you_mean(wrong, ['size'])}"
        )
    if fps is None:
        raise ValueError(
            "'motion_energy' needs `fps`, the rate of the clips' frames [1 / s]: its filters are "
            "for so many cycles per second. Open the videos with the same fps."
        )
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise ValueError(f"`size` must be one number or (height, width), but got {size!r}.")
    height, width = sides
    module = MotionEnergy((height, width), fps, **options)

    def function(clip: torch.Tensor) -> torch.Tensor:
        return luminance(clip, (height, width))[None]

    text = (
        f"resize to {height} x {width} (bicubic, antialiased), CIE L* in 0..100, {fps:g} frames / s"
    )
    return Backbone(
        name="motion_energy",
        module=module,
        transform=VideoTransform(function, text, fps=float(fps)),
        weights="none (fixed spatio-temporal Gabor filters)",
        licence="BSD-3-Clause",
        suggested_layers=["energy"],
    )
