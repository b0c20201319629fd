"""Published revocation: lists by issuer and shard, deltas, OCSP; judged by our own verifier and by others."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as oracle

from pki import revocation
from pki.errors import AuthorityDamaged, KeyStoreError, StoreError, UnknownName
from pki.list_names import crl_file_name, crl_name
from pki.profiles import CRL_LIFETIME, CRL_RETENTION, INTERMEDIATE_LIFETIME, Urls
from pki.records import State
from pki.store import DATABASE_FILE, Store
from pki.store import store as store_module
from tests.pki.conftest import DOMAIN, NOW
from tests.pki.judges import lint, needs_openssl, openssl
from tests.pki.small_ca import BASE, DAY, SmallCA
from trust.bundles import RevocationLists, TrustBundle, TrustBundles
from trust.errors import CertificateRevoked, RevocationUnknown, WrongExtendedKeyUsage
from trust.peers import PeerVerifier, verify_peer

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
HALF = CRL_LIFETIME / 2


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[SmallCA]:
    made = SmallCA.make(tmp_path / "ca")
    yield made
    made.store.close()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[SmallCA]:
    """Without URLs: nobody is told where lists are."""
    made = SmallCA.make(tmp_path / "plain", Urls())
    yield made
    made.store.close()


def by_name(lists: RevocationLists) -> dict[str, x509.CertificateRevocationList]:
    return {crl_name(crl): crl for crl in lists.crls}


FIRST = int(NOW.timestamp())  # the number of a list that is the first


def number(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def serials(crl: x509.CertificateRevocationList) -> set[int]:
    return {entry.serial_number for entry in crl}


def shard_name(ca: SmallCA, shard: int = 0, *, delta: bool = False) -> str:
    return crl_file_name(ca.intermediate.key_id, shard, delta=delta)


def bundles(ca: SmallCA) -> TrustBundles:
    return TrustBundles.of(TrustBundle(trust_domain=DOMAIN, roots=(ca.root.certificate,)))


def chain(ca: SmallCA, leaf: x509.Certificate) -> list[bytes]:
    return [c.public_bytes(Encoding.DER) for c in (leaf, ca.intermediate.certificate)]


def judge(
    ca: SmallCA,
    leaf: x509.Certificate,
    crls: RevocationLists | list[x509.CertificateRevocationList],
    now: datetime = NOW,
) -> None:
    verify_peer(chain(ca, leaf), bundles=bundles(ca), now=now, crls=crls, usage="client")


# Lists.


def test_a_new_ca_has_an_empty_list_of_each_issuer(ca: SmallCA) -> None:
    lists = by_name(ca.revocations().lists(NOW))
    # And one ahead: the list of the next shard is known before its first certificate.
    assert set(lists) == {f"{ca.root.key_id}.crl", f"{ca.intermediate.key_id}.crl", shard_name(ca, 1)}
    assert all(number(crl) == FIRST and not serials(crl) for crl in lists.values())
    crl = lists[shard_name(ca)]
    scope = crl.extensions.get_extension_for_class(x509.IssuingDistributionPoint)
    assert scope.critical
    assert scope.value.full_name == [x509.UniformResourceIdentifier(f"{BASE}/crl/{shard_name(ca)}")]
    of_the_root = lists[crl_file_name(ca.root.key_id)]
    assert all(e.oid != x509.IssuingDistributionPoint.oid for e in of_the_root.extensions), "the root is on no place"


def test_without_urls_there_is_one_complete_list(plain: SmallCA) -> None:
    leaf = plain.issue()
    plain.revoke(leaf)
    lists = by_name(plain.revocations().lists(NOW))
    assert set(lists) == {f"{plain.root.key_id}.crl", f"{plain.intermediate.key_id}.crl"}
    listed = lists[shard_name(plain)]
    assert serials(listed) == {leaf.serial_number}
    assert {e.oid._name for e in listed.extensions} == {"authorityKeyIdentifier", "cRLNumber"}
    with pytest.raises(CertificateRevoked):
        judge(plain, leaf, list(lists.values()))
    judge(plain, plain.issue(), list(lists.values()))


def test_a_shard_without_a_place_of_its_own_is_refused(plain: SmallCA) -> None:
    """Its list could not be told from the others: rather none than one that clears what it does not know."""
    plain.issue(shard=1)
    with pytest.raises(ValueError, match="shard without a distribution point"):
        plain.revocations().lists(NOW)


def test_each_shard_has_a_list_and_a_count_of_its_own(ca: SmallCA) -> None:
    leaves = {shard: ca.issue(shard=shard) for shard in (0, 1, 2)}
    revocations = ca.revocations()
    before = by_name(revocations.lists(NOW))
    assert set(before) == {crl_file_name(ca.root.key_id), *(shard_name(ca, shard) for shard in leaves)}
    ca.revoke(leaves[1])
    after = by_name(revocations.lists(NOW))
    for name, crl in after.items():
        touched = name == shard_name(ca, 1)
        assert number(crl) == (FIRST + 1 if touched else FIRST)
        assert serials(crl) == ({leaves[1].serial_number} if touched else set())
        assert (crl is before[name]) != touched, "what has not changed is the same object"
    ca.revoke(leaves[2])
    third = by_name(revocations.lists(NOW))
    assert [number(third[shard_name(ca, shard)]) for shard in leaves] == [FIRST, FIRST + 1, FIRST + 1]


def test_a_list_clears_the_certificates_of_its_own_shard_only(ca: SmallCA) -> None:
    zero, one, victim = ca.issue(), ca.issue(shard=1), ca.issue(shard=1)
    ca.revoke(victim)
    lists = ca.revocations().lists(NOW)
    for leaf in (zero, one):
        judge(ca, leaf, lists)
    with pytest.raises(CertificateRevoked):
        judge(ca, victim, lists)
    without = [crl for crl in lists.crls if crl_name(crl) != shard_name(ca, 1)]
    judge(ca, zero, without)
    for leaf in (one, victim):
        with pytest.raises(RevocationUnknown, match="another distribution point"):
            judge(ca, leaf, without)


def test_a_short_lived_certificate_can_be_revoked_all_the_same(ca: SmallCA) -> None:
    leaf = ca.issue(shard=1, lifetime=HOUR)
    judge(ca, leaf, ca.revocations().lists(NOW))
    ca.revoke(leaf)
    with pytest.raises(CertificateRevoked):
        judge(ca, leaf, ca.revocations().lists(NOW))


def test_a_list_is_made_anew_at_half_its_life_and_not_before(ca: SmallCA) -> None:
    revocations = ca.revocations()
    first = revocations.lists(NOW)
    ca.offline = {ca.root.key_id, ca.intermediate.key_id}  # nobody can sign now
    assert revocations.lists(NOW + HALF - 2 * MINUTE) is first
    with pytest.raises(KeyStoreError):
        revocations.lists(NOW + HALF)
    ca.offline.clear()
    second = revocations.lists(NOW + HALF)
    assert {number(crl) for crl in second.crls} == {FIRST + int(HALF.total_seconds())}
    assert all(crl.next_update_utc and crl.next_update_utc >= NOW + HALF + CRL_LIFETIME - MINUTE for crl in second.crls)


def test_a_list_of_a_clock_that_was_ahead_is_made_anew(ca: SmallCA) -> None:
    revocations = ca.revocations()
    revocations.lists(NOW + HOUR)
    assert all(crl.last_update_utc <= NOW for crl in revocations.lists(NOW).crls)


def test_two_instances_publish_the_same_lists(ca: SmallCA) -> None:
    one, other = ca.revocations(), ca.revocations()
    leaf = ca.issue()
    assert one.lists(NOW).crls == other.lists(NOW + MINUTE).crls
    ca.revoke(leaf)
    assert other.lists(NOW).crls == one.lists(NOW).crls
    assert serials(by_name(one.lists(NOW))[shard_name(ca)]) == {leaf.serial_number}


def test_publishers_and_revokers_at_the_same_time(ca: SmallCA) -> None:
    """No revocation is lost, and no number goes back or stands for two lists, whoever makes them."""
    victims = [(shard, ca.issue(shard=shard)) for shard in (0, 1, 2) for _ in range(6)]
    instances = [ca.revocations() for _ in range(3)]
    seen: list[tuple[str, int, frozenset[int]]] = []

    def work(step: int) -> None:
        shard, victim = victims[step]
        ca.revoke(victim)
        crl = loaded(instances[step % 3].named(shard_name(ca, shard), NOW))
        assert victim.serial_number in serials(crl)
        seen.append((crl_name(crl), number(crl), frozenset(serials(crl))))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(len(victims))))
    assert len({(name, count) for name, count, _ in seen}) == len(set(seen))
    for name, count, listed in seen:
        assert all(listed < other for n, c, other in seen if n == name and c > count)
    lists = by_name(instances[0].lists(NOW))
    for shard in (0, 1, 2):
        assert serials(lists[shard_name(ca, shard)]) == {v.serial_number for s, v in victims if s == shard}


def test_a_revoked_intermediate_stays_on_the_list_of_its_root(ca: SmallCA) -> None:
    leaf = ca.issue()
    revocations = ca.revocations()
    revocations.lists(NOW)
    ca.revoke(ca.intermediate.certificate, reason=x509.ReasonFlags.ca_compromise)
    for later in (timedelta(0), 30 * DAY, INTERMEDIATE_LIFETIME, INTERMEDIATE_LIFETIME + CRL_RETENTION - DAY):
        lists = revocations.lists(NOW + later)
        root_list = by_name(lists)[crl_file_name(ca.root.key_id)]
        assert serials(root_list) == {ca.intermediate.certificate.serial_number}
    with pytest.raises(CertificateRevoked):
        judge(ca, leaf, revocations.lists(NOW))


def test_an_expired_certificate_leaves_the_list_after_a_week(ca: SmallCA) -> None:
    leaf = ca.issue()
    ca.issue(lifetime=7 * DAY)
    ca.revoke(leaf)
    revocations = ca.revocations()
    name = shard_name(ca)
    assert serials(by_name(revocations.lists(NOW + 7 * DAY))[name]) == {leaf.serial_number}
    assert serials(by_name(revocations.lists(NOW + 9 * DAY))[name]) == set()


def test_a_shard_without_living_certificates_needs_no_list(ca: SmallCA) -> None:
    ca.issue(shard=2)
    revocations = ca.revocations()
    assert shard_name(ca, 2) in by_name(revocations.lists(NOW + DAY + CRL_RETENTION))
    later = NOW + DAY + CRL_RETENTION + DAY
    assert shard_name(ca, 2) not in by_name(revocations.lists(later))
    with pytest.raises(UnknownName):
        revocations.named(shard_name(ca, 2), later)


def test_the_lists_of_the_next_certificates_are_published_before_them(
    ca: SmallCA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the CA that issues and of the one that is prepared; of one that has retired no more than it needs."""
    monkeypatch.setattr(store_module, "SHARD_BITS", 2)
    while ca.store.shard() < 3:
        ca.issue(shard=ca.store.shard())
    revocations, key_id = ca.revocations(), ca.intermediate.key_id
    ahead = {shard_name(ca, 3), shard_name(ca, 4)}
    for state in (State.PREPARED, State.ACTIVE):
        ca.store.change_issuers(states={key_id: state}, now=NOW)
        assert ahead <= set(revocations.names(NOW)) == set(by_name(revocations.lists(NOW)))
        assert shard_name(ca, 5) not in revocations.names(NOW)
    ca.store.change_issuers(states={key_id: State.RETIRING}, now=NOW)
    assert not ahead & set(revocations.names(NOW)) or ca.store.shards(key_id, NOW)[-1] == 3


