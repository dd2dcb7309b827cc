"""The Gabor energy pyramid: tuned to orientation and frequency, blind to phase and light."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from neurodl.backbones import load_backbone
from neurodl.backbones.gabor import GaborEnergy, gabor_kernels

SIZE = 128


def grating(wavelength, angle, phase=0.0):
    """Return a sine grating, shape (1, 3, SIZE, SIZE); `angle` is that of its normal."""
    y, x = np.mgrid[:SIZE, :SIZE]
    wave = np.cos(2 * np.pi / wavelength * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    image = torch.from_numpy(0.5 + 0.5 * wave).float()
    return image.expand(1, 3, SIZE, SIZE)


def energies(model, image):
    """Return the mean energy in the inner half of the image, shape (octave, orientation)."""
    kept = []
    handles = [
        part.register_forward_hook(lambda _m, _i, out: kept.append(out)) for part in model.octave
    ]
    model(image)
    for handle in handles:
        handle.remove()
    inner = []
    for maps in kept:
        side = maps.shape[-1]
        quarter = side // 4
        inner.append(maps[0, :, quarter : side - quarter, quarter : side - quarter].mean((1, 2)))
    return torch.stack(inner).numpy()


@pytest.fixture(scope="module")
def model():
    return GaborEnergy()


@pytest.mark.parametrize("orientation", range(8))
@pytest.mark.parametrize("octave", [0, 1, 2])
def test_each_filter_prefers_its_own_grating(model, orientation, octave):
    found = energies(model, grating(4.0 * 2**octave, orientation * np.pi / 8))
    assert np.unravel_index(found.argmax(), found.shape) == (octave, orientation)


def test_energy_does_not_depend_on_phase(model):
    found = np.stack([energies(model, grating(8, 0.0, p)) for p in np.linspace(0, 6, 7)])
    best = found[:, 1, 0]
    assert best.std() / best.mean() < 0.02


def test_uniform_light_gives_nothing(model):
    assert model(torch.full((1, 3, SIZE, SIZE), 0.7)).abs().max() < 1e-4


def test_orientation_tuning_agrees_with_the_filters_spectrum():
    """The response to a grating is the filter's Fourier transform at its frequency."""
    kernels = gabor_kernels(8, 4.0)
    half = kernels.shape[-1] // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    pair = kernels[0, 0].numpy() + 1j * kernels[8, 0].numpy()
    angles = np.arange(8) * np.pi / 8
    waves = [np.exp(-2j * np.pi / 4 * (x * np.cos(a) + y * np.sin(a))) for a in angles]
    even = [abs((pair.real * wave).sum()) for wave in waves]
    odd = [abs((pair.imag * wave).sum()) for wave in waves]
    expected = np.sqrt(np.square(even) + np.square(odd)) / np.sqrt(2) * 0.5
    found = [energies(GaborEnergy(n_octaves=1), grating(4.0, a))[0, 0] for a in angles]
    np.testing.assert_allclose(found[:3], expected[:3], rtol=0.05)
    np.testing.assert_allclose(kernels.flatten(1).norm(dim=1), 1, atol=1e-6)
    np.testing.assert_allclose(kernels.sum((1, 2, 3)), 0, atol=1e-5)


def test_number_and_place_of_features(model):
    features = model(torch.rand(2, 3, SIZE, SIZE))
    sides = [16, 8, 4, 2, 2]
    assert features.shape == (2, 8 * sum(side**2 for side in sides))
    corner = torch.zeros(1, 3, SIZE, SIZE)
    corner[..., :8, :8] = grating(4, 0.0)[..., :8, :8]
    first = model(corner)[0, : 8 * 256].reshape(8, 16, 16).sum(0)
    assert np.unravel_index(int(first.argmax()), (16, 16)) in [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_pixels_are_the_shrunken_image(rng):
    image = rng.integers(0, 256, (3, 56, 56), dtype=np.uint8)
    backbone = load_backbone("pixels", size=28)
    values = backbone.module(backbone.transform(torch.from_numpy(image))[None])
    assert values.shape == (1, 3 * 28 * 28)
    resized = Image.fromarray(image.transpose(1, 2, 0)).resize((28, 28), Image.Resampling.BILINEAR)
    expected = np.asarray(resized).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(values.reshape(3, 28, 28), expected, atol=1.01 / 255)
    uniform = torch.full((3, 56, 56), 51, dtype=torch.uint8)
    np.testing.assert_allclose(backbone.transform(uniform), 0.2, atol=1e-6)
