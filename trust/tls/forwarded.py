"""Behind a proxy that terminates TLS: whose request it forwards, by `Client-Cert` and `Client-Cert-Chain` (RFC 9440).

A header is believed only on a connection whose verified peer is one of the configured proxies. Nothing else that a
proxy may say is believed at all, X-Forwarded-* and Forwarded included.

What a proxy has to do, and `examples/proxies` does with nginx and HAProxy: present a certificate of ours to this server
and verify this server's; ask its clients for certificates, without resuming TLS sessions; on every request set both
headers by what this very client presented, or remove them; never cache. Envoy has no RFC 9440 of its own
(`x-forwarded-client-cert` is not read here): it needs a Lua filter that writes the headers.
"""

from __future__ import annotations

import base64
import binascii
import functools
import ssl
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from cryptography import x509

from trust.audit import AuditLog, AuditSink
from trust.authorize import allows
from trust.certificates import MAX_CERTIFICATE_BYTES
from trust.errors import (
    ForwardedCertificateMalformed,
    ForwardedCertificateRefused,
    NoPeerCertificate,
    PeerError,
    PeerNotAllowed,
    TrustError,
)
from trust.identity import PEER_EXTENSION, PRESENTED_EXTENSION, PROXY_EXTENSION, PeerIdentity, peer_of
from trust.peers import MAX_CERTIFICATES
from trust.tls.connection import as_trust_error
from trust.tls.engine import TrustContext

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

CERT, CHAIN = b"client-cert", b"client-cert-chain"

# CGI and WSGI cannot tell "_" from "-". A proxy that removes the one and lets the other through must not be the way in.
_LOOKALIKES = frozenset({b"client_cert", b"client_cert_chain", b"client-cert_chain", b"client_cert-chain"})
_NAMES = _LOOKALIKES | {CERT, CHAIN}

