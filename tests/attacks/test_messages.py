"""Attacks on messages signed inside JSON: one valid message, one mutation a row, and the error that stops it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.forge import HOUR, NOW, Forge
from trust.authorize import Authorizer, exactly, members_of
from trust.credentials import Credentials
from trust.errors import (
    AlgorithmRefused,
    AudienceMismatch,
    AuthorUnclear,
    BindingMismatch,
    CanonicalizationError,
    CertificateExpired,
    CertificateRevoked,
    CriticalHeaderRefused,
    HeaderMalformed,
    IssuerMismatch,
    MessageExpired,
    MessageFromTheFuture,
    MessageLifetimeTooLong,
    MessageNotPortable,
    PeerNotAllowed,
    Replayed,
    SignatureMalformed,
    SignatureMissing,
    SignatureTooLarge,
    SignatureWrong,
    SignerUnknown,
    TrustError,
    TypeWrong,
    UnknownTrustDomain,
    UntrustedChain,
    WrongExtendedKeyUsage,
)
from trust.peers import PeerVerifier
from trust.replay import MemoryReplayGuard
from trust.signing import jws
from trust.signing.envelope import LAST_SECOND, VerifiedMessage
from trust.signing.messages import (
    EXTENSION,
    MAX_CONTAINERS,
    MAX_VALUES,
    authenticate_message,
    sign_message,
    verify_message,
)
from trust.signing.proto_json import Kind, canonical_form

FORGE = Forge()
FOREIGN = Forge("other.example")
IMPOSTOR = Forge("fleet.example")  # the same name, other keys
PLANNER = FORGE.leaf("/planner")
BILLING = FORGE.leaf("/billing")
RELAY = FORGE.leaf("/relay")
EXPIRED = FORGE.leaf("/planner", not_before=NOW - 2 * HOUR, not_after=NOW - HOUR)
REVOKED = FORGE.leaf("/planner")
SERVER_ONLY = FORGE.leaf("/planner", eku=[ExtendedKeyUsageOID.SERVER_AUTH])
ALIEN = FOREIGN.leaf("/planner")
FAKE = IMPOSTOR.leaf("/planner")
VERIFIER = PeerVerifier(FORGE.bundles, FORGE.crls(REVOKED))
IAT = int(NOW.timestamp())
JTI = "0123456789abcdefABCDEF"
ABSENT: Any = object()
MESSAGE: dict[str, Any] = {
    "messageId": "m-1",
    "role": "ROLE_USER",
    "parts": [{"text": "pay"}, {"data": {"amount": 5}}],
    "metadata": {"tenant": "one"},
}
CLAIMS: dict[str, Any] = {
    "v": 1,
    "iss": "spiffe://fleet.example/planner",
    "aud": "spiffe://fleet.example/billing",
    "iat": IAT,
    "exp": IAT + 60,
    "jti": JTI,
    "kind": "Message",
}


@dataclass(frozen=True)
class Signature:
    """A valid signature as the wire format describes it, built by hand."""

    claims: dict[str, Any] = field(default_factory=dict)  # changes
    header: dict[str, Any] = field(default_factory=dict)  # changes
    signer: Credentials = PLANNER
    key: Any = None
    kind: Kind = "Message"  # that the bytes are the form of
    signed: dict[str, Any] = field(default_factory=lambda: MESSAGE)

    def entry(self) -> dict[str, Any]:
        claims = {name: value for name, value in {**CLAIMS, **self.claims}.items() if value is not ABSENT}
        header = {
            "typ": "a2a-msg+jws",
            "crit": ["a2a"],
            "x5t#S256": self.signer.thumbprint,
            "x5c": [base64.b64encode(der).decode() for der in self.signer.chain_der],
            "a2a": claims,
            **self.header,
        }
        header = {name: value for name, value in header.items() if value is not ABSENT}
        payload = canonical_form(self.kind, self.signed)
        text = jws.sign_detached(payload, key=self.key or self.signer.private_key, header=header)
        protected, _, signature = text.split(".")
        return {"protected": protected, "signature": signature}


@dataclass(frozen=True)
class Received:
    """What came: the signed message, with what somebody on the way did to it."""

    signatures: tuple[Signature, ...] = (Signature(),)
    change: Callable[[dict[str, Any]], None] = lambda message: None
    write: Callable[[dict[str, Any]], Any] = lambda message: message
    kind: Kind = "Message"
    audience: str = "spiffe://fleet.example/billing"
    now: datetime = NOW
    signers: Authorizer = field(default_factory=lambda: exactly(PLANNER.agent_id))
    relayed: VerifiedMessage | None = None
    algorithms: tuple[str, ...] = ("ES256",)
    times: int = 1
    started_at: datetime = NOW - HOUR

    def verify(self) -> VerifiedMessage:
        message = deepcopy(MESSAGE)
        message["metadata"][EXTENSION] = {"signatures": [signature.entry() for signature in self.signatures]}
        self.change(message)
        written = self.write(message)
        guard = MemoryReplayGuard(started_at=self.started_at)
        for _ in range(self.times):
            verified = verify_message(
                written,
                self.kind,
                audience=self.audience,
                verifier=VERIFIER,
                now=self.now,
                signers=self.signers,
                replay=guard,
                relayed=self.relayed,
                algorithms=self.algorithms,
            )
        return verified


def carried(value: Any) -> Callable[[dict[str, Any]], None]:
    """Something else in the place of the signatures."""

    def change(message: dict[str, Any]) -> None:
        message["metadata"][EXTENSION] = value

    return change


def entry(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(message: dict[str, Any]) -> None:
        message["metadata"][EXTENSION]["signatures"][0].update(changes)

    return change


def strip(message: dict[str, Any]) -> None:
    del message["metadata"][EXTENSION]


def beside_the_author(message: dict[str, Any]) -> None:
    message["metadata"][EXTENSION]["signatures"].insert(0, AUTHOR_ENTRY)


def text(find: str, put: str) -> Callable[[dict[str, Any]], bytes]:
    def write(message: dict[str, Any]) -> bytes:
        written = json.dumps(message)
        assert find in written
        return written.replace(find, put, 1).encode()

    return write


def author() -> VerifiedMessage:
    """The author's signature, as the relay and the receiver verified it."""
    message = deepcopy(MESSAGE)
    message["metadata"][EXTENSION] = {"signatures": [AUTHOR_ENTRY]}
    return authenticate_message(
        message,
        "Message",
        audience="spiffe://fleet.example/billing",
        verifier=VERIFIER,
        now=NOW,
        signers=exactly(PLANNER.agent_id),
    )


