"""Whoever tries to hurt a server, an honest client that keeps calling in the meantime does not notice."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.trust.tls.parts import AGENT, AGENTS, FORGE, SERVER, SERVERS, KeyUpdates, client, echo, port_of, run, until
from tests.trust.tls.test_server import HEAD
from tests.trust.tls.test_transport import Client
from trust.credentials import Credentials
from trust.errors import HandshakeFailed, HandshakeGaveWay, TooManyConnections, TransportError, TrustError
from trust.seldom import LINES
from trust.tls import Deadlines, Limits, client_context, serving

SECOND = FORGE.leaf("/second")
PATIENCE = 30.0  # seconds that a test waits for what must happen
DEADLINES = Deadlines(handshake=5, request_head=2, stall=2, linger=1, trust_check=0.5)
LIMITS = Limits(connections=60, peer=20, handshakes=60)

FLOOD_SECONDS = 0.01  # between two connections of a flood; a busy machine slows the flood and the honest client alike

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Honest:
    """Calls over one connection, and over a new one each time. It does not try again: every failure is one."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers = {"same": 0, "new": 0}

    async def call(self, streams: Streams) -> None:
        reader, writer = streams
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(5) == b"hello"

    async def same(self) -> None:
        streams = await secure(self.port, AGENT)
        with contextlib.closing(streams[1].transport):
            while True:
                await self.call(streams)
                self.answers["same"] += 1
                await asyncio.sleep(0.02)

    async def new(self) -> None:
        while True:
            streams = await secure(self.port, AGENT)
            with contextlib.closing(streams[1].transport):
                await self.call(streams)
            self.answers["new"] += 1
            await asyncio.sleep(0.02)

    @contextlib.asynccontextmanager
    async def calling(self) -> Any:
        """While the block runs, and until it has been answered ten times more each way."""
        tasks = [asyncio.ensure_future(self.same()), asyncio.ensure_future(self.new())]

        async def answered(number: int) -> None:
            goal = {way: count + number for way, count in self.answers.items()}
            await until(lambda: any(t.done() for t in tasks) or all(self.answers[w] >= goal[w] for w in goal), PATIENCE)

        try:
            await answered(1)
            yield
            await answered(10)
            for task in tasks:
                assert not task.done(), task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def plain(port: int) -> Streams:
    return await asyncio.open_connection("127.0.0.1", port)


async def secure(port: int, credentials: Credentials = SECOND) -> Streams:
    return await asyncio.open_connection("127.0.0.1", port, ssl=client_context(credentials, FORGE.bundles, SERVERS))


async def closed(*connections: Streams) -> bytes:
    """What the server sent until it closed each of them, which it must."""
    got = b""
    for reader, writer in connections:
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError, OSError):
                while data := await reader.read(65536):
                    got += data
        writer.transport.abort()
    return got


async def drip(streams: Streams, first: bytes, more: bytes) -> None:
    """One byte in time after the other, until the server has enough."""
    reader, writer = streams
    ended = asyncio.ensure_future(closed(streams))
    writer.write(first)
    while not ended.done():
        writer.write(more)
        await asyncio.sleep(0.1)
    await ended
    assert reader.at_eof() or reader.exception()


async def slow_heads(port: int) -> None:
    await asyncio.gather(*[drip(await secure(port), HEAD, b"x") for _ in range(10)])


async def stalled_bodies(port: int) -> None:
    connections = [await secure(port) for _ in range(10)]
    for _, writer in connections:
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf")
    await closed(*connections)


async def half_open(port: int) -> None:
    await closed(*[await plain(port) for _ in range(20)])


async def slow_hellos(port: int) -> None:
    await asyncio.gather(*[drip(await plain(port), hello()[:50], b"\0") for _ in range(10)])


async def garbage(port: int) -> None:
    for data in (b"\x00" * 64, bytes(range(256)) * 1000, b"\x16\x03\x01\x00\x05hello", b"SSH-2.0-OpenSSH_9\r\n"):
        streams = await plain(port)
        streams[1].write(data)
        await closed(streams)


async def oversized_heads(port: int) -> None:
    for _ in range(3):
        streams = await secure(port)
        streams[1].write(HEAD + b"x: " + b"a" * (1 << 20))
        answer = await closed(streams)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


async def plain_http(port: int) -> None:
    for request in (
        HEAD + b"\r\n",
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"OPTIONS * HTTP/1.1\r\n",
    ):
        streams = await plain(port)
        streams[1].write(request)
        answer = await closed(streams)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n") and b"HTTPS only, with TLS 1.3" in answer


