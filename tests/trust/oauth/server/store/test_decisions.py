"""What people decide is written with what it changes, and each decision is taken by one server at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from threading import Barrier
from typing import Any

import pytest

from tests.authority import Clock
from tests.forge import HOUR, NOW
from trust.errors import ApprovalNotWaiting, ClientNotRegistered, ConfigurationError
from trust.oauth.server.store import Asked, Issued, Operator, Store
from trust.oauth.server.store.decisions import TELLING, Decided
from trust.oauth.server.store.signing_keys import KeyRecord, KeyState

AGENT = "spiffe://fleet.example/planner"
ACCOUNT = "alice@desk"
SECOND = timedelta(seconds=1)
ASKED = Asked(
    request="0" * 64,
    client_id=AGENT,
    agent_id=AGENT,
    subject="spiffe://fleet.example/billing",
    actors=(),
    resource="https://ledger.example",
    scope="read:a read:b",
    message="",
)
TOKEN = Issued(
    token_id="t",
    parent_id=None,
    root_id="t",
    root_issued_at=NOW,
    client_id=AGENT,
    subject=AGENT,
    issued_at=NOW,
    expires_at=NOW + HOUR,
)
KEY = KeyRecord(number=1, kid="kid-1", alg="ES256", state=KeyState.ACTIVE, since=NOW, pem=b"PEM")


@pytest.fixture
def desk(url: str) -> Iterator[Store]:
    """The database, as somebody has opened it by a command."""
    with closing(Store(url, by=Operator(account=ACCOUNT, clock=Clock()))) as store:
        yield store


def taken(store: Store) -> list[Decided]:
    found = []
    while (decided := store.decisions.take(now=NOW)) is not None:
        found.append(decided)
    return found


def approval(store: Store) -> str:
    return store.approvals.ask(ASKED, now=NOW, lifetime=HOUR)[0].approval_id


def add(store: Store, name: str = AGENT, **rights: Any) -> None:
    store.clients.add(name, {"scopes": ["a:b", "c:d"], **rights}, digest=b"\1" * 32, now=NOW, check=lambda _: None)


def decided(event: str, target: str, by: str = ACCOUNT, **facts: str | int) -> dict[str, Any]:
    return {"event": event, "target": target, "by": by, "account": ACCOUNT, "at": NOW, "facts": facts}


def without_number(found: Decided) -> dict[str, Any]:
    return {name: getattr(found, name) for name in ("event", "target", "by", "account", "at", "facts")}


def test_each_decision_says_who_what_and_when(desk: Store) -> None:
    desk.tokens.add(TOKEN, now=NOW)
    add(desk, resources=["https://a", "https://b"], lifetime_seconds=600)
    desk.clients.rotate_secret(AGENT, b"\2" * 32, overlap=HOUR, now=NOW)
    assert desk.clients.disable(AGENT, now=NOW) == 1
    desk.clients.enable(AGENT, now=NOW)
    desk.clients.disable(AGENT, now=NOW)
    desk.clients.remove(AGENT)
    assert desk.tokens.revoke("t") == 0
    assert desk.tokens.revoke_all(now=NOW, client_id=AGENT) == 0
    yes, no = approval(desk), desk.approvals.ask(replace(ASKED, request="1" * 64), now=NOW, lifetime=HOUR)[0]
    desk.approvals.decide(yes, approve=True, by="bob", now=NOW)
    desk.approvals.decide(no.approval_id, approve=False, by=ACCOUNT, now=NOW)
    assert desk.signing_keys.add(KEY)
    assert desk.signing_keys.replace_all(replace(KEY, number=2, kid="kid-2"))
    asked = {"subject": ASKED.subject, "client": AGENT, "scope": ASKED.scope}
    rights = {"scope": "a:b c:d", "resources": "https://a https://b", "lifetime_seconds": 600}
    found = taken(desk)
    assert [without_number(one) for one in found] == [
        decided("client add", AGENT, **rights),  # type: ignore[arg-type]  # texts and a number
        decided("client rotate-secret", AGENT, old_ends_at=(NOW + HOUR).isoformat()),
        decided("client disable", AGENT, revoked=1),
        decided("client enable", AGENT),
        decided("client disable", AGENT, revoked=0),
        decided("client remove", AGENT),
        decided("token revoke", "t", revoked=0),
        decided("token revoke", "", revoked=0, client=AGENT, subject=""),
        decided("approval approve", ASKED.resource, by="bob", **asked, approval=yes),
        decided("approval deny", ASKED.resource, **asked, approval=no.approval_id),
        decided("authority rotate", "kid-1", alg="ES256"),
        decided("authority rotate", "kid-2", alg="ES256", compromised="all keys before"),
    ]
    assert [one.number for one in found] == list(range(1, 13))


def test_what_changes_nothing_and_what_a_server_does_by_itself_is_no_decision(
    desk: Store, opened: Callable[[], Store]
) -> None:
    for refused, error in [
        (lambda: desk.clients.enable(AGENT, now=NOW), ClientNotRegistered),
        (lambda: desk.clients.remove(AGENT), ClientNotRegistered),
        (lambda: desk.clients.rotate_secret(AGENT, b"", overlap=HOUR, now=NOW), ClientNotRegistered),
        (lambda: desk.approvals.decide("none", approve=True, by="bob", now=NOW), ApprovalNotWaiting),
    ]:
        with pytest.raises(error) as caught:
            refused()
        assert type(caught.value) is error
    server = opened()
    add(server)
    server.tokens.add(TOKEN, now=NOW)
    server.tokens.revoke("t")
    server.approvals.decide(approval(server), approve=True, by="page", now=NOW)
    server.signing_keys.add(KEY)
    with pytest.raises(ConfigurationError):
        add(desk)
    assert not desk.signing_keys.add(KEY)
    assert not desk.signing_keys.replace_all(KEY)
    assert taken(desk) == []


def test_neither_the_change_without_the_decision(desk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision that cannot be written stops what it would have changed."""

    def fails(*_: object, **__: object) -> None:
        raise OSError("disk full")

    desk.tokens.add(TOKEN, now=NOW)
    approval_id = approval(desk)
    for module in ("clients", "tokens", "approvals", "signing_keys"):
        monkeypatch.setattr(f"trust.oauth.server.store.{module}.note", fails)
    for change in (
        lambda: add(desk),
        lambda: desk.clients.disable(AGENT, now=NOW),
        lambda: desk.tokens.revoke("t"),
        lambda: desk.tokens.revoke_all(now=NOW, subject=AGENT),
        lambda: desk.approvals.decide(approval_id, approve=True, by="bob", now=NOW),
        lambda: desk.signing_keys.add(KEY),
        lambda: desk.signing_keys.replace_all(KEY),
    ):
        with pytest.raises(OSError, match="disk full"):
            change()
    assert (desk.clients.all(), desk.signing_keys.all()) == ((), ())
    assert desk.tokens.revocations() == 0
    assert [one.approval_id for one in desk.approvals.waiting(now=NOW)] == [approval_id]


