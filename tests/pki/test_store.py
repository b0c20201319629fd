"""The CA's memory: what was written is there, in order, once, and whoever has to wait is told so."""

from __future__ import annotations

import dataclasses
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from pki import keys, profiles
from pki.errors import (
    AuthorityDamaged,
    AuthorityMissing,
    AuthorityNotValid,
    DatabaseLocked,
    DuplicateCertificate,
    PKIError,
    StoreError,
)
from pki.profiles import CRL_RETENTION, Issuer, RevokedSerial
from pki.store import DATABASE_FILE, Record, Settings, Store
from tests.pki.conftest import AGENT, DOMAIN, NOW
from tests.pki.judges import listing

DAY = timedelta(days=1)
KEY = keys.generate()
ROOT = keys.sign(profiles.root(trust_domain=DOMAIN, public_key=KEY.public_key(), serial=2**159 - 1, now=NOW), KEY)
ISSUER = Issuer.of(ROOT)
FIRST = Record.of(ROOT, kind="root", issuer=ISSUER.key_id, spiffe_id=f"spiffe://{DOMAIN}")
SETTINGS = Settings(trust_domain=DOMAIN, crl_base_url=None)


def row(serial: int, **changes: object) -> Record:
    """A row like another, for tests that need many and look into none of their certificates."""
    same: dict[str, object] = {"kind": "agent", "spiffe_id": AGENT, "serial": serial, "thumbprint": f"print {serial}"}
    return dataclasses.replace(FIRST, **{**same, **changes})  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Store.create(tmp_path, SETTINGS, [FIRST])
    return tmp_path


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    opened = Store.open(folder)
    yield opened
    opened.close()


def add(store: Store, *serials: int) -> None:
    for serial in serials:
        store.add(row(serial), issuer_serial=FIRST.serial)


def revoke(store: Store, serial: int, now: datetime = NOW, reason: str = "unspecified") -> None:
    record = store.find(serial)
    assert record is not None
    store.revoke(record, reason=x509.ReasonFlags(reason), now=now)


def crl(store: Store, *, fresh: bool = True, now: datetime = NOW) -> x509.CertificateRevocationList:
    def make(number: int, revoked: list[RevokedSerial]) -> x509.CertificateRevocationList:
        return keys.sign_crl(profiles.revocation_list(revoked, issuer=ISSUER, number=number, now=now), KEY)

    return store.crl(ISSUER.key_id, now=now, fresh=lambda _: fresh, make=make)


def number(item: x509.CertificateRevocationList) -> int:
    return item.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def test_what_was_created_is_there(folder: Path, store: Store) -> None:
    assert store.settings() == SETTINGS
    assert store.records() == [FIRST]
    assert store.find(2**159 - 1) == FIRST
    assert FIRST.certificate == ROOT
    assert stat.S_IMODE((folder / DATABASE_FILE).stat().st_mode) == 0o600


def test_commits_wait_for_the_disk(store: Store) -> None:
    with store._write() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_rows_survive_the_process(folder: Path, store: Store) -> None:
    """What is on disk after `add` returned is read by another connection while the first is still open."""
    add(store, 1)
    other = Store.open(folder)
    assert other.find(1) == row(1)
    other.close()


def test_records_in_order_and_narrowed(store: Store) -> None:
    add(store, 9, 3)
    store.add(row(5, spiffe_id="spiffe://fleet.example/other", not_after=NOW), issuer_serial=FIRST.serial)
    assert [r.serial for r in store.records()] == [FIRST.serial, 9, 3, 5]
    assert [r.serial for r in store.records(kind="root")] == [FIRST.serial]
    assert [r.serial for r in store.records(spiffe_id=AGENT)] == [9, 3]
    assert [r.serial for r in store.records(ends_after=NOW, kind="agent")] == [9, 3, 5]
    assert [r.serial for r in store.records(ends_after=NOW + timedelta(seconds=1), kind="agent")] == [9, 3]


def test_an_unknown_serial(store: Store) -> None:
    assert store.find(12345) is None


def test_status() -> None:
    record = row(1)
    assert record.status(record.not_before - timedelta(seconds=1)) == "not yet valid"
    assert record.status(record.not_before) == "valid"
    assert record.status(record.not_after) == "valid"
    assert record.status(record.not_after + timedelta(seconds=1)) == "expired"
    revoked = dataclasses.replace(record, revoked_at=NOW)
    assert revoked.status(record.not_after + DAY) == "revoked"


