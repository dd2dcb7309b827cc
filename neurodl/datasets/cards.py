"""The card of a dataset: what it is, who made it, its terms, its files, and how to get them."""

from __future__ import annotations

import itertools
import string
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neurodl.errors import MissingFileError, UnknownNameError, did_you_mean, listed

TABLES = ("files", "archives", "choices", "unions")


@dataclass(frozen=True)
class CardFile:
    """A file that belongs to a dataset.

    Attributes
    ----------
    path : str
        Inside the dataset's folder; ``*`` stands for what differs.
    urls : tuple of str
        Where it is published, the best address first; empty where it cannot be fetched.
    size : int or None
        [bytes].
    sha256 : str or None
    optional : bool
        The rest can be used without it.
    instead : str
        Another name under which it is published.
    """

    path: str
    urls: tuple[str, ...] = ()
    size: int | None = None
    sha256: str | None = None
    optional: bool = False
    instead: str = ""

    def found(self, folder: Path) -> list[Path]:
        """Return the files in `folder` that this is, none if it is missing."""
        for name in (self.path, self.instead):
            paths = sorted(folder.glob(name)) if "*" in name else [folder / name]
            found = [path for path in paths if path.is_file()]
            if found:
                return found
        return []


@dataclass(frozen=True)
class Card:
    """What a dataset is.

    Attributes
    ----------
    facts : dict of str to str
        name, title, authors, citation, licence, access ...
    choices : dict of str to list
        What its files differ by, such as the subjects.
    unions : dict of str to list of str
        Regions that are published in parts, such as V1 as V1v and V1d.
    """

    facts: dict[str, str]
    choices: dict[str, list[Any]] = field(default_factory=dict)
    unions: dict[str, list[str]] = field(default_factory=dict)
    _files: tuple[dict[str, Any], ...] = ()
    _archives: tuple[dict[str, Any], ...] = ()

    @classmethod
    def read(cls, path: Path) -> Card:
        """Read a card."""
        if not path.is_file():
            raise MissingFileError(f"The card {path} is missing; install neurodl again.")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return cls(
            {key: str(text).strip() for key, text in content.items() if key not in TABLES},
            content.get("choices", {}),
            content.get("unions", {}),
            tuple(content.get("files", ())),
            tuple(content.get("archives", ())),
        )

    def files(self, chosen: Mapping[str, Any] | None = None) -> list[CardFile]:
        """Return the files of what is chosen, by default of everything.

        Parameters
        ----------
        chosen : mapping, optional
            Such as ``{"subject": 1, "roi": ["V1", "V2"]}``; names that no file differs by say
            nothing.

        Raises
        ------
        UnknownNameError
            A choice is none of the card's.
        """
        return self._expanded(self._files, chosen or {})

    def archives(self, chosen: Mapping[str, Any] | None = None) -> list[CardFile]:
        """Return the archives that hold files of what is chosen; see `files`."""
        return self._expanded(self._archives, chosen or {})

    def united(self, names: Iterable[str]) -> list[str]:
        """Return regions with each union replaced by its parts."""
        parts = (part for name in names for part in self.unions.get(name, [name]))
        return list(dict.fromkeys(parts))

    def _expanded(
        self, entries: Iterable[Mapping[str, Any]], chosen: Mapping[str, Any]
    ) -> list[CardFile]:
        options = {name: self._chosen(name, chosen.get(name)) for name in self.choices}
        found: dict[str, CardFile] = {}
        for entry in entries:
            if any(not set(options[key]) & set(of) for key, of in entry.get("only", {}).items()):
                continue
            texts = [entry["path"], entry.get("instead", ""), *entry.get("urls", ())]
            names = sorted({name for text in texts for name in placeholders(text)})
            limits = entry.get("only", {})
            ranges = [
                [one for one in options[name] if name not in limits or one in limits[name]]
                for name in names
            ]
            for values in itertools.product(*ranges):
                filled = dict(zip(names, values, strict=True))
                path, instead, *urls = (text.format_map(filled) for text in texts)
                found[path] = CardFile(
                    path,
                    tuple(urls),
                    entry.get("size"),
                    entry.get("sha256"),
                    entry.get("optional", False),
                    instead,
                )
        return list(found.values())

    def _chosen(self, name: str, given: Any) -> list[Any]:
        """Return which of the card's options are meant; all where none are given."""
        options = self.choices[name]
        if given is None:
            return options
        given = [given] if isinstance(given, (str, int)) else list(given)
        unknown = [one for one in given if one not in options]
        if unknown:
            near = self.facts.get(f"which_{name}") or did_you_mean(
                str(unknown[0]), [*map(str, options), *self.unions]
            )
            raise UnknownNameError(f"{self.facts['name']} has no {name} {listed(unknown)}. {near}")
        return given


def placeholders(text: str) -> set[str]:
    """Return the names in braces.

    Examples
    --------
    >>> sorted(placeholders("sub{subject:02d}/{roi}.pkl"))
    ['roi', 'subject']
    """
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def card_folder() -> Path:
    """Return where the cards are: inside an installed package, or beside it in a checkout."""
    here = Path(__file__)
    packaged = here.parent / "cards"
    return packaged if packaged.is_dir() else here.parents[2] / "datasets"


def subject_number(subject: int | str) -> int:
    """Return the number of a subject given as 1, "1", "01", "sub-01", "sub01" or "subj01".

    Raises
    ------
    UnknownNameError
        It is none of these.

    Examples
    --------
    >>> subject_number("sub-05")
    5
    """
    digits = str(subject).lower().removeprefix("sub").removeprefix("j").lstrip("-_")
    if not digits.isdigit():
        raise UnknownNameError(
            f"`subject` must be a number such as 1 or 'sub-01', not {subject!r}."
        )
    return int(digits)
