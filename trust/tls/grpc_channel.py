"""A gRPC channel that leads to the right agent. Needs grpcio (the extra `grpc`).

grpcio does TLS itself, knows host names and no SPIFFE IDs, and lets no Python code into its handshake. So the server is
looked at in a handshake of our own, and then grpcio is held to the very certificate that was seen there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from trust.authorize import Authorizer
from trust.bundles import BundleSource, RevocationLists, RevocationSource
from trust.clock import Clock, wall_clock
from trust.credentials import CredentialSource
from trust.errors import ConfigurationError, HandshakeFailed, NoPeerCertificate
from trust.identity import PeerIdentity
from trust.tls.connection import Connection
from trust.tls.engine import client_context
from trust.tls.grpc_server import pem_pair

HANDSHAKE_SECONDS = 10.0  # connecting included
READ_BYTES = 64 * 1024


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

    Not followed by an open channel: grpcio has no way to another certificate. After a renewal of the server's, or of
    ours, it goes on until the connection ends, and then calls fail with UNAVAILABLE: make a new channel for each task,
    or at each renewal. What is revoked meanwhile is noticed by the next channel. Several servers behind one address
    need one certificate.

    Args:
        target: "host:port".
        source, bundles, authorize, crls, clock: as for `client_context`.
        interceptors, options: further ones of `grpc.aio.secure_channel`.

    Raises:
        PeerError: the server's certificate, by the check that refused it.
        HandshakeFailed: there is no TLS 1.3 at the other end, or nobody; or its certificate has no name at all.
        ConfigurationError: `target`, or credentials that cannot be used.
    """
    key, chain = pem_pair(source.current())
    peer = await _look_at(target, source, bundles, authorize, crls, clock)
    server = x509.load_der_x509_certificate(peer.chain[0])
    return grpc.aio.secure_channel(
        f"dns:///{target}",  # alone, "unix:1" would be a file
        grpc.ssl_channel_credentials(
            root_certificates=server.public_bytes(Encoding.PEM),
            private_key=key,
            certificate_chain=chain,
        ),
        # grpcio wants a name to be right as well. Any that the certificate has will do: it is this certificate or none.
        options=[("grpc.ssl_target_name_override", _name(server)), ("grpc.enable_http_proxy", 0), *options],
        interceptors=list(interceptors),
    )


async def _look_at(
    target: str,
    source: CredentialSource,
    bundles: BundleSource,
    authorize: Authorizer,
    crls: RevocationSource,
    clock: Clock,
) -> PeerIdentity:
    """The agent that answers at `target`, after a handshake and nothing else."""
    host, colon, port = target.rpartition(":")
    if not colon or not port.isdecimal() or not host or "/" in host:
        raise ConfigurationError("gRPC target", got=target, expected='"host:port"')
    context = client_context(source, bundles, authorize, crls=crls, clock=clock)
    context.set_alpn_protocols(["h2"])
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
