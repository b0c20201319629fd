"""The count of failures by address."""

from __future__ import annotations

import pytest

from pki.service.attempts import BUCKETS, BURST, INTERVAL, Attempts, network


def test_a_burst_then_one_at_a_time() -> None:
    attempts, now = Attempts(), 1000.0
    for _ in range(BURST):
        assert attempts.wait("192.0.2.1", now) == 0
        attempts.count("192.0.2.1", now)
    assert attempts.wait("192.0.2.1", now) == INTERVAL
    assert attempts.wait("192.0.2.1", now + INTERVAL) == 0
    attempts.count("192.0.2.1", now + INTERVAL)
    assert attempts.wait("192.0.2.1", now + INTERVAL) == INTERVAL
    assert attempts.wait("192.0.2.1", now + (BURST + 1) * INTERVAL) == 0


def test_others_are_not_counted_along() -> None:
    attempts = Attempts()
    for _ in range(BURST):
        attempts.count("192.0.2.1", 0)
    others = [f"198.51.100.{n}" for n in range(100)]
    assert sum(attempts.wait(other, 0) > 0 for other in others) <= 1  # two may share a bucket, by chance


def test_many_at_once_lock_nobody_out_for_long() -> None:
    attempts = Attempts()
    for _ in range(100 * BURST):
        attempts.count("192.0.2.1", 0)
    assert attempts.wait("192.0.2.1", 0) == INTERVAL


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),  # an IPv6 host has a /64 to itself
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("", "unix", False),
    ],
)
def test_what_is_one_address(one: str, other: str, same: bool) -> None:
    assert (network(one) == network(other)) is same


def test_memory_does_not_grow() -> None:
    attempts = Attempts()
    size = len(attempts._full_until)
    for number in range(1000):
        attempts.count(f"10.0.{number // 256}.{number % 256}", 0)
    assert len(attempts._full_until) == size == BUCKETS


def test_nobody_can_choose_a_bucket() -> None:
    """The same addresses share other buckets in another process."""
    addresses = [f"10.1.{n // 256}.{n % 256}" for n in range(300)]
    one, other = Attempts(), Attempts()
    assert [one._bucket(a) for a in addresses] != [other._bucket(a) for a in addresses]
