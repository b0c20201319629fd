"""Attacks on access tokens: one valid token, one change a row, and exactly the error that must refuse it.

The tokens are put together by hand here, because the library does not make most of them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwcrypto.jwe import JWE
from jwcrypto.jwk import JWK

from tests.forge import HOUR, Forge
from trust.credentials import Credentials
from trust.errors import (
    TokenAlgorithmRefused,
    TokenAudienceWrong,
    TokenBoundElsewhere,
    TokenClaimMalformed,
    TokenClaimMissing,
    TokenError,
    TokenExpired,
    TokenIssuerWrong,
    TokenKeyUnknown,
    TokenLifetimeTooLong,
    TokenMalformed,
    TokenMissing,
    TokenNotBound,
    TokenNotYetValid,
    TokenRequestMalformed,
    TokenRevoked,
    TokenSignatureWrong,
    TokenTypeWrong,
    TokenWithoutCertificate,
    TokenWithoutProof,
)
from trust.identity import PeerIdentity
from trust.oauth.denylist import MemoryDenylist
from trust.oauth.keys import StaticKeys
from trust.oauth.presented import presented_token
from trust.oauth.tokens import TokenValidator
from trust.signing.jws import MAX_COMPACT_BYTES

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
T = int(NOW.timestamp())
ISSUER = "https://auth.fleet.example"
AUDIENCE = "https://billing.fleet.example"
FORGE = Forge()


def peer_with(credentials: Credentials) -> PeerIdentity:
    return PeerIdentity(
        agent_id=credentials.agent_id,
        thumbprint=credentials.thumbprint,
        serial=credentials.certificate.serial_number,
        not_before=credentials.certificate.not_valid_before_utc,
        not_after=credentials.certificate.not_valid_after_utc,
        chain=tuple(credentials.chain_der),
        public_key=credentials.certificate.public_key(),
    )


PEER = peer_with(FORGE.leaf("/planner"))
THIEF = peer_with(FORGE.leaf("/thief"))
FORGED = FORGE.leaf("/authority")  # a certificate of a real domain, whose key is not the issuer's
FORGED_CHAIN = [base64.b64encode(der).decode() for der in FORGED.chain_der]

# The issuer publishes k1 (P-256), k2 (P-384) and k3 (RSA); the attacker has a key of his own.
P256, P384 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
RSA, ATTACKER = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any) -> dict[str, Any]:
    return dict(JWK.from_pyca(key.public_key()).export_public(as_dict=True))


JWKS = {"keys": [{**jwk(P256), "kid": "k1"}, {**jwk(P384), "kid": "k2"}, {**jwk(RSA), "kid": "k3"}]}

HEADER = {"alg": "ES256", "typ": "at+jwt", "kid": "k1"}
CLAIMS = {
    "iss": ISSUER,
    "sub": "spiffe://fleet.example/planner",
    "aud": AUDIENCE,
    "client_id": "spiffe://fleet.example/planner",
    "iat": T,
    "exp": T + 900,
    "jti": "token-1",
    "scope": "agent:execute",
    "cnf": {"x5t#S256": PEER.thumbprint},
}
GONE: Any = object()


DENIED = MemoryDenylist()
DENIED.deny(ISSUER, "revoked", expires_at=NOW + HOUR, now=NOW)


def validate(text: str, *, peer: PeerIdentity | None = PEER, now: datetime = NOW) -> None:
    validator = TokenValidator(issuer=ISSUER, audience=AUDIENCE, keys=StaticKeys(JWKS), denylist=DENIED)
    validator.validate(text, peer=peer, now=now)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def ecdsa(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    size = (key.curve.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA384() if size == 48 else hashes.SHA256())))
    return r.to_bytes(size) + s.to_bytes(size)


def signature(alg: object, data: bytes, key: Any) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return ecdsa(key, data)
    if isinstance(key, rsa.RSAPrivateKey):
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        return key.sign(data, padding.PKCS1v15() if alg == "RS256" else pss, hashes.SHA256())
    return hmac.digest(key, data, hashlib.sha256) if key else b""


def forge(*, header: Any = None, payload: bytes | None = None, key: Any = P256, **claims: Any) -> str:
    """The valid token, with these header members or claims changed (GONE leaves one out), signed with `key`."""
    if not isinstance(header, bytes):
        header = json.dumps({k: v for k, v in {**HEADER, **(header or {})}.items() if v is not GONE}).encode()
    if payload is None:
        payload = json.dumps({k: v for k, v in {**CLAIMS, **claims}.items() if v is not GONE}).encode()
    signed = f"{b64(header)}.{b64(payload)}"
    try:
        alg = json.loads(header)["alg"]
    except (ValueError, KeyError, TypeError):
        alg = None
    return f"{signed}.{b64(signature(alg, signed.encode(), key))}"


def test_the_valid_token_is_valid() -> None:
    validate(forge())
    validate(forge(header={"alg": "ES384", "kid": "k2"}, key=P384))
    validate(forge(header={"alg": "PS256", "kid": "k3"}, key=RSA))
    validate(forge(header={"typ": "application/at+jwt"}))
    validate(forge(aud=["https://x.example", AUDIENCE]))
    validate(forge(act=nested(8)))


def nested(depth: int) -> dict[str, Any]:
    act: dict[str, Any] = {"sub": "actor"}
    for _ in range(depth - 1):
        act = {"sub": "actor", "act": act}
    return act


VALID = forge()
FIRST, SECOND, THIRD = VALID.split(".")
CLAIMS_JSON = json.dumps(CLAIMS).encode()
PEM = P256.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
DER = P256.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def flipped(part: str, byte: int) -> str:
    raw = bytearray(base64.urlsafe_b64decode(part + "=="))
    raw[byte] ^= 1
    return b64(bytes(raw))


def with_trailing_bits(part: str) -> str:
    """The same bytes in another spelling: the last character of an ES256 signature carries four unused bits."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(part) % 4 == 2
    return part[:-1] + alphabet[alphabet.index(part[-1]) + 1]


