"""Where datasets lie, fetching what is missing of them, and checking what is there."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from neurodl.datasets.cards import Card, CardFile
from neurodl.errors import DownloadError, FileFormatError, MissingFileError, listed
from neurodl.io.archives import unpack
from neurodl.io.download import download
from neurodl.io.store import atomic_path, sha256_of

logger = logging.getLogger(__name__)
RECORD = ".neurodl.json"
TERMS = "terms.json"


def data_folder() -> Path:
    """Return where datasets are kept: ``$NEURODL_DATA``, or ``~/neurodl_data``."""
    return Path(os.environ.get("NEURODL_DATA", "~/neurodl_data")).expanduser()


def ready_folder(card: Card, root: str | Path | None, chosen: Mapping[str, Any]) -> Path:
    """Return the folder with a dataset's files; what is missing is fetched if it can be.

    Parameters
    ----------
    card : Card
    root : str, Path or None
        A folder of the user's, into which nothing is fetched; by default the dataset's own in
        `data_folder`.
    chosen : mapping
        See `Card.files`.

    Raises
    ------
    MissingFileError
        Files are missing and cannot be fetched; the message says which, and what to do.
    DownloadError
        Fetching failed.
    """
    show_terms(card)
    if root is None:
        return fetch_files(card, None, chosen)
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise MissingFileError(
            f"The folder {folder} does not exist. {how_to_get(card, folder, chosen)}"
        )
    folder = _top(card, folder)
    _require(card, folder, chosen)
    return folder


def fetch_files(card: Card, root: str | Path | None, chosen: Mapping[str, Any]) -> Path:
    """Fetch and unpack what is missing of a dataset, and return its folder.

    Archives that were put into the folder by hand are unpacked. See `ready_folder`.
    """
    folder = data_folder() / card.facts["name"] if root is None else Path(root).expanduser()
    try:
        _fetch(card, folder, chosen)
    except DownloadError as error:
        raise DownloadError(f"{error}\n{how_to_get(card, folder, chosen)}") from error
    _require(card, folder, chosen)
    return folder


def _fetch(card: Card, folder: Path, chosen: Mapping[str, Any]) -> None:
    """Fetch what is missing and can be fetched, files first, then archives."""
    wanted = [file for file in _missing(card.files(chosen), folder) if file.urls]
    if wanted:
        logger.info("fetching %d files of %s into %s", len(wanted), card.facts["name"], folder)
    for file in wanted:
        try:
            path = download(file.urls, folder / file.path, size=file.size, sha256=file.sha256)
        except DownloadError as error:
            if not file.optional:
                raise
            logger.warning("going on without %s: %s", file.path, error)
        else:
            _record(folder, path, file.urls[0])
    missing = _missing(card.files(chosen), folder)
    if any(not (file.urls or file.optional) for file in missing):
        for archive in card.archives(chosen):
            _unpack(archive, folder)


def check_files(card: Card, folder: Path, chosen: Mapping[str, Any]) -> pd.DataFrame:
    """Return the state of each file of a dataset.

    Returns
    -------
    pandas.DataFrame
        Columns file, state ("whole", "missing", "missing, optional", "wrong size", "changed") and
        size [bytes]. "whole" means: of the size and hash on the card, or of those that it had when
        it was fetched; where neither is known, that it is there.
    """
    record = _read_record(folder)
    rows = []
    for file in card.files(chosen):
        found = file.found(folder)
        if not found:
            state = "missing, optional" if file.optional else "missing"
            rows.append({"file": file.path, "state": state, "size": 0})
        for path in found:
            known = record.get(path.relative_to(folder).as_posix(), {})
            size, sha256 = file.size or known.get("size"), file.sha256 or known.get("sha256")
            actual = path.stat().st_size
            state = "whole"
            if actual == 0 or (size is not None and actual != size):
                state = "wrong size"
            elif sha256 is not None and sha256_of(path) != sha256:
                state = "changed"
            name = path.relative_to(folder).as_posix()
            rows.append({"file": name, "state": state, "size": actual})
    return pd.DataFrame(rows, columns=["file", "state", "size"])


def show_terms(card: Card) -> None:
    """Log a dataset's terms of use the first time that it is used, and record that it was."""
    terms = card.facts.get("terms")
    if not terms:
        return
    path = data_folder() / TERMS
    try:
        shown = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        shown = {}
    name, digest = card.facts["name"], hashlib.sha256(terms.encode()).hexdigest()
    if shown.get(name, {}).get("sha256") == digest:
        return
    logger.warning("Terms of use of %s, which you accept by using it:\n%s", name, terms)
    shown[name] = {"sha256": digest, "shown": _today()}
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(shown, indent=2), encoding="utf-8")
    except OSError as error:
        logger.info("the terms will be shown again: %s", error)


