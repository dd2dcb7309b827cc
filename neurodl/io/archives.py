"""Unpacking zip and tar archives of others: plain files inside one folder, and nothing else."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from neurodl.errors import FileFormatError, MissingFileError, StorageError
from neurodl.io.store import NOT_WRITABLE

MOST_FILES = 1_000_000
LARGEST_RATIO = 200  # unpacked to packed; text tables reach about 20, sparse arrays about 100
SMALL = 1 << 28  # bytes; below it no ratio is too large
BLOCK = 1 << 20
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    IndexError,
    RuntimeError,
    ValueError,
)


class _Member(NamedTuple):
    name: str
    size: int
    problem: str | None
    source: zipfile.ZipInfo | tarfile.TarInfo


def unpack(archive: str | Path, folder: str | Path) -> list[Path]:
    """Unpack a ``.zip``, ``.tar``, ``.tar.gz`` or ``.tgz`` archive into `folder`.

    All members are looked at before the first is written. Files that are there are replaced; each
    appears only when it is whole.

    Parameters
    ----------
    archive : str or Path
    folder : str or Path

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    MissingFileError
        There is no such archive.
    FileFormatError
        It is damaged; a member would lie outside the folder, is a link or a device, or is
        encrypted; or it unpacks to far more than an archive of its size holds.
    StorageError
        There is not enough room.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise MissingFileError(f"The archive {archive} does not exist.")
    try:
        with _opened(archive) as opened:
            members = list(_members(opened))
            _check(members, archive)
            _check_room(members, folder)
            return [_write(opened, member, folder, archive) for member in members]
    except DAMAGED as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"Cannot unpack {archive}: {error}") from error
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        if error.errno in NOT_WRITABLE:
            raise StorageError(
                f"Cannot unpack {archive} into {folder}: {os.strerror(error.errno or 0)}."
            ) from error
        raise FileFormatError(f"Cannot unpack {archive}: {error}") from error


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield opened
    else:
        with tarfile.open(archive) as packed:
            yield packed


def _members(opened: zipfile.ZipFile | tarfile.TarFile) -> Iterator[_Member]:
    """Yield the files of an archive, and everything else as a problem."""
    if isinstance(opened, zipfile.ZipFile):
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            problem = (
                "is a link or a device" if kind not in (0, stat.S_IFREG, stat.S_IFDIR) else None
            )
            problem = "is encrypted" if info.flag_bits & 1 else problem
            if problem or not info.is_dir():
                yield _Member(info.filename, info.file_size, problem, info)
        return
    for entry in opened:
        if not entry.isdir():
            problem = None if entry.isreg() else "is a link or a device"
            yield _Member(entry.name, entry.size, problem, entry)


def _check(members: list[_Member], archive: Path) -> None:
    """Raise before anything is written if any member is not a plain file inside the folder."""
    for member in members:
        problem = member.problem or _outside(member.name)
        if problem:
            raise FileFormatError(
                f"{archive} is not unpacked: its member {member.name!r} {problem}."
            )
    total = sum(member.size for member in members)
    if len(members) > MOST_FILES or total > max(SMALL, LARGEST_RATIO * archive.stat().st_size):
        raise FileFormatError(
            f"{archive} is not unpacked: its {archive.stat().st_size} bytes would become "
            f"{len(members)} files of {total} bytes together."
        )


def _outside(name: str) -> str | None:
    """Return what is wrong with where a member would lie."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name or not path.name:
        return "would lie outside the folder"
    return None


def _check_room(members: list[_Member], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    total, free = sum(member.size for member in members), shutil.disk_usage(folder).free
    if total > free:
        raise StorageError(
            f"Unpacking needs {total / 1e6:.0f} MB, but {folder} has {free / 1e6:.0f} MB free."
        )


def _write(
    opened: zipfile.ZipFile | tarfile.TarFile, member: _Member, folder: Path, archive: Path
) -> Path:
    """Write one member, at most as large as the archive says it is."""
    path = folder / PurePosixPath(member.name.replace("\\", "/"))
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise FileFormatError(
            f"{archive} is not unpacked: {path.parent} is a link out of {folder}."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with _stream(opened, member) as source, temporary.open("wb") as file:
            left = member.size
            while block := source.read(min(BLOCK, left + 1)):
                left -= len(block)
                if left < 0:
                    raise FileFormatError(f"{archive}: {member.name!r} is larger than announced.")
                file.write(block)
        if left:
            raise FileFormatError(f"{archive}: {member.name!r} is cut off.")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _stream(opened: zipfile.ZipFile | tarfile.TarFile, member: _Member) -> IO[bytes]:
    if isinstance(opened, zipfile.ZipFile):
        assert isinstance(member.source, zipfile.ZipInfo)
        return opened.open(member.source)
    assert isinstance(member.source, tarfile.TarInfo)
    source = opened.extractfile(member.source)
    assert source is not None  # links and devices were refused
    return source
