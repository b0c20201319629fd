"""Signatures inside JSON, for queues, stored tasks and relays that read a message and write it again.

Signed is the canonical form (`trust.signing.proto_json`) of a Message, Artifact, Task or update event, without its
member `metadata["urn:a2a-trust:message-signature:v1"]`, which holds the signatures:

    {"signatures": [{"protected": "...", "signature": "..."}, ...]}

To verify with another library: take the member out (and `metadata`, where nothing else is in it), bring the object into
the canonical form, and put base64url of that between `protected` and `signature`.

The protected header is that of the wire format with the `typ` a2a-msg+jws. Beside the common ones, `a2a` has two
members of its own: `kind`, such as "Message", because an object does not say what it is; and, in the signature of a
relay, `rel`: `{"jti": ..., "s256": ...}` of the signature that it passes on. So an author's signature cannot be moved
to an object of another kind, and a relay's can neither pass for an author's nor vouch for another author's.

A signature names its certificate, which travels with it (`x5t#S256`, `x5c`); or, for a receiver that has pinned the
signer's keys (`trust.signing.pinned`), its key (`kid`) and no certificate. One object can carry both kinds. There is
room for post-quantum signatures: whoever has an ML-DSA-44 or -65 key makes them, and a verifier whose `algorithms` name
them reads them.

A signature covers the object with all that is inside. Objects within it (a Task's history and artifacts, the message of
a status) are content: they may carry signatures of their own, which are covered as they stand and are verified only by
calling `verify_message` for that object. NOT covered: what is around the object (the JSON-RPC envelope, the request
that it answers, its place in a queue, headers), and that anything was received at all. What an SDK's server writes into
a message (`taskId`, `contextId`) breaks its signature: set them before signing, or verify in front of the SDK.

a2a-sdk's objects go through their JSON: `sign_message(MessageToDict(message), "Message", ...)` and back with
`ParseDict(signed, Message())`, both of `google.protobuf.json_format`.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from trust import json_text
from trust.authorize import Authorizer, allows
from trust.credentials import Credentials
from trust.errors import (
    AuthorUnclear,
    BindingMismatch,
    CanonicalizationError,
    ConfigurationError,
    IdentityError,
    MessageNotPortable,
    SignatureError,
    SignatureMalformed,
    SignatureMissing,
)
from trust.extension import URI as EXTENSION
from trust.identity import AgentID
from trust.json_text import NotStrictJson
from trust.peers import PeerVerifier
from trust.replay import ReplayGuard
from trust.signing import envelope
from trust.signing import jws as strict_jws
from trust.signing.canonical import MAX_BYTES, MAX_DEPTH, canonicalize_value, outside_strings
from trust.signing.envelope import DEFAULT_ALGORITHMS, DEFAULT_LIFETIME, MESSAGE_TYPE, Binding, VerifiedMessage
from trust.signing.pinned import PinnedAgents
from trust.signing.proto_json import KINDS, Kind, canonical_form

MAX_SIGNATURES = 8  # an author, a few relays; each is one verification, and as many certificates
MAX_CONTAINERS = 100_000  # objects and lists; three bytes of text each, but 240 bytes of memory and 2 us of work
MAX_VALUES = 200_000  # with what is in them; two bytes of text each, but up to 5 us of work


def sign_message(
    message: dict[str, Any] | bytes,
    kind: Kind,
    *,
    credentials: Credentials,
    audience: AgentID | str,
    now: datetime,
    jti: str,
    relaying: VerifiedMessage | None = None,
    lifetime: timedelta = DEFAULT_LIFETIME,
) -> dict[str, Any]:
    """Sign an A2A object for one receiver; returns it in the canonical form, with this signature beside earlier ones.

    Sent on must be what is returned: other spellings in the original have been brought into the form.

    Args:
        message: the object, as JSON text or out of a JSON parser. Its earlier signatures are kept, and not verified.
        kind: "Message", "Artifact", "Task", "TaskStatusUpdateEvent" or "TaskArtifactUpdateEvent".
        audience: the receiver's SPIFFE ID, or the origin URL of an agent outside any trust domain.
        jti: 128 random bits in base64url.
        relaying: for a relay: what `verify_message` returned for the signature that it passes on, the author's or
            another relay's (verified with the final receiver as its audience, where it is for that one).
        lifetime: how long the receiver may take the signature for fresh; at most 300 s. What waits longer in a queue
            is kept as evidence (`trust.signing.evidence`), or signed again.

    Raises:
        MessageNotPortable: a part of the message would not survive its way.
        CanonicalizationError: it is not strict JSON, or has more than 100,000 objects and lists, or 200,000 values.
        SignatureMalformed: what is in the place of its signatures is none.
        ConfigurationError: an argument that no verifier would accept; a message other than the one that is relayed;
            more than 8 signatures.
    """
    value, signatures = _read(message, kind)
    payload = canonical_form(kind, value)
    if relaying is not None and not _passes_on(relaying, payload, signatures):
        raise ConfigurationError(
            "message is not the one that is relayed", expected="what was verified", do="leave it as it was"
        )
    if len(signatures) >= MAX_SIGNATURES:
        raise ConfigurationError("message has too many signatures", expected=f"at most {MAX_SIGNATURES}")
    jws = envelope.sign(
        payload,
        credentials=credentials,
        binding=_binding(kind, relaying),
        audience=audience,
        now=now,
        jti=jti,
        lifetime=lifetime,
        chain=True,  # who reads it later has no channel to have the certificates from
    )
    signed: dict[str, Any] = json_text.parse(payload, max_bytes=MAX_BYTES, max_depth=MAX_DEPTH)
    signed.setdefault("metadata", {})[EXTENSION] = {"signatures": [_entry(text) for text in (*signatures, jws)]}
    return signed


def authenticate_message(
    message: dict[str, Any] | bytes,
    kind: Kind,
    *,
    audience: AgentID | str,
    verifier: PeerVerifier | PinnedAgents,
    now: datetime,
    signers: Authorizer,
    relayed: VerifiedMessage | None = None,
    algorithms: Collection[str] = DEFAULT_ALGORITHMS,
) -> VerifiedMessage:
    """Verify the one signature of an A2A object that is an allowed signer's, for this receiver.

    (0) the object is strict JSON of at most 100,000 objects and lists, and 200,000 values; it carries 1 to 8 signatures
    (a) of several, exactly one claims to be for `audience`, by one of `signers`, as an author (or as the relay of
        `relayed`). The others are not looked at: each signature is verified by itself, by whom it is meant for.
    (1) to (3) `envelope.verify`: the certificate or key. Before it, nothing is done that takes long.
    (b) the object has a canonical form; with `relayed`, it is the one that was relayed, and carries that signature
    (4) to (8) `envelope.verify`, over the canonical form
    (9) `signers` allows the signer

    NOT checked: whether it was received before; `verify_message` does. For what is read more than once, a stored task
    for instance, this is the function; `now` is then the time when it was stored, which evidence proves.

    Args:
        message: the object, as JSON text (best, for then duplicate members are refused) or out of a JSON parser.
        kind: which object is expected.
        verifier: whom we trust: by certificates, or `PinnedAgents` by their keys. Signatures of the other sort are not
            for it.
        audience: ourselves; for a relay that verifies what is for somebody else, that receiver.
        signers: who may be the author (or, with `relayed`, the relay). With one agent in it, nobody can stand in.
        relayed: what this function returned for this object before: verify the signature of the relay that passed
            that one on.

    Returns:
        The payload is the object in its canonical form, without the signatures: read that, not the original.

    Raises:
        MessageNotPortable, CanonicalizationError: steps (0) and (b), the object.
        BindingMismatch: it is another object than was relayed, or one of another kind or role.
        SignatureMissing, AuthorUnclear: there is no signature; there are several, and not one that fits.
        SignatureError: its other leaf classes name the check that failed.
        PeerError: the certificate of the signer; PeerNotAllowed: it is not one of `signers`.
        KeysUnavailable: the pinned keys of the signer have not been fetched.
    """
    # (0)
    value, signatures = _read(message, kind)
    # (a)
    binding = _binding(kind, relayed)
    jws = _choose(signatures, binding, audience, signers, algorithms, verifier)

    # (b)
    def payload() -> bytes:
        form = canonical_form(kind, value)
        if relayed is not None and not _passes_on(relayed, form, signatures):
            raise BindingMismatch("message is not the one that was relayed", expected="that, with its signature")
        return form

    # (1) to (8)
    verified = envelope.verify(
        jws,
        payload,
        binding=binding,
        audience=audience,
        verifier=verifier,
        peer=None,
        usage="client",  # it speaks for itself; a certificate for TLS servers alone does not make an author
        now=now,
        algorithms=algorithms,
    )
    # (9)
    signers.check(verified.signer.agent_id)
    return verified


def verify_message(
    message: dict[str, Any] | bytes,
    kind: Kind,
    *,
    audience: AgentID | str,
    verifier: PeerVerifier | PinnedAgents,
    now: datetime,
    signers: Authorizer,
    replay: ReplayGuard,
    relayed: VerifiedMessage | None = None,
    algorithms: Collection[str] = DEFAULT_ALGORITHMS,
) -> VerifiedMessage:
    """As `authenticate_message`, and the message was not received before.

    Args:
        replay: remembers the signature's `jti`; only after everything else has passed.

    Raises:
        Replayed, ReplayGuardFull: from the guard; and what `authenticate_message` raises.
    """
    verified = authenticate_message(
        message,
        kind,
        audience=audience,
        verifier=verifier,
        now=now,
        signers=signers,
        relayed=relayed,
        algorithms=algorithms,
    )
    verified.remember(replay)
    return verified


def _read(message: dict[str, Any] | bytes, kind: Kind) -> tuple[dict[str, Any], list[str]]:
    """An object without its signatures, and these, each as a detached JWS."""
    if kind not in KINDS:
        raise ConfigurationError("kind of a message", got=kind, expected=" or ".join(KINDS))
    data = message if isinstance(message, bytes) else canonicalize_value(message)
    _check_count(data)
    try:  # also of a value: what it is made of may be changed by others while it is read
        value = json_text.parse(data, max_bytes=MAX_BYTES, max_depth=MAX_DEPTH)
    except NotStrictJson as error:
        raise CanonicalizationError("message", got=error, expected="strict JSON (RFC 7493)") from None
    if not isinstance(value, dict):
        raise MessageNotPortable("message", got=type(value).__name__, expected=f"a {kind}, a JSON object")
    metadata = value.get("metadata")
    carried = metadata.pop(EXTENSION, None) if isinstance(metadata, dict) else None
    return value, [] if carried is None else _signatures(carried)


def _check_count(data: bytes) -> None:
    """Before anything is parsed: what is not text costs a hundred times its bytes, and nobody has signed for it yet."""
    containers, values = _count(data)
    if (containers > MAX_CONTAINERS or values > MAX_VALUES) and len(data) <= MAX_BYTES:
        containers, values = _count(outside_strings(data))  # it may be a long program, in a string
    if containers > MAX_CONTAINERS:
        raise CanonicalizationError(
            "message", got=f"{containers} objects and lists", expected=f"at most {MAX_CONTAINERS}"
        )
    if values > MAX_VALUES:
        raise CanonicalizationError("message", got=f"{values} values", expected=f"at most {MAX_VALUES}")


def _count(data: bytes) -> tuple[int, int]:
    """How many objects and lists there are, and how many values at most: each is the first in one, or after a comma."""
    containers = data.count(b"{") + data.count(b"[")
    return containers, containers + data.count(b",") + 1


def _passes_on(relayed: VerifiedMessage, payload: bytes, signatures: list[str]) -> bool:
    """A relay's signature names another one; it vouches for that only where both are on this very object."""
    return relayed.payload == payload and relayed.jws in signatures