def how_to_get(card: Card, folder: Path, chosen: Mapping[str, Any] | None = None) -> str:
    """Return what to do to have a dataset's files in `folder`, for messages."""
    name = card.facts["name"] + _flags(card, chosen or {})
    sources = [file for file in (*card.files(), *card.archives()) if file.urls]
    parts = []
    command = f"`neurodl datasets fetch {name} --root {folder}`"
    if sources:
        parts.append(f"{command} fetches what is public")
    elif card.archives():
        parts.append(f"{command} unpacks archives that are there")
    if "form" in card.facts:
        parts.append(f"access is given by {card.facts['form']}")
    steps = card.facts.get("steps", "")
    listing = "; ".join(f"{file.path} from {file.urls[0]}" for file in sources[:4])
    by_hand = f"By hand: {listing}. " if listing else ""
    return (
        f"How to get {card.facts['name']}: {'; '.join(parts) or card.facts['access']}. "
        f"{steps} {by_hand}"
        f"Put the files into {folder} under their published names, or say root='folder'."
    ).replace("  ", " ")


def _top(card: Card, folder: Path) -> Path:
    """Return the folder above, where the published top folder itself was given."""
    tops = {file.path.split("/")[0] for file in card.files() if "/" in file.path}
    resolved = folder.resolve()
    given = resolved.name in tops and not any((resolved / top).exists() for top in tops)
    return resolved.parent if given else folder


def _flags(card: Card, chosen: Mapping[str, Any]) -> str:
    """Return what is chosen of a dataset as the command line takes it."""
    words = []
    for key in (key for key in card.choices if key in chosen):
        values = chosen[key] if isinstance(chosen[key], list) else [chosen[key]]
        plain = [str(one).lower() if isinstance(one, bool) else one for one in values]
        flag = f"--{key} " if key in ("subject", "roi") else f"--option {key}="
        words += [f" {flag}{one}" for one in plain]
    return "".join(words)


def _require(card: Card, folder: Path, chosen: Mapping[str, Any]) -> None:
    """Raise if files are missing that are not optional."""
    missing = [file.path for file in _missing(card.files(chosen), folder) if not file.optional]
    if missing:
        raise MissingFileError(
            f"{card.facts['name']}: {len(missing)} files are not in {folder}: "
            f"{listed(missing, 6)}. {how_to_get(card, folder, chosen)}"
        )


def _missing(files: list[CardFile], folder: Path) -> list[CardFile]:
    return [file for file in files if not file.found(folder)]


def _unpack(archive: CardFile, folder: Path) -> None:
    """Unpack an archive that is there or can be fetched; one that was fetched is then removed."""
    path = folder / archive.path
    fetched = not path.is_file() and bool(archive.urls)
    if fetched:
        download(archive.urls, path, size=archive.size, sha256=archive.sha256)
    if not path.is_file():
        return
    logger.info("unpacking %s", path)
    try:
        unpack(path, folder)
    except FileFormatError:
        if fetched:
            path.unlink()
        raise
    if fetched:
        path.unlink()


def _record(folder: Path, path: Path, url: str) -> None:
    """Note the size and hash of a fetched file, so that it can be checked later."""
    record = _read_record(folder)
    record[path.relative_to(folder).as_posix()] = {
        "size": path.stat().st_size,
        "sha256": sha256_of(path),
        "url": url,
        "fetched": _today(),
    }
    with atomic_path(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2), encoding="utf-8")


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()
