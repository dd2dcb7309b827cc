"""What the plots draw, read back from their axes and their SVG."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from functools import partial

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from neurodl.reports import plots
from neurodl.reports.svg import INK, PALETTE, RULE, Drawing, roi_looks
from neurodl.reports.tables import ALL, fold_means, roi_table


def svg_of(function, *args, **kwargs) -> str:
    """Return what the page shows of a plot."""
    return Drawing("", "", partial(function, *args, **kwargs), pd.DataFrame()).svg


def test_one_plot_per_network_and_one_for_single_layers(make_scores):
    scores = make_scores(
        60,
        backbones={"timm:a": ["x.1", "x.2"], "timm:b": ["x.1", "x.2"], "gabor": ["g"], "p": ["q"]},
    )
    found = plots.profiles(scores, roi_table(scores), fold_means(scores))
    assert [one.title for one in found] == ["timm:a", "timm:b", "One layer each"]
    texts = [re.findall(r"<text[^>]*>([^<]*)</text>", one.svg) for one in found]
    assert {"x.1", "x.2"} <= set(texts[0])
    assert {"gabor", "p"} <= set(texts[2])


def test_a_single_layer_is_drawn_by_roi(make_scores):
    scores = make_scores(60, backbones={"net": ["fc"]})
    (drawing,) = plots.profiles(scores, roi_table(scores), fold_means(scores))
    svg = drawing.svg
    assert drawing.title == "fc"
    assert {"V1", "V4"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", svg))


def test_the_profile_draws_means_folds_and_intervals():
    rois, looks = [ALL, "V1"], roi_looks([ALL, "V1"])
    columns = {
        "r": np.array([[0.1, 0.2], [0.3, 0.4]]),
        "r_low": np.array([[0.05, 0.15], [0.25, 0.35]]),
        "r_high": np.array([[0.15, 0.25], [0.35, 0.45]]),
    }
    folds = np.arange(12.0).reshape(2, 3, 2)
    figure = plots.draw_profile(["a", "b"], columns, folds, rois, looks, (0, 1), joined=True)
    (axes,) = figure.axes
    lines = [list(line.get_ydata()) for line in axes.lines]
    assert [0.1, 0.3] in lines
    assert [0.2, 0.4] in lines
    assert folds[..., 1].ravel().tolist() in lines
    band = axes.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0.15, 0.45)


def test_the_histogram_counts_every_target_once():
    values = np.array([0.1, 0.1, 0.2, 0.5])
    figure = plots.draw_histogram(values, PALETTE[0], (0.0, 0.6), "units")
    steps = figure.axes[0].patches[0].get_data()
    assert steps.values.sum() == 4
    assert figure.axes[0].texts[0].get_text() == "mean 0.23"


def test_the_ceiling_is_drawn_as_its_square_root():
    figure = plots.draw_ceiling(
        np.array([0.25, 0.64]), np.array([0.3, 0.9]), None, roi_looks([ALL])
    )
    points = figure.axes[0].lines[-1]
    np.testing.assert_allclose(points.get_xdata(), [0.5, 0.8])
    np.testing.assert_allclose(points.get_ydata(), [0.3, 0.9])


def test_every_point_is_drawn_once_whether_it_has_a_roi_or_not():
    labels = np.array(["V1", "", "V1", "V2"], object)
    figure = plots.draw_ceiling(
        np.full(4, 0.5), np.full(4, 0.2), labels, roi_looks([ALL, "V1", "V2"])
    )
    sizes = [len(line.get_xdata()) for line in figure.axes[0].lines[-3:]]
    assert sizes == [1, 2, 1]


def test_many_targets_are_binned_and_all_counted():
    rng = np.random.default_rng(0)
    n = plots.MAX_POINTS + 1
    ceiling, r = rng.uniform(0.1, 1, n), rng.uniform(0, 0.6, n)
    svg = svg_of(plots.draw_ceiling, ceiling, r, None, roi_looks([ALL]))
    assert len(svg) < 400_000
    assert svg.count("<use") < n
    assert plots.ceiling_data(ceiling, r, None)["n"].sum() == n


def test_the_svg_follows_the_page():
    svg = svg_of(plots.draw_histogram, np.linspace(0, 1, 50), PALETTE[1], (0, 1), "units")
    assert INK not in svg
    assert RULE not in svg
    assert PALETTE[1] not in svg
    assert "currentColor" in svg
    assert "var(--roi-1)" in svg
    assert not re.search(r"https?:|<style|<metadata|font-family|<!DOCTYPE", svg)


def test_two_figures_on_a_page_share_no_ids():
    first, second = (
        svg_of(plots.draw_histogram, np.linspace(0, top, 50), PALETTE[0], (0, 1), "units")
        for top in (1, 0.5)
    )
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, own in zip((first, second), ids, strict=True):
        used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
        assert used <= own


def test_names_are_text_not_markup_or_formulae(make_scores):
    scores = make_scores(
        60, areas=["<script>x</script>", "$\\frac$"], backbones={"n": ["$a_b$", "<i>"]}
    )
    found = plots.profiles(scores, roi_table(scores), fold_means(scores))
    svg = "".join(one.svg for one in found)
    assert "<script" not in svg
    assert "<i>" not in svg
    assert "$a_b$" in svg


def test_rois_beyond_the_palette_get_other_markers():
    looks = roi_looks([ALL, *(f"R{n}" for n in range(20))])
    assert len({(look.colour, look.marker) for look in looks.values()}) == 21


def test_only_the_best_rois_are_drawn(make_scores):
    scores = make_scores(400, areas=[f"R{n}" for n in range(20)])
    table = roi_table(scores)
    shown = plots.shown_rois(table)
    assert shown[0] == ALL
    assert len(shown) == plots.MAX_LINES + 1
    best = table[table["roi"] != ALL].groupby("roi")["r"].max()
    assert set(shown[1:]) == set(best.nlargest(plots.MAX_LINES).index)


def test_the_users_style_neither_shows_nor_changes():
    plain = svg_of(plots.draw_histogram, np.linspace(0, 1, 50), PALETTE[0], (0, 1), "units")
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "svg.fonttype": "path"}):
        # Read raw: asking rcParams for the backend would choose one.
        before = dict(dict.items(matplotlib.rcParams))
        styled = svg_of(plots.draw_histogram, np.linspace(0, 1, 50), PALETTE[0], (0, 1), "units")
        assert dict(dict.items(matplotlib.rcParams)) == before
    assert styled == plain


@pytest.mark.slow
def test_pyplot_is_never_imported():
    code = (
        "import sys, numpy as np; from neurodl.reports import plots, surface;"
        "plots.draw_histogram(np.ones(9), plots.PALETTE[0], (0, 2), 'units');"
        "surface.surface_pictures({s: np.full(10242, .3) for s in ('left', 'right')}, 0.5);"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_figure_comes_with_its_numbers_and_as_a_slide(make_scores, tmp_path):
    scores = make_scores(60, backbones={"net": ["a", "b"]})
    table = roi_table(scores)
    (drawing,) = plots.profiles(scores, table, fold_means(scores))
    read = pd.read_csv(io.StringIO(drawing.tsv), sep="\t")
    assert list(read["layer"]) == list(drawing.data["layer"])
    own = read.set_index(["layer", "roi"])
    expected = table.set_index(["layer", "roi"])
    np.testing.assert_allclose(own["r"], expected.loc[own.index, "r"], atol=1e-5)
    folds = own[[f"r_fold{n}" for n in range(5)]]
    np.testing.assert_allclose(folds.mean(axis=1), own["r"], atol=0.02)
    drawing.save_slide(tmp_path / "a.png", "Along the layers")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (1920, 1080)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
