"""Sockets for threads: what the standard library and others make of them, on both sides."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import websockets.sync.client
import websockets.sync.server

from tests.forge import HOUR, NOW
from tests.trust.tls.parts import AGENT, AGENT_ID, AGENTS, FORGE, SERVER, SERVER_ID, SERVERS, RawClient
from trust.authorize import exactly
from trust.bundles import RevocationLists
from trust.credentials import Credentials
from trust.errors import (
    CertificateExpired,
    CertificateRevoked,
    ConfigurationError,
    HandshakeFailed,
    HandshakeRefused,
    NoPeerCertificate,
    PeerNotAllowed,
    TrustError,
)
from trust.sources import Live
from trust.tls import TrustContext, client_context, peer_of_response, server_context
from trust.tls import sockets as sockets_module
from trust.tls.sockets import TlsSocket

PATIENCE = 20.0


def ours(credentials: Credentials = AGENT, authorize: Any = SERVERS, **options: Any) -> TrustContext:
    return client_context(credentials, FORGE.bundles, authorize, **options)


def theirs(**options: Any) -> TrustContext:
    return server_context(SERVER, FORGE.bundles, AGENTS, **options)


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("x-peer", str(self.connection.peer.agent_id))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *args: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was refused is in the trail; `socketserver` would print a traceback."""


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[int]:
    with Server(("127.0.0.1", 0), Answers) as server:
        server.socket = theirs(**options).wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_http_client_and_server_of_the_standard_library() -> None:
    body = os.urandom(3_000_000)
    with serving() as port:
        connection = http.client.HTTPSConnection("localhost", port, context=ours(), timeout=PATIENCE)
        for content in (b"hello", body, b""):  # one connection
            connection.request("POST", "/", body=content)
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, content)
            assert response.headers["x-peer"] == AGENT_ID
        tls = connection.sock
        assert isinstance(tls, TlsSocket) and isinstance(tls, ssl.SSLSocket) and tls.context.server_side is False
        assert str(tls.peer.agent_id) == SERVER_ID  # type: ignore[union-attr]
        assert tls.getpeercert(True) == SERVER.chain_der[0] and tls.version() == "TLSv1.3"
        assert tls.cipher()[0] == "TLS_AES_256_GCM_SHA384" and tls.server_hostname == "localhost"
        assert not tls.server_side and tls.selected_alpn_protocol() in (None, "http/1.1")
        connection.close()


def test_urllib_and_httpx() -> None:
    with serving() as port:
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=ours())
        )
        request = urllib.request.Request(f"https://localhost:{port}/", data=b"hello")
        with opener.open(request, timeout=PATIENCE) as answer:
            assert answer.read() == b"hello"
        with httpx.Client(verify=ours(), trust_env=False) as client:
            for _ in range(3):
                response = client.post(f"https://localhost:{port}/", content=b"hello")
                assert response.content == b"hello"
                assert str(peer_of_response(response).agent_id) == SERVER_ID


def test_websockets() -> None:
    def echo(connection: Any) -> None:
        for message in connection:
            connection.send(message)

    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    with websockets.sync.server.serve(echo, sock=listening, ssl=theirs()) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"wss://localhost:{port}/"
            with websockets.sync.client.connect(url, ssl=ours(), proxy=None) as connection:
                for message in (b"hello", os.urandom(500_000)):
                    connection.send(message)
                    assert connection.recv(PATIENCE) == message
        finally:
            server.shutdown()
            thread.join()


def told() -> tuple[list[TrustError], dict[str, Any]]:
    found: list[TrustError] = []
    return found, {"on_refused": lambda error, address: found.append(error) or address[0] == "127.0.0.1"}


