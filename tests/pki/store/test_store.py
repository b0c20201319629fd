"""The CA's memory: what was written is there, in order, once, in the ledger too, and whoever has to wait is told so."""

from __future__ import annotations

import dataclasses
import sqlite3
import stat
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import NoneType

import pytest
from cryptography import x509
from sqlalchemy import insert

from pki import ledger
from pki.errors import (
    AuthorityDamaged,
    AuthorityExists,
    AuthorityMissing,
    DatabaseLocked,
    DuplicateCertificate,
    LedgerDamaged,
    NotErased,
    PKIError,
    StoreError,
    UnknownSerial,
)
from pki.ledger import verify_head
from pki.records import Issue, Record, State
from pki.store import BUSY_TIMEOUT, DATABASE_FILE, Store, database
from pki.store.appending import Journal
from pki.store.guarding import Guard
from pki.store.rows import issuer_row
from pki.store.schema import issuers
from tests.pki.conftest import DOMAIN, NOW
from tests.pki.judges import listing
from tests.pki.store import parts
from tests.pki.store.parts import AGENT, CA1, DAY, ROOT, SECOND, SETTINGS, fake, issue, leaf, problems, sql

UNSPECIFIED = x509.ReasonFlags.unspecified
COMPROMISE = x509.ReasonFlags.key_compromise


def test_what_was_created_is_there(where: str, store: Store) -> None:
    assert store.settings() == SETTINGS
    assert store.records() == [ROOT.record, CA1.record]
    assert store.issuers() == [ROOT.row, CA1.row]
    assert store.find(ROOT.record.serial) == ROOT.record
    assert store.find_thumbprint(CA1.record.thumbprint) == CA1.record
    assert store.bundle_sequence() == 1
    assert store.policy_text() is None
    assert store.ledger_size() == 4
    assert problems(store) == ()


def test_only_the_owner_may_read_it(folder: Path) -> None:
    store = Store.open(folder)
    issue(store, leaf())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    names = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert names == {f"{DATABASE_FILE}{end}": 0o600 for end in ("", "-wal", "-shm")}
    store.close()
    assert listing(folder) == [DATABASE_FILE]


def test_commits_wait_for_the_disk(folder: Path) -> None:
    store = Store.open(folder)
    with store._database.write() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    store.close()


