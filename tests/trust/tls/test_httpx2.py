"""httpx2 over the same transport: requests, answers, streams, tokens, and every error under its own name."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from a2a.client import ClientConfig, ClientFactory
from a2a.helpers.proto_helpers import get_message_text, new_text_message
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCard, Role, SendMessageRequest
from google.protobuf.json_format import ParseDict
from starlette.applications import Starlette

from tests.authority import BILLING, PLANNER, Clock
from tests.forge import Forge
from tests.trust.oauth.test_over_mtls import FORGE as AUTHORITY_FORGE
from tests.trust.oauth.test_over_mtls import World, world
from tests.trust.tls.parts import AGENT, FORGE, SERVER, SERVERS, run, until
from tests.trust.tls.test_client import BAD_SERVERS, Scripted, answers_half, handshaken, plain_http
from tests.trust.tls.test_client_streams import Agent, Events, here
from tests.trust.tls.test_proxy import answering
from trust.authorize import exactly
from trust.credentials import Credentials
from trust.errors import (
    ConfigurationError,
    DestinationRefused,
    HandshakeFailed,
    HandshakeRefused,
    OriginRefused,
    TrustError,
)
from trust.tls import AgentTransport, key_exchange_of_response, peer_of_response, pool
from trust.tls.httpx2 import Httpx2Auth, Httpx2Transport

PATIENT = httpx2.Timeout(60)


def client(credentials: Credentials | None = AGENT, **options: Any) -> httpx2.AsyncClient:
    arguments = {"bundles": FORGE.bundles, "authorize": SERVERS, **options}
    return httpx2.AsyncClient(transport=Httpx2Transport(AgentTransport(credentials, **arguments)), timeout=PATIENT)


def size(agent: httpx2.AsyncClient) -> int:
    return len(agent._transport._inner._pool)  # type: ignore[attr-defined]


# Requests and answers.


def test_a_call() -> None:
    async def main() -> None:
        async with here() as server, client() as agent:
            for body in (b"", b"question", b"x" * 3_000_000):
                response = await agent.post(server.url, content=body)
                assert (response.headers["x-peer"], response.content) == ("/billing", body)
                assert response.request.content == body
            assert (response.http_version, response.reason_phrase) == ("HTTP/1.1", "OK")
            assert peer_of_response(response).agent_id == SERVER.agent_id
            assert key_exchange_of_response(response) == "X25519MLKEM768"
            assert size(agent) == 1  # one connection has carried them all
            await agent.aclose()
            assert size(agent) == 0

    run(main())


def test_what_goes_over_the_wire() -> None:
    """Method, target and headers as httpx2 made them, in their order."""
    seen: list[tuple[Any, ...]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["method"], scope["raw_path"], scope["query_string"], scope["headers"]))
        headers = [(b"x-two", b"1"), (b"x-two", b"2"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def main() -> None:
        async with here(app) as server, client() as agent:
            request = agent.build_request(
                "QUERY", server.url + "/a%2Fb/ü?q=%C3%BC&q=2", content=b"x", headers=[("X-One", "a"), ("X-One", "b")]
            )
            response = await agent.send(request)
            assert (response.status_code, response.headers.get_list("x-two")) == (404, ["1", "2"])
            lowered = [(name.lower(), value) for name, value in request.headers.raw]
            assert seen == [("QUERY", b"/a%2Fb/%C3%BC", b"q=%C3%BC&q=2", lowered)]

    run(main())


async def parts(*whole: bytes) -> AsyncIterator[bytes]:
    for part in whole:
        yield part


def test_bodies_that_are_made_while_they_are_sent() -> None:
    async def main() -> None:
        async with here() as server, client() as agent:
            assert (await agent.post(server.url, content=parts(b"one", b"", b"two"))).content == b"onetwo"
            files = {"file": ("name", b"y" * 200_000)}
            response = await agent.post(server.url, data={"a": "b"}, files=files)
            assert b"y" * 200_000 in response.content and b'name="a"' in response.content
            assert size(agent) == 1

    run(main())


def test_an_error_of_the_body_that_is_sent() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"part"
        raise ZeroDivisionError

    async def main() -> None:
        async with here() as server, client() as agent:
            with pytest.raises(ZeroDivisionError):
                await agent.post(server.url, content=failing())
            assert (await agent.get(server.url)).status_code == 200

    run(main())


def test_a_request_is_sent_again_where_it_may_be() -> None:
    """The server ends a connection that rests as the second request arrives, and answers on another."""
    asked: list[bytes] = []

    def talk(accepted: socket.socket) -> None:
        connection = handshaken(accepted)
        accepted.sendall(connection.output())
        for _ in range(2):
            data = b""
            while not data.endswith(b"body"):
                if part := connection.read():
                    data += part
                elif received := accepted.recv(65536):
                    connection.receive(received)
                else:
                    return
            asked.append(data[:3])
            if len(asked) == 2:
                return
            connection.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            accepted.sendall(connection.output())

    async def main() -> None:
        with Scripted(talk) as server:
            async with client() as agent:
                for _ in range(2):
                    assert (await agent.put(server.url, content=b"body")).status_code == 200

    run(main())
    assert asked == [b"PUT"] * 3


# Streams.


def test_events_come_one_by_one() -> None:
    async def main() -> None:
        events = Events()
        async with here(events) as server, client() as agent:
            async with agent.sse(server.url) as source:
                told = aiter(source)
                for number in range(3):
                    events.tell(b"event: n\ndata: %d\n\n" % number)
                    event = await anext(told)
                    assert (event.event, event.data) == ("n", str(number))
                events.tell(None)
                with pytest.raises(StopAsyncIteration):
                    await anext(told)
            assert size(agent) == 1  # the connection is of use still

    run(main())


def test_a_listener_that_leaves() -> None:
    async def main() -> None:
        events = Events()
        async with here(events) as server, client() as agent:
            events.tell(b"data: 0\n\n")
            async with agent.stream("GET", server.url) as response:
                async for part in response.aiter_raw():
                    assert part == b"data: 0\n\n"
                    break
            assert size(agent) == 0
            async with asyncio.timeout(20):
                await events.left.wait()

    run(main())


def test_a_listener_that_is_cancelled() -> None:
    async def main() -> None:
        events = Events()
        async with here(events) as server, client() as agent:
            heard: list[bytes] = []

            async def listen() -> None:
                async with agent.stream("GET", server.url) as response:
                    async for part in response.aiter_raw():
                        heard.append(part)

            events.tell(b"data: 0\n\n")
            listener = asyncio.ensure_future(listen())
            await until(lambda: heard)
            listener.cancel()
            with pytest.raises(asyncio.CancelledError):
                await listener
            assert size(agent) == 0
            async with asyncio.timeout(20):
                await events.left.wait()

    run(main())


# Errors.


@pytest.mark.parametrize(("case", "credentials", "options", "expected"), BAD_SERVERS, ids=[c[0] for c in BAD_SERVERS])
def test_a_server_that_is_refused(
    case: str, credentials: Credentials, options: dict[str, Any], expected: type[TrustError]
) -> None:
    async def main() -> None:
        async with here(source=credentials) as server, client(**options) as agent:
            with pytest.raises(TrustError) as caught:
                await agent.post(server.url, content=b"secret")
            assert type(caught.value) is expected

    run(main())


def test_our_certificate_is_refused() -> None:
    async def main() -> None:
        async with here() as server:
            for body in (b"", b"x" * 3_000_000):
                async with client(Forge().leaf()) as agent:
                    with pytest.raises(HandshakeRefused, match="alert unknown_ca"):
                        await agent.post(server.url, content=body)

    run(main())


DONE = threading.Event()


def silent(accepted: socket.socket) -> None:
    DONE.wait(20)


def handshakes_and_waits(accepted: socket.socket) -> None:
    accepted.sendall(handshaken(accepted).output())
    DONE.wait(20)


def speaks_no_http(accepted: socket.socket) -> None:
    connection = handshaken(accepted)
    connection.write(b"SSH-2.0-OpenSSH\r\n")
    accepted.sendall(connection.output())
    DONE.wait(20)


ERRORS: list[tuple[Callable[[socket.socket], None], dict[str, Any], type[Exception], str]] = [
    (silent, {"timeout": httpx2.Timeout(60, connect=0.2)}, httpx2.ConnectTimeout, "took longer than 0.2 s"),
    (handshakes_and_waits, {"timeout": httpx2.Timeout(60, read=0.2)}, httpx2.ReadTimeout, "0.2 s"),
    (
        handshakes_and_waits,
        {"timeout": httpx2.Timeout(60, write=0.2), "content": b"x" * 30_000_000},
        httpx2.WriteTimeout,
        "0.2 s",
    ),
    (answers_half, {}, httpx2.ReadError, "cut"),
    (speaks_no_http, {}, httpx2.RemoteProtocolError, "HTTP"),
    (handshakes_and_waits, {"headers": {"upgrade": "websocket"}}, httpx2.LocalProtocolError, "Upgrade"),
    (plain_http, {}, HandshakeFailed, "TLS"),
]


@pytest.mark.parametrize(("talk", "request_", "expected", "words"), ERRORS, ids=[row[2].__name__ for row in ERRORS])
def test_what_goes_wrong_on_the_way(
    talk: Callable[[socket.socket], None], request_: dict[str, Any], expected: type[Exception], words: str
) -> None:
    DONE.clear()

    async def main() -> None:
        with Scripted(talk) as server:
            try:
                async with client() as agent:
                    with pytest.raises(Exception, match=words) as caught:
                        await agent.post(server.url, **request_)
                    assert type(caught.value) is expected
                    if isinstance(caught.value, httpx2.RequestError):
                        assert str(caught.value.request.url).startswith(server.url)
                        assert str(caught.value.__cause__) == str(caught.value)
            finally:
                DONE.set()

    run(main())


def test_no_room() -> None:
    async def main() -> None:
        events = Events()
        events.tell(b"data: 0\n\n")
        async with here(events) as server, client() as agent, agent.stream("GET", server.url):
            with pytest.raises(httpx2.PoolTimeout):
                await agent.get(server.url, timeout=httpx2.Timeout(60, pool=0.1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "MAX_CONNECTIONS", 1)
        run(main())


def test_nobody_listens() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        async with client() as agent:
            with pytest.raises(httpx2.ConnectError, match="TCP connection"):
                await agent.get(f"https://127.0.0.1:{port}")

    run(main())


def test_a_proxy_that_refuses() -> None:
    async def main() -> None:
        answer = b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n"
        async with answering(answer, []) as proxy, client(proxy=proxy) as agent:
            with pytest.raises(httpx2.ProxyError, match="407"):
                await agent.get("https://agent.example/")

    run(main())


@pytest.mark.parametrize(
    ("url", "expected"),
    [("http://agent.example/", ConfigurationError), ("https://other.example/", DestinationRefused)],
    ids=["not https", "no rule for it"],
)
def test_where_no_request_goes(url: str, expected: type[TrustError]) -> None:
    async def main() -> None:
        async with client(authorize={"https://agent.example": SERVERS}) as agent:
            with pytest.raises(TrustError) as caught:
                await agent.get(url)
            assert type(caught.value) is expected

    run(main())


def leaves(kind: type[httpx.TransportError]) -> list[type[httpx.TransportError]]:
    return [kind, *(leaf for each in kind.__subclasses__() if each.__module__ == "httpx" for leaf in leaves(each))]


@pytest.mark.parametrize("kind", leaves(httpx.TransportError), ids=lambda kind: kind.__name__)
def test_every_error_of_httpx_has_its_twin(kind: type[httpx.TransportError]) -> None:
    class OfOurOwn(kind):  # type: ignore[misc, valid-type]
        """One that httpx2 does not know: it is what its base is."""

    class Failing(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise errors.pop(0)

    errors = [kind("why"), OfOurOwn("why")]

    async def main() -> None:
        async with httpx2.AsyncClient(transport=Httpx2Transport(Failing())) as agent:
            for error in list(errors):
                with pytest.raises(httpx2.TransportError, match=r"^why$") as caught:
                    await agent.get("https://agent.example/")
                assert type(caught.value) is getattr(httpx2, kind.__name__)
                assert caught.value.__cause__ is error

    run(main())


# Tokens: a real authorization server, and resources that look at what they are sent.


class Resource:
    """Refuses the tokens that it is told to refuse; with `elsewhere` it sends the caller there."""

    def __init__(self) -> None:
        self.refused: list[bytes | None] = []
        self.seen: list[tuple[bytes | None, bytes]] = []
        self.elsewhere = b""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        token = dict(scope["headers"]).get(b"authorization")
        self.seen.append((token, body))
        status, headers = 200, [(b"content-length", b"0")]
        if self.elsewhere:
            status, headers = 307, [*headers, (b"location", self.elsewhere)]
        elif token in self.refused:
            status, headers = 401, [*headers, (b"www-authenticate", b'Bearer error="invalid_token"')]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


class Fleet:
    """A resource, another, and what one agent calls them with."""

    def __init__(self, authority: World) -> None:
        self.authority, self.clock = authority, Clock(Clock().now)
        self.here, self.there = Resource(), Resource()

    async def enter(self, stack: AsyncExitStack) -> None:
        forge, planner = AUTHORITY_FORGE, AUTHORITY_FORGE.leaf(PLANNER)
        options: dict[str, Any] = {
            "source": forge.leaf(BILLING),
            "bundles": forge.bundles,
            "authorize": exactly(PLANNER),
        }
        self.url = (await stack.enter_async_context(here(self.here, **options))).url
        self.other = (await stack.enter_async_context(here(self.there, **options))).url
        self.tokens = self.authority.tokens(planner, origins=[self.url], clock=self.clock)
        transport = AgentTransport(planner, forge.bundles, exactly(BILLING))
        self.agent = await stack.enter_async_context(
            httpx2.AsyncClient(transport=Httpx2Transport(transport), auth=Httpx2Auth(self.tokens), timeout=PATIENT)
        )


def with_tokens(folder: Path, talk: Callable[[Fleet], Any]) -> None:
    async def main() -> None:
        async with world(folder) as authority, AsyncExitStack() as stack:
            fleet = Fleet(authority)
            await fleet.enter(stack)
            await talk(fleet)

    run(main())


def test_requests_carry_the_token(tmp_path: Path) -> None:
    async def talk(fleet: Fleet) -> None:
        for body in (b"one", b"two"):
            assert (await fleet.agent.post(fleet.url, content=body)).status_code == 200
        bearer = b"Bearer " + (await fleet.tokens.token()).value.encode()
        assert fleet.here.seen == [(bearer, b"one"), (bearer, b"two")]
        assert (await fleet.agent.post(fleet.url, auth=None)).status_code == 200
        assert fleet.here.seen[2:] == [(None, b"")]

    with_tokens(tmp_path, talk)


def test_a_refused_token_is_replaced_and_the_request_sent_once_more(tmp_path: Path) -> None:
    async def talk(fleet: Fleet) -> None:
        first = b"Bearer " + (await fleet.tokens.token()).value.encode()
        fleet.here.refused = [first]
        fleet.clock.advance(seconds=30)  # one that is new is not replaced
        response = await fleet.agent.post(fleet.url, content=b"body")
        assert response.status_code == 200
        assert [body for _, body in fleet.here.seen] == [b"body", b"body"]
        assert fleet.here.seen[0][0] == first and fleet.here.seen[1][0] not in (first, None)
        assert [before.status_code for before in response.history] == [401]

    with_tokens(tmp_path, talk)


def test_a_body_that_is_gone_is_not_sent_once_more(tmp_path: Path) -> None:
    async def talk(fleet: Fleet) -> None:
        fleet.here.refused = [b"Bearer " + (await fleet.tokens.token()).value.encode()]
        fleet.clock.advance(seconds=30)
        assert (await fleet.agent.post(fleet.url, content=parts(b"bo", b"dy"))).status_code == 401
        assert [body for _, body in fleet.here.seen] == [b"body"]

    with_tokens(tmp_path, talk)


def test_tokens_stay_with_their_hosts(tmp_path: Path) -> None:
    async def talk(fleet: Fleet) -> None:
        with pytest.raises(OriginRefused):
            await fleet.agent.get(fleet.other)
        assert fleet.there.seen == []
        before = (await fleet.tokens.token()).value
        fleet.clock.advance(seconds=30)
        fleet.here.elsewhere, fleet.there.refused = fleet.other.encode(), [None]
        assert (await fleet.agent.get(fleet.url, follow_redirects=True)).status_code == 401
        # What another host says of a token that it was not sent means nothing.
        assert fleet.there.seen == [(None, b"")]
        assert len(fleet.here.seen) == 1 and (await fleet.tokens.token()).value == before

    with_tokens(tmp_path, talk)


def test_tokens_are_for_async_clients(tmp_path: Path) -> None:
    async def talk(fleet: Fleet) -> None:
        with httpx2.Client(auth=Httpx2Auth(fleet.tokens)) as agent, pytest.raises(ConfigurationError):
            agent.get(fleet.url)

    with_tokens(tmp_path, talk)


# a2a-sdk.


@pytest.mark.parametrize("streaming", [False, True], ids=["message", "stream"])
def test_a_call_of_a2a(streaming: bool) -> None:
    def card(url: str) -> AgentCard:
        return ParseDict(
            {
                "name": "server",
                "version": "1",
                "capabilities": {"streaming": True},
                "supportedInterfaces": [{"url": f"{url}/a2a", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}],
            },
            AgentCard(),
        )

    async def main() -> None:
        handler = DefaultRequestHandler(Agent(), InMemoryTaskStore(), card("https://localhost"))
        async with here(Starlette(routes=create_jsonrpc_routes(handler, "/a2a"))) as server, client() as http:
            config = ClientConfig(httpx_client=http, streaming=streaming)  # type: ignore[arg-type]
            agent = ClientFactory(config).create(card(server.url))
            request = SendMessageRequest(message=new_text_message("hello", role=Role.ROLE_USER))
            assert [get_message_text(part.message) async for part in agent.send_message(request)] == ["said hello"]

    run(main())
