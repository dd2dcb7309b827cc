"""Images: every kind of file becomes 8-bit RGB, upright, or an error that names it."""

from __future__ import annotations

import io
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from neurodl.errors import FileFormatError
from neurodl.io.images import decode_image, find_images, image_stack


@pytest.fixture
def picture(rng):
    """An image without symmetry, shape (6, 9, 3)."""
    return rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_rgb_is_kept(picture, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decode_image(encoded(Image.fromarray(picture), kind, **options))
    np.testing.assert_array_equal(found, picture)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA"])
def test_other_modes_become_what_a_viewer_shows(picture, mode):
    image = Image.fromarray(picture).convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    found = decode_image(encoded(image, kind))
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


def test_cmyk_photographs_are_not_inverted():
    shade = Image.new("RGB", (16, 16), (200, 90, 30))
    found = decode_image(encoded(shade.convert("CMYK"), "JPEG", quality=95))
    np.testing.assert_allclose(found[8, 8], [200, 90, 30], atol=6)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], duration=40, **options
    )
    found = decode_image(content)
    assert (found == [255, 0, 0]).all()


def test_sixteen_bit_grey_is_scaled():
    deep = np.array([[0, 257, 32896, 65535]], np.uint16)
    found = decode_image(encoded(Image.fromarray(deep)))
    np.testing.assert_array_equal(found[0], np.repeat([[0], [1], [128], [255]], 3, 1))
    as_32_bits = encoded(Image.fromarray(deep.astype(np.int32)), "TIFF")
    np.testing.assert_array_equal(decode_image(as_32_bits), found)


@pytest.mark.parametrize("values", [[[0, 65536]], [[-1, 0]], [[0.0, 1.0]]])
def test_values_without_a_range_are_not_guessed(values):
    kind = np.float32 if isinstance(values[0][0], float) else np.int32
    with pytest.raises(FileFormatError, match="need a value range"):
        decode_image(encoded(Image.fromarray(np.array(values, kind)), "TIFF"))


def test_implausible_sizes_are_errors_and_leave_the_warnings_alone(picture, monkeypatch):
    content = encoded(Image.fromarray(picture))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode_image, [content] * 200))
    filters = list(warnings.filters)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FileFormatError, match="9 x 6 pixels are implausibly many"):
            decode_image(content)
    assert warnings.filters == filters


