"""Attacks on evidence: one valid bundle, one mutation a row, and the error that stops it.

Some are by whoever keeps the bundle. Others are by a receiver that signs false receipts with its own good key.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.forge import HOUR, NOW, Forge
from trust.authorize import exactly
from trust.bundles import TrustBundles
from trust.credentials import Credentials
from trust.errors import (
    AudienceMismatch,
    CertificateExpired,
    CertificateRevoked,
    EvidenceMalformed,
    HeaderMalformed,
    IdentityError,
    MessageExpired,
    MessageFromTheFuture,
    ReceiptMismatch,
    SignatureMalformed,
    SignatureWrong,
    SignerUnknown,
    TrustError,
    TypeWrong,
    UnknownTrustDomain,
    UntrustedChain,
)
from trust.peers import PeerVerifier
from trust.revocation import _Indexed
from trust.signing import envelope, jws
from trust.signing.canonical import canonicalize_value
from trust.signing.evidence import MAX_CRLS, verify_evidence
from trust.signing.http import new_message_id, sign_request
from trust.signing.messages import EXTENSION, authenticate_message, sign_message

FORGE = Forge()
IMPOSTOR = Forge("fleet.example")
FOREIGN = Forge("other.example")
PLANNER = FORGE.leaf("/planner")
BILLING = FORGE.leaf("/billing")
OTHER = FORGE.leaf("/other")
FAKE = IMPOSTOR.leaf("/billing")
ALIEN = FOREIGN.leaf("/billing")
SHORT = FORGE.leaf("/billing", not_after=NOW + timedelta(minutes=1))
VERIFIER = PeerVerifier(FORGE.bundles, FORGE.crls())
REVOKING = FORGE.crls(PLANNER)
LATER = NOW + 1000 * HOUR
IAT = int(NOW.timestamp())
ABSENT: Any = object()


def make(text: str) -> dict[str, Any]:
    signed = sign_message(
        {"messageId": text}, "Message", credentials=PLANNER, audience=BILLING.agent_id, now=NOW, jti=new_message_id()
    )
    message = authenticate_message(
        signed,
        "Message",
        audience=BILLING.agent_id,
        verifier=VERIFIER,
        now=NOW,
        signers=exactly(PLANNER.agent_id),
    )
    bundle: dict[str, Any] = json.loads(message.evidence(credentials=BILLING, verifier=VERIFIER, jti=new_message_id()))
    return bundle


GENUINE = make("m-1")
ANOTHER = make("m-2")
Change = Callable[[dict[str, Any]], Any]


def b64(*ders: bytes) -> list[str]:
    return [base64.b64encode(der).decode() for der in ders]


def put(*path: str, value: Any) -> Change:
    """The member at the path is another."""

    def change(bundle: dict[str, Any]) -> None:
        for name in path[:-1]:
            bundle = bundle[name]
        if value is ABSENT:
            del bundle[path[-1]]
        else:
            bundle[path[-1]] = value

    return change


def from_another(*path: str) -> Change:
    value: Any = ANOTHER
    for name in path:
        value = value[name]
    return put(*path, value=value)


def receipted(
    change: Change = lambda bundle: None,
    *,
    by: Credentials = BILLING,
    header: dict[str, Any] | None = None,
    at: int = IAT,
    **claims: Any,
) -> Change:
    """The bundle after a change, with a receipt that somebody signs over it."""

    def apply(bundle: dict[str, Any]) -> None:
        change(bundle)
        del bundle["receipt"]
        text = bundle["message"]["jws"]
        message = json.loads(jws.decode(text.split(".")[0]))["a2a"]
        named = {"jti": message["jti"], "s256": envelope.digest(text)}
        a2a = {
            "v": 1,
            "iss": str(by.agent_id),
            "aud": str(PLANNER.agent_id),
            "iat": at,
            "exp": at + 60,
            "jti": new_message_id(),
            "msg": named,
            **claims,
        }
        bundle["receipt"] = jws.sign_detached(
            canonicalize_value(bundle),
            key=by.private_key,
            header={
                "typ": "a2a-rcpt+jws",
                "crit": ["a2a"],
                "x5t#S256": by.thumbprint,
                "x5c": b64(*by.chain_der),
                "a2a": {name: value for name, value in a2a.items() if value is not ABSENT},
                **(header or {}),
            },
        )

    return apply


def message_header(**changes: Any) -> Change:
    """The message's protected header is another, under the same signature."""

    def change(bundle: dict[str, Any]) -> None:
        protected, _, signature = bundle["message"]["jws"].split(".")
        header = {**json.loads(jws.decode(protected)), **changes}
        bundle["message"]["jws"] = f"{jws.encode(json.dumps(header).encode())}..{signature}"

    return change


