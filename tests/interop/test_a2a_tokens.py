"""Tokens of a real authorization server in the calls of an unchanged a2a-sdk client, all over mutual TLS.

By its interceptors, and by the HTTP client that it is given; in the middle of a stream that outlives its token, too.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from a2a.client import AuthInterceptor, ClientCallContext, ClientConfig, ClientFactory, CredentialService
from a2a.helpers.proto_helpers import new_text_message, new_text_status_update_event
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCard, Role, SendMessageRequest, Task, TaskState, TaskStatus
from google.protobuf.json_format import ParseDict
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from tests.authority import BILLING, CLIENTS, PLANNER, Clock, Trail
from tests.forge import Forge
from trust.agent import agent_client, serving
from trust.authorize import exactly, members_of
from trust.errors import OriginRefused
from trust.middleware import Gate
from trust.oauth.cards import CardPolicy, secured
from trust.oauth.client import TokenSource, interceptor_for_a2a
from trust.oauth.keys import RemoteKeys, SigningKey
from trust.oauth.server import create_app
from trust.oauth.server.clients import ClientRegistry
from trust.oauth.server.store import Store
from trust.oauth.tokens import TokenValidator

PATIENCE = 60.0
BINDINGS = ("JSONRPC", "HTTP+JSON")
AUTHORITY = "spiffe://fleet.example/authority"
FORGE = Forge()
SCOPE = "agent:execute"


class Worker(AgentExecutor):
    """Keeps the token of each call; to `wait` it answers with a stream that goes on when it is told."""

    def __init__(self) -> None:
        self.go_on, self.tokens = asyncio.Event(), list[str]()

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        assert context.call_context
        self.tokens.append(context.call_context.state["auth"].caller.access_token)
        if context.get_user_input() != "wait":
            await event_queue.enqueue_event(new_text_message("done", role=Role.ROLE_AGENT))
            return
        task, where = context.task_id, context.context_id
        assert task and where
        submitted = TaskStatus(state=TaskState.TASK_STATE_SUBMITTED)
        await event_queue.enqueue_event(Task(id=task, context_id=where, status=submitted))
        await self.go_on.wait()
        done = TaskState.TASK_STATE_COMPLETED
        await event_queue.enqueue_event(
            new_text_status_update_event(task_id=task, context_id=where, state=done, text="done")
        )

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise NotImplementedError("nobody cancels here")


class Listener:
    """An agent elsewhere: it answers nothing useful, and keeps the headers of whoever asks."""

    def __init__(self) -> None:
        self.headers: list[dict[bytes, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers.append(dict(scope["headers"]))
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


class Town:
    """Authorization server, billing behind its gate, somebody else of the fleet, and the planner who calls."""

    clock: Clock
    url: str  # of billing
    elsewhere: str
    tokens: TokenSource
    http: httpx.AsyncClient  # without tokens, to anybody of the fleet

    def __init__(self) -> None:
        self.worker, self.listener = Worker(), Listener()

    def card(self, url: str, **changes: Any) -> AgentCard:
        members = {
            "name": "worker",
            "capabilities": {"streaming": True},
            "supportedInterfaces": [
                {"url": f"{url}/rpc", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"},
                {"url": f"{url}/rest", "protocolBinding": "HTTP+JSON", "protocolVersion": "1.0"},
            ],
        }
        policy = CardPolicy(issuer="https://auth.fleet.example", scopes={SCOPE: ""}, signatures="optional")
        return ParseDict({**secured(members, policy), **changes}, AgentCard())

    def client(self, card: AgentCard, binding: str, *interceptors: Any, http: httpx.AsyncClient | None = None) -> Any:
        config = ClientConfig(httpx_client=http or self.http, streaming=True, supported_protocol_bindings=[binding])
        return ClientFactory(config).create(card, list(interceptors))


@asynccontextmanager
async def town(folder: Path) -> AsyncIterator[Town]:
    here = Town()
    fleet: dict[str, Any] = {"bundles": FORGE.bundles}
    clock = here.clock = Clock(datetime.now(UTC))
    members, planner, billing = members_of("fleet.example"), FORGE.leaf(PLANNER), FORGE.leaf(BILLING)
    listener = socket.create_server(("127.0.0.1", 0))
    issuer = f"https://localhost:{listener.getsockname()[1]}"
    store = Store(f"sqlite:///{folder / 'oauth.db'}")
    authority = create_app(
        issuer=issuer,
        clients=ClientRegistry(CLIENTS),
        store=store,
        keys=[SigningKey.generate()],
        audit=Trail(),
        clock=clock,
    )
    async with asyncio.timeout(PATIENCE), AsyncExitStack() as stack:
        stack.callback(store.close)
        enter: Any = stack.enter_async_context
        await enter(serving(authority, source=FORGE.leaf(AUTHORITY), authorize=members, sockets=[listener], **fleet))
        keys = await enter(agent_client(source=billing, authorize=exactly(AUTHORITY), **fleet))
        handler = DefaultRequestHandler(here.worker, InMemoryTaskStore(), here.card("https://localhost"))
        routes = [*create_jsonrpc_routes(handler, "/rpc"), *create_rest_routes(handler, path_prefix="/rest")]
        gate = Gate(
            Starlette(routes=routes),
            source=billing,
            authorize=exactly(PLANNER),
            tokens=TokenValidator(issuer=issuer, audience=BILLING, keys=RemoteKeys(f"{issuer}/jwks", keys)),
            scope=SCOPE,
            signatures="optional",
            public_paths=(),
            clock=clock,
            **fleet,
        )
        here.url = (await enter(serving(gate, source=billing, authorize=members, **fleet))).url
        other = serving(here.listener, source=FORGE.leaf("/other"), authorize=members, **fleet)
        here.elsewhere = (await enter(other)).url
        here.http = await enter(agent_client(source=planner, authorize=members, **fleet))
        here.tokens = TokenSource(
            issuer=issuer,
            resource=BILLING,
            scopes=[SCOPE, "temporal:20min"],
            origins=[here.url],
            http=here.http,
            source=planner,
            clock=clock,
        )
        yield here


def says(text: str) -> SendMessageRequest:
    return SendMessageRequest(message=new_text_message(text, role=Role.ROLE_USER))


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_call_carries_the_token_of_our_source_and_the_context_does_not_keep_it(tmp_path: Path, binding: str) -> None:
    async def main() -> None:
        async with town(tmp_path) as here:
            client = here.client(here.card(here.url), binding, interceptor_for_a2a(here.tokens))
            mine = ClientCallContext(state={"mine": 1}, service_parameters={"X-Mine": "1"})
            for context in (None, mine):
                events = [event async for event in client.send_message(says("work"), context=context)]
                assert events[-1].message.parts[0].text == "done"
            assert here.worker.tokens == [(await here.tokens.token()).value] * 2
            assert mine == ClientCallContext(state={"mine": 1}, service_parameters={"X-Mine": "1"})
            async with here.tokens.for_task() as auth:
                client = here.client(here.card(here.url), binding, interceptor_for_a2a(auth))
                assert [event async for event in client.send_message(says("work"))]
                assert here.worker.tokens[-1] == (await auth.token()).value != here.worker.tokens[0]

    asyncio.run(main())


class Naive(CredentialService):
    """What the SDK's documentation shows: it is asked for a scheme, and not told for which agent."""

    def __init__(self, tokens: TokenSource) -> None:
        self.tokens = tokens

    async def get_credentials(self, security_scheme_name: str, context: ClientCallContext | None) -> str | None:
        return (await self.tokens.token()).value


