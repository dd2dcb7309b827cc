"""Each finding is planted as it happens in practice, and has a case in which it stays silent."""

from __future__ import annotations

import dataclasses
import io
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import neurodl as ndl
from neurodl.backbones import torchvision
from neurodl.errors import AuditError, NeurodlWarning, SchemaError, UnknownNameError
from neurodl.io.fingerprints import SAME, fingerprint, near_pairs

N = 60
RIDGE = ndl.RidgeCV(device="cpu")


def pictures(n=N, seed=0, size=48):
    """Smooth random pictures, as different as photographs are."""
    rng = np.random.default_rng(seed)
    noise = torch.as_tensor(rng.standard_normal((n, 3, 9, 9)), dtype=torch.float32)
    large = nn.functional.interpolate(noise, (size, size), mode="bicubic")
    return (128 + 40 * large).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def stored_anew(picture, quality=60, size=None):
    image = Image.fromarray(picture)
    image = image if size is None else image.resize(size)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return np.array(Image.open(io.BytesIO(stream.getvalue())).resize(picture.shape[:2]))


def of_stimuli(values, ids=None, **coords):
    ids = [f"image{n:02d}" for n in range(len(values))] if ids is None else ids
    return xr.DataArray(
        np.asarray(values, np.float32),
        dims=("stimulus", "feature"),
        coords={"stimulus": ids} | {k: ("stimulus", v) for k, v in coords.items()},
    )


def responses_to(features, seed=0, n_units=6, **coords):
    rng = np.random.default_rng(seed)
    values = np.asarray(features.values[:, :5] @ rng.standard_normal((5, n_units)))
    values += rng.standard_normal(values.shape)
    return xr.DataArray(
        values.astype(np.float32),
        dims=("stimulus", "unit"),
        coords={"stimulus": features["stimulus"].values, "unit": [f"u{n}" for n in range(n_units)]}
        | coords,
        attrs={"units": "a.u."},
    )


def random_features(n=N, p=40, seed=0):
    return of_stimuli(np.random.default_rng(seed).standard_normal((n, p)) + 1.5)


def found(audit, severity=None):
    return {one.check for one in audit.findings if severity in (None, one.severity)}


@pytest.fixture
def features():
    return random_features()


@pytest.fixture
def responses(features):
    return responses_to(features)


# The clean case of all checks: pictures, pixels of them, folds of stimuli.


def experiment_of(images, ids=None, **table):
    stimuli = ndl.Stimuli.from_arrays(images, ids)
    for name, values in table.items():
        stimuli.table[name] = values
    features = ndl.extract_features("pixels", stimuli, device="cpu", cache=False)
    responses = responses_to(features["pixels"])
    return ndl.Experiment(stimuli, responses), features


def test_an_ordinary_study_is_clean():
    experiment, features = experiment_of(pictures())
    audit = ndl.audit(experiment, features, 5, RIDGE)
    assert not audit.findings
    assert not audit.skipped
    assert set(audit.clean) == set(ndl.scores.auditing.CHECKS)
    scores = ndl.cross_validate(RIDGE, features, experiment.responses)
    assert ndl.Audit.of(scores).clean == audit.clean


# Copies


def test_the_same_picture_under_two_names_stops():
    images = pictures()
    images[41] = images[3]
    experiment, features = experiment_of(images)
    with pytest.raises(AuditError, match="0003 and 0041") as error:
        ndl.cross_validate(RIDGE, features, experiment.responses)
    assert "allow=['copies']" in str(error.value)
    # Also behind features of one's own, which do not know their pixels.
    own = random_features().assign_coords(stimulus=features["pixels"]["stimulus"].values)
    with pytest.raises(AuditError, match="0003 and 0041"):
        ndl.cross_validate(RIDGE, {"own": own, **features}, experiment.responses)
    # Without a shared fold there is nothing wrong.
    groups = ndl.copy_groups(features)
    scores = ndl.cross_validate(RIDGE, features, experiment.responses, groups=groups)
    assert "copies" in ndl.Audit.of(scores).clean
    assert ndl.copy_groups(experiment.stimuli).equals(groups)


