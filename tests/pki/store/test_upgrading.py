"""From the first release's database to this one: the same tables as a new one, and nothing that was in it is lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Connection, insert, inspect, text
from sqlalchemy.engine.interfaces import ReflectedIndex

from pki import CertificateAuthority, keys, list_profiles
from pki.errors import (
    AuthorityDamaged,
    AuthorityMissing,
    DatabaseLocked,
    LedgerDamaged,
    PKIError,
    SchemaOutdated,
    StoreError,
    WrongPassword,
)
from pki.ledger import Entry, Frontier, claimed_head, leaf_hash, settings_digest
from pki.records import Record, State
from pki.store import DATABASE_FILE, Store, restore, upgrade
from pki.store.creation import make_tables
from pki.store.database import Database, locate
from pki.store.rows import record_row
from pki.store.schema import heads, metadata
from pki.store.upgrading import migrate
from tests.pki.conftest import AGENT, NOW
from tests.pki.judges import listing
from tests.pki.store import parts
from tests.pki.store.parts import CA1, DAY, PASSWORD, ROOT, crl, issue, leaf, number, problems

COMPROMISE = x509.ReasonFlags.key_compromise
OLD = [leaf() for _ in range(4)]


@contextmanager
def database(where: str) -> Iterator[Database]:
    location = locate(where)
    if location.file is not None:
        location.file.touch()
    opened = Database(location)
    try:
        yield opened
    finally:
        opened.close()


def journey(where: str, records: list[Record], revoked: dict[int, datetime]) -> None:
    """A database as the first release left it."""
    if "://" not in where:
        Path(where).mkdir(mode=0o700)
    with database(where) as old, old.write() as connection:
        migrate(connection, None, "0001")
        connection.execute(text("DROP TABLE alembic_version"))  # it knew no Alembic
        if not records:
            return
        connection.execute(
            text("INSERT INTO settings VALUES (1, 1, :domain, :url)"),
            {"domain": "fleet.example", "url": "http://ca.fleet.example/crl"},
        )
        columns = ("serial", "kind", "issuer", "spiffe_id", "thumbprint", "not_before", "not_after", "der")
        query = text(
            f"INSERT INTO certificates (id, {', '.join(columns)}) VALUES (:id, {', '.join(':' + c for c in columns)})"
        )
        for index, record in enumerate(records, 1):
            connection.execute(query, {"id": index} | {name: record_row(record, 0)[name] for name in columns})
        for index, at in revoked.items():
            connection.execute(
                text("INSERT INTO revocations VALUES (:serial, :at, 'keyCompromise')"),
                {"serial": f"{records[index].serial:040x}", "at": int(at.timestamp())},
            )
        listed = keys.sign_crl(list_profiles.revocation_list([], issuer=CA1.issuer, number=41, now=NOW), CA1.key)
        connection.execute(
            text("INSERT INTO crls VALUES (:issuer, 41, false, :der)"),
            {"issuer": CA1.issuer.key_id, "der": listed.public_bytes(Encoding.DER)},
        )


@pytest.fixture
def old(empty: str) -> str:
    """Two CAs, four certificates, two of them revoked, in another order than they were issued in."""
    journey(empty, [ROOT.record, CA1.record, *OLD], {5: NOW, 2: NOW + DAY})
    return empty


@pytest.fixture
def old_folder(tmp_path: Path) -> Path:
    """As the first release left it, with its key files."""
    folder = tmp_path / "old"
    journey(str(folder), [ROOT.record, CA1.record, *OLD], {5: NOW, 2: NOW + DAY})
    assert ROOT.row.key_pem and CA1.row.key_pem
    (folder / "root-key.pem").write_bytes(ROOT.row.key_pem)
    (folder / "intermediate-key.pem").write_bytes(CA1.row.key_pem)
    return folder


def shape(connection: Connection) -> dict[str, object]:
    """Everything about the tables that their definitions decide."""
    found = inspect(connection)
    return {
        name: (
            [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in found.get_columns(name)],
            found.get_pk_constraint(name),
            sorted(found.get_unique_constraints(name), key=str),
            sorted(map(_index, found.get_indexes(name))),
            found.get_foreign_keys(name),
        )
        for name in sorted(found.get_table_names())
    }


def _index(found: ReflectedIndex) -> tuple[str, ...]:
    where = {name: str(option) for name, option in found.get("dialect_options", {}).items()}
    return str(found["name"]), str(found["column_names"]), str(found["unique"]), str(where)


def test_an_old_database_says_what_to_do(old: str) -> None:
    with pytest.raises(PKIError, match="a2a-pki upgrade") as caught:
        Store.open(old)
    assert type(caught.value) is SchemaOutdated
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("filled", [False, True], ids=["empty", "filled"])
def test_the_way_leads_to_the_same_tables(filled: bool, empty: str, tmp_path: Path) -> None:
    journey(empty, [ROOT.record, CA1.record, *OLD] if filled else [], {2: NOW} if filled else {})
    assert upgrade(empty, now=NOW) == ("0001", "0003")
    with database(empty) as upgraded, upgraded.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        found = shape(connection)
    if "://" in empty:
        parts.sql(empty, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        new = empty
    else:
        new = str(tmp_path / "new")
        Path(new).mkdir()
    with database(new) as fresh:
        with fresh.write() as connection:
            make_tables(connection)
        with fresh.read() as connection:
            assert shape(connection) == found


def test_nothing_is_lost(old: str) -> None:
    assert upgrade(old, now=NOW) == ("0001", "0003")
    store = Store.open(old)
    settings = store.settings()
    assert (settings.trust_domain, settings.crl_base_url) == ("fleet.example", "http://ca.fleet.example/crl")
    assert (settings.public_url, settings.name_constraint) == (None, False)
    records = store.records()
    assert [r.serial for r in records] == [r.serial for r in (ROOT.record, CA1.record, *OLD)]
    assert [r.revoked_at for r in records] == [None, None, NOW + DAY, None, None, NOW]
    assert records[3] == OLD[1]
    assert [(one.key_id, one.state) for one in store.issuers()] == [
        (ROOT.row.key_id, State.ACTIVE),
        (CA1.row.key_id, State.ACTIVE),
    ]
    assert store.bundle_sequence() == 1
    assert store.ledger_size() == 6 + 2 + 2
    assert [head.size for head in store.heads()] == [10]
    store.seal = parts.seal
    with pytest.raises(LedgerDamaged, match=r"none of its heads is signed"):
        issue(store, leaf())
    parts.sign_first(old)
    assert problems(store) == ()
    # It goes on where it was.
    listed = crl(store)
    assert number(listed) >= 42
    assert [entry.serial_number for entry in listed] == [OLD[3].serial, OLD[0].serial], "by their time"
    issue(store, leaf())
    store.revoke([OLD[1].serial], reason=COMPROMISE, now=NOW)
    assert number(crl(store)) == number(listed) + 1
    assert problems(store) == ()
    store.close()


def test_the_first_head_is_signed_with_the_password(old_folder: Path) -> None:
    assert upgrade(old_folder, now=NOW, password=PASSWORD) == ("0001", "0003")
    store = Store.open(old_folder)
    assert problems(store) == ()
    store.seal = parts.seal
    issue(store, leaf())
    assert problems(store) == ()
    store.close()


@pytest.mark.parametrize("password", [None, "another"])
def test_without_its_password_a_ca_is_not_upgraded(password: str | None, old_folder: Path) -> None:
    """Nobody would sign its ledger later."""
    with pytest.raises(PKIError) as caught:
        upgrade(old_folder, now=NOW, password=password)
    assert type(caught.value) is WrongPassword
    assert {"root-key.pem", "intermediate-key.pem"} <= set(listing(old_folder))
    with pytest.raises(SchemaOutdated):
        Store.open(old_folder)
    assert upgrade(old_folder, now=NOW, password=PASSWORD) == ("0001", "0003")


def _rewrite(where: str) -> None:
    """What somebody does who can write the database and has no key: the ledger of before, but for a revocation."""
    location = locate(where)
    opened = Database(location)
    with opened.write() as connection:
        entries = [bytes(data) for (data,) in connection.execute(text("SELECT entry FROM ledger ORDER BY position"))]
        kept = [data for data in entries if Entry.decode(data).kind != "revoked"]
        assert kept == entries[: len(kept)] and len(kept) == len(entries) - 1, "so that all positions stay"
        tree = Frontier().extended(map(leaf_hash, kept))
        for statement in (
            f"DELETE FROM ledger WHERE position = {len(kept)}",
            "DELETE FROM heads",
            "UPDATE certificates SET revoked_at = NULL, reason = NULL, revoked_position = NULL",
            "DELETE FROM crls",
        ):
            connection.execute(text(statement))
        head = {"size": tree.size, "root": tree.root(), "time": int(NOW.timestamp()), "frontier": tree.to_bytes()}
        connection.execute(insert(heads).values(head))
    opened.close()


@pytest.mark.parametrize("version", ["0002", "0003"])
def test_a_ledger_that_somebody_has_rewritten_is_not_signed_by_an_upgrade(version: str, tmp_path: Path) -> None:
    where, thief = str(tmp_path / "ca"), leaf()
    parts.create(where)
    store = parts.opened(where)
    issue(store, thief)
    store.revoke([thief.serial], reason=COMPROMISE, now=NOW)
    store.close()
    _rewrite(where)
    parts.sql(where, f"UPDATE alembic_version SET version_num = '{version}'")  # 0003 makes one table anew
    assert upgrade(where, now=NOW, password=PASSWORD) == (version, "0003")
    store = parts.opened(where)
    with pytest.raises(
        PKIError, match=r"none of its heads is signed, expected a signed head; restore a backup$"
    ) as caught:
        issue(store, leaf())
    assert type(caught.value) is LedgerDamaged
    assert problems(store) != ()
    store.close()


def test_keys_move_into_the_database(old_folder: Path) -> None:
    old = old_folder
    upgrade(old, now=NOW, password=PASSWORD)
    assert listing(Path(old)) == [DATABASE_FILE, "ca.db.0001.backup"]
    store = Store.open(old)
    for issuer, ca in zip(store.issuers(), (ROOT, CA1), strict=True):
        assert issuer.key_pem == ca.row.key_pem
        assert keys.open_signer(issuer, password=PASSWORD, pin=None).public_key() == ca.key.public_key()
    store.close()
    backup = Path(old, "ca.db.0001.backup")
    assert backup.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(backup)) as before:
        assert before.execute("SELECT count(*) FROM revocations").fetchone() == (2,)


def test_a_ca_without_its_root_key_stays_one(old_folder: Path) -> None:
    old = old_folder
    (old / "root-key.pem").unlink()
    upgrade(old, now=NOW, password=PASSWORD)
    store = Store.open(old)
    assert [one.key_pem is None for one in store.issuers()] == [True, False]
    store.close()


def test_an_older_ca_and_a_revoked_one(empty: str) -> None:
    older, constrained = parts.intermediate(ROOT), parts.intermediate(ROOT)
    records = [ROOT.record, older.record, constrained.record, CA1.record]
    journey(empty, records, {2: NOW})
    upgrade(empty, now=NOW)
    store = Store.open(empty)
    assert [one.state for one in store.issuers()] == [State.ACTIVE, State.RETIRING, State.REVOKED, State.ACTIVE]
    parts.sign_first(empty)
    assert problems(store) == ()
    store.close()


def test_an_upgrade_is_done_once(old: str) -> None:
    upgrade(old, now=NOW)
    store = Store.open(old)
    before = list(store.heads())
    assert upgrade(old) == ("0003", "0003")
    assert list(store.heads()) == before
    store.close()


def test_an_upgrade_that_ended_before_the_key_files_were_removed(old_folder: Path) -> None:
    old = old_folder
    pem = Path(old, "root-key.pem").read_bytes()
    upgrade(old, now=NOW, password=PASSWORD)
    Path(old, "root-key.pem").write_bytes(pem)
    upgrade(old)
    assert listing(Path(old)) == [DATABASE_FILE, "ca.db.0001.backup"]


def test_an_upgrade_that_fails_changes_nothing(old: str) -> None:
    parts.sql(old, "UPDATE certificates SET serial = 'not hex' WHERE kind = 'agent' AND id = 4")
    with pytest.raises(PKIError, match="damaged") as caught:
        upgrade(old, now=NOW)
    assert type(caught.value) is AuthorityDamaged
    with database(old) as same, same.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM certificates")).scalar() == 6
        assert inspect(connection).get_table_names() and "ledger" not in inspect(connection).get_table_names()


def test_an_upgrade_that_fails_keeps_the_key_files(old_folder: Path) -> None:
    parts.sql(old_folder, "UPDATE certificates SET serial = 'not hex' WHERE kind = 'agent' AND id = 4")
    with pytest.raises(PKIError, match="damaged") as caught:
        upgrade(old_folder, now=NOW, password=PASSWORD)
    assert type(caught.value) is AuthorityDamaged
    assert {"root-key.pem", "intermediate-key.pem"} <= set(listing(old_folder))


def test_a_newer_database_is_left_alone(where: str) -> None:
    parts.sql(where, "UPDATE alembic_version SET version_num = '0004'")
    with pytest.raises(PKIError, match="got schema 0004") as caught:
        upgrade(where)
    assert type(caught.value) is StoreError


def test_no_database_to_upgrade(tmp_path: Path, empty: str) -> None:
    with pytest.raises(PKIError) as caught:
        upgrade(empty)
    assert type(caught.value) is AuthorityMissing
    (tmp_path / DATABASE_FILE).touch()
    with pytest.raises(PKIError) as caught:
        upgrade(tmp_path)
    assert type(caught.value) is AuthorityMissing


def test_somebody_else_upgrades_meanwhile(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Database.write

    def late(self: Database) -> object:
        monkeypatch.setattr(Database, "write", real)
        upgrade(old, now=NOW)
        return real(self)

    monkeypatch.setattr(Database, "write", late)
    assert upgrade(old, now=NOW) == ("0001", "0003")
    store = Store.open(old)
    parts.sign_first(old)
    assert problems(store) == ()
    store.close()


def test_a_copy_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = str(tmp_path / "ca")
    journey(where, [ROOT.record, CA1.record], {})

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pki.store.upgrading.private_file", full)
    with pytest.raises(PKIError, match="No space") as caught:
        upgrade(where)
    assert type(caught.value) is StoreError
    assert listing(Path(where)) == [DATABASE_FILE]


def test_a_database_in_use_is_not_upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = str(tmp_path / "ca")
    journey(where, [ROOT.record, CA1.record], {})
    monkeypatch.setattr("pki.store.database.BUSY_TIMEOUT", DAY / 864000)
    with closing(sqlite3.connect(Path(where, DATABASE_FILE), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(PKIError) as caught:
            upgrade(where)
    assert type(caught.value) is DatabaseLocked


def test_a_ca_that_the_first_release_made(tmp_path: Path) -> None:
    """Not from our description of its tables, but by its own statements."""
    folder = tmp_path / "ca"
    folder.mkdir()
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as connection:
        connection.executescript(Path(__file__).with_name("journey.sql").read_text())
    assert upgrade(folder, now=NOW) == ("0001", "0003")
    store = Store.open(folder)
    with store._read() as alchemy:
        assert compare_metadata(MigrationContext.configure(alchemy), metadata) == []
    assert len(store.records()) == 3
    (problem,) = problems(store)
    assert "is under no signed head" in problem, "its keys were beside it, and are not here"
    store.close()


def test_a_ca_that_the_second_release_made(tmp_path: Path) -> None:
    """Its heads say nothing about settings; the next one does. Its tokens, which nobody has signed, are gone."""
    folder = tmp_path / "ca"
    folder.mkdir()
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as connection:
        connection.executescript(Path(__file__).with_name("one_database.sql").read_text())
        assert connection.execute("SELECT count(*) FROM tokens").fetchone() == (1,)
    with pytest.raises(PKIError, match="a2a-pki upgrade") as caught:
        Store.open(folder)
    assert type(caught.value) is SchemaOutdated
    assert upgrade(folder) == ("0002", "0003")
    assert listing(folder) == [DATABASE_FILE, "ca.db.0002.backup"]
    with CertificateAuthority.open(folder, password=PASSWORD) as ca:
        assert ca.audit_ledger().problems == ()
        assert [token.id for token in ca.tokens(datetime(2026, 11, 1, 12, tzinfo=UTC))] == []
        old = ca.ledger_head()
        ca.issue_credentials(AGENT)
        assert claimed_head(old).settings is None
        assert claimed_head(ca.ledger_head()).settings == settings_digest(ca.settings)
        assert ca.audit_ledger(old).problems == ()
        with ca._store._read() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_backup_of_the_second_release_is_restored(tmp_path: Path) -> None:
    saved, where = tmp_path / "saved", tmp_path / "ca"
    with closing(sqlite3.connect(saved)) as connection:
        connection.executescript(Path(__file__).with_name("one_database.sql").read_text())
    report = restore(saved, where, password=PASSWORD)
    assert (report.certificates, report.ledger_size) == (4, 7)
    with CertificateAuthority.open(where, password=PASSWORD) as ca:
        assert ca.audit_ledger().problems == ()
