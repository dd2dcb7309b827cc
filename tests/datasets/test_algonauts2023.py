"""algonauts2023: masks, regions that a subject lacks, and back onto the surface."""

from __future__ import annotations

import numpy as np
import pytest

import neurodl as ndl
from neurodl.datasets.algonauts2023 import CLASSES, N_NODES
from neurodl.errors import FileFormatError, MissingFileError, PairingError, UnknownNameError

NAMES = {
    "prf-visualrois": ["V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"],
    "floc-bodies": ["EBA", "FBA-1", "FBA-2", "mTL-bodies"],
    "floc-faces": ["OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"],
    "floc-places": ["OPA", "PPA", "RSC"],
    "floc-words": ["OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"],
    "streams": ["early", "midventral", "midlateral", "midparietal", "ventral", "lateral"],
}  # fmt: skip
N = {"lh": 40, "rh": 44}
N_IMAGES = 6
NSD = [13, 17, 4, 72999, 250, 90]


@pytest.fixture
def published(tmp_path, rng):
    folder = tmp_path / "subj03"
    arrays = {}
    fmri, masks = folder / "training_split" / "training_fmri", folder / "roi_masks"
    for one in (fmri, masks, folder / "training_split" / "training_images"):
        one.mkdir(parents=True)
    (folder / "test_split" / "test_images").mkdir(parents=True)
    for side, n_vertices in N.items():
        arrays[side] = rng.standard_normal((N_IMAGES, n_vertices)).astype(np.float32)
        np.save(fmri / f"{side}_training_fmri.npy", arrays[side])
        nodes = np.zeros(N_NODES, np.int64)
        nodes[np.sort(rng.permutation(N_NODES)[:n_vertices])] = 1
        arrays[side, "nodes"] = np.flatnonzero(nodes)
        np.save(masks / f"{side}.all-vertices_fsaverage_space.npy", nodes)
        for name, regions in NAMES.items():
            numbers = rng.integers(0, len(regions) + 1, n_vertices)
            if name == "floc-faces":
                numbers[numbers == 5] = 0  # nobody has an aTL-faces
            if name == "floc-places" and side == "lh":
                numbers[numbers == 2] = 0  # and no PPA on the left
            arrays[side, name] = numbers
            np.save(masks / f"{side}.{name}_challenge_space.npy", numbers)
    for name, regions in NAMES.items():
        mapping = {0: "Unknown", **dict(enumerate(regions, 1))}
        np.save(masks / f"mapping_{name}.npy", np.array(mapping, object), allow_pickle=True)
    from PIL import Image

    for number, nsd in enumerate(NSD, 1):
        name = f"train-{number:04d}_nsd-{nsd:05d}.png"
        picture = Image.fromarray(np.full((8, 8, 3), number, np.uint8))
        picture.save(folder / "training_split" / "training_images" / name)
    for number, nsd in enumerate([845, 846], 1):
        name = f"test-{number:04d}_nsd-{nsd:05d}.png"
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(
            folder / "test_split" / "test_images" / name
        )
    return tmp_path, arrays


def test_everything_is_where_it_belongs(published):
    root, arrays = published
    experiment = ndl.load_dataset("algonauts2023", root=root, subject=3)
    responses = experiment.responses
    assert responses["stimulus"].values.tolist() == [f"nsd-{number:05d}" for number in NSD]
    assert experiment.split["test"] == ["nsd-00845", "nsd-00846"]
    assert (experiment.stimuli[3].numpy() == 4).all()  # the fourth image, nsd-72999
    np.testing.assert_array_equal(responses, np.hstack([arrays["lh"], arrays["rh"]]))
    for name in CLASSES:
        labels = ["", *NAMES[name]]
        numbers = np.concatenate([arrays[side, name] for side in N])
        assert responses[name].values.tolist() == [labels[number] for number in numbers]
    first = responses["roi"].values
    retinotopic = responses["prf-visualrois"].values
    assert (first[retinotopic != ""] == retinotopic[retinotopic != ""]).all()
    in_none = np.all([responses[name].values == "" for name in CLASSES], axis=0)
    assert ((first == "") == in_none).all()
    assert responses.attrs["rois_without_targets"] == "aTL-faces"
    ndl.check_responses(responses)


def test_regions_are_read_alone(published):
    root, arrays = published
    part = ndl.load_dataset("algonauts2023", root=root, subject=3, roi=["V1", "PPA"]).responses
    expected = []
    for side in N:
        inside = np.isin(arrays[side, "prf-visualrois"], [1, 2]) | (
            arrays[side, "floc-places"] == 2
        )
        expected.append(arrays[side][:, inside])
    np.testing.assert_array_equal(part, np.hstack(expected))
    assert set(part["roi"].values) == {"V1v", "V1d", "PPA"}
    assert set(part["hemisphere"].values[part["floc-places"].values == "PPA"]) == {"right"}
    left = ndl.load_dataset("algonauts2023", root=root, subject=3, hemisphere="left", roi="hV4")
    np.testing.assert_array_equal(
        left.responses, arrays["lh"][:, arrays["lh", "prf-visualrois"] == 7]
    )


def test_scores_go_back_onto_this_subjects_surface(published):
    root, arrays = published
    experiment = ndl.load_dataset("algonauts2023", root=root, subject=3, roi=["V2v", "OFA"])
    meshes = experiment.to_surface(experiment.responses[2])
    for name, side in (("left", "lh"), ("right", "rh")):
        inside = (arrays[side, "prf-visualrois"] == 3) | (arrays[side, "floc-faces"] == 1)
        expected = np.full(N_NODES, np.nan, np.float32)
        expected[arrays[side, "nodes"][inside]] = arrays[side][2, inside]
        np.testing.assert_array_equal(meshes[name], expected)


def test_what_is_missing_or_wrong(published):
    root, _ = published
    folder = root / "subj03"
    with pytest.raises(UnknownNameError, match="no vertex in 'aTL-faces'"):
        ndl.load_dataset("algonauts2023", root=root, subject=3, roi="aTL-faces")
    with pytest.raises(UnknownNameError, match="There is no region 'V9'"):
        ndl.load_dataset("algonauts2023", root=root, subject=3, roi=["V9", "V1v"])
    with pytest.raises(UnknownNameError, match="'both', 'left' or 'right'"):
        ndl.load_dataset("algonauts2023", root=root, subject=3, hemisphere="lh")
    with pytest.raises(MissingFileError, match=r"23 files are not in .*docs\.google\.com/forms"):
        ndl.load_dataset("algonauts2023", root=root, subject=1)
    mask = folder / "roi_masks" / "lh.streams_challenge_space.npy"
    stored = np.load(mask)
    np.save(mask, np.where(stored == 1, 9, stored))
    with pytest.raises(FileFormatError, match=r"regions \[9\] that have no name"):
        ndl.load_dataset("algonauts2023", root=root, subject=3)
    np.save(mask, stored[:-1])
    with pytest.raises(FileFormatError, match="differ in their numbers of vertices"):
        ndl.load_dataset("algonauts2023", root=root, subject=3)
    np.save(mask, stored)
    next((folder / "training_split" / "training_images").glob("*.png")).unlink()
    with pytest.raises(PairingError, match="responses to 6 images, but there are 5"):
        ndl.load_dataset("algonauts2023", root=root, subject=3)
