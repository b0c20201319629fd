"""A whole CA in one file, and back: the file is a SQLite database of the same tables, whatever it was copied from.

So a backup also moves a CA from SQLite to PostgreSQL, and the other way.
"""

from __future__ import annotations

import glob
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Connection, Integer, delete, insert, select, update

from pki import keys, ledger_audit
from pki.errors import AuthorityDamaged, AuthorityExists, BackupRefused, DatabaseLocked, LedgerDamaged, StoreError
from pki.ledger import Entry
from pki.store import rows
from pki.store.creation import (
    JOURNEY,
    check_version,
    found_version,
    make_tables,
    private_file,
    remove_sqlite,
    require,
    sqlite_files,
)
from pki.store.database import Database, Location, damaged, intact, locate, own_errors, sqlite_file
from pki.store.reading import Snapshot
from pki.store.schema import DATA, crls, pending_keys, settings, tokens, version
from pki.store.store import Store
from pki.store.upgrading import upgrade_at
from trust.credentials import sync_folder

_PAGE = 1000  # rows that are held at once

# What others have seen of the CA after the backup was made is not in it, and must not come again: numbers of revocation
# lists and of the bundle. So they go on from the time in seconds, which is beyond all that were counted.
MAX_NUMBER = 1 << 53  # what every reader of JSON can count to
_LEFT_OVER = 3600  # seconds after which a file that was being made has been left behind


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupReport:
    """What is in a backup."""

    certificates: int
    ledger_size: int
    trust_domain: str
    roots: tuple[str, ...]  # SHA-256 fingerprints, to be compared with what is known of them elsewhere
    newest: datetime | None  # when the last entry of the ledger was made
    opened_keys: tuple[str, ...] = ()  # CAs whose private keys were opened; those of the others are taken as they are


def backup(where: str | os.PathLike[str] | Store, target: str | os.PathLike[str]) -> BackupReport:
    """Copy a CA into one new file, as it is at one moment, while it serves. Keys stay encrypted as they are.

    The file is there whole, or not at all; nobody but its owner may read it.

    Raises:
        BackupRefused: there is something at that path already, or it cannot be written.
        AuthorityMissing, StoreError: the CA's database cannot be read.
    """
    if isinstance(where, Store):
        with where.snapshot() as snapshot:
            return _backup(snapshot.connection, Path(target))
    location = locate(where)
    require(location)
    database = Database(location)
    try:
        with database.snapshot() as connection:
            with own_errors():
                check_version(connection)
            return _backup(connection, Path(target))
    finally:
        database.close()


def _backup(source: Connection, target: Path) -> BackupReport:
    if os.path.lexists(target):
        raise BackupRefused(f"{target} exists already", expected="a new file", do="choose another name")
    _remove_left_over(target)
    building = _partial(target)
    try:
        private_file(building)
        with _open(sqlite_file(building)) as database, database.write() as connection:
            make_tables(connection)
            copied = _copy_rows(source, connection)
        _flush(building)
        os.link(building, target)  # unlike a rename it never replaces anything
        sync_folder(target.parent)
    except FileExistsError:
        raise BackupRefused(f"{target} exists already", expected="a new file", do="choose another name") from None
    except OSError as error:
        raise BackupRefused(f"cannot write {target}", got=error.strerror, expected="a place for a file") from None
    finally:
        remove_sqlite(building)
    return _report(Snapshot(source), copied)


