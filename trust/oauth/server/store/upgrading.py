"""Databases that are new, or that an earlier release made."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.schema import CreateColumn

from trust.errors import ConfigurationError
from trust.oauth.server.store.schema import CLIENT_CHANGES, METADATA, REVOCATIONS, SCHEMA, TOKENS

VERSION = 2  # 1: `oauth_tokens` alone

_UPGRADING = 0x61326175  # "a2au": the advisory lock of PostgreSQL under which one process makes tables


def prepare(engine: sa.Engine) -> None:
    """Make what is missing, in one transaction; every release so far has only added to the one before.

    Raises:
        ConfigurationError: a later release made the database, and may mean something else by what is in it.
    """
    with engine.connect() as connection:
        if _version(connection) == VERSION:
            return
        connection.rollback()
        # Of several processes that start at once, one makes the tables.
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_UPGRADING})")
        version = _version(connection)
        if version > VERSION:
            raise ConfigurationError(
                "database is of a later release", got=f"schema {version}", expected=f"at most {VERSION}", do="upgrade"
            )
        if version < VERSION:
            _add_columns(connection)
            METADATA.create_all(connection)
            connection.execute(sa.insert(CLIENT_CHANGES).values(id=1, number=0))
            connection.execute(sa.insert(REVOCATIONS).values(id=1, sequence=0))
            connection.execute(sa.delete(SCHEMA))
            connection.execute(sa.insert(SCHEMA).values(version=VERSION))
        connection.commit()


def _version(connection: sa.Connection) -> int:
    """0 for a database with nothing in it."""
    inspector = sa.inspect(connection)
    if not inspector.has_table(SCHEMA.name):
        return 1 if inspector.has_table(TOKENS.name) else 0
    return connection.execute(sa.select(SCHEMA.c.version)).scalar() or 0


def _add_columns(connection: sa.Connection) -> None:
    """Columns that tables of an earlier release have not."""
    inspector = sa.inspect(connection)
    for table in METADATA.sorted_tables:
        if not inspector.has_table(table.name):
            continue
        found = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in found:
                clause = CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {clause}")
