"""One response per trial from a BOLD time series: least squares, separate or all."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.errors import NeurodlWarning, SchemaError, UnknownNameError, listed
from neurodl.io.events import check_events, event_ids, scan_times
from neurodl.io.timeseries import constant, run_rows
from neurodl.schema import check_responses, target_dim

METHODS = ("lss", "lsa")
HRFS = ("glover", "spm")
DRIFTS = ("cosine", "polynomial", None)
NOISE_MODELS = ("ols", "ar1")


def single_trial_betas(
    responses: xr.DataArray,
    events: pd.DataFrame,
    *,
    method: str = "lss",
    hrf: str = "glover",
    drift: str | None = "cosine",
    high_pass: float = 0.01,
    drift_order: int = 1,
    noise_model: str = "ols",
    percent: bool = False,
    slice_time_ref: float | None = None,
    confounds: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Estimate the response to each event of each run.

    Parameters
    ----------
    responses : xarray.DataArray
        BOLD, dims ``(time, target)``, attr tr [s]; coord run where there are several.
    events : pandas.DataFrame
        Columns onset [s], duration [s], run, and what was shown: stimulus, else stim_file, else
        trial_type.
    method : {"lss", "lsa"}
        Least squares separate: one model per trial, with a regressor for the trial and one for all
        others together [1]_. Least squares all: one model per run with a regressor per trial.
    hrf : {"glover", "spm"}
        Haemodynamic response function.
    drift : {"cosine", "polynomial"} or None
        Model of slow drifts; cosines up to `high_pass` [Hz], or a polynomial of `drift_order`.
    noise_model : {"ols", "ar1"}
        Ordinary least squares, or nilearn's autoregressive model.
    percent : bool
        Express each run in per cent of the target's mean first, so that runs are comparable.
    slice_time_ref : float, optional
        When within a TR the volumes stand for, from 0 (its start) to 1: 0.5 after fMRIPrep's
        slice timing correction. By default the attr slice_time_ref of the responses, else 0.
    confounds : mapping of str to array, optional
        By run, further regressors of shape (n_times, n_confounds).

    Returns
    -------
    xarray.DataArray
        float32, dims ``(presentation, target)``, run by run in the order of the events. Coords
        stimulus, onset [s], run and session where the responses have them, and those of the
        target. Targets with missing values, or constant in a run, are NaN there and counted in a
        `NeurodlWarning`.

    Raises
    ------
    SchemaError, PairingError
        Events lack columns, have impossible times or lie outside the scan; the message names them.

    References
    ----------
    .. [1] Mumford, J. A., Turner, B. O., Ashby, F. G. & Poldrack, R. A. (2012). Deconvolving BOLD
       activation in event-related designs for multivoxel pattern classification analyses.
       NeuroImage 59, 2636-2643.
    """
    choices = {"method": (method, METHODS), "hrf": (hrf, HRFS), "drift": (drift, DRIFTS)}
    choices["noise_model"] = (noise_model, NOISE_MODELS)
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise UnknownNameError(f"`{name}` must be one of {allowed}, but got {value!r}.")
    check_responses(responses)
    table = check_events(events, responses)
    table["stimulus"] = event_ids(table)
    if slice_time_ref is None:
        slice_time_ref = float(responses.attrs.get("slice_time_ref", 0.0))
    fit = _separate if method == "lss" else _all_at_once
    betas, trials, excluded = [], [], np.zeros(responses.shape[1], bool)
    for run, rows in run_rows(responses).items():
        mine = table[table["run"] == run]
        if mine.empty:
            continue
        grid, position = scan_times(responses, rows)
        grid = grid + slice_time_ref * responses.attrs["tr"]
        trial, nuisance = _design(mine, grid, hrf, drift, high_pass, drift_order)
        trial, nuisance = trial[position], nuisance[position]
        if confounds is not None:
            nuisance = np.hstack([np.asarray(confounds[run], float), nuisance])
        _check_estimable(trial, nuisance, mine, method)
        values, usable = _usable(responses.values[rows].astype(np.float64), percent)
        estimate = np.full((len(mine), len(usable)), np.nan, np.float32)
        estimate[:, usable] = fit(trial, nuisance, values[:, usable], noise_model)
        excluded |= ~usable
        betas.append(estimate)
        trials.append(mine.assign(row=rows[0]))
    if excluded.any():
        warnings.warn(
            f"{excluded.sum()} of {len(excluded)} {target_dim(responses)}s have missing values or "
            "do not vary in some run; their betas there are NaN.",
            NeurodlWarning,
            stacklevel=2,
        )
    labelled = _labelled(np.concatenate(betas), pd.concat(trials), responses)
    units = "% signal change" if percent else responses.attrs["units"]
    slow = f"cosine drift below {high_pass:g} Hz" if drift == "cosine" else f"{drift} drift"
    labelled.attrs |= {
        "units": f"beta ({units})",
        "glm": ", ".join([method, hrf, slow, noise_model]),
    }
    return check_responses(labelled)


