"""How entries get into the ledger: inside the transaction of what they record, and with a new tree head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, insert, update

from pki import ledger
from pki.errors import LedgerDamaged, PKIError
from pki.ledger import Entry, Frontier, Head
from pki.records import SealedHead
from pki.store import rows
from pki.store.reading import read_head
from pki.store.schema import heads
from pki.store.schema import ledger as ledger_table

Seal = Callable[[Head], str]
_add_head = insert(heads)


class Journal:
    """The entries of one transaction that writes, each with the position that it will have in the ledger.

    Nobody else appends meanwhile: only one transaction that writes runs at a time.

    Raises:
        LedgerDamaged: what the last head says about the tree cannot be.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last = read_head(connection)
        self._frontier = _frontier(self._last)
        self._entries: list[Entry] = []

    @property
    def size(self) -> int:
        return self._frontier.size + len(self._entries)

    def add(self, entry: Entry) -> int:
        self._entries.append(entry)
        return self.size - 1

    def write(self, *, trust_domain: str, now: datetime, seal: Seal | None) -> None:
        """Append what was added, with one tree head for all of it.

        Without `seal`, or where signing fails, the head is unsigned: a revocation must not wait for a token that is
        out of order. The next signed head covers these entries as well.
        """
        if not self._entries:
            return
        encoded = [entry.encode() for entry in self._entries]
        leaves = [ledger.leaf_hash(data) for data in encoded]
        frontier = self._frontier.extended(leaves)
        lines = zip(range(self._frontier.size, frontier.size), encoded, leaves, strict=True)
        insert_many(
            self._connection,
            ledger_table,
            [{"position": position, "entry": data, "leaf": leaf} for position, data, leaf in lines],
        )
        at = rows.seconds(now)
        if self._last is not None:  # a clock that was set back does not make heads go back
            at = max(at, rows.seconds(self._last.time))
        head = Head(trust_domain=trust_domain, size=frontier.size, root=frontier.root(), time=rows.moment(at))
        self._connection.execute(
            _add_head,
            {
                "size": head.size,
                "root": head.root,
                "time": at,
                "frontier": frontier.to_bytes(),
                "jws": _signed(head, seal),
            },
        )


def seal_last(connection: Connection, *, trust_domain: str, seal: Seal) -> SealedHead | None:
    """The newest head, signed now if it was not, and if it can be."""
    last = read_head(connection)
    if last is None or last.jws is not None:
        return last
    _frontier(last)
    jws = _signed(Head(trust_domain=trust_domain, size=last.size, root=last.root, time=last.time), seal)
    if jws is not None:
        connection.execute(update(heads).where(heads.c.size == last.size).values(jws=jws))
    return read_head(connection)


def insert_many(connection: Connection, table: Table, values: list[dict[str, Any]]) -> None:
    """As `connection.execute(insert(table), values)`, without what SQLAlchemy does for each of many rows."""
    connection.exec_driver_sql(_statement(table, values[0], connection.dialect.name), values)


def _statement(table: Table, row: Mapping[str, Any], dialect: str) -> str:
    mark = ":{}" if dialect == "sqlite" else "%({})s"
    columns = ", ".join(f'"{name}"' for name in row)
    return f'INSERT INTO "{table.name}" ({columns}) VALUES ({_marks(mark, row)})'  # noqa: S608  our own names


def _marks(mark: str, names: Iterable[str]) -> str:
    return ", ".join(mark.format(name) for name in names)


def _signed(head: Head, seal: Seal | None) -> str | None:
    try:
        return None if seal is None else seal(head)
    except PKIError:
        return None


def _frontier(last: SealedHead | None) -> Frontier:
    """The tree to append to. Also what is signed over: a head that contradicts itself is not signed again."""
    if last is None:
        return Frontier()
    frontier = Frontier.from_bytes(last.frontier)
    if frontier.size != last.size or frontier.root() != last.root:
        raise LedgerDamaged(
            f"tree head {last.size} is damaged", got="another tree", expected="what was written", do="restore a backup"
        )
    return frontier
