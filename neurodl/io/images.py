"""Images from folders, zip archives, file lists and arrays, decoded one at a time to 8-bit RGB."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from neurodl.errors import FileFormatError, MissingFileError, listed
from neurodl.io.hdf5 import open_hdf5, stored

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".ppm", ".pgm")
# RuntimeError: the member is encrypted, or compressed in a way that Python does not know.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError)
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@dataclass(frozen=True)
class ImageFile:
    """One image in a file."""

    path: Path

    @property
    def name(self) -> str:
        """Where the image is, for error messages."""
        return str(self.path)

    def read(self) -> bytes:
        """Return the file's bytes."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError as error:
            raise MissingFileError(f"The image {self.path} does not exist.") from error

    def sha256(self) -> str:
        """Return the hash of the file's bytes."""
        return hashlib.sha256(self.read()).hexdigest()

    def decode(self) -> np.ndarray:
        """Return the image, shape (height, width, 3), uint8 RGB."""
        return decode_image(self.read(), self.name)


@dataclass(frozen=True)
class ZippedImage:
    """One image in a zip archive, read without unpacking it."""

    archive: Path
    member: str

    @property
    def name(self) -> str:
        """Where the image is, for error messages."""
        return f"{self.archive}!{self.member}"

    def read(self) -> bytes:
        """Return the member's bytes, checked against the archive's checksum."""
        try:
            return _open_zip(self.archive).read(self.member)
        except (*_ZIP_ERRORS, KeyError) as error:
            raise FileFormatError(f"Cannot read {self.name}: {error}") from error

    def sha256(self) -> str:
        """Return the hash of the member's bytes."""
        return hashlib.sha256(self.read()).hexdigest()

    def decode(self) -> np.ndarray:
        """Return the image, shape (height, width, 3), uint8 RGB."""
        return decode_image(self.read(), self.name)


@dataclass(frozen=True)
class ArrayImage:
    """One image of a stack in memory."""

    stack: np.ndarray
    index: int

    @property
    def name(self) -> str:
        """Where the image is, for error messages."""
        return f"images[{self.index}]"

    def sha256(self) -> str:
        """Return the hash of the image's values and shape."""
        image = self.decode()
        return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()

    def decode(self) -> np.ndarray:
        """Return the image, shape (height, width, 3), uint8 RGB."""
        image = np.asarray(self.stack[self.index])
        if image.ndim == 2:
            image = image[..., None]
        if image.shape[-1] == 4:
            return _flatten_alpha(Image.fromarray(image, "RGBA"))
        return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


@dataclass(frozen=True)
class StoredImage:
    """One image of a stack in an HDF5 file, shape (n_images, height, width, 3), uint8."""

    path: Path
    key: str
    index: int

    @property
    def name(self) -> str:
        """Where the image is, for error messages."""
        return f"{self.path}!{self.key}[{self.index}]"

    def sha256(self) -> str:
        """Return the hash of the image's values and shape."""
        image = self.decode()
        return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()

    def decode(self) -> np.ndarray:
        """Return the image, shape (height, width, 3), uint8 RGB."""
        with open_hdf5(self.path) as file:
            image = stored(file, self.key)[self.index]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise FileFormatError(
                f"{self.name} is {image.dtype} of shape {image.shape}; expected uint8 RGB."
            )
        return np.ascontiguousarray(image)


