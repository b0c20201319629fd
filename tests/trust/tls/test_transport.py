"""The transport that a protocol inside of our TLS sees: what uvicorn does not exercise."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.trust.tls.parts import AGENT, AGENTS, FORGE, LOOPS, SERVER, SERVERS, SWIFT, KeyUpdates, run, until
from trust.errors import CertificateRevoked, TransportError
from trust.tls import TrustContext, client_context, server_context
from trust.tls import register as register_module
from trust.tls.connection import RECORD_BYTES, Connection
from trust.tls.inner import TlsTransport
from trust.tls.register import Limits, Register
from trust.tls.transport import MAX_UNTAKEN_BYTES, SMALL_BYTES, Deadlines, TlsProtocol


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
        got = bytearray()
        while len(got) < size:
            part = self.tls.read()
            if part is None:
                self.tls.receive(await self.reader.read(65536))
            else:
                got += part
        return bytes(got)


@asynccontextmanager
async def connected(
    deadlines: Deadlines = SWIFT, context: TrustContext | None = None
) -> AsyncIterator[tuple[Client, Inner, set[Any]]]:
    loop = asyncio.get_running_loop()
    ours = server_context(SERVER, FORGE.bundles, AGENTS)
    inner, live, register = Inner(), set[Any](), Register(Limits(), deadlines.trust_check)
    server = await loop.create_server(
        lambda: TlsProtocol(ours, lambda _: inner, live=live, register=register, loop=loop, deadlines=deadlines),
        "127.0.0.1",
        0,
    )
    client = Client(*await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1]))
    if context is not None:
        client.tls = context.connection()
    await client.handshake()
    await until(lambda: inner.told)
    yield client, inner, live
    client.writer.transport.abort()
    await until(lambda: "lost" in inner.told)
    assert inner.told.count("lost") == inner.told.count("made") == 1 and not live and not len(register)
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
            await until(lambda: "lost" in inner.told)

    run(main())


def test_a_protocol_without_shutdown_is_closed_when_trust_ends() -> None:
    async def main() -> None:
        async with connected() as (_, inner, _live):
            inner.transport.get_extra_info("sslcontext").reload(crls=FORGE.crls(AGENT))
            await until(lambda: "lost" in inner.told)

    run(main())


def test_small_writes_of_one_turn_are_one_record() -> None:
    async def main() -> None:
        async with connected() as (client, inner, _):
            transport: TlsTransport = inner.transport
            transport.write(b"ready")
            assert await client.read(5) == b"ready"
            changed = bytearray(b"head ")
            transport.write(changed)
            changed[:] = b"xxxxx"  # it is the caller's again
            transport.write(b"body")
            assert transport.get_write_buffer_size() == 9
            record = await client.reader.read(65536)
            assert len(record) == 5 + 9 + 1 + 16  # RFC 8446 section 5.2: header, content, type, tag
            client.tls.receive(record)
            assert client.tls.read() == b"head body"
            transport.write(b"1")
            transport.write(b"2" * 40000)
            transport.write(b"3")
            transport.close()
            assert await client.read(40002) == b"1" + b"2" * 40000 + b"3"

    run(main())


@asynccontextmanager
async def updating() -> AsyncIterator[tuple[Client, Inner, KeyUpdates]]:
    context = client_context(AGENT, FORGE.bundles, SERVERS)
    updates = KeyUpdates(context)
    async with connected(context=context) as (client, inner, _):
        yield client, inner, updates


ANSWER_BYTES = 5 + 5 + 1 + 16


def test_key_updates_are_answered_though_the_application_is_silent() -> None:
    async def main() -> None:
        async with updating() as (client, inner, updates):
            client.writer.write(updates.records(20))
            async with asyncio.timeout(20):
                await client.reader.readexactly(20 * ANSWER_BYTES)
            assert inner.told == ["made"]

    run(main())


def test_a_flood_of_key_updates_by_a_client_that_takes_nothing() -> None:
    async def main() -> None:
        async with updating() as (client, inner, updates):
            client.writer.transport.pause_reading()
            inner.transport.write(b"x" * 30_000_000)
            await until(lambda: "pause" in inner.told)
            for part in (MAX_UNTAKEN_BYTES // ANSWER_BYTES - 20, 40):
                assert "lost" not in inner.told
                client.writer.write(updates.records(part, data=b"x"))
                await until(lambda part=part: len(inner.got) == part or "lost" in inner.told)  # type: ignore[misc]
                inner.got = b""
            await until(lambda: "lost" in inner.told)

    run(main())


def test_a_flood_of_key_updates_is_ended() -> None:
    async def main() -> None:
        async with updating() as (client, inner, updates):
            client.writer.write(updates.records(2000, asking=False))
            await until(lambda: "lost" in inner.told)
            assert inner.told == ["made", "lost"]

    run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_others_have_their_turns(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends very many records at once has one of them looked at in each turn of the loop, at worst."""
    monkeypatch.setattr(register_module, "TURN_SECONDS", -1.0)
    sent = bytes(range(200)) * 5

    async def main() -> None:
        async with connected() as (client, inner, _):
            turns, seen = 0, []
            received = inner.data_received

            def look(data: bytes) -> None:
                received(data)
                seen.append(turns)
                if len(seen) == len(sent) // 2:
                    inner.transport.pause_reading()
                    asyncio.get_running_loop().call_later(0.05, inner.transport.resume_reading)

            inner.data_received = look  # type: ignore[method-assign]
            for number in range(len(sent)):
                client.tls.write(sent[number : number + 1])
            client.flush()
            while len(inner.got) < len(sent):
                turns += 1
                await asyncio.sleep(0)
            assert inner.got == sent and len(set(seen)) == len(seen)
            assert inner.transport.is_reading()

    run(main(), loop)


