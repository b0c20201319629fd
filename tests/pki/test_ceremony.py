"""The root kept offline: how it leaves, what it signs elsewhere, and what the CA takes back."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pki import CertificateAuthority, PKIError, ceremony, keys, profiles, rotation
from pki.ceremony import RootFile
from pki.errors import (
    AuthorityDamaged,
    AuthorityExists,
    AuthorityNotValid,
    KeyStoreError,
    PossessionNotProven,
    RequestKeyRefused,
    RequestMalformed,
    RequestRefused,
    StateChanged,
    WrongPassword,
)
from pki.keys import Signer
from pki.profiles import Issuer
from pki.records import State
from pki.rotation import Action
from pki.store import DATABASE_FILE
from tests.pki.conftest import AGENT, DOMAIN, NOW, PASSWORD, Clock
from tests.pki.judges import needs_openssl, openssl, request
from trust.bundles import RevocationLists, TrustBundles
from trust.credentials import Credentials
from trust.errors import CertificateRevoked
from trust.identity import fingerprint
from trust.peers import verify_peer

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
SAFE = "another password"


@pytest.fixture
def file(ca: CertificateAuthority, tmp_path: Path) -> Path:
    """The exported root of `ca`."""
    target = tmp_path / "root.pem"
    ca.export_root(target, SAFE)
    return target


def sign(file: Path, csr: bytes, clock: Clock) -> bytes:
    return ceremony.sign_intermediate(file, SAFE, csr, now=clock()).to_pem()


def verified(credentials: Credentials, ca: CertificateAuthority, now: Clock) -> None:
    bundles = TrustBundles.of(ca.bundle())
    verify_peer(credentials.chain_der, bundles=bundles, now=now(), crls=ca.crl().crls, usage="client")


# Export.


def test_an_exported_root_is_only_in_its_file(ca: CertificateAuthority, folder: Path, file: Path, clock: Clock) -> None:
    secret = RootFile.read(file, SAFE).key.private_numbers().private_value.to_bytes(32)
    assert secret not in file.read_bytes()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    root = next(r for r in ca.issuers() if r.kind == "root")
    assert (root.key_pem, root.key_uri) == (None, None)
    for one in (ca, CertificateAuthority.open(folder, password=PASSWORD, clock=clock)):
        with one:
            one.issue(request(), AGENT)
            with pytest.raises(PKIError) as caught:
                one.rotate(kind="intermediate", force=True)
            assert type(caught.value) is KeyStoreError
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as connection:
        assert connection.execute("SELECT count(*) FROM issuers WHERE key_pem IS NOT NULL").fetchone() == (1,)


@needs_openssl
def test_openssl_reads_the_file(ca: CertificateAuthority, file: Path) -> None:
    result = openssl("pkey", "-in", file, "-passin", f"pass:{SAFE}", "-noout", "-text")
    assert "prime256v1" in result.stdout, result.stderr
    assert openssl("x509", "-in", file, "-noout", "-serial").returncode == 0


def test_its_revocation_list_lasts(ca: CertificateAuthority, file: Path, clock: Clock) -> None:
    agent = ca.issue_credentials(AGENT, lifetime=7 * DAY)
    clock.forward(6 * DAY)
    verified(agent, ca, clock)
    assert all(check.ok for check in ca.health()), ca.health()
    (own,) = [one for one in ca.published_lists() if one.issuer == Issuer.of(ca.root).key_id]
    assert abs(own.next_update - ca.intermediate.not_valid_after_utc) < HOUR, (
        "until there is another ceremony in any case"
    )


def test_a_file_that_is_there_is_not_replaced_and_the_key_stays(ca: CertificateAuthority, tmp_path: Path) -> None:
    target = tmp_path / "root.pem"
    target.write_text("mine")
    with pytest.raises(PKIError) as caught:
        ca.export_root(target, SAFE)
    assert type(caught.value) is AuthorityExists
    assert target.read_text() == "mine"
    ca.rotate(kind="intermediate", force=True)


@pytest.mark.parametrize("problem", ["no folder", "no password", "not what was written"])
def test_a_failed_export_leaves_the_key_where_it_is(
    problem: str, ca: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, password, expected = tmp_path / "root.pem", SAFE, PKIError
    if problem == "no folder":
        target = tmp_path / "nowhere" / "root.pem"
    elif problem == "no password":
        password, expected = "", WrongPassword
    else:
        other = RootFile(certificate=ca.root, key=keys.generate(), settings=ca.settings)
        monkeypatch.setattr(RootFile, "read", lambda *_: other)
        expected = AuthorityDamaged
    with pytest.raises(PKIError) as caught:
        ca.export_root(target, password)
    assert type(caught.value) is expected
    assert ca.issuers()[0].key_pem is not None
    ca.rotate(kind="intermediate", force=True)


def test_it_cannot_be_exported_twice_or_without_the_password(
    ca: CertificateAuthority, folder: Path, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(PKIError) as caught:
        ca.export_root(tmp_path / "again.pem", SAFE)
    assert type(caught.value) is KeyStoreError
    assert not (tmp_path / "again.pem").exists()


def test_a_locked_ca_exports_nothing(folder: Path, tmp_path: Path) -> None:
    with CertificateAuthority.open(folder) as ca:
        with pytest.raises(PKIError) as caught:
            ca.export_root(tmp_path / "root.pem", SAFE)
        assert type(caught.value) is WrongPassword
        assert ca.issuers()[0].key_pem is not None


def test_a_key_on_a_token_is_not_exported(
    ca: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = keys.read(ca.issuers()[0].key_pem or b"", PASSWORD)

    class OnToken:
        def public_key(self) -> ec.EllipticCurvePublicKey:
            return key.public_key()

        def sign(self, data: bytes, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
            return key.sign(data, signature_algorithm)

    def on_token(*_: object, **__: object) -> Signer:
        return OnToken()

    monkeypatch.setattr(keys, "open_signer", on_token)
    with pytest.raises(PKIError, match="on a token") as caught:
        ca.export_root(tmp_path / "root.pem", SAFE)
    assert type(caught.value) is KeyStoreError
    assert ca.issuers()[0].key_pem is not None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: b"", AuthorityDamaged),
        (lambda data: data.replace(b"Root of", b"Boot of"), AuthorityDamaged),
        (lambda data: data.replace(b"name-constraint: no", b"name-constraint: maybe"), AuthorityDamaged),
        (lambda data: data.replace(b"public-url: \n", b""), AuthorityDamaged),
        (lambda data: data.replace(b"public-url: \n", b"public-url: \nmore: 1\n"), AuthorityDamaged),
        (lambda data: data.replace(b"-----BEGIN CERT", b"-----BEGIN DIRT"), AuthorityDamaged),
        (lambda data: data[: data.index(b"-----BEGIN ENC")], AuthorityDamaged),
        (lambda data: data.replace(b"ENCRYPTED PRIVATE", b"PRIVATE"), AuthorityDamaged),
        (
            lambda data: data[: data.index(b"-----BEGIN ENC")] + keys.write(keys.generate(), SAFE),
            AuthorityDamaged,
        ),
    ],
)
def test_files_that_are_no_exported_root(
    change: Callable[[bytes], bytes], expected: type[PKIError], ca: CertificateAuthority, file: Path, clock: Clock
) -> None:
    csr = ca.request_intermediate()
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(PKIError) as caught:
        sign(file, csr, clock)
    assert type(caught.value) is expected


def test_the_settings_of_a_ca_travel_with_its_root(tmp_path: Path) -> None:
    with CertificateAuthority.create(
        tmp_path / "ca",
        trust_domain=DOMAIN,
        password=PASSWORD,
        now=NOW,
        clock=lambda: NOW,
        name_constraint=True,
        public_url="http://pki.example",
        crl_base_url="http://lists.example/crl",
    ) as ca:
        ca.export_root(tmp_path / "root.pem", SAFE)
        assert RootFile.read(tmp_path / "root.pem", SAFE).settings == ca.settings
        pem = ceremony.sign_intermediate(tmp_path / "root.pem", SAFE, ca.request_intermediate(), now=NOW)
        ca.accept_intermediate(pem.to_pem())
        assert ca.intermediate.extensions.get_extension_for_class(x509.NameConstraints).critical
        points = ca.intermediate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        assert "http://lists.example/crl/" in str(points)


# The ceremony.


def test_two_commands(ca: CertificateAuthority, file: Path, clock: Clock) -> None:
    before = ca.issue_credentials(AGENT)
    old = ca.intermediate
    pem = sign(file, ca.request_intermediate(), clock)
    assert [(s.action, s.kind) for s in ca.accept_intermediate(pem)] == [(Action.PREPARE, "intermediate")]
    clock.forward(rotation.LISTED)
    assert [(s.action, s.kind) for s in ca.rotate()] == [(Action.ACTIVATE, "intermediate")]
    assert ca.intermediate != old
    after = ca.issue_credentials(AGENT)
    for credentials in (before, after):
        verified(credentials, ca, clock)
    assert [r.state for r in ca.issuers()] == [State.ACTIVE, State.RETIRING, State.ACTIVE]
    assert ca.audit_ledger().problems == ()


def test_the_plan_says_when_and_health_when_it_is_late(ca: CertificateAuthority, file: Path, clock: Clock) -> None:
    (step,) = [step for step in ca.plan() if step.kind == "intermediate"]
    assert step.action is Action.CEREMONY
    assert step.at == rotation.prepare_at(ca.issuers()[1])
    clock.now = step.at + 7 * DAY
    assert ca.rotate() == ()
    assert {check.name: check.ok for check in ca.health()}["intermediate"]
    clock.forward(SECOND)
    (late,) = [check for check in ca.health() if not check.ok]
    assert late.name == "intermediate"
    assert "overdue" in late.says
    # In time it waits, prepared, for its turn.
    ca.accept_intermediate(sign(file, ca.request_intermediate(), clock))
    assert [r.state for r in ca.issuers()][1:] == [State.ACTIVE, State.PREPARED]
    assert all(check.ok for check in ca.health())


def test_a_request_that_is_asked_for_again_is_the_same(ca: CertificateAuthority, file: Path, clock: Clock) -> None:
    first = ca.request_intermediate()
    clock.forward(HOUR)
    assert ca.request_intermediate() == first
    ca.accept_intermediate(sign(file, first, clock))
    assert ca.request_intermediate() != first


def test_an_online_root_may_hold_a_ceremony_too(ca: CertificateAuthority, tmp_path: Path, clock: Clock) -> None:
    pem = ca.request_intermediate()
    key = keys.read(ca.issuers()[0].key_pem or b"", PASSWORD)
    file = tmp_path / "root.pem"
    file.write_bytes(RootFile(certificate=ca.root, key=key, settings=ca.settings).to_pem(SAFE))
    signed = sign(file, pem, clock)
    ca.accept_intermediate(signed)
    clock.forward(rotation.LISTED)
    ca.rotate()
    assert [r.state for r in ca.issuers()][1:] == [State.RETIRING, State.ACTIVE]


def test_a_compromise_while_the_root_is_offline(ca: CertificateAuthority, file: Path, clock: Clock) -> None:
    """The intermediate is revoked at once; the ceremony brings both another one and the list that names the old."""
    agent = ca.issue_credentials(AGENT)
    serial = ca.intermediate.serial_number
    assert ca.taint(Issuer.of(ca.intermediate).key_id) == ()
    with pytest.raises(AuthorityNotValid, match="`a2a-pki ceremony request`, `sign`, `accept`"):
        ca.issue(request(), AGENT)
    (ill,) = (check.says for check in ca.health() if check.name == "intermediate")
    assert ill == (
        "no intermediate is active; have the offline root sign the next one: "
        "`a2a-pki ceremony request`, `sign`, `accept`"
    )
    (step,) = [step for step in ca.plan() if step.action is Action.CEREMONY and step.kind == "intermediate"]
    assert step.at <= clock()

    ca.accept_intermediate(sign(file, ca.request_intermediate(), clock))
    key = keys.generate()
    renewed = ca.renew(request(key=key), agent.chain_der[0]).credentials(key)
    verified(renewed, ca, clock)
    with pytest.raises(CertificateRevoked):
        verified(agent, ca, clock)
    (of_root,) = [crl for crl in ca.crl().crls if crl.issuer == ca.root.subject]
    assert [entry.serial_number for entry in of_root] == [serial]


def test_a_revocation_after_the_request_asks_for_another_signature(
    ca: CertificateAuthority, file: Path, clock: Clock
) -> None:
    pem = sign(file, ca.request_intermediate(), clock)
    ca.taint(Issuer.of(ca.intermediate).key_id)
    with pytest.raises(PKIError, match="revoked since") as caught:
        ca.accept_intermediate(pem)
    assert type(caught.value) is StateChanged
    assert len(ca.issuers()) == 2
    ca.accept_intermediate(sign(file, ca.request_intermediate(), clock))
    ca.issue(request(), AGENT)


def test_the_successor_of_an_offline_root(ca: CertificateAuthority, file: Path, tmp_path: Path, clock: Clock) -> None:
    """It is made in the CA, takes over, and goes offline in its turn; from then on the ceremonies are with it."""
    agent = ca.issue_credentials(AGENT)
    with pytest.raises(KeyStoreError):
        ca.rotate(kind="intermediate", force=True)
    ca.rotate(kind="root", force=True)
    clock.forward(rotation.OVERLAP)
    done = ca.rotate()
    assert [(s.action, s.kind) for s in done] == [(Action.ACTIVATE, "root"), (Action.PREPARE, "intermediate")]
    clock.forward(rotation.LISTED)
    ca.rotate()
    assert ca.renewal_info(agent.chain_der[0]).urgent
    second = tmp_path / "second.pem"
    ca.export_root(second, SAFE)
    with pytest.raises(PKIError, match="request for the root: got one for") as caught:
        sign(file, ca.request_intermediate(), clock)
    assert type(caught.value) is RequestRefused
    ca.accept_intermediate(sign(second, ca.request_intermediate(), clock))
    verified(ca.issue_credentials(AGENT), ca, clock)


def test_a_root_that_becomes_active_without_its_key(ca: CertificateAuthority, folder: Path, clock: Clock) -> None:
    ca.rotate(kind="root", force=True)
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as connection:
        connection.execute("UPDATE issuers SET key_pem = NULL WHERE kind = 'root'")
        connection.commit()
    clock.forward(rotation.OVERLAP)
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as other:
        assert [(s.action, s.kind) for s in other.rotate()] == [(Action.ACTIVATE, "root")]
        assert [r.state for r in other.issuers()] == [State.RETIRING, State.ACTIVE, State.ACTIVE]
        other.issue(request(), AGENT)
        (step,) = [step for step in other.plan() if step.kind == "intermediate"]
        assert step.action is Action.CEREMONY
        assert step.at <= clock()


# What the root's machine refuses.


def _key_of_another_kind(csr: bytes) -> bytes:
    listed = csr.partition(b"-----BEGIN")[0]
    key = ed25519.Ed25519PrivateKey.generate()
    return listed + request(key=key, algorithm=None, encoding=Encoding.PEM)


def _broken(csr: bytes) -> bytes:
    listed, begin, rest = csr.partition(b"-----BEGIN CERTIFICATE REQUEST-----")
    der = bytearray(x509.load_pem_x509_csr(begin + rest).public_bytes(Encoding.DER))
    der[-1] ^= 1
    return listed + x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda csr: b"", RequestMalformed),
        (lambda csr: csr.partition(b"-----BEGIN")[0], RequestMalformed),
        (lambda csr: csr[csr.index(b"-----BEGIN") :], RequestMalformed),
        (lambda csr: csr.replace(b"revocation-list: ", b"list: "), RequestMalformed),
        (lambda csr: csr.replace(b"revocation-list: ", b"revocation-list: x"), RequestMalformed),
        (lambda csr: csr.replace(b"revocation-list: ", b"revocation-list: 1_"), RequestMalformed),
        (lambda csr: csr.replace(b"revocation-list: ", b"revocation-list: -"), RequestMalformed),
        (lambda csr: csr.replace(b"revocation-list: ", b"revocation-list: \x0b"), RequestMalformed),
        (lambda csr: csr.replace(b"revocation-list: ", b"revocation-list: 999999999999999999"), RequestMalformed),
        (lambda csr: csr.replace(b"-----BEGIN", b"\n-----BEGIN", 1), RequestMalformed),
        (lambda csr: csr.replace(b"root: ", b"root: 0"), RequestMalformed),
        (lambda csr: csr.replace(b"root: ", b"stem: "), RequestMalformed),
        (lambda csr: csr[csr.index(b"revocation") :], RequestMalformed),
        (lambda csr: b"root: " + b"0" * 40 + csr[46:], RequestRefused),
        (
            lambda csr: csr.replace(b"-----BEGIN", b"revoked: 1 2 superseded\n" * 501 + b"-----BEGIN", 1),
            RequestMalformed,
        ),
        (lambda csr: csr.replace(b"-----BEGIN", b"revoked: 0 2 superseded\n-----BEGIN", 1), RequestMalformed),
        (lambda csr: csr.replace(b"-----BEGIN", b"revoked: -5 2 superseded\n-----BEGIN", 1), RequestMalformed),
        (lambda csr: csr.replace(b"-----BEGIN", b"revoked: 1_0 2 superseded\n-----BEGIN", 1), RequestMalformed),
        (
            lambda csr: csr.replace(b"-----BEGIN", b"revoked: 1" + b"0" * 40 + b" 2 superseded\n-----BEGIN", 1),
            RequestMalformed,
        ),
        (lambda csr: csr.replace(b"-----BEGIN", b"revoked: 1 2 removeFromCRL\n-----BEGIN", 1), RequestMalformed),
        (lambda csr: csr.replace(b"-----BEGIN", b"revoked: 1 2 certificateHold\n-----BEGIN", 1), RequestMalformed),
        (lambda csr: csr.replace(b"-----BEGIN", b"revoked: 1 -2 superseded\n-----BEGIN", 1), RequestMalformed),
        (lambda csr: csr.replace(b"-----BEGIN", b"revoked: 1 2\n-----BEGIN", 1), RequestMalformed),
        (lambda csr: csr.replace(b"-----BEGIN", b"unrevoked: 1 2 superseded\n-----BEGIN", 1), RequestMalformed),
        (lambda csr: csr.replace(b"-----BEGIN", b"revoked: 1 2 boredom\n-----BEGIN", 1), RequestMalformed),
        (lambda csr: csr.replace(b"-----BEGIN", b"revoked: 1 9e99 superseded\n-----BEGIN", 1), RequestMalformed),
        (
            lambda csr: csr.replace(b"-----BEGIN", b"revoked: 1 99999999999999999999 superseded\n-----BEGIN", 1),
            RequestMalformed,
        ),
        (_key_of_another_kind, RequestKeyRefused),
        (_broken, PossessionNotProven),
    ],
)
def test_requests_that_the_root_does_not_sign(
    change: Callable[[bytes], bytes], expected: type[PKIError], ca: CertificateAuthority, file: Path, clock: Clock
) -> None:
    csr = change(ca.request_intermediate())
    with pytest.raises(PKIError) as caught:
        sign(file, csr, clock)
    assert type(caught.value) is expected


def test_the_roots_machine_wants_the_right_password_and_time(
    ca: CertificateAuthority, file: Path, clock: Clock
) -> None:
    csr = ca.request_intermediate()
    with pytest.raises(WrongPassword):
        ceremony.sign_intermediate(file, PASSWORD, csr, now=clock())
    for moment in (NOW - DAY, ca.root.not_valid_after_utc):
        with pytest.raises(AuthorityNotValid, match="check the clock"):
            ceremony.sign_intermediate(file, SAFE, csr, now=moment)


def test_what_is_signed_can_be_compared(ca: CertificateAuthority, file: Path, clock: Clock) -> None:
    csr = ca.request_intermediate()
    signed = ceremony.sign_intermediate(file, SAFE, csr, now=clock())
    key = x509.load_pem_x509_csr(csr[csr.index(b"-----BEGIN") :]).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert ceremony.key_fingerprint(csr) == signed.key_fingerprint == fingerprint(spki)
    assert signed.trust_domain == DOMAIN


# Somebody has written into the database: his own request, in the place of the CA's.

MINE = keys.generate()
_SKI = x509.SubjectKeyIdentifier.from_public_key(MINE.public_key()).digest.hex()
_CSR = keys.sign_csr(x509.CertificateSigningRequestBuilder(x509.Name([])), MINE).public_bytes(Encoding.DER)
SWAPS: list[tuple[str, dict[str, object], type[PKIError]]] = [
    ("the request", {"csr": _CSR}, AuthorityDamaged),
    ("the request and its name", {"csr": _CSR, "key_id": _SKI}, AuthorityDamaged),
    ("the name", {"key_id": _SKI}, AuthorityDamaged),
    ("no request", {"csr": b"x"}, AuthorityDamaged),
    (
        "all of it, with another password",
        {"csr": _CSR, "key_id": _SKI, "key_pem": keys.write(MINE, "other")},
        WrongPassword,
    ),
    (
        "all of it, with a key in the clear",
        {
            "csr": _CSR,
            "key_id": _SKI,
            "key_pem": MINE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        },
        AuthorityDamaged,
    ),
    (
        "all of it, with a module of his own",
        {"csr": _CSR, "key_id": _SKI, "key_pem": None, "key_uri": "pkcs11:token=t;object=o?module-path=/tmp/evil.so"},
        WrongPassword,
    ),
]


@pytest.mark.parametrize(("columns", "expected"), [row[1:] for row in SWAPS], ids=[row[0] for row in SWAPS])
def test_a_request_that_somebody_has_replaced(
    columns: dict[str, object],
    expected: type[PKIError],
    ca: CertificateAuthority,
    folder: Path,
    file: Path,
    clock: Clock,
) -> None:
    """The root is not shown it, and what the root has signed for it is not kept: rotation goes on."""
    listed = ca.request_intermediate().partition(b"-----BEGIN")[0]
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as connection:
        connection.execute(f"UPDATE pending_keys SET {', '.join(f'{n} = ?' for n in columns)}", list(columns.values()))
        connection.commit()
    with pytest.raises(PKIError) as caught:
        ca.request_intermediate()
    assert type(caught.value) is expected
    before, lists = ca.issuers(), ca.crl()
    signed = sign(file, listed + x509.load_der_x509_csr(_CSR).public_bytes(Encoding.PEM), clock)
    with pytest.raises(PKIError) as caught:
        ca.accept_intermediate(signed)
    assert type(caught.value) is expected
    assert (ca.issuers(), ca.crl()) == (before, lists)
    assert ca.rotate() == ()


# What the CA does not take. One answer that it would take, and one change a row.


class Answer:
    """What comes back from the root's machine, with every part open to change."""

    def __init__(self, ca: CertificateAuthority, file: Path, clock: Clock) -> None:
        self.ca, self.file, self.clock = ca, file, clock
        self.csr = ca.request_intermediate()
        self.good = sign(file, self.csr, clock)
        self.root = RootFile.read(file, SAFE)
        self.public_key = x509.load_pem_x509_csr(self.csr[self.csr.index(b"-----BEGIN") :]).public_key()

    @property
    def lists(self) -> bytes:
        return self.good[self.good.index(b"-----BEGIN X509 CRL") :]

    def other(self, **changes: object) -> bytes:
        """A certificate by the same root, for the same key, otherwise made."""
        options: dict[str, object] = {
            "trust_domain": DOMAIN,
            "public_key": self.public_key,
            "issuer": Issuer.of(self.root.certificate),
            "serial": 4711,
            "now": self.clock(),
            **changes,
        }
        key = options.pop("key", self.root.key)
        extra = options.pop("extra", None)
        builder = profiles.intermediate(**options)  # type: ignore[arg-type]
        if extra is not None:
            builder = builder.add_extension(extra, critical=False)  # type: ignore[arg-type]
        return keys.sign(builder, key).public_bytes(Encoding.PEM) + self.lists  # type: ignore[arg-type]