def resigned(header: dict[str, Any] | None = None, **claims: Any) -> Change:
    """The signer itself says something else in its header, and signs it well."""

    def change(bundle: dict[str, Any]) -> None:
        said = json.loads(jws.decode(bundle["message"]["jws"].split(".")[0]))
        a2a = {name: value for name, value in {**said["a2a"], **claims}.items() if value is not ABSENT}
        bundle["message"]["jws"] = jws.sign_detached(
            jws.decode(bundle["message"]["payload"]),
            key=PLANNER.private_key,
            header={**said, **(header or {}), "a2a": a2a},
        )

    return receipted(change)


OLD_CRL = b64(REVOKING.crls[0].public_bytes(Encoding.DER))
NAMELESS = b64(REVOKING.crls[0].public_bytes(Encoding.DER).replace(b"fleet.ex", b"\xff" * 8))  # no UTF-8
ANOTHER_MESSAGE = {"jti": new_message_id(), "s256": "x" * 43}

ATTACKS: list[tuple[str, Change, type[TrustError]]] = [
    # (1) the form
    ("no version", put("v", value=ABSENT), EvidenceMalformed),
    ("version 2", put("v", value=2), EvidenceMalformed),
    ("version true", put("v", value=True), EvidenceMalformed),
    ("more in it", put("note", value="x"), EvidenceMalformed),
    ("more in the message", put("message", "note", value="x"), EvidenceMalformed),
    ("no receipt", put("receipt", value=ABSENT), EvidenceMalformed),
    ("receipt null", put("receipt", value=None), EvidenceMalformed),
    ("message a list", put("message", value=[]), EvidenceMalformed),
    ("no certificates", put("message", "x5c", value=[]), EvidenceMalformed),
    ("nine certificates", put("message", "x5c", value=["AAAA"] * 9), EvidenceMalformed),
    ("certificates of numbers", put("message", "x5c", value=[1]), EvidenceMalformed),
    ("certificates not base64", put("message", "x5c", value=["!"]), EvidenceMalformed),
    ("too many CRLs", put("crls", value=["AAAA"] * (MAX_CRLS + 1)), EvidenceMalformed),
    ("CRLs that are none", put("crls", value=["AAAA"]), EvidenceMalformed),
    ("payload padded", put("message", "payload", value="e30="), EvidenceMalformed),
    ("a list in a list", put("crls", value=[[]]), EvidenceMalformed),
    ("payload a number", put("message", "payload", value=1), EvidenceMalformed),
    # by whoever keeps the bundle
    ("payload of another message", from_another("message", "payload"), SignatureWrong),
    ("receipt of another message", from_another("receipt"), SignatureWrong),
    ("another message under the receipt", from_another("message"), SignatureWrong),
    ("CRLs taken out", put("crls", value=[]), SignatureWrong),
    ("CRL put in", put("crls", value=OLD_CRL), SignatureWrong),
    ("certificates of another agent", put("message", "x5c", value=b64(*OTHER.chain_der)), SignatureWrong),
    ("the message's signature as the receipt", lambda b: b.update(receipt=b["message"]["jws"]), TypeWrong),
    ("the receipt as the message", lambda b: b["message"].update(jws=b["receipt"]), TypeWrong),
    ("a card's signature as the message", message_header(typ="JOSE"), TypeWrong),
    ("receipt malformed", put("receipt", value="a.b.c"), SignatureMalformed),
    ("message malformed", put("message", "jws", value="a..b"), SignatureMalformed),
    ("message without a2a", message_header(a2a=[]), HeaderMalformed),
    ("of a kind that nobody makes", message_header(typ="a2a-xyz+jws"), TypeWrong),
    ("an event that says nothing of its stream", message_header(typ="a2a-evt+jws"), HeaderMalformed),
    # what no verifier that met the message would have accepted
    ("no kind", resigned(kind=ABSENT), HeaderMalformed),
    ("a claim of another kind", resigned(htm="POST"), HeaderMalformed),
    ("content type of an object", resigned({"cty": "application/json"}), HeaderMalformed),
    ("a null claim", resigned(rel=None), EvidenceMalformed),
    ("for nobody", resigned(aud="\x00"), HeaderMalformed),
    ("for no agent", resigned(aud="spiffe://fleet.example/Ä"), HeaderMalformed),
    ("for several", resigned(aud=[str(BILLING.agent_id)]), HeaderMalformed),
    ("content type a number", message_header(cty=5), HeaderMalformed),
    # (2) and (5), receipts that somebody signed with a good key
    ("receipt by another agent", receipted(by=OTHER), ReceiptMismatch),
    ("receipt by the signer itself", receipted(by=PLANNER), ReceiptMismatch),
    ("receipt of another CA", receipted(by=FAKE), UntrustedChain),
    ("receipt of another domain", receipted(by=ALIEN), UnknownTrustDomain),
    ("receipt names another message", receipted(msg=ANOTHER_MESSAGE), ReceiptMismatch),
    ("receipt names no message", receipted(msg=ABSENT), ReceiptMismatch),
    ("receipt for another agent", receipted(aud=str(OTHER.agent_id)), AudienceMismatch),
    (
        "receipt of a certificate that it does not carry",
        receipted(header={"x5c": b64(*OTHER.chain_der)}),
        SignerUnknown,
    ),
    ("receipt without a time", receipted(iat=ABSENT), HeaderMalformed),
    ("receipt with a time that is text", receipted(iat=str(IAT)), HeaderMalformed),
    ("receipt with a time that no calendar has", receipted(iat=10**15, exp=10**15 + 60), HeaderMalformed),
    ("receipt without a2a", receipted(header={"a2a": "x"}), HeaderMalformed),
    # (3) and (4) the time
    ("receipt before the message", receipted(at=IAT - 11), MessageFromTheFuture),
    ("receipt after the message expired", receipted(at=IAT + 60), MessageExpired),
    ("receipt by a certificate that had expired", receipted(by=SHORT, at=IAT + 61), CertificateExpired),
    # (4) the message, whatever the receiver says
    ("payload changed before the receipt", receipted(from_another("message", "payload")), SignatureWrong),
    ("header changed before the receipt", receipted(message_header(kid="x")), SignatureWrong),
    ("x5c of another agent", receipted(put("message", "x5c", value=b64(*OTHER.chain_der))), EvidenceMalformed),
    ("x5c of another CA", receipted(put("message", "x5c", value=b64(*FAKE.chain_der))), UntrustedChain),
    ("received although it was revoked", receipted(put("crls", value=OLD_CRL)), CertificateRevoked),
]


