"""Which gRPC server a channel of ours leads to."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from ipaddress import IPv4Address

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tests.forge import NOW, Forge, spiffe
from tests.trust.tls.grpc_parts import Service, call, channel_to, refused, serving, stock
from tests.trust.tls.parts import AGENT, AGENT_ID, FORGE, OTHER, SERVER_ID, SERVERS
from trust.authorize import exactly
from trust.credentials import Credentials
from trust.errors import (
    CertificateExpired,
    CertificateRevoked,
    ConfigurationError,
    HandshakeFailed,
    PeerNotAllowed,
    TrustError,
    UnknownTrustDomain,
    UntrustedChain,
)
from trust.tls import grpc_channel as module
from trust.tls.grpc_channel import grpc_channel
from trust.tls.grpc_server import grpc_server

REVOKED = FORGE.leaf("/server")
IP = x509.IPAddress(IPv4Address("127.0.0.1"))


@pytest.mark.parametrize(
    "names",
    [[x509.DNSName("elsewhere.example")], [x509.DNSName("*.fleet.example"), IP], [IP], []],
    ids=["DNS", "wildcard", "address", "common name"],
)
def test_a_channel_to_whatever_the_server_is_called(names: list[x509.GeneralName]) -> None:
    server = FORGE.leaf("/server", sans=[spiffe(SERVER_ID), *names])

    async def main() -> None:
        async with serving(Service(), source=server) as target, channel_to(target) as channel:
            assert await call(channel) == AGENT_ID.encode()

    asyncio.run(main())


def test_no_channel_to_a_server_without_any_name() -> None:
    """A subject that is empty, and no name beside the SPIFFE ID: an X509-SVID may look like that."""
    key = ec.generate_private_key(ec.SECP256R1())
    template = FORGE.leaf("/server", sans=[spiffe(SERVER_ID)]).certificate
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(template.issuer)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(NOW - timedelta(hours=1)).not_valid_after(NOW + timedelta(hours=1))
    for extension in template.extensions:
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key())
            if isinstance(extension.value, x509.SubjectKeyIdentifier)
            else extension.value,
            extension.critical or isinstance(extension.value, x509.SubjectAlternativeName),
        )
    nameless = Credentials.of((builder.sign(FORGE.key, hashes.SHA256()), FORGE.intermediate), key)

    async def main() -> None:
        async with serving(Service(), source=nameless) as target:
            with pytest.raises(HandshakeFailed, match="no name that grpcio could check"):
                await grpc_channel(target, source=AGENT, bundles=FORGE.bundles, authorize=SERVERS)

    asyncio.run(main())


def test_no_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    async def main() -> None:
        async with serving(Service()) as target, channel_to(target) as channel:
            assert await call(channel) == AGENT_ID.encode()

    asyncio.run(main())


WRONG_SERVERS: dict[str, tuple[Credentials, type[TrustError]]] = {
    "another agent": (FORGE.leaf("/another"), PeerNotAllowed),
    "another CA": (Forge().leaf("/server"), UntrustedChain),
    "another domain": (OTHER.leaf("/server"), UnknownTrustDomain),
    "another domain's CA speaks for ours": (OTHER.leaf(SERVER_ID), UntrustedChain),
    "revoked": (REVOKED, CertificateRevoked),
    "expired": (FORGE.leaf("/server", not_after=NOW - timedelta(minutes=1)), CertificateExpired),
}


@pytest.mark.parametrize("who", WRONG_SERVERS)
def test_no_channel_to_a_server_that_is_not_the_one(who: str) -> None:
    credentials, expected = WRONG_SERVERS[who]

    async def main() -> None:
        async with serving(Service(), source=credentials) as target:
            with pytest.raises(TrustError) as error:
                await grpc_channel(
                    target, source=AGENT, bundles=FORGE.bundles, authorize=SERVERS, crls=FORGE.crls(REVOKED)
                )
            assert type(error.value) is expected

    asyncio.run(main())


def test_nobody_takes_the_place_of_the_server_that_was_looked_at() -> None:
    """An agent of the same CA with the same host name: that is all that grpcio would ask for."""

    async def main() -> None:
        impostor = Service()
        async with contextlib.AsyncExitStack() as stack:
            async with serving(Service()) as target:
                channel = await stack.enter_async_context(channel_to(target))
            server, _ = grpc_server(
                target, source=FORGE.leaf("/another"), bundles=FORGE.bundles, authorize=exactly(AGENT_ID)
            )
            server.add_generic_rpc_handlers((impostor,))
            await server.start()
            stack.push_async_callback(server.stop, None)
            async with stock(target, AGENT) as anybody:
                await call(anybody)
            assert (await refused(call(channel)))[0] is grpc.StatusCode.UNAVAILABLE
            assert len(impostor.asked) == 1

    asyncio.run(main())


@pytest.mark.parametrize("target", ["", "billing", "billing:", ":443", "billing:https", "dns:///billing:1", "b:99999"])
def test_a_target_is_a_host_and_a_port(target: str) -> None:
    async def main() -> None:
        expected = HandshakeFailed if target.endswith("99999") else ConfigurationError
        with pytest.raises(expected):
            await grpc_channel(target, source=AGENT, bundles=FORGE.bundles, authorize=SERVERS)

    asyncio.run(main())


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", None], ids=["the end", "HTTP", "nothing"])
def test_no_channel_where_no_tls_is_spoken(says: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_SECONDS", 0.5)

    async def main() -> None:
        over = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(65536)
            if says is None:
                await over.wait()
            writer.write(says or b"")
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(HandshakeFailed):
                await grpc_channel(f"127.0.0.1:{port}", source=AGENT, bundles=FORGE.bundles, authorize=SERVERS)
            over.set()
        with pytest.raises(HandshakeFailed):  # and nobody is there now
            await grpc_channel(f"127.0.0.1:{port}", source=AGENT, bundles=FORGE.bundles, authorize=SERVERS)

    asyncio.run(main())
