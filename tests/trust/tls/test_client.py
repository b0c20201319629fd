"""httpx over mutual TLS: errors that name what was refused, and connections that end with their trust."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.forge import HOUR, NOW, Forge
from tests.trust.tls.parts import (
    AGENT,
    AGENTS,
    FORGE,
    LOOPS,
    OTHER,
    SERVER,
    SERVERS,
    SWIFT,
    KeyUpdates,
    client,
    echo,
    run,
    until,
)
from trust.agent import agent_client
from trust.authorize import exactly, unsafe_allow_any_peer
from trust.bundles import RevocationLists, TrustBundles
from trust.credentials import Credentials
from trust.errors import (
    CertificateExpired,
    CertificateIsCA,
    CertificateNotYetValid,
    CertificateRevoked,
    ConfigurationError,
    HandshakeFailed,
    HandshakeRefused,
    NoPeerCertificate,
    PeerNotAllowed,
    RevocationUnknown,
    SeveralSpiffeIDs,
    TrustError,
    UnknownTrustDomain,
    UntrustedChain,
    WrongExtendedKeyUsage,
)
from trust.sources import Live
from trust.tls import Deadlines, TrustContext, peer_of_response, server_context, serving
from trust.tls import client as client_module
from trust.tls.connection import MAX_BARREN_BYTES_OF_A_SERVER

SERVER_OPTIONS: dict[str, Any] = {
    "source": SERVER,
    "bundles": FORGE.bundles,
    "authorize": unsafe_allow_any_peer(),
    "lifespan": "off",
    "deadlines": SWIFT,
}


def here(app: Any = echo, **options: Any) -> Any:
    return serving(app, **{**SERVER_OPTIONS, **options})


REVOKED = FORGE.leaf("/server")
BAD_SERVERS: list[tuple[str, Credentials, dict[str, Any], type[TrustError]]] = [
    ("by a CA that nobody trusts", Forge().leaf("/server"), {}, UntrustedChain),
    ("of another trust domain", OTHER.leaf("/server"), {}, UnknownTrustDomain),
    (
        "ID of ours, CA of another domain, both trusted",
        OTHER.leaf("spiffe://fleet.example/server"),
        {"bundles": TrustBundles.of(FORGE.bundle, OTHER.bundle)},
        UntrustedChain,
    ),
    ("expired", FORGE.leaf("/server", not_before=NOW - 3 * HOUR, not_after=NOW - HOUR), {}, CertificateExpired),
    ("not yet valid", FORGE.leaf("/server", not_before=NOW + HOUR), {}, CertificateNotYetValid),
    ("revoked", REVOKED, {"crls": FORGE.crls(REVOKED)}, CertificateRevoked),
    ("no CRL of its CA", SERVER, {"crls": OTHER.crls()}, RevocationUnknown),
    ("a CA", FORGE.leaf("/server", is_ca=True), {}, CertificateIsCA),
    ("another agent", FORGE.leaf("/billing"), {}, PeerNotAllowed),
]


@pytest.mark.parametrize(("case", "credentials", "options", "expected"), BAD_SERVERS, ids=[c[0] for c in BAD_SERVERS])
def test_a_server_that_is_refused(
    case: str, credentials: Credentials, options: dict[str, Any], expected: type[TrustError]
) -> None:
    told: list[TrustError] = []

    async def main() -> None:
        async with here(source=credentials, on_refused=lambda e, a: told.append(e)) as server:
            async with client(**options) as agent:
                with pytest.raises(TrustError) as caught:
                    await agent.post(server.url, content=b"secret")
                assert type(caught.value) is expected
            await until(lambda: told)

    run(main())
    assert type(told[0]) is HandshakeRefused  # the server was told why


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("credentials", "alert"),
    [
        (Forge().leaf(), "unknown_ca"),
        (FORGE.leaf(not_before=NOW - 3 * HOUR, not_after=NOW - HOUR), "certificate_expired"),
        (FORGE.leaf("/intruder"), "handshake_failure"),
    ],
    ids=["unknown CA", "expired", "not on the list"],
)
def test_our_certificate_is_refused(loop: str, credentials: Credentials, alert: str) -> None:
    """In TLS 1.3 the refusal comes after our handshake is complete, perhaps in the middle of a large request."""

    async def main() -> None:
        async with here(authorize=AGENTS) as server:
            for body in (b"", b"x" * 10_000_000):
                async with client(credentials) as agent:
                    with pytest.raises(HandshakeRefused, match=f"alert {alert}"):
                        await agent.post(server.url, content=body)

    run(main(), loop)


# A client without a certificate


@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_without_a_certificate_is_let_in_where_certificates_are_optional(loop: str) -> None:
    async def main() -> None:
        async with here(client_certificates="optional") as server, client(None) as agent:
            response = await agent.post(server.url, content=b"question")
            assert (response.headers["x-peer"], response.content) == ("nobody", b"question")
            assert peer_of_response(response).agent_id == SERVER.agent_id
            first = await visitor(agent, server.url)
            assert await visitor(agent, server.url) == first  # the connection is used again: it is not stale

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_without_a_certificate_is_refused_where_one_is_required(loop: str) -> None:
    told: list[TrustError] = []

    async def main() -> None:
        async with here(on_refused=lambda e, a: told.append(e)) as server:
            for body in (b"", b"x" * 1_000_000):
                async with client(None) as agent:
                    with pytest.raises(HandshakeRefused, match="alert certificate_required"):
                        await agent.post(server.url, content=body)

    run(main(), loop)
    assert [type(error) for error in told] == [NoPeerCertificate] * 2


@pytest.mark.parametrize(("case", "credentials", "options", "expected"), BAD_SERVERS, ids=[c[0] for c in BAD_SERVERS])
def test_a_client_without_a_certificate_refuses_the_same_servers(
    case: str, credentials: Credentials, options: dict[str, Any], expected: type[TrustError]
) -> None:
    asked: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope)

    async def main() -> None:
        async with (
            here(app, source=credentials, client_certificates="optional") as server,
            client(None, **options) as agent,
        ):
            with pytest.raises(TrustError) as caught:
                await agent.post(server.url, content=b"an enrolment token")
            assert type(caught.value) is expected

    run(main())
    assert asked == []


def test_a_client_without_a_certificate_leaves_a_server_that_lost_its_trust() -> None:
    crls = Live(FORGE.crls())

    async def main() -> None:
        async with here(client_certificates="optional") as server, client(None, crls=crls) as agent:
            await visitor(agent, server.url)
            crls.replace(FORGE.crls(SERVER))
            context_of(agent).reload()
            await until(lambda: not server_connections(server))
            with pytest.raises(CertificateRevoked):
                await agent.get(server.url)

    run(main())


def test_a_client_that_gets_a_certificate_presents_it_from_then_on() -> None:
    async def main() -> None:
        async with here(client_certificates="optional") as server, client(None) as agent:
            assert (await agent.get(server.url)).headers["x-peer"] == "nobody"
            context_of(agent).reload(source=AGENT)
            assert (await agent.get(server.url)).headers["x-peer"] == "/billing"

    run(main())


def test_an_agent_client_without_a_certificate() -> None:
    async def main() -> None:
        async with (
            here(client_certificates="optional") as server,
            agent_client(source=None, bundles=FORGE.bundles, authorize=SERVERS) as agent,
        ):
            assert (await agent.get(server.url)).headers["x-peer"] == "nobody"

    run(main())


class Scripted:
    """A server that is not ours: `talk` has the accepted socket, in a thread of its own."""

    def __init__(self, talk: Callable[[socket.socket], None]) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._socket.getsockname()[1]}"
        self._talk = talk
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = self._socket.accept()
                with accepted, contextlib.suppress(OSError):
                    self._talk(accepted)

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


def handshaken(accepted: socket.socket, context: TrustContext | None = None) -> Any:
    connection = (context or server_context(SERVER, FORGE.bundles, unsafe_allow_any_peer())).connection()
    while not connection.handshake():
        accepted.sendall(connection.output())
        connection.receive(accepted.recv(65536))
    return connection


def ends_at_once(accepted: socket.socket) -> None:
    handshaken(accepted)
    accepted.shutdown(socket.SHUT_WR)
    while accepted.recv(65536):
        pass


def ends_with_notice(accepted: socket.socket) -> None:
    connection = handshaken(accepted)
    connection.close()
    accepted.sendall(connection.output())
    ends_at_once_raw(accepted)


def ends_at_once_raw(accepted: socket.socket) -> None:
    accepted.shutdown(socket.SHUT_WR)
    while accepted.recv(65536):
        pass


def resets(accepted: socket.socket) -> None:
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handshaken(accepted)
    accepted.settimeout(0.2)  # the request may have come with the end of the handshake
    accepted.recv(10)


@pytest.mark.parametrize("talk", [ends_at_once, ends_with_notice, resets])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_server_that_ends_before_it_answers(loop: str, talk: Any) -> None:
    """Many servers refuse a certificate like this; the error says so and is never empty."""

    async def main() -> None:
        with Scripted(talk) as server:
            async with client() as agent:
                with pytest.raises(HandshakeRefused, match="before it answered"):
                    await agent.get(server.url)

    run(main(), loop)


def plain_http(accepted: socket.socket) -> None:
    accepted.recv(65536)
    accepted.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
    ends_at_once_raw(accepted)


def hangs_up(accepted: socket.socket) -> None:
    accepted.recv(65536)
    ends_at_once_raw(accepted)


def hangs_up_hard(accepted: socket.socket) -> None:
    accepted.recv(10)
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("talk", [plain_http, hangs_up, hangs_up_hard])
def test_no_tls_on_the_other_end(talk: Any) -> None:
    async def main() -> None:
        with Scripted(talk) as server:
            async with client() as agent:
                with pytest.raises(HandshakeFailed):
                    await agent.get(server.url)

    run(main())


def test_a_silent_server_is_not_waited_for() -> None:
    done = threading.Event()

    async def main() -> None:
        with Scripted(lambda accepted: done.wait(10) and None) as server:
            async with client() as agent:
                with pytest.raises(httpx.ConnectTimeout, match="TLS handshake"):
                    await agent.get(server.url, timeout=0.2)
            done.set()

    run(main())


def test_a_caller_that_sets_no_time_waits_for_no_silent_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those do who listen to events: no time for reading is no time for a handshake without end."""
    monkeypatch.setattr(client_module, "MAX_CONNECT_SECONDS", 0.2)
    done = threading.Event()

    async def main() -> None:
        with Scripted(lambda accepted: done.wait(20) and None) as server:
            async with client() as agent:
                with pytest.raises(httpx.ConnectTimeout, match=r"TLS handshake took longer than 0\.2 s"):
                    await agent.get(server.url, timeout=None)
            done.set()

    run(main())


