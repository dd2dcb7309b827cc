"""The documentation: builds without a warning, its links lead somewhere, its examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import neurodl

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    import shutil

    source = tmp_path / "docs"  # the gallery is written beside its sources
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("gallery", "reference", "_build"))
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    built = subprocess.run(
        [*command, str(source), str(tmp_path / "site")], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr[-3000:]
    site = tmp_path / "site"
    for page in PAGES:
        assert (site / f"{page.stem}.html").is_file()
    examples = sorted(DOCS.glob("examples/plot_*.py"))
    for example in examples:
        shown = (site / "gallery" / f"{example.stem}.html").read_text()
        assert re.search(rf"_images/sphx_glr_{example.stem}_\d+\.(png|svg)", shown)
    reference = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    for name in set(neurodl.__all__) - {"__version__"}:
        assert f'id="neurodl.{name}"' in reference, name
    choosing = (site / "choosing.html").read_text()
    for link in re.findall(r'<a style="[^"]*" href="([^":]+\.html)(#[^"]*)?">', choosing):
        target = (site / link[0]).read_text()
        assert not link[1] or f'id="{link[1][1:]}"' in target


def test_every_page_is_in_the_contents():
    index = (DOCS / "index.md").read_text()
    listed = set(re.findall(r"^([a-z_]+)$", index, re.MULTILINE))  # without reference/
    assert {page.stem for page in PAGES} - {"index"} == listed


@pytest.mark.parametrize("page", [*PAGES, DOCS.parent / "README.md"], ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
