"""An issuer's JWKS endpoint in the test's own process, at any time that we like."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from trust.errors import TokenKeyUnknown
from trust.oauth.keys import RemoteKeys, SigningKey, public_jwks

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
ISSUER = "https://auth.example/tenant"
URL = "https://auth.example/jwks"

Answer = Callable[[httpx.Request], httpx.Response | Exception]


class Issuer:
    """An issuer's JWKS endpoint, reached through httpx in this process; it counts and notes what it is asked."""

    def __init__(self, *keys: SigningKey) -> None:
        self.keys = keys
        self.requests: list[httpx.Request] = []
        self.answer: Answer = lambda _: httpx.Response(200, json=public_jwks(self.keys))
        self.gate: asyncio.Event | None = None

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.gate:
            await self.gate.wait()
        answer = self.answer(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self), **options)

    @property
    def fetches(self) -> int:
        return len(self.requests)


OLD, NEW, NEVER = SigningKey.generate(), SigningKey.generate(), SigningKey.generate()


async def beside() -> None:
    """Until everything that goes on beside has ended."""
    async with asyncio.timeout(20):
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))


def finds(keys: RemoteKeys, key: SigningKey, now: datetime) -> bool:
    """Whether the set has the key; KeysUnavailable where there is no set."""
    try:
        return keys.find(key.kid, key.alg, now=now) == key.private_key.public_key()
    except TokenKeyUnknown:
        return False
