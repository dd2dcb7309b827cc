"""The official scores of the Algonauts challenges."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch
import xarray as xr

from neurodl.errors import PairingError, SchemaError, UnknownNameError, did_you_mean
from neurodl.io.timeseries import run_rows
from neurodl.metrics import pearson_r
from neurodl.schema import sample_dim, sample_ids, target_dim

SMALLEST_CEILING = 1e-14  # in place of 0, as the challenge of 2023 has it
TRIMMED = 5  # samples at each end of a movie that do not count in 2025


def challenge_score(
    name: str,
    predictions: xr.DataArray,
    responses: xr.DataArray,
    ceiling: xr.DataArray | None = None,
) -> xr.DataArray:
    """Return the score of each target as a challenge computes it.

    Parameters
    ----------
    name : {"algonauts2021", "algonauts2023", "algonauts2025"}
        2021: r over the root of the split-half reliability, which is the mean over all halvings of
        the repeats, each stepped up by Spearman-Brown. 2023: r squared in percent of the ceiling,
        with r below 0 taken as 0 and the result at most 100. 2025: r over the samples of
        all movies together, without the first and last five of each.
    predictions : xarray.DataArray
        Dims ``(stimulus, target)`` or, for 2025, ``(time, target)``.
    responses : xarray.DataArray
        Measured. For 2021 with dims ``(stimulus, repeat, target)``; for 2025 with the coord run.
    ceiling : xarray.DataArray, optional
        For 2023: the reliability (in variance) of each target.

    Returns
    -------
    xarray.DataArray, dims (target,)
        The attr ``total`` is the mean (2021, 2025) or the median (2023) of all targets that have a
        score; ``n_excluded`` are those that have none.

    Raises
    ------
    UnknownNameError
        There is no such challenge.
    PairingError, SchemaError
        Stimuli or targets do not agree; or what the score needs is missing.

    References
    ----------
    Cichy et al. (2021), arXiv:2104.13714; Gifford et al. (2023), arXiv:2301.03198; Gifford et al.
    (2025), arXiv:2501.00504.
    """
    if name not in SCORES:
        raise UnknownNameError(f"There is no challenge {name!r}. {did_you_mean(name, SCORES)}")
    target = target_dim(responses)
    if target_dim(predictions) != target or predictions.sizes[target] != responses.sizes[target]:
        raise PairingError(
            f"Predictions have the sizes {dict(predictions.sizes)}, responses "
            f"{dict(responses.sizes)}; their targets must be the same."
        )
    values, total = SCORES[name](_in_order(predictions, responses), responses, ceiling)
    coords = {key: one for key, one in responses.coords.items() if one.dims == (target,)}
    attrs = {
        "challenge": name,
        "total": total,
        "n_excluded": int(np.isnan(values).sum()),
    }
    return xr.DataArray(values.astype(np.float32), dims=(target,), coords=coords, attrs=attrs)


def _in_order(predictions: xr.DataArray, responses: xr.DataArray) -> np.ndarray:
    """Return the predictions in the order of the responses, by stimulus or by run and time."""
    samples = sample_dim(responses)
    if sample_dim(predictions) != samples:
        raise PairingError(f"Predictions are by {sample_dim(predictions)}, responses by {samples}.")
    if samples == "time":
        same = predictions.sizes["time"] == responses.sizes["time"] and all(
            key in predictions.coords
            and np.array_equal(predictions[key].values, responses[key].values)
            for key in ("time", "run")
            if key in responses.coords
        )
        if not same:
            raise PairingError("Predictions and responses have other times or runs.")
        return predictions.values
    rows = sample_ids(predictions).get_indexer(sample_ids(responses))
    if (rows < 0).any():
        missing = sample_ids(responses)[rows < 0]
        raise PairingError(f"{len(missing)} responses have no prediction, first {missing[0]!r}.")
    return predictions.values[rows]


def _r(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the correlation of each column, NaN where one is constant."""
    pair = (torch.as_tensor(np.asarray(one, dtype=np.float64)) for one in (first, second))
    return np.asarray(pearson_r(*pair))


def split_half_reliability(repeats: np.ndarray) -> np.ndarray:
    """Return the reliability of means over repeats: over all halvings, each stepped up.

    Parameters
    ----------
    repeats : numpy.ndarray, shape (n_stimuli, n_repeats, n_targets)
        With an even number of repeats.

    Returns
    -------
    numpy.ndarray, shape (n_targets,)
    """
    n_repeats = repeats.shape[1]
    halves = [half for half in combinations(range(n_repeats), n_repeats // 2) if 0 in half]
    total = np.zeros(repeats.shape[2])
    for half in halves:
        rest = [one for one in range(n_repeats) if one not in half]
        r = _r(repeats[:, list(half)].mean(1), repeats[:, rest].mean(1))
        total += 2 * r / (1 + r)
    return total / len(halves)


def _score2021(
    predictions: np.ndarray, responses: xr.DataArray, _ceiling: xr.DataArray | None
) -> tuple[np.ndarray, float]:
    if "repeat" not in responses.dims or responses.sizes["repeat"] % 2:
        raise SchemaError(
            "The score of 2021 needs responses with dims (stimulus, repeat, target) and an even "
            f"number of repeats, but got {dict(responses.sizes)}."
        )
    reliability = split_half_reliability(responses.values)
    r = _r(predictions, responses.values.mean(1))
    usable = reliability > 0
    score = np.where(usable, r / np.sqrt(np.where(usable, reliability, 1)), np.nan)
    return score, float(np.nanmean(score))


def _score2023(
    predictions: np.ndarray, responses: xr.DataArray, ceiling: xr.DataArray | None
) -> tuple[np.ndarray, float]:
    if ceiling is None or ceiling.shape != (responses.sizes[target_dim(responses)],):
        raise SchemaError("The score of 2023 needs `ceiling`: a reliability for each target.")
    r = np.maximum(_r(predictions, responses.values), 0)
    reliability = np.where(ceiling.values == 0, SMALLEST_CEILING, ceiling.values)
    score = np.minimum(r**2 / reliability * 100, 100)
    return score, float(np.nanmedian(score))


def _score2025(
    predictions: np.ndarray, responses: xr.DataArray, _ceiling: xr.DataArray | None
) -> tuple[np.ndarray, float]:
    if "time" not in responses.dims or "run" not in responses.coords:
        raise SchemaError("The score of 2025 needs responses over time with the coord run.")
    rows = [run[TRIMMED:-TRIMMED] for run in run_rows(responses).values()]
    kept = np.concatenate(rows)
    if len(kept) < 2:
        raise SchemaError(f"The runs have too few samples to leave out {TRIMMED} at each end.")
    score = _r(predictions[kept], responses.values[kept])
    return score, float(np.nanmean(score))


Score = Callable[[np.ndarray, xr.DataArray, xr.DataArray | None], tuple[np.ndarray, float]]
SCORES: dict[str, Score] = {
    "algonauts2021": _score2021,
    "algonauts2023": _score2023,
    "algonauts2025": _score2025,
}
