"""The replay guard of one process."""

from __future__ import annotations

import threading
from datetime import datetime

from trust.clock import utc
from trust.errors import Replayed, ReplayGuardFull
from trust.replay.guard import received_before, too_old

BUCKET_SECONDS = 30  # whole buckets are dropped, so that forgetting costs nothing per entry
DEFAULT_CAPACITY = (
    4_000_000  # entries: 10,000 messages a second for 5 minutes, and a third more; about 400 MB when full
)
KEPT_BYTES = 15  # of a key's 16: the largest bytes object of CPython that takes 48 bytes, where 16 take 64


class MemoryReplayGuard:
    """For one process. Bounded; thread-safe; forgets by whole buckets of 30 seconds of expiry time.

    After a restart it knows nothing, so it refuses what was issued before `started_at`: a message from before the
    restart may have been accepted already. With several worker processes use a shared guard.

    Not covered: a signer whose clock is ahead. What it issued just before a restart looks as if issued after it, for as
    many seconds as its clock may be ahead (10); and `iat` has whole seconds, so what was issued in the very second of a
    restart is taken for new. Where that matters, pass a `started_at` that much later than the start.
    """

    def __init__(self, *, started_at: datetime, capacity: int = DEFAULT_CAPACITY) -> None:
        self._started_at = int(utc(started_at).timestamp())  # `iat` has whole seconds
        self._capacity = capacity
        self._size = 0
        self._buckets: dict[int, set[bytes]] = {}
        self._forgotten = 0  # all buckets below this number are forgotten
        self._lock = threading.Lock()

    def remember(self, key: bytes, *, issued_at: float, expires_at: float, now: float) -> None:
        if issued_at < self._started_at:
            raise Replayed("message was signed before this receiver started", do="sign it again")
        number = int(expires_at // BUCKET_SECONDS)
        # The same key is still the same. That two different ones are, and the second is refused, takes 2^60 messages.
        key = key[:KEPT_BYTES]
        with self._lock:
            if number < self._forgotten:  # judged by a clock that stands, or stepped, behind the one that forgot
                raise too_old()
            # The bucket of an expiry time is a function of the key's message alone (`exp` is signed), so looking
            # into this one bucket is looking everywhere.
            bucket = self._buckets.get(number)
            if bucket is None:
                self._drop_expired(now)
                bucket = self._buckets.setdefault(number, set())
            if key in bucket:
                raise received_before()
            if self._size >= self._capacity:
                self._drop_expired(now)
                if self._size >= self._capacity:
                    raise ReplayGuardFull("replay guard is full", got=f"{self._size} messages", do="raise its capacity")
                bucket = self._buckets.setdefault(number, set())
            bucket.add(key)
            self._size += 1

    def __len__(self) -> int:
        return self._size

    def _drop_expired(self, now: float) -> None:
        current = int(now // BUCKET_SECONDS)
        self._forgotten = max(self._forgotten, current)
        for number in [n for n in self._buckets if n < current]:
            self._size -= len(self._buckets.pop(number))