@pytest.mark.parametrize(
    "second",
    [row(1), dataclasses.replace(row(1), thumbprint="another"), dataclasses.replace(row(2), thumbprint="print 1")],
    ids=["the same", "the same serial", "the same thumbprint"],
)
def test_nothing_is_stored_twice(second: Record, store: Store) -> None:
    add(store, 1)
    with pytest.raises(PKIError) as caught:
        store.add(second, issuer_serial=FIRST.serial)
    assert type(caught.value) is DuplicateCertificate
    assert [r.serial for r in store.records()] == [FIRST.serial, 1]


def test_a_revoked_issuer_adds_nothing(store: Store) -> None:
    revoke(store, FIRST.serial)
    with pytest.raises(PKIError) as caught:
        add(store, 1)
    assert type(caught.value) is AuthorityNotValid
    assert store.find(1) is None


def test_the_first_revocation_stays(store: Store) -> None:
    add(store, 1)
    revoke(store, 1, NOW, "keyCompromise")
    revoke(store, 1, NOW + DAY, "superseded")
    record = store.find(1)
    assert record is not None
    assert (record.revoked_at, record.reason) == (NOW, x509.ReasonFlags.key_compromise)


def test_only_a_known_certificate_can_be_revoked(store: Store) -> None:
    with pytest.raises(StoreError):
        store.revoke(row(77), reason=x509.ReasonFlags.unspecified, now=NOW)


def test_crl_numbers_only_grow(folder: Path, store: Store) -> None:
    assert number(crl(store)) == 1
    assert number(crl(store)) == 1, "an empty list that is fresh is used again"
    assert number(crl(store, fresh=False)) == 2
    other = Store.open(folder)
    assert number(crl(other)) == 2
    assert number(crl(other, fresh=False)) == 3
    other.close()
    assert number(crl(store)) == 3


def test_a_revocation_makes_the_list_stale(store: Store) -> None:
    add(store, 1)
    assert len(crl(store)) == 0
    revoke(store, 1)
    listed = crl(store)
    assert [e.serial_number for e in listed] == [1]
    revoke(store, 1)
    assert number(crl(store)) == number(listed), "nothing new: the list stays"


def test_a_revocation_of_another_issuer_does_not(store: Store) -> None:
    store.add(row(1, issuer="another"), issuer_serial=FIRST.serial)
    assert number(crl(store)) == 1
    revoke(store, 1)
    assert number(crl(store)) == 1
    assert len(crl(store, fresh=False)) == 0


def test_entries_stay_on_the_list_for_a_while_after_the_end(store: Store) -> None:
    store.add(row(1, not_after=NOW), issuer_serial=FIRST.serial)
    revoke(store, 1)
    assert len(crl(store, now=NOW + CRL_RETENTION)) == 1
    assert len(crl(store, now=NOW + CRL_RETENTION + timedelta(seconds=1), fresh=False)) == 0


def test_a_list_that_cannot_be_made_uses_up_no_number(store: Store) -> None:
    def make(_number: int, _revoked: list[RevokedSerial]) -> x509.CertificateRevocationList:
        raise RuntimeError("no key")

    with pytest.raises(RuntimeError, match="no key"):
        store.crl(ISSUER.key_id, now=NOW, fresh=lambda _: True, make=make)
    assert number(crl(store)) == 1


def test_a_list_that_somebody_else_made_meanwhile_is_taken(folder: Path, store: Store) -> None:
    """Between the look and the lock another process may have made one; its number must not be used again."""
    other = Store.open(folder)
    made: list[x509.CertificateRevocationList] = []
    crl(store)

    def fresh(item: x509.CertificateRevocationList) -> bool:
        if not made:
            made.append(crl(other, fresh=False))
            return False
        return True

    def make(_number: int, _revoked: list[RevokedSerial]) -> x509.CertificateRevocationList:
        raise AssertionError("there is a fresh one already")

    assert store.crl(ISSUER.key_id, now=NOW, fresh=fresh, make=make) == made[0]
    other.close()