async def port_scan(port: int) -> None:
    for _ in range(10):
        for _, writer in await asyncio.gather(*[plain(port) for _ in range(25)]):
            writer.transport.abort()


def hello() -> bytes:
    connection = client_context(SECOND, FORGE.bundles, SERVERS).connection("localhost")
    connection.handshake()
    return connection.output()


async def silent_flood(port: int) -> None:
    connections = []
    for _ in range(150):
        connections.append(await plain(port))
        await asyncio.sleep(FLOOD_SECONDS)
    await closed(*connections)


async def hello_flood(port: int) -> None:
    connections, first = [], hello()
    for _ in range(150):
        connections.append(await plain(port))
        connections[-1][1].write(first)
        await asyncio.sleep(FLOOD_SECONDS)
    await closed(*connections)


async def key_updates(port: int) -> None:
    """Those which ask for an answer, and those which do not."""
    for asking in (True, False):
        context = client_context(SECOND, FORGE.bundles, SERVERS)
        updates = KeyUpdates(context)
        streams = await plain(port)
        agent = Client(*streams)
        agent.tls = context.connection()
        await agent.handshake()
        streams[1].write(updates.records(5000, asking=asking))
        await closed(streams)


async def hog(port: int) -> None:
    """Within its share an agent is served, beyond it is told so at once, and with a place again it is served."""
    within, beyond = [], []
    for _ in range(LIMITS.peer):
        within.append(await secure(port))
        within[-1][1].write(HEAD + b"\r\n")
        assert (await within[-1][0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    for _ in range(10):
        beyond.append(await secure(port))
        beyond[-1][1].write(HEAD + b"\r\n")
    answers = await closed(*beyond)
    assert answers.count(b"HTTP/1.1 503 Service Unavailable\r\n") == answers.count(b"HTTP/1.1") == 10
    async with client(SECOND) as agent:
        assert (await agent.get(f"https://127.0.0.1:{port}")).status_code == 503  # httpx reads it, too
        for _, writer in within:
            writer.transport.abort()
        while (await agent.get(f"https://127.0.0.1:{port}")).status_code == 503:
            await asyncio.sleep(0.05)


async def idle(port: int) -> None:
    await closed(*[await secure(port) for _ in range(10)])


ATTACKS: list[tuple[Callable[[int], Awaitable[None]], set[type[TrustError]]]] = [
    (slow_heads, set()),
    (stalled_bodies, set()),
    (half_open, {HandshakeFailed}),
    (slow_hellos, {HandshakeFailed}),
    (garbage, {HandshakeFailed}),
    (oversized_heads, set()),
    (plain_http, {HandshakeFailed}),
    (port_scan, set()),
    (silent_flood, {HandshakeGaveWay, HandshakeFailed}),
    (hello_flood, {HandshakeGaveWay, HandshakeFailed}),
    (key_updates, {TransportError}),
    (hog, {TooManyConnections}),
    (idle, set()),
]


@pytest.mark.parametrize(("attack", "expected"), ATTACKS, ids=[attack.__name__ for attack, _ in ATTACKS])
def test_an_honest_client_does_not_suffer(
    attack: Callable[[int], Awaitable[None]], expected: set[type[TrustError]]
) -> None:
    told: list[TrustError] = []
    trail: list[dict[str, Any]] = []

    class Trail:
        def record(self, **facts: Any) -> None:
            trail.append(facts)

    async def main() -> None:
        async with (
            serving(
                echo,
                source=SERVER,
                bundles=FORGE.bundles,
                authorize=AGENTS,
                deadlines=DEADLINES,
                limits=LIMITS,
                audit=Trail(),
                on_refused=lambda error, _: told.append(error),
                lifespan="off",
            ) as server,
            Honest(port_of(server.url)).calling(),
        ):
            await attack(port_of(server.url))

    run(main())
    assert {type(error) for error in told} == expected
    refused = Counter(error.check for error in told)  # of each kind so many lines a minute
    assert Counter(line["check"] for line in trail) == {check: min(count, LINES) for check, count in refused.items()}
    assert {line["event"] for line in trail} <= {"connection" if expected == {TransportError} else "handshake"}
    assert all(line["peer"].startswith("127.0.0.1:") for line in trail)
    assert all(error.claimed in ("", str(SECOND.agent_id)) for error in told)