AUTHOR_ENTRY = Signature().entry()
AUTHOR = author()
REFERENCE = {"jti": AUTHOR.message_id, "s256": AUTHOR.digest}
BY_RELAY: dict[str, Any] = {"iss": "spiffe://fleet.example/relay", "jti": JTI[::-1]}
COUNTERSIGNATURE = Signature(signer=RELAY, claims={**BY_RELAY, "rel": REFERENCE})
BRINGS_A_KEY = jws.encode(json.dumps({"typ": "a2a-msg+jws", "alg": "ES256", "jku": "https://x.example"}).encode())
EVERYBODY = members_of("fleet.example")


def signed_by(credentials: Credentials, **claims: Any) -> tuple[Signature, ...]:
    return (Signature(signer=credentials, claims=claims),)


def claiming(**claims: Any) -> tuple[Signature, ...]:
    return (Signature(claims=claims),)


def heading(**header: Any) -> tuple[Signature, ...]:
    return (Signature(header=header),)


ATTACKS: list[tuple[str, Received, type[TrustError]]] = [
    # (0) the object
    ("member doubled", Received(write=text('"role"', '"role": "ROLE_AGENT", "role"')), CanonicalizationError),
    ("signatures doubled", Received(write=text('"tenant"', f'"{EXTENSION}": {{}}, "tenant"')), CanonicalizationError),
    ("byte order mark", Received(write=lambda m: b"\xef\xbb\xbf" + json.dumps(m).encode()), CanonicalizationError),
    ("NaN", Received(write=text('"amount": 5', '"amount": NaN')), CanonicalizationError),
    ("number beyond 2^53", Received(write=text("5}", "9007199254740993}")), CanonicalizationError),
    (
        "brackets without end",
        Received(write=lambda m: b'{"parts":[' + b"{}," * MAX_CONTAINERS + b"{}]}"),
        CanonicalizationError,
    ),
    (
        "numbers without end",
        Received(write=lambda m: b'{"parts":[{"data":[' + b"1e-6," * MAX_VALUES + b"1]}]}"),
        CanonicalizationError,
    ),
    (
        "members without end",
        Received(write=lambda m: b'{"metadata":{' + b",".join(b'"%x":1' % n for n in range(MAX_VALUES)) + b"}}"),
        CanonicalizationError,
    ),
    ("text after it", Received(write=lambda m: json.dumps(m).encode() + b"{}"), CanonicalizationError),
    ("not an object", Received(write=lambda m: b"[]"), MessageNotPortable),
    ("member added that SDKs drop", Received(change=lambda m: m.update(priority="high")), MessageNotPortable),
    ("member added in a part", Received(change=lambda m: m["parts"][0].update(kind="text")), MessageNotPortable),
    ("snake case beside camel case", Received(change=lambda m: m.update(message_id="m-2")), MessageNotPortable),
    ("content added to a part", Received(change=lambda m: m["parts"][0].update(url="https://x")), MessageNotPortable),
    ("number beyond JavaScript's digits", Received(write=text("5}", "1e20}")), MessageNotPortable),
    # the carriage, before anything is done with the object that takes long
    ("stripped, and not portable", Received(change=strip, write=text('"role"', '"x": 1, "role"')), SignatureMissing),
    (
        "a foreign CA, and not portable",
        Received(signatures=signed_by(FAKE), change=lambda m: m.update(x=1)),
        UntrustedChain,
    ),
    ("stripped", Received(change=strip), SignatureMissing),
    ("stripped with all metadata", Received(change=lambda m: m.pop("metadata")), SignatureMissing),
    ("null for the signatures", Received(change=carried(None)), SignatureMissing),
    ("no signatures", Received(change=carried({"signatures": []})), SignatureMalformed),
    ("a list for the signatures", Received(change=carried([AUTHOR_ENTRY])), SignatureMalformed),
    ("one signature, not in a list", Received(change=carried({"signatures": AUTHOR_ENTRY})), SignatureMalformed),
    ("more beside them", Received(change=carried({"signatures": [AUTHOR_ENTRY], "x": 1})), SignatureMalformed),
    ("nine of them", Received(signatures=(Signature(),) * 9), SignatureMalformed),
    ("unprotected header", Received(change=entry(header={"alg": "ES256"})), SignatureMalformed),
    ("payload inside", Received(change=entry(payload="e30")), SignatureMalformed),
    ("protected true", Received(change=entry(protected=True)), SignatureMalformed),
    ("dots in protected", Received(change=entry(protected="e30.e30")), SignatureMalformed),
    ("signature padded", Received(change=entry(signature=AUTHOR_ENTRY["signature"] + "==")), SignatureMalformed),
    ("signature empty", Received(change=entry(signature="")), SignatureMalformed),
    ("header of 64 KiB", Received(change=entry(protected="A" * 65536)), SignatureTooLarge),
    # (2) the kind
    ("a request's signature", Received(signatures=heading(typ="a2a-req+jws")), TypeWrong),
    ("a receipt", Received(signatures=heading(typ="a2a-rcpt+jws")), TypeWrong),
    ("a card's signature", Received(signatures=heading(typ="JOSE")), TypeWrong),
    ("no crit", Received(signatures=heading(crit=ABSENT)), CriticalHeaderRefused),
    ("a key of its own", Received(change=entry(protected=BRINGS_A_KEY)), HeaderMalformed),
    ("an algorithm that is not ours", Received(algorithms=("ES384",)), AlgorithmRefused),
    ("Artifact instead of Message", Received(kind="Artifact"), MessageNotPortable),
    ("moved to the other kind", Received(signatures=claiming(kind="Artifact")), BindingMismatch),
    ("kind missing", Received(signatures=claiming(kind=ABSENT)), BindingMismatch),
    ("kind null", Received(signatures=claiming(kind=None)), BindingMismatch),
    # (3) the certificate
    ("no chain", Received(signatures=heading(x5c=ABSENT)), SignerUnknown),
    ("another's chain", Received(signatures=heading(**{"x5t#S256": RELAY.thumbprint})), SignerUnknown),
    ("a foreign domain", Received(signatures=signed_by(ALIEN, iss=str(ALIEN.agent_id))), UnknownTrustDomain),
    ("a foreign CA", Received(signatures=signed_by(FAKE)), UntrustedChain),
    ("an expired certificate", Received(signatures=signed_by(EXPIRED)), CertificateExpired),
    ("a revoked certificate", Received(signatures=signed_by(REVOKED)), CertificateRevoked),
    ("a web server's certificate", Received(signatures=signed_by(SERVER_ONLY)), WrongExtendedKeyUsage),
    # (5) the signature
    ("text changed", Received(change=lambda m: m["parts"][0].update(text="PAY")), SignatureWrong),
    ("number changed", Received(write=text("5}", "5.000000001}")), SignatureWrong),
    ("number as text", Received(write=text("5}", '"5"}')), SignatureWrong),
    ("null added to data", Received(write=text("5}", '5, "x": null}')), SignatureWrong),
    ("part removed", Received(change=lambda m: m["parts"].pop()), SignatureWrong),
    ("parts exchanged", Received(change=lambda m: m["parts"].reverse()), SignatureWrong),
    ("metadata changed", Received(change=lambda m: m["metadata"].update(tenant="two")), SignatureWrong),
    ("metadata added", Received(change=lambda m: m["metadata"].update(x=1)), SignatureWrong),
    ("empty metadata of a part", Received(change=lambda m: m["parts"][0].update(metadata={})), SignatureWrong),
    ("context set on the way", Received(change=lambda m: m.update(contextId="c")), SignatureWrong),
    ("role changed", Received(change=lambda m: m.update(role="ROLE_AGENT")), SignatureWrong),
    ("another's key", Received(signatures=(Signature(key=RELAY.private_key),)), SignatureWrong),
    ("another message's signature", Received(signatures=(Signature(signed={"messageId": "m"}),)), SignatureWrong),
    # (6) the claims
    ("in another's name", Received(signatures=claiming(iss=str(RELAY.agent_id))), IssuerMismatch),
    ("unknown claim", Received(signatures=claiming(htm="POST")), HeaderMalformed),
    ("version 2", Received(signatures=claiming(v=2)), HeaderMalformed),
    ("jti short", Received(signatures=claiming(jti="a")), HeaderMalformed),
    # (7) the receiver
    ("for another agent", Received(audience="spiffe://fleet.example/relay"), AudienceMismatch),
    ("for several", Received(signatures=claiming(aud=[CLAIMS["aud"]])), HeaderMalformed),
    # (8) time
    ("expired", Received(now=NOW + timedelta(seconds=60)), MessageExpired),
    ("from the future", Received(signatures=claiming(iat=IAT + 11, exp=IAT + 60)), MessageFromTheFuture),
    ("until the year 10000", Received(signatures=claiming(iat=LAST_SECOND, exp=LAST_SECOND + 1)), HeaderMalformed),
    ("for too long", Received(signatures=claiming(exp=IAT + 301)), MessageLifetimeTooLong),
    # (9) the signer, and replay
    ("not an allowed author", Received(signers=exactly(RELAY.agent_id)), PeerNotAllowed),
    ("twice", Received(times=2), Replayed),
    ("from before the start", Received(started_at=NOW + timedelta(seconds=1)), Replayed),
    # several signatures
    (
        "a relay's signature as the author's",
        Received(signatures=(COUNTERSIGNATURE,), signers=EVERYBODY),
        BindingMismatch,
    ),
    (
        "the author's signature as a relay's",
        Received(signatures=(), change=beside_the_author, relayed=AUTHOR, signers=EVERYBODY),
        BindingMismatch,
    ),
    (
        "a relay that does not say so, beside the author",
        Received(signatures=(Signature(), Signature(signer=RELAY, claims=BY_RELAY)), signers=EVERYBODY),
        AuthorUnclear,
    ),
    (
        "the relay's signature for another author's",
        Received(
            signatures=(Signature(signer=RELAY, claims={**BY_RELAY, "rel": {**REFERENCE, "s256": "x"}}),),
            change=beside_the_author,
            relayed=AUTHOR,
            signers=EVERYBODY,
        ),
        AuthorUnclear,
    ),
    (
        "the relay's signature on another object, beside the author's",
        Received(
            signatures=(
                Signature(signer=RELAY, claims=COUNTERSIGNATURE.claims, signed={**MESSAGE, "messageId": "m-2"}),
            ),
            change=beside_the_author,
            write=lambda m: {**m, "messageId": "m-2"},
            relayed=AUTHOR,
            signers=EVERYBODY,
        ),
        BindingMismatch,
    ),
    (
        "the relay's signature without the author's",
        Received(signatures=(COUNTERSIGNATURE,), relayed=AUTHOR, signers=EVERYBODY),
        BindingMismatch,
    ),
    (
        "the author's is forged, the relay's is good",
        Received(signatures=(Signature(key=RELAY.private_key), COUNTERSIGNATURE), signers=EVERYBODY),
        SignatureWrong,
    ),
    (
        "both by the author, both for us",
        Received(signatures=(Signature(), Signature(claims={"jti": JTI[::-1]}))),
        AuthorUnclear,
    ),
    (
        "none of several is for us",
        Received(signatures=(Signature(), Signature(claims={"jti": JTI[::-1]})), audience="https://b.example"),
        AuthorUnclear,
    ),
    (
        "none of several is an allowed author's",
        Received(signatures=(Signature(), COUNTERSIGNATURE), signers=exactly(BILLING.agent_id)),
        PeerNotAllowed,
    ),
    (
        "several that say nothing",
        Received(change=carried({"signatures": [{"protected": "e30", "signature": "AA"}] * 2})),
        AuthorUnclear,
    ),
    (
        "an author whose name is none, beside a good relay",
        Received(signatures=(Signature(claims={"iss": 1}), COUNTERSIGNATURE), signers=EVERYBODY),
        HeaderMalformed,
    ),
    (
        "an author whose name is no SPIFFE ID, beside a good relay",
        Received(signatures=(Signature(claims={"iss": "planner"}), COUNTERSIGNATURE), signers=EVERYBODY),
        IssuerMismatch,
    ),
    (
        "a2a a string, beside a good relay",
        Received(signatures=(Signature(header={"a2a": "v1"}), COUNTERSIGNATURE), signers=EVERYBODY),
        AuthorUnclear,
    ),
]


