"""Networks by name: what travels with the weights, which layers there are, names with typos."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import neurodl as ndl
from neurodl.backbones import ImageTransform, list_backbones, load_backbone
from neurodl.errors import UnknownNameError

# Where the photographs of the recordings stand among the 1000 classes of ImageNet.
PHOTOS = {"cat.bmp": "cat", "grace_hopper.bmp": "military uniform", "parrot.jpg": "macaw"}


@pytest.mark.parametrize("photo", PHOTOS)
def test_photographs_get_their_names(recordings, photo):
    """The whole path from a file to a label: decoding, transform, weights, forward pass."""
    folder = recordings / "weights_mobilenetv2_imagenet"
    backbone = load_backbone(
        "timm:mobilenetv2_100",
        weights=folder / "mobilenetv2_100_timm_same.pth",
        pad_type="same",
        transform={"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0},
    )
    pixels = ndl.Stimuli.from_files([folder / photo])[0]
    with torch.inference_mode():
        scores = backbone.module(backbone.transform(pixels)[None])[0]
    labels = (folder / "imagenet_labels.txt").read_text().splitlines()[1:]
    best = [labels[index] for index in scores.topk(3).indices]
    assert any(PHOTOS[photo] in label.lower() for label in best), best


def test_the_transform_is_that_of_the_weights(rng):
    image = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    backbone = load_backbone("torchvision:resnet18", pretrained=False)
    made = backbone.transform(torch.from_numpy(image).permute(2, 0, 1))
    resized = Image.fromarray(image).resize((341, 256), Image.Resampling.BILINEAR)
    crop = np.asarray(resized)[16:240, 58:282] / 255
    expected = (crop - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(made.permute(1, 2, 0), expected, atol=0.03)
    assert backbone.transform.text == (
        "shorter side to 256 (bilinear, antialiased), centre crop 224 x 224, "
        "mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
    )


@pytest.mark.parametrize(
    ("name", "change", "shape", "said"),
    [
        ("torchvision:resnet18", {"crop_size": 96, "resize_size": 100}, 96, "crop 96 x 96"),
        ("timm:resnet18", {"input_size": 64, "mean": (0.0,) * 3}, 64, "mean 0 0 0"),
        ("gabor", {"size": 64}, 64, "64 x 64"),
        ("pixels", {"size": 16}, 16, "16 x 16"),
    ],
)
def test_single_values_of_a_transform_can_be_replaced(name, change, shape, said):
    options = {} if ":" not in name else {"pretrained": False}
    backbone = load_backbone(name, transform=change, **options)
    assert backbone.transform(torch.zeros(3, 300, 300, dtype=torch.uint8)).shape[1] == shape
    assert said in backbone.transform.text


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18", "gabor"])
def test_an_unknown_value_of_a_transform_is_named(name):
    with pytest.raises(UnknownNameError, match="`transform` has no option 'men'"):
        load_backbone(name, pretrained=False, transform={"men": 1})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", "Use 'torchvision:resnet18' or 'timm:resnet18'"),
        ("torchvision:resnet81", "Did you mean .*'resnet18'"),
        ("torchvision:resnet18.IMAGENET1K_V7", "Did you mean 'IMAGENET1K_V1'"),
        ("timm:resnet5O", "Did you mean .*'resnet50"),
        ("tim:resnet50", "Use 'torchvision:resnet50' or 'timm:resnet50'"),
        ("timm-resnet50", "Names look like"),
        ("gabour", "Did you mean 'gabor'"),
    ],
)
def test_unknown_names_list_near_ones(name, expected):
    with pytest.raises(UnknownNameError, match=expected):
        load_backbone(name, pretrained=False)


def test_names_are_searched():
    assert list_backbones("VIT_TINY") == [n for n in list_backbones() if "vit_tiny" in n]
    assert {"gabor", "pixels", "torchvision:r3d_18", "timm:resnet50.a1_in1k"} <= set(
        list_backbones()
    )
    with pytest.raises(UnknownNameError, match="Did you mean"):
        list_backbones("rsenet50")


@pytest.mark.parametrize(
    ("name", "first", "last", "count"),
    [
        ("torchvision:resnet18", "conv1", "fc", 8),
        ("torchvision:alexnet", "features.0", "classifier", 8),
        ("torchvision:swin_t", "features.0", "features.7", 8),
        ("timm:vit_tiny_patch16_224", "blocks.0", "blocks.11", 8),
        ("timm:mobilenetv2_100", "blocks.0", "blocks.6", None),
    ],
)  # fmt: skip
def test_default_layers_run_from_input_to_output(name, first, last, count):
    backbone = load_backbone(name, pretrained=False)
    layers = backbone.default_layers
    assert (layers[0], layers[-1]) == (first, last)
    assert count is None or len(layers) == count
    order = [name for name, _ in backbone.module.named_modules()]
    assert layers == sorted(layers, key=order.index)


def test_wrong_layers_name_the_nearest():
    backbone = load_backbone("torchvision:resnet18", pretrained=False)
    assert backbone.check_layers(["layer1", "layer1", "fc"]) == ["layer1", "fc"]
    with pytest.raises(UnknownNameError, match=r"no module 'layre4'.*Did you mean 'layer4'"):
        backbone.check_layers(["layer1", "layre4"])
    with pytest.raises(UnknownNameError, match="is empty"):
        backbone.check_layers([])


def test_hashes_tell_weights_and_architectures_apart():
    backbone = load_backbone("torchvision:squeezenet1_1", pretrained=False)
    again = load_backbone("torchvision:squeezenet1_1", pretrained=False)
    assert backbone.weights_sha256 == again.weights_sha256
    other = load_backbone("torchvision:squeezenet1_1", pretrained=False)
    with torch.no_grad():
        other.module.classifier[1].bias[7] += 1e-6
    assert other.weights_sha256 != backbone.weights_sha256
    assert other.architecture_sha256 == backbone.architecture_sha256
    stride = load_backbone("torchvision:squeezenet1_1", pretrained=False)
    stride.module.features[0].stride = (1, 1)
    assert stride.weights_sha256 == backbone.weights_sha256
    assert stride.architecture_sha256 != backbone.architecture_sha256


def test_networks_are_in_evaluation_mode_and_videos_know_their_kind():
    assert not load_backbone("torchvision:resnet18", pretrained=False).module.training
    video = load_backbone("torchvision:r3d_18", pretrained=False)
    assert video.kind == "video"
    assert video.transform(torch.zeros(4, 3, 60, 80, dtype=torch.uint8)).shape == (3, 4, 112, 112)


def test_a_module_of_ones_own_needs_its_transform():
    net = nn.Conv2d(3, 2, 3)
    with pytest.raises(TypeError, match="needs its transform"):
        load_backbone(net)
    own = load_backbone(net, transform=ImageTransform(lambda image: torch.zeros(3, 8, 8), "zeros"))
    assert own.name == "own:Conv2d"
    with pytest.raises(TypeError, match="only replaces single values"):
        load_backbone("gabor", transform=own.transform)


def test_licences_travel_with_the_weights():
    licences = [load_backbone(n, pretrained=False).licence for n in ("timm:resnet18", "gabor")]
    assert all(re.search("BSD|Apache", licence) for licence in licences)
    with pytest.raises(ValueError, match="'gabor' has no weights"):
        load_backbone("gabor", weights="w.pth")
