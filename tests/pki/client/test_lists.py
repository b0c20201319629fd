"""The agent's copy of the revocation lists: whole, or known not to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.responses import JSONResponse, PlainTextResponse, Response

from pki.client import RenewingCredentials, enrol
from pki.client.est import MAX_LISTS
from pki.client.lists import HOLD_HINTS, MAX_FAILURES
from pki.list_names import crl_name
from pki.store import store
from tests.pki.client.fake import FORGE, Service
from tests.pki.client.parts import BILLING, CA
from tests.pki.client.test_renewal import _key_id, agent, listed, until, with_lists
from trust.bundles import REFRESH_HINT_SECONDS
from trust.errors import CertificateRevoked, RevocationUnknown
from trust.peers import verify_peer

HINT = timedelta(seconds=REFRESH_HINT_SECONDS)
ROOT, INTERMEDIATE = f"{_key_id(FORGE.root)}.crl", f"{_key_id(FORGE.intermediate)}.crl"


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    with made.running() as url:
        made.url = url  # type: ignore[attr-defined]
        listed(made)
        yield made


@pytest.fixture
def listing(tmp_path: Path) -> Iterator[CA]:
    made = CA(tmp_path, public_url="http://pki.fleet.example")
    try:
        made.start()
        yield made
    finally:
        made.close()


def names(source: RenewingCredentials) -> list[int]:
    """How many entries each list has."""
    return [len(crl) for crl in source.crls.current().crls]


def problem(source: RenewingCredentials) -> str:
    return source.health.trust_problem or ""


# The index.


@pytest.mark.parametrize(
    ("index", "says"),
    [
        pytest.param(PlainTextResponse("no", 404), "not a CA service", id="none"),
        pytest.param(PlainTextResponse("{"), "another form", id="no JSON"),
        pytest.param(PlainTextResponse("[" * 100_000), "another form", id="endless JSON"),
        pytest.param(JSONResponse([]), "another form", id="no object"),
        pytest.param(JSONResponse({"lists": {}}), "another form", id="no list"),
        pytest.param(JSONResponse({"lists": [ROOT, 7]}), "another form", id="no text"),
        pytest.param(JSONResponse({"lists": [ROOT, "../ca.json"]}), "another form", id="a path"),
        pytest.param(JSONResponse({"lists": [ROOT, INTERMEDIATE.replace(".crl", ".delta.crl")]}), "form", id="a delta"),
        pytest.param(JSONResponse({"lists": []}), "got 0 names", id="empty"),
        pytest.param(JSONResponse({"lists": [ROOT, ROOT]}), "each once", id="twice"),
        pytest.param(
            JSONResponse({"lists": [f"{'a' * 40}-{n}.crl" for n in range(1, MAX_LISTS + 2)]}), "1025 names", id="long"
        ),
        pytest.param(JSONResponse({"lists": [ROOT]}), f"no list of the CA {INTERMEDIATE[:40]}", id="one CA missing"),
        pytest.param(PlainTextResponse("", 503), "in trouble", id="down"),
    ],
)
def test_without_a_whole_index_the_lists_of_before_stay(service: Service, index: Response, says: str) -> None:
    source = agent(service, with_lists())
    source.poll()
    assert (names(source), problem(source)) == ([0, 0], "")
    before = source.crls.current()
    listed(service, 4711)
    service.instead["/crl"] = index
    source.poll()
    assert says in problem(source)
    assert source.crls.current() is before
    del service.instead["/crl"]
    source.poll()
    assert (names(source), problem(source)) == ([1, 1], "")


def test_an_agent_that_never_saw_an_index_lets_nobody_pass(service: Service) -> None:
    service.instead["/crl"] = PlainTextResponse("no", 404)
    source = agent(service, with_lists())
    source.poll()
    with pytest.raises(RevocationUnknown):
        source.crls.current()


def test_a_broken_index_keeps_neither_the_bundle_nor_the_advice_back(service: Service) -> None:
    service.instead["/crl"] = PlainTextResponse("no", 404)
    service.urgent = True
    source = agent(service, with_lists())
    source.poll()
    assert source.bundles.current().by_domain["fleet.example"].sequence == 7
    assert source.health.next_attempt <= datetime.now(UTC)


# Single lists.


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        pytest.param(PlainTextResponse("no list"), "a CRL in DER", id="no list"),
        pytest.param(PlainTextResponse("", 404), "not a CA service", id="gone"),
        pytest.param(PlainTextResponse("", 503), "in trouble", id="down"),
        pytest.param(None, "that very list", id="another's"),
    ],
)
def test_a_list_that_cannot_be_had_stays_the_one_of_before(
    service: Service, answer: Response | None, says: str
) -> None:
    source = agent(service, with_lists())
    source.poll()
    old = source.crls.current().crls
    listed(service, 4711)
    service.instead[f"/crl/{ROOT}"] = service.instead[f"/crl/{INTERMEDIATE}"] if answer is None else answer
    source.poll()
    assert says in problem(source)
    assert names(source) == [0, 1] and source.crls.current().crls[0] is old[0], "the other one is the new one"


def test_a_list_that_was_never_had_is_missed_by_every_verifier(service: Service) -> None:
    service.instead[f"/crl/{ROOT}"] = PlainTextResponse("", 503)
    source = agent(service, with_lists())
    source.poll()
    assert "in trouble" in problem(source) and names(source) == [0]
    with pytest.raises(RevocationUnknown):
        verify_peer(
            FORGE.leaf("/planner").chain_der,
            bundles=source.bundles.current(),
            now=datetime.now(UTC),
            crls=source.crls.current(),
            usage="client",
        )


def test_a_service_in_trouble_is_not_asked_for_a_thousand_lists(service: Service) -> None:
    shards = [f"{INTERMEDIATE[:40]}-{n}.crl" for n in range(1, 20)]
    for name in shards:
        service.instead[f"/crl/{name}"] = PlainTextResponse("", 503)
    source = agent(service, with_lists())
    source.poll()
    assert sum(path.removeprefix("/crl/") in shards for path in service.paths) == MAX_FAILURES
    assert names(source) == [0, 0] and "in trouble" in problem(source)


def test_a_list_without_a_name(service: Service) -> None:
    bare = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(FORGE.root.subject)
        .last_update(datetime.now(UTC))
        .next_update(datetime.now(UTC) + HINT)
        .sign(FORGE.root_key, hashes.SHA256())
    )
    service.instead[f"/crl/{ROOT}"] = Response(bare.public_bytes(Encoding.DER))
    source = agent(service, with_lists())
    source.poll()
    assert "one without a name" in problem(source)


def test_a_list_without_an_end_is_kept_for_ever(service: Service) -> None:
    """RFC 5280 section 4.1.2.5 has a date for that, the last of the calendar."""
    name = f"{INTERMEDIATE[:40]}-1.crl"
    where = [x509.UniformResourceIdentifier(f"http://pki.example/crl/{name}")]
    scope = x509.IssuingDistributionPoint(where, None, False, False, None, False, False)
    endless = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(FORGE.intermediate.subject)
        .last_update(datetime.now(UTC))
        .next_update(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
        .add_extension(x509.CRLNumber(1), False)
        .add_extension(scope, True)
        .add_extension(x509.AuthorityKeyIdentifier(bytes.fromhex(INTERMEDIATE[:40]), None, None), False)
        .sign(FORGE.key, hashes.SHA256())
    )
    service.instead[f"/crl/{name}"] = Response(endless.public_bytes(Encoding.DER))
    source = agent(service, with_lists())
    source.poll()
    assert (names(source), problem(source)) == ([0, 0, 0], "")
    del service.instead[f"/crl/{name}"]
    source.poll()
    assert (names(source), problem(source)) == ([0, 0, 0], "")


# With the real service.


def test_the_lists_of_a_second_intermediate_whose_shards_begin_at_3(
    listing: CA, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards are counted over all CAs: the next one of an agent need not be the next one of its issuer."""
    enrol(**listing.enrolling(home))
    source = RenewingCredentials(home)
    source.poll()
    first = _key_id(listing.ca.intermediate)
    assert {f"{_key_id(listing.ca.root)}.crl", f"{first}.crl"} <= set(entries(source))
    listing.ca.taint(first)
    monkeypatch.setattr(store.Store, "shard", lambda _: 3)
    planner = enrol(**listing.enrolling(tmp_path / "planner", token=listing.token("spiffe://fleet.example/planner")))
    second = _key_id(planner.chain[1])
    assert second != first
    time_passes(source, lambda: f"{second}-3.crl" in entries(source))
    assert {f"{first}.crl", f"{second}.crl"} <= set(entries(source)) and problem(source) == ""

    def verify() -> None:
        crls, now = source.crls.current(), listing.clock()
        verify_peer(planner.chain_der, bundles=source.bundles.current(), now=now, crls=crls, usage="client")

    verify()
    listing.ca.revoke(planner.certificate.serial_number)
    time_passes(source, lambda: entries(source)[f"{second}-3.crl"] == 1)
    with pytest.raises(CertificateRevoked):
        verify()