@pytest.mark.parametrize(("received", "error"), [row[1:] for row in ATTACKS], ids=[row[0] for row in ATTACKS])
def test_attack_on_a_message(received: Received, error: type[TrustError]) -> None:
    with pytest.raises(error) as caught:
        received.verify()
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "received",
    [
        Received(),
        Received(signers=EVERYBODY),
        Received(now=NOW + timedelta(seconds=59)),
        Received(now=NOW - timedelta(seconds=10)),
        Received(write=lambda m: json.dumps(m, indent=2).encode()),
        Received(write=text("5}", "5.0}")),
        Received(change=lambda m: m.update(contextId="", extensions=[])),
        Received(signatures=claiming(aud="https://b.example"), audience="https://b.example"),
        Received(signatures=(COUNTERSIGNATURE, Signature()), signers=EVERYBODY),
        Received(signatures=(Signature(claims={"iss": "planner"}), Signature()), signers=EVERYBODY),
        Received(signatures=(Signature(claims={"iss": 1}), Signature()), signers=EVERYBODY),
    ],
)
def test_the_message_that_the_attacks_change_is_valid_and_so_are_its_honest_variants(received: Received) -> None:
    message = received.verify()
    assert message.payload == canonical_form("Message", MESSAGE)
    assert message.signer.agent_id == PLANNER.agent_id


