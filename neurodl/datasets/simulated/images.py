"""Images with the statistics of natural scenes: occluding, shaded, textured leaves of all sizes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from neurodl.runtime import derive_seed, progress

SCENES = ("pebbles", "rocks", "leaves", "stems")
HUES = (0.08, 0.27, 0.58)  # earth, plants and water
N_LEAVES = 700
N_CORNERS = 20
SMALLEST, LARGEST = 0.016, 0.45  # radius, in parts of the image's side
NEAREST = 2.2  # how much larger the smallest leaves of a close-up are than those of a wide view
N_TEXTURES, TEXTURE_SIDE = 12, 256
SUPERSAMPLING = 2


def dead_leaves(n_images: int, size: int = 128, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Draw images of objects that hide each other, as the things in a natural scene do.

    Opaque leaves fall on top of one another. Their radii follow a power law with exponent -3, so
    that the picture looks alike at all magnifications: its amplitude spectrum falls as 1 / f and
    its edges make filter responses sparse. Each leaf has a colour out of the scene's palette, a
    1 / f texture, shading by a common light, and casts a shadow.

    Parameters
    ----------
    n_images : int
    size : int
        Side of the square images [pixels].
    seed : int
        Image number i is the same for any `n_images`.

    Returns
    -------
    images : numpy.ndarray, shape (n_images, size, size, 3), uint8
        sRGB.
    scenes : list of str
        Which shapes each image is made of: one of "pebbles", "rocks", "leaves", "stems".

    References
    ----------
    Lee, A. B., Mumford, D. & Huang, J. (2001). Occlusion models for natural images. International
    Journal of Computer Vision 41, 35-59.

    Examples
    --------
    >>> images, scenes = dead_leaves(2, size=32)
    >>> images.shape, images.dtype, len(scenes)
    ((2, 32, 32, 3), dtype('uint8'), 2)
    """
    images = np.empty((n_images, size, size, 3), np.uint8)
    scenes = []
    for number in progress(range(n_images), label="drawing images"):
        rng = np.random.default_rng(derive_seed(seed, "image", number))
        scene = SCENES[rng.integers(len(SCENES))]
        images[number] = _draw(scene, size, rng)
        scenes.append(scene)
    return images, scenes


