"""The replay guard of several hosts: a Redis server."""

from __future__ import annotations

import contextlib
import math
import re
import time
import weakref
from collections.abc import Iterator
from typing import Any

from trust.errors import ConfigurationError, Replayed, ReplayGuardFull
from trust.redis_url import bad_url, checked_url, no_driver
from trust.replay.guard import SKEW_SECONDS, THREADS, WAIT_SECONDS, away, received_before, too_old

PREFIX = b"a2a-trust:replay:"  # of the keys
STORE = "replay store"  # in messages


class RedisReplayGuard:
    """For several hosts: `SET NX EX` in one Redis server (extra `redis`). Thread-safe.

    What Redis may forget is refused: with every connection it is asked since when it runs, and whether it evicts. A
    message from before its start was perhaps received before, whatever of its memory it wrote to a disk.

    Not covered: a failover. Replication is asynchronous, so a replica that takes over may lack what the lost server
    took last, a second or so of messages; where that matters use one server without replicas, which fails closed.
    Nor `FLUSHALL`, entries deleted by others, `maxmemory-policy` changed later, clocks of our hosts that differ by
    more than 30 s, a clock of the Redis host that is set forward, and a signer whose clock is ahead, as
    `MemoryReplayGuard`. Sentinel and Cluster are not spoken, and what stands between must forward whole connections.

    Args:
        url: `rediss://[user:password@]host[:port][/db]`, with TLS as redis-py does it: the web's roots, or those of
            `?ssl_ca_certs=FILE`; `ssl_certfile` and `ssl_keyfile` for a client certificate. `unix://[...@]/path`, and
            `redis://` to this host only: whoever stands between could say of every copy that it is new. A user of the
            server needs `+set +info ~a2a-trust:replay:*`, and `+select` where a database is named.

    Raises:
        ConfigurationError: the URL is none of these, redis is not installed, or the server evicts entries.
        ReplayStoreUnavailable: the server does not answer, or not to this user, or its certificate is not right.
    """

    def __init__(self, url: str) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise no_driver() from None
        self._redis = redis
        self._name = checked_url(url, STORE)
        # When the server at the other end of a connection started, by our monotonic clock. A connection outlives
        # no server.
        self._started: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
        try:
            self._pool: Any = redis.BlockingConnectionPool.from_url(
                url,
                max_connections=THREADS,
                timeout=WAIT_SECONDS,
                socket_timeout=WAIT_SECONDS,
                socket_connect_timeout=WAIT_SECONDS,
                retry=Retry(NoBackoff(), 0),  # redis-py would try eleven times, each for that long
                protocol=2,  # without the notifications by which a server sends its clients elsewhere
                redis_connect_func=self._greet,
            )
        except ValueError:  # its text has parts of the URL
            raise bad_url(STORE) from None
        with self._connected():  # what is wrong with the URL or the server is told now, and not to each caller
            pass

    def remember(self, key: bytes, *, issued_at: float, expires_at: float, now: float) -> None:
        called = time.monotonic()
        # A relative time: the clock of the Redis host does not have to be right.
        seconds = math.ceil(expires_at - now) + SKEW_SECONDS
        if seconds < 1:
            raise too_old()
        with self._connected() as connection:
            # All clocks have been read before, or count on: this is late rather than early.
            if issued_at < now + (self._started[connection] - called):
                raise Replayed("message was signed before the replay store started", do="sign it again")
            connection.send_command("SET", PREFIX + key, b"", "NX", "EX", seconds)
            answer = connection.read_response()
        if answer is None:
            raise received_before()
        if answer != b"OK":
            raise away(self._name, "an answer that SET does not have")

    def close(self) -> None:
        self._pool.disconnect()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        try:
            connection = self._pool.get_connection()
            try:
                yield connection
            finally:
                self._pool.release(connection)
        except self._redis.OutOfMemoryError:
            raise ReplayGuardFull("replay store is full", got=self._name, do="raise its maxmemory") from None
        except self._redis.RedisError as error:
            # Other errors have the server's words, which may repeat what was sent to it: our password.
            ours = type(error) in (self._redis.ConnectionError, self._redis.TimeoutError)
            raise away(self._name, error if ours else type(error).__name__) from None

    def _greet(self, connection: Any) -> None:
        """Log in, and learn what the server promises. A connection on which this fails is never used."""
        try:
            connection.on_connect()
            connection.send_command("INFO", "server")
            uptime = _told(connection.read_response(), rb"uptime_in_seconds:([0-9]{1,10})")
            started = time.monotonic() - int(uptime)
            connection.send_command("INFO", "memory")
            memory = connection.read_response()
            limit = _told(memory, rb"maxmemory:([0-9]{1,20})")
            policy = _told(memory, rb"maxmemory_policy:([a-z-]{1,40})")
            if int(limit) and policy != b"noeviction":
                raise ConfigurationError(
                    "replay store evicts entries, and would let copies of their messages through",
                    got=policy.decode(),
                    do="set its maxmemory-policy to noeviction",
                )
            self._started[connection] = started
        except BaseException:  # an interrupt, too
            connection.disconnect()
            raise


def _told(answer: object, pattern: bytes) -> bytes:
    """One line of an answer to INFO."""
    found = re.search(rb"^%s\r?$" % pattern, answer, re.MULTILINE) if isinstance(answer, bytes) else None
    if not found:  # a server that does not say it is not one that can be relied on
        raise ConfigurationError(
            "replay store does not tell what it promises", expected=f"a Redis server's INFO, {pattern.decode()}"
        )
    return found[1]
