"""Evidence: a signed message that can be verified later and elsewhere, with no network, by somebody who was not there.

A bundle is one JSON text:

    {"v": 1,
     "message": {"payload": <base64url of the exact bytes>,
                 "jws": "protected..signature",
                 "x5c": [<base64 of DER>, ...]},
     "crls": [<base64 of DER>, ...],
     "receipt": "protected..signature"}

The receipt is the receiver's detached JWS with the `typ` a2a-rcpt+jws over the RFC 8785 form of the rest of the bundle:
nothing can be taken out of it or put in. Its `iat` is the time of receipt, its `aud` the signer of the message, and its
member `msg` names the message: `{"jti": ..., "s256": <SHA-256 of its JWS>}`. It carries the receiver's certificates.

What it proves: the holder of the signer's key signed these bytes, for this receiver and purpose (the message's header
says which), while its certificate was valid; and the receiver states that they came at that time, when no CRL that it
had said that the certificate was revoked. Certificates may have expired since.

What it does NOT prove: that the message was true, or that its signer was allowed to send it; that the receiver acted on
it; and the time, to somebody who does not trust the receiver. A receiver who has got hold of a revoked key can make
both halves and date them back. Where that matters, have the bundle timestamped (RFC 3161) or archived by a third party
as soon as it is made, and compare that time with `VerifiedEvidence.revoked_since`.

Keep the trust bundle beside the evidence: a root that has left the bundle verifies nothing any more.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from trust import json_text
from trust.authorize import Authorizer
from trust.bundles import RevocationLists, TrustBundles
from trust.certificates import UNREADABLE
from trust.clock import shown, utc
from trust.credentials import Credentials
from trust.errors import (
    BindingMismatch,
    CertificateRevoked,
    ConfigurationError,
    EvidenceMalformed,
    HeaderMalformed,
    IdentityError,
    MessageFromTheFuture,
    PeerError,
    ReceiptMismatch,
    RevocationUnknown,
    SignatureMalformed,
    TrustError,
)
from trust.identity import AgentID, PeerIdentity
from trust.json_text import NotStrictJson
from trust.peers import MAX_CERTIFICATES, PeerVerifier, RevocationFacts, Usage
from trust.signing import envelope
from trust.signing import jws as strict_jws
from trust.signing.canonical import canonicalize_value
from trust.signing.envelope import DEFAULT_ALGORITHMS, MAX_SKEW_SECONDS, RECEIPT_TYPE, Binding, VerifiedMessage
from trust.signing.targets import origin_of

MAX_EVIDENCE_BYTES = 64 << 20  # a message of 16 MiB, and CRLs of some 100,000 entries
MAX_CRLS = 64  # one for each certificate of a path, and more where an issuer has several


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """What can be evidence: what the signer's certificate must be good for, and what `a2a` has beside COMMON."""

    usage: Usage
    required: frozenset[str]
    optional: frozenset[str] = frozenset()
    content_type: bool = True


_KINDS: dict[str, _Kind] = {
    "a2a-req+jws": _Kind(usage="client", required=frozenset({"htm", "htu"}), optional=frozenset({"ver", "ext"})),
    "a2a-res+jws": _Kind(usage="server", required=frozenset({"st", "req"})),
    "a2a-evt+jws": _Kind(
        usage="server",
        required=frozenset({"st", "req", "sid", "seq"}),
        optional=frozenset({"prev", "fin", "evt", "eid", "last"}),
    ),
    "a2a-push+jws": _Kind(usage="client", required=frozenset()),
    "a2a-msg+jws": _Kind(usage="client", required=frozenset({"kind"}), optional=frozenset({"rel"}), content_type=False),
}
_DEPTH = 32  # of JSON; the bundle has four levels
_BRACKETS = 4  # that open: the bundle is two objects and two lists, and no text in it has any
_COMMAS = 5 + MAX_CERTIFICATES + MAX_CRLS  # as many as it can have, and two more


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedEvidence:
    """What was signed, by whom, and who says that it came when (`message.received_at`)."""

    message: VerifiedMessage
    receiver: PeerIdentity
    revocation_checked: bool  # the receiver had current CRLs for every certificate of the signer's that needs one
    revoked_since: datetime | None  # the signer, after the receipt, by the CRLs that the verifier has
    receiver_revoked_since: datetime | None  # as above; whoever has its key can date a receipt back
    unheard: tuple[x509.CertificateRevocationList, ...]  # of the verifier's: other issuers', other keys', or unreadable