def test_another_instance_knows_the_shard_that_is_issued_into(
    ca: SmallCA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SHARD_BITS", 2)
    other = Store.open(tmp_path / "ca")
    while ca.store.shard() < 3:
        ca.issue(shard=ca.store.shard())
    assert other.shard() < 3
    assert (other.newest_shard(), other.shard()) == (3, 3)
    other.close()


def test_a_pruned_ca_is_not_published(ca: SmallCA) -> None:
    revocations = ca.revocations()
    asked = ask(ca, ca.issue())
    assert answer(revocations.respond(asked, NOW)).certificate_status is oracle.OCSPCertStatus.GOOD
    assert shard_name(ca) in by_name(revocations.lists(NOW))
    later = ca.intermediate.issuer.not_after + CRL_RETENTION + 2 * DAY
    ca.store.change_issuers(states={ca.intermediate.key_id: State.RETIRING}, now=later)
    assert ca.store.prune(issuer=ca.intermediate.key_id, now=later)
    assert set(by_name(revocations.lists(later))) == {crl_file_name(ca.root.key_id)}
    with pytest.raises(UnknownName):
        revocations.named(shard_name(ca), later)
    assert answer(revocations.respond(asked, later)).response_status is oracle.OCSPResponseStatus.UNAUTHORIZED


def test_a_list_by_its_name_is_the_one_of_the_lists(ca: SmallCA) -> None:
    ca.issue(shard=3)
    revocations = ca.revocations()
    lists = by_name(revocations.lists(NOW))
    assert len(lists) == 4
    assert revocations.names(NOW) == tuple(lists)
    assert revocations.published(NOW) == {name: crl.public_bytes(Encoding.DER) for name, crl in lists.items()}
    for name, crl in lists.items():
        assert revocations.named(name, NOW) == crl.public_bytes(Encoding.DER)


NO_NAMES = [
    "", ".crl", "{ca}", "{ca}.pem", "{ca}.crl/", "../{ca}.crl", "{ca}-0.crl", "{ca}-00.crl", "{ca}-01.crl",
    "{ca}-3.crl", "{ca}--1.crl", "{ca}-4294967296.crl", "{ca}.delta.crl", "{ca}-2.delta.crl", "{ca}-2.crl\n",
    "{CA}.crl", "{ca}.crl.crl", "0" * 40 + ".crl",
]  # fmt: skip


@pytest.mark.parametrize("name", NO_NAMES)
def test_there_is_no_such_list(name: str, ca: SmallCA, tmp_path: Path) -> None:
    ca.issue(shard=2)
    key_id = ca.intermediate.key_id
    with pytest.raises(UnknownName):
        ca.revocations().named(name.format(ca=key_id, CA=key_id.upper()), NOW)
    with closing(sqlite3.connect(tmp_path / "ca" / DATABASE_FILE)) as connection, connection:
        rows = connection.execute("SELECT shard FROM crls").fetchall()
    connection.close()
    assert all(shard in (0, 1, 2) for (shard,) in rows), "strangers who guess names fill no table"


def test_another_list_in_the_database_is_noticed(ca: SmallCA, tmp_path: Path) -> None:
    revocations = ca.revocations()
    foreign = SmallCA.make(tmp_path / "foreign").revocations().lists(NOW).crls[0].public_bytes(Encoding.DER)
    held = revocations.lists(NOW)
    with closing(sqlite3.connect(tmp_path / "ca" / DATABASE_FILE)) as connection, connection:
        connection.execute("UPDATE crls SET der = ?", (foreign,))
    connection.close()
    assert revocations.lists(NOW) is held, "what it has verified, it has"
    for call in (lambda one: one.lists(NOW), lambda one: one.named(shard_name(ca), NOW), lambda one: one.missing(NOW)):
        with pytest.raises(AuthorityDamaged):
            call(ca.revocations())


def test_the_list_of_another_shard_in_the_wrong_row_is_noticed(ca: SmallCA, tmp_path: Path) -> None:
    ca.issue(shard=1)
    ca.revocations().lists(NOW)
    with closing(sqlite3.connect(tmp_path / "ca" / DATABASE_FILE)) as connection, connection:
        connection.execute(
            "UPDATE crls SET der = (SELECT der FROM crls WHERE issuer = ?1 AND shard = 1) WHERE issuer = ?1",
            (ca.intermediate.key_id,),
        )
    connection.close()
    with pytest.raises(AuthorityDamaged):
        ca.revocations().named(shard_name(ca), NOW)


def test_what_is_published_is_what_was_verified(ca: SmallCA, tmp_path: Path) -> None:
    """An entry renamed under the old signature: a process that knows the list still publishes the true one."""
    victim = ca.issue()
    ca.revoke(victim)
    revocations = ca.revocations()
    true = revocations.named(shard_name(ca), NOW)
    serial = victim.serial_number.to_bytes(16)
    assert serial in true
    with closing(sqlite3.connect(tmp_path / "ca" / DATABASE_FILE)) as connection, connection:
        forged = true.replace(serial, serial[::-1])
        connection.execute("UPDATE crls SET der = ? WHERE issuer = ?", (forged, ca.intermediate.key_id))
    connection.close()
    assert revocations.named(shard_name(ca), NOW) == true
    with pytest.raises(AuthorityDamaged):
        ca.revocations().named(shard_name(ca), NOW)


# Offline keys.


def test_the_list_of_an_offline_root_lasts_as_long_as_it_was_signed_for(ca: SmallCA) -> None:
    revocations = ca.revocations()
    revocations.lists(NOW)
    revocations.sign_for_long(ca.root.key_id, ca.root.key, lifetime=60 * DAY, now=NOW)
    assert ca.store.forget_key(ca.root.key_id)
    ca.offline = {ca.root.key_id}
    leaf = ca.issue(now=NOW + 50 * DAY)
    lists = revocations.lists(NOW + 50 * DAY)
    kept = by_name(lists)[crl_file_name(ca.root.key_id)]
    assert number(kept) == FIRST + 1
    judge(ca, leaf, lists, now=NOW + 50 * DAY)
    assert crl_file_name(ca.root.key_id) not in by_name(revocations.lists(NOW + 60 * DAY))


def test_what_an_offline_root_has_not_heard_of_is_not_published(ca: SmallCA) -> None:
    """The list that it signed before would clear the revoked intermediate: verifiers are better off without."""
    leaf = ca.issue()
    revocations = ca.revocations()
    revocations.sign_for_long(ca.root.key_id, ca.root.key, lifetime=60 * DAY, now=NOW)
    ca.store.forget_key(ca.root.key_id)
    ca.offline = {ca.root.key_id}
    ca.revoke(ca.intermediate.certificate)
    lists = revocations.lists(NOW)
    assert set(by_name(lists)) == {shard_name(ca)}
    with pytest.raises(RevocationUnknown):
        judge(ca, leaf, lists)
    revocations.sign_for_long(ca.root.key_id, ca.root.key, lifetime=60 * DAY, now=NOW)
    with pytest.raises(CertificateRevoked):
        judge(ca, leaf, revocations.lists(NOW))


def test_a_key_that_should_be_here_and_is_not_is_told(ca: SmallCA) -> None:
    ca.offline = {ca.root.key_id}
    with pytest.raises(KeyStoreError):
        ca.revocations().lists(NOW)


def test_no_list_of_a_ca_that_is_not_ours(ca: SmallCA) -> None:
    with pytest.raises(UnknownName):
        ca.revocations().sign_for_long("0" * 40, ca.root.key, lifetime=DAY, now=NOW)


# Deltas.


@pytest.fixture
def long(ca: SmallCA, monkeypatch: pytest.MonkeyPatch) -> SmallCA:
    """A CA whose lists count as long from two entries on, with two."""
    monkeypatch.setattr(revocation, "DELTA_FROM", 2)
    ca.revoke(ca.issue(), ca.issue())
    return ca


def loaded(der: bytes) -> x509.CertificateRevocationList:
    return x509.load_der_x509_crl(der)


def base_of(delta: x509.CertificateRevocationList) -> int:
    indicator = delta.extensions.get_extension_for_class(x509.DeltaCRLIndicator)
    assert indicator.critical
    return indicator.value.crl_number


def test_a_short_list_has_no_delta(ca: SmallCA) -> None:
    ca.revoke(ca.issue())
    revocations = ca.revocations()
    crl = loaded(revocations.named(shard_name(ca), NOW))
    assert all(e.oid != x509.FreshestCRL.oid for e in crl.extensions)
    with pytest.raises(UnknownName):
        revocations.named(shard_name(ca, delta=True), NOW)


def test_a_long_list_says_where_its_delta_is(long: SmallCA) -> None:
    revocations = long.revocations()
    base = loaded(revocations.named(shard_name(long), NOW))
    freshest = base.extensions.get_extension_for_class(x509.FreshestCRL)
    assert not freshest.critical
    url = f"{BASE}/crl/{shard_name(long, delta=True)}"
    assert [point.full_name for point in freshest.value] == [[x509.UniformResourceIdentifier(url)]]
    delta = loaded(revocations.named(shard_name(long, delta=True), NOW))
    assert (base_of(delta), number(delta), serials(delta)) == (number(base), number(base), set())
    scopes = [c.extensions.get_extension_for_class(x509.IssuingDistributionPoint) for c in (base, delta)]
    assert scopes[0] == scopes[1], "RFC 5280 section 5.2.4: the same scope"
    names = (crl_file_name(long.root.key_id), shard_name(long), shard_name(long, 1))
    assert revocations.names(NOW) == names
    assert set(revocations.published(NOW)) == {*names, shard_name(long, delta=True)}


def test_a_delta_has_what_was_revoked_since_its_base(long: SmallCA) -> None:
    revocations = long.revocations()
    base = loaded(revocations.named(shard_name(long), NOW))
    later: set[int] = set()
    last = number(base)
    for step in range(1, 4):
        leaf = long.issue()
        long.revoke(leaf, now=NOW + step * MINUTE)
        later.add(leaf.serial_number)
        now = NOW + step * MINUTE
        delta = loaded(revocations.named(shard_name(long, delta=True), now))
        complete = loaded(revocations.named(shard_name(long), now))
        assert delta.is_signature_valid(long.intermediate.key.public_key())
        assert number(delta) == number(complete) > last
        last = number(complete)
        assert (base_of(delta), serials(delta)) == (number(base), later)
        assert serials(complete) == serials(base) | serials(delta), "the complete list is always the newest word"
    # Half a life later everybody has fetched a new one, and the next delta begins there.
    now = NOW + HALF + 3 * MINUTE
    complete = loaded(revocations.named(shard_name(long), now))
    delta = loaded(revocations.named(shard_name(long, delta=True), now))
    assert (base_of(delta), serials(delta)) == (number(complete), set())
    assert revocations.named(shard_name(long, delta=True), now) == delta.public_bytes(Encoding.DER)


def test_our_verifier_takes_revocations_from_a_delta_and_clears_nobody_by_it(long: SmallCA) -> None:
    victim, other = long.issue(), long.issue()
    revocations = long.revocations()
    old = revocations.lists(NOW)
    long.revoke(victim)
    delta = loaded(revocations.named(shard_name(long, delta=True), NOW))
    judge(long, victim, old)
    judge(long, other, [*old.crls, delta])
    with pytest.raises(CertificateRevoked):
        judge(long, victim, [*old.crls, delta])
    without = [crl for crl in old.crls if crl_name(crl) != shard_name(long)]
    with pytest.raises(RevocationUnknown, match="delta"):
        judge(long, other, [*without, delta])


# By others.


def pem(path: Path, *things: x509.Certificate | x509.CertificateRevocationList) -> Path:
    path.write_bytes(b"".join(thing.public_bytes(Encoding.PEM) for thing in things))
    return path


def openssl_verify(
    folder: Path, ca: SmallCA, leaf: x509.Certificate, crls: list[x509.CertificateRevocationList], *options: str
) -> subprocess.CompletedProcess[str]:
    return openssl(
        "verify", "-x509_strict", "-purpose", "sslclient", "-crl_check_all", *options,
        "-CRLfile", pem(folder / "crls.pem", *crls), "-CAfile", pem(folder / "root.pem", ca.root.certificate),
        "-untrusted", pem(folder / "ca.pem", ca.intermediate.certificate), pem(folder / "leaf.pem", leaf),
    )  # fmt: skip


@needs_openssl
def test_openssl_finds_the_list_of_the_shard(ca: SmallCA, tmp_path: Path) -> None:
    zero, one, victim = ca.issue(), ca.issue(shard=1), ca.issue(shard=1)
    ca.revoke(victim)
    lists = list(ca.revocations().lists(NOW).crls)
    for leaf in (zero, one):
        assert openssl_verify(tmp_path, ca, leaf, lists).returncode == 0
    assert "certificate revoked" in openssl_verify(tmp_path, ca, victim, lists).stderr
    without = [crl for crl in lists if crl_name(crl) != shard_name(ca, 1)]
    assert openssl_verify(tmp_path, ca, zero, without).returncode == 0
    assert "different CRL scope" in openssl_verify(tmp_path, ca, one, without).stderr


@needs_openssl
def test_openssl_uses_the_delta(long: SmallCA, tmp_path: Path) -> None:
    victim, other = long.issue(), long.issue()
    revocations = long.revocations()
    old = list(revocations.lists(NOW).crls)
    long.revoke(victim)
    delta = loaded(revocations.named(shard_name(long, delta=True), NOW))
    deltas = ("-use_deltas", "-extended_crl")
    assert openssl_verify(tmp_path, long, victim, old, *deltas).returncode == 0
    assert openssl_verify(tmp_path, long, other, [*old, delta], *deltas).returncode == 0
    assert "certificate revoked" in openssl_verify(tmp_path, long, victim, [*old, delta], *deltas).stderr


def test_pkilint_accepts_a_delta(long: SmallCA, tmp_path: Path) -> None:
    revocations = long.revocations()
    revocations.lists(NOW)
    long.revoke(long.issue())
    assert lint(tmp_path, loaded(revocations.named(shard_name(long, delta=True), NOW))) == []


def needs(*programs: str) -> pytest.MarkDecorator:
    """In CI a missing judge is a failure: the tests run, and fail."""
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing) and "A2A_TRUST_CI" not in os.environ, reason=f"not installed: {missing}")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60)