def verify(change: Change, at: datetime = LATER, bundles: TrustBundles = FORGE.bundles, **arguments: Any) -> Any:
    bundle = deepcopy(GENUINE)
    change(bundle)
    return verify_evidence(json.dumps(bundle).encode(), bundles, at=at, **arguments)


@pytest.mark.parametrize(("change", "error"), [row[1:] for row in ATTACKS], ids=[row[0] for row in ATTACKS])
def test_attack_on_evidence(change: Change, error: type[TrustError]) -> None:
    with pytest.raises(error) as caught:
        verify(change)
    assert type(caught.value) is error


def test_the_bundle_that_the_attacks_change_is_valid_and_so_are_its_honest_variants() -> None:
    for honest in (lambda bundle: None, receipted(), receipted(at=IAT - 10), receipted(at=IAT + 59)):
        assert verify(honest).message.payload == b'{"messageId":"m-1"}'
    assert verify(receipted(by=SHORT, at=IAT + 59))
    assert verify(receipted(put("crls", value=[*GENUINE["crls"], *NAMELESS]))).revocation_checked
    assert verify(resigned()).message.header["a2a"]["kind"] == "Message"


def test_the_question_is_not_older_than_the_receipt() -> None:
    assert verify(lambda bundle: None, at=NOW - timedelta(seconds=10))
    with pytest.raises(MessageFromTheFuture):
        verify(lambda bundle: None, at=NOW - timedelta(seconds=11))
    with pytest.raises(MessageFromTheFuture):
        verify(lambda bundle: None, at=datetime.min.replace(tzinfo=UTC))
    assert verify(lambda bundle: None, at=datetime.max.replace(tzinfo=UTC))
    with pytest.raises(IdentityError):
        verify(lambda bundle: None, at=datetime.max.replace(tzinfo=timezone(-HOUR)))


