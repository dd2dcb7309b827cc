"""The saved page: complete, self-contained, escaped, and never half written."""

from __future__ import annotations

import base64
import errno
import hashlib
import html.parser
import json
import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import xarray as xr

from neurodl.errors import SchemaError, StorageError
from neurodl.io.store import load
from neurodl.reports import report
from neurodl.reports.html import map_name
from neurodl.reports.tables import target_means

SAFE_ATTRIBUTES = ("data:", "#")


class Reader(html.parser.HTMLParser):
    """Collects what a browser would load, link to, run and show."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[tuple[str, str]] = []
        self.links: list[str] = []
        self.scripts: list[tuple[dict, str]] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        """Note what a tag refers to."""
        attrs = dict(attrs)
        self.tags.append(tag)
        self._open = tag
        if tag == "script":
            self.scripts.append((attrs, ""))
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            if name in attrs and tag == "a":
                self.links.append(attrs[name])
            elif name in attrs:
                self.loaded.append((tag, attrs[name]))

    def handle_endtag(self, tag):
        """Close scripts and styles."""
        self._open = ""

    def handle_data(self, data):
        """Keep scripts apart from the text."""
        if self._open == "script":
            attrs, before = self.scripts[-1]
            self.scripts[-1] = (attrs, before + data)
        elif self._open != "style":
            self.text.append(data)


def units(make_scores, **kwargs) -> xr.Dataset:
    """Return scores of 33 units and six layers."""
    kwargs = {"ceiling": False, "n_excluded": 2, **kwargs}
    layers = {"timm:mobilenetv2_100": [f"blocks.{n}" for n in range(6)]}
    return make_scores(33, areas=None, target="unit", backbones=layers, **kwargs)


def test_saves_the_page_and_the_scores(make_scores, tmp_path):
    scores = units(make_scores)
    path = report(scores).save(tmp_path / "out" / "report.html")
    assert path == tmp_path / "out" / "report.html"
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.html", "scores.nc"]
    xr.testing.assert_equal(load(path.parent / "scores.nc"), scores)
    assert report(path.parent).finding == report(str(path.parent / "scores.nc")).finding
    assert report(path.parent).finding == report(scores).finding
    report(scores).save(tmp_path / "again" / "report.html")
    with pytest.raises(SchemaError, match=r"holds 2 runs: report\(\['"):
        report(tmp_path)


def test_loaded_scores_make_the_same_page(make_scores, tmp_path):
    made = report(make_scores(120, space=None))
    made.save(tmp_path / "report.html")
    again = report(load(tmp_path / "scores.nc"))
    assert again.finding == made.finding
    assert again.html() == made.html()


def test_several_reports_share_a_folder(make_scores, tmp_path):
    for subject in ("sub-01", "sub-02"):
        report(units(make_scores)).save(tmp_path / f"{subject}.html")
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"sub-01.html", "sub-01_scores.nc", "sub-02.html", "sub-02_scores.nc"}


def test_writes_the_best_layer_of_each_network_as_a_map(make_scores, tmp_path):
    scores = make_scores(120, space="T1w")
    report(scores).save(tmp_path / "report.html")
    stem = "sub-01_space-T1w_desc-TimmResnet50A1In1kLayer2_stat-r_statmap"
    image = nibabel.load(tmp_path / f"{stem}.nii.gz")
    assert image.shape == tuple(scores.attrs["shape"])
    np.testing.assert_allclose(image.affine.ravel(), scores.attrs["affine"])
    layer = "timm:resnet50.a1_in1k/layer2"
    place = tuple(scores[key].values for key in "ijk")
    expected = target_means(scores).sel(layer=layer).values
    np.testing.assert_allclose(image.get_fdata()[place], expected, atol=1e-6)
    described = json.loads((tmp_path / f"{stem}.json").read_text())
    assert described["Layer"] == layer
    assert len(list(tmp_path.glob("*.nii.gz"))) == 3


@pytest.mark.parametrize(
    ("attrs", "prefix", "expected"),
    [
        ({"subject": "sub-01"}, "", "sub-01_desc-NetA_stat-r_statmap.nii.gz"),
        ({"subject": "01"}, "sub-01_", "sub-01_desc-NetA_stat-r_statmap.nii.gz"),
        ({}, "mine_", "mine_desc-NetA_stat-r_statmap.nii.gz"),
        ({"space": "MNI 152/x"}, "", "space-MNI152x_desc-NetA_stat-r_statmap.nii.gz"),
    ],
)
def test_map_names_follow_bids(attrs, prefix, expected):
    assert map_name(attrs, "a", "net", prefix) == expected


def test_nothing_is_loaded_from_elsewhere(make_scores):
    page = report(make_scores(120, space=None)).html()
    reader = Reader(page)
    assert reader.loaded
    assert all(target.startswith(SAFE_ATTRIBUTES) for _, target in reader.loaded)
    assert "@import" not in page
    assert not {"iframe", "object", "embed", "base"} & set(reader.tags)
    assert [target for tag, target in reader.loaded if tag == "link"] == ["data:,"]


def test_only_the_pages_own_script_may_run(make_scores):
    page = report(units(make_scores)).html()
    ((_, script),) = [pair for pair in Reader(page).scripts if pair[0].get("type") is None]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page


def test_names_from_files_are_escaped(make_scores, tmp_path):
    def page(evil: str, also: str) -> Reader:
        scores = make_scores(120, areas=[evil, also], backbones={evil: [evil, "x"]}, space=None)
        scores.attrs |= {"experiment": evil, "subject": evil, "device": evil, evil: evil}
        made = report(scores, title=evil, notes=[evil], provenance={evil: {evil: evil}})
        path = made.save(tmp_path / "report.html")
        return Reader(path.read_text(encoding="utf-8"))

    evil, plain = page("<script>alert(1)</script>", "V&amp; <b>"), page("A", "B")
    assert evil.tags == plain.tags
    runs = [attrs for attrs, _ in evil.scripts if attrs.get("type") != "application/json"]
    assert runs == [{}]
    text = "".join(evil.text)
    assert text.count("<script>alert(1)</script>") >= 10
    assert "V&amp; <b>" in text


def test_the_title_is_the_experiment_and_subject_or_the_given_one(make_scores):
    scores = units(make_scores)
    assert report(scores).title == "simulated, subject 01"
    assert report(scores.assign_attrs(subject="sub-02")).title == "simulated, subject 02"
    assert report(scores, title="Mine").title == "Mine"
    assert report(scores.drop_attrs()).title == "Predictivity"


def test_the_page_shows_what_was_run(make_scores):
    text = "".join(
        Reader(
            report(
                make_scores(120, space=None),
                notes=["Remember the fixation."],
                provenance={"hashes": {"responses": "ab12"}},
            ).html()
        ).text
    )
    for expected in (
        "Remember the fixation.",
        "RidgeCV(alphas='auto', cv=5)",
        "120 voxels: 108 scored, 12 excluded (8 constant, 4 with missing values)",
        "cpu (2 threads)",
        "5 folds by run",
        "resnet50.a1_in1k (published)",
        "resize 256, crop 224, bicubic",
        "neurodl 0.1.0",
        "ab12",
        "How to cite",
    ):
        assert expected in text


def test_the_tables_hold_the_numbers(make_scores):
    made = report(make_scores(120, space=None))
    text = "".join(Reader(made.html()).text)
    for value in made.table["r"]:
        assert f"{value:.3f}" in text


def test_nothing_is_best_where_nothing_is_predicted(make_scores):
    scores = make_scores(120, space=None, ceiling=False)
    scores["r"] = -abs(scores["r"])
    assert 'class="n best"' in report(-scores).html()
    assert 'class="n best"' not in report(scores).html()


def test_an_empty_roi_keeps_its_row(make_scores):
    scores = make_scores(120, space=None)
    for name in ("r", "r2", "r_normalized"):
        scores[name] = scores[name].where(scores["roi"] != "IT")
    page = report(scores).html()
    row = page[page.index('id="best"') :]
    row = row[row.index("IT</th>") :]
    assert row[: row.index("</tr>")].count("–") >= 4


@pytest.mark.parametrize(
    "case", ["all_excluded", "one_layer", "no_layer", "numbered_layers", "one_fold", "no_attrs"]
)
def test_unusual_scores_have_a_page(make_scores, case):
    scores = make_scores(40, n_excluded=2, space=None)
    if case == "all_excluded":
        scores = make_scores(40, n_excluded=40, space=None)
    elif case == "one_layer":
        scores = scores.isel(layer=[0])
    elif case == "no_layer":
        scores = scores.isel(layer=0, drop=True)
    elif case == "numbered_layers":
        scores = scores.assign_coords(layer=np.arange(scores.sizes["layer"]))
    elif case == "one_fold":
        scores = scores.isel(fold=[0])
    else:
        scores = units(make_scores).drop_attrs().drop_vars(["backbone", "weights", "transform"])
    text = "".join(Reader(report(scores).html()).text)
    assert "nan" not in text.lower().replace("provenance", "")
    assert ("Nothing could be scored" in text) == (case == "all_excluded")


def test_a_dead_layer_is_no_obstacle(make_scores):
    scores = make_scores(40, n_excluded=0, space=None, backbones={"net": ["a", "b"], "dead": ["c"]})
    for name in ("r", "r2", "r_normalized"):
        scores[name][2] = np.nan
    made = report(scores)
    assert "net" in made.finding
    assert "dead" in made.html()


def test_scores_that_do_not_follow_the_schema_are_refused(make_scores):
    with pytest.raises(SchemaError, match="lack the variables"):
        report(make_scores(20).drop_vars("r2"))


def test_the_file_must_be_html(make_scores, tmp_path):
    with pytest.raises(ValueError, match=r"'\*\.html', but got 'report\.pdf'"):
        report(units(make_scores)).save(tmp_path / "report.pdf")


@pytest.mark.parametrize("failing", ["report.html", "scores.nc", ".nii.gz"])
def test_a_failed_save_leaves_old_files_and_no_halves(make_scores, tmp_path, monkeypatch, failing):
    path = tmp_path / "report.html"
    path.write_text("old")
    replace = os.replace

    def full(source, target):
        if str(target).endswith(failing):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        report(make_scores(40, space=None)).save(path)
    assert path.read_text() == "old"
    left = [file.name for file in tmp_path.iterdir() if "part" in file.name]
    assert left == []


def test_a_notebook_shows_the_page_in_a_frame(make_scores):
    shown = report(units(make_scores))._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert "<!doctype" not in shown
    assert "&lt;!doctype html&gt;" in shown


@pytest.mark.slow
def test_mni_scores_get_the_cortex_and_the_viewer(make_scores, tmp_path):
    path = report(make_scores(600)).save(tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    reader = Reader(page)
    assert reader.tags.count("img") >= 6 + 5
    ((_, stored),) = [pair for pair in reader.scripts if pair[0].get("id") == "viewer-data"]
    data = json.loads(stored)
    assert [roi["name"] for roi in data["rois"]] == ["V1", "V2", "V4", "IT"]
    assert len(data["names"]) == 11
    assert data["names"][data["chosen"]] == "layer2 of timm:resnet50.a1_in1k"
    assert all(target.startswith(SAFE_ATTRIBUTES) for _, target in reader.loaded)
    assert len(page) < 5_000_000
    assert "volume.html" in reader.links
    volume = (tmp_path / "volume.html").read_text()
    assert "</html>" in volume
    assert not re.search(r"""(?:src|href)=["']https?:""", volume)
    assert len(list(Path(tmp_path).glob("sub-01_space-MNI*_statmap.nii.gz"))) == 3


@pytest.mark.slow
def test_a_whole_brain_stays_small(make_scores, tmp_path):
    scores = make_scores(300_000, n_excluded=500)
    path = report(scores).save(tmp_path / "report.html")
    assert path.stat().st_size < 15_000_000
