"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of real recordings, images and weights that tests read in place."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("NEURODL_RECORDINGS", default))
    if not folder.is_dir():
        pytest.skip(f"the recordings are not at {folder}; set NEURODL_RECORDINGS to their folder")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every test."""
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests out of the user's folders."""
    monkeypatch.setenv("NEURODL_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("NEURODL_DATA", str(tmp_path_factory.mktemp("data")))
