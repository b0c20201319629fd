"""HTTP/2 over real TLS: identity, many requests on one connection, the end of trust, and clients that want to hurt."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import h2.events
import httpx
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from tests.interop.programs import needs, save
from tests.trust.tls.http2_client import H2Client, h2_client
from tests.trust.tls.parts import AGENT, AGENTS, FORGE, LOOPS, SERVER, SERVERS, client, echo, port_of, run, until
from tests.trust.tls.test_server import REFUSED
from tests.world import World
from trust.authorize import exactly
from trust.bundles import RevocationLists
from trust.credentials import Credentials
from trust.errors import ConfigurationError, TooManyConnections, TrustError
from trust.identity import GROUP_EXTENSION, PRESENTED_EXTENSION, Caller, peer_of
from trust.middleware import Gate
from trust.replay import MemoryReplayGuard
from trust.signing.http import HEADER
from trust.sources import Live
from trust.tls import Deadlines, Limits, client_context, serving, uvicorn_config
from trust.tls.http2 import BODY_BYTES, RUNNING, STREAMS, Http2

SECOND = FORGE.leaf("/second")
WINDOW = 65535  # bytes of a body that are on their way at first, RFC 9113 section 6.9.2
BASE: dict[str, Any] = {"source": SERVER, "bundles": FORGE.bundles, "authorize": AGENTS, "http2": True}
GENEROUS = Deadlines(trust_check=0.2)


def here(app: Any = echo, **options: Any) -> Any:
    return serving(app, **{**BASE, "lifespan": "off", "deadlines": GENEROUS, "timeout_keep_alive": 60, **options})


def browser(credentials: Credentials = AGENT) -> httpx.AsyncClient:
    """Somebody else's HTTP/2 client."""
    context = client_context(credentials, FORGE.bundles, SERVERS)
    return httpx.AsyncClient(http2=True, http1=False, verify=context, trust_env=False, timeout=30)


