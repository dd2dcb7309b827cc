"""compare: identical folds, honest intervals, learning curves, and the table of it."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from encoding_cases import (
    gaussian_responses,
    layer_output,
    perturbed,
    random_stimuli,
    small_backbone,
)
from scipy import stats
from sklearn.base import clone

import neurodl as ndl
from neurodl.errors import SchemaError, UnknownNameError
from neurodl.scores.paired import over_stimuli, over_targets, roi_masks

pytestmark = pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
FAST = {"readout_epochs": 6, "max_epochs": 2, "lr": 0.02, "device": "cpu"}


def experiment_of(stimuli, y, **coords):
    responses = xr.DataArray(
        y, {"stimulus": stimuli.ids, **coords}, ("stimulus", "unit"), attrs={"units": "a.u."}
    )
    return ndl.Experiment(stimuli=stimuli, responses=responses, name="simulated")


@pytest.fixture(scope="module")
def backbone():
    return small_backbone()


@pytest.fixture(scope="module")
def experiment(backbone):
    stimuli = random_stimuli(90)
    y = gaussian_responses(layer_output(backbone.module, stimuli, "block2"), 6, 0.3)
    y[:, 5] = 1.0  # constant: cannot be scored
    return experiment_of(stimuli, y, roi=("unit", ["V4", "V4", "IT", "IT", "IT", "IT"]))


@pytest.fixture(scope="module")
def scores(experiment, backbone):
    adaptations = ("ridge", "ridge, all layers", "readout", "all")
    return ndl.compare(
        experiment, {"net": backbone}, adaptations, layers="block2", cv=3, n_train=[20, 40],
        n_resamples=200, **FAST,
    )  # fmt: skip


def test_every_condition_is_what_cross_validate_gives(scores, experiment, backbone):
    features = ndl.extract_features(backbone, experiment.stimuli, None)
    joined = ndl.concatenate_features(dict(features))
    encoder = ndl.NeuralEncoder(backbone, "block2", **FAST)
    expected = {
        "ridge": (ndl.RidgeCV(device="cpu"), features["block2"]),
        "ridge, all layers": (ndl.RidgeCV(device="cpu"), joined),
        "readout": (encoder, experiment.stimuli),
        "all": (clone(encoder).set_params(finetune="all"), experiment.stimuli),
    }
    for name, (model, X) in expected.items():
        alone = ndl.cross_validate(model, X, experiment.responses, cv=3)
        r = scores["r"].sel(layer=f"net/{name}")
        np.testing.assert_allclose(r, alone["r"].values[0], atol=1e-4)
        np.testing.assert_allclose(
            scores["r2"].sel(layer=f"net/{name}"), alone["r2"].values[0], atol=1e-4
        )
        for key in ("cv", "n_samples", "n_excluded", "units"):
            assert scores.attrs[key] == alone.attrs[key]


def test_averages_are_of_predictions(scores, experiment, backbone):
    both = [
        ndl.cross_validate(model, X, experiment.responses, cv=3, keep_predictions=True)
        for model, X in (
            (
                ndl.RidgeCV(device="cpu"),
                ndl.concatenate_features(
                    dict(ndl.extract_features(backbone, experiment.stimuli, None))
                ),
            ),
            (ndl.NeuralEncoder(backbone, "block2", **FAST), experiment.stimuli),
        )
    ]
    mean = (both[0]["predicted"].values[0] + both[1]["predicted"].values[0]) / 2
    splits, _, _ = ndl.scores.make_splits(experiment.responses, 3)
    for fold, (_, test) in enumerate(splits):
        by_hand = stats.pearsonr(
            mean[test][:, :5], experiment.responses.values[test][:, :5]
        ).statistic
        found = scores["r"].sel(layer="net/readout + ridge, all layers").values[fold, :5]
        np.testing.assert_allclose(found, by_hand, atol=1e-4)


def test_gains_are_differences_to_ridge(scores):
    mean = scores["r"].mean("fold")
    ridge = mean.sel(layer="net/ridge")
    np.testing.assert_allclose(
        scores["gain"].sel(gain_roi="all"), (mean - ridge).mean("unit"), atol=1e-6
    )
    np.testing.assert_allclose(
        scores["gain"].sel(gain_roi="V4"), (mean - ridge)[:, :2].mean("unit"), atol=1e-6
    )
    own = scores.sel(layer="net/ridge")
    assert not own["gain"].values.any() and not own["gain_low"].values.any()
    others = scores.isel(layer=slice(1, None))
    assert (others["gain_low"] <= others["gain"] + 1e-6).all()
    assert (others["gain_high"] >= others["gain"] - 1e-6).sel(over="targets").all()


def test_learning_curves_train_on_nested_rows(experiment, backbone, monkeypatch):
    seen = []
    real = ndl.RidgeCV.predict_folds

    def spied(self, X, y, splits, *args, **kwargs):
        seen.append([(set(train), set(test)) for train, test in splits])
        return real(self, X, y, splits, *args, **kwargs)

    monkeypatch.setattr(ndl.RidgeCV, "predict_folds", spied)
    scores = ndl.compare(
        experiment, backbone, ["ridge"], layers="block2", cv=3, n_train=[40, 20], device="cpu"
    )
    whole, small, large = seen
    assert scores["n_train"].values.tolist() == [20, 40, len(whole[0][0])]
    for fold in range(3):
        assert whole[fold][1] == small[fold][1] == large[fold][1]
        assert small[fold][0] < large[fold][0] < whole[fold][0]
        assert (len(small[fold][0]), len(large[fold][0])) == (20, 40)
    r = scores["r_by_n_train"].mean(["fold", "unit"])
    assert r[0, 0] < r[1, 0] < r[2, 0] == scores["r"].mean()


def test_curves_of_groups_keep_them_whole(backbone):
    stimuli = random_stimuli(90)
    y = gaussian_responses(layer_output(backbone.module, stimuli, "block2"), 4, 0.3)
    category = np.repeat([f"kind {n}" for n in range(18)], 5)
    experiment = experiment_of(stimuli, y, category=("stimulus", category))
    from neurodl.scores._conditions import Task, thinned

    models = {"ridge": ndl.RidgeCV(device="cpu")}
    task = Task.of(experiment, {"net": backbone}, models, 3, "category", 0)
    for train, _ in thinned(task.rows, 33, 0):
        labels, counts = np.unique(category[train], return_counts=True)
        assert len(train) == 30 and set(counts) == {5}


def test_the_layer_is_chosen_without_the_test_rows(backbone):
    stimuli = random_stimuli(120)
    y = gaussian_responses(layer_output(backbone.module, stimuli, "stem"), 6, 0.1)
    experiment = experiment_of(stimuli, y)
    scores = ndl.compare(experiment, {"net": backbone}, ["ridge"], cv=3, device="cpu")
    read = scores["read_layer"].values[0]
    splits, _, _ = ndl.scores.make_splits(experiment.responses, 3)
    features = ndl.extract_features(backbone, stimuli, None)
    for fold, (train, _) in enumerate(splits):
        inner = {
            name: ndl.RidgeCV(device="cpu").fit(x.values[train], y[train]).cv_score_.mean()
            for name, x in features.items()
        }
        assert read[fold] == max(inner, key=inner.get)


def test_the_table_says_who_wins_from_how_many_stimuli_on(scores):
    table = ndl.comparison_table(scores)
    assert list(table["roi"].unique()) == ["all", "IT", "V4"]
    assert len(table) == 3 * scores.sizes["layer"]
    row = table.set_index(["roi", "adaptation"]).loc[("all", "all")]
    assert row["gain"] == pytest.approx(row["r"] - float(scores["r"].sel(layer="net/ridge").mean()))
    certain = scores.copy()
    certain["gain_by_n_train_low"] = certain["gain_by_n_train_low"] * 0 - 0.1
    label = "net/all"
    certain["gain_by_n_train_low"].loc[{"layer": label, "n_train": slice(40, None)}] = 0.01
    beats = ndl.comparison_table(certain).set_index(["roi", "adaptation"])["beats_from"]
    assert beats.loc[("all", "all")] == 40
    assert np.isnan(beats.loc[("all", "readout")])
    certain["gain_by_n_train_low"].loc[{"layer": label, "n_train": 20}] = 0.01
    certain["gain_by_n_train_low"].loc[{"layer": label, "n_train": slice(40, None)}] = -0.01
    beats = ndl.comparison_table(certain).set_index(["roi", "adaptation"])["beats_from"]
    assert np.isnan(beats.loc[("all", "all")])  # it does not stay above


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Gains of many drawn experiments: 95 % intervals over targets and over stimuli."""
    rng = np.random.default_rng(0)
    n_experiments, n_targets = 150, 40
    truth = 0.05
    inside = 0
    for seed in range(n_experiments):
        difference = truth + 0.1 * rng.standard_normal(n_targets)
        r = np.stack([np.zeros(n_targets), difference])
        _, low, high, _ = over_targets(r, np.zeros_like(r), roi_masks(None, n_targets), 400, seed)
        inside += low[0, 1] <= truth <= high[0, 1]
    assert 0.88 <= inside / n_experiments <= 0.98

    n_rows, inside = 200, 0
    noise = (1.0, 1.4)
    expected = [1 / np.sqrt(1 + one**2) for one in noise]
    for seed in range(n_experiments):
        signal = rng.standard_normal((n_rows, 1))
        said = [[(signal + one * rng.standard_normal((n_rows, 1))).astype("f4")] for one in noise]
        low, high = over_stimuli(
            said, [signal.astype("f4")], [np.arange(n_rows)], [1, 1], roi_masks(None, 1), 400, seed
        )
        inside += low[0, 0] <= expected[0] - expected[1] <= high[0, 0]
    assert 0.88 <= inside / n_experiments <= 0.99


