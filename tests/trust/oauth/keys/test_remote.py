"""When the keys at a URL are fetched, by whom, and who waits."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest

from tests.trust.oauth.keys.issuer import NEVER, NEW, NOW, OLD, SECOND, URL, Issuer, beside, finds
from trust.errors import KeysUnavailable, TokenKeyUnknown
from trust.oauth.keys import RemoteKeys, public_jwks
from trust.oauth.keys.remote import FAILURE_REST, FRESH, UNKNOWN_KID_REST, USABLE


def test_a_fresh_set_is_not_fetched_again() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        keys = RemoteKeys(URL, issuer.client())
        await keys.prepare(OLD.kid, now=NOW)
        key = keys.find(OLD.kid, "ES256", now=NOW)
        assert key == OLD.private_key.public_key()
        await keys.prepare(OLD.kid, now=NOW + FRESH - SECOND)
        await keys.prepare(None, now=NOW + FRESH - SECOND)
        await beside()
        assert keys.find(OLD.kid, "ES256", now=NOW + FRESH) is key
        assert issuer.fetches == 1
        await keys.prepare(OLD.kid, now=NOW + FRESH)
        await beside()
        assert issuer.fetches == 2
        assert keys.find(OLD.kid, "ES256", now=NOW + FRESH) is key
        issuer.keys = (OLD, NEW)
        await keys.prepare(OLD.kid, now=NOW + FRESH * 2)
        await beside()
        assert keys.find(OLD.kid, "ES256", now=NOW + FRESH * 2) == key

    asyncio.run(run())


@pytest.mark.parametrize("kid", [OLD.kid, None], ids=["a key of the set", "any key"])
def test_nobody_waits_for_a_refresh_while_there_are_keys(kid: str | None) -> None:
    """The issuer does not answer until everybody has been served; what it then says is used."""

    async def run() -> None:
        issuer = Issuer(OLD)
        keys = RemoteKeys(URL, issuer.client())
        await keys.prepare(OLD.kid, now=NOW)
        issuer.gate, issuer.keys = asyncio.Event(), (NEW,)
        async with asyncio.timeout(20):
            for late in (FRESH, USABLE - SECOND):
                await asyncio.gather(*(keys.prepare(kid, now=NOW + late) for _ in range(200)))
                assert finds(keys, OLD, NOW + late)
        issuer.gate.set()
        await beside()
        assert issuer.fetches == 2
        assert finds(keys, NEW, NOW + FRESH)
        assert not finds(keys, OLD, NOW + FRESH)

    asyncio.run(run())


def test_a_key_that_is_not_in_an_old_set_is_waited_for() -> None:
    """Together with the refresh that is under way for others."""

    async def run() -> None:
        issuer = Issuer(OLD)
        keys = RemoteKeys(URL, issuer.client())
        await keys.prepare(OLD.kid, now=NOW)
        issuer.gate, issuer.keys = asyncio.Event(), (OLD, NEW)
        await keys.prepare(OLD.kid, now=NOW + FRESH)
        waiting = [asyncio.create_task(keys.prepare(NEW.kid, now=NOW + FRESH)) for _ in range(3)]
        for _ in range(10):
            await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        issuer.gate.set()
        await asyncio.gather(*waiting)
        assert finds(keys, NEW, NOW + FRESH)
        assert issuer.fetches == 2

    asyncio.run(run())


def test_unknown_key_ids_cause_one_fetch_in_thirty_seconds() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        keys = RemoteKeys(URL, issuer.client())
        await keys.prepare(OLD.kid, now=NOW)
        issuer.keys = (OLD, NEW)
        await keys.prepare(NEW.kid, now=NOW + SECOND)
        assert finds(keys, NEW, NOW + SECOND)
        assert issuer.fetches == 2
        for n in range(10_000):
            await keys.prepare(f"made up {n}", now=NOW + SECOND * 2)
        await keys.prepare(NEVER.kid, now=NOW + UNKNOWN_KID_REST)
        assert issuer.fetches == 2
        assert not finds(keys, NEVER, NOW)
        await keys.prepare(NEVER.kid, now=NOW + SECOND + UNKNOWN_KID_REST)
        assert issuer.fetches == 3

    asyncio.run(run())


def test_while_the_issuer_is_away_a_key_is_not_unknown() -> None:
    """It may be new: the token is not refused, and the key is there as soon as the issuer is back."""

    async def run() -> None:
        issuer = Issuer(OLD)
        keys = RemoteKeys(URL, issuer.client())
        await keys.prepare(None, now=NOW)
        issuer.answer, good = lambda _: httpx.ConnectError("refused"), issuer.answer
        await keys.prepare(NEW.kid, now=NOW + SECOND)
        with pytest.raises(KeysUnavailable):
            finds(keys, NEW, NOW + SECOND)
        assert finds(keys, OLD, NOW + SECOND)
        await keys.prepare(NEVER.kid, now=NOW + FAILURE_REST)
        assert issuer.fetches == 2
        issuer.answer, issuer.keys = good, (OLD, NEW)
        await keys.prepare(NEW.kid, now=NOW + SECOND + FAILURE_REST)
        assert finds(keys, NEW, NOW + SECOND + FAILURE_REST)
        assert not finds(keys, NEVER, NOW + SECOND + FAILURE_REST)
        with pytest.raises(TokenKeyUnknown):  # for another algorithm than its own
            keys.find(NEW.kid, "ES384", now=NOW)

    asyncio.run(run())


def test_all_that_wait_for_a_new_key_get_it() -> None:
    """Not only the first, for whom it is fetched."""

    async def run() -> None:
        issuer = Issuer(OLD)
        keys = RemoteKeys(URL, issuer.client())
        await keys.prepare(OLD.kid, now=NOW)
        issuer.gate, issuer.keys = asyncio.Event(), (OLD, NEW)

        async def one() -> bool:
            await keys.prepare(NEW.kid, now=NOW + SECOND)
            return finds(keys, NEW, NOW + SECOND)

        waiting = [asyncio.create_task(one()) for _ in range(200)]
        while issuer.fetches < 2:
            await asyncio.sleep(0)
        issuer.gate.set()
        assert all(await asyncio.gather(*waiting))
        assert issuer.fetches == 2

    asyncio.run(run())


def test_a_known_set_outlives_the_issuer_for_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        keys = RemoteKeys(URL, issuer.client())
        await keys.prepare(OLD.kid, now=NOW)
        issuer.answer = lambda _: httpx.ConnectError("refused")
        late = NOW + USABLE - SECOND
        await keys.prepare(OLD.kid, now=late)
        await beside()
        assert finds(keys, OLD, late)
        assert issuer.fetches == 2
        assert [(r.levelno, "ConnectError" in r.message) for r in caplog.records] == [(logging.WARNING, True)]
        await keys.prepare(OLD.kid, now=late)  # it failed just now
        await beside()
        assert issuer.fetches == 2
        with pytest.raises(KeysUnavailable):
            await keys.prepare(OLD.kid, now=NOW + USABLE)
        with pytest.raises(KeysUnavailable):
            finds(keys, OLD, NOW + USABLE)
        with pytest.raises(KeysUnavailable):
            await keys.prepare(OLD.kid, now=late + FAILURE_REST)
        assert issuer.fetches == 3
        issuer.answer = lambda _: httpx.Response(200, json=public_jwks([NEW]))
        back = late + FAILURE_REST * 2
        await keys.prepare(NEW.kid, now=back)
        assert finds(keys, NEW, back)

    asyncio.run(run())


def test_a_clock_set_back_makes_the_set_unknown_not_fresh() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        keys = RemoteKeys(URL, issuer.client())
        await keys.prepare(OLD.kid, now=NOW)
        with pytest.raises(KeysUnavailable):
            finds(keys, OLD, NOW - USABLE)
        await keys.prepare(OLD.kid, now=NOW - USABLE)
        assert issuer.fetches == 2
        assert finds(keys, OLD, NOW - USABLE)

    asyncio.run(run())


def test_a_request_that_came_before_the_fetch_can_use_it() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        keys = RemoteKeys(URL, issuer.client())
        await keys.prepare(OLD.kid, now=NOW)
        await keys.prepare(OLD.kid, now=NOW - SECOND)
        await beside()
        assert finds(keys, OLD, NOW - SECOND)
        assert issuer.fetches == 1

    asyncio.run(run())


def test_cold_without_an_issuer_is_unavailable_not_unknown() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        issuer.answer = lambda _: httpx.ConnectError("refused")
        keys = RemoteKeys(URL, issuer.client())
        with pytest.raises(KeysUnavailable):
            finds(keys, OLD, NOW)
        with pytest.raises(KeysUnavailable) as caught:
            await keys.prepare(OLD.kid, now=NOW)
        assert caught.value.status == 503
        assert "ConnectError" in str(caught.value)

    asyncio.run(run())


def test_a_silent_issuer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trust.oauth.keys.remote.FETCH_SECONDS", 0.05)

    async def run() -> None:
        issuer = Issuer(OLD)
        issuer.gate = asyncio.Event()
        keys = RemoteKeys(URL, issuer.client(timeout=None))
        with pytest.raises(KeysUnavailable, match="TimeoutError"):
            await keys.prepare(OLD.kid, now=NOW)

    asyncio.run(run())


def test_an_empty_set_withdraws_every_key() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        keys = RemoteKeys(URL, issuer.client())
        await keys.prepare(OLD.kid, now=NOW)
        issuer.keys = ()
        await keys.prepare(OLD.kid, now=NOW + FRESH)
        await beside()
        assert not finds(keys, OLD, NOW + FRESH)

    asyncio.run(run())


def test_many_wait_for_one_fetch() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        issuer.gate = asyncio.Event()
        keys = RemoteKeys(URL, issuer.client())
        waiting = [asyncio.create_task(keys.prepare(OLD.kid, now=NOW)) for _ in range(200)]
        await asyncio.sleep(0)
        issuer.gate.set()
        await asyncio.gather(*waiting)
        assert issuer.fetches == 1

    asyncio.run(run())


def test_a_caller_that_gives_up_does_not_stop_the_others() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        issuer.gate = asyncio.Event()
        keys = RemoteKeys(URL, issuer.client())
        first, second = (asyncio.create_task(keys.prepare(OLD.kid, now=NOW)) for _ in range(2))
        while not issuer.fetches:
            await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        issuer.gate.set()
        await second
        assert issuer.fetches == 1
        assert finds(keys, OLD, NOW)

    asyncio.run(run())


def test_a_loop_that_ends_takes_the_fetch_with_it() -> None:
    """And the set is as good as before in the next one."""
    issuer = Issuer(OLD)
    keys = RemoteKeys(URL, issuer.client())

    async def first() -> asyncio.Task[Any]:
        await keys.prepare(OLD.kid, now=NOW)
        issuer.gate = asyncio.Event()
        before = asyncio.all_tasks()
        await keys.prepare(OLD.kid, now=NOW + FRESH)
        while issuer.fetches < 2:
            await asyncio.sleep(0)
        (fetch,) = asyncio.all_tasks() - before
        return fetch

    fetch = asyncio.run(first())
    assert fetch.cancelled()

    async def second() -> None:
        issuer.gate = None
        await keys.prepare(OLD.kid, now=NOW + FRESH)
        await beside()
        assert finds(keys, OLD, NOW + FRESH)
        await keys.prepare("made up", now=NOW + FRESH)

    asyncio.run(second())
    assert issuer.fetches == 4
