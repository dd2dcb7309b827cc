"""Scores of layers that are kept on disk: found again for the same call, and for no other."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import neurodl as ndl
from neurodl.errors import NeurodlWarning
from neurodl.scores import _kept
from neurodl.scores._fits import Fits

IDS = [f"image{number}" for number in range(40)]


def simulated(seed=0, n_layers=3):
    rng = np.random.default_rng(seed)
    layers = {
        f"layer{number}": xr.DataArray(
            rng.standard_normal((40, 6)).astype("float32"),
            dims=("stimulus", "feature"),
            coords={"stimulus": IDS},
        )
        for number in range(n_layers)
    }
    values = layers["layer0"].values @ rng.standard_normal((6, 5)) + rng.standard_normal((40, 5))
    coords = {"stimulus": IDS}
    return layers, xr.DataArray(values, coords, ("stimulus", "unit"), attrs={"units": "spikes"})


@pytest.fixture
def computed(monkeypatch):
    """The layers that are scored, by their number of features and first value."""
    seen = []
    layer = Fits.layer

    def counted(self, features, advance):
        seen.append(float(features[0, 0]))
        return layer(self, features, advance)

    monkeypatch.setattr(Fits, "layer", counted)
    return seen


def same(one, other):
    ignored = {"created": ""}
    return one.assign_attrs(ignored).identical(other.assign_attrs(ignored))


@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
@pytest.mark.parametrize(
    "model",
    [
        ndl.RidgeCV(device="cpu"),
        ndl.BandedRidgeCV(device="cpu", refine=0),
        Ridge(),
        make_pipeline(StandardScaler(), Ridge(3.0)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_an_interrupted_call_goes_on_to_the_same_scores(model, tmp_path, monkeypatch, computed):
    layers, responses = simulated()
    whole = ndl.cross_validate(model, layers, responses, keep_predictions=True)
    n_layers = len(computed)
    layer, left = Fits.layer, n_layers - 1

    def stopped(self, *args):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return layer(self, *args)

    options = {"cache": tmp_path, "keep_predictions": True}
    with monkeypatch.context() as patch:
        patch.setattr(Fits, "layer", stopped)
        with pytest.raises(KeyboardInterrupt):
            ndl.cross_validate(model, layers, responses, **options)
    computed.clear()
    assert same(ndl.cross_validate(model, layers, responses, **options), whole)
    assert len(computed) == 1
    assert same(ndl.cross_validate(model, layers, responses, **options), whole)
    assert len(computed) == 1
    files = list((tmp_path / "scores").iterdir())
    assert len(files) == n_layers and {path.suffix for path in files} == {".scores"}


@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_anything_that_decides_numbers_is_scored_anew(tmp_path, computed, monkeypatch):
    layers, responses = simulated()
    one = {"layer0": layers["layer0"]}
    usual = {"model": ndl.RidgeCV(device="cpu"), "X": one, "responses": responses, "cv": 4}

    def is_new(**changed):
        computed.clear()
        ndl.cross_validate(**(usual | changed), cache=tmp_path)
        return bool(computed)

    assert is_new()
    assert not is_new()
    moved = one["layer0"].copy()
    moved[3, 2] += 1e-6
    assert is_new(X={"layer0": moved})
    assert not is_new(X={"renamed": one["layer0"]})
    other = responses.copy()
    other[7, 1] += 1e-6
    assert is_new(responses=other)
    assert not is_new(responses=responses.assign_attrs(units="Hz"))
    assert is_new(cv=5)
    assert is_new(cv=KFold(4, shuffle=True, random_state=1))
    assert is_new(groups=np.arange(40) // 2)
    assert is_new(keep_predictions=True)
    assert is_new(model=ndl.RidgeCV(device="cpu", scoring="r"))
    assert is_new(model=ndl.RidgeCV(np.logspace(0, 3, 2000), device="cpu"))
    grid = np.logspace(0, 3, 2000)
    grid[1000] *= 1.0001  # which a model's text leaves out
    assert is_new(model=ndl.RidgeCV(grid, device="cpu"))
    monkeypatch.setattr(_kept, "_code", lambda: "another version")
    assert is_new()
    assert not is_new()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert is_new()


def test_counts_and_warnings_are_those_of_the_first_time(tmp_path, computed):
    layers, responses = simulated()
    counts = responses.copy(data=np.random.default_rng(0).poisson(2.0, (40, 5)).astype(float))
    model = ndl.RidgeCV([1e-3, 1e-2], device="cpu")
    found = []
    for _ in range(2):
        with pytest.warns(NeurodlWarning, match="chose an edge"):
            found.append(
                ndl.cross_validate(model, layers, counts, metrics=["deviance"], cache=tmp_path)
            )
    assert same(*found)
    assert found[1].attrs["n_rates_raised"] > 0 and len(computed) == 3


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_what_is_damaged_is_scored_anew(tmp_path, computed, damage):
    layers, responses = simulated(n_layers=1)
    whole = ndl.cross_validate(Ridge(), layers, responses, cache=tmp_path)
    (path,) = (tmp_path / "scores").iterdir()
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes(flipped if damage is None else damage)
    assert same(ndl.cross_validate(Ridge(), layers, responses, cache=tmp_path), whole)
    assert len(computed) == 2
    assert path.read_bytes() == content


class Own(Ridge):
    """A model that may be another one tomorrow, under the same name."""


def test_models_from_elsewhere_are_not_kept(tmp_path, computed):
    layers, responses = simulated(n_layers=1)
    for model in (Own(), make_pipeline(Own()), ndl.RidgeCV(cv=Splitter(3), device="cpu")):
        for _ in range(2):
            ndl.cross_validate(model, layers, responses, cache=tmp_path)
    assert len(computed) == 6
    assert not (tmp_path / "scores").exists()


class Splitter(KFold):
    """Inner folds that may be others tomorrow."""


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, computed, caplog):
    layers, responses = simulated()
    (tmp_path / "scores").write_text("a file in the way")
    whole = ndl.cross_validate(Ridge(), layers, responses)
    assert same(ndl.cross_validate(Ridge(), layers, responses, cache=tmp_path), whole)
    assert caplog.text.count("Finished layers are not kept") == 1


def test_what_nobody_asked_for_goes(tmp_path, computed):
    layers, responses = simulated(n_layers=2)
    ndl.cross_validate(Ridge(), layers, responses, cache=tmp_path)
    old = time.time() - 31 * 86_400
    for path in (tmp_path / "scores").iterdir():
        os.utime(path, (old, old))
    ndl.cross_validate(Ridge(), {"layer0": layers["layer0"]}, responses, cache=tmp_path)
    assert len(computed) == 3
    assert len(list((tmp_path / "scores").iterdir())) == 1