def test_transparent_pixels_lie_over_white():
    pixels = np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [200, 0, 0, 51]]], np.uint8)
    found = decode_image(encoded(Image.fromarray(pixels)))
    np.testing.assert_allclose(found[0], [[255] * 3, [200, 0, 0], [244, 204, 204]], atol=1)
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    found = decode_image(encoded(palette, transparency=0))
    assert found[0].tolist() == [[255] * 3, [0, 0, 255]]
    grey = encoded(Image.new("L", (1, 1), 7), transparency=7)
    assert decode_image(grey).tolist() == [[[255] * 3]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(picture, orientation):
    turned = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture),
        7: picture[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(picture, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encoded(Image.fromarray(np.ascontiguousarray(turned)), exif=exif)
    np.testing.assert_array_equal(decode_image(stored), picture)


def swapped_profile():
    """sRGB with the red and blue primaries exchanged: what is stored as red is blue."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    n_tags = int.from_bytes(profile[128:132], "big")
    rows = {bytes(profile[at : at + 4]): at + 4 for at in range(132, 132 + 12 * n_tags, 12)}
    red, blue = rows[b"rXYZ"], rows[b"bXYZ"]
    profile[red : red + 8], profile[blue : blue + 8] = (
        profile[blue : blue + 8],
        profile[red : red + 8],
    )
    return bytes(profile)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_profiles_are_converted(mode):
    image = Image.new("RGB", (2, 2), (255, 0, 0)).convert(mode)
    found = decode_image(encoded(image, icc_profile=swapped_profile()))
    np.testing.assert_allclose(found[0, 0], [0, 0, 255], atol=1)


def test_profiles_of_another_kind_are_ignored(picture):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    found = decode_image(encoded(Image.fromarray(picture), icc_profile=lab))
    np.testing.assert_array_equal(found, picture)


@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_what_is_no_image_is_named(picture, damage):
    whole = encoded(Image.fromarray(picture))
    content = {"empty": b"", "text": b"<html>not found</html>", "truncated": whole[:-40]}[damage]
    with pytest.raises(FileFormatError, match=r"Cannot decode the image photo\.png"):
        decode_image(content, "photo.png")


def test_folders_and_archives_list_the_same_images(tmp_path, picture):
    names = ["b.png", "a/2.PNG", "a/1.jpg"]
    archive = tmp_path / "images.zip"
    folder = tmp_path / "images"
    with zipfile.ZipFile(archive, "w") as zipped:
        for name in [*names, "notes.txt", "__MACOSX/b.png", ".hidden.png"]:
            content = encoded(Image.fromarray(picture), "JPEG" if name.endswith("jpg") else "PNG")
            zipped.writestr(name, content)
            if not name.startswith("__"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
    in_zip, in_folder = find_images(archive), find_images(folder)
    assert list(in_zip) == list(in_folder) == sorted(names)
    for name in names:
        np.testing.assert_array_equal(in_zip[name].decode(), in_folder[name].decode())
        assert in_zip[name].sha256() == in_folder[name].sha256()


def test_archives_without_images_or_damaged_ones_are_errors(tmp_path):
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as zipped:
        zipped.writestr("notes.txt", "none")
    with pytest.raises(FileFormatError, match="No image was found"):
        find_images(tmp_path / "empty.zip")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "empty.zip").read_bytes()[:30])
    with pytest.raises(FileFormatError, match="Cannot read the archive"):
        find_images(tmp_path / "cut.zip")


def test_a_damaged_or_encrypted_member_is_named(tmp_path, picture):
    path = tmp_path / "i.zip"
    content = encoded(Image.fromarray(picture))
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("a.png", content)
    whole = path.read_bytes()
    start, directory = whole.index(content), whole.index(b"PK\x01\x02")
    for at, change, reason in [(start + 50, 1, "Bad CRC-32"), (directory + 8, 1, "encrypted")]:
        damaged = bytearray(whole)
        damaged[at] ^= change
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match=rf"i\.zip!a\.png: .*{reason}"):
            find_images(path)["a.png"].decode()


def test_an_archive_that_was_replaced_is_read_anew(tmp_path, picture):
    path = tmp_path / "i.zip"
    for name in ("a.png", "b.png"):
        path.unlink(missing_ok=True)
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr(name, encoded(Image.fromarray(picture)))
        found = find_images(path)
        assert list(found) == [name]
        np.testing.assert_array_equal(found[name].decode(), picture)


@pytest.mark.parametrize(
    ("values", "value_range", "expected"),
    [
        (np.array([0, 0.5, 1.0]), None, [0, 128, 255]),
        (np.array([-1, 0, 1.0]), (-1, 1), [0, 128, 255]),
        (np.array([-9, 0, 9.0]), (-1, 1), [0, 128, 255]),
        (np.array([0, 7, 255], np.int64), None, [0, 7, 255]),
        (np.array([0, 7, 255], np.uint8), None, [0, 7, 255]),
        (np.array([0, 5, 10], np.uint8), (0, 10), [0, 128, 255]),
    ],
)
def test_arrays_are_mapped_to_bytes(values, value_range, expected):
    stack = np.tile(values[:, None, None], (1, 4, 4))
    found = image_stack(stack, value_range=value_range)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[:, 0, 0], expected)


@pytest.mark.parametrize(
    ("stack", "options", "message"),
    [
        (np.full((2, 4, 4), 3.0), {}, r"from 3 to 3.*value_range"),
        (np.full((2, 4, 4), -0.1), {}, "value_range"),
        (np.full((2, 4, 4), np.nan), {}, "finite numbers"),
        (np.zeros((2, 4, 4, 5)), {}, r"but got \(2, 4, 4, 5\)"),
        (np.zeros((4, 4)), {}, r"but got \(4, 4\)"),
        (np.zeros((2, 4, 4)), {"value_range": (1, 0)}, "low < high"),
    ],
)
def test_arrays_that_are_no_images_are_errors(stack, options, message):
    with pytest.raises(FileFormatError, match=message):
        image_stack(stack, **options)


def test_channels_may_come_first():
    stack = np.zeros((2, 3, 8, 9), np.uint8)
    assert image_stack(stack).shape == (2, 8, 9, 3)
