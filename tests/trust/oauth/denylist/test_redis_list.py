"""The list in a real Redis server: written by one, read by others, bounded, and away where it is away."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.redis_server import RedisServer
from trust.errors import ConfigurationError, DenylistTooLarge, DenylistUnavailable
from trust.oauth.denylist import redis_list
from trust.oauth.denylist.redis_list import SharedList

ISSUER = "https://auth.fleet.example"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def shared(redis: RedisServer) -> Iterator[SharedList]:
    redis.command("FLUSHALL")
    shared = SharedList(redis.url, ISSUER)
    yield shared
    shared.close()


def test_what_is_written_is_read_until_it_has_expired(redis: RedisServer, shared: SharedList) -> None:
    with pytest.raises(DenylistUnavailable, match="no list of this issuer"):
        shared.read()
    shared.write("first", sequence=1)
    shared.write("second", sequence=1)
    assert shared.read() == "second"
    other = SharedList(redis.url, "https://other.example")
    with pytest.raises(DenylistUnavailable):
        other.read()
    other.close()
    assert 0 < redis.command("TTL", f"a2a-trust:revoked:{ISSUER}") <= 60


def test_a_list_that_has_seen_less_does_not_replace_one_that_has_seen_more(shared: SharedList) -> None:
    shared.write("new", sequence=10)
    shared.write("old", sequence=9)
    assert shared.read() == "new"


def test_what_nobody_would_take_is_not_read(shared: SharedList, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_list, "MAX_LIST_BYTES", 10)
    shared.write("x" * 10, sequence=1)
    assert shared.read() == "x" * 10
    shared.write("x" * 11, sequence=1)
    with pytest.raises(DenylistTooLarge):
        shared.read()


def test_one_who_writes_while_it_is_read_fills_no_memory(
    redis: RedisServer, shared: SharedList, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer is longer than a list may be, whatever was there when something else was asked before."""
    monkeypatch.setattr(redis_list, "MAX_LIST_BYTES", 10)
    shared.write("small", sequence=1)
    sent = redis.command("INFO", "stats")["total_net_output_bytes"]
    for _ in range(20):
        redis.command("SET", f"a2a-trust:revoked:{ISSUER}", b"1 " + b"x" * 1_000_000)
        with pytest.raises(DenylistTooLarge):
            shared.read()
    assert redis.command("INFO", "stats")["total_net_output_bytes"] - sent < 1_000_000


def test_who_holds_redis_has_no_way_to_break_a_reader(redis: RedisServer, shared: SharedList) -> None:
    redis.command("HSET", f"a2a-trust:revoked:{ISSUER}", "not", "what we wrote")
    with pytest.raises(DenylistUnavailable, match="ResponseError"):
        shared.read()
    with pytest.raises(DenylistUnavailable):
        shared.write("list", sequence=1)
    redis.command("DEL", f"a2a-trust:revoked:{ISSUER}")
    for nothing in ("", "7", "7 "):
        redis.command("SET", f"a2a-trust:revoked:{ISSUER}", nothing)
        with pytest.raises(DenylistUnavailable, match="no list of this issuer"):
            shared.read()
    redis.command("SET", f"a2a-trust:revoked:{ISSUER}", b"x \xff")
    assert shared.read() == "\xff"
    shared.write("list", sequence=1)
    assert shared.read() == "list"


def test_a_server_that_hangs_or_has_gone_is_away_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_list, "WAIT_SECONDS", 0.05)
    with RedisServer(tmp_path) as redis:
        shared = SharedList(redis.url, ISSUER)
        until = time.monotonic() + 20
        while True:  # a busy machine may not answer within so short a time
            try:
                shared.write("list", sequence=1)
                break
            except DenylistUnavailable:
                assert time.monotonic() < until
        redis.pause()
        with pytest.raises(DenylistUnavailable, match="denylist store"):
            shared.read()
        redis.resume()
        while True:
            try:
                assert shared.read() == "list"  # and never the answer to what was asked before
                break
            except DenylistUnavailable:
                assert time.monotonic() < until
        redis.stop()
        with pytest.raises(DenylistUnavailable):
            shared.read()
        shared.close()


def test_a_wrong_password_is_told_as_one(redis: RedisServer) -> None:
    shared = SharedList(redis.url.replace("://", "://nobody:hunter2@"), ISSUER)
    until = time.monotonic() + 20
    while True:
        with pytest.raises(DenylistUnavailable) as caught:
            shared.read()
        if "Timeout" not in str(caught.value):  # of a busy machine
            break
        assert time.monotonic() < until
    assert str(caught.value).endswith(": got AuthenticationError; look at its password")
    shared.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis://10.0.0.1",
        "rediss://host?ssl_cert_reqs=none",
        "http://host",
        "redis://pass#word@localhost",
        "redis://localhost?db=word",
        "redis://:12?word@localhost",
        "rediss://user:1?word=x@host",
        "unix://user:1/word@/run/redis",
        "redis://[::1%25evil.example]",
        "redis://[::1%65vil.example]",
        "nonsense",
    ],
)
def test_a_url_that_weakens_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        SharedList(url, ISSUER)
    assert type(caught.value) is ConfigurationError
    assert "word" not in str(caught.value).replace("password", "")


def test_without_redis_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match="Redis: got no driver, expected redis; install the extra `redis`"):
        SharedList("redis://localhost", ISSUER)
