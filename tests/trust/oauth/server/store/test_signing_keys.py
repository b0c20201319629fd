"""The table of signing keys, in SQLite and in PostgreSQL: what one process does, the other does not do again."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from threading import Barrier
from uuid import uuid4

import pytest

from tests.forge import NOW
from trust.oauth.server.store import Store
from trust.oauth.server.store.signing_keys import KeyRecord, KeyState

LATER = NOW + timedelta(hours=2)


def record(number: int, state: KeyState = KeyState.NEXT) -> KeyRecord:
    return KeyRecord(number=number, kid=f"key-{number}-{uuid4()}", alg="ES256", state=state, since=NOW, pem=b"PEM")


@pytest.fixture
def stores(opened: Callable[[], Store]) -> tuple[Store, Store]:
    """Two processes' stores over one database."""
    return opened(), opened()


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
