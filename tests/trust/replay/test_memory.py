"""The guard in memory: its buckets, its bound, its start."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest

from trust.errors import IdentityError, Replayed, ReplayGuardFull
from trust.replay import MemoryReplayGuard, replay_key
from trust.replay.memory import BUCKET_SECONDS, DEFAULT_CAPACITY

START = datetime(2030, 1, 1, tzinfo=UTC)
T0 = START.timestamp()


def guard(capacity: int = 100) -> MemoryReplayGuard:
    return MemoryReplayGuard(started_at=START, capacity=capacity)


def remember(
    g: MemoryReplayGuard, key: bytes, *, at: float = 0, lifetime: float = 60, now: float | None = None
) -> None:
    g.remember(key, issued_at=T0 + at, expires_at=T0 + at + lifetime, now=T0 + (at if now is None else now))


def key(n: int) -> bytes:
    return replay_key("iss", "aud", str(n))


def test_the_second_time_is_a_replay() -> None:
    g = guard()
    remember(g, key(1))
    for later in (0, 1, 59.9, 60):
        with pytest.raises(Replayed):
            remember(g, key(1), now=later)
    remember(g, key(2))
    assert len(g) == 2


@pytest.mark.parametrize("expiry", [29, 30, 31, 59, 60, 300])
def test_a_message_is_remembered_until_it_expires(expiry: int) -> None:
    g = guard(capacity=1000)
    g.remember(key(0), issued_at=T0, expires_at=T0 + expiry, now=T0)
    for second in range(1, expiry + 1):  # other messages come and go meanwhile, and buckets are dropped
        remember(g, key(second), at=second, lifetime=10)
        with pytest.raises(Replayed):
            g.remember(key(0), issued_at=T0, expires_at=T0 + expiry, now=T0 + second)


def test_what_has_expired_makes_room() -> None:
    g = guard(capacity=3)
    for n in range(3):
        remember(g, key(n), lifetime=20)
    with pytest.raises(ReplayGuardFull):
        remember(g, key(3), at=10)
    remember(g, key(3), at=2 * BUCKET_SECONDS)
    assert len(g) == 1


def test_room_is_made_even_where_the_bucket_is_there_already() -> None:
    g = guard(capacity=2)
    g.remember(key(1), issued_at=T0, expires_at=T0 + 10, now=T0)
    g.remember(key(2), issued_at=T0, expires_at=T0 + 100, now=T0)
    g.remember(key(3), issued_at=T0, expires_at=T0 + 101, now=T0 + 60)
    assert len(g) == 2
    with pytest.raises(Replayed):
        g.remember(key(2), issued_at=T0, expires_at=T0 + 100, now=T0 + 60)


def test_a_clock_that_is_set_back_lets_nothing_in_again() -> None:
    g = guard()
    remember(g, key(1))
    remember(g, key(2), at=200)  # the first is forgotten
    with pytest.raises(Replayed, match="too long ago"):
        remember(g, key(1))


def test_a_full_guard_refuses_and_forgets_nothing() -> None:
    g = guard(capacity=2)
    remember(g, key(1))
    remember(g, key(2))
    for n in (3, 4):
        with pytest.raises(ReplayGuardFull):
            remember(g, key(n))
    for n in (1, 2):
        with pytest.raises(Replayed):
            remember(g, key(n))
    assert len(g) == 2


def test_messages_from_before_the_start_are_refused() -> None:
    g = MemoryReplayGuard(started_at=START + timedelta(milliseconds=900))
    with pytest.raises(Replayed, match="before this receiver started"):
        remember(g, key(1), at=-1)
    remember(g, key(1), at=0)  # `iat` has whole seconds, so the second of the start counts as after it
    assert len(g) == 1
    assert DEFAULT_CAPACITY == 4_000_000


def test_a_start_without_zone_is_refused() -> None:
    with pytest.raises(IdentityError):
        MemoryReplayGuard(started_at=START.replace(tzinfo=None))


def test_of_many_threads_one_gets_through() -> None:
    g = guard(capacity=10_000)
    barrier = threading.Barrier(8)
    through: list[int] = []

    def work() -> None:
        barrier.wait()
        for n in range(300):
            try:
                remember(g, key(n))
            except Replayed:
                continue
            through.append(n)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(through) == list(range(300))
    assert len(g) == 300
