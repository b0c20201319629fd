"""Attacks on signed HTTP: one valid request and its answer, one mutation a row, and the error that stops it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.forge import HOUR, NOW, Forge
from trust.authorize import Authorizer, exactly
from trust.bundles import RevocationLists, TrustBundles
from trust.credentials import Credentials
from trust.errors import (
    AlgorithmRefused,
    AudienceMismatch,
    BindingMismatch,
    CertificateExpired,
    CertificateRevoked,
    CriticalHeaderRefused,
    HeaderMalformed,
    IssuerMismatch,
    MalformedCertificate,
    MessageExpired,
    MessageFromTheFuture,
    MessageLifetimeTooLong,
    PeerNotAllowed,
    Replayed,
    ResponseMismatch,
    SignatureMalformed,
    SignatureMissing,
    SignatureWrong,
    SignerUnknown,
    TrustError,
    TypeWrong,
    UnknownTrustDomain,
    UntrustedChain,
    WrongExtendedKeyUsage,
)
from trust.identity import PeerIdentity, thumbprint
from trust.peers import PeerVerifier
from trust.replay import MemoryReplayGuard
from trust.signing import envelope, jws
from trust.signing.http import (
    HEADER,
    SignedRequest,
    sign_request,
    sign_response,
    signature_of,
    verify_request,
    verify_response,
)

FORGE = Forge()
FOREIGN = Forge("other.example")
IMPOSTOR = Forge("fleet.example")  # the same name, other keys
PLANNER = FORGE.leaf("/planner")
BILLING = FORGE.leaf("/billing")
REPORTS = FORGE.leaf("/reports")
EXPIRED = FORGE.leaf("/planner", not_before=NOW - 2 * HOUR, not_after=NOW - HOUR)
REVOKED = FORGE.leaf("/planner")
SERVER_ONLY = FORGE.leaf("/planner", eku=[ExtendedKeyUsageOID.SERVER_AUTH])
ALIEN = FOREIGN.leaf("/planner")
FAKE = IMPOSTOR.leaf("/planner")
SELF = replace(FAKE, chain=FAKE.chain[:1])
CRLS = FORGE.crls(REVOKED)
VERIFIER = PeerVerifier(FORGE.bundles, CRLS)
IAT = int(NOW.timestamp())
YEAR_10000 = 253_402_300_800  # where calendars end
JTI = "0123456789abcdefABCDEF"
BODY = b'{"method":"SendMessage"}'
ABSENT: Any = object()


def peer(credentials: Credentials) -> PeerIdentity:
    return VERIFIER.verify(credentials.chain_der, now=NOW, usage="client")


PEER = peer(PLANNER)
SERVER = VERIFIER.verify(BILLING.chain_der, now=NOW, usage="server")
ONLY_PLANNER = exactly("spiffe://fleet.example/planner")
BILLING_OR_REPORTS = exactly("spiffe://fleet.example/billing", "spiffe://fleet.example/reports")
CLAIMS: dict[str, Any] = {
    "v": 1,
    "iss": "spiffe://fleet.example/planner",
    "aud": "spiffe://fleet.example/billing",
    "iat": IAT,
    "exp": IAT + 60,
    "jti": JTI,
    "htm": "POST",
    "htu": "https://billing.example/a2a?tenant=1",
    "ver": "1.0",
    "ext": ["urn:a", "urn:b"],
}


def chain(*credentials: Credentials) -> list[str]:
    return [base64.b64encode(der).decode() for der in credentials[0].chain_der]


@dataclass(frozen=True)
class Request:
    """A valid request as the wire format describes it, built by hand; and what its receiver sees."""

    claims: dict[str, Any] = field(default_factory=dict)  # changes
    header: dict[str, Any] = field(default_factory=dict)  # changes
    signer: Credentials = PLANNER  # whose certificate is named
    key: Any = None  # whose key signs, where it is another's
    signed_body: bytes = BODY
    method: str = "POST"
    url: str = "https://billing.example/a2a?tenant=1"
    body: bytes = BODY
    content_type: str = "application/json"
    version: str = "1.0"
    extensions: tuple[str, ...] = ("urn:a", "urn:b")
    audience: str = "spiffe://fleet.example/billing"
    peer: PeerIdentity | None = PEER
    verifier: PeerVerifier = VERIFIER
    now: datetime = NOW
    signers: Authorizer = ONLY_PLANNER
    times: int = 1
    started_at: datetime = NOW - HOUR  # of the receiver's replay guard

    def jws(self) -> str:
        claims = {name: value for name, value in {**CLAIMS, **self.claims}.items() if value is not ABSENT}
        header = {
            "typ": "a2a-req+jws",
            "crit": ["a2a"],
            "x5t#S256": self.signer.thumbprint,
            "cty": "application/json",
            "a2a": claims,
            **self.header,
        }
        header = {name: value for name, value in header.items() if value is not ABSENT}
        return jws.sign_detached(self.signed_body, key=self.key or self.signer.private_key, header=header)

    def verify(self) -> envelope.VerifiedMessage:
        guard = MemoryReplayGuard(started_at=self.started_at)
        signature = self.jws()
        for _ in range(self.times):
            message = verify_request(
                signature,
                method=self.method,
                url=self.url,
                body=self.body,
                audience=self.audience,
                verifier=self.verifier,
                peer=self.peer,
                now=self.now,
                signers=self.signers,
                replay=guard,
                content_type=self.content_type,
                version=self.version,
                extensions=self.extensions,
            )
        return message


NO_PEER: dict[str, Any] = {"peer": None}
ATTACKS: list[tuple[str, Request, type[TrustError]]] = [
    # (2) the kind
    ("an answer as a request", Request(header={"typ": "a2a-res+jws"}), TypeWrong),
    ("a token as a request", Request(header={"typ": "at+jwt"}), TypeWrong),
    ("no crit", Request(header={"crit": ABSENT}), CriticalHeaderRefused),
    # (3) the certificate
    ("no certificate named", Request(header={"x5t#S256": ABSENT}), SignerUnknown),
    ("certificate named by a number", Request(header={"x5t#S256": 1}), SignerUnknown),
    ("certificate of another agent named", Request(header={"x5t#S256": REPORTS.thumbprint}), SignerUnknown),
    ("no channel and no x5c", Request(**NO_PEER), SignerUnknown),
    ("another peer and no x5c", Request(peer=peer(REPORTS)), SignerUnknown),
    ("x5c of another certificate", Request(**NO_PEER, header={"x5c": chain(REPORTS)}), SignerUnknown),
    ("x5c empty", Request(**NO_PEER, header={"x5c": []}), HeaderMalformed),
    ("x5c a string", Request(**NO_PEER, header={"x5c": chain(PLANNER)[0]}), HeaderMalformed),
    ("x5c of numbers", Request(**NO_PEER, header={"x5c": [1]}), HeaderMalformed),
    ("x5c not base64", Request(**NO_PEER, header={"x5c": ["!" + chain(PLANNER)[0]]}), HeaderMalformed),
    ("x5c not ASCII", Request(**NO_PEER, header={"x5c": ["é"]}), HeaderMalformed),
    ("x5c too long", Request(**NO_PEER, header={"x5c": ["AAAA"] * 9}), HeaderMalformed),
    (
        "x5c not a certificate",
        Request(**NO_PEER, header={"x5c": ["AAAA"], "x5t#S256": thumbprint(b"\0\0\0")}),
        MalformedCertificate,
    ),
    ("x5c of a foreign domain", Request(**NO_PEER, signer=ALIEN, header={"x5c": chain(ALIEN)}), UnknownTrustDomain),
    ("x5c of a foreign CA", Request(**NO_PEER, signer=FAKE, header={"x5c": chain(FAKE)}), UntrustedChain),
    ("x5c self-signed", Request(**NO_PEER, signer=SELF, header={"x5c": chain(SELF)}), UntrustedChain),
    ("certificate expired", Request(**NO_PEER, signer=EXPIRED, header={"x5c": chain(EXPIRED)}), CertificateExpired),
    ("certificate revoked", Request(**NO_PEER, signer=REVOKED, header={"x5c": chain(REVOKED)}), CertificateRevoked),
    (
        "certificate not for clients",
        Request(**NO_PEER, signer=SERVER_ONLY, header={"x5c": chain(SERVER_ONLY)}),
        WrongExtendedKeyUsage,
    ),
    (
        "certificate expired since the handshake",
        Request(now=NOW + 25 * HOUR, verifier=PeerVerifier(FORGE.bundles)),
        CertificateExpired,
    ),
    (
        "domain removed since the handshake",
        Request(verifier=PeerVerifier(FOREIGN.bundles)),
        UnknownTrustDomain,
    ),
    ("root exchanged since the handshake", Request(verifier=PeerVerifier(IMPOSTOR.bundles)), UntrustedChain),
    # (5) the signature
    ("one byte of the body", Request(body=BODY.replace(b"S", b"s")), SignatureWrong),
    ("no body", Request(body=b""), SignatureWrong),
    ("a body where there was none", Request(signed_body=b""), SignatureWrong),
    ("key of another agent", Request(key=REPORTS.private_key), SignatureWrong),
    ("key of nobody", Request(key=ec.generate_private_key(ec.SECP256R1())), SignatureWrong),
    # (6) the claims
    ("issuer is another agent", Request(claims={"iss": "spiffe://fleet.example/admin"}), IssuerMismatch),
    ("issuer of another domain", Request(claims={"iss": "spiffe://other.example/planner"}), IssuerMismatch),
    ("issuer with a slash", Request(claims={"iss": "spiffe://fleet.example/planner/"}), IssuerMismatch),
    ("issuer in upper case", Request(claims={"iss": "SPIFFE://fleet.example/planner"}), IssuerMismatch),
    ("issuer missing", Request(claims={"iss": ABSENT}), HeaderMalformed),
    ("issuer a list", Request(claims={"iss": ["spiffe://fleet.example/planner"]}), HeaderMalformed),
    ("a2a a list", Request(header={"a2a": []}), HeaderMalformed),
    ("a2a null", Request(header={"a2a": None}), HeaderMalformed),
    ("a2a a string", Request(header={"a2a": "v1"}), HeaderMalformed),
    ("a2a empty", Request(header={"a2a": {}}), HeaderMalformed),
    ("version missing", Request(claims={"v": ABSENT}), HeaderMalformed),
    ("version 2", Request(claims={"v": 2}), HeaderMalformed),
    ("version true", Request(claims={"v": True}), HeaderMalformed),
    ("version 1.0", Request(claims={"v": 1.0}), HeaderMalformed),
    ('version "1"', Request(claims={"v": "1"}), HeaderMalformed),
    ("unknown member", Request(claims={"only": "on Sundays"}), HeaderMalformed),
    ("member of an answer", Request(claims={"st": 200}), HeaderMalformed),
    ("jti missing", Request(claims={"jti": ABSENT}), HeaderMalformed),
    ("jti short", Request(claims={"jti": JTI[:-1]}), HeaderMalformed),
    ("jti long", Request(claims={"jti": "a" * 129}), HeaderMalformed),
    ("jti a number", Request(claims={"jti": 10**15}), HeaderMalformed),
    ("jti a list", Request(claims={"jti": [JTI]}), HeaderMalformed),
    ("jti with a newline", Request(claims={"jti": JTI + "\n"}), HeaderMalformed),
    ("jti of other characters", Request(claims={"jti": "é" * 22}), HeaderMalformed),
    ("iat missing", Request(claims={"iat": ABSENT}), HeaderMalformed),
    ("iat a float", Request(claims={"iat": IAT + 0.5}), HeaderMalformed),
    ("iat a string", Request(claims={"iat": str(IAT)}), HeaderMalformed),
    ("iat true", Request(claims={"iat": True}), HeaderMalformed),
    ("iat negative", Request(claims={"iat": -1}), HeaderMalformed),
    ("exp missing", Request(claims={"exp": ABSENT}), HeaderMalformed),
    ("exp null", Request(claims={"exp": None}), HeaderMalformed),
    ("exp true", Request(claims={"exp": True}), HeaderMalformed),
    ("exp before iat", Request(claims={"exp": IAT - 1}), HeaderMalformed),
    ("exp equal to iat", Request(claims={"exp": IAT}), HeaderMalformed),
    # (7) the receiver and the request
    ("for another agent", Request(audience="spiffe://fleet.example/reports"), AudienceMismatch),
    ("audience another agent", Request(claims={"aud": "spiffe://fleet.example/reports"}), AudienceMismatch),
    ("audience with a slash", Request(claims={"aud": "spiffe://fleet.example/billing/"}), AudienceMismatch),
    ("audience empty", Request(claims={"aud": ""}), AudienceMismatch),
    ("audience several", Request(claims={"aud": ["spiffe://fleet.example/billing"]}), HeaderMalformed),
    ("audience missing", Request(claims={"aud": ABSENT}), HeaderMalformed),
    ("method changed", Request(method="PUT"), BindingMismatch),
    ("method in lower case", Request(method="post"), BindingMismatch),
    ("method not bound", Request(claims={"htm": ABSENT}), BindingMismatch),
    ("path changed", Request(url="https://billing.example/admin?tenant=1"), BindingMismatch),
    ("path encoded otherwise", Request(url="https://billing.example/%612a?tenant=1"), BindingMismatch),
    ("path with dots", Request(url="https://billing.example/x/../a2a?tenant=1"), BindingMismatch),
    ("path with a slash more", Request(url="https://billing.example/a2a/?tenant=1"), BindingMismatch),
    ("query changed", Request(url="https://billing.example/a2a?tenant=2"), BindingMismatch),
    ("query removed", Request(url="https://billing.example/a2a"), BindingMismatch),
    ("query longer", Request(url="https://billing.example/a2a?tenant=1&admin=1"), BindingMismatch),
    ("host changed", Request(url="https://reports.example/a2a?tenant=1"), BindingMismatch),
    ("host with a user", Request(url="https://billing.example@evil.example/a2a?tenant=1"), BindingMismatch),
    ("port changed", Request(url="https://billing.example:8443/a2a?tenant=1"), BindingMismatch),
    ("scheme changed", Request(url="http://billing.example/a2a?tenant=1"), BindingMismatch),
    ("port of the other scheme", Request(url="https://billing.example:80/a2a?tenant=1"), BindingMismatch),
    ("fragment added", Request(url="https://billing.example/a2a?tenant=1#&tenant=2"), BindingMismatch),
    ("target not absolute", Request(url="/a2a?tenant=1"), BindingMismatch),
    ("target not bound", Request(claims={"htu": ABSENT}), BindingMismatch),
    ("target a list", Request(claims={"htu": ["https://billing.example/a2a?tenant=1"]}), BindingMismatch),
    ("content type changed", Request(content_type="text/html"), BindingMismatch),
    ("content type with a parameter", Request(content_type="application/json; charset=x"), BindingMismatch),
    ("content type in upper case", Request(content_type="Application/JSON"), BindingMismatch),
    ("content type stripped", Request(content_type=""), BindingMismatch),
    ("content type added", Request(header={"cty": ABSENT}), BindingMismatch),
    ("content type null", Request(header={"cty": None}, content_type=""), BindingMismatch),
    ("content type empty", Request(header={"cty": ""}, content_type=""), BindingMismatch),
    ("content type a list", Request(header={"cty": ["application/json"]}), BindingMismatch),
    ("A2A version changed", Request(version="0.3"), BindingMismatch),
    ("A2A version stripped", Request(version=""), BindingMismatch),
    ("A2A version added", Request(claims={"ver": ABSENT}), BindingMismatch),
    ("A2A version null", Request(claims={"ver": None}, version=""), BindingMismatch),
    ("extension stripped", Request(extensions=("urn:a",)), BindingMismatch),
    ("every extension stripped", Request(extensions=()), BindingMismatch),
    ("extension added", Request(extensions=("urn:a", "urn:b", "urn:c")), BindingMismatch),
    ("extensions not bound", Request(claims={"ext": ABSENT}), BindingMismatch),
    ("extensions as one text", Request(claims={"ext": "urn:a"}, extensions=("urn:a",)), BindingMismatch),
    # (8) time
    ("expired", Request(now=NOW + timedelta(seconds=60)), MessageExpired),
    ("expired long ago", Request(claims={"iat": IAT - 3600, "exp": IAT - 3540}), MessageExpired),
    ("from the future", Request(claims={"iat": IAT + 11, "exp": IAT + 60}), MessageFromTheFuture),
    ("from the far future", Request(claims={"iat": YEAR_10000 - 200, "exp": YEAR_10000 - 1}), MessageFromTheFuture),
    ("from beyond the calendar", Request(claims={"iat": 2**53 - 200, "exp": 2**53 - 1}), HeaderMalformed),
    ("valid too long", Request(claims={"exp": IAT + 301}), MessageLifetimeTooLong),
    ("valid for ever", Request(claims={"iat": 0, "exp": YEAR_10000 - 1}), MessageLifetimeTooLong),
    ("valid beyond the calendar", Request(claims={"exp": YEAR_10000}), HeaderMalformed),
    # (9) who, and once
    ("signer not on the list", Request(signers=exactly("spiffe://fleet.example/reports")), PeerNotAllowed),
    ("received twice", Request(times=2), Replayed),
    (
        "issued before the receiver began to remember",
        Request(claims={"iat": IAT - 200}, started_at=NOW - timedelta(seconds=100)),
        Replayed,
    ),
]


@pytest.mark.parametrize(("request_", "error"), [row[1:] for row in ATTACKS], ids=[row[0] for row in ATTACKS])
def test_attack_on_a_request(request_: Request, error: type[TrustError]) -> None:
    with pytest.raises(error) as caught:
        request_.verify()
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "request_",
    [
        Request(),
        Request(peer=None, header={"x5c": chain(PLANNER)}),
        Request(peer=peer(REPORTS), header={"x5c": chain(PLANNER)}),  # through a relay: check 5 of the gate decides
        Request(extensions=("urn:b", "urn:a", "urn:a")),  # their order and number mean nothing
        Request(url="HTTPS://Billing.Example:443/a2a?tenant=1"),
        Request(header={"cty": ABSENT}, content_type=""),
        Request(claims={"ver": ABSENT, "ext": ABSENT}, version="", extensions=()),
        Request(claims={"iat": IAT + 10}),
        Request(claims={"iat": IAT - 240, "exp": IAT + 60}),
        Request(now=NOW + timedelta(seconds=59.9)),
        Request(claims={"aud": "https://billing.example"}, audience="https://billing.example"),
        Request(signed_body=b"", body=b"", claims={"htm": "GET"}, method="GET"),
        Request(claims={"jti": "a" * 128}),
    ],
)
def test_the_request_that_the_attacks_change_is_valid_and_so_are_its_honest_variants(request_: Request) -> None:
    message = request_.verify()
    assert message.payload == request_.body
    assert str(message.signer.agent_id) == "spiffe://fleet.example/planner"


def test_a_refused_request_is_not_remembered() -> None:
    """A forgery that used up the jti would let an attacker suppress the genuine request."""
    guard = MemoryReplayGuard(started_at=NOW - HOUR)
    arguments: dict[str, Any] = {
        "method": "POST",
        "url": CLAIMS["htu"],
        "audience": BILLING.agent_id,
        "verifier": VERIFIER,
        "peer": PEER,
        "now": NOW,
        "replay": guard,
        "content_type": "application/json",
        "version": "1.0",
        "extensions": CLAIMS["ext"],
    }
    genuine = Request().jws()
    for body, signers in ((b"forged", Request().signers), (BODY, exactly("spiffe://fleet.example/reports"))):
        with pytest.raises((SignatureWrong, PeerNotAllowed)):
            verify_request(genuine, body=body, signers=signers, **arguments)
    assert len(guard) == 0
    verify_request(genuine, body=BODY, signers=Request().signers, **arguments)
    assert len(guard) == 1


def test_a_respelled_signature_is_the_same_message() -> None:
    """ECDSA signatures are malleable: the twin (r, n - s) verifies, and must still count as received before."""
    guard = MemoryReplayGuard(started_at=NOW - HOUR)
    genuine = Request().jws()
    protected, _, signature = genuine.split(".")
    raw = jws.decode(signature)
    twin = raw[:32] + (ec.SECP256R1.group_order - int.from_bytes(raw[32:])).to_bytes(32)
    arguments: dict[str, Any] = {
        "method": "POST",
        "url": CLAIMS["htu"],
        "body": BODY,
        "audience": BILLING.agent_id,
        "verifier": VERIFIER,
        "peer": PEER,
        "now": NOW,
        "replay": guard,
        "signers": Request().signers,
        "content_type": "application/json",
        "version": "1.0",
        "extensions": CLAIMS["ext"],
    }
    verify_request(genuine, **arguments)
    with pytest.raises(Replayed):
        verify_request(f"{protected}..{jws.encode(twin)}", **arguments)


@dataclass(frozen=True)
class Answer:
    """A valid answer to a request, and what the requester sees of it."""

    claims: dict[str, Any] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)
    signer: Credentials = BILLING
    key: Any = None
    status: int = 200
    body: bytes = b'{"ok":true}'
    content_type: str = "application/json"
    audience: Credentials = PLANNER
    to: str = "spiffe://fleet.example/billing"
    signers: Authorizer = BILLING_OR_REPORTS
    peer: PeerIdentity | None = SERVER
    now: datetime = NOW
    request: SignedRequest | None = None  # which we think was answered

    def verify(self) -> envelope.VerifiedMessage:
        asked = _ask(self.to)
        claims = {
            "v": 1,
            "iss": str(self.signer.agent_id),
            "aud": "spiffe://fleet.example/planner",
            "iat": IAT,
            "exp": IAT + 60,
            "jti": JTI,
            "st": 200,
            "req": {"jti": asked.jti, "s256": asked.digest},
            **self.claims,
        }
        header = {
            "typ": "a2a-res+jws",
            "crit": ["a2a"],
            "x5t#S256": self.signer.thumbprint,
            "cty": "application/json",
            "a2a": {name: value for name, value in claims.items() if value is not ABSENT},
            **self.header,
        }
        header = {name: value for name, value in header.items() if value is not ABSENT}
        signature = jws.sign_detached(b'{"ok":true}', key=self.key or self.signer.private_key, header=header)
        return verify_response(
            signature,
            request=self.request or asked,
            status=self.status,
            body=self.body,
            audience=self.audience.agent_id,
            signers=self.signers,
            verifier=VERIFIER,
            peer=self.peer,
            now=self.now,
            content_type=self.content_type,
        )


def _ask(to: str, jti: str = JTI, body: bytes = BODY) -> SignedRequest:
    return sign_request(
        PLANNER, method="POST", url="https://billing.example/", body=body, audience=to, now=NOW, jti=jti
    )


BY_REPORTS: dict[str, Any] = {"signer": REPORTS, "peer": None, "header": {"x5c": chain(REPORTS)}}
ANSWER_ATTACKS: list[tuple[str, Answer, type[TrustError]]] = [
    ("a request as an answer", Answer(header={"typ": "a2a-req+jws"}), TypeWrong),
    ("no crit", Answer(header={"crit": ["a2a"], "a2a": []}), HeaderMalformed),
    ("one byte of the body", Answer(body=b'{"ok":false}'), SignatureWrong),
    ("signed by another", Answer(key=REPORTS.private_key), SignatureWrong),
    ("status changed", Answer(status=403), ResponseMismatch),
    ("status as a float", Answer(claims={"st": 200.0}), ResponseMismatch),
    ("status true", Answer(claims={"st": True}, status=1), ResponseMismatch),
    ("status as text", Answer(claims={"st": "200"}), ResponseMismatch),
    ("status missing", Answer(claims={"st": ABSENT}), ResponseMismatch),
    ("content type changed", Answer(content_type="text/html"), ResponseMismatch),
    ("content type stripped", Answer(content_type=""), ResponseMismatch),
    ("content type added", Answer(header={"cty": ABSENT}), ResponseMismatch),
    ("content type null", Answer(header={"cty": None}, content_type=""), ResponseMismatch),
    ("request missing", Answer(claims={"req": ABSENT}), ResponseMismatch),
    ("request empty", Answer(claims={"req": {}}), ResponseMismatch),
    ("request without its digest", Answer(claims={"req": {"jti": JTI}}), ResponseMismatch),
    ("request with more", Answer(claims={"req": {"jti": JTI, "s256": "x", "y": 1}}), ResponseMismatch),
    (
        "to another request",
        Answer(request=_ask("spiffe://fleet.example/billing", "another-request-000000")),
        ResponseMismatch,
    ),
    (
        "to another request with the same jti",
        Answer(request=_ask("spiffe://fleet.example/billing", JTI, b"other")),
        ResponseMismatch,
    ),
    ("for another requester", Answer(audience=REPORTS), AudienceMismatch),
    ("member of a request", Answer(claims={"htm": "POST"}), HeaderMalformed),
    ("by another agent than asked", Answer(**BY_REPORTS), ResponseMismatch),
    (
        "by an agent that may not answer",
        Answer(to="https://billing.example", signers=exactly("spiffe://fleet.example/reports")),
        PeerNotAllowed,
    ),
    (
        "in the name of the agent that was asked",
        Answer(**BY_REPORTS, claims={"iss": str(BILLING.agent_id)}),
        IssuerMismatch,
    ),
    ("by a certificate that is not known", Answer(signer=REPORTS), SignerUnknown),
    ("expired", Answer(now=NOW + timedelta(seconds=61)), MessageExpired),
]


@pytest.mark.parametrize(("answer", "error"), [row[1:] for row in ANSWER_ATTACKS], ids=[r[0] for r in ANSWER_ATTACKS])
def test_attack_on_an_answer(answer: Answer, error: type[TrustError]) -> None:
    with pytest.raises(error) as caught:
        answer.verify()
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "answer", [Answer(), Answer(to="https://billing.example"), Answer(**BY_REPORTS, to="https://billing.example")]
)
def test_the_answer_that_the_attacks_change_is_valid(answer: Answer) -> None:
    assert answer.verify().payload == answer.body


def test_a_request_cannot_be_reflected_as_its_own_answer() -> None:
    asked = _ask("spiffe://fleet.example/planner")  # to itself, so that nothing but the kind differs
    with pytest.raises(TypeWrong):
        verify_response(
            asked.jws,
            request=asked,
            status=200,
            body=BODY,
            audience=PLANNER.agent_id,
            signers=exactly(str(PLANNER.agent_id)),
            verifier=VERIFIER,
            peer=PEER,
            now=NOW,
        )


def test_an_answer_is_not_a_request() -> None:
    message = Request().verify()
    answer = sign_response(BILLING, request=message, status=200, body=BODY, now=NOW, jti=JTI)
    with pytest.raises(TypeWrong):
        verify_request(
            answer,
            method="POST",
            url="https://planner.example/",
            body=BODY,
            audience=PLANNER.agent_id,
            verifier=VERIFIER,
            peer=Answer().peer,
            now=NOW,
            signers=exactly(str(BILLING.agent_id)),
            replay=MemoryReplayGuard(started_at=NOW - HOUR),
        )


def test_algorithms_are_the_verifiers_choice() -> None:
    with pytest.raises(AlgorithmRefused):
        verify_request(
            Request().jws(),
            method="POST",
            url=CLAIMS["htu"],
            body=BODY,
            audience=BILLING.agent_id,
            verifier=VERIFIER,
            peer=PEER,
            now=NOW,
            signers=Request().signers,
            replay=MemoryReplayGuard(started_at=NOW - HOUR),
            content_type="application/json",
            version="1.0",
            extensions=CLAIMS["ext"],
            algorithms=["Ed25519"],
        )


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ([], SignatureMissing),
        ([b"a..b", b"a..b"], SignatureMalformed),
        ([b"a..b", b"c..d"], SignatureMalformed),
        ([b"\xff..b"], SignatureMalformed),
    ],
)
def test_there_is_exactly_one_header(values: list[bytes], error: type[TrustError]) -> None:
    headers = [(b"content-type", b"application/json")]
    headers += [(name, value) for name, value in zip([b"jws-signature", b"JWS-SIGNATURE"], values, strict=False)]
    with pytest.raises(error) as caught:
        signature_of(headers)
    assert type(caught.value) is error
    assert signature_of([(HEADER.encode(), b"a..b"), (b"jws-signature-x", b"c")]) == "a..b"


def test_trust_is_asked_for_at_each_verification() -> None:
    """A revocation that arrives between two requests of one connection stops the second."""
    verifier = PeerVerifier(FORGE.bundles, RevocationLists())
    assert Request(verifier=verifier).verify()
    revoked = PeerVerifier(TrustBundles.of(FORGE.bundle), FORGE.crls(PLANNER))
    with pytest.raises(CertificateRevoked):
        Request(verifier=revoked).verify()
