"""A new subject with few stimuli, and what adaptation did to the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from encoding_cases import (
    TRANSFORM,
    gaussian_responses,
    layer_output,
    perturbed,
    random_stimuli,
    small_backbone,
)
from sklearn.exceptions import NotFittedError

import neurodl as ndl
from neurodl.errors import PairingError, SchemaError, UnknownNameError

pytestmark = pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
OPTIONS = {
    "finetune": "all", "lr": 0.02, "core_lr": 5e-3, "readout_epochs": 60, "max_epochs": 30,
    "patience": 6, "device": "cpu",
}  # fmt: skip


def labelled(y, stimuli):
    return xr.DataArray(y, {"stimulus": stimuli.ids}, ("stimulus", "unit"), attrs={"units": "a.u."})


@pytest.fixture(scope="module")
def world():
    """A core that moved, a model tuned to one subject of it, and another subject."""
    backbone = small_backbone(width=8)
    stimuli = random_stimuli(700)
    output = layer_output(perturbed(backbone.module, 1.0), stimuli, "block2")
    first = gaussian_responses(output, 24, 0.3, seed=0)
    second = gaussian_responses(output, 6, 0.3, seed=1)
    model = ndl.NeuralEncoder(backbone, "block2", **OPTIONS)
    old = torch.utils.data.Subset(stimuli, range(400))
    model.fit(old, first[:400])
    new = stimuli.sel(stimuli.ids[400:])
    return model, new, labelled(second[400:], new), labelled(first[400:], new)


@pytest.mark.slow
def test_a_core_tuned_on_others_needs_fewer_stimuli(world):
    model, stimuli, responses, shared = world
    curve = ndl.few_shot_curve(
        model, stimuli, responses, [24, 96], shared=shared, readout="ridge", n_draws=2
    )
    r = curve["r"].mean(["draw", "unit"]).to_series().unstack()
    assert r.loc["tuned", 96] > r.loc["pretrained", 96] + 0.05
    assert r.loc["tuned", 96] > r.loc["tuned", 24]
    assert r.loc["procrustes", 24] > 0.2
    assert r.loc["ridge", 96] > 0.3
    assert curve["r"].dims == ("way", "draw", "n_stimuli", "unit")


def test_the_new_subject_s_readout_leaves_the_core_alone(world):
    model, stimuli, responses, _ = world
    fresh = model.for_new_subject(readout="ridge")
    assert fresh.finetune is None and not hasattr(fresh, "readout_")
    few = torch.utils.data.Subset(stimuli, range(60))
    fresh.fit(few, responses.values[:60])
    assert fresh.core_ == {}
    tuned = model.network().core.block2[0].weight
    assert torch.equal(fresh.network().core.block2[0].weight, tuned)
    assert "tuned on other responses" in fresh.describe()["weights"]


def test_wrong_use_of_the_curve_says_what_to_do(world):
    model, stimuli, responses, shared = world
    with pytest.raises(SchemaError, match="needs `shared`"):
        ndl.few_shot_curve(model, stimuli, responses, [20], ways=["procrustes"])
    with pytest.raises(UnknownNameError, match="`ways` must be among"):
        ndl.few_shot_curve(model, stimuli, responses, [20], ways=["magic"])
    with pytest.raises(SchemaError, match="from 8 to the 225 stimuli"):
        ndl.few_shot_curve(model, stimuli, responses, [400])
    with pytest.raises(SchemaError, match="has 23 targets, but the model was fitted to 24"):
        ndl.few_shot_curve(model, stimuli, responses, [20], shared=shared[:, :23])
    twice = responses.isel(stimulus=[*range(100), *range(100)])
    twice = twice.rename(stimulus="presentation").assign_coords(
        stimulus=("presentation", twice["stimulus"].values)
    )
    with pytest.raises(SchemaError, match="average them first"):
        ndl.few_shot_curve(model, stimuli, twice.drop_vars("presentation"), [20])
    with pytest.raises(NotFittedError):
        ndl.few_shot_curve(ndl.NeuralEncoder(small_backbone(), "block2"), stimuli, responses, [20])


# -- hyperalignment ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["procrustes", "ridge"])
def test_subjects_that_are_rotations_of_one_are_found_to_be(method, rng):
    truth = rng.standard_normal((120, 5))
    subjects = [
        truth @ np.linalg.qr(rng.standard_normal((12, 5)))[0].T[:5]
        + 0.1 * rng.standard_normal((120, 12))
        + rng.standard_normal(12)
        for _ in range(3)
    ]
    train, test = slice(0, 80), slice(80, 120)
    aligned = ndl.Hyperalignment(method, n_components=5).fit([one[train] for one in subjects])
    predicted = aligned.predict(subjects[0][test], source=0, target=2)
    r = [np.corrcoef(predicted[:, t], subjects[2][test][:, t])[0, 1] for t in range(12)]
    assert np.mean(r) > 0.85
    assert aligned.transform(subjects[1][test], 1).shape == (40, 5)


def test_procrustes_is_scipy_s(rng):
    from scipy.linalg import orthogonal_procrustes

    one, other = rng.standard_normal((2, 30, 4))
    rotation, _ = orthogonal_procrustes(one - one.mean(0), other - other.mean(0))
    model = ndl.Hyperalignment()
    found = model._map(one - one.mean(0), other - other.mean(0))
    np.testing.assert_allclose(found, rotation, atol=1e-10)


def test_alignment_needs_the_same_stimuli(rng):
    one = rng.standard_normal((30, 4))
    with pytest.raises(PairingError, match=r"\[30, 29\] stimuli"):
        ndl.Hyperalignment().fit([one, one[:29]])
    with pytest.raises(SchemaError, match="at least two subjects"):
        ndl.Hyperalignment().fit([one])
    with pytest.raises(SchemaError, match="without missing values"):
        ndl.Hyperalignment().fit([one, np.where(one > 2, np.nan, one)])
    with pytest.raises(SchemaError, match="from 1 to 4, but got 9"):
        ndl.Hyperalignment(n_components=9).fit([one, one])
    with pytest.raises(UnknownNameError, match="`method` must be"):
        ndl.Hyperalignment("svd").fit([one, one])


# -- alignment of kernels, forgetting ------------------------------------------------------------


def test_alignment_is_that_of_its_definition(rng):
    X, Y = rng.standard_normal((25, 40)), rng.standard_normal((25, 7))
    K, L = (one @ one.T for one in (X, Y))
    H = np.eye(25) - 1 / 25
    biased = np.trace(K @ H @ L @ H) / np.sqrt(np.trace(K @ H @ K @ H) * np.trace(L @ H @ L @ H))
    assert ndl.cka(X, Y, unbiased=False) == pytest.approx(biased)

    def hsic(K, L):
        K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
        n = len(K)
        ones = np.ones(n)
        return (
            np.trace(K @ L)
            + ones @ K @ ones * (ones @ L @ ones) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (ones @ K @ L @ ones)
        )

    centred = [one - one.mean(0) for one in (X, Y)]
    K, L = (one @ one.T for one in centred)
    expected = hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))
    assert ndl.cka(X, Y) == pytest.approx(expected)


def test_alignment_of_unrelated_features_is_zero_but_only_unbiased(rng):
    unbiased, plain = [], []
    for _ in range(40):
        X, Y = rng.standard_normal((2, 20, 200))
        unbiased.append(ndl.cka(X, Y))
        plain.append(ndl.cka(X, Y, unbiased=False))
    assert abs(np.mean(unbiased)) < 0.02
    assert np.mean(plain) > 0.8
    with pytest.raises(SchemaError, match="the same stimuli on both sides"):
        ndl.cka(X, Y[:19])


def test_forgetting_says_where_the_network_moved(world):
    model, stimuli, responses, _ = world
    some = stimuli.sel(stimuli.ids[:60])
    module = model.backbone.module
    with torch.no_grad():
        x = torch.stack([TRANSFORM(some[i]) for i in range(60)])
        some.table = some.table.assign(label=module(x).argmax(1).numpy())
        right = (model.network().core(x).argmax(1).numpy() == some.table["label"]).mean()
    found = ndl.forgetting(model, some, source=some)
    assert found["accuracy"].values.tolist() == pytest.approx([1.0, right])
    moved = found["cka"].to_series()
    assert moved["block2"] < 0.98 and moved.max() <= 1.0 + 1e-6
    assert found["weight_change"].to_series()[["stem", "block1", "block2"]].min() > 0.01
    assert found["weight_change"].sel(layer="head") == 0
    frozen = ndl.NeuralEncoder(model.backbone, "block2", readout="ridge", device="cpu")
    still = ndl.forgetting(frozen.fit(some, responses.values[:60]), some)
    np.testing.assert_allclose(still["cka"], 1, atol=1e-6)
    assert not still["weight_change"].values.any()


def test_forgetting_needs_labels_and_classes(world):
    model, stimuli, _, _ = world
    some = stimuli.sel(stimuli.ids[:10])
    with pytest.raises(SchemaError, match="column label"):
        ndl.forgetting(model, some, source=some)
