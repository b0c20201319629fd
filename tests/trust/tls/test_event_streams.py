"""A server that stops, or a peer that lost its trust: what is in flight finishes, and event streams are cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from tests.trust.tls.parts import HTTP, LOOPS, client, echo, port_of, run, until
from tests.trust.tls.test_server import HEAD, here, tls_stream
from tests.trust.tls.test_transport import Client
from trust.authorize import exactly
from trust.errors import TransportError
from trust.tls import Deadlines, protocols

PATIENCE = 20.0
STREAM = [(b"Content-Type", b"text/event-stream")]
NOBODY = exactly("spiffe://fleet.example/nobody")

Send = Callable[[dict[str, Any]], Awaitable[None]]


class Streamer:
    """An application that streams events until it is told, in a way of its own, that the client has gone."""

    def __init__(self, manner: str) -> None:
        self.manner, self.ended, self.begin = manner, "", asyncio.Event()
        self.asked = False

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        self.asked = True
        if self.manner == "begins late":
            await self.begin.wait()
        headers = [*STREAM, (b"content-length", b"1000")] if self.manner == "of a fixed length" else STREAM
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            if self.manner == "listens":
                await receive()
                await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
                assert (await receive())["type"] == "http.disconnect"
                self.ended = "told"
                return
            while True:
                await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
                await asyncio.sleep(0.02)
        except OSError:
            self.ended = "stopped"
            raise RuntimeError("what an application makes of it") from None


MANNERS = {"listens": "told", "never looks": "stopped", "begins late": "stopped", "of a fixed length": "stopped"}


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("why", ["the server stops", "the peer lost its trust"])
def test_an_event_stream_is_cut(
    why: str, manner: str, http: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[Any] = []

    class Noted(protocols._Streams):
        def __init__(self, app: Any) -> None:
            super().__init__(app)
            streams.append(self)

    monkeypatch.setattr(protocols, "_Streams", Noted)

    async def main() -> None:
        app = Streamer(manner)
        serving = here(app, http=http, deadlines=Deadlines(), log_config=None)
        server = await serving.__aenter__()
        async with tls_stream(server.url) as (reader, writer):
            writer.write(HEAD + b"\r\n")
            if manner == "begins late":
                await until(lambda: app.asked)
            else:
                await reader.readuntil(b"data: 1\n\n")
            if why == "the server stops":
                stopping = asyncio.ensure_future(serving.__aexit__(None, None, None))
            else:
                server.context.reload(authorize=NOBODY)
            await until(lambda: streams[0].told)
            app.begin.set()
            async with asyncio.timeout(PATIENCE):
                assert not (await reader.read(-1)).endswith(b"0\r\n\r\n")
                await until(lambda: app.ended == MANNERS[manner], PATIENCE)
                await (stopping if why == "the server stops" else serving.__aexit__(None, None, None))

    run(main())
    assert not caplog.records


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_sees_the_cut(version: str) -> None:
    """Also one whose answer ends where the connection does: it is told by TLS that this was not the end."""

    async def main() -> None:
        stack = here(Streamer("never looks"), http="h11", deadlines=Deadlines())
        port = port_of((await stack.__aenter__()).url)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        plain = Client(reader, writer)
        await plain.handshake()
        plain.tls.write(b"GET /a HTTP/%b\r\nHost: a\r\n\r\n" % version.encode())
        plain.flush()
        got = await plain.read(200)
        assert (b"chunked" in got) == (version == "1.1")
        async with asyncio.timeout(PATIENCE):
            await stack.__aexit__(None, None, None)
            plain.tls.receive(await reader.read(-1))
        plain.tls.receive_eof()
        with pytest.raises(TransportError, match="connection was cut"):
            while data := plain.tls.read():
                got += data
        assert got.endswith(b"data: 1\n\n" if version == "1.0" else b"data: 1\n\n\r\n")
        writer.transport.abort()

    run(main())


@pytest.mark.parametrize("http", HTTP)
def test_our_client_does_not_take_it_for_the_end(http: str) -> None:
    async def main() -> None:
        stack = here(Streamer("never looks"), http=http, deadlines=Deadlines())
        url = (await stack.__aenter__()).url
        async with client() as agent, agent.stream("GET", url) as response:
            ended: Any = None
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(httpx.TransportError):
                    async for _ in response.aiter_raw():
                        ended = ended or asyncio.ensure_future(stack.__aexit__(None, None, None))
            await ended

    run(main())


def test_an_application_that_fails_by_itself_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": STREAM})
        raise RuntimeError("a defect")

    async def main() -> None:
        async with here(app, log_config=None) as server, tls_stream(server.url) as (reader, writer):
            writer.write(HEAD + b"\r\n")
            await reader.read(-1)

    run(main())
    assert "Exception in ASGI application" in caplog.text


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_server_that_stops_finishes_what_is_in_flight(loop: str, http: str) -> None:
    """A request under way is answered whole, a second one on an open connection is not taken."""
    begun, release = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begun.set()
        await release.wait()
        await echo(scope, receive, send)

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            server = here(app, http=http, deadlines=Deadlines())
            url = (await server.__aenter__()).url
            reader, writer = await stack.enter_async_context(tls_stream(url))
            idle, _ = await stack.enter_async_context(tls_stream(url))
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n\r\n" + b"x" * 50000)
            await begun.wait()
            stopping = asyncio.ensure_future(server.__aexit__(None, None, None))
            async with asyncio.timeout(PATIENCE):
                assert await idle.read(-1) == b""
                assert not stopping.done()
                release.set()
                answer = await reader.read(-1)
                await stopping
            assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n\r\n" + b"x" * 50000)
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))

    run(main(), loop)


def test_a_server_that_stops_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begun.set()
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            async with (
                here(app, log_config=None, deadlines=Deadlines(grace=0.5)) as server,
                tls_stream(server.url) as (_, writer),
            ):
                writer.write(HEAD + b"\r\n")
                await begun.wait()
            await cancelled.wait()

    run(main())
    assert "timeout graceful shutdown exceeded" in caplog.text
