"""Used assertions, in SQLite and in PostgreSQL: whoever comes first, and nobody after."""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from tests.forge import NOW
from trust.errors import AssertionUsed
from trust.oauth.server.store import Issued, Store, UsedAssertion, use_assertion
from trust.oauth.server.store.assertions import KEPT_SECONDS, PURGE_BATCH
from trust.oauth.server.store.schema import ASSERTIONS

ONE = UsedAssertion(issuer="https://auth.fleet.example", token_id="one", expires_at=NOW + timedelta(seconds=60))
TOKEN = Issued(
    token_id="",
    parent_id=None,
    root_id="",
    root_issued_at=NOW,
    client_id="billing",
    subject="spiffe://fleet.example/planner",
    issued_at=NOW,
    expires_at=NOW,
)


def use(store: Store, assertion: UsedAssertion, *, now: datetime) -> None:
    """For a token, which is recorded where the assertion is new, and only there."""
    name = secrets.token_hex(8)
    token = replace(TOKEN, token_id=name, root_id=name, expires_at=now + timedelta(seconds=60))
    try:
        store.tokens.add(token, now=now, using=lambda connection: use_assertion(connection, assertion, now=now))
    except AssertionUsed:
        assert store.tokens.find(name) is None
        raise
    assert store.tokens.find(name) is not None


def rows(store: Store) -> int:
    with store._engine.connect() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(ASSERTIONS)).scalar_one()


def test_each_is_used_once_and_its_name_is_issuer_and_jti(url: str) -> None:
    with closing(Store(url)) as store, closing(Store(url)) as other:
        use(store, ONE, now=NOW)
        for again in (store, other):
            with pytest.raises(AssertionUsed):
                use(again, replace(ONE, expires_at=NOW + timedelta(seconds=90)), now=NOW)
        # Neither the same `jti` of another issuer nor another cut between the two is the same assertion.
        use(other, replace(ONE, issuer="https://auth.partner.example"), now=NOW)
        use(other, replace(ONE, issuer=ONE.issuer + "/one", token_id=""), now=NOW)
        use(other, replace(ONE, token_id="\u00fc" * 256), now=NOW)


def test_of_many_at_once_one_is_first(url: str) -> None:
    barrier = threading.Barrier(6)

    def first(store: Store) -> bool:
        barrier.wait(20)
        try:
            use(store, ONE, now=NOW)
        except AssertionUsed:
            return False
        return True

    with ExitStack() as stack, ThreadPoolExecutor(6) as pool:
        stores = [stack.enter_context(closing(Store(url))) for _ in range(6)]
        assert sum(pool.map(first, stores)) == 1


def test_none_is_forgotten_before_its_end_and_the_table_does_not_grow(url: str) -> None:
    with closing(Store(url)) as store:
        part = replace(ONE, expires_at=ONE.expires_at + timedelta(milliseconds=900))
        use(store, part, now=NOW)
        with pytest.raises(AssertionUsed):
            use(store, part, now=ONE.expires_at + timedelta(milliseconds=899))
        for number in range(PURGE_BATCH + 4):
            use(store, replace(ONE, token_id=str(number)), now=NOW)
        # By the clock of another server, which is behind this one's, it has not ended.
        with pytest.raises(AssertionUsed):
            use(store, part, now=ONE.expires_at + timedelta(seconds=30))
        late = ONE.expires_at + timedelta(seconds=KEPT_SECONDS + 3)
        for number in (1, 2):
            use(store, replace(ONE, token_id=f"late {number}", expires_at=late), now=late)
        assert rows(store) == 2
