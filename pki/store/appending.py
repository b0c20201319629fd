"""How entries get into the ledger: inside the transaction of what they record, and with a new tree head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection, update

from pki import ledger
from pki.errors import AuthorityNotValid, LedgerDamaged, PKIError
from pki.ledger import Entry, Frontier, Head
from pki.records import SealedHead, State
from pki.store import rows
from pki.store.guarding import Guard
from pki.store.reading import read_head, read_sequence
from pki.store.schema import heads
from pki.store.schema import ledger as ledger_table
from pki.store.statements import fetch, insert_many

Seal = Callable[[Head], str]

_REVOKED = 'SELECT "key_id" FROM "issuers" WHERE "state" = ?'


class Journal:
    """The entries of one transaction that writes, each with the position that it will have in the ledger.

    Nobody else appends meanwhile: only one transaction that writes runs at a time.

    Raises:
        LedgerDamaged: what the last head says about the tree cannot be, or is not what this process has written.
    """

    def __init__(self, connection: Connection, guard: Guard) -> None:
        self._connection = connection
        self._guard = guard
        self._last = read_head(connection)
        guard.extends(connection, self._last)
        self._frontier = _frontier(self._last)
        self._entries: list[Entry] = []
        self.counted = False  # whether the sequence of the trust bundle has changed

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

        Raises:
            LedgerDamaged: there are entries that need a key (`ledger.needs_key`), and what stands before them may not
                be signed over.
            PKIError: or what kept `seal` from signing.
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
        head = Head(
            trust_domain=trust_domain,
            size=frontier.size,
            root=frontier.root(),
            time=rows.moment(at),
            settings=self._guard.settings,
        )
        line = {
            "size": head.size,
            "root": head.root,
            "time": at,
            "frontier": frontier.to_bytes(),
            "jws": self._signed(head, seal, now),
        }
        insert_many(self._connection, heads, [line])
        self._guard.wrote(head.size, head.root, checked=self._guard.is_checked(self._last))

    def check(self, now: datetime) -> None:
        """See that what is there may be signed over; for a change of CAs to ask before it changes them.

        Raises:
            LedgerDamaged: it may not.
        """
        self._guard.check(self._connection, self._last, now)

    def _signed(self, head: Head, seal: Seal | None, now: datetime) -> str | None:
        if seal is None:
            return None
        try:
            # What was counted without a key, as by a restore, is signed with the first head of a process.
            counts = self.counted or not self._guard.is_checked(self._last)
            self.check(now)
            if counts:
                head = replace(head, bundle=read_sequence(self._connection))
            return _by_a_ca(self._connection, seal(head))
        except PKIError:
            if any(ledger.needs_key(entry) for entry in self._entries):
                raise
            return None


def seal_last(
    connection: Connection, *, trust_domain: str, seal: Seal, guard: Guard, now: datetime
) -> SealedHead | None:
    """The newest head, signed now if it was not, and if it can be.

    Raises:
        LedgerDamaged: there is something under it that a CA does not write without its key.
    """
    last = read_head(connection)
    guard.extends(connection, last)
    if last is None or last.jws is not None:
        return last
    _frontier(last)
    guard.check(connection, last, now)
    try:
        head = Head(
            trust_domain=trust_domain,
            size=last.size,
            root=last.root,
            time=last.time,
            settings=guard.settings,
            bundle=read_sequence(connection),
        )
        jws = _by_a_ca(connection, seal(head))
    except PKIError:
        return last
    connection.execute(update(heads).where(heads.c.size == last.size).values(jws=jws))
    return read_head(connection)


def _by_a_ca(connection: Connection, jws: str) -> str:
    """The signed head, if its CA has not been revoked: by another process, or in this transaction."""
    revoked = fetch(connection, _REVOKED, (State.REVOKED.value,))
    if revoked and any(ledger.head_signer(jws) == key_id for (key_id,) in revoked):
        raise AuthorityNotValid("tree head", got="a key of a CA that is revoked", expected="one that is not")
    return jws


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
