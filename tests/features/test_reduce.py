"""Reductions: scikit-learn's numbers, fitted on training rows alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.random_projection import SparseRandomProjection
from sklearn.utils.estimator_checks import parametrize_with_checks

from neurodl.backbones import Backbone, ImageTransform
from neurodl.errors import PairingError, UnknownNameError
from neurodl.features import SparseProjection, StreamedPCA, extract_features
from neurodl.features.forward import ForwardPass
from neurodl.models import RidgeCV
from neurodl.scores import cross_validate, make_splits
from neurodl.stimuli import Stimuli


@parametrize_with_checks(
    [SparseProjection(5), StreamedPCA(1, device="cpu"), StreamedPCA(device="cpu", batch_size=3)]
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataDimensionalityWarning")
def test_scikit_learn_api(estimator, check):
    check(estimator)


@pytest.mark.parametrize("options", [{}, {"density": 0.2}, {"density": 1.0}])
@pytest.mark.parametrize("n_components", [30, "auto"])
def test_projection_is_scikit_learns(rng, n_components, options):
    X = rng.standard_normal((40, 2000)).astype("f4")
    found = SparseProjection(n_components, seed=3, eps=0.5, **options)
    sklearns = SparseRandomProjection(n_components, random_state=3, eps=0.5, **options)
    np.testing.assert_array_equal(found.fit_transform(X), sklearns.fit_transform(X))
    assert abs(found.components_ - sklearns.components_).sum() == 0
    np.testing.assert_array_equal(found.project(torch.from_numpy(X)), found.transform(X))
    assert found.n_components_ == found.size(40) == found.transform(X).shape[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_projection_on_a_gpu_is_that_on_the_cpu(rng):
    X = rng.standard_normal((16, 20_000)).astype("f4")
    drawn = SparseProjection(500).fit(X)
    found = drawn.project(torch.from_numpy(X).cuda()).cpu()
    np.testing.assert_allclose(found, drawn.transform(X), rtol=1e-4, atol=1e-4)


def test_projection_keeps_distances(rng):
    X = rng.standard_normal((20, 50_000)).astype("f4")
    projected = SparseProjection(eps=0.2).fit_transform(X)
    before, after = (
        ((v[:, None] - v) ** 2).sum(-1)[np.triu_indices(20, 1)] for v in (X, projected)
    )
    assert np.abs(after / before - 1).max() < 0.2


def correlated(n_samples, n_features, rng):
    mixing = rng.standard_normal((min(n_features, 30), n_features))
    scales = np.linspace(5, 0.5, len(mixing))
    X = (rng.standard_normal((n_samples, len(mixing))) * scales) @ mixing
    return X + 0.01 * rng.standard_normal(X.shape) + 3


@pytest.mark.parametrize("shape", [(300, 40), (50, 400), (60, 60)])
@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("batch_size", [7, "auto"])
def test_components_are_those_of_scikit_learn(rng, shape, whiten, batch_size):
    X, new = correlated(*shape, rng), correlated(20, shape[1], rng)
    found = StreamedPCA(10, whiten=whiten, batch_size=batch_size, device="cpu").fit(X)
    sklearns = PCA(10, whiten=whiten, svd_solver="full").fit(X)
    signs = np.sign((found.components_ * sklearns.components_).sum(1))
    np.testing.assert_allclose(found.components_, signs[:, None] * sklearns.components_, atol=1e-8)
    np.testing.assert_allclose(found.transform(new), signs * sklearns.transform(new), atol=1e-7)
    for name in ("mean_", "explained_variance_", "explained_variance_ratio_", "singular_values_"):
        np.testing.assert_allclose(getattr(found, name), getattr(sklearns, name), rtol=1e-9)
    assert (found.components_.max(1) >= -found.components_.min(1)).all()


def test_float32_with_a_large_mean_is_centred_in_float64(rng):
    X = (correlated(50, 400, rng) + 1e4).astype("f4")
    found = StreamedPCA(5, device="cpu").fit(X)
    exact = PCA(5, svd_solver="full").fit(X.astype(float))
    assert found.components_.dtype == np.float32
    np.testing.assert_allclose(found.explained_variance_, exact.explained_variance_, rtol=1e-5)


@pytest.mark.parametrize("n_components", [0, 21, 2.5])
def test_impossible_numbers_of_components(rng, n_components):
    with pytest.raises(ValueError, match=r"from 1 to 20.*\(20, 50\)"):
        StreamedPCA(n_components, device="cpu").fit(rng.standard_normal((20, 50)))


def to_tensor(image):
    return torch.from_numpy(np.array(image)).movedim(-1, 0) / 255


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.Conv2d(6, 4, 3, stride=3))
    return Backbone("small", net, ImageTransform(to_tensor, "0..1"), "untrained, seed 0")


@pytest.fixture
def stimuli():
    images = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 3), dtype=np.uint8)
    return Stimuli.from_arrays(images)


def test_extraction_projects_batch_by_batch(backbone, stimuli, tmp_path, monkeypatch):
    options = {"layers": ["0", "1"], "pool": "flatten"}
    full = extract_features(backbone, stimuli, **options, cache=False)
    found = extract_features(backbone, stimuli, **options, reduce="sparse:80", cache=tmp_path)
    expected = SparseRandomProjection(80, random_state=0).fit_transform(full["0"].values)
    np.testing.assert_allclose(found["0"], expected, rtol=1e-5, atol=1e-5)
    assert found["0"].attrs["reduce"] == "sparse:80, density auto, seed 0"
    assert found["0"].attrs["n_unreduced"] == 6 * 14 * 14
    np.testing.assert_array_equal(found["1"], full["1"])
    assert found["1"].shape[1] == 4 * 4 * 4
    seeded = SparseProjection(80, seed=1)
    other = extract_features(backbone, stimuli, **options, reduce=seeded, cache=tmp_path)
    assert not np.allclose(other["0"], found["0"])
    monkeypatch.setattr(ForwardPass, "_forward", lambda *_: pytest.fail("the network ran again"))
    again = extract_features(backbone, stimuli, **options, reduce="sparse:80", cache=tmp_path)
    assert all(again[layer].identical(found[layer]) for layer in found)


def test_extraction_with_pca_is_fitted_on_the_named_stimuli(backbone, stimuli):
    training = stimuli.ids[::2]
    options = {"layers": ["0"], "pool": "flatten", "cache": False}
    found = extract_features(backbone, stimuli, **options, reduce="pca:5", reduce_fit=training)["0"]
    full = extract_features(backbone, stimuli, **options)["0"]
    oracle = PCA(5, svd_solver="full").fit(full.values[::2].astype(float))
    expected = oracle.transform(full.values.astype(float))
    signs = np.sign((found.values * expected).sum(0))
    np.testing.assert_allclose(found, signs * expected, atol=1e-4)
    assert found.attrs["reduce"] == "pca:5, fitted on 50 stimuli"
    assert found.attrs["n_unreduced"] == full.shape[1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reduce": "pca:5"}, ValueError, r"test stimuli shape.*StreamedPCA.*reduce_fit=ids"),
        ({"reduce": "pca:5", "reduce_fit": ["a"]}, PairingError, "'a' are not among them"),
        ({"reduce": "sparse:5", "reduce_fit": ["0000"]}, ValueError, "only for PCA"),
        ({"reduce": "sparse"}, UnknownNameError, "'sparse:5000'"),
        ({"reduce": "pca:0"}, UnknownNameError, "'pca:0'"),
    ],
)
def test_wrong_reductions(backbone, stimuli, options, error, message):
    with pytest.raises(error, match=message):
        extract_features(backbone, stimuli, cache=False, **options)


def encoding(rng, n=60):
    ids = [f"image{i:02d}" for i in range(n)]
    X = correlated(n, 200, rng).astype("f4")
    Y = X[:, :30] @ rng.standard_normal((30, 4)) + 20 * rng.standard_normal((n, 4))
    coords = {"stimulus": ids, "run": ("stimulus", [f"{i % 6}" for i in range(n)])}
    return (
        xr.DataArray(X, dims=("stimulus", "feature"), coords={"stimulus": ids}),
        xr.DataArray(
            Y.astype("f4"), dims=("stimulus", "unit"), coords=coords, attrs={"units": "a.u."}
        ),
    )


def test_a_pipeline_fits_its_components_on_training_rows(rng, monkeypatch):
    X, Y = encoding(rng)
    seen = []
    real = StreamedPCA.fit
    monkeypatch.setattr(
        StreamedPCA, "fit", lambda self, X, y=None: (seen.append(np.array(X)), real(self, X, y))[1]
    )
    model = make_pipeline(StreamedPCA(10, device="cpu"), RidgeCV([5.0], device="cpu"))
    found = cross_validate(model, X, Y, cv=3)
    splits, _, _ = make_splits(Y, 3)
    for fold, (train, test) in enumerate(splits):
        np.testing.assert_array_equal(seen[fold], X.values[train])
        pca = PCA(10, svd_solver="full").fit(X.values[train].astype(float))
        ridge = RidgeCV([5.0], device="cpu")
        ridge.fit(pca.transform(X.values[train]), Y.values[train])
        predicted = ridge.predict(pca.transform(X.values[test]))
        r = [np.corrcoef(*pair)[0, 1] for pair in zip(predicted.T, Y.values[test].T, strict=True)]
        np.testing.assert_allclose(found["r"][0, fold], r, atol=1e-4)


class Told(RegressorMixin, BaseEstimator):
    """Remembers the groups that it was given."""

    seen: list[np.ndarray] = []

    def fit(self, X, y, groups=None):
        self.seen.append(groups)
        self.mean_ = y.mean(0)
        return self

    def predict(self, X):
        return X[:, :1] + self.mean_


def test_groups_reach_the_last_step_of_a_pipeline(rng):
    X, Y = encoding(rng)
    Told.seen.clear()
    cross_validate(make_pipeline(StreamedPCA(3, device="cpu"), Told()), X, Y, cv=3, groups="run")
    splits, labels, _ = make_splits(Y, 3, "run")
    for groups, (train, _) in zip(Told.seen, splits, strict=True):
        np.testing.assert_array_equal(groups, labels[train])
    ridge = RidgeCV(device="cpu")
    direct = cross_validate(ridge, X, Y, cv=3, groups="run")
    piped = cross_validate(make_pipeline("passthrough", ridge), X, Y, cv=3, groups="run")
    np.testing.assert_allclose(piped["r"], direct["r"], atol=1e-4)
    np.testing.assert_allclose(piped["alpha"], direct["alpha"], rtol=1e-3)
