"""The tokens that one authorization server gave us, kept for as long as they are good."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import replace
from datetime import timedelta
from functools import partial

from trust.errors import ApprovalRequired
from trust.oauth.client.asks import Ask, Token
from trust.oauth.client.authority import Authority
from trust.oauth.flight import Flight

REFRESH_REST = timedelta(seconds=5)  # between two attempts to renew while the old token is still good
CACHE_SIZE = 1024  # tokens; an agent in the middle of a chain holds one for each caller it acts for

logger = logging.getLogger("a2a_trust.oauth")


class TokenCache:
    """Tokens by what was asked for and by our certificate: a token is bound to the one that it was given to."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self._tokens: OrderedDict[tuple[Ask, str], Token] = OrderedDict()
        self._flights: dict[tuple[Ask, str], Flight[Token]] = {}
        self._approved_by_a_person: set[tuple[Ask, str]] = set()

    async def token(self, ask: Ask) -> Token:
        """One that is valid now; however many wait for it, it is fetched once. Errors as `Authority.fetch`."""
        key = (ask, self.authority.thumbprint)
        token, now = self._tokens.get(key), self.authority.clock()
        if token is None or now >= token.expires_at:
            return await asyncio.shield(self._flight(key))
        self._tokens.move_to_end(key)
        if now >= token.refresh_at:
            # The old token is good: nobody waits for the new one, and a server that is down hurts nobody yet.
            self._tokens[key] = replace(token, refresh_at=now + REFRESH_REST)
            self._flight(key)
        return token

    def holds(self, ask: Ask) -> bool:
        """Whether `token` would answer without asking the server."""
        token = self._tokens.get((ask, self.authority.thumbprint))
        return token is not None and self.authority.clock() < token.expires_at

    def drop(self, ask: Ask, token: Token) -> bool:
        """Forget a token that a resource refused; True where another one may do better.

        A token that is a few seconds old is kept: a resource that refuses that would refuse the next one, too, and must
        not turn each of our calls into a request for a token.
        """
        key = (ask, self.authority.thumbprint)
        kept = self._tokens.get(key)
        if kept is not None and kept.value == token.value:
            if self.authority.clock() < token.asked_at + REFRESH_REST:
                return False
            del self._tokens[key]
        return True

    def forget(self, value: str) -> Token | None:
        """Forget a token that is to be revoked, and return it."""
        for key, token in self._tokens.items():
            if token.value == value:
                del self._tokens[key]
                return token
        return None

    async def _fetch(self, key: tuple[Ask, str]) -> Token:
        ask, _ = key
        old = self._tokens.get(key)
        try:
            token = await self.authority.fetch(ask, None if old is None else old.refresh_token)
        except ApprovalRequired as pending:
            pending.step_up = ask.step_up
            self._approved_by_a_person.add(key)
            if len(self._approved_by_a_person) > CACHE_SIZE:
                self._approved_by_a_person.clear()  # some tokens will be asked for too early then, and refused
            raise
        if ask.step_up or key in self._approved_by_a_person:
            # Not renewed ahead of time: nobody is asked for what may not be needed.
            self._approved_by_a_person.discard(key)
            token = replace(token, refresh_at=token.expires_at)
        self._tokens[key] = token
        self._tokens.move_to_end(key)
        if len(self._tokens) > CACHE_SIZE:
            self._tokens.popitem(last=False)
        return token

    def _flight(self, key: tuple[Ask, str]) -> asyncio.Task[Token]:
        """The one fetch that is under way for a key, started where there is none."""
        return self._flights.setdefault(key, Flight()).begin(partial(self._land, key))

    def _under_way(self) -> list[asyncio.Task[Token]]:
        return [task for flight in self._flights.values() if (task := flight.under_way) is not None]

    async def _land(self, key: tuple[Ask, str]) -> Token:
        waiting = key in self._approved_by_a_person
        try:
            return await self._fetch(key)
        except Exception as error:
            if not (waiting and isinstance(error, ApprovalRequired)):  # a wait is many questions, and one line
                logger.warning("no new token from %s: %s: %s", self.authority.issuer, type(error).__name__, error)
            raise
        finally:
            del self._flights[key]
