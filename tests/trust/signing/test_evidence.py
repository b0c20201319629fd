"""Evidence: what was received can be verified years later, by somebody who has nothing but the bundle and the roots."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.forge import HOUR, NOW, Forge
from trust.authorize import exactly
from trust.bundles import RevocationLists, TrustBundles
from trust.credentials import Credentials
from trust.errors import CertificateRevoked, ConfigurationError, PeerNotAllowed
from trust.peers import PeerVerifier
from trust.replay import MemoryReplayGuard
from trust.signing.canonical import canonicalize
from trust.signing.envelope import VerifiedMessage
from trust.signing.evidence import MAX_CRLS, VerifiedEvidence, make_evidence, verify_evidence
from trust.signing.http import new_message_id, sign_request, sign_response, verify_request, verify_response
from trust.signing.messages import authenticate_message, sign_message

FORGE = Forge()
FOREIGN = Forge("partner.example")
PLANNER = FORGE.leaf("/planner")
BILLING = FOREIGN.leaf("/billing")
BUNDLES = TrustBundles.of(FORGE.bundle, FOREIGN.bundle)
CRLS = RevocationLists(FORGE.crls().crls, required_in=frozenset({"fleet.example"}))
VERIFIER = PeerVerifier(BUNDLES, CRLS)
LATER = NOW + 24 * 365 * HOUR
MESSAGE = {"messageId": "m-1", "parts": [{"text": "pay 5 €"}]}


def message(audience: Any = BILLING.agent_id, *, verifier: PeerVerifier = VERIFIER) -> VerifiedMessage:
    signed = sign_message(MESSAGE, "Message", credentials=PLANNER, audience=audience, now=NOW, jti=new_message_id())
    return authenticate_message(
        signed,
        "Message",
        audience=audience,
        verifier=verifier,
        now=NOW + timedelta(milliseconds=700),
        signers=exactly(PLANNER.agent_id),
    )


def evidence(**changes: Any) -> bytes:
    received = message(**changes)
    verifier = changes.get("verifier", VERIFIER)
    return received.evidence(credentials=BILLING, verifier=verifier, jti=new_message_id())


def revocation(
    moment: datetime,
    *,
    invalid: datetime | None = None,
    next_update: datetime = LATER,
    forge: Forge = FORGE,
    agent: Credentials = PLANNER,
) -> RevocationLists:
    """A CRL of the agent's issuer on which the agent stands since `moment`."""
    entry = x509.RevokedCertificateBuilder().serial_number(agent.certificate.serial_number).revocation_date(moment)
    if invalid is not None:
        entry = entry.add_extension(x509.InvalidityDate(invalid), False)
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(forge.intermediate.subject)
        .last_update(moment)
        .next_update(next_update)
        .add_extension(x509.CRLNumber(2), False)
        .add_revoked_certificate(entry.build())
        .sign(forge.key, hashes.SHA256())
    )
    return RevocationLists.of([crl])


def test_evidence_of_a_message_a_year_later() -> None:
    """Every certificate has expired by then, and so has every CRL."""
    verified = verify_evidence(evidence(), BUNDLES, at=LATER)
    assert PLANNER.certificate.not_valid_after_utc < LATER
    assert json.loads(verified.message.payload) == MESSAGE
    assert verified.message.signer.agent_id == PLANNER.agent_id
    assert verified.receiver.agent_id == BILLING.agent_id
    assert verified.message.received_at == NOW  # in whole seconds
    assert (verified.revocation_checked, verified.revoked_since) == (True, None)


def test_the_bundle_is_one_canonical_json_text() -> None:
    bundle = evidence()
    assert canonicalize(bundle) == bundle
    assert verify_evidence(json.dumps(json.loads(bundle), indent=2).encode(), BUNDLES, at=LATER)


def test_evidence_of_a_request_and_its_answer() -> None:
    """The bytes are those of the body, and the header tells what they were bound to."""
    asked = sign_request(
        PLANNER,
        method="POST",
        url="https://billing.example/pay?x=1",
        body=b"\xffpay",
        audience=BILLING.agent_id,
        now=NOW,
        jti=new_message_id(),
        content_type="application/octet-stream",
        version="1.0",
        chain=False,
    )
    request = verify_request(
        asked.jws,
        method="POST",
        url="https://billing.example/pay?x=1",
        body=b"\xffpay",
        audience=BILLING.agent_id,
        verifier=VERIFIER,
        peer=VERIFIER.verify(PLANNER.chain_der, now=NOW, usage="client"),
        now=NOW,
        signers=exactly(PLANNER.agent_id),
        replay=MemoryReplayGuard(started_at=NOW - HOUR),
        content_type="application/octet-stream",
        version="1.0",
    )
    verified = verify_evidence(
        request.evidence(credentials=BILLING, verifier=VERIFIER, jti=new_message_id()), BUNDLES, at=LATER
    ).message
    assert (verified.payload, verified.header["a2a"]["htu"]) == (b"\xffpay", "https://billing.example/pay?x=1")
    answer = verify_response(
        sign_response(BILLING, request=request, status=200, body=b"done", now=NOW, jti=new_message_id(), chain=True),
        request=asked,
        status=200,
        body=b"done",
        audience=PLANNER.agent_id,
        signers=exactly(BILLING.agent_id),
        verifier=VERIFIER,
        peer=None,
        now=NOW,
    )
    bundle = answer.evidence(credentials=PLANNER, verifier=VERIFIER, jti=new_message_id())
    assert verify_evidence(bundle, BUNDLES, at=LATER).message.header["a2a"]["req"]["jti"] == asked.jti
    assert not verify_evidence(bundle, BUNDLES, at=LATER).revocation_checked  # no CRL of the partner's domain


