"""A client that configures itself: by the signed card of a real agent, and by its gate's metadata (RFC 9728)."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.authority import BILLING, CLIENTS, PLANNER, Trail
from tests.forge import Forge
from trust.agent import agent_client, serving
from trust.authorize import exactly, members_of
from trust.errors import CardRefused, MetadataRefused, OriginRefused, TokenRequestRefused
from trust.identity import AgentID
from trust.middleware import Gate
from trust.oauth.client import TokenSource
from trust.oauth.keys import RemoteKeys, SigningKey
from trust.oauth.server import create_app
from trust.oauth.server.clients import ClientRegistry
from trust.oauth.server.store import Store
from trust.oauth.tokens import TokenValidator
from trust.peers import PeerVerifier
from trust.signing.cards import VerifiedCard, sign_card, verify_card

FORGE = Forge()
AUTHORITY = "spiffe://fleet.example/authority"
US = FORGE.leaf(PLANNER)
CARD = "/.well-known/agent-card.json"


async def whoami(request: Request) -> Response:
    return PlainTextResponse(f"{request.user.display_name} {' '.join(request.auth.scopes)}")


async def start(stack: AsyncExitStack, folder: Path) -> tuple[str, str, Any]:
    """The authorization server, and billing with a card: their origins, and the planner's client for both."""
    fleet: dict[str, Any] = {"bundles": FORGE.bundles}
    members, billing = members_of("fleet.example"), FORGE.leaf(BILLING)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    issuer, agent = (f"https://localhost:{s.getsockname()[1]}" for s in sockets)
    store = Store(f"sqlite:///{folder / 'oauth.db'}")
    stack.callback(store.close)
    keys = [SigningKey.generate()]
    server = create_app(issuer=issuer, clients=ClientRegistry(CLIENTS), store=store, keys=keys, audit=Trail())
    enter: Any = stack.enter_async_context
    await enter(serving(server, source=FORGE.leaf(AUTHORITY), authorize=members, sockets=sockets[:1], **fleet))
    jwks = await enter(agent_client(source=billing, authorize=exactly(AUTHORITY), **fleet))
    card = b""
    gate = Gate(
        Starlette(
            routes=[Route("/whoami", whoami), Route(CARD, lambda _: Response(card, media_type="application/json"))]
        ),
        source=billing,
        authorize=exactly(PLANNER),
        tokens=TokenValidator(issuer=issuer, audience=BILLING, keys=RemoteKeys(f"{issuer}/jwks", jwks)),
        scope="read:ledger.eu",
        signatures="optional",
        public_paths=(CARD,),
        audit=Trail(),
        **fleet,
    )
    members_of_card = {
        "name": "billing",
        "description": "bills",
        "version": "1",
        "supportedInterfaces": [{"url": f"{agent}/a2a", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}],
        "defaultInputModes": ["text/plain"],
        "defaultOutputModes": ["text/plain"],
        "skills": [{"id": "bill", "name": "bill", "description": "bills", "tags": ["bill"]}],
    }
    card = sign_card(gate.secured(members_of_card), credentials=billing).text
    await enter(serving(gate, source=billing, authorize=members, sockets=sockets[1:], **fleet))
    authorize = {issuer: exactly(AUTHORITY), agent: exactly(BILLING)}
    http = await enter(agent_client(source=US, authorize=authorize, **fleet))
    return issuer, agent, http


async def card_of(http: Any, agent: str) -> VerifiedCard:
    answer = await http.get(agent + CARD)
    return verify_card(
        answer.content, keys=PeerVerifier(FORGE.bundles), agent=AgentID.parse(BILLING), now=datetime.now(UTC)
    )


def test_by_the_card_of_an_agent(tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            issuer, agent, http = await start(stack, tmp_path)
            verified = await card_of(http, agent)
            policy: dict[str, Any] = {"resource": BILLING, "http": http, "source": US, "signatures": False}
            ours: dict[str, Any] = {
                "issuers": [issuer],
                "scopes": ["read:ledger.*", "temporal:20min"],
                "origins": [agent],
            }
            tokens = TokenSource.from_card(verified, **policy, **ours)
            answer = await http.get(f"{agent}/whoami", auth=tokens)
            assert (answer.status_code, answer.text) == (200, f"{PLANNER} read:ledger.eu temporal:20min")
            for narrower in (
                {"issuers": ["https://auth.fleet.example"]},
                {"scopes": ["read:ledger.us"]},
                {"origins": ["https://billing.fleet.example"]},
                {"signatures": True},
            ):
                with pytest.raises(CardRefused):
                    TokenSource.from_card(verified, **{**policy, **ours, **narrower})
            with pytest.raises(OriginRefused):
                await http.get(f"{issuer}/whoami", auth=tokens)
            # One that the card has needs what the card says; one that it has not is misspelled.
            one = TokenSource.from_card(verified, **policy, **ours, skill="bill")
            assert (await one.token()).scopes == ("read:ledger.eu", "temporal:20min")
            with pytest.raises(CardRefused, match="card has no skill: got zzz, expected bill"):
                TokenSource.from_card(verified, **policy, **ours, skill="zzz")
            none = replace(verified, card={n: v for n, v in verified.card.items() if n != "skills"})
            with pytest.raises(CardRefused, match="expected a card with skills"):
                TokenSource.from_card(none, **policy, **ours, skill="bill")

    asyncio.run(main())


def test_by_the_metadata_of_a_gate(tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            issuer, agent, http = await start(stack, tmp_path)
            policy: dict[str, Any] = {"scopes": ["read:ledger.eu", "temporal:20min"], "http": http, "source": US}
            tokens = await TokenSource.from_resource(agent, resource=BILLING, issuers=[issuer], **policy)
            answer = await http.get(f"{agent}/whoami", auth=tokens)
            assert (answer.status_code, answer.text) == (200, f"{PLANNER} read:ledger.eu temporal:20min")
            for expected, changes in (
                (MetadataRefused, {"issuers": ["https://auth.fleet.example"]}),
                (MetadataRefused, {"resource": "spiffe://fleet.example/ledger"}),
                (MetadataRefused, {"resource": None}),
            ):
                with pytest.raises(expected):
                    await TokenSource.from_resource(
                        agent, **{**policy, "issuers": [issuer], "resource": BILLING, **changes}
                    )
            wide = {**policy, "scopes": ["write:ledger.eu"]}
            tokens = await TokenSource.from_resource(agent, resource=BILLING, issuers=[issuer], **wide)
            with pytest.raises(TokenRequestRefused):
                await tokens.token()

    asyncio.run(main())
