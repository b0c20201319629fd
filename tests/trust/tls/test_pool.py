"""Connections that are used again, in bounded number, by callers in the order of their coming."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.trust.tls.parts import AGENT, FORGE, LOOPS, SERVER, client, echo, run, until
from tests.trust.tls.test_client import Scripted, handshaken
from trust.authorize import unsafe_allow_any_peer
from trust.errors import ConfigurationError
from trust.tls import AgentTransport, pool, serving


def here(app: Any = echo) -> Any:
    return serving(app, source=SERVER, bundles=FORGE.bundles, authorize=unsafe_allow_any_peer(), lifespan="off")


class Slow:
    """Answers when told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope["path"])
        await self.go.wait()
        await echo(scope, receive, send)


def size(agent: httpx.AsyncClient) -> int:
    return len(agent._transport._pool)  # type: ignore[attr-defined]


def patient(agent: httpx.AsyncClient, **seconds: float) -> httpx.AsyncClient:
    agent.timeout = httpx.Timeout(60, **seconds)
    return agent


def test_no_more_than_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MAX_CONNECTIONS", 3)

    async def main() -> None:
        app = Slow()
        async with here(app) as server, client() as agent:
            calls = [asyncio.ensure_future(patient(agent).get(f"{server.url}/{n}")) for n in range(9)]
            await until(lambda: len(app.asked) == 3, 20)
            assert size(agent) == 3
            app.go.set()
            assert {(await call).status_code for call in calls} == {200}
            assert size(agent) == 3
            assert app.asked[3:] == [f"/{n}" for n in range(3, 9)]  # in the order of their coming

    run(main())


def test_a_caller_that_waits_too_long_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MAX_CONNECTIONS", 1)

    async def main() -> None:
        app = Slow()
        async with here(app) as server, client() as agent:
            first = asyncio.ensure_future(patient(agent).get(server.url))
            await until(lambda: app.asked, 20)
            with pytest.raises(httpx.PoolTimeout, match="none of 1 connections"):
                await patient(agent, pool=0.05).get(server.url)
            gone = asyncio.ensure_future(patient(agent).get(server.url))
            last = asyncio.ensure_future(patient(agent).get(server.url))
            await until(lambda: len(agent._transport._pool._waiting) == 2, 20)  # type: ignore[attr-defined]
            gone.cancel()
            app.go.set()
            assert (await first).status_code == (await last).status_code == 200
            with pytest.raises(asyncio.CancelledError):
                await gone

    run(main())


def test_a_caller_that_leaves_when_it_is_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one must not wait for a turn that nobody takes."""
    monkeypatch.setattr(pool, "MAX_CONNECTIONS", 1)

    async def main() -> None:
        app = Slow()
        app.go.set()
        async with here(app) as server, client() as agent:
            transport: Any = agent._transport
            url = httpx.URL(server.url)
            origin = (url.host, url.port or 0)
            held = await transport._pool.acquire(origin, connect=None, wait=None)
            gone = asyncio.ensure_future(transport._pool.acquire(origin, connect=None, wait=None))
            last = asyncio.ensure_future(transport._pool.acquire(origin, connect=None, wait=None))
            await asyncio.sleep(0)
            transport._pool.release(held, again=True)
            gone.cancel()
            assert await last is held
            transport._pool.release(held, again=False)

    run(main())


def test_an_idle_connection_makes_room_for_another_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MAX_CONNECTIONS", 1)

    async def main() -> None:
        async with here() as one, here() as other, client() as agent:
            for url in (one.url, other.url, one.url):
                assert (await patient(agent).get(url)).status_code == 200
                assert size(agent) == 1

    run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_connections_that_rest_for_too_long(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "IDLE_SECONDS", 0.05)

    async def main() -> None:
        async with here() as server, client() as agent:
            await patient(agent).get(server.url)
            await until(lambda: size(agent) == 0, 20)
            assert (await agent.get(server.url)).status_code == 200

    run(main(), loop)


def test_no_more_than_so_many_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MAX_IDLE_CONNECTIONS", 2)
    monkeypatch.setattr(pool, "IDLE_SECONDS", 60.0)

    async def main() -> None:
        async with here() as server, client() as agent:
            await asyncio.gather(*(patient(agent).get(server.url) for _ in range(5)))
            assert size(agent) == 2

    run(main())


def answers_then(end: Callable[[Any, socket.socket], None]) -> Callable[[socket.socket], None]:
    """A server that answers the first request of each connection, and then does something else."""

    def talk(accepted: socket.socket) -> None:
        connection = handshaken(accepted)
        while not connection.read():
            connection.receive(accepted.recv(65536))
        connection.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        accepted.sendall(connection.output())
        end(connection, accepted)
        accepted.settimeout(10)
        while accepted.recv(65536):
            pass

    return talk


def says_more(connection: Any, accepted: socket.socket) -> None:
    connection.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong")
    accepted.sendall(connection.output())


def closes(connection: Any, accepted: socket.socket) -> None:
    connection.close()
    accepted.sendall(connection.output())
    accepted.shutdown(socket.SHUT_WR)


def sends_garbage(connection: Any, accepted: socket.socket) -> None:
    accepted.sendall(b"\x17\x03\x03\x00\x20" + b"\x00" * 32)


@pytest.mark.parametrize("end", [says_more, closes, sends_garbage])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_connection_that_does_not_rest_is_closed(loop: str, end: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that comes before its request is nobody's answer."""
    monkeypatch.setattr(pool, "IDLE_SECONDS", 60.0)

    async def main() -> None:
        with Scripted(answers_then(end)) as server:
            async with client() as agent:
                for _ in range(2):
                    assert (await patient(agent).get(server.url)).text == "ok"
                    await until(lambda: size(agent) == 0, 20)

    run(main(), loop)