def restore(
    source: str | os.PathLike[str],
    where: str | os.PathLike[str],
    *,
    password: str | None,
    replace: bool = False,
    head: str | None = None,
) -> BackupReport:
    """Bring a CA back from a backup, after its ledger and its keys have been verified.

    Numbers that verifiers compare (of revocation lists, of the bundle) go on from the time in seconds, because some
    were used after the backup was made. One-time tokens are left out, for the same reason.

    Not verified, but said in the report: that it is the CA that you mean (compare the roots, or give a `head`), and how
    old it is. Keys that are offline or on a token are not opened.

    Args:
        source: made by `backup`, by this release or an earlier one. It is only read.
        where: the CA to be: a folder or a database.
        password: of the keys; None: verify everything but that they can be opened.
        replace: put it in the place of a CA that is there. No other program may use that one, if it is SQLite. It must
            be the same one: of the same trust domain, and with a root in common. One that cannot be read is replaced.
        head: a signed head of the ledger that was kept elsewhere: what it commits to must be in the backup.

    Raises:
        BackupRefused: it is no backup, or what it says is not what was once written. Nothing has changed then.
        AuthorityExists: there is a CA, and it is not to be replaced.
        WrongPassword: the password does not open the keys.
        DatabaseLocked: another program uses the CA that is to be replaced.
    """
    backed_up, location = Path(source), locate(where)
    if not backed_up.is_file():
        raise BackupRefused(f"no backup at {backed_up}", expected="a file that `a2a-pki backup` has made")
    if not replace and _is_there(location):
        raise _exists(location)
    former = _former(location) if replace else None
    with tempfile.TemporaryDirectory(prefix="a2a-pki-") as scratch:
        copy = Path(scratch, "copy")
        fresh = _partial(location.file or Path(scratch, "fresh"))
        made_folder = not fresh.parent.exists()
        try:
            fresh.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if location.file is not None:
                _remove_left_over(location.file)
            private_file(copy)
            shutil.copyfile(backed_up, copy)
            private_file(fresh)
            report = _rebuilt(sqlite_file(copy), sqlite_file(fresh), password, backed_up, former, head)
            if location.file is None:
                _into_postgresql(fresh, location, replace)
            else:
                _into_file(fresh, location.file, replace)
        except OSError as error:
            raise BackupRefused(f"cannot restore {location}", got=error.strerror, expected="a place for it") from None
        finally:
            remove_sqlite(fresh)
            if made_folder:
                with suppress(OSError):  # it holds the restored CA, or is gone already
                    fresh.parent.rmdir()
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Former:
    """What is to be known of the CA that is replaced."""

    trust_domain: str
    roots: frozenset[str]
    number: int  # the largest that it has used


def _former(location: Location) -> _Former | None:
    """None: there is none, or it cannot be read."""
    if location.file is not None and not location.file.is_file():
        return None
    try:
        with _open(location) as database, database.snapshot() as connection, own_errors():
            if found_version(connection) in (None, JOURNEY):
                return None
            books = Snapshot(connection)
            numbers = [number for (number,) in connection.execute(select(crls.c.number)) if type(number) is int]
            return _Former(
                trust_domain=books.settings().trust_domain,
                roots=frozenset(_roots(books)),
                number=max([books.bundle_sequence(), *numbers]),
            )
    except DatabaseLocked:
        raise
    except (StoreError, AuthorityDamaged):
        return None


def _rebuilt(
    copy: Location, fresh: Location, password: str | None, name: Path, former: _Former | None, head: str | None
) -> BackupReport:
    """Make a new database of the rows of the backup, verify all of it, and make it ready to go on.

    Of the rows, because a database can hold more than rows: a trigger would work for whoever had put it in.
    """
    try:
        with _open(copy) as old:
            with old.read() as connection:
                known = found_version(connection)
            if known is None:
                raise BackupRefused(f"{name} is no backup of a CA", expected="a file that `a2a-pki backup` has made")
            _plain_tables(old)
            upgrade_at(copy, now=datetime.now(UTC), beside=False)
            with old.snapshot() as reading, _open(fresh) as new, new.write() as connection:
                make_tables(connection)
                copied = _copy_rows(reading, connection)
        with _open(fresh) as new:
            with new.snapshot() as connection:
                books = Snapshot(connection)
                _same(books, former, name)
                _parse_all(connection)
                public, opened = _public_keys(books, password)
                found = ledger_audit.audit(books, keys=public, head=head, upgraded=known == JOURNEY)
                report = _report(books, copied, opened)
            if found.problems:
                more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
                raise BackupRefused(
                    f"{name} is damaged", got=found.problems[0] + more, expected="what was once written"
                )
            with new.write() as connection:
                _go_on(connection, 0 if former is None else former.number)
    except (StoreError, AuthorityDamaged, LedgerDamaged) as error:
        raise BackupRefused(f"{name} is no good backup", got=error, expected="what was once written") from None
    _flush(fresh.file)
    return report


