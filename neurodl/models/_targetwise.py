"""Models in which every target has weights that are no linear function of it, at each setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from neurodl.models._folds import DualFold, PrimalFold, View, part_of_rows
from neurodl.models._heldout import Part
from neurodl.models._solvers import Spectrum, nonzero_part
from neurodl.models._targets import Block

WORK_BYTES = {"cpu": 2**26, "cuda": 2**30}

# From eigenvalues (rank,), targets in the eigenbasis (n_targets, rank) and settings (1 or
# n_targets, n_settings) to coefficients (n_targets, n_settings, rank), all in float64: the test
# basis of a `Spectrum` turns these into predictions.
Coefficients = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class TargetwiseFold:
    """The training rows of a fold, for a model with coefficients of each target's own.

    Parameters
    ----------
    fold : DualFold or PrimalFold
    coefficients : Coefficients
    n_stored : int
        How many numbers, about, computing coefficients takes for each eigenvector and target.
    """

    def __init__(
        self, fold: DualFold | PrimalFold, coefficients: Coefficients, n_stored: int
    ) -> None:
        self.fold, self.coefficients, self.n_stored = fold, coefficients, n_stored
        self.spectrum = nonzero_part(fold.whole)

    def split(self, train: torch.Tensor, test: torch.Tensor, scoring: str) -> TargetwiseSplit:
        """Return an inner split, given by row numbers among the fold's own rows."""
        return TargetwiseSplit(self, train, test, scoring)

    def view(self, block: Block) -> View:
        """Return a block with what all inner splits need of it: nothing more."""
        return View(block)

    def inside(self, view: View) -> torch.Tensor:
        """Return targets in the eigenbasis (n_targets, rank), float64."""
        return view.block.values.double() @ self.spectrum.train_basis

    def filtered(self, view: View, setting_per_target: torch.Tensor) -> torch.Tensor:
        """Return the coefficients of targets at one setting each, (n_targets, rank)."""
        inside = self.inside(view)
        found = torch.empty_like(inside, dtype=view.block.values.dtype)
        for some in chunks(inside, self.n_stored):
            settings = setting_per_target[some, None]
            of_some = self.coefficients(self.spectrum.eigenvalues, inside[some], settings)
            found[some] = of_some[:, 0].to(found.dtype)
        return found

    def train_basis(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return eigenvalues (rank,), and what turns targets to the eigenbasis (n_own, rank)."""
        return self.spectrum.eigenvalues, self.spectrum.train_basis

    def test_basis(self) -> torch.Tensor:
        """Return what turns coefficients into predictions of the rows `held`, (n_held, rank)."""
        assert self.spectrum.test_basis is not None
        return self.spectrum.test_basis

    def weight_basis(self) -> torch.Tensor:
        """Return what turns them into weights of the training rows, (n_own, rank), float64."""
        return self.spectrum.train_basis


class TargetwiseSplit:
    """An inner split of a `TargetwiseFold`."""

    def __init__(
        self, fold: TargetwiseFold, train: torch.Tensor, test: torch.Tensor, scoring: str
    ) -> None:
        self.fold, self.train, self.test, self.scoring = fold, train, test, scoring

    def operator(self, settings: torch.Tensor, dtype: torch.dtype) -> Targetwise:
        """Return the scorer of its held-out rows at all settings."""
        spectrum = nonzero_part(self.fold.fold.spectrum(self.train, self.test))
        basis = spectrum.test_basis
        assert basis is not None
        if self.scoring == "r":
            basis = basis - basis.mean(0)
        own = self.fold.coefficients, self.fold.n_stored
        return Targetwise(spectrum, basis.to(dtype), settings, *own, self.scoring)

    def part(self, view: View) -> Part:
        """Return some targets in this split."""
        return part_of_rows(view.block, self.train, self.test)


class Targetwise(NamedTuple):
    """Predictions of held-out rows from coefficients of each target's own.

    spectrum : of the training rows
    basis : (n_test, rank), turns coefficients into predictions
    settings : (n_settings,)
    coefficients, n_stored : see `TargetwiseFold`
    scoring : "r2" or "r"
    """

    spectrum: Spectrum
    basis: torch.Tensor
    settings: torch.Tensor
    coefficients: Coefficients
    n_stored: int
    scoring: str

    @property
    def n_bytes(self) -> int:
        """The memory it takes."""
        return sum(x.nbytes for x in (*self.spectrum, self.basis) if x is not None)

    def enter(self, part: Part) -> Part:
        """Return targets in the coordinates of this operator: the eigenbasis."""
        return part._replace(inside=part.inside.double() @ self.spectrum.train_basis)

    def products(self, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        """Return predictions times held-out targets, and times themselves (., n_targets)."""
        cross = part.seen.new_empty(len(self.settings), len(part.seen))
        squares = torch.empty_like(cross)
        for some in chunks(part.inside, self.n_stored):
            coefficients = self.coefficients(
                self.spectrum.eigenvalues, part.inside[some], self.settings[None]
            )
            predicted = coefficients.to(self.basis.dtype) @ self.basis.T
            cross[:, some] = (predicted @ part.seen[some, :, None])[:, :, 0].T
            squares[:, some] = torch.linalg.vecdot(predicted, predicted).T
        return cross, squares


def chunks(inside: torch.Tensor, n_stored: int) -> Iterator[slice]:
    """Yield as many targets at a time as have room for their coefficients."""
    kind = "cuda" if inside.device.type == "cuda" else "cpu"
    n_bytes = 8 * max(inside.shape[1], 1) * n_stored
    n_at_once = max(1, WORK_BYTES[kind] // n_bytes)
    for start in range(0, len(inside), n_at_once):
        yield slice(start, start + n_at_once)