def certtool_verify(
    folder: Path, ca: SmallCA, leaf: x509.Certificate, crls: list[x509.CertificateRevocationList]
) -> subprocess.CompletedProcess[str]:
    return run(
        "certtool", "--verify", "--load-ca-certificate", pem(folder / "root.pem", ca.root.certificate),
        "--load-crl", pem(folder / "crls.pem", *crls),
        "--infile", pem(folder / "chain.pem", leaf, ca.intermediate.certificate),
    )  # fmt: skip


@needs("certtool")
def test_certtool_accepts_the_lists(ca: SmallCA, tmp_path: Path) -> None:
    ca.revoke(ca.issue(shard=1))
    issuers = {one.key_id: pem(tmp_path / f"{one.key_id}.pem", one.certificate) for one in (ca.root, ca.intermediate)}
    for crl in ca.revocations().lists(NOW).crls:
        file, issuer = pem(tmp_path / "crl.pem", crl), issuers[crl_name(crl)[:40]]
        result = run("certtool", "--verify-crl", "--load-ca-certificate", issuer, "--infile", file)
        assert result.returncode == 0, result.stdout + result.stderr


@needs("certtool")
def test_certtool_sees_the_revocation_given_the_one_list_that_counts(
    ca: SmallCA, plain: SmallCA, tmp_path: Path
) -> None:
    """GnuTLS does not know distribution points: of the lists of one issuer it asks any one. So it is given one."""
    for made, shard in ((ca, 1), (plain, 0)):
        good, victim = made.issue(shard=shard), made.issue(shard=shard)
        made.revoke(victim)
        lists = by_name(made.revocations().lists(NOW))
        crls = [lists[crl_file_name(made.root.key_id)], lists[shard_name(made, shard)]]
        assert certtool_verify(tmp_path, made, good, crls).returncode == 0
        assert "revoked" in certtool_verify(tmp_path, made, victim, crls).stdout


