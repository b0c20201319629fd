"""The denylists: `MemoryDenylist`, and the copies that an agent keeps of a list that its issuer has signed.

A copy is in memory. The list says until when it may be relied on, a minute; after that nothing is known, and every
token is refused with 503 until there is a newer list.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import ClassVar, TypeVar

import httpx

from trust.clock import Clock, utc, wall_clock
from trust.errors import DenylistOutdated, DenylistTooLarge, DenylistUnavailable
from trust.oauth.denylist.document import (
    MAX_ENTRIES,
    MAX_LIST_BYTES,
    MAX_SKEW_SECONDS,
    MEDIA_TYPE,
    PATH,
    RevokedTokens,
    key_id,
    verified_list,
)
from trust.oauth.denylist.redis_list import SharedList
from trust.oauth.fetch import fetch
from trust.oauth.flight import Flight
from trust.oauth.keys import KeySource
from trust.oauth.metadata import check_issuer

FETCH_SECONDS = 3.0  # of a whole fetch: requests wait for it
FAILURE_REST = 2.0  # seconds after a failed fetch: a server in trouble is left in peace, and found again soon
LARGE_LIST = 64 << 10  # characters; reading a larger one takes milliseconds, and is not for the event loop

logger = logging.getLogger("a2a_trust.oauth")

T = TypeVar("T")


class MemoryDenylist:
    """The tokens that this process was told of, until they expire. Thread-safe."""

    def __init__(self) -> None:
        self._tokens: dict[tuple[str, str], float] = {}
        self._ends: list[tuple[float, str, str]] = []  # a heap, the earliest end first
        self._lock = threading.Lock()

    def deny(self, issuer: str, jti: str, *, expires_at: datetime, now: datetime) -> None:
        """From now on `contains` is true of this token, at least until it expires.

        Raises:
            DenylistTooLarge: 100,000 tokens that have not expired are denied already.
        """
        end, seconds = utc(expires_at).timestamp(), utc(now).timestamp()
        with self._lock:
            while self._ends and self._ends[0][0] <= seconds:
                ended, *token = heapq.heappop(self._ends)
                if self._tokens[token[0], token[1]] == ended:  # and was not denied for longer since
                    del self._tokens[token[0], token[1]]
            if end <= max(seconds, self._tokens.get((issuer, jti), 0.0)):
                return
            if len(self._ends) >= MAX_ENTRIES:
                raise DenylistTooLarge("denylist is full", expected=f"at most {MAX_ENTRIES} tokens")
            self._tokens[issuer, jti] = end
            heapq.heappush(self._ends, (end, issuer, jti))

    def contains(self, issuer: str, jti: str) -> bool:
        return (issuer, jti) in self._tokens

    async def prepare(self) -> None:
        return


class SignedDenylist(ABC):
    """A copy of the list that one issuer signs, fetched when it is wanted. Belongs to one event loop.

    A token that was revoked is refused `REFRESH_SECONDS` later (and the time of a fetch), or sooner. Where the list
    cannot be fetched, the last one is used until it ends, a minute after it was signed; then all tokens are refused.
    Requests wait where there is no copy, or one that is older than that; under way there is one fetch, and it goes on
    when one of those who wait is cancelled.

    A list that has seen less than the one before is refused, for as long as a token that the one before names would be
    valid. NOT covered: a process that has just started takes any list that has not ended.
    """

    REFRESH_SECONDS: ClassVar[float]

    def __init__(self, *, issuer: str, keys: KeySource, clock: Clock = wall_clock) -> None:
        """Args: issuer: whose tokens and list. keys: its keys, the same as for its tokens.

        Raises:
            ConfigurationError: no issuer identifier.
        """
        self._issuer = check_issuer(issuer)
        self._keys = keys
        self._clock = clock
        self._copy: RevokedTokens | None = None
        self._fetched_at = -math.inf  # when the last good fetch began; seconds since the epoch, as the next one
        self._failed_at = -math.inf
        self._failure: str | None = "not fetched yet"
        self._flight = Flight[None]()

    def contains(self, issuer: str, jti: str) -> bool:
        """Whether the token was revoked. Does no IO.

        Raises:
            DenylistUnavailable: there is no list that is recent enough, or the token is of another issuer.
        """
        copy = self._copy
        if issuer != self._issuer:
            raise DenylistUnavailable("denylist is of another issuer", got=issuer, expected=self._issuer)
        if copy is None or not self._is_current(copy):
            raise DenylistUnavailable(
                "list of revoked tokens is not available",
                got=self._failure or "one that has ended",
                do="see that the authorization server runs, and compare both clocks",
            )
        return jti in copy.tokens

    async def prepare(self) -> None:
        """See to it that `contains` has a list that is recent enough, where that is possible."""
        now = self._clock().timestamp()
        age = abs(now - self._fetched_at)  # a clock that was set back must not make a copy younger
        if age < self.REFRESH_SECONDS / 2:
            return
        flight = self._flight.under_way
        if flight is None and abs(now - self._failed_at) >= FAILURE_REST:
            flight = self._flight.begin(partial(self._refresh, now))
        # While the server is away nobody waits for it whom the copy still serves.
        current = self._copy is not None and self._is_current(self._copy)
        if flight is not None and not (current and (age < self.REFRESH_SECONDS or self._failure is not None)):
            await asyncio.shield(flight)

    @abstractmethod
    async def _fetch(self) -> str:
        """The list as it is sent, of at most `MAX_LIST_BYTES`."""

    def _is_current(self, copy: RevokedTokens) -> bool:
        # Not before it was signed, either: a clock that was set back must not make it last longer.
        return copy.issued_at - MAX_SKEW_SECONDS <= self._clock().timestamp() < copy.expires_at

    async def _refresh(self, began: float) -> None:
        """Fetch once. A failure leaves the copy as it is: who breaks a fetch must not empty the list."""
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                text = await self._fetch()
                now = self._clock()
                await self._keys.prepare(await _read(key_id, text), now=now)
                found = await _read(partial(verified_list, issuer=self._issuer, keys=self._keys, now=now), text)
            self._copy = _newer(self._copy, found, now)
        except Exception as error:  # whatever went wrong - network, TLS, content, signature - there is no new list
            failure = f"{type(error).__name__}: {error}"
            self._failed_at = self._clock().timestamp()
            if self._failure is None or type(error).__name__ != self._failure.partition(":")[0]:  # times in it differ
                told = DenylistUnavailable(f"list of revoked tokens of {self._issuer}", got=failure)
                logger.warning("%s; the last one stays in use", told)
            self._failure = failure
        else:
            self._fetched_at, self._failure = began, None


class RemoteDenylist(SignedDenylist):
    """The signed list at `<issuer>/revoked`: a token that was revoked is refused 10 s later, or sooner.

    Args:
        issuer: its https URL, exactly as tokens name it.
        http: the client to fetch with, which decides who may answer (`AgentTransport` with `exactly(authority)`); it is
            not closed here.
        keys: the issuer's keys.
    """

    REFRESH_SECONDS = 10.0

    def __init__(self, issuer: str, http: httpx.AsyncClient, *, keys: KeySource, clock: Clock = wall_clock) -> None:
        super().__init__(issuer=issuer, keys=keys, clock=clock)
        self._url = issuer.rstrip("/") + PATH
        self._http = http

    async def _fetch(self) -> str:
        return (await fetch(self._http, self._url, (MEDIA_TYPE,), MAX_LIST_BYTES)).decode("latin-1")


class RedisDenylist(SignedDenylist):
    """The signed list in a Redis server: a token that was revoked is refused 4 s later, or sooner.

    Whoever holds Redis may give a list of before to an agent that has seen no later one: then it is 60 s later.

    Two of them are the authorization server's, which looks every other second whether there is something to write.

    Args:
        url: of the Redis server, as `trust.oauth.denylist.redis_list.SharedList` has it.
        issuer, keys: as `RemoteDenylist`. Redis is believed nothing that these keys have not signed.
    """

    REFRESH_SECONDS = 2.0

    def __init__(self, url: str, *, issuer: str, keys: KeySource, clock: Clock = wall_clock) -> None:
        super().__init__(issuer=issuer, keys=keys, clock=clock)
        self._shared = SharedList(url, issuer)

    async def _fetch(self) -> str:
        return await asyncio.to_thread(self._shared.read)

    def close(self) -> None:
        self._shared.close()


async def _read(read: Callable[[str], T], text: str) -> T:
    return read(text) if len(text) < LARGE_LIST else await asyncio.to_thread(read, text)


def _newer(last: RevokedTokens | None, found: RevokedTokens, now: datetime) -> RevokedTokens:
    """The one of two lists to go on with.

    Raises:
        DenylistOutdated: the one that was found has seen less, and a token that it may lack would be valid.
    """
    if last is None or found.sequence > last.sequence:
        return found
    if found.sequence == last.sequence:
        return max(last, found, key=lambda either: either.expires_at)
    if max(last.tokens.values(), default=0) > now.timestamp():
        raise DenylistOutdated(
            "list of revoked tokens is older than the one before",
            got=f"seq {found.sequence}",
            expected=f"at least {last.sequence}",
            do="where the server's database was restored, revoke again what was revoked since its backup",
        )
    return found
