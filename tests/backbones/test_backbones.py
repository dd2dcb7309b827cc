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

# The photographs of the recordings among the 1000 classes of ImageNet: any house cat; military
# uniform; macaw.
PHOTOS = {"cat.bmp": range(281, 286), "grace_hopper.bmp": [652], "parrot.jpg": [88]}
# From one set of weights: timm's network pads as they were trained, torchvision's does not.
NETWORKS = {
    "timm:mobilenetv2_100": (
        "mobilenetv2_100_timm_same.pth",
        {"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0},
        {"pad_type": "same"},
    ),
    "torchvision:mobilenet_v2": (
        "mobilenet_v2_torchvision.pth",
        {"mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_size": 224},
        {},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_photographs_get_their_names(recordings, name):
    """The whole path from a file to a class: decoding, transform, weights, forward pass."""
    folder = recordings / "weights_mobilenetv2_imagenet"
    file, transform, options = NETWORKS[name]
    backbone = load_backbone(name, weights=folder / file, transform=transform, **options)
    assert backbone.weights.startswith(f"file {file}")
    for number, pixels in enumerate(ndl.Stimuli.from_files([folder / photo for photo in PHOTOS])):
        with torch.inference_mode():
            scores = backbone.module(backbone.transform(pixels)[None])[0]
        best = int(scores.argmax())
        assert best in list(PHOTOS.values())[number], (list(PHOTOS)[number], best)


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
        "RGB in 0..1, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
    )


@pytest.mark.parametrize(
    ("name", "change", "shape", "said"),
    [
        ("torchvision:resnet18", {"crop_size": 96, "resize_size": 100}, 96, "crop 96 x 96"),
        ("timm:resnet18", {"input_size": 64, "mean": (0.0,) * 3}, 64, "mean 0 0 0"),
        ("timm:resnet18", {"crop_pct": 1.0}, 224, "shorter side to 224 "),
        ("timm:resnet18", {"crop_pct": 0.5}, 224, "shorter side to 448 "),
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
        ("timm:resnet50.a1_in2k", "Did you mean .*'resnet50.a1_in1k'"),
        ("resnet50.a1_in1k", "Did you mean 'timm:resnet50.a1_in1k'"),
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
    assert list_backbones("resnet18.", source="timm") == [
        name for name in list_backbones("resnet18.") if name.startswith("timm:")
    ]
    with pytest.raises(UnknownNameError, match="Did you mean 'timm'"):
        list_backbones(source="tim")


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


def called_layers(backbone):
    """Return the names of the modules that a forward pass calls, and which give a tensor."""
    called = set()

    def note(name):
        return lambda module, args, out: called.add(name) if torch.is_tensor(out) else None

    handles = [
        part.register_forward_hook(note(name)) for name, part in backbone.module.named_modules()
    ]
    image = backbone.transform(torch.zeros(3, 300, 300, dtype=torch.uint8))
    with torch.inference_mode():
        backbone.module(image[None])
    for handle in handles:
        handle.remove()
    return called


@pytest.mark.parametrize(
    "name",
    [
        "torchvision:googlenet",  # with heads for training only
        "torchvision:vit_b_32",
        "timm:coat_lite_tiny",  # its stages are lists of modules
        "timm:test_resnet",
        "gabor",
    ],
)
def test_default_layers_are_called(name):
    backbone = load_backbone(name, pretrained=False)
    assert set(backbone.default_layers) <= called_layers(backbone)


def test_default_layers_of_ones_own_network_are_called():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scales = nn.ParameterList([torch.ones(1)])
            self.blocks = nn.ModuleList([nn.Conv2d(3, 3, 1), nn.ModuleList([nn.Conv2d(3, 3, 1)])])
            self.short = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
            self.heads = nn.ModuleDict({"left": nn.Conv2d(3, 2, 1), "drop": nn.Dropout()})

        def forward(self, images):
            maps = self.blocks[1][0](self.blocks[0](images)) * self.scales[0]
            return self.heads["left"](self.short(maps))

    transform = ImageTransform(lambda image: torch.zeros(3, 8, 8), "zeros")
    backbone = load_backbone(Own(), transform=transform)
    assert backbone.default_layers == ["blocks.0", "blocks.1.0", "short", "heads.left"]
    assert set(backbone.default_layers) <= called_layers(backbone)


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
    assert own.module is net
    assert own.weights == "as given"
    with pytest.raises(ValueError, match="leave out 'seed', 'depth'"):
        load_backbone(net, transform=own.transform, seed=1, depth=3)
    with pytest.raises(TypeError, match="only replaces single values"):
        load_backbone("gabor", transform=own.transform)


def test_licences_travel_with_the_weights():
    licences = [load_backbone(n, pretrained=False).licence for n in ("timm:resnet18", "gabor")]
    assert all(re.search("BSD|Apache", licence) for licence in licences)
    with pytest.raises(ValueError, match="'gabor' has no weights"):
        load_backbone("gabor", weights="w.pth")
