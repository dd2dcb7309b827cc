"""The conditions of a comparison: models on backbones, and what they predict of the test rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from sklearn.base import clone

from neurodl.backbones import Backbone, load_backbone
from neurodl.errors import SchemaError, UnknownNameError, did_you_mean
from neurodl.features import extract_features
from neurodl.models import NeuralEncoder, RidgeCV
from neurodl.runtime import derive_seed
from neurodl.schema import check_responses, sample_ids
from neurodl.scores._fits import Fits, History, Rows
from neurodl.scores.crossval import fold_ceilings, paired_rows, used_targets
from neurodl.scores.pairing import row_numbers, takes_stimuli

RIDGE, RIDGE_LAYERS = "ridge", "ridge, all layers"
TUNED = {"readout": None, "last": "last", "lora": "lora", "all": "all"}
ADAPTATIONS = (RIDGE, RIDGE_LAYERS, *TUNED)
MEAN_WITH = f" + {RIDGE_LAYERS}"
FACTS = ("weights", "weights_sha256", "transform", "licence")


class Task(NamedTuple):
    """Stimuli and responses, paired, with folds, and the targets that can be scored."""

    stimuli: Any
    responses: xr.DataArray
    rows: Rows
    stimulus: np.ndarray  # which stimulus each row is
    used: np.ndarray

    @classmethod
    def of(
        cls,
        experiment: Any,
        named: Mapping[str, Backbone],
        models: dict[str, Any],
        cv: Any,
        groups: Any,
        seed: int,
        allow: Sequence[str] = (),
    ) -> Task:
        responses = check_responses(experiment.responses)
        numbers = row_numbers(experiment.stimuli)
        numbered = {label: numbers.assign_attrs(one.describe()) for label, one in named.items()}
        ridge = models[RIDGE]
        for model in models.values():
            if hasattr(model, "check_targets") and "roi" in responses.coords:
                model.check_targets(np.unique(responses["roi"].values.astype(str)))
        layers, rows = paired_rows(
            ridge,
            numbered,
            responses,
            cv,
            groups,
            seed,
            stimuli=experiment.stimuli,
            allow=allow,
        )
        stimulus = next(iter(layers.values())).values[:, 0].astype(int)
        _, used = used_targets(rows, ridge)
        return cls(experiment.stimuli, responses, rows, stimulus, used)

    def rois(self) -> np.ndarray | None:
        """Return the region of each target that is scored."""
        known = "roi" in self.rows.responses.coords
        return self.rows.responses["roi"].values[self.used] if known else None

    def with_splits(self, splits: list[Any]) -> Rows:
        """Return the rows with other folds."""
        return self.rows._replace(splits=splits)


class Condition(NamedTuple):
    """One model on one backbone: its predictions of the test rows, fold by fold."""

    backbone: str
    adaptation: str
    read: list[str]
    predictions: list[np.ndarray]
    facts: Mapping[str, str]
    history: History = {}


def named_backbones(backbones: Any) -> dict[str, Backbone]:
    """Return backbones by the label that results have for them."""
    if isinstance(backbones, (str, Backbone)):
        backbones = [backbones]
    if not isinstance(backbones, Mapping):
        backbones = {one if isinstance(one, str) else one.name: one for one in backbones}
    if not backbones:
        raise SchemaError("`backbones` is empty: name at least one network.")
    return {
        str(label): load_backbone(one) if isinstance(one, str) else one
        for label, one in backbones.items()
    }


def models_of(adaptations: Any, options: dict[str, Any], device: Any, seed: int) -> dict[str, Any]:
    """Return an estimator by the name of each adaptation; ridge regression stands first."""
    common = {"device": device, "seed": seed}
    if isinstance(adaptations, str):
        adaptations = [adaptations]
    given = dict(adaptations) if isinstance(adaptations, Mapping) else dict.fromkeys(adaptations)
    unknown = [name for name, one in given.items() if one is None and name not in ADAPTATIONS]
    if unknown:
        raise UnknownNameError(
            f"`adaptations` has no {unknown[0]!r}. {did_you_mean(unknown[0], ADAPTATIONS)}"
        )
    known = list(NeuralEncoder().get_params(deep=False))
    wrong = [name for name in options if name not in known]
    if wrong:
        raise UnknownNameError(
            f"NeuralEncoder has no parameter {wrong[0]!r}. {did_you_mean(wrong[0], known)}"
        )
    models: dict[str, Any] = {RIDGE: given.pop(RIDGE, None) or RidgeCV(**common)}
    for name, one in given.items():
        if one is not None:
            models[name] = one
        elif name == RIDGE_LAYERS:
            models[name] = RidgeCV(**common)
        else:
            models[name] = NeuralEncoder(**(common | options | {"finetune": TUNED[name]}))
    return models


def checked_sizes(n_train: Sequence[int], splits: Sequence[Any]) -> list[int]:
    """Return numbers of training rows in order, if every fold has as many."""
    sizes = sorted({int(n) for n in n_train})
    fewest = min(len(train) for train, _ in splits)
    if sizes and not 8 <= sizes[0] <= sizes[-1] <= fewest:
        raise SchemaError(
            f"`n_train` must be from 8 to the {fewest} training rows of the smallest fold, but got "
            f"{sizes}."
        )
    return sizes


def thinned(rows: Rows, size: int, seed: int) -> list[Any]:
    """Return folds with so many of their training rows, nested; of whole groups if there are any.

    Presentations of one stimulus are a group.
    """
    labels = rows.labels if rows.labels is not None else np.asarray(sample_ids(rows.responses))
    thinned = []
    for fold, (train, test) in enumerate(rows.splits):
        rng = np.random.default_rng(derive_seed(seed, "n_train", fold))
        kept: list[np.ndarray] = []
        for label in rng.permutation(np.unique(labels[train])):
            own = train[labels[train] == label]
            if kept and sum(map(len, kept)) + len(own) > size:
                break
            kept.append(own)
        thinned.append((np.sort(np.concatenate(kept)), test))
    return thinned


def fit_all(
    task: Task,
    named: Mapping[str, Backbone],
    models: Mapping[str, Any],
    layers: Any,
    pool: str,
    device: Any,
    splits: list[Any],
    averages: bool,
) -> list[Condition]:
    """Return the predictions of all models on all backbones."""
    stray = [name for name in layers if name not in named] if isinstance(layers, Mapping) else []
    if stray:
        raise UnknownNameError(
            f"`layers` names {stray[0]!r}, which is no backbone. {did_you_mean(stray[0], named)}"
        )
    conditions = []
    for label, backbone in named.items():
        fixed = _fixed_layer(backbone, layers.get(label) if isinstance(layers, Mapping) else layers)
        steps = backbone.check_layers(None) if fixed is None or RIDGE_LAYERS in models else []
        wanted = list(dict.fromkeys([*steps, *([] if fixed is None else [fixed])]))
        first = device if isinstance(device, str) else str(device[0])
        features = extract_features(backbone, task.stimuli, wanted, pool=pool, device=first)
        # Row by row as the responses are, which a stimulus may have several of.
        by_row = {name: one.values[task.stimulus] for name, one in features.items()}
        read = [fixed] * len(splits) if fixed else _best_layers(task, by_row, splits, models[RIDGE])
        facts = {key: str(next(iter(features.values())).attrs[key]) for key in FACTS}
        own = []
        for name, model in models.items():
            if name == RIDGE_LAYERS:
                steps_of = ["+".join(steps)] * len(splits)
                joined = np.concatenate([by_row[step] for step in steps], 1)
                said, history = _predictions(task, model, joined, splits)
                own.append(Condition(label, name, steps_of, said, facts, history))
            else:
                said, history = _by_layer(task, model, backbone, by_row, read, splits)
                own.append(Condition(label, name, read, said, facts, history))
        conditions += [*own, *(_averaged(own) if averages else [])]
    return conditions


def _fixed_layer(backbone: Backbone, given: str | None) -> str | None:
    """Return the one layer that a name or pattern means, or None where it is to be chosen."""
    if given is None:
        return None
    found = backbone.check_layers(given)
    if len(found) != 1:
        raise SchemaError(f"`layers` must mean one layer of {backbone.name}, but got {found}.")
    return found[0]


def _best_layers(
    task: Task, by_row: Mapping[str, np.ndarray], splits: list[Any], ridge: Any
) -> list[str]:
    """Return the layer from which ridge regression predicts best within each training set."""
    if len(by_row) == 1:
        return list(by_row) * len(splits)
    observed = task.rows.observed[:, task.used]
    best = []
    for train, _ in splits:
        inner = {}
        for name, values in by_row.items():
            labels = None if task.rows.labels is None else task.rows.labels[train]
            fitted = clone(ridge).fit(values[train], observed[train], groups=labels)
            inner[name] = float(np.nanmean(fitted.cv_score_))
        best.append(max(inner, key=lambda name: inner[name]))
    return best


def _by_layer(
    task: Task,
    model: Any,
    backbone: Backbone,
    by_row: Mapping[str, np.ndarray],
    read: list[str],
    splits: list[Any],
) -> tuple[list[np.ndarray], History]:
    """Return the predictions of a model that reads, in each fold, the layer of that fold."""
    found: list[np.ndarray] = [np.empty(0)] * len(splits)
    history: History = {}
    for layer in dict.fromkeys(read):
        folds = [fold for fold, one in enumerate(read) if one == layer]
        some = [splits[fold] for fold in folds]
        if takes_stimuli(model):
            place: dict[str, Any] = {"backbone": backbone, "backbone_options": None}
            if model.get_params(deep=False).get("layer") is None:
                place["layer"] = layer
            said, trained = _predictions(
                task, clone(model).set_params(**place), task.stimulus[:, None], some
            )
        else:
            said, trained = _predictions(task, model, by_row[layer], some)
        history |= {folds[number]: entries for number, entries in trained.items()}
        for fold, one in zip(folds, said, strict=True):
            found[fold] = one
    return found, history


def _predictions(
    task: Task, model: Any, features: np.ndarray, splits: list[Any]
) -> tuple[list[np.ndarray], History]:
    """Return the predictions of the test rows of each split, (n_test, n_used), and the training."""
    rows = task.with_splits(splits)
    ceilings = fold_ceilings(model, task.responses, rows, None, task.used)
    fits = Fits(model, rows, task.used, False, task.stimuli, ceilings)
    found = [np.full((len(test), int(task.used.sum())), np.nan, np.float32) for _, test in splits]
    for part in fits.predictions(features):
        found[part.fold][:, part.columns] = part.predicted.cpu().numpy()
    return found, fits.history


def _averaged(own: Sequence[Condition]) -> list[Condition]:
    """Return the means of each trained model and ridge regression on all layers."""
    linear = next((one for one in own if one.adaptation == RIDGE_LAYERS), None)
    if linear is None:
        return []
    return [
        one._replace(
            adaptation=one.adaptation + MEAN_WITH,
            history={},
            predictions=[
                (a + b) / 2 for a, b in zip(one.predictions, linear.predictions, strict=True)
            ],
        )
        for one in own
        if one.adaptation not in (RIDGE, RIDGE_LAYERS)
    ]
