"""A new database, whole or not at all, and the question which version an old one is of."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, insert, inspect, select

from pki import ledger
from pki.errors import AuthorityExists, AuthorityMissing, SchemaOutdated, StoreError
from pki.records import IssuerRecord, Record, Settings
from pki.store import rows
from pki.store.appending import Journal, Seal
from pki.store.database import Database, Location, sqlite_file
from pki.store.guarding import Guard
from pki.store.schema import REVISION, certificates, issuers, metadata, settings, version
from trust.credentials import sync_folder

JOURNEY = "0001"  # the first version: it had no Alembic, and said "1" in its settings
OLDER = (JOURNEY, "0002")


def create(
    location: Location,
    values: Settings,
    cas: Sequence[IssuerRecord],
    records: Sequence[Record],
    *,
    now: datetime,
    seal: Seal | None,
) -> None:
    if location.file is None:
        _fill(location, values, cas, records, now, seal)
        return
    cannot = f"cannot make {location}"
    try:
        location.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(cannot, got=error.strerror, expected="a folder where files can be made") from None
    building = location.file.with_name(f".{location.file.name}.{secrets.token_hex(8)}.partial")
    try:
        private_file(building)
        _fill(sqlite_file(building), values, cas, records, now, seal)
        put(building, location.file)
    except FileExistsError:
        raise _exists(occupied(location.file) or location) from None
    except OSError as error:
        raise StoreError(cannot, got=error.strerror, expected="a folder where files can be made") from None
    finally:
        remove_sqlite(building)


def require(location: Location) -> None:
    """There is a CA in that database, as far as can be told without looking into it."""
    if location.file is not None and not location.file.is_file():
        raise AuthorityMissing(
            f"no CA in {location.file.parent}",
            expected=f"a folder with {location.file.name}",
            do="make one with `a2a-pki init`",
        )


def check_version(connection: Connection) -> None:
    """The database is of the version that this code reads and writes.

    Raises:
        AuthorityMissing: there is no CA in it.
        SchemaOutdated: it is older.
        StoreError: it is newer.
    """
    found = found_version(connection)
    if found is None:
        raise AuthorityMissing("no CA in this database", expected="its tables", do="make one with `a2a-pki init`")
    if found in OLDER:
        raise SchemaOutdated(
            "CA database", got=f"schema {found}", expected=f"schema {REVISION}", do="run `a2a-pki upgrade`"
        )
    if found != REVISION:
        raise StoreError(
            "CA database", got=f"schema {found}", expected=f"schema {REVISION}", do="use the release that wrote it"
        )


def found_version(connection: Connection) -> str | None:
    """The revision of the tables; None: there are none of ours."""
    tables = set(inspect(connection).get_table_names())
    if version.name in tables and (found := connection.execute(select(version.c.version_num)).scalars().first()):
        return str(found)
    return JOURNEY if {"settings", "certificates"} <= tables else None


def make_tables(connection: Connection) -> None:
    metadata.create_all(connection, checkfirst=False)
    version.create(connection)
    connection.execute(insert(version).values(version_num=REVISION))


def private_file(path: Path) -> None:
    """An empty file that nobody else may read. SQLite gives the files that it puts beside it the same mode."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def put(building: Path, target: Path) -> None:
    """Give a finished database its name; unlike a rename this never replaces anything.

    Raises:
        FileExistsError: something of a database is there.
    """
    if occupied(target) is not None:
        raise FileExistsError
    os.link(building, target)
    sync_folder(target.parent)


def occupied(path: Path) -> Path | None:
    """A file of a database of that name. SQLite would play a log that was left over one that is put beside it."""
    return next((name for name in sqlite_files(path) if os.path.lexists(name)), None)


def remove_sqlite(path: Path) -> None:
    for name in sqlite_files(path):
        name.unlink(missing_ok=True)


def sqlite_files(path: Path) -> list[Path]:
    """The file of a database and those that SQLite puts beside it."""
    return [path, *(path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal"))]


def _fill(
    location: Location,
    values: Settings,
    cas: Sequence[IssuerRecord],
    records: Sequence[Record],
    now: datetime,
    seal: Seal | None,
) -> None:
    database = Database(location)
    try:
        with database.write() as connection:
            if found_version(connection) is not None:
                raise _exists(location)
            make_tables(connection)
            connection.execute(insert(settings).values(rows.settings_row(values)))
            journal = Journal(connection, Guard(values))
            for record in records:
                position = journal.add(ledger.entry_for_record(record))
                connection.execute(insert(certificates).values(rows.record_row(record, position)))
            for one in cas:
                position = journal.add(ledger.entry_for_issuer(one))
                connection.execute(insert(issuers).values(rows.issuer_row(one, position)))
            journal.write(trust_domain=values.trust_domain, now=now, seal=seal)
    finally:
        database.close()


def _exists(there: Path | Location) -> AuthorityExists:
    return AuthorityExists(f"{there} exists already", expected="a new CA", do="choose another place, or use that CA")
