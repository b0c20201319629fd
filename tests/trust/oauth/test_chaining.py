"""Identity chaining over real sockets: two trust domains with federated bundles, an authorization server in each.

    planner (fleet) -> billing (fleet) -> vault (partner)

The planner calls billing; billing, on its behalf, calls the vault of the other domain. Every hop is mutual TLS, every
agent has a gate that demands `invoke:<itself>`, and the servers fetch each other's keys.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.authority import Trail
from tests.forge import Forge
from trust.authorize import exactly
from trust.bundles import RevocationLists, TrustBundles
from trust.credentials import Credentials
from trust.errors import (
    AuthorizationServerUnavailable,
    ConfigurationError,
    DestinationRefused,
    OriginRefused,
    PeerNotAllowed,
    TokenRequestRefused,
    TokenResponseRefused,
)
from trust.identity import AgentID, Caller
from trust.middleware import Gate
from trust.oauth.client import BearerAuth, ChainedTokens, TokenSource
from trust.oauth.keys import RemoteKeys
from trust.oauth.scopes import invoke_scope
from trust.oauth.server.state import authorization_server, open_store
from trust.oauth.server.store import Store
from trust.oauth.tokens import TokenValidator
from trust.tls.client import AgentTransport, fetch_client
from trust.tls.server import serving

FLEET, PARTNER = Forge("fleet.example"), Forge("partner.example")
BUNDLES = TrustBundles.of(FLEET.bundle, PARTNER.bundle)
HOME, PLANNER, BILLING = (f"spiffe://fleet.example/{name}" for name in ("authority", "planner", "billing"))
AWAY, VAULT = (f"spiffe://partner.example/{name}" for name in ("authority", "vault"))
EVERYBODY = (HOME, PLANNER, BILLING, AWAY, VAULT)
SCOPE = ("read:ledger.eu", "invoke:vault", "temporal:20min")

HOME_TOML = f"""
[[client]]
agent_id = "{PLANNER}"
scopes = ["read:ledger.*", "write:ledger.*", "invoke:*", "delegate:billing", "temporal:20min"]
resources = ["{BILLING}"]

[[client]]
agent_id = "{BILLING}"
exchange_scopes = ["read:ledger.*", "write:ledger.*", "invoke:*"]
assertion_audiences = ["AWAY_ISSUER"]
resources = []
"""
AWAY_TOML = f"""
[[client]]
agent_id = "{BILLING}"
assertion_scopes = ["read:ledger.*", "write:ledger.*", "invoke:vault"]
resources = ["{VAULT}"]