def _plain_tables(database: Database) -> None:
    """The backup is tables that we know, and nothing that computes what is read from it."""
    known = {table.name for table in DATA} | {version.name, "revocations"}  # the last: of the first release
    with database.driver() as plain:
        found = plain.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    for kind, name, text in found:
        strange = kind == "table" and name not in known and not name.startswith("sqlite_")
        if kind == "view" or strange or "VIRTUAL TABLE" in str(text).upper():
            raise BackupRefused("backup of a CA", got=f"{kind} {name}", expected="the tables of a CA, and no others")


def _same(books: Snapshot, former: _Former | None, name: Path) -> None:
    if former is None:
        return
    domain = books.settings().trust_domain
    if domain != former.trust_domain:
        raise BackupRefused(f"{name} is of another CA", got=domain, expected=f"{former.trust_domain}, which is there")
    if former.roots.isdisjoint(_roots(books)):
        raise BackupRefused(
            f"{name} is of another CA",
            got=f"roots {', '.join(_roots(books))}",
            expected=f"one of {', '.join(sorted(former.roots))}, which are there",
        )


def _parse_all(connection: Connection) -> None:
    """The rows that no audit looks at."""
    with intact():
        for row in connection.execute(select(pending_keys)).mappings():
            rows.pending_of(row)


def _go_on(connection: Connection, used: int) -> None:
    """Numbers that were not used before: neither here, nor there, nor after an earlier restore; and no tokens.

    A token that was used after the backup was made would be good once more.
    """
    connection.execute(delete(tokens))
    floor = max(used, int(time.time()))
    sequence = connection.execute(select(settings.c.bundle_sequence)).scalar_one()
    numbers = connection.execute(select(crls.c.issuer, crls.c.shard, crls.c.number)).all()
    if max([floor, sequence, *(number for *_, number in numbers)]) >= MAX_NUMBER:
        raise BackupRefused("numbers in the backup", got="one beyond all counting", expected=f"less than {MAX_NUMBER}")
    for issuer, shard, number in numbers:
        values = {"number": max(number, floor) + 1, "stale": True, "base_at": 0, "delta_der": None}
        connection.execute(update(crls).where(crls.c.issuer == issuer, crls.c.shard == shard).values(**values))
    connection.execute(update(settings).values(bundle_sequence=max(sequence, floor) + 1))


def _public_keys(
    books: Snapshot, password: str | None
) -> tuple[Mapping[str, ec.EllipticCurvePublicKey], tuple[str, ...]]:
    """The keys of the CAs, and which of their private keys were opened: those in the backup, if there is a password."""
    found, opened = {}, []
    for issuer in books.issuers():
        if password is not None and issuer.key_pem is not None:
            keys.open_signer(issuer, password=password, pin=None)
            opened.append(issuer.key_id)
        public_key = issuer.certificate.public_key()
        if isinstance(public_key, ec.EllipticCurvePublicKey):
            found[issuer.key_id] = public_key
    return found, tuple(opened)


def _roots(books: Snapshot) -> tuple[str, ...]:
    return tuple(hashlib.sha256(one.der).hexdigest() for one in books.issuers() if one.kind == "root")


def _report(books: Snapshot, copied: Mapping[str, int], opened: tuple[str, ...] = ()) -> BackupReport:
    size = copied["ledger"]
    last = next(books.ledger_rows(size - 1), None) if size else None
    newest = None
    if last is not None:
        with suppress(LedgerDamaged):  # the audit says so
            newest = Entry.decode(last.entry).time
    return BackupReport(
        certificates=copied["certificates"],
        ledger_size=size,
        trust_domain=books.settings().trust_domain,
        roots=_roots(books),
        newest=newest,
        opened_keys=opened,
    )


