"""What a report says about its run, from the scores' attrs and coords and the experiment."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from neurodl.datasets.experiment import Experiment
from neurodl.reports import provenance
from neurodl.stimuli import Stimuli


def test_what_was_run_counts_stimuli_and_exclusions(make_scores):
    ids = [f"image{n}" for n in range(4)]
    responses = xr.DataArray(
        np.zeros((4, 2), "float32"),
        dims=("stimulus", "unit"),
        coords={"stimulus": ids},
        attrs={"units": "spikes / s"},
    )
    stimuli = Stimuli.from_arrays(np.zeros((4, 8, 8, 3), np.uint8), ids)
    experiment = Experiment(
        stimuli, responses, name="mine", card={"licence": "CC0", "modality": "spikes"}
    )
    scores = make_scores(90, n_excluded=6)
    facts = dict(provenance.what_was_run(scores, experiment))
    assert facts["Stimuli"] == "4 images"
    assert facts["Samples"] == "1,200"
    fewer = provenance.what_was_run(scores.assign_attrs(n_samples=4, n_repeats=3), experiment)
    assert dict(fewer)["Samples"] == "4 stimuli, 3 repeats"
    expected = "90 voxels: 84 scored, 6 excluded (4 constant, 2 with missing values)"
    assert facts["Targets"].startswith(expected)
    assert facts["Cross-validation"] == "5 folds by run; 240 test samples each"
    assert facts["Seed"] == "0"
    assert facts["Device"] == "cpu (2 threads)"
    cited = provenance.citations(scores, experiment)
    assert ("data: licence", "CC0") in cited
    assert "data: modality" not in dict(cited)
    card = dict(provenance.provenance_rows(None, experiment))["data card"]
    assert ("modality", "spikes") in card


def test_attrs_that_the_report_does_not_know_are_shown(make_scores):
    scores = make_scores(20).assign_attrs(smoothing=4.5, contrast=[1.0, -1.0])
    facts = dict(provenance.what_was_run(scores, None))
    assert (facts["smoothing"], facts["contrast"]) == ("4.5", "1, -1")
    assert "affine" not in facts


@pytest.mark.parametrize(("sizes", "text"), [([10, 10], "10"), ([9, 10], "9 to 10")])
def test_test_set_sizes(make_scores, sizes, text):
    scores = make_scores(20, n_folds=2).assign_coords(n_test=("fold", sizes))
    facts = dict(provenance.what_was_run(scores, None))
    assert facts["Cross-validation"] == f"2 folds by run; {text} test samples each"


def test_networks_are_listed_with_what_their_layers_share(make_scores):
    rows = provenance.backbone_rows(make_scores(20))
    assert [row["name"] for row in rows][-1] == "gabor"
    assert rows[0]["layers"] == "4"
    assert rows[0]["weights"] == "resnet50.a1_in1k (published)"
    assert rows[-1]["weights"] == "none (fixed filters)"
    one = provenance.backbone_rows(make_scores(20).isel(layer=0))
    assert one[0]["transform"] == "resize 256, crop 224, bicubic"


def test_provenance_keeps_sections_and_adds_versions():
    given = {"study": "study.toml", "hashes": {"responses": "ab12"}}
    sections = dict(provenance.provenance_rows(given))
    assert sections["run"] == [("study", "study.toml")]
    assert sections["hashes"] == [("responses", "ab12")]
    assert "numpy" in dict(sections["versions that made this page"])


def test_folds_units_and_times_read_as_text(make_scores):
    scores = make_scores(20).assign_attrs(
        cv="ShuffleSplit(5)", bin_width=0.05, groups="none", created="2026-01-02T03:04:05+00:00"
    )
    facts = dict(provenance.what_was_run(scores, None))
    assert facts["Cross-validation"] == "5 folds (ShuffleSplit(5)); 240 test samples each"
    assert facts["Responses"] == "z-scored BOLD, TR 2 s, bins of 0.05 s, MNI152NLin2009cAsym"
    assert facts["Computed"] == "2026-01-02 03:04, neurodl 0.1.0"


@pytest.mark.parametrize(
    ("cv", "groups", "expected"),
    [
        ("5 folds", "run", "5 folds by run"),
        ("5 shuffled folds", "none", "5 shuffled folds"),
        ("5 folds, one group each, by run", "run", "5 folds, one group each, by run"),
        ("LeaveOneOut()", "none", "5 folds (LeaveOneOut())"),
        ("5 folds", "given", "5 folds by given groups"),
    ],
)
def test_the_folds_are_said_once(make_scores, cv, groups, expected):
    scores = make_scores(20).assign_attrs(cv=cv, groups=groups).drop_vars("n_test")
    assert dict(provenance.what_was_run(scores, None))["Cross-validation"] == expected


def test_long_lists_are_cut(make_scores):
    scores = make_scores(20).assign_attrs(delays=list(range(12)))
    facts = dict(provenance.what_was_run(scores, None))
    assert facts["delays"] == "0, 1, 2, 3, 4, 5, 6, 7 ..."
