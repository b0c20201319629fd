"""What a replay guard is, what it is asked for, and how it refuses."""

from __future__ import annotations

import hashlib
from typing import Protocol

from trust.errors import Replayed, ReplayStoreUnavailable

SKEW_SECONDS = 60  # kept longer than `exp` by shared guards: half for clocks that differ, half for copies that wait
WAIT_SECONDS = 5  # for a lock, for a connection, for one answer of a store
THREADS = 16  # that wait for a store at once, each with a connection of its own


class ReplayGuard(Protocol):
    def remember(self, key: bytes, *, issued_at: float, expires_at: float, now: float) -> None:
        """Insert `key` atomically, to be kept until `expires_at`. It may wait; `OffTheLoop` is for event loops.

        Args:
            key: 16 bytes, from `replay_key`.
            issued_at, expires_at, now: seconds since the epoch.

        Raises:
            Replayed: the key is there already, or the guard cannot know (issued before it began to remember).
            ReplayGuardFull: there is no room. The message is refused, never let through unremembered.
            ReplayStoreUnavailable: the store does not answer. The message is refused, and may be remembered or not.
        """


def replay_key(issuer: str, audience: str, jti: str) -> bytes:
    """BLAKE2b-16 over the length-prefixed parts: no two different triples run together into one input."""
    a, b, c = issuer.encode(), audience.encode(), jti.encode()
    parts = (len(a).to_bytes(4), a, len(b).to_bytes(4), b, len(c).to_bytes(4), c)
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


def received_before() -> Replayed:
    return Replayed("message was received before", expected="each signature only once")


def too_old() -> Replayed:
    return Replayed("message expired too long ago to know", do="sign it again")


def away(name: object, got: object) -> ReplayStoreUnavailable:
    return ReplayStoreUnavailable(f"replay store {name}", got=got, expected="an answer", do="see that it runs")
