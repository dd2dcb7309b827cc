"""Networks and weights of torchvision: images and videos."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.transforms._presets import VideoClassification

from neurodl.backbones.base import Backbone, ImageTransform, VideoTransform, describe_transform
from neurodl.backbones.weights import explain_download, load_weights, seeded
from neurodl.errors import UnknownNameError, did_you_mean

LICENCE = "BSD-3-Clause (torchvision); the training set's own terms apply to the weights"


def names() -> list[str]:
    """Return the names of all image and video classification networks."""
    return sorted(models.list_models(module=models) + models.list_models(module=models.video))


def load(
    name: str,
    *,
    weights: str | None = None,
    pretrained: bool = True,
    seed: int | None = None,
    transform: dict[str, Any] | None = None,
    **model_kwargs: Any,
) -> Backbone:
    """Return ``"resnet18"`` or, with chosen weights, ``"resnet18.IMAGENET1K_V1"``."""
    architecture, _, tag = name.partition(".")
    if architecture not in names():
        raise UnknownNameError(
            f"torchvision has no network {architecture!r}. {did_you_mean(architecture, names())}"
        )
    published = models.get_model_weights(architecture)
    if tag and tag not in published.__members__:
        raise UnknownNameError(
            f"torchvision:{architecture} has no weights {tag!r}. "
            f"{did_you_mean(tag, list(published.__members__))}"
        )
    entry = published[tag] if tag else published.DEFAULT
    with seeded(seed):
        module = models.get_model(
            architecture, weights=None, **_kwargs(entry, pretrained, weights, model_kwargs)
        )
    full_name = f"torchvision:{name}"
    if weights is not None:
        origin = load_weights(module, weights, full_name)
    elif pretrained:
        origin = _download(module, entry, full_name)
    else:
        origin = f"untrained, seed {0 if seed is None else seed}"
    return Backbone(
        name=full_name,
        module=module,
        transform=_transform(entry, transform or {}),
        weights=origin,
        licence=str(entry.meta.get("license", LICENCE)),
        n_prefix_tokens=1 if isinstance(module, models.VisionTransformer) else 0,
        channels_last=("features", "norm") if isinstance(module, models.SwinTransformer) else (),
        suggested_layers=_transformer_blocks(module),
    )


def _kwargs(
    entry: Any, pretrained: bool, weights: str | None, given: dict[str, Any]
) -> dict[str, Any]:
    """Return the options that published weights were trained with, under the given ones."""
    if not pretrained or weights is not None:
        return given
    return {"num_classes": len(entry.meta["categories"]), **given}


def _transformer_blocks(module: nn.Module) -> list[str]:
    if isinstance(module, models.VisionTransformer):
        return [f"encoder.layers.{name}" for name, _ in module.encoder.layers.named_children()]
    if isinstance(module, models.SwinTransformer):
        return [f"features.{name}" for name, _ in module.features.named_children()]
    return []


def _download(module: nn.Module, entry: Any, name: str) -> str:
    with explain_download(name, entry.url):
        state = torch.hub.load_state_dict_from_url(
            entry.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    module.load_state_dict(state, strict=True)
    return f"pretrained {entry}"


def _transform(entry: Any, overrides: dict[str, Any]) -> ImageTransform | VideoTransform:
    """Return the evaluation transform of published weights, with single values replaced."""
    factory: partial[Any] = entry.transforms
    known = {"crop_size", "resize_size", "mean", "std", "interpolation"}
    for key in overrides:
        if key not in known:
            raise UnknownNameError(f"`transform` has no option {key!r}. {did_you_mean(key, known)}")
    function = factory(**overrides)
    is_video = isinstance(function, VideoClassification)
    text = describe_transform(
        function.resize_size,
        function.crop_size,
        function.interpolation.value,
        function.mean,
        function.std,
        antialias=not is_video,
    )
    return (VideoTransform if is_video else ImageTransform)(function, text)
