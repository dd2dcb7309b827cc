"""Models that project all targets on the same few directions of the training rows."""

from __future__ import annotations

import torch

from neurodl.models._folds import View
from neurodl.models._solvers import Spectrum
from neurodl.models._targets import Block, Targets


def target_kernel(targets: Targets) -> torch.Tensor:
    """Return the inner products of rows over all targets, (n_samples, n_samples), float64."""
    shape = (targets.n_samples, targets.n_samples)
    kernel = torch.zeros(shape, dtype=torch.float64, device=targets.device)
    for _, product in targets.map(_products_of_rows):
        kernel += product
    return kernel


def _products_of_rows(block: Block) -> torch.Tensor:
    values = block.values.double()
    return values.T @ values


class DirectionsFold:
    """Training rows whose targets are projected on directions, and predicted from them.

    With the kernel's eigenvectors U and eigenvalues e, and directions D in their basis, targets
    y of the training rows become ``D' U' y``, and predictions of them ``K U diag(1 / e) D D' U' y``
    for rows with the kernel K to the training rows.

    Parameters
    ----------
    spectrum : Spectrum
        Of the training rows, without zero eigenvalues.
    directions : torch.Tensor, shape (rank, n_directions), float64
    """

    def __init__(self, spectrum: Spectrum, directions: torch.Tensor) -> None:
        self.spectrum = spectrum
        self.inward = spectrum.train_basis @ directions
        self.outward = directions / spectrum.eigenvalues[:, None]

    def view(self, block: Block) -> View:
        """Return a block with what all inner splits need of it: nothing more."""
        return View(block)

    def filtered(self, view: View, setting_per_target: torch.Tensor) -> torch.Tensor:
        """Return the projections of targets, (n_targets, n_directions)."""
        values = view.block.values
        return values @ self.inward.to(values.dtype)

    def train_basis(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return eigenvalues (rank,), and what turns targets to the eigenbasis (n_own, rank)."""
        return self.spectrum.eigenvalues, self.spectrum.train_basis

    def test_basis(self) -> torch.Tensor:
        """Return what turns projections into predictions of the rows `held`, (n_held, .)."""
        assert self.spectrum.test_basis is not None
        return self.spectrum.test_basis @ self.outward

    def weight_basis(self) -> torch.Tensor:
        """Return what turns projections into weights of the training rows, (n_own, .), float64."""
        return self.spectrum.train_basis @ self.outward
