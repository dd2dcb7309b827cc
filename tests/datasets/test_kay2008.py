"""kay2008: files laid out as published, smaller, and what is said where they are not."""

from __future__ import annotations

import numpy as np
import pytest

import neurodl as ndl
from neurodl.errors import DownloadError, FileFormatError, MissingFileError, SchemaError

ROIS = ["Other", "V1", "V2", "V3", "V3A", "V3B", "V4", "LatOcc"]
N_TRAIN, N_TEST, N_VOXELS = 12, 5, 40


@pytest.fixture(params=["unicode", "list"])
def published(tmp_path, rng, request):
    """Return the folder and the arrays in it; names are an array of text or of objects."""
    arrays = {
        "stimuli": rng.normal(0, 0.3, (N_TRAIN, 128, 128)),
        "stimuli_test": rng.normal(0, 0.3, (N_TEST, 128, 128)),
        "responses": rng.standard_normal((N_TRAIN, N_VOXELS)),
        "responses_test": rng.standard_normal((N_TEST, N_VOXELS)),
        "roi": rng.integers(1, 8, N_VOXELS),
        "roi_names": np.array(ROIS, object if request.param == "list" else None),
    }
    arrays["stimuli"][3] = np.linspace(-2, 3, 128 * 128).reshape(128, 128)
    arrays["stimuli_test"][0] += 9  # brighter than any training image
    np.savez(tmp_path / "kay_images.npz", **arrays)
    for name, count in (("kay_labels.npy", N_TRAIN), ("kay_labels_val.npy", N_TEST)):
        labels = [
            [f"{level} {number}" for number in range(count)] for level in ("a", "b", "c", "d")
        ]
        np.save(tmp_path / name, np.array(labels))
    return tmp_path, arrays


def test_everything_is_where_it_belongs(published):
    folder, arrays = published
    experiment = ndl.load_dataset("kay2008", root=folder)
    responses, split = experiment.responses, experiment.split
    assert responses.dims == ("stimulus", "voxel") and responses.dtype == np.float32
    assert (len(split["train"]), len(split["test"])) == (N_TRAIN, N_TEST)
    for part, name in (("train", "responses"), ("test", "responses_test")):
        np.testing.assert_allclose(responses.sel(stimulus=split[part]), arrays[name], rtol=1e-6)
    assert responses["roi"].values.tolist() == [ROIS[number] for number in arrays["roi"]]
    assert experiment.stimuli.ids == split["train"] + split["test"]
    assert experiment.card["citation"].startswith("Kay")
    table = experiment.stimuli.table
    assert table.loc["train-0003", ["category_1", "category_3", "label"]].tolist() == [
        "a 3", "c 3", "d 3"
    ]  # fmt: skip
    assert table.loc["test-002", "label"] == "d 2"


def test_black_and_white_are_those_of_the_training_images(published):
    folder, arrays = published
    stimuli = ndl.load_dataset("kay2008", root=folder).stimuli
    found = stimuli[3].numpy()
    assert (found.min(), found.max()) == (0, 255) and (found[0] == found[2]).all()
    expected = (arrays["stimuli"][7] + 2) / 5 * 255
    np.testing.assert_allclose(stimuli[7][0], expected, atol=0.51)
    assert (stimuli[N_TRAIN].numpy() == 255).all()  # clipped, not the scale of all others


def test_one_region_goes_through_to_scores(published):
    folder, arrays = published
    experiment = ndl.load_dataset("kay2008", root=folder, roi=["V1", "V2"])
    assert set(experiment.responses["roi"].values) <= {"V1", "V2"}
    features = ndl.extract_features("pixels", experiment.stimuli, cache=False)
    ids = list(experiment.responses["stimulus"].values)
    rows = [
        np.array([ids.index(one) for one in experiment.split[part]]) for part in ("train", "test")
    ]
    model = ndl.RidgeCV([1e3, 1e5, 1e7], cv=2, device="cpu")
    with pytest.warns(ndl.NeurodlWarning):  # noise is predicted best by the largest penalty
        scores = ndl.cross_validate(model, features, experiment.responses, cv=[tuple(rows)])
    assert scores["n_test"].values.tolist() == [N_TEST]


def test_labels_are_optional_but_never_of_other_images(published, caplog):
    folder, _ = published
    np.save(folder / "kay_labels.npy", np.full((4, N_TRAIN - 1), "cat"))
    with pytest.raises(FileFormatError, match=r"kay_labels\.npy has shape \(4, 11\); expected"):
        ndl.load_dataset("kay2008", root=folder)
    (folder / "kay_labels.npy").unlink()
    with caplog.at_level("INFO"):
        table = ndl.load_dataset("kay2008", root=folder).stimuli.table
    assert "label" not in table and "no labels: 'kay_labels.npy' is not in" in caplog.text


def test_files_that_are_not_there_say_where_to_get_them(tmp_path, monkeypatch):
    with pytest.raises(MissingFileError, match=r"kay_images\.npz from https://osf\.io/ymnjv"):
        ndl.load_dataset("kay2008", root=tmp_path)
    monkeypatch.setenv("NEURODL_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"fetch it from https://osf\.io/ymnjv"):
        ndl.load_dataset("kay2008")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"responses": None}, FileFormatError, "lacks the arrays 'responses'"),
        ({"responses": np.zeros((3, N_VOXELS))}, SchemaError, "not of the same images"),
        ({"roi": np.full(N_VOXELS, 8)}, SchemaError, "roi must number the 40 voxels"),
        ({"roi": np.zeros(3, int)}, SchemaError, r"shape \(3,\)"),
        ({"stimuli": np.full((N_TRAIN, 128, 128), np.nan)}, FileFormatError, "finite"),
    ],
)
def test_other_contents_are_named(published, change, error, message):
    folder, arrays = published
    changed = {key: value for key, value in (arrays | change).items() if value is not None}
    np.savez(folder / "kay_images.npz", **changed)
    with pytest.raises(error, match=message):
        ndl.load_dataset("kay2008", root=folder)
