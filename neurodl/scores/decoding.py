"""Decoding: what stimulus, choice or movement can be read from the activity of a population."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from sklearn.base import clone, is_classifier
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    StratifiedGroupKFold,
    StratifiedKFold,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neurodl.errors import SchemaError, UnknownNameError, did_you_mean
from neurodl.features.population import population_features
from neurodl.models import RidgeCV
from neurodl.responses import as_runs
from neurodl.runtime import derive_seed, progress_bar
from neurodl.schema import check_responses, sample_dim, target_dim
from neurodl.scores.crossval import cross_validate
from neurodl.scores.pairing import fit_parameter

PENALTIES = np.logspace(-4, 2, 5).tolist()  # inverse ones, as scikit-learn has them
N_INNER = 4
MODELS = ("logistic", "linear", "ridge")
MOST_CLASSES = 20  # of floating-point numbers


class Folds(NamedTuple):
    """What is decoded, and by which folds.

    values : (n_presentations, n_times, n_units)
    labels : (n_presentations,)
    splits : list of (train, test)
    groups : (n_presentations,) or None
    splitter : of scikit-learn, that makes the splits of other labels
    """

    values: np.ndarray
    labels: np.ndarray
    splits: list[tuple[np.ndarray, np.ndarray]]
    groups: np.ndarray | None
    splitter: Any

    def with_labels(self, labels: np.ndarray) -> Folds:
        """Return the same presentations with other labels, and folds for these."""
        splits = list(self.splitter.split(self.values[:, 0], labels, self.groups))
        return self._replace(labels=labels, splits=splits)


def decode(
    responses: xr.DataArray,
    label: str,
    *,
    model: Any = "logistic",
    cv: int = 5,
    groups: str | None = None,
    generalize: bool = False,
    n_permutations: int = 0,
    device: Any = "auto",
    seed: int = 0,
) -> xr.Dataset:
    """Return how well a label can be read from a population, in held-out presentations.

    Parameters
    ----------
    responses : xarray.DataArray
        Dims ``(presentation | stimulus, unit)``; or with time bins,
        ``(presentation | stimulus, time, unit)``: then each bin is decoded for itself.
    label : str
        A coord of the presentations: a category, such as "choice", or numbers for
        ``model="ridge"``. Presentations without one (NaN or "") are left out and counted. A coord
        ``(presentation, time)``, such as "wheel", is regressed on the population bin by bin, in
        folds of whole presentations, by `cross_validate`.
    model : {"logistic", "linear", "ridge"} or estimator
        Logistic regression with an L2 penalty chosen by inner folds; linear discriminant analysis
        with Ledoit-Wolf shrinkage; `RidgeCV` for numbers. An estimator of scikit-learn, or
        for labels over time one of neurodl, such as ``RidgeCV(delays=range(10))`` or
        `SequenceDecoder`, is taken as it is; with ``targets="classes"`` the latter decodes each
        bin from the presentation so far. The named
        ones z-score units by training rows.
    cv : int
        Folds, with the classes in the same proportions in each.
    groups : str, optional
        A coord of presentations that folds keep whole, such as "session".
    generalize : bool
        Test the decoder of each time bin in all others, too [1]_.
    n_permutations : int
        Decode so often with the labels exchanged (whole groups, where there are groups), for p.
    device : str
        Of ``model="ridge"``.
    seed : int
        Of folds and permutations.

    Returns
    -------
    xarray.Dataset
        Of categories: accuracy and balanced_accuracy, dims ``(fold [, time])``, or ``(fold,
        train_time, time)``; coord n_test, attrs chance (of a guess by the training rows' most
        frequent class), classes and n_dropped. Of numbers: r and r2 over the presentations of
        each fold. With permutations also p ``([time])`` of the balanced accuracy (or r), and
        p_fwe, corrected over time bins by the largest of each permutation [2]_. Of labels over
        time: what `cross_validate` returns.

    Raises
    ------
    SchemaError, UnknownNameError
        There is no such label, it has one class, or fewer presentations of one than folds.

    References
    ----------
    .. [1] King & Dehaene (2014), Characterizing the dynamics of mental representations: the
       temporal generalization method, Trends in Cognitive Sciences 18.
    .. [2] Nichols & Holmes (2002), Human Brain Mapping 15; Phipson & Smyth (2010), Permutation
       p-values should never be zero.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> choice = np.repeat(["left", "right"], 40)
    >>> counts = rng.poisson(np.where(choice == "left", 3.0, 8.0)[:, None], (80, 5))
    >>> responses = xr.DataArray(
    ...     counts.astype("float32"), dims=("presentation", "unit"),
    ...     coords={"stimulus": ("presentation", choice), "choice": ("presentation", choice)},
    ...     attrs={"units": "spikes"})
    >>> bool(decode(responses, "choice", model="linear")["accuracy"].mean() > 0.9)
    True
    """
    check_responses(responses)
    samples = sample_dim(responses)
    if samples == "time" or "repeat" in responses.dims:
        raise SchemaError(
            "decode needs dims (presentation, unit) or (presentation, time, unit), but got "
            f"{tuple(responses.dims)}."
        )
    there = [str(name) for name, one in responses.coords.items() if one.dims[:1] == (samples,)]
    if label not in there:
        raise UnknownNameError(
            f"The responses have no coord {label!r} of presentations. {did_you_mean(label, there)}"
        )
    if responses[label].ndim == 2:
        if generalize or n_permutations:
            raise SchemaError(
                f"{label!r} has numbers over time, for which there is no `generalize` and no "
                "`n_permutations`: leave them out."
            )
        return _over_time(responses, label, model, cv, groups, device, seed)
    decoder, predicts_class = _decoder(model, device, seed)
    given = _folds(responses, label, cv, groups, predicts_class, seed)
    scored = _of_classes if predicts_class else _of_numbers
    timed = "time" in responses.dims
    if generalize and not timed:
        raise SchemaError("`generalize` needs time bins: say bin_width in bin_spikes.")
    if _takes_sequences(decoder) and (generalize or not timed):
        raise SchemaError(
            f"{type(decoder).__name__} reads whole presentations bin by bin: give it time bins, "
            "without `generalize`."
        )
    found = _scored(decoder, given, scored, generalize)
    times = {"time": responses["time"].values} if timed else {}
    dims = ("fold", "train_time", "time") if generalize else ("fold", "time")
    scores = xr.Dataset(
        {name: (dims, one) for name, one in found.items()},
        {"fold": np.arange(len(given.splits)), **times},
    )
    scores = scores.assign_coords(n_test=("fold", [len(test) for _, test in given.splits]))
    if generalize:
        scores = scores.assign_coords(train_time=times["time"])
    if n_permutations:
        main = "balanced_accuracy" if predicts_class else "r"
        p, p_fwe = _exchanged(decoder, given, scored, found, main, n_permutations, seed)
        scores["p"], scores["p_fwe"] = (dims[1:], p), (dims[1:], p_fwe)
    scores.attrs = {
        "label": label,
        "model": " ".join(repr(decoder).split()),
        "n_samples": len(given.labels),
        "n_dropped": responses.sizes[samples] - len(given.labels),
        "n_targets": responses.sizes[target_dim(responses)],
        "groups": groups or "none",
        "n_permutations": n_permutations,
        "seed": seed,
    }
    if predicts_class:
        classes, counts = np.unique(given.labels, return_counts=True)
        scores.attrs |= {"classes": ", ".join(map(str, classes)), "chance": _chance(given)}
        scores.attrs["smallest_class"] = int(counts.min())
    return scores if timed else scores.isel(time=0, drop=True)


def _over_time(
    responses: xr.DataArray,
    label: str,
    model: Any,
    cv: int,
    groups: str | None,
    device: Any,
    seed: int,
) -> xr.Dataset:
    """Regress a label (presentation, time) on the population, in whole presentations."""
    if isinstance(model, str):
        if model != "ridge":
            raise SchemaError(
                f"{label!r} has numbers over time, which model={model!r} does not predict: take "
                "'ridge', RidgeCV(delays=...) or a SequenceDecoder."
            )
        model = RidgeCV(device=device, seed=seed)
    series = as_runs(responses)
    values = series[label].values.astype(np.float32)
    kept = np.isfinite(values)
    runs = series["run"].values
    whole = ~np.isin(runs, runs[~kept])
    series = series.isel(time=whole)
    rows = {str(key): one.variable for key, one in series.coords.items() if one.dims == ("time",)}
    wanted = xr.DataArray(
        values[whole][:, None],
        {**rows, "channel": [label]},
        ("time", "channel"),
        attrs={"units": label, "bin_width": float(series.attrs["bin_width"])},
    )
    scores = cross_validate(
        model, population_features(series), wanted, cv=cv, groups=groups or "run", seed=seed
    )
    return scores.assign_attrs(label=label, n_dropped=len(np.unique(runs[~whole])))


def _decoder(model: Any, device: Any, seed: int) -> tuple[Any, bool]:
    """Return the estimator, and whether it predicts classes."""
    if not isinstance(model, str):
        return model, is_classifier(model) or getattr(model, "targets", None) == "classes"
    if model not in MODELS:
        raise UnknownNameError(
            f"`model` must be one of {MODELS} or an estimator, but got {model!r}. "
            f"{did_you_mean(model, MODELS)}"
        )
    if model == "ridge":
        return RidgeCV(device=device, seed=seed), False
    if model == "linear":
        return make_pipeline(
            StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        ), True
    inner = StratifiedKFold(N_INNER, shuffle=True, random_state=derive_seed(seed, "inner"))
    logistic = GridSearchCV(
        LogisticRegression(max_iter=1000), {"C": PENALTIES}, cv=inner, scoring="neg_log_loss"
    )
    return make_pipeline(StandardScaler(), logistic), True


def _folds(
    responses: xr.DataArray,
    label: str,
    cv: int,
    groups: str | None,
    predicts_class: bool,
    seed: int,
) -> Folds:
    """Return labels, folds and what is decoded from, without presentations that have no label."""
    samples = responses.dims[0]
    raw = responses[label].values
    kept = ~pd.isna(raw)
    if raw.dtype.kind in "UO":
        kept &= raw.astype(str) != ""
    labels = raw[kept] if not predicts_class else _classes(raw[kept], label)
    values = responses.values[kept].astype(np.float64)
    values = values if values.ndim == 3 else values[:, None]
    if not np.isfinite(values).all():
        bad = (~np.isfinite(values)).any((0, 1))
        raise SchemaError(
            f"{int(bad.sum())} of {len(bad)} units have missing values: leave them out first."
        )
    names = None
    if groups is not None:
        there = [str(key) for key, one in responses.coords.items() if one.dims == (samples,)]
        if groups not in there:
            raise UnknownNameError(f"There is no coord {groups!r}. {did_you_mean(groups, there)}")
        names = responses[groups].values.astype(str)[kept]
    if predicts_class:
        classes, counts = np.unique(labels, return_counts=True)
        if len(classes) < 2:
            raise SchemaError(f"{label!r} has {len(classes)} class: decoding needs two.")
        n_needed = max(cv, N_INNER + 1)
        if counts.min() < n_needed:
            raise SchemaError(
                f"{label!r} has {counts.min()} presentations of "
                f"{str(classes[counts.argmin()])!r}, but {n_needed} are needed: use fewer folds, "
                "or leave the class out."
            )
    shuffled: dict[str, Any] = {"shuffle": True, "random_state": seed}
    if predicts_class:
        splitter = StratifiedKFold(cv, **shuffled) if names is None else StratifiedGroupKFold(cv)
    else:
        splitter = KFold(cv, **shuffled) if names is None else GroupKFold(cv)
    return Folds(values, labels, [], names, splitter).with_labels(np.asarray(labels))


def _classes(raw: np.ndarray, label: str) -> np.ndarray:
    """Return labels that are categories."""
    found = np.unique(raw)
    if raw.dtype.kind == "f" and len(found) > MOST_CLASSES:
        raise SchemaError(
            f"{label!r} has {len(found)} different numbers, which are no categories: take "
            "model='ridge', or make classes of them."
        )
    return raw.astype(str)


Scorer = Callable[[np.ndarray, np.ndarray], dict[str, float]]


def _of_classes(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(
            np.mean([(predicted[labels == one] == one).mean() for one in np.unique(labels)])
        ),
    }


def _of_numbers(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    centred = labels - labels.mean()
    total = float((centred**2).sum())
    spread = float(np.std(predicted) * np.std(labels)) * len(labels)
    r = float((centred * predicted).sum()) / spread if spread > 0 else np.nan
    return {"r": r, "r2": 1 - float(((labels - predicted) ** 2).sum()) / total if total else np.nan}


def _scored(
    decoder: Any, given: Folds, scorer: Scorer, generalize: bool, show: bool = True
) -> dict[str, np.ndarray]:
    """Return each score of each fold and time bin, or of pairs of bins for training and test."""
    n_times = given.values.shape[1]
    shape = (len(given.splits), n_times, n_times) if generalize else (len(given.splits), n_times)
    found: dict[str, np.ndarray] = {}
    bar = progress_bar(label="decode", total=int(np.prod(shape))) if show else nullcontext(int)
    with bar as advance:
        for place, predicted, observed in _predictions(decoder, given, generalize):
            for name, value in scorer(predicted, observed).items():
                found.setdefault(name, np.full(shape, np.nan, np.float32))[place] = value
            advance(1)
    return found


def _predictions(
    decoder: Any, given: Folds, generalize: bool
) -> Iterator[tuple[tuple[int, ...], np.ndarray, np.ndarray]]:
    """Yield the fold and time bin, or bins, and what was predicted and observed in test rows."""
    n_times = given.values.shape[1]
    labels = given.labels if given.labels.dtype.kind in "UO" else given.labels.astype(np.float64)
    for fold, (train, test) in enumerate(given.splits):
        if _takes_sequences(decoder):
            said = _of_sequences(decoder, given.values, labels, train, test)
            yield from (((fold, at), said[:, at], labels[test]) for at in range(n_times))
            continue
        for at in range(n_times):
            fitted = clone(decoder).fit(given.values[train, at], labels[train])
            for other in range(n_times) if generalize else [at]:
                place = (fold, at, other) if generalize else (fold, at)
                yield place, fitted.predict(given.values[test, other]), labels[test]


def _takes_sequences(decoder: Any) -> bool:
    """Return whether a decoder of classes reads presentations as they unfold."""
    return getattr(decoder, "targets", None) == "classes" and bool(fit_parameter(decoder, "runs"))


def _of_sequences(
    decoder: Any, values: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Return labels (n_test, n_times), each from what was seen of a presentation until then."""
    n_times, n_units = values.shape[1:]
    runs = [np.repeat(np.arange(len(rows)), n_times) for rows in (train, test)]
    own, held = (values[rows].reshape(-1, n_units) for rows in (train, test))
    fitted = clone(decoder).fit(own, np.repeat(labels[train], n_times), runs=runs[0])
    return fitted.predict(held, runs[1]).reshape(len(test), n_times)


