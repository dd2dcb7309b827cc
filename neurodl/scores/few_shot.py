"""A new subject with few stimuli: what a core tuned on others is worth, and what alignment is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import xarray as xr

from neurodl.errors import SchemaError, UnknownNameError
from neurodl.metrics import pearson_r
from neurodl.models import Hyperalignment, NeuralEncoder
from neurodl.responses import average_repeats
from neurodl.runtime import derive_seed
from neurodl.schema import check_responses, sample_ids, target_coords, target_dim
from neurodl.scores.pairing import paired, stimulus_rows
from neurodl.stimuli import Stimuli

WAYS = ("tuned", "pretrained", "procrustes", "ridge")


def few_shot_curve(
    model: NeuralEncoder,
    stimuli: Stimuli,
    responses: xr.DataArray,
    n_stimuli: Sequence[int],
    *,
    shared: xr.DataArray | None = None,
    ways: Sequence[str] | None = None,
    readout: str | None = None,
    n_draws: int = 3,
    test_size: float = 0.25,
    seed: int = 0,
) -> xr.Dataset:
    """Return how well few responses of a new subject suffice to predict the rest.

    Four ways are compared on the same training and test stimuli: a readout of the core that was
    tuned on others ("tuned"), one of the network as it was before ("pretrained"), and functional
    alignment, by rotation ("procrustes") or by "ridge" regression, of what the model predicts for
    its own targets.

    Parameters
    ----------
    model : NeuralEncoder
        Fitted to others' responses, none of them to the test stimuli if `shared` are these.
    stimuli : Stimuli
    responses : xarray.DataArray, dims (stimulus, target)
        Of the new subject.
    n_stimuli : sequence of int
        How many stimuli to fit to, at least 8.
    shared : xarray.DataArray, dims (stimulus, target), optional
        Responses of the model's own targets to the same stimuli, for alignment.
    ways : sequence of str, optional
        By default all, those of alignment if there are `shared`.
    readout : str, optional
        Of the new subject; by default the model's.
    n_draws : int
        How many random sets of each size.
    test_size : float
        Share of the stimuli on which all are scored.
    seed : int

    Returns
    -------
    xarray.Dataset
        ``r`` (way, draw, n_stimuli, target).

    Raises
    ------
    UnknownNameError
        There is no such way.
    SchemaError
        Alignment has no `shared`, its targets are others than the model's, or there are fewer
        stimuli than asked for.
    """
    check_responses(responses)
    chosen = list(WAYS[: 4 if shared is not None else 2]) if ways is None else list(ways)
    unknown = [way for way in chosen if way not in WAYS]
    if unknown:
        raise UnknownNameError(f"`ways` must be among {WAYS}, but got {unknown}.")
    if shared is None and set(chosen) & {"procrustes", "ridge"}:
        raise SchemaError(
            "Alignment needs `shared`: responses of the model's own targets to the same stimuli."
        )
    if "repeat" in responses.dims:
        responses = average_repeats(responses)
    rows, responses = paired(stimulus_rows(model, stimuli), responses, "error")
    if not sample_ids(responses).is_unique:
        raise SchemaError(
            "Presentations of one stimulus could train and test: average them first "
            "(average_repeats)."
        )
    stimulus = next(iter(rows.values())).values[:, 0].astype(int)
    y = responses.values.astype(np.float32)
    order = np.random.default_rng(derive_seed(seed, "test")).permutation(len(y))
    n_test = max(2, round(test_size * len(y)))
    test, pool = order[:n_test], order[n_test:]
    if not 8 <= min(n_stimuli) <= max(n_stimuli) <= len(pool):
        raise SchemaError(
            f"`n_stimuli` must be from 8 to the {len(pool)} stimuli that are not tested, but got "
            f"{list(n_stimuli)}."
        )
    splits = [
        (np.random.default_rng(derive_seed(seed, "draw", draw)).permutation(pool)[:n], test)
        for draw in range(n_draws)
        for n in n_stimuli
    ]
    shown = torch.utils.data.Subset(stimuli, stimulus.tolist())
    changes = {"readout": model.readout if readout is None else readout, "seed": seed}
    reference = None if shared is None else _reference(model, shared, responses)
    found = np.full((len(chosen), n_draws * len(n_stimuli), y.shape[1]), np.nan, np.float32)
    for way, name in enumerate(chosen):
        if name in ("procrustes", "ridge") and reference is not None:
            known = model.predict(torch.utils.data.Subset(stimuli, stimulus[test].tolist()))
            predictions = _by_alignment(name, reference, known, y, splits, seed)
        else:
            fresh = model.for_new_subject(**changes)
            if name == "pretrained":
                fresh.set_params(backbone=model.opened()[0])
            predictions = (part.predicted for part in fresh.predict_folds(shown, y, splits))
        for number, predicted in enumerate(predictions):
            found[way, number] = pearson_r(predicted, torch.as_tensor(y[test])).numpy()
    target = target_dim(responses)
    shape = (len(chosen), n_draws, len(n_stimuli), y.shape[1])
    coords = target_coords(responses)
    return xr.Dataset(
        {"r": (("way", "draw", "n_stimuli", target), found.reshape(shape))},
        coords | {"way": chosen, "n_stimuli": list(n_stimuli), "draw": np.arange(n_draws)},
        {"backbone": model.describe()["backbone"], "n_test": n_test, "seed": seed},
    )


def _by_alignment(
    method: str,
    reference: np.ndarray,
    known: np.ndarray,
    y: np.ndarray,
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
    seed: int,
) -> Iterator[torch.Tensor]:
    """Yield what the model's predictions `known` of the test rows tell of the new subject."""
    for train, _ in splits:
        aligned = Hyperalignment(method, seed=seed).fit([reference[train], y[train]])
        yield torch.as_tensor(aligned.predict(known, source=0, target=1), dtype=torch.float32)


def _reference(model: NeuralEncoder, shared: xr.DataArray, responses: xr.DataArray) -> np.ndarray:
    """Return the responses of the model's own targets, row by row as the new subject's."""
    check_responses(shared)
    if "repeat" in shared.dims:
        shared = average_repeats(shared)
    rows, _ = paired({"shared": shared}, responses, "error")
    values = np.asarray(rows["shared"].values)
    if values.shape[1] != len(model.mean_):
        raise SchemaError(
            f"`shared` has {values.shape[1]} targets, but the model was fitted to "
            f"{len(model.mean_)}."
        )
    return values
