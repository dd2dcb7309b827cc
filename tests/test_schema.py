"""The schema: what follows it passes unchanged, what does not is named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neurodl.errors import SchemaError
from neurodl.schema import check_features, check_responses, check_scores, target_dim


def responses(dims=("stimulus", "unit"), shape=(3, 2), dtype="float32", attrs=None, **coords):
    coords = {"stimulus": (dims[0], ["a", "b", "c"]), **coords}
    coords = {name: value for name, value in coords.items() if value is not None}
    attrs = {"units": "spikes"} if attrs is None else attrs
    return xr.DataArray(np.zeros(shape, dtype), dims=dims, coords=coords, attrs=attrs)


def series(times, **coords):
    return xr.DataArray(
        np.zeros((len(times), 2), "float32"),
        dims=("time", "voxel"),
        coords={"time": np.asarray(times), **coords},
        attrs={"units": "BOLD", "tr": 2.0},
    )


@pytest.mark.parametrize(
    "good",
    [
        responses(),
        responses(("presentation", "channel"), stimulus=("presentation", ["a", "a", "b"])),
        responses(("stimulus", "repeat", "voxel"), (3, 4, 2)),
        responses(("stimulus", "time", "unit"), (3, 4, 2), attrs={"units": "Hz", "bin_width": 0.1}),
        series([0.0, 2.0, 4.0]),
        series([0.0, 2.0, 0.0], run=("time", ["1", "1", "2"])),
    ],
)
def test_responses_that_follow_it_pass_unchanged(good):
    assert check_responses(good) is good


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((3, 2)), r"must be an xarray.DataArray, but got ndarray.*from_files"),
        (responses(dtype="int64"), r"dtype int64.*astype"),
        (responses(("unit", "stimulus"), (2, 3), stimulus=("stimulus", list("abc"))),
         r"first dim must be one of .*'unit'"),
        (responses(("stimulus", "neuron")), r"exactly one target dim out of"),
        (responses(("stimulus", "unit", "voxel"), (3, 2, 2)), "exactly one target dim"),
        (responses(("stimulus", "session", "unit"), (3, 2, 2)), r"unknown dims \['session'\]"),
        (responses(("stimulus", "unit", "repeat"), (3, 2, 2)),
         r"order must be \('stimulus', 'repeat', 'unit'\). Use responses.transpose"),
        (responses(shape=(3, 0)), "are empty"),
        (responses(stimulus=None), "lack the coord 'stimulus' along their dim 'stimulus'"),
        (responses(stimulus=("stimulus", [1, 2, 3])), r"must be strings, but 3 are not, e.g. 1"),
        (responses(stimulus=("stimulus", ["a", "b", "a"])),
         r"1 stimulus ids repeat along dim 'stimulus' \('a'\)"),
        (responses(attrs={}), "lack the attr 'units'"),
        (responses(("stimulus", "time", "unit"), (3, 4, 2)), "need the attr 'tr' or 'bin_width'"),
        (responses(attrs={"units": "a", "subject": None}), r"attr 'subject' is None \(NoneType\)"),
        (responses(attrs={"units": "a", "ok": True}), "attr 'ok' is True"),
        (responses(attrs={"units": "a", "x": {"y": 1}}), "attr 'x' is"),
        (responses(attrs={"units": "a", "x": [[1, 2]]}), "flat lists"),
        (series([0.0, 2.0, 0.0]), r"'time' does not rise at row 2 \(2 s, then 0 s\).*'run'"),
        (series(["a", "b"]), "must be in seconds"),
        (series([0.0, np.nan, 4.0]), "'time' is not finite in 1 rows, first 1"),
    ],
)  # fmt: skip
def test_responses_that_do_not_are_named(bad, message):
    with pytest.raises(SchemaError, match=message):
        check_responses(bad)


def test_infinite_values_and_multiindexes_are_errors():
    bad = responses()
    bad[1, 0] = -np.inf
    with pytest.raises(SchemaError, match=r"infinite values in 1 rows \('b'\)"):
        check_responses(bad)
    index = pd.MultiIndex.from_tuples([("a", 1), ("b", 1), ("c", 1)], names=["image", "run"])
    coords = xr.Coordinates.from_pandas_multiindex(index, "stimulus")
    stacked = xr.DataArray(np.zeros((3, 2)), dims=("stimulus", "unit"), coords=coords)
    with pytest.raises(SchemaError, match="is a MultiIndex; use one coord per level"):
        check_responses(stacked)


def features(ids=("a", "b"), dims=("stimulus", "feature"), fill=0.0, **attrs):
    values = np.full((len(ids), 3), fill, "float32")
    return xr.DataArray(values, dims=dims, coords={dims[0]: list(ids)}, attrs=attrs)


def test_one_array_is_filed_under_its_layer():
    assert list(check_features(features(layer="conv1"))) == ["conv1"]
    assert list(check_features(features())) == ["features"]
    assert list(check_features({"b": features(), "a": features()})) == ["b", "a"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "non-empty mapping"),
        ([1], "but got list"),
        ({"x": features(dims=("stimulus", "unit"))}, r"features\['x'\] have dims"),
        ({"x": features(), "y": features(("b", "a"))}, r"features\['y'\] have other ids"),
        ({"x": features(("a", "a"))}, "ids repeat"),
        ({"x": features(fill=np.nan)}, r"NaN or infinite values in 2 rows \('a', 'b'\).*amp"),
    ],
)
def test_features_that_do_not_are_named(bad, message):
    with pytest.raises(SchemaError, match=message):
        check_features(bad)


def scores(dims=("layer", "fold", "unit"), fill=0.5, layers=("a", "b"), **more):
    shape = tuple({"layer": 2, "fold": 3, "unit": 4}.get(dim, 2) for dim in dims)
    coords = {"layer": list(layers)} if "layer" in dims else {}
    r = xr.DataArray(np.full(shape, fill), dims=dims, coords=coords)
    return xr.Dataset({"r": r, "r2": r, **more})


def test_scores_with_and_without_layers_pass_unchanged():
    for good in (scores(), scores(("fold", "unit")), scores(fill=np.nan)):
        assert check_scores(good) is good


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (scores()["r"], "must be an xarray.Dataset, but got DataArray"),
        (scores().drop_vars("r2"), r"lack the variables \['r2'\]"),
        (scores(("fold", "layer", "unit")), r"has dims \('fold', 'layer', 'unit'\); they must be"),
        (scores(fill=1.2), "outside"),
        (scores(ceiling=("unit", [0.1, 0.2, 3.0, 0.4])), r"scores\['ceiling'\] holds values"),
        (scores(layers=("a", "a")), r"layer names repeat: 'a'"),
        (scores().assign_attrs(seed=None), "attr 'seed' is None"),
    ],
)
def test_scores_that_do_not_are_named(bad, message):
    with pytest.raises(SchemaError, match=message):
        check_scores(bad)


def test_the_page_and_the_code_name_the_same_dims():
    from pathlib import Path

    from neurodl.schema import SAMPLE_DIMS, TARGET_DIMS

    page = (Path(__file__).parents[1] / "docs" / "schema.md").read_text()
    for name in (*SAMPLE_DIMS, *TARGET_DIMS, "repeat"):
        assert f"`{name}`" in page
    assert target_dim(responses()) == "unit"
