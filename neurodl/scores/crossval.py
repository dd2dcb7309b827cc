"""cross_validate: one verb for every encoding model, from features and responses to scores."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr

from neurodl import __version__
from neurodl.errors import SchemaError, UnknownNameError, did_you_mean
from neurodl.features.cache import cache_folder
from neurodl.features.extract import cache_path
from neurodl.responses import average_repeats
from neurodl.runtime import describe_device, progress_bar, resolve_devices
from neurodl.schema import (
    check_features,
    check_responses,
    check_scores,
    sample_dim,
    sample_ids,
    target_coords,
    target_dim,
)
from neurodl.scores._audit_case import Case
from neurodl.scores._fits import OF_COUNTS, Fits, History, Rows
from neurodl.scores._kept import Kept
from neurodl.scores.auditing import audited
from neurodl.scores.ceiling import (
    MIN_RELIABILITY,
    checked_ceiling,
    noise_ceiling,
    normalize_score,
)
from neurodl.scores.pairing import (
    check_kernel_model,
    last_step,
    n_features,
    paired,
    side_by_side,
    stimulus_rows,
    takes_bands,
    takes_stimuli,
)
from neurodl.scores.splits import default_groups, make_splits
from neurodl.stimuli import Stimuli

logger = logging.getLogger(__name__)
ALL_LAYERS = "all"
MOST_KEPT = 64 * 2**20  # bytes of predictions that are kept unasked
NEVER, SEVERAL = -1, -2  # in place of the fold that tests a row
LAYER_COORDS = ("backbone", "weights", "weights_sha256", "licence", "transform", "pool", "reduce")
# What histories call it, and scores.
TRAINING = {"loss": "training_loss", "val_loss": "validation_loss", "val_r": "validation_r"}
KEPT_ATTRS = ("units", "subject", "space", "affine", "shape", "tr", "bin_width")


def cross_validate(
    model: Any,
    X: xr.DataArray | Mapping[str, xr.DataArray] | Stimuli,
    responses: xr.DataArray,
    *,
    cv: Any = 5,
    groups: Any = None,
    seed: int = 0,
    ceiling: xr.DataArray | None = None,
    unpaired: str = "error",
    allow: Sequence[str] = (),
    metrics: Sequence[str] = (),
    keep_predictions: bool | Literal["auto"] = False,
    cache: str | Path | bool = False,
) -> xr.Dataset:
    """Return how well `model` predicts held-out responses from each layer's features.

    A fresh copy of the model is fitted on the training rows of each fold and layer; the test
    rows touch nothing that is fitted. Features and responses are paired by id. Repeats are
    averaged, and their reliability becomes the ceiling.

    Parameters
    ----------
    model : object with fit(X, y) and predict(X)
        Of neurodl, scikit-learn or himalaya. One with ``predict_folds(X, y, splits, groups)``, as
        `RidgeCV`, does all folds in one go. If ``fit`` takes ``groups``, it is given those of
        the training rows, so that inner folds keep them whole as well; if ``fit`` and ``predict``
        take ``runs``, they are given the coord run. Where the model has ``centre="runs"``, the
        responses are scored about the mean of their run, too. Of a pipeline, the last step is
        what counts: it is given groups and runs.
    X : xarray.DataArray, mapping of layer to xarray.DataArray, or Stimuli
        Features; see `check_features`. Kernels go with models that have ``kernel="precomputed"``.
        A `NeuralEncoder` takes the stimuli.
        A model with ``bands=None``, as `BandedRidgeCV`, takes all layers at once, each as a band;
        the result has one layer, "all".
    responses : xarray.DataArray
        See `check_responses`. Targets with missing values, and targets that do not vary in some
        training or test rows, are excluded and counted. A model that can do with missing values,
        as `NeuralEncoder`, keeps those that vary over the known rows of each part, and is scored
        on them.
    cv, groups, seed
        See `make_splits`.
    ceiling : xarray.DataArray, optional
        Published reliability in variance units, dims (target,); by default from repeats.
    unpaired : {"error", "drop"}
        What to do with responses that have no features.
    allow : sequence of str
        Checks of the auditor whose findings are known and accepted, such as "repeats"; see
        `audit`. The scores keep them, and a report prints them.
    metrics : sequence of {"deviance", "pseudo_r2", "bits_per_spike"}
        Scores of counts besides r and r2, against the mean rate of the training rows; see
        `neurodl.metrics`. Predictions below a hundredth of it are raised to that, since a rate is
        above 0: the attr n_rates_raised counts them.
    keep_predictions : bool or "auto"
        Whether to keep ``predicted`` (layer, sample, target) and ``observed`` (sample, target),
        NaN where a row was never tested, and the coord tested_in, the fold of each row.
        "auto" keeps them while they take at most 64 MiB.
    cache : path or bool
        Where the scores of each layer are kept once they are done, True for the usual cache: the
        same call goes on there after an interruption. They are found again by all that decides
        them, features and responses byte by byte, and go when nobody asked for them for 30 days.
        Models that are trained, or that other packages than scikit-learn and himalaya define,
        begin anew.

    Returns
    -------
    xarray.Dataset
        See `check_scores`: r and r2 (layer, fold, target), alpha where the model has it (the
        penalty of each target, or the fraction or number of components that the model chooses in
        its place), ceiling (target) and r_normalized = r / sqrt(ceiling). Of models with bands
        also what they find for each (layer, fold, band, target).

    Raises
    ------
    PairingError
        A response has no features; the ids are named.
    AuditError
        The scores would not be what they seem, and it was not allowed; see `audit`.
    SchemaError, ValueError
        Features, responses or folds are not usable; the message says what to do.

    Examples
    --------
    >>> from sklearn.linear_model import Ridge
    >>> rng = np.random.default_rng(0)
    >>> ids = [f"image{i}" for i in range(40)]
    >>> values = rng.standard_normal((40, 4)).astype("float32")
    >>> X = xr.DataArray(values, dims=("stimulus", "feature"), coords={"stimulus": ids})
    >>> Y = xr.DataArray(values @ values[:4], dims=("stimulus", "unit"),
    ...                  coords={"stimulus": ids}, attrs={"units": "a.u."})
    >>> bool(cross_validate(Ridge(), X, Y, cv=4)["r"].mean() > 0.9)
    True
    """
    layers = inputs_of(model, X)
    check_responses(responses)
    whole, given = responses, ceiling
    stimuli = X if isinstance(X, Stimuli) else None
    if ceiling is None:
        ceiling = own_ceiling(responses)
    layers, rows = paired_rows(
        model,
        layers,
        responses,
        cv,
        groups,
        seed,
        unpaired=unpaired,
        stimuli=stimuli,
        allow=allow,
    )
    responses, observed, splits = rows.responses, rows.observed, rows.splits
    reasons, used = used_targets(rows, model)
    if hasattr(last_step(model), "check_targets") and "roi" in responses.coords:
        last_step(model).check_targets(np.unique(responses["roi"].values.astype(str)))
    ceilings = fold_ceilings(model, whole, rows, given, used)
    _check_metrics(metrics, observed[:, used])
    if keep_predictions == "auto":
        keep_predictions = 4 * len(layers) * observed.size <= MOST_KEPT
    fold_scores = Fits(model, rows, used, bool(keep_predictions), X, ceilings, metrics)
    folder = None if cache is False else cache_folder(cache_path(cache)) / "scores"
    kept = Kept(folder, fold_scores, _device(model).get("device", ""))
    n_steps = len(layers) * len(splits) * int(used.sum())
    with progress_bar(label="fit", total=n_steps) as advance:
        results, histories = [], []
        for array in layers.values():
            results.append(kept.layer(array.values, advance))
            histories.append(fold_scores.history)
    if kept.n_found:
        logger.info("%d of %d layers were scored before", kept.n_found, len(layers))
    warned = fold_scores.warn()
    scores = _dataset(results, layers, responses, splits, keep_predictions, observed)
    scores = _with_bands(scores, results, fold_scores.band_names(layers))
    scores = with_training(scores, histories)
    if ceiling is not None:
        scores = with_ceiling(scores, ceiling)
    scores.attrs |= {
        "model": " ".join(repr(model).split()),
        **run_attrs(rows, groups, seed, used, whole, cv),
        **_device(model),
        **({"warnings": warned} if warned else {}),
        **({"n_rates_raised": fold_scores.n_raised} if metrics else {}),
        **{f"n_{reason}": int(mask.sum()) for reason, mask in reasons.items()},
    }
    return check_scores(scores)


def _check_metrics(metrics: Sequence[str], observed: np.ndarray) -> None:
    """Raise unless metrics are known, and fit what was recorded."""
    for name in metrics:
        if name not in OF_COUNTS:
            raise UnknownNameError(
                f"`metrics` may have {list(OF_COUNTS)} besides r and r2, but got {name!r}. "
                f"{did_you_mean(str(name), OF_COUNTS)}"
            )
    if metrics and np.nanmin(observed) < 0:
        raise SchemaError(
            f"{list(metrics)} are of counts or rates, but some responses are below 0: leave out "
            "`metrics`, or give counts that were not transformed."
        )


def run_attrs(
    rows: Rows, groups: Any, seed: int, used: np.ndarray, responses: xr.DataArray, cv: Any
) -> dict[str, Any]:
    """Return what scores say of the run that made them, whatever the model."""
    if groups is None:
        groups = default_groups(rows.responses, cv)
    given = "given" if groups is not None else "none"
    return {
        "neurodl_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "cv": rows.text,
        "audit": rows.audit.to_text(),
        "groups": groups if isinstance(groups, str) else given,
        "seed": seed,
        "n_folds": len(rows.splits),
        "n_samples": len(rows.observed),
        "n_targets": rows.observed.shape[1],
        "n_excluded": int((~used).sum()),
        "n_repeats": int(responses.sizes.get("repeat", 1)),
        **{key: responses.attrs[key] for key in KEPT_ATTRS if key in responses.attrs},
    }


def paired_rows(
    model: Any,
    layers: dict[str, xr.DataArray],
    responses: xr.DataArray,
    cv: Any,
    groups: Any,
    seed: int,
    *,
    unpaired: str = "error",
    stimuli: Stimuli | None = None,
    allow: Sequence[str] = (),
    enforce: bool = True,
) -> tuple[dict[str, xr.DataArray], Rows]:
    """Return features and responses paired by id, with their folds, audited.

    See `cross_validate`; `enforce` is whether the audit may stop and warn.
    """
    if "repeat" in responses.dims:
        responses = average_repeats(responses)
    if responses.ndim != 2:
        raise SchemaError(
            f"cross_validate scores one value per sample and target, but the responses have dims "
            f"{tuple(responses.dims)}. Select or average over the others first."
        )
    check_kernel_model(model, layers)
    whole = layers
    layers, responses = paired(layers, responses, unpaired)
    splits, labels, text = make_splits(responses, cv, groups, seed)
    case = Case(responses, layers, whole, splits, model, stimuli)
    found = audited(case, allow)
    if enforce:
        found.enforce()
    observed = np.ascontiguousarray(responses.values, dtype=np.float32)
    runs = _runs(responses)
    if getattr(last_step(model), "centre", None) == "runs":
        observed = _about_run_means(observed, runs)
    bands = None
    if takes_bands(model):
        joined, bands = side_by_side(layers)
        layers = {ALL_LAYERS: joined}
    return layers, Rows(responses, observed, splits, labels, runs, text, bands, found)


def inputs_of(model: Any, X: Any) -> dict[str, xr.DataArray]:
    """Return features by layer, or the row numbers of stimuli for a model that takes those."""
    if isinstance(X, Stimuli):
        return stimulus_rows(model, X)
    if takes_stimuli(model):
        raise SchemaError(
            f"{type(last_step(model)).__name__} takes stimuli, such as experiment.stimuli, but got "
            f"{type(X).__name__}. For features, take RidgeCV."
        )
    return check_features(X)


def fold_ceilings(
    model: Any, responses: xr.DataArray, rows: Rows, given: xr.DataArray | None, used: np.ndarray
) -> list[np.ndarray] | None:
    """Return the ceiling of the targets in the training rows of each fold, for a model that asks.

    That of `given` where it was published.
    """
    wanted = getattr(last_step(model), "target_weights", None)
    if not isinstance(wanted, str):
        return None
    if given is not None:
        return [np.asarray(given.values, np.float32)[used]] * len(rows.splits)
    samples = str(responses.dims[0])
    whole, kept, found = sample_ids(responses), sample_ids(rows.responses), []
    if len(whole) != len(kept) and not whole.is_unique:
        raise SchemaError(
            "target_weights='ceiling' cannot tell which presentations were left out by "
            "unpaired='drop': select those with stimuli first."
        )
    for train, _ in rows.splits:
        # Row by row: other presentations of the same stimuli may be test rows.
        own = train if len(whole) == len(kept) else whole.get_indexer(kept[train])
        ceiling = own_ceiling(responses.isel({samples: own}))
        if ceiling is None:
            raise SchemaError(
                "target_weights='ceiling' needs repeats in the responses, or a published ceiling: "
                "cross_validate(..., ceiling=...)."
            )
        found.append(np.nan_to_num(np.asarray(ceiling.values, np.float32)).clip(0, 1)[used])
    return found


def _device(model: Any) -> dict[str, str]:
    """Return where the model runs, if it can be told."""
    name = getattr(last_step(model), "device", None)
    if not isinstance(name, str | list | tuple | torch.device):
        return {}
    return {"device": ", ".join(describe_device(device) for device in resolve_devices(name))}


def own_ceiling(responses: xr.DataArray) -> xr.DataArray | None:
    """Return the reliability of what is scored, where there are repeats to tell it from."""
    if "repeat" in responses.dims and responses.ndim == 3:
        return noise_ceiling(responses) if responses.sizes["repeat"] > 1 else None
    if sample_dim(responses) != "presentation" or responses.ndim != 2:
        return None
    if pd.Index(responses["stimulus"].values).is_unique:
        return None
    return noise_ceiling(responses, n_averaged="one")


def _runs(responses: xr.DataArray) -> np.ndarray | None:
    """Return the run of each sample, where that is known."""
    known = "run" in responses.coords and responses["run"].dims == responses.dims[:1]
    return responses["run"].values.astype(str) if known else None


def _about_run_means(observed: np.ndarray, runs: np.ndarray | None) -> np.ndarray:
    """Return responses about the mean of their run."""
    if runs is None:
        raise SchemaError(
            "centre='runs' needs the coord run on the responses' samples, the run of each."
        )
    centred = observed.copy()
    for run in np.unique(runs):
        centred[runs == run] -= centred[runs == run].mean(0)
    return centred


def used_targets(rows: Rows, model: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return which targets (n_targets,) cannot be scored, by reason, and which can.

    Raises
    ------
    SchemaError
        None can.
    """
    observed, takes_missing = rows.observed, takes_stimuli(model)
    missing = np.isnan(observed).any(0)
    constant = np.zeros_like(missing)
    if takes_missing:
        missing = np.zeros_like(missing)
    for own in (part for split in rows.splits for part in split):
        part = observed[own]
        if takes_missing:
            missing |= np.isfinite(part).sum(0) < 2
            part = np.where(missing, 0, part)
        low, high = (np.fmin, np.fmax) if takes_missing else (np.minimum, np.maximum)
        spread = high.reduce(part, 0) - low.reduce(part, 0)
        constant |= spread <= 1e-6 * high.reduce(np.abs(part), 0)
    if (missing | constant).all():
        raise SchemaError(
            "No target can be scored: all have missing values or do not vary in some fold."
        )
    return {"missing": missing, "constant": constant & ~missing}, ~(missing | constant)


