"""Our verifier and x509-limbo agree, but for the differences that are listed here, each with its reason.

The cases are not part of this repository: A2A_TRUST_LIMBO names the folder that holds `limbo.json.gz`.
"""

from __future__ import annotations

import pytest

from tests.conformance.limbo import FOLDER, STRICTER, Case, cases, not_about_agents, verdict
from trust.bundles import TrustBundle, TrustBundles
from trust.errors import PeerError
from trust.peers import verify_peer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FOLDER is None, reason="A2A_TRUST_LIMBO does not name the folder of limbo.json.gz"),
]

# Valid chains that we refuse. There is none that has to be refused and that we accept.
KNOWN_DIFFERENCES = {
    "crl::issuer-no-keyusage-extension": "a CA without keyUsage: RFC 5280 section 4.2.1.3 demands it",
    "cve::cve-2024-0567": "ten certificates are presented, and we read eight",
    "pathlen::validation-ignores-pathlen-in-leaf": "the leaf is a CA: X509-SVID section 4.1 forbids it",
    "rfc5280::ca-as-leaf": "the leaf is a CA: X509-SVID section 4.1 forbids it (webpki::ca-as-leaf agrees)",
    "rfc5280::eku::ee-without-eku": "a leaf without purposes is good for any (webpki::eku::ee-without-eku agrees)",
    "rfc5280::root-and-intermediate-swapped": "trust ends at self-signed roots, never at an intermediate in a bundle",
    "rfc5280::validity::notafter-fractional": "ambiguous, as the case says; for us notAfter is an instant",
    "webpki::nc::permitted-dns-match-noncritical": "RFC 5280 section 4.2.1.10 (rfc5280::nc::…-noncritical agrees)",
    "online::fastly.com": "the root has serial number 0: RFC 5280 section 4.1.2.2 demands a positive one",
}

CASES = {case.id: case for case in cases(bettertls=False)}


@pytest.fixture(scope="module")
def bettertls() -> list[Case]:
    return cases(bettertls=True)


@pytest.mark.parametrize("name", CASES)
def test_the_verdict_is_that_of_x509_limbo(name: str) -> None:
    case = CASES[name]
    error = verdict(case)
    if name in KNOWN_DIFFERENCES:
        assert case.valid, "no chain that has to be refused is ever a known difference"
        assert error is not None, "this agrees by now: take it off the list"
    elif case.valid:
        assert error is None, error
    else:
        assert error is not None or not_about_agents(case)


def test_every_client_case_agrees() -> None:
    clients = [case for case in CASES.values() if case.usage == "client"]
    assert len(clients) >= 10
    assert [case.id for case in clients if (verdict(case) is None) != case.valid] == []


def test_every_case_of_revocation_agrees_but_one() -> None:
    lists = [case for case in CASES.values() if case.crls]
    assert len(lists) >= 8
    assert [case.id for case in lists if (verdict(case) is None) != case.valid] == ["crl::issuer-no-keyusage-extension"]


def test_the_verdict_is_that_of_bettertls(bettertls: list[Case]) -> None:
    """Nine thousand combinations of names and constraints, and eighty graphs in which a path has to be found."""
    assert len(bettertls) > 9000
    unused = set(STRICTER)
    wrong = []
    for case in bettertls:
        error = verdict(case)
        if case.valid and error is not None:
            rules = {rule for rule in STRICTER if rule(case, error)}
            unused -= rules
            if not rules:
                wrong.append(f"{case.id}: refused: {error}")
        elif not case.valid and error is None and not not_about_agents(case):
            wrong.append(f"{case.id}: accepted")
    assert wrong == []
    assert not unused, "this difference is gone: take the rule off the list"


def test_no_web_site_is_an_agent(bettertls: list[Case]) -> None:
    """The whole verifier, over certificates of every kind of oddity: none has a SPIFFE ID, none gets through."""
    bundles = TrustBundles.of(TrustBundle(trust_domain="limbo.example", roots=()))
    for case in (*CASES.values(), *bettertls):
        with pytest.raises(PeerError):
            verify_peer(case.chain, bundles=bundles, now=case.now, usage=case.usage)
