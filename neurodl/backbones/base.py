"""Backbone: a network together with what must travel with its weights."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from torch import nn
from torchvision.transforms.v2 import functional as image_ops

from neurodl.backbones.catalogue import N_TRACED, select, trace
from neurodl.backbones.untrained import UNTRAINED, signs_untrained
from neurodl.errors import UnknownNameError

SKIPPED_KINDS = (
    nn.Dropout, nn.Identity, nn.modules.batchnorm._BatchNorm, nn.ReLU, nn.GELU,
    nn.ParameterList, nn.ParameterDict,
)  # fmt: skip


@dataclass(frozen=True)
class ImageTransform:
    """From a uint8 image to a network's input: a function of PIL images, with its text.

    Parameters
    ----------
    function : callable
        Takes a PIL image, returns a float tensor, shape (3, height, width).
    text : str
        What it does, to be printed and stored: size, crop, interpolation, mean, std.
    """

    function: Callable[[Any], torch.Tensor]
    text: str

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the input for one image (3, h, w) or the frames of a video (t, 3, h, w)."""
        if pixels.ndim == 4:
            return torch.stack([self(frame) for frame in pixels])
        return torch.as_tensor(self.function(image_ops.to_pil_image(pixels)))


def describe_transform(
    resize: Any,
    crop: Any,
    interpolation: str,
    mean: Any,
    std: Any,
    *,
    antialias: bool = True,
    largest: float = 1.0,
) -> str:
    """Return a transform as text.

    Parameters
    ----------
    resize, crop : int, (height, width) or None
        A single number is the shorter side, or both sides of the crop; None is no such step.
    interpolation : str
    mean, std : sequence of float
        Per colour, of values between 0 and `largest`.
    antialias : bool
    largest : float
        What white is before the mean is subtracted.

    Examples
    --------
    >>> describe_transform(256, 224, "bilinear", [0.5] * 3, [0.2] * 3, antialias=False)
    'shorter side to 256 (bilinear, not antialiased), centre crop 224 x 224, RGB in 0..1,
    mean 0.5 0.5 0.5, std 0.2 0.2 0.2'
    """
    smooth = "antialiased" if antialias else "not antialiased"
    sizes = [int(size) for size in (resize if isinstance(resize, (list, tuple)) else [resize or 0])]
    crops = [int(size) for size in (crop if isinstance(crop, (list, tuple)) else [crop or 0])]
    scaled = f"shorter side to {sizes[0]}" if len(sizes) == 1 else f"resize to {_by(sizes)}"
    return (
        (f"{scaled} ({interpolation}, {smooth}), " if resize else "no resizing, ")
        + (f"centre crop {_by(crops * (3 - len(crops)))}, " if crop else "no crop, ")
        + f"RGB in 0..{largest:.6g}, mean {_numbers(mean)}, std {_numbers(std)}"
    )


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _numbers(values: Any) -> str:
    return " ".join(f"{float(value):.6g}" for value in values)


