"""Networks and weights of timm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from timm.data import create_transform, resolve_data_config
from timm.models.hiera import Hiera
from torch import nn

from neurodl.backbones.base import Backbone, ImageTransform, describe_transform, open_lists
from neurodl.backbones.weights import explain_download, fetch, load_weights, seeded
from neurodl.errors import UnknownNameError, did_you_mean

SOURCES = ("state_dict", "file", "hf_hub_id", "url")  # of weights, as timm prefers them
TRANSFORM_OPTIONS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


def names() -> list[str]:
    """Return the names of all architectures and of all published weights."""
    return sorted({*timm.list_models(), *timm.list_pretrained()})


def load(
    name: str,
    *,
    weights: str | None = None,
    pretrained: bool = True,
    seed: int | None = None,
    transform: Mapping[str, Any] | None = None,
    **model_kwargs: Any,
) -> Backbone:
    """Return ``"resnet50.a1_in1k"``; without the tag, timm's default weights."""
    if name not in timm.list_models() and name not in timm.list_pretrained():
        raise UnknownNameError(f"timm has no network {name!r}. {did_you_mean(name, names())}")
    full_name = f"timm:{name}"
    with seeded(seed):
        if pretrained and weights is None:
            module = _pretrained(name, full_name, model_kwargs)
        else:
            module = timm.create_model(name, pretrained=False, **model_kwargs)
    published: Mapping[str, Any] = getattr(module, "pretrained_cfg", {})
    if weights is not None:
        origin = load_weights(module, weights, full_name)
        licence = "that of the file"
    elif pretrained:
        origin = f"pretrained {published.get('architecture', name)}.{published.get('tag', '')}"
        licence = str(published.get("license", "not stated"))
    else:
        origin = f"untrained, seed {0 if seed is None else seed}"
        licence = "Apache-2.0 (timm)"
    return Backbone(
        name=full_name,
        module=module,
        transform=_transform(module, transform or {}),
        weights=origin,
        licence=licence,
        prefix_tokens=_prefix_tokens(module),
        tokens_in_order=not isinstance(module, Hiera),
        channels_last=("",) if getattr(module, "output_fmt", "NCHW") == "NHWC" else (),
        suggested_layers=_stages(module),
    )


def _pretrained(name: str, full_name: str, options: dict[str, Any]) -> nn.Module:
    """Return the network with its published weights: from the hub, or from an address."""
    from huggingface_hub.constants import HF_HUB_CACHE

    published = timm.get_pretrained_cfg(name)
    overlay = dict(options.get("pretrained_cfg_overlay") or {})
    source = {**(published.to_dict() if published else {}), **overlay}
    if not any(source.get(key) for key in SOURCES):
        raise UnknownNameError(
            f"There are no published weights of {full_name}. Give weights='path/to/file', or "
            "pretrained=False for an untrained control."
        )
    n_published = source.get("num_classes")
    n_classes = options.get("num_classes") or n_published
    if n_classes != n_published:
        raise ValueError(
            f"The published weights of {full_name} have {n_published} classes; with "
            f"num_classes={n_classes} the last layer would be random. Leave `num_classes` out."
        )
    if [key for key in SOURCES if source.get(key)] == ["url"]:
        # timm would take whatever arrives; here the hash in the file's name is checked.
        overlay["state_dict"] = fetch(source["url"], full_name)
    if overlay:
        options = {**options, "pretrained_cfg_overlay": overlay}
    hub = source.get("hf_hub_id")
    place = f"the Hugging Face hub ({hub})" if hub else str(source.get("url") or "a file")
    with explain_download(full_name, place, HF_HUB_CACHE):
        module = timm.create_model(name, pretrained=True, **options)
    module.pretrained_cfg.pop("state_dict", None)
    return module


def _stages(module: nn.Module) -> list[str]:
    """Return timm's own list of stages, as far as they are modules."""
    info = getattr(module, "feature_info", None) or []
    entries = info if isinstance(info, list) else info.info
    known = {name for name, _ in module.named_modules() if name}
    names = dict.fromkeys(entry["module"] for entry in entries if entry["module"] in known)
    return [name for listed in names for name in open_lists(module, listed)]


def _prefix_tokens(module: nn.Module) -> list[str]:
    """Return what stands before the patches, in timm's order; some networks add it late."""
    own = {name.rstrip("_0123456789") for name, _ in module.named_parameters(recurse=False)}
    own |= {name for name in ("cls_token", "dist_token") if getattr(module, name, None) is not None}
    names = ["class"] * ("cls_token" in own) + ["distillation"] * ("dist_token" in own)
    n_tokens = int(getattr(module, "num_prefix_tokens", len(names)))
    return [*names, *["register"] * (n_tokens - len(names))][:n_tokens]


def _transform(module: nn.Module, overrides: Mapping[str, Any]) -> ImageTransform:
    """Return the evaluation transform that belongs to the weights, with single values replaced."""
    for key in overrides:
        if key not in TRANSFORM_OPTIONS:
            raise UnknownNameError(
                f"`transform` has no option {key!r}. {did_you_mean(key, TRANSFORM_OPTIONS)}"
            )
    config = resolve_data_config({}, model=module)
    config.update(overrides)
    size = config["input_size"]
    if isinstance(size, int):
        config["input_size"] = (3, size, size)
    function = create_transform(**config, is_training=False)
    return ImageTransform(function, _described(function))


def _described(function: Any) -> str:
    """Return a transform of timm as text: its usual four steps, or whatever it prints as."""
    steps = {type(step).__name__: step for step in function.transforms}
    if set(steps) != {"Resize", "CenterCrop", "MaybeToTensor", "Normalize"}:
        return f"RGB in 0..1 before normalising, {' '.join(repr(function).split())}"
    resize, normalize = steps["Resize"], steps["Normalize"]
    return describe_transform(
        resize.size,
        steps["CenterCrop"].size,
        resize.interpolation.value,
        normalize.mean.tolist(),
        normalize.std.tolist(),
        antialias=bool(resize.antialias),
    )
