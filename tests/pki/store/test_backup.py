"""A backup is the CA as it was at one moment; what comes back has been verified, or nothing has changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace as replace_in
from pathlib import Path

import pytest
from cryptography import x509

from pki.errors import (
    AuthorityExists,
    AuthorityMissing,
    BackupRefused,
    DatabaseLocked,
    PKIError,
    SchemaOutdated,
    WrongPassword,
)
from pki.ledger import Head, sign_head
from pki.records import PendingKey, State
from pki.store import DATABASE_FILE, BackupReport, Store, backup, restore, restoring
from tests.pki.conftest import DOMAIN, NOW
from tests.pki.judges import listing
from tests.pki.store import parts
from tests.pki.store.parts import AGENT, CA1, DAY, PASSWORD, crl, issue, leaf, number, problems, sql
from tests.pki.store.test_issuing import TOKEN
from tests.pki.store.test_upgrading import journey


def fill(store: Store) -> None:
    """Something in every table."""
    one, two = leaf(), leaf()
    issue(store, one, two)
    store.revoke([two.serial], reason=x509.ReasonFlags.key_compromise, now=NOW)
    crl(store)
    store.ban(AGENT + "/banned", NOW)
    store.set_policy("allow = []", NOW)
    store.add_token(TOKEN)
    store.add_pending_key(PendingKey(key_id="11" * 20, since=NOW, csr=b"csr", key_pem=b"pem"))


def counted(report: BackupReport) -> None:
    assert (report.certificates, report.ledger_size) == (4, 9)
    assert (report.trust_domain, report.newest) == (DOMAIN, NOW)
    assert report.roots == (hashlib.sha256(parts.ROOT.row.der).hexdigest(),)


def everything(store: Store) -> list[object]:
    with store.snapshot() as books:
        return [
            books.settings(),
            books.policy_text(),
            books.issuers(),
            books.pending_key(),
            books.records(),
            books.bans(),
            list(books.ledger_rows()),
            list(books.heads()),
        ]


def opened(where: str | Path) -> list[object]:
    store = Store.open(where)
    try:
        assert problems(store) == ()
        return everything(store)
    finally:
        store.close()


@pytest.fixture
def saved(store: Store, tmp_path: Path) -> Path:
    """A backup of a filled CA."""
    fill(store)
    counted(backup(store, tmp_path / "saved"))
    return tmp_path / "saved"


@pytest.fixture
def saved_file(folder: Path, tmp_path: Path) -> Path:
    store = Store.open(folder)
    store.seal = parts.seal
    fill(store)
    store.close()
    backup(folder, tmp_path / "saved")
    return tmp_path / "saved"


def test_a_backup_is_one_private_file(store: Store, saved: Path) -> None:
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert [name for name in listing(saved.parent) if "saved" in name] == ["saved"]
    with closing(sqlite3.connect(saved)) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("to", ["sqlite", "postgresql"])
def test_what_comes_back_is_what_was_saved(
    to: str, where: str, store: Store, saved: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In every direction, so that a CA can move from one database to the other."""
    before, sequence, last = everything(store), store.bundle_sequence(), number(crl(store))
    store.close()
    target = str(tmp_path / "restored")
    if to == "postgresql":
        target = str(request.getfixturevalue("postgresql"))
        if target == where:
            sql(where, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    began = int(time.time())
    report = restore(saved, target, password=PASSWORD)
    counted(report)
    assert report.opened_keys == (parts.ROOT.row.key_id, CA1.row.key_id)
    assert opened(target) == before
    new = parts.opened(target)
    # What was published after the backup must not come again under the same number.
    assert time.time() + 2 > new.bundle_sequence() > began > sequence
    assert number(crl(new)) > began > last - 2  # numbers are the time, at least
    # And what was used after it must not be good again.
    assert new.tokens(NOW) == []
    issue(new, leaf())
    assert problems(new) == ()
    new.close()


def test_a_backup_while_others_write(where: str, tmp_path: Path) -> None:
    store = parts.opened(where)
    stop, issued = threading.Event(), []

    def write() -> None:
        while not stop.is_set():
            record = leaf()
            issue(store, record)
            issued.append(record.serial)

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    try:
        reports = []
        for turn in range(3):
            before = len(issued)
            reports.append((before, backup(where, tmp_path / f"b{turn}"), len(issued)))
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    store.close()
    for turn, (before, report, after) in enumerate(reports):
        restore(tmp_path / f"b{turn}", tmp_path / f"r{turn}", password=PASSWORD)
        back = Store.open(tmp_path / f"r{turn}")
        serials = [r.serial for r in back.records(kind="agent")]
        assert set(issued[:before]) <= set(serials), "what was acknowledged before is in it"
        assert before <= len(serials) == report.certificates - 2 <= after + 3
        assert problems(back) == ()
        back.close()


def test_nothing_is_overwritten_by_a_backup(folder: Path, tmp_path: Path) -> None:
    before = (folder / DATABASE_FILE).read_bytes()
    for target in (folder / DATABASE_FILE, folder, tmp_path / "dangling"):
        with suppress(FileExistsError):
            (tmp_path / "dangling").symlink_to("nowhere")
        with pytest.raises(PKIError) as caught:
            backup(folder, target)
        assert type(caught.value) is BackupRefused
    assert (folder / DATABASE_FILE).read_bytes() == before


def test_a_backup_that_somebody_else_made_meanwhile(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def late(source: Path, target: Path) -> None:
        target.write_bytes(b"theirs")
        real(source, target)

    monkeypatch.setattr("os.link", late)
    with pytest.raises(PKIError) as caught:
        backup(folder, tmp_path / "b")
    assert type(caught.value) is BackupRefused
    assert (tmp_path / "b").read_bytes() == b"theirs"
    assert [name for name in listing(tmp_path) if name.startswith(".")] == []


def test_a_backup_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PKIError, match="cannot write") as caught:
        backup(folder, tmp_path / "no" / "folder")
    assert type(caught.value) is BackupRefused


def test_a_backup_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(PKIError) as caught:
        backup(tmp_path, tmp_path / "b")
    assert type(caught.value) is AuthorityMissing
    journey(str(tmp_path / "old"), [parts.ROOT.record], {})
    with pytest.raises(PKIError) as caught:
        backup(tmp_path / "old", tmp_path / "b")
    assert type(caught.value) is SchemaOutdated
    assert listing(tmp_path) == ["old"]


# What must not come back: one change to a backup, and what is said about it.

DAMAGES: dict[str, tuple[str, str]] = {
    "an altered entry": (
        "UPDATE ledger SET entry = (SELECT entry FROM ledger WHERE position = 0) WHERE position = 3",
        "entry 3",
    ),
    "a removed entry": ("DELETE FROM ledger WHERE position = 5", "missing"),
    "a shorter ledger": (
        "DELETE FROM ledger WHERE position > 6; DELETE FROM heads WHERE size > 6",
        "no entry|inserted|differs",
    ),
    "a removed certificate": ("DELETE FROM certificates WHERE kind = 'agent'", "removed"),
    "an altered certificate": (
        "UPDATE certificates SET spiffe_id = 'spiffe://fleet.example/admin' WHERE position = 4",
        "differs",
    ),
    "a revocation undone": ("UPDATE certificates SET revoked_at = NULL, reason = NULL", "revocation was removed"),
    "a lifted ban": ("DELETE FROM bans", "removed"),
    "another policy": ("UPDATE settings SET policy = 'allow all'", "policy"),
    "another state": ("UPDATE issuers SET state = 'retiring'", "CA"),
    "another key": ("UPDATE issuers SET key_pem = (SELECT key_pem FROM issuers WHERE kind = 'root')", "key"),
    "a key in the clear": (
        "UPDATE issuers SET key_pem = CAST('-----BEGIN PRIVATE KEY-----' AS BLOB)",
        "damaged",
    ),
    "no settings": ("DELETE FROM settings", "no settings"),
    "a table that is gone": ("DROP TABLE bans", "bans"),
    "no version": ("DROP TABLE alembic_version; DROP TABLE settings", "no backup of a CA"),
    "a later version": ("UPDATE alembic_version SET version_num = '9999'", "9999"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_not_what_was_written_does_not_come_back(name: str, saved_file: Path, tmp_path: Path) -> None:
    statements, message = DAMAGES[name]
    with closing(sqlite3.connect(saved_file)) as plain:
        plain.executescript(statements)
    with pytest.raises(PKIError, match=message) as caught:
        restore(saved_file, tmp_path / "target", password=PASSWORD)
    assert type(caught.value) is BackupRefused
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("data", [b"", b"no database", b"SQLite format 3\x00" + b"\xff" * 5000])
def test_what_is_no_backup_at_all(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(data)
    with pytest.raises(PKIError) as caught:
        restore(tmp_path / "b", tmp_path / "target", password=PASSWORD)
    assert type(caught.value) is BackupRefused
    with pytest.raises(PKIError) as caught:
        restore(tmp_path / "none", tmp_path / "target", password=PASSWORD)
    assert type(caught.value) is BackupRefused


def test_triggers_do_not_come_along(saved_file: Path, tmp_path: Path) -> None:
    """A database can hold more than rows: this one would undo every revocation."""
    with closing(sqlite3.connect(saved_file)) as plain:
        plain.executescript(
            """CREATE TRIGGER undo AFTER UPDATE OF revoked_at ON certificates
               BEGIN UPDATE certificates SET revoked_at = NULL; END"""
        )
    restore(saved_file, tmp_path / "target", password=PASSWORD)
    with closing(sqlite3.connect(tmp_path / "target" / DATABASE_FILE)) as plain:
        assert plain.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall() == []


def test_a_wrong_password_brings_nothing_back(saved_file: Path, tmp_path: Path) -> None:
    with pytest.raises(PKIError) as caught:
        restore(saved_file, tmp_path / "target", password="wrong")
    assert type(caught.value) is WrongPassword
    assert not (tmp_path / "target").exists()
    restore(saved_file, tmp_path / "target", password=None)


def test_a_ca_that_is_there_is_not_replaced_by_accident(where: str, store: Store, saved: Path) -> None:
    issue(store, leaf())
    before = everything(store)
    with pytest.raises(PKIError) as caught:
        restore(saved, where, password=PASSWORD)
    assert type(caught.value) is AuthorityExists
    assert everything(store) == before


def test_a_ca_that_is_to_be_replaced(where: str, store: Store, saved: Path) -> None:
    before = everything(store)
    issue(store, leaf())
    store.close()
    restore(saved, where, password=PASSWORD, replace=True)
    assert opened(where) == before
    if "://" not in where:
        assert listing(Path(where)) == [DATABASE_FILE]


def test_a_bad_backup_replaces_nothing(where: str, store: Store, saved: Path) -> None:
    issue(store, leaf())
    before = everything(store)
    store.close()
    with closing(sqlite3.connect(saved)) as plain:
        plain.executescript("DELETE FROM bans")
    with pytest.raises(PKIError) as caught:
        restore(saved, where, password=PASSWORD, replace=True)
    assert type(caught.value) is BackupRefused
    assert opened(where) == before


def test_a_ca_in_use_is_not_replaced(folder: Path, saved_file: Path) -> None:
    store = Store.open(folder)
    before = everything(store)
    with pytest.raises(PKIError) as caught:
        restore(saved_file, folder, password=PASSWORD, replace=True)
    assert type(caught.value) is DatabaseLocked
    assert everything(store) == before
    store.close()
    assert listing(folder) == [DATABASE_FILE]


def test_a_damaged_ca_is_replaced_with_its_log(folder: Path, saved_file: Path) -> None:
    """The log of the old database must not be played into the new one."""
    before = opened(folder)
    copy = folder.with_name("copy")
    store = parts.opened(folder)
    issue(store, leaf())
    shutil.copytree(folder, copy)  # with its log, as after a crash
    store.close()
    for damage in (b"", b"damaged" * 1000):
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)
        (folder / DATABASE_FILE).write_bytes(damage)
        restore(saved_file, folder, password=PASSWORD, replace=True)
        assert opened(folder) == before
        assert listing(folder) == [DATABASE_FILE]


@pytest.mark.parametrize("end", ["-wal", "-journal"])
def test_a_log_that_was_left_over_is_not_played_into_another_database(end: str, folder: Path, saved_file: Path) -> None:
    """SQLite finds it by its name, and believes it."""
    before, copy = opened(folder), folder.with_name("copy")
    store = parts.opened(folder)
    issue(store, leaf())
    shutil.copytree(folder, copy)  # with its log, as after a crash
    store.close()
    shutil.rmtree(folder)
    folder.mkdir()
    (copy / f"{DATABASE_FILE}-wal").rename(folder / f"{DATABASE_FILE}{end}")
    for make in (lambda: restore(saved_file, folder, password=PASSWORD), lambda: parts.create(folder)):
        with pytest.raises(PKIError, match=f"ca.db{end} exists already: expected a new CA") as caught:
            make()
        assert type(caught.value) is AuthorityExists
        assert listing(folder) == [f"{DATABASE_FILE}{end}"]
    restore(saved_file, folder, password=PASSWORD, replace=True)
    assert opened(folder) == before
    assert listing(folder) == [DATABASE_FILE]


def test_a_restore_that_fails_half_way_puts_the_old_ca_back(
    folder: Path, saved_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = parts.opened(folder)
    issue(store, leaf())
    before = everything(store)
    store.close()
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(PKIError, match="Input/output") as caught:
        restore(saved_file, folder, password=PASSWORD, replace=True)
    assert type(caught.value) is BackupRefused
    assert opened(folder) == before
    assert listing(folder) == [DATABASE_FILE]


def test_replacing_what_is_not_there(saved_file: Path, tmp_path: Path) -> None:
    restore(saved_file, tmp_path / "new", password=PASSWORD, replace=True)
    assert opened(tmp_path / "new")


def test_a_ca_that_appears_meanwhile(saved_file: Path, empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., BackupReport] = restoring._rebuilt

    def slow(*given: object) -> BackupReport:
        parts.create(empty)
        return real(*given)

    monkeypatch.setattr(restoring, "_rebuilt", slow)
    with pytest.raises(PKIError) as caught:
        restore(saved_file, empty, password=PASSWORD)
    assert type(caught.value) is AuthorityExists
    assert len(opened(empty)) == 8, "it is whole"


def test_a_backup_of_the_first_release(tmp_path: Path, folder: Path) -> None:
    """A copy of its database file is one; its keys were elsewhere."""
    journey(str(tmp_path / "old"), [parts.ROOT.record, CA1.record, leaf()], {2: NOW + DAY})
    restore(tmp_path / "old" / DATABASE_FILE, tmp_path / "new", password=PASSWORD)
    store = Store.open(tmp_path / "new")
    assert len(store.records()) == 3
    assert [one.key_pem for one in store.issuers()] == [None, None]
    (problem,) = problems(store)
    assert "is under no signed head" in problem, "there is no key to sign it with"
    store.close()


def test_numbers_go_on_after_each_restore(folder: Path, saved_file: Path) -> None:
    """The same backup twice: what was published after the first time does not come again."""
    used = []
    for _ in range(3):
        restore(saved_file, folder, password=PASSWORD, replace=True)
        store = parts.opened(folder)
        for _ in range(3):
            new = parts.root(State.RETIRING)
            store.change_issuers(add=[(new.row, new.record)], now=NOW)
        used.append((store.bundle_sequence(), number(crl(store))))
        store.close()
    assert all(later > earlier for later, earlier in zip(used[1], used[0], strict=True))
    assert all(later > earlier for later, earlier in zip(used[2], used[1], strict=True))


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE crls SET number = {1 << 41}",
        f"UPDATE crls SET number = {1 << 53}",
        f"UPDATE settings SET bundle_sequence = {1 << 39}",
    ],
)
def test_numbers_that_somebody_has_left_behind_are_not_taken_over(
    statement: str, folder: Path, saved_file: Path, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as plain, plain:
        plain.execute(statement)
    with pytest.raises(BackupRefused, match="numbers of the CA that is to be replaced"):
        restore(saved_file, folder, password=PASSWORD, replace=True)
    (folder / DATABASE_FILE).rename(tmp_path / "away")
    restore(saved_file, folder, password=PASSWORD)
    store = parts.opened(folder)
    assert store.bundle_sequence() <= time.time() + 2
    assert number(crl(store)) <= time.time() + 3
    store.close()


def test_numbers_of_lists_and_of_the_bundle_are_two(folder: Path, saved_file: Path) -> None:
    ahead = int(time.time()) + 10_000
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as plain, plain:
        plain.execute("UPDATE crls SET number = ?", (ahead,))
    restore(saved_file, folder, password=PASSWORD, replace=True)
    store = parts.opened(folder)
    assert number(crl(store)) > ahead > store.bundle_sequence()
    store.close()


@pytest.mark.parametrize("what", ["a link to a database", "a link to nothing", "a folder"])
def test_only_a_file_is_replaced(what: str, folder: Path, saved_file: Path, tmp_path: Path) -> None:
    target, elsewhere = folder / DATABASE_FILE, tmp_path / "elsewhere.db"
    if what == "a link to a database":
        target.rename(elsewhere)
    else:
        target.unlink()
    target.mkdir() if what == "a folder" else target.symlink_to(elsewhere)
    before = elsewhere.read_bytes() if elsewhere.exists() else None
    with pytest.raises(BackupRefused, match="cannot replace"):
        restore(saved_file, folder, password=PASSWORD, replace=True)
    assert (elsewhere.read_bytes() if elsewhere.exists() else None) == before
    assert target.is_dir() if what == "a folder" else target.is_symlink()


def test_another_ca_does_not_replace_this_one(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = opened(folder)
    root = parts.root()
    below = parts.intermediate(root)

    def sign(head: Head) -> str:
        return sign_head(head, below.key, below.row.key_id)

    for name, domain in (("roots", DOMAIN), ("other.example", "other.example")):
        values = replace_in(parts.SETTINGS, trust_domain=domain)
        Store.create(tmp_path / domain, values, [root.row, below.row], [root.record, below.record], now=NOW, seal=sign)
        backup(tmp_path / domain, tmp_path / f"{domain}.saved")
        with pytest.raises(BackupRefused, match=f"is of another CA: got {name}"):
            restore(tmp_path / f"{domain}.saved", folder, password=PASSWORD, replace=True)
    assert opened(folder) == before


def test_a_backup_is_compared_with_a_head_that_was_kept(folder: Path, saved_file: Path, tmp_path: Path) -> None:
    store = parts.opened(folder)
    early = store.sealed_head()
    issue(store, leaf())
    late = store.sealed_head()
    store.close()
    assert early is not None and late is not None
    restore(saved_file, tmp_path / "new", password=PASSWORD, head=early.jws)
    with pytest.raises(BackupRefused, match="saved is older than the head: got a ledger of 9 entries, expected the 10"):
        restore(saved_file, tmp_path / "newer", password=PASSWORD, head=late.jws)


STRANGE = [
    "CREATE VIEW extra AS SELECT * FROM bans",
    "CREATE TABLE extra (a)",
    "CREATE VIRTUAL TABLE extra USING fts5(a)",
    "UPDATE alembic_version SET version_num = '0000'",
    "UPDATE alembic_version SET version_num = 'zz'",
    "UPDATE crls SET number = -1",
    "UPDATE crls SET number = 9007199254740992",
    "UPDATE crls SET der = CAST('junk' AS BLOB)",
    "UPDATE settings SET bundle_sequence = 'many'",
    "UPDATE tokens SET dns_names = '{}'",
    "UPDATE tokens SET used_at = -1",
    "UPDATE certificates SET position = -7 WHERE kind = 'agent' AND revoked_at IS NULL",
]


@pytest.mark.parametrize("statement", STRANGE)
def test_what_no_backup_says(statement: str, saved_file: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(saved_file)) as plain:
        plain.executescript(statement)
    with pytest.raises(BackupRefused):
        restore(saved_file, tmp_path / "target", password=PASSWORD)
    assert not (tmp_path / "target").exists()


def test_what_a_killed_program_left_behind_is_removed(folder: Path, saved_file: Path, tmp_path: Path) -> None:
    """At once: of two restores into one place, only one is under way."""
    names = [folder / f".ca.db.00.partial{end}" for end in ("", "-wal", "-shm")]
    for name in names:
        name.write_bytes(b"keys")
    with restoring._alone(folder), pytest.raises(PKIError, match="is under way: expected one at a time") as caught:
        restore(saved_file, folder, password=PASSWORD, replace=True)
    assert type(caught.value) is BackupRefused
    assert all(name.exists() for name in names)
    restore(saved_file, folder, password=PASSWORD, replace=True)
    assert listing(folder) == [DATABASE_FILE]


def test_where_nothing_can_be_locked_only_what_is_old_is_removed(
    folder: Path, saved_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "fcntl", None)
    old, new = folder / ".ca.db.00.partial", folder / ".ca.db.01.partial"
    for name in (old, new):
        name.write_bytes(b"keys")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    restore(saved_file, folder, password=PASSWORD, replace=True)
    assert listing(folder) == [new.name, DATABASE_FILE], "the other may be under way"
