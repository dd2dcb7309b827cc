"""Where results are: in a folder, or in an object store, of which a folder here holds a copy.

A store has no locks, and names of files there do not change at once. So files are uploaded one by
one, and last the record, which has the hash of each: what lacks a record is unfinished, and what
differs from it is not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurodl.errors import (
    ConfigError,
    FileFormatError,
    MissingFileError,
    NeurodlError,
    StorageError,
    did_you_mean,
    listed,
)
from neurodl.features.cache import cache_folder
from neurodl.io.store import atomic_path, sha256_of

STUDY, SCRIPT, SCORES = "study.toml", "analysis.py", "scores.nc"
PROVENANCE = "provenance.json"
STORES = ("s3", "gs", "abfs", "sftp", "file")  # that a mistyped one is likely to be
# Stores without folders: to make one there makes a bucket, also of a mistyped name.
BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci"}
PROBE = ".neurodl"  # a file that is written and removed before anything is computed
AT_ONCE = 16  # records that are asked for together


@dataclass(frozen=True)
class Place:
    """Where the results of a study or a sweep are, or will be.

    Attributes
    ----------
    root : str
        An absolute folder, or a URL that fsspec knows, such as ``s3://bucket/results``.
    name : str
        Of the results within it; "" for itself.
    """

    root: str
    name: str = ""

    @classmethod
    def of(cls, where: str | Path | Place) -> Place:
        """Return the place that a folder's name or a URL stands for.

        Raises
        ------
        ConfigError
            The URL has a password in it, or begins with what no store does.
        """
        if isinstance(where, Place):
            return where
        if not is_url(where):
            return cls(str(Path(where).expanduser().absolute()))
        from fsspec import available_protocols

        protocol, _, rest = str(where).partition("://")
        if ":" in rest.partition("/")[0].rpartition("@")[0]:
            raise ConfigError(
                f"The URL of the results ({protocol}://...) has a password in it, which would be "
                "kept with them. Leave it out: stores take it from their own configuration or "
                "the environment."
            )
        first = protocol.split("::")[0]
        if first not in available_protocols():
            raise ConfigError(
                f"There are no stores at '{protocol}://'. {did_you_mean(first, STORES)}"
            )
        return cls(str(where).rstrip("/"))

    def __truediv__(self, name: str) -> Place:
        """Return the place of a study of the sweep that is here."""
        return Place(self.root, name)

    def __str__(self) -> str:
        """Return the folder or the URL."""
        return f"{self.root}/{self.name}".removesuffix("/") if self.is_remote else str(self.folder)

    @property
    def is_remote(self) -> bool:
        """Whether it is in a store."""
        return is_url(self.root)

    @property
    def folder(self) -> Path:
        """The folder, or on this machine the one that holds a copy of what is in the store."""
        if not self.is_remote:
            return Path(self.root) / self.name
        key = hashlib.sha256(self.root.encode()).hexdigest()[:16]
        return cache_folder().absolute() / "results" / key / self.name

    def record(self) -> dict[str, Any]:
        """Return the provenance of finished results, or nothing."""
        if not self.is_remote:
            return record_in(self.folder)
        with self._reaching("read") as (store, base):
            try:
                record = json.loads(store.cat_file(f"{base}/{PROVENANCE}"))
                files = record["files"]
                return record if isinstance(files, dict) and SCORES in files else {}
            except (FileNotFoundError, ValueError, KeyError, TypeError):
                return {}

    def check_ready(self) -> None:
        """Raise a StorageError if the store has something else here, or cannot be written."""
        if not self.is_remote:
            return
        with self._reaching("read") as (store, base):
            store.invalidate_cache()
            try:
                found = store.ls(base, detail=False)
            except FileNotFoundError:
                found = []
        names = {name.rstrip("/").rpartition("/")[2] for name in found} - {"", PROBE}
        if names and not names & {PROVENANCE, SCRIPT}:
            raise StorageError(
                f"{self} is not empty and holds no results of a study. Choose another place: "
                "--out, or output = '...' in [study]."
            )
        with self._reaching("write") as (store, base):
            _make_folder_for(store, f"{base}/{PROBE}")
            store.pipe_file(f"{base}/{PROBE}", b"")
            store.rm_file(f"{base}/{PROBE}")

    def push(self, before: Mapping[str, Any]) -> None:
        """Upload finished results from the folder, if the place is in a store.

        Those of another machine, which did the same study since the record was `before`, stay.
        """
        if not self.is_remote:
            return
        own, there = record_in(self.folder), self.record()
        if there != before and there.get("key") == own["key"]:
            self.pull()
            return
        with self._reaching("write") as (store, base):
            with suppress(FileNotFoundError):
                store.rm_file(f"{base}/{PROVENANCE}")
            self.upload([*own["files"], PROVENANCE])
            for name in filter(is_within, {*there.get("files", ())} - {*own["files"]}):
                with suppress(FileNotFoundError):
                    store.rm_file(f"{base}/{name}")

    def upload(self, names: Iterable[str]) -> None:
        """Upload files of the folder, in this order, if the place is in a store."""
        if not self.is_remote:
            return
        with self._reaching("write") as (store, base):
            for name in names:
                _make_folder_for(store, f"{base}/{name}")
                store.put_file(str(self.folder / name), f"{base}/{name}")

    def pull(self) -> Path:
        """Bring finished results from the store, unless they are here, and return their folder.

        Raises
        ------
        MissingFileError
            There are no finished results.
        FileFormatError
            Their record names files elsewhere.
        StorageError
            A file is not what the record says, or the store cannot be read.
        """
        if not self.is_remote:
            return self.folder
        record = self.record()
        if not record:
            raise MissingFileError(f"{self} holds no finished results.")
        if record_in(self.folder) == record:
            return self.folder
        outside = [name for name in record["files"] if not is_within(name)]
        if outside:
            raise FileFormatError(f"{self}/{PROVENANCE} names {listed(outside)}: elsewhere.")
        (self.folder / PROVENANCE).unlink(missing_ok=True)
        with self._reaching("read") as (store, base):
            for name, expected in record["files"].items():
                with atomic_path(self.folder / name) as temporary:
                    store.get_file(f"{base}/{name}", str(temporary))
                    if sha256_of(temporary) != expected:
                        raise StorageError(
                            f"{self}/{name} is not the file that {PROVENANCE} was written for: it "
                            "is damaged, or another run is writing there. Wait for it, or remove "
                            f"{PROVENANCE} and run the study again."
                        )
        with atomic_path(self.folder / PROVENANCE) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return self.folder

    @contextmanager
    def _reaching(self, doing: str) -> Iterator[tuple[Any, str]]:
        """Yield the store and the path of this place there; what it raises becomes one error."""
        from fsspec.core import url_to_fs

        try:
            yield url_to_fs(str(self))
        except NeurodlError:
            raise
        except ImportError as error:
            raise StorageError(f"{self} cannot be reached: {error}.") from error
        except Exception as error:  # stores raise whatever their libraries do
            said = f"Cannot {doing} {self}: {type(error).__name__}: {error}."
            if doing == "write" and record_in(self.folder):
                said += f" What was computed is kept in {self.folder}: run it again to upload it."
            raise StorageError(said) from error


def is_url(where: str | Path) -> bool:
    """Return whether something is the URL of a place in a store."""
    return "://" in str(where)


def _make_folder_for(store: Any, path: str) -> None:
    """Make the folder of a file where a store has folders."""
    if not BUCKETS & {*np.atleast_1d(store.protocol)}:
        store.makedirs(path.rpartition("/")[0], exist_ok=True)


def is_within(name: str) -> bool:
    """Return whether a name that a record gives is that of a file in its folder, or below."""
    parts = name.split("/")
    return not {"", ".", ".."} & {*parts} and not {"\\", ":"} & {*name}


def record_in(folder: Path) -> dict[str, Any]:
    """Return the provenance of finished results in a folder, or nothing."""
    try:
        record = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and (folder / SCORES).is_file() else {}


def records_of(places: Iterable[Place]) -> list[dict[str, Any]]:
    """Return the record of each place, some at a time."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(Place.record, places))