def test_commits_wait_for_the_disk_whatever_the_server_does_by_default() -> None:
    with parts.postgresql() as url:
        name = url.rpartition("/")[2]
        sql(url, f"ALTER DATABASE {name} SET synchronous_commit = off")
        sql(url, f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
        parts.create(url)
        store = Store.open(url)
        with store._database.write() as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
            assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed"
            assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "5s"
        store.close()


def test_rows_survive_the_process(where: str, store: Store) -> None:
    """What is on disk after `issue` returned is read by another connection while the first is still open."""
    record = leaf()
    issue(store, record)
    other = Store.open(where)
    assert other.find(record.serial) == record
    assert other.ledger_size() == store.ledger_size() == 5
    other.close()


def test_an_unknown_serial(store: Store) -> None:
    assert store.find(12345) is None
    assert store.find_thumbprint("none") is None
    assert not store.status(12345).known


def test_status() -> None:
    record = fake(1)
    assert record.status(record.not_before - SECOND) == "not yet valid"
    assert record.status(record.not_before) == "valid"
    assert record.status(record.not_after) == "valid"
    assert record.status(record.not_after + SECOND) == "expired"
    revoked = dataclasses.replace(record, revoked_at=NOW)
    assert revoked.status(record.not_after + DAY) == "revoked"


def test_what_a_responder_may_say(store: Store) -> None:
    record = leaf()
    issue(store, record)
    good = store.status(record.serial)
    assert (good.known, good.issuer, good.revoked_at, good.reason) == (True, CA1.issuer.key_id, None, None)
    store.revoke([record.serial], reason=COMPROMISE, now=NOW)
    revoked = store.status(record.serial)
    assert (revoked.known, revoked.revoked_at, revoked.reason) == (True, NOW, COMPROMISE)


def test_the_first_revocation_stays(store: Store) -> None:
    first, second = leaf(), leaf()
    issue(store, first, second)
    store.revoke([first.serial], reason=COMPROMISE, now=NOW)
    size = store.ledger_size()
    again = store.revoke([second.serial, first.serial], reason=x509.ReasonFlags.superseded, now=NOW + DAY)
    assert [(r.serial, r.revoked_at, r.reason) for r in again] == [
        (second.serial, NOW + DAY, x509.ReasonFlags.superseded),
        (first.serial, NOW, COMPROMISE),
    ]
    assert again == [store.find(second.serial), store.find(first.serial)]
    assert store.ledger_size() == size + 1
    assert problems(store) == ()


def test_only_known_certificates_are_revoked_or_none(store: Store) -> None:
    record = leaf()
    issue(store, record)
    with pytest.raises(PKIError, match="got 4d,") as caught:
        store.revoke([record.serial, 77], reason=UNSPECIFIED, now=NOW)
    assert type(caught.value) is UnknownSerial
    found = store.find(record.serial)
    assert found is not None and found.revoked_at is None


def test_more_revocations_than_one_statement_holds(store: Store) -> None:
    records = [fake(n) for n in range(1, 1203)]
    issue(store, *records[:2])
    store._issue([parts.Issue(record=record, now=NOW) for record in records[2:]])
    done = store.revoke([r.serial for r in records], reason=UNSPECIFIED, now=NOW)
    assert [r.serial for r in done] == [r.serial for r in records]
    assert store.counts(NOW)["revoked"] == 1202


def test_bans(store: Store) -> None:
    assert store.ban(AGENT, NOW)
    size = store.ledger_size()
    assert not store.ban(AGENT, NOW + DAY)
    assert store.bans() == [(AGENT, NOW)]
    assert store.is_banned(AGENT) and not store.is_banned(AGENT + "/other")
    assert store.ledger_size() == size
    assert problems(store) == ()
    assert store.unban(AGENT, NOW + DAY)
    assert not store.unban(AGENT, NOW + DAY)
    assert not store.is_banned(AGENT) and store.bans() == []
    assert store.ledger_size() == size + 1
    assert problems(store) == ()


def test_the_policy(store: Store) -> None:
    store.set_policy("first", NOW)
    store.set_policy("second", NOW)
    assert store.policy_text() == "second"
    assert store.ledger_size() == 6
    assert problems(store) == ()


def test_heads_are_signed_once_there_is_a_key(where: str, store: Store) -> None:
    store.seal = None
    assert store.sealed_head() == store.head()
    store.ban(AGENT, NOW)
    assert [head.jws is None for head in store.heads()] == [False, True]
    store.seal = parts.seal
    sealed = store.sealed_head()
    assert sealed is not None and sealed.jws is not None
    signed = verify_head(sealed.jws, CA1.key.public_key())
    assert (signed.size, signed.root, signed.time) == (5, sealed.root, sealed.time)
    assert store.sealed_head() == sealed
    assert problems(store) == ()


def test_a_key_that_does_not_sign_does_not_hold_up_a_revocation(store: Store) -> None:
    def broken(_: object) -> str:
        raise PKIError("token is gone")

    record = leaf()
    issue(store, record)
    store.seal = broken
    store.revoke([record.serial], reason=COMPROMISE, now=NOW)
    assert [head.jws is None for head in store.heads()] == [False, False, True]
    assert store.sealed_head() == store.head()
    assert problems(store) == ()


def test_a_head_that_somebody_else_signs_meanwhile(where: str, store: Store) -> None:
    store.seal = None
    store.ban(AGENT, NOW)
    other = Store.open(where)
    other.seal = parts.seal

    def slow(_: object) -> str:
        raise AssertionError("signed already")

    store.seal = slow
    look, found = store.head, other.head()

    def first() -> object:
        other.sealed_head()
        return found

    store.head = first  # type: ignore[method-assign, assignment]
    sealed = store.sealed_head()
    store.head = look  # type: ignore[method-assign]
    assert sealed == store.head() and sealed is not None and sealed.jws is not None
    other.close()


def test_heads_do_not_go_back_with_the_clock(store: Store) -> None:
    store.ban(AGENT, NOW + DAY)
    store.unban(AGENT, NOW)
    assert [head.time for head in store.heads()] == [NOW, NOW + DAY, NOW + DAY]


@pytest.mark.parametrize("damage", ["frontier = leaf", "root = leaf", "size = size + 1"])
def test_nothing_is_appended_to_a_tree_that_cannot_be(damage: str, where: str, store: Store) -> None:
    sql(where, f"UPDATE heads SET {damage.replace('leaf', '(SELECT leaf FROM ledger LIMIT 1)')}")
    with pytest.raises(PKIError) as caught:
        issue(store, leaf())
    assert type(caught.value) is LedgerDamaged
    assert store.records() == [ROOT.record, CA1.record]


def test_shards_grow_with_the_ledger(store: Store) -> None:
    assert store.shard() == 0
    store._size = 65535
    assert store.shard() == 0
    store._size = 65536
    assert store.shard() == 1


def test_a_snapshot_is_of_one_moment(store: Store) -> None:
    with store.snapshot() as books:
        before = books.ledger_size(), books.records()
        issue(store, leaf())
        assert (books.ledger_size(), books.records()) == before
        assert [row.position for row in books.ledger_rows()] == [0, 1, 2, 3]
    assert store.ledger_size() == 5


def test_the_check_reaches_the_disk(folder: Path, locked: Callable[[], None]) -> None:
    locked()
    store = Store.open(folder)
    with pytest.raises(PKIError) as caught:
        store.check()
    assert type(caught.value) is DatabaseLocked
    store.close()


def test_a_store_that_is_well(store: Store) -> None:
    store.check()


def test_a_locked_database_says_so_and_keeps_nothing(folder: Path, locked: Callable[[], None]) -> None:
    locked()
    store = Store.open(folder)
    record = leaf()
    try:
        with pytest.raises(PKIError, match="free database") as caught:
            issue(store, record)
        assert type(caught.value) is DatabaseLocked
        assert store.find(record.serial) is None, "readers do not wait"
    finally:
        store.close()


def test_a_writer_elsewhere_is_waited_for(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts.create(postgresql)
    monkeypatch.setattr("pki.store.database.BUSY_TIMEOUT", timedelta(milliseconds=100))
    store, other = Store.open(postgresql), Store.open(postgresql)
    with other._database.write(), pytest.raises(PKIError) as caught:
        issue(store, leaf())
    assert type(caught.value) is DatabaseLocked
    issue(store, leaf())
    store.close()
    other.close()


def test_a_thread_that_waits_too_long_is_told_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pki.store.database.BUSY_TIMEOUT", timedelta(milliseconds=100))
    with store._database.write(), pytest.raises(PKIError) as caught:
        issue(store, leaf())
    assert type(caught.value) is DatabaseLocked


def test_a_writer_of_another_process_is_waited_for_and_not_for_longer(folder: Path) -> None:
    """SQLite's own wait looks again after a tenth of a second, when it has waited for a while."""
    first, second = Store.open(folder), Store.open(folder)
    begun, written = threading.Event(), threading.Event()

    def write() -> None:
        begun.set()
        issue(second, leaf())
        written.set()

    thread = threading.Thread(target=write)
    with first._database.write():
        thread.start()
        assert begun.wait(20)
        assert not written.wait(0.3)
    assert written.wait(20)
    thread.join()
    with second._database.read() as connection:
        (patience,) = connection.exec_driver_sql("PRAGMA busy_timeout").one()
    assert patience == BUSY_TIMEOUT.total_seconds() * 1000, "everything else waits as before"
    first.close()
    second.close()


def test_one_that_cannot_be_stored_takes_none_of_the_others_with_it(where: str, store: Store) -> None:
    """Whatever is wrong with it. Each is told of its own."""
    good, other = leaf(), leaf()
    items = [Issue(record=record, now=NOW) for record in (good, replace(leaf(), thumbprint=None), other)]  # type: ignore[arg-type]
    defect = Issue(record=replace(leaf(), serial="no number"), now=NOW)  # type: ignore[arg-type]
    errors = store.issue_many([*items, defect, Issue(record=good, now=NOW)])
    assert [type(error) for error in errors] == [
        NoneType,
        DuplicateCertificate,
        NoneType,
        ValueError,
        DuplicateCertificate,
    ]
    assert [store.find(record.serial) for record in (good, other)] == [good, other]
    assert problems(store) == ()


def test_what_is_wrong_with_the_database_is_told_to_each(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pki.store.database.BUSY_TIMEOUT", timedelta(milliseconds=100))
    with store._database.write():
        one, other = store.issue_many([Issue(record=leaf(), now=NOW) for _ in range(2)])
    assert type(one) is type(other) is DatabaseLocked
    assert one is not other


def test_a_reader_that_gets_no_connection_is_told_so(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pki.store.database.BUSY_TIMEOUT", timedelta(milliseconds=100))
    store = Store.open(where)
    with ExitStack() as readers:
        with pytest.raises(PKIError) as caught:
            for _ in range(100):
                readers.enter_context(store._read())
        assert type(caught.value) is DatabaseLocked
    assert store.records() == [ROOT.record, CA1.record]
    store.close()


def test_no_database_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(PKIError) as caught:
        Store.open(tmp_path)
    assert type(caught.value) is AuthorityMissing
    assert listing(tmp_path) == []


def test_a_database_without_a_ca(postgresql: str) -> None:
    with pytest.raises(PKIError) as caught:
        Store.open(postgresql)
    assert type(caught.value) is AuthorityMissing


def test_an_existing_ca_is_not_overwritten(where: str, store: Store) -> None:
    issue(store, leaf())
    with pytest.raises(PKIError) as caught:
        parts.create(where)
    assert type(caught.value) is AuthorityExists
    assert len(store.records()) == 3


def test_a_ca_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(PKIError):
        Store.create(tmp_path, SETTINGS, [ROOT.row, ROOT.row], [ROOT.record], now=NOW)
    assert listing(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(PKIError, match="cannot make") as caught:
        parts.create(tmp_path / "file")
    assert type(caught.value) is StoreError


@pytest.mark.parametrize(
    ("damage", "message", "expected"),
    [
        ("DELETE FROM settings", "got no settings", AuthorityDamaged),
        ("UPDATE alembic_version SET version_num = '9999'", "got schema 9999", StoreError),
        ("DROP TABLE settings", "settings", StoreError),
    ],
)
def test_another_database_is_refused(damage: str, message: str, expected: type[PKIError], where: str) -> None:
    sql(where, damage)
    with pytest.raises(PKIError, match=message) as caught:
        Store.open(where).close()
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE certificates SET der = 'text'",
        "UPDATE certificates SET der = 7",
        "UPDATE certificates SET serial = 'text ' || serial",
        "UPDATE certificates SET spiffe_id = x'00'",
        "UPDATE certificates SET not_after = 'text'",
        "UPDATE certificates SET not_after = 1e18",
        "UPDATE certificates SET revoked_at = 1, reason = 'whatever'",
        "UPDATE issuers SET state = 'whatever'",
        "UPDATE issuers SET key_pem = 'text'",
        "UPDATE settings SET trust_domain = x'07'",
        "UPDATE settings SET policy = x'07'",
        "UPDATE settings SET bundle_sequence = 'text'",
        "UPDATE ledger SET entry = 'text'",
        "UPDATE heads SET root = 'text'",
    ],
)
def test_a_row_that_nobody_wrote(damage: str, folder: Path) -> None:
    store = Store.open(folder)
    sql(folder, damage)
    with pytest.raises(PKIError, match="damaged") as caught:
        _ = store.records(), store.issuers(), store.settings(), store.policy_text(), store.bundle_sequence()
        _ = list(store.ledger_rows()), list(store.heads())
    assert type(caught.value) is AuthorityDamaged
    store.close()


def test_a_shard_that_is_no_number(folder: Path) -> None:
    store = Store.open(folder)
    sql(folder, "UPDATE certificates SET shard = 'zz'")
    with pytest.raises(PKIError, match="damaged") as caught:
        store.shards(ROOT.row.key_id, NOW)
    assert type(caught.value) is AuthorityDamaged
    store.close()


def test_streams_distrust_their_rows_too(folder: Path) -> None:
    store = Store.open(folder)
    sql(folder, "UPDATE certificates SET der = 'text'")
    with pytest.raises(PKIError, match="damaged") as caught:
        list(store.each_record())
    assert type(caught.value) is AuthorityDamaged
    store.close()


@pytest.mark.parametrize(
    "altered", [b"", ROOT.record.der[:-1], ROOT.record.der[:-1] + bytes([ROOT.record.der[-1] ^ 1])]
)
def test_a_certificate_that_is_not_the_one_that_was_stored(altered: bytes) -> None:
    with pytest.raises(PKIError, match=f"certificate {ROOT.record.serial:x} is not the one") as caught:
        _ = dataclasses.replace(ROOT.record, der=altered).certificate
    assert type(caught.value) is AuthorityDamaged


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"der": b"none"}, "is not one"),
        ({"der": leaf().der}, "another one"),
        ({"serial": 7}, "another one"),
        ({"key_id": "00" * 20}, "another one"),
    ],
)
def test_a_ca_that_is_not_the_one_that_was_stored(changes: dict[str, object], message: str) -> None:
    with pytest.raises(PKIError, match=message) as caught:
        _ = dataclasses.replace(ROOT.row, **changes).certificate  # type: ignore[arg-type]
    assert type(caught.value) is AuthorityDamaged