MAX_FIELD_CHARACTERS = 4 * ((MAX_CERTIFICATE_BYTES + 2) // 3) + 2  # one certificate: base64 between two colons


class Forwarded:
    """ASGI: puts the client that a proxy forwards for in the place of the peer, where `context` knows proxies.

    The outermost of all middleware: it looks for the peer where the TLS server puts it (`peer_of`). Afterwards the
    proxy stands in `scope["extensions"][PROXY_EXTENSION]`, and the application never sees the two headers.

    (1) Without configured proxies the headers are removed, and nothing else happens.
    (2) From anybody but a proxy a request with one of the headers is refused, by its look-alikes with "_", too.
    (3) A proxy never speaks for itself: its request is that of the certificate in the header, or of nobody.
    (4) Nobody is refused where client certificates are required.
    (5) The chain verifies as in a handshake, now, and the server's `authorize` allows its agent. No proxy is a client.
    (6) All of (5) holds again for everything that is received or sent afterwards: a request in flight, an event stream
        or a WebSocket of a client that lost its trust ends with its next message.

    Not checked: that the client holds the key, and that the headers are not the client's own words; both are the
    proxy's task, and what it is trusted for.

    Args:
        app: the ASGI application.
        context: the server's; its bundles, CRLs, clock, `authorize` and `proxies` decide.
        audit: gets an event "request" for each one that is refused.
    """

    def __init__(self, app: Callable[..., Awaitable[Any]], *, context: TrustContext, audit: AuditSink | None) -> None:
        self._app = app
        self._context = context
        self._audit = AuditLog(clock=context.now) if audit is None else audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        fields = [(name, value) for name, value in scope["headers"] if name.lower() in _NAMES]
        if fields:
            scope["headers"] = [(name, value) for name, value in scope["headers"] if name.lower() not in _NAMES]
        proxies, peer = self._context.proxies, peer_of(scope)
        if proxies is not None and peer is not None and allows(proxies, peer.agent_id):
            await self._forwarded(peer, fields, scope, receive, send)
        elif proxies is not None and fields:
            error = ForwardedCertificateRefused(
                "forwarded certificate from somebody who is no proxy",
                got=peer.agent_id if peer else "a client without a certificate",
                expected=f"{proxies}",
                do="remove the header, or configure the sender as a proxy",
            )
            self._denied(scope, peer, error)
            await _refuse(scope, send, error, close=True)
        else:
            await self._app(scope, receive, send)

    async def _forwarded(
        self, proxy: PeerIdentity, fields: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            client = self._client(proxy, forwarded_chain(fields))
        except Exception as failure:  # a defect or an outage on our side must refuse, never accept
            error = as_trust_error(failure)
            self._denied(scope, proxy, error)
            await _refuse(scope, send, error)
            return
        extensions = scope["extensions"]
        extensions = {**extensions, "tls": {**extensions.get("tls", {}), **described(client)}, PROXY_EXTENSION: proxy}
        # The client never saw the certificate that we presented: an answer's signature has to bring it along.
        extensions[PRESENTED_EXTENSION] = ""
        del extensions[PEER_EXTENSION]
        if client is not None:
            extensions[PEER_EXTENSION] = client
        scope["extensions"] = extensions
        watched = _Watched(client, self._judge, scope, receive, send)
        try:
            await self._app(scope, watched.receive, watched.send)
        except Exception:
            if watched.lost is None:
                raise
        if watched.lost is not None:
            self._denied(scope, client, watched.lost)
            if not watched.over:
                await _refuse(scope, send, watched.lost)

    def _client(self, proxy: PeerIdentity, chain: tuple[bytes, ...]) -> PeerIdentity | None:
        if not chain:
            if self._context.verify_mode is ssl.CERT_REQUIRED:
                raise NoPeerCertificate("proxy forwarded no certificate", expected="a Client-Cert header")
            return None
        if (
            len(chain) == 1
        ):  # Client-Cert-Chain is optional, and one CA has few intermediates: those of the proxy may do
            chain += proxy.chain[1:]
        return self._judge(chain)

    def _judge(self, chain: tuple[bytes, ...]) -> PeerIdentity:
        trust, proxies = self._context.trust, self._context.proxies
        client = trust.verifier.verify(chain, now=self._context.now(), usage="client")
        if proxies is not None and allows(proxies, client.agent_id):
            raise PeerNotAllowed("forwarded certificate is a proxy's", got=client.agent_id, expected="a client's")
        trust.authorize.check(client.agent_id)
        return client

    def _denied(self, scope: Scope, peer: PeerIdentity | None, error: TrustError) -> None:
        address = scope.get("client")
        self._audit.record(
            event="request",
            decision="deny",
            check=error.check,
            peer=str(peer.agent_id) if peer else (f"{address[0]}:{address[1]}" if address else "unknown"),
            target=f"{scope.get('method', scope['type'])} {scope['path']}",
            reason=str(error),
        )


def forwarded_chain(fields: Headers) -> tuple[bytes, ...]:
    """The certificates that a proxy forwards, DER, the leaf first; empty where it forwards none.

    `Client-Cert` is one Byte Sequence on one line, `Client-Cert-Chain` a List of them on any number of lines (RFC 9440
    sections 2.2 and 2.3, RFC 8941 sections 3.1 and 3.3.5). Stricter than those: base64 is canonical, nothing has
    parameters.

    Not checked: that the bytes are certificates; that is `trust.peers`.

    Raises:
        ForwardedCertificateMalformed: anything else.
    """
    leaves: list[bytes] = []
    lines: list[bytes] = []
    for name, value in fields:
        if name.lower() in _LOOKALIKES:
            raise ForwardedCertificateMalformed("forwarded certificate's header", got=name, expected="Client-Cert")
        (leaves if name.lower() == CERT else lines).append(value)
    if len(leaves) > 1:
        raise ForwardedCertificateMalformed(
            "Client-Cert", got=f"{len(leaves)} lines", expected="one", do="let the proxy replace what its client sent"
        )
    if lines and not leaves:
        raise ForwardedCertificateMalformed("Client-Cert-Chain", got="no Client-Cert", expected="both")
    members = b",".join(lines).split(b",", MAX_CERTIFICATES) if lines else []
    if len(members) >= MAX_CERTIFICATES:
        raise ForwardedCertificateMalformed(
            "Client-Cert-Chain", got="too many members", expected=f"at most {MAX_CERTIFICATES - 1}"
        )
    return tuple(
        dict.fromkeys(  # some proxies put the leaf into the chain as well
            [_bytes("Client-Cert", value) for value in leaves] + [_bytes("Client-Cert-Chain", m) for m in members]
        )
    )


def _bytes(field: str, value: bytes) -> bytes:
    """One Byte Sequence: base64 between colons. RFC 8941 section 3.3.5."""
    text = value.strip(b" \t")
    if len(text) > MAX_FIELD_CHARACTERS:
        raise ForwardedCertificateMalformed(
            field, got=f"{len(text)} characters", expected=f"at most {MAX_FIELD_CHARACTERS}"
        )
    if len(text) > 2 and text.startswith(b":") and text.endswith(b":"):
        encoded = text[1:-1]
        try:
            decoded = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            decoded = b""
        if decoded and base64.b64encode(decoded) == encoded:  # one spelling for each certificate
            return decoded
    raise ForwardedCertificateMalformed(
        field, got=f"{len(text)} characters", expected="base64 of a DER certificate between two colons"
    )


def described(peer: PeerIdentity | None) -> dict[str, Any]:
    """What ASGI's TLS extension says about a client: its chain in PEM, the leaf first, and the name of the leaf."""
    chain = peer.chain if peer else ()
    return {
        "client_cert_chain": [_pem(der) for der in chain],
        "client_cert_name": _name(chain[0]) if chain else None,
    }


@functools.lru_cache(maxsize=256)  # a proxy brings the same few with each request
def _pem(der: bytes) -> str:
    return ssl.DER_cert_to_PEM_cert(der)


@functools.lru_cache(maxsize=256)
def _name(der: bytes) -> str:
    return x509.load_der_x509_certificate(der).subject.rfc4514_string()


class _Watched:
    """`receive` and `send` of one forwarded request, for as long as its client is trusted."""

    def __init__(
        self,
        client: PeerIdentity | None,
        judge: Callable[[tuple[bytes, ...]], PeerIdentity],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self.lost: TrustError | None = None
        self.over = False  # nothing can be sent that would be an answer
        self._client = client
        self._judge = judge
        self._websocket = scope["type"] == "websocket"
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        message = await self._receive()
        self.over = self.over or message["type"].endswith(".disconnect")
        if message["type"] in ("http.request", "websocket.receive") and not self._trusted():
            return {"type": "websocket.disconnect", "code": 1008} if self._websocket else {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind != "websocket.close" and not self._trusted():
            raise OSError("the client lost its trust")  # as a server does that has lost its client (ASGI, "send")
        if kind == "http.response.start":
            message = {**message, "headers": _uncached(message.get("headers", ()))}
        await self._send(message)
        self.over = self.over or kind.endswith("http.response.start") or kind == "websocket.close"

    def _trusted(self) -> bool:
        if self._client is not None and self.lost is None:
            try:
                self._judge(self._client.chain)
            except Exception as error:  # a defect or an outage on our side must refuse, never accept
                self.lost = as_trust_error(error)
        return self.lost is None


def _uncached(headers: Headers) -> list[tuple[bytes, bytes]]:
    """What one client is answered is not for another, unless the application says so itself (RFC 9440 section 2.4)."""
    headers = list(headers)
    if any(name.lower() == b"cache-control" for name, _ in headers):
        return [*headers, (b"vary", b"Client-Cert")]
    return [*headers, (b"cache-control", b"no-store")]


async def _refuse(scope: Scope, send: Send, error: TrustError, *, close: bool = False) -> None:
    """The wire learns a status. A proxy keeps its connection: it cannot help what certificates its clients have."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    status = 403 if isinstance(error, PeerError) else error.status
    headers = [(b"cache-control", b"no-store"), (b"content-length", b"0")]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