async def answer(send: Any, body: bytes = b"ok", *headers: tuple[bytes, bytes], status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


class Waiting:
    """An application whose answers wait for the test, under /wait; under /never they read nothing either way."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.running = self.most = self.called = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.called += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if scope["path"] == "/wait":
                await self.release.wait()
            await echo(scope, receive, send)
        finally:
            self.running -= 1


# Who is calling.


@pytest.mark.parametrize("loop", LOOPS)
def test_the_peer_is_in_the_scope(loop: str) -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await echo(scope, receive, send)

    async def main() -> None:
        async with here(app) as server, browser() as agent:
            response = await agent.post(f"{server.url}/a%20b/?q=1", content=b"hello", headers={"X-Forwarded-For": "9"})
            assert (response.http_version, response.status_code, response.content) == ("HTTP/2", 200, b"hello")
            assert response.headers["x-peer"] == "/billing" and "server" not in response.headers
            assert (await agent.get(server.url)).status_code == 200
            async with client() as other:  # the same port speaks HTTP/1.1 with who wants that
                assert (await other.get(server.url)).http_version == "HTTP/1.1"

    run(main(), loop)
    first, second, third = scopes
    assert [scope["http_version"] for scope in scopes] == ["2", "2", "1.1"]
    assert first["client"] == second["client"] != third["client"]
    assert (first["scheme"], first["method"], first["query_string"]) == ("https", "POST", b"q=1")
    assert (first["path"], first["raw_path"]) == ("/a b/", b"/a%20b/")
    assert first["headers"][0] == (b"host", f"127.0.0.1:{first['server'][1]}".encode())
    assert [name for name, _ in first["headers"] if name.startswith(b":")] == []
    peer = peer_of(first)
    assert peer is not None and peer.thumbprint == AGENT.thumbprint
    assert first["extensions"]["tls"]["tls_version"] == 0x0304 and first["extensions"]["tls"]["client_cert_chain"]
    assert first["extensions"][PRESENTED_EXTENSION] == SERVER.thumbprint
    assert first["extensions"][GROUP_EXTENSION] == "X25519MLKEM768"


def test_two_agents_are_never_mixed() -> None:
    async def main() -> None:
        async with here() as server, browser() as first, browser(SECOND) as second:

            async def call(agent: httpx.AsyncClient, name: str, number: int) -> None:
                response = await agent.post(f"{server.url}/{number}", content=b"%d" % number)
                assert (response.headers["x-peer"], response.content) == (name, b"%d" % number)

            calls = [(agent, name, n) for n in range(40) for agent, name in ((first, "/billing"), (second, "/second"))]
            await asyncio.gather(*(call(*each) for each in calls))

    run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_fifty_requests_at_once_on_one_connection(loop: str) -> None:
    async def main() -> None:
        app = Waiting()
        async with here(app) as server, h2_client(server.url) as agent:
            streams = [agent.open("/wait", method="POST", end=False) for _ in range(50)]
            for number, stream in enumerate(streams):
                agent.data(stream, b"%d " % number * 200, end=True)
            await until(lambda: app.running == 50)
            app.release.set()
            for number, stream in enumerate(streams):
                assert await agent.ended(stream) == "200" and agent.body(stream) == b"%d " % number * 200

    run(main(), loop)


@needs("curl")
def test_curl(tmp_path: Path) -> None:
    chain, key = save(tmp_path, AGENT, "agent")

    async def main() -> None:
        async with here() as server:
            process = await asyncio.create_subprocess_exec(
                *("curl", "--silent", "--show-error", "--http2", "--insecure"),
                *("--cert", str(chain), "--key", str(key), "--data-binary", "hello"),
                *("--write-out", " %{http_version} %{http_code} %header{x-peer}", f"{server.url}/a"),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            output, errors = await process.communicate()
            assert (output, errors) == (b"hello 2 200 /billing", b"")

    run(main())


@pytest.mark.parametrize(("credentials", "expected"), [row[1:3] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_who_is_refused(credentials: Credentials | None, expected: type[TrustError]) -> None:
    told: list[TrustError] = []
    app = Waiting()

    async def main() -> None:
        context = client_context(credentials, FORGE.bundles, SERVERS)
        options = {"crls": FORGE.crls(REFUSED[5][1]), "on_refused": lambda error, _: told.append(error)}
        async with (
            here(app, **options) as server,
            httpx.AsyncClient(http2=True, http1=False, verify=context, trust_env=False) as agent,
        ):
            with pytest.raises((httpx.TransportError, ssl.SSLError)):
                await agent.get(server.url)
            await until(lambda: told)

    run(main())
    assert [type(error) for error in told] == [expected] and not app.called


def test_the_gate_joins_the_proofs() -> None:
    world = World()
    callers: list[Caller] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        callers.append(scope["state"]["caller"])
        await echo(scope, receive, send)

    def gate() -> Gate:
        return Gate(
            app,
            source=SERVER,
            bundles=FORGE.bundles,
            authorize=AGENTS,
            tokens=world.validator(audience=str(SERVER.agent_id)),
            scope="agent:execute",
            signatures="required",
            public_paths=(),
            replay=MemoryReplayGuard(started_at=datetime.now(UTC) - timedelta(minutes=1)),
        )

    async def main() -> None:
        async with here(gate()) as server, browser() as agent:
            now = int(datetime.now(UTC).timestamp())
            token = world.token(AGENT, aud=str(SERVER.agent_id), iat=now, exp=now + 60)

            async def call(signed: str, sent: str, body: bytes = b"{}") -> httpx.Response:
                url, ours = f"{server.url}{signed}", SERVER.agent_id
                signature = world.signature(AGENT, url=url, body=b"{}", audience=ours, now=datetime.now(UTC))
                headers = {
                    "authorization": f"Bearer {token}",
                    "content-type": "application/json",
                    "a2a-version": "1.0",
                    HEADER: signature,
                }
                return await agent.post(f"{server.url}{sent}", content=body, headers=headers)

            good = await call("/a2a?tenant=1", "/a2a?tenant=1")
            assert (good.http_version, good.status_code, good.content) == ("HTTP/2", 200, b"{}")
            assert HEADER in good.headers  # the answer is signed
            for refused in (await call("/a2a", "/other"), await call("/a2a", "/a2a?x"), await call("/b", "/b", b"[]")):
                assert refused.status_code in (400, 401)

    run(main())
    assert [caller.peer.agent_id for caller in callers] == [AGENT.agent_id]


# The end of trust, and of the server.


async def stream_forever(scope: Any, receive: Any, send: Any) -> None:
    """Sends events, and never asks whether anybody is there."""
    if scope["path"] != "/events":
        return await echo(scope, receive, send)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    while True:
        await send({"type": "http.response.body", "body": b"data: tick\n\n", "more_body": True})
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("loop", LOOPS)
def test_revocation_ends_a_connection_with_its_streams(loop: str) -> None:
    crls = Live(RevocationLists())
    waiting = Waiting()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (waiting if scope["path"] == "/wait" else stream_forever)(scope, receive, send)

    async def main() -> None:
        async with (
            here(app, crls=crls) as server,
            h2_client(server.url) as lost,
            h2_client(server.url) as idle,
            h2_client(server.url, SECOND) as kept,
        ):
            await idle.ended(idle.open())
            events, flying, others = lost.open("/events"), lost.open("/wait"), kept.open("/events")
            await lost.sees(lambda: lost.body(events))
            await kept.sees(lambda: kept.body(others))
            await until(lambda: waiting.running == 1)
            crls.replace(FORGE.crls(AGENT))
            await lost.sees(lambda: lost.was_reset(events) == ErrorCodes.CANCEL)  # nobody takes it for whole
            await until(lambda: idle.closed)
            late = lost.open()
            await lost.sees(lambda: lost.was_reset(late) == ErrorCodes.REFUSED_STREAM)
            waiting.release.set()
            await until(lambda: lost.closed)
            assert lost.status(flying) == "200" and lost.goodbye() == ErrorCodes.NO_ERROR
            length = len(kept.body(others))
            await kept.sees(lambda: len(kept.body(others)) > length)
            assert await kept.ended(kept.open()) == "200"

    run(main(), loop)


def test_a_request_that_arrives_with_the_revocation_is_not_served() -> None:
    app = Waiting()

    async def main() -> None:
        async with here(app) as server, h2_client(server.url) as agent:
            await agent.ended(agent.open())
            loop = asyncio.get_running_loop()
            loop.call_soon_threadsafe = lambda *_: None  # type: ignore[method-assign,assignment]
            try:
                server.context.reload(authorize=exactly(SECOND.agent_id))
                assert await agent.ended(agent.open()) == "403"
            finally:
                del loop.call_soon_threadsafe
        assert app.called == 1

    run(main())


def test_a_server_that_stops_finishes_what_is_in_flight() -> None:
    async def main() -> None:
        app = Waiting()
        stack = here(app)
        server = await stack.__aenter__()
        async with h2_client(server.url) as agent:
            first = agent.open("/wait", method="POST", end=False)
            await until(lambda: app.running)
            stopping = asyncio.ensure_future(stack.__aexit__(None, None, None))
            await asyncio.sleep(0)

            async def refused() -> bool:
                late = agent.open()
                await agent.sees(lambda: agent.was_reset(late) is not None or agent.status(late))
                return bool(agent.was_reset(late) == ErrorCodes.REFUSED_STREAM)

            while not await refused():
                pass
            agent.data(first, b"the rest", end=True)
            app.release.set()
            assert await agent.ended(first) == "200" and agent.body(first) == b"the rest"
            await until(lambda: agent.closed)
            assert agent.goodbye() == ErrorCodes.NO_ERROR
            await stopping

    run(main())


def test_an_event_stream_ends_with_the_server() -> None:
    async def main() -> None:
        async with Stoppable() as (server, agent):
            events = agent.open("/events")
            await agent.sees(lambda: agent.body(events).count(b"data: tick\n\n") > 3)
            fixed = agent.open("/fixed")
            await agent.sees(lambda: agent.body(fixed))
            server.should_stop.set()
            await until(lambda: agent.closed)
            assert agent.was_reset(events) == agent.was_reset(fixed) == ErrorCodes.CANCEL
            assert not agent.of(events, h2.events.StreamEnded)

    run(main())


class Stoppable:
    """A server that the test may stop while its client is connected."""

    async def __aenter__(self) -> tuple[Any, H2Client]:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/fixed":
                headers = [(b"content-type", b"text/event-stream"), (b"content-length", b"1000")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": b"data", "more_body": True})
                await receive()
                await receive()
            else:
                await stream_forever(scope, receive, send)

        self.should_stop = asyncio.Event()
        started: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def serve() -> None:
            async with here(app) as server:
                started.set_result(server.url)
                await self.should_stop.wait()

        self.task = asyncio.ensure_future(serve())
        self.client = h2_client(await started)
        return self, await self.client.__aenter__()

    async def __aexit__(self, *_: object) -> None:
        self.should_stop.set()
        await self.client.__aexit__(None, None, None)
        await self.task


def test_event_streams_with_another_client() -> None:
    async def main() -> None:
        async with (
            here(stream_forever) as server,
            browser() as agent,
            agent.stream("GET", f"{server.url}/events") as response,
        ):
            lines = response.aiter_lines()
            assert [await anext(lines) for _ in range(4)] == ["data: tick", "", "data: tick", ""]
            assert (await agent.get(server.url)).status_code == 200  # beside it, on the same connection

    run(main())


# Bodies and answers.


@pytest.mark.parametrize("loop", LOOPS)
def test_large_bodies(loop: str) -> None:
    async def main() -> None:
        async with here() as server, browser() as agent:
            body = bytes(range(256)) * 4096
            answers = await asyncio.gather(*(agent.post(server.url, content=body) for _ in range(3)))
            assert all(response.content == body for response in answers)

    run(main(), loop)


def test_trailers_never_become_headers() -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await echo(scope, receive, send)

    async def main() -> None:
        async with here(app) as server, h2_client(server.url) as agent:
            stream = agent.open(method="POST", end=False)
            agent.data(stream, b"body")
            await until(lambda: scopes)
            agent.h2.send_headers(stream, [("authorization", "Bearer forged")], end_stream=True)
            agent.flush()
            assert await agent.ended(stream) == "200" and agent.body(stream) == b"body"

    run(main())
    assert "authorization" not in str(scopes[0]["headers"])


def test_a_body_that_nobody_reads_stays_with_the_client_and_stops_nobody() -> None:
    async def main() -> None:
        app = Waiting()
        async with here(app) as server, h2_client(server.url) as agent:
            unread = agent.open("/wait", method="POST", end=False)
            while window := agent.h2.local_flow_control_window(unread):
                agent.data(unread, b"x" * min(window, 16384))
            for _ in range(3):  # all of what one request may send is there, and others are served
                assert await agent.ended(agent.open()) == "200"
            assert agent.h2.local_flow_control_window(unread) == 0
            assert agent.h2.outbound_flow_control_window == BODY_BYTES - WINDOW
            app.release.set()
            await agent.sees(lambda: agent.h2.local_flow_control_window(unread))
            agent.data(unread, b"y", end=True)
            assert await agent.ended(unread) == "200" and len(agent.body(unread)) == WINDOW + 1

    run(main())


def test_an_answer_before_the_end_of_the_request() -> None:
    """The rest of the body is taken and dropped, for a while; other requests do not notice."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/early":
            await answer(send, b"no", status=401)
        else:
            await echo(scope, receive, send)

    async def main() -> None:
        async with here(app, deadlines=Deadlines(close=3)) as server, h2_client(server.url) as agent:
            early, other = agent.open("/early", method="POST", end=False), agent.open(method="POST", end=False)
            assert await agent.ended(early) == "401" and agent.body(early) == b"no"
            for _ in range(8):
                await agent.sees(lambda: agent.h2.local_flow_control_window(early) >= 16384)
                agent.data(early, b"x" * 16384)
            await agent.sees(lambda: agent.was_reset(early) == ErrorCodes.NO_ERROR)
            agent.data(other, b"hello", end=True)
            assert await agent.ended(other) == "200" and agent.body(other) == b"hello"
            whole = agent.open("/early", method="POST", end=False)
            assert await agent.ended(whole) == "401"
            agent.data(whole, b"x", end=True)
            assert await agent.ended(agent.open()) == "200" and agent.was_reset(whole) is None

    run(main())


def test_cancelled_requests_give_their_room_back() -> None:
    async def main() -> None:
        app = Waiting()
        async with here(app) as server, h2_client(server.url) as agent:
            for _ in range(3 * BODY_BYTES // WINDOW // 2):
                stream = agent.open("/wait", method="POST", end=False)
                await agent.sees(lambda: agent.h2.outbound_flow_control_window >= WINDOW)
                for size in (16384, 16384, 16384, 16383):
                    agent.data(stream, b"x" * size)
                agent.reset(stream)
                app.release.set()
            assert await agent.ended(agent.open()) == "200"
            await agent.sees(lambda: agent.h2.outbound_flow_control_window > BODY_BYTES // 2)

    run(main())


def test_a_client_that_takes_nothing_loses_the_request_only() -> None:
    gone: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/":
            return await echo(scope, receive, send)
        try:
            await answer(send, b"x" * 1_000_000)
        except OSError:
            gone.append(scope["path"])
            raise

    async def main() -> None:
        async with here(app, deadlines=Deadlines(stall=0.5)) as server, h2_client(server.url) as agent:
            agent.acknowledge = False
            untaken = agent.open("/large")
            await agent.sees(lambda: agent.was_reset(untaken) == ErrorCodes.CANCEL)
            assert len(agent.body(untaken)) == WINDOW
            agent.h2.increment_flow_control_window(1 << 20)
            agent.acknowledge = True
            assert await agent.ended(agent.open()) == "200"
            assert gone == ["/large"]
            # And one that sends no more of its body.
            stalled = agent.open("/", method="POST", end=False)
            agent.data(stalled, b"half")
            await agent.sees(lambda: agent.was_reset(stalled) == ErrorCodes.CANCEL)
            assert await agent.ended(agent.open()) == "200"

    run(main())


def test_a_slow_application_is_not_a_stalled_client() -> None:
    async def main() -> None:
        app = Waiting()
        async with here(app, deadlines=Deadlines(stall=0.3)) as server, h2_client(server.url) as agent:
            slow = agent.open("/wait", method="POST", end=False)
            agent.data(slow, b"first")
            await asyncio.sleep(0.8)
            app.release.set()
            agent.data(slow, b"second", end=True)
            assert await agent.ended(slow) == "200" and agent.body(slow) == b"firstsecond"

    run(main())


ANSWERS: dict[str, tuple[str, str | None, Any, bytes]] = {  # method, status, reset, body
    "no-content": ("GET", "204", None, b""),
    "head": ("HEAD", "200", None, b""),
    "empty": ("GET", "200", None, b""),
    "raises": ("GET", "500", None, b""),
    "nothing": ("GET", "500", None, b""),
    "bad-header": ("GET", "500", None, b""),
    "raises-late": ("GET", "200", ErrorCodes.INTERNAL_ERROR, b""),
    "short": ("GET", "200", ErrorCodes.INTERNAL_ERROR, b""),
    "long": ("GET", "200", ErrorCodes.INTERNAL_ERROR, b""),
    "half": ("GET", "200", ErrorCodes.INTERNAL_ERROR, b"ha"),
    "twice": ("GET", "500", None, b""),
    "hop-by-hop": ("GET", "200", None, b"ok"),
}


async def odd(scope: Any, receive: Any, send: Any) -> None:
    def start(status: int = 200, *headers: tuple[bytes, bytes]) -> Any:
        return send({"type": "http.response.start", "status": status, "headers": headers})

    kind = scope["path"][1:]
    if kind in ("no-content", "head"):
        await (start(204) if kind == "no-content" else start(200, (b"Content-Length", b"5")))
        await send({"type": "http.response.body", "body": b"hello"})
    elif kind == "empty":
        await answer(send, b"")
    elif kind == "raises":
        raise ValueError("secret")
    elif kind == "bad-header":
        await start(200, (b"x", b"a\r\nb"))
    elif kind == "raises-late":
        await start()
        raise ValueError("secret")
    elif kind in ("short", "long"):
        await answer(send, b"123", (b"content-length", b"5" if kind == "short" else b"2"))
    elif kind == "half":
        await start()
        await send({"type": "http.response.body", "body": b"ha", "more_body": True})
    elif kind == "twice":
        await send({"type": "http.response.body", "body": b"no start"})
    elif kind == "hop-by-hop":
        await answer(send, b"ok", (b"Connection", b"close"), (b"Transfer-Encoding", b"chunked"), (b"X-Name", b"v"))


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    method, status, reset, body = ANSWERS[kind]

    async def main() -> None:
        async with here(odd) as server, h2_client(server.url) as agent:
            stream = agent.open(f"/{kind}", method=method)
            await agent.sees(lambda: agent.was_reset(stream) is not None or agent.of(stream, h2.events.StreamEnded))
            assert (agent.status(stream), agent.was_reset(stream), agent.body(stream)) == (status, reset, body)
            assert "secret" not in str(agent.events)
            assert await agent.ended(agent.open("/empty")) == "200"
            if kind == "hop-by-hop":
                names = [name for name, _ in agent.of(stream, h2.events.ResponseReceived)[0].headers]
                assert names == [":status", "date", "x-name"]

    run(main())


def test_the_access_log(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with here(access_log=True, log_config=None, log_level="info") as server, h2_client(server.url) as agent:
            await agent.ended(agent.open("/a?b=1"))

    run(main())
    assert [r.getMessage().split(" - ")[1] for r in caplog.records if r.name == "uvicorn.access"] == [
        '"GET /a?b=1 HTTP/2" 200'
    ]


# Clients that want to hurt, or do not know better.

MALFORMED: dict[str, tuple[dict[str, Any], Any]] = {
    "a path that is not ASCII": ({"path": "/\u00e9"}, ErrorCodes.PROTOCOL_ERROR),
    "a fragment": ({"path": "/a#b"}, ErrorCodes.PROTOCOL_ERROR),
    "no path but an address": ({"path": "https://elsewhere/"}, ErrorCodes.PROTOCOL_ERROR),
    "a space": ({"path": "/a b"}, ErrorCodes.PROTOCOL_ERROR),
    "a method that is none": ({"method": "GE T"}, ErrorCodes.PROTOCOL_ERROR),
    "a method that is not ASCII": ({"method": "G\u00c9T"}, ErrorCodes.PROTOCOL_ERROR),
    "another scheme": ({"scheme": "http"}, ErrorCodes.PROTOCOL_ERROR),
    "CONNECT": ({"method": "CONNECT"}, ErrorCodes.HTTP_1_1_REQUIRED),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_request_is_reset_alone(kind: str) -> None:
    changes, expected = MALFORMED[kind]

    async def main() -> None:
        app = Waiting()
        async with here(app) as server, h2_client(server.url) as agent:
            other = agent.open("/wait")
            await until(lambda: app.running)
            wrong = agent.open(**{"path": "/", **changes})
            await agent.sees(lambda: agent.was_reset(wrong) == expected)
            app.release.set()
            assert await agent.ended(other) == "200" and app.called == 1

    run(main())


async def rapid_reset(agent: H2Client) -> None:
    for _ in range(5 * RUNNING):
        agent.reset(agent.open("/wait"))


async def malformed(agent: H2Client) -> None:
    """What the server has to reset by itself (CVE-2025-8671)."""
    for _ in range(1000):
        agent.open("/a#b")


async def pings(agent: H2Client) -> None:
    for number in range(5000):
        agent.h2.ping(number.to_bytes(8))
    agent.flush()


async def settings(agent: H2Client) -> None:
    for number in range(5000):
        agent.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1000 + number})
    agent.flush()


async def priorities(agent: H2Client) -> None:
    for number in range(5000):
        agent.h2.prioritize(2 * number + 1, weight=16)
    agent.flush()


async def empty_data(agent: H2Client) -> None:
    stream = agent.open("/wait", method="POST", end=False)
    for _ in range(5000):
        agent.h2.send_data(stream, b"")
    agent.flush()


async def dribble(agent: H2Client) -> None:
    """Data of one byte does not pay for what asks for nothing."""
    stream = agent.open("/wait", method="POST", end=False)
    for number in range(5000):
        agent.h2.send_data(stream, b"x")
        agent.h2.ping(number.to_bytes(8))
    agent.flush()


async def windows(agent: H2Client) -> None:
    for _ in range(5000):
        agent.h2.increment_flow_control_window(1)
    agent.flush()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


async def unknown_frames(agent: H2Client) -> None:
    agent.writer.write(frame(0xBB, 0, 0) * 5000)


async def continuations(agent: H2Client) -> None:
    """CVE-2024-27983 and others of its kind: a head without an end."""
    agent.writer.write(frame(1, 0, 1, b"\x82") + frame(9, 0, 1) * 5000)


async def header_bomb(agent: H2Client) -> None:
    """One entry of the table, named four thousand times."""
    agent.open("/", ("x", "a" * 4000))
    agent.writer.write(frame(1, 5, 3, b"\x82\x87\x84\xbe" + b"\xbe" * 4000))


async def large_head(agent: H2Client) -> None:
    agent.open("/", *((f"x{n}", "a" * 1000) for n in range(80)))


async def large_frame(agent: H2Client) -> None:
    """One that would be 16 MiB: the first part of it is enough."""
    agent.writer.write((0xFFFFFF).to_bytes(3) + bytes([0, 0]) + (1).to_bytes(4) + b"x" * 20_000)


async def not_http2(agent: H2Client) -> None:
    agent.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)


async def more_body_than_said(agent: H2Client) -> None:
    stream = agent.open("/wait", ("content-length", "2"), method="POST", end=False)
    agent.data(stream, b"123")


async def too_many_streams(agent: H2Client) -> None:
    agent.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 10 * STREAMS
    agent.h2.remote_settings.acknowledge()
    for _ in range(2 * STREAMS):
        agent.open("/wait")


CALM, WRONG = ErrorCodes.ENHANCE_YOUR_CALM, ErrorCodes.PROTOCOL_ERROR
ATTACKS: list[tuple[Callable[[H2Client], Awaitable[None]], ErrorCodes]] = [
    (rapid_reset, CALM),
    (malformed, CALM),
    (pings, CALM),
    (settings, CALM),
    (priorities, CALM),
    (empty_data, CALM),
    (dribble, CALM),
    (windows, CALM),
    (unknown_frames, CALM),
    (continuations, WRONG),
    (header_bomb, CALM),
    (large_head, CALM),
    (large_frame, ErrorCodes.FRAME_SIZE_ERROR),
    (not_http2, ErrorCodes.FRAME_SIZE_ERROR),
    (more_body_than_said, WRONG),
    (too_many_streams, WRONG),
]


@pytest.mark.parametrize(("attack", "code"), ATTACKS, ids=[attack.__name__ for attack, _ in ATTACKS])
def test_an_honest_client_does_not_suffer(attack: Callable[[H2Client], Awaitable[None]], code: ErrorCodes) -> None:
    """The attacker's connection ends with a reason; another one and its open request do not notice."""

    async def main() -> None:
        app = Waiting()
        async with here(app) as server, h2_client(server.url) as honest, h2_client(server.url, SECOND) as attacker:
            waits = honest.open("/wait")
            await until(lambda: app.running)
            await attack(attacker)
            while not attacker.closed:
                assert await honest.ended(honest.open()) == "200"
            assert attacker.goodbye() == code
            assert app.most <= RUNNING + 2  # with those of the honest one
            app.release.set()
            assert await honest.ended(waits) == "200"
            assert honest.goodbye() is None

    run(main())


def test_calls_of_cancelled_requests_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowly enough not to be noticed as a flood, they still are no more than `RUNNING`; then requests are refused."""
    monkeypatch.setattr("trust.tls.http2.RUNNING", 20)

    async def main() -> None:
        app = Waiting()
        async with here(app) as server, h2_client(server.url) as agent:
            for number in range(1, 21):
                stream = agent.open("/wait")
                await until(lambda number=number: app.running == number)  # type: ignore[misc]
                agent.reset(stream)
            for _ in range(3):
                refused = agent.open()
                await agent.sees(lambda refused=refused: agent.was_reset(refused) == ErrorCodes.REFUSED_STREAM)  # type: ignore[misc]
            app.release.set()
            await until(lambda: not app.running)
            assert await agent.ended(agent.open()) == "200"

    run(main())


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Http2]:
    """The server's side of each connection, to look into."""
    found: list[Http2] = []
    original = Http2.connection_made

    def remember(self: Http2, transport: Any) -> None:
        found.append(self)
        original(self, transport)

    monkeypatch.setattr(Http2, "connection_made", remember)
    return found


def test_what_our_answers_said_is_not_kept_for_long(made: list[Http2]) -> None:
    """A client may offer gigabytes for the table of our headers."""

    async def main() -> None:
        async with here() as server, h2_client(server.url) as agent:
            agent.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: 1 << 30})
            agent.flush()
            await agent.sees(lambda: len(agent.of(None, h2.events.SettingsAcknowledged)) > 1)
            for _ in range(3):
                assert await agent.ended(agent.open()) == "200"
            assert made[0].h2.encoder.header_table_size == 4096

    run(main())


