"""Devices, progress and seeds."""

from __future__ import annotations

import logging
import os
import sys

import pytest
import torch

from neurodl import runtime
from neurodl.errors import DeviceError, did_you_mean, listed
from neurodl.runtime import (
    available_memory,
    derive_seed,
    describe_device,
    lent,
    linear,
    lone_threads,
    precision_of,
    progress,
    progress_bar,
    resolve_device,
    resolve_devices,
)


def without_gpu(monkeypatch, n_gpus=0):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Model X")


def test_auto_says_what_it_chose(monkeypatch, caplog):
    without_gpu(monkeypatch)
    runtime._announce.cache_clear()
    with caplog.at_level(logging.INFO, "neurodl"):
        assert resolve_device("auto") == resolve_device() == torch.device("cpu")
    assert [record.message for record in caplog.records] == [
        f"device='auto' chose cpu ({torch.get_num_threads()} threads)"
    ]


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch):
    without_gpu(monkeypatch, n_gpus=1)
    assert resolve_device("auto").type == "cuda"
    assert describe_device(resolve_device("cuda:0")) == "cuda:0 (Model X)"


@pytest.mark.parametrize(("device", "n_gpus"), [("cuda", 0), ("cuda:0", 0), ("cuda:3", 2)])
def test_a_gpu_that_is_not_there_is_an_error(monkeypatch, device, n_gpus):
    without_gpu(monkeypatch, n_gpus)
    with pytest.raises(DeviceError, match=f"'{device}' .* sees {n_gpus} CUDA GPUs.*'auto'"):
        resolve_device(device)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "meta", 3.5])
def test_nonsense_is_an_error(device):
    with pytest.raises(DeviceError, match="must be 'auto', 'cpu'"):
        resolve_device(device)


def test_several_devices(monkeypatch):
    without_gpu(monkeypatch, n_gpus=2)
    gpus = [torch.device("cuda:0"), torch.device("cuda:1")]
    assert resolve_devices("cuda:all") == resolve_devices(["cuda:0", "cuda:1"]) == gpus
    assert resolve_devices("cpu") == [torch.device("cpu")]
    with pytest.raises(DeviceError, match="'cuda:2' .* sees 2 CUDA GPUs"):
        resolve_devices(["cuda:0", "cuda:2"])
    with pytest.raises(DeviceError, match="empty list"):
        resolve_devices([])
    without_gpu(monkeypatch)
    with pytest.raises(DeviceError, match="sees 0 CUDA GPUs"):
        resolve_devices("cuda:all")


@pytest.mark.parametrize(
    ("limit", "current", "free"), [("1000", "800", 500), ("max", "800", sys.maxsize)]
)
def test_memory_of_a_control_group_counts_files_as_free(tmp_path, limit, current, free):
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(current)
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 200\nactive_file 100\n")
    assert runtime._free_in_group(tmp_path) == free
    assert runtime._free_in_group(tmp_path / "none") == sys.maxsize


def test_progress_is_silent_off_a_terminal(capsys, monkeypatch):
    assert list(progress(range(3), label="work")) == [0, 1, 2]
    with progress_bar(label="work", total=3) as advance:
        advance(3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar(label="work", total=3) as advance:
        advance(3)
    assert "work" in capsys.readouterr().err


def test_seeds_differ_by_name():
    seeds = {derive_seed(seed, *labels) for seed in (0, 1) for labels in [(), ("a",), ("a", 1)]}
    assert len(seeds) == 6
    assert derive_seed(0, "a", "b") != derive_seed(0, "ab")
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_messages_name_near_matches_and_count_the_rest():
    assert did_you_mean("V1v", ["V1", "LOC"]) == "Did you mean 'V1'?"
    assert did_you_mean("x", []) == "There are none."
    many = did_you_mean("zzzz", [f"area {n}" for n in range(30)])
    assert many.endswith("'area 19' and 10 more.")
    assert listed(range(7)) == "'0', '1', '2', '3', '4' and 2 more"


def test_a_network_comes_home_from_where_it_was_lent():
    module = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError), lent(module, torch.device("cpu")) as moved:
        assert moved is module
        raise RuntimeError
    places = []
    module.to = lambda device: places.append(str(device)) or module
    with lent(module, torch.device("meta")):
        assert places == ["meta"]
    assert places == ["meta", "cpu"]


def test_convolutions_round_only_where_speed_was_asked_for():
    cudnn, gpu = torch.backends.cudnn, torch.device("cuda")
    before = cudnn.allow_tf32, cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    with precision_of(gpu, amp=False):
        assert not cudnn.allow_tf32 and cudnn.enabled == before[1]
    with precision_of(gpu, amp=True), precision_of(torch.device("cpu"), amp=False):
        assert cudnn.allow_tf32 == before[0]
    assert before == (cudnn.allow_tf32, cudnn.enabled, cudnn.benchmark, cudnn.deterministic)


def test_lone_threads_start_none_of_their_own():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with lone_threads(2) as pool:
            torch.ones(10**6).sum()  # starts the team of this thread
            n_tasks = count_tasks()
            sums = list(pool.map(lambda _: float(torch.ones(10**6).sum()), range(8)))
            counts = list(pool.map(lambda _: torch.get_num_threads(), range(8)))
            assert count_tasks() == n_tasks
        assert (sums, counts) == ([1e6] * 8, [1] * 8)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def count_tasks():
    return len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 0


@pytest.mark.parametrize("n_rows", [1, 511, 512, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_linear_is_the_product_with_a_bias(n_rows, dtype):
    """By whichever way it goes: rows in several dims, strides of any kind, a bias or none."""
    drawn = torch.Generator().manual_seed(0)
    rows = torch.randn(40, n_rows, 2, generator=drawn).movedim(0, -1).to(dtype)
    weight = torch.randn(40, 33, generator=drawn).T.to(dtype)
    bias = torch.randn(33, generator=drawn).to(dtype)
    for added in (None, bias):
        found = linear(rows, weight, added)
        exact = rows.double() @ weight.double().T + (0 if added is None else bias.double())
        assert found.dtype == dtype and found.shape == (n_rows, 2, 33)
        rounding = 40 * torch.finfo(dtype).eps
        assert (found.double() - exact).abs().max() < rounding * exact.abs().max()


def test_less_memory_may_be_allowed(monkeypatch):
    monkeypatch.setenv("NEURODL_MEMORY", "1000")
    assert available_memory(torch.device("cpu")) == 1000
