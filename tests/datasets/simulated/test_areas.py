"""What voxels respond to, checked with gratings and with models written here from scratch."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import fftconvolve

from neurodl.datasets.simulated import Simulation
from neurodl.datasets.simulated.areas import N_ORIENTATIONS, WAVELENGTHS, complex_cells
from neurodl.datasets.simulated.areas import noiseless_responses as respond
from neurodl.datasets.simulated.cortex import area_voxels


def pixels_of(simulation: Simulation) -> np.ndarray:
    """Return the images, shape (n_images, size, size, 3)."""
    stimuli = simulation.stimuli
    return np.stack([stimuli[row].permute(1, 2, 0).numpy() for row in range(len(stimuli))])


def grating(degrees: float, cycles: float, phase: float, size: int = 96) -> np.ndarray:
    """Return a grey grating whose luminance varies along `degrees`, x right and y down."""
    x = np.arange(size) / size
    along = np.cos(np.deg2rad(degrees)) * x + np.sin(np.deg2rad(degrees)) * x[:, None]
    wave = 127.5 * (1 + 0.8 * np.sin(2 * np.pi * cycles * along + phase))
    return np.repeat(wave[..., None], 3, -1).astype(np.uint8)


@pytest.mark.parametrize("orientation", [0, 3, 6])
@pytest.mark.parametrize("band", [1, 2])
def test_complex_cells_prefer_their_grating_whatever_its_phase(orientation: int, band: int) -> None:
    """The cell with the grating's orientation and wavelength wins, and phase does not matter."""
    degrees, cycles = 180 * orientation / N_ORIENTATIONS, 16 / WAVELENGTHS[band]
    phases = np.linspace(0, np.pi, 4, endpoint=False)
    energy = complex_cells(np.stack([grating(degrees, cycles, phase) for phase in phases]))
    middle = energy[:, :, 12:20, 12:20].mean((2, 3)).numpy()
    assert (middle.argmax(1) == band * N_ORIENTATIONS + orientation).all()
    winner = middle[:, band * N_ORIENTATIONS + orientation]
    assert winner.std() / winner.mean() < 0.02


def gabor_energy(images: np.ndarray) -> np.ndarray:
    """Return the energy of spatial Gabor pairs on a grid: a model that shares no code."""
    grey = images.mean(-1) / 255
    grey = grey - grey.mean((1, 2), keepdims=True)
    features = []
    for wavelength, step in ((4, 6), (8, 8), (16, 16)):
        axis = np.arange(-wavelength, wavelength + 1)
        envelope = np.exp(-(axis**2 + axis[:, None] ** 2) / (2 * (0.5 * wavelength) ** 2))
        for angle in np.deg2rad([0, 30, 60, 90, 120, 150]):
            turn = np.cos(angle) * axis + np.sin(angle) * axis[:, None]
            kernel = envelope * np.exp(2j * np.pi * turn / wavelength)
            kernel -= envelope * (kernel.sum() / envelope.sum())
            energy = np.abs(fftconvolve(grey, kernel[None], mode="same", axes=(1, 2)))
            n, size, _ = energy.shape
            blocks = energy.reshape(n, size // step, step, size // step, step).mean((2, 4))
            features.append(blocks.reshape(n, -1))
    return np.concatenate(features, 1)


def held_out_r(features: np.ndarray, truth: np.ndarray, alpha: float = 1e4) -> np.ndarray:
    """Return r of ridge predictions of the last third from the first two, per voxel."""
    n = len(features) * 2 // 3
    scaled = (features - features[:n].mean(0)) / features[:n].std(0)
    kernel = scaled[:n] @ scaled[:n].T + alpha * np.eye(n)
    weights = np.linalg.solve(kernel, truth[:n] - truth[:n].mean(0))
    predicted, seen = scaled[n:] @ scaled[:n].T @ weights, truth[n:]
    predicted, seen = predicted - predicted.mean(0), seen - seen.mean(0)
    norms = np.sqrt((predicted**2).sum(0) * (seen**2).sum(0))
    return np.asarray((predicted * seen).sum(0) / norms)


def test_gabor_energy_predicts_v1_far_better_than_later_areas(simulation: Simulation) -> None:
    """V1 is oriented energy; V4 and LOC are combinations that no weighted sum of it makes."""
    images = pixels_of(simulation)
    seeing = simulation.truth["roi"].values != "noise"
    truth = simulation.truth.values[:, seeing].astype(float)
    r = held_out_r(gabor_energy(images), truth)
    roi = simulation.truth["roi"].values[seeing]
    mean = {area: r[roi == area].mean() for area in ("V1", "V2", "V4", "LOC")}
    assert mean["V1"] > 0.5
    assert mean["V1"] - mean["LOC"] > 0.25
    assert mean["V1"] - mean["V4"] > 0.25
    assert mean["V2"] > mean["LOC"]
    pixels = images[:, ::4, ::4].reshape(len(images), -1).astype(float)
    assert held_out_r(pixels, truth)[roi == "V1"].mean() < 0.2


def test_voxels_respond_where_their_field_is() -> None:
    """A textured spot drives most the V1 voxels whose field it falls on: up is up, left is left."""
    voxels = area_voxels()
    v1 = voxels.isel(voxel=voxels["roi"].values == "V1")
    rng = np.random.default_rng(0)
    spots = [(x, y) for x in (-6, -3, 0, 3, 6) for y in (-6, -3, 0, 3, 6)]
    images = np.full((len(spots), 96, 96, 3), 128, np.uint8)
    for image, (x, y) in zip(images, spots, strict=True):
        column, row = (int(48 + 6 * place) for place in (x, -y))
        texture = rng.integers(0, 256, (18, 18, 1))
        image[max(row - 9, 0) : row + 9, max(column - 9, 0) : column + 9] = texture[
            : row + 9 - max(row - 9, 0), : column + 9 - max(column - 9, 0)
        ]
    best = np.array(spots)[respond(images, v1).argmax(0)]
    assert np.corrcoef(best[:, 0], v1["field_x"])[0, 1] > 0.8
    assert np.corrcoef(best[:, 1], v1["field_y"])[0, 1] > 0.8


def test_responses_are_standardised_and_noise_voxels_are_silent(simulation: Simulation) -> None:
    """Mean 0 and variance 1 over images, except where there is no receptive field."""
    images = pixels_of(simulation)[:40]
    voxels = area_voxels()
    truth = respond(images, voxels, seed=1)
    silent = voxels["roi"].values == "noise"
    assert (truth[:, silent] == 0).all()
    np.testing.assert_allclose(truth[:, ~silent].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(truth[:, ~silent].std(0), 1, atol=1e-5)
    other = respond(images, voxels, seed=2)
    assert np.abs((truth * other)[:, ~silent].mean(0)).mean() < 0.9
