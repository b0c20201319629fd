"""A gRPC channel that leads to the right agent. Needs grpcio (the extra `grpc`).

grpcio does TLS itself, knows host names and no SPIFFE IDs, and lets no Python code into its handshake. So the server is
looked at in a handshake of our own, and then grpcio is held to the very certificate that was seen there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from trust.authorize import Authorizer
from trust.bundles import BundleSource, RevocationLists, RevocationSource
from trust.clock import Clock, wall_clock
from trust.credentials import Credentials, CredentialSource
from trust.errors import ConfigurationError, HandshakeFailed, NoPeerCertificate, TrustError
from trust.identity import PeerIdentity
from trust.tls.connection import Connection, as_trust_error
from trust.tls.engine import TrustContext, client_context
from trust.tls.grpc_server import pem_pair

HANDSHAKE_SECONDS = 10.0  # connecting included
READ_BYTES = 64 * 1024
CHECK_SECONDS = 0.5  # between two looks whether anything was renewed, or the server is still trusted; as servers do
POLL_SECONDS = 0.01  # between two looks at a channel's state: grpcio's own waiting may outlast the channel's end
LONGEST_REST_SECONDS = 5.0  # between two attempts to reach a server that cannot be reached; it doubles

logger = logging.getLogger("a2a_trust.tls")


async def grpc_channel(
    target: str,
    *,
    source: CredentialSource,
    bundles: BundleSource,
    authorize: Authorizer,
    crls: RevocationSource = RevocationLists(),  # noqa: B008 - immutable
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    options: Sequence[tuple[str, Any]] = (),
    clock: Clock = wall_clock,
) -> grpc.aio.Channel:
    """A channel to one server, which is an agent that `authorize` allows. To be closed by the caller.

    The server is verified here, in a handshake of ours: roots of its own domain, revocation, SPIFFE ID. From then on
    grpcio accepts that certificate alone, so nobody else can take its place; which host name was called does not
    matter. No proxy is read from the environment. a2a-sdk takes the channel as
    `ClientConfig(grpc_channel_factory=lambda url: channel)`.

    The channel follows renewals, of ours and of the server's: new calls go over a new connection, and those under way
    end on theirs. Before each call, and twice a second, it asks whether the server is still acceptable. Where it is
    not, calls raise the error that says why, and those under way are cancelled, until the server shows a certificate
    that is.

    Not done: a call that the server refuses, or that breaks off, is not made again. Several servers behind one address
    need one certificate.

    Args:
        target: "host:port".
        source, bundles, authorize, crls, clock: as for `client_context`. The keys of both ends are P-256, P-384 or RSA;
            those of the CAs, see `grpc_server`.
        interceptors, options: further ones of `grpc.aio.secure_channel`.

    Raises:
        PeerError: the server's certificate, by the check that refused it.
        HandshakeFailed: there is no TLS 1.3 at the other end, or nobody; or its certificate has no name at all.
        ConfigurationError: `target`, or credentials that cannot be used.
    """
    context = client_context(source, bundles, authorize, crls=crls, clock=clock)
    context.set_alpn_protocols(["h2"])

    async def link() -> _Link:
        credentials = source.current()
        key, chain = pem_pair(credentials)
        peer = await _look_at(target, context)
        server = x509.load_der_x509_certificate(peer.chain[0])
        channel = grpc.aio.secure_channel(
            f"dns:///{target}",  # alone, "unix:1" would be a file
            grpc.ssl_channel_credentials(
                root_certificates=server.public_bytes(Encoding.PEM),
                private_key=key,
                certificate_chain=chain,
            ),
            # grpcio wants a name to be right as well. Any that the certificate has will do: it is this certificate or
            # none.
            options=[("grpc.ssl_target_name_override", _name(server)), ("grpc.enable_http_proxy", 0), *options],
            interceptors=list(interceptors),
        )
        return _Link(channel, credentials, peer, server.not_valid_after_utc)

    return _Following(await link(), link, source, context)


@dataclass(slots=True, eq=False)
class _Link:
    """A channel of grpcio, whose certificates are what they are; and its calls under way."""

    channel: grpc.aio.Channel
    credentials: Credentials
    peer: PeerIdentity
    ends: datetime  # of the server's certificate
    calls: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)  # grpcio cancels one that nobody holds

    @property
    def certificates(self) -> tuple[str, bytes]:
        return self.credentials.thumbprint, self.peer.chain[0]

    def failing(self) -> bool:
        return self.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE

    async def connected(self) -> None:
        """Raises: HandshakeFailed: grpcio is not connected; perhaps the server was renewed since the look at it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                while not self.failing():
                    if self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
                        return
                    await asyncio.sleep(POLL_SECONDS)
        raise HandshakeFailed("gRPC does not connect", expected="the server that was looked at")


