"""Parts of the explained variance, against explicit fits and planted truth; layer profiles."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold

import neurodl as ndl
from neurodl.errors import PairingError, SchemaError
from neurodl.scores import layer_profile, variance_partition


def spaces_of(values):
    ids = [f"s{row}" for row in range(len(next(iter(values.values()))))]
    return {
        name: xr.DataArray(
            np.asarray(array, np.float64), {"stimulus": ids}, ("stimulus", "feature")
        )
        for name, array in values.items()
    }


def responses_of(values, **coords):
    ids = [f"s{row}" for row in range(len(values))]
    return xr.DataArray(
        np.asarray(values, np.float32),
        {"stimulus": ids} | coords,
        ("stimulus", "unit"),
        attrs={"units": "a.u."},
    )


@pytest.mark.parametrize("n_spaces", [2, 3, 4])
def test_parts_are_those_of_nested_fits_and_sum_to_the_whole(rng, n_spaces):
    values = {name: rng.standard_normal((60, 3)) for name in "abcd"[:n_spaces]}
    values["b"] = values["b"] + values["a"]
    y = np.hstack(list(values.values())) @ rng.standard_normal((3 * n_spaces, 4))
    y += rng.standard_normal(y.shape)
    found = variance_partition(spaces_of(values), responses_of(y), Ridge(), cv=3)
    expected = {}
    for size in range(1, n_spaces + 1):
        for some in combinations(values, size):
            X = np.hstack([values[name] for name in some])
            scores = []
            for train, test in KFold(3, shuffle=True, random_state=0).split(X):
                fit = Ridge().fit(X[train], y[train].astype(np.float32))
                scores.append(
                    r2_score(
                        y[test].astype(np.float32), fit.predict(X[test]), multioutput="raw_values"
                    )
                )
            expected[frozenset(some)] = np.array(scores)
    for some, scores in expected.items():
        name = " & ".join(one for one in values if one in some)
        np.testing.assert_allclose(found["r2"].sel(subset=name), scores, atol=1e-5)
    whole = expected[frozenset(values)]
    np.testing.assert_allclose(found["explained"].sum("part"), whole, atol=1e-5)
    for name in values:
        unique = whole - expected.get(frozenset(values) - {name}, 0)
        np.testing.assert_allclose(found["unique"].sel(space=name), unique, atol=1e-5)
        # Everything that a space is part of is what it explains alone.
        of_it = [part for part in found["part"].values if name in part.split(" & ")]
        alone = found["explained"].sel(part=of_it).sum("part")
        np.testing.assert_allclose(alone, expected[frozenset([name])], atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        ndl.RidgeCV(device="cpu"),
        ndl.BandedRidgeCV(refine=0, device="cpu"),
    ],
)
def test_planted_parts_are_found(rng, model):
    """20 % only a, 30 % only b, 30 % what both have, 20 % noise."""
    a, b, both = (rng.standard_normal((1500, 3)) for _ in range(3))
    signal = sum(
        share**0.5 * part @ np.linalg.qr(rng.standard_normal((3, 3)))[0]
        for share, part in ((0.2, a), (0.3, b), (0.3, both))
    )
    y = signal + 0.2**0.5 * rng.standard_normal((1500, 3))
    spaces = spaces_of({"a": np.hstack([a, both]), "b": np.hstack([b, both])})
    found = variance_partition(spaces, responses_of(y), model, cv=3)
    parts = found["explained"].mean(["fold", "unit"]).values
    np.testing.assert_allclose(parts, [0.2, 0.3, 0.3], atol=0.03)
    if "r2_by_band" in found:
        np.testing.assert_allclose(
            found["r2_by_band"].sum("space"), found["r2"].sel(subset="a & b"), atol=0.02
        )


def test_an_unrelated_space_has_no_part(rng):
    a, b = rng.standard_normal((2, 400, 5))
    y = a @ rng.standard_normal((5, 6)) + rng.standard_normal((400, 6))
    found = variance_partition(spaces_of({"a": a, "b": b}), responses_of(y))
    unique, _, shared = found["explained"].mean(["fold", "unit"]).values
    assert unique > 0.6
    assert abs(found["unique"].sel(space="b").mean()) < 0.02
    assert abs(shared) < 0.02


def test_spaces_are_2_to_5(rng):
    values = {name: rng.standard_normal((30, 2)) for name in "abcdef"}
    y = responses_of(rng.standard_normal((30, 2)))
    for names in ("a", "abcdef"):
        with pytest.raises(SchemaError, match="2 to 5 feature spaces"):
            variance_partition(spaces_of({name: values[name] for name in names}), y)


# Layer profiles


def scores_of(r, **attrs):
    n_layers, _, n_units = r.shape
    return xr.Dataset(
        {name: (("layer", "fold", "unit"), r.astype(np.float32)) for name in ("r", "r2")},
        {
            "layer": [f"layer{k}" for k in range(n_layers)],
            "roi": ("unit", np.repeat(["V1", "IT"], n_units // 2)),
        },
        attrs,
    )


def bump(centre, n_layers=9):
    position = np.linspace(0, 1, n_layers)
    return 0.5 * np.exp(-((position - centre) ** 2) / 0.02)


def two_regions(rng, noise=0.05):
    r = np.stack([bump(0.3)] * 40 + [bump(0.7)] * 40, 1)
    return r[:, None] + noise * rng.standard_normal((9, 4, 80))


def test_centres_lie_where_the_regions_are_predicted(rng):
    found = layer_profile(scores_of(two_regions(rng)))
    centre = found["centre"].sel(roi_name=["V1", "IT"]).values
    np.testing.assert_allclose(centre, [0.3, 0.7], atol=0.05)
    for roi in ("V1", "IT"):
        one = found.sel(roi_name=roi)
        assert one["centre_low"] < one["centre"] < one["centre_high"]
        assert one["best_share"].sum() == 1
    # Layers 2 and 3 are as good for V1: the best one jumps, the centre does not.
    assert float(found["centre_high"].sel(roi_name="V1")) < 0.35
    assert float(found["centre_low"].sel(roi_name="IT")) > 0.65
    assert found["target_centre"].shape == (80,)
    assert found.attrs["over"] == "targets"


@pytest.mark.slow
def test_intervals_of_the_centre_cover_it():
    inside = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        centres = np.clip(rng.normal(0.5, 0.1, 30), 0.2, 0.8)
        r = np.stack([bump(one) for one in centres], 1)[:, None]
        found = layer_profile(scores_of(np.repeat(r, 2, 2)), n_resamples=400, seed=seed)
        many = np.stack([bump(np.clip(one, 0.2, 0.8)) for one in rng.normal(0.5, 0.1, 5000)], 1)
        truth = ndl.scores.profile.centre_of_mass(many.mean(1)[None])[0]
        one = found.sel(roi_name="V1")
        inside.append(bool(one["centre_low"] < truth < one["centre_high"]))
    assert 0.75 < np.mean(inside) < 1  # 30 of 60 targets belong to the region: 15 different ones


def test_subjects_are_resampled_where_there_are_several(rng):
    shifts = np.linspace(-0.1, 0.1, 6)
    subjects = [scores_of(np.repeat(bump(0.5 + s)[:, None, None], 20, 2)) for s in shifts]
    found = layer_profile(subjects)
    one = found.sel(roi_name="all")
    assert abs(float(one["centre"]) - 0.5) < 0.01
    # Targets of a subject are all the same; the interval is that of the subjects.
    assert 0.06 < float(one["centre_high"] - one["centre_low"]) < 0.2
    assert "target_centre" not in found


def test_what_is_not_predicted_has_no_centre(rng):
    found = layer_profile(scores_of(-np.abs(two_regions(rng))))
    assert np.isnan(found["centre"]).all()
    with pytest.raises(SchemaError, match="at least 3 layers"):
        layer_profile(scores_of(two_regions(rng)), layers=["layer0", "layer1"])
    with pytest.raises(PairingError, match="layer9"):
        layer_profile(scores_of(two_regions(rng)), layers=["layer0", "layer1", "layer9"])