@pytest.mark.parametrize(
    ("credentials", "expected", "alert"),
    [
        (FORGE.leaf("/intruder"), PeerNotAllowed, "handshake failure"),
        (FORGE.leaf(not_before=NOW - 3 * HOUR, not_after=NOW - HOUR), CertificateExpired, "certificate expired"),
        (None, NoPeerCertificate, "certificate required"),
    ],
    ids=["not on the list", "expired", "none"],
)
def test_a_server_refuses(credentials: Credentials | None, expected: type[TrustError], alert: str) -> None:
    found, options = told()
    with serving(**options) as port:
        with RawClient(port, credentials) as client:
            assert client.request().endswith(alert)
        if credentials is not None:  # our own client hears it, too
            connection = http.client.HTTPSConnection("localhost", port, context=ours(credentials), timeout=PATIENCE)
            with pytest.raises(ssl.SSLError, match=alert.replace(" ", "_")) as caught:
                connection.request("POST", "/", body=b"hello")
                connection.getresponse()
            assert type(caught.value.__cause__) is HandshakeRefused
            connection.close()
    assert {type(error) for error in found} == {expected} and found[0].address.startswith("127.0.0.1:")


def test_a_client_refuses() -> None:
    found, options = told()
    with serving(**options) as port:
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            pytest.raises(ssl.SSLCertVerificationError) as caught,
        ):
            ours(authorize=exactly("spiffe://fleet.example/another")).wrap_socket(plain)
        assert type(caught.value.__cause__) is PeerNotAllowed
    assert [type(error) for error in found] == [HandshakeRefused]


@contextlib.contextmanager
def pair(
    server: TrustContext | None = None, client: TrustContext | None = None
) -> Iterator[tuple[TlsSocket, TlsSocket]]:
    with socket.create_server(("127.0.0.1", 0)) as plain, socket.create_connection(plain.getsockname()) as one:
        listening = (server or theirs()).wrap_socket(plain, server_side=True)
        with listening:
            accepted, _ = listening.accept()
            thread = threading.Thread(target=accepted.do_handshake)
            thread.start()
            connected = (client or ours()).wrap_socket(one)
            thread.join()
            with accepted, connected:
                accepted.settimeout(PATIENCE)
                connected.settimeout(PATIENCE)
                yield accepted, connected


def test_one_thread_reads_while_another_writes() -> None:
    """Both ways at once, with more than the sockets hold."""
    size = 5_000_000
    sent = os.urandom(size)

    with pair() as ends:
        got: dict[int, bytes] = {}

        def read(number: int) -> None:
            parts, left = [], size
            while left:
                parts.append(ends[number].recv(100_000))
                left -= len(parts[-1])
            got[number] = b"".join(parts)

        threads = [threading.Thread(target=read, args=(n,)) for n in (0, 1)]
        threads += [threading.Thread(target=end.sendall, args=(sent,)) for end in ends]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert got == {0: sent, 1: sent}


def test_a_writer_that_waited_too_long_may_go_on() -> None:
    """The record that was cut by the timeout is sent to its end first: without that nothing behind it would decrypt."""
    with pair() as (accepted, connected):
        connected.settimeout(0.1)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                connected.sendall(b"x" * 20_000_000)
        assert connected.connection is not None and not connected.connection.output(), "no more than one piece waits"
        connected.settimeout(PATIENCE)
        writer = threading.Thread(target=connected.sendall, args=(b"the end",))
        writer.start()
        got = b""
        while not got.endswith(b"the end"):
            got = (got + accepted.recv())[-100:]
        writer.join()
        assert got == b"x" * 93 + b"the end"


def test_reading_and_writing(tmp_path: Any) -> None:
    with pair() as (accepted, connected):
        assert connected.send(b"hello") == 5 == connected.write(memoryview(b"again"))
        buffer = bytearray(3)
        assert accepted.recv_into(buffer) == 3 and buffer == b"hel"
        assert accepted.pending() == 2 and accepted.recv(0) == b"" and accepted.read(100) == b"lo"
        assert accepted.read(2, buffer) == 2 and accepted.recv() == b"ain"
        (tmp_path / "file").write_bytes(b"x" * 100_000)
        with (tmp_path / "file").open("rb") as file:
            assert connected.sendfile(file) == 100_000
        with accepted.makefile("rb") as stream:
            assert stream.read(100_000) == b"x" * 100_000
        connected.shutdown(socket.SHUT_RD)
        connected.shutdown(socket.SHUT_WR)
        assert accepted.recv() == b"" == accepted.recv()
        accepted.settimeout(0.05)
        accepted.settimeout(None)


