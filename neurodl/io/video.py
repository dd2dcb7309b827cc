"""Frames of video files: decord where it has a wheel, PyAV everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np

from neurodl.errors import FileFormatError, MissingFileError, UnknownNameError

VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True)
class VideoFile:
    """One video file, decoded to `n_frames` frames spread evenly over it (all if None)."""

    path: Path
    n_frames: int | None = None

    @property
    def name(self) -> str:
        """Where the video is, for error messages."""
        return str(self.path)

    def sha256(self) -> str:
        """Return the hash of the file's bytes and of the frame rule."""
        if not self.path.is_file():
            raise MissingFileError(f"The video {self.path} does not exist.")
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(f"{digest} frames={self.n_frames}".encode()).hexdigest()

    def decode(self) -> np.ndarray:
        """Return the frames, shape (n_frames, height, width, 3), uint8 RGB."""
        return read_frames(self.path, self.n_frames)


def read_frames(path: Path, n_frames: int | None = None, *, reader: str = "auto") -> np.ndarray:
    """Return frames of a video, evenly spaced from the first to the last.

    Parameters
    ----------
    path : Path
        The video file.
    n_frames : int, optional
        How many frames: indices ``linspace(0, n - 1, n_frames)`` rounded down, the rule of
        the Algonauts 2021 challenge. By default all.
    reader : {"auto", "decord", "av"}
        The library that decodes; "auto" takes decord where it is installed.

    Returns
    -------
    numpy.ndarray, shape (n_frames, height, width, 3), uint8 RGB

    Raises
    ------
    FileFormatError
        The file is no video, has no frames, or breaks off while it is read.
    """
    readers: dict[str, Callable[[Path, int | None], np.ndarray]] = {
        "decord": _read_decord,
        "av": _read_av,
    }
    if reader == "auto":
        reader = "decord" if find_spec("decord") else "av"
    if reader not in readers:
        raise UnknownNameError(f"`reader` must be 'auto', 'decord' or 'av', but got {reader!r}.")
    if not path.is_file():
        raise MissingFileError(f"The video {path} does not exist.")
    if n_frames is not None and n_frames < 1:
        raise ValueError(f"`n_frames` must be at least 1, but got {n_frames}.")
    _check_whole(path)
    return readers[reader](path, n_frames)


def _check_whole(path: Path) -> None:
    """Raise if the container says that it is longer than the file: decoders show what is there."""
    size = path.stat().st_size
    with path.open("rb") as file:
        end = _declared_end(file, size)
    if end > size:
        raise FileFormatError(
            f"The video {path} is cut off: it has {size} bytes, but its header says {end}."
        )


def _declared_end(file: BinaryIO, size: int) -> int:
    """Return where the content ends by the header of AVI, Matroska or MP4; 0 if not known."""
    start = file.read(256)
    if start[:4] == b"RIFF":
        return 8 + int.from_bytes(start[4:8], "little")
    if start[:4] == b"\x1aE\xdf\xa3":  # an EBML header, then the segment that holds all
        length, width = _matroska_size(start[4:])
        segment = 4 + width + length
        if start[segment : segment + 4] != b"\x18S\x80g":
            return 0
        length, width = _matroska_size(start[segment + 4 :])
        unknown = length == (1 << 7 * width) - 1  # of a recording that was not finished
        return 0 if unknown else segment + 4 + width + length
    position, end = 0, 0
    while position + 16 <= size:  # the boxes of an MP4 or QuickTime file, each with its size
        file.seek(position)
        box = file.read(16)
        length = int.from_bytes(box[:4], "big")
        length = int.from_bytes(box[8:], "big") if length == 1 else length
        if length < 8 or not box[4:8].isalnum():
            break
        position += length
        end = position if box[4:8] in (b"moov", b"mdat", b"moof") else end
    return end


def _matroska_size(content: bytes) -> tuple[int, int]:
    """Return a number of variable width, and the width: its leading zero bits tell it."""
    width = 9 - content[0].bit_length() if content else 0
    return int.from_bytes(content[:width], "big") & ((1 << 7 * width) - 1), width


def _frame_indices(n_total: int, n_frames: int | None, path: Path) -> np.ndarray:
    if n_total == 0:
        raise FileFormatError(f"The video {path} has no frames.")
    return (
        np.arange(n_total) if n_frames is None else np.linspace(0, n_total - 1, n_frames, dtype=int)
    )


def _read_decord(path: Path, n_frames: int | None) -> np.ndarray:
    import decord

    try:
        video = decord.VideoReader(str(path), num_threads=1)
        indices = _frame_indices(len(video), n_frames, path)
        return video.get_batch(indices).asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise FileFormatError(f"Cannot read the video {path}: {reason}") from error


def _read_av(path: Path, n_frames: int | None) -> np.ndarray:
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise FileFormatError(f"{path} has no video stream.")
            n_total = sum(1 for _ in container.decode(video=0))
        indices = _frame_indices(n_total, n_frames, path)
        wanted = set(indices.tolist())
        with av.open(str(path)) as container:
            # decord turns the frames of a rotated camera upright by itself, PyAV does not
            frames = {
                number: np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                for number, frame in enumerate(container.decode(video=0))
                if number in wanted
            }
    except (av.FFmpegError, IndexError) as error:
        raise FileFormatError(f"Cannot read the video {path}: {error}") from error
    return np.stack([frames[index] for index in indices.tolist()])
