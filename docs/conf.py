"""How the documentation is built: ``python -m sphinx -W docs site``."""

import inspect
import re
from pathlib import Path

import neurodl

project = "neurodl"
author = copyright = "The neurodl developers"
version = release = neurodl.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"neurodl {version}"
exclude_patterns = ["examples/README.rst", "gallery/*.ipynb", "gallery/*.py", "gallery/*.md5"]
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "/plot_",
    "abort_on_example_error": True,
    "show_memory": False,
    "download_all_examples": False,
    "min_reported_time": 30,
    "write_computation_times": False,
}
suppress_warnings = ["config.cache"]

toc_object_entries = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False

TITLES = {
    "errors": "Errors",
    "schema": "Schema",
    "io": "Files",
    "stimuli": "Stimuli",
    "responses": "Responses",
    "datasets": "Data sets",
    "backbones": "Backbones",
    "features": "Features",
    "models": "Models",
    "scores": "Scores",
    "reports": "Reports",
    "study": "Studies",
}


def _is_documented(name, value):
    """Whether a member of a class is public, written here, and not among its attributes."""
    kinds = property, classmethod, staticmethod
    if name.startswith("_") or name.endswith(("_", "_request")) or not value.__doc__:
        return False
    return inspect.isfunction(value) or isinstance(value, kinds)


def write_reference(folder: Path) -> None:
    """Write a page for each part of the library, with every public name of it."""
    parts = {}
    for home, names in neurodl._HOMES.items():
        parts.setdefault(home.split(".")[1], []).extend(names)
    folder.mkdir(exist_ok=True)
    for part, names in parts.items():
        lines = [TITLES[part], "=" * len(TITLES[part]), ""]
        for name in names:
            thing = getattr(neurodl, name)
            kind = "class" if inspect.isclass(thing) else "function"
            lines += [name, "-" * len(name), "", f".. auto{kind}:: neurodl.{name}"]
            if kind == "class":
                own = [key for key, value in vars(thing).items() if _is_documented(key, value)]
                lines += ["   :members: " + ", ".join(own)] * bool(own)
            lines += [""]
        (folder / f"{part}.rst").write_text("\n".join(lines), encoding="utf-8")


write_reference(Path(__file__).parent / "reference")


def setup(app):
    """Let docstrings be written for a terminal, and many of them stand on a page."""

    def as_link(found):
        known = found[1] in neurodl.__all__
        return f":py:obj:`~neurodl.{found[1]}`" if known else f"``{found[1]}``"

    def adapt(app, what, name, thing, options, lines):
        own = name.rsplit(".", 1)[-1]
        for row, line in enumerate(lines):
            code = re.sub(r"(?<![`:\w])`([^`<>]+)`(?!`|_)", as_link, line)
            lines[row] = re.sub(r"\[(\d+)\](?=_)|(?<=\.\. )\[(\d+)\]", rf"[#{own}\1\2]", code)

    app.connect("autodoc-process-docstring", adapt)
