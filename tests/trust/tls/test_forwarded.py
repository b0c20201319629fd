"""What a proxy forwards, over real TLS; `tests/attacks` has the table of what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Any

import httpx
import pytest
import websockets
from cryptography import x509
from OpenSSL import SSL

from tests.attacks.test_forwarded_attacks import both, chain_of, leaf_of
from tests.authority import Trail
from tests.forge import NOW
from tests.trust.tls.parts import (
    AGENT,
    AGENT_ID,
    AGENTS,
    FORGE,
    HTTP,
    LOOPS,
    SERVER,
    RawClient,
    client,
    echo,
    port_of,
    raw,
    run,
    until,
)
from trust.authorize import exactly
from trust.errors import (
    CertificateRevoked,
    ForwardedCertificateMalformed,
    ForwardedCertificateRefused,
    NoPeerCertificate,
)
from trust.identity import PEER_EXTENSION, PRESENTED_EXTENSION, PROXY_EXTENSION, AgentID, peer_of
from trust.peers import verify_peer
from trust.sources import Live
from trust.tls import client_context, serving
from trust.tls.forwarded import Forwarded, forwarded_chain

PROXY = FORGE.leaf("/proxy")
SECOND = FORGE.leaf("/second")
CHAIN = tuple(AGENT.chain_der)
SECONDS = 20.0
VERIFY: dict[str, Any] = {"bundles": FORGE.bundles, "now": NOW, "usage": "client"}


def here(app: Any = echo, **options: Any) -> Any:
    base: dict[str, Any] = {
        "source": SERVER,
        "bundles": FORGE.bundles,
        "authorize": AGENTS,
        "proxies": exactly(PROXY.agent_id),
        "lifespan": "off",
    }
    return serving(app, **{**base, **options})


def proxy() -> httpx.AsyncClient:
    """The proxy's side: our own client, with its certificate."""
    return client(PROXY)


