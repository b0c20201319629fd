"""Forwarded certificates: one valid request of a proxy, one mutation a row, the error that must refuse it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.authority import Trail
from tests.forge import HOUR, NOW, Forge
from trust import errors
from trust.authorize import exactly
from trust.credentials import Credentials
from trust.identity import PEER_EXTENSION, PROXY_EXTENSION, PeerIdentity, peer_of
from trust.peers import verify_peer
from trust.tls import server_context
from trust.tls.forwarded import Forwarded

FORGE = Forge()
FOREIGN = Forge()  # the same trust domain name, another CA
ELSEWHERE = Forge("evil.example")
SERVER, PROXY, AGENT, SECOND = (FORGE.leaf(name) for name in ("/server", "/proxy", "/billing", "/second"))
REVOKED = FORGE.leaf("/second", serial=4711)
BOTH_ID = "spiffe://fleet.example/both"
AGENTS = exactly(AGENT.agent_id, SECOND.agent_id, BOTH_ID)
PROXIES = exactly(PROXY.agent_id, BOTH_ID)
CRLS = FORGE.crls(REVOKED)

Header = tuple[bytes, bytes]


def field(der: bytes) -> bytes:
    return b":" + base64.b64encode(der) + b":"


def leaf_of(credentials: Credentials) -> Header:
    return b"client-cert", field(credentials.chain_der[0])


def chain_of(credentials: Credentials) -> Header:
    return b"client-cert-chain", b", ".join(map(field, credentials.chain_der[1:]))


def both(credentials: Credentials) -> list[Header]:
    return [leaf_of(credentials), chain_of(credentials)]


def peer(credentials: Credentials) -> PeerIdentity:
    return verify_peer(credentials.chain_der, bundles=FORGE.bundles, now=NOW, usage="client")


def ask(
    headers: list[Header],
    sender: Credentials | None = PROXY,
    *,
    kind: str = "http",
    proxies: Any = PROXIES,
    certificates: Any = "required",
    authorize: Any = AGENTS,
) -> tuple[dict[str, Any] | None, list[dict[str, Any]], Trail]:
    """What the application sees (None: nothing), what the sender is answered, and the trail."""
    seen: list[dict[str, Any]] = []
    answer: list[dict[str, Any]] = []
    trail = Trail()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        answer.append(message)

    context = server_context(
        SERVER,
        FORGE.bundles,
        authorize,
        crls=CRLS,
        proxies=proxies,
        client_certificates=certificates,
        clock=lambda: NOW,
    )
    scope = {
        "type": kind,
        "method": "GET",
        "path": "/",
        "headers": [(b"host", b"x"), *headers],
        "client": ("203.0.113.7", 1),
        "extensions": {PEER_EXTENSION: peer(sender)} if sender else {},
    }
    asyncio.run(Forwarded(app, context=context, audit=trail)(scope, receive, send))  # type: ignore[arg-type]
    return (seen[0] if seen else None), answer, trail


def mutated(change: Callable[[bytes], bytes]) -> list[Header]:
    """The valid request with another spelling of the leaf's header."""
    return [(b"client-cert", change(leaf_of(AGENT)[1])), chain_of(AGENT)]


def der(change: Callable[[bytes], bytes]) -> list[Header]:
    """The valid request with other bytes in place of the leaf."""
    return [(b"client-cert", field(change(AGENT.chain_der[0]))), chain_of(AGENT)]


PEM = AGENT.certificate.public_bytes(Encoding.PEM)
MANY = b", ".join([field(FORGE.intermediate.public_bytes(Encoding.DER))] * 8)
EXPIRED = FORGE.leaf(not_before=NOW - 3 * HOUR, not_after=NOW - HOUR)
UNPADDED = next(c for c in iter(lambda: FORGE.leaf("/billing"), None) if len(c.chain_der[0]) % 3 == 1)
UNUSED_BITS = base64.b64encode(UNPADDED.chain_der[0])
UNUSED_BITS = UNUSED_BITS[:-3] + bytes([UNUSED_BITS[-3] + 1]) + b"=="  # the same bytes, spelt otherwise

