"""Fixtures that several test folders share."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
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


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Return what runs a command; it gives its status, standard output and standard error."""
    from neurodl import cli

    log = logging.getLogger("neurodl")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "level", log.level)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run_command(*arguments: object) -> tuple[int, str, str]:
        status = cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run_command
