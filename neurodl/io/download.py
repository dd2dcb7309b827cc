"""Fetching a file over HTTP: resumed where it was cut off, checked, and whole or not there."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from filelock import FileLock

from neurodl.errors import DownloadError, StorageError
from neurodl.io.store import NOT_WRITABLE, atomic_path

logger = logging.getLogger(__name__)
WAITS = (1, 2, 4, 8, 16)  # s, between tries that bring nothing
LONGEST_WAIT = 60.0
TIMEOUT = (10, 60)  # s, to connect and between bytes
CHUNK = 1 << 14  # what is not a whole one when the connection breaks is lost
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
WEB_PAGES = (".html", ".htm")
UNENCRYPTED = ("data.pymvpa.org",)  # the one server of a dataset that has neither https nor hashes


class _Refused(Exception):
    """An address does not give the file, however often it is asked."""


class _CutOff(Exception):
    """The connection or the server failed; asking again may help."""

    def __init__(self, reason: object, wait: float | None = None) -> None:
        super().__init__(str(reason).splitlines()[0] if str(reason) else type(reason).__name__)
        self.wait = wait


def is_offline() -> bool:
    """Return whether ``$NEURODL_OFFLINE`` forbids downloads."""
    return os.environ.get("NEURODL_OFFLINE", "").lower() not in ("", "0", "false", "no")


def download(
    urls: str | Sequence[str],
    path: str | Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
) -> Path:
    """Fetch a file from the first of several addresses that gives it.

    A file that is there and agrees with `sha256` is not fetched again. What was fetched before
    the connection broke is kept as ``.NAME.part`` and continued, also by a later call.

    Parameters
    ----------
    urls : str or sequence of str
        Addresses of the same file, the best first.
    path : str or Path
        Where it goes; it appears there only when it is whole.
    size : int, optional
        How many bytes it has.
    sha256 : str, optional
        Its hash.

    Raises
    ------
    DownloadError
        No address gave the file; the message says why for each. Or ``$NEURODL_OFFLINE`` is set;
        or no address is encrypted, and no hash tells whether the file is the right one.
    StorageError
        There is not enough room, or the folder cannot be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            return _from_one(urls, path, size, sha256)
    except OSError as error:
        if error.errno in NOT_WRITABLE:
            raise StorageError(
                f"Cannot write {path}: {os.strerror(error.errno or 0)}. Make room or choose "
                "another folder (NEURODL_DATA), and run again: what was fetched is kept."
            ) from error
        raise


def _from_one(urls: str | Sequence[str], path: Path, size: int | None, sha256: str | None) -> Path:
    """Fetch a file from the first address that gives it, unless it is there."""
    import pooch

    if path.is_file() and (sha256 is None or pooch.file_hash(str(path)) == sha256):
        return path
    urls = [urls] if isinstance(urls, str) else list(urls)
    if is_offline():
        raise DownloadError(
            f"{path.name} is not in {path.parent}, and NEURODL_OFFLINE forbids to fetch it from "
            f"{urls[0]}. Put it there, or unset NEURODL_OFFLINE."
        )
    known = f"sha256:{sha256}" if sha256 else None
    fetcher = partial(_fetch, part=_Part(path, size, checked=known is not None))
    pooch.get_logger().setLevel("WARNING")
    reasons: dict[str, None] = {}
    if not known:
        urls = [url for url in urls if _is_safe(url)] or _refuse(urls, path)
    # What an earlier call left may be damaged; if the hash says so, once more from the start.
    for url in [url for url in urls for _ in range(2 if known else 1)]:
        try:
            pooch.retrieve(url, known, path.name, path.parent, downloader=fetcher)
            return path
        except ValueError as error:  # pooch's word for another hash
            reasons[f"{url}: {str(error).splitlines()[0]}"] = None
        except (_Refused, _CutOff) as error:
            reasons[f"{url}: {error}"] = None
    tried = "".join(f"\n  - {reason}" for reason in reasons)
    raise DownloadError(f"{path.name} could not be fetched:{tried}")


def _is_safe(url: str) -> bool:
    """Return whether nobody on the way can change what comes: encrypted, or from this machine."""
    address = urlsplit(url)
    if address.scheme == "https" or address.hostname in ("localhost", "127.0.0.1", "::1"):
        return True
    if address.scheme == "http" and address.hostname in UNENCRYPTED:
        logger.warning("%s comes unencrypted, and no hash of it was published", url)
        return True
    return False


def _refuse(urls: Sequence[str], path: Path) -> NoReturn:
    raise DownloadError(
        f"{path.name} is not fetched from {urls[0]}: without https or a known hash, anybody on the "
        "way could change it. Give an https address, or sha256=..."
    )


@dataclass
class _Part:
    """What has arrived of a file, and what tells whether the rest still belongs to it."""

    path: Path
    size: int | None
    checked: bool

    def __post_init__(self) -> None:
        self.file = self.path.with_name(f".{self.path.name}.part")
        self.note = self.path.with_name(f".{self.path.name}.part.json")

    def read(self, url: str) -> tuple[int, dict[str, Any]]:
        """Return how many bytes have arrived, and what the server said of the file."""
        try:
            said = dict(json.loads(self.note.read_text(encoding="utf-8")))
            arrived = self.file.stat().st_size
        except (OSError, ValueError, TypeError):
            return 0, {}
        usable = said.get("url") == url or self.checked
        return (arrived, said) if usable else (0, {})

    def begin(self, said: dict[str, Any]) -> None:
        """Note what the server says of the file, which starts anew."""
        self.file.unlink(missing_ok=True)
        with atomic_path(self.note) as temporary:
            temporary.write_text(json.dumps(said), encoding="utf-8")

    def finish(self, target: str | Path) -> None:
        """Hand over the whole file."""
        os.replace(self.file, target)
        self.note.unlink(missing_ok=True)