Malformed = errors.ForwardedCertificateMalformed
Refused = errors.ForwardedCertificateRefused
FORM: dict[str, tuple[list[Header], type[errors.TrustError]]] = {
    "no certificate": ([], errors.NoPeerCertificate),
    "an empty header": (mutated(lambda _: b""), Malformed),
    "two lines": ([leaf_of(AGENT), *both(AGENT)], Malformed),
    "two lines, of two agents": ([leaf_of(SECOND), *both(AGENT)], Malformed),
    "two in one line": (mutated(lambda v: v + b", " + leaf_of(SECOND)[1]), Malformed),
    "PEM": (mutated(lambda _: PEM.replace(b"\n", b" ")), Malformed),
    "PEM, escaped as nginx does": (mutated(lambda _: PEM.replace(b"\n", b"%0A").replace(b" ", b"%20")), Malformed),
    "PEM in bytes": (der(lambda _: PEM), errors.MalformedCertificate),
    "bare base64": (mutated(lambda v: v[1:-1]), Malformed),
    "no colon behind": (mutated(lambda v: v[:-1]), Malformed),
    "no colon before": (mutated(lambda v: v[1:]), Malformed),
    "one colon": (mutated(lambda v: b":"), Malformed),
    "no bytes": (mutated(lambda v: b"::"), Malformed),
    "a string": (mutated(lambda v: b'"' + v[1:-1] + b'"'), Malformed),
    "a token": (mutated(lambda v: b"none"), Malformed),
    "a parameter": (mutated(lambda v: v + b";a=1"), Malformed),
    "an inner list": (mutated(lambda v: b"(" + v + b")"), Malformed),
    "base64url": (mutated(lambda v: v.replace(b"+", b"-").replace(b"/", b"_")[:-1] + b"-:"), Malformed),
    "space in base64": (mutated(lambda v: v[:40] + b" " + v[40:]), Malformed),
    "a line break in base64": (mutated(lambda v: v[:40] + b"\n" + v[40:]), Malformed),
    "padding left out": ([(b"client-cert", field(UNPADDED.chain_der[0])[:-3] + b":"), chain_of(UNPADDED)], Malformed),
    "padding in the middle": (mutated(lambda v: v[:-1] + b"====:"), Malformed),
    "unused bits of base64": ([(b"client-cert", b":" + UNUSED_BITS + b":"), chain_of(UNPADDED)], Malformed),
    "not ASCII": (mutated(lambda v: v[:40] + b"\xff" + v[41:]), Malformed),
    "too large": (mutated(lambda _: field(bytes(16_385))), errors.MalformedCertificate),
    "far too large": (mutated(lambda _: field(bytes(50_000))), Malformed),
    "not DER": (der(lambda _: b"certificate"), errors.MalformedCertificate),
    "a byte behind the certificate": (der(lambda d: d + b"\0"), errors.MalformedCertificate),
    "two certificates": (der(lambda d: d + d), errors.MalformedCertificate),
    "half a certificate": (der(lambda d: d[:-1]), errors.MalformedCertificate),
    "a chain and no certificate": ([chain_of(AGENT)], Malformed),
    "an empty chain": ([leaf_of(AGENT), (b"client-cert-chain", b"")], Malformed),
    "an empty member": ([leaf_of(AGENT), (b"client-cert-chain", chain_of(AGENT)[1] + b",")], Malformed),
    "two members run together": ([leaf_of(AGENT), (b"client-cert-chain", chain_of(AGENT)[1] * 2)], Malformed),
    "a chain too long": ([leaf_of(AGENT), (b"client-cert-chain", MANY)], Malformed),
    "a chain too long, in lines": ([leaf_of(AGENT), *[chain_of(AGENT)] * 8], Malformed),
    "not a certificate in the chain": (
        [leaf_of(AGENT), (b"client-cert-chain", field(b"x"))],
        errors.MalformedCertificate,
    ),
    "underscores": ([(b"client_cert", leaf_of(AGENT)[1])], Malformed),
    "underscores beside": ([*both(AGENT), (b"client_cert", leaf_of(SECOND)[1])], Malformed),
    "underscores in the chain's name": ([leaf_of(AGENT), (b"client-cert_chain", chain_of(AGENT)[1])], Malformed),
    "upper case beside": ([*both(AGENT), (b"CLIENT-CERT", leaf_of(SECOND)[1])], Malformed),
}

FORGERIES: dict[str, tuple[list[Header], type[errors.TrustError]]] = {
    "expired": (both(EXPIRED), errors.CertificateExpired),
    "not yet valid": (both(FORGE.leaf(not_before=NOW + HOUR)), errors.CertificateNotYetValid),
    "revoked": (both(REVOKED), errors.CertificateRevoked),
    "of another CA": (both(FOREIGN.leaf("/billing")), errors.UntrustedChain),
    "of another trust domain": (both(ELSEWHERE.leaf("/billing")), errors.UnknownTrustDomain),
    "ID of ours, CA of another domain": (both(ELSEWHERE.leaf(str(AGENT.agent_id))), errors.UntrustedChain),
    "for servers only": (both(FORGE.leaf(eku=[ExtendedKeyUsageOID.SERVER_AUTH])), errors.WrongExtendedKeyUsage),
    "a CA": (both(FORGE.leaf(is_ca=True)), errors.CertificateIsCA),
    "no SPIFFE ID": (both(FORGE.leaf(sans=[x509.DNSName("billing")])), errors.NoSpiffeID),
    "not on the list": (both(FORGE.leaf("/intruder")), errors.PeerNotAllowed),
    "leaf and intermediate swapped": (
        [
            (b"client-cert", chain_of(AGENT)[1]),
            (b"client-cert-chain", leaf_of(AGENT)[1]),
        ],
        errors.CertificateIsCA,
    ),
    "the leaf of one agent behind that of another": (
        [leaf_of(FORGE.leaf("/intruder")), (b"client-cert-chain", leaf_of(AGENT)[1] + b", " + chain_of(AGENT)[1])],
        errors.PeerNotAllowed,
    ),
    "an intermediate of another CA": ([leaf_of(AGENT), chain_of(FOREIGN.leaf())], errors.UntrustedChain),
    "the proxy's own": (both(PROXY), errors.PeerNotAllowed),
    "of a proxy that may call as well": (both(FORGE.leaf(BOTH_ID)), errors.PeerNotAllowed),
}
ROWS = {**FORM, **FORGERIES}
BY_CHECK = {c.check: c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.TrustError)}