def _dataset(
    results: list[dict[str, np.ndarray]],
    layers: dict[str, xr.DataArray],
    responses: xr.DataArray,
    splits: list[Any],
    keep_predictions: bool,
    observed: np.ndarray,
) -> xr.Dataset:
    target, samples = target_dim(responses), str(responses.dims[0])
    names = [
        name for name in ("r", "r2", "alpha") if any(np.isfinite(x[name]).any() for x in results)
    ]
    names += [name for name in OF_COUNTS if name in results[0]]
    names = list(dict.fromkeys(["r", "r2", *names]))
    data: dict[str, Any] = {
        name: (("layer", "fold", target), np.stack([result[name] for result in results]))
        for name in names
    }
    coords: dict[str, Any] = dict(target_coords(responses))
    coords["layer"] = list(layers)
    coords["fold"] = np.arange(len(splits))
    coords["n_test"] = ("fold", [len(test) for _, test in splits])
    for key in LAYER_COORDS:
        values = [str(array.attrs.get(key, "")) for array in layers.values()]
        if any(values):
            coords[key] = ("layer", values)
    coords["n_features"] = ("layer", [n_features(array) for array in layers.values()])
    if keep_predictions:
        data["predicted"] = (
            ("layer", samples, target),
            np.stack([x["predicted"] for x in results]),
        )
        data["observed"] = ((samples, target), observed)
        coords |= {str(k): v for k, v in responses.coords.items() if v.dims == (samples,)}
        coords["tested_in"] = (samples, _tested_in(splits, len(observed)))
    return xr.Dataset(data, coords)


