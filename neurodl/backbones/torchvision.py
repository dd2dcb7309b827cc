"""Networks and weights of torchvision: images and videos."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from torch import nn
from torchvision import models
from torchvision.transforms._presets import VideoClassification

from neurodl.backbones.base import Backbone, ImageTransform, VideoTransform, describe_transform
from neurodl.backbones.weights import fetch, fit_weights, load_weights, seeded
from neurodl.errors import UnknownNameError, did_you_mean

LICENCE = "BSD-3-Clause (torchvision); the training set's own terms apply to the weights"
WITH_CLASS_TOKEN = (models.VisionTransformer, models.video.MViT)
CHANNELS_LAST = {
    models.SwinTransformer: ("features", "norm"),
    models.video.SwinTransformer3d: ("patch_embed", "pos_drop", "features", "norm"),
}
HEADED = ("googlenet", "inception_v3")  # with side branches for training


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
    options = {**_published_options(architecture, entry), **model_kwargs}
    if architecture in HEADED:
        options.setdefault("init_weights", weights is None and not pretrained)
    with seeded(seed):
        module = models.get_model(architecture, weights=None, **options)
    full_name = f"torchvision:{name}"
    if weights is not None:
        origin = load_weights(module, weights, full_name, _present_name)
    elif pretrained:
        fit_weights(module, fetch(entry.url, full_name), entry.url, full_name, _present_name)
        origin = f"pretrained {entry}"
    else:
        origin = f"untrained, seed {0 if seed is None else seed}"
    _drop_training_heads(module)
    return Backbone(
        name=full_name,
        module=module,
        transform=_transform(entry, transform or {}),
        weights=origin,
        licence=str(entry.meta.get("license", LICENCE)),
        prefix_tokens=("class",) if isinstance(module, WITH_CLASS_TOKEN) else (),
        frames_per_token=2 if isinstance(module, models.video.MViT) else 1,
        channels_last=CHANNELS_LAST.get(type(module), ()),
        suggested_layers=_transformer_blocks(module),
    )


def _published_options(architecture: str, entry: Any) -> dict[str, Any]:
    """Return the options that the published weights were trained with.

    An untrained control gets them too: the same network, on the same input.
    """
    options: dict[str, Any] = {"num_classes": len(entry.meta["categories"])}
    if architecture.startswith("vit_"):
        options["image_size"] = entry.meta["min_size"][0]
    if architecture in HEADED:
        # These weights are from another library: the network itself undoes the mean and sd.
        options["transform_input"] = True
    return options


def _present_name(key: str) -> str:
    """Return the present name of a tensor in the published files of DenseNets and ViTs.

    Examples
    --------
    >>> _present_name("features.denseblock1.denselayer2.norm.1.weight")
    'features.denseblock1.denselayer2.norm1.weight'
    >>> _present_name("encoder.layers.encoder_layer_0.mlp.linear_2.bias")
    'encoder.layers.encoder_layer_0.mlp.3.bias'
    """
    key = re.sub(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key)
    return re.sub(
        r"(\.encoder_layer_\d+\.mlp\.)linear_([12])\.",
        lambda found: f"{found[1]}{3 * (int(found[2]) - 1)}.",
        key,
    )


def _drop_training_heads(module: nn.Module) -> None:
    """Take away the side branches that run in training only, and could never be a layer."""
    for name in ("aux1", "aux2", "AuxLogits"):
        if isinstance(getattr(module, name, None), nn.Module):
            setattr(module, name, None)
            module.aux_logits = False  # type: ignore[assignment]


def _transformer_blocks(module: nn.Module) -> list[str]:
    if isinstance(module, models.VisionTransformer):
        return [f"encoder.layers.{name}" for name, _ in module.encoder.layers.named_children()]
    if isinstance(module, models.SwinTransformer):
        return [f"features.{name}" for name, _ in module.features.named_children()]
    return []


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
