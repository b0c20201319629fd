"""Another application behind the CA's listener: its own paths, and nobody whose certificate is revoked."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pki.service.beside import Beside
from tests.authority import WithPeer
from tests.forge import NOW, Forge
from tests.pki.service.parts import Trail
from trust.errors import ConfigurationError
from trust.identity import peer_of
from trust.peers import PeerVerifier
from trust.sources import Live

FORGE = Forge()


async def who(request: Request) -> PlainTextResponse:
    peer = peer_of(request.scope)
    return PlainTextResponse(f"{request.url.path} {peer.agent_id if peer else 'nobody'}")


async def others(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("others")(scope, receive, send)


def app(*paths: str) -> Starlette:
    return Starlette(routes=[Route(path, who) for path in paths])


def asked(beside: Beside, path: str, agent: Any = None) -> str:
    async def work() -> str:
        peer = None
        if agent is not None:
            peer = PeerVerifier(FORGE.bundles).verify(agent.chain_der, now=NOW, usage="client")
        transport = httpx.ASGITransport(WithPeer(beside, peer))
        async with httpx.AsyncClient(transport=transport, base_url="https://ca") as http:
            return (await http.get(path)).text

    return asyncio.run(work())


def test_each_has_its_paths_and_a_revoked_agent_is_nobody() -> None:
    trail, lists = Trail(), Live(FORGE.crls())
    beside = Beside(app("/token", "/jwks"), others, bundles=FORGE.bundles, crls=lists, audit=trail, clock=lambda: NOW)
    agent = FORGE.leaf("/planner")
    assert asked(beside, "/token", agent) == "/token spiffe://fleet.example/planner"
    assert asked(beside, "/jwks") == "/jwks nobody"
    assert [asked(beside, path, agent) for path in ("/", "/token/", "/bundle")] == ["others"] * 3
    assert trail.records == []
    lists.replace(FORGE.crls(agent))
    assert asked(beside, "/token", agent) == "/token nobody"
    assert asked(beside, "/bundle", agent) == "others"  # EST decides by itself
    (record,) = trail.records
    assert (record["decision"], record["check"], record["peer"]) == ("deny", "peer.revoked", str(agent.agent_id))


def test_what_is_no_request_is_the_services() -> None:
    beside = Beside(app("/token"), others, bundles=FORGE.bundles, crls=FORGE.crls(), audit=Trail(), clock=lambda: NOW)
    seen = []

    async def heard(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    beside._others = heard
    asyncio.run(beside({"type": "lifespan"}, None, None))  # type: ignore[arg-type]  # neither is called
    assert seen == ["lifespan"]


@pytest.mark.parametrize("path", ["/.well-known/est/simpleenroll", "/crl/x", "/ca/x"])
def test_a_path_of_the_service_is_not_taken(path: str) -> None:
    with pytest.raises(ConfigurationError, match="paths of the application beside the CA"):
        Beside(app(path), others, bundles=FORGE.bundles, crls=FORGE.crls(), audit=Trail(), clock=lambda: NOW)
