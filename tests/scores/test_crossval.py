"""cross_validate: exactness, pairing, exclusions, and nothing fitted on test rows."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest
import xarray as xr
from sklearn.base import BaseEstimator
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from neurodl.errors import NeurodlWarning, PairingError, SchemaError, UnknownNameError
from neurodl.models import RidgeCV, _targets
from neurodl.scores import cross_validate, make_splits

IDS = [f"image{i:02d}" for i in range(60)]


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return {
        name: xr.DataArray(
            rng.standard_normal((60, 8)).astype("f4"),
            dims=("stimulus", "feature"),
            coords={"stimulus": IDS},
            attrs={"backbone": "test", "layer": name},
        )
        for name in ("early", "late")
    }


@pytest.fixture
def responses(features):
    rng = np.random.default_rng(1)
    signal = features["late"].values @ rng.standard_normal((8, 5))
    return xr.DataArray(
        (signal + rng.standard_normal((60, 5))).astype("f4"),
        dims=("stimulus", "unit"),
        coords={"stimulus": IDS, "roi": ("unit", ["V1", "V1", "V4", "V4", "V4"])},
        attrs={"units": "spikes / s"},
    )


def test_equals_a_loop_over_scikit_learn(features, responses):
    cv = KFold(4, shuffle=True, random_state=3)
    scores = cross_validate(Ridge(alpha=2.0), features, responses, cv=cv)
    assert scores["r"].dims == ("layer", "fold", "unit")
    for layer, array in features.items():
        for fold, (train, test) in enumerate(cv.split(array)):
            model = Ridge(alpha=2.0).fit(array[train], responses[train])
            predicted, observed = model.predict(array[test]), responses[test].values
            r = [np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, observed.T, strict=True)]
            r2 = 1 - ((predicted - observed) ** 2).sum(0) / (
                (observed - observed.mean(0)) ** 2
            ).sum(0)
            found = scores.sel(layer=layer).isel(fold=fold)
            np.testing.assert_allclose(found["r"], r, atol=1e-5)
            np.testing.assert_allclose(found["r2"], r2, atol=1e-5)


def test_pairs_by_id_whatever_the_order(features, responses):
    cv = [(np.arange(40), np.arange(40, 60))]
    expected = cross_validate(RidgeCV(device="cpu"), features, responses, cv=cv)
    order = np.random.default_rng(5).permutation(60)
    shuffled = {name: array[order] for name, array in features.items()}
    found = cross_validate(RidgeCV(device="cpu"), shuffled, responses, cv=cv)
    xr.testing.assert_allclose(found["r"], expected["r"])
    assert float(found["r"].sel(layer="late").mean()) > 0.8


def test_unknown_ids_are_named(features, responses):
    fewer = {name: array[3:] for name, array in features.items()}
    with pytest.raises(PairingError, match=r"3 ids.*'image00', 'image01', 'image02'"):
        cross_validate(RidgeCV(device="cpu"), fewer, responses)
    scores = cross_validate(RidgeCV(device="cpu"), fewer, responses, unpaired="drop")
    assert scores.attrs["n_samples"] == 57


class Spy(BaseEstimator):
    """Remembers which rows it was fitted on, as told by a feature that is the row number."""

    seen: list[set[int]] = []

    def fit(self, X, y):
        self.seen.append(set(X[:, 0].astype(int)))
        self.mean_ = y.mean(0)
        return self

    def predict(self, X):
        return X[:, :1] + self.mean_


def test_fit_never_sees_test_rows(features, responses):
    features["late"].values[:, 0] = np.arange(60)
    Spy.seen.clear()
    scores = cross_validate(Spy(), features["late"], responses, cv=5, keep_predictions=True)
    splits, _, _ = make_splits(responses, 5)
    assert Spy.seen == [set(train) for train, _ in splits]
    assert not any(Spy.seen[fold] & set(test) for fold, (_, test) in enumerate(splits))
    assert scores["predicted"].dims == ("layer", "stimulus", "unit")
    assert np.isfinite(scores["predicted"]).all()


def test_shuffled_responses_score_zero(features, responses):
    rng = np.random.default_rng(0)
    many = responses.isel(unit=np.arange(400) % 5).drop_vars("roi")
    values = np.stack([column[rng.permutation(60)] for column in many.values.T], 1)
    scores = cross_validate(RidgeCV(device="cpu"), features["late"], many.copy(data=values))
    r = scores["r"].mean("fold").values
    assert abs(r.mean()) < 4 * r.std() / np.sqrt(len(r))


def test_nan_and_constant_targets_are_counted_and_never_averaged(features, responses):
    broken = responses.copy(deep=True)
    broken[4, 0] = np.nan
    broken[:, 1] = 7.0
    scores = cross_validate(RidgeCV(device="cpu"), features, broken)
    assert np.isnan(scores["r"].values[..., :2]).all()
    counts = {key: scores.attrs[f"n_{key}"] for key in ("excluded", "missing", "constant")}
    assert counts == {"excluded": 2, "missing": 1, "constant": 1}
    whole = cross_validate(RidgeCV(device="cpu"), features, responses)
    np.testing.assert_allclose(scores["r"].values[..., 2:], whole["r"].values[..., 2:], atol=1e-5)
    broken[:] = 1.0
    with pytest.raises(SchemaError, match="No target can be scored"):
        cross_validate(RidgeCV(device="cpu"), features, broken)


def test_repeats_give_the_ceiling(features):
    rng = np.random.default_rng(2)
    signal = features["late"].values @ rng.standard_normal((8, 300))
    signal /= signal.std(0)
    values = signal[:, None] + rng.standard_normal((60, 4, 300))
    responses = xr.DataArray(
        values.astype("f4"),
        dims=("stimulus", "repeat", "voxel"),
        coords={"stimulus": IDS},
        attrs={"units": "BOLD"},
    )
    scores = cross_validate(LinearRegression(), features, responses)
    assert abs(float(scores["ceiling"].mean()) - 0.8) < 0.01
    np.testing.assert_allclose(
        scores["r_normalized"], scores["r"] / np.sqrt(scores["ceiling"]), rtol=1e-5
    )
    assert float(scores["r_normalized"].sel(layer="late").mean()) > 0.9
    assert scores.attrs["n_repeats"] == 4


def test_presentations_of_a_stimulus_stay_in_one_fold(features, responses):
    twice = xr.concat([responses, responses + 0.1], "stimulus")
    ids = twice["stimulus"].values
    shown = twice.drop_vars("stimulus").rename(stimulus="presentation")
    shown = shown.assign_coords(
        stimulus=("presentation", ids), run=("presentation", ["1"] * 60 + ["2"] * 60)
    )
    splits, _, text = make_splits(shown, 5)
    assert all(not set(ids[train]) & set(ids[test]) for train, test in splits)
    assert text == "5 folds by stimulus"
    with pytest.raises(ValueError, match=r"60 stimuli .* both in\s+training and in test"):
        cross_validate(
            RidgeCV(device="cpu"), features, shown, cv="leave-one-group-out", groups="run"
        )


def time_series():
    rng = np.random.default_rng(0)
    coords = {
        "time": np.tile(np.arange(30) * 2.0, 3),
        "run": ("time", np.repeat(["1", "2", "3"], 30)),
    }
    X = xr.DataArray(
        rng.standard_normal((90, 4)).astype("f4"), dims=("time", "feature"), coords=coords
    )
    Y = xr.DataArray(
        (X.values @ rng.standard_normal((4, 6))).astype("f4"),
        dims=("time", "voxel"),
        coords=coords,
        attrs={"units": "BOLD", "tr": 2.0},
    )
    return X, Y


def test_time_series_need_groups():
    X, Y = time_series()
    with pytest.raises(ValueError, match="groups='run'"):
        cross_validate(RidgeCV(device="cpu"), X.isel(time=slice(30)), Y.isel(time=slice(30)))
    # Several runs are kept whole by default, and 3 of them are no 5 folds.
    with pytest.raises(ValueError, match="the 3 groups of 'run'.*cv='leave-one-group-out'"):
        cross_validate(RidgeCV(device="cpu"), X, Y)
    scores = cross_validate(
        RidgeCV(device="cpu", cv=2), X, Y, cv="leave-one-group-out", groups="run"
    )
    assert scores.sizes["fold"] == 3
    assert scores["n_test"].values.tolist() == [30, 30, 30]
    assert float(scores["r"].min()) > 0.99
    later = Y.assign_coords(time=Y["time"].values + 1.0)
    with pytest.raises(PairingError, match="run 1 at 1.000 s"):
        cross_validate(RidgeCV(device="cpu"), X, later, groups="run")


def test_runs_of_several_sessions_may_have_the_same_names():
    X, Y = time_series()
    model = RidgeCV(device="cpu", cv=2)
    expected = cross_validate(model, X, Y, cv="leave-one-group-out", groups="run")
    same = {"run": ("time", ["1"] * 90), "session": ("time", np.repeat(["a", "b", "c"], 30))}
    with pytest.raises(PairingError, match="Features .*rows for .*run 1 at 0.000 s.*session"):
        cross_validate(model, X.assign_coords(same), Y, groups="run")
    with pytest.raises(PairingError, match="Responses .*several rows for .*run 1 at 0.000 s"):
        cross_validate(model, X[:30], Y.assign_coords(same), groups="session")
    X, Y = X.assign_coords(same), Y.assign_coords(same)
    X = X[np.r_[60:90, 0:60]]
    found = cross_validate(model, X, Y, cv="leave-one-group-out", groups="session")
    np.testing.assert_allclose(found["r"], expected["r"], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cv": 61}, ValueError, "between 2 and the 60 rows"),
        ({"cv": [(np.arange(50), np.arange(40, 60))]}, ValueError, "the same rows"),
        ({"groups": "rin"}, UnknownNameError, "'rin'"),
        ({"cv": "leave-one-out"}, UnknownNameError, "leave-one-group-out"),
        ({"cv": "leave-one-group-out"}, ValueError, "needs `groups`"),
    ],
)
def test_impossible_folds(features, responses, options, error, message):
    with pytest.raises(error, match=message):
        cross_validate(RidgeCV(device="cpu"), features, responses, **options)


def test_any_estimator_and_its_pipeline_work(features, responses):
    pipeline = make_pipeline(StandardScaler(), RidgeCV(device="cpu"))
    assert float(cross_validate(pipeline, features, responses)["r"].sel(layer="late").mean()) > 0.7


def test_warnings_of_fits_are_said_once_with_their_number(features, responses):
    with pytest.warns(NeurodlWarning, match="10 of 10 fits warned") as caught:
        cross_validate(RidgeCV([1e8, 1e9], device="cpu"), features, responses)
    assert len(caught) == 1


def test_same_seed_same_scores(features, responses):
    first, second = (
        cross_validate(RidgeCV(device="cpu"), features, responses, seed=4) for _ in range(2)
    )
    xr.testing.assert_equal(first, second)
    other = cross_validate(RidgeCV(device="cpu"), features, responses, seed=5)
    assert not np.allclose(first["r"], other["r"])


def test_several_devices_give_the_same_scores_and_are_named(features, responses):
    single = cross_validate(RidgeCV(device="cpu"), features, responses)
    several = cross_validate(RidgeCV(device=["cpu", "cpu"]), features, responses)
    xr.testing.assert_allclose(several, single, atol=1e-5)
    assert several.attrs["device"] == ", ".join([single.attrs["device"]] * 2)
    pipeline = make_pipeline(StandardScaler(), RidgeCV(device="cpu"))
    assert cross_validate(pipeline, features, responses).attrs["device"].startswith("cpu (")


@pytest.mark.parametrize("model", [RidgeCV(device="cpu"), Ridge()])
def test_one_bar_counts_layers_folds_and_targets(features, responses, monkeypatch, capsys, model):
    monkeypatch.setattr(_targets, "MAX_TARGETS", {"cpu": 2})
    monkeypatch.setattr(_targets, "MIN_TARGETS", 1)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    update, steps = tqdm.update, []
    monkeypatch.setattr(
        tqdm, "update", lambda bar, n: [steps.append((bar.total, n)), update(bar, n)]
    )
    cross_validate(model, features, responses, cv=4)
    assert {total for total, _ in steps} == {40}  # 2 layers x 4 folds x 5 targets
    assert sum(n for _, n in steps) == 40 and len(steps) >= 8
    written = capsys.readouterr().err
    assert "fit:" in written and "\n" not in written  # one line, that is cleared


@pytest.mark.parametrize("device", ["cpu", ["cpu", "cpu"]])
def test_an_interrupt_ends_it_and_leaves_no_thread(features, responses, device, monkeypatch):
    read, seen = _targets.Targets.block, []

    def interrupted(self, start):
        seen.append(start)
        if len(seen) > 9:
            raise KeyboardInterrupt
        return read(self, start)

    monkeypatch.setattr(_targets.Targets, "block", interrupted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        cross_validate(RidgeCV(device=device), features, responses)
    assert threading.active_count() == before
