"""The signed list of an authorization server's revoked tokens, which agents keep a copy of (`trust.oauth.denylist`).

A compact JWS, signed by one of the keys that sign its access tokens, with a `typ` of its own:

    {"typ": "a2a-revoked+jwt", "alg": "ES256", "kid": "..."}
    {"iss": "https://auth.fleet.example", "iat": 1800000000, "exp": 1800000060, "seq": 7,
     "revoked": {"<jti>": <exp of that token>, ...}}

`revoked` has every revoked token that has not expired. `seq` grows with each revocation, so that of two lists it is
known which has seen more. After `exp` the list says nothing any more: who has no newer one cannot know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from trust.clock import utc
from trust.errors import DenylistIssuerWrong, DenylistMalformed, DenylistOutdated, DenylistTooLarge
from trust.json_text import NotStrictJson, parse, write
from trust.oauth.keys import KeySource, SigningKey
from trust.signing import jws

PATH = "/revoked"  # after the issuer
TYPE = "a2a-revoked+jwt"
MEDIA_TYPE = f"application/{TYPE}"
ALGORITHMS = ("ES256", "ES384", "Ed25519")  # what a `SigningKey` signs with

LIST_SECONDS = 60  # from `iat` to `exp`: how long agents go on while the server is away
MAX_LIST_SECONDS = 300  # of a list that is taken: no server makes itself superfluous for longer
MAX_SKEW_SECONDS = 10  # how far `iat` may be ahead, as with tokens
MAX_ENTRIES = 100_000  # 160 revocations a second for ten minutes
MAX_LIST_BYTES = 8 << 20  # of them with identifiers of 32 characters
MAX_SEQUENCE = 2**53 - 1  # the integers that JSON keeps

_MEMBERS = {"iss", "iat", "exp", "seq", "revoked"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedTokens:
    """A list. Times are seconds since the epoch."""

    issuer: str
    sequence: int
    issued_at: int
    expires_at: int
    tokens: Mapping[str, int] = field(repr=False)  # `exp` by `jti`


def sign_list(revoked: RevokedTokens, key: SigningKey) -> str:
    """The compact JWS of a list.

    Raises:
        DenylistTooLarge: more entries than agents take.
    """
    if len(revoked.tokens) > MAX_ENTRIES:
        raise DenylistTooLarge(
            "list of revoked tokens", got=f"{len(revoked.tokens)} entries", expected=f"at most {MAX_ENTRIES}"
        )
    payload = write(
        {
            "iss": revoked.issuer,
            "iat": revoked.issued_at,
            "exp": revoked.expires_at,
            "seq": revoked.sequence,
            "revoked": dict(revoked.tokens),
        }
    )
    header = {"alg": key.alg, "typ": TYPE, "kid": key.kid}
    return jws.sign_compact(payload, key=key.private_key, header=header, max_bytes=MAX_LIST_BYTES)


def key_id(text: str) -> str:
    """The `kid` that a list names; nothing of it is verified.

    Raises:
        DenylistMalformed, SignatureError: as `verified_list`.
    """
    return _parsed(text)[0]


def verified_list(text: str, *, issuer: str, keys: KeySource, now: datetime) -> RevokedTokens:
    """The list that the issuer signed, or raise.

    1. size, three parts, strict base64url, `typ`, `alg`, no key of its own                        SignatureError
    2. `kid` names a key of the issuer and the signature verifies  DenylistMalformed, TokenKeyUnknown, SignatureError
    3. strict JSON with exactly the five members, of the right types and within the bounds
                                                                                DenylistMalformed, DenylistTooLarge
    4. `iss` is the issuer                                                                       DenylistIssuerWrong
    5. `iat` has come, `exp` has not, and they are at most 5 minutes apart                          DenylistOutdated

    NOT checked: that it is as new as the one before (`trust.oauth.denylist` does).
    """
    # 1.
    kid, parsed = _parsed(text)
    # 2.
    payload = parsed.verify(keys.find(kid, parsed.alg, now=now))
    # 3.
    revoked = _read(payload)
    # 4.
    if revoked.issuer != issuer:
        raise DenylistIssuerWrong("list of revoked tokens", got=f"one of {revoked.issuer}", expected=issuer)
    # 5.
    seconds = utc(now).timestamp()
    if not revoked.issued_at - MAX_SKEW_SECONDS <= seconds < revoked.expires_at:
        raise DenylistOutdated(
            "list of revoked tokens",
            got=f"one from {revoked.issued_at} to {revoked.expires_at}",
            expected=f"one that is valid at {seconds:.0f}",
            do="compare both clocks",
        )
    return revoked


def _parsed(text: str) -> tuple[str, jws.Parsed]:
    parsed = jws.parse_compact(text, algorithms=ALGORITHMS, typ=TYPE, max_bytes=MAX_LIST_BYTES)
    kid = parsed.header.get("kid")
    if not isinstance(kid, str):
        raise DenylistMalformed("list of revoked tokens names no key", expected="a kid")
    return kid, parsed


def _read(payload: bytes) -> RevokedTokens:
    try:
        claims = parse(payload, max_bytes=MAX_LIST_BYTES, max_depth=2)
    except NotStrictJson as error:
        raise DenylistMalformed("list of revoked tokens", got=error, expected="strict JSON") from None
    if not isinstance(claims, dict) or claims.keys() != _MEMBERS:
        raise DenylistMalformed("list of revoked tokens", expected=f"an object of {', '.join(sorted(_MEMBERS))}")
    tokens = claims["revoked"]
    if not isinstance(tokens, dict) or not all(type(exp) is int and exp > 0 and jti for jti, exp in tokens.items()):
        raise DenylistMalformed("entries of the list of revoked tokens", expected="identifiers with their exp")
    if len(tokens) > MAX_ENTRIES:
        raise DenylistTooLarge("list of revoked tokens", got=f"{len(tokens)} entries", expected=f"<= {MAX_ENTRIES}")
    issued_at, expires_at, sequence = claims["iat"], claims["exp"], claims["seq"]
    if (
        not isinstance(claims["iss"], str)
        or not all(type(number) is int for number in (issued_at, expires_at, sequence))
        or not 0 <= sequence <= MAX_SEQUENCE
        or not 0 < expires_at - issued_at <= MAX_LIST_SECONDS
    ):
        raise DenylistMalformed(
            "list of revoked tokens", expected=f"seq >= 0 and exp at most {MAX_LIST_SECONDS} s after iat"
        )
    return RevokedTokens(
        issuer=claims["iss"], sequence=sequence, issued_at=issued_at, expires_at=expires_at, tokens=tokens
    )
