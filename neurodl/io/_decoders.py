"""Decoders of video frames by number: PyAV, which reads on where it stopped, and others."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from neurodl.errors import FileFormatError, NeurodlError
from neurodl.io._containers import N_THREADS, TOLERANCE, Timeline, best_stream, naming

N_READERS = 4  # that a movie keeps open: more than threads that decode


class FrameReader:
    """Frames of one file by number; in order of time each frame is decoded once.

    It holds the decoder's state and the frames that the next request shares with the last one.
    """

    def __init__(self, path: Path, timeline: Timeline) -> None:
        self._path, self._timeline = path, timeline
        self._container: Any = None
        self._decoded: Iterator[Any] = iter(())
        self._kept: dict[int, Any] = {}
        self.position = 0  # the number of the frame that is decoded next

    def distance(self, first: int) -> int:
        """Return how many frames are decoded to reach frame `first`."""
        if first in self._kept:
            return 0
        key = self._key(first)
        reads_on = self._container is not None and key <= self.position <= first
        return first - (self.position if reads_on else key) + (0 if reads_on else 1)

    def frames(self, numbers: np.ndarray, keep_from: int | None = None) -> np.ndarray:
        """Return frames, shape (n, height, width, 3), uint8 RGB.

        Parameters
        ----------
        numbers : numpy.ndarray of int
            Which frames; they may repeat.
        keep_from : int, optional
            Frames from this number on are kept for the next request.
        """
        first, last = int(numbers.min()), int(numbers.max())
        wanted = set(numbers.tolist())
        held = {n: f for n, f in self._kept.items() if n in wanted or _kept(n, keep_from)}
        with naming(self._path):
            missing = sorted(wanted - held.keys())
            if missing:
                self._go_to(missing[0])
            while self.position <= last:
                number, frame = self._next()
                if number in wanted or (number >= first and _kept(number, keep_from)):
                    held[number] = frame
            pixels = {number: _rgb(held[number]) for number in wanted}
        self._kept = {n: f for n, f in held.items() if _kept(n, keep_from)}
        return np.stack([pixels[number] for number in numbers.tolist()])

    def close(self) -> None:
        """Close the file."""
        if self._container is not None:
            self._container.close()
        self._container, self._decoded, self._kept = None, iter(()), {}

    def _key(self, number: int) -> int:
        """Return the last frame up to `number` at which decoding can start."""
        before = self._timeline.keys[self._timeline.keys <= number]
        return int(before[-1]) if len(before) else 0

    def _go_to(self, number: int) -> None:
        """Place the decoder at `number` or before it."""
        key = self._key(number)
        if self._container is not None and key <= self.position <= number:
            return
        self._open()
        if key > 0:
            stream = best_stream(self._container, self._path)
            self._container.seek(int(self._timeline.pts[key]), stream=stream)
            self.position, frame = self._next(anywhere=True)
            if self.position > number:  # the index of the container is wrong: from the start
                self._open()
            else:
                self._decoded = _then(frame, self._decoded)

    def _open(self) -> None:
        import av

        self.close()
        self._container = av.open(str(self._path), metadata_errors="replace")
        stream = best_stream(self._container, self._path)
        self._decoded, self.position = self._container.decode(stream), 0

    def _next(self, *, anywhere: bool = False) -> tuple[int, Any]:
        """Return the next frame that is shown, with its number; the position moves behind it."""
        pts = self._timeline.pts
        for frame in self._decoded:
            number = int(np.searchsorted(pts, frame.pts)) if frame.pts is not None else -1
            if not (0 <= number < len(pts) and pts[number] == frame.pts):
                continue  # outside the edit list
            if frame.is_corrupt or not (anywhere or number == self.position):
                break
            self.position = number if anywhere else number + 1
            return number, frame
        raise FileFormatError(
            f"The video {self._path} is damaged: frame {self.position} of {len(pts)}, at "
            f"{self._timeline.starts[min(self.position, len(pts) - 1)]:.3f} s, cannot be decoded."
        )


class FrameReaders:
    """Readers of one file for several threads; each request takes the one that is nearest."""

    def __init__(self, path: Path, timeline: Timeline) -> None:
        self._path, self._timeline = path, timeline
        self._lock = threading.Lock()
        self._idle: list[FrameReader] = []
        self._process = os.getpid()

    @contextmanager
    def nearest(self, first: int) -> Iterator[FrameReader]:
        """Lend the reader that reaches frame `first` soonest."""
        with self._lock:
            if self._process != os.getpid():  # a fork shares the positions in the open files
                self._idle, self._process = [], os.getpid()
            fresh = FrameReader(self._path, self._timeline)
            reader = min([*self._idle, fresh], key=lambda one: one.distance(first))
            if reader is not fresh:
                self._idle.remove(reader)
        yield reader  # one that failed is not lent again
        with self._lock:
            self._idle.append(reader)
            for old in self._idle[:-N_READERS]:
                old.close()
            self._idle = self._idle[-N_READERS:]


def read_decord(path: Path, numbers: np.ndarray) -> np.ndarray:
    """Return frames by number with decord, shape (n, height, width, 3), uint8 RGB."""
    import decord

    try:
        return decord.VideoReader(str(path), num_threads=1).get_batch(numbers).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise FileFormatError(f"Cannot read the video {path}: {reason}") from error


def read_torchcodec(path: Path, timeline: Timeline, numbers: np.ndarray) -> np.ndarray:
    """Return frames by number with torchcodec, shape (n, height, width, 3), uint8 RGB."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        raise NeurodlError(
            "The reader 'torchcodec' needs the package torchcodec and FFmpeg's shared libraries "
            "(on Debian: apt install ffmpeg); reader='av' needs neither."
        ) from error
    try:
        decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=N_THREADS)
        found = decoder.get_frames_at(numbers.tolist())
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileFormatError(f"Cannot read the video {path}: {reason}") from error
    starts = found.pts_seconds.numpy() - float(timeline.pts[0] * timeline.tick)
    if np.abs(starts - timeline.starts[numbers]).max() > TOLERANCE:
        raise FileFormatError(
            f"torchcodec counts the frames of {path} otherwise than its container does; use "
            "reader='av'."
        )
    return found.data.numpy()


def _kept(number: int, keep_from: int | None) -> bool:
    return keep_from is not None and number >= keep_from


def _rgb(frame: Any) -> np.ndarray:
    """Return the pixels; decord turns the frames of a rotated camera upright, PyAV does not."""
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


def _then(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest
