"""Networks over time: what they may know, what they learn of a known system, how they are kept."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.base import clone

import neurodl as ndl
from neurodl.datasets import simulate_population
from neurodl.errors import DeviceError, NeurodlWarning, TrainingError, UnknownNameError
from neurodl.metrics import bits_per_spike
from neurodl.models import PoissonRidgeCV, RidgeCV, SequenceDecoder, SequenceEncoder, _sequences
from neurodl.models._sequences import pieces, stretches

CELLS = _sequences.CELLS
LENGTHS = (12, 20, 7, 20, 15, 9)
pytestmark = pytest.mark.filterwarnings("ignore:.*The validation loss still fell")


def lagged(n_runs=24, n_rows=30, n_features=3, lag=2, noise=0.1, seed=0):
    """Return features, and responses that follow them `lag` rows later, with the runs of rows."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_runs, n_rows, n_features)).astype(np.float32)
    late = np.zeros_like(X)
    late[:, lag:] = X[:, :-lag]
    Y = late @ rng.standard_normal((n_features, 2)) + noise * rng.standard_normal(
        (n_runs, n_rows, 2)
    )
    runs = np.repeat(np.arange(n_runs), n_rows)
    return X.reshape(-1, n_features), Y.reshape(-1, 2).astype(np.float32), runs


def quick(kind=SequenceEncoder, cell="gru", **options):
    defaults = {"hidden_size": 8, "max_epochs": 3, "validation": 0.0, "device": "cpu"}
    return kind(cell, **{**defaults, **options})