def answers_half(accepted: socket.socket) -> None:
    connection = handshaken(accepted)
    connection.write(b"HTTP/1.1 200 OK\r\n\r\npay 1")
    accepted.sendall(connection.output())
    ends_at_once_raw(accepted)


def answers_garbage(accepted: socket.socket) -> None:
    connection = handshaken(accepted)
    connection.write(b"HTTP/1.1 200 OK\r\n\r\npay 1")
    accepted.sendall(connection.output() + b"\x17\x03\x03\x00\x20" + b"\x00" * 32)
    ends_at_once_raw(accepted)


read_some = threading.Event()


def answers_and_resets(accepted: socket.socket) -> None:
    connection = handshaken(accepted)
    connection.write(b"HTTP/1.1 200 OK\r\n\r\npay 1")
    accepted.sendall(connection.output())
    assert read_some.wait(20)  # a reset must not overtake the answer
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("talk", [answers_half, answers_garbage, answers_and_resets])
def test_an_answer_that_is_cut_is_not_an_answer(talk: Any) -> None:
    """Without a length, only close_notify tells the end of an answer from a cut that an attacker made."""

    async def main() -> None:
        with Scripted(talk) as server:
            async with client() as agent:
                with pytest.raises(httpx.ReadError, match=r"cut|broken|reset|rror"):
                    async with agent.stream("GET", server.url, timeout=60) as response:
                        async for part in response.aiter_raw():
                            assert part == b"pay 1"
                            read_some.set()

    read_some.clear()
    run(main())


