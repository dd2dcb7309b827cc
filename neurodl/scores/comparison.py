"""Whether an adapted network is a better model of the responses than the frozen one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from sklearn.base import clone

from neurodl.backbones import Backbone, load_backbone
from neurodl.errors import SchemaError, UnknownNameError, did_you_mean
from neurodl.features import extract_features
from neurodl.metrics import pearson_r, r2
from neurodl.models import NeuralEncoder, RidgeCV
from neurodl.runtime import derive_seed
from neurodl.schema import check_responses, check_scores, sample_ids, target_dim
from neurodl.scores._fits import Fits, Rows, over_known
from neurodl.scores.crossval import (
    fold_ceilings,
    own_ceiling,
    paired_rows,
    run_attrs,
    used_targets,
    with_ceiling,
)
from neurodl.scores.paired import OVER, over_stimuli, over_targets, roi_masks
from neurodl.scores.pairing import row_numbers, takes_stimuli

if TYPE_CHECKING:
    from neurodl.datasets.experiment import Experiment

logger = logging.getLogger(__name__)
RIDGE, RIDGE_LAYERS = "ridge", "ridge, all layers"
TUNED = {"readout": None, "last": "last", "lora": "lora", "all": "all"}
ADAPTATIONS = (RIDGE, RIDGE_LAYERS, *TUNED)
DEFAULT = (RIDGE, RIDGE_LAYERS, "readout", "lora", "all")
MEAN_WITH = f" + {RIDGE_LAYERS}"


def compare(
    experiment: Experiment,
    backbones: Sequence[str | Backbone] | Mapping[str, str | Backbone],
    adaptations: Sequence[str] | Mapping[str, Any] = DEFAULT,
    *,
    n_train: Sequence[int] = (),
    layers: Mapping[str, str] | str | None = None,
    averages: bool = True,
    cv: Any = 5,
    groups: Any = None,
    seed: int = 0,
    pool: str = "spatial:7",
    device: Any = "auto",
    n_resamples: int = 1000,
    **options: Any,
) -> xr.Dataset:
    """Return how well frozen and adapted networks predict the same held-out responses.

    All are fitted to the same training rows and scored on the same test rows. What any of them
    gains over frozen ridge regression has two intervals, from resampling targets and from
    resampling the stimuli of each test fold; all models are resampled alike.

    Parameters
    ----------
    experiment : Experiment
        With stimuli and responses.
    backbones : sequence of str or Backbone, or mapping of label to one
    adaptations : sequence of str, or mapping of name to estimator
        "ridge" on the frozen layer, which is always among them; "ridge, all layers" on all coarse
        steps side by side; "readout" trained on the frozen layer; "last", "lora" and "all", see
        `NeuralEncoder`. Or models of your own by name; one that takes stimuli gets the backbone,
        and the layer unless it names one.
    n_train : sequence of int
        For learning curves: fit also to so many of the training rows of each fold, of whole
        groups where there are groups.
    layers : str, or mapping of backbone to str, optional
        The layer that is read. By default the one that ridge regression predicts best from, told
        in each fold by inner folds of its training rows.
    averages : bool
        Whether to add, for each trained model, the mean of its predictions and of those of "ridge,
        all layers", where that is among the adaptations.
    cv, groups, seed
        See `cross_validate`.
    pool : str
        Of the features of frozen ridge regression.
    device : str
    n_resamples : int
        Of each bootstrap.
    **options
        Parameters of all `NeuralEncoder`, such as ``readout``, ``loss`` or ``max_epochs``.

    Returns
    -------
    xarray.Dataset
        Scores as of `cross_validate`, whose layers are the conditions ``"backbone/adaptation"``,
        with the coords adaptation and backbone, and ``read_layer`` (layer, fold). Beside them, to
        "ridge" of the same backbone, ``gain`` (gain_roi, layer), the mean difference of r;
        ``gain_low`` and ``gain_high`` (over, gain_roi, layer), its 95 % intervals; and
        ``share_better`` (gain_roi, layer), the share of targets that gain. With `n_train` also
        ``r_by_n_train`` (n_train, layer, fold, target), ``gain_by_n_train``, and its intervals
        over targets ``gain_by_n_train_low`` and ``gain_by_n_train_high`` (n_train, gain_roi,
        layer). See `comparison_table`.

    Raises
    ------
    UnknownNameError
        There is no such adaptation, backbone, layer or parameter.
    SchemaError
        A fold has fewer training rows than `n_train` asks for, or the experiment lacks stimuli or
        responses.
    """
    if experiment.stimuli is None or experiment.responses is None:
        raise SchemaError("`compare` needs an experiment with stimuli and responses.")
    named = _named(backbones)
    models = _models(adaptations, options, device, seed)
    task = _Task.of(experiment, models, cv, groups, seed)
    sizes = _checked_sizes(n_train, task.rows.splits)
    conditions = _fits(task, named, models, layers, pool, device, task.rows.splits, averages)
    scores = _dataset(task, conditions)
    masks = roi_masks(task.rois(), int(task.used.sum()))
    scores = scores.merge(_gains(task, conditions, masks, n_resamples, seed))
    curve = []
    for size in sizes:
        logger.info("learning curve: %d training rows", size)
        splits = _thinned(task.rows, size, seed)
        part = _fits(task, named, models, layers, pool, device, splits, averages)
        curve.append(_r(task, part, splits))
    if sizes:
        scores = scores.merge(_curve(task, conditions, curve, sizes, masks, n_resamples, seed))
    attrs = run_attrs(task.rows, groups, seed, task.used, experiment.responses)
    scores = scores.assign_attrs(attrs | {"model": "comparison", "n_resamples": n_resamples})
    ceiling = own_ceiling(experiment.responses)
    return check_scores(scores if ceiling is None else with_ceiling(scores, ceiling))


class _Task(NamedTuple):
    """Stimuli and responses, paired, with folds, and the targets that can be scored."""

    stimuli: Any
    responses: xr.DataArray
    rows: Rows
    stimulus: np.ndarray  # which stimulus each row is
    used: np.ndarray

    @classmethod
    def of(cls, experiment: Any, models: dict[str, Any], cv: Any, groups: Any, seed: int) -> _Task:
        responses = check_responses(experiment.responses)
        numbered = {"stimulus": row_numbers(experiment.stimuli)}
        ridge = models[RIDGE]
        for model in models.values():
            if hasattr(model, "check_targets") and "roi" in responses.coords:
                model.check_targets(np.unique(responses["roi"].values.astype(str)))
        layers, rows = paired_rows(ridge, numbered, responses, cv, groups, seed)
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


class _Condition(NamedTuple):
    """One model on one backbone: its predictions of the test rows, fold by fold."""

    backbone: str
    adaptation: str
    read: list[str]
    predictions: list[np.ndarray]
    facts: Mapping[str, str]


def _named(backbones: Any) -> dict[str, Backbone]:
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


def _models(adaptations: Any, options: dict[str, Any], device: Any, seed: int) -> dict[str, Any]:
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


def _checked_sizes(n_train: Sequence[int], splits: Sequence[Any]) -> list[int]:
    sizes = sorted({int(n) for n in n_train})
    fewest = min(len(train) for train, _ in splits)
    if sizes and not 8 <= sizes[0] <= sizes[-1] <= fewest:
        raise SchemaError(
            f"`n_train` must be from 8 to the {fewest} training rows of the smallest fold, but got "
            f"{sizes}."
        )
    return sizes


def _thinned(rows: Rows, size: int, seed: int) -> list[Any]:
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


def _fits(
    task: _Task,
    named: Mapping[str, Backbone],
    models: Mapping[str, Any],
    layers: Any,
    pool: str,
    device: Any,
    splits: list[Any],
    averages: bool,
) -> list[_Condition]:
    """Return the predictions of all models on all backbones."""
    conditions = []
    for label, backbone in named.items():
        fixed = layers.get(label) if isinstance(layers, Mapping) else layers
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
                said = _predictions(task, model, joined, splits)
                own.append(_Condition(label, name, steps_of, said, facts))
            else:
                said = _by_layer(task, model, backbone, by_row, read, splits)
                own.append(_Condition(label, name, read, said, facts))
        conditions += [*own, *(_averaged(own) if averages else [])]
    return conditions


FACTS = ("weights", "weights_sha256", "transform", "licence")


def _best_layers(
    task: _Task, by_row: Mapping[str, np.ndarray], splits: list[Any], ridge: Any
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
    task: _Task,
    model: Any,
    backbone: Backbone,
    by_row: Mapping[str, np.ndarray],
    read: list[str],
    splits: list[Any],
) -> list[np.ndarray]:
    """Return the predictions of a model that reads, in each fold, the layer of that fold."""
    found: list[np.ndarray] = [np.empty(0)] * len(splits)
    for layer in dict.fromkeys(read):
        folds = [fold for fold, one in enumerate(read) if one == layer]
        some = [splits[fold] for fold in folds]
        if takes_stimuli(model):
            place: dict[str, Any] = {"backbone": backbone, "backbone_options": None}
            if model.get_params(deep=False).get("layer") is None:
                place["layer"] = layer
            said = _predictions(
                task, clone(model).set_params(**place), task.stimulus[:, None], some
            )
        else:
            said = _predictions(task, model, by_row[layer], some)
        for fold, one in zip(folds, said, strict=True):
            found[fold] = one
    return found


def _predictions(
    task: _Task, model: Any, features: np.ndarray, splits: list[Any]
) -> list[np.ndarray]:
    """Return the predictions of the test rows of each split, (n_test, n_used)."""
    rows = task.with_splits(splits)
    ceilings = fold_ceilings(model, task.responses, rows, None, task.used)
    fits = Fits(model, rows, task.used, False, task.stimuli, ceilings)
    found = [np.full((len(test), int(task.used.sum())), np.nan, np.float32) for _, test in splits]
    for part in fits.predictions(features):
        found[part.fold][:, part.columns] = part.predicted.cpu().numpy()
    return found


def _averaged(own: Sequence[_Condition]) -> list[_Condition]:
    """Return the means of each trained model and ridge regression on all layers."""
    linear = next((one for one in own if one.adaptation == RIDGE_LAYERS), None)
    if linear is None:
        return []
    return [
        one._replace(
            adaptation=one.adaptation + MEAN_WITH,
            predictions=[
                (a + b) / 2 for a, b in zip(one.predictions, linear.predictions, strict=True)
            ],
        )
        for one in own
        if one.adaptation not in (RIDGE, RIDGE_LAYERS)
    ]


def _score(
    task: _Task, conditions: Sequence[_Condition], splits: list[Any], score: Any
) -> np.ndarray:
    """Return a score (n_conditions, n_folds, n_used)."""
    observed = task.rows.observed[:, task.used]
    truth = [torch.as_tensor(observed[test]) for _, test in splits]
    return np.stack(
        [
            [
                over_known(score, torch.as_tensor(said), known)
                for said, known in zip(one.predictions, truth, strict=True)
            ]
            for one in conditions
        ]
    )


def _r(task: _Task, conditions: Sequence[_Condition], splits: list[Any]) -> np.ndarray:
    return _score(task, conditions, splits, pearson_r)


def _dataset(task: _Task, conditions: Sequence[_Condition]) -> xr.Dataset:
    """Return r and r2 of all targets, NaN for those that were not scored."""
    target = target_dim(task.rows.responses)
    found: dict[str, Any] = {}
    for name, score in (("r", pearson_r), ("r2", r2)):
        values = _score(task, conditions, task.rows.splits, score)
        whole = np.full((*values.shape[:2], len(task.used)), np.nan, np.float32)
        whole[..., task.used] = values
        found[name] = (("layer", "fold", target), whole)
    found["read_layer"] = (("layer", "fold"), np.array([one.read for one in conditions]))
    coords: dict[str, Any] = {
        str(name): one for name, one in task.rows.responses.coords.items() if one.dims == (target,)
    }
    coords |= {
        "layer": [f"{one.backbone}/{one.adaptation}" for one in conditions],
        "fold": np.arange(len(task.rows.splits)),
        "n_test": ("fold", [len(test) for _, test in task.rows.splits]),
        "adaptation": ("layer", [one.adaptation for one in conditions]),
        "backbone": ("layer", [one.backbone for one in conditions]),
        **{key: ("layer", [one.facts[key] for one in conditions]) for key in FACTS},
    }
    return xr.Dataset(found, coords)


def _references(conditions: Sequence[_Condition]) -> list[int]:
    """Return where ridge regression on the backbone of each condition is."""
    ridge = {one.backbone: n for n, one in enumerate(conditions) if one.adaptation == RIDGE}
    return [ridge[one.backbone] for one in conditions]


def _gains(
    task: _Task,
    conditions: Sequence[_Condition],
    masks: Mapping[str, np.ndarray],
    n_resamples: int,
    seed: int,
) -> xr.Dataset:
    """Return what the conditions gain over ridge regression, with both intervals."""
    splits, observed = task.rows.splits, task.rows.observed[:, task.used]
    r = _r(task, conditions, splits).mean(1)
    reference = _references(conditions)
    gain, low, high, better = over_targets(r, r[reference], masks, n_resamples, seed)
    ids = np.asarray(sample_ids(task.rows.responses)).astype(str)
    by_stimuli = over_stimuli(
        [one.predictions for one in conditions],
        [observed[test] for _, test in splits],
        [ids[test] for _, test in splits],
        reference,
        masks,
        n_resamples,
        seed,
    )
    dims = ("gain_roi", "layer")
    return xr.Dataset(
        {
            "gain": (dims, gain),
            "gain_low": (("over", *dims), np.stack([low, by_stimuli[0]])),
            "gain_high": (("over", *dims), np.stack([high, by_stimuli[1]])),
            "share_better": (dims, better),
        },
        {"gain_roi": list(masks), "over": list(OVER)},
    )


def _curve(
    task: _Task,
    conditions: Sequence[_Condition],
    curve: Sequence[np.ndarray],
    sizes: Sequence[int],
    masks: Mapping[str, np.ndarray],
    n_resamples: int,
    seed: int,
) -> xr.Dataset:
    """Return r and gains by the number of training rows."""
    target = target_dim(task.rows.responses)
    whole = np.full((*np.shape(curve)[:3], len(task.used)), np.nan, np.float32)
    whole[..., task.used] = curve
    reference = _references(conditions)
    found = [over_targets(r.mean(1), r.mean(1)[reference], masks, n_resamples, seed) for r in curve]
    dims = ("n_train", "gain_roi", "layer")
    named = {"gain_by_n_train": 0, "gain_by_n_train_low": 1, "gain_by_n_train_high": 2}
    return xr.Dataset(
        {
            "r_by_n_train": (("n_train", "layer", "fold", target), whole),
            **{name: (dims, np.stack([one[n] for one in found])) for name, n in named.items()},
        },
        {"n_train": list(sizes)},
    )


def comparison_table(scores: xr.Dataset) -> pd.DataFrame:
    """Return the scores of `compare` as a table, a row per region and condition.

    Returns
    -------
    pandas.DataFrame
        Columns roi, backbone, adaptation, r (mean over folds, then targets), gain over ridge
        regression, its intervals over targets and over stimuli, share_better, and beats_from, the
        fewest training rows from which the interval over targets is above 0 (NaN if it never is,
        or without a learning curve).
    """
    if "gain" not in scores:
        raise SchemaError("The scores are of no comparison; make them with compare(...).")
    target = target_dim(scores["r"])
    r = scores["r"].mean("fold")
    rois = scores["roi"].values.astype(str) if "roi" in scores.coords else None
    masks = roi_masks(rois, scores.sizes[target])
    rows = []
    for roi in scores["gain_roi"].values.tolist():
        for number, label in enumerate(scores["layer"].values.tolist()):
            one = scores.isel(layer=number).sel(gain_roi=roi)
            intervals = {
                f"{side}_over_{over}": float(one[f"gain_{side}"].sel(over=over))
                for over in OVER
                for side in ("low", "high")
            }
            rows.append(
                {
                    "roi": roi,
                    "backbone": str(one["backbone"].values),
                    "adaptation": str(one["adaptation"].values),
                    "r": _mean(r.sel(layer=label).values[masks[roi]]),
                    "gain": float(one["gain"]),
                    **intervals,
                    "share_better": float(one["share_better"]),
                    "beats_from": _beats_from(one),
                }
            )
    return pd.DataFrame(rows)


def _mean(values: np.ndarray) -> float:
    """Return the mean of what is not NaN, NaN where nothing is left."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _beats_from(one: xr.Dataset) -> float:
    """Return the fewest training rows from which on the interval stays above 0."""
    if "n_train" not in one.dims:
        return float("nan")
    above = one["gain_by_n_train_low"].values > 0
    n_last = int(np.argmin(above[::-1])) if not above.all() else len(above)
    return float(one["n_train"].values[len(above) - n_last]) if n_last else float("nan")
