"""Access tokens: JWTs (RFC 9068) bound to a client certificate (RFC 8705), and nothing else.

`bearer_token` takes one from a request, `TokenValidator` says what it allows or raises, `sign_access_token` makes one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from trust.clock import utc
from trust.errors import (
    AlgorithmRefused,
    ConfigurationError,
    ScopeMalformed,
    SignatureError,
    TokenAlgorithmRefused,
    TokenAudienceWrong,
    TokenBoundElsewhere,
    TokenClaimMalformed,
    TokenClaimMissing,
    TokenError,
    TokenExpired,
    TokenIssuerWrong,
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
    TypeWrong,
)
from trust.identity import AgentID, PeerIdentity
from trust.oauth.keys import KeySource, SigningKey
from trust.oauth.scopes import parse_scope_list
from trust.signing import jws
from trust.signing.algorithms import PublicKey

MAX_LIFETIME = timedelta(minutes=30)  # a stolen or outdated token is good for no longer
MAX_SKEW_SECONDS = 10  # how far `iat` and `nbf` may be ahead, for clocks that differ (FAPI 2.0); `exp` gets nothing
MAX_ACTORS = 8  # delegations in one token; each hop of a chain of agents adds one
MAX_TIME = 253_402_300_799  # 9999-12-31T23:59:59Z, the last second that a datetime can hold
MAX_CACHED_TOKENS = 4096  # about 3 KiB each

# RS256 and the other RSASSA-PKCS1-v1_5 algorithms are missing on purpose, and there is no way to allow them.
ALGORITHMS = ("ES256", "ES384", "PS256", "Ed25519", "EdDSA")
TYPES = ("at+jwt", "application/at+jwt")  # RFC 9068 section 4

_AUTHORIZATION = re.compile(r"([A-Za-z]+)(?: +([A-Za-z0-9._~+/-]+=*))?")  # RFC 6750 section 2.1, the token optional
_REQUIRED_CLAIMS = frozenset({"iss", "exp", "aud", "sub", "client_id", "iat", "jti"})  # RFC 9068 section 2.2


class Denylist(Protocol):
    """Tokens that were revoked before their time. Asked on every use of a token: it must be quick."""

    def contains(self, issuer: str, jti: str) -> bool: ...


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
    thumbprint: str  # `cnf.x5t#S256`: of the one certificate that may use it
    actors: tuple[str, ...]  # subjects of `act`, outermost (current) first; only the first decides (RFC 8693 4.1)
    claims: Mapping[str, Any] = field(repr=False, compare=False)


def bearer_token(authorization: Sequence[str | bytes]) -> str:
    """The token of a request.

    Not checked: anything about the token itself but its characters.

    Args:
        authorization: the values of all `Authorization` headers of the request. Tokens in the body or the query are
            never looked at (RFC 9700 section 4.3.2).

    Raises:
        TokenMissing: no such header, or another scheme.
        TokenRequestMalformed: several headers, or not `Bearer` and one token (RFC 6750 section 2.1).
    """
    if not authorization:
        raise TokenMissing("no access token", expected="Authorization: Bearer <token>")
    if len(authorization) > 1:
        # Two readers of one request must not see two callers.
        raise TokenRequestMalformed("Authorization", got=f"{len(authorization)} headers", expected="exactly one")
    value = authorization[0]
    value = value.decode("latin-1") if isinstance(value, bytes) else value
    scheme = value.partition(" ")[0]
    if scheme.lower() != "bearer":
        raise TokenMissing("no access token", got="another scheme", expected="Authorization: Bearer <token>")
    match = _AUTHORIZATION.fullmatch(value)
    if not match or not match[2]:
        raise TokenRequestMalformed("Authorization", expected="Bearer, a space and one token")
    return match[2]


class VerifiedToken(NamedTuple):
    """A token that its issuer signed (checks 1 to 7 of `TokenValidator.validate`), and what later checks depend on."""

    token: AccessToken
    kid: str
    alg: str
    key: PublicKey
    issued_at: float  # seconds since the epoch, these three
    not_before: float
    expires: float


class TokenValidator:
    """Validates access tokens of one issuer for one resource.

    Remembers tokens that it has verified, so that one that comes with every request costs little; what can change
    (checks 3 and 10 to 12) is checked every time. Thread-safe.

    Not checked: scopes (`trust.oauth.scopes`), the peer's certificate itself (`trust.peers`), whether the request is
    a replay.

    Args:
        issuer: the exact `iss`.
        audience: this resource, as it must occur in `aud`, such as its SPIFFE ID.
        keys: the issuer's keys.
        algorithms: the ones accepted, of `ALGORITHMS`.
        max_lifetime: the longest `exp - iat` accepted.
        denylist: revoked tokens; None where tokens are only ever ended by their expiry.

    Raises:
        ConfigurationError: an empty issuer or audience, no algorithm or an unsafe one, no lifetime.
    """

    def __init__(
        self,
        *,
        issuer: str,
        audience: AgentID | str,
        keys: KeySource,
        algorithms: Collection[str] = ALGORITHMS,
        max_lifetime: timedelta = MAX_LIFETIME,
        denylist: Denylist | None = None,
    ) -> None:
        if not issuer or not str(audience):
            raise ConfigurationError("token validator", got="an empty issuer or audience", expected="both")
        if not algorithms or not set(algorithms) <= set(ALGORITHMS):
            raise ConfigurationError("token algorithms", got=list(algorithms), expected=f"some of {list(ALGORITHMS)}")
        if max_lifetime <= timedelta(0):
            raise ConfigurationError("lifetime of tokens", got=max_lifetime, expected="more than nothing")
        self._issuer = issuer
        self._audience = str(audience)
        self._keys = keys
        self._algorithms = tuple(algorithms)
        self._max_lifetime = max_lifetime.total_seconds()
        self._denylist = denylist
        self._cache: dict[bytes, VerifiedToken] = {}
        self._lock = threading.Lock()

    async def prepare(self, token: str, *, now: datetime) -> None:
        """Let the key source fetch what `validate` will need. A malformed token needs nothing.

        Raises:
            KeysUnavailable: the issuer's keys cannot be had.
        """
        try:
            known = self._cache.get(_digest(token))
            kid = known.kid if known is not None else _parse(token, self._algorithms).header.get("kid")
        except TokenError:
            return
        if isinstance(kid, str):
            await self._keys.prepare(kid, now=now)

    def validate(self, token: str, *, peer: PeerIdentity | None, now: datetime) -> AccessToken:
        """Return what the token allows, or raise.

         1. size, three parts, strict base64url and JSON, no duplicate members      TokenMalformed
         2. `typ` is that of an access token, `alg` is allowed, no `crit`,
            no key or address of one                  TokenTypeWrong, TokenAlgorithmRefused, TokenMalformed
         3. `kid` names a key of the issuer, for this `alg`       TokenMalformed, TokenKeyUnknown, KeysUnavailable
         4. the signature verifies                                                  TokenSignatureWrong
         5. the claims that RFC 9068 requires are there, of the right types         TokenClaimMissing, -Malformed
         6. `iss` is the issuer, exactly                                            TokenIssuerWrong
         7. `scope`, `act` and `cnf` are well formed; the token is bound            TokenClaimMalformed, TokenNotBound
         8. `aud` contains this resource                                            TokenAudienceWrong
         9. `exp - iat` is within the limit                                         TokenLifetimeTooLong
        10. it has not expired; `iat` and `nbf` have come          TokenExpired, TokenNotYetValid
        11. `cnf.x5t#S256` is the certificate of this peer         TokenWithoutCertificate, TokenBoundElsewhere
        12. it is not revoked                                                       TokenRevoked

        No claim is looked at before the signature has been verified.

        Args:
            token: the compact JWS, from `bearer_token`.
            peer: the verified other end of the connection that the token came over; None where it has no certificate.
            now: aware.
        """
        # 1. The size, before anything is made of the token.
        digest = _digest(token)
        verified = self._cache.get(digest)
        # 3. again: where the key was withdrawn or replaced since, the token is verified anew.
        if verified is None or self._keys.find(verified.kid, verified.alg, now=now) is not verified.key:
            verified = self._verify(token, now)
            self._remember(digest, verified)
        access = verified.token
        # 10.
        seconds = utc(now).timestamp()
        if seconds >= verified.expires:
            raise TokenExpired("token has expired", got=access.expires_at, expected=f"later than {now}", do="renew it")
        if seconds < verified.not_before:
            raise TokenNotYetValid(
                "token is not valid yet", got=access.issued_at, expected=f"not after {now}", do="compare both clocks"
            )
        # 11.
        if peer is None:
            raise TokenWithoutCertificate("token came without a certificate", expected="the one that it is bound to")
        if not hmac.compare_digest(access.thumbprint.encode(), peer.thumbprint.encode()):
            raise TokenBoundElsewhere(
                "token is bound to another certificate",
                got=access.thumbprint,
                expected=peer.thumbprint,
                do="get a new token with the current certificate",
            )
        # 12.
        if self._denylist is not None and self._denylist.contains(access.issuer, access.token_id):
            raise TokenRevoked("token was revoked", got=access.token_id)
        return access

    def _verify(self, token: str, now: datetime) -> VerifiedToken:
        # 1. to 7.
        verified = verified_token(token, issuer=self._issuer, keys=self._keys, algorithms=self._algorithms, now=now)
        access = verified.token
        # 8.
        if self._audience not in access.audience:
            raise TokenAudienceWrong("token is for another resource", got=access.audience, expected=self._audience)
        # 9.
        lifetime = verified.expires - verified.issued_at
        if lifetime > self._max_lifetime:
            raise TokenLifetimeTooLong(
                "token lives too long", got=f"{lifetime:.0f} s", expected=f"<= {self._max_lifetime:.0f} s"
            )
        return verified

    def _remember(self, digest: bytes, verified: VerifiedToken) -> None:
        with self._lock:
            self._cache.pop(digest, None)
            if len(self._cache) >= MAX_CACHED_TOKENS:
                del self._cache[next(iter(self._cache))]  # the oldest: the nearest to its expiry
            self._cache[digest] = verified


def verified_token(
    token: str, *, issuer: str, keys: KeySource, now: datetime, algorithms: Collection[str] = ALGORITHMS
) -> VerifiedToken:
    """A token that is an access token of this issuer: checks 1 to 7 of `TokenValidator.validate`.

    NOT checked: whom it is for, whether it is still valid, who presents it, whether it was revoked.

    Raises:
        TokenError: by the check that failed.
        KeysUnavailable: as `keys`.
    """
    _check_size(token)
    parsed = _parse(token, algorithms)
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
    if not claims.keys() >= _REQUIRED_CLAIMS:
        missing = ", ".join(sorted(_REQUIRED_CLAIMS - claims.keys()))
        raise TokenClaimMissing("token lacks claims", expected=missing)
    named, subject = _text(claims, "iss"), _text(claims, "sub")
    client_id, token_id = _text(claims, "client_id"), _text(claims, "jti")
    expires, issued_at = _seconds(claims, "exp"), _seconds(claims, "iat")
    starts = _seconds(claims, "nbf") if "nbf" in claims else issued_at
    audience = _audience(claims["aud"])
    # 6.
    if named != issuer:
        raise TokenIssuerWrong("issuer of the token", got=named, expected=issuer)
    # 7.
    access = AccessToken(
        issuer=issuer,
        subject=subject,
        client_id=client_id,
        audience=audience,
        scopes=_scopes(claims),
        token_id=token_id,
        issued_at=datetime.fromtimestamp(issued_at, UTC),
        expires_at=datetime.fromtimestamp(expires, UTC),
        thumbprint=_thumbprint(claims),
        actors=_actors(claims),
        claims=MappingProxyType(claims),
    )
    not_before = max(starts, issued_at) - MAX_SKEW_SECONDS
    return VerifiedToken(access, kid, parsed.alg, key, issued_at, not_before, expires)


def sign_access_token(claims: Mapping[str, Any], key: SigningKey) -> str:
    """The compact JWS of an access token (RFC 9068 section 2.1). The claims are the issuer's to get right.

    Raises:
        ConfigurationError: the token would be larger than validators take.
    """
    header = {"alg": key.alg, "typ": TYPES[0], "kid": key.kid}
    payload = json.dumps(dict(claims), separators=(",", ":"), allow_nan=False).encode()
    return jws.sign_compact(payload, key=key.private_key, header=header)


def _digest(token: str) -> bytes:
    """Of the whole text: another encoding of the same token is another entry, and is verified for itself."""
    _check_size(token)
    return hashlib.blake2b(token.encode(), digest_size=32).digest()


def _check_size(token: str) -> None:
    if not isinstance(token, str) or len(token) > jws.MAX_COMPACT_BYTES or not token.isascii():
        raise TokenMalformed("token", expected=f"a str of at most {jws.MAX_COMPACT_BYTES} ASCII characters")


def _parse(token: str, algorithms: Collection[str]) -> jws.Parsed:
    # 1. and 2.
    try:
        return jws.parse_compact(token, algorithms=algorithms, typ=TYPES, understood=())
    except TypeWrong as error:
        raise TokenTypeWrong(str(error)) from None
    except AlgorithmRefused as error:
        raise TokenAlgorithmRefused(str(error)) from None
    except SignatureError as error:
        raise TokenMalformed(str(error)) from None


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


def _thumbprint(claims: Mapping[str, Any]) -> str:
    """`cnf.x5t#S256` (RFC 8705 section 3.1); other confirmations (`jkt`, `jwk`) do not bind to a certificate."""
    if "cnf" not in claims:
        raise TokenNotBound("token is bound to nothing", expected="cnf with x5t#S256", do="get it over mutual TLS")
    confirmation = claims["cnf"]
    if not isinstance(confirmation, dict):
        raise TokenClaimMalformed("claim cnf", got=type(confirmation).__name__, expected="an object")
    if "x5t#S256" not in confirmation:
        raise TokenNotBound("token is not bound to a certificate", got=list(confirmation), expected="x5t#S256 in cnf")
    return _text(confirmation, "x5t#S256")


def _actors(claims: Mapping[str, Any]) -> tuple[str, ...]:
    """RFC 8693 section 4.1: the current actor outside, the ones before it nested within."""
    actors: list[str] = []
    holder: Mapping[str, Any] = claims
    while "act" in holder:
        holder = holder["act"]
        if not isinstance(holder, dict) or "sub" not in holder or len(actors) == MAX_ACTORS:
            raise TokenClaimMalformed("claim act", expected=f"at most {MAX_ACTORS} nested objects, each with a sub")
        actors.append(_text(holder, "sub"))
    return tuple(actors)