def encrypted() -> str:
    """A JWE to the issuer's own public key, as a confused receiver might decrypt and believe."""
    made = JWE(VALID, json.dumps({"alg": "ECDH-ES", "enc": "A128GCM", "kid": "k1", "typ": "at+jwt"}))
    made.add_recipient(JWK(**jwk(P256)))
    return str(made.serialize(compact=True))


@dataclass(frozen=True)
class Attack:
    expected: type[TokenError]
    token: Any = VALID
    peer: PeerIdentity | None = PEER
    now: datetime = field(default=NOW)


STRUCTURE = {
    "empty": Attack(TokenMalformed, ""),
    "one part": Attack(TokenMalformed, FIRST),
    "two parts": Attack(TokenMalformed, f"{FIRST}.{SECOND}"),
    "four parts": Attack(TokenMalformed, f"{VALID}.{THIRD}"),
    "five parts, encrypted": Attack(TokenMalformed, encrypted()),
    "detached": Attack(TokenSignatureWrong, f"{FIRST}..{THIRD}"),
    "no header": Attack(TokenMalformed, f".{SECOND}.{THIRD}"),
    "no signature": Attack(TokenSignatureWrong, f"{FIRST}.{SECOND}."),
    "JSON serialization": Attack(
        TokenMalformed, json.dumps({"protected": FIRST, "payload": SECOND, "signature": THIRD})
    ),
    "space before": Attack(TokenMalformed, " " + VALID),
    "line end": Attack(TokenMalformed, VALID + "\n"),
    "padding of the header": Attack(TokenMalformed, f"{FIRST}=.{SECOND}.{THIRD}"),
    "padding of the payload": Attack(TokenMalformed, f"{FIRST}.{SECOND}==.{THIRD}"),
    "padding of the signature": Attack(TokenMalformed, f"{VALID}=="),
    "other alphabet": Attack(TokenMalformed, f"{FIRST}.{SECOND}.{'+' + THIRD[1:]}"),
    "line end within": Attack(TokenMalformed, f"{FIRST}.{SECOND[:9]}\n{SECOND[9:]}.{THIRD}"),
    "trailing bits": Attack(TokenMalformed, f"{FIRST}.{SECOND}.{with_trailing_bits(THIRD)}"),
    "not ASCII": Attack(TokenMalformed, f"{FIRST}.{SECOND}.\u00e9{THIRD[1:]}"),
    "lone surrogate": Attack(TokenMalformed, f"{FIRST}.{SECOND}.\ud800{THIRD[1:]}"),
    "too large": Attack(TokenMalformed, forge(padding="x" * MAX_COMPACT_BYTES)),
    "far too large": Attack(TokenMalformed, "a." * 5_000_000),
    "bytes": Attack(TokenMalformed, VALID.encode()),
    "None": Attack(TokenMalformed, None),
}

