"""algonauts2021: both tracks as published, and back into the brain."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

import neurodl as ndl
from neurodl.datasets.algonauts2021 import AFFINE, GRID, ROIS
from neurodl.errors import FileFormatError, MissingFileError, PairingError, UnknownNameError

SIZES = dict(zip(ROIS, range(2, 11), strict=True))


@pytest.fixture(scope="module")
def published(tmp_path_factory, old_pickle):
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("algonauts2021")
    data = root / "participants_data_v2021"
    arrays = {}
    for roi, size in SIZES.items():
        arrays[roi] = rng.standard_normal((1000, 3, size)).astype(np.float32)
        old_pickle(data / "mini_track" / "sub04" / f"{roi}.pkl", {"train": arrays[roi]})
    mask = np.zeros(GRID)
    mask[rng.permutation(78)[:20], rng.permutation(93)[:20], rng.permutation(71)[:20]] = 1
    arrays["WB"] = rng.standard_normal((1000, 3, 20))
    arrays["mask"] = mask
    whole = {"train": arrays["WB"], "voxel_mask": mask}
    old_pickle(data / "full_track" / "sub04" / "WB.pkl", whole)
    return root, arrays


def test_regions_side_by_side(published):
    root, arrays = published
    experiment = ndl.load_dataset("algonauts2021", root=root, subject="sub-04")
    responses = experiment.responses
    assert responses.dims == ("stimulus", "repeat", "voxel") and responses.dtype == np.float32
    assert list(dict.fromkeys(responses["roi"].values)) == list(ROIS)
    for roi in ROIS:
        np.testing.assert_array_equal(responses[..., responses["roi"] == roi], arrays[roi])
    assert (len(experiment.split["train"]), len(experiment.split["test"])) == (1000, 102)
    assert responses["stimulus"].values.tolist() == experiment.split["train"]
    assert responses.attrs["subject"] == "sub-04" and experiment.stimuli is None
    assert "not be given on" in experiment.card["terms"]


@pytest.mark.parametrize("top", [True, False])
def test_one_region_from_either_folder(published, top):
    root, arrays = published
    folder = root if top else root / "participants_data_v2021"
    experiment = ndl.load_dataset("algonauts2021", root=folder, subject=4, roi="EBA")
    np.testing.assert_array_equal(experiment.responses, arrays["EBA"])


def test_the_whole_brain_goes_back_into_it(published, recordings):
    root, arrays = published
    experiment = ndl.load_dataset("algonauts2021", root=root, subject=4, track="full")
    row = experiment.responses[7, 1]
    image = experiment.to_nifti(row)
    expected = np.zeros(GRID)
    expected[arrays["mask"] == 1] = arrays["WB"][7, 1]
    np.testing.assert_allclose(image.get_fdata(), expected, rtol=1e-6)
    example = nib.load(recordings / "algonauts2021_example" / "example.nii")
    np.testing.assert_array_equal(image.affine, example.affine)
    assert image.shape == example.shape
    assert image.header["sform_code"] == example.header["sform_code"]
    np.testing.assert_array_equal(AFFINE, example.affine)


def test_videos_are_paired_by_the_order_of_their_names(published, tmp_path):
    root, _ = published
    folder = tmp_path / "AlgonautsVideos268_All_30fpsmax"
    folder.mkdir()
    (tmp_path / "participants_data_v2021").symlink_to(root / "participants_data_v2021")
    options = {"root": tmp_path, "subject": 4, "roi": "V1"}
    for number in reversed(range(1102)):
        (folder / f"{number:04d}_x.mp4").touch()
    stimuli = ndl.load_dataset("algonauts2021", **options).stimuli
    assert (
        stimuli.ids[0] == "video-0001" and stimuli.table.loc["video-1102", "file"] == "1101_x.mp4"
    )
    (folder / "0005_x.mp4").unlink()
    with pytest.raises(PairingError, match="holds 1101 videos"):
        ndl.load_dataset("algonauts2021", **options)


def test_what_is_missing_or_wrong(published, tmp_path, old_pickle):
    root, _ = published
    with pytest.raises(MissingFileError, match=r"9 files are not in.*forms\.gle/qq9uqqu6SwN8ytxQ9"):
        ndl.load_dataset("algonauts2021", root=root, subject=5)
    with pytest.raises(UnknownNameError, match="has no subject '11'"):
        ndl.load_dataset("algonauts2021", root=root, subject=11)
    with pytest.raises(UnknownNameError, match="has no roi 'V5'. Did you mean"):
        ndl.load_dataset("algonauts2021", root=root, subject=4, roi="V5")
    with pytest.raises(UnknownNameError, match="has no track 'whole'"):
        ndl.load_dataset("algonauts2021", root=root, subject=4, track="whole")
    with pytest.raises(UnknownNameError, match="whole brain, without `roi`"):
        ndl.load_dataset("algonauts2021", root=root, subject=4, track="full", roi="V1")
    for content, message in (
        ({"train": np.zeros((900, 3, 5))}, r"shape \(900, 3, 5\); expected .* \(1000, 3, any\)"),
        ({"test": 1}, "lacks 'train'; it holds 'test'"),
        ([1], "holds a list"),
        ({"train": "x"}, "train is a str"),
    ):
        old_pickle(tmp_path / "participants_data_v2021/mini_track/sub04/V1.pkl", content)
        with pytest.raises(FileFormatError, match=message):
            ndl.load_dataset("algonauts2021", root=tmp_path, subject=4, roi="V1")
    mask = np.zeros(GRID)
    mask[:2, 0, 0] = 1
    wrong = {"train": np.zeros((1000, 3, 5)), "voxel_mask": mask}
    old_pickle(tmp_path / "participants_data_v2021/full_track/sub04/WB.pkl", wrong)
    with pytest.raises(FileFormatError, match="voxel_mask has 2 voxels, train has 5"):
        ndl.load_dataset("algonauts2021", root=tmp_path, subject=4, track="full")
