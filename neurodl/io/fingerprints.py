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
TO_CHROMA = np.array([[-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])  # blue, red difference
TO_LUMA = np.array([0.299, 0.587, 0.114])
BLOCK = 4096  # stimuli, of which distances are held


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
    """Return frames (n, 3, h, w) as (n, SIDE, SIDE, 3), averaged over what falls together."""
    # A stride first: the antialiased resizing of large pictures takes long.
    step = max(1, min(frames.shape[-2:]) // (8 * SIDE))
    values = frames[..., ::step, ::step].float()
    small = torch.nn.functional.interpolate(values, (SIDE, SIDE), mode="area")
    return small.permute(0, 2, 3, 1).double().numpy()


def _bits(picture: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the bits of one picture (SIDE, SIDE, 3), and whether it has structure."""
    luma = scipy.fft.dctn(picture @ TO_LUMA, norm="ortho")[:LUMA, :LUMA].ravel()[1:]
    parts = [scipy.fft.dctn(picture @ row, norm="ortho")[:CHROMA, :CHROMA] for row in TO_CHROMA]
    values = np.concatenate([luma, *(part.ravel() for part in parts)])
    known = (luma > FLOOR).sum() >= MIN_BITS
    return values > FLOOR, bool(known)


def near_pairs(
    one: np.ndarray, other: np.ndarray, largest: float = SIMILAR
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which fingerprints of two lists are nearly the same.

    Parameters
    ----------
    one, other : numpy.ndarray of str, shapes (n,) and (m,)
        Empty fingerprints, and such of another number of frames, are like none.
    largest : float
        The bits that differ, as a share of those that are set in either.

    Returns
    -------
    rows, other_rows, differences : numpy.ndarray, shape (n_pairs,)
    """
    found = [(np.empty(0, int), np.empty(0, int), np.empty(0))]
    lengths = {len(text) for text in one} & {len(text) for text in other} - {0}
    for length in sorted(lengths):
        mine, theirs = (
            np.flatnonzero([len(text) == length for text in texts]) for texts in (one, other)
        )
        a, b = _bits_of(one[mine]), _bits_of(other[theirs])
        for start in range(0, len(a), BLOCK):
            part = a[start : start + BLOCK]
            both = part @ b.T
            either = part.sum(1)[:, None] + b.sum(1) - both
            difference = 1 - both / either
            rows, columns = np.nonzero(difference <= largest)
            found.append((mine[rows + start], theirs[columns], difference[rows, columns]))
    first, second, differences = (np.concatenate(part) for part in zip(*found, strict=True))
    return first, second, differences


def _bits_of(texts: np.ndarray) -> np.ndarray:
    """Return fingerprints of one length as 0 and 1, (n, n_bits)."""
    raw = np.frombuffer(bytes.fromhex("".join(texts.tolist())), np.uint8)
    return np.unpackbits(raw).reshape(len(texts), -1).astype(np.float32)