def make_evidence(message: VerifiedMessage, *, credentials: Credentials, verifier: PeerVerifier, jti: str) -> bytes:
    """The bundle for a message that we received, with our receipt; also `VerifiedMessage.evidence`.

    Args:
        message: as it was verified just now: the receipt has the time of that.
        credentials: ours, to which the message was addressed.
        verifier: the one that it was verified with, and that trusts our own domain; its CRLs are what we saw.
        jti: of the receipt: 128 random bits in base64url.

    Raises:
        ConfigurationError: the message is another agent's, or was verified with a pinned key; nobody would believe our
            certificate; or the bundle would be larger than 64 MiB.
        PeerError: the verifier refuses the signer by now.
    """
    if message.audience.startswith("spiffe://") and message.audience != str(credentials.agent_id):
        raise ConfigurationError("receipt", got=f"a message for {message.audience}", expected=str(credentials.agent_id))
    kind = _KINDS.get(message.header["typ"])
    if kind is None:
        raise ConfigurationError("receipt", got=f"for {message.header['typ']}", expected="for " + " or ".join(_KINDS))
    _check_audience(message.audience, ConfigurationError)
    now, usage, signer = message.received_at, kind.usage, _certified(message)
    _check_ours(credentials, verifier, now)
    verifier.verify(signer.chain, now=now, usage=usage)
    facts = verifier.revocation(signer, now=now, usage=usage)
    rest = {
        "v": 1,
        "message": {
            "payload": strict_jws.encode(message.payload),
            "jws": message.jws,
            "x5c": [base64.b64encode(der).decode() for der in signer.chain],
        },
        "crls": [base64.b64encode(crl.public_bytes(Encoding.DER)).decode() for crl in facts.crls],
    }
    receipt = envelope.sign(
        canonicalize_value(rest),
        credentials=credentials,
        binding=_receipt_binding(message.message_id, message.digest),
        audience=signer.agent_id,
        now=now,
        jti=jti,
        lifetime=timedelta(seconds=envelope.MAX_LIFETIME_SECONDS),
        chain=True,
    )
    bundle = canonicalize_value({**rest, "receipt": receipt})
    if len(bundle) > MAX_EVIDENCE_BYTES or len(facts.crls) > MAX_CRLS:
        raise ConfigurationError(
            "evidence would be too large",
            got=f"{len(bundle)} bytes with {len(facts.crls)} CRLs",
            expected=f"at most {MAX_EVIDENCE_BYTES} and {MAX_CRLS}",
            do="partition the CRLs",
        )
    return bundle


