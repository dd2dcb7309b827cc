"""A study as a plain script of public calls: what `run_study` executes and leaves behind."""

from __future__ import annotations

from typing import Any

from neurodl import __version__
from neurodl.study.models import MODELS, model_arguments
from neurodl.study.sections import FeaturesSection, Study

LINE = 92


class Name(str):
    """An expression that stands in a script as it is, where other text is quoted."""


def analysis_script(study: Study, *, keep_scores: bool = True) -> str:
    """Return a Python script that computes a study through the public API.

    Unless `keep_scores` is False, the scores of each layer are kept in the study's cache, if it
    has one, so that the script goes on with the next one after an interruption.

    It leaves ``experiment`` and ``scores`` in its namespace; run as a program, it also writes a
    report beside itself.
    """
    title = study.study.title or study.study.name
    name = " ".join(study.study.name.split()).replace("\\", " ").replace('"', "'")
    return "\n\n".join(
        [
            f'"""Analysis of the study "{name}", written by neurodl {__version__}.\n\n'
            'Run it to compute the scores again and to write a report beside this file.\n"""',
            "from pathlib import Path\n\nimport neurodl as ndl"
            + ("\nfrom sklearn.pipeline import make_pipeline" if study.model.pca else ""),
            *script_parts(study, keep_scores=keep_scores),
            'if __name__ == "__main__":\n'
            f"    report = ndl.report(scores, experiment, title={_quoted(title)})\n"
            '    print(report.save(Path(__file__).with_name("analysis.html")))\n',
        ]
    )


def script_parts(study: Study, *, keep_scores: bool = True) -> tuple[str, str, str]:
    """Return the lines that open the data, that make the features, and that score them."""
    several = len(study.features) > 1
    entries = zip(study.features, study.labels(), strict=True)
    made = [_features(entry, label, study, several) for entry, label in entries]
    return _experiment(study), "\n\n".join(["features = {}", *made]), _scores(study, keep_scores)


def call(function: str, *args: Any, **kwargs: Any) -> str:
    """Return a function call as source text, on several lines where one is too long.

    Examples
    --------
    >>> print(call("ndl.load", "a.nc", Name("folder"), seed=1))
    ndl.load("a.nc", folder, seed=1)
    """
    parts = [_literal(value) for value in args]
    parts += [f"{key}={_literal(value)}" for key, value in kwargs.items()]
    return _enclosed(f"{function}(", parts, ")")


def _enclosed(start: str, parts: list[str], end: str) -> str:
    """Return `parts` between brackets, one per line if they do not fit into one."""
    line = start + ", ".join(parts) + end
    if len(line) <= LINE and "\n" not in line:
        return line
    inner = ",\n".join(parts).replace("\n", "\n    ")
    return f"{start}\n    {inner},\n{end}"


def _literal(value: Any) -> str:
    """Return a value as source text."""
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, list):
        return _enclosed("[", [_literal(one) for one in value], "]")
    if isinstance(value, dict):
        items = [f"{_literal(key)}: {_literal(one)}" for key, one in value.items()]
        return _enclosed("{", items, "}")
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    """Return text in double quotes where it has none inside.

    Examples
    --------
    >>> print(_quoted("a"), _quoted('say "a"'))
    "a" 'say "a"'
    """
    quoted = repr(text)
    return f'"{quoted[1:-1]}"' if quoted.startswith("'") and '"' not in text else quoted


def _given(**values: Any) -> dict[str, Any]:
    """Return the arguments that are set."""
    return {key: value for key, value in values.items() if value is not None}


def _experiment(study: Study) -> str:
    """Return the lines that open stimuli and responses."""
    common = _given(betas=_betas(study), name=study.study.name, unpaired=study.run.unpaired)
    if study.dataset:
        chosen = study.dataset
        options = _given(root=chosen.root, subject=chosen.subject, roi=chosen.roi)
        return "experiment = " + call("ndl.load_dataset", chosen.name, **options, **chosen.options)
    stimuli: dict[str, Any] = {}
    if study.stimuli:
        shown = study.stimuli
        stimuli = _given(
            stimuli=shown.path,
            stimuli_ids=_ids(shown.ids),
            stimuli_key=shown.key,
            n_frames=shown.n_frames,
            fps=shown.fps,
            value_range=shown.value_range,
        )
    if study.bids:
        options = study.bids.model_dump(exclude_none=True)
        root = options.pop("root")
        if options["derivatives"] == "none":
            options["derivatives"] = None
        return "experiment = " + call(
            "ndl.Experiment.from_bids", root, **options, **stimuli, **common
        )
    assert study.responses is not None  # load_study sees to it
    options = study.responses.model_dump(exclude_none=True)
    return "experiment = " + call(
        "ndl.Experiment.from_files", **stimuli, responses=options.pop("path"), **options, **common
    )


