"""Study files: everything that is wrong is named, with the section and key at fault."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import neurodl as ndl
from neurodl.errors import ConfigError, MissingFileError
from neurodl.study import parse_study, write_study
from neurodl.study.sections import FeaturesSection, Study

DOCS = Path(__file__).parents[2] / "docs"
VALID = {
    "study": {"name": "mine"},
    "stimuli": {"path": "images.npz"},
    "responses": {"path": "responses.npy", "dims": ["unit", "stimulus"]},
    "features": [{"backbone": "pixels"}],
}


PRECOMPUTED = {"name": "kernel_ridge", "kernel": "precomputed"}


@pytest.fixture
def folder(tmp_path):
    """A folder with the files that VALID names, and some features and kernels."""
    ids = list("abcdef")
    features = xr.DataArray(
        np.eye(6, dtype=np.float32), dims=("stimulus", "feature"), coords={"stimulus": ids}
    )
    kernel = features.assign_coords(feature=ids).assign_attrs(kind="kernel")
    ndl.save({"mine": features}, tmp_path / "features.zarr")
    ndl.save({"mine": kernel}, tmp_path / "kernels.zarr")
    ndl.save(kernel, tmp_path / "kernel.nc")
    (tmp_path / "damaged.nc").write_bytes(b"nothing")
    np.savez(tmp_path / "images.npz", images=np.zeros((6, 8, 8), np.uint8))
    np.save(tmp_path / "responses.npy", np.zeros((2, 6), np.float32))
    (tmp_path / "events.tsv").write_text("onset\tduration\ttrial_type\n0\t1\ta\n")
    return tmp_path


def changed(**sections):
    """Return VALID with some keys of its sections replaced; None removes the section."""
    content = {name: dict(table) if isinstance(table, dict) else list(table)
               for name, table in VALID.items()}  # fmt: skip
    for name, keys in sections.items():
        if keys is None:
            del content[name]
        elif isinstance(keys, dict):
            content[name] = {**content.get(name, {}), **keys}
        else:
            content[name] = keys
    return content


def problems(folder, **sections):
    """Return the lines of the error that a changed study raises."""
    with pytest.raises(ConfigError) as caught:
        parse_study(changed(**sections), folder=folder)
    return str(caught.value).splitlines()[1:]


def test_paths_are_relative_to_the_file_and_defaults_are_filled_in(folder):
    file = folder / "study.toml"
    file.write_text(write_study(parse_study(VALID, folder=folder)))
    study = ndl.load_study(file)
    assert study == parse_study(VALID, folder=folder)
    assert study.stimuli.path == (folder / "images.npz").as_posix()
    assert (study.cv.folds, study.study.seed, study.run.device) == (5, 0, "auto")


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"study": {"nam": "x"}}, "[study] nam: there is no such key. Did you mean 'name'?"),
        ({"modle": {}}, "[modle]: there is no such section. Did you mean 'model'?"),
        ({"study": None}, "[study] is missing."),
        ({"cv": {"folds": "five"}},
         "[cv] folds: expected a whole number or 'leave-one-group-out', but got 'five'."),
        ({"cv": {"folds": 2.5}},
         "[cv] folds: expected a whole number or 'leave-one-group-out', but got 2.5."),
        ({"responses": {"dims": ["unit", 2]}},
         "[responses] dims: expected a list of the dims as stored, such as ['unit', 'stimulus'], "
         "but got 2 in it."),
        ({"responses": {"tr": "2"}},
         "[responses] tr: expected a number: the repetition time [s], but got '2'."),
        ({"stimuli": 3}, "[stimuli]: expected a section [stimuli], but got 3."),
        ({"features": [{"backbone": "pixels"}, {"bakbone": "gabor"}]},
         "[[features]] 2 bakbone: there is no such key. Did you mean 'backbone' or 'label'?"),
        ({"features": []}, "[features]: expected a section [[features]], but got []."),
        ({"features": [{"backbone": "torchvision:resnet81"}]},
         "[[features]] backbone: there is no 'torchvision:resnet81'. Did you mean "
         "'torchvision:resnet18'"),
        ({"features": [{"backbone": "pixels", "design": "glover"}]},
         "[[features]]: give one of backbone, path and design, but there is backbone and design."),
        ({"features": [{"label": "x"}]},
         "[[features]]: give one of backbone, path and design, but there is none of them."),
        ({"features": [{"backbone": "pixels", "delays": [1]}]},
         "[[features]] delays: it says nothing beside backbone; leave it out."),
        ({"features": [{"backbone": "timm:resnet18", "seed": 1}]},
         "[[features]] seed: it is for untrained networks, with pretrained = false"),
        ({"features": [{"backbone": "pixels"}, {"backbone": "pixels"}]},
         "[[features]] label: 'pixels' names 2 entries; give each a label."),
        ({"features": [{"design": "fir"}], "responses": {"events": "events.tsv"}},
         "[[features]] delays: design = 'fir' needs lags, such as delays = [1, 2, 3, 4]."),
        ({"features": [{"design": "glover"}]},
         "[[features]] design: it needs [responses] events."),
        ({"features": [{"path": "images.npz"}]},
         "[[features]] path: features are read from .zarr or .nc, but this is"),
        ({"stimuli": None}, "[[features]] backbone: a network needs [stimuli] to look at."),
        ({"dataset": {"name": "simulated"}},
         "one of [responses], [dataset] and [bids] says what was recorded, but there is "
         "[responses] and [dataset]."),
        ({"responses": None},
         "one of [responses], [dataset] and [bids] says what was recorded, but there is none of "
         "them."),
        ({"responses": None, "dataset": {"name": "simulated"}},
         "[stimuli] has no place beside [dataset], which brings its own."),
        ({"betas": {}}, "[betas] needs [bids], or [responses] with events."),
        ({"features": [{"backbone": "pixels", "kernel": True}]},
         "[[features]] kernel: kernels go with a model of kernels: [model] name = 'kernel_ridge' "
         "and kernel = 'precomputed'."),
        ({"model": PRECOMPUTED},
         "[[features]] kernel: [model] kernel = 'precomputed' takes kernels, but these are "
         "features: say kernel = true here, or choose another kernel there."),
        ({"features": [{"design": "glover"}], "responses": {"events": "events.tsv"},
          "model": PRECOMPUTED},
         "[[features]] kernel: [model] kernel = 'precomputed' takes kernels, but these are "
         "features: a design has none"),
        ({"features": [{"path": "features.zarr"}], "model": PRECOMPUTED},
         "[[features]] path: [model] kernel = 'precomputed' takes kernels, but these are features: "
         "give the path of kernels"),
        ({"features": [{"path": "kernels.zarr"}]},
         "[[features]] path: kernels go with a model of kernels"),
        ({"features": [{"path": "kernel.nc"}]},
         "[[features]] path: kernels go with a model of kernels"),
        ({"features": [{"path": "damaged.nc"}]}, "[[features]] path: Cannot read"),
        ({"features": [{"backbone": "pixels", "kernel": True, "reduce": "sparse:9"}]},
         "[[features]] reduce: it says nothing beside kernel = true; leave it out."),
        ({"features": [{"backbone": "pixels", "memory": 2.0}]},
         "[[features]] memory: it goes with kernel = true; leave it out."),
        ({"features": [{"backbone": "pixels", "kernel": True, "memory": -1}], "model": PRECOMPUTED},
         "[[features]] memory: expected a number of GiB > 0, but got -1.0."),
        ({"features": [{"backbone": "pixels", "reduce": "spars:9"}]},
         "[[features]] reduce: expected 'none', 'sparse:5000', 'sparse:auto' or 'pca:100', but got "
         "'spars:9'."),
        ({"features": [{"backbone": "pixels", "reduce": "pca:9"}]},
         "[[features]] reduce_fit: 'pca' of all stimuli would let the test stimuli shape"),
        ({"features": [{"backbone": "pixels", "reduce_fit": ["a"]}]},
         "[[features]] reduce_fit: it goes with reduce = 'pca:100'; leave it out."),
        ({"features": [{"backbone": "pixels", "reduce": "pca:9", "reduce_fit": "train.txt"}]},
         "[[features]] reduce_fit: "),
        ({"features": [{"design": "glover", "kernel": True}], "responses": {"events": "events.tsv"},
          "model": PRECOMPUTED},
         "[[features]] kernel: it says nothing beside design; leave it out."),
        ({"betas": {"method": "lsx"}}, "[betas] method: expected 'lss' or 'lsa', but got 'lsx'."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(folder, sections, expected):
    found = problems(folder, **sections)
    assert any(line.strip().startswith(expected) for line in found), found


def test_all_problems_come_in_one_error(folder):
    found = problems(
        folder,
        study={"seed": "one"},
        stimuli={"path": "imges.npz"},
        responses={"roi": "areas.txt"},
        features=[{"backbone": "pixels", "weights": "w.pth"}],
    )
    assert len(found) == 4
    assert any("imges.npz does not exist. Did you mean 'images.npz'" in line for line in found)
    assert any(line.startswith("  [responses] roi:") for line in found)


def test_lists_of_ids_and_rois_are_not_taken_for_files(folder):
    ids = ["a", "b", "c", "d", "e", "f"]
    study = parse_study(
        changed(stimuli={"ids": ids}, responses={"ids": ids, "roi": ["V1", "V4"]}), folder=folder
    )
    assert study.stimuli.ids == ids
    assert study.responses.roi == ["V1", "V4"]


def test_each_run_of_a_list_must_exist(folder):
    found = problems(folder, responses={"path": ["responses.npy", "run-2.nii.gz"]})
    assert len(found) == 1
    assert "run-2.nii.gz does not exist" in found[0]
    runs = [f"run-{number}.nii.gz" for number in range(12)]
    found = problems(folder, responses={"path": runs})
    assert len(found) == 1
    assert "run-1.nii.gz' and 10 more do not exist" in found[0]


def test_published_weights_of_torchvision_are_known(folder):
    name = "torchvision:resnet18.IMAGENET1K_V1"
    study = parse_study(changed(features=[{"backbone": name}]), folder=folder)
    assert study.labels() == [name]


def test_missing_and_damaged_study_files_are_errors(folder):
    (folder / "study.toml").write_text("[study\n")
    with pytest.raises(ConfigError, match="not valid TOML.*line 1"):
        ndl.load_study(folder / "study.toml")
    with pytest.raises(MissingFileError, match="Did you mean 'study.toml'"):
        ndl.load_study(folder / "stdy.toml")


@pytest.mark.parametrize(
    ("features", "model"),
    [
        ({"backbone": "pixels", "kernel": True}, PRECOMPUTED),
        ({"path": "kernels.zarr"}, PRECOMPUTED),
        ({"path": "kernel.nc"}, PRECOMPUTED),
        ({"path": "features.zarr"}, {"name": "kernel_ridge", "pca": 3}),
        ({"backbone": "pixels", "reduce": "pca:2", "reduce_fit": ["a", "b", "c"]}, {}),
        ({"backbone": "pixels", "reduce": "sparse:auto"}, {"name": "ridge", "alphas": [1.0]}),
    ],
)
def test_kernels_and_reduced_features_come_back_as_they_were(folder, features, model):
    study = parse_study(changed(features=[features], model=model), folder=folder)
    (folder / "again.toml").write_text(write_study(study))
    assert ndl.load_study(folder / "again.toml") == study
    if "backbone" in features:
        pool = "flatten" if features.get("kernel") else "spatial:7"
        assert study.features[0].pool == pool


def test_a_written_study_keeps_only_the_keys_that_say_something(folder):
    study = parse_study(VALID, folder=folder)
    text = write_study(study)
    assert "trial_type" not in text
    again = folder / "again.toml"
    again.write_text(text)
    assert write_study(ndl.load_study(again)) == text


def test_every_key_is_documented():
    page = (DOCS / "study_file.md").read_text()
    for section, info in Study.model_fields.items():
        header = "[[features]]" if section == "features" else f"[{section}]"
        assert f"## {header}" in page
        options = [info.annotation, *getattr(info.annotation, "__args__", ())]
        model = FeaturesSection if section == "features" else next(
            option for option in options if hasattr(option, "model_fields")
        )  # fmt: skip
        part = page.split(f"## {header}")[1].split("\n## ")[0]
        documented = set(re.findall(r"^\| `(\w+)` \|", part, re.M))
        assert documented == set(model.model_fields), section
