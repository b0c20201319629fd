"""The real authorization server, for every test that asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.authority import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)