def unequal(seed=0):
    rng = np.random.default_rng(seed)
    n = sum(LENGTHS)
    runs = np.repeat([f"run{i}" for i in range(len(LENGTHS))], LENGTHS)
    return rng.standard_normal((n, 4)).astype("f4"), rng.poisson(1.0, (n, 3)).astype("f4"), runs


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_future_is_known_only_where_that_was_asked_for(cell, bidirectional):
    X, Y, runs = unequal()
    model = quick(cell=cell, bidirectional=bidirectional).fit(X, Y, runs=runs)
    said = model.predict(X, runs)
    later = X.copy()
    later[15:] += 5  # from the fourth row of the second run on
    changed = np.abs(model.predict(later, runs) - said).max(1) > 1e-6
    assert not changed[:12].any()  # another run
    assert changed[15:].all()
    assert changed[12:15].any() == bidirectional


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_runs_are_predicted_each_for_itself(cell, bidirectional):
    X, Y, runs = unequal()
    model = quick(cell=cell, bidirectional=bidirectional).fit(X, Y, runs=runs)
    together = model.predict(X, runs)
    for run in np.unique(runs):
        own = runs == run
        np.testing.assert_allclose(model.predict(X[own]), together[own], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_a_delay_is_learned(cell):
    X, Y, runs = lagged(n_runs=120)
    test = runs >= 100
    lr = 0.003 if cell == "transformer" else 0.01
    model = SequenceEncoder(
        cell, loss="mse", hidden_size=24, lr=lr, max_epochs=60, batch_size=6, device="cpu"
    ).fit(X[~test], Y[~test], runs=runs[~test])
    predicted = model.predict(X[test], runs[test])
    r = [np.corrcoef(predicted[:, k], Y[test][:, k])[0, 1] for k in range(2)]
    instant = RidgeCV(device="cpu").fit(X[~test], Y[~test]).predict(X[test])
    assert min(r) > 0.85 and np.corrcoef(instant[:, 0], Y[test][:, 0])[0, 1] < 0.3


def test_training_stops_at_the_best_epoch_and_keeps_it():
    X, Y, runs = lagged(n_runs=8, noise=4.0)  # so noisy that it is learned by heart
    model = SequenceEncoder(
        loss="mse", hidden_size=64, lr=0.02, max_epochs=200, patience=5, device="cpu"
    ).fit(X, Y, groups=np.repeat(np.arange(8), 30), runs=runs)
    held = [one["val_loss"] for one in model.history_]
    assert len(held) == int(np.argmin(held)) + 1 + 5 < 200
    again = SequenceEncoder(
        loss="mse", hidden_size=64, lr=0.02, max_epochs=int(np.argmin(held)) + 1, device="cpu"
    ).fit(X, Y, groups=np.repeat(np.arange(8), 30), runs=runs)
    np.testing.assert_array_equal(model.predict(X, runs), again.predict(X, runs))


def test_groups_validate_together(monkeypatch):
    X, Y, runs = lagged(n_runs=12)
    seen = {}

    def train(network, features, own, held, how):
        seen["own"], seen["held"] = own, held
        return [{"epoch": 1, "loss": 0.0, "val_loss": 0.0, "seconds": 0.0}]

    monkeypatch.setattr("neurodl.models._sequence_model.train", train)
    groups = np.repeat(np.arange(4), 90)  # three runs each
    SequenceEncoder(loss="mse", validation=0.25, max_epochs=9, device="cpu").fit(
        X, Y, groups=groups, runs=runs
    )
    own, held = (set(groups[np.concatenate(seen[part])]) for part in ("own", "held"))
    assert len(held) == 1 and len(own) == 3 and not own & held


def test_scaling_is_of_rows_that_train(monkeypatch):
    X, Y, runs = lagged(n_runs=10)
    model = quick(loss="mse", validation=0.3, max_epochs=1, patience=1).fit(X, Y, runs=runs)
    own, held = model._parts(len(X), runs, None)
    rows = np.concatenate(own)
    np.testing.assert_allclose(model._scaling.offset, X[rows].mean(0), atol=1e-5)
    assert not set(rows) & set(np.concatenate(held))


def test_a_unit_that_fires_only_where_it_validates_is_fitted():
    X, Y, runs = unequal()
    model = quick(validation=0.3, max_epochs=2, patience=2)
    held = np.concatenate(model._parts(len(X), runs, None)[1])
    Y[:, 1] = 0
    Y[held[0], 1] = 1
    assert np.isfinite(model.fit(X, Y, runs=runs).predict(X, runs)).all()


def test_a_single_run_is_cut_into_pieces():
    X, Y, _ = lagged(n_runs=1, n_rows=500)
    model = quick(loss="mse", validation=0.2, max_epochs=40, patience=40, lr=0.02)
    model.set_params(batch_size=4).fit(X, Y)
    own, held = model._parts(500, None, None)
    assert len(own) == 8 and len(held) == 2 and max(map(len, own)) == 50
    assert np.corrcoef(model.predict(X)[:, 0], Y[:, 0])[0, 1] > 0.7


def test_pieces_and_stretches():
    runs = stretches(np.array(list("aaabbc")), 6)
    assert [one.tolist() for one in runs] == [[0, 1, 2], [3, 4], [5]]
    assert [len(one) for one in pieces([np.arange(10)], 4)] == [4, 3, 3]
    with pytest.raises(ValueError, match="rows of 1 runs .*a.* do not stand together"):
        stretches(list("aab" + "a"), 4)


def test_a_transformer_predicts_long_runs_in_pieces_that_overlap():
    X, Y, runs = lagged(n_runs=6, n_rows=40, noise=0.0)
    model = quick(cell="transformer", max_length=10, max_epochs=5).fit(X, np.abs(Y), runs=runs)
    whole = model.predict(X[:40])
    np.testing.assert_allclose(model.predict(X[:10]), whole[:10], rtol=1e-4, atol=1e-5)
    # row 12 is seen with rows 5 to 14: the half before it, and causally nothing after
    np.testing.assert_allclose(model.predict(X[5:13])[7], whole[12], rtol=1e-4, atol=1e-5)
    assert len(_sequences._views(np.arange(40), 10)) == 7
    covered = np.concatenate([rows[skip:] for rows, skip in _sequences._views(np.arange(43), 10)])
    assert covered.tolist() == list(range(43))


def test_the_seed_decides_and_nothing_else():
    X, Y, runs = unequal()
    first = quick(dropout=0.2, seed=1).fit(X, Y, runs=runs).predict(X, runs)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = quick(dropout=0.2, seed=1).fit(X, Y, runs=runs).predict(X, runs)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(first, again)
    other = quick(dropout=0.2, seed=2).fit(X, Y, runs=runs).predict(X, runs)
    assert np.abs(other - first).max() > 1e-3


@pytest.mark.parametrize("kind", [SequenceEncoder, SequenceDecoder])
@pytest.mark.parametrize("cell", ["lstm", "transformer"])
def test_files_pickles_and_clones(kind, cell, tmp_path):
    X, Y, runs = unequal()
    model = quick(kind, cell).fit(X, Y, runs=runs)
    said = model.predict(X, runs)
    for again in (
        pickle.loads(pickle.dumps(model)),
        ndl.load(ndl.save(model, tmp_path / "m.safetensors")),
    ):
        np.testing.assert_array_equal(again.predict(X, runs), said)
        assert again.get_params() == model.get_params()
    assert not hasattr(clone(model), "state_")


def test_rates_stay_above_0_and_silent_units_are_an_error():
    X, Y, runs = unequal()
    assert (quick().fit(X, Y, runs=runs).predict(X, runs) > 0).all()
    Y[:, 1] = 0
    with pytest.raises(ValueError, match="0 targets are below 0 and 1 are 0 throughout"):
        quick().fit(X, Y, runs=runs)
    one = quick().fit(X, Y[:, 0], runs=runs)
    assert one.predict(X, runs).shape == (len(X),)


def test_bad_input_is_named():
    X, Y, runs = unequal()
    for options, message in (
        ({"cell": "gru2"}, "`cell` must be one of"),
        ({"loss": "poison"}, "Did you mean 'poisson'"),
    ):
        with pytest.raises(UnknownNameError, match=message):
            quick(**options).fit(X, Y, runs=runs)
    for options, message in (
        ({"hidden_size": 0}, "`hidden_size` must be a whole number"),
        ({"validation": 1.0}, "`validation` and `dropout`"),
        ({"lr": 0.0}, "`lr`"),
        ({"max_length": 1}, "`max_length`"),
    ):
        with pytest.raises(ValueError, match=message):
            quick(**options).fit(X, Y, runs=runs)
    with pytest.raises(ValueError, match="y contains NaN"):
        quick(loss="mse").fit(X, np.where(Y > 3, np.nan, Y), runs=runs)
    with pytest.raises(ValueError, match="`runs` has 2 labels"):
        quick().fit(X, Y, runs=[1, 2])
    with pytest.raises(ValueError, match="do not stand together"):
        quick().fit(X, Y, runs=np.resize(["a", "b"], len(X)))
    with pytest.raises(TrainingError, match="ran away in epoch"):
        quick(loss="mse", lr=1e30, max_epochs=20).fit(X, Y, runs=runs)
    with pytest.raises(ValueError, match="one class only"):
        quick(SequenceDecoder, targets="classes").fit(X, np.ones(len(X)), runs=runs)
    with pytest.raises(UnknownNameError, match="Did you mean 'classes'"):
        quick(SequenceDecoder, targets="class").fit(X, Y, runs=runs)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError):
            quick(device="cuda").fit(X, Y, runs=runs)