HEADERS = {
    "not JSON": Attack(TokenMalformed, forge(header=b"{alg:ES256}")),
    "array": Attack(TokenMalformed, forge(header=b'["ES256"]')),
    "duplicate alg": Attack(TokenMalformed, forge(header=b'{"alg":"none","alg":"ES256","typ":"at+jwt","kid":"k1"}')),
    "duplicate kid": Attack(TokenMalformed, forge(header=b'{"kid":"k2","alg":"ES256","typ":"at+jwt","kid":"k1"}')),
    "alg none, no signature": Attack(TokenAlgorithmRefused, forge(header={"alg": "none"}, key=b"") + "AA"),
    "alg None": Attack(TokenAlgorithmRefused, forge(header={"alg": "None"})),
    "alg in lower case": Attack(TokenAlgorithmRefused, forge(header={"alg": "es256"})),
    "HS256 with the public key (PEM) as secret": Attack(TokenAlgorithmRefused, forge(header={"alg": "HS256"}, key=PEM)),
    "HS256 with the public key (DER) as secret": Attack(TokenAlgorithmRefused, forge(header={"alg": "HS256"}, key=DER)),
    "RS256 with the issuer's own key": Attack(
        TokenAlgorithmRefused, forge(header={"alg": "RS256", "kid": "k3"}, key=RSA)
    ),
    "PKCS#1 v1.5 called PS256": Attack(
        TokenSignatureWrong,
        (lambda signed: f"{signed}.{b64(RSA.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}")(
            f"{b64(json.dumps({**HEADER, 'alg': 'PS256', 'kid': 'k3'}).encode())}.{SECOND}"
        ),
    ),
    "ES512": Attack(TokenAlgorithmRefused, forge(header={"alg": "ES512"})),
    "typ missing": Attack(TokenTypeWrong, forge(header={"typ": GONE})),
    "typ JWT": Attack(TokenTypeWrong, forge(header={"typ": "JWT"})),
    "typ in upper case": Attack(TokenTypeWrong, forge(header={"typ": "AT+JWT"})),
    "typ in upper case, long": Attack(TokenTypeWrong, forge(header={"typ": "Application/at+jwt"})),
    "typ is a list": Attack(TokenTypeWrong, forge(header={"typ": ["at+jwt"]})),
    "typ of an ID token": Attack(TokenTypeWrong, forge(header={"typ": "id+jwt"})),
    "typ of a signed message": Attack(TokenTypeWrong, forge(header={"typ": "a2a-req+jws"})),
    "typ of a DPoP proof": Attack(TokenTypeWrong, forge(header={"typ": "dpop+jwt"})),
    "typ of a logout token": Attack(TokenTypeWrong, forge(header={"typ": "logout+jwt"})),
    "typ with a parameter": Attack(TokenTypeWrong, forge(header={"typ": "at+jwt; a=b"})),
    "typ with a space": Attack(TokenTypeWrong, forge(header={"typ": " at+jwt"})),
    "jwk in the header": Attack(TokenMalformed, forge(header={"jwk": jwk(ATTACKER)}, key=ATTACKER)),
    "jwk in the header, no kid": Attack(
        TokenMalformed, forge(header={"jwk": jwk(ATTACKER), "kid": GONE}, key=ATTACKER)
    ),
    "jku in the header": Attack(TokenMalformed, forge(header={"jku": "https://evil.example/jwks"}, key=ATTACKER)),
    "x5u in the header": Attack(TokenMalformed, forge(header={"x5u": "https://evil.example/c"}, key=ATTACKER)),
    "x5c in the header": Attack(TokenSignatureWrong, forge(header={"x5c": FORGED_CHAIN}, key=FORGED.private_key)),
    "x5c in the header, no kid": Attack(
        TokenMalformed, forge(header={"x5c": FORGED_CHAIN, "kid": GONE}, key=FORGED.private_key)
    ),
    "crit": Attack(TokenMalformed, forge(header={"crit": ["exp"], "exp": 1})),
    "crit, empty": Attack(TokenMalformed, forge(header={"crit": []})),
    "b64 false": Attack(TokenMalformed, forge(header={"crit": ["b64"], "b64": False})),
    "b64 false without crit": Attack(TokenMalformed, forge(header={"b64": False})),
    "kid missing": Attack(TokenMalformed, forge(header={"kid": GONE})),
    "kid is a number": Attack(TokenMalformed, forge(header={"kid": 1})),
    "kid is a list": Attack(TokenMalformed, forge(header={"kid": ["k1"]})),
    "kid empty": Attack(TokenKeyUnknown, forge(header={"kid": ""})),
    "kid unknown": Attack(TokenKeyUnknown, forge(header={"kid": "k9"}, key=ATTACKER)),
    "kid is a path": Attack(TokenKeyUnknown, forge(header={"kid": "../../dev/null"}, key=ATTACKER)),
    "kid of a key for another algorithm": Attack(TokenKeyUnknown, forge(header={"kid": "k2"})),
    "kid of an RSA key": Attack(TokenKeyUnknown, forge(header={"kid": "k3"})),
}

