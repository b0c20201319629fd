"""The table of signing keys, in SQLite and in PostgreSQL: what one process does, the other does not do again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from uuid import uuid4

import pytest
import sqlalchemy as sa

from tests.forge import NOW
from trust.oauth.server.store import Store
from trust.oauth.server.store.signing_keys import KeyRecord, KeyState

URL = os.environ.get("A2A_TRUST_POSTGRESQL")
LATER = NOW + timedelta(hours=2)


def record(number: int, state: KeyState = KeyState.NEXT) -> KeyRecord:
    return KeyRecord(number=number, kid=f"key-{number}-{uuid4()}", alg="ES256", state=state, since=NOW, pem=b"PEM")


@pytest.fixture(
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.skipif(not URL, reason="A2A_TRUST_POSTGRESQL"))]
)
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    """Two processes' stores over one database."""
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{tmp_path / 'oauth.db'}"
        if request.param == "postgresql":
            url = stack.enter_context(_database())
        first, second = Store(url), Store(url)
        stack.callback(first.close)
        stack.callback(second.close)
        yield first, second


@contextlib.contextmanager
def _database() -> Iterator[str]:
    assert URL is not None
    server = sa.make_url(URL).set(drivername="postgresql+psycopg")
    name = f"keys_{uuid4().hex[:12]}"
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield server.set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    admin.dispose()


def test_a_key_is_found_as_it_was_added_and_its_pem_in_no_repr(stores: tuple[Store, Store]) -> None:
    first, second = stores
    key = record(1, KeyState.ACTIVE)
    assert first.signing_keys.add(key)
    assert second.signing_keys.all() == (key,)
    assert "PEM" not in repr(key)


def test_two_processes_that_make_a_key_at_once_make_one(stores: tuple[Store, Store]) -> None:
    barrier = Barrier(2)

    def make(store: Store) -> bool:
        store.signing_keys.all()
        barrier.wait(20)
        return store.signing_keys.add(record(1, KeyState.ACTIVE))

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(make, stores)) == [False, True]
    assert len(stores[0].signing_keys.all()) == 1


def test_two_processes_that_activate_at_once_do_it_once(stores: tuple[Store, Store]) -> None:
    for key in (record(1, KeyState.ACTIVE), record(2)):
        assert stores[0].signing_keys.add(key)
    barrier = Barrier(2)

    def activate(store: Store) -> bool:
        barrier.wait(20)
        return store.signing_keys.activate(2, now=LATER)

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(activate, stores)) == [False, True]
    found = stores[0].signing_keys.all()
    assert [(r.number, r.state, r.since) for r in found] == [(1, KeyState.RETIRED, LATER), (2, KeyState.ACTIVE, LATER)]


def test_nothing_happens_to_a_key_that_is_not_in_the_expected_state(stores: tuple[Store, Store]) -> None:
    keys = stores[0].signing_keys
    active, coming = record(1, KeyState.ACTIVE), record(2)
    assert keys.add(active) and keys.add(coming)
    assert not keys.erase(1) and not keys.erase(2)  # only what is retired
    assert not keys.activate(1, now=LATER) and not keys.activate(3, now=LATER)
    assert not keys.redate(replace(active, since=LATER), now=NOW)
    assert not keys.redate(replace(active, state=KeyState.RETIRED), now=LATER)
    assert keys.all() == (active, coming)
    assert keys.redate(active, now=LATER)
    assert keys.activate(2, now=LATER) and keys.erase(1)
    # A number is not used twice, not by a process either that was asleep since it looked.
    assert not keys.add(record(1)) and not keys.add(record(2))


def test_all_keys_are_replaced_at_once_or_none(stores: tuple[Store, Store]) -> None:
    keys = stores[0].signing_keys
    first, coming = record(1, KeyState.ACTIVE), record(2)
    assert keys.add(first) and keys.add(coming)
    assert not keys.replace_all(record(2, KeyState.ACTIVE))
    assert keys.all() == (first, coming)
    new = record(3, KeyState.ACTIVE)
    assert keys.replace_all(new)
    assert stores[1].signing_keys.all() == (new,)
