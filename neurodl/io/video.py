"""Frames of video files: whole videos, and clips of a long movie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from neurodl.errors import MissingFileError, UnknownNameError
from neurodl.io._containers import TOLERANCE, Timeline, read_timeline
from neurodl.io._decoders import FrameReader, FrameReaders, read_decord, read_torchcodec
from neurodl.io.store import sha256_of

VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg")
READERS = ("auto", "av", "decord", "torchcodec")


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video, or of a part of it, are decoded; by default all.

    Parameters
    ----------
    n_frames : int, optional
        So many, evenly spaced from the first to the last: ``linspace(0, n - 1, n_frames)``
        rounded down, the rule of the Algonauts 2021 challenge.
    fps : float, optional
        The frames that are shown at 0, 1 / fps, 2 / fps ... seconds.

    Raises
    ------
    ValueError
        Both are given, or one is not positive.
    """

    n_frames: int | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.n_frames is not None and self.fps is not None:
            raise ValueError(
                f"Give `n_frames` or `fps`, not both; got {self.n_frames} and {self.fps}."
            )
        if self.n_frames is not None and self.n_frames < 1:
            raise ValueError(f"`n_frames` must be at least 1, but got {self.n_frames}.")
        if self.fps is not None and not 0 < self.fps < np.inf:
            raise ValueError(f"`fps` must be a positive number, but got {self.fps}.")

    def numbers(
        self, timeline: Timeline, start: float = 0.0, stop: float | None = None
    ) -> np.ndarray:
        """Return the numbers of the frames in [start, stop) seconds, by default of all."""
        stop = timeline.end if stop is None else stop
        if self.fps is not None:
            n_times = max(1, int(np.ceil((stop - start - TOLERANCE) * self.fps)))
            return timeline.at(start + np.arange(n_times) / self.fps)
        # a frame that begins at `stop` is shown after it
        first, last = timeline.at(np.array([start, stop - 2 * TOLERANCE])).tolist()
        if self.n_frames is None:
            return np.arange(first, last + 1)
        return np.linspace(first, last, self.n_frames, dtype=int)


@dataclass(frozen=True)
class VideoFile:
    """One video file, decoded to the frames that `sampling` takes."""

    path: Path
    sampling: Sampling = Sampling()

    @property
    def name(self) -> str:
        """Where the video is, for error messages."""
        return str(self.path)

    @property
    def fps(self) -> float | None:
        """How many of its frames are taken per second, where that was asked for."""
        return self.sampling.fps

    def sha256(self) -> str:
        """Return the hash of the file's bytes and of the sampling."""
        return hashlib.sha256(f"{_digest(self.path)} {self.sampling}".encode()).hexdigest()

    def decode(self) -> np.ndarray:
        """Return the frames, shape (n_frames, height, width, 3), uint8 RGB."""
        return read_frames(self.path, self.sampling.n_frames, fps=self.sampling.fps)


class Movie:
    """A long video that is read in clips, from several threads; see `movie_clips`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[type[Movie], tuple[Path]]:
        """Leave open files behind when sent to another process."""
        return Movie, (self.path,)

    @cached_property
    def timeline(self) -> Timeline:
        """When the frames are shown."""
        return read_timeline(self.path)

    @cached_property
    def digest(self) -> str:
        """The sha256 of the file's bytes."""
        return _digest(self.path)

    @cached_property
    def readers(self) -> FrameReaders:
        """What decodes the frames."""
        return FrameReaders(self.path, self.timeline)


@dataclass(frozen=True)
class MovieClip:
    """A clip of a movie: the frames `numbers`; the next clip begins with frame `next_first`."""

    movie: Movie
    onset: float
    duration: float
    numbers: tuple[int, ...] = field(repr=False)
    next_first: int | None = None
    fps: float | None = None  # of its frames, where they were taken at times

    @property
    def name(self) -> str:
        """Where the clip is, for error messages."""
        return f"{self.movie.path} at {self.onset:.3f} s"

    def sha256(self) -> str:
        """Return the hash of the movie's bytes and of the numbers of the frames."""
        return hashlib.sha256(f"{self.movie.digest} {self.numbers}".encode()).hexdigest()

    def decode(self) -> np.ndarray:
        """Return the frames, shape (n_frames, height, width, 3), uint8 RGB."""
        with self.movie.readers.nearest(min(self.numbers)) as reader:
            return reader.frames(np.array(self.numbers), self.next_first)


