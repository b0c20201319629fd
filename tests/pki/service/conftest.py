"""One CA for the whole run, copies of it for tests, and one service that most of them ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pki import CertificateAuthority
from tests.pki.service.parts import PASSWORD, Running, copied, new_ca, started


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a new CA. Never written to."""
    folder = tmp_path_factory.mktemp("made") / "ca"
    new_ca(folder).close()
    return folder


@pytest.fixture
def own_ca(made: Path, tmp_path: Path) -> Iterator[CertificateAuthority]:
    """A CA that a test may do anything to."""
    with CertificateAuthority.open(copied(made, tmp_path / "ca"), password=PASSWORD) as ca:
        yield ca


@pytest.fixture(scope="module")
def service(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service for the tests of one module; its trail is empty at the start of each."""
    folder = copied(made, tmp_path_factory.mktemp("service") / "ca")
    with CertificateAuthority.open(folder, password=PASSWORD) as ca, started(ca) as running:
        yield running