def renews_its_keys_for_ever(asking: bool, length: int) -> Callable[[socket.socket], None]:
    def talk(accepted: socket.socket) -> None:
        context = server_context(SERVER, FORGE.bundles, unsafe_allow_any_peer())
        updates, count = KeyUpdates(context), 2 * MAX_BARREN_BYTES_OF_A_SERVER // 27  # bytes of each
        connection = handshaken(accepted, context)
        while not connection.read():
            connection.receive(accepted.recv(65536))
        connection.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\nok" % length)
        accepted.sendall(connection.output() + updates.records(count, asking=asking, before=3))
        ends_at_once_raw(accepted)

    return talk


@pytest.mark.parametrize(("loop", "asking"), [("asyncio", True), ("uvloop", False)])
def test_a_server_that_renews_its_keys_for_ever(loop: str, asking: bool) -> None:
    """In the middle of an answer, and behind one: each of its messages costs more than a byte of data."""

    async def main() -> None:
        with Scripted(renews_its_keys_for_ever(asking, length=3)) as server:
            async with client() as agent:
                with pytest.raises(httpx.ReadError, match="messages of TLS itself, and no data"):
                    await agent.get(server.url)
                assert connections(agent) == 0
        with Scripted(renews_its_keys_for_ever(asking, length=2)) as server:
            async with client() as agent:
                assert (await agent.get(server.url)).content == b"ok"
                await until(lambda: connections(agent) == 0)

    run(main(), loop)


