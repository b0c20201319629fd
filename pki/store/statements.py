"""The few statements that every issuance needs, given to the driver as they are, in SQLAlchemy's transaction.

SQLAlchemy takes ten times as long to turn an expression into one of these as SQLite takes to answer it. Values are
marked by `?`. Errors are raised as SQLAlchemy raises them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Column, Connection, Table
from sqlalchemy.exc import DBAPIError

_CHUNK = 512  # values in one IN list: SQLite takes 32,766 parameters, and nobody reads longer statements


def fetch(connection: Connection, text: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """The rows that a statement finds."""
    driver = connection.dialect.loaded_dbapi
    try:
        cursor = connection.connection.cursor()
        try:
            cursor.execute(_spelt(text, connection.dialect.name), values)
            return list(cursor.fetchall())
        finally:
            cursor.close()
    except driver.Error as error:
        raise _wrapped(connection, text, error) from error


def run_many(connection: Connection, text: str, lines: Sequence[Sequence[Any]]) -> None:
    """Run a statement once for each line of values."""
    driver = connection.dialect.loaded_dbapi
    try:
        cursor = connection.connection.cursor()
        try:
            cursor.executemany(_spelt(text, connection.dialect.name), lines)
        finally:
            cursor.close()
    except driver.Error as error:
        raise _wrapped(connection, text, error) from error


def insert_many(connection: Connection, table: Table, lines: Sequence[dict[str, Any]]) -> None:
    """Insert lines that all have the same columns, in the same order."""
    run_many(connection, _insertion(table.name, tuple(lines[0])), [tuple(line.values()) for line in lines])


def one(connection: Connection, key: Column[Any], value: Any) -> dict[str, Any] | None:
    """The row of a table whose unique `key` has that value."""
    found = every(connection, key, (value,))
    return found[0] if found else None


def every(connection: Connection, key: Column[Any], values: Collection[str]) -> list[dict[str, Any]]:
    """The rows of a table whose `key` is one of the values."""
    names = tuple(column.name for column in key.table.columns)
    found = _chosen(connection, key, names, values)
    return [dict(zip(names, row, strict=True)) for row in found]


def among(connection: Connection, key: Column[Any], values: Collection[str], value: Column[Any]) -> dict[str, Any]:
    """The `value` of each row whose `key` is one of the values."""
    return {row[0]: row[1] for row in _chosen(connection, key, (key.name, value.name), values)}


def chunks(values: Sequence[str]) -> list[Sequence[str]]:
    return [values[at : at + _CHUNK] for at in range(0, len(values), _CHUNK)]


def _chosen(
    connection: Connection, key: Column[Any], names: tuple[str, ...], values: Collection[str]
) -> Iterator[tuple[Any, ...]]:
    for some in chunks(sorted(values)):
        # Filled up to a power of two: then there are ten statements, which the driver knows, and not five hundred.
        width = 1 << (len(some) - 1).bit_length()
        filled = [*some, *([some[-1]] * (width - len(some)))]
        yield from fetch(connection, _choice(key.table.name, key.name, names, width), filled)


@cache
def _choice(table: str, key: str, names: tuple[str, ...], width: int) -> str:
    marks = ", ".join("?" * width)
    return f'SELECT {_listed(names)} FROM "{table}" WHERE "{key}" IN ({marks})'  # noqa: S608  our own names


@cache
def _insertion(table: str, names: tuple[str, ...]) -> str:
    return f'INSERT INTO "{table}" ({_listed(names)}) VALUES ({", ".join("?" * len(names))})'  # noqa: S608  our own


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


@cache
def _spelt(text: str, dialect: str) -> str:
    return text if dialect == "sqlite" else text.replace("?", "%s")


def _wrapped(connection: Connection, text: str, error: Exception) -> BaseException:
    dialect = connection.dialect
    return DBAPIError.instance(text, None, error, dialect.loaded_dbapi.Error, hide_parameters=True, dialect=dialect)