def _tested_in(splits: list[Any], n_rows: int) -> np.ndarray:
    """Return the fold that tests each row (n_rows,): NEVER, or SEVERAL for more than one."""
    found = np.full(n_rows, NEVER)
    for fold, (_, test) in enumerate(splits):
        found[test] = np.where(found[test] == NEVER, fold, SEVERAL)
    return found


def _with_bands(
    scores: xr.Dataset, results: list[dict[str, np.ndarray]], bands: list[str]
) -> xr.Dataset:
    """Add what models say of each band, (layer, fold, band, target)."""
    names = [name for name, values in results[0].items() if values.ndim == 3]
    if not names:
        return scores
    dims = ("layer", "fold", "band", target_dim(scores["r"]))
    by_band = {name: (dims, np.stack([result[name] for result in results])) for name in names}
    return scores.assign_coords(band=bands).assign(by_band)


def with_training(scores: xr.Dataset, histories: Sequence[History]) -> xr.Dataset:
    """Add what was measured in training: dims (layer, fold, step), NaN after the last step.

    Parameters
    ----------
    scores : xarray.Dataset
    histories : sequence of mapping, one of each layer
        By fold, an entry for each epoch; those of several stages follow each other.
    """
    steps = max((len(one) for folds in histories for one in folds.values()), default=0)
    if not steps:
        return scores
    shape = (scores.sizes["layer"], scores.sizes["fold"], steps)
    for key, name in TRAINING.items():
        values = np.full(shape, np.nan, np.float32)
        for layer, folds in enumerate(histories):
            for fold, entries in folds.items():
                values[layer, fold, : len(entries)] = [one.get(key, np.nan) for one in entries]
        scores[name] = (("layer", "fold", "step"), values)
    return scores


def with_ceiling(scores: xr.Dataset, ceiling: xr.DataArray) -> xr.Dataset:
    """Add the ceiling and r over its root; a ceiling too small to divide by is counted."""
    reliability = checked_ceiling(ceiling, scores["r"])
    scores["ceiling"] = (target_dim(scores["r"]), reliability)
    scores["r_normalized"] = normalize_score(scores["r"], ceiling)
    scores.attrs["n_ceiling_too_small"] = int((reliability < MIN_RELIABILITY).sum())
    scores.attrs["ceiling_method"] = str(ceiling.attrs.get("method", "given"))
    return scores