@pytest.mark.parametrize("data", [b'{"v":[' + b"{}," * 5 + b"1]}", b'{"crls":[' + b'"",' * 100 + b'""]}'])
def test_what_is_larger_than_a_bundle_is_not_even_parsed(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("trust.json_text.parse", never)
    with pytest.raises(EvidenceMalformed):
        verify_evidence(data, FORGE.bundles, at=LATER)


def test_revocation_lists_are_read_once_and_those_of_others_never(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    class Counting(_Indexed):
        def __init__(self, crl: x509.CertificateRevocationList) -> None:
            read.append(crl.issuer)
            super().__init__(crl)

    others = b64(*(crl.public_bytes(Encoding.DER) for crl in FOREIGN.crls().crls))
    bundle = deepcopy(GENUINE)
    receipted(put("crls", value=[*GENUINE["crls"], *others]))(bundle)
    monkeypatch.setattr("trust.revocation._Indexed", Counting)
    assert verify_evidence(json.dumps(bundle).encode(), FORGE.bundles, at=LATER).revocation_checked
    assert sorted(map(str, read)) == sorted(str(crl.issuer) for crl in FORGE.crls().crls)


def test_whose_roots_are_not_there_has_proved_nothing() -> None:
    with pytest.raises(UnknownTrustDomain):
        verify(lambda bundle: None, bundles=FOREIGN.bundles)
    with pytest.raises(UntrustedChain):
        verify(lambda bundle: None, bundles=IMPOSTOR.bundles)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"v":1,"v":1}', b"\xff", b"[" * 100, b"null"])
def test_what_is_no_bundle(data: bytes) -> None:
    with pytest.raises(EvidenceMalformed):
        verify_evidence(data, FORGE.bundles, at=LATER)


def test_a_signature_of_a_request_is_no_message_inside_json() -> None:
    """Evidence tells what kind it is of: the header's `typ` is signed, and the carriage is not guessed."""
    asked = sign_request(
        PLANNER,
        method="POST",
        url="https://b.example/",
        body=b'{"messageId":"m"}',
        audience=BILLING.agent_id,
        now=NOW,
        jti=new_message_id(),
        chain=True,
    )
    protected, _, signature = asked.jws.split(".")
    entry = {"protected": protected, "signature": signature}
    with pytest.raises(TypeWrong):
        authenticate_message(
            {"messageId": "m", "metadata": {EXTENSION: {"signatures": [entry]}}},
            "Message",
            audience=BILLING.agent_id,
            verifier=VERIFIER,
            now=NOW,
            signers=exactly(PLANNER.agent_id),
        )


BUNDLE = json.dumps(GENUINE).encode()
PIECES = [b"", b" ", b"A", b"=", b"1", b",", b"[]", b'"', b'"v":1,']


@settings(max_examples=200)
@given(st.integers(0, len(BUNDLE)), st.integers(0, 3), st.sampled_from(PIECES) | st.binary(max_size=3))
def test_what_is_accepted_is_what_was_received(start: int, size: int, piece: bytes) -> None:
    """However a bundle is cut and pasted: it is refused, or it says the same."""
    try:
        verified = verify_evidence(BUNDLE[:start] + piece + BUNDLE[start + size :], FORGE.bundles, at=LATER)
    except TrustError:
        return
    assert (verified.message.payload, verified.revocation_checked) == (b'{"messageId":"m-1"}', True)
