"""Kernels of feature maps: exact, in bounded memory, cached, paired, and made for ridge."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from torch import nn

from neurodl.backbones import Backbone, ImageTransform, load_backbone
from neurodl.errors import FileFormatError, NeurodlWarning, PairingError, SchemaError, StorageError
from neurodl.features import concatenate_features, extract_features, extract_kernels
from neurodl.features.forward import ForwardPass
from neurodl.features.kernel import inner_products
from neurodl.io.store import load, save
from neurodl.models import KernelRidgeCV, RidgeCV
from neurodl.schema import check_features, is_kernel
from neurodl.scores import cross_validate
from neurodl.stimuli import Stimuli


def to_tensor(image):
    return torch.from_numpy(np.array(image)).movedim(-1, 0) / 255


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    return Backbone("small", net, ImageTransform(to_tensor, "0..1"), "untrained, seed 0")


def make_stimuli(n=200, seed=0):
    rng = np.random.default_rng(seed)
    return Stimuli.from_arrays(rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8))


# Enough for 64 stimuli of both layers of `backbone` together, not for 128.
ONE_CHUNK = 64 * 4 * (6 * 14**2 + 4 * 12**2) / 2**30 * 1.5


def double_centred(kernel):
    kernel = np.asarray(kernel, np.float64)
    return kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()


def of_features(features):
    values = features.values.astype(np.float64)
    values -= values.mean(0)
    return values @ values.T


@pytest.mark.slow
def test_kernel_of_a_real_layer_is_that_of_its_features(recordings):
    weights = recordings / "weights_mobilenetv2_imagenet" / "mobilenet_v2_torchvision.pth"
    network = load_backbone("torchvision:mobilenet_v2", weights=weights)
    archive = Stimuli.from_files(recordings / "v4_cowley" / "images_190923.zip")
    stimuli = archive.sel(archive.ids[:100])
    layers = ["features.1", "features.2"]
    kernels = extract_kernels(network, stimuli, layers, cache=False)
    features = extract_features(network, stimuli, layers, pool="flatten", cache=False)
    assert kernels["features.1"].attrs["n_features"] == 16 * 112 * 112
    for layer in layers:
        expected = of_features(features[layer])
        found = double_centred(kernels[layer])
        assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)
        assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


def test_blocks_give_what_all_at_once_gives(backbone, caplog):
    stimuli = make_stimuli()
    whole = extract_kernels(backbone, stimuli, ["0", "2"], cache=False)
    with caplog.at_level(logging.INFO, "neurodl.features.kernel"):
        parts = extract_kernels(backbone, stimuli, ["0", "2"], cache=False, memory=ONE_CHUNK)
    assert "in 4 blocks: 2.5 passes" in caplog.text
    features = extract_features(backbone, stimuli, ["0", "2"], pool="flatten", cache=False)
    for layer in whole:
        scale = float(np.abs(whole[layer]).max())
        np.testing.assert_allclose(parts[layer], whole[layer], atol=1e-7 * scale, rtol=0)
        np.testing.assert_array_equal(parts[layer], parts[layer].values.T)
        expected = of_features(features[layer])
        np.testing.assert_allclose(
            double_centred(parts[layer]), expected, atol=1e-6 * np.abs(expected).max()
        )


def passes(monkeypatch, speed):
    """Pretend a disk of some speed; return the chunks that are passed from now on."""
    seen, real = [], ForwardPass._batches_of
    monkeypatch.setattr("neurodl.features.spill.disk_speed", lambda _: speed)

    def watched(self, chunk, *rest):
        seen.append(chunk)
        return real(self, chunk, *rest)

    monkeypatch.setattr(ForwardPass, "_batches_of", watched)
    return seen


def test_a_fast_disk_takes_the_place_of_further_passes(backbone, tmp_path, monkeypatch):
    stimuli, layers = make_stimuli(), ["0", "2"]
    passed = extract_kernels(backbone, stimuli, layers, cache=False, memory=ONE_CHUNK)
    seen = passes(monkeypatch, 1e12)
    found = extract_kernels(
        backbone, stimuli, layers, cache=tmp_path, memory=ONE_CHUNK, device="cpu"
    )
    assert seen == [0, 0, 1, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "fingerprints"]
    for layer in layers:
        np.testing.assert_array_equal(found[layer], passed[layer])


def test_a_slow_disk_is_left_alone(backbone, tmp_path, monkeypatch):
    seen = passes(monkeypatch, 1.0)
    options = {"cache": tmp_path, "memory": ONE_CHUNK, "device": "cpu"}
    extract_kernels(backbone, make_stimuli(), ["0", "2"], **options)
    assert seen == [0, 0, 1, 2, 3, 1, 2, 3, 2, 3, 3]


def test_a_disk_that_fills_up_is_an_error_that_says_so(backbone, tmp_path, monkeypatch):
    passes(monkeypatch, 1e12)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("neurodl.features.spill.Spill._write", full)
    with pytest.raises(StorageError, match=r"memory|cache=False"):
        extract_kernels(
            backbone, make_stimuli(), ["0"], cache=tmp_path, memory=ONE_CHUNK / 2, device="cpu"
        )


def test_schema_and_ids(backbone, tmp_path):
    kernels = extract_kernels(backbone, make_stimuli(5), ["0"], cache=False)
    kernel = kernels["0"]
    assert is_kernel(kernel)
    assert kernel.dtype == np.float32
    assert kernel.attrs["n_features"] == 6 * 14 * 14
    assert kernel["stimulus"].values.tolist() == kernel["feature"].values.tolist()
    assert load(save(kernels, tmp_path / "k.zarr"))["0"].identical(kernel)
    check_features(kernel[::-1])
    with pytest.raises(SchemaError, match=r"3 rows and 5 columns, and 2 ids .*sel\(stimulus=ids"):
        check_features(kernel[:3])
    with pytest.raises(SchemaError, match="coord 'feature'"):
        check_features(kernel.drop_vars("feature"))


def test_products_are_exact_where_features_are_many_and_not_centred():
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(8, 300_000, generator=generator)
    exact = rows.double() @ rows.double().T
    error = (inner_products(rows, rows) - exact).abs().max() / exact.abs().max()
    assert error < 2e-7
    naive = ((rows @ rows.T).double() - exact).abs().max() / exact.abs().max()
    assert naive > 3 * error


def test_products_keep_clear_of_reduced_precision(monkeypatch):
    rows = torch.randn(4, 1000)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    torch.testing.assert_close(
        inner_products(rows, rows), rows.double() @ rows.double().T, atol=0, rtol=1e-12
    )


def ridge_both_ways(backbone, n=90):
    stimuli = make_stimuli(n)
    kernel = extract_kernels(backbone, stimuli, ["2"], cache=False)["2"]
    features = extract_features(backbone, stimuli, ["2"], pool="flatten", cache=False)["2"]
    rng = np.random.default_rng(1)
    values = features.values[:, ::20] @ rng.standard_normal((29, 7)) + rng.standard_normal((n, 7))
    responses = xr.DataArray(
        values.astype("f4"),
        dims=("stimulus", "unit"),
        coords={"stimulus": stimuli.ids},
        attrs={"units": "a.u."},
    )
    return kernel, features, responses


def test_ridge_on_kernels_is_ridge_on_features(backbone):
    kernel, features, responses = ridge_both_ways(backbone)
    train, test = np.arange(60), np.arange(60, 90)
    own = kernel.values.astype(float)
    middle = own[np.ix_(train, train)]
    within = middle - middle.mean(0) - middle.mean(1)[:, None] + middle.mean()
    across = own[np.ix_(test, train)]
    across = across - middle.mean(0) - across.mean(1)[:, None] + middle.mean()
    y = responses.values[train]
    dual = KernelRidge(alpha=3.0, kernel="precomputed").fit(within, y - y.mean(0))
    primal = Ridge(alpha=3.0).fit(features.values[train].astype(float), y)
    expected = primal.predict(features.values[test])
    np.testing.assert_allclose(dual.predict(across) + y.mean(0), expected, atol=1e-4)


@pytest.mark.parametrize("chosen", [[5.0], "auto"])
def test_cross_validation_is_the_same(backbone, chosen):
    kernel, features, responses = ridge_both_ways(backbone)
    options = {"device": "cpu", "cv": 3}
    order = np.random.default_rng(0).permutation(90)
    shuffled = kernel[order, np.roll(order, 7)]
    found = cross_validate(
        KernelRidgeCV(chosen, kernel="precomputed", **options), shuffled, responses, cv=4
    )
    expected = cross_validate(
        RidgeCV(chosen, standardize=False, **options), features, responses, cv=4
    )
    np.testing.assert_allclose(found["r"], expected["r"], atol=1e-4)
    np.testing.assert_allclose(found["alpha"], expected["alpha"], rtol=1e-3)
    assert found["n_features"].item() == 4 * 12 * 12


def test_presentations_and_dropped_ids_take_their_columns_along(backbone):
    kernel, features, responses = ridge_both_ways(backbone)
    rows = np.random.default_rng(2).integers(0, 90, 140)
    shown = responses[rows].drop_vars("stimulus").rename(stimulus="presentation")
    shown = shown.assign_coords(stimulus=("presentation", responses["stimulus"].values[rows]))
    some = kernel["stimulus"].values[10:]
    fewer = {"k": kernel.sel(stimulus=some, feature=some[::-1])}
    options = {"cv": GroupKFold(3), "groups": "stimulus", "unpaired": "drop"}
    found = cross_validate(
        KernelRidgeCV([5.0], kernel="precomputed", device="cpu"), fewer, shown, **options
    )
    expected = cross_validate(
        RidgeCV([5.0], standardize=False, device="cpu"), features[10:], shown, **options
    )
    assert found.attrs["n_samples"] == int((rows >= 10).sum())
    np.testing.assert_allclose(found["r"], expected["r"], atol=1e-4)
    with pytest.raises(PairingError, match="ids of the responses have no features"):
        cross_validate(KernelRidgeCV([5.0], kernel="precomputed"), fewer, shown)


def test_scikit_learns_kernel_models_get_square_kernels(backbone):
    kernel, _, responses = ridge_both_ways(backbone)
    model = KernelRidge(alpha=5.0, kernel="precomputed")
    train, test = np.arange(60), np.arange(60, 90)
    cv = [(train, test)]
    scores = cross_validate(model, kernel, responses, cv=cv, keep_predictions=True)
    fitted = model.fit(kernel.values[np.ix_(train, train)], responses.values[train])
    np.testing.assert_allclose(
        scores["predicted"].values[0][test],
        fitted.predict(kernel.values[np.ix_(test, train)]),
        rtol=1e-4,
        atol=1e-4,
    )


def test_kernels_and_features_go_to_their_own_models(backbone):
    kernel, features, responses = ridge_both_ways(backbone)
    with pytest.raises(SchemaError, match=r"'2' are kernels, which RidgeCV .*precomputed"):
        cross_validate(RidgeCV(), kernel, responses)
    with pytest.raises(SchemaError, match=r"'2' are kernels.*extract_features"):
        cross_validate(KernelRidgeCV(kernel="linear"), kernel, responses)
    with pytest.raises(SchemaError, match=r"'2' are features: give it kernels of extract_kernels"):
        cross_validate(KernelRidgeCV(kernel="precomputed"), features, responses)


def test_kernels_of_layers_side_by_side_are_added(backbone):
    stimuli = make_stimuli(20)
    kernels = extract_kernels(backbone, stimuli, ["0", "2"], cache=False)
    joined = concatenate_features(kernels)["all"]
    features = extract_features(backbone, stimuli, ["0", "2"], pool="flatten", cache=False)
    expected = of_features(concatenate_features(features)["all"])
    np.testing.assert_allclose(double_centred(joined), expected, atol=1e-6 * np.abs(expected).max())
    assert joined.attrs["n_features"] == 6 * 14**2 + 4 * 12**2
    assert joined.attrs["layer"] == "0+2"
    with pytest.raises(SchemaError, match="1 of 2 layers are kernels"):
        concatenate_features({"0": kernels["0"], "2": features["2"]})


def test_second_run_comes_from_the_cache(backbone, tmp_path, monkeypatch):
    stimuli = make_stimuli()
    first = extract_kernels(backbone, stimuli, ["0", "2"], cache=tmp_path)
    monkeypatch.setattr(ForwardPass, "_forward", lambda *_: pytest.fail("the network ran again"))
    second = extract_kernels(backbone, stimuli, ["2", "0"], cache=tmp_path)
    assert all(second[layer].identical(first[layer]) for layer in ("0", "2"))


def test_features_and_kernels_do_not_share_a_cache_entry(backbone, tmp_path):
    stimuli = make_stimuli(10)
    kernel = extract_kernels(backbone, stimuli, ["2"], cache=tmp_path)["2"]
    features = extract_features(backbone, stimuli, ["2"], pool="flatten", cache=tmp_path)["2"]
    assert kernel.shape == (10, 10)
    assert features.shape == (10, 4 * 12 * 12)


def test_interrupted_run_goes_on_at_the_unfinished_block(backbone, tmp_path, monkeypatch):
    stimuli, real, seen = make_stimuli(), ForwardPass._batches_of, []
    monkeypatch.setattr("neurodl.features.spill.disk_speed", lambda _: 1.0)
    options = {"cache": tmp_path, "memory": ONE_CHUNK}

    def interrupted(self, chunk, *rest):
        seen.append(chunk)
        if len(seen) == 8:
            raise KeyboardInterrupt
        return real(self, chunk, *rest)

    monkeypatch.setattr(ForwardPass, "_batches_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract_kernels(backbone, stimuli, ["0", "2"], **options)
    assert seen == [0, 0, 1, 2, 3, 1, 2, 3]
    resumed = extract_kernels(backbone, stimuli, ["0", "2"], **options)
    assert seen[8:] == [0, 1, 2, 3, 2, 3, 3]
    whole = extract_kernels(backbone, stimuli, ["0", "2"], cache=False, memory=ONE_CHUNK)
    for layer in whole:
        np.testing.assert_array_equal(resumed[layer], whole[layer])


def test_damaged_chunk_is_computed_again(backbone, tmp_path):
    stimuli = make_stimuli()
    first = extract_kernels(backbone, stimuli, ["2"], cache=tmp_path)["2"]
    (chunk,) = tmp_path.glob("features/*/c/1/0")
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 255
    chunk.write_bytes(content)
    again = extract_kernels(backbone, stimuli, ["2"], cache=tmp_path)["2"]
    np.testing.assert_allclose(again, first, atol=1e-7 * float(np.abs(first).max()))


def test_unreadable_stimuli_are_left_out_of_rows_and_columns(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(100):
        pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")
    for broken in ("0007.png", "0080.png"):
        (folder / broken).write_bytes((folder / broken).read_bytes()[:60])
    stimuli = Stimuli.from_files(folder)
    with pytest.raises(FileFormatError, match=r"2 of 100 .*0007\.png"):
        extract_kernels("pixels", stimuli)
    with pytest.warns(NeurodlWarning, match=r"2 of 100 .*0007\.png"):
        kernel = extract_kernels("pixels", stimuli, on_unreadable="skip")["pixels"]
    with pytest.warns(NeurodlWarning, match="2 of 100"):
        features = extract_features("pixels", stimuli, on_unreadable="skip", pool="flatten")
    assert kernel.shape == (98, 98)
    assert not {"0007.png", "0080.png"} & set(kernel["feature"].values)
    expected = of_features(features["pixels"])
    np.testing.assert_allclose(double_centred(kernel), expected, atol=1e-6 * np.abs(expected).max())


MEASURED = """
import resource, sys
import numpy as np, torch
from torch import nn
from neurodl.backbones import Backbone, ImageTransform
from neurodl.features import extract_kernels
from neurodl.stimuli import Stimuli

class Wide(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 1)
    def forward(self, images):
        return self.conv(images)

torch.set_num_threads(1)
to_tensor = lambda image: torch.from_numpy(np.array(image)).movedim(-1, 0) / 255
images = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), dtype=np.uint8)
def kernel(width):
    net = Backbone("wide", Wide(width), ImageTransform(to_tensor, "0..1"), "untrained")
    options = dict(cache=False, memory=0.1, batch_size=2, device="cpu")
    extract_kernels(net, Stimuli.from_arrays(images), ["conv"], **options)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
narrow = kernel(96)
print(narrow, kernel(384))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_memory_does_not_grow_with_the_number_of_features():
    """100 MiB of features in all, then 400 MiB, both in 0.1 GiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True
    )
    narrow, wide = map(float, done.stdout.split())
    assert wide - narrow < 60


@pytest.mark.parametrize("memory", [0, -1.0])
def test_impossible_memory(backbone, memory):
    with pytest.raises(ValueError, match="`memory` must be 'auto' or a number of GiB"):
        extract_kernels(backbone, make_stimuli(4), ["2"], memory=memory, cache=False)
