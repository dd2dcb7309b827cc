"""Paired comparison of models on the same test rows: gains, and what they could be by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from neurodl.runtime import derive_seed

ALL = "all"
OVER = ("targets", "stimuli")
LEVELS = (2.5, 97.5)
BOOTSTRAP_LIMIT = 10_000  # targets; beyond, the mean is as good as normally distributed
AT_ONCE = 1000  # targets, for the memory of resampled sums


class Gain(NamedTuple):
    """What models gain over a reference, by region, (n_rois, n_models) each.

    gain : mean difference of r
    low, high : 95 % interval from resampling targets
    share_better : share of the targets that the reference predicts worse
    """

    gain: np.ndarray
    low: np.ndarray
    high: np.ndarray
    share_better: np.ndarray


def roi_masks(rois: np.ndarray | None, n_targets: int) -> dict[str, np.ndarray]:
    """Return which targets (n_targets,) belong to all and to each region."""
    masks = {ALL: np.ones(n_targets, bool)}
    names = [] if rois is None else [name for name in np.unique(rois.astype(str)) if name]
    return masks | {str(name): rois.astype(str) == name for name in names if rois is not None}


def over_targets(
    r: np.ndarray, reference: np.ndarray, masks: Mapping[str, np.ndarray], n: int, seed: int
) -> Gain:
    """Return what models gain, with intervals from resampled targets.

    With more than 10,000 targets the interval is that of a normal distribution, which is the same.

    Parameters
    ----------
    r : numpy.ndarray, shape (n_models, n_targets)
    reference : numpy.ndarray, shape (n_models, n_targets)
        Of the model that each is compared with.
    masks : mapping of region to numpy.ndarray of bool
    n : int
        How often targets are drawn.
    """
    found = np.full((4, len(masks), len(r)), np.nan)
    for row, (name, mask) in enumerate(masks.items()):
        for model, difference in enumerate((r - reference)[:, mask]):
            known = difference[np.isfinite(difference)]
            if not len(known):
                continue  # a model that predicts constants has no correlation
            # The same seed draws the same targets for every model.
            low, high = _interval(known, n, derive_seed(seed, "targets", name))
            found[:, row, model] = known.mean(), low, high, (known > 0).mean()
    return Gain(*found)


def _interval(values: np.ndarray, n: int, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of the mean of values, drawn n times."""
    if len(values) > BOOTSTRAP_LIMIT:
        half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
        return float(values.mean()) - half, float(values.mean()) + half
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(n)]
    low, high = np.percentile(means, LEVELS)
    return float(low), float(high)


