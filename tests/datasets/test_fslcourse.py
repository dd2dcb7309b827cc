"""fslcourse: two tasks with their own TR and conditions."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

import neurodl as ndl
from neurodl.errors import FileFormatError, MissingFileError, UnknownNameError


@pytest.fixture
def published(tmp_path, rng):
    folder = tmp_path / "fslcourse_data" / "fluency"
    (folder / "EVs").mkdir(parents=True)
    values = rng.uniform(50, 60, (6, 7, 5, 106)).astype(np.float32)
    values[2:] += 900  # the brain
    nib.save(nib.Nifti1Image(values, np.diag([2, 2, 2, 1])), folder / "fmri_data.nii.gz")
    (folder / "EVs" / "Gen.txt").write_text("0 24 1\n60 24 1\n")
    (folder / "EVs" / "Shad.txt").write_text("30 24 1\n")
    return tmp_path, values


def test_fluency(published):
    root, values = published
    mask = nib.Nifti1Image((values[..., 0] > 500).astype(np.uint8), np.diag([2, 2, 2, 1]))
    experiment = ndl.load_dataset("fslcourse", root=root, mask=mask)
    responses = experiment.responses
    np.testing.assert_allclose(responses.values, values[2:].reshape(-1, 106).T, rtol=1e-6)
    assert responses.attrs["tr"] == 4.2  # not what the header says
    assert experiment.events["trial_type"].tolist() == ["Gen", "Shad", "Gen"]
    image = experiment.to_nifti(responses[4].drop_vars("time"))
    np.testing.assert_allclose(image.get_fdata()[2:], values[2:, ..., 4], rtol=1e-6)
    assert (image.get_fdata()[:2] == 0).all()


def test_what_is_missing_or_wrong(published):
    root, values = published
    with pytest.raises(UnknownNameError, match="has no task 'fluence'. Did you mean 'fluency'"):
        ndl.load_dataset("fslcourse", root=root, task="fluence")
    with pytest.raises(MissingFileError, match=r"osf\.io/syt65"):
        ndl.load_dataset("fslcourse", root=root, task="parametric")
    path = root / "fslcourse_data" / "fluency"
    nib.save(nib.Nifti1Image(values[..., :50], np.eye(4)), path / "fmri_data.nii.gz")
    mask = nib.Nifti1Image(np.ones((6, 7, 5), np.uint8), np.eye(4))
    with pytest.raises(FileFormatError, match="has 50 volumes; fluency has 106"):
        ndl.load_dataset("fslcourse", root=root, mask=mask)