[[partner]]
issuer = "HOME_ISSUER"
jwks_uri = "HOME_ISSUER/jwks"
agent_id = "{HOME}"
trust_domains = ["fleet.example"]
scopes = ["read:ledger.*", "invoke:vault"]
"""


class World:
    """Five agents on five sockets."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.certificates: dict[str, Credentials] = {
            agent: (FLEET if "fleet" in agent else PARTNER).leaf(agent) for agent in EVERYBODY
        }
        self.trails = {HOME: Trail(), AWAY: Trail()}
        self.stores: dict[str, Store] = {}
        self.listeners = {agent: socket.create_server(("127.0.0.1", 0)) for agent in EVERYBODY}
        self.url = {a: f"https://localhost:{listener.getsockname()[1]}" for a, listener in self.listeners.items()}
        for listener in self.listeners.values():
            stack.callback(listener.close)

    def http(self, agent: str, server: str) -> httpx.AsyncClient:
        transport = AgentTransport(self.certificates[agent], BUNDLES, exactly(server))
        client = httpx.AsyncClient(transport=transport, base_url=self.url[server])
        self.stack.push_async_callback(client.aclose)
        return client

    async def serve(self, agent: str, app: ASGIApp) -> None:
        await self.stack.enter_async_context(
            serving(
                app,
                source=self.certificates[agent],
                bundles=BUNDLES,
                authorize=exactly(*EVERYBODY),
                sockets=[self.listeners[agent]],
            )
        )

    async def authority(self, agent: str, toml: str) -> None:
        path = self.folder / f"{agent.rpartition('/')[0].rpartition('/')[2]}.toml"
        path.write_text(toml.replace("HOME_ISSUER", self.url[HOME]).replace("AWAY_ISSUER", self.url[AWAY]))
        ours, trail, folder = self.certificates[agent], self.trails[agent], path.with_suffix("")

        def http(url: str, server: AgentID | None) -> httpx.AsyncClient:
            client = fetch_client(url, server, source=ours, bundles=BUNDLES, crls=RevocationLists())
            self.stack.push_async_callback(client.aclose)
            return client

        app = authorization_server(
            clients=path, issuer=self.url[agent], folder=folder, url=None, password="secret", audit=trail, http=http
        )
        await self.serve(agent, self.stack.enter_context(app))
        store = self.stores[agent] = open_store(folder, None, create=False)
        self.stack.callback(store.close)

    def gated(self, agent: str, issuer: str, app: ASGIApp) -> Gate:
        validator = TokenValidator(
            issuer=self.url[issuer],
            audience=agent,
            keys=RemoteKeys(f"{self.url[issuer]}/jwks", self.http(agent, issuer)),
        )
        return Gate(
            app,
            source=self.certificates[agent],
            bundles=BUNDLES,
            authorize=exactly(*EVERYBODY),
            tokens=validator,
            scope=invoke_scope(AgentID.parse(agent)),
            signatures="optional",
            public_paths=(),
        )

    def tokens(self, agent: str, scopes: tuple[str, ...], resource: str = BILLING) -> TokenSource:
        return TokenSource(
            issuer=self.url[HOME],
            resource=resource,
            scopes=scopes,
            origins=[self.url[resource]],
            http=self.http(agent, HOME),
            source=self.certificates[agent],
        )

    def chained(self, **changes: Any) -> ChainedTokens:
        wanted: dict[str, Any] = {
            "home": self.tokens(BILLING, ("read:ledger.eu",)),
            "issuer": self.url[AWAY],
            "http": self.http(BILLING, AWAY),
            "source": self.certificates[BILLING],
        }
        return ChainedTokens(**{**wanted, **changes})


def says(caller: Caller) -> dict[str, Any]:
    return {"peer": str(caller.agent_id), "subject": caller.subject, "actors": list(caller.actors)}


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        here = World(folder, stack)
        await here.authority(HOME, HOME_TOML)
        await here.authority(AWAY, AWAY_TOML)
        chained, to_vault = here.chained(), here.http(BILLING, VAULT)

        async def vault(request: Request) -> JSONResponse:
            return JSONResponse(says(request.state.caller))

        async def billing(request: Request) -> JSONResponse:
            auth = chained.on_behalf_of(
                request.state.caller.access_token, resource=VAULT, scopes=SCOPE, origins=[here.url[VAULT]]
            )
            answer = await to_vault.get("/", auth=auth)
            return JSONResponse([says(request.state.caller), answer.status_code, answer.json()])

        for agent, issuer, app in ((VAULT, AWAY, vault), (BILLING, HOME, billing)):
            await here.serve(agent, here.gated(agent, issuer, Starlette(routes=[Route("/", app)])))
        yield here


def test_a_call_across_two_domains_on_behalf_of_its_first_caller(tmp_path: Path) -> None:
    async def work() -> None:
        async with world(tmp_path) as here:
            tokens = here.tokens(PLANNER, ("invoke:billing", "delegate:billing", *SCOPE))
            http = here.http(PLANNER, BILLING)
            for _ in range(2):
                answer = await http.get("/", auth=tokens)
                assert answer.json() == [
                    {"peer": PLANNER, "subject": PLANNER, "actors": []},
                    200,
                    {"peer": BILLING, "subject": PLANNER, "actors": [BILLING]},
                ]
            # One assertion for all calls of one caller: the other domain's token is kept while it lasts.
            granted = [(agent, r["grant"].rpartition(":")[2]) for agent in (HOME, AWAY) for r in record_of(here, agent)]
            assert granted == [(HOME, "client_credentials"), (HOME, "token-exchange"), (AWAY, "jwt-bearer")]
            at_home, away = record_of(here, HOME)[1], record_of(here, AWAY)[0]
            assert away["assertion"] == f"{here.url[HOME]} {at_home['jti']}"
            assert (at_home["target"], away["target"], away["peer"]) == (here.url[AWAY], VAULT, BILLING)

    asyncio.run(work())


