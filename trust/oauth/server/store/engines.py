"""SQLite or PostgreSQL: where the database is, and how long anything may take."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from trust.errors import ConfigurationError, TokenStoreUnavailable
from trust.oauth.server.store.schema import SCHEMA, TOKENS

BUSY_SECONDS = 10  # how long a writer waits for others: SQLite has one lock for all of them
_IDLE_SECONDS = 15  # within a transaction: an instance that is frozen must not keep its locks for ever
_POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")
_SECRETS = ("password", "sslpassword")
_HOST = re.compile(r"[A-Za-z0-9._:/%,-]*")
# Primary result codes of SQLite by which the file or its disk fails, and not what was asked of it.
_SQLITE_AWAY = {
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY),
    *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOTADB),
}
_TCP = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 15_000}


def engine_for(url: str, *, create: bool = True) -> sa.Engine:
    """Connections to the database at `url`; nothing is connected yet, but a file of SQLite is made.

    Args:
        create: False for a file of SQLite that must be an authorization server's already.

    Raises:
        ConfigurationError: the URL is none, or names a database that would be lost with the process. It is never
            repeated: it may hold a password. Or there is no such file.
    """
    refused = ConfigurationError(
        "URL of the database", got="another one", expected="sqlite:///folder/oauth.db or postgresql://..."
    )
    try:
        address = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise refused from None
    # An SQL error that shows its parameters would put the identifiers of tokens into logs.
    options: dict[str, Any] = {"hide_parameters": True, "pool_timeout": BUSY_SECONDS}
    if address.drivername == "sqlite" and not address.query:
        if address.database in (None, "", ":memory:"):
            raise ConfigurationError("token store is not durable", expected="a file, as in sqlite:///oauth.db")
        path = Path(str(address.database))
        if not create and not _is_ours(path):
            raise ConfigurationError(
                f"no authorization server's database: {path}",
                do="give another one, or start `a2a-trust serve --authority` on it first",
            )
        _private_file(path)
        return _sqlite(address, options)
    # A password with an unescaped "@" ends up in the host or the database, and so in messages of the driver and ours.
    database = address.database or ""
    if address.drivername in _POSTGRESQL and database and "@" not in database and _HOST.fullmatch(address.host or ""):
        return _postgresql(address.set(drivername="postgresql+psycopg"), options)
    raise refused


def name_of(engine: sa.Engine) -> str:
    """The database, for people: its file, or its URL without user, password and options."""
    address = engine.url
    if address.drivername == "sqlite":
        return str(address.database)
    port = "" if address.port is None else f":{address.port}"
    return f"postgresql://{address.host or ''}{port}/{address.database}"


def words_of(engine: sa.Engine, error: sa.exc.SQLAlchemyError) -> str:
    """What the driver says, in its first line: others are hints, or rows of a table. Nothing that has a password."""
    cause = getattr(error, "orig", error)
    text = (str(cause).strip().splitlines() or [""])[0]
    secrets = [str(s) for s in (engine.url.password, *map(engine.url.query.get, _SECRETS)) if s]
    return text if text and not any(secret in text for secret in secrets) else type(cause).__name__


def unavailable(engine: sa.Engine, error: sa.exc.SQLAlchemyError) -> TokenStoreUnavailable | None:
    """That the database does not answer now; None where what was asked of it is wrong."""
    cause = getattr(error, "orig", None)
    if isinstance(cause, sqlite3.Error):
        is_away = (getattr(cause, "sqlite_errorcode", None) or 0) & 0xFF in _SQLITE_AWAY
    elif isinstance(error, sa.exc.DBAPIError):
        is_read_only = getattr(cause, "sqlstate", None) == "25006"  # a standby, after a failover
        is_away = isinstance(error, sa.exc.OperationalError) or error.connection_invalidated or is_read_only
    else:
        is_away = isinstance(error, sa.exc.TimeoutError)  # every connection is in use
    if not is_away:
        return None
    return TokenStoreUnavailable(
        f"token store {name_of(engine)} cannot be reached", got=words_of(engine, error), do="see that it runs"
    )


def _is_ours(path: Path) -> bool:
    """Whether an authorization server has made this file; looking changes neither it nor what is beside it."""
    try:
        real = path.resolve()  # beside which SQLite looks for the log, too
        # What others have not yet written to the file itself is in its log; where there is none, SQLite must make none.
        options = "mode=ro" if Path(f"{real}-wal").exists() else "mode=ro&immutable=1"
        with contextlib.closing(
            sqlite3.connect(f"{real.as_uri()}?{options}", uri=True, timeout=BUSY_SECONDS)
        ) as connection:
            columns = "SELECT name FROM pragma_table_info(?)"
            found = {name for table in (SCHEMA, TOKENS) for (name,) in connection.execute(columns, (table.name,))}
            return SCHEMA.c.version.name in found or TOKENS.c.root_id.name in found
    except (sqlite3.Error, OSError, RuntimeError):  # no database, or none that can be read; links that lead nowhere
        return False


def _sqlite(address: sa.URL, options: dict[str, Any]) -> sa.Engine:
    engine = sa.create_engine(address, **options)
    event.listen(engine, "connect", _configure_sqlite)
    return engine


def _private_file(path: Path) -> None:
    """For its owner only. What SQLite puts beside it, it makes like the file itself."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if os.name == "posix" and path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise ConfigurationError(
            f"database {path}", got=error.strerror, expected="a file of our own that can be written"
        ) from None


def _configure_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    _write_ahead(cursor)
    cursor.execute("PRAGMA secure_delete = ON")  # keys that are erased are not in free pages either
    cursor.execute("PRAGMA synchronous = FULL")  # in WAL mode NORMAL may lose the last commits in a power cut
    cursor.execute("PRAGMA fullfsync = ON")  # on macOS: for the disk, and not only for its cache
    cursor.close()


def _write_ahead(cursor: Any) -> None:
    """The one change that waits for nobody, whatever the timeout: processes that start at once all want it."""
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= end:
                raise
            time.sleep(0.01)


def _postgresql(address: sa.URL, options: dict[str, Any]) -> sa.Engine:
    try:
        engine = sa.create_engine(
            address,
            isolation_level="READ COMMITTED",  # whoever has waited for a lock must see what came before
            pool_pre_ping=True,
            connect_args={"connect_timeout": BUSY_SECONDS, **_TCP, **dict(address.query)},
            **options,
        )
    except ImportError:
        raise ConfigurationError(
            "PostgreSQL", got="no driver", expected="psycopg", do="install the extra `postgresql` of a2a-trust"
        ) from None
    except sa.exc.ArgumentError:
        raise ConfigurationError(
            "URL of the database", got="an option that it cannot have", expected="postgresql://..."
        ) from None
    event.listen(engine, "connect", _configure_postgresql)
    return engine


def _configure_postgresql(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_SECONDS}s'")
        cursor.execute(f"SET lock_timeout = '{BUSY_SECONDS}s'")
        cursor.execute(f"SET statement_timeout = '{3 * BUSY_SECONDS}s'")
        # Durable means on disk, whatever the server's default is.
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
    connection.commit()
