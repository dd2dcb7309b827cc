"""The filters of motion energy: where they are, and what each looks like in space and in time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

TEMPORAL_FREQUENCIES = (0.0, 2.0, 4.0)
SPATIAL_FREQUENCIES = (0.0, 2.0, 4.0, 8.0, 16.0)
N_DIRECTIONS = 8
CYCLES = 0.6  # spatial standard deviation in wavelengths
LARGEST_SD = 0.3  # of the spatial envelope, in image heights, and of the temporal, in windows
SPACING = 3.5  # of filters, in spatial standard deviations
TEMPORAL_CYCLES = 10.0
WINDOW_SECONDS = 2 / 3
THRESHOLD = 1e-3  # of a filter's amplitude, below which a pixel does not count
COLUMNS = (
    "x", "y", "direction", "spatial_frequency", "spatial_sd", "temporal_frequency", "temporal_sd",
)  # fmt: skip


def pyramid(
    aspect: float,
    temporal_frequencies: Sequence[float] = TEMPORAL_FREQUENCIES,
    spatial_frequencies: Sequence[float] = SPATIAL_FREQUENCIES,
    n_directions: int = N_DIRECTIONS,
) -> pd.DataFrame:
    """Return the filters that tile an image, one row each.

    Parameters
    ----------
    aspect : float
        Width by height of the image.
    temporal_frequencies : sequence of float
        [Hz]
    spatial_frequencies : sequence of float
        [cycles per image height]; 0 adds, at each place, filters for uniform flicker.
    n_directions : int
        Of motion, evenly spread over 360 degrees; an even number.

    Returns
    -------
    pandas.DataFrame
        Columns x and y, the place from the left and the top [image heights]; direction [degrees]
        of the motion that a filter responds to, 0 to the right and 90 up (pymoten, whose filters
        these are in the same order, names the opposite one); spatial_frequency, spatial_sd [image
        heights]; temporal_frequency, temporal_sd [windows of 2/3 s].

    References
    ----------
    Adelson & Bergen (1985), Spatiotemporal energy models for the perception of motion, JOSA A 2.
    Nishimoto et al. (2011), Reconstructing visual experiences from brain activity evoked by natural
    movies, Current Biology 21.
    """
    rows = []
    directions = [360 / n_directions * number for number in range(n_directions)]
    moving = [frequency for frequency in spatial_frequencies if frequency]
    for frequency, direction in itertools.product(moving, directions):
        sd = min(CYCLES / frequency, LARGEST_SD)
        xs, ys = _centres(aspect, sd), _centres(1.0, sd)
        for x, y, hertz in itertools.product(xs, ys, temporal_frequencies):
            temporal_sd = min(TEMPORAL_CYCLES / hertz, LARGEST_SD) if hertz else LARGEST_SD
            if not hertz and direction >= 180:
                continue  # without motion, opposite directions are the same
            moves = (direction + 180) % 360 if hertz else direction
            rows.append((x, y, moves, frequency, sd, hertz, temporal_sd))
            if direction == 0 and 0 in spatial_frequencies:
                rows.append((x, y, 0.0, 0.0, sd, hertz, temporal_sd))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _centres(length: float, sd: float) -> list[float]:
    n_each_side = max(math.floor((length / (SPACING * sd) - 1) / 2), 0)
    return [SPACING * sd * step + length / 2 for step in range(-n_each_side, n_each_side + 1)]


def temporal_filters(hertz: Sequence[float], n_window: int, fps: float) -> torch.Tensor:
    """Return the temporal filters, shape (n_frequencies, cosine and sine, n_window)."""
    times = torch.arange(n_window, dtype=torch.float64) / n_window - 0.5
    pairs = []
    for frequency in hertz:
        sd = min(TEMPORAL_CYCLES / frequency, LARGEST_SD) if frequency else LARGEST_SD
        envelope = torch.exp(-times.square() / (2 * sd**2))
        phase = times * (2 * math.pi * frequency * n_window / fps)
        pairs.append(torch.stack([envelope * phase.cos(), envelope * phase.sin()]))
    return torch.stack(pairs)


def spatial_filters(
    size: tuple[int, int], aspect: float, place: tuple[float, float, float], lines: np.ndarray
) -> tuple[tuple[slice, slice], torch.Tensor]:
    """Return the spatial filters at one place: the part of the image, and even and odd columns.

    Parameters
    ----------
    size : (height, width)
    aspect : float
        Width by height.
    place : (x, y, standard deviation)
    lines : numpy.ndarray, shape (n_filters, 2)
        Direction [degrees] and spatial frequency.

    Returns
    -------
    box : tuple of slice
    pairs : torch.Tensor, shape (n_pixels of the box, 2 n_filters), float64
    """
    x, y, sd = place
    reach = sd * math.sqrt(-2 * math.log(THRESHOLD / 2))
    axes, box = [], []
    for n_pixels, length, centre in ((size[0], 1.0, y), (size[1], aspect, x)):
        positions = torch.linspace(0, length, n_pixels, dtype=torch.float64) - centre
        inside = (positions.abs() <= reach).nonzero()[:, 0]
        axes.append(positions[inside])
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    angle, cycles = torch.deg2rad(torch.tensor(lines[:, 0])), torch.tensor(lines[:, 1])
    turns = 2 * math.pi * cycles[:, None]
    # A wave is a product of waves down and across, (n_filters, n_rows) and (n_filters, n_columns).
    down = torch.polar(_envelope(axes[0], sd), turns * angle.sin()[:, None] * axes[0])
    across = torch.polar(_envelope(axes[1], sd), -turns * angle.cos()[:, None] * axes[1])
    waves = down[:, :, None] * across[:, None, :]
    pairs = torch.stack([waves.real, waves.imag])
    pairs *= pairs.abs().sum(0) > THRESHOLD
    return (box[0], box[1]), pairs.flatten(2).flatten(0, 1).T.contiguous()


def _envelope(positions: torch.Tensor, sd: float) -> torch.Tensor:
    return torch.exp(-positions.square() / (2 * sd**2))


def check_options(
    size: Sequence[int],
    fps: float,
    temporal_frequencies: Sequence[float],
    spatial_frequencies: Sequence[float],
    n_directions: int,
) -> None:
    """Raise if no filters can be made of the options of `MotionEnergy`."""
    if len(size) != 2 or min(size) < 2:
        raise ValueError(f"`size` must be (height, width) of at least 2 pixels, but got {size}.")
    if not fps * WINDOW_SECONDS >= 1 or not math.isfinite(fps):
        raise ValueError(
            f"`fps` must be at least 1.5 frames per second, one in a window, but got {fps}."
        )
    if max(temporal_frequencies, default=-1) > fps / 2:
        raise ValueError(
            f"`temporal_frequencies` go up to {max(temporal_frequencies)} Hz, but {fps} frames per "
            f"second show no more than {fps / 2} Hz."
        )
    for name, values in (
        ("temporal_frequencies", temporal_frequencies),
        ("spatial_frequencies", spatial_frequencies),
    ):
        if not len(values) or min(values) < 0:
            raise ValueError(f"`{name}` must be numbers that are not negative, but got {values}.")
    if not any(spatial_frequencies):
        raise ValueError("`spatial_frequencies` need one above 0.")
    if n_directions < 2 or n_directions % 2:
        raise ValueError(f"`n_directions` must be an even number, but got {n_directions}.")
