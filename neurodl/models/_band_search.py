"""The penalties of each band and target: searched on few directions, scored on all features."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from neurodl.models._band_rows import BandRows, Bands
from neurodl.models._conjugate import references, solve
from neurodl.models._heldout import Part, score
from neurodl.models._reduced import Reduced, reduce_split, search
from neurodl.models._solvers import eigh
from neurodl.models._splits import Splits
from neurodl.models._targets import Block

SPREAD = (0.1, 1.0, 10.0)  # penalties of the directions, as multiples of the best for all bands
LOWEST = math.log(1e-6)  # of the logarithm of a gain: the band is off
HIGHEST = math.log(1e4)
REACH = math.log(300.0)  # how far above the common gain a band may go
N_RANDOM = 16  # random mixtures that are tried as starts
TOLERANCE = 3e-4  # of solutions whose inner score is taken
N_AT_ONCE = 256  # targets whose directions are multiplied together


class Found(NamedTuple):
    """The gains of some targets.

    log_gains : (n_targets, n_bands), float64
    scores : (n_targets,), mean inner scores at them; NaN where there is none
    """

    log_gains: torch.Tensor
    scores: torch.Tensor


class BandSearch:
    """The search for the gains of each band and target in the training rows of a fold.

    Parameters
    ----------
    bands : Bands
    splits : list of (train, test)
        Row numbers among the fold's own rows.
    weights : torch.Tensor, shape (n_bands,), float64
        The mixture of kernels that the search starts from.
    scoring : {"r2", "r"}
    refine : int
        How many times the exact solutions become directions to search along.
    seed : int
    """

    def __init__(
        self,
        bands: Bands,
        splits: Splits,
        weights: torch.Tensor,
        scoring: str,
        refine: int,
        seed: int,
    ) -> None:
        self.bands, self.weights, self.scoring, self.refine = bands, weights, scoring, refine
        device = bands.own.device
        self.splits = [
            tuple(torch.as_tensor(rows, device=device) for rows in pair) for pair in splits
        ]
        mixtures = np.random.default_rng(seed).dirichlet([0.5] * len(weights), N_RANDOM)
        self.random = torch.from_numpy(mixtures).clamp_min(1e-4).to(device)

    def __call__(self, block: Block, alpha: torch.Tensor, common: torch.Tensor) -> Found:
        """Return the best gains of some targets.

        Parameters
        ----------
        block : Block
        alpha : torch.Tensor, shape (n_targets,), float64
            The best penalty of the mixture.
        common : torch.Tensor, shape (n_targets,)
            Its mean inner score.
        """
        start = (self.weights / alpha[:, None]).log()
        top = start.amax(1, keepdim=True)
        highest = torch.maximum((top + REACH).clamp_max(HIGHEST), top)
        bounds = start.amin(1, keepdim=True).clamp_max(LOWEST), highest
        best = Found(start, common.double().nan_to_num(-torch.inf))
        known: list[list[torch.Tensor]] = [[] for _ in self.splits]
        for _ in range(1 + self.refine):
            model = self._reduced(block, alpha, known)
            found = search(model, [best.log_gains, *self._starts(start)], bounds, self.scoring)
            del model
            scores = self._exact(block, found, known)
            better = scores > best.scores
            best = Found(
                torch.where(better[:, None], found, best.log_gains),
                torch.where(better, scores, best.scores),
            )
        return best._replace(scores=torch.where(best.scores.isfinite(), best.scores, torch.nan))

    def _starts(self, start: torch.Tensor) -> list[torch.Tensor]:
        """Return places to start from: bands alone and random mixtures, at two sums of gains.

        The second is for targets of which all bands together predict little.
        """
        total = start.exp().sum(1, keepdim=True)
        alone = torch.eye(start.shape[1], dtype=start.dtype, device=start.device)
        mixtures = [*alone.clamp_min(1e-4), *self.random]
        totals = total, (10 * total).clamp_min(0.1)
        return [(t * one).log().clamp(LOWEST, HIGHEST) for t in totals for one in mixtures]

    def _rows(self, number: int) -> tuple[BandRows, torch.Tensor, torch.Tensor]:
        train, test = self.splits[number]
        own = self.bands.own
        rows = self.bands.rows(
            own[train], own[test], centre_test=self.scoring == "r", compress_test=True
        )
        return rows, train, test

    def _reduced(
        self, block: Block, alpha: torch.Tensor, known: list[list[torch.Tensor]]
    ) -> Reduced:
        """Return the regressions on few directions, from one decomposition of each split."""
        dtype, found = block.values.dtype, []
        for number, extra in enumerate(known):
            rows, train, test = self._rows(number)
            part = rows.part(block, train, test, self.scoring)
            mixture = torch.einsum("b,bij->ij", self.weights, rows.kernels).to(dtype)
            eigenvalues, vectors = eigh(mixture)
            eigenvalues.clamp_min_(0)
            kernels, cross = rows.kernels.to(dtype), rows.cross.to(dtype)
            pieces = []
            for some in torch.arange(len(alpha), device=alpha.device).split(N_AT_ONCE):
                inside = part.inside[some]
                turned, penalty = inside @ vectors, alpha[some, None].to(dtype)
                directions = [
                    (turned / (eigenvalues + share * penalty)) @ vectors.T for share in SPREAD
                ]
                directions += [one[some] for one in extra]
                pieces.append(
                    reduce_split(
                        kernels, cross, inside, part.seen[some], torch.stack(directions, 1)
                    )
                )
            whole = [torch.cat(one) for one in zip(*pieces, strict=True)]
            found.append([*whole, part.total.double(), part.variance.double(), part.scored])
        return Reduced(*(torch.stack(one) for one in zip(*found, strict=True)))

    def _exact(
        self, block: Block, log_gains: torch.Tensor, known: list[list[torch.Tensor]]
    ) -> torch.Tensor:
        """Return mean inner scores on all features, and note the solutions of each split."""
        dtype, found = block.values.dtype, []
        gains = log_gains.exp().to(dtype)
        usable = torch.ones(len(gains), dtype=torch.bool, device=gains.device)
        for number, solutions in enumerate(known):
            rows, train, test = self._rows(number)
            part = rows.part(block, train, test, self.scoring)
            kernels = rows.kernels.to(dtype)
            near = references(kernels, log_gains)
            solution, reached = solve(kernels, part.inside, gains, near, TOLERANCE)
            solutions.append(solution)
            found.append(self._score(rows, part, solution, gains))
            usable &= reached
        mean = torch.stack(found).double().nanmean(0)
        return torch.where(usable & ~mean.isnan(), mean, -torch.inf)

    def _score(
        self, rows: BandRows, part: Part, solution: torch.Tensor, gains: torch.Tensor
    ) -> torch.Tensor:
        predicted = torch.zeros_like(part.seen)
        for other, gain in zip(rows.cross.to(solution.dtype), gains.T, strict=True):
            predicted.addcmul_(solution @ other.T, gain[:, None])
        cross = torch.linalg.vecdot(predicted, part.seen)
        squares = torch.linalg.vecdot(predicted, predicted)
        return score(self.scoring, part, cross, squares)
