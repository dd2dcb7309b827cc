"""Video containers: whether a file is whole, and when each of its frames is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from neurodl.errors import FileFormatError, MissingFileError

TOLERANCE = 5e-4  # s: Matroska stores times in milliseconds, so 1 / 15 s is 0.067
N_THREADS = 2  # per decoder


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown, in the order of their times.

    Time counts from the first frame. A frame is shown until the next one, the last one for its own
    duration.

    Attributes
    ----------
    pts : numpy.ndarray of int64, shape (n_frames,)
        The presentation times as stored, in ticks.
    duration : int
        Of the last frame, in ticks.
    tick : Fraction
        Length of a tick [s].
    keys : numpy.ndarray of int64
        Numbers of the frames at which decoding can start, besides the first.
    """

    pts: np.ndarray
    duration: int
    tick: Fraction
    keys: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """When each frame begins [s], shape (n_frames,)."""
        return (self.pts - self.pts[0]) * self.tick.numerator / self.tick.denominator

    @property
    def end(self) -> float:
        """When the last frame ends [s]."""
        return float(int(self.pts[-1] - self.pts[0] + self.duration) * self.tick)

    def at(self, times: np.ndarray) -> np.ndarray:
        """Return the number of the frame whose [start, end) holds each time [s].

        A frame that begins within the precision of containers (0.5 ms) after a time counts.
        """
        found = np.searchsorted(self.starts, np.asarray(times) + TOLERANCE, side="right") - 1
        return np.clip(found, 0, len(self.pts) - 1)


def read_timeline(path: Path) -> Timeline:
    """Read when the frames of a video are shown; nothing but AVI is decoded for it.

    Raises
    ------
    MissingFileError, FileFormatError
        The file does not exist; is no video, is cut off, or has no frames or times.
    """
    if not path.is_file():
        raise MissingFileError(f"The video {path} does not exist.")
    _check_whole(path)
    with open_video(path) as (container, stream):
        # an edit list leaves packets out, which are decoded but not shown
        shown = [p for p in container.demux(stream) if p.size and not p.is_discard]
        times = [(p.pts, p.duration or 0, p.is_keyframe) for p in shown]
        tick, is_avi = stream.time_base, container.format.name == "avi"
    if is_avi:  # stores no presentation times: those of B-frames are guessed wrong
        with open_video(path) as (container, stream):
            times = [(f.pts, f.duration or 0, False) for f in container.decode(stream)]
    if not times:
        raise FileFormatError(f"The video {path} has no frames.")
    order = [pts for pts, _, _ in times]
    if None in order or (is_avi and order != sorted(order)):
        raise FileFormatError(
            f"The video {path} does not say when its frames are shown. Convert it to MP4 first."
        )
    times.sort()
    pts = np.array([time for time, _, _ in times], np.int64)
    if (np.diff(pts) == 0).any():
        raise FileFormatError(f"The video {path} has several frames for the same time.")
    usual = round(float(np.median(np.diff(pts)))) if len(pts) > 1 else 1
    keys = np.flatnonzero([key for _, _, key in times])
    return Timeline(pts, times[-1][1] or usual, tick, keys)


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a video with PyAV; yield the container and its best video stream."""
    import av

    with naming(path), av.open(str(path), metadata_errors="replace") as container:
        yield container, best_stream(container, path)


def best_stream(container: Any, path: Path) -> Any:
    """Return the video stream that FFmpeg calls the best one, set to a few threads."""
    stream = container.streams.best("video")
    if stream is None:
        raise FileFormatError(f"{path} has no video stream.")
    if stream.codec_context is None:
        raise FileFormatError(f"{path} has a video stream of a kind that FFmpeg does not know.")
    # everywhere the same: where a file stores no times, the decoder's depend on it
    stream.thread_type, stream.codec_context.thread_count = "AUTO", N_THREADS
    return stream


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn the errors of PyAV into one that names the file."""
    import av

    try:
        yield
    except (av.FFmpegError, IndexError) as error:
        raise FileFormatError(f"Cannot read the video {path}: {error}") from error


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
