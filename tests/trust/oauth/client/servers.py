"""Authorization servers for the client to talk to: the real one, and one that says what a test wants it to say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.authority import BILLING, ISSUER, PLANNER, Authority, Clock, WithPeer
from tests.forge import Forge
from trust.errors import (
    TrustError,
)
from trust.oauth.client import TokenSource

AGENT = "https://billing.fleet.example"


SCOPES = ("agent:execute", "temporal:20min")


CREDENTIALS = Forge().leaf("/planner")


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def source_of(authority: Authority, http: httpx.AsyncClient, agent: str = PLANNER, **changes: Any) -> TokenSource:
    return TokenSource(
        **{
            "issuer": ISSUER,
            "resource": BILLING,
            "scopes": SCOPES,
            "origins": [AGENT],
            "http": http,
            "source": authority.credentials(agent),
            "clock": authority.clock,
            **changes,
        }
    )


class Counting(httpx.AsyncBaseTransport):
    """Counts the requests by path, and can be switched off."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner, self.paths, self.down = inner, list[str](), False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.paths.append(request.url.path)
        if self.down:
            raise httpx.ConnectError("connection refused")
        return await self.inner.handle_async_request(request)

    @property
    def tokens(self) -> int:
        return self.paths.count("/token")


def counted(authority: Authority, agent: str = PLANNER) -> tuple[httpx.AsyncClient, Counting]:
    transport = Counting(httpx.ASGITransport(WithPeer(authority.app, authority.peer(agent))))
    return httpx.AsyncClient(transport=transport), transport


async def settled(source: TokenSource) -> None:
    """Until no fetch is under way."""
    while flights := source._cache._under_way():
        await asyncio.wait(flights)
        await asyncio.sleep(0)


@dataclass
class Fake:
    """An authorization server that answers well, until a test changes what it says."""

    metadata: dict[str, Any] = field(
        default_factory=lambda: {
            "issuer": ISSUER,
            "token_endpoint": f"{ISSUER}/token",
            "revocation_endpoint": f"{ISSUER}/revoke",
            "tls_client_certificate_bound_access_tokens": True,
            "token_endpoint_auth_methods_supported": ["tls_client_auth"],
        }
    )
    token: dict[str, Any] = field(
        default_factory=lambda: {"access_token": "abc.def", "token_type": "bearer", "expires_in": 600}
    )
    metadata_answer: Callable[[], httpx.Response] | None = None
    token_answer: Callable[[], httpx.Response] | None = None
    revoke_answer: Callable[[], httpx.Response] | None = None
    delay: float = 0
    requests: list[httpx.Request] = field(default_factory=list)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        await asyncio.sleep(self.delay)
        if request.url.path.startswith("/.well-known/"):
            return self.metadata_answer() if self.metadata_answer else httpx.Response(200, json=self.metadata)
        if request.url.path == "/revoke":
            return self.revoke_answer() if self.revoke_answer else httpx.Response(200)
        return self.token_answer() if self.token_answer else httpx.Response(200, json=self.token)

    def forms(self, path: str) -> list[dict[str, str]]:
        """What was posted there."""
        return [dict(httpx.QueryParams(r.content.decode())) for r in self.requests if r.url.path == path]

    def source(self, **changes: Any) -> TokenSource:
        return TokenSource(
            **{
                "issuer": ISSUER,
                "resource": BILLING,
                "scopes": SCOPES,
                "origins": [AGENT],
                "http": httpx.AsyncClient(
                    transport=httpx.MockTransport(self), auth=("never", "sent"), follow_redirects=True
                ),
                "source": CREDENTIALS,
                "clock": Clock(),
                **changes,
            }
        )


def answers(status: int = 200, **options: Any) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(status, **options)


JSON = {"content-type": "application/json"}


async def refused(source: TokenSource, expected: type[TrustError]) -> TrustError:
    with pytest.raises(TrustError) as caught:
        await source.token()
    assert type(caught.value) is expected
    assert "abc" not in str(caught.value)
    return caught.value
