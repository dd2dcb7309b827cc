"""Archives of predictions: exactly what each challenge takes, and nothing that it would refuse."""

from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest
import xarray as xr

import neurodl as ndl
from neurodl.errors import PairingError, SchemaError, UnknownNameError
from neurodl.reports import submissions as module

ROIS = ["LOC", "FFA", "STS", "EBA", "PPA", "V1", "V2", "V3", "V4"]


def mini(rng):
    return {roi: {s: rng.random((102, 3 + s)) for s in range(1, 11)} for roi in ROIS}


def opened(path, member):
    with zipfile.ZipFile(path) as archive:
        return archive.read(member)


@pytest.mark.parametrize("label", ["{}", "sub{:02d}", "sub-{:02d}"])
def test_2021_mini_track(tmp_path, rng, label):
    predictions = mini(rng)
    given = {
        roi: {label.format(s): array for s, array in reversed(of.items())}
        for roi, of in reversed(predictions.items())
    }
    path = ndl.submission("algonauts2021", given, tmp_path / "mini.zip")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["mini_track.pkl"]
    content = pickle.loads(opened(path, "mini_track.pkl"))
    assert list(content) == ROIS and list(content["V1"]) == [f"sub{s:02d}" for s in range(1, 11)]
    assert content["EBA"]["sub04"].dtype == np.float32
    np.testing.assert_allclose(content["EBA"]["sub04"], predictions["EBA"][4], rtol=1e-6)
    again = ndl.submission("algonauts2021", given, tmp_path / "again.zip")
    assert again.read_bytes() == path.read_bytes()


def test_2021_full_track_takes_arrays_with_names(tmp_path, rng):
    arrays = {s: rng.random((102, 5)) for s in range(1, 11)}
    named = {s: xr.DataArray(array, dims=("stimulus", "voxel")) for s, array in arrays.items()}
    path = ndl.submission("algonauts2021", {"WB": named}, tmp_path / "full.zip")
    content = pickle.loads(opened(path, "full_track.pkl"))
    np.testing.assert_allclose(content["WB"]["sub10"], arrays[10], rtol=1e-6)


@pytest.fixture
def small(monkeypatch):
    """Fewer vertices than there are, to be quick."""
    monkeypatch.setattr(module, "N_VERTICES", {"lh": 19, "rh": 20})


def images(rng):
    counts = (159, 159, 293, 395, 159, 293, 159, 395)
    return {
        s: {"lh": rng.random((n, 19 - (s in (6, 8)))), "rh": rng.random((n, 20 - (s in (6, 8))))}
        for s, n in enumerate(counts, 1)
    }


def test_2023_folders_and_names(tmp_path, rng, small):
    predictions = images(rng)
    path = ndl.submission("algonauts2023", predictions, tmp_path / "a.zip")
    with zipfile.ZipFile(path) as archive:
        expected = [f"subj{s:02d}/{h}_pred_test.npy" for s in range(1, 9) for h in ("lh", "rh")]
        assert archive.namelist() == expected
    stored = np.load(io.BytesIO(opened(path, "subj04/rh_pred_test.npy")))
    assert stored.dtype == np.float32
    np.testing.assert_allclose(stored, predictions[4]["rh"], rtol=1e-6)


def test_2023_numbers_of_vertices_are_compared_with_the_masks(tmp_path, rng, small):
    predictions = images(rng)
    for s in range(1, 9):
        folder = tmp_path / f"subj{s:02d}" / "roi_masks"
        folder.mkdir(parents=True)
        for side in ("lh", "rh"):
            mask = np.zeros(163842, int)
            mask[: predictions[s][side].shape[1] + (s == 6)] = 1
            np.save(folder / f"{side}.all-vertices_fsaverage_space.npy", mask)
    with pytest.raises(SchemaError, match=r"subject 6, lh .*\(293, 18\); expected .*\(293, 19\)"):
        ndl.submission("algonauts2023", predictions, tmp_path / "a.zip", root=tmp_path)
    assert not (tmp_path / "a.zip").exists()


