"""From a study file to a checked Study: every problem named at once, with the key at fault."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError

from neurodl.errors import ConfigError, MissingFileError, did_you_mean, listed
from neurodl.study.conflicts import conflicts, kinds, place, used_keys
from neurodl.study.models import model_keys
from neurodl.study.results import is_url
from neurodl.study.sections import FILE, SPECIAL, SWEPT, FeaturesSection, Section, Study


def load_study(path: str | Path) -> Study:
    """Read and check a study file.

    Paths in it are relative to the file. Everything that is wrong is said in one error.

    Parameters
    ----------
    path : str or Path
        A TOML file; its sections and keys are described in ``docs/study_file.md``.

    Returns
    -------
    Study
        With absolute paths and all defaults filled in.

    Raises
    ------
    MissingFileError
        The study file does not exist.
    ConfigError
        It has unknown keys, wrong types, missing files, or parts that do not go together.
    """
    path = Path(path).expanduser()
    return parse_study(read_study(path), folder=path.resolve().parent, source=str(path))


def read_study(path: Path) -> dict[str, Any]:
    """Return the content of a study file, not yet checked.

    Raises
    ------
    MissingFileError, ConfigError
        It does not exist; it is not TOML.
    """
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        raise MissingFileError(
            f"The study file {path} does not exist. {did_you_mean(path.name, near)}"
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def parse_study(content: Mapping[str, Any], *, folder: Path, source: str = "The study") -> Study:
    """Check the content of a study file whose relative paths start at `folder`.

    Raises
    ------
    ConfigError
        See `load_study`.
    """
    content = _with_absolute_paths(content, folder)
    try:
        study = Study.model_validate(content)
    except ValidationError as error:
        problems = _type_problems(error, content)
        raise ConfigError(_said(source, problems + list(_missing_files(content)))) from error
    problems = [*_missing_files(content), *conflicts(study)]
    if problems:
        raise ConfigError(_said(source, problems))
    return study


def write_study(study: Study) -> str:
    """Return a study as the text of a study file, with every default that it uses written out."""
    content = study.model_dump(exclude_none=True)
    for table, entry in zip(content["features"], study.features, strict=True):
        for key in set(table) - {*used_keys(entry), kinds(entry)[0], "label"}:
            del table[key]
        if entry.weights:
            del table["pretrained"]
        if not entry.options:
            table.pop("options", None)
    for key in set(content["model"]) - {"name", "pca", *model_keys(study.model)}:
        del content["model"][key]
    return tomli_w.dumps(content)


def _said(source: str, problems: list[str]) -> str:
    noun = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{source} has {noun}:\n" + "\n".join(f"  {problem}" for problem in problems)


def _type_problems(error: ValidationError, content: Mapping[str, Any]) -> list[str]:
    """Return one line per wrong key, whatever the number of types that it could have had."""
    problems: dict[str, str] = {}
    for one in error.errors():
        if one["type"] == "default_factory_not_called":
            continue  # it depends on a key that is wrong, which is said
        section, number, key = _place(one["loc"])
        where = place(section, number, content.get(section, ()))
        if one["type"] == "extra_forbidden" and key is None:
            known = [name for name in Study.model_fields]
            problem = f"[{section}]: there is no such section. {did_you_mean(section, known)}"
        elif one["type"] == "extra_forbidden":
            known = list(_model(section).model_fields)
            problem = f"{where} {key}: there is no such key. {did_you_mean(str(key), known)}"
        elif key is None and one["type"] == "missing":
            header = "[[features]]" if section == "features" else f"[{section}]"
            problem = f"{header} is missing."
        elif key is None:
            header = "[[features]]" if section == "features" else f"[{section}]"
            problem = f"{where}: expected a section {header}, but got {one['input']!r:.60}."
        else:
            meaning = _model(section).model_fields[key].description
            got = "it is missing" if one["type"] == "missing" else f"got {_given(one, key)}"
            problem = f"{where} {key}: expected {meaning}, but {got}."
            if (section, key) in SWEPT and isinstance(one["input"], list):
                problem += " A list makes a sweep of several studies, for run_sweep."
        problems.setdefault(f"{section} {number} {key}", problem)
    return list(problems.values())


def _place(loc: tuple[int | str, ...]) -> tuple[str, int | None, str | None]:
    """Return section, number of a repeated section, and key of an error's location."""
    section, rest = str(loc[0]), list(loc[1:])
    number = rest.pop(0) if rest and isinstance(rest[0], int) else None
    return section, number, str(rest[0]) if rest else None  # type: ignore[return-value]