def movie_clips(path: Path, hop: float, window: float, sampling: Sampling) -> list[MovieClip]:
    """Return the clips [k hop, k hop + window) seconds of a movie that lie wholly in it.

    Raises
    ------
    ValueError
        `hop` or `window` is not positive, or the movie is shorter than `window`.
    """
    for name, value in (("tr", hop), ("window", window)):
        if not 0 < value < np.inf:
            raise ValueError(f"`{name}` must be a positive number of seconds, but got {value}.")
    movie = Movie(path)
    end = movie.timeline.end
    if end + TOLERANCE < window:
        raise ValueError(f"`window` is {window} s, but the movie {path} lasts {end:.3f} s.")
    onsets = np.arange(int((end - window + TOLERANCE) / hop) + 1) * hop
    starts = [sampling.numbers(movie.timeline, onset, onset + window) for onset in onsets.tolist()]
    return _chained(movie, onsets, np.full(len(onsets), window), starts, sampling.fps)


def sliding_clips(path: Path, n_frames: int, stride: int) -> list[MovieClip]:
    """Return the clips of `n_frames` frames in a row, one beginning every `stride` frames.

    Raises
    ------
    ValueError
        A count is not positive, or the movie has fewer frames.
    """
    for name, value in (("n_frames", n_frames), ("stride", stride)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, but got {value}.")
    movie = Movie(path)
    starts, end = movie.timeline.starts, movie.timeline.end
    if len(starts) < n_frames:
        raise ValueError(
            f"`n_frames` is {n_frames}, but the movie {path} has {len(starts)} frames."
        )
    firsts = np.arange(0, len(starts) - n_frames + 1, stride)
    ends = np.append(starts, end)[firsts + n_frames]
    numbers = [np.arange(first, first + n_frames) for first in firsts.tolist()]
    return _chained(movie, starts[firsts], ends - starts[firsts], numbers)


def read_frames(
    path: Path, n_frames: int | None = None, *, fps: float | None = None, reader: str = "auto"
) -> np.ndarray:
    """Return frames of a video; by default all.

    Parameters
    ----------
    path : Path
        The video file.
    n_frames : int, optional
        How many frames, evenly spaced from the first to the last; see `Sampling`.
    fps : float, optional
        Frames per second, whatever the video's own rate is.
    reader : {"auto", "av", "decord", "torchcodec"}
        The library that decodes; "auto" takes PyAV, which reads every file that the others read.

    Returns
    -------
    numpy.ndarray, shape (n_frames, height, width, 3), uint8 RGB

    Raises
    ------
    FileFormatError
        The file is no video, has no frames, or breaks off while it is read.
    NeurodlError
        The library that was asked for is not installed.
    """
    if reader not in READERS:
        raise UnknownNameError(f"`reader` must be one of {READERS}, but got {reader!r}.")
    sampling = Sampling(n_frames, fps)
    timeline = read_timeline(path)
    numbers = sampling.numbers(timeline)
    if reader == "decord":
        return read_decord(path, numbers)
    if reader == "torchcodec":
        return read_torchcodec(path, timeline, numbers)
    frames = FrameReader(path, timeline)
    try:
        return frames.frames(numbers)
    finally:
        frames.close()


def frame_blocks(path: Path, fps: float, n_frames: int) -> Iterator[np.ndarray]:
    """Yield the frames shown at 0, 1 / fps ... seconds, `n_frames` at a time, decoded once.

    Each block has shape (n_frames or fewer, height, width, 3), uint8 RGB.
    """
    timeline = read_timeline(path)
    numbers = Sampling(fps=fps).numbers(timeline)
    reader = FrameReader(path, timeline)
    try:
        for start in range(0, len(numbers), n_frames):
            following = numbers[start + n_frames : start + n_frames + 1]
            keep_from = int(following[0]) if len(following) else None
            yield reader.frames(numbers[start : start + n_frames], keep_from)
    finally:
        reader.close()


def _chained(
    movie: Movie,
    onsets: np.ndarray,
    durations: np.ndarray,
    numbers: list[np.ndarray],
    fps: float | None = None,
) -> list[MovieClip]:
    nexts = [int(one[0]) for one in numbers[1:]] + [None]
    columns = (onsets.tolist(), durations.tolist(), numbers, nexts)
    return [
        MovieClip(movie, onset, duration, tuple(one.tolist()), following, fps)
        for onset, duration, one, following in zip(*columns, strict=True)
    ]


def _digest(path: Path) -> str:
    if not path.is_file():
        raise MissingFileError(f"The video {path} does not exist.")
    return sha256_of(path)