def test_intervals_of_many_targets_are_the_same_without_drawing(rng, monkeypatch):
    difference = 0.05 + 0.1 * rng.standard_normal((1, 9000))
    masks = roi_masks(None, 9000)
    drawn = over_targets(difference, np.zeros((1, 9000)), masks, 1000, 0)
    monkeypatch.setattr("neurodl.scores.paired.BOOTSTRAP_LIMIT", 1000)
    normal = over_targets(difference, np.zeros((1, 9000)), masks, 1000, 0)
    np.testing.assert_allclose(normal.low, drawn.low, atol=2e-4)
    np.testing.assert_allclose(normal.high, drawn.high, atol=2e-4)


def test_resampled_correlations_are_those_of_drawn_rows(rng):
    from neurodl.scores.paired import _drawn, _weighted_r

    p, y = rng.standard_normal((2, 30, 4)).astype("f4")
    y[2:5, 1] = np.nan
    units = np.repeat(np.arange(15), 2)
    counts = _drawn(units, 20, 0)
    assert (counts[:, ::2] == counts[:, 1::2]).all() and (counts.sum(1) == 30).all()
    found = _weighted_r(counts, p, y)
    for sample in range(20):
        rows = np.repeat(np.arange(30), counts[sample].astype(int))
        for target in range(4):
            known = rows[np.isfinite(y[rows, target])]
            by_hand = np.corrcoef(p[known, target], y[known, target])[0, 1]
            assert found[sample, target] == pytest.approx(by_hand, abs=1e-4)