@pytest.mark.filterwarnings("default:.*The validation loss still fell")
def test_a_training_that_was_cut_short_is_said():
    X, Y, runs = lagged()
    with pytest.warns(NeurodlWarning, match="still fell in the last of 2 epochs"):
        SequenceEncoder(loss="mse", max_epochs=2, device="cpu").fit(X, Y, runs=runs)


def test_categories_are_read_better_the_longer_one_looks():
    rng = np.random.default_rng(1)
    choice = rng.permutation(np.repeat(["left", "right", "none"], 40))
    drift = {"left": (1, 0), "right": (0, 1), "none": (0, 0)}
    X = np.concatenate([rng.poisson(0.7 + np.array(drift[one]) * 0.5, (20, 2)) for one in choice])
    runs, y = np.repeat(np.arange(120), 20), np.repeat(choice, 20)
    train = runs < 90
    model = SequenceDecoder(targets="classes", max_epochs=60, device="cpu").fit(
        X[train], y[train], runs=runs[train]
    )
    right = (model.predict(X[~train], runs[~train]) == y[~train]).reshape(30, 20)
    assert right[:, -5:].mean() > 0.7 > right[:, 0].mean() + 0.1
    chances = model.predict_proba(X[~train], runs[~train])
    assert chances.shape == (600, 3) and np.allclose(chances.sum(1), 1, atol=1e-5)
    assert model.classes_.tolist() == ["left", "none", "right"]