def _signatures(carried: object) -> list[str]:
    entries = carried.get("signatures") if isinstance(carried, dict) and len(carried) == 1 else None
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_SIGNATURES:
        raise SignatureMalformed(EXTENSION, expected=f'{{"signatures": [...]}} with 1 to {MAX_SIGNATURES} of them')
    for entry in entries:
        if (
            not isinstance(entry, dict)
            or entry.keys() != {"protected", "signature"}  # an unprotected header is nobody's word
            or not all(isinstance(text, str) for text in entry.values())
        ):
            raise SignatureMalformed(EXTENSION, expected="entries of exactly protected and signature, both strings")
    return [f"{entry['protected']}..{entry['signature']}" for entry in entries]


def _entry(jws: str) -> dict[str, str]:
    protected, _, signature = jws.partition("..")
    return {"protected": protected, "signature": signature}


def _binding(kind: Kind, relayed: VerifiedMessage | None) -> Binding:
    members = {"kind": kind, "rel": relayed and {"jti": relayed.message_id, "s256": relayed.digest}}
    return Binding(typ=MESSAGE_TYPE, members=members, content_type="", mismatch=BindingMismatch)


def _choose(
    signatures: list[str],
    binding: Binding,
    audience: AgentID | str,
    signers: Authorizer,
    algorithms: Collection[str],
    verifier: PeerVerifier | PinnedAgents,
) -> str:
    """Step (a). Nothing that is read here is true yet: what is chosen is verified, and if it lied, refused."""
    if not signatures:
        raise SignatureMissing("message is not signed", expected=f'metadata["{EXTENSION}"]')
    if len(signatures) == 1:
        return signatures[0]
    names_key = "kid" if isinstance(verifier, PinnedAgents) else "x5t#S256"
    of_the_role, fitting = [], []
    for jws in signatures:
        try:
            header = strict_jws.parse_detached(jws, algorithms=algorithms, typ=binding.typ, in_body=True).header
        except SignatureError:  # of another version, or with an algorithm that is not for us
            continue
        claims = header.get("a2a")
        if names_key not in header or not isinstance(claims, dict) or claims.get("rel") != binding.members["rel"]:
            continue
        of_the_role.append(jws)
        if claims.get("aud") == str(audience) and _is_allowed(claims.get("iss"), signers):
            fitting.append(jws)
    for candidates in (fitting, of_the_role):  # the second only for what verifying will say is wrong with it
        if len(candidates) == 1:
            return candidates[0]
    raise AuthorUnclear(
        "which signature counts is not clear",
        got=f"{len(fitting)} of {len(signatures)} that are for {audience} by an allowed signer",
        expected="exactly one",
    )


def _is_allowed(issuer: object, signers: Authorizer) -> bool:
    try:
        return allows(signers, AgentID.parse(str(issuer)))
    except IdentityError:
        return False
