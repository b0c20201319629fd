"""Test vectors of signed HTTP requests and answers, for any language: `python -m tests.vectors` writes `http.json`.

The file is the same bytes at each run: its clock, keys, certificates and signatures are made from names. Each
invalid vector is a valid one with one mutation, and names the step of the verifier that has to refuse it and the error
that this library has for that:

    (0) size and three parts  (1) base64url, JSON  (2) typ, alg, crit  (3) certificate  (4) key and length
    (5) signature  (6) iss, members of a2a  (7) aud, and what was received  (8) time  (9) who may say it, and once

The vectors are to be verified in their order with one memory of what was received before.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.forge import Forge, spiffe
from trust.bundles import TrustBundles
from trust.credentials import Credentials
from trust.extension import URI
from trust.signing.algorithms import signer
from trust.signing.http import RequestReference, SignedRequest, sign_request, sign_response
from trust.signing.jws import decode, encode

FILE = Path(__file__).parent / "http.json"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
BODY = '{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":{"text":"50 €, \\"please\\""}}'.encode()
HTU = "https://billing.fleet.example/a2a?tenant=1&x=%20"
ORDER = ec.SECP256R1.group_order

Json = dict[str, Any]
Vector = dict[str, Any]


def key(name: str, curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    curve = curve or ec.SECP256R1()
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(name.encode()).digest()), curve)


class FixedForge(Forge):
    """Keys by name, serials by number."""

    def __init__(self, domain: str, seed: str = "") -> None:
        names = iter((f"{domain} root{seed}", f"{domain} intermediate{seed}"))
        self._number = 0
        super().__init__(domain, now=NOW, make_key=lambda: key(next(names)))

    def leaf(self, agent: str = "/billing", **changes: Any) -> Credentials:
        changes.setdefault("key", key(f"{self.domain}{agent}"))
        return super().leaf(agent, **changes)

    def _certificate(self, *args: Any, serial: int | None = None, **changes: Any) -> x509.Certificate:
        self._number += 1
        return super()._certificate(*args, serial=serial or self._number, **changes)


FLEET = FixedForge("fleet.example")
PARTNER = FixedForge("partner.example")  # trusted too, for its own agents
STRANGER = FixedForge("fleet.example", " of a stranger")
EVIL = FixedForge("evil.example")
BUNDLES = TrustBundles.of(FLEET.bundle, PARTNER.bundle)
PLANNER, BILLING, AUDITOR = (FLEET.leaf(f"/{name}") for name in ("planner", "billing", "auditor"))
P384 = FLEET.leaf("/planner", key=key("P-384", ec.SECP384R1()))
ED25519 = FLEET.leaf("/planner", key=ed25519.Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"ed").digest()))


def jti(name: str) -> str:
    return encode(hashlib.sha256(name.encode()).digest()[:16])


def vector(name: str, jws: str, body: bytes, typ: str, audience: str, cty: str | None, bound: Json) -> Vector:
    return {
        "name": name,
        "typ": typ,
        "body": encode(body),
        "audience": audience,
        "cty": cty,
        "bound": bound,
        "from": None,
        "algorithms": ["ES256", "ES384"],
        "jws": jws,
        "refused": None,
    }


def request(name: str, by: Credentials = PLANNER, *, body: bytes = BODY, **changes: Any) -> Vector:
    """A valid request, as the library signs it."""
    facts: Json = {
        "method": "POST",
        "url": HTU,
        "content_type": "application/json",
        "version": "1.0",
        "extensions": [URI, "urn:example:a"],
        "audience": str(BILLING.agent_id),
        "now": NOW,
        **changes,
    }
    signed = sign_request(by, body=body, jti=jti(name), chain=True, **facts)
    members = {"htm": facts["method"], "htu": facts["url"], "ver": facts["version"], "ext": sorted(facts["extensions"])}
    bound = {name: value for name, value in members.items() if value}
    return vector(name, signed.jws, body, "a2a-req+jws", facts["audience"], facts["content_type"] or None, bound)


ASKED = {"jti": jti("what is answered"), "s256": encode(hashlib.sha256(b"what is answered").digest())}


def response(name: str, by: Credentials = BILLING, *, body: bytes = BODY, **changes: Any) -> Vector:
    """A valid answer to a request of the planner's to billing."""
    facts: Json = {"status": 200, "content_type": "application/json", **changes}
    asked = RequestReference(requester=PLANNER.agent_id, jti=ASKED["jti"], digest=ASKED["s256"])
    jws = sign_response(by, request=asked, body=body, now=NOW, jti=jti(name), chain=True, **facts)
    bound = {"st": facts["status"], "req": ASKED}
    made = vector(name, jws, body, "a2a-res+jws", str(PLANNER.agent_id), facts["content_type"] or None, bound)
    return {**made, "from": str(BILLING.agent_id)}


