"""Requests for a person, in SQLite and in PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tests.forge import NOW
from trust.errors import AssertionUsed, ClientRefused, SubjectTokenRefused, TooManyApprovals, TooManyTokensHeld
from trust.oauth.server.store import (
    Approval,
    Asked,
    Issued,
    Store,
    UsedAssertion,
    allowances,
    use_approval,
    use_assertion,
)
from trust.oauth.server.store.approvals import MAX_WAITING

WORKER = "spiffe://fleet.example/workers/7"
ASKED = Asked(
    request="one",
    client_id=WORKER,
    agent_id=WORKER,
    subject=WORKER,
    actors=(),
    resource="spiffe://fleet.example/billing",
    scope="approve:payment",
    message="",
)
TOKEN = Issued(
    token_id="token",
    parent_id=None,
    root_id="token",
    root_issued_at=NOW,
    client_id=WORKER,
    agent_id=WORKER,
    subject=WORKER,
    issued_at=NOW,
    expires_at=NOW + timedelta(minutes=4),
)
ASSERTION = UsedAssertion(issuer="https://auth.partner.example", token_id="a", expires_at=NOW + timedelta(minutes=1))


def approved(store: Store) -> Approval:
    waiting, _ = store.approvals.ask(ASKED, now=NOW, lifetime=timedelta(minutes=5))
    return store.approvals.decide(waiting.approval_id, approve=True, by="alice", now=NOW)


def issue(store: Store, approval: Approval, assertion: UsedAssertion = ASSERTION, **changes: Any) -> bool:
    """A token for both; False where the approval was used."""

    class Gone(Exception):
        pass

    def using(connection: sa.Connection) -> None:
        if not use_approval(connection, approval, now=NOW):
            raise Gone
        use_assertion(connection, assertion, now=NOW)

    try:
        store.tokens.add(replace(TOKEN, **changes), now=NOW, using=using)
    except Gone:
        return False
    return True


def test_of_many_tokens_at_once_one_has_the_approval(opened: Callable[[], Store]) -> None:
    """Each of those has an assertion of its own, and keeps it."""
    stores, start = [opened() for _ in range(3)], threading.Barrier(6)
    approval = approved(stores[0])

    def first(n: int) -> bool:
        start.wait(20)
        name = f"t{n}"
        return issue(stores[n % 3], approval, replace(ASSERTION, token_id=name), token_id=name, root_id=name)

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(first, range(6)))
    assert sorted(won) == [False] * 5 + [True]
    approval = approved(stores[0])
    with pytest.raises(AssertionUsed):
        issue(stores[1], approval, replace(ASSERTION, token_id=f"t{won.index(True)}"))
    assert issue(stores[2], approval, replace(ASSERTION, token_id=f"t{won.index(False)}"))


def full(store: Store) -> None:
    store.tokens.add(replace(TOKEN, token_id="x", root_id="x"), now=NOW)


def disabled(store: Store) -> None:
    store.clients.disable(WORKER, now=NOW)


def nothing(_store: Store) -> None: ...


def used(store: Store) -> None:
    other = replace(TOKEN, token_id="x", root_id="x", client_id="x", agent_id="x")
    store.tokens.add(other, now=NOW, using=lambda connection: use_assertion(connection, ASSERTION, now=NOW))


@pytest.mark.parametrize(
    ("before", "changes", "expected"),
    [
        (full, {}, TooManyTokensHeld),
        (disabled, {}, ClientRefused),
        (nothing, {"parent_id": "none", "root_id": "none"}, SubjectTokenRefused),
        (used, {}, AssertionUsed),
        (nothing, {"token_id": None}, sa.exc.IntegrityError),  # whatever the database has against it
    ],
    ids=["too many tokens", "client disabled", "parent gone", "assertion used", "database"],
)
def test_a_token_that_is_refused_uses_up_nothing(
    opened: Callable[[], Store],
    monkeypatch: pytest.MonkeyPatch,
    before: Callable[[Store], None],
    changes: dict[str, Any],
    expected: type[Exception],
) -> None:
    monkeypatch.setattr(allowances, "MAX_HELD", 1)
    monkeypatch.setattr(allowances, "COUNTED_FOR", 1)
    store = opened()
    approval = approved(store)
    before(store)
    with pytest.raises(Exception) as caught:
        issue(store, approval, **changes)
    assert type(caught.value) is expected
    another = replace(ASSERTION, token_id="b") if before is used else ASSERTION
    theirs: dict[str, Any] = {
        "client_id": "y",
        "agent_id": "y",
        "subject": "y",
    }  # of a client that is neither disabled nor full
    assert issue(store, approval, another, **theirs)
    assert not issue(store, approval, replace(ASSERTION, token_id="c"), token_id="z", **{**theirs, "client_id": "z"})


def test_whoever_asks_by_many_ways_at_once_gets_no_more_than_its_share(opened: Callable[[], Store]) -> None:
    stores, start = [opened() for _ in range(3)], threading.Barrier(12)

    def ask(worker: int) -> int:
        start.wait(20)
        new = 0
        for number in range(4):
            try:
                asked = replace(ASKED, request=f"{worker}-{number}")
                stores[worker % 3].approvals.ask(asked, now=NOW, lifetime=timedelta(minutes=5))
            except TooManyApprovals:
                continue
            new += 1
        return new

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(ask, range(12))) == MAX_WAITING
    assert len(stores[0].approvals.waiting(now=NOW)) == MAX_WAITING