@needs("certutil", "crlutil")
def test_nss_sees_the_revocation_on_a_complete_list_and_refuses_a_partition(
    ca: SmallCA, plain: SmallCA, tmp_path: Path
) -> None:
    """NSS knows no critical extension of a list: it takes the complete ones of a CA without URLs."""
    for made, taken in ((plain, True), (ca, False)):
        good, victim = made.issue(), made.issue()
        made.revoke(victim)
        folder = tmp_path / f"nss-{taken}"
        folder.mkdir()
        database = f"sql:{folder}"
        assert run("certutil", "-N", "-d", database, "--empty-password").returncode == 0
        things = {"root": made.root.certificate, "ca": made.intermediate.certificate, "good": good, "victim": victim}
        for name, certificate in things.items():
            file = pem(folder / f"{name}.pem", certificate)
            trust = "CT,C,C" if name == "root" else ",,"
            run("certutil", "-A", "-a", "-d", database, "-n", name, "-t", trust, "-i", file).check_returncode()
        for name, crl in by_name(made.revocations().lists(NOW)).items():
            (folder / name).write_bytes(crl.public_bytes(Encoding.DER))
            result = run("crlutil", "-I", "-d", database, "-t", "1", "-i", folder / name)
            partition = name in (shard_name(made), shard_name(made, 1)) and not taken
            assert ("UNKNOWN_CRITICAL_EXTENSION" in result.stderr) == partition, result.stderr
        assert run("certutil", "-V", "-d", database, "-n", "good", "-u", "C").returncode == 0
        judged = run("certutil", "-V", "-d", database, "-n", "victim", "-u", "C")
        assert ("revoked" in judged.stdout + judged.stderr) == taken


