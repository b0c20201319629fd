"""One-time enrolment tokens: what they look like, and when one is good. Pure: time and secrets are arguments.

A token is `a2ae_ID_SECRET`. The CA keeps the ID, by which it finds the token, and a SHA-256 digest of the whole; the
secret has 256 random bits, so that a slow hash would protect nothing more. A token is bound to one SPIFFE ID and to its
DNS names when it is made; whoever has it chooses the key, and nothing else.

Whoever can write the CA's database, and has not its keys, makes no token by that. What a token is good for is signed by
the CA that issued when it was made, so no row can be made up or altered. And a token has one serial number, which
follows from its text: however often its row says that it was not used, the store takes no serial number twice.

Not prevented, but found: who has the text of a used token, and takes its certificate's row out of the database as well,
gets a second one while the token lives. Only the ledger knows better, and its entries are in the order of their coming:
to ask it would mean to read, at each use, all that was issued since the token was made, and to hash it, because an
index of it would be one more row to change. An audit names the entry whose certificate is gone.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa

from pki import keys, policy
from pki.errors import (
    EnrolmentTokenExpired,
    EnrolmentTokenForged,
    EnrolmentTokenMalformed,
    EnrolmentTokenUnknown,
    EnrolmentTokenUsed,
    KeyTypeRefused,
    LifetimeRefused,
    PolicyRefused,
)
from pki.records import TokenRecord
from pki.requests import PublicKey, Request
from pki.rules import Rules, spelled
from trust.clock import shown
from trust.errors import SignatureError
from trust.identity import AgentID
from trust.signing import jws

DEFAULT_VALIDITY = timedelta(minutes=30)
MAX_VALIDITY = timedelta(hours=24)
MIN_VALIDITY = timedelta(seconds=1)
ID_BYTES = 12  # random, too: nobody learns from an ID how many tokens there are
SECRET_BYTES = 32
CLOCK_SKEW = timedelta(minutes=1)  # between two instances of one CA, of which one makes a token and one burns it

SEAL_TYPE = "a2a-enrolment-token+jws"  # a typ of its own: no tree head and no message can stand for the seal of a token
_TEXT = re.compile(r"a2ae_([0-9a-f]{24})_([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentToken:
    """A token as its maker hands it on: the only moment at which its text is to be had."""

    text: str = field(repr=False)
    id: str  # public: in lists, in logs, and to cancel it by
    agent_id: AgentID
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentedToken:
    """What a caller presented, once it has the form of a token. The secret is gone already."""

    id: str
    digest: bytes = field(repr=False)


def spell(token_id: bytes, secret: bytes) -> str:
    """The text of a token, from `ID_BYTES` and `SECRET_BYTES` of randomness."""
    if len(token_id) != ID_BYTES or len(secret) != SECRET_BYTES:
        raise ValueError("a token has an ID of 12 bytes and a secret of 32")
    return f"a2ae_{token_id.hex()}_{secret.hex()}"


def parse(text: str) -> PresentedToken:
    """Read a token; whether it is one that was made is for `check` to say.

    Raises:
        EnrolmentTokenMalformed: it does not look like one. Nothing of it is repeated, for it may be almost right.
    """
    match = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise EnrolmentTokenMalformed(
            "enrolment token",
            got=f"{len(text)} characters" if isinstance(text, str) else type(text).__name__,
            expected="a2ae_, 24 and 64 hexadecimal digits",
            do="copy the whole token that `a2a-pki token` printed",
        )
    return PresentedToken(id=match[1], digest=hashlib.sha256(text.encode()).digest())


def check(presented: PresentedToken, record: TokenRecord | None, *, now: datetime) -> TokenRecord:
    """Return the token's record when it was made here and is within its life.

    1. It was made here, and not cancelled. A wrong secret is answered as an unknown token is, after the same work.
    2. It is within its life.

    Not checked here: whether it was used (`check_unused`), and two who use it at the same moment: the store burns it,
    for one of them.

    Args:
        record: what the store knows by the ID; None for nothing.

    Raises:
        EnrolmentTokenUnknown, EnrolmentTokenExpired: by the steps above.
    """
    # 1. Compared in constant time, and also where there is nothing to compare with.
    same = hmac.compare_digest(presented.digest, bytes(len(presented.digest)) if record is None else record.digest)
    if record is None or not same:
        raise EnrolmentTokenUnknown(
            "enrolment token",
            got=presented.id,
            expected="one that this CA has made",
            do="ask this CA's operator for a token, and give its whole text",
        )

    # 2. Both clocks are shown: where they differ, that is the reason.
    if not record.created_at - CLOCK_SKEW <= now < record.expires_at:
        raise EnrolmentTokenExpired(
            f"enrolment token {record.id}",
            got=f"{shown(now)} on the CA's clock",
            expected=f"a time from {shown(record.created_at)} to {shown(record.expires_at)}",
            do="ask for another token; compare the clocks where it should be good",
        )
    return record


def seal(record: TokenRecord, signer: keys.Signer, key_id: str) -> str:
    """What a CA says about a token: a detached JWS (RFC 7515 appendix F) over what it is good for.

    Args:
        key_id: the subject key identifier of the CA, lower-case hex.
    """
    return jws.sign_detached(_good_for(record), key=keys.private_key(signer), header={"typ": SEAL_TYPE, "kid": key_id})


def check_seal(record: TokenRecord, key_of: Callable[[str], ec.EllipticCurvePublicKey | None]) -> None:
    """Return for a token as a CA has made it.

    Not checked: whether it was used; that is not signed, and `serial` is what holds.

    Args:
        key_of: the key of a CA by its key id; None for one that does not vouch for tokens.

    Raises:
        EnrolmentTokenForged: somebody without such a key has written it, or some of it.
    """
    try:
        parsed = jws.parse_detached(record.seal, algorithms=("ES256", "ES384"), typ=SEAL_TYPE)
        kid = parsed.header.get("kid")
        key = key_of(kid) if isinstance(kid, str) else None
        if key is None:
            raise forged(record, f"a seal by {kid!r}")
        parsed.verify_payload(key, _good_for(record))
    except SignatureError as error:
        raise forged(record, error) from None


def forged(record: TokenRecord, got: object) -> EnrolmentTokenForged:
    return EnrolmentTokenForged(
        f"enrolment token {record.id} is in the database, and no CA has made it like that",
        got=got,
        expected="the seal of a CA that is not revoked",
        do="ask for another token, and run `a2a-pki ledger verify`",
    )


def serial(digest: bytes) -> int:
    """The serial number of the one certificate that a token is good for; from `TokenRecord.digest`.

    As random as the token's secret, which only its holder knows. RFC 5280 section 4.1.2.2: positive, of 20 octets.
    """
    return int.from_bytes(hashlib.sha256(b"a2a-pki serial" + digest).digest()[:20]) >> 1 | 1 << 158


def _good_for(record: TokenRecord) -> bytes:
    return json.dumps(
        [
            record.id,
            record.digest.hex(),
            record.spiffe_id,
            record.dns_names,
            int(record.lifetime.total_seconds()),
            int(record.created_at.timestamp()),
            int(record.expires_at.timestamp()),
        ]
    ).encode()


def check_unused(record: TokenRecord, *, key_digest: bytes) -> None:
    """Return for a token that nobody has used, or that was used for this very key.

    Args:
        key_digest: SHA-256 of the public key (SPKI) that wants the certificate.

    Raises:
        EnrolmentTokenUsed: it was used for another key.
    """
    if record.used_by is not None and not hmac.compare_digest(record.used_by, key_digest):
        raise used(record)


def used(record: TokenRecord) -> EnrolmentTokenUsed:
    """The refusal of a token that was used."""
    return EnrolmentTokenUsed(
        f"enrolment token {record.id}",
        got="one that was used" + (f" on {shown(record.used_at)}" if record.used_at else ""),
        expected="a new one",
        do="ask for another; if nobody of yours has used it, revoke what it was used for",
    )


def validity(valid_for: timedelta) -> timedelta:
    """Return how long a token is to live, if it is short.

    Raises:
        LifetimeRefused: not between a second and a day.
    """
    if not MIN_VALIDITY <= valid_for <= MAX_VALIDITY:
        got = spelled(valid_for)
        raise LifetimeRefused("life of the enrolment token", got=got, expected="from 1 second to 24 hours")
    return valid_for


def grantable(
    agent_id: AgentID, *, trust_domain: str, dns_names: Collection[str], lifetime: timedelta, rules: Rules | None
) -> tuple[str, ...]:
    """Return the DNS names, normalised, if a token for this ID could be used with any kind of key.

    Not checked: the key, which is not known yet; `policy.approve` is asked again when the token is used.

    Raises:
        IDRefused, NameRefused, LifetimeRefused, PolicyRefused: no certificate like this will be issued.
    """
    refusal: PolicyRefused | None = None
    for key in _SAMPLES:
        try:
            approved = policy.approve(
                Request(public_key=key, uris=()),
                agent_id,
                trust_domain=trust_domain,
                dns_names=dns_names,
                ip_addresses=(),
                lifetime=lifetime,
                rules=rules,
            )
        except KeyTypeRefused as error:
            refusal = error
        else:
            return approved.dns_names
    assert refusal is not None  # noqa: S101 - there are samples
    raise refusal


# A key of each kind that agents use. Only their kind matters.
_SAMPLES: tuple[PublicKey, ...] = (
    ec.derive_private_key(1, ec.SECP256R1()).public_key(),
    ec.derive_private_key(1, ec.SECP384R1()).public_key(),
    mldsa.MLDSA44PrivateKey.from_seed_bytes(bytes(32)).public_key(),
    mldsa.MLDSA65PrivateKey.from_seed_bytes(bytes(32)).public_key(),
    mldsa.MLDSA87PrivateKey.from_seed_bytes(bytes(32)).public_key(),
    ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key(),
)
