"""Weights on the axes of a layer and on the image: exact, from kernels too, in their place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from torch import nn

from neurodl.backbones import Backbone, ImageTransform, load_backbone
from neurodl.errors import PairingError, SchemaError, UnknownNameError
from neurodl.features import concatenate_features, extract_features, extract_kernels
from neurodl.features.pool import without_layout
from neurodl.io.store import load, save
from neurodl.models import KernelRidgeCV, RidgeCV
from neurodl.scores import feature_weights, weight_maps
from neurodl.stimuli import Stimuli


def to_tensor(image):
    return torch.from_numpy(np.array(image)).movedim(-1, 0) / 255


class Patches(nn.Module):
    """A class token, then 4 x 4 patches of 3 channels each."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Identity()

    def forward(self, images):
        patches = nn.functional.avg_pool2d(images, 4).flatten(2).transpose(1, 2)
        return self.tokens(torch.cat([patches.mean(1, keepdim=True), patches], 1))


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.last = nn.Identity()

    def forward(self, images):
        return self.last(self.conv(images).movedim(1, -1))


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    return Backbone("small", net, ImageTransform(to_tensor, "0..1"), "untrained, seed 0")


def make_stimuli(n=70, seed=0):
    rng = np.random.default_rng(seed)
    return Stimuli.from_arrays(rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8))


