"""A whole CA in one file: a SQLite database of the same tables, whatever it was copied from.

So a backup also moves a CA from SQLite to PostgreSQL, and the other way. The way back is `pki.store.restoring`.
"""

from __future__ import annotations

import glob
import hashlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, Integer, insert, select

from pki.errors import BackupRefused, LedgerDamaged
from pki.ledger import Entry
from pki.store.creation import check_version, make_tables, private_file, remove_sqlite, require
from pki.store.database import Database, Location, damaged, locate, own_errors, sqlite_file
from pki.store.reading import Snapshot
from pki.store.schema import DATA
from pki.store.store import Store
from trust.credentials import sync_folder

_PAGE = 1000  # rows that are held at once
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
    remove_left_over(target)
    building = partial(target)
    try:
        private_file(building)
        with database_at(sqlite_file(building)) as database, database.write() as connection:
            make_tables(connection)
            copied = copy_rows(source, connection)
        flush(building)
        os.link(building, target)  # unlike a rename it never replaces anything
        sync_folder(target.parent)
    except FileExistsError:
        raise BackupRefused(f"{target} exists already", expected="a new file", do="choose another name") from None
    except OSError as error:
        raise BackupRefused(f"cannot write {target}", got=error.strerror, expected="a place for a file") from None
    finally:
        remove_sqlite(building)
    return reported(Snapshot(source), copied)


def root_fingerprints(books: Snapshot) -> tuple[str, ...]:
    return tuple(hashlib.sha256(one.der).hexdigest() for one in books.issuers() if one.kind == "root")


def reported(books: Snapshot, copied: Mapping[str, int], opened: tuple[str, ...] = ()) -> BackupReport:
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
        roots=root_fingerprints(books),
        newest=newest,
        opened_keys=opened,
    )


def copy_rows(source: Connection, target: Connection) -> dict[str, int]:
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


@contextmanager
def database_at(location: Location) -> Iterator[Database]:
    database = Database(location)
    try:
        yield database
    finally:
        database.close()


def flush(path: Path | None) -> None:
    """SQLite has put its log into the file and removed it; now the file is on the disk."""
    if path is not None:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")


def remove_left_over(target: Path, *, at_once: bool = False) -> None:
    """Files that a killed program was making; keys are in them.

    Args:
        at_once: nobody else makes any there, so that they need not be old.
    """
    for name in target.parent.glob(f".{glob.escape(target.name)}.*.partial*"):
        with suppress(OSError):
            if at_once or time.time() - name.stat().st_mtime > _LEFT_OVER:
                name.unlink()