def record_of(here: World, agent: str) -> list[Mapping[str, Any]]:
    records = here.trails[agent].records
    assert all(record["decision"] == "allow" for record in records), records
    return [record for record in records if record["event"] == "token"]


async def subject_token(here: World, *scopes: str) -> str:
    return (await here.tokens(PLANNER, ("delegate:billing", *scopes)).token()).value


def vault_of(here: World, chained: ChainedTokens, subject: str, *scopes: str) -> BearerAuth:
    return chained.on_behalf_of(subject, resource=VAULT, scopes=scopes, origins=[here.url[VAULT]])


def test_the_vault_checks_that_it_is_the_one_to_be_invoked(tmp_path: Path) -> None:
    async def work() -> None:
        async with world(tmp_path) as here:
            auth = vault_of(here, here.chained(), await subject_token(here, *SCOPE), *SCOPE[::2])
            answer = await here.http(BILLING, VAULT).get("/", auth=auth)
            assert answer.status_code == 403
            assert 'scope="invoke:vault"' in answer.headers["www-authenticate"]
            # And the token of the other domain goes nowhere else.
            with pytest.raises(OriginRefused):
                await here.http(BILLING, AWAY).get("/", auth=auth)

    asyncio.run(work())


def test_what_either_server_does_not_grant(tmp_path: Path) -> None:
    """Each refusal is told by the server that made it; neither is asked again by itself."""
    wide = ("read:ledger.eu", "write:ledger.eu", "invoke:vault", "temporal:20min")
    rows = (
        # what the planner hands on, what billing asks for, who refuses, with which code
        (SCOPE, wide, HOME, "invalid_scope"),
        (wide, wide, AWAY, "invalid_scope"),
        (SCOPE, ("read:ledger.eu",), HOME, "invalid_scope"),
    )

    async def work() -> None:
        async with world(tmp_path) as here:
            for handed, asked, who, code in rows:
                with pytest.raises(TokenRequestRefused) as caught:
                    await vault_of(here, here.chained(), await subject_token(here, *handed), *asked).token()
                assert caught.value.error == code
                assert (here.trails[who].last["decision"], here.trails[who].last["peer"]) == ("deny", BILLING)

    asyncio.run(work())


def test_another_certificate_of_the_same_agent_cannot_use_the_assertion(tmp_path: Path) -> None:
    async def work() -> None:
        async with world(tmp_path) as here:
            subject = await subject_token(here, *SCOPE)
            here.certificates[BILLING], old = FLEET.leaf(BILLING), here.certificates[BILLING]
            new = here.http(BILLING, AWAY)
            here.certificates[BILLING] = old
            with pytest.raises(TokenRequestRefused) as caught:
                await vault_of(here, here.chained(http=new), subject, *SCOPE).token()
            assert caught.value.error == "invalid_grant"
            assert here.trails[AWAY].last["check"] == "grant.assertion_binding"

    asyncio.run(work())


def test_a_token_of_the_other_domain_is_revoked_there(tmp_path: Path) -> None:
    async def work() -> None:
        async with world(tmp_path) as here:
            async with vault_of(here, here.chained(), await subject_token(here, *SCOPE), *SCOPE).for_task() as auth:
                await auth.token()
                token_id = here.trails[AWAY].last["jti"]
                assert not revoked(here, token_id)
            assert revoked(here, token_id)

    asyncio.run(work())


def revoked(here: World, token_id: str) -> bool:
    issued = here.stores[AWAY].tokens.find(token_id)
    assert issued is not None
    return issued.revoked


