"""The catalogue of layers, and their choice by keyword and pattern."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from neurodl.backbones import Backbone, ImageTransform, load_backbone
from neurodl.errors import UnknownNameError


class Pair(nn.Module):
    def forward(self, values):
        return (None, values.mean((2, 3))), values


class Named(nn.Module):
    def forward(self, values):
        return OrderedDict(states=values + 1, other=values)


class Windows(nn.Module):
    def forward(self, values):
        return values.unflatten(-1, (2, -1)).movedim(-2, 0).flatten(0, 1)


class Net(nn.Module):
    """Outputs of every kind; a module called twice; one never called."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True))
        self.twice = nn.Conv2d(4, 4, 1, bias=False)
        self.pair = Pair()
        self.named = Named()
        self.windows = Windows()
        self.idle = nn.Linear(3, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, images):
        maps = self.twice(self.twice(self.stem(images)))
        (_, means), maps = self.pair(maps)
        self.windows(self.named(maps)["states"])
        return self.head(means)


@pytest.fixture
def backbone():
    def resized(image):
        return torch.ones(3, 6, 8) * image.width / 255

    return Backbone("net", Net(), ImageTransform(resized, "ones"), "untrained")


def test_it_holds_what_a_pass_calls_in_order(backbone):
    table = backbone.catalogue
    assert table.index.tolist() == [
        "stem.0", "stem.1", "stem", "twice", "pair", "named", "windows", "head",
    ]  # fmt: skip
    assert table["kind"].tolist()[:3] == ["Conv2d", "ReLU", "Sequential"]
    assert table["shape"].tolist() == [
        "4 x 6 x 8", "4 x 6 x 8", "4 x 6 x 8", "4 x 6 x 8", "4", "4 x 6 x 8", "4 x 4 x 6 x 4", "2",
    ]  # fmt: skip
    assert table["depth"].tolist() == [1, 1, 1, 3, 3, 3, 3, 4]
    assert table["n_parameters"].tolist() == [16, 0, 16, 16, 0, 0, 0, 10]
    assert table["n_calls"].tolist() == [1, 1, 1, 2, 1, 1, 1, 1]
    assert table["per_stimulus"].tolist() == [True] * 6 + [False, True]


def test_the_depth_of_published_networks_is_that_of_their_names():
    table = load_backbone("torchvision:resnet18", pretrained=False).catalogue
    projections = sum("downsample.0" in name for name in table.index)
    assert table.loc["fc", "depth"] == 18 + projections
    vgg = load_backbone("torchvision:vgg11", pretrained=False).catalogue
    assert vgg.loc["classifier.6", "depth"] == 11
    assert vgg.loc["features.0", "shape"] == "64 x 224 x 224"


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", ["stem.0", "stem.1", "stem", "twice", "pair", "named", "head"]),
        ("stem.*", ["stem.0", "stem.1"]),
        ("*", ["stem", "twice", "pair", "named", "head"]),
        (["head", "stem.?", "stem.0"], ["head", "stem.0", "stem.1"]),
        ("windows", ["windows"]),
        ("blocks", ["stem", "twice", "pair", "named", "windows", "idle", "head"]),
        ("every:3", ["pair", "idle"]),
    ],
)
def test_layers_are_chosen_by_keyword_name_and_pattern(backbone, layers, expected):
    assert backbone.check_layers(layers) == expected


def test_in_a_list_a_keyword_is_a_name():
    backbone = load_backbone("timm:test_vit", pretrained=False)
    assert backbone.check_layers(["blocks"]) == ["blocks"]
    assert backbone.check_layers("blocks") == [f"blocks.{index}" for index in range(6)]
    assert backbone.check_layers("blocks.*.mlp") == [f"blocks.{index}.mlp" for index in range(6)]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("twise", "no module 'twise' in net. Did you mean 'twice'"),
        ("stom.*", r"matches no layer of net\. Did you mean 'stem"),
        ("window?", r"It matches 'windows', which give no row per stimulus"),
        ("every:8", "K from 1 to 7"),
        ("every:x", "K from 1 to 7"),
        ([], "is empty"),
    ],
)
def test_wrong_choices_name_what_is_near(backbone, layers, message):
    with pytest.raises(UnknownNameError, match=message):
        backbone.check_layers(layers)