def _exchanged(
    decoder: Any,
    given: Folds,
    scorer: Scorer,
    found: dict[str, np.ndarray],
    name: str,
    n_permutations: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return p of the mean over folds, and p corrected over time bins."""
    rng = np.random.default_rng(derive_seed(seed, "exchange"))
    mean = found[name].mean(0)
    generalize = mean.ndim == 2
    above, above_all = np.ones_like(mean), np.ones_like(mean)
    with progress_bar(label="permutations", total=n_permutations) as advance:
        for _ in range(n_permutations):
            labels = _shuffled(given.labels, given.groups, rng)
            null = _scored(decoder, given.with_labels(labels), scorer, generalize, show=False)
            other = np.nanmean(null[name], 0)
            above += other >= mean
            above_all += np.nanmax(other) >= mean
            advance(1)
    return above / (n_permutations + 1), above_all / (n_permutations + 1)


def _shuffled(
    labels: np.ndarray, groups: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """Return labels exchanged between presentations, or within groups where labels vary there."""
    if groups is None:
        return rng.permutation(labels)
    new = labels.copy()
    names = np.unique(groups)
    if all(len(np.unique(labels[groups == name])) == 1 for name in names):
        first = np.array([labels[groups == name][0] for name in names])
        moved = dict(zip(names, rng.permutation(first), strict=True))
        return np.array([moved[name] for name in groups])
    for name in names:
        rows = np.flatnonzero(groups == name)
        new[rows] = labels[rng.permutation(rows)]
    return new


def _chance(given: Folds) -> float:
    """Return the accuracy of always naming the most frequent class of the training rows."""
    found = []
    for train, test in given.splits:
        classes, counts = np.unique(given.labels[train], return_counts=True)
        found.append((given.labels[test] == classes[counts.argmax()]).mean())
    return float(np.mean(found))
