"""The best penalty of each target, screened in low precision and decided in full precision.

Most penalties are far from the best. Half-precision products, several times faster where the
processor has them, tell which could be best; only these are scored in full. How far the rough
scores are off is measured on every score that is computed both ways, and the margin follows it.
"""

from __future__ import annotations

import torch

from neurodl.models._solvers import HeldOut

# A rough score counts as off by up to this many times the largest error seen so far.
SAFETY = 1.5
N_AT_ONCE = 1024  # targets whose basis predictions fit into the processor's cache
N_CALIBRATION = 128  # targets that are scored in full at every penalty, to see the first errors
MAX_PENALTIES = 40  # beyond, so many lie close to the best that scoring all at once is faster
MAX_BYTES = 2**27


def can_screen(operators: list[HeldOut]) -> bool:
    """Return whether screening pays: half precision is fast here, and penalties are few."""
    first = operators[0]
    if first.basis.dtype != torch.float32 or any(one.project is not None for one in operators):
        return False
    n_alphas, rank = first.mixing.shape
    n_bytes = sum(one.n_bytes for one in operators) * n_alphas / rank
    return n_alphas <= MAX_PENALTIES and n_bytes <= MAX_BYTES and has_fast_half(first.basis.device)


def has_fast_half(device: torch.device) -> bool:
    """Return whether products of bfloat16 are computed by the hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    return any(
        getattr(torch.cpu, name, bool)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


class Screen:
    """Mean scores over inner splits, of the penalties that could be the best of each target.

    Parameters
    ----------
    operators : list of HeldOut
        One for each split, in float32 and without `project`.
    """

    def __init__(self, operators: list[HeldOut]) -> None:
        self.rough = [one.rough() for one in operators]
        self.maps = [one.maps() for one in operators]
        self.error = 0.0

    def scores(
        self, parts: list[tuple[torch.Tensor, torch.Tensor]], floor: torch.Tensor
    ) -> torch.Tensor:
        """Return mean scores (n_alphas, n_targets), -inf where a penalty cannot be the best.

        Parameters
        ----------
        parts : list of (train, test)
            For each split the targets of its training and test rows; see `HeldOut.scores`.
        floor : torch.Tensor, shape (n_targets,)
        """
        rough, size = self._rough_scores(parts, floor)
        if self.error == 0.0:
            some = torch.arange(min(N_CALIBRATION, len(floor)), device=floor.device)
            for alpha in range(len(rough)):
                exact = self._exact(alpha, some, parts, floor)
                self._learn(exact, rough[alpha, some], size[alpha, some])
        decided = torch.full_like(rough, -torch.inf).where(~rough.isnan(), torch.nan)
        done = torch.zeros_like(rough, dtype=torch.bool)
        while True:
            margin = SAFETY * self.error * size
            lowest = (rough - margin).nan_to_num(-torch.inf).amax(0)
            open_ones = (rough + margin >= lowest) & ~done
            if not open_ones.any():
                return decided
            for alpha in open_ones.any(1).nonzero()[:, 0].tolist():
                targets = open_ones[alpha].nonzero()[:, 0]
                exact = self._exact(alpha, targets, parts, floor)
                self._learn(exact, rough[alpha, targets], size[alpha, targets])
                decided[alpha, targets] = exact
            done |= open_ones

    def _rough_scores(
        self, parts: list[tuple[torch.Tensor, torch.Tensor]], floor: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean rough scores and the mean of what their errors are in proportion to."""
        found = []
        for start in range(0, len(floor), N_AT_ONCE):
            some = slice(start, start + N_AT_ONCE)
            pairs = [
                one.rough_scores(train[some], test[some], floor[some])
                for one, (train, test) in zip(self.rough, parts, strict=True)
            ]
            scores, sizes = zip(*pairs, strict=True)
            found.append((mean_over_splits(list(scores)), mean_over_splits(list(sizes))))
        scores, sizes = zip(*found, strict=True)
        return torch.cat(scores, 1), torch.cat(sizes, 1)

    def _learn(self, exact: torch.Tensor, rough: torch.Tensor, size: torch.Tensor) -> None:
        """Note the largest error, in proportion to `size`."""
        relative = (exact - rough).abs() / size.clamp_min(1e-6)
        self.error = max(self.error, float(relative.nan_to_num(0.0).max()))

    def _exact(
        self,
        alpha: int,
        targets: torch.Tensor,
        parts: list[tuple[torch.Tensor, torch.Tensor]],
        floor: torch.Tensor,
    ) -> torch.Tensor:
        """Return the mean score of some targets at one penalty in full precision."""
        found = []
        for operator, maps, (train, test) in zip(self.rough, self.maps, parts, strict=True):
            inside, outside = train.index_select(0, targets), test.index_select(0, targets)
            predicted = inside @ maps[alpha]
            found.append(operator.scores_of(predicted, inside, outside, floor[targets]))
        return mean_over_splits(found)


def mean_over_splits(scores: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean over the splits in which a target has a score; NaN where it has none."""
    if len(scores) == 1:
        return scores[0]
    return torch.stack(scores).nanmean(0)
