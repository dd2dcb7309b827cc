"""cross_validate with models that take all layers at once, each as a band."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from sklearn.base import BaseEstimator
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import neurodl as ndl
from neurodl.errors import SchemaError, UnknownNameError
from neurodl.models import BandedRidgeCV, StackedRidgeCV
from neurodl.scores import cross_validate, make_splits, permutation_test

IDS = [f"image{i:02d}" for i in range(60)]
ALPHAS = [1.0, 10.0, 100.0]
pytestmark = pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")


@pytest.fixture
def layers():
    rng = np.random.default_rng(0)
    return {
        name: xr.DataArray(
            rng.standard_normal((60, size)).astype("f4"),
            dims=("stimulus", "feature"),
            coords={"stimulus": IDS},
            attrs={"backbone": "test", "layer": name},
        )
        for name, size in (("early", 5), ("middle", 30), ("late", 8))
    }


@pytest.fixture
def kernels(layers):
    """The kernels of the layers, each with its columns in another order."""
    found = {}
    for number, (name, x) in enumerate(layers.items()):
        order = np.random.default_rng(number).permutation(60)
        found[name] = xr.DataArray(
            (x.values @ x.values.T)[:, order],
            dims=("stimulus", "feature"),
            coords={"stimulus": IDS, "feature": np.array(IDS)[order]},
            attrs={"kind": "kernel", "n_features": x.shape[1], "layer": name},
        )
    return found


@pytest.fixture
def responses(layers):
    rng = np.random.default_rng(1)
    signal = [layers[name].values @ rng.standard_normal((n, 3)) for name, n in SOURCES]
    values = np.concatenate(signal, 1) + rng.standard_normal((60, 6))
    return xr.DataArray(
        values.astype("f4"),
        dims=("stimulus", "unit"),
        coords={"stimulus": IDS, "run": ("stimulus", np.repeat(list("abcdef"), 10))},
        attrs={"units": "spikes / s"},
    )


SOURCES = [("early", 5), ("late", 8)]


@pytest.mark.parametrize("combine", ["stack", "select"])
@pytest.mark.parametrize("groups", [None, "run"])
def test_each_layer_is_a_band(layers, responses, combine, groups):
    model = StackedRidgeCV(ALPHAS, combine=combine, cv=3, device="cpu")
    scores = cross_validate(model, layers, responses, groups=groups, keep_predictions=True)
    assert scores["layer"].values.tolist() == ["all"]
    assert scores["band"].values.tolist() == ["early", "middle", "late"]
    assert scores["n_features"].item() == 43
    splits, labels, _ = make_splits(responses, 5, groups, 0)
    X = np.concatenate([x.values for x in layers.values()], 1)
    alone = StackedRidgeCV(
        ALPHAS, bands={"e": 5, "m": 30, "l": 8}, combine=combine, cv=3, device="cpu"
    )
    for fold, (train, test) in enumerate(splits):
        own = None if labels is None else labels[train]
        alone.fit(X[train], responses.values[train], groups=own)
        found = scores.isel(layer=0, fold=fold)
        np.testing.assert_allclose(found["weight"], alone.weight_, atol=1e-3)
        np.testing.assert_allclose(found["alpha_by_band"], alone.alpha_by_band_, rtol=1e-5)
        np.testing.assert_allclose(found["cv_score_by_band"], alone.cv_score_by_band_, atol=1e-4)
        np.testing.assert_allclose(found["alpha"], alone.alpha_, rtol=1e-5)
        predicted = scores["predicted"].values[0][test]
        np.testing.assert_allclose(predicted, alone.predict(X[test]), atol=1e-3)
    for name in ("weight", "alpha_by_band", "cv_score_by_band"):
        assert scores[name].dims == ("layer", "fold", "band", "unit")
    leading = scores["weight"].mean("fold")[0].idxmax("band").values.tolist()
    assert leading == ["early"] * 3 + ["late"] * 3


def test_layers_are_paired_by_id_and_targets_excluded(layers, responses):
    model = StackedRidgeCV(ALPHAS, device="cpu")
    cv = [(np.arange(40), np.arange(40, 60))]
    expected = cross_validate(model, layers, responses, cv=cv)
    order = np.random.default_rng(5).permutation(60)
    shuffled = {name: array[order] for name, array in layers.items()}
    broken = responses.copy(deep=True)
    broken[3, 2] = np.nan
    found = cross_validate(model, shuffled, broken, cv=cv)
    others = np.arange(6) != 2
    for name in ("r", "weight", "alpha_by_band"):
        np.testing.assert_allclose(found[name][..., others], expected[name][..., others], rtol=1e-3)
        assert np.isnan(found[name][..., 2]).all()


@pytest.mark.parametrize("combine", ["stack", "select"])
def test_kernels_side_by_side_score_as_their_features(layers, kernels, responses, combine):
    options = {"combine": combine, "device": "cpu"}
    given = StackedRidgeCV(ALPHAS, kernel="precomputed", **options)
    linear = StackedRidgeCV(ALPHAS, standardize=False, **options)
    found = cross_validate(given, kernels, responses)
    expected = cross_validate(linear, layers, responses)
    for name in ("r", "r2", "weight", "cv_score_by_band"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-3)
    assert found["n_features"].item() == 43


@pytest.mark.parametrize("kind", ["features", "kernels"])
def test_a_pipeline_is_told_the_bands_of_its_columns(layers, kernels, responses, kind):
    options = {"kernel": "precomputed"} if kind == "kernels" else {}
    model = StackedRidgeCV(ALPHAS, device="cpu", **options)
    X = kernels if kind == "kernels" else layers
    expected = cross_validate(model, X, responses)
    found = cross_validate(make_pipeline(FunctionTransformer(), model), X, responses)
    np.testing.assert_allclose(found["r"], expected["r"], atol=1e-4)


def test_a_model_told_its_bands_takes_each_layer_for_itself(layers, responses):
    late = layers["late"]
    model = StackedRidgeCV(ALPHAS, bands={"a": 3, "b": 5}, device="cpu")
    scores = cross_validate(model, {"one": late, "two": late}, responses)
    assert scores["layer"].values.tolist() == ["one", "two"]
    np.testing.assert_allclose(*scores["r"].values)
    assert scores["band"].values.tolist() == ["a", "b"]
    assert scores["weight"].dims == ("layer", "fold", "band", scores["r"].dims[-1])
    np.testing.assert_allclose(scores["weight"].sum("band"), 1, rtol=1e-5)


class Spy(BaseEstimator):
    """Remembers which rows and columns it was given."""

    seen: list[tuple[set[int], list[str]]] = []

    def __init__(self, bands=None):
        self.bands = bands

    def fit(self, X, y):
        self.seen.append((set(X[:, 0].astype(int)), list(self.bands)))
        self.mean_ = y.mean(0)
        return self

    def predict(self, X):
        return X[:, :1] + self.mean_


def test_fit_never_sees_test_rows(layers, responses):
    layers["early"].values[:, 0] = np.arange(60)
    Spy.seen.clear()
    cross_validate(Spy(), layers, responses, cv=KFold(3))
    names = ["early"] * 5 + ["middle"] * 30 + ["late"] * 8
    assert Spy.seen == [(set(train), names) for train, _ in KFold(3).split(IDS)]


def test_scores_with_bands_are_kept_and_reported(layers, responses, tmp_path):
    scores = cross_validate(StackedRidgeCV(ALPHAS, device="cpu"), layers, responses)
    ndl.save(scores, tmp_path / "scores.nc")
    xr.testing.assert_allclose(ndl.load(tmp_path / "scores.nc"), scores)
    ndl.report(scores).save(tmp_path / "report.html")
    assert "all" in (tmp_path / "report.html").read_text()


def test_wrong_uses_say_what_to_do(layers, kernels, responses):
    with pytest.raises(SchemaError, match="are kernels"):
        cross_validate(StackedRidgeCV(device="cpu"), kernels, responses)
    with pytest.raises(SchemaError, match="are features"):
        cross_validate(StackedRidgeCV(kernel="precomputed", device="cpu"), layers, responses)
    with pytest.raises(ValueError, match="has to be fitted anew"):
        permutation_test(StackedRidgeCV(device="cpu"), layers, responses, n_permutations=2)


def banded(**options):
    return BandedRidgeCV(**{"cv": 3, "device": "cpu"} | options)


@pytest.mark.parametrize("groups", [None, "run"])
def test_each_layer_is_a_band_with_a_penalty_and_a_part_of_r2(layers, responses, groups):
    scores = cross_validate(banded(), layers, responses, groups=groups)
    assert scores["layer"].values.tolist() == ["all"]
    assert scores["band"].values.tolist() == ["early", "middle", "late"]
    for name in ("alpha_by_band", "r2_by_band"):
        assert scores[name].dims == ("layer", "fold", "band", "unit")
    leading = scores["r2_by_band"].mean("fold")[0].idxmax("band").values.tolist()
    assert leading == ["early"] * 3 + ["late"] * 3
    smallest = scores["alpha_by_band"].median("fold")[0].idxmin("band").values.tolist()
    assert smallest == leading
    assert scores["r"].mean() > 0.6


def test_given_penalties_are_those_of_a_model_of_each_fold(layers, responses):
    penalties = [2.0, 300.0, 5.0]
    model = banded(alphas_by_band=penalties)
    scores = cross_validate(model, layers, responses, keep_predictions=True)
    splits, _, _ = make_splits(responses, 5, None, 0)
    X, Y = np.concatenate([x.values for x in layers.values()], 1), responses.values
    alone = banded(alphas_by_band=penalties, bands={"early": 5, "middle": 30, "late": 8})
    for fold, (train, test) in enumerate(splits):
        alone.fit(X[train], Y[train])
        found = scores.isel(layer=0, fold=fold)
        np.testing.assert_allclose(found["alpha_by_band"].T, np.tile(penalties, (6, 1)), rtol=1e-5)
        np.testing.assert_allclose(found["alpha"], alone.alpha_, rtol=1e-5)
        predicted = scores["predicted"].values[0][test]
        np.testing.assert_allclose(predicted, alone.predict(X[test]), atol=1e-4)
        # parts sum to r2 but for the difference of means
        mean = Y[test].mean(0)
        apart = (Y[train].mean(0) - mean) * (predicted.mean(0) - mean) / Y[test].var(0)
        np.testing.assert_allclose(found["r2_by_band"].sum("band") - apart, found["r2"], atol=1e-4)


def test_kernels_as_bands_score_as_their_features(layers, kernels, responses):
    found = cross_validate(banded(kernel="precomputed"), kernels, responses)
    expected = cross_validate(banded(standardize=False), layers, responses)
    for name in ("r", "r2", "r2_by_band"):
        np.testing.assert_allclose(found[name], expected[name], atol=5e-3)


@pytest.mark.parametrize("kind", ["features", "kernels"])
def test_a_pipeline_ends_in_a_penalty_for_each_band(layers, kernels, responses, kind):
    model = banded(**({"kernel": "precomputed"} if kind == "kernels" else {}))
    X = kernels if kind == "kernels" else layers
    expected = cross_validate(model, X, responses)
    found = cross_validate(make_pipeline(FunctionTransformer(), model), X, responses)
    np.testing.assert_allclose(found["r"], expected["r"], atol=1e-3)


def test_delays_of_bands_stay_within_runs(layers, responses):
    model = banded(delays=[0, 1], centre="runs")
    scores = cross_validate(model, layers, responses, cv=3, groups="run")
    assert scores["r2_by_band"].sizes["band"] == 3
    assert np.isfinite(scores["r2_by_band"]).all()
    assert scores["r"].mean() > 0.5


def test_parts_of_bands_are_kept_and_reported(layers, responses, tmp_path):
    broken = responses.copy(deep=True)
    broken[3, 2] = np.nan
    scores = cross_validate(banded(), layers, broken)
    others = np.arange(6) != 2
    np.testing.assert_array_equal(
        np.isfinite(scores["r2_by_band"]).all(("fold", "band"))[0], others
    )
    ndl.save(scores, tmp_path / "scores.nc")
    xr.testing.assert_allclose(ndl.load(tmp_path / "scores.nc"), scores)
    ndl.report(scores).save(tmp_path / "report.html")


def test_penalties_of_bands_cannot_be_permuted(layers, responses):
    with pytest.raises(ValueError, match="has to be fitted anew"):
        permutation_test(banded(), layers, responses, n_permutations=2)


# Selection inside the folds


def inner_scores(layers, responses, splits, alphas):
    """Mean inner r2 of each layer, penalty and target, and the test predictions, by hand."""
    for train, test in splits:
        found = np.zeros((len(layers), len(alphas), responses.shape[1]))
        inner = list(KFold(3, shuffle=True, random_state=0).split(train))
        for row, x in enumerate(layers.values()):
            values = (x.values - x.values[train].mean(0)).astype(float)
            for column, alpha in enumerate(alphas):
                for own, held in inner:
                    fit = Ridge(alpha).fit(values[train[own]], responses.values[train[own]])
                    predicted = fit.predict(values[train[held]])
                    truth = responses.values[train[held]]
                    found[row, column] += r2_score(truth, predicted, multioutput="raw_values") / 3
        yield train, test, found


@pytest.mark.parametrize("regions", [None, "roi"])
def test_layer_and_penalty_are_chosen_inside_the_folds(layers, responses, regions):
    roi = np.array(["V1", "V1", "V4", "V4", "V4", "IT"])
    responses = responses.assign_coords(roi=("unit", roi))
    model = StackedRidgeCV(
        ALPHAS, combine="select", regions=regions, cv=3, standardize=False, device="cpu"
    )
    scores = cross_validate(model, layers, responses, cv=4, keep_predictions=True)
    splits, _, _ = make_splits(responses, 4)
    names = list(layers)
    for fold, (train, test, found) in enumerate(inner_scores(layers, responses, splits, ALPHAS)):
        best_alpha = found.argmax(1)
        judged = found.max(1)
        if regions:
            judged = np.stack([judged[:, roi == label].mean(1) for label in roi], 1)
        chosen = judged.argmax(0)
        recorded = scores["weight"][0, fold]
        assert (recorded.argmax("band") == chosen).all()
        assert set(np.unique(recorded)) == {0.0, 1.0}
        for target, layer in enumerate(chosen):
            alpha = ALPHAS[best_alpha[layer, target]]
            assert float(scores["alpha"][0, fold, target]) == alpha
            x = layers[names[layer]].values
            fit = Ridge(alpha).fit(x[train], responses.values[train, target])
            np.testing.assert_allclose(
                scores["predicted"][0, test, target], fit.predict(x[test]), atol=1e-3
            )
    if regions:
        assert (scores["weight"][0, :, :, 2] == scores["weight"][0, :, :, 4]).all()


def test_delays_are_chosen_as_layers_are():
    """Responses follow features by 2 or by 5 samples; each target picks its own delays."""
    rng = np.random.default_rng(0)
    run = np.repeat(["a", "b", "c", "d"], 60)
    coords = {"time": np.tile(np.arange(60.0), 4), "run": ("time", run)}
    x = rng.standard_normal((240, 3))
    X = xr.DataArray(x, coords, ("time", "feature"))
    late = {k: np.concatenate([np.roll(x[run == r], k, 0) for r in "abcd"]) for k in (2, 5)}
    y = np.stack([late[2][:, 0], late[5][:, 1], late[2][:, 2]], 1)
    Y = xr.DataArray(
        y + 0.5 * rng.standard_normal(y.shape),
        coords,
        ("time", "voxel"),
        attrs={"units": "BOLD", "tr": 1.0},
    )
    spaces = {
        name: ndl.align(X, to=Y, delays=delays)
        for name, delays in (("1-3", [1, 2, 3]), ("4-6", [4, 5, 6]))
    }
    model = StackedRidgeCV(combine="select", device="cpu")
    scores = cross_validate(model, spaces, Y, groups="run", cv=4)
    assert (scores["weight"].sel(band="1-3")[0] == [1, 0, 1]).all()
    assert scores["r"].min() > 0.6


def test_regions_are_only_for_selection(layers, responses):
    with pytest.raises(ValueError, match="only for combine='select'"):
        cross_validate(StackedRidgeCV(regions=list("aabbcc"), device="cpu"), layers, responses)
    with pytest.raises(UnknownNameError, match="the coord 'roi'"):
        model = StackedRidgeCV(combine="select", regions="roi", device="cpu")
        cross_validate(model, layers, responses)
    with pytest.raises(ValueError, match="a label for each of 6 targets"):
        model = StackedRidgeCV(combine="select", regions=["a"], device="cpu")
        cross_validate(model, layers, responses)
