"""The images must share the statistics of natural scenes, and noise must fail the same tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from neurodl.datasets.simulated.images import SCENES, dead_leaves


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Return forty images at full size."""
    return dead_leaves(40, 128, seed=1)[0]


def luminance(images: np.ndarray) -> np.ndarray:
    """Return luma in [0, 1], without its mean."""
    grey = images @ np.array([0.299, 0.587, 0.114]) / 255
    return np.asarray(grey - grey.mean((1, 2), keepdims=True))


def spectrum_slope(grey: np.ndarray) -> float:
    """Return the slope of log amplitude over log frequency, from 3 to 50 cycles per image."""
    size = grey.shape[1]
    window = np.hanning(size)
    amplitude = np.abs(np.fft.fft2(grey * window * window[:, None])).mean(0)
    axis = np.fft.fftfreq(size) * size
    ring = np.rint(np.hypot(axis, axis[:, None]))
    frequencies = np.arange(3, 51)
    profile = [amplitude[ring == frequency].mean() for frequency in frequencies]
    return float(np.polyfit(np.log(frequencies), np.log(profile), 1)[0])


def bandpass_kurtosis(grey: np.ndarray) -> float:
    """Return the kurtosis of a difference of Gaussians, 3 for Gaussian values; mean over images."""
    band = gaussian_filter(grey, (0, 1, 1)) - gaussian_filter(grey, (0, 2, 2))
    band = band[:, 6:-6, 6:-6]
    return float(((band**4).mean((1, 2)) / (band**2).mean((1, 2)) ** 2).mean())


def test_amplitude_falls_as_one_over_frequency(images: np.ndarray) -> None:
    """Natural scenes have slopes around -1; Tolhurst et al. (1992) found -1.2 on average."""
    assert spectrum_slope(luminance(images)) == pytest.approx(-1, abs=0.3)
    noise = np.random.default_rng(0).normal(size=(40, 128, 128))
    assert abs(spectrum_slope(noise)) < 0.1


def test_edges_make_filter_responses_sparse(images: np.ndarray) -> None:
    """The same spectrum with random phases has no edges, and its filter responses are Gaussian."""
    grey = luminance(images)
    noise = np.fft.fft2(np.random.default_rng(0).normal(size=grey.shape))
    scrambled = np.fft.ifft2(np.abs(np.fft.fft2(grey)) * noise / np.abs(noise)).real
    assert bandpass_kurtosis(grey) > 4
    assert bandpass_kurtosis(scrambled) < 3.3


def test_images_are_exposed_and_coloured(images: np.ndarray) -> None:
    """No image is flat, clipped or grey."""
    assert images.dtype == np.uint8 and images.shape == (40, 128, 128, 3)
    assert (images.std((1, 2)).mean(1) > 15).all()
    assert ((images == 255).mean() + (images == 0).mean()) < 0.02
    spread = images.astype(float).max(-1) - images.min(-1)
    assert np.median(spread) > 10


def test_same_seed_same_images_whatever_their_number() -> None:
    """Image i does not depend on how many are drawn; another seed draws others."""
    images, scenes = dead_leaves(4, 64, seed=5)
    first, first_scenes = dead_leaves(2, 64, seed=5)
    other, _ = dead_leaves(2, 64, seed=6)
    np.testing.assert_array_equal(images[:2], first)
    assert scenes[:2] == first_scenes
    assert set(scenes) <= set(SCENES)
    assert (images[0] != images[1]).mean() > 0.5
    assert (other != first).mean() > 0.5