async def attempt(client: Any) -> None:
    async for _ in client.send_message(says("work")):
        pass


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_card_that_names_another_host_gets_no_token(tmp_path: Path, binding: str) -> None:
    async def main() -> None:
        async with town(tmp_path) as here:
            lies = here.card(here.elsewhere)
            # So that the rest means something: this is what the SDK does by itself.
            with pytest.raises(Exception, match=r"404|not found"):
                await attempt(here.client(lies, binding, AuthInterceptor(Naive(here.tokens))))
            assert here.listener.headers.pop()[b"authorization"].startswith(b"Bearer ey")
            half = here.card(here.url)
            half.supported_interfaces.add(url=f"{here.elsewhere}/rpc", protocol_binding="JSONRPC")
            clear = here.card(here.url.replace("https:", "http:"))
            for card in (lies, half, clear):
                with pytest.raises(OriginRefused):
                    await attempt(here.client(card, binding, interceptor_for_a2a(here.tokens)))
            with pytest.raises(OriginRefused):
                here.http.auth = here.tokens
                await attempt(here.client(lies, binding))
            assert here.listener.headers == [] and here.worker.tokens == []

    asyncio.run(main())


def test_a_token_is_no_api_key_and_nobody_gets_one_who_asks_for_none(tmp_path: Path) -> None:
    key = {"key": {"apiKeySecurityScheme": {"location": "header", "name": "X-Key"}}}
    requires_key: dict[str, Any] = {"securitySchemes": key, "securityRequirements": [{"schemes": {"key": {}}}]}

    async def main() -> None:
        async with town(tmp_path) as here:
            tokens = TokenSource(
                issuer=here.tokens.authority.issuer,
                resource=BILLING,
                scopes=[SCOPE],
                origins=[here.elsewhere],
                http=here.http,
                source=FORGE.leaf(PLANNER),
            )
            for card in (here.card(here.elsewhere, **requires_key), here.card(here.elsewhere, securityRequirements=[])):
                with pytest.raises(Exception, match=r"404|not found"):
                    await attempt(here.client(card, "JSONRPC", interceptor_for_a2a(tokens)))
            for headers in here.listener.headers:
                assert not {b"x-key", b"authorization"} & headers.keys()
            assert len(here.listener.headers) == 2

    asyncio.run(main())


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("way", ["interceptor", "client"])
def test_a_stream_outlives_its_token_and_the_next_call_has_another_one(tmp_path: Path, binding: str, way: str) -> None:
    async def main() -> None:
        async with town(tmp_path) as here:
            interceptors = [interceptor_for_a2a(here.tokens)] if way == "interceptor" else []
            if way == "client":
                here.http.auth = here.tokens
            client = here.client(here.card(here.url), binding, *interceptors)
            stream = client.send_message(says("wait"))
            await anext(stream)
            here.clock.advance(minutes=9, seconds=30)
            await attempt(client)  # with the old one: nobody waits for the new one, which is fetched meanwhile
            while here.tokens._cache._under_way():
                await asyncio.sleep(0.01)
            here.clock.advance(minutes=1)
            await attempt(client)
            here.clock.advance(minutes=10)
            await attempt(client)  # a source that nobody has asked for a while
            first, same, second, third = here.worker.tokens
            assert first == same and len({first, second, third}) == 3
            here.worker.go_on.set()
            assert [event.status_update.status.state async for event in stream] == [TaskState.TASK_STATE_COMPLETED]

    asyncio.run(main())
