"""The transport that a protocol inside of our TLS sees: what uvicorn does not exercise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.trust.tls.parts import AGENT, AGENTS, FORGE, LOOPS, SERVER, SERVERS, SWIFT, run, until
from trust.errors import TransportError
from trust.tls import client_context, server_context
from trust.tls.connection import Connection
from trust.tls.transport import TlsProtocol, TlsTransport


class Inner(asyncio.Protocol):
    """Records what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.got = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.got += data

    def eof_received(self) -> None:
        self.told.append("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")


class Client:
    """The other end, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.tls: Connection = client_context(AGENT, FORGE.bundles, SERVERS).connection()

    async def handshake(self) -> None:
        while not self.tls.handshake():
            self.flush()
            self.tls.receive(await self.reader.read(65536))
        self.flush()

    def flush(self) -> None:
        self.writer.write(self.tls.output())

    async def read(self, size: int) -> bytes:
        got = b""
        while len(got) < size:
            part = self.tls.read()
            if part is None:
                self.tls.receive(await self.reader.read(65536))
            else:
                got += part
        return got


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Client, Inner, set[Any]]]:
    loop = asyncio.get_running_loop()
    context = server_context(SERVER, FORGE.bundles, AGENTS)
    inner, live = Inner(), set[Any]()
    server = await loop.create_server(
        lambda: TlsProtocol(context, lambda: inner, live=live, loop=loop, deadlines=SWIFT), "127.0.0.1", 0
    )
    client = Client(*await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1]))
    await client.handshake()
    await until(lambda: inner.told)
    yield client, inner, live
    client.writer.transport.abort()
    await until(lambda: "lost" in inner.told)
    assert inner.told.count("lost") == inner.told.count("made") == 1 and not live
    server.close()


@pytest.mark.parametrize("loop", LOOPS)
def test_the_transport(loop: str) -> None:
    async def main() -> None:
        async with connected() as (client, inner, _):
            transport: TlsTransport = inner.transport
            assert transport.get_protocol() is inner
            assert transport.get_extra_info("peercert")["subjectAltName"] == (("URI", str(AGENT.agent_id)),)
            assert transport.get_extra_info("cipher") == ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)
            assert transport.get_extra_info("sslcontext").server_side
            assert transport.get_extra_info("peername") is not None
            assert transport.get_extra_info("nothing", "default") == "default"
            transport.set_write_buffer_limits(high=1000, low=100)
            assert tuple(transport.get_write_buffer_limits()) == (100, 1000)
            assert transport.get_write_buffer_size() == 0
            assert not transport.can_write_eof() and transport.is_reading() and not transport.is_closing()
            transport.write(b"")
            transport.writelines([b"one", bytearray(b" two"), memoryview(b" three")])
            assert await client.read(13) == b"one two three"

            transport.pause_reading()
            transport.pause_reading()
            assert not transport.is_reading()
            client.tls.write(b"later")
            client.flush()
            await asyncio.sleep(0.05)
            assert inner.got == b""
            transport.resume_reading()
            transport.resume_reading()
            await until(lambda: inner.got == b"later")

            transport.write(b"x" * 30_000_000)
            assert "pause" in inner.told
            assert len(await client.read(30_000_000)) == 30_000_000
            await until(lambda: "resume" in inner.told)
            transport.close()
            transport.close()
            assert transport.is_closing() and not transport.is_reading()
            transport.write(b"too late")
            transport.resume_reading()

    run(main(), loop)


def test_what_is_decrypted_already_does_not_wait() -> None:
    """Two records came in one packet, and the protocol paused after the first."""

    async def main() -> None:
        async with connected() as (client, inner, _):
            received = inner.data_received
            inner.data_received = lambda data: (received(data), inner.transport.pause_reading())  # type: ignore
            for number in (b"1", b"2"):
                client.tls.write(number)
            client.flush()
            await until(lambda: inner.got == b"1")
            inner.transport.resume_reading()
            await until(lambda: inner.got == b"12")
            inner.transport.resume_reading()  # a paused transport does not see the end

    run(main())


def test_a_tampered_record_ends_the_connection() -> None:
    async def main() -> None:
        async with connected() as (client, inner, _):
            client.writer.write(b"\x17\x03\x03\x00\x20" + b"\x00" * 32)
            await until(lambda: "lost" in inner.told)
            assert inner.got == b""
            inner.transport.write(b"too late")

    run(main())


def test_a_write_that_fails_ends_the_connection() -> None:
    async def main() -> None:
        async with connected() as (_, inner, _live):
            inner.transport._tls.tls.fail(TransportError("broken"))
            inner.transport.write(b"x")
            await until(lambda: "lost" in inner.told)

    run(main())


@pytest.mark.parametrize("polite", [True, False])
def test_the_end_from_the_other_side(polite: bool) -> None:
    async def main() -> None:
        async with connected() as (client, inner, _):
            if polite:
                client.tls.close()
                client.flush()
            else:
                client.writer.write_eof()
            await until(lambda: "lost" in inner.told)
            assert inner.told[:2] == ["made", "eof"]

    run(main())


def test_a_client_that_takes_nothing_is_cut() -> None:
    """`close` waits for what is to be sent, but not for ever."""

    async def main() -> None:
        async with connected() as (_, inner, _live):
            inner.transport.write(b"x" * 30_000_000)
            inner.transport.close()
            await asyncio.sleep(0.1)
            assert "lost" not in inner.told
            await until(lambda: "lost" in inner.told, 2)

    run(main())


def test_a_protocol_without_shutdown_is_closed_when_trust_ends() -> None:
    async def main() -> None:
        async with connected() as (_, inner, _live):
            inner.transport.get_extra_info("sslcontext").reload(crls=FORGE.crls(AGENT))
            await until(lambda: "lost" in inner.told)

    run(main())
