"""What a CA looks at before it signs a tree head: nobody without its key may have written what it would sign over.

Without its password a CA revokes, bans and prunes, and leaves the head unsigned. Whoever can write the database can
leave an unsigned head as well, so there is nothing in an unsigned end of the ledger that needs a key, and what is
there is checked before the next signed head covers it:

    (1) the last signed head is there, is by a CA of this process's own, and not by one that was revoked before it, and
        the CA's settings are those that it commits to
    (2) the entries after it are those that the last head commits to
    (3) each of them is one that a CA without its key writes (`ledger.needs_key`)
    (4) pruned: of a CA that issues no more, and of certificates that ended longer ago than lists name them
    (5) retired: a root or an intermediate, whose certificate has ended
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Connection, LargeBinary, func, or_, select

from pki import ledger
from pki.errors import LedgerDamaged
from pki.ledger import Entry, Frontier, head_signer, leaf_hash, settings_digest, verify_head
from pki.profiles import CRL_RETENTION
from pki.records import IssuerRecord, LedgerRow, SealedHead, Settings, State
from pki.store import rows
from pki.store.schema import heads, issuers
from pki.store.schema import ledger as ledger_table
from pki.store.statements import fetch
from trust.identity import thumbprint

KeyOf = Callable[[str], ec.EllipticCurvePublicKey]
CLOCKS = timedelta(hours=1)  # how far the clocks of two instances may be apart

_STATES = 'SELECT "key_id", "state" FROM "issuers"'
_ROOT = 'SELECT "root" FROM "heads" WHERE "size" = ?'

# How the entries begin that tell the states of CAs, and their end (`Entry.encode`).
_ABOUT_CAS = (b'{"kind":"issuer"', b'{"kind":"retired')

_Point = tuple[int, bytes]


class Guard:
    """What one process knows of a ledger: how it was when this process last wrote or checked it.

    One transaction that writes runs at a time, and so does this.
    """

    def __init__(self, settings: Settings) -> None:
        self._trust_domain = settings.trust_domain
        self.settings = settings_digest(settings)
        # The key of a CA that this process believes; without it, the one of the CA's row.
        self.key_of: KeyOf | None = None
        self._written: _Point | None = None  # the newest head that is known to be committed
        self._pending: _Point | None = None  # the one that was written after it, perhaps in a transaction that failed
        self._checked: set[_Point] = set()  # those of the two that may be signed over
        self._gone: set[str] = set()  # the CAs that the ledger says were revoked or retired, for ever
        self._heard = 0  # how many entries that is known of
        self._hearing = threading.Lock()

    def extends(self, connection: Connection, last: SealedHead | None) -> None:
        """The ledger is not shorter, and not another one, than when this process last wrote it.

        What others have written since continues it: the head that this process knows still stands where it stood.

        Raises:
            LedgerDamaged: it is.
        """
        point = None if last is None else (last.size, last.root)
        if point == self._written:
            return
        if point is not None and point == self._pending:
            self._written, self._pending = self._pending, None
            self._checked &= {point}
            return
        if self._written is None:
            return
        size, root = self._written
        # A database that was put back, and written on by another process since, is longer again, and another one.
        if last is None or last.size <= size or fetch(connection, _ROOT, (size,)) != [(root,)]:
            raise LedgerDamaged(
                "ledger of the CA",
                got=f"{0 if last is None else last.size} entries that do not continue what this process has written",
                expected=f"the {size} entries of before",
                do="run `a2a-pki ledger verify`; after a restore, start this program again",
            )

    def check(self, connection: Connection, last: SealedHead | None, now: datetime) -> None:
        """The ledger may be signed over.

        It costs nothing if this process wrote or checked its end, and the check of one signature if another process
        has signed it.

        Raises:
            LedgerDamaged: it may not; the line names the entry.
        """
        if last is None or (last.size, last.root) in self._checked:
            return
        signed = last if last.jws is not None else _newest_signed(connection)
        if signed is None:  # (1)
            raise _refused("none of its heads is signed", "a signed head", do="restore a backup")
        self._verify(connection, signed, _tail(connection, signed, last), now)
        self._written, self._pending = (last.size, last.root), None
        self._checked = {self._written}

    def wrote(self, size: int, root: bytes, *, checked: bool) -> None:
        self._pending = (size, root)
        if checked:
            self._checked = {point for point in self._checked if point == self._written} | {self._pending}

    @property
    def pending(self) -> tuple[int, bytes] | None:
        """What the transaction that runs has written; to be given to `committed` after it."""
        return self._pending

    def committed(self, point: tuple[int, bytes] | None) -> None:
        """That head is on the disk; unless another transaction has found it there already."""
        if point is not None and point == self._pending:
            self._written = point

    def is_checked(self, last: SealedHead | None) -> bool:
        return last is None or (last.size, last.root) in self._checked

    def covers(self, connection: Connection, issuer: IssuerRecord) -> bool:
        """Whether the ledger has that CA, with that certificate, under a head that a CA of ours has signed.

        Not checked: everything before that entry. Whoever has rewritten the ledger is found by an audit.
        """
        query = select(ledger_table.c.position, ledger_table.c.entry, ledger_table.c.leaf).join(
            issuers, issuers.c.position == ledger_table.c.position
        )
        row = connection.execute(query.where(issuers.c.key_id == issuer.key_id)).mappings().first()
        signed = _newest_signed(connection)
        if row is None or signed is None or signed.jws is None or not 0 <= row["position"] < signed.size:
            return False
        entry = Entry.decode(rows.ledger_row_of(row).entry)
        facts = entry.facts
        if entry.kind != "issuer" or (facts["key_id"], facts["x5t#S256"]) != (issuer.key_id, thumbprint(issuer.der)):
            return False
        # The first signed head after the entry follows, with that entry, from the head before it.
        query = select(heads).where(heads.c.size > row["position"], heads.c.jws.is_not(None)).order_by(heads.c.size)
        after = rows.head_of(connection.execute(query.limit(1)).mappings().one())
        assert after.jws is not None  # noqa: S101  the query's condition
        head = verify_head(after.jws, self._key(connection, head_signer(after.jws)))
        return head.size == after.size and head.root == _rebuilt(connection, row["position"], after.size)

    def is_gone(self, connection: Connection, key_id: str) -> bool:
        """Whether the ledger has revoked or retired that CA, whatever the CA's row says now.

        The first time, all of the ledger is looked through, and later what was appended. Not checked: its hashes.
        """
        with self._hearing:  # readers come in several threads
            size: int = connection.execute(select(func.coalesce(func.max(heads.c.size), 0))).scalar_one()
            if size < self._heard:  # another ledger
                self._gone, self._heard = set(), 0
            if size > self._heard:
                at, data = ledger_table.c.position, ledger_table.c.entry
                begin = func.substr(data, 1, len(_ABOUT_CAS[0]), type_=LargeBinary)
                query = select(data).where(at >= self._heard, at < size, or_(*(begin == kind for kind in _ABOUT_CAS)))
                for (found,) in connection.execute(query).all():
                    entry = Entry.decode(found)
                    if entry.kind == "retired" or entry.facts["state"] == State.REVOKED:
                        self._gone.add(str(entry.facts["key_id"]))
                self._heard = size
            return key_id in self._gone

    def _verify(self, connection: Connection, signed: SealedHead, tail: list[tuple[int, Entry]], now: datetime) -> None:
        assert signed.jws is not None  # noqa: S101  the query's condition
        states: dict[str, str] = dict(fetch(connection, _STATES))
        # (1)
        signer = head_signer(signed.jws)
        head = verify_head(signed.jws, self._key(connection, signer))
        if (head.trust_domain, head.size, head.root, head.time) != (
            self._trust_domain,
            signed.size,
            signed.root,
            signed.time,
        ):
            raise _refused(f"tree head {signed.size} differs from what was signed", "what was signed")
        if head.settings not in (None, self.settings):
            raise _refused(
                "settings of the CA that are not those of the last head", "what was decided when it was made"
            )
        left = {entry.facts["key_id"] for _, entry in tail if entry.kind == "issuer"}
        if states.get(signer) == State.REVOKED and signer not in left:
            raise _refused(f"tree head {signed.size} is by CA {signer}, revoked before", "one by a CA of that time")
        for position, entry in tail:
            why = _wrong(connection, entry, states, signed.size, now)
            if why is not None:
                raise _refused(f"entry {position} ({entry.describe()}): {why}", "what a CA without its key writes")

    def _key(self, connection: Connection, key_id: str) -> ec.EllipticCurvePublicKey:
        if self.key_of is not None:
            return self.key_of(key_id)
        row = connection.execute(select(issuers).where(issuers.c.key_id == key_id)).mappings().first()
        key = None if row is None else rows.issuer_of(row).certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise _refused(f"the last head is by CA {key_id}", "one by a CA of this database")
        return key


def _wrong(connection: Connection, entry: Entry, states: dict[str, str], sealed: int, now: datetime) -> str | None:
    if ledger.needs_key(entry):  # (3)
        return "nobody without the CA's key writes that, and no head with a signature covers it"
    if entry.kind not in ("pruned", "retired"):
        return None
    if entry.time > now + CLOCKS:
        return "its time has not come"
    if entry.kind == "pruned":  # (4)
        if states.get(str(entry.facts["issuer"])) in (State.PREPARED, State.ACTIVE):
            return "that CA may still issue"
        if int(entry.facts["before"]) > rows.seconds(entry.time - CRL_RETENTION):
            return "certificates that lists still have to name"
        return None
    own = _issued(connection, entry, sealed)  # (5)
    if own is None or own.facts["role"] not in ("root", "intermediate"):
        return "that is not the certificate of a CA"
    if int(own.facts["not_after"]) >= rows.seconds(entry.time - CRL_RETENTION):
        return "that CA has not ended, or not long ago"
    return None


def _issued(connection: Connection, retired: Entry, sealed: int) -> Entry | None:
    """What the signed part of the ledger says about the certificate of a CA that is gone. Looked for, because rare."""
    serial = f'"{retired.serial:040x}"'.encode()
    query = select(ledger_table.c.entry).where(ledger_table.c.position < sealed)
    query = query.order_by(ledger_table.c.position).execution_options(yield_per=1000)
    for (data,) in connection.execute(query):
        if serial in data and (entry := Entry.decode(data)).kind == "issued":
            return entry
    return None


def _rebuilt(connection: Connection, position: int, size: int) -> bytes:
    """The root of the first `size` entries, from the head before an entry and all that came since."""
    before = connection.execute(select(heads).where(heads.c.size <= position).order_by(heads.c.size.desc()).limit(1))
    first = before.mappings().first()
    frontier = Frontier() if first is None else Frontier.from_bytes(rows.head_of(first).frontier)
    at = ledger_table.c.position
    query = select(ledger_table.c.entry).where(at >= frontier.size, at < size).order_by(at)
    return frontier.extended(leaf_hash(data) for (data,) in connection.execute(query)).root()


def _newest_signed(connection: Connection) -> SealedHead | None:
    query = select(heads).where(heads.c.jws.is_not(None)).order_by(heads.c.size.desc()).limit(1)
    row = connection.execute(query).mappings().first()
    return None if row is None else rows.head_of(row)


def _tail(connection: Connection, signed: SealedHead, last: SealedHead) -> list[tuple[int, Entry]]:
    """(2) The entries between the two heads."""
    frontier = Frontier.from_bytes(signed.frontier)
    found: list[LedgerRow] = []
    if signed.size != last.size:
        position = ledger_table.c.position
        query = select(ledger_table).where(position >= signed.size, position < last.size).order_by(position)
        found = [rows.ledger_row_of(row) for row in connection.execute(query).mappings()]
    if frontier.size == signed.size and frontier.root() == signed.root:
        frontier = frontier.extended(leaf_hash(row.entry) for row in found)
    if frontier.size != last.size or frontier.root() != last.root:
        raise _refused(f"entries {signed.size} to {last.size - 1} are not those of the last head", "what was written")
    return [(row.position, Entry.decode(row.entry)) for row in found]


def _refused(got: str, expected: str, do: str = "run `a2a-pki ledger verify`, and restore a backup") -> LedgerDamaged:
    return LedgerDamaged("the ledger is not signed over", got=got, expected=expected, do=do)
