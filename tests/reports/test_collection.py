"""Several runs on one page."""

from __future__ import annotations

import numpy as np
import pytest
from report_cases import predicted

import neurodl as ndl
from neurodl.errors import MissingFileError
from neurodl.reports.collection import collect

LAYERS = {"timm:net": ["a", "b"]}


def subjects(make_scores, n=3):
    """Return scores of subjects of the same study."""
    return [
        make_scores(120, backbones=LAYERS, space=None, seed=seed).assign_attrs(
            subject=f"{seed:02d}"
        )
        for seed in range(n)
    ]


def test_the_table_has_the_best_layer_of_each_run(make_scores):
    runs = subjects(make_scores)
    made = ndl.report(runs)
    assert [run.label for run in made.runs] == [f"simulated, subject {n:02d}" for n in range(3)]
    for run, scores in zip(made.runs, runs, strict=True):
        own = made.table[(made.table["run"] == run.label) & (made.table["roi"] == "all")]
        r = scores["r"].mean("fold").mean("voxel")
        assert own["r"].item() == pytest.approx(r.max().item(), abs=1e-6)
        assert own["layer"].item() == r["layer"].values[r.values.argmax()]


def test_subjects_are_averaged_as_group_level_does(make_scores):
    runs = subjects(make_scores)
    made = ndl.report(runs, title="Three")
    expected = ndl.group_level(runs)
    assert not made.over_subjects.duplicated(["layer", "roi"]).any()
    found = made.over_subjects.set_index(["layer", "roi"])["mean"].to_dict()
    for layer in expected["layer"].values:
        for roi in expected["roi_name"].values:
            value = expected["mean"].sel(layer=layer, roi_name=roi).item()
            assert found[layer, roi] == pytest.approx(value)
    assert "Over 3 subjects" in made.finding
    assert made.paired is None
    assert ndl.report([runs[0], runs[0]]).over_subjects is None


def test_runs_of_the_same_targets_are_paired(make_scores):
    one = make_scores(120, backbones=LAYERS, space=None)
    other = one.copy(deep=True)
    other["r"] = one["r"] - 0.1
    made = ndl.report([other, one])
    assert made.paired["network"].tolist() == [
        "simulated, subject 01 (2)",
        "simulated, subject 01 (1)",
    ]
    assert made.paired["difference"].tolist()[1] == pytest.approx(-0.1, abs=1e-6)
    moved = one.assign_coords(i=("voxel", one["i"].values[::-1]))
    assert ndl.report([one, moved]).paired is None
    assert ndl.report([one, one.isel(fold=slice(3))]).paired is None
    nameless = one.drop_vars(list("ijkxyz"))
    assert ndl.report([nameless, nameless]).paired is None


def test_predictions_of_runs_are_tested_where_the_rows_are_the_same():
    scores = predicted()
    runs = [scores.sel(layer=[name]) for name in ("poor", "good")]
    made = ndl.report(runs)
    tested = ndl.difference_test(runs[1], runs[0])
    assert made.paired["p"][1] == pytest.approx(tested["roi_p"].values[0], abs=0.02)
    shifted = runs[0].assign_coords(tested_in=(runs[0]["tested_in"] + 1) % 5)
    assert ndl.report([runs[1], shifted]).paired["p"].isna().all()


def test_folders_become_an_index_with_links(make_scores, tmp_path, run):
    for number, scores in enumerate(subjects(make_scores, 2)):
        ndl.save(scores, tmp_path / "results" / f"run {number}" / "scores.nc")
    status, printed, _ = run("report", *sorted((tmp_path / "results").iterdir()))
    assert status == 0
    page = (tmp_path / "results" / "index.html").read_text()
    assert 'href="run%200/report.html"' in page
    assert (tmp_path / "results" / "run 1" / "report.html").is_file()
    assert (tmp_path / "results" / "index.tsv").is_file()
    again = run("report", *sorted((tmp_path / "results").iterdir()))
    assert again[:2] == (status, printed)
    assert run("report", tmp_path / "results")[1] == printed


def test_what_is_not_there_is_said(tmp_path, run, make_scores):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="holds no results"):
        collect([tmp_path / "empty"])
    with pytest.raises(MissingFileError, match="does not exist"):
        collect([tmp_path / "none.nc"])
    with pytest.raises(ValueError, match="no runs"):
        ndl.report([])
    with pytest.raises(ValueError, match="belong to one run"):
        ndl.report([make_scores(20, space=None)], notes=["x"])
    assert run("report", tmp_path / "empty")[0] == 1


def test_names_are_escaped(make_scores):
    scores = make_scores(40, areas=["<i>V1", "V4"], backbones=LAYERS, space=None)
    page = ndl.report([scores.assign_attrs(experiment="<script>"), scores]).html()
    assert "<script>," not in page
    assert "<i>V1" not in page
    assert "&lt;i&gt;V1" in page


def test_many_runs_without_a_score_are_counted(make_scores):
    scores = make_scores(40, backbones=LAYERS, space=None)
    scores["r"] = scores["r"] * np.nan
    assert ndl.report([scores, scores]).finding == "Nothing could be scored in 2 runs."
