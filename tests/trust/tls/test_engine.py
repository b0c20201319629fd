"""The contexts: as ssl.SSLContext to asyncio, uvloop, anyio and httpx; reloading; sweeping."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.streams.tls
import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.forge import HOUR, NOW, Forge, spiffe
from tests.trust.tls.parts import (
    AGENT,
    AGENT_ID,
    AGENTS,
    FORGE,
    LOOPS,
    OTHER,
    SERVER,
    SERVER_ID,
    SERVERS,
    RawClient,
    raw,
    run,
    shake,
    until,
)
from trust.authorize import exactly, unsafe_allow_any_peer
from trust.bundles import RevocationLists, TrustBundles
from trust.credentials import Credentials
from trust.errors import (
    BundleError,
    CertificateExpired,
    CertificateRevoked,
    ConfigurationError,
    CredentialsError,
    HandshakeFailed,
    HandshakeRefused,
    NoPeerCertificate,
    PeerNotAllowed,
    TrustError,
    UnknownTrustDomain,
)
from trust.peers import PeerVerifier
from trust.sources import Live
from trust.tls import TrustContext, client_context, server_context
from trust.tls.judging import VERDICT_LIFETIME
from trust.tls.sslobject import SslObject, peer_certificate

ANY = unsafe_allow_any_peer()


def contexts(**options: Any) -> tuple[TrustContext, TrustContext]:
    return (
        client_context(AGENT, FORGE.bundles, SERVERS),
        server_context(SERVER, FORGE.bundles, AGENTS, **options),
    )


class Talk(asyncio.Protocol):
    """A server that echoes and remembers."""

    def __init__(self, seen: list[Any]) -> None:
        self.seen = seen

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.seen.append(transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@pytest.mark.parametrize("loop", LOOPS)
def test_event_loops(loop: str) -> None:
    """Server and client of the loop itself, over these contexts; 3 MB there and back."""

    async def main() -> None:
        ours, theirs = contexts()
        ours.set_alpn_protocols(["http/1.1"])
        seen: list[Any] = []
        server = await asyncio.get_running_loop().create_server(lambda: Talk(seen), "127.0.0.1", 0, ssl=theirs)
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=ours, server_hostname="localhost")
        sent = bytes(range(256)) * 4096 * 3
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent
        tls = writer.get_extra_info("ssl_object")
        assert isinstance(tls, SslObject)
        assert str(tls.peer.agent_id) == SERVER_ID
        assert tls.group == "X25519MLKEM768" and tls.version() == "TLSv1.3"
        assert tls.selected_alpn_protocol() == "http/1.1"
        assert str(seen[0].get_extra_info("ssl_object").peer.agent_id) == AGENT_ID
        assert seen[0].get_extra_info("peercert")["subjectAltName"] == (("URI", AGENT_ID),)
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("credentials", "seen", "error"),
    [
        (FORGE.leaf("/intruder"), "handshake failure", PeerNotAllowed),
        (OTHER.leaf("/billing"), "unknown ca", UnknownTrustDomain),
        (FORGE.leaf(not_before=NOW - 3 * HOUR, not_after=NOW - HOUR), "certificate expired", CertificateExpired),
        (None, "certificate required", NoPeerCertificate),
    ],
    ids=["not on the list", "other domain", "expired", "none"],
)
def test_event_loops_send_the_alert(loop: str, credentials: Credentials | None, seen: str, error: Any) -> None:
    """asyncio and uvloop drop the alert of a handshake that raises; a refused client must learn why all the same."""
    told: list[TrustError] = []

    async def main() -> None:
        _, theirs = contexts(on_refused=lambda error, address: told.append(error))
        server = await asyncio.get_running_loop().create_server(lambda: Talk([]), "127.0.0.1", 0, ssl=theirs)
        answer = await raw(server.sockets[0].getsockname()[1], credentials)
        assert answer.endswith(f"alert {seen}")
        server.close()

    run(main(), loop)
    assert [type(e) for e in told] == [error]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_refused_client_that_stays_silent_is_cut_off(loop: str) -> None:
    """The pause for the alert is bounded by the handshake timeout of the loop."""

    async def main() -> None:
        _, theirs = contexts()
        server = await asyncio.get_running_loop().create_server(
            lambda: Talk([]), "127.0.0.1", 0, ssl=theirs, ssl_handshake_timeout=0.3
        )

        def hold() -> str:
            with RawClient(server.sockets[0].getsockname()[1], FORGE.leaf("/intruder")) as client:
                client.tls.do_handshake()
                try:
                    client.tls.recv(10)
                except Exception as error:
                    alert = str(error)
                client.socket.settimeout(5)
                with contextlib.suppress(ConnectionResetError):
                    assert client.socket.recv(10) == b""
                return alert

        assert "handshake failure" in await asyncio.to_thread(hold)
        server.close()

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_of_the_loop_refuses_the_server(loop: str) -> None:
    told: list[TrustError] = []

    async def main() -> None:
        _, theirs = contexts(on_refused=lambda error, address: told.append(error))
        ours = client_context(AGENT, FORGE.bundles, exactly("spiffe://fleet.example/another"))
        server = await asyncio.get_running_loop().create_server(lambda: Talk([]), "127.0.0.1", 0, ssl=theirs)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1], ssl=ours)
        await until(lambda: told)
        server.close()

    run(main(), loop)
    assert type(told[0]) is HandshakeRefused and "handshake_failure" in str(told[0])


def test_anyio() -> None:
    """anyio runs wrap_bio in a worker thread, with positional arguments."""

    async def main() -> None:
        ours, theirs = contexts()
        tcp = (await anyio.create_tcp_listener(local_host="127.0.0.1")).listeners[0]
        listener = anyio.streams.tls.TLSListener(tcp, theirs)

        async def handle(stream: Any) -> None:
            async with stream:
                assert str(stream.extra(anyio.streams.tls.TLSAttribute.ssl_object).peer.agent_id) == AGENT_ID
                got = b""
                while len(got) < 1_000_000:
                    got += await stream.receive()
                await stream.send(got)

        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, handle)
            port = tcp.extra(anyio.abc.SocketAttribute.local_port)
            async with await anyio.connect_tcp("127.0.0.1", port, ssl_context=ours, tls_hostname="localhost") as stream:
                await stream.send(b"x" * 1_000_000)
                got = b""
                while len(got) < 1_000_000:
                    got += await stream.receive()
                assert stream.extra(anyio.streams.tls.TLSAttribute.tls_version) == "TLSv1.3"
                assert stream.extra(anyio.streams.tls.TLSAttribute.peer_certificate_binary) == SERVER.chain_der[0]
            group.cancel_scope.cancel()
        await listener.aclose()

    run(main())


def test_httpx_with_the_bare_context() -> None:
    async def serve_once(reader: Any, writer: Any) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
        await writer.drain()
        writer.close()

    async def main() -> None:
        ours, theirs = contexts()
        server = await asyncio.start_server(serve_once, "127.0.0.1", 0, ssl=theirs)
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with httpx.AsyncClient(verify=ours, trust_env=False) as client:
            response = await client.get(url)
            assert response.text == "hi"
        refusing = client_context(AGENT, FORGE.bundles, exactly("spiffe://fleet.example/another"))
        async with httpx.AsyncClient(verify=refusing, trust_env=False) as client:
            with pytest.raises(httpx.ConnectError, match="not on the list"):
                await client.get(url)
        server.close()

    run(main())


# What an ssl.SSLContext is asked.


def test_it_looks_like_what_it_is() -> None:
    ours, theirs = contexts()
    for context in (ours, theirs):
        assert isinstance(context, ssl.SSLContext)
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname is False
        assert context.minimum_version is context.maximum_version is ssl.TLSVersion.TLSv1_3
        assert ssl.OP_NO_TICKET in context.options
    assert contexts(client_certificates="optional")[1].verify_mode is ssl.CERT_OPTIONAL


def test_nothing_that_is_set_weakens_it() -> None:
    ours, theirs = contexts()
    for context in (ours, theirs):
        context.verify_mode = ssl.CERT_NONE
        context.check_hostname = False
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.options &= ~ssl.OP_NO_TICKET
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert ssl.OP_NO_TICKET in context.options
    client, server = ours.connection(), theirs.connection()
    assert shake(client, server) == (None, None)
    assert client.version == "TLSv1.3"


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("load_cert_chain", ("chain.pem",)),
        ("load_verify_locations", ("roots.pem",)),
        ("load_default_certs", ()),
        ("set_default_verify_paths", ()),
        ("set_ciphers", ("ALL",)),
        ("set_ecdh_curve", ("prime256v1",)),
        ("set_servername_callback", (None,)),
    ],
)
def test_what_it_takes_from_its_sources_cannot_be_given_otherwise(method: str, arguments: Any) -> None:
    with pytest.raises(ConfigurationError):
        getattr(contexts()[0], method)(*arguments)


def test_the_inherited_context_has_no_key_and_no_trust() -> None:
    """Past the methods that we override there is nothing that could complete a handshake."""
    for context in contexts():
        stdlib = ssl.SSLContext.wrap_bio(context, a := ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
        a.write(_client_hello())
        with pytest.raises(ssl.SSLError, match=r"NO_SHARED_CIPHER|NO_SUITABLE"):
            stdlib.do_handshake()
        assert context.cert_store_stats()["x509"] == 0


def _client_hello() -> bytes:
    context = ssl.create_default_context()
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="a").do_handshake()
    return out.read()


def test_wrong_side_and_sessions() -> None:
    ours, theirs = contexts()
    bios = ssl.MemoryBIO(), ssl.MemoryBIO()
    for context, side in ((ours, True), (theirs, False)):
        with pytest.raises(ConfigurationError, match="wrong side"):
            context.wrap_bio(*bios, side)
    with pytest.raises(ConfigurationError, match="resumed"):
        ours.wrap_bio(*bios, False, "localhost", object())


def pair(client: TrustContext, server: TrustContext) -> tuple[SslObject, SslObject]:
    one, two = ssl.MemoryBIO(), ssl.MemoryBIO()
    return client.wrap_bio(one, two, False, "localhost"), server.wrap_bio(two, one, True)


def step(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except ssl.SSLWantReadError:
        return "want read"


@pytest.mark.parametrize("serial", [0xABC, 0x7ABC, 0x80, 2**158 - 1])
def test_a_certificate_is_described_as_ssl_describes_it(serial: int, tmp_path: Path) -> None:
    start, end = datetime(2026, 3, 5, 1, 2, 3, tzinfo=UTC), datetime(2026, 12, 19, 23, 59, 59, tzinfo=UTC)
    leaf = FORGE.leaf("/billing", sans=[spiffe(AGENT_ID)], serial=serial, not_before=start, not_after=end)
    (tmp_path / "leaf.pem").write_bytes(leaf.certificate.public_bytes(Encoding.PEM))
    theirs = ssl._ssl._test_decode_cert(str(tmp_path / "leaf.pem"))  # type: ignore[attr-defined]
    peer = PeerVerifier(FORGE.bundles).verify(AGENT.chain_der, now=datetime.now(UTC), usage="client")
    peer = replace(peer, chain=leaf.chain_der, serial=serial, not_before=start, not_after=end)
    ours = peer_certificate(peer, False)
    assert len(ours) == 4
    assert ours == {name: theirs[name] for name in ours}


def test_the_ssl_object() -> None:
    client, server = pair(*contexts())
    assert client.getpeercert() == {} and client.getpeercert(True) is None
    assert client.cipher() is None and client.version() is None
    for _ in range(4):
        step(client.do_handshake)
        step(server.do_handshake)
    assert client.getpeercert(True) == SERVER.chain_der[0]
    assert ssl.cert_time_to_seconds(server.getpeercert()["notAfter"]) == server.peer.not_after.timestamp()
    assert ssl.cert_time_to_seconds(server.getpeercert()["notBefore"]) == server.peer.not_before.timestamp()
    assert client.cipher() == ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)
    assert (client.server_side, server.server_side) == (False, True)
    assert (client.server_hostname, server.server_hostname) == ("localhost", None)
    nothing = (client.compression, client.shared_ciphers, client.selected_npn_protocol, client.get_channel_binding)
    assert [f() for f in nothing] == [None] * 4
    assert client.session is None and client.session_reused is False
    assert client.context.server_side is False

    assert step(server.read) == "want read"
    assert client.write(b"hello") == 5
    buffer = bytearray(3)
    assert server.read(1024, buffer) == 3 and bytes(buffer) == b"hel"
    assert server.pending() == 2 and server.read(0, buffer) == 2 and bytes(buffer) == b"lol"
    assert step(client.unwrap) == "want read"
    assert server.read() == b""
    server.unwrap()
    client.unwrap()


def test_the_ssl_object_sees_a_cut() -> None:
    client, server = pair(*contexts())
    for _ in range(4):
        step(client.do_handshake)
        step(server.do_handshake)
    client._outgoing.write_eof()
    with pytest.raises(ssl.SSLEOFError):
        server.read()
    with pytest.raises(ssl.SSLError):
        server.write(b"x")
    server.unwrap()  # nothing is left to wait for


def test_the_ssl_object_sees_a_cut_in_the_handshake() -> None:
    client, server = pair(*contexts())
    step(client.do_handshake)
    client._outgoing.write_eof()
    with pytest.raises(ssl.SSLError) as caught:
        server.do_handshake()
        server.do_handshake()
    assert type(caught.value.__cause__) is HandshakeFailed


def test_the_ssl_object_says_which_check_refused() -> None:
    ours = client_context(FORGE.leaf("/intruder"), FORGE.bundles, SERVERS)
    client, server = pair(ours, contexts()[1])
    step(client.do_handshake)
    step(server.do_handshake)
    step(client.do_handshake)
    assert step(server.do_handshake) == "want read"  # the alert goes out first
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        server.do_handshake()
    assert type(caught.value.__cause__) is PeerNotAllowed
    with pytest.raises(ssl.SSLError, match="handshake_failure") as caught:
        client.read()
    assert type(caught.value.__cause__) is HandshakeRefused


# Reloading.


def connect(client: TrustContext, server: TrustContext) -> tuple[Any, Any]:
    one, two = client.connection(), server.connection()
    shake(one, two)
    return one, two


def test_a_renewed_certificate_is_presented_by_the_next_connection() -> None:
    source = Live(AGENT)
    ours = client_context(source, FORGE.bundles, SERVERS)
    _, theirs = contexts()
    first, at_server = connect(ours, theirs)
    assert not ours.stale(first)
    renewed = FORGE.leaf()
    source.replace(renewed)
    assert ours.stale(first)  # tokens are bound to the new certificate now
    assert at_server.peer.thumbprint == AGENT.thumbprint  # what is open stays open
    _, at_server = connect(ours, theirs)
    assert at_server.peer.thumbprint == renewed.thumbprint
    other = FORGE.leaf("/second")
    ours.reload(source=other)
    assert connect(ours, theirs)[1].peer.thumbprint == other.thumbprint


def test_changed_sources_count_for_the_next_connection() -> None:
    bundles, crls = Live(FORGE.bundles), Live(RevocationLists())
    theirs = server_context(SERVER, bundles, ANY, crls=crls)
    ours, _ = contexts()
    assert connect(ours, theirs)[1].established
    crls.replace(FORGE.crls(AGENT))
    assert type(connect(ours, theirs)[1].error) is CertificateRevoked
    crls.replace(FORGE.crls())
    assert connect(ours, theirs)[1].established
    bundles.replace(OTHER.bundles)
    assert type(connect(ours, theirs)[1].error) is UnknownTrustDomain
    bundles.replace(TrustBundles.of(FORGE.bundle, OTHER.bundle))
    assert connect(ours, theirs)[1].established


RELOADS: list[tuple[str, Any, type[TrustError]]] = [
    ("authorize", exactly("spiffe://fleet.example/second"), PeerNotAllowed),
    ("bundles", OTHER.bundles, UnknownTrustDomain),
    ("crls", FORGE.crls(AGENT), CertificateRevoked),
]


@pytest.mark.parametrize(("argument", "value", "error"), RELOADS, ids=[r[0] for r in RELOADS])
def test_reload_sweeps(argument: str, value: Any, error: type[TrustError]) -> None:
    ours, theirs = contexts()
    second = client_context(FORGE.leaf("/second"), FORGE.bundles, SERVERS)
    _, lost = connect(ours, theirs)
    _, kept = connect(second, theirs)
    theirs.reload()
    assert lost.distrusted is None and kept.distrusted is None
    theirs.reload(**{argument: value})
    assert type(lost.distrusted) is error
    assert (kept.distrusted is None) == (argument != "bundles")
    with pytest.raises(error):
        lost.read()
    assert type(connect(ours, theirs)[1].error) is error
    first = lost.distrusted
    theirs.reload()
    assert lost.distrusted is first  # told once


def test_reload_sweeps_at_the_client_too() -> None:
    ours, theirs = contexts()
    live, _ = connect(ours, theirs)
    ours.reload(crls=FORGE.crls(SERVER))
    assert type(live.distrusted) is CertificateRevoked
    assert ours.stale(live)
    with pytest.raises(CertificateRevoked):
        live.write(b"secret")


def test_reload_notices_expiry() -> None:
    now = [datetime.now(UTC)]
    theirs = server_context(SERVER, FORGE.bundles, AGENTS, clock=lambda: now[0])
    ours = client_context(AGENT, FORGE.bundles, SERVERS, clock=lambda: now[0])
    client, server = connect(ours, theirs)
    now[0] += 25 * HOUR
    assert ours.stale(client)
    theirs.reload()
    assert type(server.distrusted) is CertificateExpired


def test_a_reload_that_fails_changes_nothing() -> None:
    class Broken:
        def current(self) -> Any:
            raise BundleError("cannot be read")

    mixed = Credentials(
        agent_id=AGENT.agent_id, chain=AGENT.chain, private_key=SERVER.private_key, thumbprint=AGENT.thumbprint
    )
    ours, theirs = contexts()
    _, live = connect(ours, theirs)
    for arguments in ({"bundles": Broken()}, {"crls": Broken()}, {"source": mixed}):
        with pytest.raises(ConfigurationError):
            theirs.reload(authorize=exactly("spiffe://fleet.example/nobody"), **arguments)
        assert live.distrusted is None
        _, server = connect(ours, theirs)
        assert server.established


def test_a_source_that_breaks_refuses() -> None:
    class Breaking:
        value: Any = FORGE.bundles

        def current(self) -> Any:
            if self.value is None:
                raise OSError("disk is gone")
            return self.value

    bundles = Breaking()
    ours, _ = contexts()
    theirs = server_context(SERVER, bundles, AGENTS)
    _, live = connect(ours, theirs)
    bundles.value = None
    assert type(connect(ours, theirs)[1].error) is HandshakeFailed
    assert live.established


def test_an_authorizer_that_breaks_in_the_sweep_refuses() -> None:
    class Breaking:
        def check(self, agent_id: Any) -> None:
            raise OSError("directory is gone")

    ours, theirs = contexts()
    _, live = connect(ours, theirs)
    theirs.reload(authorize=Breaking())
    assert type(live.distrusted) is HandshakeFailed


def test_a_broken_audit_trail_decides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(error: TrustError, address: Any) -> None:
        raise OSError("disk is full")

    _, theirs = contexts(on_refused=broken)
    _, server = connect(client_context(FORGE.leaf("/intruder"), FORGE.bundles, SERVERS), theirs)
    assert type(server.error) is PeerNotAllowed
    assert "on_refused failed" in caplog.text


def test_connections_are_not_kept_alive() -> None:
    ours, theirs = contexts()
    connect(ours, theirs)
    gc.collect()
    assert len(ours._live) == len(theirs._live) == 0


def test_many_threads() -> None:
    """Connections and reloads from several threads: every peer is right, nothing breaks."""
    source = Live(AGENT)
    ours = client_context(source, FORGE.bundles, SERVERS)
    _, theirs = contexts()
    wrong: list[Any] = []

    def work(number: int) -> None:
        try:
            for turn in range(6):
                if number == 0:
                    source.replace(FORGE.leaf())
                    theirs.reload()
                one, two = connect(ours, theirs)
                if two.peer is None or two.peer.thumbprint != one.credentials.thumbprint:
                    wrong.append((number, turn, one.error, two.error))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_intermediate_may_change() -> None:
    """The chain belongs to the credentials: a new intermediate of the same root is presented at once."""
    other = Forge()
    other.root, other.root_key = FORGE.root, FORGE.root_key
    other.intermediate = other.ca("second intermediate", other.key, FORGE.root, FORGE.root_key, pathlen=0)
    source = Live(AGENT)
    ours = client_context(source, FORGE.bundles, SERVERS)
    _, theirs = contexts()
    connect(ours, theirs)
    source.replace(other.leaf())
    _, server = connect(ours, theirs)
    assert server.peer.chain[1] == source.current().chain_der[1]


# Open connections without a reload.


def changes() -> list[tuple[str, Any, type[TrustError]]]:
    return [
        ("bundles", OTHER.bundles, UnknownTrustDomain),
        ("crls", FORGE.crls(AGENT), CertificateRevoked),
    ]


@pytest.mark.parametrize(("argument", "value", "error"), changes(), ids=["bundles", "crls"])
def test_a_changed_source_ends_open_connections(argument: str, value: Any, error: type[TrustError]) -> None:
    """Where no timer watches, the next read or write does."""
    sources = {"bundles": Live(FORGE.bundles), "crls": Live(FORGE.crls())}
    theirs = server_context(SERVER, sources["bundles"], ANY, crls=sources["crls"])
    ours, _ = contexts()
    _, reading = connect(ours, theirs)
    _, writing = connect(ours, theirs)
    assert reading.read() is None
    sources[argument].replace(value)
    with pytest.raises(error):
        reading.read()
    with pytest.raises(error):
        writing.write(b"secret")
    assert type(writing.distrusted) is error


def test_an_idle_connection_to_a_revoked_server_is_stale() -> None:
    crls = Live(FORGE.crls())
    ours, theirs = client_context(AGENT, FORGE.bundles, SERVERS, crls=crls), contexts()[1]
    client, _ = connect(ours, theirs)
    assert not ours.stale(client)
    crls.replace(FORGE.crls(SERVER))
    assert ours.stale(client) and type(client.distrusted) is CertificateRevoked


def test_an_open_connection_ends_with_any_certificate_of_its_chain() -> None:
    now = [datetime.now(UTC)]
    theirs = server_context(SERVER, FORGE.bundles, AGENTS, clock=lambda: now[0])
    ours = client_context(AGENT, FORGE.bundles, SERVERS, clock=lambda: now[0])
    short = FORGE.ca(
        f"{FORGE.domain} intermediate", FORGE.key, FORGE.root, FORGE.root_key, pathlen=0, not_after=now[0] + HOUR
    )
    ours.reload(source=replace(AGENT, chain=(AGENT.certificate, short)))
    _, server = connect(ours, theirs)
    now[0] = short.not_valid_after_utc - timedelta(seconds=10)
    assert server.read() is None  # judged just now, and well
    now[0] += timedelta(seconds=11)
    with pytest.raises(CertificateExpired):
        server.read()


def test_a_verdict_is_good_for_a_minute_and_no_longer() -> None:
    """Nothing tells that an authorizer changed its mind, or that a revocation list is out of date."""

    class Moody:
        allows, asked = True, 0

        def check(self, _: Any) -> None:
            self.asked += 1
            if not self.allows:
                raise PeerNotAllowed("not today")

    mood, now = Moody(), [datetime.now(UTC)]
    theirs = server_context(SERVER, FORGE.bundles, mood, clock=lambda: now[0])
    _, server = connect(contexts()[0], theirs)
    for _ in range(3):
        assert server.read() is None
    assert mood.asked == 1
    mood.allows = False
    now[0] += VERDICT_LIFETIME + timedelta(seconds=1)
    with pytest.raises(PeerNotAllowed):
        server.read()


def test_a_source_that_breaks_ends_open_connections() -> None:
    class Breaking:
        def current(self) -> Any:
            if self.broken:
                raise BundleError("cannot be read")
            return FORGE.bundles

        broken = False

    bundles = Breaking()
    _, server = connect(contexts()[0], server_context(SERVER, bundles, ANY))
    bundles.broken = True
    with pytest.raises(BundleError):
        server.read()


def test_a_false_value_replaces_a_true_one() -> None:
    """An allow-list that is a collection is false when nobody is on it; a source may be false until its first fetch."""

    class AllowList(set[str]):
        def check(self, agent_id: Any) -> None:
            if str(agent_id) not in self:
                raise PeerNotAllowed("not on the list")

    class Source(list[Any]):
        def __init__(self, value: Any) -> None:
            self.value = value

        def current(self) -> Any:
            return self.value

    ours, theirs = contexts()
    theirs.reload(authorize=AllowList())
    assert type(connect(ours, theirs)[1].error) is PeerNotAllowed
    theirs.reload(authorize=ANY, crls=Source(FORGE.crls(AGENT)))
    assert type(connect(ours, theirs)[1].error) is CertificateRevoked
    theirs.reload(crls=RevocationLists(), bundles=Source(OTHER.bundles))
    assert type(connect(ours, theirs)[1].error) is UnknownTrustDomain
    theirs.reload(bundles=FORGE.bundles)
    ours.reload(source=Source(FORGE.leaf("/second")))
    assert str(connect(ours, theirs)[1].peer.agent_id) == "spiffe://fleet.example/second"


def test_a_source_that_has_no_identity_for_a_while() -> None:
    """Its error is that of the connections, and open ones are left by their client; then all is well again."""

    class Source:
        gone = False

        def current(self) -> Credentials:
            if self.gone:
                raise CredentialsError("identity was taken back")
            return AGENT

    source, refused = Source(), []
    for context in (
        server_context(source, FORGE.bundles, ANY, on_refused=lambda error, _: refused.append(type(error))),
        client_context(source, FORGE.bundles, ANY),
    ):
        source.gone = False
        other = client_context if context.server_side else server_context
        before = context.connection()
        shake(before, other(AGENT, FORGE.bundles, ANY).connection())
        assert before.established
        assert not context.stale(before)
        source.gone = True
        assert context.stale(before)
        with pytest.raises(CredentialsError, match="taken back"):
            context.connection().handshake()
        source.gone = False
        assert not context.stale(before)
        assert context.connection().handshake() is False
    assert refused == [CredentialsError]