def over_stimuli(
    predictions: Sequence[Sequence[np.ndarray]],
    observed: Sequence[np.ndarray],
    units: Sequence[np.ndarray],
    reference: Sequence[int],
    masks: Mapping[str, np.ndarray],
    n: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return low and high (n_rois, n_models) of gains, from resampled stimuli of each test fold.

    Parameters
    ----------
    predictions : sequence by model of sequences by fold of numpy.ndarray, (n_test, n_targets)
    observed : sequence by fold of numpy.ndarray, (n_test, n_targets)
    units : sequence by fold of numpy.ndarray, (n_test,)
        What is drawn as a whole: the stimulus of each row.
    reference : sequence of int
        Which model each is compared with.
    """
    shape = (n, len(masks), len(predictions))
    sums, counted = np.zeros(shape), np.zeros(shape)
    for fold, truth in enumerate(observed):
        counts = _drawn(units[fold], n, derive_seed(seed, "stimuli", fold))
        for start in range(0, truth.shape[1], AT_ONCE):
            columns = slice(start, start + AT_ONCE)
            r = [
                _weighted_r(counts, one[fold][:, columns], truth[:, columns]) for one in predictions
            ]
            for model, of in enumerate(reference):
                # Pairs only: a target that either cannot predict counts for neither.
                difference = r[model] - r[of]
                known = np.isfinite(difference)
                difference = np.where(known, difference, 0)
                for row, mask in enumerate(masks.values()):
                    sums[:, row, model] += difference[:, mask[columns]].sum(1)
                    counted[:, row, model] += known[:, mask[columns]].sum(1)
    with np.errstate(invalid="ignore"):
        low, high = np.percentile(sums / counted, LEVELS, 0)
    return low, high


def _drawn(units: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return how often each row is drawn in each of n samples, (n, n_rows)."""
    names, of = np.unique(units, return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n)
    return np.asarray(counts[:, of], np.float32)


def _weighted_r(
    counts: np.ndarray, predicted: np.ndarray, truth: np.ndarray, device: Any = "cpu"
) -> np.ndarray:
    """Return the correlation of each target over rows that count so often, (n, n_targets).

    Rows in which a target was not recorded count for nothing.
    """
    weights, p, y = (
        torch.as_tensor(one, device=device).float() for one in (counts, predicted, truth)
    )
    known = y.isfinite()
    n_known = known.sum(0).clamp(min=1)
    # About their means, for the precision of sums of squares.
    p, y = (torch.where(known, one, 0) for one in (p, y))
    p, y = (torch.where(known, one - one.sum(0) / n_known, 0) for one in (p, y))
    size = weights @ known.float()
    means = [weights @ one / size for one in (p, y, p * p, y * y, p * y)]
    covariance = means[4] - means[0] * means[1]
    spread = (means[2] - means[0] ** 2) * (means[3] - means[1] ** 2)
    return torch.where(spread > 0, covariance / spread.sqrt(), torch.nan).cpu().numpy()


def resampled_r(
    predicted: Sequence[np.ndarray],
    observed: Sequence[np.ndarray],
    units: Sequence[np.ndarray],
    n: int,
    seed: int,
    device: Any = "cpu",
) -> np.ndarray:
    """Return r (n, n_targets), averaged over folds, of stimuli drawn with replacement.

    Parameters
    ----------
    predicted, observed : sequence by fold of numpy.ndarray, (n_test, n_targets)
    units : sequence by fold of numpy.ndarray, (n_test,)
        What is drawn as a whole.
    """
    total: Any = 0.0
    for fold, (one, truth, own) in enumerate(zip(predicted, observed, units, strict=True)):
        counts = _drawn(own, n, derive_seed(seed, "stimuli", fold))
        total = total + _weighted_r(counts, one, truth, device)
    return np.asarray(total / len(predicted))


def random_swaps(units: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return which rows have the predictions of two models exchanged, (n + 1, n_test).

    A random half of the units each time, but none in the first.
    """
    names, of = np.unique(units, return_inverse=True)
    drawn = np.random.default_rng(seed).integers(0, 2, (n + 1, len(names)))
    drawn[0] = 0
    return np.asarray(drawn[:, of], np.float64)


def swapped_difference(
    one: Sequence[np.ndarray],
    other: Sequence[np.ndarray],
    observed: Sequence[np.ndarray],
    swaps: Sequence[np.ndarray],
    device: Any = "cpu",
) -> np.ndarray:
    """Return differences of r (n + 1, n_targets), averaged over folds, under exchanges.

    Predictions count about their mean and in units of their standard deviation, so that what is
    exchanged is alike if the models are.

    Parameters
    ----------
    one, other, observed : sequence by fold of numpy.ndarray, (n_test, n_targets)
    swaps : sequence by fold of numpy.ndarray, (n + 1, n_test)
    """
    total: Any = 0.0
    for *arrays, swap in zip(one, other, observed, swaps, strict=True):
        a, b, y = (_scaled(torch.as_tensor(array, device=device)) for array in arrays)
        exchanged = torch.as_tensor(swap, device=device).to(a.dtype)
        first = _mixed_r(exchanged, b - a, b * b - a * a, (b - a) * y, a, y)
        second = _mixed_r(exchanged, a - b, a * a - b * b, (a - b) * y, b, y)
        total = total + (first - second)
    return np.asarray((total / len(one)).cpu().numpy())


def _scaled(values: torch.Tensor) -> torch.Tensor:
    """Return columns with mean 0 and variance 1, of float64 where there is; NaN where constant."""
    values = values.float() if values.device.type == "mps" else values.double()
    spread = values.std(0, correction=0)
    return (values - values.mean(0)) / torch.where(spread > 0, spread, torch.nan)


def _mixed_r(
    exchanged: torch.Tensor,
    linear: torch.Tensor,
    square: torch.Tensor,
    product: torch.Tensor,
    own: torch.Tensor,
    y: torch.Tensor,
) -> torch.Tensor:
    """Return r of predictions of which some rows are exchanged.

    Sums over rows are those of `own` and, for the exchanged ones, the difference to the other's.
    """
    n = len(y)
    mean = (own.sum(0) + exchanged @ linear) / n
    variance = ((own**2).sum(0) + exchanged @ square) / n - mean**2
    covariance = ((own * y).sum(0) + exchanged @ product) / n  # y has mean 0, variance 1
    return torch.where(variance > 0, covariance / variance.sqrt(), torch.nan)


def mean_of(values: np.ndarray) -> float:
    """Return the mean of what is known, NaN where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
