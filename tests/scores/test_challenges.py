"""The official scores of the challenges, against loops over their definitions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import xarray as xr
from scipy.stats import pearsonr

import neurodl as ndl
from neurodl.errors import PairingError, SchemaError, UnknownNameError
from neurodl.scores.challenges import split_half_reliability


def responses_of(rng, n_stimuli=60, n_repeats=10, noise=(0.5, 1, 2, 4)):
    signal = rng.standard_normal((n_stimuli, len(noise)))
    shape = (n_stimuli, n_repeats, len(noise))
    values = signal[:, None] + rng.standard_normal(shape) * np.array(noise)
    ids = [f"video-{number}" for number in range(n_stimuli)]
    responses = xr.DataArray(
        values.astype(np.float32),
        dims=("stimulus", "repeat", "voxel"),
        coords={"stimulus": ids, "roi": ("voxel", ["V1", "V1", "V4", "V4"])},
        attrs={"units": "beta"},
    )
    return signal, responses


def predictions_of(signal, responses, rng, error=0.5):
    values = signal + error * rng.standard_normal(signal.shape)
    return xr.DataArray(
        values, dims=("stimulus", "voxel"), coords={"stimulus": responses["stimulus"].values}
    )


def test_2021_is_r_over_the_root_of_all_stepped_up_halvings(rng):
    signal, responses = responses_of(rng)
    predictions = predictions_of(signal, responses, rng)
    values = responses.values.astype(float)
    expected = []
    for voxel in range(4):
        stepped = []
        for half in combinations(range(10), 5):
            rest = sorted(set(range(10)) - set(half))
            p = pearsonr(values[:, half, voxel].mean(1), values[:, rest, voxel].mean(1))[0]
            stepped.append(2 * p / (1 + p))
        r = pearsonr(predictions.values[:, voxel], values[..., voxel].mean(1))[0]
        expected.append(r / np.sqrt(np.mean(stepped)))
    shuffled = predictions[rng.permutation(60)]  # paired by id, not by order
    score = ndl.challenge_score("algonauts2021", shuffled, responses)
    np.testing.assert_allclose(score, expected, rtol=1e-5)
    assert score.attrs["total"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert score["roi"].values.tolist() == ["V1", "V1", "V4", "V4"]


def test_split_half_reliability_is_that_of_the_mean_over_repeats(rng):
    _, responses = responses_of(rng, n_stimuli=20_000)
    expected = 1 / (1 + np.array([0.5, 1, 2, 4]) ** 2 / 10)
    np.testing.assert_allclose(split_half_reliability(responses.values), expected, atol=0.02)


def test_a_perfect_model_scores_one_whatever_the_noise(rng):
    signal, responses = responses_of(rng, n_stimuli=20_000)
    predictions = predictions_of(signal, responses, rng, error=0)
    score = ndl.challenge_score("algonauts2021", predictions, responses)
    np.testing.assert_allclose(score, 1, atol=0.02)


def test_voxels_without_reliability_are_counted_not_averaged(rng):
    signal, responses = responses_of(rng)
    values = responses.values.copy()
    values[..., 1] = np.where(np.arange(10) % 2, 1, -1)  # the same for every stimulus
    changed = responses.copy(data=values)
    score = ndl.challenge_score("algonauts2021", predictions_of(signal, responses, rng), changed)
    assert np.isnan(score[1]) and score.attrs["n_excluded"] == 1
    assert score.attrs["total"] == pytest.approx(float(score[[0, 2, 3]].mean()), rel=1e-5)


def test_2023_is_the_share_of_the_ceiling_with_its_clipping(rng):
    signal, responses = responses_of(rng)
    averaged = ndl.average_repeats(responses)
    predictions = predictions_of(signal, responses, rng)
    predictions[:, 3] *= -1  # wrong way round
    ceiling = xr.DataArray(np.array([0.9, 0.0, 0.6, 0.5]), dims="voxel")
    score = ndl.challenge_score("algonauts2023", predictions, averaged, ceiling)
    r = [pearsonr(predictions.values[:, v], averaged.values[:, v])[0] for v in range(4)]
    expected = [min(100, r[0] ** 2 / 0.9 * 100), 100, min(100, r[2] ** 2 / 0.6 * 100), 0]
    np.testing.assert_allclose(score, expected, rtol=1e-5)
    assert score.attrs["total"] == pytest.approx(np.median(expected), rel=1e-5)
    with pytest.raises(SchemaError, match="needs `ceiling`"):
        ndl.challenge_score("algonauts2023", predictions, averaged)


def test_2025_leaves_out_five_samples_at_the_ends_of_each_movie(rng):
    lengths = (30, 22)
    coords = {
        "time": np.concatenate([np.arange(length) * 1.49 for length in lengths]),
        "run": ("time", np.repeat(["s07e01a", "s07e01b"], lengths)),
    }
    made = [rng.standard_normal((52, 3)).astype(np.float32) for _ in range(2)]
    predictions, responses = (
        xr.DataArray(one, dims=("time", "parcel"), coords=coords, attrs={"units": "a", "tr": 1.49})
        for one in made
    )
    rows = [*range(5, 25), *range(35, 47)]
    score = ndl.challenge_score("algonauts2025", predictions, responses)
    expected = [pearsonr(made[0][rows, p], made[1][rows, p])[0] for p in range(3)]
    np.testing.assert_allclose(score, expected, rtol=1e-4)
    with pytest.raises(PairingError, match="other times or runs"):
        ndl.challenge_score("algonauts2025", predictions[::-1], responses)
    with pytest.raises(PairingError, match="other times or runs"):
        ndl.challenge_score("algonauts2025", predictions.drop_vars("run"), responses)
    with pytest.raises(SchemaError, match="too few samples"):
        ndl.challenge_score("algonauts2025", predictions[:8], responses[:8])


def test_wrong_use(rng):
    signal, responses = responses_of(rng)
    predictions = predictions_of(signal, responses, rng)
    with pytest.raises(UnknownNameError, match="Did you mean 'algonauts2021'"):
        ndl.challenge_score("algonauts21", predictions, responses)
    with pytest.raises(PairingError, match="5 responses have no prediction"):
        ndl.challenge_score("algonauts2021", predictions[5:], responses)
    with pytest.raises(PairingError, match="targets must be the same"):
        ndl.challenge_score("algonauts2021", predictions[:, :3], responses)
    for wrong in (responses[:, :9], ndl.average_repeats(responses)):
        with pytest.raises(SchemaError, match="an even number of repeats"):
            ndl.challenge_score("algonauts2021", predictions, wrong)


# What the development kit of 2021 does, and what it does wrong.


def devkit_correlation(x, y):
    """Covariance with n - 1, standard deviations with n."""
    n = len(x)
    covariance = ((x - x.mean(0)) * (y - y.mean(0))).sum(0) / (n - 1)
    return covariance / (x.std(0) * y.std(0))


def devkit_pipeline(features, betas, n_train):
    """Scale training and test rows by their own moments, PCA, least squares, last rows as test."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(features)  # of all 1000, those of the test as well
    components = PCA(20, random_state=42).fit_transform(scaled)
    parts = slice(0, n_train), slice(n_train, None)
    x_train, x_test = (StandardScaler().fit_transform(components[part]) for part in parts)
    y = betas.mean(1)
    y_train, y_test = (StandardScaler().fit_transform(y[part]) for part in parts)
    design = np.column_stack([x_train, np.ones(len(x_train))])
    weights = np.linalg.solve(design.T @ design, design.T @ y_train)
    predicted = np.column_stack([x_test, np.ones(len(x_test))]) @ weights
    return devkit_correlation(predicted, y_test), predicted, y_test