@pytest.mark.parametrize(
    ("crls", "refused"),
    [
        (revocation(NOW - HOUR), True),
        (revocation(NOW), True),
        (revocation(NOW + timedelta(seconds=1)), False),
        (revocation(NOW + HOUR, invalid=NOW - HOUR), True),  # its key was known to be stolen before
        (revocation(NOW + HOUR, invalid=NOW + timedelta(minutes=1)), False),
        (revocation(NOW - HOUR, next_update=NOW - timedelta(minutes=30)), True),  # a list that has ended
    ],
)
def test_a_revocation_refuses_where_it_precedes_the_receipt(crls: RevocationLists, refused: bool) -> None:
    bundle = evidence()
    if refused:
        with pytest.raises(CertificateRevoked):
            verify_evidence(bundle, BUNDLES, at=LATER, crls=crls)
        return
    verified = verify_evidence(bundle, BUNDLES, at=LATER, crls=crls)
    assert verified.revoked_since is not None
    assert NOW < verified.revoked_since <= NOW + HOUR
    assert (verified.receiver_revoked_since, verified.unheard) == (None, ())


def test_a_receiver_that_was_revoked_later_is_told_of() -> None:
    """Its key may have been stolen, and the receipt dated back."""
    crls = revocation(NOW + HOUR, forge=FOREIGN, agent=BILLING)
    verified = verify_evidence(evidence(), BUNDLES, at=LATER, crls=crls)
    assert (verified.revoked_since, verified.receiver_revoked_since) == (None, NOW + HOUR)


def test_a_revocation_list_that_nobody_signed_does_not_count() -> None:
    forged = Forge("fleet.example")
    crl = forged.crl(forged.intermediate, forged.key, [PLANNER.certificate.serial_number])
    crls = RevocationLists.of([crl, *Forge("other.example").crls().crls, *FORGE.crls().crls])
    verified = verify_evidence(evidence(), BUNDLES, at=LATER, crls=crls)
    assert (verified.revoked_since, verified.unheard) == (None, crls.crls[:3])  # and is told of


def test_a_revoked_receiver_gives_no_receipts() -> None:
    with pytest.raises(CertificateRevoked):
        verify_evidence(evidence(), BUNDLES, at=LATER, crls=FOREIGN.crls(BILLING))


def test_without_lists_the_evidence_says_so() -> None:
    bundle = evidence(verifier=PeerVerifier(BUNDLES))
    assert json.loads(bundle)["crls"] == []
    assert not verify_evidence(bundle, BUNDLES, at=LATER).revocation_checked


def test_a_message_for_a_url_has_its_receivers_named() -> None:
    bundle = evidence(audience="https://billing.example")
    receivers = exactly(BILLING.agent_id)
    assert verify_evidence(bundle, BUNDLES, at=LATER, receivers=receivers).receiver.agent_id == BILLING.agent_id
    with pytest.raises(PeerNotAllowed):
        verify_evidence(bundle, BUNDLES, at=LATER, receivers=exactly(PLANNER.agent_id))
    with pytest.raises(ConfigurationError):
        verify_evidence(bundle, BUNDLES, at=LATER)


def test_a_receipt_is_the_receivers() -> None:
    with pytest.raises(ConfigurationError):
        make_evidence(message(), credentials=PLANNER, verifier=VERIFIER, jti=new_message_id())


def test_there_is_no_receipt_for_whom_the_verifier_refuses_by_now() -> None:
    received = message()
    with pytest.raises(CertificateRevoked):
        received.evidence(
            credentials=BILLING, verifier=PeerVerifier(BUNDLES, FORGE.crls(PLANNER)), jti=new_message_id()
        )


def test_there_is_no_receipt_that_nobody_would_believe() -> None:
    for_clients = FOREIGN.leaf("/billing", eku=[ExtendedKeyUsageOID.CLIENT_AUTH])
    for credentials in (
        for_clients,
        FOREIGN.leaf("/billing", not_after=NOW),
        Forge("partner.example").leaf("/billing"),
    ):
        with pytest.raises(ConfigurationError):
            make_evidence(message(), credentials=credentials, verifier=VERIFIER, jti=new_message_id())
    unlisted = PeerVerifier(BUNDLES, FORGE.crls())  # nobody asks for CRLs of the receiver's domain
    assert verify_evidence(evidence(verifier=unlisted), BUNDLES, at=LATER)
    with pytest.raises(ConfigurationError):
        evidence(audience="billing")


def test_there_is_no_receipt_of_a_receipt() -> None:
    verified = verify_evidence(evidence(), BUNDLES, at=LATER)
    assert isinstance(verified, VerifiedEvidence)
    receipt = VerifiedMessage(
        **{
            **{name: getattr(verified.message, name) for name in VerifiedMessage.__slots__},
            "header": {"typ": "a2a-rcpt+jws"},
        }
    )
    with pytest.raises(ConfigurationError):
        receipt.evidence(credentials=BILLING, verifier=VERIFIER, jti=new_message_id())


def test_evidence_is_bounded() -> None:
    crls = RevocationLists.of([crl for _ in range(MAX_CRLS) for crl in FORGE.crls().crls])
    verifier = PeerVerifier(BUNDLES, crls)
    with pytest.raises(ConfigurationError):
        evidence(verifier=verifier)