@pytest.mark.parametrize("suppress", [True, False])
def test_a_cut(suppress: bool) -> None:
    """Without close_notify: as `ssl.SSLSocket` has it, which is an end unless one asks for an error."""
    with pair() as (accepted, connected):
        accepted._ragged = suppress
        socket.socket.shutdown(connected, socket.SHUT_WR)
        if suppress:
            assert accepted.recv() == b""
        else:
            with pytest.raises(ssl.SSLError):
                accepted.recv()


def test_a_silent_peer_and_a_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets_module, "HANDSHAKE_SECONDS", 0.3)
    found, options = told()
    with serving(**options) as port, socket.create_connection(("127.0.0.1", port)) as silent:
        silent.settimeout(PATIENCE)
        assert silent.recv(10) == b""
    assert [type(error) for error in found] == [HandshakeFailed] and "too long" in str(found[0])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        plain = socket.create_connection(listening.getsockname())
        slow, _ = listening.accept()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while True:
                    slow.send(b"\x16")
                    time.sleep(0.02)

        thread = threading.Thread(target=drip)
        thread.start()
        with pytest.raises((TimeoutError, ssl.SSLError)):
            ours().wrap_socket(plain)
        slow.close()
        thread.join()
    with pair() as (accepted, _):
        accepted.settimeout(0.05)
        with pytest.raises(TimeoutError):
            accepted.recv()
        assert accepted.gettimeout() == 0.05


def test_the_end_of_trust() -> None:
    crls = Live(RevocationLists())
    server = theirs(crls=crls)
    with pair(server) as (accepted, connected):
        connected.sendall(b"hello")
        assert accepted.recv() == b"hello"
        crls.replace(FORGE.crls(AGENT))
        for step in (accepted.recv, lambda: accepted.sendall(b"secret")):
            with pytest.raises(ssl.SSLCertVerificationError) as caught:
                step()  # type: ignore[operator]
            assert type(caught.value.__cause__) is CertificateRevoked
    server = theirs()
    with pair(server) as (accepted, _):
        failed: list[Any] = []

        def wait() -> None:
            try:
                failed.append(accepted.recv())
            except ssl.SSLError as error:
                failed.append(error.__cause__)

        thread = threading.Thread(target=wait)
        thread.start()
        server.reload(crls=FORGE.crls(AGENT))  # it wakes the one that waits
        thread.join(PATIENCE)
        assert [type(end) for end in failed] == [CertificateRevoked]


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.setblocking(False),
        lambda s: s.settimeout(0),
        lambda s: s.recvfrom(1),
        lambda s: s.recvmsg(1),
        lambda s: s.sendto(b"x", ("127.0.0.1", 1)),
        lambda s: s.sendmsg([b"x"]),
        lambda s: s.dup(),
        lambda s: s.connect(("127.0.0.1", 1)),
        lambda s: s.unwrap(),
    ],
    ids=["setblocking", "timeout 0", "recvfrom", "recvmsg", "sendto", "sendmsg", "dup", "connect", "unwrap"],
)
def test_what_would_pass_by_tls(use: Callable[[Any], Any]) -> None:
    with pair() as (accepted, connected):
        with pytest.raises(ConfigurationError):
            use(connected)
        for step in (lambda: connected.send(b"x", socket.MSG_OOB), lambda: connected.recv(1, socket.MSG_PEEK)):
            with pytest.raises(ValueError, match="no flags"):
                step()
        connected.setblocking(True)
        connected.sendall(b"still TLS")
        accepted.settimeout(PATIENCE)
        assert accepted.recv() == b"still TLS"


def test_misuse() -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain, socket.create_connection(plain.getsockname()) as one:
        with pytest.raises(ConfigurationError, match="wrong side"):
            ours().wrap_socket(one, server_side=True)
        with pytest.raises(ConfigurationError, match="resumed"):
            ours().wrap_socket(one, session=object())
        one.setblocking(False)
        with pytest.raises(ConfigurationError, match="does not block"):
            ours().wrap_socket(one)
    with theirs().wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True) as listening:
        with pytest.raises(OSError, match="listens"):
            listening.recv()
        assert listening.server_side
