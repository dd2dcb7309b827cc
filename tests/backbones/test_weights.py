"""Weights: a file that fits or an error, a download or an error, a seed; never silent chance."""

from __future__ import annotations

import functools
import gc
import hashlib
import http.server
import threading
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
import torchvision

from neurodl.backbones import load_backbone
from neurodl.backbones import torchvision as torchvision_source
from neurodl.errors import DownloadError, FileFormatError, MissingFileError

SMALL = "torchvision:squeezenet1_1"


@pytest.fixture(scope="module")
def state():
    """Return weights that are surely not those of any seed."""
    module = torchvision.models.squeezenet1_1(weights=None)
    generator = torch.Generator().manual_seed(99)
    return OrderedDict(
        (name, torch.randn(value.shape, generator=generator) / 50)
        for name, value in module.state_dict().items()
    )


def same(module, state):
    own = module.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[k], state[k]) for k in state)


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "module."])
def test_torch_files_load_in_their_usual_wrappings(tmp_path, state, wrap):
    stored = {f"module.{k}": v for k, v in state.items()} if wrap == "module." else dict(state)
    stored = {"state_dict": stored, "epoch": 3} if wrap == "state_dict" else stored
    torch.save(stored, tmp_path / "w.pth")
    backbone = load_backbone(SMALL, weights=str(tmp_path / "w.pth"))
    assert same(backbone.module, state)
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    assert backbone.weights == f"file w.pth (sha256 {digest[:12]})"


def test_safetensors_load(tmp_path, state):
    safetensors.torch.save_file(dict(state), tmp_path / "w.safetensors")
    assert same(load_backbone(SMALL, weights=tmp_path / "w.safetensors").module, state)


def test_weights_that_do_not_fit_are_listed_and_nothing_is_loaded(tmp_path, state):
    changed = dict(state)
    del changed["features.0.bias"]
    changed["head.weight"] = torch.zeros(3)
    changed["classifier.1.bias"] = torch.zeros(10)
    torch.save(changed, tmp_path / "w.pth")
    with pytest.raises(FileFormatError) as caught:
        load_backbone(SMALL, weights=tmp_path / "w.pth")
    message = str(caught.value)
    assert "1 missing ('features.0.bias')" in message
    assert "1 unknown ('head.weight')" in message
    assert "classifier.1.bias (10,) instead of (1000,)" in message


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"state_dict": Bomb(tmp_path / "pwned")}, tmp_path / "w.pth")
    with pytest.raises(FileFormatError, match="would run code from the file"):
        load_backbone(SMALL, weights=tmp_path / "w.pth")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_an_error(tmp_path, state, suffix):
    path = tmp_path / f"w{suffix}"
    save = torch.save if suffix == ".pth" else safetensors.torch.save_file
    save(dict(state), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FileFormatError, match=f"w{suffix}"):
        load_backbone(SMALL, weights=path)


def test_a_missing_file_is_an_error_with_near_names(tmp_path, state):
    torch.save(dict(state), tmp_path / "weights.pth")
    with pytest.raises(MissingFileError, match=r"Did you mean 'weights.pth'\?"):
        load_backbone(SMALL, weights=tmp_path / "weigths.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(FileFormatError, match="no state dict"):
        load_backbone(SMALL, weights=tmp_path / "list.pth")


@pytest.mark.parametrize("name", [SMALL, "timm:test_resnet"])
def test_untrained_weights_are_those_of_the_seed(name):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same_seed, other = (
        load_backbone(name, pretrained=False, seed=seed).weights_sha256 for seed in (0, 0, 1)
    )
    assert torch.equal(torch.rand(3), expected)  # the global generator was left alone
    assert one == same_seed != other
    assert load_backbone(name, pretrained=False).weights == "untrained, seed 0"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serve files without a log."""

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """Serve a folder over HTTP; return the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.daemon_threads = False  # the end of the block waits for them
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
    gc.collect()  # sockets that urllib leaves open are found here, and not in some other test


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Return a function that makes torchvision believe its weights lie at an address."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    real = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1

    def at(address):
        class Elsewhere(torchvision.models.WeightsEnum):
            IMAGENET1K_V1 = torchvision.models.Weights(address, real.transforms, real.meta)
            DEFAULT = IMAGENET1K_V1

        monkeypatch.setattr(torchvision_source.models, "get_model_weights", lambda name: Elsewhere)

    return at


def test_published_weights_are_downloaded_once_and_checked(server, published, state):
    folder, address = server
    torch.save(state, folder / "w.pth")
    digest = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()
    (folder / "w.pth").rename(folder / f"w-{digest[:8]}.pth")
    published(f"{address}/w-{digest[:8]}.pth")
    backbone = load_backbone(f"{SMALL}.IMAGENET1K_V1")
    assert same(backbone.module, state)
    assert backbone.weights.startswith("pretrained")
    (folder / f"w-{digest[:8]}.pth").unlink()
    assert same(load_backbone(SMALL).module, state)


def test_a_download_that_is_not_what_was_published_is_not_used(server, published, state, tmp_path):
    folder, address = server
    torch.save(state, folder / "w-0123abcd.pth")
    published(f"{address}/w-0123abcd.pth")
    with pytest.raises(DownloadError, match="invalid hash value"):
        load_backbone(SMALL)
    assert not list((tmp_path / "torch").rglob("*.pth"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # urllib's socket
def test_a_failed_download_says_how_to_go_on_and_is_never_random(server, published):
    published(f"{server[1]}/gone-0123abcd.pth")
    with pytest.raises(DownloadError) as caught:
        load_backbone(SMALL)
    message = str(caught.value)
    assert SMALL in message
    assert "404" in message
    assert "weights=" in message
    assert "pretrained=False" in message


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # urllib's socket
def test_timm_weights_come_from_their_address_or_are_an_error(server, monkeypatch, tmp_path):
    import timm

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder, address = server
    module = timm.create_model("test_resnet", pretrained=False)
    state = {k: torch.full_like(v, 0.01) for k, v in module.state_dict().items()}
    torch.save(state, folder / "t.pth")
    overlay = {"url": f"{address}/t.pth", "hf_hub_id": None}
    backbone = load_backbone("timm:test_resnet", pretrained_cfg_overlay=overlay)
    assert same(backbone.module, state)
    overlay["url"] = f"{address}/gone.pth"
    with pytest.raises(DownloadError, match="timm:test_resnet"):
        load_backbone("timm:test_resnet", pretrained_cfg_overlay=overlay)