@pytest.mark.parametrize("row", ROWS)
def test_refused(row: str) -> None:
    headers, expected = ROWS[row]
    seen, answer, trail = ask(headers)
    assert seen is None
    assert BY_CHECK[trail.last["check"]] is expected
    assert trail.last["event"] == "request" and trail.last["decision"] == "deny"
    assert trail.last["peer"] == str(PROXY.agent_id)
    assert answer[0]["status"] == (400 if expected is Malformed else 403)
    assert not any(name == b"connection" for name, _ in answer[0]["headers"])  # the proxy is not to blame
    assert answer[1]["body"] == b""


FROM_OTHERS: dict[str, list[Header]] = {
    "both": both(SECOND),
    "the same as its own": both(AGENT),
    "the leaf": [leaf_of(SECOND)],
    "the chain": [chain_of(SECOND)],
    "empty": [(b"client-cert", b"")],
    "upper case": [(b"Client-Cert", leaf_of(SECOND)[1])],
    "underscores": [(b"client_cert", leaf_of(SECOND)[1])],
    "underscores, upper case": [(b"CLIENT_CERT_CHAIN", b"x")],
}


@pytest.mark.parametrize("sender", [AGENT, None], ids=["agent", "nobody"])
@pytest.mark.parametrize("row", FROM_OTHERS)
def test_from_somebody_who_is_no_proxy(row: str, sender: Credentials | None) -> None:
    seen, answer, trail = ask(FROM_OTHERS[row], sender, certificates="optional")
    assert seen is None
    assert BY_CHECK[trail.last["check"]] is Refused
    assert trail.last["peer"] == (str(sender.agent_id) if sender else "203.0.113.7:1")
    assert answer[0]["status"] == 400
    assert (b"connection", b"close") in answer[0]["headers"]


def test_to_a_server_without_proxies_it_says_nothing() -> None:
    """It may stand behind a proxy that ends TLS for others: the header is no attack, and is not passed on."""
    seen, _, trail = ask(
        [*both(SECOND), (b"Client_Cert", b"x"), (b"x-kept", b"y"), (b"client-certificate", b"z")], AGENT, proxies=None
    )
    assert seen is not None and trail.records == []
    assert peer_of(seen) == peer(AGENT)
    assert [name for name, _ in seen["headers"]] == [b"host", b"x-kept", b"client-certificate"]
    assert PROXY_EXTENSION not in seen["extensions"]


@pytest.mark.parametrize("row", ["two lines", "expired", "no certificate"])
def test_a_websocket_is_not_accepted(row: str) -> None:
    headers, expected = ROWS[row]
    seen, answer, trail = ask(headers, kind="websocket")
    assert seen is None
    assert BY_CHECK[trail.last["check"]] is expected
    assert answer == [{"type": "websocket.close", "code": 1008}]


def test_a_proxy_never_speaks_for_itself() -> None:
    """Also where it is on the list of agents: what it forwards for nobody would be done in its name."""
    sender = FORGE.leaf(BOTH_ID)
    assert ask([], sender)[0] is None
    seen, _, _ = ask([], sender, certificates="optional")
    assert seen is not None and peer_of(seen) is None
    assert seen["extensions"][PROXY_EXTENSION].agent_id == sender.agent_id


def test_a_failure_of_ours_refuses() -> None:
    class Broken:
        def check(self, agent_id: Any) -> None:
            raise RuntimeError("the list cannot be had")

    seen, answer, trail = ask(both(AGENT), authorize=Broken())
    assert seen is None and trail.last["check"] == errors.HandshakeFailed.check
    assert answer[0]["status"] == errors.HandshakeFailed.status


def test_what_is_refused_in_the_table_is_accepted_without_the_mutation() -> None:
    for agent in (AGENT, SECOND, UNPADDED):
        seen, _, trail = ask(both(agent))
        assert seen is not None and trail.records == []
        assert peer_of(seen) == peer(agent)