def asked(vector: Vector) -> SignedRequest:
    """What a client remembers of the request that an answer's vector is for."""
    number, digest = vector["bound"]["req"]["jti"], vector["bound"]["req"]["s256"]
    return SignedRequest(jws="", jti=number, digest=digest, audience=vector["from"], signed_at=NOW, signer="")


def resigned(vector: Vector, change: Callable[[Json], Any], by: Any = PLANNER.private_key) -> Vector:
    """With another header, truly signed."""
    header = json.loads(decode(vector["jws"].partition(".")[0]))
    change(header)
    return spelled(vector, json.dumps(header, separators=(",", ":")), by)


def spelled(vector: Vector, header: str, by: Any = PLANNER.private_key) -> Vector:
    protected = encode(header.encode())
    signature = signer(by)[1](f"{protected}.{vector['body']}".encode())
    return {**vector, "jws": f"{protected}..{encode(signature)}"}


def head(name: str, value: Any) -> Callable[[Json], Any]:
    return lambda header: header.update({name: value}) if value is not None else header.pop(name)


def claim(name: str, value: Any) -> Callable[[Json], Any]:
    return lambda header: head(name, value)(header["a2a"])


def respelled(vector: Vector, change: Callable[[list[str]], str]) -> Vector:
    """Another text of the JWS, made of its protected header and its signature."""
    protected, _, signature = vector["jws"].split(".")
    return {**vector, "jws": change([protected, signature])}


def other_half(vector: Vector) -> Vector:
    """(r, n - s): as good a signature, and another text."""

    def change(parts: list[str]) -> str:
        raw = decode(parts[1])
        flipped = raw[:32] + (ORDER - int.from_bytes(raw[32:])).to_bytes(32)
        return f"{parts[0]}..{encode(flipped)}"

    return respelled(vector, change)


def with_signature(vector: Vector, change: Callable[[bytes], bytes]) -> Vector:
    return respelled(vector, lambda parts: f"{parts[0]}..{encode(change(decode(parts[1])))}")


def der(raw: bytes) -> bytes:
    return encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))


def received(vector: Vector, **bound: Any) -> Vector:
    """The same message, and something else received."""
    return {**vector, **{name: bound.pop(name) for name in ("body", "audience", "cty", "from") if name in bound}} | {
        "bound": {name: value for name, value in {**vector["bound"], **bound}.items() if value is not None}
    }


def valid() -> Iterator[Vector]:
    yield request("request")
    yield request("request without a body", method="GET", body=b"", content_type="", extensions=[])
    yield request("request with no header but those of HTTP", content_type="", version="", extensions=[])
    yield request("request to an agent outside any trust domain", audience="https://billing.example")
    yield request("request of an agent of a federated domain", PARTNER.leaf("/planner"))
    yield request("request of 10 seconds ahead", now=NOW + timedelta(seconds=10))
    yield request("request for 300 seconds", lifetime=timedelta(seconds=300))
    yield request("request with ES384", P384)
    yield {**request("request with Ed25519", ED25519), "algorithms": ["Ed25519"]}
    spaced = request("request with white space in its header")
    yield spelled(spaced, json.dumps(json.loads(decode(spaced["jws"].partition(".")[0])), indent=1))
    yield other_half(request("request with the other half of s"))
    yield response("answer")
    yield response("answer without a body", status=204, body=b"", content_type="")
    yield response("answer that refuses", status=403)


