"""A whole agent whose files are replaced while it is called: channel and tokens follow, and no call fails."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.authority import BILLING, CLIENTS, PLANNER, Trail
from tests.forge import Forge
from trust import files
from trust.agent import agent_client, serving
from trust.authorize import exactly, members_of
from trust.files import WatchedCredentials
from trust.middleware import Gate
from trust.oauth.client import TokenSource
from trust.oauth.keys import RemoteKeys, SigningKey
from trust.oauth.server import create_app
from trust.oauth.server.clients import ClientRegistry
from trust.oauth.server.store import Store
from trust.oauth.tokens import TokenValidator

AUTHORITY = "spiffe://fleet.example/authority"
FORGE = Forge()


def test_a_whole_agent_follows_its_files_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(files, "SETTLE_SECONDS", 0.02)
    folders = {agent: tmp_path / agent.rpartition("/")[2] for agent in (PLANNER, BILLING, AUTHORITY)}
    peers: set[str] = set()

    def renew() -> None:
        for agent, folder in folders.items():
            FORGE.leaf(agent).save(folder)

    async def whoami(request: Request) -> PlainTextResponse:
        caller = request.state.caller
        peers.add(caller.peer.thumbprint)
        return PlainTextResponse(caller.subject)

    async def main() -> None:
        renew()
        source = {agent: WatchedCredentials(folder) for agent, folder in folders.items()}
        fleet: dict[str, Any] = {"bundles": FORGE.bundles}
        async with AsyncExitStack() as stack:
            listener = socket.create_server(("127.0.0.1", 0))
            issuer = f"https://localhost:{listener.getsockname()[1]}"
            store = Store(f"sqlite:///{tmp_path / 'oauth.db'}")
            stack.callback(store.close)
            authority = create_app(
                issuer=issuer, clients=ClientRegistry(CLIENTS), store=store, keys=[SigningKey.generate()], audit=Trail()
            )
            members = members_of("fleet.example")
            await stack.enter_async_context(
                serving(authority, source=source[AUTHORITY], authorize=members, sockets=[listener], **fleet)
            )

            async def http(agent: str) -> Any:
                to_authority = agent_client(source=source[agent], authorize=exactly(AUTHORITY), **fleet)
                return await stack.enter_async_context(to_authority)

            keys = RemoteKeys(f"{issuer}/jwks", await http(BILLING))
            gate = Gate(
                Starlette(routes=[Route("/whoami", whoami, methods=["POST"])]),
                source=source[BILLING],
                authorize=exactly(PLANNER),
                tokens=TokenValidator(issuer=issuer, audience=BILLING, keys=keys),
                scope="read:ledger.eu",
                signatures="optional",
                public_paths=(),
                audit=Trail(),
                **fleet,
            )
            server = await stack.enter_async_context(
                serving(gate, source=source[BILLING], authorize=exactly(PLANNER), **fleet)
            )
            tokens = TokenSource(
                issuer=issuer,
                http=await http(PLANNER),
                source=source[PLANNER],
                resource=BILLING,
                scopes=["read:ledger.eu", "temporal:20min"],
                origins=[server.url],
            )
            client = await stack.enter_async_context(
                agent_client(source=source[PLANNER], authorize=exactly(BILLING), tokens=tokens, **fleet)
            )
            answered, done = 0, False

            async def call_on() -> None:
                nonlocal answered
                while not done:
                    response = await client.post(server.url + "/whoami", content=b"who am I?")
                    assert (response.status_code, response.text) == (200, PLANNER)
                    answered += 1

            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(call_on())
                for number in range(7):
                    if number:
                        renew()
                    async with asyncio.timeout(20):
                        while len(peers) <= number:  # until the client's new certificate is in use
                            await asyncio.sleep(0.02)
                done = True
            assert answered > 10

    asyncio.run(main())
