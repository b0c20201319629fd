"""Registered clients, in SQLite and in PostgreSQL: what one process changes, no other one contradicts."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tests.forge import HOUR, NOW
from trust.errors import ClientNotRegistered, ClientRefused, ConfigurationError, IdentityError
from trust.oauth.server.clients import SecretDigest, client_of, digest_of, is_one_of
from trust.oauth.server.store import Issued, Store, clients

BILLING = "spiffe://fleet.example/billing"
WORKER = "spiffe://fleet.example/workers/7"
WORKERS = "spiffe://fleet.example/workers/*"
RIGHTS = {"scopes": ["read:rates"], "resources": ["spiffe://fleet.example/ledger"]}
Opened = Callable[[], Store]
TOKEN = Issued(
    token_id="root",
    parent_id=None,
    root_id="root",
    root_issued_at=NOW,
    client_id=BILLING,
    subject=BILLING,
    issued_at=NOW,
    expires_at=NOW + HOUR,
)


def add(store: Store, name: str = BILLING, *, secret: str | None = None, check: Any = lambda rows: None) -> None:
    digest = None if secret is None else digest_of(secret)
    store.clients.add(name, RIGHTS, digest=digest, now=NOW, check=check)


def test_what_one_process_registers_another_one_sees(opened: Opened) -> None:
    first, second = opened(), opened()
    before = second.clients.changes()
    add(first, secret="s")
    assert second.clients.changes() > before
    (row,) = second.clients.all()
    assert (row.name, row.rights, row.needs_secret, row.disabled) == (BILLING, RIGHTS, True, False)
    assert (row.secrets, row.changed_at) == (((digest_of("s"), None),), NOW)
    assert "s" not in repr(row.secrets[0][1]) and digest_of("s").hex() not in repr(row)


def test_of_those_who_register_what_contradicts_one_does(opened: Opened) -> None:
    stores, start = [opened() for _ in range(4)], threading.Barrier(4)

    def alone(rows: Sequence[clients.Registered]) -> None:
        if rows:
            raise ConfigurationError("somebody is there")

    def register(number: int) -> bool:
        start.wait(20)
        try:
            add(stores[number], f"spiffe://fleet.example/{number}", check=alone)
        except ConfigurationError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(register, range(4)))
    assert done.count(True) == 1
    assert [row.name for row in stores[0].clients.all()] == [f"spiffe://fleet.example/{done.index(True)}"]
    with pytest.raises(ConfigurationError, match="one of that name"):
        add(stores[1], stores[0].clients.all()[0].name)


def test_there_are_only_so_many(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "MAX_CLIENTS", 1)
    store = opened()
    add(store)
    with pytest.raises(ConfigurationError, match="use a pattern"):
        add(store, WORKERS)
    with pytest.raises(ConfigurationError, match="remove some"):
        store.clients.disable("another", now=NOW)
    store.clients.disable(BILLING, now=NOW)


def test_a_client_that_is_disabled_holds_no_token_and_gets_none(opened: Opened) -> None:
    store, other = opened(), opened()
    add(store)
    mine, child, others = TOKEN, replace(TOKEN, token_id="c", parent_id="root", client_id="x"), "another"
    for issued in (mine, child, replace(TOKEN, token_id=others, root_id=others, client_id="x")):
        other.tokens.add(issued, now=NOW)
    assert store.clients.disable(BILLING, now=NOW) == 2  # what was exchanged from it, too
    found = [other.tokens.find(token_id) for token_id in ("root", "c", others)]
    assert [issued.revoked for issued in found if issued] == [True, True, False]
    assert other.tokens.revocations() >= 1  # so that the list of revoked tokens is signed anew
    with pytest.raises(ClientRefused):
        other.tokens.add(replace(TOKEN, token_id="late", root_id="late"), now=NOW)
    assert other.tokens.find("late") is None
    assert store.clients.disable(BILLING, now=NOW) == 0

    store.clients.enable(BILLING, now=NOW)
    other.tokens.add(replace(TOKEN, token_id="again", root_id="again"), now=NOW)
    assert [row.disabled for row in other.clients.all()] == [False]
    with pytest.raises(ClientNotRegistered):
        store.clients.enable(BILLING, now=NOW)


def test_a_pattern_disables_all_that_it_names_and_nobody_else(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "HOLDERS_AT_ONCE", 2)
    store = opened()
    others = [f"spiffe://fleet.example/workers/{n}" for n in range(4)]
    for n, holder in enumerate((WORKER, *others, "spiffe://fleet.example/workers/7/8", "the-planner")):
        store.tokens.add(replace(TOKEN, token_id=str(n), root_id=str(n), client_id=holder), now=NOW)
    assert store.clients.disable(WORKERS, now=NOW) == 5
    assert [(t.token_id, t.revoked) for t in store.tokens.living(now=NOW, limit=9)] == [
        (str(n), n < 5) for n in range(7)
    ]
    with pytest.raises(ClientRefused):
        store.tokens.add(replace(TOKEN, client_id=WORKER), now=NOW)
    store.tokens.add(replace(TOKEN, client_id="the-planner"), now=NOW)
    store.clients.enable(WORKERS, now=NOW)
    assert store.clients.all() == ()  # it was in no other way there
    with pytest.raises(IdentityError):
        store.clients.disable("spiffe://fleet.example/work*", now=NOW)


@pytest.mark.parametrize("name", ["the-worker", WORKER, WORKERS])
def test_a_client_with_a_name_of_its_own_is_disabled_by_each(opened: Opened, name: str) -> None:
    store = opened()
    held = replace(TOKEN, client_id="the-worker", agent_id=WORKER)
    other = replace(TOKEN, token_id="other", root_id="other", client_id="other", agent_id=BILLING)
    for issued in (held, other):
        store.tokens.add(issued, now=NOW)
    assert store.clients.disable(name, now=NOW) == 1
    assert [i.revoked for token in ("root", "other") if (i := store.tokens.find(token))] == [True, False]
    with pytest.raises(ClientRefused):
        store.tokens.add(replace(held, token_id="late", root_id="late"), now=NOW)


def test_a_token_that_has_ended_by_our_clock_alone_is_revoked_too(opened: Opened) -> None:
    store = opened()
    store.tokens.add(TOKEN, now=NOW)
    assert store.clients.disable(WORKERS, now=TOKEN.expires_at) == 0
    assert store.clients.disable(BILLING, now=TOKEN.expires_at + timedelta(seconds=9)) == 1
    assert "root" in store.tokens.revoked(now=TOKEN.expires_at, limit=9)


def test_no_token_slips_through_while_its_client_is_being_disabled(opened: Opened) -> None:
    """Whichever comes first: it is refused, or it is revoked."""
    stores, start = [opened() for _ in range(3)], threading.Barrier(4)
    disabling = opened()

    def issue(worker: int) -> list[str]:
        start.wait(20)
        done = []
        for n in range(30):
            name = f"{worker}-{n}"
            try:
                stores[worker].tokens.add(replace(TOKEN, token_id=name, root_id=name), now=NOW)
            except ClientRefused:
                return done
            done.append(name)
        return done

    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(issue, worker) for worker in range(3)]
        start.wait(20)
        disabling.clients.disable(BILLING, now=NOW)
        issued = [name for worker in workers for name in worker.result(60)]
    found = [disabling.tokens.find(name) for name in issued]
    assert all(token is not None and token.revoked for token in found)


def test_who_asks_for_tokens_without_end_can_be_disabled(postgresql: str) -> None:
    """Whoever records a token after the operator has asked waits, though those before have not ended."""
    recording = sa.text("SELECT number FROM oauth_client_changes FOR SHARE")
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with (
        contextlib.closing(Store(postgresql)) as store,
        ThreadPoolExecutor(1) as pool,
        store._engine.connect() as before,
        store._engine.connect() as after,
        store._engine.connect() as looking,
    ):
        before.execute(recording)
        disabling = pool.submit(store.clients.disable, "spiffe://fleet.example/planner", now=NOW)
        limit = time.monotonic() + 20
        while not looking.execute(waiting).scalar_one() and time.monotonic() < limit:
            looking.rollback()  # what it has seen of the others it keeps as long as the transaction lasts
            time.sleep(0.01)
        after.execute(sa.text("SET LOCAL lock_timeout = '200ms'"))
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
            after.execute(recording)
        before.rollback()
        assert disabling.result(20) == 0


def test_only_what_is_disabled_can_be_removed(opened: Opened) -> None:
    store = opened()
    add(store, secret="s")
    with pytest.raises(ClientNotRegistered, match="disable it first"):
        store.clients.remove(BILLING)
    store.clients.disable(BILLING, now=NOW)
    store.clients.disable(WORKER, now=NOW)
    store.clients.remove(BILLING)
    assert [row.name for row in store.clients.all()] == [WORKER]
    with pytest.raises(ClientNotRegistered):  # else a name that is only disabled would be free again by accident
        store.clients.remove(WORKER)
    add(store)
    assert store.clients.all()[0].secrets == ()


def test_a_new_secret_ends_the_one_before_after_a_while_and_all_others_now(opened: Opened) -> None:
    store, day = opened(), timedelta(days=1)
    add(store, secret="1")
    store.clients.rotate_secret(BILLING, digest_of("2"), overlap=day, now=NOW)
    assert secrets(store) == {digest_of("1"): NOW + day, digest_of("2"): None}
    store.clients.rotate_secret(BILLING, digest_of("3"), overlap=day, now=NOW)
    assert secrets(store) == {digest_of("2"): NOW + day, digest_of("3"): None}
    store.clients.rotate_secret(BILLING, digest_of("4"), overlap=timedelta(0), now=NOW)
    assert secrets(store) == {digest_of("4"): None}
    add(store, WORKERS)
    for name in (WORKERS, "unknown"):
        with pytest.raises(ClientNotRegistered, match="needs a secret"):
            store.clients.rotate_secret(name, digest_of("5"), overlap=day, now=NOW)


@pytest.mark.parametrize(
    "damage",
    [
        "oauth_clients SET rights = '{'",
        "oauth_clients SET rights = '[]'",
        "oauth_clients SET changed_at = 9999999999999999",
        "oauth_client_secrets SET digest = 'zz'",
        "oauth_client_secrets SET ends_at = 9999999999999999",
    ],
)
def test_a_row_that_is_damaged_stops_no_other_client(opened: Opened, damage: str) -> None:
    store = opened()
    add(store, secret="s")
    add(store, WORKER)
    with store._engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {damage} WHERE name = '{BILLING}'")
    damaged, whole = store.clients.all()
    assert (whole.name, whole.rights) == (WORKER, RIGHTS)
    if "rights" in damage:  # of which no client is made
        with pytest.raises(ConfigurationError):
            client_of({**(damaged.rights or {}), "agent_id": BILLING})
    if "secrets" in damage:
        counting = [SecretDigest(digest=digest, ends_at=ends_at) for digest, ends_at in damaged.secrets]
        assert counting and not is_one_of("zz" if "digest" in damage else "s", counting, now=NOW)
    store.clients.disable(BILLING, now=NOW)


def secrets(store: Store) -> dict[bytes, Any]:
    return dict(next(row for row in store.clients.all() if row.name == BILLING).secrets)