def entries(source: RenewingCredentials) -> dict[str, int]:
    """How many entries each list has, by its name."""
    return {crl_name(crl): len(crl) for crl in source.crls.current().crls}


def time_passes(source: RenewingCredentials, condition: Callable[[], Any]) -> None:
    """The service keeps what it publishes for a second."""

    def asked() -> Any:
        source.poll()
        return condition()

    until(asked)


def test_short_lived_agents_get_the_lists_from_the_service_itself(listing: CA, home: Path) -> None:
    """Their certificates name none, and the URL that their intermediate's names leads nowhere here."""
    made = enrol(**listing.enrolling(home, token=listing.token(lifetime=timedelta(minutes=10))))
    with pytest.raises(x509.ExtensionNotFound):
        made.certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints)
    with RenewingCredentials(home) as source:
        ours = {f"{_key_id(issuer)}.crl" for issuer in (listing.ca.root, listing.ca.intermediate)}
        assert ours <= set(entries(source))
        verify_peer(
            made.chain_der,
            bundles=source.bundles.current(),
            now=listing.clock(),
            crls=source.crls.current(),
            usage="client",
        )


def test_a_revoked_intermediate_is_believed_until_everybody_could_renew(listing: CA, home: Path) -> None:
    made = enrol(**listing.enrolling(home, token=listing.token(lifetime=timedelta(hours=1))))
    source = RenewingCredentials(home, clock=listing.clock)
    source.poll()
    tainted = _key_id(listing.ca.intermediate)
    listing.ca.taint(tainted)
    revoked_at = listing.clock()

    def verify() -> None:
        crls, now = source.crls.current(), listing.clock()
        verify_peer(made.chain_der, bundles=source.bundles.current(), now=now, crls=crls, usage="client")

    time_passes(source, lambda: f"{_key_id(listing.ca.intermediate)}.crl" in entries(source))
    verify()
    assert source.health.next_attempt <= listing.clock(), "and meanwhile everybody renews"
    listing.clock.offset = revoked_at + HOLD_HINTS * HINT - timedelta(seconds=30) - datetime.now(UTC)
    source.poll()
    verify()
    held = source.crls.current()
    # Whoever starts in between goes on with what it held...
    again = RenewingCredentials(home, clock=listing.clock)
    again.poll()
    assert [crl.fingerprint(hashes.SHA256()) for crl in again.crls.current().crls] == [
        crl.fingerprint(hashes.SHA256()) for crl in held.crls
    ]
    listing.clock.advance(seconds=31)
    source.poll()
    with pytest.raises(CertificateRevoked):
        verify()

    # ...and the renewed agent is believed. The service's own certificate was below the tainted one as well, and is
    # replaced at its next round; until then this agent refuses even the service.
    def renewed() -> bool:
        with suppress(CertificateRevoked):
            source.renew()
        return source.current().thumbprint != made.thumbprint

    until(renewed)
    made = source.current()
    assert _key_id(made.chain[1]) != tainted
    verify()


def test_a_revoked_agent_is_believed_no_longer_than_that(listing: CA, home: Path) -> None:
    made = enrol(**listing.enrolling(home))
    source = RenewingCredentials(home, clock=listing.clock)
    source.poll()
    listing.ca.revoke_agent(BILLING)
    time_passes(source, lambda: sum(map(len, source.crls.current().crls)) == 1)
    with pytest.raises(CertificateRevoked):
        verify_peer(
            made.chain_der,
            bundles=source.bundles.current(),
            now=listing.clock(),
            crls=source.crls.current(),
            usage="client",
        )


def test_a_revocation_that_our_clock_has_not_reached_holds_nothing_back(listing: CA, home: Path) -> None:
    enrol(**listing.enrolling(home))
    source = RenewingCredentials(home, clock=listing.clock)
    source.poll()
    listing.ca.taint(_key_id(listing.ca.intermediate), listing.clock() + timedelta(minutes=2))
    time_passes(source, lambda: sum(map(len, source.crls.current().crls)) == 1)
