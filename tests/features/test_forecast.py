"""What extraction would take, against what it takes."""

from __future__ import annotations

import numpy as np
import pytest

from neurodl.backbones import load_backbone
from neurodl.errors import UnknownNameError
from neurodl.features import extract_features, extract_kernels
from neurodl.features.forecast import forecast_features
from neurodl.stimuli import Stimuli


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("torchvision:resnet18", pretrained=False)


def images(n):
    rng = np.random.default_rng(0)
    return Stimuli.from_arrays(
        rng.integers(0, 256, (n, 40, 40), "uint8"), ids=[*map(str, range(n))]
    )


@pytest.mark.parametrize("reduce", ["none", "sparse:100"])
def test_sizes_and_bytes_are_those_of_extraction(backbone, tmp_path, reduce):
    stimuli, layers = images(70), ["maxpool", "layer4"]
    options = {"layers": layers, "pool": "spatial:2", "reduce": reduce, "cache": tmp_path}
    before = forecast_features(backbone, stimuli, **options)
    assert (before.n_stimuli, before.n_cached) == (70, 0)
    assert 0 < before.seconds_each < 10
    assert before.seconds == pytest.approx(70 * before.seconds_each)
    assert not list(tmp_path.glob("features/*/c"))
    found = extract_features(backbone, stimuli, **options)
    assert before.sizes == {name: found[name].shape[1] for name in layers}
    for place, grown in before.growth.items():
        chunks = [place / "c" / number / "0" for number in "01"]
        assert sum(path.stat().st_size - 4 for path in chunks) == grown  # but for checksums
    chunks[-1].unlink()  # of the last layer: the other is whole
    after = forecast_features(backbone, stimuli, **options)
    assert after.n_cached == 64
    assert after.growth == {place: 0 for place in before.growth} | {place: grown // 2}
    extract_features(backbone, stimuli, **options)
    done = forecast_features(backbone, stimuli, **options)
    assert (done.n_cached, done.seconds, done.sizes) == (70, 0.0, before.sizes)
    assert done.growth == dict.fromkeys(before.growth, 0)


def test_kernels_have_a_row_for_every_stimulus(backbone, tmp_path):
    options = {"layers": ["layer4"], "cache": tmp_path}
    before = forecast_features(backbone, images(10), kernel=True, **options)
    assert before.sizes == {"layer4": 10}
    extract_kernels(backbone, images(10), **options)
    ((place, grown),) = before.growth.items()
    assert (place / "c" / "0" / "0").stat().st_size - 4 == grown
    assert forecast_features(backbone, images(10), kernel=True, **options).n_cached == 10


def test_without_a_cache_nothing_is_written_and_errors_are_those_of_extraction(backbone):
    found = forecast_features(backbone, images(3), ["maxpool"], cache=False)
    assert (found.n_cached, found.growth) == (0, {})
    with pytest.raises(UnknownNameError, match="layer5"):
        forecast_features(backbone, images(3), ["layer5"], cache=False)