REQUEST = request("one mutation away")
Row = tuple[str, int, str, Vector]


def invalid() -> Iterator[Row]:
    yield "more than 8192 characters", 0, "SignatureTooLarge", resigned(REQUEST, head("pad", "x" * 6000))
    yield "two parts", 0, "SignatureMalformed", respelled(REQUEST, ".".join)
    yield "four parts", 0, "SignatureMalformed", respelled(REQUEST, lambda parts: "..".join([*parts, ""])[:-1])
    yield "payload inside", 0, "SignatureMalformed", respelled(REQUEST, f".{REQUEST['body']}.".join)
    yield "base64url with padding", 1, "SignatureMalformed", respelled(REQUEST, lambda p: f"{p[0]}..{p[1]}==")
    yield "base64url with white space", 1, "SignatureMalformed", respelled(REQUEST, lambda p: f"{p[0]}..\n{p[1]}")
    yield "base64 of the other alphabet", 1, "SignatureMalformed", respelled(REQUEST, lambda p: f"{p[0]}..+{p[1][1:]}")
    yield (
        "bits that are thrown away",
        1,
        "SignatureMalformed",
        respelled(REQUEST, lambda p: f"{p[0]}..{p[1][:-1]}{'BRhx'['AQgw'.index(p[1][-1])]}"),
    )
    yield "header is no JSON", 1, "HeaderMalformed", spelled(REQUEST, "{")
    yield "header is a list", 1, "HeaderMalformed", spelled(REQUEST, '["ES256"]')
    text = decode(REQUEST["jws"].split(".")[0]).decode()
    yield "header member twice", 1, "HeaderMalformed", spelled(REQUEST, text.replace("{", '{"alg":"none",', 1))
    yield "claim twice", 1, "HeaderMalformed", spelled(REQUEST, text.replace('"v":1', '"v":1,"aud":"x"'))
    yield "an answer for a request", 2, "TypeWrong", {**response("other kind"), "typ": "a2a-req+jws", "bound": {}}
    yield "no typ", 2, "TypeWrong", resigned(REQUEST, head("typ", None))
    yield "no algorithm", 2, "AlgorithmRefused", resigned(REQUEST, head("alg", None))
    yield (
        "alg none",
        2,
        "AlgorithmRefused",
        respelled(resigned(REQUEST, head("alg", "none")), lambda parts: f"{parts[0]}.."),
    )
    yield "alg HS256", 2, "AlgorithmRefused", resigned(REQUEST, head("alg", "HS256"))
    yield "alg that the verifier did not allow", 2, "AlgorithmRefused", request("Ed25519 not allowed", ED25519)
    yield "no crit", 2, "CriticalHeaderRefused", resigned(REQUEST, head("crit", None))
    yield "empty crit", 2, "CriticalHeaderRefused", resigned(REQUEST, head("crit", []))
    yield "crit with more", 2, "CriticalHeaderRefused", resigned(REQUEST, head("crit", ["a2a", "x"]))
    yield "crit twice", 2, "CriticalHeaderRefused", resigned(REQUEST, head("crit", ["a2a", "a2a"]))
    yield "no a2a", 2, "CriticalHeaderRefused", resigned(REQUEST, head("a2a", None))
    yield "b64", 2, "CriticalHeaderRefused", resigned(REQUEST, head("b64", True))
    yield "jku", 2, "HeaderMalformed", resigned(REQUEST, head("jku", "https://evil.example/jwks"))
    yield "x5u", 2, "HeaderMalformed", resigned(REQUEST, head("x5u", "https://evil.example/chain"))
    jwk = {"kty": "EC", "crv": "P-256", "x": encode(bytes(31) + b"\1"), "y": encode(bytes(31) + b"\1")}
    yield "jwk", 2, "HeaderMalformed", resigned(REQUEST, head("jwk", jwk))
    yield from certificates()
    yield "key of another curve", 4, "KeyMismatch", resigned(request("ES384 key", P384), head("alg", "ES256"))
    yield "signature in DER", 4, "SignatureMalformed", with_signature(REQUEST, der)
    yield "signature cut short", 4, "SignatureMalformed", with_signature(REQUEST, lambda raw: raw[:-1])
    yield "signature of zeros", 5, "SignatureWrong", with_signature(REQUEST, lambda raw: bytes(64))
    yield "s + n", 5, "SignatureWrong", with_signature(REQUEST, lambda raw: raw[:32] + b"\xff" * 32)
    yield "key of another agent", 5, "SignatureWrong", resigned(REQUEST, lambda _: None, AUDITOR.private_key)
    yield "body changed", 5, "SignatureWrong", received(REQUEST, body=encode(BODY.replace(b"50", b"51")))
    yield "body taken away", 5, "SignatureWrong", received(REQUEST, body="")
    yield "iss of another agent", 6, "IssuerMismatch", resigned(REQUEST, claim("iss", str(AUDITOR.agent_id)))
    yield "a2a is a list", 6, "HeaderMalformed", resigned(REQUEST, head("a2a", [1]))
    for name, value in {"v": 2, "nonce": "x", "iat": "1795348800", "exp": None, "aud": None, "jti": "short"}.items():
        yield f"a2a.{name} is {value}", 6, "HeaderMalformed", resigned(REQUEST, claim(name, value))
    yield "for another receiver", 7, "AudienceMismatch", received(REQUEST, audience=str(AUDITOR.agent_id))
    yield "another content type", 7, "BindingMismatch", received(REQUEST, cty="text/html")
    yield "content type stripped", 7, "BindingMismatch", received(REQUEST, cty=None)
    yield "another method", 7, "BindingMismatch", received(REQUEST, htm="PUT")
    yield "another query", 7, "BindingMismatch", received(REQUEST, htu=HTU.replace("tenant=1", "tenant=2"))
    yield "version stripped", 7, "BindingMismatch", received(REQUEST, ver=None)
    yield "version added", 7, "BindingMismatch", received(request("unversioned", version=""), ver="1.0")
    yield "extension stripped", 7, "BindingMismatch", received(REQUEST, ext=["urn:example:a"])
    yield "extensions stripped", 7, "BindingMismatch", received(REQUEST, ext=None)
    for name, moment, error in [
        ("expired", NOW - MINUTE, "MessageExpired"),
        ("from the future", NOW + timedelta(seconds=11), "MessageFromTheFuture"),
    ]:
        yield name, 8, error, request(name, now=moment)
    seconds = int(NOW.timestamp())
    yield "lives too long", 8, "MessageLifetimeTooLong", resigned(REQUEST, claim("exp", seconds + 301))
    yield "ends before it begins", 8, "HeaderMalformed", resigned(REQUEST, claim("exp", seconds - 1))
    yield "the first request again", 9, "Replayed", request("request")
    yield "the first request again, with the other half of s", 9, "Replayed", other_half(request("request"))
    answer = response("one mutation away from an answer")
    by_billing = BILLING.private_key
    yield "a request for an answer", 2, "TypeWrong", {**answer, "jws": REQUEST["jws"]}
    yield "answer with another status", 7, "ResponseMismatch", received(answer, st=500)
    yield "answer with a status in words", 7, "ResponseMismatch", resigned(answer, claim("st", "200"), by_billing)
    for name in ("jti", "s256"):
        other = received(answer, req={**ASKED, name: jti("another request")})
        yield f"answer to a request with another {name}", 7, "ResponseMismatch", other
    yield "answer with members of a request", 6, "HeaderMalformed", resigned(answer, claim("htm", "GET"), by_billing)
    yield "answer for another requester", 7, "AudienceMismatch", received(answer, audience=str(AUDITOR.agent_id))
    yield "answer of another agent", 9, "ResponseMismatch", response("answer of the auditor", AUDITOR)


