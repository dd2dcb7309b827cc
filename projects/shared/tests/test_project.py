"""The whole project on its simulated twin, as notebooks, in a copy beside your results."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nbclient
import nbformat
import pytest

PROJECT = Path(__file__).parents[1]
STEPS = sorted(path.name for path in PROJECT.glob("[0-9][0-9]_*.ipynb"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the project whose settings say twin."""
    folder = tmp_path_factory.mktemp("project") / "copy"
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("results", "__pycache__"))
    settings = folder / "settings.toml"
    settings.write_text(settings.read_text().replace('data = "real"', 'data = "twin"'))
    return folder


def test_the_steps_run(copy):
    """One after the other in one kernel, which forgets everything between them."""
    whole = nbformat.v4.new_notebook()
    for step in STEPS:
        whole.cells += [nbformat.v4.new_code_cell("%reset -f")]
        whole.cells += nbformat.read(copy / step, 4).cells
    client = nbclient.NotebookClient(whole, timeout=300, kernel_name="python3")
    client.execute(cwd=str(copy), env=os.environ | {"MPLBACKEND": "agg"})


def test_the_talk_is_filled(copy):
    results = copy / "results" / "twin"
    slides = (results / "slides.html").read_text()
    assert "class=missing" not in slides
    assert "data:image/png" in slides
    for text in (slides, (results / "abstract.md").read_text()):
        assert "first]" not in text


def test_the_controls_hold(copy):
    """Shuffled responses are not predicted, and known responses are."""
    kept = json.loads((copy / "results" / "twin" / "03_controls.json").read_text())
    assert abs(kept["shuffled_r"]) < 0.12
    assert kept["known_r"] > 3 * abs(kept["shuffled_r"])
    assert kept["known_r"] > 0.2
