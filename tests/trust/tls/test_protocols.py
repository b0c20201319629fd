"""What a client may take of a server: bytes of a head, time for a request, and requests ahead of their answers."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from tests.trust.tls.parts import FORGE, HTTP, LOOPS, SERVERS, SWIFT, client, echo, run, until
from tests.trust.tls.test_server import HEAD, closed_after, here, tls_stream
from trust.identity import GROUP_EXTENSION, PEER_EXTENSION, PRESENTED_EXTENSION
from trust.tls import client_context
from trust.tls.protocols import MAX_HEAD_BYTES, identified

MIB = 1 << 20
STALLS = replace(SWIFT, stall=0.2)
FLOODS = {
    "target": (b"GET /", b"a" * 65536),
    "one header": (b"GET / HTTP/1.1\r\nHost: a\r\nx: ", b"a" * 65536),
    "many headers": (b"GET / HTTP/1.1\r\nHost: a\r\n", b"a:b\r\n" * 13107),
    "trailers": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n",
        b"a:b\r\n" * 13107,
    ),
    "chunk extension": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a" * 65536),
}


async def accepted(writer: asyncio.StreamWriter, block: bytes, *, at_most: int = 30 * MIB) -> int:
    """How many bytes the server takes before it cuts the connection or reads no more."""
    sent = 0
    try:
        while sent < at_most:
            writer.write(block)
            async with asyncio.timeout(0.5):
                await writer.drain()
            sent += len(block)
    except (ConnectionError, TimeoutError):
        pass
    return sent


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("flood", FLOODS)
def test_a_head_without_an_end(flood: str, http: str) -> None:
    """What is sent beyond the limit waits in sockets, not in the server."""

    async def main() -> None:
        first, block = FLOODS[flood]
        deadlines = replace(SWIFT, request_head=10)
        async with here(http=http, deadlines=deadlines) as server, tls_stream(server.url) as (reader, writer):
            writer.write(first)
            assert await accepted(writer, block) < 8 * MIB
            await closed_after(reader)
            async with client() as agent:
                assert (await agent.get(server.url)).status_code == 200

    run(main())


@pytest.mark.parametrize("http", HTTP)
def test_a_large_head_within_the_limit(http: str) -> None:
    async def main() -> None:
        async with here(http=http) as server, client() as agent:
            for _ in range(3):
                response = await agent.post(server.url, headers={"x": "a" * (MAX_HEAD_BYTES - 8192)}, content=b"body")
                assert response.content == b"body"

    run(main())


@pytest.mark.parametrize("http", HTTP)
def test_a_body_is_no_head(http: str) -> None:
    """In chunks of one byte and in one: the bound of a head does not count what belongs to a body."""

    async def small() -> Any:
        for _ in range(1000):
            yield b"x"

    async def main() -> None:
        async with here(http=http) as server, client() as agent:
            assert len((await agent.post(server.url, content=small())).content) == 1000
            for _ in range(2):
                assert len((await agent.post(server.url, content=b"x" * 10 * MAX_HEAD_BYTES)).content) == 655360

    run(main())


@pytest.mark.parametrize("http", HTTP)
def test_trailers_are_no_headers(http: str) -> None:
    """Not before and not after the application began: nobody could judge them."""
    began, seen = asyncio.Event(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        began.set()
        while (await receive())["more_body"]:
            pass
        seen.append(sorted(name for name, _ in scope["headers"]))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def main() -> None:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
        trailers = b"0\r\nA2A-Extensions: https://evil.example/\r\nHost: other\r\n\r\n"
        async with here(app, http=http) as server, tls_stream(server.url) as (reader, writer):
            writer.write(head)
            await began.wait()
            writer.write(trailers)
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head + trailers)
            await reader.readuntil(b"\r\n\r\n")

    run(main())
    assert seen == [[b"host", b"transfer-encoding"]] * 2


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("more", ["half a head", "whole requests"])
def test_what_is_pipelined_behind_an_answer_is_not_read_without_end(more: str, http: str) -> None:
    """Also where the application asks for more of its own request again and again."""
    release, asked = asyncio.Event(), 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal asked
        while not release.is_set():
            asked += 1
            more = asyncio.ensure_future(receive())
            await asyncio.wait([more], timeout=0.002)
            more.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b""})

    async def main() -> None:
        block = b"a:b\r\n" * 13107 if more == "half a head" else b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2400
        async with here(app, http=http) as server, tls_stream(server.url) as (_, writer):
            writer.write(HEAD + b"\r\n")
            await until(lambda: asked)
            if more == "half a head":
                writer.write(HEAD)
            assert await accepted(writer, block) < 12 * MIB
            release.set()

    run(main())


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("loop", LOOPS)
def test_pipelined_requests_are_answered(loop: str, http: str) -> None:
    """All of them, in their order, with bodies that come only when the turn is theirs."""
    paths: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        paths.append(scope["path"])
        await asyncio.sleep(0.01)
        await echo(scope, receive, send)

    async def main() -> None:
        async with here(app, http=http) as server, tls_stream(server.url) as (reader, writer):
            writer.write(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(10)))
            await until(lambda: paths)
            for n in range(10, 20):
                writer.write(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n)
            writer.write(b"POST /20 HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n")
            for _ in range(20):
                await reader.readuntil(b"\r\n\r\n")
            writer.write(b"x" * 200000)
            await reader.readuntil(b"content-length: 200000\r\n\r\n")
            assert await reader.readexactly(200000) == b"x" * 200000

    run(main(), loop)
    assert paths == [f"/{n}" for n in range(21)]


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_body_that_does_not_come_is_cut(loop: str, http: str) -> None:
    """Of a first request, and of one that was pipelined behind another."""
    answered = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.05)
        await echo(scope, receive, send)
        answered.append(scope["path"])

    async def main() -> None:
        half = b"POST /half HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf"
        async with here(app, http=http, deadlines=STALLS) as server:
            for data in (half, HEAD + b"\r\n" + half):
                async with tls_stream(server.url) as (reader, writer):
                    writer.write(data)
                    assert await closed_after(reader) > 0.15

    run(main(), loop)
    assert answered.count("/a") == 1


@pytest.mark.parametrize("http", HTTP)
def test_a_slow_body_is_waited_for(http: str) -> None:
    async def body() -> Any:
        for _ in range(8):
            await asyncio.sleep(0.25)
            yield b"x"

    async def main() -> None:
        async with here(http=http, deadlines=replace(SWIFT, stall=1.5)) as server, client() as agent:
            assert (await agent.post(server.url, content=body())).content == b"x" * 8

    run(main())


@pytest.mark.parametrize("http", HTTP)
def test_a_body_that_the_application_does_not_take_is_no_stall(http: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.7)
        await echo(scope, receive, send)

    async def main() -> None:
        async with here(app, http=http, deadlines=STALLS) as server, client() as agent:
            body = b"x" * 3 * MIB
            assert (await agent.post(server.url, content=body)).content == body

    run(main())


def test_an_answer_that_is_not_taken_is_cut() -> None:
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        ended.set()

    async def main() -> None:
        async with here(app, deadlines=STALLS) as server, tls_stream(server.url) as (_, writer):
            writer.transport.pause_reading()
            writer.write(HEAD + b"\r\n")
            started = time.monotonic()
            await asyncio.wait_for(ended.wait(), 20)
            assert time.monotonic() - started > 0.2

    run(main())


def test_an_answer_that_is_taken_slowly_is_not_cut() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"12000000"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * 12_000_000})

    async def main() -> None:
        deadlines = replace(STALLS, close=0.2)
        async with here(app, deadlines=deadlines) as server, tls_stream(server.url) as (reader, writer):
            writer.write(HEAD + b"\r\n")
            await reader.readuntil(b"\r\n\r\n")
            got = 0
            while got < 12_000_000:
                await asyncio.sleep(0.05)
                part = await reader.readexactly(min(800_000, 12_000_000 - got))
                got += len(part)

    run(main())


WEBSOCKET = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
BEYOND = {
    "a long line": b"x: " + b"a" * 9000 + b"\r\n",
    "many headers": b"x: 1\r\n" * 130,
    "a body": b"Content-Length: 2\r\n",
}


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("what", BEYOND)
def test_a_websocket_handshake_that_its_library_does_not_take_is_answered(what: str, http: str) -> None:
    asked = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["type"])
        await receive()
        await send({"type": "websocket.accept"})

    async def main() -> None:
        async with here(app, http=http) as server:
            async with tls_stream(server.url) as (reader, writer):
                writer.write(WEBSOCKET + BEYOND[what] + b"\r\n")
                async with asyncio.timeout(20):
                    assert (await reader.read(-1)).startswith(b"HTTP/1.1 400 Bad Request\r\n")
            async with tls_stream(server.url) as (reader, writer):
                writer.write(WEBSOCKET + b"x: " + b"a" * 8000 + b"\r\n\r\n")
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")

    run(main())
    assert asked == ["websocket"]


# RFC 9112 sections 3.2, 6.1 and 6.3: what two readers could take for two hosts, or for two requests.
CODED = b"Transfer-Encoding: chunked\r\n"
AMBIGUOUS = {
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts in HTTP/1.0": b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
    "another coding": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"POST / HTTP/1.1\r\nHost: a\r\n" + 2 * CODED + b"\r\n0\r\n\r\n",
    "chunks and a length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n" + CODED + b"\r\n0\r\n\r\n",
    "a length and chunks": b"POST / HTTP/1.1\r\nHost: a\r\n" + CODED + b"Content-Length: 4\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nHost: a\r\n" + CODED + b"\r\n0\r\n\r\n",
    "chunks in what is no version": b"POST / HTTP/2.0\r\nHost: a\r\n" + CODED + b"\r\n0\r\n\r\n",
    "a websocket with two hosts": WEBSOCKET + b"Host: b\r\n\r\n",
}
CLEAR = {
    "no host in HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "chunks": b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
}


async def answers(url: str, data: bytes) -> bytes:
    """All that comes until the server closes the connection."""
    async with tls_stream(url) as (reader, writer), asyncio.timeout(20):
        writer.write(data)
        return await reader.read(-1)


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("what", AMBIGUOUS)
def test_a_request_that_could_be_another_is_refused(what: str, http: str) -> None:
    """And nothing that comes behind it is a request."""
    asked = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["type"])
        await echo(scope, receive, send)

    async def main() -> None:
        async with here(app, http=http, lifespan="off") as server:
            answer = await answers(server.url, AMBIGUOUS[what] + HEAD + b"\r\n")
            assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1
            assert not asked

    run(main())


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("what", CLEAR)
def test_a_request_that_is_clear_is_served(what: str, http: str) -> None:
    async def main() -> None:
        async with here(http=http) as server:
            assert (await answers(server.url, CLEAR[what])).startswith(b"HTTP/1.1 200 ")

    run(main())


def test_what_names_a_peer_comes_from_the_connection_only() -> None:
    """Whatever else put it into the scope: a client without a certificate has no identity."""
    seen: list[dict[str, Any]] = []

    class Inner(asyncio.Protocol):
        async def app(self, scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["extensions"])

    class Wire(asyncio.Transport):
        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return connection

    connection = client_context(None, FORGE.bundles, SERVERS).connection()
    protocol = identified(Inner)()
    protocol.connection_made(Wire())
    forged = dict.fromkeys((PEER_EXTENSION, PRESENTED_EXTENSION, GROUP_EXTENSION), "forged")
    scope = {"type": "http", "http_version": "1.1", "headers": [(b"host", b"a")], "extensions": {**forged, "other": {}}}
    asyncio.run(protocol.app(scope, None, None))
    assert sorted(seen[0]) == sorted(["tls", "other", GROUP_EXTENSION]) and seen[0][GROUP_EXTENSION] == ""
