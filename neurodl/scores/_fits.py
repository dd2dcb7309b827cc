"""The fits of one model to every fold, and what is known of each layer by them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from sklearn.base import clone

from neurodl.errors import NeurodlWarning, UnknownNameError, did_you_mean
from neurodl.metrics import (
    bits_per_spike,
    pearson_r,
    poisson_deviance,
    pseudo_r2,
    r2,
    r2_by_band,
)
from neurodl.models._bands import band_columns
from neurodl.models._base import FoldPrediction
from neurodl.scores.auditing import Audit
from neurodl.scores.pairing import fit_parameter, last_step, takes_kernel, takes_stimuli

RATE_FLOOR = 0.01  # of a unit's mean count: rates are above 0
History = dict[int, Sequence[Mapping[str, Any]]]  # by fold, an entry for each epoch
OF_COUNTS: dict[str, Callable[..., torch.Tensor]] = {
    "deviance": lambda rate, counts, null: poisson_deviance(rate, counts),
    "pseudo_r2": pseudo_r2,
    "bits_per_spike": bits_per_spike,
}


class Rows(NamedTuple):
    """Responses, row by row as their features are, and their folds.

    responses : (sample, target), averaged over repeats
    observed : the same as float32, contiguous, and about run means where the model wants that
    splits : list of (train, test) row numbers
    labels, runs : the group and the run of each row, or None
    text : the folds in words
    bands : the layer of each column, for a model that takes all at once, or None
    audit : what the auditor found
    """

    responses: xr.DataArray
    observed: np.ndarray
    splits: list[Any]
    labels: np.ndarray | None
    runs: np.ndarray | None
    text: str
    bands: np.ndarray | None
    audit: Audit


class Fits:
    """The fits of one model to every fold, one layer after the other."""

    def __init__(
        self,
        model: Any,
        rows: Rows,
        used: np.ndarray,
        keep_predictions: bool,
        stimuli: Any = None,
        ceilings: list[np.ndarray] | None = None,
        metrics: Sequence[str] = (),
    ) -> None:
        self.metrics, self.n_raised = list(metrics), 0
        self.stimuli = stimuli if takes_stimuli(model) else None
        self.ceilings = ceilings
        self.model, self.used, self.splits = clone(model, safe=False), used, rows.splits
        self.bands = rows.bands
        observed = rows.observed
        self.observed = observed if used.all() else np.ascontiguousarray(observed[:, used])
        self._name_regions(rows.responses)
        self.names = {name: fit_parameter(model, name) for name in ("groups", "runs")}
        self.groups = rows.labels if self.names["groups"] else None
        self.runs = rows.runs if self.names["runs"] else None
        self.takes_kernel = takes_kernel(model)
        self.keep_predictions = keep_predictions
        self.messages: Counter[str] = Counter()
        self.history: History = {}  # of the layer that was predicted last
        self.n_fits = 0

    def layer(
        self, features: np.ndarray, advance: Callable[[int], object]
    ) -> dict[str, np.ndarray]:
        """Return what is known of one layer.

        r, r2 and alpha (fold, target), predicted (sample, target), and what models say of each
        band (fold, band, target). `advance` is told how many targets are done, fold by fold.
        """
        shape = (len(self.splits), len(self.used))
        names = ("r", "r2", "alpha", *self.metrics)
        result = {name: np.full(shape, np.nan, np.float32) for name in names}
        if self.keep_predictions:
            n_rows = len(self.observed)
            result["predicted"] = np.full((n_rows, len(self.used)), np.nan, np.float32)
        columns = np.flatnonzero(self.used)
        with self._collected(), closing(self.predictions(features)) as parts:
            for part in parts:
                test, places = self.splits[part.fold][1], columns[part.columns]
                predicted = part.predicted
                observed = self.observed[:, part.columns][test]
                observed = torch.as_tensor(observed, device=predicted.device)
                for name, score in (("r", pearson_r), ("r2", r2)):
                    result[name][part.fold, places] = over_known(score, predicted, observed)
                for name, found in self._of_counts(part, predicted, observed).items():
                    result[name][part.fold, places] = found
                result["alpha"][part.fold, places] = part.alpha.cpu().numpy()
                by_band = dict(part.by_band or {})
                if part.parts is not None:
                    by_band["r2_by_band"] = r2_by_band(part.parts, predicted, observed)
                for name, values in by_band.items():
                    if name not in result:
                        three = (shape[0], len(values), shape[1])
                        result[name] = np.full(three, np.nan, np.float32)
                    result[name][part.fold][:, places] = values.cpu().numpy()
                if self.keep_predictions:
                    result["predicted"][np.ix_(test, places)] = predicted.cpu().numpy()
                advance(len(places))
        return result

    def _of_counts(
        self, part: FoldPrediction, predicted: torch.Tensor, observed: torch.Tensor
    ) -> dict[str, np.ndarray]:
        """Return the scores of counts, by rates that are raised to a floor where they are below."""
        if not self.metrics:
            return {}
        train = self.splits[part.fold][0]
        seen = self.observed[:, part.columns][train]
        null = torch.as_tensor(np.nanmean(seen, 0), device=predicted.device)
        floor = RATE_FLOOR * null
        self.n_raised += int((predicted < floor).sum())
        rate = torch.maximum(predicted, floor)
        return {name: over_known(OF_COUNTS[name], rate, observed, null) for name in self.metrics}

    def predictions(self, features: Any) -> Generator[FoldPrediction, None, None]:
        """Yield the predictions of some targets in some fold, and keep how training went."""
        self.history = {}
        with closing(self._predictions(features)) as parts:
            for part in parts:
                if part.history:
                    self.history[part.fold] = part.history
                yield part

    def _predictions(self, features: Any) -> Generator[FoldPrediction, None, None]:
        if hasattr(self.model, "predict_folds"):
            model = self._fresh(self.bands)
            labels: dict[str, Any] = {"groups": self.groups}
            labels |= {} if self.runs is None else {"runs": self.runs}
            labels |= {} if self.ceilings is None else {"ceilings": self.ceilings}
            if self.stimuli is not None:
                rows = features[:, 0].astype(int).tolist()
                features = torch.utils.data.Subset(self.stimuli, rows)
            yield from model.predict_folds(features, self.observed, self.splits, **labels)
            self.n_fits += len(self.splits)
            return
        for fold, (train, test) in enumerate(self.splits):
            own, held, bands = train, test, self.bands
            if self.takes_kernel:
                n_rows = len(features)
                starts = np.arange(0, features.shape[1], n_rows)  # of each kernel side by side
                columns = np.concatenate([start + train for start in starts])
                own, held = np.ix_(train, columns), np.ix_(test, columns)
                bands = None if bands is None else bands[columns]
            fitted = self._fit(features[own], train, bands)
            labels = {} if self.runs is None else {"runs": self.runs[test]}
            predicted = np.asarray(fitted.predict(features[held], **labels), np.float32)
            predicted = predicted.reshape(len(test), -1)
            alpha = torch.as_tensor(_alpha(fitted))
            history = getattr(last_step(fitted), "history_", ())
            yield FoldPrediction(
                fold, slice(None), torch.from_numpy(predicted), alpha, history=history
            )

    def band_names(self, layers: Mapping[str, xr.DataArray]) -> list[str]:
        """Return the names of the bands that results are by."""
        bands = getattr(last_step(self.model), "bands", None) if self.bands is None else self.bands
        return list(band_columns(bands, next(iter(layers.values())).shape[1]))

    def _name_regions(self, responses: xr.DataArray) -> None:
        """Give a model that selects by region the labels of the targets, for the coord it names."""
        name = getattr(last_step(self.model), "regions", None)
        if not isinstance(name, str):
            return
        target = responses.dims[1]
        there = [str(key) for key, one in responses.coords.items() if one.dims == (target,)]
        if name not in there:
            raise UnknownNameError(
                f"`regions` names the coord {name!r}, which the targets do not have. "
                f"{did_you_mean(name, there)}"
            )
        labels = responses[name].values.astype(str)[self.used]
        last_step(self.model).set_params(regions=labels)

    def _fresh(self, bands: np.ndarray | None) -> Any:
        """Return a copy of the model that is told the band of each column."""
        fresh = clone(self.model, safe=False)
        if bands is not None:
            last_step(fresh).set_params(bands=bands)
        return fresh

    def _fit(self, features: np.ndarray, train: np.ndarray, bands: np.ndarray | None) -> Any:
        fresh = self._fresh(bands)
        labels = {"groups": self.groups, "runs": self.runs}
        given = {
            str(self.names[name]): rows[train] for name, rows in labels.items() if rows is not None
        }
        fresh.fit(features, self.observed[train], **given)
        self.n_fits += 1
        return fresh

    @contextmanager
    def _collected(self) -> Iterator[None]:
        """Keep neurodl's warnings for later, to be said once; let all others through."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", NeurodlWarning)
            yield
        for warning in caught:
            if issubclass(warning.category, NeurodlWarning):
                self.messages[str(warning.message)] += 1
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )

    def warn(self) -> str:
        """Say once what the fits warned of, and return it; empty if they did not."""
        if not self.messages:
            return ""
        message, _ = self.messages.most_common(1)[0]
        total = sum(self.messages.values())
        said = f"{total} of {self.n_fits} fits warned; for instance: {message}"
        warnings.warn(said, NeurodlWarning, stacklevel=3)
        return said


def over_known(
    score: Callable[..., torch.Tensor],
    predicted: torch.Tensor,
    observed: torch.Tensor,
    *by_target: torch.Tensor,
) -> np.ndarray:
    """Return a score per target (n_targets,), over the rows in which it was recorded.

    `by_target` are further arguments of the score, (n_targets,) each.
    """
    known = observed.isfinite()
    if known.all():
        return score(predicted, observed, *by_target).cpu().numpy()
    found = np.full(observed.shape[1], np.nan, np.float32)
    patterns, which = torch.unique(known, dim=1, return_inverse=True)
    for number, rows in enumerate(patterns.T):
        columns = which == number
        some = [one[columns] for one in by_target]
        part = score(predicted[rows][:, columns], observed[rows][:, columns], *some)
        found[columns.cpu().numpy()] = part.cpu().numpy()
    return found


def _alpha(fitted: Any) -> Any:
    """Return the chosen penalties of a fitted model, where it has such."""
    for name in ("alpha_", "best_alphas_"):
        if hasattr(last_step(fitted), name):
            return np.asarray(getattr(last_step(fitted), name), np.float32)
    return np.nan
