"""A whole authorization server in a test: real certificates, real keys, a real database, a clock that can be moved.

Requests come over `httpx.ASGITransport`; the peer is the one that `trust.peers` verifies from a forged chain, and is
put where the TLS server puts it.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.forge import NOW, Forge
from trust.credentials import Credentials
from trust.identity import PEER_EXTENSION, AgentID, PeerIdentity
from trust.oauth.claims import AccessToken
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks
from trust.oauth.scopes import Catalogue
from trust.oauth.server import create_app
from trust.oauth.server.clients import Client, ClientRegistry
from trust.oauth.server.store import Store
from trust.oauth.tokens import TokenValidator
from trust.peers import PeerVerifier
from trust.sources import Live

ISSUER = "https://auth.fleet.example"
PLANNER, BILLING, LEDGER, STRANGER = (
    f"spiffe://fleet.example/{name}" for name in ("planner", "billing", "ledger", "stranger")
)
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"

CLIENTS = (
    Client(
        agent_id=AgentID.parse(PLANNER),
        scopes=("agent:execute", "read:ledger.*", "delegate:billing", "delegate:ledger", "temporal:20min"),
        resources=(BILLING,),
    ),
    Client(
        agent_id=AgentID.parse(BILLING),
        scopes=("read:rates",),
        exchange_scopes=("read:ledger.*", "write:ledger.*", "delegate:ledger"),
        resources=(LEDGER,),
    ),
    Client(agent_id=AgentID.parse(LEDGER), exchange_scopes=("read:ledger.*",), resources=(BILLING,)),
)


class Clock:
    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **by: float) -> None:
        self.now += timedelta(**by)


class Trail:
    """An audit sink that keeps its records."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def record(self, **facts: Any) -> None:
        self.records.append(facts)

    @property
    def last(self) -> dict[str, Any]:
        return self.records[-1]


class WithPeer:
    """Puts a peer (or none) where `trust.tls` puts it."""

    def __init__(self, app: ASGIApp, peer: PeerIdentity | None) -> None:
        self.app, self.peer = app, peer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        extensions = {} if self.peer is None else {PEER_EXTENSION: self.peer}
        await self.app({**scope, "extensions": extensions}, receive, send)


class Authority:
    """The server, its clients' certificates, and everything that a test may want to look at or change."""

    def __init__(
        self, folder: Path, clients: tuple[Client, ...] = CLIENTS, *, issuer: str = ISSUER, **options: Any
    ) -> None:
        self.issuer = issuer
        self.forge = Forge()
        self.verifier = PeerVerifier(self.forge.bundles)
        self.clock = Clock()
        self.trail = Trail()
        self.key = SigningKey.generate()
        self.clients = Live(ClientRegistry(clients))
        self.store = Store(f"sqlite:///{folder / 'oauth.db'}")
        weakref.finalize(self, self.store.close)
        self.certificates: dict[str, Credentials] = {}
        self.serve(**options)

    def serve(self, **options: Any) -> None:
        """Start (again), with other options."""
        self.app = create_app(
            issuer=self.issuer,
            clients=self.clients,
            store=self.store,
            keys=[self.key],
            audit=self.trail,
            catalogue=Catalogue({"agent:execute": ["agent:read"]}),
            clock=self.clock,
            **options,
        )

    def credentials(self, agent: str) -> Credentials:
        if agent not in self.certificates:
            self.certificates[agent] = self.forge.leaf(agent)
        return self.certificates[agent]

    def peer(self, agent: str) -> PeerIdentity:
        return self.verifier.verify(self.credentials(agent).chain_der, now=NOW, usage="client")

    def http(self, agent: str | None) -> httpx.AsyncClient:
        peer = None if agent is None else self.peer(agent)
        transport = httpx.ASGITransport(WithPeer(self.app, peer))
        return httpx.AsyncClient(transport=transport, base_url=self.issuer)

    async def post(self, agent: str | None, form: Mapping[str, str | list[str]], **options: Any) -> httpx.Response:
        async with self.http(agent) as http:
            return await http.post("/token", data=dict(form), **options)

    async def token(self, agent: str, form: Mapping[str, str]) -> str:
        answer = await self.post(agent, form)
        assert answer.status_code == 200, (answer.text, self.trail.last)
        return str(answer.json()["access_token"])

    def validate(self, token: str, *, audience: str, holder: str, now: datetime | None = None) -> AccessToken:
        """As the resource does it: with this server's published keys, and bound to the holder's certificate."""
        validator = TokenValidator(issuer=self.issuer, audience=audience, keys=StaticKeys(public_jwks([self.key])))
        return validator.validate(token, peer=self.peer(holder), now=now or self.clock.now)


def ask(**changes: str | None) -> dict[str, str]:
    """The planner's request for a token to call billing with; each argument replaces a parameter, None removes it."""
    form = {
        "grant_type": "client_credentials",
        "client_id": PLANNER,
        "resource": BILLING,
        "scope": "agent:execute read:ledger.eu delegate:billing temporal:20min",
        **changes,
    }
    return {name: value for name, value in form.items() if value is not None}


def exchange(subject_token: str, /, **changes: str | None) -> dict[str, str]:
    """Billing's request to exchange the planner's token for one to call the ledger with."""
    return ask(
        **{
            "grant_type": EXCHANGE,
            "client_id": BILLING,
            "subject_token": subject_token,
            "subject_token_type": ACCESS_TOKEN,
            "resource": LEDGER,
            "scope": "read:ledger.eu temporal:20min",
            **changes,
        }
    )
