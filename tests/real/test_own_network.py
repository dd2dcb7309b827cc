"""Your own network and checkpoint: a CIFAR-10 ResNet-20, which neither torchvision nor timm has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.transforms import v2

import neurodl as ndl
from neurodl.errors import FileFormatError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Block(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.n_padding = (n_out - n_in) // 2

    def forward(self, x):
        maps = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.n_padding:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.n_padding, self.n_padding))
        return functional.relu(maps + x)


class CifarResNet(nn.Module):
    def __init__(self, n_blocks):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(n_blocks)))
        self.layer2 = nn.Sequential(
            Block(16, 32, 2), *(Block(32, 32, 1) for _ in range(n_blocks - 1))
        )
        self.layer3 = nn.Sequential(
            Block(32, 64, 2), *(Block(64, 64, 1) for _ in range(n_blocks - 1))
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, images):
        maps = functional.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        return self.linear(maps.mean((2, 3)))


@pytest.fixture
def transform():
    steps = [v2.Resize((32, 32)), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    return ndl.ImageTransform(
        v2.Compose([*steps, v2.Normalize(MEAN, STD)]), "32 x 32, ImageNet mean and std"
    )


@pytest.fixture
def checkpoint(recordings):
    return recordings / "weights_cifar10_resnet" / "resnet20-12fca82f.th"


def test_checkpoint_fits_and_knows_a_cat(checkpoint, transform, recordings):
    backbone = ndl.load_backbone(CifarResNet(3), weights=checkpoint, transform=transform)
    assert backbone.default_layers == ["conv1", "layer1", "layer2", "layer3", "linear"]
    assert "resnet20-12fca82f.th" in backbone.weights
    cat = ndl.Stimuli.from_files([recordings / "weights_mobilenetv2_imagenet" / "cat.bmp"])
    logits = ndl.extract_features(backbone, cat, "linear", cache=False)["linear"].values[0]
    assert int(np.argmax(logits)) == 3


def test_other_depth_lists_what_is_missing(checkpoint, transform):
    with pytest.raises(FileFormatError, match=r"60 missing \('layer1.3.conv1.weight'"):
        ndl.load_backbone(CifarResNet(5), weights=checkpoint, transform=transform)


@pytest.mark.slow
def test_trained_explains_v4_better_than_untrained(checkpoint, transform, recordings):
    folder = recordings / "v4_cowley"
    exp = ndl.Experiment.from_files(
        folder / "images_190923.zip", folder / "responses_190923.npy", dims=("unit", "stimulus")
    )
    torch.manual_seed(0)
    nets = {"untrained": None, "trained": checkpoint}
    best = {}
    for name, weights in nets.items():
        backbone = ndl.load_backbone(
            CifarResNet(3),
            weights=weights,
            pretrained=weights is not None,
            transform=transform,
        )
        layers = ["layer1", "layer2", "layer3"]
        features = ndl.extract_features(backbone, exp.stimuli, layers, pool="spatial:4")
        scores = ndl.cross_validate(ndl.RidgeCV(), features, exp.responses)
        best[name] = float(scores["r"].mean(("fold", "unit")).max())
    assert best["trained"] > best["untrained"] + 0.03
