"""Streams both ways, cancellation, and websockets: what takes its time, and what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import websockets
from a2a.client import ClientConfig, ClientFactory
from a2a.helpers.proto_helpers import get_message_text, new_text_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCard, Role, SendMessageRequest
from google.protobuf.json_format import ParseDict
from starlette.applications import Starlette

from tests.forge import Forge
from tests.trust.tls.parts import AGENT, AGENTS, FORGE, LOOPS, SERVER, SERVERS, client, echo, run, until
from trust.authorize import exactly, unsafe_allow_any_peer
from trust.credentials import Credentials
from trust.errors import CertificateRevoked, HandshakeRefused, PeerNotAllowed, TrustError
from trust.sources import Live
from trust.tls import client_context, serving
from trust.tls import stream as stream_module

PATIENT = httpx.Timeout(60)


def here(app: Any = echo, **options: Any) -> Any:
    defaults = {"source": SERVER, "bundles": FORGE.bundles, "authorize": unsafe_allow_any_peer(), "lifespan": "off"}
    return serving(app, **{**defaults, **options})


def size(agent: httpx.AsyncClient) -> int:
    return len(agent._transport._pool)  # type: ignore[attr-defined]


class Events:
    """Server-sent events, one for each `tell`; knows when nobody listens any more."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.left = asyncio.Event()

    def tell(self, *events: bytes | None) -> None:
        for event in events:
            self.queue.put_nowait(event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        telling = asyncio.ensure_future(self._tell(send))
        while (await receive())["type"] != "http.disconnect" and not telling.done():
            pass
        telling.cancel()
        self.left.set()

    async def _tell(self, send: Any) -> None:
        while (event := await self.queue.get()) is not None:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("loop", LOOPS)
def test_events_come_one_by_one(loop: str) -> None:
    async def main() -> None:
        events = Events()
        async with here(events) as server, client() as agent:
            async with agent.stream("GET", server.url, timeout=PATIENT) as response:
                parts = response.aiter_raw()
                for number in range(3):
                    events.tell(b"data: %d\n\n" % number)
                    assert await anext(parts) == b"data: %d\n\n" % number
                events.tell(None)
                with pytest.raises(StopAsyncIteration):
                    await anext(parts)
            assert size(agent) == 1  # the connection is of use still

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_listener_that_leaves(loop: str) -> None:
    async def main() -> None:
        events = Events()
        async with here(events) as server, client() as agent:
            events.tell(b"data: 0\n\n")
            async with agent.stream("GET", server.url, timeout=PATIENT) as response:
                assert await anext(response.aiter_raw()) == b"data: 0\n\n"
            assert size(agent) == 0
            async with asyncio.timeout(20):
                await events.left.wait()

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_listener_that_is_cancelled(loop: str) -> None:
    async def main() -> None:
        events = Events()
        async with here(events) as server, client() as agent:
            heard: list[bytes] = []

            async def listen() -> None:
                async with agent.stream("GET", server.url, timeout=PATIENT) as response:
                    async for part in response.aiter_raw():
                        heard.append(part)

            events.tell(b"data: 0\n\n")
            listener = asyncio.ensure_future(listen())
            await until(lambda: heard, 20)
            listener.cancel()
            with pytest.raises(asyncio.CancelledError):
                await listener
            assert size(agent) == 0
            async with asyncio.timeout(20):
                await events.left.wait()

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_silent_stream_ends_with_the_trust_in_its_server(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes and nobody reloads: who waits must not wait for a server that is revoked."""
    monkeypatch.setattr(stream_module, "TRUST_CHECK_SECONDS", 0.05)
    crls = Live(FORGE.crls())

    async def main() -> None:
        events = Events()
        async with here(events) as server, client(crls=crls) as agent:
            events.tell(b"data: 0\n\n")
            async with agent.stream("GET", server.url, timeout=httpx.Timeout(None)) as response:
                parts = response.aiter_raw()
                await anext(parts)
                waiting: Any = response.extensions["network_stream"]
                revoking = asyncio.ensure_future(until(lambda: waiting._reader, 20))
                revoking.add_done_callback(lambda _: crls.replace(FORGE.crls(SERVER)))
                with pytest.raises(CertificateRevoked):
                    async with asyncio.timeout(20):
                        await anext(parts)

    run(main(), loop)


def test_a_silent_stream_ends_with_its_time() -> None:
    async def main() -> None:
        async with here(Events()) as server, client() as agent:
            with pytest.raises(httpx.ReadTimeout, match=r"no answer for 0\.1 s"):
                async with agent.stream("GET", server.url, timeout=httpx.Timeout(60, read=0.1)) as response:
                    await anext(response.aiter_raw())
            assert size(agent) == 0

    run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_large_answer_waits_for_its_reader(loop: str) -> None:
    """What nobody reads does not pile up here."""
    whole = 20_000_000

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(20):
            await send({"type": "http.response.body", "body": b"x" * (whole // 20), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def main() -> None:
        async with (
            here(app) as server,
            client() as agent,
            agent.stream("GET", server.url, timeout=PATIENT) as response,
        ):
            stream = response.extensions["network_stream"]
            await until(lambda: stream._held, 20)
            assert stream._unread < 2 * stream_module.MAX_UNREAD_BYTES
            assert sum([len(part) async for part in response.aiter_raw()]) == whole

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_others_have_their_turn_while_an_answer_is_read(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As each byte of it may cost a lot: a server can put hundreds of messages of TLS before it."""
    monkeypatch.setattr(stream_module, "BUSY_SECONDS", -1.0)
    turns = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 2_000_000})

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        async with (
            here(app) as server,
            client() as agent,
            agent.stream("GET", server.url, timeout=PATIENT) as response,
        ):
            stream = response.extensions["network_stream"]
            await until(lambda: stream._held, 20)
            waiting = asyncio.ensure_future(others())
            parts, seen = response.aiter_raw(), []
            for _ in range(5):  # all of them are here already
                await anext(parts)
                seen.append(turns)
            waiting.cancel()
            assert seen == sorted(set(seen))

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_upload_in_chunks(loop: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for number in range(200):
            yield b"%d" % (number % 10) * 5000

    async def main() -> None:
        async with here() as server, client() as agent:
            response = await agent.post(server.url, content=chunks(), timeout=PATIENT)
            assert len(response.content) == 1_000_000 and size(agent) == 1

    run(main(), loop)


def test_a_server_that_takes_nothing() -> None:
    given_up = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await given_up.wait()

    async def main() -> None:
        async with here(app) as server, client() as agent:
            with pytest.raises(httpx.WriteTimeout, match=r"waited 0\.1 s"):
                await agent.post(server.url, content=b"x" * 50_000_000, timeout=httpx.Timeout(60, write=0.1))
            assert size(agent) == 0
            given_up.set()

    run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_server_that_takes_its_time(loop: str) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await go.wait()
            await echo(scope, receive, send)

        async with here(app) as server, client() as agent:
            call = asyncio.ensure_future(agent.post(server.url, content=b"x" * 20_000_000, timeout=PATIENT))
            await until(lambda: any(stream._full for stream in agent._transport._pool._streams), 20)  # type: ignore[attr-defined]
            go.set()
            assert len((await call).content) == 20_000_000

    run(main(), loop)


# a2a-sdk.


class Agent(AgentExecutor):
    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        await event_queue.enqueue_event(new_text_message(f"said {context.get_user_input()}", role=Role.ROLE_AGENT))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise NotImplementedError


def test_a_streaming_call_of_a2a() -> None:
    def card(url: str) -> AgentCard:
        return ParseDict(
            {
                "name": "server",
                "description": "answers",
                "version": "1",
                "capabilities": {"streaming": True},
                "defaultInputModes": ["text/plain"],
                "defaultOutputModes": ["text/plain"],
                "skills": [{"id": "echo", "name": "echo", "description": "answers", "tags": ["echo"]}],
                "supportedInterfaces": [{"url": f"{url}/a2a", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}],
            },
            AgentCard(),
        )

    asked: list[str] = []

    async def main() -> None:
        handler = DefaultRequestHandler(Agent(), InMemoryTaskStore(), card("https://localhost"))
        inner = Starlette(routes=create_jsonrpc_routes(handler, "/a2a"))

        async def app(scope: Any, receive: Any, send: Any) -> None:
            async def noting(message: Any) -> None:
                asked.extend(value.decode() for name, value in message.get("headers", ()) if name == b"content-type")
                await send(message)

            await inner(scope, receive, noting)

        async with here(app) as server, client() as http:
            http.timeout = PATIENT
            agent = ClientFactory(ClientConfig(httpx_client=http, streaming=True)).create(card(server.url))
            request = SendMessageRequest(message=new_text_message("hello", role=Role.ROLE_USER))
            assert [get_message_text(part.message) async for part in agent.send_message(request)] == ["said hello"]

    run(main())
    assert asked and asked[0].startswith("text/event-stream")


# websockets, which makes its own connections with our context.


async def greet(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "websocket" and (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": "hello " + message["text"]})


def connect(url: str, told: list[TrustError], credentials: Credentials | None = AGENT, authorize: Any = SERVERS) -> Any:
    context = client_context(credentials, FORGE.bundles, authorize, on_refused=lambda error, _: told.append(error))
    return websockets.connect(url.replace("https:", "wss:"), ssl=context, open_timeout=60)


@pytest.mark.parametrize("loop", LOOPS)
def test_websockets(loop: str) -> None:
    async def main() -> None:
        async with here(greet) as server, connect(server.url, []) as socket:
            await socket.send("agent")
            assert await socket.recv() == "hello agent"
            assert socket.transport.get_extra_info("ssl_object").peer.agent_id == SERVER.agent_id

    run(main(), loop)


REFUSALS: list[tuple[str, Credentials | None, Any, type[TrustError], str]] = [
    ("not on our list", AGENT, exactly("spiffe://fleet.example/other"), PeerNotAllowed, "not on the list"),
    ("we are of a foreign CA", Forge().leaf(), SERVERS, HandshakeRefused, "alert unknown_ca"),
    ("we have no certificate", None, SERVERS, HandshakeRefused, "alert certificate_required"),
]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("case", "credentials", "authorize", "error", "words"), REFUSALS, ids=[c[0] for c in REFUSALS])
def test_why_there_is_no_websocket(
    loop: str, case: str, credentials: Credentials | None, authorize: Any, error: type[TrustError], words: str
) -> None:
    """The library says that the connection was closed, and the context says why."""
    told: list[TrustError] = []

    async def main() -> None:
        async with here(greet, authorize=AGENTS) as server:
            with pytest.raises((OSError, websockets.WebSocketException)):
                await connect(server.url, told, credentials, authorize)

    run(main(), loop)
    assert type(told[0]) is error and words in str(told[0])
