"""What features keep of their stimuli's identity, and where it comes from."""

from __future__ import annotations

import numpy as np
import pytest

import neurodl as ndl
from neurodl.errors import FileFormatError
from neurodl.stimuli import Stimuli


@pytest.fixture
def stimuli(rng):
    return Stimuli.from_arrays(rng.integers(0, 256, (6, 40, 40, 3), np.uint8))


def coords_of(features):
    return [features["pixels"][name].values for name in ("stimulus_sha256", "fingerprint")]


def test_features_and_kernels_know_their_stimuli(stimuli, tmp_path):
    features = ndl.extract_features("pixels", stimuli, cache=tmp_path, device="cpu")
    sha, prints = coords_of(features)
    assert sha.tolist() == [text[:32] for text in stimuli.hashes()]
    assert prints.tolist() == stimuli.fingerprints()
    assert len(set(prints)) == 6
    kernels = ndl.extract_kernels("pixels", stimuli, cache=tmp_path, device="cpu")
    assert (kernels["pixels"]["fingerprint"].values == prints).all()
    saved = ndl.load(ndl.save(features, tmp_path / "features.zarr"))
    assert (saved["pixels"]["fingerprint"].values == prints).all()


def test_cached_features_need_no_pixels(stimuli, tmp_path, monkeypatch):
    first = coords_of(ndl.extract_features("pixels", stimuli, cache=tmp_path, device="cpu"))
    again = stimuli.sel(stimuli.ids)
    again._fingerprints.clear()

    def decode(*_):
        pytest.fail("a stimulus was decoded")

    monkeypatch.setattr(Stimuli, "__getitem__", decode)
    found = coords_of(ndl.extract_features("pixels", again, cache=tmp_path, device="cpu"))
    assert all((a == b).all() for a, b in zip(first, found, strict=True))


def test_damaged_fingerprints_are_made_anew(stimuli, tmp_path):
    first = coords_of(ndl.extract_features("pixels", stimuli, cache=tmp_path, device="cpu"))
    (file,) = (tmp_path / "fingerprints").iterdir()
    for damage in (b"", b"\xff\xfe", file.read_bytes()[:100]):
        file.write_bytes(damage)
        found = coords_of(ndl.extract_features("pixels", stimuli, cache=tmp_path, device="cpu"))
        assert all((a == b).all() for a, b in zip(first, found, strict=True))


def test_unreadable_stimuli_have_none(stimuli, monkeypatch):
    whole = Stimuli.__getitem__

    def broken(self, index):
        if index == 2:
            raise FileFormatError("torn")
        return whole(self, index)

    monkeypatch.setattr(Stimuli, "__getitem__", broken)
    assert [row for row, text in enumerate(stimuli.fingerprints()) if not text] == [2]
    assert len(stimuli.fingerprints([4, 1])) == 2