def test_the_countersignature_that_the_attacks_change_is_valid() -> None:
    received = Received(signatures=(COUNTERSIGNATURE,), change=beside_the_author, signers=EVERYBODY, relayed=AUTHOR)
    assert received.verify().signer.agent_id == RELAY.agent_id


def test_the_calendar_ends() -> None:
    end = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    forge = Forge(now=end - 240 * HOUR)
    leaf = forge.leaf("/planner", not_after=end)
    signed = sign_message(MESSAGE, "Message", credentials=leaf, audience=BILLING.agent_id, now=end, jti=JTI)
    with pytest.raises(HeaderMalformed):
        authenticate_message(
            signed,
            "Message",
            audience=BILLING.agent_id,
            verifier=PeerVerifier(forge.bundles),
            now=end,
            signers=exactly(leaf.agent_id),
        )


def test_an_empty_object_of_one_kind_is_not_one_of_another() -> None:
    """The form of an object may be that of several kinds; the signature says which it is."""
    signed = sign_message(
        {"contextId": "c"}, "Message", credentials=PLANNER, audience=BILLING.agent_id, now=NOW, jti=JTI
    )
    assert canonical_form("Message", {"contextId": "c"}) == canonical_form("Task", {"contextId": "c"})
    with pytest.raises(BindingMismatch):
        authenticate_message(
            signed,
            "Task",
            audience=BILLING.agent_id,
            verifier=VERIFIER,
            now=NOW,
            signers=exactly(PLANNER.agent_id),
        )


SIGNED = json.dumps(
    {**MESSAGE, "metadata": {**MESSAGE["metadata"], EXTENSION: {"signatures": [AUTHOR_ENTRY]}}}
).encode()
PIECES = [
    b"",
    b" ",
    b"0",
    b"e0",
    b".0",
    b"-",
    b",",
    b"{}",
    b"null",
    b'"',
    b"\\u0041",
    b'"role":"ROLE_AGENT",',
    b"\xc3\xa9",
]


@settings(max_examples=300)
@given(st.integers(0, len(SIGNED)), st.integers(0, 3), st.sampled_from(PIECES) | st.binary(max_size=3))
def test_what_is_accepted_is_what_was_signed(start: int, size: int, piece: bytes) -> None:
    """However a text is cut and pasted: it is refused, or it says the same."""
    pasted = SIGNED[:start] + piece + SIGNED[start + size :]
    try:
        message = Received(write=lambda _: pasted).verify()
    except TrustError:
        return
    assert message.payload == canonical_form("Message", MESSAGE)
    assert message.signer.agent_id == PLANNER.agent_id
