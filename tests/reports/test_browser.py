"""The pages in a browser: they load offline and quietly, sort, turn, link and do not overlap."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import neurodl as ndl

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]
# Texts of a page that lie on each other: pairs of leaves whose boxes share more than some pixels.
OVERLAPS = """() => {
  const shown = [...document.querySelectorAll("body *")].filter(element =>
    [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())
    && element.checkVisibility() && !element.closest("details:not([open]), svg, .take, option"));
  const boxes = shown.map(element => {
    const range = document.createRange();
    range.selectNodeContents(element);
    return [element, range.getBoundingClientRect()];
  });
  const found = [];
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
    const [a, p] = boxes[i], [b, q] = boxes[j];
    if (a.contains(b) || b.contains(a)) continue;
    if (a.closest("thead") || b.closest("thead")) continue;
    if (a.closest(".scroll") !== b.closest(".scroll")) continue;
    const across = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const down = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    if (across > 2 && down > 3) found.push([a, b].map(one => one.textContent.slice(0, 40)));
  }
  return found;
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory, make_scores):
    """A folder of two runs with reports, and an index of them."""
    folder = tmp_path_factory.mktemp("pages")
    for number in (1, 2):
        scores = make_scores(400, seed=number).assign_attrs(subject=f"0{number}")
        ndl.report(scores).save(folder / f"sub-0{number}" / "report.html")
    ndl.report([folder / "sub-01", folder / "sub-02"], title="Two").save(folder / "index.html")
    return folder


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--use-gl=swiftshader"]
        )
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Return what opens a page at a width; what the page asks for and complains of is kept."""
    contexts = []

    def opened(path: Path, width: int = 1400, scheme: str = "light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append((message.type, message.text)))
        page.on("pageerror", lambda error: page.said.append(("error", str(error))))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_load_state()
        return page

    yield opened
    for context in contexts:
        context.close()


def complaints(page) -> list[tuple[str, str]]:
    """Return errors and warnings, without the graphics driver's own."""
    return [
        one for one in page.said if one[0] in ("error", "warning") and "GL Driver" not in one[1]
    ]


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("name", ["sub-01/report.html", "index.html"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_loads_quietly_and_fits(pages, visit, name, width, scheme):
    page = visit(pages / name, width, scheme)
    assert complaints(page) == []
    others = [url for url in page.asked if not url.startswith("data:")]
    assert others == [(pages / name).as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERLAPS) == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark")


def test_overlaps_would_be_found(pages, visit):
    page = visit(pages / "index.html")
    page.evaluate("document.querySelector('.finding').style.marginTop = '-4rem'")
    assert page.evaluate(OVERLAPS)


def test_tables_sort(pages, visit):
    page = visit(pages / "sub-01" / "report.html")
    column = (
        "[...document.querySelectorAll('#matrix tbody tr')].map(row => row.cells[1].dataset.sort)"
    )
    before = [float(value) for value in page.evaluate(column)]
    page.click("#matrix thead th:nth-child(2) button")
    assert [float(value) for value in page.evaluate(column)] == sorted(before, reverse=True)
    page.click("#matrix thead th:nth-child(2) button")
    assert [float(value) for value in page.evaluate(column)] == sorted(before)
    page.click("#matrix thead th:nth-child(1) button")
    assert [float(value) for value in page.evaluate(column)] == before


def test_the_brain_turns_and_tells_values(pages, visit):
    page = visit(pages / "sub-01" / "report.html")
    canvas = page.locator("#viewer-canvas")
    canvas.scroll_into_view_if_needed()

    def pixels():
        return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)

    page.click("#viewer .views button:has-text('Left')")
    before = pixels()
    assert before.std() > 10  # something is drawn
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 120, y + 20, steps=4)
    page.mouse.up()
    page.wait_for_timeout(200)
    assert np.abs(pixels() - before).mean() > 1
    page.mouse.move(x, y)
    assert "hemisphere" in page.locator("#viewer-value").text_content()
    page.select_option("#viewer-map", "rois")
    assert complaints(page) == []


def test_figures_can_be_taken_along(pages, visit, tmp_path):
    page = visit(pages / "sub-01" / "report.html", scheme="dark")
    figure = page.locator("figure.panel[data-name^=profiles]").first
    taken = {}
    for kind in ("SVG", "PNG", "TSV"):
        with page.expect_download() as download:
            figure.locator(f"button:text-is('{kind}')").click(force=True)
        taken[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(taken[kind])
    svg = taken["SVG"].read_text()
    assert "var(" not in svg
    assert 'xmlns="http://www.w3.org/2000/svg"' in svg
    with Image.open(taken["PNG"]) as image:
        assert image.width > 800
        assert np.asarray(image.convert("L")).std() > 5
    table = pd.read_csv(taken["TSV"], sep="\t")
    assert {"layer", "roi", "r", "r_low", "r_high"} <= set(table.columns)
    assert complaints(page) == []


def test_links_lead_to_the_runs_and_to_the_volume(pages, visit):
    page = visit(pages / "index.html")
    page.click("#all-runs tbody a >> nth=1")
    page.wait_for_load_state()
    assert page.url == (pages / "sub-02" / "report.html").as_uri()
    page.click("a:has-text('Click through the volume')")
    page.wait_for_load_state()
    assert page.url.endswith("sub-02/volume.html")
    page.wait_for_timeout(500)
    assert page.locator("canvas").count() >= 1
    assert [said for said in complaints(page) if said[0] == "error"] == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in page.asked)


def test_prints_on_white_with_everything_open(pages, visit):
    page = visit(pages / "sub-01" / "report.html", scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.querySelectorAll('details')].every(each => each.open)")