def verify_evidence(
    bundle: bytes,
    bundles: TrustBundles,
    *,
    at: datetime,
    crls: RevocationLists = RevocationLists(),  # noqa: B008
    receivers: Authorizer | None = None,
    algorithms: Collection[str] = DEFAULT_ALGORITHMS,
) -> VerifiedEvidence:
    """Verify a bundle, for the time of its receipt. No network, no replay guard, no clock.

    (1) the bundle has its form, and nothing else
    (2) the receipt is one of this very message, over all of this bundle, by a valid certificate
    (3) its time is not after `at`
    (4) the message verifies at the time of receipt (steps (0) to (6) and (8) of `envelope.verify`)
    (5) whoever signed the receipt is the receiver of the message
    (6) none of the certificates of both was revoked at or before the time of receipt, by the bundle's CRLs or `crls`;
        what of `crls` says nothing about them is in `VerifiedEvidence.unheard`

    NOT checked: what the docstring of the module says; and step (7), what the message was bound to (`htm`, `htu` and so
    on): there is nothing to compare it with. `VerifiedEvidence.message.header["a2a"]` tells.

    Args:
        bundles: the trust of the time of receipt: with the roots of then.
        at: the time of the question, or a time at which the bundle is known to have existed.
        crls: what is known today, old lists included. A revocation before the receipt refuses, whenever it got known.
        receivers: who may have received a message that is for a URL; otherwise its receiver is the agent it is for.

    Raises:
        EvidenceMalformed: step (1).
        ReceiptMismatch: the receipt is another message's or agent's; MessageFromTheFuture: step (3).
        CertificateRevoked: step (6). PeerError: a certificate, in the other ways.
        SignatureError: its other leaf classes name the check of the message or the receipt that failed.
        ConfigurationError: `receivers` is missing for a message that is for a URL.
    """
    # (1)
    rest, jws, payload, chain, seen, receipt = _read(bundle)
    claimed = strict_jws.parse_detached(jws, algorithms=algorithms, typ=tuple(_KINDS), in_body=True).header
    binding = _binding_of(claimed)
    claims = claimed["a2a"]
    # (2) The time that the receipt names is not true yet; it is when its signature has verified for that time.
    received_at = _time_of(receipt, algorithms)
    verifier = PeerVerifier(bundles)  # revocations are looked at last, by their dates
    acknowledged = envelope.verify(
        receipt,
        canonicalize_value(rest),
        binding=_receipt_binding(claims.get("jti"), envelope.digest(jws)),
        audience=str(claims.get("iss")),
        verifier=verifier,
        peer=None,
        usage="server",
        now=received_at,
        algorithms=algorithms,
    )
    # (3)
    if received_at - timedelta(seconds=MAX_SKEW_SECONDS) > utc(at):
        raise MessageFromTheFuture("receipt is later than the time that is asked about", got=shown(received_at))
    # (4)
    usage = _KINDS[binding.typ].usage
    claimed_signer = verifier.verify(chain, now=received_at, usage=usage)
    message = envelope.verify(
        jws,
        payload,
        binding=binding,
        audience=str(claims.get("aud")),
        verifier=verifier,
        peer=claimed_signer,
        usage=usage,
        now=received_at,
        algorithms=algorithms,
    )
    author, witness = _certified(message), _certified(acknowledged)
    found, expected = claimed_signer.thumbprint, author.thumbprint
    if found != expected:
        raise EvidenceMalformed("x5c is not the signer's", got=found, expected=expected)
    # (5)
    _check_receiver(witness, message.audience, receivers)
    # (6) Nothing is required of the CRLs, as the receiver may not have required it; one that has ended still tells.
    seen = _of_issuers(seen, (*author.chain, *witness.chain))
    known = RevocationLists((*seen, *crls.crls), required_in=frozenset())
    everything = PeerVerifier(bundles, known, previous=verifier)
    signer = _not_revoked(everything, author, received_at, usage)
    receiver = _not_revoked(everything, witness, received_at, "server")
    then = PeerVerifier(bundles, RevocationLists(seen), previous=everything)  # which has read them already
    return VerifiedEvidence(
        message=message,
        receiver=witness,
        revocation_checked=then.revocation(author, now=received_at, usage=usage).known,
        revoked_since=signer.revoked_since,
        receiver_revoked_since=receiver.revoked_since,
        unheard=tuple(crl for crl in crls.crls if id(crl) not in signer.heard | receiver.heard),
    )


def _certified(message: VerifiedMessage) -> PeerIdentity:
    if isinstance(message.signer, PeerIdentity):
        return message.signer
    raise ConfigurationError(
        "receipt",
        got="a message that a pinned key has signed",
        expected="a signer with a certificate: nobody else could tell later whose the key was",
    )


def _check_ours(credentials: Credentials, verifier: PeerVerifier, now: datetime) -> None:
    try:
        verifier.verify(credentials.chain_der, now=now, usage="server")
    except RevocationUnknown:
        return  # a receipt needs no CRLs of ours
    except PeerError as error:
        raise ConfigurationError(
            "receipt would not be believed", got=error, expected="credentials that verify as a server's"
        ) from None


def _receipt_binding(jti: object, digest: str) -> Binding:
    members = {"msg": {"jti": jti, "s256": digest}}
    return Binding(typ=RECEIPT_TYPE, members=members, content_type="", mismatch=ReceiptMismatch)


def _binding_of(header: dict[str, Any]) -> Binding:
    """What the message says that it is bound to: evidence shows it, and has nothing to compare it with."""
    claims, content_type = header.get("a2a"), header.get("cty", "")
    if not isinstance(claims, dict) or not isinstance(content_type, str):
        raise HeaderMalformed("header of the message", expected="an object a2a, and cty a string")
    kind = _KINDS[header["typ"]]
    members = {name: value for name, value in claims.items() if name not in envelope.COMMON}
    if not kind.required <= members.keys() <= kind.required | kind.optional:
        raise HeaderMalformed(
            "a2a", got=", ".join(members), expected=", ".join(sorted(kind.required)) + " and nothing unknown"
        )
    if "cty" in header and not kind.content_type:
        raise HeaderMalformed("cty", got=content_type, expected=f"none in {header['typ']}")
    _check_audience(claims.get("aud"), HeaderMalformed)
    return Binding(typ=header["typ"], members=members, content_type=content_type, mismatch=EvidenceMalformed)


def _check_audience(audience: object, refusal: type[TrustError]) -> None:
    """One receiver, as a verifier that met the message would name itself."""
    text = str(audience)
    try:
        AgentID.parse(text) if text.startswith("spiffe://") else origin_of(text)
    except (IdentityError, BindingMismatch):
        raise refusal(
            "aud", got=text, expected="a SPIFFE ID, or the URL of an agent outside any trust domain"
        ) from None