# OCSP.


def ask(ca: SmallCA, leaf: x509.Certificate, issuer: x509.Certificate | None = None) -> bytes:
    builder = oracle.OCSPRequestBuilder().add_certificate(leaf, issuer or ca.intermediate.certificate, hashes.SHA256())
    return builder.build().public_bytes(Encoding.DER)


def answer(der: bytes) -> oracle.OCSPResponse:
    return oracle.load_der_ocsp_response(der)


def test_ocsp_follows_the_store(ca: SmallCA) -> None:
    leaf = ca.issue()
    revocations = ca.revocations()
    assert answer(revocations.respond(ask(ca, leaf), NOW)).certificate_status is oracle.OCSPCertStatus.GOOD
    ca.revoke(leaf, now=NOW + MINUTE)
    told = answer(revocations.respond(ask(ca, leaf), NOW + MINUTE))
    assert told.certificate_status is oracle.OCSPCertStatus.REVOKED
    assert (told.revocation_time_utc, told.revocation_reason) == (NOW + MINUTE, x509.ReasonFlags.key_compromise)
    never_issued = ca.intermediate.agent()
    told = answer(revocations.respond(ask(ca, never_issued), NOW))
    assert told.certificate_status is oracle.OCSPCertStatus.UNKNOWN


def test_an_expired_certificate_is_answered_for(ca: SmallCA) -> None:
    leaf = ca.issue()
    ca.revoke(leaf)
    told = answer(ca.revocations().respond(ask(ca, leaf), NOW + 30 * DAY))
    assert told.certificate_status is oracle.OCSPCertStatus.REVOKED


