"""Stimuli: a table of what was shown, with pixels that are decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from neurodl.errors import FileFormatError, MissingFileError, PairingError, did_you_mean, listed
from neurodl.io.fingerprints import fingerprint
from neurodl.io.images import (
    IMAGE_SUFFIXES,
    ArrayImage,
    ImageFile,
    StoredImage,
    ZippedImage,
    find_images,
    image_stack,
)
from neurodl.io.plain import load_array, read_table, text_lines
from neurodl.io.video import (
    VIDEO_SUFFIXES,
    MovieClip,
    Sampling,
    VideoFile,
    movie_clips,
    sliding_clips,
)

Source = ImageFile | ZippedImage | ArrayImage | StoredImage | VideoFile | MovieClip
TABLE_SUFFIXES = (".tsv", ".csv")
ARRAY_SUFFIXES = (".npz", ".npy")
N_DECODERS = 2


class Stimuli(torch.utils.data.Dataset[torch.Tensor]):
    """What was shown: unique ids, a table of their properties, and lazily decoded pixels.

    A torch Dataset: ``stimuli[i]`` is the uint8 tensor of an image, shape (3, height, width),
    or of a video, shape (n_frames, 3, height, width).

    Parameters
    ----------
    sources : sequence
        Where each stimulus' pixels come from; see `from_files` and `from_arrays`.
    table : pandas.DataFrame
        One row per stimulus, indexed by the unique id (str), with any of the columns
        onset [s], duration [s], run, session, label.
    kind : {"image", "video"}
        What the sources decode to.

    Examples
    --------
    >>> images = np.zeros((2, 8, 8, 3), np.uint8)
    >>> stimuli = Stimuli.from_arrays(images, ids=["face", "house"])
    >>> stimuli.ids, stimuli[0].shape
    (['face', 'house'], torch.Size([3, 8, 8]))
    """

    def __init__(self, sources: Sequence[Source], table: pd.DataFrame, kind: str) -> None:
        if kind not in ("image", "video"):
            raise ValueError(f"`kind` must be 'image' or 'video', but got {kind!r}.")
        if len(sources) != len(table):
            raise PairingError(f"There are {len(sources)} stimuli but {len(table)} table rows.")
        if not len(table):
            raise PairingError("There are no stimuli.")
        index = pd.Index(table.index.astype(str), name="stimulus")
        if not index.is_unique:
            raise PairingError(
                f"Stimulus ids repeat: {listed(index[index.duplicated()].unique())}."
            )
        self._sources = list(sources)
        self.table = table.set_axis(index, axis=0)
        self.kind = kind
        self._hashes: list[str] | None = None
        self._fingerprints: dict[int, str] = {}

    @classmethod
    def from_files(
        cls,
        path: str | Path | Iterable[str | Path],
        ids: Sequence[str] | str | Path | None = None,
        *,
        n_frames: int | None = None,
        fps: float | None = None,
        key: str | None = None,
        value_range: Sequence[float] | None = None,
    ) -> Stimuli:
        """Open images or videos from a folder, zip archive, npz file, table or list of files.

        Parameters
        ----------
        path : str, Path or list of them
            A folder (searched recursively) of images or of videos; a zip archive of images; a
            list of files; an ``.npz`` or ``.npy`` file with an array of images; or a ``.tsv`` /
            ``.csv`` table with a column ``path`` (relative to the table) or ``stim_file``, and
            optionally ``stimulus``.
        ids : sequence of str or path, optional
            The stimulus ids, in the order of the sorted names (of the rows for a list, table or
            array), or a text file with one per line. By default the sorted names themselves: the
            path inside the folder or archive with its suffix; for arrays ``"0000"``, ``"0001"``
            ... in array order.
        n_frames : int, optional
            For videos: how many evenly spaced frames are decoded; all by default.
        fps : float, optional
            For videos: how many frames per second are decoded, instead of `n_frames`.
        key : str, optional
            For npz files: the array that holds the images.
        value_range : (low, high), optional
            For arrays of floats outside [0, 1]: which values are black and white.

        Raises
        ------
        MissingFileError, FileFormatError
            Something does not exist or cannot be read; the message names it.
        PairingError
            Ids repeat, or there is another number of them than of stimuli.
        ValueError
            An argument says nothing for this kind of stimuli.
        """
        arrays = isinstance(path, (str, Path)) and Path(path).suffix.lower() in ARRAY_SUFFIXES
        options = {"key": key, "value_range": value_range}
        given = [name for name, value in options.items() if value is not None]
        if given and not arrays:
            raise ValueError(f"{listed(given)} are only for stimuli in an .npz or .npy file.")
        ids = None if ids is None else text_lines(ids)
        sampling = Sampling(n_frames, fps)
        opened = cls._opened(path, ids, sampling, key, value_range)
        if sampling != Sampling() and opened.kind != "video":
            name = "fps" if n_frames is None else "n_frames"
            raise ValueError(f"`{name}` is only for videos, but {path!s:.80} holds images.")
        return opened

    @classmethod
    def _opened(
        cls,
        path: str | Path | Iterable[str | Path],
        ids: Sequence[str] | None,
        sampling: Sampling,
        key: str | None,
        value_range: Sequence[float] | None,
    ) -> Stimuli:
        if not isinstance(path, (str, Path)):
            files = [Path(file) for file in path]
            names = _unique_names(files)
            return cls._of_files(files, names, ids, sampling)
        path = Path(path).expanduser()
        if not path.exists():
            siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise MissingFileError(
                f"The stimuli {path} do not exist. {did_you_mean(path.name, siblings)}"
            )
        suffix = path.suffix.lower()
        if suffix in ARRAY_SUFFIXES:
            stack, _ = load_array(path, key, what="images", names=["images", "stimuli"])
            return cls.from_arrays(stack, ids, value_range=value_range)
        if suffix in TABLE_SUFFIXES:
            return cls._of_table(path, ids, sampling)
        if path.is_dir():
            files = [file for file in path.rglob("*") if not file.name.startswith(".")]
            videos = sorted(p for p in files if p.suffix.lower() in VIDEO_SUFFIXES)
            images = sorted(p for p in files if p.suffix.lower() in IMAGE_SUFFIXES)
            if videos and images:
                raise FileFormatError(
                    f"The folder {path} holds {len(videos)} videos and {len(images)} images "
                    f"({listed([videos[0].name, images[0].name])}, ...). Keep them apart, or give "
                    "a list of files."
                )
            if videos:
                names = [video.relative_to(path).as_posix() for video in videos]
                return cls._of_files(videos, names, ids, sampling)
        if path.is_dir() or suffix == ".zip":
            found = find_images(path)
            return cls(list(found.values()), _table(list(found), ids), "image")
        return cls._of_files([path], [path.name], ids, sampling)

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray,
        ids: Sequence[str] | None = None,
        *,
        value_range: Sequence[float] | None = None,
    ) -> Stimuli:
        """Wrap a stack of images in memory.

        Parameters
        ----------
        images : numpy.ndarray
            Shape (n_stimuli, height, width[, 1, 3 or 4]) or (n_stimuli, 1 or 3, height, width).
        ids : sequence of str, optional
            By default ``"0000"``, ``"0001"`` ...
        value_range : (low, high), optional
            Which values are black and white; needed for floats outside [0, 1].
        """
        stack = image_stack(images, value_range=value_range)
        width = max(4, len(str(len(stack) - 1)))
        names = [f"{index:0{width}d}" for index in range(len(stack))]
        sources = [ArrayImage(stack, index) for index in range(len(stack))]
        return cls(sources, _table(names, ids), "image")

    @classmethod
    def _of_files(
        cls,
        files: Sequence[Path],
        names: Sequence[str],
        ids: Sequence[str] | None,
        sampling: Sampling,
    ) -> Stimuli:
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise MissingFileError(
                f"{len(missing)} stimulus files do not exist: {listed(missing)}."
            )
        suffixes = {file.suffix.lower() for file in files}
        if suffixes <= set(VIDEO_SUFFIXES):
            videos = [VideoFile(file, sampling) for file in files]
            return cls(videos, _table(names, ids), "video")
        unknown = sorted(suffixes - set(IMAGE_SUFFIXES))
        if unknown:
            raise FileFormatError(
                f"Stimuli must be all images ({', '.join(IMAGE_SUFFIXES)}) or all videos "
                f"({', '.join(VIDEO_SUFFIXES)}), but there are files with {listed(unknown)}."
            )
        return cls([ImageFile(file) for file in files], _table(names, ids), "image")

    @classmethod
    def _of_table(cls, path: Path, ids: Sequence[str] | None, sampling: Sampling) -> Stimuli:
        table = read_table(path, text=["stimulus", "path", "stim_file"])
        column = next((name for name in ("path", "stim_file") if name in table), None)
        if column is None:
            raise FileFormatError(
                f"The table {path} needs a column 'path' or 'stim_file'; it has "
                f"{listed(table.columns, 20)}."
            )
        if ids is None and "stimulus" in table:
            ids = table["stimulus"].tolist()
        names = table[column].tolist()
        opened = cls._of_files([path.parent / name for name in names], names, ids, sampling)
        rest = table.drop(columns=[column, "stimulus"], errors="ignore")
        opened.table = rest.set_axis(opened.table.index, axis=0)
        return opened

    @property
    def ids(self) -> list[str]:
        """The stimulus ids, in order."""
        return self.table.index.tolist()

    def __len__(self) -> int:
        """Return the number of stimuli."""
        return len(self._sources)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return the pixels of one stimulus, uint8, shape ([n_frames,] 3, height, width)."""
        pixels = torch.from_numpy(np.array(self._sources[index].decode()))
        return pixels.movedim(-1, -3)  # no copy: in memory, a pixel's colours stay together

    def __repr__(self) -> str:
        """Return a one-line summary."""
        return f"<Stimuli: {len(self)} {self.kind}s, {listed(self.ids, 2)}>"

    def where(self, index: int) -> str:
        """Return where the pixels of stimulus `index` come from, for messages."""
        return self._sources[index].name

    @property
    def fps(self) -> float | None:
        """How many frames per second the videos were opened with; None if that was not said."""
        rates = {getattr(source, "fps", None) for source in self._sources}
        return rates.pop() if len(rates) == 1 else None

    def sel(self, ids: Iterable[str]) -> Stimuli:
        """Return the stimuli with these ids, in this order.

        Raises
        ------
        PairingError
            An id is unknown or repeats.
        """
        ids = list(ids)
        rows = self.table.index.get_indexer(pd.Index(ids))
        unknown = [name for name, row in zip(ids, rows, strict=True) if row < 0]
        if unknown:
            raise PairingError(
                f"{len(unknown)} ids are not among the stimuli: {listed(unknown)}. "
                f"{did_you_mean(str(unknown[0]), self.ids)}"
            )
        chosen = Stimuli([self._sources[row] for row in rows], self.table.iloc[rows], self.kind)
        if self._hashes is not None:
            chosen._hashes = [self._hashes[row] for row in rows]
        known = self._fingerprints
        chosen._fingerprints = {new: known[row] for new, row in enumerate(rows) if row in known}
        return chosen

    def clips(
        self,
        *,
        tr: float | None = None,
        window: float | None = None,
        n_frames: int | None = None,
        fps: float | None = None,
        stride: int | None = None,
    ) -> Stimuli:
        """Cut each movie into clips, decoded when asked for; in order, each frame once.

        Parameters
        ----------
        tr : float, optional
            A clip begins every `tr` seconds.
        window : float, optional
            Length of a clip [s]; `tr` by default. Clips that outlast the movie are left out.
        n_frames, fps : int, float, optional
            Which frames of a clip, as in `from_files`; all by default.
        stride : int, optional
            Instead of `tr`: clips of `n_frames` frames in a row, one every `stride` frames.

        Returns
        -------
        Stimuli
            Ids as ``"movie01@12.000"``, with the movie's row of the table, onset and duration [s]
            (from the movie's own onset where it has one) and run: the movie's, or its id.

        Raises
        ------
        ValueError
            The stimuli are no whole videos, or the arguments do not fit each other.
        """
        movies = [source for source in self._sources if isinstance(source, VideoFile)]
        if len(movies) != len(self) or any(m.sampling != Sampling() for m in movies):
            raise ValueError("`clips` needs whole videos: open them without n_frames and fps.")
        by_frames = stride is not None and n_frames is not None and (tr, window, fps) == (None,) * 3
        if not by_frames and (tr is None or stride is not None):
            raise ValueError(
                "Give `tr`, with `window` and `n_frames` or `fps`; or `n_frames` and "
                f"`stride` alone; got {tr=}, {window=}, {n_frames=}, {fps=}, {stride=}."
            )
        sources: list[Source] = []
        rows: list[dict[str, object]] = []
        for movie, (name, row) in zip(movies, self.table.iterrows(), strict=True):
            if tr is None:
                cut = sliding_clips(movie.path, n_frames or 0, stride or 0)
            else:
                cut = movie_clips(
                    movie.path, tr, tr if window is None else window, Sampling(n_frames, fps)
                )
            sources += cut
            rows += [
                {
                    "run": name,
                    **row,
                    "stimulus": f"{name}@{clip.onset:.3f}",
                    "onset": row.get("onset", 0.0) + clip.onset,
                    "duration": clip.duration,
                }
                for clip in cut
            ]
        return Stimuli(sources, pd.DataFrame(rows).set_index("stimulus"), "video")

    def hashes(self) -> list[str]:
        """Return the sha256 of each stimulus' bytes: what a cache of features is keyed by."""
        if self._hashes is None:
            self._hashes = [source.sha256() for source in self._sources]
        return self._hashes

    def note_pixels(self, index: int, pixels: torch.Tensor) -> None:
        """Keep the fingerprint of a stimulus whose pixels are at hand, for `fingerprints`."""
        if index not in self._fingerprints:
            self._fingerprints[index] = fingerprint(pixels)

    def fingerprints(self, indices: Sequence[int] | None = None) -> list[str]:
        """Return what tells near-identical stimuli; see `neurodl.io.fingerprints.fingerprint`.

        Empty for stimuli that cannot be decoded. Decodes those that were not decoded before.

        Parameters
        ----------
        indices : sequence of int, optional
            Of which stimuli; all by default.
        """
        wanted = range(len(self)) if indices is None else indices
        missing = [row for row in wanted if row not in self._fingerprints]
        with ThreadPoolExecutor(N_DECODERS) as pool:
            list(pool.map(self._look, missing))
        return [self._fingerprints[row] for row in wanted]

    def _look(self, index: int) -> None:
        try:
            self.note_pixels(index, self[index])
        except FileFormatError:
            self._fingerprints[index] = ""


def _table(names: Sequence[str], ids: Sequence[str] | None) -> pd.DataFrame:
    """Return an empty table indexed by `ids`, or by `names` where no ids are given."""
    if ids is not None and len(ids) != len(names):
        raise PairingError(
            f"{len(ids)} ids were given for {len(names)} stimuli ({listed(names, 3)}). Give one id "
            "per stimulus, in this order."
        )
    return pd.DataFrame(index=pd.Index([str(i) for i in (names if ids is None else ids)]))


def _unique_names(files: Sequence[Path]) -> list[str]:
    """Return file names, or whole paths where names repeat."""
    names = [file.name for file in files]
    return names if len(set(names)) == len(names) else [file.as_posix() for file in files]