def test_nobody_listens() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        async with client() as agent:
            with pytest.raises(httpx.ConnectError):
                await agent.get(f"https://127.0.0.1:{port}")

    run(main())


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "ws://127.0.0.1:1/"])
def test_only_https(url: str) -> None:
    async def main() -> None:
        async with client() as agent:
            with pytest.raises(ConfigurationError, match="https"):
                await agent.get(url)

    run(main())


def test_no_proxy_and_no_certificates_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    async def main() -> None:
        for name in ("HTTPS_PROXY", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"):
            monkeypatch.setenv(name, str(tmp_path / "nothing"))
        async with here() as server, client() as agent:
            assert (await agent.get(server.url)).status_code == 200
        assert list(tmp_path.iterdir()) == []  # no key log either

    run(main())


# Who answered.


@pytest.mark.parametrize("loop", LOOPS)
def test_who_answered(loop: str) -> None:
    async def main() -> None:
        async with here() as server, client() as agent:
            response = await agent.get(server.url)
            assert peer_of_response(response).thumbprint == SERVER.thumbprint
            stream = response.extensions["network_stream"]
            tls = stream.get_extra_info("ssl_object")
            assert tls.peer == peer_of_response(response)
            assert (tls.version(), tls.group) == ("TLSv1.3", "X25519MLKEM768")
            assert tls.getpeercert(True) == SERVER.chain_der[0]
            assert tls.selected_alpn_protocol() == "http/1.1"
            assert stream.get_extra_info("server_addr")[0] == "127.0.0.1"

    run(main(), loop)


def answers_and_is_gone(accepted: socket.socket) -> None:
    connection = handshaken(accepted)
    while not connection.read():
        connection.receive(accepted.recv(65536))
    connection.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    accepted.sendall(connection.output())
    ends_at_once_raw(accepted)  # without close_notify: for TLS, this connection has failed


@pytest.mark.parametrize("loop", LOOPS)
def test_who_answered_is_known_after_the_end_of_the_connection(loop: str) -> None:
    async def main() -> None:
        with Scripted(answers_and_is_gone) as server:
            async with client() as agent:
                response = await agent.get(server.url)
                await until(lambda: connections(agent) == 0)
                stream = response.extensions["network_stream"]
                assert stream.get_extra_info("ssl_object").peer is None
                assert peer_of_response(response).thumbprint == SERVER.thumbprint
                assert stream.get_extra_info("peer") == peer_of_response(response)

    run(main(), loop)


def test_a_response_that_came_otherwise() -> None:
    with pytest.raises(NoPeerCertificate):
        peer_of_response(httpx.Response(200))

    class Stream:
        def get_extra_info(self, name: str) -> Any:
            return type("Fake", (), {"peer": "spiffe://fleet.example/server"})()

    with pytest.raises(NoPeerCertificate):
        peer_of_response(httpx.Response(200, extensions={"network_stream": Stream()}))


# Connections that are open.


def connections(agent: httpx.AsyncClient) -> int:
    return len(agent._transport._pool)  # type: ignore[attr-defined]


def context_of(agent: httpx.AsyncClient) -> Any:
    return agent._transport.context  # type: ignore[attr-defined]


async def visitor(agent: httpx.AsyncClient, url: str) -> tuple[Any, Any]:
    response = await agent.get(url)
    address = response.extensions["network_stream"].get_extra_info("client_addr")
    return address, peer_of_response(response).thumbprint


@pytest.mark.parametrize("loop", LOOPS)
def test_a_connection_is_used_again(loop: str) -> None:
    async def main() -> None:
        async with here() as server, client() as agent:
            assert await visitor(agent, server.url) == await visitor(agent, server.url)

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_renewed_certificate_takes_a_new_connection(loop: str) -> None:
    """Tokens are bound to our certificate: with a new one, a connection of the old one is of no use any more."""
    source = Live(AGENT)

    async def main() -> None:
        async with here() as server, client(source) as agent:  # type: ignore[arg-type]
            first, _ = await visitor(agent, server.url)
            source.replace(FORGE.leaf())
            second, _ = await visitor(agent, server.url)
            assert first != second and connections(agent) == 1

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_renewals_under_load_fail_no_call(loop: str) -> None:
    source = Live(AGENT)

    async def main() -> None:
        async with here(deadlines=Deadlines()) as server, client(source) as agent:  # type: ignore[arg-type]
            agent.timeout = httpx.Timeout(60)  # a busy machine

            async def call_on() -> None:
                while not done:
                    assert (await agent.get(server.url)).headers["x-peer"] == "/billing"

            done = False
            callers = [asyncio.ensure_future(call_on()) for _ in range(6)]
            for _ in range(40):
                await asyncio.sleep(0.03)
                source.replace(FORGE.leaf())
            done = True
            await asyncio.gather(*callers)

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_server_that_lost_its_trust_is_left(loop: str) -> None:
    crls = Live(RevocationLists())

    async def main() -> None:
        async with here() as server, client(crls=crls) as agent:
            await visitor(agent, server.url)
            live = len(server_connections(server))
            assert live == 1
            crls.replace(FORGE.crls(SERVER))
            context_of(agent).reload()
            await until(lambda: not server_connections(server))  # at once, not at the next request
            with pytest.raises(CertificateRevoked):
                await agent.get(server.url)

    run(main(), loop)


def server_connections(server: Any) -> list[Any]:
    return [c for c in server.context._live if c.established and c.on_distrust.__self__.app is not None]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("phase", ["headers", "body"])
def test_a_server_that_loses_its_trust_while_it_answers(loop: str, phase: str) -> None:
    """What comes after is not the answer of a trusted agent."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if phase == "body":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    async def main() -> None:
        async with here(app) as server, client() as agent:
            asyncio.get_running_loop().call_later(0.2, lambda: context_of(agent).reload(crls=FORGE.crls(SERVER)))
            with pytest.raises(CertificateRevoked):
                await agent.get(server.url)

    run(main(), loop)


def test_a_reload_in_the_middle_of_an_upload() -> None:
    async def chunks(agent: httpx.AsyncClient) -> Any:
        yield b"first"
        context_of(agent).reload(authorize=exactly("spiffe://fleet.example/another"))
        yield b"second"

    async def main() -> None:
        async with here() as server, client() as agent:
            with pytest.raises(PeerNotAllowed):
                await agent.post(server.url, content=chunks(agent))

    run(main())


def test_a_connection_does_not_outlive_the_servers_certificate() -> None:
    async def main() -> None:
        end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=5)  # for a handshake on a busy machine
        async with here(source=FORGE.leaf("/server", not_after=end)) as server, client() as agent:
            assert (await agent.get(server.url)).status_code == 200
            await asyncio.sleep((end - datetime.now(UTC)).total_seconds() + 0.05)
            with pytest.raises(CertificateExpired):
                await agent.get(server.url)

    run(main())


def test_many_calls_at_once() -> None:
    async def main() -> None:
        async with here(deadlines=Deadlines()) as server, client() as agent:
            patient = httpx.Timeout(60)  # a hundred handshakes on a busy machine
            posts = (agent.post(server.url, content=b"%d" % n, timeout=patient) for n in range(150))
            answers = await asyncio.gather(*posts)
            assert [a.content for a in answers] == [b"%d" % n for n in range(150)]
            assert connections(agent) <= 100

    run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_cancelled_call_leaves_nothing_behind(loop: str) -> None:
    done = threading.Event()

    async def main() -> None:
        with Scripted(lambda accepted: done.wait(10) and None) as server:
            async with client() as agent:
                task = asyncio.ensure_future(agent.get(server.url))
                await until(lambda: agent._transport._pool._streams)  # type: ignore[attr-defined]
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert connections(agent) == 0
            done.set()

    run(main(), loop)


def test_the_wrong_purpose_and_two_names() -> None:
    from cryptography.x509.oid import ExtendedKeyUsageOID

    from tests.forge import spiffe

    cases: list[tuple[Credentials, type[TrustError]]] = [
        (FORGE.leaf("/server", eku=[ExtendedKeyUsageOID.CLIENT_AUTH]), WrongExtendedKeyUsage),
        (
            FORGE.leaf("/server", sans=[spiffe("spiffe://fleet.example/server"), spiffe("spiffe://fleet.example/b")]),
            SeveralSpiffeIDs,
        ),
    ]

    async def main() -> None:
        for credentials, expected in cases:
            async with here(source=credentials) as server, client() as agent:
                with pytest.raises(expected):
                    await agent.get(server.url)

    run(main())


def test_a_server_that_was_revoked_is_not_asked_again() -> None:
    """On the connection that is still open, and without a reload."""
    crls, asked = Live(FORGE.crls()), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await echo(scope, receive, send)

    async def main() -> None:
        async with here(app) as server, client(crls=crls) as agent:
            await agent.get(server.url)
            crls.replace(FORGE.crls(SERVER))
            with pytest.raises(CertificateRevoked):
                await agent.get(server.url)

    run(main())
    assert len(asked) == 1


def test_a_stream_ends_when_its_server_is_revoked() -> None:
    crls = Live(FORGE.crls())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": b"event", "more_body": True})
            await asyncio.sleep(0.02)

    async def main() -> None:
        async with here(app) as server, client(crls=crls) as agent, agent.stream("GET", server.url) as response:
            with pytest.raises(CertificateRevoked):
                async for _ in response.aiter_raw():
                    crls.replace(FORGE.crls(SERVER))

    run(main())


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example"])
def test_what_is_no_name_of_a_host(host: str) -> None:
    async def main() -> None:
        async with client() as http:
            with pytest.raises(httpx.UnsupportedProtocol, match="is not the name of a host"):
                await http.get(f"https://{host}/")

    run(main())
