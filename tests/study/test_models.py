"""The models of a study: the table has what their constructors have, and scripts call them so."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import neurodl as ndl
import neurodl.models
from neurodl.errors import ConfigError
from neurodl.study import analysis_script, parse_study, write_study
from neurodl.study.models import ELSEWHERE, MODELS, ModelKind
from neurodl.study.sections import ModelSection

DOCS = Path(__file__).parents[2] / "docs"
THERE = [name for name, kind in MODELS.items() if kind.estimator in neurodl.models.__all__]


@pytest.fixture
def folder(tmp_path):
    np.savez(tmp_path / "images.npz", images=np.zeros((6, 8, 8), np.uint8))
    np.save(tmp_path / "responses.npy", np.zeros((2, 6), np.float32))
    (tmp_path / "events.tsv").write_text("onset\tduration\ttrial_type\n0\t1\ta\n")
    (tmp_path / "train.txt").write_text("0000\n0001\n0002\n")
    return tmp_path


def study_of(folder, model, features=None, **sections):
    content = {
        "study": {"name": "mine", "seed": 3},
        "stimuli": {"path": "images.npz"},
        "responses": {"path": "responses.npy"},
        "features": [features or {"backbone": "pixels"}],
        "model": model,
        "run": {"device": "cpu"},
        **sections,
    }
    return parse_study(content, folder=folder)


def of_kind(folder, model):
    """Return a study of stimuli, or of a time series for a model of sequences."""
    if model["name"] != "sequence_encoder":
        return study_of(folder, model)
    times = {"responses": {"path": "responses.npy", "events": "events.tsv"}}
    return study_of(folder, model, {"design": "glover"}, **times)


def test_sequences_are_not_of_stimuli(folder):
    said = problems(folder, {"name": "sequence_encoder"})
    assert len(said) == 1 and "rows of pixels are stimuli, which do not follow" in said[0]


def problems(folder, model, **sections):
    with pytest.raises(ConfigError) as caught:
        study_of(folder, model, **sections)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def model_of(study):
    """Return the model that a study's script makes."""
    script = analysis_script(study)
    (line,) = [
        node
        for node in ast.parse(script).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "model"
    ]
    space = {"ndl": ndl}
    if "make_pipeline" in script:
        exec("from sklearn.pipeline import make_pipeline", space)
    return eval(ast.unparse(line.value), space)


def test_every_estimator_has_a_name_in_studies():
    # Studies predict from features; these take stimuli, responses of several subjects, or decode.
    others = {"NeuralEncoder", "Hyperalignment", "SequenceDecoder"}
    of_features = set(neurodl.models.__all__) - others
    assert of_features <= {kind.estimator for kind in MODELS.values()}
    assert set(ModelSection.model_fields["name"].annotation.__args__) == set(MODELS)


@pytest.mark.parametrize("name", THERE)
def test_the_keys_are_the_parameters_of_the_constructor(name):
    kind = MODELS[name]
    parameters = inspect.signature(getattr(neurodl.models, kind.estimator)).parameters
    assert set(kind.keys) == set(parameters) - set(ELSEWHERE)
    assert next(iter(parameters)) == kind.keys[0]
    assert {"device", "seed"} <= set(parameters)
    section = ModelSection(name=name)
    for key in kind.keys:
        default = getattr(section, key)
        assert default is None or default == parameters[key].default, key


def test_a_key_that_is_of_no_model_does_not_exist():
    named = {key for kind in MODELS.values() for key in kind.keys}
    assert named | {"name", "pca"} == set(ModelSection.model_fields)


@pytest.mark.parametrize("name", THERE)
def test_the_script_makes_the_model_with_its_defaults(folder, name):
    study = of_kind(folder, {"name": name})
    expected = getattr(neurodl.models, MODELS[name].estimator)(device="cpu", seed=3)
    found = model_of(study)
    assert type(found) is type(expected)
    assert found.get_params() == expected.get_params()
    (folder / "again.toml").write_text(write_study(study))
    assert ndl.load_study(folder / "again.toml") == study


def test_values_reach_the_model(folder):
    given = {"kernel": "rbf", "gamma": 0.5, "alphas": [1.0, 2.0], "cv": 3, "standardize": False}
    found = model_of(study_of(folder, {"name": "kernel_ridge", **given}))
    assert {**found.get_params(), **given} == found.get_params()
    design = {"design": "glover"}
    times = {"responses": {"path": "responses.npy", "events": "events.tsv"}}
    given = {"delays": [1, 2], "centre": "runs", "sd_floor": 0.2, "scoring": "r"}
    study = study_of(folder, given, design, **times, cv={"groups": "run"})
    found = model_of(study)
    assert {**found.get_params(), **given} == found.get_params()


@pytest.mark.parametrize("name", sorted(set(THERE) - {"banded_ridge", "stacked_ridge"}))
def test_components_come_before_the_model_in_a_pipeline(folder, name):
    study = of_kind(folder, {"name": name, "pca": 100})
    pca, model = (step for _, step in model_of(study).steps)
    assert type(pca) is ndl.StreamedPCA
    assert (pca.n_components, pca.device) == (100, "cpu")
    assert type(model).__name__ == MODELS[name].estimator
    script = analysis_script(study)
    assert "import neurodl as ndl\nfrom sklearn.pipeline import make_pipeline\n" in script
    assert "sklearn" not in analysis_script(of_kind(folder, {"name": name}))


