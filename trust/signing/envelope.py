"""The `a2a` member of the protected header: who says it, to whom, when, about what, and once.

Shared by every kind of signed thing; the kinds differ in their `typ` and in what they bind (`Binding`). Steps (3)
and (6) to (8) of the verifier are here, the others in `trust.signing.jws`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from trust import replay
from trust.clock import utc
from trust.credentials import Credentials
from trust.errors import (
    AudienceMismatch,
    ConfigurationError,
    CriticalHeaderRefused,
    HeaderMalformed,
    IssuerMismatch,
    MessageExpired,
    MessageFromTheFuture,
    MessageLifetimeTooLong,
    SignatureError,
    SignerUnknown,
)
from trust.extension import ALGORITHMS
from trust.identity import AgentID, PeerIdentity, thumbprint
from trust.peers import MAX_CERTIFICATES, PeerVerifier, Usage
from trust.replay import ReplayGuard
from trust.signing import jws as strict_jws
from trust.signing.pinned import PinnedAgents, PinnedSigner
from trust.signing.targets import without_query

VERSION = 1
DEFAULT_LIFETIME = timedelta(seconds=60)
MAX_LIFETIME_SECONDS = 300  # replay guards remember a message for as long
LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z: no datetime is later
MAX_SKEW_SECONDS = 10  # how far the signer's clock may be ahead of ours
DEFAULT_ALGORITHMS = ALGORITHMS
MESSAGE_TYPE = "a2a-msg+jws"
RECEIPT_TYPE = "a2a-rcpt+jws"
IN_BODY = frozenset({MESSAGE_TYPE, RECEIPT_TYPE})  # inside JSON with all their certificates, not in a header line

_JTI = re.compile(r"[A-Za-z0-9_-]{22,128}", re.ASCII)  # 128 random bits have 22 characters of base64url
COMMON = frozenset({"v", "iss", "aud", "iat", "exp", "jti"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What one kind of message repeats of its surroundings, so that it cannot be moved into others.

    Args:
        typ: the kind; no message of one kind can stand for another.
        members: name and value of each member of `a2a` beside the common ones. A member whose value is None must be
            absent.
        content_type: the header `cty`, which must be absent where this is empty.
        mismatch: the error for a member that is not as expected.
        left: members of `a2a` that may be there and that the caller compares, for they depend on one another.
    """

    typ: str
    members: Mapping[str, object]
    content_type: str
    mismatch: type[SignatureError]
    left: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedMessage:
    """What was signed, together with who signed it: the bytes to use, so that nobody reads an unverified copy.

    Whether it was seen before is only known once a replay guard has taken `replay_key`.
    """

    payload: bytes = field(repr=False)
    signer: PeerIdentity | PinnedSigner
    header: dict[str, Any] = field(repr=False)
    message_id: str  # `jti`
    audience: str
    issued_at: datetime
    expires_at: datetime
    received_at: datetime  # the time that it was verified for
    digest: str  # base64url(SHA-256(compact JWS)): what an answer names
    jws: str = field(repr=False)
    replay_key: bytes = field(repr=False)

    def remember(self, guard: ReplayGuard) -> None:
        """Take it for received, once and for the time that it was verified for.

        Raises:
            Replayed, ReplayGuardFull, ReplayStoreUnavailable: as `ReplayGuard.remember`.
        """
        guard.remember(
            self.replay_key,
            issued_at=self.issued_at.timestamp(),
            expires_at=self.expires_at.timestamp(),
            now=self.received_at.timestamp(),
        )

    def evidence(self, *, credentials: Credentials, verifier: PeerVerifier, jti: str) -> bytes:
        """A bundle with our receipt, by which anybody can verify this later; as `trust.signing.evidence`."""
        from trust.signing.evidence import make_evidence  # it needs this module

        return make_evidence(self, credentials=credentials, verifier=verifier, jti=jti)


def sign(
    payload: bytes,
    *,
    credentials: Credentials,
    binding: Binding,
    audience: AgentID | str,
    now: datetime,
    jti: str,
    lifetime: timedelta,
    chain: bool,
) -> str:
    """Return the detached JWS of `payload`.

    Args:
        audience: the one receiver: its SPIFFE ID, or the origin URL of an agent outside any trust domain.
        jti: 22 to 128 characters of base64url, never used before: 128 random bits.
        lifetime: at most 300 s.
        chain: put our certificates into the header (`x5c`), for a receiver that does not have them from TLS.

    Raises:
        ConfigurationError: an argument that no verifier would accept.
    """
    seconds = int(lifetime.total_seconds())
    if not 0 < seconds <= MAX_LIFETIME_SECONDS:
        raise ConfigurationError("lifetime of a signature", got=lifetime, expected=f"1 to {MAX_LIFETIME_SECONDS} s")
    if not isinstance(jti, str) or not _JTI.fullmatch(jti):
        raise ConfigurationError("jti", got=jti, expected="22 to 128 characters of base64url")
    if not str(audience):
        raise ConfigurationError("audience of a signature is empty", expected="the receiver's SPIFFE ID")
    issued_at = int(utc(now).timestamp())
    claims = {
        "v": VERSION,
        "iss": str(credentials.agent_id),
        "aud": str(audience),
        "iat": issued_at,
        "exp": issued_at + seconds,
        "jti": jti,
        **{name: value for name, value in binding.members.items() if value is not None},
    }
    header = {"typ": binding.typ, "crit": ["a2a"], "x5t#S256": credentials.thumbprint, "a2a": claims}
    if binding.content_type:
        header["cty"] = binding.content_type
    if chain:
        header["x5c"] = _encoded(credentials.chain)
    return strict_jws.sign_detached(payload, key=credentials.private_key, header=header, in_body=binding.typ in IN_BODY)


