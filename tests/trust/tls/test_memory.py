"""What connections and bytes leave behind, at both ends: nothing."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trust.tls.parts import AGENT, AGENTS, FORGE, SERVER, SERVERS, port_of, run, until
from tests.trust.tls.test_transport import Client
from trust.errors import HandshakeRefused, PeerNotAllowed
from trust.tls import Limits, client_context, serving
from trust.tls import server as server_module
from trust.tls.register import Register

MIB = 1 << 20
GIB = 1 << 30
# What a run may seem to leave behind: the allocator's rounding, not a leak. An object or 4 KiB for each handshake, or a
# hundredth of what passes, is above it.
PYTHON_NOISE, PROCESS_NOISE = 500, 7 * MIB
HANDSHAKES = int(os.environ.get("A2A_TRUST_HANDSHAKES", "2000"))  # a multiple of twenty; ten thousand take minutes
WARM_UP = 1000
INTRUDER = FORGE.leaf("/intruder")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Takes all that comes, and sends as much as it is asked for by the path."""
    while (await receive()).get("more_body"):
        pass
    size = int(scope["path"][1:] or 0)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
    for _ in range(size // MIB):
        await send({"type": "http.response.body", "body": b"x" * MIB, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def growth(work: Callable[[], Awaitable[None]], warm_up: Callable[[], Awaitable[None]]) -> tuple[int, int]:
    """Python's objects, and bytes of the process as a whole, by which `work` made it grow.

    What leaks does so every time; what the allocator keeps for the next time, it keeps once: of three times the first
    that stays below the noise, or the last.
    """
    await warm_up()
    for _ in range(3):
        gc.collect()
        objects, process = len(gc.get_objects()), resident()
        await work()
        gc.collect()
        grown = len(gc.get_objects()) - objects, resident() - process
        if grown[0] < PYTHON_NOISE and grown[1] < PROCESS_NOISE:
            break
    return grown


@pytest.mark.parametrize("loop", ["asyncio"])
def test_handshakes(loop: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands, of which every tenth is refused."""
    register = Register(Limits(), 0.5)
    monkeypatch.setattr(server_module, "Register", lambda *_: register)

    async def main() -> None:
        contexts = {c.agent_id: client_context(c, FORGE.bundles, SERVERS) for c in (AGENT, INTRUDER)}

        async def one(number: int, port: int) -> None:
            refused = number % 10 == 9
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            client = Client(reader, writer)  # the loops' own TLS clients leave something behind when they are refused
            client.tls = contexts[(INTRUDER if refused else AGENT).agent_id].connection("localhost")
            await client.handshake()
            client.tls.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            client.flush()
            try:
                assert (await client.read(12)).startswith(b"HTTP/1.1 200")
            except HandshakeRefused:
                assert refused
            writer.transport.abort()
            client.tls.release()

        told: dict[type, int] = {}

        def count(error: Exception, _: Any) -> None:
            told[type(error)] = told.get(type(error), 0) + 1

        options: dict[str, Any] = {"source": SERVER, "bundles": FORGE.bundles, "authorize": AGENTS}
        async with serving(app, **options, on_refused=count, lifespan="off") as server:
            port = port_of(server.url)

            asked = 0

            async def many(number: int) -> None:
                nonlocal asked
                asked += number
                for start in range(0, number, 20):
                    await asyncio.gather(*(one(n, port) for n in range(start, start + 20)))
                await until(lambda: not len(register))  # those that were refused linger

            objects, process = await growth(lambda: many(HANDSHAKES), lambda: many(WARM_UP))
            assert told == {PeerNotAllowed: asked // 10}
        with capsys.disabled():
            print(f"\n{HANDSHAKES} handshakes: {objects:+d} objects, {process / MIB:+.1f} MiB of the process")
        assert objects < PYTHON_NOISE and process < PROCESS_NOISE

    run(main(), loop)


@pytest.mark.parametrize("loop", ["asyncio"])
def test_one_gibibyte(loop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of it there, half of it back, over one connection."""

    async def main() -> None:
        options: dict[str, Any] = {"source": SERVER, "bundles": FORGE.bundles, "authorize": AGENTS}
        async with serving(app, **options, lifespan="off") as server:
            context = client_context(AGENT, FORGE.bundles, SERVERS)
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server.url), ssl=context, limit=MIB)

            async def move(size: int) -> None:
                writer.write(b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (size, size))
                for _ in range(size // MIB):
                    writer.write(b"x" * MIB)
                    await writer.drain()
                await reader.readuntil(b"\r\n\r\n")
                left = size
                while left:
                    left -= len(await reader.read(min(left, MIB)))

            objects, process = await growth(lambda: move(GIB // 2), lambda: move(64 * MIB))
            writer.transport.abort()
        with capsys.disabled():
            print(f"\n1 GiB: {objects:+d} objects, {process / MIB:+.1f} MiB of the process")
        assert objects < PYTHON_NOISE and process < PROCESS_NOISE

    run(main(), loop)
