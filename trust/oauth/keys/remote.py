"""An issuer's keys where they are published: fetched beside the requests, and kept while the issuer is away."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta
from functools import partial

import httpx

from trust.errors import KeysUnavailable
from trust.oauth.fetch import JSON, JWKS, MAX_ANSWER_BYTES, fetch
from trust.oauth.flight import Flight
from trust.oauth.keys.jwks import MAX_JWKS_BYTES, Key, find, usable_keys
from trust.oauth.metadata import check_endpoint, check_issuer, check_metadata, metadata_endpoint, metadata_url
from trust.signing.algorithms import PublicKey
from trust.signing.jws import strict_json

FRESH = timedelta(minutes=5)  # how long a fetched key set is used without asking again
USABLE = timedelta(hours=1)  # how long it is used while the issuer cannot be reached: longer than any token lives
UNKNOWN_KID_REST = timedelta(seconds=30)  # anyone can make up key IDs: they cause one fetch in this time
FAILURE_REST = timedelta(seconds=10)  # after a failed fetch, so that an issuer in trouble is left in peace
FETCH_SECONDS = 3.0  # of the whole fetch: requests wait for it where there are no keys yet

logger = logging.getLogger("a2a_trust.oauth")


class RemoteKeys:
    """The JWKS at an https URL.

    A key set is used for 5 minutes without asking. After that the next request has it fetched again, and nobody waits:
    the old set serves until the new one is there, for an hour at most. Requests wait where there are no keys, and for
    a key ID that is not in the set, which causes one fetch in 30 seconds. However many wait, there is one fetch, and
    it goes on when one of them is cancelled; after one that fails there is none for 10 seconds. To have the keys
    before the first request, await `prepare(None, now=...)` at the start.

    NOT covered: the first request after a pause is judged by the keys of before the pause; a key that was withdrawn
    meanwhile is gone as soon as the fetch which that request causes has ended.

    Belongs to the event loop of its `http` client.

    Args:
        url: of the configuration; never from a token. `of_issuer` takes it from the issuer's metadata.
        http: the client to fetch with. Its credentials other than TLS certificates are not sent, redirects are not
            followed.

    Raises:
        ConfigurationError: not an https URL.
    """

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self._url = check_endpoint(url)
        self._issuer: str | None = None  # whose metadata is at the URL
        self._http = http
        self._keys: dict[str, Key] = {}
        self._body_of_keys = b""
        self._fetched_at: datetime | None = None
        self._failed_at: datetime | None = None
        self._unknown_kid_at: datetime | None = None
        self._failure = "not fetched yet"
        self._flight = Flight[None]()

    @classmethod
    def of_issuer(cls, issuer: str, http: httpx.AsyncClient) -> RemoteKeys:
        """The keys at the `jwks_uri` of an issuer's metadata (RFC 8414), which is asked for at every fetch.

        The metadata has to name the same issuer, and a `jwks_uri` on the issuer's own origin. Where the keys are meant
        to be elsewhere, configure their URL.

        Args:
            issuer: exactly as tokens name it.
            http: as for the class.

        Raises:
            ConfigurationError: no issuer identifier.
        """
        keys = cls(metadata_url(check_issuer(issuer)), http)
        keys._issuer = issuer
        return keys

    def find(self, kid: str, alg: str, *, now: datetime) -> PublicKey:
        self._check_usable(now)
        if kid not in self._keys and self._failed_at is not None:
            # It may be the issuer's newest. A caller that were told that its token is bad would throw it away.
            raise self._unavailable()
        return find(self._keys, kid, alg)

    async def prepare(self, kid: str | None, *, now: datetime) -> None:
        known = kid is None or kid in self._keys
        if known and _within(self._fetched_at, FRESH, now):
            return
        flight = self._flight.under_way
        if flight is None and self._is_due(now):
            flight = self._flight.begin(partial(self._refresh, now))
        # Whoever has what it needs goes on: a slow issuer holds up nobody whose keys are there.
        if flight is not None and not (known and _within(self._fetched_at, USABLE, now)):
            await asyncio.shield(flight)
        self._check_usable(now)

    def _check_usable(self, now: datetime) -> None:
        if not _within(self._fetched_at, USABLE, now):
            raise self._unavailable()

    def _unavailable(self) -> KeysUnavailable:
        return KeysUnavailable("keys of the issuer are not available", got=self._failure, do=f"look at {self._url}")

    def _is_due(self, now: datetime) -> bool:
        """Whether to fetch for a request that the set does not do for: it is old, or has not the key."""
        if _within(self._failed_at, FAILURE_REST, now):
            return False
        if not _within(self._fetched_at, FRESH, now):
            return True
        if _within(self._unknown_kid_at, UNKNOWN_KID_REST, now):
            return False
        self._unknown_kid_at = now
        return True

    async def _refresh(self, now: datetime) -> None:
        """Fetch once. A failure leaves the keys as they are: an attacker who breaks a fetch must not empty them."""
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                url = self._url if self._issuer is None else await self._jwks_uri(self._issuer)
                body = await fetch(self._http, url, JWKS, MAX_JWKS_BYTES)
            if body != self._body_of_keys:  # an unchanged set keeps its key objects, as `find` promises
                self._keys, self._body_of_keys = usable_keys(strict_json(body)), body
        except Exception as error:
            # Whatever went wrong - network, TLS, status, content, a closed client - there are no new keys.
            self._failure = f"{type(error).__name__}: {error}"
            self._failed_at = now
            self._unknown_kid_at = None  # nothing was learnt about that key
            logger.warning("%s", self._unavailable())
        else:
            self._fetched_at = now
            self._failed_at = None

    async def _jwks_uri(self, issuer: str) -> str:
        metadata = strict_json(await fetch(self._http, self._url, JSON, MAX_ANSWER_BYTES))
        if not isinstance(metadata, dict):
            raise ValueError("metadata is not a JSON object")
        check_metadata(metadata, issuer)
        url = metadata_endpoint(metadata, issuer, "jwks_uri")
        if url is None:
            raise ValueError("metadata has no jwks_uri")
        return url


def _within(since: datetime | None, limit: timedelta, now: datetime) -> bool:
    """Whether `since` is less than `limit` away from `now`.

    Either way: requests that overlap are not in order, so that `now` may be a little before. But a clock that was set
    far back must not keep a set for as long.
    """
    return since is not None and abs(now - since) < limit
