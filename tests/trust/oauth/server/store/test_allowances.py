"""No client holds more tokens than the list of revoked tokens has room for, and counting them stays cheap."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.authority import BILLING, LEDGER, PLANNER, Authority, ask
from tests.forge import HOUR, NOW
from trust.errors import TooManyTokensHeld
from trust.oauth.denylist.document import MAX_ENTRIES
from trust.oauth.server.store import Issued, Store, allowances
from trust.oauth.server.store.allowances import COUNTED_FOR, FULL_SECONDS, MAX_HELD
from trust.oauth.server.store.tokens import KEPT_SECONDS
from trust.oauth.server.throttle import REQUESTS_PER_MINUTE
from trust.oauth.server.together import MAX_BATCH

LIMIT, ON_BEHALF, STEP = 10, 3, 4
FULL = timedelta(seconds=FULL_SECONDS)
ROOT = Issued(
    token_id="root",
    parent_id=None,
    root_id="root",
    root_issued_at=NOW,
    client_id="planner",
    agent_id="spiffe://fleet.example/planner",
    subject="spiffe://fleet.example/planner",
    issued_at=NOW,
    expires_at=NOW + HOUR,
)
NUMBERS = count()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowances, "MAX_HELD", LIMIT)
    monkeypatch.setattr(allowances, "MAX_ON_BEHALF", ON_BEHALF)
    monkeypatch.setattr(allowances, "COUNTED_FOR", STEP)


@pytest.fixture
def counts() -> Iterator[list[str]]:
    """Every count of a client's tokens, of any store."""
    seen: list[str] = []

    def before(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT count(*)"):
            seen.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", before)
    yield seen
    sa.event.remove(sa.Engine, "before_cursor_execute", before)


def refused(store: Store, tokens: int, *, now: datetime = NOW, **changes: Any) -> list[TooManyTokensHeld]:
    """Of so many tokens that are added one by one, the errors of those that were not."""
    errors = []
    for _ in range(tokens):
        name = f"t{next(NUMBERS)}"
        (error,) = store.tokens.add_all([(replace(ROOT, token_id=name, root_id=name, **changes), now)])
        assert (store.tokens.find(name) is None) is (error is not None)
        if error is not None:
            assert type(error) is TooManyTokensHeld
            errors.append(error)
    return errors


def test_four_hostile_clients_cannot_fill_the_list_that_agents_take() -> None:
    """Of eight processes each of which has just counted, and with the tokens that are over and still on the list."""
    over = REQUESTS_PER_MINUTE * KEPT_SECONDS // 60
    assert 4 * (MAX_HELD + 8 * (COUNTED_FOR + MAX_BATCH) + over) < MAX_ENTRIES


def test_a_client_that_holds_too_many_gets_more_when_some_have_ended(
    opened: Callable[[], Store], counts: list[str]
) -> None:
    store = opened()
    assert refused(store, LIMIT - 2) == []
    assert refused(store, 2, expires_at=NOW + 2 * FULL) == []
    assert len(counts) == 3  # of ten tokens
    first, *others = refused(store, 20)
    assert (first.retry_after, first.is_first, {error.is_first for error in others}) == (FULL_SECONDS, True, {False})
    assert len(counts) == 4  # whoever asks on is not counted again
    assert refused(store, 3, client_id="billing") == []
    assert [error.is_first for error in refused(store, 2, now=NOW + FULL)] == [True, False]
    assert refused(store, 1, now=NOW + FULL + timedelta(seconds=4))[0].retry_after == 6
    assert len(refused(store, 3, now=NOW + 2 * FULL)) == 1


def test_one_caller_does_not_use_up_what_a_client_may_hold_for_all(
    opened: Callable[[], Store], counts: list[str]
) -> None:
    store = opened()
    greedy: dict[str, Any] = {"subject": "spiffe://fleet.example/greedy"}
    assert refused(store, STEP, **greedy) == []  # more than its share, within one count
    first, *others = refused(store, 20, **greedy)
    assert (first.retry_after, first.is_first, {error.is_first for error in others}) == (FULL_SECONDS, True, {False})
    assert "3 of planner for spiffe://fleet.example/greedy" in str(first)
    assert len(counts) == 2
    # Whoever else it is called by, and the client itself, get theirs; a count for them tells the trail of it once more.
    assert refused(store, 2, subject="spiffe://fleet.example/modest") == []
    assert refused(store, 3) == []
    assert len(counts) == 3
    assert [error.is_first for error in refused(store, 3, **greedy)] == [True, False, False]
    assert [error.is_first for error in refused(store, 2, now=NOW + FULL, **greedy)] == [True, False]
    assert refused(store, 1, now=NOW + HOUR, expires_at=NOW + 2 * HOUR, **greedy) == []


def test_its_own_tokens_are_on_behalf_of_nobody(opened: Callable[[], Store]) -> None:
    store = opened()
    assert refused(store, LIMIT) == []
    assert "10 of planner that have" in str(refused(store, 1)[0])


def test_revoked_ones_count_and_a_batch_is_counted_once(opened: Callable[[], Store], counts: list[str]) -> None:
    store = opened()
    batch = [(replace(ROOT, token_id=f"b{n}", root_id=f"b{n}"), NOW) for n in range(STEP)]
    assert store.tokens.add_all(batch) == [None] * STEP
    assert len(counts) == 1
    store.tokens.revoke_all(now=NOW, client_id="planner")
    assert len(refused(store, LIMIT)) == STEP


def test_every_process_counts_what_the_others_have_issued(opened: Callable[[], Store]) -> None:
    one, two = opened(), opened()
    assert refused(one, LIMIT) == []
    assert len(refused(two, 1)) == 1
    assert len(refused(one, 1)) == 1


def test_a_clock_that_was_ahead_locks_nobody_out(opened: Callable[[], Store]) -> None:
    store = opened()
    far = NOW + 1000 * HOUR
    assert refused(store, LIMIT, now=far, expires_at=far + HOUR) == []
    assert len(refused(store, 1, now=far)) == 1
    store.tokens.revoke_all(now=NOW, client_id="planner")
    assert [error.is_first for error in refused(store, 1)] == [True]  # it was counted, now


def test_a_client_that_was_forgotten_is_counted_again(
    opened: Callable[[], Store], counts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowances, "KNOWN_CLIENTS", 2)
    store = opened()
    for client in ("a", "b", "c", "c", "b", "a"):
        assert refused(store, 1, client_id=client) == []
    assert len(counts) == 4


def test_the_token_endpoint_says_when_to_come_again_and_records_it_once(tmp_path: Path) -> None:
    server = Authority(tmp_path)

    async def work() -> None:
        for _ in range(LIMIT):
            await server.token(PLANNER, ask())
        issued = len(server.trail.records)
        for _ in range(3):
            answer = await server.post(PLANNER, ask())
            assert (answer.status_code, answer.json()) == (429, {"error": "temporarily_unavailable"})
            assert answer.headers["retry-after"] == str(FULL_SECONDS)
        (record,) = server.trail.records[issued:]
        assert (record["decision"], record["check"]) == ("deny", TooManyTokensHeld.check)
        await server.token(BILLING, ask(client_id=BILLING, resource=LEDGER, scope="read:rates"))
        server.clock.advance(minutes=40)
        await server.token(PLANNER, ask())

    asyncio.run(work())