def test_each_ca_has_a_signer_of_its_own(ca: SmallCA) -> None:
    leaf = ca.issue()
    revocations = ca.revocations()
    pairs = [(leaf, ca.intermediate), (ca.intermediate.certificate, ca.root)]
    for certificate, authority in pairs * 2:
        told = answer(revocations.respond(ask(ca, certificate, authority.certificate), NOW))
        (signer,) = told.certificates
        signer.verify_directly_issued_by(authority.certificate)
        record = ca.store.find(signer.serial_number)
        assert record is not None and (record.kind, record.issuer) == ("ocsp", authority.key_id)
    assert ca.asked == 2
    assert len(ca.store.records(kind="ocsp")) == 2


def test_a_signer_is_no_agent(ca: SmallCA) -> None:
    (signer,) = answer(ca.revocations().respond(ask(ca, ca.issue()), NOW)).certificates
    for usage in ("client", "server"):
        with pytest.raises(WrongExtendedKeyUsage):
            verify_peer(chain(ca, signer), bundles=bundles(ca), now=NOW, usage=usage)  # type: ignore[arg-type]


def test_a_signer_is_renewed_at_half_its_life(ca: SmallCA) -> None:
    request = ask(ca, ca.issue(lifetime=7 * DAY))
    revocations = ca.revocations()
    for later, signers in ((timedelta(0), 1), (12 * HOUR, 1), (12 * HOUR + MINUTE, 2), (24 * HOUR, 2), (25 * HOUR, 3)):
        told = answer(revocations.respond(request, NOW + later))
        assert len(ca.store.records(kind="ocsp")) == signers, later
        assert told.next_update_utc == NOW + later + 12 * HOUR
        assert told.certificates[0].not_valid_after_utc >= NOW + later + 12 * HOUR