SIGNATURES = {
    "signature of the attacker": Attack(TokenSignatureWrong, forge(key=ATTACKER)),
    "signature of another key of the issuer": Attack(TokenSignatureWrong, forge(key=P384)),
    "bit of the signature": Attack(TokenSignatureWrong, f"{FIRST}.{SECOND}.{flipped(THIRD, 40)}"),
    "bit of the payload": Attack(TokenSignatureWrong, f"{FIRST}.{flipped(SECOND, 30)}.{THIRD}"),
    "claims of another token": Attack(TokenSignatureWrong, f"{FIRST}.{forge(sub='root').split('.')[1]}.{THIRD}"),
    "header of another token": Attack(
        TokenSignatureWrong, f"{b64(json.dumps({**HEADER, 'cty': 'x'}).encode())}.{SECOND}.{THIRD}"
    ),
    "signature of nothing but zeros": Attack(TokenSignatureWrong, f"{FIRST}.{SECOND}.{b64(bytes(64))}"),
    "short signature": Attack(TokenSignatureWrong, f"{FIRST}.{SECOND}.{b64(bytes(63))}"),
    "long signature": Attack(
        TokenSignatureWrong, f"{FIRST}.{SECOND}.{b64(base64.urlsafe_b64decode(THIRD + '==') + bytes(1))}"
    ),
    "DER signature": Attack(
        TokenSignatureWrong,
        f"{FIRST}.{SECOND}.{b64(P256.sign(f'{FIRST}.{SECOND}'.encode(), ec.ECDSA(hashes.SHA256())))}",
    ),
}

