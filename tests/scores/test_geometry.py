"""RDMs and their comparison, against rsatoolbox, scipy and known geometry."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats
from scipy.spatial.distance import pdist, squareform
from sklearn.covariance import ledoit_wolf_shrinkage

import neurodl as ndl
from neurodl.errors import PairingError, SchemaError, UnknownNameError
from neurodl.scores import compare_rdms, encoding_rsa, rdm, rsa, searchlight_rsa

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import rsatoolbox
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm, compare

N = 24


def features_of(values, ids=None, dim="feature"):
    ids = [f"s{n:02d}" for n in range(len(values))] if ids is None else ids
    attrs = {} if dim == "feature" else {"units": "a.u."}
    return xr.DataArray(np.asarray(values), {"stimulus": ids}, ("stimulus", dim), attrs=attrs)


@pytest.fixture
def values(rng):
    return rng.standard_normal((N, 40)) + rng.standard_normal((N, 1))


# RDMs


@pytest.mark.parametrize("metric", ["correlation", "cosine", "euclidean"])
def test_distances_are_those_of_scipy(values, metric):
    found = rdm(features_of(values), metric)
    np.testing.assert_allclose(found, squareform(pdist(values, metric)), rtol=2e-5, atol=1e-6)
    assert (found.values.diagonal() == 0).all()
    assert found.attrs["metric"] == metric


@pytest.mark.parametrize("metric", ["correlation", "euclidean"])
def test_distances_are_those_of_rsatoolbox(values, metric):
    theirs = calc_rdm(Dataset(values), method=metric).get_matrices()[0]
    mine = rdm(features_of(values), metric).values
    if metric == "euclidean":  # theirs are squared, and per channel
        mine = mine**2 / values.shape[1]
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def repeated_responses(repeated):
    return xr.DataArray(
        repeated,
        {"stimulus": [f"s{n:02d}" for n in range(len(repeated))]},
        ("stimulus", "repeat", "voxel"),
        attrs={"units": "a.u."},
    )


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_crossnobis_is_that_of_rsatoolbox(rng):
    repeated = rng.standard_normal((N, 3, 10)) + rng.standard_normal((N, 1, 10))
    found = rdm(repeated_responses(repeated), "crossnobis", noise="none").values
    described = {"stimulus": np.repeat(np.arange(N), 3), "run": np.tile(np.arange(3), N)}
    data = Dataset(repeated.reshape(-1, 10), obs_descriptors=described)
    theirs = calc_rdm(data, method="crossnobis", descriptor="stimulus", cv_descriptor="run")
    np.testing.assert_allclose(found, theirs.get_matrices()[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise", ["diagonal", "shrinkage"])
def test_noise_is_told_from_the_other_stimuli(rng, noise):
    mixing = rng.standard_normal((8, 8))
    repeated = rng.standard_normal((20, 4, 8)) @ mixing + rng.standard_normal((20, 1, 8))
    found = rdm(repeated_responses(repeated), "crossnobis", noise=noise).values
    residuals = repeated - repeated.mean(1, keepdims=True)
    share = ledoit_wolf_shrinkage(residuals.reshape(-1, 8), assume_centered=True)
    level = (residuals**2).sum() / (20 * 3 * 8)
    for a, b in ((0, 1), (3, 17), (18, 19)):
        others = np.delete(residuals, [a, b], 0).reshape(-1, 8)
        covariance = others.T @ others / (18 * 3)
        if noise == "diagonal":
            covariance = np.diag(np.diag(covariance))
        else:
            covariance = (1 - share) * covariance + share * level * np.eye(8)
        products = (repeated[a] - repeated[b]) @ np.linalg.inv(covariance)
        products = products @ (repeated[a] - repeated[b]).T
        expected = (products.sum() - np.trace(products)) / (4 * 3 * 8)
        assert found[a, b] == found[b, a] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("noise", ["none", "diagonal", "shrinkage"])
def test_crossnobis_of_stimuli_that_do_not_differ_is_0_on_average(noise):
    means = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        mixing = rng.standard_normal((60, 60)) @ np.diag(rng.uniform(0.5, 3, 60))
        responses = repeated_responses(rng.standard_normal((16, 4, 60)) @ mixing)
        means.append(rdm(responses, "crossnobis", noise=noise).values.sum() / (16 * 15))
    assert abs(np.mean(means)) < 3 * np.std(means) / 30**0.5
    # Plain distances are all above 0.
    assert rdm(responses, "euclidean").values[np.triu_indices(16, 1)].min() > 0


def test_constant_targets_have_no_noise_to_divide_by(rng):
    repeated = rng.standard_normal((N, 3, 10))
    repeated[..., 4] = 1.0
    with pytest.raises(SchemaError, match="leave constant targets out"):
        rdm(repeated_responses(repeated), "crossnobis", noise="diagonal")
    with pytest.raises(SchemaError, match="with repeats"):
        rdm(repeated_responses(repeated[:, :1]), "crossnobis")


def test_repeats_are_averaged_and_times_have_rdms_of_their_own(rng):
    shown = rng.standard_normal((N, 2, 5, 12))
    ids = [f"s{n:02d}" for n in range(N)]
    responses = xr.DataArray(
        shown,
        {"stimulus": ids, "time": np.arange(5) * 0.1},
        ("stimulus", "repeat", "time", "unit"),
        attrs={"units": "a.u.", "bin_width": 0.1},
    )
    found = rdm(responses)
    assert found.dims == ("time", "stimulus", "other")
    for number in range(5):
        alone = rdm(features_of(shown[:, :, number].mean(1), ids))
        np.testing.assert_allclose(found[number], alone, atol=1e-5)
    crossed = rdm(responses, "crossnobis", noise="none")
    assert crossed.shape == (5, N, N)


def test_kernels_have_euclidean_distances(values):
    centred = values - values.mean(0)
    ids = [f"s{n:02d}" for n in range(N)]
    kernel = xr.DataArray(
        centred @ centred.T, {"stimulus": ids, "feature": ids}, ("stimulus", "feature")
    ).assign_attrs(kind="kernel")
    expected = rdm(features_of(values), "euclidean")
    np.testing.assert_allclose(rdm(kernel, "euclidean"), expected, rtol=1e-4)
    with pytest.raises(SchemaError, match="only Euclidean"):
        rdm(kernel)


def test_wrong_input_says_what_to_do(values):
    flat = values.copy()
    flat[3] = 2.5
    with pytest.raises(SchemaError, match=r"1 stimuli have no variation.*'s03'"):
        rdm(features_of(flat))
    with pytest.raises(UnknownNameError, match="Did you mean 'euclidean'"):
        rdm(features_of(values), "euclid")
    with pytest.raises(SchemaError, match="features have none"):
        rdm(features_of(values), "crossnobis")
    with pytest.raises(SchemaError, match="at least 3"):
        rdm(features_of(values[:2]))


# Comparison


@pytest.fixture
def three(rng):
    base = rng.standard_normal((N, 6))
    return [rdm(features_of(base + noise * rng.standard_normal((N, 6)))) for noise in (0, 1, 2)]


def upper(array):
    return array.values[np.triu_indices(len(array), 1)].astype(float)


def test_comparisons_are_those_of_scipy_and_rsatoolbox(three):
    one, other, _ = three
    assert compare_rdms(one, other, "spearman") == pytest.approx(
        stats.spearmanr(upper(one), upper(other)).statistic
    )
    assert compare_rdms(one, other, "pearson") == pytest.approx(
        np.corrcoef(upper(one), upper(other))[0, 1]
    )
    theirs = [rsatoolbox.rdm.RDMs(upper(each)[None]) for each in (one, other)]
    for mine, name in (
        ("spearman", "spearman"),
        ("pearson", "corr"),
        ("kendall", "tau-a"),
        ("rho_a", "rho-a"),
    ):
        assert compare_rdms(one, other, mine) == pytest.approx(compare(*theirs, method=name)[0, 0])


def test_ties_are_no_advantage(three):
    coarse = three[0].copy(data=np.round(three[0].values * 2) / 2)
    theirs = [rsatoolbox.rdm.RDMs(upper(each)[None]) for each in (coarse, three[1])]
    for mine, name in (("kendall", "tau-a"), ("rho_a", "rho-a")):
        found = compare_rdms(coarse, three[1], mine)
        assert found == pytest.approx(compare(*theirs, method=name)[0, 0])
        plain = compare_rdms(coarse, three[1], "spearman")
        assert found < plain


def test_rdms_are_paired_by_id_and_keep_their_dims(three, rng):
    one, other, third = three
    order = rng.permutation(N)
    assert compare_rdms(one, other[order][:, order]) == pytest.approx(compare_rdms(one, other))
    several = xr.concat([one, other, third], "time").assign_coords(time=[0.0, 0.1, 0.2])
    found = compare_rdms(xr.concat([one, third], "layer").assign_coords(layer=["a", "b"]), several)
    assert found.dims == ("layer", "time")
    assert float(found[0, 2]) == pytest.approx(compare_rdms(one, third))
    renamed = other.assign_coords(stimulus=[f"t{n}" for n in range(N)])
    with pytest.raises(PairingError, match="48 are only in one"):
        compare_rdms(one, renamed)
    with pytest.raises(SchemaError, match="measure both sides alike"):
        compare_rdms(one, other.assign_attrs(metric="euclidean"))
    with pytest.raises(UnknownNameError, match="Did you mean 'kendall'"):
        compare_rdms(one, other, "kendal")


# RSA


def subjects_of(base, noise, n, rng):
    rdms = [rdm(features_of(base + noise * rng.standard_normal(base.shape))) for _ in range(n)]
    return xr.concat(rdms, "subject").assign_coords(subject=[f"sub-{k}" for k in range(n)])


def test_the_true_model_lies_between_the_ceilings(rng):
    base = rng.standard_normal((40, 10))
    models = {
        "true": features_of(base),
        "half": features_of(base + rng.standard_normal(base.shape)),
        "none": features_of(rng.standard_normal(base.shape)),
    }
    inside = 0
    for seed in range(10):
        brain = subjects_of(base, 1.0, 6, np.random.default_rng(seed))
        found = rsa(models, brain, n_permutations=200, n_resamples=100, seed=seed)
        true, half, none = found["similarity"].values
        inside += bool(found["ceiling_low"] <= true <= found["ceiling_high"])
        assert true > half > 0.1 > none
        assert found["p"].values[:2].max() < 0.01 < found["p"].values[2]
        assert (found["low"] < found["similarity"]).all() and (
            found["similarity"] < found["high"]
        ).all()
    assert inside >= 9


def test_ceilings_leave_the_subject_out(rng):
    base = rng.standard_normal((20, 10))
    brain = subjects_of(base, 1.0, 5, rng)
    found = rsa(features_of(base), brain, n_permutations=0, n_resamples=0)
    ranks = np.stack([stats.rankdata(upper(one)) for one in brain])
    low = [stats.spearmanr(ranks[k], np.delete(ranks, k, 0).mean(0)).statistic for k in range(5)]
    high = [stats.spearmanr(one, ranks.mean(0)).statistic for one in ranks]
    assert float(found["ceiling_low"]) == pytest.approx(np.mean(low))
    assert float(found["ceiling_high"]) == pytest.approx(np.mean(high))
    # A subject that is there twice would be on both sides of a plain one.
    twice = xr.concat([brain, brain[:1]], "subject")
    assert float(
        rsa(features_of(base), twice, n_permutations=0, n_resamples=0)["ceiling_low"]
    ) > np.mean(low)


def test_a_subject_drawn_twice_is_not_compared_with_itself(rng):
    from neurodl.scores.geometry import _drawn_ceilings

    own = rng.standard_normal((4, 190))  # subjects that share nothing
    ranks = stats.rankdata(own, axis=1)
    low, high = _drawn_ceilings(own, np.array([0, 0, 0, 2]), "spearman")
    by_hand = [
        stats.spearmanr(ranks[0], ranks[2]).statistic,
        stats.spearmanr(ranks[2], ranks[0]).statistic,
    ]
    assert low == pytest.approx((3 * by_hand[0] + by_hand[1]) / 4)
    assert high > 0.5  # as that of a subject with itself is
    assert np.isnan(_drawn_ceilings(own, np.zeros(4, int), "spearman")[0])
    brain = subjects_of(rng.standard_normal((20, 10)), 1.0, 5, rng)
    found = rsa(features_of(rng.standard_normal((20, 10))), brain, n_permutations=0)
    for name in ("ceiling_low", "ceiling_high"):
        lower, upper = found[f"{name}_interval"].values
        assert lower < upper
    assert found["ceiling_low_interval"][0] < found["ceiling_low"]


def test_p_of_unrelated_geometries_is_uniform():
    p = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        model, brain = (features_of(rng.standard_normal((14, 5))) for _ in range(2))
        found = rsa(model, rdm(brain), n_permutations=99, n_resamples=0, seed=seed)
        p.append(float(found["p"][0]))
    assert (
        stats.kstest(np.array(p) - np.random.default_rng(0).uniform(0, 0.01, 150), "uniform").pvalue
        > 0.01
    )


@pytest.mark.slow
def test_intervals_cover_what_other_stimuli_and_subjects_give():
    inside, truth = [], None
    weights = np.random.default_rng(99).standard_normal((2, 8, 8))
    for seed in range(-1, 40):
        rng = np.random.default_rng(seed + 1)
        n, n_subjects = (300, 10) if seed < 0 else (30, 6)
        base = rng.standard_normal((n, 8))
        model = features_of(base @ weights[0])
        brain = subjects_of(base @ (weights[0] + weights[1]), 2.0, n_subjects, rng)
        found = rsa(model, brain, n_permutations=0, n_resamples=0 if seed < 0 else 100, seed=seed)
        if seed < 0:
            truth = float(found["similarity"][0])
        else:
            inside.append(bool(found["low"][0] < truth < found["high"][0]))
    assert np.mean(inside) >= 0.85


def test_time_courses_rise_when_the_signal_does(rng):
    base = rng.standard_normal((20, 10))
    strength = np.concatenate([np.zeros(5), np.linspace(0, 2, 15)])
    parts = [subjects_of(base * s, 1.0, 4, rng) for s in strength]
    brain = xr.concat(parts, "time").assign_coords(time=np.arange(20) * 0.01)
    found = rsa(features_of(base), brain, n_permutations=200)
    assert found["similarity"].dims == ("layer", "time")
    assert found["p_fwe"].values[0, :5].min() > 0.05
    assert found["p_fwe"].values[0, -5:].max() <= 0.01
    one = rsa(features_of(base), brain.isel(time=12, drop=True), n_permutations=0, n_resamples=0)
    assert float(one["similarity"][0]) == pytest.approx(float(found["similarity"][0, 12]))
    with pytest.raises(SchemaError, match=r"brain.mean\('session'\)"):
        rsa(features_of(base), brain.expand_dims(session=2))


def test_missing_pairs_are_no_evidence(rng):
    model = features_of(rng.standard_normal((20, 10)))
    brain = rdm(features_of(rng.standard_normal((20, 10))))
    brain[3, 5] = brain[5, 3] = np.nan
    with pytest.raises(SchemaError, match="lack 1 of 190 pairs"):
        rsa(model, brain)
    flat = brain.copy(data=1 - np.eye(20, dtype=np.float32))
    found = rsa({"flat": flat, "model": model}, brain.fillna(1.0), n_permutations=50, n_resamples=0)
    assert np.isnan(found["p"].values[0])
    assert np.isfinite(found["p"].values[1])


def test_responses_have_rdms_of_the_same_metric(values, rng):
    responses = features_of(values[:, :10] + 0.1 * rng.standard_normal((N, 10)), dim="voxel")
    found = rsa(features_of(values[:, :10]), responses, metric="euclidean", n_resamples=0)
    assert found.attrs["metric"] == "euclidean"
    assert float(found["similarity"][0]) > 0.9
    with pytest.raises(SchemaError, match="measure both sides alike"):
        rsa(rdm(features_of(values), "euclidean"), rdm(responses))


def test_searchlights_find_where_the_signal_is(rng):
    side = 8
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    base = rng.standard_normal((20, 10))
    near = np.linalg.norm(grid - 2, axis=1) < 2.1
    data = rng.standard_normal((20, len(grid)))
    data[:, near] += 2 * base @ rng.standard_normal((10, near.sum()))
    coords = {axis: ("voxel", 3.0 * grid[:, k]) for k, axis in enumerate("xyz")}
    responses = features_of(data, dim="voxel").assign_coords(coords)
    found = searchlight_rsa(features_of(base), responses, radius=6.1)
    best = grid[found["similarity"].values[0].argmax()]
    assert np.linalg.norm(best - 2) <= 1.5
    far = np.linalg.norm(grid - 2, axis=1) > 5
    assert abs(float(found["similarity"][0][far].mean())) < 0.1
    centre = int(np.flatnonzero((grid == 4).all(1))[0])
    sphere = np.linalg.norm(grid - grid[centre], axis=1) * 3 <= 6.1
    assert int(found["n_voxels"][centre]) == sphere.sum()
    expected = compare_rdms(rdm(features_of(base)), rdm(responses[:, sphere]))
    assert float(found["similarity"][0, centre]) == pytest.approx(expected)
    with pytest.raises(SchemaError, match="coords x, y and z"):
        searchlight_rsa(features_of(base), features_of(data, dim="voxel"))


def test_weighed_features_have_the_geometry_of_the_brain(rng):
    """The brain sees 3 of 30 directions, which the features as they are hardly show."""
    X = rng.standard_normal((120, 30))
    Y = X[:, :3] @ rng.standard_normal((3, 20)) + 0.3 * rng.standard_normal((120, 20))
    features, responses = features_of(X), features_of(Y, dim="unit")
    responses = responses.assign_coords(roi=("unit", np.repeat(["V4", "IT"], 10)))
    plain = float(rsa(features, responses, n_permutations=0, n_resamples=0)["similarity"][0])
    scores = ndl.cross_validate(
        ndl.RidgeCV(device="cpu"), features, responses, keep_predictions=True
    )
    weighed = encoding_rsa(scores)
    assert weighed.dims == ("layer", "fold", "roi_name")
    assert float(weighed.mean()) > 0.8 > 0.5 > plain
    fold, rows = 1, np.flatnonzero(scores["tested_in"] == 1)
    one, other = (
        rdm(features_of(array[rows][:, :10], dim="unit"))
        for array in (scores["predicted"].values[0], responses.values)
    )
    assert float(weighed[0, fold].sel(roi_name="V4")) == pytest.approx(
        compare_rdms(one, other), abs=1e-5
    )


def test_human_it_is_closest_to_a_late_layer(recordings):
    stored = np.load(next((recordings / "kriegeskorte92").glob("*.npz")))
    ids = [f"image{n:02d}" for n in range(92)]
    weights = recordings / "weights_mobilenetv2_imagenet" / "mobilenetv2_100_timm_same.pth"
    features = ndl.extract_features(
        ndl.load_backbone("timm:mobilenetv2_100", weights=str(weights), pad_type="same"),
        ndl.Stimuli.from_arrays(stored["images"], ids),
        layers=["blocks.1", "blocks.3", "blocks.5"],
        pool="flatten",
        device="cpu",
        cache=False,
    )
    brain = xr.DataArray(
        stored["hIT_rdms"].mean(1),
        {"subject": stored["subjects"], "stimulus": ids, "other": ids},
        ("subject", "stimulus", "other"),
    )
    found = rsa(features, brain, n_permutations=1000, n_resamples=100)
    np.testing.assert_allclose(found["group_similarity"], [0.123, 0.222, 0.330], atol=0.01)
    assert float(found["ceiling_low"]) == pytest.approx(0.372, abs=0.001)
    assert float(found["ceiling_high"]) == pytest.approx(0.666, abs=0.001)
    assert found["p_fwe"].values[1:].max() < 0.002
    group = brain.mean("subject")
    tau = compare_rdms(rdm(features["blocks.5"]), group, "kendall")
    assert tau == pytest.approx(0.224, abs=0.01)


# CKA


def centred(kernel):
    n = len(kernel)
    h = np.eye(n) - 1 / n
    return h @ kernel @ h


def unbiased_hsic(k, other):
    n = len(k)
    k, other = k - np.diag(np.diag(k)), other - np.diag(np.diag(other))
    ones = np.ones(n)
    return (
        np.trace(k @ other)
        + (ones @ k @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * ones @ k @ other @ ones
    )


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_cka_is_that_of_its_formula(rng, kernel):
    X, Y = rng.standard_normal((30, 8)), rng.standard_normal((30, 5))
    Y[:, 0] += X[:, 0]

    def gram(values):
        if kernel == "linear":
            return values @ values.T
        d = squareform(pdist(values))
        return np.exp(-(d**2) / (2 * (0.4 * np.median(pdist(values))) ** 2))

    k, other = gram(X), gram(Y)
    plain = np.sum(centred(k) * centred(other)) / np.sqrt(
        np.sum(centred(k) ** 2) * np.sum(centred(other) ** 2)
    )
    how = {"kernel": kernel, "width": 0.4, "device": "cpu"}
    assert ndl.cka(X, Y, unbiased=False, **how) == pytest.approx(plain, rel=1e-4)
    expected = unbiased_hsic(k, other) / np.sqrt(unbiased_hsic(k, k) * unbiased_hsic(other, other))
    assert ndl.cka(X, Y, **how) == pytest.approx(expected, rel=1e-4)


def test_unbiased_cka_of_unrelated_features_is_0(rng):
    for kernel in ("linear", "rbf"):
        found = [
            ndl.cka(rng.standard_normal((40, 200)), rng.standard_normal((40, 200)), kernel=kernel)
            for _ in range(40)
        ]
        assert abs(np.mean(found)) < 4 * np.std(found) / 40**0.5
    assert (
        ndl.cka(rng.standard_normal((40, 200)), rng.standard_normal((40, 200)), unbiased=False)
        > 0.5
    )


def test_cka_pairs_by_id(rng, values):
    one, order = features_of(values), rng.permutation(N)
    assert ndl.cka(one, one[order]) == pytest.approx(1)
    assert ndl.cka(values, values[order]) < 0.5
    with pytest.raises(PairingError, match="of other stimuli"):
        ndl.cka(one, features_of(values, [f"t{n}" for n in range(N)]))
    with pytest.raises(UnknownNameError, match="'linear', 'rbf'"):
        ndl.cka(values, values, kernel="poly")
    assert np.isnan(ndl.cka(np.ones((10, 3)), values[:10], kernel="rbf"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same(values, rng):
    one = features_of(values)
    for metric in ("correlation", "euclidean"):
        np.testing.assert_allclose(
            rdm(one, metric, device="cuda"), rdm(one, metric, device="cpu"), atol=1e-5
        )
    other = rng.standard_normal((N, 7))
    assert ndl.cka(values, other, device="cuda") == pytest.approx(
        ndl.cka(values, other, device="cpu"), abs=1e-5
    )
