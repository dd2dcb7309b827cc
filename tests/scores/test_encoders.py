"""cross_validate of fine-tuned encoding models: stimuli in the place of features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from encoding_cases import gaussian_responses, layer_output, random_stimuli, small_backbone

import neurodl as ndl
from neurodl import metrics
from neurodl.errors import NeurodlWarning, PairingError, SchemaError
from neurodl.scores.splits import make_splits

pytestmark = pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
FAST = {"readout_epochs": 4, "max_epochs": 1, "lr": 0.02, "device": "cpu"}


@pytest.fixture(scope="module")
def backbone():
    return small_backbone()


@pytest.fixture(scope="module")
def stimuli():
    return random_stimuli(60)


@pytest.fixture(scope="module")
def responses(backbone, stimuli):
    y = gaussian_responses(layer_output(backbone.module, stimuli, "block2"), 4, 0.3)
    coords = {"stimulus": stimuli.ids, "roi": ("unit", ["V1", "V1", "IT", "IT"])}
    return xr.DataArray(y, coords, ("stimulus", "unit"), attrs={"units": "a.u."})


def encoder(backbone, **changes):
    return ndl.NeuralEncoder(backbone, "block2", **(FAST | changes))


def by_hand(model, stimuli, y, splits):
    """Fit and predict fold by fold, and score what was recorded."""
    rows = []
    for train, test in splits:
        part = torch.utils.data.Subset(stimuli, train)
        fitted = model.fit(part, y[train])
        predicted = fitted.predict(torch.utils.data.Subset(stimuli, test))
        known = np.isfinite(y[test])
        rows.append(
            [
                np.corrcoef(predicted[known[:, t], t], y[test][known[:, t], t])[0, 1]
                for t in range(y.shape[1])
            ]
        )
    return np.array(rows)


def test_stimuli_are_paired_by_id_and_scored_in_the_same_folds(backbone, stimuli, responses):
    model = encoder(backbone, finetune="all")
    order = np.random.default_rng(0).permutation(60)[:50]
    scores = ndl.cross_validate(model, stimuli, responses[order], cv=3, keep_predictions=True)
    features = ndl.extract_features(backbone, stimuli, "block2", pool="flatten")
    ridge = ndl.cross_validate(
        ndl.RidgeCV(device="cpu"), features, responses[order], cv=3, keep_predictions=True
    )
    assert scores["layer"].values.tolist() == ["block2"]
    assert scores.attrs["cv"] == ridge.attrs["cv"]
    xr.testing.assert_equal(scores["observed"], ridge["observed"])
    splits, _, _ = make_splits(responses[order], 3)
    absolute = [(order[train], order[test]) for train, test in splits]
    # The same rows in the same order give the same model, in one go or fold by fold.
    expected = by_hand(model, stimuli, responses.values, absolute)
    np.testing.assert_allclose(scores["r"].values[0], expected, atol=2e-3)
    assert str(scores["backbone"].values[0]) == "own:SmallNet"


def test_a_frozen_ridge_readout_scores_as_ridge_does(backbone, stimuli, responses):
    model = ndl.NeuralEncoder(backbone, "block2", readout="ridge", device="cpu")
    features = ndl.extract_features(backbone, stimuli, "block2", pool="flatten")
    tuned = ndl.cross_validate(model, stimuli, responses)
    ridge = ndl.cross_validate(ndl.RidgeCV(device="cpu"), features, responses)
    np.testing.assert_allclose(tuned["r"], ridge["r"], atol=1e-4)


def test_targets_are_scored_where_they_were_recorded(backbone, stimuli, responses):
    some = responses.copy()
    some[::2, 0] = np.nan
    some[:40, 1] = np.nan
    some[:, 2] = np.nan
    model = encoder(backbone)
    scores = ndl.cross_validate(model, stimuli, some, cv=4)
    splits, _, _ = make_splits(some, 4)
    assert scores.attrs["n_missing"] == 1 and np.isnan(scores["r"].values[..., 2]).all()
    expected = by_hand(model, stimuli, some.values[:, [0, 1, 3]], splits)
    np.testing.assert_allclose(scores["r"].values[0][:, [0, 1, 3]], expected, atol=2e-3)
    with_features = ndl.cross_validate(
        ndl.RidgeCV(device="cpu"),
        ndl.extract_features(backbone, stimuli, "block2"),
        some,
        cv=4,
    )
    assert with_features.attrs["n_missing"] == 3


def test_presentations_stay_on_one_side(backbone, stimuli, responses):
    rows = np.repeat(np.arange(30), 2)
    shown = xr.DataArray(
        responses.values[rows] + 0.1 * np.random.default_rng(0).standard_normal((60, 4)),
        {"stimulus": ("presentation", np.array(stimuli.ids)[rows])},
        ("presentation", "unit"),
        attrs={"units": "a.u."},
    )
    scores = ndl.cross_validate(encoder(backbone), stimuli, shown, cv=3)
    assert np.isfinite(scores["r"]).all() and "ceiling" in scores


def test_ceilings_of_training_rows_weigh_targets(backbone, stimuli, responses, monkeypatch):
    seen = []
    real = ndl.NeuralEncoder._weights

    def spied(self, n_targets, ceiling):
        seen.append(np.asarray(ceiling))
        return real(self, n_targets, ceiling)

    monkeypatch.setattr(ndl.NeuralEncoder, "_weights", spied)
    rng = np.random.default_rng(0)
    noise = np.array([0.1, 0.5, 1.0, 2.0])
    repeated = xr.DataArray(
        responses.values[:, None] + noise * rng.standard_normal((60, 3, 4)),
        {"stimulus": stimuli.ids},
        ("stimulus", "repeat", "unit"),
        attrs={"units": "a.u."},
    )
    model = encoder(backbone, target_weights="ceiling")
    ndl.cross_validate(model, stimuli, repeated, cv=3)
    assert len(seen) == 3 and np.ptp([one[3] for one in seen]) > 0  # each fold has its own
    assert (np.diff(np.mean(seen, 0)) < 0).all()
    published = xr.DataArray([0.9, 0.8, 0.1, 0.2], dims="unit")
    ndl.cross_validate(model, stimuli, responses, cv=2, ceiling=published)
    np.testing.assert_allclose(seen[-1], published, rtol=1e-6)
    with pytest.raises(SchemaError, match="needs repeats in the responses"):
        ndl.cross_validate(model, stimuli, responses, cv=2)


def test_wrong_inputs_say_what_to_do(backbone, stimuli, responses):
    features = ndl.extract_features(backbone, stimuli, "block2")
    with pytest.raises(SchemaError, match="RidgeCV takes features, but got stimuli"):
        ndl.cross_validate(ndl.RidgeCV(), stimuli, responses)
    with pytest.raises(SchemaError, match="NeuralEncoder takes stimuli"):
        ndl.cross_validate(encoder(backbone), features, responses)
    with pytest.raises(PairingError, match="have no features"):
        ndl.cross_validate(encoder(backbone), stimuli.sel(stimuli.ids[:10]), responses)


def test_flips_warn_of_retinotopic_regions(backbone, stimuli, responses):
    model = encoder(backbone, augment=["RandomHorizontalFlip"])
    with pytest.warns(NeurodlWarning, match="V1 are"):
        ndl.cross_validate(model, stimuli, responses, cv=2)


def test_scores_of_known_rows_are_those_of_whole_targets(rng):
    from neurodl.scores._fits import over_known

    predicted, observed = (torch.as_tensor(rng.standard_normal((20, 5))) for _ in range(2))
    whole = over_known(metrics.r2, predicted, observed)
    observed[3, 2] = torch.nan
    some = over_known(metrics.r2, predicted, observed)
    np.testing.assert_allclose(some[[0, 1, 3, 4]], whole[[0, 1, 3, 4]])
    rows = np.arange(20) != 3
    assert some[2] == pytest.approx(float(metrics.r2(predicted[rows], observed[rows])[2]))
