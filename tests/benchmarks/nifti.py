"""Reading a run of fMRI through a mask, against nilearn's NiftiMasker: seconds, memory, ratios.

    python tests/benchmarks/nifti.py
    python tests/benchmarks/nifti.py --shape 72 72 60 300 --repeats 5 --uncompressed

The run is simulated, int16, and compressed as nibabel does; the brain is a quarter of the volume.
Every run has a process of its own; they take turns. Values must be equal, and agree to 1e-5 once
detrended and z-scored.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ridge import run_apart
from scipy.ndimage import gaussian_filter

from neurodl import read_nifti


def write_run(folder: Path, shape: tuple[int, int, int, int], suffix: str) -> tuple[Path, Path]:
    """Write a run and its mask; return their paths."""
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape[:3]], indexing="ij"))
    radii = np.array([0.75, 0.9, 0.8])[:, None, None, None]
    mask = np.square(places / radii).sum(0) < 1
    tissue = 800 + 200 * np.sin(8 * places[0]) * np.cos(7 * places[1])
    base = gaussian_filter(np.where(mask, tissue, 20), 1)
    volumes = np.empty(shape, np.int16)
    for number in range(shape[3]):
        noise = rng.standard_normal(shape[:3]) * np.where(mask, 12, 4)
        volumes[..., number] = np.clip(base + noise + 0.05 * number * mask, 0, None)
    image = nib.Nifti1Image(volumes, np.diag([3.0, 3.0, 3.0, 1.0]))
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 2
    paths = folder / f"run{suffix}", folder / "mask.nii.gz"
    nib.save(image, paths[0])
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), image.affine), paths[1])
    return paths


def ours(run: Path, mask: Path, cleaned: bool) -> np.ndarray:
    return read_nifti(run, mask, detrend=cleaned, zscore=cleaned).values


def theirs(run: Path, mask: Path, cleaned: bool) -> np.ndarray:
    from nilearn.maskers import NiftiMasker

    standardize = "zscore_sample" if cleaned else None
    masker = NiftiMasker(mask, detrend=cleaned, standardize=standardize, reports=False)
    return masker.fit_transform(run)


def summarised(read: Callable[..., np.ndarray], *args: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return what two results are compared by: all sums over time, and some whole voxels."""
    values = read(*args)
    return values.sum(0, dtype=np.float64), values[:, :: values.shape[1] // 50].copy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=4, default=(72, 72, 60, 300))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--uncompressed", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        small, big = Path(folder, "small"), Path(folder, "big")
        small.mkdir()
        big.mkdir()
        suffix = ".nii" if args.uncompressed else ".nii.gz"
        warm, paths = write_run(small, (8, 8, 8, 10), suffix), write_run(big, args.shape, suffix)
        for cleaned in (False, True):
            rows = []
            for _ in range(args.repeats):
                runs = [
                    run_apart(
                        partial(summarised, read, *paths, cleaned),
                        partial(read, *warm, cleaned),
                        args.threads,
                    )
                    for read in (ours, theirs)
                ]
                (took, grew, found), (peer, peer_grew, expected) = runs
                for one, other in zip(found, expected, strict=True):
                    np.testing.assert_allclose(one, other, rtol=0, atol=1e-2 if cleaned else 0)
                apart = np.abs(found[1] - expected[1]).max()
                rows.append((peer / took, grew / peer_grew, took, peer, grew, peer_grew, apart))
            speed, memory, took, peer, grew, peer_grew, apart = np.median(rows, 0)
            print(
                f"{'detrended and z-scored' if cleaned else 'as it is'}: neurodl {took:.2f} s, "
                f"+{grew:.0f} MB; NiftiMasker {peer:.2f} s, +{peer_grew:.0f} MB; {speed:.1f}x "
                f"faster (median of {args.repeats} pairs, {min(row[0] for row in rows):.1f} at "
                f"least), {memory:.2f} of the memory, values differ by {apart:.1e}"
            )


if __name__ == "__main__":
    main()
