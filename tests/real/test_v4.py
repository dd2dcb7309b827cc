"""Macaque V4 (33 neurons, 1200 photographs) through a study file: the main job on real input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

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
layers = ["blocks.1", "blocks.2"]
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
    untrained = max(mean_r[f"untrained/{block}"] for block in BLOCKS[1:3])  # its best layers
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
def test_every_neuron_is_predicted_beyond_chance_and_none_by_chance(study, experiment, mobilenet):
    """1000 permutations of the responses; and of responses that are shuffled beforehand."""
    features = ndl.extract_features(mobilenet, experiment.stimuli, "blocks.3", cache=study[1])
    model = ndl.RidgeCV(device="cpu")
    splits, _, _ = ndl.scores.make_splits(experiment.responses, 5)
    how = {"cv": splits[:2], "n_permutations": 1000}
    found = ndl.permutation_test(model, features, experiment.responses, **how)
    assert found["p"].max() < 0.001
    assert found["p_fwe"].max() < 0.001
    rng = np.random.default_rng(0)
    # Each neuron in an order of its own, ten times: 330 of which nothing is to be predicted.
    values = experiment.responses.values
    shuffled = np.stack([rng.permutation(one) for _ in range(10) for one in values.T], 1)
    nothing = experiment.responses[:, np.arange(330) % 33].copy(data=shuffled)
    p = ndl.permutation_test(model, features, nothing, **how)["p"].values.ravel()
    assert kstest(p - rng.uniform(0, 1 / 1001, len(p)), "uniform").pvalue > 0.01


@pytest.mark.slow
def test_the_study_is_audited_and_clean(study):
    audit = ndl.Audit.of(ndl.load(study[0] / "scores.nc"))
    assert "copies" in audit.clean
    found = {(one.check, one.severity) for one in audit.findings}
    assert found == {("selection", "note"), ("weights", "note")}


@pytest.mark.slow
def test_layers_have_their_centre_where_v4_is_predicted_best(study):
    scores = ndl.load(study[0] / "scores.nc")
    profile = ndl.layer_profile(scores, layers=[f"trained/{block}" for block in BLOCKS])
    one = profile.sel(roi_name="all")
    assert 0.4 < float(one["centre_low"]) < float(one["centre"]) < float(one["centre_high"]) < 0.65
    assert float(one["best_share"].sel(layer="trained/blocks.3")) > 0.9


@pytest.mark.slow
def test_nearly_constant_features_do_not_blow_up_a_fold(experiment, mobilenet, study):
    """Hidden ReLU6 units answer to almost no image: dividing by their sd ruins whole folds."""
    layer = "blocks.1.0.bn1"
    features = ndl.extract_features(mobilenet, experiment.stimuli, layer, cache=study[1])
    scores = ndl.cross_validate(ndl.RidgeCV(), features, experiment.responses)
    by_fold = scores["r"].mean("unit").values[0]
    assert by_fold.min() > by_fold.max() - 0.1


@pytest.mark.slow
def test_layers_combined_inside_the_folds_beat_the_best_layer(study, experiment, mobilenet):
    features = ndl.extract_features(mobilenet, experiment.stimuli, BLOCKS, cache=study[1])
    # Two of the five folds that the study scored: choosing in inner folds of six layers takes time.
    splits, _, _ = ndl.scores.make_splits(experiment.responses, 5)
    scores = {
        combine: ndl.cross_validate(
            ndl.StackedRidgeCV(combine=combine), features, experiment.responses, cv=splits[:2]
        )
        for combine in ("select", "stack")
    }
    r = {combine: float(one["r"].mean()) for combine, one in scores.items()}
    alone = ndl.load(study[0] / "scores.nc")["r"].isel(fold=[0, 1]).mean(["fold", "unit"])
    best = max(float(alone.sel(layer=f"trained/{block}")) for block in BLOCKS)
    assert r["select"] >= best - 0.002  # the layer is chosen without the test images
    assert r["stack"] >= r["select"] + 0.015
    assert r["stack"] >= 0.585
    shares = scores["stack"]["weight"].mean(["layer", "fold", "unit"])
    assert float(shares.sel(band="blocks.0")) < 0.1 < float(shares.sel(band="blocks.3"))


@pytest.mark.slow
def test_a_tuned_network_beats_the_frozen_one(experiment, recordings):
    """Two of the folds of tests/benchmarks/finetuning.py, which has more conditions."""
    small = ndl.load_backbone(
        "timm:mobilenetv2_100",
        weights=recordings / "weights_mobilenetv2_imagenet" / "mobilenetv2_100_timm_same.pth",
        pad_type="same",
        transform={
            "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0, "input_size": (3, 112, 112)
        },
    )  # fmt: skip
    folds = np.array_split(np.random.default_rng(0).permutation(1200), 5)
    splits = [(np.setdiff1d(np.arange(1200), test), test) for test in folds[:2]]
    scores = ndl.compare(
        experiment, {"mobilenet": small}, ["ridge", "readout", "all"], layers="blocks.3", cv=splits,
        readout_patience=10, schedule="cosine", max_epochs=3, patience=3,
        device="cpu",
    )  # fmt: skip
    table = ndl.comparison_table(scores).set_index("adaptation")
    assert table.loc["readout", "r"] >= 0.58
    assert table.loc["all", "r"] >= 0.60
    r = scores["r"].mean("fold")
    gain = r.sel(layer="mobilenet/all") - r.sel(layer="mobilenet/readout")
    assert float(gain.mean()) >= 0.02
    assert float((gain > 0).mean()) > 0.8
    assert table.loc["all", "low_over_stimuli"] > 0


@pytest.mark.slow
def test_poisson_and_gaussian_readouts_stand_beside_ridge(study, experiment, mobilenet):
    """The same folds, layer and metrics for ridge, Poisson regression and a Gaussian readout."""
    features = ndl.extract_features(mobilenet, experiment.stimuli, "blocks.3", cache=study[1])
    responses = experiment.responses[:, ::3]
    splits = ndl.scores.make_splits(responses, 5)[0][:1]
    gaussian = ndl.NeuralEncoder(
        mobilenet, "blocks.3", readout="gaussian2d", loss="poisson", finetune=None,
        readout_epochs=15, lr=0.03, device="cpu",
    )  # fmt: skip
    models = {
        "ridge": (ndl.RidgeCV(device="cpu"), features),
        "poisson": (ndl.PoissonRidgeCV(cv=3, device="cpu"), features),
        "gaussian": (gaussian, experiment.stimuli),
    }
    scores = {
        name: ndl.cross_validate(
            model, X, responses, cv=splits, metrics=["pseudo_r2", "bits_per_spike"]
        )
        for name, (model, X) in models.items()
    }
    r = {name: float(one["r"].mean()) for name, one in scores.items()}
    explained = {name: float(one["pseudo_r2"].mean()) for name, one in scores.items()}
    assert min(r.values()) > 0.5 and max(r.values()) - min(r.values()) < 0.05
    assert r["poisson"] == pytest.approx(r["ridge"], abs=0.02)
    assert explained["poisson"] > explained["ridge"] > 0.25
    assert float(scores["poisson"]["bits_per_spike"].min()) > 0