def test_something_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(PKIError, match="not a database") as caught:
        Store.open(tmp_path)
    assert type(caught.value) is StoreError


def test_times_are_utc(store: Store) -> None:
    record: Record = store.records()[0]
    assert record.not_before.tzinfo is UTC
    assert ROOT.row.not_before == record.not_before and ROOT.row.not_after == record.not_after
    assert isinstance(record.not_after, datetime)


def test_a_forgotten_key_is_gone_from_the_files(folder: Path) -> None:
    store = Store.open(folder)
    assert ROOT.row.key_pem is not None
    needle = ROOT.row.key_pem[200:260]
    assert any(needle in path.read_bytes() for path in folder.iterdir())
    assert store.forget_key(ROOT.row.key_id)
    assert not any(needle in path.read_bytes() for path in folder.iterdir())
    assert not store.forget_key(ROOT.row.key_id)
    assert [(one.key_pem is None, one.key_uri) for one in store.issuers()] == [(True, None), (False, None)]
    store.close()


def test_a_key_can_be_forgotten_once(store: Store) -> None:
    assert store.forget_key(CA1.row.key_id) and not store.forget_key(CA1.row.key_id)
    assert not store.forget_key("00" * 20)
    assert [one.key_pem is None for one in store.issuers()] == [False, True]
    assert problems(store) == ()


