"""Checkpoints of self-supervised training: the network is found, the rest is left out and said."""

from __future__ import annotations

import argparse

import pytest
import timm
import torch
from torch import nn

from neurodl.backbones import load_backbone
from neurodl.errors import FileFormatError

NAME = "timm:test_resnet"


@pytest.fixture(scope="module")
def network():
    """Return the tensors of a network without its classifier, and another network's."""
    states = []
    for seed in (7, 8):
        torch.manual_seed(seed)
        module = timm.create_model("test_resnet")
        states.append({k: v for k, v in module.state_dict().items() if not k.startswith("fc.")})
    return states


def prefixed(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


HEAD = {"0.weight": torch.zeros(4, 4), "2.weight": torch.zeros(4, 4)}
STYLES = {
    "bare": lambda a, b: dict(a),
    "dino": lambda a, b: {
        "student": prefixed("module.backbone.", b) | prefixed("module.head.mlp.", HEAD),
        "teacher": prefixed("backbone.", a) | prefixed("head.mlp.", HEAD),
        "args": argparse.Namespace(arch="resnet"),
    },
    "moco v2": lambda a, b: {
        "state_dict": prefixed("module.encoder_q.", a) | prefixed("module.encoder_q.fc.", HEAD)
        | prefixed("module.encoder_k.", b) | {"module.queue": torch.zeros(3)}
    },
    "moco v3": lambda a, b: {
        "state_dict": prefixed("module.base_encoder.", a)
        | prefixed("module.base_encoder.fc.", HEAD) | prefixed("module.momentum_encoder.", b)
        | prefixed("module.predictor.", HEAD)
    },
    "barlow twins": lambda a, b: {
        "model": prefixed("module.backbone.", a) | prefixed("module.projector.", HEAD)
    },
    "swav": lambda a, b: prefixed(
        "module.", a | prefixed("projection_head.", HEAD) | {"prototypes.weight": torch.zeros(2)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_the_network_is_found_and_has_no_random_classifier(tmp_path, network, style):
    torch.save(STYLES[style](*network), tmp_path / "w.pth")
    backbone = load_backbone(NAME, weights=tmp_path / "w.pth")
    loaded = backbone.module.state_dict()
    assert loaded.keys() == network[0].keys()
    assert all(torch.equal(loaded[key], network[0][key]) for key in loaded)
    assert isinstance(backbone.module.fc, nn.Identity)
    assert "without its classifier, which the file lacks" in backbone.weights
    assert ("left out" in backbone.weights) == (style != "bare")
    assert ("its 'teacher.backbone'" in backbone.weights) == (style == "dino")


def test_what_else_is_missing_is_named(tmp_path, network):
    state = prefixed("module.encoder_q.", network[0])
    del state["module.encoder_q.conv1.0.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(FileFormatError, match=r"1 missing \('conv1.0.weight'\)"):
        load_backbone(NAME, weights=tmp_path / "w.pth")


def test_a_file_of_several_networks_is_not_guessed_at(tmp_path, network):
    both = prefixed("backbone.", network[0]) | prefixed("encoder.", network[1])
    torch.save(both, tmp_path / "w.pth")
    with pytest.raises(FileFormatError, match=r"several networks that fit: 'backbone\.', 'enc"):
        load_backbone(NAME, weights=tmp_path / "w.pth")


def test_only_a_classifier_may_be_missing(tmp_path):
    """A network that ends in the last layer of a block has no classifier to do without."""
    from neurodl.backbones import ImageTransform

    net = nn.Sequential()
    net.add_module("block", nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    state = {key: value for key, value in net.state_dict().items() if "block.1" not in key}
    torch.save(state, tmp_path / "w.pth")
    transform = ImageTransform(lambda image: torch.zeros(3), "zeros")
    with pytest.raises(FileFormatError, match="2 missing"):
        load_backbone(net, weights=tmp_path / "w.pth", transform=transform)