def test_of_several_servers_one_takes_each(desk: Store, opened: Callable[[], Store]) -> None:
    for n in range(12):
        desk.clients.disable(f"agent-{n}", now=NOW)
    servers, start = [opened() for _ in range(3)], Barrier(3)

    def work(store: Store) -> list[int]:
        start.wait(20)
        found = taken(store)
        for one in found:
            store.decisions.told(one)
        return [one.number for one in found]

    with ThreadPoolExecutor(3) as pool:
        found = sorted(n for numbers in pool.map(work, servers) for n in numbers)
    assert found == list(range(1, 13))
    assert servers[0].decisions.take(now=NOW + 99 * TELLING) is None
    desk.clients.disable("another", now=NOW)
    last = desk.decisions.take(now=NOW)
    assert last is not None and last.number == 13  # not one of before, although the table was empty


def test_what_a_crashed_server_had_taken_is_taken_again(desk: Store, opened: Callable[[], Store]) -> None:
    desk.clients.disable(AGENT, now=NOW)
    crashed, other = opened(), opened()
    first = crashed.decisions.take(now=NOW)
    assert first is not None
    assert other.decisions.take(now=NOW + TELLING - SECOND) is None
    assert other.decisions.take(now=NOW + TELLING) == first
    assert other.decisions.take(now=NOW + TELLING) is None
    other.decisions.give_back(first)
    assert crashed.decisions.take(now=NOW) == first
    crashed.decisions.told(first)
    assert other.decisions.take(now=NOW + 99 * HOUR) is None


def test_what_was_taken_by_a_clock_far_ahead_is_not_lost(desk: Store) -> None:
    desk.clients.disable(AGENT, now=NOW)
    assert desk.decisions.take(now=NOW + 1000 * HOUR) is not None
    assert desk.decisions.take(now=NOW) is not None


def test_whoever_tells_holds_no_lock(desk: Store, opened: Callable[[], Store]) -> None:
    """An audit trail that hangs keeps nobody from disabling a client."""
    desk.clients.disable("one", now=NOW)
    assert opened().decisions.take(now=NOW) is not None
    desk.clients.disable("two", now=NOW)  # and does not wait ten seconds for a lock
    second = opened().decisions.take(now=NOW)
    assert second is not None and second.target == "two"
