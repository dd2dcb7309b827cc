"""Folds: what stays together, gaps in time, clusters and near neighbours of stimuli."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.base import clone
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import KFold

import neurodl as ndl
from neurodl.errors import PairingError
from neurodl.scores import make_splits, target_splits


@pytest.fixture
def responses(rng):
    return xr.DataArray(
        rng.standard_normal((60, 8)).astype(np.float32),
        dims=("stimulus", "unit"),
        coords={
            "stimulus": [f"s{n:02d}" for n in range(60)],
            "session": ("stimulus", np.repeat(["a", "b", "c"], 20)),
            "area": ("unit", np.repeat(["V1", "V2", "V4", "IT"], 2)),
        },
        attrs={"units": "a.u."},
    )


@pytest.fixture
def film(rng):
    return xr.DataArray(
        rng.standard_normal((100, 3)).astype(np.float32),
        dims=("time", "voxel"),
        coords={"time": np.arange(100) * 2.0},
        attrs={"units": "BOLD", "tr": 2.0},
    )


def clustered(rng, n=60, p=100, k=3):
    """Features of k far clusters, and the cluster of each row."""
    which = rng.permutation(np.arange(n) % k)
    values = rng.standard_normal((n, p)) + 8 * rng.standard_normal((k, p))[which]
    ids = [f"s{row:02d}" for row in range(n)]
    array = xr.DataArray(
        values.astype(np.float32), {"stimulus": ids}, ("stimulus", "feature"), attrs={"layer": "x"}
    )
    return array, which


def test_blocks_cover_all_samples_and_keep_their_distance():
    for n, n_splits, purge in ((100, 5, 7), (23, 4, 2), (50, 3, 0)):
        tested = []
        for train, test in ndl.PurgedKFold(n_splits, purge=purge).split(np.zeros((n, 1))):
            assert (np.diff(test) == 1).all()
            away = np.abs(train[:, None] - test).min()
            assert away == purge + 1
            # What is left out is near the block, and all of it.
            near = sum(
                0 < test[0] - row <= purge or 0 < row - test[-1] <= purge for row in range(n)
            )
            assert len(train) == n - len(test) - near
            tested += test.tolist()
        assert tested == list(range(n))


def test_other_runs_are_not_purged():
    runs = np.repeat(["a", "b"], 10)
    folds = list(ndl.PurgedKFold(2, purge=3).split(np.zeros(20), None, runs))
    assert [len(train) for train, _ in folds] == [10, 10]
    (train, test), *_ = ndl.PurgedKFold(4, purge=3).split(np.zeros(20), None, runs)
    assert (test.tolist(), train.tolist()) == ([0, 1, 2, 3, 4], [8, 9, *range(10, 20)])


def test_a_long_run_is_cut_into_blocks(film):
    splits, groups, text = make_splits(film, ndl.PurgedKFold(5, purge=10))
    assert [len(test) for _, test in splits] == [20] * 5
    assert min(len(np.unique(groups[train])) for train, _ in splits) >= 5
    assert text == "5 blocks, 10 samples purged around each"
    with pytest.raises(ValueError, match=r"cv=PurgedKFold\(5, purge=10\)"):
        make_splits(film, 5)
    with pytest.raises(ValueError, match="leave out one of them"):
        make_splits(
            film.assign_coords(run=("time", ["1"] * 100)), ndl.PurgedKFold(5, purge=1), "run"
        )
    with pytest.raises(ValueError, match="leaves nothing to train on"):
        make_splits(film, ndl.PurgedKFold(2, purge=60))


def test_the_default_follows_from_the_data(film, responses, rng):
    runs = film.assign_coords(run=("time", np.repeat(["1", "2", "3", "4"], 25)))
    splits, groups, text = make_splits(runs, 4)
    assert text == "4 folds by run"
    assert all(len(set(groups[test])) == 1 for _, test in splits)
    one = film.assign_coords(run=("time", ["1"] * 100))
    with pytest.raises(ValueError, match="Say what to keep together"):
        make_splits(one, 4)
    with pytest.raises(ValueError, match="Say what to keep together"):
        make_splits(runs, KFold(4))  # which knows no runs
    rows = np.arange(100)
    assert make_splits(runs, [(rows[:50], rows[50:])])[1] is None
    X = xr.DataArray(rng.standard_normal((100, 3)), runs.coords, ("time", "feature"))
    scores = ndl.cross_validate(ndl.RidgeCV(device="cpu"), X, runs, cv=4)
    assert scores.attrs["groups"] == "run"
    shown = responses.rename(stimulus="presentation").drop_vars("presentation")
    ids = np.repeat([f"s{k}" for k in range(20)], 3)
    assert make_splits(shown.assign_coords(stimulus=("presentation", ids)), 5)[2].endswith(
        "by stimulus"
    )
    assert make_splits(responses, 5)[1:] == (None, "5 shuffled folds")


def test_gaps_take_the_memory_out_of_autocorrelated_samples():
    """Noise that lasts 12 samples is interpolated across a cut, but not across a gap."""
    rng = np.random.default_rng(0)
    when = np.arange(240.0)[:, None]
    model = KernelRidge(alpha=0.1, kernel="rbf", gamma=1 / 50)
    found = {0: [], 15: []}
    for _ in range(10):
        slow = np.convolve(rng.standard_normal(251), np.ones(12) / 12**0.5, "valid")
        for purge, scores in found.items():
            predicted = np.zeros(240)
            for train, test in ndl.PurgedKFold(40, purge=purge).split(when):
                predicted[test] = model.fit(when[train], slow[train]).predict(when[test])
            scores.append(np.corrcoef(predicted, slow)[0, 1])
    assert np.mean(found[0]) > 0.5
    assert np.mean(found[15]) < 0.1


def test_clusters_are_folds(responses, rng):
    features, which = clustered(rng)
    cv = ndl.ClusterKFold(3, features=features[rng.permutation(60)])
    splits, _, text = make_splits(responses, cv)
    assert sorted(len(test) for _, test in splits) == sorted(np.bincount(which).tolist())
    for train, test in splits:
        assert len(set(which[test])) == 1
        assert not set(which[test]) & set(which[train])
    assert text == "ClusterKFold(n_splits=3, features=x (60, 100), seed=0)"
    # As an ordinary splitter of scikit-learn, it looks at what is split.
    plain = [test.tolist() for _, test in ndl.ClusterKFold(3).split(features.values)]
    assert plain == [test.tolist() for _, test in splits]
    assert clone(cv, safe=False).n_splits == 3


def test_held_out_clusters_are_harder(rng):
    """Features that tell clusters apart, and a response that has a mean of its own in each."""
    features, which = clustered(rng, n=120, k=5)
    y = rng.standard_normal(5)[which] * 3 + 0.3 * rng.standard_normal(120)
    responses = xr.DataArray(
        y[:, None].astype(np.float32),
        {"stimulus": features["stimulus"].values},
        ("stimulus", "unit"),
        attrs={"units": "a.u."},
    )
    model = ndl.RidgeCV(device="cpu")
    inside = ndl.cross_validate(model, features, responses)["r"].mean()
    outside = ndl.cross_validate(
        model, features, responses, cv=ndl.ClusterKFold(5, features=features)
    )["r"].mean()
    assert inside > 0.8
    assert outside < 0.4


def test_groups_stay_whole_in_clusters(responses, rng):
    features, _ = clustered(rng)
    groups = np.repeat(np.arange(20), 3)
    for train, test in ndl.ClusterKFold(3).split(features.values, None, groups):
        assert not set(groups[train]) & set(groups[test])


def test_neighbours_of_test_stimuli_are_left_out(responses, rng):
    pairs = np.repeat(rng.standard_normal((30, 100)), 2, 0) + 0.2 * rng.standard_normal((60, 100))
    features = xr.DataArray(pairs, {"stimulus": responses["stimulus"]}, ("stimulus", "feature"))
    splits, _, _ = make_splits(responses, ndl.SimilarityKFold(5, threshold=0.5, features=features))
    plain, _, _ = make_splits(responses, 5)
    partner = np.arange(60) ^ 1
    for (train, test), (every, same) in zip(splits, plain, strict=True):
        assert test.tolist() == same.tolist()
        assert train.tolist() == [row for row in every if partner[row] not in test]
    by_session = make_splits(responses, ndl.SimilarityKFold(3, features=features), "session")[0]
    for (_, test), (_, same) in zip(
        by_session, make_splits(responses, 3, "session")[0], strict=True
    ):
        assert test.tolist() == same.tolist()
    whole = ndl.SimilarityKFold(5, threshold=1.01, features=features)
    for (train, _), (every, _) in zip(make_splits(responses, whole)[0], plain, strict=True):
        assert train.tolist() == every.tolist()
    with pytest.raises(ValueError, match="Use a higher threshold"):
        make_splits(responses, ndl.SimilarityKFold(5, threshold=-1, features=features))


def test_features_of_splitters_are_found_by_id(responses, rng):
    features, _ = clustered(rng)
    with pytest.raises(PairingError, match="has no features of 's00'"):
        make_splits(responses, ndl.ClusterKFold(3, features=features[1:]))
    with pytest.raises(ValueError, match=r"ClusterKFold\(features=features\['layer'\]\)"):
        make_splits(responses, ndl.ClusterKFold(3))


def test_a_published_split_is_taken_by_id(responses):
    ids = responses["stimulus"].values
    published = {"train": ids[::-1][:40], "test": ids[:20]}
    ((train, test),), _, _ = make_splits(responses, published)
    assert (train.tolist(), test.tolist()) == (list(range(20, 60)), list(range(20)))
    with pytest.raises(PairingError, match=r"None of the 2 ids of cv\['test'\]"):
        make_splits(responses, {"train": ids, "test": ["x", "y"]})
    with pytest.raises(ValueError, match="'train' and 'test'"):
        make_splits(responses, {"train": ids})


def test_groups_by_id_and_by_coord(responses):
    label = pd.Series(np.tile(["face", "house", "tool"], 20), responses["stimulus"].values[::-1])
    splits, groups, text = make_splits(responses, "leave-one-group-out", label.rename("label"))
    assert text == "3 folds, one group each, by label"
    assert (groups == label.loc[responses["stimulus"].values].to_numpy()).all()
    assert [set(groups[test]) for _, test in splits] == [{"face"}, {"house"}, {"tool"}]
    by_session, _, _ = make_splits(responses, 3, "session")
    assert sorted(test[0] for _, test in by_session) == [0, 20, 40]
    with pytest.raises(PairingError, match="has none for 's59'"):
        make_splits(responses, 3, dict(label[1:]))


def test_targets_can_be_held_out(responses):
    splits = target_splits(responses, 4, "area")
    assert sorted(test.tolist() for _, test in splits) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert all(len(train) == 6 for train, _ in splits)
