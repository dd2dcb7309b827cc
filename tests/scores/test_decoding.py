"""Decoding: what is there is found, by what scikit-learn does; what is not there is at chance."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import neurodl as ndl
from neurodl.errors import SchemaError, UnknownNameError
from neurodl.models import RidgeCV, SequenceDecoder
from neurodl.scores import decode

N, T, UNITS = 96, 12, 15


@pytest.fixture(scope="module")
def trials():
    """Return trials in which a choice shows in the second half, at first in some units."""
    rng = np.random.default_rng(0)
    choice = rng.permutation(np.repeat(["left", "right"], N // 2))
    drive = np.zeros((N, T, UNITS))
    late = np.arange(T) >= T // 2
    drive[:, late, :8] = (choice == "left")[:, None, None] * 0.9
    wheel = np.cumsum(rng.standard_normal((N, T)), 1) / 3
    drive[..., 8:] += 0.8 * wheel[..., None]
    return xr.DataArray(
        rng.poisson(np.exp(drive)).astype("f4"),
        dims=("presentation", "time", "unit"),
        coords={
            "stimulus": ("presentation", [f"s{number}" for number in range(N)]),
            "choice": ("presentation", choice),
            "number": ("presentation", rng.standard_normal(N)),
            "session": ("presentation", np.repeat(["a", "b", "c", "d"], N // 4)),
            "wheel": (("presentation", "time"), wheel.astype("f4")),
            "time": np.arange(T) / 20,
        },
        attrs={"units": "spikes", "bin_width": 0.05},
    )


@pytest.mark.parametrize("model", ["logistic", "linear"])
def test_a_choice_is_read_when_it_is_there(trials, model):
    trials = trials.isel(time=[4, 8])
    found = decode(trials, "choice", model=model)
    assert found["accuracy"].dims == ("fold", "time")
    by_time = found["accuracy"].mean("fold").values
    assert by_time[0] < 0.65 and by_time[1] > 0.8
    assert found.attrs["classes"] == "left, right" and found.attrs["chance"] == pytest.approx(
        0.5, abs=0.1
    )
    assert found["n_test"].sum() == N


def test_accuracies_are_those_of_scikit_learn(trials):
    whole = trials.sum("time").assign_attrs(units="spikes")
    found = decode(whole, "choice", model="linear", cv=4, seed=3)
    assert found["accuracy"].dims == ("fold",)
    lda = make_pipeline(
        StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    )
    folds = StratifiedKFold(4, shuffle=True, random_state=3)
    expected = cross_val_score(lda, whole.values.astype(float), whole["choice"].values, cv=folds)
    np.testing.assert_allclose(found["accuracy"], expected, rtol=1e-6)
    own = decode(whole, "choice", model=LogisticRegression(C=0.1), cv=4, seed=3)
    expected = cross_val_score(
        LogisticRegression(C=0.1), whole.values.astype(float), whole["choice"].values, cv=folds
    )
    np.testing.assert_allclose(own["accuracy"], expected, rtol=1e-6)


def test_generalization_over_time(trials):
    found = decode(trials, "choice", model="linear", generalize=True)
    matrix = found["balanced_accuracy"].mean("fold")
    assert matrix.dims == ("train_time", "time")
    half = T // 2
    assert matrix[half:, half:].min() > 0.7 and matrix[:half].mean() < 0.6
    np.testing.assert_allclose(
        np.diag(matrix), decode(trials, "choice", model="linear")["balanced_accuracy"].mean("fold")
    )
    with pytest.raises(SchemaError, match="needs time bins"):
        decode(trials.isel(time=0, drop=True), "choice", generalize=True)


def test_rare_classes_do_not_look_decoded():
    rng = np.random.default_rng(1)
    label = np.repeat(["common", "rare"], [80, 20])
    noise = xr.DataArray(
        rng.poisson(2.0, (100, 6)).astype("f4"),
        dims=("presentation", "unit"),
        coords={"stimulus": ("presentation", label), "label": ("presentation", label)},
        attrs={"units": "spikes"},
    )
    found = decode(noise, "label", model="logistic")
    assert found["accuracy"].mean() > 0.7 and found.attrs["chance"] == pytest.approx(0.8)
    assert abs(float(found["balanced_accuracy"].mean()) - 0.5) < 0.1


def test_p_is_uniform_where_there_is_nothing():
    p = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        noise = xr.DataArray(
            rng.poisson(2.0, (40, 5)).astype("f4"),
            dims=("presentation", "unit"),
            coords={
                "stimulus": ("presentation", [f"s{i}" for i in range(40)]),
                "label": ("presentation", rng.permutation(np.repeat(["a", "b"], 20))),
            },
            attrs={"units": "spikes"},
        )
        found = decode(noise, "label", model="linear", cv=3, n_permutations=19, seed=seed)
        p.append(float(found["p"]))
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert min(p) >= 1 / 20


def test_p_over_time_is_corrected_by_the_largest(trials):
    part = trials.isel(time=slice(3, 9))
    found = decode(part, "choice", model="linear", cv=3, n_permutations=19)
    assert found["p"].dims == ("time",)
    assert (found["p_fwe"] >= found["p"]).all()
    assert (found["p_fwe"][3:] == 1 / 20).all() and (found["p_fwe"][:3] > 0.05).all()


def test_labels_are_exchanged_whole_groups_at_a_time(trials):
    from neurodl.scores.decoding import _shuffled

    groups = np.repeat(["a", "b", "c", "d"], 6)
    labels = np.repeat(["x", "y", "x", "y"], 6)
    rng = np.random.default_rng(0)
    for _ in range(10):
        new = _shuffled(labels, groups, rng)
        assert all(len(set(new[groups == name])) == 1 for name in "abcd")
    within = np.tile(["x", "y"], 12)
    new = _shuffled(within, groups, rng)
    assert all((new[groups == name] == "x").sum() == 3 for name in "abcd")
    found = decode(trials.isel(time=slice(7, 9)), "choice", model="linear", cv=4, groups="session")
    assert found["n_test"].values.tolist() == [24] * 4


def test_numbers_of_presentations(trials):
    found = decode(trials.isel(time=slice(6, 8)), "number", model="ridge", device="cpu")
    assert found["r"].dims == ("fold", "time") and abs(float(found["r"].mean())) < 0.35
    total = trials.values.sum((1, 2)).astype(float)
    whole = (
        trials.assign_coords(total=("presentation", total)).sum("time").assign_attrs(units="spikes")
    )
    assert decode(whole, "total", model="ridge", device="cpu")["r2"].mean() > 0.95


def test_a_wheel_is_regressed_in_whole_presentations(trials):
    found = decode(trials, "wheel", model="ridge", device="cpu")
    assert found["r"].dims == ("layer", "fold", "channel") and float(found["r"].mean()) > 0.7
    assert found.attrs["groups"] == "run" and found.attrs["label"] == "wheel"
    series = ndl.as_runs(trials)
    expected = ndl.cross_validate(
        RidgeCV(device="cpu"),
        ndl.population_features(series),
        xr.DataArray(
            series["wheel"].values[:, None],
            {name: series[name].variable for name in ("time", "run", "stimulus")},
            ("time", "channel"),
            attrs={"units": "wheel", "bin_width": 0.05},
        ),
        groups="run",
    )
    np.testing.assert_allclose(found["r"], expected["r"], rtol=1e-5)
    with_past = decode(trials, "wheel", model=RidgeCV(delays=[0, 1, 2], device="cpu"))
    assert float(with_past["r"].mean()) > float(found["r"].mean())
    network = SequenceDecoder(max_epochs=15, lr=0.02, batch_size=8, patience=15, device="cpu")
    with pytest.warns(ndl.NeurodlWarning, match="still fell"):
        assert float(decode(trials, "wheel", model=network, cv=2)["r"].mean()) > 0.7
    hidden = trials.copy()
    hidden["wheel"] = hidden["wheel"].where(hidden["wheel"] < hidden["wheel"].max())
    assert decode(hidden, "wheel", model="ridge", device="cpu").attrs["n_dropped"] == 1


def test_a_network_decodes_from_the_presentation_so_far(trials):
    network = SequenceDecoder(
        targets="classes", hidden_size=16, dropout=0.3, weight_decay=3.0, max_epochs=20, lr=0.01,
        batch_size=8, validation=0.0, device="cpu",
    )  # fmt: skip
    found = decode(trials, "choice", model=network, cv=3)["accuracy"].mean("fold").values
    assert found[: T // 2].max() < 0.65 and found[-3:].mean() > 0.9 > found[T // 2]
    for wrong, options in ((trials.isel(time=0, drop=True), {}), (trials, {"generalize": True})):
        with pytest.raises(SchemaError, match="reads whole presentations bin by bin"):
            decode(wrong, "choice", model=network, **options)


def test_missing_labels_are_left_out_and_counted(trials):
    some = trials["choice"].values.copy()
    some[:7] = ""
    found = decode(trials.assign_coords(choice=("presentation", some)), "choice", model="linear")
    assert found.attrs["n_dropped"] == 7 and found.attrs["n_samples"] == N - 7


def test_bad_input_is_named(trials):
    with pytest.raises(UnknownNameError, match="Did you mean 'choice'"):
        decode(trials, "choise")
    with pytest.raises(UnknownNameError, match="Did you mean 'logistic'"):
        decode(trials, "choice", model="logist")
    with pytest.raises(UnknownNameError, match="Did you mean 'session'"):
        decode(trials, "choice", groups="sessions")
    with pytest.raises(SchemaError, match="no categories: take model='ridge'"):
        decode(trials, "number")
    with pytest.raises(SchemaError, match="numbers over time, which model='logistic'"):
        decode(trials, "wheel")
    for options in ({"generalize": True}, {"n_permutations": 9}):
        with pytest.raises(SchemaError, match="leave them out"):
            decode(trials, "wheel", model="ridge", **options)
    one = trials.assign_coords(choice=("presentation", ["left"] * N))
    with pytest.raises(SchemaError, match="has 1 class"):
        decode(one, "choice")
    few = trials.assign_coords(choice=("presentation", ["left"] * (N - 3) + ["right"] * 3))
    with pytest.raises(SchemaError, match="has 3 presentations of 'right', but 5 are needed"):
        decode(few, "choice")
    with pytest.raises(SchemaError, match="needs dims"):
        decode(ndl.as_runs(trials), "choice")
    broken = trials.copy()
    broken[0, 0, 2] = np.nan
    with pytest.raises(SchemaError, match="1 of 15 units have missing values"):
        decode(broken, "choice")
