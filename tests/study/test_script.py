"""A study as a script: valid source, public names only, every value as it was."""

from __future__ import annotations

import ast

import numpy as np
import pytest

import neurodl as ndl
from neurodl.study import analysis_script, parse_study
from neurodl.study.script import call


@pytest.fixture
def folder(tmp_path):
    np.savez(tmp_path / "images.npz", images=np.zeros((6, 8, 8), np.uint8))
    np.save(tmp_path / "responses.npy", np.zeros((2, 6), np.float32))
    (tmp_path / "ids.txt").write_text("a\nb\nc\nd\ne\nf\n")
    (tmp_path / "w.pth").write_bytes(b"")
    return tmp_path


def script_of(folder, **sections):
    content = {
        "study": {"name": 'it\'s "mine" \\ {x}', "seed": 3},
        "stimuli": {"path": "images.npz"},
        "responses": {"path": "responses.npy"},
        "features": [{"backbone": "pixels"}],
        **sections,
    }
    return analysis_script(parse_study(content, folder=folder))


def calls(script):
    """Return the keyword arguments of each ndl call, by its name, the last of each."""
    found = {}
    for node in ast.walk(ast.parse(script)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("ndl."):
            found[ast.unparse(node.func)] = {
                keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords
            } | {number: ast.unparse(value) for number, value in enumerate(node.args)}
    return found


def test_only_public_names_are_called(folder):
    features = [{"backbone": "pixels", "concatenate": True}, {"backbone": "gabor"}]
    made = calls(script_of(folder, features=features))
    assert {name.split(".")[1] for name in made} <= set(ndl.__all__)
    assert {"ndl.Experiment.from_files", "ndl.concatenate_features", "ndl.report"} <= set(made)


def test_names_of_any_kind_survive(folder):
    made = calls(script_of(folder))
    assert ast.literal_eval(made["ndl.Experiment.from_files"]["name"]) == 'it\'s "mine" \\ {x}'
    label = 'a{b}"c\\'
    features = [{"backbone": "pixels", "label": label}, {"backbone": "gabor"}]
    script = script_of(folder, features=features)
    line = next(line for line in script.splitlines() if line.startswith("features |="))
    space = {"features": {}, "layers": {"energy": 1}}
    exec(line, space)
    assert space["features"] == {f"{label}/energy": 1}


def test_a_single_feature_space_keeps_its_layers_own_names(folder):
    assert "features |= {layer: values for" in script_of(folder)


def test_values_reach_their_arguments(folder):
    made = calls(
        script_of(
            folder,
            stimuli={"path": "images.npz", "ids": "ids.txt"},
            features=[
                {
                    "backbone": "torchvision:resnet18",
                    "weights": "w.pth",
                    "layers": ["layer1"],
                    "pool": "mean",
                    "transform": {"mean": [0.5, 0.5, 0.5]},
                    "options": {"progress": False},
                }
            ],
            model={"alphas": [1.0, 10.0], "standardize": False},
            cv={"folds": 3, "groups": "run"},
            run={"device": "cpu", "cache": False, "on_unreadable": "skip"},
        )
    )
    loaded = made["ndl.load_backbone"]
    assert loaded["weights"] == repr((folder / "w.pth").as_posix())
    assert loaded["transform"] == "{'mean': [0.5, 0.5, 0.5]}"
    assert (loaded["progress"], "pretrained" in loaded) == ("False", False)
    extracted = made["ndl.extract_features"]
    wanted = {"layers": "['layer1']", "pool": "'mean'", "device": "'cpu'", "cache": "False"}
    assert wanted.items() <= extracted.items()
    assert made["ndl.RidgeCV"] | {0: "[1.0, 10.0]", "seed": "3"} == made["ndl.RidgeCV"]
    validated = made["ndl.cross_validate"]
    assert (validated["cv"], validated["groups"], validated["seed"]) == ("3", "'run'", "3")
    assert validated["unpaired"] == "'drop'"  # of the stimuli that were skipped
    ids = made["ndl.Experiment.from_files"]["stimuli_ids"]
    assert eval(ids, {"Path": __import__("pathlib").Path}) == list("abcdef")


def test_untrained_networks_take_the_seed_of_the_study_unless_they_have_their_own(folder):
    features = [{"backbone": "torchvision:resnet18", "pretrained": False}]
    assert calls(script_of(folder, features=features))["ndl.load_backbone"]["seed"] == "3"
    features[0]["seed"] = 0
    assert calls(script_of(folder, features=features))["ndl.load_backbone"]["seed"] == "0"


def test_long_calls_have_one_argument_per_line():
    short = call("f", 1, a="x")
    assert short == 'f(1, a="x")'
    long = call("f", ["word"] * 30, a={"key": "v" * 90})
    assert max(map(len, long.splitlines())) <= 110
    assert ast.unparse(ast.parse(long)) == f"f({['word'] * 30}, a={{'key': {'v' * 90!r}}})"
