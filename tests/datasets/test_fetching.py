"""Files of datasets: found, fetched, unpacked, checked; terms shown once; ways on where gated."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading

import numpy as np
import pytest

import neurodl as ndl
from neurodl.datasets import check_dataset, fetch_dataset, registry
from neurodl.datasets.cards import Card
from neurodl.datasets.fetching import how_to_get
from neurodl.errors import DownloadError, FileFormatError, MissingFileError, UnknownNameError

CARD = """
name = "kay2008"
title = "Title"
authors = "Authors"
terms = "Be kind."
form = "https://example.org/form"
steps = "Fill in the form."
"""


@pytest.fixture
def published(tmp_path):
    """Return the folder that the server shows."""
    folder = tmp_path / "published"
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.savez(
        folder / "images",
        stimuli=rng.normal(size=(3, 8, 8)),
        stimuli_test=rng.normal(size=(2, 8, 8)),
        responses=rng.normal(size=(3, 4)),
        responses_test=rng.normal(size=(2, 4)),
        roi=np.array([1, 1, 2, 2]),
        roi_names=np.array(["Other", "V1", "V2"]),
    )
    np.save(folder / "labels.npy", np.full((4, 3), "cat"))
    np.save(folder / "labels_val.npy", np.full((4, 2), "dog"))
    return folder


@pytest.fixture
def address(published):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args):
            pass

    handler = functools.partial(Quiet, directory=str(published))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def card(tmp_path, monkeypatch):
    """Return what writes the card that is then used for kay2008."""
    folder = shutil.copytree(registry.card_folder(), tmp_path / "cards")
    monkeypatch.setattr(registry, "card_folder", lambda: folder)

    def write(files):
        (folder / "kay2008.toml").write_text(CARD + files)

    return write


def entries(address):
    names = {
        "kay_images.npz": "images.npz",
        "kay_labels.npy": "labels.npy",
        "kay_labels_val.npy": "labels_val.npy",
    }
    return "\n".join(
        f'[[files]]\npath = "{path}"\nurls = ["{address}/gone", "{address}/{name}"]\n'
        f"optional = {'true' if 'labels' in path else 'false'}"
        for path, name in names.items()
    )


def test_one_call_fetches_and_opens(card, address, tmp_path, monkeypatch, caplog):
    card(entries(address))
    experiment = ndl.load_dataset("kay2008", roi="V2")
    assert dict(experiment.responses.sizes) == {"stimulus": 5, "voxel": 2}
    assert experiment.stimuli.table["label"].tolist() == ["cat"] * 3 + ["dog"] * 2
    assert caplog.text.count("Be kind.") == 1
    monkeypatch.setenv("NEURODL_OFFLINE", "1")
    again = ndl.load_dataset("kay2008", roi="V2")  # all is there
    assert again.responses.identical(experiment.responses)
    assert caplog.text.count("Be kind.") == 1
    table = check_dataset("kay2008")
    assert set(table["state"]) == {"whole"} and len(table) == 3


def test_terms_that_changed_are_shown_again(card, address, caplog):
    card(entries(address))
    fetch_dataset("kay2008")
    card(entries(address).replace("[[files]]", "", 0))
    registry.read_card("kay2008")
    path = registry.card_folder() / "kay2008.toml"
    path.write_text(path.read_text().replace("Be kind.", "Be very kind."))
    fetch_dataset("kay2008")
    assert [text in caplog.text for text in ("Be kind.", "Be very kind.")] == [True, True]


def test_a_folder_of_ones_own_is_never_written_to(card, address, tmp_path):
    card(entries(address))
    mine = tmp_path / "mine"
    with pytest.raises(MissingFileError, match="The folder .*mine does not exist"):
        ndl.load_dataset("kay2008", root=mine)
    mine.mkdir()
    with pytest.raises(MissingFileError) as caught:
        ndl.load_dataset("kay2008", root=mine)
    for words in (
        "kay2008: 1 files are not in",
        "'kay_images.npz'",
        f"`neurodl datasets fetch kay2008 --root {mine}`",
        "https://example.org/form",
        "Fill in the form.",
        f"kay_images.npz from {address}/gone",
    ):
        assert words in str(caught.value)
    assert not list(mine.iterdir())
    assert fetch_dataset("kay2008", root=mine) == mine  # but on request
    assert len(ndl.load_dataset("kay2008", root=mine).responses) == 5


def test_what_cannot_be_fetched_is_named(card, address, published, monkeypatch):
    card(entries(address))
    (published / "images.npz").unlink()
    with pytest.raises(DownloadError, match=r"(?s)kay_images.npz could not be fetched:.*gone.*404"):
        ndl.load_dataset("kay2008")
    monkeypatch.setenv("NEURODL_OFFLINE", "1")
    with pytest.raises(DownloadError, match="NEURODL_OFFLINE"):
        ndl.load_dataset("kay2008")


def test_what_is_optional_may_be_missing(card, address, published, caplog):
    card(entries(address))
    (published / "labels.npy").unlink()
    experiment = ndl.load_dataset("kay2008")
    assert "label" not in experiment.stimuli.table
    assert "going on without kay_labels.npy" in caplog.text


def test_gated_files_say_where_the_form_is_and_which_folder_to_fill(card, tmp_path):
    card('[[files]]\npath = "kay_images.npz"')
    with pytest.raises(MissingFileError) as caught:
        ndl.load_dataset("kay2008")
    folder = str(ndl.datasets.fetching.data_folder() / "kay2008")
    for words in ("access is given by https://example.org/form", f"Put the files into {folder}"):
        assert words in str(caught.value)


@pytest.mark.parametrize("by_hand", [True, False])
def test_archives_are_unpacked_and_removed_if_they_were_fetched(
    card, address, published, tmp_path, by_hand
):
    (tmp_path / "packed").mkdir()
    shutil.copy(published / "images.npz", tmp_path / "packed" / "kay_images.npz")
    made = shutil.make_archive(str(published / "all"), "zip", tmp_path / "packed")
    urls = "" if by_hand else f'urls = ["{address}/all.zip"]'
    card(f'[[files]]\npath = "kay_images.npz"\n[[archives]]\npath = "all.zip"\n{urls}')
    folder = ndl.datasets.fetching.data_folder() / "kay2008"
    if by_hand:
        folder.mkdir(parents=True)
        shutil.copy(made, folder)
    assert len(ndl.load_dataset("kay2008").responses) == 5
    assert (folder / "all.zip").is_file() == by_hand


def test_what_is_optional_sends_for_no_archive(card, address, published):
    """Or each call would fetch it again."""
    assert not (published / "all.zip").exists()
    images = f'[[files]]\npath = "kay_images.npz"\nurls = ["{address}/images.npz"]'
    optional = '[[files]]\npath = "videos/*.mp4"\noptional = true'
    archive = f'[[archives]]\npath = "a.zip"\nurls = ["{address}/all.zip"]'
    card(f"{images}\n{optional}\n{archive}")
    for _ in range(2):
        assert len(ndl.load_dataset("kay2008").responses) == 5


def test_terms_that_cannot_be_recorded_stop_nothing(card, address, tmp_path, monkeypatch, caplog):
    card(entries(address))
    mine = fetch_dataset("kay2008", root=tmp_path / "mine")
    (tmp_path / "file").touch()
    monkeypatch.setenv("NEURODL_DATA", str(tmp_path / "file" / "folder"))
    assert len(ndl.load_dataset("kay2008", root=mine).responses) == 5


def test_a_damaged_archive_is_not_kept(card, address, published):
    (published / "all.zip").write_bytes(b"PK\3\4 and no more")
    archive = f'[[archives]]\npath = "a.zip"\nurls = ["{address}/all.zip"]'
    card(f'[[files]]\npath = "kay_images.npz"\n{archive}')
    with pytest.raises(FileFormatError, match=r"a\.zip"):
        fetch_dataset("kay2008")
    assert not (ndl.datasets.fetching.data_folder() / "kay2008" / "a.zip").exists()


def test_check_says_what_is_missing_or_wrong(card, address, tmp_path):
    card(entries(address))
    mine = fetch_dataset("kay2008", root=tmp_path / "mine")
    (mine / "kay_labels.npy").unlink()
    labels = mine / "kay_labels_val.npy"
    content = labels.read_bytes()
    labels.write_bytes(content[:-1] + b"?")
    images = mine / "kay_images.npz"
    images.write_bytes(images.read_bytes()[:-5])
    states = check_dataset("kay2008", mine).set_index("file")["state"].to_dict()
    assert states == {
        "kay_images.npz": "wrong size",
        "kay_labels.npy": "missing, optional",
        "kay_labels_val.npy": "changed",
    }
    images.unlink()
    states = check_dataset("kay2008", mine).set_index("file")["state"].to_dict()
    assert states["kay_images.npz"] == "missing"


def test_sizes_and_hashes_of_the_card_are_checked(card, address, published):
    size = (published / "images.npz").stat().st_size
    file = f'[[files]]\npath = "kay_images.npz"\nurls = ["{address}/images.npz"]\n'
    card(f"{file}size = {size + 1}")
    with pytest.raises(DownloadError, match=f"it offers {size} bytes; the file has {size + 1}"):
        fetch_dataset("kay2008")
    card(f'{file}sha256 = "{"0" * 64}"')
    with pytest.raises(DownloadError, match="hash"):
        fetch_dataset("kay2008")


def test_the_command_line(card, address, tmp_path, run):
    card(entries(address))
    mine = tmp_path / "mine"
    status, printed, _ = run("datasets", "fetch", "kay2008", "--root", mine)
    assert (status, printed.strip()) == (0, str(mine))
    check = ("datasets", "check", "kay2008", "--root", mine)
    status, printed, _ = run(*check)
    assert status == 0 and "3 whole" in printed
    status, printed, _ = run(*check, "--open")
    assert status == 0 and "<Experiment 'kay2008'" in printed
    np.save(mine / "kay_labels.npy", np.zeros((2, 2)))
    (mine / ".neurodl.json").unlink()  # or the size would already tell
    status, _, said = run(*check, "--open")
    assert status == 1 and "kay_labels.npy has shape (2, 2)" in said
    (mine / "kay_images.npz").unlink()
    status, printed, _ = run(*check)
    assert status == 1 and "kay_images.npz missing" in printed
    for arguments, message in (
        (["info"], "Say which dataset"),
        (["fetch", "kay208"], "Did you mean 'kay2008'"),
        (["fech"], "there is no command 'fech'. Did you mean 'fetch'"),
        (["fetch", "kay2008", "--option", "track"], "must be KEY=VALUE"),
        (["fetch", "kay2008", "--option", "track=full"], "no option 'track'"),
        (["fetch", "kay2008", "--subject", "2"], "no option 'subject'"),
        (["fetch", "simulated"], "has no files"),
    ):
        status, _, said = run("datasets", *arguments)
        assert status != 0 and message in said


def test_cards_tell_the_files_of_what_is_chosen(tmp_path):
    (tmp_path / "card.toml").write_text(
        """
        name = "a"
        [choices]
        subject = [1, 2]
        roi = ["V1v", "V1d", "PPA"]
        track = ["mini", "full"]
        [unions]
        V1 = ["V1v", "V1d"]
        [[files]]
        path = "sub{subject:02d}/{roi}.pkl"
        urls = ["http://a/{subject}/{roi}?full", "http://b/{roi}"]
        only.track = ["mini"]
        [[files]]
        path = "sub{subject:02d}/WB.pkl"
        only.track = ["full"]
        only.subject = [2]
        """
    )
    card = Card.read(tmp_path / "card.toml")
    mini = card.files({"subject": 2, "roi": card.united(["V1", "V1d"]), "track": "mini"})
    assert [file.path for file in mini] == ["sub02/V1v.pkl", "sub02/V1d.pkl"]
    assert mini[0].urls == ("http://a/2/V1v?full", "http://b/V1v")
    assert [file.path for file in card.files({"track": "full"})] == ["sub02/WB.pkl"]
    assert len(card.files()) == 7
    command = how_to_get(card, tmp_path, {"subject": 2, "roi": ["V1v", "PPA"], "track": "mini"})
    options = "--subject 2 --roi V1v --roi PPA --option track=mini"
    assert f"`neurodl datasets fetch a {options} --root {tmp_path}`" in command
    with pytest.raises(UnknownNameError, match=r"a has no roi 'V2'. Did you mean 'V1'"):
        card.files({"roi": ["V2"]})
    with pytest.raises(UnknownNameError, match="a has no subject '3'"):
        card.files({"subject": 3})
