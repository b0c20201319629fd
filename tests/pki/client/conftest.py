from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pki.client.parts import CA


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[CA]:
    made = CA(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of an agent, not made yet."""
    return tmp_path / "agent"
