"""One contract for every family of networks: catalogue, values, pooling, any batch size."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch

from neurodl.backbones import load_backbone
from neurodl.features import extract_features
from neurodl.stimuli import Stimuli

TV = {"transform": {"resize_size": 64, "crop_size": 64}}
TIMM = {"transform": {"input_size": (3, 64, 64)}}
VIDEO = {"transform": {"resize_size": (64, 64), "crop_size": (64, 64)}}
CLASS = ("class",)

# Name: options, what stands before the patches.
IMAGE_NETWORKS = {
    **{
        f"torchvision:{name}": (TV, ())
        for name in (
            "alexnet", "vgg11", "resnet18", "squeezenet1_1", "densenet121", "googlenet",
            "shufflenet_v2_x0_5", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5",
            "efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "swin_t", "swin_v2_t",
        )
    },
    "torchvision:inception_v3": ({"transform": {"resize_size": 96, "crop_size": 96}}, ()),
    "torchvision:vit_b_32": (TV | {"image_size": 64}, CLASS),
    "torchvision:maxvit_t": ({}, ()),
    **{
        f"timm:{name}": (TIMM, ())
        for name in (
            "resnetv2_50", "nf_regnet_b0", "hrnet_w18_small", "rexnet_100", "ghostnet_050",
            "repvgg_a0", "cspresnet50", "dla34", "dpn68", "res2net50_26w_4s", "poolformer_s12",
            "edgenext_xx_small", "mambaout_femto", "convnextv2_atto", "mobilenetv4_conv_small",
            "tresnet_m",
        )
    },
    "timm:vit_tiny_patch16_224": ({}, CLASS),
    "timm:deit_tiny_distilled_patch16_224": ({}, ("class", "distillation")),
    "timm:vit_small_patch14_reg4_dinov2": (
        {"img_size": 56, "transform": {"input_size": (3, 56, 56)}}, ("class", *["register"] * 4),
    ),
    "timm:test_vit4": ({}, ("register",)),
    "timm:eva02_tiny_patch14_224": ({}, CLASS),
    "timm:cait_xxs24_224": ({}, CLASS),
    "timm:xcit_nano_12_p16_224": ({}, CLASS),
    "timm:convit_tiny": ({}, CLASS),
    "timm:crossvit_tiny_240": ({}, CLASS),
    "timm:mixer_s32_224": ({}, ()),
    "timm:pvt_v2_b0": ({}, ()),
    "timm:levit_128s": ({}, ()),
    "timm:swin_tiny_patch4_window7_224": ({}, ()),
    "timm:coatnet_pico_rw_224": ({}, ()),
    "timm:mobilevit_xxs": ({}, ()),
    "timm:efficientvit_m0": ({}, ()),
    "timm:tnt_s_legacy_patch16_224": ({}, CLASS),
}  # fmt: skip
# Name: options, layers whose tokens or maps are of clips.
VIDEO_NETWORKS = {
    "torchvision:r3d_18": (VIDEO, ["layer1", "layer4"]),
    "torchvision:mc3_18": (VIDEO, ["layer1", "layer4"]),
    "torchvision:r2plus1d_18": (VIDEO, ["layer1", "layer4"]),
    "torchvision:swin3d_t": (VIDEO, ["features.0", "features.6"]),
    "torchvision:s3d": ({}, ["features.0", "features.5"]),
    "torchvision:mvit_v2_s": ({}, ["blocks.0", "blocks.15"]),
}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (7, 10, 12, 3), dtype=np.uint8)
    return Stimuli.from_arrays(coarse.repeat(8, 1).repeat(8, 2))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for name in ("a", "b"):
        still = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height = 96, 64
            for number in range(16):
                frame = av.VideoFrame.from_ndarray(np.roll(still, 3 * number, 1), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return Stimuli.from_files(folder)


def direct(backbone, layers, stimuli, n):
    """Return the outputs of a plain forward pass of the first stimuli: its first whole tensors."""
    found = {}

    def keep(name):
        def hook(_module, _inputs, output):
            while not isinstance(output, torch.Tensor):
                output = list(output.values() if isinstance(output, dict) else output)
                output = next((one for one in output if len(one) == n), output[0])
            found[name] = output.clone()

        return hook

    handles = [
        backbone.module.get_submodule(name).register_forward_hook(keep(name)) for name in layers
    ]
    with torch.inference_mode():
        backbone.module(torch.stack([backbone.transform(stimuli[row]) for row in range(n)]))
    for handle in handles:
        handle.remove()
    return found


def assert_near(found, expected):
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def check_catalogue(backbone):
    table = backbone.catalogue
    assert len(table) > 10
    assert (np.diff(table["depth"]) >= 0).all()
    assert table.loc[backbone.default_layers, "per_stimulus"].all()


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_image_networks(name, images):
    options, prefix = IMAGE_NETWORKS[name]
    backbone = load_backbone(name, pretrained=False, **options)
    assert tuple(backbone.prefix_tokens) == prefix
    check_catalogue(backbone)
    layers, three = backbone.default_layers, images.sel(images.ids[:3])
    expected = direct(backbone, layers, images, 3)
    flat = extract_features(backbone, three, layers, pool="flatten", cache=False)
    for layer in layers:
        assert_near(flat[layer].values, expected[layer].flatten(1))
    pooled = {
        n: extract_features(backbone, images, layers, pool="avg", cache=False, batch_size=n)
        for n in (1, 7)
    }
    for layer in layers:
        output = expected[layer]
        assert_near(pooled[1][layer].values, pooled[7][layer].values)
        last = output.ndim == 3 or backbone.is_channels_last(layer)
        assert pooled[7][layer].shape == (7, output.shape[-1 if last else 1])
        if output.ndim == 4:
            axes = (1, 2) if last else (2, 3)
            assert_near(pooled[7][layer].values[:3], output.mean(axes))


@pytest.mark.slow
@pytest.mark.parametrize("name", VIDEO_NETWORKS)
def test_video_networks(name, clips):
    options, layers = VIDEO_NETWORKS[name]
    backbone = load_backbone(name, pretrained=False, **options)
    check_catalogue(backbone)
    expected = direct(backbone, layers, clips, 2)
    flat = extract_features(backbone, clips, layers, pool="flatten", cache=False, batch_size=1)
    kept = extract_features(backbone, clips, layers, pool="avg", time="keep", cache=False)
    for layer in layers:
        output = expected[layer]
        assert_near(flat[layer].values, output.flatten(1))
        if output.ndim == 3:  # after the class token, 8 steps of a square
            steps = output[:, 1:].unflatten(1, (8, -1)).mean(2)
        elif backbone.is_channels_last(layer):
            steps = output.mean((2, 3))
        else:
            steps = output.mean((3, 4)).transpose(1, 2)
        assert kept[layer].attrs["feature_axes"] == "time channel y x"
        assert_near(kept[layer].values, steps.flatten(1))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit", "timm:test_efficientnet"])
def test_the_batch_size_does_not_matter(name, batch_size):
    rng = np.random.default_rng(1)
    stimuli = Stimuli.from_arrays(rng.integers(0, 256, (70, 40, 40, 3), dtype=np.uint8))
    backbone = load_backbone(name, pretrained=False)
    found = extract_features(backbone, stimuli, cache=False, batch_size=batch_size)
    expected = extract_features(backbone, stimuli, cache=False, batch_size=16)
    for layer, array in found.items():
        assert_near(array.values, expected[layer].values)


def test_swin_attention_folds_windows_into_its_rows(images):
    backbone = load_backbone("timm:swin_tiny_patch4_window7_224", pretrained=False)
    layer = "layers.0.blocks.0.attn.qkv"
    assert not backbone.catalogue.loc[layer, "per_stimulus"]
    with pytest.raises(ValueError, match="its first axis is not the stimulus"):
        extract_features(backbone, images.sel(images.ids[:1]), layer, cache=False)


def test_tokens_out_of_order_are_not_laid_out(images):
    backbone = load_backbone("timm:hiera_tiny_224", pretrained=False)
    one = images.sel(images.ids[:1])
    with pytest.raises(ValueError, match="in the order of the image's places"):
        extract_features(backbone, one, "blocks.0", pool="spatial:7", cache=False)
