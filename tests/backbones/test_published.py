"""Published weights: loaded as their library loads them, from its hub, whole or not at all."""

from __future__ import annotations

import copy
import functools
import hashlib
import http.server
import threading
from collections import OrderedDict

import pytest
import safetensors.torch
import timm
import torch
from torch import nn
from torchvision import models

from neurodl.backbones import ImageTransform, load_backbone
from neurodl.backbones.torchvision import _present_name
from neurodl.errors import DownloadError, FileFormatError, UnknownNameError

HUB_NAME = "timm:test_resnet.r160_in1k"


def random_state(module, seed=99):
    """Return tensors that are surely not those of any initialisation, and keep variances > 0."""
    generator = torch.Generator().manual_seed(seed)
    state = OrderedDict()
    for name, value in module.state_dict().items():
        noise = torch.rand(value.shape, generator=generator) / 20
        state[name] = noise + 1 if name.endswith("running_var") else noise.to(value.dtype)
    return state


def as_published(name, state):
    """Return `state` under the names that the published file has: DenseNets are from old times."""
    if not name.startswith("densenet"):
        return state
    state = {key: value for key, value in state.items() if "num_batches" not in key}
    for part in ("norm", "conv"):
        for n in (1, 2):
            old, new = f".{part}.{n}.", f".{part}{n}."
            state = {key.replace(new, old): value for key, value in state.items()}
    return OrderedDict(state)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["googlenet", "densenet121", "mnasnet0_5"])
def test_a_published_file_gives_what_torchvision_gives(name, suffix, tmp_path, monkeypatch):
    entry = models.get_model_weights(name).DEFAULT
    options = {"init_weights": False} if name == "googlenet" else {}
    whole = models.get_model(name, weights=None, **options)
    state = as_published(name, random_state(whole))
    if name == "mnasnet0_5":
        state._metadata = whole.state_dict()._metadata
    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda *_, **__: copy.copy(state))
    expected = models.get_model(name, weights=entry).eval()
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(dict(state), path)
    found = load_backbone(f"torchvision:{name}", weights=path)
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(found.module(images), expected(images), rtol=0, atol=0)


def test_names_in_old_vision_transformer_files_are_those_torchvision_reads():
    block = models.vision_transformer.MLPBlock(4, 8, 0.0)
    old = {
        f"linear_{n}.{kind}": torch.rand(getattr(block[index], kind).shape)
        for n, index in ((1, 0), (2, 3))
        for kind in ("weight", "bias")
    }
    block.load_state_dict(dict(old))
    for key, value in old.items():
        place = _present_name(f"encoder.layers.encoder_layer_0.mlp.{key}").partition(".mlp.")[2]
        assert torch.equal(block.state_dict()[place], value)


@pytest.mark.parametrize(
    ("name", "size"), [("vit_b_16", 224), ("vit_b_16.IMAGENET1K_SWAG_E2E_V1", 384)]
)
def test_network_and_transform_have_one_image_size(name, size):
    with torch.device("meta"):
        module = load_backbone(f"torchvision:{name}", pretrained=False).module
    expected = models.vit_b_16(image_size=size) if size == 224 else None
    assert module.image_size == size
    assert module.encoder.pos_embedding.shape == (1, (size // 16) ** 2 + 1, 768)
    assert expected is None or expected.encoder.pos_embedding.shape[1] == 197


def test_wrappers_prefixes_come_off_but_ones_own_names_stay(tmp_path):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(3, 2)

    transform = ImageTransform(lambda image: torch.zeros(3), "zeros")
    state = random_state(Wrapper())
    for prefix in ("", "module.", "_orig_mod.", "module._orig_mod."):
        torch.save({f"{prefix}{key}": value for key, value in state.items()}, tmp_path / "w.pth")
        backbone = load_backbone(Wrapper(), weights=tmp_path / "w.pth", transform=transform)
        assert torch.equal(backbone.module.model.weight, state["model.weight"]), prefix
    torch.save({f"other.{key}": value for key, value in state.items()}, tmp_path / "w.pth")
    own = Wrapper()
    before = own.model.weight.clone()
    with pytest.raises(FileFormatError, match=r"2 missing \('model.weight', 'model.bias'\)"):
        load_backbone(own, weights=tmp_path / "w.pth", transform=transform)
    assert torch.equal(own.model.weight, before)


def test_options_that_would_do_nothing_or_leave_chance_in_are_errors(tmp_path):
    with pytest.raises(ValueError, match="`seed` does nothing beside trained weights"):
        load_backbone(HUB_NAME, seed=1)
    with pytest.raises(ValueError, match="num_classes=10 the last layer would be random"):
        load_backbone(HUB_NAME, num_classes=10)
    with pytest.raises(UnknownNameError, match="no published weights of timm:coatnet_0_224"):
        load_backbone("timm:coatnet_0_224")


@pytest.fixture
def untouched_generators():
    """Check that torch's global generator does not move."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


class Hub(http.server.BaseHTTPRequestHandler):
    """One model's file as the Hugging Face hub serves it; `server.mode` says what goes wrong."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        content = self.server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def do_GET(self):
        self.do_HEAD()
        content = self.server.content
        if self.server.mode == "cut":
            self.wfile.write(content[: len(content) // 2])
        else:
            self.wfile.write(b"\xff" * len(content) if self.server.mode == "noise" else content)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Serve random weights of the small network in place of the hub."""
    import huggingface_hub

    state = random_state(timm.create_model("test_resnet", pretrained=False))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.content, server.mode, server.state = safetensors.torch.save(state), "", state
        address = f"http://127.0.0.1:{server.server_port}"
        local = functools.partial(huggingface_hub.hf_hub_download, endpoint=address)
        monkeypatch.setattr("timm.models._hub.hf_hub_download", local)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        server.daemon_threads = False  # the end of the block waits for them
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_weights_come_from_the_hub_and_then_from_its_cache(hub, untouched_generators):
    first = load_backbone(HUB_NAME)
    assert all(torch.equal(first.module.state_dict()[k], v) for k, v in hub.state.items())
    assert first.weights == "pretrained test_resnet.r160_in1k"
    assert first.licence == "apache-2.0"
    assert "160 x 160" in first.transform.text
    hub.mode = "noise"
    assert load_backbone(HUB_NAME).weights_sha256 == first.weights_sha256


@pytest.mark.parametrize("mode", ["noise", "cut"])
def test_a_damaged_file_of_the_hub_is_never_used(hub, mode, monkeypatch, tmp_path):
    monkeypatch.setattr("time.sleep", lambda _: None)  # between attempts
    hub.mode = mode
    with pytest.raises(DownloadError, match=r"hub \(timm/test_resnet") as caught:
        load_backbone(HUB_NAME)
    assert f"damaged file was left in {tmp_path / 'hub'}, delete it" in str(caught.value)
    assert "pretrained=False, seed=0" in str(caught.value)
