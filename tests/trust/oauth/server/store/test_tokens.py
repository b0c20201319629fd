from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.forge import HOUR, NOW
from trust.errors import ClientRefused, ConfigurationError, SubjectTokenRefused
from trust.oauth.server.store import Issued, Store, tokens
from trust.oauth.server.store.tokens import KEPT_SECONDS, PURGE_BATCH

ROOT = Issued(
    token_id="root",
    parent_id=None,
    root_id="root",
    root_issued_at=NOW,
    client_id="planner",
    subject="spiffe://fleet.example/planner",
    issued_at=NOW,
    expires_at=NOW + HOUR,
)


def child(token_id: str, parent: str = "root") -> Issued:
    return replace(ROOT, token_id=token_id, parent_id=parent)


@pytest.fixture
def store(opened: Callable[[], Store]) -> Store:
    return opened()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Store]:
    """In SQLite, for what only its file can show."""
    store = Store(f"sqlite:///{tmp_path / 'oauth.db'}")
    yield store
    store.close()


def test_a_token_is_found_as_it_was_added_by_another_process_too(store: Store, opened: Callable[[], Store]) -> None:
    issued = replace(ROOT, root_issued_at=NOW - HOUR)
    store.tokens.add(issued, now=NOW)
    other = opened()
    assert other.tokens.find("root") == issued
    assert other.tokens.find("unknown") is None


