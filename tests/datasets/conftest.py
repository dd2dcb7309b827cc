"""How others wrote their files: what the tests of loaders need to write the same."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def old_pickle() -> Callable[[Path, Any], None]:
    """Return what writes a pickle as Python 2 and numpy 1 did: protocol 2, old module names."""

    def write(path: Path, content: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(content, 2).replace(b"numpy._core.", b"numpy.core."))

    return write