def test_a_client_that_does_not_read_is_not_read_from(made: list[Http2]) -> None:
    """Answers to PING do not pile up in our memory, nor does a body, for a client that takes nothing at present."""
    size = 16 << 20

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"x" * size)

    async def main() -> None:
        async with here(app) as server, h2_client(server.url) as agent:
            agent.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 2 * size})
            agent.h2.increment_flow_control_window(size)
            await agent.sees(lambda: len(agent.of(None, h2.events.SettingsAcknowledged)) > 0)
            transport: Any = agent.writer.transport
            transport.pause_reading()
            stream = agent.open()
            await until(lambda: made[0].flow.read_paused)
            assert made[0].transport.get_write_buffer_size() < 1 << 20
            agent.h2.ping(b"12345678")
            agent.flush()
            transport.resume_reading()
            assert await agent.ended(stream) == "200" and len(agent.body(stream)) == size
            await agent.sees(lambda: agent.of(None, h2.events.PingAckReceived))

    run(main())


def test_places_are_limited() -> None:
    told: list[TrustError] = []

    async def main() -> None:
        options = {"limits": Limits(peer=1), "on_refused": lambda error, _: told.append(error)}
        async with here(**options) as server, h2_client(server.url) as first:
            await first.ended(first.open())
            async with h2_client(server.url) as second:
                await until(lambda: second.closed)
                assert second.goodbye() == CALM
                assert second.of(None, h2.events.ConnectionTerminated)[0].last_stream_id == 0
            assert await first.ended(first.open()) == "200"

    run(main())
    assert [type(error) for error in told] == [TooManyConnections]