def test_an_old_signer_answers_to_its_end_while_there_is_no_new_one(ca: SmallCA) -> None:
    request = ask(ca, ca.issue())
    revocations = ca.revocations()
    revocations.respond(request, NOW)
    ca.offline = {ca.intermediate.key_id}
    end = NOW + 24 * HOUR
    told = answer(revocations.respond(request, end - HOUR))
    assert (told.certificate_status, told.next_update_utc) == (oracle.OCSPCertStatus.GOOD, end)
    assert answer(revocations.respond(request, end)).response_status is oracle.OCSPResponseStatus.UNAUTHORIZED


def test_a_ca_without_its_key_answers_for_nothing(ca: SmallCA) -> None:
    request = ask(ca, ca.issue())
    ca.offline = {ca.intermediate.key_id}
    assert answer(ca.revocations().respond(request, NOW)).response_status is oracle.OCSPResponseStatus.UNAUTHORIZED


@pytest.mark.parametrize("before", [True, False], ids=["with a signer", "without one"])
def test_nobody_answers_for_a_revoked_ca(before: bool, ca: SmallCA) -> None:
    request = ask(ca, ca.issue())
    revocations = ca.revocations()
    if before:
        revocations.respond(request, NOW)
    ca.revoke(ca.intermediate.certificate)
    told = answer(revocations.respond(request, NOW + MINUTE))
    assert told.response_status is oracle.OCSPResponseStatus.UNAUTHORIZED