@pytest.fixture
def answer(ca: CertificateAuthority, file: Path, clock: Clock) -> Iterator[Answer]:
    yield Answer(ca, file, clock)


def _another_list(answer: Answer, **changes: object) -> bytes:
    issuer = Issuer.of(answer.root.certificate)
    wanted = ceremony.ListRequest.parse(answer.csr.partition(b"-----BEGIN")[0])
    key = changes.pop("key", answer.root.key)
    crl = keys.sign_crl(replace(wanted, **changes).builder(issuer, answer.ca.settings, NOW), key)  # type: ignore[arg-type]
    return answer.good[: answer.good.index(b"-----BEGIN X509 CRL")] + crl.public_bytes(Encoding.PEM)


ANSWERS: list[tuple[str, Callable[[Answer], bytes], type[PKIError]]] = [
    ("nothing", lambda a: b"", AuthorityDamaged),
    ("no PEM", lambda a: b"certificate", AuthorityDamaged),
    ("two certificates", lambda a: a.good.replace(a.lists, b"") + a.good, AuthorityDamaged),
    ("the root", lambda a: a.root.certificate.public_bytes(Encoding.PEM) + a.lists, AuthorityDamaged),
    ("another key", lambda a: a.other(public_key=keys.generate().public_key()), AuthorityDamaged),
    ("another signer", lambda a: a.other(key=keys.generate()), AuthorityDamaged),
    ("another trust domain", lambda a: a.other(trust_domain="other.example"), AuthorityDamaged),
    ("living longer", lambda a: a.other(lifetime=365 * DAY), AuthorityDamaged),
    ("living shorter", lambda a: a.other(lifetime=DAY), AuthorityDamaged),
    ("with a name constraint", lambda a: a.other(name_constraint=True), AuthorityDamaged),
    ("with other URLs", lambda a: a.other(urls=profiles.Urls(crl_base="http://evil.example")), AuthorityDamaged),
    (
        "with an extension more",
        lambda a: a.other(extra=x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH])),
        AuthorityDamaged,
    ),
    ("not valid yet", lambda a: a.other(now=NOW + HOUR), AuthorityNotValid),
    ("not valid any more", lambda a: a.other(now=NOW - 91 * DAY), AuthorityNotValid),
    ("without a list", lambda a: a.good.replace(a.lists, b""), AuthorityDamaged),
    ("with a list by somebody else", lambda a: _another_list(a, key=keys.generate()), AuthorityDamaged),
    ("with a list of another number", lambda a: _another_list(a, number=1), StateChanged),
    (
        "with a list that names another",
        lambda a: _another_list(
            a,
            revoked=(profiles.RevokedSerial(serial=1, revoked_at=NOW, reason=x509.ReasonFlags.superseded),),
        ),
        StateChanged,
    ),
]


@pytest.mark.parametrize(("attack", "expected"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS])
def test_answers_that_the_ca_does_not_take(
    attack: Callable[[Answer], bytes], expected: type[PKIError], answer: Answer
) -> None:
    ca = answer.ca
    before, lists = ca.issuers(), ca.crl()
    with pytest.raises(PKIError) as caught:
        ca.accept_intermediate(attack(answer))
    assert type(caught.value) is expected
    assert ca.issuers() == before
    assert ca.crl() == lists
    ca.accept_intermediate(answer.good)


def test_an_answer_is_taken_once(answer: Answer) -> None:
    answer.ca.accept_intermediate(answer.good)
    with pytest.raises(PKIError, match="no key waits") as caught:
        answer.ca.accept_intermediate(answer.good)
    assert type(caught.value) is AuthorityNotValid


def test_what_else_the_answer_could_be_made_with_is_taken(answer: Answer) -> None:
    """The table's own baseline: `other` without a change is accepted."""
    answer.ca.accept_intermediate(answer.other())
    assert answer.ca.issuers()[-1].serial == 4711
    assert isinstance(answer.ca.crl(), RevocationLists)