def test_limit_concurrency() -> None:
    async def main() -> None:
        app = Waiting()
        async with here(app, limit_concurrency=1) as server, h2_client(server.url) as agent:
            first, second = agent.open("/wait"), agent.open()
            await agent.sees(lambda: agent.was_reset(second) == ErrorCodes.REFUSED_STREAM)
            app.release.set()
            assert await agent.ended(first) == "200"

    run(main())


@pytest.mark.parametrize("asked", [False, True], ids=["nothing was asked", "after a request"])
def test_an_idle_connection_ends(asked: bool) -> None:
    async def main() -> None:
        deadlines = Deadlines(request_head=60 if asked else 0.5)
        options = {"deadlines": deadlines, "timeout_keep_alive": 0.5 if asked else 60}
        async with here(**options) as server, h2_client(server.url) as agent:
            if asked:
                assert await agent.ended(agent.open()) == "200"
            while not agent.closed:  # what asks for nothing does not keep it open
                agent.h2.ping(b"12345678")
                agent.flush()
                await asyncio.sleep(0.05)
            assert agent.goodbye() == ErrorCodes.NO_ERROR

    run(main())


def test_a_client_that_leaves() -> None:
    """With a goodbye, or without: the application hears of it."""
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        heard.append("called")
        assert (await receive())["type"] == "http.disconnect"
        with pytest.raises(OSError):
            await send({"type": "http.response.start", "status": 200, "headers": []})
        heard.append("heard")

    async def main() -> None:
        async with here(app) as server:
            for goodbye in (True, False):
                heard.clear()
                async with h2_client(server.url) as agent:
                    agent.open()
                    await until(lambda: heard == ["called"])
                    if goodbye:
                        agent.h2.close_connection()
                        agent.flush()
                        await until(lambda agent=agent: agent.closed)  # type: ignore[misc]
                await until(lambda: heard == ["called", "heard"])

    run(main())


# Configuration.


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "trust.tls.http2")
    monkeypatch.setitem(sys.modules, "h2.config", None)
    with pytest.raises(ConfigurationError, match=r"a2a-trust\[http2\]"):
        uvicorn_config(echo, **BASE)


def test_it_is_off_by_itself() -> None:
    async def main() -> None:
        async with here(http2=False) as server:
            context = client_context(AGENT, FORGE.bundles, SERVERS)
            context.set_alpn_protocols(["h2", "http/1.1"])
            _, writer = await asyncio.open_connection("127.0.0.1", port_of(server.url), ssl=context)
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
            writer.transport.abort()

    run(main())