def test_the_devkit_of_2021_and_the_corrected_default_beside_it(rng):
    n_train, n_test, n_features, n_voxels = 900, 100, 200, 30
    features = rng.standard_normal((1000, 40)) @ rng.standard_normal((40, n_features))
    features += rng.standard_normal((1000, n_features))
    signal = features @ rng.standard_normal((n_features, n_voxels))
    betas = (signal / signal.std(0))[:, None] + 2 * rng.standard_normal((1000, 3, n_voxels))
    reported, predicted, observed = devkit_pipeline(features, betas, n_train)
    true = np.array([pearsonr(predicted[:, v], observed[:, v])[0] for v in range(n_voxels)])
    np.testing.assert_allclose(reported, true * n_test / (n_test - 1))  # 1.0101 times too large
    assert devkit_correlation(observed, observed).max() > 1  # no correlation is

    ids = [f"video-{number:04d}" for number in range(1, 1001)]
    responses = xr.DataArray(
        betas.astype(np.float32),
        dims=("stimulus", "repeat", "voxel"),
        coords={"stimulus": ids},
        attrs={"units": "beta"},
    )
    layer = xr.DataArray(
        features.astype(np.float32), dims=("stimulus", "feature"), coords={"stimulus": ids}
    )
    rows = [(np.arange(n_train), np.arange(n_train, 1000))]
    scores = ndl.cross_validate(ndl.RidgeCV(cv=3, device="cpu"), layer, responses, cv=rows)
    honest = scores["r"].values[0]
    assert honest.max() <= 1 and honest.mean() > true.mean()  # better, by an honest measure
    assert 0.3 < honest.mean() < 0.8