@pytest.mark.slow
def test_it_says_so_when_tuning_wins_and_when_it_does_not(backbone):
    stimuli = random_stimuli(420)
    narrow = small_backbone(width=8)
    options = {
        "lr": 0.02, "core_lr": 5e-3, "readout_epochs": 60, "max_epochs": 30, "patience": 6,
        "device": "cpu", "layers": "block2", "cv": 2, "averages": False,
    }  # fmt: skip
    moved = gaussian_responses(
        layer_output(perturbed(narrow.module, 1.0), stimuli, "block2"), 16, 0.2
    )
    won = ndl.comparison_table(
        ndl.compare(experiment_of(stimuli, moved), narrow, ["ridge", "all"], **options)
    ).set_index("adaptation")
    assert won.loc["all", "low_over_targets"] > 0 and won.loc["all", "low_over_stimuli"] > 0
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((420, 16)).astype("f4")
    lost = ndl.comparison_table(
        ndl.compare(experiment_of(stimuli, noise), narrow, ["ridge", "all"], **options)
    ).set_index("adaptation")
    # Of noise, most targets are predicted by a constant, which has no correlation.
    assert not lost.loc["all", "low_over_targets"] > 0
    assert not lost.loc["all", "gain"] > 0.05


def test_wrong_use_says_what_to_do(experiment, backbone):
    with pytest.raises(UnknownNameError, match="no 'loar'. Did you mean 'lora'"):
        ndl.compare(experiment, backbone, ["loar"])
    with pytest.raises(
        UnknownNameError, match="no parameter 'max_epoch'. Did you mean 'max_epochs"
    ):
        ndl.compare(experiment, backbone, ["all"], max_epoch=3)
    with pytest.raises(SchemaError, match="from 8 to the 60 training rows"):
        ndl.compare(experiment, backbone, ["ridge"], cv=3, n_train=[70], layers="block2")
    with pytest.raises(SchemaError, match="`backbones` is empty"):
        ndl.compare(experiment, [], ["ridge"])
    with pytest.raises(UnknownNameError, match="block2"):
        ndl.compare(experiment, backbone, ["ridge"], layers="blok2", cv=3)
    with pytest.raises(SchemaError, match="of no comparison"):
        ndl.comparison_table(xr.Dataset())