def test_what_is_no_assertion_goes_nowhere(tmp_path: Path) -> None:
    """Our own server gives something else than an assertion: the other server never sees it."""
    answers: dict[str, dict[str, Any]] = {
        "an access token": {"token_type": "Bearer", "issued_token_type": "urn:ietf:params:oauth:token-type:jwt"},
        "another type": {"token_type": "N_A", "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"},
        "no type": {"issued_token_type": None},
        "not a JWT": {"access_token": "opaque"},
        "a number": {"access_token": 7},
        "too large": {"access_token": f"{'A' * 8000}.A.A"},
    }
    valid = {
        "access_token": "e30.e30.AA",
        "token_type": "N_A",
        "issued_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "expires_in": 60,
    }

    async def work() -> None:
        async with AsyncExitStack() as stack:
            here = World(tmp_path, stack)
            said: dict[str, Any] = {}

            async def home(_: Request) -> JSONResponse:
                return JSONResponse(said)

            async def metadata(_: Request) -> JSONResponse:
                issuer = here.url[HOME]
                return JSONResponse(
                    {
                        "issuer": issuer,
                        "token_endpoint": f"{issuer}/token",
                        "token_endpoint_auth_methods_supported": ["tls_client_auth"],
                        "tls_client_certificate_bound_access_tokens": True,
                    }
                )

            routes = [
                Route("/token", home, methods=["POST"]),
                Route("/.well-known/oauth-authorization-server", metadata),
            ]
            await here.serve(HOME, Starlette(routes=routes))
            await here.authority(AWAY, AWAY_TOML)
            for changes in answers.values():
                said = {name: value for name, value in {**valid, **changes}.items() if value is not None}
                with pytest.raises(TokenResponseRefused):
                    await vault_of(here, here.chained(), "subject", *SCOPE).token()
            assert record_of(here, AWAY) == []
            # What looks like one is brought, and refused for what it is.
            said = valid
            with pytest.raises(TokenRequestRefused):
                await vault_of(here, here.chained(), "subject", *SCOPE).token()
            assert here.trails[AWAY].last["check"] == "grant.assertion"

    asyncio.run(work())


def test_the_other_server_is_configured_and_never_guessed(tmp_path: Path) -> None:
    async def work() -> None:
        async with AsyncExitStack() as stack:
            here = World(tmp_path, stack)
            with pytest.raises(ConfigurationError):
                here.chained(issuer="http://auth.partner.example")
            with pytest.raises(ConfigurationError):
                here.chained().on_behalf_of("subject", resource=VAULT, scopes=SCOPE)
            here.listeners[AWAY].close()
            with pytest.raises(AuthorizationServerUnavailable):
                await vault_of(here, here.chained(), "subject", *SCOPE).token()

    asyncio.run(work())


def test_the_keys_of_a_partner_come_from_where_they_are_declared_and_nowhere_else(tmp_path: Path) -> None:
    async def work() -> None:
        async with AsyncExitStack() as stack:
            here = World(tmp_path, stack)
            await here.serve(HOME, Starlette(routes=[Route("/jwks", lambda _: JSONResponse({}))]))
            url, ours = f"{here.url[HOME]}/jwks", here.certificates[AWAY]
            rows: tuple[tuple[AgentID | None, str, type[Exception] | None], ...] = (
                (AgentID.parse(HOME), url, None),
                (AgentID.parse(HOME), "https://elsewhere.example/jwks", DestinationRefused),
                (AgentID.parse(VAULT), url, PeerNotAllowed),
                (None, url, httpx.ConnectError),  # no root of the web vouches for it
            )
            for server, asked, expected in rows:
                async with fetch_client(url, server, source=ours, bundles=BUNDLES, crls=RevocationLists()) as http:
                    if expected is None:
                        assert (await http.get(asked)).status_code == 200
                    else:
                        with pytest.raises(expected):
                            await http.get(asked)

    asyncio.run(work())
