"""Scores of single trials: how well predictions match spikes that are noisy by nature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from neurodl.errors import PairingError, SchemaError, listed
from neurodl.metrics import bits_per_spike, poisson_deviance, pseudo_r2
from neurodl.responses import stack_repeats
from neurodl.schema import check_responses, target_coords, target_dim
from neurodl.scores._fits import RATE_FLOOR


def trial_scores(predicted: xr.DataArray | xr.Dataset, responses: xr.DataArray) -> xr.Dataset:
    """Return how well predictions of stimuli match single trials and their averages.

    Parameters
    ----------
    predicted : xarray.DataArray or xarray.Dataset
        Dims ``([layer,] stimulus | presentation, target)``, or scores of ``cross_validate(...,
        keep_predictions=True)``: predictions by a model that has not seen these stimuli.
        Presentations of one stimulus have one prediction.
    responses : xarray.DataArray
        Dims ``(stimulus, repeat, target)``, padded with NaN, or ``(presentation, target)``: single
        trials of the same stimuli, paired by id. Stimuli without a prediction are left out.

    Returns
    -------
    xarray.Dataset
        Dims ``([layer,] target)``, with p the prediction of a stimulus, y a trial, m the mean of
        the trials of a stimulus, and s2 the variance between these (n - 1):

        r_single : correlation of p and y over all trials.
        r_mean : correlation of p and m over stimuli.
        feve : 1 - (mean (y - p)^2 - noise) / (variance of y - noise), noise the mean of s2 over
        trials: the fraction of the explainable variance that is explained [1]_.
        cc_norm : covariance of p and m over the root of (variance of p x signal power), signal
        power the variance of m less the mean of s2 / n: r_mean in units of what is possible [2]_.
        deviance, pseudo_r2, bits_per_spike : of trials, against their own mean; NaN for responses
        below 0. See `neurodl.metrics`. Predictions below a hundredth of the mean are raised to it.
        oracle : correlation of each trial with the mean of the other trials of its stimulus
        [3]_: no model, what r_single could be compared with.

        feve, cc_norm and oracle are over stimuli with at least 2 trials. Of a model that knows
        the true rates, feve and cc_norm are 1 but for their error, and r_single is above oracle.

    Raises
    ------
    PairingError
        Predictions and trials have no stimuli in common, or their targets other names.
    SchemaError
        Dims are others, targets differ, or presentations of a stimulus have several predictions.

    References
    ----------
    .. [1] Cadena et al. (2019), Deep convolutional models improve predictions of macaque V1
       responses to natural images, PLoS Computational Biology 15.
    .. [2] Schoppe et al. (2016), Measuring the performance of neural models, Frontiers in
       Computational Neuroscience 10.
    .. [3] Walker et al. (2019), Inception loops discover what excites neurons most using deep
       predictive models, Nature Neuroscience 22.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> ids = [f"image{i}" for i in range(500)]
    >>> rate = xr.DataArray(rng.gamma(2, 1, (500, 1)).astype("float32"),
    ...                     dims=("stimulus", "unit"), coords={"stimulus": ids})
    >>> trials = xr.DataArray(
    ...     rng.poisson(rate.values[:, None], (500, 10, 1)).astype("float32"),
    ...     dims=("stimulus", "repeat", "unit"), coords={"stimulus": ids},
    ...     attrs={"units": "spikes"})
    >>> found = trial_scores(rate, trials)
    >>> round(float(found["feve"][0]), 1), round(float(found["cc_norm"][0]), 1)
    (1.0, 1.0)
    """
    if isinstance(predicted, xr.Dataset):
        if "predicted" not in predicted:
            raise SchemaError(
                "The scores have no predictions: cross_validate(..., keep_predictions=True)."
            )
        predicted = predicted["predicted"]
    by_stimulus, ids = _predictions(predicted)
    trials = _trials(responses)
    target = target_dim(trials)
    if trials.sizes[target] != by_stimulus.shape[2] or target not in predicted.dims:
        raise SchemaError(
            f"There are predictions of {predicted.sizes.get(target, 'no')} {target}s, but trials "
            f"of {trials.sizes[target]}."
        )
    if target in predicted.coords and target in trials.coords:
        apart = predicted[target].values.astype(str) != trials[target].values.astype(str)
        if apart.any():
            raise PairingError(
                f"Predictions and trials name {int(apart.sum())} {target}s differently, first "
                f"{str(predicted[target].values[apart][0])!r} and "
                f"{str(trials[target].values[apart][0])!r}: "
                f"select the same {target}s in the same order."
            )
    rows = ids.get_indexer(trials["stimulus"].values)
    if (rows < 0).all():
        raise PairingError(
            f"No stimulus has both a prediction ({listed(ids, 3)}) and trials "
            f"({listed(trials['stimulus'].values, 3)})."
        )
    y = trials.values[rows >= 0].astype(np.float64)
    found = [_scores(p[rows[rows >= 0]].astype(np.float64), y) for p in by_stimulus]
    layered = "layer" in predicted.dims
    dims: tuple[str, ...] = ("layer", target) if layered else (target,)
    stacked = {name: np.stack([one[name] for one in found]) for name in found[0]}
    values = stacked if layered else {name: one[0] for name, one in stacked.items()}
    coords: dict[str, Any] = dict(target_coords(trials))
    if layered and "layer" in predicted.coords:
        coords["layer"] = predicted["layer"].values
    return xr.Dataset(
        {name: (dims, one.astype(np.float32)) for name, one in values.items()},
        coords,
        attrs={"n_stimuli": int((rows >= 0).sum()), "n_trials": int(np.isfinite(y).any(2).sum())},
    )


def _predictions(predicted: xr.DataArray) -> tuple[np.ndarray, pd.Index]:
    """Return predictions (n_layers, n_stimuli, n_targets), and the ids of the stimuli."""
    target = target_dim(predicted)
    samples = next((dim for dim in ("stimulus", "presentation") if dim in predicted.dims), None)
    if samples is None or set(predicted.dims) - {"layer", samples, target}:
        raise SchemaError(
            f"Predictions must have dims ([layer,] stimulus, target), but have {predicted.dims}."
        )
    order = [dim for dim in ("layer", samples, target) if dim in predicted.dims]
    values = predicted.transpose(*order).values
    values = values if "layer" in predicted.dims else values[None]
    ids = pd.Index(predicted["stimulus"].values.astype(str))
    tested = np.isfinite(values).any((0, 2))
    values, ids = values[:, tested], ids[tested]
    codes, unique = pd.factorize(ids)
    first = np.unique(codes, return_index=True)[1]
    if len(unique) < len(ids):
        spread = np.nanmax(np.abs(values - values[:, first][:, codes]), initial=0)
        if spread > 1e-4 * np.nanmax(np.abs(values)):
            raise SchemaError(
                "Presentations of one stimulus have different predictions, so that they are not of "
                "the stimulus alone, or stood on both sides of folds: use groups='stimulus'."
            )
    return values[:, first], pd.Index(unique)


def _trials(responses: xr.DataArray) -> xr.DataArray:
    """Return trials (stimulus, repeat, target)."""
    check_responses(responses)
    stacked = responses if "repeat" in responses.dims else stack_repeats(responses)
    if stacked.ndim != 3 or "repeat" not in stacked.dims:
        raise SchemaError(
            "trial_scores needs single trials, dims (stimulus, repeat, target) or (presentation, "
            f"target), but got {tuple(responses.dims)}."
        )
    return stacked


def _scores(p: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Return scores (n_targets,).

    p : (n_stimuli, n_targets), predictions; y : (n_stimuli, n_repeats, n_targets), trials
    """
    known = np.isfinite(y) & np.isfinite(p)[:, None]
    n = known.sum(1)
    filled = np.where(known, y, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(1) / n
        s2 = (np.where(known, y - mean[:, None], 0) ** 2).sum(1) / (n - 1)
        repeated = n >= 2
        weight = np.where(repeated, n, 0)
        each = np.broadcast_to(p[:, None], y.shape)
        of_repeated = known & repeated[:, None]
        noise = np.where(repeated, s2 * n, 0).sum(0) / weight.sum(0)
        missed = _Moments(np.square(y - each), of_repeated).mean
        variance = _Moments(y, of_repeated).variance
        noise_of_mean = np.where(repeated, s2 / n, 0).sum(0) / repeated.sum(0)
        power = _Moments(mean, repeated).variance - noise_of_mean
        others = (filled.sum(1)[:, None] - filled) / (n - 1)[:, None]
        spread = np.sqrt(_Moments(p, repeated).variance * np.where(power > 0, power, np.nan))
        found = {
            "r_single": _r(each, y, known),
            "r_mean": _r(p, mean, n > 0),
            "feve": 1 - (missed - noise) / (variance - noise),
            "cc_norm": _covariance(p, mean, repeated) / spread,
            "oracle": _r(others, y, of_repeated),
        }
    return found | _of_counts(each, y, known)


def _of_counts(p: np.ndarray, y: np.ndarray, known: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores of counts, NaN where a target has values below 0."""
    n_targets = y.shape[2]
    found = {
        name: np.full(n_targets, np.nan) for name in ("deviance", "pseudo_r2", "bits_per_spike")
    }
    for target in range(n_targets):
        rows = known[..., target]
        counts = torch.from_numpy(y[..., target][rows])[:, None]
        if not len(counts) or counts.min() < 0:
            continue
        rate = torch.from_numpy(p[..., target][rows])[:, None]
        rate = torch.maximum(rate, RATE_FLOOR * counts.mean())
        found["deviance"][target] = float(poisson_deviance(rate, counts)[0])
        found["pseudo_r2"][target] = float(pseudo_r2(rate, counts)[0])
        found["bits_per_spike"][target] = float(bits_per_spike(rate, counts)[0])
    return found


class _Moments:
    """Mean and variance (n - 1) of each target over the known values."""

    def __init__(self, values: np.ndarray, known: np.ndarray) -> None:
        axes = tuple(range(values.ndim - 1))
        self.n = known.sum(axes)
        self.mean = np.where(known, values, 0).sum(axes) / self.n
        self.centred = np.where(known, values - self.mean, 0)
        self.variance = (self.centred**2).sum(axes) / (self.n - 1)


def _covariance(one: np.ndarray, other: np.ndarray, known: np.ndarray) -> np.ndarray:
    left, right = _Moments(one, known), _Moments(other, known)
    axes = tuple(range(one.ndim - 1))
    return (left.centred * right.centred).sum(axes) / (left.n - 1)


def _r(one: np.ndarray, other: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the correlation of each target over the known values; NaN if either is constant."""
    scale = np.sqrt(_Moments(one, known).variance * _Moments(other, known).variance)
    return _covariance(one, other, known) / np.where(scale > 0, scale, np.nan)
