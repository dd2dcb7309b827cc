"""Features as a model sees them: scaled, delayed within runs and centred within runs, by rows.

Nothing of the size of all delayed features is ever held: rows are made when they are asked for,
and the kernel of delayed features is a sum of shifted kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from neurodl.models._solvers import centre_kernel_runs, gram, moments

ROW_BYTES = 2**22


class Scaling(NamedTuple):
    """What centres and scales the features.

    offset, scale : (n_features,)
    n_floored : how many features hardly vary
    mean_eigenvalue : of the kernel or covariance of the scaled training rows, if not delayed
    """

    offset: torch.Tensor
    scale: torch.Tensor
    n_floored: int
    mean_eigenvalue: float


def fit_scaling(
    features: torch.Tensor, own: torch.Tensor, *, standardize: bool, sd_floor: float
) -> Scaling:
    """Return what centres and scales each feature, from the training rows `own`.

    Features that hardly vary are divided by `sd_floor` times the root mean square of all
    standard deviations.
    """
    offset, sd = moments(features, own)
    scale, n_floored = torch.ones_like(sd), 0
    floor = sd_floor * sd.square().mean().sqrt()
    if standardize and floor > 0:
        n_floored = int((sd < floor).sum())
        scale = sd.clamp_min(floor)
    mean_eigenvalue = float((sd / scale).double().square().sum()) * len(own)
    mean_eigenvalue /= min(len(own), len(sd))
    return Scaling(offset, scale, n_floored, mean_eigenvalue)


class Runs:
    """Which rows follow each other: the runs of a recording.

    Parameters
    ----------
    labels : array-like, shape (n_samples,), or None
        The run of each row; None is a single run.
    n_samples : int
    device : torch.device

    Raises
    ------
    ValueError
        The rows of a run do not stand together.
    """

    def __init__(self, labels: Sequence[object] | None, n_samples: int, device: torch.device):
        names = np.zeros(n_samples, int) if labels is None else np.asarray(labels)
        if len(names) != n_samples:
            raise ValueError(f"`runs` has {len(names)} labels, but there are {n_samples} rows.")
        starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
        if len(np.unique(names)) != len(starts):
            raise ValueError(
                "The rows of each run must stand together and in the order of time, but `runs` "
                f"has {len(np.unique(names))} names in {len(starts)} stretches."
            )
        self.starts = torch.as_tensor(starts, device=device)
        lengths = np.diff(np.r_[starts, n_samples])
        self.lengths = torch.as_tensor(lengths, device=device)
        self.number = torch.repeat_interleave(
            torch.arange(len(starts), device=device), self.lengths
        )
        rows = torch.arange(n_samples, device=device)
        self.since_start = rows - self.starts[self.number]

    def means(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean of the rows of each run, (n_runs, ...)."""
        total = values.new_zeros(len(self.starts), *values.shape[1:])
        total.index_add_(0, self.number, values)
        return total / self.lengths.view(-1, *[1] * (values.ndim - 1))