@dataclass(frozen=True)
class VideoTransform:
    """From the uint8 frames of a clip to a video network's input (3, t, height, width)."""

    function: Callable[[torch.Tensor], torch.Tensor]
    text: str
    n_frames: int = 16  # that the network takes; most take any number
    fps: float | None = None  # at which the clips' frames must be, if it matters

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the input for one clip, shape (t, 3, h, w)."""
        return self.function(pixels)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network in evaluation mode, with its transform, its layers and where its weights are from.

    Parameters
    ----------
    name : str
        For example ``"timm:resnet50.a1_in1k"``.
    module : torch.nn.Module
        The network.
    transform : ImageTransform or VideoTransform
        What belongs to the weights: from uint8 RGB pixels to the input.
    weights : str
        Where the weights come from, for people: a published tag, a file, "untrained, seed 0".
    licence : str
        The licence of the weights, as far as it is known.
    prefix_tokens : sequence of str
        What stands before the patch tokens of a transformer: "class", "distillation", "register".
    frames_per_token : int
        Of a transformer of videos: how many frames a patch token is of.
    tokens_in_order : bool
        Whether patch tokens are row by row, as they lie in the image.
    channels_last : sequence of str
        The layers, with all below them, whose output is (batch, [time,] height, width, channel),
        as in Swin; ``""`` stands for all.
    suggested_layers : sequence of str
        The layers taken when none are named; by default found from the module tree.
    own_transform : str
        The text of the transform that belongs to the weights, as far as it is known.
    fitted_on : sequence of str
        The stimuli that something of the network was fitted to, such as its batch normalisation.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    >>> Backbone("mine", net, ImageTransform(image_ops.to_tensor, "0..1"), "untrained").layers
    ['0', '1']
    """

    name: str
    module: nn.Module
    transform: ImageTransform | VideoTransform
    weights: str
    licence: str = "not stated"
    prefix_tokens: Sequence[str] = ()
    frames_per_token: int = 1
    tokens_in_order: bool = True
    channels_last: Sequence[str] = ()
    suggested_layers: Sequence[str] = field(default=())
    own_transform: str = ""
    fitted_on: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Put the network into evaluation mode."""
        self.module.eval()

    def __repr__(self) -> str:
        """Return a short summary."""
        return f"<Backbone {self.name}: {self.weights}; {len(self.layers)} layers>"

    def __sklearn_clone__(self) -> Backbone:
        """Return itself: copies of a model share the network that they start from."""
        return self

    @property
    def kind(self) -> str:
        """Return what the network takes: "image" or "video"."""
        return "video" if isinstance(self.transform, VideoTransform) else "image"

    @property
    def layers(self) -> list[str]:
        """The dotted names of all layers."""
        return [name for name, _ in self.module.named_modules() if name]

    @property
    def n_prefix_tokens(self) -> int:
        """How many tokens stand before the patch tokens."""
        return len(self.prefix_tokens)

    @cached_property
    def catalogue(self) -> pd.DataFrame:
        """The layers that a forward pass calls, in the order in which they are complete.

        Made from a pass of two noise images, when it is first asked for. Indexed by the dotted
        name; columns kind, the module's class; shape of its output, or of the first tensor in it,
        for one stimulus; depth, how many layers with weights were computed by then;
        n_parameters; n_calls in a pass, of which features are the last; per_stimulus, whether the
        first axis of the output is the stimulus, without which there are no features.
        """
        noise = torch.Generator().manual_seed(0)
        frames = (self.transform.n_frames,) if isinstance(self.transform, VideoTransform) else ()
        pixels = torch.randint(0, 256, (*frames, 3, 240, 320), generator=noise, dtype=torch.uint8)
        inputs = torch.stack([self.transform(pixels)] * N_TRACED)
        return trace(self.module, self.as_input(inputs))

    def as_input(self, batch: torch.Tensor) -> torch.Tensor:
        """Return inputs on the network's device and, of floats, in its own precision."""
        values = next((p for p in self.module.parameters() if p.is_floating_point()), None)
        if values is None:
            return batch
        return batch.to(values.device, values.dtype if batch.is_floating_point() else None)

    def is_channels_last(self, layer: str) -> bool:
        """Return whether a map that `layer` gives has its channels last."""
        return any(
            not prefix or layer == prefix or layer.startswith(f"{prefix}.")
            for prefix in self.channels_last
        )

    @property
    def blocks(self) -> list[str]:
        """The coarse steps from input to output."""
        return list(self.suggested_layers) or _stages(self.module)

    @property
    def default_layers(self) -> list[str]:
        """The layers taken when none are named: up to eight, from input to output."""
        names = self.blocks
        if len(names) <= 8:
            return names
        picked = torch.linspace(0, len(names) - 1, 8).round().int().tolist()
        return [names[index] for index in picked]

    def check_layers(self, layers: str | Sequence[str] | None) -> list[str]:
        """Return `layers` as a list of known names; None stands for `default_layers`.

        Parameters
        ----------
        layers : str or sequence of str, optional
            ``"all"`` that the network calls, ``"blocks"``, or ``"every:3"``, every third of the
            blocks; or names, and patterns such as ``"layer3.*"`` or ``"blocks.*.mlp"``, in which a
            star stays between two dots. In a list, "all" and "blocks" are names.

        Returns
        -------
        list of str
            Patterns in the order of the forward pass, no name twice.

        Raises
        ------
        UnknownNameError
            A layer does not exist; the nearest names are listed.

        Examples
        --------
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        >>> to_floats = ImageTransform(lambda image: image_ops.pil_to_tensor(image) / 255, "0..1")
        >>> backbone = Backbone("mine", net, to_floats, "untrained")
        >>> backbone.check_layers("all"), backbone.check_layers("[02]")
        (['0', '1', '2'], ['0', '2'])
        """
        if layers is None:
            return self.default_layers
        names = select(self, layers)
        if not names:
            raise UnknownNameError(
                f"`layers` is empty. {self.name} suggests {self.default_layers}."
            )
        return names

    def describe(self) -> dict[str, str]:
        """Return what results are labelled with: backbone, weights, their hash, transform, licence.

        Where they hold, also ``own_transform``, that of the weights, if another one is used, and
        ``signs_untrained``, why trained weights look as if they were not.
        """
        labels = {
            "backbone": self.name,
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            "transform": self.transform.text,
            "licence": self.licence,
        }
        if self.own_transform and self.own_transform != self.transform.text:
            labels["own_transform"] = self.own_transform
        if not self.weights.startswith(UNTRAINED) and self._signs_untrained:
            labels["signs_untrained"] = self._signs_untrained
        return labels

    @cached_property
    def _signs_untrained(self) -> str:
        return signs_untrained(self.module)

    @cached_property
    def weights_sha256(self) -> str:
        """The hash of every parameter and buffer: what makes a cached feature this network's."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            if isinstance(tensor, torch.Tensor):
                digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
                raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                digest.update(raw.numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def architecture_sha256(self) -> str:
        """The hash of the module tree and its code, which the weights alone do not fix."""
        parts = [repr(self.module)]
        for kind in sorted({type(part) for part in self.module.modules()}, key=repr):
            if not kind.__module__.startswith(("torch.", "torchvision.", "timm.")):
                parts.append(_source(kind))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        # Classes typed into an interactive session have no source.
        return repr(kind.__qualname__)


def open_lists(module: nn.Module, name: str) -> list[str]:
    """Return `name`, or what is in it if it is a list of modules, which is never called itself.

    Examples
    --------
    >>> net = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})
    >>> open_lists(net, "blocks")
    ['blocks.0', 'blocks.1']
    """
    part = module.get_submodule(name)
    if not isinstance(part, (nn.ModuleList, nn.ModuleDict)):
        return [] if isinstance(part, SKIPPED_KINDS) else [name]
    inner = [open_lists(module, f"{name}.{key}") for key, _ in part.named_children()]
    return [path for paths in inner for path in paths]


def _stages(module: nn.Module) -> list[str]:
    """Return the coarse steps from input to output, opening long containers one level."""
    names = []
    for name, child in module.named_children():
        inner = [
            f"{name}.{key}"
            for key, part in child.named_children()
            if not isinstance(part, SKIPPED_KINDS)
        ]
        if isinstance(child, nn.Sequential) and len(inner) > 3:
            names.extend(inner)
        else:
            names.extend(open_lists(module, name))
    return names or [name for name, _ in module.named_modules() if name]
