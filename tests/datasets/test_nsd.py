"""nsd: sessions in the published layout, read voxel by voxel, and put back."""

from __future__ import annotations

import h5py
import nibabel as nib
import numpy as np
import pytest
import scipy.io

import neurodl as ndl
from neurodl.datasets.cards import Card, card_folder
from neurodl.errors import FileFormatError, MissingFileError, UnknownNameError

SHAPE = (5, 6, 7)
REGIONS = {"prf-visualrois": ["V1v", "V1d", "V2v"], "floc-faces": ["OFA", "FFA-1"]}
CLASSES = ("prf-visualrois", "floc-bodies", "floc-faces", "floc-places", "floc-words", "streams")


@pytest.fixture(params=[np.uint16, np.float64])
def dtype(request):
    return request.param


@pytest.fixture
def published(tmp_path, rng, dtype):
    arrays = {}
    betas = tmp_path / "nsddata_betas/ppdata/subj02/func1pt8mm/betas_fithrf_GLMdenoise_RR"
    regions = tmp_path / "nsddata/ppdata/subj02/func1pt8mm/roi"
    labels = tmp_path / "nsddata/freesurfer/subj02/label"
    design = tmp_path / "nsddata/experiments/nsd"
    images = tmp_path / "nsddata_stimuli/stimuli/nsd"
    for folder in (betas, regions, labels, design, images):
        folder.mkdir(parents=True)
    affine = np.diag([1.8, 1.8, 1.8, 1])
    affine[:3, 3] = 3
    for session in (1, 2):
        arrays[session] = rng.integers(-3000, 3000, (*SHAPE, 750)).astype(np.int16)
        with h5py.File(betas / f"betas_session{session:02d}.hdf5", "w") as file:
            file["betas"] = arrays[session].T  # as MATLAB writes x, y, z, trials
    ncsnr = rng.uniform(0, 2, SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(ncsnr, affine), betas / "ncsnr.nii.gz")
    arrays["ncsnr"], arrays["affine"] = ncsnr, affine
    general = rng.integers(-1, 2, SHAPE)
    arrays["nsdgeneral"] = general
    nib.save(nib.Nifti1Image(general.astype(np.int16), affine), regions / "nsdgeneral.nii.gz")
    for name in CLASSES:
        names = REGIONS.get(name, ["x-" + name])
        numbers = rng.integers(-1, len(names) + 1, SHAPE)
        arrays[name] = numbers
        nib.save(nib.Nifti1Image(numbers.astype(np.int16), affine), regions / f"{name}.nii.gz")
        lines = ["0 Unknown", *(f"{number} {one}" for number, one in enumerate(names, 1))]
        (labels / f"{name}.mgz.ctab").write_text("\n".join(lines) + "\n")
    order = rng.integers(1, 41, (1, 30000))  # 40 images in place of 10,000
    subjectim = np.stack([rng.permutation(60)[:40] + 1 for _ in range(8)])
    shared = np.sort(rng.permutation(60)[:20] + 1)[None]
    content = {
        "masterordering": order.astype(dtype),
        "subjectim": subjectim.astype(dtype),
        "sharedix": shared,
    }
    scipy.io.savemat(design / "nsd_expdesign.mat", content)
    arrays["numbers"] = subjectim[1][order[0] - 1] - 1
    arrays["shared"] = shared[0] - 1
    with h5py.File(images / "nsd_stimuli.hdf5", "w") as file:
        file["imgBrick"] = np.broadcast_to(
            np.arange(60, dtype=np.uint8)[:, None, None, None], (60, 9, 9, 3)
        )
    return tmp_path, arrays