def test_a_locked_database_says_so_and_keeps_nothing(folder: Path, locked: Callable[[], None]) -> None:
    locked()
    store = Store.open(folder)
    try:
        with pytest.raises(PKIError, match="free database") as caught:
            add(store, 1)
        assert type(caught.value) is DatabaseLocked
        assert store.find(1) is None, "readers do not wait"
    finally:
        store.close()


def test_a_thread_that_waits_too_long_is_told_so(store: Store, locked: Callable[[], None]) -> None:
    with store._write(), pytest.raises(PKIError) as caught:
        add(store, 1)
    assert type(caught.value) is DatabaseLocked


def test_a_reader_that_gets_no_connection_is_told_so(folder: Path, locked: Callable[[], None]) -> None:
    store = Store.open(folder)
    with ExitStack() as readers:
        with pytest.raises(PKIError) as caught:
            for _ in range(100):
                readers.enter_context(store._read())
        assert type(caught.value) is DatabaseLocked
    assert store.records() == [FIRST]
    store.close()


def test_no_database_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(PKIError) as caught:
        Store.open(tmp_path)
    assert type(caught.value) is AuthorityMissing
    assert listing(tmp_path) == []


def test_an_existing_database_is_not_overwritten(folder: Path) -> None:
    with pytest.raises(FileExistsError):
        Store.create(folder, SETTINGS, [])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("DELETE FROM settings", "got nothing"),
        ("UPDATE settings SET schema_version = 2", "got schema 2"),
        ("DROP TABLE settings", "no such table"),
    ],
)
def test_another_database_is_refused(damage: str, message: str, folder: Path) -> None:
    connection = sqlite3.connect(folder / DATABASE_FILE)
    connection.execute(damage)
    connection.commit()
    connection.close()
    store = Store.open(folder)
    with pytest.raises(PKIError, match=message) as caught:
        store.settings()
    assert type(caught.value) is StoreError
    store.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE certificates SET der = 'text'",
        "UPDATE certificates SET serial = 'text'",
        "UPDATE certificates SET not_after = 'text'",
        "UPDATE certificates SET not_after = 1e18",
        "INSERT INTO revocations SELECT serial, 0, 'whatever' FROM certificates",
    ],
)
def test_a_row_that_nobody_wrote(damage: str, folder: Path) -> None:
    store = Store.open(folder)
    connection = sqlite3.connect(folder / DATABASE_FILE)
    connection.execute(damage)
    connection.commit()
    connection.close()
    with pytest.raises(PKIError, match="damaged") as caught:
        store.records()
    assert type(caught.value) is AuthorityDamaged
    store.close()


def test_a_reason_that_nobody_wrote_is_on_no_list(folder: Path, store: Store) -> None:
    revoke(store, FIRST.serial)
    connection = sqlite3.connect(folder / DATABASE_FILE)
    connection.execute("UPDATE revocations SET reason = 'whatever'")
    connection.commit()
    connection.close()
    with pytest.raises(PKIError, match="damaged") as caught:
        crl(store)
    assert type(caught.value) is AuthorityDamaged


@pytest.mark.parametrize("altered", [b"", FIRST.der[:-1], FIRST.der[:-1] + bytes([FIRST.der[-1] ^ 1])])
def test_a_certificate_that_is_not_the_one_that_was_stored(altered: bytes) -> None:
    with pytest.raises(PKIError, match=f"certificate {FIRST.serial:x} is not the one") as caught:
        _ = dataclasses.replace(FIRST, der=altered).certificate
    assert type(caught.value) is AuthorityDamaged


def test_a_revocation_list_that_cannot_be_read(folder: Path, store: Store) -> None:
    crl(store)
    connection = sqlite3.connect(folder / DATABASE_FILE)
    connection.execute("UPDATE crls SET der = x'3000'")
    connection.commit()
    connection.close()
    with pytest.raises(PKIError, match="damaged") as caught:
        crl(store)
    assert type(caught.value) is AuthorityDamaged


def test_something_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE).write_bytes(b"no database at all" * 100)
    store = Store.open(tmp_path)
    with pytest.raises(PKIError, match="not a database") as caught:
        store.settings()
    assert type(caught.value) is StoreError
    store.close()


def test_times_are_utc(store: Store) -> None:
    (record,) = store.records()
    assert record.not_before.tzinfo is UTC