def _into_file(building: Path, target: Path, replace: bool) -> None:
    if not replace:
        try:
            os.link(building, target)
        except FileExistsError:
            raise _exists(sqlite_file(target)) from None
        sync_folder(target.parent)
        return
    # SQLite finds a database's log by its name: the old log must not be there when the new database is. What is there
    # is kept aside, all of it, until the new database stands; a restore that is interrupted leaves it there.
    _end_use(target)
    aside = target.with_name(f"{target.name}.replaced-{secrets.token_hex(4)}")
    old = [name for name in sqlite_files(target) if name.exists()]
    if not old:
        building.rename(target)
        sync_folder(target.parent)
        return
    aside.mkdir(mode=0o700)
    try:
        for name in reversed(old):  # the log before the database: it is nothing without it
            name.rename(aside / name.name)
        building.rename(target)
    except OSError:
        for name in old:
            if (aside / name.name).exists():
                (aside / name.name).rename(name)
        aside.rmdir()
        raise
    sync_folder(target.parent)
    shutil.rmtree(aside)


def _end_use(target: Path) -> None:
    """Put the log of a sound database into it, which nobody else may use now; a damaged one stays as it is."""
    if not target.is_file():
        return
    try:
        with _open(sqlite_file(target)) as database, database.driver() as plain:
            plain.execute("PRAGMA busy_timeout = 0")
            plain.execute("PRAGMA journal_mode = DELETE")  # refused while anybody else has it open
    except DatabaseLocked:
        raise
    except StoreError:
        return


def _into_postgresql(building: Path, location: Location, replace: bool) -> None:
    """In one transaction: until it is committed, the old CA stands, and afterwards the new one."""
    with (
        _open(sqlite_file(building)) as source,
        source.snapshot() as reading,
        _open(location) as target,
        target.write() as connection,
    ):
        if found_version(connection) is None:
            make_tables(connection)
        elif not replace:
            raise _exists(location)
        else:
            check_version(connection)
            for table in DATA:
                connection.execute(delete(table))
        _copy_rows(reading, connection)


def _copy_rows(source: Connection, target: Connection) -> dict[str, int]:
    copied = {}
    for table in DATA:
        copied[table.name] = 0
        counted = [column.name for column in table.columns if isinstance(column.type, Integer)]
        found = source.execution_options(yield_per=_PAGE).execute(select(table).order_by(*table.primary_key))
        for page in found.mappings().partitions():
            lines = [dict(row) for row in page]
            for name in counted:
                for line in lines:
                    if line[name] is not None and (type(line[name]) is not int or line[name] < 0):
                        raise damaged(f"{name} of {table.name} that is no number from 0 on")
            target.execute(insert(table), lines)
            copied[table.name] += len(page)
    return copied


def _is_there(location: Location) -> bool:
    if location.file is not None:
        return os.path.lexists(location.file)
    with _open(location) as database, database.read() as connection:
        return found_version(connection) is not None


@contextmanager
def _open(location: Location) -> Iterator[Database]:
    database = Database(location)
    try:
        yield database
    finally:
        database.close()


def _flush(path: Path | None) -> None:
    """SQLite has put its log into the file and removed it; now the file is on the disk."""
    if path is not None:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")


def _remove_left_over(target: Path) -> None:
    """Files that a killed program was making; keys are in them."""
    for name in target.parent.glob(f".{glob.escape(target.name)}.*.partial*"):
        with suppress(OSError):
            if time.time() - name.stat().st_mtime > _LEFT_OVER:
                name.unlink()


def _exists(location: Location) -> AuthorityExists:
    return AuthorityExists(f"{location} exists already", expected="a new CA", do="choose another place, or --replace")
