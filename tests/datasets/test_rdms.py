"""bonner2017 and cichy2014: the same RDMs from either version of MATLAB's files."""

from __future__ import annotations

import h5py
import nibabel as nib
import numpy as np
import pytest
import scipy.io
from PIL import Image

import neurodl as ndl
from neurodl.datasets import rdms as module
from neurodl.errors import FileFormatError, MissingFileError, PairingError


def symmetric(rng, *shape):
    values = rng.uniform(0, 2, shape)
    values = values + np.swapaxes(values, -1, -2)
    values[..., np.arange(shape[-1]), np.arange(shape[-1])] = 0
    return values


def write_mat(path, version, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    if version == 5:
        scipy.io.savemat(path, arrays)
        return
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = array.T


@pytest.fixture(params=[5, 7.3])
def version(request):
    return request.param


@pytest.mark.parametrize("inside", ["", "data/bonner"])
def test_bonner(tmp_path, rng, version, inside):
    folder, arrays = tmp_path / inside, {}
    for name in ("EVC", "PPA", "OPA", "NAM"):
        arrays[name] = symmetric(rng, 50, 50)
        write_mat(folder / f"{name}.mat", version, rdm=arrays[name])
    lights = symmetric(rng, 3, 4, 50, 50).astype(np.float32)
    (folder / "sl_rad=1__max_blk_edge=2").mkdir()
    np.save(folder / "sl_rad=1__max_blk_edge=2" / "all_sub_slrdms.npy", lights)
    mask = np.zeros((3, 3, 3), np.uint8)
    mask[[0, 1, 2, 2], [0, 1, 0, 2], [1, 2, 2, 0]] = 1
    nib.save(nib.Nifti1Image(mask, np.eye(4)), folder / "mask.nii")
    experiment = ndl.load_dataset("bonner2017", root=tmp_path)
    for name, array in arrays.items():
        np.testing.assert_allclose(experiment.rdms[name], array, rtol=1e-6)
    found = experiment.rdms["searchlights"]
    np.testing.assert_array_equal(found, lights)
    assert found["k"].values.tolist() == [1, 2, 2, 0] and found.dims[1] == "searchlight"
    assert experiment.stimuli is None and experiment.card["citation"].startswith("Bonner")
    write_mat(folder / "PPA.mat", version, rdm=rng.uniform(size=(50, 50)))
    with pytest.raises(FileFormatError, match="not symmetric"):
        ndl.load_dataset("bonner2017", root=tmp_path)
    write_mat(folder / "PPA.mat", version, rdm=symmetric(rng, 49, 49))
    with pytest.raises(FileFormatError, match=r"expected numbers of shape \(50, 50\)"):
        ndl.load_dataset("bonner2017", root=tmp_path)
    (folder / "PPA.mat").unlink()
    with pytest.raises(MissingFileError, match=r"PPA\.mat.*load_bonner_navigational_affordances"):
        ndl.load_dataset("bonner2017", root=tmp_path)


@pytest.fixture
def cichy(tmp_path, rng, version, monkeypatch):
    monkeypatch.setattr(module, "N_TIMES", 13)  # in place of 1301
    meg = symmetric(rng, 16, 2, 13, 92, 92)
    meg[..., np.arange(92), np.arange(92)] = np.nan
    fmri = {"EVC_RDMs": symmetric(rng, 15, 92, 92), "IT_RDMs": symmetric(rng, 15, 92, 92)}
    write_mat(tmp_path / "MEG_decoding_RDMs.mat", version, MEG_decoding_RDMs=meg)
    write_mat(tmp_path / "92_Image_Set" / "target_fmri.mat", version, **fmri)
    return tmp_path, meg, fmri


def test_cichy(cichy):
    root, meg, fmri = cichy
    experiment = ndl.load_dataset("cichy2014", root=root, subjects=[3, 16], window=(-0.098, -0.095))
    found = experiment.rdms["MEG"]
    assert found.dims == ("subject", "session", "time", "stimulus", "other")
    np.testing.assert_allclose(found, meg[[2, 15], :, 2:6], rtol=1e-6)
    np.testing.assert_allclose(found["time"], [-0.098, -0.097, -0.096, -0.095])
    assert found["subject"].values.tolist() == ["sub-03", "sub-16"]
    for name in ("EVC", "IT"):
        np.testing.assert_allclose(experiment.rdms[name], fmri[f"{name}_RDMs"], rtol=1e-6)
    whole = ndl.load_dataset("cichy2014", root=root)
    np.testing.assert_allclose(whole.rdms["MEG"], meg, rtol=1e-6)
    for wrong in ({"subjects": [0]}, {"window": (2, 3)}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
            ndl.load_dataset("cichy2014", root=root, **wrong)


def test_cichy_images(cichy):
    root, _, _ = cichy
    folder = root / "92_Image_Set" / "92images"
    folder.mkdir()
    for number in range(92):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(folder / f"{number:02d}.png")
    experiment = ndl.load_dataset("cichy2014", root=root, subjects=[1])
    assert experiment.stimuli.ids == experiment.rdms["IT"]["stimulus"].values.tolist()
    assert (experiment.stimuli[41].numpy() == 41).all()
    (folder / "00.png").unlink()
    with pytest.raises(PairingError, match="holds 91 images; the RDMs are of 92"):
        ndl.load_dataset("cichy2014", root=root, subjects=[1])