def certificates() -> Iterator[Row]:
    """Step (3). Each is signed by the key of the certificate that it shows."""
    chain = request("another chain", AUDITOR)
    shown = json.loads(decode(chain["jws"].split(".")[0]))["x5c"]
    yield "x5c of another certificate", 3, "SignerUnknown", resigned(REQUEST, head("x5c", shown))
    yield "no x5c", 3, "SignerUnknown", resigned(REQUEST, head("x5c", None))
    yield "no x5t#S256", 3, "SignerUnknown", resigned(REQUEST, head("x5t#S256", None))
    yield "empty x5c", 3, "HeaderMalformed", resigned(REQUEST, head("x5c", []))
    urls = [entry.replace("+", "-").replace("/", "_") for entry in chain_of(PLANNER)]
    yield "x5c in base64url", 3, "HeaderMalformed", resigned(REQUEST, head("x5c", urls))
    yield "x5c without the intermediate", 3, "UntrustedChain", resigned(REQUEST, head("x5c", chain_of(PLANNER)[:1]))
    client, server = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
    name = spiffe("spiffe://fleet.example/planner")
    signers: dict[str, tuple[str, Credentials]] = {
        "CA of a stranger": ("UntrustedChain", STRANGER.leaf("/planner")),
        "CA of another trusted domain": (
            "UntrustedChain",
            PARTNER.leaf("spiffe://fleet.example/planner", key=key("cross")),
        ),
        "domain that is not trusted": ("UnknownTrustDomain", EVIL.leaf("/planner")),
        "certificate that signed itself": ("UntrustedChain", self_signed()),
        "expired certificate": ("CertificateExpired", FLEET.leaf("/planner", not_after=NOW - MINUTE)),
        "certificate of tomorrow": ("CertificateNotYetValid", FLEET.leaf("/planner", not_before=NOW + MINUTE)),
        "two SPIFFE IDs": ("SeveralSpiffeIDs", FLEET.leaf("/planner", sans=[name, spiffe("spiffe://fleet.example/x")])),
        "a name, and no SPIFFE ID": ("NoSpiffeID", FLEET.leaf("/planner", sans=[x509.DNSName("planner.example")])),
        "SPIFFE ID of a whole domain": (
            "MalformedCertificate",
            FLEET.leaf("/planner", sans=[spiffe("spiffe://fleet.example")]),
        ),
        "a CA signs": ("CertificateIsCA", FLEET.leaf("/planner", is_ca=True)),
        "key not for signatures": ("WrongKeyUsage", FLEET.leaf("/planner", usage=key_agreement())),
        "certificate of a server only": ("WrongExtendedKeyUsage", FLEET.leaf("/planner", eku=[server])),
        "unknown critical extension": (
            "NotAnAgentCertificate",
            FLEET.leaf("/planner", extra=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b""), True)]),
        ),
        "issued by an agent": ("UntrustedChain", issued_by(PLANNER)),
    }
    for name_, (error, by) in signers.items():
        yield name_, 3, error, request(name_, by)
    of_client = FLEET.leaf("/billing", eku=[client])
    yield "answer by a certificate of a client only", 3, "WrongExtendedKeyUsage", response("client answers", of_client)


def chain_of(by: Credentials) -> list[str]:
    return [base64.b64encode(made).decode() for made in by.chain_der]


def key_agreement() -> x509.KeyUsage:
    return x509.KeyUsage(False, False, False, False, True, False, False, False, False)


def self_signed() -> Credentials:
    """With the root's name for its issuer."""
    own = key("self")
    return FLEET.leaf("/planner", key=own, issuer=FLEET.root, issuer_key=own)


def issued_by(agent: Credentials) -> Credentials:
    """By the key of an agent's own certificate."""
    made = FLEET.leaf("/victim", issuer=agent.certificate, issuer_key=agent.private_key)
    return Credentials(
        agent_id=made.agent_id,
        chain=(made.certificate, *agent.chain),
        private_key=made.private_key,
        thumbprint=made.thumbprint,
    )


def make() -> bytes:
    """The content of `http.json`."""
    vectors = list(valid())
    for name, step, error, made in invalid():
        vectors.append({**made, "name": name, "refused": {"step": step, "error": error}})
    document = {
        "now": int(NOW.timestamp()),
        "bundles": json.loads(BUNDLES.to_json()),
        "vectors": vectors,
    }
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"
