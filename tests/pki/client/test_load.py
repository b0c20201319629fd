"""No call is dropped while everybody's certificate is renewed beneath the calls.

The real CA service, an authorization server, an agent behind its gate, and workers that call it as fast as they can:
with tokens bound to their certificate and signed messages, over credentials that live for seconds.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pki.client import Event, RenewingCredentials, enrol
from tests.authority import Trail
from tests.pki.client.parts import CA
from trust import agent_client
from trust.authorize import exactly, members_of
from trust.identity import AgentID
from trust.middleware import Gate
from trust.oauth.client import TokenSource
from trust.oauth.keys import RemoteKeys, SigningKey
from trust.oauth.server import create_app
from trust.oauth.server.clients import Client, ClientRegistry
from trust.oauth.server.store import Store
from trust.oauth.tokens import TokenValidator
from trust.signing.http import MessageSigner
from trust.tls import AgentTransport, serving

pytestmark = pytest.mark.slow

PLANNER, BILLING, AUTHORITY = (f"spiffe://fleet.example/{name}" for name in ("planner", "billing", "authority"))
LIFETIME = timedelta(seconds=7)
RENEWALS = 3
WORKERS = 6
DEADLINE = 60  # seconds; three renewals at two thirds of seven take fourteen


class Agent:
    """An agent with credentials of seconds, which counts its renewals."""

    def __init__(self, ca: CA, name: str, folder: Path) -> None:
        enrol(**ca.enrolling(folder, token=ca.token(name, lifetime=LIFETIME)))
        self.seen: list[str] = []
        self.problems: list[str] = []
        self.source = RenewingCredentials(folder, on_event=self._note)

    def _note(self, event: Event) -> None:
        if event.kind == "failed":
            self.problems.append(event.says)
        if event.kind == "renewed":
            self.seen.append(event.credentials.thumbprint)


@asynccontextmanager
async def authorization_server(agent: Agent, folder: Path) -> AsyncIterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    issuer = f"https://localhost:{listener.getsockname()[1]}"
    clients = ClientRegistry(
        (Client(agent_id=AgentID.parse(PLANNER), scopes=("agent:execute",), resources=(BILLING,)),)
    )
    store = Store(f"sqlite:///{folder / 'oauth.db'}")
    app = create_app(issuer=issuer, clients=clients, store=store, keys=[SigningKey.generate()], audit=Trail())
    try:
        async with serving(
            app,
            source=agent.source,
            bundles=agent.source.bundles,
            authorize=members_of("fleet.example"),
            sockets=[listener],
        ):
            yield issuer
    finally:
        store.close()


async def answer(request: Request) -> Response:
    await asyncio.sleep(0.002)  # a little work, so that renewals meet requests that are under way
    body = await request.json()
    return JSONResponse({"caller": str(request.state.caller.agent_id), "echo": body["n"]})


def test_no_call_fails_while_everybody_renews(ca: CA, tmp_path: Path) -> None:
    agents = {name: Agent(ca, name, tmp_path / AgentID.parse(name).path[1:]) for name in (PLANNER, BILLING, AUTHORITY)}
    failures: list[BaseException] = []
    calls = 0

    async def work() -> None:
        nonlocal calls
        planner, billing = agents[PLANNER].source, agents[BILLING].source
        async with AsyncExitStack() as stack:
            for agent in agents.values():
                stack.enter_context(agent.source)
            issuer = await stack.enter_async_context(authorization_server(agents[AUTHORITY], tmp_path))

            def to_authority(source: RenewingCredentials) -> httpx.AsyncClient:
                transport = AgentTransport(source, source.bundles, exactly(AUTHORITY))
                return httpx.AsyncClient(transport=transport, trust_env=False)

            keys = await stack.enter_async_context(to_authority(billing))
            gate = Gate(
                Starlette(routes=[Route("/", answer, methods=["POST"])]),
                source=billing,
                bundles=billing.bundles,
                authorize=exactly(PLANNER),
                tokens=TokenValidator(issuer=issuer, audience=BILLING, keys=RemoteKeys(f"{issuer}/jwks", keys)),
                scope="agent:execute",
                signatures="required",
                public_paths=(),
            )
            server = await stack.enter_async_context(
                serving(gate, source=billing, bundles=billing.bundles, authorize=exactly(PLANNER))
            )
            tokens = TokenSource(
                issuer=issuer,
                resource=BILLING,
                scopes=["agent:execute"],
                http=await stack.enter_async_context(to_authority(planner)),
                source=planner,
                origins=[server.url],
            )
            client = await stack.enter_async_context(
                agent_client(
                    source=planner,
                    bundles=planner.bundles,
                    authorize=exactly(BILLING),
                    tokens=tokens,
                    signer=MessageSigner(planner, audience=BILLING, bundles=planner.bundles),
                )
            )

            def done() -> bool:
                return all(len(agent.seen) >= RENEWALS for agent in agents.values())

            async def worker(number: int) -> None:
                nonlocal calls
                n = 0
                while not done():
                    n += 1
                    try:
                        response = await client.post(server.url, json={"n": n})
                        assert response.status_code == 200, (response.status_code, response.text)
                        assert response.json() == {"caller": PLANNER, "echo": n}
                    except Exception as error:
                        failures.append(error)
                    calls += 1

            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(*(worker(number) for number in range(WORKERS)))

    asyncio.run(work())
    problems = [agent.problems for agent in agents.values()]
    assert not failures, (calls, Counter(f"{type(f).__name__}: {str(f)[:110]}" for f in failures), problems)
    assert calls > 50
    assert problems == [[], [], []]
    for agent in agents.values():
        assert len(set(agent.seen)) >= RENEWALS
        assert agent.source.current().thumbprint == agent.seen[-1]
