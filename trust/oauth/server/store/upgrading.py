"""Databases that are new, and databases of before."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.schema import CreateColumn

from trust.errors import ConfigurationError
from trust.oauth.server.store.engines import name_of
from trust.oauth.server.store.schema import CLIENT_CHANGES, METADATA, REVOCATIONS, SCHEMA, TOKENS

VERSION = 4  # 1, a database of before: `oauth_tokens` alone; 2 had no decisions, 3 no issuer and no issuer

_UPGRADING = 0x61326175  # "a2au": the advisory lock of PostgreSQL under which one process makes tables


def prepare(engine: sa.Engine, *, create: bool = True) -> None:
    """Make what is missing, in one transaction; nothing is ever renamed or taken away.

    Args:
        create: False where nothing of ours must come into a database that has nothing of ours yet.

    Raises:
        ConfigurationError: a later release made the database, and may mean something else by what is in it; or it is
            no authorization server's.
    """
    with engine.connect() as connection:
        found = _version(connection)
        if found == VERSION:
            return
        if not found and not create:
            raise ConfigurationError(
                f"no authorization server's database: {name_of(engine)}",
                do="give another one, or start `a2a-trust serve --authority` on it first",
            )
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
            for table in METADATA.sorted_tables:
                for index in table.indexes:
                    index.create(connection, checkfirst=True)  # of a table that was there before it
            for counter, column in ((CLIENT_CHANGES, "number"), (REVOCATIONS, "sequence")):
                if connection.execute(sa.select(counter.c.id)).first() is None:
                    connection.execute(sa.insert(counter).values({"id": 1, column: 0}))
            connection.execute(sa.delete(SCHEMA))
            connection.execute(sa.insert(SCHEMA).values(version=VERSION))
        connection.commit()


def _version(connection: sa.Connection) -> int:
    """0 for a database with nothing in it."""
    inspector = sa.inspect(connection)
    if not inspector.has_table(SCHEMA.name):
        if not inspector.has_table(TOKENS.name):
            return 0
        if not any(column["name"] == TOKENS.c.root_id.name for column in inspector.get_columns(TOKENS.name)):
            raise ConfigurationError(
                f"{TOKENS.name} in {name_of(connection.engine)} is another program's table",
                do="give us another database",
            )
        return 1
    return connection.execute(sa.select(SCHEMA.c.version)).scalar() or 0


def _add_columns(connection: sa.Connection) -> None:
    """Columns that the tables of a database of before have not."""
    inspector = sa.inspect(connection)
    for table in METADATA.sorted_tables:
        if not inspector.has_table(table.name):
            continue
        found = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in found:
                clause = CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {clause}")
