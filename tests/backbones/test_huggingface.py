"""Networks of transformers: the image tower, its own transform, whole weights or an error."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from neurodl.backbones import load_backbone
from neurodl.errors import FileFormatError, MissingFileError, NeurodlError, UnknownNameError

transformers = pytest.importorskip("transformers")
VIT = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
PATCHES = VIT | dict(image_size=32, patch_size=8)
SWIN = dict(
    embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4, image_size=32, patch_size=4
)
CONV = dict(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
CROP = dict(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
SQUARE = dict(size={"height": 32, "width": 32})

# Name: class that is saved, configuration, processor, its options, number of prefix tokens.
FAMILIES = {
    "dinov2": ("Dinov2Model", PATCHES, "BitImageProcessor", CROP, 1),
    "dinov2_reg": (
        "Dinov2WithRegistersModel", PATCHES | {"num_register_tokens": 3}, "BitImageProcessor",
        CROP, 4,
    ),
    "dinov3": (
        "DINOv3ViTModel", PATCHES | {"num_register_tokens": 4}, "DINOv3ViTImageProcessor",
        SQUARE, 5,
    ),
    "vit": ("ViTForImageClassification", PATCHES, "ViTImageProcessor", SQUARE, 1),
    "deit": ("DeiTForImageClassificationWithTeacher", PATCHES, "DeiTImageProcessor", CROP, 2),
    "beit": ("BeitForImageClassification", PATCHES, "BeitImageProcessor", SQUARE, 1),
    "ijepa": ("IJepaModel", PATCHES, "ViTImageProcessor", SQUARE, 0),
    "swin": ("SwinForImageClassification", SWIN, "ViTImageProcessor", SQUARE, 0),
    "convnext": (
        "ConvNextForImageClassification", CONV, "ConvNextImageProcessor",
        {"size": {"shortest_edge": 32}, "crop_pct": 0.875}, 0,
    ),
    "convnextv2": (
        "ConvNextV2Model", CONV, "ConvNextImageProcessor", {"size": {"shortest_edge": 384}}, 0,
    ),
    "dinov3_convnext": (
        "DINOv3ConvNextModel", dict(hidden_sizes=[8, 16], depths=[1, 1]),
        "DINOv3ViTImageProcessor", SQUARE, 0,
    ),
    "resnet": (
        "ResNetForImageClassification", CONV | dict(embedding_size=8), "ConvNextImageProcessor",
        {"size": {"shortest_edge": 32}, "crop_pct": 0.875}, 0,
    ),
    "swinv2": ("Swinv2ForImageClassification", SWIN, "ViTImageProcessor", SQUARE, 0),
    "vit_msn": ("ViTMSNModel", PATCHES, "ViTImageProcessor", SQUARE, 1),
}  # fmt: skip


def save(folder, kind, config, processor, options):
    config = getattr(transformers, kind).config_class(**config)
    torch.manual_seed(3)
    module = getattr(transformers, kind)(config).eval()
    module.save_pretrained(folder)
    getattr(transformers, processor)(**options).save_pretrained(folder)
    return module


@pytest.fixture
def dinov2(tmp_path):
    save(tmp_path, *FAMILIES["dinov2"][:4])
    return tmp_path


@pytest.fixture
def image(rng):
    return torch.from_numpy(rng.integers(0, 256, (3, 53, 71), dtype=np.uint8))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tower_computes_what_the_saved_network_does(tmp_path, image, family):
    *saved, n_prefix_tokens = FAMILIES[family]
    whole = save(tmp_path, *saved)
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Card\n")
    backbone = load_backbone(f"hf:{tmp_path}")
    made = backbone.transform(image)
    processor = getattr(transformers, saved[2])(**saved[3])
    expected = processor(Image.fromarray(image.permute(1, 2, 0).numpy()), return_tensors="pt")
    torch.testing.assert_close(made, expected["pixel_values"][0], rtol=0, atol=0)
    headed = "For" in saved[0]
    tower = getattr(whole, whole.base_model_prefix) if headed else whole
    with torch.inference_mode():
        features = backbone.module(made[None]).last_hidden_state
        torch.testing.assert_close(features, tower(made[None]).last_hidden_state)
    assert backbone.n_prefix_tokens == n_prefix_tokens
    assert len(backbone.default_layers) >= 2
    backbone.check_layers(None)
    assert (backbone.licence, backbone.kind) == ("apache-2.0", "image")
    assert backbone.weights.startswith(f"pretrained folder {tmp_path.name}")


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_of_images_and_texts_the_image_tower_is_taken(tmp_path, image, family):
    text = VIT | {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = {"text_config": text, "vision_config": PATCHES}
    options = CROP if family == "CLIP" else SQUARE
    whole = save(tmp_path, f"{family}Model", config, f"{family}ImageProcessor", options)
    backbone = load_backbone(f"hf:{tmp_path}")
    made = backbone.transform(image)[None]
    with torch.inference_mode():
        expected = whole.vision_model(made).last_hidden_state
        torch.testing.assert_close(backbone.module(made).last_hidden_state, expected)
    assert backbone.n_prefix_tokens == (family == "CLIP")


def test_a_masked_autoencoder_sees_all_patches_in_order(tmp_path, image):
    config = PATCHES | dict(decoder_hidden_size=16, decoder_num_attention_heads=2)
    save(tmp_path, "ViTMAEForPreTraining", config, "ViTImageProcessor", SQUARE)
    backbone = load_backbone(f"hf:{tmp_path}")
    made = backbone.transform(image)[None]
    with torch.inference_mode():
        first, second = (backbone.module(made).last_hidden_state for _ in range(2))
    assert first.shape == (1, 17, 16)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "config", "processor", "key"),
    [
        ("VideoMAEModel", PATCHES | {"num_frames": 4}, "VideoMAEImageProcessor", "num_frames"),
        (
            "VJEPA2Model",
            VIT | dict(crop_size=32, patch_size=8, frames_per_clip=4, mlp_ratio=1.0)
            | dict(pred_hidden_size=16, pred_num_attention_heads=2, pred_num_hidden_layers=1),
            "VJEPA2VideoProcessor", "frames_per_clip",
        ),
    ],
)  # fmt: skip
def test_clips_have_the_frames_that_the_network_takes(tmp_path, rng, kind, config, processor, key):
    whole = save(tmp_path, kind, config, processor, CROP)
    backbone = load_backbone(f"hf:{tmp_path}")
    clip = torch.from_numpy(rng.integers(0, 256, (4, 3, 41, 53), dtype=np.uint8))
    made = backbone.transform(clip)
    assert (backbone.kind, made.shape, backbone.n_prefix_tokens) == ("video", (3, 4, 32, 32), 0)
    extra = {"skip_predictor": True} if kind == "VJEPA2Model" else {}
    with torch.inference_mode():
        expected = whole(made.transpose(0, 1)[None], **extra).last_hidden_state
        torch.testing.assert_close(backbone.module(made[None]).last_hidden_state, expected)
    with pytest.raises(ValueError, match="takes clips of 4 frames, but got 3"):
        backbone.transform(clip[:3])
    other = load_backbone(f"hf:{tmp_path}", pretrained=False, **{key: 2})
    assert other.transform(clip[:2]).shape == (3, 2, 32, 32)


def test_the_transform_is_said_and_single_values_are_replaced(dinov2):
    backbone = load_backbone(f"hf:{dinov2}", transform={"image_mean": (0.0,) * 3, "resample": 2})
    assert backbone.transform.text == (
        "shorter side to 36 (bilinear, antialiased), centre crop 32 x 32, RGB in 0..1, "
        "mean 0 0 0, std 0.26863 0.261303 0.275777"
    )
    white = backbone.transform(torch.full((3, 40, 40), 255, dtype=torch.uint8))
    torch.testing.assert_close(white[0], torch.full((32, 32), 1 / 0.26862954))
    with pytest.raises(UnknownNameError, match="Did you mean 'image_mean'"):
        load_backbone(f"hf:{dinov2}", transform={"image_men": 1})


def test_weights_that_do_not_fill_the_network_are_an_error(dinov2):
    tensors = load_file(dinov2 / "model.safetensors")
    lost = next(name for name in tensors if name.endswith("norm1.weight"))
    del tensors[lost]
    save_file(tensors, dinov2 / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FileFormatError, match="1 missing .*norm1.weight"):
        load_backbone(f"hf:{dinov2}")


def test_untrained_weights_are_those_of_the_seed(dinov2):
    one, again, other = (
        load_backbone(f"hf:{dinov2}", pretrained=False, seed=seed) for seed in (0, 0, 1)
    )
    assert one.weights == "untrained, seed 0"
    assert one.weights_sha256 == again.weights_sha256 != other.weights_sha256
    with pytest.raises(UnknownNameError, match="no option 'num_layers'"):
        load_backbone(f"hf:{dinov2}", pretrained=False, num_layers=3)


def test_wrong_folders_and_a_missing_package_say_what_to_do(dinov2, monkeypatch):
    with pytest.raises(MissingFileError, match="does not exist"):
        load_backbone(f"hf:{dinov2}/nowhere")
    (dinov2 / "preprocessor_config.json").unlink()
    with pytest.raises(FileFormatError, match=r"no preprocessor_config\.json"):
        load_backbone(f"hf:{dinov2}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NeurodlError, match=r"pip install 'neurodl\[hf\]'"):
        load_backbone(f"hf:{dinov2}")
