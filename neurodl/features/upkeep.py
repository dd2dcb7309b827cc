"""What is in the feature cache, what can go, and whether it is whole."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pandas as pd

from neurodl.features.cache import ROWS_PER_CHUNK, cache_folder, open_whole, read_whole

COLUMNS = ["backbone", "layer", "pool", "reduce", "stimuli", "features", "state", "MB", "last used"]
DAY = 86_400.0
WRITING_SECONDS = 600.0  # a description that is younger may be of a layer that is being written


def list_cache(cache: str | Path | None = None) -> pd.DataFrame:
    """Return what the feature cache holds, a row per layer, the latest used first.

    Parameters
    ----------
    cache : path, optional
        By default `cache_folder`.

    Returns
    -------
    pandas.DataFrame
        Indexed by the folder's name; backbone, layer, pool, reduce, stimuli and features (their
        numbers), state ("whole", "3 of 8 chunks" or "damaged"), MB on disk, last used.

    Examples
    --------
    >>> len(list_cache("no such folder"))
    0
    """
    rows = {path.name: _described(path) for path in _layers(cache)}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS)
    return table.sort_values("last used", ascending=False)


def prune_cache(
    *,
    days: float | None = None,
    max_bytes: float | None = None,
    cache: str | Path | None = None,
    dry_run: bool = False,
) -> pd.DataFrame:
    """Remove layers that were not used for some days, or the longest unused down to a size.

    Parameters
    ----------
    days : float, optional
        Layers that were not used for longer go.
    max_bytes : float, optional
        Then the longest unused go until no more than this is left.
    cache : path, optional
        By default `cache_folder`.
    dry_run : bool
        Only say what would go.

    Returns
    -------
    pandas.DataFrame
        What went, as in `list_cache`.

    Raises
    ------
    ValueError
        Neither `days` nor `max_bytes` is given, or one is negative.
    """
    if days is None and max_bytes is None:
        raise ValueError("Say what may go: `days` without use, or `max_bytes` that may stay.")
    for name, value in (("days", days), ("max_bytes", max_bytes)):
        if value is not None and not value >= 0:
            raise ValueError(f"`{name}` must not be negative, but got {value}.")
    table = list_cache(cache)
    goes = pd.Series(False, index=table.index)
    if days is not None:
        goes |= table["last used"] < pd.Timestamp(time.time() - days * DAY, unit="s")
    if max_bytes is not None:
        goes |= (table["MB"].where(~goes, 0.0) * 1e6).cumsum() > max_bytes
    gone = table[goes]
    if not dry_run:
        for name in gone.index:
            shutil.rmtree(cache_folder(cache) / "features" / name)
    return gone


def verify_cache(cache: str | Path | None = None) -> pd.DataFrame:
    """Read every chunk against its checksum, and remove the damaged ones.

    They are computed again when they are asked for, as they would be without this.

    Returns
    -------
    pandas.DataFrame
        The layers that were damaged, as in `list_cache`, with the number of chunks removed
        ("all" where the description was damaged).
    """
    before = list_cache(cache)
    removed: dict[str, int | str] = {}
    for path in _layers(cache):
        array = open_whole(path)
        if array is None:
            if time.time() - path.stat().st_mtime > WRITING_SECONDS or _has_chunks(path):
                shutil.rmtree(path)
                removed[path.name] = "all"
            continue
        numbers = [int(chunk.name) for chunk in path.glob("c/*") if (chunk / "0").is_file()]
        n_damaged = sum(read_whole(array, path, number) is None for number in numbers)
        if n_damaged:
            removed[path.name] = n_damaged
    return before.loc[list(removed)].assign(removed=pd.Series(removed, dtype=object))


def _layers(cache: str | Path | None) -> list[Path]:
    folder = cache_folder(cache) / "features"
    return sorted(path for path in folder.glob("*") if path.is_dir())


def _has_chunks(path: Path) -> bool:
    return any(path.glob("c/*/0"))


def _described(path: Path) -> list[object]:
    """Return the values of `COLUMNS` for one layer."""
    files = [file.stat() for file in path.rglob("*") if file.is_file()]
    size = sum(file.st_size for file in files) / 1e6
    used = max([file.st_mtime for file in files], default=path.stat().st_mtime)
    array = open_whole(path)
    if array is None:
        said: list[object] = ["?", "?", "?", "?", 0, 0, "damaged"]
    else:
        n_rows, n_features = array.shape
        n_chunks, n_there = -(-n_rows // ROWS_PER_CHUNK), len(list(path.glob("c/*/0")))
        state = "whole" if n_there == n_chunks else f"{n_there} of {n_chunks} chunks"
        names = [str(array.attrs[key]) for key in ("backbone", "layer", "pool", "reduce")]
        said = [*names, n_rows, n_features, state]
    return [*said, size, pd.Timestamp(used, unit="s")]