def test_commits_are_durable_and_readers_do_not_wait(local: Store, tmp_path: Path) -> None:
    store = local
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    store.tokens.add(ROOT, now=NOW)
    writer = sqlite3.connect(tmp_path / "oauth.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert store.tokens.find("root") == ROOT
    writer.execute("ROLLBACK")
    writer.close()


def test_tokens_that_are_added_together_are_refused_each_for_itself(opened: Callable[[], Store]) -> None:
    store = opened()
    assert (
        store.tokens.add_all([(ROOT, NOW), (replace(ROOT, token_id="revoked", root_id="revoked"), NOW)]) == [None] * 2
    )
    store.tokens.revoke("revoked")
    store.clients.disable("spiffe://fleet.example/disabled", now=NOW)
    batch = [
        (child("good"), NOW),
        (child("orphan", "unknown"), NOW),
        (child("late"), NOW + HOUR),  # its parent has ended by then
        (child("bad", "revoked"), NOW),
        (replace(ROOT, token_id="theirs", client_id="spiffe://fleet.example/disabled"), NOW),
        (child("also-good"), NOW),
    ]
    refused = store.tokens.add_all(batch)
    assert [type(error) for error in refused] == [
        *(type(None), SubjectTokenRefused, SubjectTokenRefused, SubjectTokenRefused),
        *(ClientRefused, type(None)),
    ]
    found = [issued.token_id for issued, _ in batch if store.tokens.find(issued.token_id) is not None]
    assert found == ["good", "also-good"]


def test_revoking_a_token_revokes_all_that_came_from_it_and_nothing_else(store: Store) -> None:
    store.tokens.add(ROOT, now=NOW)
    store.tokens.add(replace(ROOT, token_id="other", root_id="other"), now=NOW)
    for issued in (child("a"), child("a1", "a"), child("a11", "a1"), child("b"), child("b1", "b")):
        store.tokens.add(issued, now=NOW)
    assert store.tokens.revoke("a") == 3
    assert _revoked(store) == {"a", "a1", "a11"}
    assert store.tokens.revoke("a") == 0
    assert store.tokens.revoke("unknown") == 0
    assert store.tokens.revoke("root") == 3
    assert _revoked(store) == {"root", "a", "a1", "a11", "b", "b1"}


def _revoked(store: Store) -> set[str]:
    found = {i: store.tokens.find(i) for i in ("root", "other", "a", "a1", "a11", "b", "b1")}
    return {i for i, issued in found.items() if issued is not None and issued.revoked}


def test_all_of_a_client_or_about_a_subject_and_what_came_from_it(store: Store) -> None:
    """A planner's tokens, one of which billing has exchanged; and billing's own, about itself."""
    store.tokens.add(ROOT, now=NOW)
    store.tokens.add(replace(ROOT, token_id="other", root_id="other"), now=NOW)
    store.tokens.add(replace(child("a"), client_id="billing"), now=NOW)
    own = replace(ROOT, token_id="b", root_id="b", client_id="billing", subject="spiffe://fleet.example/billing")
    store.tokens.add(own, now=NOW)
    assert [i.token_id for i in store.tokens.living(now=NOW, client_id="billing", limit=9)] == ["a", "b"]
    assert [i.token_id for i in store.tokens.living(now=NOW, subject=own.subject, limit=9)] == ["b"]
    assert len(store.tokens.living(now=NOW, limit=9)) == 4
    assert len(store.tokens.living(now=NOW, limit=3)) == 3
    assert store.tokens.living(now=NOW + HOUR, limit=9) == []
    ends = max(i.expires_at for i in store.tokens.living(now=NOW, client_id="planner", limit=9))
    late = ends + timedelta(seconds=KEPT_SECONDS)
    assert store.tokens.revoke_all(now=late, client_id="planner") == 0  # none would be valid anywhere
    assert store.tokens.revoke_all(now=NOW, client_id="nobody") == 0
    assert store.tokens.revoke_all(now=NOW, client_id="planner", subject=own.subject) == 0  # both
    assert store.tokens.revoke_all(now=NOW, client_id="planner") == 3
    assert _revoked(store) == {"root", "other", "a"}
    # By the clock of an agent that is behind ours it lives.
    ended = own.expires_at + timedelta(seconds=KEPT_SECONDS - 1)
    assert store.tokens.revoke_all(now=ended, subject=own.subject) == 1
    with pytest.raises(ValueError, match="neither"):
        store.tokens.revoke_all(now=NOW)


def test_each_revocation_is_counted_with_what_it_revoked(store: Store, opened: Callable[[], Store]) -> None:
    for token_id in ("root", "other"):
        store.tokens.add(replace(ROOT, token_id=token_id, root_id=token_id), now=NOW)
    store.tokens.add(child("a"), now=NOW)
    end = int(ROOT.expires_at.timestamp())
    assert (store.tokens.revocations(), store.tokens.revoked(now=NOW, limit=9)) == (0, {})
    store.tokens.revoke("unknown")
    assert store.tokens.revocations() == 0
    store.tokens.revoke("root")
    assert (store.tokens.revocations(), store.tokens.revoked(now=NOW, limit=9)) == (1, {"root": end, "a": end})
    store.tokens.revoke("root")
    assert store.tokens.revocations() == 1
    assert (opened().tokens.revoke("other"), store.tokens.revocations()) == (1, 2)
    assert len(store.tokens.revoked(now=NOW, limit=2)) == 2
    kept = timedelta(seconds=KEPT_SECONDS)
    assert len(store.tokens.revoked(now=NOW + HOUR + kept - timedelta(seconds=1), limit=9)) == 3
    assert store.tokens.revoked(now=NOW + HOUR + kept, limit=9) == {}


def test_revocations_of_several_processes_wait_for_one_another_and_none_is_lost(opened: Callable[[], Store]) -> None:
    """Each in its own way, and all over the same tokens: the order in which they lock them cannot be the same."""
    stores = [opened() for _ in range(4)]
    for n in range(12):
        stores[0].tokens.add(replace(ROOT, token_id=f"r{n}", root_id=f"r{n}"), now=NOW)
        stores[0].tokens.add(replace(child(f"c{n}", f"r{n}"), root_id=f"r{n}", client_id="billing"), now=NOW)
    start = threading.Barrier(5)

    def all_of(store: Store, client_id: str | None, subject: str | None) -> int:
        start.wait()
        return store.tokens.revoke_all(now=NOW, client_id=client_id, subject=subject)

    def one_by_one(store: Store, order: int) -> int:
        start.wait()
        return sum(store.tokens.revoke(f"{kind}{n}") for n in range(12)[::order] for kind in "cr")

    def look() -> list[tuple[int, set[str]]]:
        start.wait()
        seen: list[tuple[int, set[str]]] = []
        limit = time.monotonic() + 20
        while (not seen or len(seen[-1][1]) < 24) and time.monotonic() < limit:
            count = reader.tokens.revocations()
            seen.append((count, set(reader.tokens.revoked(now=NOW, limit=99))))
            time.sleep(0.002)
        return seen

    reader = opened()
    with ThreadPoolExecutor(5) as pool:
        looking = pool.submit(look)
        workers = [
            pool.submit(all_of, stores[0], "planner", None),
            pool.submit(all_of, stores[1], None, ROOT.subject),
            pool.submit(one_by_one, stores[2], 1),
            pool.submit(one_by_one, stores[3], -1),
        ]
        assert sum(worker.result() for worker in workers) == 24  # each of them once
        seen = looking.result()
    # What was seen with a number is still there with a higher one: a list never takes back what one before it had.
    for (before, had), (after, has) in pairwise(seen):
        assert before <= after
        assert had <= has


@pytest.mark.parametrize("parent", ["unknown", "revoked", "expired"])
def test_no_child_of_a_parent_that_is_gone(store: Store, parent: str) -> None:
    store.tokens.add(replace(ROOT, token_id="revoked", root_id="revoked"), now=NOW)
    store.tokens.revoke("revoked")
    store.tokens.add(replace(ROOT, token_id="expired", root_id="expired", expires_at=NOW), now=NOW)
    with pytest.raises(SubjectTokenRefused):
        store.tokens.add(child("child", parent), now=NOW)
    assert store.tokens.find("child") is None


def test_children_that_race_with_the_revocation_of_their_parent_die_with_it(store: Store) -> None:
    """Whichever comes first: a child is refused, or it is revoked."""
    store.tokens.add(ROOT, now=NOW)
    start = threading.Barrier(5)

    def add(worker: int) -> None:
        start.wait()
        for n in range(20):
            try:
                store.tokens.add(child(f"{worker}-{n}"), now=NOW)
            except SubjectTokenRefused:
                return

    with ThreadPoolExecutor(5) as pool:
        workers = [pool.submit(add, worker) for worker in range(4)]
        start.wait()
        store.tokens.revoke("root")
        for worker in workers:
            worker.result()
    children = [store.tokens.find(f"{worker}-{n}") for worker in range(4) for n in range(20)]
    assert all(issued.revoked for issued in children if issued is not None)


@pytest.mark.parametrize("first", ["b", "a"])
def test_who_exchanges_tokens_all_the_time_cannot_stop_their_revocation(
    postgresql: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that holds one of two tokens, and wants the other while the revocation waits for the first.

    By the order of their names it has to be granted that; the other way round one of the two is ended by the database.
    """
    second = {"a": "b", "b": "a"}[first]
    if first == "a":
        monkeypatch.setattr(tokens, "ATTEMPTS", 1)  # which is all that is needed
    with contextlib.closing(Store(postgresql)) as store, ThreadPoolExecutor(1) as pool:
        for token_id in ("b", "a"):  # the order in which they lie in the table is another one than that of their names
            store.tokens.add(replace(ROOT, token_id=token_id, root_id=token_id), now=NOW)
        with store._engine.connect() as connection, store._engine.connect() as looking:
            lock = sa.text("SELECT token_id FROM oauth_tokens WHERE token_id = :token_id FOR UPDATE")
            connection.execute(lock, {"token_id": first})
            revoking = pool.submit(store.tokens.revoke_all, now=NOW, client_id="planner")
            limit = time.monotonic() + 20
            waits = sa.text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            while not looking.execute(waits).scalar_one() and time.monotonic() < limit:
                looking.rollback()  # what it has seen of the others it keeps as long as the transaction lasts
                time.sleep(0.01)
            if first == "a":
                connection.execute(lock, {"token_id": second})
            else:
                with contextlib.suppress(sa.exc.OperationalError):  # or the revocation was ended, and is tried again
                    connection.execute(lock, {"token_id": second})
            connection.rollback()
        assert revoking.result(20) == 2
        assert set(store.tokens.revoked(now=NOW, limit=9)) == {"a", "b"}


def test_expired_rows_go_a_few_at_a_time_and_living_ones_stay(store: Store) -> None:
    for n in range(PURGE_BATCH + 4):
        store.tokens.add(replace(ROOT, token_id=f"old-{n}", root_id=f"old-{n}", expires_at=NOW), now=NOW)
    store.tokens.add(ROOT, now=NOW + timedelta(seconds=KEPT_SECONDS + 1))

    def left() -> int:
        return sum(store.tokens.find(f"old-{n}") is not None for n in range(PURGE_BATCH + 4))

    assert left() == 4  # those that are left are not on a list any more
    store.tokens.add(child("child"), now=NOW + timedelta(seconds=KEPT_SECONDS + 1))
    assert left() == 0
    assert store.tokens.find("root") == ROOT


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///:memory:", "not a url", "sqlite:////no/such/folder/oauth.db", "nosuchdb://host/name"],
)
def test_a_store_that_cannot_keep_anything_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Store(url)
    assert type(caught.value) is ConfigurationError


def test_the_file_holds_identifiers_and_no_secret_columns(local: Store, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "oauth.db")) as database:
        columns = {row[1] for row in database.execute("PRAGMA table_info(oauth_tokens)")}
    assert columns == {
        "token_id",
        "parent_id",
        "root_id",
        "root_issued_at",
        "client_id",
        "agent_id",
        "subject",
        "issued_at",
        "expires_at",
        "revoked",
    }
