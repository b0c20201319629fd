"""The server's list of revoked tokens: what is in it, when it is signed anew, and how it comes into Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from tests.authority import BILLING, ISSUER, PLANNER, Authority, Trail, ask, exchange
from tests.forge import NOW
from tests.redis_server import RedisServer
from trust.clock import wall_clock
from trust.errors import ConfigurationError, DenylistTooLarge, DenylistUnavailable
from trust.oauth.denylist import document as revoked
from trust.oauth.denylist.document import (
    LIST_SECONDS,
    MAX_SKEW_SECONDS,
    MEDIA_TYPE,
    RevokedTokens,
    key_id,
    verified_list,
)
from trust.oauth.denylist.redis_list import SharedList
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks
from trust.oauth.server import revoked_list
from trust.oauth.server.revoked_list import REUSE_SECONDS, RevokedList, RevokedPublisher
from trust.oauth.server.signing_keys import KeyRing
from trust.oauth.server.state import authorization_server
from trust.oauth.server.store import Issued
from trust.seldom import LINES
from trust.sources import Live


def read(authority: Authority, text: str) -> RevokedTokens:
    keys = StaticKeys(public_jwks([authority.key]))
    return verified_list(text, issuer=ISSUER, keys=keys, now=authority.clock.now)


async def fetched(authority: Authority, agent: str | None = BILLING, **headers: str) -> httpx.Response:
    async with authority.http(agent) as http:
        return await http.get("/revoked", headers={name.replace("_", "-"): value for name, value in headers.items()})


def issued(token_id: str, **changes: object) -> Issued:
    token = Issued(
        token_id=token_id,
        parent_id=None,
        root_id=token_id,
        root_issued_at=NOW,
        client_id=PLANNER,
        subject=PLANNER,
        issued_at=NOW,
        expires_at=NOW + timedelta(minutes=10),
    )
    return replace(token, **changes)  # type: ignore[arg-type]


def test_the_list_has_what_is_revoked_and_would_be_valid(authority: Authority) -> None:
    async def work() -> None:
        first = await authority.token(PLANNER, ask())
        await authority.token(BILLING, exchange(first))
        jti = authority.validate(first, audience=BILLING, holder=PLANNER).token_id
        answer = await fetched(authority)
        assert (answer.status_code, answer.headers["content-type"]) == (200, MEDIA_TYPE)
        empty = read(authority, answer.text)
        assert (empty.tokens, empty.sequence) == ({}, 0)
        assert empty.expires_at - empty.issued_at == LIST_SECONDS
        authority.store.tokens.revoke(jti)
        found = read(authority, (await fetched(authority)).text)
        assert (len(found.tokens), found.sequence) == (2, 1)
        assert found.tokens[jti] == int((NOW + timedelta(minutes=10)).timestamp())
        authority.clock.advance(minutes=10, seconds=MAX_SKEW_SECONDS - 1)
        found = read(authority, (await fetched(authority)).text)
        assert jti in found.tokens  # for an agent whose clock is behind the token is still valid
        authority.clock.advance(seconds=REUSE_SECONDS)
        found = read(authority, (await fetched(authority)).text)
        assert (found.tokens, found.sequence) == ({}, 1)

    asyncio.run(work())


def test_it_is_signed_anew_when_something_was_revoked_or_it_is_old_or_the_key_is_another(authority: Authority) -> None:
    ring = Live(KeyRing.of([authority.key]))
    published = RevokedList(issuer=ISSUER, store=authority.store, keys=ring, clock=authority.clock)
    authority.store.tokens.add(issued("a"), now=NOW)
    _, first = published.current()
    authority.clock.advance(seconds=REUSE_SECONDS - 1)
    assert published.current()[1] is first
    authority.store.tokens.revoke("a")
    found, second = published.current()
    assert (second != first, list(found.tokens)) == (True, ["a"])
    assert published.current()[1] is second
    authority.clock.advance(seconds=REUSE_SECONDS)
    _, third = published.current()
    assert third != second
    authority.clock.advance(seconds=-1)  # set back: what is of the future is not sent out
    assert published.current()[0].issued_at < read(authority, third).issued_at
    ring.replace(KeyRing.of([SigningKey.generate()]))
    _, fourth = published.current()
    assert fourth.split(".")[0] != third.split(".")[0]


def test_who_has_it_is_told_so(authority: Authority) -> None:
    async def work() -> None:
        answer = await fetched(authority)
        assert answer.headers["cache-control"] == "no-cache"
        again = await fetched(authority, if_none_match=f'"x", {answer.headers["etag"]}')
        assert (again.status_code, again.content) == (304, b"")
        authority.store.tokens.add(issued("a"), now=NOW)
        authority.store.tokens.revoke("a")
        changed = await fetched(authority, if_none_match=answer.headers["etag"])
        assert changed.status_code == 200

    asyncio.run(work())


def test_more_than_agents_take_is_an_error_and_no_shorter_list(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revoked, "MAX_ENTRIES", 1)
    monkeypatch.setattr(revoked_list, "MAX_ENTRIES", 1)
    for jti in ("a", "b"):
        authority.store.tokens.add(issued(jti), now=NOW)
        authority.store.tokens.revoke(jti)
    answer = asyncio.run(fetched(authority))
    assert (answer.status_code, answer.json()) == (DenylistTooLarge.status, {"error": DenylistTooLarge.code})


def test_what_is_wrong_with_the_store_is_told_to_nobody(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away() -> int:
        raise OSError("of the database")

    monkeypatch.setattr(authority.store.tokens, "revocations", away)
    answer = asyncio.run(fetched(authority))
    assert (answer.status_code, answer.json()) == (500, {"error": "server_error"})
    assert "of the database" in caplog.text


def test_a_crowd_that_asks_costs_little_and_writes_no_log_full(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = 0
    count = authority.store.tokens.revocations

    def slowly() -> int:
        nonlocal looks
        looks += 1
        time.sleep(0.01)
        return count()

    async def crowd() -> set[int]:
        async with authority.http(BILLING) as http:
            answers = await asyncio.gather(*(http.get("/revoked") for _ in range(100)))
        return {answer.status_code for answer in answers}

    def away() -> int:
        raise OSError("of the database")

    monkeypatch.setattr(authority.store.tokens, "revocations", slowly)
    assert (asyncio.run(crowd()), looks < 50) == ({200}, True)
    monkeypatch.setattr(authority.store.tokens, "revocations", away)
    assert asyncio.run(crowd()) == {500}
    assert sum("cannot be made" in record.message for record in caplog.records) == LINES


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


def test_redis_gets_what_any_process_revoked_and_again_when_it_was_away(
    authority: Authority, redis: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(revoked_list, "ROUND_SECONDS", 0.01)
    published = RevokedList(issuer=ISSUER, store=authority.store, keys=KeyRing.of([authority.key]), clock=wall_clock)
    shared = SharedList(redis.url, ISSUER)

    def until_it_has(*jtis: str) -> None:
        limit = time.monotonic() + 20
        while True:
            try:
                keys = StaticKeys(public_jwks([authority.key]))
                found = verified_list(shared.read(), issuer=ISSUER, keys=keys, now=wall_clock())
                if found.tokens.keys() == set(jtis):
                    return
            except DenylistUnavailable:
                pass
            assert time.monotonic() < limit
            time.sleep(0.01)

    now = wall_clock()
    for jti in ("a", "b"):
        authority.store.tokens.add(issued(jti, expires_at=now + timedelta(minutes=10)), now=now)
    with RevokedPublisher(published, redis.url) as publisher:
        until_it_has()
        authority.store.tokens.revoke("a")
        until_it_has("a")
        redis.stop()
        authority.store.tokens.revoke("b")
        limit = time.monotonic() + 20
        while publisher.problem is None and time.monotonic() < limit:
            time.sleep(0.01)
        assert "denylist store" in str(publisher.problem)
        redis.start()
        until_it_has("a", "b")
    shared.close()
    said = [record.getMessage() for record in caplog.records if "list of revoked tokens is" in record.getMessage()]
    assert said[0].startswith("list of revoked tokens is not written: denylist store")
    assert said[-1] == "list of revoked tokens is written again"


def test_a_publisher_ends_when_its_block_ends(authority: Authority, redis: RedisServer) -> None:
    published = RevokedList(issuer=ISSUER, store=authority.store, keys=KeyRing.of([authority.key]))
    with RevokedPublisher(published, redis.url) as publisher:
        assert publisher._rounds._thread.is_alive()
    assert not publisher._rounds._thread.is_alive()


def test_the_server_of_a_folder_writes_to_the_redis_that_is_named(redis: RedisServer, tmp_path: Path) -> None:
    clients, folder = tmp_path / "clients.toml", tmp_path / "state"
    clients.write_text(f'[[client]]\nagent_id = "{PLANNER}"\nscopes = ["agent:execute"]\nresources = ["{BILLING}"]\n')
    arguments = {"clients": clients, "issuer": ISSUER, "folder": folder, "url": None, "password": "long enough"}

    def started(url: str) -> AbstractContextManager[object]:
        return authorization_server(**arguments, audit=Trail(), redis_url=url)  # type: ignore[arg-type]

    with pytest.raises(ConfigurationError), started("redis://10.0.0.1"):
        pass
    assert not folder.exists()
    shared = SharedList(redis.url, ISSUER)
    with started(redis.url):
        limit = time.monotonic() + 20
        while True:
            try:
                assert key_id(shared.read())
                break
            except DenylistUnavailable:
                assert time.monotonic() < limit
                time.sleep(0.01)
    shared.close()