@pytest.mark.parametrize("now", [NOW - HOUR, NOW + INTERMEDIATE_LIFETIME], ids=["before", "after"])
def test_nobody_answers_for_a_ca_that_is_not_valid(now: datetime, ca: SmallCA) -> None:
    told = answer(ca.revocations().respond(ask(ca, ca.issue()), now))
    assert told.response_status is oracle.OCSPResponseStatus.UNAUTHORIZED


def test_a_ca_that_came_later_is_known_at_once(ca: SmallCA) -> None:
    revocations = ca.revocations()
    revocations.respond(ask(ca, ca.issue()), NOW)
    ca.intermediate = ca.root.intermediate()
    ca.store.change_issuers(add=[ca.intermediate.records()], now=NOW)
    told = answer(revocations.respond(ask(ca, ca.issue()), NOW))
    assert told.certificate_status is oracle.OCSPCertStatus.GOOD


def test_many_askers_get_one_signer(ca: SmallCA) -> None:
    request = ask(ca, ca.issue())
    revocations = ca.revocations()
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda _: answer(revocations.respond(request, NOW)), range(32)))
    assert all(one.certificate_status is oracle.OCSPCertStatus.GOOD for one in told)
    assert len(ca.store.records(kind="ocsp")) == 1


def test_a_broken_database_is_an_error_and_not_an_answer(ca: SmallCA, tmp_path: Path) -> None:
    request = ask(ca, ca.issue())
    revocations = ca.revocations()
    with closing(sqlite3.connect(tmp_path / "ca" / DATABASE_FILE)) as connection, connection:
        connection.execute("DROP TABLE certificates")
    connection.close()
    with pytest.raises(StoreError):
        revocations.respond(request, NOW)


def test_lists_that_have_not_changed_are_not_indexed_again(ca: SmallCA) -> None:
    """The verifier of a process that also runs the CA follows the lists, and keeps what it knows of each."""
    leaf, victim = ca.issue(), ca.issue(shard=1)
    revocations = ca.revocations()

    class Current:
        def current(self) -> RevocationLists:
            return revocations.lists(NOW)

    verifier = PeerVerifier(bundles(ca), Current())
    verifier.verify(chain(ca, leaf), now=NOW, usage="client")
    snapshot = verifier._snapshot
    verifier.verify(chain(ca, leaf), now=NOW, usage="client")
    assert verifier._snapshot is snapshot
    before = {id(one) for one in snapshot.revocation._indexed}
    ca.revoke(victim)
    with pytest.raises(CertificateRevoked):
        verifier.verify(chain(ca, victim), now=NOW, usage="client")
    after = {id(one) for one in verifier._snapshot.revocation._indexed}
    assert (len(after), len(before & after)) == (3, 2)
