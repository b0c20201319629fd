"""DPoP (RFC 9449): who sends a token proves, with each request, that it has the key that the token is bound to.

For agents behind a proxy that ends TLS, where the certificate of a connection is the proxy's. `make_proof` is the
sender's side, `verify_proof` the receiver's. Pure, `new_proof` apart: time and identifiers are arguments, and a proof
is remembered by the guard that `Proof.remember` is given.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import httpx

from trust.clock import utc
from trust.errors import (
    AlgorithmRefused,
    ConfigurationError,
    ProofAlgorithmRefused,
    ProofForAnotherRequest,
    ProofForAnotherToken,
    ProofMalformed,
    ProofReplayed,
    ProofSignatureWrong,
    ProofTimeWrong,
    Replayed,
    SignatureError,
)
from trust.oauth.claims import ALGORITHMS, MAX_SKEW_SECONDS
from trust.oauth.keys import SigningKey
from trust.oauth.keys.jwks import key_of, thumbprint
from trust.replay import ReplayGuard, replay_key
from trust.signing import jws
from trust.signing.algorithms import PublicKey

HEADER = "DPoP"
TYPE = "dpop+jwt"
MAX_AGE_SECONDS = 60  # a proof is made for one request, and sent at once
ID_BYTES = 16
MAX_ID_CHARACTERS = 256
MAX_URL_CHARACTERS = 4096
KEPT_KEYS = 1024  # of callers; about 4 KiB each

_ESCAPED = re.compile(r"%[0-9A-Fa-f]{2}")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")  # RFC 3986 section 2.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A proof that was verified: who made it has the key with this thumbprint."""

    thumbprint: str  # of the key (RFC 7638): what `cnf.jkt` of a token must be
    proof_id: str
    issued_at: float  # seconds since the epoch

    def remember(self, guard: ReplayGuard, *, now: datetime) -> None:
        """Take the proof as received. Only what is otherwise right is to be remembered, or anyone could fill the guard.

        Raises:
            ProofReplayed: it was received before.
            ReplayGuardFull, ReplayStoreUnavailable: as the guard.
        """
        key = replay_key(self.thumbprint, TYPE, self.proof_id)
        expires_at = self.issued_at + MAX_AGE_SECONDS
        try:
            guard.remember(key, issued_at=self.issued_at, expires_at=expires_at, now=utc(now).timestamp())
        except Replayed as error:
            raise ProofReplayed(str(error)) from None


def make_proof(key: SigningKey, *, method: str, url: str, now: datetime, jti: str, token: str = "") -> str:
    """The value of a `DPoP` header for one request.

    Args:
        key: the one that the token is (to be) bound to.
        method, url: of the request; query and fragment are left out.
        now: aware.
        jti: unique, such as `secrets.token_urlsafe(16)`.
        token: the access token that the request carries; none in a request to a token endpoint.

    Raises:
        ConfigurationError: not the URL of a request.
    """
    target = _target(url)
    if target is None:
        raise ConfigurationError("URL of a DPoP proof", expected="an absolute http or https URL")
    public = {name: value for name, value in key.public_jwk.items() if name not in ("kid", "use", "alg")}
    claims: dict[str, Any] = {"jti": jti, "htm": method, "htu": target, "iat": int(utc(now).timestamp())}
    if token:
        claims["ath"] = _token_hash(token)
    header = {"typ": TYPE, "alg": key.alg, "jwk": public}
    payload = json.dumps(claims, separators=(",", ":")).encode()
    return jws.sign_compact(payload, key=key.private_key, header=header, passed_over=("jwk",))


def new_proof(key: SigningKey, method: str, url: str, *, now: datetime, token: str = "") -> str:
    """As `make_proof`, with an identifier of its own: for edges."""
    return make_proof(key, method=method, url=url, now=now, jti=secrets.token_urlsafe(ID_BYTES), token=token)


