"""The part of a report that is about adaptation: its verdict, its table and its figures."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import neurodl as ndl
from neurodl.reports.adaptation import adaptation_context, verdicts
from neurodl.scores.paired import over_targets, roi_masks

NAMES = ["ridge", "ridge, all layers", "readout", "all", "all + ridge, all layers"]


def compared(tuned, *, curve=False, rois=True, backbones=("net",)):
    """Return scores as of `compare`, in which tuning adds `tuned` to r = 0.4."""
    rng = np.random.default_rng(0)
    n = 40
    base = 0.4 + 0.1 * rng.standard_normal((3, n))
    added = {"ridge": 0, "ridge, all layers": 0.01, "readout": 0.0, "all": tuned}
    rows = [
        base + added.get(name, tuned) + 0.02 * rng.standard_normal((3, n))
        for _ in backbones
        for name in NAMES
    ]
    r = np.array(rows, "f4")
    labels = [f"{net}/{name}" for net in backbones for name in NAMES]
    reference = [len(NAMES) * (i // len(NAMES)) for i in range(len(labels))]
    areas = np.array(["V4"] * 20 + ["IT"] * 20)
    masks = roi_masks(areas if rois else None, n)
    gain, low, high, share = over_targets(r.mean(1), r.mean(1)[reference], masks, 200, 0)
    dims = ("gain_roi", "layer")
    data = {
        "r": (("layer", "fold", "unit"), r),
        "r2": (("layer", "fold", "unit"), r**2),
        "gain": (dims, gain),
        "gain_low": (("over", *dims), np.stack([low, low - 0.01])),
        "gain_high": (("over", *dims), np.stack([high, high + 0.01])),
        "share_better": (dims, share),
    }
    coords = {
        "layer": labels,
        "fold": [0, 1, 2],
        "adaptation": ("layer", NAMES * len(backbones)),
        "backbone": ("layer", [net for net in backbones for _ in NAMES]),
        "gain_roi": list(masks),
        "over": ["targets", "stimuli"],
    }
    if rois:
        coords["roi"] = ("unit", areas)
    if curve:
        data["r_by_n_train"] = (("n_train", "layer", "fold", "unit"), np.stack([0.5 * r, r]))
        for key, values in (("", gain), ("_low", low), ("_high", high)):
            data[f"gain_by_n_train{key}"] = (("n_train", *dims), np.stack([values - 0.5, values]))
        coords["n_train"] = [100, 400]
    return xr.Dataset(data, coords, attrs={"seed": 0})


@pytest.mark.parametrize(
    ("tuned", "verdict"),
    [(0.1, "fine-tuning wins"), (-0.1, "fine-tuning loses"), (0.01, "neither wins nor loses")],
)
def test_the_verdict_says_who_wins_against_the_best_frozen_model(tuned, verdict):
    scores = compared(tuned)
    (said,) = verdicts(scores, ndl.comparison_table(scores))
    assert verdict in said and "the best frozen model (ridge, all layers)" in said
    shown = adaptation_context(scores)["verdicts"][0]
    assert shown.replace("\u00a0", " ") == said


def test_the_verdict_says_from_how_many_stimuli_on():
    scores = compared(0.1, curve=True)
    (said,) = verdicts(scores, ndl.comparison_table(scores))
    assert said.endswith("It beats ridge regression on its layer from 400 stimuli on.")


def test_the_page_shows_table_and_figures():
    page = ndl.report(compared(0.1, curve=True, backbones=("net", "other"))).html()
    assert "difference in mean r to ridge regression" in page
    assert page.count('<th scope="row">ridge</th>') == 2 * 3  # two networks, three regions
    assert "training stimuli" in page and "Along the layers" not in page
    plain = ndl.report(compared(0.1, rois=False)).html()
    assert "better from" not in plain
    assert "Adaptation" not in ndl.report(compared(0.1)[["r", "r2"]]).html()


def test_it_is_saved_and_loaded_with_its_gains(tmp_path):
    scores = compared(0.1, curve=True)
    path = ndl.report(scores).save(tmp_path / "report.html")
    again = ndl.load(path.with_name("scores.nc"))
    xr.testing.assert_allclose(again["gain"], scores["gain"])
    assert adaptation_context(again)["verdicts"] == adaptation_context(scores)["verdicts"]


def test_constant_predictions_are_no_verdict():
    scores = compared(0.1)
    scores["r"].loc[{"layer": "net/all"}] = np.nan
    scores["r"].loc[{"layer": "net/all + ridge, all layers"}] = np.nan
    (said,) = verdicts(scores, ndl.comparison_table(scores))
    assert said == "net: tuned or frozen models predict nothing but constants."


def test_without_tuned_networks_there_is_no_verdict():
    scores = compared(0.1).isel(layer=[0, 1, 2])
    assert adaptation_context(scores)["verdicts"] == []
    assert "Every condition" in ndl.report(scores).html()
