"""What the TLS tests are made of: an ASGI application, event loops, a blocking TLS client, a pair in memory."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import httpx
import uvloop
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from OpenSSL import SSL

from tests.forge import Forge
from trust.authorize import exactly
from trust.credentials import Credentials
from trust.errors import TrustError
from trust.identity import peer_of
from trust.tls import AgentTransport, TrustContext
from trust.tls.connection import Connection
from trust.tls.transport import Deadlines

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
HTTP = ("h11", "httptools")

FORGE = Forge()
OTHER = Forge("other.example")  # another trust domain, with a CA of its own
SERVER = FORGE.leaf("/server")
AGENT = FORGE.leaf("/billing")
SERVER_ID = "spiffe://fleet.example/server"
AGENT_ID = "spiffe://fleet.example/billing"
AGENTS = exactly(AGENT_ID, "spiffe://fleet.example/second")
SERVERS = exactly(SERVER_ID)
SWIFT = Deadlines(handshake=0.3, request_head=0.3, linger=0.2, grace=0.5, close=0.5, trust_check=0.2)


def run(main: Coroutine[Any, Any, None], loop: str = "asyncio") -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the caller's path and the request's body; /slow waits for the test's event in between."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    peer = peer_of(scope)
    name = peer.agent_id.path if peer else "nobody"
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"x-peer", name.encode()), (b"content-length", b"%d" % len(body))],
        }
    )
    await send({"type": "http.response.body", "body": body})


def client(credentials: Credentials | None = AGENT, **options: Any) -> httpx.AsyncClient:
    arguments = {"bundles": FORGE.bundles, "authorize": SERVERS, **options}
    return httpx.AsyncClient(transport=AgentTransport(credentials, **arguments), trust_env=False)


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until a condition holds; a test that waits in vain fails."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


class KeyUpdates:
    """Writes KeyUpdate records in the place of one end's OpenSSL, which cannot be told to (RFC 8446 section 4.6.3).

    Args:
        context: of that end, before its first connection; the last one is written for.
    """

    def __init__(self, context: TrustContext) -> None:
        self._label = b"SERVER_TRAFFIC_SECRET_0" if context.server_side else b"CLIENT_TRAFFIC_SECRET_0"
        self._secret, self._number = b"", 0
        context._snapshot.openssl.set_keylog_callback(self._log)

    def _log(self, _: Any, line: bytes) -> None:
        if line.startswith(self._label):
            self._secret, self._number = bytes.fromhex(line.split()[2].decode()), 0

    def _expand(self, label: bytes, size: int) -> bytes:
        info = size.to_bytes(2, "big") + bytes([6 + len(label)]) + b"tls13 " + label + b"\0"
        return HKDFExpand(hashes.SHA384(), size, info).derive(self._secret)

    def records(self, count: int, *, asking: bool = True, data: bytes = b"", before: int = 0) -> bytes:
        """So many KeyUpdates.

        Args:
            asking: whether the other end is to renew its keys, too.
            data: what comes in a record before each of them.
            before: records that OpenSSL itself wrote until now.
        """
        self._number += before
        written = []
        for _ in range(count):
            key, start = AESGCM(self._expand(b"key", 32)), int.from_bytes(self._expand(b"iv", 12), "big")
            for inner in ([data + b"\x17"] if data else []) + [b"\x18\x00\x00\x01" + bytes([asking]) + b"\x16"]:
                head = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
                written.append(head + key.encrypt((start ^ self._number).to_bytes(12, "big"), inner, head))
                self._number += 1
            self._secret, self._number = self._expand(b"traffic upd", 48), 0
        return b"".join(written)


class RawClient:
    """A blocking client that trusts anybody and tells what it saw: OpenSSL's own words for an alert.

    With `before` it offers the session of that connection for resumption.
    """

    def __init__(
        self,
        port: int,
        credentials: Credentials | None = AGENT,
        *,
        version: int = SSL.TLS1_3_VERSION,
        before: RawClient | None = None,
    ) -> None:
        self.context = context = before.context if before else SSL.Context(SSL.TLS_CLIENT_METHOD)
        if not before:
            self._prepare(context, credentials, version)
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.tls = SSL.Connection(context, self.socket)
        self.tls.set_connect_state()
        if before and (session := before.tls.get_session()):
            self.tls.set_session(session)

    @staticmethod
    def _prepare(context: SSL.Context, credentials: Credentials | None, version: int) -> None:
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_max_proto_version(version)
        context.set_session_cache_mode(SSL.SESS_CACHE_CLIENT)
        context.set_alpn_protos([b"http/1.1"])
        if credentials:
            context.use_certificate(credentials.certificate)
            for certificate in credentials.chain[1:]:
                context.add_extra_chain_cert(certificate)
            context.use_privatekey(credentials.private_key)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def request(self, data: bytes = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") -> str:
        """The status line of the answer, or what OpenSSL says about the alert, or "closed"."""
        try:
            self.tls.do_handshake()
            self.tls.sendall(data)
            return self.tls.recv(65536).split(b"\r\n")[0].decode()
        except (SSL.ZeroReturnError, SSL.SysCallError, ConnectionError):
            return "closed"
        except SSL.Error as error:
            return error.args[0][0][-1]


async def raw(port: int, credentials: Credentials | None = AGENT, **options: Any) -> str:
    """The request of a `RawClient`, from the event loop's point of view."""

    def talk() -> str:
        with RawClient(port, credentials, **options) as connection:
            return connection.request()

    return await asyncio.to_thread(talk)


def port_of(url: str) -> int:
    return httpx.URL(url).port or 0


def shake(client: Connection, server: Connection) -> tuple[TrustError | None, TrustError | None]:
    """Let two connections talk until both are done; the error of each."""
    for _ in range(6):
        for here, there in ((client, server), (server, client)):
            with contextlib.suppress(TrustError):
                if here.handshake() and here is client:
                    here.read()
            there.receive(here.output())
    return client.error, server.error


Check = Callable[[], Awaitable[None]]
