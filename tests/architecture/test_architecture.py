"""The layer rule, the lazy top level, and the table of contents."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import neurodl

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_modules_import_only_what_stands_to_their_left():
    pytest.importorskip("importlinter")
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


def test_import_loads_neither_torch_nor_numpy():
    code = (
        "import sys, neurodl; print([n for n in ('torch', 'numpy', 'xarray') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", neurodl.__all__)
def test_every_public_name_exists_and_is_documented(name):
    value = getattr(neurodl, name)
    assert name == "__version__" or value.__doc__


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        neurodl.nope  # noqa: B018


def test_the_table_of_contents_names_the_homes():
    for home, names in neurodl._HOMES.items():
        assert set(names) <= set(vars(import_module(home)))
