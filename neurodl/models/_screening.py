"""The best penalty of each target, screened in low precision and decided in full precision.

Most penalties are far from the best. Half-precision products, several times faster where the
processor has them, tell which could be best; only these are scored in full. How far the rough
scores are off is measured on every score that is computed both ways, and the margin follows it.
"""

from __future__ import annotations

import torch

from neurodl.models._heldout import Composed, Factored, HeldOut, Part, rough_scores, score
from neurodl.runtime import has_fast_half, linear

# A rough score counts as off by up to this many times the largest error seen so far.
SAFETY = 1.5
ROUNDING = 5e-7  # of scores in float32
N_CALIBRATION = 64  # targets that are scored in full at every penalty, to see the first errors
MAX_PENALTIES = 40  # beyond, so many lie close to the best that scoring all at once is faster


def can_screen(n_alphas: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether screening pays: half precision is fast here, and penalties are few."""
    return dtype == torch.float32 and 2 < n_alphas <= MAX_PENALTIES and has_fast_half(device)


class Screen:
    """Mean scores over inner splits, of the penalties that could be the best of each target.

    Parameters
    ----------
    exact_best : bool
        Whether the best score is wanted in full precision even where no other comes near it.
    """

    def __init__(self, exact_best: bool = True) -> None:
        self.exact_best = exact_best
        self.rough: list[HeldOut] = []
        # In full precision one penalty at a time is predicted: by its map, or by its gains.
        self.exact: list[torch.Tensor | Factored] = []
        self.error = 0.0

    def add(self, operator: HeldOut) -> None:
        """Take the operator of one more split, in float32."""
        self.rough.append(operator.rough())
        self.exact.append(operator.maps() if isinstance(operator, Composed) else operator)

    def scores(self, parts: list[Part]) -> torch.Tensor:
        """Return mean scores (n_alphas, n_targets), -inf where a penalty cannot be the best.

        Parameters
        ----------
        parts : list of Part
            The targets in each split, in the coordinates of its operator.
        """
        rough, size = self._rough_scores(parts)
        if self.error == 0.0:
            some = torch.zeros_like(rough, dtype=torch.bool)
            some[:, :N_CALIBRATION] = True
            self._learn(self._exact(some, parts), rough[some], size[some])
        decided = torch.full_like(rough, -torch.inf).where(~rough.isnan(), torch.nan)
        done = torch.zeros_like(rough, dtype=torch.bool)
        while True:
            margin = SAFETY * self.error * size + ROUNDING
            lowest = (rough - margin).nan_to_num(-torch.inf).amax(0)
            open_ones = rough + margin >= lowest
            if not self.exact_best:
                alone = open_ones & (open_ones.sum(0) == 1) & ~done
                decided[alone] = rough[alone]
                open_ones &= ~alone
            open_ones &= ~done
            if not open_ones.any():
                return decided
            exact = self._exact(open_ones, parts)
            self._learn(exact, rough[open_ones], size[open_ones])
            decided[open_ones] = exact
            done |= open_ones

    def _rough_scores(self, parts: list[Part]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean rough scores and the mean of what their errors are in proportion to."""
        pairs = [rough_scores(one, part) for one, part in zip(self.rough, parts, strict=True)]
        scores, sizes = zip(*pairs, strict=True)
        return mean_over_splits(list(scores)), mean_over_splits(list(sizes))

    def _learn(self, exact: torch.Tensor, rough: torch.Tensor, size: torch.Tensor) -> None:
        """Note the largest error, in proportion to `size`."""
        beyond_rounding = ((exact - rough).abs() - ROUNDING).clamp_min(0)
        relative = beyond_rounding / size.clamp_min(ROUNDING)
        self.error = max(self.error, float(relative.nan_to_num(0.0).max()))

    def _exact(self, wanted: torch.Tensor, parts: list[Part]) -> torch.Tensor:
        """Return mean scores in full precision.

        Parameters
        ----------
        wanted : torch.Tensor, shape (n_alphas, n_targets), bool
        parts : list of Part

        Returns
        -------
        torch.Tensor, shape (n_wanted,)
            In the order of ``scores[wanted]``: penalty by penalty.
        """
        penalty, target = wanted.nonzero(as_tuple=True)
        counts = wanted.sum(1).tolist()
        found = []
        for rough, exact, part in zip(self.rough, self.exact, parts, strict=True):
            own = part.some(target)
            if isinstance(exact, Factored):
                inside = own.inside.mul_(exact.gains.index_select(0, penalty))
                cross = torch.linalg.vecdot(inside, own.seen)
                predicted = linear(inside, exact.root.T)
            else:
                predicted = torch.empty_like(own.seen)
                blocks = own.inside.split(counts), predicted.split(counts)
                for one, inside, outside in zip(exact, *blocks, strict=True):
                    torch.mm(inside, one.T, out=outside)
                cross = torch.linalg.vecdot(predicted, own.seen)
            squares = torch.linalg.vecdot(predicted, predicted)
            found.append(score(rough.scoring, own, cross, squares))
        return mean_over_splits(found)


def mean_over_splits(scores: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean over the splits in which a target has a score; NaN where it has none."""
    if len(scores) == 1:
        return scores[0]
    return torch.stack(scores).nanmean(0)