CLAIM_VALUES: dict[str, Attack] = {
    "payload is empty": Attack(TokenMalformed, forge(payload=b"")),
    "payload is not JSON": Attack(TokenMalformed, forge(payload=b"claims")),
    "payload is an array": Attack(TokenMalformed, forge(payload=b"[" + CLAIMS_JSON + b"]")),
    "payload is a string": Attack(TokenMalformed, forge(payload=b'"' + b64(CLAIMS_JSON).encode() + b'"')),
    "payload is null": Attack(TokenMalformed, forge(payload=b"null")),
    "payload with a BOM": Attack(TokenMalformed, forge(payload=b"\xef\xbb\xbf" + CLAIMS_JSON)),
    "payload is not UTF-8": Attack(TokenMalformed, forge(payload=CLAIMS_JSON.replace(b"token-1", b"\xff"))),
    "duplicate claim": Attack(TokenMalformed, forge(payload=CLAIMS_JSON[:-1] + b',"sub":"root"}')),
    "duplicate member of cnf": Attack(
        TokenMalformed,
        forge(payload=CLAIMS_JSON.replace(b'"cnf": {', b'"cnf": {"x5t#S256": "' + THIEF.thumbprint.encode() + b'", ')),
    ),
    "duplicate claim, escaped": Attack(TokenMalformed, forge(payload=CLAIMS_JSON[:-1] + b',"s\\u0075b":"root"}')),
    "exp is NaN": Attack(TokenMalformed, forge(exp=float("nan"))),
    "exp is Infinity": Attack(TokenMalformed, forge(exp=float("inf"))),
    "exp is 1e400": Attack(TokenMalformed, forge(payload=CLAIMS_JSON.replace(f"{T + 900}".encode(), b"1e400"))),
    "exp is endless": Attack(TokenMalformed, forge(payload=CLAIMS_JSON.replace(f"{T + 900}".encode(), b"9" * 5000))),
    "exp is huge": Attack(TokenClaimMalformed, forge(exp=10**15)),
    "exp is huge and a float": Attack(TokenClaimMalformed, forge(exp=1e300)),
    "exp is negative": Attack(TokenClaimMalformed, forge(exp=-1)),
    "exp is in milliseconds": Attack(TokenClaimMalformed, forge(exp=(T + 900) * 1000)),
    "deeply nested": Attack(
        TokenMalformed, forge(payload=CLAIMS_JSON[:-1] + b',"x":' + b"[" * 2000 + b"]" * 2000 + b"}")
    ),
    "wrong issuer": Attack(TokenIssuerWrong, forge(iss="https://evil.example")),
    "issuer with a slash": Attack(TokenIssuerWrong, forge(iss=ISSUER + "/")),
    "issuer in another case": Attack(TokenIssuerWrong, forge(iss=ISSUER.upper())),
    "issuer as a prefix": Attack(TokenIssuerWrong, forge(iss=ISSUER + ".evil.example")),
    "wrong audience": Attack(TokenAudienceWrong, forge(aud="https://other.example")),
    "audience with a slash": Attack(TokenAudienceWrong, forge(aud=AUDIENCE + "/")),
    "audience as a prefix": Attack(TokenAudienceWrong, forge(aud=AUDIENCE + ".evil.example")),
    "audience within a string": Attack(TokenAudienceWrong, forge(aud=f"https://x.example {AUDIENCE}")),
    "audience list without us": Attack(TokenAudienceWrong, forge(aud=["https://x.example", "https://y.example"])),
    "audience list, empty": Attack(TokenAudienceWrong, forge(aud=[])),
    "audience empty": Attack(TokenAudienceWrong, forge(aud="")),
    "expired": Attack(TokenExpired, now=NOW + timedelta(seconds=900)),
    "expired a second ago": Attack(TokenExpired, forge(exp=T - 1, iat=T - 60)),
    "from the future": Attack(TokenNotYetValid, forge(iat=T + 11)),
    "not before": Attack(TokenNotYetValid, forge(nbf=T + 11)),
    "lives too long": Attack(TokenLifetimeTooLong, forge(exp=T + 1801)),
    "lives for ever": Attack(TokenLifetimeTooLong, forge(exp=253_402_300_799)),
    "lives too long, nearly over": Attack(TokenLifetimeTooLong, forge(iat=0)),
    "revoked": Attack(TokenRevoked, forge(jti="revoked")),
    "scope with two spaces": Attack(TokenClaimMalformed, forge(scope="agent:read  agent:execute")),
    "endless scope": Attack(TokenClaimMalformed, forge(scope="x" * 4097)),
    "too many scopes": Attack(TokenClaimMalformed, forge(scope=" ".join(f"s:{n}" for n in range(129)))),
    "actor without subject": Attack(TokenClaimMalformed, forge(act={"iss": ISSUER})),
    "inner actor without subject": Attack(TokenClaimMalformed, forge(act={"sub": "a", "act": {}})),
    "inner actor is text": Attack(TokenClaimMalformed, forge(act={"sub": "a", "act": "b"})),
    "too many actors": Attack(TokenClaimMalformed, forge(act=nested(9))),
    "far too many actors": Attack(TokenMalformed, forge(act=nested(200))),
    "an ID token with the right typ": Attack(TokenClaimMissing, forge(client_id=GONE, azp="c", nonce="n")),
}

