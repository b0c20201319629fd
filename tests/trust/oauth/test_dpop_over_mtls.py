"""A proxy that ends TLS between two agents, over real sockets: only a proof shows whose token comes through it."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.authority import BILLING, CLIENTS, PLANNER, Trail
from tests.forge import Forge
from trust.agent import agent_client
from trust.authorize import exactly
from trust.credentials import Credentials
from trust.errors import ResponseNotSigned, TokenResponseRefused
from trust.middleware import Gate
from trust.oauth.client import TokenSource
from trust.oauth.keys import RemoteKeys, SigningKey
from trust.oauth.server import create_app
from trust.oauth.server.clients import ClientRegistry
from trust.oauth.server.store import Store
from trust.oauth.tokens import TokenValidator
from trust.signing.envelope import VerifiedMessage
from trust.signing.http import MessageSigner
from trust.sources import Live
from trust.tls.client import AgentTransport
from trust.tls.server import serving

FORGE = Forge()
AGENTS = {name: FORGE.leaf(f"/{name}") for name in ("planner", "billing", "proxy", "thief", "authority")}


class Proxy:
    """Forwards requests as they are, over its own connection; what it saw last can be sent again."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.to = ""
        self.headers: list[tuple[bytes, bytes]] = []

    async def forward(self, request: Request) -> Response:
        self.headers = list(request.headers.raw)
        answer = await self.again(request.url.path)
        answer.headers.pop("transfer-encoding", None)
        return Response(answer.content, answer.status_code, dict(answer.headers))

    async def again(self, path: str = "/work") -> httpx.Response:
        return await self.http.post(self.to + path, headers=self.headers)


async def work(request: Request) -> Response:
    caller = request.state.caller
    return JSONResponse({"subject": caller.subject, "peer": str(caller.agent_id)})


async def stream(request: Request) -> Response:
    return StreamingResponse(iter([b"data: {}\n\n"]), media_type="text/event-stream")


def test_a_token_of_a_key_through_a_proxy(tmp_path: Path) -> None:
    trail = Trail()

    async def go() -> None:
        async with AsyncExitStack() as stack:

            async def http(agent: Credentials, *to: str) -> httpx.AsyncClient:
                allowed = exactly(*(AGENTS[name].agent_id for name in to))
                return await stack.enter_async_context(
                    httpx.AsyncClient(transport=AgentTransport(agent, FORGE.bundles, allowed))
                )

            async def serve(app: Any, name: str, *callers: str, **options: Any) -> str:
                allowed = exactly(*(AGENTS[caller].agent_id for caller in callers))
                server = await stack.enter_async_context(
                    serving(app, source=AGENTS[name], bundles=FORGE.bundles, authorize=allowed, **options)
                )
                return server.url

            # First, for the issuer has the address in its name.
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            issuer = f"https://127.0.0.1:{listening.getsockname()[1]}"
            store = Store(f"sqlite:///{tmp_path / 'oauth.db'}")
            stack.callback(store.close)
            registry = Live(ClientRegistry(CLIENTS))
            authority = create_app(
                issuer=issuer, clients=registry, store=store, keys=[SigningKey.generate()], audit=trail
            )
            await serve(authority, "authority", "planner", "billing", sockets=[listening])
            keys = RemoteKeys(f"{issuer}/jwks", await http(AGENTS["billing"], "authority"))
            gate = Gate(
                Starlette(routes=[Route("/work", work, methods=["POST"]), Route("/stream", stream, methods=["POST"])]),
                source=AGENTS["billing"],
                bundles=FORGE.bundles,
                authorize=exactly(AGENTS["proxy"].agent_id, AGENTS["thief"].agent_id),
                tokens=TokenValidator(issuer=issuer, audience=BILLING, keys=keys, bindings=["certificate", "dpop"]),
                scope="read:ledger.eu",
                signatures="optional",
                public_paths=(),
                relays={AGENTS["proxy"].agent_id: exactly(PLANNER)},
                audit=trail,
            )
            proxy = Proxy(await http(AGENTS["proxy"], "billing"))
            proxy.to = await serve(gate, "billing", "proxy", "thief")
            forwarding = Starlette(routes=[Route("/{path}", proxy.forward, methods=["POST"])])
            url = await serve(forwarding, "proxy", "planner")

            tokens = {
                bound: TokenSource(
                    issuer=issuer,
                    resource=BILLING,
                    scopes=["read:ledger.eu", "temporal:20min"],
                    http=await http(AGENTS["planner"], "authority"),
                    source=AGENTS["planner"],
                    origins=[url],
                    proof_key=SigningKey.generate() if bound == "key" else None,
                )
                for bound in ("key", "certificate")
            }
            planner = await http(AGENTS["planner"], "proxy")
            for _ in range(2):  # the same token, each time with a new proof
                answer = await planner.post(f"{url}/work?tenant=1", auth=tokens["key"])
                assert answer.json() == {"subject": PLANNER, "peer": str(AGENTS["proxy"].agent_id)}
            assert [e["event"] for e in trail.records].count("token") == 1
            # Each side of a signed call knows the other's certificate only from the message itself.
            seen: list[VerifiedMessage] = []
            signed = {
                chain: await stack.enter_async_context(
                    agent_client(
                        source=AGENTS["planner"],
                        bundles=FORGE.bundles,
                        authorize=exactly(AGENTS["proxy"].agent_id),
                        tokens=tokens["key"],
                        signer=MessageSigner(
                            AGENTS["planner"],
                            audience=BILLING,
                            bundles=FORGE.bundles,
                            chain=chain,
                            received=seen.append,
                        ),
                    )
                )
                for chain in (True, False)
            }
            assert (await signed[True].post(f"{url}/work")).json()["subject"] == PLANNER
            assert (await signed[True].post(f"{url}/stream")).content == b"data: {}\n\n"
            assert ["x5c" in message.header for message in seen] == [True] * 3  # of the stream, the end too
            with pytest.raises(ResponseNotSigned, match=r"got status 401, .* sign with chain=True"):
                await signed[False].post(f"{url}/work")
            assert trail.last["check"] == "signature.certificate"
            assert "chain=True" in trail.last["reason"]
            # Whoever has read it on its way cannot use it again, nor from elsewhere.
            assert (await proxy.again()).json() == {"error": "invalid_dpop_proof"}
            proxy.http = await http(AGENTS["thief"], "billing")
            assert (await planner.post(f"{url}/work", auth=tokens["key"])).status_code == 401
            assert "token.relay" in [e["check"] for e in trail.records]
            # And the other kind of token does not pass: the proxy has another certificate.
            proxy.http = await http(AGENTS["proxy"], "billing")
            assert (await planner.post(f"{url}/work", auth=tokens["certificate"])).status_code == 401
            assert trail.last["check"] == "token.binding"

    asyncio.run(asyncio.wait_for(go(), 60))


def test_a_server_that_knows_no_proofs_is_not_believed() -> None:
    """Its token would be bound to nothing that the client can show."""
    answer = {"access_token": "t", "token_type": "Bearer", "expires_in": 60, "scope": "agent:execute"}

    async def go() -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
        async with httpx.AsyncClient(transport=transport) as http:
            source = TokenSource(
                issuer="https://auth.fleet.example",
                token_endpoint="https://auth.fleet.example/token",
                resource=BILLING,
                scopes=["agent:execute"],
                http=http,
                source=AGENTS["planner"],
                origins=["https://billing.fleet.example"],
                proof_key=SigningKey.generate(),
            )
            with pytest.raises(TokenResponseRefused, match="token_type: got Bearer, expected DPoP"):
                await source.token()

    asyncio.run(go())
