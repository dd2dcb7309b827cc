"""What the simulated voxels respond to: oriented energy in V1, combinations of it further on."""

from __future__ import annotations

import math

import numpy as np
import torch
import xarray as xr
from torch.nn import functional

from neurodl.datasets.simulated.cortex import FIELD_RADIUS
from neurodl.runtime import derive_seed

WAVELENGTHS = (0.5, 1.0, 2.0, 4.0)  # degrees per cycle
N_ORIENTATIONS = 8
LATTICE = 32  # places per side of the image at which V1 is evaluated
N_MAPS = 64  # kinds of cells in each later area
N_UNITS = 8  # receptive fields pooled by one voxel
LUMINANCE = (0.2126, 0.7152, 0.0722)  # share of red, green and blue
BATCH = 60


def noiseless_responses(images: np.ndarray, voxels: xr.Dataset, seed: int = 0) -> np.ndarray:
    """Return what each voxel answers to each image, before noise.

    V1 is a bank of complex cells (log-Gabor energy) with divisive normalisation. V2 multiplies
    pairs of these with other orientations, sizes or places, as corners and textures need; V4 and
    LOC are two layers of a fixed random convolutional network on top of V2, each of which filters,
    rectifies and pools. A voxel pools `N_UNITS` cells of its area around its receptive field, and
    compresses their sum. Only luminance counts.

    Parameters
    ----------
    images : numpy.ndarray, shape (n_images, size, size, 3), uint8
    voxels : xarray.Dataset
        As `area_voxels` returns it.
    seed : int
        Of the choice of cells. The cells themselves are always the same.

    Returns
    -------
    numpy.ndarray, shape (n_images, n_voxels), float32
        Mean 0 and variance 1 over the images; 0 in voxels without a receptive field.

    References
    ----------
    Field, D. J. (1987). Relations between the statistics of natural images and the response
    properties of cortical cells. JOSA A 4, 2379-2394.
    Heeger, D. J. (1992). Normalization of cell responses in cat striate cortex. Visual
    Neuroscience 9, 181-197.
    Kay, K. N. et al. (2013). Compressive spatial summation in human visual cortex. Journal of
    Neurophysiology 110, 481-494.
    """
    areas = _area_maps(images)
    truth = np.zeros((len(images), voxels.sizes["voxel"]), np.float32)
    for area, maps in areas.items():
        rows = np.flatnonzero(voxels["roi"].values == area)
        rng = np.random.default_rng(derive_seed(seed, "voxels", area))
        if len(rows):
            truth[:, rows] = _pool(maps, voxels.isel(voxel=rows), area, rng)
    return truth


def complex_cells(images: np.ndarray) -> torch.Tensor:
    """Return the energy of oriented filters: the response of complex cells over the image.

    The filters are log-Gabor functions, cut to one half of the frequency plane: the response is
    complex, its real and imaginary part are the quadrature pair, and its modulus is the energy.

    Parameters
    ----------
    images : numpy.ndarray, shape (n_images, size, size, 3), uint8

    Returns
    -------
    torch.Tensor, shape (n_images, n_wavelengths * n_orientations, lattice, lattice)
    """
    size = images.shape[1]
    margin = size // 8
    bank = _log_gabor(size + 2 * margin, size / (2 * FIELD_RADIUS))
    energies = torch.empty(len(images), len(bank), LATTICE, LATTICE)
    for start in range(0, len(images), BATCH):
        batch = torch.from_numpy(images[start : start + BATCH]).float() / 255
        grey = (batch @ torch.tensor(LUMINANCE))[:, None]
        grey = functional.pad(grey - grey.mean((-2, -1), keepdim=True), (margin,) * 4, "reflect")
        spectrum = torch.fft.fft2(grey[:, 0])
        for number, gain in enumerate(bank):
            energy = torch.fft.ifft2(spectrum * gain).abs()
            inner = energy[:, None, margin : margin + size, margin : margin + size]
            energies[start : start + BATCH, number] = functional.adaptive_avg_pool2d(
                inner, LATTICE
            )[:, 0]
    return energies


def _log_gabor(size: int, pixels_per_degree: float) -> torch.Tensor:
    """Return the gain of each filter by frequency, shape (n_filters, size, size)."""
    axis = torch.fft.fftfreq(size) * pixels_per_degree
    fy, fx = torch.meshgrid(axis, axis, indexing="ij")
    frequency = torch.hypot(fx, fy)
    frequency[0, 0] = 1e-9
    angle = torch.atan2(fy, fx)
    gains = []
    for wavelength in WAVELENGTHS:
        radial = torch.exp(-(torch.log(frequency * wavelength) ** 2) / (2 * math.log(0.62) ** 2))
        for number in range(N_ORIENTATIONS):
            turn = angle - math.pi * number / N_ORIENTATIONS
            apart = torch.atan2(torch.sin(turn), torch.cos(turn))
            gains.append(2 * radial * torch.exp(-(apart**2) / (2 * math.radians(20) ** 2)))
    return torch.stack(gains)


def _area_maps(images: np.ndarray) -> dict[str, torch.Tensor]:
    """Return the cells of each area over the image, (n_images, n_maps, height, width)."""
    v1 = _normalised(complex_cells(images))
    v2 = _standardised(_conjunctions(v1))
    v4 = _layer(v2, derive_seed(0, "network", "V4"))
    loc = _layer(v4, derive_seed(0, "network", "LOC"))
    return {"V1": v1, "V2": v2, "V4": v4, "LOC": loc}