def dies_when_asked_again(connection: Any, accepted: socket.socket) -> None:
    accepted.settimeout(20)
    accepted.recv(10)
    accepted.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_request_that_met_the_end_of_a_connection(loop: str) -> None:
    """It is sent once more when it may be: on a new connection, and once."""

    async def main() -> None:
        with Scripted(answers_then(dies_when_asked_again)) as server:
            async with client() as agent:
                patient(agent)
                assert (await agent.get(server.url)).text == "ok"
                assert (await agent.get(server.url)).text == "ok"
                with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
                    await agent.post(server.url, content=b"pay")

    run(main(), loop)


def test_another_event_loop() -> None:
    transport = AgentTransport(AGENT, FORGE.bundles, unsafe_allow_any_peer())

    async def ask(close: bool = False) -> None:
        async with here() as server:
            response = await httpx.AsyncClient(transport=transport, timeout=60).get(server.url)
            assert response.status_code == 200
            if close:
                await transport.aclose()

    async def ask_from_there() -> None:
        async with here() as server:
            await httpx.AsyncClient(transport=transport, timeout=60).get(server.url)
            there = transport._pool.acquire(("x", 1), connect=1, wait=1)
            with pytest.raises(ConfigurationError, match="another event loop"):
                await asyncio.to_thread(asyncio.run, there)
            await transport.aclose()

    run(ask(close=True))
    run(ask_from_there())
    run(ask(close=True))


def test_no_event_loop_of_asyncio() -> None:
    transport = AgentTransport(AGENT, FORGE.bundles, unsafe_allow_any_peer())
    with pytest.raises(ConfigurationError, match="runs on asyncio"):
        transport._pool.acquire(("x", 1), connect=1, wait=1).send(None)


def test_a_client_that_is_closed_in_the_middle() -> None:
    async def main() -> None:
        app = Slow()
        async with here(app) as server:
            agent = client()
            call = asyncio.ensure_future(patient(agent).get(server.url))
            await until(lambda: app.asked, 20)
            await agent.aclose()
            with pytest.raises(httpx.ReadError, match="closed"):
                await call
            assert size(agent) == 0
            app.go.set()

    run(main())


def test_closed_while_others_wait_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets one any more, and none is left over."""
    monkeypatch.setattr(pool, "MAX_CONNECTIONS", 1)
    done = threading.Event()

    async def main() -> None:
        with Scripted(lambda accepted: done.wait(20) and None) as server:
            agent = patient(client())
            connections: Any = agent._transport._pool  # type: ignore[attr-defined]
            calls = [asyncio.ensure_future(agent.get(server.url)) for _ in range(3)]
            await until(lambda: connections._streams and len(connections._waiting) == 2, 20)
            await agent.aclose()
            for call in calls:
                with pytest.raises(httpx.ConnectError, match="client was closed"):
                    await call
            assert size(agent) == 0
            done.set()

    run(main())


def test_a_connection_that_is_there_too_late() -> None:
    async def main() -> None:
        async with here() as server:
            agent = client()
            transport: Any = agent._transport
            connect, late = transport._pool._connect, asyncio.Event()

            async def after_the_end(*arguments: Any) -> Any:
                await late.wait()
                return await connect(*arguments)

            transport._pool._connect = after_the_end
            call = asyncio.ensure_future(patient(agent).get(server.url))
            await until(lambda: size(agent) == 1, 20)
            await agent.aclose()
            late.set()
            with pytest.raises(httpx.ConnectError, match="client was closed"):
                await call
            await until(lambda: not transport._pool._streams, 20)
            assert size(agent) == 0

    run(main())


def test_a_request_that_cannot_be_sent_costs_no_connection() -> None:
    async def main() -> None:
        async with here() as server, client() as agent:
            assert (await patient(agent).get(server.url)).status_code == 200
            kept = set(agent._transport._pool._streams)  # type: ignore[attr-defined]
            for headers in ({"x": "a\nb"}, {"content-length": "3"}):
                with pytest.raises(httpx.LocalProtocolError):
                    await agent.post(server.url, content=b"question", headers=headers)
            assert (await agent.get(server.url)).status_code == 200
            assert set(agent._transport._pool._streams) == kept  # type: ignore[attr-defined]

    run(main())
