"""haxby2001: the recording itself, laid out as nilearn does."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

import neurodl as ndl
from neurodl.errors import FileFormatError, MissingFileError, UnknownNameError


@pytest.fixture(params=["", "haxby2001"])
def published(tmp_path, recordings, request):
    """Return a folder that leads to the slice of subject 1, with masks of its voxels."""
    source, folder = recordings / "haxby2001_slice", tmp_path / request.param / "subj1"
    folder.mkdir(parents=True)
    (folder / "bold.nii.gz").symlink_to(source / "bold.nii.gz")
    attributes = (source / "attributes_literal.txt").read_text().strip()
    (folder / "labels.txt").write_text(f"labels chunks\n{attributes}\n")
    mask = nib.load(source / "mask.nii.gz")
    inside = np.asarray(mask.dataobj) > 0
    for name, rows in (("mask4_vt", slice(None)), ("mask8_face_vt", slice(0, 20))):
        part = np.zeros(inside.shape, np.uint8)
        part[rows] = inside[rows]
        nib.save(nib.Nifti1Image(part, mask.affine), folder / f"{name}.nii.gz")
    return tmp_path, folder, source


def test_the_recording_and_its_blocks(published):
    root, folder, source = published
    experiment = ndl.load_dataset("haxby2001", root=root, subject=1)
    bold = nib.load(source / "bold.nii.gz").get_fdata(dtype=np.float32)
    inside = nib.load(folder / "mask4_vt.nii.gz").get_fdata() > 0
    np.testing.assert_array_equal(experiment.responses, bold[inside].T)
    events = experiment.events
    assert len(events) == 12 * 8 and events.groupby("run").size().eq(8).all()
    assert set(events["trial_type"]) == {
        "face", "house", "cat", "bottle", "scissors", "shoe", "chair", "scrambledpix"
    }  # fmt: skip
    assert set(events["duration"]) == {22.5}
    lines = [line.split() for line in (folder / "labels.txt").read_text().splitlines()[1:]]
    for _, event in events.iterrows():
        rows = [row for row, (_, run) in enumerate(lines) if run == event["run"]]
        first = rows[0] + round(event["onset"] / 2.5)
        assert lines[first][0] == event["trial_type"] != lines[first - 1][0]
    times = experiment.responses["time"].values
    assert times[121] == 0 and times[120] == 300


def test_regions(published):
    root, folder, _ = published
    both = ndl.load_dataset("haxby2001", root=root, subject=1, roi=["face", "vt"]).responses
    counts = [
        int((nib.load(folder / f"{name}.nii.gz").get_fdata() > 0).sum())
        for name in ("mask8_face_vt", "mask4_vt")
    ]
    assert (both["roi"].values == "face").sum() == counts[0]
    assert both.sizes["voxel"] == counts[1]
    with pytest.raises(MissingFileError, match="Subject 1 has no mask 'house'"):
        ndl.load_dataset("haxby2001", root=root, subject=1, roi="house")
    with pytest.raises(UnknownNameError, match="no region 'faces'. Did you mean 'face'"):
        ndl.load_dataset("haxby2001", root=root, subject=1, roi="faces")


def test_what_is_missing_or_wrong(published):
    root, folder, _ = published
    with pytest.raises(
        MissingFileError, match=r"subj2-2010\.01\.14\.tar\.gz from https://data\.py"
    ):
        ndl.load_dataset("haxby2001", root=root)
    labels = folder / "labels.txt"
    labels.write_text("\n".join(labels.read_text().splitlines()[:-1]))
    with pytest.raises(FileFormatError, match="labels.txt 1451 volumes"):
        ndl.load_dataset("haxby2001", root=root, subject=1)
    labels.write_text("a b\n1 2\n")
    with pytest.raises(FileFormatError, match="columns labels and chunks"):
        ndl.load_dataset("haxby2001", root=root, subject=1)
