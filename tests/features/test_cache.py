"""The cache of features: hits, misses, damage, kills, several processes, upkeep."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from zarr.storage import _local as local

from neurodl.backbones import Backbone, ImageTransform
from neurodl.errors import StorageError
from neurodl.features import extract_features, list_cache, prune_cache, verify_cache
from neurodl.features.forward import ForwardPass
from neurodl.stimuli import Stimuli


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 6, 3)

    def forward(self, images):
        return self.second(self.conv(images))


def to_tensor(image):
    return torch.from_numpy(np.array(image)).movedim(-1, 0) / 255


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return Backbone("small", Small(), ImageTransform(to_tensor, "0..1"), "untrained, seed 0")


def make_stimuli(n=150, seed=0):
    rng = np.random.default_rng(seed)
    return Stimuli.from_arrays(rng.integers(0, 256, (n, 20, 20, 3), dtype=np.uint8))


def test_second_run_comes_from_the_cache(backbone, tmp_path, monkeypatch):
    stimuli = make_stimuli()
    first = extract_features(backbone, stimuli, ["conv", "second"], cache=tmp_path)
    monkeypatch.setattr(Small, "forward", lambda *_: pytest.fail("the network ran again"))
    second = extract_features(backbone, stimuli, ["second"], cache=tmp_path)
    assert second["second"].identical(first["second"])


def changed_pixel(backbone, stimuli):
    images = np.stack([s.movedim(0, -1).numpy() for s in stimuli])
    images[3, 0, 0, 0] ^= 1
    return backbone, Stimuli.from_arrays(images), {}


def changed_weight(backbone, stimuli):
    net = Small()
    net.load_state_dict(backbone.module.state_dict())
    with torch.no_grad():
        net.conv.weight[0, 0, 0, 0] += 1e-3
    return Backbone("small", net, backbone.transform, "other"), stimuli, {}


def changed_transform(backbone, stimuli):
    return Backbone("small", backbone.module, ImageTransform(to_tensor, "other"), "x"), stimuli, {}


def changed_padding(backbone, stimuli):
    net = Small()
    net.load_state_dict(backbone.module.state_dict())
    net.conv.padding = (1, 1)
    return Backbone("small", net, backbone.transform, "x"), stimuli, {}


def changed_pool(backbone, stimuli):
    return backbone, stimuli, {"pool": "avg"}


@pytest.mark.parametrize(
    "change", [changed_pixel, changed_weight, changed_transform, changed_padding, changed_pool]
)
def test_whatever_changes_the_values_misses_the_cache(backbone, tmp_path, change):
    stimuli = make_stimuli(20)
    extract_features(backbone, stimuli, ["conv"], cache=tmp_path)
    assert len(list(tmp_path.glob("features/*"))) == 1
    other, images, options = change(backbone, stimuli)
    extract_features(other, images, ["conv"], cache=tmp_path, **options)
    assert len(list(tmp_path.glob("features/*"))) == 2


def test_damaged_chunk_is_computed_again(backbone, tmp_path):
    stimuli = make_stimuli()
    first = extract_features(backbone, stimuli, ["conv"], cache=tmp_path)
    (chunk,) = tmp_path.glob("features/*/c/1/0")
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 255
    chunk.write_bytes(content)
    again = extract_features(backbone, stimuli, ["conv"], cache=tmp_path)
    assert again["conv"].identical(first["conv"])


def _slow_extraction(folder: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)

    def slowly(image):
        time.sleep(0.01)
        return to_tensor(image)

    backbone = Backbone("small", Small(), ImageTransform(slowly, "0..1"), "untrained, seed 0")
    extract_features(backbone, make_stimuli(500), ["conv"], cache=folder)


def test_a_renamed_file_in_a_moved_folder_still_hits(backbone, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    for number in range(3):
        image = Image.fromarray(np.full((9, 9, 3), number * 40, np.uint8))
        image.save(tmp_path / "images" / f"{number}.png")
    first = extract_features(
        backbone, Stimuli.from_files(tmp_path / "images"), ["conv"], cache=tmp_path / "cache"
    )
    (tmp_path / "images" / "2.png").rename(tmp_path / "images" / "z.png")
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(Small, "forward", lambda *_: pytest.fail("the network ran again"))
    moved = Stimuli.from_files(tmp_path / "elsewhere")
    again = extract_features(backbone, moved, ["conv"], cache=tmp_path / "cache")
    np.testing.assert_array_equal(again["conv"], first["conv"])
    assert again["conv"].stimulus.values.tolist() == ["0.png", "1.png", "z.png"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "other layout"])
def test_a_damaged_description_is_never_believed(backbone, tmp_path, damage):
    stimuli = make_stimuli()
    first = extract_features(backbone, stimuli, ["conv"], cache=tmp_path)
    (path,) = tmp_path.glob("features/*/zarr.json")
    text = path.read_text()
    path.write_text(
        {
            "cut": text[: len(text) // 2],
            "flipped": text.replace("float32", "float64", 1),
            "other layout": text.replace('"channel y x"', '"channel x y"'),
        }[damage]
    )
    assert path.read_text() != text
    again = extract_features(backbone, stimuli, ["conv"], cache=tmp_path)
    assert again["conv"].identical(first["conv"])
    assert path.read_text() == text


@pytest.mark.slow
def test_kill_in_the_middle_loses_only_the_unfinished_chunk(backbone, tmp_path):
    process = multiprocessing.get_context("spawn").Process(
        target=_slow_extraction, args=(tmp_path,)
    )
    process.start()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("features/*/c/*/0"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("features/*/c/*/0")}
    assert 2 <= len(finished) < 8
    resumed = extract_features(backbone, make_stimuli(500), ["conv"], cache=tmp_path)
    assert len(list(tmp_path.glob("features/*"))) == 1
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())
    whole = extract_features(backbone, make_stimuli(500), ["conv"], cache=tmp_path / "other")
    np.testing.assert_array_equal(resumed["conv"], whole["conv"])


def _shared_extraction(folder: Path, together) -> None:
    """Extract, and note which chunks this process computed."""
    chunks, run = [], ForwardPass.chunks

    def noted(self, *args, **options):
        for chunk, rows in run(self, *args, **options):
            chunks.append(chunk)
            yield chunk, rows

    ForwardPass.chunks = noted
    together.wait(60)
    _slow_extraction(folder)
    (folder / f"{os.getpid()}.txt").write_text("\n".join(map(str, chunks)))


@pytest.mark.slow
def test_two_processes_share_the_work(backbone, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(2)
    processes = [
        spawn.Process(target=_shared_extraction, args=(tmp_path, together)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    computed = [path.read_text().split() for path in tmp_path.glob("*.txt")]
    assert all(computed)
    assert sorted(int(chunk) for one in computed for chunk in one) == list(range(8))
    shared = extract_features(backbone, make_stimuli(500), ["conv"], cache=tmp_path)
    alone = extract_features(backbone, make_stimuli(500), ["conv"], cache=tmp_path / "other")
    np.testing.assert_array_equal(shared["conv"], alone["conv"])
    assert not list(tmp_path.glob("claims/*"))


@pytest.fixture
def filled(backbone, tmp_path):
    """Return a cache of two layers, "conv" last used two days before "second"."""
    for layer, days in (("conv", 3), ("second", 1)):
        extract_features(backbone, make_stimuli(), [layer], cache=tmp_path)
        then = time.time() - days * 86400
        for path in tmp_path.glob("features/*"):
            for file in path.rglob("*"):
                if file.stat().st_mtime > time.time() - 3600:
                    os.utime(file, (then, then))
    return tmp_path


def test_list_says_what_is_there(filled):
    table = list_cache(filled)
    assert table["layer"].tolist() == ["second", "conv"]
    assert table["stimuli"].tolist() == [150, 150]
    assert set(table["state"]) == {"whole"}
    next(filled.glob(f"features/{table.index[1]}/c/2/0")).unlink()
    (filled / "features" / table.index[0] / "zarr.json").write_text("{")
    assert list_cache(filled)["state"].tolist() == ["damaged", "2 of 3 chunks"]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"days": 4}, ["second", "conv"]),
        ({"days": 2}, ["second"]),
        ({"days": 0.5}, []),
        ({"max_bytes": 0}, []),
        ({"max_bytes": 250_000}, ["second"]),
        ({"max_bytes": 1e9}, ["second", "conv"]),
    ],
)
def test_prune_takes_the_longest_unused(filled, options, left):
    gone = prune_cache(cache=filled, dry_run=True, **options)
    assert len(list_cache(filled)) == 2
    assert prune_cache(cache=filled, **options).equals(gone)
    assert list_cache(filled)["layer"].tolist() == left


def test_prune_needs_to_be_told_what_may_go(filled):
    with pytest.raises(ValueError, match="Say what may go"):
        prune_cache(cache=filled)
    with pytest.raises(ValueError, match="`days` must not be negative"):
        prune_cache(days=-1, cache=filled)


def test_use_is_noted(filled, backbone):
    extract_features(backbone, make_stimuli(), ["conv"], cache=filled)
    assert list_cache(filled)["layer"].tolist() == ["conv", "second"]


def test_verify_removes_what_is_damaged_and_nothing_else(filled):
    conv, second = list_cache(filled).sort_values("layer").index
    chunk = filled / "features" / conv / "c" / "1" / "0"
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.write_bytes(content)
    description = filled / "features" / second / "zarr.json"
    description.write_text(description.read_text().replace("small", "large"))
    found = verify_cache(filled)
    assert found["removed"].to_dict() == {conv: 1, second: "all"}
    assert list_cache(filled)["state"].tolist() == ["2 of 3 chunks"]
    assert verify_cache(filled).empty


def test_full_disk_keeps_what_is_finished(backbone, tmp_path, monkeypatch):
    from neurodl.features.cache import FeatureCache

    stimuli, real = make_stimuli(200), FeatureCache._open
    calls = []

    def full_after_two(self, n_features):
        calls.append(1)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, n_features)

    monkeypatch.setattr(FeatureCache, "_open", full_after_two)
    with pytest.raises(StorageError, match="run again"):
        extract_features(backbone, stimuli, ["conv"], cache=tmp_path)
    assert len(list(tmp_path.glob("features/*/c/*/0"))) == 2
    monkeypatch.setattr(FeatureCache, "_open", real)
    resumed = extract_features(backbone, stimuli, ["conv"], cache=tmp_path)
    assert resumed["conv"].shape[0] == 200


def test_a_slow_and_failing_disk_loses_nothing(backbone, tmp_path, monkeypatch):
    """Each reading and writing may fail; whatever was written once is still there afterwards."""
    stimuli, layers = make_stimuli(400), ["conv", "second"]
    whole = extract_features(backbone, stimuli, layers, cache=False)
    rng = np.random.default_rng(0)
    for name in ("_get", "_put"):
        monkeypatch.setattr(local, name, failing(getattr(local, name), rng))
    n_failed, there = 0, set()
    while True:
        try:
            found = extract_features(backbone, stimuli, layers, cache=tmp_path)
            break
        except StorageError as error:
            assert f"{tmp_path}" in str(error) and "Input/output error" in str(error)
            n_failed += 1
        now = set(tmp_path.glob("features/*/c/*/0"))
        assert there <= now and n_failed < 200
        there = now
    assert n_failed > 5
    for layer in layers:
        np.testing.assert_array_equal(found[layer], whole[layer])


def failing(real, rng):
    """The same, but slow, and every tenth time an error of the disk."""

    def tried(*args, **kwargs):
        time.sleep(0.001)
        if rng.random() < 0.1:
            raise OSError(errno.EIO, "Input/output error")
        return real(*args, **kwargs)

    return tried
