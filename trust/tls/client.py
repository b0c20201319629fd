"""httpx over mutual TLS: errors that say who was refused and why, and connections that live no longer than their trust.

The TLS of `trust.tls.connection` runs over httpcore's plain TCP streams, so what it raises reaches the caller of
`client.get(...)` as it is.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterable
from typing import Any

import anyio
import httpcore
import httpx

from trust.authorize import Authorizer
from trust.bundles import BundleSource, RevocationLists, RevocationSource
from trust.clock import Clock, wall_clock
from trust.credentials import CredentialSource
from trust.errors import (
    ConfigurationError,
    HandshakeFailed,
    HandshakeRefused,
    NoPeerCertificate,
    TransportError,
    TrustError,
)
from trust.identity import PeerIdentity
from trust.tls.engine import TrustContext, client_context
from trust.tls.sslobject import SslObject

MAX_CONNECTIONS = 100  # at once, to all servers
MAX_IDLE_CONNECTIONS = 20
IDLE_SECONDS = 4.0  # below the 5 s after which uvicorn closes an idle connection: a request must not meet its end
READ_BYTES = 64 * 1024


class AgentTransport(httpx.AsyncHTTPTransport):
    """The transport for `httpx.AsyncClient(transport=...)`. HTTP/1.1; https only; no proxies, no environment.

    The server's SPIFFE ID is verified and passes `authorize` before a byte of a request is sent.

    Args:
        source, bundles, authorize, crls, clock: as for `client_context`; with None for `source` no certificate is
            presented.

    Attributes:
        context: for `reload()`.

    Raises (from requests):
        PeerError: the server's certificate, by the check that refused it.
        HandshakeRefused: the server refused our certificate, or that we have none; the alert is named when there was
            one.
        HandshakeFailed: no TLS 1.3 on the other end.
        ConfigurationError: a URL that is not https.
        httpx.TransportError: the network, as ever.
    """

    def __init__(
        self,
        source: CredentialSource | None,
        bundles: BundleSource,
        authorize: Authorizer,
        *,
        crls: RevocationSource = RevocationLists(),  # noqa: B008 - immutable
        clock: Clock = wall_clock,
    ) -> None:
        self.context = client_context(source, bundles, authorize, crls=crls, clock=clock)
        super().__init__(verify=self.context, trust_env=False)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=self.context,
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_IDLE_CONNECTIONS,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=_Backend(),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.scheme != "https":
            raise ConfigurationError(
                "URL is not protected", got=f"{request.url.scheme}://{request.url.host}", expected="https://"
            )
        return await super().handle_async_request(request)


def transport(
    source: CredentialSource | None,
    bundles: BundleSource,
    authorize: Authorizer,
    *,
    crls: RevocationSource = RevocationLists(),  # noqa: B008 - immutable
) -> AgentTransport:
    """As `AgentTransport`."""
    return AgentTransport(source, bundles, authorize, crls=crls)


def peer_of_response(response: httpx.Response) -> PeerIdentity:
    """Which agent answered: the verified peer of the connection that this response came over.

    Raises:
        NoPeerCertificate: the response did not come over a connection of ours.
    """
    stream = response.extensions.get("network_stream")
    tls = stream.get_extra_info("ssl_object") if stream is not None else None
    peer = tls.peer if isinstance(tls, SslObject) else None
    if not isinstance(peer, PeerIdentity):
        raise NoPeerCertificate("response has no verified peer", expected="a client made with AgentTransport")
    return peer


class _Backend(httpcore.AsyncNetworkBackend):
    """httpcore's TCP, and our TLS."""

    def __init__(self) -> None:
        self._tcp = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _TcpStream(await self._tcp.connect_tcp(host, port, timeout, local_address, socket_options))

    async def sleep(self, seconds: float) -> None:
        await self._tcp.sleep(seconds)


class _TcpStream(httpcore.AsyncNetworkStream):
    """Plain TCP, of which only the way to TLS is used."""

    def __init__(self, raw: httpcore.AsyncNetworkStream) -> None:
        self._raw = raw

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        try:
            if not isinstance(ssl_context, TrustContext):
                raise ConfigurationError("TLS context", got=type(ssl_context).__name__, expected="a TrustContext")
            stream = _TlsStream(ssl_context, self._raw, server_hostname)
            with anyio.fail_after(timeout):
                await stream.handshake()
        except TimeoutError:
            await self.aclose()
            raise httpcore.ConnectTimeout(f"TLS handshake took longer than {timeout} s") from None
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise
        return stream

    async def aclose(self) -> None:
        await self._raw.aclose()


