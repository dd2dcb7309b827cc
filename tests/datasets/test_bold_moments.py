"""bold_moments: both versions as published, the test set with its ten repeats."""

from __future__ import annotations

import numpy as np
import pytest

import neurodl as ndl
from neurodl.datasets.cards import Card, card_folder
from neurodl.errors import FileFormatError, MissingFileError, PairingError

B = "derivatives/versionB/MNI152/prepared_allvoxel_pkl/sub-02"
A = "derivatives/versionA/MNI152/prepared_data/prepared_allvoxel_pkl/TRavg56789/sub02"


def content(rng, n_voxels, ceiling=False):
    made = {
        "train_data_allvoxel": rng.standard_normal((1000, 3, n_voxels)),
        "test_data_allvoxel": rng.standard_normal((102, 10, n_voxels)),
    }
    if ceiling:
        made["test_noiseceiling_allvoxel"] = rng.uniform(0, 100, n_voxels)
    return made


@pytest.fixture
def published(tmp_path, rng, old_pickle):
    arrays = {}
    for number, region in enumerate(("lV1v", "rV1v", "lV1d", "rV1d", "lEBA", "rEBA")):
        arrays[region] = content(rng, 2 + number)
        name = f"sub-02_roi-{region}_betas_normalized.pkl"
        old_pickle(tmp_path / B / name, arrays[region])
    for region in ("lPPA", "rPPA"):
        arrays[region] = content(rng, 3, ceiling=True)
        name = f"sub-02_roi-{region}_betas-GLMsingle_type-typed_z=1.pkl"
        old_pickle(tmp_path / B / name, arrays[region])
    for region in ("PPA", "V1v", "IPS1-2-3"):
        arrays[f"A {region}"] = content(rng, 4, ceiling=region == "PPA")
        for name in (f"{region}_TRavg56789.pkl", f"x{region}_TRavg56789.pkl"):
            old_pickle(tmp_path / A / name, arrays[f"A {region}"])
    return tmp_path, arrays


def test_repeats_regions_and_hemispheres(published):
    root, arrays = published
    experiment = ndl.load_dataset("bold_moments", root=root, subject=2, roi=["V1", "EBA"])
    responses = experiment.responses
    assert dict(responses.sizes) == {"presentation": 3000 + 1020, "voxel": 27}
    roi, side = responses["roi"].values, responses["hemisphere"].values
    assert list(dict.fromkeys(roi)) == ["V1v", "V1d", "EBA"]
    stimulus, repeat = responses["stimulus"].values, responses["repeat"].values
    for name, stored in arrays.items():
        if name[1:] == "PPA" or name.startswith("A "):
            continue
        chosen = (roi == name[1:]) & (side == {"l": "left", "r": "right"}[name[0]])
        for video, number, part, index in (
            ("0001", 1, "train", (0, 0)),
            ("0734", 3, "train", (733, 2)),
            ("1001", 1, "test", (0, 0)),
            ("1102", 10, "test", (101, 9)),
        ):
            row = np.flatnonzero((stimulus == video) & (repeat == number))
            expected = stored[f"{part}_data_allvoxel"][index]
            np.testing.assert_allclose(responses.values[row[0], chosen], expected, rtol=1e-6)
            assert len(row) == 1
    assert len(experiment.split["test"]) == 102 and experiment.ceiling is None
    averaged = ndl.average_repeats(responses)
    assert dict(averaged.sizes) == {"stimulus": 1102, "voxel": 27}


@pytest.mark.parametrize("version", ["A", "B"])
def test_published_ceilings_are_reliabilities(published, version):
    root, arrays = published
    experiment = ndl.load_dataset("bold_moments", root=root, subject=2, roi="PPA", version=version)
    names = ("lPPA", "rPPA") if version == "B" else ("A PPA",)
    percent = [arrays[name]["test_noiseceiling_allvoxel"] for name in names]
    np.testing.assert_allclose(experiment.ceiling, np.concatenate(percent) / 100, rtol=1e-6)
    if version == "B":
        assert experiment.ceiling["hemisphere"].values.tolist() == ["left"] * 3 + ["right"] * 3


def test_version_a_has_regions_of_both_hemispheres(published, old_pickle, rng):
    root, arrays = published
    options = {"root": root, "subject": 2, "version": "A"}
    responses = ndl.load_dataset("bold_moments", **options, roi=["V1v", "IPS1-2-3"]).responses
    stored = np.hstack(
        [arrays[f"A {roi}"]["train_data_allvoxel"][7, 1] for roi in ("V1v", "IPS1-2-3")]
    )
    row = (responses["stimulus"].values == "0008") & (responses["repeat"].values == 2)
    np.testing.assert_allclose(responses.values[row][0], stored, rtol=1e-6)
    assert "hemisphere" not in responses.coords
    with pytest.raises(MissingFileError, match="has 0 files of MT of subject 2"):
        ndl.load_dataset("bold_moments", **options, roi="MT")
    old_pickle(root / A / "again" / "V1v.pkl", arrays["A V1v"])
    with pytest.raises(MissingFileError, match="has 2 files of V1v"):
        ndl.load_dataset("bold_moments", **options, roi="V1v")


def test_only_what_is_asked_for_is_fetched():
    card = Card.read(card_folder() / "bold_moments.toml")
    files = card.files({"subject": 3, "roi": card.united(["V1", "LOC"]), "version": "B"})
    names = [file.path.rpartition("_roi-")[2].split("_")[0] for file in files if file.urls]
    assert names == ["lV1v", "lV1d", "lLOC", "rV1v", "rV1d", "rLOC"]
    assert files[0].urls[0].startswith("https://s3.amazonaws.com/openneuro.org/ds005165/deriv")
    assert "sub-03/sub-03_roi-lV1v_betas_normalized.pkl" in files[0].urls[0]


def test_what_is_missing_or_wrong(published, rng, old_pickle):
    root, _ = published
    with pytest.raises(MissingFileError, match=r"2 files are not in.*lLOC_betas_normalized\.pkl"):
        ndl.load_dataset("bold_moments", root=root, subject=2, roi="LOC")
    (root / "stimuli").mkdir()
    for number in range(1, 1102):
        (root / "stimuli" / f"{number:04d}.mp4").touch()
    with pytest.raises(PairingError, match=r"1 videos are not in .*stimuli: '1102\.mp4'"):
        ndl.load_dataset("bold_moments", root=root, subject=2, roi="EBA")
    (root / "stimuli" / "1102.mp4").touch()
    experiment = ndl.load_dataset("bold_moments", root=root, subject=2, roi="EBA")
    assert experiment.stimuli.ids[-1] == "1102"
    wrong = content(rng, 3) | {"test_data_allvoxel": np.zeros((102, 9, 3))}
    old_pickle(root / B / "sub-02_roi-lEBA_betas_normalized.pkl", wrong)
    with pytest.raises(FileFormatError, match=r"test_data_allvoxel .* expected .*\(102, 10, any\)"):
        ndl.load_dataset("bold_moments", root=root, subject=2, roi="EBA")
