"""Clients of the plain side that take no answers, or ask for too many at once; over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from pki.service import listeners
from pki.service.door import Door
from pki.service.listeners import BoundedConfig, listen, running
from trust.tls import Deadlines
from trust.tls.protocols import MAX_PIPELINED

ASK = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
PATIENCE = 20  # seconds, for what happens at once


class Answers:
    """An application with one long answer, and the connections that it has."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.asked = 0
        self.connections: list[Any] = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        await self.go.wait()
        headers = [(b"content-length", b"%d" % self.size), (b"x", b"y")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * self.size})


@contextlib.asynccontextmanager
async def served(app: Answers, http: str) -> AsyncIterator[socket.socket]:
    """A client's socket. Both systems buffer as little as they can."""
    config = BoundedConfig(app, http=http)
    config.load()
    made: Any = config.http_protocol_class

    class Kept(made):  # type: ignore[misc]  # whichever class uvicorn has chosen
        def connection_made(self, transport: asyncio.Transport) -> None:
            app.connections.append(self)
            super().connection_made(transport)

    config.http_protocol_class = Kept
    listening = listen("127.0.0.1", 0)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    async with running(config, listening, Door(10)):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(listening.getsockname())
            client.setblocking(False)
            yield client


async def until(so: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not so():
            await asyncio.sleep(0.01)


async def ended(client: socket.socket) -> bytes:
    """What comes until the server ends the connection, in whichever way."""
    loop, found = asyncio.get_running_loop(), bytearray()
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(PATIENCE):
            while chunk := await loop.sock_recv(client, 65536):
                found += chunk
    return bytes(found)


LOOPS = ["asyncio", "uvloop"]


def run(main: Any, loop: str) -> None:
    factory = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("closing", [False, True], ids=["paused", "closing"])
def test_who_takes_nothing_of_an_answer_is_cut_off(
    closing: bool, http: str, loop: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing: what is not taken is less than makes uvicorn wait, and a closed transport waits for it."""
    monkeypatch.setattr(listeners, "Deadlines", functools.partial(Deadlines, stall=0.2))

    async def main() -> None:
        app = Answers(60_000 if closing else 4 << 20)
        async with served(app, http) as client:
            client.send(ASK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") if closing else ASK * 3)
            await until(lambda: app.connections and app.connections[0].transport.get_write_buffer_size())
            (one,) = app.connections
            assert one.flow.write_paused is not closing
            await until(lambda: one not in one.connections)
            assert len(await ended(client)) < app.size

    with caplog.at_level(logging.WARNING):
        run(main(), loop)
    assert caplog.records == [], "and nobody writes on"


@pytest.mark.parametrize("loop", LOOPS)
def test_who_takes_an_answer_slowly_gets_it(loop: str) -> None:
    """However slowly: the looks are taken by hand here."""

    async def main() -> None:
        app = Answers(1 << 20)
        async with served(app, "httptools") as client:
            client.send(ASK)
            here, taken = asyncio.get_running_loop(), 0
            await until(lambda: app.connections and app.connections[0].flow.write_paused)
            (one,) = app.connections
            while one.flow.write_paused:
                one.look()
                before = one.transport.get_write_buffer_size()
                while one.flow.write_paused and one.transport.get_write_buffer_size() == before:
                    taken += len(await asyncio.wait_for(here.sock_recv(client, 4096), PATIENCE))
            one.look()
            one.look()  # nothing waits any more that would make it wait
            while taken < app.size:
                taken += len(await asyncio.wait_for(here.sock_recv(client, 65536), PATIENCE))
            assert one in one.connections

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("more", [0, 1], ids=["as many as may wait", "one more"])
def test_requests_that_wait_behind_another_are_bounded(more: int, loop: str) -> None:
    async def main() -> None:
        app = Answers(1)
        app.go.clear()
        async with served(app, "httptools") as client:
            sent = 1 + MAX_PIPELINED + more
            client.send(ASK * sent)
            await until(lambda: app.asked)
            if more:
                assert await ended(client) == b""
                app.go.set()
                assert app.asked == 1
            else:
                app.go.set()
                await until(lambda: app.asked == sent)

    run(main(), loop)
