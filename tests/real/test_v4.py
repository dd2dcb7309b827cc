"""Macaque V4 (33 neurons, 1200 photographs) through a study file: the main job on real input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import neurodl as ndl

STUDY = """
[study]
name = "v4"

[stimuli]
path = "{recordings}/v4_cowley/images_190923.zip"

[responses]
path = "{recordings}/v4_cowley/responses_190923.npy"
dims = ["unit", "stimulus"]
units = "spikes / 100 ms"

[[features]]
label = "trained"
backbone = "timm:mobilenetv2_100"
weights = "{recordings}/weights_mobilenetv2_imagenet/mobilenetv2_100_timm_same.pth"
layers = {layers}
concatenate = true
options = {{ pad_type = "same" }}
transform = {{ mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5], crop_pct = 1.0 }}

[[features]]
label = "untrained"
backbone = "timm:mobilenetv2_100"
pretrained = false
seed = 0
layers = {layers}
options = {{ pad_type = "same" }}
transform = {{ mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5], crop_pct = 1.0 }}

[[features]]
backbone = "pixels"

[run]
cache = "{cache}"
"""
BLOCKS = [f"blocks.{number}" for number in range(6)]


@pytest.fixture(scope="module")
def study(recordings, tmp_path_factory):
    """Run the study once; return its folder and where its features are cached."""
    folder = tmp_path_factory.mktemp("v4")
    file = folder / "study.toml"
    file.write_text(STUDY.format(recordings=recordings, layers=BLOCKS, cache=folder / "cache"))
    return ndl.run_study(file, out=folder / "results"), folder / "cache"


@pytest.fixture(scope="module")
def mean_r(study):
    """Mean over folds, then neurons, of r by layer."""
    scores = ndl.load(study[0] / "scores.nc")
    mean = scores["r"].mean("fold").mean("unit")
    return dict(zip(mean["layer"].values.tolist(), mean.values.tolist(), strict=True))


@pytest.fixture(scope="module")
def experiment(recordings):
    return ndl.Experiment.from_files(
        recordings / "v4_cowley" / "images_190923.zip",
        recordings / "v4_cowley" / "responses_190923.npy",
        dims=("unit", "stimulus"),
        units="spikes / 100 ms",
    )


@pytest.fixture(scope="module")
def mobilenet(recordings):
    return ndl.load_backbone(
        "timm:mobilenetv2_100",
        weights=recordings / "weights_mobilenetv2_imagenet" / "mobilenetv2_100_timm_same.pth",
        pad_type="same",
        transform={"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0},
    )


@pytest.mark.slow
def test_pretrained_beats_untrained_beats_pixels(mean_r):
    trained = max(mean_r[f"trained/{block}"] for block in BLOCKS)
    untrained = max(mean_r[f"untrained/{block}"] for block in BLOCKS)
    assert trained >= 0.55
    assert mean_r["trained/all"] >= 0.58
    assert trained - untrained >= 0.15
    assert trained - mean_r["pixels/pixels"] >= 0.27
    assert untrained > mean_r["pixels/pixels"]


@pytest.mark.slow
def test_results_folder_is_complete(study):
    names = {path.name for path in study[0].iterdir()}
    assert {"scores.nc", "report.html", "study.toml", "provenance.json", "analysis.py"} <= names


@pytest.mark.slow
def test_features_come_from_the_cache_the_second_time(study, experiment, mobilenet, monkeypatch):
    def never(*_):
        pytest.fail("the network ran again")

    monkeypatch.setattr(torch.nn.Module, "__call__", never)
    features = ndl.extract_features(mobilenet, experiment.stimuli, BLOCKS, cache=study[1])
    assert features["blocks.3"].shape == (1200, 64 * 49)


@pytest.mark.slow
def test_shuffled_responses_are_not_predicted(study, experiment, mobilenet):
    features = ndl.extract_features(mobilenet, experiment.stimuli, "blocks.3", cache=study[1])
    responses = experiment.responses
    rng = np.random.default_rng(0)
    shuffled = responses.copy(data=responses.values[rng.permutation(1200)])
    r = ndl.cross_validate(ndl.RidgeCV(), features, shuffled)["r"]
    assert abs(float(r.mean())) < 0.02


@pytest.mark.slow
def test_nearly_constant_features_do_not_blow_up_a_fold(experiment, mobilenet, study):
    """Hidden ReLU6 units answer to almost no image: dividing by their sd ruins whole folds."""
    layer = "blocks.1.0.bn1"
    features = ndl.extract_features(mobilenet, experiment.stimuli, layer, cache=study[1])
    scores = ndl.cross_validate(ndl.RidgeCV(), features, experiment.responses)
    by_fold = scores["r"].mean("unit").values[0]
    assert by_fold.min() > by_fold.max() - 0.1


@pytest.mark.slow
def test_layers_combined_inside_the_folds_beat_the_best_layer(study, mean_r, experiment, mobilenet):
    features = ndl.extract_features(mobilenet, experiment.stimuli, BLOCKS, cache=study[1])
    scores = {
        combine: ndl.cross_validate(
            ndl.StackedRidgeCV(combine=combine), features, experiment.responses
        )
        for combine in ("select", "stack")
    }
    r = {combine: float(one["r"].mean()) for combine, one in scores.items()}
    best = max(mean_r[f"trained/{block}"] for block in BLOCKS)
    assert r["select"] >= best - 0.002  # the layer is chosen without the test images
    assert r["stack"] >= r["select"] + 0.015
    assert r["stack"] >= 0.585
    shares = scores["stack"]["weight"].mean(["layer", "fold", "unit"])
    assert float(shares.sel(band="blocks.0")) < 0.1 < float(shares.sel(band="blocks.3"))
