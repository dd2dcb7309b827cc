"""Whether an adapted network is a better model of the responses than the frozen one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from neurodl.backbones import Backbone
from neurodl.errors import SchemaError
from neurodl.metrics import pearson_r, r2
from neurodl.schema import check_scores, sample_ids, target_coords, target_dim
from neurodl.scores._conditions import (
    FACTS,
    RIDGE,
    RIDGE_LAYERS,
    Condition,
    Task,
    checked_sizes,
    fit_all,
    models_of,
    named_backbones,
    thinned,
)
from neurodl.scores._fits import over_known
from neurodl.scores.crossval import own_ceiling, run_attrs, with_ceiling, with_training
from neurodl.scores.paired import OVER, mean_of, over_stimuli, over_targets, roi_masks

if TYPE_CHECKING:
    from neurodl.datasets.experiment import Experiment

logger = logging.getLogger(__name__)
DEFAULT = (RIDGE, RIDGE_LAYERS, "readout", "lora", "all")


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
    allow: Sequence[str] = (),
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
        groups where there are groups. Curves end with all of them (as many as the smallest fold
        has).
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
    allow
        See `cross_validate`.
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
    named = named_backbones(backbones)
    models = models_of(adaptations, options, device, seed)
    task = Task.of(experiment, named, models, cv, groups, seed, allow)
    sizes = checked_sizes(n_train, task.rows.splits)
    conditions = fit_all(task, named, models, layers, pool, device, task.rows.splits, averages)
    scores = _dataset(task, conditions)
    masks = roi_masks(task.rois(), int(task.used.sum()))
    scores = scores.merge(_gains(task, conditions, masks, n_resamples, seed))
    curve = []
    for size in sizes:
        logger.info("learning curve: %d training rows", size)
        splits = thinned(task.rows, size, seed)
        part = fit_all(task, named, models, layers, pool, device, splits, averages)
        curve.append(_r(task, part, splits))
    fewest = min(len(train) for train, _ in task.rows.splits)
    if sizes and sizes[-1] < fewest:  # curves end where all rows train, which were fitted above
        sizes.append(fewest)
        curve.append(_r(task, conditions, task.rows.splits))
    if sizes:
        scores = scores.merge(_curve(task, conditions, curve, sizes, masks, n_resamples, seed))
    scores = with_training(scores, [one.history for one in conditions])
    attrs = run_attrs(task.rows, groups, seed, task.used, experiment.responses, cv)
    scores = scores.assign_attrs(attrs | {"model": "comparison", "n_resamples": n_resamples})
    ceiling = own_ceiling(experiment.responses)
    return check_scores(scores if ceiling is None else with_ceiling(scores, ceiling))


def _score(
    task: Task, conditions: Sequence[Condition], splits: list[Any], score: Any
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


def _r(task: Task, conditions: Sequence[Condition], splits: list[Any]) -> np.ndarray:
    return _score(task, conditions, splits, pearson_r)


def _dataset(task: Task, conditions: Sequence[Condition]) -> xr.Dataset:
    """Return r and r2 of all targets, NaN for those that were not scored."""
    target = target_dim(task.rows.responses)
    found: dict[str, Any] = {}
    for name, score in (("r", pearson_r), ("r2", r2)):
        values = _score(task, conditions, task.rows.splits, score)
        whole = np.full((*values.shape[:2], len(task.used)), np.nan, np.float32)
        whole[..., task.used] = values
        found[name] = (("layer", "fold", target), whole)
    found["read_layer"] = (("layer", "fold"), np.array([one.read for one in conditions]))
    coords: dict[str, Any] = dict(target_coords(task.rows.responses))
    coords |= {
        "layer": [f"{one.backbone}/{one.adaptation}" for one in conditions],
        "fold": np.arange(len(task.rows.splits)),
        "n_test": ("fold", [len(test) for _, test in task.rows.splits]),
        "adaptation": ("layer", [one.adaptation for one in conditions]),
        "backbone": ("layer", [one.backbone for one in conditions]),
        **{key: ("layer", [one.facts[key] for one in conditions]) for key in FACTS},
    }
    return xr.Dataset(found, coords)


def _references(conditions: Sequence[Condition]) -> list[int]:
    """Return where ridge regression on the backbone of each condition is."""
    ridge = {one.backbone: n for n, one in enumerate(conditions) if one.adaptation == RIDGE}
    return [ridge[one.backbone] for one in conditions]


def _gains(
    task: Task,
    conditions: Sequence[Condition],
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
    task: Task,
    conditions: Sequence[Condition],
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
                    "r": mean_of(r.sel(layer=label).values[masks[roi]]),
                    "gain": float(one["gain"]),
                    **intervals,
                    "share_better": float(one["share_better"]),
                    "beats_from": _beats_from(one),
                }
            )
    return pd.DataFrame(rows)


def _beats_from(one: xr.Dataset) -> float:
    """Return the fewest training rows from which on the interval stays above 0."""
    if "n_train" not in one.dims:
        return float("nan")
    above = one["gain_by_n_train_low"].values > 0
    n_last = int(np.argmin(above[::-1])) if not above.all() else len(above)
    return float(one["n_train"].values[len(above) - n_last]) if n_last else float("nan")