def test_values_are_decoded_from_a_population():
    rng = np.random.default_rng(2)
    wheel = np.cumsum(rng.standard_normal((30, 50)), 1) / 5
    rate = np.exp(0.5 * np.tanh(wheel)[..., None] * rng.standard_normal(20) - 0.5)
    X = rng.poisson(rate).reshape(-1, 20)
    y, runs = np.tanh(wheel).ravel(), np.repeat(np.arange(30), 50)
    train = runs < 24
    model = SequenceDecoder(lr=0.01, batch_size=8, max_epochs=60, device="cpu")
    model.fit(X[train], y[train], runs=runs[train])
    predicted = model.predict(X[~train], runs[~train])
    instant = RidgeCV(device="cpu").fit(X[train], y[train]).predict(X[~train])
    r = [np.corrcoef(one, y[~train])[0, 1] for one in (predicted, instant)]
    assert r[0] > 0.75 > 0.6 > r[1]


def test_hand_in_hand_with_cross_validate():
    simulation = simulate_population(20, 20, 40, 2)
    series = ndl.as_runs(simulation.experiment.responses)
    X = ndl.population_features(ndl.select(series, roi="given"))
    Y = ndl.select(series, roi="predicted")
    model = quick(max_epochs=2)
    scores = ndl.cross_validate(model, X, Y, cv=4, metrics=["bits_per_spike"])
    assert scores.attrs["cv"].endswith("by stimulus") and scores.sizes["fold"] == 4
    assert np.isfinite(scores["bits_per_spike"]).any()


@pytest.mark.slow
def test_a_temporal_head_for_movies():
    """Voxels see a movie through an HRF: states find it, the frame alone does not."""
    rng = np.random.default_rng(5)
    n_runs, n_times, tr = 12, 150, 1.5
    movie = np.stack([np.cumsum(rng.standard_normal((n_times, 6)), 0) for _ in range(n_runs)])
    movie -= movie.mean(1, keepdims=True)
    features = np.diff(movie, axis=1, prepend=0).astype("f4")
    at = np.arange(0, 20, tr)
    hrf = at**5 * np.exp(-at) / 120 - 0.15 * at**11 * np.exp(-at) / 4e7
    signal = np.stack([np.apply_along_axis(np.convolve, 0, one, hrf)[:n_times] for one in features])
    bold = signal @ rng.standard_normal((6, 10))
    bold = bold / bold.std() + 0.5 * rng.standard_normal(bold.shape)
    times = {"time": np.tile(np.arange(n_times) * tr, n_runs)}
    times["run"] = ("time", np.repeat([f"run{k:02d}" for k in range(n_runs)], n_times))
    X = xr.DataArray(features.reshape(-1, 6), times, ("time", "feature"), attrs={"layer": "frames"})
    Y = xr.DataArray(
        bold.reshape(-1, 10).astype("f4"), times, ("time", "voxel"),
        attrs={"tr": tr, "units": "BOLD"},
    )  # fmt: skip
    head = SequenceEncoder(
        "gru", loss="mse", hidden_size=48, lr=0.01, batch_size=8, max_length=75, max_epochs=60,
        device="cpu",
    )  # fmt: skip
    models = {
        "head": head,
        "frame": RidgeCV(device="cpu"),
        "delays": RidgeCV(delays=range(12), device="cpu"),
    }
    r = {
        name: float(ndl.cross_validate(model, X, Y, cv=3)["r"].mean())
        for name, model in models.items()
    }
    assert r["head"] > 0.7 > r["frame"] + 0.3
    assert r["delays"] > r["head"] - 0.02  # this world is linear, and the linear model should win


