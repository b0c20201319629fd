"""The authorization server and its client over real sockets and real mutual TLS: nothing is put in place."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.authority import BILLING, CLIENTS, LEDGER, PLANNER, STRANGER, Trail
from tests.forge import Forge
from trust.authorize import exactly, members_of
from trust.credentials import Credentials, CredentialSource
from trust.errors import PeerNotAllowed, TokenBoundElsewhere, TokenRequestRefused
from trust.identity import PeerIdentity
from trust.oauth.client import ClientSecret, TokenSource
from trust.oauth.keys import RemoteKeys, SigningKey
from trust.oauth.server import create_app
from trust.oauth.server.clients import Client, ClientRegistry, SecretDigest, digest_of, new_secret
from trust.oauth.server.store import Store
from trust.oauth.tokens import TokenValidator
from trust.peers import PeerVerifier
from trust.sources import Live
from trust.tls.client import AgentTransport
from trust.tls.server import serving

AUTHORITY = "spiffe://fleet.example/authority"
FORGE = Forge()
SCOPES = ("read:ledger.eu", "delegate:billing", "temporal:20min")


class World:
    def __init__(self, issuer: str, trail: Trail, stack: AsyncExitStack) -> None:
        self.issuer, self.trail, self.stack = issuer, trail, stack

    def http(self, source: CredentialSource, authorize: str = AUTHORITY) -> httpx.AsyncClient:
        client = httpx.AsyncClient(transport=AgentTransport(source, FORGE.bundles, exactly(authorize)))
        self.stack.push_async_callback(client.aclose)
        return client

    def tokens(self, source: CredentialSource, **changes: object) -> TokenSource:
        http = changes.pop("http", None) or self.http(source)
        wanted: dict[str, object] = {"resource": BILLING, "scopes": SCOPES, "origins": ["https://billing.example"]}
        return TokenSource(issuer=self.issuer, http=http, source=source, **{**wanted, **changes})  # type: ignore[arg-type]

    async def validate(self, token: str, audience: str, holder: Credentials) -> tuple[str, tuple[str, ...]]:
        """As a resource of the fleet does it, with keys that it fetched over mutual TLS."""
        now = datetime.now(UTC)
        keys = RemoteKeys(f"{self.issuer}/jwks", self.http(FORGE.leaf("/resource")))
        validator = TokenValidator(issuer=self.issuer, audience=audience, keys=keys)
        await validator.prepare(token, now=now)
        access = validator.validate(token, peer=peer_of(holder), now=now)
        return access.subject, access.actors


def peer_of(credentials: Credentials) -> PeerIdentity:
    return PeerVerifier(FORGE.bundles).verify(credentials.chain_der, now=datetime.now(UTC), usage="client")


@asynccontextmanager
async def world(folder: Path, clients: tuple[Client, ...] = CLIENTS) -> AsyncIterator[World]:
    listener = socket.create_server(("127.0.0.1", 0))
    issuer = f"https://localhost:{listener.getsockname()[1]}"
    trail, store = Trail(), Store(f"sqlite:///{folder / 'oauth.db'}")
    app = create_app(
        issuer=issuer, clients=ClientRegistry(clients), store=store, keys=[SigningKey.generate()], audit=trail
    )
    async with AsyncExitStack() as stack:
        stack.callback(store.close)
        await stack.enter_async_context(
            serving(
                app,
                source=FORGE.leaf(AUTHORITY),
                bundles=FORGE.bundles,
                authorize=members_of("fleet.example"),
                sockets=[listener],
            )
        )
        yield World(issuer, trail, stack)


def test_from_handshake_to_the_second_hop(tmp_path: Path) -> None:
    async def work() -> None:
        planner, billing = FORGE.leaf(PLANNER), FORGE.leaf(BILLING)
        async with world(tmp_path) as here:
            first = await here.tokens(planner).token()
            assert await here.validate(first.value, BILLING, planner) == (PLANNER, ())
            with pytest.raises(TokenBoundElsewhere):
                await here.validate(first.value, BILLING, billing)
            second = await here.tokens(billing, resource=LEDGER, scopes=["read:rates"]).exchange(
                first.value, resource=LEDGER, scopes=["read:ledger.eu", "temporal:20min"]
            )
            assert await here.validate(second.value, LEDGER, billing) == (PLANNER, (BILLING,))
            assert [(r["decision"], r["peer"]) for r in here.trail.records] == [("allow", PLANNER), ("allow", BILLING)]

    asyncio.run(work())


def test_the_tokens_of_a_task_are_worth_nothing_when_it_has_ended(tmp_path: Path) -> None:
    async def work() -> None:
        planner, billing = FORGE.leaf(PLANNER), FORGE.leaf(BILLING)
        async with world(tmp_path) as here:
            own = here.tokens(billing, resource=LEDGER, scopes=["read:rates"])
            wanted: dict[str, Any] = {"resource": LEDGER, "scopes": ["read:ledger.eu", "temporal:20min"]}
            async with here.tokens(planner).for_task() as auth:
                first = (await auth.token()).value
                await own.exchange(first, **wanted)
            with pytest.raises(TokenRequestRefused) as caught:
                await here.tokens(billing, resource=LEDGER, scopes=["read:rates"]).exchange(first, **wanted)
            assert caught.value.error == "invalid_request"

    asyncio.run(work())


def test_a_secret_is_a_second_factor_and_a_new_one_is_used_at_once(tmp_path: Path) -> None:
    old, new = new_secret(), new_secret()
    planner = replace(CLIENTS[0], secrets=(SecretDigest(digest=digest_of(new)),))
    file = tmp_path / "secret"
    file.touch(mode=0o600)

    async def work() -> None:
        async with world(tmp_path, (planner, *CLIENTS[1:])) as here:
            mine = FORGE.leaf(PLANNER)
            tokens = here.tokens(mine, authentication=ClientSecret.from_file(file))
            for source in (tokens, here.tokens(mine)):  # with a wrong one, and without one
                file.write_text(old)
                with pytest.raises(TokenRequestRefused) as caught:
                    await source.token()
                assert caught.value.error == "invalid_client"
            file.write_text(f"{new}\n")
            async with tokens.for_task() as auth:
                assert await here.validate((await auth.token()).value, BILLING, mine) == (PLANNER, ())
            with pytest.raises(TokenRequestRefused):  # and it proves nothing without the certificate
                await here.tokens(
                    FORGE.leaf(BILLING), client_id=PLANNER, authentication=ClientSecret(lambda: new)
                ).token()

    asyncio.run(work())


def test_who_one_is_comes_from_the_handshake_alone(tmp_path: Path) -> None:
    async def work() -> None:
        async with world(tmp_path) as here:
            for agent in (STRANGER, BILLING):
                with pytest.raises(TokenRequestRefused) as caught:
                    await here.tokens(FORGE.leaf(agent), client_id=PLANNER).token()
                assert caught.value.error == "invalid_client"
                assert here.trail.last["peer"] == agent

    asyncio.run(work())


def test_a_subject_token_is_not_told_to_another_server(tmp_path: Path) -> None:
    """A host that answers at the issuer's address with another identity never sees a request."""

    async def work() -> None:
        billing = FORGE.leaf(BILLING)
        async with world(tmp_path) as here:
            http = here.http(billing, authorize="spiffe://fleet.example/the-real-authority")
            with pytest.raises(PeerNotAllowed):
                await here.tokens(billing, http=http).exchange("secret", resource=LEDGER, scopes=["read:ledger.eu"])
            assert here.trail.records == []

    asyncio.run(work())


def test_a_renewed_certificate_gets_a_token_that_is_bound_to_it(tmp_path: Path) -> None:
    async def work() -> None:
        old, new = FORGE.leaf(PLANNER), FORGE.leaf(PLANNER)
        live = Live(old)
        async with world(tmp_path) as here:
            tokens = here.tokens(live)
            first = await tokens.token()
            live.replace(new)
            second = await tokens.token()
            await here.validate(first.value, BILLING, old)
            await here.validate(second.value, BILLING, new)

    asyncio.run(work())
