"""The scan of a simulated experiment: a slab of the brain, volume by volume."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import xarray as xr

from neurodl.datasets.simulated.cortex import AREAS, brain
from neurodl.datasets.simulated.design import AUTOCORRELATION

BASELINE = 1000.0  # mean signal of the brain
BACKGROUND_SD = 1.0  # % of the baseline: noise of voxels outside the areas
DRIFT, N_DRIFTS = 1.0, 3  # % of the baseline: standard deviation of the slowest drift
MARGIN = 2  # voxels of the slab around the areas


@dataclass(frozen=True)
class Slab:
    """The part of the MNI152 grid that is scanned.

    Parameters
    ----------
    affine : numpy.ndarray, shape (4, 4)
    baseline : numpy.ndarray, shape (x, y, z)
        Mean signal: 0 outside the brain, within it brighter where a T1 image is darker.
    atlas : numpy.ndarray of int, shape (x, y, z)
        Number of the area, 0 in none.
    areas : list of str
        Name of area 1, 2 ...
    """

    affine: np.ndarray
    baseline: np.ndarray
    atlas: np.ndarray
    areas: list[str]

    def image(self, values: np.ndarray, tr: float | None = None) -> nib.Nifti1Image:
        """Return a NIfTI image on the slab's grid, marked as MNI152 space."""
        image = nib.Nifti1Image(values, self.affine)
        image.header.set_xyzt_units("mm", "sec" if tr else None)
        image.set_sform(self.affine, "mni")
        image.set_qform(self.affine, "mni")
        if tr:
            image.header["pixdim"][4] = tr
        return image

    def on_grid(self, array: xr.DataArray) -> xr.DataArray:
        """Return an array over voxels with i, j, k, affine and shape of the slab's grid."""
        ijk = np.argwhere(self.atlas)
        moved = array.assign_coords(
            {name: ("voxel", ijk[:, axis]) for axis, name in enumerate("ijk")}
        )
        affine = [float(number) for number in self.affine.ravel()]
        return moved.assign_attrs(affine=affine, shape=[int(n) for n in self.atlas.shape])


def slab_around(voxels: xr.DataArray) -> Slab:
    """Return the smallest slab of the MNI152 grid that holds the voxels, with a margin."""
    inside, affine = brain("mask")
    template, _ = brain("template")
    ijk = np.stack([voxels[name].values for name in "ijk"])
    low = np.maximum(ijk.min(1) - MARGIN, 0)
    high = np.minimum(ijk.max(1) + 1 + MARGIN, inside.shape)
    areas = [area for area in AREAS if area in voxels["roi"].values]
    atlas = np.zeros(inside.shape, np.int16)
    atlas[tuple(ijk)] = [1 + areas.index(area) for area in voxels["roi"].values]
    relative = template / template[inside > 0].mean()
    baseline = np.where(inside > 0, BASELINE * np.clip(1.4 - 0.4 * relative, 0.5, 1.5), 0)
    cut = tuple(slice(*ends) for ends in zip(low, high, strict=True))
    moved = affine.copy()
    moved[:3, 3] = nib.affines.apply_affine(affine, low)
    return Slab(moved, baseline[cut], atlas[cut], areas)


def scan_run(
    slab: Slab,
    signal: np.ndarray,
    noise_sd: np.ndarray,
    drifts: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the volumes of one run.

    Parameters
    ----------
    slab : Slab
    signal : numpy.ndarray, shape (n_times, n_voxels)
        Of the voxels of the areas [% of the baseline].
    noise_sd : numpy.ndarray, shape (n_voxels,)
        Standard deviation of the noise of the same voxels [% of the baseline].
    drifts : numpy.ndarray, shape (n_times, n_drifts)
        Slow regressors, the slowest first; each voxel drifts by a random sum of a few.
    rng : numpy.random.Generator

    Returns
    -------
    numpy.ndarray, shape (x, y, z, n_times), int16
    """
    inside = slab.baseline > 0
    active = slab.atlas[inside] > 0
    spread = np.full(len(active), BACKGROUND_SD, np.float32)
    spread[active] = noise_sd
    percent = _autocorrelated(rng, len(signal), len(active)) * spread
    slow = drifts[:, :N_DRIFTS] / drifts[:, :N_DRIFTS].std(0)
    amplitude = rng.standard_normal((slow.shape[1], len(active)))
    amplitude *= DRIFT / np.arange(1, slow.shape[1] + 1)[:, None]
    percent += (slow @ amplitude).astype(np.float32)
    percent[:, active] += signal.astype(np.float32)
    values = slab.baseline[inside].astype(np.float32) * (1 + percent / 100)
    volumes = np.zeros((*inside.shape, len(signal)), np.int16)
    volumes[inside] = np.rint(values).T
    return volumes


def _autocorrelated(rng: np.random.Generator, n_times: int, n_voxels: int) -> np.ndarray:
    """Return first-order autoregressive noise of variance 1, float32."""
    noise = rng.standard_normal((n_times, n_voxels), dtype=np.float32)
    noise[1:] *= np.float32(np.sqrt(1 - AUTOCORRELATION**2))
    for time in range(1, n_times):
        noise[time] += np.float32(AUTOCORRELATION) * noise[time - 1]
    return noise