def make_responses(features, n_targets=5):
    rng = np.random.default_rng(1)
    values = features.values[:, ::20].astype(float)
    values = values @ rng.standard_normal((values.shape[1], n_targets))
    values += rng.standard_normal(values.shape)
    return xr.DataArray(
        values.astype("f4"),
        dims=("stimulus", "unit"),
        coords={
            "stimulus": features["stimulus"].values,
            "unit": [f"u{number}" for number in range(n_targets)],
            "roi": ("unit", ["V4", "IT"] * (n_targets // 2) + ["V4"] * (n_targets % 2)),
        },
        attrs={"units": "a.u."},
    )


@pytest.fixture
def both(backbone):
    """Features and kernel of a layer, and responses."""
    stimuli = make_stimuli()
    features = extract_features(backbone, stimuli, ["2"], pool="flatten", cache=False)["2"]
    kernel = extract_kernels(backbone, stimuli, ["2"], cache=False)["2"]
    return features, kernel, make_responses(features)


def test_weights_lie_where_the_layer_has_their_features(backbone, both):
    features, _, responses = both
    model = RidgeCV([3.0], device="cpu").fit(features.values, responses.values)
    weights = feature_weights(model, features, responses=responses, targets=[3, 1])
    assert weights.sizes == {"target": 2, "channel": 4, "y": 12, "x": 12}
    assert weights["unit"].values.tolist() == ["u3", "u1"]
    assert weights["roi"].values.tolist() == ["IT", "IT"]
    net, stimuli = backbone.module, make_stimuli()
    with torch.no_grad():
        maps = net(torch.stack([one.float() / 255 for one in stimuli])).numpy()
    predicted = np.einsum("ncyx,tcyx->nt", maps.astype(float), weights.values.astype(float))
    expected = model.predict(features.values)[:, [3, 1]]
    predicted += expected.mean(0) - predicted.mean(0)  # the intercept
    np.testing.assert_allclose(predicted, expected, atol=1e-4)


@pytest.mark.parametrize("alpha", [1.0, 30.0])
@pytest.mark.parametrize("cache", [False, True])
def test_weights_from_a_kernel_are_those_of_ridge_on_the_features(
    backbone, both, alpha, cache, tmp_path
):
    features, kernel, responses = both
    if cache:
        extract_kernels(backbone, make_stimuli(), ["2"], cache=tmp_path)
        kernel = extract_kernels(backbone, make_stimuli(), ["2"], cache=tmp_path)["2"]
    order = np.random.default_rng(0).permutation(70)[:60]
    kernel, responses, features = kernel[order, order], responses[order], features[order]
    dual = KernelRidgeCV([alpha], kernel="precomputed", device="cpu")
    dual.fit(kernel.values, responses.values)
    found = feature_weights(dual, kernel, backbone=backbone, stimuli=make_stimuli(), device="cpu")
    primal = RidgeCV([alpha], standardize=False, device="cpu")
    primal.fit(features.values, responses.values)
    exact = Ridge(alpha).fit(features.values.astype(float), responses.values.astype(float)).coef_
    assert found.sizes == {"target": 5, "channel": 4, "y": 12, "x": 12}
    for expected in (primal.coef_, exact):
        error = np.linalg.norm(found.values.reshape(5, -1) - expected)
        assert error < 1e-5 * np.linalg.norm(expected)
    assert found.attrs["input_size"] == [16, 16]
    one = feature_weights(
        dual, kernel, targets=[2], backbone=backbone, stimuli=make_stimuli(), batch_size=7
    )
    np.testing.assert_allclose(one.values[0], found.values[2], atol=1e-5)


def test_the_layers_of_a_sum_of_kernels_each_have_their_weights(backbone):
    stimuli, layers = make_stimuli(), ["0", "2"]
    kernels = extract_kernels(backbone, stimuli, layers, cache=False)
    features = extract_features(backbone, stimuli, layers, pool="flatten", cache=False)
    joined, responses = concatenate_features(kernels)["all"], make_responses(features["2"])
    model = KernelRidgeCV([5.0], kernel="precomputed", device="cpu")
    model.fit(joined.values, responses.values)
    both = concatenate_features(features)["all"]
    expected = Ridge(5.0).fit(both.values.astype(float), responses.values).coef_
    of_both = {"backbone": backbone, "stimuli": stimuli}
    found = [feature_weights(model, kernels[layer], **of_both) for layer in layers]
    assert [one.shape for one in found] == [(5, 6, 14, 14), (5, 4, 12, 12)]
    joined_weights = np.hstack([one.values.reshape(5, -1) for one in found])
    assert np.linalg.norm(joined_weights - expected) < 1e-5 * np.linalg.norm(expected)
    with pytest.raises(SchemaError, match=r"layers 0\+2: give the kernel of one"):
        feature_weights(model, joined, **of_both)
    assert "feature_shape" not in joined.attrs
    assert "feature_shape" not in both.attrs
    weights = feature_weights(RidgeCV([5.0], device="cpu").fit(both, responses), both)
    assert weights.sizes == {"target": 5, "feature": both.shape[1]}


@pytest.mark.parametrize(
    ("net", "layer", "options", "pool", "sizes"),
    [
        (ChannelsLast, "last", {"channels_last": ("last",)}, "flatten", {"channel": 5, "y": 14}),
        (ChannelsLast, "last", {"channels_last": ("last",)}, "spatial:7", {"channel": 5, "y": 7}),
        (ChannelsLast, "conv", {}, "avg", {"channel": 5, "y": 1}),
        (ChannelsLast, "conv", {}, "max", {"channel": 5, "y": 1}),
        (Patches, "tokens", {"prefix_tokens": ["class"]}, "flatten", {"token": 17, "channel": 3}),
        (Patches, "tokens", {"prefix_tokens": ["class"]}, "spatial:2", {"channel": 3, "y": 2}),
        (Patches, "tokens", {"prefix_tokens": ["class"]}, "cls", {"feature": 3}),
    ],
)
def test_every_kind_of_output_has_its_own_axes(net, layer, options, pool, sizes):
    torch.manual_seed(0)
    net = Backbone("n", net(), ImageTransform(to_tensor, "0..1"), "untrained", **options)
    features = extract_features(net, make_stimuli(30), [layer], pool=pool, cache=False)[layer]
    responses = np.random.default_rng(0).standard_normal((30, 2))
    model = RidgeCV([1.0], device="cpu").fit(features.values, responses)
    weights = feature_weights(model, features)
    expected = sizes | ({"x": sizes["y"]} if "y" in sizes else {})
    assert weights.sizes == {"target": 2, **expected}
    if pool == "flatten" and layer == "last":
        as_stored = weights.transpose("target", "y", "x", "channel").values
        np.testing.assert_array_equal(as_stored.reshape(2, -1), model.coef_.astype("f4"))
    else:
        np.testing.assert_array_equal(weights.values.reshape(2, -1), model.coef_.astype("f4"))


def test_delays_and_excluded_targets(both):
    features, kernel, responses = both
    values = responses.values.copy()
    values[4, 1] = np.nan
    options = {"nan_targets": "exclude", "device": "cpu"}
    model = RidgeCV([1.0], delays=[1, 2], **options).fit(features.values, values)
    weights = feature_weights(model, features)
    assert weights.sizes == {"target": 5, "delay": 2, "channel": 4, "y": 12, "x": 12}
    assert weights["delay"].values.tolist() == [1, 2]
    np.testing.assert_array_equal(np.isnan(weights).all(weights.dims[1:]), np.arange(5) == 1)
    of_both = weight_maps(weights).values
    squares = np.square(weights.values.astype(float)).mean((1, 2))
    at_centres = np.sqrt(squares)[0]
    assert of_both.shape == (5, 16, 16)
    assert of_both[0].max() <= at_centres.max() * (1 + 1e-6)


def test_one_target_and_features_of_your_own():
    rng = np.random.default_rng(0)
    X = xr.DataArray(
        rng.standard_normal((20, 3)),
        dims=("time", "feature"),
        coords={"time": np.arange(20.0), "feature": ["a", "b", "c"]},
    )
    model = RidgeCV([1.0], device="cpu").fit(X.values, X.values[:, 0])
    weights = feature_weights(model, X)
    assert weights.sizes == {"target": 1, "feature": 3}
    assert weights["feature"].values.tolist() == ["a", "b", "c"]
    with pytest.raises(SchemaError, match="several places"):
        weight_maps(weights)


def test_reduced_features_have_weights_of_what_they_were_reduced_to(backbone):
    stimuli = make_stimuli(40)
    common = {"pool": "flatten", "cache": False}
    small = extract_features(backbone, stimuli, ["0", "2"], reduce="sparse:600", **common)
    fitted = extract_features(
        backbone, stimuli, ["2"], reduce="pca:5", reduce_fit=stimuli.ids[:20], **common
    )
    y = np.random.default_rng(0).standard_normal((40, 2))
    for features, sizes in (
        (small["0"], {"feature": 600}),
        (small["2"], {"channel": 4, "y": 12, "x": 12}),
        (fitted["2"], {"feature": 5}),
    ):
        weights = feature_weights(RidgeCV([1.0], device="cpu").fit(features, y), features)
        assert weights.sizes == {"target": 2, **sizes}
        assert weights.attrs["reduce"] == features.attrs["reduce"]


def test_the_layout_comes_from_the_cache_and_from_files(backbone, tmp_path):
    stimuli, options = make_stimuli(20), {"pool": "spatial:3", "reduce": "sparse:40"}
    first = extract_features(backbone, stimuli, ["0", "2"], cache=tmp_path, **options)
    again = extract_features(backbone, stimuli, ["0", "2"], cache=tmp_path, **options)
    assert "feature_shape" not in again["0"].attrs  # 54 features, reduced
    assert again["2"].attrs["feature_shape"] == [4, 3, 3]  # 36, as they were
    assert again["2"].attrs["feature_axes"] == "channel y x"
    assert again["2"].attrs["input_size"] == [16, 16]
    assert all(again[name].identical(first[name]) for name in again)
    stored = load(save(again, tmp_path / "f.zarr"))
    assert stored["2"].identical(again["2"])


def fitted_to(kernel, responses):
    model = KernelRidgeCV([5.0], kernel="precomputed", device="cpu")
    return model.fit(kernel.values, responses.values)


def test_other_networks_stimuli_and_kernels_are_noticed(backbone, both):
    features, kernel, responses = both
    model = fitted_to(kernel, responses)
    stimuli = make_stimuli()
    given = {"backbone": backbone, "stimuli": stimuli}
    with pytest.raises(ValueError, match="give `backbone` and `stimuli`"):
        feature_weights(model, kernel, backbone=backbone)
    other = Backbone("other", nn.Sequential(*backbone.module[:2], nn.Conv2d(6, 4, 3)),
                     backbone.transform, "x")  # fmt: skip
    with pytest.raises(SchemaError, match="other 'weights_sha256' than other has"):
        feature_weights(model, kernel, backbone=other, stimuli=stimuli)
    with pytest.raises(PairingError, match="10 ids are not among the stimuli"):
        feature_weights(model, kernel, backbone=backbone, stimuli=make_stimuli(60))
    with pytest.raises(SchemaError, match="5 of 5 targets do not predict"):
        feature_weights(model, kernel, backbone=backbone, stimuli=make_stimuli(seed=1))
    order = np.r_[np.arange(10)[::-1], np.arange(10, 70)]
    with pytest.raises(SchemaError, match="70 rows and other columns"):
        feature_weights(model, kernel[order], **given)
    with pytest.raises(SchemaError, match="fitted to 70 stimuli, but the kernel has 60 rows"):
        feature_weights(model, kernel[:60, :60], **given)
    with pytest.raises(SchemaError, match="give the kernel that it was fitted to"):
        feature_weights(model, features, **given)
    plain = KernelRidge(alpha=5.0, kernel="precomputed").fit(kernel.values, responses.values)
    with pytest.raises(SchemaError, match="do not sum to 0"):
        feature_weights(plain, kernel, **given)
    with pytest.raises(UnknownNameError, match="no module '7'"):
        feature_weights(model, kernel.assign_attrs(layer="7"), **given)


def test_a_constant_that_was_added_to_the_kernel_does_not_matter(backbone, both):
    _, kernel, responses = both
    given = {"backbone": backbone, "stimuli": make_stimuli(), "device": "cpu"}
    found = feature_weights(fitted_to(kernel, responses), kernel, **given)
    shifted = kernel + 3 * float(kernel.std())
    shifted.attrs = kernel.attrs
    again = feature_weights(fitted_to(shifted, responses), shifted, **given)
    scale = float(np.abs(found).max())
    np.testing.assert_allclose(again, found, atol=1e-4 * scale)


def test_targets_that_the_model_of_a_kernel_left_out(backbone, both):
    _, kernel, responses = both
    given = {"backbone": backbone, "stimuli": make_stimuli(), "device": "cpu"}
    whole = feature_weights(fitted_to(kernel, responses), kernel, **given)
    values = responses.values.copy()
    values[0, 3] = np.nan
    options = {"kernel": "precomputed", "nan_targets": "exclude", "device": "cpu"}
    found = feature_weights(KernelRidgeCV([5.0], **options).fit(kernel, values), kernel, **given)
    assert np.isnan(found[3]).all()
    np.testing.assert_allclose(found[[0, 1, 2, 4]], whole[[0, 1, 2, 4]], atol=1e-6)


class Sideways(Ridge):
    """Has its weights with targets along the second axis, as some libraries do."""

    def fit(self, X, y):
        super().fit(X, y)
        self.coef_ = self.coef_.T
        return self

    def predict(self, X):
        return X @ self.coef_ + self.intercept_


def test_models_and_features_that_have_no_weights(both):
    features, kernel, responses = both
    model = RidgeCV([1.0], device="cpu").fit(features.values, responses.values)
    with pytest.raises(ValueError, match="RidgeCV and a kernel"):
        feature_weights(model, kernel)
    rbf = KernelRidgeCV([1.0], kernel="rbf", device="cpu").fit(features.values, responses.values)
    with pytest.raises(ValueError, match="linear model: .* KernelRidgeCV and features"):
        feature_weights(rbf, features)
    with pytest.raises(SchemaError, match="weights of 576 features, but `features` has 100"):
        feature_weights(model, features[:, :100])
    some = features[:, :100]
    fewer = RidgeCV([1.0], device="cpu").fit(some.values, responses.values)
    with pytest.raises(SchemaError, match=r"rows are 4 x 12 x 12 .* have 100 features"):
        feature_weights(fewer, some)
    assert feature_weights(fewer, without_layout(some)).dims == ("target", "feature")
    square = Sideways(1.0).fit(features.values[:, :5].astype(float), responses.values)
    with pytest.raises(SchemaError, match="5 of 5 targets do not predict"):
        feature_weights(square, without_layout(features[:, :5]))
    banded = fitted_to(kernel, responses)
    del banded.dual_coef_
    with pytest.raises(ValueError, match="KernelRidgeCV, which has none"):
        feature_weights(banded, kernel)
    for targets in ([5], [-1], [], [0.5], 3):
        with pytest.raises(ValueError, match="whole numbers from 0 to 4"):
            feature_weights(model, features, targets=targets)
    with pytest.raises(SchemaError, match="`responses` has 2 targets"):
        feature_weights(model, features, responses=responses[:, :2])


def test_weights_that_do_not_fit_into_memory(backbone, both, monkeypatch):
    _, kernel, responses = both
    monkeypatch.setattr("neurodl.scores.dual.available_memory", lambda _: 1000)
    with pytest.raises(ValueError, match="Choose fewer `targets`"):
        feature_weights(
            fitted_to(kernel, responses), kernel, backbone=backbone, stimuli=make_stimuli()
        )


def one_place(y, x, side=4, **attrs):
    values = np.zeros((1, 3, side, side), np.float32)
    values[0, :, y, x] = [1.0, -2.0, 2.0]
    dims = ("target", "channel", "y", "x")
    return xr.DataArray(values, dims=dims, attrs={"input_size": [32, 32], **attrs})


def test_a_map_is_the_root_mean_square_over_channels_in_its_place():
    found = weight_maps(one_place(1, 2))
    assert found.dims == ("target", "y", "x")
    peak = found[0].sel(y=12, x=20, method="nearest")
    assert float(found.max()) == pytest.approx(np.sqrt(3) * (15 / 16) ** 2, rel=1e-5)
    assert float(peak) == float(found.max())
    centre = (
        (found[0] * found["y"]).sum() / found.sum(),
        (found[0] * found["x"]).sum() / found.sum(),
    )
    np.testing.assert_allclose(centre, [12, 20], atol=1e-4)


def test_patch_tokens_make_a_map_and_others_none(backbone):
    weights = one_place(1, 2).stack(token=("y", "x")).reset_index("token").drop_vars(["y", "x"])
    weights = weights.transpose("target", "token", "channel")
    prefix = xr.full_like(weights[:, :1], 9.0)
    tokens = xr.concat([prefix, weights], "token").assign_attrs(
        input_size=[32, 32], n_prefix_tokens=1
    )
    np.testing.assert_array_equal(weight_maps(tokens), weight_maps(one_place(1, 2)))
    for none in (tokens.assign_attrs(n_prefix_tokens=2), one_place(0, 0)[..., :1, :1]):
        with pytest.raises(SchemaError, match="pool='spatial:7' or 'flatten'"):
            weight_maps(none)


def test_the_crop_of_the_transform_is_minded():
    network = load_backbone("timm:resnet18", pretrained=False)
    text = network.transform.text
    assert "shorter side to 235" in text
    weights = one_place(1, 2, transform=text, input_size=[224, 224])
    found = weight_maps(weights, image_size=(120, 200), backbone=network)
    assert found.shape == (1, 120, 200)
    seen = np.isfinite(found[0]).any("x").values, np.isfinite(found[0]).any("y").values
    side = 120 * 224 / 235
    for axis, extent in zip(seen, (120, 200), strict=True):
        inside = np.flatnonzero(axis)
        assert inside[0] == pytest.approx((extent - side) / 2, abs=1.5)
        assert len(inside) == pytest.approx(side, abs=1.5)
        assert axis.sum() == inside[-1] - inside[0] + 1
    place = np.unravel_index(np.nanargmax(found[0]), (120, 200))
    expected = (120 - side / 4) / 2, (200 + side / 4) / 2
    np.testing.assert_allclose(place, expected, atol=2)
    with pytest.raises(ValueError, match="go together"):
        weight_maps(weights, image_size=(120, 200))
    with pytest.raises(SchemaError, match="Give the network that the features are of"):
        weight_maps(one_place(0, 0, transform="x"), image_size=(9, 9), backbone=network)


@pytest.fixture(scope="module")
def mobilenet(recordings):
    weights = recordings / "weights_mobilenetv2_imagenet" / "mobilenet_v2_torchvision.pth"
    return load_backbone("torchvision:mobilenet_v2", weights=weights)


@pytest.mark.slow
def test_the_weights_of_a_layer_of_a_real_network(mobilenet, recordings):
    """75,264 features of 92 photographs."""
    with np.load(recordings / "kriegeskorte92" / "k92_images_hIT.npz") as stored:
        stimuli = Stimuli.from_arrays(stored["images"])
    layer = "features.3"
    kernel = extract_kernels(mobilenet, stimuli, layer, cache=False)[layer]
    features = extract_features(mobilenet, stimuli, layer, pool="flatten", cache=False)[layer]
    y = features.values[:, ::10_000] + np.random.default_rng(0).standard_normal((92, 8))
    alpha = float(features.values.var(0).sum())
    dual = KernelRidgeCV([alpha], kernel="precomputed").fit(kernel.values, y.astype("f4"))
    found = feature_weights(dual, kernel, backbone=mobilenet, stimuli=stimuli)
    expected = RidgeCV([alpha], standardize=False).fit(features.values, y.astype("f4")).coef_
    assert found.shape == (8, 24, 56, 56)
    error = np.linalg.norm(found.values.reshape(8, -1) - expected)
    assert error < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.slow
def test_a_response_to_one_quadrant_has_its_map_there(mobilenet, top, left, tmp_path_factory):
    """Contrast in one quadrant drives the response; the map is told from the kernel alone."""
    rng = np.random.default_rng(0)
    contrast = rng.uniform(0, 1, (150, 2, 2))
    coarse = rng.standard_normal((150, 3, 16, 16)).repeat(3, 2).repeat(3, 3)
    images = 127 + 60 * coarse * contrast.repeat(24, 1).repeat(24, 2)[:, None]
    images = np.clip(images, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    stimuli = Stimuli.from_arrays(images)
    cache = tmp_path_factory.getbasetemp() / "quadrants"
    kernel = extract_kernels(mobilenet, stimuli, ["features.6"], cache=cache)["features.6"]
    response = contrast[:, top, left][:, None] + 0.1 * rng.standard_normal((150, 1))
    model = KernelRidgeCV(kernel="precomputed").fit(kernel.values, response)
    weights = feature_weights(model, kernel, backbone=mobilenet, stimuli=stimuli)
    found = weight_maps(weights, image_size=(48, 48), backbone=mobilenet)[0].fillna(0).values
    peak = np.unravel_index(found.argmax(), found.shape)
    assert (peak[0] // 24, peak[1] // 24) == (top, left)
    share = np.square(found.reshape(2, 24, 2, 24)).sum((1, 3))
    assert share[top, left] > 0.4 * share.sum()
