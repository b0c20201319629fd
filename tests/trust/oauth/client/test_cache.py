"""Tokens are kept, shared, renewed and dropped; the server is the real one."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest

from tests.authority import BILLING, LEDGER, PLANNER, Authority, WithPeer
from tests.trust.oauth.client.servers import (
    AGENT,
    Counting,
    Fake,
    answers,
    counted,
    refused,
    run,
    settled,
    source_of,
)
from trust.errors import (
    AuthorizationServerUnavailable,
)
from trust.oauth.client import Token
from trust.oauth.client.cache import CACHE_SIZE
from trust.oauth.metadata import ACCESS_TOKEN_TYPE
from trust.sources import Live


@pytest.mark.parametrize("cancelled", [0, 1, 199])
def test_200_callers_cause_one_fetch_and_cancelling_some_hurts_none(authority: Authority, cancelled: int) -> None:
    async def work() -> None:
        http, seen = counted(authority)
        source = source_of(authority, http)
        callers = [asyncio.create_task(source.token()) for _ in range(200)]
        await asyncio.sleep(0)
        for caller in callers[:cancelled]:  # the one that started the fetch is among them
            caller.cancel()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results[:cancelled])
        served = {result.value for result in results[cancelled:] if isinstance(result, Token)}
        assert len(served) == 1 and seen.tokens == 1
        assert (await source.token()).value in served
        assert seen.tokens == 1

    run(work())


def test_renewed_before_it_expires_while_callers_go_on_with_the_old_one(authority: Authority) -> None:
    async def work() -> None:
        http, seen = counted(authority)
        source = source_of(authority, http)
        first = await source.token()
        authority.clock.advance(minutes=9, seconds=-1)
        assert await source.token() == first and seen.tokens == 1
        authority.clock.advance(seconds=1)
        assert (await source.token()).value == first.value  # nobody waits
        await settled(source)
        second = await source.token()
        assert second.value != first.value and seen.tokens == 2
        assert second.expires_at == authority.clock.now + timedelta(minutes=10)

    run(work())


def test_a_server_that_is_down_hurts_nobody_until_the_token_ends(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        http, seen = counted(authority)
        source = source_of(authority, http)
        first = await source.token()
        seen.down = True
        authority.clock.advance(minutes=9)
        for _ in range(10):
            assert (await source.token()).value == first.value
            await settled(source)
        assert seen.tokens == 2  # it rests between attempts
        authority.clock.advance(seconds=5)
        assert (await source.token()).value == first.value
        await settled(source)
        assert seen.tokens == 3
        assert "no new token" in caplog.text and first.value not in caplog.text
        authority.clock.now = first.expires_at - timedelta(milliseconds=1)
        assert (await source.token()).value == first.value
        authority.clock.now = first.expires_at
        with pytest.raises(AuthorizationServerUnavailable):
            await source.token()
        seen.down = False
        assert (await source.token()).expires_at > authority.clock.now

    run(work())


def test_a_renewed_certificate_gets_a_token_of_its_own(authority: Authority) -> None:
    async def work() -> None:
        live = Live(authority.credentials(PLANNER))
        transport = Counting(httpx.ASGITransport(WithPeer(authority.app, authority.peer(PLANNER))))
        source = source_of(authority, httpx.AsyncClient(transport=transport), source=live)
        first = await source.token()
        authority.validate(first.value, audience=BILLING, holder=PLANNER)
        live.replace(authority.forge.leaf(PLANNER))
        authority.certificates[PLANNER] = live.current()
        transport.inner = httpx.ASGITransport(WithPeer(authority.app, authority.peer(PLANNER)))
        second = await source.token()
        assert second.value != first.value
        access = authority.validate(second.value, audience=BILLING, holder=PLANNER)
        assert access.thumbprint == live.current().thumbprint

    run(work())


def test_the_cache_is_bounded_and_forgets_the_least_used(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Fake()

    async def work() -> None:
        source = server.source()
        first = await source.token()
        wanted: dict[str, Any] = {"resource": LEDGER, "scopes": ["read:x"]}
        server.token["issued_token_type"] = ACCESS_TOKEN_TYPE
        server.token["scope"] = "read:x"
        for n in range(CACHE_SIZE + 10):
            await source.exchange(f"token-{n}", **wanted)
            assert await source.token() == first  # used all the time, so kept
        assert len(source._cache._tokens) == CACHE_SIZE
        assert not source._cache._flights
        asked = len(server.requests)
        await source.exchange(f"token-{CACHE_SIZE + 9}", **wanted)
        assert len(server.requests) == asked
        await source.exchange("token-0", **wanted)
        assert len(server.requests) == asked + 1

    run(work())


def test_a_failed_fetch_is_not_remembered_and_a_cancelled_one_leaves_no_warning() -> None:
    server = Fake(token_answer=answers(503))

    async def work() -> None:
        source = server.source()
        await refused(source, AuthorizationServerUnavailable)
        server.token_answer = None
        assert (await source.token()).value == "abc.def"
        server.delay = 5
        other = source.on_behalf_of("subject", resource=LEDGER, scopes=["read:x"], origins=[AGENT])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(other.token(), 0.01)

    run(work())  # the loop closes while the fetch is under way