def verify_proof(proof: str, *, method: str, url: str, now: datetime, token: str = "") -> Proof:
    """Return who proved it, or raise: RFC 9449 section 4.3.

    1. one strict compact JWS, `typ` is dpop+jwt, `alg` asymmetric    ProofMalformed, ProofAlgorithmRefused
    2. `jwk` is one public key for that `alg`                         ProofMalformed
    3. the signature verifies with it                                 ProofSignatureWrong
    4. `jti`, `htm`, `htu` and `iat` are there, of the right types    ProofMalformed
    5. `htm` and `htu` are this request's                             ProofForAnotherRequest
    6. `iat` is at most 60 s ago, and at most 10 s ahead              ProofTimeWrong
    7. `ath` is the hash of this token                                ProofForAnotherToken

    NOT checked: whether the token is bound to this key (`TokenValidator`), whether the proof was received before
    (`Proof.remember`). There are no nonces of the server: a proof that was made in advance is good when its time comes.

    Args:
        proof: the value of the one `DPoP` header.
        method, url: of the request as it was addressed to us.
        now: aware.
        token: the access token that came with it; empty at a token endpoint, where there is none.
    """
    # 1.
    try:
        parsed = jws.parse_compact(proof, algorithms=ALGORITHMS, typ=TYPE, passed_over=("jwk",))
    except AlgorithmRefused as error:
        raise ProofAlgorithmRefused(str(error)) from None
    except SignatureError as error:
        raise ProofMalformed(str(error)) from None
    # 2.
    key, of_key = _key_of(parsed.header.get("jwk"), parsed.alg)
    # 3.
    try:
        payload = parsed.verify(key)
    except SignatureError as error:
        raise ProofSignatureWrong(str(error)) from None
    # 4.
    claims = _claims(payload)
    proof_id, issued_at = claims["jti"], claims["iat"]
    # 5.
    if claims["htm"] != method:
        raise ProofForAnotherRequest("method of the proof", got=claims["htm"], expected=method)
    target = _target(claims["htu"])
    if target is None or target != _target(url):
        expected = (_target(url) or "an absolute URL")[:200]  # the sender chose this one, too
        raise ProofForAnotherRequest("URL of the proof", got=claims["htu"], expected=expected)
    # 6.
    age = utc(now).timestamp() - issued_at
    if not -MAX_SKEW_SECONDS <= age < MAX_AGE_SECONDS:
        expected = f"{-MAX_SKEW_SECONDS} to {MAX_AGE_SECONDS} s"
        raise ProofTimeWrong("age of the proof", got=f"{age:.0f} s", expected=expected, do="compare both clocks")
    # 7.
    if token and claims.get("ath") != _token_hash(token):
        raise ProofForAnotherToken("proof is for another token", expected="ath, the hash of the token that came")
    return Proof(thumbprint=of_key, proof_id=proof_id, issued_at=issued_at)


def _claims(payload: bytes) -> dict[str, Any]:
    try:
        claims = jws.strict_json(payload)
    except SignatureError as error:
        raise ProofMalformed(str(error)) from None
    if not isinstance(claims, dict):
        raise ProofMalformed("payload of the proof", got=type(claims).__name__, expected="a JSON object")
    for name in ("jti", "htm", "htu"):
        value = claims.get(name)
        if not isinstance(value, str) or not value or len(value) > _MAX_CHARACTERS[name]:
            expected = f"a string of 1 to {_MAX_CHARACTERS[name]} characters"
            raise ProofMalformed(f"claim {name} of the proof", got=type(value).__name__, expected=expected)
    issued_at = claims.get("iat")
    if isinstance(issued_at, bool) or not isinstance(issued_at, int | float):
        raise ProofMalformed("claim iat of the proof", got=type(issued_at).__name__, expected="seconds")
    return claims


_MAX_CHARACTERS = {"jti": MAX_ID_CHARACTERS, "htm": 32, "htu": MAX_URL_CHARACTERS}


def _key_of(jwk: object, alg: str) -> tuple[PublicKey, str]:
    if not isinstance(jwk, dict):
        raise ProofMalformed("proof brings no key", got=type(jwk).__name__, expected="a public key in jwk")
    return _read_key(json.dumps(jwk, sort_keys=True), alg)


@lru_cache(maxsize=KEPT_KEYS)
def _read_key(text: str, alg: str) -> tuple[PublicKey, str]:
    """The public key of a JWK, and its thumbprint. What a key set refuses is refused here: private members, too."""
    jwk = json.loads(text)
    key = key_of(jwk)
    if key is None or alg not in key.algorithms:
        raise ProofMalformed("key of the proof", expected=f"one public key for {alg}, as a JWK")
    return key.public_key, thumbprint(jwk)


def _token_hash(token: str) -> str:
    return jws.encode(hashlib.sha256(token.encode("ascii")).digest())


def _target(url: str) -> str | None:
    """A URL without query and fragment in its normal form (RFC 3986 sections 6.2.2, 6.2.3); None where it is none."""
    try:
        parsed = httpx.URL(url).copy_with(query=None, fragment=None)
    except (httpx.InvalidURL, ValueError, TypeError):
        return None
    # Not `host`: httpx decodes it, and raises what is not a label of an international name (`xn--a`).
    if parsed.scheme not in ("http", "https") or not parsed.raw_host or parsed.userinfo:
        return None
    origin = f"{parsed.scheme}://{parsed.netloc.decode('ascii')}"
    return origin + _ESCAPED.sub(_normal, parsed.raw_path.decode("ascii"))


def _normal(escaped: re.Match[str]) -> str:
    character = chr(int(escaped[0][1:], 16))
    return character if _UNRESERVED.fullmatch(character) else escaped[0].upper()