def test_who_is_trusted_no_longer_takes_nothing_after_the_grace() -> None:
    """Also of what the application had handed over before, however steadily it takes that."""

    async def main() -> None:
        async with connected(replace(SWIFT, grace=0.2, close=60, stall=60)) as (client, inner, _):
            client.writer.transport.pause_reading()
            inner.transport.write(b"x" * 30_000_000)
            inner.transport.close()
            inner.transport._tls._distrusted(CertificateRevoked("certificate is revoked"))
            await until(lambda: "lost" in inner.told)

    run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_that_reset_the_connection_before_it_is_cut(loop: str) -> None:
    """While nothing was read from it: what uvicorn calls when it stops must not fail, and the connection ends."""

    async def main() -> None:
        async with connected() as (client, inner, _):
            inner.transport.pause_reading()
            wire = client.writer.get_extra_info("socket")
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.writer.transport.abort()
            await client.writer.wait_closed()
            inner.transport.cut()
            await until(lambda: "lost" in inner.told)

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("late", [True, False], ids=["late", "at once"])
def test_an_application_that_fails_over_what_it_is_given_loses_the_connection(
    late: bool, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if late:
        monkeypatch.setattr(register_module, "TURN_SECONDS", -1.0)

    class Defect(BaseException):
        """As the panic of a library in Rust is one."""

    def fail(_: bytes) -> None:
        raise Defect

    async def main() -> None:
        told: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
        async with connected() as (client, inner, _):
            inner.data_received = fail  # type: ignore[method-assign]
            client.tls.write(b"x")
            client.flush()
            await until(lambda: "lost" in inner.told)
        assert [type(error) for error in told] == [Defect]

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_answer_is_taken_to_its_end_though_the_request_is_not_read_to_its(loop: str) -> None:
    size = 6_000_000

    async def main() -> None:
        async with connected(replace(SWIFT, close=1.0)) as (client, inner, _):
            for end in (inner.transport, client.writer):
                wire = end.get_extra_info("socket")
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            inner.transport.pause_reading()
            client.tls.write(b"a body that nobody reads")
            client.flush()
            began = time.monotonic()
            inner.transport.write(b"x" * size)
            inner.transport.close()
            got = 0
            while data := await client.reader.read(65536):
                client.tls.receive(data)
                while part := client.tls.read():
                    got += len(part)
                await asyncio.sleep(0.02)
            assert got == size and time.monotonic() - began > 1.0

    run(main(), loop)


def test_an_application_that_takes_long_is_given_small_pieces() -> None:
    """So that the clock is looked at in between. One that does not is given whole records again."""

    async def main() -> None:
        async with connected() as (client, inner, _):
            pieces: list[int] = []
            slow = True

            def take(data: bytes) -> None:
                pieces.append(len(data))
                if slow:
                    time.sleep(0.002)

            inner.data_received = take  # type: ignore[method-assign]
            for number in range(3):
                client.tls.write(b"x" * RECORD_BYTES)
                client.flush()
                await until(lambda number=number: sum(pieces) == (number + 1) * RECORD_BYTES)  # type: ignore[misc]
            assert pieces == [RECORD_BYTES] + [SMALL_BYTES] * (2 * RECORD_BYTES // SMALL_BYTES)
            slow = False
            for number in range(20):  # what is no whole piece is no sign of anything
                client.tls.write(b"x")
                client.flush()
                await until(lambda number=number: len(pieces) == 18 + number)  # type: ignore[misc]
            slow = True
            client.tls.write(b"x" * RECORD_BYTES)
            client.flush()
            await until(lambda: sum(pieces) == 4 * RECORD_BYTES + 20)
            assert max(pieces[1:]) == SMALL_BYTES
            slow = False
            async with asyncio.timeout(20):
                while pieces[-1] != RECORD_BYTES:
                    client.tls.write(b"x" * RECORD_BYTES)
                    client.flush()
                    await asyncio.sleep(0.01)

    run(main())