def _fetch(url: str, output_file: str, _pooch: Any, *, part: _Part) -> None:
    """Bring the whole file to `output_file`, with as many connections as it takes."""
    n_failed, before = 0, -1
    while True:
        try:
            _continue(url, part)
            return part.finish(output_file)
        except _CutOff as error:
            arrived, _ = part.read(url)
            n_failed = 0 if arrived > before else n_failed
            before = max(before, arrived)
            if n_failed == len(WAITS):
                raise
            wait = WAITS[n_failed] if error.wait is None else error.wait
            n_failed += 1
            logger.info("%s: %s; trying again in %.0f s", url, error, wait)
            time.sleep(min(wait, LONGEST_WAIT))


def _continue(url: str, part: _Part) -> None:
    """Fetch what is missing of a file, in one connection."""
    import requests

    arrived, said = part.read(url)
    if arrived and arrived == said.get("total"):
        return
    headers = {"Accept-Encoding": "identity"}
    if arrived:
        headers["Range"] = f"bytes={arrived}-"
        if said.get("validator") and said.get("url") == url:
            headers["If-Range"] = said["validator"]
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 416 and arrived:
                part.begin({})
                raise _CutOff("the server has no rest of the file; starting anew", 0)
            _check_status(answer)
            start = arrived if answer.status_code == 206 else 0
            total = _total(answer, start)
            if part.size is not None and total not in (None, part.size):
                raise _Refused(f"it offers {total} bytes; the file has {part.size}")
            if start and total != said.get("total"):
                part.begin({})
                raise _CutOff("the file has changed on the server; starting anew", 0)
            if not start:
                part.begin({"url": url, "total": total, "validator": _validator(answer)})
            _check_room(part.path, (total or 0) - start)
            _append(answer, part, start, total)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _CutOff(_innermost(error)) from error
    except requests.exceptions.ChunkedEncodingError as error:
        raise _CutOff(_innermost(error)) from error
    except requests.RequestException as error:
        raise _Refused(str(error)) from error


def _append(answer: Any, part: _Part, start: int, total: int | None) -> None:
    """Write what arrives after the first `start` bytes."""
    from tqdm import tqdm

    arrived = start
    bar = tqdm(
        total=total, initial=start, unit="B", unit_scale=True, desc=part.path.name, disable=None
    )
    with bar, part.file.open("ab") as file:
        for block in answer.iter_content(CHUNK):
            if not arrived:
                _check_no_page(block, part.path)
            file.write(block)
            arrived += len(block)
            bar.update(len(block))
    expected = total if part.size is None else part.size
    if expected is not None and arrived < expected:
        raise _CutOff(f"the connection ended after {arrived} of {expected} bytes")
    if expected is not None and arrived > expected:
        part.begin({})
        raise _Refused(f"it sent {arrived} bytes; the file has {expected}")


def _check_status(answer: Any) -> None:
    """Raise where the server does not send the file."""
    status = answer.status_code
    if status in TRY_AGAIN:
        after = answer.headers.get("Retry-After", "")
        raise _CutOff(
            f"the server answers {status} {answer.reason}",
            float(after) if after.isdigit() else None,
        )
    if status not in (200, 206):
        raise _Refused(f"the server answers {status} {answer.reason}")
    secure = [step.url.startswith("https:") for step in [*answer.history, answer]]
    if secure[0] and not all(secure):
        raise _Refused(f"it leads to the unencrypted address {answer.url}")


def _total(answer: Any, start: int) -> int | None:
    """Return how many bytes the whole file has, by the server's word."""
    if answer.status_code == 206:
        span, _, total = (
            answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        )
        if span.split("-")[0] != str(start):
            raise _Refused(f"it was asked for bytes from {start} and sends {span or 'others'}")
        return int(total) if total.isdigit() else None
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _validator(answer: Any) -> str | None:
    """Return what tells whether the file is still the same: a strong ETag, or its date."""
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified")


def _check_no_page(block: bytes, path: Path) -> None:
    """Raise where a web page comes in place of the file."""
    begins = block[:256].lstrip().lower()
    if path.suffix not in WEB_PAGES and begins.startswith((b"<!doctype html", b"<html")):
        raise _Refused(
            "it sends a web page in place of the file: it has moved, or wants a login or a form"
        )


def _check_room(path: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if n_bytes > free:
        raise StorageError(
            f"{path.name} needs {n_bytes / 1e6:.0f} MB more, but {path.parent} has "
            f"{free / 1e6:.0f} MB free. Make room, or set NEURODL_DATA to another disk."
        )


def _innermost(error: BaseException) -> str:
    """Return why a connection failed, without the names of the layers above."""
    while error.args and isinstance(error.args[-1], BaseException):
        error = error.args[-1]
    reason = str(getattr(error, "reason", None) or error).rpartition(">: ")[2]
    return re.sub(r"^\w+\(host=.*?\): ", "", reason) or type(error).__name__
