"""Motion energy of whole movies, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
import xarray as xr

from neurodl.backbones.motion_energy import MotionEnergy, load_motion_energy, stream
from neurodl.backbones.motion_filters import (
    N_DIRECTIONS,
    SPATIAL_FREQUENCIES,
    TEMPORAL_FREQUENCIES,
)
from neurodl.errors import FileFormatError
from neurodl.io.video import frame_blocks
from neurodl.runtime import lent, precision_of, resolve_device
from neurodl.schema import check_features

BLOCK = 32  # frames that are decoded at once


def motion_energy(
    movie: str | Path | np.ndarray,
    *,
    fps: float,
    size: int | Sequence[int] = 96,
    temporal_frequencies: Sequence[float] = TEMPORAL_FREQUENCIES,
    spatial_frequencies: Sequence[float] = SPATIAL_FREQUENCIES,
    n_directions: int = N_DIRECTIONS,
    log: bool = True,
    device: str = "auto",
) -> xr.DataArray:
    """Return the motion energy of a movie of any length, for `align`.

    The movie is read once, in blocks of 32 frames; the energies are those of the whole. Put the
    runs of an experiment together with ``xarray.concat`` and a coord run.

    Parameters
    ----------
    movie : str, Path or numpy.ndarray
        A video file, or frames of shape (n_frames, height, width, 3), uint8 RGB.
    fps : float
        Frames per second: those taken from the file, or the rate of the frames given. A frame's
        energy is of 2/3 s around it, half of it before.
    size : int or (int, int)
        Height and width to which frames are resized [pixels]; a number is a square.
    temporal_frequencies : sequence of float
        [Hz], at most half of `fps`.
    spatial_frequencies : sequence of float
        [cycles per image height]
    n_directions : int
        Of motion, even.
    log : bool
        Whether to take the logarithm of the energies.
    device : str
        See `resolve_device`.

    Returns
    -------
    xarray.DataArray
        float32, dims ``(time, feature)``: time [s] of each frame, and the coords of the filters
        along feature: x, y, direction, spatial_frequency, temporal_frequency and their widths; see
        `neurodl.backbones.motion_filters.pyramid`.

    Raises
    ------
    FileFormatError
        The file is no video, or the frames have another shape or type.
    ValueError
        No filters can be made of the options.

    References
    ----------
    Adelson & Bergen (1985), Spatiotemporal energy models for the perception of motion, JOSA A 2.
    Nishimoto et al. (2011), Reconstructing visual experiences from brain activity evoked by natural
    movies, Current Biology 21.

    Examples
    --------
    >>> frames = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    >>> energy = motion_energy(frames, fps=15, size=32, spatial_frequencies=[4])
    >>> energy.dims, energy.sizes["time"], float(energy.time[-1].round(3))
    (('time', 'feature'), 20, 1.267)
    """
    backbone = load_motion_energy(
        fps=fps,
        size=size,
        temporal_frequencies=temporal_frequencies,
        spatial_frequencies=spatial_frequencies,
        n_directions=n_directions,
        log=log,
    )
    network, chosen = cast(MotionEnergy, backbone.module), resolve_device(device)
    if isinstance(movie, (str, Path)):
        name, blocks = str(movie), frame_blocks(Path(movie), fps, BLOCK)
    else:
        name, blocks = "frames", _checked_blocks(np.asarray(movie))
    luminances = (backbone.transform(_pixels(block))[0].to(chosen) for block in blocks)
    with lent(network, chosen), precision_of(chosen, amp=False):
        pieces = [piece.cpu().numpy() for piece in stream(network, luminances)]
    values = np.concatenate(pieces)
    array = xr.DataArray(
        values,
        dims=("time", "feature"),
        coords={
            "time": np.arange(len(values)) / fps,
            **{name: ("feature", network.filters[name].to_numpy()) for name in network.filters},
        },
        attrs={
            "layer": backbone.name,
            "backbone": backbone.name,
            "weights": backbone.weights,
            "transform": backbone.transform.text,
            "licence": backbone.licence,
            "stimulus_file": name,
        },
    )
    return check_features(array)[backbone.name]


def _checked_blocks(frames: np.ndarray) -> Iterator[np.ndarray]:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise FileFormatError(
            "Frames must have shape (n_frames, height, width, 3) and type uint8, but got "
            f"{frames.shape} and {frames.dtype}."
        )
    return (frames[start : start + BLOCK] for start in range(0, len(frames), BLOCK))


def _pixels(block: np.ndarray) -> torch.Tensor:
    """Return frames with their colours first."""
    return torch.from_numpy(block).movedim(-1, 1)
