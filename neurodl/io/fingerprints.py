"""Fingerprints of stimuli: bits that stay nearly the same when a picture is stored anew."""

from __future__ import annotations

import numpy as np
import scipy.fft
import torch

SIDE = 32  # pixels, of what is looked at
LUMA, CHROMA = 12, 7  # lowest frequencies along each axis
N_FRAMES = 3  # of a video
SAME, SIMILAR = 0.12, 0.3  # differences of copies, and of copies that were shifted or cropped
FLOOR = 4.0  # of a coefficient, in grey levels times SIDE / 2: below, it is noise of compression
MIN_BITS = 36  # of brightness; with fewer there is no structure to compare
COLOURS = np.array([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
FREQUENCIES = scipy.fft.dct(np.eye(SIDE), norm="ortho", axis=0)[:LUMA]
AT_ONCE = 1 << 24  # pairs, of which differences are held


def fingerprint(pixels: torch.Tensor) -> str:
    """Return the fingerprint of an image or a video, as hexadecimal text.

    The signs of the lowest spatial frequencies of brightness and colour, after scaling to 32 x 32
    pixels. Stored anew, smaller or with other compression, a picture keeps nearly all of them; two
    different ones share half. Of a video, those of its first, middle and last frame. Empty where
    there is too little structure to tell pictures apart.

    Parameters
    ----------
    pixels : torch.Tensor, shape ([n_frames,] 3, height, width), uint8

    References
    ----------
    Zauner (2010), Implementation and benchmarking of perceptual image hash functions (pHash).
    """
    frames = pixels if pixels.ndim == 4 else pixels[None]
    if pixels.ndim == 4:
        picked = np.linspace(0, len(frames) - 1, min(N_FRAMES, len(frames))).round().astype(int)
        frames = frames[torch.as_tensor(picked)]
    small = _scaled(frames)
    bits = [_bits(frame) for frame in small]
    if not any(known for _, known in bits):
        return ""
    return "".join(np.packbits(one).tobytes().hex() for one, _ in bits)


def _scaled(frames: torch.Tensor) -> np.ndarray:
    """Return frames (n, 3, h, w) as (n, 3, SIDE, SIDE), averaged over what falls together."""
    # A stride first, since averaging all of a large picture takes long.
    step = max(1, min(frames.shape[-2:]) // (4 * SIDE))
    values = frames[..., ::step, ::step].float()
    return torch.nn.functional.adaptive_avg_pool2d(values, SIDE).numpy()


def _bits(picture: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the bits of one picture (3, SIDE, SIDE), and whether it has structure."""
    channels = COLOURS @ picture.reshape(3, -1)
    luma, *chroma = channels.reshape(3, SIDE, SIDE)
    low = (FREQUENCIES @ luma @ FREQUENCIES.T).ravel()[1:]
    few = FREQUENCIES[:CHROMA]
    values = np.concatenate([low, *((few @ one @ few.T).ravel() for one in chroma)])
    bits = values > FLOOR
    return bits, bool(bits[: len(low)].sum() >= MIN_BITS)


def near_pairs(prints: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which fingerprints are nearly the same.

    Parameters
    ----------
    prints : numpy.ndarray of str, shape (n,)
        Empty fingerprints, and such of another number of frames, are like none.

    Returns
    -------
    one, other : numpy.ndarray of int, shape (n_pairs,)
        With ``one < other``.
    difference : numpy.ndarray, shape (n_pairs,)
        The bits that differ, as a share of those that are set in either; at most `SIMILAR`.
    """
    found = [(np.empty(0, int), np.empty(0, int), np.empty(0))]
    lengths = np.array([len(text) for text in prints])
    for length in np.unique(lengths[lengths > 0]):
        own = np.flatnonzero(lengths == length)
        bits = _bits_of(prints[own])
        n_set = bits.sum(1)
        n_rows = max(1, AT_ONCE // len(own))
        for start in range(0, len(own), n_rows):
            both = bits[start : start + n_rows] @ bits[start:].T
            either = n_set[start : start + n_rows, None] + n_set[start:] - both
            rows, columns = np.nonzero(both >= (1 - SIMILAR) * either)
            later = columns > rows
            rows, columns = rows[later], columns[later]
            difference = 1 - both[rows, columns] / either[rows, columns]
            found.append((own[rows + start], own[columns + start], difference))
    one, other, differences = (np.concatenate(part) for part in zip(*found, strict=True))
    return one, other, differences


def _bits_of(texts: np.ndarray) -> np.ndarray:
    """Return fingerprints of one length as 0 and 1, (n, n_bits)."""
    raw = np.frombuffer(bytes.fromhex("".join(texts.tolist())), np.uint8)
    return np.unpackbits(raw).reshape(len(texts), -1).astype(np.float32)