def keywords(study, function):
    calls = [node for node in ast.walk(ast.parse(analysis_script(study)))
             if isinstance(node, ast.Call) and ast.unparse(node.func) == function]  # fmt: skip
    (one,) = calls
    return {key.arg: ast.unparse(key.value) for key in one.keywords}


def test_kernels_are_extracted_whole(folder):
    features = {"backbone": "pixels", "kernel": True, "memory": 2, "concatenate": True}
    study = study_of(folder, {"name": "kernel_ridge", "kernel": "precomputed"}, features)
    given = keywords(study, "ndl.extract_kernels")
    assert (given["pool"], given["memory"]) == ("'flatten'", "2.0")
    assert not {"reduce", "reduce_fit"} & set(given)
    assert "extract_features" not in analysis_script(study)
    model = model_of(study)
    assert model.kernel == "precomputed"
    assert model.standardize is ndl.KernelRidgeCV().standardize
    pooled = study_of(folder, study.model.model_dump(include={"name", "kernel"}),
                      {"backbone": "pixels", "kernel": True, "pool": "avg"})  # fmt: skip
    assert keywords(pooled, "ndl.extract_kernels")["pool"] == "'avg'"


def test_reductions_reach_the_extraction(folder):
    features = {"backbone": "pixels", "reduce": "sparse:50"}
    given = keywords(study_of(folder, {}, features), "ndl.extract_features")
    assert given["reduce"] == "'sparse:50'"
    assert not {"reduce_fit", "memory"} & set(given)
    for ids in ("train.txt", ["0000", "0001", "0002"]):
        features = {"backbone": "pixels", "reduce": "pca:2", "reduce_fit": ids}
        given = keywords(study_of(folder, {}, features), "ndl.extract_features")
        assert eval(given["reduce_fit"], {"Path": Path}) == ["0000", "0001", "0002"]
    assert "reduce" not in keywords(study_of(folder, {}), "ndl.extract_features")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"name": "rigde"}, "[model] name: expected 'ridge', 'kernel_ridge', "),
        ({"gamma": 1.0}, "[model] gamma: it says nothing for ridge; leave it out."),
        ({"name": "kernel_ridge", "delays": [1]},
         "[model] delays: it says nothing for kernel_ridge with kernel = 'rbf'; leave it out."),
        ({"name": "kernel_ridge", "kernel": "linear", "gamma": 1.0},
         "[model] gamma: it says nothing for kernel_ridge with kernel = 'linear'; leave it out."),
        ({"name": "kernel_ridge", "kernel": "precomputed", "sd_floor": 0.2},
         "[model] sd_floor: it says nothing for kernel_ridge with kernel = 'precomputed'"),
        ({"name": "kernel_ridge", "kernel": "polynomial"},
         "[model] kernel: expected 'linear', 'rbf', 'cosine', or 'precomputed' for features"),
        ({"name": "banded_ridge", "kernel": "rbf"},
         "[model] kernel: banded_ridge has 'linear' or 'precomputed', but got 'rbf'."),
        ({"name": "banded_ridge", "pca": 5},
         "[model] pca: its components mix the bands that banded_ridge keeps apart."),
        ({"name": "kernel_ridge", "kernel": "precomputed", "pca": 5},
         "[model] pca: it is of features, but kernel = 'precomputed' takes kernels."),
        ({"pca": 0}, "[model] pca: expected a whole number of components from 1, but got 0."),
        ({"pca": "many"}, "[model] pca: expected a whole number: principal components"),
        ({"delays": [1]}, "[model] delays: they are of time series, but the rows of pixels are"),
        ({"centre": "runs"},
         "[model] centre: 'runs' needs folds that do not cut runs: say groups = 'run' in [cv]."),
        ({"ranks": [1, 2]}, "[model] ranks: it says nothing for ridge; leave it out."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(folder, model, expected):
    found = problems(folder, model)
    assert any(line.startswith(expected) for line in found), found


def test_a_misspelt_model_is_one_problem(folder):
    """Defaults that depend on it are no problems of their own."""
    (line,) = problems(folder, {"name": "ridg"})
    assert line.startswith("[model] name: expected 'ridge', ")


def test_a_class_that_is_not_there_is_a_problem_of_the_study(folder, monkeypatch):
    gone = MODELS["ridge"]._replace(estimator="RidgeOfTomorrow")
    monkeypatch.setitem(MODELS, "ridge", gone)
    (line,) = problems(folder, {})
    assert line.startswith("[model] name: 'ridge' is RidgeOfTomorrow, which neurodl ")
    assert "There are: 'kernel_ridge'" in line
    for name in set(MODELS) - set(THERE) - {"ridge"}:
        assert any(
            line.startswith(f"[model] name: {name!r} is {MODELS[name].estimator}, which neurodl")
            for line in problems(folder, {"name": name})
        )


def test_the_documented_table_is_the_one_in_use():
    page = (DOCS / "study_file.md").read_text()
    rows = re.findall(r'^\| `"(\w+)"` \| `(\w+)` \| (`.*`) \|$', page, re.M)
    documented = {
        name: (estimator, tuple(key.strip("`") for key in keys.split(", ")))
        for name, estimator, keys in rows
    }
    assert documented == {name: ModelKind(*kind)[:2] for name, kind in MODELS.items()}
