"""Where the database is, how it is spoken to, and what its failures mean here.

SQLite in WAL mode with full synchronisation, or PostgreSQL: on both, when a transaction that writes has ended, it
survives a crash of the process and of the machine, and only one such transaction runs at a time. Nothing here ever
says a database's URL aloud: it may hold a password.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from sqlalchemy import URL, Connection, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pki.errors import (
    AuthorityDamaged,
    AuthorityMissing,
    DatabaseLocked,
    DuplicateCertificate,
    NotErased,
    PKIError,
    StoreError,
)
from pki.store import postgresql
from pki.store.statements import fetch

DATABASE_FILE = "ca.db"
BUSY_TIMEOUT = timedelta(seconds=5)  # a transaction takes milliseconds; longer means that somebody holds the lock
# Serial numbers are random, so each one touches other pages of the index: they stay in memory, and go to their place
# rarely enough for many changes of a page to be written as one.
_CACHE_KIB = 16 << 10  # of each connection
_CHECKPOINT_PAGES = 10_000  # about 40 MB of write-ahead log
# Until another process has committed, which takes some milliseconds. SQLite tells nobody when its lock is free.
_LOOK_SECONDS = 0.001
_FILE = "file"  # which one a connection of SQLite has open, among what is known of it
_WRITERS = 0x61326174  # "a2at": the advisory lock of PostgreSQL that makes writers take turns
_POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")
_HOST = re.compile(r"[A-Za-z0-9._:/%,-]*")
_MISSING = re.compile(r'database "[^"]*" does not exist')  # PostgreSQL has no code for it before there is a connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """The database of one CA. `str` tells where it is, without the password."""

    url: URL = field(repr=False)
    file: Path | None  # of SQLite

    def __str__(self) -> str:
        return str(self.file) if self.file else f"PostgreSQL database {self.url.database} on {self.url.host or 'here'}"


def locate(where: str | os.PathLike[str]) -> Location:
    """The database that `where` names: a CA's folder, `sqlite:///FOLDER/ca.db` or `postgresql://…`.

    Raises:
        AuthorityMissing: it names none.
    """
    text = os.fspath(where)
    if "://" not in text:
        return _sqlite(Path(text) / DATABASE_FILE)
    refused = AuthorityMissing(
        "database of the CA", got="another URL", expected=f"sqlite:///folder/{DATABASE_FILE} or postgresql://…"
    )
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # the error would repeat parts of the URL
        raise refused from None
    if url.drivername == "sqlite" and url.database and Path(url.database).name == DATABASE_FILE and not url.query:
        return _sqlite(Path(url.database))
    # A password with an unescaped "@" ends up in the host, and so in every message of the driver.
    if url.drivername in _POSTGRESQL and url.database and _HOST.fullmatch(url.host or ""):
        return Location(url=url.set(drivername="postgresql+psycopg"), file=None)
    raise refused


def _sqlite(path: Path) -> Location:
    return Location(url=URL.create("sqlite", database=str(path)), file=path)


def sqlite_file(path: Path) -> Location:
    """A database in a file of any name: a backup, or one that is being made."""
    return _sqlite(path)


class Database:
    """Connections to one database; safe for threads, and for several processes at once."""

    def __init__(self, location: Location) -> None:
        self.location = location
        patience = BUSY_TIMEOUT.total_seconds()
        # What the driver may repeat in an error: a password can be in the wrong place of a URL.
        self._hidden = (str(location.url.password or ""), *map(str, location.url.query.values()))
        options: dict[str, Any] = {"pool_timeout": patience, "hide_parameters": True}  # no keys in error messages
        if location.file is not None:
            self._engine = create_engine(location.url, connect_args={"timeout": patience}, **options)
            _stay_with(self._engine, location.file)
            event.listen(self._engine, "connect", _configure_sqlite)
        else:
            self._engine = postgresql.engine(location.url, patience, options)
        event.listen(self._engine, "begin", _begin)
        self._writing = self._engine.execution_options(writes=True)
        # Threads queue here, in turn, instead of waking up in the database's own waiting loop.
        self._turn = threading.Lock()
        self._kept: Connection | None = None  # of SQLite, for whoever has the turn

    def close(self) -> None:
        with self._turn:
            if self._kept is not None:
                self._kept.close()
                self._kept = None
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that only reads; each statement sees what was committed before it."""
        with own_errors(self._hidden), intact(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """As `read`, but all statements see the same moment."""
        with own_errors(self._hidden), self._engine.connect() as connection:
            if self.location.file is None:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():  # SQLite: it sees the moment of the first statement
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One durable transaction: committed when the block ends, undone when it raises.

        Raises:
            StoreError: nothing was written; or, where a server is lost while it commits, that is not known.
        """
        if not self._turn.acquire(timeout=BUSY_TIMEOUT.total_seconds()):
            raise locked()
        try:
            with own_errors(self._hidden), self._writer() as connection, connection.begin():
                yield connection
        finally:
            self._turn.release()

    @contextmanager
    def _writer(self) -> Iterator[Connection]:
        """The connection to write through. That of SQLite is kept, unless something goes wrong with it or its file.

        What it has read of the indexes is good for as long as nobody else writes, and a new one reads all of it again.
        """
        if self.location.file is None:  # the pool sees whether the server still knows it
            with self._writing.connect() as connection:
                yield connection
            return
        kept, self._kept = self._kept, None
        if kept is not None and kept.info[_FILE] != _identity(self.location.file):  # as `_stay_with`
            kept.close()
            kept = None
        connection = kept or self._new_writer()
        try:
            yield connection
        except BaseException:  # an interrupt, too: what it was in the middle of is unknown
            connection.close()
            raise
        self._kept = connection

    def _new_writer(self) -> Connection:
        connection = self._writing.connect()
        connection.detach()  # closed when it is closed, and not given to readers, who wait
        fetch(connection, "PRAGMA busy_timeout = 0")  # `_take_turn` waits
        return connection

    @contextmanager
    def overwriting(self) -> Iterator[Connection]:
        """As `write`; and what it deletes or replaces does not stay in free pages or in the log of SQLite.

        Raises:
            NotErased: it is committed, and somebody reads for so long that the log has to stay.
            StoreError: as `write`.
        """
        with self.write() as connection:
            yield connection
        if self.location.file is not None:
            self._truncate_log()

    def _truncate_log(self) -> None:
        """What the log of SQLite held is in the database, and nothing of what was replaced in either."""
        try:
            with self.driver() as plain:  # it waits for others, for BUSY_TIMEOUT
                (busy, _, _) = plain.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except StoreError:
            busy = True
        if busy:
            raise NotErased(
                "it is done, but what was there before is still in the log of the database",
                got="another program that reads it",
                expected="nobody else",
                do="end the other programs: the log goes with the last of them",
            )

    @contextmanager
    def driver(self) -> Iterator[sqlite3.Connection]:
        """SQLite's own connection, outside all transactions, for what cannot be done within one."""
        pooled = None
        try:
            pooled = self._engine.raw_connection()
            yield cast("sqlite3.Connection", pooled.driver_connection)
        except sqlite3.Error as error:
            if _is_locked(error):
                raise locked() from None
            raise StoreError("CA database", got=error, expected="a readable and writable database") from None
        finally:
            if pooled is not None:
                pooled.close()


def _stay_with(engine: Any, file: Path) -> None:
    """No connection outlives the file's place: an open one goes on with the file that was moved away or replaced."""

    def opening(_dialect: object, record: Any, _args: object, _given: object) -> None:
        record.info[_FILE] = found = _identity(file)  # looked at before: of a file that is replaced now it is too old
        if found is None:  # SQLite would make one
            raise StoreError("CA database", got=f"no file {file}", expected="what was there", do="restore a backup")

    def taken(_connection: object, record: Any, _proxy: object) -> None:
        if record.info[_FILE] != _identity(file):
            raise DisconnectionError  # the pool opens another one

    event.listen(engine, "do_connect", opening)
    event.listen(engine, "checkout", taken)


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun by us, in `_begin`
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA secure_delete = ON")  # keys and tokens that are gone are not in free pages either
    cursor.execute("PRAGMA synchronous = FULL")  # a commit waits for the disk
    cursor.execute("PRAGMA fullfsync = ON")  # on macOS: for the disk, and not only for its cache
    cursor.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    cursor.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    cursor.close()


def _begin(connection: Connection) -> None:
    # A writer takes the lock at the start. SQLite: a reader that turns writer half-way would fail at once, without
    # waiting. PostgreSQL: ledger positions follow one another only if writers do.
    writes = connection.get_execution_options().get("writes", False)
    if connection.dialect.name != "sqlite":
        if writes:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")
    elif writes:
        _take_turn(connection)
    else:
        fetch(connection, "BEGIN")


def _take_turn(connection: Connection) -> None:
    """Begin to write, once no other process does. SQLite itself looks less and less often, down to ten times a second.

    Raises:
        DatabaseLocked: another process writes for too long.
    """
    end = time.monotonic() + BUSY_TIMEOUT.total_seconds()
    driver = cast("sqlite3.Connection", connection.connection.dbapi_connection)
    while True:
        try:
            driver.execute("BEGIN IMMEDIATE").close()  # by the driver, for a look that is cheap
            return
        except sqlite3.Error as error:
            if not _is_locked(error):
                fetch(connection, "BEGIN IMMEDIATE")  # which raises as SQLAlchemy does
                return
            if time.monotonic() > end:
                raise locked() from error
        time.sleep(_LOOK_SECONDS)


@contextmanager
def own_errors(hidden: Collection[str] = ()) -> Iterator[None]:
    """Turn the database's errors into ours, which repeat nothing that is `hidden`."""
    try:
        yield
    except IntegrityError as error:
        raise DuplicateCertificate("row cannot be stored", got=_first_line(error), expected="a new one") from error
    except PoolTimeout:
        raise locked() from None
    except DBAPIError as error:
        if _is_locked(error.orig):
            raise locked() from error
        line = _first_line(error)
        for secret in filter(None, hidden):
            line = line.replace(secret, "...")
        do = "create it first, as with `createdb`" if _MISSING.search(line) else ""
        raise StoreError("CA database", got=line, expected="a readable and writable database", do=do) from error
    except SQLAlchemyError as error:
        raise StoreError(
            "CA database", got=type(error).__name__, expected="a readable and writable database"
        ) from error


def _is_locked(error: BaseException | None) -> bool:
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest is the extended code
    # lock not available; deadlock; serialization failure
    return primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or getattr(error, "sqlstate", None) in (
        "55P03",
        "40P01",
        "40001",
    )


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).partition("\n")[0]


@contextmanager
def intact() -> Iterator[None]:
    """While rows are read, and nothing else is done: a value of another kind than was written is damage."""
    try:
        yield
    except PKIError:
        raise
    except (ValueError, TypeError, OverflowError, OSError) as error:  # the last two: times beyond all calendars
        raise damaged(error) from None


def damaged(got: object) -> AuthorityDamaged:
    return AuthorityDamaged("CA database is damaged", got=got, expected="what was written", do="restore a backup")


def locked() -> DatabaseLocked:
    return DatabaseLocked(
        "CA database is locked",
        got=f"no turn within {BUSY_TIMEOUT.total_seconds():g} s",
        expected="a free database",
        do="end the other program that uses it, or try again",
    )
