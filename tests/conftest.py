"""What holds for every test."""

from __future__ import annotations

import pytest

from trust import private_keys


@pytest.fixture(scope="session", autouse=True)
def little_scrypt() -> None:
    """Keys are encrypted with little work: hundreds of CAs are made here. Processes of their own do all of it."""
    private_keys.SCRYPT_N, private_keys.SCRYPT_P = 2**10, 1
