"""Renewal, revocation and rotation with the real CA service, as an agent meets them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from pki.client import Condition, RenewingCredentials, enrol
from pki.errors import EnrolmentFailed
from tests.pki.client.parts import BILLING, CA
from tests.pki.client.test_renewal import until
from trust.credentials import Credentials
from trust.errors import CertificateRevoked, TrustError
from trust.peers import verify_peer


def test_three_renewals_of_seconds_in_a_row(ca: CA, home: Path) -> None:
    first = enrol(**ca.enrolling(home, token=ca.token(lifetime=timedelta(seconds=6))))
    seen = {first.thumbprint}
    with RenewingCredentials(home) as agent:
        while len(seen) < 4:
            until(lambda: agent.current().thumbprint not in seen)
            seen.add(agent.current().thumbprint)
            until(lambda: agent.health.condition is Condition.HEALTHY)  # it is told a moment later
            verify_peer(agent.current().chain_der, bundles=agent.bundles.current(), now=ca.clock(), usage="client")
        assert Credentials.load(home).thumbprint == agent.current().thumbprint
    records = [r for r in ca.ca.certificates() if r.spiffe_id == str(BILLING)]
    # No storm: one at a time, at two thirds of six seconds.
    assert len(records) <= 5 and seen <= {r.thumbprint for r in records}


def test_an_outage_is_survived(ca: CA, home: Path) -> None:
    enrol(**ca.enrolling(home, token=ca.token(lifetime=timedelta(seconds=18))))
    with RenewingCredentials(home) as agent:
        present = agent.current()
        ca.stop()
        # The first attempt may have been under way when the service ended, and says so in other words.
        until(lambda: agent.health.condition is Condition.LATE and "cannot be reached" in (agent.health.problem or ""))
        assert agent.health.ok
        ca.start()
        until(lambda: agent.current() is not present)
        until(lambda: agent.health.condition is Condition.HEALTHY)


def test_one_that_has_expired_is_told_to_enrol_again_and_a_token_brings_it_back(ca: CA, home: Path) -> None:
    enrol(**ca.enrolling(home, token=ca.token(lifetime=timedelta(seconds=5))))
    until(lambda: ca.clock() > Credentials.load(home).certificate.not_valid_after_utc)
    token: list[str] = []
    with RenewingCredentials(home, token=lambda: token[0] if token else None) as agent:
        until(lambda: agent.health.failures)
        assert agent.health.condition is Condition.EXPIRED
        assert "enrol again with a new token" in str(agent.health)
        assert agent.health.next_attempt - ca.clock() > timedelta(minutes=1)
        token.append(ca.token())
        until(lambda: agent.health.condition is Condition.HEALTHY)


@pytest.mark.parametrize("how", ["banned", "revoked", "revoked and banned"])
def test_a_revoked_or_banned_agent_is_refused_and_leaves_the_service_in_peace(ca: CA, home: Path, how: str) -> None:
    made = enrol(**ca.enrolling(home))
    if "revoked" in how:
        ca.ca.revoke_agent(BILLING, x509.ReasonFlags.key_compromise)
    if "banned" in how:
        ca.ca.ban(BILLING)
    with RenewingCredentials(home) as agent:
        with pytest.raises(TrustError) as caught:
            agent.renew()
        assert agent.health.condition is Condition.REFUSED, caught.value
        assert isinstance(caught.value, EnrolmentFailed), caught.value
        assert agent.current().thumbprint == made.thumbprint
        assert agent.health.next_attempt - ca.clock() > timedelta(minutes=2)


def test_a_tainted_intermediate_means_a_new_certificate_at_the_next_poll(ca: CA, home: Path) -> None:
    enrol(**ca.enrolling(home))
    agent = RenewingCredentials(home)
    before = agent.current()
    agent.poll()
    assert agent.health.next_attempt > ca.clock() + timedelta(hours=10)
    tainted = ca.ca.intermediate
    ca.ca.taint(tainted.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex())
    agent.poll()
    assert agent.health.next_attempt <= ca.clock()

    # The service's own certificate is below the tainted one as well, and is replaced at its next round.
    def reached() -> bool:
        agent.poll()
        return agent.health.trust_problem is None

    until(reached)
    with agent:
        until(lambda: agent.current().thumbprint != before.thumbprint)
    assert agent.current().chain[1] != tainted
    verify_peer(agent.current().chain_der, bundles=agent.bundles.current(), now=ca.clock(), usage="server")


@pytest.fixture
def listing(tmp_path: Path) -> Iterator[CA]:
    made = CA(tmp_path, public_url="http://pki.fleet.example")
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_a_revocation_reaches_whoever_holds_the_lists(listing: CA, home: Path, tmp_path: Path) -> None:
    planner = enrol(**listing.enrolling(tmp_path / "planner", token=listing.token("spiffe://fleet.example/planner")))
    enrol(**listing.enrolling(home))
    with RenewingCredentials(home) as agent:
        chain, bundles = planner.chain_der, agent.bundles.current()
        verify_peer(chain, bundles=bundles, now=listing.clock(), crls=agent.crls.current(), usage="client")
        listing.ca.revoke(planner.certificate.serial_number, x509.ReasonFlags.superseded)
        time.sleep(1.2)  # the service keeps what it publishes for a second
        agent.poll()
        with pytest.raises(CertificateRevoked):
            verify_peer(chain, bundles=bundles, now=listing.clock(), crls=agent.crls.current(), usage="client")
