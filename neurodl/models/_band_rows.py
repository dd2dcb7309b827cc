"""The rows of bands of features, as kernels of each band: of all training rows or of a split.

With more rows than features the rows are first turned into as many pseudo-rows as there are
features, which have the same covariance and the same products with targets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from neurodl.models._bands import Columns
from neurodl.models._design import Design, Scaling
from neurodl.models._folds import held_moments
from neurodl.models._heldout import Part
from neurodl.models._solvers import centred_kernels, eigh
from neurodl.models._spaces import KernelSpace, LinearSpace, Space
from neurodl.models._targets import Block

DEPENDENT = 1e-12  # eigenvalues of a covariance below this share of the largest are 0
ROUNDING = 1e-12  # a variance below this share of the mean square is 0


class BandRows(NamedTuple):
    """Training rows and rows to predict, as kernels of each band about the training rows' mean.

    kernels : (n_bands, k, k), float64
    cross : (n_bands, m, k), float64, of the rows to predict
    inside, outside : (n_train, k) and (n_held, m), turn targets into those of pseudo-rows; or None
    """

    kernels: torch.Tensor
    cross: torch.Tensor
    inside: torch.Tensor | None
    outside: torch.Tensor | None

    def turned(self, values: torch.Tensor) -> torch.Tensor:
        """Return centred targets of the training rows, (n_targets, n_train), as (n_targets, k)."""
        return values if self.inside is None else values @ self.inside.to(values.dtype)

    def part(self, block: Block, train: torch.Tensor, test: torch.Tensor, scoring: str) -> Part:
        """Return some targets in a split, for `score`."""
        inside = block.values.index_select(1, train)
        mean = inside.mean(1)
        outside, *rest = held_moments(block, test, mean)
        if scoring == "r":
            outside = outside - outside.mean(1, keepdim=True)
        if self.outside is not None:
            outside = outside @ self.outside.to(outside.dtype)
        return Part(self.turned(inside - mean[:, None]), outside, *rest)


class Bands:
    """Bands of features of all rows, each scaled to a mean square of 1 over the training rows.

    Parameters
    ----------
    columns : dict of str to slice or torch.Tensor
        The columns of each band by its name.
    kernels : list of torch.Tensor, shape (n_samples, n_samples), float64, or None
        One for each band.
    designs : list of Design, or None
        One for each band, needed where there are no kernels.
    own : torch.Tensor
        The numbers of the training rows.
    """

    def __init__(
        self,
        columns: dict[str, Columns],
        kernels: list[torch.Tensor] | None,
        designs: list[Design] | None,
        own: torch.Tensor,
    ) -> None:
        self.columns, self.kernels, self.own = columns, kernels, own
        self.designs = designs or []
        if kernels is None:
            unit = [_mean_square(design, own) for design in self.designs]
        else:
            inner = (kernel[own][:, own] for kernel in kernels)
            unit = [_variance(float(one.diagonal().mean()), float(one.mean())) for one in inner]
        # bands that do not vary are divided by nothing
        unit = [one or 1.0 for one in unit]
        self.unit = torch.tensor(unit, dtype=torch.float64, device=own.device)

    def mixture(self, weights: torch.Tensor) -> Space:
        """Return the space of all bands together, with these weights of their scaled kernels."""
        if self.kernels is not None:
            parts = zip(self.kernels, weights / self.unit, strict=True)
            return KernelSpace(sum(weight * kernel for kernel, weight in parts))
        scalings = [design.scaling for design in self.designs]
        root = (self.unit / weights).sqrt().to(scalings[0].scale.dtype)
        scale = torch.cat([one.scale * by for one, by in zip(scalings, root, strict=True)])
        features = torch.cat([design.features for design in self.designs], 1)
        mean_square = float(weights.sum())
        mean_eigenvalue = mean_square * len(self.own) / min(len(self.own), features.shape[1])
        mean_eigenvalue /= len(self.designs[0].delays or [0])  # these count in `unit` already
        scaling = Scaling(torch.cat([one.offset for one in scalings]), scale, 0, mean_eigenvalue)
        first = self.designs[0]
        by_run = first.centre_runs
        return LinearSpace(Design(features, scaling, first.delays, first.runs, centre_runs=by_run))

    def rows(
        self,
        train: torch.Tensor,
        test: torch.Tensor,
        *,
        centre_test: bool = False,
        compress_test: bool = False,
    ) -> BandRows:
        """Return some of the rows about the mean of `train`.

        Parameters
        ----------
        train, test : torch.Tensor
            Row numbers among all.
        centre_test : bool
            Whether the rows `test` are about their own mean instead.
        compress_test : bool
            Whether many rows `test` may become pseudo-rows.
        """
        if self.kernels is None:
            return self._pseudo_rows(train, test, centre_test, compress_test)
        pairs = [centred_kernels(kernel, train, test) for kernel in self.kernels]
        inner, cross = (torch.stack(list(one)) for one in zip(*pairs, strict=True))
        if centre_test:
            cross -= cross.mean(1, keepdim=True)
        unit = self.unit[:, None, None]
        return BandRows(inner.div_(unit), cross.div_(unit), None, None)

    def _pseudo_rows(
        self, train: torch.Tensor, test: torch.Tensor, centre_test: bool, compress_test: bool
    ) -> BandRows:
        own, held = self._scaled(train), self._scaled(test)
        mean = own.mean(0)
        own -= mean
        held -= held.mean(0) if centre_test else mean
        own, inside = _compressed(own)
        outside = None
        if compress_test and len(held) > held.shape[1]:
            held, outside = _compressed(held)
        widths = [design.n_features for design in self.designs]
        parts = list(zip(own.split(widths, 1), held.split(widths, 1), strict=True))
        kernels = torch.stack([one @ one.T for one, _ in parts])
        cross = torch.stack([other @ one.T for one, other in parts])
        return BandRows(kernels, cross, inside, outside)

    def _scaled(self, index: torch.Tensor) -> torch.Tensor:
        """Return some rows of all bands side by side, (n_rows, n_features), float64."""
        parts = zip(self.designs, self.unit, strict=True)
        return torch.cat([design.rows(index) / one.sqrt() for design, one in parts], 1)


def _mean_square(design: Design, own: torch.Tensor) -> float:
    """Return the mean squared length of the rows `own` about their mean."""
    total = torch.zeros(design.n_features, dtype=torch.float64, device=own.device)
    square = 0.0
    for _, rows in design.blocks(own):
        total += rows.sum(0)
        square += float(rows.square().sum())
    return _variance(square / len(own), float((total / len(own)).square().sum()))


def _variance(mean_square: float, square_of_mean: float) -> float:
    """Return the variance, 0 where it is no more than rounding."""
    variance = mean_square - square_of_mean
    return variance if variance > ROUNDING * mean_square else 0.0


def _compressed(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pseudo-rows (k, n_features) of the same covariance, and their maker (n_rows, k)."""
    eigenvalues, vectors = eigh(rows.T @ rows)
    kept = eigenvalues > DEPENDENT * eigenvalues[-1].clamp_min(1e-300)
    root, vectors = eigenvalues[kept].sqrt(), vectors[:, kept]
    return root[:, None] * vectors.T, rows @ (vectors / root)
