"""One CA for the whole run, copies of it for tests that change or break things, and requests to feed it."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pki import CertificateAuthority
from pki.store import DATABASE_FILE, database

DOMAIN = "fleet.example"
PASSWORD = "correct horse"
NOW = datetime.now(UTC).replace(microsecond=0)
AGENT = f"spiffe://{DOMAIN}/billing"


@dataclass
class Clock:
    """A clock that a test turns."""

    now: datetime

    def __call__(self) -> datetime:
        return self.now

    def forward(self, step: timedelta) -> None:
        self.now += step


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a new CA, made once, with less scrypt than usual: tests open it often. Never written to."""
    folder = tmp_path_factory.mktemp("template") / "ca"
    CertificateAuthority.create(folder, trust_domain=DOMAIN, password=PASSWORD, now=NOW).close()
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may break."""
    return Path(shutil.copytree(template, tmp_path / "ca"))


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def ca(folder: Path, clock: Clock) -> Iterator[CertificateAuthority]:
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as authority:
        yield authority


@pytest.fixture
def locked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Call it, and somebody else holds the write lock of the folder's database until the test ends."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT", timedelta(milliseconds=100))
    connections: list[sqlite3.Connection] = []

    def lock() -> None:
        connection = sqlite3.connect(folder / DATABASE_FILE, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        connections.append(connection)

    yield lock
    for connection in connections:
        connection.rollback()
        connection.close()
