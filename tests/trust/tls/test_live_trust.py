"""A thousand open connections, of which every tenth loses its trust: those end, and nobody else notices."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
import websockets

from tests.trust.tls.parts import FORGE, SERVER, SERVERS, port_of, run, until
from tests.trust.tls.test_server import HEAD
from trust.authorize import members_of
from trust.credentials import Credentials
from trust.identity import peer_of
from trust.sources import Live
from trust.tls import client_context, serving

IDLE, STREAMS, SOCKETS = 400, 300, 300
GENEROUS = 60.0  # seconds, on a machine that does other things; what it took is printed


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the caller's path; under /events again and again; over a WebSocket to each message."""
    name = peer_of(scope).agent_id.path.encode()  # type: ignore[union-attr]
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": name})
        return
    stream = scope["path"] == "/events"
    headers = [(b"content-type", b"text/event-stream; charset=utf-8" if stream else b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    while stream:
        await send({"type": "http.response.body", "body": b"data: %s\n\n" % name, "more_body": True})
        await asyncio.sleep(1)
    await send({"type": "http.response.body", "body": name})


@dataclass(kw_only=True)
class Agent:
    """One connection, and when it ended."""

    credentials: Credentials
    ended: float | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> bytes:
        return self.credentials.agent_id.path.encode()

    async def follow(self) -> None:
        """Until the end of the connection."""
        await self.until_end()
        self.ended = time.monotonic()

    async def connect(self, port: int) -> None:
        context = client_context(self.credentials, FORGE.bundles, SERVERS)
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)

    async def until_end(self) -> None:
        raise NotImplementedError

    async def works(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        self.writer.transport.abort()


class Idle(Agent):
    answers = 0

    async def connect(self, port: int) -> None:
        await super().connect(port)
        self.writer.write(HEAD + b"\r\n")
        self.got = asyncio.Event()
        self.follows = asyncio.ensure_future(self.follow())
        await self.got.wait()

    async def until_end(self) -> None:
        while await self.reader.readline():
            line = await self.reader.readuntil(b"0\r\n\r\n")
            assert self.name in line
            self.answers += 1
            self.got.set()

    async def works(self) -> None:
        self.got.clear()
        self.writer.write(HEAD + b"\r\n")
        await self.got.wait()


class Stream(Idle):
    whole = False

    async def connect(self, port: int) -> None:
        await Agent.connect(self, port)
        self.writer.write(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
        self.got = asyncio.Event()
        self.follows = asyncio.ensure_future(self.follow())
        await self.got.wait()

    async def until_end(self) -> None:
        await self.reader.readuntil(b"\r\n\r\n")
        before = b""
        while line := await self.reader.readline():
            self.whole = line == b"\r\n" and before == b"0\r\n"
            before = line
            if line.startswith(b"data: "):
                assert line == b"data: %s\n" % self.name
                self.got.set()

    async def works(self) -> None:
        self.got.clear()
        await self.got.wait()


class Socket(Agent):
    async def connect(self, port: int) -> None:
        context = client_context(self.credentials, FORGE.bundles, SERVERS)
        self.socket = await websockets.connect(
            f"wss://127.0.0.1:{port}/", ssl=context, proxy=None, ping_interval=None, open_timeout=GENEROUS
        )
        await self.works()
        self.follows = asyncio.ensure_future(self.follow())

    async def until_end(self) -> None:
        await self.socket.wait_closed()

    async def works(self) -> None:
        await self.socket.send(b"?")
        assert await self.socket.recv() == self.name

    async def close(self) -> None:
        self.socket.transport.abort()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["the source changes", "reload"])
@pytest.mark.parametrize("loop", ["uvloop"])
def test_a_thousand_connections(loop: str, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [Idle] * IDLE + [Stream] * STREAMS + [Socket] * SOCKETS
    agents: list[Any] = [kind(credentials=FORGE.leaf(f"/agent-{n}")) for n, kind in enumerate(kinds)]
    lost, kept = agents[::10], [a for n, a in enumerate(agents) if n % 10]
    crls = Live(FORGE.crls())

    async def all_of(agents: list[Any], what: str, *arguments: Any) -> None:
        for start in range(0, len(agents), 50):  # of a client that is not waited for, the handshake deadline is over
            async with asyncio.timeout(GENEROUS):
                await asyncio.gather(*(getattr(a, what)(*arguments) for a in agents[start : start + 50]))

    async def stalls(found: list[float]) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            found.append(time.monotonic() - before)

    async def main() -> None:
        options: dict[str, Any] = {
            "source": SERVER,
            "bundles": FORGE.bundles,
            "authorize": members_of("fleet.example"),
            "crls": crls,
            "lifespan": "off",
            "timeout_keep_alive": 1000,
            "ws": "websockets-sansio",
        }
        async with serving(app, **options) as server:
            await all_of(agents, "connect", port_of(server.url))
            before, pauses = time.process_time(), list[float]()
            await asyncio.sleep(2)
            quiet = (time.process_time() - before) / 2
            watching = asyncio.ensure_future(stalls(pauses))
            revoked = FORGE.crls(*(a.credentials for a in lost))
            changed, before = time.monotonic(), time.process_time()
            if how == "reload":
                server.context.reload(crls=revoked)
            else:
                crls.replace(revoked)
            await until(lambda: all(a.ended for a in lost), GENEROUS)
            cost = time.process_time() - before
            watching.cancel()
            assert [a for a in kept if a.ended] == []
            assert not any(a.whole for a in lost if isinstance(a, Stream))  # nobody takes a stream that was cut for all
            await all_of(kept, "works")
            assert [a for a in kept if a.ended] == []
            with capsys.disabled():
                last = max(a.ended for a in lost) - changed
                print(
                    f"\n{len(lost)} of {len(agents)} connections ended within {last:.2f} s ({how}); {cost:.2f} s of "
                    f"CPU, longest pause {max(pauses):.3f} s; before that {quiet:.1%} of a core for all of them"
                )
            await all_of(agents, "close")
            await asyncio.gather(*(a.follows for a in agents), return_exceptions=True)

    run(main(), loop)