def test_a_picture_stored_anew_stops_and_a_shifted_one_warns():
    images = pictures()
    images[41] = stored_anew(images[3], size=(40, 40))
    images[42] = np.roll(images[5], 1, 1)
    experiment, features = experiment_of(images)
    audit = ndl.audit(experiment, features)
    severe, warned = (
        [one for one in audit.findings if one.severity == level] for level in ("severe", "warning")
    )
    assert [one.rows for one in severe] == [("0003", "0041")]
    assert [one.rows for one in warned] == [("0005", "0042")]


def test_pixels_are_looked_at_where_features_are_ones_own(features):
    images = pictures()
    images[41] = images[3]
    ids = features["stimulus"].values.tolist()
    stimuli = ndl.Stimuli.from_arrays(images, ids)
    experiment = ndl.Experiment(stimuli, responses_to(features))
    assert found(ndl.audit(experiment, features), "severe") == {"copies"}
    # cross_validate knows no pixels then, and the features differ.
    assert "copies" in ndl.Audit.of(ndl.cross_validate(RIDGE, features, experiment.responses)).clean


def test_a_film_stored_twice_is_found():
    rng = np.random.default_rng(0)
    films = [torch.as_tensor(rng.integers(0, 256, (8, 3, 40, 40)), dtype=torch.uint8)]
    smooth = torch.as_tensor(pictures(16)).permute(0, 3, 1, 2)
    one, other = smooth[:8], smooth[8:]
    again = torch.stack(
        [torch.as_tensor(stored_anew(f.permute(1, 2, 0).numpy())).permute(2, 0, 1) for f in one]
    )
    # An image is never like a film, and what has no structure like nothing.
    shown = (one, other, again, one[0], torch.zeros(3, 40, 40, dtype=torch.uint8), *films)
    prints = np.array([fingerprint(each) for each in shown])
    (row,), (copy,), (difference,) = near_pairs(prints)
    assert (row, copy) == (0, 2)
    assert difference <= SAME
    assert prints[4] == ""


def test_v4_images_have_no_copies_and_copies_of_them_are_found(recordings):
    stimuli = ndl.Stimuli.from_files(recordings / "v4_cowley" / "images_190923.zip")
    prints = np.array(stimuli.fingerprints())
    assert not len(near_pairs(prints)[0])  # of 719,400 pairs
    some = range(0, 1200, 12)
    again = np.array(
        [
            fingerprint(
                torch.as_tensor(stored_anew(stimuli[row].permute(1, 2, 0).numpy())).permute(2, 0, 1)
            )
            for row in some
        ]
    )
    one, other, differences = near_pairs(np.concatenate([prints, again]))
    assert (np.array(some)[other - 1200] == one).all()
    assert len(one) >= 98
    assert (differences <= SAME).sum() >= 90


def test_flat_pictures_are_not_taken_for_copies():
    grey = np.stack([np.full((32, 32, 3), level, np.uint8) for level in range(60, 60 + N)])
    experiment, features = experiment_of(grey)
    assert "copies" not in found(ndl.audit(experiment, features))


def test_equal_features_of_two_stimuli_warn(features, responses):
    features = features.copy()
    features[41] = features[3]
    with pytest.warns(NeurodlWarning, match="image03 and image41"):
        ndl.cross_validate(Ridge(), features, responses)
    few = features[:, :8]  # such as categories, which many stimuli share
    assert "copies" in ndl.audit(features=few, responses=responses).skipped


# Repeats


def presentations(features, order):
    rows = responses_to(features)[order]
    return xr.DataArray(
        rows.values + np.random.default_rng(1).standard_normal(rows.shape).astype(np.float32),
        dims=("presentation", "unit"),
        coords={"stimulus": ("presentation", rows["stimulus"].values)},
        attrs=rows.attrs,
    )


def test_presentations_on_both_sides_stop(features):
    responses = presentations(features, np.tile(np.arange(N), 2))
    rows = np.arange(2 * N)
    interleaved = [(rows[rows % 4 != fold], rows[rows % 4 == fold]) for fold in range(4)]
    halves = [(rows[:N], rows[N:])]
    with pytest.raises(AuditError, match="In 1 of 1 folds, 60 stimuli"):
        ndl.cross_validate(RIDGE, features, responses, cv=halves)
    scores = ndl.cross_validate(RIDGE, features, responses, cv=halves, allow=["repeats"])
    (finding,) = [one for one in ndl.Audit.of(scores).findings if one.check == "repeats"]
    assert finding.allowed
    assert finding.n_rows == 60
    # N is a multiple of 4, so that both presentations of a stimulus fall into one fold.
    assert not found(ndl.audit(features=features, responses=responses, cv=interleaved))


