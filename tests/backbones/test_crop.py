"""The part of an image that a network sees, against what its transform says of itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as image_ops

from neurodl.backbones import ImageTransform, load_backbone
from neurodl.backbones.crop import crop_box


@pytest.mark.parametrize("size", [(384, 512), (512, 384), (96, 96), (60, 200)])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224), (224, 224), (64, 48)])
def test_a_centre_crop_of_the_shorter_side(size, resize, crop):
    steps = [v2.Resize(resize), v2.CenterCrop(crop), v2.PILToTensor()]
    norm = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])]
    transform = ImageTransform(v2.Compose([*steps, *norm]), "mine")
    side = crop / resize * min(size)
    top, left, height, width = crop_box(transform, *size)
    tolerance = max(1.0, 1.5 * min(size) / resize)  # the crop starts at a whole resized pixel
    expected = [(size[0] - side) / 2, (size[1] - side) / 2, side, side]
    np.testing.assert_allclose([top, left, height, width], expected, atol=tolerance)


def test_a_squash_keeps_the_whole_image():
    transform = load_backbone("pixels").transform
    for size in ((10, 10), (37, 500)):
        expected = [0, 0, *size]
        np.testing.assert_allclose(crop_box(transform, *size), expected, atol=0.01 * max(size))


def test_clips_are_seen_frame_by_frame():
    transform = load_backbone("torchvision:r3d_18", pretrained=False).transform
    box = crop_box(transform, 240, 320)
    expected = [240 * 8 / 128, 320 * 29.5 / 171, 240 * 112 / 128, 320 * 112 / 171]
    np.testing.assert_allclose(box, expected, atol=1.5)


@pytest.mark.parametrize(
    "function",
    [
        lambda image: image_ops.to_dtype(image_ops.pil_to_tensor(image.rotate(90)), scale=True),
        lambda image: torch.zeros(3, 8, 8),
        lambda image: image_ops.pil_to_tensor(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        lambda image: image_ops.pil_to_tensor(image).float().square(),
    ],
)
def test_what_is_no_crop_is_an_error(function):
    with pytest.raises(ValueError, match=r"its transform \(odd one\) does more than resize, crop"):
        crop_box(ImageTransform(function, "odd one"), 64, 64)
