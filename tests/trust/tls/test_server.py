"""uvicorn over mutual TLS, on real sockets: with both HTTP parsers and both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import uvicorn
import websockets
from cryptography import x509
from OpenSSL import SSL
from OpenSSL._util import lib

from tests.forge import HOUR, NOW, Forge
from tests.trust.tls.parts import (
    AGENT,
    AGENT_ID,
    AGENTS,
    FORGE,
    HTTP,
    LOOPS,
    OTHER,
    SERVER,
    SERVERS,
    SWIFT,
    RawClient,
    client,
    echo,
    port_of,
    raw,
    run,
    until,
)
from trust.authorize import exactly
from trust.bundles import RevocationLists
from trust.credentials import Credentials
from trust.errors import (
    CertificateExpired,
    CertificateRevoked,
    ConfigurationError,
    HandshakeFailed,
    HandshakeGaveWay,
    HandshakeRefused,
    NoPeerCertificate,
    PeerNotAllowed,
    TransportError,
    TrustError,
    UnknownTrustDomain,
    UntrustedChain,
)
from trust.identity import PEER_EXTENSION, PeerIdentity, peer_of
from trust.seldom import LINES, Seldom
from trust.sources import Live
from trust.tls import Deadlines, Limits, client_context, peer_of_response, serve, serving, uvicorn_config
from trust.tls.server import MAX_MESSAGE_BYTES, TrustConfig, _Refusals

BASE: dict[str, Any] = {"source": SERVER, "bundles": FORGE.bundles, "authorize": AGENTS, "lifespan": "off"}


# For who ends a connection for another reason than that nothing comes, and not by the look that is due twice a second.
PATIENT: dict[str, Any] = {
    "deadlines": replace(SWIFT, request_head=1000, trust_check=1000),
    "timeout_keep_alive": 1000,
}


def here(app: Any = echo, **options: Any) -> Any:
    return serving(app, **{**BASE, "deadlines": SWIFT, **options})


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("loop", LOOPS)
def test_the_peer_is_in_the_scope(loop: str, http: str) -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await echo(scope, receive, send)

    async def main() -> None:
        async with here(app, http=http) as server, client() as agent:
            forged = {"x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "http", "extensions": "tls"}
            for _ in range(2):
                response = await agent.get(server.url, headers=forged)
                assert response.headers["x-peer"] == "/billing"
                assert "server" not in response.headers
            assert str(peer_of_response(response).agent_id) == "spiffe://fleet.example/server"

    run(main(), loop)
    first, second = scopes
    assert first["client"] == second["client"]  # one connection
    assert first["client"][0] == "127.0.0.1" and first["scheme"] == "https"  # nothing of X-Forwarded-* is believed
    peer = peer_of(first)
    assert isinstance(peer, PeerIdentity) and peer.thumbprint == AGENT.thumbprint
    tls = first["extensions"]["tls"]
    assert x509.load_pem_x509_certificate(tls["server_cert"].encode()) == SERVER.certificate
    assert [x509.load_pem_x509_certificate(pem.encode()) for pem in tls["client_cert_chain"]] == list(AGENT.chain)
    assert tls["client_cert_name"] == "CN=agent"
    assert tls["client_cert_error"] is None
    assert (tls["tls_version"], tls["cipher_suite"]) == (0x0304, 0x1302)


REFUSED: list[tuple[str, Credentials | None, type[TrustError], str]] = [
    ("no certificate", None, NoPeerCertificate, "tlsv13 alert certificate required"),
    ("a CA that nobody trusts", Forge().leaf(), UntrustedChain, "tlsv1 alert unknown ca"),
    ("another trust domain", OTHER.leaf(), UnknownTrustDomain, "tlsv1 alert unknown ca"),
    ("ID of ours, CA of another domain", OTHER.leaf(AGENT_ID), UntrustedChain, "tlsv1 alert unknown ca"),
    ("expired", FORGE.leaf(not_before=NOW - 3 * HOUR, not_after=NOW - HOUR), CertificateExpired, "certificate expired"),
    ("revoked", FORGE.leaf("/second", serial=4711), CertificateRevoked, "certificate revoked"),
    ("not on the list", FORGE.leaf("/intruder"), PeerNotAllowed, "handshake failure"),
]


@pytest.mark.parametrize("loop", LOOPS)
def test_refused(loop: str) -> None:
    """The client gets the alert, the trail gets the check and the address, the application gets nothing."""
    called: list[Any] = []
    trail: list[dict[str, Any]] = []
    told: list[tuple[TrustError, Any]] = []

    class Trail:
        def record(self, **facts: Any) -> None:
            trail.append(facts)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        called.append(scope)

    async def main() -> None:
        crls = FORGE.crls(REFUSED[5][1])
        bundles = type(FORGE.bundles).of(FORGE.bundle)
        options = {"crls": crls, "bundles": bundles, "audit": Trail()}
        async with here(app, on_refused=lambda e, a: told.append((e, a)), **options) as server:
            for number, (_, credentials, expected, alert) in enumerate(REFUSED):
                assert (await raw(port_of(server.url), credentials)).endswith(alert)
                assert type(told[number][0]) is expected
                assert told[number][1][0] == "127.0.0.1" and told[number][1][1] > 0
                assert trail[number]["check"] == expected.check and trail[number]["decision"] == "deny"
                assert trail[number]["event"] == "handshake"
                assert trail[number]["peer"] == f"127.0.0.1:{told[number][1][1]}"

    run(main(), loop)
    assert called == [] and len(told) == len(trail) == len(REFUSED)


def test_a_flood_of_refusals_is_recorded_sparingly_and_hides_nothing() -> None:
    """So many lines a minute of each check, and then how many there were. Whoever wants to know of each is told."""
    trail: list[dict[str, Any]] = []
    told: list[TrustError] = []

    class Trail:
        def record(self, **facts: Any) -> None:
            trail.append(facts)

    minutes = [0.0]
    refusals = _Refusals(Trail(), lambda error, _: told.append(error))
    refusals._seldom["handshake", HandshakeFailed.check] = Seldom(clock=lambda: minutes[0] * 60)

    def refuse(error: TrustError, count: int = 1) -> None:
        for _ in range(count):
            refusals(error, ("192.0.2.7", 4242))

    refuse(HandshakeFailed("garbage"), 1000)
    refuse(CertificateRevoked("revoked"))
    refuse(TransportError("broken"))
    minutes[0] = 1
    refuse(HandshakeFailed("garbage"), 2)
    kinds = [(line["event"], line["check"], line.get("omitted", 0)) for line in trail]
    assert kinds[:LINES] == [("handshake", "transport.handshake", 0)] * LINES
    assert kinds[LINES:] == [
        ("handshake", CertificateRevoked.check, 0),
        ("connection", "transport", 0),
        ("handshake", "transport.handshake", 1000 - LINES),
        ("handshake", "transport.handshake", 0),
    ]
    assert len(told) == 1004


def test_a_trail_that_fails_lets_nobody_in_and_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    told: list[TrustError] = []

    class Full:
        def record(self, **facts: Any) -> None:
            raise OSError("no space left")

    async def main() -> None:
        async with here(audit=Full(), on_refused=lambda e, a: told.append(e)) as server:
            assert (await raw(port_of(server.url), FORGE.leaf("/intruder"))).endswith("handshake failure")
            async with client() as agent:
                assert (await agent.get(server.url)).status_code == 200

    run(main())
    assert [type(error) for error in told] == [PeerNotAllowed]
    assert "a refused connection could not be recorded" in caplog.text


@pytest.mark.parametrize("http", HTTP)
def test_optional_certificates(http: str) -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await echo(scope, receive, send)

    async def main() -> None:
        async with here(app, http=http, client_certificates="optional") as server:
            assert await raw(port_of(server.url), None) == "HTTP/1.1 200 OK"
            assert (await raw(port_of(server.url), Forge().leaf())).endswith("unknown ca")
            async with client() as agent:
                assert (await agent.get(server.url)).headers["x-peer"] == "/billing"

    run(main())
    assert len(scopes) == 2
    assert PEER_EXTENSION not in scopes[0]["extensions"] and peer_of(scopes[0]) is None
    tls = scopes[0]["extensions"]["tls"]
    assert tls["client_cert_chain"] == [] and tls["client_cert_name"] is None and tls["client_cert_error"] is None
    assert peer_of(scopes[1]) is not None


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("loop", LOOPS)
def test_large_bodies_and_many_connections(loop: str, http: str) -> None:
    async def main() -> None:
        async with here(http=http, deadlines=Deadlines()) as server:
            async with client() as agent:
                body = bytes(range(256)) * 4096 * 10
                response = await agent.post(server.url, content=body, timeout=30)
                assert response.content == body

            async def one(number: int) -> None:
                async with client() as agent:
                    for _ in range(3):
                        response = await agent.post(server.url, content=b"%d" % number)
                        assert response.content == b"%d" % number

            await asyncio.gather(*(one(n) for n in range(30)))

    run(main(), loop)


def test_a_slow_reader_is_waited_for() -> None:
    """Back pressure reaches the application: a response that nobody reads does not pile up."""
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            sent += 65536
        await send({"type": "http.response.body", "body": b""})

    def read_all(connection: RawClient) -> int:
        total = 0
        with contextlib.suppress(Exception):
            while True:
                total += len(connection.tls.recv(65536))
                if total >= 400 * 65536:
                    break
        return total

    async def main() -> None:
        async with here(app) as server:
            connection = RawClient(port_of(server.url))
            await asyncio.to_thread(connection.request)
            await asyncio.sleep(0.3)
            assert 0 < sent < 350 * 65536
            assert await asyncio.to_thread(read_all, connection) >= 400 * 65536
            connection.socket.close()
        assert sent == 400 * 65536

    run(main())


def test_a_slow_application_is_waited_for() -> None:
    """A body that the application is slow to read arrives whole."""
    release, asked = asyncio.Event(), []
    got = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal got
        asked.append(scope)
        await release.wait()
        while True:
            message = await receive()
            got += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def main() -> None:
        async with here(app) as server, client() as agent:
            task = asyncio.ensure_future(agent.post(server.url, content=b"x" * 20_000_000))
            await until(lambda: asked)
            release.set()
            assert (await task).status_code == 200
        assert got == 20_000_000

    run(main())


# No resumption.


def test_nothing_is_resumed() -> None:
    """A client that offers the session of its last connection gets a full handshake, and is judged again."""
    told: list[TrustError] = []

    def visit(port: int, before: RawClient | None) -> tuple[str, RawClient]:
        with RawClient(port, before=before) as connection:
            return connection.request(), connection

    async def main() -> None:
        async with here(on_refused=lambda e, a: told.append(e)) as server:
            port = port_of(server.url)
            answer, first = await asyncio.to_thread(visit, port, None)
            assert answer == "HTTP/1.1 200 OK" and first.tls.get_session() is not None
            answer, second = await asyncio.to_thread(visit, port, first)
            assert answer == "HTTP/1.1 200 OK" and not lib.SSL_session_reused(second.tls._ssl)
            server.context.reload(crls=FORGE.crls(AGENT))
            answer, _ = await asyncio.to_thread(visit, port, second)
            assert answer.endswith("certificate revoked")

    run(main())
    assert [type(e) for e in told] == [CertificateRevoked]


def test_openssl_resumes_nothing(tmp_path: Any) -> None:
    """It may get tickets: OpenSSL sends two of sessions that it keeps nowhere, and the bindings cannot forbid it."""

    async def main() -> None:
        (tmp_path / "agent.pem").write_bytes(AGENT.chain_pem + AGENT.key_pem())
        async with here() as server:
            process = await asyncio.create_subprocess_exec(
                *("openssl", "s_client", "-connect", f"127.0.0.1:{port_of(server.url)}", "-cert"),
                *(str(tmp_path / "agent.pem"), "-cert_chain", str(tmp_path / "agent.pem")),
                *("-key", str(tmp_path / "agent.pem"), "-reconnect", "-sess_out", str(tmp_path / "session")),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            output, _ = await process.communicate(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            text = output.decode(errors="replace")
            assert "TLSv1.3" in text
            assert text.count("New, TLSv1.3") > 1 and "Reused," not in text

    run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_tls_1_2_is_refused(loop: str) -> None:
    told: list[TrustError] = []

    async def main() -> None:
        async with here(on_refused=lambda e, a: told.append(e)) as server:
            answer = await raw(port_of(server.url), version=SSL.TLS1_2_VERSION)
            assert answer == "tlsv1 alert protocol version"

    run(main(), loop)
    assert [type(e) for e in told] == [HandshakeFailed]


# What is not TLS at all, and what takes too long.


async def dial(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port_of(url))


async def closed_after(reader: asyncio.StreamReader) -> float:
    """How many seconds it took until the server closed the connection, as it must."""
    started = time.monotonic()
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
    return time.monotonic() - started


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\x00\x05hello", bytes(range(256)) * 1000, b"\x00" * 64],
    ids=["plain HTTP", "no ClientHello", "noise", "zeros"],
)
def test_garbage(loop: str, data: bytes) -> None:
    told: list[TrustError] = []

    async def main() -> None:
        async with here(on_refused=lambda e, a: told.append(e)) as server:
            reader, writer = await dial(server.url)
            writer.write(data)
            await closed_after(reader)
            writer.close()
            async with client() as agent:
                assert (await agent.get(server.url)).status_code == 200  # the server is well

    run(main(), loop)
    assert [type(e) for e in told] == [HandshakeFailed]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_silent_connection_is_cut(loop: str) -> None:
    told: list[TrustError] = []

    async def main() -> None:
        async with here(on_refused=lambda e, a: told.append(e)) as server:
            reader, writer = await dial(server.url)
            assert await closed_after(reader) > 0.2
            writer.close()

    run(main(), loop)
    assert [type(e) for e in told] == [HandshakeFailed] and "too long" in str(told[0])


@pytest.mark.parametrize("loop", LOOPS)
def test_a_dripping_handshake_is_cut(loop: str) -> None:
    """Each byte in time, but the whole too late."""

    async def main() -> None:
        async with here() as server:
            hello = client_context(AGENT, FORGE.bundles, SERVERS).connection("localhost")
            hello.handshake()
            reader, writer = await dial(server.url)

            async def drip() -> None:
                with contextlib.suppress(ConnectionError):
                    for byte in hello.output():
                        writer.write(bytes([byte]))
                        await asyncio.sleep(0.02)

            task = asyncio.ensure_future(drip())
            await closed_after(reader)
            assert not task.done()
            task.cancel()
            writer.close()

    run(main(), loop)


def test_a_probe_of_the_port_is_no_event() -> None:
    told: list[TrustError] = []

    async def main() -> None:
        async with here(on_refused=lambda e, a: told.append(e)) as server:
            _, writer = await dial(server.url)
            writer.close()
            await writer.wait_closed()
            _, writer = await dial(server.url)
            writer.write(b"\x16\x03\x01")
            await asyncio.sleep(0.05)
            writer.close()
            await until(lambda: told)
            await asyncio.sleep(0.05)

    run(main())
    assert [type(e) for e in told] == [HandshakeFailed] and "went away" in str(told[0])


@contextlib.asynccontextmanager
async def tls_stream(url: str, credentials: Credentials = AGENT) -> Any:
    context = client_context(credentials, FORGE.bundles, SERVERS)
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(url), ssl=context)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


HEAD = b"GET /a HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("loop", LOOPS)
def test_half_a_request_head_is_cut(loop: str, http: str) -> None:
    async def main() -> None:
        async with here(http=http) as server:
            for first in (b"", HEAD):
                async with tls_stream(server.url) as (reader, writer):
                    writer.write(first)
                    assert await closed_after(reader) > 0.2
            async with tls_stream(server.url) as (reader, writer):  # one byte in time after the other
                writer.write(HEAD)
                closed = asyncio.ensure_future(closed_after(reader))
                while not closed.done():
                    writer.write(b"x")
                    await asyncio.sleep(0.05)
                await closed
            async with tls_stream(server.url) as (reader, writer):  # the second request of a connection
                writer.write(HEAD + b"\r\n")
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                await asyncio.sleep(0.1)
                writer.write(HEAD)
                assert await closed_after(reader) > 0.2

    run(main(), loop)


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("loop", LOOPS)
def test_an_idle_connection_is_closed(loop: str, http: str) -> None:
    async def main() -> None:
        async with (
            here(http=http, deadlines=replace(SWIFT, request_head=1000), timeout_keep_alive=0.3) as server,
            tls_stream(server.url) as (reader, writer),
        ):
            for _ in range(2):
                writer.write(HEAD + b"\r\n")
                await reader.readuntil(b"\r\n\r\n")
            assert await closed_after(reader) > 0.2

    run(main(), loop)


def test_no_more_connections_than_so_many() -> None:
    """Whoever they are of; and with a place again the next one is served."""

    async def main() -> None:
        async with here(limits=Limits(connections=2), **PATIENT) as server:
            async with tls_stream(server.url), tls_stream(server.url, FORGE.leaf("/second")):
                assert (await raw(port_of(server.url))).startswith("HTTP/1.1 503")
            async with client() as agent, asyncio.timeout(20):
                while (await agent.get(server.url)).status_code != 200:
                    await asyncio.sleep(0.02)

    run(main())


@pytest.mark.parametrize(("first", "give_way"), [(b"\x16\x03\x01", 4), (b"garbage", 2)], ids=["speaking", "refused"])
def test_who_gives_way_in_a_silent_flood(first: bytes, give_way: int) -> None:
    """Not the two that have begun to speak; of two that were turned away and linger, it is not told again."""
    told: list[tuple[TrustError, Any]] = []

    async def main() -> None:
        patient = replace(SWIFT, handshake=1000, linger=1000)
        options = {"limits": Limits(handshakes=4), "on_refused": lambda e, a: told.append((e, a)), "deadlines": patient}
        async with here(**options) as server, contextlib.AsyncExitStack() as stack:

            async def connect(data: bytes) -> Any:
                reader, writer = await dial(server.url)
                stack.callback(writer.transport.abort)  # and the writer stays for as long
                stack.callback(writer.close)
                writer.write(data)
                return reader, writer.get_extra_info("sockname")

            early = [await connect(first) for _ in range(2)]
            if first == b"garbage":
                await until(lambda: len(told) == 2)
                told.clear()
            else:
                # Whoever is served behind them shows that what they said was read.
                assert (await raw(port_of(server.url))).startswith("HTTP/1.1 200")
            silent = [await connect(b"") for _ in range(6)]
            for reader, _ in silent[:give_way]:
                await closed_after(reader)
            assert {type(error) for error, _ in told} == {HandshakeGaveWay}
            assert [address for _, address in told] == [name for _, name in silent[:give_way]]
            assert not any(reader.at_eof() for reader, _ in silent[give_way:])
            if first != b"garbage":
                assert not any(reader.at_eof() for reader, _ in early)

    run(main())


@pytest.mark.parametrize("http", HTTP)
def test_a_slow_request_is_not_cut(http: str) -> None:
    """The deadline is for the head: a body or an answer may take longer."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.5)
        await echo(scope, receive, send)

    async def main() -> None:
        async with here(app, http=http) as server, tls_stream(server.url) as (reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nhe")
            await asyncio.sleep(0.5)
            writer.write(b"re")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")

    run(main())


# The end of trust on connections that are open.


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("loop", LOOPS)
def test_reload_closes_idle_connections_of_those_who_lost_their_trust(loop: str, http: str) -> None:
    second = FORGE.leaf("/second")
    crls = Live(RevocationLists())

    async def main() -> None:
        async with (
            here(http=http, crls=crls, **PATIENT) as server,
            tls_stream(server.url) as (lost, to_lost),
            tls_stream(server.url, second) as (kept, to_kept),
        ):
            for reader, writer in ((lost, to_lost), (kept, to_kept)):
                writer.write(HEAD + b"\r\n")
                await reader.readuntil(b"\r\n\r\n")
            crls.replace(FORGE.crls(AGENT))
            server.context.reload()
            await closed_after(lost)
            for _ in range(3):
                to_kept.write(HEAD + b"\r\n")
                assert (await kept.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            assert (await raw(port_of(server.url))).endswith("certificate revoked")

    run(main(), loop)


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("loop", LOOPS)
def test_requests_in_flight_finish_and_no_other_begins(loop: str, http: str) -> None:
    release, served = asyncio.Event(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        served.append(scope["path"])
        await release.wait()
        await echo(scope, receive, send)

    async def main() -> None:
        async with here(app, http=http) as server, tls_stream(server.url) as (reader, writer):
            writer.write(HEAD + b"\r\n")
            await until(lambda: served)
            server.context.reload(authorize=exactly("spiffe://fleet.example/second"))
            writer.write(b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n")  # pipelined behind it
            await asyncio.sleep(0.05)
            release.set()
            answers = (await reader.read(-1)).split(b"HTTP/1.1 ")[1:]
            assert answers[0].startswith(b"200")
            assert all(later.startswith(b"403") for later in answers[1:])  # if it is answered at all

    run(main(), loop)
    assert served == ["/a"]


@pytest.mark.parametrize("http", HTTP)
def test_a_request_that_arrives_with_the_revocation_is_not_served(http: str) -> None:
    """It was in the buffers when the trust was lost: the loop has not had the time to close the connection."""
    served = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        served.append(scope["path"])
        await echo(scope, receive, send)

    async def main() -> None:
        async with here(app, http=http, **PATIENT) as server, tls_stream(server.url) as (reader, writer):
            writer.write(HEAD + b"\r\n")
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n")
            await asyncio.sleep(0)
            time.sleep(0.05)  # the request is in the socket before the loop runs again
            loop = asyncio.get_running_loop()
            loop.call_soon_threadsafe = lambda *_: None  # type: ignore[method-assign]
            try:
                server.context.reload(authorize=exactly("spiffe://fleet.example/second"))
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 403")
                await closed_after(reader)
            finally:
                del loop.call_soon_threadsafe

    run(main())
    assert served == ["/a"]


def test_a_request_that_does_not_end_is_cut_after_the_grace() -> None:
    gone = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"event", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async def main() -> None:
        async with here(app) as server, tls_stream(server.url) as (reader, writer):
            writer.write(HEAD + b"\r\n")
            await reader.readuntil(b"event")
            server.context.reload(crls=FORGE.crls(AGENT))
            assert await closed_after(reader) > 0.4
            await asyncio.wait_for(gone.wait(), 20)

    run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_reload_from_another_thread(loop: str) -> None:
    async def main() -> None:
        async with here(**PATIENT) as server, tls_stream(server.url) as (reader, writer):
            writer.write(HEAD + b"\r\n")
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.to_thread(server.context.reload, crls=FORGE.crls(AGENT))
            await closed_after(reader)

    run(main(), loop)


def test_reload_of_the_certificate_disturbs_nobody() -> None:
    source = Live(SERVER)

    async def main() -> None:
        async with here(source=source) as server, client() as agent, client() as later:
            response = await agent.get(server.url)
            assert peer_of_response(response).thumbprint == SERVER.thumbprint
            renewed = FORGE.leaf("/server")
            source.replace(renewed)
            server.context.reload()
            response = await agent.get(server.url)
            assert peer_of_response(response).thumbprint == SERVER.thumbprint  # the same connection
            assert peer_of_response(await later.get(server.url)).thumbprint == renewed.thumbprint

    run(main())


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_connection_does_not_outlive_the_certificate(loop: str, http: str) -> None:
    """Certificates have whole seconds, and are good until the end of the last one."""

    async def main() -> None:
        end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=5)  # for a handshake on a busy machine
        async with (
            here(http=http, timeout_keep_alive=1000) as server,
            tls_stream(server.url, FORGE.leaf(not_after=end)) as (reader, writer),
        ):
            writer.write(HEAD + b"\r\n")
            await reader.readuntil(b"\r\n\r\n")
            await closed_after(reader)
            assert datetime.now(UTC) > end - timedelta(seconds=0.1)

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_changed_source_ends_open_connections_without_a_reload(loop: str) -> None:
    """For `serve`, which nobody can tell to reload. Within `trust_check`; a request in flight finishes."""
    crls, release, served = Live(RevocationLists()), asyncio.Event(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        served.append(scope["path"])
        await release.wait()
        await echo(scope, receive, send)

    async def main() -> None:
        deadlines = replace(SWIFT, request_head=1000, grace=1000)
        async with (
            here(app, crls=crls, deadlines=deadlines, timeout_graceful_shutdown=1) as server,
            tls_stream(server.url) as (reader, writer),
        ):
            async with tls_stream(server.url) as (idle, _):
                writer.write(HEAD + b"\r\n")
                await until(lambda: served)
                crls.replace(FORGE.crls(AGENT))
                await closed_after(idle)
            release.set()
            answers = await reader.read(-1)
            assert answers.startswith(b"HTTP/1.1 200") and b"connection: close" in answers.lower()

    run(main(), loop)


# WebSockets.


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("loop", LOOPS)
def test_websockets(loop: str, http: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket" and scope["scheme"] == "wss"
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": f"{peer_of(scope).agent_id.path} {message['text']}"})
        assert scope["extensions"]["tls"]["client_cert_name"] == "CN=agent"

    async def main() -> None:
        second = FORGE.leaf("/second")
        async with here(app, http=http, ws="websockets-sansio") as server:
            url = f"wss://127.0.0.1:{port_of(server.url)}/"

            def connect(credentials: Credentials) -> Any:
                return websockets.connect(
                    url,
                    ssl=client_context(credentials, FORGE.bundles, SERVERS),
                    server_hostname="localhost",
                    proxy=None,
                )

            async with connect(AGENT) as lost, connect(second) as kept:
                await lost.send("hello")
                assert await lost.recv() == "/billing hello"
                await asyncio.sleep(0.4)  # the deadline of the request head is over, and concerns us no more
                server.context.reload(crls=FORGE.crls(AGENT))
                with pytest.raises(websockets.ConnectionClosed):
                    await asyncio.wait_for(lost.recv(), 20)
                await kept.send("still here")
                assert await kept.recv() == "/second still here"

    run(main(), loop)


def test_what_is_small_on_the_wire_of_a_websocket_is_not_large_here() -> None:
    """No compression, though the client offers it; and messages of a MiB at most."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": str(len(message["bytes"]))})

    async def main() -> None:
        async with (
            here(app) as server,
            websockets.connect(
                f"wss://127.0.0.1:{port_of(server.url)}/",
                ssl=client_context(AGENT, FORGE.bundles, SERVERS),
                server_hostname="localhost",
                proxy=None,
                compression="deflate",
            ) as agent,
        ):
            assert agent.response is not None and "Sec-WebSocket-Extensions" not in agent.response.headers
            await agent.send(bytes(MAX_MESSAGE_BYTES))
            assert await agent.recv() == str(MAX_MESSAGE_BYTES)
            await agent.send(bytes(MAX_MESSAGE_BYTES + 1))
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await agent.recv()
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009  # too big

    run(main())


# Configuration.


@pytest.mark.parametrize(
    "option",
    ["ssl_keyfile", "ssl_context_factory", "proxy_headers", "forwarded_allow_ips", "workers", "reload"],
)
def test_what_uvicorn_may_not_decide(option: str) -> None:
    with pytest.raises(ConfigurationError, match=option):
        uvicorn_config(echo, **BASE, **{option: True})


def test_the_configuration() -> None:
    config = uvicorn_config(echo, **BASE)
    assert isinstance(config, uvicorn.Config) and isinstance(config, TrustConfig)
    assert (config.host, config.port, config.workers) == ("127.0.0.1", 0, 1)
    assert not (config.server_header or config.access_log or config.proxy_headers or config.forwarded_allow_ips)
    assert uvicorn_config(echo, **BASE, access_log=True, server_header=True).access_log
    assert Deadlines().handshake == Deadlines().request_head == 10


def test_an_http_implementation_that_we_do_not_know() -> None:
    class Other(asyncio.Protocol):
        pass

    with pytest.raises(ConfigurationError, match="httptools"):
        uvicorn_config(echo, **BASE, http=Other).load()


def test_a_port_that_is_taken() -> None:
    async def main() -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as taken,
            pytest.raises(ConfigurationError, match="cannot listen"),
        ):
            async with here(port=taken.getsockname()[1]):
                pytest.fail("served")

    run(main())


def test_an_application_that_does_not_start() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async def main() -> None:
        with pytest.raises(ConfigurationError, match="did not start"):
            async with here(app, lifespan="on"):
                pytest.fail("served")

    run(main())


def test_ipv6_and_given_sockets() -> None:
    async def main() -> None:
        async with here(host="::1") as server, client() as agent:
            assert server.url.startswith("https://[::1]:")
            assert (await agent.get(server.url)).status_code == 200
        bound = socket.create_server(("127.0.0.1", 0))
        async with here(sockets=[bound]) as server, client() as agent:
            assert port_of(server.url) == bound.getsockname()[1]
            assert (await agent.get(server.url)).status_code == 200

    run(main())


def test_serve_blocks_until_told_to_stop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        seen.append("up")
        server.should_exit = True
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        seen.append("down")

    original = uvicorn.Server.__init__

    def remember(self: Any, config: Any) -> None:
        nonlocal server
        original(self, config)
        server = self

    server: Any = None
    monkeypatch.setattr(uvicorn.Server, "__init__", remember)
    serve(app, **{**BASE, "lifespan": "on", "port": 0})
    assert seen == ["up", "down"]
    assert capsys.readouterr().err.startswith("serving spiffe://fleet.example/server on https://127.0.0.1:")


def test_serve_says_when_the_address_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigurationError, match="cannot listen on"):
        serve(lambda: None, **{**BASE, "port": taken.getsockname()[1]})


@pytest.mark.parametrize("loop", LOOPS)
def test_shutdown_does_not_wait_for_handshakes(loop: str) -> None:
    async def main() -> None:
        started = 0.0
        async with here(deadlines=Deadlines()) as server:
            _, writer = await dial(server.url)
            refused = RawClient(port_of(server.url), FORGE.leaf("/intruder"))
            await asyncio.to_thread(refused.request)
            async with tls_stream(server.url) as (_, idle):
                started = time.monotonic()
                await asyncio.sleep(0.05)
        assert time.monotonic() - started < Deadlines().close  # the shortest of the deadlines that matter
        writer.close()
        refused.socket.close()
        assert idle

    run(main(), loop)


def test_the_refused_side_of_a_refusing_client() -> None:
    """A client that refuses us is an event of the trail, too, with the alert it sent."""
    told: list[TrustError] = []

    async def main() -> None:
        async with here(on_refused=lambda e, a: told.append(e)) as server:
            async with client(authorize=exactly("spiffe://fleet.example/another")) as agent:
                with pytest.raises(PeerNotAllowed):
                    await agent.get(server.url)
            await until(lambda: told)

    run(main())
    assert type(told[0]) is HandshakeRefused and "handshake_failure" in str(told[0])
