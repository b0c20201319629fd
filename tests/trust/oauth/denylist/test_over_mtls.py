"""Revocation at a distance, over real sockets, mutual TLS, a real Redis server and a second process.

The planner calls billing, and billing calls the ledger with a token that it got in exchange for the planner's. Billing
follows the authorization server's list, and the ledger the one in Redis. Their clocks can be moved on, so that nobody
has to wait for the bounds.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse

from tests.authority import BILLING, CLIENTS, LEDGER, PLANNER, Trail, ask
from tests.forge import Forge
from tests.redis_server import RedisServer
from trust.authorize import exactly, members_of
from trust.clock import wall_clock
from trust.credentials import Credentials
from trust.middleware import Gate
from trust.oauth.client import TokenSource
from trust.oauth.denylist.copies import RedisDenylist, RemoteDenylist, SignedDenylist
from trust.oauth.denylist.document import LIST_SECONDS
from trust.oauth.keys import RemoteKeys, SigningKey
from trust.oauth.server import create_app, revoked_list
from trust.oauth.server.clients import ClientRegistry
from trust.oauth.server.revoked_list import RevokedList, RevokedPublisher
from trust.oauth.server.signing_keys import KeyRing
from trust.oauth.server.state import DATABASE_FILE, open_store
from trust.oauth.tokens import TokenValidator
from trust.tls.client import AgentTransport
from trust.tls.server import serving

AUTHORITY = "spiffe://fleet.example/authority"
PATIENCE = 20.0  # seconds, for what happens in another thread or process

FORGE = Forge()
KEY = SigningKey.generate()
CERTIFICATES = {name: FORGE.leaf(name) for name in (AUTHORITY, PLANNER, BILLING, LEDGER)}


def http(source: Credentials, to: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=AgentTransport(source, FORGE.bundles, exactly(to)), timeout=PATIENCE)


class Server:
    """The authorization server, with its database in a folder; it writes its list to Redis."""

    def __init__(self, folder: Path, redis: str) -> None:
        self.folder, self.redis = folder, redis
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.issuer = f"https://localhost:{self.listener.getsockname()[1]}"
        self.stack = AsyncExitStack()

    async def __aenter__(self) -> Server:
        store = open_store(self.folder, None, create=True)
        self.stack.callback(store.close)
        app = create_app(
            issuer=self.issuer, clients=ClientRegistry(CLIENTS), store=store, keys=[KEY], audit=Trail()
        )  # fmt: skip
        revoked = RevokedList(issuer=self.issuer, store=store, keys=KeyRing.of([KEY]))
        self.stack.enter_context(RevokedPublisher(revoked, self.redis))
        await self.stack.enter_async_context(
            serving(
                app,
                source=CERTIFICATES[AUTHORITY],
                bundles=FORGE.bundles,
                authorize=members_of("fleet.example"),
                sockets=[self.listener],
            )
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        await self.stack.aclose()

    async def tokens(self) -> tuple[str, str]:
        """The planner's for billing, and what billing gets for it to call the ledger."""
        async with http(CERTIFICATES[PLANNER], AUTHORITY) as planner:
            answer = await planner.post(f"{self.issuer}/token", data=ask())
            first: str = answer.json()["access_token"]
        async with http(CERTIFICATES[BILLING], AUTHORITY) as billing:
            source = TokenSource(
                issuer=self.issuer,
                http=billing,
                source=CERTIFICATES[BILLING],
                resource=LEDGER,
                scopes=["read:rates"],
                origins=["https://ledger.example"],
            )
            second = await source.exchange(first, resource=LEDGER, scopes=["read:ledger.eu", "temporal:20min"])
        return first, second.value

    async def revoke(self, token: str) -> None:
        """As its holder does it."""
        async with http(CERTIFICATES[PLANNER], AUTHORITY) as planner:
            answer = await planner.post(f"{self.issuer}/revoke", data={"client_id": PLANNER, "token": token})
        assert answer.status_code == 200

    async def command(self, *arguments: str) -> str:
        """`a2a-trust token`, in a process of its own."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "trust.cli", "token", *arguments, "--state", str(self.folder),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert process.returncode == 0
        return out.decode()


class Agent:
    """An agent behind a gate, which can be started again, and whose clock can be moved on."""

    def __init__(self, name: str, caller: str, scope: str) -> None:
        self.name, self.caller, self.scope = name, caller, scope
        self.ahead = timedelta(0)

    def clock(self) -> datetime:
        return wall_clock() + self.ahead

    @asynccontextmanager
    async def running(self, issuer: str, denylist: Callable[..., SignedDenylist]) -> AsyncIterator[None]:
        async with http(CERTIFICATES[self.name], AUTHORITY) as fetching:
            keys = RemoteKeys(f"{issuer}/jwks", fetching)
            denied = denylist(fetching, keys, self.clock)
            tokens = TokenValidator(issuer=issuer, audience=self.name, keys=keys, denylist=denied)
            gate = Gate(
                PlainTextResponse("done"),
                source=CERTIFICATES[self.name],
                bundles=FORGE.bundles,
                authorize=exactly(self.caller),
                tokens=tokens,
                scope=self.scope,
                signatures="optional",
                public_paths=(),
                audit=Trail(),
                clock=self.clock,
            )
            rule = exactly(self.caller)
            source = CERTIFICATES[self.name]
            async with serving(gate, source=source, bundles=FORGE.bundles, authorize=rule, port=0) as served:
                self.url = served.url
                async with http(CERTIFICATES[self.caller], self.name) as self.http:
                    yield
            if isinstance(denied, RedisDenylist):
                denied.close()

    async def called(self, token: str) -> tuple[int, str]:
        """Status and error of an answer to the caller, who presents the token."""
        answer = await self.http.get(self.url, headers={"authorization": f"Bearer {token}"})
        return answer.status_code, "" if answer.status_code == 200 else answer.json()["error"]

    async def refuses(self, token: str) -> None:
        until = time.monotonic() + PATIENCE
        while await self.called(token) != (401, "invalid_token"):
            assert time.monotonic() < until
            await asyncio.sleep(0.05)


def test_a_revoked_token_is_refused_at_every_agent_and_none_is_taken_where_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revoked_list, "ROUND_SECONDS", 0.05)
    billing = Agent(BILLING, PLANNER, "agent:execute")
    ledger = Agent(LEDGER, BILLING, "read:ledger.eu")
    good, revoked, away = (200, ""), (401, "invalid_token"), (503, "temporarily_unavailable")

    async def work(redis: RedisServer, server: Server) -> None:
        @asynccontextmanager
        async def agents() -> AsyncIterator[None]:
            async with (
                billing.running(server.issuer, lambda h, k, c: RemoteDenylist(server.issuer, h, keys=k, clock=c)),
                ledger.running(
                    server.issuer, lambda _, k, c: RedisDenylist(redis.url, issuer=server.issuer, keys=k, clock=c)
                ),
            ):
                yield

        first, second = await server.tokens()
        async with agents():
            assert (await billing.called(first), await ledger.called(second)) == (good, good)
            await server.revoke(first)
            billing.ahead += timedelta(seconds=RemoteDenylist.REFRESH_SECONDS)
            assert await billing.called(first) == revoked
            await ledger.refuses(second)  # which nobody revoked: it came from the one that was
        billing.ahead = timedelta(0)
        async with agents():  # started again, they know it from their first request on
            assert (await billing.called(first), await ledger.called(second)) == (revoked, revoked)

            first, second = await server.tokens()
            assert (await billing.called(first), await ledger.called(second)) == (good, good)
            assert await server.command("revoke", "--client", PLANNER) == "Revoked 2 tokens.\n"
            billing.ahead += timedelta(seconds=RemoteDenylist.REFRESH_SECONDS)
            assert await billing.called(first) == revoked
            await ledger.refuses(second)

            first, second = await server.tokens()
            assert (await billing.called(first), await ledger.called(second)) == (good, good)
            await server.stop()
            billing.ahead += timedelta(seconds=RemoteDenylist.REFRESH_SECONDS)
            ledger.ahead += timedelta(seconds=RedisDenylist.REFRESH_SECONDS)
            assert (await billing.called(first), await ledger.called(second)) == (good, good)
            for agent in (billing, ledger):
                agent.ahead += timedelta(seconds=LIST_SECONDS)
            assert (await billing.called(first), await ledger.called(second)) == (away, away)

    async def inside(redis: RedisServer) -> None:
        async with Server(tmp_path, redis.url) as server:
            await work(redis, server)

    with RedisServer(tmp_path) as redis:
        asyncio.run(inside(redis))
    assert (tmp_path / DATABASE_FILE).exists()