BINDING = {
    "no cnf": Attack(TokenNotBound, forge(cnf=GONE)),
    "cnf empty": Attack(TokenNotBound, forge(cnf={})),
    "cnf with jkt only": Attack(TokenNotBound, forge(cnf={"jkt": PEER.thumbprint})),
    "cnf with jkt too, and no proof": Attack(
        TokenWithoutProof, forge(cnf={"x5t#S256": PEER.thumbprint, "jkt": PEER.thumbprint})
    ),
    "jkt is empty": Attack(TokenClaimMalformed, forge(cnf={"x5t#S256": PEER.thumbprint, "jkt": ""})),
    "jkt is a list": Attack(TokenClaimMalformed, forge(cnf={"x5t#S256": PEER.thumbprint, "jkt": [PEER.thumbprint]})),
    "cnf with jwk only": Attack(TokenNotBound, forge(cnf={"jwk": jwk(P256)})),
    "cnf with SHA-1 only": Attack(TokenNotBound, forge(cnf={"x5t": PEER.thumbprint})),
    "thumbprint beside cnf": Attack(TokenNotBound, forge(cnf={}, **{"x5t#S256": PEER.thumbprint})),
    "thumbprint in the header": Attack(TokenNotBound, forge(header={"x5t#S256": PEER.thumbprint}, cnf=GONE)),
    "thumbprint is null": Attack(TokenClaimMalformed, forge(cnf={"x5t#S256": None})),
    "thumbprint is empty": Attack(TokenClaimMalformed, forge(cnf={"x5t#S256": ""})),
    "thumbprint is a list": Attack(TokenClaimMalformed, forge(cnf={"x5t#S256": [PEER.thumbprint]})),
    "thumbprint of another certificate": Attack(TokenBoundElsewhere, forge(cnf={"x5t#S256": THIEF.thumbprint})),
    "thumbprint cut": Attack(TokenBoundElsewhere, forge(cnf={"x5t#S256": PEER.thumbprint[:-1]})),
    "thumbprint padded": Attack(TokenBoundElsewhere, forge(cnf={"x5t#S256": PEER.thumbprint + "="})),
    "thumbprint not ASCII": Attack(TokenBoundElsewhere, forge(cnf={"x5t#S256": "\u00e9" * 43})),
    "thumbprint with a lone surrogate": Attack(
        TokenMalformed, forge(payload=CLAIMS_JSON.replace(PEER.thumbprint.encode(), b"\\ud800"))
    ),
    "stolen": Attack(TokenBoundElsewhere, peer=THIEF),
    "no certificate": Attack(TokenWithoutCertificate, peer=None),
    "not bound, and no certificate": Attack(TokenNotBound, forge(cnf=GONE), peer=None),
}

MISSING = {
    f"no {name}": Attack(TokenClaimMissing, forge(**{name: GONE}))
    for name in ("iss", "sub", "aud", "client_id", "iat", "exp", "jti")
}

