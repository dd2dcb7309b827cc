"""Simulated neurons that see a part of an image: a Gaussian readout finds where, and how much."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional

import neurodl as ndl
from neurodl.errors import SchemaError
from neurodl.metrics import bits_per_spike
from neurodl.models.readouts import GaussianReadout, LinearReadout, PointReadout, field_of

SIZE, N_TRAIN, N_TEST, N_UNITS = 24, 3000, 1000, 6
TO_INPUT = ndl.ImageTransform(
    lambda image: functional.pil_to_tensor(image).float() / 64 - 2, "-2..2"
)


class Energy(nn.Module):
    """Orientation energy at each pixel, of Gabor filters in four orientations and two scales."""

    def __init__(self):
        super().__init__()
        y, x = np.mgrid[-5:6, -5:6]
        envelope = np.exp(-(x**2 + y**2) / (2 * 2.2**2))
        filters = []
        for frequency in (0.12, 0.2):
            for turn in np.arange(4) * math.pi / 4:
                wave = 2 * math.pi * frequency * (x * math.cos(turn) + y * math.sin(turn))
                for phase in (0, math.pi / 2):
                    one = envelope * np.cos(wave + phase)
                    one -= envelope * one.sum() / envelope.sum()
                    filters.append(one / np.linalg.norm(one))
        self.conv = nn.Conv2d(1, len(filters), 11, padding=5, bias=False)
        self.conv.weight.data = torch.tensor(np.array(filters), dtype=torch.float32)[:, None]
        self.energy = nn.Identity()

    def maps(self, images):
        pairs = self.conv(images.mean(1, keepdim=True))
        return (pairs[:, 0::2].square() + pairs[:, 1::2].square()).sqrt()

    def forward(self, images):
        return self.energy(self.maps(images)).mean((2, 3))


@pytest.mark.slow
def test_gabor_neurons_are_recovered():
    rng = np.random.default_rng(0)
    n = N_TRAIN + N_TEST
    gray = rng.normal(128, 60, (n, SIZE, SIZE, 1)).clip(0, 255).astype(np.uint8)
    images = np.repeat(gray, 3, 3)
    network = Energy()
    with torch.no_grad():
        inputs = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 64 - 2
        energy = network.maps(inputs).numpy()
    centre = rng.uniform(5, 18, (N_UNITS, 2))
    y, x = np.mgrid[:SIZE, :SIZE]
    mask = np.exp(
        -((y - centre[:, 0, None, None]) ** 2 + (x - centre[:, 1, None, None]) ** 2) / (2 * 1.5**2)
    )
    seen = np.einsum("nchw,uhw->nuc", energy, mask / mask.sum((1, 2), keepdims=True))
    drive = ((seen - seen.mean(0)) / seen.std(0))[
        :, np.arange(N_UNITS), rng.integers(0, 8, N_UNITS)
    ]
    rate = np.exp(0.6 * drive + 0.5).astype("f4")
    counts = rng.poisson(rate).astype("f4")

    train, test = np.arange(N_TRAIN), np.arange(N_TRAIN, n)
    stimuli = ndl.Stimuli.from_arrays(images)
    backbone = ndl.load_backbone(network, transform=TO_INPUT, pretrained=False)
    model = ndl.NeuralEncoder(
        backbone, "energy", readout="gaussian2d", loss="poisson", finetune=None, lr=0.005,
        readout_epochs=100, device="cpu",
    )  # fmt: skip
    model.fit(torch.utils.data.Subset(stimuli, train.tolist()), counts[train])
    fields = model.receptive_fields()
    missed = np.hypot(fields["x"] - centre[:, 1], fields["y"] - centre[:, 0])
    assert missed.max() < 0.5
    assert fields[["width_x", "width_y"]].median().between(1.2, 1.9).all()

    predicted = model.predict(torch.utils.data.Subset(stimuli, test.tolist()))
    null, observed = torch.from_numpy(counts[train].mean(0)), torch.from_numpy(counts[test])
    ours, true = (
        float(bits_per_spike(torch.from_numpy(one), observed, null).mean())
        for one in (predicted, rate[test])
    )
    assert 0.95 * true < ours < 1.01 * true


@pytest.mark.parametrize("kind", [GaussianReadout, PointReadout])
def test_fields_are_in_pixels_of_the_input(kind):
    readout = kind((3, 4, 8), 3)
    readout.centre.data = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 0.5]])
    found = field_of(readout, (16, 16))
    # places of a map of 4 x 8 lie at pixels 1.5, 5.5 ... and .5, 2.5 ...
    np.testing.assert_allclose(found["y"], [1.5, 7.5, 13.5])
    np.testing.assert_allclose(found["x"], [0.5, 7.5, 11.0])
    assert (found["width_y"] > 0).all()


def test_readouts_without_a_place_say_so():
    with pytest.raises(SchemaError, match="LinearReadout has no Gaussian"):
        field_of(LinearReadout((3, 4, 4), 2), (8, 8))