@pytest.mark.slow
def test_the_courses_project_and_what_it_never_did():
    """From a Poisson loss of about .41 to about .24; then held-out trials, ridge and GLM beside."""
    simulation = simulate_population()
    series = ndl.as_runs(simulation.experiment.responses)
    rates = ndl.as_runs(simulation.rates)
    given, wanted = (ndl.select(series, roi=name).values for name in ("given", "predicted"))
    true, runs = ndl.select(rates, roi="predicted").values, series["run"].values

    def loss(rate, counts):
        return float((rate - counts * np.log(np.maximum(rate, 1e-9))).mean())

    assert loss(np.maximum(true, 1e-9), wanted) == pytest.approx(0.2223, abs=1e-3)
    course = SequenceEncoder(
        "rnn", hidden_size=10, bidirectional=True, lr=0.01, weight_decay=0.0, batch_size=25,
        max_epochs=80, validation=0.0, device="cpu",
    )  # fmt: skip
    start = clone(course).set_params(max_epochs=1, lr=1e-9).fit(given, wanted, runs=runs)
    assert loss(start.predict(given, runs), wanted) == pytest.approx(0.40, abs=0.1)
    course.fit(given, wanted, runs=runs)
    assert loss(course.predict(given, runs), wanted) < 0.25

    numbers = runs.astype(int)
    train, test = numbers < 80, numbers >= 80
    new, wanted, true = wanted[:, 100:], wanted[:, :100], true[:, :100]
    null = torch.from_numpy(wanted[train].mean(0))

    def bits(rate):
        found = bits_per_spike(
            torch.maximum(torch.from_numpy(rate), 0.01 * null), torch.from_numpy(wanted[test]), null
        )
        return float(found.mean())

    causal = SequenceEncoder(
        "rnn", hidden_size=10, lr=0.01, batch_size=16, max_epochs=60, patience=8, device="cpu"
    ).fit(given[train], wanted[train], runs=runs[train])
    glm = PoissonRidgeCV([0.03], device="cpu")
    by_sequence = bits(causal.predict(given[test], runs[test]))
    by_glm = bits(clone(glm).fit(given[train], wanted[train]).predict(given[test]))
    by_ridge = bits(RidgeCV(device="cpu").fit(given[train], wanted[train]).predict(given[test]))
    best = bits(true[test])
    assert 0.6 * best < by_sequence < best
    assert by_sequence > by_glm + 0.05 and by_sequence > by_ridge + 0.05

    # neurons that the network never saw, predicted from its states by a GLM of training trials
    states, null = causal.transform(given, runs), torch.from_numpy(new[train].mean(0))
    wanted = new
    held = bits(clone(glm).fit(states[train], new[train]).predict(states[test]))
    # ten states say as much of them as all 200 neurons do
    assert held > 0.95 * bits(clone(glm).fit(given[train], new[train]).predict(given[test]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cell", CELLS)
def test_a_gpu_gives_the_same_model(cell):
    X, Y, runs = unequal()
    one, other = (
        quick(cell=cell, device=device).fit(X, Y, runs=runs) for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(other.predict(X, runs), one.predict(X, runs), atol=1e-3)
