"""Who gets through to a handler of our gRPC server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from grpc._cython import cygrpc  # grpcio's session cache has no public name

from tests.forge import NOW, Forge
from tests.trust.tls.grpc_parts import PATH, SECONDS, Service, call, channel_to, refusal, refused, serving, stock
from tests.trust.tls.parts import AGENT, AGENT_ID, AGENTS, FORGE, OTHER, SERVER, SERVER_ID, until
from trust.authorize import exactly, members_of
from trust.bundles import RevocationLists, TrustBundle, TrustBundles
from trust.credentials import Credentials
from trust.errors import (
    CertificateRevoked,
    ConfigurationError,
    NoPeerCertificate,
    NoSpiffeID,
    PeerNotAllowed,
    TooManyCalls,
    TrustError,
    UntrustedChain,
)
from trust.private_keys import generate
from trust.sources import Live
from trust.tls import grpc_server as module
from trust.tls.grpc_channel import grpc_channel
from trust.tls.grpc_server import grpc_server, peer_of_call

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class Trail:
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def record(self, **facts: Any) -> None:
        self.records.append(facts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_knows_who_calls(kind: str) -> None:
    async def main() -> None:
        async with serving(Service()) as target, stock(target, AGENT) as channel:
            assert await call(channel, kind) == AGENT_ID.encode()

    asyncio.run(main())


REVOKED = FORGE.leaf("/billing")
BOTH = TrustBundles.of(FORGE.bundle, OTHER.bundle)
# Certificates with which grpcio lets a client in: a path leads to one of the roots.
STRANGERS: dict[str, tuple[Credentials, type[TrustError]]] = {
    "another agent": (FORGE.leaf("/another"), PeerNotAllowed),
    "an agent of another trusted domain": (OTHER.leaf("/billing"), PeerNotAllowed),
    "another domain's CA speaks for ours": (OTHER.leaf(AGENT_ID), UntrustedChain),
    "a revoked one": (REVOKED, CertificateRevoked),
    "no SPIFFE ID": (FORGE.leaf(sans=[x509.DNSName("billing")]), NoSpiffeID),
}


@pytest.mark.parametrize("who", STRANGERS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_handler_runs_for_a_peer_that_is_not_allowed(who: str, kind: str) -> None:
    credentials, expected = STRANGERS[who]
    lists = RevocationLists.of([*FORGE.crls(REVOKED).crls, *OTHER.crls().crls])

    async def main() -> None:
        service, trail = Service(), Trail()
        async with (
            serving(service, bundles=BOTH, crls=lists, audit=trail) as target,
            stock(target, credentials) as channel,
        ):
            code, details = await refusal(channel, kind)
        forbidden = expected is PeerNotAllowed
        assert code is (grpc.StatusCode.PERMISSION_DENIED if forbidden else grpc.StatusCode.UNAUTHENTICATED)
        assert details == expected.code  # and not a word of the reason
        assert service.asked == []
        (record,) = trail.records
        assert (record["event"], record["decision"], record["check"]) == ("call", "deny", expected.check)
        assert record["target"] == PATH + kind
        assert record["peer"].startswith("ipv4:127.0.0.1:")

    asyncio.run(main())


@pytest.mark.parametrize(
    "credentials",
    [None, Forge().leaf("/billing"), FORGE.leaf("/billing", not_after=NOW - timedelta(minutes=1))],
    ids=["no certificate", "of another CA", "expired"],
)
def test_grpc_itself_ends_the_handshake(credentials: Credentials | None) -> None:
    async def main() -> None:
        service = Service()
        async with serving(service) as target, stock(target, credentials) as channel:
            assert (await refused(call(channel)))[0] is grpc.StatusCode.UNAVAILABLE
        assert service.asked == []

    asyncio.run(main())


def test_an_unknown_method() -> None:
    async def main() -> None:
        async with serving(Service()) as target, stock(target, AGENT) as channel:
            method = channel.unary_unary("/agent.Service/other")
            assert (await refused(method(b"", timeout=SECONDS)))[0] is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(main())


def test_a_port_without_tls_leads_to_no_handler() -> None:
    """Somebody added one to the server."""

    async def main() -> None:
        service = Service()
        server, _ = grpc_server("127.0.0.1:0", source=SERVER, bundles=FORGE.bundles, authorize=AGENTS)
        server.add_generic_rpc_handlers((service,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                assert await refused(call(channel)) == (grpc.StatusCode.UNAUTHENTICATED, "invalid_token")
        finally:
            await server.stop(None)
        assert service.asked == []

    asyncio.run(main())


def test_a_stream_of_answers_ends_when_its_caller_is_revoked() -> None:
    async def main() -> None:
        service, lists = Service(), Live(FORGE.crls())
        async with serving(service, crls=lists) as target, stock(target, AGENT) as channel:
            stream = channel.unary_stream(PATH + "unary_stream")(b"hello", timeout=SECONDS)
            assert await stream.read() == AGENT_ID.encode()
            lists.replace(FORGE.crls(AGENT))
            service.go_on.set()
            assert await refused(stream.read()) == (grpc.StatusCode.UNAUTHENTICATED, "invalid_token")

    asyncio.run(main())


def test_a_stream_of_requests_ends_when_its_caller_is_revoked() -> None:
    async def main() -> None:
        service, lists = Service(), Live(FORGE.crls())
        async with serving(service, crls=lists) as target, stock(target, AGENT) as channel:
            stream = channel.stream_stream(PATH + "stream_stream")(timeout=SECONDS)
            await stream.write(b"first")
            assert await stream.read() == AGENT_ID.encode()
            lists.replace(FORGE.crls(AGENT))
            await stream.write(b"second")
            assert await refused(stream.read()) == (grpc.StatusCode.UNAUTHENTICATED, "invalid_token")
        assert service.asked == [b"first"]

    asyncio.run(main())


def test_a_resumed_session_is_judged_like_any_other() -> None:
    """grpcio resumes without verifying the certificate again."""
    resumed = []

    class Resumed(Service):
        async def unary_unary(self, request: bytes, context: Any) -> bytes:
            resumed.extend(context.auth_context()["ssl_session_reused"])
            return await super().unary_unary(request, context)

    async def main() -> None:
        lists, sessions = Live(FORGE.crls()), cygrpc.SSLSessionCacheLRU(1)
        options = (("grpc.ssl_session_cache", sessions), ("grpc.use_local_subchannel_pool", 1))
        async with serving(Resumed(), crls=lists) as target:
            for _ in range(2):
                async with stock(target, AGENT, *options) as channel:
                    assert await call(channel) == AGENT_ID.encode()
            lists.replace(FORGE.crls(AGENT))
            async with stock(target, AGENT, *options) as channel:
                assert await refused(call(channel)) == (grpc.StatusCode.UNAUTHENTICATED, "invalid_token")
        assert resumed == [b"false", b"true"]

    asyncio.run(main())


def test_an_open_connection_follows_the_bundles() -> None:
    async def main() -> None:
        bundles = Live(FORGE.bundles)
        async with serving(Service(), bundles=bundles) as target, stock(target, AGENT) as channel:
            await call(channel)
            bundles.replace(OTHER.bundles)
            assert (await refused(call(channel)))[0] is grpc.StatusCode.UNAUTHENTICATED
            bundles.replace(TrustBundles.of())  # not the end of certificates for new connections
            async with stock(target, AGENT) as new:
                assert (await refused(call(new)))[0] is grpc.StatusCode.UNAUTHENTICATED
            async with stock(target, None) as nobody:
                assert (await refused(call(nobody)))[0] is grpc.StatusCode.UNAVAILABLE
            bundles.replace(BOTH)
            await call(channel)

    asyncio.run(main())


def test_a_new_root_lets_its_agents_in() -> None:
    async def main() -> None:
        bundles = Live(FORGE.bundles)
        rule = members_of("fleet.example", "other.example")
        async with serving(Service(), bundles=bundles, authorize=rule) as target:
            async with stock(target, OTHER.leaf("/billing")) as channel:
                assert (await refused(call(channel)))[0] is grpc.StatusCode.UNAVAILABLE
            bundles.replace(BOTH)
            async with stock(target, OTHER.leaf("/billing")) as channel:
                assert await call(channel) == b"spiffe://other.example/billing"

    asyncio.run(main())


def test_a_renewal_reaches_new_connections_and_leaves_open_ones() -> None:
    async def main() -> None:
        source = Live(SERVER)
        async with (
            serving(Service(), source=source) as target,
            channel_to(target) as before,
        ):
            await call(before)
            source.replace(FORGE.leaf("/server"))
            async with channel_to(target) as after:
                await call(after)  # grpcio holds the server to the certificate that the look at it showed
            await call(before)

    asyncio.run(main())


def test_grpc_is_told_what_is_new_only(caplog: pytest.LogCaptureFixture) -> None:
    """grpcio asks from threads of its own; here we ask."""
    source, bundles = Live(SERVER), Live(FORGE.bundles)
    presented = module._Presented(source, bundles)
    presented.credentials()
    assert presented.changed() is None
    source.replace(FORGE.leaf("/server"))
    assert presented.changed() is not None
    bundles.replace(BOTH)
    assert presented.changed() is not None
    assert presented.changed() is None
    bundles.replace(TrustBundles.of())
    assert presented.changed() is None
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "no roots to trust" in caplog.text
    bundles.replace(FORGE.bundles)
    assert presented.changed() is not None


def broken(*_: Any, **__: Any) -> Any:
    raise OSError("the disk with secret.txt is full")


class Broken:
    check = record = broken


@pytest.mark.parametrize("options", [{"clock": broken}, {"authorize": Broken()}], ids=["clock", "rule"])
def test_a_defect_of_ours_refuses(options: dict[str, Any]) -> None:
    async def main() -> None:
        service, trail = Service(), Trail()
        async with serving(service, audit=trail, **options) as target, stock(target, AGENT) as channel:
            assert await refused(call(channel)) == (grpc.StatusCode.UNAUTHENTICATED, "invalid_request")
        assert service.asked == []
        assert [record["check"] for record in trail.records] == ["trust"]

    asyncio.run(main())


def test_a_refusal_that_cannot_be_recorded_stays_one() -> None:
    async def main() -> None:
        service = Service()
        async with (
            serving(service, authorize=exactly(SERVER_ID), audit=Broken()) as target,
            stock(target, AGENT) as channel,
        ):
            assert await refused(call(channel)) == (grpc.StatusCode.PERMISSION_DENIED, "access_denied")
        assert service.asked == []

    asyncio.run(main())


SECRET = "password=hunter2 in /etc/secret"


def failing(*_: Any) -> Any:
    raise RuntimeError(SECRET)


class Failing(Service):
    """Of the same methods; each fails where `at` says."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def service(self, handler_call_details: Any) -> Any:
        if self.at == "lookup":
            failing()
        kind = handler_call_details.method.removeprefix(PATH)
        handlers = {"deserializer": failing} if self.at == "reading" else {}
        handlers |= {"serializer": failing} if self.at == "writing" else {}
        method = failing if self.at == "not async" else getattr(self, kind)
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            method,
            request_deserializer=handlers.get("deserializer"),
            response_serializer=handlers.get("serializer"),
        )

    async def fail(self, context: Any) -> None:
        if self.at == "handler":
            failing()
        if self.at == "another call":
            raise grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, (), (), SECRET)
        if self.at == "with a status":
            context.set_code(grpc.StatusCode.NOT_FOUND)
            context.set_details("no such task")
            failing()
        if self.at == "after an abort":
            try:
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such task")
            finally:
                failing()
        if self.at == "abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such task")

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        await self.fail(context)
        return b"answer"

    async def unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        await self.fail(context)
        yield b"answer"

    async def stream_unary(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        async for _ in requests:
            await self.fail(context)
        return b"answer"

    async def stream_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for _ in requests:
            await self.fail(context)
            yield b"answer"


OURS, CHOSEN = (grpc.StatusCode.INTERNAL, "server_error"), (grpc.StatusCode.NOT_FOUND, "no such task")
FAILURES: dict[str, tuple[grpc.StatusCode, str]] = {
    "lookup": OURS,
    "not async": OURS,  # it would run in a thread, where nobody knows who calls
    "handler": OURS,
    "another call": OURS,
    "with a status": CHOSEN,
    "abort": CHOSEN,
    "after an abort": CHOSEN,
    "reading": (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"),
    "writing": (grpc.StatusCode.UNKNOWN, "Unexpected <class 'ValueError'>: answer"),
}
LOGGED = FAILURES.keys() - {"abort", "reading"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", FAILURES)
def test_what_a_handler_fails_with_is_logged_and_not_told(at: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serving(Failing(at)) as target:
            async with stock(target, AGENT) as channel:
                assert await refusal(channel, kind) == FAILURES[at]

            def logged() -> list[Any]:
                return [record for record in caplog.records if record.name == "a2a_trust.tls"]

            await until(lambda: len(logged()) >= (at in LOGGED))  # what follows an abort is later than the answer
            # What is not async has not run, and so has said nothing.
            assert ["hunter2" in str(record.exc_info) for record in logged()] == [at != "not async"] * (at in LOGGED)
            async with stock(target, FORGE.leaf("/another")) as channel:
                assert await refusal(channel, kind) == (grpc.StatusCode.PERMISSION_DENIED, "access_denied")

    asyncio.run(main())


def test_further_interceptors_come_after_the_judgement() -> None:
    seen = []

    class Interceptor(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
            handler = await continuation(handler_call_details)

            async def counted(request: bytes, context: Any) -> Any:
                seen.append(peer_of_call().agent_id)
                return await handler.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(counted)

    async def main() -> None:
        async with serving(Service(), interceptors=[Interceptor()]) as target:
            async with stock(target, FORGE.leaf("/another")) as channel:
                await refused(call(channel))
            async with stock(target, AGENT) as channel:
                await call(channel)
        assert seen == [AGENT.agent_id]

    asyncio.run(main())


def test_a_client_that_says_nothing_is_put_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_MILLISECONDS", 200)  # grpcio's own would be two minutes

    async def main() -> None:
        async with serving(Service()) as target, asyncio.timeout(SECONDS):
            host, _, port = target.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            assert await reader.read() == b""
            writer.close()

    asyncio.run(main())


def test_calls_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CALLS", 1)

    async def main() -> None:
        service = Service()
        async with serving(service) as target, stock(target, AGENT) as channel:
            stream = channel.unary_stream(PATH + "unary_stream")(b"hello", timeout=SECONDS)
            assert await stream.read() == AGENT_ID.encode()
            assert (await refused(call(channel)))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
            service.go_on.set()
            assert await stream.read() == b"more"

    asyncio.run(main())


@pytest.mark.parametrize("end", ["finished", "cancelled", "channel closed", "failed"])
@pytest.mark.parametrize("kind", ["unary_stream", "stream_unary"])
def test_no_agent_takes_the_calls_of_others(kind: str, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many connections it has. A call that has ended, in whatever way, is none."""
    monkeypatch.setattr(module, "MAX_CALLS_OF_AGENT", 1)
    second = FORGE.leaf("/second")

    class Slow(Service):
        async def wait(self) -> bytes:
            self.asked.append(b"")
            await self.go_on.wait()
            if end == "failed":
                raise ValueError("a defect")
            return b"done"

        async def unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
            yield await self.wait()

        async def stream_unary(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
            return await self.wait()

    async def main() -> None:
        service, trail = Slow(), Trail()
        apart = ("grpc.use_local_subchannel_pool", 1)
        async with (
            serving(service, audit=trail) as target,
            stock(target, AGENT, apart) as first,
            stock(target, AGENT, apart) as again,
            stock(target, second, apart) as other,
        ):
            under_way = getattr(first, kind)(PATH + kind)(b"hello" if kind == "unary_stream" else None, timeout=SECONDS)
            reading = asyncio.ensure_future(under_way.read() if kind == "unary_stream" else under_way)
            async with asyncio.timeout(SECONDS):
                while not service.asked:
                    await asyncio.sleep(0.01)
            assert (await refused(call(again))) == (grpc.StatusCode.RESOURCE_EXHAUSTED, TooManyCalls.code)
            assert [record["check"] for record in trail.records] == [TooManyCalls.check]
            assert AGENT_ID in trail.records[0]["reason"]
            assert await call(other) == str(second.agent_id).encode()
            if end == "cancelled":
                under_way.cancel()
            elif end == "channel closed":
                await first.close()
            else:
                service.go_on.set()
            async with asyncio.timeout(SECONDS):
                while True:
                    try:
                        assert await call(again) == AGENT_ID.encode()
                        break
                    except grpc.aio.AioRpcError as error:
                        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                        await asyncio.sleep(0.02)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    asyncio.run(main())


def test_nobody_calls_outside_of_a_handler() -> None:
    with pytest.raises(NoPeerCertificate):
        peer_of_call()


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)], ids=["P-384", "RSA"]
)
def test_other_keys(key: Any) -> None:
    async def main() -> None:
        async with (
            serving(Service(), source=FORGE.leaf("/server", key=key)) as target,
            channel_to(target, FORGE.leaf("/billing", key=key)) as channel,
        ):
            assert await call(channel) == AGENT_ID.encode()

    asyncio.run(main())


def test_a_key_that_grpc_cannot_use_is_refused_at_once() -> None:
    """By us: grpcio would start, and then end every handshake."""
    credentials = FORGE.leaf(key=ed25519.Ed25519PrivateKey.generate())

    async def main() -> None:
        with pytest.raises(ConfigurationError, match="grpcio cannot use this key"):
            grpc_server("127.0.0.1:0", source=credentials, bundles=FORGE.bundles, authorize=AGENTS)
        async with serving(Service()) as target:
            with pytest.raises(ConfigurationError, match="grpcio cannot use this key"):
                await grpc_channel(target, source=credentials, bundles=FORGE.bundles, authorize=AGENTS)

    asyncio.run(main())


@pytest.mark.parametrize(("kind", "gets_through"), [("ML-DSA-44", True), ("ML-DSA-65", False)])
def test_cas_with_post_quantum_keys(kind: str, gets_through: bool) -> None:
    """grpcio verifies their signatures, and breaks off where a client's chain is too long for it. Ours does not."""
    forge = Forge(make_key=lambda: generate(kind))
    bundles = TrustBundles.of(TrustBundle(trust_domain=FORGE.domain, roots=(forge.root, FORGE.root)))

    async def main() -> None:
        async with (
            serving(Service(), source=forge.leaf("/server"), bundles=bundles) as target,
            channel_to(target, AGENT, bundles=bundles) as elliptic,
            channel_to(target, forge.leaf("/billing"), bundles=bundles) as post_quantum,
        ):
            assert await call(elliptic) == AGENT_ID.encode()
            if gets_through:
                assert await call(post_quantum) == AGENT_ID.encode()
            else:
                assert (await refused(call(post_quantum)))[0] is grpc.StatusCode.UNAVAILABLE

    asyncio.run(main())


@pytest.mark.parametrize(
    ("address", "bundles"),
    [("127.0.0.1:0", TrustBundles.of()), ("nowhere:x:0", FORGE.bundles), ("taken", FORGE.bundles)],
    ids=["no roots", "no address", "taken"],
)
def test_a_server_that_cannot_be(address: str, bundles: TrustBundles) -> None:
    async def main() -> None:
        async with serving(Service()) as taken:
            with pytest.raises(ConfigurationError):
                grpc_server(taken if address == "taken" else address, source=SERVER, bundles=bundles, authorize=AGENTS)

    asyncio.run(main())


def test_a_call_whose_message_does_not_come_takes_no_place_of_an_agent_that_is_not_allowed() -> None:
    async def main() -> None:
        service, trail = Service(), Trail()
        async with (
            serving(service, bundles=BOTH, audit=trail) as target,
            stock(target, OTHER.leaf("/billing")) as channel,
        ):
            silent = channel.stream_unary(PATH + "unary_unary")(timeout=SECONDS)  # its head, and no more
            assert (await refused(silent))[0] is grpc.StatusCode.PERMISSION_DENIED
        assert [record["check"] for record in trail.records] == [PeerNotAllowed.check] and service.asked == []

    asyncio.run(main())


def test_a_message_is_waited_for_no_longer_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MESSAGE_SECONDS", 0.1)

    async def main() -> None:
        service = Service()
        async with serving(service) as target, stock(target, AGENT) as channel:
            silent = channel.stream_unary(PATH + "unary_unary")(timeout=SECONDS)
            assert (await refused(silent))[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert service.asked == []

    asyncio.run(main())


def lookalike(certificate: x509.Certificate) -> x509.Certificate:
    """A root of somebody else's, with the name and the key identifier of a CA of ours."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = x509.CertificateBuilder(certificate.subject, certificate.subject, key.public_key(), 7)
    made = made.not_valid_before(FORGE.root.not_valid_before_utc).not_valid_after(FORGE.root.not_valid_after_utc)
    for extension in FORGE.root.extensions:
        if not isinstance(extension.value, x509.SubjectKeyIdentifier):
            made = made.add_extension(extension.value, extension.critical)
    name = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return made.add_extension(name.value, name.critical).sign(key, hashes.SHA256())


@pytest.mark.parametrize("of", [FORGE.root, FORGE.intermediate], ids=["root", "intermediate"])
@pytest.mark.parametrize("domain", ["aaa.example", "zzz.example"])
def test_a_partner_takes_no_place_of_our_own_root(domain: str, of: x509.Certificate) -> None:
    partner = TrustBundle(trust_domain=domain, roots=(lookalike(of),))
    bundles = TrustBundles.of(*sorted((partner, FORGE.bundle), key=lambda bundle: bundle.trust_domain))

    async def main() -> None:
        async with serving(Service(), bundles=bundles) as target, stock(target, AGENT) as channel:
            assert await call(channel) == AGENT_ID.encode()

    asyncio.run(main())
