"""How often a client may ask, and how often it may fail to authenticate before it is locked out for a while.

Counted is by the SPIFFE ID that the connection has proved, so no client uses up another's share; where there is none,
by address, in a memory of its own.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import RedisStorage, Storage
from limits.strategies import FixedWindowRateLimiter

from trust.errors import ClientLockedOut, ConfigurationError, TooManyTokenRequests
from trust.identity import PeerIdentity
from trust.redis_url import checked_url, no_driver

REQUESTS_PER_MINUTE = 6000  # of one client: a token for each call of a busy agent
FAILURES = 10  # within LOCK_MINUTES: more than a deployment with an old secret makes by itself before somebody sees it
LOCK_MINUTES = 5
MAX_KEYS = 50_000  # counters in memory: about 20 MB, agents and addresses together
REDIS_PREFIX = "a2a-trust:limits"  # of the keys
REDIS_SECONDS = 0.5  # for an answer
REDIS_REST_SECONDS = 5.0  # after a failure nobody waits for it again so soon

_LOCK = RateLimitItemPerMinute(1, LOCK_MINUTES, "locked")
_FAILURES = RateLimitItemPerMinute(FAILURES - 1, LOCK_MINUTES, "failed")
_TOLD = RateLimitItemPerMinute(1, 1, "told")

T = TypeVar("T")

logger = logging.getLogger("a2a_trust.oauth")


class Throttle:
    """The counters of one authorization server. Safe for threads.

    In memory each process counts for itself. With Redis all count together; where it does not answer, each process
    counts for itself again, so a Redis server that is away weakens the limits and stops no one.

    Args:
        requests_per_minute: of one client.
        redis_url: `rediss://host:port`, or `redis://` to this host (extra `redis`); then the methods block.
        clock: seconds since the epoch.

    Raises:
        ConfigurationError: the URL cannot be used, or redis is not installed.
    """

    def __init__(
        self,
        *,
        requests_per_minute: int = REQUESTS_PER_MINUTE,
        redis_url: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if requests_per_minute < 1:
            raise ConfigurationError("requests per minute", got=requests_per_minute, expected="at least 1")
        self._requests = RateLimitItemPerMinute(requests_per_minute, 1, "requests")
        self._clock = clock
        self._agents = FixedWindowRateLimiter(BoundedMemory(MAX_KEYS // 2, clock))
        self._strangers = FixedWindowRateLimiter(BoundedMemory(MAX_KEYS // 2, clock))
        self._shared = None if redis_url is None else FixedWindowRateLimiter(_redis(redis_url))
        self._rest_until = 0.0  # of Redis, by the monotonic clock

    @property
    def blocks(self) -> bool:
        return self._shared is not None

    def admit(self, who: str) -> None:
        """Count a request.

        Raises:
            ClientLockedOut: who has failed too often.
            TooManyTokenRequests: who asks too often.
        """
        self._with_limiter(who, lambda limiter: self._admit(limiter, who))

    def failed(self, who: str) -> bool:
        """Count a failing authentication; whether it is the one that locks `who` out."""
        return self._with_limiter(who, lambda limiter: _failed(limiter, who))

    def _admit(self, limiter: FixedWindowRateLimiter, who: str) -> None:
        if not limiter.test(_LOCK, who):
            raise ClientLockedOut("client is locked out", retry_after=self._left(limiter, _LOCK, who), got=who)
        if not limiter.hit(self._requests, who):
            raise TooManyTokenRequests(
                "too many requests",
                retry_after=self._left(limiter, self._requests, who),
                is_first=limiter.hit(_TOLD, who),
                got=who,
                expected=f"at most {self._requests}",
            )

    def _left(self, limiter: FixedWindowRateLimiter, item: RateLimitItem, who: str) -> int:
        """Seconds of the window, rounded up."""
        left = limiter.get_window_stats(item, who).reset_time - self._clock()
        return min(max(1, int(left) + 1), item.get_expiry())

    def _with_limiter(self, who: str, act: Callable[[FixedWindowRateLimiter], T]) -> T:
        if self._shared is not None and time.monotonic() >= self._rest_until:
            try:
                return act(self._shared)
            except StorageError as error:
                self._rest_until = time.monotonic() + REDIS_REST_SECONDS
                logger.warning("shared rate limits: %s; this process counts alone", type(error.storage_error).__name__)
        return act(self._agents if who.startswith("spiffe://") else self._strangers)


def caller_of(peer: PeerIdentity | None, client: tuple[str, int] | None) -> str:
    """Who is counted: the agent that the connection has proved, or else where it comes from.

    Args:
        client: address and port, as ASGI has them.
    """
    if peer is not None:
        return str(peer.agent_id)
    try:
        address = ipaddress.ip_address(client[0] if client else "")
    except ValueError:
        return "unknown address"
    # Whoever has one address of IPv6 has a whole network of them.
    return str(ipaddress.ip_network((address, 64), strict=False) if address.version == 6 else address)


class BoundedMemory(Storage):
    """Counters of this process. The memory of `limits` itself grows with its keys, and starts a thread to tidy up.

    When it is full, the counter that is oldest goes.
    """

    STORAGE_SCHEME = None

    def __init__(self, max_keys: int, clock: Callable[[], float]) -> None:
        super().__init__()
        self._max_keys = max_keys
        self._clock = clock
        self._counters: OrderedDict[str, tuple[int, float]] = OrderedDict()  # the count, and its end
        self._lock = threading.Lock()

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        with self._lock:
            now = self._clock()
            count, end = self._counters.get(key, (0, 0.0))
            if end <= now:
                self._counters.pop(key, None)
                count, end = 0, now + expiry
                while len(self._counters) >= self._max_keys:
                    self._counters.popitem(last=False)
            self._counters[key] = (count + amount, end)
            return count + amount

    def get(self, key: str) -> int:
        with self._lock:
            count, end = self._counters.get(key, (0, 0.0))
            return count if end > self._clock() else 0

    def get_expiry(self, key: str) -> float:
        with self._lock:
            return self._counters.get(key, (0, self._clock()))[1]

    def check(self) -> bool:
        return True

    def reset(self) -> int:
        with self._lock:
            count = len(self._counters)
            self._counters.clear()
            return count

    def clear(self, key: str) -> None:
        with self._lock:
            self._counters.pop(key, None)


def _failed(limiter: FixedWindowRateLimiter, who: str) -> bool:
    # The window of the failures begins before the lock, and so has ended when the lock ends.
    return not limiter.hit(_FAILURES, who) and limiter.hit(_LOCK, who)


def _redis(url: str) -> Storage:
    name = checked_url(url, "rate limits")
    try:
        return RedisStorage(
            url,
            wrap_exceptions=True,
            key_prefix=REDIS_PREFIX,
            socket_timeout=REDIS_SECONDS,
            socket_connect_timeout=REDIS_SECONDS,
            protocol=2,
            **{"retry": None},  # type: ignore[arg-type]  # redis-py would try eleven times, each for that long
        )
    except ValueError:  # its text has parts of the URL
        raise ConfigurationError("URL of the rate limits", got=name, expected="rediss://host:port") from None
    except Exception:  # of limits, where redis is not installed
        raise no_driver() from None
