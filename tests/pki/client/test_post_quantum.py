"""Agents with post-quantum keys (ML-DSA): nobody gets such a certificate by accident, and who has one keeps it."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pki import cli, requests
from pki.client import RenewingCredentials, enrol
from pki.errors import EnrolmentFailed, KeyTypeRefused, PKIError, PossessionNotProven
from pki.rules import KEY_TYPES, Rules
from tests.pki.client.parts import BILLING, CA, DOMAIN
from trust.bundles import TrustBundles
from trust.credentials import Credentials
from trust.errors import ConfigurationError
from trust.peers import verify_peer
from trust.private_keys import POST_QUANTUM, generate, ml_dsa

KINDS = sorted(POST_QUANTUM)
ANY_KEY = '[[allow]]\nids = ["/**"]\n'
BY_NAME = ANY_KEY + f"keys = {KINDS}\n"
DENIED = BY_NAME + '[[deny]]\nids = ["/billing"]\n'


def allowing(kind: str) -> str:
    return ANY_KEY + f'keys = ["{kind}"]\n'


POLICIES: list[tuple[str, str | None, str, type[PKIError] | None]] = [
    ("no policy", None, "ML-DSA-44", KeyTypeRefused),
    ("a policy that says nothing of keys", ANY_KEY, "ML-DSA-65", KeyTypeRefused),
    ("a policy that names another kind", allowing("ML-DSA-65"), "ML-DSA-44", KeyTypeRefused),
    ("a policy that names elliptic curves", allowing("P-256"), "ML-DSA-87", KeyTypeRefused),
    ("a deny rule that says nothing of keys", DENIED, "ML-DSA-44", PKIError),
    *((f"a policy that names {kind}", BY_NAME, kind, None) for kind in KINDS),
]


@pytest.mark.parametrize(
    ("policy", "kind", "expected"), [row[1:] for row in POLICIES], ids=[row[0] for row in POLICIES]
)
def test_only_a_policy_that_names_the_kind_lets_it_through(
    ca: CA, policy: str | None, kind: str, expected: type[PKIError] | None
) -> None:
    if policy is not None:
        ca.ca.set_policy(policy)
    key = generate(kind)
    csr = requests.make(key, BILLING)
    if expected is not None:
        with pytest.raises(expected) as caught:
            ca.ca.issue(csr, BILLING)
        assert kind in str(caught.value) or policy is DENIED
        return
    issued = ca.ca.issue(csr, BILLING)
    assert issued.certificate.public_key() == key.public_key()
    peer = verify_peer(
        [c.public_bytes(Encoding.DER) for c in issued.chain],
        bundles=TrustBundles.of(ca.ca.bundle()),
        now=ca.clock(),
        usage="client",
    )
    assert ml_dsa(peer.public_key) == kind


@pytest.mark.parametrize("kind", KINDS)
def test_possession_is_proven_by_the_very_key(kind: str) -> None:
    good = requests.make(generate(kind), BILLING)
    assert ml_dsa(requests.parse(good).public_key) == kind
    another = generate(kind).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    own = x509.load_der_x509_csr(good).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for forged in (good.replace(own, another), good[:-1] + bytes([good[-1] ^ 1])):
        assert forged != good
        with pytest.raises(PossessionNotProven):
            requests.parse(forged)


def test_every_kind_of_key_has_a_name_in_a_policy() -> None:
    for kind in KEY_TYPES:
        Rules.parse(allowing(kind), DOMAIN)


def test_an_agent_enrols_with_one_and_renews_with_one_of_its_kind(ca: CA, home: Path) -> None:
    ca.ca.set_policy(allowing("ML-DSA-44"))
    with pytest.raises(ConfigurationError, match="kind of key"):
        enrol(**ca.enrolling(home), key_type="ML-DSA-4")
    made = enrol(**ca.enrolling(home), key_type="ML-DSA-44")
    assert ml_dsa(made.certificate.public_key()) == "ML-DSA-44"
    agent = RenewingCredentials(home)
    agent.renew()  # over mutual TLS, with the certificate that is renewed
    renewed = agent.current()
    assert renewed.thumbprint != made.thumbprint
    assert renewed.private_key.public_key() != made.private_key.public_key()
    assert ml_dsa(renewed.certificate.public_key()) == "ML-DSA-44"
    assert Credentials.load(home).thumbprint == renewed.thumbprint
    verify_peer(renewed.chain_der, bundles=agent.bundles.current(), now=ca.clock(), usage="server")


def test_the_service_says_that_it_takes_no_such_key(ca: CA, home: Path) -> None:
    with pytest.raises(EnrolmentFailed, match=r"pki\.policy\.key"):
        enrol(**ca.enrolling(home), key_type="ML-DSA-65")


def test_the_command_asks_for_one(ca: CA, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ca.ca.set_policy(allowing("ML-DSA-65"))
    asked = ["enrol", "--ca", ca.url, "--root-fingerprint", ca.fingerprint, "--token", ca.token(), "--out", str(home)]
    assert cli.main([*asked, "--key", "ML-DSA-65"]) == 0, capsys.readouterr().err
    assert ml_dsa(Credentials.load(home).certificate.public_key()) == "ML-DSA-65"