def test_presentations_of_two_sessions(published):
    root, arrays = published
    experiment = ndl.load_dataset("nsd", root=root, subject=2, sessions=[2, 1])
    responses = experiment.responses
    inside = arrays["nsdgeneral"] > 0
    expected = np.concatenate([arrays[n][inside].T for n in (2, 1)]) / 300
    np.testing.assert_allclose(responses, expected, rtol=1e-6)
    numbers = np.concatenate([arrays["numbers"][750:1500], arrays["numbers"][:750]])
    assert responses["stimulus"].values.tolist() == [f"nsd-{number:05d}" for number in numbers]
    assert responses["session"].values.tolist() == ["2"] * 750 + ["1"] * 750
    later = responses["repeat"].values[:750]
    assert later.min() > 1  # 40 images were all shown in session 1
    shared = {f"nsd-{number:05d}" for number in arrays["shared"]}
    assert set(experiment.split["test"]) == set(responses["stimulus"].values) & shared
    assert not set(experiment.split["train"]) & shared
    assert experiment.stimuli[0].shape == (3, 9, 9)
    for number, name in enumerate(experiment.stimuli.ids):
        assert (experiment.stimuli[number].numpy() == int(name[4:])).all()
    squared = arrays["ncsnr"][inside].astype(float) ** 2
    times = np.bincount(numbers)
    noise = (1 / times[times > 0]).mean()  # of a mean over as many presentations as there were
    np.testing.assert_allclose(experiment.ceiling, squared / (squared + noise), rtol=1e-5)


def test_regions_and_back(published):
    root, arrays = published
    experiment = ndl.load_dataset("nsd", root=root, subject=2, sessions=[1], roi=["V1", "OFA"])
    responses = experiment.responses
    retinotopic, faces = arrays["prf-visualrois"], arrays["floc-faces"]
    names = np.select(
        [retinotopic == 1, retinotopic == 2, faces == 1], ["V1v", "V1d", "OFA"], default=""
    )
    assert responses["roi"].values.tolist() == names[names != ""].tolist()
    image = experiment.to_nifti(responses[5])
    volume = np.where(names != "", arrays[1][..., 5] / np.float32(300), 0)
    np.testing.assert_allclose(image.get_fdata(), volume, rtol=1e-6)
    np.testing.assert_allclose(image.affine, arrays["affine"], rtol=1e-6)


def test_only_the_sessions_asked_for_are_fetched():
    card = Card.read(card_folder() / "nsd.toml")
    files = [file.path for file in card.files({"subject": 4, "sessions": [3, 30]})]
    sessions = [path.rpartition("session")[2] for path in files if "betas_session" in path]
    assert sessions == ["03.hdf5", "30.hdf5"]
    everything = [file.path for file in card.files({"subject": 4}) if "betas_session" in file.path]
    assert len(everything) == 30


def test_photographs_are_fetched_on_request_only(published):
    card = Card.read(card_folder() / "nsd.toml")
    for images, count in ((False, 0), (True, 1)):
        files = card.files({"subject": 1, "sessions": [1], "images": images})
        assert sum("nsd_stimuli" in file.path for file in files) == count
    root, _ = published
    (root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5").unlink()
    options = {"root": root, "subject": 2, "sessions": [1]}
    assert ndl.load_dataset("nsd", **options).stimuli is None
    with pytest.raises(MissingFileError, match=r"nsd_stimuli\.hdf5"):
        ndl.load_dataset("nsd", **options, images=True)


def test_what_is_missing_or_wrong(published):
    root, arrays = published
    for options, error, message in (
        ({"sessions": [0]}, UnknownNameError, "has no sessions '0'"),
        ({"sessions": [1, 1]}, UnknownNameError, "different numbers from 1 to 40"),
        ({"sessions": [1, 3]}, MissingFileError, r"betas_session03\.hdf5"),
        ({"sessions": [1], "roi": "V7"}, UnknownNameError, "There is no region 'V7'"),
        ({"subject": 1, "sessions": [1]}, MissingFileError, "naturalscenesdataset.org"),
    ):
        with pytest.raises(error, match=message):
            ndl.load_dataset("nsd", root=root, **({"subject": 2} | options))
    path = root / "nsddata_betas/ppdata/subj02/func1pt8mm/betas_fithrf_GLMdenoise_RR"
    with h5py.File(path / "betas_session01.hdf5", "w") as file:
        file["betas"] = arrays[1]
    with pytest.raises(FileFormatError, match=r"expected numbers of shape \(750, 7, 6, 5\)"):
        ndl.load_dataset("nsd", root=root, subject=2, sessions=[1])
    with h5py.File(path / "betas_session01.hdf5", "w") as file:
        file["betas"] = h5py.ExternalLink("betas_session02.hdf5", "/betas")
    with pytest.raises(FileFormatError, match="link out of the file, which is not followed"):
        ndl.load_dataset("nsd", root=root, subject=2, sessions=[1])