def _usable(values: np.ndarray, percent: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the values, in per cent of each mean if asked, and which targets can be fitted."""
    usable = np.isfinite(values).all(0) & ~constant(values)
    if not percent:
        return values, usable
    mean, spread = values[:, usable].mean(0), values[:, usable].std(0)
    if usable.any() and np.median(mean) < np.median(spread):
        raise SchemaError(
            "percent=True needs BOLD with its mean, but most targets have a mean around 0. Read "
            "the runs without detrend and zscore."
        )
    usable[usable] = mean > 0
    return 100 * (values / np.where(usable, values.mean(0), 1) - 1), usable


def _design(
    events: pd.DataFrame,
    times: np.ndarray,
    hrf: str,
    drift: str | None,
    high_pass: float,
    drift_order: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return one regressor per trial, (n_times, n_trials), and those of drift and constant."""
    from nilearn.glm.first_level import compute_regressor, make_first_level_design_matrix

    one = np.ones(1)
    trials = [
        compute_regressor((onset * one, duration * one, one), hrf, times)[0]
        for onset, duration in zip(events["onset"], events["duration"], strict=True)
    ]
    nuisance = make_first_level_design_matrix(
        times, drift_model=drift, high_pass=high_pass, drift_order=drift_order
    )
    return np.hstack(trials), nuisance.to_numpy()


def _check_estimable(
    trial: np.ndarray, nuisance: np.ndarray, events: pd.DataFrame, method: str
) -> None:
    """Refuse trials whose response cannot be told: unrecorded, simultaneous, or too many."""
    peak = np.abs(trial).max(0)
    unseen = peak < 0.01 * np.median(peak)
    run = f" of run {events['run'].iloc[0]!r}" if events["run"].iloc[0] else ""
    if unseen.any():
        onsets = events["onset"][unseen]
        raise SchemaError(
            f"{unseen.sum()} events{run} start so late that no response to them was recorded: "
            f"onset {listed(onsets)} s. Leave them out of `events`."
        )
    shape = trial / np.linalg.norm(trial, axis=0)
    twins = np.triu(shape.T @ shape, 1).max(0) > 1 - 1e-9
    if twins.any():
        raise SchemaError(
            f"{twins.sum()} events{run} happen at the same time as another one (onset "
            f"{listed(events['onset'][twins])} s), so their responses cannot be told apart."
        )
    model = np.hstack([trial, nuisance]) if method == "lsa" else nuisance
    n_regressors = model.shape[1] + (2 if method == "lss" else 0)
    if n_regressors >= len(trial) or np.linalg.matrix_rank(model) < model.shape[1]:
        raise SchemaError(
            f"method={method!r} has {n_regressors} regressors for the {len(trial)} volumes{run}, "
            "which do not suffice, or do not tell them apart. Use method='lss', or a slower drift."
        )


def _all_at_once(
    trial: np.ndarray, nuisance: np.ndarray, values: np.ndarray, noise_model: str
) -> np.ndarray:
    """Return the betas of all trials in one model, shape (n_trials, n_targets)."""
    from nilearn.glm.first_level import run_glm

    labels, results = run_glm(values, np.hstack([trial, nuisance]), noise_model)
    betas = np.empty((trial.shape[1], values.shape[1]))
    for label, result in results.items():
        betas[:, labels == label] = result.theta[: trial.shape[1]]
    return betas


def _separate(
    trial: np.ndarray, nuisance: np.ndarray, values: np.ndarray, noise_model: str
) -> np.ndarray:
    """Return each trial's beta in a model of this trial and the sum of all others.

    By ordinary least squares, with the nuisance projected out once, each model is a system of two
    equations: all trials together cost as much as one fit.
    """
    others = trial.sum(1, keepdims=True) - trial
    if noise_model != "ols":
        pairs = [np.stack(pair, 1) for pair in zip(trial.T, others.T, strict=True)]
        fits = [_all_at_once(pair, nuisance, values, noise_model)[0] for pair in pairs]
        return np.stack(fits)
    basis = np.linalg.qr(nuisance)[0]
    trial, others, values = (each - basis @ (basis.T @ each) for each in (trial, others, values))
    own, cross, rest = (
        np.einsum("ti,ti->i", *pair)[:, None]
        for pair in ((trial, trial), (trial, others), (others, others))
    )
    alone = rest <= 1e-10 * own
    determinant = np.where(alone, own, own * rest - cross**2)
    scale, share = np.where(alone, 1.0, rest), np.where(alone, 0.0, cross)
    betas = (scale * (trial.T @ values) - share * (others.T @ values)) / determinant
    return np.asarray(betas)


def _labelled(betas: np.ndarray, trials: pd.DataFrame, responses: xr.DataArray) -> xr.DataArray:
    """Return the betas with the names of their trials and targets."""
    target = target_dim(responses)
    coords: dict[str, Any] = {
        str(name): array for name, array in responses.coords.items() if array.dims == (target,)
    }
    for name in ("stimulus", "trial_type"):
        if name in trials:
            coords[name] = ("presentation", trials[name].astype(str).to_numpy(str))
    coords["onset"] = ("presentation", trials["onset"].to_numpy())
    for name in ("run", "session"):
        if name in responses.coords:
            coords[name] = ("presentation", responses[name].values[trials["row"]].astype(str))
    attrs = {
        name: value
        for name, value in responses.attrs.items()
        if name not in ("n_constant", "n_missing", "slice_time_ref")
    }
    return xr.DataArray(betas, dims=("presentation", target), coords=coords, attrs=attrs)
