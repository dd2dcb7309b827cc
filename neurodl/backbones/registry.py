"""From a name to a backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from neurodl.backbones import gabor, motion_energy
from neurodl.backbones.base import Backbone, ImageTransform, VideoTransform
from neurodl.backbones.weights import load_weights
from neurodl.errors import UnknownNameError, did_you_mean, listed

LISTED_SOURCES = ("torchvision", "timm")
SOURCES = (*LISTED_SOURCES, "hf")
WEIGHT_FREE = {
    "gabor": gabor.load_gabor,
    "motion_energy": motion_energy.load_motion_energy,
    "pixels": gabor.load_pixels,
}


def load_backbone(
    name: str | nn.Module,
    *,
    weights: str | None = None,
    pretrained: bool = True,
    seed: int | None = None,
    transform: Mapping[str, Any] | ImageTransform | VideoTransform | None = None,
    **model_kwargs: Any,
) -> Backbone:
    """Return a network by name, or your own, with the transform that belongs to it.

    Parameters
    ----------
    name : str or torch.nn.Module
        ``"torchvision:resnet18"``, ``"torchvision:resnet18.IMAGENET1K_V1"``,
        ``"timm:vit_small_patch16_224.augreg_in21k_ft_in1k"``, ``"hf:facebook/dinov2-small"``,
        ``"hf:path/to/folder"``, ``"gabor"``, ``"motion_energy"``, ``"pixels"``, or a module of
        your own, which needs `transform`.
    weights : str, optional
        A local file: ``.safetensors`` or a torch checkpoint. It must fit exactly.
    pretrained : bool
        Whether to download the published weights; False gives an untrained control.
    seed : int, optional
        For an untrained network, with ``pretrained=False``; 0 by default.
    transform : mapping, ImageTransform or VideoTransform, optional
        For a named network: values that replace those of its published weights, for instance
        ``{"mean": (.5, .5, .5), "std": (.5, .5, .5), "crop_pct": 1.0}``. For a module of your
        own: the whole transform.
    **model_kwargs
        Passed to torchvision or timm, for instance ``pad_type="same"``; for ``hf:``, values of the
        configuration.

    Raises
    ------
    UnknownNameError
        There is no such network; near matches are listed.
    DownloadError
        The published weights could not be fetched. Random weights are never used instead.
    FileFormatError
        The weights do not fit the network.
    ValueError
        An option would do nothing, such as `seed` beside trained weights.

    Examples
    --------
    >>> load_backbone("pixels").layers
    ['pixels']
    """
    if isinstance(name, nn.Module):
        if model_kwargs or seed is not None:
            said = ["seed"] * (seed is not None) + list(model_kwargs)
            raise ValueError(f"A module of your own is taken as it is; leave out {listed(said)}.")
        return _own(name, weights, transform, pretrained)
    if isinstance(transform, (ImageTransform, VideoTransform)):
        raise TypeError(
            f"{name} has its own transform; `transform` only replaces single values of it, as a "
            "mapping. For another transform altogether, pass the module itself."
        )
    overrides = dict(transform) if transform is not None else None
    if name in WEIGHT_FREE:
        given = ["weights"] * (weights is not None) + ["seed"] * (seed is not None)
        if given:
            raise ValueError(f"{name!r} has no weights; leave out {listed(given)}.")
        return WEIGHT_FREE[name](transform=overrides, **model_kwargs)
    source, _, network = name.partition(":")
    if source not in SOURCES or not network:
        raise UnknownNameError(_unknown(name))
    if seed is not None and (pretrained or weights is not None):
        raise ValueError(
            f"`seed` does nothing beside trained weights of {name}. Leave it out, or give "
            "pretrained=False for an untrained control."
        )
    from neurodl.backbones import huggingface, timm, torchvision

    load = {"timm": timm.load, "torchvision": torchvision.load, "hf": huggingface.load}[source]
    loaded = load(
        network,
        weights=weights,
        pretrained=pretrained,
        seed=seed,
        transform=overrides,
        **model_kwargs,
    )
    if weights is not None or not pretrained:
        return loaded  # only published weights come with a transform of their own
    own = f"another {listed(overrides)}" if overrides else loaded.transform.text
    return dataclasses.replace(loaded, own_transform=own)


def list_backbones(search: str | None = None, *, source: str | None = None) -> list[str]:
    """Return the names that `load_backbone` knows, those that contain `search`.

    Those of the Hugging Face hub (``hf:``) are not listed: there are too many, and only there.

    Parameters
    ----------
    search : str, optional
    source : {"torchvision", "timm"}, optional

    Raises
    ------
    UnknownNameError
        No name contains `search`, or there is no such source; near matches are listed.

    Examples
    --------
    >>> list_backbones("gabor")
    ['gabor']
    """
    from neurodl.backbones import timm, torchvision

    if source not in (None, *LISTED_SOURCES):
        raise UnknownNameError(
            f"`source` must be one of {LISTED_SOURCES}, but got {source!r}. "
            f"{did_you_mean(str(source), LISTED_SOURCES)}"
        )
    names = [
        *sorted(WEIGHT_FREE),
        *(f"torchvision:{name}" for name in torchvision.names()),
        *(f"timm:{name}" for name in timm.names()),
    ]
    if source is not None:
        names = [name for name in names if name.startswith(f"{source}:")]
    if search is None:
        return names
    found = [name for name in names if search.lower() in name.lower()]
    if not found:
        bare = {name.partition(":")[2] or name: name for name in names}
        raise UnknownNameError(
            f"No backbone's name contains {search!r}. {did_you_mean(search, bare)}"
        )
    return found


def _own(module: nn.Module, weights: str | None, transform: Any, pretrained: bool) -> Backbone:
    if not isinstance(transform, (ImageTransform, VideoTransform)):
        raise TypeError(
            "A module of your own needs its transform: transform=ImageTransform(function, text), "
            "where function takes a PIL image and returns the network's input."
        )
    name = f"own:{type(module).__name__}"
    given = "as given" if pretrained else "untrained, as given"
    origin = given if weights is None else load_weights(module, weights, name)
    return Backbone(name, module, transform, weights=origin)


def _unknown(name: str) -> str:
    """Return the error for a name without a known source, with the strings to use instead."""
    network = name.partition(":")[2] or name
    names = list_backbones()
    exact = [full for full in names if full.partition(":")[2].split(".")[0] == network]
    if exact:
        return f"There is no backbone {name!r}. Use {' or '.join(map(repr, exact[:3]))}."
    return (
        f"There is no backbone {name!r}. Names look like 'torchvision:resnet18' or "
        f"'timm:resnet50.a1_in1k'. {did_you_mean(name, names)}"
    )
