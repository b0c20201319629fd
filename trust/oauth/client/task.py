"""The tokens of one task: nobody else's, and revoked when the task ends."""

from __future__ import annotations

import asyncio
import logging

from trust.errors import TokenTaskEnded
from trust.oauth.client.asks import Ask, Token
from trust.oauth.client.authority import Authority
from trust.oauth.client.cache import TokenCache

REVOKE_SECONDS = 10.0  # for all tokens of a task together: what ends a task must not wait for a server that hangs

logger = logging.getLogger("a2a_trust.oauth")

_ending = set[asyncio.Task[None]]()  # an event loop itself does not keep the tasks that nobody waits for any more


class TaskTokens(TokenCache):
    """As a `TokenCache`, until `end`."""

    def __init__(self, authority: Authority) -> None:
        super().__init__(authority)
        self._issued: list[Token] = []  # also those that others replaced, until they expire
        self._ended = False

    async def token(self, ask: Ask) -> Token:
        if self._ended:
            raise TokenTaskEnded("task has ended", do="ask for tokens inside its `async with` only")
        return await super().token(ask)

    async def _fetch(self, key: tuple[Ask, str]) -> Token:
        token = await super()._fetch(key)
        self._issued = [*self._live(), token]
        return token

    async def end(self) -> None:
        """Give no more tokens, and revoke those that were given. It goes on where the caller is cancelled.

        What could not be revoked is logged: it ends by itself, a few minutes later.
        """
        self._ended = True
        task = asyncio.create_task(self._revoke_all())
        _ending.add(task)
        task.add_done_callback(_ending.discard)
        await asyncio.shield(task)

    async def _revoke_all(self) -> None:
        try:
            async with asyncio.timeout(REVOKE_SECONDS):
                if under_way := self._under_way():  # such a token is issued, whoever waits for it
                    await asyncio.wait(under_way)
                for token in self._live():
                    await self._revoke(token)
                    self._issued.remove(token)
        except TimeoutError:
            left = len(self._issued)
            logger.warning("%s did not revoke %d tokens of a task in time", self.authority.issuer, left)

    async def _revoke(self, token: Token) -> None:
        try:
            await self.authority.revoke(token.value, token.refresh_token)
        except Exception as error:  # whatever it is, it must not hide what the task itself ended with
            issuer, kind = self.authority.issuer, type(error).__name__
            logger.warning("%s did not revoke a token of a task: %s: %s", issuer, kind, error)

    def _live(self) -> list[Token]:
        now = self.authority.clock()
        return [token for token in self._issued if now < token.expires_at]
