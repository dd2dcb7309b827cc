"""What in a study file does not go together, or names something that does not exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neurodl.backbones import list_backbones
from neurodl.errors import FileFormatError, UnknownNameError, did_you_mean
from neurodl.features.pca import StreamedPCA
from neurodl.features.reduce import parse_reduction
from neurodl.io.store import read_attrs
from neurodl.study.models import model_problems, takes_kernel
from neurodl.study.sections import FeaturesSection, Study

# What a [[features]] entry may say, by where its features come from.
USED_KEYS = {
    "backbone": (
        "weights", "pretrained", "seed", "layers", "pool", "time", "transform", "options",
        "concatenate", "kernel", "reduce", "reduce_fit", "memory",
    ),
    "path": ("concatenate",),
    "design": ("column", "delays"),
}  # fmt: skip


def conflicts(study: Study) -> Iterator[str]:
    """Yield one line for everything that does not go together."""
    sources = [name for name in ("responses", "dataset", "bids") if getattr(study, name)]
    if len(sources) != 1:
        have = " and ".join(f"[{name}]" for name in sources) or "none of them"
        choices = "[responses], [dataset] and [bids]"
        yield f"one of {choices} says what was recorded, but there is {have}."
    if study.dataset and study.stimuli:
        yield "[stimuli] has no place beside [dataset], which brings its own."
    if study.betas and not (study.bids or (study.responses and study.responses.events)):
        yield "[betas] needs [bids], or [responses] with events."
    for number, entry in enumerate(study.features):
        yield from _entry_problems(place("features", number, study.features), entry, study)
    labels = study.labels()
    for label in sorted({label for label in labels if labels.count(label) > 1}):
        n = labels.count(label)
        yield f"[[features]] label: {label!r} names {n} entries; give each a label."
    yield from model_problems(study)
    yield from _unknown_backbones(study)


def place(section: str, number: int | None, entries: Any) -> str:
    """Return a section as it stands in a file, with its number among several entries."""
    if section != "features" or number is None:
        return f"[{section}]"
    return f"[[features]]{f' {number + 1}' if len(entries) > 1 else ''}"


def kinds(entry: FeaturesSection) -> list[str]:
    """Return where features come from: one of `USED_KEYS`, if the entry is right."""
    return [kind for kind in USED_KEYS if getattr(entry, kind)]


def used_keys(entry: FeaturesSection) -> set[str]:
    """Return the keys that say something for an entry, besides where its features come from."""
    keys = set(USED_KEYS[kinds(entry)[0]])
    if entry.kernel:
        keys -= {"reduce", "reduce_fit"}
    else:
        keys -= {"memory"}
    return keys if _is_pca(entry) else keys - {"reduce_fit"}


def _entry_problems(where: str, entry: FeaturesSection, study: Study) -> Iterator[str]:
    """Yield what is wrong with one [[features]] entry."""
    have = kinds(entry)
    if len(have) != 1:
        text = " and ".join(have) or "none of them"
        yield f"{where}: give one of backbone, path and design, but there is {text}."
        return
    kind = have[0]
    yield from _unused_keys(where, kind, entry)
    yield from _reduction_problems(where, entry)
    yield from _kernel_problems(where, entry, study)
    if kind == "backbone" and not (study.stimuli or study.dataset):
        yield f"{where} backbone: a network needs [stimuli] to look at."
    if kind == "design" and (study.betas or study.dataset):
        yield f"{where} design: it explains time series, but there is [betas] or [dataset]."
    if kind == "design" and study.responses and not study.responses.events:
        yield f"{where} design: it needs [responses] events."
    if entry.design == "fir" and not entry.delays:
        yield f"{where} delays: design = 'fir' needs lags, such as delays = [1, 2, 3, 4]."


def _unused_keys(where: str, kind: str, entry: FeaturesSection) -> Iterator[str]:
    """Yield the keys that say nothing for this kind of features."""
    given = entry.model_fields_set - {kind, "label"}
    for key in sorted(given - set(USED_KEYS[kind])):
        yield f"{where} {key}: it says nothing beside {kind}; leave it out."
    for key in sorted(given & set(USED_KEYS[kind]) - used_keys(entry)):
        if entry.kernel:
            yield f"{where} {key}: it says nothing beside kernel = true; leave it out."
        else:
            needed = "kernel = true" if key == "memory" else "reduce = 'pca:100'"
            yield f"{where} {key}: it goes with {needed}; leave it out."
    if entry.path and not entry.path.endswith((".zarr", ".nc")):
        yield f"{where} path: features are read from .zarr or .nc, but this is {entry.path}."
    if kind == "backbone" and entry.weights and "pretrained" in entry.model_fields_set:
        yield f"{where} pretrained: the weights come from a file; leave it out."
    if kind == "backbone" and entry.seed is not None and (entry.pretrained or entry.weights):
        yield f"{where} seed: it is for untrained networks, with pretrained = false; leave it out."
    if entry.design in ("glover", "spm") and entry.delays:
        yield f"{where} delays: they go with design = 'fir', not with an HRF."


def _is_pca(entry: FeaturesSection) -> bool:
    try:
        return isinstance(parse_reduction(entry.reduce), StreamedPCA)
    except UnknownNameError:
        return False


def _reduction_problems(where: str, entry: FeaturesSection) -> Iterator[str]:
    """Yield what is wrong with how features are reduced, or how much memory a kernel has."""
    try:
        parse_reduction(entry.reduce)
    except UnknownNameError:
        meaning = FeaturesSection.model_fields["reduce"].description
        yield f"{where} reduce: expected {meaning}, but got {entry.reduce!r}."
    if _is_pca(entry) and not entry.kernel and entry.reduce_fit is None:
        yield (
            f"{where} reduce_fit: 'pca' of all stimuli would let the test stimuli shape the "
            "features. Name the training stimuli; or say pca = 100 in [model], which each fold "
            "fits to its own training rows."
        )
    if entry.memory != "auto" and not entry.memory > 0:
        yield f"{where} memory: expected a number of GiB > 0, but got {entry.memory}."


def _kernel_problems(where: str, entry: FeaturesSection, study: Study) -> Iterator[str]:
    """Yield where kernels meet a model of features, or features a model of kernels."""
    try:
        is_kernel = _is_kernel(entry)
    except FileFormatError as error:
        yield f"{where} path: {error}"
        return
    wanted, key = takes_kernel(study.model), "path" if entry.path else "kernel"
    if is_kernel and not wanted:
        yield (
            f"{where} {key}: kernels go with a model of kernels: [model] name = 'kernel_ridge' and "
            "kernel = 'precomputed'."
        )
    if wanted and not is_kernel:
        way = {"backbone": "say kernel = true here", "path": "give the path of kernels"}
        first = way.get(kinds(entry)[0], "a design has none")
        yield (
            f"{where} {key}: [model] kernel = 'precomputed' takes kernels, but these are features: "
            f"{first}, or choose another kernel there."
        )


def _is_kernel(entry: FeaturesSection) -> bool:
    """Return whether an entry is of kernels, as it says or as its file does."""
    readable = entry.path and entry.path.endswith((".zarr", ".nc")) and Path(entry.path).exists()
    if not entry.path or not readable:
        return entry.kernel
    return any(attrs.get("kind") == "kernel" for attrs in read_attrs(entry.path))


def _unknown_backbones(study: Study) -> Iterator[str]:
    named = [(n, entry.backbone) for n, entry in enumerate(study.features) if entry.backbone]
    if not named:
        return
    known = list_backbones()
    for number, name in named:
        published = name.rpartition(".")[0] if name.startswith("torchvision:") else name
        if name not in known and published not in known:
            where = place("features", number, study.features)
            yield f"{where} backbone: there is no {name!r}. {did_you_mean(name, known)}"