@lru_cache(maxsize=16)  # one or two sign all that a process sends
def _encoded(chain: tuple[x509.Certificate, ...]) -> tuple[str, ...]:
    return tuple(base64.b64encode(certificate.public_bytes(Encoding.DER)).decode() for certificate in chain)


def verify(
    jws: str,
    payload: bytes | Callable[[], bytes],
    *,
    binding: Binding,
    audience: AgentID | str,
    verifier: PeerVerifier | PinnedAgents,
    peer: PeerIdentity | None,
    usage: Usage,
    now: datetime,
    algorithms: Collection[str] = DEFAULT_ALGORITHMS,
) -> VerifiedMessage:
    """Verify a detached JWS over `payload` and everything that it claims. The numbers are those of the wire format.

    (0) to (2) `jws.parse_detached`; `crit` is exactly `["a2a"]`
    (3) the certificate of `x5t#S256` is the peer's, or the first of `x5c`; its chain verifies at `now`. With
        `PinnedAgents`: `kid` is one of the pinned keys of the agent
    (4) and (5) the signature is by its key
    (6) `a2a` is version 1 with exactly the members of this kind, each of its type; `iss` is the ID of the certificate,
        or the one that the key is pinned for
    (7) `aud` is `audience`; `cty` and every bound member are what was really received
    (8) issued at most 10 s ahead of `now`, for at most 300 s, and not expired

    Not checked: whether the signer may say this (an authorizer), is the peer of the channel, or says it again (a
    replay guard).

    Args:
        payload: the bytes; or, where making them takes long, what makes them. It is called after step (3) only, and
            what it raises is raised.
        audience: ourselves, as `aud` must name us.
        peer: the other end of the channel, whose certificates need not travel in the header; None where there is no
            channel to the signer.
        usage: what the signer's certificate must be good for.

    Raises:
        SignatureError: its leaf classes name the check that failed.
        PeerError: step (3), the certificate of the signer. KeysUnavailable: its pinned keys have not been fetched.
    """
    now = utc(now)
    # (0) to (2)
    parsed = strict_jws.parse_detached(jws, algorithms=algorithms, typ=binding.typ, in_body=binding.typ in IN_BODY)
    header = parsed.header
    if header.get("crit") != ["a2a"]:
        # Without it, a verifier that does not know the binding would accept the message anywhere.
        raise CriticalHeaderRefused("crit of a message", got=header.get("crit"), expected='["a2a"]')
    # (3) Verified now, even where the handshake did it: a connection outlives certificates and CRLs.
    signer = (
        verifier.signer(header, parsed.alg, now=now)
        if isinstance(verifier, PinnedAgents)
        else verifier.verify(chain_of(header, peer), now=now, usage=usage)
    )
    # (4) and (5)
    if not isinstance(payload, bytes):
        payload = payload()
    parsed.verify_payload(signer.public_key, payload)
    # (6)
    claims = _claims(header["a2a"], binding)
    if claims["iss"] != str(signer.agent_id):
        raise IssuerMismatch("iss is not the signer", got=claims["iss"], expected=str(signer.agent_id))
    # (7)
    if claims["aud"] != str(audience):
        raise AudienceMismatch(
            "message is for another receiver", got=without_query(claims["aud"]), expected=without_query(audience)
        )
    _match("cty", header, binding.content_type or None, binding.mismatch)
    for name, expected in binding.members.items():
        _match(name, claims, expected, binding.mismatch)
    # (8)
    issued_at, expires_at = _times(claims, now.timestamp())
    return VerifiedMessage(
        payload=payload,
        signer=signer,
        header=header,
        message_id=claims["jti"],
        audience=claims["aud"],
        issued_at=datetime.fromtimestamp(issued_at, UTC),
        expires_at=datetime.fromtimestamp(expires_at, UTC),
        received_at=now,
        digest=digest(jws),
        jws=jws,
        replay_key=replay.replay_key(claims["iss"], claims["aud"], claims["jti"]),
    )