def _open_zip(path: Path) -> zipfile.ZipFile:
    """Return the open archive; a file that was replaced is opened anew."""
    state = path.stat()
    return _open_zip_of(path, state.st_ino, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _open_zip_of(path: Path, *_state: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def decode_image(content: bytes, name: str = "image") -> np.ndarray:
    """Decode an image file's bytes to 8-bit sRGB, upright.

    The EXIF orientation is applied and an embedded colour profile converted to sRGB. Grey images
    are repeated over the three channels, transparent ones laid over white, 16-bit ones scaled
    to 8 bits; of an animation the first frame is taken.

    Parameters
    ----------
    content : bytes
        The file's content.
    name : str
        What to call it in an error.

    Returns
    -------
    numpy.ndarray, shape (height, width, 3), uint8

    Raises
    ------
    FileFormatError
        The bytes are no image, are truncated, or would decode to an implausible size.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            # Checked here: warnings cannot be made errors while several threads decode.
            if Image.MAX_IMAGE_PIXELS and opened.width * opened.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} pixels are implausibly many")
            opened.load()
            return _to_rgb(opened)
    except (
        UnidentifiedImageError,
        Image.DecompressionBombWarning,
        Image.DecompressionBombError,
        OSError,
        SyntaxError,
        ValueError,
    ) as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "it is no image of a known format" if unknown else str(error)
        reason = reason if content else "the file is empty"
        raise FileFormatError(f"Cannot decode the image {name}: {reason}") from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return _scale_integers(np.asarray(image).astype(np.int64))
    if image.mode == "F":
        raise ValueError("floating-point images need a value range: load them as an array")
    transparent = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    whole = image.convert("RGBA") if transparent else image
    colour = _opaque(image.mode, whole)
    if profile and colour.mode in ("RGB", "CMYK", "L"):
        colour = _to_srgb(colour, profile)
    colour = colour.convert("RGB")
    if not transparent:
        return np.asarray(colour)
    colour.putalpha(whole.getchannel("A"))
    return _flatten_alpha(colour)


def _scale_integers(values: np.ndarray) -> np.ndarray:
    """Return 16-bit grey values as 8-bit RGB."""
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit images need a value range: load them as an array")
    grey = np.rint(values / 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _opaque(mode: str, image: Image.Image) -> Image.Image:
    """Return the colours, without transparency, in the mode that a colour profile speaks of."""
    if mode in ("L", "LA") and image.mode == "RGBA":
        return image.getchannel("R")
    return image.convert("RGB") if image.mode in ("RGBA", "P") else image


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert from an embedded profile; one that does not fit is ignored, as viewers do."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB") or image
    except ImageCms.PyCMSError:
        return image


def _flatten_alpha(image: Image.Image) -> np.ndarray:
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def find_images(path: Path) -> dict[str, ImageFile | ZippedImage]:
    """Return the images in a folder (searched recursively) or zip archive, by sorted name.

    Raises
    ------
    FileFormatError
        The archive cannot be read, or no image was found.
    """
    found: dict[str, ImageFile | ZippedImage]
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        found = {
            file.relative_to(path).as_posix(): ImageFile(file)
            for file in files
            if not file.name.startswith(".")
        }
    else:
        try:
            names = _open_zip(path).namelist()
        except _ZIP_ERRORS as error:
            raise FileFormatError(f"Cannot read the archive {path}: {error}") from error
        found = {
            name: ZippedImage(path, name)
            for name in names
            if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
            and "__MACOSX" not in name
            and not PurePosixPath(name).name.startswith(".")
        }
    if not found:
        raise FileFormatError(
            f"No image was found in {path}; looked for {listed(IMAGE_SUFFIXES, 12)}."
        )
    return dict(sorted(found.items()))


def image_stack(
    images: np.ndarray, *, value_range: Sequence[float] | None = None, name: str = "images"
) -> np.ndarray:
    """Return an array of images as uint8, channels last.

    Parameters
    ----------
    images : numpy.ndarray
        Shape (n, height, width), (n, height, width, 1 | 3 | 4) or (n, 1 | 3, height, width).
    value_range : (low, high), optional
        What is mapped to 0 and 255. Needed for floats outside [0, 1]; values outside the
        range are clipped.
    name : str
        What to call the array in an error.

    Returns
    -------
    numpy.ndarray, shape (n, height, width[, channels]), uint8

    Raises
    ------
    FileFormatError
        The shape is none of these, values are not finite, or their range is not known.
    """
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[-1] not in (1, 3, 4):
        images = np.moveaxis(images, 1, -1)
    if not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3, 4))):
        raise FileFormatError(
            f"{name} must have shape (n, height, width[, 1, 3 or 4 channels]), but got "
            f"{images.shape}."
        )
    if images.dtype == np.uint8 and value_range is None:
        return images
    if not np.issubdtype(images.dtype, np.number) or not np.isfinite(images).all():
        raise FileFormatError(f"{name} (dtype {images.dtype}) must hold finite numbers.")
    if value_range is None:
        value_range = _guess_range(images, name)
    low, high = map(float, value_range)
    if not high > low:
        raise FileFormatError(
            f"value_range must be (low, high) with low < high, got {value_range}."
        )
    scaled = (images.astype(np.float32) - low) * (255 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _guess_range(images: np.ndarray, name: str) -> tuple[float, float]:
    low, high = float(images.min()), float(images.max())
    if np.issubdtype(images.dtype, np.integer) and low >= 0 and high <= 255:
        return 0.0, 255.0
    if np.issubdtype(images.dtype, np.floating) and low >= 0 and high <= 1:
        return 0.0, 1.0
    raise FileFormatError(
        f"{name} hold {images.dtype} values from {low:g} to {high:g}. Say what black and white "
        f"are: value_range=({low:g}, {high:g}) would map this range to 0..255."
    )
