"""The rows of bands of features, as kernels of each band: of all training rows or of a split.

With more rows than features the rows are first turned into as many pseudo-rows as there are
features, which have the same covariance and the same products with targets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from neurodl.models._design import Design, Scaling
from neurodl.models._folds import held_moments
from neurodl.models._heldout import Part
from neurodl.models._solvers import centred_kernels
from neurodl.models._spaces import KernelSpace, LinearSpace, Space
from neurodl.models._targets import Block

DEPENDENT = 1e-12  # eigenvalues of a covariance below this share of the largest are 0


class BandRows(NamedTuple):
    """Training rows and rows to predict, as kernels of each band about the training rows' mean.

    kernels : (n_bands, k, k), float64
    cross : (n_bands, m, k), float64, of the rows to predict
    inside, outside : (n_train, k) and (n_held, m), turn targets into those of pseudo-rows, or None
    """

    kernels: torch.Tensor
    cross: torch.Tensor
    inside: torch.Tensor | None
    outside: torch.Tensor | None

    def part(
        self, block: Block, train: torch.Tensor, test: torch.Tensor, scoring: str
    ) -> Part:
        """Return some targets in a split, for `score`."""
        inside = block.values.index_select(1, train)
        mean = inside.mean(1)
        outside, *rest = held_moments(block, test, mean)
        if scoring == "r":
            outside = outside - outside.mean(1, keepdim=True)
        inside = inside - mean[:, None]
        if self.inside is not None:
            inside = inside @ self.inside.to(inside.dtype)
        if self.outside is not None:
            outside = outside @ self.outside.to(outside.dtype)
        return Part(inside, outside, *rest)


class Bands:
    """Bands of features of all rows, each scaled to a mean eigenvalue of 1 over the training rows.

    Parameters
    ----------
    kernels : torch.Tensor, shape (n_bands, n_samples, n_samples), float64, or None
    designs : list of Design
        One for each band, needed where there are no kernels.
    own : torch.Tensor
        The numbers of the training rows.
    """

    def __init__(
        self, kernels: torch.Tensor | None, designs: list[Design], own: torch.Tensor
    ) -> None:
        self.kernels, self.designs, self.own = kernels, designs, own
        if kernels is None:
            unit = [float(design.rows(own).var(0, correction=0).sum()) for design in designs]
        else:
            inner = (kernel[own][:, own] for kernel in kernels)
            unit = [float(one.diagonal().mean() - one.mean()) for one in inner]
        # of bands that do not vary nothing is divided
        self.unit = torch.tensor(
            [one if one > 0 else 1.0 for one in unit], dtype=torch.float64, device=own.device
        )
        if kernels is not None:
            kernels.div_(self.unit[:, None, None])

    def mixture(self, weights: torch.Tensor) -> Space:
        """Return the space of all bands together, with these weights of their kernels."""
        if self.kernels is not None:
            return KernelSpace(torch.einsum("b,bij->ij", weights, self.kernels))
        first = self.designs[0]
        root = (self.unit / weights).sqrt()
        offset = torch.cat([design.scaling.offset for design in self.designs])
        scale = torch.cat(
            [
                design.scaling.scale * one.to(design.scaling.scale.dtype)
                for design, one in zip(self.designs, root, strict=True)
            ]
        )
        features = torch.cat([design.features for design in self.designs], 1)
        joined = Design(
            features,
            Scaling(offset, scale, 0, 1.0),
            first.delays,
            first.runs,
            centre_runs=first.centre_runs,
        )
        return LinearSpace(joined, None)

    def rows(self, train: torch.Tensor, test: torch.Tensor, *, centre_test: bool) -> BandRows:
        """Return some of the rows about the mean of `train`, or of `test` where this is wanted.

        Parameters
        ----------
        train, test : torch.Tensor
            Row numbers among all.
        centre_test : bool
            Whether the mean over `test` is taken off its rows.
        """
        if self.kernels is None:
            return self._pseudo_rows(train, test, centre_test=centre_test)
        pairs = [centred_kernels(kernel, train, test) for kernel in self.kernels]
        inner, cross = (torch.stack(list(one)) for one in zip(*pairs, strict=True))
        if centre_test and len(test):
            cross -= cross.mean(1, keepdim=True)
        return BandRows(inner, cross, None, None)

    def _pseudo_rows(
        self, train: torch.Tensor, test: torch.Tensor, *, centre_test: bool
    ) -> BandRows:
        own, held = self._scaled(train), self._scaled(test)
        mean = own.mean(0)
        own -= mean
        held -= held.mean(0) if centre_test and len(test) else mean
        own, inside = _compressed(own)
        held, outside = _compressed(held) if len(held) > held.shape[1] else (held, None)
        widths = [design.n_features for design in self.designs]
        parts = list(zip(own.split(widths, 1), held.split(widths, 1), strict=True))
        kernels = torch.stack([one @ one.T for one, _ in parts])
        cross = torch.stack([other @ one.T for one, other in parts])
        return BandRows(kernels, cross, inside, outside)

    def _scaled(self, index: torch.Tensor) -> torch.Tensor:
        """Return some rows of all bands side by side, (n_rows, n_features), float64."""
        parts = zip(self.designs, self.unit, strict=True)
        return torch.cat([design.rows(index) / one.sqrt() for design, one in parts], 1)


def _compressed(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pseudo-rows (k, n_features) of the same covariance, and what makes them (n_rows, k)."""
    eigenvalues, vectors = torch.linalg.eigh(rows.T @ rows)
    kept = eigenvalues > DEPENDENT * eigenvalues[-1].clamp_min(1e-300)
    root, vectors = eigenvalues[kept].sqrt(), vectors[:, kept]
    return root[:, None] * vectors.T, rows @ (vectors / root)
