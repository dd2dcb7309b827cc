"""A small network and responses of known truth, which tests of fine-tuning share."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn
from torchvision.transforms.v2 import functional as image_ops

import neurodl as ndl

SIZE = 24


def to_input(image):
    """Return a PIL image as a network's input, about 0."""
    return image_ops.pil_to_tensor(image).float() / 64 - 2


TRANSFORM = ndl.ImageTransform(to_input, "-2..2")


class SmallNet(nn.Module):
    """Three convolutions with batch normalisation, and a head of ten classes."""

    def __init__(self, seed=0, width=12):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem = nn.Sequential(
                nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()
            )
            self.block1 = nn.Sequential(
                nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()
            )
            self.block2 = nn.Sequential(
                nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()
            )
            self.head = nn.Linear(width, 10)
            for part in (self.stem, self.block1, self.block2):
                part[1].running_mean.normal_(0, 0.1)
                part[1].running_var.uniform_(0.2, 0.5)

    def forward(self, x):
        return self.head(self.block2(self.block1(self.stem(x))).mean((2, 3)))


def small_backbone(seed=0, width=12):
    """Return a network of its own, with its transform."""
    return ndl.load_backbone(SmallNet(seed, width), transform=TRANSFORM, pretrained=False)


def random_stimuli(n, seed=0):
    """Return smooth random images."""
    rng = np.random.default_rng(seed)
    coarse = torch.as_tensor(rng.uniform(0, 255, (n, 3, 6, 6)), dtype=torch.float32)
    fine = nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic").clamp(0, 255)
    images = fine.round().byte().permute(0, 2, 3, 1).numpy()
    return ndl.Stimuli.from_arrays(images)


def perturbed(module, share, seed=1):
    """Return a copy of a network whose convolutions moved by a share of their spread."""
    rng = torch.Generator().manual_seed(seed)
    moved = copy.deepcopy(module)
    for part in moved.modules():
        if isinstance(part, nn.Conv2d):
            noise = torch.randn(part.weight.shape, generator=rng)
            part.weight.data += share * part.weight.std() * noise
    return moved


@torch.no_grad()
def layer_output(module, stimuli, layer):
    """Return what a layer gives, (n, channels, height, width), by a plain forward pass."""
    kept = []
    handle = module.get_submodule(layer).register_forward_hook(lambda *a: kept.append(a[2].clone()))
    module.eval()(torch.stack([TRANSFORM(stimuli[i]) for i in range(len(stimuli))]))
    handle.remove()
    return kept[0]


def gaussian_responses(output, n_targets, noise, seed=0):
    """Return responses that a Gaussian part of a map and random channel weights explain."""
    rng = np.random.default_rng(seed)
    n, channels, height, width = output.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    centre = rng.uniform(-0.5, 0.5, (n_targets, 2, 1, 1))
    mask = np.exp(-((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2) / (2 * 0.4**2))
    mask /= mask.sum((1, 2), keepdims=True)
    seen = np.einsum("nchw,thw->ntc", output.numpy(), mask)
    seen = (seen - seen.mean(0)) / seen.std(0).clip(1e-3)
    signal = np.einsum("ntc,tc->nt", seen, rng.standard_normal((n_targets, channels)))
    signal /= signal.std(0)
    return (signal + noise * rng.standard_normal(signal.shape)).astype("float32")
