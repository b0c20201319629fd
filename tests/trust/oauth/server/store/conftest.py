"""Every test that asks for `url` runs on SQLite, and on PostgreSQL where there is a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pki.store import parts
from trust.oauth.server.store import Store


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    with parts.postgresql() as url:
        yield url


@pytest.fixture
def postgresql(database: str) -> Iterator[str]:
    """The URL of a database with nothing in it."""
    yield database
    parts.sql(database, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'both.db'}"
    return str(request.getfixturevalue("postgresql"))


@pytest.fixture
def opened(url: str) -> Iterator[Callable[[], Store]]:
    """Makes a store of its own for each process that there would be."""
    stores: list[Store] = []

    def another() -> Store:
        stores.append(Store(url))
        return stores[-1]

    yield another
    for store in stores:
        store.close()