# Time


def film_responses(n=120, runs=4, tr=2.0, seed=0):
    rng = np.random.default_rng(seed)
    run = np.repeat([f"r{k}" for k in range(runs)], n // runs)
    time = np.tile(np.arange(n // runs) * tr, runs)
    coords = {"time": time, "run": ("time", run)}
    X = xr.DataArray(
        rng.standard_normal((n, 8)).astype(np.float32) + 1, coords, ("time", "feature")
    )
    Y = xr.DataArray(
        (X.values[:, :4] + rng.standard_normal((n, 4))).astype(np.float32),
        coords,
        ("time", "voxel"),
        attrs={"units": "BOLD", "tr": tr},
    )
    return X, Y


def test_interleaved_volumes_stop_and_whole_runs_do_not():
    X, Y = film_responses()
    rows = np.arange(len(Y))
    shuffled = np.random.default_rng(0).permutation(rows) % 5
    cv = [(rows[shuffled != k], rows[shuffled == k]) for k in range(5)]
    with pytest.raises(
        AuditError, match=r"118 of 120 test rows.*within 1 samples.*\n.*allow=\['time'\]"
    ):
        ndl.cross_validate(RIDGE, X, Y, cv=cv)
    assert not found(ndl.audit(features=X, responses=Y, cv=4, groups="run"))


def test_delays_reach_across_gaps_that_are_too_small():
    X, Y = film_responses(120, 1)
    wide = ndl.RidgeCV(delays=[1, 2, 3, 4, 5, 6, 7, 8], device="cpu")
    for purge, expected in ((0, ["severe"]), (6, ["warning"]), (7, [])):
        audit = ndl.audit(features=X, responses=Y, cv=ndl.PurgedKFold(4, purge=purge), model=wide)
        assert [one.severity for one in audit.findings] == expected, purge
    # Without delays, 2 samples of 2 s are less than the response lasts.
    audit = ndl.audit(features=X, responses=Y, cv=ndl.PurgedKFold(4, purge=2), model=RIDGE)
    assert found(audit, "warning") == {"time"}
    scores = ndl.cross_validate(RIDGE, X, Y, cv=ndl.PurgedKFold(4, purge=6))
    assert "time" in ndl.Audit.of(scores).clean


def test_features_say_how_long_they_see():
    X, Y = film_responses(80, 1)
    aligned = ndl.align(X, to=Y, delays=[2, 3, 4, 5, 6, 7, 8, 9])
    assert aligned.attrs["extent"] == 16
    audit = ndl.audit(features=aligned, responses=Y, cv=ndl.PurgedKFold(2, purge=7), model=RIDGE)
    assert not found(audit)
    audit = ndl.audit(features=aligned, responses=Y, cv=ndl.PurgedKFold(2, purge=6), model=RIDGE)
    assert "within 7 samples" in audit.findings[0].message
    audit = ndl.audit(features=aligned, responses=Y, cv=ndl.PurgedKFold(2, purge=0), model=RIDGE)
    assert found(audit, "severe") == {"time"}
    assert ndl.align(X, to=Y, hrf="glover").attrs["extent"] == 32


def test_clips_that_share_frames_stop(features, responses):
    onset, run = np.tile(np.arange(N // 2) * 1.5, 2), np.repeat(["a", "b"], N // 2)
    clips = features.assign_coords(
        onset=("stimulus", onset), duration=("stimulus", np.full(N, 3.0)), run=("stimulus", run)
    )
    assert found(ndl.audit(features=clips, responses=responses), "severe") == {"time"}
    whole = pd.Series(run, index=features["stimulus"].values, name="film")
    assert not found(ndl.audit(features=clips, responses=responses, cv=2, groups=whole))
    apart = clips.assign_coords(duration=("stimulus", np.full(N, 1.5)))
    assert not found(ndl.audit(features=apart, responses=responses))


# Order


def test_ids_by_order_of_names_that_are_not_by_number_warn(tmp_path):
    images = pictures(12)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"image{number + 1}.png")
    recorded = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
    guessed = ndl.Experiment.from_files(tmp_path, recorded)
    (finding,) = ndl.audit(guessed, cv=3).findings
    assert (finding.check, finding.severity) == ("order", "warning")
    assert "'image10.png' comes before 'image2.png'" in finding.message
    ids = [f"image{number + 1}.png" for number in range(12)]
    assert not ndl.audit(ndl.Experiment.from_files(tmp_path, recorded, ids=ids), cv=3).findings


def test_labels_that_contradict_the_ids_stop(features):
    kinds = np.tile(["face", "house"], N // 2)
    table = pd.DataFrame({"label": kinds}, index=features["stimulus"].values)
    stimuli = ndl.Stimuli.from_arrays(pictures(), features["stimulus"].values.tolist())
    stimuli.table["label"] = table["label"]
    right = responses_to(features, label=("stimulus", kinds))
    assert not found(ndl.audit(ndl.Experiment(stimuli, right), features))
    shifted = right.assign_coords(label=("stimulus", np.roll(kinds, 1)))
    with pytest.raises(AuditError, match="60 rows of the responses have another label"):
        ndl.audit(ndl.Experiment(stimuli, shifted), features).enforce()


# Fitted outside


def test_a_scaler_of_all_rows_warns(features, responses):
    scaled = features.copy(data=StandardScaler().fit_transform(features.values))
    with pytest.warns(NeurodlWarning, match="were standardised over all their rows"):
        ndl.cross_validate(RIDGE, scaled, responses)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ndl.cross_validate(make_pipeline(StandardScaler(), Ridge()), features, responses)
    # A scaler of the training rows of a published split.
    train = StandardScaler().fit(features.values[:40])
    honest = features.copy(data=train.transform(features.values).astype(np.float32))
    assert not found(ndl.audit(features=honest, responses=responses))


def test_components_of_all_rows_stop(features, responses):
    for whiten in (False, True):
        values = PCA(20, whiten=whiten, random_state=0).fit_transform(features.values)
        with pytest.raises(AuditError, match="principal components of all their rows"):
            ndl.cross_validate(RIDGE, of_stimuli(values), responses)
    inside = make_pipeline(PCA(20, random_state=0), Ridge())
    assert not found(ndl.audit(features=features, responses=responses, model=inside))
    some = PCA(20, random_state=0).fit(features.values[:40]).transform(features.values)
    assert not found(ndl.audit(features=of_stimuli(some), responses=responses))


def test_components_are_known_by_the_rows_they_were_fitted_on():
    stimuli = ndl.Stimuli.from_arrays(pictures())
    train, test = stimuli.ids[:40], stimuli.ids[40:]
    features = ndl.extract_features(
        "pixels", stimuli, reduce="pca:10", reduce_fit=train, device="cpu", cache=False
    )
    responses = responses_to(features["pixels"])
    with pytest.raises(AuditError, match="40 test stimuli"):
        ndl.cross_validate(RIDGE, features, responses)
    scores = ndl.cross_validate(RIDGE, features, responses, cv={"train": train, "test": test})
    assert "fitted" in ndl.Audit.of(scores).clean


def test_batch_normalisation_of_test_stimuli_warns():
    stimuli = ndl.Stimuli.from_arrays(pictures())
    torch.manual_seed(0)
    network = ndl.load_backbone(Net(), transform=TRANSFORM, pretrained=False)
    train, test = stimuli.ids[:40], stimuli.ids[40:]
    calibrated = ndl.calibrate_batchnorm(network, stimuli, train, device="cpu")
    features = ndl.extract_features(
        calibrated, stimuli, layers=["norm"], pool="avg", device="cpu", cache=False
    )
    responses = responses_to(features["norm"])
    audit = ndl.audit(features=features, responses=responses)
    assert found(audit, "warning") == {"fitted"}
    assert "40 test stimuli" in audit.findings[0].message
    split = {"train": train, "test": test}
    assert "fitted" in ndl.audit(features=features, responses=responses, cv=split).clean


def test_runs_standardised_by_themselves_are_clean():
    X, Y = film_responses()
    values = X.values.copy()
    for run in np.unique(X["run"].values):
        rows = X["run"].values == run
        values[rows] = (values[rows] - values[rows].mean(0)) / values[rows].std(0)
    audit = ndl.audit(
        features=X.copy(data=values), responses=ndl.zscore_runs(Y), groups="run", cv=4
    )
    assert not found(audit)


def test_responses_scored_over_all_rows_are_noted(features, responses):
    values = StandardScaler().fit_transform(responses.values).astype(np.float32)
    audit = ndl.audit(features=features, responses=responses.copy(data=values))
    assert found(audit, "note") == {"fitted"}


def test_parts_that_were_fitted_before_stop(features, responses):
    pca = PCA(10, random_state=0).fit(features.values)
    model = make_pipeline(FrozenEstimator(pca), Ridge())
    with pytest.raises(AuditError, match=r"not in each fold: .*FrozenEstimator"):
        ndl.cross_validate(model, features, responses)


# Selection


def test_targets_that_carry_scores_stop(features, responses):
    scores = ndl.cross_validate(RIDGE, features, responses)
    r = scores["r"].mean(["layer", "fold"])
    best = r.values > r.values.mean()
    chosen = responses.assign_coords(r_normalized=("unit", r.values))[:, best]
    with pytest.raises(AuditError, match="units carry 'r_normalized', of scores"):
        ndl.cross_validate(RIDGE, features, chosen)
    with pytest.warns(NeurodlWarning, match="carry 'r', maybe of scores"):
        ndl.cross_validate(RIDGE, features, responses.assign_coords(r=("unit", r.values))[:, best])
    # Layers of cortex, and the fit of a receptive field.
    layered = responses.assign_coords(layer=("unit", list("223345")), r2=("unit", r.values))
    assert not found(ndl.audit(features=features, responses=layered))
    plain = responses[:, r.values > r.values.mean()]
    assert not found(ndl.audit(features=features, responses=plain))
    # Without traces, the earlier scores tell it.
    audit = ndl.audit(features=features, responses=plain, earlier=scores)
    assert found(audit, "severe") == {"selection"}
    other = responses[:, [0, 2, 3]] if r.values[1] > r.values[0] else responses[:, [1, 2, 3]]
    by_region = other[:, np.argsort(r.values[[0, 2, 3]])]
    worst = responses[:, np.argsort(r.values)[:3]]
    for some in (by_region, worst):
        kept = set(some["unit"].values.tolist())
        best = set(responses["unit"].values[np.argsort(r.values)[::-1][: len(kept)]].tolist())
        expected = {"selection"} if kept == best else set()
        audit = ndl.audit(features=features, responses=some, earlier=scores)
        assert found(audit, "severe") == expected


def test_the_best_of_several_layers_is_noted(features, responses):
    layers = {"one": features, "two": features + 1}
    audit = ndl.audit(features=layers, responses=responses, model=RIDGE)
    assert found(audit, "note") == {"selection"}
    inside = ndl.StackedRidgeCV(combine="select", device="cpu")
    assert not found(ndl.audit(features=layers, responses=responses, model=inside))


# Weights


class Net(nn.Module):
    def __init__(self, norm=True):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 5, stride=4)
        self.norm = nn.BatchNorm2d(12) if norm else nn.Identity()
        self.deep = nn.Sequential(*[nn.Conv2d(12, 12, 3, padding=1) for _ in range(4)])

    def forward(self, x):
        return self.deep(self.norm(self.conv(x)))


TRANSFORM = ndl.ImageTransform(
    lambda image: torch.as_tensor(np.array(image)).permute(2, 0, 1) / 255, "RGB in 0..1"
)


def scored_with(net, **options):
    torch.manual_seed(0)
    stimuli = ndl.Stimuli.from_arrays(pictures())
    backbone = ndl.load_backbone(net, transform=TRANSFORM, **options)
    features = ndl.extract_features(
        backbone, stimuli, layers=["deep.0"], pool="avg", device="cpu", cache=False
    )
    return ndl.cross_validate(RIDGE, features, responses_to(features["deep.0"]))


@pytest.mark.parametrize(
    ("norm", "why"), [(True, "has seen no data"), (False, "initial distribution")]
)
def test_a_network_that_was_never_trained_stops(norm, why):
    torch.manual_seed(0)
    with pytest.raises(AuditError, match=why):
        scored_with(Net(norm))
    control = ndl.Audit.of(scored_with(Net(norm), pretrained=False))
    assert found(control, "note") == {"weights"}


def test_a_network_that_was_trained_is_clean():
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    x = torch.as_tensor(pictures()).permute(0, 3, 1, 2) / 255
    for _ in range(5):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    assert "weights" in ndl.Audit.of(scored_with(net)).clean


def test_an_untrained_network_beside_the_trained_one_is_noted():
    features = {
        name: random_features(seed=seed).assign_attrs(
            backbone="timm:net", weights=weights, weights_sha256=name
        )
        for seed, (name, weights) in enumerate((("a", "file net.pth"), ("b", "untrained, seed 0")))
    }
    audit = ndl.audit(features=features, responses=responses_to(features["a"]))
    assert [one.message for one in audit.findings] == [
        "timm:net is an untrained control (untrained, seed 0)."
    ]


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "vit_b_16", "convnext_tiny", "r3d_18"])
def test_untrained_networks_of_torchvision_look_so(name):
    from torchvision.models import get_model

    from neurodl.backbones.untrained import signs_untrained

    assert signs_untrained(get_model(name, weights=None))


def test_published_weights_do_not(recordings):
    from neurodl.backbones.untrained import signs_untrained

    path = recordings / "weights_mobilenetv2_imagenet" / "mobilenetv2_100_timm_same.pth"
    backbone = ndl.load_backbone("timm:mobilenetv2_100", weights=str(path), pad_type="same")
    assert signs_untrained(backbone.module) == ""
    assert "signs_untrained" not in backbone.describe()


# Transform


def load_untrained(transform, load=torchvision.load):
    return load("resnet18", weights=None, pretrained=False, seed=0, transform=transform)


def test_weights_of_a_file_have_no_transform_of_their_own(recordings):
    path = recordings / "weights_mobilenetv2_imagenet" / "mobilenetv2_100_timm_same.pth"
    options = {"weights": str(path), "pad_type": "same", "transform": {"mean": [0.5] * 3}}
    assert "own_transform" not in ndl.load_backbone("timm:mobilenetv2_100", **options).describe()


def test_another_transform_than_that_of_the_weights_warns(monkeypatch):
    stimuli = ndl.Stimuli.from_arrays(pictures())
    # Published weights, which are downloaded, are not needed for what is said of them.
    untrained = load_untrained(None)
    monkeypatch.setattr(
        "neurodl.backbones.torchvision.load", lambda *_, transform, **__: load_untrained(transform)
    )
    own = ndl.load_backbone("torchvision:resnet18")
    assert own.own_transform == untrained.transform.text
    swapped = dataclasses.replace(own, transform=TRANSFORM)
    smaller = ndl.load_backbone("torchvision:resnet18", transform={"crop_size": 64})
    dim = ndl.load_backbone("torchvision:resnet18", transform={"mean": [0.0] * 3})
    expected = {"own": None, "swapped": "warning", "smaller": "note", "dim": "warning"}
    networks = {"own": own, "swapped": swapped, "smaller": smaller, "dim": dim}
    for name, backbone in networks.items():
        features = of_stimuli(np.random.default_rng(0).standard_normal((N, 40)), stimuli.ids)
        features = features.assign_attrs(backbone.describe())
        responses = responses_to(features)
        audit = ndl.audit(features=features, responses=responses, model=RIDGE)
        severities = [one.severity for one in audit.findings if one.check == "transform"]
        assert severities == ([] if expected[name] is None else [expected[name]]), name


# The audit itself


def test_wrong_use_says_what_to_do(features, responses):
    with pytest.raises(UnknownNameError, match=r"'repeat'.*Did you mean 'repeats'"):
        ndl.cross_validate(RIDGE, features, responses, allow=["repeat"])
    with pytest.raises(SchemaError, match="audit needs responses"):
        ndl.audit(features=features)
    with pytest.raises(SchemaError, match="do not tell copies"):
        ndl.copy_groups(features)


def test_an_audit_is_kept_with_scores(features, responses, tmp_path):
    values = PCA(20, random_state=0).fit_transform(features.values)
    scores = ndl.cross_validate(RIDGE, of_stimuli(values), responses, allow="fitted")
    again = ndl.Audit.of(ndl.load(ndl.save(scores, tmp_path / "scores.nc")))
    assert again == ndl.Audit.of(scores)
    assert "[severe, allowed] fitted: " in repr(again)
    assert again.table["allowed"].tolist() == [True]
    page = ndl.report(scores).html()
    assert "Scored in spite of the audit: The features of" in page
    assert "allowed by the analyst" in page


def test_reports_say_what_was_looked_for():
    experiment, features = experiment_of(pictures())
    page = ndl.report(ndl.cross_validate(RIDGE, features, experiment.responses)).html()
    assert "8 checks found nothing that makes the scores doubtful." in page
    assert "in spite of" not in page