class _TlsStream(httpcore.AsyncNetworkStream):
    def __init__(self, context: TrustContext, raw: httpcore.AsyncNetworkStream, server_name: str | None) -> None:
        self._context = context
        self._raw = raw
        self._tls = context.connection(server_name)
        self._tls.on_distrust = self._cut
        self._early = b""  # decrypted while we were still sending
        self._retired = False  # httpcore is about to close it
        self._object = SslObject(context, self._tls, ssl.MemoryBIO(), ssl.MemoryBIO())

    async def handshake(self) -> None:
        while True:
            try:
                done = self._tls.handshake()
            except TrustError:
                with contextlib.suppress(httpcore.NetworkError):
                    await self._flush(None)  # the alert: the server should know why, too
                raise
            try:
                await self._flush(None)
                if done:
                    return
                data = await self._raw.read(READ_BYTES)
            except httpcore.NetworkError as error:
                raise HandshakeFailed("connection was lost in the handshake", got=error) from None
            if data:
                self._tls.receive(data)
            else:
                self._tls.receive_eof()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        while True:
            if self._early:
                plain, self._early = self._early, b""
                return plain
            decrypted = self._decrypt(max_bytes)
            if decrypted is not None:
                return decrypted
            await self._flush(timeout)  # reading may have made TLS answer
            await self._receive(timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        # httpcore closes what is stale one after the other, and may have given this one to a request before: that one
        # takes another connection. Not a byte of it was sent, for connections retire between requests only.
        if self._retired:
            raise httpcore.ConnectionNotAvailable
        # In TLS 1.3 the server judges our certificate while we send already. A refusal is looked for all the way
        # through a large request: the reset that follows it would destroy the alert that says why.
        pieces = [buffer] if self._tls.heard else _pieces(buffer)
        for piece in pieces:
            self._check_trust()
            try:
                self._tls.write(piece)
            except TransportError as error:
                raise httpcore.WriteError(str(error)) from None
            await self._flush(timeout)
            if not self._tls.heard and self._raw.get_extra_info("is_readable"):
                await self._receive(timeout)
                self._early += self._decrypt(READ_BYTES) or b""

    async def _receive(self, timeout: float | None) -> None:  # noqa: ASYNC109
        try:
            data = await self._raw.read(READ_BYTES, timeout)
        except httpcore.ReadError as error:
            self._check_trust()
            if not self._tls.heard:
                raise _refused(error) from None
            raise httpcore.ReadError(str(error) or "connection was reset") from None
        if data:
            self._tls.receive(data)
        else:
            self._tls.receive_eof()

    def _decrypt(self, max_bytes: int) -> bytes | None:
        self._check_trust()
        try:
            plain = self._tls.read(max_bytes)
        except TransportError as error:
            if not self._tls.heard:
                raise _refused(error) from None
            raise httpcore.ReadError(str(error)) from None
        if plain == b"" and not self._tls.heard:
            raise _refused(None)
        return plain

    async def aclose(self) -> None:
        self._tls.close()
        try:
            # close_notify is sent if it can be sent at once: a dead server must not hold up the client.
            with contextlib.suppress(httpcore.NetworkError, httpcore.TimeoutException, anyio.BusyResourceError):
                await self._flush(0.05)
        finally:
            await self._raw.aclose()

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object":
            return self._object
        if info == "is_readable":
            # httpcore asks this of an idle connection, and closes those that say yes: there is nothing more to come.
            self._retired = self._context.stale(self._tls) or bool(self._raw.get_extra_info(info))
            return self._retired
        return self._raw.get_extra_info(info)

    async def _flush(self, timeout: float | None) -> None:  # noqa: ASYNC109
        data = self._tls.output()
        if data:
            await self._raw.write(data, timeout)

    def _check_trust(self) -> None:
        self._tls.recheck()
        if self._tls.distrusted:
            raise self._tls.distrusted

    def _cut(self, _: TrustError) -> None:
        """The server lost its trust: end the connection now, also for a reader that waits."""
        with contextlib.suppress(OSError):  # closed already; `distrusted` makes every further use fail in any case
            raw = self._raw.get_extra_info("socket")
            with socket.fromfd(raw.fileno(), raw.family, raw.type) as same:  # uvloop's own cannot be shut down
                same.shutdown(socket.SHUT_RDWR)


def _pieces(buffer: bytes) -> Iterable[memoryview]:
    whole = memoryview(buffer)
    return (whole[start : start + READ_BYTES] for start in range(0, len(whole), READ_BYTES))


def _refused(cause: Exception | None) -> HandshakeRefused:
    if isinstance(cause, HandshakeRefused):
        return cause
    return HandshakeRefused(
        "server ended the connection before it answered",
        got=str(cause or "") or "the end of the connection",
        expected="an answer",
        do="check this agent's certificate and the server's list of who may connect",
    )
