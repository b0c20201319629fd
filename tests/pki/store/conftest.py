"""Every test that asks for `where` runs on SQLite, and on PostgreSQL where there is a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pki.store import Store
from tests.pki.store import parts


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    with parts.postgresql() as url:
        yield url


@pytest.fixture
def postgresql(database: str) -> Iterator[str]:
    """The URL of a database with nothing in it."""
    yield database
    parts.sql(database, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a new CA: a root and an intermediate."""
    parts.create(tmp_path / "ca")
    return tmp_path / "ca"


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a CA can be made."""
    if request.param == "sqlite":
        return str(tmp_path / "ca")
    return str(request.getfixturevalue("postgresql"))


@pytest.fixture
def where(empty: str) -> str:
    """A new CA: a root and an intermediate."""
    parts.create(empty)
    return empty


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    opened = Store.open(where)
    opened.seal = parts.seal
    yield opened
    opened.close()