def _draw(scene: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return one image, shape (size, size, 3), uint8."""
    side = size * SUPERSAMPLING
    radius = side * _radii(rng, N_LEAVES)
    # the first leaf lies under all others and is larger than the image
    radius[0] = 2 * side
    centre = rng.uniform(-0.15 * side, 1.15 * side, (N_LEAVES, 2))
    angle = _angles(scene, rng)
    leaf = _occlude(_outlines(scene, radius, rng), centre, angle, side)
    light = _light(rng)
    place = _local(leaf, centre, radius, angle, side)
    brightness = _shading(scene, place, angle[leaf], light)
    brightness *= _texture(leaf, place, radius, rng)
    brightness *= _shadow(leaf, light, side) * _illumination(side, rng)
    picture = _palette(rng)[leaf] * brightness[..., None]
    return _develop(picture, size)


def _radii(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return radii whose density falls with the third power, seen from some distance."""
    smallest = SMALLEST * NEAREST ** rng.random()
    low, high = smallest**-2, LARGEST**-2
    return np.asarray((low + rng.random(n) * (high - low)) ** -0.5)


def _angles(scene: str, rng: np.random.Generator) -> np.ndarray:
    """Return the orientation of each leaf [rad]; stems mostly grow one way."""
    if scene == "stems":
        return rng.normal(rng.uniform(0, np.pi), 0.35, N_LEAVES)
    return rng.uniform(0, 2 * np.pi, N_LEAVES)


def _outlines(scene: str, radius: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the corners of each leaf around its centre, shape (n_leaves, n_corners, 2)."""
    n = len(radius)
    turn = np.linspace(0, 2 * np.pi, N_CORNERS, endpoint=False)
    aspect = rng.uniform(0.55, 1.0, (n, 1))
    if scene == "rocks":
        # few corners, drawn as straight edges: those in between repeat the corner before
        n_corners = rng.integers(4, 8, (n, 1))
        step = np.floor(np.arange(N_CORNERS) * n_corners / N_CORNERS)
        jitter = np.take_along_axis(rng.uniform(-0.3, 0.3, (n, 8)), step.astype(int), 1)
        turns = 2 * np.pi * (step + jitter) / n_corners
        x, y = np.cos(turns), aspect * np.sin(turns)
    elif scene == "leaves":
        x = np.broadcast_to(np.cos(turn), (n, N_CORNERS))
        y = 0.55 * aspect * np.sign(np.sin(turn)) * np.abs(np.sin(turn)) ** 1.6
    elif scene == "stems":
        x = np.broadcast_to(2.2 * np.cos(turn), (n, N_CORNERS))
        bend = rng.normal(0, 0.12, (n, 1))
        y = 0.22 * aspect * np.sin(turn) + bend * (x**2 - 1)
    else:
        waves = rng.normal(0, 0.07, (n, 2, 2, 1))
        order = np.array([2.0, 3.0])[:, None]
        bumps = waves[:, 0] * np.cos(order * turn) + waves[:, 1] * np.sin(order * turn)
        wobble = 1 + bumps.sum(1)
        x, y = wobble * np.cos(turn), aspect * wobble * np.sin(turn)
    return np.asarray(np.stack([x, y], -1) * radius[:, None, None])


def _occlude(outlines: np.ndarray, centre: np.ndarray, angle: np.ndarray, side: int) -> np.ndarray:
    """Return which leaf is seen at each pixel, the last on top, shape (side, side)."""
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    x = outlines[..., 0] * cos - outlines[..., 1] * sin + centre[:, :1]
    y = outlines[..., 0] * sin + outlines[..., 1] * cos + centre[:, 1:]
    canvas = Image.new("I", (side, side), 0)
    pencil = ImageDraw.Draw(canvas)
    corners = np.stack([x, y], -1).reshape(len(angle), -1)
    for number, polygon in enumerate(corners.tolist()[1:], 1):
        pencil.polygon(polygon, fill=number)
    return np.asarray(canvas, np.int64)


def _light(rng: np.random.Generator) -> np.ndarray:
    """Return the direction that light comes from: above, x right and y down."""
    azimuth = rng.normal(-np.pi / 2, 0.6)
    height = rng.uniform(0.5, 1.1)
    return np.array(
        [np.cos(azimuth) * np.cos(height), np.sin(azimuth) * np.cos(height), np.sin(height)]
    )


def _local(
    leaf: np.ndarray, centre: np.ndarray, radius: np.ndarray, angle: np.ndarray, side: int
) -> np.ndarray:
    """Return each pixel's place on its leaf, in its own axes and radii, shape (2, side, side)."""
    pixel = np.arange(side, dtype=np.float32) + 0.5
    scale = (1 / radius).astype(np.float32)
    table = np.stack([centre[:, 0], centre[:, 1], np.cos(angle) * scale, np.sin(angle) * scale])
    cx, cy, cos, sin = table.astype(np.float32)[:, leaf]
    x, y = pixel[None, :] - cx, pixel[:, None] - cy
    return np.stack([cos * x + sin * y, cos * y - sin * x])


def _shading(scene: str, place: np.ndarray, angle: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Return how bright the light makes each pixel of bulging leaves, shape (side, side)."""
    u, v = place
    bulge = {"pebbles": 1.0, "rocks": 0.35, "leaves": 0.6, "stems": 1.0}[scene]
    along = {"stems": 0.1}.get(scene, 1.0)
    across = {"stems": 4.0, "leaves": 1.6}.get(scene, 1.0)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    a, b = bulge * along * u, bulge * across * v
    if scene == "leaves":
        b = b + np.float32(0.35) * np.sign(v)  # folded at the midrib
    if scene == "rocks":
        a, b = np.sign(a) * np.float32(0.25) + a, b  # two facets
    normal = np.stack([cos * a - sin * b, sin * a + cos * b, np.ones_like(a)])
    normal /= np.sqrt((normal**2).sum(0))
    lit = np.tensordot(light.astype(np.float32), normal, 1)
    return np.asarray(np.float32(0.3) + np.clip(lit, 0, None))


@lru_cache(maxsize=1)
def _textures() -> np.ndarray:
    """Return periodic 1 / f textures of variance 1, some fibrous, shape (n, side, side)."""
    rng = np.random.default_rng(derive_seed(0, "textures"))
    frequency = np.fft.fftfreq(TEXTURE_SIDE) * TEXTURE_SIDE
    fx, fy = frequency[None, : TEXTURE_SIDE // 2 + 1], frequency[:, None]
    textures = np.empty((N_TEXTURES, TEXTURE_SIDE, TEXTURE_SIDE), np.float32)
    for number in range(N_TEXTURES):
        stretch = 1.0 + 1.5 * (number % 4)
        distance = np.hypot(fx * stretch, fy)
        distance[0, 0] = np.inf
        spectrum = distance ** -rng.uniform(0.8, 1.3)
        noise = np.fft.rfft2(rng.normal(size=(TEXTURE_SIDE, TEXTURE_SIDE)))
        texture = np.fft.irfft2(noise * spectrum, s=(TEXTURE_SIDE, TEXTURE_SIDE))
        textures[number] = texture / texture.std()
    return textures


def _texture(
    leaf: np.ndarray, place: np.ndarray, radius: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return each leaf's own texture as a factor around 1, shape (side, side)."""
    kind = rng.integers(N_TEXTURES, size=N_LEAVES)
    contrast = rng.gamma(2.0, 0.11, N_LEAVES).astype(np.float32)
    start = rng.uniform(0, TEXTURE_SIDE, (2, N_LEAVES)).astype(np.float32)
    # texture pixels per radius: a large leaf shows more of its texture, and magnifies it too
    zoom = np.sqrt(radius * TEXTURE_SIDE / 8).astype(np.float32)
    row, column = (start[:, leaf] + place[::-1] * zoom[leaf]).astype(np.int64) % TEXTURE_SIDE
    grain = _textures()[kind[leaf], row, column]
    return np.asarray(np.exp(contrast[leaf] * grain))


def _shadow(leaf: np.ndarray, light: np.ndarray, side: int) -> np.ndarray:
    """Return a factor below 1 where a leaf further up stands in the light, shape (side, side)."""
    direction = light[:2] / np.hypot(*light[:2])
    factor = np.ones(leaf.shape, np.float32)
    pixel = np.arange(side)
    for distance in (0.008, 0.016, 0.024):
        dx, dy = np.rint(direction * distance * side).astype(int)
        row, column = (np.clip(pixel + shift, 0, side - 1) for shift in (dy, dx))
        factor[leaf[row][:, column] > leaf] *= np.float32(0.8)
    return factor


def _illumination(side: int, rng: np.random.Generator) -> np.ndarray:
    """Return slow variations of the light over the scene, shape (side, side)."""
    x = np.linspace(-1, 1, side, dtype=np.float32)
    slope, bend = rng.normal(0, 0.3, 2), rng.normal(0, 0.2, 2)
    field = slope[0] * x[None, :] + slope[1] * x[:, None]
    field = field + bend[0] * x[None, :] ** 2 + bend[1] * x[:, None] ** 2
    return np.asarray(np.exp(field), np.float32)


def _palette(rng: np.random.Generator) -> np.ndarray:
    """Return a reflectance for each leaf out of a few related hues, shape (n_leaves, 3)."""
    n_colours = 4
    hue = rng.choice(HUES) + rng.normal(0, 0.06, n_colours)
    hue[-2] = rng.choice(HUES) + rng.normal(0, 0.06)
    hue[-1] = rng.uniform()  # one that stands out: a flower
    share = rng.dirichlet([4.0, 3.0, 2.0, 0.7])
    saturation = np.clip(rng.gamma(3.0, 0.09, n_colours), 0.03, 0.75)
    chosen = rng.choice(n_colours, N_LEAVES, p=share)
    hue = hue[chosen] + rng.normal(0, 0.02, N_LEAVES)
    wheel = np.cos(2 * np.pi * (hue[:, None] - np.array([0, 1 / 3, 2 / 3])))
    colour = np.exp(1.2 * saturation[chosen][:, None] * wheel)
    colour /= colour @ np.array([[0.2126], [0.7152], [0.0722]])
    reflectance = np.exp(rng.normal(0, 0.7, (N_LEAVES, 1)))
    return np.asarray(colour * reflectance, np.float32)


def _develop(picture: np.ndarray, size: int) -> np.ndarray:
    """Return linear light as an sRGB image: exposed, averaged to `size`, with soft highlights."""
    binned = picture.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3).mean((1, 3))
    exposed = binned * (0.22 / np.median(binned))
    film = exposed / (1 + 0.6 * exposed)
    return np.asarray(np.rint(255 * np.clip(film, 0, 1) ** (1 / 2.2)), np.uint8)