def _normalised(energy: torch.Tensor) -> torch.Tensor:
    """Divide the energy by that of all orientations around, so that contrast saturates."""
    n, _, height, width = energy.shape
    bands = energy.view(n, len(WAVELENGTHS), N_ORIENTATIONS, height, width)
    around = functional.avg_pool2d(bands.mean(2), 5, 1, 2, count_include_pad=False)
    constant = around.mean((0, 2, 3), keepdim=True)
    return (bands / (constant + around)[:, :, None]).flatten(1, 2)


def _conjunctions(cells: torch.Tensor) -> torch.Tensor:
    """Return geometric means of two neighbouring cells each: both must respond."""
    rng = np.random.default_rng(derive_seed(0, "network", "V2"))
    maps = torch.empty(len(cells), N_MAPS, LATTICE // 2, LATTICE // 2)
    for number in range(N_MAPS):
        one, other = rng.choice(cells.shape[1], 2, replace=False)
        shift = tuple(int(step) for step in rng.integers(-2, 3, 2))
        both = (cells[:, one] * torch.roll(cells[:, other], shift, (1, 2))).sqrt()
        maps[:, number] = functional.avg_pool2d(both[:, None], 2)[:, 0]
    return maps


def _layer(maps: torch.Tensor, seed: int, n_inputs: int = 6) -> torch.Tensor:
    """Return a random layer: each map weighs a few of the earlier ones over 3 x 3 places."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(N_MAPS, maps.shape[1], 3, 3))
    for kernel in weights:
        kernel[rng.permutation(len(kernel))[n_inputs:]] = 0
    kernels = torch.from_numpy(weights.astype(np.float32))
    padded = functional.pad(maps, (1, 1, 1, 1), "replicate").split(BATCH)
    drive = _standardised(torch.cat([functional.conv2d(batch, kernels) for batch in padded]))
    # rectified both ways, so that no weighted sum of the earlier area can stand in for it
    rectified = functional.relu(drive.abs() - 0.3)
    side = max(drive.shape[-1] // 2, 8)
    return _standardised(functional.adaptive_avg_pool2d(rectified, side))


def _standardised(maps: torch.Tensor) -> torch.Tensor:
    """Return maps with mean 0 and variance 1 over images and places."""
    spread, mean = torch.std_mean(maps, (0, 2, 3), keepdim=True)
    return (maps - mean) / (spread + 1e-12)


def _pool(
    maps: torch.Tensor, voxels: xr.Dataset, area: str, rng: np.random.Generator
) -> np.ndarray:
    """Return voxels that each sum a few cells around their receptive field, standardised."""
    n_voxels, shape = voxels.sizes["voxel"], (voxels.sizes["voxel"], N_UNITS)
    x, y, size = (voxels[name].values[:, None] for name in ("field_x", "field_y", "field_size"))
    scatter = rng.normal(0, 0.35, (2, *shape)) * size
    spread = size * rng.uniform(0.7, 1.2, shape)
    kind = _v1_kinds(x, y, rng) if area == "V1" else rng.integers(maps.shape[1], size=shape)
    weight = rng.gamma(2.0, 1.0, shape)
    side = maps.shape[-1]
    centre = FIELD_RADIUS * ((np.arange(side) + 0.5) * 2 / side - 1)
    along = np.exp(-((centre - (x + scatter[0])[..., None]) ** 2) / (2 * spread[..., None] ** 2))
    down = np.exp(-((centre + (y + scatter[1])[..., None]) ** 2) / (2 * spread[..., None] ** 2))
    summed = np.zeros((len(maps), n_voxels))
    for number in range(maps.shape[1]):
        voxel, unit = np.nonzero(kind == number)
        if not len(voxel):
            continue
        field = down[voxel, unit][:, :, None] * along[voxel, unit][:, None, :]
        field *= (weight[voxel, unit] / field.sum((1, 2)))[:, None, None]
        drive = maps[:, number].flatten(1).double().numpy() @ field.reshape(len(voxel), -1).T
        np.add.at(summed.T, voxel, drive.T)
    return _compressed(summed)


def _v1_kinds(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return which orientation and wavelength the cells of V1 voxels prefer.

    A voxel's orientation columns are not sampled evenly, which leaves it a preferred orientation;
    wavelengths grow with eccentricity.
    """
    shape = (len(x), N_UNITS)
    preferred = rng.uniform(0, N_ORIENTATIONS, (len(x), 1))
    orientation = np.rint(preferred + rng.normal(0, 1.2, shape)).astype(int) % N_ORIENTATIONS
    octave = np.log2(2 * (0.5 + 0.25 * np.hypot(x, y))) + rng.normal(0, 0.6, shape)
    band = np.clip(np.rint(octave), 0, len(WAVELENGTHS) - 1).astype(int)
    return np.asarray(band * N_ORIENTATIONS + orientation)


def _compressed(drive: np.ndarray) -> np.ndarray:
    """Return saturating responses with mean 0 and variance 1 over images."""
    scaled = (drive - drive.mean(0)) / drive.std(0)
    response = np.tanh(0.5 * scaled)
    return np.asarray((response - response.mean(0)) / response.std(0), np.float32)