def digest(jws: str) -> str:
    """base64url(SHA-256) of a compact JWS: how an answer names its request. Never a key to anything (malleable)."""
    return strict_jws.encode(hashlib.sha256(jws.encode("ascii")).digest())


def is_message_id(jti: object) -> bool:
    """Whether it has the form of a `jti`."""
    return isinstance(jti, str) and _JTI.fullmatch(jti) is not None


def chain_of(header: Mapping[str, Any], peer: PeerIdentity | None) -> tuple[bytes, ...]:
    """The certificates that the header names. They are a claim: nothing has been verified.

    Raises:
        SignerUnknown: it names none, one that is not here, or another than `x5c` has.
        HeaderMalformed: `x5c` is no list of certificates.
    """
    name = header.get("x5t#S256")
    if not isinstance(name, str):
        raise SignerUnknown("message names no certificate", got=name, expected="x5t#S256")
    if peer is not None and peer.thumbprint == name:
        return peer.chain
    if "x5c" not in header:
        raise SignerUnknown(
            "certificate of the signer is not known",
            got=name,
            expected="the certificate of the channel, or x5c",
            do="sign with MessageSigner(chain=True) where a proxy ends TLS",
        )
    chain = _x5c(header["x5c"])
    if thumbprint(chain[0]) != name:
        raise SignerUnknown("x5c is another certificate's", got=thumbprint(chain[0]), expected=name)
    return chain


def _x5c(entries: object) -> tuple[bytes, ...]:
    """RFC 7515 section 4.1.6: base64, not base64url, of DER; the leaf first."""
    if (
        not isinstance(entries, list)
        or not 0 < len(entries) <= MAX_CERTIFICATES
        or not all(isinstance(entry, str) for entry in entries)
    ):
        raise HeaderMalformed("x5c", expected=f"a list of 1 to {MAX_CERTIFICATES} certificates")
    try:
        return tuple(base64.b64decode(entry, validate=True) for entry in entries)
    except ValueError:  # binascii.Error, and text outside ASCII
        raise HeaderMalformed("x5c", expected="base64 of DER certificates") from None


def _claims(claims: object, binding: Binding) -> dict[str, Any]:
    """Step (6), the form. A member that is not known here could be a restriction that is not enforced here."""
    if not isinstance(claims, dict):
        raise HeaderMalformed("a2a", got=type(claims).__name__, expected="a JSON object")
    if claims.get("v") != VERSION or claims["v"].__class__ is not int:
        raise HeaderMalformed("version of the a2a header", got=claims.get("v"), expected=str(VERSION))
    if unknown := claims.keys() - COMMON - binding.members.keys() - binding.left:
        raise HeaderMalformed("a2a", got=", ".join(sorted(unknown)), expected=f"only what {binding.typ} has")
    for name in ("iss", "aud"):
        text = claims.get(name)
        if not isinstance(text, str):
            raise HeaderMalformed(f"a2a.{name}", got=type(text).__name__, expected="a string")
    for name in ("iat", "exp"):
        seconds = claims.get(name)
        if seconds.__class__ is not int or not 0 <= seconds <= LAST_SECOND:
            raise HeaderMalformed(f"a2a.{name}", got=seconds, expected="whole seconds since 1970, before year 10000")
    if not is_message_id(claims.get("jti")):
        raise HeaderMalformed("a2a.jti", got=claims.get("jti"), expected="22 to 128 characters of base64url")
    return claims


def _match(name: str, signed: Mapping[str, Any], received: object, mismatch: type[SignatureError]) -> None:
    """Step (7): the member is what was received; absent where that is None."""
    value = signed.get(name)
    # The type too: 200.0 and true equal integers in Python, but are something else to other readers.
    if (name in signed) is (received is None) or value.__class__ is not received.__class__ or value != received:
        raise mismatch(f"{name} is not what was received", got=without_query(value), expected=without_query(received))


def _times(claims: Mapping[str, Any], now: float) -> tuple[int, int]:
    issued_at, expires_at = claims["iat"], claims["exp"]
    if expires_at <= issued_at:
        raise HeaderMalformed("a2a.exp", got=expires_at, expected=f"after iat, {issued_at}")
    if expires_at - issued_at > MAX_LIFETIME_SECONDS:
        raise MessageLifetimeTooLong(
            "message lives too long", got=f"{expires_at - issued_at} s", expected=f"at most {MAX_LIFETIME_SECONDS} s"
        )
    if issued_at > now + MAX_SKEW_SECONDS:
        raise MessageFromTheFuture(
            "message is from the future",
            got=f"{issued_at - now:.0f} s ahead",
            expected=f"at most {MAX_SKEW_SECONDS} s",
            do="compare the clocks",
        )
    if now >= expires_at:
        raise MessageExpired(
            "message has expired", got=f"{now - expires_at:.0f} s ago", expected="a fresh one", do="compare the clocks"
        )
    return issued_at, expires_at
