"""Batch normalisation of untrained networks has the statistics of the training stimuli."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import neurodl as ndl
from neurodl.backbones import ImageTransform, load_backbone
from neurodl.errors import PairingError


@pytest.fixture
def stimuli(rng):
    images = rng.integers(0, 256, (6, 9, 9, 3), dtype=np.uint8)
    return ndl.Stimuli.from_arrays(images, ids=list("abcdef"))


@pytest.fixture
def backbone():
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    )
    transform = ImageTransform(
        lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255, "0..1"
    )
    return load_backbone(net, transform=transform)


def test_every_layer_has_mean_0_and_sd_1_over_the_training_stimuli(stimuli, backbone):
    before = backbone.weights_sha256
    made = ndl.calibrate_batchnorm(backbone, stimuli, ids=list("abcd"), device="cpu")
    assert made.weights == "as given, batch norm calibrated on 4 stimuli"
    assert not any(part.training for part in made.module.modules())
    batch = torch.stack([backbone.transform(stimuli[row]) for row in range(4)])
    with torch.inference_mode():
        for last in (2, 5):
            maps = made.module[:last](batch).double()
            torch.testing.assert_close(
                maps.mean((0, 2, 3)), torch.zeros(len(maps[0])).double(), atol=1e-5, rtol=0
            )
            variance = made.module[last - 1].running_var.double()
            expected = variance / (variance + 1e-5)  # epsilon counts beside so small variances
            torch.testing.assert_close(
                maps.var((0, 2, 3), correction=0), expected, rtol=1e-4, atol=0
            )
    assert backbone.weights_sha256 == before
    fresh = type(backbone)("own", backbone.module, backbone.transform, "as given")
    assert fresh.weights_sha256 == before != made.weights_sha256


def test_wrong_ids_and_networks_without_batch_norm_are_errors(stimuli, backbone):
    with pytest.raises(PairingError, match="no stimulus 'z'"):
        ndl.calibrate_batchnorm(backbone, stimuli, ids=["a", "z"])
    with pytest.raises(PairingError, match="more than once"):
        ndl.calibrate_batchnorm(backbone, stimuli, ids=["a", "a"])
    with pytest.raises(ValueError, match="2 to 256 training stimuli"):
        ndl.calibrate_batchnorm(backbone, stimuli, ids=["a"])
    with pytest.raises(ValueError, match="nothing to calibrate"):
        ndl.calibrate_batchnorm(load_backbone("gabor"), stimuli, ids=["a", "b"])