class Seen:
    """An application that answers, and keeps the scopes."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        await echo(scope, receive, send)


def lines(headers: Any) -> bytes:
    return b"".join(name + b": " + value + b"\r\n" for name, value in headers)


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


# Reading the headers.


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], ()),
        ([leaf_of(AGENT)], CHAIN[:1]),
        (both(AGENT), CHAIN),
        ([(name.upper(), b" \t" + value + b" ") for name, value in both(AGENT)], CHAIN),
        ([leaf_of(AGENT), (b"client-cert-chain", b"\t , ".join([chain_of(AGENT)[1]] * 2))], CHAIN),
        ([chain_of(AGENT), leaf_of(AGENT), chain_of(SECOND)], CHAIN),
        ([leaf_of(AGENT), (b"client-cert-chain", leaf_of(AGENT)[1] + b"," + chain_of(AGENT)[1])], CHAIN),
    ],
    ids=["none", "leaf", "both", "space and case", "one line", "several lines", "leaf in the chain"],
)
def test_reading(fields: Any, expected: tuple[bytes, ...]) -> None:
    assert forwarded_chain(fields) == expected


def test_a_refusal_does_not_repeat_what_was_sent() -> None:
    with pytest.raises(ForwardedCertificateMalformed) as refused:
        forwarded_chain([(b"client-cert", b":c2VjcmV0:, :c2VjcmV0:")])
    assert "c2VjcmV0" not in str(refused.value) and "between two colons" in str(refused.value)


# Who is calling.


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("loop", LOOPS)
def test_the_client_takes_the_place_of_the_peer(loop: str, http: str) -> None:
    app, trail = Seen(), Trail()

    async def main() -> None:
        async with here(app, http=http, audit=trail) as server, proxy() as via:
            unbelieved = [
                (b"x-forwarded-for", b"203.0.113.9"),
                (b"x-forwarded-client-cert", b"By=spiffe://fleet.example/second"),
                (b"forwarded", b"for=203.0.113.9"),
            ]
            for agent, name in ((AGENT, "/billing"), (SECOND, "/second"), (AGENT, "/billing")):
                response = await via.get(server.url, headers=[*unbelieved, *both(agent)])
                assert response.headers["x-peer"] == name
                assert response.headers["cache-control"] == "no-store"
            async with client() as direct:  # beside the proxy, agents still come by themselves
                response = await direct.get(server.url)
                assert response.headers["x-peer"] == "/billing" and "cache-control" not in response.headers

    run(main(), loop)
    assert trail.records == []
    first, second, third, direct = app.scopes
    assert first["client"] == second["client"] == third["client"]  # one connection, and its own address
    for scope, agent in ((first, AGENT), (second, SECOND), (third, AGENT)):
        peer = peer_of(scope)
        assert peer is not None and (peer.agent_id, peer.thumbprint) == (agent.agent_id, agent.thumbprint)
        assert scope["extensions"][PROXY_EXTENSION].thumbprint == PROXY.thumbprint
        assert scope["extensions"][PRESENTED_EXTENSION] == ""
        tls = scope["extensions"]["tls"]
        assert [x509.load_pem_x509_certificate(pem.encode()) for pem in tls["client_cert_chain"]] == list(agent.chain)
        assert tls["client_cert_name"] == "CN=agent" and tls["tls_version"] == 0x0304
        assert not any(name.startswith(b"client") for name, _ in scope["headers"])
    assert PROXY_EXTENSION not in direct["extensions"]
    assert direct["extensions"][PRESENTED_EXTENSION] == SERVER.thumbprint


@pytest.mark.parametrize("http", HTTP)
def test_nobody(http: str) -> None:
    app, trail = Seen(), Trail()

    async def main() -> None:
        async with here(app, http=http, audit=trail) as server, proxy() as via:
            assert (await via.get(server.url)).status_code == 403
            assert (await via.get(server.url, headers=both(AGENT))).status_code == 200  # on the same connection
        assert [record["check"] for record in trail.records] == [NoPeerCertificate.check]
        async with here(app, http=http, client_certificates="optional") as server, proxy() as via:
            response = await via.get(server.url)
            assert response.headers["x-peer"] == "nobody" and response.headers["cache-control"] == "no-store"

    run(main())
    named, nobody = app.scopes
    assert named["client"] is not None and peer_of(named) is not None
    assert peer_of(nobody) is None
    assert nobody["extensions"]["tls"]["client_cert_chain"] == []
    assert nobody["extensions"]["tls"]["client_cert_name"] is None


def test_without_a_chain_the_intermediates_of_the_proxy_are_tried() -> None:
    async def main() -> None:
        async with here() as server, proxy() as via:
            assert (await via.get(server.url, headers=[leaf_of(AGENT)])).headers["x-peer"] == "/billing"

    run(main())


def test_what_an_application_says_about_caches_stays() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"Cache-Control", b"max-age=60"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body"})

    async def main() -> None:
        async with here(app) as server, proxy() as via:
            response = await via.get(server.url, headers=both(AGENT))
            assert response.headers.get_list("cache-control") == ["max-age=60"]
            assert response.headers["vary"] == "Client-Cert"

    run(main())


def test_who_is_a_proxy_and_who_may_call_are_two_lists() -> None:
    async def main() -> None:
        refused: list[Any] = []
        async with here(on_refused=lambda error, _: refused.append(error)) as server, proxy() as via:
            assert (await raw(port_of(server.url), FORGE.leaf("/intruder"))).endswith("handshake failure")
            assert "/proxy" in str(refused[0])  # as who may connect
            assert (await via.get(server.url, headers=both(AGENT))).status_code == 200
            server.context.reload(authorize=exactly(SECOND.agent_id))  # proxies stay
            assert (await via.get(server.url, headers=both(AGENT))).status_code == 403
            assert (await via.get(server.url, headers=both(SECOND))).status_code == 200
        async with here(proxies=None) as server:
            assert (await raw(port_of(server.url), PROXY)).endswith("handshake failure")

    run(main())


def test_lifespan_passes() -> None:
    started: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                started.append(message["type"])
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return

    async def main() -> None:
        async with here(app, lifespan="on"):
            pass

    run(main())
    assert started == ["lifespan.startup", "lifespan.shutdown"]


# On the wire.


async def talk(port: int, data: bytes, answers: int, sender: Any = PROXY) -> list[str]:
    """For each answer to raw bytes whom the application saw, or the status; "closed" where there is none."""

    def exchange() -> bytes:
        received = b""
        with RawClient(port, sender) as connection:
            # In the kernel, so that the socket stays a blocking one for OpenSSL.
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(SECONDS), 0))
            connection.tls.do_handshake()
            connection.tls.sendall(data)
            with contextlib.suppress(SSL.Error):
                while received.count(b"\r\n\r\n") < answers:
                    received += connection.tls.recv(65536)
        return received

    received = await asyncio.to_thread(exchange)
    found = []
    for head in received.split(b"\r\n\r\n")[:-1]:
        status = head[head.index(b"HTTP/1.1 ") :].split(b" ")[1]
        peer = [line[8:] for line in head.split(b"\r\n") if line.startswith(b"x-peer: ")]
        found.append((peer[0] if peer else status).decode())
    return found + ["closed"] * (answers - len(found))


@pytest.mark.parametrize("http", HTTP)
def test_what_parsers_are_tried_with(http: str) -> None:
    """Raw bytes of the proxy. Each request is its own: nothing is left over from the one before, or taken later."""
    body = b"Transfer-Encoding: chunked\r\n"
    chunks = b"2\r\nok\r\n0\r\n"
    named = lines(both(AGENT))
    rows: dict[str, tuple[bytes, int, list[str]]] = {
        "pipelined": (
            GET + named + b"\r\n" + GET + b"\r\n" + GET + lines(both(SECOND)) + b"\r\n",
            3,
            ["/billing", "nobody", "/second"],
        ),
        "in trailers": (GET + body + b"\r\n" + chunks + named + b"\r\n", 1, ["nobody"]),
        "another one in trailers": (
            GET + body + named + b"\r\n" + chunks + lines(both(SECOND)) + b"\r\n" + GET + b"\r\n",
            2,
            ["/billing", "nobody"],
        ),
        "case": (GET + lines((n.title(), v) for n, v in both(AGENT)) + b"\r\n", 1, ["/billing"]),
        "two lines in two cases": (
            GET + named + lines([(b"CLIENT-CERT", leaf_of(SECOND)[1])]) + b"\r\n",
            1,
            ["400"],
        ),
        "underscore": (GET + lines([(b"Client_Cert", leaf_of(AGENT)[1])]) + b"\r\n", 1, ["400"]),
        "space before the colon": (GET + named.replace(b"client-cert:", b"client-cert :") + b"\r\n", 1, ["400"]),
        "folded line": (GET + named[:200] + b"\r\n " + named[200:] + b"\r\n", 1, ["400"]),
        "named as of this hop": (GET + b"Connection: client-cert\r\n" + named + b"\r\n", 1, ["/billing"]),
    }

    async def main() -> None:
        async with here(http=http, client_certificates="optional") as server:
            for row, (data, answers, expected) in rows.items():
                assert await talk(port_of(server.url), data, answers) == expected, row

    run(main())


@pytest.mark.parametrize("http", HTTP)
def test_from_an_agent(http: str) -> None:
    app, trail = Seen(), Trail()

    async def main() -> None:
        async with here(app, http=http, audit=trail) as server:
            port = port_of(server.url)
            pipelined = GET + lines(both(SECOND)) + b"\r\n" + GET + b"\r\n"
            assert await talk(port, pipelined, 2, AGENT) == ["400", "closed"]
            assert await talk(port, GET + b"\r\n", 1, AGENT) == ["/billing"]
        async with here(app, http=http, proxies=None) as server:
            assert await talk(port_of(server.url), GET + lines(both(SECOND)) + b"\r\n", 1, AGENT) == ["/billing"]

    run(main())
    assert [record["check"] for record in trail.records] == [ForwardedCertificateRefused.check]
    assert trail.last["peer"] == AGENT_ID
    assert [peer_of(scope).agent_id for scope in app.scopes] == [AgentID.parse(AGENT_ID)] * 2  # type: ignore[union-attr]
    assert not any(name.startswith(b"client") for scope in app.scopes for name, _ in scope["headers"])


# The end of trust.


@pytest.mark.parametrize("http", HTTP)
def test_a_stream_ends_when_its_client_is_revoked(http: str, caplog: pytest.LogCaptureFixture) -> None:
    """The stream of the one ends; that of another client behind the same proxy goes on."""
    crls, trail = Live(FORGE.crls()), Trail()
    gone: list[str] = []
    over = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        name = str(peer_of(scope).agent_id)  # type: ignore[union-attr]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-peer", name.encode())]})
        try:
            while not over.is_set():
                await send({"type": "http.response.body", "body": b"data: tick\n\n", "more_body": True})
                await asyncio.sleep(0.01)
        except OSError:
            gone.append(name)
            raise

    async def main() -> None:
        async with (
            here(app, http=http, crls=crls, audit=trail) as server,
            proxy() as via,
            via.stream("GET", server.url, headers=both(AGENT)) as lost,
            via.stream("GET", server.url, headers=both(SECOND)) as kept,
        ):
            ended, goes_on = lost.aiter_raw(), kept.aiter_raw()
            assert await anext(ended) and await anext(goes_on)
            crls.replace(FORGE.crls(AGENT))
            async with asyncio.timeout(SECONDS):
                with pytest.raises(httpx.RemoteProtocolError):
                    while True:
                        await anext(ended)
            for _ in range(5):
                assert await anext(goes_on)
            over.set()

    run(main())
    assert gone == [AGENT_ID]
    assert [(record["check"], record["peer"]) for record in trail.records] == [(CertificateRevoked.check, AGENT_ID)]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("http", HTTP)
def test_a_request_in_flight_is_refused_when_its_client_is_revoked(http: str) -> None:
    crls, trail = Live(FORGE.crls()), Trail()
    received: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        crls.replace(FORGE.crls(AGENT))
        received.append((await receive())["type"])

    async def answering(scope: Any, receive: Any, send: Any) -> None:
        crls.replace(FORGE.crls(AGENT))
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def main() -> None:
        for application in (app, answering):
            crls.replace(FORGE.crls())
            async with here(application, http=http, crls=crls, audit=trail) as server, proxy() as via:
                answer = await via.post(server.url, headers=both(AGENT), content=b"x")
                assert (answer.status_code, answer.content) == (403, b"")

    run(main())
    assert received == ["http.disconnect"]
    assert [record["check"] for record in trail.records] == [CertificateRevoked.check] * 2


def test_an_error_of_the_application_stays_one() -> None:
    """The server has to see it: it answers 500, and its log says why."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise OSError("of its own")

    async def unused(*_: Any) -> Any:
        raise AssertionError

    async def main() -> None:
        async with here(app, log_level="critical") as server, proxy() as via:
            assert (await via.get(server.url, headers=both(AGENT))).status_code == 500
            scope = {
                "type": "http",
                "headers": both(AGENT),
                "extensions": {PEER_EXTENSION: verify_peer(PROXY.chain_der, **VERIFY)},
            }
            with pytest.raises(OSError, match="of its own"):
                await Forwarded(app, context=server.context, audit=Trail())(scope, unused, unused)

    run(main())


