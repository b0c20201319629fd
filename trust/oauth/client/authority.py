"""One authorization server, as one client of it: discovery, requests and the cache of tokens."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import replace
from datetime import datetime, timedelta

import httpx

from trust.clock import Clock
from trust.credentials import CredentialSource
from trust.errors import MetadataRefused, TokenRequestRefused, TokenResponseRefused
from trust.oauth.client.asks import Ask, Token, read_metadata, read_token
from trust.oauth.client.talk import send
from trust.oauth.metadata import metadata_url, origin_of

METADATA_LIFETIME = timedelta(hours=1)
REFRESH_REST = timedelta(seconds=5)  # between two attempts to renew while the old token is still good
CACHE_SIZE = 1024  # tokens; an agent in the middle of a chain holds one for each caller it acts for

logger = logging.getLogger("a2a_trust.oauth")


class Authority:
    """One authorization server, as one client of it: discovery, requests and the cache of tokens."""

    def __init__(
        self,
        *,
        issuer: str,
        http: httpx.AsyncClient,
        source: CredentialSource,
        client_id: str,
        token_endpoint: str | None,
        clock: Clock,
    ) -> None:
        self._issuer = issuer
        self._http = http
        self._source = source
        self._client_id = client_id
        self._clock = clock
        self._configured_endpoint = token_endpoint
        if token_endpoint is not None:
            origin_of(token_endpoint)
        self._endpoint: tuple[str, datetime] | None = None
        self._tokens: OrderedDict[tuple[Ask, str], Token] = OrderedDict()
        self._flights: dict[tuple[Ask, str], asyncio.Task[Token]] = {}

    async def token(self, ask: Ask) -> Token:
        key = (ask, self._source.current().thumbprint)
        token, now = self._tokens.get(key), self._clock()
        if token is None or now >= token.expires_at:
            # Shielded: when one of many waiting callers is cancelled, the others still get their token.
            return await asyncio.shield(self._flight(key))
        self._tokens.move_to_end(key)
        if now >= token.refresh_at:
            # The old token is good: nobody waits for the new one, and a server that is down hurts nobody yet.
            self._tokens[key] = replace(token, refresh_at=now + REFRESH_REST)
            self._flight(key)
        return token

    def drop(self, ask: Ask, token: Token) -> bool:
        """Forget a token that a resource refused; True where another one may do better.

        A token that is a few seconds old is kept: a resource that refuses that would refuse the next one, too, and must
        not turn each of our calls into a request for a token.
        """
        key = (ask, self._source.current().thumbprint)
        kept = self._tokens.get(key)
        if kept is not None and kept.value == token.value:
            if self._clock() < token.asked_at + REFRESH_REST:
                return False
            del self._tokens[key]
        return True

    def _flight(self, key: tuple[Ask, str]) -> asyncio.Task[Token]:
        """The one fetch that is under way for a key, started where there is none."""
        task = self._flights.get(key)
        if task is None:
            task = self._flights[key] = asyncio.create_task(self._fetch(key))
            task.add_done_callback(lambda done: self._landed(key, done))
        return task

    def _landed(self, key: tuple[Ask, str], task: asyncio.Task[Token]) -> None:
        del self._flights[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("no new token from %s: %s: %s", self._issuer, type(error).__name__, error)

    async def _fetch(self, key: tuple[Ask, str]) -> Token:
        ask, _ = key
        endpoint = await self._token_endpoint()
        asked_at = self._clock()  # the lifetime counts from before the question: never longer than the server meant
        status, members = await send(self._http, "POST", endpoint, TokenResponseRefused, ask.form(self._client_id))
        if status != httpx.codes.OK:
            code = members.get("error")
            if not isinstance(code, str) or len(code) > 64:
                raise TokenResponseRefused("token request failed without an error code", got=f"status {status}")
            raise TokenRequestRefused("authorization server refused the token", error=code, got=code)
        token = read_token(members, ask, asked_at)
        self._tokens[key] = token
        self._tokens.move_to_end(key)
        if len(self._tokens) > CACHE_SIZE:
            self._tokens.popitem(last=False)
        return token

    async def _token_endpoint(self) -> str:
        if self._configured_endpoint is not None:
            return self._configured_endpoint
        if self._endpoint is None or self._clock() >= self._endpoint[1]:
            status, members = await send(self._http, "GET", metadata_url(self._issuer), MetadataRefused)
            if status != httpx.codes.OK:
                raise MetadataRefused("authorization server has no metadata", got=f"status {status}")
            self._endpoint = (read_metadata(members, self._issuer), self._clock() + METADATA_LIFETIME)
        return self._endpoint[0]
