"""The errors neurodl raises: each names what was wrong, what was expected, and the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NeurodlError(Exception):
    """Base of every error raised on purpose by neurodl."""


class SchemaError(NeurodlError, ValueError):
    """An array does not follow the schema: a dim, coord, id or attr is at fault."""


class PairingError(NeurodlError, ValueError):
    """Stimuli, features and responses cannot be paired by id."""


class AuditError(NeurodlError, ValueError):
    """The scores would measure something else than they seem; see `audit`."""


class FileFormatError(NeurodlError, ValueError):
    """A file cannot be read, is truncated, or holds something else than expected."""


class MissingFileError(NeurodlError, FileNotFoundError):
    """A file or folder that was named does not exist."""


class DownloadError(NeurodlError, OSError):
    """A download failed; the message says how to go on without it."""


class StorageError(NeurodlError, OSError):
    """Writing failed, for example on a full disk; what was finished before is kept."""


class DeviceError(NeurodlError, RuntimeError):
    """The requested device is not there."""


class TooLargeError(NeurodlError, MemoryError):
    """A computation needs more memory than is free; the message says what takes the room."""


class TrainingError(NeurodlError, RuntimeError):
    """The training of a network ran away; the message says what to try."""


class UnknownNameError(NeurodlError, ValueError):
    """A name (dataset, backbone, layer, key) does not exist; near matches are listed."""


class ConfigError(NeurodlError, ValueError):
    """A study file has an unknown key, a wrong type or a missing file."""


class NeurodlWarning(UserWarning):
    """Something that changes how a result should be read; never only cosmetic."""


def near_matches(name: str, options: Iterable[str], n: int = 3) -> list[str]:
    """Return up to `n` of `options` that look most like `name`.

    Examples
    --------
    >>> near_matches("layre4", ["layer3", "layer4", "fc"], n=1)
    ['layer4']
    """
    options = list(options)
    folded = {option.lower(): option for option in options}
    found = difflib.get_close_matches(name.lower(), folded, n=n, cutoff=0.5)
    return [folded[match] for match in found]


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return the closing words of an error about an unknown `name`.

    Examples
    --------
    >>> did_you_mean("blocks.11x", ["blocks.10", "blocks.11"])
    "Did you mean 'blocks.11' or 'blocks.10'?"
    >>> did_you_mean("zzz", ["V1", "V4"])
    "There are: 'V1', 'V4'."
    """
    options = list(options)
    matches = near_matches(name, options)
    if matches:
        return f"Did you mean {' or '.join(repr(match) for match in matches)}?"
    if not options:
        return "There are none."
    shown = ", ".join(repr(option) for option in options[:20])
    return f"There are: {shown}{f' and {len(options) - 20} more' if len(options) > 20 else ''}."


def listed(items: Iterable[object], limit: int = 5) -> str:
    """Return `items` as text for an error message: the first `limit`, then a count.

    Examples
    --------
    >>> listed(["a", "b", "c"], limit=2)
    "'a', 'b' and 1 more"
    """
    items = list(items)
    text = ", ".join(repr(str(item)) for item in items[:limit])
    return text + (f" and {len(items) - limit} more" if len(items) > limit else "")
