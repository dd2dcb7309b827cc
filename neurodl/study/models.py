"""The models that a study can name: which class each is, and which keys of [model] it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from neurodl import __version__, models
from neurodl.errors import listed
from neurodl.study.sections import ModelSection, Study

COMMON = ("cv", "scoring", "standardize", "sd_floor")
TIMED = ("delays", "centre")
NETWORK = (
    "loss", "hidden_size", "n_layers", "bidirectional", "dropout", "lr", "weight_decay",
    "batch_size", "max_epochs", "patience", "validation", "max_length",
)  # fmt: skip
# Parameters that no key sets: [run] and [study] have the first two; results do not depend on the
# next two; targets with missing values are left out before a model could see them.
ELSEWHERE = ("device", "seed", "screening", "tol", "nan_targets")


class ModelKind(NamedTuple):
    """A model as a study names it.

    estimator : its class in neurodl.models
    keys : its parameters that [model] sets, first its first one
    kernels : what `kernel` may be
    """

    estimator: str
    keys: tuple[str, ...]
    kernels: tuple[str, ...] = ()


MODELS: Mapping[str, ModelKind] = {
    "ridge": ModelKind("RidgeCV", ("alphas", *COMMON, *TIMED)),
    "kernel_ridge": ModelKind(
        "KernelRidgeCV",
        ("alphas", "kernel", "gamma", *COMMON),
        ("linear", "rbf", "cosine", "precomputed"),
    ),
    "banded_ridge": ModelKind(
        "BandedRidgeCV",
        ("alphas", "bands", "alphas_by_band", "kernel", "refine", *COMMON, *TIMED),
        ("linear", "precomputed"),
    ),
    "stacked_ridge": ModelKind(
        "StackedRidgeCV",
        ("alphas", "bands", "combine", "regions", "kernel", *COMMON),
        ("linear", "precomputed"),
    ),
    "pls": ModelKind("PLS", ("n_components", "targets", *COMMON, *TIMED)),
    "reduced_rank_ridge": ModelKind(
        "ReducedRankRidgeCV", ("alphas", "ranks", "cv", "standardize", "sd_floor", *TIMED)
    ),
    "fractional_ridge": ModelKind("FractionalRidgeCV", ("fractions", *COMMON, *TIMED)),
    "poisson_ridge": ModelKind("PoissonRidgeCV", ("alphas", "cv", "standardize", "sd_floor")),
    "sequence_encoder": ModelKind("SequenceEncoder", ("cell", *NETWORK)),
}


def takes_kernel(model: ModelSection) -> bool:
    """Return whether a model is fitted to kernels."""
    return "kernel" in MODELS[model.name].keys and model.kernel == "precomputed"


def model_keys(model: ModelSection) -> list[str]:
    """Return the keys that say something for a model, besides name and pca."""
    idle = set()
    if model.kernel != "rbf":
        idle |= {"gamma"}
    if takes_kernel(model):
        idle |= {"standardize", "sd_floor"}
    return [key for key in MODELS[model.name].keys if key not in idle]


def model_arguments(model: ModelSection) -> dict[str, Any]:
    """Return what the keys of [model] say, by parameter; first the first one."""
    values = {key: getattr(model, key) for key in model_keys(model)}
    return {key: value for key, value in values.items() if value is not None}


def model_problems(study: Study) -> Iterator[str]:
    """Yield what is wrong with [model] by itself, or with what the study has beside it."""
    model, kind = study.model, MODELS[study.model.name]
    if kind.estimator not in models.__all__:
        there = [name for name, one in MODELS.items() if one.estimator in models.__all__]
        yield (
            f"[model] name: {model.name!r} is {kind.estimator}, which neurodl {__version__} does "
            f"not have. There are: {listed(there, 20)}."
        )
    if kind.kernels and model.kernel not in kind.kernels:
        yield (
            f"[model] kernel: {model.name} has {' or '.join(map(repr, kind.kernels))}, but got "
            f"{model.kernel!r}."
        )
    whole = f"{model.name} with kernel = {model.kernel!r}" if kind.kernels else model.name
    for key in sorted(model.model_fields_set - {"name", "pca", *model_keys(model)}):
        yield f"[model] {key}: it says nothing for {whole}; leave it out."
    yield from _pca_problems(model)
    stimuli = [entry for entry in study.features if entry.backbone]
    if "delays" in kind.keys and model.delays and stimuli:
        yield (
            f"[model] delays: they are of time series, but the rows of {stimuli[0].backbone} are "
            "stimuli, which do not follow each other."
        )
    if model.name == "sequence_encoder" and stimuli:
        yield (
            "[model] name: 'sequence_encoder' is of time series, but the rows of "
            f"{stimuli[0].backbone} are stimuli, which do not follow each other."
        )
    if "centre" in kind.keys and model.centre == "runs" and study.cv.groups is None:
        yield (
            "[model] centre: 'runs' needs folds that do not cut runs: say groups = 'run' in [cv]."
        )


def _pca_problems(model: ModelSection) -> Iterator[str]:
    if model.pca is None:
        return
    if model.pca < 1:
        yield f"[model] pca: expected a whole number of components from 1, but got {model.pca}."
    if takes_kernel(model):
        yield "[model] pca: it is of features, but kernel = 'precomputed' takes kernels."
    if "bands" in MODELS[model.name].keys:
        yield f"[model] pca: its components mix the bands that {model.name} keeps apart."
