"""Damaged files of every kind: an error that names the file, or what could be read of it."""

from __future__ import annotations

import sys

import pytest
from fuzz_cases import KINDS, try_damaged

N_INPUTS = 150  # of each kind; tests/benchmarks/fuzz.py tries 10,000


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damage_is_an_error_that_names_the_file(kind, tmp_path, monkeypatch):
    # h5netcdf complains of files that it could not open when they are thrown away.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    assert try_damaged(kind, tmp_path, N_INPUTS)["error"] > N_INPUTS / 10