def test_websockets() -> None:
    """Accepted for the forwarded client, refused for nobody and from others, and ended when the client is revoked."""
    crls, trail = Live(FORGE.crls()), Trail()
    heard: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            heard.append(message)
            if message["type"] == "websocket.disconnect":
                return
            await send({"type": "websocket.send", "text": str(peer_of(scope).agent_id)})  # type: ignore[union-attr]

    async def main() -> None:
        async with here(app, crls=crls, audit=trail) as server:
            url = server.url.replace("https", "wss")

            def connect(headers: Any, sender: Any = PROXY) -> Any:
                context = client_context(sender, FORGE.bundles, exactly(SERVER.agent_id))
                pairs = [(name.decode(), value.decode()) for name, value in headers]
                return websockets.connect(url, ssl=context, additional_headers=pairs)

            async with connect(both(AGENT)) as connection:
                await connection.send("who am I")
                assert await connection.recv() == AGENT_ID
                crls.replace(FORGE.crls(AGENT))
                await connection.send("and now")
                with pytest.raises(websockets.ConnectionClosedError) as closed:
                    await asyncio.wait_for(connection.recv(), SECONDS)
                assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
            for headers, sender in (([], PROXY), (both(SECOND), SECOND), (both(AGENT), PROXY)):
                with pytest.raises(websockets.InvalidStatus) as refused:
                    await connect(headers, sender)
                assert refused.value.response.status_code == 403
            await until(lambda: len(trail.records) == 4, SECONDS)

    run(main())
    assert heard[-1] == {"type": "websocket.disconnect", "code": 1008}
    assert len(heard) == 2
    checks = [CertificateRevoked, NoPeerCertificate, ForwardedCertificateRefused, CertificateRevoked]
    assert [record["check"] for record in trail.records] == [check.check for check in checks]
