"""Which gRPC server a channel of ours leads to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from tests.forge import NOW, Forge, spiffe
from tests.trust.tls.grpc_parts import PATH, SECONDS, Service, call, channel_to, refused, serving, stock
from tests.trust.tls.parts import AGENT, AGENT_ID, AGENTS, FORGE, OTHER, SERVER, SERVER_ID, SERVERS
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
from trust.identity import AgentID
from trust.sources import Live
from trust.tls import grpc_channel as module
from trust.tls.grpc_channel import grpc_channel
from trust.tls.grpc_server import grpc_server, peer_of_call

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


# What an open channel follows.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(module, "LONGEST_REST_SECONDS", 0.04)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not done():
            await asyncio.sleep(0.01)


class Seeing(Service):
    """Keeps which certificates its callers had."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        self.seen.append(peer_of_call().thumbprint)
        return await super().unary_unary(request, context)


@pytest.mark.slow
def test_no_call_fails_while_both_ends_are_renewed_three_times(quick: None) -> None:
    def fresh(agent: str, seconds: float = 6) -> Credentials:
        now = datetime.now(UTC)
        return FORGE.leaf(agent, not_before=now - timedelta(minutes=1), not_after=now + timedelta(seconds=seconds))

    async def main() -> None:
        ours, theirs, service = Live(fresh("/billing")), Live(fresh("/server")), Seeing()
        done, calls = asyncio.Event(), 0
        shown = {theirs.current().chain_der[0]}

        async def calling(channel: grpc.aio.Channel) -> None:
            nonlocal calls
            while not done.is_set():
                for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
                    assert await call(channel, kind) == AGENT_ID.encode()
                    calls += 1

        async with (
            serving(service, source=theirs) as target,
            channel_to(target, ours) as channel,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(3):
                group.create_task(calling(channel))
            for seconds in (6, 6, 60):
                stream = channel.stream_stream(PATH + "stream_stream")(timeout=SECONDS)
                await stream.write(b"before")
                assert await stream.read() == AGENT_ID.encode()
                before = ours.current(), theirs.current()
                ours.replace(fresh("/billing", seconds))
                theirs.replace(fresh("/server", seconds))
                await until(lambda: ours.current().thumbprint in service.seen)
                await until(lambda: channel._link.peer.chain[0] == theirs.current().chain_der[0])
                shown.add(channel._link.peer.chain[0])
                await stream.write(b"after")  # where it was begun
                assert await stream.read() == AGENT_ID.encode()
                await stream.done_writing()
                assert await stream.read() is grpc.aio.EOF
            end = max(one.certificate.not_valid_after_utc for one in before)
            await until(lambda: datetime.now(UTC) > end)
            so_far = calls
            await until(lambda: calls > so_far + 20)
            await until(lambda: not channel._old)
            done.set()
        assert len({*service.seen}) == 4 and len(shown) == 4
        assert service.seen[-1] == ours.current().thumbprint

    asyncio.run(main())


def test_a_server_that_is_revoked_gets_no_more_calls(quick: None) -> None:
    async def main() -> None:
        theirs, lists = Live(FORGE.leaf("/server")), Live(FORGE.crls())
        async with serving(Service(), source=theirs) as target, channel_to(target, crls=lists) as channel:
            stream = channel.unary_stream(PATH + "unary_stream")(b"hello", timeout=SECONDS)
            assert await stream.read() == AGENT_ID.encode()
            lists.replace(FORGE.crls(theirs.current()))
            with pytest.raises(CertificateRevoked):
                await call(channel)
            with pytest.raises(asyncio.CancelledError):
                await stream.read()
            theirs.replace(FORGE.leaf("/server"))
            await until(lambda: channel._link.peer.chain[0] == theirs.current().chain_der[0])
            assert await call(channel) == AGENT_ID.encode()

    asyncio.run(main())


def test_a_look_that_takes_long_keeps_nobody_on_the_line(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        lists, looking = Live(FORGE.crls()), asyncio.Event()

        async def long(*_: Any) -> Any:
            looking.set()
            await asyncio.Event().wait()

        async with serving(Service()) as target, channel_to(target, ours := Live(AGENT), crls=lists) as channel:
            stream = channel.unary_stream(PATH + "unary_stream")(b"hello", timeout=SECONDS)
            assert await stream.read() == AGENT_ID.encode()
            monkeypatch.setattr(module, "_look_at", long)
            ours.replace(FORGE.leaf("/billing"))
            await asyncio.wait_for(looking.wait(), SECONDS)
            lists.replace(FORGE.crls(SERVER))
            with pytest.raises(asyncio.CancelledError):
                await stream.read()

    asyncio.run(main())


def test_a_rule_that_changes_its_mind_is_followed_at_once() -> None:
    class Rule:
        allowed = True

        def check(self, agent_id: AgentID) -> None:
            if not self.allowed:
                raise PeerNotAllowed("agent")

    async def main() -> None:
        rule = Rule()
        async with serving(Service()) as target, channel_to(target, authorize=rule) as channel:
            assert await call(channel) == AGENT_ID.encode()
            rule.allowed = False
            with pytest.raises(PeerNotAllowed):
                await call(channel)
            rule.allowed = True
            assert await call(channel) == AGENT_ID.encode()

    asyncio.run(main())


def test_a_server_is_found_again_that_was_renewed_while_it_was_away(quick: None) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            async with serving(Service()) as target:
                channel = await stack.enter_async_context(channel_to(target))
                assert await call(channel) == AGENT_ID.encode()
            assert (await refused(call(channel)))[0] is grpc.StatusCode.UNAVAILABLE
            server, _ = grpc_server(target, source=FORGE.leaf("/server"), bundles=FORGE.bundles, authorize=AGENTS)
            server.add_generic_rpc_handlers((Service(),))
            await server.start()
            stack.push_async_callback(server.stop, None)
            async with asyncio.timeout(SECONDS):
                await channel.channel_ready()
            assert await call(channel) == AGENT_ID.encode()

    asyncio.run(main())


def test_a_renewal_that_the_server_refuses_leaves_the_channel_as_it_is(
    quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    ours = Live(AGENT)

    async def main() -> None:
        service = Seeing()
        async with serving(service) as target, channel_to(target, ours) as channel:
            assert await call(channel) == AGENT_ID.encode()
            ours.replace(Forge().leaf("/billing"))
            await until(lambda: "gRPC does not connect" in caplog.text)
            assert await call(channel) == AGENT_ID.encode()
            ours.replace(FORGE.leaf("/billing", key=ed25519.Ed25519PrivateKey.generate()))
            await until(lambda: "grpcio cannot use this key" in caplog.text)
            assert await call(channel) == AGENT_ID.encode()
            ours.replace(FORGE.leaf("/billing"))
            await until(lambda: channel._link.credentials is ours.current())
            assert await call(channel) == AGENT_ID.encode()
        assert service.seen == [AGENT.thumbprint] * 3 + [ours.current().thumbprint]

    asyncio.run(main())
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len({*said})  # each once, however often it was tried


def test_no_new_connection_where_nothing_is_new(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the life of the server's certificate is over: it is looked at, and is the same."""
    looks, look_at = [], module._look_at
    turns: list[None] = []

    async def counted(*arguments: Any) -> Any:
        looks.append(arguments)
        return await look_at(*arguments)

    monkeypatch.setattr(module, "_look_at", counted)

    async def main() -> None:
        now, ours = Live(NOW), Live(AGENT)
        async with serving(Service()) as target, channel_to(target, ours, clock=now.current) as channel:
            link, half_way = channel._link, channel._next_look
            ours.replace(Credentials.of(AGENT.chain, AGENT.private_key))
            is_due = channel._is_due
            monkeypatch.setattr(channel, "_is_due", lambda: turns.append(None) or is_due())
            await until(lambda: len(turns) > 3)
            assert len(looks) == 1
            assert half_way == NOW + (link.ends - NOW) / 2
            now.replace(half_way)
            await until(lambda: channel._next_look != half_way)
            assert channel._next_look == NOW + (link.ends - NOW) * 0.75
            turns.clear()
            await until(lambda: len(turns) > 3)
            assert len(looks) == 2 and channel._link is link

    asyncio.run(main())


def test_a_channel_is_one_of_grpcio(quick: None) -> None:
    async def main() -> None:
        service = Service()
        async with serving(service) as target:
            channel = await grpc_channel(target, source=AGENT, bundles=FORGE.bundles, authorize=SERVERS)
            assert isinstance(channel, grpc.aio.Channel)
            assert channel.get_state() is grpc.ChannelConnectivity.IDLE
            async with asyncio.timeout(SECONDS):
                await channel.channel_ready()
            stream = channel.unary_stream(PATH + "unary_stream")(b"hello", timeout=SECONDS)
            assert await stream.read() == AGENT_ID.encode()
            closing = asyncio.create_task(channel.close(SECONDS))
            await asyncio.sleep(0)
            service.go_on.set()
            assert await stream.read() == b"more"
            assert await stream.read() is grpc.aio.EOF
            await closing
            with pytest.raises(grpc.aio.UsageError):
                await call(channel)
            await channel.close()

    asyncio.run(main())
