"""Denylists: what they were told, for how long, and that they say so where they cannot know."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.authority import BILLING, ISSUER, PLANNER, Authority, ask
from tests.forge import HOUR, NOW
from tests.redis_server import RedisServer
from trust.errors import ConfigurationError, DenylistOutdated, DenylistTooLarge, DenylistUnavailable, TokenRevoked
from trust.oauth.denylist import copies
from trust.oauth.denylist.copies import FAILURE_REST, MemoryDenylist, RedisDenylist, RemoteDenylist, SignedDenylist
from trust.oauth.denylist.document import LIST_SECONDS, RevokedTokens, verified_list
from trust.oauth.denylist.redis_list import SharedList
from trust.oauth.keys import StaticKeys, public_jwks
from trust.oauth.server.revoked_list import RevokedList
from trust.oauth.server.signing_keys import KeyRing
from trust.oauth.tokens import TokenValidator

REFRESH = RemoteDenylist.REFRESH_SECONDS


def test_memory_has_what_it_was_told_until_that_has_expired() -> None:
    denied = MemoryDenylist()
    denied.deny(ISSUER, "a", expires_at=NOW + HOUR, now=NOW)
    denied.deny(ISSUER, "a", expires_at=NOW + HOUR, now=NOW)
    denied.deny(ISSUER, "gone", expires_at=NOW, now=NOW)
    assert denied.contains(ISSUER, "a")
    assert not denied.contains("https://other.example", "a")
    assert not denied.contains(ISSUER, "gone")
    denied.deny(ISSUER, "b", expires_at=NOW + 3 * HOUR, now=NOW + HOUR)
    assert (denied.contains(ISSUER, "a"), denied.contains(ISSUER, "b")) == (False, True)


def test_memory_keeps_the_later_of_two_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "MAX_ENTRIES", 3)
    denied = MemoryDenylist()
    for hours in (1, 3, 2):
        denied.deny(ISSUER, "a", expires_at=NOW + hours * HOUR, now=NOW)
    denied.deny(ISSUER, "b", expires_at=NOW + 2 * HOUR, now=NOW + HOUR)
    assert denied.contains(ISSUER, "a")
    denied.deny(ISSUER, "c", expires_at=NOW + 5 * HOUR, now=NOW + 3 * HOUR)
    assert not denied.contains(ISSUER, "a")
    for hours in (6, 7):
        denied.deny(ISSUER, "c", expires_at=NOW + hours * HOUR, now=NOW + 3 * HOUR)
    with pytest.raises(DenylistTooLarge):  # what is said of one token again and again takes room, too
        denied.deny(ISSUER, "c", expires_at=NOW + 8 * HOUR, now=NOW + 3 * HOUR)


def test_memory_is_bounded_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "MAX_ENTRIES", 2)
    denied = MemoryDenylist()
    for jti in ("a", "b"):
        denied.deny(ISSUER, jti, expires_at=NOW + HOUR, now=NOW)
    with pytest.raises(DenylistTooLarge):
        denied.deny(ISSUER, "c", expires_at=NOW + HOUR, now=NOW)
    denied.deny(ISSUER, "c", expires_at=NOW + 2 * HOUR, now=NOW + HOUR)
    assert denied.contains(ISSUER, "c")


class Followed:
    """A denylist that follows a real server over `httpx`, which can be away or slow, and counts what it is asked."""

    def __init__(self, folder: Path) -> None:
        self.server = Authority(folder)
        self.asked = 0
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.keys = StaticKeys(public_jwks([self.server.key]))
        self.http = httpx.AsyncClient(transport=self)  # type: ignore[arg-type]  # has what is used of a transport
        self.denied = RemoteDenylist(ISSUER, self.http, keys=self.keys, clock=self.server.clock)
        self.transport = httpx.ASGITransport(self.server.app)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        await self.gate.wait()
        if self.away:
            raise httpx.ConnectError("away")
        return await self.transport.handle_async_request(request)

    async def __aenter__(self) -> Followed:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def aclose(self) -> None:
        pass

    async def revoked_token(self) -> str:
        """The `jti` of a new token that is revoked at the server."""
        token = await self.server.token(PLANNER, ask())
        jti: str = self.server.validate(token, audience=BILLING, holder=PLANNER).token_id
        assert self.server.store.tokens.revoke(jti) == 1
        return jti


def run(folder: Path, work: Callable[[Followed], object]) -> None:
    async def inside() -> None:
        async with Followed(folder) as here:
            await work(here)  # type: ignore[misc]

    asyncio.run(inside())


async def flight(denied: SignedDenylist) -> None:
    """The fetch that is under way, if any, has ended."""
    if (task := denied._flight.under_way) is not None:
        await asyncio.wait([task], timeout=20)


def test_the_first_use_waits_and_the_next_ones_do_not(tmp_path: Path) -> None:
    async def work(here: Followed) -> None:
        jti = await here.revoked_token()
        with pytest.raises(DenylistUnavailable, match="not fetched yet"):
            here.denied.contains(ISSUER, jti)
        await asyncio.gather(*(here.denied.prepare() for _ in range(50)))
        assert here.denied.contains(ISSUER, jti)
        assert not here.denied.contains(ISSUER, "another")
        await here.denied.prepare()
        assert here.asked == 1

    run(tmp_path, work)


def test_a_copy_is_renewed_beside_the_requests_and_awaited_where_it_is_old(tmp_path: Path) -> None:
    async def work(here: Followed) -> None:
        await here.denied.prepare()
        jti = await here.revoked_token()
        here.server.clock.advance(seconds=REFRESH / 2)
        here.gate.clear()
        await here.denied.prepare()  # does not wait
        assert not here.denied.contains(ISSUER, jti)
        here.gate.set()
        await flight(here.denied)
        assert here.denied.contains(ISSUER, jti)
        assert here.asked == 2
        later = await here.revoked_token()
        here.server.clock.advance(seconds=REFRESH)
        await here.denied.prepare()  # waits: nobody may use a copy that is older than this
        assert here.denied.contains(ISSUER, later)
        assert here.asked == 3

    run(tmp_path, work)


def test_one_who_gives_up_takes_the_list_from_nobody(tmp_path: Path) -> None:
    async def work(here: Followed) -> None:
        here.gate.clear()
        first, second = asyncio.create_task(here.denied.prepare()), asyncio.create_task(here.denied.prepare())
        while not here.asked:
            await asyncio.sleep(0)
        first.cancel()
        here.gate.set()
        await second
        assert not here.denied.contains(ISSUER, "x")
        assert here.asked == 1

    run(tmp_path, work)


def test_while_the_server_is_away_the_copy_serves_until_it_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(here: Followed) -> None:
        jti = await here.revoked_token()
        await here.denied.prepare()
        here.away = True
        here.server.clock.advance(seconds=REFRESH)
        await here.denied.prepare()
        asked = here.asked
        await here.denied.prepare()  # left in peace for a moment
        await flight(here.denied)
        assert here.asked == asked
        here.server.clock.advance(seconds=FAILURE_REST)
        here.gate.clear()
        await here.denied.prepare()  # nobody waits for a server that is away
        here.gate.set()
        await flight(here.denied)
        assert here.asked == asked + 1
        assert here.denied.contains(ISSUER, jti)
        here.server.clock.advance(seconds=LIST_SECONDS)
        await here.denied.prepare()
        with pytest.raises(DenylistUnavailable, match="ConnectError") as caught:
            here.denied.contains(ISSUER, jti)
        assert (caught.value.status, caught.value.code) == (503, "temporarily_unavailable")
        here.away = False
        here.server.clock.advance(seconds=FAILURE_REST)
        await here.denied.prepare()
        assert here.denied.contains(ISSUER, jti)
        # One line for each way in which it failed, however often it did.
        said = [record.getMessage() for record in caplog.records]
        assert sum("list of revoked tokens" in line for line in said) == 1

    run(tmp_path, work)


def test_a_server_that_hangs_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "FETCH_SECONDS", 0.01)

    async def work(here: Followed) -> None:
        here.gate.clear()
        await here.denied.prepare()
        with pytest.raises(DenylistUnavailable, match="TimeoutError"):
            here.denied.contains(ISSUER, "x")

    run(tmp_path, work)


@pytest.mark.parametrize("seconds", [-11, LIST_SECONDS], ids=["set back", "set forward"])
def test_a_clock_that_jumps_makes_no_copy_last_longer(tmp_path: Path, seconds: int) -> None:
    async def work(here: Followed) -> None:
        await here.denied.prepare()
        assert not here.denied.contains(ISSUER, "x")
        here.away = True
        here.server.clock.advance(seconds=seconds)
        await here.denied.prepare()
        with pytest.raises(DenylistUnavailable):
            here.denied.contains(ISSUER, "x")

    run(tmp_path, work)


def test_a_large_list_is_read_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reading(text: str, **options: Any) -> RevokedTokens:
        threads.append(threading.current_thread())
        return verified_list(text, **options)

    threads: list[threading.Thread] = []
    monkeypatch.setattr(copies, "verified_list", reading)

    async def work(here: Followed) -> None:
        jti = await here.revoked_token()
        await here.denied.prepare()
        monkeypatch.setattr(copies, "LARGE_LIST", 0)
        here.server.clock.advance(seconds=REFRESH)
        await here.denied.prepare()
        assert here.denied.contains(ISSUER, jti)
        assert [thread is threading.main_thread() for thread in threads] == [True, False]

    run(tmp_path, work)


def test_a_denylist_of_one_issuer_says_nothing_of_another(tmp_path: Path) -> None:
    async def work(here: Followed) -> None:
        await here.denied.prepare()
        with pytest.raises(DenylistUnavailable, match="another issuer"):
            here.denied.contains("https://other.example", "x")
        with pytest.raises(ConfigurationError):
            RemoteDenylist("http://auth.fleet.example", here.http, keys=here.keys)

    run(tmp_path, work)


def test_a_validator_prepares_and_asks_it(tmp_path: Path) -> None:
    async def work(here: Followed) -> None:
        token = await here.server.token(PLANNER, ask())
        validator = TokenValidator(issuer=ISSUER, audience=BILLING, keys=here.keys, denylist=here.denied)
        peer, clock = here.server.peer(PLANNER), here.server.clock

        async def use() -> str:
            await validator.prepare(token, now=clock.now)
            return validator.validate(token, peer=peer, now=clock.now).token_id

        here.server.store.tokens.revoke(await use())
        await use()  # within the bound
        clock.advance(seconds=REFRESH)
        with pytest.raises(TokenRevoked):
            await use()
        here.away = True
        clock.advance(seconds=LIST_SECONDS)
        with pytest.raises(DenylistUnavailable):
            await use()

    run(tmp_path, work)


def test_redis_has_the_list_for_those_who_cannot_reach_the_server(tmp_path: Path) -> None:
    server = Authority(tmp_path)
    published = RevokedList(issuer=ISSUER, store=server.store, keys=KeyRing.of([server.key]), clock=server.clock)
    keys = StaticKeys(public_jwks([server.key]))

    def write() -> None:
        revoked, text = published.current()
        shared.write(text, sequence=revoked.sequence)

    async def work() -> None:
        token = await server.token(PLANNER, ask())
        jti = server.validate(token, audience=BILLING, holder=PLANNER).token_id
        denied = RedisDenylist(redis.url, issuer=ISSUER, keys=keys, clock=server.clock)
        await denied.prepare()
        with pytest.raises(DenylistUnavailable, match="no list of this issuer"):
            denied.contains(ISSUER, jti)
        write()
        server.clock.advance(seconds=FAILURE_REST)
        await denied.prepare()
        assert not denied.contains(ISSUER, jti)
        server.store.tokens.revoke(jti)
        write()
        server.clock.advance(seconds=RedisDenylist.REFRESH_SECONDS)
        await denied.prepare()
        assert denied.contains(ISSUER, jti)
        redis.stop()
        server.clock.advance(seconds=LIST_SECONDS - 5)
        await denied.prepare()
        assert denied.contains(ISSUER, jti)
        server.clock.advance(seconds=5)
        await denied.prepare()
        with pytest.raises(DenylistUnavailable, match="denylist store redis://127"):
            denied.contains(ISSUER, jti)
        denied.close()

    with RedisServer(tmp_path) as redis:
        shared = SharedList(redis.url, ISSUER)
        asyncio.run(work())
        shared.close()


@pytest.mark.parametrize("seconds_later", [0, 601], ids=["while it counts", "when all that was revoked has expired"])
def test_a_list_that_has_seen_less_is_taken_only_where_that_makes_no_difference(seconds_later: int) -> None:
    """As after the server's database was restored from a backup."""
    now = NOW.timestamp() + seconds_later
    times = {"issued_at": int(now), "expires_at": int(now) + LIST_SECONDS}
    last = RevokedTokens(issuer=ISSUER, sequence=7, **times, tokens={"a": int(NOW.timestamp()) + 600})
    found = RevokedTokens(issuer=ISSUER, sequence=3, **times, tokens={})
    when = NOW + timedelta(seconds=seconds_later)
    if seconds_later:
        assert copies._newer(last, found, when) is found
    else:
        with pytest.raises(DenylistOutdated):
            copies._newer(last, found, when)
