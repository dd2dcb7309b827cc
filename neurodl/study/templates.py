"""Project templates for student pods: rendered as a folder of steps that are also notebooks."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from neurodl.errors import StorageError, UnknownNameError, did_you_mean

SHARED = "shared"
STEP = "[0-9][0-9]_*.py"


def templates_folder() -> Path:
    """Return where the templates lie: in the package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "projects"
    return inside if inside.is_dir() else package.parent / "projects"


def list_templates() -> dict[str, str]:
    """Return the question of each template, by name.

    Examples
    --------
    >>> list_templates()["encoding-images"]
    'Which layers of a network predict which visual areas?'
    """
    titles = sorted(templates_folder().glob("*/title.txt"))
    return {path.parent.name: path.read_text(encoding="utf-8").strip() for path in titles}


def new_project(path: str | Path, template: str, *, repository: str = "") -> Path:
    """Write a project from a template: a README, settings, steps, notebooks and a test.

    Parameters
    ----------
    path : str or Path
        The folder of the project, which must be new or empty; its name is the project's.
    template : str
        See `list_templates`.
    repository : str
        Where the project will lie, such as ``https://github.com/us/project``; notebooks that are
        opened in Colab fetch the project's modules from there.

    Returns
    -------
    Path

    Raises
    ------
    UnknownNameError
        There is no such template.
    StorageError
        The folder holds something, or cannot be written.
    ValueError
        The name or the repository cannot be one.
    """
    known = list_templates()
    if template not in known:
        raise UnknownNameError(
            f"There is no template {template!r}. {did_you_mean(template, known)} "
            f"Templates are {', '.join(known)}."
        )
    folder = Path(path).expanduser().absolute()
    if not re.fullmatch(r"[\w. -]+", folder.name):
        raise ValueError(
            f"A project's name may have letters, digits, '-', '_', '.' and spaces, but got "
            f"{folder.name!r}."
        )
    if repository and not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", repository):
        raise ValueError(
            f"`repository` must be like https://github.com/us/project, but got {repository!r}."
        )
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise StorageError(f"{folder} holds something already; choose another name.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as beside:
            made = Path(beside) / "project"
            _render(made, folder.name, template, known[template], repository)
            for step in sorted(made.glob(STEP)):
                write_notebook(step)
            if folder.is_dir():
                folder.rmdir()
            shutil.move(made, folder)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error}") from error
    return folder


def _render(folder: Path, name: str, template: str, title: str, repository: str) -> None:
    from copier import run_copy

    for part in (SHARED, template):
        run_copy(
            str(templates_folder()),
            folder,
            data={
                "part": part,
                "name": name,
                "template": template,
                "title": title,
                "repository": repository,
            },
            overwrite=True,
            quiet=True,
        )


def write_notebook(step: Path) -> Path:
    """Write a percent script as the notebook of the same name, with the same cell ids each time."""
    import jupytext

    notebook = jupytext.read(step)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell{number:02d}"
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    path = step.with_suffix(".ipynb")
    jupytext.write(notebook, path, fmt="ipynb")
    return path