def _given(one: Any, key: str) -> str:
    """Return what was given for a key, the element at fault if it is in a list."""
    place = [part for part in one["loc"] if isinstance(part, int)]
    inside = one["loc"][-1] != key and len(place) > (one["loc"][0] == "features")
    return f"{one['input']!r:.60}" + (" in it" if inside else "")


def _model(section: str) -> type[Section]:
    """Return the class of a section."""
    if section == "features":
        return FeaturesSection
    annotation = Study.model_fields[section].annotation
    options = getattr(annotation, "__args__", (annotation,))
    return next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))  # type: ignore[return-value]


def named_files(content: Mapping[str, Any]) -> Iterator[tuple[str, int | None, str, Any]]:
    """Yield section, number of a repeated section, key and value of each key that names files."""
    for section in Study.model_fields:
        tables = content.get(section)
        numbered = isinstance(tables, list)
        for number, table in enumerate(tables if numbered else [tables]):  # type: ignore[arg-type]
            if not isinstance(table, Mapping):
                continue
            for key, info in _model(section).model_fields.items():
                is_file = FILE in info.metadata or FILE in _nested(info.annotation)
                if is_file and key in table and _names_files(section, key, table[key]):
                    yield section, number if numbered else None, key, table[key]


def _nested(annotation: Any) -> list[Any]:
    """Return the marks of the types in a union."""
    return [
        mark
        for option in getattr(annotation, "__args__", ())
        for mark in getattr(option, "__metadata__", ())
    ]


def _names_files(section: str, key: str, value: Any) -> bool:
    """Return whether the value of a file key is file names: lists of ids or ROIs are not."""
    if key in ("ids", "roi", "reduce_fit") and isinstance(value, list):
        return False
    return isinstance(value, (str, list)) and value not in SPECIAL


def _with_absolute_paths(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the content with every file name absolute."""

    def absolute(value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(one) for one in value]
        if not isinstance(value, str):
            return value
        return Path(os.path.abspath(folder / Path(value).expanduser())).as_posix()

    copied: dict[str, Any] = {
        section: [dict(t) if isinstance(t, Mapping) else t for t in table]
        if isinstance(table, list)
        else dict(table)
        if isinstance(table, Mapping)
        else table
        for section, table in content.items()
    }
    for section, number, key, value in list(named_files(copied)):
        table = copied[section] if number is None else copied[section][number]
        table[key] = absolute(value)
    for section, key in (("study", "output"), ("run", "cache")):
        table = copied.get(section)
        if isinstance(table, dict) and isinstance(table.get(key), str) and not is_url(table[key]):
            table[key] = absolute(table[key])
    return copied


def _missing_files(content: Mapping[str, Any]) -> Iterator[str]:
    for section, number, key, value in named_files(content):
        names = value if isinstance(value, list) else [value]
        paths = [Path(name) for name in names if isinstance(name, str)]
        missing = [path for path in paths if not path.exists()]
        if not missing:
            continue
        first = missing[0]
        near = [path.name for path in first.parent.iterdir()] if first.parent.is_dir() else []
        nothing = f"Nor is there anything in {first.parent}."
        hint = did_you_mean(first.name, near) if near else nothing
        what = f"{first} does" if len(missing) == 1 else f"{listed(missing, 2)} do"
        yield f"{place(section, number, content.get(section, ()))} {key}: {what} not exist. {hint}"