def test_forgetting_while_somebody_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log cannot be emptied under a reader: that is said, and that the key is out."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT", timedelta(milliseconds=100))
    store = Store.open(folder)
    reader = sqlite3.connect(folder / DATABASE_FILE, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM settings").fetchall()
    with pytest.raises(PKIError, match=r"it is done, but .* another program that reads it, ") as caught:
        store.forget_key(ROOT.row.key_id)
    assert type(caught.value) is NotErased
    reader.close()
    assert store.issuers()[0].key_pem is None
    store.forget_key(CA1.row.key_id)
    for name in folder.iterdir():
        assert (ROOT.row.key_pem or b"").splitlines()[3] not in name.read_bytes()
    store.close()


def forge(where: str, *entries: ledger.Entry) -> None:
    """What somebody does who can write the database and has no key: entries, and an unsigned head over them."""
    store = Store.open(where)
    with store._database.write() as connection:
        journal = Journal(connection, Guard(parts.SETTINGS))
        for entry in entries:
            journal.add(entry)
        journal.write(trust_domain=DOMAIN, now=NOW, seal=None)
    store.close()


FORGED = {
    "a certificate": ledger.entry_for_record(leaf()),
    "a CA that goes on": ledger.entry_for_issuer(replace(CA1.row, state=State.RETIRING)),
    "a pruning": ledger.entry_for_pruning(CA1.row.key_id, before=NOW, removed=1, now=NOW + 9 * DAY),
    "a retired agent": ledger.Entry(kind="retired", time=NOW, serial=5, facts={"key_id": "x"}),
}


@pytest.mark.parametrize("entry", FORGED.values(), ids=FORGED)
def test_what_nobody_has_signed_is_not_signed_over(entry: ledger.Entry, where: str) -> None:
    forge(where, entry)
    store = parts.opened(where)
    with pytest.raises(LedgerDamaged, match="entry 4"):
        issue(store, leaf())
    with pytest.raises(LedgerDamaged, match="entry 4"):
        store.sealed_head()
    store.ban(AGENT, NOW)  # that waits for nobody
    head = store.head()
    assert head is not None and (head.size, head.jws) == (6, None)
    assert problems(store) != ()
    store.close()


def test_what_a_ca_without_its_password_does_is_signed_over(where: str, store: Store) -> None:
    record = leaf()
    issue(store, record)
    other = Store.open(where)
    other.revoke([record.serial], reason=COMPROMISE, now=NOW)
    other.set_policy("a", NOW)
    other.close()
    issue(store, leaf())
    head = store.head()
    assert head is not None and head.jws is not None
    assert problems(store) == ()


def test_a_ledger_that_became_shorter_is_not_continued(where: str, store: Store) -> None:
    issue(store, leaf(), leaf())
    sql(where, "DELETE FROM heads WHERE size = 6", "DELETE FROM ledger WHERE position = 5")
    with pytest.raises(LedgerDamaged, match="do not continue what this process has written"):
        issue(store, leaf())


def test_a_root_that_somebody_has_put_there_is_not_covered(where: str, store: Store) -> None:
    other = parts.root()
    forge(where, ledger.entry_for_record(other.record), ledger.entry_for_issuer(other.row))
    with store._database.write() as connection:
        connection.execute(insert(issuers).values(issuer_row(other.row, 5)))
    assert [store.is_covered(one) for one in store.issuers()] == [True, True, False]