WRONG_TYPES = {
    f"{name} is {json.dumps(value).replace(PEER.thumbprint, 'thumbprint')[:20]}": Attack(
        TokenClaimMalformed, forge(**{name: value})
    )
    for names, values in {
        ("iss", "sub", "client_id", "jti"): (None, 7, True, "", ["x"], {"x": 1}, [ISSUER]),
        ("aud",): (None, 7, True, {"x": 1}, [AUDIENCE, 7], [[AUDIENCE]], {AUDIENCE: 1}),
        ("iat", "exp", "nbf"): (None, True, False, str(T + 60), [T + 60], {}, -1),
        ("scope",): (None, 7, True, ["agent:execute"], {"agent:execute": True}, " ", "a\tb"),
        ("cnf",): (None, 7, PEER.thumbprint, [{"x5t#S256": PEER.thumbprint}], True),
        ("act",): (None, 7, "actor", ["actor"], {}, {"sub": 7}, {"sub": ""}),
    }.items()
    for name in names
    for value in values
}

ATTACKS = STRUCTURE | HEADERS | SIGNATURES | CLAIM_VALUES | BINDING | MISSING | WRONG_TYPES


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_attack(attack: Attack) -> None:
    with pytest.raises(TokenError) as caught:
        validate(attack.token, peer=attack.peer, now=attack.now)
    assert type(caught.value) is attack.expected
    assert caught.value.status == 401
    assert caught.value.code == "invalid_token"
    assert len(str(caught.value)) < 2000


def test_every_attack_on_a_claim_reaches_the_claims() -> None:
    """Without this, a broken `forge` would let the signature check stand in for all of the others."""
    for attack in (CLAIM_VALUES | BINDING | MISSING | WRONG_TYPES).values():
        signed, _, last = attack.token.rpartition(".")
        raw = base64.urlsafe_b64decode(last + "==")
        value = encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
        P256.public_key().verify(value, signed.encode(), ec.ECDSA(hashes.SHA256()))


def malleated(text: str) -> str:
    """The other valid signature (r, n - s) of an ECDSA signature (r, s), which anyone can compute."""
    signed, _, last = text.rpartition(".")
    raw = base64.urlsafe_b64decode(last + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    return f"{signed}.{b64(raw[:32] + (order - int.from_bytes(raw[32:])).to_bytes(32))}"


def test_another_signature_of_a_revoked_token_is_revoked_too() -> None:
    validate(malleated(VALID))  # it is a valid signature; nothing may depend on there being only one
    with pytest.raises(TokenRevoked):
        validate(malleated(forge(jti="revoked")))


# The request around the token.

REQUESTS: dict[str, tuple[list[str | bytes], type[TokenError]]] = {
    "no header": ([], TokenMissing),
    "empty header": ([""], TokenMissing),
    "another scheme": (["Basic YTpi"], TokenMissing),
    "a token without a scheme": ([VALID], TokenMissing),
    "two headers": ([f"Bearer {VALID}", f"Bearer {VALID}"], TokenRequestMalformed),
    "two headers, one of another scheme": (["Basic YTpi", f"Bearer {VALID}"], TokenRequestMalformed),
    "two tokens in one header": ([f"Bearer {VALID}, Bearer {VALID}"], TokenRequestMalformed),
    "no token": (["Bearer"], TokenRequestMalformed),
    "quoted": ([f'Bearer "{VALID}"'], TokenRequestMalformed),
    "line end": ([f"Bearer {VALID}\r\nX-Admin: 1"], TokenRequestMalformed),
}


@pytest.mark.parametrize(("headers", "expected"), REQUESTS.values(), ids=REQUESTS)
def test_request(headers: list[str | bytes], expected: type[TokenError]) -> None:
    with pytest.raises(TokenError) as caught:
        presented_token(headers)
    assert type(caught.value) is expected


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_in_any_case(scheme: str) -> None:
    assert presented_token([f"{scheme} {VALID}".encode()]).token == VALID
