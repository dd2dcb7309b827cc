"""How many parameters a network has, before it is made."""

from __future__ import annotations

import functools

import torch


@functools.cache
def count_parameters(name: str) -> int:
    """Return the number of parameters of a network of torchvision or timm; no weights are made.

    Examples
    --------
    >>> count_parameters("torchvision:alexnet")
    61100840
    """
    source, _, network = name.partition(":")
    if source == "torchvision":
        from torchvision import models

        published = models.get_model_weights(network.partition(".")[0])
        return int(published.DEFAULT.meta["num_params"])
    if source != "timm":
        return 0  # gabor and pixels
    import timm

    with torch.device("meta"):
        module = timm.create_model(network, pretrained=False)
    return sum(values.numel() for values in module.parameters())