class _Following(grpc.aio.Channel):
    """One link after the other: grpcio has no way to give a channel other certificates, as it has for its servers."""

    def __init__(
        self, link: _Link, new_link: Callable[[], Awaitable[_Link]], source: CredentialSource, context: TrustContext
    ) -> None:
        self._link = link
        self._old: list[_Link] = []  # with calls under way
        self._new_link = new_link
        self._source = source
        self._context = context
        self._problem = ""  # that was logged last
        self._next_look = self._half_way()
        # Two, for a look at a server that says nothing takes its time.
        self._tasks = [asyncio.create_task(self._sweep()), asyncio.create_task(self._follow())]

    # What a caller does with it.

    def unary_unary(self, *method: Any, **options: Any) -> Any:
        return self._method("unary_unary", method, options)

    def unary_stream(self, *method: Any, **options: Any) -> Any:
        return self._method("unary_stream", method, options)

    def stream_unary(self, *method: Any, **options: Any) -> Any:
        return self._method("stream_unary", method, options)

    def stream_stream(self, *method: Any, **options: Any) -> Any:
        return self._method("stream_stream", method, options)

    def _method(self, kind: str, method: tuple[Any, ...], options: dict[str, Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **how: Any) -> Any:
            link = self._link
            if refusal := self._refused(link):
                raise refusal
            made = getattr(link.channel, kind)(*method, **options)(*arguments, **how)
            link.calls.add(made)
            made.add_done_callback(link.calls.discard)
            return made

        return call

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._link.channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        while self.get_state() is last_observed_state:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(POLL_SECONDS)

    async def channel_ready(self) -> None:
        while (state := self.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            await self.wait_for_state_change(state)

    async def close(self, grace: float | None = None) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await asyncio.gather(*(link.channel.close(grace) for link in (*self._old, self._link)))

    async def __aenter__(self) -> _Following:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # What it does by itself.

    async def _follow(self) -> None:
        rest, rested = CHECK_SECONDS, 0.0
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            rested += CHECK_SECONDS
            try:
                if rested < rest or not self._is_due():
                    continue
                rested = 0.0
                await self._renew()
                rest, self._problem = CHECK_SECONDS, ""
            except Exception as error:  # of a source or ours: it must not be the end of following
                rest = min(2 * rest, LONGEST_REST_SECONDS)
                if self._problem != str(error):
                    self._problem = str(error)
                    logger.warning("gRPC goes on with the connection that it has: %s", error)

    async def _sweep(self) -> None:
        """Nothing goes on with a server that is no longer acceptable."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for link in (*self._old, self._link):
                try:
                    await self._look_after(link)
                except Exception:  # of grpcio: the other links are still to be looked at, and this one again
                    logger.exception("gRPC connection cannot be ended")

    async def _look_after(self, link: _Link) -> None:
        if self._refused(link):
            for call in list(link.calls):
                call.cancel()
        if link is not self._link and not link.calls:
            await link.channel.close()
            self._old.remove(link)

    def _refused(self, link: _Link) -> TrustError | None:
        try:
            self._context.judge(link.peer.chain, self._context.trust)
        except Exception as error:  # a defect or an outage on our side must refuse, never accept
            return as_trust_error(error)
        return None

    def _is_due(self) -> bool:
        link = self._link
        return (
            link.credentials.thumbprint != self._source.current().thumbprint
            or link.failing()  # a renewed server that was started again is not the one that was looked at
            or self._context.now() >= self._next_look
            or self._refused(link) is not None
        )

    async def _renew(self) -> None:
        """Look at the server again, and go over to what is new there or here."""
        link, before = await self._new_link(), self._link
        try:
            if link.certificates != before.certificates or before.failing():
                await link.connected()
                self._link, link = link, before
                self._old.append(before)
        finally:
            if link is not before:
                await link.channel.close()
        self._next_look = self._half_way()

    def _half_way(self) -> datetime:
        """Half of what the server's certificate has left, and then half of that: wherever in its life the server renews
        it, the new one is found in time."""
        now = self._context.now()
        return now + (self._link.ends - now) / 2


async def _look_at(target: str, context: TrustContext) -> PeerIdentity:
    """The agent that answers at `target`, after a handshake and nothing else."""
    host, colon, port = target.rpartition(":")
    if not colon or not port.isdecimal() or not host or "/" in host:
        raise ConfigurationError("gRPC target", got=target, expected='"host:port"')
    try:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            try:
                return await _shake_hands(context.connection(host, (host, int(port))), reader, writer)
            finally:
                writer.close()
    except (OSError, OverflowError, ValueError) as error:  # a TimeoutError is an OSError, a UnicodeError a ValueError
        raise HandshakeFailed(f"cannot reach {target}", got=str(error) or type(error).__name__) from None


async def _shake_hands(
    connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> PeerIdentity:
    done = False
    while not done:
        try:
            done = connection.handshake()
        finally:
            writer.write(connection.output())  # the alert, too
        await writer.drain()
        if not done:
            data = await reader.read(READ_BYTES)
            if data:
                connection.receive(data)
            else:
                connection.receive_eof()
    connection.close()
    writer.write(connection.output())
    if connection.peer is None:
        raise NoPeerCertificate("server has no verified identity", expected="an agent certificate")
    return connection.peer


def _name(certificate: x509.Certificate) -> str:
    """A name by which grpcio finds that the certificate is the right one: of a host, an address, or the common one."""
    with contextlib.suppress(x509.ExtensionNotFound):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        for name in names.get_values_for_type(x509.DNSName):
            return name.replace("*", "any", 1)
        for address in names.get_values_for_type(x509.IPAddress):
            return str(address)
    for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        return str(attribute.value)
    raise HandshakeFailed(
        "server's certificate has no name that grpcio could check",
        expected="a DNS name, an address or a common name beside the SPIFFE ID",
        do="issue it with a DNS name",
    )