class Design:
    """The features of all rows, scaled by some of them.

    Parameters
    ----------
    features : torch.Tensor, shape (n_samples, n_given)
    scaling : Scaling
    delays : sequence of int, optional
        How many rows ago; each makes a feature of its own of every feature given. Before the start
        of a run a feature has its mean.
    runs : Runs, optional
        By default one.
    centre_runs : bool
        Whether the mean of each run is subtracted.
    """

    def __init__(
        self,
        features: torch.Tensor,
        scaling: Scaling,
        delays: Sequence[int] | None = None,
        runs: Runs | None = None,
        *,
        centre_runs: bool = False,
    ) -> None:
        self.features, self.scaling = features, scaling
        self.delays = None if delays is None else [int(delay) for delay in delays]
        self.runs = runs or Runs(None, len(features), features.device)
        self.centre_runs = centre_runs
        self.n_samples = len(features)
        self.n_features = features.shape[1] * (1 if self.delays is None else len(self.delays))
        self.device, self.dtype = features.device, features.dtype
        self._run_means = self._means_of_runs() if centre_runs else None

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Return the features of some rows in float64, (n_rows, n_features)."""
        parts = [self._delayed(index, delay) for delay in self.delays or [0]]
        rows = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        if self._run_means is not None:
            rows -= self._run_means[self.runs.number[index]]
        return rows

    def blocks(self, index: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield some of the rows `index` at a time, with their features in float64."""
        for some in index.split(max(16, ROW_BYTES // (8 * self.n_features))):
            yield some, self.rows(some)

    def kernel(self, smallest_alpha: float) -> torch.Tensor:
        """Return the linear kernel of all rows in float64, (n_samples, n_samples); see `gram`."""
        kernel = gram(self.features, self.scaling.offset, self.scaling.scale, smallest_alpha)
        if self.delays is not None:
            kernel = self._shifted(kernel, self.runs)
        return centre_kernel_runs(kernel, self.runs.number) if self.centre_runs else kernel

    def kernel_with(self, other: Design) -> torch.Tensor:
        """Return the kernel of all rows with those of another design (n_samples, n_other)."""
        offset, scale = self.scaling.offset, self.scaling.scale
        kernel = gram(self.features, offset, scale, other=other.features)
        if self.delays is not None:
            kernel = self._shifted(kernel, other.runs)
        if self.centre_runs:
            kernel -= self.runs.means(kernel)[self.runs.number]
            kernel -= other.runs.means(kernel.T)[other.runs.number].T
        return kernel

    def mean(self, own: torch.Tensor) -> torch.Tensor:
        """Return the mean of the rows `own`, (n_features,), float64."""
        total = torch.zeros(self.n_features, dtype=torch.float64, device=self.device)
        for _, rows in self.blocks(own):
            total += rows.sum(0)
        return total / len(own)

    def combine(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the rows, each times its weights, summed (n_features, n_targets)."""
        total = torch.zeros(
            self.n_features, weights.shape[1], dtype=weights.dtype, device=weights.device
        )
        for some, rows in self.blocks(torch.arange(self.n_samples, device=self.device)):
            total.addmm_(rows.to(weights.dtype).T, weights[some])
        return total

    def mean_eigenvalue(self, own: torch.Tensor) -> float:
        """Return the mean nonzero eigenvalue of the training rows `own`, about."""
        copies = self.n_features / self.features.shape[1]
        whole = min(len(own), self.features.shape[1]) / min(len(own), self.n_features)
        return self.scaling.mean_eigenvalue * copies * whole

    def _delayed(self, index: torch.Tensor, delay: int) -> torch.Tensor:
        """Return the scaled features `delay` rows before `index`, 0 before the run's start."""
        source = (index - delay).clamp_min(0)
        values = self.features.index_select(0, source).double()
        values = (values - self.scaling.offset) / self.scaling.scale
        if delay:
            values[self.runs.since_start[index] < delay] = 0.0
        return values

    def _shifted(self, kernel: torch.Tensor, runs: Runs) -> torch.Tensor:
        """Return the sum over delays of a kernel moved along both axes, its columns in `runs`."""
        total = torch.zeros_like(kernel)
        for delay in self.delays or [0]:
            rows = (self.runs.since_start >= delay)[delay:].to(kernel.dtype)
            columns = (runs.since_start >= delay)[delay:].to(kernel.dtype)
            moved = kernel[: len(rows), : len(columns)] * columns * rows[:, None]
            total[delay:, delay:] += moved
        return total

    def _means_of_runs(self) -> torch.Tensor:
        """Return the mean of each feature in each run, (n_runs, n_features)."""
        total = torch.zeros(
            len(self.runs.starts), self.n_features, dtype=torch.float64, device=self.device
        )
        self._run_means = None
        for some, rows in self.blocks(torch.arange(self.n_samples, device=self.device)):
            total.index_add_(0, self.runs.number[some], rows)
        return total / self.runs.lengths[:, None]