def _ids(ids: str | list[str] | None) -> Any:
    """Return ids as an argument: a list, or what reads the file that has one per line."""
    return Name(f"Path({ids!r}).read_text().splitlines()") if isinstance(ids, str) else ids


def _betas(study: Study) -> dict[str, Any] | None:
    if study.betas is None:
        return None
    options = study.betas.model_dump(exclude_none=True)
    return options | {"drift": None} if options["drift"] == "none" else options


def _features(entry: FeaturesSection, label: str, study: Study, several: bool) -> str:
    """Return the lines that add one feature space, or the layers of one network."""
    if entry.design:
        fir = entry.design == "fir"
        lags = entry.delays if fir else None
        made = call(
            "ndl.event_design",
            Name("experiment.events"),
            Name("experiment.responses"),
            column=entry.column,
            hrf=None if fir else entry.design,
            **_given(delays=lags),
        )
        return f"features[{_quoted(label)}] = {made}"
    if entry.path:
        loaded = call("ndl.load", entry.path)
        one = not entry.path.endswith(".zarr")
        lines = [f"layers = {{{_quoted(label)}: {loaded}}}" if one else f"layers = {loaded}"]
    else:
        lines = _extraction(entry, study)
    if entry.concatenate:
        lines.append("layers |= ndl.concatenate_features(layers)")
    name = f'f"{label}/{{layer}}"' if several and _plain(label) else "layer"
    if several and not _plain(label):
        name = f"{label + '/'!r} + layer"
    lines.append(f"features |= {{{name}: values for layer, values in layers.items()}}")
    return "\n".join(lines)


def _plain(label: str) -> bool:
    """Return whether a label can stand in an f-string as it is."""
    return not set(label) & set('{}"\\\n')


def _extraction(entry: FeaturesSection, study: Study) -> list[str]:
    """Return the lines that load a network and extract its features or kernels."""
    options = _given(
        weights=entry.weights,
        pretrained=None if entry.pretrained else False,
        seed=entry.seed if entry.pretrained or entry.seed is not None else study.study.seed,
        transform=entry.transform,
    )
    run = study.run
    extraction = _given(
        layers=entry.layers,
        pool=entry.pool,
        time=None if entry.time == "mean" else entry.time,
        reduce=None if entry.reduce == "none" else entry.reduce,
        reduce_fit=_ids(entry.reduce_fit),
        memory=entry.memory if entry.kernel else None,
        device=run.device,
        batch_size=run.batch_size,
        amp=run.amp,
        cache=run.cache,
        on_unreadable=run.on_unreadable,
    )
    return [
        "backbone = " + call("ndl.load_backbone", entry.backbone, **options, **entry.options),
        "layers = "
        + call(
            "ndl.extract_kernels" if entry.kernel else "ndl.extract_features",
            Name("backbone"),
            Name("experiment.stimuli"),
            **extraction,
        ),
    ]


def _model(study: Study) -> str:
    """Return the expression that makes the model, behind its principal components if it has any."""
    (_, first), *others = model_arguments(study.model).items()
    device = study.run.device
    model = call(
        f"ndl.{MODELS[study.model.name].estimator}",
        first,
        **dict(others),
        device=device,
        seed=study.study.seed,
    )
    if study.model.pca is None:
        return model
    pca = call("ndl.StreamedPCA", study.model.pca, device=device)
    return call("make_pipeline", Name(pca), Name(model))


def _scores(study: Study, keep: bool) -> str:
    """Return the lines that cross-validate."""
    responses = "experiment.responses"
    if study.dataset and study.dataset.stack:
        responses = f"ndl.stack_repeats({responses})"
    cache = True if study.run.cache is None else study.run.cache
    dropped = study.run.unpaired == "drop" or study.run.on_unreadable == "skip"
    lines = [
        f"model = {_model(study)}",
        "scores = "
        + call(
            "ndl.cross_validate",
            Name("model"),
            Name("features"),
            Name(responses),
            cv=study.cv.folds,
            groups=study.cv.groups,
            seed=study.study.seed,
            **_given(allow=study.cv.allow or None),
            keep_predictions=study.run.keep_predictions,
            unpaired="drop" if dropped else "error",
            cache=keep and cache,
        ),
        'scores.attrs["experiment"] = experiment.name',
    ]
    return "\n".join(lines)
