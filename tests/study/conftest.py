"""A small simulated experiment on disk, shared by the tests of studies and the command line."""

from __future__ import annotations

import pytest

from neurodl.datasets import write_simulated


@pytest.fixture(scope="session")
def bids(tmp_path_factory):
    """A BIDS folder: 24 images, 2 repeats, 2 runs."""
    folder = tmp_path_factory.mktemp("simulated") / "experiment"
    return write_simulated(folder, n_images=24, n_repeats=2, n_runs=2, image_size=64)
