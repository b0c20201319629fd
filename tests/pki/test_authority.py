"""The CA as its users see it: issue, revoke, publish; and what happens when it is slow, locked, broken or expired."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pki import CertificateAuthority, PKIError, keys, policy, profiles
from pki.errors import (
    AuthorityDamaged,
    AuthorityMissing,
    AuthorityNotValid,
    DatabaseLocked,
    DuplicateCertificate,
    IDRefused,
    PossessionNotProven,
    ReasonRefused,
    UnknownSerial,
    WrongPassword,
)
from pki.records import Settings
from pki.store import DATABASE_FILE, Store
from tests.pki.conftest import AGENT, DOMAIN, NOW, PASSWORD, Clock
from tests.pki.judges import needs_openssl, request, uri, verify
from trust.bundles import RevocationLists, TrustBundles
from trust.credentials import Credentials
from trust.errors import CertificateExpired, CertificateRevoked, IdentityError
from trust.identity import AgentID, PeerIdentity, thumbprint
from trust.peers import verify_peer

HOUR = timedelta(hours=1)


def of_both(lists: RevocationLists) -> tuple[x509.CertificateRevocationList, x509.CertificateRevocationList]:
    """The list of the intermediate and that of the root."""
    of_root, of_intermediate = lists.crls
    return of_intermediate, of_root


def numbers(lists: RevocationLists) -> list[int]:
    """The numbers of both, counted from what the first has that is made at `NOW`."""
    numbers = [c.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for c in of_both(lists)]
    return [number - int(NOW.timestamp()) for number in numbers]


def serials(lists: RevocationLists) -> list[list[int]]:
    return [[entry.serial_number for entry in crl] for crl in of_both(lists)]


def test_issue(ca: CertificateAuthority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issued = ca.issue(request(uri(AGENT), key=key), AGENT, dns_names=("a.example",), ip_addresses=("::1",))
    leaf, intermediate = issued.chain
    assert leaf.public_key() == key.public_key()
    leaf.verify_directly_issued_by(intermediate)
    intermediate.verify_directly_issued_by(ca.root)
    assert intermediate == ca.intermediate
    assert issued.certificate == leaf
    assert issued.agent_id == AgentID.of(leaf) == AgentID.parse(AGENT)
    assert issued.serial == leaf.serial_number
    assert issued.thumbprint == thumbprint(leaf.public_bytes(Encoding.DER))
    assert (issued.not_before, issued.not_after) == (NOW - timedelta(minutes=1), NOW + 24 * HOUR)
    assert x509.load_pem_x509_certificates(issued.chain_pem) == [leaf, intermediate]
    assert issued.credentials(key).agent_id == issued.agent_id


def test_an_ed25519_agent(ca: CertificateAuthority) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    issued = ca.issue(request(key=key, algorithm=None), AgentID.parse(AGENT))
    assert issued.credentials(key).private_key is key


def test_serials_are_random_positive_and_fit(ca: CertificateAuthority) -> None:
    data = request()
    drawn = [ca.issue(data, AGENT).serial for _ in range(20)]
    assert len(set(drawn)) == 20
    assert all(0 < serial < 2**159 for serial in drawn)
    assert max(drawn).bit_length() > 150


def test_the_certificate_is_stored_before_it_is_returned(ca: CertificateAuthority, folder: Path) -> None:
    issued = ca.issue(request(), AGENT)
    with CertificateAuthority.open(folder) as other:
        record = other.find(issued.serial)
        assert record.certificate == issued.certificate
        assert (record.kind, record.spiffe_id, record.thumbprint) == ("agent", AGENT, issued.thumbprint)
        assert record.status(NOW) == "valid"


def test_a_certificate_that_cannot_be_stored_is_not_made(
    folder: Path, locked: Callable[[], None], clock: Clock
) -> None:
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca:
        count = len(ca.certificates())
        locked()
        with pytest.raises(PKIError) as caught:
            ca.issue(request(), AGENT)
        assert type(caught.value) is DatabaseLocked
        assert len(ca.certificates()) == count


def test_a_serial_that_was_used_is_refused(folder: Path) -> None:
    with CertificateAuthority.open(folder, password=PASSWORD, serials=lambda: 4711) as ca:
        assert ca.issue(request(), AGENT).serial == 4711
        with pytest.raises(PKIError) as caught:
            ca.issue(request(), AGENT)
        assert type(caught.value) is DuplicateCertificate


def test_refusals_store_nothing(ca: CertificateAuthority) -> None:
    other, signed = "spiffe://fleet.example/payroll", request()
    attempts: list[tuple[bytes, str, type[Exception]]] = [
        (request(uri(other)), AGENT, IDRefused),
        (request(uri(AGENT), uri(other)), AGENT, IDRefused),
        (request(), "spiffe://other.example/billing", IDRefused),
        (signed[:-1] + bytes([signed[-1] ^ 1]), AGENT, PossessionNotProven),
        (request(), "spiffe://fleet.example", IdentityError),
        (request(), "billing", IdentityError),
    ]
    for data, agent_id, expected in attempts:
        with pytest.raises(expected) as caught:
            ca.issue(data, agent_id)
        assert type(caught.value) is expected
    assert [record.kind for record in ca.certificates()] == ["root", "intermediate"]


def test_issue_credentials(ca: CertificateAuthority, tmp_path: Path) -> None:
    credentials = ca.issue_credentials(AGENT, ip_addresses=("127.0.0.1",), lifetime=2 * HOUR)
    names = credentials.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == []  # no name that others have, too, unasked
    assert credentials.certificate.not_valid_after_utc == NOW + 2 * HOUR
    credentials.save(tmp_path / "agent")
    assert Credentials.load(tmp_path / "agent").thumbprint == credentials.thumbprint
    assert ca.issue_credentials(AgentID.parse(AGENT), dns_names=()).thumbprint != credentials.thumbprint


def test_the_given_time_outweighs_the_clock(ca: CertificateAuthority) -> None:
    then = NOW + 5 * HOUR
    assert ca.issue(request(), AGENT, now=then, lifetime=HOUR).not_after == then + HOUR
    assert ca.issue_credentials(AGENT, now=then, lifetime=HOUR).certificate.not_valid_after_utc == then + HOUR
    record = ca.revoke(ca.issue(request(), AGENT).serial, now=then)
    assert record.revoked_at == then
    with pytest.raises(IdentityError, match="time without a zone"):
        ca.issue(request(), AGENT, now=datetime(2026, 1, 1))


def test_the_system_clock_is_the_default(folder: Path) -> None:
    with CertificateAuthority.open(folder, password=PASSWORD) as ca:
        issued = ca.issue(request(), AGENT)
    assert abs(issued.not_before + timedelta(minutes=1) - datetime.now(UTC)) < timedelta(seconds=30)


@pytest.mark.parametrize(
    "moment", [NOW - timedelta(minutes=2), NOW + profiles.INTERMEDIATE_LIFETIME, NOW + timedelta(days=400)]
)
def test_an_expired_intermediate_issues_nothing(moment: datetime, ca: CertificateAuthority) -> None:
    with pytest.raises(PKIError, match="is not valid now") as caught:
        ca.issue(request(), AGENT, now=moment)
    assert type(caught.value) is AuthorityNotValid


def test_a_revoked_intermediate_issues_nothing(ca: CertificateAuthority) -> None:
    serial = ca.intermediate.serial_number
    ca.revoke(serial, "cACompromise")
    assert serials(ca.crl()) == [[], [serial]]
    with pytest.raises(PKIError) as caught:
        ca.issue(request(), AGENT)
    assert type(caught.value) is AuthorityNotValid


def test_revoke(ca: CertificateAuthority, clock: Clock) -> None:
    issued = ca.issue(request(), AGENT)
    first = ca.revoke(issued.serial, "keyCompromise")
    assert (first.status(NOW), first.revoked_at, first.reason) == ("revoked", NOW, x509.ReasonFlags.key_compromise)
    clock.forward(HOUR)
    assert ca.revoke(issued.serial, x509.ReasonFlags.superseded) == first, "the first revocation stays"
    (entry,) = of_both(ca.crl())[0]
    assert entry.serial_number == issued.serial
    assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason is x509.ReasonFlags.key_compromise


@pytest.mark.parametrize("method", ["find", "revoke"])
def test_an_unknown_serial(method: str, ca: CertificateAuthority) -> None:
    with pytest.raises(PKIError, match="got 1267, expected one that this CA has issued") as caught:
        getattr(ca, method)(0x1267)
    assert type(caught.value) is UnknownSerial


def test_the_root_and_holds_cannot_be_revoked(ca: CertificateAuthority) -> None:
    for serial, reason in [
        (ca.root.serial_number, "unspecified"),
        (ca.intermediate.serial_number, "certificateHold"),
    ]:
        with pytest.raises(PKIError) as caught:
            ca.revoke(serial, reason)
        assert type(caught.value) is ReasonRefused
    assert serials(ca.crl()) == [[], []]


def test_crls_are_signed_by_their_issuers(ca: CertificateAuthority) -> None:
    of_intermediate, of_root = of_both(ca.crl())
    assert of_intermediate.issuer == ca.intermediate.subject
    assert of_root.issuer == ca.root.subject
    for crl, issuer in [(of_intermediate, ca.intermediate), (of_root, ca.root)]:
        key = issuer.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert crl.is_signature_valid(key)


def test_crls_are_renewed_by_the_clock(ca: CertificateAuthority, clock: Clock) -> None:
    assert numbers(ca.crl()) == [0, 0]
    clock.forward(profiles.CRL_LIFETIME / 2 - timedelta(minutes=2))
    assert numbers(ca.crl()) == [0, 0]
    clock.forward(timedelta(minutes=2))
    later = int(profiles.CRL_LIFETIME.total_seconds()) // 2
    assert numbers(ca.crl()) == [later, later]
    assert numbers(ca.crl(NOW - HOUR)) == [later + 1, later + 1], "a list from the future is not current"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(step=st.timedeltas(timedelta(0), timedelta(days=30)))
def test_crls_are_always_current_and_never_count_back(ca: CertificateAuthority, clock: Clock, step: timedelta) -> None:
    before = numbers(ca.crl())
    clock.forward(step)
    lists = ca.crl()
    for crl in lists.crls:
        assert crl.next_update_utc is not None
        assert crl.last_update_utc <= clock() < crl.next_update_utc
        assert crl.next_update_utc - crl.last_update_utc <= timedelta(hours=24)
    assert all(old <= new for old, new in zip(before, numbers(lists), strict=True))


def test_a_revocation_is_listed_at_once(ca: CertificateAuthority) -> None:
    first, second = (ca.issue(request(), AGENT).serial for _ in range(2))
    assert serials(ca.crl()) == [[], []]
    ca.revoke(first)
    assert (serials(ca.crl()), numbers(ca.crl())) == ([[first], []], [1, 0])
    ca.revoke(second)
    assert sorted(serials(ca.crl())[0]) == sorted([first, second])


def test_bundle(ca: CertificateAuthority) -> None:
    bundle = ca.bundle()
    assert (bundle.trust_domain, bundle.roots, bundle.sequence) == (DOMAIN, (ca.root,), 1)
    again = TrustBundles.from_json(TrustBundles.of(bundle).to_json())
    assert again.by_domain == {DOMAIN: bundle}


@needs_openssl
def test_openssl_follows_the_whole_life(ca: CertificateAuthority, tmp_path: Path) -> None:
    credentials = ca.issue_credentials(AGENT)
    for purpose in ("sslserver", "sslclient"):
        result = verify(tmp_path, credentials.chain, ca.root, purpose=purpose, crls=ca.crl().crls)
        assert result.returncode == 0, result.stderr
    ca.revoke(credentials.certificate.serial_number)
    result = verify(tmp_path, credentials.chain, ca.root, purpose="sslclient", crls=ca.crl().crls)
    assert "certificate revoked" in result.stderr


@pytest.mark.parametrize("lifetime", [HOUR, 24 * HOUR])
@pytest.mark.parametrize("usage", ["client", "server"])
def test_our_own_verifier_follows_it_too(
    lifetime: timedelta, usage: Literal["client", "server"], ca: CertificateAuthority, clock: Clock
) -> None:
    credentials = ca.issue_credentials(AGENT, lifetime=lifetime)
    bundles = TrustBundles.of(ca.bundle())

    def verified() -> PeerIdentity:
        return verify_peer(credentials.chain_der, bundles=bundles, now=clock(), crls=ca.crl().crls, usage=usage)

    peer = verified()
    assert (peer.agent_id, peer.thumbprint) == (AgentID.parse(AGENT), credentials.thumbprint)
    clock.forward(lifetime)
    verified()
    clock.forward(timedelta(seconds=1))
    with pytest.raises(CertificateExpired):
        verified()


def test_our_own_verifier_sees_the_revocations(ca: CertificateAuthority) -> None:
    """Of the agent, and of the intermediate above another one."""
    bundles = TrustBundles.of(ca.bundle())
    first, second = ca.issue_credentials(AGENT), ca.issue_credentials(AGENT)
    for serial, credentials in [
        (first.certificate.serial_number, first),
        (ca.intermediate.serial_number, second),
    ]:
        verify_peer(credentials.chain_der, bundles=bundles, now=NOW, crls=ca.crl().crls, usage="client")
        ca.revoke(serial)
        with pytest.raises(CertificateRevoked):
            verify_peer(credentials.chain_der, bundles=bundles, now=NOW, crls=ca.crl().crls, usage="client")


def test_certificates(ca: CertificateAuthority) -> None:
    ca.issue(request(), AGENT, lifetime=HOUR)
    ca.issue(request(), "spiffe://fleet.example/payroll", lifetime=2 * HOUR)
    assert [r.spiffe_id for r in ca.certificates()][2:] == [AGENT, "spiffe://fleet.example/payroll"]
    assert [r.spiffe_id for r in ca.certificates(agent_id=AgentID.parse(AGENT))] == [AGENT]
    late = ca.certificates(ends_after=NOW + HOUR + timedelta(seconds=1))
    assert [r.kind for r in late] == ["root", "intermediate", "agent"]


def test_without_its_password_it_answers_and_revokes_but_signs_nothing(folder: Path, clock: Clock) -> None:
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca:
        serial = ca.issue(request(), AGENT).serial
        lists = ca.crl()
    with CertificateAuthority.open(folder, clock=clock) as ca:
        assert ca.crl() == lists, "a current list needs no key"
        assert ca.bundle().roots == (ca.root,)
        ca.revoke(serial)
        for action in (lambda: ca.issue(request(), AGENT), lambda: ca.issue_credentials(AGENT), ca.crl):
            with pytest.raises(PKIError, match="CA is locked") as caught:
                action()
            assert type(caught.value) is WrongPassword
        signer = ca.revoke(ca.intermediate.serial_number).serial
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca:
        assert serials(ca.crl()) == [[serial], [signer]]


def test_every_key_needs_the_password(folder: Path, clock: Clock) -> None:
    with CertificateAuthority.open(folder, clock=clock) as ca:
        ca.ban(f"spiffe://{DOMAIN}/bad")  # nobody has signed that yet
        for action in (
            lambda: ca.rotate(kind="intermediate", force=True),
            lambda: ca.rotate(kind="root", force=True),
            lambda: ca.request_intermediate(),
            lambda: ca.service_credentials(),
            lambda: ca.ledger_head(),
        ):
            with pytest.raises(PKIError) as caught:
                action()
            assert type(caught.value) is WrongPassword
        assert len(ca.issuers()) == 2


@pytest.mark.parametrize("password", ["", "wrong", PASSWORD + " "])
def test_a_wrong_password(password: str, folder: Path) -> None:
    with pytest.raises(PKIError) as caught:
        CertificateAuthority.open(folder, password=password)
    assert type(caught.value) is WrongPassword


def test_open_by_url(folder: Path) -> None:
    with CertificateAuthority.open(f"sqlite:///{folder}/ca.db") as ca:
        assert ca.trust_domain == DOMAIN


def test_no_ca_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(PKIError) as caught:
            CertificateAuthority.open(path, password=PASSWORD)
        assert type(caught.value) is AuthorityMissing


def test_the_key_of_another_ca_is_refused(folder: Path) -> None:
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as connection, connection:
        connection.execute("UPDATE issuers SET key_pem = ?", (keys.write(keys.generate(), PASSWORD),))
    with pytest.raises(PKIError, match="is not the one in its certificate") as caught:
        CertificateAuthority.open(folder, password=PASSWORD)
    assert type(caught.value) is AuthorityDamaged


def test_a_database_without_a_root_is_refused(tmp_path: Path) -> None:
    Store.create(tmp_path, Settings(trust_domain=DOMAIN), [], [], now=NOW)
    with pytest.raises(PKIError, match="no root certificate") as caught:
        CertificateAuthority.open(tmp_path)
    assert type(caught.value) is AuthorityDamaged


def test_what_create_returns_works_at_once(tmp_path: Path) -> None:
    with CertificateAuthority.create(
        tmp_path / "ca",
        trust_domain=DOMAIN,
        password=PASSWORD,
        clock=lambda: NOW,
        name_constraint=True,
        crl_base_url="http://pki.example/crl/",
    ) as ca:
        leaf = ca.issue_credentials(AGENT).certificate
        (point,) = leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        ski = ca.intermediate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        assert point.full_name == [uri(f"http://pki.example/crl/{ski.digest.hex()}.crl")]
        assert ca.intermediate.extensions.get_extension_for_class(x509.NameConstraints).critical
        assert len(ca.crl().crls) == 3, "of the root, and of the first two shards of the intermediate"


def test_threads_issue_without_a_double_or_a_loss(ca: CertificateAuthority) -> None:
    data = request()
    start = threading.Barrier(8)

    def work(worker: int) -> list[int]:
        start.wait()
        return [ca.issue(data, f"spiffe://fleet.example/a{worker}").serial for _ in range(25)]

    with ThreadPoolExecutor(8) as pool:
        issued = [serial for batch in pool.map(work, range(8)) for serial in batch]
    assert len(set(issued)) == 200
    assert sorted(issued) == sorted(r.serial for r in ca.certificates() if r.kind == "agent")


def test_threads_revoke_and_publish_without_a_loss(ca: CertificateAuthority) -> None:
    data = request()
    issued = [ca.issue(data, AGENT).serial for _ in range(40)]

    def work(serial: int) -> int:
        ca.revoke(serial)
        lists = ca.crl()
        assert serial in serials(lists)[0], "once revoked, in every list made from then on"
        return numbers(lists)[0]

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(work, issued))
    assert sorted(serials(ca.crl())[0]) == sorted(issued)
    assert max(seen) == numbers(ca.crl())[0] <= 40


def test_two_processes_issue_without_a_double_or_a_loss(folder: Path) -> None:
    script = (
        "from pki import CertificateAuthority\n"
        f"with CertificateAuthority.open({str(folder)!r}, password={PASSWORD!r}) as ca:\n"
        f"    for _ in range(40): ca.issue({request()!r}, 'spiffe://fleet.example/p')\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    with CertificateAuthority.open(folder) as ca:
        agents = [r for r in ca.certificates() if r.kind == "agent"]
    assert len({r.serial for r in agents}) == len(agents) == 80


def test_a_killed_process_loses_nothing_that_it_returned(folder: Path) -> None:
    script = (
        "import os\n"
        "from pki import CertificateAuthority\n"
        f"ca = CertificateAuthority.open({str(folder)!r}, password={PASSWORD!r})\n"
        f"print(ca.issue({request()!r}, {AGENT!r}).serial, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    with CertificateAuthority.open(folder) as ca:
        assert ca.find(int(result.stdout)).spiffe_id == AGENT


def test_a_backup_of_the_folder_is_the_ca(ca: CertificateAuthority, folder: Path, tmp_path: Path) -> None:
    serial = ca.issue(request(), AGENT).serial
    ca.close()
    copy = shutil.copytree(folder, tmp_path / "copy")
    with CertificateAuthority.open(copy, password=PASSWORD) as other:
        assert other.find(serial).serial == serial
        assert other.issue(request(), AGENT).chain[1] == ca.intermediate


def test_lifetimes_are_limited(ca: CertificateAuthority) -> None:
    longest = ca.issue(request(), AGENT, lifetime=policy.MAX_LIFETIME)
    assert longest.not_after - longest.not_before == timedelta(days=7)


def test_a_stored_revocation_list_with_another_signature_is_not_given_out(
    ca: CertificateAuthority, folder: Path
) -> None:
    der = bytearray(ca.crl().crls[0].public_bytes(Encoding.DER))
    der[-1] ^= 1
    connection = sqlite3.connect(folder / DATABASE_FILE)
    connection.execute("UPDATE crls SET der = ?", (bytes(der),))
    connection.commit()
    connection.close()
    other = CertificateAuthority.open(folder, password=PASSWORD, clock=lambda: NOW)  # which has none in memory
    with other, pytest.raises(PKIError, match="damaged") as caught:
        other.crl()
    assert type(caught.value) is AuthorityDamaged
