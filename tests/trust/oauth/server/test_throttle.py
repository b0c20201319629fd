from __future__ import annotations

import logging
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.forge import NOW, Forge
from tests.interop.programs import needs
from tests.redis_server import RedisServer
from trust.errors import ClientLockedOut, ConfigurationError, TooManyTokenRequests
from trust.identity import PeerIdentity
from trust.oauth.server import throttle
from trust.oauth.server.throttle import FAILURES, LOCK_MINUTES, BoundedMemory, Throttle, caller_of
from trust.peers import PeerVerifier

AGENT, OTHER = "spiffe://fleet.example/billing", "spiffe://fleet.example/other"


class Seconds:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def lock_out(counters: Throttle, who: str) -> None:
    assert [counters.failed(who) for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]


def test_a_lock_lasts_a_while_and_then_it_begins_again() -> None:
    clock = Seconds()
    counters = Throttle(clock=clock)
    for _ in range(2):
        lock_out(counters, AGENT)
        clock.now += 60
        with pytest.raises(ClientLockedOut) as caught:
            counters.admit(AGENT)
        assert caught.value.retry_after == LOCK_MINUTES * 60 - 60 + 1
        assert not caught.value.is_first  # it was told when it was locked
        assert counters.failed(AGENT) is False  # one that had begun before the lock is no second one
        counters.admit(OTHER)
        clock.now += LOCK_MINUTES * 60 - 60
        counters.admit(AGENT)
        clock.now += LOCK_MINUTES * 60


def test_failures_that_are_far_apart_lock_nobody_out() -> None:
    clock = Seconds()
    counters = Throttle(clock=clock)
    for _ in range(3):
        assert not any(counters.failed(AGENT) for _ in range(FAILURES - 1))
        clock.now += LOCK_MINUTES * 60
    counters.admit(AGENT)


def test_of_too_many_requests_the_first_one_is_told() -> None:
    clock = Seconds()
    counters = Throttle(requests_per_minute=2, clock=clock)
    told = []
    for _ in range(5):
        try:
            counters.admit(AGENT)
        except TooManyTokenRequests as error:
            assert type(error) is TooManyTokenRequests and error.retry_after == 60
            told.append(error.is_first)
    assert told == [True, False, False]
    clock.now += 60
    counters.admit(AGENT)
    with pytest.raises(ConfigurationError):
        Throttle(requests_per_minute=0)


def test_strangers_never_push_an_agents_lock_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "MAX_KEYS", 20)
    counters = Throttle(clock=Seconds())
    lock_out(counters, AGENT)
    for n in range(100):
        counters.admit(f"192.0.2.{n}")
    with pytest.raises(ClientLockedOut):
        counters.admit(AGENT)


def test_memory_is_bounded_exact_between_threads_and_forgets_what_has_ended() -> None:
    clock = Seconds()
    memory = BoundedMemory(10, clock)
    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(lambda _: memory.incr("a", 60), range(400))) == list(range(1, 401))
    assert memory.get_expiry("a") == clock.now + 60
    clock.now += 60
    assert memory.get("a") == 0
    assert memory.incr("a", 60) == 1
    for n in range(50):
        memory.incr(str(n), 60)
    assert (memory.get("a"), memory.get("49"), memory.get("39")) == (0, 1, 0)
    memory.clear("49")
    assert memory.get("49") == 0
    memory.incr("49", 60)
    assert memory.check() and memory.reset() == 10 and memory.reset() == 0


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (("192.0.2.7", 50000), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 50000), "2001:db8:1:2::/64"),
        (("/run/agent.sock", 0), "unknown address"),
        (None, "unknown address"),
    ],
)
def test_whoever_has_no_certificate_is_its_address(client: Any, expected: str) -> None:
    assert caller_of(None, client) == expected


def test_whoever_has_one_is_its_spiffe_id_wherever_it_comes_from() -> None:
    forge = Forge()
    peer: PeerIdentity = PeerVerifier(forge.bundles).verify(forge.leaf(AGENT).chain_der, now=NOW, usage="client")
    assert caller_of(peer, ("192.0.2.7", 50000)) == AGENT


@needs("redis-server")
def test_with_redis_several_processes_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "REDIS_SECONDS", 60)  # on a machine that is busy
    with RedisServer(tmp_path) as server:
        one, two = (Throttle(requests_per_minute=3, redis_url=server.url) for _ in range(2))
        assert one.blocks
        lock_out(one, AGENT)
        with pytest.raises(ClientLockedOut) as caught:
            two.admit(AGENT)
        assert 0 < caught.value.retry_after <= LOCK_MINUTES * 60
        for counters in (one, two, one):
            counters.admit(OTHER)
        with pytest.raises(TooManyTokenRequests):
            two.admit(OTHER)
        keys = server.command("KEYS", "*")
        assert keys and all(key.startswith(b"a2a-trust:limits:") for key in keys)
        assert all(0 < server.command("TTL", key) <= LOCK_MINUTES * 60 for key in keys)  # Redis forgets them itself


@needs("redis-server")
def test_where_redis_is_away_each_process_counts_for_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "REDIS_REST_SECONDS", 0.0)
    with RedisServer(tmp_path) as server:
        counters = Throttle(requests_per_minute=2, redis_url=server.url)
        counters.admit(AGENT)
    with caplog.at_level(logging.WARNING):
        counters.admit(AGENT)  # the server is gone
        counters.admit(AGENT)
        with pytest.raises(TooManyTokenRequests):
            counters.admit(AGENT)
    assert re.search("shared rate limits: ConnectionError; this process counts alone", caplog.text)
    monkeypatch.setattr(throttle, "REDIS_REST_SECONDS", 600.0)
    caplog.clear()
    with pytest.raises(TooManyTokenRequests):
        counters.admit(AGENT)
    with pytest.raises(TooManyTokenRequests):
        counters.admit(AGENT)
    assert caplog.text.count("counts alone") == 1  # and for a while nobody asks it again


@pytest.mark.parametrize(
    "url", ["redis://10.0.0.1", "http://localhost", "redis://localhost/x", "rediss://h?ssl_cert_reqs=none", ""]
)
def test_a_redis_that_is_not_safe_to_ask_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Throttle(redis_url=url)
    assert type(caught.value) is ConfigurationError


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match="Redis: got no driver, expected redis; install the extra `redis`"):
        Throttle(redis_url="redis://localhost")