def test_2023_archives_that_are_too_large_are_not_kept(tmp_path, rng, small, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 10_000)
    with pytest.raises(SchemaError, match="at most 0 MB are taken"):
        ndl.submission("algonauts2023", images(rng), tmp_path / "a.zip")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("phase", "parts"), [("friends-s7", ["s07e01a", "s07e01b"]), ("ood", ["chaplin1", "wot2"])]
)
def test_2025_numbers_of_samples_are_the_published_ones(tmp_path, rng, phase, parts):
    counts = dict(zip(parts, (12, 9), strict=True))
    for subject in (1, 2, 3, 5):
        folder = tmp_path / "fmri" / f"sub-{subject:02d}" / "target_sample_number"
        folder.mkdir(parents=True)
        path = folder / f"sub-{subject:02d}_{phase}_fmri_samples.npy"
        np.save(path, np.array(counts, object), allow_pickle=True)
    predictions = {
        s: {part: rng.random((n, 1000)) for part, n in counts.items()} for s in (5, 3, 2, 1)
    }
    path = ndl.submission("algonauts2025", predictions, tmp_path / "a.zip", root=tmp_path)
    member = f"fmri_predictions_{'friends_s7' if phase == 'friends-s7' else 'ood'}.npy"
    content = np.load(io.BytesIO(opened(path, member)), allow_pickle=True).item()
    assert list(content) == ["sub-01", "sub-02", "sub-03", "sub-05"]
    np.testing.assert_allclose(content["sub-05"][parts[1]], predictions[5][parts[1]], rtol=1e-6)
    predictions[2][parts[0]] = predictions[2][parts[0]][1:]
    with pytest.raises(SchemaError, match=rf"subject 2, {parts[0]} .*expected .*\(12, 1000\)"):
        ndl.submission("algonauts2025", predictions, tmp_path / "b.zip", root=tmp_path)
    del predictions[1][parts[1]]
    with pytest.raises(PairingError, match=f"parts of subject 1 .*missing are '{parts[1]}'"):
        ndl.submission("algonauts2025", predictions, tmp_path / "b.zip", root=tmp_path)
    with pytest.raises(ValueError, match="say where: root='folder'"):
        ndl.submission("algonauts2025", predictions, tmp_path / "b.zip")


def test_what_a_challenge_would_refuse_is_not_written(tmp_path, rng):
    path = tmp_path / "a.zip"
    good = mini(rng)

    def changed(roi, subject, array):
        return good | {roi: good[roi] | {subject: array}}

    for predictions, error, message in (
        ({roi: good[roi] for roi in ROIS[1:]}, PairingError, "regions .*missing are 'LOC'"),
        (good | {"V5": good["V4"]}, PairingError, "unknown are 'V5'"),
        (good | {"V1": {1: good["V1"][1]}}, PairingError, r"V1: subjects .*missing are '2', '3'"),
        (changed("V2", 3, np.zeros((1000, 4))), SchemaError, r"V2, subject 3 .*\(102, any\)"),
        (changed("V2", 3, np.full((102, 4), np.nan)), SchemaError, "values that are not finite"),
        (changed("V2", 3, np.full((102, 4), "a")), SchemaError, "V2, subject 3 are <U1"),
        (good | {"V1": [1]}, SchemaError, "V1: expected a mapping by subject, got list"),
        ({}, SchemaError, "a mapping that is not empty"),
    ):
        with pytest.raises(error, match=message):
            ndl.submission("algonauts2021", predictions, path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UnknownNameError, match="Did you mean 'algonauts2021'"):
        ndl.submission("algonauts21", good, path)
    with pytest.raises(ValueError, match=r"written to '\*\.zip'"):
        ndl.submission("algonauts2021", good, tmp_path / "a.pkl")