def test_a_model_of_ones_own_can_be_compared(experiment, backbone):
    from sklearn.linear_model import Ridge

    scores = ndl.compare(
        experiment, {"net": backbone}, {"mine": Ridge(10.0)}, layers="block2", cv=3, device="cpu"
    )
    features = ndl.extract_features(backbone, experiment.stimuli, "block2")
    alone = ndl.cross_validate(Ridge(10.0), features, experiment.responses, cv=3)
    np.testing.assert_allclose(scores["r"].sel(layer="net/mine"), alone["r"].values[0], atol=1e-5)


def test_what_cannot_be_correlated_counts_for_neither_model(rng):
    truth = rng.standard_normal((60, 3)).astype("f4")
    good = truth + 0.5 * rng.standard_normal((60, 3)).astype("f4")
    constant = good.copy()
    constant[:, 0] = 1.0

    def interval(one, other, columns):
        said = [[one[:, columns]], [other[:, columns]]]
        rows, few = np.arange(60), roi_masks(None, len(columns))
        return over_stimuli(said, [truth[:, columns]], [rows], [0, 0], few, 50, 0)

    low, high = interval(good, constant, [0, 1, 2])
    assert low[0, 1] == high[0, 1] == 0  # where both have a correlation they are the same
    assert np.isnan(interval(good, constant, [0])[0][0, 1])


def test_layers_of_no_backbone_are_an_error(experiment, backbone):
    with pytest.raises(UnknownNameError, match="'nett', which is no backbone. Did you mean 'net'"):
        ndl.compare(experiment, {"net": backbone}, ["ridge"], layers={"nett": "block2"}, cv=3)
    with pytest.raises(SchemaError, match="must mean one layer"):
        ndl.compare(experiment, {"net": backbone}, ["ridge"], layers="block*", cv=3)
