"""What an access token says (RFC 9068): `verified_token` reads one, `sign_access_token` writes one.

A token is bound to its holder: to a certificate (RFC 8705), or to a key of its own (DPoP, RFC 9449), or to both.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from trust.errors import (
    AlgorithmRefused,
    ScopeMalformed,
    SignatureError,
    TokenAlgorithmRefused,
    TokenClaimMalformed,
    TokenClaimMissing,
    TokenIssuerWrong,
    TokenMalformed,
    TokenNotBound,
    TokenSignatureWrong,
    TokenTypeWrong,
    TypeWrong,
)
from trust.oauth.keys import KeySource, SigningKey
from trust.oauth.metadata import APPROVED
from trust.oauth.scopes import parse_scope_list
from trust.signing import jws
from trust.signing.algorithms import PublicKey

MAX_SKEW_SECONDS = 10  # how far `iat` and `nbf` may be ahead, for clocks that differ (FAPI 2.0); `exp` gets nothing
MAX_ACTORS = 8  # delegations in one token; each hop of a chain of agents adds one
MAX_TIME = 253_402_300_799  # 9999-12-31T23:59:59Z, the last second that a datetime can hold

# RS256 is missing on purpose: FAPI 2.0 forbids it. `TokenValidator` has an argument for issuers that know no other.
ALGORITHMS = ("ES256", "ES384", "PS256", "Ed25519", "EdDSA")
TYPES = ("at+jwt", "application/at+jwt")  # RFC 9068 section 4

_REQUIRED_CLAIMS = ("iss", "exp", "aud", "sub", "client_id", "iat", "jti")  # RFC 9068 section 2.2


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """What a valid token says. It is shared by all requests that carry the token: do not change `claims`."""

    issuer: str
    subject: str
    client_id: str
    audience: tuple[str, ...]
    scopes: tuple[str, ...]  # as granted; what they mean is for `trust.oauth.scopes`
    token_id: str
    issued_at: datetime
    expires_at: datetime
    thumbprint: str  # `cnf.x5t#S256`: of the one certificate that may use it; empty where it is bound to a key only
    actors: tuple[str, ...]  # subjects of `act`, outermost (current) first; only the first decides (RFC 8693 4.1)
    claims: Mapping[str, Any] = field(repr=False, compare=False)
    key_thumbprint: str = ""  # `cnf.jkt`: of the one key that may prove the use of it (DPoP); empty where there is none

    @property
    def holder(self) -> str:
        """Whom the token was given to: the agent that acts now, or the subject where nobody acts for it."""
        return self.actors[0] if self.actors else self.subject

    @property
    def approved(self) -> bool:
        """Whether a person has approved the request that it was issued for, or that of a token it came from."""
        return self.claims.get("acr") == APPROVED


class VerifiedToken(NamedTuple):
    """A token that its issuer signed (checks 1 to 7 of `TokenValidator.validate`), and what later checks depend on."""

    token: AccessToken
    kid: str
    alg: str
    key: PublicKey
    issued_at: float  # seconds since the epoch, these three
    not_before: float
    expires: float


def verified_token(
    token: str,
    *,
    issuer: str,
    keys: KeySource,
    now: datetime,
    algorithms: Collection[str] = ALGORITHMS,
    types: tuple[str, ...] = TYPES,
) -> VerifiedToken:
    """A token that is an access token of this issuer: checks 1 to 7 of `TokenValidator.validate`.

    NOT checked: whom it is for, whether it is still valid, who presents it, whether it was revoked.

    Args:
        types: the `typ` that are accepted, where it is a JWT of another kind with the claims of an access token.

    Raises:
        TokenError: by the check that failed.
        KeysUnavailable: as `keys`.
    """
    parsed = parsed_token(token, algorithms, types)
    # 3.
    kid = parsed.header.get("kid")
    if not isinstance(kid, str):
        raise TokenMalformed("token names no key", expected="a kid")
    key = keys.find(kid, parsed.alg, now=now)
    # 4.
    try:
        payload = parsed.verify(key)
    except SignatureError as error:
        raise TokenSignatureWrong(str(error)) from None
    claims = _claims(payload)
    # 5.
    check_claims(claims, _REQUIRED_CLAIMS)
    named, subject = _text(claims, "iss"), _text(claims, "sub")
    client_id, token_id = _text(claims, "client_id"), _text(claims, "jti")
    expires, issued_at = _seconds(claims, "exp"), _seconds(claims, "iat")
    starts = _seconds(claims, "nbf") if "nbf" in claims else issued_at
    audience = _audience(claims["aud"])
    # 6.
    if named != issuer:
        raise TokenIssuerWrong("issuer of the token", got=named, expected=issuer)
    # 7.
    thumbprint, key_thumbprint = _confirmation(claims)
    access = AccessToken(
        issuer=issuer,
        subject=subject,
        client_id=client_id,
        audience=audience,
        scopes=_scopes(claims),
        token_id=token_id,
        issued_at=datetime.fromtimestamp(issued_at, UTC),
        expires_at=datetime.fromtimestamp(expires, UTC),
        thumbprint=thumbprint,
        actors=_actors(claims),
        claims=MappingProxyType(claims),
        key_thumbprint=key_thumbprint,
    )
    not_before = max(starts, issued_at) - MAX_SKEW_SECONDS
    return VerifiedToken(access, kid, parsed.alg, key, issued_at, not_before, expires)


def sign_access_token(claims: Mapping[str, Any], key: SigningKey, typ: str = TYPES[0]) -> str:
    """The compact JWS of an access token (RFC 9068 section 2.1). The claims are the issuer's to get right.

    Args:
        typ: of a JWT of another kind with the claims of an access token.

    Raises:
        ConfigurationError: the token would be larger than validators take.
    """
    header = {"alg": key.alg, "typ": typ, "kid": key.kid}
    payload = json.dumps(dict(claims), separators=(",", ":"), allow_nan=False).encode()
    return jws.sign_compact(payload, key=key.private_key, header=header)


def act_of(actors: Sequence[str]) -> dict[str, Any]:
    """The claim `act` (RFC 8693 section 4.1) of these actors, the current one first; no claim where nobody acts."""
    return {"act": {"sub": actors[0], **act_of(actors[1:])}} if actors else {}


def parsed_token(token: str, algorithms: Collection[str], types: tuple[str, ...] = TYPES) -> jws.Parsed:
    """Checks 1 and 2 of `TokenValidator.validate`: nothing in it is true yet.

    Raises:
        TokenMalformed, TokenTypeWrong, TokenAlgorithmRefused: by the check that failed.
    """
    try:
        return jws.parse_compact(token, algorithms=algorithms, typ=types, understood=())
    except TypeWrong as error:
        raise TokenTypeWrong(str(error)) from None
    except AlgorithmRefused as error:
        raise TokenAlgorithmRefused(str(error)) from None
    except SignatureError as error:
        raise TokenMalformed(str(error)) from None


def claimed_issuer(token: str, algorithms: Collection[str]) -> str:
    """The `iss` of a token as it stands there, unverified: good for choosing whose keys must verify it, and no more.

    Raises:
        TokenMalformed, TokenTypeWrong, TokenAlgorithmRefused: as `parsed_token`.
        TokenIssuerWrong: it names none.
    """
    issuer = _claims(parsed_token(token, algorithms).payload).get("iss")
    if not isinstance(issuer, str):
        raise TokenIssuerWrong("issuer of the token", got=type(issuer).__name__, expected="a string")
    return issuer


def check_claims(claims: Mapping[str, Any], required: Collection[str]) -> None:
    """That these claims are there, whatever they say.

    Raises:
        TokenClaimMissing: one is not.
    """
    for name in required:
        if name not in claims:
            missing = ", ".join(sorted(name for name in required if name not in claims))
            raise TokenClaimMissing("token lacks claims", expected=missing)


def _claims(payload: bytes) -> dict[str, Any]:
    try:
        claims = jws.strict_json(payload)
    except SignatureError as error:
        raise TokenMalformed(str(error)) from None
    if not isinstance(claims, dict):
        raise TokenMalformed("payload of the token", got=type(claims).__name__, expected="a JSON object")
    return claims


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims[name]
    if not isinstance(value, str) or not value:
        raise TokenClaimMalformed(f"claim {name}", got=type(value).__name__, expected="a string, not empty")
    return value


def _seconds(claims: Mapping[str, Any], name: str) -> float:
    """A NumericDate (RFC 7519 section 2). `True` is an int to Python, and not a time."""
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_TIME:
        raise TokenClaimMalformed(f"claim {name}", got=type(value).__name__, expected="seconds since the epoch")
    return value


def _audience(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise TokenClaimMalformed("claim aud", got=type(value).__name__, expected="a string or a list of strings")
    return tuple(value)


def _scopes(claims: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        return parse_scope_list(claims.get("scope", ""))
    except ScopeMalformed as error:
        raise TokenClaimMalformed(f"claim scope: {error}") from None


def _confirmation(claims: Mapping[str, Any]) -> tuple[str, str]:
    """`cnf`: its `x5t#S256` (RFC 8705 section 3.1) and its `jkt` (RFC 9449 section 6.1), empty where it has not both.

    Other confirmations, such as `jwk`, bind to nothing that is asked for here.
    """
    if "cnf" not in claims:
        raise TokenNotBound("token is bound to nothing", expected="cnf with x5t#S256", do="get it over mutual TLS")
    confirmation = claims["cnf"]
    if not isinstance(confirmation, dict):
        raise TokenClaimMalformed("claim cnf", got=type(confirmation).__name__, expected="an object")
    thumbprint = _text(confirmation, "x5t#S256") if "x5t#S256" in confirmation else ""
    key_thumbprint = _text(confirmation, "jkt") if "jkt" in confirmation else ""
    if not thumbprint and not key_thumbprint:
        raise TokenNotBound("token is bound to no certificate and no key", got=list(confirmation), expected="x5t#S256")
    return thumbprint, key_thumbprint


def _actors(claims: Mapping[str, Any]) -> tuple[str, ...]:
    """RFC 8693 section 4.1: the current actor outside, the ones before it nested within."""
    if "act" not in claims:  # most tokens
        return ()
    actors: list[str] = []
    holder: Mapping[str, Any] = claims
    while "act" in holder:
        holder = holder["act"]
        if not isinstance(holder, dict) or "sub" not in holder or len(actors) == MAX_ACTORS:
            raise TokenClaimMalformed("claim act", expected=f"at most {MAX_ACTORS} nested objects, each with a sub")
        actors.append(_text(holder, "sub"))
    return tuple(actors)
