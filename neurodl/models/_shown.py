"""Stimuli as inputs of a network: decoded once where they fit into memory, varied where asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2

from neurodl.backbones import Backbone
from neurodl.errors import SchemaError, UnknownNameError, did_you_mean
from neurodl.features.fast import LAYOUTS
from neurodl.runtime import available_memory, derive_seed, lone_threads
from neurodl.stimuli import N_DECODERS

logger = logging.getLogger(__name__)
MEMORY_SHARE = 0.3  # of what is free, that inputs and outputs may take
# What moves things in the image, which matters where a target's place in it does.
MOVING = ("Flip", "Crop", "Affine", "Rotation", "Perspective", "Elastic", "Zoom", "Resize", "Pad")


class Shown:
    """The network inputs of stimuli, by row.

    Parameters
    ----------
    backbone : Backbone
        Its transform makes inputs of pixels.
    stimuli : Stimuli, torch Dataset, or array of images
        What ``stimuli[row]`` gives is uint8, shape (3, height, width) or (t, 3, height, width).
    augment : callable, optional
        See `make_augmentation`; it changes pixels of training rows before the transform.

    Raises
    ------
    SchemaError
        The stimuli are no uint8 images.
    """

    def __init__(self, backbone: Backbone, stimuli: Any, augment: Any = None) -> None:
        self.transform = backbone.transform
        self.stimuli, self.augment = stimuli, augment
        example = self._input(0)
        self.example = example[None]
        size = len(stimuli) * example.numel() * example.element_size()
        keeps = size <= MEMORY_SHARE * available_memory(torch.device("cpu"))
        self.kept = torch.empty(len(stimuli), *example.shape) if keeps else None
        self.known = np.zeros(len(stimuli), bool)
        if not keeps:
            logger.info("inputs take %.1f GB and are decoded in every epoch", size / 1e9)

    def __len__(self) -> int:
        """Return the number of stimuli."""
        return len(self.stimuli)

    def inputs(self, rows: Any) -> torch.Tensor:
        """Return the inputs of some rows, (n_rows, ...), on the CPU, with the channels last."""
        rows = np.asarray(rows)
        if self.kept is None:
            batch = self._decoded(rows)
        else:
            new = rows[~self.known[rows]]
            if len(new):
                self.kept[new] = self._decoded(new)
                self.known[new] = True
            batch = self.kept[rows]
        return batch.contiguous(memory_format=LAYOUTS.get(batch.ndim, torch.contiguous_format))

    def varied(self, rows: Any, seed: int) -> torch.Tensor:
        """Return the inputs of some rows with the augmentation, drawn from `seed` and the row."""
        if self.augment is None:
            return self.inputs(rows)
        found = []
        with torch.random.fork_rng(devices=[]):
            for row in np.asarray(rows).tolist():
                torch.default_generator.manual_seed(derive_seed(seed, row))
                found.append(self.transform(self.augment(self._pixels(row))))
        batch = torch.stack(found)
        return batch.contiguous(memory_format=LAYOUTS.get(batch.ndim, torch.contiguous_format))

    def _decoded(self, rows: np.ndarray) -> torch.Tensor:
        with lone_threads(N_DECODERS) as pool:
            decoded = list(pool.map(self._input, rows.tolist()))
        shapes = {tuple(one.shape) for one in decoded} | {tuple(self.example.shape[1:])}
        if len(shapes) > 1:
            raise SchemaError(
                f"The stimuli make inputs of {len(shapes)} shapes, {sorted(shapes)[:2]} and so on, "
                "but a network is tuned on one. Open clips with n_frames=..."
            )
        return torch.stack(decoded)

    def _input(self, row: int) -> torch.Tensor:
        return self.transform(self._pixels(row)).float()

    def _pixels(self, row: int) -> torch.Tensor:
        pixels = torch.as_tensor(self.stimuli[row])
        if pixels.dtype != torch.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-3] != 3:
            raise SchemaError(
                "A fine-tuned encoding model takes stimuli: Stimuli, or images as uint8 of shape "
                f"(n, 3, height, width); a row here is {pixels.dtype}, {tuple(pixels.shape)}. For "
                "features, use RidgeCV."
            )
        return pixels


def make_augmentation(names: Sequence[Any]) -> Any:
    """Return torchvision's transforms by name, one after the other; None for no names.

    Parameters
    ----------
    names : sequence
        Classes of ``torchvision.transforms.v2`` by name, each with its options as a mapping if it
        has any: ``["RandomHorizontalFlip", ("ColorJitter", {"brightness": 0.2})]``.

    Raises
    ------
    UnknownNameError
        There is no such transform.
    ValueError
        An option is wrong.
    """
    chosen = []
    for one in [names] if isinstance(names, str) else names:
        name, options = (one, {}) if isinstance(one, str) else one
        kind = getattr(v2, str(name), None)
        if not (isinstance(kind, type) and issubclass(kind, v2.Transform)):
            known = [key for key in dir(v2) if isinstance(getattr(v2, key), type)]
            raise UnknownNameError(
                f"`augment` has no transform {name!r} of torchvision. "
                f"{did_you_mean(str(name), known)}"
            )
        if not isinstance(options, Mapping):
            raise ValueError(
                f"`augment`: the options of {name} must be a mapping, got {options!r}."
            )
        try:
            chosen.append(kind(**options))
        except TypeError as error:
            raise ValueError(f"`augment`: {name}: {error}") from error
    return v2.Compose(chosen) if chosen else None


def moving(names: Sequence[Any]) -> list[str]:
    """Return those of an augmentation's transforms that move things in the image.

    Examples
    --------
    >>> moving(["RandomHorizontalFlip", ("ColorJitter", {"hue": 0.1})])
    ['RandomHorizontalFlip']
    """
    listed = [names] if isinstance(names, str) else names
    called = [one if isinstance(one, str) else str(one[0]) for one in listed]
    return [name for name in called if any(part in name for part in MOVING)]
