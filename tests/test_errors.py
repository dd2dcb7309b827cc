"""Errors: one base, and the built-in error that old code catches."""

from __future__ import annotations

import pytest

from neurodl import errors


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("SchemaError", ValueError),
        ("PairingError", ValueError),
        ("FileFormatError", ValueError),
        ("MissingFileError", FileNotFoundError),
        ("DownloadError", OSError),
        ("StorageError", OSError),
        ("DeviceError", RuntimeError),
        ("UnknownNameError", ValueError),
        ("ConfigError", ValueError),
    ],
)
def test_errors_are_caught_by_their_base_and_their_kind(name, builtin):
    error = getattr(errors, name)("what was wrong")
    assert isinstance(error, errors.NeurodlError)
    assert isinstance(error, builtin)
    assert str(error) == "what was wrong"


def test_the_warning_is_one_for_users():
    assert issubclass(errors.NeurodlWarning, UserWarning)


def test_near_matches_ignore_case_and_keep_the_spelling():
    assert errors.near_matches("resnet50", ["ResNet50", "vit"]) == ["ResNet50"]
    assert errors.near_matches("zzz", ["a"]) == []