def _of_issuers(
    crls: tuple[x509.CertificateRevocationList, ...], chain: Iterable[bytes]
) -> tuple[x509.CertificateRevocationList, ...]:
    """Without the lists of others: reading all their entries takes long, and says nothing."""
    issuers = {x509.load_der_x509_certificate(der).issuer for der in chain}
    return tuple(crl for crl in crls if _issuer(crl) in issuers)


def _issuer(crl: x509.CertificateRevocationList) -> x509.Name | None:
    try:
        return crl.issuer
    except UNREADABLE:
        return None


def _time_of(receipt: str, algorithms: Collection[str]) -> datetime:
    header = strict_jws.parse_detached(receipt, algorithms=algorithms, typ=RECEIPT_TYPE, in_body=True).header
    claims = header.get("a2a")
    seconds = claims.get("iat") if isinstance(claims, dict) else None
    try:
        if seconds.__class__ is not int:
            raise ValueError
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise HeaderMalformed("a2a.iat of the receipt", got=seconds, expected="whole seconds since 1970") from None


def _check_receiver(receiver: PeerIdentity, audience: str, receivers: Authorizer | None) -> None:
    if audience.startswith("spiffe://"):
        if str(receiver.agent_id) != audience:
            raise ReceiptMismatch("receipt is not the receiver's", got=receiver.agent_id, expected=audience)
    elif receivers is None:
        raise ConfigurationError("receivers", expected=f"who may receive for {audience}", do="pass receivers=exactly()")
    else:
        receivers.check(receiver.agent_id)


def _not_revoked(verifier: PeerVerifier, agent: PeerIdentity, received_at: datetime, usage: Usage) -> RevocationFacts:
    facts = verifier.revocation(agent, now=received_at, usage=usage)
    since = facts.revoked_since
    if since is not None and since <= received_at:
        raise CertificateRevoked(
            "certificate was revoked before the message was received",
            got=f"{agent.agent_id}, since {shown(since)}",
            expected=f"not before {shown(received_at)}",
        )
    return facts


def _read(
    bundle: bytes,
) -> tuple[dict[str, Any], str, bytes, list[bytes], tuple[x509.CertificateRevocationList, ...], str]:
    """Step (1): what the receipt is over, and the parts."""
    if bundle.count(b"{") + bundle.count(b"[") > _BRACKETS or bundle.count(b",") > _COMMAS:  # before any of it is read
        raise EvidenceMalformed(
            "evidence", got="more brackets or commas", expected="an object of exactly v, message, crls, receipt"
        )
    try:
        document = json_text.parse(bundle, max_bytes=MAX_EVIDENCE_BYTES, max_depth=_DEPTH)
    except NotStrictJson as error:
        raise EvidenceMalformed("evidence", got=error, expected="strict JSON (RFC 7493)") from None
    document = _members(document, "evidence", "v", "message", "crls", "receipt")
    if document["v"] != 1 or document["v"].__class__ is not int:
        raise EvidenceMalformed("version of the evidence", got=document["v"], expected="1")
    message = _members(document["message"], "message of the evidence", "payload", "jws", "x5c")
    receipt, jws, payload = document.pop("receipt"), message["jws"], message["payload"]
    if not all(isinstance(text, str) for text in (receipt, jws, payload)):
        raise EvidenceMalformed("evidence", expected="strings for payload, jws and receipt")
    chain = _ders(message["x5c"], "x5c", range(1, MAX_CERTIFICATES + 1))
    try:
        ders = _ders(document["crls"], "crls", range(MAX_CRLS + 1))
        seen = tuple(x509.load_der_x509_crl(der) for der in ders)
        return document, jws, strict_jws.decode(payload), chain, seen, receipt
    except (ValueError, x509.InvalidVersion, SignatureMalformed):
        raise EvidenceMalformed("evidence", expected="CRLs in crls, and base64url in payload") from None


def _members(value: object, what: str, *names: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != set(names):
        raise EvidenceMalformed(what, expected="an object of exactly " + ", ".join(names))
    return value


def _ders(values: object, name: str, count: range) -> list[bytes]:
    if not isinstance(values, list) or len(values) not in count or not all(isinstance(v, str) for v in values):
        raise EvidenceMalformed(name, expected=f"a list of {count.start} to {count.stop - 1} strings")
    try:
        return [base64.b64decode(value, validate=True) for value in values]
    except ValueError:  # binascii.Error, and text outside ASCII
        raise EvidenceMalformed(name, expected="base64 of DER") from None
